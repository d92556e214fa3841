//! One fault, and what it did.

use std::collections::BTreeSet;
use std::time::Duration;

use selvedge_model::{Time, Vni};
use selvedge_netlab::campus::Fault;
use selvedge_netlab::clock::{now, wait_until};
use selvedge_netlab::stream::{Report, Streams};

use crate::fleet::{Fleet, flowing, flowing_since, moment};
use crate::observed::owners_in_doubt;
use crate::statistics::millis;
use crate::timeline::Course;
use crate::view::{first_write, verdict};

/// What a fault did.
#[derive(Debug)]
pub(crate) struct Outage {
    /// How many networks the victim served.
    pub(crate) affected: usize,
    /// On how many of them packets ran again while the fault lasted.
    pub(crate) restored: usize,
    /// The longest gap of each of them, in either direction of either family, from the fault
    /// until 5 s after its end, in milliseconds.
    pub(crate) gaps_ms: Vec<f64>,
    /// The same of each family alone.
    pub(crate) gaps_v4_ms: Vec<f64>,
    pub(crate) gaps_v6_ms: Vec<f64>,
    /// The longest gap of each network, whoever served it, after the fault had ended and until
    /// the fleet was whole again, in milliseconds.
    pub(crate) return_gaps_ms: Vec<f64>,
    /// From the fault to the verdict in the store; `None` if there was none.
    pub(crate) verdict_ms: Option<f64>,
    /// From the fault to the first write of a successor; `None` if nobody took anything over.
    pub(crate) detect_ms: Option<f64>,
    /// Networks for which it was not one host alone, and that the store's owner, that answered
    /// and attracted traffic, 5 s after the fault had ended.
    pub(crate) in_doubt: BTreeSet<Vni>,
    /// Packets lost on the networks of the others, until 5 s after the end of the fault.
    pub(crate) others_lost: u64,
    /// Packets lost on all networks: while the fault lasted, and after it had ended.
    pub(crate) lost_during: u64,
    pub(crate) lost_after: u64,
    /// Packets lost on any network later than 5 s after the fault, while networks moved back.
    pub(crate) return_lost: u64,
    /// By how much the sender was late, at most.
    pub(crate) sender_late: Duration,
    /// What happened when.
    pub(crate) course: Course,
}

/// Lets `fault` befall `victim` while packets run, ends it, measures, and waits until the fleet
/// is whole again.
pub(crate) fn provoke(fleet: &mut Fleet, victim: &str, fault: Fault) -> anyhow::Result<Outage> {
    let all = fleet.networks();
    let networks = fleet.view().served_by(victim, &all);
    fleet.wait_plain()?;
    let mut streams = fleet.start_streams(&networks)?;
    std::thread::sleep(BEFORE);
    let struck = now();
    fleet.strike(victim, fault)?;
    let restored = endure(&streams, &networks, fault);
    let ended = now();
    fleet.heal(victim, fault)?;
    let healed = now();
    std::thread::sleep(AFTER);
    let seen = now();
    let in_doubt = owners_in_doubt(fleet, &all)?;
    fleet.wait_whole()?;
    let settled = now();
    streams.stop(GRACE);
    let changes = fleet.changes();
    let first = first_write(&changes, struck, &networks).filter(|at| *at <= ended);
    let verdict = verdict(&changes, victim, struck).filter(|at| *at <= ended);
    let report = streams.report_between(struck, seen);
    let back = streams.report_between(healed, settled);
    let lost_between = |from, to| streams.report_between(from, to).lost();
    Ok(Outage {
        affected: networks.len(),
        restored,
        gaps_ms: gaps(&report, &networks),
        gaps_v4_ms: gaps(&report.only(|flow| !flow.ipv6), &networks),
        gaps_v6_ms: gaps(&report.only(|flow| flow.ipv6), &networks),
        return_gaps_ms: gaps(&back, &all),
        verdict_ms: verdict.map(|at| millis(at - struck)),
        detect_ms: first.map(|at| millis(at - struck)),
        in_doubt,
        others_lost: lost(&report, |vni| !networks.contains(&vni)),
        lost_during: lost_between(struck, ended),
        lost_after: lost_between(ended, settled),
        return_lost: lost_between(seen, settled),
        sender_late: report.sender_late.max(back.sender_late),
        course: Course::new(
            (struck, ended, settled),
            changes,
            (&report, &networks),
            &streams.report_between(ended, settled),
        ),
    })
}

/// The longest gap of each of `networks`, in milliseconds.
pub(crate) fn gaps(report: &Report, networks: &[Vni]) -> Vec<f64> {
    let wanted: BTreeSet<u32> = networks.iter().map(|vni| vni.get()).collect();
    let its = report.gaps().into_iter().filter(|(label, _)| wanted.contains(label));
    its.map(|(_, gap)| millis(gap)).collect()
}

/// Waits until packets run again on all `networks`, for no longer than `limit`, and returns on
/// how many they do.
pub(crate) fn await_packets(streams: &Streams, networks: &[Vni], limit: Duration) -> usize {
    let all = || Ok(flowing(streams, networks).len() == networks.len());
    // If it does not happen, the count says so.
    let _ = wait_until("packets on all networks", limit, all);
    let from = now();
    wait(Duration::from_millis(500).max(moment(streams)));
    flowing_since(streams, networks, from).len()
}

fn lost(report: &Report, chosen: impl Fn(Vni) -> bool) -> u64 {
    let its = report.flows.iter().filter(|flow| Vni::try_from(flow.label).is_ok_and(&chosen));
    its.map(|flow| flow.lost).sum()
}

/// How long packets run before the fault.
pub(crate) const BEFORE: Duration = Duration::from_secs(1);
/// How long after the fault has ended its consequences are looked at.
pub(crate) const AFTER: Duration = Duration::from_secs(5);
/// How long the last packets may take to arrive.
pub(crate) const GRACE: Duration = Duration::from_millis(500);
/// How long a fault lasts that does not end by itself: as long as it takes until all networks
/// are back, within these limits.
const AT_LEAST: Duration = Duration::from_secs(10);
const AT_MOST: Duration = Duration::from_secs(60);

/// Waits while the fault lasts. Returns on how many of `networks` packets run at its end.
fn endure(streams: &Streams, networks: &[Vni], fault: Fault) -> usize {
    let limit = match fault {
        Fault::Kill | Fault::Freeze => {
            wait(Duration::from_secs(10));
            Duration::ZERO
        }
        // All that it had is stopped; what the others do within this time is what counts.
        Fault::Pause => {
            wait(Duration::from_millis(4500));
            Duration::ZERO
        }
        Fault::Cut | Fault::Silent | Fault::Power | Fault::Uplink | Fault::Fabric => {
            wait(AT_LEAST);
            AT_MOST - AT_LEAST
        }
    };
    match limit.is_zero() {
        true => {
            let from: Time = now();
            wait(Duration::from_millis(500).max(moment(streams)));
            flowing_since(streams, networks, from).len()
        }
        false => await_packets(streams, networks, limit),
    }
}

fn wait(time: Duration) {
    std::thread::sleep(time);
}
