//! What people may ask of the core.

use std::collections::BTreeMap;

use selvedge_model::{NodeName, Vni};

use super::Gateway;
use crate::cache::{Change, RosterValue, Slot};
use crate::desired::Duty;
use crate::kv::{LeaseId, Revision};
use crate::machine::State;

/// This node and what it knows of the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// This node's name.
    pub name: NodeName,
    /// Whether the store answers, as far as is known.
    pub connected: bool,
    /// Whether the store has been read.
    pub synced: bool,
    /// Everything up to this revision is known.
    pub revision: Revision,
    /// This node's lease.
    pub lease: Option<LeaseId>,
    /// This node's incarnation, if it is registered.
    pub incarnation: Option<Revision>,
    /// Whether a verdict stands against this incarnation.
    pub convicted: bool,
    /// Whether this node is on its way out.
    pub leaving: bool,
    /// Who plans.
    pub planner: Option<NodeName>,
    /// All nodes that the store knows, by name.
    pub nodes: BTreeMap<NodeName, NodeStatus>,
    /// Networks of this node by what is the matter with them.
    pub networks: Counts,
    /// Planned moves under way.
    pub moving: usize,
    /// Keys that make no sense, each with the reason.
    pub problems: BTreeMap<String, String>,
}

/// One node as the store knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeStatus {
    /// Its incarnation, if it is registered.
    pub incarnation: Option<Revision>,
    /// Its agent's version.
    pub version: Option<String>,
    /// Whether networks may be placed on it.
    pub on_ring: bool,
    /// Whether an operator has drained it.
    pub drained: bool,
    /// Whether a verdict stands against it.
    pub convicted: bool,
    /// Whether it runs the predecessor's daemon.
    pub predecessor: bool,
    /// How many ids it has on the ring.
    pub ids: usize,
    /// How many networks it owns.
    pub owns: usize,
}

/// Counts of networks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All that this node is configured for.
    pub total: usize,
    /// Those with an owner and no change under way.
    pub serving: usize,
    /// Those in a planned move.
    pub moving: usize,
    /// Those in a failover.
    pub failover: usize,
    /// Those without an owner.
    pub unassigned: usize,
}

/// One network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkStatus {
    /// Its VNI.
    pub vni: Vni,
    /// Its state.
    pub state: State,
    /// The owner.
    pub current: Option<NodeName>,
    /// The owner to be.
    pub next: Option<NodeName>,
    /// Where the placement wants it.
    pub placed: Option<NodeName>,
    /// What this host shall do for it; `None`: left as it is.
    pub desired: Option<Duty>,
    /// What this host was last reported to do.
    pub reached: Option<Duty>,
    /// The last change of owner.
    pub last_change: Option<Change>,
    /// Whether a key of it makes no sense, so that it is left alone.
    pub blocked: bool,
}

impl Gateway {
    /// This node's name.
    #[must_use]
    pub const fn name(&self) -> &NodeName {
        &self.config.name
    }

    /// This node and what it knows of the others.
    #[must_use]
    pub fn status(&self) -> Status {
        Status {
            name: self.config.name.clone(),
            connected: self.connected,
            synced: self.synced,
            revision: self.cache.revision,
            lease: self.lease,
            incarnation: self.incarnation(),
            convicted: self.standing == super::Standing::Convicted,
            leaving: self.leaving,
            planner: self.cache.planner.as_ref().and_then(|planner| planner.value.clone()),
            nodes: self.node_statuses(),
            networks: self.counts(),
            moving: self.cache.moving.len(),
            problems: self.cache.problems.clone(),
        }
    }

    /// The networks that this node is configured for, by VNI.
    #[must_use]
    pub fn networks(&self) -> Vec<NetworkStatus> {
        self.locals.keys().map(|vni| self.network_status(*vni)).collect()
    }

    /// Whether this node holds the planner's lease.
    #[must_use]
    pub const fn is_planner(&self) -> bool {
        self.plan.is_planner()
    }

    fn network_status(&self, vni: Vni) -> NetworkStatus {
        let network = self.cache.networks.get(&vni).cloned().unwrap_or_default();
        let local = self.locals.get(&vni);
        let history = self.cache.history.get(&vni);
        NetworkStatus {
            vni,
            state: network.state(),
            current: network.current().cloned(),
            next: network.next().cloned(),
            placed: self.ring.owner(vni).cloned(),
            desired: local.and_then(|local| local.desired()).map(|desired| desired.duty),
            reached: local.and_then(|local| local.reached()),
            last_change: history.and_then(|history| history.changes.last().cloned()),
            blocked: self.cache.is_blocked(vni),
        }
    }

    fn node_statuses(&self) -> BTreeMap<NodeName, NodeStatus> {
        let names = self.cache.roster.keys().chain(self.cache.nodes.keys());
        let names = names.chain(self.cache.live.keys());
        let mut nodes: BTreeMap<_, _> =
            names.map(|name| (name.clone(), self.node_status(name))).collect();
        for owner in self.cache.networks.values().filter_map(|network| network.current()) {
            nodes.entry(owner.clone()).or_default().owns += 1;
        }
        nodes
    }

    fn node_status(&self, name: &NodeName) -> NodeStatus {
        let live = self.cache.live.get(name);
        let on_ring = self.cache.nodes.contains_key(name);
        let drained = |entry: &Slot<RosterValue>| entry.value.drained;
        NodeStatus {
            incarnation: live.map(|live| live.incarnation),
            version: live.and_then(|live| live.value.as_ref()).map(|value| value.version.clone()),
            on_ring,
            drained: self.cache.roster.get(name).is_some_and(drained),
            convicted: self.cache.is_convicted(name),
            predecessor: self.cache.is_predecessor(name),
            ids: self.cache.nodes.get(name).map_or(0, |node| node.ids.len()),
            owns: 0,
        }
    }

    fn counts(&self) -> Counts {
        let mut counts = Counts { total: self.locals.len(), ..Counts::default() };
        for vni in self.locals.keys() {
            let network = self.cache.networks.get(vni);
            let state = network.map_or(State::Unassigned, |network| network.state());
            let owned = network.is_some_and(|network| network.current().is_some());
            let count = if state == State::FailoverDecided {
                &mut counts.failover
            } else if state.is_migration() {
                &mut counts.moving
            } else if owned {
                &mut counts.serving
            } else {
                &mut counts.unassigned
            };
            *count += 1;
        }
        counts
    }
}
