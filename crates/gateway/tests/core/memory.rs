//! Agents that are started while the store is away, on hosts that serve.

use selvedge_gateway::desired::Duty;
use selvedge_gateway::model::Model;
use selvedge_gateway::status::Right;
use selvedge_gateway::{Config, Memory};

use crate::bench::{Bench, MS, SECOND, WHOLE, ids_for};
use crate::voters::{AWAY, LEADERLESS, cut, mend, right, three, voter};

fn first() -> Config {
    voter(1, ids_for(&[1, 2]), 6)
}

/// The agent of gw1 dies; a moment later it is started again.
fn restart(bench: &mut Bench) {
    bench.agents[0].runs = false;
    bench.pass(MS * 500);
    bench.run_anew(0, first());
}

#[test]
fn whom_the_others_hear_serves_on_without_the_store() {
    let mut bench = three();
    bench.health = AWAY;
    bench.pass(SECOND * 5);
    restart(&mut bench);
    bench.agents[0].switches = 0;
    bench.pass(SECOND * 60);
    assert_eq!((right(&bench, 0), bench.agents[0].silent), (Right::Majority, false));
    assert_eq!(bench.agents[0].switches, 1, "it is told once that it is not silent");
    assert!((1..3).all(|agent| right(&bench, agent) == Right::Majority), "they have each other");
    bench.health = WHOLE;
    bench.pass(SECOND * 5);
    assert_eq!(bench.agents[0].core.status().incarnation, bench.incarnation("gw1"));
    assert_eq!((bench.duty(0, 1), bench.agents[0].silent), (Duty::FULL, false));
}

#[test]
fn whom_the_others_have_followed_falls_silent_without_the_store() {
    let mut bench = three();
    cut(&mut bench, 0);
    bench.health = LEADERLESS;
    bench.pass(MS * 500);
    assert!((1..3).any(|agent| bench.duty(agent, 1).answering), "it was followed");
    mend(&mut bench, 0);
    restart(&mut bench);
    bench.agents[0].silent = false;
    bench.pass(SECOND);
    assert!(bench.agents[0].silent);
    bench.health = WHOLE;
    bench.pass(SECOND * 10);
    assert!(!bench.agents[0].silent);
}

#[test]
fn who_is_told_that_it_was_convicted_falls_silent_at_once() {
    let mut bench = three();
    cut(&mut bench, 0);
    bench.pass(MS * 500);
    assert_ne!(bench.owner(1).as_deref(), Some("gw1"));
    mend(&mut bench, 0);
    bench.agents[0].hears = false;
    restart(&mut bench);
    bench.pass(MS * 100);
    assert!(bench.agents[0].silent);
}

#[test]
fn who_hears_nobody_falls_silent_without_the_store() {
    let mut bench = three();
    bench.health = AWAY;
    bench.agents[0].linked = false;
    restart(&mut bench);
    bench.pass(SECOND);
    assert!(bench.agents[0].silent);
    // A new run is no word.
    bench.agents[0].switches = 0;
    restart(&mut bench);
    bench.pass(SECOND * 5);
    assert!(bench.agents[0].silent && bench.agents[0].switches <= 1);
}

/// Who has forgotten how it voted is nobody's majority.
#[test]
fn who_has_only_just_been_started_confirms_nobody() {
    let mut bench = three();
    bench.health = AWAY;
    bench.agents[2].runs = false;
    restart(&mut bench);
    bench.pass(SECOND * 3);
    assert!(bench.agents[1].silent, "gw2 has but gw1's word");
    assert!(!bench.agents[0].silent, "gw1 has gw2's");
}

#[test]
fn what_another_host_has_left_is_ignored_and_the_format_is_what_it_was() {
    let mut bench = three();
    let memory = bench.agents[0].core.memory().expect("registered");
    let text = serde_json::to_string(&memory).expect("plain values");
    assert_eq!(serde_json::from_str::<Memory>(&text).expect("as written"), memory);
    let known = r#"{"revision":9,"incarnation":7,"nodes":{"gw1":{"incarnation":7,
        "roster":{"identity":"key of gw1","probe":["192.0.2.1:7947"]}}}}"#;
    assert!(serde_json::from_str::<Memory>(known).is_ok());
    bench.health = AWAY;
    bench.run_anew(0, Config { identity: "another".to_owned(), ..first() });
    bench.pass(SECOND * 5);
    assert_eq!(right(&bench, 0), Right::Unknown);
}

/// The revisions of a store that was set up anew begin again; what is said in the name of a former
/// run is higher than all of them.
#[test]
fn a_store_that_was_reset_is_believed_more_than_former_runs() {
    let mut bench = three();
    let configs = [first(), voter(2, ids_for(&[3, 4]), 6), voter(3, ids_for(&[5, 6]), 6)];
    let run_anew = |bench: &mut Bench| {
        for (agent, config) in configs.iter().cloned().enumerate() {
            bench.run_anew(agent, config);
        }
        bench.pass(SECOND * 20);
    };
    (0..500).for_each(|_| bench.put("/elsewhere", "", None));
    run_anew(&mut bench);
    let before = bench.incarnation("gw1");
    bench.store = Model::new();
    run_anew(&mut bench);
    assert!(bench.incarnation("gw1") < before, "it is another store");
    assert!((0..3).all(|agent| right(&bench, agent) == Right::Majority));
}
