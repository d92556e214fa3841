use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use selvedge_host::netns;

use crate::clock::wait_until;
use crate::lab::is_closed;
use crate::{Error, Host};

/// How to start a process on a host, again and again.
#[derive(Clone, Debug)]
pub struct Recipe {
    name: String,
    host: Host,
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(String, String)>,
    piped: bool,
}

impl Recipe {
    /// The process `name` on `host` shall run `program`. Its output goes to the log file
    /// `<host>-<name>.log` in the laboratory's folder.
    #[must_use]
    pub fn new(name: &str, host: &Host, program: impl AsRef<Path>) -> Self {
        Self {
            name: name.to_owned(),
            host: host.clone(),
            program: program.as_ref().to_owned(),
            arguments: Vec::new(),
            environment: Vec::new(),
            piped: false,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        arguments.into_iter().fold(self, Self::arg)
    }

    /// Sets a variable of the environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Hands the standard output to the caller ([`Process::output`]) instead of the log.
    #[must_use]
    pub fn piped(mut self) -> Self {
        self.piped = true;
        self
    }

    /// Starts the process. It is killed when the value is dropped or this process ends.
    ///
    /// # Errors
    /// If the log cannot be written or the program cannot be started; then nothing runs.
    pub fn start(self) -> Result<Process, Error> {
        let child = self.spawn()?;
        Ok(Process { recipe: self, child, status: None })
    }

    /// The file that holds the output.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.host.folder().join(format!("{}-{}.log", self.host.name(), self.name))
    }

    fn spawn(&self) -> Result<Child, Error> {
        if is_closed() {
            let closed = io::Error::from(io::ErrorKind::Interrupted);
            return Err(Error::io(format!("start {} while all ends", self.name))(closed));
        }
        let log = self.open_log()?;
        let errors = log.try_clone().map_err(Error::io("duplicate a log's descriptor"))?;
        let mut command = self.host.command(&self.program);
        command.args(&self.arguments).envs(self.environment.iter().cloned());
        command.current_dir(self.host.folder()).stdin(Stdio::null()).stderr(errors);
        match self.piped {
            true => command.stdout(Stdio::piped()),
            false => command.stdout(log),
        };
        spawn_from_lasting_thread(command)
            .map_err(Error::io(format!("start {}", self.program.display())))
    }

    fn open_log(&self) -> Result<File, Error> {
        let path = self.log();
        let file = OpenOptions::new().create(true).append(true).open(&path);
        file.map_err(Error::io(format!("open {}", path.display())))
    }
}

/// A process on a host.
#[derive(Debug)]
pub struct Process {
    recipe: Recipe,
    child: Child,
    status: Option<ExitStatus>,
}

impl Process {
    /// Its number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The name that its recipe gave it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.recipe.name
    }

    /// The host on which it runs.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.recipe.host
    }

    /// The file that holds its output.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.recipe.log()
    }

    /// Its standard output, once, if the recipe said so.
    pub fn output(&mut self) -> Option<std::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// Whether it has not ended yet. A stopped process has not.
    pub fn is_running(&mut self) -> bool {
        self.poll();
        self.status.is_none()
    }

    /// How it ended, if it has.
    pub fn status(&mut self) -> Option<String> {
        self.poll();
        self.status.map(|status| match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit status {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => status.to_string(),
        })
    }

    /// Sends a signal; that the process has ended is no error.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn signal(&mut self, signal: Signal) -> Result<(), Error> {
        if !self.is_running() {
            return Ok(());
        }
        // The child has not been waited for, so that its number cannot be another's.
        let pid = Pid::from_raw(self.child.id().cast_signed());
        signal::kill(pid, signal).map_err(Error::io(format!("send {signal} to {}", self.name())))
    }

    /// Kills it and waits for its end.
    pub fn kill(&mut self) {
        // Both fail only if it has ended already, which is the aim.
        let _ = self.child.kill();
        if let Ok(status) = self.child.wait() {
            self.status = Some(status);
        }
    }

    /// Asks it to end (SIGTERM) and waits, for no longer than `limit`.
    ///
    /// # Errors
    /// [`Error::Timeout`] if it has not ended by then; it goes on.
    pub fn terminate(&mut self, limit: Duration) -> Result<(), Error> {
        self.signal(Signal::SIGTERM)?;
        let what = format!("the end of {} on {}", self.name(), self.host().name());
        wait_until(&what, limit, || Ok(!self.is_running()))
    }

    /// Kills what is left of it and starts it anew.
    ///
    /// # Errors
    /// As [`Recipe::start`].
    pub fn restart(&mut self) -> Result<(), Error> {
        self.kill();
        self.child = self.recipe.spawn()?;
        self.status = None;
        Ok(())
    }

    fn poll(&mut self) {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts `command` so that it dies with this process. The kernel watches the *thread* that
/// started a process, so all are started by one that lasts.
fn spawn_from_lasting_thread(mut command: Command) -> io::Result<Child> {
    static STARTER: OnceLock<mpsc::Sender<(Command, mpsc::Sender<io::Result<Child>>)>> =
        OnceLock::new();
    netns::die_with_parent(&mut command);
    let starter = STARTER.get_or_init(|| {
        let (sender, orders) = mpsc::channel::<(Command, mpsc::Sender<io::Result<Child>>)>();
        std::thread::spawn(move || {
            for (mut command, reply) in orders {
                // Whoever asked is waiting; if it panicked meanwhile, the child is not wanted.
                let _ = reply.send(command.spawn());
            }
        });
        sender
    });
    let (reply, answer) = mpsc::channel();
    starter.send((command, reply)).expect("the thread ends with the process");
    answer.recv().expect("the thread answers every order")
}
