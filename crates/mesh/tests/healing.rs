//! After a partition both sides soon agree again, on records and on who is up (M6), and who is
//! down stays down to those who have just started.

mod common;

use std::time::Duration;

use common::{Net, WALL, admit, founder, identity, mesh_of, transmits};
use selvedge_mesh::Mesh;
use selvedge_mesh::wire::{Envelope, Message};
use selvedge_model::{NodeId, Time};

const LIMIT: Duration = Duration::from_secs(120);
/// Whatever the partition was, this long after it both sides agree.
const HEALED: Duration = Duration::from_secs(5);

fn held_down(net: &Net) -> usize {
    net.nodes.values().map(Mesh::count_down).sum()
}

/// Two sides of so many members each are apart for `length`, and say new things meanwhile. How
/// long it takes then until they agree on everything.
fn heal(seed: u64, each: u32, length: Duration) -> Option<Duration> {
    let mut net = Net::with_members(seed, 2 * each);
    net.run_until_agreed(LIMIT).expect("agree");
    net.run(Duration::from_secs(5));
    net.loss = 10;
    net.island = (0..each).map(|number| identity(number).node_id()).collect();
    for number in [0, each] {
        let profile = common::profile(number + 100);
        net.node(number).set_profile(profile).expect("in bounds");
    }
    net.run(length);
    assert!(!net.agreed());
    let down = (2 * each * each) as usize;
    assert_eq!(held_down(&net), down, "seed {seed}: each side holds all of the other to be down");
    net.island.clear();
    let began = net.now;
    while !(net.agreed() && held_down(&net) == 0) {
        net.run(Duration::from_millis(20));
        if net.now.since(began) > LIMIT {
            return None;
        }
    }
    for mesh in net.nodes.values() {
        let refused = |kind: &str| mesh.rejections().get(kind).copied().unwrap_or(0);
        assert_eq!(refused("too_much") + refused("silenced"), 0, "nobody in good order is refused");
    }
    Some(net.now.since(began))
}

#[test]
fn both_sides_agree_soon_after_a_partition() {
    let minutes = |count: u64| Duration::from_secs(60 * count);
    let cases =
        [(1, minutes(10), 8), (2, minutes(2), 4), (10, minutes(10), 2), (30, minutes(2), 1)];
    for (each, length, seeds) in cases {
        for seed in 0..seeds {
            let healed = heal(seed, each, length).expect("heals");
            assert!(healed <= HEALED, "seed {seed}, {each} nodes each: {healed:?}");
        }
    }
}

#[test]
fn a_second_partition_heals_as_soon() {
    let mut net = Net::with_members(4, 12);
    net.run_until_agreed(LIMIT).expect("agree");
    for _ in 0..2 {
        net.island = (0..6).map(|number| identity(number).node_id()).collect();
        net.run(Duration::from_secs(150));
        net.island.clear();
        net.run(HEALED);
        assert_eq!(held_down(&net), 0);
    }
}

/// Between the sides a single pair reaches each other again. That is enough for both to have
/// everything, and for what is new later to cross.
#[test]
fn one_link_between_two_sides_is_enough() {
    for (seed, each) in [(1, 2), (2, 4), (3, 4), (4, 8)] {
        let mut net = Net::with_members(seed, 2 * each);
        net.run_until_agreed(LIMIT).expect("agree");
        let side = |from: u32| (from..from + each).map(|number| identity(number).node_id());
        let across = side(0).flat_map(|a| side(each).flat_map(move |b| [(a, b), (b, a)]));
        net.broken = across.collect();
        for round in 0..4 {
            for number in [1, each + 1] {
                let profile = common::profile(100 * (round + 1) + number);
                net.node(number).set_profile(profile).expect("in bounds");
            }
            if round == 0 {
                net.run(Duration::from_secs(120));
                assert!(!net.agreed());
            }
            let (a, b) = (identity(0).node_id(), identity(each).node_id());
            net.broken.retain(|pair| ![(a, b), (b, a)].contains(pair));
            let healed = net.run_until_agreed(LIMIT);
            assert!(healed.is_some(), "seed {seed}, {each} nodes each, change {round}");
            net.run(Duration::from_secs(40));
        }
    }
}

/// Who starts has heard of no verdict. It hears of it from its partners, and only once it has
/// found that the dead do not answer.
#[test]
fn who_starts_learns_who_is_down() {
    let mut net = Net::with_members(5, 12);
    net.run_until_agreed(LIMIT).expect("agree");
    let dead: Vec<NodeId> = (3..6).map(|number| identity(number).node_id()).collect();
    dead.iter().for_each(|node| drop(net.nodes.remove(node)));
    net.run(Duration::from_secs(60));
    assert_eq!(held_down(&net), 9 * dead.len());
    let restarted = net.nodes.remove(&identity(8).node_id()).expect("runs");
    let mut restarted = mesh_of(8, restarted.into_state());
    restarted.handle_timeout(net.now, WALL);
    net.add(restarted);
    net.run(Duration::from_secs(8));
    assert_eq!(net.node(8).down().collect::<Vec<_>>(), sorted(&dead));
    assert_eq!(held_down(&net), 9 * dead.len(), "nobody believes that they are up");
}

fn sorted(nodes: &[NodeId]) -> Vec<NodeId> {
    let mut nodes = nodes.to_vec();
    nodes.sort();
    nodes
}

/// A member that reaches nobody at the addresses it knows asks at those it was told of.
#[test]
fn bootstrap_addresses_are_ways_back() {
    let mut founder = founder();
    let mut lost = admit(&mut founder, 1);
    founder.set_profile(common::profile(300)).expect("in bounds");
    lost.set_bootstrap(vec!["192.0.2.1:7654".into(), "a.example.net:7654".into()]);
    let mut knocks = Vec::new();
    let mut run = |lost: &mut Mesh, seconds: u64| {
        knocks.clear();
        let end = lost.poll_timeout().expect("a member") + Duration::from_secs(seconds);
        while let Some(due) = lost.poll_timeout().filter(|due| *due < end) {
            lost.handle_timeout(due, WALL);
            transmits(lost);
            knocks.extend(std::iter::from_fn(|| lost.poll_knock()));
        }
        std::mem::take(&mut knocks)
    };
    let knocked = run(&mut lost, 30);
    assert!((10..20).contains(&knocked.len()), "{}", knocked.len());
    assert_eq!(knocked[0].place, "192.0.2.1:7654");
    assert_eq!(knocked[1].place, "a.example.net:7654");

    transmits(&mut founder);
    let now = lost.poll_timeout().expect("a member");
    founder.handle_message(lost.node(), &knocked[0].bytes, now, WALL);
    let node = lost.node();
    let answers = transmits(&mut founder).into_iter().filter(|(to, _)| *to == node);
    for (_, answer) in answers {
        lost.handle_message(founder.node(), &answer, now, WALL);
    }
    let asked = transmits(&mut lost).into_iter().any(|(to, bytes)| {
        let message = Envelope::decode(&bytes).map(|envelope| envelope.message);
        to == founder.node() && matches!(message, Ok(Message::Ranges(_) | Message::Records(_)))
    });
    assert!(asked, "it goes on with whoever was found there");
}

/// Whoever answers and was not asked stays a stranger.
#[test]
fn only_who_was_knocked_for_is_asked_who_it_is() {
    let mut founder = founder();
    let stranger = identity(77).node_id();
    let same = Envelope { mesh: founder.id(), message: Message::Same }.encode();
    founder.handle_message(stranger, &same, Time::ZERO, WALL);
    assert_eq!(transmits(&mut founder), []);
    founder.set_bootstrap(vec!["192.0.2.1:7654".into()]);
    founder.handle_timeout(Time::ZERO, WALL);
    assert!(founder.poll_knock().is_some());
    founder.handle_message(stranger, &same, Time::ZERO, WALL);
    let asked = transmits(&mut founder);
    let message = asked.first().and_then(|(_, bytes)| Envelope::decode(bytes).ok());
    assert!(matches!(message.map(|e| e.message), Some(Message::WhoAreYou)), "{asked:?}");
}

/// Who has just started has heard of no sign of life, and its word is of no use against a node
/// that has contradicted a verdict before; the others' is, and it is told.
#[test]
fn a_crash_is_known_to_all_though_a_helper_has_just_started() {
    for members in [3, 4, 8] {
        for restarted in (0..members).filter(|number| *number != 2) {
            let mut net = Net::with_members(u64::from(restarted), members);
            net.run_until_agreed(LIMIT).expect("agree");
            let target = identity(2).node_id();
            net.island = [target].into();
            net.run(Duration::from_secs(10));
            net.island.clear();
            net.run(Duration::from_secs(10));
            assert_eq!(held_down(&net), 0, "it has contradicted");
            let state = net.nodes.remove(&identity(restarted).node_id()).expect("runs");
            let mut anew = mesh_of(restarted, state.into_state());
            anew.handle_timeout(net.now, WALL);
            net.add(anew);
            net.run(Duration::from_secs(1));
            net.nodes.remove(&target);
            net.run(Duration::from_secs(8));
            for mesh in net.nodes.values() {
                let down: Vec<NodeId> = mesh.down().collect();
                assert_eq!(down, [target], "of {members}, after a restart of {restarted}");
            }
        }
    }
}

/// Who has left is not missed: a node that reaches none of those who are left is alone.
#[test]
fn who_has_left_does_not_count_when_a_node_is_alone() {
    let mut net = Net::with_members(9, 3);
    net.run_until_agreed(LIMIT).expect("agree");
    net.node(2).leave().expect("a member");
    net.run(Duration::from_secs(2));
    net.nodes.remove(&identity(2).node_id());
    net.nodes.remove(&identity(1).node_id());
    net.run(Duration::from_secs(20));
    assert!(net.node(0).is_down(identity(1).node_id()));
    net.node(0).set_bootstrap(vec!["192.0.2.1:7654".into()]);
    let knocks = (0..30).filter(|_| {
        net.run(Duration::from_secs(1));
        net.node(0).poll_knock().is_some()
    });
    assert!(knocks.count() >= 8, "every two seconds, not every thirty");
}
