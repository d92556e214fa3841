//! `load`: all cores are busy with other work, which is no failure.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use selvedge_netlab::{Process, Recipe};
use serde::Serialize;

use crate::Outcome;
use crate::fleet::{Fleet, FleetOptions};
use crate::progress::say;
use crate::steady::Steady;

/// The first argument with which this program does nothing but keep a core busy, for as many
/// seconds as the second says.
pub(crate) const AS_BUSY: &str = "as-busy";

/// Options of the scenario.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    fleet: FleetOptions,
    /// For how long
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// How many processes are busy [default: as many as there are cores]
    #[arg(long)]
    busy: Option<usize>,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    busy: usize,
    failovers: u64,
    fences: u64,
    #[serde(flatten)]
    steady: Steady,
}

/// Runs the scenario.
pub(crate) fn run(options: &Options) -> anyhow::Result<Outcome<Figures>> {
    let cores = std::thread::available_parallelism().context("cannot count the cores")?;
    let busy = options.busy.unwrap_or(cores.get());
    let mut fleet = Fleet::start(&options.fleet)?;
    let before = fleet.counted()?;
    let steady = Steady::under(&mut fleet, |fleet| {
        say!("{busy} processes are busy for {} s", options.seconds);
        let processes = occupy(fleet, busy, options.seconds)?;
        std::thread::sleep(Duration::from_secs(options.seconds));
        drop(processes);
        Ok(())
    })?;
    let after = fleet.counted()?;
    let (failovers, fences) = (after.failovers - before.failovers, after.fences - before.fences);
    let mut broken = steady.broken();
    if failovers > 0 || fences > 0 || steady.verdicts > 0 {
        let verdicts = steady.verdicts;
        broken.push(format!("{failovers} failovers, {fences} fences, {verdicts} verdicts"));
    }
    Ok(Outcome { figures: Figures { busy, failovers, fences, steady }, broken })
}

/// Does what [`AS_BUSY`] says.
pub(crate) fn be_busy(seconds: Option<&OsString>) {
    let seconds = seconds.and_then(|text| text.to_str()?.parse().ok()).unwrap_or(0);
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        std::hint::black_box((0..10_000_u64).fold(0, |sum, number| sum ^ number.pow(2)));
    }
}

/// Busy processes of the usual priority. They end by themselves, or when they are dropped.
fn occupy(fleet: &Fleet, count: usize, seconds: u64) -> anyhow::Result<Vec<Process>> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let start = |index: usize| {
        let recipe = Recipe::new(&format!("busy{index}"), &fleet.campus.switch, &program);
        Ok(recipe.args([AS_BUSY, &seconds.to_string()]).start()?)
    };
    (0..count).map(start).collect()
}
