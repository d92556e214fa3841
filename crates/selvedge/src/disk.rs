//! Files that survive: written beside their place, flushed, and moved over. Those that are ours
//! alone are sealed: a magic number and a checksum tell damage apart from contents.

use std::fs::{DirBuilder, File, OpenOptions, rename};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

/// No file of ours is greater, in bytes: the state of a mesh may have 256 MiB.
const MAX_FILE: u64 = 320 * 1024 * 1024;
const CHECKSUM_LEN: usize = blake3::OUT_LEN;

/// What is wrong with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Damage {
    #[error("it is too short or of another kind")]
    Kind,
    #[error("its checksum does not match")]
    Checksum,
    #[error("its contents make no sense")]
    Contents,
}

/// Makes a folder that nobody else may enter, unless it is there.
pub(crate) fn private_folder(path: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("cannot make the folder {}", path.display()))
}

/// Writes a file (0600) so that a crash at any moment leaves the old or the new contents. What
/// could not be read again is not written.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    bounded(bytes.len() as u64)?;
    let beside = path.with_extension("tmp");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    rename(&beside, path)?;
    sync_folder(path.parent().unwrap_or(Path::new("/")))
}

/// Makes what was renamed or removed in a folder outlive a crash.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
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

/// Reads a file, of a bounded size, into memory that is wiped afterwards.
pub(crate) fn read(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    bounded(len)?;
    // With its full size from the start, no copy of a secret is left behind by growing.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(len).unwrap_or_default()));
    file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    bounded(bytes.len() as u64)?;
    Ok(bytes)
}

/// Writes a value as JSON that people can read; see [`write`].
pub(crate) fn write_json(path: &Path, value: &(impl Serialize + ?Sized)) -> anyhow::Result<()> {
    let bytes = serde_json::to_vec_pretty(value).context("cannot write JSON")?;
    write(path, &bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// Reads a value that was written as JSON, if the file is there: its contents may make no sense.
pub(crate) fn read_json<T: DeserializeOwned>(
    path: &Path,
) -> anyhow::Result<Option<serde_json::Result<T>>> {
    match read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn bounded(len: u64) -> io::Result<()> {
    if len > MAX_FILE {
        let text = format!("it is too long: {len} bytes, of {MAX_FILE} at most");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    Ok(())
}

/// The contents of a file of the kind `magic`.
pub(crate) fn seal(magic: &[u8; 8], body: &[u8]) -> Zeroizing<Vec<u8>> {
    let checksum = blake3::hash(body);
    // With its full size from the start, no copy of a secret is left behind by growing.
    let mut sealed = Zeroizing::new(Vec::with_capacity(8 + CHECKSUM_LEN + body.len()));
    sealed.extend(magic);
    sealed.extend(checksum.as_bytes());
    sealed.extend(body);
    sealed
}

/// What was sealed.
pub(crate) fn unseal<'a>(magic: &[u8; 8], bytes: &'a [u8]) -> Result<&'a [u8], Damage> {
    let rest = bytes.strip_prefix(magic).ok_or(Damage::Kind)?;
    let (checksum, body) = rest.split_first_chunk::<CHECKSUM_LEN>().ok_or(Damage::Kind)?;
    match blake3::hash(body) == blake3::Hash::from_bytes(*checksum) {
        true => Ok(body),
        false => Err(Damage::Checksum),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_is_not_written_nor_called_damaged() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        write(&path, b"before").expect("short");
        // Pages that nobody touches.
        let long = vec![0; usize::try_from(MAX_FILE).expect("64 bits") + 1];
        let error = write(&path, &long).expect_err("too long");
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(*read(&path).expect("still there"), b"before");
        // A file of holes.
        File::create(&path).and_then(|file| file.set_len(MAX_FILE + 1)).expect("made");
        let error = read(&path).expect_err("too long").to_string();
        assert!(error.starts_with("it is too long: 335544321 bytes"), "{error}");
    }
}
