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

/// Admits one node, with one WireGuard key, to one mesh.
///
/// The founder signs it, or a member whose own certificate, signed by the founder, says that it may
/// invite. There is no third link: whom a member admitted admits nobody.
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
    /// The signed certificate of the issuer, unless that is the founder.
    #[n(9)]
    pub sponsor: Option<Raw>,
    /// The number of the issuer's last eviction of the subject, which the issuer takes back; 0 if
    /// there is none. See [`crate::Eviction`].
    #[n(10)]
    #[cbor(default, skip_if = "codec::is_default")]
    pub pardons: u32,
    /// How many the subject may admit, if it may invite; [`Certificate::GUESTS`] if absent.
    #[n(11)]
    pub guests: Option<u32>,
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
    MayNotAdmit {
        /// The issuer.
        issuer: NodeId,
    },
    /// It grants what its issuer was not granted.
    #[error("the certificate was issued by node {issuer}, but {excess}")]
    Exceeds {
        /// The issuer.
        issuer: NodeId,
        /// What is too much.
        excess: &'static str,
    },
}

impl Certificate {
    /// The greatest number of prefixes.
    pub const MAX_PREFIXES: usize = 32;
    /// How many a member that may invite admits at most, unless its certificate says otherwise.
    pub const GUESTS: u32 = 256;

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
            sponsor: None,
            pardons: 0,
            guests: None,
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
        let issuer = certificate.issuer;
        if let Some(sponsor) = Self::sponsor_of(issuer, certificate.sponsor.as_ref(), genesis)? {
            let exceeds = |excess| CertificateError::Exceeds { issuer, excess };
            sponsor.check_passed_on(certificate).map_err(exceeds)?;
        }
        Ok(signed)
    }

    /// The certificate by which `issuer` may admit others; `None` if it is the founder.
    ///
    /// # Errors
    /// If `shown` is not such a certificate, signed by the founder.
    pub(crate) fn sponsor_of(
        issuer: NodeId,
        shown: Option<&Raw>,
        genesis: &Genesis,
    ) -> Result<Option<Self>, CertificateError> {
        if issuer == genesis.founder {
            return Ok(None);
        }
        let shown = shown.ok_or(CertificateError::MayNotAdmit { issuer })?;
        let sponsor = Signed::<Self>::verify(shown.clone())?.into_value();
        let by_founder = sponsor.mesh == genesis.mesh() && sponsor.issuer == genesis.founder;
        match by_founder && sponsor.subject == issuer && sponsor.may_invite {
            true => Ok(Some(sponsor)),
            false => Err(CertificateError::MayNotAdmit { issuer }),
        }
    }

    /// Whether the subject may give all of this to another.
    ///
    /// # Errors
    /// What is too much.
    pub(crate) fn check_grant(&self, grant: &Grant) -> Result<(), &'static str> {
        if !self.may_invite {
            return Err("this node may not invite");
        }
        if self.subject == self.issuer {
            return Ok(());
        }
        if grant.may_invite {
            return Err("only the founder lets others invite");
        }
        if grant.role < self.role {
            return Err("a client admits clients only");
        }
        match grant.prefixes.iter().all(|prefix| permits(&self.prefixes, *prefix)) {
            true => Ok(()),
            false => Err("a prefix is not within those that the issuer may announce itself"),
        }
    }

    /// Whether the subject may have issued `other`.
    fn check_passed_on(&self, other: &Self) -> Result<(), &'static str> {
        self.check_grant(&other.grant())?;
        match other.not_after <= self.not_after {
            true => Ok(()),
            false => Err("it is valid for longer than the issuer's own"),
        }
    }

    fn grant(&self) -> Grant {
        let Self { role, ref prefixes, may_invite, guests, .. } = *self;
        Grant { role, prefixes: prefixes.clone(), may_invite, guests }
    }

    /// How many the subject may admit, if it may invite.
    #[must_use]
    pub fn most_guests(&self) -> usize {
        usize::try_from(self.guests.unwrap_or(Self::GUESTS)).unwrap_or(usize::MAX)
    }

    /// Whether it is no longer valid.
    #[must_use]
    pub const fn has_expired(&self, wall: UnixTime) -> bool {
        self.not_after < wall.0
    }
}

/// What a member is let do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// What it is to the mesh.
    pub role: Role,
    /// The prefixes that it may announce besides its own overlay address: networks behind it, and
    /// those of other meshes to which it is a bridge.
    pub prefixes: Vec<Prefix>,
    /// Whether it may invite others. The founder alone grants this.
    pub may_invite: bool,
    /// How many it may admit, if it may invite; [`Certificate::GUESTS`] if absent.
    pub guests: Option<u32>,
}

impl Default for Grant {
    fn default() -> Self {
        Self { role: Role::Peer, prefixes: Vec::new(), may_invite: false, guests: None }
    }
}

/// Whether whoever has the permits `prefixes` may announce `prefix`: whether one of them has all of
/// it. One of length zero makes an exit and nothing else: who is trusted with packets to the
/// internet cannot attract those to a network behind another member, or to another mesh.
#[must_use]
pub fn permits(prefixes: &[Prefix], prefix: Prefix) -> bool {
    prefixes.iter().any(|wide| {
        let exit = wide.len() == 0 && prefix.len() > 0;
        !exit && wide.len() <= prefix.len() && wide.contains(prefix.addr())
    })
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
            sponsor: None,
            pardons: 0,
            guests: None,
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
        assert_eq!(error, Err(CertificateError::MayNotAdmit { issuer }));
    }

    #[test]
    fn certificates_for_another_mesh_are_refused() {
        let error = Certificate::verify(certificate(&founder()).raw().clone(), &genesis(2));
        assert!(matches!(error, Err(CertificateError::WrongMesh { .. })), "{error:?}");
    }
}
