//! G6: nodes crash at every step of every move, and each run ends in serving.

mod common;

use std::time::Duration;

use common::{PATIENCE, rest, sound, until_state, world};
use selvedge_gateway::machine::State;
use selvedge_model::{NodeName, Vni};
use selvedge_sim::gateway::world::World;

/// So many that each of three gateways has some.
const NETWORKS: u32 = 12;

/// Who crashes when a network reaches the state under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Current,
    Next,
    Both,
}

/// What becomes of the victim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It never comes back, and its kernel is gone with it.
    PowerOff,
    /// Its agent comes back before its lease ends.
    BackSoon,
    /// Its agent comes back after its lease has ended; its kernel went on meanwhile.
    BackLate,
}

fn crash(world: &mut World, vni: Vni, victim: Victim, fate: Fate, lag: Duration) {
    let network = world.network(vni);
    world.run_for(lag);
    let current = network.current().filter(|_| victim != Victim::Next);
    let next = network.next().filter(|_| victim != Victim::Current);
    let hosts: Vec<usize> = (0..world.hosts.len())
        .filter(|host| [current, next].contains(&Some(&world.hosts[*host].name)))
        .collect();
    for host in &hosts {
        match fate {
            Fate::PowerOff => world.power_off(*host),
            Fate::BackSoon | Fate::BackLate => world.crash(*host),
        }
    }
    world.run_for(match fate {
        Fate::PowerOff => Duration::ZERO,
        Fate::BackSoon => Duration::from_millis(700),
        Fate::BackLate => Duration::from_secs(8),
    });
    if fate != Fate::PowerOff {
        hosts.iter().for_each(|host| world.start(*host));
    }
}

/// Brings `host` up, then the crash, then rest.
fn run(state: State, victim: Victim, fate: Fate, lag: u64, failover: bool) {
    let what = format!("{state}, {victim:?}, {fate:?}, after {lag} ms, failover {failover}");
    let seed = u64::from(state.number()) * 100 + lag;
    let mut world = world(3, 2, NETWORKS, seed);
    world.start(2);
    if failover {
        world.run_for(Duration::from_millis(500));
        rest(&mut world, &what);
        world.power_off(2);
    }
    let Some(vni) = until_state(&mut world, state) else { panic!("{what}: state not reached") };
    crash(&mut world, vni, victim, fate, Duration::from_millis(lag));
    rest(&mut world, &what);
}

#[test]
fn crashes_at_every_step_of_a_planned_move() {
    for state in State::ALL.into_iter().filter(|state| state.is_migration()) {
        for victim in [Victim::Current, Victim::Next, Victim::Both] {
            for fate in [Fate::PowerOff, Fate::BackSoon, Fate::BackLate] {
                for lag in [0, 1, 20] {
                    run(state, victim, fate, lag, false);
                }
            }
        }
    }
}

#[test]
fn crashes_during_a_failover() {
    for fate in [Fate::PowerOff, Fate::BackSoon, Fate::BackLate] {
        for lag in [0, 1, 5, 20] {
            run(State::FailoverDecided, Victim::Next, fate, lag, true);
        }
    }
}

#[test]
fn a_lost_gateway_moves_its_own_networks_only() {
    for seed in 0..20 {
        let mut world = world(5, 5, 60, seed);
        let lost: NodeName = world.hosts[2].name.clone();
        let own: Vec<Vni> = world.checker.cache.owned(&lost).collect();
        assert!(!own.is_empty());
        world.checker.moved.clear();
        world.power_off(2);
        // Meanwhile everything is at rest as far as the store knows.
        world.run_for(Duration::from_secs(4));
        rest(&mut world, "loss");
        let moved: Vec<Vni> = world.checker.moved.iter().copied().collect();
        assert_eq!(moved, own, "seed {seed}: G4");
    }
}

#[test]
fn the_store_away_makes_nobody_withdraw() {
    let mut world = world(3, 3, NETWORKS, 7);
    // By then the more-specific routes of the first assignment have given way to the plain ones.
    world.run_for(Duration::from_secs(40));
    let kernels =
        |world: &World| -> Vec<_> { world.hosts.iter().map(|host| host.kernel.clone()).collect() };
    let before = kernels(&world);
    world.store_up = false;
    world.run_for(Duration::from_secs(60));
    assert_eq!(kernels(&world), before);
    world.store_up = true;
    world.run_for(Duration::from_secs(1));
    rest(&mut world, "store back");
}

#[test]
fn a_restart_within_the_lease_changes_no_owner_and_no_kernel() {
    for seed in 0..10 {
        let mut world = world(3, 3, NETWORKS, seed);
        world.run_for(Duration::from_secs(40));
        let kernel = world.hosts[1].kernel.clone();
        world.checker.moved.clear();
        world.crash(1);
        world.run_for(Duration::from_millis(900));
        world.start(1);
        let until = world.now + Duration::from_secs(10);
        let changed = world.run_until(until, |world| world.hosts[1].kernel != kernel);
        assert!(!changed, "seed {seed}: {kernel:?} became {:?}", world.hosts[1].kernel);
        assert!(world.checker.moved.is_empty(), "seed {seed}: {:?}", world.checker.moved);
        rest(&mut world, "restarted");
    }
}

#[test]
fn a_drained_gateway_hands_everything_over_and_a_restart_keeps_it_drained() {
    let mut world = world(2, 2, NETWORKS, 8);
    let name = world.hosts[0].name.clone();
    assert!(world.owned_by("gw1") > 0);
    world.with_agent(1, |agent, now| agent.set_drained(&name, true, now).expect("known"));
    world.run_for(Duration::from_secs(30));
    rest(&mut world, "drained");
    assert_eq!(world.owned_by("gw1"), 0);
    world.crash(0);
    world.start(0);
    world.run_for(Duration::from_secs(30));
    assert_eq!(world.owned_by("gw1"), 0);
    world.with_agent(1, |agent, now| agent.set_drained(&name, false, now).expect("known"));
    world.run_for(Duration::from_secs(30));
    rest(&mut world, "undrained");
    assert!(world.owned_by("gw1") > 0);
}

#[test]
fn a_word_of_the_operator_outlives_an_outage_of_the_store() {
    let mut world = world(2, 2, NETWORKS, 12);
    let name = world.hosts[0].name.clone();
    world.store_up = false;
    world.with_agent(1, |agent, now| agent.set_drained(&name, true, now).expect("known"));
    world.run_for(Duration::from_secs(2));
    world.store_up = true;
    world.run_for(Duration::from_secs(30));
    rest(&mut world, "drained");
    assert_eq!(world.owned_by("gw1"), 0);
}

#[test]
fn leaving_hands_over_and_the_last_one_resigns() {
    let mut world = world(2, 2, NETWORKS, 9);
    world.with_agent(0, |agent, now| agent.leave(now));
    let patience = world.now + PATIENCE;
    assert!(world.run_until(patience, |world| world.hosts[0].left), "the first leaves");
    assert_eq!(world.owned_by("gw2"), NETWORKS as usize);
    world.crash(0);
    world.with_agent(1, |agent, now| agent.leave(now));
    let patience = world.now + Duration::from_secs(5);
    assert!(world.run_until(patience, |world| world.hosts[1].left), "the last leaves at once");
    assert!(world.vnis().all(|vni| world.network(vni).current().is_none()));
    world.run_for(Duration::from_secs(1));
    assert!(world.hosts[1].kernel.values().all(|duty| !duty.answering));
    sound(&world, "left");
}

#[test]
fn who_resigns_in_the_middle_of_moves_is_followed_at_once() {
    for seed in 0..20 {
        let mut world = world(3, 2, NETWORKS, seed);
        world.start(2);
        until_state(&mut world, State::MigrationArpEnabled).expect("moves to the third");
        world.with_agent(0, |agent, now| agent.leave(now));
        world.hosts[0].excused = true;
        world.with_agent(0, |agent, now| agent.resign(now));
        let patience = world.now + Duration::from_secs(1);
        let left = world.run_until(patience, |world| world.hosts[0].left);
        assert!(left, "seed {seed}: everything is resigned, conflicts or not");
        world.power_off(0);
        let patience = world.now + Duration::from_secs(2);
        let served = |world: &mut World| {
            let live = |vni| world.network(vni).current().is_some_and(|c| c.as_str() != "gw1");
            world.vnis().all(live)
        };
        assert!(world.run_until(patience, served), "seed {seed}: without waiting for the lease");
        rest(&mut world, "resigned");
    }
}

#[test]
fn a_verdict_takes_everything_from_the_convicted() {
    for seed in 0..20 {
        let mut world = world(2, 2, NETWORKS, seed);
        let name = world.hosts[0].name.clone();
        assert!(world.owned_by("gw1") > 0);
        convict(&mut world, &name);
        world.run_for(Duration::from_millis(200));
        assert_eq!(world.owned_by("gw1"), 0, "seed {seed}: taken over without the lease");
        assert!(world.hosts[0].kernel.values().all(|duty| !duty.answering), "seed {seed}");
        // The convicted registers anew and may serve again.
        world.run_for(Duration::from_secs(30));
        rest(&mut world, "registered anew");
        assert!(world.owned_by("gw1") > 0);
    }
}

#[test]
fn a_convicted_gateway_without_others_serves_again_as_a_new_incarnation() {
    let mut world = world(1, 1, NETWORKS, 3);
    let name = world.hosts[0].name.clone();
    let before = world.checker.cache.live[&name].incarnation;
    convict(&mut world, &name);
    // There is nobody to give way to.
    world.run_for(Duration::from_secs(1));
    assert!(world.hosts[0].kernel.values().all(|duty| duty.answering), "it serves again at once");
    rest(&mut world, "registered anew");
    let incarnation = world.checker.cache.live[&name].incarnation;
    assert!(incarnation > before);
    for vni in world.vnis() {
        let current = world.network(vni).current.expect("owned");
        assert!(current.modified > incarnation, "network {vni} is written anew");
    }
}

fn convict(world: &mut World, name: &NodeName) {
    let incarnation = world.checker.cache.live[name].incarnation;
    world.meddle(&selvedge_gateway::keys::verdict(name, incarnation), Some("{}"));
}

#[test]
fn a_seed_replays_to_the_letter() {
    let run = || {
        let mut world = world(3, 2, NETWORKS, 11);
        world.start(2);
        world.run_for(Duration::from_secs(20));
        world.power_off(0);
        world.run_for(Duration::from_secs(20));
        let prefixes = [String::from("/")];
        let events = world.store.events_after(&prefixes, selvedge_gateway::kv::Revision(1));
        format!("{:?}", events.expect("nothing is compacted"))
    };
    assert_eq!(run(), run());
}
