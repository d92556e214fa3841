use std::time::Instant;

use selvedge_gateway::desired::Duty;
use tokio::sync::watch::{Receiver, Sender, channel};

use super::*;
use crate::fabric::testing::{self, link};
use crate::fabric::{ROUTE_METRIC, ROUTE_PROTOCOL};
use crate::frr::Vty;
use crate::netlink::{Netlink, NewLink, Route};
use crate::test_frr::{self, PATIENCE, Scene};
use crate::test_support::{namespace, runtime};

fn vni(number: u32) -> Vni {
    number.try_into().expect("a VNI")
}

fn these(names: &[&str]) -> Interfaces {
    Interfaces::These(names.iter().map(|name| (*name).to_owned()).collect())
}

/// Nothing to watch but what a test adds.
fn nothing() -> Checks {
    let off = || Interfaces::Off;
    Checks { uplink: off(), fabric: off(), bridges: false, ..Checks::default() }
}

async fn until(reports: &mut Receiver<Report>, is: impl Fn(&Report) -> bool) -> Report {
    let waiting = tokio::time::timeout(PATIENCE, reports.wait_for(is));
    if let Ok(report) = waiting.await.map(|report| report.expect("the monitor runs").clone()) {
        return report;
    }
    panic!("not in time; last: {:?}", *reports.borrow())
}

async fn becomes(reports: &mut Receiver<Report>, fitness: Fitness) -> Report {
    until(reports, |report| report.fitness() == fitness).await
}

fn of(report: &Report, check: Check) -> Vec<String> {
    let problems = report.problems.iter().filter(|problem| problem.check == check);
    problems.map(|problem| format!("{}: {}", problem.subject, problem.text)).collect()
}

fn served(duty: Duty) -> (Sender<Served>, Receiver<Served>) {
    channel(Served::from([(vni(1), duty)]))
}

#[test]
fn a_lost_carrier_is_reported_within_milliseconds() {
    let Some(ns) = namespace("a_lost_carrier_is_reported") else { return };
    let body = async || {
        let netlink = Netlink::new().expect("netlink");
        testing::pair(&netlink, "a", "b").await;
        let checks = Checks { uplink: these(&["a"]), ..nothing() };
        let (_served, receiver) = served(Duty::NONE);
        let mut reports = spawn(checks, receiver).expect("started");
        becomes(&mut reports, Fitness::Fit).await;
        let b = link(&netlink, "b").await.index;
        let mut delays = Vec::new();
        for _ in 0..5 {
            let start = Instant::now();
            netlink.set_up(b, false, None).await.expect("down");
            let report = becomes(&mut reports, Fitness::Unfit).await;
            delays.push(start.elapsed());
            assert_eq!(of(&report, Check::Carrier), ["uplink: a has no carrier"]);
            netlink.set_up(b, true, None).await.expect("up");
            becomes(&mut reports, Fitness::Fit).await;
        }
        delays.sort();
        println!("carrier loss reported after {delays:?}");
        assert!(delays[2] < Duration::from_millis(200), "{delays:?}");
        let a = link(&netlink, "a").await.index;
        netlink.del_link(a).await.expect("gone");
        let report = becomes(&mut reports, Fitness::Unfit).await;
        assert_eq!(of(&report, Check::Carrier), ["uplink: there is no interface a"]);
    };
    ns.run(|| runtime().block_on(body())).expect("entered");
}

#[test]
fn networks_that_lose_interfaces_or_routes_are_named() {
    let Some(ns) = namespace("networks_that_lose_interfaces") else { return };
    let body = async || {
        let netlink = Netlink::new().expect("netlink");
        let prefix = "10.0.1.1/24".parse().expect("a prefix");
        testing::network(&netlink, vni(1), &[prefix]).await;
        let short = Duration::from_millis(100);
        let grace = Grace { bridge: short, network: short, ..Grace::default() };
        let checks = Checks { bridges: true, routes: true, grace, every: short, ..nothing() };
        let (sender, receiver) = served(Duty::NONE);
        let mut reports = spawn(checks, receiver).expect("started");
        until(&mut reports, |report| report.complete && report.problems.is_empty()).await;

        sender.send_replace(Served::from([(vni(1), Duty::FULL)]));
        let report = until(&mut reports, |report| !report.problems.is_empty()).await;
        assert_eq!(of(&report, Check::Route), ["1: the kernel has no route of ours into br1"]);
        assert_eq!(report.networks().map(|(vni, _)| vni).collect::<Vec<_>>(), [vni(1)]);
        let bridge = link(&netlink, "br1").await.index;
        let route =
            Route { metric: ROUTE_METRIC, ..Route::on_link(prefix, bridge, ROUTE_PROTOCOL) };
        netlink.add_route(&route).await.expect("added");
        until(&mut reports, |report| report.problems.is_empty()).await;

        let vxlan = link(&netlink, "vxlan1").await.index;
        netlink.set_master(vxlan, None).await.expect("no port");
        let wrong = |report: &Report| !of(report, Check::Bridge).is_empty();
        let report = until(&mut reports, wrong).await;
        // A bridge without a port loses its carrier as well.
        let text = &of(&report, Check::Bridge)[0];
        assert!(text == "1: br1 has no carrier" || text == "1: vxlan1 is not a port of br1");
        assert_eq!(report.fitness(), Fitness::Fit, "other networks are not concerned");
        netlink.set_master(vxlan, Some(bridge)).await.expect("a port");
        until(&mut reports, |report| report.problems.is_empty()).await;
        netlink.del_link(bridge).await.expect("gone");
        let gone = |report: &Report| of(report, Check::Bridge) == ["1: there is no interface br1"];
        until(&mut reports, gone).await;
        sender.send_replace(Served::new());
        until(&mut reports, |report| report.problems.is_empty()).await;
    };
    ns.run(|| runtime().block_on(body())).expect("entered");
}

fn with_frr(scene: &Scene) -> Checks {
    let vty_dir = scene.gateway.dir.path().to_owned();
    let frr = FrrChecks { vty_dir, pathspace: None, bgp: true, ospf: true, ospf6: true };
    Checks { frr: Some(frr), ..nothing() }
}

fn start(scene: &mut Scene) {
    scene.gateway.start("zebra", "");
    scene.gateway.start("bgpd", &test_frr::bgpd("192.0.2.1", "192.0.2.2"));
    scene.gateway.start("ospfd", &test_frr::ospfd("192.0.2.1"));
    scene.gateway.start("ospf6d", &test_frr::ospf6d("192.0.2.1"));
}

#[test]
fn sessions_of_daemons_that_are_killed_and_restarted_are_followed() {
    test_frr::run("sessions_of_daemons", async |mut scene| {
        start(&mut scene);
        let checks = Checks { uplink: Interfaces::Auto, ..with_frr(&scene) };
        let (_served, receiver) = served(Duty::NONE);
        let mut reports = spawn(checks, receiver).expect("started");
        becomes(&mut reports, Fitness::Starting).await;
        becomes(&mut reports, Fitness::Fit).await;

        for (daemon, config) in [
            ("bgpd", test_frr::bgpd("192.0.2.1", "192.0.2.2")),
            ("ospfd", test_frr::ospfd("192.0.2.1")),
            ("ospf6d", test_frr::ospf6d("192.0.2.1")),
        ] {
            let killed = Instant::now();
            scene.gateway.kill(daemon);
            let report = becomes(&mut reports, Fitness::Unfit).await;
            println!("{daemon} killed: reported after {:?}", killed.elapsed());
            let problems = of(&report, Check::Session);
            assert!(
                problems[0].starts_with(&format!("{daemon}: cannot reach FRR")),
                "{problems:?}"
            );
            scene.gateway.start(daemon, &config);
            becomes(&mut reports, Fitness::Fit).await;
            println!("{daemon} works again after {:?}", killed.elapsed());
        }

        scene.router.kill("bgpd");
        let report = becomes(&mut reports, Fitness::Unfit).await;
        let lost = ["bgpd: no EVPN session of bgpd is established"];
        assert_eq!(of(&report, Check::Session), lost);
        scene.router.start("bgpd", &test_frr::bgpd("192.0.2.2", "192.0.2.1"));
        becomes(&mut reports, Fitness::Fit).await;

        // By now the uplink was found by its neighbours.
        let up0 = link(&scene.there, "up0").await.index;
        scene.there.set_up(up0, false, None).await.expect("down");
        let dark = |report: &Report| of(report, Check::Carrier) == ["uplink: up0 has no carrier"];
        until(&mut reports, dark).await;
    });
}

#[test]
fn sessions_that_never_come_up_count_when_the_start_is_over() {
    test_frr::run("sessions_that_never_come_up", async |mut scene| {
        scene.router.kill("bgpd");
        start(&mut scene);
        scene.gateway.kill("ospf6d");
        let starting = Duration::from_secs(8);
        let checks = Checks { start: starting, ..with_frr(&scene) };
        let (_served, receiver) = served(Duty::NONE);
        let started = Instant::now();
        let mut reports = spawn(checks, receiver).expect("started");
        let report = becomes(&mut reports, Fitness::Unfit).await;
        assert!(started.elapsed() >= starting, "{:?}", started.elapsed());
        let lost = ["bgpd: no EVPN session of bgpd is established"];
        assert_eq!(of(&report, Check::Session), lost);
    });
}

#[test]
fn adverts_that_bgpd_has_forgotten_are_named() {
    test_frr::run("adverts_that_bgpd_has_forgotten", async |mut scene| {
        testing::network(&scene.here, vni(1), &["10.0.1.1/24".parse().expect("a prefix")]).await;
        start(&mut scene);
        let short = Duration::from_millis(100);
        let grace = Grace { network: short, ..Grace::default() };
        let checks = Checks { adverts: true, grace, every: short, ..with_frr(&scene) };
        let (_served, receiver) = served(Duty::FULL);
        let mut reports = spawn(checks, receiver).expect("started");
        let missing = ["1: bgpd does not advertise the gateway"];
        until(&mut reports, |report| of(report, Check::Advert) == missing).await;
        let mut bgpd = scene.gateway.vty("bgpd");
        advertise(&mut bgpd).await;
        until(&mut reports, |report| of(report, Check::Advert).is_empty()).await;
        scene.gateway.kill("bgpd");
        scene.gateway.start("bgpd", &test_frr::bgpd("192.0.2.1", "192.0.2.2"));
        until(&mut reports, |report| of(report, Check::Advert) == missing).await;
    });
}

async fn advertise(bgpd: &mut Vty) {
    let context = ["router bgp", "address-family l2vpn evpn"];
    let commands = [["vni 1", "advertise-svi-ip"]];
    let refused = bgpd.configure(&context, &commands).await.expect("configured");
    assert!(refused.is_empty(), "{refused:?}");
}

/// Prints what asking costs; run it by name.
#[test]
#[ignore = "prints figures"]
fn what_asking_costs_with_many_networks() {
    test_frr::run("what_asking_costs", async |mut scene| {
        let count = 500;
        for number in 1..=count {
            let address = format!("10.{}.{}.1/24", number >> 8, number & 0xff);
            let address = address.parse().expect("a prefix");
            testing::network(&scene.here, vni(number), &[address]).await;
        }
        start(&mut scene);
        let mut bgpd = scene.gateway.vty("bgpd");
        let context = ["router bgp", "address-family l2vpn evpn"];
        let commands: Vec<_> =
            (1..=count).map(|n| [format!("vni {n}"), "advertise-svi-ip".to_owned()]).collect();
        bgpd.configure(&context, &commands).await.expect("configured");
        test_frr::until("sessions", async || {
            let summary = bgpd.run("show bgp l2vpn evpn summary json").await.expect("bgpd");
            summary.contains("Established")
        })
        .await;
        let mut ospf6d = scene.gateway.vty("ospf6d");
        time(&mut ospf6d, "show ipv6 ospf6 neighbor json").await;
        time(&mut ospf6d, "show ipv6 ospf6 interface json").await;
        time(&mut bgpd, "show bgp l2vpn evpn summary json").await;
        time(&mut bgpd, "show bgp l2vpn evpn vni json").await;
        time(&mut scene.gateway.vty("ospfd"), "show ip ospf neighbor json").await;
        let start = Instant::now();
        let links = scene.here.links().await.expect("readable").len();
        println!("{links} interfaces read in {:?}", start.elapsed());
    });
}

async fn time(vty: &mut Vty, command: &str) {
    let start = Instant::now();
    let mut size = 0;
    for _ in 0..20 {
        size = vty.run(command).await.expect("answered").len();
    }
    println!("{command}: {:?}, {size} bytes", start.elapsed() / 20);
}

/// What is not to be checked cannot make a host unfit, whatever it lacks.
#[test]
fn nothing_to_check_is_fit() {
    let Some(ns) = namespace("nothing_to_check") else { return };
    let body = async || {
        let netlink = Netlink::new().expect("netlink");
        netlink.add_link("br9", &NewLink::Bridge).await.expect("a bridge");
        let (_served, receiver) = served(Duty::FULL);
        let mut reports = spawn(nothing(), receiver).expect("started");
        becomes(&mut reports, Fitness::Fit).await;
    };
    ns.run(|| runtime().block_on(body())).expect("entered");
}
