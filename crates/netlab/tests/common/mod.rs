//! What the tests share.

#![allow(clippy::print_stderr, reason = "whoever runs the tests shall see what was skipped")]

use selvedge_netlab::Lab;

/// A laboratory; `None`, with a line that says why, where this process may not make one. With
/// `CI=true` that is a failure.
pub(crate) fn lab(test: &str) -> Option<Lab> {
    match Lab::new() {
        Ok(lab) => Some(lab),
        Err(error) if std::env::var("CI").as_deref() == Ok("true") => panic!("{test}: {error}"),
        Err(error) => {
            eprintln!("skipped: {test}: {error}");
            None
        }
    }
}

/// Whether the test can go on; as in [`lab`] it is skipped, or fails, if `there` is false.
#[allow(dead_code, reason = "not every test needs a program")]
pub(crate) fn installed(test: &str, program: &str, there: bool) -> bool {
    let ci = std::env::var("CI").as_deref() == Ok("true");
    assert!(there || !ci, "{test}: {program} is not installed");
    if !there {
        eprintln!("skipped: {test}: {program} is not installed");
    }
    there
}
