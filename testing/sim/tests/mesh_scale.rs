//! The command's scenario, small.

mod common;

use common::line;
use selvedge_sim::mesh::scale::{Options, Report, run};

/// Nothing of everything: each test says what it is about.
fn options(nodes: usize, seed: u64) -> Options {
    Options {
        nodes,
        seed,
        loss: 0.01,
        stalling: 0.0,
        updates: 0,
        idle: 0,
        crashes: 0,
        joins: 0,
        partition: 0,
        changes: 0,
        churn: 0,
        copies: selvedge_mesh::Config::default().copies,
        predecessor: false,
        json: true,
    }
}

fn assert_sound(report: &Report) {
    assert_eq!(report.details, Vec::<String>::new());
    assert_eq!((report.violations, report.false_failures), (0, 0));
}

#[test]
fn one_seed_prints_one_line() {
    let report = |seed| {
        let all = Options { updates: 3, idle: 3, crashes: 1, joins: 1, ..options(30, seed) };
        line(&run(&Options { partition: 6, changes: 3, churn: 2, ..all }))
    };
    assert_eq!(report(5), report(5));
    assert_ne!(report(5), report(6));
}

#[test]
fn news_is_fast_and_idleness_cheap() {
    let report = run(&Options { updates: 10, idle: 20, ..options(80, 1) });
    assert_sound(&report);
    assert!(report.update_ms.p99 <= 500.0 && report.update_ms.max <= 1000.0, "{report:?}");
    assert!((1.0..=4.0).contains(&report.copies_per_update), "{report:?}");
    assert!((100.0..=300.0).contains(&report.idle_bytes_per_node_s), "{report:?}");
}

#[test]
fn crashes_and_newcomers_are_known_soon() {
    let report = run(&Options { crashes: 3, joins: 2, ..options(80, 2) });
    assert_sound(&report);
    assert!(report.crash_known_ms.p99 <= 3000.0 && report.crash_known_ms.max <= 5000.0);
    assert!(report.crash_known_ms.p50 >= 1000.0, "stalls must be tolerated: {report:?}");
    assert!(report.join_ms.state <= 2000.0 && report.join_ms.known <= 3000.0, "{report:?}");
    assert!(report.join_ms.received_over_state <= 1.3, "{report:?}");
    assert!((500..=2048).contains(&report.repair_bytes), "{report:?}");
    assert!(report.repair_round_trips <= 4.0, "{report:?}");
}

/// One lost packet costs a newcomer a round trip, and not the seconds after which it would begin
/// anew.
#[test]
fn newcomers_are_in_as_soon_over_a_bad_network() {
    let report = run(&Options { joins: 40, loss: 0.03, ..options(60, 3) });
    assert_eq!(report.details, Vec::<String>::new());
    assert!(report.join_ms.state <= 2000.0 && report.join_ms.known <= 3000.0, "{report:?}");
    assert!(report.join_ms.received_over_state <= 1.3, "{report:?}");
}

#[test]
fn partitions_heal_whatever_their_size() {
    for (nodes, changes) in [(2, 1), (20, 10), (60, 20)] {
        let report = run(&Options { partition: 40, changes, ..options(nodes, 3) });
        assert_sound(&report);
        assert!(report.heal_ms <= 5000.0, "{nodes}: {report:?}");
        assert!(report.heal_lives_ms < 60_000.0, "{nodes}: {report:?}");
    }
}

/// Nodes that stall for up to a second do not fail, however many packets are lost.
#[test]
fn who_stalls_is_not_held_to_be_down() {
    let bad = Options { loss: 0.05, stalling: 0.05, idle: 60, ..options(80, 4) };
    assert_sound(&run(&bad));
}

#[test]
fn many_crashes_and_joins_at_once_are_agreed_on() {
    let report = run(&Options { churn: 8, ..options(60, 5) });
    assert_sound(&report);
    assert!(report.churn_ms <= 15_000.0, "{report:?}");
}

/// What the trees are compared with.
#[test]
fn the_predecessors_scheme_takes_many_rounds() {
    let tree = run(&Options { updates: 3, ..options(60, 6) });
    let old = run(&Options { updates: 3, predecessor: true, ..options(60, 6) });
    assert!(old.update_ms.max > 10.0 * tree.update_ms.max, "{old:?} {tree:?}");
    assert!(old.copies_per_update > tree.copies_per_update, "{old:?} {tree:?}");
}
