//! Builds a campus: what an operator would configure, host by host.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};

use super::address::{AccessPoint, Family, Gateway as Address, Network, Switch, Upstream};
use super::room::Room;
use super::{Campus, EtcdPlace, Flavour, Gateway, Plan, Site, Witness, routing};
use crate::etcd::Etcd;
use crate::frr::Frr;
use crate::link::{Port, Segment};
use crate::{Error, Host, Lab};

/// See [`Campus::build`].
pub(super) fn build(lab: Lab, plan: Plan) -> Result<Campus, Error> {
    let room = Room::make(plan.networks * (plan.gateways + 2))?;
    let switch = lab.host("switch")?;
    let segments = Segments::create(&switch)?;
    let (Site { access_point, station }, port) = build_site(&lab, &segments, plan, Place::First)?;
    let other = match plan.flavour {
        Flavour::Mesh => Some(build_site(&lab, &segments, plan, Place::Other)?),
        Flavour::Flood | Flavour::Frr => None,
    };
    let (other_site, other_port) = other.unzip();
    let upstream = build_upstream(&lab, &segments, plan)?;
    let numbers = 1..=u8::try_from(plan.gateways).unwrap_or(u8::MAX);
    let gateways = numbers.map(|number| build_gateway(&lab, &segments, plan, number));
    let gateways = gateways.collect::<Result<Vec<_>, _>>()?;
    let witness = match plan.etcd {
        EtcdPlace::Witness => Some(build_witness(&lab, &segments)?),
        EtcdPlace::Absent
        | EtcdPlace::Gateways
        | EtcdPlace::Management
        | EtcdPlace::Switch
        | EtcdPlace::Apart(_) => None,
    };
    let members = etcd_members(&lab, &segments, plan, &gateways, witness.as_ref())?;
    let etcd = if members.is_empty() { None } else { Some(Etcd::start(&members)?) };
    let others = match plan.flavour {
        Flavour::Flood | Flavour::Mesh => Vec::new(),
        Flavour::Frr => vec![
            Frr::start(&access_point, &routing::access_point(plan))?,
            Frr::start(&upstream, &routing::upstream(plan))?,
        ],
    };
    let gateway_ports = gateways.iter().map(|gateway| gateway.fabric.clone());
    let underlay = gateway_ports.chain([port]).chain(other_port).collect();
    Ok(Campus {
        plan,
        etcd,
        gateways,
        witness,
        access_point,
        station,
        other_site,
        underlay,
        upstream,
        switch,
        others,
        room,
        lab,
    })
}

struct Segments {
    fabric: Segment,
    uplink: Segment,
    management: Segment,
}

impl Segments {
    fn create(switch: &Host) -> Result<Self, Error> {
        let segments = Self {
            fabric: Segment::create(switch, "fabric")?,
            uplink: Segment::create(switch, "uplink")?,
            management: Segment::create(switch, "mgmt")?,
        };
        switch.ip(&format!("address add {}/16 dev mgmt\n", Switch::MANAGEMENT))?;
        Ok(segments)
    }
}

/// Which of the two sites.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    First,
    Other,
}

impl Place {
    const fn hosts(self) -> [&'static str; 2] {
        match self {
            Self::First => ["ap", "station"],
            Self::Other => ["ap2", "station2"],
        }
    }

    const fn endpoint(self) -> Ipv4Addr {
        match self {
            Self::First => AccessPoint::FABRIC,
            Self::Other => AccessPoint::OTHER,
        }
    }

    fn station(self, network: Network, family: Family) -> IpAddr {
        match self {
            Self::First => network.station(family),
            Self::Other => network.other_station(family),
        }
    }
}

/// A site, and the port of the fabric that its access point is plugged into.
fn build_site(
    lab: &Lab,
    segments: &Segments,
    plan: Plan,
    place: Place,
) -> Result<(Site, Port), Error> {
    let (access_point, port) = build_access_point(lab, segments, plan, place)?;
    let station = build_station(lab, &access_point, plan, place)?;
    if plan.flavour == Flavour::Mesh {
        // The interface of the mesh needs it, and is made by the agent.
        access_point.sysctl(&without_ipv6(false))?;
    }
    Ok((Site { access_point, station }, port))
}

fn build_access_point(
    lab: &Lab,
    segments: &Segments,
    plan: Plan,
    place: Place,
) -> Result<(Host, Port), Error> {
    let [name, _] = place.hosts();
    let host = lab.host(name)?;
    // It is no station of the networks that it carries: what a gateway advertises there is not for
    // it, or its own packets would go that way.
    host.sysctl(&[("ipv6/conf/default/accept_ra".to_owned(), "0")])?;
    let port = segments.fabric.plug(&host, "fab0")?;
    let mut lines = format!("address add {}/16 dev fab0\n", place.endpoint());
    for network in networks(plan) {
        bridge(&mut lines, network, "");
    }
    host.ip(&lines)?;
    // Its bridges have IPv6 to ask who answers; the ports that they get never need it.
    host.sysctl(&without_ipv6(true))?;
    lines.clear();
    for network in networks(plan) {
        overlay(&mut lines, network, place.endpoint().into(), plan.flavour);
    }
    host.ip(&lines)?;
    match plan.flavour {
        Flavour::Mesh => {}
        Flavour::Flood => host.bridge(&flooding_lists(plan))?,
        Flavour::Frr => host.bridge(&no_learning(plan))?,
    }
    Ok((host, port))
}

/// One host stands for a station in every network: an interface each, by which the sockets of
/// the streams are bound, and a route each.
fn build_station(lab: &Lab, access_point: &Host, plan: Plan, place: Place) -> Result<Host, Error> {
    let [_, name] = place.hosts();
    let host = lab.host(name)?;
    host.sysctl(&end_host())?;
    let (mut cables, mut addresses) = (String::new(), String::new());
    for network in networks(plan) {
        let (name, bridge, vni) = (network.station_interface(), network.bridge(), network.vni());
        let peer = host.namespace().name();
        put(&mut cables, format_args!("link add p{vni} type veth peer name {name} netns {peer}"));
        put(&mut cables, format_args!("link set p{vni} master {bridge} up"));
        put(&mut addresses, format_args!("link set {name} up"));
        for family in Family::ALL {
            let gateway = network.gateway(family);
            let (station, length, dad) =
                (place.station(network, family), gateway.len(), nodad(family));
            put(&mut addresses, format_args!("address add {station}/{length} dev {name}{dad}"));
            let (service, via) = (Upstream::service(network, family), gateway.addr());
            put(&mut addresses, format_args!("route add {service} via {via} dev {name}"));
        }
    }
    access_point.ip(&cables)?;
    host.ip(&addresses)?;
    Ok(host)
}

fn build_upstream(lab: &Lab, segments: &Segments, plan: Plan) -> Result<Host, Error> {
    let host = lab.host("upstream")?;
    host.sysctl(&router())?;
    // Its services are addresses that are routed to it, not its own one by one.
    host.sysctl(&[("ipv6/ip_nonlocal_bind".to_owned(), "1")])?;
    segments.uplink.plug(&host, "up0")?;
    let mut lines = String::new();
    for family in Family::ALL {
        let (uplink, services) = (Upstream::uplink(family), Upstream::services(family));
        let (length, dad) = (on_segment(family), nodad(family));
        put(&mut lines, format_args!("address add {uplink}/{length} dev up0{dad}"));
        put(&mut lines, format_args!("route add local {services} dev lo"));
        if plan.flavour != Flavour::Frr {
            for network in networks(plan) {
                let (prefix, via) = (network.prefix(family), network.next_hop(family));
                put(&mut lines, format_args!("route add {prefix} via {via} dev up0"));
            }
        }
    }
    host.ip(&lines)?;
    Ok(host)
}

fn build_gateway(lab: &Lab, segments: &Segments, plan: Plan, number: u8) -> Result<Gateway, Error> {
    let host = lab.host(&format!("gw{number}"))?;
    let address = Address::new(number);
    host.sysctl(&router())?;
    let fabric = segments.fabric.plug(&host, "fab0")?;
    let uplink = segments.uplink.plug(&host, "up0")?;
    let management = segments.management.plug(&host, "mgmt0")?;
    host.ip(&underlay_lines(address))?;
    build_overlays(&host, address, plan)?;
    let mut frr = None;
    if plan.flavour == Flavour::Frr {
        frr = Some(Frr::start(&host, &routing::gateway(plan, address))?);
    }
    Ok(Gateway { host, address, frr, fabric, uplink, management })
}

/// The bridges of all networks, as a gateway has them when it has booted.
fn build_overlays(host: &Host, address: Address, plan: Plan) -> Result<(), Error> {
    host.ip(&bridge_lines(address, plan))?;
    host.sysctl(&without_ipv6(true))?;
    host.ip(&overlay_lines(address, plan))?;
    host.sysctl(&without_ipv6(false))?;
    host.sysctl(&silent_bridges(plan))?;
    host.ip(&bridge_addresses(plan))?;
    match plan.flavour {
        Flavour::Frr => host.bridge(&no_learning(plan)),
        Flavour::Flood | Flavour::Mesh => Ok(()),
    }
}

/// What a gateway's kernel knew of its networks is lost, and made anew as at its boot.
pub(super) fn rebuild_overlays(gateway: &Gateway, plan: Plan) -> Result<(), Error> {
    let host = &gateway.host;
    host.sh("nft", &["flush", "ruleset"])?;
    let bridge = |it: Network| format!("link del {}\n", it.bridge());
    host.ip(&networks(plan).map(bridge).collect::<String>())?;
    // Those of an agent are gone with it.
    if plan.flavour != Flavour::Mesh {
        let tunnel = |it: Network| format!("link del {}\n", it.vxlan());
        host.ip(&networks(plan).map(tunnel).collect::<String>())?;
    }
    build_overlays(host, gateway.address, plan)
}

fn underlay_lines(address: Address) -> String {
    let mut lines = format!("address add {}/16 dev mgmt0\n", address.management());
    for family in Family::ALL {
        let (fabric, uplink) = (address.fabric(family), address.uplink(family));
        let (length, dad, via) = (on_segment(family), nodad(family), Upstream::uplink(family));
        put(&mut lines, format_args!("address add {fabric}/{length} dev fab0{dad}"));
        put(&mut lines, format_args!("address add {uplink}/{length} dev up0{dad}"));
        put(&mut lines, format_args!("route add default via {via} dev up0"));
    }
    lines
}

fn bridge_lines(address: Address, plan: Plan) -> String {
    let mut lines = String::new();
    for network in networks(plan) {
        bridge(&mut lines, network, &format!(" address {}", address.bridge_mac(network)));
    }
    lines
}

fn overlay_lines(address: Address, plan: Plan) -> String {
    let mut lines = String::new();
    for network in networks(plan) {
        overlay(&mut lines, network, address.fabric(Family::V4), plan.flavour);
    }
    lines
}

/// Bridges do not answer ARP until an agent says so: all gateways have the same address there.
fn silent_bridges(plan: Plan) -> Vec<(String, &'static str)> {
    networks(plan).map(|it| (format!("ipv4/conf/{}/arp_ignore", it.bridge()), "8")).collect()
}

/// The gateway's IPv4 address on each bridge. IPv6 has no switch like `arp_ignore`: an address
/// there would answer, so that only the agent's configuration names it.
fn bridge_addresses(plan: Plan) -> String {
    let line =
        |it: Network| format!("address add {} dev {}\n", it.gateway(Family::V4), it.bridge());
    networks(plan).map(line).collect()
}

/// `vxlan<i>` in `br<i>`, and both up. Over a mesh it is the agent that makes the former.
fn overlay(lines: &mut String, network: Network, local: IpAddr, flavour: Flavour) {
    let (bridge, vxlan, vni) = (network.bridge(), network.vxlan(), network.vni());
    put(lines, format_args!("link set {bridge} up"));
    let learning = match flavour {
        Flavour::Flood => "learning",
        Flavour::Frr => "nolearning",
        Flavour::Mesh => return,
    };
    put(
        lines,
        format_args!(
            "link add {vxlan} mtu 1500 type vxlan id {vni} local {local} dstport 4789 {learning}"
        ),
    );
    put(lines, format_args!("link set {vxlan} master {bridge} up"));
}

fn bridge(lines: &mut String, network: Network, mac: &str) {
    let bridge = network.bridge();
    put(
        lines,
        format_args!(
            "link add {bridge}{mac} mtu 1500 type bridge stp_state 0 forward_delay 0 \
             mcast_snooping 0"
        ),
    );
}

/// Interfaces that are made from now on have no IPv6 of their own. Each that has some is one route
/// more that the kernel goes through, one by one, for every multicast packet that it receives.
fn without_ipv6(on: bool) -> [(String, &'static str); 1] {
    [("ipv6/conf/default/disable_ipv6".to_owned(), if on { "1" } else { "0" })]
}

/// The access point floods what it does not know to every gateway.
fn flooding_lists(plan: Plan) -> String {
    let mut lines = String::new();
    for network in networks(plan) {
        for number in 1..=u8::try_from(plan.gateways).unwrap_or(u8::MAX) {
            let (vxlan, to) = (network.vxlan(), Address::new(number).fabric(Family::V4));
            put(&mut lines, format_args!("fdb append 00:00:00:00:00:00 dev {vxlan} dst {to}"));
        }
    }
    lines
}

/// With EVPN it is zebra who says behind which tunnel endpoint a MAC address is.
fn no_learning(plan: Plan) -> String {
    networks(plan).map(|it| format!("link set dev {} learning off\n", it.vxlan())).collect()
}

/// Linked like a gateway, and with the addresses of one.
fn build_witness(lab: &Lab, segments: &Segments) -> Result<Witness, Error> {
    let (host, address) = (lab.host("witness")?, Address::WITNESS);
    for (segment, interface) in
        [(&segments.fabric, "fab0"), (&segments.uplink, "up0"), (&segments.management, "mgmt0")]
    {
        segment.plug(&host, interface)?;
    }
    host.ip(&underlay_lines(address))?;
    Ok(Witness { host, address })
}

/// The hosts with a member of etcd and the addresses there; those that are only for it are made.
fn etcd_members(
    lab: &Lab,
    segments: &Segments,
    plan: Plan,
    gateways: &[Gateway],
    witness: Option<&Witness>,
) -> Result<Vec<(Host, IpAddr)>, Error> {
    let on_gateway = |it: &Gateway| (it.host.clone(), it.address.fabric(Family::V4));
    let by_management = |it: &Gateway| (it.host.clone(), it.address.management().into());
    let on_witness = |it: &Witness| (it.host.clone(), it.address.fabric(Family::V4));
    let few = if gateways.len() < 3 { 1 } else { 3 };
    let first = |count| gateways.iter().take(count).map(on_gateway);
    match plan.etcd {
        EtcdPlace::Absent => Ok(Vec::new()),
        EtcdPlace::Switch => {
            Ok(vec![(segments.fabric.switch().clone(), Switch::MANAGEMENT.into())])
        }
        EtcdPlace::Gateways => Ok(first(few).collect()),
        EtcdPlace::Management => Ok(gateways.iter().take(few).map(by_management).collect()),
        EtcdPlace::Witness => Ok(first(2).chain(witness.map(on_witness)).collect()),
        EtcdPlace::Apart(count) => (1..=count).map(|it| build_store(lab, segments, it)).collect(),
    }
}

fn build_store(lab: &Lab, segments: &Segments, number: u8) -> Result<(Host, IpAddr), Error> {
    let (host, address) = (lab.host(&format!("store{number}"))?, Address::store(number));
    segments.fabric.plug(&host, "fab0")?;
    host.ip(&format!("address add {address}/16 dev fab0\n"))?;
    Ok((host, address.into()))
}

fn networks(plan: Plan) -> impl Iterator<Item = Network> {
    (1..=plan.networks).filter_map(Network::new)
}

fn end_host() -> Vec<(String, &'static str)> {
    let mut settings = Vec::new();
    for scope in ["all", "default"] {
        settings.push((format!("ipv4/conf/{scope}/rp_filter"), "0"));
        settings.push((format!("ipv4/conf/{scope}/accept_redirects"), "0"));
        // The networks share nothing, so that an interface answers for its own address only.
        settings.push((format!("ipv4/conf/{scope}/arp_ignore"), "1"));
        settings.push((format!("ipv4/conf/{scope}/arp_announce"), "2"));
        settings.push((format!("ipv6/conf/{scope}/accept_dad"), "0"));
        settings.push((format!("ipv6/conf/{scope}/accept_redirects"), "0"));
    }
    settings
}

fn router() -> Vec<(String, &'static str)> {
    let mut settings = vec![("ipv4/ip_forward".to_owned(), "1")];
    for scope in ["all", "default"] {
        settings.push((format!("ipv4/conf/{scope}/rp_filter"), "0"));
        // A standby sends what reaches it back where it came from; that is no mistake.
        settings.push((format!("ipv4/conf/{scope}/send_redirects"), "0"));
        settings.push((format!("ipv4/conf/{scope}/accept_redirects"), "0"));
        settings.push((format!("ipv6/conf/{scope}/forwarding"), "1"));
        settings.push((format!("ipv6/conf/{scope}/accept_dad"), "0"));
    }
    settings
}

fn nodad(family: Family) -> &'static str {
    match family {
        Family::V4 => "",
        Family::V6 => " nodad",
    }
}

fn on_segment(family: Family) -> u8 {
    match family {
        Family::V4 => 16,
        Family::V6 => 64,
    }
}

fn put(lines: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(lines, "{line}").expect("a string grows");
}
