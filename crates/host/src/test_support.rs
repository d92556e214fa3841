//! What tests that touch the kernel share.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::netns::{self, Ephemeral};

/// A namespace of the test's own, or `None`, with the reason printed, where none can be made.
/// With `CI=true` that is a failure.
pub(crate) fn namespace(test: &str) -> Option<Ephemeral> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    if let Err(error) = netns::can_create() {
        let ci = std::env::var_os("CI").is_some_and(|value| value == "true");
        assert!(!ci, "{test}: {error}");
        #[allow(clippy::print_stderr, reason = "nothing is skipped silently")]
        {
            eprintln!("SKIPPED {test}: {error}");
        }
        return None;
    }
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("svt-{}-{number}", std::process::id());
    Some(Ephemeral::create(&name).expect("the right to make namespaces was checked"))
}

/// A runtime that stays on the calling thread, and thus in its namespace.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    built.expect("a runtime can be made")
}
