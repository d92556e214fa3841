//! Clocks that run fast or slow, and wall clocks that are wrong.

use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;
use selvedge_mesh::UnixTime;
use selvedge_model::Time;

use super::world::WALL;

/// Millionths.
const MILLION: u64 = 1_000_000;

/// A node's clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Microseconds that it counts in a true second.
    rate: u64,
    /// Seconds by which the wall clock is ahead; less than none if it is behind.
    ahead: i64,
}

impl Clock {
    /// One that runs fast or slow by up to `drift` millionths, and whose wall clock is ahead by up
    /// to `ahead` seconds.
    pub fn draw(drift: u32, ahead: u64, rng: &mut ChaCha8Rng) -> Self {
        let drift = u64::from(drift).min(MILLION / 2);
        // A run without drift draws nothing, as before there were clocks.
        let rate = match drift {
            0 => MILLION,
            _ => rng.random_range(MILLION - drift..=MILLION + drift),
        };
        let ahead = if ahead == 0 { 0 } else { rng.random_range(0..=ahead) };
        Self { rate, ahead: i64::try_from(ahead).unwrap_or(i64::MAX) }
    }

    /// The same with a wall clock that is ahead by so many seconds.
    #[must_use]
    pub const fn set(self, ahead: i64) -> Self {
        Self { ahead, ..self }
    }

    /// What the clocks show.
    #[must_use]
    pub fn read(&self, now: Time) -> (Time, UnixTime) {
        let local = Time::from_micros(scale(now.as_micros(), self.rate, MILLION, false));
        let wall = WALL.saturating_add_signed(self.ahead) + local.as_micros() / MILLION;
        (local, UnixTime(wall))
    }

    /// When the clock shows `local` or a little more.
    #[must_use]
    pub fn moment(&self, local: Time) -> Time {
        Time::from_micros(scale(local.as_micros(), MILLION, self.rate, true))
    }
}

/// `value` times `by` over `over`, rounded.
fn scale(value: u64, by: u64, over: u64, up: bool) -> u64 {
    if by == over {
        return value;
    }
    let product = u128::from(value) * u128::from(by);
    let over = u128::from(over);
    let scaled = if up { product.div_ceil(over) } else { product / over };
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn a_timer_is_never_early_by_the_clock_that_set_it() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let clocks: Vec<Clock> = (0..50).map(|_| Clock::draw(500, 3, &mut rng)).collect();
        assert!(clocks.iter().any(|clock| clock.rate > MILLION));
        assert!(clocks.iter().any(|clock| clock.rate < MILLION));
        for clock in clocks {
            for due in (0..3_600_000_000).step_by(100_000_007).map(Time::from_micros) {
                let (shown, _) = clock.read(clock.moment(due));
                assert!(shown >= due && shown.since(due).as_micros() <= 2, "{due} {shown}");
            }
        }
    }

    #[test]
    fn a_right_clock_shows_the_time() {
        let clock = Clock::draw(0, 0, &mut ChaCha8Rng::seed_from_u64(1));
        let now = Time::from_micros(12_345_678);
        assert_eq!(clock.read(now), (now, UnixTime(WALL + 12)));
        assert_eq!(clock.moment(now), now);
    }
}
