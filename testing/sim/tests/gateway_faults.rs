//! Nodes that watch over each other: losses, isolation, outages of the store, stalls, restarts.

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::{awake, rest, setup, sound, watchful};
use selvedge_gateway::desired::Duty;
use selvedge_gateway::keys;
use selvedge_gateway::kv::{Op, Txn};
use selvedge_gateway::{Isolated, Timing};
use selvedge_model::Vni;
use selvedge_sim::gateway::chaos::{Options, run_seed};
use selvedge_sim::gateway::links::{Links, PATHS};
use selvedge_sim::gateway::loss::Loss;
use selvedge_sim::gateway::world::{Place, Setup, World};

const NETWORKS: u32 = 12;
const SECOND: Duration = Duration::from_secs(1);

fn unplug(world: &mut World, host: usize) {
    world.with_links(|links| (0..PATHS).for_each(|path| links.set_carrier(host, path, false)));
}

fn kernels(world: &World) -> Vec<BTreeMap<Vni, Duty>> {
    world.hosts.iter().map(|host| host.kernel.clone()).collect()
}

/// Begins to time the loss of a host's networks.
fn time_loss(world: &mut World, host: usize) {
    let name = world.hosts[host].name.clone();
    let own: Vec<Vni> = world.checker.cache.owned(&name).collect();
    assert!(!own.is_empty(), "seed {}: {name} serves nothing", world.setup.seed);
    world.checker.moved.clear();
    world.checker.loss = Some(Loss::new(host, own, world.now));
}

/// How long it took until all of them were served again, in ms.
fn outage(world: &mut World, limit: Duration) -> f64 {
    let over = |world: &mut World| world.checker.loss.as_ref().is_some_and(Loss::is_over);
    let done = world.run_until(world.now + limit, over);
    let loss = world.checker.loss.take().expect("it was begun");
    assert!(done, "seed {}: not served: {:?}", world.setup.seed, loss.pending());
    loss.took_ms.into_iter().fold(0.0, f64::max)
}

#[test]
fn a_takeover_does_not_wait_for_the_stores_election() {
    for seed in 0..10 {
        let mut world = watchful(3, 0, NETWORKS, seed);
        assert!(world.leads(0), "it was the first leader");
        time_loss(&mut world, 0);
        if seed % 2 == 0 {
            world.power_off(0)
        } else {
            unplug(&mut world, 0)
        }
        let took = outage(&mut world, SECOND);
        assert!(took > 150.0, "seed {seed}: {took} ms is less than a suspicion takes");
        let leaderless = world.cluster.acting_leader().is_none();
        assert!(leaderless, "seed {seed}: the election was over before");
        world.run_for(Duration::from_secs(10));
        sound(&world, "lost");
        let lost = usize::from(seed % 2 == 0);
        assert_eq!(world.hosts.iter().filter(|host| !host.powered).count(), lost);
    }
}

#[test]
fn who_is_cut_off_falls_silent_and_serves_again_when_it_is_back() {
    for seed in 0..10 {
        let mut world = watchful(3, 0, NETWORKS, seed);
        unplug(&mut world, 1);
        world.run_for(Duration::from_millis(1200));
        assert!(!world.hosts[1].answers_any(), "seed {seed}: G2");
        assert_eq!(world.owned_by("gw2"), 0, "seed {seed}");
        world.run_for(Duration::from_secs(5));
        world.with_links(Links::mend);
        world.run_for(Duration::from_secs(5));
        rest(&mut world, "mended");
        assert!(!world.hosts[1].silenced && world.owned_by("gw2") > 0, "seed {seed}");
    }
}

#[test]
fn who_is_told_to_serve_when_cut_off_does() {
    let mut setup = setup(3, NETWORKS, 4).probing();
    setup.store = Place::OnHosts;
    let mut world = World::new(setup);
    for host in 0..3 {
        world.hosts[host].part.isolated = Isolated::Serve;
        world.start(host);
    }
    world.run_for(Duration::from_secs(10));
    rest(&mut world, "start");
    unplug(&mut world, 1);
    world.run_for(Duration::from_secs(5));
    assert!(world.hosts[1].answers_any());
    world.with_links(Links::mend);
    rest(&mut world, "mended");
}

#[test]
fn two_gateways_need_the_store_or_a_witness() {
    for seed in 0..10 {
        let two = Setup { store: Place::Elsewhere(3), ..setup(2, NETWORKS, seed).probing() };
        for mut world in [watchful(2, 1, NETWORKS, seed), awake(two)] {
            time_loss(&mut world, 1);
            unplug(&mut world, 1);
            let took = outage(&mut world, Duration::from_millis(1500));
            assert!(took > 150.0, "seed {seed}: {took} ms");
            world.run_for(Duration::from_secs(3));
            world.with_links(Links::mend);
            rest(&mut world, "mended");
        }
    }
}

#[test]
fn paths_broken_between_two_voters_alone_cost_nothing() {
    for seed in 0..10 {
        let mut world =
            awake(Setup { store: Place::Elsewhere(3), ..setup(2, NETWORKS, seed).probing() });
        let before = kernels(&world);
        world.with_links(|links| {
            links.for_each(|from, to, _, way| way.cut |= from < 2 && to < 2);
        });
        world.run_for(Duration::from_secs(60));
        sound(&world, "both reach the store");
        assert_eq!(world.hosts.iter().filter(|host| host.silenced).count(), 0, "seed {seed}");
        let answering = |kernels: &[BTreeMap<Vni, Duty>]| -> Vec<Vec<(Vni, bool)>> {
            let duties = |kernel: &BTreeMap<Vni, Duty>| {
                kernel.iter().map(|(vni, duty)| (*vni, duty.answering)).collect()
            };
            kernels.iter().map(duties).collect()
        };
        assert_eq!(answering(&kernels(&world)), answering(&before), "seed {seed}");
    }
}

#[test]
fn the_store_away_makes_nobody_fall_silent_and_moves_nothing() {
    for seed in 0..5 {
        let mut world = watchful(3, 0, NETWORKS, seed);
        world.run_for(Duration::from_secs(40));
        let before = kernels(&world);
        world.checker.moved.clear();
        world.with_cluster(|cluster| cluster.members.iter_mut().for_each(|m| m.up = false));
        let until = world.now + Duration::from_secs(60);
        let changed =
            world.run_until(until, |w| kernels(w) != before || w.hosts.iter().any(|h| h.silenced));
        assert!(!changed, "seed {seed}: at {}", world.now);
        world.with_cluster(|cluster| cluster.members.iter_mut().for_each(|m| m.up = true));
        world.run_for(Duration::from_secs(10));
        rest(&mut world, "the store is back");
        assert!(world.checker.moved.is_empty(), "seed {seed}: {:?}", world.checker.moved);
    }
}

#[test]
fn short_stalls_of_everybody_convict_nobody() {
    for seed in 0..5 {
        let mut world = watchful(3, 0, NETWORKS, seed);
        world.checker.moved.clear();
        for round in 0..100 {
            let time = Duration::from_millis(30 + 7 * round % 150);
            (0..3).for_each(|host| world.stall(host, time));
            world.run_for(Duration::from_millis(400));
        }
        rest(&mut world, "stalls");
        assert!(world.checker.moved.is_empty(), "seed {seed}: {:?}", world.checker.moved);
        assert!(world.checker.cache.verdicts.is_empty(), "seed {seed}");
    }
}

#[test]
fn an_announced_restart_moves_nothing_and_touches_no_kernel() {
    for seed in 0..10 {
        let mut world = watchful(3, 0, NETWORKS, seed);
        world.run_for(Duration::from_secs(40));
        let before = kernels(&world);
        world.checker.moved.clear();
        world.with_agent(1, |agent, now| agent.announce_absence(Duration::from_secs(10), now));
        let known = |world: &mut World| {
            world.hosts[1].agent.as_ref().is_some_and(|agent| agent.is_away_known())
        };
        let patience = world.now + SECOND;
        assert!(world.run_until(patience, known), "seed {seed}: nobody knows");
        world.crash(1);
        world.run_for(Duration::from_secs(seed));
        world.start(1);
        let until = world.now + Duration::from_secs(15);
        let changed = world.run_until(until, |world| kernels(world) != before);
        assert!(!changed, "seed {seed}: at {}", world.now);
        rest(&mut world, "restarted");
        assert!(world.checker.moved.is_empty(), "seed {seed}: {:?}", world.checker.moved);
    }
}

/// All of the store stops; the agent of a gateway dies and is started again on a host that serves.
fn restarted_without_store(seed: u64) -> World {
    let mut world = watchful(3, 0, NETWORKS, seed);
    world.with_cluster(|cluster| cluster.members.iter_mut().for_each(|m| m.up = false));
    world.run_for(Duration::from_secs(2));
    world.crash(0);
    world.run_for(Duration::from_millis(100 + 150 * seed));
    world.start(0);
    world
}

#[test]
fn an_agent_restarted_without_the_store_serves_on_by_the_word_of_the_others() {
    for seed in 0..10 {
        let mut world = restarted_without_store(seed);
        let before = kernels(&world);
        world.run_for(Duration::from_secs(20));
        sound(&world, "restarted");
        assert_eq!(kernels(&world), before, "seed {seed}");
        assert!(world.hosts.iter().all(|host| !host.silenced), "seed {seed}");
        world.with_cluster(|cluster| cluster.members.iter_mut().for_each(|m| m.up = true));
        rest(&mut world, "the store is back");
    }
}

#[test]
fn an_agent_restarted_without_store_and_others_falls_silent() {
    for seed in 0..10 {
        let mut world = restarted_without_store(seed);
        unplug(&mut world, 0);
        // Of the others' two members of the store a leader, and so a verdict and a takeover.
        world.with_cluster(|cluster| cluster.members[1..].iter_mut().for_each(|m| m.up = true));
        world.run_for(Duration::from_millis(1200));
        assert!(!world.hosts[0].answers_any(), "seed {seed}: G2");
        world.crash(0);
        world.start(0);
        world.run_for(Duration::from_secs(10));
        sound(&world, "cut off");
        assert_eq!(world.owned_by("gw1"), 0, "seed {seed}");
        world.with_links(Links::mend);
        world.with_cluster(|cluster| cluster.members[0].up = true);
        rest(&mut world, "mended");
    }
}

/// One registers anew on the other side of a partition: by the store, two of four are no majority.
/// The two do not know; nobody may follow them, for as long as that lasts.
#[test]
fn those_who_do_not_know_of_a_new_voter_serve_on_and_nobody_follows_them() {
    for seed in 0..10 {
        let setup = Setup { store: Place::Elsewhere(1), ..setup(4, NETWORKS, seed).probing() };
        let mut world = awake(setup);
        world.power_off(3);
        world.run_for(Duration::from_secs(5));
        assert_eq!(world.checker.cache.electorate().voters.len(), 3, "seed {seed}");
        world.with_links(|links| {
            links.for_each(|from, to, _, way| way.cut |= (from < 2) != (to < 2));
        });
        let before = (world.owned_by("gw1"), world.owned_by("gw2"));
        world.start(3);
        world.run_for(Duration::from_secs(20));
        sound(&world, "parted");
        assert_eq!(world.checker.cache.electorate().voters.len(), 4, "seed {seed}");
        assert!((0..2).all(|host| !world.hosts[host].silenced), "seed {seed}");
        let answer = |world: &World| (0..2).map(|host| answered(world, host)).collect::<Vec<_>>();
        assert_eq!(answer(&world), [before.0, before.1], "seed {seed}");
        world.with_links(Links::mend);
        rest(&mut world, "mended");
    }
}

fn answered(world: &World, host: usize) -> usize {
    let kernel = &world.hosts[host].kernel;
    kernel.values().filter(|duty| duty.answering).count()
}

#[test]
fn an_agent_that_is_frozen_and_wakes_gives_way_at_once() {
    for seed in 0..10 {
        let mut world = watchful(3, 0, NETWORKS, seed);
        world.set_frozen(1, true);
        world.run_for(Duration::from_secs(10));
        assert_eq!(world.owned_by("gw2"), 0, "seed {seed}");
        assert!(world.hosts[1].answers_any(), "its kernel goes on");
        world.set_frozen(1, false);
        world.run_for(Duration::from_millis(300));
        let doubles = world.vnis().filter(|vni| {
            world.hosts.iter().filter(|host| host.answers(*vni)).count() > 1
                && !world.checker.cache.moving.contains(vni)
        });
        assert_eq!(doubles.count(), 0, "seed {seed}");
        rest(&mut world, "awake");
    }
}

#[test]
fn after_the_loss_of_the_majority_an_operator_has_the_last_word() {
    for seed in 0..5 {
        let mut world = watchful(3, 0, NETWORKS, seed);
        world.power_off(0);
        world.power_off(1);
        world.run_for(Duration::from_secs(5));
        let (first, second) = (world.hosts[0].name.clone(), world.hosts[1].name.clone());
        let served = |world: &mut World| {
            let silent = world.hosts[2].silenced;
            !silent && world.vnis().all(|vni| world.hosts[2].answers(vni))
        };
        assert!(!served(&mut world), "seed {seed}: nobody may take over by itself");
        for name in [first, second] {
            world.with_agent(2, |agent, now| agent.take_over(&name, now).expect("not heard"));
        }
        let until = world.now + Duration::from_secs(2);
        let done = world.run_until(until, served);
        let log = &world.hosts[2].log;
        assert!(done, "seed {seed}: {log:?} {:?}", world.checker.unrest(&world.hosts));
        sound(&world, "by force");
    }
}

/// What the checker is for: a core that breaks a rule is caught.
#[test]
fn a_node_that_never_gives_up_its_right_is_caught() {
    let timing = Timing { fence: Duration::from_secs(3600), ..Timing::default() };
    let setup = Setup { store: Place::OnHosts, timing, ..setup(3, NETWORKS, 1).probing() };
    let mut world = awake(setup);
    unplug(&mut world, 1);
    world.run_for(Duration::from_secs(5));
    let found = world.violations.join("\n");
    assert!(found.contains(": G1: ") && found.contains(": G2: "), "{found}");
    assert!(found.contains("seed 1,"), "{found}");
}

#[test]
fn nodes_that_suspect_at_the_slightest_delay_are_caught() {
    let options =
        |timing| Options { seeds: 4..5, networks: 12, gateways: Some(3), jobs: 1, timing };
    let hasty = Timing { suspect: Duration::from_millis(1), ..Timing::default() };
    let outcome = run_seed(4, &options(hasty));
    assert!(!outcome.violations.is_empty());
    let outcome = run_seed(4, &options(Timing::default()));
    assert_eq!(outcome.violations, Vec::<String>::new());
}

#[test]
fn a_verdict_against_a_sound_node_is_caught() {
    let mut world = watchful(3, 0, NETWORKS, 2);
    let name = world.hosts[0].name.clone();
    let key = keys::verdict(&name, world.checker.cache.live[&name].incarnation);
    let op = Op::Put { key, value: b"{}".to_vec(), lease: None };
    world.store.txn(&Txn { compare: vec![], then: vec![op] }).expect("a valid transaction");
    world.run_for(SECOND);
    assert!(world.violations.iter().any(|text| text.contains(": G4: ")), "{:?}", world.violations);
}

#[test]
fn a_host_that_serves_what_is_anothers_is_caught() {
    let mut world = watchful(3, 0, NETWORKS, 2);
    let vni = world.checker.cache.owned(&world.hosts[0].name.clone()).next().expect("some");
    world.hosts[1].kernel.insert(vni, Duty::FULL);
    world.checker.touch(vni);
    world.run_for(Duration::from_millis(900));
    sound(&world, "within the fence");
    world.run_for(SECOND);
    assert!(world.violations.iter().any(|text| text.contains(": G1: ")), "{:?}", world.violations);
}

#[test]
fn an_owner_that_is_silent_for_nothing_is_caught() {
    let mut world = watchful(3, 0, NETWORKS, 2);
    world.hosts[0].silenced = true;
    world.checker.touch_all();
    world.run_for(SECOND);
    assert!(world.violations.iter().any(|text| text.contains(": G2: ")), "{:?}", world.violations);
}
