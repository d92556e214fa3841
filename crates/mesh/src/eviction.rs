//! Putting a member out of the mesh.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use minicbor::{Decode, Encode};
use selvedge_model::{MeshId, NodeId};

use crate::admission::{Certificate, CertificateError, Genesis};
use crate::codec::{self, fixed};
use crate::crdt::{Content, Digest, Entry, Key, TwoPhaseMap};
use crate::lives::Never;
use crate::record::{RecordError, tie};
use crate::signed::{Raw, Signed, Statement};
use crate::time::UnixTime;
use crate::verifier::Verifier;

/// So many evictions by each member that may invite are held, so that none takes the room of
/// another's; those of the founder always find room.
pub(crate) const MAX_DELEGATED: usize = 1024;

/// Takes back the certificates that one node has issued to another, all of them up to one that
/// takes back the eviction ([`Certificate::pardons`]). With a certificate go those that its subject
/// issued under it. Whom the founder evicts, the founder alone admits again.
///
/// It is kept for as long as the mesh is: nobody knows of all certificates that it takes back.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Eviction {
    /// The mesh.
    #[cbor(n(0), with = "fixed")]
    pub mesh: MeshId,
    /// The node that is evicted.
    #[cbor(n(1), with = "fixed")]
    pub node: NodeId,
    /// Counts the evictions of that node by this one, from 1.
    #[n(2)]
    pub number: u32,
    /// The node that signs.
    #[cbor(n(3), with = "fixed")]
    pub by: NodeId,
    /// The signed certificate of the node that signs, unless that is the founder: whoever may not
    /// admit nodes has none to evict.
    #[n(4)]
    pub sponsor: Option<Raw>,
    /// The second in which it was signed, by the signer's clock (Unix time).
    #[n(5)]
    pub issued: u64,
    /// Counts all evictions by this node, from 1; 0 if it is of a version that does not count them.
    /// See [`crate::Invite::evictions`].
    #[n(6)]
    #[cbor(default, skip_if = "codec::is_default")]
    pub count: u64,
}

impl Statement for Eviction {
    const WHAT: &'static str = "eviction";
    const CONTEXT: &'static [u8] = b"selvedge mesh eviction\0";
    const VERSION: u8 = 1;
    // The greatest certificate, and its signature, fit.
    const MAX_LEN: usize = 3 * 1024;

    fn signer(&self) -> NodeId {
        self.by
    }

    fn check(&self) -> Result<(), &'static str> {
        (self.number > 0).then_some(()).ok_or("its number is 0")
    }
}

/// What a certificate rests on, as far as evictions go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) subject: NodeId,
    pub(crate) issuer: NodeId,
    pub(crate) pardons: u32,
    pub(crate) serial: u64,
    /// Of the issuer's certificate; 0 if the issuer is the founder.
    pub(crate) sponsor_pardons: u32,
    /// The number of the issuer's certificate; 0 if the issuer is the founder.
    pub(crate) sponsor_serial: u64,
    /// How many the issuer may admit; no bound if the issuer is the founder.
    pub(crate) sponsor_guests: usize,
}

impl Claim {
    /// What a certificate that holds rests on.
    pub(crate) fn of(certificate: &Certificate) -> Self {
        let Certificate { subject, issuer, pardons, serial, ref sponsor, .. } = *certificate;
        let sponsor = sponsor.as_ref().and_then(Signed::<Certificate>::peek);
        let (sponsor_pardons, sponsor_serial, sponsor_guests) = sponsor
            .map_or((0, 0, usize::MAX), |sponsor| {
                (sponsor.pardons, sponsor.serial, sponsor.most_guests())
            });
        Self { subject, issuer, pardons, serial, sponsor_pardons, sponsor_serial, sponsor_guests }
    }
}

/// An eviction whose signature holds, by a node that may. Copies are cheap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Evicted(Arc<Verified>);

#[derive(Debug, PartialEq, Eq)]
struct Verified {
    statement: Signed<Eviction>,
    sponsor_pardons: u32,
    tie: [u8; 16],
}

impl Evicted {
    /// Reads an eviction; checks its signature and whether its signer may.
    pub(crate) fn verify(
        raw: Raw,
        genesis: &Genesis,
        verifier: &Verifier,
    ) -> Result<Self, RecordError> {
        let statement = verifier.statement::<Eviction>(raw)?;
        let Eviction { mesh, node, by, ref sponsor, .. } = *statement.value();
        if mesh != genesis.mesh() {
            return Err(RecordError::WrongMesh { node, found: mesh });
        }
        let refused = |error| RecordError::Certificate { node, error };
        if node == genesis.founder {
            return Err(refused(CertificateError::MayNotAdmit { issuer: by }));
        }
        let sponsor = Certificate::sponsor_of(by, sponsor.as_ref(), genesis).map_err(refused)?;
        let sponsor_pardons = sponsor.map_or(0, |sponsor| sponsor.pardons);
        let tie = tie(statement.raw());
        Ok(Self(Arc::new(Verified { statement, sponsor_pardons, tie })))
    }

    pub(crate) fn eviction(&self) -> &Eviction {
        self.0.statement.value()
    }

    pub(crate) fn raw(&self) -> &Raw {
        self.0.statement.raw()
    }

    fn id(&self) -> EvictionId {
        let Eviction { node, by, .. } = *self.eviction();
        EvictionId::of(node, by)
    }

    fn place(&self) -> Place {
        (Reverse(self.0.sponsor_pardons), self.id())
    }
}

impl Content for Evicted {
    /// Those under the signer's later certificate come before all under an earlier one: if that
    /// one is taken back, all that it replaced are void too.
    fn stamp(&self) -> u64 {
        u64::from(self.0.sponsor_pardons) << 32 | u64::from(self.eviction().number)
    }

    fn tie(&self) -> [u8; 16] {
        self.0.tie
    }

    fn expiry(&self) -> u64 {
        UnixTime::NEVER.0
    }
}

/// Names what one node may say of another: a hash of both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EvictionId([u8; 16]);

impl EvictionId {
    fn of(node: NodeId, by: NodeId) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("selvedge 2026-11 eviction id");
        hasher.update(node.as_bytes()).update(by.as_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self(id)
    }
}

impl Key for EvictionId {
    fn key_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The evictions in a form that replicas can compare by ranges.
pub(crate) type EvictionMap = TwoPhaseMap<EvictionId, Evicted, Never>;

/// All evictions that are known in a mesh, one for each node and each that evicted it. Which ones
/// these are, and whom they bar, depends on what was ever merged, and not on its order.
///
/// Of those of a member that may invite the first [`MAX_DELEGATED`] by their [`Place`] are held:
/// whatever else is heard makes none of the others one of these, so that what is dropped does not
/// matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Evictions {
    founder: NodeId,
    map: EvictionMap,
    /// Those by others than the founder.
    delegated: BTreeMap<NodeId, BTreeSet<Place>>,
    /// [`MAX_DELEGATED`]; less in tests.
    most: usize,
}

/// Where an eviction comes among those of one node: those under its later certificate first, for
/// the others are void if the earlier one is taken back; of these the least id.
type Place = (Reverse<u32>, EvictionId);

impl Evictions {
    pub(crate) const fn new(founder: NodeId) -> Self {
        let map = TwoPhaseMap::new();
        Self { founder, map, delegated: BTreeMap::new(), most: MAX_DELEGATED }
    }

    /// Takes over an eviction. Says whether it was new.
    pub(crate) fn merge(&mut self, evicted: Evicted) -> bool {
        let by = evicted.eviction().by;
        if by != self.founder {
            return self.merge_delegated(by, evicted);
        }
        let news = self.map.merge_entry(evicted.id(), Entry::Add(evicted));
        if news {
            self.drop_void();
        }
        news
    }

    fn merge_delegated(&mut self, by: NodeId, evicted: Evicted) -> bool {
        let (id, place) = (evicted.id(), evicted.place());
        if self.is_void(&evicted) || !self.has_room(by, &place) {
            return false;
        }
        let before = self.map.added(&id).map(Evicted::place);
        let news = self.map.merge_entry(id, Entry::Add(evicted));
        if news {
            let held = self.delegated.entry(by).or_default();
            before.map(|before| held.remove(&before));
            held.insert(place);
            if held.len() > self.most
                && let Some((_, last)) = held.pop_last()
            {
                self.map.forget(&last);
            }
        }
        news
    }

    fn has_room(&self, by: NodeId, (pardons, id): &Place) -> bool {
        let Some(held) = self.delegated.get(&by) else { return true };
        let comes_before = |last: &Place| (*pardons, *id) < *last;
        held.len() < self.most
            || self.map.added(id).is_some()
            || held.last().is_some_and(comes_before)
    }

    /// Whether an eviction of `node` by `by` would take the place of another.
    pub(crate) fn is_full(&self, node: NodeId, by: NodeId) -> bool {
        let count = self.delegated.get(&by).map_or(0, BTreeSet::len);
        count >= self.most && self.of(node, by).is_none()
    }

    /// How many evictions `by` has made, as far as is known here: see [`Eviction::count`].
    pub(crate) fn count_by(&self, by: NodeId) -> u64 {
        let of_it = self.iter().map(Evicted::eviction).filter(|eviction| eviction.by == by);
        of_it.map(|eviction| eviction.count).max().unwrap_or(0)
    }

    /// The eviction by which a certificate is void, if there is one.
    pub(crate) fn barring(&self, claim: &Claim) -> Option<&Evicted> {
        let Claim { subject, issuer, pardons, sponsor_pardons, .. } = *claim;
        if self.map.is_empty() {
            return None;
        }
        if issuer == self.founder {
            return self.beyond(subject, issuer, pardons);
        }
        self.beyond(subject, self.founder, 0)
            .or_else(|| self.beyond(subject, issuer, pardons))
            .or_else(|| self.beyond(issuer, self.founder, sponsor_pardons))
    }

    /// The last eviction of `node` by `by`.
    pub(crate) fn of(&self, node: NodeId, by: NodeId) -> Option<&Evicted> {
        self.map.added(&EvictionId::of(node, by))
    }

    /// An eviction of `node`, the founder's if there is one.
    pub(crate) fn any_of(&self, node: NodeId) -> Option<&Evicted> {
        let others = || self.iter().find(|evicted| evicted.eviction().node == node);
        self.of(node, self.founder).or_else(others)
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Evicted> {
        self.map.iter().map(|(_, evicted)| evicted)
    }

    /// Whether just this one is held already.
    pub(crate) fn holds(&self, raw: &Raw) -> bool {
        let held = |eviction: Eviction| Some(self.of(eviction.node, eviction.by)?.raw() == raw);
        Signed::<Eviction>::peek(raw).and_then(held).unwrap_or(false)
    }

    pub(crate) const fn map(&self) -> &EvictionMap {
        &self.map
    }

    /// In short which are held; `None` if there are none.
    pub(crate) fn summary(&self) -> Option<u32> {
        let Digest { hash: [a, b, c, d, ..], count } = self.map.digest();
        (count > 0).then(|| u32::from_be_bytes([a, b, c, d]))
    }

    fn beyond(&self, node: NodeId, by: NodeId, pardons: u32) -> Option<&Evicted> {
        let held = self.of(node, by)?;
        (held.eviction().number > pardons).then_some(held)
    }

    /// Whether it was signed under a certificate that was taken back: then the certificates that
    /// it takes back are void without it.
    fn is_void(&self, evicted: &Evicted) -> bool {
        let by = evicted.eviction().by;
        by != self.founder && self.beyond(by, self.founder, evicted.0.sponsor_pardons).is_some()
    }

    fn drop_void(&mut self) {
        let void = self.map.iter().filter(|(_, evicted)| self.is_void(evicted));
        let void: Vec<Evicted> = void.map(|(_, evicted)| evicted.clone()).collect();
        for evicted in void {
            self.map.forget(&evicted.id());
            if let Some(held) = self.delegated.get_mut(&evicted.eviction().by) {
                held.remove(&evicted.place());
            }
        }
        self.delegated.retain(|_, held| !held.is_empty());
    }
}

#[cfg(test)]
mod tests;
