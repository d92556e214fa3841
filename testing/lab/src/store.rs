//! `store`: a gateway is lost where etcd alone is real; no host is touched, and no packets run.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use selvedge_model::{Time, Vni};
use selvedge_netlab::campus::Fault;
use selvedge_netlab::clock::{now, wait_until};
use serde::Serialize;

use crate::Outcome;
use crate::fleet::{Fleet, FleetOptions};
use crate::progress::say;
use crate::statistics::{Spread, millis};
use crate::view::{first_write, handovers, lease_end, verdict};

/// Options of the scenario.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    fleet: FleetOptions,
    /// How many gateways are lost, one after the other
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// The bound on the time from the verdict until every network has its new owner, in
    /// milliseconds
    #[arg(long, value_name = "MS", default_value_t = 1000.0)]
    max_reassigned_ms: f64,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    networks: u32,
    gateways: u32,
    runs: usize,
    /// Networks that the lost gateways owned, and how many of them got another owner.
    affected: usize,
    reassigned: usize,
    /// Networks of others that got another owner.
    needless: usize,
    /// From the loss to the verdict, or to the end of the lease if there was no verdict.
    detect_ms: Spread,
    verdicts: usize,
    /// From there: to the first write of a successor, and until half and all of the networks had
    /// their new owner in the store.
    decide_ms: Spread,
    half_reassigned_ms: Spread,
    reassigned_ms: Spread,
}

/// Runs the scenario.
pub(crate) fn run(options: &Options) -> anyhow::Result<Outcome<Figures>> {
    let mut fleet = Fleet::start(&without_hosts(&options.fleet))?;
    let gateways = fleet.gateways();
    let mut losses = Vec::new();
    for (run, victim) in gateways.iter().cycle().take(options.runs).enumerate() {
        say!("run {} of {}: {victim} is lost", run + 1, options.runs);
        let loss = lose(&mut fleet, victim)?;
        say!(
            "  detected after {:.0} ms ({}), {} of {} networks reassigned {:.0} ms after that",
            loss.detect_ms,
            if loss.convicted { "verdict" } else { "end of its lease" },
            loss.reassigned,
            loss.affected,
            loss.reassigned_ms
        );
        losses.push(loss);
    }
    let figures = figures(&options.fleet, &losses);
    let broken = broken(options, &figures);
    Ok(Outcome { figures, broken })
}

/// etcd on hosts of its own, so that a lost gateway is no lost member; planned moves, which are
/// not what is measured here, all at once.
fn without_hosts(options: &FleetOptions) -> FleetOptions {
    let mut options = options.clone();
    options.dry = true;
    options.store = crate::fleet::StorePlace::Elsewhere;
    options.budget.get_or_insert(1000);
    options
}

/// What one loss did.
struct Loss {
    affected: usize,
    reassigned: usize,
    needless: usize,
    convicted: bool,
    detect_ms: f64,
    decide_ms: f64,
    half_ms: f64,
    reassigned_ms: f64,
}

fn lose(fleet: &mut Fleet, victim: &str) -> anyhow::Result<Loss> {
    let all = fleet.networks();
    let networks = fleet.view().served_by(victim, &all);
    let struck = now();
    fleet.strike(victim, Fault::Power)?;
    let reassigned = wait_until("new owners for all networks", LIMIT, || {
        std::thread::sleep(Duration::from_millis(500));
        let view = fleet.view();
        let taken = |vni: &Vni| view.owner(*vni).is_some_and(|owner| owner != victim);
        Ok(networks.iter().all(taken))
    });
    reassigned.map_err(|error| fleet.explained(error.into()))?;
    let loss = loss(fleet, victim, &networks, struck)?;
    fleet.heal(victim, Fault::Power)?;
    fleet.wait_whole()?;
    Ok(loss)
}

const LIMIT: Duration = Duration::from_secs(120);

fn loss(fleet: &Fleet, victim: &str, networks: &[Vni], struck: Time) -> anyhow::Result<Loss> {
    let changes = fleet.changes();
    let verdict = verdict(&changes, victim, struck);
    let ground = verdict.or_else(|| lease_end(&changes, victim, struck));
    let ground = ground.context("neither a verdict nor the end of the lease was seen")?;
    let first = first_write(&changes, ground, networks).context("nobody took anything over")?;
    let mut taken = BTreeMap::new();
    let mut needless = 0;
    for handover in handovers(&changes, struck) {
        match networks.binary_search(&handover.vni) {
            Ok(_) => {
                taken.insert(handover.vni, millis(handover.at - ground));
            }
            Err(_) => needless += 1,
        }
    }
    let mut times: Vec<f64> = taken.into_values().collect();
    times.sort_by(f64::total_cmp);
    Ok(Loss {
        affected: networks.len(),
        reassigned: times.len(),
        needless,
        convicted: verdict.is_some(),
        detect_ms: millis(ground - struck),
        decide_ms: millis(first - ground),
        half_ms: times.get(times.len() / 2).copied().unwrap_or_default(),
        reassigned_ms: times.last().copied().unwrap_or_default(),
    })
}

fn figures(options: &FleetOptions, losses: &[Loss]) -> Figures {
    let sum = |count: fn(&Loss) -> usize| losses.iter().map(count).sum();
    let spread = |time: fn(&Loss) -> f64| Spread::of(&losses.iter().map(time).collect::<Vec<_>>());
    Figures {
        networks: options.networks,
        gateways: options.gateways(),
        runs: losses.len(),
        affected: sum(|loss| loss.affected),
        reassigned: sum(|loss| loss.reassigned),
        needless: sum(|loss| loss.needless),
        detect_ms: spread(|loss| loss.detect_ms),
        verdicts: sum(|loss| usize::from(loss.convicted)),
        decide_ms: spread(|loss| loss.decide_ms),
        half_reassigned_ms: spread(|loss| loss.half_ms),
        reassigned_ms: spread(|loss| loss.reassigned_ms),
    }
}

fn broken(options: &Options, figures: &Figures) -> Vec<String> {
    let mut broken = Vec::new();
    if figures.reassigned < figures.affected {
        let Figures { reassigned, affected, .. } = figures;
        broken.push(format!("{reassigned} of {affected} networks got another owner"));
    }
    if figures.reassigned_ms.max.is_some_and(|max| max > options.max_reassigned_ms) {
        broken.push(format!("the last network waited {:?} ms", figures.reassigned_ms.max));
    }
    if figures.needless * 100 > figures.affected {
        broken.push(format!("{} networks of others were moved", figures.needless));
    }
    broken
}
