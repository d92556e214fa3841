//! What travels between the agents.
//!
//! A message is a CBOR array of four: the version, the mesh, the kind, and a map of numbered
//! fields. Whoever reads it skips fields that it does not know; a message of an unknown kind is
//! dropped, one of an unknown version is an error that names the version. Kinds in use:
//!
//! | kind | message | direction |
//! |---|---|---|
//! | 1 | [`Message::Digest`] | begins a reconciliation |
//! | 2 | [`Message::Same`] | the answer if the states are equal |
//! | 5 | [`Message::Records`] | brings what the other lacks |
//! | 6 | [`Message::WhoAreYou`] | the answer to a node that is not known |
//! | 7 | [`Message::Ranges`] | narrows down what is different, and asks for what is lacking |
//! | 8 | [`Message::News`] | brings what is new |
//! | 9 | [`Message::Announce`] | names what is new |
//! | 10 | [`Message::Graft`] | asks for what was named, and for what comes after it |
//! | 11 | [`Message::Prune`] | asks to name only what comes after it |
//! | 12 | [`Message::Lives`] | narrows down which verdicts are different |
//! | 13 | [`Message::Doubt`] | names verdicts that the other lacks |
//! | 16 | [`Message::Join`] | redeems an invite |
//! | 17 | [`Message::Welcome`] | the answer if it is accepted |
//! | 18 | [`Message::Refused`] | the answer if it is not |
//! | 19 | [`Message::Evictions`] | narrows down which evictions are different |
//! | 24 | [`Message::Ping`] | asks whether a node lives |
//! | 25 | [`Message::Ack`] | it does |
//! | 26 | [`Message::Ask`] | asks to probe another node |
//! | 27 | [`Message::Vouch`] | the answer if that node lives |
//! | 28 | [`Message::Accuse`] | the answer if it does not answer |
//! | 29 | [`Message::Call`] | from one client to another, by the peers that they are attached to |
//! | 30 | [`Message::Seen`] | tells a partner where it is seen; between the drivers |
//!
//! 3 and 4 were used by version 1; 14 and 15 are kept for routes, 20 to 23 for renewal, 31 for clients. No decoder allocates more than a few times the length of its
//! input.
//!
//! A node reads its own version and the next one: whatever a version adds, the one before skips,
//! so that a mesh can be upgraded node by node.

use std::net::IpAddr;

use minicbor::decode::Decoder;
use minicbor::encode::Encoder;
use minicbor::{Decode, Encode};
use selvedge_model::{MeshId, NodeId, WgKey};

use crate::broadcast::NewsId;
pub use crate::call::Call;
use crate::codec::{self, fixed};
use crate::crdt::Digest;
use crate::reconcile::Ranges;
use crate::rumor::Rumor;
use crate::signed::Raw;

/// The version of the format. The one before it and the next are read too, so that members of two
/// adjacent versions understand each other.
pub const WIRE_VERSION: u8 = 2;
/// The first version that was released.
const FIRST_VERSION: u8 = 2;
/// Messages of up to so many bytes are sent as datagrams: they fit into one packet on any path,
/// the headers of IPv6, UDP and the encryption included.
pub const MAX_DATAGRAM: usize = 1180;
/// No message is longer than this, in bytes.
pub const MAX_MESSAGE: usize = 1 << 20;
/// No message of a node that is not a member need be longer than this, in bytes.
pub const MAX_STRANGERS_MESSAGE: usize = 16 << 10;
/// The greatest number of rumors in one message.
pub const MAX_RUMORS: usize = 64;
/// The greatest number of pieces of news that are named in one message.
pub const MAX_NEWS: usize = 256;
/// The greatest number of records, and of removals, in one message.
pub const MAX_RECORDS: usize = 1024;
/// A sender begins a new message when the records in one exceed this many bytes.
pub(crate) const RECORDS_BUDGET: usize = 256 << 10;

/// A message and the mesh that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The mesh.
    pub mesh: MeshId,
    /// The message.
    pub message: Message,
}

/// What one agent tells another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Here is what I hold, in short.
    Digest(Summary),
    /// I hold the same.
    Same,
    /// Here is what I hold of some ranges of keys, and what I lack.
    Ranges(Ranges),
    /// Here is what you lack.
    Records(Records),
    /// Here is what is new.
    News(News),
    /// I know something new.
    Announce(Named),
    /// Send me this, and what is new from now on.
    Graft(Named),
    /// Name to me what is new from now on.
    Prune,
    /// Here is which verdicts I hold of some ranges of nodes, and which I want.
    Lives(Ranges),
    /// I hold these nodes to be down. Do you?
    Doubt(Named),
    /// I do not know you: show me your record.
    WhoAreYou,
    /// Admit me.
    Join(Join),
    /// You are admitted.
    Welcome(Welcome),
    /// You are not admitted.
    Refused(Refused),
    /// Here is which evictions I hold of some ranges, and what I lack.
    Evictions(Ranges),
    /// Do you live?
    Ping(Probe),
    /// I live.
    Ack(Probe),
    /// Does that node live?
    Ask(Ask),
    /// That node lives.
    Vouch(Vouch),
    /// A node does not answer me: a signed [`crate::rumor::Accusation`].
    Accuse(Accuse),
    /// One client has something to say to another.
    Call(Call),
    /// I see you there. Where packets come from is known to drivers alone, so the core has no part
    /// in it.
    Seen(Seen),
}

/// The body of [`Message::Digest`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Summary {
    /// A hash of the state.
    #[cbor(n(0), with = "fixed")]
    pub hash: [u8; 16],
    /// The number of nodes in it, those that left included.
    #[n(1)]
    pub count: u64,
    /// The sender's own record, for a receiver that may not know it.
    #[n(2)]
    pub introduction: Option<Raw>,
    /// With an introduction, how the hash of the evictions that the sender holds begins; absent if
    /// it holds none, or is of a version that knows of none.
    #[n(3)]
    pub evictions: Option<u32>,
}

/// The body of [`Message::News`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct News {
    /// Entries.
    #[n(0)]
    #[cbor(default)]
    pub entries: Records,
    /// What is said of the members' lives.
    #[cbor(n(1), decode_with = "codec::list::<MAX_RUMORS, _, _>", default)]
    pub rumors: Vec<Rumor>,
}

/// The body of [`Message::Announce`], [`Message::Graft`] and [`Message::Doubt`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Named {
    /// What is named.
    #[cbor(n(0), decode_with = "codec::list::<MAX_NEWS, _, _>", default)]
    pub news: Vec<NewsId>,
}

/// The body of [`Message::Ping`] and [`Message::Ack`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Probe {
    /// Chosen by who asks; the answer repeats it.
    #[n(0)]
    pub number: u32,
    /// How the hash of the sender's state begins.
    #[cbor(n(1), with = "fixed")]
    pub hash: [u8; 8],
    /// The receiver is held to be down, and this is the last incarnation of it that was heard.
    #[n(2)]
    pub down: Option<u64>,
    /// How the hash of the verdicts that the sender holds begins; absent if it holds none.
    #[n(3)]
    pub lives: Option<u32>,
    /// In a [`Message::Ping`], how the hash of the evictions that the sender holds begins; absent if
    /// it holds none, or is of a version that knows of none.
    #[n(4)]
    pub evictions: Option<u32>,
}

/// The body of [`Message::Ask`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Ask {
    /// Whom to probe.
    #[cbor(n(0), with = "fixed")]
    pub target: NodeId,
    /// The answer repeats it.
    #[n(1)]
    pub number: u32,
    /// The last incarnation of it that was heard.
    #[n(2)]
    pub incarnation: u64,
}

/// The body of [`Message::Vouch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Vouch {
    /// Who lives.
    #[cbor(n(0), with = "fixed")]
    pub target: NodeId,
    /// That of the question.
    #[n(1)]
    pub number: u32,
}

/// The body of [`Message::Accuse`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Accuse {
    /// The signed accusation.
    #[n(0)]
    pub accusation: Raw,
}

/// The body of [`Message::Seen`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Seen {
    /// The address from which the receiver's packets come.
    #[n(0)]
    pub addr: IpAddr,
}

/// The body of [`Message::Records`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Records {
    /// Signed records.
    #[cbor(n(0), decode_with = "codec::list::<MAX_RECORDS, _, _>", default)]
    pub records: Vec<Raw>,
    /// Signed removals.
    #[cbor(n(1), decode_with = "codec::list::<MAX_RECORDS, _, _>", default)]
    pub removals: Vec<Raw>,
    /// Signed evictions.
    #[cbor(n(2), decode_with = "codec::list::<MAX_RECORDS, _, _>", default)]
    #[cbor(skip_if = "Vec::is_empty")]
    pub evictions: Vec<Raw>,
}

/// The body of [`Message::Join`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Join {
    /// The signed invite.
    #[n(0)]
    pub invite: Raw,
    /// The WireGuard key of the node that wants to join.
    #[cbor(n(1), with = "fixed")]
    pub wg: WgKey,
}

/// The body of [`Message::Welcome`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Welcome {
    /// The signed certificate.
    #[n(0)]
    pub certificate: Raw,
    /// The state, or the first part of it; the rest comes by reconciliation.
    #[n(1)]
    pub state: Records,
}

/// The body of [`Message::Refused`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Refused {
    /// The reason; absent if it is one that only a newer version knows.
    #[cbor(n(0), with = "reason", has_nil)]
    pub reason: Option<RefusedReason>,
    /// The reason in words.
    #[cbor(n(1), decode_with = "codec::text::<{ Refused::MAX_DETAIL }, _>")]
    pub detail: String,
}

impl Refused {
    /// The greatest length of the detail in bytes.
    pub const MAX_DETAIL: usize = 300;
}

/// Why a node is not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedReason {
    /// The invite is malformed or forged.
    BadInvite = 0,
    /// The invite has expired.
    Expired = 1,
    /// Others have joined with it, as many as may.
    UsedUp = 2,
    /// The invite is for another mesh.
    WrongMesh = 3,
    /// The node that was asked did not issue the invite.
    NotIssuer = 4,
    /// The WireGuard key belongs to another node.
    KeyInUse = 5,
    /// The mesh is full.
    Full = 6,
    /// The node was evicted, and the invite does not bring it back.
    Evicted = 7,
}

impl RefusedReason {
    const ALL: [Self; 8] = [
        Self::BadInvite,
        Self::Expired,
        Self::UsedUp,
        Self::WrongMesh,
        Self::NotIssuer,
        Self::KeyInUse,
        Self::Full,
        Self::Evicted,
    ];
}

/// Why bytes are no message. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Longer than any message.
    #[error("the message is too long: {len} bytes, at most {MAX_MESSAGE} are allowed")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// Of a version that is not known here.
    #[error(
        "the message has wire version {found}, which is not known here (known: {WIRE_VERSION} \
         and its neighbours)"
    )]
    UnknownVersion {
        /// Its version.
        found: u64,
    },
    /// Of a kind that is not known here, perhaps from a newer node.
    #[error("the message is of kind {kind}, which is not known here")]
    UnknownKind {
        /// Its kind.
        kind: u64,
    },
    /// Not the shape of a message.
    #[error("the message is malformed: {0}")]
    Malformed(String),
}

impl Envelope {
    /// The message in bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        Encoder::new(&mut bytes)
            .array(4)
            .and_then(|e| e.u8(WIRE_VERSION))
            .and_then(|e| e.bytes(self.mesh.as_bytes()))
            .and_then(|e| e.u64(self.message.kind()))
            .expect("writing to a Vec does not fail");
        bytes.extend(self.message.encode_body());
        bytes
    }

    /// Reads a message.
    ///
    /// # Errors
    /// See [`WireError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let Header { mesh, kind, body } = Header::decode(bytes)?;
        Ok(Self { mesh, message: Message::decode_body(kind, body)? })
    }
}

/// The mesh that a message belongs to.
///
/// # Errors
/// If the message is too long, of an unknown version, or its beginning is malformed.
pub fn mesh_of(bytes: &[u8]) -> Result<MeshId, WireError> {
    Header::decode(bytes).map(|header| header.mesh)
}

/// The number that stands for the kind of a message ([`Message::kind`]), also of an unknown one.
///
/// # Errors
/// If the message is too long, of an unknown version, or its beginning is malformed.
pub fn kind_of(bytes: &[u8]) -> Result<u64, WireError> {
    Header::decode(bytes).map(|header| header.kind)
}

impl Message {
    /// The number that stands for the kind of message.
    #[must_use]
    pub const fn kind(&self) -> u64 {
        match self {
            Self::Digest(_) => 1,
            Self::Same => 2,
            Self::Records(_) => 5,
            Self::WhoAreYou => 6,
            Self::Ranges(_) => 7,
            Self::News(_) => 8,
            Self::Announce(_) => 9,
            Self::Graft(_) => 10,
            Self::Prune => 11,
            Self::Lives(_) => 12,
            Self::Doubt(_) => 13,
            Self::Join(_) => 16,
            Self::Welcome(_) => 17,
            Self::Refused(_) => 18,
            Self::Evictions(_) => 19,
            Self::Ping(_) => 24,
            Self::Ack(_) => 25,
            Self::Ask(_) => 26,
            Self::Vouch(_) => 27,
            Self::Accuse(_) => 28,
            Self::Call(_) => 29,
            Self::Seen(_) => 30,
        }
    }

    fn encode_body(&self) -> Vec<u8> {
        match self {
            Self::Digest(body) => codec::to_vec(body),
            Self::Records(body) => codec::to_vec(body),
            Self::Ranges(body) | Self::Lives(body) | Self::Evictions(body) => codec::to_vec(body),
            Self::News(body) => codec::to_vec(body),
            Self::Announce(body) | Self::Graft(body) | Self::Doubt(body) => codec::to_vec(body),
            Self::Join(body) => codec::to_vec(body),
            Self::Welcome(body) => codec::to_vec(body),
            Self::Refused(body) => codec::to_vec(body),
            Self::Ping(body) | Self::Ack(body) => codec::to_vec(body),
            Self::Ask(body) => codec::to_vec(body),
            Self::Vouch(body) => codec::to_vec(body),
            Self::Accuse(body) => codec::to_vec(body),
            Self::Call(body) => codec::to_vec(body),
            Self::Seen(body) => codec::to_vec(body),
            Self::Same | Self::WhoAreYou | Self::Prune => codec::to_vec(&Empty {}),
        }
    }

    fn decode_body(kind: u64, bytes: &[u8]) -> Result<Self, WireError> {
        fn body<'b, T: Decode<'b, ()>>(bytes: &'b [u8]) -> Result<T, WireError> {
            codec::from_slice(bytes).map_err(malformed)
        }
        match kind {
            1 => body(bytes).map(Self::Digest),
            2 => body::<Empty>(bytes).map(|Empty {}| Self::Same),
            5 => body(bytes).map(Self::Records),
            6 => body::<Empty>(bytes).map(|Empty {}| Self::WhoAreYou),
            7 => body(bytes).map(Self::Ranges),
            8 => body(bytes).map(Self::News),
            9 => body(bytes).map(Self::Announce),
            10 => body(bytes).map(Self::Graft),
            11 => body::<Empty>(bytes).map(|Empty {}| Self::Prune),
            12 => body(bytes).map(Self::Lives),
            13 => body(bytes).map(Self::Doubt),
            16 => body(bytes).map(Self::Join),
            17 => body(bytes).map(Self::Welcome),
            18 => body(bytes).map(Self::Refused),
            19 => body(bytes).map(Self::Evictions),
            24 => body(bytes).map(Self::Ping),
            25 => body(bytes).map(Self::Ack),
            26 => body(bytes).map(Self::Ask),
            27 => body(bytes).map(Self::Vouch),
            28 => body(bytes).map(Self::Accuse),
            29 => body(bytes).map(Self::Call),
            30 => body(bytes).map(Self::Seen),
            kind => Err(WireError::UnknownKind { kind }),
        }
    }
}

impl Summary {
    /// The digest.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        Digest { hash: self.hash, count: self.count }
    }
}

/// The body of a message that consists of its kind.
#[derive(Encode, Decode)]
#[cbor(map)]
struct Empty {}

struct Header<'a> {
    mesh: MeshId,
    kind: u64,
    body: &'a [u8],
}

impl<'a> Header<'a> {
    fn decode(bytes: &'a [u8]) -> Result<Self, WireError> {
        if bytes.len() > MAX_MESSAGE {
            return Err(WireError::TooLong { len: bytes.len() });
        }
        let mut d = Decoder::new(bytes);
        let items = d.array().map_err(malformed)?;
        let found = d.u64().map_err(malformed)?;
        if !is_known(found, WIRE_VERSION) {
            return Err(WireError::UnknownVersion { found });
        }
        if items != Some(4) {
            return Err(WireError::Malformed("it does not have four parts".into()));
        }
        let mesh = fixed::decode(&mut d, &mut ()).map_err(malformed)?;
        let kind = d.u64().map_err(malformed)?;
        Ok(Self { mesh, kind, body: &bytes[d.position()..] })
    }
}

/// Whether a message of this version can be read by a node that writes its `own`.
const fn is_known(found: u64, own: u8) -> bool {
    found >= FIRST_VERSION as u64 && found.abs_diff(own as u64) <= 1
}

#[allow(clippy::needless_pass_by_value, reason = "the shape that map_err asks for")]
fn malformed(error: minicbor::decode::Error) -> WireError {
    WireError::Malformed(error.to_string())
}

/// A reason as a number. A number that is not known is none.
mod reason {
    use minicbor::decode::{self, Decoder};
    use minicbor::encode::{self, Encoder, Write};

    use super::RefusedReason;

    pub(super) fn encode<Ctx, W: Write>(
        reason: &Option<RefusedReason>,
        e: &mut Encoder<W>,
        _: &mut Ctx,
    ) -> Result<(), encode::Error<W::Error>> {
        match reason {
            Some(reason) => e.u32(*reason as u32)?.ok(),
            None => e.null()?.ok(),
        }
    }

    pub(super) fn decode<Ctx>(
        d: &mut Decoder<'_>,
        _: &mut Ctx,
    ) -> Result<Option<RefusedReason>, decode::Error> {
        if d.datatype()? == minicbor::data::Type::Null {
            d.null()?;
            return Ok(None);
        }
        let number = d.u32()?;
        Ok(RefusedReason::ALL.into_iter().find(|reason| *reason as u32 == number))
    }

    pub(super) use crate::codec::optional::{is_nil, nil};
}

#[cfg(test)]
mod tests;
