//! The Unix socket of the API: 0660, owned by the configured group.

use std::fs::{DirBuilder, File, Permissions};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::unistd::Group;
use tokio::net::{UnixListener, UnixStream};

/// What a socket is called before it is moved to its place.
const NAME: &str = "s";

/// Listens on `path`. A socket that is there already is removed only if nobody answers on it.
///
/// # Errors
/// If somebody answers there, something else is there, or it may not be made.
pub(super) async fn bind(path: &Path, group: Option<&str>) -> anyhow::Result<UnixListener> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(folder)
            .with_context(|| format!("cannot create the folder {}", folder.display()))?;
    }
    let group = group.map(group_id).transpose()?;
    clear(path).await?;
    bind_aside(path, group).with_context(|| format!("cannot listen on {}", path.display()))
}

/// Makes the socket in a folder that nobody else may enter, and moves it to its place when it has
/// its permissions: whatever the umask is, at no moment can others connect to it.
fn bind_aside(path: &Path, group: Option<u32>) -> anyhow::Result<UnixListener> {
    let folder = aside(path);
    clear_aside(&folder).with_context(|| {
        let folder = folder.display();
        format!("{folder} is needed for a moment, and is not what an agent left; move it away")
    })?;
    DirBuilder::new().mode(0o700).create(&folder)?;
    // The path of a socket has at most 107 bytes, and the folder's may have as many.
    let entered = File::open(&folder)?;
    let made = PathBuf::from(format!("/proc/self/fd/{}/{NAME}", entered.as_raw_fd()));
    let bound = UnixListener::bind(&made).and_then(|listener| {
        std::fs::set_permissions(&made, Permissions::from_mode(0o660))?;
        std::os::unix::fs::chown(&made, None, group)?;
        std::fs::rename(&made, path)?;
        Ok(listener)
    });
    let removed = clear_aside(&folder);
    Ok(bound.and_then(|listener| removed.map(|()| listener))?)
}

/// Removes what a start that was cut short has left: a folder with no more in it than a socket.
/// Whatever else is there is somebody else's.
fn clear_aside(folder: &Path) -> std::io::Result<()> {
    let kind = |path: &Path| std::fs::symlink_metadata(path).map(|found| found.file_type());
    let socket = folder.join(NAME);
    // Not behind a link.
    if kind(folder).is_ok_and(|kind| kind.is_dir()) && kind(&socket).is_ok_and(|k| k.is_socket()) {
        std::fs::remove_file(&socket)?;
    }
    match std::fs::remove_dir(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The folder in which the socket is made: beside it, so that it can be moved.
fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("~");
    name.into()
}

/// Removes the socket at the end.
pub(super) fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::debug!(%error, "the socket was gone already");
    }
}

async fn clear(path: &Path) -> anyhow::Result<()> {
    let kind = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context(format!("cannot look at {}", path.display())),
    };
    if !kind.is_socket() {
        bail!("{} exists and is no socket; move it away, or choose another path", path.display());
    }
    match UnixStream::connect(path).await {
        Ok(_) => bail!(
            "another agent answers on {}; stop it, or give this one a socket of its own with \
             --socket",
            path.display()
        ),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => std::fs::remove_file(path)
            .with_context(|| format!("cannot remove the stale socket {}", path.display())),
        Err(error) => Err(error).context(format!("cannot use {}", path.display())),
    }
}

fn group_id(name: &str) -> anyhow::Result<u32> {
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => bail!("socket_group = {name:?}: there is no such group; create it first"),
        Err(error) => bail!("socket_group = {name:?}: cannot look it up: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stale_sockets_give_way_and_live_ones_do_not() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("run/agent.sock");
        let listener = bind(&path, None).await.expect("free");
        let mode = std::fs::metadata(&path).expect("exists").permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        let names = std::fs::read_dir(dir.path().join("run")).expect("readable").count();
        assert_eq!(names, 1, "nothing else is left behind");
        let error = bind(&path, None).await.expect_err("answers").to_string();
        assert!(error.starts_with("another agent answers on "), "{error}");
        drop(listener);
        let listener = bind(&path, None).await.expect("stale");
        drop(listener);
        remove(&path);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_start_that_was_cut_short_does_not_hinder_the_next() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("agent.sock");
        let aside = aside(&path);
        DirBuilder::new().create(&aside).expect("made");
        drop(std::os::unix::net::UnixListener::bind(aside.join(NAME)).expect("free"));
        drop(bind(&path, None).await.expect("free"));
        assert!(!aside.exists());
    }

    #[tokio::test]
    async fn what_others_keep_beside_it_stays() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("agent.sock");
        let aside = aside(&path);
        let precious = aside.join("precious");
        DirBuilder::new().create(&aside).expect("made");
        for file in [aside.join(NAME), precious.clone()] {
            std::fs::write(&file, "precious").expect("writes");
        }
        let refused = || async {
            let error = bind(&path, None).await.expect_err("in the way");
            let text = format!("{error:#}");
            assert!(text.contains("agent.sock~ is needed") && text.contains("move it"), "{text}");
        };
        refused().await;
        assert_eq!(std::fs::read_to_string(&precious).expect("kept"), "precious");
        assert!(aside.join(NAME).exists(), "no socket");
        // Nor is a file in its place, or a link, removed or followed.
        std::fs::remove_dir_all(&aside).expect("ours");
        std::fs::write(&aside, "precious").expect("writes");
        refused().await;
        assert_eq!(std::fs::read_to_string(&aside).expect("kept"), "precious");
        std::fs::remove_file(&aside).expect("ours");
        let elsewhere = dir.path().join("elsewhere");
        DirBuilder::new().create(&elsewhere).expect("made");
        drop(std::os::unix::net::UnixListener::bind(elsewhere.join(NAME)).expect("free"));
        std::os::unix::fs::symlink(&elsewhere, &aside).expect("made");
        refused().await;
        assert!(elsewhere.join(NAME).exists());
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn its_path_may_be_as_long_as_the_system_allows() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let room = 107 - dir.path().as_os_str().len() - 1;
        let path = dir.path().join("x".repeat(room));
        drop(bind(&path, None).await.expect("free"));
        assert!(path.exists());
    }

    #[tokio::test]
    async fn what_is_no_socket_stays() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("agent.sock");
        std::fs::write(&path, "precious").expect("writes");
        let error = bind(&path, None).await.expect_err("a file").to_string();
        assert!(error.contains("exists and is no socket"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).expect("still there"), "precious");
    }

    #[tokio::test]
    async fn unknown_groups_are_named() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("agent.sock");
        let error = bind(&path, Some("no-such-group")).await.expect_err("unknown").to_string();
        assert!(error.starts_with("socket_group = \"no-such-group\": there is no"), "{error}");
    }
}
