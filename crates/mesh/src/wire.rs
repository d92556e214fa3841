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
mod tests {
    use std::net::SocketAddr;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::broadcast::NewsKind;
    use crate::crdt::Version;
    use crate::reconcile::{End, Item, Items, MAX_PARTS, MAX_WANT, Part};

    const MESH: MeshId = MeshId([1; 20]);

    fn raw() -> Raw {
        Raw { bytes: vec![1, 2, 3], signature: [4; 64] }
    }

    fn probe() -> Probe {
        Probe { number: 0, hash: [6; 8], down: None, lives: None, evictions: None }
    }

    fn call() -> Call {
        let (from, to) = (NodeId([2; 32]), NodeId([3; 32]));
        Call { from, to, number: u64::MAX, word: 255, seen: None, yours: None }
    }

    fn messages() -> Vec<Message> {
        let version = Version { stamp: 3, tie: [1; 16] };
        let target = NodeId([2; 32]);
        let item = Item { prefix: [2; 16], added: Some(version), removed: None };
        let parts = vec![
            Part { end: Some(End(vec![7])), hash: Some([5; 12]), items: None },
            Part { end: Some(End(vec![8, 1])), hash: None, items: Some(Items(vec![item, item])) },
            Part::default(),
        ];
        let ranges = Ranges { start: vec![1], parts, want: vec![[3; 16]] };
        let news = NewsId { kind: NewsKind::Verdict, node: [1; 8], stamp: 300 };
        let rumors = vec![
            Rumor { alive: Some(raw()), accusations: vec![] },
            Rumor { alive: None, accusations: vec![raw(), raw()] },
        ];
        let evictions = vec![raw()];
        let records = Records { records: vec![raw()], removals: vec![raw(), raw()], evictions };
        vec![
            Message::Digest(Summary {
                hash: [5; 16],
                count: 9,
                introduction: Some(raw()),
                evictions: None,
            }),
            Message::Digest(Summary {
                hash: [5; 16],
                count: u64::MAX,
                introduction: None,
                evictions: None,
            }),
            Message::Same,
            Message::WhoAreYou,
            Message::Lives(ranges.clone()),
            Message::Evictions(ranges.clone()),
            Message::Ranges(ranges),
            Message::Ranges(Ranges::default()),
            Message::Doubt(Named { news: vec![news] }),
            Message::News(News { entries: records.clone(), rumors }),
            Message::Announce(Named { news: vec![news, news] }),
            Message::Graft(Named { news: vec![news] }),
            Message::Prune,
            Message::Ping(Probe { number: 70_000, ..probe() }),
            Message::Ack(Probe { down: Some(3), lives: Some(5), evictions: Some(6), ..probe() }),
            Message::Ask(Ask { target, number: 4, incarnation: 9 }),
            Message::Vouch(Vouch { target, number: 4 }),
            Message::Accuse(Accuse { accusation: raw() }),
            Message::Call(call()),
            Message::Call(Call {
                seen: Some(SocketAddr::from(([192, 0, 2, 1], 7))),
                yours: Some(SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 65_535))),
                ..call()
            }),
            Message::Seen(Seen { addr: [192, 0, 2, 1].into() }),
            Message::Seen(Seen { addr: [1; 16].into() }),
            Message::Records(records.clone()),
            Message::Join(Join { invite: raw(), wg: WgKey([6; 32]) }),
            Message::Welcome(Welcome { certificate: raw(), state: records }),
            Message::Refused(Refused {
                reason: Some(RefusedReason::UsedUp),
                detail: "used up".into(),
            }),
        ]
    }

    fn encoded(message: Message) -> Vec<u8> {
        Envelope { mesh: MESH, message }.encode()
    }

    #[test]
    fn messages_are_read_back() {
        for message in messages() {
            let bytes = encoded(message.clone());
            assert_eq!(mesh_of(&bytes), Ok(MESH));
            assert_eq!(Envelope::decode(&bytes), Ok(Envelope { mesh: MESH, message }));
        }
    }

    #[test]
    fn cut_messages_are_refused() {
        for message in messages() {
            let bytes = encoded(message);
            for len in 0..bytes.len() {
                let error = Envelope::decode(&bytes[..len]).expect_err("cut");
                assert!(matches!(error, WireError::Malformed(_)), "{error}");
            }
            let longer = [&bytes[..], &[0]].concat();
            assert!(Envelope::decode(&longer).is_err());
        }
    }

    #[test]
    fn unknown_versions_and_kinds_are_named() {
        let mut bytes = encoded(Message::Same);
        bytes[1] = 9;
        let error = Envelope::decode(&bytes).expect_err("newer");
        let expected =
            "the message has wire version 9, which is not known here (known: 2 and its neighbours)";
        assert_eq!(error.to_string(), expected);
        bytes[1] = FIRST_VERSION - 1;
        assert_eq!(Envelope::decode(&bytes), Err(WireError::UnknownVersion { found: 1 }));
        let mut bytes = encoded(Message::Same);
        let kind = bytes.len() - 2;
        bytes[kind] = 15;
        assert_eq!(Envelope::decode(&bytes), Err(WireError::UnknownKind { kind: 15 }));
    }

    #[test]
    fn messages_of_the_next_version_are_read() {
        for message in messages() {
            let mut bytes = encoded(message.clone());
            bytes[1] = WIRE_VERSION + 1;
            assert_eq!(Envelope::decode(&bytes), Ok(Envelope { mesh: MESH, message }));
        }
    }

    #[test]
    fn adjacent_versions_know_each_other() {
        for own in FIRST_VERSION..9 {
            let known = (0..20).filter(|found| is_known(*found, own)).collect::<Vec<_>>();
            let first = own.saturating_sub(1).max(FIRST_VERSION);
            assert_eq!(known, (u64::from(first)..=u64::from(own) + 1).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_later_version_may_have_more_parts() {
        let mut bytes = Vec::new();
        let mut encoder = Encoder::new(&mut bytes);
        encoder.array(7).and_then(|e| e.u32(70_000)).expect("writes");
        assert_eq!(Envelope::decode(&bytes), Err(WireError::UnknownVersion { found: 70_000 }));
    }

    #[test]
    fn unknown_fields_and_reasons_are_skipped() {
        let body = |write: &dyn Fn(&mut Encoder<&mut Vec<u8>>)| {
            let mut bytes = encoded(Message::Same);
            bytes.truncate(bytes.len() - 2);
            write(&mut Encoder::new(&mut bytes));
            Envelope::decode(&bytes).expect("skips").message
        };
        let digest = body(&|e| {
            e.u8(1)
                .and_then(|e| e.map(3))
                .and_then(|e| e.u8(0))
                .and_then(|e| e.bytes(&[7; 16]))
                .and_then(|e| e.u8(1))
                .and_then(|e| e.u8(2))
                .and_then(|e| e.u8(99))
                .and_then(|e| e.array(2))
                .and_then(|e| e.str("new"))
                .and_then(|e| e.u8(1))
                .expect("writes");
        });
        assert_eq!(
            digest,
            Message::Digest(Summary {
                hash: [7; 16],
                count: 2,
                introduction: None,
                evictions: None
            })
        );
        let refused = body(&|e| {
            e.u8(18)
                .and_then(|e| e.map(2))
                .and_then(|e| e.u8(0))
                .and_then(|e| e.u8(77))
                .and_then(|e| e.u8(1))
                .and_then(|e| e.str("new reason"))
                .expect("writes");
        });
        assert_eq!(
            refused,
            Message::Refused(Refused { reason: None, detail: "new reason".into() })
        );
    }

    /// What is sent every second, and what is sent when one record differs.
    #[test]
    fn what_is_frequent_is_small() {
        let len = |message| encoded(message).len();
        let probe = Probe { number: u32::MAX, ..probe() };
        assert!(len(Message::Ping(probe)) <= 48);
        assert!(len(Message::Ping(Probe { lives: Some(u32::MAX), ..probe })) <= 54);
        let some = Some(u32::MAX);
        assert!(len(Message::Ping(Probe { lives: some, evictions: some, ..probe })) <= 60);
        let part = Part { end: Some(End(vec![1, 2])), hash: Some([5; 12]), items: None };
        let ranges = Ranges { start: vec![], parts: vec![part; 16], want: vec![] };
        assert!(len(Message::Ranges(ranges)) <= 330);
    }

    #[test]
    fn lists_and_texts_are_bounded() {
        let refused = |message| Envelope::decode(&encoded(message)).is_err();
        let want =
            |count| Message::Ranges(Ranges { want: vec![[0; 16]; count], ..Ranges::default() });
        assert!(!refused(want(MAX_WANT)));
        assert!(refused(want(MAX_WANT + 1)));
        let parts = |count| {
            let parts = vec![Part::default(); count];
            Message::Ranges(Ranges { parts, ..Ranges::default() })
        };
        assert!(!refused(parts(MAX_PARTS)));
        assert!(refused(parts(MAX_PARTS + 1)));
        let id = NewsId { kind: NewsKind::Entry, node: [0; 8], stamp: 0 };
        let named = |count| Message::Announce(Named { news: vec![id; count] });
        assert!(!refused(named(MAX_NEWS)));
        assert!(refused(named(MAX_NEWS + 1)));
        let rumors = |count| {
            let rumors = vec![Rumor::default(); count];
            Message::News(News { entries: Records::default(), rumors })
        };
        assert!(!refused(rumors(MAX_RUMORS)));
        assert!(refused(rumors(MAX_RUMORS + 1)));
        let records = |count| Records { records: vec![raw(); count], ..Records::default() };
        assert!(!refused(Message::Records(records(MAX_RECORDS))));
        assert!(refused(Message::Records(records(MAX_RECORDS + 1))));
        let detail = |len| Message::Refused(Refused { reason: None, detail: "x".repeat(len) });
        assert!(!refused(detail(Refused::MAX_DETAIL)));
        assert!(refused(detail(Refused::MAX_DETAIL + 1)));
        let long = vec![0; MAX_MESSAGE + 1];
        assert_eq!(Envelope::decode(&long), Err(WireError::TooLong { len: MAX_MESSAGE + 1 }));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..200)) {
            let _ = Envelope::decode(&bytes);
        }

        #[test]
        fn random_bodies_never_panic(kind in 0..30_u8, body in vec(any::<u8>(), 0..200)) {
            let mut bytes = encoded(Message::Same);
            bytes.truncate(bytes.len() - 2);
            Encoder::new(&mut bytes).u8(kind).expect("writes");
            bytes.extend(body);
            let _ = Envelope::decode(&bytes);
        }

        #[test]
        fn damaged_messages_never_panic(
            which in 0..messages().len(), at in any::<prop::sample::Index>(), value in any::<u8>(),
        ) {
            let mut bytes = encoded(messages().swap_remove(which));
            let at = at.index(bytes.len());
            bytes[at] = value;
            if let Ok(read) = Envelope::decode(&bytes) {
                prop_assert_eq!(Envelope::decode(&read.encode()), Ok(read));
            }
        }
    }
}
