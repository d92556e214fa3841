//! Who this host is: an Ed25519 key in the state folder, made at the first start and kept. The
//! mesh plane speaks with it; the gateway plane tells by it whether a registration under its name
//! is its own.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ed25519_dalek::{SigningKey, VerifyingKey};
use selvedge_mesh::Identity;
use selvedge_model::NodeId;
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
    /// The system gives no random bytes.
    #[error("the system gives no random bytes for an identity: {0}")]
    Random(String),
}

/// The identity that is kept in the folder `state`, which exists. It is made if there is none.
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
        Err(error) if error.kind() == io::ErrorKind::NotFound => new_secret(&path),
        Err(error) => Err(failed("read", &path)(error)),
    }
}

/// What this host agrees with others on by its identity and theirs, without a word between them.
///
/// The Ed25519 keys are taken for keys of X25519 (RFC 7748), as libsodium's
/// `crypto_sign_ed25519_sk_to_curve25519` does and age for its recipients of type `ssh-ed25519`.
/// That one key pair both signs and agrees is sound (<https://eprint.iacr.org/2021/509>).
#[derive(Clone)]
pub(crate) struct Agreement {
    scalar: Zeroizing<[u8; 32]>,
    own: NodeId,
}

impl Agreement {
    /// For the identity that is kept in the folder `state`; see [`load`].
    pub(crate) fn load(state: &Path) -> Result<Self, IdentityError> {
        load_secret(state).map(|secret| Self::of(&secret))
    }

    /// For the identity of this secret.
    pub(crate) fn of(secret: &[u8; 32]) -> Self {
        let key = SigningKey::from_bytes(secret);
        let own = NodeId(key.verifying_key().to_bytes());
        Self { scalar: Zeroizing::new(key.to_scalar_bytes()), own }
    }

    /// This host's own identity.
    pub(crate) const fn own(&self) -> NodeId {
        self.own
    }

    /// The secret that only this host and `partner` can compute. `None` if that is no key, or one
    /// of small order, with which everybody could (RFC 7748, section 6.1).
    pub(crate) fn shared(&self, partner: &NodeId) -> Option<Zeroizing<[u8; 32]>> {
        let key = VerifyingKey::from_bytes(partner.as_bytes()).ok()?;
        if key.is_weak() {
            return None;
        }
        // The scalar is clamped here: what is left of a point of small order is zero.
        let shared = Zeroizing::new(key.to_montgomery().mul_clamped(*self.scalar).to_bytes());
        (*shared != [0; 32]).then_some(shared)
    }
}

impl std::fmt::Debug for Agreement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agreement").field("own", &self.own).finish_non_exhaustive()
    }
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

    /// The key pair of libsodium's test `ed25519_convert`, and what it becomes for X25519.
    #[test]
    fn keys_are_converted_as_elsewhere() {
        let bytes = |hex: &str| -> [u8; 32] {
            std::array::from_fn(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("hex"))
        };
        let seed = bytes("421151a459faeade3d247115f94aedae42318124095afabe4d1451a559faedee");
        let public = bytes("f1814f0e8ff1043d8a44d25babff3cedcae6c22c3edaa48f857ae70de2baae50");
        let secret = bytes("8052030376d47112be7f73ed7a019293dd12ad910b654455798b4667d73de166");
        let key = SigningKey::from_bytes(&seed);
        assert_eq!(key.verifying_key().to_montgomery().to_bytes(), public);
        let mut clamped = *Agreement::of(&seed).scalar;
        clamped[0] &= 248;
        clamped[31] = clamped[31] & 127 | 64;
        assert_eq!(clamped, secret);
    }

    #[test]
    fn two_agree_and_a_third_does_not() {
        let [a, b, c] = [1, 2, 3].map(|seed| Agreement::of(&[seed; 32]));
        let shared = |one: &Agreement, other: &Agreement| *one.shared(&other.own()).expect("a key");
        assert_eq!(shared(&a, &b), shared(&b, &a));
        assert_ne!(shared(&a, &b), shared(&a, &c));
        assert!(!format!("{a:?}").contains("scalar"));
    }

    #[test]
    fn keys_with_which_everybody_would_agree_are_refused() {
        let agreement = Agreement::of(&[1; 32]);
        // The neutral element, a point of order 2, of order 4, and one of order 8.
        let mut neutral = [0; 32];
        neutral[0] = 1;
        let mut two = [0xff; 32];
        (two[0], two[31]) = (0xec, 0x7f);
        let eight = [
            0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef,
            0x98, 0xf0, 0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88,
            0x6d, 0x53, 0xfc, 0x05,
        ];
        for weak in [neutral, two, [0; 32], eight] {
            assert!(VerifyingKey::from_bytes(&weak).is_ok_and(|key| key.is_weak()), "{weak:x?}");
            assert!(agreement.shared(&NodeId(weak)).is_none(), "{weak:x?}");
        }
        let off_curve =
            (2..100).map(|byte| [byte; 32]).find(|y| VerifyingKey::from_bytes(y).is_err());
        let off_curve = NodeId(off_curve.expect("half of them are not on the curve"));
        assert!(agreement.shared(&off_curve).is_none());
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
