use std::time::Duration;

use super::*;
use crate::packet::DEFAULT_LINK_LOCAL;
use crate::test_support;

fn prefix(text: &str) -> Prefix {
    text.parse().expect("a prefix")
}

fn prefixes(texts: &[&str]) -> Vec<Prefix> {
    texts.iter().map(|text| prefix(text)).collect()
}

fn vni(number: u32) -> Vni {
    number.try_into().expect("a VNI")
}

#[test]
fn patterns_name_interfaces() {
    let pattern: NamePattern = "v.{vni}x".parse().expect("good");
    assert_eq!(pattern.name(vni(70_000)), "v.70000x");
    assert_eq!(pattern.to_string(), "v.{vni}x");
    assert_eq!(Names::default().vxlan.name(vni(7)), "vxlan7");
    for bad in ["", "br", "br{vni}{vni}", "a/b{vni}", "br {vni}", "averyverylongname{vni}"] {
        assert!(bad.parse::<NamePattern>().is_err(), "{bad:?}");
    }
}

#[test]
fn what_was_saved_wins_over_our_own_work() {
    let saved = prefixes(&["10.0.1.1/24", "fd00:1::1/64"]);
    // A run was killed while it served: a single address, or none, is left.
    assert_eq!(merged(&saved, &prefixes(&["10.0.1.1/32"])), saved);
    assert_eq!(merged(&saved, &[]), saved);
    // The operator has put another address there since.
    let both = prefixes(&["10.0.1.1/24", "10.0.2.1/24", "fd00:1::1/64"]);
    assert_eq!(merged(&saved, &prefixes(&["10.0.1.1/32", "10.0.2.1/24"])), both);
    // The operator has widened the network.
    let wider = prefixes(&["10.0.1.1/23", "fd00:1::1/64"]);
    assert_eq!(merged(&saved, &prefixes(&["10.0.1.1/23"])), wider);
}

#[test]
fn a_single_address_tells_no_network() {
    let found = Found {
        vni: vni(1),
        addresses: prefixes(&["10.0.1.1/32"]),
        arp_ignore: 0,
        rp_filter: 0,
        next_hops: Vec::new(),
    };
    assert_eq!(gateways(&Declared::default(), Some(&found)), []);
    let declared = Declared { addresses: prefixes(&["10.0.1.1/24"]), ..Declared::default() };
    assert_eq!(gateways(&declared, Some(&found)), prefixes(&["10.0.1.1/24"]));
}

#[test]
fn what_was_found_survives_a_restart() {
    let found = Found {
        vni: vni(9),
        addresses: prefixes(&["10.0.1.1/24", "fd00::1/64"]),
        arp_ignore: 1,
        rp_filter: 2,
        next_hops: Vec::new(),
    };
    let text = serde_json::to_string(&found).expect("serialisable");
    assert_eq!(serde_json::from_str::<Found>(&text).expect("valid"), found);
}

/// A bridge and its VXLAN interface per network, the bridge carrying `addresses`.
async fn build(netlink: &Netlink, number: u32, addresses: &[&str]) {
    crate::fabric::testing::network(netlink, vni(number), &prefixes(addresses)).await;
}

async fn carried(netlink: &Netlink, name: &str) -> Vec<Prefix> {
    let bridge = netlink.link(name).await.expect("readable").expect("there");
    let all = netlink.addresses().await.expect("readable");
    let mut here: Vec<Prefix> = on_interface(&all, bridge.index, DEFAULT_LINK_LOCAL).collect();
    here.sort();
    here
}

fn wanted(numbers: &[u32]) -> BTreeMap<Vni, Declared> {
    numbers.iter().map(|number| (vni(*number), Declared::default())).collect()
}

#[test]
fn networks_are_adopted_and_put_back_also_after_a_kill() {
    let Some(namespace) = test_support::namespace("adopt and release") else { return };
    namespace.run(|| test_support::runtime().block_on(adopt_and_release())).expect("entered");
}

async fn adopt_and_release() {
    crate::fabric::testing::forward();
    let netlink = Netlink::new().expect("netlink");
    build(&netlink, 1, &["10.0.1.1/24", "fd00:1::1/64", "192.168.7.7/28"]).await;
    build(&netlink, 2, &[]).await;
    sysctl::set(Family::V4, "br1", "arp_ignore", 1).expect("set");
    sysctl::set(Family::V4, "br1", "rp_filter", 1).expect("set");
    let before = carried(&netlink, "br1").await;

    let fresh =
        |found| Inventory::new(netlink.clone(), Names::default(), wanted(&[1, 2, 3]), found);
    let mut inventory = fresh(vec![]);
    inventory.survey().await.expect("surveyed");
    assert_eq!(inventory.networks().keys().copied().collect::<Vec<_>>(), [vni(1)]);
    assert!(matches!(inventory.unable()[&vni(2)], Problem::NoAddress { .. }));
    assert_eq!(inventory.unable()[&vni(3)], Problem::NoInterface("br3".into()));
    assert_eq!(inventory.network(vni(1)), Err(Problem::NotAdopted(vni(1))));
    let saved = inventory.found();

    let failed = inventory.adopt(&[vni(1), vni(3)]).await;
    assert_eq!(failed.keys().copied().collect::<Vec<_>>(), [vni(3)]);
    assert_eq!(carried(&netlink, "br1").await, prefixes(&["10.0.1.1/32", "192.168.7.7/32"]));
    assert_eq!(sysctl::get(Family::V4, "br1", "arp_ignore").expect("read"), SILENT);
    assert_eq!(sysctl::get(Family::V4, "br1", "rp_filter").expect("read"), LOOSE);

    // Killed while it answered. The next run leaves it answering, and knows the prefix.
    sysctl::set(Family::V4, "br1", "arp_ignore", 0).expect("set");
    let mut inventory = fresh(saved);
    inventory.survey().await.expect("surveyed");
    assert!(inventory.adopt(&[vni(1)]).await.is_empty());
    assert_eq!(sysctl::get(Family::V4, "br1", "arp_ignore").expect("read"), 0);
    let network = inventory.network(vni(1)).expect("adopted");
    assert_eq!(network.gateways, before);

    assert!(inventory.release(&[vni(1)]).await.is_empty());
    assert_eq!(carried(&netlink, "br1").await, before);
    assert_eq!(sysctl::get(Family::V4, "br1", "arp_ignore").expect("read"), 1);
    assert_eq!(sysctl::get(Family::V4, "br1", "rp_filter").expect("read"), 1);
    assert!(inventory.found().iter().all(|found| found.vni != vni(1)));
}

#[test]
fn interfaces_are_read_anew_only_if_one_has_changed() {
    let Some(namespace) = test_support::namespace("refresh if changed") else { return };
    let body = async || {
        crate::fabric::testing::forward();
        let netlink = Netlink::new().expect("netlink");
        build(&netlink, 1, &["10.0.1.1/24"]).await;
        let mut inventory = Inventory::new(netlink.clone(), Names::default(), wanted(&[1, 2]), []);
        inventory.survey().await.expect("surveyed");
        becomes_quiet(&mut inventory).await;
        let bridge = netlink.link("br1").await.expect("readable").expect("there").index;
        netlink.set_up(bridge, false, None).await.expect("down");
        inventory.refresh_if_changed().await.expect("read");
        assert_eq!(inventory.networks().keys().copied().collect::<Vec<_>>(), [vni(1)]);
        becomes_quiet(&mut inventory).await;
        build(&netlink, 2, &[]).await;
        netlink.del_link(bridge).await.expect("removed");
        inventory.refresh_if_changed().await.expect("read");
        assert_eq!(inventory.unable()[&vni(1)], Problem::NoInterface("br1".into()));
    };
    namespace.run(|| test_support::runtime().block_on(body())).expect("entered");
}

/// Once nothing changes any more, nothing is read: what is not there shows it. The kernel tells of
/// a link and of its addresses for a while after both were made.
async fn becomes_quiet(inventory: &mut Inventory) {
    for _ in 0..100 {
        inventory.networks.clear();
        tokio::time::sleep(Duration::from_millis(100)).await;
        inventory.refresh_if_changed().await.expect("read");
        if inventory.networks().is_empty() {
            return;
        }
    }
    panic!("interfaces are read again and again");
}
