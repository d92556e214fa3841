//! Meshes as the API shows them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use selvedge_api::mesh::{
    Admission, Eviction, Member, MemberState, Mesh, Role, Route, Summary, UsedRoute,
};
use selvedge_dns::names::{Claim, Named, names};
use selvedge_dns::{Host, Site};
use selvedge_host::wireguard::{PeerSpec, PeerStatus};
use selvedge_model::{MeshId, NodeId, Prefix, WgKey};
use selvedge_topology::Table;

use super::applier::Peers;
use super::names::{FindError, find_member};
use super::seat::Seated;
use super::topology::{claim_of, owned};

/// Who was heard within this time is there.
const FRESH: Duration = Duration::from_secs(60);

/// A WireGuard session that is older than this is renewed or dead (the protocol's
/// `Reject-After-Time`).
pub(super) const SESSION: Duration = Duration::from_secs(180);

/// When each node was last heard, and from where.
pub(super) type Heard = BTreeMap<NodeId, Contact>;

/// A message of a node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Contact {
    pub(super) at: Instant,
    /// Where it came from. Through this a node behind NAT is reached, and through none of the
    /// addresses that it knows of itself.
    pub(super) from: SocketAddr,
}

pub(super) fn summary(seat: &Seated) -> Summary {
    Summary {
        id: seat.id(),
        name: seat.name().to_owned(),
        interface: seat.wire.interface.clone(),
        address: seat.core.address(),
        members: seat.core.members().count(),
        evicted: seat.core.evicted().is_some(),
        drained: seat.core.profile().drained,
        direct: seat.paths.counts(),
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
    let ipv4 = owned_ipv4(seat);
    let host = |member: selvedge_mesh::Member| Host {
        claim: claim(&member),
        addresses: std::iter::once(IpAddr::from(member.address))
            .chain(ipv4.get(&member.node).copied().map(IpAddr::from))
            .collect(),
        live: !seat.core.is_down(member.node),
        services: member.profile.services,
    };
    let site = Site {
        mesh: seat.id(),
        name: seat.name().to_owned(),
        prefixes: std::iter::once(seat.core.prefix()).chain(overlay_ipv4(seat)).collect(),
        hosts: seat.core.members().map(host).collect(),
    };
    let interface = seat.wire.interface.clone();
    Seen { site, address: seat.core.address().into(), interface }
}

/// The IPv4 prefix of the mesh, as far as this node uses it.
fn overlay_ipv4(seat: &Seated) -> Option<Prefix> {
    seat.layout.desired.relays.as_ref()?.overlay_ipv4
}

/// The members' IPv4 addresses in the mesh, each by its one owner.
fn owned_ipv4(seat: &Seated) -> BTreeMap<NodeId, Ipv4Addr> {
    let Some(prefix) = overlay_ipv4(seat) else { return BTreeMap::new() };
    let claims: Vec<_> = seat.core.members().map(|member| claim_of(&member)).collect();
    owned(seat.id(), prefix, &claims)
}

pub(super) fn claim(member: &selvedge_mesh::Member) -> Claim {
    Claim {
        node: member.node,
        rank: member.serial,
        alias: member.profile.alias.clone(),
        shared: member.profile.shared,
    }
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
        let ipv4 = seat.layout.ipv4s.get(&member.node).copied();
        Member { ipv4, ..self::member(seat.id(), member, named, &paths, state) }
    };
    Mesh {
        id: seat.id(),
        name: seat.name().to_owned(),
        node: seat.core.node(),
        interface: seat.wire.interface.clone(),
        address: seat.core.address(),
        prefix: seat.core.prefix(),
        ipv4_prefix: seat.options.ipv4,
        listen_port: seat.wire.port,
        wireguard: seat.wire.applier.backend().map(|backend| backend.to_string()),
        routes: used_routes(seat),
        exits: seat.layout.exits.clone(),
        not_permitted: not_permitted(seat),
        members: members.into_iter().map(&mut shown).collect(),
        evicted: seat.core.evicted().map(eviction),
        evictions: seat.core.evictions().map(eviction).collect(),
    }
}

const fn eviction(eviction: &selvedge_mesh::Eviction) -> Eviction {
    Eviction { node: eviction.node, by: eviction.by, at: eviction.issued }
}

/// The member that `selector` means.
pub(super) fn find(seat: &Seated, selector: &str) -> Result<NodeId, FindError> {
    let claims: Vec<_> = seat.core.members().map(|member| claim(&member)).collect();
    find_among(&claims, selector)
}

/// The one of these members that `selector` means.
pub(super) fn find_among(claims: &[Claim], selector: &str) -> Result<NodeId, FindError> {
    let named = names(claims);
    let called = |claim: &'_ Claim| {
        let name = named.get(&claim.node).map(|named| named.name.as_str());
        (claim.node, name.unwrap_or_default())
    };
    let names = claims.iter().map(called);
    let aliases = claims.iter().map(|claim| (claim.node, claim.alias.as_str()));
    find_member(selector, names.chain(aliases))
}

fn used_routes(seat: &Seated) -> Vec<UsedRoute> {
    let used = seat.layout.used.iter();
    used.map(|(destination, via)| UsedRoute { destination: *destination, via: *via }).collect()
}

/// What this node would announce, if it might: networks behind it, and what it reaches by its
/// other meshes.
fn not_permitted(seat: &Seated) -> Vec<Prefix> {
    let Some(own) = seat.core.member(seat.core.node()) else { return Vec::new() };
    let behind = own.profile.routes.iter().filter(|prefix| !own.may_announce(**prefix));
    behind.chain(&seat.layout.unpermitted).copied().collect()
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
        drained: member.profile.drained,
        admission: admission(&member),
        address: member.address,
        ipv4: None,
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

fn admission(member: &selvedge_mesh::Member) -> Admission {
    Admission {
        by: (!member.founder).then_some(member.issuer),
        allowed: member.allowed.clone(),
        may_invite: member.may_invite,
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
    carriers: Table<WgKey>,
}

impl Paths {
    fn new(seat: &Seated) -> Self {
        let desired = seat.wire.applier.peers();
        Self {
            own: seat.core.node(),
            carriers: carriers(&desired),
            desired,
            nodes: seat.core.members().map(|member| (member.wg, member.node)).collect(),
        }
    }

    /// Who carries packets for a member: whose allowed addresses cover its address best. `None` if
    /// it does so itself, or nobody does.
    fn via(&self, member: &selvedge_mesh::Member) -> Option<NodeId> {
        let (_, carrier) = self.carriers.find(member.address.into())?;
        let carrier = *self.nodes.get(carrier)?;
        (carrier != member.node && member.node != self.own).then_some(carrier)
    }
}

/// Who carries packets for which addresses. Of several with one prefix it is the one with the
/// highest key: peers come in the order of their keys.
fn carriers(peers: &Peers) -> Table<WgKey> {
    let allowed = |(key, spec): (&WgKey, &PeerSpec)| {
        let key = *key;
        spec.allowed.iter().map(move |prefix| (*prefix, key)).collect::<Vec<_>>()
    };
    peers.iter().flat_map(allowed).collect()
}

/// Adds what WireGuard knows of the members.
pub(super) fn complete(mesh: &mut Mesh, peers: &[PeerStatus]) {
    let peers: BTreeMap<_, _> = peers.iter().map(|peer| (peer.key, peer)).collect();
    for member in &mut mesh.members {
        let Some(peer) = peers.get(&member.wg_key) else { continue };
        member.endpoint = peer.endpoint.or(member.endpoint);
        member.handshake_age_s = peer.last_handshake.map(|age| age.as_secs());
        (member.rx_bytes, member.tx_bytes) = (peer.rx, peer.tx);
        if has_session(peer) {
            member.state = MemberState::Alive;
        }
    }
}

pub(super) fn has_session(peer: &PeerStatus) -> bool {
    peer.last_handshake.is_some_and(|age| age < SESSION)
}

const fn role(role: selvedge_mesh::Role) -> Role {
    match role {
        selvedge_mesh::Role::Peer => Role::Peer,
        selvedge_mesh::Role::Client => Role::Client,
    }
}

pub(super) fn state(seat: &Seated, node: NodeId, heard: &Heard) -> MemberState {
    if node == seat.core.node() {
        return MemberState::Alive;
    }
    match heard.get(&node).map(|contact| contact.at.elapsed()) {
        _ if seat.core.is_down(node) => MemberState::Down,
        Some(age) if age < FRESH => MemberState::Alive,
        Some(_) => MemberState::Suspect,
        None => MemberState::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// What [`carriers`] is to find, by a look at everything.
    fn slowly(peers: &Peers, address: IpAddr) -> Option<WgKey> {
        let covering = |spec: &PeerSpec| {
            let covers = spec.allowed.iter().filter(|prefix| prefix.contains(address));
            covers.map(Prefix::len).max()
        };
        let all = peers.iter().filter_map(|(key, spec)| Some((covering(spec)?, *key)));
        all.max().map(|(_, key)| key)
    }

    fn peers(allowed: &[&[&str]]) -> Peers {
        let peer = |(key, prefixes): (u8, &&[&str])| {
            let allowed = prefixes.iter().map(|text| text.parse().expect("a prefix")).collect();
            (WgKey([key; 32]), PeerSpec { allowed, ..PeerSpec::default() })
        };
        (1..).zip(allowed).map(peer).collect()
    }

    #[test]
    fn carriers_are_those_that_a_look_at_all_peers_finds() {
        let peers = peers(&[
            &["fd00::1/128", "fd00::8/125", "10.0.0.0/8"],
            &["fd00::2/128", "fd00::/126", "fd00::5/128"],
            // The same prefix twice, once with the bits of a host in it.
            &["fd00::3/128", "fd00::7/126", "fd00::b/128"],
            &["fd00::4/126", "::/0"],
            &[],
        ]);
        let carriers = carriers(&peers);
        let best = |address| carriers.find(address).map(|(_, key)| *key);
        let mut found = BTreeSet::new();
        for host in 0..32_u16 {
            let address = IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, host]);
            assert_eq!(best(address), slowly(&peers, address), "{address}");
            found.extend(best(address));
        }
        assert_eq!(found.len(), 4);
        assert_eq!(best([10, 1, 2, 3].into()), Some(WgKey([1; 32])));
        assert_eq!(best([11, 1, 2, 3].into()), None);
        assert_eq!(super::carriers(&Peers::new()).find([10, 1, 2, 3].into()), None);
    }
}
