//! One clock for all hosts: they share the machine, so that delays between them are measurable.

use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use selvedge_model::Time;

use crate::Error;

/// Now, on `CLOCK_MONOTONIC`.
#[must_use]
pub fn now() -> Time {
    let spec = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has this clock");
    let seconds = u64::try_from(spec.tv_sec()).unwrap_or(0);
    let micros = u64::try_from(spec.tv_nsec()).unwrap_or(0) / 1000;
    Time::from_micros(seconds * 1_000_000 + micros)
}

/// Asks `done` every 20 ms until it says so.
///
/// # Errors
/// [`Error::Timeout`] naming `what`, after `limit`; or what `done` returns.
pub fn wait_until(
    what: &str,
    limit: Duration,
    mut done: impl FnMut() -> Result<bool, Error>,
) -> Result<(), Error> {
    let start = Instant::now();
    while !done()? {
        if start.elapsed() > limit {
            return Err(Error::Timeout { what: what.to_owned(), limit });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
