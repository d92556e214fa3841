//! Voters that watch over each other: votes, verdicts, takeovers, the right to serve.

use std::time::Duration;

use selvedge_gateway::desired::Duty;
use selvedge_gateway::kv::Health;
use selvedge_gateway::status::Right;
use selvedge_gateway::{Config, Event, Isolated, NodeRole, OperatorError, StoreInput};

use crate::bench::{Bench, HOLD_DOWN, MS, SECOND, WHOLE, config, ids_for, name};

pub(crate) const LEADERLESS: Health = Health { members: 3, answering: 2, led: false };
pub(crate) const AWAY: Health = Health { members: 3, answering: 1, led: false };

pub(crate) fn voter(number: u8, ids: Vec<u64>, networks: u32) -> Config {
    let address = format!("192.0.2.{number}:7947").parse().expect("an address");
    Config { probe: vec![address], ..config(&format!("gw{number}"), ids, networks) }
}

fn witness(number: u8) -> Config {
    Config { role: NodeRole::Witness, ..voter(number, vec![], 0) }
}

/// Three gateways, each with two of six networks, that have known each other for a while.
pub(crate) fn three() -> Bench {
    started([
        voter(1, ids_for(&[1, 2]), 6),
        voter(2, ids_for(&[3, 4]), 6),
        voter(3, ids_for(&[5, 6]), 6),
    ])
}

pub(crate) fn started(configs: impl IntoIterator<Item = Config>) -> Bench {
    let mut bench = Bench::new();
    for config in configs {
        bench.add(config);
    }
    bench.pass(SECOND * 40);
    for agent in &mut bench.agents {
        agent.events.clear();
    }
    bench
}

pub(crate) fn owners(bench: &Bench, networks: std::ops::RangeInclusive<u32>) -> Vec<String> {
    networks.map(|number| bench.owner(number).unwrap_or_default()).collect()
}

pub(crate) fn cut(bench: &mut Bench, agent: usize) {
    bench.agents[agent].linked = false;
    bench.agents[agent].hears = false;
    bench.agents[agent].writes = false;
}

pub(crate) fn mend(bench: &mut Bench, agent: usize) {
    bench.agents[agent].linked = true;
    bench.agents[agent].hears = true;
    bench.agents[agent].writes = true;
}

pub(crate) fn right(bench: &Bench, agent: usize) -> Right {
    bench.agents[agent].core.status().right
}

#[test]
fn everybody_hears_everybody_and_may_serve() {
    let bench = three();
    assert_eq!(owners(&bench, 1..=6), ["gw1", "gw1", "gw2", "gw2", "gw3", "gw3"]);
    for agent in &bench.agents {
        let status = agent.core.status();
        assert_eq!((status.voters.len(), status.majority), (3, 2));
        assert!(status.partners.values().all(|partner| partner.heard && partner.hears.len() == 2));
        assert_eq!((status.right, status.silenced), (Right::Majority, false));
        assert_eq!(status.failover_impossible, None);
    }
}

#[test]
fn a_silent_gateway_is_convicted_and_followed_within_a_moment() {
    let mut bench = three();
    cut(&mut bench, 0);
    bench.pass(MS * 150);
    assert_eq!(bench.owner(1).as_deref(), Some("gw1"), "not yet");
    bench.pass(MS * 120);
    let after = owners(&bench, 1..=2);
    assert!(after.iter().all(|owner| owner != "gw1"), "{after:?}");
    assert_eq!(owners(&bench, 3..=6), ["gw2", "gw2", "gw3", "gw3"], "the others stay");
    let verdicts = |agent: usize| {
        let events = bench.agents[agent].events.iter();
        events.filter(|event| matches!(event, Event::Verdict { .. })).count()
    };
    assert_eq!((verdicts(1), verdicts(2)), (1, 1));
}

#[test]
fn an_isolated_owner_falls_silent_within_the_fence() {
    let mut bench = three();
    cut(&mut bench, 0);
    bench.pass(MS * 700);
    assert_eq!(right(&bench, 0), Right::Majority);
    bench.pass(MS * 300);
    assert_eq!(right(&bench, 0), Right::None);
    assert!(bench.agents[0].silent);
    assert_eq!(bench.duty(0, 1), Duty::NONE);
}

#[test]
fn who_is_back_after_a_verdict_registers_anew_and_is_not_silent() {
    let mut bench = three();
    cut(&mut bench, 0);
    bench.pass(SECOND * 5);
    mend(&mut bench, 0);
    bench.renew(0);
    bench.pass(SECOND * 40);
    assert!(!bench.agents[0].silent);
    assert_eq!(right(&bench, 0), Right::Majority);
    assert_eq!(owners(&bench, 1..=6), ["gw1", "gw1", "gw2", "gw2", "gw3", "gw3"]);
    assert!(bench.cache().verdicts.is_empty(), "it has cleared up");
    assert_eq!(bench.agents[1].core.status().voters.len(), 3);
}

/// Its lease lives on, under which it registers anew: nobody may end that by what it read before.
#[test]
fn a_new_registration_is_not_ended_by_one_that_has_not_read_of_it() {
    let mut bench = three();
    cut(&mut bench, 0);
    bench.pass(MS * 600);
    assert!(bench.cache().owned(&name("gw1")).next().is_none(), "it was followed");
    bench.agents[1].hears = false;
    mend(&mut bench, 0);
    bench.pass(SECOND * 20);
    assert_ne!(bench.agents[0].core.status().incarnation, None);
    assert!(bench.cache().live.contains_key(&name("gw1")));
}

#[test]
fn who_planned_and_is_convicted_is_followed_before_its_lease_ends() {
    let mut bench = three();
    let planner = bench.agents[0].core.status().planner.expect("somebody plans");
    let lost = usize::from(planner.as_str().as_bytes()[2] - b'1');
    cut(&mut bench, lost);
    bench.pass(SECOND);
    let planner = bench.agents[(lost + 1) % 3].core.status().planner.expect("somebody plans");
    assert_ne!(planner, *bench.agents[lost].core.name());
}

#[test]
fn the_store_being_away_makes_nobody_withdraw_or_take_over() {
    let mut bench = three();
    bench.health = AWAY;
    bench.pass(SECOND * 60);
    for agent in 0..3 {
        assert_eq!(right(&bench, agent), Right::Majority);
        assert!(bench.agents[agent].core.status().failover_impossible.is_some());
    }
    assert_eq!(bench.duty(0, 1), Duty::FULL);
    bench.health = WHOLE;
    bench.pass(SECOND * 10);
    assert_eq!(owners(&bench, 1..=6), ["gw1", "gw1", "gw2", "gw2", "gw3", "gw3"]);
}

#[test]
fn without_a_leader_the_successors_act_first_and_commit_later() {
    let mut bench = three();
    cut(&mut bench, 0);
    bench.health = LEADERLESS;
    bench.pass(MS * 250);
    let takers =
        |bench: &Bench, number| (1..3).filter(|a| bench.duty(*a, number).answering).count();
    assert_eq!(takers(&bench, 1), 0, "the store may answer yet");
    bench.pass(MS * 150);
    assert_eq!((takers(&bench, 1), takers(&bench, 2)), (1, 1), "one of the two, for each");
    assert_eq!(bench.owner(1).as_deref(), Some("gw1"), "nothing is committed");
    bench.pass(SECOND * 3);
    assert_eq!((takers(&bench, 1), takers(&bench, 2)), (1, 1));
    bench.health = WHOLE;
    bench.pass(SECOND);
    for number in 1..=2 {
        let owner = bench.owner(number).expect("an owner");
        let taker = if owner == "gw2" { 1 } else { 2 };
        assert_eq!(bench.duty(taker, number), Duty::TAKEOVER, "{owner}");
        assert_ne!(owner, "gw1");
    }
}

#[test]
fn a_store_that_nobody_reaches_is_not_leaderless() {
    let mut bench = three();
    cut(&mut bench, 0);
    bench.health = AWAY;
    bench.pass(SECOND * 5);
    assert!((1..3).all(|agent| !bench.duty(agent, 1).answering), "nobody takes over");
    assert!(bench.agents[0].silent, "isolated");
    // Its votes end with the suspect's next word.
    bench.agents[0].linked = true;
    bench.pass(SECOND);
    assert_eq!(right(&bench, 0), Right::Majority);
    assert!(!bench.agents[0].silent);
    assert_eq!(bench.duty(0, 1), Duty::FULL);
}

#[test]
fn the_operators_word_takes_over_without_the_store() {
    let mut bench = three();
    cut(&mut bench, 0);
    bench.health = AWAY;
    bench.pass(SECOND * 5);
    let (gw1, gw3) = (name("gw1"), name("gw3"));
    let now = bench.now;
    let heard = bench.agents[1].core.take_over(&gw3, now);
    assert_eq!(heard, Err(OperatorError::Heard(gw3, name("gw2"))));
    bench.agents[1].core.take_over(&gw1, now).expect("it is silent");
    bench.pass(MS * 200);
    for number in 1..=2 {
        assert_eq!((1..3).filter(|agent| bench.duty(*agent, number).answering).count(), 1);
    }
    bench.health = WHOLE;
    bench.pass(SECOND);
    assert!(owners(&bench, 1..=2).iter().all(|owner| owner != "gw1"));
}

#[test]
fn of_two_voters_the_one_in_doubt_refutes_it_or_is_followed() {
    let mut bench = started([voter(1, ids_for(&[1]), 2), voter(2, ids_for(&[2]), 2)]);
    assert_eq!(owners(&bench, 1..=2), ["gw1", "gw2"]);
    // Only the paths between the two are broken.
    bench.agents[0].linked = false;
    bench.pass(SECOND * 20);
    assert_eq!(owners(&bench, 1..=2), ["gw1", "gw2"]);
    assert_eq!((right(&bench, 0), right(&bench, 1)), (Right::Store, Right::Store));
    bench.agents[0].linked = true;
    bench.pass(SECOND * 60);
    // One of them is lost.
    bench.agents[0].runs = false;
    bench.pass(MS * 600);
    assert_eq!(owners(&bench, 1..=2), ["gw2", "gw2"]);
}

#[test]
fn a_witness_makes_three_of_two() {
    let mut bench = started([voter(1, ids_for(&[1]), 2), voter(2, ids_for(&[2]), 2), witness(3)]);
    assert_eq!(owners(&bench, 1..=2), ["gw1", "gw2"]);
    cut(&mut bench, 0);
    bench.pass(MS * 300);
    assert_eq!(owners(&bench, 1..=2), ["gw2", "gw2"]);
}

#[test]
fn two_serve_on_when_each_is_alone() {
    let mut bench = started([voter(1, ids_for(&[1]), 2), voter(2, ids_for(&[2]), 2)]);
    bench.health = AWAY;
    bench.agents[0].linked = false;
    bench.pass(SECOND * 10);
    assert_eq!((right(&bench, 0), right(&bench, 1)), (Right::Isolated, Right::Isolated));
    assert_eq!((bench.duty(0, 1), bench.duty(0, 2)), (Duty::FULL, Duty::NONE));
}

#[test]
fn who_is_told_to_stop_when_isolated_stops_with_two_as_well() {
    let stop = |config| Config { isolated: Isolated::Stop, ..config };
    let both = [voter(1, ids_for(&[1]), 2), voter(2, ids_for(&[2]), 2)];
    let mut bench = started(both.map(stop));
    bench.health = AWAY;
    bench.agents[0].linked = false;
    bench.pass(SECOND * 2);
    assert!(bench.agents[0].silent && bench.agents[1].silent);
}

#[test]
fn a_host_that_cannot_do_its_job_is_relieved_at_once_and_comes_back() {
    let mut bench = three();
    let now = bench.now;
    bench.agents[0].core.handle_problems(vec!["up0 has no carrier".to_owned()], now);
    bench.pass(MS * 100);
    let after = owners(&bench, 1..=2);
    assert!(after.iter().all(|owner| owner != "gw1"), "{after:?}");
    bench.pass(SECOND * 30);
    assert!(!bench.cache().nodes.contains_key(&name("gw1")), "nothing is placed there");
    assert_eq!(bench.agents[1].core.status().voters.len(), 3, "it votes");
    let now = bench.now;
    bench.agents[0].core.handle_problems(vec![], now);
    bench.pass(SECOND * 30);
    assert_eq!(owners(&bench, 1..=2), ["gw1", "gw1"]);
}

/// The gateway's sessions end a second after it was cut off, and are up two seconds after its
/// return.
#[test]
fn what_a_gateway_suffers_while_it_serves_nothing_is_no_flapping() {
    let mut bench = three();
    for _ in 0..5 {
        cut(&mut bench, 0);
        bench.pass(SECOND);
        let now = bench.now;
        bench.agents[0].core.handle_problems(vec!["ospfd has no neighbour".to_owned()], now);
        bench.pass(SECOND);
        mend(&mut bench, 0);
        bench.renew(0);
        bench.pass(SECOND * 2);
        let now = bench.now;
        bench.agents[0].core.handle_problems(vec![], now);
        bench.pass(HOLD_DOWN + SECOND * 15);
        assert_eq!(owners(&bench, 1..=2), ["gw1", "gw1"]);
    }
}

/// Its sessions are not up yet when it comes back, and it hears nobody in the first moment.
#[test]
fn a_gateway_that_comes_back_unfit_is_left_alone() {
    let mut bench = three();
    cut(&mut bench, 0);
    bench.pass(SECOND);
    let now = bench.now;
    bench.agents[0].core.handle_problems(vec!["ospfd has no neighbour".to_owned()], now);
    bench.pass(SECOND);
    let convicted = bench.cache().live[&name("gw1")].incarnation;
    let before = bench.cache().nodes[&name("gw1")].lease;
    mend(&mut bench, 0);
    bench.renew(0);
    let mut back = 0;
    for step in 0..200 {
        bench.agents[0].linked = step >= 10;
        bench.pass(MS * 50);
        let cache = bench.cache();
        assert!(cache.moving.is_empty(), "nothing moves there");
        if cache.live.get(&name("gw1")).is_some_and(|live| live.incarnation > convicted) {
            back += 1;
            let entry = cache.nodes.get(&name("gw1"));
            assert!(entry.is_none_or(|entry| entry.lease == before), "nothing is placed there");
            assert!(!cache.is_convicted(&name("gw1")), "there is nothing to relieve it of");
        }
    }
    assert!(back > 100);
    let now = bench.now;
    bench.agents[0].core.handle_problems(vec![], now);
    bench.pass(HOLD_DOWN + SECOND * 15);
    assert_eq!(owners(&bench, 1..=2), ["gw1", "gw1"]);
}

/// It looked fit for a moment, until its routing had come up and had to settle.
#[test]
fn a_gateway_that_is_starting_gets_nothing_though_it_was_fit_before() {
    let mut bench = three();
    cut(&mut bench, 0);
    bench.pass(SECOND * 2);
    mend(&mut bench, 0);
    bench.renew(0);
    bench.pass(SECOND);
    assert!(bench.cache().nodes.contains_key(&name("gw1")));
    let now = bench.now;
    bench.agents[0].core.handle_condition(true, vec![], now);
    bench.pass(HOLD_DOWN + SECOND * 15);
    assert!(owners(&bench, 1..=2).iter().all(|owner| owner != "gw1"));
    let now = bench.now;
    bench.agents[0].core.handle_condition(false, vec![], now);
    bench.pass(HOLD_DOWN + SECOND * 15);
    assert_eq!(owners(&bench, 1..=2), ["gw1", "gw1"]);
    // It keeps what it has.
    let now = bench.now;
    bench.agents[0].core.handle_condition(true, vec![], now);
    bench.pass(SECOND * 20);
    assert_eq!(owners(&bench, 1..=2), ["gw1", "gw1"]);
}

#[test]
fn a_host_that_reaches_only_the_voters_is_relieved_too() {
    let mut bench = three();
    bench.agents[0].hears = false;
    bench.agents[0].writes = false;
    let now = bench.now;
    bench.agents[0].core.handle_problems(vec!["fab0 has no carrier".to_owned()], now);
    bench.pass(MS * 200);
    assert!(owners(&bench, 1..=2).iter().all(|owner| owner != "gw1"));
    assert!(bench.agents[0].silent, "the others have told it");
}

#[test]
fn the_last_gateway_serves_as_well_as_it_can() {
    let mut bench = started([voter(1, ids_for(&[1]), 2), witness(2), witness(3)]);
    let now = bench.now;
    bench.agents[0].core.handle_problems(vec!["bgpd is away".to_owned()], now);
    bench.pass(SECOND * 20);
    assert_eq!(owners(&bench, 1..=2), ["gw1", "gw1"]);
    assert_eq!(bench.duty(0, 1), Duty::FULL);
}

#[test]
fn an_announced_absence_is_no_failure_while_it_lasts() {
    let mut bench = three();
    let now = bench.now;
    bench.agents[0].core.announce_absence(SECOND * 10, now);
    bench.settle();
    assert!(bench.agents[0].core.is_away_known());
    bench.agents[0].runs = false;
    bench.pass(SECOND * 9);
    assert_eq!(owners(&bench, 1..=2), ["gw1", "gw1"]);
    bench.pass(SECOND * 2);
    assert!(owners(&bench, 1..=2).iter().all(|owner| owner != "gw1"), "too late");
}

#[test]
fn observers_that_stalled_suspect_nobody() {
    let mut bench = three();
    bench.agents[1].runs = false;
    bench.agents[2].runs = false;
    bench.pass(SECOND * 2);
    bench.agents[1].runs = true;
    bench.agents[2].runs = true;
    bench.pass(SECOND * 5);
    assert_eq!(owners(&bench, 1..=6), ["gw1", "gw1", "gw2", "gw2", "gw3", "gw3"]);
    let voted = |event: &Event| matches!(event, Event::Voted(_) | Event::Suspected { .. });
    assert!(bench.agents[1..].iter().all(|agent| !agent.events.iter().any(voted)));
    assert_eq!(right(&bench, 0), Right::Majority, "it is heard again");
}

#[test]
fn who_slept_for_long_serves_nothing_until_it_has_asked() {
    let mut bench = three();
    bench.agents[0].runs = false;
    bench.pass(SECOND * 10);
    assert!(owners(&bench, 1..=2).iter().all(|owner| owner != "gw1"));
    bench.agents[0].runs = true;
    bench.agents[0].hears = false;
    let now = bench.now;
    bench.agents[0].core.handle_timeout(now);
    assert_eq!(bench.agents[0].core.poll_silence(), Some(true), "before anything else");
}

#[test]
fn who_leaves_in_order_votes_no_more_and_who_is_removed_is_gone() {
    let mut bench = three();
    let now = bench.now;
    let gw3 = name("gw3");
    let refused = bench.agents[0].core.remove(&gw3, now);
    assert_eq!(refused, Err(OperatorError::Registered(gw3.clone())));
    bench.agents[2].core.leave(now);
    bench.pass(SECOND * 60);
    assert!(bench.agents[2].events.contains(&Event::Left));
    bench.agents[2].runs = false;
    let lease = bench.agents[2].lease;
    bench.store.revoke(lease).expect("it lives");
    bench.pass(SECOND);
    assert_eq!(bench.agents[0].core.status().voters.len(), 2);
    let now = bench.now;
    bench.agents[0].core.remove(&gw3, now).expect("it is gone");
    bench.pass(SECOND);
    assert!(!bench.cache().roster.contains_key(&gw3));
}

#[test]
fn a_second_loss_before_the_first_is_committed_is_nobodys_to_follow() {
    let five = (1..=5).map(|number| {
        let own = u32::from(number) * 2;
        voter(number, ids_for(&[own - 1, own]), 10)
    });
    let mut bench = started(five);
    cut(&mut bench, 0);
    bench.health = Health { members: 5, answering: 4, led: false };
    bench.pass(MS * 400);
    let taker = (1..5).find(|agent| bench.duty(*agent, 1).answering).expect("somebody");
    cut(&mut bench, taker);
    bench.pass(SECOND * 3);
    let others = (1..5).filter(|agent| *agent != taker);
    assert_eq!(others.filter(|agent| bench.duty(*agent, 1).answering).count(), 0);
    bench.health = Health { led: true, ..bench.health };
    bench.pass(SECOND * 2);
    let owner = bench.owner(1).expect("an owner");
    assert!(owner != "gw1" && owner != bench.agents[taker].core.name().as_str(), "{owner}");
}

#[test]
fn where_no_probe_gets_through_the_lease_decides() {
    let mut bench = three();
    for agent in &mut bench.agents {
        agent.linked = false;
    }
    bench.pass(SECOND * 5);
    assert!((0..3).all(|agent| right(&bench, agent) == Right::Store));
    bench.agents[0].runs = false;
    let lease = bench.agents[0].lease;
    bench.store.revoke(lease).expect("it lives");
    bench.pass(SECOND * 2);
    assert!(owners(&bench, 1..=2).iter().all(|owner| owner == "gw2" || owner == "gw3"));
}

#[test]
fn who_may_still_have_a_majority_is_followed_only_by_the_operators_word() {
    let mut bench = three();
    for agent in [0, 1] {
        bench.agents[agent].runs = false;
        let lease = bench.agents[agent].lease;
        bench.store.revoke(lease).expect("it lives");
    }
    bench.pass(SECOND * 20);
    assert_eq!(owners(&bench, 1..=4), ["", "", "", ""], "two of three may serve on, cut off");
    let now = bench.now;
    for lost in ["gw1", "gw2"] {
        bench.agents[2].core.take_over(&name(lost), now).expect("on the roster");
    }
    bench.pass(SECOND * 2);
    assert_eq!(owners(&bench, 1..=4), ["gw3", "gw3", "gw3", "gw3"]);
}

#[test]
fn what_only_the_unfit_one_can_serve_stays_with_it_in_peace() {
    let mut bench = started([voter(1, ids_for(&[1, 3]), 3), voter(2, ids_for(&[2]), 2)]);
    assert_eq!(owners(&bench, 1..=3), ["gw1", "gw2", "gw1"]);
    let now = bench.now;
    bench.agents[0].core.handle_problems(vec!["up0 has no carrier".to_owned()], now);
    bench.pass(SECOND * 30);
    assert_eq!(owners(&bench, 1..=3), ["gw2", "gw2", "gw1"]);
    assert!(bench.duty(0, 3).answering);
    let convicted = |event: &&Event| **event == Event::Convicted;
    assert_eq!(bench.agents[0].events.iter().filter(convicted).count(), 1);
}

#[test]
fn nobody_is_relieved_while_the_store_is_away() {
    let mut bench = three();
    bench.health = AWAY;
    bench.pass(SECOND * 5);
    let now = bench.now;
    bench.agents[0].core.handle_problems(vec!["bgpd is away".to_owned()], now);
    bench.pass(SECOND * 20);
    assert_eq!(right(&bench, 0), Right::Majority);
    assert_eq!(bench.duty(0, 1), Duty::FULL);
}

#[test]
fn all_being_unfit_at_once_convicts_nobody_for_it() {
    let mut bench = three();
    let now = bench.now;
    for agent in &mut bench.agents {
        agent.core.handle_problems(vec!["the upstream router is away".to_owned()], now);
    }
    let before = bench.store.revision();
    bench.pass(SECOND * 30);
    let served = owners(&bench, 1..=6);
    assert!(served.iter().all(|owner| !owner.is_empty()), "{served:?}");
    assert!(bench.store.revision().0 - before.0 < 200, "no storm of writes");
    assert!((0..3).all(|agent| !bench.agents[agent].silent));
}

#[test]
fn a_gateway_alone_is_not_silent_for_a_moment_when_another_comes() {
    let stop = |config| Config { isolated: Isolated::Stop, ..config };
    let mut bench = started([stop(voter(1, ids_for(&[1]), 2))]);
    bench.agents[0].switches = 0;
    bench.add(stop(voter(2, ids_for(&[2]), 2)));
    bench.pass(SECOND * 10);
    assert_eq!(bench.agents[0].switches, 0);
    assert_eq!(right(&bench, 0), Right::Majority);
}

#[test]
fn a_stall_gives_no_right_to_who_had_none() {
    let mut bench = three();
    cut(&mut bench, 0);
    bench.pass(SECOND * 5);
    assert!(bench.agents[0].silent);
    bench.agents[0].switches = 0;
    bench.agents[0].runs = false;
    bench.pass(MS * 900);
    bench.agents[0].runs = true;
    bench.pass(SECOND * 2);
    assert_eq!((bench.agents[0].switches, right(&bench, 0)), (0, Right::None));
}

#[test]
fn probes_cost_nothing_when_there_is_nobody_to_probe() {
    let bench = started([voter(1, ids_for(&[1]), 2)]);
    let core = &bench.agents[0].core;
    assert!(core.poll_timeout().since(bench.now) > Duration::from_millis(100));
}

/// It asked for relief without a leader, and the other has taken over. Cut off then, it knows.
#[test]
fn of_two_the_one_that_was_told_of_a_vote_against_it_does_not_serve_on_alone() {
    let mut bench = started([voter(1, ids_for(&[1]), 2), voter(2, ids_for(&[2]), 2)]);
    bench.health = LEADERLESS;
    let now = bench.now;
    bench.agents[0].core.handle_problems(vec!["up0 has no carrier".to_owned()], now);
    bench.pass(MS * 500);
    assert!(bench.duty(1, 1).answering, "it was followed");
    bench.agents[0].linked = false;
    bench.pass(SECOND * 10);
    assert!(bench.agents[0].silent, "{:?}", right(&bench, 0));
    assert_eq!(right(&bench, 1), Right::Isolated);
    bench.agents[0].linked = true;
    bench.health = WHOLE;
    bench.pass(SECOND * 30);
    assert!(!bench.agents[0].silent);
    assert_eq!(owners(&bench, 1..=2), ["gw2", "gw2"]);
}

fn unprobed(config: Config) -> Config {
    Config { probe: Vec::new(), ..config }
}

#[test]
fn where_one_cannot_be_probed_no_failover_is_promised_and_its_lease_decides() {
    let mut bench = started([
        unprobed(voter(1, ids_for(&[1, 2]), 6)),
        voter(2, ids_for(&[3, 4]), 6),
        voter(3, ids_for(&[5, 6]), 6),
    ]);
    assert_eq!(owners(&bench, 1..=2), ["gw1", "gw1"]);
    let now = bench.now;
    for agent in &mut bench.agents {
        agent.core.handle_store(StoreInput::Connected, now);
        let reason = agent.core.status().failover_impossible.expect("nobody watches over gw1");
        assert!(reason.starts_with("gw1 has no address for probes"), "{reason}");
    }
    bench.agents[0].runs = false;
    bench.pass(SECOND * 2);
    assert_eq!(owners(&bench, 1..=2), ["gw1", "gw1"], "nobody knows");
    let lease = bench.agents[0].lease;
    bench.store.revoke(lease).expect("it lives");
    bench.pass(SECOND);
    assert!(owners(&bench, 1..=2).iter().all(|owner| owner != "gw1"));
    assert_eq!(bench.agents[1].core.status().failover_impossible, None);
}

#[test]
fn who_cannot_be_probed_stops_before_its_lease_ends_if_it_is_told_to() {
    for isolated in [Isolated::Auto, Isolated::Stop] {
        let first = Config { isolated, ..unprobed(voter(1, ids_for(&[1, 2]), 4)) };
        let mut bench = started([first, voter(2, ids_for(&[3, 4]), 4)]);
        assert!(!bench.agents[0].silent);
        cut(&mut bench, 0);
        // Two thirds of the lease: it may have been a third old.
        bench.pass(SECOND * 2);
        assert_eq!(bench.agents[0].silent, isolated == Isolated::Stop, "{isolated:?}");
        mend(&mut bench, 0);
        bench.pass(SECOND * 2);
        assert!(!bench.agents[0].silent);
    }
}
