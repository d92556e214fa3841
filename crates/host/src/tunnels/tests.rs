use std::process::Command;
use std::time::Duration;

use etherparse::PacketBuilder;

use super::*;
use crate::fabric::testing::{Wire, link, pair};
use crate::netlink::AddressOptions;
use crate::test_support::{namespace, runtime};

const PARTNER: Ipv6Addr = Ipv6Addr::new(0xfd5e, 0, 0, 1, 0, 0, 0, 2);
const OTHER: Ipv6Addr = Ipv6Addr::new(0xfd5e, 0, 0, 1, 0, 0, 0, 3);
const OWN: Ipv6Addr = Ipv6Addr::new(0xfd5e, 0, 0, 1, 0, 0, 0, 1);

fn vni(number: u32) -> Vni {
    number.try_into().expect("a VNI")
}

fn run(test: &str, body: impl AsyncFnOnce(Netlink) + Send) {
    let Some(namespace) = namespace(test) else { return };
    namespace
        .run(|| runtime().block_on(async { body(Netlink::new().expect("netlink")).await }))
        .expect("entered");
}

/// Networks 1 and 2, of which only the first has a bridge.
fn wanted(endpoints: &[Ipv6Addr]) -> Wanted {
    let endpoints: BTreeSet<Ipv6Addr> = endpoints.iter().copied().collect();
    let networks = [1, 2].map(|number| (vni(number), endpoints.clone())).into();
    Wanted { device: "sv-campus".into(), local: OWN, names: Names::default(), networks }
}

/// What stands for the interface of the mesh.
async fn mesh(netlink: &Netlink) {
    pair(netlink, "sv-campus", "far").await;
    let index = link(netlink, "sv-campus").await.index;
    let address = "fd5e:0:0:1::1/64".parse().expect("a prefix");
    let options = AddressOptions { no_prefix_route: false, no_dad: true };
    netlink.add_address(index, address, options).await.expect("address");
}

async fn bridge(netlink: &Netlink, name: &str) {
    netlink.add_link(name, &NewLink::Bridge).await.expect("bridge");
    let index = link(netlink, name).await.index;
    netlink.set_up(index, true, Some(1500)).await.expect("up");
}

async fn reached(tunnels: &mut Tunnels, wanted: &Wanted) -> Reached {
    tunnels.converge(wanted).await.expect("converges")
}

async fn flooded(netlink: &Netlink) -> BTreeSet<IpAddr> {
    let index = link(netlink, "vxlan1").await.index;
    let all = netlink.fdb(index).await.expect("readable");
    all.iter().filter(|entry| entry.mac == FLOOD).map(|entry| entry.dst).collect()
}

fn ip(words: &str) {
    let status = Command::new("ip").args(words.split(' ')).status();
    assert!(status.expect("ip runs").success(), "ip {words}");
}

#[test]
fn tunnels_follow_the_interface_of_the_mesh() {
    run("tunnels_follow_the_interface_of_the_mesh", async |netlink| {
        bridge(&netlink, "br1").await;
        let mut tunnels = Tunnels::new(netlink.clone());
        let both = wanted(&[PARTNER, OTHER]);
        assert_eq!(reached(&mut tunnels, &both).await, Reached::default(), "no mesh yet");

        mesh(&netlink).await;
        let first = reached(&mut tunnels, &both).await;
        assert_eq!(first.mtu, Some(1430));
        assert_eq!(first.problems.len(), 1);
        assert!(first.problems[&vni(2)].contains("there is no bridge br2"));
        let (lower, made) = (link(&netlink, "sv-campus").await, link(&netlink, "vxlan1").await);
        let spec = made.vxlan.expect("a tunnel");
        assert_eq!((spec.local, spec.device), (Some(OWN.into()), Some(lower.index)));
        assert_eq!((made.mtu, made.up), (1430, true));
        let carrying = link(&netlink, "br1").await;
        assert_eq!((made.master, carrying.mtu), (Some(carrying.index), 1430));
        assert_eq!(flooded(&netlink).await, [PARTNER.into(), OTHER.into()].into());

        // What is so already is left alone; what is less or more is put right.
        netlink.set_up(lower.index, true, Some(1600)).await.expect("mtu");
        assert_eq!(reached(&mut tunnels, &wanted(&[OTHER])).await.mtu, Some(1530));
        let later = link(&netlink, "vxlan1").await;
        assert_eq!((later.index, later.mtu), (made.index, 1530));
        assert_eq!(link(&netlink, "br1").await.mtu, 1530);
        assert_eq!(flooded(&netlink).await, [OTHER.into()].into());

        netlink.del_link(lower.index).await.expect("gone");
        assert_eq!(netlink.link("vxlan1").await.expect("readable"), None, "it went along");
        mesh(&netlink).await;
        reached(&mut tunnels, &both).await;
        assert_eq!(flooded(&netlink).await, [PARTNER.into(), OTHER.into()].into());

        let mut none = both.clone();
        none.networks.clear();
        reached(&mut tunnels, &none).await;
        assert_eq!(netlink.link("vxlan1").await.expect("readable"), None);
    });
}

#[test]
fn what_is_not_the_agents_is_left_alone() {
    run("what_is_not_the_agents_is_left_alone", async |netlink| {
        bridge(&netlink, "br1").await;
        mesh(&netlink).await;
        let spec = Vxlan { vni: vni(1), local: None, device: None, port: 9, learning: false };
        netlink.add_link("vxlan1", &NewLink::Vxlan(spec)).await.expect("vxlan");
        let mut tunnels = Tunnels::new(netlink.clone());
        let found = reached(&mut tunnels, &wanted(&[])).await;
        assert!(found.problems[&vni(1)].contains("vxlan1 is not the agent's"));
        tunnels.remove("sv-campus").await.expect("removed");
        assert_eq!(link(&netlink, "vxlan1").await.vxlan, Some(spec));
    });
}

/// What a station of network 1 sends to all.
fn hello(station: &Wire) -> Vec<u8> {
    let packet = PacketBuilder::ethernet2(station.mac(), [0xff; 6])
        .ipv4([10, 0, 1, 10], [10, 0, 1, 255], 64)
        .udp(4000, 4000);
    let mut frame = Vec::new();
    packet.write(&mut frame, SECRET).expect("written");
    frame
}

const SECRET: &[u8] = b"for the stations alone";

fn holds_secret(frame: &[u8]) -> Option<()> {
    frame.windows(SECRET.len()).any(|part| part == SECRET).then_some(())
}

/// A VXLAN packet of network 1 that somebody on the underlay sends to this host.
fn forged(attacker: &Wire, to: [u8; 6], inner: &[u8]) -> Vec<u8> {
    let [attacked, own] = ["2001:db8::1", "2001:db8::2"];
    let octets = |text: &str| text.parse::<Ipv6Addr>().expect("an address").octets();
    let packet = PacketBuilder::ethernet2(attacker.mac(), to)
        .ipv6(octets(own), octets(attacked), 64)
        .udp(40_000, PORT);
    let payload = [[8, 0, 0, 0, 0, 0, 1, 0].as_slice(), inner].concat();
    let mut frame = Vec::new();
    packet.write(&mut frame, &payload).expect("written");
    frame
}

#[test]
fn nothing_leaves_or_enters_by_another_interface() {
    run("nothing_leaves_or_enters_by_another_interface", async |netlink| {
        bridge(&netlink, "br1").await;
        pair(&netlink, "port1", "station").await;
        pair(&netlink, "eth0", "underlay").await;
        let port = link(&netlink, "port1").await.index;
        netlink.set_master(port, Some(link(&netlink, "br1").await.index)).await.expect("port");
        mesh(&netlink).await;
        // A host without an address on the mesh sends everything by its default route.
        ip("-6 address add 2001:db8::1/64 dev eth0 nodad");
        ip("-6 neigh add 2001:db8::2 lladdr 02:00:00:00:00:02 dev eth0 nud permanent");
        ip("-6 route add default via 2001:db8::2 dev eth0");
        let mut tunnels = Tunnels::new(netlink.clone());
        let reached = reached(&mut tunnels, &wanted(&[PARTNER])).await;
        assert!(!reached.problems.contains_key(&vni(1)), "{reached:?}");
        ip("-6 route del fd5e:0:0:1::/64 dev sv-campus");

        let station = Wire::open(&netlink, "station").await;
        let underlay = Wire::open(&netlink, "underlay").await;
        let target = link(&netlink, "eth0").await.mac.expect("a MAC");
        let leaks = |patience| {
            station.send(&hello(&station));
            underlay.receive(patience, holds_secret).is_some()
        };
        let inner = hello(&underlay);
        let enters = |patience| {
            underlay.send(&forged(&underlay, target, &inner));
            // What the station itself sent is on its wire, too.
            let forged =
                |frame: &[u8]| holds_secret(frame).filter(|()| frame[6..12] == underlay.mac());
            station.receive(patience, forged).is_some()
        };
        let (soon, long) = (Duration::from_millis(300), Duration::from_secs(10));
        assert!(!leaks(soon) && !enters(soon), "guarded");
        tunnels.remove("far").await.expect("unguarded");
        assert!(leaks(long) && enters(long), "what was looked for would have been seen");
    });
}
