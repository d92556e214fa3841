//! Others at the same store: predecessors, namesakes, and whoever writes what makes no sense.

mod common;

use std::time::Duration;

use common::{rest, sound, world};
use selvedge_gateway::desired::Upstream;
use selvedge_gateway::keys::{self, Field};
use selvedge_gateway::machine::State;
use selvedge_model::{NodeName, Vni};
use selvedge_sim::gateway::predecessor::Predecessor;
use selvedge_sim::gateway::world::World;

const LONG: Duration = Duration::from_secs(120);

fn upstreams(world: &World) -> Vec<Upstream> {
    let duties = world.hosts.iter().flat_map(|host| host.kernel.values());
    duties.map(|duty| duty.upstream).filter(|upstream| *upstream != Upstream::Off).collect()
}

#[test]
fn a_predecessor_takes_its_share_and_gives_it_back() {
    for seed in 0..10 {
        let mut world = world(2, 2, 12, seed);
        world.run_for(Duration::from_secs(40));
        assert!(upstreams(&world).iter().all(|upstream| *upstream == Upstream::Whole));
        let mut old = Predecessor::start(&mut world, "old1");
        let balanced = |world: &mut World| world.checker.is_at_rest();
        old.run(&mut world, Duration::from_secs(2), |_| false);
        assert!(old.run(&mut world, LONG, balanced), "seed {seed}: {:?}", why(&world));
        sound(&world, "with a predecessor");
        assert!(world.owned_by("old1") > 0 && world.owned_by("gw1") > 0, "seed {seed}");
        old.run(&mut world, Duration::from_secs(1), |_| false);
        assert!(
            upstreams(&world).iter().all(|upstream| *upstream == Upstream::Halves),
            "seed {seed}: halves while a predecessor is registered"
        );
        old.drain(&mut world);
        old.run(&mut world, Duration::from_secs(2), |_| false);
        assert!(old.run(&mut world, LONG, balanced), "seed {seed}: {:?}", why(&world));
        assert_eq!(world.owned_by("old1"), 0, "seed {seed}");
        sound(&world, "without the predecessor");
        world.run_for(Duration::from_secs(31));
        assert!(upstreams(&world).iter().all(|upstream| *upstream == Upstream::Whole));
    }
}

#[test]
fn a_predecessor_that_dies_in_the_middle_of_moves_is_followed() {
    let moves = || State::ALL.into_iter().filter(|state| state.is_migration());
    for (seed, state) in (0..).zip(moves().chain([State::FailoverDecided, State::Unassigned])) {
        let mut world = world(3, 2, 12, seed);
        let old = Predecessor::start(&mut world, "old1");
        // It has its share, and a third gateway of ours draws networks from everybody.
        old.run(&mut world, LONG, |world| world.checker.is_at_rest());
        world.start(2);
        old.run(&mut world, Duration::from_secs(20), |world| {
            world.vnis().any(|vni| world.network(vni).state() == state)
        });
        // From here on nobody runs it, and its lease ends.
        world.run_for(Duration::from_secs(5));
        rest(&mut world, &format!("the predecessor died at {state}"));
        assert_eq!(world.owned_by("old1"), 0);
    }
}

#[test]
fn a_restart_is_not_mistaken_for_a_predecessor() {
    let mut world = world(3, 3, 12, 4);
    world.run_for(Duration::from_secs(40));
    world.crash(1);
    world.start(1);
    let until = world.now + Duration::from_secs(20);
    let halves = |world: &mut World| upstreams(world).contains(&Upstream::Halves);
    assert!(!world.run_until(until, halves), "at {}", world.now);
}

#[test]
fn a_namesake_waits_and_touches_nothing() {
    for seed in 0..10 {
        let mut world = world(2, 2, 12, seed);
        let twin = world.add_host("gw1", "another machine");
        world.start(twin);
        world.run_for(Duration::from_secs(10));
        assert!(world.hosts[twin].name_taken);
        assert!(world.hosts[twin].kernel.values().all(|duty| !duty.answering));
        rest(&mut world, "with a namesake");
        // When the name is free, it is the namesake's.
        world.power_off(0);
        world.run_for(Duration::from_secs(5));
        rest(&mut world, "the namesake took over");
        assert!(!world.hosts[twin].name_taken);
        // And now the first one is the one that waits, whatever its kernel did before.
        world.start(0);
        world.run_for(Duration::from_secs(10));
        assert!(world.hosts[0].name_taken, "seed {seed}");
        rest(&mut world, "the first one came back");
    }
}

#[test]
fn who_loses_its_name_while_cut_off_gives_everything_up() {
    for seed in 0..10 {
        let mut world = world(2, 2, 12, seed);
        assert!(world.owned_by("gw1") > 0);
        let twin = world.add_host("gw1", "another machine");
        world.set_linked(0, false);
        world.run_for(Duration::from_secs(5));
        world.start(twin);
        world.run_for(Duration::from_secs(20));
        world.set_linked(0, true);
        world.run_for(Duration::from_secs(1));
        assert!(world.hosts[0].name_taken, "seed {seed}");
        assert!(world.hosts[0].kernel.values().all(|duty| !duty.answering), "seed {seed}");
        rest(&mut world, "with a namesake");
    }
}

/// A key, what is written over it, and whether its owner mends it by itself.
fn garbage(world: &World) -> Vec<(String, &'static str, bool)> {
    let vni: Vni = 7_u32.try_into().expect("vni");
    let name: NodeName = "gw1".parse().expect("name");
    assert!(world.checker.cache.live.contains_key(&name));
    vec![
        (keys::network(vni, Field::Type), "banana", false),
        (keys::network(vni, Field::Current), "no such/name", false),
        (keys::network(vni, Field::Next), "\u{1f980} \n", false),
        (keys::history(vni), "{\"changes\":7}", false),
        (keys::roster(&name), "[]", false),
        (keys::node(&name), "{\"a\":[-1]}", true),
        (keys::live(&name), "not json", true),
        (keys::PLANNER.to_owned(), "", true),
        ("/wmgwd/vni/0/type".to_owned(), "1", false),
        ("/selvedge/from/the/future".to_owned(), "1", false),
    ]
}

#[test]
fn foreign_values_lose_nothing() {
    for number in 0..10 {
        let mut world = world(3, 3, 12, number);
        world.checker.expects_problems = true;
        let (key, value, mended) = garbage(&world).swap_remove(number as usize);
        let before = world.store.get(&key).cloned();
        let kernels: Vec<_> = world.hosts.iter().map(|host| host.kernel.clone()).collect();
        world.meddle(&key, Some(value));
        // Also for those that read everything anew.
        world.run_for(Duration::from_secs(8));
        world.crash(2);
        world.run_for(Duration::from_secs(1));
        world.start(2);
        world.run_for(Duration::from_secs(20));
        sound(&world, &key);
        let problems = |world: &World| {
            let agents = world.hosts.iter().filter_map(|host| host.agent.as_ref());
            agents.filter(|agent| agent.status().problems.contains_key(&key)).count()
        };
        assert_eq!(problems(&world), if mended { 0 } else { 3 }, "{key} is named by all");
        for (host, kernel) in world.hosts.iter().zip(&kernels) {
            let answers = |(vni, duty): (&Vni, &selvedge_gateway::desired::Duty)| {
                duty.answering.then_some(*vni)
            };
            let (then, now): (Vec<_>, Vec<_>) = (
                kernel.iter().filter_map(answers).collect(),
                host.kernel.iter().filter_map(answers).collect(),
            );
            // A change of the ring may move networks, which the check of G1 watches over.
            let stays = key != keys::node(&"gw1".parse().expect("name"));
            assert!(!stays || then == now, "{key}: {} served {then:?}, now {now:?}", host.name);
        }
        match before.filter(|_| !mended) {
            Some(kv) => world.meddle(&key, Some(&String::from_utf8_lossy(&kv.value))),
            None if !mended => world.meddle(&key, None),
            None => {}
        }
        world.run_for(Duration::from_secs(5));
        rest(&mut world, &format!("{key} put right"));
        assert_eq!(problems(&world), 0, "{key}");
        // And the network goes on: it follows a loss.
        world.power_off(0);
        world.run_for(Duration::from_secs(5));
        rest(&mut world, &format!("{key} after a loss"));
    }
}

#[test]
fn a_network_that_lost_a_key_comes_back() {
    for (seed, field) in (0..).zip([Field::Type, Field::Current, Field::Next]) {
        let mut world = world(2, 2, 12, seed);
        world.meddle(&keys::network(7_u32.try_into().expect("vni"), field), None);
        world.run_for(Duration::from_secs(5));
        rest(&mut world, &format!("{field:?} deleted"));
    }
}

fn why(world: &World) -> Option<String> {
    world.checker.unrest(&world.hosts)
}
