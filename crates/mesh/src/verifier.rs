use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use selvedge_model::MeshId;

use crate::roster::RosterEntry;
use crate::signed::{Raw, Signed, SignedError, Statement};

/// Checks signatures.
///
/// One that is shared remembers what held, and keeps one copy of each entry for all who use it.
/// That is for processes that run many nodes of one mesh, as a simulator does: it grows without
/// bound.
#[derive(Clone, Default)]
pub struct Verifier {
    shared: Option<Arc<Mutex<Known>>>,
}

#[derive(Default)]
struct Known {
    signed: BTreeSet<[u8; 32]>,
    entries: BTreeMap<[u8; 32], RosterEntry>,
    verdicts: BTreeMap<[u8; 32], Arc<[Raw]>>,
}

impl Verifier {
    /// One that all its copies share.
    #[must_use]
    pub fn shared() -> Self {
        Self { shared: Some(Arc::default()) }
    }

    /// Reads a statement and checks its signature.
    pub(crate) fn statement<T: Statement>(&self, raw: Raw) -> Result<Signed<T>, SignedError> {
        let Some(known) = &self.shared else { return Signed::verify(raw) };
        let key = key(T::CONTEXT, &raw);
        if lock(known).signed.contains(&key) {
            return Signed::trusted(raw);
        }
        let signed = Signed::verify(raw)?;
        lock(known).signed.insert(key);
        Ok(signed)
    }

    /// The same accusations, as one copy for all who hold them.
    pub(crate) fn accusations(&self, raws: Vec<Raw>) -> Arc<[Raw]> {
        let Some(known) = &self.shared else { return raws.into() };
        let mut hasher = blake3::Hasher::new_derive_key("selvedge 2026-11 known accusations");
        for raw in &raws {
            hasher.update(&raw.signature).update(&raw.bytes);
        }
        let key = *hasher.finalize().as_bytes();
        lock(known).verdicts.entry(key).or_insert_with(|| raws.into()).clone()
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
    use selvedge_model::NodeId;

    use super::*;
    use crate::identity::Identity;
    use crate::rumor::{Accusation, Alive};

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
        assert_ne!(identity.node_id(), NodeId([0; 32]));
    }
}
