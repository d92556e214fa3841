//! The mesh plane.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::str::FromStr;

use selvedge_model::{MeshId, NodeId, Prefix, WgKey};
use serde::{Deserialize, Serialize};

/// Found a mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateRequest {
    /// What people call the mesh.
    pub name: String,
    /// What this node calls itself in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// A word on this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// Make a token that lets others join a mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InviteRequest {
    /// How many nodes may join with it.
    pub uses: u32,
    /// For how many seconds from now.
    pub expires_s: u64,
    /// What those who join will be.
    #[serde(default)]
    pub role: Role,
}

/// A token that lets others join a mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invite {
    /// The token: whoever has it may join, so it is a secret.
    pub token: String,
    /// The mesh.
    pub mesh: MeshId,
    /// How many nodes may join with it.
    pub uses: u32,
    /// When it ends, in seconds since 1970 (UTC).
    pub expires: u64,
}

/// Join a mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The token that a member made.
    pub token: String,
    /// What this node calls itself in the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// A word on this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// A mesh that was left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// Its id.
    pub id: MeshId,
    /// Its name.
    pub name: String,
}

/// A mesh in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Its id.
    pub id: MeshId,
    /// Its name.
    pub name: String,
    /// This node's WireGuard interface in it.
    pub interface: String,
    /// This node's overlay address in it.
    pub address: Ipv6Addr,
    /// How many members it has, this node included.
    pub members: usize,
}

/// A mesh as one of its members sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mesh {
    /// Its id.
    pub id: MeshId,
    /// Its name.
    pub name: String,
    /// This node's identity.
    pub node: NodeId,
    /// This node's WireGuard interface in it.
    pub interface: String,
    /// This node's overlay address in it.
    pub address: Ipv6Addr,
    /// The overlay prefix of all its members.
    pub prefix: Prefix,
    /// The UDP port of this node's WireGuard interface.
    pub listen_port: u16,
    /// The members, this node included, in the order of their ids.
    pub members: Vec<Member>,
}

/// A member of a mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its identity.
    pub node: NodeId,
    /// Whether it is the node that was asked.
    pub own: bool,
    /// What it calls itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// What it says of itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Its role.
    #[serde(default)]
    pub role: Role,
    /// Its overlay address.
    pub address: Ipv6Addr,
    /// Its WireGuard key.
    pub wg_key: WgKey,
    /// Where it says that its WireGuard listens.
    #[serde(default)]
    pub endpoints: Vec<SocketAddr>,
    /// Where this node's WireGuard sends packets for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<SocketAddr>,
    /// Whether it is there.
    pub state: MemberState,
    /// What this node's WireGuard sends to it.
    #[serde(default)]
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

/// Whether a member is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
