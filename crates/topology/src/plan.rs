//! The outcome.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use selvedge_mesh::{Bridged, Role};
use selvedge_model::{MeshId, Prefix, WgKey};

use crate::relay::{Hop, Relays, Table};
use crate::roles;
use crate::route::{self, Way};
use crate::view::{Member, View};

/// What this host is to do for all meshes of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// For each mesh.
    pub meshes: BTreeMap<MeshId, MeshPlan>,
}

/// What this host is to do for one mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshPlan {
    /// The peers that WireGuard is to have. No prefix is allowed to two of them.
    pub peers: BTreeMap<WgKey, PeerSpec>,
    /// What is routed into the interface besides the overlay prefix.
    pub routes: BTreeSet<Prefix>,
    /// Prefixes of length zero that are routed into the interface for everything but the agent's
    /// own packets: in a routing table of their own.
    pub defaults: BTreeSet<Prefix>,
    /// What becomes of packets beyond the mesh.
    pub relays: Relays,
    /// What the node is to say in this mesh that it reaches by others.
    pub announce: Vec<Bridged>,
    /// How many announcements a record has no room for.
    pub left_out: usize,
    /// Whether packets of others pass this host, so that it has to forward.
    pub forwards: bool,
}

/// How WireGuard is to know one peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerSpec {
    /// Where to send to; `None` if the peer must send first.
    pub endpoint: Option<SocketAddr>,
    /// What the peer may send from, and what is sent to it.
    pub allowed: BTreeSet<Prefix>,
    /// How often an idle tunnel sends.
    pub keepalive: Option<Duration>,
}

/// Plans for all meshes of one node. A view in which the node is no member counts for nothing.
#[must_use]
pub fn plan(views: &[View]) -> Plan {
    let ways = route::ways(views);
    let planned = views.iter().filter_map(|view| {
        let me = view.me()?;
        Some((view.mesh, plan_one(view, me, views, &ways)))
    });
    Plan { meshes: planned.collect() }
}

fn plan_one(view: &View, me: &Member, views: &[View], ways: &BTreeMap<Prefix, Way>) -> MeshPlan {
    let here = || ways.iter().filter(|(_, way)| way.mesh == view.mesh);
    let exits = route::exits(view);
    let (announce, left_out) = route::announcements(view, views, ways);
    let exit_hops = exits.iter().filter_map(|(prefix, way)| Some((*prefix, way.as_ref()?.hop)));
    let hops = here().map(|(prefix, way)| (*prefix, way.hop)).chain(exit_hops).chain(ipv4(view));
    let relays = Relays {
        own: me.address,
        own_ipv4: me.ipv4,
        overlay: view.prefix(),
        overlay_ipv4: view.options.ipv4,
        hops: hops.collect(),
        serves: serves(me, &announce),
        sources: view.others().map(|member| (member.address, sources(view, member))).collect(),
    };
    MeshPlan {
        peers: roles::peers(view),
        routes: here().map(|(prefix, _)| *prefix).collect(),
        defaults: exits.into_keys().collect(),
        forwards: forwards(view, me) || !announce.is_empty(),
        relays,
        announce,
        left_out,
    }
}

/// The members' IPv4 addresses, for packets from beyond the mesh.
fn ipv4(view: &View) -> impl Iterator<Item = (Prefix, Hop)> {
    view.others().filter_map(|member| {
        let hop = Hop { via: member.address, distance: 0 };
        Some((Prefix::host(member.ipv4?.into()), hop))
    })
}

/// What is behind this node, and what it announces of other meshes.
fn serves(me: &Member, announce: &[Bridged]) -> Table<u8> {
    let networks = me.networks.iter().map(|prefix| (*prefix, 0));
    let bridged = announce.iter().map(|bridged| (bridged.prefix, route::distance(bridged) - 1));
    networks.chain(bridged).collect()
}

/// What a member may relay from: what it announces and may.
fn sources(view: &View, member: &Member) -> BTreeSet<Prefix> {
    let bridged = member.bridged.iter();
    let bridged = bridged.filter(|bridged| route::is_acceptable(member, bridged, view.mesh));
    member.networks.iter().copied().chain(bridged.map(|bridged| bridged.prefix)).collect()
}

/// Whether this node forwards for clients, or for networks behind it.
fn forwards(view: &View, me: &Member) -> bool {
    let clients = || view.others().any(|member| member.role == Role::Client);
    !me.networks.is_empty() || (me.role == Role::Peer && clients())
}
