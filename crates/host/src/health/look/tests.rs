use selvedge_gateway::desired::Duty;
use selvedge_model::Vni;
use serde_json::json;

use super::*;
use crate::fabric::ROUTE_PROTOCOL;
use crate::netlink::Vxlan;

fn vni(number: u32) -> Vni {
    Vni::try_from(number).expect("a VNI")
}

fn link(index: u32, name: &str) -> Link {
    Link {
        index,
        name: name.to_owned(),
        kind: LinkKind::Other,
        master: None,
        mac: Some([2; 6]),
        up: true,
        carrier: true,
        mtu: 1500,
        vxlan: None,
    }
}

fn links(all: impl IntoIterator<Item = Link>) -> Links {
    all.into_iter().map(|link| (link.index, link)).collect()
}

fn names(all: &[&str]) -> BTreeSet<String> {
    all.iter().map(|name| (*name).to_owned()).collect()
}

fn served(duty: Duty) -> Served {
    Served::from([(vni(1), duty)])
}

fn wrong(look: Look) -> Vec<String> {
    look.wrong.into_values().collect()
}

#[test]
fn one_carrier_of_several_is_enough() {
    let dark = Link { carrier: false, ..link(2, "eth1") };
    let down = Link { up: false, carrier: false, ..link(3, "eth2") };
    let all = links([link(1, "eth0"), dark, down]);
    assert_eq!(carrier(&names(&["eth0", "eth1"]), &all), Ok(true));
    assert_eq!(carrier(&names(&[]), &all), Ok(true));
    let error = carrier(&names(&["eth1", "eth2", "eth3"]), &all).expect_err("all are dark");
    assert_eq!(error, "eth1 has no carrier, eth2 is down, there is no interface eth3");
}

#[test]
fn a_network_needs_its_bridge_and_its_tunnel_joined() {
    let bridge = link(1, "br1");
    let vxlan = Link { master: Some(1), ..link(2, "vxlan1") };
    let look = |all: &[&Link]| {
        let all = links(all.iter().copied().cloned());
        wrong(bridges(&served(Duty::FULL), &Names::default(), &all))
    };
    assert!(look(&[&bridge, &vxlan]).is_empty());
    assert_eq!(look(&[&vxlan]), ["there is no interface br1"]);
    assert_eq!(look(&[&bridge]), ["there is no interface vxlan1"]);
    let apart = Link { master: None, ..vxlan.clone() };
    assert_eq!(look(&[&bridge, &apart]), ["vxlan1 is not a port of br1"]);
    let down = Link { up: false, ..vxlan.clone() };
    assert_eq!(look(&[&bridge, &down]), ["vxlan1 is down"]);
    let idle = bridges(&served(Duty::NONE), &Names::default(), &links([]));
    assert!(wrong(idle).is_empty(), "what is not served may be missing");
}

#[test]
fn routes_count_if_they_are_ours_and_lead_into_the_bridge() {
    let all = links([link(1, "br1")]);
    let prefix = "10.0.1.0/24".parse().expect("a prefix");
    let ours = Route { metric: ROUTE_METRIC, ..Route::on_link(prefix, 1, ROUTE_PROTOCOL) };
    let look = |duty, there: &[Route]| wrong(routes(&served(duty), &Names::default(), &all, there));
    assert!(look(Duty::FULL, &[ours]).is_empty());
    assert!(look(Duty::NONE, &[]).is_empty());
    for other in
        [Route { oif: Some(2), ..ours }, Route { metric: 20, ..ours }, Route { table: 100, ..ours }]
    {
        assert_eq!(look(Duty::TAKEOVER, &[other]), ["the kernel has no route of ours into br1"]);
    }
}

#[test]
fn adverts_are_what_bgpd_says() {
    let look = |answer: Value| wrong(adverts(&served(Duty::FULL), &Ok(answer)));
    let is = |kernel: &str, svi: &str| json!({"1": {"inKernel": kernel, "advertiseSviMacIp": svi}});
    assert!(look(is("True", "Enabled")).is_empty());
    assert_eq!(look(is("True", "Disabled")), ["bgpd does not advertise the gateway"]);
    let unknown = ["bgpd does not know the network from the kernel"];
    assert_eq!(look(is("False", "Enabled")), unknown);
    assert_eq!(look(Value::Null), unknown);
    let failed = adverts(&served(Duty::FULL), &Err("gone".to_owned()));
    assert_eq!(wrong(failed), ["gone"]);
    assert!(wrong(adverts(&served(Duty::NONE), &Err("gone".to_owned()))).is_empty());
}

#[test]
fn bgp_sessions_are_counted() {
    let peers = |states: &[&str]| {
        let all =
            states.iter().enumerate().map(|(n, state)| (n.to_string(), json!({"state": state})));
        bgp(&json!({"peers": all.collect::<serde_json::Map<_, _>>()}))
    };
    let two = peers(&["Active", "Established"]);
    assert_eq!((two.expected, two.working), (true, 1));
    let none = peers(&["Idle (Admin)"]);
    assert_eq!((none.expected, none.working), (true, 0));
    assert_eq!(bgp(&json!({})), Neighbours::default());
}

#[test]
fn full_neighbours_of_either_protocol_are_counted() {
    let v4 = json!({"neighbors": {"192.0.2.2": [
        {"state": "Full/DR", "ifaceName": "up0:192.0.2.1"},
        {"state": "ExStart/-", "ifaceName": "up1:192.0.2.5"},
    ]}});
    let found = ospf(&v4);
    assert_eq!((found.working, found.interfaces), (1, names(&["up0"])));
    let newer = json!({"neighbors": {"192.0.2.2": [{"nbrState": "Full/-", "ifaceName": "up0:a"}]}});
    assert_eq!(ospf(&newer).working, 1);
    let v6 = json!({"neighbors": [{"state": "Full", "interfaceName": "up6"}, {"state": "Init"}]});
    let found = ospf(&v6);
    assert_eq!((found.working, found.interfaces), (1, names(&["up6"])));
    for nothing in [json!({}), Value::Null, json!({"neighbors": 7})] {
        assert_eq!(ospf(&nothing), Neighbours::default());
    }
}

#[test]
fn only_an_active_interface_makes_neighbours_expected() {
    let v4 = |interface: Value| is_active(&json!({"interfaces": {"up0": interface}}));
    assert!(v4(json!({"ospfEnabled": true})));
    assert!(!v4(json!({"ospfEnabled": true, "timerPassiveIface": true})));
    assert!(!v4(json!({"ospfEnabled": true, "ospfIfType": "Loopback"})));
    assert!(!v4(json!({"ospfEnabled": false})));
    assert!(is_active(&json!({"up0": {"attachedToArea": true, "type": "BROADCAST"}})));
    assert!(!is_active(&json!({"lo": {"attachedToArea": true, "type": "LOOPBACK"}})));
    assert!(!is_active(&json!({"br1": {"type": "BROADCAST"}})));
    assert!(!is_active(&Value::Null));
}

#[test]
fn the_fabric_is_where_the_tunnels_begin() {
    let local = "192.0.2.1/24".parse().expect("a prefix");
    let tunnel = Vxlan {
        vni: vni(1),
        local: Some("192.0.2.1".parse().expect("an address")),
        device: None,
        port: 4789,
        learning: false,
    };
    let vxlan = Link { vxlan: Some(tunnel), ..link(9, "vxlan1") };
    let all = links([link(1, "lo"), link(2, "eth0"), vxlan]);
    let on = |index| vec![Address { index, prefix: local, scope: 0, flags: 0 }];
    assert_eq!(fabric_interfaces(&all, &on(2)), Some(names(&["eth0"])));
    assert_eq!(fabric_interfaces(&all, &on(1)), Some(names(&[])));
    assert_eq!(fabric_interfaces(&all, &[]), None);
    assert_eq!(fabric_interfaces(&links([link(2, "eth0")]), &on(2)), None);
}

#[test]
fn the_uplink_is_where_a_learned_default_route_leads() {
    let all = links([link(1, "eth0"), link(2, "mgmt")]);
    let route = |oif, protocol| Route::on_link("::/0".parse().expect("a prefix"), oif, protocol);
    let found = |routes: &[Route]| default_interfaces(&all, routes);
    assert_eq!(found(&[route(1, 188), route(2, 3)]), names(&["eth0"]));
    let specific = Route::on_link("10.0.0.0/8".parse().expect("a prefix"), 1, 188);
    assert_eq!(found(&[specific, Route { table: 7, ..route(1, 186) }]), names(&[]));
}
