//! The C library's allocator.

/// Keeps all allocations of this process in one arena. By default the C library gives each
/// thread one of its own and keeps what is freed there, which more than doubles the memory of an
/// agent that mostly waits. To be called before any thread is started; without effect where the
/// allocator is not that of the GNU C library.
pub fn use_one_arena() {
    #[cfg(target_env = "gnu")]
    #[allow(unsafe_code, reason = "the tunable has no safe interface")]
    // SAFETY: mallopt takes two numbers and keeps no pointer; it only sets a tunable.
    unsafe {
        nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1);
    }
}
