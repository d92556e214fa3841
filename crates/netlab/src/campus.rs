//! The topology of the gateway plane: a campus with overlay networks.
//!
//! ```text
//!  stations ── access point ══ fabric ══ gw1 ══ uplink ══ upstream router
//!  (one host,  br1 vxlan1      segment   gw2    segment   198.18.H.L
//!   n1 n2 …)   br2 vxlan2 …              gw3
//!                                         │
//!                              management segment ── switch (172.24.255.254)
//! ```
//!
//! Every gateway and the access point have `vxlan<i>` in `br<i>` for each network; the host
//! `station` has an interface `n<i>` in each. What an operator would configure is configured;
//! what the gateways' agents do is not. See [`Network`] for the addresses.

mod address;
mod build;
mod byhand;
mod fault;
mod room;
mod routing;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use selvedge_model::{Prefix, Vni};

use crate::etcd::Etcd;
use crate::frr::Frr;
use crate::link::Port;
use crate::observe::{self, Mac, Question};
use crate::stream::{End, Spec};
use crate::{Error, Host, Lab};

pub use address::{AccessPoint, Family, Gateway as GatewayAddress, Network, Switch, Upstream};
use room::Room;

pub use fault::{Fault, UnknownFault};

/// How networks reach their gateway, and how the upstream router reaches the networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// The access point floods to all gateways; the upstream router has a static route per
    /// network, to a next-hop address of that network on the uplink.
    Flood,
    /// BGP EVPN on the fabric, OSPF on the uplink, by FRRouting.
    Frr,
    /// The agents make the VXLAN interfaces, over a mesh of theirs; the fabric is nothing but its
    /// underlay, and there is a second access point with stations. Upstream as with `Flood`.
    Mesh,
}

/// Where etcd runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EtcdPlace {
    /// Nowhere.
    Absent,
    /// A member on each of the first three gateways (on one of fewer than three), reached over
    /// the fabric.
    Gateways,
    /// The same, reached over the management segment.
    Management,
    /// One member on the switch, reached over the management segment.
    Switch,
    /// A member on each of the first two gateways and on a third host, `witness`, which has the
    /// links of a gateway but no networks.
    Witness,
    /// That many members, each on a host of its own, `store1`, `store2`, …, reached over the
    /// fabric: a gateway that is cut off from the fabric is cut off from all of them.
    Apart(u8),
}

/// What to build.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How many gateways: 1 to 200 (2 or more with a witness), called `gw1`, `gw2`, …
    pub gateways: u32,
    /// How many overlay networks: those with the VNIs 1, 2, …; at most [`Network::MAX`].
    pub networks: u32,
    /// The routing.
    pub flavour: Flavour,
    /// The store.
    pub etcd: EtcdPlace,
}

/// A gateway of a campus: its host and what is plugged in there.
#[derive(Debug)]
pub struct Gateway {
    /// The host. Its interfaces are `fab0`, `up0` and `mgmt0`.
    pub host: Host,
    /// Its addresses.
    pub address: GatewayAddress,
    /// FRRouting, in the flavour that has it.
    pub frr: Option<Frr>,
    fabric: Port,
    uplink: Port,
    management: Port,
}

/// A host that is linked like a gateway and serves no network.
#[derive(Clone, Debug)]
pub struct Witness {
    /// The host, called `witness`.
    pub host: Host,
    /// Its addresses.
    pub address: GatewayAddress,
}

/// An access point with a host that has an interface `n<i>` in every network.
#[derive(Clone, Debug)]
pub struct Site {
    /// The tunnel endpoint.
    pub access_point: Host,
    /// Its stations.
    pub station: Host,
}

/// The campus. Everything ends when it is dropped.
#[derive(Debug)]
pub struct Campus {
    /// What was built.
    pub plan: Plan,
    /// The store, if the plan has one.
    pub etcd: Option<Etcd>,
    /// The gateways, in the order of their numbers.
    pub gateways: Vec<Gateway>,
    /// The host that only votes, if the plan has it.
    pub witness: Option<Witness>,
    /// The tunnel endpoint of the stations.
    pub access_point: Host,
    /// One host with an interface `n<i>` in every network.
    pub station: Host,
    /// The second access point, `ap2`, with its stations, `station2`, in the flavour that has it.
    pub other_site: Option<Site>,
    /// The ports of the fabric of all gateways and access points, where its frames come in.
    pub underlay: Vec<Port>,
    /// The router to the rest of the world, and at the same time the host there.
    pub upstream: Host,
    /// The switch: it has an address on the management segment.
    pub switch: Host,
    // Kept for what their ends do.
    #[allow(dead_code, reason = "dropping it ends FRRouting on the others")]
    others: Vec<Frr>,
    #[allow(dead_code, reason = "dropping it restores the machine's setting")]
    room: Room,
    // Last, so that the processes end before their hosts.
    lab: Lab,
}

impl Campus {
    /// Builds it in `lab` and starts etcd and FRRouting, without waiting for their routes.
    ///
    /// # Errors
    /// If a host, a link or a process cannot be made; what was made is removed.
    pub fn build(lab: Lab, plan: Plan) -> Result<Self, Error> {
        build::build(lab, plan)
    }

    /// The laboratory.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// All networks, in ascending order.
    pub fn networks(&self) -> impl Iterator<Item = Network> + use<> {
        (1..=self.plan.networks).filter_map(Network::new)
    }

    /// The gateway of that name.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub fn gateway(&self, name: &str) -> Result<&Gateway, Error> {
        let unknown = || Error::Unknown { what: "gateway", name: name.to_owned() };
        self.gateways.iter().find(|gateway| gateway.host.name() == name).ok_or_else(unknown)
    }

    /// As [`Campus::gateway`], to be changed.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub fn gateway_mut(&mut self, name: &str) -> Result<&mut Gateway, Error> {
        let unknown = || Error::Unknown { what: "gateway", name: name.to_owned() };
        self.gateways.iter_mut().find(|gateway| gateway.host.name() == name).ok_or_else(unknown)
    }

    /// Streams between the station in each network and the host upstream, one of each of
    /// `families`, labelled by VNI: a packet every 5 ms (over a mesh 20 ms, or 2000 in a second) on
    /// the first 20 networks, every 100 ms on the others. Of more than 500 networks, 2 have one
    /// every 5 ms, and the others fewer: the rest the fewest.
    #[must_use]
    pub fn streams(&self, first: &[Vni], rest: &[Vni], families: &[Family]) -> Vec<Spec> {
        let fast = if first.len() + rest.len() > MANY { FEW_FAST } else { FAST };
        let flows = |networks: usize| networks * families.len() * 2;
        let slow = spaced(flows(first.len().saturating_sub(fast)), FIRST_RATE, SLOW_INTERVAL);
        let slower = spaced(flows(rest.len()), REST_RATE, SLOW_INTERVAL);
        let fastest = match self.plan.flavour {
            Flavour::Flood | Flavour::Frr => FAST_INTERVAL,
            Flavour::Mesh => {
                let fast = (first.len() + rest.len()).min(fast);
                spaced(flows(fast), ENCRYPTED_RATE, ENCRYPTED_INTERVAL)
            }
        };
        let interval = |index: usize| match index {
            _ if index < fast => fastest,
            _ if index < first.len() => slow,
            _ => slower,
        };
        let networks = first.iter().chain(rest).filter_map(|vni| Network::new(vni.get()));
        let specs = |(index, network): (usize, Network)| {
            let interval = interval(index);
            families.iter().map(move |family| Spec {
                label: network.vni().get(),
                a: self.station_end(network, *family),
                b: self.upstream_end(network, *family),
                interval,
            })
        };
        networks.enumerate().flat_map(specs).collect()
    }

    /// Streams between the stations of both sites, in every network and of each of `families`,
    /// labelled by VNI; none if there is one site.
    #[must_use]
    pub fn streams_between_sites(&self, families: &[Family], interval: Duration) -> Vec<Spec> {
        let Some(site) = &self.other_site else { return Vec::new() };
        let end = |host: &Host, network: Network, address: IpAddr| End {
            host: host.clone(),
            address: SocketAddr::new(address, 7001),
            device: Some(network.station_interface()),
        };
        let specs = |network: Network| {
            families.iter().map(move |&family| Spec {
                label: network.vni().get(),
                a: end(&self.station, network, network.station(family)),
                b: end(&site.station, network, network.other_station(family)),
                interval,
            })
        };
        self.networks().flat_map(specs).collect()
    }

    fn station_end(&self, network: Network, family: Family) -> End {
        End {
            host: self.station.clone(),
            address: SocketAddr::new(network.station(family), 7000),
            device: Some(network.station_interface()),
        }
    }

    fn upstream_end(&self, network: Network, family: Family) -> End {
        let service: IpAddr = Upstream::service(network, family);
        End { host: self.upstream.clone(), address: SocketAddr::new(service, 7000), device: None }
    }
}

/// How many networks have a packet every 5 ms, and how many of more than [`MANY`].
const FAST: usize = 20;
const FEW_FAST: usize = 2;
const MANY: usize = 500;
const FAST_INTERVAL: Duration = Duration::from_millis(5);
/// The same over a mesh, whose agents handle every packet several times: all agents are on one
/// machine. As many in a second at most.
const ENCRYPTED_INTERVAL: Duration = Duration::from_millis(20);
const ENCRYPTED_RATE: f64 = 2_000.0;
/// The others have one every 100 ms, or as often as the machine bears: all hosts are on it.
const SLOW_INTERVAL: Duration = Duration::from_millis(100);
/// Packets in a second, on all flows of the first networks and of the rest. A packet's whole way
/// is walked by the thread that sends it; with thousands of bridges that takes a tenth of a
/// millisecond.
const FIRST_RATE: f64 = 5_000.0;
const REST_RATE: f64 = 3_000.0;

/// The interval between two packets of a flow, `least` if the rate allows it.
fn spaced(flows: usize, rate: f64, least: Duration) -> Duration {
    #[allow(clippy::cast_precision_loss, reason = "there are thousands at most")]
    let seconds = flows as f64 / rate;
    least.max(Duration::from_secs_f64(seconds))
}

/// How long a gateway may take to answer who has an address.
const ANSWER: Duration = Duration::from_millis(200);

impl Campus {
    /// For each of `networks` the gateways that answer for its gateway address, as a station
    /// would hear them.
    ///
    /// # Errors
    /// If the access point has no packet socket.
    pub fn answering(
        &self,
        networks: &[Network],
        family: Family,
    ) -> Result<BTreeMap<Vni, BTreeSet<String>>, Error> {
        let question = |network: &Network| Question {
            interface: network.bridge(),
            address: network.gateway(family).addr(),
        };
        let questions: Vec<_> = networks.iter().map(question).collect();
        let answers = observe::answers(&self.access_point, &questions, ANSWER)?;
        let by_network = networks.iter().map(|network| {
            let macs = answers.get(&network.gateway(family).addr()).into_iter().flatten();
            (network.vni(), macs.map(|mac| self.name_of(*network, *mac)).collect())
        });
        Ok(by_network.collect())
    }

    /// For each of `networks` the gateways that attract its traffic from upstream: those to
    /// which the upstream router's routes point (flavour `frr`), or who answer for its next-hop
    /// address (the others).
    ///
    /// # Errors
    /// If the upstream router cannot be asked.
    pub fn originating(
        &self,
        networks: &[Network],
        family: Family,
    ) -> Result<BTreeMap<Vni, BTreeSet<String>>, Error> {
        match self.plan.flavour {
            Flavour::Flood | Flavour::Mesh => self.next_hop_owners(networks, family),
            Flavour::Frr => self.route_origins(networks, family),
        }
    }

    /// How many halves of networks' prefixes, of either family, the upstream router knows by which
    /// next hop: gateways attract traffic so for a while after a takeover.
    ///
    /// # Errors
    /// If the upstream router cannot be asked.
    pub fn halves(&self) -> Result<BTreeMap<IpAddr, usize>, Error> {
        let routes = observe::next_hops(&self.upstream)?;
        let prefixes = self.networks().flat_map(|it| Family::ALL.map(|family| it.prefix(family)));
        let halves = prefixes.filter_map(|prefix| prefix.halves()).flatten();
        let mut count = BTreeMap::new();
        for next_hop in halves.filter_map(|half| routes.get(&half.to_string())).flatten() {
            *count.entry(*next_hop).or_default() += 1;
        }
        Ok(count)
    }

    fn next_hop_owners(
        &self,
        networks: &[Network],
        family: Family,
    ) -> Result<BTreeMap<Vni, BTreeSet<String>>, Error> {
        let question = |network: &Network| Question {
            interface: "up0".to_owned(),
            address: network.next_hop(family),
        };
        let questions: Vec<_> = networks.iter().map(question).collect();
        let answers = observe::answers(&self.upstream, &questions, ANSWER)?;
        let uplinks = self.uplink_macs()?;
        let named = |mac: &Mac| uplinks.get(mac).cloned().unwrap_or_else(|| written(*mac));
        let by_network = networks.iter().map(|network| {
            let macs = answers.get(&network.next_hop(family)).into_iter().flatten();
            (network.vni(), macs.map(named).collect())
        });
        Ok(by_network.collect())
    }

    fn route_origins(
        &self,
        networks: &[Network],
        family: Family,
    ) -> Result<BTreeMap<Vni, BTreeSet<String>>, Error> {
        let routes = observe::next_hops(&self.upstream)?;
        let uplinks = self.uplinks(family)?;
        let named = |hop: &IpAddr| uplinks.get(hop).cloned().unwrap_or_else(|| hop.to_string());
        let by_network = networks.iter().map(|network| {
            // The halves of a prefix beat the whole, so that only they count where they are.
            let whole = network.prefix(family);
            let halves = whole.halves().into_iter().flatten();
            let hops = |prefix: Prefix| routes.get(&prefix.to_string());
            let halves: BTreeSet<_> = halves.filter_map(hops).flatten().collect();
            let chosen = if halves.is_empty() {
                hops(whole).into_iter().flatten().collect()
            } else {
                halves
            };
            (network.vni(), chosen.into_iter().map(named).collect())
        });
        Ok(by_network.collect())
    }

    /// The addresses that routes of others name as next hops, and whose they are. OSPF for IPv6
    /// names link-local ones (RFC 5340, section 4.8.2).
    fn uplinks(&self, family: Family) -> Result<BTreeMap<IpAddr, String>, Error> {
        let mut uplinks = BTreeMap::new();
        for gateway in &self.gateways {
            let name = gateway.host.name().to_owned();
            uplinks.insert(gateway.address.uplink(family), name.clone());
            if family == Family::V6 {
                uplinks.insert(observe::link_local(&gateway.host, "up0")?.into(), name);
            }
        }
        Ok(uplinks)
    }

    fn name_of(&self, network: Network, mac: Mac) -> String {
        let text = written(mac);
        let owner = self.gateways.iter().find(|it| it.address.bridge_mac(network) == text);
        owner.map_or(text, |it| it.host.name().to_owned())
    }

    fn uplink_macs(&self) -> Result<BTreeMap<Mac, String>, Error> {
        let mac = |gateway: &Gateway| {
            let mac = observe::mac(&gateway.host, "up0")?;
            Ok((mac, gateway.host.name().to_owned()))
        };
        self.gateways.iter().map(mac).collect()
    }
}

fn written(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
