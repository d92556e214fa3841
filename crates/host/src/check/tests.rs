use std::process::Command;
use std::time::{Duration, Instant};

use super::*;
use crate::fabric::testing;
use crate::netlink::Netlink;
use crate::test_frr::{self, PATIENCE, Scene};
use crate::test_support::{namespace, runtime};

fn vni(number: u32) -> Vni {
    number.try_into().expect("a VNI")
}

fn addresses() -> [Prefix; 2] {
    ["10.0.1.1/24", "fd00:1::1/64"].map(|text| text.parse().expect("a prefix"))
}

fn config(scene: &Scene) -> CheckConfig {
    let declared = Declared { addresses: addresses().into(), ..Declared::default() };
    let vty_dir = scene.gateway.dir.path().to_owned();
    CheckConfig {
        networks: BTreeMap::from([(vni(1), declared)]),
        frr: Some(FrrSetup { vty_dir, pathspace: None, asn: None }),
        ..CheckConfig::default()
    }
}

/// A gateway as an operator might have set it up: all is there, nothing more.
async fn start(scene: &mut Scene) {
    testing::forward();
    testing::network(&scene.here, vni(1), &addresses()).await;
    for netlink in [&scene.here, &scene.there] {
        let up0 = testing::link(netlink, "up0").await.index;
        netlink.set_up(up0, true, Some(1550)).await.expect("wide enough for VXLAN");
    }
    let list = "ip prefix-list own seq 5 permit 10.0.0.0/8 ge 24 le 25\n\
                route-map own permit 10\n match ip address prefix-list own\n!\n";
    let line = " redistribute kernel route-map own\n";
    scene.gateway.start("zebra", "");
    scene.gateway.start("bgpd", &test_frr::bgpd("192.0.2.1", "192.0.2.2"));
    scene.gateway.start("ospfd", &format!("{list}{}{line}", test_frr::ospfd("192.0.2.1")));
    let list =
        list.replace("ip ", "ipv6 ").replace("10.0.0.0/8 ge 24 le 25", "fd00::/16 ge 64 le 65");
    scene.gateway.start("ospf6d", &format!("{list}{}{line}", test_frr::ospf6d("192.0.2.1")));
}

/// What is not as it should be. The tables of neighbours belong to the machine.
async fn faults(config: &CheckConfig) -> Vec<Finding> {
    let mut findings = check(config).await;
    findings.retain(|it| it.severity > Severity::Ok && !it.subject.contains("gc_thresh"));
    findings
}

/// Enters the lines as an operator would.
fn enter(scene: &Scene, place: Place, lines: &[String]) {
    let script = match place {
        Place::Shell => lines.join("\n"),
        Place::Vtysh => {
            let dir = scene.gateway.dir.path().display();
            let lines = lines.join("\n");
            format!("vtysh --vty_socket {dir} <<'EOF'\nconfigure terminal\n{lines}\nEOF\n")
        }
        Place::Configuration => panic!("nothing that the agent is configured with is wrong here"),
    };
    // What only the operator knows.
    let script = script.replace("local ADDRESS", "local 192.0.2.1");
    // The machine's own settings stay as they are.
    let shielded = format!("set -e\nmount -t tmpfs none /etc/sysctl.d\n{script}\n");
    let output = Command::new("unshare").args(["--mount", "sh", "-c", &shielded]).output();
    let output = output.expect("unshare can be run");
    let said = String::from_utf8_lossy(&output.stdout);
    let refused = said.lines().any(|line| line.starts_with('%'));
    assert!(output.status.success() && !refused, "{lines:?}: {said} {output:?}");
}

fn lines(text: &str) -> Vec<String> {
    text.split('\n').map(ToOwned::to_owned).collect()
}

/// Repeats until nothing is wrong: sessions take their time.
async fn becomes_clean(scene: &Scene, config: &CheckConfig, after: &str) {
    let started = Instant::now();
    loop {
        let faults = faults(config).await;
        if faults.is_empty() {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "after {after}: {faults:#?}");
        let sessions = faults.iter().all(|it| it.text.contains("is established"));
        if !sessions {
            for fault in &faults {
                enter(scene, fault.place, &fault.fix);
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Breaks something, and expects to find that and nothing else, gone once its lines are entered.
async fn is_found(
    scene: &Scene,
    config: &CheckConfig,
    (place, defect): (Place, &str),
    text: &str,
) -> Finding {
    enter(scene, place, &lines(defect));
    let found = faults(config).await;
    let named = found.iter().find(|it| it.text.contains(text));
    let named = named.unwrap_or_else(|| panic!("{defect}: {text:?} is not in {found:#?}")).clone();
    assert_eq!(found.len(), 1, "{defect}: {found:#?}");
    assert!(!named.fix.is_empty(), "{named:?}");
    enter(scene, named.place, &named.fix);
    let left = faults(config).await;
    let same = left.iter().find(|it| it.subject == named.subject && it.text == named.text);
    assert_eq!(same, None, "{defect}");
    becomes_clean(scene, config, defect).await;
    named
}

fn with_gateway(test: &str, body: impl AsyncFnOnce(Scene, CheckConfig) + Send) {
    test_frr::run(test, async |mut scene| {
        start(&mut scene).await;
        let config = config(&scene);
        test_frr::until("neighbours", async || {
            let mut ospfd = scene.gateway.vty("ospfd");
            let full = ospfd.run("show ip ospf neighbor json").await.expect("ospfd");
            full.contains("\"Full")
        })
        .await;
        becomes_clean(&scene, &config, "the start").await;
        body(scene, config).await;
    });
}

#[test]
fn what_is_wrong_in_bgpd_is_found_and_put_right() {
    with_gateway("what_is_wrong_in_bgpd", async |scene, config| {
        let evpn = |line: &str| format!("router bgp 65000\naddress-family l2vpn evpn\n{line}");
        for (line, text) in [
            ("no advertise-all-vni", "does not take its networks from the kernel"),
            ("advertise-svi-ip", "advertise-svi-ip is set for all networks"),
            ("advertise-default-gw", "advertise-default-gw is set for all networks"),
            ("no neighbor 192.0.2.2 activate", "it has no EVPN neighbour"),
            ("dup-addr-detection", "counts as a duplicate"),
        ] {
            is_found(&scene, &config, (Place::Vtysh, &evpn(line)), text).await;
        }
    });
}

#[test]
fn a_gateway_that_may_become_the_designated_router_is_found_and_put_right() {
    with_gateway("designated_router", async |scene, config| {
        for line in ["no ip ospf network", "no ipv6 ospf6 network"] {
            // The neighbour's end is as it was, so that the adjacency may be gone meanwhile.
            let named = async || {
                let mut found = faults(&config).await.into_iter();
                found.find(|it| it.text.contains("the designated router on up0"))
            };
            assert_eq!(named().await, None);
            enter(&scene, Place::Vtysh, &lines(&format!("interface up0\n{line}")));
            // The interface goes down and up with the change.
            test_frr::until("it may become it", async || named().await.is_some()).await;
            let found = named().await.expect("it may become it");
            enter(&scene, found.place, &found.fix);
            test_frr::until(line, async || named().await.is_none()).await;
            assert_eq!(named().await, None, "{line}");
        }
    });
}

#[test]
fn what_is_wrong_with_redistribution_is_found_and_put_right() {
    with_gateway("what_is_wrong_with_redistribution", async |scene, config| {
        let none = "router ospf\nno redistribute kernel";
        let again = |lines: &str| format!("{lines}\n{none}\nredistribute kernel");
        let by = |map: &str, list: &str| {
            let entry = format!("route-map {map} permit 10\nmatch ip address prefix-list {map}");
            format!("{} route-map {map}", again(&format!("{list}\n{entry}")))
        };
        let exact = by("exact", "ip prefix-list exact seq 5 permit 10.0.1.0/24");
        let wide = by("wide", "ip prefix-list wide seq 5 permit any");
        for (defect, text) in [
            (none.to_owned(), "router ospf does not redistribute"),
            (again("!"), "redistributes every kernel route"),
            (format!("{} route-map nosuch", again("!")), "nosuch, which does not exist"),
            (exact, "keeps 10.0.1.0/25 back"),
            (wide, "lets 0.0.0.0/0 through"),
            ("router ospf\narea 7 stub".to_owned(), "area 7 is a stub"),
            ("router ospf6\nno redistribute kernel".to_owned(), "router ospf6 does not"),
            ("router ospf6\narea 7 stub".to_owned(), "area 7 is a stub"),
        ] {
            is_found(&scene, &config, (Place::Vtysh, &defect), text).await;
        }
    });
}

#[test]
fn routes_that_others_made_are_found_where_they_would_be_let_through() {
    with_gateway("routes_that_others_made", async |scene, config| {
        // Within the operator's own list, and of none of the networks.
        let route = (Place::Shell, "ip route add 10.77.0.0/24 dev up0 proto static");
        let found = is_found(&scene, &config, route, "lets 10.77.0.0/24 through").await;
        assert_eq!(found.severity, Severity::Warning);
    });
}

#[test]
fn what_is_wrong_on_the_host_is_found_and_put_right() {
    with_gateway("what_is_wrong_on_the_host", async |scene, config| {
        for (defect, text) in [
            ("sysctl -w net.ipv4.conf.up0.rp_filter=1", "strict"),
            ("sysctl -w net.ipv4.conf.all.arp_ignore=8", "overrides"),
            ("sysctl -w net.ipv6.conf.br1.disable_ipv6=1", "br1 has no IPv6"),
            ("sysctl -w net.bridge.bridge-nf-call-iptables=1", "frames within bridges"),
            ("ip link set vxlan1 nomaster", "vxlan1 is not a port of the bridge br1"),
            ("ip link set vxlan1 down", "vxlan1 is down"),
            ("ip link set br1 down", "br1 is down"),
            ("ip link set vxlan1 type vxlan learning", "learns tunnel endpoints"),
            ("ip link del vxlan1", "there is no interface vxlan1"),
        ] {
            is_found(&scene, &config, (Place::Shell, defect), text).await;
        }
        for (defect, text) in [
            (
                "ip link del vxlan1\nip link add vxlan1 type vxlan id 2 dstport 4789 local 192.0.2.1\n\
                 ip link set vxlan1 master br1 up",
                "carries network 2, not 1",
            ),
            ("ip link del vxlan1\nip link add vxlan1 type bridge", "is not a VXLAN interface"),
            ("ip link del br1", "there is no interface br1"),
            // OSPF starts anew, so that the uplink is not known for a while.
            ("ip link set up0 mtu 1500", "its MTU is 1500"),
        ] {
            enter(&scene, Place::Shell, &lines(defect));
            let found = faults(&config).await;
            assert!(found.iter().any(|it| it.text.contains(text)), "{defect}: {found:#?}");
            becomes_clean(&scene, &config, defect).await;
        }
    });
}

#[test]
fn a_host_that_does_not_forward_is_found_and_put_right() {
    with_gateway("a_host_that_does_not_forward", async |scene, config| {
        for key in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
            enter(&scene, Place::Shell, &[format!("sysctl -w {key}=0")]);
            let found = faults(&config).await;
            assert!(found.iter().any(|it| it.subject == key), "{found:#?}");
            becomes_clean(&scene, &config, key).await;
        }
    });
}

#[test]
fn daemons_that_do_not_run_are_found() {
    with_gateway("daemons_that_do_not_run", async |mut scene, config| {
        // Without ospfd another protocol may do.
        scene.gateway.kill("ospfd");
        let found = faults(&config).await;
        let text = "router bgp 65000 does not redistribute";
        let found = found.iter().find(|it| it.text.contains(text)).expect("a finding");
        enter(&scene, found.place, &found.fix);
        becomes_clean(&scene, &config, text).await;
        scene.gateway.kill("bgpd");
        let found = faults(&config).await;
        let found = found.iter().find(|it| it.subject == "bgpd").expect("a finding");
        assert!(found.text.contains("bgpd does not run"), "{found:?}");
        assert_eq!(found.severity, Severity::Problem);
    });
}

#[test]
fn bgpd_without_an_instance_is_told_what_it_needs() {
    with_gateway("bgpd_without_an_instance", async |scene, config| {
        enter(&scene, Place::Vtysh, &lines("no router bgp"));
        let found = faults(&config).await;
        let found = found.iter().find(|it| it.subject == "bgpd").expect("a finding");
        assert!(found.text.contains("there is no router bgp"), "{found:?}");
        let known = |line: &String| line.replace("ASN", "65000").replace("ADDRESS", "192.0.2.2");
        let fix: Vec<String> = found.fix.iter().map(known).collect();
        enter(&scene, found.place, &fix);
        becomes_clean(&scene, &config, "no router bgp").await;
    });
}

#[test]
fn without_frr_only_the_host_counts() {
    let Some(ns) = namespace("without_frr") else { return };
    let body = async || {
        testing::forward();
        let netlink = Netlink::new().expect("netlink");
        testing::pair(&netlink, "up0", "far").await;
        testing::network(&netlink, vni(1), &addresses()).await;
        let networks =
            BTreeMap::from([(vni(1), Declared::default()), (vni(2), Declared::default())]);
        let uplink = vec!["up0".to_owned()];
        let config = CheckConfig { networks, uplink, ..CheckConfig::default() };
        let mut found = faults(&config).await;
        found.retain(|it| !it.subject.starts_with("net.bridge"));
        let [missing] = found.as_slice() else { panic!("{found:#?}") };
        assert_eq!(missing.subject, "network 2");
        assert_eq!(missing.fix[0], "ip link add br2 type bridge");
    };
    ns.run(|| runtime().block_on(body())).expect("entered");
}

#[test]
fn tables_of_neighbours_can_be_read_in_any_namespace() {
    let Some(ns) = namespace("tables_of_neighbours") else { return };
    let body = async || {
        let tables = Netlink::new().expect("netlink").neighbour_tables().await.expect("readable");
        let mut families: Vec<bool> = tables.iter().map(|table| table.is_v4).collect();
        families.sort_unstable();
        assert_eq!(families, [false, true], "{tables:?}");
        assert!(tables.iter().all(|table| table.limit > 0), "{tables:?}");
    };
    ns.run(|| runtime().block_on(body())).expect("entered");
}

#[test]
fn findings_are_plain_data() {
    let finding = Finding::problem("bgpd", "no neighbour").vtysh(["router bgp 7"]);
    let json = serde_json::to_value(&finding).expect("encodable");
    let expected = serde_json::json!({
        "severity": "problem", "subject": "bgpd", "text": "no neighbour",
        "place": "vtysh", "fix": ["router bgp 7"],
    });
    assert_eq!(json, expected);
}

#[test]
fn bridges_that_let_more_pass_than_their_tunnels_are_found() {
    let test = "bridges_that_let_more_pass_than_their_tunnels_are_found";
    let Some(space) = namespace(test) else { return };
    let work = async {
        testing::forward();
        let netlink = Netlink::new().expect("netlink");
        testing::network(&netlink, vni(1), &addresses()).await;
        let declared = Declared { addresses: addresses().into(), ..Declared::default() };
        let networks = BTreeMap::from([(vni(1), declared)]);
        let config = CheckConfig { networks, ..CheckConfig::default() };
        let found = async |vxlan, bridge| {
            for (name, mtu) in [("vxlan1", vxlan), ("br1", bridge)] {
                let index = testing::link(&netlink, name).await.index;
                netlink.set_up(index, true, Some(mtu)).await.expect("mtu");
            }
            let all = faults(&config).await.into_iter().filter(|it| it.subject == "network 1");
            all.map(|it| (it.severity, it.fix)).collect::<Vec<_>>()
        };
        assert_eq!(found(1350, 1350).await, []);
        let narrower = vec!["ip link set br1 mtu 1350".to_owned()];
        assert_eq!(found(1350, 1500).await, [(Severity::Warning, narrower)]);
        assert_eq!(found(1210, 1210).await, [(Severity::Problem, Vec::new())]);
    };
    space.run(|| runtime().block_on(work)).expect("entered");
}
