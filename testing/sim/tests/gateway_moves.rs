//! G3: planned moves lose nothing, whatever befalls the agents, and those that would are caught.

mod common;

use std::time::Duration;

use common::{rest, setup, sound, until_state, world};
use selvedge_gateway::desired::Duty;
use selvedge_gateway::machine::State;
use selvedge_sim::gateway::world::{Setup, World};

/// So many that each of three gateways has some.
const NETWORKS: u32 = 12;

/// Two gateways at rest, and a third one that draws networks from both.
fn moving(setup: Setup) -> World {
    let mut world = World::new(setup);
    (0..2).for_each(|host| world.start(host));
    world.run_for(Duration::from_millis(500));
    rest(&mut world, "start");
    world.start(2);
    world
}

#[test]
fn every_move_is_judged() {
    for seed in 0..10 {
        let mut world = moving(setup(3, NETWORKS, seed));
        world.checker.moved.clear();
        world.checker.moves.judged = 0;
        world.run_for(Duration::from_secs(2));
        rest(&mut world, "moved");
        assert!(!world.checker.moved.is_empty(), "seed {seed}");
        assert_eq!(world.checker.moves.judged, world.checker.moved.len(), "seed {seed}");
    }
}

#[test]
fn a_core_that_withdraws_before_routes_have_settled_is_caught() {
    let hasty = Setup { settle: Duration::from_millis(390), ..setup(3, NETWORKS, 1) };
    let mut world = World::new(hasty);
    (0..3).for_each(|host| world.start(host));
    world.run_for(Duration::from_secs(10));
    let found = world.violations.join("\n");
    assert!(found.contains(": G3: ") && found.contains("withdrawn upstream"), "{found}");
}

#[test]
fn a_kernel_that_falls_silent_in_a_move_is_caught() {
    let mut world = moving(setup(3, NETWORKS, 1));
    let vni = until_state(&mut world, State::MigrationOspfAdvertised).expect("moves to the third");
    let owner = world.network(vni).current().cloned().expect("it moves");
    sound(&world, "until then");
    let host = world.host_named(&owner).expect("one of ours");
    world.hosts[host].kernel.insert(vni, Duty { answering: false, ..Duty::FULL });
    world.checker.touch(vni);
    world.run_for(Duration::from_millis(100));
    let found = world.violations.join("\n");
    assert!(found.contains(": G3: ") && found.contains("nobody answers"), "{found}");
}

#[test]
fn a_restart_in_the_middle_of_moves_loses_nothing() {
    for seed in 0..20 {
        let mut world = world(3, 2, NETWORKS, seed);
        world.start(2);
        world.run_for(Duration::from_millis(1200 + 60 * seed));
        for host in 0..3 {
            world.crash(host);
            world.run_for(Duration::from_millis(300));
            world.start(host);
        }
        rest(&mut world, "restarted");
        assert!(world.checker.moves.judged > 0, "seed {seed}");
    }
}
