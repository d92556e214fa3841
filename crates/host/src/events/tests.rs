use std::time::{Duration, Instant};

use super::*;
use crate::netlink::{AddressOptions, LinkKind, Netlink, NewLink};
use crate::netns::Ephemeral;
use crate::test_support::{namespace, runtime};

/// A hang, not a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

fn with_events(test: &str, body: impl AsyncFnOnce(Netlink, Events) + Send) {
    let Some(ns) = namespace(test) else { return };
    inside(&ns, body);
}

fn inside(ns: &Ephemeral, body: impl AsyncFnOnce(Netlink, Events) + Send) {
    let all = || {
        runtime().block_on(async {
            let mut events = Events::open().expect("a socket");
            assert_eq!(next(&mut events).await, Change::Missed, "the first is to look");
            body(Netlink::new().expect("netlink"), events).await;
        });
    };
    ns.run(all).expect("entered");
}

async fn next(events: &mut Events) -> Change {
    let change = tokio::time::timeout(PATIENCE, events.next()).await;
    change.expect("a change in time").expect("a good socket")
}

/// Waits for a change of the interface `name` after which it `is` as expected.
async fn until(events: &mut Events, name: &str, is: impl Fn(&Link) -> bool) -> Link {
    loop {
        if let Change::Link(link) = next(events).await
            && link.name == name
            && is(&link)
        {
            return link;
        }
    }
}

/// That nothing (more) is told, by something that is told after it.
async fn nothing_before(events: &mut Events, netlink: &Netlink, marker: &str) -> Vec<Change> {
    netlink.add_link(marker, &NewLink::Bridge).await.expect("a bridge");
    let mut others = Vec::new();
    loop {
        let change = next(events).await;
        if matches!(&change, Change::Link(link) if link.name == marker) {
            return others;
        }
        others.push(change);
    }
}

async fn pair(netlink: &Netlink) -> (u32, u32) {
    netlink.add_link("a", &NewLink::Veth { peer: "b", namespace: None }).await.expect("a pair");
    let a = netlink.link("a").await.expect("readable").expect("there").index;
    let b = netlink.link("b").await.expect("readable").expect("there").index;
    for index in [a, b] {
        netlink.set_up(index, true, None).await.expect("up");
    }
    (a, b)
}

#[test]
fn a_lost_carrier_is_heard_within_milliseconds() {
    with_events("a_lost_carrier", async |netlink, mut events| {
        let (_, b) = pair(&netlink).await;
        until(&mut events, "a", |link| link.carrier).await;
        let mut delays = Vec::new();
        for _ in 0..5 {
            let start = Instant::now();
            netlink.set_up(b, false, None).await.expect("down");
            let lost = until(&mut events, "a", |link| !link.carrier).await;
            delays.push(start.elapsed());
            assert!(lost.up && lost.kind == LinkKind::Veth, "{lost:?}");
            netlink.set_up(b, true, None).await.expect("up");
            until(&mut events, "a", |link| link.carrier).await;
        }
        delays.sort();
        println!("carrier loss heard after {delays:?}");
        assert!(delays[2] < Duration::from_millis(200), "{delays:?}");
    });
}

#[test]
fn interfaces_come_are_renamed_and_go() {
    let Some(ns) = namespace("interfaces_come") else { return };
    inside(&ns, async |netlink, mut events| {
        netlink.add_link("old", &NewLink::Bridge).await.expect("a bridge");
        let made = until(&mut events, "old", |link| link.kind == LinkKind::Bridge).await;
        let mut rename = std::process::Command::new("ip");
        let status = rename.args(["link", "set", "old", "name", "new"]).status();
        assert!(status.expect("ip").success());
        let renamed = until(&mut events, "new", |_| true).await;
        assert_eq!(renamed.index, made.index);
        netlink.del_link(made.index).await.expect("gone");
        loop {
            if let Change::LinkGone { index, name } = next(&mut events).await {
                assert_eq!((index, name.as_str()), (made.index, "new"));
                break;
            }
        }
    });
}

#[test]
fn a_port_that_leaves_its_bridge_is_not_gone() {
    with_events("a_port_that_leaves", async |netlink, mut events| {
        let (a, _) = pair(&netlink).await;
        netlink.add_link("br0", &NewLink::Bridge).await.expect("a bridge");
        let bridge = netlink.link("br0").await.expect("readable").expect("there").index;
        netlink.set_master(a, Some(bridge)).await.expect("a port");
        until(&mut events, "a", |link| link.master == Some(bridge)).await;
        netlink.set_master(a, None).await.expect("no port");
        until(&mut events, "a", |link| link.master.is_none()).await;
        let others = nothing_before(&mut events, &netlink, "marker").await;
        let gone = |change: &Change| matches!(change, Change::LinkGone { .. });
        assert!(!others.iter().any(gone), "{others:?}");
    });
}

#[test]
fn what_changed_and_changed_back_is_not_told() {
    with_events("what_changed_back", async |netlink, mut events| {
        let (a, b) = pair(&netlink).await;
        until(&mut events, "a", |link| link.carrier).await;
        nothing_before(&mut events, &netlink, "first").await;
        let address = "10.0.0.1/24".parse().expect("a prefix");
        for index in [a, b] {
            netlink.set_up(index, true, Some(1400)).await.expect("changed");
            netlink.set_up(index, true, Some(1500)).await.expect("and back");
            netlink.add_address(index, address, AddressOptions::default()).await.expect("added");
            netlink.del_address(index, address).await.expect("deleted");
        }
        // Of one gulp the interfaces are told before the addresses.
        let mut others = nothing_before(&mut events, &netlink, "second").await;
        others.extend(nothing_before(&mut events, &netlink, "third").await);
        for index in [a, b] {
            let told = others.iter().filter(|change| **change == Change::Addresses { index });
            assert_eq!(told.count(), 1, "{others:?}");
        }
        let ours = |change: &Change| match change {
            Change::Link(link) => [a, b].contains(&link.index),
            Change::LinkGone { .. } | Change::Addresses { .. } | Change::Missed => false,
        };
        assert!(!others.iter().any(ours), "{others:?}");
    });
}

#[test]
fn what_the_kernel_cannot_deliver_is_missed_and_hearing_goes_on() {
    let Some(ns) = namespace("what_the_kernel_cannot_deliver") else { return };
    inside(&ns, async |netlink, _| {
        let mut events = Events::with_buffer(1).expect("a socket with the least of buffers");
        assert_eq!(next(&mut events).await, Change::Missed);
        let (a, _) = pair(&netlink).await;
        for mtu in 1000..1200 {
            netlink.set_up(a, true, Some(mtu)).await.expect("changed");
        }
        while next(&mut events).await != Change::Missed {}
        netlink.add_link("later", &NewLink::Bridge).await.expect("a bridge");
        until(&mut events, "later", |_| true).await;
    });
}

#[test]
fn what_cannot_be_read_is_missed() {
    let mut news = News::default();
    assert_eq!(news.pop(), Some(Change::Missed));
    assert_eq!(news.pop(), None);
    news.read(&[1, 2, 3]);
    assert_eq!(news.pop(), Some(Change::Missed));
}
