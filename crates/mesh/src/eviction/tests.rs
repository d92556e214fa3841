use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::subsequence;
use selvedge_model::WgKey;

use super::*;
use crate::admission::Role;
use crate::crdt::Entry;
use crate::profile::Profile;
use crate::record::{Life, Record};
use crate::roster::{Roster, RosterEntry};
use crate::testing::identity;

/// The founder is 0; 1 and 2 may invite.
const FOUNDER: u32 = 0;

fn genesis() -> Genesis {
    Genesis { founder: identity(FOUNDER).node_id(), salt: [1; 16], name: "m".into() }
}

fn certificate(subject: u32, issuer: u32, pardons: u32, sponsor: Option<Raw>) -> Certificate {
    Certificate {
        mesh: genesis().mesh(),
        subject: identity(subject).node_id(),
        wg: WgKey([0; 32]),
        role: Role::Peer,
        prefixes: vec![],
        may_invite: issuer == FOUNDER,
        not_after: 2000,
        serial: 1,
        issuer: identity(issuer).node_id(),
        sponsor,
        pardons,
        guests: None,
    }
}

fn sign<T: Statement>(value: T, by: u32) -> Raw {
    Signed::sign(value, &identity(by)).expect("in bounds").raw().clone()
}

/// By which the founder lets a node invite.
fn sponsor(of: u32, pardons: u32) -> Option<Raw> {
    (of != FOUNDER).then(|| sign(certificate(of, FOUNDER, pardons, None), FOUNDER))
}

fn eviction(node: u32, by: u32, number: u32, sponsor_pardons: u32) -> Raw {
    let eviction = Eviction {
        mesh: genesis().mesh(),
        node: identity(node).node_id(),
        number,
        by: identity(by).node_id(),
        sponsor: sponsor(by, sponsor_pardons),
        issued: 5,
        count: 1,
    };
    sign(eviction, by)
}

fn record(node: u32, seq: u64, certificate: Raw) -> Raw {
    let record = Record {
        mesh: genesis().mesh(),
        node: identity(node).node_id(),
        seq,
        certificate,
        profile: Profile::default(),
        life: Life::default(),
    };
    sign(record, node)
}

fn verify(raw: Raw) -> Result<Evicted, RecordError> {
    Evicted::verify(raw, &genesis(), &Verifier::default())
}

fn claim(subject: u32, issuer: u32, pardons: u32, sponsor_pardons: u32) -> Claim {
    let (subject, issuer) = (identity(subject).node_id(), identity(issuer).node_id());
    let (serial, sponsor_serial, sponsor_guests) = (1, 1, 256);
    Claim { subject, issuer, pardons, serial, sponsor_pardons, sponsor_serial, sponsor_guests }
}

fn evictions(raws: &[Raw]) -> Evictions {
    let mut evictions = Evictions::new(identity(FOUNDER).node_id());
    for raw in raws {
        evictions.merge(verify(raw.clone()).expect("holds"));
    }
    evictions
}

#[test]
fn who_was_evicted_comes_back_by_its_evictors_later_word_alone() {
    let by_founder = evictions(&[eviction(7, FOUNDER, 3, 0)]);
    let bars = |evictions: &Evictions, claim| evictions.barring(&claim).is_some();
    assert!(
        bars(&by_founder, claim(7, FOUNDER, 0, 0)) && bars(&by_founder, claim(7, FOUNDER, 2, 0))
    );
    assert!(!bars(&by_founder, claim(7, FOUNDER, 3, 0)));
    assert!(bars(&by_founder, claim(7, 1, u32::MAX, 0)), "another cannot take it back");
    assert!(!bars(&by_founder, claim(8, FOUNDER, 0, 0)));
    let by_member = evictions(&[eviction(7, 1, 3, 0)]);
    assert!(bars(&by_member, claim(7, 1, 2, 0)) && !bars(&by_member, claim(7, 1, 3, 0)));
    let others = [claim(7, FOUNDER, 0, 0), claim(7, 2, 0, 0)];
    assert!(others.into_iter().all(|claim| !bars(&by_member, claim)), "whom others admitted");
}

#[test]
fn with_who_admitted_go_those_that_were_admitted() {
    let evictions = evictions(&[eviction(1, FOUNDER, 1, 0)]);
    assert!(evictions.barring(&claim(7, 1, 0, 0)).is_some());
    assert!(evictions.barring(&claim(7, 1, 9, 0)).is_some(), "whatever it may have signed");
    assert!(evictions.barring(&claim(7, 1, 0, 1)).is_none(), "admitted again, and admitting");
    assert!(evictions.barring(&claim(7, 2, 0, 0)).is_none());
}

#[test]
fn who_may_not_admit_may_not_evict() {
    let refused = |raw: Raw, what: &str| {
        let error = verify(raw).expect_err(what);
        assert!(matches!(error, RecordError::Certificate { .. }), "{what}: {error}");
    };
    let by = |by: u32, sponsor: Option<Raw>| {
        let read = Signed::<Eviction>::peek(&eviction(7, 1, 1, 0)).expect("well-formed");
        sign(Eviction { by: identity(by).node_id(), sponsor, ..read }, by)
    };
    refused(by(3, None), "a member without a certificate to show");
    refused(by(3, sponsor(1, 0)), "another's certificate");
    let plain = Certificate { may_invite: false, ..certificate(3, FOUNDER, 0, None) };
    refused(by(3, Some(sign(plain, FOUNDER))), "a plain member");
    let third = certificate(3, 1, 0, sponsor(1, 0));
    let third = sign(Certificate { may_invite: true, ..third }, 1);
    refused(by(3, Some(third)), "whom a member let invite");
    let own = sign(certificate(3, 3, 0, None), 3);
    refused(by(3, Some(own)), "its own word");
    refused(eviction(FOUNDER, 1, 1, 0), "the founder is not evicted");
    refused(eviction(FOUNDER, FOUNDER, 1, 0), "not even by itself");
}

#[test]
fn no_byte_of_an_eviction_can_be_changed() {
    let good = eviction(7, 1, 1, 0);
    verify(good.clone()).expect("holds");
    for at in 0..good.bytes.len() {
        let mut raw = good.clone();
        raw.bytes[at] ^= 1;
        assert!(verify(raw).is_err(), "byte {at}");
    }
    let other =
        Eviction { mesh: MeshId([9; 20]), ..verify(good).expect("holds").eviction().clone() };
    assert!(matches!(verify(sign(other, 1)), Err(RecordError::WrongMesh { .. })));
    let eviction = verify(eviction(7, 1, 1, 0)).expect("holds").eviction().clone();
    assert!(Signed::sign(Eviction { number: 0, ..eviction }, &identity(1)).is_err());
}

/// A member that may invite can sign as many as it likes.
#[test]
fn nobody_takes_the_room_of_anothers_evictions() {
    let mut full = Evictions { most: 3, ..evictions(&[eviction(9, FOUNDER, 1, 0)]) };
    let hear = |full: &mut Evictions, raw| full.merge(verify(raw).expect("holds"));
    let of = |full: &Evictions, by: u32| {
        full.iter().filter(|one| one.eviction().by == identity(by).node_id()).count()
    };
    assert!(hear(&mut full, eviction(7, 2, 1, 0)));
    for node in 10..20 {
        hear(&mut full, eviction(node, 1, 1, 0));
    }
    assert_eq!([of(&full, 1), of(&full, 2), of(&full, FOUNDER)], [3, 1, 1]);
    (20..26).for_each(|node| assert!(hear(&mut full, eviction(node, FOUNDER, 1, 0))));
    let held = full.iter().find(|one| one.eviction().by == identity(1).node_id());
    let held = held.expect("three of them").eviction().node;
    let new = identity(30).node_id();
    let by = identity(1).node_id();
    assert!(full.is_full(new, by) && !full.is_full(held, by));
    assert!(!full.is_full(new, identity(2).node_id()));
    assert!(hear(&mut full, eviction(1, FOUNDER, 1, 0)));
    assert_eq!(of(&full, 1), 0, "with its author goes all that it wrote");
    assert!(!hear(&mut full, eviction(8, 1, 5, 0)));
    assert!(hear(&mut full, eviction(8, 1, 1, 1)), "admitted again");
}

/// More than are held: of two members under two certificates each, and some that make them void.
fn many() -> &'static [Evicted] {
    static MANY: std::sync::OnceLock<Vec<Evicted>> = std::sync::OnceLock::new();
    MANY.get_or_init(|| {
        let of = |by| {
            (10..16).flat_map(move |node| {
                [(1, 0), (2, 0), (1, 1)]
                    .map(|(number, pardons)| eviction(node, by, number, pardons))
            })
        };
        let raws = of(1).chain(of(2)).chain([eviction(1, FOUNDER, 1, 0)]);
        raws.map(|raw| verify(raw).expect("holds")).collect()
    })
}

fn few<'a>(all: impl IntoIterator<Item = &'a Evicted>) -> Evictions {
    let mut held = Evictions { most: 3, ..evictions(&[]) };
    for evicted in all {
        held.merge(evicted.clone());
    }
    held
}

proptest! {
    /// What is held when there is more than is held depends on what was heard, and neither on its
    /// order nor on who dropped what on the way.
    #[test]
    fn what_is_held_of_too_many_does_not_depend_on_the_order(
        order in Just((0..many().len()).collect::<Vec<_>>()).prop_shuffle(),
        heard in 0..=many().len(), split in 0..=many().len(),
    ) {
        let heard: Vec<&Evicted> = order[..heard].iter().map(|at| &many()[*at]).collect();
        let mut sorted = heard.clone();
        sorted.sort_by_key(|evicted| evicted.id());
        let all = few(heard.iter().copied());
        prop_assert_eq!(&all, &few(sorted));
        let (left, right) = heard.split_at(split.min(heard.len()));
        let (left, right) = (few(left.iter().copied()), few(right.iter().copied()));
        prop_assert_eq!(&all, &few(left.iter().chain(right.iter())));
        prop_assert_eq!(&all, &few(right.iter().chain(left.iter())));
    }
}

/// One thing that a replica hears.
#[derive(Clone, Debug)]
enum Word {
    Record(Raw),
    Eviction(Raw),
}

/// Every eviction and every record of a small mesh whose members come back again and again.
fn words() -> Vec<Word> {
    let mut words = Vec::new();
    for number in 1..3 {
        words.extend([1, 7, 8].map(|node| Word::Eviction(eviction(node, FOUNDER, number, 0))));
        for pardons in 0..2 {
            words.push(Word::Eviction(eviction(7, 1, number, pardons)));
        }
        words.push(Word::Eviction(eviction(8, 2, number, 0)));
    }
    // Who comes back may count from one again, so that what it said before looks newer.
    let mut seq = 100;
    let mut said = |node: u32, certificate: Raw| {
        seq -= 1;
        Word::Record(record(node, seq, certificate))
    };
    for pardons in 0..3 {
        words.push(said(1, sponsor(1, pardons).expect("not the founder")));
        words.push(said(7, sign(certificate(7, FOUNDER, pardons, None), FOUNDER)));
        let by_member =
            Certificate { may_invite: false, ..certificate(8, 2, pardons, sponsor(2, 0)) };
        words.push(said(8, sign(by_member, 2)));
    }
    words
}

/// A replica, as far as what it hears makes it.
fn hear(roster: &mut Roster, word: &Word) {
    match word {
        Word::Eviction(raw) => {
            let evicted = roster.verify_eviction(raw.clone()).expect("holds");
            roster.evict(evicted, &NodeId([0; 32]));
        }
        Word::Record(raw) => {
            let (node, entry) = roster.verify_record(raw.clone()).expect("holds");
            if roster.barring(&entry).is_none() {
                roster.map.merge_entry(node, entry);
            }
        }
    }
}

fn replica<'a>(words: impl IntoIterator<Item = &'a Word>) -> Roster {
    let mut roster = Roster::new(genesis());
    words.into_iter().for_each(|word| hear(&mut roster, word));
    roster
}

/// What one replica sends another that has less.
fn exchange(from: &Roster, to: &mut Roster) {
    for evicted in from.evictions.iter() {
        hear(to, &Word::Eviction(evicted.raw().clone()));
    }
    for (_, entry) in from.map.entries() {
        if let Entry::Add(admitted) = entry {
            hear(to, &Word::Record(admitted.raw().clone()));
        }
    }
}

/// Two replicas when each has told the other what it holds.
fn agreed(mut one: Roster, mut other: Roster) -> (Roster, Roster) {
    for _ in 0..2 {
        let before = one.clone();
        exchange(&other, &mut one);
        exchange(&before, &mut other);
    }
    (one, other)
}

fn no_void_entry(roster: &Roster) -> bool {
    let entries = roster.map.entries().map(|(_, entry)| entry.cloned());
    let entries: Vec<RosterEntry> = entries.collect();
    entries.iter().all(|entry| roster.barring(entry).is_none())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Which evictions are held depends on nothing but which were ever heard.
    #[test]
    fn evictions_converge_in_any_order(
        some in subsequence(words(), 0..=words().len()),
        again in vec(any::<prop::sample::Index>(), 0..8),
        seed in any::<u64>(),
    ) {
        let one = replica(&some);
        let mut shuffled = some.clone();
        shuffled.extend(again.iter().filter(|_| !some.is_empty()).map(|at| at.get(&some).clone()));
        let order = |at: usize| blake3::hash(&[&seed.to_le_bytes()[..], &[at as u8]].concat());
        let mut order: Vec<_> = (0..shuffled.len()).map(|at| (*order(at).as_bytes(), at)).collect();
        order.sort_unstable();
        let other = replica(order.iter().map(|(_, at)| &shuffled[*at]));
        prop_assert_eq!(&one.evictions, &other.evictions);
        prop_assert!(no_void_entry(&one) && no_void_entry(&other));
        // A record that is void may have replaced one that is not: the other replica has it.
        let agreed = agreed(one, other);
        prop_assert_eq!(&agreed.0, &agreed.1);
    }

    /// Two sides of a partition agree when each has heard the other, and nobody who is evicted on
    /// either side is a member on any.
    #[test]
    fn partitions_agree_when_they_meet(
        left in subsequence(words(), 0..=words().len()),
        right in subsequence(words(), 0..=words().len()),
    ) {
        let (a, b) = agreed(replica(&left), replica(&right));
        prop_assert_eq!(&a, &b);
        prop_assert!(no_void_entry(&a));
        let all = replica(left.iter().chain(&right).filter(|word| matches!(word, Word::Eviction(_))));
        prop_assert_eq!(&a.evictions, &all.evictions);
    }
}

#[test]
fn a_void_removal_takes_no_valid_record_with_it() {
    use crate::record::Removal;
    let old = sign(certificate(7, FOUNDER, 0, None), FOUNDER);
    let removal = Removal {
        mesh: genesis().mesh(),
        node: identity(7).node_id(),
        seq: 2,
        certificate: old,
        life: Life::default(),
    };
    let mut roster = Roster::new(genesis());
    let (node, entry) = roster.verify_removal(sign(removal, 7)).expect("holds");
    roster.map.merge_entry(node, entry);
    hear(&mut roster, &Word::Record(record(7, 3, sign(certificate(7, FOUNDER, 1, None), FOUNDER))));
    hear(&mut roster, &Word::Eviction(eviction(7, FOUNDER, 1, 0)));
    assert!(roster.map.get(&node).is_some() && roster.map.removed(&node).is_none());
}
