//! The two-phase map that replicates the membership.
//!
//! A key has an *add* entry, a *remove* entry, or both, each stamped by a logical clock. The key
//! is in the map if its add stamp is not below its remove stamp. Of two add (or two remove)
//! entries of one key the one of the greater [`Version`] stays. Merging is therefore commutative,
//! associative and idempotent (a join semilattice), so that replicas which saw the same entries,
//! in any order and any number of times, hold the same state.
//! (Shapiro, Preguiça, Baquero, Zawirski: Conflict-free Replicated Data Types, SSS 2011.)

use std::collections::BTreeMap;
use std::ops::RangeBounds;

use minicbor::{Decode, Encode};

use crate::codec::fixed;

/// A key of the map.
pub trait Key: Ord + Clone {
    /// Bytes that are different for different keys.
    fn key_bytes(&self) -> &[u8];
}

/// What an entry holds.
pub trait Content {
    /// The stamp of the writer's logical clock.
    fn stamp(&self) -> u64;

    /// Decides between contents of equal stamps: 128 bits of a hash of everything the content
    /// consists of, too many for anyone to find two contents that have the same.
    fn tie(&self) -> [u8; 16];
}

/// Which of two entries is the newer: the greater stamp; of equal stamps the greater tie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Version {
    /// The stamp of the logical clock.
    #[n(0)]
    pub stamp: u64,
    /// Decides between equal stamps.
    #[cbor(n(1), with = "fixed")]
    pub tie: [u8; 16],
}

/// The versions of a key's two entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Versions {
    /// Of the add entry.
    pub added: Option<Version>,
    /// Of the remove entry.
    pub removed: Option<Version>,
}

/// An entry to merge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry<A, R> {
    /// The key was added.
    Add(A),
    /// The key was removed.
    Remove(R),
}

/// In short what a map holds. Equal maps have equal digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    /// A hash of all keys and versions.
    pub hash: [u8; 16],
    /// The number of keys, present or removed.
    pub count: u64,
}

/// A replicated map of keys `K`: add entries `A`, remove entries `R`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TwoPhaseMap<K, A, R> {
    slots: BTreeMap<K, Slot<A, R>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Slot<A, R> {
    added: Option<(Version, A)>,
    removed: Option<(Version, R)>,
}

impl<K: Key, A: Content, R: Content> TwoPhaseMap<K, A, R> {
    /// A map without entries.
    #[must_use]
    pub const fn new() -> Self {
        Self { slots: BTreeMap::new() }
    }

    /// Takes over an entry if it is newer than the one that is here. Says whether it did.
    pub fn merge_entry(&mut self, key: K, entry: Entry<A, R>) -> bool {
        let slot = self.slots.entry(key).or_default();
        match entry {
            Entry::Add(content) => replace_if_newer(&mut slot.added, content),
            Entry::Remove(content) => replace_if_newer(&mut slot.removed, content),
        }
    }

    /// Takes over all newer entries of another map.
    pub fn merge(&mut self, other: &Self)
    where
        A: Clone,
        R: Clone,
    {
        for (key, entry) in other.entries() {
            self.merge_entry(key.clone(), entry.cloned());
        }
    }

    /// The content of a key that is in the map.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&A> {
        self.slots.get(key).and_then(Slot::present)
    }

    /// The keys that are in the map, ascending, and their contents.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &A)> {
        self.slots.iter().filter_map(|(key, slot)| Some((key, slot.present()?)))
    }

    /// The add entry of a key, be the key in the map or removed.
    #[must_use]
    pub fn added(&self, key: &K) -> Option<&A> {
        Some(&self.slots.get(key)?.added.as_ref()?.1)
    }

    /// The remove entry of a key, be the key removed or added again.
    #[must_use]
    pub fn removed(&self, key: &K) -> Option<&R> {
        Some(&self.slots.get(key)?.removed.as_ref()?.1)
    }

    /// The greatest stamp of a key's entries; 0 if it has none.
    #[must_use]
    pub fn stamp(&self, key: &K) -> u64 {
        let versions = self.slots.get(key).map(Slot::versions).unwrap_or_default();
        let stamp = |version: Option<Version>| version.map_or(0, |version| version.stamp);
        stamp(versions.added).max(stamp(versions.removed))
    }

    /// The number of keys, present or removed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether the map has no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// All entries, by ascending key.
    pub fn entries(&self) -> impl Iterator<Item = (&K, Entry<&A, &R>)> {
        self.slots.iter().flat_map(|(key, slot)| slot.entries().map(move |entry| (key, entry)))
    }

    /// The entries of one key.
    pub fn entries_of(&self, key: &K) -> impl Iterator<Item = Entry<&A, &R>> {
        self.slots.get(key).into_iter().flat_map(Slot::entries)
    }

    /// The versions of all keys in a range, ascending.
    pub fn stamps(&self, range: impl RangeBounds<K>) -> impl Iterator<Item = (&K, Versions)> {
        self.slots.range(range).map(|(key, slot)| (key, slot.versions()))
    }

    /// The entries in a range that whoever holds just `theirs` in it lacks.
    pub fn delta<'a>(
        &'a self,
        theirs: &'a BTreeMap<K, Versions>,
        range: impl RangeBounds<K>,
    ) -> impl Iterator<Item = (&'a K, Entry<&'a A, &'a R>)> {
        self.slots.range(range).flat_map(|(key, slot)| {
            let theirs = theirs.get(key).copied().unwrap_or_default();
            slot.newer_than(theirs).map(move |entry| (key, entry))
        })
    }

    /// The keys of which whoever holds `theirs` has an entry that is newer than ours.
    pub fn lacking<'a>(&'a self, theirs: &'a BTreeMap<K, Versions>) -> impl Iterator<Item = &'a K> {
        theirs.iter().filter_map(|(key, theirs)| {
            let ours = self.slots.get(key).map(Slot::versions).unwrap_or_default();
            (theirs.added > ours.added || theirs.removed > ours.removed).then_some(key)
        })
    }

    /// In short what the map holds. Takes time proportional to the number of keys.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new_derive_key("selvedge 2026-11 two-phase map digest");
        for (key, slot) in &self.slots {
            let bytes = key.key_bytes();
            hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
            let versions = slot.versions();
            hash_version(&mut hasher, versions.added);
            hash_version(&mut hasher, versions.removed);
        }
        let mut hash = [0; 16];
        hash.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Digest { hash, count: self.slots.len() as u64 }
    }
}

impl<K: Key, A: Content, R: Content> Default for TwoPhaseMap<K, A, R> {
    fn default() -> Self {
        Self::new()
    }
}

impl<A: Clone, R: Clone> Entry<&A, &R> {
    /// The same entry, owned.
    #[must_use]
    pub fn cloned(&self) -> Entry<A, R> {
        match *self {
            Entry::Add(content) => Entry::Add(content.clone()),
            Entry::Remove(content) => Entry::Remove(content.clone()),
        }
    }
}

impl<A, R> Default for Slot<A, R> {
    fn default() -> Self {
        Self { added: None, removed: None }
    }
}

impl<A, R> Slot<A, R> {
    fn versions(&self) -> Versions {
        Versions {
            added: self.added.as_ref().map(|(version, _)| *version),
            removed: self.removed.as_ref().map(|(version, _)| *version),
        }
    }

    fn present(&self) -> Option<&A> {
        let (added, content) = self.added.as_ref()?;
        let removed = self.removed.as_ref().is_some_and(|(removed, _)| removed.stamp > added.stamp);
        (!removed).then_some(content)
    }

    fn entries(&self) -> impl Iterator<Item = Entry<&A, &R>> {
        self.newer_than(Versions::default())
    }

    fn newer_than(&self, theirs: Versions) -> impl Iterator<Item = Entry<&A, &R>> {
        let added = self.added.as_ref().filter(|(version, _)| Some(*version) > theirs.added);
        let removed = self.removed.as_ref().filter(|(version, _)| Some(*version) > theirs.removed);
        let added = added.map(|(_, content)| Entry::Add(content));
        let removed = removed.map(|(_, content)| Entry::Remove(content));
        added.into_iter().chain(removed)
    }
}

fn replace_if_newer<T: Content>(slot: &mut Option<(Version, T)>, content: T) -> bool {
    let version = Version { stamp: content.stamp(), tie: content.tie() };
    let newer = slot.as_ref().is_none_or(|(current, _)| version > *current);
    if newer {
        *slot = Some((version, content));
    }
    newer
}

fn hash_version(hasher: &mut blake3::Hasher, version: Option<Version>) {
    match version {
        Some(version) => {
            hasher.update(&[1]).update(&version.stamp.to_le_bytes()).update(&version.tie);
        }
        None => {
            hasher.update(&[0]);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Few keys, stamps and texts, so that collisions of all kinds are frequent.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Note {
        stamp: u64,
        text: u8,
    }

    impl Content for Note {
        fn stamp(&self) -> u64 {
            self.stamp
        }

        fn tie(&self) -> [u8; 16] {
            [self.text; 16]
        }
    }

    impl Key for [u8; 1] {
        fn key_bytes(&self) -> &[u8] {
            self
        }
    }

    type Map = TwoPhaseMap<[u8; 1], Note, Note>;
    type Step = ([u8; 1], Entry<Note, Note>);

    fn step() -> impl Strategy<Value = Step> {
        (0..4_u8, any::<bool>(), 0..4_u64, 0..3_u8).prop_map(|(key, add, stamp, text)| {
            let note = Note { stamp, text };
            ([key], if add { Entry::Add(note) } else { Entry::Remove(note) })
        })
    }

    fn map(steps: Vec<Step>) -> Map {
        let mut map = Map::new();
        for (key, entry) in steps {
            map.merge_entry(key, entry);
        }
        map
    }

    fn any_map() -> impl Strategy<Value = Map> {
        vec(step(), 0..12).prop_map(map)
    }

    fn merged(mut a: Map, b: &Map) -> Map {
        a.merge(b);
        a
    }

    fn stamps(map: &Map) -> BTreeMap<[u8; 1], Versions> {
        map.stamps(..).map(|(key, versions)| (*key, versions)).collect()
    }

    proptest! {
        #[test]
        fn merging_is_commutative(a in any_map(), b in any_map()) {
            prop_assert_eq!(merged(a.clone(), &b), merged(b, &a));
        }

        #[test]
        fn merging_is_associative(a in any_map(), b in any_map(), c in any_map()) {
            let left = merged(merged(a.clone(), &b), &c);
            prop_assert_eq!(left, merged(a, &merged(b, &c)));
        }

        #[test]
        fn merging_is_idempotent(a in any_map(), b in any_map()) {
            prop_assert_eq!(merged(a.clone(), &a), a.clone());
            let once = merged(a, &b);
            prop_assert_eq!(merged(once.clone(), &b), once);
        }

        #[test]
        fn order_and_repetition_do_not_count(
            (steps, shuffled) in vec(step(), 0..12).prop_flat_map(|steps| {
                let twice = [steps.clone(), steps.clone()].concat();
                (Just(steps), Just(twice).prop_shuffle())
            }),
        ) {
            prop_assert_eq!(map(steps), map(shuffled));
        }

        #[test]
        fn a_delta_equals_the_whole(a in any_map(), b in any_map()) {
            let mut by_delta = a.clone();
            let theirs = stamps(&a);
            for (key, entry) in b.delta(&theirs, ..) {
                prop_assert!(by_delta.merge_entry(*key, entry.cloned()), "{:?} is not new", entry);
            }
            prop_assert_eq!(by_delta, merged(a, &b));
        }

        #[test]
        fn what_is_lacking_equals_the_whole(a in any_map(), b in any_map()) {
            let mut asked = a.clone();
            let theirs = stamps(&b);
            for key in a.lacking(&theirs) {
                for entry in b.entries_of(key) {
                    asked.merge_entry(*key, entry.cloned());
                }
            }
            prop_assert_eq!(asked, merged(a, &b));
        }

        #[test]
        fn digests_tell_maps_apart(a in any_map(), b in any_map()) {
            prop_assert_eq!(a == b, a.digest() == b.digest());
        }

        #[test]
        fn presence_is_decided_by_the_stamps(steps in vec(step(), 0..12)) {
            let map = map(steps.clone());
            for key in (0..4).map(|key| [key]) {
                let greatest = |adds: bool| {
                    let of_key = steps.iter().filter(|(k, _)| *k == key);
                    of_key.filter_map(|(_, entry)| match entry {
                        Entry::Add(note) => adds.then_some(note.stamp),
                        Entry::Remove(note) => (!adds).then_some(note.stamp),
                    }).max()
                };
                let present = greatest(true).is_some() && greatest(true) >= greatest(false);
                prop_assert_eq!(map.get(&key).is_some(), present);
            }
        }
    }

    #[test]
    fn equal_stamps_are_decided_the_same_way_everywhere() {
        let entries = [1, 2].map(|text| Entry::Add(Note { stamp: 5, text }));
        let [first, second] = entries;
        let forwards = map(vec![([0], first.clone()), ([0], second.clone())]);
        let backwards = map(vec![([0], second), ([0], first)]);
        assert_eq!(forwards, backwards);
        assert_eq!(forwards.get(&[0]), Some(&Note { stamp: 5, text: 2 }));
    }

    #[test]
    fn quiet_keys_stay_syncable_after_removals() {
        // A removal with a great stamp says nothing about other keys with small ones.
        let removed = map(vec![([0], Entry::Remove(Note { stamp: 1000, text: 0 }))]);
        let quiet = map(vec![([1], Entry::Add(Note { stamp: 1, text: 0 }))]);
        let theirs = stamps(&removed);
        assert_eq!(quiet.delta(&theirs, ..).count(), 1);
        assert!(merged(removed, &quiet).get(&[1]).is_some());
    }
}
