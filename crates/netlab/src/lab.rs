use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use selvedge_host::netns::{self, Namespace};

use crate::clock::wait_until;
use crate::{Error, command};

/// What all names of laboratories begin with; the number of the owning process follows.
const PREFIX: &str = "sv";

/// Whether [`Lab::cleanup`] was called.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// A set of hosts with a folder for their files, removed with all processes on them on drop.
#[derive(Debug)]
pub struct Lab {
    name: String,
    folder: PathBuf,
}

impl Lab {
    /// Makes an empty laboratory, with a name of its own.
    ///
    /// # Errors
    /// If this process may not make namespaces (the error says what is missing), or the folder
    /// cannot be made.
    pub fn new() -> Result<Self, Error> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        netns::can_create()?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}{number:x}", owned_by(std::process::id()));
        let folder = folders().join(&name);
        fs::create_dir(&folder).map_err(Error::io(format!("make {}", folder.display())))?;
        Ok(Self { name, folder })
    }

    /// The folder for logs, sockets and data; in memory where the machine allows it, so that a
    /// slow disk is not measured.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes a host: a namespace with its loopback up.
    ///
    /// # Errors
    /// If the name is taken, or the right is missing.
    pub fn host(&self, name: &str) -> Result<Host, Error> {
        let namespace = Namespace::create(&format!("{}-{name}", self.name))?;
        let host = Host { name: name.to_owned(), namespace, folder: self.folder.clone() };
        host.ip("link set lo up\n")?;
        Ok(host)
    }

    /// Removes all laboratories of this process, wherever their values are: for the way out on
    /// Ctrl-C. Errors are logged. From then on this process starts no process on any host.
    pub fn cleanup() {
        CLOSED.store(true, Ordering::Relaxed);
        remove_all(|owner| owner == std::process::id());
    }

    /// Removes what the laboratories of processes that were killed have left: processes,
    /// namespaces and folders. Returns the names of the namespaces.
    pub fn sweep() -> Vec<String> {
        remove_all(|owner| !lives(owner))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let prefix = format!("{}-", self.name);
        remove_hosts(|name| name.starts_with(&prefix));
        remove_folder(&self.folder);
    }
}

/// A host of a [`Lab`]: a network namespace. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Host {
    name: String,
    namespace: Namespace,
    folder: PathBuf,
}

impl Host {
    /// Its name within the laboratory, such as `gw1`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The laboratory's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Runs `work` on the host, on a thread of its own.
    ///
    /// # Errors
    /// If the namespace cannot be entered; then `work` was not run.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        Ok(self.namespace.run(work)?)
    }

    /// A command that will run on the host.
    #[must_use]
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        self.namespace.command(program.as_ref())
    }

    /// Runs a command on the host to its end and returns what it printed.
    ///
    /// # Errors
    /// If it cannot be started, or fails.
    pub fn sh(&self, program: &str, arguments: &[&str]) -> Result<String, Error> {
        command::run(self.command(program).args(arguments))
    }

    /// Feeds lines to `ip -batch`.
    ///
    /// # Errors
    /// The first line that fails ends it; those before it have been done.
    pub fn ip(&self, lines: &str) -> Result<(), Error> {
        command::feed(self.command("ip").args(["-batch", "-"]), lines).map(|_| ())
    }

    /// Feeds lines to `bridge -batch`.
    ///
    /// # Errors
    /// As [`Host::ip`].
    pub fn bridge(&self, lines: &str) -> Result<(), Error> {
        command::feed(self.command("bridge").args(["-batch", "-"]), lines).map(|_| ())
    }

    /// Feeds rules to `nft -f`, as one transaction.
    ///
    /// # Errors
    /// If it refuses; then nothing is changed.
    pub fn nft(&self, rules: &str) -> Result<(), Error> {
        command::feed(self.command("nft").args(["-f", "-"]), rules).map(|_| ())
    }

    /// Writes values under `/proc/sys/net`: pairs of path and value.
    ///
    /// # Errors
    /// The first that cannot be written ends it.
    pub fn sysctl(&self, settings: &[(String, &str)]) -> Result<(), Error> {
        self.run(|| {
            settings.iter().try_for_each(|(path, value)| {
                fs::write(format!("/proc/sys/net/{path}"), value)
                    .map_err(Error::io(format!("set net/{path} to {value}")))
            })
        })?
    }

    /// The numbers of all processes on the host.
    #[must_use]
    pub fn processes(&self) -> BTreeSet<u32> {
        processes_in(self.namespace.name())
    }

    /// Sends a signal to every process on the host.
    pub fn signal_all(&self, signal: Signal) {
        signal_each(&self.processes(), signal);
    }
}

/// Whether this process is on its way out and must start nothing.
pub(crate) fn is_closed() -> bool {
    CLOSED.load(Ordering::Relaxed)
}

/// The beginning of the names of a process's laboratories. The letter after the number is none of
/// base 16, so that it ends it.
fn owned_by(process: u32) -> String {
    format!("{PREFIX}{process:x}n")
}

/// The process that owns what is named like that.
fn owner(name: &str) -> Option<u32> {
    let (process, number) = name.strip_prefix(PREFIX)?.split_once('n')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
    let number = number.split('-').next().is_some_and(digits);
    number.then(|| u32::from_str_radix(process, 16).ok()).flatten()
}

/// Whether a process runs. One that has ended, but was not waited for, does not.
fn lives(process: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The state follows the program's name, which is in parentheses and may hold some itself.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| !"ZX".contains(state))
}

fn folders() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { memory } else { std::env::temp_dir() }
}

fn remove_all(ours: impl Fn(u32) -> bool) -> Vec<String> {
    let removed = remove_hosts(|name| owner(name).is_some_and(&ours));
    let entries = fs::read_dir(folders()).into_iter().flatten().flatten();
    for entry in entries {
        if entry.file_name().to_str().and_then(owner).is_some_and(&ours) {
            remove_folder(&entry.path());
        }
    }
    removed
}

/// Another thread may be about to write its last file there, so this is tried again.
fn remove_folder(folder: &Path) {
    let gone = || {
        // Whether it is gone is what counts.
        let _ = fs::remove_dir_all(folder);
        Ok(!folder.exists())
    };
    let what = format!("the removal of {}", folder.display());
    if let Err(error) = wait_until(&what, Duration::from_secs(1), gone) {
        tracing::warn!(%error, "a folder is left over");
    }
}

/// Ends all processes in the namespaces that are `chosen`, then removes those.
fn remove_hosts(chosen: impl Fn(&str) -> bool) -> Vec<String> {
    let names = Namespace::list(PREFIX).unwrap_or_default();
    let names: Vec<String> = names.into_iter().filter(|name| chosen(name)).collect();
    let inodes: BTreeSet<u64> = names.iter().filter_map(|name| inode(name)).collect();
    signal_each(&processes_where(|inode| inodes.contains(&inode)), Signal::SIGKILL);
    let gone = || Ok(processes_where(|inode| inodes.contains(&inode)).is_empty());
    if let Err(error) = wait_until("the end of a host's processes", Duration::from_secs(2), gone) {
        tracing::warn!(%error, "removing the hosts all the same");
    }
    for name in &names {
        if let Err(error) = Namespace::remove(name) {
            tracing::warn!(%error, "a namespace is left over");
        }
    }
    names
}

fn processes_in(namespace: &str) -> BTreeSet<u32> {
    let Some(wanted) = inode(namespace) else { return BTreeSet::new() };
    processes_where(|inode| inode == wanted)
}

fn inode(namespace: &str) -> Option<u64> {
    fs::metadata(Path::new(netns::FOLDER).join(namespace)).ok().map(|meta| meta.ino())
}

/// All processes whose network namespace has one of the `wanted` inodes, zombies aside: those
/// have none any more. Never this process itself.
fn processes_where(wanted: impl Fn(u64) -> bool) -> BTreeSet<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let in_one = |number: &u32| {
        fs::metadata(format!("/proc/{number}/ns/net")).is_ok_and(|meta| wanted(meta.ino()))
    };
    numbers.filter(|number| *number != std::process::id()).filter(in_one).collect()
}

fn signal_each(processes: &BTreeSet<u32>, signal: Signal) {
    for process in processes {
        // One that has ended meanwhile needs no signal.
        let _ = signal::kill(Pid::from_raw(process.cast_signed()), signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dead_do_not_live() {
        let mut child = Command::new("true").spawn().expect("starts");
        wait_until("the end of a child", Duration::from_secs(5), || Ok(!lives(child.id())))
            .expect("a child that was not waited for is dead");
        assert!(Path::new(&format!("/proc/{}", child.id())).exists());
        child.wait().expect("it can be waited for");
        assert!(!lives(child.id()) && lives(std::process::id()));
    }

    #[test]
    fn names_tell_their_owner() {
        let name = format!("{}0-gw1", owned_by(0xbeef));
        assert_eq!(owner(&name), Some(0xbeef));
        assert_eq!(owner("sv12nf"), Some(0x12));
        for foreign in ["sv12-gw1", "svn0-gw1", "svxn0", "ns1", "sv1nz-a", "svtest-net"] {
            assert_eq!(owner(foreign), None, "{foreign}");
        }
    }
}
