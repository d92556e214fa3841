//! How a node comes to be registered, and what keeps it from it.

use selvedge_gateway::kv::{LeaseId, Op, Txn};
use selvedge_gateway::{Event, OperatorError, StoreInput};

use crate::bench::{Bench, MS, SECOND, config, ids_for, name};

fn incarnation(bench: &Bench) -> i64 {
    bench.store.get("/selvedge/live/gw1").expect("registered").create.0
}

#[test]
fn first_the_registration_then_the_entry_on_the_ring() {
    let mut bench = Bench::new();
    bench.add(config("gw1", ids_for(&[1]), 1));
    bench.agents[0].writes = false;
    bench.settle();
    let registration = r#"if no live/gw1, no roster/gw1; then live/gw1="{\"identity\":\"key of gw1\",\"version\":\"1\",\"networks\":\"1\"}" on lease 1, roster/gw1="{\"drained\":false,\"role\":\"gateway\",\"identity\":\"key of gw1\"}""#;
    assert_eq!(bench.held(0), [registration]);
    let (token, txn) = bench.agents[0].held.remove(0);
    let reply = bench.store.txn(&txn);
    bench.agents[0].core.handle_reply(token, reply, bench.now);
    bench.settle();
    let guard = format!("if own live/gw1, no verdict/gw1/{}", incarnation(&bench));
    let ids = format!("/wmgwd/node/gw1=\"{:?}\" on lease 1", ids_for(&[1]));
    assert!(bench.held(0).contains(&format!("{guard}; then {ids}")), "{:?}", bench.held(0));
}

#[test]
fn a_restart_is_a_new_incarnation_and_keeps_its_place() {
    let mut bench = Bench::new();
    bench.add(config("gw1", ids_for(&[1]), 1));
    bench.pass(SECOND);
    assert_eq!(bench.owner(1).as_deref(), Some("gw1"));
    let before = incarnation(&bench);
    bench.agents.clear();
    let again = bench.add(config("gw1", ids_for(&[1]), 1));
    bench.pass(SECOND);
    assert!(incarnation(&bench) > before);
    for key in
        ["/selvedge/live/gw1", "/wmgwd/node/gw1", "/wmgwd/vni/1/current", "/selvedge/planner"]
    {
        let lease = bench.store.get(key).map(|kv| kv.lease);
        assert_eq!(lease, Some(Some(bench.agents[again].lease)), "{key}");
    }
    let history = bench.cache().history.remove(&1_u32.try_into().expect("vni")).expect("history");
    assert_eq!(history.epoch(), 1, "it was its own all the time");
}

#[test]
fn a_taken_name_is_waited_for() {
    let mut bench = Bench::new();
    let other = bench.lease();
    bench.put("/selvedge/live/gw1", r#"{"identity":"another"}"#, Some(other));
    let gw1 = bench.add(config("gw1", ids_for(&[1]), 1));
    bench.pass(SECOND * 10);
    let taken = Event::NameTaken { identity: "another".into() };
    assert_eq!(bench.agents[gw1].events, [taken], "said once");
    assert_eq!(bench.store.get("/selvedge/live/gw1").and_then(|kv| kv.lease), Some(other));
    bench.store.revoke(other).expect("exists");
    bench.pass(SECOND);
    assert_eq!(bench.store.get("/selvedge/live/gw1").and_then(|kv| kv.lease), Some(LeaseId(2)));
    assert_eq!(bench.owner(1).as_deref(), Some("gw1"));
}

#[test]
fn a_convicted_node_gives_way_before_it_registers_anew() {
    let mut bench = Bench::new();
    bench.add(config("gw1", ids_for(&[1]), 1));
    bench.pass(SECOND);
    let other = bench.lease();
    bench.put("/selvedge/live/gw2", r#"{"identity":"2"}"#, Some(other));
    bench.put("/wmgwd/node/gw2", "[1]", Some(other));
    let before = incarnation(&bench);
    bench.put(&format!("/selvedge/verdict/gw1/{before}"), "{}", None);
    bench.pass(SECOND * 3 - MS);
    assert_eq!(incarnation(&bench), before, "others may take its networks first");
    assert!(bench.agents[0].events.contains(&Event::Convicted));
    assert!(!bench.duty(0, 1).answering);
    bench.pass(MS);
    bench.settle();
    assert!(incarnation(&bench) > before);
    let current = bench.store.get("/wmgwd/vni/1/current").expect("owned").modified;
    assert!(current.0 > incarnation(&bench), "written anew");
    assert!(bench.duty(0, 1).answering);
}

#[test]
fn a_convicted_node_that_nobody_can_follow_registers_at_once() {
    let mut bench = Bench::new();
    bench.add(config("gw1", ids_for(&[1]), 1));
    bench.pass(SECOND);
    let before = incarnation(&bench);
    bench.put(&format!("/selvedge/verdict/gw1/{before}"), "{}", None);
    bench.settle();
    assert!(incarnation(&bench) > before);
    assert!(bench.duty(0, 1).answering);
}

#[test]
fn the_last_word_counts_although_the_one_before_is_on_its_way() {
    let mut bench = Bench::new();
    bench.add(config("gw1", ids_for(&[1]), 1));
    bench.pass(SECOND);
    let (gw1, now) = (name("gw1"), bench.now);
    bench.agents[0].writes = false;
    bench.agents[0].core.set_drained(&gw1, true, now).expect("known");
    bench.settle();
    bench.agents[0].core.set_drained(&gw1, false, now).expect("known");
    bench.agents[0].writes = true;
    let (token, txn) = bench.agents[0].held.remove(0);
    let reply = bench.store.txn(&txn);
    bench.agents[0].core.handle_reply(token, reply, now);
    bench.pass(SECOND * 2);
    assert!(!bench.cache().roster[&gw1].value.drained);
}

#[test]
fn a_convicted_node_without_networks_registers_at_once() {
    let mut bench = Bench::new();
    bench.add(config("gw1", ids_for(&[]), 1));
    bench.settle();
    let before = incarnation(&bench);
    bench.put(&format!("/selvedge/verdict/gw1/{before}"), "{}", None);
    bench.settle();
    assert!(incarnation(&bench) > before);
}

#[test]
fn a_lost_lease_changes_nothing_on_the_host_and_is_replaced() {
    let mut bench = Bench::new();
    bench.add(config("gw1", ids_for(&[1]), 1));
    bench.pass(SECOND * 40);
    let wanted = bench.agents[0].wanted.clone();
    let lease = bench.agents[0].lease;
    bench.store.revoke(lease).expect("exists");
    bench.agents[0].core.handle_store(StoreInput::LeaseLost, bench.now);
    bench.pass(SECOND);
    assert_eq!(bench.agents[0].wanted, wanted, "it is the best there is");
    let lease = bench.lease();
    bench.agents[0].core.handle_store(StoreInput::Lease(lease), bench.now);
    bench.agents[0].writes = true;
    bench.settle();
    let current = bench.store.get("/wmgwd/vni/1/current").expect("claimed again");
    assert_eq!(current.lease, Some(lease));
}

#[test]
fn an_overwritten_registration_is_mended_in_the_same_incarnation() {
    let mut bench = Bench::new();
    bench.add(config("gw1", ids_for(&[1]), 1));
    bench.pass(SECOND);
    let before = incarnation(&bench);
    bench.put("/selvedge/live/gw1", "not json", None);
    bench.settle();
    assert_eq!(incarnation(&bench), before);
    let lease = bench.store.get("/selvedge/live/gw1").and_then(|kv| kv.lease);
    assert_eq!(lease, Some(bench.agents[0].lease));
    assert!(bench.cache().problems.is_empty());
    assert!(bench.duty(0, 1).answering);
}

#[test]
fn draining_removes_the_entry_on_the_ring_and_outlives_a_restart() {
    let mut bench = Bench::new();
    bench.add(config("gw1", ids_for(&[]), 1));
    bench.settle();
    let now = bench.now;
    assert_eq!(
        bench.agents[0].core.set_drained(&name("gw9"), true, now),
        Err(OperatorError::Unknown(name("gw9")))
    );
    bench.agents[0].core.set_drained(&name("gw1"), true, now).expect("known");
    bench.settle();
    assert!(bench.store.get("/wmgwd/node/gw1").is_none());
    assert!(bench.store.get("/selvedge/live/gw1").is_some());
    bench.agents.clear();
    bench.add(config("gw1", ids_for(&[]), 1));
    bench.settle();
    // What is left of the run before goes with its lease.
    bench.store.revoke(LeaseId(1)).expect("exists");
    bench.settle();
    assert!(bench.store.get("/wmgwd/node/gw1").is_none());
    assert!(bench.store.get("/selvedge/live/gw1").is_some());
}

#[test]
fn a_predecessor_is_not_drained_from_here() {
    let mut bench = Bench::new();
    let lease = bench.lease();
    bench.put("/wmgwd/node/old1", "[5]", Some(lease));
    bench.add(config("gw1", ids_for(&[]), 1));
    bench.settle();
    let refused = bench.agents[0].core.set_drained(&name("old1"), true, bench.now);
    assert_eq!(refused, Err(OperatorError::Predecessor(name("old1"))));
}

#[test]
fn fields_of_a_newer_version_survive_a_word_of_the_operator() {
    let mut bench = Bench::new();
    bench.put("/selvedge/roster/gw1", r#"{"drained":false,"colour":"green"}"#, None);
    bench.add(config("gw1", ids_for(&[]), 1));
    bench.settle();
    bench.agents[0].core.set_drained(&name("gw1"), true, bench.now).expect("known");
    bench.settle();
    let value = bench.store.get("/selvedge/roster/gw1").expect("kept").value.clone();
    assert_eq!(
        String::from_utf8_lossy(&value),
        r#"{"drained":true,"role":"gateway","identity":"key of gw1","colour":"green"}"#
    );
}

#[test]
fn a_damaged_roster_entry_is_written_over_by_the_next_word() {
    let mut bench = Bench::new();
    bench.add(config("gw1", ids_for(&[1]), 1));
    bench.pass(SECOND);
    bench.put("/selvedge/roster/gw1", "garbage{", None);
    bench.pass(SECOND);
    let (now, gw1) = (bench.now, name("gw1"));
    bench.agents[0].core.set_drained(&gw1, true, now).expect("known");
    bench.pass(SECOND);
    let roster = bench.store.get("/selvedge/roster/gw1").expect("there").value.clone();
    assert_eq!(
        String::from_utf8_lossy(&roster),
        r#"{"drained":true,"role":"gateway","identity":"key of gw1"}"#
    );
}

#[test]
fn a_removed_roster_entry_comes_back() {
    let mut bench = Bench::new();
    bench.add(config("gw1", ids_for(&[1]), 1));
    bench.pass(SECOND);
    let op = Op::Delete { key: "/selvedge/roster/gw1".to_owned() };
    bench.store.txn(&Txn { compare: vec![], then: vec![op] }).expect("accepted");
    bench.pass(SECOND);
    assert!(bench.store.get("/selvedge/roster/gw1").is_some());
}

#[test]
fn a_node_that_can_serve_nothing_is_not_on_the_ring() {
    let mut bench = Bench::new();
    bench.add(config("gw1", ids_for(&[1]), 0));
    bench.pass(SECOND);
    assert!(bench.store.get("/selvedge/live/gw1").is_some());
    assert!(bench.store.get("/wmgwd/node/gw1").is_none());
}
