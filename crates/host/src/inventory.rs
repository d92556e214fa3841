//! The networks that this host can serve: their interfaces, their gateway addresses, and what
//! was found there before anything was changed.
//!
//! A gateway address stands on its bridge as a single address (`/32`, `/128`), so that no
//! connected route to the whole network hides the routes that fabric drivers come and go with;
//! the network's prefix is kept here. An IPv4 address stays on the bridge all the time, as
//! `arp_ignore` can silence it. An IPv6 address cannot be silenced and is there only while the
//! host answers for it. That goes for the link-local address too that all gateways of the network
//! share, and that router advertisements come from.
//!
//! The order of use: [`Inventory::new`] with what an earlier run has saved, [`survey`], save
//! [`found`] on disk, [`adopt`]; when a network is given up for good, [`release`].
//!
//! [`survey`]: Inventory::survey
//! [`found`]: Inventory::found
//! [`adopt`]: Inventory::adopt
//! [`release`]: Inventory::release

mod changes;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use futures_util::future::join_all;
use selvedge_model::{Prefix, Vni};
use serde::{Deserialize, Serialize};

use crate::netlink::{self, Address, AddressOptions, Link, LinkKind, Mac, Netlink};
use crate::packet::RaConfig;
use crate::sysctl::{self, Family};

use changes::Changes;

/// The value of `arp_ignore` that answers no ARP request at all.
pub const SILENT: i32 = 8;

/// Strict and loose reverse-path filtering (RFC 3704). A gateway that has just handed its
/// upstream side over still gets packets from its stations, which a strict filter would drop.
const STRICT: i32 = 1;
const LOOSE: i32 = 2;

/// The gateways of a network share its address, so looking for duplicates would find them.
const AT_ONCE: AddressOptions = AddressOptions { no_prefix_route: false, no_dad: true };

/// The length of an interface's name, in bytes, that the kernel accepts.
const MAX_NAME: usize = 15;

/// Why a network cannot be served by this host. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// It is not among the networks of this gateway.
    #[error("network {0} is not among those that this gateway is configured for")]
    Unknown(Vni),
    /// Its interfaces were not prepared yet.
    #[error("network {0} is not prepared on this host yet")]
    NotAdopted(Vni),
    /// An interface is missing.
    #[error("there is no interface {0}")]
    NoInterface(String),
    /// An interface is of another kind than its name says.
    #[error("the interface {name} is not a {expected}")]
    WrongKind {
        /// The interface.
        name: String,
        /// What it should be.
        expected: &'static str,
    },
    /// The VXLAN interface carries another network.
    #[error("the interface {name} carries network {actual}, not {expected}")]
    WrongVni {
        /// The interface.
        name: String,
        /// What it carries.
        actual: Vni,
        /// What it should carry.
        expected: Vni,
    },
    /// The VXLAN interface is not a port of the bridge.
    #[error("the interface {vxlan} is not a port of the bridge {bridge}")]
    NotAPort {
        /// The VXLAN interface.
        vxlan: String,
        /// The bridge.
        bridge: String,
    },
    /// Nothing tells the gateway's address.
    #[error(
        "no gateway address is configured for network {vni}, and the bridge {bridge} carries none \
         with the length of its network (such as 10.1.0.1/24)"
    )]
    NoAddress {
        /// The network.
        vni: Vni,
        /// The bridge.
        bridge: String,
    },
    /// The kernel has no IPv6 on the bridge, and the network has an IPv6 gateway.
    #[error("the interface {0} has no IPv6, as none has whose MTU is below 1280")]
    NoIpv6(String),
    /// The kernel forwards no packets.
    #[error("the kernel does not forward what arrives at {interface}: set {setting} to 1")]
    NoForwarding {
        /// The interface.
        interface: String,
        /// The setting.
        setting: &'static str,
    },
}

/// Why an operation failed for a network.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The network cannot be served.
    #[error(transparent)]
    Unable(#[from] Problem),
    /// The kernel refused. One refusal may concern many networks.
    #[error(transparent)]
    Netlink(Arc<netlink::Error>),
    /// The kernel refused.
    #[error(transparent)]
    Sysctl(#[from] sysctl::Error),
}

impl From<netlink::Error> for Error {
    fn from(error: netlink::Error) -> Self {
        Self::Netlink(Arc::new(error))
    }
}

/// The pattern of an interface's name: `br{vni}` stands for `br1`, `br2`, and so on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NamePattern {
    before: String,
    after: String,
}

/// Why a text is no [`NamePattern`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a pattern of interface names: expected {{vni}} once, as in br{{vni}}, neither \
     slashes nor spaces, and short enough for the kernel's 15 bytes"
)]
pub struct ParsePatternError(String);

impl NamePattern {
    /// The name of the network's interface.
    #[must_use]
    pub fn name(&self, vni: Vni) -> String {
        format!("{}{vni}{}", self.before, self.after)
    }
}

/// Which interfaces belong to a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// The bridge that carries the gateway's addresses.
    pub bridge: NamePattern,
    /// The VXLAN interface, a port of the bridge.
    pub vxlan: NamePattern,
}

impl FromStr for NamePattern {
    type Err = ParsePatternError;

    fn from_str(text: &str) -> Result<Self, ParsePatternError> {
        let parts = text.split_once("{vni}").filter(|(before, after)| {
            let fixed = format!("{before}{after}");
            let good = |c: char| !c.is_whitespace() && !matches!(c, '/' | '{' | '}' | '\0' | '"');
            fixed.chars().all(good) && fixed.len() < MAX_NAME
        });
        let (before, after) = parts.ok_or_else(|| ParsePatternError(text.to_owned()))?;
        Ok(Self { before: before.to_owned(), after: after.to_owned() })
    }
}

impl TryFrom<String> for NamePattern {
    type Error = ParsePatternError;

    fn try_from(text: String) -> Result<Self, ParsePatternError> {
        text.parse()
    }
}

impl From<NamePattern> for String {
    fn from(pattern: NamePattern) -> Self {
        pattern.to_string()
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{{vni}}{}", self.before, self.after)
    }
}

impl Default for Names {
    /// `br{vni}` and `vxlan{vni}`.
    fn default() -> Self {
        let pattern = |before: &str| NamePattern { before: before.into(), after: String::new() };
        Self { bridge: pattern("br"), vxlan: pattern("vxlan") }
    }
}

/// What the configuration says about a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declared {
    /// The gateway's addresses, each with the length of its network. None: what the bridge
    /// carries.
    pub addresses: Vec<Prefix>,
    /// The addresses on the uplink to which the upstream router sends the network's packets
    /// (fabric `flood` only).
    pub next_hops: Vec<IpAddr>,
    /// What the owner advertises to the stations, if the network has an IPv6 address.
    pub ra: RaConfig,
}

/// What a network's bridge was like before Selvedge changed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// The network.
    pub vni: Vni,
    /// The global addresses that the bridge carried, and the shared link-local one if it did.
    pub addresses: Vec<Prefix>,
    /// `net.ipv4.conf.<bridge>.arp_ignore`.
    pub arp_ignore: i32,
    /// `net.ipv4.conf.<bridge>.rp_filter`.
    pub rp_filter: i32,
    /// The next hops of [`Declared`] that may be held on the uplink: a run that is not told of
    /// this network any more has to know what to let go of.
    #[serde(default)]
    pub next_hops: Vec<IpAddr>,
}

/// An interface of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The kernel's number for it.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address.
    pub mac: Mac,
}

/// A network that this host can serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// The network.
    pub vni: Vni,
    /// The bridge.
    pub bridge: Port,
    /// The VXLAN interface.
    pub vxlan: Port,
    /// The address of this host's tunnel endpoint, if it is fixed.
    pub tunnel: Option<IpAddr>,
    /// The gateway's addresses, each with the length of its network.
    pub gateways: Vec<Prefix>,
    /// The next-hop addresses of [`Declared`].
    pub next_hops: Vec<IpAddr>,
    /// What the owner advertises to the stations, if there is an IPv6 address.
    pub ra: RaConfig,
}

impl Network {
    /// The link-local address that all gateways of the network share, if it has IPv6 at all.
    #[must_use]
    pub fn link_local(&self) -> Option<IpAddr> {
        let is_used = self.gateways.iter().any(|gateway| gateway.addr().is_ipv6());
        is_used.then_some(IpAddr::V6(self.ra.link_local))
    }

    /// All addresses that the owner answers for.
    fn addresses(&self) -> Vec<IpAddr> {
        self.gateways.iter().map(Prefix::addr).chain(self.link_local()).collect()
    }

    /// The addresses that the bridge carries only while this host answers for them.
    pub fn fleeting(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses().into_iter().filter(IpAddr::is_ipv6)
    }
}

/// The networks of this gateway.
#[derive(Debug)]
pub struct Inventory {
    netlink: Netlink,
    names: Names,
    wanted: BTreeMap<Vni, Declared>,
    found: BTreeMap<Vni, Found>,
    networks: BTreeMap<Vni, Network>,
    unable: BTreeMap<Vni, Problem>,
    /// The networks whose bridges are prepared, each with its bridge's number.
    adopted: BTreeMap<Vni, u32>,
    /// Since when the interfaces were last read.
    changes: Option<Changes>,
}

impl Inventory {
    /// The networks `wanted`. `found` is what an earlier run has saved: it tells how the host
    /// was before Selvedge changed it for the first time, however that run ended.
    #[must_use]
    pub fn new(
        netlink: Netlink,
        names: Names,
        wanted: BTreeMap<Vni, Declared>,
        found: impl IntoIterator<Item = Found>,
    ) -> Self {
        let found = found.into_iter().map(|found| (found.vni, found)).collect();
        let (networks, unable, adopted, changes) = Default::default();
        Self { netlink, names, wanted, found, networks, unable, adopted, changes }
    }

    /// Reads the interfaces and addresses of all wanted networks. Changes nothing.
    ///
    /// What the bridge carries with the length of a network counts as put there by the operator
    /// and is added to what was saved; a single address is our own work and is not.
    ///
    /// # Errors
    /// If the kernel cannot be read.
    pub async fn survey(&mut self) -> Result<(), Error> {
        let links = self.read_links().await?;
        let carried = self.netlink.addresses().await?;
        for (vni, declared) in &self.wanted {
            let name = self.names.bridge.name(*vni);
            if let Some(bridge) = links.iter().find(|link| link.name == name) {
                let here = on_interface(&carried, bridge.index, declared.ra.link_local);
                let mut found = note(self.found.get(vni), *vni, bridge, here.collect())?;
                found.next_hops.clone_from(&declared.next_hops);
                self.found.insert(*vni, found);
            }
        }
        self.place(&links);
        self.check_forwarding()
    }

    /// Reads the interfaces anew, which may have other numbers or be gone. Changes nothing.
    ///
    /// # Errors
    /// If the kernel cannot be read.
    pub async fn refresh(&mut self) -> Result<(), Error> {
        let links = self.read_links().await?;
        self.place(&links);
        Ok(())
    }

    /// Reads the interfaces anew if any has changed since they were last read. Changes nothing.
    ///
    /// # Errors
    /// If the kernel cannot be read.
    pub async fn refresh_if_changed(&mut self) -> Result<(), Error> {
        let changed = self.changes.as_ref().is_none_or(Changes::any);
        if changed { self.refresh().await } else { Ok(()) }
    }

    /// From before they are read on, changes are watched for. Where that cannot be done they are
    /// read whenever it matters.
    async fn read_links(&mut self) -> Result<Vec<Link>, Error> {
        match &self.changes {
            Some(changes) => drop(changes.any()),
            None => self.changes = Changes::watch().ok(),
        }
        Ok(self.netlink.links().await?)
    }

    /// The networks that this host can serve, as of the last survey or refresh.
    #[must_use]
    pub const fn networks(&self) -> &BTreeMap<Vni, Network> {
        &self.networks
    }

    /// The wanted networks that this host cannot serve, and why.
    #[must_use]
    pub const fn unable(&self) -> &BTreeMap<Vni, Problem> {
        &self.unable
    }

    /// What was found before anything was changed. It must be on disk before [`Self::adopt`].
    #[must_use]
    pub fn found(&self) -> Vec<Found> {
        self.found.values().cloned().collect()
    }

    /// The connection to the kernel.
    #[must_use]
    pub const fn netlink(&self) -> &Netlink {
        &self.netlink
    }

    /// The networks that were adopted and can be served.
    pub fn adopted(&self) -> impl Iterator<Item = &Network> {
        self.networks.values().filter(|network| self.adopted.contains_key(&network.vni))
    }

    /// An adopted network.
    ///
    /// # Errors
    /// Why it cannot be served.
    pub fn network(&self, vni: Vni) -> Result<&Network, Problem> {
        match self.networks.get(&vni) {
            Some(network) if self.adopted.contains_key(&vni) => Ok(network),
            Some(_) => Err(Problem::NotAdopted(vni)),
            None => Err(self.unable.get(&vni).cloned().unwrap_or(Problem::Unknown(vni))),
        }
    }

    /// Prepares the bridges: each gateway address as a single address, and silent. A bridge that
    /// is prepared already, by a run that was killed, stays as it is, so that a restart does not
    /// interrupt what it serves.
    ///
    /// Returns the networks that failed; the others are done.
    pub async fn adopt(&mut self, vnis: &[Vni]) -> BTreeMap<Vni, Error> {
        let carried = match self.netlink.addresses().await {
            Ok(carried) => carried,
            Err(error) => return all_failed(vnis, error),
        };
        let adopting = vnis.iter().map(|vni| self.adopt_one(*vni, &carried));
        let outcomes = join_all(adopting).await;
        let failed = failures(vnis, outcomes);
        let done = vnis.iter().filter(|vni| !failed.contains_key(vni));
        let done = done.filter_map(|vni| Some((*vni, self.networks.get(vni)?.bridge.index)));
        self.adopted.extend(done);
        failed
    }

    /// Puts back what was found. To be called when the host does nothing for these networks any
    /// more. A bridge that is gone needs nothing.
    ///
    /// Returns the networks that failed; the others are done, and forgotten.
    pub async fn release(&mut self, vnis: &[Vni]) -> BTreeMap<Vni, Error> {
        let carried = match self.netlink.addresses().await {
            Ok(carried) => carried,
            Err(error) => return all_failed(vnis, error),
        };
        let releasing = vnis.iter().map(|vni| self.release_one(*vni, &carried));
        let outcomes = join_all(releasing).await;
        let failed = failures(vnis, outcomes);
        for vni in vnis.iter().filter(|vni| !failed.contains_key(vni)) {
            self.adopted.remove(vni);
            self.found.remove(vni);
        }
        failed
    }

    fn place(&mut self, links: &[Link]) {
        let links: BTreeMap<&str, &Link> =
            links.iter().map(|link| (link.name.as_str(), link)).collect();
        self.networks.clear();
        self.unable.clear();
        for (vni, declared) in &self.wanted {
            let found = self.found.get(vni);
            match examine(*vni, &self.names, declared, found, &links) {
                Ok(network) => drop(self.networks.insert(*vni, network)),
                Err(problem) => drop(self.unable.insert(*vni, problem)),
            }
        }
        // A bridge that was made anew is not prepared, whatever its name.
        let networks = &self.networks;
        let same = |vni: &Vni, index: &u32| {
            networks.get(vni).is_some_and(|network| network.bridge.index == *index)
        };
        self.adopted.retain(|vni, index| same(vni, index));
    }

    fn check_forwarding(&mut self) -> Result<(), Error> {
        let mut stuck = BTreeMap::new();
        for network in self.networks.values() {
            if let Some(problem) = forwarding_problem(network)? {
                stuck.insert(network.vni, problem);
            }
        }
        self.networks.retain(|vni, _| !stuck.contains_key(vni));
        self.unable.extend(stuck);
        Ok(())
    }

    /// A crash between any two of these steps leaves a bridge on which the next survey and
    /// adoption arrive at the same result.
    async fn adopt_one(&self, vni: Vni, carried: &[Address]) -> Result<(), Error> {
        let unable = || self.unable.get(&vni).cloned().unwrap_or(Problem::Unknown(vni));
        let network = self.networks.get(&vni).ok_or_else(unable)?;
        let (bridge, addresses) = (&network.bridge, network.addresses());
        let carried: Vec<Prefix> =
            on_interface(carried, bridge.index, network.ra.link_local).collect();
        if sysctl::effective(&bridge.name, "rp_filter")? == STRICT {
            sysctl::set(Family::V4, &bridge.name, "rp_filter", LOOSE)?;
        }
        if is_prepared(&addresses, &carried) {
            return Ok(());
        }
        sysctl::set(Family::V4, &bridge.name, "arp_ignore", SILENT)?;
        for gateway in network.gateways.iter().filter(|gateway| gateway.addr().is_ipv4()) {
            let host = Prefix::host(gateway.addr());
            self.netlink.add_address(bridge.index, host, AddressOptions::default()).await?;
        }
        for old in carried.iter().filter(|old| is_replaced(old, &addresses)) {
            self.netlink.del_address(bridge.index, *old).await?;
        }
        Ok(())
    }

    async fn release_one(&self, vni: Vni, carried: &[Address]) -> Result<(), Error> {
        let (Some(network), Some(found)) = (self.networks.get(&vni), self.found.get(&vni)) else {
            return Ok(());
        };
        let bridge = &network.bridge;
        let carried: Vec<Prefix> =
            on_interface(carried, bridge.index, network.ra.link_local).collect();
        self.put_back(bridge, found, &carried, &network.addresses()).await?;
        sysctl::set(Family::V4, &bridge.name, "rp_filter", found.rp_filter)?;
        sysctl::set(Family::V4, &bridge.name, "arp_ignore", found.arp_ignore)?;
        Ok(())
    }

    /// What was found goes back before ours goes, so that an IPv4 address is there all the time;
    /// but an IPv6 address cannot be there twice with different lengths.
    async fn put_back(
        &self,
        bridge: &Port,
        found: &Found,
        carried: &[Prefix],
        addresses: &[IpAddr],
    ) -> Result<(), Error> {
        let ours = |held: &&Prefix| {
            held.is_host() && !found.addresses.contains(held) && names(held, addresses)
        };
        let (v4, v6): (Vec<Prefix>, Vec<Prefix>) =
            carried.iter().filter(ours).partition(|held| held.addr().is_ipv4());
        for held in v6 {
            self.netlink.del_address(bridge.index, held).await?;
        }
        for address in &found.addresses {
            self.netlink.add_address(bridge.index, *address, AT_ONCE).await?;
        }
        for held in v4 {
            self.netlink.del_address(bridge.index, held).await?;
        }
        Ok(())
    }
}

/// The global addresses of an interface, and the link-local one that the gateways share.
fn on_interface(
    carried: &[Address],
    index: u32,
    link_local: Ipv6Addr,
) -> impl Iterator<Item = Prefix> {
    let counts =
        move |address: &&Address| address.scope == 0 || address.prefix.addr() == link_local;
    let here = carried.iter().filter(move |address| address.index == index);
    here.filter(counts).map(|address| address.prefix)
}

fn note(
    saved: Option<&Found>,
    vni: Vni,
    bridge: &Link,
    carried: Vec<Prefix>,
) -> Result<Found, Error> {
    if let Some(saved) = saved {
        return Ok(Found { addresses: merged(&saved.addresses, &carried), ..saved.clone() });
    }
    let arp_ignore = sysctl::get(Family::V4, &bridge.name, "arp_ignore")?;
    let rp_filter = sysctl::get(Family::V4, &bridge.name, "rp_filter")?;
    Ok(Found { vni, addresses: carried, arp_ignore, rp_filter, next_hops: Vec::new() })
}

/// What was saved, and what the operator has put there since: only that has a network's length.
fn merged(saved: &[Prefix], carried: &[Prefix]) -> Vec<Prefix> {
    let mut addresses: Vec<Prefix> = carried.iter().filter(|c| !c.is_host()).copied().collect();
    for prefix in saved {
        if !addresses.iter().any(|known| known.addr() == prefix.addr()) {
            addresses.push(*prefix);
        }
    }
    addresses.sort();
    addresses
}

fn examine(
    vni: Vni,
    names: &Names,
    declared: &Declared,
    found: Option<&Found>,
    links: &BTreeMap<&str, &Link>,
) -> Result<Network, Problem> {
    let (bridge, _) = port(links, names.bridge.name(vni), LinkKind::Bridge, "bridge")?;
    let (vxlan, link) = port(links, names.vxlan.name(vni), LinkKind::Vxlan, "VXLAN interface")?;
    if link.master != Some(bridge.index) {
        return Err(Problem::NotAPort { vxlan: vxlan.name, bridge: bridge.name });
    }
    if let Some(tunnel) = link.vxlan.filter(|tunnel| tunnel.vni != vni) {
        return Err(Problem::WrongVni { name: vxlan.name, actual: tunnel.vni, expected: vni });
    }
    let gateways = gateways(declared, found);
    if gateways.is_empty() {
        return Err(Problem::NoAddress { vni, bridge: bridge.name });
    }
    let tunnel = link.vxlan.and_then(|tunnel| tunnel.local);
    let (next_hops, ra) = (declared.next_hops.clone(), declared.ra.clone());
    Ok(Network { vni, bridge, vxlan, tunnel, gateways, next_hops, ra })
}

fn port<'a>(
    links: &BTreeMap<&str, &'a Link>,
    name: String,
    kind: LinkKind,
    expected: &'static str,
) -> Result<(Port, &'a Link), Problem> {
    let Some(link) = links.get(name.as_str()) else { return Err(Problem::NoInterface(name)) };
    match link.mac {
        Some(mac) if link.kind == kind => Ok((Port { index: link.index, name, mac }, link)),
        Some(_) | None => Err(Problem::WrongKind { name, expected }),
    }
}

/// A single address does not tell the network's prefix, and a link-local one is in no network.
fn gateways(declared: &Declared, found: Option<&Found>) -> Vec<Prefix> {
    let carried = found.map_or(&[][..], |found| &found.addresses);
    let source = if declared.addresses.is_empty() { carried } else { &declared.addresses };
    let tells = |address: &&Prefix| !address.is_host() && !is_link_local(address.addr());
    source.iter().filter(tells).copied().collect()
}

const fn is_link_local(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(_) => false,
        IpAddr::V6(addr) => addr.is_unicast_link_local(),
    }
}

fn forwarding_problem(network: &Network) -> Result<Option<Problem>, Error> {
    let families =
        [(Family::V4, "net.ipv4.ip_forward"), (Family::V6, "net.ipv6.conf.all.forwarding")];
    for (family, setting) in families {
        let is_v4 = family == Family::V4;
        let used = network.gateways.iter().any(|gateway| gateway.addr().is_ipv4() == is_v4);
        let interface = &network.bridge.name;
        if !used {
            continue;
        }
        match sysctl::get(family, interface, "forwarding") {
            Ok(0) => {
                return Ok(Some(Problem::NoForwarding { interface: interface.clone(), setting }));
            }
            Ok(_) => {}
            Err(_) if !is_v4 => return Ok(Some(Problem::NoIpv6(interface.clone()))),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

/// Whether the bridge is as adoption leaves it.
fn is_prepared(addresses: &[IpAddr], carried: &[Prefix]) -> bool {
    let v4_present = addresses
        .iter()
        .filter(|addr| addr.is_ipv4())
        .all(|addr| carried.contains(&Prefix::host(*addr)));
    v4_present && !carried.iter().any(|old| !old.is_host() && names(old, addresses))
}

/// Whether adoption takes the address away: one with the network's length, which brings a
/// connected route, and any IPv6 one, as the host must not answer for it yet.
fn is_replaced(old: &Prefix, addresses: &[IpAddr]) -> bool {
    names(old, addresses) && (!old.is_host() || old.addr().is_ipv6())
}

fn names(carried: &Prefix, addresses: &[IpAddr]) -> bool {
    addresses.contains(&carried.addr())
}

fn failures(vnis: &[Vni], outcomes: Vec<Result<(), Error>>) -> BTreeMap<Vni, Error> {
    let pairs = vnis.iter().zip(outcomes);
    pairs.filter_map(|(vni, outcome)| Some((*vni, outcome.err()?))).collect()
}

fn all_failed(vnis: &[Vni], error: netlink::Error) -> BTreeMap<Vni, Error> {
    let error = Arc::new(error);
    vnis.iter().map(|vni| (*vni, Error::Netlink(Arc::clone(&error)))).collect()
}

#[cfg(test)]
mod tests;
