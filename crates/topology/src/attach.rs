//! Which peer serves a client, and which one would next.

use selvedge_mesh::attach::{Candidate, fittest};
use selvedge_mesh::{Role, attached_to};
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
    let peers: Vec<NodeId> = candidates(view, client);
    let serving = attached_to(client.node, peers.iter().copied())?;
    let others = peers.into_iter().filter(|peer| *peer != serving);
    Some(Attachment { serving, standby: attached_to(client.node, others) })
}

/// The peers that come into question, by the rule by which the core of the mesh watches clients.
fn candidates(view: &View, client: &Member) -> Vec<NodeId> {
    let peers = view.members.iter().filter(|member| member.role == Role::Peer);
    let peers = peers.map(|peer| Candidate {
        node: peer.node,
        live: peer.live,
        drained: peer.drained,
        avoided: client.avoids.contains(&peer.node),
    });
    fittest(peers)
}
