use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;

use nix::libc;
use selvedge_topology::{Hop, Relays, Table};

use super::*;
use crate::netlink::Route;

const BEYOND: &str = "fd88::/64";

fn address(text: &str) -> Ipv6Addr {
    text.parse().expect("an address")
}

/// Of a member of fd77::/64.
fn relays(own: &str) -> Relays {
    Relays {
        own: address(own),
        own_ipv4: None,
        overlay: prefix("fd77::/64"),
        overlay_ipv4: None,
        hops: Table::default(),
        serves: Table::default(),
        sources: BTreeMap::new(),
    }
}

async fn interface(host: &Host, name: &str) -> u32 {
    host.netlink.link(name).await.expect("readable").expect("there").index
}

async fn route(host: &Host, to: &str) {
    let index = interface(host, "wg0").await;
    host.netlink.add_route(&Route::on_link(prefix(to), index, 99)).await.expect("added");
}

/// The left host reaches a network behind the right one.
fn connect(pair: &Pair) -> (Device, Device) {
    let Pair { runtime, a, b, .. } = pair;
    let (mut left, mut right) = (a.device(runtime), b.device(runtime));
    runtime.block_on(async {
        right.apply(&a.as_peer("fd00:99::1")).await.expect("applied");
        left.apply(&b.as_peer("fd00:99::2")).await.expect("applied");
        let options = AddressOptions { no_dad: true, no_prefix_route: false };
        let lo = interface(b, "lo").await;
        b.netlink.set_up(lo, true, None).await.expect("up");
        b.netlink.add_address(lo, prefix("fd88::1/64"), options).await.expect("added");
        route(a, BEYOND).await;
    });
    wait_for_session(a, b);
    let hop = Hop { via: address("fd77::2"), distance: 1 };
    left.set_relays(Relays {
        hops: [(prefix(BEYOND), hop)].into_iter().collect(),
        sources: [(address("fd77::2"), BTreeSet::from([prefix(BEYOND)]))].into(),
        ..relays("fd77::1")
    });
    let serves = [(prefix(BEYOND), 0)].into_iter().collect();
    right.set_relays(Relays { serves, ..relays("fd77::2") });
    (left, right)
}

/// Where the handshakes of both sides cross, the first packet may be lost.
fn wait_for_session(a: &Host, b: &Host) {
    let (socket, echo) = (a.socket(), b.echo());
    let arrived = (0..20).any(|number| round_trip(&socket, echo, number, 100).expect("sent"));
    assert!(arrived, "the members do not hear each other");
}

#[test]
fn packets_to_beyond_the_mesh_are_carried_by_a_member() {
    let Some(pair) = Pair::new("packets_to_beyond") else { return };
    let (left, _right) = connect(&pair);
    let (ours, beyond) = (pair.a.socket(), pair.b.echo_at("fd88::1"));
    for number in 0..20 {
        assert!(round_trip(&ours, beyond, number, 100).expect("sent"), "packet {number} is lost");
    }
    let member = pair.b.echo();
    assert!(round_trip(&ours, member, 21, 100).expect("sent"), "members talk as ever");
    assert_eq!(left.refused(), 0);
}

#[test]
fn a_sender_is_told_how_much_is_carried() {
    let Some(pair) = Pair::new("how_much_is_carried") else { return };
    let (_left, _right) = connect(&pair);
    let (ours, beyond) = (pair.a.socket(), pair.b.echo_at("fd88::1"));
    let full = usize::from(MTU) - 40 - HEADERS;
    assert!(round_trip(&ours, beyond, 0, full).expect("sent"));
    let told = (1..50).find_map(|number| round_trip(&ours, beyond, number, full + 1).err());
    assert_eq!(told.and_then(|error| error.raw_os_error()), Some(libc::EMSGSIZE));
    assert!(round_trip(&ours, beyond, 50, full).expect("sent"));
}

#[test]
fn nobody_becomes_a_router_against_its_will() {
    let Some(pair) = Pair::new("against_its_will") else { return };
    let (left, right) = connect(&pair);
    right.set_relays(relays("fd77::2"));
    let (ours, beyond) = (pair.a.socket(), pair.b.echo_at("fd88::1"));
    ours.set_read_timeout(Some(Duration::from_millis(300))).expect("set");
    assert!(!round_trip(&ours, beyond, 0, 100).expect("sent"));
    assert!(right.refused() > 0, "the receiver drops what it does not announce");
    let before = left.refused();
    pair.runtime.block_on(route(&pair.a, "fd66::/64"));
    let nowhere = "[fd66::1]:9".parse().expect("an address");
    assert!(!round_trip(&ours, nowhere, 1, 100).expect("sent"));
    assert!(left.refused() > before, "the sender drops what nobody announces");
}

/// Two networks in IPv4, each behind a member that has no such address inside the mesh.
fn connect_networks(pair: &Pair) -> (Device, Device) {
    let Pair { runtime, a, b, .. } = pair;
    let (mut left, mut right) = (a.device(runtime), b.device(runtime));
    runtime.block_on(async {
        right.apply(&a.as_peer("fd00:99::1")).await.expect("applied");
        left.apply(&b.as_peer("fd00:99::2")).await.expect("applied");
    });
    wait_for_session(a, b);
    for (host, device, near, far, via) in [
        (a, &left, "192.168.7.1/24", "192.168.9.0/24", "fd77::2"),
        (b, &right, "192.168.9.1/24", "192.168.7.0/24", "fd77::1"),
    ] {
        runtime.block_on(stand_in(host, near, far));
        let hop = Hop { via: address(via), distance: 1 };
        device.set_relays(Relays {
            hops: [(prefix(far), hop)].into_iter().collect(),
            serves: [(prefix(near), 0)].into_iter().collect(),
            sources: [(address(via), BTreeSet::from([prefix(far)]))].into(),
            ..relays(host.overlay)
        });
    }
    (left, right)
}

/// The host has an address in the network `near` and reaches `far` by the mesh, and takes nothing
/// from where it would not answer to.
async fn stand_in(host: &Host, near: &str, far: &str) {
    let lo = interface(host, "lo").await;
    host.netlink.set_up(lo, true, None).await.expect("up");
    let options = AddressOptions { no_dad: true, no_prefix_route: true };
    host.netlink.add_address(lo, prefix(near), options).await.expect("added");
    route(host, far).await;
    let strict = || std::fs::write("/proc/sys/net/ipv4/conf/wg0/rp_filter", "1");
    host.namespace.run(strict).expect("entered").expect("written");
}

#[test]
fn a_sender_in_ipv4_is_told_by_a_member_without_an_address_of_its_own() {
    let Some(pair) = Pair::new("told_in_ipv4") else { return };
    let (_left, _right) = connect_networks(&pair);
    let (ours, theirs) = (pair.a.socket_at("192.168.7.1"), pair.b.echo_at("192.168.9.1"));
    assert!(round_trip(&ours, theirs, 0, 100).expect("sent"), "the networks are connected");
    // What it is told makes the host cut what is larger into pieces, here and on the way back.
    let whole = usize::from(MTU) - 28;
    assert!(!round_trip(&ours, theirs, 1, whole).expect("sent"), "it does not fit in one");
    let arrived = (2..20).any(|number| round_trip(&ours, theirs, number, whole).expect("sent"));
    assert!(arrived, "nobody is told how much is carried");
}

#[test]
fn an_empty_packet_is_heard_and_is_no_destination() {
    let Some(pair) = Pair::new("an_empty_packet") else { return };
    let (left, right) = connect(&pair);
    let destinations = Destinations::default();
    left.note_destinations(&destinations);
    let heard = || pair.runtime.block_on(right.peers())[0].rx;
    let before = heard();
    let nudged = pair.a.namespace.run(|| crate::nudge::nudge(&[address("fd77::2")]));
    nudged.expect("entered").expect("the right to");
    let end = Instant::now() + Duration::from_secs(10);
    while heard() < before + 40 {
        assert!(Instant::now() < end, "nothing is heard");
        std::thread::sleep(Duration::from_millis(5));
    }
    let noted = || destinations.within(Duration::from_secs(60));
    assert!(noted().is_empty());
    // What is carried goes to the member that carries it.
    let ours = pair.a.socket();
    assert!(round_trip(&ours, pair.b.echo_at("fd88::1"), 1, 100).expect("sent"));
    assert_eq!(noted(), [IpAddr::from(address("fd77::2"))]);
}
