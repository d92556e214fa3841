//! A store that works badly: slow disks, members that do not reach each other, gateways that do
//! not reach some of them. The probes get through all the while.

mod common;

use std::time::Duration;

use common::{rest, sound, watchful};
use selvedge_sim::gateway::links::{Block, Links};
use selvedge_sim::gateway::loss::Loss;
use selvedge_sim::gateway::world::World;

const NETWORKS: u32 = 12;

fn slow_down(world: &mut World, members: &[usize]) {
    world.with_cluster(|cluster| {
        members.iter().for_each(|member| cluster.members[*member].disk = 800_000);
    });
}

/// How long it takes until an operator's word is in the store, in ms.
fn word_takes(slow: &[usize], seed: u64) -> u128 {
    let mut world = watchful(3, 0, NETWORKS, seed);
    slow_down(&mut world, slow);
    let (name, said) = (world.hosts[0].name.clone(), world.now);
    world.with_agent(0, |agent, now| agent.set_drained(&name, true, now).expect("known"));
    let written = |world: &mut World| world.checker.cache.roster[&name].value.drained;
    let done = world.run_until(said + Duration::from_secs(5), written);
    assert!(done, "seed {seed}");
    sound(&world, "written");
    world.now.since(said).as_millis()
}

#[test]
fn the_leaders_disk_and_a_majority_count() {
    let longest = |slow: &[usize]| (0..10).map(|seed| word_takes(slow, seed)).max();
    assert!(longest(&[]) < Some(20));
    assert!(longest(&[2]) < Some(20), "two of three are fast, the leader among them");
    assert!(longest(&[0]) > Some(300), "the leader is slow");
    assert!(longest(&[1, 2]) > Some(300), "a majority is slow");
}

#[test]
fn slow_disks_delay_a_takeover_and_break_nothing() {
    for seed in 0..5 {
        let mut world = watchful(3, 0, NETWORKS, seed);
        slow_down(&mut world, &[0, 1]);
        let name = world.hosts[2].name.clone();
        let own: Vec<_> = world.checker.cache.owned(&name).collect();
        world.checker.loss = Some(Loss::new(2, own, world.now));
        world.power_off(2);
        let over = |world: &mut World| world.checker.loss.as_ref().is_some_and(Loss::is_over);
        // The verdict, the claim, and the watch of either.
        let done = world.run_until(world.now + Duration::from_secs(6), over);
        assert!(done, "seed {seed}");
        rest(&mut world, "slow disks");
    }
}

/// For a minute nothing moves and nobody is silent.
fn nothing_moves(world: &mut World, what: &str) {
    world.checker.moved.clear();
    let silenced = |world: &mut World| world.hosts.iter().any(|host| host.silenced);
    let fell = world.run_until(world.now + Duration::from_secs(60), silenced);
    let seed = world.setup.seed;
    assert!(!fell, "seed {seed}: {what}: silent at {}", world.now);
    sound(world, what);
    assert!(world.checker.moved.is_empty(), "seed {seed}: {what}: {:?}", world.checker.moved);
    world.with_links(Links::mend);
    rest(world, what);
}

#[test]
fn a_gateway_that_loses_some_of_the_store_loses_nothing_else() {
    for seed in 0..3 {
        for lost in [vec![0], vec![0, 2], vec![0, 1, 2]] {
            let mut world = watchful(3, 0, NETWORKS, seed);
            world.with_links(|links| {
                lost.iter().for_each(|site| links.block(Block::Client(1, *site)));
            });
            nothing_moves(&mut world, &format!("gw2 without the members {lost:?}"));
        }
    }
}

#[test]
fn members_that_do_not_reach_each_other_move_nothing() {
    let cases: [&[(usize, usize)]; 5] = [
        &[(0, 1)],
        &[(1, 0)],
        &[(0, 1), (1, 0)],
        &[(0, 1), (1, 0), (0, 2), (2, 0)],
        &[(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)],
    ];
    for seed in 0..3 {
        for blocked in cases {
            let mut world = watchful(3, 0, NETWORKS, seed);
            world.with_links(|links| {
                blocked.iter().for_each(|(from, to)| links.block(Block::Peers(*from, *to)));
            });
            nothing_moves(&mut world, &format!("blocked {blocked:?}"));
        }
    }
}
