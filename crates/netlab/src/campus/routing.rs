//! What FRRouting is configured with in a campus: iBGP EVPN as a full mesh on the fabric, OSPF
//! area 0 on the uplink.

use std::net::IpAddr;

use super::Plan;
use super::address::{AccessPoint, Family, Gateway, Upstream};
use crate::frr::Daemon;

/// The AS number of all BGP speakers.
const AS: u32 = 65_000;

/// A gateway: of the kernel's routes only those to overlay networks are redistributed.
pub(super) fn gateway(plan: Plan, own: Gateway) -> Vec<(Daemon, String)> {
    let id = own.uplink(Family::V4);
    vec![
        (Daemon::Zebra, String::new()),
        (Daemon::Bgp, evpn(plan, own.fabric(Family::V4))),
        (
            Daemon::Ospf,
            format!("{}{NO_DR}!\n{OVERLAYS}{}", uplink(plan, OSPF), ospf(id, REDISTRIBUTE)),
        ),
        (
            Daemon::Ospf6,
            format!("{}{NO_DR6}!\n{OVERLAYS6}{}", uplink(plan, OSPF6), ospf6(id, REDISTRIBUTE)),
        ),
    ]
}

/// The access point speaks EVPN alone.
pub(super) fn access_point(plan: Plan) -> Vec<(Daemon, String)> {
    vec![(Daemon::Zebra, String::new()), (Daemon::Bgp, evpn(plan, AccessPoint::FABRIC.into()))]
}

/// The upstream router speaks OSPF alone.
pub(super) fn upstream(plan: Plan) -> Vec<(Daemon, String)> {
    let id = Upstream::uplink(Family::V4);
    vec![
        (Daemon::Zebra, String::new()),
        (Daemon::Ospf, format!("{}!\n{}", uplink(plan, OSPF), ospf(id, ""))),
        (Daemon::Ospf6, format!("{}!\n{}", uplink(plan, OSPF6), ospf6(id, ""))),
    ]
}

/// The uplink as OSPF speaks there. Daemons that take in thousands of routes at once, all on one
/// machine, may not say hello for seconds: where there are as many networks, that is no failure.
fn uplink(plan: Plan, protocol: &str) -> String {
    let dead = if plan.networks > MANY { 20 } else { 3 };
    format!(
        "interface up0\n {protocol} area 0\n {protocol} hello-interval 1\n \
         {protocol} dead-interval {dead}\n"
    )
}

const OSPF: &str = "ip ospf";
const OSPF6: &str = "ipv6 ospf6";
const MANY: u32 = 500;

/// A gateway is never the segment's designated router: what others then have to say is flooded
/// by that one alone (RFC 2328, section 13.3), and if it is lost, not before its dead interval
/// ends.
const NO_DR: &str = " ip ospf priority 0\n";
const NO_DR6: &str = " ipv6 ospf6 priority 0\n";

/// The prefixes of overlay networks and their halves.
const OVERLAYS: &str = "ip prefix-list OVERLAYS seq 5 permit 10.0.0.0/8 ge 24 le 25\n!\n\
                        route-map SELVEDGE permit 10\n match ip address prefix-list OVERLAYS\n!\n";
const OVERLAYS6: &str = "ipv6 prefix-list OVERLAYS seq 5 permit fd5e:10::/48 ge 64 le 65\n!\n\
                         route-map SELVEDGE permit 10\n \
                         match ipv6 address prefix-list OVERLAYS\n!\n";
const REDISTRIBUTE: &str = " redistribute kernel route-map SELVEDGE\n";

fn ospf(id: IpAddr, redistribute: &str) -> String {
    format!("router ospf\n ospf router-id {id}\n{redistribute}!\n")
}

fn ospf6(id: IpAddr, redistribute: &str) -> String {
    format!("router ospf6\n ospf6 router-id {id}\n{redistribute}!\n")
}

fn evpn(plan: Plan, own: IpAddr) -> String {
    let gateways = (1..=u8::try_from(plan.gateways).unwrap_or(u8::MAX)).map(Gateway::new);
    let speakers = gateways.map(|it| it.fabric(Family::V4)).chain([AccessPoint::FABRIC.into()]);
    let others: Vec<IpAddr> = speakers.filter(|it| *it != own).collect();
    let neighbours: String = others
        .iter()
        .map(|it| {
            format!(
                " neighbor {it} remote-as {AS}\n neighbor {it} timers connect 2\n \
                 neighbor {it} advertisement-interval 0\n"
            )
        })
        .collect();
    let activated: String = others.iter().map(|it| format!("  neighbor {it} activate\n")).collect();
    format!(
        "router bgp {AS}\n bgp router-id {own}\n no bgp default ipv4-unicast\n\
         \x20timers bgp 1 3\n{neighbours} !\n address-family l2vpn evpn\n{activated}\
         \x20 advertise-all-vni\n exit-address-family\n!\n"
    )
}
