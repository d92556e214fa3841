use std::time::Duration;

use crate::detector::Probing;

/// How a mesh behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How members are probed.
    pub probing: Probing,
    /// How many copies of one piece of news a node tolerates before it gives up a link that
    /// brings more. One makes a tree; more survive lost packets.
    pub copies: usize,
    /// How long two states may differ before they are reconciled, because news may be under way;
    /// at random, from a fourth of this to seven fourths.
    pub settle: Duration,
    /// More news at a time than this is left to reconciliation, because the others most likely
    /// have it already.
    pub push_limit: usize,
    /// How long others hold what a node says of itself, which it says again in time.
    pub record_life: Duration,
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
            probing: Probing::default(),
            copies: 5,
            settle: Duration::from_secs(1),
            push_limit: 256,
            record_life: Duration::from_secs(86_400),
            certificate_lifetime: Duration::from_secs(10 * 365 * 86_400),
            keepalive: Some(Duration::from_secs(25)),
            max_nodes: 20_000,
        }
    }
}
