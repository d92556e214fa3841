use std::net::Ipv4Addr;
use std::time::Duration;

use etherparse::{EtherType, NetSlice, PacketBuilder, SlicedPacket};

use super::*;
use crate::fabric::testing::{self, Wire, arp};
use crate::inventory::{Declared, Found, Names};
use crate::test_support;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
const STATION: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 7);
const NEXT_HOP: Ipv4Addr = Ipv4Addr::new(172, 20, 1, 1);
const UPSTREAM: Ipv4Addr = Ipv4Addr::new(172, 20, 0, 1);
const SOON: Duration = Duration::from_millis(300);

fn vni(number: u32) -> Vni {
    number.try_into().expect("a VNI")
}

fn gateway6() -> IpAddr {
    "fd00:1::1".parse().expect("an address")
}

fn run(test: &str, body: impl AsyncFnOnce() + Send) {
    let Some(namespace) = test_support::namespace(test) else { return };
    namespace.run(|| test_support::runtime().block_on(body())).expect("entered");
}

/// Network 1 with a station behind a port of its bridge, and a router at the uplink; both are
/// raw wires.
struct Scene {
    netlink: Netlink,
    station: Wire,
    router: Wire,
    saved: Vec<Found>,
}

impl Scene {
    async fn new() -> (Self, Flood) {
        testing::forward();
        let netlink = Netlink::new().expect("netlink");
        let addresses = ["10.0.1.1/24", "fd00:1::1/64"].map(|text| text.parse().expect("prefix"));
        testing::network(&netlink, vni(1), &addresses).await;
        testing::pair(&netlink, "up0", "router").await;
        testing::pair(&netlink, "port1", "station").await;
        let bridge = testing::link(&netlink, "br1").await.index;
        let port = testing::link(&netlink, "port1").await.index;
        netlink.set_master(port, Some(bridge)).await.expect("a port");
        let uplink = testing::link(&netlink, "up0").await.index;
        let address = "172.20.0.2/16".parse().expect("prefix");
        netlink.add_address(uplink, address, AddressOptions::default()).await.expect("address");
        let station = Wire::open(&netlink, "station").await;
        let router = Wire::open(&netlink, "router").await;
        let mut scene = Self { netlink, station, router, saved: Vec::new() };
        let flood = scene.driver().await;
        (scene, flood)
    }

    /// A new agent on the same host.
    async fn driver(&mut self) -> Flood {
        let next_hops = vec![NEXT_HOP.into(), "fd20::1".parse().expect("an address")];
        let declared = Declared { next_hops, ..Declared::default() };
        let wanted = BTreeMap::from([(vni(1), declared)]);
        let saved = self.saved.clone();
        let mut inventory = Inventory::new(self.netlink.clone(), Names::default(), wanted, saved);
        inventory.survey().await.expect("surveyed");
        self.saved = inventory.found();
        assert!(inventory.adopt(&[vni(1)]).await.is_empty());
        let endpoints = ["192.0.2.1", "192.0.2.2", "192.0.2.3"];
        let endpoints = endpoints.map(|text| text.parse().expect("an address")).to_vec();
        let config = FloodConfig { uplink: "up0".into(), endpoints };
        Flood::new(inventory, config).expect("a driver")
    }

    /// Where a packet to `dst` that is sent to the host's `mac` comes out.
    fn pass(&self, from: &Wire, to: &Wire, mac: Mac, path: (Ipv4Addr, Ipv4Addr)) -> bool {
        let (src, dst) = path;
        let packet = PacketBuilder::ethernet2(from.mac(), mac)
            .ipv4(src.octets(), dst.octets(), 64)
            .udp(4000, 4000);
        let mut frame = Vec::new();
        packet.write(&mut frame, b"numbered").expect("written");
        from.send(&frame);
        let passed = to.receive(SOON, |frame| {
            let Some(NetSlice::Ipv4(ip)) = SlicedPacket::from_ethernet(frame).ok()?.net else {
                return None;
            };
            let header = ip.header();
            (header.destination_addr() == dst && header.ttl() == 63).then_some(())
        });
        passed.is_some()
    }
}

async fn observed(flood: &mut Flood) -> Duty {
    flood.observe().await.expect("observed")[&vni(1)]
}

fn done(failures: Failures) {
    assert!(failures.is_empty(), "{failures:?}");
}

/// The station's and the router's addresses, as an answer to an ARP request would leave them.
fn teach(scene: &Scene) {
    for (interface, addr, mac) in
        [("br1", STATION, scene.station.mac()), ("up0", UPSTREAM, scene.router.mac())]
    {
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        let status = std::process::Command::new("ip")
            .args(["neigh", "replace", &addr.to_string(), "lladdr", &mac, "dev", interface])
            .args(["nud", "reachable"])
            .status();
        assert!(status.expect("ip runs").success());
    }
}

#[test]
fn an_adopted_network_is_silent() {
    run("flood: silent", async || {
        let (scene, mut flood) = Scene::new().await;
        assert_eq!(observed(&mut flood).await, Duty::NONE);
        assert_eq!(scene.station.resolve(GATEWAY, STATION), None);
        assert_eq!(scene.router.resolve(NEXT_HOP, UPSTREAM), None);
    });
}

#[test]
fn answering_is_heard_and_observed() {
    run("flood: answering", async || {
        let (scene, mut flood) = Scene::new().await;
        done(flood.answering(&[vni(1)], true).await);
        let bridge = testing::link(&scene.netlink, "br1").await;
        assert_eq!(scene.station.resolve(GATEWAY, STATION), bridge.mac);
        assert_eq!(observed(&mut flood).await, Duty { answering: true, ..Duty::NONE });
        let all = scene.netlink.addresses().await.expect("readable");
        assert!(
            all.iter().any(|held| held.prefix == Prefix::host(gateway6()) && !held.is_tentative())
        );

        teach(&scene);
        done(flood.answering(&[vni(1)], false).await);
        assert_eq!(scene.station.resolve(GATEWAY, STATION), None);
        assert_eq!(observed(&mut flood).await, Duty::NONE);
        let all = scene.netlink.addresses().await.expect("readable");
        assert!(!all.iter().any(|held| held.prefix.addr() == gateway6()));
        assert_eq!(stations(), "", "the stations are forgotten");
    });
}

fn stations() -> String {
    let output = std::process::Command::new("ip").args(["neigh", "show", "dev", "br1"]).output();
    String::from_utf8(output.expect("ip runs").stdout).expect("text")
}

#[test]
fn an_answer_that_is_there_in_part_is_completed() {
    run("flood: in part", async || {
        let (scene, mut flood) = Scene::new().await;
        done(flood.answering(&[vni(1)], true).await);
        let bridge = testing::link(&scene.netlink, "br1").await.index;
        let lost = Prefix::host(gateway6());
        scene.netlink.del_address(bridge, lost).await.expect("deleted");
        assert_eq!(observed(&mut flood).await, Duty::NONE, "told to, but it does not");
        done(flood.answering(&[vni(1)], true).await);
        assert!(observed(&mut flood).await.answering);
    });
}

#[test]
fn fabric_floods_to_all_others() {
    run("flood: fabric", async || {
        let (scene, mut flood) = Scene::new().await;
        let vxlan = testing::link(&scene.netlink, "vxlan1").await.index;
        let foreign: IpAddr = "192.0.2.99".parse().expect("an address");
        scene.netlink.add_fdb(vxlan, FLOOD, foreign).await.expect("added");
        let endpoints = async || {
            let entries = scene.netlink.fdb(vxlan).await.expect("readable");
            let flooded = entries.iter().filter(|entry| entry.mac == FLOOD);
            let mut ends: Vec<String> = flooded.map(|entry| entry.dst.to_string()).collect();
            ends.sort();
            ends
        };
        for _ in 0..2 {
            done(flood.fabric(&[vni(1)], true).await);
            assert_eq!(endpoints().await, ["192.0.2.2", "192.0.2.3", "192.0.2.99"]);
            assert_eq!(observed(&mut flood).await, Duty { fabric: true, ..Duty::NONE });
        }
        for _ in 0..2 {
            done(flood.fabric(&[vni(1)], false).await);
            assert_eq!(endpoints().await, ["192.0.2.99"], "another's entry stays");
            assert_eq!(observed(&mut flood).await, Duty::NONE);
        }
    });
}

#[test]
fn a_gateway_that_lets_go_still_forwards_what_is_on_its_way() {
    run("flood: upstream", async || {
        let (scene, mut flood) = Scene::new().await;
        let uplink = testing::link(&scene.netlink, "up0").await.mac;
        let down = (UPSTREAM, STATION);
        let up = (STATION, UPSTREAM);
        let pass_down = |scene: &Scene| {
            teach(scene);
            scene.pass(&scene.router, &scene.station, uplink.expect("a MAC"), down)
        };
        let bridge = testing::link(&scene.netlink, "br1").await.mac.expect("a MAC");

        done(flood.fabric(&[vni(1)], true).await);
        done(flood.upstream(&[vni(1)], Upstream::Whole).await);
        assert_eq!(scene.router.resolve(NEXT_HOP, UPSTREAM), uplink);
        assert_eq!(observed(&mut flood).await.upstream, Upstream::Whole);
        assert!(pass_down(&scene), "from upstream");
        assert!(scene.pass(&scene.station, &scene.router, bridge, up), "from the station");
        done(flood.upstream(&[vni(1)], Upstream::Halves).await);
        assert_eq!(observed(&mut flood).await.upstream, Upstream::Halves);

        done(flood.upstream(&[vni(1)], Upstream::Off).await);
        assert_eq!(scene.router.resolve(NEXT_HOP, UPSTREAM), None);
        assert_eq!(observed(&mut flood).await, Duty { fabric: true, ..Duty::NONE });
        assert!(pass_down(&scene), "what is on its way");
        assert!(scene.pass(&scene.station, &scene.router, bridge, up), "a late station");

        done(flood.fabric(&[vni(1)], false).await);
        assert!(!pass_down(&scene), "no route any more");
    });
}

#[test]
fn announcements_are_seen_on_both_sides() {
    run("flood: announce", async || {
        let (scene, mut flood) = Scene::new().await;
        done(flood.upstream(&[vni(1)], Upstream::Whole).await);
        done(flood.answering(&[vni(1)], true).await);
        done(flood.announce(&[vni(1)]).await);
        for (wire, addr, interface) in
            [(&scene.station, GATEWAY, "br1"), (&scene.router, NEXT_HOP, "up0")]
        {
            let mac = testing::link(&scene.netlink, interface).await.mac.expect("a MAC");
            let announced = wire.receive(SOON, |frame| {
                let arp = arp(frame)?;
                let both = [arp.sender_ipv4, arp.target_ipv4] == [addr.octets(); 2];
                both.then_some(arp.sender_mac)
            });
            assert_eq!(announced, Some(mac), "{addr} by ARP");
            let advertised = wire.receive(SOON, |frame| {
                let is_ipv6 = frame.get(12..14)? == EtherType::IPV6.0.to_be_bytes();
                (is_ipv6 && frame.get(54)? == &136 && frame.get(80..86)? == mac)
                    .then(|| frame[58] & 0xa0)
            });
            assert_eq!(advertised, Some(0xa0), "router and override, beside {addr}");
        }
    });
}

#[test]
fn silence_ends_everything_at_once_and_can_be_lifted() {
    run("flood: silence", async || {
        let (scene, mut flood) = Scene::new().await;
        done(flood.fabric(&[vni(1)], true).await);
        done(flood.upstream(&[vni(1)], Upstream::Whole).await);
        done(flood.answering(&[vni(1)], true).await);
        let uplink = testing::link(&scene.netlink, "up0").await.mac.expect("a MAC");
        let passes = |scene: &Scene| {
            teach(scene);
            scene.pass(&scene.router, &scene.station, uplink, (UPSTREAM, STATION))
        };
        for _ in 0..2 {
            flood.silence(true).await.expect("silent");
        }
        assert_eq!(scene.station.resolve(GATEWAY, STATION), None);
        assert_eq!(scene.router.resolve(NEXT_HOP, UPSTREAM), None);
        let itself = Ipv4Addr::new(172, 20, 0, 2);
        assert_eq!(scene.router.resolve(itself, UPSTREAM), Some(uplink), "not the host itself");
        assert!(!passes(&scene));
        done(flood.announce(&[vni(1)]).await);
        assert_eq!(scene.station.receive(SOON, arp), None);
        for _ in 0..2 {
            flood.silence(false).await.expect("lifted");
        }
        assert!(scene.station.resolve(GATEWAY, STATION).is_some());
        assert!(passes(&scene));
        assert_eq!(observed(&mut flood).await, Duty::FULL);
    });
}

#[test]
fn a_restarted_agent_finds_what_it_did() {
    run("flood: restart", async || {
        let (mut scene, mut flood) = Scene::new().await;
        done(flood.fabric(&[vni(1)], true).await);
        done(flood.upstream(&[vni(1)], Upstream::Whole).await);
        done(flood.answering(&[vni(1)], true).await);
        drop(flood);
        let mut flood = scene.driver().await;
        assert_eq!(observed(&mut flood).await, Duty::FULL);
        assert!(scene.station.resolve(GATEWAY, STATION).is_some());
    });
}

#[test]
fn what_an_earlier_run_left_half_done_is_silenced() {
    run("flood: half done", async || {
        let (mut scene, mut flood) = Scene::new().await;
        done(flood.answering(&[vni(1)], true).await);
        drop(flood);
        let bridge = testing::link(&scene.netlink, "br1").await.index;
        scene.netlink.del_address(bridge, Prefix::host(gateway6())).await.expect("deleted");
        let mut flood = scene.driver().await;
        assert_eq!(observed(&mut flood).await, Duty::NONE);
        assert_eq!(scene.station.resolve(GATEWAY, STATION), None);
        done(flood.answering(&[vni(1)], true).await);
        assert!(observed(&mut flood).await.answering);
    });
}

#[test]
fn what_cannot_be_done_is_named() {
    run("flood: failures", async || {
        let (scene, mut flood) = Scene::new().await;
        let failures = flood.fabric(&[vni(1), vni(2)], true).await;
        assert_eq!(
            failures.iter().map(|(vni, why)| format!("{vni}: {why}")).collect::<Vec<_>>(),
            ["2: network 2 is not among those that this gateway is configured for"]
        );
        crate::sysctl::set(crate::sysctl::Family::V4, "all", "arp_ignore", 8).expect("set");
        let failures = flood.answering(&[vni(1)], true).await;
        assert!(failures[&vni(1)].to_string().starts_with("net.ipv4.conf.all.arp_ignore is 8"));
        let uplink = testing::link(&scene.netlink, "up0").await.index;
        scene.netlink.del_link(uplink).await.expect("removed");
        let failures = flood.upstream(&[vni(1)], Upstream::Whole).await;
        assert_eq!(failures[&vni(1)].to_string(), "there is no uplink interface up0");
    });
}
