//! One agent per state folder.

use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// How long a lock is tried for, and the pause between two tries.
const PATIENCE: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(20);

/// Creates the state folder (0700) if need be and locks it. The lock lasts as long as the file
/// is open, and ends with the process however that ends.
///
/// # Errors
/// If the folder cannot be made ours, or another agent holds it.
pub(super) fn take(state: &Path) -> anyhow::Result<File> {
    let folder = || format!("cannot use the state folder {}", state.display());
    DirBuilder::new().recursive(true).mode(0o700).create(state).with_context(folder)?;
    std::fs::set_permissions(state, Permissions::from_mode(0o700)).with_context(folder)?;
    let path = state.join("agent.lock");
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).read(true).write(true).mode(0o600);
    let mut file =
        options.open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    match lock(&file) {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => bail!(
            "another agent{} uses the state folder {}; stop it, or give this one a folder of \
             its own with --state",
            holder(&mut file),
            state.display()
        ),
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("cannot lock {}", path.display()));
        }
    }
    // For the message above only; the lock does not depend on it.
    let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file)
}

/// Locks the file, which may take a moment: a process that is just being started has a copy of
/// all that its parent has open, this lock of an agent that has ended included, until it becomes
/// the program that it shall be.
fn lock(file: &File) -> Result<(), TryLockError> {
    let end = Instant::now() + PATIENCE;
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if Instant::now() < end => thread::sleep(PAUSE),
            result => return result,
        }
    }
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.take(20).read_to_string(&mut text));
    match read.ok().and_then(|_| text.trim().parse::<u32>().ok()) {
        Some(pid) => format!(" (process {pid})"),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_agent_per_state_folder() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let state = dir.path().join("a/state");
        let first = take(&state).expect("free");
        let mode = std::fs::metadata(&state).expect("exists").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let error = take(&state).expect_err("taken").to_string();
        let expected = format!("another agent (process {}) uses", std::process::id());
        assert!(error.starts_with(&expected), "{error}");
        drop(first);
        take(&state).expect("free again");
    }
}
