use std::net::SocketAddr;

use data_encoding::BASE64URL_NOPAD;
use minicbor::{Decode, Encode};
use selvedge_model::{MeshId, NodeId, Prefix};

use crate::admission::{Certificate, Genesis, Grant, Role};
use crate::codec::{self, fixed, prefixes};
use crate::signed::{Raw, Signed, SignedError, Statement};
use crate::time::UnixTime;

/// What every token of this version begins with.
const TOKEN_PREFIX: &str = "svm1";
/// Tells a damaged token from a forged one.
const CHECKSUM_LEN: usize = 4;
/// No token is longer than this, in characters.
const MAX_TOKEN: usize = 8 * 1024;

/// Names an invite: 16 random bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InviteId(pub [u8; 16]);

/// A member at which an invite can be redeemed.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Bootstrap {
    /// Where it listens (QUIC).
    #[n(0)]
    pub addr: SocketAddr,
    /// Who it is. Whoever answers at the address must prove to be this node.
    #[cbor(n(1), with = "fixed")]
    pub node: NodeId,
}

/// Whoever holds it may join, so many times, until it expires.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Invite {
    /// The mesh.
    #[n(0)]
    pub genesis: Genesis,
    /// Distinguishes the invites of a mesh.
    #[cbor(n(1), with = "fixed")]
    pub id: InviteId,
    /// Where to redeem it.
    #[cbor(n(2), decode_with = "codec::list::<{ Invite::MAX_BOOTSTRAP }, _, _>")]
    pub bootstrap: Vec<Bootstrap>,
    /// The role of those who join with it.
    #[n(3)]
    pub role: Role,
    /// How many nodes may join with it.
    #[n(4)]
    pub uses: u32,
    /// The last second in which it can be redeemed (Unix time).
    #[n(5)]
    pub not_after: u64,
    /// The node that signs.
    #[cbor(n(6), with = "fixed")]
    pub issuer: NodeId,
    /// The prefixes that those who join with it may announce.
    #[cbor(n(7), encode_with = "prefixes::encode")]
    #[cbor(decode_with = "prefixes::decode::<{ Certificate::MAX_PREFIXES }, _>", default)]
    #[cbor(skip_if = "Vec::is_empty")]
    pub prefixes: Vec<Prefix>,
    /// Whether those who join with it may invite others.
    #[n(8)]
    #[cbor(default, skip_if = "codec::is_default")]
    pub may_invite: bool,
    /// The signed certificate of the issuer, unless that is the founder.
    #[n(9)]
    pub sponsor: Option<Raw>,
    /// The second in which it was signed, by the issuer's clock (Unix time).
    #[n(10)]
    #[cbor(default, skip_if = "codec::is_default")]
    pub issued: u64,
    /// How many evictions the issuer had made ([`crate::Eviction::count`]): whom it evicted later
    /// does not come back with this, whatever the clocks show.
    #[n(11)]
    #[cbor(default, skip_if = "codec::is_default")]
    pub evictions: u64,
    /// How many each of those who join with it may admit, if they may invite others;
    /// [`Certificate::GUESTS`] if absent.
    #[n(12)]
    pub guests: Option<u32>,
}

/// Why a text is no invite. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Something else altogether.
    #[error("this is not an invite token: a token begins with \"svm1\"")]
    NotAToken,
    /// Of a version that is not known here.
    #[error("the token has version {found}, which is not known here (known: 1)")]
    UnknownVersion {
        /// Its version.
        found: String,
    },
    /// Cut, or changed on the way.
    #[error("the token is incomplete or damaged: copy it again, whole")]
    Damaged,
    /// Whole, but not what an issuer makes.
    #[error("the token is invalid: {0}")]
    Invalid(#[from] SignedError),
}

/// Why an invite cannot be used. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InviteError {
    /// Too late.
    #[error("the invite expired at {at}")]
    Expired {
        /// The last second in which it could be redeemed.
        at: UnixTime,
    },
    /// For another mesh.
    #[error("the invite is for mesh {found} ({name}), not for mesh {expected}")]
    WrongMesh {
        /// The mesh that it is for.
        found: MeshId,
        /// The name of that mesh.
        name: String,
        /// The mesh in which it was shown.
        expected: MeshId,
    },
    /// Issued by a node that may not.
    #[error("the invite was issued by node {issuer}, which may not invite")]
    MayNotInvite {
        /// The issuer.
        issuer: NodeId,
    },
}

impl Invite {
    /// The greatest number of bootstrap addresses.
    pub const MAX_BOOTSTRAP: usize = 8;

    /// The mesh that it is for.
    #[must_use]
    pub fn mesh(&self) -> MeshId {
        self.genesis.mesh()
    }

    /// What it lets those do who join with it.
    #[must_use]
    pub fn grant(&self) -> Grant {
        let Self { role, ref prefixes, may_invite, guests, .. } = *self;
        Grant { role, prefixes: prefixes.clone(), may_invite, guests }
    }

    /// Whether it can be used now, by whom it was issued, and, if `mesh` is given, whether it is
    /// for that mesh.
    ///
    /// # Errors
    /// See [`InviteError`].
    pub fn check_use(&self, mesh: Option<MeshId>, wall: UnixTime) -> Result<(), InviteError> {
        let found = self.mesh();
        if let Some(expected) = mesh.filter(|expected| *expected != found) {
            let name = self.genesis.name.clone();
            return Err(InviteError::WrongMesh { found, name, expected });
        }
        let issuer = self.issuer;
        Certificate::sponsor_of(issuer, self.sponsor.as_ref(), &self.genesis)
            .map_err(|_| InviteError::MayNotInvite { issuer })?;
        if self.not_after < wall.0 {
            return Err(InviteError::Expired { at: UnixTime(self.not_after) });
        }
        Ok(())
    }
}

impl Signed<Invite> {
    /// The invite as text: `svm1`, then the signed invite and a checksum in base64url.
    #[must_use]
    pub fn to_token(&self) -> String {
        let mut bytes = codec::to_vec(self.raw());
        let checksum = checksum(&bytes);
        bytes.extend(checksum);
        format!("{TOKEN_PREFIX}{}", BASE64URL_NOPAD.encode(&bytes))
    }

    /// Reads a token and checks its signature. Spaces and line breaks, as mail programs put them
    /// in, do not count. Whether it has expired is told by [`Invite::check_use`].
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn from_token(token: &str) -> Result<Self, TokenError> {
        let token: String =
            token.chars().filter(|c| !c.is_whitespace()).take(MAX_TOKEN + 1).collect();
        let encoded = strip_prefix(&token)?;
        if token.len() > MAX_TOKEN {
            return Err(TokenError::Damaged);
        }
        let bytes = BASE64URL_NOPAD.decode(encoded.as_bytes()).map_err(|_| TokenError::Damaged)?;
        let (body, sum) = bytes.split_last_chunk::<CHECKSUM_LEN>().ok_or(TokenError::Damaged)?;
        if *sum != checksum(body) {
            return Err(TokenError::Damaged);
        }
        let raw = codec::from_slice(body).map_err(|error| {
            TokenError::Invalid(SignedError::Malformed {
                what: Invite::WHAT,
                detail: error.to_string(),
            })
        })?;
        Ok(Self::verify(raw)?)
    }
}

/// What follows the prefix of a token of the known version.
fn strip_prefix(token: &str) -> Result<&str, TokenError> {
    if let Some(encoded) = token.strip_prefix(TOKEN_PREFIX) {
        return Ok(encoded);
    }
    if TOKEN_PREFIX.starts_with(token) && !token.is_empty() {
        return Err(TokenError::Damaged);
    }
    let version = token.strip_prefix("svm").and_then(|rest| rest.chars().next());
    match version.filter(char::is_ascii_digit) {
        Some(version) => Err(TokenError::UnknownVersion { found: version.into() }),
        None => Err(TokenError::NotAToken),
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_LEN] {
    let hash = blake3::derive_key("selvedge 2026-11 token checksum", bytes);
    [hash[0], hash[1], hash[2], hash[3]]
}

impl Statement for Invite {
    const WHAT: &'static str = "invite";
    const CONTEXT: &'static [u8] = b"selvedge mesh invite\0";
    const VERSION: u8 = 1;
    const MAX_LEN: usize = 3 * 1024;

    fn signer(&self) -> NodeId {
        self.issuer
    }

    fn check(&self) -> Result<(), &'static str> {
        self.genesis.check()?;
        if self.bootstrap.is_empty() || self.bootstrap.len() > Self::MAX_BOOTSTRAP {
            return Err("it names no bootstrap address, or too many");
        }
        if self.prefixes.len() > Certificate::MAX_PREFIXES {
            return Err("it allows too many prefixes");
        }
        if self.uses == 0 {
            return Err("it cannot be used even once");
        }
        Ok(())
    }
}

impl codec::Fixed for InviteId {
    fn octets(&self) -> &[u8] {
        &self.0
    }

    fn from_octets(octets: &[u8]) -> Option<Self> {
        octets.try_into().ok().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::identity::Identity;

    fn signed() -> Signed<Invite> {
        let founder = Identity::from_secret(&[1; 32]);
        let genesis = Genesis { founder: founder.node_id(), salt: [2; 16], name: "campus".into() };
        let addr = "192.0.2.1:7654".parse().expect("valid");
        let invite = Invite {
            genesis,
            id: InviteId([3; 16]),
            bootstrap: vec![Bootstrap { addr, node: founder.node_id() }],
            role: Role::Peer,
            uses: 1,
            not_after: 1_795_003_201,
            issuer: founder.node_id(),
            prefixes: vec![],
            may_invite: false,
            sponsor: None,
            issued: 1_795_000_000,
            evictions: 0,
            guests: None,
        };
        Signed::sign(invite, &founder).expect("in bounds")
    }

    #[test]
    fn tokens_are_read_back() {
        let token = signed().to_token();
        assert_eq!(Signed::from_token(&token), Ok(signed()));
        assert!(token.len() < 400, "{} characters", token.len());
        let wrapped = format!(" {}\n  {}\n", &token[..60], &token[60..]);
        assert_eq!(Signed::from_token(&wrapped), Ok(signed()));
    }

    #[test]
    fn a_cut_token_says_so() {
        let token = signed().to_token();
        for len in 1..token.len() {
            assert_eq!(Signed::from_token(&token[..len]), Err(TokenError::Damaged), "{len}");
        }
        assert_eq!(Signed::from_token(&format!("{token}A")), Err(TokenError::Damaged));
    }

    #[test]
    fn a_token_with_a_typing_error_says_so() {
        let token = signed().to_token();
        for index in TOKEN_PREFIX.len()..token.len() {
            let mut typed = token.clone().into_bytes();
            typed[index] = if typed[index] == b'A' { b'B' } else { b'A' };
            let typed = String::from_utf8(typed).expect("ASCII");
            assert_eq!(Signed::from_token(&typed), Err(TokenError::Damaged), "{index}");
        }
    }

    #[test]
    fn other_texts_are_told_apart() {
        assert_eq!(Signed::from_token(""), Err(TokenError::NotAToken));
        assert_eq!(Signed::from_token("hello"), Err(TokenError::NotAToken));
        let newer = Signed::from_token("svm2abc").expect_err("newer");
        assert_eq!(
            newer.to_string(),
            "the token has version 2, which is not known here (known: 1)"
        );
    }

    #[test]
    fn a_forged_token_is_refused() {
        let mut raw = signed().raw().clone();
        raw.signature[5] ^= 1;
        let mut bytes = codec::to_vec(&raw);
        let sum = checksum(&bytes);
        bytes.extend(sum);
        let token = format!("{TOKEN_PREFIX}{}", BASE64URL_NOPAD.encode(&bytes));
        let error = Signed::from_token(&token).expect_err("forged");
        assert!(matches!(error, TokenError::Invalid(SignedError::BadSignature { .. })), "{error}");
    }

    #[test]
    fn use_is_checked() {
        let invite = signed();
        let (invite, mesh) = (invite.value(), invite.value().mesh());
        let in_time = UnixTime(invite.not_after);
        assert_eq!(invite.check_use(Some(mesh), in_time), Ok(()));
        let late = invite.check_use(None, UnixTime(in_time.0 + 1)).expect_err("late");
        assert_eq!(late.to_string(), "the invite expired at 2026-11-18T12:00:01Z");
        let other = MeshId([9; 20]);
        let error = invite.check_use(Some(other), in_time).expect_err("another mesh");
        let expected = format!("the invite is for mesh {mesh} (campus), not for mesh {other}");
        assert_eq!(error.to_string(), expected);
        let issuer = NodeId([8; 32]);
        let error = Invite { issuer, ..invite.clone() }.check_use(None, in_time);
        assert_eq!(error, Err(InviteError::MayNotInvite { issuer }));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(svm1)?[A-Za-z0-9_ \\-\u{e4}]{0,80}") {
            prop_assert!(Signed::from_token(&text).is_err());
        }
    }
}
