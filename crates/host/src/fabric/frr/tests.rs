use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use super::*;
use crate::fabric::scale::{self, timed};
use crate::fabric::testing::{self, Wire};
use crate::fabric::{LOCAL_HALVES_METRIC, LOCAL_METRIC};
use crate::inventory::Names;
use crate::netlink::{AddressOptions, NewLink, RouteFilter};
use crate::netns::Namespace;
use crate::packet::{DEFAULT_LINK_LOCAL, RaConfig};
use crate::test_frr::{self, Host};
use crate::test_support;

/// Routing protocols take their time, and the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(40);

fn vni(number: u32) -> Vni {
    number.try_into().expect("a VNI")
}

fn prefix(text: &str) -> Prefix {
    text.parse().expect("a prefix")
}

fn network(gateways: &[&str]) -> Network {
    let port = |index, name: &str| crate::inventory::Port { index, name: name.into(), mac: [0; 6] };
    Network {
        vni: vni(1),
        bridge: port(7, "br1"),
        vxlan: port(8, "vxlan1"),
        tunnel: None,
        gateways: gateways.iter().map(|text| prefix(text)).collect(),
        next_hops: Vec::new(),
        ra: RaConfig::default(),
    }
}

#[test]
fn halves_come_with_the_whole() {
    let network = network(&["10.0.1.1/24", "fd00:1::1/64"]);
    let with = |way: Upstream| {
        let all = routes(&network).into_iter().filter(|(_, least)| *least <= way);
        all.map(|(route, _)| route.dst.to_string()).collect::<Vec<_>>()
    };
    assert!(with(Upstream::Off).is_empty());
    assert_eq!(with(Upstream::Whole), ["10.0.1.0/24", "fd00:1::/64"]);
    assert_eq!(
        with(Upstream::Halves),
        [
            "10.0.1.0/24",
            "10.0.1.0/25",
            "10.0.1.128/25",
            "fd00:1::/64",
            "fd00:1::/65",
            "fd00:1:0:0:8000::/65"
        ]
    );
}

#[test]
fn routes_that_are_there_in_part_are_reported_as_not_what_was_told() {
    use Upstream::{Halves, Off, Whole};
    let network = network(&["10.0.1.1/24"]);
    let there = |dsts: &[&str]| {
        let routes: Vec<Route> = dsts.iter().map(|dst| route(&network, prefix(dst))).collect();
        index_routes(&routes)
    };
    for (dsts, told, reported) in [
        (&[][..], Halves, Off),
        (&["10.0.1.0/24"], Halves, Whole),
        (&["10.0.1.0/24"], Off, Whole),
        (&["10.0.1.0/24", "10.0.1.0/25", "10.0.1.128/25"], Whole, Halves),
        (&["10.0.1.0/24", "10.0.1.0/25", "10.0.1.128/25"], Halves, Halves),
        (&["10.0.1.0/24", "10.0.1.0/25"], Halves, Whole),
        (&["10.0.1.0/24", "10.0.1.0/25"], Whole, Halves),
        (&["10.0.1.128/25"], Off, Whole),
    ] {
        assert_eq!(observed_upstream(&network, told, &there(dsts)), reported, "{dsts:?} {told:?}");
    }
}

#[test]
fn only_networks_are_taken_from_the_answer() {
    assert_eq!(evpn(&json!(1)), None);
    assert_eq!(evpn(&json!("Enabled")), None);
    let known = evpn(&json!({"inKernel": "True", "advertiseSviMacIp": "Enabled"}));
    assert_eq!(known, Some(Evpn { in_kernel: true, enabled: true }));
    let unknown = evpn(&json!({"inKernel": "False", "vni": 7}));
    assert_eq!(unknown, Some(Evpn::default()));
}

const OSPFD: &str = "\
ip prefix-list selvedge seq 5 permit 10.0.0.0/14 ge 24 le 25
route-map selvedge permit 10
 match ip address prefix-list selvedge
interface link
 ip ospf area 0
 ip ospf hello-interval 1
 ip ospf dead-interval 3
 ip ospf network point-to-point
router ospf
 redistribute kernel route-map selvedge
";

const OSPF6D: &str = "\
ipv6 prefix-list selvedge seq 5 permit fd00::/16 ge 64 le 65
route-map selvedge permit 10
 match ipv6 address prefix-list selvedge
interface link
 ipv6 ospf6 area 0
 ipv6 ospf6 hello-interval 1
 ipv6 ospf6 dead-interval 3
 ipv6 ospf6 network point-to-point
router ospf6
 redistribute kernel route-map selvedge
";

fn bgpd(own: &str, other: &str) -> String {
    format!(
        "router bgp 65000\n bgp router-id {own}\n no bgp default ipv4-unicast\n \
         neighbor {other} remote-as 65000\n address-family l2vpn evpn\n  \
         neighbor {other} activate\n  advertise-all-vni\n"
    )
}

fn start(routing: &mut Host, own: &str, other: &str) {
    routing.start("zebra", "");
    routing.start("bgpd", &bgpd(own, other));
    routing.start("ospfd", &format!("{OSPFD} ospf router-id {own}\n"));
    routing.start("ospf6d", &format!("{OSPF6D} ospf6 router-id {own}\n"));
}

/// A gateway with its networks, and the upstream router, which is the other tunnel endpoint too.
struct Scene {
    gateway: Host,
    router: Host,
    here: Netlink,
    there: Netlink,
}

impl Scene {
    /// Within the gateway's namespace.
    async fn new(mut gateway: Host, mut router: Host, networks: u32) -> Self {
        testing::forward();
        router.namespace.run(testing::forward).expect("entered");
        let here = Netlink::new().expect("netlink");
        let there = Netlink::in_namespace(&router.namespace).expect("netlink");
        join(&here, &there, &router.namespace).await;
        scale::build(networks);
        start(&mut gateway, "192.0.2.1", "192.0.2.2");
        start(&mut router, "192.0.2.2", "192.0.2.1");
        let scene = Self { gateway, router, here, there };
        scene.wait_for_neighbours().await;
        scene
    }

    async fn wait_for_neighbours(&self) {
        let mut ospfd = self.router.vty("ospfd");
        let mut ospf6d = self.router.vty("ospf6d");
        let mut bgpd = self.router.vty("bgpd");
        until("neighbours", async || {
            // That the gateway brings routes from outside is known some seconds after the
            // neighbours have met, as a router describes itself only every 5 s.
            let ospf = ospfd.run("show ip ospf route").await.expect("ospfd");
            let ospf6 = ospf6d.run("show ipv6 ospf6 border-routers").await.expect("ospf6d");
            let bgp = bgpd.run("show bgp l2vpn evpn summary json").await.expect("bgpd");
            ospf.contains("ASBR") && ospf6.contains("192.0.2.1") && bgp.contains("\"Established\"")
        })
        .await;
    }

    async fn driver(&self, networks: u32) -> Frr {
        let wanted = (1..=networks).map(|number| (vni(number), Default::default())).collect();
        let mut inventory = Inventory::new(self.here.clone(), Names::default(), wanted, []);
        inventory.survey().await.expect("surveyed");
        let all: Vec<Vni> = (1..=networks).map(vni).collect();
        assert!(inventory.adopt(&all).await.is_empty());
        let vty_dir = self.gateway.dir.path().to_owned();
        let config = FrrConfig { vty_dir, pathspace: None, asn: None };
        Frr::new(inventory, &config).expect("a driver")
    }

    /// The overlay's prefixes that the upstream router's kernel has a route to.
    async fn upstream(&self) -> BTreeSet<String> {
        let routes = self.there.routes(RouteFilter::default()).await.expect("readable");
        let learned = routes.iter().filter(|route| route.gateway.is_some());
        let text = learned.map(|route| route.dst.to_string());
        text.filter(|text| text.starts_with("10.") || text.starts_with("fd")).collect()
    }

    async fn upstream_becomes(&self, expected: &[&str]) {
        let expected = expected.iter().map(|text| (*text).to_owned()).collect();
        until(&format!("upstream {expected:?}"), async || self.upstream().await == expected).await;
    }

    /// How many gateway addresses the other tunnel endpoint has learned by EVPN: IPv4, IPv6, and
    /// the link-local one that gateways share.
    async fn learned_of_each(&self, bgpd: &mut Vty) -> [usize; 3] {
        let all = bgpd.run("show bgp l2vpn evpn route type macip").await.expect("bgpd");
        let shared = format!("[128]:[{DEFAULT_LINK_LOCAL}]");
        ["[32]:[10.", "[128]:[fd00:", &shared].map(|address| all.matches(address).count())
    }

    async fn learned(&self, bgpd: &mut Vty) -> usize {
        self.learned_of_each(bgpd).await[0]
    }
}

/// A link from the gateway to the router, with an address at each end.
async fn join(here: &Netlink, there: &Netlink, namespace: &Namespace) {
    let veth = NewLink::Veth { peer: "link", namespace: Some(namespace) };
    here.add_link("link", &veth).await.expect("a pair");
    for (netlink, address) in [(here, "192.0.2.1/24"), (there, "192.0.2.2/24")] {
        for name in ["lo", "link"] {
            let index = testing::link(netlink, name).await.index;
            netlink.set_up(index, true, None).await.expect("up");
        }
        let index = testing::link(netlink, "link").await.index;
        let options = AddressOptions::default();
        netlink.add_address(index, prefix(address), options).await.expect("an address");
    }
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < PATIENCE, "not after {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn done(failures: Failures) {
    assert!(failures.is_empty(), "{failures:?}");
}

fn run(test: &str, networks: u32, buffer: u32, body: impl AsyncFnOnce(Scene) + Send) {
    let Some((gateway, router)) = test_frr::pair(test) else { return };
    let inside = (*gateway).clone();
    let (mut gateway, router) = (Host::new(gateway), Host::new(router));
    gateway.netlink_buffer = buffer;
    let all = || {
        test_support::runtime().block_on(async {
            body(Scene::new(gateway, router, networks).await).await;
        });
    };
    inside.run(all).expect("entered");
}

async fn observed(driver: &mut Frr) -> Duty {
    driver.observe().await.expect("observed")[&vni(1)]
}

#[test]
fn a_gateway_comes_and_goes_in_frr() {
    run("frr driver", 2, SMALL, async |mut scene| {
        let mut driver = scene.driver(2).await;
        assert_eq!(observed(&mut driver).await, Duty::NONE);
        fabric_is_advertised(&scene, &mut driver).await;
        upstream_is_attracted(&scene, &mut driver).await;
        answering_is_heard(&scene, &mut driver).await;
        both_families_are_advertised(&scene, &mut driver).await;
        a_restarted_bgpd_is_told_again(&mut scene, &mut driver).await;
        a_zebra_that_has_missed_routes_is_told_again(&scene, &mut driver).await;
        driver.inventory().release(&[vni(1), vni(2)]).await;
        let all = scene.here.addresses().await.expect("readable");
        let back = |text: &str| all.iter().any(|held| held.prefix == prefix(text));
        assert!(back("10.0.1.1/24") && back("fd00:1::1/64") && back("10.0.2.1/24"));
    });
}

async fn fabric_is_advertised(scene: &Scene, driver: &mut Frr) {
    let mut remote = scene.router.vty("bgpd");
    for _ in 0..2 {
        done(driver.fabric(&[vni(1)], true).await);
    }
    until("EVPN", async || scene.learned(&mut remote).await == 1).await;
    until("observed", async || observed(driver).await.fabric).await;
    assert!(!driver.observe().await.expect("observed")[&vni(2)].fabric);
    for _ in 0..2 {
        done(driver.fabric(&[vni(1), vni(2)], false).await);
    }
    until("no EVPN", async || scene.learned(&mut remote).await == 0).await;
    assert_eq!(observed(driver).await, Duty::NONE);
    let config = scene.gateway.vty("bgpd").run("show running-config").await.expect("bgpd");
    assert!(!config.contains("vni 2"), "a network that was never advertised:\n{config}");
}

async fn upstream_is_attracted(scene: &Scene, driver: &mut Frr) {
    // Another's kernel route, which must stay where it is.
    let bridge = testing::link(&scene.here, "br1").await.index;
    let foreign = Route::on_link(prefix("10.200.0.0/24"), bridge, 99);
    scene.here.add_route(&foreign).await.expect("added");

    done(driver.fabric(&[vni(1)], true).await);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(scene.upstream().await, BTreeSet::new(), "the local route stays at home");
    done(driver.upstream(&[vni(1)], Upstream::Whole).await);
    scene.upstream_becomes(&["10.0.1.0/24", "fd00:1::/64"]).await;
    assert_eq!(observed(driver).await.upstream, Upstream::Whole);
    done(driver.upstream(&[vni(1)], Upstream::Halves).await);
    let all = [
        "10.0.1.0/24",
        "10.0.1.0/25",
        "10.0.1.128/25",
        "fd00:1::/64",
        "fd00:1::/65",
        "fd00:1:0:0:8000::/65",
    ];
    scene.upstream_becomes(&all).await;
    assert_eq!(observed(driver).await.upstream, Upstream::Halves);
    done(driver.upstream(&[vni(1)], Upstream::Whole).await);
    scene.upstream_becomes(&["10.0.1.0/24", "fd00:1::/64"]).await;
    done(driver.upstream(&[vni(1)], Upstream::Off).await);
    scene.upstream_becomes(&[]).await;
    assert_eq!(observed(driver).await, Duty { fabric: true, ..Duty::NONE });
    assert_eq!(local_routes(scene).await, 6, "what is on its way is still forwarded");
    done(driver.fabric(&[vni(1)], false).await);
    assert_eq!(local_routes(scene).await, 0);
}

async fn local_routes(scene: &Scene) -> usize {
    let routes = scene.here.routes(RouteFilter::default()).await.expect("readable");
    let ours = |route: &&Route| [LOCAL_METRIC, LOCAL_HALVES_METRIC].contains(&route.metric);
    routes.iter().filter(ours).count()
}

async fn answering_is_heard(scene: &Scene, driver: &mut Frr) {
    testing::pair(&scene.here, "port1", "station").await;
    let bridge = testing::link(&scene.here, "br1").await;
    let port = testing::link(&scene.here, "port1").await.index;
    scene.here.set_master(port, Some(bridge.index)).await.expect("a port");
    let station = Wire::open(&scene.here, "station").await;
    let (gateway, own) = (Ipv4Addr::new(10, 0, 1, 1), Ipv4Addr::new(10, 0, 1, 7));
    assert_eq!(station.resolve(gateway, own), None);
    done(driver.answering(&[vni(1)], true).await);
    // The bridge may have taken another address with its new port.
    let mac = testing::link(&scene.here, "br1").await.mac;
    assert_eq!(station.resolve(gateway, own), mac);
    assert!(observed(driver).await.answering);
    done(driver.announce(&[vni(1)]).await);
    let announced = station.receive(Duration::from_millis(300), |frame| {
        let arp = testing::arp(frame)?;
        (arp.sender_ipv4 == arp.target_ipv4).then_some(arp.sender_mac)
    });
    assert_eq!(announced, mac);
    done(driver.answering(&[vni(1)], false).await);
    assert_eq!(station.resolve(gateway, own), None);
    assert_eq!(observed(driver).await, Duty::NONE);
}

/// The IPv6 addresses are advertised as long as the bridge carries them, which is while the host
/// answers for them.
async fn both_families_are_advertised(scene: &Scene, driver: &mut Frr) {
    let mut remote = scene.router.vty("bgpd");
    let becomes = async |expected: [usize; 3], remote: &mut Vty| {
        until(&format!("EVPN {expected:?}"), async || {
            scene.learned_of_each(remote).await == expected
        })
        .await;
    };
    done(driver.fabric(&[vni(1)], true).await);
    becomes([1, 0, 0], &mut remote).await;
    done(driver.answering(&[vni(1)], true).await);
    becomes([1, 1, 1], &mut remote).await;
    done(driver.answering(&[vni(1)], false).await);
    becomes([1, 0, 0], &mut remote).await;
    done(driver.fabric(&[vni(1)], false).await);
    becomes([0, 0, 0], &mut remote).await;
    all_at_once(scene, driver).await;
    becomes([1, 1, 1], &mut remote).await;
    done(driver.answering(&[vni(1)], false).await);
    done(driver.upstream(&[vni(1)], Upstream::Off).await);
    done(driver.fabric(&[vni(1)], false).await);
    becomes([0, 0, 0], &mut remote).await;
}

async fn all_at_once(scene: &Scene, driver: &mut Frr) {
    for _ in 0..2 {
        done(driver.take_over(&[vni(1)], Upstream::Halves).await);
    }
    until("taken over", async || observed(driver).await == Duty::TAKEOVER).await;
    assert_eq!(local_routes(scene).await, 6);
    let failures = driver.take_over(&[vni(9)], Upstream::Halves).await;
    assert_eq!(failures.keys().copied().collect::<Vec<_>>(), [vni(9)]);
}

async fn a_restarted_bgpd_is_told_again(scene: &mut Scene, driver: &mut Frr) {
    done(driver.fabric(&[vni(1)], true).await);
    scene.gateway.kill("bgpd");
    assert!(!observed(driver).await.fabric, "told to, but bgpd is gone");
    let failures = driver.fabric(&[vni(1)], true).await;
    let text = failures[&vni(1)].to_string();
    assert!(text.starts_with("cannot reach FRR at ") || text.starts_with("lost FRR"), "{text}");
    scene.gateway.start("bgpd", &bgpd("192.0.2.1", "192.0.2.2"));
    done(driver.fabric(&[vni(1)], true).await);
    let mut remote = scene.router.vty("bgpd");
    until("EVPN again", async || scene.learned(&mut remote).await == 1).await;
    until("observed", async || observed(driver).await.fabric).await;
    done(driver.fabric(&[vni(1)], false).await);
}

/// A zebra that is stopped while more happens than its socket holds, as one that is very busy.
async fn a_zebra_that_has_missed_routes_is_told_again(scene: &Scene, driver: &mut Frr) {
    driver.redistributed.lag = Duration::from_secs(1);
    driver.redistributed.pause = Duration::from_millis(100);
    let whole = ["10.0.1.0/24", "fd00:1::/64"];
    done(driver.upstream(&[vni(2)], Upstream::Whole).await);
    scene.upstream_becomes(&["10.0.2.0/24", "fd00:2::/64"]).await;
    scene.gateway.signal("zebra", Signal::SIGSTOP);
    overflow(&scene.here).await;
    done(driver.upstream(&[vni(1)], Upstream::Whole).await);
    done(driver.upstream(&[vni(2)], Upstream::Off).await);
    scene.gateway.signal("zebra", Signal::SIGCONT);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let stale = ["10.0.2.0/24".to_owned(), "fd00:2::/64".to_owned()];
    assert_eq!(scene.upstream().await, stale.into(), "zebra has not missed what was to be missed");
    until("zebra told again", async || {
        driver.observe().await.expect("observed");
        scene.upstream().await == whole.map(str::to_owned).into()
    })
    .await;
    done(driver.upstream(&[vni(1)], Upstream::Off).await);
    scene.upstream_becomes(&[]).await;
}

/// So many changes of another's route that the smallest buffer is full of them.
async fn overflow(netlink: &Netlink) {
    let bridge = testing::link(netlink, "br1").await.index;
    let route = Route::on_link(prefix("10.201.0.0/24"), bridge, 99);
    for _ in 0..3000 {
        netlink.add_route(&route).await.expect("added");
        netlink.del_route(&route).await.expect("deleted");
    }
}

/// A buffer that a test can fill.
const SMALL: u32 = 1 << 20;
const TAKEN_OVER: u32 = 667;

/// Run it with `--ignored --nocapture` to see the figures.
#[test]
#[ignore = "takes half a minute; measures"]
fn six_hundred_networks_are_quick() {
    run("667 networks in frr", TAKEN_OVER, test_frr::NETLINK_BUFFER, async |scene| {
        let mut driver = scene.driver(TAKEN_OVER).await;
        let all: Vec<Vni> = (1..=TAKEN_OVER).map(vni).collect();
        take_over(&scene, &mut driver, &all).await;
        for (way, routes) in [(Upstream::Whole, 667), (Upstream::Off, 0)] {
            // OSPF changes what it has just said only after 5 s.
            tokio::time::sleep(Duration::from_secs(6)).await;
            timed(&format!("upstream {way:?}"), async || done(driver.upstream(&all, way).await))
                .await;
            arrives(&scene, routes).await;
        }
        timed("observe", async || driver.observe().await.expect("observed")).await;
        let silencer = driver.silencer().expect("a switch");
        for on in [true, false] {
            let switched = async || silencer.silence(on).await.expect("the switch");
            timed(&format!("silence {on}"), switched).await;
        }
        timed("answering off", async || done(driver.answering(&all, false).await)).await;
        timed("fabric off", async || done(driver.fabric(&all, false).await)).await;
        let mut remote = scene.router.vty("bgpd");
        timed("  until the other tunnel endpoint knows", async || {
            until("no EVPN", async || scene.learned_of_each(&mut remote).await == [0; 3]).await;
        })
        .await;
    });
}

async fn take_over(scene: &Scene, driver: &mut Frr, all: &[Vni]) {
    timed("TAKEOVER of 667 networks", async || {
        let halves = Upstream::Halves;
        timed("take over", async || done(driver.take_over(all, halves).await)).await;
        timed("announce", async || done(driver.announce(all).await)).await;
    })
    .await;
    arrives(scene, 3 * all.len()).await;
    let mut remote = scene.router.vty("bgpd");
    timed("  until the other tunnel endpoint knows", async || {
        until("EVPN", async || scene.learned_of_each(&mut remote).await == [all.len(); 3]).await;
    })
    .await;
}

/// Waits until the upstream router's kernel has so many routes of each family.
async fn arrives(scene: &Scene, routes: usize) {
    timed("  until the upstream router's kernel knows", async || {
        until("upstream", async || {
            let there = scene.upstream().await;
            let of = |family: &str| there.iter().filter(|dst| dst.starts_with(family)).count();
            [of("10."), of("fd")] == [routes; 2]
        })
        .await;
    })
    .await;
}
