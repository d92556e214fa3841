//! Files that survive: written beside their place, flushed, and moved over. Those that are ours
//! alone are sealed: a magic number and a checksum tell damage apart from contents.

use std::fs::{DirBuilder, File, OpenOptions, rename};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use zeroize::Zeroizing;

/// No file of ours is greater, in bytes.
const MAX_FILE: u64 = 64 * 1024 * 1024;
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

/// Writes a file (0600) so that a crash at any moment leaves the old or the new contents.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
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
    let mut bytes = Zeroizing::new(Vec::new());
    File::open(path)?.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(bytes)
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
