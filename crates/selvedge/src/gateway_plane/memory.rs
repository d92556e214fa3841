//! What this run leaves to the next one, on disk: whom to ask whether it may serve, while the store
//! is away.

use std::path::{Path, PathBuf};

use anyhow::Context;
use selvedge_gateway::kv::Revision;
use selvedge_gateway::{Gateway, Memory};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tracing::warn;

use crate::disk;

/// The file in the state folder.
#[derive(Clone, Debug)]
pub(super) struct MemoryFile(PathBuf);

impl MemoryFile {
    /// Makes the folder of it, if need be.
    pub(super) fn open(state: &Path) -> anyhow::Result<Self> {
        let folder = state.join("gateway");
        disk::private_folder(&folder)?;
        Ok(Self(folder.join("voters.json")))
    }

    /// What the run before has left. Without it this run waits for the store, as the first one did.
    pub(super) fn load(&self) -> Option<Memory> {
        self.read().unwrap_or_else(|error| {
            let error = format!("{error:#}");
            warn!(error, "the other gateways are not known before the store has been read");
            None
        })
    }

    fn read(&self) -> anyhow::Result<Option<Memory>> {
        let read = disk::read_json(&self.0)?.transpose();
        read.with_context(|| format!("cannot read {}", self.0.display()))
    }

    fn save(&self, memory: &Memory) -> anyhow::Result<()> {
        disk::write_json(&self.0, memory)
    }
}

/// Writes what is worth remembering, beside the plane, whose word to the others does not wait for a
/// disk.
pub(super) struct Keeper {
    written: Option<(Revision, Revision)>,
    latest: watch::Sender<Option<Memory>>,
}

impl Keeper {
    /// Keeps it in `file`.
    pub(super) fn spawn(file: MemoryFile) -> Self {
        let (latest, changes) = watch::channel(None);
        tokio::spawn(keep(file, changes));
        Self { written: None, latest }
    }

    /// Takes note of what there is to remember now.
    pub(super) fn follow(&mut self, core: &Gateway) {
        let version = core.memory_version();
        if version.is_some() && version != self.written {
            self.written = version;
            self.latest.send_replace(core.memory());
        }
    }
}

async fn keep(file: MemoryFile, mut changes: watch::Receiver<Option<Memory>>) {
    while changes.changed().await.is_ok() {
        let Some(memory) = changes.borrow_and_update().clone() else { continue };
        let file = file.clone();
        let done = spawn_blocking(move || file.save(&memory)).await;
        if let Ok(Err(error)) = done {
            let error = format!("{error:#}");
            warn!(error, "a run after this one will not know the other gateways without the store");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use super::*;

    #[test]
    fn what_is_kept_is_loaded_and_what_is_damaged_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = MemoryFile::open(folder.path()).expect("opens");
        assert_eq!(file.load(), None);
        let (revision, incarnation) = (Revision(9), Revision(7));
        let memory = Memory { revision, incarnation, nodes: BTreeMap::new() };
        file.save(&memory).expect("saves");
        assert_eq!(file.load(), Some(memory));
        fs::write(&file.0, b"{ half a fi").expect("writes");
        assert_eq!(file.load(), None);
    }
}
