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
use crate::nft::{Nft, Scope};
use crate::packet::{Announcement, Announcer};
use crate::sysctl::{self, Family};

/// The protocol number of the local route of a network: `kernel`, which FRR's zebra does not
/// even look at. So it is neither redistributed nor does it displace what FRR has learned.
pub const LOCAL_PROTOCOL: u8 = 2;

/// The metric of the local route. All routes of a routing daemon are better; the route counts
/// only where there is none. With [`LOCAL_PROTOCOL`] it tells which routes are ours.
pub const LOCAL_METRIC: u32 = 0xffff_5e1d;

/// How often an announcement is sent, so that one lost frame does not matter.
const ROUNDS: usize = 2;

/// The gateway's address is not checked for duplicates: all gateways have it.
const UNCHECKED: AddressOptions = AddressOptions { no_prefix_route: true, no_dad: true };

/// The inventory, the announcer and the switch, and what the driver was told last.
#[derive(Debug)]
pub(super) struct Base {
    pub(super) inventory: Inventory,
    announcer: Announcer,
    neighbours: Neighbours,
    nft: Nft,
    told: BTreeMap<Vni, Duty>,
    silent: bool,
}

impl Base {
    pub(super) fn new(inventory: Inventory) -> Result<Self, Error> {
        let announcer = Announcer::new()?;
        let neighbours = Neighbours::new()?;
        let (nft, told) = Default::default();
        Ok(Self { inventory, announcer, neighbours, nft, told, silent: false })
    }

    pub(super) const fn netlink(&self) -> &Netlink {
        self.inventory.netlink()
    }

    /// As [`select`](Self::select), with the interfaces read anew: announcements name them by their
    /// numbers.
    pub(super) async fn select_anew(&mut self, vnis: &[Vni]) -> (Vec<Network>, Failures) {
        if let Err(error) = self.inventory.refresh().await {
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
        let netlink = self.netlink();
        let failed = for_each(&networks, |network| answer(netlink, network, on)).await;
        failures.extend(failed);
        if !on {
            failures.extend(self.forget_stations(&networks).await);
        }
        failures
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

    /// Announces the gateway addresses, and what `others` adds. While all is silenced, nothing.
    pub(super) async fn announce(
        &self,
        networks: &[Network],
        others: impl Fn(&Network) -> Vec<Announcement>,
    ) -> Failures {
        let mut failures = Failures::new();
        if self.silent {
            return failures;
        }
        let (vnis, announcements): (Vec<Vni>, Vec<Announcement>) = networks
            .iter()
            .flat_map(|network| {
                let all = gateway_announcements(network).chain(others(network));
                all.map(|announcement| (network.vni, announcement))
            })
            .unzip();
        for _ in 0..ROUNDS {
            let failed = self.announcer.send(&announcements).await;
            let named = failed.into_iter().map(|(position, error)| (vnis[position], error.into()));
            failures.extend(named);
        }
        failures
    }

    /// Silences the bridges of all networks and the next-hop addresses on the uplink.
    pub(super) async fn silence(&mut self, on: bool, uplink: Option<&str>) -> Result<(), Error> {
        if !on {
            self.nft.lift().await?;
            self.silent = false;
            return Ok(());
        }
        // No announcements from here on, even if the transaction should fail.
        self.silent = true;
        let networks = self.inventory.networks().values();
        let next_hops = networks.clone().flat_map(|network| network.next_hops.iter().copied());
        let scope = Scope {
            bridges: networks.clone().map(|network| network.bridge.name.clone()).collect(),
            uplink: uplink.map(ToOwned::to_owned),
            next_hops: next_hops.collect(),
        };
        Ok(self.nft.silence(&scope).await?)
    }

    /// Reads the interfaces, addresses and local routes.
    pub(super) async fn read(&mut self) -> Result<Reading, Error> {
        self.inventory.refresh().await?;
        let filter = RouteFilter { protocol: Some(LOCAL_PROTOCOL), table: Some(MAIN_TABLE) };
        let routes = self.netlink().routes(filter).await?;
        let addresses = self.netlink().addresses().await?;
        Ok(Reading { addresses: index_addresses(&addresses), routes: index_routes(&routes) })
    }
}

/// What the kernel has.
#[derive(Debug)]
pub(super) struct Reading {
    addresses: BTreeSet<(u32, Prefix)>,
    routes: BTreeSet<RouteKey>,
}

impl Reading {
    /// Whether the interface carries the address alone.
    pub(super) fn carries(&self, index: u32, addr: IpAddr) -> bool {
        self.addresses.contains(&(index, Prefix::host(addr)))
    }

    /// For each prefix of the network, whether its local route is there.
    pub(super) fn local_routes(&self, network: &Network) -> Vec<bool> {
        present(&self.routes, &local_routes(network))
    }

    /// For each gateway address, whether the host answers for it.
    pub(super) fn answering(&self, network: &Network) -> Result<Vec<bool>, Error> {
        let ignore = sysctl::effective(&network.bridge.name, "arp_ignore")?;
        let answers = |gateway: &Prefix| {
            let here = self.carries(network.bridge.index, gateway.addr());
            here && (gateway.addr().is_ipv6() || ignore != SILENT)
        };
        Ok(network.gateways.iter().map(answers).collect())
    }
}

/// What tells a route of ours from others.
pub(super) type RouteKey = (Prefix, Option<u32>, u8, u32);

pub(super) fn index_routes(routes: &[Route]) -> BTreeSet<RouteKey> {
    let key = |route: &Route| (route.dst.network(), route.oif, route.protocol, route.metric);
    routes.iter().map(key).collect()
}

fn index_addresses(addresses: &[Address]) -> BTreeSet<(u32, Prefix)> {
    addresses.iter().map(|address| (address.index, address.prefix)).collect()
}

/// For each route, whether it is there.
pub(super) fn present(there: &BTreeSet<RouteKey>, routes: &[Route]) -> Vec<bool> {
    let keys = routes.iter().map(|route| (route.dst, route.oif, route.protocol, route.metric));
    keys.map(|key| there.contains(&key)).collect()
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
    let to_bridge = |gateway: &Prefix| Route {
        metric: LOCAL_METRIC,
        ..Route::on_link(gateway.network(), network.bridge.index, LOCAL_PROTOCOL)
    };
    network.gateways.iter().map(to_bridge).collect()
}

fn gateway_announcements(network: &Network) -> impl Iterator<Item = Announcement> {
    let (index, mac) = (network.bridge.index, network.bridge.mac);
    network.gateways.iter().map(move |gateway| Announcement { index, mac, addr: gateway.addr() })
}

/// IPv4 is answered or not by `arp_ignore`, IPv6 by the presence of the address.
async fn answer(netlink: &Netlink, network: &Network, on: bool) -> Result<(), Error> {
    let bridge = &network.bridge;
    let (v4, v6): (Vec<_>, Vec<_>) =
        network.gateways.iter().map(Prefix::addr).partition(IpAddr::is_ipv4);
    if !v4.is_empty() {
        answer_arp(&bridge.name, on)?;
    }
    for addr in v6.into_iter().map(Prefix::host) {
        match on {
            true => netlink.add_address(bridge.index, addr, UNCHECKED).await?,
            false => netlink.del_address(bridge.index, addr).await?,
        }
    }
    Ok(())
}

/// The greater of the values for the bridge and for all interfaces counts.
fn answer_arp(bridge: &str, on: bool) -> Result<(), Error> {
    let all = sysctl::get(Family::V4, "all", "arp_ignore")?;
    let value = if on { 0 } else { SILENT };
    if (on && all == SILENT) || (!on && all > SILENT) {
        return Err(Error::ArpIgnoreAll(all));
    }
    Ok(sysctl::set(Family::V4, bridge, "arp_ignore", value)?)
}

#[cfg(test)]
mod tests {
    use super::*;

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
