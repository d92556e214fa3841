//! Proof that address translation, counters and connections are what they say.

mod common;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use selvedge_netlab::clock::{now, wait_until};
use selvedge_netlab::firewall::{Counter, Mapping, masquerade};
use selvedge_netlab::link::{Port, Segment};
use selvedge_netlab::stream::{End, Spec, Streams};
use selvedge_netlab::tcp::{Connection, Pace};
use selvedge_netlab::{Host, Lab};

const SERVERS: [&str; 2] = ["198.51.100.1:9", "198.51.100.2:9"];

/// A host behind a router, and two servers on the outside.
struct Home {
    inside: Host,
    servers: [Host; 2],
    port: Port,
}

#[test]
fn a_router_hides_who_is_behind_it_and_lets_nobody_in() {
    let name = "a_router_hides_who_is_behind_it_and_lets_nobody_in";
    let Some(lab) = common::lab(name) else { return };
    let home = home(&lab, Mapping::Kept);
    let [first, second] = partners(&home);
    assert_eq!(first.ip(), IpAddr::from([198, 51, 100, 99]));
    assert_eq!((first.port(), second.port()), (7000, 7000), "both see the same port");
    let refused = Counter::new(&home.inside, "in", "input", "udp dport 7001").expect("counts");
    let passed = Counter::new(&home.inside, "in2", "input", "udp dport 7000").expect("counts");
    let server = socket(&home.servers[0], "198.51.100.1:10");
    for port in [7000, 7001] {
        server.send_to(b"unasked", (first.ip(), port)).expect("sends");
    }
    let answer = socket(&home.servers[1], "198.51.100.2:9");
    answer.send_to(b"answer", second).expect("sends");
    let arrived = || Ok(passed.packets()? > 0);
    wait_until("the answer", Duration::from_secs(10), arrived).expect("arrives");
    assert_eq!(passed.packets().expect("counts"), 1, "the answer alone");
    assert_eq!(refused.packets().expect("counts"), 0);
}

#[test]
fn a_router_can_show_every_partner_another_port() {
    let Some(lab) = common::lab("a_router_can_show_every_partner_another_port") else { return };
    let [first, second] = partners(&home(&lab, Mapping::Random));
    assert_ne!(first.port(), second.port());
}

#[test]
fn a_connection_shows_how_long_it_stood_still() {
    let Some(lab) = common::lab("a_connection_shows_how_long_it_stood_still") else { return };
    let home = home(&lab, Mapping::Kept);
    let (from, to) = ([10, 0, 0, 2].into(), SERVERS[0].parse().expect("an address"));
    let pace = Pace::Every(Duration::from_millis(5));
    let connection = Connection::open((&home.inside, from), (&home.servers[0], to), pace);
    let connection = connection.expect("connects");
    std::thread::sleep(Duration::from_millis(300));
    let began = now();
    Port::set_forwarding(&[&home.port], false).expect("silences the host");
    std::thread::sleep(Duration::from_millis(500));
    Port::set_forwarding(&[&home.port], true).expect("lets it speak again");
    let ended = now();
    let goes_on = || Ok(connection.bytes_between(ended, now()) > 0);
    wait_until("more bytes", Duration::from_secs(20), goes_on).expect("it goes on");
    let gap = connection.gap_between(began, now());
    assert!(gap > Duration::from_millis(490) && gap < Duration::from_secs(20), "{gap:?}");
    assert!(connection.is_open());
}

#[test]
fn streams_run_through_a_router_that_translates() {
    let Some(lab) = common::lab("streams_run_through_a_router_that_translates") else { return };
    let home = home(&lab, Mapping::Random);
    let end = |host: &Host, address: &str| End {
        host: host.clone(),
        address: address.parse().expect("an address"),
        device: None,
    };
    let spec = Spec {
        label: 1,
        a: end(&home.inside, "10.0.0.2:7000"),
        b: end(&home.servers[0], SERVERS[0]),
        interval: Duration::from_millis(20),
    };
    let streams = Streams::start(&[spec]).expect("starts");
    let both_ways = || Ok(streams.report().flowing().contains(&1));
    wait_until("packets both ways", Duration::from_secs(10), both_ways).expect("they run");
}

/// The address and port that each server sees of the host inside, which uses one port.
fn partners(home: &Home) -> [SocketAddr; 2] {
    let from = socket(&home.inside, "10.0.0.2:7000");
    let servers = [0, 1].map(|index| socket(&home.servers[index], SERVERS[index]));
    [0, 1].map(|index| {
        from.send_to(b"hello", SERVERS[index]).expect("sends");
        servers[index].recv_from(&mut [0; 16]).expect("arrives").1
    })
}

fn socket(host: &Host, address: &str) -> UdpSocket {
    let socket = host.run(|| UdpSocket::bind(address)).expect("enters").expect("binds");
    socket.set_read_timeout(Some(Duration::from_secs(10))).expect("sets");
    socket
}

fn home(lab: &Lab, mapping: Mapping) -> Home {
    let switch = lab.host("switch").expect("a switch");
    let segment = |name| Segment::create(&switch, name).expect("a segment");
    let (outside, lan) = (segment("outside"), segment("lan"));
    let host = |name: &str| lab.host(name).expect("a host");
    let (inside, router, servers) = (host("inside"), host("router"), [host("a"), host("b")]);
    let port = lan.plug(&inside, "eth0").expect("plugged in");
    lan.plug(&router, "lan").expect("plugged in");
    outside.plug(&router, "wan").expect("plugged in");
    let batch = |host: &Host, lines: &str| host.ip(lines).expect("configures");
    batch(&inside, "addr add 10.0.0.2/24 dev eth0\nroute add default via 10.0.0.1\n");
    batch(&router, "addr add 10.0.0.1/24 dev lan\naddr add 198.51.100.99/24 dev wan\n");
    for (server, address) in servers.iter().zip(SERVERS) {
        outside.plug(server, "eth0").expect("plugged in");
        let (ip, _) = address.split_once(':').expect("a port");
        batch(server, &format!("addr add {ip}/24 dev eth0\n"));
    }
    masquerade(&router, "wan", mapping).expect("translates");
    Home { inside, servers, port }
}
