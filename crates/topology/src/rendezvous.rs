//! Rendezvous hashing: everybody who knows of the same candidates chooses the same one for the
//! same key, different keys spread evenly, and when a candidate goes, only its share moves.

/// The candidate of the greatest weight for `key`. The weights follow from the names alone.
pub(crate) fn choose<T>(
    key: &[&[u8]],
    mut candidates: Vec<T>,
    name: impl Fn(&T) -> Vec<u8>,
) -> Option<T> {
    if candidates.len() < 2 {
        return candidates.pop();
    }
    let mut keyed = blake3::Hasher::new_derive_key("selvedge 2026-11 choice of an exit");
    for part in key {
        keyed.update(part);
    }
    let weight = |candidate: &T| *keyed.clone().update(&name(candidate)).finalize().as_bytes();
    candidates.into_iter().max_by_key(weight)
}
