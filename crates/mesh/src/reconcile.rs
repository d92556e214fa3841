//! Finding out what two replicas do not have in common.
//!
//! One side states a hash of each of a few ranges of keys. The other answers with hashes of the
//! parts of those ranges in which it holds something else, and with the versions themselves where
//! few are left; from these the first side knows what to send and what to ask for. So equal
//! replicas need one hash, and d differences among n keys need about d log n.
//! (Meyer: Range-based set reconciliation, SRDS 2023.)
//!
//! Nothing is kept between two messages: each is answered from what it says and from the map, so
//! that losses and repetitions do no harm, and a state that changes meanwhile neither.

use std::collections::BTreeMap;

use minicbor::{Decode, Encode};

use crate::codec::{self, fixed, fixed_list, optional};
use crate::crdt::{Content, Digest, Entry, Key, TwoPhaseMap, Version, Versions};

/// Into so many parts a range is divided.
const BRANCHES: usize = 16;
/// The versions of so few keys are listed.
const FEW: u64 = 12;
/// The greatest number of parts in one message.
pub const MAX_PARTS: usize = 512;
/// The greatest number of items in one part.
pub const MAX_ITEMS: usize = 64;
/// The greatest number of keys that one message asks for.
pub const MAX_WANT: usize = 4096;
/// The first bytes of a key, too many for anyone to find two keys that begin alike; the whole
/// key, and zeros, if it is shorter.
pub type Prefix = [u8; 16];

/// The beginning of a range's hash: as much as makes it hopeless to meet another's by chance, and
/// pointless to aim at one, for whoever does hides its own entries alone.
pub type Hash = [u8; 12];

/// What one side holds of some ranges that follow each other, and what it asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Ranges {
    /// Where the first range begins: keys below it, by their bytes, are not in it.
    #[cbor(n(0), encode_with = "minicbor::bytes::encode", decode_with = "codec::bytes::<32, _>")]
    #[cbor(default)]
    pub start: Vec<u8>,
    /// The ranges.
    #[cbor(n(1), decode_with = "codec::list::<MAX_PARTS, _, _>", default)]
    pub parts: Vec<Part>,
    /// The entries of all keys that begin so are asked for.
    #[cbor(n(2), encode_with = "fixed_list::encode")]
    #[cbor(decode_with = "fixed_list::decode::<MAX_WANT, _, _>", default)]
    pub want: Vec<Prefix>,
}

/// One range. If it has neither hash nor items, it is of no interest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Part {
    /// Where it ends: this key is not in it. With the last key if absent.
    #[n(0)]
    pub end: Option<End>,
    /// A hash of what is held of it.
    #[cbor(n(1), with = "optional", has_nil)]
    pub hash: Option<Hash>,
    /// All that is held of it.
    #[n(2)]
    pub items: Option<Items>,
}

/// Where a range ends.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(transparent)]
pub struct End(
    #[cbor(n(0), encode_with = "minicbor::bytes::encode", decode_with = "codec::bytes::<32, _>")]
    pub Vec<u8>,
);

/// All that is held of a range.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(transparent)]
pub struct Items(#[cbor(n(0), decode_with = "codec::list::<MAX_ITEMS, _, _>")] pub Vec<Item>);

/// What is held of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Item {
    /// How the key begins.
    #[cbor(n(0), with = "fixed")]
    pub prefix: Prefix,
    /// The version of its add entry.
    #[n(1)]
    pub added: Option<Version>,
    /// The version of its remove entry.
    #[n(2)]
    pub removed: Option<Version>,
}

/// What to answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer<K, A, R> {
    /// What is not clear yet, and what to ask for; `None` if there is nothing of either.
    pub ranges: Option<Ranges>,
    /// What the other side lacks.
    pub entries: Vec<(K, Entry<A, R>)>,
}

impl Ranges {
    /// Says in one hash what a map holds.
    #[must_use]
    pub fn whole(digest: &Digest) -> Self {
        let part = Part { end: None, hash: Some(shortened(digest)), items: None };
        Self { start: Vec::new(), parts: vec![part], want: Vec::new() }
    }
}

impl Item {
    const fn versions(&self) -> Versions {
        Versions { added: self.added, removed: self.removed }
    }
}

/// How a key begins.
pub fn prefix<K: Key>(key: &K) -> Prefix {
    let mut prefix = Prefix::default();
    let bytes = key.key_bytes();
    let len = bytes.len().min(prefix.len());
    prefix[..len].copy_from_slice(&bytes[..len]);
    prefix
}

/// What to answer to `asked`. What is asked for by key is not in it: see [`wanted`].
pub fn answer<K, A, R>(map: &TwoPhaseMap<K, A, R>, asked: &Ranges) -> Answer<K, A, R>
where
    K: Key,
    A: Content + Clone,
    R: Content + Clone,
{
    let mut reply = Reply { map, out: Ranges::default(), entries: Vec::new(), open: false };
    let mut start = &asked.start[..];
    for part in &asked.parts {
        let end = part.end.as_ref().map(|end| &end.0[..]);
        if end.is_some_and(|end| end <= start) {
            break;
        }
        if reply.out.parts.len() + BRANCHES >= MAX_PARTS {
            // The rest in one hash, for the next round.
            reply.claim(start, None);
            break;
        }
        reply.consider(start, end, part);
        match end {
            Some(end) => start = end,
            None => break,
        }
    }
    reply.finish(&asked.start)
}

/// The entries of the keys that are asked for.
pub fn wanted<K, A, R>(map: &TwoPhaseMap<K, A, R>, want: &[Prefix]) -> Vec<(K, Entry<A, R>)>
where
    K: Key,
    A: Content + Clone,
    R: Content + Clone,
{
    let prefixes: std::collections::BTreeSet<&Prefix> = want.iter().collect();
    let keys = prefixes.into_iter().flat_map(|start| {
        let from = map.versions_from(trimmed(start)).map(|(key, _)| key);
        from.take(1).filter(|key| prefix(*key) == *start)
    });
    let entries = keys.flat_map(|key| map.entries_of(key).map(move |entry| (key, entry)));
    entries.map(|(key, entry)| (key.clone(), entry.cloned())).collect()
}

fn shortened(digest: &Digest) -> Hash {
    digest.hash.first_chunk().copied().unwrap_or_default()
}

/// Without the zeros that a short key was filled up with.
fn trimmed(prefix: &Prefix) -> &[u8] {
    let len = prefix.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    &prefix[..len]
}

struct Reply<'a, K, A, R> {
    map: &'a TwoPhaseMap<K, A, R>,
    out: Ranges,
    entries: Vec<(K, Entry<A, R>)>,
    /// Whether any part of the reply needs an answer.
    open: bool,
}

impl<'a, K: Key, A: Content + Clone, R: Content + Clone> Reply<'a, K, A, R> {
    /// Answers to one part.
    fn consider(&mut self, start: &[u8], end: Option<&[u8]>, part: &Part) {
        if let Some(theirs) = &part.items {
            self.compare(start, end, &theirs.0);
            return self.skip(end);
        }
        let ours = self.map.digest_of(start, end);
        match part.hash {
            Some(hash) if hash == shortened(&ours) => self.skip(end),
            Some(_) if ours.count <= FEW => self.list(start, end),
            Some(_) => self.divide(start, end, ours.count),
            None => self.skip(end),
        }
    }

    fn push(&mut self, end: Option<&[u8]>, hash: Option<Hash>, items: Option<Items>) {
        self.open |= hash.is_some() || items.is_some();
        let end = end.map(|end| End(end.to_vec()));
        self.out.parts.push(Part { end, hash, items });
    }

    /// Passes over a range. Two of them that follow each other are one.
    fn skip(&mut self, end: Option<&[u8]>) {
        if let Some(last) = self.out.parts.last_mut()
            && last.hash.is_none()
            && last.items.is_none()
        {
            last.end = end.map(|end| End(end.to_vec()));
            return;
        }
        self.push(end, None, None);
    }

    /// States the hash of a range.
    fn claim(&mut self, start: &[u8], end: Option<&[u8]>) {
        let hash = shortened(&self.map.digest_of(start, end));
        self.push(end, Some(hash), None);
    }

    fn list(&mut self, start: &[u8], end: Option<&[u8]>) {
        let items = self.within(start, end).map(|(key, of)| Item {
            prefix: prefix(key),
            added: of.added,
            removed: of.removed,
        });
        let items = Items(items.collect());
        self.push(end, None, Some(items));
    }

    /// States the hashes of parts of equal numbers of keys.
    fn divide(&mut self, start: &[u8], end: Option<&[u8]>, count: u64) {
        let first = self.map.rank(start);
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let branches = BRANCHES.min(count);
        let mut from = start.to_vec();
        for branch in 1..branches {
            let bound = self.bound_before(first + branch * count / branches);
            self.claim(&from, Some(&bound));
            from = bound;
        }
        self.claim(&from, end);
    }

    /// The shortest bound between the key of a rank and the key before it.
    fn bound_before(&self, rank: usize) -> Vec<u8> {
        let key = |rank| self.map.nth(rank).map_or(&[][..], |(key, _)| key.key_bytes());
        let (before, after) = (key(rank.saturating_sub(1)), key(rank));
        let common = before.iter().zip(after).take_while(|(a, b)| a == b).count();
        after[..(common + 1).min(after.len())].to_vec()
    }

    fn within(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
    ) -> impl Iterator<Item = (&'a K, Versions)> + use<'a, K, A, R> {
        let end = end.map(<[u8]>::to_vec);
        let below = move |key: &K| end.as_ref().is_none_or(|end| key.key_bytes() < &end[..]);
        self.map.versions_from(start).take_while(move |(key, _)| below(key))
    }

    /// Finds out what they lack and what we lack of a range of which they have listed all.
    fn compare(&mut self, start: &[u8], end: Option<&[u8]>, theirs: &[Item]) {
        let of_theirs = theirs.iter().map(|item| (item.prefix, item.versions()));
        let of_theirs: BTreeMap<Prefix, Versions> = of_theirs.collect();
        let mut of_ours = BTreeMap::new();
        for (key, held) in self.within(start, end) {
            let known = of_theirs.get(&prefix(key)).copied().unwrap_or_default();
            let lacking = self.map.newer_than(key, known);
            self.entries.extend(lacking.map(|entry| (key.clone(), entry.cloned())));
            of_ours.insert(prefix(key), held);
        }
        for (prefix, theirs) in of_theirs {
            let held = of_ours.get(&prefix).copied().unwrap_or_default();
            let lacks = theirs.added > held.added || theirs.removed > held.removed;
            if lacks && self.out.want.len() < MAX_WANT {
                self.out.want.push(prefix);
            }
        }
    }

    fn finish(mut self, start: &[u8]) -> Answer<K, A, R> {
        if !self.open {
            self.out.parts.clear();
        }
        self.out.start = if self.open { start.to_vec() } else { Vec::new() };
        let silent = self.out.parts.is_empty() && self.out.want.is_empty();
        let ranges = (!silent).then_some(self.out);
        Answer { ranges, entries: self.entries }
    }
}

#[cfg(test)]
mod tests;
