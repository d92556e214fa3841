use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use tracing::{info, warn};

/// Writes what a core is told. It serves those who look for an error, and never hinders the mesh:
/// if it cannot write it says so once and stops.
#[derive(Debug)]
pub(super) struct Recorder {
    path: PathBuf,
    file: Option<File>,
}

impl Recorder {
    /// Begins a new log, for its owner alone to read: whoever reads it learns what a member knows.
    pub(super) fn open(path: PathBuf) -> Option<Self> {
        // What was there may have other permissions.
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            warn!(path = %path.display(), %error, "cannot replace the log; nothing is recorded");
            return None;
        }
        match OpenOptions::new().create_new(true).append(true).mode(0o600).open(&path) {
            Ok(file) => {
                info!(path = %path.display(), "recording what the core of a mesh is told");
                Some(Self { path, file: Some(file) })
            }
            Err(error) => {
                warn!(path = %path.display(), %error, "cannot make the log; nothing is recorded");
                None
            }
        }
    }

    /// Appends to the log.
    pub(super) fn append(&mut self, bytes: &[u8]) {
        let Some(file) = &mut self.file else { return };
        if let Err(error) = file.write_all(bytes) {
            warn!(path = %self.path.display(), %error, "cannot write the log; it ends here");
            self.file = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_log_is_new_and_private() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        std::fs::write(&path, "an earlier one").expect("writable");
        let mut recorder = Recorder::open(path.clone()).expect("made");
        recorder.append(b"one");
        recorder.append(b"two");
        assert_eq!(std::fs::read(&path).expect("readable"), b"onetwo");
        let mode = std::fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(Recorder::open(folder.path().join("no/such/folder")).is_none());
    }

    #[test]
    fn a_full_disk_ends_the_log_and_nothing_else() {
        let file = OpenOptions::new().append(true).open("/dev/full").expect("Linux has it");
        let mut recorder = Recorder { path: "/dev/full".into(), file: Some(file) };
        recorder.append(b"one");
        assert!(recorder.file.is_none());
        recorder.append(b"two");
    }
}
