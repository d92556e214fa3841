//! Network namespaces, kept where iproute2 keeps them, so that `ip netns` sees them.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};

/// Why something could not be done with a namespace.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This process may not make namespaces. Nothing was changed.
    #[error("cannot make network namespaces: {0}")]
    Unable(String),
    /// The name cannot be a file's. Nothing was changed.
    #[error("{0:?} is not a name for a namespace: expected letters, digits, '.', '_' or '-'")]
    BadName(String),
    /// The namespace could not be made. Nothing is left of it.
    #[error("cannot create the network namespace {name}: {source}")]
    Create {
        /// Which one.
        name: String,
        /// The cause.
        source: io::Error,
    },
    /// The namespace could not be opened.
    #[error("cannot open the network namespace {name}: {source}")]
    Open {
        /// Which one.
        name: String,
        /// The cause.
        source: io::Error,
    },
    /// A thread could not enter the namespace. What was to be done in it was not done.
    #[error("cannot enter the network namespace {name}: {source}")]
    Enter {
        /// Which one.
        name: String,
        /// The cause.
        source: io::Error,
    },
    /// The namespace could not be removed, or not wholly.
    #[error("cannot remove the network namespace {name}: {source}")]
    Remove {
        /// Which one.
        name: String,
        /// The cause.
        source: io::Error,
    },
    /// The folder of the namespaces could not be read.
    #[error("cannot list the network namespaces in {FOLDER}: {0}")]
    List(#[source] io::Error),
}

/// Where named namespaces are mounted.
pub const FOLDER: &str = "/run/netns";

/// A network namespace with a name. Cheap to clone; it outlives the value, see
/// [`Namespace::remove`].
#[derive(Clone, Debug)]
pub struct Namespace {
    name: String,
    file: Arc<File>,
}

impl Namespace {
    /// Makes a namespace as `ip netns add` does. All its interfaces, the loopback too, are down.
    ///
    /// # Errors
    /// If the name is taken or bad, or the right is missing; then nothing is changed.
    pub fn create(name: &str) -> Result<Self, Error> {
        let path = path_of(name)?;
        let failed = |source| Error::Create { name: name.to_owned(), source };
        share_folder().map_err(failed)?;
        let mut mount_point = OpenOptions::new();
        mount_point.write(true).create_new(true).mode(0o444).open(&path).map_err(failed)?;
        let mounted = on_a_thread(|| mount_new_namespace(&path));
        mounted.and_then(|()| File::open(&path)).map(|file| Self::new(name, file)).map_err(
            |source| {
                // A mount that is there must go first; that there is none is the usual case.
                let _ = nix::mount::umount2(&path, MntFlags::MNT_DETACH);
                let _ = fs::remove_file(&path);
                failed(source)
            },
        )
    }

    /// Opens a namespace that exists.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn open(name: &str) -> Result<Self, Error> {
        let path = path_of(name)?;
        let file = File::open(&path);
        file.map(|file| Self::new(name, file))
            .map_err(|source| Error::Open { name: name.to_owned(), source })
    }

    /// The names of all namespaces that begin with `prefix`, sorted.
    ///
    /// # Errors
    /// If the folder cannot be read. That there is none is no error.
    pub fn list(prefix: &str) -> Result<Vec<String>, Error> {
        let entries = match fs::read_dir(FOLDER) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::List(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(Error::List)?.file_name().into_string();
            names.extend(name.ok().filter(|name| name.starts_with(prefix)));
        }
        names.sort();
        Ok(names)
    }

    /// Removes the name. The namespace itself, with all in it, ends when the last process,
    /// thread and open value of it does. That there is none of that name is no error.
    ///
    /// # Errors
    /// If the mount or its file cannot be removed.
    pub fn remove(name: &str) -> Result<(), Error> {
        let path = path_of(name)?;
        let failed = |source| Error::Remove { name: name.to_owned(), source };
        match nix::mount::umount2(&path, MntFlags::MNT_DETACH) {
            // Not mounted: left over by one who was killed between two steps.
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` in the namespace, on a thread of its own, and waits for it. Threads and
    /// processes that `work` starts inherit the namespace.
    ///
    /// # Errors
    /// If the namespace cannot be entered; then `work` was not run.
    ///
    /// # Panics
    /// If `work` panics.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        on_a_thread(|| {
            nix::sched::setns(&self.file, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        })
        .map_err(|source| Error::Enter { name: self.name.clone(), source })
    }

    /// A command whose process will run in the namespace.
    ///
    /// Unlike `ip netns exec` this leaves `/sys` and `/etc` as they are; `/proc/sys/net` shows
    /// the namespace of whoever reads it.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        self.attach(&mut command);
        command
    }

    /// Makes the process of `command` run in the namespace.
    #[allow(unsafe_code, reason = "pre_exec has no safe form")]
    pub fn attach(&self, command: &mut Command) {
        let file = Arc::clone(&self.file);
        let enter = move || Ok(nix::sched::setns(&file, CloneFlags::CLONE_NEWNET)?);
        // SAFETY: between fork and exec the closure makes the one system call setns(2), which is
        // async-signal-safe, on a descriptor that it keeps open; it does not allocate, and takes
        // no lock.
        unsafe { command.pre_exec(enter) };
    }

    fn new(name: &str, file: File) -> Self {
        Self { name: name.to_owned(), file: Arc::new(file) }
    }
}

/// A namespace that is removed when the value is dropped. For tests and demonstrations.
#[derive(Debug)]
pub struct Ephemeral(Namespace);

impl Ephemeral {
    /// Makes a namespace as [`Namespace::create`] does.
    ///
    /// # Errors
    /// As there.
    pub fn create(name: &str) -> Result<Self, Error> {
        Namespace::create(name).map(Self)
    }
}

impl Deref for Ephemeral {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.0
    }
}

impl Drop for Ephemeral {
    fn drop(&mut self) {
        if let Err(error) = Namespace::remove(&self.0.name) {
            tracing::warn!(%error, "a namespace is left over");
        }
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Makes the process of `command` get SIGKILL when the *thread* that started it ends, so start
/// it from one that lasts: the main thread or a runtime's worker, not from `spawn_blocking`.
#[allow(unsafe_code, reason = "pre_exec has no safe form")]
pub fn die_with_parent(command: &mut Command) {
    let parent = Pid::this();
    let ask = move || {
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have ended before the kernel was asked.
        if getppid() == parent { Ok(()) } else { Err(io::Error::from(nix::Error::ESRCH)) }
    };
    // SAFETY: between fork and exec the closure makes the system calls prctl(2) and getppid(2)
    // alone, which are async-signal-safe; it does not allocate, and takes no lock.
    unsafe { command.pre_exec(ask) };
}

/// Tries whether this process may make namespaces, by making one that has no name.
///
/// # Errors
/// What is missing.
pub fn can_create() -> Result<(), Error> {
    on_a_thread(|| Ok(nix::sched::unshare(CloneFlags::CLONE_NEWNET)?)).map_err(|error| {
        let hint = match error.raw_os_error() {
            Some(nix::libc::EPERM) => "; this needs root, or CAP_SYS_ADMIN and CAP_NET_ADMIN",
            Some(nix::libc::EINVAL | nix::libc::ENOSYS) => {
                "; this kernel has none (CONFIG_NET_NS), or a sandbox forbids them"
            }
            Some(_) | None => "",
        };
        Error::Unable(format!("{error}{hint}"))
    })?;
    share_folder().map_err(|error| {
        Error::Unable(format!(
            "cannot prepare {FOLDER}: {error}; this needs a writable /run and the right to mount"
        ))
    })
}

fn path_of(name: &str) -> Result<PathBuf, Error> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let dots = name.bytes().all(|b| b == b'.');
    if dots || name.len() > 200 || !name.bytes().all(allowed) {
        return Err(Error::BadName(name.chars().take(80).collect()));
    }
    Ok(Path::new(FOLDER).join(name))
}

/// Makes the folder a mount point whose mounts are shared, as iproute2 does: otherwise a process
/// with mounts of its own keeps every namespace alive that it saw at its start.
fn share_folder() -> io::Result<()> {
    const NONE: Option<&str> = None;
    fs::create_dir_all(FOLDER)?;
    let share =
        || nix::mount::mount(NONE, FOLDER, NONE, MsFlags::MS_SHARED | MsFlags::MS_REC, NONE);
    match share() {
        // Not a mount point yet.
        Err(nix::Error::EINVAL) => {
            let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
            nix::mount::mount(Some(FOLDER), FOLDER, NONE, bind, NONE)?;
            Ok(share()?)
        }
        outcome => Ok(outcome?),
    }
}

fn mount_new_namespace(path: &Path) -> io::Result<()> {
    const NONE: Option<&str> = None;
    nix::sched::unshare(CloneFlags::CLONE_NEWNET)?;
    let own = "/proc/thread-self/ns/net";
    Ok(nix::mount::mount(Some(own), path, NONE, MsFlags::MS_BIND, NONE)?)
}

/// A thread that entered a namespace must not do anything else afterwards, so each gets one.
fn on_a_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".to_owned());
        let joined = thread.spawn_scoped(scope, work)?.join();
        joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests;
