//! What the drivers of real hosts have in common.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use futures_util::future::join_all;
use selvedge_gateway::desired::{Duty, Upstream};
use selvedge_model::{Prefix, Vni};

use super::neighbours::Neighbours;
use super::{Error, Failures};
use crate::inventory::{Inventory, Network, SILENT};
use crate::netlink::{Address, AddressOptions, MAIN_TABLE, Netlink, Route, RouteFilter};
use crate::nft::{Scope, Silencer};
use crate::overheard::Overheard;
use crate::packet::{Advert, Announcement, Announcer, Beacon, router_advertisement};
use crate::sysctl::{self, Family};

/// The protocol number of the local routes of a network: `kernel`, which FRR's zebra does not
/// even look at. So they are neither redistributed nor do they displace what FRR has learned.
pub const LOCAL_PROTOCOL: u8 = 2;

/// The metric of the local route. All routes of a routing daemon are better; the route counts
/// only where there is none. With [`LOCAL_PROTOCOL`] it tells which routes are ours.
pub const LOCAL_METRIC: u32 = 0xffff_5e1d;

/// The metric of the local routes of a network's two halves: better than the 20 of all that zebra
/// puts into the kernel. Halves are what a gateway announces that has taken the network over;
/// where a routing daemon holds on to them after it has moved on, they would lead all packets away
/// from the gateway that serves it now, and back to that one in a circle.
pub const LOCAL_HALVES_METRIC: u32 = 6;

/// The gateway's address is not checked for duplicates: all gateways have it.
const UNCHECKED: AddressOptions = AddressOptions { no_prefix_route: true, no_dad: true };

/// The inventory, what speaks to the stations, the switch, and what the driver was told last.
#[derive(Debug)]
pub(super) struct Base {
    pub(super) inventory: Inventory,
    announcer: Arc<Announcer>,
    beacon: Beacon,
    neighbours: Neighbours,
    silencer: Silencer,
    overheard: Overheard,
    /// The interface on which next-hop addresses are held, if any are.
    uplink: Option<String>,
    told: BTreeMap<Vni, Duty>,
}

impl Base {
    pub(super) fn new(inventory: Inventory, uplink: Option<String>) -> Result<Self, Error> {
        let silencer = Silencer::new(scope(&inventory, uplink.as_deref()));
        let announcer = Arc::new(Announcer::new(silencer.mute())?);
        let beacon = Beacon::spawn(Arc::clone(&announcer))?;
        let neighbours = Neighbours::new()?;
        let (overheard, told) = (Overheard::default(), BTreeMap::new());
        Ok(Self { inventory, announcer, beacon, neighbours, silencer, overheard, uplink, told })
    }

    pub(super) const fn netlink(&self) -> &Netlink {
        self.inventory.netlink()
    }

    /// As [`select`](Self::select), with what has changed of the interfaces: announcements name
    /// them by their numbers and Ethernet addresses.
    pub(super) async fn select_anew(&mut self, vnis: &[Vni]) -> (Vec<Network>, Failures) {
        if let Err(error) = self.inventory.refresh_if_changed().await {
            tracing::warn!(%error, "announcing with the interfaces as they were");
        }
        self.select(vnis)
    }

    /// The networks that can be served, and why the others cannot.
    pub(super) fn select(&self, vnis: &[Vni]) -> (Vec<Network>, Failures) {
        let mut failures = Failures::new();
        let mut networks = Vec::with_capacity(vnis.len());
        for vni in vnis {
            match self.inventory.network(*vni) {
                Ok(network) => networks.push(network.clone()),
                Err(problem) => drop(failures.insert(*vni, problem.into())),
            }
        }
        (networks, failures)
    }

    /// Notes what the host shall do, for [`read_back`].
    pub(super) fn tell(&mut self, networks: &[Network], change: impl Fn(&mut Duty)) {
        for network in networks {
            change(self.told.entry(network.vni).or_default());
        }
    }

    pub(super) fn told(&self, vni: Vni) -> Duty {
        self.told.get(&vni).copied().unwrap_or_default()
    }

    /// Adds the local routes, or deletes them.
    pub(super) async fn local_routes(&self, networks: &[Network], on: bool) -> Failures {
        let netlink = self.netlink();
        for_each(networks, |network| change_routes(netlink, local_routes(network), on)).await
    }

    pub(super) async fn answering(&mut self, vnis: &[Vni], on: bool) -> Failures {
        let (networks, mut failures) = self.select(vnis);
        self.tell(&networks, |duty| duty.answering = on);
        failures.extend(self.answer(&networks, on).await);
        failures
    }

    /// Begins to answer and to advertise the router, or ends both. The advertisements follow the
    /// next announcement.
    pub(super) async fn answer(&self, networks: &[Network], on: bool) -> Failures {
        if !on {
            self.advertise_no_more(networks);
        }
        let netlink = self.netlink();
        let mut failed = match sysctl::get(Family::V4, "all", "arp_ignore") {
            Ok(all) => for_each(networks, |network| answer(netlink, network, all, on)).await,
            Err(error) => for_all(networks, error),
        };
        if on {
            let done = networks.iter().filter(|network| !failed.contains_key(&network.vni));
            self.advertise_too(done);
        } else {
            failed.extend(self.forget_stations(networks).await);
        }
        failed
    }

    fn advertise_too<'a>(&self, networks: impl Iterator<Item = &'a Network>) {
        let new: Vec<(u32, Advert)> = networks.filter_map(advert).collect();
        self.beacon.change(|adverts| {
            for (index, advert) in new {
                adverts.entry(index).or_insert(advert);
            }
        });
    }

    fn advertise_no_more(&self, networks: &[Network]) {
        self.beacon.change(|adverts| {
            for network in networks {
                adverts.remove(&network.bridge.index);
            }
        });
    }

    /// Advertises the router to exactly those networks that this host was seen to answer for. So
    /// an agent that was restarted goes on with it, and bridges that were made anew are followed.
    pub(super) fn advertise_as_observed(&self, duties: &BTreeMap<Vni, Duty>) {
        let answers = |network: &&Network| duties.get(&network.vni).is_some_and(|it| it.answering);
        let mut seen: BTreeMap<u32, Advert> =
            self.inventory.adopted().filter(answers).filter_map(advert).collect();
        self.beacon.change(|adverts| {
            for (index, advert) in &mut seen {
                advert.announced = adverts.get(index).map_or(0, |before| before.announced);
            }
            *adverts = seen;
        });
    }

    /// Forgets the stations' Ethernet addresses. The kernel would check them again within
    /// seconds, by ARP requests that name the gateway's address as the sender's, and the
    /// stations would learn that the gateway is here again.
    async fn forget_stations(&self, networks: &[Network]) -> Failures {
        let bridges = networks.iter().map(|network| network.bridge.index).collect();
        match self.neighbours.flush(&bridges).await {
            Ok(()) => Failures::new(),
            Err(error) => for_all(networks, error),
        }
    }

    /// Announces the gateway addresses once, and what `others` adds. While all is silenced,
    /// nothing.
    pub(super) async fn announce(
        &self,
        networks: &[Network],
        others: impl Fn(&Network) -> Vec<Announcement>,
    ) -> Failures {
        let (vnis, announcements): (Vec<Vni>, Vec<Announcement>) =
            in_order(networks, others).into_iter().unzip();
        let failed = self.announcer.announce(&announcements).await;
        self.advertise_soon(networks);
        failed.into_iter().map(|(position, error)| (vnis[position], error.into())).collect()
    }

    fn advertise_soon(&self, networks: &[Network]) {
        self.beacon.change(|adverts| {
            for network in networks {
                if let Some(advert) = adverts.get_mut(&network.bridge.index) {
                    advert.announced += 1;
                }
            }
        });
    }

    /// The switch that silences the bridges of all networks and the next-hop addresses.
    pub(super) const fn silencer(&self) -> &Silencer {
        &self.silencer
    }

    /// Reads the interfaces anew. What is new there is silenced too, if all is.
    async fn refresh(&mut self) -> Result<(), Error> {
        self.inventory.refresh().await?;
        self.overheard.ignore(self.inventory.adopted().flat_map(Network::fleeting)).await;
        let scope = scope(&self.inventory, self.uplink.as_deref());
        Ok(self.silencer.cover(scope).await?)
    }

    /// Reads the interfaces, addresses and local routes.
    ///
    /// A network that an earlier run has left half answering, and about which nothing was told
    /// since, is silenced first: nobody knows which way that run was going, and both answers
    /// would be wrong.
    pub(super) async fn read(&mut self) -> Result<Reading, Error> {
        self.refresh().await?;
        let reading = self.read_kernel().await?;
        let remains: Vec<Network> = self
            .inventory
            .adopted()
            .filter(|network| !self.told.contains_key(&network.vni) && reading.is_half(network))
            .cloned()
            .collect();
        if remains.is_empty() {
            return Ok(reading);
        }
        for (vni, error) in self.answer(&remains, false).await {
            tracing::warn!(%vni, %error, "a network that was left half answering is so still");
        }
        self.read_kernel().await
    }

    async fn read_kernel(&self) -> Result<Reading, Error> {
        let filter = RouteFilter { protocol: Some(LOCAL_PROTOCOL), table: Some(MAIN_TABLE) };
        let routes = self.netlink().routes(filter).await?;
        let addresses = index_addresses(&self.netlink().addresses().await?);
        let arp_ignore_all = sysctl::get(Family::V4, "all", "arp_ignore")?;
        Ok(Reading { addresses, routes: index_routes(&routes), arp_ignore_all })
    }
}

/// What the kernel has.
#[derive(Debug)]
pub(super) struct Reading {
    addresses: BTreeSet<(u32, Prefix)>,
    routes: BTreeSet<RouteKey>,
    arp_ignore_all: i32,
}

impl Reading {
    /// Whether the interface carries the address alone.
    pub(super) fn carries(&self, index: u32, addr: IpAddr) -> bool {
        self.addresses.contains(&(index, Prefix::host(addr)))
    }

    /// For each local route of the network, whether it is there.
    pub(super) fn local_routes(&self, network: &Network) -> Vec<bool> {
        present(&self.routes, &local_routes(network))
    }

    /// Whether the host answers for some of the network's addresses and not for others.
    fn is_half(&self, network: &Network) -> bool {
        let parts = self.answering(network).unwrap_or_default();
        parts.contains(&true) && parts.contains(&false)
    }

    /// For each address of the network, whether the host answers for it.
    pub(super) fn answering(&self, network: &Network) -> Result<Vec<bool>, Error> {
        let index = network.bridge.index;
        let mut parts: Vec<bool> =
            network.fleeting().map(|addr| self.carries(index, addr)).collect();
        let v4 = network.gateways.iter().map(Prefix::addr).filter(IpAddr::is_ipv4);
        let held: Vec<bool> = v4.map(|addr| self.carries(index, addr)).collect();
        if !held.is_empty() {
            let own = sysctl::get(Family::V4, &network.bridge.name, "arp_ignore")?;
            let answers = own.max(self.arp_ignore_all) != SILENT;
            parts.extend(held.into_iter().map(|held| held && answers));
        }
        Ok(parts)
    }
}

/// What tells a route of ours from others.
pub(super) type RouteKey = (Prefix, Option<u32>, u8, u32);

pub(super) fn index_routes(routes: &[Route]) -> BTreeSet<RouteKey> {
    routes.iter().map(index_route).collect()
}

pub(super) fn index_route(route: &Route) -> RouteKey {
    (route.dst.network(), route.oif, route.protocol, route.metric)
}

fn index_addresses(addresses: &[Address]) -> BTreeSet<(u32, Prefix)> {
    addresses.iter().map(|address| (address.index, address.prefix)).collect()
}

/// For each route, whether it is there.
pub(super) fn present(there: &BTreeSet<RouteKey>, routes: &[Route]) -> Vec<bool> {
    routes.iter().map(|route| there.contains(&index_route(route))).collect()
}

/// What to report of a thing that consists of `parts`, for each whether it is there. If only
/// some are, the opposite of what was told is reported, so that whoever compares the two tells
/// it again, and the parts are completed or cleared away.
pub(super) fn read_back(parts: &[bool], told: bool) -> bool {
    match (parts.contains(&true), parts.contains(&false)) {
        (true, false) => true,
        (false, true) => false,
        (true, true) => !told,
        (false, false) => told,
    }
}

/// The same for what comes in two ways. `parts` are those that both ways have in common.
pub(super) fn read_back_upstream(parts: &[bool], told: Upstream) -> Upstream {
    match (read_back(parts, told != Upstream::Off), told) {
        (false, _) => Upstream::Off,
        (true, Upstream::Off) => Upstream::Whole,
        (true, Upstream::Whole | Upstream::Halves) => told,
    }
}

/// Runs the operation for all networks at once.
pub(super) async fn for_each<'a, F: Future<Output = Result<(), Error>>>(
    networks: &'a [Network],
    operation: impl Fn(&'a Network) -> F,
) -> Failures {
    let outcomes = join_all(networks.iter().map(operation)).await;
    let pairs = networks.iter().zip(outcomes);
    pairs.filter_map(|(network, outcome)| Some((network.vni, outcome.err()?))).collect()
}

/// One failure that concerns all networks.
pub(super) fn for_all(networks: &[Network], error: impl Into<Error>) -> Failures {
    let error = Arc::new(error.into());
    networks.iter().map(|network| (network.vni, Error::Common(Arc::clone(&error)))).collect()
}

/// Adds or deletes routes one by one, so that it is known which network a refusal concerns; the
/// requests of all networks are under way at the same time.
pub(super) async fn change_routes(
    netlink: &Netlink,
    routes: Vec<Route>,
    on: bool,
) -> Result<(), Error> {
    match on {
        true => netlink.add_routes(&routes).await?,
        false => netlink.del_routes(&routes).await?,
    }
    Ok(())
}

fn local_routes(network: &Network) -> Vec<Route> {
    let to_bridge = |dst: Prefix, metric| Route {
        metric,
        ..Route::on_link(dst, network.bridge.index, LOCAL_PROTOCOL)
    };
    let of_one = |whole: Prefix| {
        let halves = whole.halves().into_iter().flatten();
        let halves = halves.map(move |half| to_bridge(half, LOCAL_HALVES_METRIC));
        halves.chain([to_bridge(whole, LOCAL_METRIC)])
    };
    network.gateways.iter().map(Prefix::network).flat_map(of_one).collect()
}

/// What is to be announced. What packets are sent to comes first, for all networks: the IPv4
/// address, the link-local one that is the stations' IPv6 router, and what `others` adds. The
/// rest follows.
fn in_order(
    networks: &[Network],
    others: impl Fn(&Network) -> Vec<Announcement>,
) -> Vec<(Vni, Announcement)> {
    let (mut first, mut rest) = (Vec::new(), Vec::new());
    for network in networks {
        let (urgent, later): (Vec<_>, Vec<_>) =
            gateway_announcements(network).into_iter().partition(|it| is_urgent(it.addr));
        first.extend(urgent.into_iter().chain(others(network)).map(|it| (network.vni, it)));
        rest.extend(later.into_iter().map(|it| (network.vni, it)));
    }
    first.extend(rest);
    first
}

fn gateway_announcements(network: &Network) -> Vec<Announcement> {
    let (index, mac) = (network.bridge.index, network.bridge.mac);
    let addresses = network.gateways.iter().map(Prefix::addr).chain(network.link_local());
    addresses.map(|addr| Announcement { index, mac, addr }).collect()
}

/// Whether stations send their packets to the address: the router is known to them by its
/// link-local one.
const fn is_urgent(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(_) => true,
        IpAddr::V6(addr) => addr.is_unicast_link_local(),
    }
}

/// What is advertised to a network, by the index of its bridge, unless it has no IPv6 or its
/// configuration says not to.
fn advert(network: &Network) -> Option<(u32, Advert)> {
    network.link_local().filter(|_| network.ra.send)?;
    let frame = router_advertisement(network.bridge.mac, &network.ra, &network.gateways);
    let advert = Advert {
        frame: frame.into(),
        announced: 0,
        min_interval: network.ra.min_interval,
        max_interval: network.ra.max_interval,
    };
    Some((network.bridge.index, advert))
}

/// The bridges of all networks and the next-hop addresses on the uplink.
fn scope(inventory: &Inventory, uplink: Option<&str>) -> Scope {
    let networks = inventory.networks().values();
    let next_hops = networks.clone().flat_map(|network| network.next_hops.iter().copied());
    Scope {
        next_hops: next_hops.collect(),
        bridges: networks.map(|network| network.bridge.name.clone()).collect(),
        uplink: uplink.map(ToOwned::to_owned),
    }
}

/// IPv4 is answered or not by `arp_ignore`, IPv6 by the presence of the address.
/// `all` is the setting for all interfaces.
async fn answer(netlink: &Netlink, network: &Network, all: i32, on: bool) -> Result<(), Error> {
    let bridge = &network.bridge;
    if network.gateways.iter().any(|gateway| gateway.addr().is_ipv4()) {
        answer_arp(&bridge.name, all, on)?;
    }
    let addresses: Vec<Prefix> = network.fleeting().map(Prefix::host).collect();
    match on {
        true => netlink.add_addresses(bridge.index, &addresses, UNCHECKED).await?,
        false => netlink.del_addresses(bridge.index, &addresses).await?,
    }
    Ok(())
}

/// The greater of the values for the bridge and for all interfaces counts.
fn answer_arp(bridge: &str, all: i32, on: bool) -> Result<(), Error> {
    let value = if on { 0 } else { SILENT };
    if (on && all == SILENT) || (!on && all > SILENT) {
        return Err(Error::ArpIgnoreAll(all));
    }
    Ok(sysctl::set(Family::V4, bridge, "arp_ignore", value)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::Port;
    use crate::packet::RaConfig;

    fn network(number: u32) -> Network {
        let port = Port { index: number, name: format!("br{number}"), mac: [2; 6] };
        let gateways = [format!("10.0.{number}.1/24"), format!("fd00:{number}::1/64")];
        Network {
            vni: number.try_into().expect("a VNI"),
            bridge: port.clone(),
            vxlan: port,
            tunnel: None,
            gateways: gateways.map(|text| text.parse().expect("a prefix")).to_vec(),
            next_hops: Vec::new(),
            ra: RaConfig::default(),
        }
    }

    #[test]
    fn what_stations_send_to_is_announced_first() {
        let next_hop = Announcement { index: 9, mac: [4; 6], addr: [172, 20, 0, 1].into() };
        let all = in_order(&[network(1), network(2)], |_| vec![next_hop]);
        let order: Vec<String> = all.iter().map(|(_, it)| it.addr.to_string()).collect();
        let [shared, next_hop] = ["fe80::5e1:d6e", "172.20.0.1"];
        let expected = ["10.0.1.1", shared, next_hop, "10.0.2.1", shared, next_hop];
        assert_eq!(order, [expected.as_slice(), &["fd00:1::1", "fd00:2::1"]].concat());
    }

    #[test]
    fn only_networks_with_ipv6_are_advertised_and_only_if_that_is_wanted() {
        let with = network(1);
        let (index, made) = advert(&with).expect("an advertisement");
        assert_eq!((index, made.announced), (1, 0));
        let mut without = with.clone();
        without.gateways.retain(|gateway| gateway.addr().is_ipv4());
        assert_eq!(advert(&without), None);
        assert_eq!(without.link_local(), None);
        let off = Network { ra: RaConfig { send: false, ..RaConfig::default() }, ..with };
        assert_eq!(advert(&off), None);
        assert!(off.link_local().is_some());
    }

    #[test]
    fn what_is_there_in_part_is_reported_as_not_what_was_told() {
        for told in [false, true] {
            assert!(read_back(&[true, true], told));
            assert!(!read_back(&[false, false], told));
            assert_eq!(read_back(&[true, false], told), !told);
            assert_eq!(read_back(&[], told), told);
        }
    }

    #[test]
    fn upstream_is_what_was_told_if_it_is_there() {
        use Upstream::{Halves, Off, Whole};
        for (parts, told, reported) in [
            ([true, true], Halves, Halves),
            ([true, true], Whole, Whole),
            ([true, true], Off, Whole),
            ([true, false], Off, Whole),
            ([true, false], Whole, Off),
            ([true, false], Halves, Off),
            ([false, false], Halves, Off),
        ] {
            assert_eq!(read_back_upstream(&parts, told), reported, "{parts:?} {told:?}");
        }
    }
}
