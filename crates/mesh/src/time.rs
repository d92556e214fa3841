use std::fmt;
use std::time::Duration;

/// A moment on the wall clock: seconds since 1970-01-01T00:00:00Z. Used for expiry alone; all
/// other time in the core is monotonic ([`selvedge_model::Time`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixTime(pub u64);

impl UnixTime {
    /// Later than any moment: what expires then never expires.
    pub const NEVER: Self = Self(u64::MAX);

    /// The moment `duration` later, in whole seconds; never beyond [`UnixTime::NEVER`].
    #[must_use]
    pub const fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration.as_secs()))
    }
}

impl fmt::Display for UnixTime {
    /// As in RFC 3339 (UTC, whole seconds); "never" for [`UnixTime::NEVER`].
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::NEVER {
            return f.pad("never");
        }
        let (days, seconds) = (self.0 / 86_400, self.0 % 86_400);
        let (year, month, day) = civil(days);
        let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        f.pad(&format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"))
    }
}

/// Year, month and day of the day `days` after 1970-01-01 in the Gregorian calendar, counted in
/// eras of 400 years that begin on the first of March, so that the leap day comes last.
const fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_dates() {
        let cases = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_795_003_201, "2026-11-18T12:00:01Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (4_107_456_000, "2100-02-28T00:00:00Z"),
        ];
        for (seconds, text) in cases {
            assert_eq!(UnixTime(seconds).to_string(), text);
        }
        assert_eq!(UnixTime::NEVER.to_string(), "never");
        assert!(!UnixTime(u64::MAX - 1).to_string().is_empty());
    }

    #[test]
    fn the_end_of_time_is_not_passed() {
        assert_eq!(UnixTime(5).after(Duration::from_secs(3)), UnixTime(8));
        assert_eq!(UnixTime(5).after(Duration::MAX), UnixTime::NEVER);
    }
}
