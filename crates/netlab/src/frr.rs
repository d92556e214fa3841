//! FRRouting on a host, as processes of the laboratory.
//!
//! Its daemons insist on the group `frrvty` and on changing their user; the kernel then forgets
//! that they shall die with their parent. So they run as root, each with a copy of `/etc/group`
//! in which root is a member, mounted where only they see it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::clock::wait_until;
use crate::{Error, Host, Process, Recipe};

/// A daemon of FRRouting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Daemon {
    /// The one that speaks with the kernel; it comes first.
    Zebra,
    /// BGP.
    Bgp,
    /// OSPF for IPv4.
    Ospf,
    /// OSPF for IPv6.
    Ospf6,
}

impl Daemon {
    /// Its program.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Zebra => "zebra",
            Self::Bgp => "bgpd",
            Self::Ospf => "ospfd",
            Self::Ospf6 => "ospf6d",
        }
    }
}

/// FRRouting on one host.
#[derive(Debug)]
pub struct Frr {
    folder: PathBuf,
    processes: Vec<Process>,
}

impl Frr {
    /// Whether FRRouting is installed.
    #[must_use]
    pub fn is_installed() -> bool {
        Path::new(PROGRAMS).join("zebra").exists() && fs::exists("/usr/bin/vtysh").unwrap_or(false)
    }

    /// Starts the daemons with their configurations, in the order given, and waits until each
    /// takes commands.
    ///
    /// # Errors
    /// If one does not start; its log is in the laboratory's folder until that is dropped.
    pub fn start(host: &Host, daemons: &[(Daemon, String)]) -> Result<Self, Error> {
        let folder = host.folder().join(format!("frr-{}", host.name()));
        let group = folder.join("group");
        fs::create_dir(&folder).map_err(Error::io(format!("make {}", folder.display())))?;
        write(&group, &group_with_root()?)?;
        let mut frr = Self { folder, processes: Vec::new() };
        for (daemon, configuration) in daemons {
            write(&frr.folder.join(format!("{}.conf", daemon.name())), configuration)?;
            let process = frr.recipe(host, *daemon).start()?;
            frr.processes.push(process);
            frr.await_daemon(frr.processes.len() - 1)?;
        }
        Ok(frr)
    }

    /// The folder of the daemons' vty sockets.
    #[must_use]
    pub fn vty_dir(&self) -> &Path {
        &self.folder
    }

    /// Runs commands through `vtysh` and returns what they print.
    ///
    /// # Errors
    /// If one fails; those before it have been done.
    pub fn vtysh(&self, commands: &[&str]) -> Result<String, Error> {
        let Some(first) = self.processes.first() else { return Ok(String::new()) };
        let folder = self.folder.to_string_lossy().into_owned();
        let mut arguments = vec!["--vty_socket", &folder];
        arguments.extend(commands.iter().flat_map(|command| ["-c", command]));
        first.host().sh("vtysh", &arguments)
    }

    /// Kills what is left of the daemons and starts them anew.
    ///
    /// # Errors
    /// As [`Frr::start`].
    pub fn restart(&mut self) -> Result<(), Error> {
        for process in &mut self.processes {
            process.kill();
        }
        (0..self.processes.len()).try_for_each(|index| self.start_again(index))
    }

    /// Kills one daemon.
    ///
    /// # Errors
    /// If it is not among those that were started.
    pub fn kill_daemon(&mut self, daemon: Daemon) -> Result<(), Error> {
        let index = self.index(daemon)?;
        self.processes[index].kill();
        Ok(())
    }

    /// Starts one daemon again, with the configuration that it had at first.
    ///
    /// # Errors
    /// As [`Frr::kill_daemon`] and [`Frr::start`].
    pub fn restart_daemon(&mut self, daemon: Daemon) -> Result<(), Error> {
        let index = self.index(daemon)?;
        self.processes[index].kill();
        self.start_again(index)
    }

    fn start_again(&mut self, index: usize) -> Result<(), Error> {
        // The old socket would look as if the daemon took commands.
        let _ = fs::remove_file(self.socket(index));
        self.processes[index].restart()?;
        self.await_daemon(index)
    }

    fn index(&self, daemon: Daemon) -> Result<usize, Error> {
        let unknown = || Error::Unknown { what: "daemon", name: daemon.name().to_owned() };
        let mut names = self.processes.iter().map(Process::name);
        names.position(|name| name == daemon.name()).ok_or_else(unknown)
    }

    fn recipe(&self, host: &Host, daemon: Daemon) -> Recipe {
        let (name, own) = (daemon.name(), |file: &str| self.folder.join(file));
        let inner = "mount --bind \"$0\" /etc/group && exec \"$@\"";
        let recipe = Recipe::new(name, host, "unshare")
            .args(["--mount", "sh", "-c", inner])
            .arg(own("group"))
            .arg(Path::new(PROGRAMS).join(name))
            .args(["-u", "root", "-g", "root", "--log", "stdout", "-P", "0", "--vty_socket"])
            .arg(&self.folder)
            .arg("-z")
            .arg(own("zserv.api"))
            .arg("-i")
            .arg(own(&format!("{name}.pid")))
            .arg("-f")
            .arg(own(&format!("{name}.conf")));
        match daemon {
            Daemon::Zebra => recipe.args(["-s", NETLINK_BUFFER]),
            Daemon::Bgp | Daemon::Ospf | Daemon::Ospf6 => recipe,
        }
    }

    fn await_daemon(&mut self, index: usize) -> Result<(), Error> {
        let socket = self.socket(index);
        let process = &mut self.processes[index];
        let what = format!("the start of {} on {}", process.name(), process.host().name());
        let (of, log) = (what.clone(), process.log());
        wait_until(&what, START, || match process.status() {
            Some(status) => Err(Error::Answer {
                of: of.clone(),
                reason: format!("it ended with {status}: {}", last_lines(&log)),
            }),
            None => Ok(socket.exists()),
        })
    }

    fn socket(&self, index: usize) -> PathBuf {
        self.folder.join(format!("{}.vty", self.processes[index].name()))
    }
}

const PROGRAMS: &str = "/usr/lib/frr";
/// Bytes of zebra's netlink socket, as FRR's packages have it (`docs/frr.md`).
const NETLINK_BUFFER: &str = "90000000";
const START: Duration = Duration::from_secs(10);

fn group_with_root() -> Result<String, Error> {
    let groups = fs::read_to_string("/etc/group").map_err(Error::io("read /etc/group"))?;
    let line = |line: &str| match line.strip_prefix("frrvty:") {
        Some(rest) if rest.ends_with(':') => format!("{line}root\n"),
        Some(_) => format!("{line},root\n"),
        None => format!("{line}\n"),
    };
    Ok(groups.lines().map(line).collect())
}

fn last_lines(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(3).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" / ")
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    fs::write(path, text).map_err(Error::io(format!("write {}", path.display())))
}
