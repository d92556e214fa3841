//! The agent itself.

use serde::{Deserialize, Serialize};

/// What an agent says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// The agent's name.
    pub name: String,
    /// The version of the program.
    pub version: String,
    /// The process.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// What it runs.
    pub planes: Planes,
}

/// Which planes an agent runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planes {
    /// The mesh plane.
    pub mesh: bool,
    /// The gateway plane.
    pub gateway: bool,
}
