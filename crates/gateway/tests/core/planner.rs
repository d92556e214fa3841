//! Who starts planned moves, which, how many, and when.

use selvedge_gateway::Event;
use selvedge_gateway::kv::LeaseId;

use crate::bench::{BUDGET, Bench, HOLD_DOWN, MS, SECOND, config, ids_for, name};

const NETWORKS: u32 = 6;

/// `gw1` has all six networks; then `gw2` comes, which the placement gives all of them.
fn bench() -> Bench {
    let mut bench = Bench::new();
    bench.add(config("gw1", vec![0], NETWORKS));
    bench.pass(SECOND);
    assert_eq!(owned(&bench, "gw1"), 6);
    assert!(bench.agents[0].core.is_planner());
    bench.add(config("gw2", ids_for(&[1, 2, 3, 4, 5, 6]), NETWORKS));
    bench.settle();
    bench
}

fn owned(bench: &Bench, owner: &str) -> usize {
    (1..=NETWORKS).filter(|vni| bench.owner(*vni).as_deref() == Some(owner)).count()
}

fn moving(bench: &Bench) -> usize {
    bench.cache().moving.len()
}

#[test]
fn moves_wait_for_the_hold_down_and_keep_to_the_budget() {
    let mut bench = bench();
    bench.pass(HOLD_DOWN - MS);
    assert_eq!(moving(&bench), 0, "it has only just come");
    bench.pass(MS);
    assert_eq!(moving(&bench), BUDGET);
    let mut most = 0;
    for _ in 0..6000 {
        bench.pass(MS);
        most = most.max(moving(&bench));
    }
    assert_eq!((most, owned(&bench, "gw2")), (BUDGET, 6));
}

#[test]
fn a_drained_owner_does_not_wait() {
    let mut bench = bench();
    bench.agents[1].core.set_drained(&name("gw1"), true, bench.now).expect("known");
    bench.settle();
    assert_eq!(moving(&bench), BUDGET);
    bench.pass(SECOND * 4);
    assert_eq!(owned(&bench, "gw2"), 6, "before the hold-down is over");
}

#[test]
fn an_owner_without_a_successor_keeps_what_it_has() {
    let mut bench = Bench::new();
    bench.add(config("gw1", vec![0], NETWORKS));
    bench.pass(SECOND);
    bench.agents[0].core.set_drained(&name("gw1"), true, bench.now).expect("known");
    bench.pass(SECOND * 20);
    assert_eq!(owned(&bench, "gw1"), 6);
}

#[test]
fn a_stale_planner_starts_nothing() {
    let mut bench = bench();
    bench.agents[0].writes = false;
    bench.pass(HOLD_DOWN);
    let (token, txn) = bench.agents[0].held.remove(0);
    assert!(bench.agents[0].held.is_empty(), "one start at a time");
    // It stalls here. Its key ends, and another plans.
    bench.put("/selvedge/planner", "gw2", Some(LeaseId(2)));
    let reply = bench.store.txn(&txn);
    assert!(!reply.as_ref().expect("answered").committed);
    bench.agents[0].core.handle_reply(token, reply, bench.now);
    bench.settle();
    assert!(bench.agents[0].events.contains(&Event::Planner(false)));
    assert!(bench.agents[1].core.is_planner());
}

#[test]
fn a_start_whose_fate_is_unknown_is_counted() {
    let mut bench = bench();
    bench.agents[0].writes = false;
    bench.pass(HOLD_DOWN);
    // It is committed, but neither the answer nor the watch says so.
    bench.agents[0].hears = false;
    let (token, txn) = bench.agents[0].held.remove(0);
    assert!(bench.store.txn(&txn).expect("answered").committed);
    let lost = selvedge_gateway::kv::StoreError::Unavailable("lost".into());
    bench.agents[0].core.handle_reply(token, Err(lost), bench.now);
    bench.pass(SECOND);
    let tries = std::mem::take(&mut bench.agents[0].held);
    assert!(!tries.is_empty(), "it tries again");
    for (_, txn) in tries {
        assert!(!bench.store.txn(&txn).expect("answered").committed, "on what it has not seen");
    }
    assert!(moving(&bench) <= BUDGET);
}

#[test]
fn a_planners_key_that_makes_no_sense_is_nobodys() {
    for (value, lease) in [("", None), ("ghost", None), ("a b", None)] {
        let mut bench = bench();
        bench.put("/selvedge/planner", value, lease);
        bench.settle();
        let planners = bench.agents.iter().filter(|agent| agent.core.is_planner()).count();
        assert_eq!(planners, 1, "{value:?}");
    }
}

#[test]
fn leaving_hands_over_in_moves_and_then_says_so() {
    let mut bench = bench();
    bench.pass(HOLD_DOWN * 4);
    assert_eq!(owned(&bench, "gw2"), 6);
    bench.agents[1].core.leave(bench.now);
    bench.settle();
    assert!(bench.store.get("/wmgwd/node/gw2").is_none());
    assert!(!bench.agents[1].events.contains(&Event::Left));
    assert_eq!(moving(&bench), BUDGET);
    bench.pass(SECOND * 20);
    assert_eq!(owned(&bench, "gw1"), 6);
    assert!(bench.agents[1].events.contains(&Event::Left));
}

#[test]
fn nobody_is_given_what_it_cannot_serve() {
    // The placement alone would give `gw2` everything, but it serves the first three only.
    let mut bench = Bench::new();
    bench.add(config("gw1", vec![0], NETWORKS));
    bench.add(config("gw2", ids_for(&[1, 2, 3, 4, 5, 6]), 3));
    bench.pass(SECOND * 20);
    assert_eq!((owned(&bench, "gw1"), owned(&bench, "gw2")), (3, 3));
    // And who leaves does not wait for one that cannot take over.
    bench.agents[0].core.leave(bench.now);
    bench.settle();
    assert!(bench.agents[0].events.contains(&Event::Left));
    assert_eq!(bench.owner(6), None);
}

#[test]
fn the_planner_plans_what_it_cannot_serve_itself() {
    let mut bench = Bench::new();
    bench.add(config("gw1", ids_for(&[1]), 1));
    bench.pass(SECOND);
    assert!(bench.agents[0].core.is_planner());
    // Both others can serve network 2, the planner cannot.
    bench.add(config("gw2", ids_for(&[2]), 2));
    bench.pass(SECOND * 10);
    assert_eq!(bench.owner(2).as_deref(), Some("gw2"));
    bench.add(config("gw3", ids_for(&[3]), 2));
    bench.pass(SECOND * 10);
    let (now, gw2) = (bench.now, name("gw2"));
    bench.agents[1].core.set_drained(&gw2, true, now).expect("known");
    bench.pass(SECOND * 10);
    assert_eq!(bench.owner(2).as_deref(), Some("gw3"));
}
