//! What people may ask of the core.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use selvedge_model::{NodeName, Vni};

use super::{Gateway, NodeRole};
use crate::cache::{Change, RosterValue, Slot};
use crate::desired::Duty;
use crate::kv::{Health, LeaseId, Revision};
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
    /// What this node does: serve networks, or only vote.
    pub role: NodeRole,
    /// Who votes.
    pub voters: Vec<NodeName>,
    /// How many of them are a majority.
    pub majority: usize,
    /// The other voters as this one hears them.
    pub partners: BTreeMap<NodeName, Partner>,
    /// Whether this node may serve, and why.
    pub right: Right,
    /// Whether all networks of this host are to be silent.
    pub silenced: bool,
    /// The store's members, when they were last asked.
    pub store: Option<Health>,
    /// Why a gateway that is lost could not be replaced now; `None` if it could.
    pub failover_impossible: Option<String>,
    /// What keeps this host from doing its job, for people.
    pub unfit: Vec<String>,
}

/// Whether a node may serve, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Right {
    /// It may not: neither a majority of the voters nor the store has confirmed it in time.
    None,
    /// Nobody has been asked yet: it has not registered since it was started.
    Unknown,
    /// A majority of the voters, itself counted, hears it.
    Majority,
    /// The store has confirmed that no verdict stands against it.
    Store,
    /// It is cut off, and told to serve on.
    Isolated,
}

/// Another voter, as this one hears it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Partner {
    /// Whether it has answered a moment ago.
    pub heard: bool,
    /// How long ago it last answered on any path; `None`: never.
    pub silent_for: Option<Duration>,
    /// Each of its addresses, with how long ago it last answered there, and how long that took.
    pub paths: Vec<PathStatus>,
    /// Whom it hears itself.
    pub hears: Vec<NodeName>,
    /// Who has voted that it is lost.
    pub voted_by: Vec<NodeName>,
    /// For how long it will yet be away on purpose.
    pub away: Option<Duration>,
}

/// A path to a voter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathStatus {
    /// Where it is probed.
    pub addr: SocketAddr,
    /// How long ago it last answered; `None`: never.
    pub silent_for: Option<Duration>,
    /// How long the last answer took.
    pub round_trip: Option<Duration>,
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
    /// Those that are left alone, because a key of theirs makes no sense.
    pub blocked: usize,
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
            role: self.config.role,
            voters: self.electorate.voters.clone(),
            majority: self.majority(),
            partners: self.partner_statuses(),
            right: self.title.right,
            silenced: self.is_silenced(),
            store: self.court.health.map(|(health, _)| health),
            failover_impossible: self.failover_impossible(self.looked_at),
            unfit: self.unfit.clone(),
        }
    }

    /// The networks that this node is configured for, by VNI.
    #[must_use]
    pub fn networks(&self) -> Vec<NetworkStatus> {
        self.locals.keys().map(|vni| self.network_status(*vni)).collect()
    }

    /// The last changes of a network's owner, the latest last.
    #[must_use]
    pub fn history(&self, vni: Vni) -> &[Change] {
        self.cache.history.get(&vni).map_or(&[], |history| history.changes.as_slice())
    }

    /// The same for all networks that the store has a history of, by VNI.
    pub fn histories(&self) -> impl Iterator<Item = (Vni, &[Change])> {
        self.cache.history.iter().map(|(vni, history)| (*vni, history.changes.as_slice()))
    }

    /// The nodes of the roster with their identities, by which their probes are authenticated.
    pub fn roster(&self) -> impl Iterator<Item = (&NodeName, &str)> {
        self.cache.roster.iter().map(|(name, slot)| (name, slot.value.identity.as_str()))
    }

    /// Who votes, as this node counts: by the store, or by others who have read more of it.
    #[must_use]
    pub fn voters(&self) -> &[NodeName] {
        &self.electorate.voters
    }

    /// The last revision at which anything about the nodes changed.
    #[must_use]
    pub const fn nodes_revision(&self) -> Revision {
        self.cache.nodes_revision
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

    fn partner_statuses(&self) -> BTreeMap<NodeName, Partner> {
        let mut partners = self.liveness.statuses(self.looked_at);
        for (name, partner) in &mut partners {
            partner.voted_by = self.voters_against(name);
        }
        partners
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
            let count = if self.cache.is_blocked(*vni) {
                &mut counts.blocked
            } else if state == State::FailoverDecided {
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
