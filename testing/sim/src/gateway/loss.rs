//! How long the networks of a gateway that is lost are without one.

use std::collections::BTreeSet;

use selvedge_gateway::desired::Upstream;
use selvedge_model::{Time, Vni};

use super::host::Host;

/// The loss of a gateway, timed.
#[derive(Clone, Debug)]
pub struct Loss {
    victim: usize,
    at: Time,
    pending: BTreeSet<Vni>,
    /// How long each network was without a gateway that answers and attracts traffic, in ms.
    pub took_ms: Vec<f64>,
}

impl Loss {
    /// Begins with the loss of a host that serves these networks.
    #[must_use]
    pub fn new(victim: usize, networks: impl IntoIterator<Item = Vni>, at: Time) -> Self {
        Self { victim, at, pending: networks.into_iter().collect(), took_ms: Vec::new() }
    }

    /// Whether every network is served again.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.pending.is_empty()
    }

    /// The networks that are not served yet.
    #[must_use]
    pub const fn pending(&self) -> &BTreeSet<Vni> {
        &self.pending
    }

    /// Takes note that something has changed about a network.
    pub fn note(&mut self, vni: Vni, hosts: &[Host], now: Time) {
        let serves = |(number, host): (usize, &Host)| {
            number != self.victim && host.answers(vni) && host.duty(vni).upstream != Upstream::Off
        };
        if self.pending.contains(&vni) && hosts.iter().enumerate().any(serves) {
            self.pending.remove(&vni);
            self.took_ms.push(now.since(self.at).as_secs_f64() * 1000.0);
        }
    }
}
