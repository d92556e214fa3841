//! Percentiles.

use std::time::Duration;

use serde::Serialize;

/// The middle, the tail and the end of a set of figures, in milliseconds. All are null if there
/// is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) p50: Option<f64>,
    pub(crate) p99: Option<f64>,
    pub(crate) max: Option<f64>,
}

impl Spread {
    /// By the nearest rank; rounded to a tenth of a millisecond.
    pub(crate) fn of(figures: &[f64]) -> Self {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let rank = |percent: usize| {
            let rank = (sorted.len() * percent).div_ceil(100).max(1);
            sorted.get(rank - 1).map(|figure| (figure * 10.0).round() / 10.0)
        };
        Self { p50: rank(50), p99: rank(99), max: rank(100) }
    }
}

/// A time in milliseconds.
pub(crate) fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e4).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_the_nearest() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let spread = Spread::of(&hundred);
        assert_eq!((spread.p50, spread.p99, spread.max), (Some(50.0), Some(99.0), Some(100.0)));
        assert_eq!(Spread::of(&[7.06]).p50, Some(7.1));
        assert_eq!(Spread::of(&[]), Spread::default());
    }
}
