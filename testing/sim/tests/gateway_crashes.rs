//! G6: nodes crash at every step of every move, and each run ends in serving.

use std::time::Duration;

use selvedge_model::Vni;
use selvedge_sim::gateway::world::{Setup, World};

const NETWORKS: u32 = 6;
const PATIENCE: Duration = Duration::from_secs(120);

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

fn world(seed: u64) -> World {
    let hold_down = Duration::from_secs(1);
    let setup = Setup { gateways: 3, networks: NETWORKS, budget: 2, hold_down, seed };
    let mut world = World::new(setup);
    (0..2).for_each(|host| world.start(host));
    rest(&mut world, "start");
    world
}

fn rest(world: &mut World, what: &str) {
    let patience = world.now + PATIENCE;
    let rested = world.run_until(patience, |w| w.unrest().is_none() && w.imbalance().is_none());
    assert!(rested, "{what}: {:?} {:?}", world.unrest(), world.imbalance());
    assert_eq!(world.checker.violations, Vec::<String>::new(), "{what}");
}

/// Runs until any network is in `state`; returns it.
fn until_state(world: &mut World, state: u8) -> Option<Vni> {
    let mut found = None;
    let patience = world.now + PATIENCE;
    world.run_until(patience, |world| {
        found = world.vnis().find(|vni| world.network(*vni).1 == state.to_string());
        found.is_some()
    });
    found
}

fn crash(world: &mut World, vni: Vni, victim: Victim, fate: Fate, lag: Duration) {
    let (current, _, next) = world.network(vni);
    world.run_for(lag);
    let current = current.filter(|_| victim != Victim::Next);
    let next = Some(next).filter(|next| !next.is_empty() && victim != Victim::Current);
    let names = [current, next];
    let hosts: Vec<usize> = (0..world.hosts.len())
        .filter(|host| names.contains(&Some(world.hosts[*host].name.to_string())))
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
fn run(state: u8, victim: Victim, fate: Fate, lag: u64, failover: bool) {
    let what = format!("state {state}, {victim:?}, {fate:?}, after {lag} ms, failover {failover}");
    let mut world = world(u64::from(state) * 100 + lag);
    world.start(2);
    if failover {
        rest(&mut world, &what);
        world.power_off(2);
    }
    let Some(vni) = until_state(&mut world, state) else { panic!("{what}: state not reached") };
    crash(&mut world, vni, victim, fate, Duration::from_millis(lag));
    rest(&mut world, &what);
}

#[test]
fn crashes_at_every_step_of_a_planned_move() {
    for state in 2..=9 {
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
            run(10, Victim::Next, fate, lag, true);
        }
    }
}

#[test]
fn the_store_away_makes_nobody_withdraw() {
    let mut world = world(7);
    // By then the more-specific routes of the first assignment have given way to the plain ones.
    world.run_for(Duration::from_secs(40));
    let kernels =
        |world: &World| -> Vec<_> { world.hosts.iter().map(|host| host.kernel.clone()).collect() };
    let before = kernels(&world);
    world.store_up = false;
    world.run_for(Duration::from_secs(60));
    assert_eq!(kernels(&world), before);
    world.store_up = true;
    rest(&mut world, "store back");
}

#[test]
fn a_drained_gateway_hands_everything_over_and_a_restart_keeps_it_drained() {
    let mut world = world(8);
    let name = world.hosts[0].name.clone();
    world.with_agent(1, |agent, now| agent.set_drained(&name, true, now).expect("known"));
    world.run_for(Duration::from_secs(30));
    rest(&mut world, "drained");
    let owns = |world: &World| {
        world.vnis().filter(|v| world.network(*v).0.as_deref() == Some("gw1")).count()
    };
    assert_eq!(owns(&world), 0);
    world.crash(0);
    world.start(0);
    world.run_for(Duration::from_secs(30));
    assert_eq!(owns(&world), 0);
    world.with_agent(1, |agent, now| agent.set_drained(&name, false, now).expect("known"));
    world.run_for(Duration::from_secs(30));
    rest(&mut world, "undrained");
    assert!(owns(&world) > 0);
}

#[test]
fn leaving_hands_over_and_the_last_one_resigns() {
    let mut world = world(9);
    world.with_agent(0, |agent, now| agent.leave(now));
    let patience = world.now + PATIENCE;
    assert!(world.run_until(patience, |world| world.hosts[0].left), "the first leaves");
    assert!(world.vnis().all(|vni| world.network(vni).0.as_deref() == Some("gw2")));
    world.crash(0);
    world.with_agent(1, |agent, now| agent.leave(now));
    let patience = world.now + Duration::from_secs(5);
    assert!(world.run_until(patience, |world| world.hosts[1].left), "the last leaves at once");
    assert!(world.vnis().all(|vni| world.network(vni).0.is_none()));
}

#[test]
fn a_verdict_takes_everything_from_the_convicted() {
    use selvedge_gateway::keys;
    use selvedge_gateway::kv::{Op, Txn};
    let mut world = world(10);
    let name = world.hosts[0].name.clone();
    let live = world.store.get(&keys::live(&name)).expect("registered").create;
    let (key, value) = (keys::verdict(&name, live), b"{}".to_vec());
    let op = Op::Put { key, value, lease: None };
    world.store.txn(&Txn { compare: vec![], then: vec![op] }).expect("committed");
    world.run_for(Duration::from_millis(900));
    let owned = world.vnis().filter(|vni| world.network(*vni).0.as_deref() == Some("gw1")).count();
    assert_eq!(owned, 0, "taken over without waiting for the lease");
    // The convicted registers anew and may serve again.
    world.run_for(Duration::from_secs(30));
    rest(&mut world, "registered anew");
}

#[test]
fn a_seed_replays_to_the_letter() {
    let run = || {
        let mut world = world(11);
        world.start(2);
        world.run_for(Duration::from_secs(20));
        world.power_off(0);
        world.run_for(Duration::from_secs(20));
        let prefixes = [String::from("/")];
        let events = world.store.events_after(&prefixes, selvedge_gateway::kv::Revision(1));
        format!("{events:?}")
    };
    assert_eq!(run(), run());
}
