//! The mesh plane.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use selvedge_model::{MeshId, NodeId, Prefix, Vni, WgKey};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Found a mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreateRequest {
    /// What people call the mesh.
    pub name: String,
    /// What this node calls itself in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// A word on this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The UDP port of WireGuard; without it what is configured, or one that is free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// Make a token that lets others join a mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InviteRequest {
    /// How many nodes may join with it.
    pub uses: u32,
    /// For how many seconds from now.
    pub expires_s: u64,
    /// What those who join will be.
    #[serde(default)]
    pub role: Role,
    /// The prefixes behind them that they may announce, those of other meshes included; an invite
    /// of a member that did not found the mesh passes on no more than that member may announce.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub allow: Vec<Prefix>,
    /// Whether they may invite others, and evict those again. The founder alone grants this.
    #[serde(default, skip_serializing_if = "is_false")]
    pub may_invite: bool,
    /// How many each of them may admit then; 256 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guests: Option<u32>,
}

/// For one peer, within a day.
impl Default for InviteRequest {
    fn default() -> Self {
        Self {
            uses: 1,
            expires_s: 86_400,
            role: Role::default(),
            allow: Vec::new(),
            may_invite: false,
            guests: None,
        }
    }
}

/// A token that lets others join a mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Invite {
    /// The token: whoever has it may join, so it is a secret.
    pub token: String,
    /// The mesh.
    #[schema(value_type = String)]
    pub mesh: MeshId,
    /// How many nodes may join with it.
    pub uses: u32,
    /// When it ends, in seconds since 1970 (UTC).
    pub expires: u64,
}

/// Join a mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JoinRequest {
    /// The token that a member made.
    pub token: String,
    /// What this node calls itself in the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// A word on this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// What this node is to be; a client is one also if the token would have it be a peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// The UDP port of WireGuard; without it what is configured, or one that is free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// Say something else about this node in a mesh. What is left out stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct EditRequest {
    /// What this node calls itself; an empty text takes the name away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// Whether it shares that with other nodes on purpose, so that the name means all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared: Option<bool>,
    /// A word on this node; an empty text takes it away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// What it is to be. It cannot be a peer if it was admitted as a client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Whether its clients are to leave it, because it is about to go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drained: Option<bool>,
    /// Services to offer, by name; `null` ends one.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub services: BTreeMap<String, Option<String>>,
}

/// Ask about the members of a mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QueryRequest {
    /// An expression of JMESPath (<https://jmespath.org>) over the list of members as
    /// `docs/mesh-query.md` describes them.
    pub expression: String,
}

/// A mesh that was left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Left {
    /// Its id.
    #[schema(value_type = String)]
    pub id: MeshId,
    /// Its name.
    pub name: String,
}

/// A node that was put out of a mesh, or would be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Evicted {
    /// The mesh.
    #[schema(value_type = String)]
    pub mesh: MeshId,
    /// The node.
    #[schema(value_type = String)]
    pub node: NodeId,
    /// Who is a member no more because of that: the node, and those whom it admitted.
    #[schema(value_type = Vec<String>)]
    pub gone: Vec<NodeId>,
}

/// That a node was put out of a mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Eviction {
    /// Who was put out.
    #[schema(value_type = String)]
    pub node: NodeId,
    /// By whom.
    #[schema(value_type = String)]
    pub by: NodeId,
    /// When, in seconds since 1970 (UTC) by the clock of who did it.
    pub at: u64,
}

/// A mesh in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Summary {
    /// Its id.
    #[schema(value_type = String)]
    pub id: MeshId,
    /// Its name.
    pub name: String,
    /// This node's WireGuard interface in it.
    pub interface: String,
    /// This node's overlay address in it.
    #[schema(value_type = String)]
    pub address: Ipv6Addr,
    /// How many members it has, this node included.
    pub members: usize,
    /// Whether this node was evicted from it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub evicted: bool,
    /// Whether this node is drained: it serves no clients.
    #[serde(default, skip_serializing_if = "is_false")]
    pub drained: bool,
    /// Its direct paths to other clients.
    #[serde(default)]
    pub direct: DirectPaths,
}

/// The direct paths of a client in a mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DirectPaths {
    /// How many carry packets.
    pub open: usize,
    /// How often one was tried since the agent started.
    pub attempts: u64,
    /// How often that was in vain, or one that carried packets fell silent.
    pub failures: u64,
}

/// A mesh as one of its members sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Mesh {
    /// Its id.
    #[schema(value_type = String)]
    pub id: MeshId,
    /// Its name.
    pub name: String,
    /// This node's identity.
    #[schema(value_type = String)]
    pub node: NodeId,
    /// This node's WireGuard interface in it.
    pub interface: String,
    /// This node's overlay address in it.
    #[schema(value_type = String)]
    pub address: Ipv6Addr,
    /// The overlay prefix of all its members.
    #[schema(value_type = String)]
    pub prefix: Prefix,
    /// The IPv4 network of the mesh, as far as this node was told of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub ipv4_prefix: Option<Prefix>,
    /// The UDP port of this node's WireGuard interface.
    pub listen_port: u16,
    /// Who does the work of WireGuard: `kernel` or `userspace`; absent if nobody does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wireguard: Option<String>,
    /// Where this node's packets to beyond the mesh go.
    #[serde(default)]
    pub routes: Vec<UsedRoute>,
    /// The exits by which this node's packets are to leave for everywhere else, one for each family;
    /// none if no exit is asked for.
    #[serde(default)]
    pub exits: Vec<Exit>,
    /// Networks that this node is to offer to the mesh, but its certificate does not let it: nobody
    /// uses them.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub not_permitted: Vec<Prefix>,
    /// The members, this node included, in the order of their ids.
    pub members: Vec<Member>,
    /// The eviction by which this node is a member no more, if there is one: of itself, or of who
    /// had admitted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evicted: Option<Eviction>,
    /// All evictions from it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evictions: Vec<Eviction>,
}

/// A route that this node uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UsedRoute {
    /// Where to.
    #[schema(value_type = String)]
    pub destination: Prefix,
    /// The member by which.
    #[schema(value_type = String)]
    pub via: NodeId,
}

/// The exit of a family that is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Exit {
    /// Where to: everywhere, in one family.
    #[schema(value_type = String)]
    pub destination: Prefix,
    /// The member that is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub via: Option<NodeId>,
    /// Why none is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<NoExit>,
    /// Whether packets to there are dropped meanwhile; else they go the way that the host has
    /// without the mesh.
    #[serde(default, skip_serializing_if = "is_false")]
    pub dropped: bool,
}

/// Why no exit is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NoExit {
    /// The one that is asked for is no member.
    NoMember,
    /// It offers none in this family, or its certificate does not allow it.
    NotOffered,
    /// Those that offer one are down.
    Down,
    /// This node has no IPv4 address in the mesh.
    NoAddress,
    /// One of another mesh is used.
    OtherMesh,
    /// This node is an exit itself.
    OwnExit,
    /// A reason of a newer agent.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for NoExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::NoMember => "the exit that is asked for is no member",
            Self::NotOffered => "it is not offered, or no certificate allows it",
            Self::Down => "who offers it is down",
            Self::NoAddress => "this node has no IPv4 address in the mesh",
            Self::OtherMesh => "one of another mesh is used",
            Self::OwnExit => "this node is an exit itself",
            Self::Unknown => "for a reason that only a newer program knows",
        })
    }
}

impl Exit {
    /// Whether none is used, and none takes its place.
    #[must_use]
    pub const fn is_missing(&self) -> bool {
        let replaced = matches!(self.reason, Some(NoExit::OtherMesh | NoExit::OwnExit));
        self.via.is_none() && !replaced
    }

    /// What becomes of packets, as people are told; `by` is what the member is called that is used.
    #[must_use]
    pub fn fate(&self, by: Option<&str>) -> String {
        let to = self.destination;
        match (by, self.reason) {
            (Some(by), _) => format!("packets to {to} leave by {by}"),
            (None, Some(reason)) if !self.is_missing() => format!("no exit to {to}: {reason}"),
            (None, reason) => {
                let reason = reason.unwrap_or(NoExit::Unknown);
                let then = match self.dropped {
                    true => "packets are dropped",
                    false => "packets go this host's own way",
                };
                format!("no exit to {to}: {reason}; {then}")
            }
        }
    }
}

/// A member of a mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Member {
    /// Its identity.
    #[schema(value_type = String)]
    pub node: NodeId,
    /// Whether it is the node that was asked.
    pub own: bool,
    /// What it calls itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// What it is called: the alias as a label of a domain name, with something behind it if
    /// another member has it, or a name made of words. No other member has it.
    #[serde(default)]
    pub name: String,
    /// The name that it shares with others on purpose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Whether another member claims the same alias, and they do not share it on purpose.
    #[serde(default, skip_serializing_if = "is_false")]
    pub contested: bool,
    /// What it says of itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// What it offers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub services: BTreeMap<String, String>,
    /// The version of its software.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// When it last said something new about itself, or renewed it, in seconds since 1970 (UTC)
    /// by its own clock.
    #[serde(default)]
    pub updated: u64,
    /// Its role.
    #[serde(default)]
    pub role: Role,
    /// Whether it is drained: as a peer it serves no clients.
    #[serde(default, skip_serializing_if = "is_false")]
    pub drained: bool,
    /// By whom it was admitted, and to what.
    #[serde(default)]
    pub admission: Admission,
    /// Its overlay address.
    #[schema(value_type = String)]
    pub address: Ipv6Addr,
    /// Its IPv4 address in the mesh, if it has one that is its own. Of several that claim one, one
    /// alone has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub ipv4: Option<Ipv4Addr>,
    /// Its WireGuard key.
    #[schema(value_type = String)]
    pub wg_key: WgKey,
    /// Where it says that its agent listens.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub control: Vec<SocketAddr>,
    /// Where it says that its WireGuard listens.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub endpoints: Vec<SocketAddr>,
    /// What is reached by it beside itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// The member by which this node's packets reach it; none if they go to it directly, or not
    /// at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub via: Option<NodeId>,
    /// Where this node's WireGuard sends packets for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub endpoint: Option<SocketAddr>,
    /// Whether it is there.
    pub state: MemberState,
    /// What this node's WireGuard sends to it.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub allowed_ips: Vec<Prefix>,
    /// Seconds between keepalive packets, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keepalive_s: Option<u16>,
    /// Seconds since the last WireGuard handshake with it, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handshake_age_s: Option<u64>,
    /// Bytes received from it.
    #[serde(default)]
    pub rx_bytes: u64,
    /// Bytes sent to it.
    #[serde(default)]
    pub tx_bytes: u64,
}

/// By whom a member was admitted, and to what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Admission {
    /// The member that admitted it; none for the founder of the mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub by: Option<NodeId>,
    /// The prefixes that it may announce; the founder may announce any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub allowed: Vec<Prefix>,
    /// Whether it may invite others, and evict them again.
    #[serde(skip_serializing_if = "is_false")]
    pub may_invite: bool,
}

/// What is reached by a member beside itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Route {
    /// Where to.
    #[schema(value_type = String)]
    pub destination: Prefix,
    /// The meshes that lead there, the nearest first; none if it is just behind the member.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub path: Vec<MeshId>,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// Something that happened in a mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = MeshEvent)]
pub struct Event {
    /// When, in milliseconds since 1970 (UTC).
    pub at_ms: u64,
    /// In which mesh; none if it is about all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub mesh: Option<MeshId>,
    /// What people call that mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What happened.
    #[serde(flatten)]
    pub what: What,
}

/// What happened in a mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[schema(as = MeshWhat)]
pub enum What {
    /// This node takes part in it from now on.
    Entered,
    /// This node takes part in it no more.
    Left,
    /// A node became a member.
    MemberJoined(Who),
    /// A member says something new about itself.
    MemberUpdated(Who),
    /// A node is a member no more.
    MemberLeft(Who),
    /// A node was evicted; it may be this one.
    MemberEvicted(Who),
    /// A member does not answer any more.
    MemberDown(Who),
    /// A member that was down is heard again.
    MemberUp(Who),
    /// Another exit is used for a family, or none any more.
    ExitChanged {
        /// Which, and why.
        #[serde(flatten)]
        exit: Exit,
        /// What the member calls itself that is used.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        alias: Option<String>,
    },
    /// A hook failed.
    HookFailed {
        /// Which.
        hook: String,
        /// Why.
        problem: String,
    },
    /// The reader was too slow: so many events before this one were left out.
    Missed {
        /// How many.
        events: u64,
    },
    /// An event of a newer agent.
    #[serde(other)]
    Unknown,
}

/// Whom an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Who {
    /// The node.
    #[schema(value_type = String)]
    pub node: NodeId,
    /// What it calls itself, if it is a member still.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
}

/// How names of mesh members are answered on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Dns {
    /// Whether the agent answers DNS questions.
    pub enabled: bool,
    /// The domain of all meshes.
    #[serde(default)]
    pub domain: String,
    /// Where it listens, or why not.
    #[serde(default)]
    pub listeners: Vec<Listener>,
    /// Whether this host's own programs ask there.
    #[serde(default)]
    pub hookup: Hookup,
}

/// A place where DNS questions are answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Listener {
    /// Where.
    #[schema(value_type = String)]
    pub address: SocketAddr,
    /// The WireGuard interface whose address it is; none for the loopback address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Why nothing is answered there, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Whether this host's own programs find the names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Hookup {
    /// systemd-resolved sends questions about the meshes to the agent.
    Resolved,
    /// systemd-resolved was told, and refused.
    Failed {
        /// Why.
        problem: String,
    },
    /// It is left to the operator: there is no systemd-resolved, or it is not to be told.
    #[default]
    #[serde(other)]
    Manual,
}

/// The overlay networks that this host carries over a mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Tunnels {
    /// The mesh, as the configuration names it.
    pub mesh: String,
    /// The interface by which the networks are carried; none as long as this node is no member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Where this host's tunnels begin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<Ipv6Addr>,
    /// The MTU of the networks in bytes; none as long as the interface is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The networks, by VNI.
    #[serde(default)]
    pub networks: Vec<Tunnel>,
}

/// An overlay network that this host carries over a mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Tunnel {
    /// The network.
    #[schema(value_type = u32)]
    pub vni: Vni,
    /// The members to which its frames are flooded.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub endpoints: Vec<Ipv6Addr>,
    /// Why it has no tunnel here, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Whether a member is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MemberState {
    /// It answers (or is this node itself).
    Alive,
    /// It has not answered of late.
    Suspect,
    /// It is gone.
    Down,
    /// Nothing was heard of it since this agent started.
    #[default]
    #[serde(other)]
    Unknown,
}

impl MemberState {
    /// As it stands in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Down => "down",
            Self::Unknown => "unknown",
        }
    }
}

/// What a member is to the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Reachable by all, and forwards.
    #[default]
    Peer,
    /// Behind NAT: reaches all others through one peer.
    Client,
}

/// A text that names no [`Role`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a role: expected peer or client")]
pub struct ParseRoleError(String);

impl FromStr for Role {
    type Err = ParseRoleError;

    fn from_str(text: &str) -> Result<Self, ParseRoleError> {
        match text {
            "peer" => Ok(Self::Peer),
            "client" => Ok(Self::Client),
            _ => Err(ParseRoleError(text.chars().take(80).collect())),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Peer => "peer",
            Self::Client => "client",
        })
    }
}
