//! What a partner may ask is bounded, and nobody pays for what another does.

mod common;

use std::time::Duration;

use common::{Net, WALL, admit, events, founder, identity, transmits};
use selvedge_mesh::reconcile::{self, MAX_WANT, Ranges};
use selvedge_mesh::rumor::{Accusation, Alive, Rumor};
use selvedge_mesh::wire::{Envelope, Message, Named, News, Probe, Records, Summary};
use selvedge_mesh::{Event, Mesh, NewsId, NewsKind, Raw, Rejection, Signed};
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
    let probe = Probe { number: 1, hash: [0; 8], down: None, lives: None, evictions: None };
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
        let records = Records { records: vec![forged()], ..Records::default() };
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

/// A short question has a long answer, and who asks it again and again pays for that.
#[test]
fn long_answers_are_paid_for() {
    let mut net = Net::with_members(1, 40);
    net.run_until_agreed(Duration::from_secs(120)).expect("agree");
    let (now, asker) = (net.now + Duration::from_secs(100), identity(1).node_id());
    let want: Vec<_> = net.nodes.keys().map(reconcile::prefix).collect();
    let mesh = net.node(0);
    let mut bytes = 0;
    let answered = (0..10_000).take_while(|_| {
        let want = Ranges { want: want.clone(), ..Ranges::default() };
        hear(mesh, asker, Message::Ranges(want), now);
        let answer: usize = transmits(mesh).iter().map(|(_, bytes)| bytes.len()).sum();
        bytes += answer;
        answer > 0
    });
    let answered = answered.count();
    assert!((100..10_000).contains(&answered), "{answered}");
    // The greatest sum that is saved, and what the division leaves over.
    assert!(bytes <= (30_000 + answered) * 1200, "{bytes}");
    assert!(ping(mesh, asker, now), "of other things it may speak");
    assert!(ping(mesh, identity(2).node_id(), now));
}

/// Asked for the same verdict many times at once, a node sends it once.
#[test]
fn a_verdict_is_sent_once_however_often_it_is_asked_for() {
    let mut net = Net::with_members(2, 5);
    net.run_until_agreed(Duration::from_secs(120)).expect("agree");
    let (asker, dead) = (identity(1).node_id(), identity(2).node_id());
    net.nodes.remove(&dead);
    net.run(Duration::from_secs(10));
    let now = net.now;
    let mesh = net.node(0);
    assert!(mesh.is_down(dead));
    let ask = |mesh: &mut Mesh, times: usize| {
        let want = vec![reconcile::prefix(&dead); times];
        hear(mesh, asker, Message::Lives(Ranges { want, ..Ranges::default() }), now);
        transmits(mesh)
    };
    let once = ask(mesh, 1);
    assert_eq!(once.len(), 1);
    assert_eq!(ask(mesh, MAX_WANT), once);
}

/// What a node says of its incarnation when it is told, without a signature, that it is down.
fn contradiction(mesh: &mut Mesh, from: NodeId, down: u64, now: Time) -> Option<u64> {
    let probe = Probe { number: 1, hash: [0; 8], down: Some(down), lives: None, evictions: None };
    hear(mesh, from, Message::Ping(probe), now);
    let rumors =
        transmits(mesh).into_iter().filter(|(to, _)| *to == from).flat_map(|(_, bytes)| {
            let message = Envelope::decode(&bytes).expect("our own format").message;
            if let Message::News(news) = message { news.rumors } else { Vec::new() }
        });
    let alive = rumors.filter_map(|rumor| rumor.alive);
    alive.map(|raw| Signed::<Alive>::verify(raw).expect("signed").value().incarnation).max()
}

/// One word of one member must not use up all incarnations that there are: the node could not
/// contradict the next verdict.
#[test]
fn nobody_uses_up_the_incarnations_of_another() {
    let (mut mesh, bad, good) = mesh();
    let later = |seconds: u64| Time::ZERO + Duration::from_secs(seconds);
    for down in [u64::MAX, 1 << 62, (1 << 62) - 1, 1024] {
        assert_eq!(contradiction(&mut mesh, bad, down, later(1)), None, "{down}");
    }
    let news = vec![NewsId {
        kind: NewsKind::Verdict,
        node: *mesh.node().as_bytes().first_chunk().expect("longer"),
        stamp: u64::MAX,
    }];
    hear(&mut mesh, bad, Message::Doubt(Named { news }), later(2));
    assert_eq!(contradiction(&mut mesh, good, 0, later(3)), Some(1));
    assert_eq!(contradiction(&mut mesh, good, 900, later(200)), Some(901), "it lost its disk");
}

/// A node that has lost its disk may have got far before. It wants to see signatures then.
#[test]
fn a_great_incarnation_is_believed_of_signatures() {
    let (mut mesh, other, _) = mesh();
    assert_eq!(contradiction(&mut mesh, other, 5000, Time::ZERO), None);
    let probe = Probe { number: 1, hash: [0; 8], down: Some(5000), lives: None, evictions: None };
    hear(&mut mesh, other, Message::Ping(probe), Time::ZERO);
    let want = vec![reconcile::prefix(&mesh.node())];
    let asked = Message::Lives(Ranges { want, ..Ranges::default() });
    let sent = transmits(&mut mesh);
    let asks = |bytes: &[u8]| Envelope::decode(bytes).is_ok_and(|sent| sent.message == asked);
    assert!(sent.iter().any(|(to, bytes)| *to == other && asks(bytes)), "{sent:?}");
    let accuse = |by: u32| {
        let (mesh, target) = (mesh.id(), mesh.node());
        let accuser = identity(by).node_id();
        let accusation = Accusation { mesh, accuser, target, incarnation: 5000 };
        Signed::sign(accusation, &identity(by)).expect("in bounds").raw().clone()
    };
    let rumor = Rumor { alive: None, accusations: vec![accuse(1), accuse(2)] };
    let news = News { entries: Records::default(), rumors: vec![rumor] };
    hear(&mut mesh, other, Message::News(news), Time::ZERO);
    transmits(&mut mesh);
    assert_eq!(contradiction(&mut mesh, other, 5000, Time::ZERO), Some(5001));
}

/// Who sends a great deal that is known does not keep a node from hearing of what is new.
#[test]
fn known_records_keep_nobody_busy() {
    let mut founder = founder();
    for number in 1..80 {
        let mut member = admit(&mut founder, number);
        let node = member.node();
        member.handle_timeout(Time::ZERO, WALL);
        for (_, bytes) in transmits(&mut member) {
            founder.handle_message(node, &bytes, Time::ZERO, WALL);
        }
    }
    transmits(&mut founder);
    let (bad, good) = (identity(1).node_id(), identity(2).node_id());
    let want = founder.members().map(|member| reconcile::prefix(&member.node)).collect();
    let want = Ranges { want, ..Ranges::default() };
    hear(&mut founder, bad, Message::Ranges(want), Time::ZERO);
    let mut known = Records::default();
    for (_, bytes) in transmits(&mut founder) {
        if let Ok(Message::Records(some)) = Envelope::decode(&bytes).map(|sent| sent.message) {
            known.records.extend(some.records);
        }
    }
    assert_eq!(known.records.len(), 80);
    hear(&mut founder, bad, Message::Records(known), Time::ZERO);
    let other = Summary { hash: [7; 16], count: 3, introduction: None, evictions: None };
    hear(&mut founder, good, Message::Digest(other), Time::ZERO);
    assert!(transmits(&mut founder).iter().any(|(to, _)| *to == good), "it is answered");
}
