//! `failover`: faults of gateways, one after the other.

use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use selvedge_netlab::campus::Fault;
use serde::Serialize;

use crate::Outcome;
use crate::fleet::{Fleet, FleetOptions};
use crate::outage::{Outage, provoke};
use crate::progress::say;
use crate::statistics::{Spread, millis};

/// Options of the scenario.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) fleet: FleetOptions,
    /// How many faults
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// cut, silent, power, kill, freeze, pause, uplink or fabric
    #[arg(long, default_value = "cut")]
    fault: Fault,
    /// Whom it befalls: by turns a gateway without and with etcd's leader; always or never the
    /// one that has it; or any, as it comes
    #[arg(long, value_enum, default_value = "alternate")]
    victim: Victim,
    /// The bound on the longest outage of any network, in milliseconds
    #[arg(long, value_name = "MS")]
    max_outage_ms: Option<f64>,
    /// The same for the runs that took etcd's leader too
    #[arg(long, value_name = "MS")]
    max_outage_leader_ms: Option<f64>,
    /// The bound on the median outage, in milliseconds
    #[arg(long, value_name = "MS")]
    max_outage_p50_ms: Option<f64>,
    /// The bound on the longest gap of any network after the fault has ended, in milliseconds
    #[arg(long, value_name = "MS")]
    max_return_gap_ms: Option<f64>,
    /// The bound on the packets lost on all networks, during the faults and after
    #[arg(long, value_name = "PACKETS")]
    max_packets_lost: Option<u64>,
}

/// Whom faults befall.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Victim {
    Alternate,
    Any,
    Leader,
    Follower,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    fault: &'static str,
    networks: u32,
    gateways: u32,
    runs: usize,
    /// Networks that a victim served, over all runs, and on how many packets ran again.
    affected: usize,
    restored: usize,
    /// Over all runs; over those that took etcd's leader; over those that did not.
    outage_ms: Spread,
    outage_ms_leader: Spread,
    outage_ms_follower: Spread,
    outage_v4_ms: Spread,
    outage_v6_ms: Spread,
    /// From the fault to the verdict in the store, and to the first write of a successor.
    verdict_ms: Spread,
    detect_ms: Spread,
    /// All networks, whoever served them, after the fault had ended.
    return_gap_ms: Spread,
    owners_in_doubt: usize,
    /// Packets lost on all networks while the faults lasted, and after they had ended.
    lost_during: u64,
    lost_after: u64,
    /// Packets lost on the networks of others; and on all, when networks moved back later.
    others_lost: u64,
    return_lost: u64,
    voided_runs: usize,
    /// The runs whose victim held etcd's leader.
    leader_runs: usize,
}

/// Runs the scenario.
pub(crate) fn run(options: &Options) -> anyhow::Result<Outcome<Figures>> {
    run_on(&mut Fleet::start(&options.fleet)?, options)
}

/// The same on a fleet that is there.
pub(crate) fn run_on(fleet: &mut Fleet, options: &Options) -> anyhow::Result<Outcome<Figures>> {
    let mut record = Record::default();
    while record.runs() < options.runs {
        let run = record.runs();
        let leads = match options.victim {
            Victim::Alternate => Some(run % 2 == 1),
            Victim::Any => None,
            Victim::Leader => Some(true),
            Victim::Follower => Some(false),
        };
        let (victim, leads) = choose(fleet, run, leads)?;
        let role = if leads { " (etcd's leader)" } else { "" };
        say!("run {} of {}: {} for {victim}{role}", run + 1, options.runs, options.fault);
        let outage = provoke(fleet, &victim, options.fault)?;
        tell(&outage);
        if let Some(folder) = &options.fleet.logs {
            let fault = format!("{} {victim}{role}", options.fault);
            let name = if run == 0 { "timeline".to_owned() } else { format!("timeline-{run}") };
            outage.course.keep(folder, &name, &fault)?;
        }
        if outage.sender_late > LATE {
            record.voided += 1;
            if record.voided > options.runs + 3 {
                bail!("the sender was late again and again: this machine is too busy to measure");
            }
        } else {
            record.note(outage, leads);
        }
    }
    let figures = figures(options, &record);
    let broken = broken(options, &figures);
    Ok(Outcome { figures, broken })
}

/// A sender that was later than that has made gaps of its own. One that was a little late makes
/// outages look longer, never shorter.
const LATE: Duration = Duration::from_millis(50);

/// The runs that count.
#[derive(Debug, Default)]
struct Record {
    outages: Vec<(Outage, bool)>,
    voided: usize,
}

impl Record {
    fn runs(&self) -> usize {
        self.outages.len()
    }

    fn note(&mut self, outage: Outage, leads: bool) {
        self.outages.push((outage, leads));
    }

    fn gaps(&self, chosen: impl Fn(bool) -> bool) -> Spread {
        let chosen = self.outages.iter().filter(|(_, leads)| chosen(*leads));
        let gaps: Vec<f64> = chosen.flat_map(|(outage, _)| outage.gaps_ms.clone()).collect();
        Spread::of(&gaps)
    }

    fn sum(&self, count: impl Fn(&Outage) -> usize) -> usize {
        self.outages.iter().map(|(outage, _)| count(outage)).sum()
    }
}

/// Chooses a gateway that serves networks, another with each run, and makes it etcd's leader or
/// not, if that matters. Says whether it is.
fn choose(fleet: &mut Fleet, run: usize, leads: Option<bool>) -> anyhow::Result<(String, bool)> {
    let (view, all) = (fleet.view(), fleet.networks());
    let serving = |name: &String| !view.served_by(name, &all).is_empty();
    let mut candidates: Vec<String> = fleet.gateways().into_iter().filter(serving).collect();
    let etcd = fleet.etcd()?;
    let members = etcd.members();
    // Where etcd is elsewhere, no gateway can lead.
    let leads = leads.filter(|_| candidates.iter().any(|name| members.contains(name)));
    if leads == Some(true) {
        candidates.retain(|name| members.contains(name));
    }
    let victim = candidates.get(run % candidates.len().max(1)).cloned();
    let victim = victim.context("no gateway serves a network")?;
    let other = members.iter().find(|name| **name != victim);
    match (leads, etcd.leader()? == Some(victim.clone()), other) {
        (Some(true), false, _) => etcd.move_leader(&victim)?,
        (Some(false), true, Some(other)) => etcd.move_leader(other)?,
        (Some(false), true, None) => bail!("etcd has one member, so that it cannot be spared"),
        (Some(_) | None, _, _) => {}
    }
    let leads = etcd.leader()?.as_ref() == Some(&victim);
    Ok((victim, leads))
}

fn tell(outage: &Outage) {
    let spread = Spread::of(&outage.gaps_ms);
    let detected = outage
        .detect_ms
        .map_or("nobody took over".to_owned(), |ms| format!("taken over after {ms:.0} ms"));
    say!(
        "  {detected}; {} of {} networks back, outage p50 {:.0} ms, max {:.0} ms; sender late by \
         {:.1} ms; on the return gap max {:.0} ms, {} packets lost",
        outage.restored,
        outage.affected,
        spread.p50.unwrap_or_default(),
        spread.max.unwrap_or_default(),
        millis(outage.sender_late),
        Spread::of(&outage.return_gaps_ms).max.unwrap_or_default(),
        outage.lost_after
    );
}

fn figures(options: &Options, record: &Record) -> Figures {
    let spread = |figures: fn(&Outage) -> Vec<f64>| {
        let all = record.outages.iter().flat_map(|(outage, _)| figures(outage));
        Spread::of(&all.collect::<Vec<_>>())
    };
    let lost = |count: fn(&Outage) -> u64| record.outages.iter().map(|(it, _)| count(it)).sum();
    Figures {
        fault: options.fault.name(),
        networks: options.fleet.networks,
        gateways: options.fleet.gateways(),
        runs: record.runs(),
        affected: record.sum(|outage| outage.affected),
        restored: record.sum(|outage| outage.restored),
        outage_ms: record.gaps(|_| true),
        outage_ms_leader: record.gaps(|leads| leads),
        outage_ms_follower: record.gaps(|leads| !leads),
        outage_v4_ms: spread(|outage| outage.gaps_v4_ms.clone()),
        outage_v6_ms: spread(|outage| outage.gaps_v6_ms.clone()),
        verdict_ms: spread(|outage| outage.verdict_ms.into_iter().collect()),
        detect_ms: spread(|outage| outage.detect_ms.into_iter().collect()),
        return_gap_ms: spread(|outage| outage.return_gaps_ms.clone()),
        owners_in_doubt: record.sum(|outage| outage.in_doubt.len()),
        lost_during: lost(|outage| outage.lost_during),
        lost_after: lost(|outage| outage.lost_after),
        others_lost: lost(|outage| outage.others_lost),
        return_lost: lost(|outage| outage.return_lost),
        voided_runs: record.voided,
        leader_runs: record.outages.iter().filter(|(_, leads)| *leads).count(),
    }
}

fn broken(options: &Options, figures: &Figures) -> Vec<String> {
    let mut broken = Vec::new();
    if figures.restored < figures.affected {
        broken.push(format!("{} of {} networks came back", figures.restored, figures.affected));
    }
    if figures.owners_in_doubt > 0 {
        broken.push(format!("the owner of {} networks was in doubt", figures.owners_in_doubt));
    }
    let lost = figures.lost_during + figures.lost_after;
    if options.max_packets_lost.is_some_and(|bound| lost > bound) {
        broken.push(format!("{lost} packets were lost"));
    }
    let Figures { outage_ms, outage_ms_leader, return_gap_ms, .. } = figures;
    for (what, measured, bound) in [
        ("the longest outage", outage_ms.max, options.max_outage_ms),
        ("the longest with etcd's leader", outage_ms_leader.max, options.max_outage_leader_ms),
        ("the median outage", outage_ms.p50, options.max_outage_p50_ms),
        ("the longest gap on the return", return_gap_ms.max, options.max_return_gap_ms),
    ] {
        broken.extend(exceeded(what, measured, bound));
    }
    broken
}

fn exceeded(what: &str, measured: Option<f64>, bound: Option<f64>) -> Option<String> {
    let (measured, bound) = (measured?, bound?);
    (measured > bound).then(|| format!("{what} was {measured} ms, more than {bound} ms"))
}
