use std::collections::{BTreeMap, BTreeSet};

use selvedge_api::gateway::Severity;
use selvedge_api::mesh::{Dns, Listener};
use selvedge_model::NodeId;
use serde_json::{Value, json};

use super::*;
use crate::mesh_plane::doctor::{Inside, Link, Place};

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
    let quick = Some(Duration::from_millis(2));
    let control = (1..4).map(|number| (node(number), Control::default()));
    let echoes = (1..4).map(|number| (node(number), Echo { small: quick, full: quick }));
    let examined = Examined {
        mesh: serde_json::from_value(mesh).expect("a mesh"),
        inside: Inside { control: control.collect(), forwards: false },
        link: Some(Link { up: true, mtu: 1420 }),
        echoes: echoes.collect(),
    };
    let host = Host {
        synchronized: Some(true),
        forwarding: [(Family::V4, Ok(true)), (Family::V6, Ok(true))],
        strict: BTreeSet::new(),
        detour: Ok(true),
        firewall: Ok(Ruleset::default()),
    };
    let place = super::super::Place { port: 7654, dry: false };
    Facts {
        place,
        now: NOW,
        meshes: vec![examined],
        ground: Ground::default(),
        dns: Dns::default(),
        host: Some(host),
    }
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
        let control = facts.meshes[0].inside.control.entry(node(*number)).or_default();
        control.down = true;
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
    let fix =
        one(Severity::Problem, &["host3", "1420 bytes are lost", "make it 1320 bytes"], |facts| {
            facts.meshes[0].echoes.entry(node(3)).or_default().full = None;
        });
    assert_eq!(fix, ["[mesh.options]", "mtu = 1320"], "by hand it would be set back");
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
fn a_drained_node_is_told_how_to_end_that() {
    let fix = one(Severity::Warning, &["drained"], |facts| {
        mesh(facts).members[0].drained = true;
    });
    assert_eq!(fix, ["selvedge node set --mesh campus --drained false"]);
    assert!(found(|facts| mesh(facts).members[1].drained = true).is_empty(), "another's choice");
}

#[test]
fn exits_that_do_not_serve_are_told() {
    let exit = |destination: &str, reason: Option<NoExit>, dropped: bool| {
        let via = reason.is_none().then(|| node(2));
        Exit { destination: destination.parse().expect("a prefix"), via, reason, dropped }
    };
    let with = |exits: &[Exit]| {
        let found = found(|facts| mesh(facts).exits = exits.to_vec());
        found.into_iter().map(|(severity, _, text, _)| (severity, text)).collect::<Vec<_>>()
    };
    let serves = exit("::/0", None, false);
    assert_eq!(with(std::slice::from_ref(&serves)), []);
    let (down, gone) = (Some(NoExit::Down), Some(NoExit::NoMember));
    for reason in [down, gone] {
        let found = with(&[exit("::/0", reason, true)]);
        assert_eq!(found[0].0, Severity::Problem, "{found:?}");
        assert!(found[0].1.ends_with("packets are dropped"), "{found:?}");
    }
    let bypassed = with(&[exit("::/0", down, false)]);
    assert_eq!(bypassed[0].0, Severity::Warning);
    assert!(bypassed[0].1.ends_with("this host's own way"), "{bypassed:?}");
    let lacking = exit("0.0.0.0/0", Some(NoExit::NotOffered), true);
    assert_eq!(with(&[serves.clone(), lacking.clone()])[0].0, Severity::Warning);
    let lacking = Exit { dropped: false, ..lacking };
    assert_eq!(
        with(&[serves, lacking.clone()]),
        [],
        "no exit of this family is in use, nor needed"
    );
    assert_eq!(with(&[lacking])[0].0, Severity::Warning);
}

#[test]
fn members_that_disagree_about_ipv4_are_named() {
    let addr = |last: u8| Some(std::net::Ipv4Addr::new(100, 64, 0, last));
    let agreed = |facts: &mut Facts| {
        mesh(facts).ipv4_prefix = Some("100.64.0.0/16".parse().expect("a prefix"));
        for number in 0..4 {
            mesh(facts).members[usize::from(number)].ipv4 = addr(number + 1);
            let control = facts.meshes[0].inside.control.entry(node(number)).or_default();
            control.claim = addr(number + 1);
        }
    };
    assert!(found(agreed).is_empty());
    let fix = one(Severity::Problem, &["host2 have IPv4", "outside 100.64.0.0/16"], |facts| {
        agreed(facts);
        let control = facts.meshes[0].inside.control.entry(node(2)).or_default();
        control.claim = Some([10, 0, 0, 1].into());
    });
    assert_eq!(fix, ["[mesh.options]", "ipv4 = \"100.64.0.0/16\""]);
    one(Severity::Warning, &["host3 claims 100.64.0.2, which is host1's"], |facts| {
        agreed(facts);
        facts.meshes[0].inside.control.entry(node(3)).or_default().claim = addr(2);
        mesh(facts).members[3].ipv4 = None;
    });
    one(Severity::Warning, &["no address of 100.64.0.0/16 is free"], |facts| {
        agreed(facts);
        mesh(facts).members[0].ipv4 = None;
    });
}

#[test]
fn what_the_agent_keeps_on_the_host_has_to_be_there() {
    let without_rules = |facts: &mut Facts| {
        facts.host.as_mut().expect("there").detour = Ok(false);
    };
    assert!(found(without_rules).is_empty(), "nobody needs them");
    one(Severity::Problem, &["`ip rule`", "missing"], |facts| {
        without_rules(facts);
        facts.ground.detour = true;
    });
    let masqueraded = |facts: &mut Facts| {
        let overlay = "fd00::/64".parse().expect("a prefix");
        facts.ground.masquerade.sources.insert(overlay);
    };
    one(Severity::Problem, &["inet selvedge_mesh is missing"], masqueraded);
    let there = found(|facts| {
        masqueraded(facts);
        let chain = json!({"chain": {"family": "inet", "table": "selvedge_mesh",
            "name": "postrouting"}});
        let rules = json!({ "nftables": [chain] }).to_string();
        facts.host.as_mut().expect("there").firewall = Ok(Ruleset::parse(&rules).expect("rules"));
    });
    assert_eq!(there, []);
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
    let beside = |facts: &mut Facts| mesh(facts).members[1].role = Role::Client;
    let another_serves = found(|facts| {
        off(facts, 1);
        beside(facts);
    });
    assert_eq!(another_serves, [], "that there is a client makes nobody forward");
    let fix = one(Severity::Problem, &["nothing passes this host", "campus"], |facts| {
        off(facts, 1);
        facts.meshes[0].inside.forwards = true;
    });
    assert_eq!(fix, ["sysctl -w net.ipv6.conf.all.forwarding=1"]);
    let v4 = |facts: &mut Facts| {
        facts.meshes[0].inside.forwards = true;
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
        facts.meshes[0].inside.forwards = true;
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
