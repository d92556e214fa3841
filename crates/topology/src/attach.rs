//! Which peer serves a client, and which one would next.

use selvedge_mesh::Role;
use selvedge_mesh::attach::{Candidate, attached_in_turn, fittest};
use selvedge_model::NodeId;

use crate::view::{Member, View};

/// The peers of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The one that serves it.
    pub serving: NodeId,
    /// The one that will if that one fails. A session with it is kept ready.
    pub standby: Option<NodeId>,
}

/// The peers of `client`, in this view; `None` if the mesh has no peers. If no peer is known to
/// live, all are taken for living, so that a client that was cut off finds back.
#[must_use]
pub fn attachment(view: &View, client: &Member) -> Option<Attachment> {
    Peers::of(view).attachment(client)
}

/// The peers of a mesh, as those to which clients are attached.
pub(crate) struct Peers<'a> {
    view: &'a View,
    /// Those that come into question for a client that reaches them all.
    fit: Vec<NodeId>,
}

impl<'a> Peers<'a> {
    pub(crate) fn of(view: &'a View) -> Self {
        Self { view, fit: candidates(view, &[]) }
    }

    /// As [`attachment`].
    pub(crate) fn attachment(&self, client: &Member) -> Option<Attachment> {
        match client.avoids.is_empty() {
            true => choose(client.node, &self.fit),
            false => choose(client.node, &candidates(self.view, &client.avoids)),
        }
    }
}

fn choose(client: NodeId, peers: &[NodeId]) -> Option<Attachment> {
    let [serving, standby] = attached_in_turn(client, peers.iter().copied());
    Some(Attachment { serving: serving?, standby })
}

/// The peers that come into question, by the rule by which the core of the mesh watches clients.
fn candidates(view: &View, avoids: &[NodeId]) -> Vec<NodeId> {
    let peers = view.members.iter().filter(|member| member.role == Role::Peer);
    let stays = |peer: &Member| view.options.still_serving && peer.node == view.own;
    let peers = peers.map(|peer| Candidate {
        node: peer.node,
        live: peer.live,
        drained: peer.drained && !stays(peer),
        avoided: avoids.contains(&peer.node),
    });
    fittest(peers)
}
