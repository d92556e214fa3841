//! The gateway plane's hand on the host: a [`Driver`] of six operations.
//!
//! [`Flood`] needs no routing daemon, [`Frr`] works through FRRouting, [`Dry`] touches nothing.

mod base;
mod dry;
mod flood;
mod frr;
#[cfg(test)]
mod ipv6;
mod neighbours;
mod redistributed;
#[cfg(test)]
mod scale;
#[cfg(test)]
pub(crate) mod testing;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use selvedge_gateway::desired::{Duty, Upstream};
use selvedge_model::Vni;

use crate::{inventory, netlink, nft, packet, sysctl};

pub use base::{LOCAL_HALVES_METRIC, LOCAL_METRIC, LOCAL_PROTOCOL};
pub use dry::Dry;
pub use flood::{Flood, FloodConfig};
pub use frr::{Frr, FrrConfig, ROUTE_METRIC, ROUTE_PROTOCOL};

pub use crate::nft::Silencer;

/// The networks for which an operation failed, each with the reason. Empty: all done.
pub type Failures = BTreeMap<Vni, Error>;

/// Why an operation failed for a network. What it consists of may have been done in part; to
/// repeat it does the rest.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The network cannot be served by this host, or the host cannot be read.
    #[error(transparent)]
    Inventory(#[from] inventory::Error),
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// The kernel refused.
    #[error(transparent)]
    Sysctl(#[from] sysctl::Error),
    /// An announcement could not be sent.
    #[error(transparent)]
    Packet(#[from] packet::Error),
    /// FRR refused, or cannot be reached.
    #[error(transparent)]
    Frr(#[from] crate::frr::Error),
    /// The networks could not be silenced, or are silent still.
    #[error(transparent)]
    Nft(#[from] nft::Error),
    /// The uplink is missing. Nothing was changed.
    #[error("there is no uplink interface {0}")]
    NoUplink(String),
    /// Traffic from upstream cannot be attracted. Nothing was changed.
    #[error("no next-hop address is configured for network {0}, which fabric flood needs")]
    NoNextHop(Vni),
    /// A setting for all interfaces overrides that of the bridge. Nothing was changed.
    #[error(
        "net.ipv4.conf.all.arp_ignore is {0}, which overrides what is set for single bridges: \
         set it to 0"
    )]
    ArpIgnoreAll(i32),
    /// What concerns several networks at once.
    #[error(transparent)]
    Common(Arc<Error>),
}

impl From<inventory::Problem> for Error {
    fn from(problem: inventory::Problem) -> Self {
        Self::Inventory(problem.into())
    }
}

/// What changes the host for the networks of a gateway.
///
/// Every operation takes many networks at once, is idempotent, and may be repeated at will: the
/// applier calls it with the difference between what is desired and what was observed.
#[async_trait]
pub trait Driver: Send {
    /// Advertises the networks into the fabric, or withdraws them.
    async fn fabric(&mut self, vnis: &[Vni], on: bool) -> Failures;

    /// Attracts the traffic that comes from upstream, or lets it go.
    async fn upstream(&mut self, vnis: &[Vni], to: Upstream) -> Failures;

    /// Answers ARP and neighbour solicitations for the gateway's addresses, or is silent.
    async fn answering(&mut self, vnis: &[Vni], on: bool) -> Failures;

    /// All three at once: what a new owner does when there is nobody to take turns with. In a
    /// planned move the order matters, and this is not for it. Of a network that fails, parts may
    /// have been done; [`observe`](Self::observe) tells.
    async fn take_over(&mut self, vnis: &[Vni], to: Upstream) -> Failures {
        let mut failures = self.fabric(vnis, true).await;
        failures.extend(self.upstream(vnis, to).await);
        failures.extend(self.answering(vnis, true).await);
        failures
    }

    /// Announces the gateway's addresses once (gratuitous ARP, unsolicited NA), paced. One frame
    /// may be lost: whoever takes a network over announces it again. Router advertisements follow
    /// at their own times.
    async fn announce(&mut self, vnis: &[Vni]) -> Failures;

    /// Reads what the host really does for every network of this gateway.
    async fn observe(&mut self) -> Result<BTreeMap<Vni, Duty>, Error>;

    /// Silences all networks of this gateway in one transaction (ARP, ND, RA, forwarding), or
    /// lifts that again.
    async fn silence(&mut self, on: bool) -> Result<(), Error> {
        match self.silencer() {
            Some(silencer) => Ok(silencer.silence(on).await?),
            None => Ok(()),
        }
    }

    /// A handle that does the same from elsewhere, while this driver is at work. `None` if there
    /// is nothing to silence.
    fn silencer(&self) -> Option<Silencer> {
        None
    }
}
