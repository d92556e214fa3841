use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use selvedge_gateway::desired::{Duty, Upstream};
use selvedge_model::{Prefix, Vni};
use serde_json::{Map, Value};

use super::base::{
    Base, Reading, RouteKey, change_routes, for_all, for_each, index_route, index_routes, present,
    read_back,
};
use super::redistributed::{self, Redistributed};
use super::{Driver, Error, Failures, Silencer};
use crate::frr::{self, Vty};
use crate::inventory::{Inventory, Network};
use crate::netlink::{MAIN_TABLE, Netlink, Route, RouteFilter};

/// The protocol number of the routes that FRR redistributes. It must be one that zebra does not
/// take for its own (as it does 186 to 192), so that the routes count as kernel routes.
pub const ROUTE_PROTOCOL: u8 = 83;

/// The metric of these routes: better than 20, which zebra gives to the routes that it installs.
pub const ROUTE_METRIC: u32 = 5;

/// How long bgpd may take for one command: with thousands of networks in its hands it says nothing
/// for seconds, and what is broken off then has to be done again.
const PATIENCE: Duration = Duration::from_secs(6);

/// What [`Frr`] needs to know beside the networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrrConfig {
    /// The folder of FRR's control sockets; see [`frr::DEFAULT_DIR`].
    pub vty_dir: PathBuf,
    /// What the daemons got by `-N`, if anything.
    pub pathspace: Option<String>,
    /// The autonomous system of the BGP instance; `None` takes the default instance.
    pub asn: Option<u32>,
}

/// The driver that works through FRRouting. What an operator configures there is in
/// `docs/frr.md`.
///
/// - *fabric*: `advertise-svi-ip` for the network in bgpd's EVPN configuration, and a local route
///   into the network that neither FRR nor the kernel prefers to any other.
/// - *upstream*: kernel routes of our own, which FRR redistributes: the prefix, and for
///   [`Upstream::Halves`] its two halves too. So going over from halves to the whole takes routes
///   away and never leaves a gap.
/// - *answering*: `arp_ignore` on the bridge; the presence of the address for IPv6.
///
/// A standby has none of these routes and forwards to the owner by what the routing protocol has
/// told it. While a planned move is under way it may have lost its own route and not yet learned
/// the other's; then the local route forwards for as long as *fabric* is on.
///
/// [`Driver::observe`] also looks whether zebra knows the routes, and makes those anew that it has
/// missed.
#[derive(Debug)]
pub struct Frr {
    base: Base,
    bgp: Bgp,
    redistributed: Redistributed,
}

impl Frr {
    /// A driver for the adopted networks of the inventory. It belongs to the network namespace of
    /// the calling thread. FRR is first spoken to when it is needed.
    ///
    /// # Errors
    /// If this process may not open packet sockets.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn new(inventory: Inventory, config: &FrrConfig) -> Result<Self, Error> {
        let vty = |daemon| {
            let vty = Vty::new(&config.vty_dir, config.pathspace.as_deref(), daemon);
            vty.with_patience(PATIENCE)
        };
        let router =
            config.asn.map_or_else(|| "router bgp".into(), |asn| format!("router bgp {asn}"));
        Ok(Self {
            base: Base::new(inventory, None)?,
            bgp: Bgp { bgpd: vty("bgpd"), router },
            redistributed: Redistributed::new(vty("zebra")),
        })
    }

    /// The networks, to adopt or release some.
    pub const fn inventory(&mut self) -> &mut Inventory {
        &mut self.base.inventory
    }

    const fn netlink(&self) -> &Netlink {
        self.base.netlink()
    }

    /// Makes those routes anew that zebra has missed, so that the kernel tells it of them again,
    /// and removes again what it has not seen go. The local route forwards meanwhile.
    async fn tell_zebra_again(&mut self, present: &BTreeSet<RouteKey>, now: Instant) {
        if !self.redistributed.is_due(now) {
            return;
        }
        let all: BTreeMap<redistributed::Key, Route> = self
            .base
            .inventory
            .adopted()
            .flat_map(|network| strip(routes(network)))
            .filter_map(|route| Some(((route.dst, route.oif?), route)))
            .collect();
        let is_there = |route| present.contains(&index_route(route));
        let there = all.iter().map(|(key, route)| (*key, is_there(route))).collect();
        let missed = match self.redistributed.missed(&there, now).await {
            Ok(missed) if missed.is_empty() => return,
            Ok(missed) => missed,
            Err(error) => {
                tracing::warn!(%error, "zebra does not tell which routes it knows");
                return;
            }
        };
        let example = missed[0].0;
        tracing::warn!(
            count = missed.len(),
            %example,
            "zebra has missed changes of routes; telling it again (see `selvedge gateway check`)"
        );
        let (kept, gone): (Vec<_>, Vec<_>) = missed.iter().partition(|key| there[key]);
        let of = |keys: Vec<redistributed::Key>| keys.iter().map(|key| all[key]).collect();
        let (kept, gone): (Vec<Route>, Vec<Route>) = (of(kept), of(gone));
        let reversed = |routes: &[Route]| routes.iter().rev().copied().collect();
        let netlink = self.netlink();
        // As in `attract`: the whole comes before its halves and goes after them. All is on its way
        // before the first answer is waited for, so that nobody who breaks this off leaves a gap.
        let (del, add, put, take) = tokio::join!(
            change_routes(netlink, reversed(&kept), false),
            change_routes(netlink, kept.clone(), true),
            change_routes(netlink, gone.clone(), true),
            change_routes(netlink, reversed(&gone), false),
        );
        for error in [del, add, put, take].into_iter().filter_map(Result::err) {
            tracing::warn!(%error, "a route cannot be made anew");
        }
    }
}

/// The BGP instance that knows the networks.
#[derive(Debug)]
struct Bgp {
    bgpd: Vty,
    /// The command that leads to its configuration.
    router: String,
}

impl Bgp {
    /// As [`tell`](Self::tell); if bgpd cannot be reached, all networks fail.
    async fn advertise(&mut self, networks: &[Network], on: bool) -> Failures {
        let told = self.tell(networks, on).await;
        told.unwrap_or_else(|error| for_all(networks, error))
    }

    /// Tells bgpd what it does not do yet. Nothing is sent if nothing changes, so that a network
    /// which bgpd has never heard of gets no entry in its configuration by being withdrawn.
    async fn tell(&mut self, networks: &[Network], on: bool) -> Result<Failures, frr::Error> {
        let present = self.advertised().await?;
        let differing: Vec<&Network> = networks
            .iter()
            .filter(|network| present.get(&network.vni).is_some_and(|evpn| evpn.enabled) != on)
            .collect();
        if differing.is_empty() {
            return Ok(Failures::new());
        }
        let no = if on { "" } else { "no " };
        let commands: Vec<[String; 2]> = differing
            .iter()
            .map(|network| [format!("vni {}", network.vni), format!("{no}advertise-svi-ip")])
            .collect();
        let context = [self.router.as_str(), "address-family l2vpn evpn"];
        let refused = self.bgpd.configure(&context, &commands).await?;
        Ok(refused.into_iter().map(|(at, error)| (differing[at].vni, error.into())).collect())
    }

    /// What bgpd says of each network.
    async fn advertised(&mut self) -> Result<BTreeMap<Vni, Evpn>, frr::Error> {
        let answer: Map<String, Value> = self.bgpd.query("show bgp l2vpn evpn vni json").await?;
        Ok(answer
            .iter()
            .filter_map(|(key, value)| Some((key.parse().ok()?, evpn(value)?)))
            .collect())
    }
}

/// Has exactly the routes that attract traffic in this way.
async fn attract(netlink: &Netlink, networks: &[Network], to: Upstream) -> Failures {
    for_each(networks, |network| async move {
        let (kept, mut gone): (Vec<_>, Vec<_>) =
            routes(network).into_iter().partition(|(_, least)| *least <= to);
        // The whole comes before its halves and goes after them. So there is no gap; and the
        // lower half, which has the same network address, never gets the link state id of
        // the whole (RFC 2328, appendix E): ospfd keeps advertising such a half for ever,
        // if the whole comes back while the half's withdrawal still lingers.
        gone.reverse();
        change_routes(netlink, strip(kept), true).await?;
        change_routes(netlink, strip(gone), false).await
    })
    .await
}

#[async_trait]
impl Driver for Frr {
    /// On: the local route, then bgpd. Off: the other way round. If bgpd cannot be reached, all
    /// networks fail, and what the kernel needs is done all the same.
    async fn fabric(&mut self, vnis: &[Vni], on: bool) -> Failures {
        let (networks, mut failures) = self.base.select(vnis);
        self.base.tell(&networks, |duty| duty.fabric = on);
        if on {
            failures.extend(self.base.local_routes(&networks, true).await);
        }
        failures.extend(self.bgp.advertise(&networks, on).await);
        if !on {
            failures.extend(self.base.local_routes(&networks, false).await);
        }
        failures
    }

    async fn upstream(&mut self, vnis: &[Vni], to: Upstream) -> Failures {
        let (networks, mut failures) = self.base.select(vnis);
        self.base.tell(&networks, |duty| duty.upstream = to);
        failures.extend(attract(self.netlink(), &networks, to).await);
        failures
    }

    async fn answering(&mut self, vnis: &[Vni], on: bool) -> Failures {
        self.base.answering(vnis, on).await
    }

    /// bgpd, which takes the longest, is told while the kernel is.
    async fn take_over(&mut self, vnis: &[Vni], to: Upstream) -> Failures {
        let (networks, mut failures) = self.base.select(vnis);
        self.base.tell(&networks, |duty| {
            *duty = Duty { fabric: true, upstream: to, answering: true };
        });
        let Self { base, bgp, .. } = self;
        let (local, advertised, attracted, answered) = tokio::join!(
            base.local_routes(&networks, true),
            bgp.advertise(&networks, true),
            attract(base.netlink(), &networks, to),
            base.answer(&networks, true),
        );
        failures.extend([local, advertised, attracted, answered].into_iter().flatten());
        failures
    }

    async fn announce(&mut self, vnis: &[Vni]) -> Failures {
        let (networks, mut failures) = self.base.select_anew(vnis).await;
        failures.extend(self.base.announce(&networks, |_| Vec::new()).await);
        failures
    }

    /// A bgpd that cannot be asked advertises nothing.
    async fn observe(&mut self) -> Result<BTreeMap<Vni, Duty>, Error> {
        let reading = self.base.read().await?;
        let filter = RouteFilter { protocol: Some(ROUTE_PROTOCOL), table: Some(MAIN_TABLE) };
        let routes = index_routes(&self.netlink().routes(filter).await?);
        self.tell_zebra_again(&routes, Instant::now()).await;
        let advertised = self.bgp.advertised().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "bgpd does not tell what it advertises");
            BTreeMap::new()
        });
        let networks = self.base.inventory.adopted();
        let observed = networks.map(|network| {
            let evpn = advertised.get(&network.vni).copied().unwrap_or_default();
            let told = self.base.told(network.vni);
            Ok((network.vni, duty(network, told, &reading, &routes, evpn)?))
        });
        let observed = observed.collect::<Result<_, Error>>()?;
        self.base.advertise_as_observed(&observed);
        Ok(observed)
    }

    fn silencer(&self) -> Option<Silencer> {
        Some(self.base.silencer().clone())
    }
}

/// What bgpd says of a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Evpn {
    /// It knows the network from the kernel, without which it advertises nothing.
    in_kernel: bool,
    /// It is told to advertise the gateway.
    enabled: bool,
}

/// The answer also holds numbers and flags beside the networks.
fn evpn(value: &Value) -> Option<Evpn> {
    let network = value.as_object()?;
    let is = |key: &str, word: &str| network.get(key).and_then(Value::as_str) == Some(word);
    Some(Evpn { in_kernel: is("inKernel", "True"), enabled: is("advertiseSviMacIp", "Enabled") })
}

fn duty(
    network: &Network,
    told: Duty,
    reading: &Reading,
    there: &BTreeSet<RouteKey>,
    evpn: Evpn,
) -> Result<Duty, Error> {
    let mut fabric = reading.local_routes(network);
    // Told to advertise what the kernel does not have is neither on nor off.
    fabric.extend([evpn.enabled, evpn.enabled && evpn.in_kernel]);
    Ok(Duty {
        fabric: read_back(&fabric, told.fabric),
        upstream: observed_upstream(network, told.upstream, there),
        answering: read_back(&reading.answering(network)?, told.answering),
    })
}

/// Exactly the routes of one of the three ways, or else one that was not told.
fn observed_upstream(network: &Network, told: Upstream, there: &BTreeSet<RouteKey>) -> Upstream {
    let all = routes(network);
    let is = |way: Upstream| {
        let there = present(there, &strip(all.clone()));
        all.iter().zip(there).all(|((_, least), there)| there == (*least <= way))
    };
    let ways = [told, Upstream::Off, Upstream::Whole, Upstream::Halves];
    let exact = ways.into_iter().find(|way| is(*way));
    exact.unwrap_or(if told == Upstream::Whole { Upstream::Halves } else { Upstream::Whole })
}

/// All routes that the network may have, each with the least that it takes to have it.
fn routes(network: &Network) -> Vec<(Route, Upstream)> {
    let mut routes = Vec::new();
    for whole in network.gateways.iter().map(Prefix::network) {
        let halves = whole.halves().into_iter().flatten();
        routes.push((route(network, whole), Upstream::Whole));
        routes.extend(halves.map(|half| (route(network, half), Upstream::Halves)));
    }
    routes
}

fn route(network: &Network, dst: Prefix) -> Route {
    Route { metric: ROUTE_METRIC, ..Route::on_link(dst, network.bridge.index, ROUTE_PROTOCOL) }
}

fn strip(routes: Vec<(Route, Upstream)>) -> Vec<Route> {
    routes.into_iter().map(|(route, _)| route).collect()
}

#[cfg(test)]
mod tests;
