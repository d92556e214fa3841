//! The agent itself.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What an agent says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Info {
    /// The agent's name.
    pub name: String,
    /// The version of the program.
    pub version: String,
    /// The process.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// When it started, in milliseconds since 1970 (UTC): tells a run from the one before, which
    /// may have been the same process.
    #[serde(default)]
    pub started_ms: u64,
    /// What it runs.
    pub planes: Planes,
}

/// Which planes an agent runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Planes {
    /// The mesh plane.
    pub mesh: bool,
    /// The gateway plane.
    pub gateway: bool,
}

/// Start the agent again: the program at its path, with the same arguments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RestartRequest {
    /// How long the other gateways shall wait for it, in milliseconds; `None`: 10 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_ms: Option<u64>,
}

/// The agent is about to start again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Restarting {
    /// What will be started.
    pub program: String,
    /// How long the other gateways wait for it, in milliseconds.
    pub for_ms: u64,
    /// The run that ends: its [`Info::started_ms`].
    pub started_ms: u64,
}
