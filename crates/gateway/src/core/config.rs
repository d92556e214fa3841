//! What a node is told once.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use selvedge_model::{NodeName, Vni};
use serde::{Deserialize, Serialize};

/// What an agent is told once.
#[derive(Clone, Debug)]
pub struct Config {
    /// This gateway's name.
    pub name: NodeName,
    /// Tells this host from another one that was given the same name.
    pub identity: String,
    /// The agent's version, for the registration.
    pub version: String,
    /// Its ids on the ring.
    pub ids: Vec<u64>,
    /// The networks that it can serve.
    pub networks: BTreeSet<Vni>,
    /// How long routing is given to follow a change, in planned moves.
    pub settle: Duration,
    /// The interval of announcements for networks that are served, in whole seconds.
    pub announce: Duration,
    /// How many planned moves may run at once, in the whole cluster.
    pub budget: usize,
    /// How long a node must have been back before planned moves bring networks to it.
    pub hold_down: Duration,
    /// For how long a host that served and became unfit twice within ten minutes has to be fit
    /// before networks are placed on it again; twice as long after each further time, sixteen
    /// times as long at most. Zero: it does not count.
    pub damping: Duration,
    /// Unix time in milliseconds at [`selvedge_model::Time::ZERO`], for the history.
    pub wall_at_zero_ms: u64,
    /// Whether it serves networks, or only votes.
    pub role: NodeRole,
    /// Where others reach it by probes, one address for each path.
    pub probe: Vec<SocketAddr>,
    /// The times of failure detection.
    pub timing: Timing,
    /// What it does when it is cut off from a majority and from the store.
    pub isolated: Isolated,
}

/// What a node is there for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeRole {
    /// It serves networks, and votes.
    #[default]
    Gateway,
    /// It only votes.
    Witness,
}

/// What a gateway does that is cut off from a majority of the voters and from the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolated {
    /// Falls silent with three voters or more, where the others may take over, and serves on with
    /// two, where nobody can without the store.
    #[default]
    Auto,
    /// Falls silent.
    Stop,
    /// Serves what it has, and no more.
    Serve,
}

/// The times of failure detection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How often every path to every voter is probed.
    pub probe: Duration,
    /// How long no path may answer until a voter is suspected.
    pub suspect: Duration,
    /// How long a node may serve without word of a majority or of the store.
    pub fence: Duration,
    /// How long the store may take to confirm a verdict until a prepared takeover begins.
    pub patience: Duration,
    /// How long a suspicion between two voters may be refuted in the store.
    pub refute: Duration,
    /// How long the lease lives.
    pub lease: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            probe: Duration::from_millis(50),
            suspect: Duration::from_millis(200),
            fence: Duration::from_secs(1),
            patience: Duration::from_millis(100),
            refute: Duration::from_millis(250),
            lease: Duration::from_secs(3),
        }
    }
}
