//! The outcome.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use selvedge_mesh::{Bridged, Role};
use selvedge_model::{MeshId, Prefix, WgKey};

use crate::relay::{Hop, Relays, Table};
use crate::roles;
use crate::route::{self, Announcements, Exit, Way};
use crate::view::{Member, Seat, View};

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
    /// What it could announce besides, if its certificate in this mesh allowed it.
    pub unpermitted: BTreeSet<Prefix>,
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
    let seats: Vec<Seat<'_>> = views.iter().filter_map(Seat::of).collect();
    let ways = Ways { nearest: route::ways(&seats), exits: route::exits(&seats) };
    let planned = seats.iter().map(|seat| (seat.mesh(), plan_one(seat, &seats, &ways)));
    Plan { meshes: planned.collect() }
}

/// Where packets go, by whatever mesh.
struct Ways {
    nearest: BTreeMap<Prefix, Way>,
    exits: BTreeMap<Prefix, Exit>,
}

fn plan_one(seat: &Seat<'_>, seats: &[Seat<'_>], ways: &Ways) -> MeshPlan {
    let here = || ways.nearest.iter().filter(|(_, way)| way.mesh == seat.mesh());
    let exits = || ways.exits.iter().filter(|(_, exit)| exit.mesh == seat.mesh());
    let exit_hops = exits().filter_map(|(prefix, exit)| Some((*prefix, exit.hop?)));
    let hops = here().map(|(prefix, way)| (*prefix, way.hop)).chain(exit_hops).chain(ipv4(seat));
    let Announcements { list, left_out, unpermitted } =
        route::announcements(seat, seats, &ways.nearest);
    let peers = roles::peers(seat);
    MeshPlan {
        routes: here().map(|(prefix, _)| *prefix).collect(),
        defaults: exits().map(|(prefix, _)| *prefix).collect(),
        relays: Relays {
            own: seat.me.address,
            own_ipv4: seat.ipv4(seat.me),
            overlay: seat.view.prefix(),
            overlay_ipv4: seat.view.options.ipv4,
            hops: hops.collect(),
            serves: serves(seat.me, &list),
            sources: sources(seat.view),
        },
        forwards: forwards(seat, &peers) || !list.is_empty(),
        peers,
        announce: list,
        left_out,
        unpermitted,
    }
}

/// The members' IPv4 addresses, for packets from beyond the mesh.
fn ipv4(seat: &Seat<'_>) -> impl Iterator<Item = (Prefix, Hop)> {
    seat.view.others().filter_map(|member| {
        let hop = Hop { via: member.address, distance: 0 };
        Some((Prefix::host(seat.ipv4(member)?.into()), hop))
    })
}

/// What is behind this node, and what it announces of other meshes.
fn serves(me: &Member, announce: &[Bridged]) -> Table<u8> {
    let networks = me.networks.iter().map(|prefix| (*prefix, 0));
    let bridged = announce.iter().map(|bridged| (bridged.prefix, route::distance(bridged) - 1));
    networks.chain(bridged).collect()
}

/// What the members may relay from: what they announce and may, as far as the own node wants to
/// have to do with it.
fn sources(view: &View) -> BTreeMap<Ipv6Addr, BTreeSet<Prefix>> {
    let of_member = |member: &Member| -> BTreeSet<Prefix> {
        let bridged = member.bridged.iter();
        let bridged = bridged.filter(|bridged| route::is_acceptable(member, bridged, view.mesh));
        let announced = member.networks.iter().chain(bridged.map(|bridged| &bridged.prefix));
        let wanted = announced.filter(|prefix| match prefix.len() {
            0 => view.leaves_by(member.node),
            _ => view.accepts(**prefix),
        });
        wanted.copied().collect()
    };
    let all = view.others().map(|member| (member.address, of_member(member)));
    all.filter(|(_, prefixes)| !prefixes.is_empty()).collect()
}

/// Whether this node forwards for networks behind it, or for clients that it serves or would serve
/// next. That there are clients is not enough: every member may say that it is one.
fn forwards(seat: &Seat<'_>, peers: &BTreeMap<WgKey, PeerSpec>) -> bool {
    let is_client = |member: &Member| member.role == Role::Client;
    let mut clients = seat.view.others().filter(|member| is_client(member));
    let serves = seat.me.role == Role::Peer && clients.any(|it| peers.contains_key(&it.key));
    !seat.me.networks.is_empty() || serves
}
