use std::time::Duration;

/// How a mesh behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How often a node reconciles with another, drawn at random each time. The time itself
    /// varies by a quarter.
    pub sync_interval: Duration,
    /// To how many members, drawn at random, news is sent at once.
    pub fan_out: usize,
    /// More news at a time than this is left to reconciliation, because the others most likely
    /// have it already.
    pub push_limit: usize,
    /// How long the certificates that this node issues are valid.
    pub certificate_lifetime: Duration,
    /// How often an idle WireGuard tunnel sends; `None` for never.
    pub keepalive: Option<Duration>,
    /// No more nodes than this are held, those that left included.
    pub max_nodes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            sync_interval: Duration::from_secs(2),
            fan_out: 3,
            push_limit: 64,
            certificate_lifetime: Duration::from_secs(10 * 365 * 86_400),
            keepalive: Some(Duration::from_secs(25)),
            max_nodes: 20_000,
        }
    }
}
