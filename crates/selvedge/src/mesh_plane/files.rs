//! What the mesh plane keeps on disk: one file per mesh.
//!
//! A checksum tells damage apart from content. What is damaged or cannot be read is kept aside,
//! never overwritten.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use selvedge_host::wireguard::PrivateKey;
use selvedge_model::MeshId;
use tokio::task::spawn_blocking;
use tracing::{error, warn};
use zeroize::Zeroizing;

use crate::disk::{self, Damage, seal, unseal};

const MESH_MAGIC: &[u8; 8] = b"svmesh\0\x01";

/// Why the state folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum FilesError {
    /// A file or folder cannot be read or made. Nothing was changed.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    /// The folder cannot be made.
    #[error("{0:#}")]
    Folder(anyhow::Error),
    /// The thread that wrote did not come to its end.
    #[error("writing the state was interrupted: {0}")]
    Interrupted(String),
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
        let len = 35 + self.interface.len() + self.core.len();
        let mut body = Zeroizing::new(Vec::with_capacity(len));
        body.extend(self.key.as_bytes());
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
    meshes: PathBuf,
}

impl Files {
    /// Opens the folder, and makes it if it is not there.
    pub(super) fn open(root: &Path) -> Result<Self, FilesError> {
        let meshes = root.join("mesh");
        for folder in [root, &meshes] {
            disk::private_folder(folder).map_err(FilesError::Folder)?;
        }
        Ok(Self { meshes })
    }

    /// All meshes that can be read. A file that is damaged or cannot be read is put aside and
    /// reported.
    pub(super) fn meshes(&self) -> Result<Vec<(MeshId, MeshFile)>, FilesError> {
        let folder = fs::read_dir(&self.meshes).map_err(failed("list", &self.meshes))?;
        let mut meshes = Vec::new();
        for entry in folder {
            let path = entry.map_err(failed("list", &self.meshes))?.path();
            match mesh_of(&path) {
                Some(mesh) => meshes.extend(read_mesh(&path).map(|file| (mesh, file))),
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
        let path = self.mesh_path(mesh);
        disk::write(&path, &file.encode()).map_err(failed("write", &path))
    }

    /// Removes a mesh that was left.
    pub(super) fn remove(&self, mesh: MeshId) -> Result<(), FilesError> {
        let path = self.mesh_path(mesh);
        fs::remove_file(&path).map_err(failed("remove", &path))?;
        disk::sync_folder(&self.meshes).map_err(failed("flush", &self.meshes))
    }

    /// Before a mesh is joined: a file of it that is there, though this node is no member, could
    /// not be used and not be put aside either. It must not be overwritten.
    ///
    /// # Errors
    /// If it still cannot be put aside. Nothing was changed.
    pub(super) fn make_room(&self, mesh: MeshId) -> Result<(), FilesError> {
        let path = self.mesh_path(mesh);
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // What is there can perhaps be moved, even if it cannot be looked at.
            Ok(_) | Err(_) => {}
        }
        let aside = disk::keep_aside(&path).map_err(failed("put aside", &path))?;
        warn!(path = %path.display(), aside = %aside.display(), "kept aside an unused state of a mesh");
        Ok(())
    }

    /// Puts a mesh's file aside: its contents make no sense.
    pub(super) fn put_aside(&self, mesh: MeshId, reason: &dyn std::fmt::Display) {
        put_aside(&self.mesh_path(mesh), reason);
    }

    fn mesh_path(&self, mesh: MeshId) -> PathBuf {
        self.meshes.join(format!("{mesh}.state"))
    }
}

fn failed<'a>(
    operation: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> FilesError + 'a {
    move |source| FilesError::Io { operation, path: path.to_owned(), source }
}

fn read_mesh(path: &Path) -> Option<MeshFile> {
    match disk::read(path).map(|bytes| MeshFile::decode(&bytes)) {
        Ok(Ok(file)) => Some(file),
        Ok(Err(damage)) => {
            put_aside(path, &damage);
            None
        }
        Err(error) => {
            put_aside(path, &error);
            None
        }
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
    match disk::keep_aside(path) {
        Ok(aside) => error!(
            path = %path.display(), aside = %aside.display(), %reason,
            "the state of a mesh is damaged or cannot be read; kept aside, going on without this mesh"
        ),
        Err(error) => error!(
            path = %path.display(), %reason, %error,
            "the state of a mesh is damaged or cannot be read, and cannot be put aside; going on without this mesh"
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

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
    fn a_mesh_that_cannot_be_read_is_kept_aside() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = Files::open(folder.path()).expect("made");
        // Opens, but reading it is an I/O error, for root as well.
        fs::create_dir(files.mesh_path(MESH)).expect("made");
        assert!(files.meshes().expect("listed").is_empty());
        let [aside] = &names(&files.meshes)[..] else { panic!("one file") };
        assert!(aside.starts_with(&format!("{MESH}.state.corrupt-")), "{aside}");
        files.make_room(MESH).expect("there is room");
        files.save(MESH, &file()).expect("written");
        assert_eq!(files.meshes().expect("listed").len(), 1);
    }

    #[test]
    fn a_leftover_is_kept_aside_before_a_join() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = Files::open(folder.path()).expect("made");
        fs::write(files.mesh_path(MESH), b"precious").expect("writable");
        files.make_room(MESH).expect("there is room");
        let [aside] = &names(&files.meshes)[..] else { panic!("one file") };
        assert_eq!(fs::read(files.meshes.join(aside)).expect("kept"), b"precious");
    }

    #[test]
    fn what_cannot_be_put_aside_forbids_a_join() {
        let folder = tempfile::tempdir().expect("a folder");
        // The longest path there may be: it leaves no room for the name to keep it aside under.
        let mut meshes = folder.path().to_owned();
        let state = format!("/{MESH}.state").len();
        while meshes.as_os_str().len() + state < 4090 {
            let left = 4090 - state - meshes.as_os_str().len();
            meshes.push("x".repeat(left.saturating_sub(1).clamp(1, 200)));
        }
        fs::create_dir_all(&meshes).expect("made");
        let files = Files { meshes };
        fs::write(files.mesh_path(MESH), b"precious").expect("writable");
        let error = files.make_room(MESH).expect_err("it cannot be moved");
        assert!(matches!(error, FilesError::Io { operation: "put aside", .. }), "{error}");
        assert_eq!(fs::read(files.mesh_path(MESH)).expect("kept"), b"precious");
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
