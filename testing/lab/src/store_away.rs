//! `store-away`: etcd goes away and comes back, of which packets may notice nothing.

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use crate::Outcome;
use crate::fleet::{Fleet, FleetOptions};
use crate::progress::say;
use crate::steady::Steady;

/// Options of the scenario.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    fleet: FleetOptions,
    /// For how long all members are gone
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// For how long each member is gone, one after the other
    #[arg(long, default_value_t = 10)]
    member_seconds: u64,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    members: usize,
    /// While all were gone and while they came back.
    all_gone: Steady,
    /// While each was gone in turn.
    each_gone: Steady,
    fences: u64,
}

/// Runs the scenario.
pub(crate) fn run(options: &Options) -> anyhow::Result<Outcome<Figures>> {
    let mut fleet = Fleet::start(&options.fleet)?;
    let members = fleet.etcd()?.members();
    let before = fleet.counted()?;
    let each_gone = Steady::under(&mut fleet, |fleet| {
        members.iter().try_for_each(|member| {
            absent(fleet, std::slice::from_ref(member), options.member_seconds)
        })
    })?;
    let all_gone = Steady::under(&mut fleet, |fleet| absent(fleet, &members, options.seconds))?;
    let fences = fleet.counted()?.fences - before.fences;
    let mut broken: Vec<String> = each_gone.broken();
    broken.extend(all_gone.broken());
    let figures = Figures { members: members.len(), all_gone, each_gone, fences };
    Ok(Outcome { figures, broken })
}

/// Longer than a lease that was found at its end: what it does to owners has happened by then.
const AFTERWARDS: Duration = Duration::from_secs(10);

/// Kills these members, starts them again on the data that they had, and waits until all is
/// well with them.
fn absent(fleet: &mut Fleet, members: &[String], seconds: u64) -> anyhow::Result<()> {
    say!("without {} for {seconds} s", members.join(", "));
    for member in members {
        fleet.etcd_mut()?.kill_member(member)?;
    }
    std::thread::sleep(Duration::from_secs(seconds));
    for member in members {
        fleet.etcd_mut()?.restart_members_on(member)?;
    }
    fleet.etcd()?.wait_healthy(Duration::from_secs(60))?;
    std::thread::sleep(AFTERWARDS);
    Ok(())
}
