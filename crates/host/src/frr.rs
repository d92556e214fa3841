//! A client of the control sockets that the daemons of FRRouting offer to `vtysh`.
//!
//! A command is its text and one NUL byte; the reply is text that ends in three NUL bytes and a
//! status byte, 0 for success. One command at a time: the daemon throws away what is pipelined.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// Where the daemons put their sockets unless told otherwise.
pub const DEFAULT_DIR: &str = "/var/run/frr";

/// How long a command may take: a daemon with thousands of networks prints them in a fraction of
/// a second, and one that is stuck must not hang a takeover.
const PATIENCE: Duration = Duration::from_secs(2);

/// A reply that is longer is not read: 500 bytes for each of 100,000 networks.
const MAX_REPLY: usize = 50 * 1024 * 1024;

/// How often, and after which pause, the configuration is asked for again while another session
/// holds its lock.
const LOCK_TRIES: usize = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Why a command has failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The daemon cannot be reached. Nothing was changed.
    #[error("cannot reach FRR at {}: {source}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// The connection broke. Whether the command took effect is unknown.
    #[error("lost FRR at {} during {command:?}: {source}", path.display())]
    Lost {
        /// The socket.
        path: PathBuf,
        /// The command.
        command: String,
        /// What happened.
        source: io::Error,
    },
    /// No whole answer came in time. Whether the command took effect is unknown.
    #[error("FRR at {} has not answered {command:?} in time", path.display())]
    Silent {
        /// The socket.
        path: PathBuf,
        /// The command.
        command: String,
    },
    /// The answer exceeds all bounds. The command took effect.
    #[error("FRR's answer to {command:?} is longer than {MAX_REPLY} bytes")]
    TooLong {
        /// The command.
        command: String,
    },
    /// The daemon refused the command, which changed nothing.
    #[error("FRR refuses {command:?} (status {status}): {answer}")]
    Refused {
        /// The command.
        command: String,
        /// FRR's status: 1 warning, 2 no such command, 13 configuration failed, and so on.
        status: u8,
        /// What FRR said, on one line.
        answer: String,
    },
    /// The command cannot be sent: it is empty or contains a NUL byte or a line end.
    #[error("{0:?} is not a command")]
    NotACommand(String),
    /// The answer is not what the command is documented to print.
    #[error("cannot understand FRR's answer to {command:?}: {reason}")]
    Garbled {
        /// The command.
        command: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl Error {
    /// Whether the daemon answered, so that the connection is in a known state.
    const fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::NotACommand(_) | Self::Garbled { .. })
    }
}

/// The control socket of one daemon. It connects when it is first used, stays connected, and
/// connects anew after the daemon was restarted.
#[derive(Debug)]
pub struct Vty {
    path: PathBuf,
    /// Absent while a command is under way, so that an abandoned one leaves no half-read reply.
    connection: Option<UnixStream>,
    patience: Duration,
}

impl Vty {
    /// The socket of `daemon` (such as `bgpd`) in the folder `dir`; `pathspace` is what the
    /// daemon got by `-N`. Nothing is opened yet.
    #[must_use]
    pub fn new(dir: &Path, pathspace: Option<&str>, daemon: &str) -> Self {
        let folder = pathspace.map_or_else(|| dir.to_owned(), |space| dir.join(space));
        Self { path: folder.join(format!("{daemon}.vty")), connection: None, patience: PATIENCE }
    }

    /// The same, but it waits this long for each answer instead of 2 s.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Runs a command and returns what it printed.
    ///
    /// A connection that was left open and proves to be closed is opened anew, once.
    ///
    /// # Errors
    /// If the daemon cannot be reached, does not answer within 2 s, or refuses.
    pub async fn run(&mut self, command: &str) -> Result<String, Error> {
        check(command)?;
        if let Some(idle) = self.connection.take() {
            match self.exchange(idle, command).await {
                Err(Error::Lost { .. }) => {}
                outcome => return outcome,
            }
        }
        let fresh = self.connect().await?;
        self.exchange(fresh, command).await
    }

    /// Runs `show ... json` and decodes what it printed.
    ///
    /// # Errors
    /// As for [`Vty::run`], or if the answer is no such JSON.
    pub async fn query<T: serde::de::DeserializeOwned>(
        &mut self,
        command: &str,
    ) -> Result<T, Error> {
        let answer = self.run(command).await?;
        serde_json::from_str(&answer)
            .map_err(|error| Error::Garbled { command: command.into(), reason: error.to_string() })
    }

    /// Enters the configuration, walks into the node that the commands `context` lead to, and
    /// runs `commands` there, each with a subject; then leaves the configuration in any case, so
    /// that its lock is free again. A subject whose command is refused gets no further commands.
    ///
    /// Returns the refusals by position in `commands`.
    ///
    /// # Errors
    /// If the context cannot be entered (nothing was changed), or if the connection breaks: then
    /// any of the commands may have taken effect.
    pub async fn configure<C: AsRef<[S]>, S: AsRef<str>>(
        &mut self,
        context: &[&str],
        commands: &[C],
    ) -> Result<Vec<(usize, Error)>, Error> {
        self.lock().await?;
        let outcome = self.configure_locked(context, commands).await;
        // Only a connection that is back at its start may be used again; dropping it frees the
        // lock as well.
        if self.step("end").await.is_err() {
            self.connection = None;
        }
        outcome
    }

    async fn lock(&mut self) -> Result<(), Error> {
        let mut outcome = self.run("configure terminal").await;
        for _ in 1..LOCK_TRIES {
            match &outcome {
                Err(Error::Refused { .. }) => tokio::time::sleep(LOCK_PAUSE).await,
                Ok(_) | Err(_) => break,
            }
            outcome = self.run("configure terminal").await;
        }
        outcome.map(drop)
    }

    async fn configure_locked<C: AsRef<[S]>, S: AsRef<str>>(
        &mut self,
        context: &[&str],
        commands: &[C],
    ) -> Result<Vec<(usize, Error)>, Error> {
        for command in context {
            self.step(command).await?;
        }
        let mut refused = Vec::new();
        for (position, sequence) in commands.iter().enumerate() {
            match self.steps(sequence.as_ref()).await {
                Ok(()) => {}
                Err(error) if error.is_refusal() => refused.push((position, error)),
                Err(error) => return Err(error),
            }
        }
        Ok(refused)
    }

    async fn steps<S: AsRef<str>>(&mut self, sequence: &[S]) -> Result<(), Error> {
        for command in sequence {
            self.step(command.as_ref()).await?;
        }
        Ok(())
    }

    /// Runs a command on the present connection only: a new one would not be in the same node.
    async fn step(&mut self, command: &str) -> Result<(), Error> {
        check(command)?;
        match self.connection.take() {
            Some(connection) => self.exchange(connection, command).await.map(drop),
            None => Err(self.lost(command, io::ErrorKind::NotConnected.into())),
        }
    }

    async fn connect(&mut self) -> Result<UnixStream, Error> {
        let failed = |source| Error::Connect { path: self.path.clone(), source };
        let connecting = timeout(self.patience, UnixStream::connect(&self.path)).await;
        let stream = connecting.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        self.exchange(stream.map_err(failed)?, "enable").await?;
        self.connection
            .take()
            .ok_or_else(|| self.lost("enable", io::ErrorKind::NotConnected.into()))
    }

    /// One command and its reply. The connection is kept if it is in a known state after it.
    async fn exchange(
        &mut self,
        mut connection: UnixStream,
        command: &str,
    ) -> Result<String, Error> {
        let outcome = timeout(self.patience, converse(&mut connection, command)).await;
        let silent = |_| Error::Silent { path: self.path.clone(), command: command.into() };
        let reply = match outcome.map_err(silent)? {
            Ok(reply) => reply,
            Err(source) if source.kind() == io::ErrorKind::InvalidData => {
                return Err(Error::TooLong { command: command.into() });
            }
            Err(source) => return Err(self.lost(command, source)),
        };
        self.connection = Some(connection);
        reply.into_result(command)
    }

    fn lost(&self, command: &str, source: io::Error) -> Error {
        Error::Lost { path: self.path.clone(), command: command.into(), source }
    }
}

/// What a daemon answers to one command.
#[derive(Debug, PartialEq, Eq)]
struct Reply {
    text: String,
    status: u8,
}

impl Reply {
    fn into_result(self, command: &str) -> Result<String, Error> {
        if self.status == 0 {
            return Ok(self.text);
        }
        let words: Vec<&str> = self.text.split_whitespace().collect();
        let answer = words.join(" ").chars().take(200).collect();
        Err(Error::Refused { command: command.into(), status: self.status, answer })
    }
}

fn check(command: &str) -> Result<(), Error> {
    let bad = command.trim().is_empty() || command.contains(['\0', '\n', '\r']);
    if bad { Err(Error::NotACommand(command.into())) } else { Ok(()) }
}

async fn converse(connection: &mut UnixStream, command: &str) -> io::Result<Reply> {
    let request = [command.as_bytes(), &[0]].concat();
    connection.write_all(&request).await?;
    let mut bytes = Vec::with_capacity(4096);
    loop {
        if connection.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(reply) = decode(&bytes) {
            return Ok(reply);
        }
        if bytes.len() > MAX_REPLY {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

/// The reply, if all of it is there. As nothing is pipelined, its end is the end of what came.
fn decode(bytes: &[u8]) -> Option<Reply> {
    let (text, end) = bytes.split_last_chunk::<4>()?;
    match end {
        [0, 0, 0, status] => {
            Some(Reply { text: String::from_utf8_lossy(text).into_owned(), status: *status })
        }
        [_, _, _, _] => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use tokio::net::UnixListener;
    use tokio::task::JoinHandle;

    use super::*;

    /// One step of a daemon: the command that it expects and the bytes that it answers, in
    /// pieces; no pieces: it hangs up.
    type Step = (&'static str, Vec<&'static [u8]>);

    /// A daemon that plays `sessions`, one connection after the other, and panics on any
    /// command that is not the expected one.
    fn daemon(dir: &Path, sessions: Vec<Vec<Step>>) -> JoinHandle<()> {
        let listener = UnixListener::bind(dir.join("bgpd.vty")).expect("bind");
        tokio::spawn(async move {
            for session in sessions {
                let (stream, _) = listener.accept().await.expect("accept");
                play(stream, session.into()).await;
            }
        })
    }

    async fn play(mut stream: UnixStream, mut steps: VecDeque<Step>) {
        while let Some((expected, pieces)) = steps.pop_front() {
            let mut command = Vec::new();
            while command.last() != Some(&0) {
                let byte = stream.read_u8().await.expect("a command");
                command.push(byte);
            }
            assert_eq!(String::from_utf8_lossy(&command), format!("{expected}\0"));
            for piece in pieces {
                stream.write_all(piece).await.expect("written");
                tokio::task::yield_now().await;
            }
        }
    }

    const OK: &[u8] = &[0, 0, 0, 0];

    fn ok(command: &'static str) -> Step {
        (command, vec![OK])
    }

    fn dir() -> tempfile::TempDir {
        tempfile::tempdir().expect("temporary folder")
    }

    #[tokio::test]
    async fn replies_come_in_pieces() {
        let dir = dir();
        let pieces: Vec<&[u8]> = vec![b"frr ver", b"sion 8\n\0", &[0], &[0], &[0]];
        let daemon = daemon(dir.path(), vec![vec![ok("enable"), ("show version", pieces)]]);
        let mut vty = Vty::new(dir.path(), None, "bgpd");
        assert_eq!(vty.run("show version").await.expect("answered"), "frr version 8\n");
        daemon.await.expect("all was asked");
    }

    #[tokio::test]
    async fn refusals_name_command_and_answer() {
        let dir = dir();
        let answer: &[u8] = b"% [BGP] Unknown\n command\0\0\0\x02";
        let steps = vec![ok("enable"), ("bogus", vec![answer]), ok("show")];
        let daemon = daemon(dir.path(), vec![steps]);
        let mut vty = Vty::new(dir.path(), None, "bgpd");
        let error = vty.run("bogus").await.expect_err("refused");
        assert_eq!(error.to_string(), "FRR refuses \"bogus\" (status 2): % [BGP] Unknown command");
        vty.run("show").await.expect("the connection is still good");
        daemon.await.expect("all was asked");
    }

    #[tokio::test]
    async fn a_restarted_daemon_is_reached_again() {
        let dir = dir();
        let sessions = vec![vec![ok("enable"), ok("one")], vec![ok("enable"), ok("two")]];
        let daemon = daemon(dir.path(), sessions);
        let mut vty = Vty::new(dir.path(), None, "bgpd");
        vty.run("one").await.expect("first session");
        vty.run("two").await.expect("second session");
        daemon.await.expect("all was asked");
        let error = vty.run("three").await.expect_err("nobody listens");
        assert!(matches!(error, Error::Connect { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_configuration_ends_even_if_commands_are_refused() {
        let dir = dir();
        let no: &[u8] = b"no\0\0\0\x0d";
        let steps = vec![
            ok("enable"),
            ok("configure terminal"),
            ok("router bgp"),
            ("vni 1", vec![no]),
            ok("vni 2"),
            ok("advertise-svi-ip"),
            ok("end"),
        ];
        let daemon = daemon(dir.path(), vec![steps]);
        let mut vty = Vty::new(dir.path(), None, "bgpd");
        let commands = [vec!["vni 1", "advertise-svi-ip"], vec!["vni 2", "advertise-svi-ip"]];
        let refused = vty.configure(&["router bgp"], &commands).await.expect("configured");
        assert_eq!(refused.iter().map(|(position, _)| *position).collect::<Vec<_>>(), [0]);
        daemon.await.expect("all was asked");
    }

    #[tokio::test]
    async fn a_connection_that_breaks_in_the_configuration_is_not_taken_up_again() {
        let dir = dir();
        let steps = vec![ok("enable"), ok("configure terminal"), ok("router bgp")];
        let daemon = daemon(dir.path(), vec![steps]);
        let mut vty = Vty::new(dir.path(), None, "bgpd");
        let outcome = vty.configure(&["router bgp"], &[vec!["vni 1"], vec!["vni 2"]]).await;
        assert!(matches!(outcome, Err(Error::Lost { command, .. }) if command == "vni 1"));
        daemon.await.expect("nothing but the script was asked");
    }

    #[tokio::test]
    async fn a_daemon_that_hangs_is_given_up() {
        let dir = dir();
        let listener = UnixListener::bind(dir.path().join("bgpd.vty")).expect("bind");
        let mut vty = Vty::new(dir.path(), None, "bgpd").with_patience(Duration::from_millis(50));
        let error = vty.run("show version").await.expect_err("silent");
        assert!(matches!(error, Error::Silent { .. }), "{error}");
        drop(listener);
    }

    #[test]
    fn paths_follow_the_pathspace() {
        let path = |space| Vty::new(Path::new(DEFAULT_DIR), space, "bgpd").path;
        assert_eq!(path(None), PathBuf::from("/var/run/frr/bgpd.vty"));
        assert_eq!(path(Some("gw1")), PathBuf::from("/var/run/frr/gw1/bgpd.vty"));
    }

    #[test]
    fn commands_cannot_smuggle_others() {
        for bad in ["", " ", "show\nno router bgp", "show\0no"] {
            assert!(matches!(check(bad), Err(Error::NotACommand(_))), "{bad:?}");
        }
    }

    #[test]
    fn short_and_unfinished_replies_wait_for_more() {
        for part in [&b""[..], b"\0\0\0", b"text\0\0\0", b"text"] {
            assert_eq!(decode(part), None, "{part:?}");
        }
        assert_eq!(decode(OK), Some(Reply { text: String::new(), status: 0 }));
    }
}
