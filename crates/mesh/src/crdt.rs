//! The two-phase map that replicates the membership.
//!
//! A key has an *add* entry, a *remove* entry, or both, each stamped by a logical clock. The key
//! is in the map if its add stamp is not below its remove stamp. Of two add (or two remove)
//! entries of one key the one of the greater [`Version`] stays. Merging is therefore commutative,
//! associative and idempotent (a join semilattice), so that replicas which saw the same entries,
//! in any order and any number of times, hold the same state.
//! (Shapiro, Preguiça, Baquero, Zawirski: Conflict-free Replicated Data Types, SSS 2011.)

use minicbor::{Decode, Encode};

use crate::codec::fixed;
use crate::tree::{Sum, Summed, Tree};

/// A key of the map.
pub trait Key: Ord + Clone {
    /// Bytes that are different for different keys, and ordered as they are.
    fn key_bytes(&self) -> &[u8];
}

/// What an entry holds.
pub trait Content {
    /// The stamp of the writer's logical clock.
    fn stamp(&self) -> u64;

    /// Decides between contents of equal stamps: 128 bits of a hash of everything the content
    /// consists of, too many for anyone to find two contents that have the same.
    fn tie(&self) -> [u8; 16];

    /// The last second of Unix time in which it is held; then all drop it.
    fn expiry(&self) -> u64;
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
///
/// Copies share what they have in common; a range's hash takes logarithmic time.
#[derive(Clone, Debug)]
pub struct TwoPhaseMap<K, A, R> {
    slots: Tree<K, Slot<A, R>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Slot<A, R> {
    added: Option<(Version, A)>,
    removed: Option<(Version, R)>,
}

impl<K: Key, A: Content + Clone, R: Content + Clone> TwoPhaseMap<K, A, R> {
    /// A map without entries.
    #[must_use]
    pub const fn new() -> Self {
        Self { slots: Tree::new() }
    }

    /// Takes over an entry if it is newer than the one that is here. Says whether it did.
    pub fn merge_entry(&mut self, key: K, entry: Entry<A, R>) -> bool {
        let mut slot = self.slots.get(&key).cloned().unwrap_or_default();
        let newer = match entry {
            Entry::Add(content) => replace_if_newer(&mut slot.added, content),
            Entry::Remove(content) => replace_if_newer(&mut slot.removed, content),
        };
        if newer {
            self.slots.insert(key, slot);
        }
        newer
    }

    /// Takes over all newer entries of another map.
    pub fn merge(&mut self, other: &Self) {
        for (key, entry) in other.entries() {
            self.merge_entry(key.clone(), entry.cloned());
        }
    }

    /// Drops what has expired before the second `now`, what `keep` has added aside, and returns
    /// it.
    pub fn expire(&mut self, now: u64, keep: &K) -> Vec<(K, Entry<A, R>)> {
        let keys: Vec<K> = self.slots.expired(now).into_iter().cloned().collect();
        let mut dropped = Vec::new();
        for key in keys {
            let mut slot = self.slots.get(&key).cloned().unwrap_or_default();
            let added = if key == *keep { None } else { take_expired(&mut slot.added, now) };
            let added = added.map(Entry::Add);
            let removed = take_expired(&mut slot.removed, now).map(Entry::Remove);
            self.put(key.clone(), slot);
            dropped.extend(added.into_iter().chain(removed).map(|entry| (key.clone(), entry)));
        }
        dropped
    }

    /// Drops those entries that are `void`, what `keep` has added aside, here alone: they come back
    /// if others still hold them.
    pub fn drop_void(&mut self, keep: &K, void: impl Fn(Entry<&A, &R>) -> bool) {
        let added = |key: &K, slot: &Slot<A, R>| {
            key != keep && slot.added.as_ref().is_some_and(|(_, it)| void(Entry::Add(it)))
        };
        let removed = |slot: &Slot<A, R>| {
            slot.removed.as_ref().is_some_and(|(_, it)| void(Entry::Remove(it)))
        };
        let affected = self.slots.iter().filter(|(key, slot)| added(key, slot) || removed(slot));
        let keys: Vec<K> = affected.map(|(key, _)| key.clone()).collect();
        for key in keys {
            let mut slot = self.slots.get(&key).cloned().unwrap_or_default();
            slot.added.take_if(|(_, content)| key != *keep && void(Entry::Add(content)));
            slot.removed.take_if(|(_, content)| void(Entry::Remove(content)));
            self.put(key, slot);
        }
    }

    /// Drops what is held of a key, here alone: it comes back if others still hold it.
    pub fn forget(&mut self, key: &K) {
        self.slots.remove(key);
    }

    fn put(&mut self, key: K, slot: Slot<A, R>) {
        match slot.added.is_some() || slot.removed.is_some() {
            true => self.slots.insert(key, slot),
            false => self.slots.remove(&key),
        }
    }

    /// The first second after which something has expired.
    #[must_use]
    pub fn expiry(&self) -> u64 {
        self.slots.expiry()
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
        usize::try_from(self.slots.sum().count).unwrap_or(usize::MAX)
    }

    /// Whether the map has no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The key of a rank among all keys, present or removed, and its content if it is present.
    #[must_use]
    pub fn nth(&self, rank: usize) -> Option<(&K, Option<&A>)> {
        self.slots.nth(rank as u64).map(|(key, slot)| (key, slot.present()))
    }

    /// The keys that are in the map from `start` on, ascending, and their contents.
    pub fn iter_from<'a>(
        &'a self,
        start: &[u8],
    ) -> impl Iterator<Item = (&'a K, &'a A)> + use<'a, K, A, R> {
        let slots = self.slots.iter_from(|key| key.key_bytes() < start);
        slots.filter_map(|(key, slot)| Some((key, slot.present()?)))
    }

    /// All entries, by ascending key.
    pub fn entries(&self) -> impl Iterator<Item = (&K, Entry<&A, &R>)> {
        self.slots.iter().flat_map(|(key, slot)| slot.entries().map(move |entry| (key, entry)))
    }

    /// The entries of one key.
    pub fn entries_of(&self, key: &K) -> impl Iterator<Item = Entry<&A, &R>> {
        self.slots.get(key).into_iter().flat_map(Slot::entries)
    }

    /// All keys, present or removed, that begin so, ascending.
    pub fn keys_beginning<'a>(&'a self, prefix: &'a [u8]) -> impl Iterator<Item = &'a K> {
        let keys = self.versions_from(prefix).map(|(key, _)| key);
        keys.take_while(move |key| key.key_bytes().starts_with(prefix))
    }

    /// The entries of one key that whoever holds `theirs` of it lacks.
    pub fn newer_than(&self, key: &K, theirs: Versions) -> impl Iterator<Item = Entry<&A, &R>> {
        self.slots.get(key).into_iter().flat_map(move |slot| slot.newer_than(theirs))
    }

    /// The versions of all keys, present or removed, from `start` on, ascending.
    pub fn versions_from<'a>(
        &'a self,
        start: &[u8],
    ) -> impl Iterator<Item = (&'a K, Versions)> + use<'a, K, A, R> {
        let slots = self.slots.iter_from(|key| key.key_bytes() < start);
        slots.map(|(key, slot)| (key, slot.versions()))
    }

    /// Whether one is a copy of the other, and neither was changed since.
    #[cfg(test)]
    pub(crate) fn is_copy_of(&self, other: &Self) -> bool {
        self.slots.is_copy_of(&other.slots)
    }

    /// In short what the map holds.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(self.slots.sum())
    }

    /// In short what the map holds of the keys from `start` to below `end`, to the last if there
    /// is none. Takes time proportional to the logarithm of the number of keys.
    #[must_use]
    pub fn digest_of(&self, start: &[u8], end: Option<&[u8]>) -> Digest {
        let before = self.slots.sum_where(|key| key.key_bytes() < start);
        let through = match end {
            Some(end) => self.slots.sum_where(|key| key.key_bytes() < end),
            None => self.slots.sum(),
        };
        Digest::of(through.minus(before))
    }

    /// The number of keys, present or removed, below `bound`.
    #[must_use]
    pub fn rank(&self, bound: &[u8]) -> usize {
        let below = self.slots.sum_where(|key| key.key_bytes() < bound);
        usize::try_from(below.count).unwrap_or(usize::MAX)
    }
}

impl Digest {
    fn of(sum: Sum) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("selvedge 2026-11 range digest");
        hasher.update(&sum.count.to_le_bytes());
        for part in sum.hash {
            hasher.update(&part.to_le_bytes());
        }
        let mut hash = [0; 16];
        hash.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self { hash, count: sum.count }
    }
}

impl<K: Key, A: Content, R: Content> Summed<K> for Slot<A, R> {
    fn hash(&self, key: &K) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("selvedge 2026-11 two-phase map item");
        let bytes = key.key_bytes();
        hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        let versions = self.versions();
        hash_version(&mut hasher, versions.added);
        hash_version(&mut hasher, versions.removed);
        *hasher.finalize().as_bytes()
    }

    fn expiry(&self) -> u64 {
        let added = self.added.as_ref().map_or(u64::MAX, |(_, content)| content.expiry());
        let removed = self.removed.as_ref().map_or(u64::MAX, |(_, content)| content.expiry());
        added.min(removed)
    }
}

impl<K, A, R> PartialEq for TwoPhaseMap<K, A, R>
where
    K: PartialEq,
    A: PartialEq,
    R: PartialEq,
{
    fn eq(&self, other: &Self) -> bool {
        self.slots.iter().eq(other.slots.iter())
    }
}

impl<K: Eq, A: Eq, R: Eq> Eq for TwoPhaseMap<K, A, R> {}

impl<K: Key, A: Content + Clone, R: Content + Clone> Default for TwoPhaseMap<K, A, R> {
    fn default() -> Self {
        Self::new()
    }
}

impl<A, R> Entry<A, R> {
    /// A view of the same entry.
    pub const fn as_ref(&self) -> Entry<&A, &R> {
        match self {
            Self::Add(content) => Entry::Add(content),
            Self::Remove(content) => Entry::Remove(content),
        }
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

fn take_expired<T: Content>(slot: &mut Option<(Version, T)>, now: u64) -> Option<T> {
    slot.take_if(|(_, content)| content.expiry() < now).map(|(_, content)| content)
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

        fn expiry(&self) -> u64 {
            self.stamp
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
        fn digests_tell_maps_apart(a in any_map(), b in any_map()) {
            prop_assert_eq!(a == b, a.digest() == b.digest());
        }

        #[test]
        fn what_expired_is_dropped_and_nothing_else(steps in vec(step(), 0..12), now in 0..6_u64) {
            let whole = map(steps);
            let mut rest = whole.clone();
            let dropped = rest.expire(now, &[0]);
            for (key, entry) in whole.entries() {
                let (Entry::Add(note) | Entry::Remove(note)) = entry;
                let kept = *key == [0] && matches!(entry, Entry::Add(_));
                let gone = note.stamp < now && !kept;
                let found = dropped.contains(&(*key, entry.cloned()));
                prop_assert_eq!(found, gone);
                prop_assert_eq!(rest.entries_of(key).any(|kept| kept == entry), !gone);
            }
            prop_assert_eq!(whole.entries().count(), rest.entries().count() + dropped.len());
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
        assert!(merged(removed, &quiet).get(&[1]).is_some());
    }
}
