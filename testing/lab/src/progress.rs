//! Lines for whoever watches.

use std::io::Write;
use std::time::Instant;

/// Writes a line with the seconds since the start to standard error.
macro_rules! say {
    ($($words:tt)*) => { $crate::progress::line(format_args!($($words)*)) };
}

pub(crate) use say;

/// See [`say!`].
pub(crate) fn line(words: std::fmt::Arguments<'_>) {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let elapsed = START.get_or_init(Instant::now).elapsed().as_secs_f64();
    // Where nobody reads, there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "[{elapsed:6.1} s] {words}");
}
