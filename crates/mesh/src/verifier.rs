use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use selvedge_model::{MeshId, NodeId};

use crate::crdt::{Content, Digest, TwoPhaseMap};
use crate::lives::Verdicts;
use crate::record::{Admitted, Removed};
use crate::roster::RosterEntry;
use crate::rumor::{Alive, Verdict};
use crate::signed::{Raw, Signed, SignedError, Statement};

/// Checks signatures.
///
/// One that is shared remembers what held, and keeps one copy of each thing for all who use it.
/// That is for processes that run many nodes of one mesh, as a simulator does: it grows without
/// bound.
#[derive(Clone, Default)]
pub struct Verifier {
    shared: Option<Arc<Mutex<Known>>>,
}

/// What held, by the beginning of its signature, or of the first of them.
#[derive(Default)]
struct Known {
    statements: BTreeMap<u128, (&'static [u8], Raw)>,
    alive: BTreeMap<u128, Arc<Signed<Alive>>>,
    verdicts: BTreeMap<u128, Verdict>,
    entries: BTreeMap<[u8; 32], RosterEntry>,
    rosters: Copies<Admitted, Removed>,
    convictions: Copies<Verdict, crate::lives::Never>,
    sparing: bool,
}

/// The last few maps that anybody came to hold.
struct Copies<A, R> {
    maps: BTreeMap<[u8; 16], TwoPhaseMap<NodeId, A, R>>,
    order: VecDeque<[u8; 16]>,
}

/// So many of each kind.
const MAX_COPIES: usize = 256;

impl Verifier {
    /// One that all its copies share.
    #[must_use]
    pub fn shared() -> Self {
        Self { shared: Some(Arc::default()) }
    }

    /// The same, for thousands: verdicts against the same nodes become one copy, too, whoever bore
    /// them out, as long as nobody is evicted.
    #[must_use]
    pub fn sparing() -> Self {
        let known = Known { sparing: true, ..Known::default() };
        Self { shared: Some(Arc::new(Mutex::new(known))) }
    }

    /// Reads a statement and checks its signature.
    pub(crate) fn statement<T: Statement>(&self, raw: Raw) -> Result<Signed<T>, SignedError> {
        let Some(known) = &self.shared else { return Signed::verify(raw) };
        let held = |held: &(&[u8], Raw)| held.0 == T::CONTEXT && held.1 == raw;
        if lock(known).statements.get(&mark(&raw)).is_some_and(held) {
            return Signed::trusted(raw);
        }
        let signed = Signed::verify(raw)?;
        let raw = signed.raw().clone();
        lock(known).statements.insert(mark(&raw), (T::CONTEXT, raw));
        Ok(signed)
    }

    /// Reads a sign of life and checks its signature.
    pub(crate) fn alive(&self, raw: &Raw) -> Result<Arc<Signed<Alive>>, SignedError> {
        let known = self.shared.as_ref();
        let held = known.and_then(|known| lock(known).alive.get(&mark(raw)).cloned());
        if let Some(held) = held.filter(|held| held.raw() == raw) {
            return Ok(held);
        }
        let signed = Arc::new(Signed::verify(raw.clone())?);
        known.map(|known| lock(known).alive.insert(mark(raw), signed.clone()));
        Ok(signed)
    }

    /// The verdict that these accusations are, if somebody has found so before.
    pub(crate) fn verdict(&self, accusations: &[Raw]) -> Option<Verdict> {
        let (known, first) = (self.shared.as_ref()?, accusations.first()?);
        let held = lock(known).verdicts.get(&mark(first)).cloned();
        held.filter(|held| held.accusations() == accusations)
    }

    /// The same verdict, as one copy for all who hold it.
    pub(crate) fn one_verdict(&self, verdict: Verdict) -> Verdict {
        if let Some(held) = self.verdict(verdict.accusations()) {
            return held;
        }
        if let (Some(known), Some(first)) = (&self.shared, verdict.accusations().first()) {
            lock(known).verdicts.insert(mark(first), verdict.clone());
        }
        verdict
    }

    /// The entry of a mesh that `raw` is, or what `verify` finds it to be.
    pub(crate) fn entry<E>(
        &self,
        mesh: MeshId,
        raw: Raw,
        verify: impl FnOnce(Raw) -> Result<RosterEntry, E>,
    ) -> Result<RosterEntry, E> {
        let Some(known) = &self.shared else { return verify(raw) };
        let key = key(mesh.as_bytes(), &raw);
        if let Some(entry) = lock(known).entries.get(&key) {
            return Ok(entry.clone());
        }
        let entry = verify(raw)?;
        lock(known).entries.insert(key, entry.clone());
        Ok(entry)
    }

    /// Makes a roster the one copy of all who hold the same.
    pub(crate) fn share_roster(&self, map: &mut TwoPhaseMap<NodeId, Admitted, Removed>) {
        if let Some(known) = &self.shared {
            lock(known).rosters.share(map);
        }
    }

    /// Makes verdicts the one copy of all who hold the same.
    pub(crate) fn share_verdicts(&self, map: &mut Verdicts) {
        if let Some(known) = &self.shared {
            let mut known = lock(known);
            if known.sparing {
                known.convictions.share(map);
            }
        }
    }
}

impl<A: Content + Clone, R: Content + Clone> Copies<A, R> {
    fn share(&mut self, map: &mut TwoPhaseMap<NodeId, A, R>) {
        let Digest { hash, .. } = map.digest();
        if let Some(held) = self.maps.get(&hash) {
            *map = held.clone();
            return;
        }
        self.maps.insert(hash, map.clone());
        self.order.push_back(hash);
        if self.order.len() > MAX_COPIES {
            self.order.pop_front().map(|oldest| self.maps.remove(&oldest));
        }
    }
}

impl<A, R> Default for Copies<A, R> {
    fn default() -> Self {
        Self { maps: BTreeMap::new(), order: VecDeque::new() }
    }
}

/// The beginning of a signature.
fn mark(raw: &Raw) -> u128 {
    raw.signature.first_chunk().map_or(0, |first| u128::from_be_bytes(*first))
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    // Nothing that holds the lock can leave a half-made entry.
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

fn key(context: &[u8], raw: &Raw) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("selvedge 2026-11 known to verify");
    hasher.update(&(context.len() as u64).to_le_bytes()).update(context);
    hasher.update(&raw.signature).update(&raw.bytes);
    *hasher.finalize().as_bytes()
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("shared", &self.shared.is_some()).finish()
    }
}

/// How signatures are checked makes no state another.
impl PartialEq for Verifier {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Verifier {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;
    use crate::rumor::Accusation;
    use crate::testing;

    #[test]
    fn what_is_remembered_is_what_held() {
        let identity = Identity::from_secret(&[1; 32]);
        let good = Alive::sign(MeshId([1; 20]), 3, &identity).raw().clone();
        let mut forged = good.clone();
        forged.signature[0] ^= 1;
        let verifier = Verifier::shared();
        for _ in 0..2 {
            let read = verifier.statement::<Alive>(good.clone()).expect("holds");
            assert_eq!(read.value().incarnation, 3);
            assert!(verifier.statement::<Alive>(forged.clone()).is_err());
            assert!(verifier.statement::<Accusation>(good.clone()).is_err(), "another kind");
        }
    }

    /// Also what begins as something that held.
    #[test]
    fn what_did_not_hold_is_not_remembered() {
        let (mesh, verifier) = (MeshId([1; 20]), Verifier::shared());
        let target = testing::identity(9).node_id();
        let word = |by| Accusation::sign(mesh, target, 0, &testing::identity(by));
        let accusations = [word(1), word(2)].map(|word| word.raw().clone());
        let alive = Alive::sign(mesh, 1, &testing::identity(9)).raw().clone();
        let verdict = |raws: &[Raw]| Verdict::verify(raws, mesh, |_| true, &verifier);
        for _ in 0..2 {
            assert!(verdict(&accusations).is_ok() && verifier.alive(&alive).is_ok());
            for place in [20, 63] {
                let (mut words, mut life) = (accusations.clone(), alive.clone());
                words[place % 2].signature[place] ^= 1;
                life.signature[place] ^= 1;
                assert!(verdict(&words).is_err() && verifier.alive(&life).is_err());
            }
        }
        let other = Verdict::verify(&accusations, MeshId([2; 20]), |_| true, &verifier);
        assert!(other.is_err(), "of another mesh");
        let stranger = Verdict::verify(&accusations, mesh, |node| node == target, &verifier);
        assert!(stranger.is_err(), "by who is no member here");
    }

    #[test]
    fn equal_maps_become_one_copy_and_the_oldest_is_forgotten() {
        let (verifier, whole) = (Verifier::shared(), testing::roster(9).map);
        let held = |map: &TwoPhaseMap<_, _, _>| {
            let known = lock(verifier.shared.as_ref().expect("it is shared"));
            known.rosters.maps.get(&map.digest().hash).is_some_and(|held| held.is_copy_of(map))
        };
        let (mut one, mut other) = (whole.clone(), testing::roster(9).map);
        assert!(one == other && !one.is_copy_of(&other));
        verifier.share_roster(&mut one);
        verifier.share_roster(&mut other);
        assert!(one.is_copy_of(&other) && held(&whole));
        other.forget(&testing::identity(3).node_id());
        verifier.share_roster(&mut other);
        assert!(held(&other) && one.len() == 9, "what is changed is another");
        let count = u32::try_from(MAX_COPIES).expect("a small number");
        let mut others = testing::roster(count).map;
        for number in 0..count {
            verifier.share_roster(&mut others);
            others.forget(&testing::identity(number).node_id());
        }
        assert!(!held(&whole));
    }
}
