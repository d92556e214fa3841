//! What is asked of the host: announcements, and which routes.

use std::time::Duration;

use selvedge_gateway::Event;
use selvedge_gateway::desired::{Duty, Upstream};
use selvedge_gateway::kv::LeaseId;

use crate::bench::{Bench, MS, SECOND, config, ids_for, vni};

/// The history of a network that another gateway served.
const SERVED_BEFORE: &str = r#"{"changes":[{"epoch":1,"owner":"gw9","reason":"first","at_ms":0}]}"#;

fn announcements(bench: &Bench, number: u32) -> u64 {
    bench.agents[0].wanted.get(&vni(number)).map_or(0, |wanted| wanted.announce)
}

fn serving(networks: u32) -> Bench {
    let mut bench = Bench::new();
    bench.add(config("gw1", vec![0], networks));
    bench.settle();
    bench
}

#[test]
fn a_first_owner_announces_a_few_times_and_then_every_ten_seconds() {
    let mut bench = serving(3);
    assert_eq!(announcements(&bench, 2), 2, "it begins to answer, and it takes over");
    // Twice more within the first second, and its turn.
    bench.pass(SECOND * 9);
    assert!((4..=5).contains(&announcements(&bench, 2)));
    let before: Vec<_> = (1..=3).map(|number| announcements(&bench, number)).collect();
    bench.pass(SECOND * 60);
    for (number, before) in (1..=3).zip(before) {
        assert_eq!(announcements(&bench, number), before + 6, "network {number}");
    }
}

#[test]
fn who_takes_over_announces_every_second_for_ten_seconds_then_every_ten() {
    let mut bench = Bench::new();
    for number in 1..=3 {
        bench.put(&format!("/selvedge/history/{number}"), SERVED_BEFORE, None);
    }
    bench.add(config("gw1", vec![0], 3));
    bench.settle();
    assert_eq!(announcements(&bench, 2), 2, "it begins to answer, and it takes over");
    for second in 1..=9 {
        bench.pass(SECOND);
        // Twice more within the first second.
        assert_eq!(announcements(&bench, 2), 4 + second);
    }
    bench.pass(SECOND * 6);
    let before: Vec<_> = (1..=3).map(|number| announcements(&bench, number)).collect();
    bench.pass(SECOND * 60);
    for (number, before) in (1..=3).zip(before) {
        assert_eq!(announcements(&bench, number), before + 6, "network {number}");
    }
}

#[test]
fn announcements_of_many_networks_are_spread_over_the_period() {
    let mut bench = serving(20);
    bench.pass(SECOND * 15);
    for _ in 0..10 {
        let before: Vec<_> = (1..=20).map(|number| announcements(&bench, number)).collect();
        bench.pass(SECOND);
        let sent = (1..=20).zip(before).filter(|(n, b)| announcements(&bench, *n) > *b).count();
        assert_eq!(sent, 2);
    }
}

#[test]
fn nobody_announces_what_it_does_not_answer_for() {
    let mut bench = Bench::new();
    let other = bench.lease();
    bench.put("/selvedge/live/gw2", r#"{"identity":"2"}"#, Some(other));
    bench.put("/wmgwd/vni/1/type", "1", None);
    bench.put("/wmgwd/vni/1/current", "gw2", Some(other));
    bench.add(config("gw1", ids_for(&[2]), 1));
    bench.pass(SECOND * 30);
    assert_eq!(bench.duty(0, 1), Duty::NONE);
    assert_eq!(announcements(&bench, 1), 0);
}

#[test]
fn halves_for_thirty_seconds_after_a_takeover_then_the_whole_prefix() {
    let mut bench = Bench::new();
    bench.put("/selvedge/history/1", SERVED_BEFORE, None);
    bench.add(config("gw1", vec![0], 1));
    bench.settle();
    assert_eq!(bench.duty(0, 1), Duty::TAKEOVER);
    bench.pass(SECOND * 30 - MS);
    assert_eq!(bench.duty(0, 1), Duty::TAKEOVER);
    bench.pass(MS);
    assert_eq!(bench.duty(0, 1), Duty::FULL);
}

#[test]
fn where_nobody_was_before_halves_end_soon() {
    let mut bench = serving(1);
    assert_eq!(bench.duty(0, 1), Duty::TAKEOVER);
    bench.pass(SECOND * 5);
    assert_eq!(bench.duty(0, 1), Duty::FULL);
}

#[test]
fn halves_as_long_as_a_predecessor_is_registered() {
    let mut bench = serving(1);
    bench.pass(SECOND * 40);
    assert_eq!(bench.duty(0, 1).upstream, Upstream::Whole);
    let old = bench.lease();
    bench.put("/wmgwd/node/old1", "[]", Some(old));
    bench.settle();
    assert_eq!(bench.duty(0, 1).upstream, Upstream::Halves);
    bench.pass(Duration::from_secs(3600));
    assert_eq!(bench.duty(0, 1).upstream, Upstream::Halves);
    bench.store.revoke(old).expect("exists");
    bench.settle();
    assert_eq!(bench.duty(0, 1).upstream, Upstream::Whole);
}

#[test]
fn an_owner_whose_move_is_called_off_announces_and_outdoes_lingering_routes() {
    let mut bench = serving(1);
    bench.pass(SECOND * 40);
    let next = bench.lease();
    bench.put("/selvedge/live/gw2", r#"{"identity":"2"}"#, Some(next));
    bench.put("/wmgwd/vni/1/next", "gw2", Some(next));
    bench.put("/wmgwd/vni/1/type", "5", None);
    bench.settle();
    let before = announcements(&bench, 1);
    assert_eq!(bench.duty(0, 1).upstream, Upstream::Off);
    bench.store.revoke(next).expect("exists");
    bench.settle();
    assert_eq!(bench.owner(1).as_deref(), Some("gw1"));
    assert_eq!(bench.duty(0, 1), Duty::TAKEOVER);
    assert_eq!(announcements(&bench, 1), before + 1);
}

#[test]
fn the_host_is_left_as_it_is_until_the_store_is_read_and_this_node_registered() {
    let mut bench = Bench::new();
    bench.put("/wmgwd/vni/1/type", "1", None);
    let old = bench.lease();
    bench.put("/wmgwd/vni/1/current", "gw1", Some(old));
    bench.put("/wmgwd/vni/2/type", "1", None);
    bench.put("/wmgwd/vni/2/current", "gw2", Some(old));
    bench.add(config("gw1", vec![0], 2));
    bench.agents[0].hears = false;
    bench.pass(SECOND);
    assert!(bench.agents[0].wanted.is_empty(), "nothing is known");
    (bench.agents[0].hears, bench.agents[0].writes) = (true, false);
    bench.settle();
    assert_eq!(bench.agents[0].wanted.get(&vni(1)), None, "an earlier run may serve it");
    assert_eq!(bench.duty(0, 2), Duty::NONE);
    assert!(bench.agents[0].wanted.contains_key(&vni(2)), "what is another's is withdrawn first");
    assert_ne!(bench.agents[0].lease, LeaseId(0));
}

#[test]
fn what_a_restart_leaves_behind_is_no_predecessors() {
    let mut bench = serving(1);
    bench.add(config("gw2", vec![1], 1));
    bench.pass(SECOND * 60);
    assert_eq!(bench.duty(0, 1), Duty::FULL);
    bench.agents.truncate(1);
    let again = bench.add(config("gw2", vec![1], 1));
    bench.agents[again].writes = false;
    bench.settle();
    // The end of the registration before, and nothing more yet.
    let (_, txn) = bench.agents[again].held.remove(0);
    assert!(bench.store.txn(&txn).expect("answered").committed);
    bench.settle();
    assert!(bench.store.get("/selvedge/live/gw2").is_none());
    assert!(bench.store.get("/wmgwd/node/gw2").is_some());
    assert_eq!(bench.duty(0, 1), Duty::FULL);
}

#[test]
fn a_network_whose_keys_make_no_sense_does_not_hold_up_a_stop() {
    let mut bench = Bench::new();
    bench.add(config("gw1", ids_for(&[1]), 1));
    bench.pass(SECOND);
    bench.put("/wmgwd/vni/1/type", "banana", None);
    bench.pass(SECOND);
    assert_eq!(bench.duty(0, 1), Duty::TAKEOVER, "what is served stays");
    let now = bench.now;
    bench.agents[0].core.leave(now);
    bench.settle();
    assert!(bench.agents[0].events.contains(&Event::Left));
    bench.agents[0].core.resign(now);
    bench.settle();
    assert_eq!(bench.duty(0, 1), Duty::NONE, "nobody answers for a stopped gateway");
}
