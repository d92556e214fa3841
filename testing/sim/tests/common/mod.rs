//! What the scenarios share.
#![allow(dead_code, reason = "not every test binary uses everything")]

use std::time::Duration;

use selvedge_gateway::machine::State;
use selvedge_model::Vni;
use selvedge_sim::gateway::world::{Place, Setup, World};

/// How long a cluster is given to come to rest.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

pub(crate) fn setup(gateways: usize, networks: u32, seed: u64) -> Setup {
    Setup::plain(gateways, networks, seed)
}

/// A cluster whose nodes probe each other and whose store is on the first three hosts; all run,
/// and nothing from the start is open any more.
pub(crate) fn watchful(gateways: usize, witnesses: usize, networks: u32, seed: u64) -> World {
    awake(Setup { witnesses, store: Place::OnHosts, ..setup(gateways, networks, seed).probing() })
}

/// The same with this setup.
pub(crate) fn awake(setup: Setup) -> World {
    let mut world = World::new(setup);
    (0..world.hosts.len()).for_each(|host| world.start(host));
    world.run_for(Duration::from_secs(10));
    rest(&mut world, "start");
    world
}

/// A cluster of which the first `running` gateways run and have come to rest.
pub(crate) fn world(gateways: usize, running: usize, networks: u32, seed: u64) -> World {
    let mut world = World::new(setup(gateways, networks, seed));
    (0..running).for_each(|host| world.start(host));
    world.run_for(Duration::from_millis(500));
    rest(&mut world, "start");
    world
}

/// Runs until any network is in `state`; returns it.
pub(crate) fn until_state(world: &mut World, state: State) -> Option<Vni> {
    let mut found = None;
    let patience = world.now + PATIENCE;
    world.run_until(patience, |world| {
        found = world.vnis().find(|vni| world.network(*vni).state() == state);
        found.is_some()
    });
    found
}

/// G6: every network is served where it belongs in the end, and nothing went wrong on the way.
pub(crate) fn rest(world: &mut World, what: &str) {
    let patience = world.now + PATIENCE;
    let rested = world.run_until(patience, |world| world.checker.is_at_rest());
    sound(world, what);
    let why = world.checker.unrest(&world.hosts);
    assert!(rested, "seed {}: {what}: G6: no rest: {why:?}", world.setup.seed);
}

/// No invariant was broken so far.
pub(crate) fn sound(world: &World, what: &str) {
    let found = world.violations.join("\n");
    assert!(found.is_empty(), "seed {}: {what}:\n{found}", world.setup.seed);
}

/// A report's line without what is wall-clock time or memory.
pub(crate) fn line(report: &impl serde::Serialize) -> serde_json::Value {
    let mut line = serde_json::to_value(report).expect("plain numbers");
    let fields = line.as_object_mut().expect("an object");
    for field in ["wall_s", "peak_rss_mb"] {
        assert!(fields.remove(field).is_some_and(|value| value.is_number()), "{field}");
    }
    line
}
