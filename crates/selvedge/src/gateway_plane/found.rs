//! What the bridges were like before Selvedge changed them, on disk: it is put back when a
//! network is given up for good, even by a later run.

use std::path::{Path, PathBuf};

use anyhow::Context;
use selvedge_host::inventory::Found;
use tracing::error;

use crate::disk;

/// The file in the state folder.
#[derive(Clone, Debug)]
pub(super) struct FoundFile(PathBuf);

impl FoundFile {
    pub(super) fn open(state: &Path) -> anyhow::Result<Self> {
        let folder = state.join("gateway");
        disk::private_folder(&folder)?;
        Ok(Self(folder.join("found.json")))
    }

    /// What an earlier run has saved. A file that makes no sense is kept aside: without it the
    /// present state of the bridges counts as what was found.
    pub(super) fn load(&self) -> anyhow::Result<Vec<Found>> {
        let problem = match self.read()? {
            Ok(found) => return Ok(found),
            Err(problem) => problem,
        };
        let kept = disk::keep_aside(&self.0)
            .with_context(|| format!("cannot keep {} aside", self.0.display()))?;
        error!(
            file = %self.0.display(), %problem, kept = %kept.display(),
            "the record of what the bridges were like is damaged; it was kept aside"
        );
        Ok(Vec::new())
    }

    /// The same, but a file that makes no sense is an error and stays.
    pub(super) fn load_intact(&self) -> anyhow::Result<Vec<Found>> {
        self.read()?.with_context(|| {
            format!("{}, the record of what the bridges were like, is damaged", self.0.display())
        })
    }

    fn read(&self) -> anyhow::Result<serde_json::Result<Vec<Found>>> {
        Ok(disk::read_json(&self.0)?.unwrap_or_else(|| Ok(Vec::new())))
    }

    pub(super) fn save(&self, found: &[Found]) -> anyhow::Result<()> {
        disk::write_json(&self.0, found)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_damaged_file_is_kept_aside() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = FoundFile::open(folder.path()).expect("opens");
        assert_eq!(file.load().expect("no file yet"), []);
        fs::write(&file.0, b"{ half a fi").expect("writes");
        let error = file.load_intact().expect_err("damaged").to_string();
        assert!(error.contains("found.json"), "{error}");
        assert_eq!(file.load().expect("lives on"), []);
        let kept = fs::read_dir(folder.path().join("gateway")).expect("folder").count();
        assert_eq!(kept, 1, "the damaged file is still there, under another name");
        assert!(!file.0.exists());
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = FoundFile::open(folder.path()).expect("opens");
        let vni = 5.try_into().expect("vni");
        let addresses = vec!["10.0.5.1/24".parse().expect("prefix")];
        let next_hops = vec!["172.20.0.5".parse().expect("address")];
        let found = vec![Found { vni, addresses, arp_ignore: 0, rp_filter: 1, next_hops }];
        file.save(&found).expect("saves");
        assert_eq!(file.load().expect("loads"), found);
    }
}
