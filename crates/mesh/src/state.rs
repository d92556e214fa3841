use std::collections::BTreeMap;
use std::net::SocketAddr;

use minicbor::{Decode, Encode};
use selvedge_model::{MeshId, NodeId, WgKey};

use crate::admission::{Certificate, CertificateError, Genesis, Role};
use crate::codec::{self, Fixed as _, fixed};
use crate::crdt::Entry;
use crate::identity::Identity;
use crate::invite::InviteId;
use crate::profile::Profile;
use crate::record::{Life, MAX_SEQ, Record, RecordError, Removal};
use crate::roster::{Roster, RosterEntry};
use crate::signed::{Raw, Signed, SignedError};
use crate::verifier::Verifier;

/// What every snapshot begins with, its version following.
const MAGIC: &[u8; 4] = b"SVMS";
const SNAPSHOT_VERSION: u8 = 1;
const CHECKSUM_LEN: usize = 16;
/// No snapshot is longer than this, in bytes.
pub(crate) const MAX_SNAPSHOT: usize = 256 << 20;
const MAX_ENTRIES: usize = 100_000;
const MAX_WAYS_BACK: usize = 1024;

/// What a node knows of one mesh, and must not forget: to be kept on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    node: NodeId,
    pub(crate) roster: Roster,
    pub(crate) ledger: Ledger,
    /// Where those that were forgotten were reached last.
    pub(crate) ways_back: BTreeMap<NodeId, WayBack>,
}

/// Where a node that was forgotten was reached last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WayBack {
    pub(crate) addrs: Vec<SocketAddr>,
    /// The last second in which it may come back.
    pub(crate) not_after: u64,
}

/// What has become of the invites that this node issued.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ledger {
    pub(crate) last_serial: u64,
    pub(crate) redeemed: BTreeMap<InviteId, BTreeMap<NodeId, Signed<Certificate>>>,
    /// The last second in which each of these invites can be redeemed, if that is known.
    pub(crate) expires: BTreeMap<InviteId, u64>,
}

/// What is known of an invite is kept so many seconds longer than it can be redeemed: whoever was
/// admitted at last comes by then, and a clock that is put right does not open it again.
const INVITE_GRACE: u64 = 7 * 86_400;

impl Ledger {
    /// Forgets the invites that nobody can redeem any more. Says whether there were any.
    pub(crate) fn prune(&mut self, now: u64) -> bool {
        let before = self.redeemed.len();
        let Self { redeemed, expires, .. } = self;
        redeemed.retain(|invite, nodes| match expires.get(invite) {
            Some(not_after) => not_after.saturating_add(INVITE_GRACE) >= now,
            // Noted by a version that did not note this: as long as any of its certificates holds.
            None => nodes.values().any(|certificate| certificate.value().not_after >= now),
        });
        expires.retain(|invite, _| redeemed.contains_key(invite));
        redeemed.len() < before
    }
}

/// Why bytes are no snapshot. They were left as they are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Something else altogether.
    #[error("this is not the state of a mesh")]
    NotASnapshot,
    /// Of a version that is not known here.
    #[error("the state has version {found}, which is not known here (known: {SNAPSHOT_VERSION})")]
    UnknownVersion {
        /// Its version.
        found: u8,
    },
    /// Cut or changed.
    #[error("the state is damaged: its checksum does not match")]
    Checksum,
    /// Longer than any state.
    #[error("the state is too long: {len} bytes")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// Not the shape of a state.
    #[error("the state is malformed: {0}")]
    Malformed(String),
    /// An entry does not verify.
    #[error("the state is invalid: {0}")]
    Record(#[from] RecordError),
    /// A certificate that was issued does not verify.
    #[error("the state is invalid: {0}")]
    Certificate(#[from] CertificateError),
    /// The node's own record is not in it.
    #[error("the state lacks the record of its own node {0}")]
    NoOwnRecord(NodeId),
}

/// Why a mesh could not be founded, or one's own record not be written. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The mesh cannot have that name.
    #[error("{0}")]
    Name(&'static str),
    /// A text or list is out of bounds.
    #[error("writing the own record: {0}")]
    Signed(#[from] SignedError),
    /// The sequence numbers are used up.
    #[error("writing the own record: node {0} has used all its sequence numbers")]
    OutOfNumbers(NodeId),
    /// The node is no member: it has left.
    #[error("writing the own record: node {0} is no member")]
    NotAMember(NodeId),
}

impl State {
    /// Founds a mesh of which `identity` is the first member. `salt` must be random.
    ///
    /// # Errors
    /// If the name or the profile is out of bounds.
    pub fn found(
        identity: &Identity,
        name: &str,
        salt: [u8; 16],
        wg: WgKey,
        profile: Profile,
    ) -> Result<Self, WriteError> {
        let genesis = Genesis { founder: identity.node_id(), salt, name: name.into() };
        genesis.check().map_err(WriteError::Name)?;
        let certificate = Certificate::of_founder(&genesis, wg, identity)?;
        // Without a clock, so until it is renewed, which is soon, this record lives for ever.
        let life = Life::default();
        Self::with_member(Roster::new(genesis), &certificate, profile, life, identity)
    }

    /// The state of a founder that others have joined, each of whom said at its own time what it
    /// says of itself. The first `inviters` of them may invite. For simulators and tests.
    ///
    /// # Errors
    /// If a name or profile is out of bounds.
    #[doc(hidden)]
    pub fn peopled<'a>(
        mut self,
        founder: &Identity,
        inviters: u64,
        others: impl Iterator<Item = (&'a Identity, WgKey, Profile, Life)>,
    ) -> Result<Self, WriteError> {
        for (serial, (identity, wg, profile, life)) in (1..).zip(others) {
            let certificate = Certificate {
                mesh: self.mesh(),
                subject: identity.node_id(),
                wg,
                role: Role::Peer,
                prefixes: Vec::new(),
                may_invite: serial <= inviters,
                not_after: u64::MAX - 1,
                serial,
                issuer: founder.node_id(),
                sponsor: None,
                pardons: 0,
                guests: None,
            };
            let certificate = Signed::sign(certificate, founder)?.raw().clone();
            let mut one = Self { node: identity.node_id(), ..self };
            one.publish(certificate, profile, life, identity)?;
            self = Self { node: founder.node_id(), ..one };
        }
        Ok(self)
    }

    /// The same, as another member keeps it that knows no more and no less; `None` if `node` has
    /// no record in it. For simulators and tests.
    #[doc(hidden)]
    #[must_use]
    pub fn kept_by(&self, node: NodeId) -> Option<Self> {
        self.roster.map.added(&node)?;
        let (ledger, ways_back) = (Ledger::default(), BTreeMap::new());
        Some(Self { node, roster: self.roster.clone(), ledger, ways_back })
    }

    /// Has signatures checked by `verifier` from now on.
    pub fn verify_by(&mut self, verifier: Verifier) {
        self.roster.verifier = verifier;
    }

    /// The state of a node that was just admitted to a mesh of which it knows `roster`.
    pub(crate) fn with_member(
        roster: Roster,
        certificate: &Signed<Certificate>,
        profile: Profile,
        life: Life,
        identity: &Identity,
    ) -> Result<Self, WriteError> {
        let (ledger, ways_back) = (Ledger::default(), BTreeMap::new());
        let mut state = Self { node: identity.node_id(), roster, ledger, ways_back };
        state.publish(certificate.raw().clone(), profile, life, identity)?;
        Ok(state)
    }

    /// The mesh.
    #[must_use]
    pub fn mesh(&self) -> MeshId {
        self.roster.mesh()
    }

    /// The beginning of the mesh.
    #[must_use]
    pub const fn genesis(&self) -> &Genesis {
        self.roster.genesis()
    }

    /// The node whose state this is.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// The WireGuard key that this node was admitted with.
    #[must_use]
    pub fn wg(&self) -> Option<WgKey> {
        Some(self.roster.map.added(&self.node)?.certificate().wg)
    }

    /// What this node says about itself.
    #[must_use]
    pub fn profile(&self) -> Option<&Profile> {
        Some(&self.roster.map.added(&self.node)?.record().profile)
    }

    /// The state in bytes: a header with version and checksum, then CBOR.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        Self::frame(&codec::to_vec(&Snapshot::from(self)))
    }

    /// The header for `body`, and `body`. For tests that look behind the checksum.
    #[doc(hidden)]
    #[must_use]
    pub fn frame(body: &[u8]) -> Vec<u8> {
        [MAGIC, &[SNAPSHOT_VERSION][..], &checksum(body), body].concat()
    }

    /// Reads a state and verifies every entry.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let body = check_header(bytes)?;
        let snapshot: Snapshot = codec::from_slice(body).map_err(malformed)?;
        snapshot.into_state()
    }

    /// Writes a new record of this node, newer than everything that is known of it.
    pub(crate) fn publish(
        &mut self,
        certificate: Raw,
        profile: Profile,
        life: Life,
        identity: &Identity,
    ) -> Result<RosterEntry, WriteError> {
        let record = Record {
            mesh: self.mesh(),
            node: self.node,
            seq: self.next_seq()?,
            certificate,
            profile,
            life,
        };
        let raw = Signed::sign(record, identity)?.raw().clone();
        let (node, entry) = self.roster.verify_record(raw).map_err(|error| {
            WriteError::Signed(SignedError::Malformed { what: "record", detail: error.to_string() })
        })?;
        self.roster.map.merge_entry(node, entry.clone());
        Ok(entry)
    }

    /// Writes the removal of this node.
    pub(crate) fn publish_removal(
        &mut self,
        life: Life,
        identity: &Identity,
    ) -> Result<RosterEntry, WriteError> {
        let own = self.roster.map.added(&self.node).ok_or(WriteError::NotAMember(self.node))?;
        let removal = Removal {
            mesh: self.mesh(),
            node: self.node,
            seq: self.next_seq()?,
            certificate: own.record().certificate.clone(),
            life,
        };
        let raw = Signed::sign(removal, identity)?.raw().clone();
        let (node, entry) = self.roster.verify_removal(raw).map_err(|error| {
            WriteError::Signed(SignedError::Malformed {
                what: "removal",
                detail: error.to_string(),
            })
        })?;
        self.roster.map.merge_entry(node, entry.clone());
        Ok(entry)
    }

    /// Notes where a node that is forgotten was reached, while there is room.
    pub(crate) fn keep_way_back(&mut self, node: NodeId, way: WayBack) {
        if !way.addrs.is_empty() && self.ways_back.len() < MAX_WAYS_BACK {
            self.ways_back.insert(node, way);
        }
    }

    fn next_seq(&self) -> Result<u64, WriteError> {
        let seq = self.roster.map.stamp(&self.node);
        match seq < MAX_SEQ {
            true => Ok(seq + 1),
            false => Err(WriteError::OutOfNumbers(self.node)),
        }
    }
}

/// The layout of the CBOR in a snapshot. Unknown fields are skipped.
#[derive(Encode, Decode)]
#[cbor(map)]
struct Snapshot {
    #[cbor(n(0), with = "fixed")]
    node: NodeId,
    #[n(1)]
    genesis: Genesis,
    #[cbor(n(2), decode_with = "codec::list::<MAX_ENTRIES, _, _>")]
    records: Vec<Raw>,
    #[cbor(n(3), decode_with = "codec::list::<MAX_ENTRIES, _, _>")]
    removals: Vec<Raw>,
    #[n(4)]
    last_serial: u64,
    #[cbor(n(5), decode_with = "codec::list::<MAX_ENTRIES, _, _>")]
    redeemed: Vec<Redeemed>,
    #[cbor(n(6), decode_with = "codec::list::<MAX_WAYS_BACK, _, _>", default)]
    ways_back: Vec<Way>,
    #[cbor(n(7), decode_with = "codec::list::<MAX_ENTRIES, _, _>", default)]
    #[cbor(skip_if = "Vec::is_empty")]
    evictions: Vec<Raw>,
}

/// Where a node was reached last.
#[derive(Encode, Decode)]
#[cbor(map)]
struct Way {
    #[cbor(n(0), with = "fixed")]
    node: NodeId,
    #[cbor(n(1), decode_with = "codec::list::<{ Profile::MAX_ENDPOINTS }, _, _>")]
    addrs: Vec<SocketAddr>,
    #[n(2)]
    not_after: u64,
}

/// The certificates that were issued for one invite.
#[derive(Encode, Decode)]
#[cbor(map)]
struct Redeemed {
    #[cbor(n(0), with = "fixed")]
    invite: InviteId,
    #[cbor(n(1), decode_with = "codec::list::<MAX_ENTRIES, _, _>")]
    certificates: Vec<Raw>,
    /// The last second in which the invite can be redeemed.
    #[n(2)]
    not_after: Option<u64>,
}

impl From<&State> for Snapshot {
    fn from(state: &State) -> Self {
        let (mut records, mut removals) = (Vec::new(), Vec::new());
        for (_, entry) in state.roster.map.entries() {
            match entry {
                Entry::Add(admitted) => records.push(admitted.raw().clone()),
                Entry::Remove(removed) => removals.push(removed.raw().clone()),
            }
        }
        let redeemed = state.ledger.redeemed.iter().map(|(invite, nodes)| Redeemed {
            invite: *invite,
            certificates: nodes.values().map(|certificate| certificate.raw().clone()).collect(),
            not_after: state.ledger.expires.get(invite).copied(),
        });
        let ways_back = state.ways_back.iter().map(|(node, way)| Way {
            node: *node,
            addrs: way.addrs.clone(),
            not_after: way.not_after,
        });
        Self {
            node: state.node,
            genesis: state.genesis().clone(),
            records,
            removals,
            last_serial: state.ledger.last_serial,
            redeemed: redeemed.collect(),
            ways_back: ways_back.collect(),
            evictions: state.roster.evictions.iter().map(|held| held.raw().clone()).collect(),
        }
    }
}

impl Snapshot {
    fn into_state(self) -> Result<State, SnapshotError> {
        let malformed = |what: &str| SnapshotError::Malformed(what.into());
        self.genesis.check().map_err(malformed)?;
        let mut roster = Roster::new(self.genesis);
        for raw in self.evictions {
            let evicted = roster.verify_eviction(raw)?;
            roster.evictions.merge(evicted);
        }
        for raw in self.records {
            let (node, entry) = roster.verify_record(raw)?;
            roster.map.merge_entry(node, entry);
        }
        for raw in self.removals {
            let (node, entry) = roster.verify_removal(raw)?;
            roster.map.merge_entry(node, entry);
        }
        if roster.map.added(&self.node).is_none() {
            return Err(SnapshotError::NoOwnRecord(self.node));
        }
        let mut ledger = Ledger { last_serial: self.last_serial, ..Ledger::default() };
        for Redeemed { invite, certificates, not_after } in self.redeemed {
            ledger.expires.extend(not_after.map(|not_after| (invite, not_after)));
            let nodes = ledger.redeemed.entry(invite).or_default();
            for raw in certificates {
                let certificate = Certificate::verify(raw, roster.genesis())?;
                nodes.insert(certificate.value().subject, certificate);
            }
        }
        let ways_back = self
            .ways_back
            .into_iter()
            .map(|Way { node, addrs, not_after }| (node, WayBack { addrs, not_after }));
        Ok(State { node: self.node, roster, ledger, ways_back: ways_back.collect() })
    }
}

/// The body of a snapshot whose header is right.
fn check_header(bytes: &[u8]) -> Result<&[u8], SnapshotError> {
    if bytes.len() > MAX_SNAPSHOT {
        return Err(SnapshotError::TooLong { len: bytes.len() });
    }
    let rest = bytes.strip_prefix(MAGIC).ok_or(SnapshotError::NotASnapshot)?;
    let (version, rest) = rest.split_first().ok_or(SnapshotError::Checksum)?;
    if *version != SNAPSHOT_VERSION {
        return Err(SnapshotError::UnknownVersion { found: *version });
    }
    let (sum, body) = rest.split_first_chunk().ok_or(SnapshotError::Checksum)?;
    match *sum == checksum(body) {
        true => Ok(body),
        false => Err(SnapshotError::Checksum),
    }
}

fn checksum(body: &[u8]) -> [u8; CHECKSUM_LEN] {
    let hash = blake3::derive_key("selvedge 2026-11 mesh state checksum", body);
    <[u8; CHECKSUM_LEN]>::from_octets(&hash[..CHECKSUM_LEN]).expect("the slice has that length")
}

#[allow(clippy::needless_pass_by_value, reason = "the shape that map_err asks for")]
fn malformed(error: minicbor::decode::Error) -> SnapshotError {
    SnapshotError::Malformed(error.to_string())
}
