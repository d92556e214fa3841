//! What a gateway needs of its host.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use selvedge_model::{Prefix, Vni};
use tokio::process::Command;

use super::{CheckConfig, Finding, FrrSetup};
use crate::health::{self, Chosen, Igps};
use crate::inventory::{Network, Problem};
use crate::netlink::{Link, NeighbourTable, Netlink, Vxlan};
use crate::sysctl::{self, Family};
use crate::tunnels::{OVERHEAD_V4, OVERHEAD_V6};

/// Strict reverse-path filtering (RFC 3704).
const STRICT: i32 = 1;

/// The rights that the agent needs, by their numbers in `capabilities(7)`.
const CAPABILITIES: [(u32, &str, &str); 2] = [
    (12, "CAP_NET_ADMIN", "to change routes, addresses and settings"),
    (13, "CAP_NET_RAW", "to send announcements"),
];

/// Whether this process may do what it has to.
pub(super) fn privileges() -> Vec<Finding> {
    match std::fs::read_to_string("/proc/self/status") {
        Ok(status) => judge_privileges(&status),
        Err(error) => vec![Finding::warning("capabilities", format!("cannot be read: {error}"))],
    }
}

fn judge_privileges(status: &str) -> Vec<Finding> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let held = line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or_default();
    let judge = |(bit, name, what): (u32, &str, &str)| match held >> bit & 1 {
        1 => Finding::ok(name, "held"),
        _ => Finding::problem(name, format!("missing: it is needed {what}")).shell([
            "mkdir -p /etc/systemd/system/selvedge.service.d".to_owned(),
            format!(
                "printf '[Service]\\nAmbientCapabilities=%s\\n' {name} \
                 > /etc/systemd/system/selvedge.service.d/{name}.conf"
            ),
            "systemctl daemon-reload && systemctl restart selvedge".to_owned(),
        ]),
    };
    CAPABILITIES.map(judge).into()
}

pub(super) async fn check(config: &CheckConfig, netlink: &Netlink) -> Vec<Finding> {
    let mut findings = vec![nft().await];
    findings.extend(forwarding(config));
    findings.push(arp_ignore());
    findings.extend(bridge_filter());
    findings.extend(neighbours(config, netlink).await);
    match netlink.links().await {
        Ok(links) => {
            let chosen = interfaces(config, netlink).await;
            findings.extend(reverse_path(&chosen));
            findings.extend(networks(config, netlink, &links).await);
            findings.extend(mtu(config, &links, &chosen.fabric));
        }
        Err(error) => findings.push(Finding::problem("interfaces", error.to_string())),
    }
    findings
}

/// Silencing all networks at once needs it.
async fn nft() -> Finding {
    let output = Command::new("nft").args(["list", "tables"]).output().await;
    match output {
        Ok(output) if output.status.success() => Finding::ok("nft", "works"),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Finding::problem("nft", format!("does not work: {said}"))
        }
        Err(error) => Finding::problem("nft", format!("cannot be run: {error}"))
            .shell(["apt-get install nftables"]),
    }
}

/// A setting for all interfaces, and what it has to be.
fn set(key: &str, value: i32) -> String {
    format!("sysctl -w {key}={value}")
}

/// Lines that set it now and at every start.
fn keep(key: &str, value: i32) -> [String; 2] {
    [set(key, value), format!("echo '{key} = {value}' >> /etc/sysctl.d/90-selvedge.conf")]
}

fn forwarding(config: &CheckConfig) -> Vec<Finding> {
    let families =
        [(Family::V4, "net.ipv4.ip_forward"), (Family::V6, "net.ipv6.conf.all.forwarding")];
    let judge =
        |(family, key): (Family, &'static str)| match sysctl::get(family, "all", "forwarding") {
            Ok(0) => Finding::problem(key, "the kernel forwards no packets").shell(keep(key, 1)),
            Ok(_) => Finding::ok(key, "on"),
            Err(error) => Finding::warning(key, error.to_string()),
        };
    let used = |family: &Family| *family == Family::V4 || uses_v6(config);
    families.into_iter().filter(|(family, _)| used(family)).map(judge).collect()
}

/// Whether any network has, or may have, an IPv6 gateway.
fn uses_v6(config: &CheckConfig) -> bool {
    let declared = config.networks.values().flat_map(|network| &network.addresses);
    let found = config.found.iter().flat_map(|found| &found.addresses);
    let mut all = declared.chain(found).peekable();
    all.peek().is_none() || all.any(|prefix| prefix.addr().is_ipv6())
}

/// The greater of the values for all interfaces and for the bridge counts, so that anything but
/// 0 overrides what the agent sets.
fn arp_ignore() -> Finding {
    let key = "net.ipv4.conf.all.arp_ignore";
    match sysctl::get(Family::V4, "all", "arp_ignore") {
        Ok(0) => Finding::ok(key, "0"),
        Ok(value) => {
            let text = format!("{value} overrides what is set for single bridges");
            Finding::problem(key, text).shell(keep(key, 0))
        }
        Err(error) => Finding::warning(key, error.to_string()),
    }
}

/// Frames between the stations of one network are none of a firewall's business that was made
/// for packets, and each would cost a walk through its rules.
fn bridge_filter() -> Vec<Finding> {
    let switches = ["arptables", "iptables", "ip6tables"];
    let judge = |switch: &str| {
        let key = format!("net.bridge.bridge-nf-call-{switch}");
        let path = Path::new("/proc/sys").join(key.replace('.', "/"));
        // Without the module there is no such switch, and nothing to switch off.
        let on = std::fs::read_to_string(path).is_ok_and(|text| text.trim() != "0");
        on.then(|| {
            let text = format!("frames within bridges pass through {switch} rules");
            Finding::warning(key.clone(), text).shell(keep(&key, 0))
        })
    };
    switches.into_iter().filter_map(judge).collect()
}

/// The tables of neighbours hold the stations of all networks; when they are full, new stations
/// are not reached.
async fn neighbours(config: &CheckConfig, netlink: &Netlink) -> Vec<Finding> {
    let count = u32::try_from(config.networks.len()).unwrap_or(u32::MAX);
    let expected = count.saturating_mul(config.stations);
    match netlink.neighbour_tables().await {
        Ok(tables) => {
            let used = tables.into_iter().filter(|table| table.is_v4 || uses_v6(config));
            used.map(|table| judge_neighbours(table, expected)).collect()
        }
        Err(error) => vec![Finding::warning("gc_thresh3", error.to_string())],
    }
}

/// Half of the table stays free. (With less than `gc_thresh2` nothing is ever thrown out in a
/// hurry, so that goes along.)
fn judge_neighbours(table: NeighbourTable, expected: u32) -> Finding {
    let family = if table.is_v4 { "ipv4" } else { "ipv6" };
    let key = |number: u8| format!("net.{family}.neigh.default.gc_thresh{number}");
    let needed = expected.max(table.entries).saturating_mul(2);
    if table.limit >= needed {
        let text = format!("{} neighbours of {} that fit", table.entries, table.limit);
        return Finding::ok(key(3), text);
    }
    let limit = i32::try_from(needed.next_power_of_two().max(1024)).unwrap_or(i32::MAX);
    let text = format!(
        "room for {} neighbours on the whole machine; there are {}, and {expected} are expected",
        table.limit, table.entries
    );
    let lines = [keep(&key(3), limit), keep(&key(2), limit / 2), keep(&key(1), limit / 4)];
    Finding::warning(key(3), text).shell(lines.into_iter().flatten())
}

async fn interfaces(config: &CheckConfig, netlink: &Netlink) -> Chosen {
    let mut igps =
        config.frr.as_ref().map_or_else(Igps::new, |FrrSetup { vty_dir, pathspace, .. }| {
            health::igps(vty_dir, pathspace.as_deref())
        });
    // What cannot be read is not checked; that the kernel can be read at all was seen before.
    let found = health::find(netlink, &mut igps, &Chosen::default()).await.unwrap_or_default();
    let given = |names: &[String], found: BTreeSet<String>| match names {
        [] => found,
        names => names.iter().cloned().collect(),
    };
    Chosen {
        uplink: given(&config.uplink, found.uplink),
        fabric: given(&config.fabric, found.fabric),
    }
}

/// Packets of a network come in by the uplink of one gateway and leave by another's, so that a
/// strict filter drops what is right.
fn reverse_path(chosen: &Chosen) -> Vec<Finding> {
    let all = chosen.uplink.union(&chosen.fabric);
    let mut findings: Vec<Finding> = all.map(|name| judge_reverse_path(name)).collect();
    if chosen.uplink.is_empty() {
        let text = "no interface towards the upstream routers was found: name it";
        findings.push(Finding::warning("uplink", text));
    }
    findings
}

fn judge_reverse_path(name: &str) -> Finding {
    // As `sysctl` writes it: dots within the name become slashes.
    let key = format!("net.ipv4.conf.{}.rp_filter", name.replace('.', "/"));
    match sysctl::effective(name, "rp_filter") {
        Ok(STRICT) => {
            let text = "strict: packets that come by another way than they would go are dropped";
            Finding::problem(key.clone(), text).shell(keep(&key, 2))
        }
        Ok(value) => Finding::ok(key, value.to_string()),
        Err(error) => Finding::problem(name, error.to_string()),
    }
}

/// What the agent itself would say of its networks, and what it takes for granted.
async fn networks(config: &CheckConfig, netlink: &Netlink, links: &[Link]) -> Vec<Finding> {
    let mut inventory = super::inventory(config, netlink);
    if let Err(error) = inventory.survey().await {
        return vec![Finding::problem("networks", error.to_string())];
    }
    let local = links.iter().find_map(|link| link.vxlan.and_then(|vxlan| vxlan.local));
    let unable = inventory.unable().iter();
    let mut findings: Vec<Finding> =
        unable.map(|(vni, problem)| cannot_serve(config, *vni, problem, local)).collect();
    for network in inventory.networks().values() {
        findings.extend(ports(network, links, config.frr.is_some()));
        findings.extend(disabled_v6(network));
        findings.extend(narrow_tunnel(network, links));
    }
    if findings.is_empty() && !config.networks.is_empty() {
        findings.push(Finding::ok("networks", format!("{} can be served", config.networks.len())));
    }
    findings
}

fn subject(vni: Vni) -> String {
    format!("network {vni}")
}

fn cannot_serve(
    config: &CheckConfig,
    vni: Vni,
    problem: &Problem,
    local: Option<IpAddr>,
) -> Finding {
    let (bridge, vxlan) = (config.names.bridge.name(vni), config.names.vxlan.name(vni));
    let found = Finding::problem(subject(vni), problem.to_string());
    match problem {
        Problem::NoInterface(name) if *name == bridge => {
            let mut lines = vec![format!("ip link add {bridge} type bridge")];
            lines.push(format!("ip link set {bridge} up"));
            let declared = config.networks.get(&vni).into_iter().flat_map(|it| &it.addresses);
            if declared.count() == 0 {
                lines.push(format!("ip address add ADDRESS/LENGTH dev {bridge}"));
            }
            found.shell(lines)
        }
        Problem::NoInterface(_) if config.over_mesh => found,
        Problem::NoInterface(_) => found.shell(tunnel(vni, &vxlan, &bridge, local)),
        Problem::WrongKind { name, .. } | Problem::WrongVni { name, .. } => {
            let away = format!("ip link del {name}");
            let again = match *name == vxlan {
                true => tunnel(vni, &vxlan, &bridge, local),
                false => vec![
                    format!("ip link add {bridge} type bridge"),
                    format!("ip link set {bridge} up"),
                ],
            };
            found.shell([away].into_iter().chain(again))
        }
        Problem::NotAPort { .. } => found.shell([format!("ip link set {vxlan} master {bridge}")]),
        Problem::NoAddress { .. } => {
            found.shell([format!("ip address add ADDRESS/LENGTH dev {bridge}")])
        }
        Problem::NoForwarding { setting, .. } => found.shell(keep(setting, 1)),
        Problem::NoIpv6(_) | Problem::Unknown(_) | Problem::NotAdopted(_) => found,
    }
}

fn tunnel(vni: Vni, vxlan: &str, bridge: &str, local: Option<IpAddr>) -> Vec<String> {
    let local = local.map_or_else(|| "ADDRESS".to_owned(), |local| local.to_string());
    vec![
        format!("ip link add {vxlan} type vxlan id {vni} local {local} dstport 4789 nolearning"),
        format!("ip link set {vxlan} master {bridge}"),
        format!("ip link set {vxlan} up"),
    ]
}

fn ports(network: &Network, links: &[Link], evpn: bool) -> Vec<Finding> {
    let named = [&network.bridge, &network.vxlan];
    let found = named.iter().filter_map(|port| links.iter().find(|it| it.index == port.index));
    let mut findings = Vec::new();
    for link in found {
        if !link.up {
            let text = format!("{} is down", link.name);
            let line = format!("ip link set {} up", link.name);
            findings.push(Finding::problem(subject(network.vni), text).shell([line]));
        }
        let tunnel = link.vxlan.filter(|_| evpn);
        findings.extend(tunnel.and_then(|tunnel| judge_tunnel(network.vni, &link.name, tunnel)));
    }
    findings
}

fn judge_tunnel(vni: Vni, name: &str, tunnel: Vxlan) -> Option<Finding> {
    let fault = match tunnel {
        Vxlan { local: None, .. } => "has no fixed local address, which bgpd would announce",
        Vxlan { learning: true, .. } => {
            "learns tunnel endpoints from frames, against what bgpd says"
        }
        Vxlan { .. } => return None,
    };
    let local = tunnel.local.map_or_else(|| "ADDRESS".to_owned(), |local| local.to_string());
    let found = Finding::problem(subject(vni), format!("{name} {fault}"));
    Some(found.shell([format!("ip link set {name} type vxlan local {local} nolearning")]))
}

fn disabled_v6(network: &Network) -> Option<Finding> {
    let uses = network.gateways.iter().any(|gateway: &Prefix| gateway.addr().is_ipv6());
    let bridge = &network.bridge.name;
    let off = uses && sysctl::get(Family::V6, bridge, "disable_ipv6").is_ok_and(|value| value != 0);
    off.then(|| {
        let key = format!("net.ipv6.conf.{}.disable_ipv6", bridge.replace('.', "/"));
        let text = format!("{bridge} has no IPv6, and the network has an IPv6 gateway");
        Finding::problem(subject(network.vni), text).shell(keep(&key, 0))
    })
}

/// The underlay has to carry the largest frame of any network, or drops it without a word.
fn mtu(config: &CheckConfig, links: &[Link], fabric: &BTreeSet<String>) -> Vec<Finding> {
    let names: BTreeSet<String> =
        config.networks.keys().map(|vni| config.names.vxlan.name(*vni)).collect();
    let tunnels = links.iter().filter(|link| names.contains(&link.name));
    let needed = tunnels.filter_map(|link| Some(link.mtu + overhead(link.vxlan?.local)));
    let Some(needed) = needed.max() else { return Vec::new() };
    let underlay = links.iter().filter(|link| fabric.contains(&link.name));
    let narrow = underlay.filter(|link| link.mtu < needed);
    let found = narrow.map(|link| {
        let Link { name, mtu, .. } = link;
        // OSPF compares them, and stays in ExStart.
        let text = format!(
            "its MTU is {mtu}, and the networks' frames need {needed}; change both ends and what \
             is between at once, as OSPF does not come up between different MTUs"
        );
        Finding::warning(name, text).shell([format!("ip link set {name} mtu {needed}")])
    });
    found.collect()
}

/// What a station sends into a bridge that lets more pass than its tunnel is dropped there without
/// a word.
fn narrow_tunnel(network: &Network, links: &[Link]) -> Option<Finding> {
    let found = |index: u32| links.iter().find(|link| link.index == index);
    let (bridge, vxlan) = (found(network.bridge.index)?, found(network.vxlan.index)?);
    (bridge.mtu > vxlan.mtu).then(|| {
        let text = format!(
            "the MTU of {} is {}, and {} carries {}: greater packets of the stations are lost",
            bridge.name, bridge.mtu, vxlan.name, vxlan.mtu
        );
        let line = format!("ip link set {} mtu {}", bridge.name, vxlan.mtu);
        Finding::warning(subject(network.vni), text).shell([line])
    })
}

fn overhead(local: Option<IpAddr>) -> u32 {
    if local.is_some_and(|local| local.is_ipv6()) { OVERHEAD_V6 } else { OVERHEAD_V4 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Severity;

    #[test]
    fn missing_rights_are_named() {
        let found = |status: &str| {
            let all = judge_privileges(status);
            all.iter().map(|it| (it.subject.clone(), it.severity)).collect::<Vec<_>>()
        };
        let (admin, raw) = ("CAP_NET_ADMIN".to_owned(), "CAP_NET_RAW".to_owned());
        let ok = [(admin.clone(), Severity::Ok), (raw.clone(), Severity::Ok)];
        assert_eq!(found("Name:\tx\nCapEff:\t0000000000003000\n"), ok);
        let half = [(admin, Severity::Ok), (raw, Severity::Problem)];
        assert_eq!(found("CapEff:\t0000000000001000\n"), half);
        assert!(found("").iter().all(|(_, severity)| *severity == Severity::Problem));
    }

    #[test]
    fn tables_of_neighbours_have_to_hold_what_is_there_and_what_is_expected_twice() {
        let table = |limit, entries| NeighbourTable { is_v4: false, limit, entries };
        assert_eq!(judge_neighbours(table(1024, 3), 512).severity, Severity::Ok);
        assert_eq!(judge_neighbours(table(1024, 513), 0).severity, Severity::Warning);
        let found = judge_neighbours(table(1024, 3), 3200);
        assert_eq!(found.severity, Severity::Warning);
        assert_eq!(found.fix[0], "sysctl -w net.ipv6.neigh.default.gc_thresh3=8192");
        assert_eq!(found.fix.len(), 6);
    }
}
