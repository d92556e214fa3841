//! The priority of a thread that must be punctual although other work keeps the processors busy.

use nix::errno::Errno;
use nix::libc;

/// The nice value where real-time scheduling is not permitted: about ten times the share of a
/// process that nobody has changed (`sched(7)`).
const NICE: i32 = -10;

/// What a thread was raised to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// It runs before all that is not real-time (`SCHED_RR`, the lowest such priority).
    RealTime,
    /// It gets more of the processor than others (nice -10).
    Favoured,
    /// It is as it was: neither is permitted.
    Ordinary,
}

/// Raises the calling thread as far as is permitted: real-time needs `CAP_SYS_NICE` or a limit
/// (`RLIMIT_RTPRIO`, `RLIMIT_NICE`). Processes and threads that it starts do not inherit it.
///
/// A thread in real-time keeps all ordinary ones off its processor while it runs: it must wait
/// far more than it works, and give to other threads what takes long.
pub fn raise() -> Priority {
    if set_policy(libc::SCHED_RR, 1).is_ok() {
        return Priority::RealTime;
    }
    let kept_from_children = set_policy(libc::SCHED_OTHER, 0);
    match kept_from_children.and_then(|()| set_nice(NICE)) {
        Ok(()) => Priority::Favoured,
        Err(_) => Priority::Ordinary,
    }
}

/// Makes the calling thread an ordinary one again, after [`raise`].
pub fn lower() {
    // Neither can fail for a thread that was raised: both only give up what it has.
    let _ = set_policy(libc::SCHED_OTHER, 0).and_then(|()| set_nice(0));
}

#[allow(unsafe_code, reason = "the system call has no safe wrapper")]
fn set_policy(policy: libc::c_int, priority: libc::c_int) -> Result<(), Errno> {
    let param = libc::sched_param { sched_priority: priority };
    // SAFETY: the pointer is valid for the call, which only reads from it; 0 is the calling
    // thread.
    let result = unsafe {
        libc::sched_setscheduler(0, policy | libc::SCHED_RESET_ON_FORK, &raw const param)
    };
    Errno::result(result).map(drop)
}

#[allow(unsafe_code, reason = "the system call has no safe wrapper")]
fn set_nice(nice: libc::c_int) -> Result<(), Errno> {
    // SAFETY: the call takes numbers only. For Linux 0 is the calling thread, not the process.
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::thread;

    use super::*;

    /// Nice value and policy of a thread, from the fields of its `stat` after the name (proc(5)).
    fn scheduling(stat: &str) -> (i32, i32) {
        let (_, fields) = stat.rsplit_once(')').expect("a name in parentheses");
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let number = |field: usize| fields[field - 3].parse().expect("a number");
        (number(19), number(41))
    }

    fn own() -> (i32, i32) {
        scheduling(&std::fs::read_to_string("/proc/thread-self/stat").expect("there is one"))
    }

    #[test]
    fn a_thread_is_raised_as_it_is_told() {
        let before = own();
        let raised = thread::spawn(|| (raise(), own()));
        let (priority, (nice, policy)) = raised.join().expect("it ended");
        match priority {
            Priority::RealTime => assert_eq!(policy, libc::SCHED_RR),
            Priority::Favoured => assert_eq!((nice, policy), (NICE, libc::SCHED_OTHER)),
            Priority::Ordinary => assert_eq!((nice, policy), before),
        }
        assert_eq!(own(), before, "other threads are left alone");
    }

    #[test]
    fn a_thread_that_was_raised_can_be_lowered_again() {
        let after = thread::spawn(|| {
            raise();
            lower();
            own()
        });
        assert_eq!(after.join().expect("it ended").1, libc::SCHED_OTHER);
    }

    #[test]
    fn what_a_raised_thread_starts_is_ordinary() {
        let (thread, child) = thread::spawn(|| {
            raise();
            let thread = thread::spawn(own).join().expect("it ended");
            let stat = Command::new("cat").arg("/proc/self/stat").output().expect("it ran");
            (thread, scheduling(&String::from_utf8_lossy(&stat.stdout)))
        })
        .join()
        .expect("it ended");
        for (nice, policy) in [thread, child] {
            assert_eq!((nice.max(0), policy), (nice, libc::SCHED_OTHER));
        }
    }

    #[test]
    fn a_favoured_thread_is_nice_to_itself_alone() {
        let favoured = thread::spawn(|| (set_policy(libc::SCHED_OTHER, 0), set_nice(NICE), own()));
        let (policy, nice, (value, _)) = favoured.join().expect("it ended");
        assert_eq!(policy, Ok(()));
        // Without the permission nothing is changed.
        assert_eq!(value == NICE, nice.is_ok(), "{value}");
        assert_ne!(own().0, NICE);
    }
}
