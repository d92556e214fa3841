use clap::ValueEnum;
use selvedge_netlab::campus::{EtcdPlace, Flavour};
use serde::Serialize;

/// Where the gateways agree on who serves what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Store {
    /// The store of this program, on the management segment
    #[default]
    Embedded,
    /// etcd, a member on each of the three hosts
    Etcd,
}

/// How networks reach their gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fabric {
    /// Static flooding lists and next-hop addresses
    #[default]
    Flood,
    /// BGP EVPN and OSPF by FRRouting
    Frr,
}

/// WireGuard in the demo. Not every kernel has it, and the agent brings its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WireGuard {
    /// In the agent.
    #[default]
    Userspace,
}

/// What the demo is done with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Engines {
    /// The store.
    pub store: Store,
    /// The fabric.
    pub fabric: Fabric,
    /// WireGuard.
    pub wireguard: WireGuard,
}

impl Engines {
    /// Where the laboratory is to run etcd.
    pub(super) const fn etcd(self) -> EtcdPlace {
        match self.store {
            Store::Embedded => EtcdPlace::Absent,
            Store::Etcd => EtcdPlace::Gateways,
        }
    }

    /// Which routing the laboratory is to build.
    pub(super) const fn flavour(self) -> Flavour {
        match self.fabric {
            Fabric::Flood => Flavour::Flood,
            Fabric::Frr => Flavour::Frr,
        }
    }

    /// What else runs on the hosts, for people.
    pub(super) const fn words(self) -> &'static str {
        match (self.store, self.fabric) {
            (Store::Embedded, Fabric::Flood) => "the embedded store and static flooding lists",
            (Store::Etcd, Fabric::Flood) => "etcd on the hosts and static flooding lists",
            (Store::Embedded, Fabric::Frr) => "the embedded store and FRRouting (EVPN, OSPF)",
            (Store::Etcd, Fabric::Frr) => "etcd on the hosts and FRRouting (EVPN, OSPF)",
        }
    }
}
