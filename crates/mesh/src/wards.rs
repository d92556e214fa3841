//! Clients: each is attached to one peer, which watches it, and watches that peer alone.
//! (Peers watch each other on the ring, see [`crate::overlay`].)

use std::collections::BTreeSet;

use selvedge_model::NodeId;

use crate::admission::Role;
use crate::attach::{Candidate, attached_to, fittest};
use crate::overlay::View;
use crate::roster::role_of;

/// The clients of a mesh, and those of them that are attached to this node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wards {
    clients: BTreeSet<NodeId>,
    attached: BTreeSet<NodeId>,
    stale: bool,
}

impl Wards {
    /// Of a mesh in which these are the clients.
    pub(crate) fn new(clients: BTreeSet<NodeId>) -> Self {
        Self { clients, attached: BTreeSet::new(), stale: true }
    }

    /// Takes note that a member, or who is none any more, may have changed. Says whether it has
    /// become a client, or is one no more.
    pub(crate) fn note(&mut self, node: NodeId, is_client: bool) -> bool {
        self.stale = true;
        match is_client {
            true => self.clients.insert(node),
            false => self.clients.remove(&node),
        }
    }

    /// Takes note that somebody was found to be down, or up.
    pub(crate) const fn note_life(&mut self) {
        self.stale = true;
    }

    /// Finds out who is attached to this node now, if that may be others than before. Says whether
    /// it is; `None` if there was nothing to find out.
    pub(crate) fn refreshed(&mut self, view: &View<'_>) -> Option<bool> {
        if !std::mem::take(&mut self.stale) || self.clients.len() + self.attached.len() == 0 {
            return None;
        }
        let attached = match view.is_client() {
            true => BTreeSet::new(),
            false => self.served_by(view),
        };
        let changed = attached != self.attached;
        self.attached = attached;
        Some(changed)
    }

    /// Those that are attached to this node, be they up or down.
    pub(crate) const fn attached(&self) -> &BTreeSet<NodeId> {
        &self.attached
    }

    /// Whether a node is a client that is not attached to this node.
    pub(crate) fn is_anothers(&self, node: NodeId) -> bool {
        self.clients.contains(&node) && !self.attached.contains(&node)
    }

    fn served_by(&self, view: &View<'_>) -> BTreeSet<NodeId> {
        let serving = view.serving();
        let ours = |client: &NodeId| view.attachment(*client, &serving) == Some(view.own);
        self.clients.iter().copied().filter(ours).collect()
    }
}

impl View<'_> {
    /// Whether this node is a client.
    pub(crate) fn is_client(&self) -> bool {
        self.roster.map.get(&self.own).is_some_and(|own| role_of(own) == Role::Client)
    }

    /// The peer that this node is attached to, if it is a client and that peer stands.
    pub(crate) fn home(&self) -> Option<NodeId> {
        self.attachment(self.own, &self.serving()).filter(|home| self.stands(*home))
    }

    /// All peers, as far as what matters of them is the same for all clients.
    pub(crate) fn serving(&self) -> Vec<Candidate> {
        let peers = self.peers().map(|(node, entry)| Candidate {
            node,
            live: self.stands(node),
            drained: entry.record().profile.drained,
            avoided: false,
        });
        peers.collect()
    }

    /// The one of the `serving` peers that a client is attached to; `None` for others than clients.
    pub(crate) fn attachment(&self, client: NodeId, serving: &[Candidate]) -> Option<NodeId> {
        let entry = self.roster.map.get(&client).filter(|entry| role_of(entry) == Role::Client)?;
        let avoids = &entry.record().profile.avoids;
        let peers = serving.iter().copied();
        let peers = peers.map(|peer| Candidate { avoided: avoids.contains(&peer.node), ..peer });
        attached_to(client, fittest(peers))
    }
}
