//! What FRR's daemons are asked, and what their answers mean.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;

use selvedge_model::Prefix;
use serde_json::Value;

use super::config::{Block, Config};
use super::upstream::{self, Routes};
use super::{Finding, FrrSetup, segment};
use crate::fabric::ROUTE_PROTOCOL;
use crate::frr::{Error, Vty};
use crate::health::ask;
use crate::netlink::{MAIN_TABLE, Netlink, RouteFilter};

/// The daemons that are looked at; the first two have to run.
const DAEMONS: [&str; 6] = ["zebra", "bgpd", "ospfd", "ospf6d", "isisd", "mgmtd"];
const REQUIRED: usize = 2;

/// The oldest version that the drivers were made for.
const OLDEST: (u32, u32) = (8, 4);

/// What the daemons are configured with.
type Configs = BTreeMap<&'static str, Config>;

pub(super) async fn check(setup: &FrrSetup, ours: &[Prefix], netlink: &Netlink) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut vtys = open(setup);
    let mut configs = Configs::new();
    for (position, (daemon, vty)) in vtys.iter_mut().enumerate() {
        match vty.run("show running-config").await {
            Ok(text) => drop(configs.insert(*daemon, Config::parse(&text))),
            Err(error) => findings.extend(unreachable(daemon, position < REQUIRED, &error)),
        }
    }
    if let Some(policies) = configs.get("mgmtd").cloned() {
        let merged = |config: Config| config.with_policies_of(policies.clone());
        configs = configs.into_iter().map(|(daemon, it)| (daemon, merged(it))).collect();
    }
    for (daemon, vty) in &mut vtys {
        match *daemon {
            "zebra" if configs.contains_key("zebra") => {
                findings.push(version(vty).await);
                findings.extend(buffer(vty).await);
            }
            "bgpd" if configs.contains_key("bgpd") => {
                findings.extend(bgpd(vty, &configs["bgpd"], setup.asn).await);
            }
            _ => findings.extend(segments(daemon, vty, configs.get(*daemon)).await),
        }
    }
    findings.extend(stub_areas(&configs));
    let others = others(netlink, ours).await;
    let routes = Routes { ours: ours.to_vec(), others };
    findings.extend(upstream::check(&|daemon| configs.get(daemon), &routes));
    findings
}

fn open(setup: &FrrSetup) -> Vec<(&'static str, Vty)> {
    let vty = |daemon| Vty::new(&setup.vty_dir, setup.pathspace.as_deref(), daemon);
    DAEMONS.into_iter().map(|daemon| (daemon, vty(daemon))).collect()
}

fn unreachable(daemon: &str, required: bool, error: &Error) -> Option<Finding> {
    let kind = if let Error::Connect { source, .. } = error { Some(source.kind()) } else { None };
    match kind {
        Some(ErrorKind::NotFound | ErrorKind::ConnectionRefused) if !required => None,
        Some(ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
            let enable = format!("sed -i 's/^{daemon}=no/{daemon}=yes/' /etc/frr/daemons");
            let text = format!("{daemon} does not run: {error}");
            Some(Finding::problem(daemon, text).shell([enable, "systemctl restart frr".into()]))
        }
        Some(ErrorKind::PermissionDenied) => {
            let text = format!("its control socket is not for this user: {error}");
            Some(Finding::problem(daemon, text).shell([
                format!("usermod -aG frrvty {}", user()),
                "systemctl restart selvedge".into(),
            ]))
        }
        Some(_) | None => Some(Finding::problem(daemon, error.to_string())),
    }
}

fn user() -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid());
    user.ok().flatten().map_or_else(|| "USER".to_owned(), |user| user.name)
}

async fn version(zebra: &mut Vty) -> Finding {
    let text = match zebra.run("show version").await {
        Ok(text) => text,
        Err(error) => return Finding::problem("FRR", error.to_string()),
    };
    judge_version(text.lines().next().unwrap_or_default())
}

/// `FRRouting 8.4.4 (host) on Linux(...)`.
fn judge_version(line: &str) -> Finding {
    let number = line.split_whitespace().nth(1).unwrap_or_default();
    let mut parts = number.split(['.', '-']).map(|part| part.parse::<u32>().ok());
    let found = parts.next().flatten().zip(parts.next().flatten());
    match found {
        Some(found) if found >= OLDEST => Finding::ok("FRR", format!("version {number}")),
        Some(_) => {
            let (major, minor) = OLDEST;
            let text = format!("version {number} is older than {major}.{minor}");
            Finding::problem("FRR", text).shell(["apt-get install --only-upgrade frr"])
        }
        None => Finding::warning("FRR", format!("its version cannot be read from {line:?}")),
    }
}

async fn buffer(zebra: &mut Vty) -> Option<Finding> {
    judge_buffer(&zebra.run("show zebra").await.ok()?)
}

/// ` Kernel socket buffer size      4194304`, where zebra prints it.
fn judge_buffer(text: &str) -> Option<Finding> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix("Kernel socket buffer size"));
    let size: u64 = line?.trim().parse().ok()?;
    if size >= BUFFER {
        return Some(Finding::ok("zebra", format!("its netlink socket holds {size} bytes")));
    }
    let text = format!(
        "its netlink socket holds {size} bytes: it misses routes if those of thousands of networks \
         come at once"
    );
    let enable = "sed -i '/^zebra_options=/s/\"$/ -s 90000000\"/' /etc/frr/daemons";
    Some(Finding::warning("zebra", text).shell([enable, "systemctl restart frr"]))
}

/// A route that is changed takes about a kilobyte there, and a takeover of 5000 networks changes
/// 30,000.
const BUFFER: u64 = 32 * 1024 * 1024;

/// The routes that FRR takes for the kernel's and that are not of our networks.
async fn others(netlink: &Netlink, ours: &[Prefix]) -> BTreeSet<Prefix> {
    let filter = RouteFilter { protocol: None, table: Some(MAIN_TABLE) };
    let routes = netlink.routes(filter).await.unwrap_or_default();
    let foreign = routes.into_iter().filter(|route| {
        let of_a_daemon = route.protocol == ZEBRA || FRR_OWN.contains(&route.protocol);
        let of_the_network = ours.iter().any(|own| own.contains(route.dst.addr()));
        !of_a_daemon && !of_the_network && ![KERNEL, ROUTE_PROTOCOL].contains(&route.protocol)
    });
    foreign.map(|route| route.dst.network()).collect()
}

/// `RTPROT_KERNEL`, `RTPROT_ZEBRA`, and what zebra gives to the daemons' routes.
const KERNEL: u8 = 2;
const ZEBRA: u8 = 11;
const FRR_OWN: std::ops::RangeInclusive<u8> = 186..=196;

async fn bgpd(vty: &mut Vty, config: &Config, asn: Option<u32>) -> Vec<Finding> {
    let head = asn.map_or_else(|| "router bgp".to_owned(), |asn| format!("router bgp {asn}"));
    let Some(block) = config.block(&head) else {
        let text = format!("there is no {head}: the networks cannot be advertised");
        let head = asn.map_or_else(|| "router bgp ASN".to_owned(), |_| head);
        let lines = [" neighbor ADDRESS remote-as ASN", EVPN, ACTIVATE, ADVERTISE, NO_DUPLICATES];
        return vec![
            Finding::problem("bgpd", text).vtysh([head.as_str()].into_iter().chain(lines)),
        ];
    };
    let mut findings = match ask(vty, "show bgp l2vpn evpn vni json").await {
        Ok(answer) => advertising(block, &answer),
        Err(error) => vec![Finding::problem("bgpd", error.to_string())],
    };
    findings.push(match ask(vty, "show bgp l2vpn evpn summary json").await {
        Ok(answer) => neighbours(block, &answer),
        Err(error) => Finding::problem("bgpd", error.to_string()),
    });
    findings.extend(duplicates(block));
    findings
}

/// Daemons that do not speak OSPF, or are not there, have nothing to tell.
async fn segments(daemon: &str, vty: &mut Vty, config: Option<&Config>) -> Vec<Finding> {
    let Some((dialect, config)) = segment::dialect(daemon).zip(config) else { return Vec::new() };
    match ask(vty, dialect.question).await {
        Ok(answer) => segment::judge(daemon, dialect, &answer, config),
        Err(error) => vec![Finding::problem(daemon, error.to_string())],
    }
}

const EVPN: &str = " address-family l2vpn evpn";
const ACTIVATE: &str = "  neighbor ADDRESS activate";
const ADVERTISE: &str = "  advertise-all-vni";
const NO_DUPLICATES: &str = "  no dup-addr-detection";
const FAMILY: &str = "l2vpn evpn";

/// Lines in the EVPN part of an instance.
fn within<'a>(block: &'a Block, lines: &[&'a str]) -> Vec<&'a str> {
    [block.head.as_str(), EVPN].into_iter().chain(lines.iter().copied()).collect()
}

fn advertising(block: &Block, vnis: &Value) -> Vec<Finding> {
    let is = |key: &str| vnis[key].as_str() == Some("Enabled");
    let mut findings = vec![match is("advertiseAllVnis") {
        true => Finding::ok("bgpd", "it takes its networks from the kernel"),
        false => {
            let text = "it does not take its networks from the kernel";
            Finding::problem("bgpd", text).vtysh(within(block, &[ADVERTISE]))
        }
    }];
    for (key, line) in [
        ("advertiseSviMacIp", "  no advertise-svi-ip"),
        ("advertiseGatewayMacip", "  no advertise-default-gw"),
    ] {
        if is(key) {
            let word = line.trim().trim_start_matches("no ");
            let text = format!(
                "{word} is set for all networks: gateways that only stand by advertise as well"
            );
            findings.push(Finding::problem("bgpd", text).vtysh(within(block, &[line])));
        }
    }
    findings
}

fn neighbours(block: &Block, summary: &Value) -> Finding {
    let peers = summary["peers"].as_object();
    let states = peers.into_iter().flat_map(|peers| peers.values());
    let established = states.filter(|peer| peer["state"].as_str() == Some("Established")).count();
    match (peers.map_or(0, serde_json::Map::len), established) {
        (0, _) => no_neighbours(block),
        (all, 0) => {
            let text = format!("none of its {all} EVPN sessions is established");
            Finding::warning("bgpd", text).vtysh(["do show bgp l2vpn evpn summary"])
        }
        (all, up) => Finding::ok("bgpd", format!("{up} of {all} EVPN sessions are established")),
    }
}

/// Neighbours that are there and not active for EVPN may just want to be.
fn no_neighbours(block: &Block) -> Finding {
    let known: BTreeSet<&str> = block
        .rests("", "neighbor")
        .filter(|rest| rest.contains(" remote-as "))
        .filter_map(|rest| rest.split_whitespace().next())
        .collect();
    let mut lines = vec![block.head.clone()];
    if known.is_empty() {
        lines.push(" neighbor ADDRESS remote-as ASN".to_owned());
    }
    lines.push(EVPN.to_owned());
    let all = if known.is_empty() { BTreeSet::from(["ADDRESS"]) } else { known };
    lines.extend(all.iter().map(|neighbour| format!("  neighbor {neighbour} activate")));
    Finding::problem("bgpd", "it has no EVPN neighbour").vtysh(lines)
}

fn duplicates(block: &Block) -> Option<Finding> {
    (!block.has(FAMILY, "no dup-addr-detection")).then(|| {
        let text = "a gateway address that moves five times within 180 s counts as a duplicate";
        Finding::warning("bgpd", text).vtysh(within(block, &[NO_DUPLICATES]))
    })
}

/// Stub areas take no external routes, which is what redistributed ones are.
fn stub_areas(configs: &Configs) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (daemon, head, interface) in
        [("ospfd", "router ospf", "ip ospf area"), ("ospf6d", "router ospf6", "ipv6 ospf6 area")]
    {
        let Some(config) = configs.get(daemon) else { continue };
        let Some(block) = config.block(head) else { continue };
        let used = areas(config, block, interface);
        for (area, line) in stubs(block) {
            let only = used.iter().all(|used| *used == area);
            let text = format!("area {area} is a stub: the networks are not announced there");
            let found = match (used.contains(&area), only) {
                (true, true) => Finding::problem(daemon, text),
                (true, false) | (false, _) => Finding::warning(daemon, text),
            };
            findings.push(found.vtysh([head.to_owned(), format!(" no area {line}")]));
        }
    }
    findings
}

/// The areas that interfaces are in, by number.
fn areas(config: &Config, block: &Block, interface: &str) -> BTreeSet<u32> {
    let on_interfaces = config.interfaces(interface).map(|(_, area)| area);
    let by_network = block.rests("", "network").filter_map(|rest| rest.split(" area ").nth(1));
    let of_ospf6 = block.rests("", "interface").filter_map(|rest| rest.split(" area ").nth(1));
    on_interfaces.chain(by_network).chain(of_ospf6).filter_map(area_number).collect()
}

/// The stub areas, each with what `no area` has to be told.
fn stubs(block: &Block) -> Vec<(u32, String)> {
    let lines = block.rests("", "area").filter_map(|rest| {
        let (area, kind) = rest.split_once(' ')?;
        let stub = kind.split_whitespace().next() == Some("stub");
        Some((area_number(area).filter(|_| stub)?, format!("{area} stub")))
    });
    lines.collect::<BTreeMap<_, _>>().into_iter().collect()
}

/// `1` and `0.0.0.1` are the same area.
fn area_number(text: &str) -> Option<u32> {
    let dotted = || text.parse::<std::net::Ipv4Addr>().ok().map(u32::from);
    text.parse().ok().or_else(dotted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Severity;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        let severity = |number: &str| {
            judge_version(&format!("FRRouting {number} (host) on Linux(6.1).")).severity
        };
        for good in ["8.4", "8.4.4", "8.10", "9.0.1", "10.2-dev", "10.0"] {
            assert_eq!(severity(good), Severity::Ok, "{good}");
        }
        for bad in ["8.3.1", "7.5.1"] {
            assert_eq!(severity(bad), Severity::Problem, "{bad}");
        }
        assert_eq!(severity("unknown"), Severity::Warning);
    }

    #[test]
    fn a_buffer_that_routes_do_not_fit_into_is_a_warning() {
        let found = |size: &str| {
            let text =
                format!(" EVPN                On\r\n Kernel socket buffer size      {size}\n");
            judge_buffer(&text).map(|finding| finding.severity)
        };
        assert_eq!(found("4194304"), Some(Severity::Warning));
        assert_eq!(found("90000000"), Some(Severity::Ok));
        assert_eq!(found("much"), None);
        assert_eq!(judge_buffer(" EVPN On"), None);
    }

    #[test]
    fn stub_areas_are_told_by_number() {
        let found = |config: &str| {
            let configs = Configs::from([("ospfd", Config::parse(config))]);
            let all = stub_areas(&configs);
            all.iter().map(|it| (it.severity, it.fix[1].clone())).collect::<Vec<_>>()
        };
        let interface = "interface up0\n ip ospf area 0.0.0.1\nexit\n";
        let router = "router ospf\n area 1 stub no-summary\n area 2 nssa\n";
        let fix = || " no area 1 stub".to_owned();
        assert_eq!(found(&format!("{interface}{router}")), [(Severity::Problem, fix())]);
        let both = format!("{interface}{router} network 10.0.0.0/8 area 0\n");
        assert_eq!(found(&both), [(Severity::Warning, fix())]);
        assert_eq!(found(router), [(Severity::Warning, fix())]);
        assert!(found("router ospf\n area 2 nssa\n").is_empty());
    }

    #[test]
    fn neighbours_that_are_not_active_for_evpn_are_named() {
        let config = Config::parse(
            "router bgp 7\n neighbor 192.0.2.2 remote-as 7\n neighbor 192.0.2.2 timers 1 3\n",
        );
        let block = config.block("router bgp").expect("there");
        let found = neighbours(block, &Value::Null);
        let lines = ["router bgp 7", EVPN, "  neighbor 192.0.2.2 activate"];
        assert_eq!(
            (found.severity, found.fix.as_slice()),
            (Severity::Problem, &lines.map(String::from)[..])
        );
    }

    #[test]
    fn sockets_that_are_not_there_matter_only_where_the_daemon_has_to_run() {
        let error = |kind: ErrorKind| Error::Connect { path: "x".into(), source: kind.into() };
        assert_eq!(unreachable("isisd", false, &error(ErrorKind::NotFound)), None);
        let found = unreachable("bgpd", true, &error(ErrorKind::NotFound)).expect("a finding");
        assert_eq!(found.fix[0], "sed -i 's/^bgpd=no/bgpd=yes/' /etc/frr/daemons");
        let denied = unreachable("isisd", false, &error(ErrorKind::PermissionDenied));
        assert!(denied.expect("a finding").fix[0].starts_with("usermod -aG frrvty "));
    }
}
