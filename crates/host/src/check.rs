//! What is wrong or missing on a gateway's host and in its FRR, and the lines that put it right.
//!
//! [`check`] reads and changes nothing. `docs/frr.md` says what a gateway needs, and why.

mod config;
mod frr;
mod host;
mod segment;
mod upstream;

use std::collections::BTreeMap;
use std::path::PathBuf;

pub use selvedge_api::gateway::{Finding, Place, Severity};
use selvedge_model::{Prefix, Vni};

use crate::inventory::{Declared, Found, Inventory, Names};
use crate::netlink::Netlink;

/// What to check against.
#[derive(Clone, Debug)]
pub struct CheckConfig {
    /// How the interfaces of a network are called.
    pub names: Names,
    /// The networks that this gateway shall be able to serve.
    pub networks: BTreeMap<Vni, Declared>,
    /// What the bridges were like before the agent changed them, if it runs or ran here.
    pub found: Vec<Found>,
    /// The interfaces towards the upstream routers; none: those that can be told from the host,
    /// as for [`crate::health::Interfaces::Auto`].
    pub uplink: Vec<String>,
    /// The interfaces towards the other tunnel endpoints; none: as above.
    pub fabric: Vec<String>,
    /// Whether the agent makes the VXLAN interfaces, over a mesh.
    pub over_mesh: bool,
    /// How many stations a network has, on average: the host's tables of neighbours have to hold
    /// them all.
    pub stations: u32,
    /// FRR, if the gateway works through it.
    pub frr: Option<FrrSetup>,
}

/// Where FRR is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrrSetup {
    /// The folder of FRR's control sockets; see [`crate::frr::DEFAULT_DIR`].
    pub vty_dir: PathBuf,
    /// What the daemons got by `-N`, if anything.
    pub pathspace: Option<String>,
    /// The autonomous system of the BGP instance; `None` takes the default instance.
    pub asn: Option<u32>,
}

impl Default for CheckConfig {
    /// No networks, no FRR, 32 stations in a network.
    fn default() -> Self {
        Self {
            names: Names::default(),
            networks: BTreeMap::new(),
            found: Vec::new(),
            uplink: Vec::new(),
            fabric: Vec::new(),
            over_mesh: false,
            stations: 32,
            frr: None,
        }
    }
}

/// Looks at everything, in the network namespace of the calling thread. What cannot be read is a
/// finding too.
///
/// # Panics
/// Outside a Tokio runtime.
pub async fn check(config: &CheckConfig) -> Vec<Finding> {
    let mut findings = host::privileges();
    let netlink = match Netlink::new() {
        Ok(netlink) => netlink,
        Err(error) => {
            findings.push(Finding::problem("netlink", error.to_string()));
            return findings;
        }
    };
    findings.extend(host::check(config, &netlink).await);
    if let Some(setup) = &config.frr {
        let prefixes = prefixes(config, &netlink).await;
        findings.extend(frr::check(setup, &prefixes, &netlink).await);
    }
    findings
}

/// What FRR has to redistribute: the networks' prefixes and their halves.
async fn prefixes(config: &CheckConfig, netlink: &Netlink) -> Vec<Prefix> {
    let mut inventory = inventory(config, netlink);
    // What cannot be read is among the findings about the host.
    if inventory.survey().await.is_err() {
        return Vec::new();
    }
    let networks = inventory.networks().values();
    let gateways = networks.flat_map(|network| network.gateways.iter().map(Prefix::network));
    let mut wholes: Vec<Prefix> = gateways.collect();
    wholes.sort();
    wholes.dedup();
    wholes
}

fn inventory(config: &CheckConfig, netlink: &Netlink) -> Inventory {
    let names = config.names.clone();
    Inventory::new(netlink.clone(), names, config.networks.clone(), config.found.clone())
}

#[cfg(test)]
mod tests;
