//! The campus forwards when the right levers are set by hand, in both flavours, and follows a
//! takeover by hand; what observers see agrees.

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use selvedge_host::fabric::ROUTE_PROTOCOL;
use selvedge_host::packet::gratuitous_arp;
use selvedge_model::Vni;
use selvedge_netlab::campus::{EtcdPlace, Family, Fault, Flavour, Gateway, Network, Plan};
use selvedge_netlab::clock::{now, wait_until};
use selvedge_netlab::etcd::Etcd;
use selvedge_netlab::frr::{Daemon, Frr};
use selvedge_netlab::stream::Streams;
use selvedge_netlab::{Campus, Recipe, observe};

#[test]
fn a_flooding_campus_forwards_and_follows_a_takeover() {
    let Some(lab) = common::lab("a_flooding_campus_forwards_and_follows_a_takeover") else {
        return;
    };
    let plan = Plan { gateways: 2, networks: 3, flavour: Flavour::Flood, etcd: EtcdPlace::Absent };
    let campus = Campus::build(lab, plan).expect("builds");
    take_over_and_measure(&campus, flood_levers);
}

#[test]
fn a_campus_with_frr_forwards_and_follows_a_takeover() {
    let test = "a_campus_with_frr_forwards_and_follows_a_takeover";
    let Some(lab) = common::lab(test) else { return };
    if !common::installed(test, "FRRouting", Frr::is_installed()) {
        return;
    }
    let plan = Plan { gateways: 2, networks: 3, flavour: Flavour::Frr, etcd: EtcdPlace::Absent };
    let campus = Campus::build(lab, plan).expect("builds");
    take_over_and_measure(&campus, frr_levers);
}

#[test]
fn a_flooding_campus_that_is_served_by_hand_loses_nothing_and_shows_its_owners() {
    let test = "a_flooding_campus_that_is_served_by_hand_loses_nothing_and_shows_its_owners";
    let Some(lab) = common::lab(test) else { return };
    let plan = Plan { gateways: 2, networks: 4, flavour: Flavour::Flood, etcd: EtcdPlace::Absent };
    serve_and_observe(&Campus::build(lab, plan).expect("builds"));
}

#[test]
fn a_campus_with_frr_that_is_served_by_hand_loses_nothing_and_shows_its_owners() {
    let test = "a_campus_with_frr_that_is_served_by_hand_loses_nothing_and_shows_its_owners";
    let Some(lab) = common::lab(test) else { return };
    if !common::installed(test, "FRRouting", Frr::is_installed()) {
        return;
    }
    let plan = Plan { gateways: 2, networks: 4, flavour: Flavour::Frr, etcd: EtcdPlace::Absent };
    let mut campus = Campus::build(lab, plan).expect("builds");
    serve_and_observe(&campus);

    // One daemon can be killed and comes back alone.
    let frr = campus.gateways[0].frr.as_mut().expect("the flavour has it");
    assert!(frr.vtysh(&["show bgp l2vpn evpn summary"]).expect("answers").contains("172.16.0.2"));
    frr.kill_daemon(Daemon::Bgp).expect("kills");
    let without = frr.vtysh(&["show bgp l2vpn evpn summary"]).unwrap_or_default();
    assert!(!without.contains("172.16.0.2"), "{without}");
    frr.vtysh(&["show ip ospf"]).expect("the others go on");
    frr.restart_daemon(Daemon::Bgp).expect("starts");
    assert!(frr.vtysh(&["show bgp l2vpn evpn summary"]).expect("answers").contains("172.16.0.2"));
}

/// Packets of both families run through two gateways, each with its share; then who serves what
/// is asked for in every way.
fn serve_and_observe(campus: &Campus) {
    let owners = campus.serve_by_hand().expect("serves");
    let order: Vec<Vni> = owners.iter().map(|(network, _)| network.vni()).collect();
    let specs = campus.streams(&order, &[], &Family::ALL);
    assert_eq!(specs.len(), 8);
    let mut streams = Streams::start(&specs).expect("streams start");
    wait_until("packets on all streams", Duration::from_secs(30), || {
        let at = now();
        std::thread::sleep(Duration::from_millis(200));
        Ok(streams.report_between(at, now()).flowing().len() == 4)
    })
    .unwrap_or_else(|error| panic!("{error}: {}", state(campus)));
    let from = now();
    std::thread::sleep(Duration::from_secs(1));
    let to = now();
    streams.stop(Duration::from_millis(500));
    let report = streams.report_between(from, to);
    assert_eq!((report.flows.len(), report.lost()), (16, 0), "{report:?}");
    assert_eq!(report.only(|flow| flow.ipv6).flows.len(), 8);

    let networks: Vec<Network> = campus.networks().collect();
    for family in Family::ALL {
        let answering = campus.answering(&networks, family).expect("asks");
        let originating = campus.originating(&networks, family).expect("asks");
        for (network, owner) in &owners {
            let only = BTreeSet::from([owner.clone()]);
            assert_eq!(answering[&network.vni()], only, "{family:?} {network:?} is answered");
            assert_eq!(originating[&network.vni()], only, "{family:?} {network:?} is attracted");
        }
    }
}

#[test]
fn etcd_runs_on_a_witness_or_apart_and_outlives_a_member() {
    let test = "etcd_runs_on_a_witness_or_apart_and_outlives_a_member";
    for (etcd, members) in [
        (EtcdPlace::Witness, ["gw1", "gw2", "witness"]),
        (EtcdPlace::Apart(3), ["store1", "store2", "store3"]),
    ] {
        let Some(lab) = common::lab(test) else { return };
        if !common::installed(test, "etcd", Etcd::is_installed()) {
            return;
        }
        let plan = Plan { gateways: 2, networks: 1, flavour: Flavour::Flood, etcd };
        let mut campus = Campus::build(lab, plan).expect("builds");
        assert_eq!(campus.witness.is_some(), etcd == EtcdPlace::Witness);
        let etcd = campus.etcd.as_mut().expect("the plan has it");
        assert_eq!(etcd.members(), members);
        etcd.move_leader(members[0]).expect("moves");
        etcd.kill_member(members[2]).expect("kills");
        let watch = etcd.watch_one(&campus.access_point, "/x/").expect("watches");
        let endpoint = etcd.endpoints()[1].clone();
        let put = ["--endpoints", &endpoint, "put", "/x/a", "7"];
        // From a gateway, because the agents there have to reach it.
        campus.gateways[1].host.sh("etcdctl", &put).expect("two of three are enough");
        wait_until("the watch", Duration::from_secs(20), || Ok(watch.seen().len() == 1))
            .expect("seen");
        etcd.restart_members_on(members[2]).expect("starts");
        etcd.wait_healthy(Duration::from_secs(30)).expect("is whole again");
        assert!(etcd.kill_member("gw9").is_err());
    }
}

#[test]
fn etcd_leads_moves_its_leader_and_is_watched() {
    let test = "etcd_leads_moves_its_leader_and_is_watched";
    let Some(lab) = common::lab(test) else { return };
    if !common::installed(test, "etcd", Etcd::is_installed()) {
        return;
    }
    let plan =
        Plan { gateways: 3, networks: 1, flavour: Flavour::Flood, etcd: EtcdPlace::Gateways };
    let mut campus = Campus::build(lab, plan).expect("builds");
    let etcd = campus.etcd.as_ref().expect("the plan has it");
    assert_eq!(etcd.members(), ["gw1", "gw2", "gw3"]);
    for host in ["gw3", "gw1"] {
        etcd.move_leader(host).expect("moves");
        assert_eq!(etcd.leader().expect("asked").as_deref(), Some(host));
    }
    let watch = etcd.watch(&campus.access_point, "/x/").expect("watches");
    let endpoint = etcd.endpoints()[1].clone();
    let put =
        |key| campus.gateways[1].host.sh("etcdctl", &["--endpoints", &endpoint, "put", key, "7"]);
    let before = now();
    put("/x/a").expect("puts");
    put("/y/b").expect("puts");
    wait_until("the watch", Duration::from_secs(2), || Ok(!watch.seen().is_empty())).expect("seen");
    let seen = watch.seen();
    assert_eq!((seen[0].key.as_str(), seen[0].value.as_deref()), ("/x/a", Some("7")));
    assert!(seen[0].at >= before && seen[0].at <= now());
    assert_eq!(etcd.get("/x/").expect("read"), [("/x/a".into(), "7".into())].into());

    // A power failure takes the leader; the others elect another, and it comes back.
    let mut agent = Recipe::new("agent", &campus.gateways[0].host, "sleep")
        .arg("1000")
        .start()
        .expect("starts");
    campus.strike("gw1", Fault::Power, &mut agent).expect("strikes");
    let etcd = campus.etcd.as_ref().expect("the plan has it");
    wait_until("a new leader", Duration::from_secs(8), || {
        Ok(etcd.leader()?.is_some_and(|leader| leader != "gw1"))
    })
    .expect("elects");
    campus.heal("gw1", Fault::Power, &mut agent).expect("heals");
    assert!(agent.is_running());
    let etcd = campus.etcd.as_ref().expect("the plan has it");
    etcd.wait_healthy(Duration::from_secs(15)).expect("is healthy again");
}

/// Whether a gateway serves in the place of one that is gone.
#[derive(Clone, Copy)]
enum Takeover {
    No,
    Yes,
}

/// gw1 serves all networks; its links are cut; gw2 takes them over 200 ms later, by hand. The
/// streams must show that, and nothing else.
fn take_over_and_measure(campus: &Campus, levers: fn(&Gateway, &[Network], Takeover)) {
    let networks: Vec<Network> = campus.networks().collect();
    let order: Vec<Vni> = networks.iter().map(|network| network.vni()).collect();
    levers(&campus.gateways[0], &networks, Takeover::No);
    let mut streams =
        Streams::start(&campus.streams(&order, &[], &[Family::V4])).expect("streams start");
    wait_for_packets(campus, &streams);
    wait_for_owner(campus, &networks, "gw1");

    let mut nobody = Recipe::new("agent", &campus.gateways[0].host, "true").start().expect("runs");
    let before = now();
    std::thread::sleep(Duration::from_millis(500));
    let quiet = now();
    // What is on its way arrives before the cut.
    std::thread::sleep(Duration::from_millis(200));
    campus.strike("gw1", Fault::Cut, &mut nobody).expect("cuts");
    std::thread::sleep(Duration::from_millis(200));
    levers(&campus.gateways[1], &networks, Takeover::Yes);
    wait_for_packets(campus, &streams);
    wait_for_owner(campus, &networks, "gw2");
    let halves: usize = campus.halves().expect("asks").into_values().sum();
    match campus.plan.flavour {
        Flavour::Frr => assert!(halves >= 2 * networks.len(), "{halves} of at least one family"),
        Flavour::Flood | Flavour::Mesh => assert_eq!(halves, 0),
    }
    streams.stop(Duration::from_millis(200));

    let quiet = streams.report_between(before, quiet);
    assert_eq!(quiet.lost(), 0, "{quiet:?}");
    for (vni, gap) in streams.report_between(before, now()).gaps() {
        assert!(gap > Duration::from_millis(200), "network {vni} did not notice: {gap:?}");
    }
}

/// Until packets arrive on all streams, for as long as a takeover by hand takes on a busy machine.
fn wait_for_packets(campus: &Campus, streams: &Streams) {
    wait_until("packets on all streams", Duration::from_secs(30), || {
        let at = now();
        std::thread::sleep(Duration::from_millis(100));
        Ok(streams.report_between(at, now()).flows.iter().all(|flow| flow.received > 5))
    })
    .unwrap_or_else(|error| panic!("{error}: {}", state(campus)));
}

/// Waits until this gateway alone answers for the networks, and attracts their packets.
fn wait_for_owner(campus: &Campus, networks: &[Network], owner: &str) {
    let only = BTreeSet::from([owner.to_owned()]);
    wait_until(&format!("{owner} as the one owner"), Duration::from_secs(30), || {
        let answering = campus.answering(networks, Family::V4)?;
        let originating = campus.originating(networks, Family::V4)?;
        Ok(answering.values().chain(originating.values()).all(|who| *who == only))
    })
    .unwrap_or_else(|error| panic!("{error}: {}", state(campus)));
}

fn flood_levers(gateway: &Gateway, networks: &[Network], _: Takeover) {
    let (mut ip, mut fdb) = (String::new(), String::new());
    for network in networks {
        ip += &format!("address add {}/32 dev up0\n", network.next_hop(Family::V4));
        fdb += &format!("fdb append 00:00:00:00:00:00 dev {} dst 172.16.254.1\n", network.vxlan());
    }
    gateway.host.bridge(&fdb).expect("floods");
    gateway.host.ip(&ip).expect("holds the next hops");
    answer_and_announce(gateway, networks, true);
}

fn frr_levers(gateway: &Gateway, networks: &[Network], takeover: Takeover) {
    let (mut ip, mut vnis) = (String::new(), vec!["configure".to_owned()]);
    vnis.extend(["router bgp 65000".to_owned(), "address-family l2vpn evpn".to_owned()]);
    for network in networks {
        let (bridge, address) = (network.bridge(), network.gateway(Family::V4));
        ip += &format!("address del {address} dev {bridge}\n");
        ip += &format!("address add {}/32 dev {bridge}\n", address.addr());
        // The routes of a gateway that is gone stay until OSPF's dead interval ends; the halves
        // beat them.
        let whole = network.prefix(Family::V4);
        let routes = match takeover {
            Takeover::No => vec![whole],
            Takeover::Yes => whole.halves().expect("a /24 has halves").to_vec(),
        };
        for route in routes {
            ip += &format!("route add {route} dev {bridge} proto {ROUTE_PROTOCOL}\n");
        }
        vnis.extend([
            format!("vni {}", network.vni()),
            "advertise-svi-ip".into(),
            "exit-vni".into(),
        ]);
    }
    gateway.host.ip(&ip).expect("routes");
    let frr = gateway.frr.as_ref().expect("the flavour has it");
    let commands: Vec<&str> = vnis.iter().map(String::as_str).collect();
    frr.vtysh(&commands).expect("advertises");
    answer_and_announce(gateway, networks, false);
}

fn answer_and_announce(gateway: &Gateway, networks: &[Network], next_hops: bool) {
    let settings: Vec<_> = networks
        .iter()
        .map(|network| (format!("ipv4/conf/{}/arp_ignore", network.bridge()), "0"))
        .collect();
    gateway.host.sysctl(&settings).expect("answers");
    let uplink = observe::mac(&gateway.host, "up0").expect("has one");
    let v4 = |address| match address {
        std::net::IpAddr::V4(address) => address,
        std::net::IpAddr::V6(address) => panic!("{address}"),
    };
    let mut frames = Vec::new();
    let bridges: Vec<String> = networks.iter().map(|network| network.bridge()).collect();
    for (network, bridge) in networks.iter().zip(&bridges) {
        let mac = observe::mac(&gateway.host, bridge).expect("has one");
        let address = v4(network.gateway(Family::V4).addr());
        frames.push((bridge.as_str(), gratuitous_arp(mac, address)));
        if next_hops {
            let address = v4(network.next_hop(Family::V4));
            frames.push(("up0", gratuitous_arp(uplink, address)));
        }
    }
    observe::inject(&gateway.host, &frames).expect("announces");
}

/// What there is to know when something does not forward.
fn state(campus: &Campus) -> String {
    let mut text = String::new();
    for host in [&campus.upstream, &campus.gateways[0].host, &campus.gateways[1].host] {
        let routes = host.sh("ip", &["route"]).unwrap_or_default();
        let neighbours = host.sh("ip", &["neigh"]).unwrap_or_default();
        text += &format!("\n== {}\n{routes}{neighbours}", host.name());
    }
    for gateway in &campus.gateways {
        let Some(frr) = &gateway.frr else { continue };
        for command in ["show ip ospf neighbor", "show ip ospf database", "show bgp l2vpn evpn"] {
            text += &frr.vtysh(&[command]).unwrap_or_else(|error| error.to_string());
        }
    }
    let fdb = campus.access_point.sh("bridge", &["fdb"]).unwrap_or_default();
    text + &format!("\n== access point\n{fdb}")
}
