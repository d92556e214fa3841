//! What the kernel's and FRR's answers say about each check. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use selvedge_gateway::desired::Upstream;
use serde_json::Value;

use super::judge::{Look, Subject};
use super::{Check, Served};
use crate::fabric::ROUTE_METRIC;
use crate::inventory::Names;
use crate::netlink::{Address, Link, LinkKind, MAIN_TABLE, Route};

/// Interfaces by their numbers.
pub(super) type Links = BTreeMap<u32, Link>;

/// One of the interfaces has to have a carrier.
pub(super) fn carrier(names: &BTreeSet<String>, links: &Links) -> Result<bool, String> {
    let by_name = by_name(links);
    let faults: Vec<String> =
        names.iter().filter_map(|name| fault(name, by_name.get(name.as_str()).copied())).collect();
    let well = faults.len() < names.len() || names.is_empty();
    if well { Ok(true) } else { Err(faults.join(", ")) }
}

/// What is wrong with an interface.
fn fault(name: &str, link: Option<&Link>) -> Option<String> {
    match link {
        None => Some(format!("there is no interface {name}")),
        Some(link) if !link.up => Some(format!("{name} is down")),
        Some(link) if !link.carrier => Some(format!("{name} has no carrier")),
        Some(_) => None,
    }
}

/// Bridge and VXLAN interface of every network that is served are there, up, and joined.
pub(super) fn bridges(served: &Served, names: &Names, links: &Links) -> Look {
    let by_name = by_name(links);
    let mut look = Look::new(Check::Bridge, "networks");
    for vni in served.iter().filter(|(_, duty)| duty.answering).map(|(vni, _)| *vni) {
        let (bridge, vxlan) = (names.bridge.name(vni), names.vxlan.name(vni));
        let find = |name: &str| by_name.get(name).copied();
        let joined = || match (find(&bridge), find(&vxlan)) {
            (Some(upper), Some(port)) if port.master != Some(upper.index) => {
                Some(format!("{vxlan} is not a port of {bridge}"))
            }
            (_, _) => None,
        };
        let down = |name: &str| fault(name, find(name));
        let wrong = down(&bridge).or_else(|| down(&vxlan)).or_else(joined);
        look.wrong.extend(wrong.map(|text| (Subject::Network(vni), text)));
    }
    look
}

/// Every network that attracts traffic from upstream has a route of ours into its bridge.
pub(super) fn routes(served: &Served, names: &Names, links: &Links, ours: &[Route]) -> Look {
    let is_ours = |route: &&Route| route.metric == ROUTE_METRIC && route.table == MAIN_TABLE;
    let routed: BTreeSet<u32> = ours.iter().filter(is_ours).filter_map(|route| route.oif).collect();
    let by_name = by_name(links);
    let mut look = Look::new(Check::Route, "networks");
    for (vni, _) in served.iter().filter(|(_, duty)| duty.upstream != Upstream::Off) {
        let bridge = names.bridge.name(*vni);
        let present = by_name.get(bridge.as_str()).is_some_and(|link| routed.contains(&link.index));
        if !present {
            let text = format!("the kernel has no route of ours into {bridge}");
            look.wrong.insert(Subject::Network(*vni), text);
        }
    }
    look
}

/// What bgpd answers to `show bgp l2vpn evpn vni json`, or why it does not.
pub(super) fn adverts(served: &Served, answer: &Result<Value, String>) -> Look {
    let mut look = Look::new(Check::Advert, "networks");
    for (vni, _) in served.iter().filter(|(_, duty)| duty.fabric) {
        let wrong = match answer {
            Ok(all) => advert(&all[vni.to_string()]).map(ToOwned::to_owned),
            Err(error) => Some(error.clone()),
        };
        look.wrong.extend(wrong.map(|text| (Subject::Network(*vni), text)));
    }
    look
}

fn advert(network: &Value) -> Option<&'static str> {
    let is = |key: &str, word: &str| network[key].as_str() == Some(word);
    match (is("inKernel", "True"), is("advertiseSviMacIp", "Enabled")) {
        (true, true) => None,
        (false, _) => Some("bgpd does not know the network from the kernel"),
        (true, false) => Some("bgpd does not advertise the gateway"),
    }
}

/// What a routing daemon says of its neighbours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Neighbours {
    /// Whether it should have any.
    pub(super) expected: bool,
    /// How many there are that work.
    pub(super) working: usize,
    /// The interfaces of these.
    pub(super) interfaces: BTreeSet<String>,
}

/// `show bgp l2vpn evpn summary json`.
pub(super) fn bgp(summary: &Value) -> Neighbours {
    let peers = summary["peers"].as_object();
    let established = |peer: &&Value| peer["state"].as_str() == Some("Established");
    Neighbours {
        expected: peers.is_some_and(|peers| !peers.is_empty()),
        working: peers.map_or(0, |peers| peers.values().filter(established).count()),
        interfaces: BTreeSet::new(),
    }
}

/// `show ip ospf neighbor json` (a list by router) or `show ipv6 ospf6 neighbor json` (a list).
/// Whether there should be neighbours is not to be seen from that.
pub(super) fn ospf(neighbours: &Value) -> Neighbours {
    let all: Vec<&Value> = match &neighbours["neighbors"] {
        Value::Array(list) => list.iter().collect(),
        Value::Object(routers) => routers.values().filter_map(Value::as_array).flatten().collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    };
    let full: Vec<&Value> = all.into_iter().filter(|neighbour| is_full(neighbour)).collect();
    let interfaces = full.iter().filter_map(|neighbour| interface(neighbour)).collect();
    Neighbours { expected: false, working: full.len(), interfaces }
}

/// `Full/DR` for ospfd up to 8, `nbrState` since; `Full` for ospf6d.
fn is_full(neighbour: &Value) -> bool {
    let state = neighbour["nbrState"].as_str().or_else(|| neighbour["state"].as_str());
    state.is_some_and(|state| state.starts_with("Full"))
}

/// `up0:192.0.2.1` for ospfd, `up0` for ospf6d.
fn interface(neighbour: &Value) -> Option<String> {
    let name = neighbour["ifaceName"].as_str().or_else(|| neighbour["interfaceName"].as_str())?;
    Some(name.split(':').next().unwrap_or(name).to_owned())
}

/// Whether ospfd (`show ip ospf interface json`) or ospf6d (`show ipv6 ospf6 interface json`) is
/// active on an interface that is up.
pub(super) fn is_active(interfaces: &Value) -> bool {
    let all = interfaces.get("interfaces").unwrap_or(interfaces).as_object();
    all.is_some_and(|all| all.values().any(is_active_on))
}

fn is_active_on(interface: &Value) -> bool {
    let is = |key: &str| interface[key].as_bool() == Some(true);
    let speaks = is("ospfEnabled") || is("attachedToArea");
    let kind = interface["type"].as_str().or_else(|| interface["ospfIfType"].as_str());
    let loopback = kind.is_some_and(|kind| kind.eq_ignore_ascii_case("loopback"));
    speaks && !is("timerPassiveIface") && !loopback
}

/// The interfaces that carry the tunnels' own addresses; none if that is the loopback. `None` if
/// there is no such address.
pub(super) fn fabric_interfaces(links: &Links, addresses: &[Address]) -> Option<BTreeSet<String>> {
    let local = |link: &Link| link.vxlan.and_then(|vxlan| vxlan.local);
    let tunnels: BTreeSet<IpAddr> = links.values().filter_map(local).collect();
    let carries = |address: &&Address| tunnels.contains(&address.prefix.addr());
    let carriers = addresses.iter().filter(carries).filter_map(|it| links.get(&it.index));
    let names: BTreeSet<String> = carriers.map(|link| link.name.clone()).collect();
    (!names.is_empty()).then(|| names.into_iter().filter(|name| name != "lo").collect())
}

/// The interfaces of the default routes that a routing daemon has learned.
pub(super) fn default_interfaces(links: &Links, routes: &[Route]) -> BTreeSet<String> {
    let learned = |route: &&Route| {
        let by_a_daemon = route.protocol == ZEBRA || DAEMONS.contains(&route.protocol);
        route.dst.len() == 0 && route.table == MAIN_TABLE && by_a_daemon
    };
    let outgoing = routes.iter().filter(learned).filter_map(|route| links.get(&route.oif?));
    let physical = outgoing.filter(|link| !matches!(link.kind, LinkKind::Bridge | LinkKind::Vxlan));
    physical.map(|link| link.name.clone()).collect()
}

/// `RTPROT_ZEBRA`, and `RTPROT_BGP` to `RTPROT_EIGRP`.
const ZEBRA: u8 = 11;
const DAEMONS: std::ops::RangeInclusive<u8> = 186..=192;

fn by_name(links: &Links) -> BTreeMap<&str, &Link> {
    links.values().map(|link| (link.name.as_str(), link)).collect()
}

#[cfg(test)]
mod tests;
