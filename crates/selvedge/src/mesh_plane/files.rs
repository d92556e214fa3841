//! What the mesh plane keeps on disk: the identity, and one file per mesh.
//!
//! A file is written beside its place, flushed, and moved over; a checksum tells damage apart
//! from content. What is damaged is kept aside, never overwritten.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use selvedge_host::wireguard::PrivateKey;
use selvedge_model::MeshId;
use tokio::task::spawn_blocking;
use tracing::{error, info, warn};
use zeroize::Zeroizing;

/// No file of ours is greater, in bytes.
const MAX_FILE: u64 = 64 * 1024 * 1024;

const IDENTITY_MAGIC: &[u8; 8] = b"svident\x01";
const MESH_MAGIC: &[u8; 8] = b"svmesh\0\x01";
const CHECKSUM_LEN: usize = blake3::OUT_LEN;

/// Why the state folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum FilesError {
    /// A file or folder cannot be read or made. Nothing was changed.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    /// The identity is damaged. It was left as it is.
    #[error(
        "the identity key {} is damaged: {reason}. It was left as it is: restore it from a \
         backup, or move it away to become a new node",
        path.display()
    )]
    Identity { path: PathBuf, reason: Damage },
    /// The system gives no random bytes.
    #[error("the system gives no random bytes for an identity: {0}")]
    Random(String),
    /// The thread that wrote did not come to its end.
    #[error("writing the state was interrupted: {0}")]
    Interrupted(String),
}

/// What is wrong with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Damage {
    #[error("it is too short or of another kind")]
    Kind,
    #[error("its checksum does not match")]
    Checksum,
    #[error("its contents make no sense")]
    Contents,
}

/// A mesh as it lies on disk.
#[derive(Clone, Debug)]
pub(super) struct MeshFile {
    pub(super) key: PrivateKey,
    pub(super) port: u16,
    pub(super) interface: String,
    /// The core's snapshot.
    pub(super) core: Vec<u8>,
}

impl MeshFile {
    fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut body = Zeroizing::new(self.key.as_bytes().to_vec());
        body.extend(self.port.to_be_bytes());
        // Interface names have at most 15 bytes.
        body.push(u8::try_from(self.interface.len()).unwrap_or(u8::MAX));
        body.extend(self.interface.as_bytes());
        body.extend(&self.core);
        seal(MESH_MAGIC, &body)
    }

    fn decode(bytes: &[u8]) -> Result<Self, Damage> {
        let body = unseal(MESH_MAGIC, bytes)?;
        let (key, rest) = body.split_first_chunk::<32>().ok_or(Damage::Contents)?;
        let (port, rest) = rest.split_first_chunk().ok_or(Damage::Contents)?;
        let (len, rest) = rest.split_first().ok_or(Damage::Contents)?;
        let (name, core) = rest.split_at_checked((*len).into()).ok_or(Damage::Contents)?;
        Ok(Self {
            key: PrivateKey::from_bytes(*key),
            port: u16::from_be_bytes(*port),
            interface: String::from_utf8(name.to_vec()).map_err(|_| Damage::Contents)?,
            core: core.to_vec(),
        })
    }
}

/// The state folder of the mesh plane.
#[derive(Clone, Debug)]
pub(super) struct Files {
    root: PathBuf,
    meshes: PathBuf,
}

impl Files {
    /// Opens the folder, and makes it if it is not there.
    pub(super) fn open(root: &Path) -> Result<Self, FilesError> {
        let meshes = root.join("mesh");
        for folder in [root, &meshes] {
            let make = DirBuilder::new().recursive(true).mode(0o700).create(folder);
            make.map_err(failed("make the folder", folder))?;
        }
        Ok(Self { root: root.to_owned(), meshes })
    }

    /// The secret of this node's identity; it is made at the first start.
    pub(super) fn identity(&self) -> Result<Zeroizing<[u8; 32]>, FilesError> {
        let path = self.root.join("identity.key");
        match read(&path) {
            Ok(bytes) => {
                self.keep_private(&path)?;
                let secret = unseal(IDENTITY_MAGIC, &bytes).and_then(|body| {
                    body.try_into().map(Zeroizing::new).map_err(|_| Damage::Contents)
                });
                secret.map_err(|reason| FilesError::Identity { path, reason })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.new_identity(&path),
            Err(error) => Err(failed("read", &path)(error)),
        }
    }

    /// All meshes that can be read. A damaged file is put aside and reported.
    pub(super) fn meshes(&self) -> Result<Vec<(MeshId, MeshFile)>, FilesError> {
        let folder = fs::read_dir(&self.meshes).map_err(failed("list", &self.meshes))?;
        let mut meshes = Vec::new();
        for entry in folder {
            let path = entry.map_err(failed("list", &self.meshes))?.path();
            match mesh_of(&path) {
                Some(mesh) => meshes.extend(self.read_mesh(&path).map(|file| (mesh, file))),
                None if has_extension(&path, "tmp") => remove_unfinished(&path),
                None => {}
            }
        }
        meshes.sort_by_key(|(mesh, _)| *mesh);
        Ok(meshes)
    }

    /// Writes a mesh on a thread that may wait for the disk.
    pub(super) async fn save_aside(self, mesh: MeshId, file: MeshFile) -> Result<(), FilesError> {
        let written = spawn_blocking(move || self.save(mesh, &file)).await;
        written.unwrap_or_else(|error| Err(FilesError::Interrupted(error.to_string())))
    }

    /// Removes a mesh that was left, on a thread that may wait for the disk.
    pub(super) async fn remove_aside(self, mesh: MeshId) -> Result<(), FilesError> {
        let removed = spawn_blocking(move || self.remove(mesh)).await;
        removed.unwrap_or_else(|error| Err(FilesError::Interrupted(error.to_string())))
    }

    /// Writes a mesh; when it returns the file survives a loss of power.
    pub(super) fn save(&self, mesh: MeshId, file: &MeshFile) -> Result<(), FilesError> {
        self.replace(&self.mesh_path(mesh), &file.encode())
    }

    /// Removes a mesh that was left.
    pub(super) fn remove(&self, mesh: MeshId) -> Result<(), FilesError> {
        let path = self.mesh_path(mesh);
        fs::remove_file(&path).map_err(failed("remove", &path))?;
        sync_folder(&self.meshes)
    }

    /// Puts a mesh's file aside: its contents make no sense.
    pub(super) fn put_aside(&self, mesh: MeshId, reason: &dyn std::fmt::Display) {
        put_aside(&self.mesh_path(mesh), reason);
    }

    fn mesh_path(&self, mesh: MeshId) -> PathBuf {
        self.meshes.join(format!("{mesh}.state"))
    }

    fn read_mesh(&self, path: &Path) -> Option<MeshFile> {
        match read(path).map(|bytes| MeshFile::decode(&bytes)) {
            Ok(Ok(file)) => Some(file),
            Ok(Err(damage)) => {
                put_aside(path, &damage);
                None
            }
            Err(error) => {
                error!(path = %path.display(), %error, "cannot read the state of a mesh; going on without it");
                None
            }
        }
    }

    fn new_identity(&self, path: &Path) -> Result<Zeroizing<[u8; 32]>, FilesError> {
        let mut secret = Zeroizing::new([0; 32]);
        getrandom::fill(&mut secret[..]).map_err(|error| FilesError::Random(error.to_string()))?;
        self.replace(path, &seal(IDENTITY_MAGIC, &secret[..]))?;
        info!(path = %path.display(), "made a new identity");
        Ok(secret)
    }

    fn keep_private(&self, path: &Path) -> Result<(), FilesError> {
        let mode = fs::metadata(path).map_err(failed("read", path))?.permissions().mode();
        if mode & 0o077 != 0 {
            warn!(path = %path.display(), mode = format!("{:o}", mode & 0o777), "others could read the identity key; making it private");
            let private = fs::set_permissions(path, Permissions::from_mode(0o600));
            private.map_err(failed("make private", path))?;
        }
        Ok(())
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> Result<(), FilesError> {
        let unfinished = path.with_extension("tmp");
        write_private(&unfinished, bytes).map_err(failed("write", &unfinished))?;
        fs::rename(&unfinished, path).map_err(failed("replace", path))?;
        sync_folder(path.parent().unwrap_or(&self.root))
    }
}

fn failed<'a>(
    operation: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> FilesError + 'a {
    move |source| FilesError::Io { operation, path: path.to_owned(), source }
}

fn read(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::new());
    File::open(path)?.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // One that an earlier process left behind may have other permissions.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn sync_folder(folder: &Path) -> Result<(), FilesError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("flush", folder))
}

fn seal(magic: &[u8; 8], body: &[u8]) -> Zeroizing<Vec<u8>> {
    let checksum = blake3::hash(body);
    // With its full size from the start, no copy of a secret is left behind by growing.
    let mut sealed = Zeroizing::new(Vec::with_capacity(8 + CHECKSUM_LEN + body.len()));
    sealed.extend(magic);
    sealed.extend(checksum.as_bytes());
    sealed.extend(body);
    sealed
}

fn unseal<'a>(magic: &[u8; 8], bytes: &'a [u8]) -> Result<&'a [u8], Damage> {
    let rest = bytes.strip_prefix(magic).ok_or(Damage::Kind)?;
    let (checksum, body) = rest.split_first_chunk::<CHECKSUM_LEN>().ok_or(Damage::Kind)?;
    match blake3::hash(body) == blake3::Hash::from_bytes(*checksum) {
        true => Ok(body),
        false => Err(Damage::Checksum),
    }
}

fn mesh_of(path: &Path) -> Option<MeshId> {
    let name = has_extension(path, "state").then(|| path.file_stem()?.to_str()).flatten();
    name?.parse().ok()
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

fn remove_unfinished(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        warn!(path = %path.display(), %error, "cannot remove an unfinished file");
    }
}

fn put_aside(path: &Path, reason: &dyn std::fmt::Display) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside = path.with_file_name(format!("{name}.corrupt-{now}"));
    match fs::rename(path, &aside) {
        Ok(()) => error!(
            path = %path.display(), aside = %aside.display(), %reason,
            "the state of a mesh is damaged; kept aside, going on without this mesh"
        ),
        Err(error) => error!(
            path = %path.display(), %reason, %error,
            "the state of a mesh is damaged and cannot be put aside; going on without this mesh"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESH: MeshId = MeshId([7; 20]);

    fn file() -> MeshFile {
        MeshFile {
            key: PrivateKey::from_bytes([3; 32]),
            port: 51820,
            interface: "sv-campus".to_owned(),
            core: b"the core".to_vec(),
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("it exists").permissions().mode() & 0o777
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("a folder");
        let name = |entry: io::Result<fs::DirEntry>| {
            entry.expect("readable").file_name().to_string_lossy().into_owned()
        };
        entries.map(name).collect()
    }

    #[test]
    fn the_identity_is_made_once_and_private() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().join("state");
        let first = Files::open(&root).expect("made").identity().expect("made");
        let path = root.join("identity.key");
        assert_eq!((mode(&root), mode(&root.join("mesh")), mode(&path)), (0o700, 0o700, 0o600));
        fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("ours");
        let again = Files::open(&root).expect("there").identity().expect("there");
        assert_eq!(*first, *again);
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn a_damaged_identity_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = Files::open(folder.path()).expect("made");
        files.identity().expect("made");
        let path = folder.path().join("identity.key");
        let good = fs::read(&path).expect("readable");
        let flipped = |index: usize| {
            let mut bytes = good.clone();
            bytes[index] ^= 1;
            bytes
        };
        for bad in [vec![], good[..20].to_vec(), flipped(0), flipped(9), flipped(good.len() - 1)] {
            fs::write(&path, &bad).expect("writable");
            let error = files.identity().expect_err("damaged").to_string();
            assert!(error.contains("identity.key") && error.contains("damaged"), "{error}");
            assert_eq!(fs::read(&path).expect("still there"), bad);
        }
    }

    #[test]
    fn meshes_are_read_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = Files::open(folder.path()).expect("made");
        files.save(MESH, &file()).expect("written");
        let later = MeshFile { port: 9, ..file() };
        files.save(MESH, &later).expect("written");
        fs::write(folder.path().join("mesh/x.tmp"), b"half").expect("writable");
        fs::write(folder.path().join("mesh/notes.txt"), b"mine").expect("writable");
        let [(mesh, read)] = &files.meshes().expect("listed")[..] else { panic!("one mesh") };
        assert_eq!((*mesh, read.port, &read.core), (MESH, 9, &later.core));
        assert_eq!((&read.interface, read.key.public()), (&later.interface, later.key.public()));
        assert_eq!(mode(&files.mesh_path(MESH)), 0o600);
        let mut left = names(&files.meshes);
        left.sort();
        assert_eq!(left, [format!("{MESH}.state"), "notes.txt".to_owned()]);
        files.remove(MESH).expect("removed");
        assert!(files.meshes().expect("listed").is_empty());
    }

    #[test]
    fn a_damaged_mesh_is_kept_aside() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = Files::open(folder.path()).expect("made");
        files.save(MESH, &file()).expect("written");
        let mut bytes = fs::read(files.mesh_path(MESH)).expect("readable");
        bytes[60] ^= 0x80;
        fs::write(files.mesh_path(MESH), &bytes).expect("writable");
        assert!(files.meshes().expect("listed").is_empty());
        let [aside] = &names(&files.meshes)[..] else { panic!("one file") };
        assert!(aside.starts_with(&format!("{MESH}.state.corrupt-")), "{aside}");
        assert_eq!(fs::read(files.meshes.join(aside)).expect("kept"), bytes);
    }

    #[test]
    fn every_cut_is_noticed() {
        let whole = file().encode();
        assert!(MeshFile::decode(&whole).is_ok());
        for len in 0..whole.len() {
            assert!(MeshFile::decode(&whole[..len]).is_err(), "{len} bytes");
        }
    }
}
