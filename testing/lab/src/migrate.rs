//! `migrate`: planned moves, which must not lose a packet.

use std::time::Duration;

use clap::Args;
use selvedge_model::Time;
use selvedge_netlab::clock::{now, wait_until};
use selvedge_netlab::etcd::Seen;
use selvedge_netlab::stream::{FlowReport, Report};
use serde::Serialize;

use crate::Outcome;
use crate::fleet::{Fleet, FleetOptions};
use crate::progress::say;
use crate::statistics::millis;
use crate::view::{Move, moves, state_at};

/// Options of the scenario.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    fleet: FleetOptions,
    /// How many planned moves at least; gateways are drained and undrained in turn
    #[arg(long, default_value_t = 10)]
    moves: usize,
    /// The bound on the time of a move, on average, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    max_seconds_per_move: f64,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    networks: u32,
    gateways: u32,
    moves: usize,
    packets_sent: u64,
    packets_lost: u64,
    packets_duplicated: u64,
    packets_reordered: u64,
    /// From the decision to serving, on average; and the longest.
    seconds_per_move: f64,
    seconds_per_move_max: f64,
    /// How many were under way at once, at most.
    moves_at_once: usize,
    longest_gap_ms: f64,
    sender_late_ms: f64,
}

/// Runs the scenario.
pub(crate) fn run(options: &Options) -> anyhow::Result<Outcome<Figures>> {
    let mut fleet = Fleet::start(&options.fleet)?;
    let gateways = fleet.gateways();
    let first = fleet.view().served_by(&gateways[0], &fleet.networks());
    let mut streams = fleet.start_streams(&first)?;
    say!("packets run on all {} networks", options.fleet.networks);
    let from = now();
    std::thread::sleep(EDGE);
    let mut done = 0;
    for gateway in gateways.iter().cycle().take(gateways.len() * ROUNDS) {
        if done >= options.moves {
            break;
        }
        done += drain_and_undrain(&mut fleet, gateway)?;
    }
    std::thread::sleep(EDGE);
    let to = now();
    streams.stop(GRACE);
    let report = streams.report_between(from, to);
    let changes = fleet.changes();
    for flow in report.flows.iter().filter(|flow| flow.lost > 0) {
        tell_loss(flow, &changes);
    }
    let figures = figures(options, &moves(&changes, from), &report);
    let broken = broken(options, &figures);
    Ok(Outcome { figures, broken })
}

/// How long packets run before the first and after the last move.
const EDGE: Duration = Duration::from_secs(1);
/// How long the last packets may take to arrive.
const GRACE: Duration = Duration::from_secs(1);
/// How often every gateway has its turn at most, lest a fleet that moves nothing runs for ever.
const ROUNDS: usize = 20;

/// Returns how many networks have moved.
fn drain_and_undrain(fleet: &mut Fleet, gateway: &str) -> anyhow::Result<usize> {
    let (from, limit) = (now(), fleet.patience());
    let all = fleet.networks();
    let leaving = fleet.view().served_by(gateway, &all).len();
    say!("draining {gateway}, which serves {leaving} networks");
    fleet.drain(gateway, true)?;
    let drained = wait_until(&format!("the drain of {gateway}"), limit, || {
        std::thread::sleep(Duration::from_millis(100));
        let view = fleet.view();
        Ok(view.served_by(gateway, &all).is_empty() && view.all_served(&all))
    });
    drained.map_err(|error| fleet.explained(error.into()))?;
    fleet.drain(gateway, false)?;
    fleet.wait_settled(limit)?;
    let moved = moved_since(fleet, from);
    say!("{gateway} is back: {moved} moves in {:.1} s", (now() - from).as_secs_f64());
    Ok(moved)
}

fn moved_since(fleet: &Fleet, from: Time) -> usize {
    moves(&fleet.changes(), from).len()
}

/// Says what was lost, and in which state of its move the network was at that time.
fn tell_loss(flow: &FlowReport, changes: &[Seen]) {
    let gap = Time::from_micros(flow.gap_began_us);
    let state = match state_at(changes, flow.label, gap) {
        Some((state, since)) => format!("state {state}, {:.3} s old", (gap - since).as_secs_f64()),
        None => "no state".to_owned(),
    };
    let (label, length) = (flow.label, flow.longest_gap);
    let version = if flow.ipv6 { 6 } else { 4 };
    let (direction, lost) = (flow.direction, flow.lost);
    say!("network {label} IPv{version} {direction:?}: {lost} lost, gap {length:?} in {state}");
}

fn figures(options: &Options, moves: &[Move], report: &Report) -> Figures {
    let seconds: Vec<f64> = moves.iter().map(|it| (it.ended - it.began).as_secs_f64()).collect();
    let total: f64 = seconds.iter().sum();
    let rounded = |figure: f64| (figure * 1000.0).round() / 1000.0;
    Figures {
        networks: options.fleet.networks,
        gateways: options.fleet.gateways(),
        moves: moves.len(),
        packets_sent: report.sent(),
        packets_lost: report.lost(),
        packets_duplicated: report.flows.iter().map(|flow| flow.duplicates).sum(),
        packets_reordered: report.flows.iter().map(|flow| flow.reordered).sum(),
        seconds_per_move: rounded(if moves.is_empty() { 0.0 } else { total / moves.len() as f64 }),
        seconds_per_move_max: rounded(seconds.iter().copied().fold(0.0, f64::max)),
        moves_at_once: at_once(moves),
        longest_gap_ms: millis(report.gaps().iter().map(|(_, gap)| *gap).max().unwrap_or_default()),
        sender_late_ms: millis(report.sender_late),
    }
}

/// How many of `moves` were under way at the same moment, at most.
fn at_once(moves: &[Move]) -> usize {
    let under_way = |at: Time| moves.iter().filter(|it| it.began <= at && at < it.ended).count();
    moves.iter().map(|it| under_way(it.began)).max().unwrap_or_default()
}

fn broken(options: &Options, figures: &Figures) -> Vec<String> {
    let mut broken = Vec::new();
    if figures.packets_lost > 0 {
        let (lost, sent) = (figures.packets_lost, figures.packets_sent);
        broken.push(format!("{lost} of {sent} packets were lost"));
    }
    if figures.moves < options.moves {
        broken.push(format!("{} moves of {} happened", figures.moves, options.moves));
    }
    if figures.seconds_per_move > options.max_seconds_per_move {
        broken.push(format!("a move took {} s on average", figures.seconds_per_move));
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_that_overlap_are_counted() {
        let it = |vni: u32, began: u64, ended: u64| Move {
            vni: selvedge_model::Vni::try_from(vni).expect("valid"),
            began: Time::from_micros(began),
            ended: Time::from_micros(ended),
        };
        assert_eq!(at_once(&[it(1, 0, 10), it(2, 5, 12), it(3, 10, 20)]), 2);
        assert_eq!(at_once(&[]), 0);
    }
}
