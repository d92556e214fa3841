//! `mesh-roam`: a member's address changes under TCP.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use selvedge_netlab::clock::{now, wait_until};
use selvedge_netlab::tcp::{Connection, Pace};
use serde::Serialize;

use super::{MESH, Overlay, OverlayOptions, PATIENCE, UPLINK, at_most};
use crate::Outcome;
use crate::progress::say;
use crate::statistics::{Spread, millis};

/// Options of the scenario.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    overlay: OverlayOptions,
    /// Number of members
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=16))]
    members: u8,
    /// How often the address changes for each direction of the stream
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// The bound on the time in which nothing arrives, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 3000.0)]
    max_outage_ms: f64,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    members: u8,
    runs: usize,
    /// The longest time without a byte, where the one that moves sends.
    from_moved_ms: Spread,
    /// The same where the other one sends: it has to be told where to.
    to_moved_ms: Spread,
    /// Connections that broke.
    broken: usize,
}

/// Runs the scenario.
pub(crate) fn run(options: &Options) -> anyhow::Result<Outcome<Figures>> {
    let members = usize::from(options.members);
    let mut overlay = Overlay::formed(&options.overlay, members)?;
    let mut broken_connections = 0;
    let mut gaps = [Vec::new(), Vec::new()];
    for run in 0..options.runs * 2 {
        let (from, to) = if run % 2 == 0 { (MOVED, FIXED) } else { (FIXED, MOVED) };
        let gap = travel(&overlay, from, to, run).map_err(|error| overlay.explained(error))?;
        say!("from {from} to {to}: {gap:?} ms");
        broken_connections += usize::from(gap.is_none());
        gaps[run % 2].extend(gap);
    }
    let [from_moved, to_moved] = gaps.map(|gaps| Spread::of(&gaps));
    let figures = Figures {
        members: options.members,
        runs: options.runs,
        from_moved_ms: from_moved,
        to_moved_ms: to_moved,
        broken: broken_connections,
    };
    let broken = broken(options, &figures);
    Ok(Outcome { figures, broken })
}

/// Who moves, and who does not.
const MOVED: &str = "m2";
const FIXED: &str = "m1";
const PORT: u16 = 5001;
const PACE: Pace = Pace::Every(Duration::from_millis(10));
/// How long the stream runs before the address changes and after it goes on.
const CALM: Duration = Duration::from_secs(2);

/// Changes the address under a stream from one to the other. The longest time without a byte, in
/// milliseconds; `None` if the connection broke.
fn travel(overlay: &Overlay, from: &str, to: &str, run: usize) -> anyhow::Result<Option<f64>> {
    let address = |name| overlay.address(name, MESH).map(IpAddr::from);
    let to_port = SocketAddr::new(address(to)?, PORT);
    let (sender, receiver) = (&overlay.member(from)?.host, &overlay.member(to)?.host);
    let stream = Connection::open((sender, address(from)?), (receiver, to_port), PACE)?;
    let opened = now();
    std::thread::sleep(CALM);
    if stream.bytes_between(opened, now()) == 0 {
        bail!("nothing runs from {from} to {to}");
    }
    let moved = now();
    rename(overlay, run)?;
    let back = now();
    let goes_on = || Ok(!stream.is_open() || stream.bytes_between(back, now()) > 0);
    // If it does not happen, the gap is as long as was waited.
    let _ = wait_until("more bytes", PATIENCE, goes_on);
    std::thread::sleep(CALM);
    Ok(stream.is_open().then(|| millis(stream.gap_between(moved, now()))))
}

/// Takes the address of the one who moves away and gives it another: there and back by turns.
fn rename(overlay: &Overlay, run: usize) -> anyhow::Result<()> {
    let member = overlay.member(MOVED)?;
    let home = member.underlay;
    let [a, b, c, d] = home.octets();
    let away = Ipv4Addr::new(a, b, c, d + 100);
    let (old, new) = if run.is_multiple_of(2) { (home, away) } else { (away, home) };
    let lines = format!("addr del {old}/24 dev {UPLINK}\naddr add {new}/24 dev {UPLINK}\n");
    Ok(member.host.ip(&lines)?)
}

fn broken(options: &Options, figures: &Figures) -> Vec<String> {
    let mut broken = Vec::new();
    let directions = [("from", figures.from_moved_ms), ("to", figures.to_moved_ms)];
    for (way, gaps) in directions {
        let what = format!("the stream {way} the one who moved goes on");
        at_most(&mut broken, &what, gaps.max, options.max_outage_ms);
    }
    if figures.broken > 0 {
        broken.push(format!("{} connections broke", figures.broken));
    }
    broken
}
