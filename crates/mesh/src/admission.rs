use minicbor::{Decode, Encode};
use selvedge_model::{MeshId, NodeId, Prefix, WgKey};

use crate::codec::{self, fixed, prefixes};
use crate::identity::Identity;
use crate::signed::{Raw, Signed, SignedError, Statement};
use crate::time::UnixTime;

/// The beginning of a mesh, of which its id is a hash.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Genesis {
    /// The node that founded the mesh. Its signature admits the others.
    #[cbor(n(0), with = "fixed")]
    pub founder: NodeId,
    /// Distinguishes the meshes of one founder.
    #[cbor(n(1), with = "fixed")]
    pub salt: [u8; 16],
    /// The name for people: 1 to 32 letters, digits, `.`, `_` and `-`, the first a letter or
    /// digit. Not part of the id.
    #[cbor(n(2), decode_with = "codec::text::<{ Genesis::MAX_NAME }, _>")]
    pub name: String,
}

impl Genesis {
    /// The greatest length of a name in bytes.
    pub const MAX_NAME: usize = 32;

    /// The id of the mesh: a hash of founder and salt.
    #[must_use]
    pub fn mesh(&self) -> MeshId {
        let mut hasher = blake3::Hasher::new_derive_key("selvedge 2026-11 mesh id");
        hasher.update(self.founder.as_bytes()).update(&self.salt);
        let mut id = [0; MeshId::LEN];
        id.copy_from_slice(&hasher.finalize().as_bytes()[..MeshId::LEN]);
        MeshId(id)
    }

    /// Whether the name is one.
    ///
    /// # Errors
    /// What is expected of a name.
    pub fn check(&self) -> Result<(), &'static str> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        let first = self.name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        let valid = first && self.name.len() <= Self::MAX_NAME && self.name.bytes().all(allowed);
        valid.then_some(()).ok_or(
            "the name of a mesh is 1 to 32 letters, digits, '.', '_' or '-', the first a letter \
             or digit",
        )
    }
}

/// What a member is to the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(index_only)]
pub enum Role {
    /// Reachable from outside; forwards.
    #[n(0)]
    Peer,
    /// Behind a NAT; reaches the others through a peer.
    #[n(1)]
    Client,
}

/// Admits one node, with one WireGuard key, to one mesh. Field 9 is kept for the chain of
/// issuers between the signer and the founder.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Certificate {
    /// The mesh.
    #[cbor(n(0), with = "fixed")]
    pub mesh: MeshId,
    /// The node that is admitted.
    #[cbor(n(1), with = "fixed")]
    pub subject: NodeId,
    /// Its WireGuard key in this mesh.
    #[cbor(n(2), with = "fixed")]
    pub wg: WgKey,
    /// Its role.
    #[n(3)]
    pub role: Role,
    /// The prefixes that it may announce besides its own overlay address.
    #[cbor(n(4), encode_with = "prefixes::encode")]
    #[cbor(decode_with = "prefixes::decode::<{ Certificate::MAX_PREFIXES }, _>")]
    pub prefixes: Vec<Prefix>,
    /// Whether it may sign invites itself.
    #[n(5)]
    pub may_invite: bool,
    /// The last second in which it is valid (Unix time).
    #[n(6)]
    pub not_after: u64,
    /// Counts the certificates of one issuer.
    #[n(7)]
    pub serial: u64,
    /// The node that signs.
    #[cbor(n(8), with = "fixed")]
    pub issuer: NodeId,
}

/// Why a certificate is not accepted. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Malformed, of an unknown version, or not signed by its issuer.
    #[error(transparent)]
    Signed(#[from] SignedError),
    /// For another mesh.
    #[error("the certificate is for mesh {found}, not for mesh {expected}")]
    WrongMesh {
        /// The mesh that it is for.
        found: MeshId,
        /// The mesh in which it was shown.
        expected: MeshId,
    },
    /// Issued by a node that may not.
    #[error("the certificate was issued by node {issuer}, which may not admit nodes")]
    NotByFounder {
        /// The issuer.
        issuer: NodeId,
    },
}

impl Certificate {
    /// The greatest number of prefixes.
    pub const MAX_PREFIXES: usize = 32;

    /// The certificate by which a founder admits itself: a peer that may invite, for ever.
    pub(crate) fn of_founder(
        genesis: &Genesis,
        wg: WgKey,
        identity: &Identity,
    ) -> Result<Signed<Self>, SignedError> {
        let certificate = Self {
            mesh: genesis.mesh(),
            subject: genesis.founder,
            wg,
            role: Role::Peer,
            prefixes: Vec::new(),
            may_invite: true,
            not_after: UnixTime::NEVER.0,
            serial: 0,
            issuer: genesis.founder,
        };
        Signed::sign(certificate, identity)
    }

    /// Reads a certificate and checks that it admits its subject to the mesh of `genesis`.
    ///
    /// Whether it has expired is not looked at here: replicas whose clocks differ must take
    /// over the same records. An expired member stays in the records and is no member.
    ///
    /// # Errors
    /// See [`CertificateError`].
    pub fn verify(raw: Raw, genesis: &Genesis) -> Result<Signed<Self>, CertificateError> {
        let signed = Signed::<Self>::verify(raw)?;
        let certificate = signed.value();
        let expected = genesis.mesh();
        if certificate.mesh != expected {
            return Err(CertificateError::WrongMesh { found: certificate.mesh, expected });
        }
        if certificate.issuer != genesis.founder {
            return Err(CertificateError::NotByFounder { issuer: certificate.issuer });
        }
        Ok(signed)
    }

    /// Whether it is no longer valid.
    #[must_use]
    pub const fn has_expired(&self, wall: UnixTime) -> bool {
        self.not_after < wall.0
    }
}

impl Statement for Certificate {
    const WHAT: &'static str = "certificate";
    const CONTEXT: &'static [u8] = b"selvedge mesh certificate\0";
    const VERSION: u8 = 1;
    const MAX_LEN: usize = 2048;

    fn signer(&self) -> NodeId {
        self.issuer
    }

    fn check(&self) -> Result<(), &'static str> {
        let few = self.prefixes.len() <= Self::MAX_PREFIXES;
        few.then_some(()).ok_or("it allows too many prefixes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn founder() -> Identity {
        Identity::from_secret(&[1; 32])
    }

    fn genesis(salt: u8) -> Genesis {
        Genesis { founder: founder().node_id(), salt: [salt; 16], name: "campus".into() }
    }

    fn certificate(issuer: &Identity) -> Signed<Certificate> {
        let certificate = Certificate {
            mesh: genesis(1).mesh(),
            subject: NodeId([5; 32]),
            wg: WgKey([6; 32]),
            role: Role::Client,
            prefixes: vec![
                "10.1.2.3/24".parse().expect("valid"),
                "fd00::/8".parse().expect("valid"),
            ],
            may_invite: false,
            not_after: 1000,
            serial: 7,
            issuer: issuer.node_id(),
        };
        Signed::sign(certificate, issuer).expect("in bounds")
    }

    #[test]
    fn a_founder_may_found_several_meshes() {
        assert_ne!(genesis(1).mesh(), genesis(2).mesh());
        let renamed = Genesis { name: "other".into(), ..genesis(1) };
        assert_eq!(genesis(1).mesh(), renamed.mesh());
    }

    #[test]
    fn mesh_names_fit_into_file_and_interface_names() {
        let check = |name: &str| Genesis { name: name.into(), ..genesis(1) }.check();
        assert_eq!(check("campus-1.a_b"), Ok(()));
        for bad in ["", "-a", "a/b", "../a", "a b", "\u{e4}", &"x".repeat(33)] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn certificates_of_the_founder_are_accepted() {
        let signed = certificate(&founder());
        let read = Certificate::verify(signed.raw().clone(), &genesis(1)).expect("valid");
        assert_eq!(read, signed);
        assert!(!read.value().has_expired(UnixTime(1000)));
        assert!(read.value().has_expired(UnixTime(1001)));
    }

    #[test]
    fn certificates_of_others_are_refused() {
        let stranger = Identity::from_secret(&[2; 32]);
        let error = Certificate::verify(certificate(&stranger).raw().clone(), &genesis(1));
        let issuer = stranger.node_id();
        assert_eq!(error, Err(CertificateError::NotByFounder { issuer }));
    }

    #[test]
    fn certificates_for_another_mesh_are_refused() {
        let error = Certificate::verify(certificate(&founder()).raw().clone(), &genesis(2));
        assert!(matches!(error, Err(CertificateError::WrongMesh { .. })), "{error:?}");
    }
}
