//! `mesh-restart`: agents are killed and started again under traffic.

use std::time::Duration;

use clap::Args;
use selvedge_netlab::clock::now;
use serde::Serialize;

use super::paths::Paths;
use super::{Overlay, OverlayOptions, PATIENCE, at_most, none_lost};
use crate::Outcome;
use crate::progress::say;
use crate::statistics::Spread;

/// Options of the scenario.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    overlay: OverlayOptions,
    /// Number of members
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=16))]
    members: u8,
    /// How often an agent is killed; members take turns
    #[arg(long, default_value_t = 6)]
    runs: usize,
    /// The bound on the time from the kill until packets run again, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 2000.0)]
    max_outage_ms: f64,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    members: u8,
    runs: usize,
    /// The longest time without packets between the killed one and each other.
    outage_ms: Spread,
    /// Packets between the others that were lost meanwhile.
    others_lost: u64,
    sender_late_ms: f64,
}

/// Runs the scenario.
pub(crate) fn run(options: &Options) -> anyhow::Result<Outcome<Figures>> {
    let members = usize::from(options.members);
    let mut overlay = Overlay::formed(&options.overlay, members)?;
    let paths = Paths::between_all(&overlay, INTERVAL)?;
    overlay.explain(paths.wait_all(PATIENCE))?;
    let began = now();
    let (mut outages, mut others_lost) = (Vec::new(), 0);
    for victim in overlay.names().iter().cycle().take(options.runs) {
        std::thread::sleep(CALM);
        let struck = now();
        overlay.restart(victim)?;
        let back = paths.wait_all(PATIENCE);
        overlay.explain(back)?;
        std::thread::sleep(CALM);
        let during = (struck, now());
        std::thread::sleep(UNDER_WAY);
        let gaps = paths.gaps(during, |a, b| a == victim || b == victim);
        say!("{victim}: {gaps:?} ms");
        outages.extend(gaps);
        others_lost += paths.lost(during, |a, b| a != victim && b != victim);
    }
    let figures = Figures {
        members: options.members,
        runs: options.runs,
        outage_ms: Spread::of(&outages),
        others_lost,
        sender_late_ms: paths.sender_late_ms((began, now())),
    };
    let broken = broken(options, &figures);
    Ok(Outcome { figures, broken })
}

const INTERVAL: Duration = Duration::from_millis(20);
/// How long packets run before a kill and after their return.
const CALM: Duration = Duration::from_secs(1);
/// How long the last packets may take to arrive.
pub(super) const UNDER_WAY: Duration = Duration::from_millis(500);

fn broken(options: &Options, figures: &Figures) -> Vec<String> {
    let mut broken = Vec::new();
    at_most(&mut broken, "back", figures.outage_ms.max, options.max_outage_ms);
    none_lost(&mut broken, "between others", figures.others_lost);
    broken
}
