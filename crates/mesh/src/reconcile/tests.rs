//! Against a naive oracle, and against the crate negentropy.

use std::collections::BTreeSet;

use negentropy::{Id, Negentropy, NegentropyStorageVector};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

type Wide = [u8; 9];

impl Key for Wide {
    fn key_bytes(&self) -> &[u8] {
        self
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Note(u64, u8);

impl Content for Note {
    fn stamp(&self) -> u64 {
        self.0
    }

    fn tie(&self) -> [u8; 16] {
        [self.1; 16]
    }

    fn expiry(&self) -> u64 {
        u64::MAX
    }
}

type Map = TwoPhaseMap<Wide, Note, Note>;

/// Some keys in close groups, some alike but for the last byte, some with zeros at the end.
fn key() -> impl Strategy<Value = Wide> {
    (0..6_u8, any::<u8>(), 0..3_u8, 0..3_u8).prop_map(|(a, b, c, last)| {
        let mut key = [0; 9];
        (key[0], key[1], key[7], key[8]) = (a * 40, b, c, last);
        key
    })
}

fn step() -> impl Strategy<Value = (Wide, Entry<Note, Note>)> {
    (key(), any::<bool>(), 1..4_u64, 0..3_u8).prop_map(|(key, add, stamp, text)| {
        let note = Note(stamp, text);
        (key, if add { Entry::Add(note) } else { Entry::Remove(note) })
    })
}

fn map(steps: &[(Wide, Entry<Note, Note>)]) -> Map {
    let mut map = Map::new();
    for (key, entry) in steps {
        map.merge_entry(*key, entry.clone());
    }
    map
}

/// What a reconciliation took.
#[derive(Debug, Default)]
struct Cost {
    messages: usize,
    bytes: usize,
    largest: usize,
    /// Of whom anything was sent.
    keys: BTreeSet<Wide>,
}

/// Reconciles two maps, each message going over the wire.
fn reconcile(a: &mut Map, b: &mut Map) -> Cost {
    let mut cost = Cost::default();
    let mut next = (a.digest() != b.digest()).then(|| Ranges::whole(&a.digest()));
    let (mut to, mut from) = (b, a);
    while let Some(asked) = next.take() {
        let bytes = codec::to_vec(&asked);
        cost.messages += 1;
        cost.bytes += bytes.len();
        cost.largest = cost.largest.max(bytes.len());
        assert!(cost.messages < 1000, "it does not end");
        let asked: Ranges = codec::from_slice(&bytes).expect("reads what it writes");
        let Answer { ranges, mut entries } = answer(to, &asked);
        entries.extend(wanted(to, &asked.want));
        for (key, entry) in entries {
            cost.keys.insert(key);
            from.merge_entry(key, entry);
        }
        next = ranges;
        std::mem::swap(&mut to, &mut from);
    }
    cost
}

fn key_of(number: u64) -> Wide {
    let mut key = [0; 9];
    key[..8].copy_from_slice(&blake3::hash(&number.to_le_bytes()).as_bytes()[..8]);
    key
}

fn great(count: u64) -> Map {
    map(&(0..count).map(|n| (key_of(n), Entry::Add(Note(1, 0)))).collect::<Vec<_>>())
}

#[test]
fn one_difference_costs_little() {
    let mut worst = Cost::default();
    for count in [100, 3000, 10_000] {
        let held = great(count);
        for changed in 0..40 {
            let (mut a, mut b) = (held.clone(), held.clone());
            b.merge_entry(key_of(changed), Entry::Add(Note(2, 0)));
            let cost = reconcile(&mut a, &mut b);
            assert_eq!(a, b);
            assert_eq!(cost.keys, [key_of(changed)].into());
            worst.bytes = worst.bytes.max(cost.bytes);
            worst.messages = worst.messages.max(cost.messages);
        }
    }
    // Without the record itself, of which 2 KB leave room for one of 500 bytes.
    assert!(worst.bytes <= 1500, "{worst:?}");
    assert!(worst.messages <= 8, "four round trips: {worst:?}");
}

#[test]
fn differences_cost_in_proportion_to_their_number() {
    let mut per_difference = Vec::new();
    let held = great(10_000);
    for differences in [1, 10, 100, 1000] {
        let (mut a, mut b) = (held.clone(), held.clone());
        for changed in 0..differences {
            let side = if changed % 2 == 0 { &mut a } else { &mut b };
            side.merge_entry(key_of(changed * 7), Entry::Add(Note(2, 1)));
        }
        let cost = reconcile(&mut a, &mut b);
        assert_eq!(a, b);
        assert!(cost.largest < 64 << 10, "{cost:?}");
        per_difference.push(cost.bytes as u64 / differences);
    }
    assert!(per_difference.is_sorted_by(|a, b| a >= b), "{per_difference:?}");
}

#[test]
fn whoever_has_nothing_is_sent_all_without_a_list_of_it() {
    let (mut a, mut b) = (Map::new(), great(5000));
    let cost = reconcile(&mut a, &mut b);
    assert_eq!(a, b);
    assert!(cost.bytes < 2000, "{cost:?}");
}

#[test]
fn messages_stay_bounded_where_all_is_different() {
    let mut a = great(9000);
    let mut b = map(&(0..9000).map(|n| (key_of(n), Entry::Add(Note(2, 0)))).collect::<Vec<_>>());
    let cost = reconcile(&mut a, &mut b);
    assert_eq!(a, b);
    assert!(cost.largest < 256 << 10, "{}", cost.largest);
}

#[test]
fn nonsense_is_answered_with_little() {
    let map = great(3000);
    let part = |end: &[u8]| Part { end: Some(End(end.to_vec())), hash: Some([1; 12]), items: None };
    // Ranges that go backwards or do not move on are not looked at.
    let asked = Ranges { start: vec![200], parts: vec![part(&[100]), part(&[100])], want: vec![] };
    assert_eq!(answer(&map, &asked), Answer { ranges: None, entries: vec![] });
    // Hashes of the finest ranges at once do not multiply.
    let parts: Vec<Part> = (0..MAX_PARTS).map(|n| part(&(n as u16 + 1).to_be_bytes())).collect();
    let asked = Ranges { start: vec![], parts, want: vec![] };
    let reply = answer(&map, &asked).ranges.expect("all differ");
    assert!(reply.parts.len() <= MAX_PARTS);
    assert_eq!(wanted(&map, &vec![[7; 16]; MAX_WANT]), vec![]);
}

/// The ids by which negentropy knows what a map holds.
fn ids(map: &Map) -> BTreeMap<[u8; 32], Wide> {
    let versions = map.versions_from(&[]);
    versions
        .map(|(key, of)| (*blake3::hash(format!("{key:?}{of:?}").as_bytes()).as_bytes(), *key))
        .collect()
}

fn storage(map: &Map) -> NegentropyStorageVector {
    let mut storage = NegentropyStorageVector::new();
    for id in ids(map).into_keys() {
        storage.insert(0, Id::from_byte_array(id)).expect("not sealed");
    }
    storage.seal().expect("not sealed");
    storage
}

/// The keys of which negentropy finds the maps to differ.
fn by_negentropy(a: &Map, b: &Map) -> BTreeSet<Wide> {
    let (of_a, of_b) = (storage(a), storage(b));
    let mut client = Negentropy::borrowed(&of_a, 0).expect("no limit");
    let mut server = Negentropy::borrowed(&of_b, 0).expect("no limit");
    let (mut have, mut need) = (Vec::new(), Vec::new());
    let mut next = Some(client.initiate().expect("first"));
    while let Some(query) = next.take() {
        let reply = server.reconcile(&query).expect("well-formed");
        next = client.reconcile_with_ids(&reply, &mut have, &mut need).expect("well-formed");
    }
    let mut names = ids(a);
    names.extend(ids(b));
    have.iter().chain(&need).map(|id| names[&id.to_bytes()]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn both_hold_the_union_and_what_travelled_is_what_differed(
        common in vec(step(), 0..400), a in vec(step(), 0..40), b in vec(step(), 0..40),
    ) {
        let (mut a, mut b) = (map(&[common.clone(), a].concat()), map(&[common, b].concat()));
        let mut union = a.clone();
        union.merge(&b);
        let found = by_negentropy(&a, &b);
        let cost = reconcile(&mut a, &mut b);
        prop_assert_eq!(&a, &union);
        prop_assert_eq!(&b, &union);
        prop_assert_eq!(cost.keys, found);
    }

    #[test]
    fn whatever_is_asked_is_answered(
        start in vec(any::<u8>(), 0..4),
        parts in vec((vec(any::<u8>(), 0..4), any::<bool>(), any::<bool>(), vec(step(), 0..20)), 0..20),
        held in vec(step(), 0..100),
    ) {
        let parts = parts.into_iter().map(|(end, last, hashed, steps)| Part {
            end: (!last).then_some(End(end)),
            hash: hashed.then_some([9; 12]),
            items: (!hashed).then(|| Items(map(&steps).versions_from(&[]).map(|(key, of)| Item {
                prefix: prefix(key), added: of.added, removed: of.removed,
            }).collect())),
        }).collect();
        let map = map(&held);
        let Answer { ranges, .. } = answer(&map, &Ranges { start, parts, want: vec![] });
        prop_assert!(ranges.is_none_or(|ranges| ranges.parts.len() <= MAX_PARTS));
    }
}
