//! A campus without agents: what they would do is done by hand, once.

use std::fmt::Write;

use selvedge_host::fabric::ROUTE_PROTOCOL;

use super::{AccessPoint, Campus, Family, Flavour, Gateway, Network};
use crate::Error;

impl Campus {
    /// Makes every gateway serve its share of the networks for good: the first network is the
    /// first gateway's, the next the second's, and so on. It shows what the laboratory itself can
    /// do. Returns whose each network is.
    ///
    /// # Errors
    /// If a host refuses something; some gateways may serve already.
    pub fn serve_by_hand(&self) -> Result<Vec<(Network, String)>, Error> {
        let count = self.gateways.len();
        for (index, gateway) in self.gateways.iter().enumerate() {
            let share: Vec<Network> = self.networks().skip(index).step_by(count).collect();
            match self.plan.flavour {
                Flavour::Flood => flood(gateway, &share)?,
                // Who makes the tunnels says where they lead.
                Flavour::Mesh => {}
                Flavour::Frr => advertise(gateway, &share)?,
            }
            answer(gateway, &share)?;
        }
        let owners = self.gateways.iter().map(|it| it.host.name().to_owned()).cycle();
        Ok(self.networks().zip(owners).collect())
    }
}

/// The bridge answers for the gateway's addresses of both families.
fn answer(gateway: &Gateway, share: &[Network]) -> Result<(), Error> {
    let arp = |it: &Network| (format!("ipv4/conf/{}/arp_ignore", it.bridge()), "0");
    gateway.host.sysctl(&share.iter().map(arp).collect::<Vec<_>>())?;
    let address = |it: &Network| {
        format!("address add {}/128 dev {} nodad\n", it.gateway(Family::V6).addr(), it.bridge())
    };
    gateway.host.ip(&share.iter().map(address).collect::<String>())
}

/// Next hops on the uplink, and a flooding list into the fabric.
fn flood(gateway: &Gateway, share: &[Network]) -> Result<(), Error> {
    let (mut addresses, mut lists, mut routes) = (String::new(), String::new(), String::new());
    for network in share {
        let [v4, v6] = Family::ALL.map(|family| network.next_hop(family));
        let (vxlan, bridge) = (network.vxlan(), network.bridge());
        let (to, prefix) = (AccessPoint::FABRIC, network.prefix(Family::V6));
        put(&mut addresses, format_args!("address add {v4}/32 dev up0"));
        put(&mut addresses, format_args!("address add {v6}/128 dev up0 nodad"));
        put(&mut lists, format_args!("fdb append 00:00:00:00:00:00 dev {vxlan} dst {to}"));
        put(&mut routes, format_args!("route add {prefix} dev {bridge}"));
    }
    gateway.host.bridge(&lists)?;
    gateway.host.ip(&addresses)?;
    gateway.host.ip(&routes)
}

/// Kernel routes that OSPF redistributes, and the bridges' addresses in EVPN.
fn advertise(gateway: &Gateway, share: &[Network]) -> Result<(), Error> {
    let mut lines = String::new();
    for network in share {
        let (bridge, address) = (network.bridge(), network.gateway(Family::V4));
        // As a single address, so that no connected route hides the one that is redistributed.
        put(&mut lines, format_args!("address del {address} dev {bridge}"));
        put(&mut lines, format_args!("address add {}/32 dev {bridge}", address.addr()));
        for prefix in Family::ALL.map(|family| network.prefix(family)) {
            put(&mut lines, format_args!("route add {prefix} dev {bridge} proto {ROUTE_PROTOCOL}"));
        }
    }
    gateway.host.ip(&lines)?;
    let Some(frr) = &gateway.frr else { return Ok(()) };
    let mut commands = vec![
        "configure".to_owned(),
        "router bgp 65000".to_owned(),
        "address-family l2vpn evpn".to_owned(),
    ];
    for network in share {
        let vni = format!("vni {}", network.vni());
        commands.extend([vni, "advertise-svi-ip".to_owned(), "exit-vni".to_owned()]);
    }
    frr.vtysh(&commands.iter().map(String::as_str).collect::<Vec<_>>()).map(|_| ())
}

fn put(lines: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(lines, "{line}").expect("a string grows");
}
