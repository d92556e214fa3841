//! What came of all seeds.

use std::time::Duration;

use serde::Serialize;

use super::{Options, Outcome};

/// So many violations are told in words, one of each seed.
const TOLD: usize = 40;

/// Quantiles of a figure, in its unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Quantiles {
    /// How many values there are.
    pub count: usize,
    /// Half are not greater.
    pub p50: f64,
    /// 99 of 100 are not greater.
    pub p99: f64,
    /// The greatest.
    pub max: f64,
}

impl Quantiles {
    /// Of any values; all zero if there are none.
    #[must_use]
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let Some(max) = values.last().copied() else { return Self::default() };
        let at = |per_cent: usize| values[(values.len() * per_cent / 100).min(values.len() - 1)];
        Self { count: values.len(), p50: round(at(50)), p99: round(at(99)), max: round(max) }
    }
}

/// What came of all seeds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Number of seeds.
    pub seeds: u64,
    /// The first one.
    pub first_seed: u64,
    /// Number of overlay networks.
    pub networks: u32,
    /// Number of violations of invariants.
    pub violations: usize,
    /// Seeds with violations.
    pub violated_seeds: usize,
    /// How long each network of a lost gateway was not served, nothing else being wrong, in ms.
    pub takeover_ms: Quantiles,
    /// How long networks were answered for by two running agents outside planned moves, in ms.
    pub overlap_ms: Quantiles,
    /// How long clusters took to come to rest, in ms.
    pub rest_ms: Quantiles,
    /// Networks whose owner changed while a gateway was lost and nothing else was wrong.
    pub moves_on_loss: usize,
    /// Those among them that the lost gateway did not have.
    pub needless_moves: usize,
    /// Planned moves whose kernels were judged from the beginning to the end.
    pub moves_judged: usize,
    /// Events that were simulated.
    pub events: u64,
    /// Virtual time of all runs, in s.
    pub virtual_s: f64,
    /// Real time of the whole, in s.
    pub wall_s: f64,
    /// The first violations, in words.
    #[serde(skip)]
    pub details: Vec<String>,
}

impl Report {
    /// Sums up.
    pub(super) fn new(
        options: &Options,
        outcomes: impl Iterator<Item = Outcome>,
        took: Duration,
    ) -> Self {
        let mut report = Self {
            seeds: options.seeds.end.saturating_sub(options.seeds.start),
            first_seed: options.seeds.start,
            networks: options.networks,
            wall_s: round(took.as_secs_f64()),
            ..Self::default()
        };
        let (mut takeover, mut overlap, mut rest) = (Vec::new(), Vec::new(), Vec::new());
        for outcome in outcomes {
            takeover.extend(&outcome.takeover_ms);
            overlap.extend(&outcome.overlap_ms);
            rest.extend(&outcome.rest_ms);
            report.add(outcome);
        }
        report.takeover_ms = Quantiles::of(takeover);
        report.overlap_ms = Quantiles::of(overlap);
        report.rest_ms = Quantiles::of(rest);
        report.virtual_s = round(report.virtual_s);
        report
    }

    fn add(&mut self, outcome: Outcome) {
        self.violations += outcome.violations.len();
        self.violated_seeds += usize::from(!outcome.violations.is_empty());
        self.moves_on_loss += outcome.moves_on_loss;
        self.needless_moves += outcome.needless_moves;
        self.moves_judged += outcome.moves_judged;
        self.events += outcome.events;
        self.virtual_s += outcome.virtual_s;
        self.details.extend(outcome.violations.into_iter().take(1));
        self.details.truncate(TOLD);
    }
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_values() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        let Quantiles { count, p50, p99, max } = Quantiles::of(values);
        assert_eq!((count, p50, p99, max), (200, 101.0, 199.0, 200.0));
        assert_eq!(Quantiles::of(Vec::new()), Quantiles::default());
    }
}
