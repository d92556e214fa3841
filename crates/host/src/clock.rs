//! The host's clock.

/// Whether something keeps the clock right, as the kernel was told; `None` if it does not say.
#[must_use]
pub fn is_synchronized() -> Option<bool> {
    // SAFETY: all bits zero are a valid `timex`, which holds numbers alone.
    #[allow(unsafe_code, reason = "the system call has no safe interface")]
    let mut state: nix::libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a `timex` that lives; with no mode set nothing is changed.
    #[allow(unsafe_code, reason = "the system call has no safe interface")]
    let answer = unsafe { nix::libc::adjtimex(&raw mut state) };
    (answer >= 0).then_some(state.status & nix::libc::STA_UNSYNC == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_whether_the_clock_is_kept_right() {
        assert!(is_synchronized().is_some());
    }
}
