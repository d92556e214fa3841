//! A store that was emptied, and is filled again from what one agent knows.

use selvedge_gateway::desired::Duty;
use selvedge_gateway::kv::Revision;

use crate::bench::{Bench, MS, SECOND, WHOLE, ids_for};
use crate::voters::{AWAY, started, three, voter};

/// Nobody reads the store, and it is lost.
fn lose_store(bench: &mut Bench) {
    bench.health = AWAY;
    for agent in &mut bench.agents {
        (agent.hears, agent.writes) = (false, false);
    }
    bench.pass(SECOND * 30);
}

/// It reads the store that there is now, and gets a lease there.
fn accept(bench: &mut Bench, agent: usize) {
    (bench.agents[agent].hears, bench.agents[agent].writes) = (true, true);
    bench.settle();
    bench.renew(agent);
}

/// The owners of the six networks, by who answers.
fn answering(bench: &Bench) -> Vec<Vec<usize>> {
    let answers = |vni| (0..bench.agents.len()).filter(move |it| bench.duty(*it, vni).answering);
    (1..=6).map(|vni| answers(vni).collect()).collect()
}

/// Each network has its owner, and no other, all the time.
fn watch(bench: &mut Bench, before: &[Vec<usize>], tenths: usize) {
    for _ in 0..tenths {
        bench.pass(MS * 100);
        assert_eq!(answering(bench), before);
        assert!(bench.agents.iter().all(|agent| !agent.silent), "all have each other");
    }
}

#[test]
fn nothing_moves_when_a_lost_store_is_filled_again() {
    // The moves of the last start have ended long ago; one gateway serves what it would not draw.
    for drained in [false, true] {
        let mut bench = three();
        if drained {
            let (name, now) = (crate::bench::name("gw3"), bench.now);
            bench.agents[0].core.set_drained(&name, true, now).expect("it is known");
            bench.pass(SECOND * 60);
        }
        let before = answering(&bench);
        assert!(before.iter().all(|owners| owners.len() == 1), "{before:?}");
        lose_store(&mut bench);
        let (floor, ops) = bench.agents[1].core.refill().expect("it has read the former one");
        bench.replace_store(ops, floor);
        bench.health = WHOLE;
        for agent in [1, 0, 2] {
            accept(&mut bench, agent);
            watch(&mut bench, &before, 20);
        }
        watch(&mut bench, &before, 300);
        for (vni, owners) in (1..).zip(&before) {
            let owner = bench.owner(vni).expect("it has one");
            assert_eq!(owner, format!("gw{}", owners[0] + 1));
            assert_eq!(bench.duty(owners[0], vni), Duty::FULL);
        }
        let drained_now = bench.cache().roster[&crate::bench::name("gw3")].value.drained;
        assert_eq!(drained_now, drained, "the operator's word is kept");
    }
}

/// Who does not run any more when the store is back is followed as ever.
#[test]
fn who_died_with_the_store_is_followed() {
    let mut bench = three();
    lose_store(&mut bench);
    bench.agents[2].runs = false;
    bench.agents[2].linked = false;
    let (floor, ops) = bench.agents[0].core.refill().expect("it has read the former one");
    bench.replace_store(ops, floor);
    bench.health = WHOLE;
    [0, 1].into_iter().for_each(|agent| accept(&mut bench, agent));
    bench.pass(SECOND * 20);
    for vni in 1..=6 {
        let owner = bench.owner(vni).expect("it has one");
        assert!(owner != "gw3", "{vni} is {owner}'s");
    }
}

#[test]
fn who_has_not_read_the_store_knows_nothing_to_fill_it_with() {
    let mut bench = started([voter(1, ids_for(&[1]), 1)]);
    let memory = bench.agents[0].core.memory().expect("registered");
    assert!(memory.revision > Revision(0));
    lose_store(&mut bench);
    bench.run_anew(0, voter(1, ids_for(&[1]), 1));
    assert_eq!(bench.agents[0].core.refill(), None);
}
