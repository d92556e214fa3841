//! Real-time priority for the threads that measure.

use std::process::Command;

use crate::command;

/// Gives the calling thread the priority `priority` of the policy `SCHED_FIFO`. Says whether that
/// was permitted; without it the thread works on and shows its lateness.
pub(crate) fn raise(priority: u8) -> bool {
    let thread = nix::unistd::gettid().to_string();
    let mut chrt = Command::new("chrt");
    let outcome = command::run(chrt.args(["-f", "-p", &priority.to_string(), &thread]));
    if let Err(error) = &outcome {
        tracing::warn!(%error, "no real-time priority: the measurements may be late");
    }
    outcome.is_ok()
}
