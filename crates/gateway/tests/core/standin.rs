//! Takeovers ahead of the verdict that the store does not confirm.

use selvedge_gateway::Event;
use selvedge_gateway::desired::{Duty, Upstream};
use selvedge_gateway::keys::{self, Field};

use crate::bench::{Bench, MS, WHOLE, ids_for, name, vni};
use crate::voters::{LEADERLESS, cut, mend, three, voter};

/// Networks 1 and 2 of gw1 were taken over ahead of the verdict; the store then gives one of them
/// to another. Returns the number of the network, who took it over, and who is to have it.
fn refused(bench: &mut Bench) -> (u32, usize, usize) {
    cut(bench, 0);
    bench.health = LEADERLESS;
    bench.pass(MS * 500);
    let taker = (1..3).find(|agent| bench.duty(*agent, 1).answering).expect("somebody");
    (1, taker, 3 - taker)
}

/// Begins a planned move to a gateway whose host is slow.
fn begin_move(bench: &mut Bench, number: u32, to: usize) {
    let (name, lease) = (bench.agents[to].core.name().clone(), bench.agents[to].lease);
    bench.put(&keys::network(vni(number), Field::Next), name.as_str(), Some(lease));
    bench.put(&keys::network(vni(number), Field::Type), "2", None);
    bench.agents[to].applies = false;
}

/// A planned move that the lost leader had passed on is committed by the next one; and the planner
/// brings the network back at once.
#[test]
fn who_took_over_for_another_serves_until_that_one_does() {
    let mut bench = three();
    let (number, taker, other) = refused(&mut bench);
    begin_move(&mut bench, number, other);
    bench.health = WHOLE;
    bench.pass(MS * 200);
    assert_eq!(bench.duty(taker, number), Duty::TAKEOVER, "the other is not ready");
    bench.catch_up(other);
    for _ in 0..60 {
        bench.pass(MS * 50);
        let duties = [taker, other].map(|agent| bench.duty(agent, number));
        assert!(duties.iter().any(|duty| duty.answering), "{duties:?}");
        assert!(duties.iter().any(|duty| duty.upstream != Upstream::Off), "{duties:?}");
    }
    let taker = bench.agents[taker].core.name().to_string();
    assert_eq!(bench.owner(number), Some(taker));
}

/// The owner's agent is back before the verdict is written.
#[test]
fn who_took_over_from_one_that_is_back_hands_it_over_in_order() {
    let mut bench = three();
    let (number, taker, _) = refused(&mut bench);
    bench.run_anew(0, voter(1, ids_for(&[1, 2]), 6));
    mend(&mut bench, 0);
    bench.health = WHOLE;
    bench.pass(MS * 200);
    assert_eq!(bench.owner(number).as_deref(), Some("gw1"));
    assert_eq!(bench.duty(0, number), Duty::FULL);
    assert_eq!(bench.duty(taker, number), Duty::TAKEOVER, "routing has to follow");
    bench.pass(MS * 150);
    assert_eq!(bench.duty(taker, number), Duty { upstream: Upstream::Off, ..Duty::FULL });
    bench.pass(MS * 200);
    assert_eq!(bench.duty(taker, number), Duty::NONE);
    let lost = Event::Lost { vni: vni(number), to: Some(name("gw1")) };
    assert!(bench.agents[taker].events.contains(&lost));
}

/// The one whom the store names does not come to it: two may not serve for longer than the fence.
#[test]
fn who_took_over_does_not_wait_for_ever() {
    let mut bench = three();
    let (number, taker, other) = refused(&mut bench);
    begin_move(&mut bench, number, other);
    bench.health = WHOLE;
    bench.pass(MS * 800);
    assert_eq!(bench.duty(taker, number), Duty::NONE);
}
