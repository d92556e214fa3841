use selvedge_model::{MeshId, NodeId, WgKey};

use crate::admission::{Certificate, CertificateError};
use crate::config::Config;
use crate::identity::Identity;
use crate::invite::{Bootstrap, Invite, InviteError};
use crate::profile::Profile;
use crate::record::Life;
use crate::roster::Roster;
use crate::signed::Signed;
use crate::state::{State, WriteError};
use crate::time::UnixTime;
use crate::wire::{Envelope, Join, Message, Refused, RefusedReason, Welcome, WireError};

/// A node that is about to join a mesh.
///
/// Send [`Joining::message`] to the nodes of [`Joining::bootstrap`], one after the other, and
/// give what they answer to [`Joining::handle_message`]. Asking again is harmless: the same
/// node is given the same certificate, and no further use of the invite is counted.
///
/// Keep the WireGuard key until the state is on disk: another key is another certificate.
#[derive(Clone, Debug)]
pub struct Joining {
    identity: Identity,
    invite: Signed<Invite>,
    wg: WgKey,
    profile: Profile,
}

/// Why a node could not join. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// The invite cannot be used.
    #[error("joining: {0}")]
    Invite(#[from] InviteError),
    /// The profile is out of bounds.
    #[error("joining: {0}")]
    Profile(&'static str),
    /// The founder of the mesh cannot join it.
    #[error("joining: this node founded mesh {0} and is a member already")]
    Founder(MeshId),
    /// The answer came from a node that the invite does not name.
    #[error("joining: node {0} answered, which was not asked")]
    NotAsked(NodeId),
    /// The answer could not be read.
    #[error("joining: the answer of node {from} is unreadable: {error}")]
    Wire {
        /// Who answered.
        from: NodeId,
        /// What is wrong.
        error: WireError,
    },
    /// The answer is none.
    #[error("joining: node {from} answered something else than was asked")]
    Unexpected {
        /// Who answered.
        from: NodeId,
    },
    /// The node was not admitted.
    #[error("joining: node {from} refused: {detail}")]
    Refused {
        /// Who refused.
        from: NodeId,
        /// Why; `None` if the reason is not known to this version.
        reason: Option<RefusedReason>,
        /// Why, in words.
        detail: String,
    },
    /// The certificate is not one for this node.
    #[error("joining: node {from} sent a certificate that does not hold: {error}")]
    Certificate {
        /// Who answered.
        from: NodeId,
        /// What is wrong.
        error: CertificateError,
    },
    /// The certificate is for another node or another WireGuard key, or has expired.
    #[error(
        "joining: node {from} sent a certificate that is not for this node and key, or has expired"
    )]
    NotOurs {
        /// Who answered.
        from: NodeId,
    },
    /// The own record could not be written.
    #[error("joining: {0}")]
    Write(#[from] WriteError),
}

impl Joining {
    /// Prepares to join with an invite, under a fresh WireGuard key.
    ///
    /// # Errors
    /// If the invite has expired or was issued by the wrong node, or if the profile is out of
    /// bounds.
    pub fn new(
        identity: Identity,
        invite: Signed<Invite>,
        wg: WgKey,
        profile: Profile,
        wall: UnixTime,
    ) -> Result<Self, JoinError> {
        invite.value().check_use(None, wall)?;
        profile.check().map_err(JoinError::Profile)?;
        if invite.value().genesis.founder == identity.node_id() {
            return Err(JoinError::Founder(invite.value().mesh()));
        }
        Ok(Self { identity, invite, wg, profile })
    }

    /// The mesh to join.
    #[must_use]
    pub fn mesh(&self) -> MeshId {
        self.invite.value().mesh()
    }

    /// The invite.
    #[must_use]
    pub const fn invite(&self) -> &Invite {
        self.invite.value()
    }

    /// Whom to ask, in this order.
    #[must_use]
    pub fn bootstrap(&self) -> &[Bootstrap] {
        &self.invite.value().bootstrap
    }

    /// The message that asks.
    #[must_use]
    pub fn message(&self) -> Vec<u8> {
        let join = Join { invite: self.invite.raw().clone(), wg: self.wg };
        Envelope { mesh: self.mesh(), message: Message::Join(join) }.encode()
    }

    /// Takes an answer. With the state that is returned the node is a member; keep it on disk
    /// before you use it ([`State::encode`], [`crate::Mesh::new`]).
    ///
    /// # Errors
    /// See [`JoinError`]. After [`JoinError::Refused`] ask the next bootstrap node, if any.
    pub fn handle_message(
        &self,
        from: NodeId,
        bytes: &[u8],
        wall: UnixTime,
    ) -> Result<State, JoinError> {
        if !self.bootstrap().iter().any(|bootstrap| bootstrap.node == from) {
            return Err(JoinError::NotAsked(from));
        }
        let envelope = Envelope::decode(bytes).map_err(|error| JoinError::Wire { from, error })?;
        if envelope.mesh != self.mesh() {
            return Err(JoinError::Unexpected { from });
        }
        match envelope.message {
            Message::Welcome(welcome) => self.accept(from, welcome, wall),
            Message::Refused(Refused { reason, detail }) => {
                let detail = detail.chars().filter(|c| !c.is_control()).collect();
                Err(JoinError::Refused { from, reason, detail })
            }
            Message::Digest(_)
            | Message::Same
            | Message::Ranges(_)
            | Message::Records(_)
            | Message::News(_)
            | Message::Announce(_)
            | Message::Graft(_)
            | Message::Prune
            | Message::Lives(_)
            | Message::Doubt(_)
            | Message::WhoAreYou
            | Message::Join(_)
            | Message::Evictions(_)
            | Message::Ping(_)
            | Message::Ack(_)
            | Message::Ask(_)
            | Message::Vouch(_)
            | Message::Accuse(_)
            | Message::Call(_)
            | Message::Seen(_) => Err(JoinError::Unexpected { from }),
        }
    }

    /// Entries that do not verify are left out: reconciliation brings what is right.
    fn accept(&self, from: NodeId, welcome: Welcome, wall: UnixTime) -> Result<State, JoinError> {
        let mut roster = Roster::new(self.invite.value().genesis.clone());
        let certificate = Certificate::verify(welcome.certificate, roster.genesis())
            .map_err(|error| JoinError::Certificate { from, error })?;
        let Certificate { subject, wg, .. } = *certificate.value();
        let expired = certificate.value().has_expired(wall);
        if subject != self.identity.node_id() || wg != self.wg || expired {
            return Err(JoinError::NotOurs { from });
        }
        let mut state = welcome.state;
        let evictions = std::mem::take(&mut state.evictions);
        let (entries, _refused) = roster.verify_all(state);
        for (node, entry) in entries {
            roster.map.merge_entry(node, entry);
        }
        for raw in evictions {
            if let Ok(evicted) = roster.verify_eviction(raw) {
                roster.evict(evicted, &subject);
            }
        }
        let life = Life::new(wall, Config::default().record_life);
        let profile = self.profile.clone();
        Ok(State::with_member(roster, &certificate, profile, life, &self.identity)?)
    }
}
