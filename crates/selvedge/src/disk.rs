//! Files that survive: written beside their place, flushed, and moved over.

use std::fs::{DirBuilder, File, OpenOptions, rename};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;

/// Makes a folder that nobody else may enter, unless it is there.
pub(crate) fn private_folder(path: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("cannot make the folder {}", path.display()))
}

/// Writes a file (0600) so that a crash at any moment leaves the old or the new contents.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("tmp");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    rename(&beside, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// Moves a damaged file out of the way, and says where to. It is never overwritten.
pub(crate) fn keep_aside(path: &Path) -> io::Result<PathBuf> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let name = |n: u64| PathBuf::from(format!("{}.corrupt-{}", path.display(), now + n));
    let free = (0..).map(name).find(|name| !name.exists());
    let kept = free.ok_or(io::ErrorKind::AlreadyExists)?;
    rename(path, &kept)?;
    Ok(kept)
}
