use std::collections::{BTreeMap, BTreeSet};

use selvedge_api::gateway::Severity;
use selvedge_api::mesh::{Dns, Listener};
use selvedge_model::NodeId;
use serde_json::{Value, json};

use super::*;
use crate::mesh_plane::doctor::{Link, Place};

const NOW: u64 = 1_795_000_000;

fn node(number: u8) -> NodeId {
    NodeId([number; 32])
}

/// A member of the mesh; 0 is this node.
fn member(number: u8) -> Value {
    json!({
        "node": node(number).to_string(),
        "own": number == 0,
        "name": format!("host{number}"),
        "role": "peer",
        "address": format!("fd00::{number:x}"),
        "wg_key": selvedge_model::WgKey([number; 32]).to_string(),
        "control": [format!("192.0.2.{number}:7654")],
        "endpoints": [format!("192.0.2.{number}:51820")],
        "endpoint": format!("192.0.2.{number}:51820"),
        "state": "alive",
        "version": "0.1.0",
        "updated": NOW - 100,
    })
}

/// This node and three others, all of them well.
fn facts() -> Facts {
    let mesh = json!({
        "id": selvedge_model::MeshId([7; 20]).to_string(),
        "name": "campus",
        "node": node(0).to_string(),
        "interface": "sv-campus",
        "address": "fd00::",
        "prefix": "fd00::/64",
        "listen_port": 51820,
        "members": (0..4).map(member).collect::<Vec<_>>(),
    });
    let heard = Some(Duration::from_secs(3));
    let quick = Some(Duration::from_millis(2));
    let control = (1..4).map(|number| (node(number), Control { down: false, heard }));
    let echoes = (1..4).map(|number| (node(number), Echo { small: quick, full: quick }));
    let examined = Examined {
        mesh: serde_json::from_value(mesh).expect("a mesh"),
        control: control.collect(),
        link: Some(Link { up: true, mtu: 1420 }),
        echoes: echoes.collect(),
    };
    let host = Host {
        synchronized: Some(true),
        forwarding: [(Family::V4, Ok(true)), (Family::V6, Ok(true))],
        strict: BTreeSet::new(),
        firewall: Ok(Ruleset::default()),
    };
    let place = super::super::Place { port: 7654, dry: false };
    Facts { place, now: NOW, meshes: vec![examined], dns: Dns::default(), host: Some(host) }
}

/// What is found wrong once the facts are changed: severity, subject, text and what to enter.
fn found(change: impl FnOnce(&mut Facts)) -> Vec<(Severity, String, String, Vec<String>)> {
    let mut facts = facts();
    change(&mut facts);
    let findings = judge(&facts, Vec::new());
    let ordered = findings.is_sorted_by(|a, b| a.severity >= b.severity);
    assert!(ordered, "the gravest come first: {findings:?}");
    let wrong = findings.into_iter().filter(|it| it.severity > Severity::Ok);
    wrong.map(|it| (it.severity, it.subject, it.text, it.fix)).collect()
}

/// Expects one finding, and what it is to say.
fn one(severity: Severity, says: &[&str], change: impl FnOnce(&mut Facts)) -> Vec<String> {
    let found = found(change);
    let [(found_severity, _, text, fix)] = found.as_slice() else {
        panic!("{says:?}: {found:?}");
    };
    assert_eq!(*found_severity, severity, "{text}");
    for part in says {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
    fix.clone()
}

fn mesh(facts: &mut Facts) -> &mut Mesh {
    &mut facts.meshes[0].mesh
}

fn silent(facts: &mut Facts, numbers: &[u8]) {
    for number in numbers {
        facts.meshes[0].echoes.insert(node(*number), Echo::default());
    }
}

fn down(facts: &mut Facts, numbers: &[u8]) {
    for number in numbers {
        facts.meshes[0].control.insert(node(*number), Control { down: true, heard: None });
    }
}

#[test]
fn a_mesh_that_is_well_has_no_faults() {
    assert_eq!(found(|_| {}), []);
    let findings = judge(&facts(), Vec::new());
    assert!(findings.iter().any(|it| it.text.contains("all 3 members that were asked")));
    assert!(found(|facts| mesh(facts).members.truncate(1)).is_empty(), "alone, and meant so");
}

#[test]
fn members_whose_agents_are_not_heard_are_named() {
    one(Severity::Warning, &["1 of 3 members", "host2"], |facts| {
        down(facts, &[2]);
        silent(facts, &[2]);
    });
    let fix = one(Severity::Problem, &["none of the 3", "cut off", "192.0.2.1:7654"], |facts| {
        down(facts, &[1, 2, 3]);
        silent(facts, &[1, 2, 3]);
    });
    assert_eq!(fix, ["ping -c 3 192.0.2.1"]);
    let only_agent = ["WireGuard reaches host2", "no agent", "192.0.2.2:7654"];
    one(Severity::Problem, &only_agent, |facts| down(facts, &[2]));
}

#[test]
fn members_that_wireguard_does_not_reach_are_named_with_the_reason() {
    one(Severity::Problem, &["does not reach host1, host3", "192.0.2.3:51820"], |facts| {
        silent(facts, &[1, 3]);
    });
    one(Severity::Problem, &["session with host2", "firewall there"], |facts| {
        silent(facts, &[2]);
        mesh(facts).members[2].handshake_age_s = Some(20);
    });
    one(Severity::Problem, &["nowhere to send to for host2", "`endpoints`"], |facts| {
        silent(facts, &[2]);
        mesh(facts).members[2].endpoint = None;
        mesh(facts).members[2].handshake_age_s = Some(SESSION_S);
    });
    one(Severity::Problem, &["host2 are not reached by way of host1"], |facts| {
        silent(facts, &[2]);
        mesh(facts).members[2].via = Some(node(1));
    });
}

#[test]
fn a_way_that_is_too_narrow_is_found() {
    let fix = one(Severity::Problem, &["host3", "1420 bytes are lost", "`mtu = 1320`"], |facts| {
        facts.meshes[0].echoes.entry(node(3)).or_default().full = None;
    });
    assert_eq!(fix, ["ip link set sv-campus mtu 1320"]);
}

#[test]
fn many_names_are_cut_short() {
    let found = found(|facts| {
        let mesh = mesh(facts);
        mesh.members.extend((4..40).map(|it| serde_json::from_value(member(it)).expect("valid")));
        let gone: Vec<u8> = (1..12).collect();
        down(facts, &gone);
        silent(facts, &gone);
    });
    assert!(found[0].2.contains("host8, and 3 more"), "{found:?}");
}

#[test]
fn interfaces_have_to_be_there_and_up() {
    one(Severity::Problem, &["sv-campus is missing"], |facts| facts.meshes[0].link = None);
    let fix = one(Severity::Problem, &["sv-campus is down"], |facts| {
        facts.meshes[0].link = Some(Link { up: false, mtu: 1420 });
    });
    assert_eq!(fix, ["ip link set sv-campus up"]);
}

#[test]
fn what_this_node_says_of_itself_has_to_be_of_use() {
    let fix = one(Severity::Problem, &["announces no address"], |facts| {
        mesh(facts).members[0].endpoints.clear();
    });
    assert_eq!(fix, ["selvedge node set --mesh campus --role client"]);
    assert!(
        found(|facts| {
            mesh(facts).members[0].endpoints.clear();
            mesh(facts).members[0].role = Role::Client;
        })
        .is_empty()
    );
    one(Severity::Problem, &["does not let it announce 10.0.0.0/8"], |facts| {
        mesh(facts).not_permitted = vec!["10.0.0.0/8".parse().expect("valid")];
    });
}

#[test]
fn clocks_are_compared() {
    one(Severity::Warning, &["host2 are ahead", "by up to 300 s"], |facts| {
        mesh(facts).members[2].updated = NOW + 300;
    });
    one(Severity::Problem, &["clock of this host is behind", "2 of 3", "by 300 s"], |facts| {
        mesh(facts).members[1].updated = NOW + 90;
        mesh(facts).members[2].updated = NOW + 300;
    });
    assert!(found(|facts| mesh(facts).members[1].updated = NOW + SKEW_S).is_empty());
    let fix = one(Severity::Warning, &["nothing keeps the clock"], |facts| {
        facts.host.as_mut().expect("there").synchronized = Some(false);
    });
    assert_eq!(fix, ["timedatectl set-ntp true"]);
}

#[test]
fn versions_that_are_not_adjacent_are_named() {
    let with = |version: &'static str| {
        found(move |facts| mesh(facts).members[1].version = Some(version.to_owned())).len()
    };
    assert_eq!(["0.1.9", "0.2.0", "0.3.0", "1.1.0", "odd"].map(with), [0, 0, 1, 1, 1]);
}

#[test]
fn who_is_on_the_way_of_others_has_to_forward() {
    let off = |facts: &mut Facts, at: usize| {
        facts.host.as_mut().expect("there").forwarding[at].1 = Ok(false);
    };
    assert!(found(|facts| off(facts, 1)).is_empty(), "peers reach each other directly");
    let fix = one(Severity::Problem, &["nothing passes this host", "campus"], |facts| {
        off(facts, 1);
        mesh(facts).members[1].role = Role::Client;
    });
    assert_eq!(fix, ["sysctl -w net.ipv6.conf.all.forwarding=1"]);
    let v4 = |facts: &mut Facts| {
        mesh(facts).members[1].role = Role::Client;
        mesh(facts).members[0].ipv4 = Some([10, 9, 0, 1].into());
    };
    let fix = one(Severity::Problem, &["nothing passes"], |facts| {
        v4(facts);
        off(facts, 0);
    });
    assert_eq!(fix, ["sysctl -w net.ipv4.ip_forward=1"]);
    let fix = one(Severity::Problem, &["strict"], |facts| {
        v4(facts);
        facts.host.as_mut().expect("there").strict.insert("sv-campus".to_owned());
    });
    assert_eq!(fix[0], "sysctl -w net.ipv4.conf.sv-campus.rp_filter=2");
}

#[test]
fn rules_that_drop_what_the_mesh_needs_are_found() {
    let chain = |hook: &str, policy: &str| {
        json!({"chain": {"family": "inet", "table": "filter", "name": hook, "type": "filter",
            "hook": hook, "prio": 0, "policy": policy}})
    };
    let accept = |port: u16| {
        let left = json!({"payload": {"protocol": "udp", "field": "dport"}});
        json!({"rule": {"family": "inet", "table": "filter", "chain": "input", "expr": [
            {"match": {"op": "==", "left": left, "right": port}}, {"accept": null}]}})
    };
    let rules = |items: &[Value]| {
        let text = json!({ "nftables": items }).to_string();
        Ok(Ruleset::parse(&text).expect("rules"))
    };
    let with = |items: &[Value], facts: &mut Facts| {
        facts.host.as_mut().expect("there").firewall = rules(items);
    };
    let fix = one(Severity::Problem, &["chain input", "inet filter", "WireGuard"], |facts| {
        with(&[chain("input", "drop"), accept(7654)], facts);
    });
    assert_eq!(fix, ["nft insert rule inet filter input udp dport 51820 accept"]);
    let closed = [chain("input", "drop"), chain("forward", "drop")];
    assert_eq!(found(|facts| with(&closed, facts)).len(), 2, "both ports, and no clients");
    let as_client = found(|facts| {
        with(&closed, facts);
        mesh(facts).members[0].role = Role::Client;
    });
    assert_eq!(as_client, [], "nobody calls a client");
    let fix = one(Severity::Problem, &["chain forward", "by way of this host"], |facts| {
        with(&closed[1..], facts);
        mesh(facts).members[1].role = Role::Client;
    });
    let line = "nft insert rule inet filter forward iifname sv-campus oifname sv-campus accept";
    assert_eq!(fix, [line]);
    one(Severity::Warning, &["no nft"], |facts| {
        facts.host.as_mut().expect("there").firewall = Err("no nft".to_owned());
    });
}

#[test]
fn names_have_to_be_answered_and_asked_for() {
    let dns = |hookup: Hookup, problem: Option<&str>| {
        found(|facts| {
            let address = "127.0.0.153:53".parse().expect("valid");
            let problem = problem.map(ToOwned::to_owned);
            let listeners = vec![Listener { address, interface: None, problem }];
            facts.dns = Dns { enabled: true, domain: "mesh".to_owned(), listeners, hookup };
        })
    };
    assert_eq!(dns(Hookup::Resolved, None), []);
    assert_eq!(dns(Hookup::Manual, None), []);
    let busy = dns(Hookup::Resolved, Some("address in use"));
    assert!(busy[0].2.contains("127.0.0.153:53: address in use"), "{busy:?}");
    let refused = dns(Hookup::Failed { problem: "no such link".to_owned() }, None);
    assert!(refused[0].2.contains("no such link"), "{refused:?}");
}

#[test]
fn an_agent_that_runs_dry_leaves_the_kernel_alone() {
    let faults = found(|facts| {
        facts.host = None;
        facts.meshes[0].link = None;
        facts.meshes[0].echoes = BTreeMap::new();
        facts.place = Place { port: 7654, dry: true };
    });
    assert_eq!(faults, []);
}
