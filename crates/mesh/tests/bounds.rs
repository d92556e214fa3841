//! What a partner may ask is bounded, and nobody pays for what another does.

mod common;

use std::time::Duration;

use common::{WALL, admit, events, founder, identity, transmits};
use selvedge_mesh::wire::{Envelope, Message, Probe, Records};
use selvedge_mesh::{Event, Mesh, Raw, Rejection};
use selvedge_model::{NodeId, Time};

/// A founder that knows two members.
fn mesh() -> (Mesh, NodeId, NodeId) {
    let mut founder = founder();
    for number in [1, 2] {
        let mut member = admit(&mut founder, number);
        let node = member.node();
        member.handle_timeout(Time::ZERO, WALL);
        // Who starts introduces itself.
        for (_, bytes) in transmits(&mut member) {
            founder.handle_message(node, &bytes, Time::ZERO, WALL);
        }
        assert!(founder.is_member(node));
    }
    transmits(&mut founder);
    events(&mut founder);
    (founder, identity(1).node_id(), identity(2).node_id())
}

fn hear(mesh: &mut Mesh, from: NodeId, message: Message, now: Time) {
    let bytes = Envelope { mesh: mesh.id(), message }.encode();
    mesh.handle_message(from, &bytes, now, WALL);
}

fn ping(mesh: &mut Mesh, from: NodeId, now: Time) -> bool {
    let probe = Probe { number: 1, hash: [0; 8], down: None, lives: None };
    hear(mesh, from, Message::Ping(probe), now);
    transmits(mesh).iter().any(|(to, _)| *to == from)
}

#[test]
fn who_floods_is_not_answered_and_the_others_are() {
    let (mut mesh, loud, quiet) = mesh();
    let answered = (0..5000).filter(|_| ping(&mut mesh, loud, Time::ZERO)).count();
    assert_eq!(answered, 1000);
    assert_eq!(mesh.rejections().get("too_much"), Some(&4000));
    assert!(ping(&mut mesh, quiet, Time::ZERO));
    assert!(ping(&mut mesh, loud, Time::ZERO + Duration::from_secs(1)), "for a while only");
    let told = events(&mut mesh);
    assert!(!told.iter().any(|event| matches!(event, Event::Rejected { .. })), "{told:?}");
}

#[test]
fn a_member_that_sends_nonsense_is_ignored_and_counted() {
    let (mut mesh, bad, good) = mesh();
    let forged = || Raw { bytes: vec![1, 0xa0], signature: [7; 64] };
    for _ in 0..100 {
        let records = Records { records: vec![forged()], removals: vec![] };
        hear(&mut mesh, bad, Message::Records(records), Time::ZERO);
    }
    assert_eq!(mesh.silenced().collect::<Vec<_>>(), [bad]);
    assert_eq!(mesh.rejections().get("record_signature"), Some(&21));
    assert_eq!(mesh.rejections().get("silenced"), Some(&79));
    assert!(!ping(&mut mesh, bad, Time::ZERO) && ping(&mut mesh, good, Time::ZERO));
    assert!(mesh.is_member(bad), "it is no member the less");
    let silenced = |event: &&Event| matches!(event, Event::Rejected { from, reason: Rejection::Silenced } if *from == bad);
    assert_eq!(events(&mut mesh).iter().filter(silenced).count(), 1, "told of once");
    let later = Time::ZERO + Duration::from_secs(61);
    assert!(ping(&mut mesh, bad, later));
    assert_eq!(mesh.silenced().count(), 0);
}

/// A newer version may say what this one does not understand.
#[test]
fn what_is_not_known_is_not_nonsense() {
    let (mut mesh, newer, _) = mesh();
    let unknown = |mesh: &Mesh| {
        let mut bytes = Envelope { mesh: mesh.id(), message: Message::Same }.encode();
        let kind = bytes.len() - 2;
        bytes[kind] = 15;
        bytes
    };
    for _ in 0..100 {
        let bytes = unknown(&mesh);
        mesh.handle_message(newer, &bytes, Time::ZERO, WALL);
    }
    assert_eq!(mesh.rejections().get("message_kind"), Some(&100));
    assert!(mesh.silenced().next().is_none() && ping(&mut mesh, newer, Time::ZERO));
}

/// Somebody who is no member cannot use up what a joiner needs by messages of other kinds.
#[test]
fn strangers_share_what_they_may_ask() {
    let (mut mesh, member, _) = mesh();
    let stranger = |number: u32| identity(1000 + number).node_id();
    let answered = (0..3000).filter(|number| ping(&mut mesh, stranger(*number), Time::ZERO));
    assert_eq!(answered.count(), 1000);
    assert!(ping(&mut mesh, member, Time::ZERO));
    let before = mesh.members().count();
    drop(admit(&mut mesh, 9));
    assert_eq!(mesh.members().count(), before, "a joiner is admitted, and introduces itself later");
}
