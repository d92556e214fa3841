use std::net::SocketAddr;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::broadcast::NewsKind;
use crate::crdt::Version;
use crate::reconcile::{End, Item, Items, MAX_PARTS, MAX_WANT, Part};

const MESH: MeshId = MeshId([1; 20]);

fn raw() -> Raw {
    Raw { bytes: vec![1, 2, 3], signature: [4; 64] }
}

fn probe() -> Probe {
    Probe { number: 0, hash: [6; 8], down: None, lives: None, evictions: None }
}

fn call() -> Call {
    let (from, to) = (NodeId([2; 32]), NodeId([3; 32]));
    Call { from, to, number: u64::MAX, word: 255, seen: None, yours: None }
}

fn messages() -> Vec<Message> {
    let version = Version { stamp: 3, tie: [1; 16] };
    let target = NodeId([2; 32]);
    let item = Item { prefix: [2; 16], added: Some(version), removed: None };
    let parts = vec![
        Part { end: Some(End(vec![7])), hash: Some([5; 12]), items: None },
        Part { end: Some(End(vec![8, 1])), hash: None, items: Some(Items(vec![item, item])) },
        Part::default(),
    ];
    let ranges = Ranges { start: vec![1], parts, want: vec![[3; 16]] };
    let news = NewsId { kind: NewsKind::Verdict, node: [1; 8], stamp: 300 };
    let rumors = vec![
        Rumor { alive: Some(raw()), accusations: vec![] },
        Rumor { alive: None, accusations: vec![raw(), raw()] },
    ];
    let evictions = vec![raw()];
    let records = Records { records: vec![raw()], removals: vec![raw(), raw()], evictions };
    vec![
        Message::Digest(Summary {
            hash: [5; 16],
            count: 9,
            introduction: Some(raw()),
            evictions: None,
        }),
        Message::Digest(Summary {
            hash: [5; 16],
            count: u64::MAX,
            introduction: None,
            evictions: None,
        }),
        Message::Same,
        Message::WhoAreYou,
        Message::Lives(ranges.clone()),
        Message::Evictions(ranges.clone()),
        Message::Ranges(ranges),
        Message::Ranges(Ranges::default()),
        Message::Doubt(Named { news: vec![news] }),
        Message::News(News { entries: records.clone(), rumors }),
        Message::Announce(Named { news: vec![news, news] }),
        Message::Graft(Named { news: vec![news] }),
        Message::Prune,
        Message::Ping(Probe { number: 70_000, ..probe() }),
        Message::Ack(Probe { down: Some(3), lives: Some(5), evictions: Some(6), ..probe() }),
        Message::Ask(Ask { target, number: 4, incarnation: 9 }),
        Message::Vouch(Vouch { target, number: 4 }),
        Message::Accuse(Accuse { accusation: raw() }),
        Message::Call(call()),
        Message::Call(Call {
            seen: Some(SocketAddr::from(([192, 0, 2, 1], 7))),
            yours: Some(SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 65_535))),
            ..call()
        }),
        Message::Seen(Seen { addr: [192, 0, 2, 1].into() }),
        Message::Seen(Seen { addr: [1; 16].into() }),
        Message::Records(records.clone()),
        Message::Join(Join { invite: raw(), wg: WgKey([6; 32]) }),
        Message::Welcome(Welcome { certificate: raw(), state: records }),
        Message::Refused(Refused { reason: Some(RefusedReason::UsedUp), detail: "used up".into() }),
    ]
}

fn encoded(message: Message) -> Vec<u8> {
    Envelope { mesh: MESH, message }.encode()
}

#[test]
fn messages_are_read_back() {
    for message in messages() {
        let bytes = encoded(message.clone());
        assert_eq!(mesh_of(&bytes), Ok(MESH));
        assert_eq!(Envelope::decode(&bytes), Ok(Envelope { mesh: MESH, message }));
    }
}

#[test]
fn cut_messages_are_refused() {
    for message in messages() {
        let bytes = encoded(message);
        for len in 0..bytes.len() {
            let error = Envelope::decode(&bytes[..len]).expect_err("cut");
            assert!(matches!(error, WireError::Malformed(_)), "{error}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(Envelope::decode(&longer).is_err());
    }
}

#[test]
fn unknown_versions_and_kinds_are_named() {
    let mut bytes = encoded(Message::Same);
    bytes[1] = 9;
    let error = Envelope::decode(&bytes).expect_err("newer");
    let expected =
        "the message has wire version 9, which is not known here (known: 2 and its neighbours)";
    assert_eq!(error.to_string(), expected);
    bytes[1] = FIRST_VERSION - 1;
    assert_eq!(Envelope::decode(&bytes), Err(WireError::UnknownVersion { found: 1 }));
    let mut bytes = encoded(Message::Same);
    let kind = bytes.len() - 2;
    bytes[kind] = 15;
    assert_eq!(Envelope::decode(&bytes), Err(WireError::UnknownKind { kind: 15 }));
}

#[test]
fn messages_of_the_next_version_are_read() {
    for message in messages() {
        let mut bytes = encoded(message.clone());
        bytes[1] = WIRE_VERSION + 1;
        assert_eq!(Envelope::decode(&bytes), Ok(Envelope { mesh: MESH, message }));
    }
}

#[test]
fn adjacent_versions_know_each_other() {
    for own in FIRST_VERSION..9 {
        let known = (0..20).filter(|found| is_known(*found, own)).collect::<Vec<_>>();
        let first = own.saturating_sub(1).max(FIRST_VERSION);
        assert_eq!(known, (u64::from(first)..=u64::from(own) + 1).collect::<Vec<_>>());
    }
}

#[test]
fn a_later_version_may_have_more_parts() {
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes);
    encoder.array(7).and_then(|e| e.u32(70_000)).expect("writes");
    assert_eq!(Envelope::decode(&bytes), Err(WireError::UnknownVersion { found: 70_000 }));
}

#[test]
fn unknown_fields_and_reasons_are_skipped() {
    let body = |write: &dyn Fn(&mut Encoder<&mut Vec<u8>>)| {
        let mut bytes = encoded(Message::Same);
        bytes.truncate(bytes.len() - 2);
        write(&mut Encoder::new(&mut bytes));
        Envelope::decode(&bytes).expect("skips").message
    };
    let digest = body(&|e| {
        e.u8(1)
            .and_then(|e| e.map(3))
            .and_then(|e| e.u8(0))
            .and_then(|e| e.bytes(&[7; 16]))
            .and_then(|e| e.u8(1))
            .and_then(|e| e.u8(2))
            .and_then(|e| e.u8(99))
            .and_then(|e| e.array(2))
            .and_then(|e| e.str("new"))
            .and_then(|e| e.u8(1))
            .expect("writes");
    });
    assert_eq!(
        digest,
        Message::Digest(Summary { hash: [7; 16], count: 2, introduction: None, evictions: None })
    );
    let refused = body(&|e| {
        e.u8(18)
            .and_then(|e| e.map(2))
            .and_then(|e| e.u8(0))
            .and_then(|e| e.u8(77))
            .and_then(|e| e.u8(1))
            .and_then(|e| e.str("new reason"))
            .expect("writes");
    });
    assert_eq!(refused, Message::Refused(Refused { reason: None, detail: "new reason".into() }));
}

/// What is sent every second, and what is sent when one record differs.
#[test]
fn what_is_frequent_is_small() {
    let len = |message| encoded(message).len();
    let probe = Probe { number: u32::MAX, ..probe() };
    assert!(len(Message::Ping(probe)) <= 48);
    assert!(len(Message::Ping(Probe { lives: Some(u32::MAX), ..probe })) <= 54);
    let some = Some(u32::MAX);
    assert!(len(Message::Ping(Probe { lives: some, evictions: some, ..probe })) <= 60);
    let part = Part { end: Some(End(vec![1, 2])), hash: Some([5; 12]), items: None };
    let ranges = Ranges { start: vec![], parts: vec![part; 16], want: vec![] };
    assert!(len(Message::Ranges(ranges)) <= 330);
}

#[test]
fn lists_and_texts_are_bounded() {
    let refused = |message| Envelope::decode(&encoded(message)).is_err();
    let want = |count| Message::Ranges(Ranges { want: vec![[0; 16]; count], ..Ranges::default() });
    assert!(!refused(want(MAX_WANT)));
    assert!(refused(want(MAX_WANT + 1)));
    let parts = |count| {
        let parts = vec![Part::default(); count];
        Message::Ranges(Ranges { parts, ..Ranges::default() })
    };
    assert!(!refused(parts(MAX_PARTS)));
    assert!(refused(parts(MAX_PARTS + 1)));
    let id = NewsId { kind: NewsKind::Entry, node: [0; 8], stamp: 0 };
    let named = |count| Message::Announce(Named { news: vec![id; count] });
    assert!(!refused(named(MAX_NEWS)));
    assert!(refused(named(MAX_NEWS + 1)));
    let rumors = |count| {
        let rumors = vec![Rumor::default(); count];
        Message::News(News { entries: Records::default(), rumors })
    };
    assert!(!refused(rumors(MAX_RUMORS)));
    assert!(refused(rumors(MAX_RUMORS + 1)));
    let records = |count| Records { records: vec![raw(); count], ..Records::default() };
    assert!(!refused(Message::Records(records(MAX_RECORDS))));
    assert!(refused(Message::Records(records(MAX_RECORDS + 1))));
    let detail = |len| Message::Refused(Refused { reason: None, detail: "x".repeat(len) });
    assert!(!refused(detail(Refused::MAX_DETAIL)));
    assert!(refused(detail(Refused::MAX_DETAIL + 1)));
    let long = vec![0; MAX_MESSAGE + 1];
    assert_eq!(Envelope::decode(&long), Err(WireError::TooLong { len: MAX_MESSAGE + 1 }));
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..200)) {
        let _ = Envelope::decode(&bytes);
    }

    #[test]
    fn random_bodies_never_panic(kind in 0..30_u8, body in vec(any::<u8>(), 0..200)) {
        let mut bytes = encoded(Message::Same);
        bytes.truncate(bytes.len() - 2);
        Encoder::new(&mut bytes).u8(kind).expect("writes");
        bytes.extend(body);
        let _ = Envelope::decode(&bytes);
    }

    #[test]
    fn damaged_messages_never_panic(
        which in 0..messages().len(), at in any::<prop::sample::Index>(), value in any::<u8>(),
    ) {
        let mut bytes = encoded(messages().swap_remove(which));
        let at = at.index(bytes.len());
        bytes[at] = value;
        if let Ok(read) = Envelope::decode(&bytes) {
            prop_assert_eq!(Envelope::decode(&read.encode()), Ok(read));
        }
    }
}
