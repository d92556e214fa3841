//! How often something is done at most.

use std::time::Duration;

use tokio::time::Instant;

/// So many a second, and no more than a second's at once.
pub(super) struct Allowance {
    each_second: u32,
    left: u32,
    since: Instant,
}

impl Allowance {
    pub(super) const fn new(each_second: u32, now: Instant) -> Self {
        Self { each_second, left: each_second, since: now }
    }

    /// Whether it may be done once more.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        if now - self.since >= Duration::from_secs(1) {
            (self.since, self.left) = (now, self.each_second);
        }
        let any = self.left > 0;
        self.left -= u32::from(any);
        any
    }
}
