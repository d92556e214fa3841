//! What commands print: text or one JSON value on standard output, errors on standard error.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::time::Duration;

use anyhow::Context;
use comfy_table::{ContentArrangement, Table};
use indicatif::{ProgressBar, ProgressStyle};
use selvedge_api::ClientError;
use serde::Serialize;

/// Prints `value` as one line of JSON, or `text` of it.
pub(super) fn print<T: Serialize>(
    json: bool,
    value: &T,
    text: impl FnOnce(&T) -> String,
) -> anyhow::Result<()> {
    match json {
        true => line(&serde_json::to_string(value).context("cannot write JSON")?),
        false => line(text(value).trim_end()),
    }
}

/// Prints a line. That nobody reads it any more (`| head`) is no failure.
pub(super) fn line(text: &str) -> anyhow::Result<()> {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to standard output"),
    }
}

/// Prints why a command failed, and what to do about it.
pub(super) fn error(error: &anyhow::Error) {
    let mut stderr = io::stderr();
    // If standard error is closed too, the exit code has to do.
    let _ = writeln!(stderr, "error: {error:#}");
    let hint = error.chain().find_map(|cause| cause.downcast_ref::<ClientError>()?.hint());
    if let Some(hint) = hint {
        let _ = writeln!(stderr, "hint: {hint}");
    }
}

/// Prints a line of progress to standard error.
pub(super) fn progress(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// A spinner on standard error, if that is a terminal.
pub(super) fn spinner() -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    bar.set_style(ProgressStyle::default_spinner());
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// A table without lines, as `ps` prints them: easy to read, to cut and to grep.
pub(super) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(comfy_table::TableStyle::new())
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header.to_vec())
        .add_rows(rows);
    let last = table.column_count();
    for (index, column) in table.column_iter_mut().enumerate() {
        let right = if index + 1 == last { 0 } else { 2 };
        column.set_padding((0, right));
    }
    table.trim_fmt()
}

/// `yes` or `no`.
pub(super) fn yes(on: bool) -> String {
    if on { "yes" } else { "no" }.to_owned()
}

/// The text, or a dash for none.
pub(super) fn or_dash(text: Option<impl ToString>) -> String {
    text.map_or_else(|| "-".to_owned(), |text| text.to_string())
}

/// A number of bytes in binary units with three digits or so.
pub(super) fn bytes(number: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut scaled = number as f64;
    let mut unit = 0;
    while scaled >= 1024.0 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{number} B"),
        _ => format!("{scaled:.1} {}", UNITS[unit]),
    }
}

/// A number of seconds as `12s`, `3m20s`, `5h02m` or `3d4h`.
pub(super) fn seconds(number: u64) -> String {
    match number {
        0..60 => format!("{number}s"),
        60..3600 => format!("{}m{:02}s", number / 60, number % 60),
        3600..86400 => format!("{}h{:02}m", number / 3600, number / 60 % 60),
        86400.. => format!("{}d{}h", number / 86400, number / 3600 % 24),
    }
}

/// A time in milliseconds since 1970 as date and time of day, UTC.
pub(super) fn utc(unix_ms: u64) -> String {
    let (days, ms) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    let (year, month, day) = civil(days);
    let (hours, minutes) = (ms / 3_600_000, ms / 60_000 % 60);
    let (seconds, millis) = (ms / 1000 % 60, ms % 1000);
    format!("{year:04}-{month:02}-{day:02} {hours:02}:{minutes:02}:{seconds:02}.{millis:03}")
}

/// Year, month and day of a number of days since 1970, by the Gregorian calendar. Years are
/// counted from March, so that the leap day is their last
/// (<https://howardhinnant.github.io/date_algorithms.html>).
const fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let leaps = day_of_era / 1460 + day_of_era / 146_096 - day_of_era / 36_524;
    let year_of_era = (day_of_era - leaps) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year_of_era + era * 400;
    (if month <= 2 { year + 1 } else { year }, month, day)
}

/// Reads a duration: a number of seconds, or one with `s`, `m`, `h` or `d` behind it.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86400,
        _ => 0,
    };
    let number = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    match number {
        Some(number) if factor > 0 => Ok(Duration::from_secs(number)),
        Some(_) | None => Err("expected a number of seconds, or such as 30s, 10m, 24h, 7d".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_no_lines_and_no_trailing_spaces() {
        let rows = [("a", "1"), ("longer", "22")];
        let rows = rows.map(|(name, n)| vec![name.to_owned(), n.to_owned()]);
        assert_eq!(table(&["NAME", "N"], rows), "NAME    N\na       1\nlonger  22");
    }

    #[test]
    fn numbers_are_printed_for_people() {
        let printed = [0, 1023, 1024, 1_572_864, u64::MAX].map(bytes);
        assert_eq!(printed, ["0 B", "1023 B", "1.0 KiB", "1.5 MiB", "16384.0 PiB"]);
        let printed = [5, 200, 18_120, 270_000].map(seconds);
        assert_eq!(printed, ["5s", "3m20s", "5h02m", "3d3h"]);
    }

    #[test]
    fn times_are_dates() {
        let printed = [0, 951_782_400_001, 1_735_689_599_999, 4_107_542_400_000].map(utc);
        let expected = [
            "1970-01-01 00:00:00.000",
            "2000-02-29 00:00:00.001",
            "2024-12-31 23:59:59.999",
            "2100-03-01 00:00:00.000",
        ];
        assert_eq!(printed, expected);
    }

    #[test]
    fn durations_have_units() {
        let parsed = ["30", "30s", "10m", "24h", "7d"].map(|text| duration(text).expect("valid"));
        assert_eq!(parsed.map(|d| d.as_secs()), [30, 30, 600, 86400, 604_800]);
        for bad in ["", "s", "1w", "-1", "1.5h", "99999999999999999999d", "9999999999999999999d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
