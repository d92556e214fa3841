//! What all scenarios can be told.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use clap::ValueEnum;
use selvedge_netlab::campus::{EtcdPlace, Family, Flavour, Plan};
use selvedge_netlab::etcd::Etcd;
use selvedge_netlab::frr::Frr;

/// How networks reach their gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Fabric {
    /// BGP EVPN and OSPF by FRRouting
    Frr,
    /// Static flooding lists and next-hop addresses
    Flood,
    /// VXLAN over a mesh of gateways and access points, and next-hop addresses
    Mesh,
}

/// Which packets run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Families {
    /// IPv4 and IPv6, on every network
    Both,
    /// IPv4
    V4,
    /// IPv6
    V6,
}

/// Where etcd runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StorePlace {
    /// A member on each of the first three gateways (on one, if there are fewer)
    Gateways,
    /// Three members on hosts of their own, reached over the fabric
    Elsewhere,
    /// One member on a host of its own, reached over the fabric
    ElsewhereSingle,
}

/// Options of all scenarios.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct FleetOptions {
    /// How many overlay networks
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub(crate) networks: u32,
    /// How many gateways [default: 3; 2 with a witness; 5 in `majority`]
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..=64))]
    pub(crate) gateways: Option<u32>,
    /// How networks reach their gateway
    #[arg(long, value_enum, default_value = "frr")]
    pub(crate) fabric: Fabric,
    /// Where etcd runs
    #[arg(long, value_enum, default_value = "gateways")]
    pub(crate) store: StorePlace,
    /// Add a host that only votes, with a member of etcd; the others are on the first two gateways
    #[arg(long, conflicts_with = "store")]
    pub(crate) witness: bool,
    /// Which packets run
    #[arg(long, value_enum, default_value = "both")]
    pub(crate) family: Families,
    /// How many planned moves the agents make at once; matters with thousands of networks
    #[arg(long)]
    pub(crate) budget: Option<usize>,
    /// Print nothing but the JSON line
    #[arg(long)]
    pub(crate) json: bool,
    /// Keep the logs of all processes in this folder, and the course of each run
    #[arg(long, value_name = "FOLDER")]
    pub(crate) logs: Option<PathBuf>,
    /// What the agents log
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub(crate) log: String,
    /// The agents touch no host, and there are no packets.
    #[arg(skip)]
    pub(crate) dry: bool,
    /// Each agent runs a copy of the program of its own, which can be replaced.
    #[arg(skip)]
    pub(crate) own_programs: bool,
}

impl FleetOptions {
    /// How many gateways there are.
    pub(crate) fn gateways(&self) -> u32 {
        self.gateways.unwrap_or(if self.witness { 2 } else { 3 })
    }

    /// The families of which packets run on every network.
    pub(crate) fn families(&self) -> &'static [Family] {
        match self.family {
            Families::Both => &Family::ALL,
            Families::V4 => &[Family::V4],
            Families::V6 => &[Family::V6],
        }
    }

    /// How long the fleet may take to be whole.
    pub(crate) fn settle(&self) -> Duration {
        Duration::from_secs(120) + Duration::from_millis(200) * self.networks
    }

    /// The campus for it. Without hosts to touch, there are no networks either, and the gateways
    /// can be lost without the store.
    pub(crate) fn plan(&self) -> Plan {
        let flavour = match self.fabric {
            Fabric::Frr if !self.dry => Flavour::Frr,
            Fabric::Mesh if !self.dry => Flavour::Mesh,
            Fabric::Frr | Fabric::Flood | Fabric::Mesh => Flavour::Flood,
        };
        let etcd = match self.store {
            StorePlace::Gateways if self.witness => EtcdPlace::Witness,
            // The underlay of a mesh is not to be trusted with it.
            StorePlace::Gateways if self.fabric == Fabric::Mesh => EtcdPlace::Management,
            StorePlace::Gateways => EtcdPlace::Gateways,
            StorePlace::Elsewhere => EtcdPlace::Apart(3),
            StorePlace::ElsewhereSingle => EtcdPlace::Apart(1),
        };
        let networks = if self.dry { 0 } else { self.networks };
        Plan { gateways: self.gateways(), networks, flavour, etcd }
    }

    /// Whether what the scenario needs is installed, and these options go together.
    pub(crate) fn check_installed(&self) -> anyhow::Result<()> {
        if !Etcd::is_installed() {
            bail!("etcd or etcdctl is not installed: apt-get install etcd-server etcd-client");
        }
        if self.fabric == Fabric::Mesh && (self.witness || self.store != StorePlace::Gateways) {
            bail!("with --fabric mesh, etcd is on the gateways: leave --store and --witness out");
        }
        if self.plan().flavour == Flavour::Frr && !Frr::is_installed() {
            bail!("FRRouting is not installed: apt-get install frr");
        }
        Ok(())
    }
}
