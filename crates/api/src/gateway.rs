//! The gateway plane.

mod check;
mod event;
mod health;
mod times;

use selvedge_model::{NodeName, Vni};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use check::{Finding, Place, Severity};
pub use event::{Event, What};
pub use health::{Cause, Failover, Members, Partner, Path, Right};
pub use times::{Bucket, Distribution, Times};

/// What a gateway knows of itself and of the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// This gateway.
    #[schema(value_type = String)]
    pub name: NodeName,
    /// The create revision of its registration; `None` while it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<i64>,
    /// The store as this gateway sees it.
    pub store: Store,
    /// The fabric: `flood`, `frr` or `dry`.
    pub fabric: String,
    /// Whether the store holds its registration.
    pub registered: bool,
    /// Why it does not, if it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unregistered: Option<String>,
    /// Whether it is drained: no network is placed here.
    pub drained: bool,
    /// Whether it serves networks or only votes.
    #[serde(default)]
    pub kind: NodeKind,
    /// Whether a gateway that is lost now would be replaced.
    #[serde(default)]
    pub failover: Failover,
    /// Whether this gateway may serve, and why.
    #[serde(default)]
    pub right: Right,
    /// Whether all networks of this host are silenced now, because it may not serve.
    #[serde(default)]
    pub silenced: bool,
    /// What keeps this host from doing its job, each a sentence. Empty: it is fit.
    #[serde(default)]
    pub unfit: Vec<String>,
    /// Who votes, this node included.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub voters: Vec<NodeName>,
    /// How many voters are a majority.
    #[serde(default)]
    pub majority: usize,
    /// The other voters as this gateway hears them.
    #[serde(default)]
    pub partners: Vec<Partner>,
    /// Who starts planned moves now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub planner: Option<NodeName>,
    /// All gateways, this one included, in the order of their names.
    pub nodes: Vec<NodeRow>,
    /// How many networks there are and how they fare.
    pub networks: Counts,
    /// What this gateway has done since its agent started.
    #[serde(default)]
    pub counters: Counters,
    /// How long things took since then.
    #[serde(default)]
    pub times: Times,
    /// What an operator should know, each a sentence. Empty if all is well.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// The store as a gateway sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Store {
    /// `etcd` or `embedded`.
    pub engine: String,
    /// Whether it answers.
    pub connected: bool,
    /// Its members, when they were last asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub members: Option<Members>,
    /// The last revision seen.
    pub revision: i64,
    /// This gateway's lease, in hexadecimal as etcdctl prints it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<String>,
}

/// What a node is there for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NodeKind {
    /// It serves networks, and votes.
    #[default]
    Gateway,
    /// It only votes.
    Witness,
}

impl NodeKind {
    /// As it stands in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Witness => "witness",
        }
    }
}

/// A gateway as the store describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeRow {
    /// Its name.
    #[schema(value_type = String)]
    pub name: NodeName,
    /// Whether it is registered: its agent runs and reaches the store.
    pub registered: bool,
    /// Whether it is drained: no network is placed there.
    pub drained: bool,
    /// Whether networks may be placed there.
    #[serde(default)]
    pub on_ring: bool,
    /// Whether a verdict stands against it: it counts as dead.
    #[serde(default)]
    pub convicted: bool,
    /// Whether it votes.
    #[serde(default)]
    pub votes: bool,
    /// Its agent's version, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Whether it is the predecessor's daemon.
    #[serde(default)]
    pub legacy: bool,
    /// How many ids it has on the ring.
    pub ids: usize,
    /// How many networks it is `current` of.
    pub serving: usize,
}

/// How the networks fare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Counts {
    /// All of this gateway's range.
    pub total: usize,
    /// Served by one gateway and not moving.
    pub serving: usize,
    /// In a planned move or in a takeover.
    pub moving: usize,
    /// Served by nobody.
    pub unassigned: usize,
    /// Left alone, because a key of theirs in the store makes no sense. Whether anybody serves
    /// them is not known.
    #[serde(default)]
    pub blocked: usize,
}

/// What a gateway has done since its agent started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Counters {
    /// Planned moves that ended here: this gateway became `current`.
    pub moves: u64,
    /// Networks that it took over after a loss, or found without an owner.
    pub failovers: u64,
    /// Transactions that another gateway's were faster than.
    pub conflicts: u64,
    /// How often the store was lost.
    pub store_losses: u64,
    /// Operations on the host that failed.
    pub host_failures: u64,
    /// How often another voter was suspected: no path to it answered.
    pub suspicions: u64,
    /// How often this node voted that another is lost.
    pub votes: u64,
    /// Verdicts that were seen in the store, against whomever.
    pub verdicts: u64,
    /// Takeovers that began before the store had confirmed the verdict.
    pub prepared: u64,
    /// How often all networks of this host were silenced, because it might not serve.
    pub fences: u64,
    /// Networks that were kept over a restart of the agent.
    pub kept: u64,
    /// Commands of `[gateway.hooks]` that ended well.
    pub hooks: u64,
    /// Commands of `[gateway.hooks]` that failed, took too long or could not be started.
    pub hook_failures: u64,
    /// Probes and answers to probes that were sent.
    pub probes_sent: u64,
    /// Probes and answers to probes that were received and were authentic.
    pub probes_received: u64,
    /// Datagrams that were refused: of unknown senders, damaged, or not authentic.
    pub probes_refused: u64,
}

/// One overlay network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkRow {
    /// The network.
    #[schema(value_type = u32)]
    pub vni: Vni,
    /// Its state.
    pub state: State,
    /// The state's number as it stands in the store.
    pub number: u8,
    /// Who serves it, or hands it over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub current: Option<NodeName>,
    /// Who takes it over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub next: Option<NodeName>,
    /// What this gateway is to it.
    pub role: Role,
    /// What this gateway should do for it.
    pub desired: Duty,
    /// What this host was last seen to do for it; `None` if that is not known, or this host
    /// cannot serve it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed: Option<Duty>,
    /// How often its owner has changed.
    #[serde(default)]
    pub epoch: u64,
    /// When its state last changed, in seconds since 1970 (UTC), as this gateway saw it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// Why its owner last changed, or why this gateway does not act.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The states of a network, with the numbers under which the store knows them.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum State {
    /// Nobody serves it.
    #[default]
    Unassigned = 0,
    /// `current` serves it.
    Idle = 1,
    /// A move to `next` was decided.
    MigrationDecided = 2,
    /// `current` agreed.
    MigrationConfirmed = 3,
    /// `next` advertises into the fabric and upstream.
    MigrationOspfAdvertised = 4,
    /// `current` has withdrawn upstream.
    MigrationOspfWithdrawn = 5,
    /// `next` answers ARP and ND.
    MigrationArpEnabled = 6,
    /// `current` is silent.
    MigrationArpDisabled = 7,
    /// `next` has announced itself.
    MigrationGratuitousArpSent = 8,
    /// `current` has withdrawn from the fabric.
    MigrationEvpnWithdrawn = 9,
    /// `next` takes it over at once.
    FailoverDecided = 10,
}

impl State {
    /// All states in the order of their numbers.
    pub const ALL: [Self; 11] = [
        Self::Unassigned,
        Self::Idle,
        Self::MigrationDecided,
        Self::MigrationConfirmed,
        Self::MigrationOspfAdvertised,
        Self::MigrationOspfWithdrawn,
        Self::MigrationArpEnabled,
        Self::MigrationArpDisabled,
        Self::MigrationGratuitousArpSent,
        Self::MigrationEvpnWithdrawn,
        Self::FailoverDecided,
    ];

    /// The number as it stands in the store.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The state with that number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// As it stands in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unassigned => "unassigned",
            Self::Idle => "idle",
            Self::MigrationDecided => "migration-decided",
            Self::MigrationConfirmed => "migration-confirmed",
            Self::MigrationOspfAdvertised => "migration-ospf-advertised",
            Self::MigrationOspfWithdrawn => "migration-ospf-withdrawn",
            Self::MigrationArpEnabled => "migration-arp-enabled",
            Self::MigrationArpDisabled => "migration-arp-disabled",
            Self::MigrationGratuitousArpSent => "migration-gratuitous-arp-sent",
            Self::MigrationEvpnWithdrawn => "migration-evpn-withdrawn",
            Self::FailoverDecided => "failover-decided",
        }
    }
}

/// What a gateway is to a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It serves the network, or hands it over.
    Current,
    /// It takes the network over.
    Next,
    /// Neither.
    #[default]
    None,
}

impl Role {
    /// As it stands in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Next => "next",
            Self::None => "none",
        }
    }
}

/// What a host does for a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Duty {
    /// It advertises the gateway into the fabric.
    pub fabric: bool,
    /// How it attracts traffic from upstream.
    pub upstream: Upstream,
    /// It answers ARP and neighbour solicitations for the gateway's addresses.
    pub answering: bool,
}

/// How a gateway attracts the traffic that comes from upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Upstream {
    /// Not at all.
    #[default]
    Off,
    /// By the prefix.
    Whole,
    /// By the two halves of the prefix.
    Halves,
}

/// Drain a gateway, or end that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DrainRequest {
    /// Which; `None`: the one that is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub name: Option<NodeName>,
}

/// How far a drain has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Drain {
    /// The gateway.
    #[schema(value_type = String)]
    pub name: NodeName,
    /// Whether it is drained: no network is placed there any more.
    pub drained: bool,
    /// How many networks it is still `current` of.
    pub serving: usize,
}

/// Take the networks of a lost gateway over without asking the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TakeoverRequest {
    /// The lost gateway.
    #[schema(value_type = String)]
    pub name: NodeName,
}

/// What a forced takeover has begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Takeover {
    /// The lost gateway.
    #[schema(value_type = String)]
    pub name: NodeName,
    /// How many networks it owned, by what this gateway last read in the store.
    pub owned: usize,
    /// The voters that this gateway hears, and that the takeover binds.
    #[schema(value_type = Vec<String>)]
    pub heard: Vec<NodeName>,
}

/// How far a store that was reset is filled again. To be asked for until it is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Refill {
    /// How many keys were written, as far as this call did that.
    pub keys: usize,
    /// The store's revision.
    pub revision: i64,
    /// It has to be greater than this, so that all agents take it for the store that they know.
    pub beyond: i64,
    /// Whether it is.
    pub done: bool,
}

/// A node that is struck from the roster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Removed {
    /// The node.
    #[schema(value_type = String)]
    pub name: NodeName,
}

/// Which changes of owners are asked for: query parameters of the request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HistoryQuery {
    /// Of one network; `None`: of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u32>)]
    pub vni: Option<Vni>,
    /// At most so many, the latest; `None`: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<usize>,
}

/// A change of a network's owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChangeRow {
    /// The network.
    #[schema(value_type = u32)]
    pub vni: Vni,
    /// Counts the owners of this network.
    pub epoch: u64,
    /// The owner from here on.
    #[schema(value_type = String)]
    pub owner: NodeName,
    /// Why it changed.
    pub reason: String,
    /// When, in milliseconds since 1970 (UTC), by the clock of the new owner.
    pub at_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_have_one_name_and_number() {
        for (number, state) in (0..).zip(State::ALL) {
            assert_eq!(state.number(), number);
            assert_eq!(State::from_number(number), Some(state));
            let json = serde_json::to_string(&state).expect("serialises");
            assert_eq!(json, format!("{:?}", state.as_str()));
        }
        assert_eq!(State::from_number(11), None);
    }
}
