//! The store is lost for good: it comes back empty, or as an old backup has it, or is restored from
//! one as `docs/store-gone.md` says.

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::{rest, sound, watchful};
use selvedge_gateway::Timing;
use selvedge_gateway::model::Model;
use selvedge_model::Vni;
use selvedge_sim::gateway::chaos::{Options, run_seed};
use selvedge_sim::gateway::world::World;

const NETWORKS: u32 = 12;

/// Who answers for what.
fn answered(world: &World) -> Vec<Vec<Vni>> {
    let by = |host: usize| world.vnis().filter(|vni| world.hosts[host].answers(*vni)).collect();
    (0..world.hosts.len()).map(by).collect()
}

/// A cluster whose store has seen much, so that no other one soon gets to its revision.
fn old(seed: u64) -> World {
    let mut world = watchful(3, 0, NETWORKS, seed);
    let mut store = world.store.clone();
    store.bump_beyond(store.revision());
    world.replace_store(store);
    world.run_for(Duration::from_secs(10));
    rest(&mut world, "long ago");
    world
}

/// A cluster, and a backup of its store from before the first gateway was drained for a while and
/// the second one died and came back.
fn with_old_backup(seed: u64) -> (World, Model) {
    let mut world = old(seed);
    let backup = world.store.clone();
    let name = world.hosts[0].name.clone();
    world.with_agent(2, |agent, now| agent.set_drained(&name, true, now).expect("known"));
    world.power_off(1);
    world.run_for(Duration::from_secs(30));
    world.start(1);
    world.run_for(Duration::from_secs(30));
    rest(&mut world, "after the backup");
    assert_eq!(world.owned_by("gw1"), 0, "seed {seed}");
    (world, backup)
}

#[test]
fn a_store_that_was_reset_is_not_read_and_all_serve_on() {
    for seed in 0..5 {
        let (mut world, backup) = with_old_backup(seed);
        world.run_for(Duration::from_secs(40));
        let before = answered(&world);
        world.replace_store(if seed % 2 == 0 { backup } else { Model::new() });
        world.run_for(Duration::from_secs(60));
        sound(&world, "reset");
        assert_eq!(answered(&world), before, "seed {seed}");
    }
}

#[test]
fn a_backup_restored_beyond_the_last_revision_is_followed() {
    for seed in 0..10 {
        let (mut world, mut backup) = with_old_backup(seed);
        backup.bump_beyond(world.store.revision());
        world.replace_store(backup);
        world.run_for(Duration::from_secs(20));
        sound(&world, "restored");
        rest(&mut world, "restored");
        let owners: BTreeMap<&str, usize> =
            ["gw1", "gw2", "gw3"].map(|name| (name, world.owned_by(name))).into();
        assert!(owners.values().all(|owned| *owned > 0), "seed {seed}: {owners:?}");
    }
}

#[test]
fn who_was_convicted_since_the_backup_serves_again() {
    for seed in 0..5 {
        let mut world = old(seed);
        let mut backup = world.store.clone();
        let name = world.hosts[0].name.clone();
        let incarnation = world.checker.cache.live[&name].incarnation;
        // It wakes, and the others tell it before the store does.
        world.stall(0, Duration::from_millis(800));
        world.run_for(Duration::from_secs(10));
        rest(&mut world, "convicted");
        assert!(world.checker.cache.live[&name].incarnation > incarnation, "seed {seed}");
        backup.bump_beyond(world.store.revision());
        world.replace_store(backup);
        world.run_for(Duration::from_secs(10));
        rest(&mut world, "restored");
        assert!(!world.hosts[0].silenced && world.owned_by("gw1") > 0, "seed {seed}");
    }
}

/// On this seed one was told of a verdict against an incarnation that the backup brought back.
#[test]
fn a_word_of_the_former_store_silences_nobody() {
    let timing = Timing::default();
    let options = Options { seeds: 14..15, networks: 12, gateways: None, jobs: 1, timing };
    assert_eq!(run_seed(14, &options).violations, Vec::<String>::new());
}

/// The first agent says that it will be away, dies, and is started again.
fn restart(world: &mut World, forgets: bool) {
    world.with_agent(0, |agent, now| agent.announce_absence(Duration::from_secs(10), now));
    world.run_for(Duration::from_millis(300));
    world.crash(0);
    if forgets {
        world.hosts[0].forget_store();
    }
    world.run_for(Duration::from_millis(500));
    world.start(0);
}

#[test]
fn an_agent_that_is_restarted_meanwhile_refuses_the_store_too() {
    for seed in 0..5 {
        let mut world = old(seed);
        world.run_for(Duration::from_secs(40));
        let before = answered(&world);
        world.replace_store(Model::new());
        world.run_for(Duration::from_secs(5));
        restart(&mut world, false);
        world.run_for(Duration::from_secs(5));
        sound(&world, "restarted");
        assert_eq!(answered(&world), before, "seed {seed}");
    }
}

/// What that is for: by an empty store it would be the only gateway there is.
#[test]
fn an_agent_that_believes_an_empty_store_is_caught() {
    let mut world = old(0);
    world.replace_store(Model::new());
    world.run_for(Duration::from_secs(5));
    restart(&mut world, true);
    world.run_for(Duration::from_secs(5));
    let found = world.violations.join("\n");
    assert!(found.contains(": G1: ") && found.contains("served by [\"gw1\", "), "{found}");
}
