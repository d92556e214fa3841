//! Many gateways share many networks; one is lost for good, and later comes back.

use std::collections::BTreeMap;
use std::time::Duration;

use selvedge_model::{NodeName, Time, Vni};
use serde::Serialize;

use super::world::{Place, Setup, World};

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Number of overlay networks.
    pub networks: u32,
    /// Number of gateways.
    pub gateways: usize,
    /// Where all randomness comes from.
    pub seed: u64,
    /// Planned moves that may run at once.
    pub budget: usize,
    /// Whether nothing is printed but the JSON line.
    pub json: bool,
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Number of overlay networks.
    pub networks: u32,
    /// Number of gateways.
    pub gateways: usize,
    /// The seed.
    pub seed: u64,
    /// Networks that the lost gateway had.
    pub lost_networks: usize,
    /// Networks whose owner changed because of the loss.
    pub moves_on_loss: usize,
    /// Those among them that the lost gateway did not have.
    pub needless_moves: usize,
    /// Greatest number of networks on a gateway over the average, when all gateways are there
    /// and every network is where the placement wants it, before the loss.
    pub load_max_over_avg: f64,
    /// What deciding and taking over cost after a loss was detected: virtual time from the moment
    /// at which the store had the verdict against the lost gateway until each of its networks had
    /// a new owner in the store and that one's kernel served it, in ms. The detection before and
    /// the routing protocols after are not in it. The store's leader is lost with the gateway.
    pub decide_ms: f64,
    /// Planned moves when the gateway came back.
    pub moves_on_return: usize,
    /// Virtual time of the whole run, in s.
    pub virtual_s: f64,
    /// Real time of the whole run, in s.
    pub wall_s: f64,
    /// Greatest resident memory of this process, in MB.
    pub peak_rss_mb: f64,
    /// Number of violations of invariants.
    pub violations: usize,
    /// The first of them, in words.
    #[serde(skip)]
    pub details: Vec<String>,
}

/// How long the cluster is given to come to rest.
const PATIENCE: Duration = Duration::from_secs(900);

/// Runs the scenario.
#[must_use]
pub fn run(options: &Options) -> Report {
    #[expect(clippy::disallowed_types, reason = "the real time that the run took is reported")]
    let began = std::time::Instant::now();
    let setup = Setup::plain(options.gateways, options.networks, options.seed).probing();
    let mut world = World::new(Setup {
        budget: options.budget,
        hold_down: Duration::from_secs(5),
        store: Place::OnHosts,
        ..setup
    });
    let mut report = Report {
        networks: options.networks,
        gateways: options.gateways,
        seed: options.seed,
        ..Report::default()
    };
    (0..options.gateways).for_each(|host| world.start(host));
    settle(&mut world, &mut report, "start", options.gateways);
    let owners = owners(&world);
    report.load_max_over_avg = balance(&owners, options.gateways);
    lose_one(&mut world, &mut report, &owners);
    world.start(0);
    world.checker.moved.clear();
    settle(&mut world, &mut report, "return", options.gateways);
    report.moves_on_return = world.checker.moved.len();

    report.violations = report.details.len() + world.violations.len();
    report.details.append(&mut world.violations);
    report.details.truncate(20);
    report.virtual_s = seconds(world.now.since(Time::ZERO));
    report.wall_s = seconds(began.elapsed());
    report.peak_rss_mb = peak_rss_mb();
    report
}

fn lose_one(world: &mut World, report: &mut Report, owners: &BTreeMap<Vni, NodeName>) {
    let victim = world.hosts[0].name.clone();
    report.lost_networks = owners.values().filter(|owner| **owner == victim).count();
    world.checker.moved.clear();
    world.power_off(0);
    let patience = world.now + PATIENCE;
    let known = |world: &mut World| {
        let cache = &world.checker.cache;
        cache.is_struck(&victim) || !cache.live.contains_key(&victim)
    };
    world.run_until(patience, known);
    let detected = world.now;
    settle(world, report, "loss", report.gateways - 1);
    report.decide_ms = seconds(world.now.since(detected) * 1000);
    report.moves_on_loss = world.checker.moved.len();
    let needless = |vni: &&Vni| owners.get(vni).is_none_or(|owner| *owner != victim);
    report.needless_moves = world.checker.moved.iter().filter(needless).count();
    if report.needless_moves * 100 > owners.len() {
        let text = format!("G4: {} needless moves on a loss", report.needless_moves);
        report.details.push(format!("seed {}: {text}", report.seed));
    }
}

/// G6: whatever happened, the cluster comes to rest, with so many gateways on the ring.
fn settle(world: &mut World, report: &mut Report, what: &str, gateways: usize) {
    let patience = world.now + PATIENCE;
    let settled = |world: &mut World| {
        world.checker.cache.nodes.len() == gateways && world.checker.is_at_rest()
    };
    if !world.run_until(patience, settled) {
        let why = world.checker.unrest(&world.hosts);
        let why = why.unwrap_or_else(|| format!("not {gateways} gateways on the ring"));
        let (seed, now) = (report.seed, world.now);
        report.details.push(format!("seed {seed}, {now}: G6: no rest after the {what}: {why}"));
    }
}

fn owners(world: &World) -> BTreeMap<Vni, NodeName> {
    world.vnis().filter_map(|vni| Some((vni, world.network(vni).current()?.clone()))).collect()
}

fn balance(owners: &BTreeMap<Vni, NodeName>, gateways: usize) -> f64 {
    let mut loads: BTreeMap<&NodeName, u32> = BTreeMap::new();
    for owner in owners.values() {
        *loads.entry(owner).or_default() += 1;
    }
    let most = loads.values().copied().max().unwrap_or(0);
    #[allow(clippy::cast_precision_loss, reason = "small numbers")]
    let average = owners.len() as f64 / gateways as f64;
    round(f64::from(most) / average)
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

fn seconds(duration: Duration) -> f64 {
    round(duration.as_secs_f64())
}

/// From the kernel's account of this process; 0 where there is none.
fn peak_rss_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kb = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    round(kb.unwrap_or(0.0) / 1024.0)
}
