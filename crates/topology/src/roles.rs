//! The WireGuard peers of one mesh.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use selvedge_mesh::Role;
use selvedge_model::{NodeId, Prefix, WgKey};

use crate::attach::{Attachment, Peers, attachment};
use crate::direct::Wish;
use crate::endpoint::{Own, endpoint};
use crate::plan::PeerSpec;
use crate::view::{Member, Seat};

/// The WireGuard peers that the own node is to have.
pub(crate) fn peers(seat: &Seat<'_>) -> BTreeMap<WgKey, PeerSpec> {
    let specs = match seat.me.role {
        Role::Peer => of_peer(seat),
        Role::Client => of_client(seat),
    };
    with_keys(seat, specs)
}

/// All other peers, each with the clients that it serves, and the clients that the own node
/// serves or would serve next.
fn of_peer(seat: &Seat<'_>) -> BTreeMap<NodeId, PeerSpec> {
    let serving = Peers::of(seat.view);
    let mut specs: BTreeMap<NodeId, PeerSpec> = BTreeMap::new();
    for member in seat.view.others() {
        match member.role {
            Role::Peer => {
                let spec = specs.entry(member.node).or_default();
                spec.endpoint = endpoint_of(seat, member);
                spec.keepalive = seat.view.options.peer_keepalive;
                spec.allowed.extend(addresses(seat, member));
            }
            Role::Client => attach(seat, member, serving.attachment(member), &mut specs),
        }
    }
    specs
}

fn attach(
    seat: &Seat<'_>,
    client: &Member,
    at: Option<Attachment>,
    specs: &mut BTreeMap<NodeId, PeerSpec>,
) {
    let (Some(at), own) = (at, seat.me.node) else { return };
    if at.serving == own || at.standby == Some(own) {
        // A client has no endpoint that others know better than its own packets tell.
        specs.entry(client.node).or_default();
    }
    let way = if at.serving == own { client.node } else { at.serving };
    specs.entry(way).or_default().allowed.extend(addresses(seat, client));
}

/// The peer that serves the own node, with all of the mesh, and the one that stands by, which
/// has no addresses but answers handshakes, so that a session is there when it is needed.
fn of_client(seat: &Seat<'_>) -> BTreeMap<NodeId, PeerSpec> {
    let view = seat.view;
    let Some(at) = attachment(view, seat.me) else { return BTreeMap::new() };
    let links = [(Some(at.serving), view.overlays().collect()), (at.standby, BTreeSet::new())];
    let spec = |(node, allowed): (Option<NodeId>, BTreeSet<Prefix>)| {
        let peer = view.members.iter().find(|member| Some(member.node) == node)?;
        let keepalive = view.options.client_keepalive;
        Some((peer.node, PeerSpec { endpoint: endpoint_of(seat, peer), allowed, keepalive }))
    };
    let links = links.into_iter().filter_map(spec);
    links.chain(direct(seat)).collect()
}

/// The other clients that packets go to directly, or that this is tried with. Their addresses are
/// among those of the peer that serves the own node, too: what is more precise counts.
fn direct<'a>(seat: &'a Seat<'_>) -> impl Iterator<Item = (NodeId, PeerSpec)> + 'a {
    let wish = |client: &Member| seat.view.options.direct.get(&client.node).copied();
    let clients = seat.view.others().filter(|member| member.role == Role::Client);
    clients.filter_map(move |client| {
        let Wish { endpoint, carries } = wish(client)?;
        let allowed = addresses(seat, client).filter(|_| carries).collect();
        let keepalive = seat.view.options.client_keepalive;
        Some((client.node, PeerSpec { endpoint, allowed, keepalive }))
    })
}

/// The addresses that are a member's alone.
fn addresses(seat: &Seat<'_>, member: &Member) -> impl Iterator<Item = Prefix> + use<> {
    let own = [Some(member.address.into()), seat.ipv4(member).map(Into::into)];
    own.into_iter().flatten().map(Prefix::host)
}

/// Where to send to. An endpoint inside the mesh would be reached by the very tunnel that leads
/// to it.
fn endpoint_of(seat: &Seat<'_>, member: &Member) -> Option<SocketAddr> {
    let outside = |addr: &&SocketAddr| !seat.view.overlays().any(|it| it.contains(addr.ip()));
    let endpoints: Vec<SocketAddr> = member.endpoints.iter().filter(outside).copied().collect();
    endpoint(Own::of(seat.me), &endpoints, seat.attempts(member))
}

/// By their keys. A key that two members name, which no issuer certifies knowingly, is that of
/// who was admitted first, so that nobody takes another's away; nobody has that of the own node.
fn with_keys(seat: &Seat<'_>, mut specs: BTreeMap<NodeId, PeerSpec>) -> BTreeMap<WgKey, PeerSpec> {
    let foreign = |member: &&Member| member.key != seat.me.key;
    let mut members: Vec<&Member> = seat.view.others().filter(foreign).collect();
    members.sort_by_key(|member| (member.serial, member.node));
    let mut peers = BTreeMap::new();
    for member in members {
        if let Some(spec) = specs.remove(&member.node) {
            peers.entry(member.key).or_insert(spec);
        }
    }
    peers
}
