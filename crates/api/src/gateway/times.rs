use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How long things took since the agent started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Times {
    /// From this node's own suspicion of a gateway to the verdict against it.
    pub detection: Distribution,
    /// From the verdict, or from the beginning of a prepared takeover, until a network of the
    /// lost gateway was served and announced here; each network counts once.
    pub takeover: Distribution,
    /// How long all networks of this host were silenced, because it might not serve.
    pub silence: Distribution,
    /// How long this gateway had no word of a majority or of the store, each time that one came
    /// again or the right to serve ended. If its networks were taken over meanwhile, two gateways
    /// served them for no longer than this.
    pub unconfirmed: Distribution,
}

/// Upper bounds of the buckets of a [`Distribution`], in milliseconds.
const BOUNDS_MS: [u64; 14] =
    [5, 10, 25, 50, 100, 200, 300, 400, 600, 800, 1000, 2000, 5000, 10_000];

/// How often something took how long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Distribution {
    /// How often it happened.
    pub count: u64,
    /// All times together, in microseconds.
    pub sum_us: u64,
    /// The longest, in microseconds.
    pub max_us: u64,
    /// How often it took at most so long, and longer than the bucket before. What took longer
    /// than the last bound is in `count` alone.
    pub buckets: Vec<Bucket>,
}

/// A bucket of a [`Distribution`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Bucket {
    /// The upper bound, inclusive, in milliseconds.
    pub up_to_ms: u64,
    /// How often.
    pub count: u64,
}

impl Default for Distribution {
    fn default() -> Self {
        let buckets = BOUNDS_MS.map(|up_to_ms| Bucket { up_to_ms, count: 0 }).to_vec();
        Self { count: 0, sum_us: 0, max_us: 0, buckets }
    }
}

impl Distribution {
    /// Takes in one time.
    pub fn record(&mut self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.count += 1;
        self.sum_us = self.sum_us.saturating_add(micros);
        self.max_us = self.max_us.max(micros);
        let fits = |bucket: &&mut Bucket| micros <= bucket.up_to_ms * 1000;
        if let Some(bucket) = self.buckets.iter_mut().find(fits) {
            bucket.count += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_is_in_one_bucket() {
        let mut times = Distribution::default();
        for micros in [0, 5000, 5001, 200_000, 20_000_000] {
            times.record(Duration::from_micros(micros));
        }
        let filled: Vec<_> = times.buckets.iter().filter(|bucket| bucket.count > 0).collect();
        let filled: Vec<_> = filled.iter().map(|bucket| (bucket.up_to_ms, bucket.count)).collect();
        assert_eq!(filled, [(5, 2), (10, 1), (200, 1)]);
        assert_eq!((times.count, times.sum_us, times.max_us), (5, 20_210_001, 20_000_000));
    }
}
