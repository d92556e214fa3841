//! `bgpd`: the routing daemon of a serving gateway dies, and is started again later.

use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use selvedge_model::Vni;
use selvedge_netlab::clock::now;
use selvedge_netlab::frr::Daemon;
use serde::Serialize;

use crate::Outcome;
use crate::fleet::{Fabric, Fleet, FleetOptions};
use crate::observed::owners_in_doubt;
use crate::outage::{AFTER, BEFORE, GRACE, await_packets, gaps};
use crate::progress::say;
use crate::statistics::{Spread, millis};
use crate::view::handovers;

/// Options of the scenario.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    fleet: FleetOptions,
    /// How often; gateways take turns
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// For how long bgpd is gone, at least
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// The bound on the longest outage of any network, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 5000.0)]
    max_outage_ms: f64,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    runs: usize,
    /// Networks that the gateways served; on how many packets ran again before bgpd was back, and
    /// how many others had taken over by then.
    affected: usize,
    restored: usize,
    handed_over: usize,
    /// From the end of bgpd until it was back; and after that, on all networks.
    outage_ms: Spread,
    return_gap_ms: Spread,
    owners_in_doubt: usize,
    sender_late_ms: f64,
}

/// Runs the scenario.
pub(crate) fn run(options: &Options) -> anyhow::Result<Outcome<Figures>> {
    if options.fleet.fabric != Fabric::Frr {
        bail!("there is no bgpd without FRRouting: leave --fabric out");
    }
    let mut fleet = Fleet::start(&options.fleet)?;
    let gateways = fleet.gateways();
    let mut deaths = Vec::new();
    for (run, gateway) in gateways.iter().cycle().take(options.runs).enumerate() {
        say!("run {} of {}: bgpd on {gateway} is killed", run + 1, options.runs);
        let death = kill(&mut fleet, gateway, Duration::from_secs(options.seconds))?;
        say!("  {}", death.words());
        deaths.push(death);
    }
    let figures = figures(&deaths);
    let broken = broken(options, &figures);
    Ok(Outcome { figures, broken })
}

/// What one end of bgpd did.
struct Death {
    affected: usize,
    restored: usize,
    handed_over: usize,
    gaps_ms: Vec<f64>,
    return_gaps_ms: Vec<f64>,
    in_doubt: usize,
    sender_late_ms: f64,
}

impl Death {
    fn words(&self) -> String {
        let max = Spread::of(&self.gaps_ms).max.unwrap_or_default();
        let (restored, affected, over) = (self.restored, self.affected, self.handed_over);
        format!("{restored} of {affected} networks back, {over} handed over, outage max {max} ms")
    }
}

fn kill(fleet: &mut Fleet, gateway: &str, time: Duration) -> anyhow::Result<Death> {
    let all = fleet.networks();
    let networks: Vec<Vni> = fleet.view().served_by(gateway, &all);
    fleet.wait_plain()?;
    let mut streams = fleet.start_streams(&networks)?;
    std::thread::sleep(BEFORE);
    let struck = now();
    frr(fleet, gateway)?.kill_daemon(Daemon::Bgp)?;
    std::thread::sleep(time);
    let restored = await_packets(&streams, &networks, LIMIT);
    let over = handovers(&fleet.changes(), struck);
    let handed_over = networks.iter().filter(|vni| over.iter().any(|it| it.vni == **vni)).count();
    let ended = now();
    frr(fleet, gateway)?.restart_daemon(Daemon::Bgp)?;
    std::thread::sleep(AFTER);
    let in_doubt = owners_in_doubt(fleet, &all)?.len();
    fleet.wait_whole()?;
    let settled = now();
    streams.stop(GRACE);
    let (report, back) =
        (streams.report_between(struck, ended), streams.report_between(ended, settled));
    Ok(Death {
        affected: networks.len(),
        restored,
        handed_over,
        gaps_ms: gaps(&report, &networks),
        return_gaps_ms: gaps(&back, &all),
        in_doubt,
        sender_late_ms: millis(report.sender_late.max(back.sender_late)),
    })
}

const LIMIT: Duration = Duration::from_secs(60);

fn frr<'a>(
    fleet: &'a mut Fleet,
    gateway: &str,
) -> anyhow::Result<&'a mut selvedge_netlab::frr::Frr> {
    fleet.campus.gateway_mut(gateway)?.frr.as_mut().context("the gateway has no FRRouting")
}

fn figures(deaths: &[Death]) -> Figures {
    let sum = |count: fn(&Death) -> usize| deaths.iter().map(count).sum();
    let spread = |gaps: fn(&Death) -> &Vec<f64>| {
        let all: Vec<f64> = deaths.iter().flat_map(|death| gaps(death).clone()).collect();
        Spread::of(&all)
    };
    Figures {
        runs: deaths.len(),
        affected: sum(|death| death.affected),
        restored: sum(|death| death.restored),
        handed_over: sum(|death| death.handed_over),
        outage_ms: spread(|death| &death.gaps_ms),
        return_gap_ms: spread(|death| &death.return_gaps_ms),
        owners_in_doubt: sum(|death| death.in_doubt),
        sender_late_ms: deaths.iter().map(|death| death.sender_late_ms).fold(0.0, f64::max),
    }
}

fn broken(options: &Options, figures: &Figures) -> Vec<String> {
    let mut broken = Vec::new();
    if figures.restored < figures.affected {
        broken.push(format!("{} of {} networks came back", figures.restored, figures.affected));
    }
    if figures.outage_ms.max.is_some_and(|max| max > options.max_outage_ms) {
        broken.push(format!("the longest outage was {:?} ms", figures.outage_ms.max));
    }
    if figures.owners_in_doubt > 0 {
        broken.push(format!("the owner of {} networks was in doubt", figures.owners_in_doubt));
    }
    broken
}
