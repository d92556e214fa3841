//! `restart`: agents are restarted and upgraded, which nobody may notice.

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use crate::Outcome;
use crate::fleet::{Fleet, FleetOptions, Restart};
use crate::progress::say;
use crate::steady::Steady;

/// Options of the scenario.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    fleet: FleetOptions,
    /// How an agent is started again; given several times, by turns
    #[arg(long, value_enum, default_values = ["announced", "upgraded"])]
    how: Vec<Restart>,
    /// How often; gateways take turns
    #[arg(long, default_value_t = 6)]
    runs: usize,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    restarts: usize,
    #[serde(flatten)]
    steady: Steady,
}

/// Runs the scenario.
pub(crate) fn run(options: &Options) -> anyhow::Result<Outcome<Figures>> {
    let fleet_options = FleetOptions { own_programs: true, ..options.fleet.clone() };
    let mut fleet = Fleet::start(&fleet_options)?;
    let gateways = fleet.gateways();
    let steady = Steady::under(&mut fleet, |fleet| {
        let turns = gateways.iter().cycle().zip(options.how.iter().cycle());
        for (gateway, how) in turns.take(options.runs) {
            say!("{gateway}: {how:?}");
            fleet.restart(gateway, *how)?;
            std::thread::sleep(PAUSE);
        }
        Ok(())
    })?;
    let broken = steady.broken();
    Ok(Outcome { figures: Figures { restarts: options.runs, steady }, broken })
}

/// Between two restarts: as long as others would need to notice one.
const PAUSE: Duration = Duration::from_secs(4);
