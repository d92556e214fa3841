//! One fault, and what it did.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Context;
use selvedge_model::Vni;
use selvedge_netlab::campus::{Family, Fault, Network};
use selvedge_netlab::clock::{now, wait_until};
use selvedge_netlab::stream::{Report, Streams};

use crate::fleet::{Fleet, flowing, flowing_since};
use crate::progress::say;
use crate::view::{View, first_write};

/// What a fault did.
#[derive(Debug)]
pub(crate) struct Outage {
    /// How many networks the victim served.
    pub(crate) affected: usize,
    /// On how many of them packets ran again while the fault lasted.
    pub(crate) restored: usize,
    /// The longest gap of each of them, in milliseconds.
    pub(crate) gaps_ms: Vec<f64>,
    /// From the fault to the first write of a successor; `None` if nobody took anything over.
    pub(crate) detect_ms: Option<f64>,
    /// Networks for which it was not one host alone, and that the store's owner, that answered
    /// and attracted traffic, 5 s after the fault had ended.
    pub(crate) in_doubt: BTreeSet<Vni>,
    /// Packets lost on the networks of the others.
    pub(crate) others_lost: u64,
    /// Packets lost on any network later on, while networks moved back.
    pub(crate) return_lost: u64,
    /// By how much the sender was late, at most.
    pub(crate) sender_late: Duration,
}

/// Lets `fault` befall `victim` while packets run, ends it, measures, and waits until the fleet
/// is whole again.
pub(crate) fn provoke(fleet: &mut Fleet, victim: &str, fault: Fault) -> anyhow::Result<Outage> {
    let all = fleet.networks();
    let networks = fleet.view().served_by(victim, &all);
    let mut streams = fleet.start_streams(&networks)?;
    std::thread::sleep(BEFORE);
    let struck = now();
    fleet.strike(victim, fault)?;
    let restored = endure(&streams, &networks, fault);
    let ended = now();
    fleet.heal(victim, fault)?;
    std::thread::sleep(AFTER);
    let seen = now();
    let in_doubt = owners_in_doubt(fleet, &all)?;
    fleet.etcd()?.wait_healthy(SETTLE)?;
    fleet.wait_settled(SETTLE)?;
    let settled = now();
    streams.stop(GRACE);
    let first = first_write(&fleet.changes(), struck, &networks).filter(|at| *at <= ended);
    let report = streams.report_between(struck, seen);
    Ok(Outage {
        affected: networks.len(),
        restored,
        gaps_ms: gaps(&report, &networks),
        detect_ms: first.map(|at| millis(at - struck)),
        in_doubt,
        others_lost: lost(&report, |vni| !networks.contains(&vni)),
        return_lost: lost(&streams.report_between(seen, settled), |_| true),
        sender_late: report.sender_late,
    })
}

/// The longest gap of each of `networks`, in milliseconds.
fn gaps(report: &Report, networks: &[Vni]) -> Vec<f64> {
    let all = report.gaps().into_iter();
    let its = all.filter(|(label, _)| networks.iter().any(|vni| vni.get() == *label));
    its.map(|(_, gap)| millis(gap)).collect()
}

fn lost(report: &Report, chosen: impl Fn(Vni) -> bool) -> u64 {
    let its = report.flows.iter().filter(|flow| Vni::try_from(flow.label).is_ok_and(&chosen));
    its.map(|flow| flow.lost).sum()
}

/// How long the fleet may take to be whole again after a fault.
const SETTLE: Duration = Duration::from_secs(120);
/// How long packets run before the fault.
const BEFORE: Duration = Duration::from_secs(1);
/// How long after the fault has ended its consequences are looked at.
const AFTER: Duration = Duration::from_secs(5);
/// How long the last packets may take to arrive.
const GRACE: Duration = Duration::from_millis(500);
/// How long a fault lasts that does not end by itself: as long as it takes until all networks
/// are back, within these limits.
const AT_LEAST: Duration = Duration::from_secs(10);
const AT_MOST: Duration = Duration::from_secs(60);

/// Waits while the fault lasts. Returns on how many of `networks` packets run at its end.
fn endure(streams: &Streams, networks: &[Vni], fault: Fault) -> usize {
    // The victim's networks come first among the streams.
    let back = || flowing(streams, networks).len();
    match fault {
        Fault::Kill | Fault::Freeze => wait(Duration::from_secs(10)),
        // All that it had is stopped; what the others do within this time is what counts.
        Fault::Pause => wait(Duration::from_secs(5)),
        Fault::Cut | Fault::Silent | Fault::Power | Fault::Uplink | Fault::Fabric => {
            wait(AT_LEAST);
            let all = || Ok(back() == networks.len());
            // If it does not happen, the count says so.
            let _ = wait_until("packets on all networks", AT_MOST - AT_LEAST, all);
        }
    }
    let from = now();
    wait(Duration::from_millis(500));
    flowing_since(streams, networks, from).len()
}

fn wait(time: Duration) {
    std::thread::sleep(time);
}

/// Networks in a planned move aside, those for which not exactly the store's owner answers and
/// attracts traffic. Looked at twice: a move may begin while the question is under way.
fn owners_in_doubt(fleet: &Fleet, all: &[Vni]) -> anyhow::Result<BTreeSet<Vni>> {
    let (before, seen, after) = (fleet.view(), Observed::by(fleet, all)?, fleet.view());
    let doubtful = |vni: &Vni| {
        let owner = before.owner(*vni).filter(|owner| after.owner(*vni) == Some(*owner));
        match owner {
            Some(owner) => !seen.agrees(*vni, owner),
            // Moving is no doubt; having no owner is.
            None => nobody_moves(&before, *vni) && nobody_moves(&after, *vni),
        }
    };
    let in_doubt: BTreeSet<Vni> = all.iter().copied().filter(doubtful).collect();
    for vni in &in_doubt {
        let owner = after.owner(*vni).unwrap_or("nobody");
        say!("network {vni} is in doubt: {owner} owns it; {}", seen.words(*vni));
    }
    Ok(in_doubt)
}

fn nobody_moves(view: &View, vni: Vni) -> bool {
    view.owner(vni).is_none() && !view.moves(vni)
}

/// Who answers and who attracts traffic, for each network.
struct Observed {
    answering: BTreeMap<Vni, BTreeSet<String>>,
    originating: BTreeMap<Vni, BTreeSet<String>>,
}

impl Observed {
    fn by(fleet: &Fleet, all: &[Vni]) -> anyhow::Result<Self> {
        let networks: Vec<Network> = all.iter().filter_map(|vni| Network::new(vni.get())).collect();
        let campus = &fleet.campus;
        let mut observed = Self {
            answering: campus.answering(&networks, Family::V4).context("cannot ask by ARP")?,
            originating: campus.originating(&networks, Family::V4)?,
        };
        let v6 = campus.answering(&networks, Family::V6).context("cannot solicit neighbours")?;
        for (vni, who) in v6 {
            observed.answering.entry(vni).or_default().extend(who);
        }
        Ok(observed)
    }

    fn agrees(&self, vni: Vni, owner: &str) -> bool {
        [&self.answering, &self.originating]
            .into_iter()
            .all(|who| who.get(&vni).is_some_and(|who| who.iter().eq([owner])))
    }

    fn words(&self, vni: Vni) -> String {
        let names = |who: &BTreeMap<Vni, BTreeSet<String>>| match who.get(&vni) {
            Some(who) if !who.is_empty() => who.iter().cloned().collect::<Vec<_>>().join(", "),
            Some(_) | None => "nobody".to_owned(),
        };
        let (answering, originating) = (names(&self.answering), names(&self.originating));
        format!("{answering} answers, {originating} attracts its traffic")
    }
}

pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
