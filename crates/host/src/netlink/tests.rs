use std::time::Instant;

use selvedge_model::Vni;

use super::*;
use crate::test_support::{namespace, runtime};

const PROTOCOL: u8 = 190;

fn prefix(text: &str) -> Prefix {
    text.parse().expect("a prefix")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Runs `test` in a namespace of its own, with an interface that is up.
fn with_bridge(name: &str, test: impl AsyncFnOnce(Netlink, u32)) {
    let Some(ns) = namespace(name) else { return };
    runtime().block_on(async {
        let netlink = Netlink::in_namespace(&ns).expect("a socket");
        netlink.add_link("br0", &NewLink::Bridge).await.expect("a bridge");
        let bridge = netlink.link("br0").await.expect("readable").expect("it is there");
        netlink.set_up(bridge.index, true, None).await.expect("up");
        test(netlink, bridge.index).await;
    });
}

#[test]
fn links_are_made_read_and_removed() {
    with_bridge("links_are_made_read_and_removed", async |netlink, bridge| {
        let spec = Vxlan {
            vni: Vni::try_from(100).expect("in range"),
            local: Some(ip("192.0.2.1")),
            device: None,
            port: 4789,
            learning: false,
        };
        netlink.add_link("vx100", &NewLink::Vxlan(spec)).await.expect("a vxlan");
        netlink.add_link("vx100", &NewLink::Vxlan(spec)).await.expect("again");
        let vxlan = netlink.link("vx100").await.expect("readable").expect("there");
        assert_eq!((vxlan.kind, vxlan.vxlan, vxlan.up), (LinkKind::Vxlan, Some(spec), false));
        netlink.set_master(vxlan.index, Some(bridge)).await.expect("a port");
        netlink.set_up(vxlan.index, true, Some(1400)).await.expect("up");

        let all = netlink.links().await.expect("readable");
        let vxlan = all.iter().find(|link| link.name == "vx100").expect("there");
        assert_eq!((vxlan.master, vxlan.up, vxlan.mtu), (Some(bridge), true, 1400));
        assert!(vxlan.carrier && vxlan.mac.is_some());
        let bridge = all.iter().find(|link| link.index == bridge).expect("there");
        assert_eq!((bridge.kind, bridge.vxlan), (LinkKind::Bridge, None));

        netlink.set_master(vxlan.index, None).await.expect("no port");
        netlink.del_link(vxlan.index).await.expect("removed");
        netlink.del_link(vxlan.index).await.expect("again");
        assert_eq!(netlink.link("vx100").await.expect("readable"), None);
    });
}

#[test]
fn dumps_at_the_same_time_wait_for_each_other() {
    with_bridge("dumps_at_the_same_time_wait_for_each_other", async |netlink, bridge| {
        let address = prefix("10.0.0.1/24");
        netlink.add_address(bridge, address, AddressOptions::default()).await.expect("added");
        let dumps = (0..8).map(|_| {
            let netlink = netlink.clone();
            tokio::spawn(async move {
                for _ in 0..50 {
                    netlink.links().await.expect("the interfaces");
                    netlink.addresses().await.expect("the addresses");
                }
            })
        });
        for ended in futures_util::future::join_all(dumps).await {
            ended.expect("no dump was refused");
        }
    });
}

#[test]
fn addresses_are_added_read_and_deleted() {
    with_bridge("addresses_are_added_read_and_deleted", async |netlink, index| {
        let options = AddressOptions { no_prefix_route: true, no_dad: true };
        for text in ["10.1.0.1/24", "10.2.0.1/32", "fd00::1/64", "fd01::1/128"] {
            netlink.add_address(index, prefix(text), options).await.expect("added");
            netlink.add_address(index, prefix(text), options).await.expect("again");
            let all = netlink.addresses().await.expect("readable");
            let found: Vec<_> = all.iter().filter(|a| a.prefix == prefix(text)).collect();
            assert_eq!(found.len(), 1, "{text}");
            assert!(found[0].options().no_prefix_route && !found[0].is_tentative());
            assert_eq!((found[0].index, found[0].scope), (index, 0));
        }
        let routes = netlink.routes(RouteFilter { table: Some(254), ..RouteFilter::default() });
        let routes = routes.await.expect("readable");
        assert!(routes.iter().all(|route| route.dst != prefix("10.1.0.0/24")), "{routes:?}");

        netlink.del_address(index, prefix("10.1.0.1/24")).await.expect("deleted");
        netlink.del_address(index, prefix("10.1.0.1/24")).await.expect("again");
        let all = netlink.addresses().await.expect("readable");
        assert!(all.iter().all(|address| address.prefix != prefix("10.1.0.1/24")));

        let error = netlink.add_address(9999, prefix("10.1.0.1/24"), options).await;
        let text = error.expect_err("no such interface").to_string();
        assert!(text.starts_with("cannot add the address 10.1.0.1/24 on #9999: "), "{text}");
    });
}

#[test]
fn routes_are_replaced_read_and_deleted() {
    with_bridge("routes_are_replaced_read_and_deleted", async |netlink, index| {
        let mine = RouteFilter { protocol: Some(PROTOCOL), table: None };
        let options = AddressOptions { no_dad: true, ..AddressOptions::default() };
        netlink.add_address(index, prefix("10.9.0.1/24"), options).await.expect("added");
        netlink.add_address(index, prefix("fd09::1/64"), options).await.expect("added");

        let v4 = Route { metric: 20, ..Route::on_link(prefix("10.1.0.0/25"), index, PROTOCOL) };
        let v6 = Route { metric: 20, ..Route::on_link(prefix("fd01::/65"), index, PROTOCOL) };
        let own = Route { table: 4190, ..v4 };
        let mut expected = vec![v4, v6, own];
        netlink.add_routes(&expected).await.expect("added");
        netlink.add_routes(&expected).await.expect("again");
        expected.sort();
        let read = async |filter| {
            let mut routes = netlink.routes(filter).await.expect("readable");
            routes.sort();
            routes
        };
        assert_eq!(read(mine).await, expected);
        let table = RouteFilter { table: Some(4190), ..mine };
        assert_eq!(read(table).await, [own]);
        assert_eq!(read(RouteFilter { table: Some(4191), ..mine }).await, []);

        let v4 = Route { gateway: Some(ip("10.9.0.7")), prefsrc: Some(ip("10.9.0.1")), ..v4 };
        let v6 = Route { gateway: Some(ip("fd09::7")), ..v6 };
        netlink.add_routes(&[v4, v6]).await.expect("replaced");
        let mut expected = vec![v4, v6, own];
        expected.sort();
        assert_eq!(read(mine).await, expected);

        netlink.del_routes(&expected).await.expect("deleted");
        netlink.del_routes(&expected).await.expect("again");
        assert_eq!(read(mine).await, []);
        let connected = RouteFilter { protocol: Some(2), table: Some(MAIN_TABLE) };
        assert!(!read(connected).await.is_empty(), "routes of others stay");
    });
}

#[test]
fn one_refused_route_does_not_hold_up_the_others() {
    with_bridge("one_refused_route", async |netlink, index| {
        let good = Route::on_link(prefix("10.1.0.0/24"), index, PROTOCOL);
        let bad = Route::on_link(prefix("10.2.0.0/24"), 9999, PROTOCOL);
        let last = Route::on_link(prefix("10.3.0.0/24"), index, PROTOCOL);
        let error = netlink.add_routes(&[good, bad, last]).await.expect_err("no interface 9999");
        assert!(error.to_string().contains("10.2.0.0/24 dev #9999"), "{error}");
        let mine = RouteFilter { protocol: Some(PROTOCOL), table: None };
        assert_eq!(netlink.routes(mine).await.expect("readable").len(), 2);
    });
}

#[test]
fn five_hundred_routes_take_a_moment() {
    with_bridge("five_hundred_routes", async |netlink, index| {
        let third = |n: u32| format!("10.{}.{}.0/24", n / 250, n % 250);
        let routes: Vec<_> =
            (0..500).map(|n| Route::on_link(prefix(&third(n)), index, PROTOCOL)).collect();
        let start = Instant::now();
        netlink.add_routes(&routes).await.expect("added");
        let added = start.elapsed();
        let mine = RouteFilter { protocol: Some(PROTOCOL), table: None };
        assert_eq!(netlink.routes(mine).await.expect("readable").len(), 500);
        let start = Instant::now();
        netlink.del_routes(&routes).await.expect("deleted");
        let deleted = start.elapsed();
        assert_eq!(netlink.routes(mine).await.expect("readable"), []);
        #[allow(clippy::print_stderr, reason = "a figure for whoever looks at the output")]
        {
            eprintln!("500 routes: added in {added:?}, deleted in {deleted:?}");
        }
        // Ten times what it takes, for loaded machines.
        assert!(added < Duration::from_secs(1) && deleted < Duration::from_secs(1));
    });
}

#[test]
fn forwarding_entries_are_added_read_and_deleted() {
    with_bridge("forwarding_entries", async |netlink, bridge| {
        let vni = Vni::try_from(7).expect("in range");
        let spec = Vxlan { vni, local: None, device: None, port: 4789, learning: false };
        netlink.add_link("vx7", &NewLink::Vxlan(spec)).await.expect("a vxlan");
        let index = netlink.link("vx7").await.expect("readable").expect("there").index;
        netlink.set_master(index, Some(bridge)).await.expect("a port");
        netlink.set_up(index, true, None).await.expect("up");
        let read = async || {
            let mut entries = netlink.fdb(index).await.expect("readable");
            entries.sort();
            entries
        };
        assert_eq!(read().await, []);

        let entry = |mac, dst: &str| FdbEntry { index, mac, dst: ip(dst), permanent: true };
        let station = [2, 0, 0, 0, 0, 9];
        let flood = [entry(FLOOD, "192.0.2.1"), entry(FLOOD, "192.0.2.2")];
        netlink.add_fdb_entries(&flood).await.expect("added");
        netlink.add_fdb(index, FLOOD, ip("192.0.2.2")).await.expect("again");
        netlink.add_fdb(index, station, ip("192.0.2.1")).await.expect("added");
        netlink.add_fdb(index, station, ip("192.0.2.2")).await.expect("moved");
        assert_eq!(read().await, [flood[0], flood[1], entry(station, "192.0.2.2")]);

        netlink.del_fdb(index, FLOOD, ip("192.0.2.1")).await.expect("deleted");
        netlink.del_fdb(index, FLOOD, ip("192.0.2.1")).await.expect("again");
        assert_eq!(read().await, [flood[1], entry(station, "192.0.2.2")]);
    });
}

/// Tasks drive the kernel: all futures must be `Send`. Never called.
#[allow(dead_code, reason = "that it compiles is the test")]
fn futures_are_send(netlink: &Netlink) {
    const fn is_send<T: Send>(_: &T) {}
    let route = Route::on_link(prefix("10.0.0.0/8"), 1, PROTOCOL);
    is_send(&netlink.links());
    is_send(&netlink.link("lo"));
    is_send(&netlink.set_up(1, true, None));
    is_send(&netlink.add_address(1, prefix("10.0.0.1/8"), AddressOptions::default()));
    is_send(&netlink.routes(RouteFilter::default()));
    is_send(&netlink.add_route(&route));
    is_send(&netlink.add_routes(&[route]));
    is_send(&netlink.add_fdb(1, FLOOD, ip("192.0.2.1")));
}

type Message = NetlinkMessage<RouteNetlinkMessage>;

fn read(messages: Vec<Message>) -> Result<Answer<RouteNetlinkMessage>, Failure> {
    runtime().block_on(read_to_end(futures_util::stream::iter(messages)))
}

fn done(code: i32, flags: u16) -> Message {
    let mut done = rtnetlink::packet_core::DoneMessage::default();
    done.code = code;
    let mut message = Message::new(Default::default(), NetlinkPayload::Done(done));
    message.header.flags = flags;
    message
}

#[test]
fn an_interrupted_dump_is_recognised_by_any_of_its_parts() {
    let part = |flags| {
        let mut message = Message::from(codec::get_addresses());
        message.header.flags = flags;
        message
    };
    let whole = read(vec![part(0), part(0), done(0, 0)]).ok().expect("an answer");
    assert_eq!((whole.messages.len(), whole.interrupted), (2, false));
    let first = read(vec![part(NLM_F_DUMP_INTR), part(0), done(0, 0)]);
    assert!(first.ok().expect("an answer").interrupted);
    let last = read(vec![part(0), done(0, NLM_F_DUMP_INTR)]);
    assert!(last.ok().expect("an answer").interrupted);
}

#[test]
fn an_answer_without_an_end_is_no_answer() {
    let part = Message::from(codec::get_addresses());
    assert!(matches!(read(vec![part.clone()]), Err(Failure::Lost(_))));
    assert!(matches!(read(vec![part, done(-libc::EPERM, 0)]), Err(Failure::Errno(libc::EPERM))));
    let overrun = Message::new(Default::default(), NetlinkPayload::Overrun(Vec::new()));
    assert!(matches!(read(vec![overrun]), Err(Failure::Lost(_))));
}

#[test]
fn links_into_tunnels_and_to_containers_are_told_apart() {
    use rtnetlink::packet_route::RouteNetlinkMessage;
    use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
    let kind = |kind: InfoKind| {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)])];
        codec::link(&RouteNetlinkMessage::NewLink(message)).expect("a link").kind
    };
    for of in [InfoKind::MacVlan, InfoKind::SitTun, InfoKind::Dummy] {
        assert_eq!(kind(of.clone()), LinkKind::Virtual, "{of:?}");
    }
    for of in [InfoKind::Vlan, InfoKind::Bond, InfoKind::Other("ppp".to_owned())] {
        assert_eq!(kind(of.clone()), LinkKind::Other, "{of:?}");
    }
    assert_eq!(kind(InfoKind::Tun), LinkKind::Tun);
    assert_eq!(kind(InfoKind::Wireguard), LinkKind::WireGuard);
}
