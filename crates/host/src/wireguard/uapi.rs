//! The control socket that `wg` looks for (the "cross-platform userspace implementation" of
//! WireGuard's documentation).

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use gotatun::device::uapi::{UapiClient, UapiServer};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

use super::Error;

/// A listening control socket; dropping it removes it.
pub(super) struct Socket {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl Socket {
    /// Makes `FOLDER/NAME.sock`, for root alone, in place of one that was left behind.
    pub(super) fn bind(folder: &Path, name: &str) -> Result<(Self, UapiServer), Error> {
        let path = folder.join(format!("{name}.sock"));
        let listener = listen(folder, &path)
            .map_err(|source| Error::Control { path: path.clone(), source })?;
        let (client, server) = UapiServer::new();
        let task = tokio::spawn(serve(listener, client));
        Ok((Self { path, task }, server))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.task.abort();
        // It may be gone already; then there is nothing to do.
        let _ = fs::remove_file(&self.path);
    }
}

fn listen(folder: &Path, path: &Path) -> io::Result<UnixListener> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn serve(listener: UnixListener, client: UapiClient) {
    loop {
        let accepted = listener.accept().await.and_then(|(stream, _)| {
            let stream = stream.into_std()?;
            stream.set_nonblocking(false)?;
            Ok(stream)
        });
        match accepted {
            Ok(stream) => client.clone().wrap_read_write(stream),
            Err(error) => tracing::debug!(%error, "a WireGuard control connection failed"),
        }
    }
}
