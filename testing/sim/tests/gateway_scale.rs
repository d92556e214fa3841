//! The command's scenario, small.

mod common;

use common::line;
use selvedge_sim::gateway::scale::{Options, Report, run};

fn report(seed: u64) -> Report {
    run(&Options { networks: 200, gateways: 4, seed, budget: 20, json: true })
}

#[test]
fn one_seed_prints_one_line() {
    let (first, second) = (report(5), report(5));
    assert_eq!(line(&first), line(&second));
    assert_ne!(line(&first), line(&report(6)));
}

#[test]
fn the_figures_are_those_of_a_healthy_cluster() {
    let report = report(1);
    assert_eq!(report.details, Vec::<String>::new());
    assert_eq!(report.violations, 0);
    assert_eq!((report.moves_on_loss, report.needless_moves), (report.lost_networks, 0));
    assert_eq!(report.moves_on_return, report.lost_networks, "they all come back");
    assert!(report.lost_networks > 0 && report.decide_ms > 0.0);
    assert!((1.0..2.0).contains(&report.load_max_over_avg), "{}", report.load_max_over_avg);
}
