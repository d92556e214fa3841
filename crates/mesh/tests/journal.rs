//! What a core was told can be told again, and leads to the same state to the letter.

mod common;

use std::time::Duration;

use common::{Net, WALL, admit, founder, identity, profile};
use proptest::prelude::*;
use selvedge_mesh::journal::{JournalError, replay};
use selvedge_mesh::{Config, Mesh};
use selvedge_model::Time;

/// Eight members; the fourth one's core is recorded.
fn recorded(seed: u64, loss: u32) -> Net {
    let mut net = Net::new(seed);
    let mut first = founder();
    for number in 1..8 {
        let member = admit(&mut first, number);
        let member = match number {
            3 => Mesh::recorded(
                identity(3),
                member.into_state(),
                Config::default(),
                seed,
                Time::ZERO,
                WALL,
            )
            .expect("its own"),
            _ => member,
        };
        net.add(member);
    }
    net.add(first);
    net.loss = loss;
    net
}

/// What happens to a mesh in a minute: changes, a crash, and a partition.
fn live(net: &mut Net, changes: &[u32]) {
    for (step, number) in changes.iter().enumerate() {
        let said = profile(number + 50 + step as u32);
        net.node(*number).set_profile(said).expect("in bounds");
        net.run(Duration::from_millis(700));
    }
    net.node(3).set_bootstrap(vec!["x".repeat(600), "192.0.2.1:7654".into()]);
    net.nodes.remove(&identity(5).node_id());
    net.run(Duration::from_secs(12));
    net.island = (0..4).map(|number| identity(number).node_id()).collect();
    net.run(Duration::from_secs(20));
    net.island.clear();
    net.run(Duration::from_secs(12));
}

fn log_of(net: &mut Net) -> Vec<u8> {
    net.node(3).poll_journal().expect("it was told something")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn a_log_replays_to_the_letter(
        seed in any::<u64>(),
        loss in 0..200_u32,
        changes in proptest::collection::vec(prop::sample::select(vec![0, 1, 2, 3, 4, 6, 7]), 0..6),
    ) {
        let mut net = recorded(seed, loss);
        live(&mut net, &changes);
        let log = log_of(&mut net);
        let mut replayed = replay(&log).expect("replays");
        prop_assert!(!replayed.cut && replayed.inputs > 100);
        let mesh = net.node(3);
        prop_assert_eq!(replayed.mesh.snapshot(), mesh.snapshot());
        prop_assert_eq!(replayed.mesh.digest(), mesh.digest());
        prop_assert_eq!(replayed.mesh.poll_timeout(), mesh.poll_timeout());
        prop_assert!(replayed.mesh.down().eq(mesh.down()));
        prop_assert_eq!(replayed.mesh.rejections(), mesh.rejections());
    }
}

#[test]
fn a_log_may_be_cut_anywhere_and_damaged_anywhere() {
    let mut net = recorded(1, 0);
    net.run(Duration::from_secs(2));
    let log = log_of(&mut net);
    let whole = replay(&log).expect("replays").inputs;
    for len in (5..log.len()).step_by(499) {
        match replay(&log[..len]) {
            Ok(replayed) => assert!(replayed.inputs <= whole),
            Err(error) => {
                assert!(matches!(error, JournalError::Malformed { frame: 0, .. }), "{error}")
            }
        }
    }
    for at in (0..log.len()).step_by(313) {
        let mut damaged = log.clone();
        damaged[at] ^= 0x55;
        // It replays to something, or says what is wrong with it.
        if let Err(error) = replay(&damaged) {
            assert!(!error.to_string().is_empty());
        }
    }
}

/// A log of another core's doings is found out.
#[test]
fn what_came_to_another_state_is_found_out() {
    let mut net = recorded(2, 0);
    net.node(3).set_profile(profile(99)).expect("in bounds");
    net.run(Duration::from_secs(120));
    let log = log_of(&mut net);
    replay(&log).expect("replays");
    // The first thing that the node says is something else, which it has never signed.
    let at = log.windows(7).rposition(|bytes| bytes == b"node-99").expect("in the log");
    let mut changed = log.clone();
    changed[at] = b'm';
    let first = log.windows(7).position(|bytes| bytes == b"node-99").expect("in the log");
    changed[first] = b'm';
    assert!(matches!(replay(&changed), Err(JournalError::Diverged { .. })));
}

/// The log gives nobody the identity of who wrote it.
#[test]
fn no_key_is_in_a_log() {
    let mut net = recorded(3, 0);
    live(&mut net, &[3, 3]);
    let log = log_of(&mut net);
    let mut secret = [0x5e; 32];
    secret[..4].copy_from_slice(&3_u32.to_be_bytes());
    assert!(!log.windows(32).any(|bytes| bytes == secret));
    assert!(net.node(2).poll_journal().is_none(), "and who is not recorded writes none");
}
