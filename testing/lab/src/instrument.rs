//! `instrument`: how much the laboratory itself can do, without agents. What it loses or delays
//! by itself would be taken for a fault of theirs.

use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use selvedge_model::Vni;
use selvedge_netlab::clock::{now, wait_until};
use selvedge_netlab::stream::{Report, Streams};
use selvedge_netlab::{Campus, Lab};
use serde::Serialize;

use crate::Outcome;
use crate::fleet::{FleetOptions, flowing};
use crate::observed::Observed;
use crate::progress::say;
use crate::statistics::millis;

/// Options of the scenario.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    fleet: FleetOptions,
    /// For how long packets run
    #[arg(long, default_value_t = 20)]
    seconds: u64,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    networks: u32,
    gateways: u32,
    streams: usize,
    /// How long it took to build the campus, how much memory it took, and how long it took to
    /// let gateways serve by hand.
    build_s: f64,
    memory_mb: u64,
    serve_s: f64,
    packets_sent: u64,
    packets_lost: u64,
    packets_per_second: f64,
    sender_late_ms: f64,
    longest_gap_ms: f64,
    longest_delay_ms: f64,
    /// How long it took to ask for all owners, and for how many the answers were not as they
    /// should be.
    observe_s: f64,
    owners_in_doubt: usize,
}

/// Runs the scenario.
pub(crate) fn run(options: &Options) -> anyhow::Result<Outcome<Figures>> {
    let fleet = &options.fleet;
    fleet.check_installed()?;
    say!("building {} gateways and {} networks", fleet.gateways(), fleet.networks);
    let (free, began) = (free_mb()?, Instant::now());
    let campus = Campus::build(Lab::new()?, fleet.plan()).context("cannot build the campus")?;
    let build_s = seconds(began);
    let memory_mb = free.saturating_sub(free_mb()?);
    say!("built in {build_s} s with {memory_mb} MB; serving by hand");
    let began = Instant::now();
    let owners = campus.serve_by_hand()?;
    let serve_s = seconds(began);
    let order: Vec<Vni> = owners.iter().map(|(network, _)| network.vni()).collect();
    let (report, streams) = measure(&campus, options, &order)?;
    say!("asking who serves");
    let began = Instant::now();
    let observed = Observed::of(&campus, &order)?;
    let observe_s = seconds(began);
    let doubtful = |(network, owner): &&(_, String)| {
        let network: &selvedge_netlab::campus::Network = network;
        !observed.agrees(network.vni(), owner)
    };
    let figures = Figures {
        networks: fleet.networks,
        gateways: fleet.gateways(),
        streams,
        build_s,
        memory_mb,
        serve_s,
        observe_s,
        owners_in_doubt: owners.iter().filter(doubtful).count(),
        ..traffic(options, &report)
    };
    let broken = broken(&figures);
    Ok(Outcome { figures, broken })
}

/// Until all routes are there: the routing daemons learn thousands of them at once.
const LEARN: Duration = Duration::from_secs(120);
/// How long the packets of the beginning, which wait for neighbours, may take.
const CALM: Duration = Duration::from_secs(5);
/// A sender that is later than that makes gaps of its own.
const LATE_MS: f64 = 20.0;

/// What became of the packets, and how many streams there were.
fn measure(campus: &Campus, options: &Options, order: &[Vni]) -> anyhow::Result<(Report, usize)> {
    let specs = campus.streams(order, &[], options.fleet.families());
    let mut streams = Streams::start(&specs)?;
    let mut idle = order.len();
    let running = wait_until("packets on all streams", LEARN, || {
        idle = order.len() - flowing(&streams, order).len();
        Ok(idle == 0)
    });
    running.with_context(|| format!("{idle} networks are idle"))?;
    std::thread::sleep(CALM);
    say!("packets run on {} streams for {} s", specs.len(), options.seconds);
    let from = now();
    std::thread::sleep(Duration::from_secs(options.seconds));
    let to = now();
    streams.stop(Duration::from_secs(1));
    Ok((streams.report_between(from, to), specs.len()))
}

/// The figures about packets; the others are zero.
fn traffic(options: &Options, report: &Report) -> Figures {
    let gap = report.gaps().into_iter().map(|(_, gap)| gap).max();
    let delay = report.flows.iter().map(|flow| flow.longest_delay).max();
    Figures {
        networks: 0,
        gateways: 0,
        streams: 0,
        build_s: 0.0,
        memory_mb: 0,
        serve_s: 0.0,
        packets_sent: report.sent(),
        packets_lost: report.lost(),
        packets_per_second: (report.sent() as f64 / options.seconds.max(1) as f64).round(),
        sender_late_ms: millis(report.sender_late),
        longest_gap_ms: millis(gap.unwrap_or_default()),
        longest_delay_ms: millis(delay.unwrap_or_default()),
        observe_s: 0.0,
        owners_in_doubt: 0,
    }
}

fn broken(figures: &Figures) -> Vec<String> {
    let mut broken = Vec::new();
    if figures.packets_lost > 0 {
        broken.push(format!("{} packets were lost", figures.packets_lost));
    }
    if figures.sender_late_ms > LATE_MS {
        broken.push(format!("the sender was late by {} ms", figures.sender_late_ms));
    }
    if figures.owners_in_doubt > 0 {
        broken.push(format!("{} owners were not seen as they are", figures.owners_in_doubt));
    }
    broken
}

fn seconds(since: Instant) -> f64 {
    (since.elapsed().as_secs_f64() * 10.0).round() / 10.0
}

/// Memory that the machine could still give, the kernel's own taken off.
fn free_mb() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(number.context("/proc/meminfo does not say what is available")? / 1024)
}
