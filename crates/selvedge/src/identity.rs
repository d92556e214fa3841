//! Who this host is: an Ed25519 key in the state folder, made at the first start and kept. The
//! mesh plane speaks with it; the gateway plane tells by it whether a registration under its name
//! is its own.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use selvedge_mesh::Identity;
use selvedge_transport::Agreement;
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::disk::{self, Damage, seal, unseal};

const MAGIC: &[u8; 8] = b"svident\x01";

/// Why there is no identity. A key that exists was left as it is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    /// The file or its folder cannot be read or made.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    /// The file is damaged.
    #[error(
        "the identity key {} is damaged: {reason}. It was left as it is: restore it from a \
         backup, or move it away to become a new node",
        path.display()
    )]
    Damaged { path: PathBuf, reason: Damage },
    /// There is no key, though this host is a member of meshes under one.
    #[error(
        "the identity key {} is missing, but there are states of meshes that belong to it: {}. \
         Restore the key from a backup, or move {} away to become a new node",
        path.display(), names(states), folder.display()
    )]
    Missing { path: PathBuf, folder: PathBuf, states: Vec<PathBuf> },
    /// The system gives no random bytes.
    #[error("the system gives no random bytes for an identity: {0}")]
    Random(String),
}

/// The identity that is kept in the folder `state`, which exists. It is made if there is none and
/// nothing that belongs to one.
pub(crate) fn load(state: &Path) -> Result<Identity, IdentityError> {
    load_secret(state).map(|secret| Identity::from_secret(&secret))
}

/// The secret half, for the transport.
pub(crate) fn load_secret(state: &Path) -> Result<Zeroizing<[u8; 32]>, IdentityError> {
    let path = state.join("identity.key");
    match disk::read(&path) {
        Ok(bytes) => {
            keep_private(&path)?;
            let secret = unseal(MAGIC, &bytes)
                .and_then(|body| body.try_into().map(Zeroizing::new).map_err(|_| Damage::Contents));
            secret.map_err(|reason| IdentityError::Damaged { path, reason })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder = state.join("mesh");
            let states = states(&folder)?;
            match states.is_empty() {
                true => new_secret(&path),
                false => Err(IdentityError::Missing { path, folder, states }),
            }
        }
        Err(error) => Err(failed("read", &path)(error)),
    }
}

/// What the identity that is kept in the folder `state` agrees with others on; see
/// [`load_secret`].
pub(crate) fn agreement(state: &Path) -> Result<Agreement, IdentityError> {
    load_secret(state).map(|secret| Agreement::of(&secret))
}

/// The states of meshes in their folder, if that exists. Under another identity they would be of
/// no use.
fn states(folder: &Path) -> Result<Vec<PathBuf>, IdentityError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("list", folder)(error)),
    };
    let paths =
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>();
    let mut paths = paths.map_err(failed("list", folder))?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "state"));
    paths.sort();
    Ok(paths)
}

fn names(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn new_secret(path: &Path) -> Result<Zeroizing<[u8; 32]>, IdentityError> {
    let mut secret = Zeroizing::new([0; 32]);
    getrandom::fill(&mut secret[..]).map_err(|error| IdentityError::Random(error.to_string()))?;
    disk::write(path, &seal(MAGIC, &secret[..])).map_err(failed("write", path))?;
    info!(path = %path.display(), "made a new identity");
    Ok(secret)
}

fn keep_private(path: &Path) -> Result<(), IdentityError> {
    let mode = fs::metadata(path).map_err(failed("read", path))?.permissions().mode();
    if mode & 0o077 != 0 {
        let mode = format!("{:o}", mode & 0o777);
        warn!(path = %path.display(), mode, "others could read the identity key; making it private");
        let private = fs::set_permissions(path, Permissions::from_mode(0o600));
        private.map_err(failed("make private", path))?;
    }
    Ok(())
}

fn failed<'a>(
    operation: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> IdentityError + 'a {
    move |source| IdentityError::Io { operation, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_once_and_private() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = load_secret(folder.path()).expect("made");
        let path = folder.path().join("identity.key");
        let mode = || fs::metadata(&path).expect("it exists").permissions().mode() & 0o777;
        assert_eq!(mode(), 0o600);
        fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("ours");
        let again = load_secret(folder.path()).expect("there");
        assert_eq!(*first, *again);
        assert_eq!(mode(), 0o600);
    }

    #[test]
    fn none_is_made_beside_the_states_of_another() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, mesh) = (folder.path().join("identity.key"), folder.path().join("mesh"));
        fs::create_dir(&mesh).expect("made");
        fs::write(mesh.join("b.state"), "precious").expect("writable");
        fs::write(mesh.join("a.state.corrupt-1"), "of no use").expect("writable");
        let error = load_secret(folder.path()).expect_err("missing").to_string();
        for named in [&path, &mesh.join("b.state"), &mesh] {
            assert!(error.contains(&named.display().to_string()), "{named:?}: {error}");
        }
        assert!(!error.contains("corrupt") && error.contains("Restore the key"), "{error}");
        assert!(!path.exists(), "none was made");
        assert!(mesh.join("b.state").exists(), "nothing was moved");
        fs::rename(&mesh, folder.path().join("away")).expect("moved");
        load_secret(folder.path()).expect("a new one");
    }

    #[test]
    fn a_damaged_one_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        load_secret(folder.path()).expect("made");
        let path = folder.path().join("identity.key");
        let good = fs::read(&path).expect("readable");
        let flipped = |index: usize| {
            let mut bytes = good.clone();
            bytes[index] ^= 1;
            bytes
        };
        for bad in [vec![], good[..20].to_vec(), flipped(0), flipped(9), flipped(good.len() - 1)] {
            fs::write(&path, &bad).expect("writable");
            let error = load_secret(folder.path()).expect_err("damaged").to_string();
            assert!(error.contains("identity.key") && error.contains("damaged"), "{error}");
            assert_eq!(fs::read(&path).expect("still there"), bad);
        }
    }
}
