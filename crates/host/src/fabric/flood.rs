use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use async_trait::async_trait;
use selvedge_gateway::desired::{Duty, Upstream};
use selvedge_model::{Prefix, Vni};

use super::base::{Base, Reading, for_all, for_each, read_back, read_back_upstream};
use super::{Driver, Error, Failures, Silencer};
use crate::inventory::{Inventory, Network};
use crate::netlink::{AddressOptions, FLOOD, FdbEntry, Link, Mac, Netlink};
use crate::packet::Announcement;

/// A next-hop address moves between gateways; the one that takes it need not ask whether it is
/// in use.
const UNCHECKED: AddressOptions = AddressOptions { no_prefix_route: true, no_dad: true };

/// What [`Flood`] needs to know beside the networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FloodConfig {
    /// The interface towards the upstream router.
    pub uplink: String,
    /// The tunnel endpoints that frames are flooded to. This host's own is skipped, so that all
    /// gateways can share one list.
    pub endpoints: Vec<IpAddr>,
}

/// The driver that needs no routing daemon.
///
/// - *fabric*: the network's VXLAN interface floods to the configured tunnel endpoints, and a
///   local route leads from this host into the network.
/// - *upstream*: the network's next-hop addresses are held on the uplink. The upstream router has
///   a static route for the network's prefix by that next hop and finds the owner by ARP. Whole
///   and halves are the same here, as the next hop tells all.
/// - *answering*: `arp_ignore` on the bridge; the presence of the address for IPv6.
///
/// Order within the calls, so that no packet is lost in a planned move: attracting adds the route
/// before the address, and giving up the next-hop address leaves the route. What is on its way,
/// or comes from a station or router that has not heard of the new owner yet, is forwarded as
/// long as *fabric* is on.
///
/// The uplink's own settings are not touched. With the kernel's defaults a gateway answers there
/// for its bridges' addresses too, but nobody asks: the router's static route names the next hop.
#[derive(Debug)]
pub struct Flood {
    base: Base,
    config: FloodConfig,
}

impl Flood {
    /// A driver for the adopted networks of the inventory. It belongs to the network namespace of
    /// the calling thread.
    ///
    /// # Errors
    /// If this process may not open packet sockets.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn new(inventory: Inventory, config: FloodConfig) -> Result<Self, Error> {
        Ok(Self { base: Base::new(inventory, Some(config.uplink.clone()))?, config })
    }

    /// The networks, to adopt or release some.
    pub const fn inventory(&mut self) -> &mut Inventory {
        &mut self.base.inventory
    }

    const fn netlink(&self) -> &Netlink {
        self.base.netlink()
    }

    fn entries(&self, network: &Network) -> Vec<FdbEntry> {
        let others = self.config.endpoints.iter().filter(|&dst| Some(*dst) != network.tunnel);
        let index = network.vxlan.index;
        others.map(|dst| FdbEntry { index, mac: FLOOD, dst: *dst, permanent: true }).collect()
    }

    async fn floods(&self, networks: &[Network], on: bool) -> Failures {
        for_each(networks, |network| async move {
            let entries = self.entries(network);
            match on {
                true => self.netlink().add_fdb_entries(&entries).await?,
                false => self.netlink().del_fdb_entries(&entries).await?,
            }
            Ok(())
        })
        .await
    }

    async fn uplink(&self) -> Result<Link, Error> {
        let link = self.netlink().link(&self.config.uplink).await?;
        link.ok_or_else(|| Error::NoUplink(self.config.uplink.clone()))
    }

    async fn hold(&self, networks: &[Network], uplink: u32, on: bool) -> Failures {
        for_each(networks, |network| async move {
            if on && network.next_hops.is_empty() {
                return Err(Error::NoNextHop(network.vni));
            }
            for addr in network.next_hops.iter().copied().map(Prefix::host) {
                match on {
                    true => self.netlink().add_address(uplink, addr, UNCHECKED).await?,
                    false => self.netlink().del_address(uplink, addr).await?,
                }
            }
            Ok(())
        })
        .await
    }

    /// The uplink's index and Ethernet address, and which addresses it carries.
    async fn held(&self) -> Result<(u32, Mac, BTreeSet<IpAddr>), Error> {
        let uplink = self.uplink().await?;
        let addresses = self.netlink().addresses().await?;
        let here = addresses.iter().filter(|address| address.index == uplink.index);
        let held = here.map(|address| address.prefix.addr()).collect();
        Ok((uplink.index, uplink.mac.unwrap_or_default(), held))
    }

    fn duty(
        &self,
        network: &Network,
        reading: &Reading,
        uplink: u32,
        floods: &BTreeSet<(u32, IpAddr)>,
    ) -> Result<Duty, Error> {
        let told = self.base.told(network.vni);
        let entries = self.entries(network);
        let there = entries.iter().map(|entry| floods.contains(&(entry.index, entry.dst)));
        let mut fabric: Vec<bool> = there.collect();
        fabric.extend(reading.local_routes(network));
        let next_hops = network.next_hops.iter().map(|addr| reading.carries(uplink, *addr));
        Ok(Duty {
            fabric: read_back(&fabric, told.fabric),
            upstream: read_back_upstream(&next_hops.collect::<Vec<_>>(), told.upstream),
            answering: read_back(&reading.answering(network)?, told.answering),
        })
    }
}

#[async_trait]
impl Driver for Flood {
    /// On: the local route, then the flooding entries. Off: the other way round.
    async fn fabric(&mut self, vnis: &[Vni], on: bool) -> Failures {
        let (networks, mut failures) = self.base.select(vnis);
        self.base.tell(&networks, |duty| duty.fabric = on);
        if on {
            failures.extend(self.base.local_routes(&networks, true).await);
        }
        failures.extend(self.floods(&networks, on).await);
        if !on {
            failures.extend(self.base.local_routes(&networks, false).await);
        }
        failures
    }

    /// On: the local route, then the next-hop addresses. Off: the addresses only.
    async fn upstream(&mut self, vnis: &[Vni], to: Upstream) -> Failures {
        let (networks, mut failures) = self.base.select(vnis);
        let on = to != Upstream::Off;
        let uplink = match self.uplink().await {
            Ok(uplink) => uplink.index,
            Err(error) => {
                failures.extend(for_all(&networks, error));
                return failures;
            }
        };
        self.base.tell(&networks, |duty| duty.upstream = to);
        if on {
            failures.extend(self.base.local_routes(&networks, true).await);
        }
        failures.extend(self.hold(&networks, uplink, on).await);
        failures
    }

    async fn answering(&mut self, vnis: &[Vni], on: bool) -> Failures {
        self.base.answering(vnis, on).await
    }

    /// The gateway addresses on the bridges, and the next-hop addresses that the uplink holds.
    async fn announce(&mut self, vnis: &[Vni]) -> Failures {
        let (networks, mut failures) = self.base.select_anew(vnis).await;
        let (index, mac, held) = match self.held().await {
            Ok(held) => held,
            Err(error) => {
                failures.extend(for_all(&networks, error));
                return failures;
            }
        };
        let next_hops = |network: &Network| {
            let here = network.next_hops.iter().filter(|addr| held.contains(addr));
            here.map(|addr| Announcement { index, mac, addr: *addr }).collect()
        };
        failures.extend(self.base.announce(&networks, next_hops).await);
        failures
    }

    async fn observe(&mut self) -> Result<BTreeMap<Vni, Duty>, Error> {
        let reading = self.base.read().await?;
        let uplink = self.uplink().await?.index;
        let all = self.netlink().all_fdbs().await?;
        let flooding = all.iter().filter(|entry| entry.mac == FLOOD);
        let floods = flooding.map(|entry| (entry.index, entry.dst)).collect();
        let networks = self.base.inventory.adopted();
        let observed = networks
            .map(|network| Ok((network.vni, self.duty(network, &reading, uplink, &floods)?)))
            .collect::<Result<_, Error>>()?;
        self.base.advertise_as_observed(&observed);
        Ok(observed)
    }

    fn silencer(&self) -> Option<Silencer> {
        Some(self.base.silencer().clone())
    }
}

#[cfg(test)]
mod tests;
