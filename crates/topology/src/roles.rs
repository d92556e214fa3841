//! The WireGuard peers of one mesh.

use std::collections::{BTreeMap, BTreeSet};

use selvedge_mesh::Role;
use selvedge_model::{NodeId, Prefix, WgKey};

use crate::attach::attachment;
use crate::endpoint::{Own, endpoint};
use crate::plan::PeerSpec;
use crate::view::{Member, View};

/// The WireGuard peers that the own node is to have.
pub(crate) fn peers(view: &View) -> BTreeMap<WgKey, PeerSpec> {
    let Some(me) = view.me() else { return BTreeMap::new() };
    let specs = match me.role {
        Role::Peer => of_peer(view, me),
        Role::Client => of_client(view, me),
    };
    with_keys(view, me, specs)
}

/// All other peers, each with the clients that it serves, and the clients that the own node
/// serves or would serve next.
fn of_peer(view: &View, me: &Member) -> BTreeMap<NodeId, PeerSpec> {
    let mut specs: BTreeMap<NodeId, PeerSpec> = BTreeMap::new();
    for member in view.others() {
        match member.role {
            Role::Peer => {
                let spec = specs.entry(member.node).or_default();
                spec.endpoint = endpoint_of(view, me, member);
                spec.keepalive = view.options.peer_keepalive;
                spec.allowed.extend(addresses(member));
            }
            Role::Client => attach(view, member, &mut specs),
        }
    }
    specs
}

fn attach(view: &View, client: &Member, specs: &mut BTreeMap<NodeId, PeerSpec>) {
    let Some(at) = attachment(view, client) else { return };
    if at.serving == view.own || at.standby == Some(view.own) {
        // A client has no endpoint that others know better than its own packets tell.
        specs.entry(client.node).or_default();
    }
    let way = if at.serving == view.own { client.node } else { at.serving };
    specs.entry(way).or_default().allowed.extend(addresses(client));
}

/// The peer that serves the own node, with all of the mesh, and the one that stands by, which
/// has no addresses but answers handshakes, so that a session is there when it is needed.
fn of_client(view: &View, me: &Member) -> BTreeMap<NodeId, PeerSpec> {
    let Some(at) = attachment(view, me) else { return BTreeMap::new() };
    let all: BTreeSet<Prefix> =
        [Some(view.prefix()), view.options.ipv4].into_iter().flatten().collect();
    let links = [(Some(at.serving), all), (at.standby, BTreeSet::new())];
    let spec = |(node, allowed): (Option<NodeId>, BTreeSet<Prefix>)| {
        let peer = view.members.iter().find(|member| Some(member.node) == node)?;
        let keepalive = view.options.client_keepalive;
        Some((peer.node, PeerSpec { endpoint: endpoint_of(view, me, peer), allowed, keepalive }))
    };
    links.into_iter().filter_map(spec).collect()
}

/// The addresses that are a member's alone.
fn addresses(member: &Member) -> impl Iterator<Item = Prefix> + use<> {
    [Some(member.address.into()), member.ipv4.map(Into::into)]
        .into_iter()
        .flatten()
        .map(Prefix::host)
}

fn endpoint_of(view: &View, me: &Member, member: &Member) -> Option<std::net::SocketAddr> {
    let tried = view.options.attempts.iter().find(|(node, _)| *node == member.node);
    endpoint(Own::of(me), &member.endpoints, tried.map_or(0, |(_, count)| *count))
}

/// By their keys. If two members name one key, which no issuer certifies knowingly, it is that of
/// the lower node; nobody has that of the own node.
fn with_keys(
    view: &View,
    me: &Member,
    mut specs: BTreeMap<NodeId, PeerSpec>,
) -> BTreeMap<WgKey, PeerSpec> {
    let mut members: Vec<&Member> = view.others().filter(|member| member.key != me.key).collect();
    members.sort_by_key(|member| member.node);
    let mut peers = BTreeMap::new();
    for member in members {
        if let Some(spec) = specs.remove(&member.node) {
            peers.entry(member.key).or_insert(spec);
        }
    }
    peers
}
