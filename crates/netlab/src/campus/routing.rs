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
    let ospf = format!(
        "{}\
         router ospf\n ospf router-id {}\n passive-interface default\n\
         \x20no passive-interface up0\n redistribute kernel route-map SELVEDGE\n!\n\
         ip prefix-list OVERLAYS seq 5 permit 10.0.0.0/8 ge 24 le 25\n!\n\
         route-map SELVEDGE permit 10\n match ip address prefix-list OVERLAYS\n!\n",
        uplink(),
        own.uplink(Family::V4)
    );
    vec![
        (Daemon::Zebra, String::new()),
        (Daemon::Bgp, evpn(plan, own.fabric(Family::V4))),
        (Daemon::Ospf, ospf),
    ]
}

/// The access point speaks EVPN alone.
pub(super) fn access_point(plan: Plan) -> Vec<(Daemon, String)> {
    vec![(Daemon::Zebra, String::new()), (Daemon::Bgp, evpn(plan, AccessPoint::FABRIC.into()))]
}

/// The upstream router speaks OSPF alone.
pub(super) fn upstream() -> Vec<(Daemon, String)> {
    let id = Upstream::uplink(Family::V4);
    let ospf = format!("{}router ospf\n ospf router-id {id}\n!\n", uplink());
    vec![(Daemon::Zebra, String::new()), (Daemon::Ospf, ospf)]
}

fn uplink() -> &'static str {
    "interface up0\n ip ospf area 0\n ip ospf hello-interval 1\n ip ospf dead-interval 3\n!\n"
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
