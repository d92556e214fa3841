//! The command's `--chaos`, small: everything goes wrong at random, and the invariants hold.

use std::collections::BTreeSet;

use selvedge_gateway::Timing;
use selvedge_sim::gateway::chaos::{Options, Report, run, run_seed};

fn options(seeds: std::ops::Range<u64>, gateways: Option<usize>) -> Options {
    Options { seeds, networks: 24, gateways, jobs: 2, timing: Timing::default() }
}

fn holds(report: &Report) {
    assert_eq!(report.details, Vec::<String>::new());
    assert_eq!((report.violations, report.needless_moves), (0, 0));
    assert!(report.takeover_ms.count > 0 && report.takeover_ms.max < 1500.0, "{report:?}");
    assert!(report.overlap_ms.max < 1200.0, "{report:?}");
}

#[test]
fn two_gateways() {
    holds(&run(&options(0..12, Some(2))));
}

#[test]
fn three_gateways() {
    holds(&run(&options(100..116, Some(3))));
}

#[test]
fn five_gateways() {
    holds(&run(&options(200..206, Some(5))));
}

#[test]
fn eight_gateways() {
    holds(&run(&options(300..302, Some(8))));
}

/// A right that came back for a moment on an old word, as fewer voters were needed; and one that
/// stood on a majority which only the store knew to be none any more. A planned move whose arriving
/// gateway was cut off from the store, with a majority of the voters on its side.
#[test]
fn seeds_that_found_something() {
    let options = Options { networks: 60, ..options(0..1, None) };
    for seed in [407, 459, 534] {
        let outcome = run_seed(seed, &options);
        assert_eq!(outcome.violations, Vec::<String>::new(), "seed {seed}");
    }
}

#[test]
fn a_seed_replays_to_the_letter_and_another_one_differs() {
    let options = options(0..1, Some(3));
    let (first, second) = (run_seed(7, &options), run_seed(7, &options));
    assert_eq!(first, second);
    let others: BTreeSet<u64> = (8..11).map(|seed| run_seed(seed, &options).events).collect();
    assert!(others.len() == 3 && !others.contains(&first.events));
}
