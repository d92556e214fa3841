//! What a plan is made of.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use selvedge_mesh::address::mesh_prefix;
use selvedge_mesh::{Bridged, Role};
use selvedge_model::{MeshId, NodeId, Prefix, WgKey};

/// One mesh as one of its members sees it.
#[derive(Clone, Debug)]
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
    /// Its IPv4 address in the overlay, if it is the owner of one ([`crate::owners`]).
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
}

impl Default for Options {
    /// No bridge and no exit; all announced prefixes are used.
    fn default() -> Self {
        let all = |addr| Prefix::new(addr, 0).expect("every family has the length zero");
        Self {
            bridge: false,
            accept: vec![all(Ipv4Addr::UNSPECIFIED.into()), all(Ipv6Addr::UNSPECIFIED.into())],
            exit: ExitUse::None,
            ipv4: None,
            client_keepalive: Some(Duration::from_secs(25)),
            peer_keepalive: None,
            attempts: Vec::new(),
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
    /// A member as the core of the mesh knows it. Its IPv4 address is the one that it claims.
    #[must_use]
    pub fn new(member: &selvedge_mesh::Member, live: bool) -> Self {
        let profile = &member.profile;
        let permits = match member.founder {
            true => Options::default().accept,
            false => member.allowed.clone(),
        };
        Self {
            node: member.node,
            key: member.wg,
            role: member.role,
            address: member.address,
            ipv4: profile.overlay_ipv4,
            live,
            drained: profile.drained,
            avoids: profile.avoids.clone(),
            endpoints: profile.endpoints.iter().map(|endpoint| endpoint.addr).collect(),
            networks: member.routes().collect(),
            bridged: profile.bridged.clone(),
            permits,
        }
    }

    /// Whether its certificate lets it announce `prefix`.
    #[must_use]
    pub fn may_announce(&self, prefix: Prefix) -> bool {
        self.permits.iter().any(|permit| covers(*permit, prefix))
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
}

/// Whether `outer` holds all of `inner`.
pub(crate) fn covers(outer: Prefix, inner: Prefix) -> bool {
    outer.len() <= inner.len() && outer.contains(inner.addr())
}
