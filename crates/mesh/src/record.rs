use std::sync::Arc;
use std::time::Duration;

use minicbor::{Decode, Encode};
use selvedge_model::{MeshId, NodeId};

use crate::admission::{Certificate, CertificateError, Genesis};
use crate::codec::fixed;
use crate::crdt::Content;
use crate::eviction::Claim;
use crate::profile::Profile;
use crate::signed::{Raw, Signed, SignedError, Statement};
use crate::time::UnixTime;
use crate::verifier::Verifier;

/// The greatest sequence number. A record that had the last number of all could never be
/// followed by another.
pub const MAX_SEQ: u64 = 1 << 62;

/// A member's entry in the replicated state, signed by that member. There is no overlay address
/// in it: each receiver computes it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Record {
    /// The mesh.
    #[cbor(n(0), with = "fixed")]
    pub mesh: MeshId,
    /// The node, which signs.
    #[cbor(n(1), with = "fixed")]
    pub node: NodeId,
    /// Grows with each record and each removal of this node. At most [`MAX_SEQ`].
    #[n(2)]
    pub seq: u64,
    /// Admits the node to the mesh: a signed [`Certificate`].
    #[n(3)]
    pub certificate: Raw,
    /// What the node says about itself.
    #[n(4)]
    pub profile: Profile,
    /// How long all others hold it.
    #[n(5)]
    #[cbor(default)]
    pub life: Life,
}

/// How long a record is held by others than its node: whoever does not renew its record in time
/// is forgotten, by all by the same rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Life {
    /// The second of Unix time in which it was signed, by its node's clock.
    #[n(0)]
    pub issued: u64,
    /// How many seconds it lives; 0 as long as its certificate is valid. At most
    /// [`Life::MAX_SECONDS`].
    #[n(1)]
    pub seconds: u32,
}

impl Life {
    /// The longest life, 30 days.
    pub const MAX_SECONDS: u32 = 30 * 86_400;

    /// A life that begins at `issued`.
    #[must_use]
    pub fn new(issued: UnixTime, length: Duration) -> Self {
        let seconds = u32::try_from(length.as_secs()).unwrap_or(u32::MAX).min(Self::MAX_SECONDS);
        Self { issued: issued.0, seconds }
    }

    /// The last second of it, of something that is of no use after `not_after`. A clock that goes
    /// wrong makes no life longer than its certificate's.
    const fn end(self, not_after: u64) -> u64 {
        let end = self.issued.saturating_add(self.seconds as u64);
        match self.seconds != 0 && end < not_after {
            true => end,
            false => not_after,
        }
    }
}

/// Takes a node out of the mesh, signed by that node: it left. It shows the certificate that had
/// admitted the node, so that nobody can fill the mesh with removals of nodes that never were.
/// Whom others put out has an [`crate::Eviction`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Removal {
    /// The mesh.
    #[cbor(n(0), with = "fixed")]
    pub mesh: MeshId,
    /// The node that left, which signs.
    #[cbor(n(1), with = "fixed")]
    pub node: NodeId,
    /// Greater than that of the node's last record. At most [`MAX_SEQ`].
    #[n(2)]
    pub seq: u64,
    /// Had admitted the node to the mesh: a signed [`Certificate`].
    #[n(4)]
    pub certificate: Raw,
    /// How long it is held: longer than any copy of what it buries.
    #[n(5)]
    #[cbor(default)]
    pub life: Life,
}

/// A record whose signature and certificate hold. Copies are cheap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted(Arc<Verified<Record>>);

/// A removal whose signature and certificate hold. Copies are cheap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed(Arc<Verified<Removal>>);

#[derive(Debug, PartialEq, Eq)]
struct Verified<T> {
    statement: Signed<T>,
    certificate: Signed<Certificate>,
    claim: Claim,
    tie: [u8; 16],
}

/// Why a record, a removal or an eviction is not taken over. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Malformed, out of bounds, of an unknown version, or not signed by its node.
    #[error(transparent)]
    Signed(#[from] SignedError),
    /// Of another mesh.
    #[error("the record of node {node} is of mesh {found}")]
    WrongMesh {
        /// The node.
        node: NodeId,
        /// The mesh that it is of.
        found: MeshId,
    },
    /// The certificate in it does not admit its node.
    #[error("the record of node {node} is refused: {error}")]
    Certificate {
        /// The node.
        node: NodeId,
        /// What is wrong with the certificate.
        error: CertificateError,
    },
    /// The certificate in it admits another node.
    #[error("the record of node {node} shows the certificate of node {subject}")]
    NotItsCertificate {
        /// The node.
        node: NodeId,
        /// The node that the certificate admits.
        subject: NodeId,
    },
}

impl<T> Verified<T> {
    fn of(certificate: Signed<Certificate>, statement: Signed<T>) -> Arc<Self> {
        let (claim, tie) = (Claim::of(certificate.value()), tie(statement.raw()));
        Arc::new(Self { statement, certificate, claim, tie })
    }
}

impl Admitted {
    /// Reads a record; checks its bounds, its signature and its certificate.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn verify(raw: Raw, genesis: &Genesis, verifier: &Verifier) -> Result<Self, RecordError> {
        let record = verifier.statement::<Record>(raw)?;
        let Record { mesh, node, ref certificate, .. } = *record.value();
        if mesh != genesis.mesh() {
            return Err(RecordError::WrongMesh { node, found: mesh });
        }
        Ok(Self(Verified::of(verify_certificate(node, certificate, genesis)?, record)))
    }

    /// The record.
    #[must_use]
    pub fn record(&self) -> &Record {
        self.0.statement.value()
    }

    /// The certificate in it.
    #[must_use]
    pub fn certificate(&self) -> &Certificate {
        self.0.certificate.value()
    }

    /// What its certificate rests on.
    pub(crate) fn claim(&self) -> &Claim {
        &self.0.claim
    }

    /// The record as it travels.
    #[must_use]
    pub fn raw(&self) -> &Raw {
        self.0.statement.raw()
    }
}

impl Removed {
    /// Reads a removal; checks its bounds, its signature and its certificate.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn verify(raw: Raw, genesis: &Genesis, verifier: &Verifier) -> Result<Self, RecordError> {
        let removal = verifier.statement::<Removal>(raw)?;
        let Removal { mesh, node, ref certificate, .. } = *removal.value();
        if mesh != genesis.mesh() {
            return Err(RecordError::WrongMesh { node, found: mesh });
        }
        Ok(Self(Verified::of(verify_certificate(node, certificate, genesis)?, removal)))
    }

    /// The removal.
    #[must_use]
    pub fn removal(&self) -> &Removal {
        self.0.statement.value()
    }

    /// What its certificate rests on.
    pub(crate) fn claim(&self) -> &Claim {
        &self.0.claim
    }

    /// The removal as it travels.
    #[must_use]
    pub fn raw(&self) -> &Raw {
        self.0.statement.raw()
    }
}

/// The certificate in an entry of `node`, if it admits that node. An expired one will do: see
/// [`Certificate::verify`].
fn verify_certificate(
    node: NodeId,
    raw: &Raw,
    genesis: &Genesis,
) -> Result<Signed<Certificate>, RecordError> {
    let certificate = Certificate::verify(raw.clone(), genesis)
        .map_err(|error| RecordError::Certificate { node, error })?;
    let subject = certificate.value().subject;
    match subject == node {
        true => Ok(certificate),
        false => Err(RecordError::NotItsCertificate { node, subject }),
    }
}

/// A hash of everything that travels, the signature included, so that replicas that hold equal
/// versions hold equal bytes.
pub(crate) fn tie(raw: &Raw) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new_derive_key("selvedge 2026-11 record tie");
    hasher.update(&raw.signature).update(&raw.bytes);
    let mut tie = [0; 16];
    tie.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    tie
}

fn check_seq(seq: u64) -> Result<(), &'static str> {
    match seq <= MAX_SEQ {
        true => Ok(()),
        false => Err("its sequence number is out of bounds"),
    }
}

fn check_life(life: Life) -> Result<(), &'static str> {
    match life.seconds <= Life::MAX_SECONDS {
        true => Ok(()),
        false => Err("it is to live longer than 30 days"),
    }
}

impl Content for Admitted {
    fn stamp(&self) -> u64 {
        self.record().seq
    }

    fn tie(&self) -> [u8; 16] {
        self.0.tie
    }

    fn expiry(&self) -> u64 {
        self.record().life.end(self.certificate().not_after)
    }
}

impl Content for Removed {
    fn stamp(&self) -> u64 {
        self.removal().seq
    }

    fn tie(&self) -> [u8; 16] {
        self.0.tie
    }

    fn expiry(&self) -> u64 {
        // Beyond its certificate nothing can be made of what it buries.
        self.removal().life.end(self.0.certificate.value().not_after)
    }
}

impl Statement for Record {
    const WHAT: &'static str = "record";
    const CONTEXT: &'static [u8] = b"selvedge mesh record\0";
    const VERSION: u8 = 1;
    const MAX_LEN: usize = 14 * 1024;

    fn signer(&self) -> NodeId {
        self.node
    }

    fn check(&self) -> Result<(), &'static str> {
        check_seq(self.seq)?;
        check_life(self.life)?;
        self.profile.check()
    }
}

impl Statement for Removal {
    const WHAT: &'static str = "removal";
    const CONTEXT: &'static [u8] = b"selvedge mesh removal\0";
    const VERSION: u8 = 1;
    // The greatest certificate, and its signature, fit.
    const MAX_LEN: usize = 3 * 1024;

    fn signer(&self) -> NodeId {
        self.node
    }

    fn check(&self) -> Result<(), &'static str> {
        check_seq(self.seq)?;
        check_life(self.life)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use selvedge_model::WgKey;

    use super::*;
    use crate::identity::Identity;
    use crate::profile::{Bridged, Endpoint, NamedEndpoint};

    fn founder() -> Identity {
        Identity::from_secret(&[1; 32])
    }

    fn genesis() -> Genesis {
        Genesis { founder: founder().node_id(), salt: [2; 16], name: "campus".into() }
    }

    fn record() -> Record {
        let certificate =
            Certificate::of_founder(&genesis(), WgKey([3; 32]), &founder()).expect("in bounds");
        Record {
            mesh: genesis().mesh(),
            node: founder().node_id(),
            seq: 1,
            certificate: certificate.raw().clone(),
            profile: Profile { alias: "one".into(), ..Profile::default() },
            life: Life { issued: 100, seconds: 50 },
        }
    }

    fn verify(record: Record, signer: &Identity) -> Result<Admitted, RecordError> {
        let record = Record { node: signer.node_id(), ..record };
        let raw = Signed::sign(record, signer).expect("in bounds").raw().clone();
        Admitted::verify(raw, &genesis(), &Verifier::default())
    }

    #[test]
    fn a_members_own_record_is_accepted() {
        let admitted = verify(record(), &founder()).expect("valid");
        assert_eq!(admitted.record(), &record());
        assert_eq!(admitted.certificate().wg, WgKey([3; 32]));
    }

    #[test]
    fn a_member_cannot_show_anothers_certificate() {
        let error = verify(record(), &Identity::from_secret(&[9; 32])).expect_err("forged");
        assert!(matches!(error, RecordError::NotItsCertificate { .. }), "{error}");
    }

    #[test]
    fn nobody_can_resign_anothers_record() {
        let raw = Signed::sign(record(), &founder()).expect("in bounds").raw().clone();
        let thief = Identity::from_secret(&[9; 32]);
        let signature = thief.sign(&[Record::CONTEXT, &raw.bytes].concat());
        let error = Admitted::verify(Raw { signature, ..raw }, &genesis(), &Verifier::default())
            .expect_err("forged");
        assert!(matches!(error, RecordError::Signed(SignedError::BadSignature { .. })), "{error}");
    }

    #[test]
    fn records_of_another_mesh_are_refused() {
        let other = Record { mesh: MeshId([0; 20]), ..record() };
        let error = verify(other, &founder()).expect_err("another mesh");
        assert!(matches!(error, RecordError::WrongMesh { .. }), "{error}");
    }

    #[test]
    fn bounds_are_checked() {
        let refused = |record: Record| Signed::sign(record, &founder()).is_err();
        assert!(!refused(Record { seq: MAX_SEQ, ..record() }));
        assert!(refused(Record { seq: MAX_SEQ + 1, ..record() }));
        let life = Life { issued: u64::MAX, seconds: Life::MAX_SECONDS };
        assert!(!refused(Record { life, ..record() }));
        assert!(refused(Record { life: Life { seconds: life.seconds + 1, ..life }, ..record() }));
        let with = |profile: Profile| Record { profile, ..record() };
        let endpoint = Endpoint::from("192.0.2.1:1".parse::<SocketAddr>().expect("valid"));
        let endpoints = vec![endpoint; Profile::MAX_ENDPOINTS + 1];
        assert!(refused(with(Profile { endpoints, ..Profile::default() })));
        assert!(refused(with(Profile { alias: "x".repeat(64), ..Profile::default() })));
        assert!(refused(with(Profile { alias: "\u{1b}[2J".into(), ..Profile::default() })));
        assert!(refused(with(Profile { description: "x".repeat(256), ..Profile::default() })));
    }

    #[test]
    fn no_record_outlives_its_certificate() {
        let end = |issued, seconds, not_after| Life { issued, seconds }.end(not_after);
        assert_eq!(end(100, 50, 1000), 150);
        assert_eq!(end(100, 50, 120), 120);
        assert_eq!(end(100, 0, 1000), 1000);
        assert_eq!(end(u64::MAX, 50, 1000), 1000);
        let expiry = verify(record(), &founder()).expect("valid").expiry();
        assert_eq!(expiry, 150, "a founder's certificate does not expire");
    }

    #[test]
    fn the_greatest_record_fits() {
        let endpoint = Endpoint::from("[2001:db8::1]:65535".parse::<SocketAddr>().expect("valid"));
        let host = "x".repeat(NamedEndpoint::MAX_HOST);
        let path: Vec<MeshId> = (0..8).map(|number| MeshId([number; 20])).collect();
        let bridged = Bridged { prefix: "fd00::/64".parse().expect("valid"), path };
        let value = "x".repeat(Profile::MAX_SERVICE_BYTES / Profile::MAX_SERVICES - 2);
        let service = |number: usize| (format!("{number:02}"), value.clone());
        let profile = Profile {
            endpoints: vec![endpoint.clone(); Profile::MAX_ENDPOINTS],
            control: vec![endpoint; Profile::MAX_ENDPOINTS],
            alias: "x".repeat(Profile::MAX_ALIAS),
            description: "x".repeat(Profile::MAX_DESCRIPTION),
            names: vec![NamedEndpoint { host, port: 51_820, control: 7654 }; Profile::MAX_NAMES],
            datagram_port: 65_535,
            client: true,
            drained: true,
            avoids: vec![NodeId([1; 32]); Profile::MAX_AVOIDS],
            routes: vec!["fd00::/64".parse().expect("valid"); Profile::MAX_ROUTES],
            bridged: vec![bridged; Profile::MAX_BRIDGED],
            services: (0..Profile::MAX_SERVICES).map(service).collect(),
            overlay_ipv4: Some([255, 255, 255, 255].into()),
            version: "x".repeat(Profile::MAX_VERSION),
            shared: true,
        };
        // The greatest certificate takes more than the founder's.
        let certificate = Raw { bytes: vec![1; Certificate::MAX_LEN], signature: [1; 64] };
        let greatest = Record {
            profile: profile.clone(),
            certificate,
            life: Life { issued: u64::MAX, seconds: Life::MAX_SECONDS },
            seq: MAX_SEQ,
            ..record()
        };
        Signed::sign(greatest, &founder()).expect("fits");
        let life = Life { issued: u64::MAX, seconds: Life::MAX_SECONDS };
        verify(Record { profile, life, seq: MAX_SEQ, ..record() }, &founder()).expect("fits");
    }
}
