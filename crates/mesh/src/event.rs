use std::collections::BTreeMap;

use selvedge_model::{MeshId, NodeId};

use crate::record::RecordError;
use crate::rumor::RumorError;
use crate::signed::SignedError;
use crate::wire::{Call, WireError};

/// What happened in a mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A node has become a member.
    MemberJoined(NodeId),
    /// A member says something new about itself.
    MemberUpdated(NodeId),
    /// A node is a member no more: it left, its certificate has expired, or it was evicted.
    MemberLeft(NodeId),
    /// A node was evicted. Whoever is no member because of it is told of by
    /// [`Event::MemberLeft`].
    Evicted {
        /// The node; it may be this one.
        node: NodeId,
        /// Who evicted it.
        by: NodeId,
    },
    /// A member does not answer any more, as several others found, or, if none of these can be
    /// reached, this node alone. It stays a member.
    MemberDown(NodeId),
    /// A member that was down is heard again.
    MemberUp(NodeId),
    /// Another client says this to the own node, which is one too.
    Called(Call),
    /// This is to be passed on, for a client of this node: see [`crate::Mesh::pass_on`].
    Passing(Call),
    /// A message, or an entry in one, was not accepted. Nothing was changed by it.
    Rejected {
        /// Who sent it.
        from: NodeId,
        /// Why it was not accepted.
        reason: Rejection,
    },
    /// The state is another: write [`crate::Mesh::snapshot`] to disk, and apply
    /// [`crate::Mesh::desired_wireguard`] anew. Reported once, however much has changed.
    StateChanged,
}

/// Why a message, or an entry in one, was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// It could not be read.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// It is for another mesh.
    #[error("the message is for mesh {found}")]
    WrongMesh {
        /// The mesh that it is for.
        found: MeshId,
    },
    /// Its sender is no member.
    #[error("the sender is no member")]
    NotAMember,
    /// It is an answer, but nothing was asked.
    #[error("a message of kind {kind} was not expected")]
    Unexpected {
        /// The kind of message.
        kind: u64,
    },
    /// An entry in it does not hold.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A rumor in it does not hold.
    #[error(transparent)]
    Rumor(RumorError),
    /// An accusation is not that of its sender.
    #[error("the accusation is not the sender's")]
    NotItsAccusation,
    /// An entry in it has expired.
    #[error("the record of node {node} has expired: its clock may be wrong, or this node's")]
    Expired {
        /// The node.
        node: NodeId,
    },
    /// An introduction is not that of its sender.
    #[error("the introduction is that of node {shown}")]
    NotItsIntroduction {
        /// The node whose record it is.
        shown: NodeId,
    },
    /// An entry in it rests on a certificate that was taken back. Counted, and not told of; the
    /// sender is told of the eviction.
    #[error("node {by} has evicted node {node}, on which the record rests")]
    Evicted {
        /// Who was evicted: the node itself, or who admitted it.
        node: NodeId,
        /// Who evicted it.
        by: NodeId,
    },
    /// There are more nodes than are held.
    #[error("node {node} is one more than the {max} that are held")]
    Full {
        /// The node.
        node: NodeId,
        /// The greatest number of nodes.
        max: usize,
    },
    /// A member has admitted more than it may, and this is one of the last.
    #[error("node {by} has admitted more than it may: node {node} is one too many")]
    TooManyGuests {
        /// The node.
        node: NodeId,
        /// Who admitted it.
        by: NodeId,
    },
    /// The sender asks more than a partner in good order ever does. Counted, and not told of.
    #[error("the sender sends too much")]
    TooMuch,
    /// The sender has sent nonsense again and again: what it sends is dropped for a minute, and
    /// counted. Told of once.
    #[error("the sender sends nonsense and is not heard for a minute")]
    Silenced,
    /// An invite could not be redeemed. The sender was told.
    #[error("an invite was refused: {0}")]
    Invite(String),
}

/// How many messages and entries were rejected, by kind.
pub type Rejections = BTreeMap<&'static str, u64>;

impl Rejection {
    /// Whether nobody in good order sends such a thing, of whatever version, and whatever it has
    /// not heard of yet.
    pub(crate) const fn is_nonsense(&self) -> bool {
        match self {
            Self::Wire(WireError::Malformed(_) | WireError::TooLong { .. })
            | Self::NotItsAccusation
            | Self::NotItsIntroduction { .. }
            | Self::Record(RecordError::NotItsCertificate { .. }) => true,
            Self::Record(RecordError::Signed(error)) | Self::Rumor(RumorError::Signed(error)) => {
                !matches!(error, SignedError::UnknownVersion { .. })
            }
            Self::Wire(WireError::UnknownVersion { .. } | WireError::UnknownKind { .. })
            | Self::WrongMesh { .. }
            | Self::NotAMember
            | Self::Unexpected { .. }
            | Self::Record(RecordError::WrongMesh { .. } | RecordError::Certificate { .. })
            | Self::Rumor(
                RumorError::WrongMesh { .. }
                | RumorError::NotAMember(_)
                | RumorError::TooFew
                | RumorError::OneSource,
            )
            | Self::Expired { .. }
            | Self::Evicted { .. }
            | Self::Full { .. }
            | Self::TooManyGuests { .. }
            | Self::TooMuch
            | Self::Silenced
            | Self::Invite(_) => false,
        }
    }

    /// The kind in one word, for counters.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Wire(WireError::UnknownVersion { .. }) => "wire_version",
            Self::Wire(WireError::UnknownKind { .. }) => "message_kind",
            Self::Wire(WireError::TooLong { .. } | WireError::Malformed(_)) => "malformed",
            Self::WrongMesh { .. } => "wrong_mesh",
            Self::NotAMember => "not_a_member",
            Self::Unexpected { .. } => "unexpected",
            Self::Record(RecordError::Signed(_)) => "record_signature",
            Self::Record(RecordError::WrongMesh { .. }) => "record_mesh",
            Self::Record(
                RecordError::Certificate { .. } | RecordError::NotItsCertificate { .. },
            ) => "record_certificate",
            Self::Rumor(_) => "rumor",
            Self::NotItsAccusation => "accusation",
            Self::Expired { .. } => "expired",
            Self::NotItsIntroduction { .. } => "introduction",
            Self::Evicted { .. } => "evicted",
            Self::Full { .. } => "full",
            Self::TooManyGuests { .. } => "guests",
            Self::TooMuch => "too_much",
            Self::Silenced => "silenced",
            Self::Invite(_) => "invite",
        }
    }
}
