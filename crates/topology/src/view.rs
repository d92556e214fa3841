//! What a plan is made of.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use selvedge_mesh::address::mesh_prefix;
use selvedge_mesh::{Bridged, Role, permits};
use selvedge_model::{MeshId, NodeId, Prefix, WgKey};

use crate::direct::Wish;
use crate::overlay_ipv4::{Claim, owners};

/// One mesh as one of its members sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The mesh.
    pub mesh: MeshId,
    /// The member that sees it so.
    pub own: NodeId,
    /// All members, the own node among them.
    pub members: Vec<Member>,
    /// What the own node wants of this mesh.
    pub options: Options,
}

/// A member of a mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Who it is.
    pub node: NodeId,
    /// Its WireGuard key.
    pub key: WgKey,
    /// Peer or client.
    pub role: Role,
    /// Its overlay address.
    pub address: Ipv6Addr,
    /// The serial number of its certificate: who was admitted first has the lower one.
    pub serial: u64,
    /// The IPv4 address in the overlay that it claims. It counts if the member is its owner
    /// ([`crate::owners`]).
    pub ipv4: Option<Ipv4Addr>,
    /// Whether it answers, as far as this node knows. The own node always does.
    pub live: bool,
    /// Whether it is a peer that serves no clients any more.
    pub drained: bool,
    /// Peers that this client cannot reach.
    pub avoids: Vec<NodeId>,
    /// Where its WireGuard listens, the most preferred first, names resolved.
    pub endpoints: Vec<SocketAddr>,
    /// The networks behind it, as far as its certificate lets it announce them. One of length
    /// zero makes it an exit.
    pub networks: Vec<Prefix>,
    /// What it reaches through other meshes, as it says.
    pub bridged: Vec<Bridged>,
    /// The prefixes that its certificate lets it announce.
    pub permits: Vec<Prefix>,
}

/// What a node wants of one of its meshes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether it connects this mesh with its other meshes that it connects too.
    pub bridge: bool,
    /// Announced prefixes are used as far as they lie in one of these.
    pub accept: Vec<Prefix>,
    /// The exit that it uses for what has no better route.
    pub exit: ExitUse,
    /// The IPv4 prefix of the mesh, if it has one.
    pub ipv4: Option<Prefix>,
    /// How often a client's idle tunnel sends, to keep its NAT open.
    pub client_keepalive: Option<Duration>,
    /// The same for a tunnel between two peers.
    pub peer_keepalive: Option<Duration>,
    /// How often the endpoint of a member was tried in vain, so that the next one is taken.
    pub attempts: Vec<(NodeId, usize)>,
    /// Other clients that this client has, or tries to have, as peers of its own.
    pub direct: BTreeMap<NodeId, Wish>,
    /// Whether the own node, though drained, serves its clients a while longer. To be set until
    /// they have surely heard of it: what they send meanwhile would be dropped.
    pub still_serving: bool,
}

impl Default for Options {
    /// No bridge and no exit; all announced prefixes are used.
    fn default() -> Self {
        Self {
            bridge: false,
            accept: everywhere().to_vec(),
            exit: ExitUse::None,
            ipv4: None,
            client_keepalive: Some(Duration::from_secs(25)),
            peer_keepalive: None,
            attempts: Vec::new(),
            direct: BTreeMap::new(),
            still_serving: false,
        }
    }
}

/// Which exit a node uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExitUse {
    /// None.
    #[default]
    None,
    /// One of those that live, by rendezvous hashing, so that the members are spread over them.
    Any,
    /// This one alone; while it does not live, packets to elsewhere are dropped rather than sent
    /// past it.
    Only(NodeId),
}

impl Member {
    /// A member as the core of the mesh knows it.
    #[must_use]
    pub fn new(member: &selvedge_mesh::Member, live: bool) -> Self {
        let profile = &member.profile;
        Self {
            node: member.node,
            key: member.wg,
            role: member.role,
            address: member.address,
            serial: member.serial,
            ipv4: profile.overlay_ipv4,
            live,
            drained: profile.drained,
            avoids: profile.avoids.clone(),
            endpoints: profile.endpoints.iter().map(|endpoint| endpoint.addr).collect(),
            networks: member.routes().collect(),
            bridged: profile.bridged.clone(),
            permits: if member.founder { anything() } else { member.allowed.clone() },
        }
    }

    /// The prefixes of length zero among its networks: the families in which it is an exit.
    pub fn exits(&self) -> impl Iterator<Item = Prefix> {
        self.networks.iter().copied().filter(|prefix| prefix.len() == 0)
    }

    /// Whether its certificate lets it announce `prefix`.
    #[must_use]
    pub fn may_announce(&self, prefix: Prefix) -> bool {
        permits(&self.permits, prefix)
    }
}

impl View {
    /// The overlay prefix of the mesh.
    #[must_use]
    pub fn prefix(&self) -> Prefix {
        mesh_prefix(self.mesh)
    }

    /// The own node as a member; `None` if it is none.
    #[must_use]
    pub fn me(&self) -> Option<&Member> {
        self.members.iter().find(|member| member.node == self.own)
    }

    /// All members but the own node.
    pub fn others(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| member.node != self.own)
    }

    /// Whether the own node uses what lies in `prefix`, if somebody announces it.
    pub(crate) fn accepts(&self, prefix: Prefix) -> bool {
        self.options.accept.iter().any(|accept| covers(*accept, prefix))
    }

    /// Whether the own node may use `member` as an exit.
    pub(crate) fn leaves_by(&self, member: NodeId) -> bool {
        match self.options.exit {
            ExitUse::None => false,
            ExitUse::Any => true,
            ExitUse::Only(exit) => exit == member,
        }
    }

    /// The prefixes of the overlay.
    pub(crate) fn overlays(&self) -> impl Iterator<Item = Prefix> {
        [Some(self.prefix()), self.options.ipv4].into_iter().flatten()
    }

    /// The members' IPv4 addresses, each by its one owner.
    fn owners(&self) -> BTreeMap<NodeId, Ipv4Addr> {
        let Some(prefix) = self.options.ipv4 else { return BTreeMap::new() };
        let claims: Vec<Claim> = self.members.iter().map(Claim::of).collect();
        let owners = owners(self.mesh, prefix, &claims);
        owners.into_iter().map(|(address, node)| (node, address)).collect()
    }
}

/// A view of a member, with what several parts of its plan need of it.
pub(crate) struct Seat<'a> {
    pub(crate) view: &'a View,
    pub(crate) me: &'a Member,
    owners: BTreeMap<NodeId, Ipv4Addr>,
    attempts: BTreeMap<NodeId, usize>,
}

impl<'a> Seat<'a> {
    /// `None` if the own node is no member.
    pub(crate) fn of(view: &'a View) -> Option<Self> {
        let attempts = view.options.attempts.iter().copied().collect();
        Some(Self { view, me: view.me()?, owners: view.owners(), attempts })
    }

    pub(crate) const fn mesh(&self) -> MeshId {
        self.view.mesh
    }

    /// The IPv4 address in the overlay that is a member's own.
    pub(crate) fn ipv4(&self, member: &Member) -> Option<Ipv4Addr> {
        self.owners.get(&member.node).copied()
    }

    /// How often the endpoint of a member was tried in vain.
    pub(crate) fn attempts(&self, member: &Member) -> usize {
        self.attempts.get(&member.node).copied().unwrap_or_default()
    }
}

/// The permits of a founder: to be an exit, and all that is less than everywhere.
fn anything() -> Vec<Prefix> {
    let halves = everywhere().into_iter().filter_map(|whole| whole.halves()).flatten();
    halves.chain(everywhere()).collect()
}

/// The prefix of length zero of each family.
#[must_use]
pub fn everywhere() -> [Prefix; 2] {
    let all = |addr| Prefix::new(addr, 0).expect("every family has the length zero");
    [all(Ipv4Addr::UNSPECIFIED.into()), all(Ipv6Addr::UNSPECIFIED.into())]
}

/// Whether `outer` holds all of `inner`.
pub(crate) fn covers(outer: Prefix, inner: Prefix) -> bool {
    outer.len() <= inner.len() && outer.contains(inner.addr())
}

/// Whether an address lies in both.
#[must_use]
pub fn overlap(one: Prefix, other: Prefix) -> bool {
    covers(one, other) || covers(other, one)
}

#[cfg(test)]
mod tests {
    use selvedge_mesh::{Profile, UnixTime};

    use super::*;

    fn prefixes(texts: &[&str]) -> Vec<Prefix> {
        texts.iter().map(|text| text.parse().expect("a prefix")).collect()
    }

    /// What a member's networks are who announces a bit of everything.
    fn networks(founder: bool, allowed: &[&str]) -> Vec<String> {
        let routes = prefixes(&["10.1.0.0/16", "0.0.0.0/0", "2001:db8:1::/48", "::/0"]);
        let (mesh, node) = (MeshId([1; 20]), NodeId([2; 32]));
        let member = selvedge_mesh::Member {
            node,
            address: selvedge_mesh::address::node_address(mesh, node),
            wg: WgKey([3; 32]),
            role: Role::Peer,
            profile: Profile { routes, ..Profile::default() },
            seq: 1,
            not_after: UnixTime(1),
            founder,
            issuer: NodeId([9; 32]),
            may_invite: false,
            allowed: prefixes(allowed),
            issued: UnixTime(1),
            serial: 7,
        };
        Member::new(&member, true).networks.iter().map(Prefix::to_string).collect()
    }

    #[test]
    fn certificates_say_what_may_be_announced() {
        assert_eq!(networks(false, &[]), [""; 0]);
        assert_eq!(networks(false, &["10.0.0.0/8"]), ["10.1.0.0/16"]);
        assert_eq!(networks(false, &["10.1.2.0/24"]), [""; 0], "a part of it");
        assert_eq!(networks(true, &[]).len(), 4, "a founder needs no permit");
    }

    #[test]
    fn an_exits_permit_is_for_nothing_else() {
        assert_eq!(networks(false, &["0.0.0.0/0", "::/0"]), ["0.0.0.0/0", "::/0"]);
        assert_eq!(networks(false, &["0.0.0.0/1"]), ["10.1.0.0/16"]);
    }
}
