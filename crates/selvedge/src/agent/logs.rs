//! The log: lines on standard error. What each level is for stands in `CONTRIBUTING.md`.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Writes logs from now on, as `filter` says. The first call of a process counts.
pub(super) fn init(filter: &str) {
    // The configuration was checked with the same parser. What netlink's library warns of are
    // answers that nobody waits for any more; whoever stopped waiting has said so.
    let filter = EnvFilter::try_new(format!("netlink_proto=error,{filter}"))
        .unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // Under systemd the journal adds the time itself.
    let result = match std::env::var_os("JOURNAL_STREAM") {
        Some(_) => builder.without_time().try_init(),
        None => builder.try_init(),
    };
    if let Err(error) = result {
        tracing::debug!(%error, "logging was set up before");
    }
}
