//! Proof that the streams measure what happens to packets: a static route carries a stream
//! through a router, and faults of a known length show with that length.

mod common;

use std::process::Command;
use std::time::{Duration, Instant};

use selvedge_host::netns::Namespace;
use selvedge_netlab::link::{Port, Segment};
use selvedge_netlab::stream::{Direction, End, Report, Spec, Streams};
use selvedge_netlab::{Host, Lab};

/// `west` and `east`, each behind a segment of its own, and a router between them.
struct Routed {
    west: Host,
    east: Host,
    port: Port,
}

#[test]
fn an_undisturbed_stream_loses_nothing() {
    let Some(lab) = common::lab("an_undisturbed_stream_loses_nothing") else { return };
    let net = routed(&lab);
    let mut streams = start(&net);
    std::thread::sleep(Duration::from_millis(800));
    streams.stop(Duration::from_millis(100));
    let report = streams.report();
    assert_eq!(report.flows.len(), 4);
    assert!(report.sent() > 4 * 150, "{report:?}");
    assert_eq!(report.lost(), 0, "{report:?}");
    assert!(report.flows.iter().all(|flow| flow.duplicates == 0 && flow.reordered == 0));
    let live: u64 = streams.live().iter().map(|live| live.received).sum();
    assert_eq!(live, report.sent());
}

#[test]
fn a_cut_of_300_ms_is_measured_as_one() {
    let Some(lab) = common::lab("a_cut_of_300_ms_is_measured_as_one") else { return };
    let net = routed(&lab);
    // A run in which the machine kept the sender waiting proves nothing either way.
    let Some((report, fault)) = (0..5)
        .map(|_| cut(&net))
        .find(|(report, _)| report.sender_late < Duration::from_millis(20))
    else {
        panic!("the sender was late in every run");
    };
    for flow in &report.flows {
        let gap = flow.longest_gap;
        assert!(gap > Duration::from_millis(295), "{flow:?}");
        assert!(gap < fault + Duration::from_millis(60), "{fault:?}: {flow:?}");
        let expected = gap.as_millis() / 5;
        assert!(u128::from(flow.lost).abs_diff(expected) <= 3, "{flow:?}");
    }
    assert_eq!(report.gaps().len(), 2);
}

/// Silences the router for 300 ms, and says how long that really took: the tools that begin and
/// end it need some milliseconds each.
fn cut(net: &Routed) -> (Report, Duration) {
    let mut streams = start(net);
    std::thread::sleep(Duration::from_millis(300));
    let began = Instant::now();
    Port::set_forwarding(&[&net.port], false).expect("silences the router");
    std::thread::sleep(Duration::from_millis(300));
    Port::set_forwarding(&[&net.port], true).expect("lets it forward again");
    let fault = began.elapsed();
    std::thread::sleep(Duration::from_millis(300));
    streams.stop(Duration::from_millis(100));
    (streams.report(), fault)
}

#[test]
fn a_direction_without_a_way_back_is_lost_alone() {
    let Some(lab) = common::lab("a_direction_without_a_way_back_is_lost_alone") else { return };
    let net = routed(&lab);
    net.east.ip("route del default\n").expect("removes the way back");
    let mut streams = start(&net);
    std::thread::sleep(Duration::from_millis(300));
    streams.stop(Duration::from_millis(100));
    for flow in &streams.report().flows {
        match flow.direction {
            Direction::Out => assert_eq!(flow.lost, 0, "{flow:?}"),
            Direction::Back if flow.label == 4 => assert_eq!(flow.received, 0, "{flow:?}"),
            Direction::Back => assert_eq!(flow.lost, 0, "IPv6 has its own route: {flow:?}"),
        }
    }
}

#[test]
fn nothing_is_left_of_a_laboratory() {
    let Some(lab) = common::lab("nothing_is_left_of_a_laboratory") else { return };
    let host = lab.host("lonely").expect("makes a host");
    let sleeper = selvedge_netlab::Recipe::new("sleep", &host, "sleep").arg("1000").start();
    let mut sleeper = sleeper.expect("starts");
    assert!(sleeper.is_running());
    assert!(host.processes().contains(&sleeper.pid()));
    let (folder, name) = (lab.folder().to_owned(), host.namespace().name().to_owned());
    assert!(folder.is_dir());
    drop(lab);
    assert!(!folder.exists());
    assert!(!std::path::Path::new("/run/netns").join(name).exists());
    assert_eq!(sleeper.status().as_deref(), Some("signal 9"));
}

#[test]
fn what_a_killed_laboratory_left_is_swept() {
    let Some(lab) = common::lab("what_a_killed_laboratory_left_is_swept") else { return };
    let living = lab.host("living").expect("makes a host");
    let mut owner = Command::new("true").spawn().expect("starts");
    owner.wait().expect("ends");
    let name = format!("sv{:x}n0", owner.id());
    let left = Namespace::create(&format!("{name}-gw1")).expect("makes a namespace");
    let mut orphan = left.command("sleep").arg("1000").spawn().expect("starts");
    let folder = lab.folder().with_file_name(&name);
    std::fs::create_dir(&folder).expect("makes a folder");

    assert!(Lab::sweep().contains(&left.name().to_owned()));
    assert!(!folder.exists());
    assert!(Namespace::open(left.name()).is_err());
    assert_eq!(orphan.wait().expect("has ended").code(), None, "killed by a signal");
    assert!(Namespace::open(living.namespace().name()).is_ok());
}

fn routed(lab: &Lab) -> Routed {
    let [west, east, router, switch] =
        ["west", "east", "router", "switch"].map(|name| lab.host(name).expect("makes a host"));
    router
        .sysctl(&[("ipv4/ip_forward".into(), "1"), ("ipv6/conf/all/forwarding".into(), "1")])
        .expect("makes it a router");
    let mut ports = Vec::new();
    for (side, host) in [(1, &west), (2, &east)] {
        let segment = Segment::create(&switch, &format!("s{side}")).expect("makes a segment");
        segment.plug(host, "eth0").expect("plugs the host in");
        ports.push(segment.plug(&router, &format!("eth{side}")).expect("plugs the router in"));
        host.ip(&format!(
            "address add 10.9.{side}.2/24 dev eth0\nroute add default via 10.9.{side}.1\n\
             address add fd09:{side}::2/64 dev eth0 nodad\nroute add default via fd09:{side}::1\n"
        ))
        .expect("gives it addresses");
        router
            .ip(&format!(
                "address add 10.9.{side}.1/24 dev eth{side}\n\
                 address add fd09:{side}::1/64 dev eth{side} nodad\n"
            ))
            .expect("gives it addresses");
    }
    Routed { west, east, port: ports.remove(0) }
}

/// One stream for each IP version, labelled by it.
fn start(net: &Routed) -> Streams {
    let end = |host: &Host, address: &str, device| End {
        host: host.clone(),
        address: address.parse().expect("an address"),
        device,
    };
    let bound = Some("eth0".to_owned());
    let spec = |label, a, b| Spec { label, a, b, interval: Duration::from_millis(5) };
    let specs = [
        spec(
            4,
            end(&net.west, "10.9.1.2:7000", bound.clone()),
            end(&net.east, "10.9.2.2:7000", None),
        ),
        spec(
            6,
            end(&net.west, "[fd09:1::2]:7000", bound),
            end(&net.east, "[fd09:2::2]:7000", None),
        ),
    ];
    Streams::start(&specs).expect("starts the streams")
}
