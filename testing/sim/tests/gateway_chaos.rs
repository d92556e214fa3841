//! Everything at once, at random, from many seeds: G1, G5, G6 and G7 hold throughout.

mod common;

use std::time::Duration;

use common::{rest, setup, sound};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use selvedge_gateway::keys;
use selvedge_sim::gateway::world::World;

/// What befalls a cluster.
#[derive(Clone, Copy, Debug)]
enum Blow {
    Crash,
    Start,
    PowerOff,
    Drain,
    Undrain,
    Leave,
    Resign,
    Convict,
    CutOff,
    Link,
    Freeze,
    Thaw,
    StoreAway,
    StoreBack,
}

const BLOWS: [Blow; 14] = [
    Blow::Crash,
    Blow::Start,
    Blow::PowerOff,
    Blow::Drain,
    Blow::Undrain,
    Blow::Leave,
    Blow::Resign,
    Blow::Convict,
    Blow::CutOff,
    Blow::Link,
    Blow::Freeze,
    Blow::Thaw,
    Blow::StoreAway,
    Blow::StoreBack,
];

fn strike(world: &mut World, blow: Blow, host: usize) {
    let name = world.hosts[host].name.clone();
    let runs = world.hosts[host].agent.is_some();
    match blow {
        Blow::Crash => world.crash(host),
        Blow::Start if !runs => world.start(host),
        Blow::Start => {}
        Blow::PowerOff => world.power_off(host),
        // Any agent takes the word; one that knows nothing yet refuses it.
        Blow::Drain => {
            world.with_agent(host, |agent, now| drop(agent.set_drained(&name, true, now)))
        }
        Blow::Undrain => {
            world.with_agent(host, |agent, now| drop(agent.set_drained(&name, false, now)));
        }
        Blow::Leave => world.with_agent(host, |agent, now| agent.leave(now)),
        Blow::Resign => {
            world.hosts[host].excused = runs;
            world.with_agent(host, |agent, now| agent.resign(now));
        }
        Blow::Convict => {
            let live = world.checker.cache.live.get(&name).map(|live| live.incarnation);
            if let Some(incarnation) = live {
                world.meddle(&keys::verdict(&name, incarnation), Some("{}"));
            }
        }
        Blow::CutOff => world.set_linked(host, false),
        Blow::Link => world.set_linked(host, true),
        Blow::Freeze => world.set_frozen(host, true),
        Blow::Thaw => world.set_frozen(host, false),
        Blow::StoreAway => world.store_up = false,
        Blow::StoreBack => world.store_up = true,
    }
}

/// Blows at random, then everything is put right, and the cluster has to come to rest.
fn run(gateways: usize, seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut world = World::new(setup(gateways, 10, seed));
    (0..gateways).for_each(|host| world.start(host));
    let mut blows = Vec::new();
    for _ in 0..40 {
        // Often in quick succession, in the middle of moves; sometimes past a lease.
        let pause = if rng.random_bool(0.8) { 1..800 } else { 800..5000 };
        world.run_for(Duration::from_millis(rng.random_range(pause)));
        let blow = BLOWS[rng.random_range(0..BLOWS.len())];
        let host = rng.random_range(0..gateways);
        blows.push(format!("{} {blow:?} {host}", world.now));
        strike(&mut world, blow, host);
        sound(&world, &blows.join(", "));
        world.store_up |= rng.random_bool(0.3);
    }
    put_right(&mut world);
    rest(&mut world, &blows.join(", "));
}

fn put_right(world: &mut World) {
    world.store_up = true;
    for host in 0..world.hosts.len() {
        world.set_linked(host, true);
        world.set_frozen(host, false);
        // Who was told to leave goes; it comes back as a new run.
        world.crash(host);
        world.start(host);
    }
    world.run_for(Duration::from_secs(10));
    for host in 0..world.hosts.len() {
        let name = world.hosts[host].name.clone();
        world.with_agent(host, |agent, now| {
            agent.set_drained(&name, false, now).expect("it is registered");
        });
    }
    world.run_for(Duration::from_secs(5));
}

#[test]
fn two_gateways() {
    (0..150).for_each(|seed| run(2, seed));
}

#[test]
fn three_gateways() {
    (1000..1150).for_each(|seed| run(3, seed));
}

#[test]
fn five_gateways() {
    (2000..2100).for_each(|seed| run(5, seed));
}

#[test]
fn a_flapping_gateway_does_not_exceed_the_budget() {
    for seed in 0..10 {
        let mut world = common::world(3, 3, 30, seed);
        for _ in 0..8 {
            world.power_off(1);
            world.run_for(Duration::from_millis(4200));
            world.start(1);
            world.run_for(Duration::from_millis(2100));
            sound(&world, "flapping");
        }
        rest(&mut world, "flapped");
    }
}

#[test]
fn a_gateway_that_only_the_store_has_lost_gives_way_when_it_hears() {
    for seed in 0..20 {
        let mut world = common::world(3, 3, 12, seed);
        let owned = world.owned_by("gw2");
        assert!(owned > 0);
        world.set_linked(1, false);
        world.run_for(Duration::from_secs(10));
        assert_eq!(world.owned_by("gw2"), 0);
        let lingers = world.hosts[1].kernel.values().filter(|duty| duty.answering).count();
        assert_eq!(lingers, owned, "seed {seed}: it cannot know");
        world.set_linked(1, true);
        world.run_for(Duration::from_millis(300));
        let lingers = world.hosts[1].kernel.values().filter(|duty| duty.answering).count();
        assert_eq!(lingers, 0, "seed {seed}: now it does");
        rest(&mut world, "linked again");
    }
}

#[test]
fn a_frozen_gateway_that_wakes_after_its_lease_does_no_harm() {
    for seed in 0..20 {
        let mut world = common::world(3, 2, 12, seed);
        world.start(2);
        // In the middle of moves, with transactions on their way.
        world.run_for(Duration::from_millis(1500 + 40 * seed));
        world.set_frozen(0, true);
        world.run_for(Duration::from_secs(10));
        assert_eq!(world.owned_by("gw1"), 0, "seed {seed}");
        world.set_frozen(0, false);
        world.run_for(Duration::from_secs(1));
        rest(&mut world, "awake again");
    }
}
