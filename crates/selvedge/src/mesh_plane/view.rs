//! Meshes as the API shows them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use selvedge_api::mesh::{Member, MemberState, Mesh, Role, Route, Summary};
use selvedge_dns::names::{Claim, Named, names};
use selvedge_dns::{Host, Site};
use selvedge_host::wireguard::{PeerSpec, PeerStatus};
use selvedge_model::{MeshId, NodeId, Prefix, WgKey};

use super::applier::Peers;
use super::seat::Seated;

/// Who was heard within this time is there.
const FRESH: Duration = Duration::from_secs(60);

/// A WireGuard session that is older than this is renewed or dead (the protocol's
/// `Reject-After-Time`).
const SESSION: Duration = Duration::from_secs(180);

/// When each node was last heard.
pub(super) type Heard = BTreeMap<NodeId, Instant>;

pub(super) fn summary(seat: &Seated) -> Summary {
    Summary {
        id: seat.id(),
        name: seat.name().to_owned(),
        interface: seat.wire.interface.clone(),
        address: seat.core.address(),
        members: seat.core.members().count(),
    }
}

/// A mesh as far as names are made of it, and the place where its members may ask for them.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) site: Site,
    /// This node's own address in it.
    pub(super) address: IpAddr,
    pub(super) interface: String,
}

pub(super) fn site(seat: &Seated) -> Seen {
    let host = |member: selvedge_mesh::Member| Host {
        claim: claim(&member),
        addresses: addresses(&member),
        live: !seat.core.is_down(member.node),
        services: member.profile.services,
    };
    let site = Site {
        mesh: seat.id(),
        name: seat.name().to_owned(),
        prefixes: vec![seat.core.prefix()],
        hosts: seat.core.members().map(host).collect(),
    };
    let interface = seat.wire.interface.clone();
    Seen { site, address: seat.core.address().into(), interface }
}

fn claim(member: &selvedge_mesh::Member) -> Claim {
    Claim {
        node: member.node,
        rank: member.serial,
        alias: member.profile.alias.clone(),
        shared: member.profile.shared,
    }
}

fn addresses(member: &selvedge_mesh::Member) -> Vec<IpAddr> {
    let ipv4 = member.profile.overlay_ipv4.map(IpAddr::V4);
    std::iter::once(member.address.into()).chain(ipv4).collect()
}

/// A mesh without what WireGuard knows; see [`complete`].
pub(super) fn mesh(seat: &Seated, heard: &Heard) -> Mesh {
    let paths = Paths::new(seat);
    let members: Vec<_> = seat.core.members().collect();
    let claims: Vec<_> = members.iter().map(claim).collect();
    let mut named = names(&claims);
    let mut shown = |member: selvedge_mesh::Member| {
        let named = named.remove(&member.node);
        let state = state(seat, member.node, heard);
        self::member(seat.id(), member, named, &paths, state)
    };
    Mesh {
        id: seat.id(),
        name: seat.name().to_owned(),
        node: seat.core.node(),
        interface: seat.wire.interface.clone(),
        address: seat.core.address(),
        prefix: seat.core.prefix(),
        listen_port: seat.wire.port,
        members: members.into_iter().map(&mut shown).collect(),
    }
}

fn member(
    mesh: MeshId,
    member: selvedge_mesh::Member,
    named: Option<Named>,
    paths: &Paths,
    state: MemberState,
) -> Member {
    let spec = paths.desired.get(&member.wg);
    let text = |text: String| (!text.is_empty()).then_some(text);
    let addresses = |endpoints: &[selvedge_mesh::Endpoint]| -> Vec<SocketAddr> {
        endpoints.iter().map(|endpoint| endpoint.addr).collect()
    };
    let (name, group, contested) = match named {
        Some(named) => (named.name, named.group, named.contested),
        None => (member.node.to_string(), None, false),
    };
    Member {
        node: member.node,
        own: member.node == paths.own,
        name,
        group,
        contested,
        role: role(member.role),
        address: member.address,
        ipv4: member.profile.overlay_ipv4,
        wg_key: member.wg,
        control: addresses(&member.profile.control),
        endpoints: addresses(&member.profile.endpoints),
        routes: routes(&member, mesh),
        via: paths.via(&member),
        endpoint: spec.and_then(|spec| spec.endpoint),
        state,
        allowed_ips: spec.map(|spec| spec.allowed.iter().copied().collect()).unwrap_or_default(),
        keepalive_s: spec.and_then(|spec| spec.keepalive),
        handshake_age_s: None,
        rx_bytes: 0,
        tx_bytes: 0,
        updated: member.issued.0,
        alias: text(member.profile.alias),
        description: text(member.profile.description),
        version: text(member.profile.version),
        services: member.profile.services,
    }
}

/// What is reached by a member: what lies behind it, and what other meshes lead to.
fn routes(member: &selvedge_mesh::Member, mesh: MeshId) -> Vec<Route> {
    let behind = member.routes().map(|destination| Route { destination, path: Vec::new() });
    // What this mesh is on the way of leads nowhere.
    let onward = member.profile.bridged.iter().filter(|route| !route.path.contains(&mesh));
    let onward = onward.map(|route| Route { destination: route.prefix, path: route.path.clone() });
    behind.chain(onward).collect()
}

/// The ways of this node's packets, as WireGuard is to send them.
struct Paths {
    own: NodeId,
    desired: Peers,
    nodes: BTreeMap<WgKey, NodeId>,
}

impl Paths {
    fn new(seat: &Seated) -> Self {
        Self {
            own: seat.core.node(),
            desired: seat.wire.applier.desired(),
            nodes: seat.core.members().map(|member| (member.wg, member.node)).collect(),
        }
    }

    /// Who carries packets for a member: whose allowed addresses cover its address best. `None` if
    /// it does so itself, or nobody does.
    fn via(&self, member: &selvedge_mesh::Member) -> Option<NodeId> {
        let address = IpAddr::from(member.address);
        let covering = |spec: &PeerSpec| {
            let covers = spec.allowed.iter().filter(|prefix| prefix.contains(address));
            covers.map(Prefix::len).max()
        };
        let best = self.desired.iter().filter_map(|(key, spec)| Some((covering(spec)?, key))).max();
        let carrier = *self.nodes.get(best?.1)?;
        (carrier != member.node && member.node != self.own).then_some(carrier)
    }
}

/// Adds what WireGuard knows of the members.
pub(super) fn complete(mesh: &mut Mesh, peers: &[PeerStatus]) {
    let peers: BTreeMap<_, _> = peers.iter().map(|peer| (peer.key, peer)).collect();
    for member in &mut mesh.members {
        let Some(peer) = peers.get(&member.wg_key) else { continue };
        member.endpoint = peer.endpoint.or(member.endpoint);
        member.handshake_age_s = peer.last_handshake.map(|age| age.as_secs());
        (member.rx_bytes, member.tx_bytes) = (peer.rx, peer.tx);
        if peer.last_handshake.is_some_and(|age| age < SESSION) {
            member.state = MemberState::Alive;
        }
    }
}

const fn role(role: selvedge_mesh::Role) -> Role {
    match role {
        selvedge_mesh::Role::Peer => Role::Peer,
        selvedge_mesh::Role::Client => Role::Client,
    }
}

fn state(seat: &Seated, node: NodeId, heard: &Heard) -> MemberState {
    if node == seat.core.node() {
        return MemberState::Alive;
    }
    match heard.get(&node).map(Instant::elapsed) {
        _ if seat.core.is_down(node) => MemberState::Down,
        Some(age) if age < FRESH => MemberState::Alive,
        Some(_) => MemberState::Suspect,
        None => MemberState::Unknown,
    }
}
