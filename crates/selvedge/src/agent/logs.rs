//! The log: lines on standard error. What each level is for stands in `CONTRIBUTING.md`.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// What libraries say of what is noticed here anyway, again and again. Netlink's warns of answers
/// that nobody waits for any more; whoever stopped waiting has said so. QUIC's warns of each host
/// that has no route, and WireGuard's of each packet to a member whose place is not known: `mesh
/// show` and `mesh doctor` tell that, and the applier looks after the device.
const QUIET: &str = "netlink_proto=error,quinn_udp=error,gotatun::device=off";

/// Writes logs from now on, as `filter` says. The first call of a process counts.
pub(super) fn init(filter: &str) {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(of(filter))
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

/// The configuration was checked with the same parser. What it says of a library itself counts.
fn of(filter: &str) -> EnvFilter {
    EnvFilter::try_new(format!("{QUIET},{filter}")).unwrap_or_else(|_| EnvFilter::new("info"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("not poisoned").write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn written(filter: &str) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let builder = tracing_subscriber::fmt().with_env_filter(of(filter));
        let subscriber = builder.with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!(target: "gotatun::device", "No endpoint");
            tracing::warn!(target: "quinn_udp", "Network is unreachable");
            tracing::warn!(target: "gotatun::udp", "something else");
            tracing::info!(target: "selvedge", "a member joined");
        });
        let bytes = lines.0.lock().expect("not poisoned").clone();
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn what_libraries_say_for_each_packet_is_not_written_unless_asked_for() {
        let usual = written("info,gotatun=warn");
        assert!(!usual.contains("No endpoint") && !usual.contains("unreachable"), "{usual}");
        assert!(usual.contains("something else") && usual.contains("a member joined"), "{usual}");
        let asked = written("info,gotatun::device=error,quinn_udp=warn");
        assert!(asked.contains("No endpoint") && asked.contains("unreachable"), "{asked}");
    }
}
