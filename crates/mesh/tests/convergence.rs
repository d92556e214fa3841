//! Replicas agree, whatever the network does (M2), and partitions heal (M6).

mod common;

use std::time::Duration;

use common::{Net, admit, events, founder, identity, transmits};
use proptest::prelude::*;
use selvedge_mesh::wire::{Envelope, Message, Summary};
use selvedge_mesh::{Event, Mesh, Rejection};
use selvedge_model::{NodeId, Prefix, Time};

const LIMIT: Duration = Duration::from_secs(120);

/// Who has left is not heard any more while it still speaks.
fn is_rejection(event: &Event) -> bool {
    matches!(event, Event::Rejected { reason: Rejection::NotAMember, .. })
}

/// Everybody is a member of everybody's mesh, and WireGuard's peers are all others.
fn assert_complete(net: &Net, count: usize) {
    for mesh in net.nodes.values() {
        assert_eq!(mesh.members().count(), count);
        let peers = mesh.desired_wireguard();
        assert_eq!(peers.len(), count - 1);
        for member in mesh.members().filter(|member| member.node != mesh.node()) {
            let peer = &peers[&member.wg];
            assert_eq!(peer.endpoint, Some(member.profile.endpoints[0].addr));
            assert_eq!(peer.allowed, [Prefix::host(member.address.into())]);
            assert!(mesh.prefix().contains(member.address.into()));
        }
    }
}

#[test]
fn all_who_joined_know_each_other() {
    let mut net = Net::with_members(1, 20);
    assert!(!net.agreed(), "so far each has heard of those before it only");
    let taken = net.run_until_agreed(LIMIT).expect("agree");
    assert!(taken < Duration::from_secs(10), "{taken:?}");
    assert_complete(&net, 20);
    for mesh in net.nodes.values() {
        // Members may talk to a node before it has heard of them; nothing else is rejected.
        let others = mesh.rejections().keys().filter(|kind| **kind != "not_a_member");
        assert_eq!(others.count(), 0, "{:?}", mesh.rejections());
    }
}

#[test]
fn a_change_is_known_at_once_by_almost_all() {
    let mut net = Net::with_members(2, 30);
    net.run_until_agreed(LIMIT).expect("agree");
    let mut profile = net.node(7).profile();
    profile.endpoints = common::profile(77).endpoints;
    assert!(net.node(7).set_profile(profile.clone()).expect("in bounds"));
    assert!(!net.node(7).set_profile(profile.clone()).expect("in bounds"), "not again");
    let node = net.node(7).node();
    net.run(Duration::from_millis(400));
    let knows = |mesh: &&Mesh| mesh.member(node).is_some_and(|m| m.profile == profile);
    let know = net.nodes.values().filter(knows).count();
    assert!(know >= 24, "{know} of 30 after 0.4 s");
    let key = common::wg(7);
    net.run_until_agreed(LIMIT).expect("agree");
    let endpoint = net.node(1).desired_wireguard()[&key].endpoint;
    assert_eq!(endpoint, Some(profile.endpoints[0].addr));
}

#[test]
fn partitions_heal() {
    let mut net = Net::with_members(3, 16);
    net.run_until_agreed(LIMIT).expect("agree");
    net.island = (0..5).map(|number| identity(number).node_id()).collect();
    for number in [1, 2, 9, 10] {
        let profile = common::profile(number + 100);
        net.node(number).set_profile(profile).expect("in bounds");
    }
    net.node(11).leave().expect("a member");
    net.run(Duration::from_secs(3600));
    assert!(!net.agreed());
    assert!(net.node(1).is_member(identity(11).node_id()), "cut off from that news");
    net.island.clear();
    net.nodes.remove(&identity(11).node_id());
    net.run_until_agreed(LIMIT).expect("agree");
    assert_complete(&net, 15);
    let alias = net.node(15).member(identity(1).node_id()).map(|member| member.profile.alias);
    assert_eq!(alias.as_deref(), Some("node-101"));
}

#[test]
fn who_leaves_is_gone_everywhere_and_may_come_back() {
    let mut net = Net::with_members(4, 8);
    net.run_until_agreed(LIMIT).expect("agree");
    net.nodes.values_mut().for_each(|mesh| drop(events(mesh)));
    let gone = identity(3).node_id();
    net.node(3).leave().expect("a member");
    assert!(net.node(3).leave().is_err());
    assert_eq!(net.node(3).poll_timeout(), None);
    net.run(Duration::from_secs(20));
    net.nodes.remove(&gone);
    assert!(net.agreed());
    assert_complete(&net, 7);
    let told: Vec<Event> =
        events(net.node(5)).into_iter().filter(|event| !is_rejection(event)).collect();
    assert_eq!(told, [Event::MemberLeft(gone), Event::StateChanged]);

    let back = admit(net.node(0), 3);
    net.add(back);
    net.run_until_agreed(LIMIT).expect("agree");
    assert_complete(&net, 8);
    assert_eq!(events(net.node(5)), [Event::MemberJoined(gone), Event::StateChanged]);
}

/// Nobody but the founder was told of the new node, and the founder is gone.
#[test]
fn a_node_that_nobody_knows_introduces_itself() {
    let mut net = Net::with_members(5, 6);
    net.run_until_agreed(LIMIT).expect("agree");
    let newcomer = admit(net.node(0), 50);
    net.nodes.remove(&identity(0).node_id());
    net.loss = 300;
    net.add(newcomer);
    net.run_until_agreed(LIMIT).expect("agree");
    assert!(net.node(2).is_member(identity(50).node_id()));
}

#[test]
fn equal_states_cost_one_round_trip_of_under_100_bytes() {
    let mut net = Net::with_members(6, 2);
    net.run_until_agreed(LIMIT).expect("agree");
    net.run(Duration::from_secs(5));
    let [mut a, mut b]: [Mesh; 2] = std::mem::take(&mut net.nodes)
        .into_values()
        .collect::<Vec<_>>()
        .try_into()
        .expect("two nodes");
    let mut now = net.now;
    let mut ping = Vec::new();
    while ping.is_empty() {
        now = a.poll_timeout().expect("a member");
        a.handle_timeout(now, common::WALL);
        ping = transmits(&mut a);
    }
    let [(to, question)]: [(NodeId, Vec<u8>); 1] = ping.try_into().expect("one");
    assert_eq!(to, b.node());
    b.handle_message(a.node(), &question, now, common::WALL);
    let sent = transmits(&mut b);
    let [(to, answer)] = sent.as_slice() else { panic!("one answer: {sent:?}") };
    assert_eq!(*to, a.node());
    a.handle_message(b.node(), answer, now, common::WALL);
    assert_eq!(transmits(&mut a), []);
    let is_ack = Envelope::decode(answer).map(|envelope| envelope.message);
    assert!(matches!(is_ack, Ok(Message::Ack(_))), "{is_ack:?}");
    let bytes = question.len() + answer.len();
    assert!(bytes < 100, "{bytes} bytes");
}

/// What differs is all that travels, besides a few hashes.
#[test]
fn reconciliation_brings_just_what_is_lacking() {
    let mut founder = founder();
    let mut first = admit(&mut founder, 1);
    for number in 2..100 {
        let mut mesh = admit(&mut founder, number);
        exchange(&mut mesh, &mut founder);
    }
    let mut late = admit(&mut founder, 200);
    founder.set_profile(common::profile(300)).expect("in bounds");
    let bytes = exchange(&mut late, &mut founder);
    assert_eq!(founder.digest(), late.digest());
    assert_eq!(late.members().count(), 100);
    assert!(bytes < 30_000, "{bytes} bytes for the sixty records that its welcome left out");
    founder.set_profile(common::profile(301)).expect("in bounds");
    let bytes = exchange(&mut late, &mut founder);
    assert_eq!(founder.digest(), late.digest());
    assert!(bytes < 1500, "{bytes} bytes for one record");
    let bytes = exchange(&mut first, &mut founder);
    assert_eq!(first.digest(), founder.digest());
    assert!(bytes < 101 * 700, "{bytes} bytes for 100 records");
}

/// Passes all messages between two nodes, after `a` has begun to reconcile with `b`. How many
/// bytes that took.
fn exchange(a: &mut Mesh, b: &mut Mesh) -> usize {
    let digest = a.digest();
    let summary =
        Summary { hash: digest.hash, count: digest.count, introduction: None, evictions: None };
    let envelope = Envelope { mesh: a.id(), message: Message::Digest(summary) };
    let mut to_b = vec![envelope.encode()];
    let mut bytes = 0;
    while !to_b.is_empty() {
        let to_a = deliver(&to_b, a.node(), b);
        bytes += to_b.iter().chain(&to_a).map(Vec::len).sum::<usize>();
        to_b = deliver(&to_a, b.node(), a);
    }
    bytes
}

fn messages_to(node: NodeId, mesh: &mut Mesh) -> Vec<Vec<u8>> {
    let sent = transmits(mesh).into_iter().filter(|(to, _)| *to == node);
    sent.map(|(_, bytes)| bytes).collect()
}

fn deliver(messages: &[Vec<u8>], from: NodeId, to: &mut Mesh) -> Vec<Vec<u8>> {
    transmits(to);
    for message in messages {
        to.handle_message(from, message, Time::ZERO, common::WALL);
    }
    messages_to(from, to)
}

#[test]
fn a_seed_replays_to_the_letter() {
    let run = || {
        let mut net = Net::with_members(9, 12);
        net.loss = 100;
        net.double = 100;
        net.run(Duration::from_secs(30));
        (net.trace.finalize(), net.bytes)
    };
    assert_eq!(run(), run());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Whatever is lost, doubled and reordered, and whoever changes and leaves when.
    #[test]
    fn all_agree_in_the_end(
        seed in any::<u64>(),
        loss in 0..400_u32,
        double in 0..400_u32,
        changes in proptest::collection::vec((1..10_u32, 0..4_u32), 0..12),
    ) {
        let mut net = Net::with_members(seed, 10);
        (net.loss, net.double) = (loss, double);
        for (number, what) in changes {
            if net.nodes.contains_key(&identity(number).node_id()) {
                match what {
                    0 => net.node(number).leave().expect("a member"),
                    what => {
                        let profile = common::profile(number + 100 * what);
                        net.node(number).set_profile(profile).expect("in bounds");
                    }
                }
            }
            net.run(Duration::from_millis(u64::from(number) * 37));
            net.nodes.retain(|_, mesh| mesh.poll_timeout().is_some());
        }
        prop_assert!(net.run_until_agreed(LIMIT).is_some());
        let members = |mesh: &Mesh| mesh.members().collect::<Vec<_>>();
        let first = net.nodes.values().next().map(members);
        for mesh in net.nodes.values() {
            prop_assert_eq!(Some(members(mesh)), first.clone());
        }
    }
}
