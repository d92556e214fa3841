use std::collections::BTreeSet;
use std::net::Ipv6Addr;

use selvedge_model::{MeshId, NodeId, Prefix, WgKey};

use crate::address::{mesh_prefix, node_address};
use crate::admission::{Genesis, Role, permits};
use crate::crdt::{Entry, Key, TwoPhaseMap};
use crate::eviction::{Claim, Evicted, Evictions};
use crate::profile::Profile;
use crate::record::{Admitted, Record, RecordError, Removal, Removed};
use crate::signed::{Raw, Signed};
use crate::time::UnixTime;
use crate::verifier::Verifier;
use crate::wire::Records;

/// The replicated entries of one mesh, each of them verified, and none of them void by an eviction
/// but those of the node whose roster it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Roster {
    genesis: Genesis,
    pub(crate) verifier: Verifier,
    pub(crate) map: TwoPhaseMap<NodeId, Admitted, Removed>,
    pub(crate) evictions: Evictions,
}

/// An entry of the roster.
pub(crate) type RosterEntry = Entry<Admitted, Removed>;

/// Whether there is room for an entry among those that one member admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// There is.
    Free,
    /// There is if this one goes, which was admitted later.
    InPlaceOf(NodeId),
    /// There is none: all were admitted earlier.
    None {
        /// Who admitted them.
        by: NodeId,
    },
}

/// A member of a mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Who it is.
    pub node: NodeId,
    /// Its overlay address.
    pub address: Ipv6Addr,
    /// Its WireGuard key.
    pub wg: WgKey,
    /// Its role: that of its certificate, or a client by its own choice.
    pub role: Role,
    /// What it says about itself.
    pub profile: Profile,
    /// The sequence number of its record.
    pub seq: u64,
    /// The last second in which it is admitted.
    pub not_after: UnixTime,
    /// Whether it founded the mesh.
    pub founder: bool,
    /// The prefixes that its certificate lets it announce; the founder may announce any.
    pub allowed: Vec<Prefix>,
    /// The node that admitted it.
    pub issuer: NodeId,
    /// Whether it may invite others.
    pub may_invite: bool,
    /// When its record was signed, by its own clock.
    pub issued: UnixTime,
    /// Its rank: of two members that one node admitted, the one that came first has the lower
    /// one, and whom the founder admitted has a lower one than all others.
    pub serial: u64,
}

impl Roster {
    pub(crate) fn new(genesis: Genesis) -> Self {
        let (map, evictions) = (TwoPhaseMap::new(), Evictions::new(genesis.founder));
        Self { genesis, verifier: Verifier::default(), map, evictions }
    }

    pub(crate) const fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    pub(crate) fn mesh(&self) -> MeshId {
        self.genesis.mesh()
    }

    pub(crate) fn prefix(&self) -> Prefix {
        mesh_prefix(self.mesh())
    }

    /// The members at `wall`, by ascending node. Who has left, was evicted, or whose certificate
    /// has expired is none.
    pub(crate) fn members(&self, wall: UnixTime) -> impl Iterator<Item = Member> {
        let mesh = self.mesh();
        let valid = move |entry: &&Admitted| !entry.certificate().has_expired(wall);
        self.map.iter().map(|(_, entry)| entry).filter(valid).map(move |e| self.member_of(e, mesh))
    }

    /// Who the members at `wall` are, ascending.
    pub(crate) fn nodes(&self, wall: UnixTime) -> impl Iterator<Item = NodeId> {
        let valid = move |entry: &Admitted| !entry.certificate().has_expired(wall);
        self.map.iter().filter(move |(_, entry)| valid(entry)).map(|(node, _)| *node)
    }

    /// Those of the members at `wall` that are clients.
    pub(crate) fn clients(&self, wall: UnixTime) -> BTreeSet<NodeId> {
        self.nodes(wall).filter(|node| self.is_client(*node, wall)).collect()
    }

    /// Whether a node is a member at `wall` and a client.
    pub(crate) fn is_client(&self, node: NodeId, wall: UnixTime) -> bool {
        let entry = self.map.get(&node).filter(|entry| !entry.certificate().has_expired(wall));
        entry.is_some_and(|entry| role_of(entry) == Role::Client)
    }

    pub(crate) fn member(&self, node: NodeId, wall: UnixTime) -> Option<Member> {
        let entry = self.map.get(&node).filter(|e| !e.certificate().has_expired(wall))?;
        Some(self.member_of(entry, self.mesh()))
    }

    pub(crate) fn is_member(&self, node: NodeId, wall: UnixTime) -> bool {
        self.map.get(&node).is_some_and(|entry| !entry.certificate().has_expired(wall))
    }

    /// Whether what a node said of others' lives counts: that of a member, and of one that has left,
    /// for what it bore out goes on when it is gone.
    pub(crate) fn is_witness(&self, node: NodeId, wall: UnixTime) -> bool {
        self.is_member(node, wall) || self.map.removed(&node).is_some()
    }

    /// The node that a WireGuard key was given to, be it a member still or not.
    pub(crate) fn holder_of(&self, wg: WgKey) -> Option<NodeId> {
        let mut entries = self.map.entries();
        entries.find_map(|(node, entry)| match entry {
            Entry::Add(admitted) => (admitted.certificate().wg == wg).then_some(*node),
            Entry::Remove(_) => None,
        })
    }

    pub(crate) fn verify_record(&self, raw: Raw) -> Result<(NodeId, RosterEntry), RecordError> {
        let entry = self.verifier.entry(self.mesh(), raw, |raw| {
            Admitted::verify(raw, &self.genesis, &self.verifier).map(Entry::Add)
        })?;
        Ok((node_of(&entry), entry))
    }

    pub(crate) fn verify_removal(&self, raw: Raw) -> Result<(NodeId, RosterEntry), RecordError> {
        let entry = self.verifier.entry(self.mesh(), raw, |raw| {
            Removed::verify(raw, &self.genesis, &self.verifier).map(Entry::Remove)
        })?;
        Ok((node_of(&entry), entry))
    }

    pub(crate) fn verify_eviction(&self, raw: Raw) -> Result<Evicted, RecordError> {
        Evicted::verify(raw, &self.genesis, &self.verifier)
    }

    /// The eviction by which an entry is void, if there is one.
    pub(crate) fn barring(&self, entry: &RosterEntry) -> Option<&Evicted> {
        self.evictions.barring(claim_of(entry.as_ref()))
    }

    /// Takes over an eviction and drops all entries that are void by it, those of `keep` aside.
    /// Says whether it was new.
    pub(crate) fn evict(&mut self, evicted: Evicted, keep: &NodeId) -> bool {
        let node = evicted.eviction().node;
        let news = self.evictions.merge(evicted);
        if news {
            let Self { evictions, map, .. } = self;
            let concerned = |claim: &Claim| claim.subject == node || claim.issuer == node;
            map.drop_void(keep, |entry| {
                let claim = claim_of(entry);
                concerned(claim) && evictions.barring(claim).is_some()
            });
        }
        news
    }

    /// Whether there is room for an entry. Of those that a member admitted so many are held as it
    /// may admit, the first ones, so that whatever a member signs it fills nobody's memory.
    pub(crate) fn room_for(&self, entry: &RosterEntry) -> Room {
        let claim = claim_of(entry.as_ref());
        let by = claim.issuer;
        if by == self.genesis.founder {
            return Room::Free;
        }
        let guests = self.guests_of(by);
        if guests.iter().any(|(_, node)| *node == claim.subject) {
            return Room::Free;
        }
        match guests.last() {
            Some(last) if guests.len() >= claim.sponsor_guests => {
                match (claim.serial, claim.subject) < *last {
                    true => Room::InPlaceOf(last.1),
                    false => Room::None { by },
                }
            }
            None if claim.sponsor_guests == 0 => Room::None { by },
            _ => Room::Free,
        }
    }

    /// Whom a node admitted, be they members still or not, by the numbers of their certificates.
    pub(crate) fn guests_of(&self, issuer: NodeId) -> BTreeSet<(u64, NodeId)> {
        let claims = self.map.entries().map(|(_, entry)| claim_of(entry));
        let guests = claims.filter(|claim| claim.issuer == issuer && claim.subject != issuer);
        guests.map(|claim| (claim.serial, claim.subject)).collect()
    }

    /// Who answers for what a member says, or one that has left: itself, or the member that admitted
    /// it, for that one may admit as many as it likes to speak with its voice.
    pub(crate) fn answers_for(&self, node: NodeId) -> Option<NodeId> {
        let issuer = claim_of(self.map.entries_of(&node).next()?).issuer;
        Some(if issuer == self.genesis.founder { node } else { issuer })
    }

    /// Whether the accusers of a member are independent enough. Those whom one member admitted, and
    /// that one, count as one, and one does not suffice, but for whom it admitted itself, or where
    /// the mesh has no other.
    pub(crate) fn convicts(
        &self,
        accusers: impl IntoIterator<Item = NodeId>,
        target: NodeId,
    ) -> bool {
        let sources: BTreeSet<NodeId> =
            accusers.into_iter().filter_map(|node| self.answers_for(node)).collect();
        let of_target = self.answers_for(target);
        match sources.first() {
            None => false,
            Some(_) if sources.len() > 1 => true,
            Some(source) => {
                let known = [Some(*source), of_target];
                known[0] == known[1]
                    || self.map.iter().all(|(node, _)| known.contains(&self.answers_for(*node)))
            }
        }
    }

    /// Whether just this record is held already.
    pub(crate) fn holds_record(&self, raw: &Raw) -> bool {
        let held = |record: Record| Some(self.map.added(&record.node)?.raw() == raw);
        Signed::<Record>::peek(raw).and_then(held).unwrap_or(false)
    }

    /// Whether just this removal is held already.
    pub(crate) fn holds_removal(&self, raw: &Raw) -> bool {
        let held = |removal: Removal| Some(self.map.removed(&removal.node)?.raw() == raw);
        Signed::<Removal>::peek(raw).and_then(held).unwrap_or(false)
    }

    /// All that can be verified of a message's entries, and why the rest cannot.
    pub(crate) fn verify_all(
        &self,
        records: Records,
    ) -> (Vec<(NodeId, RosterEntry)>, Vec<RecordError>) {
        let records_in = records.records.into_iter().map(|raw| self.verify_record(raw));
        let removals_in = records.removals.into_iter().map(|raw| self.verify_removal(raw));
        let (mut entries, mut errors) = (Vec::new(), Vec::new());
        for result in records_in.chain(removals_in) {
            match result {
                Ok(entry) => entries.push(entry),
                Err(error) => errors.push(error),
            }
        }
        (entries, errors)
    }

    fn member_of(&self, entry: &Admitted, mesh: MeshId) -> Member {
        let (record, certificate) = (entry.record(), entry.certificate());
        Member {
            node: record.node,
            address: node_address(mesh, record.node),
            wg: certificate.wg,
            role: role_of(entry),
            profile: record.profile.clone(),
            seq: record.seq,
            not_after: UnixTime(certificate.not_after),
            founder: record.node == self.genesis.founder,
            allowed: certificate.prefixes.clone(),
            issuer: certificate.issuer,
            may_invite: certificate.may_invite,
            issued: UnixTime(record.life.issued),
            serial: self.rank(entry),
        }
    }

    /// See [`Member::serial`]. A member chooses the numbers of the certificates that it issues, so
    /// they compete neither with the founder's, nor with those of issuers that the founder admitted
    /// before that member.
    fn rank(&self, entry: &Admitted) -> u64 {
        let (claim, serial) = (entry.claim(), entry.certificate().serial);
        match claim.issuer == self.genesis.founder {
            true => serial & !(1 << 63),
            false => {
                1 << 63 | claim.sponsor_serial.min(0x7fff_ffff) << 32 | serial.min(0xffff_ffff)
            }
        }
    }
}

impl Member {
    /// Whether it may announce that `prefix` is behind it.
    #[must_use]
    pub fn may_announce(&self, prefix: Prefix) -> bool {
        self.founder || permits(&self.allowed, prefix)
    }

    /// The prefixes behind it that it announces and may announce.
    pub fn routes(&self) -> impl Iterator<Item = Prefix> {
        self.profile.routes.iter().copied().filter(|prefix| self.may_announce(*prefix))
    }
}

/// What a member is: a client if its certificate or the node itself says so.
pub(crate) fn role_of(entry: &Admitted) -> Role {
    match entry.record().profile.client {
        true => Role::Client,
        false => entry.certificate().role,
    }
}

/// What the certificate in an entry rests on.
fn claim_of<'a>(entry: Entry<&'a Admitted, &'a Removed>) -> &'a Claim {
    match entry {
        Entry::Add(admitted) => admitted.claim(),
        Entry::Remove(removed) => removed.claim(),
    }
}

/// The node that an entry is of.
pub(crate) fn node_of(entry: &RosterEntry) -> NodeId {
    match entry {
        Entry::Add(admitted) => admitted.record().node,
        Entry::Remove(removed) => removed.removal().node,
    }
}

impl Key for NodeId {
    fn key_bytes(&self) -> &[u8] {
        self.as_bytes()
    }
}
