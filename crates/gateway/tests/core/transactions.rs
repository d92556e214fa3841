//! Situations and the one transaction that follows: every one compares the own registration, the
//! absence of the own verdict, the three keys of the network, and its ground.

use selvedge_gateway::Config;
use selvedge_gateway::desired::Desired;
use selvedge_gateway::kv::LeaseId;

use crate::bench::{Bench, MS, SECOND, SETTLE, config, ids_for, vni};

/// A registered `gw1` on lease 1 that the placement gives network 7, the only one, and a registered
/// `gw2` on lease 2, which owns it and plans. `gw1` may not write from here on.
fn registered() -> Bench {
    let mut bench = Bench::new();
    let config = Config { networks: [vni(7)].into(), ..config("gw1", ids_for(&[7]), 7) };
    let gw1 = bench.add(config);
    let gw2 = bench.lease();
    assert_eq!((bench.agents[gw1].lease, gw2), (LeaseId(1), LeaseId(2)));
    bench.put("/selvedge/planner", "gw2", Some(gw2));
    bench.put("/selvedge/live/gw2", r#"{"identity":"key of gw2"}"#, Some(gw2));
    bench.put("/wmgwd/node/gw2", "[1]", Some(gw2));
    bench.put("/wmgwd/vni/7/type", "1", None);
    bench.put("/wmgwd/vni/7/current", "gw2", Some(gw2));
    bench.settle();
    assert!(bench.store.get("/wmgwd/node/gw1").is_some(), "all of the registration is done");
    bench.agents[gw1].writes = false;
    bench
}

/// Network 7 in this state: the owner and the owner to be, each with its lease, or none if 0.
fn situation(state: &str, current: Option<(&str, i64)>, next: Option<(&str, i64)>) -> Bench {
    let mut bench = registered();
    bench.put("/wmgwd/vni/7/type", state, None);
    for (key, value) in [("/wmgwd/vni/7/current", current), ("/wmgwd/vni/7/next", next)] {
        if let Some((name, lease)) = value {
            bench.put(key, name, Some(LeaseId(lease)).filter(|lease| lease.0 > 0));
        }
    }
    bench
}

/// What every transaction of `gw1` on network 7 compares.
fn guard(bench: &Bench) -> String {
    let found = |field: &str| match bench.store.get(&format!("/wmgwd/vni/7/{field}")) {
        Some(_) => format!("same 7/{field}"),
        None => format!("no 7/{field}"),
    };
    let incarnation = bench.store.get("/selvedge/live/gw1").expect("registered").create;
    let own = format!("if own live/gw1, no verdict/gw1/{incarnation}");
    format!("{own}, {}, {}, {}", found("type"), found("current"), found("next"))
}

fn written(state: &str, current: Option<(&str, i64)>, next: Option<(&str, i64)>) -> Vec<String> {
    let mut bench = situation(state, current, next);
    bench.pass(SETTLE + SECOND);
    bench.held(0)
}

fn expect(state: &str, current: Option<(&str, i64)>, next: Option<(&str, i64)>, then: &str) {
    let expected = format!("{}{then}", guard(&situation(state, current, next)));
    assert_eq!(written(state, current, next), [expected], "{state} {current:?} {next:?}");
}

#[test]
fn an_owner_takes_its_turns() {
    let (current, next) = (Some(("gw1", 1)), Some(("gw2", 2)));
    expect("2", current, next, "; then 7/type=\"3\"");
    expect("4", current, next, "; then 7/type=\"5\"");
    expect("6", current, next, "; then 7/type=\"7\"");
    expect("8", current, next, "; then 7/type=\"9\"");
    for state in ["1", "3", "5", "7", "9"] {
        assert!(written(state, current, next).is_empty(), "{state}");
    }
}

#[test]
fn an_owner_to_be_takes_its_turns() {
    let (current, next) = (Some(("gw2", 2)), Some(("gw1", 1)));
    expect("3", current, next, "; then 7/type=\"4\"");
    expect("5", current, next, "; then 7/type=\"6\"");
    expect("7", current, next, "; then 7/type=\"8\"");
    for state in ["2", "4", "6", "8"] {
        assert!(written(state, current, next).is_empty(), "{state}");
    }
}

#[test]
fn the_end_of_a_move_is_owner_history_and_idle_at_once() {
    let mut bench = situation("9", Some(("gw2", 2)), Some(("gw1", 1)));
    bench.settle();
    let held = bench.held(0);
    let [txn] = held.as_slice() else { panic!("{held:?}") };
    let then = txn.split("; then ").nth(1).expect("changes");
    let history = r#"history/7="{\"changes\":[{\"epoch\":1,\"owner\":\"gw1\",\"reason\":\"planned move from gw2\",\"at_ms\":0}]}""#;
    let expected = format!("7/type=\"1\", 7/current=\"gw1\" on lease 1, 7/next=\"\", {history}");
    assert_eq!(then, expected);
}

#[test]
fn a_settled_wait_is_waited_for_and_a_turn_needs_the_host() {
    let mut bench = situation("3", Some(("gw2", 2)), Some(("gw1", 1)));
    bench.agents[0].applies = false;
    bench.pass(SECOND);
    assert!(bench.held(0).is_empty(), "the host has not reported");
    let wanted = bench.agents[0].wanted.clone();
    bench.agents[0].core.handle_applied(wanted, bench.now);
    bench.pass(SETTLE - MS);
    assert!(bench.held(0).is_empty(), "routing has not had its time");
    bench.pass(MS);
    assert_eq!(bench.held(0).len(), 1);
}

#[test]
fn an_announcement_is_waited_for() {
    let mut bench = situation("7", Some(("gw2", 2)), Some(("gw1", 1)));
    bench.agents[0].applies = false;
    bench.settle();
    let wanted = bench.agents[0].wanted[&vni(7)];
    let before = Desired { announce: wanted.announce - 1, ..wanted };
    bench.agents[0].core.handle_applied([(vni(7), before)], bench.now);
    bench.settle();
    assert!(bench.held(0).is_empty(), "the duty is done, but nothing is announced");
    bench.agents[0].core.handle_applied([(vni(7), wanted)], bench.now);
    bench.settle();
    assert_eq!(bench.held(0).len(), 1);
}

#[test]
fn what_nobody_has_is_claimed_on_no_other_ground() {
    for state in ["0", "1", "10", "4"] {
        let mut bench = registered();
        bench.store.revoke(LeaseId(2)).expect("exists");
        bench.put("/wmgwd/vni/7/type", state, None);
        bench.settle();
        let held: Vec<_> = bench.held(0).into_iter().filter(|txn| txn.contains("7/")).collect();
        let claim = "; then 7/type=\"10\", 7/next=\"gw1\" on lease 1";
        assert_eq!(held, [guard(&bench) + claim], "{state}");
    }
}

#[test]
fn a_convicted_owner_is_followed_on_the_ground_of_the_verdict() {
    let mut bench = situation("1", Some(("gw2", 2)), Some(("", 0)));
    bench.settle();
    assert!(bench.held(0).is_empty(), "its owner is there");
    let gw2 = bench.store.get("/selvedge/live/gw2").expect("registered").create;
    bench.put(&format!("/selvedge/verdict/gw2/{}", gw2.0 - 1), "{}", None);
    bench.settle();
    assert!(bench.held(0).is_empty(), "that verdict is against an earlier incarnation");
    bench.put(&format!("/selvedge/verdict/gw2/{gw2}"), "{}", None);
    bench.settle();
    let guard = guard(&bench);
    let claim = "7/type=\"10\", 7/next=\"gw1\" on lease 1";
    let held = bench.held(0);
    let claims: Vec<&String> = held.iter().filter(|txn| !txn.contains("planner")).collect();
    assert_eq!(claims, [&format!("{guard}, any verdict/gw2/{gw2}; then {claim}")]);
}

#[test]
fn an_owner_that_nobody_knows_is_followed_after_a_grace() {
    let mut bench = situation("1", Some(("ghost", 0)), Some(("", 0)));
    bench.pass(SECOND * 3 - MS);
    assert!(bench.held(0).is_empty(), "it may be about to register");
    bench.pass(MS);
    let guard = guard(&bench);
    let ground = "no live/ghost, no /wmgwd/node/ghost";
    let claim = "7/type=\"10\", 7/next=\"gw1\" on lease 1";
    assert_eq!(bench.held(0), [format!("{guard}, {ground}; then {claim}")]);
}

#[test]
fn without_the_owner_to_be_the_owner_resumes() {
    for state in ["2", "3", "4", "5", "6", "7", "8", "9", "10"] {
        let then = "; then 7/type=\"1\", 7/next=\"\"";
        expect(state, Some(("gw1", 1)), None, then);
    }
}

#[test]
fn what_an_earlier_run_had_is_written_anew_before_anything_else() {
    for state in ["1", "2", "4", "8"] {
        let mut bench = situation(state, None, Some(("gw2", 2)));
        let old = bench.lease();
        bench.put("/wmgwd/vni/7/current", "gw1", Some(old));
        bench.pass(SECOND);
        let anew = "; then 7/current=\"gw1\" on lease 1";
        assert_eq!(bench.held(0), [guard(&bench) + anew], "{state}");
    }
    for state in ["3", "5", "9", "10"] {
        let mut bench = situation(state, Some(("gw2", 2)), None);
        let old = bench.lease();
        bench.put("/wmgwd/vni/7/next", "gw1", Some(old));
        bench.pass(SECOND);
        let anew = "; then 7/next=\"gw1\" on lease 1";
        assert_eq!(bench.held(0), [guard(&bench) + anew], "{state}");
    }
}

#[test]
fn a_convicted_node_writes_nothing_about_networks() {
    let mut bench = situation("2", Some(("gw1", 1)), Some(("gw2", 2)));
    let incarnation = bench.store.get("/selvedge/live/gw1").expect("registered").create;
    let verdict = format!("/selvedge/verdict/gw1/{incarnation}");
    bench.put(&verdict, "{}", None);
    bench.pass(SECOND);
    assert!(bench.held(0).is_empty(), "{:?}", bench.held(0));
}

#[test]
fn a_resignation_leaves_nobody_and_is_repeated_after_a_conflict() {
    let mut bench = situation("1", Some(("gw1", 1)), Some(("", 0)));
    bench.settle();
    bench.agents[0].core.resign(bench.now);
    bench.settle();
    let guard = guard(&bench);
    let resignation = format!("{guard}; then 7/type=\"0\", delete 7/current");
    let network = |bench: &Bench| -> Vec<String> {
        bench.held(0).into_iter().filter(|txn| txn.contains("7/")).collect()
    };
    assert_eq!(network(&bench), [resignation.as_str()]);
    // Somebody else was faster: the answer is no, and the view catches up.
    bench.put("/wmgwd/vni/7/next", "", None);
    let held = std::mem::take(&mut bench.agents[0].held);
    for (token, txn) in held {
        let reply = bench.store.txn(&txn);
        bench.agents[0].core.handle_reply(token, reply, bench.now);
    }
    bench.settle();
    assert_eq!(network(&bench), [resignation.as_str()]);
}

#[test]
fn a_network_with_a_foreign_value_is_left_alone() {
    let mut bench = situation("2", Some(("gw1", 1)), Some(("gw2", 2)));
    bench.put("/wmgwd/vni/7/next", "no such/name", None);
    bench.pass(SECOND * 10);
    assert!(bench.held(0).is_empty(), "{:?}", bench.held(0));
    let counts = bench.agents[0].core.status().networks;
    assert_eq!((counts.blocked, counts.serving, counts.moving), (1, 0, 0));
    bench.put("/wmgwd/vni/7/next", "gw2", Some(LeaseId(2)));
    bench.settle();
    assert_eq!(bench.held(0).len(), 1, "it goes on when the value is put right");
}

#[test]
fn a_conflict_is_looked_at_again_as_soon_as_the_view_has_caught_up() {
    let mut bench = situation("2", Some(("gw1", 1)), Some(("gw2", 2)));
    bench.settle();
    // The agent sees the conflict while its transaction is on its way, and then nothing more of
    // this network.
    bench.put("/wmgwd/vni/7/next", "gw2", Some(LeaseId(2)));
    bench.settle();
    bench.put("/selvedge/roster/gw3", "{}", None);
    let (token, txn) = bench.agents[0].held.remove(0);
    let reply = bench.store.txn(&txn);
    assert_eq!(reply.as_ref().expect("answered").nested, [false]);
    bench.agents[0].core.handle_reply(token, reply, bench.now);
    assert!(bench.held(0).is_empty());
    bench.settle();
    assert_eq!(bench.held(0), [guard(&bench) + "; then 7/type=\"3\""], "without a timer");
}
