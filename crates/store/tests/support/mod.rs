//! Real etcd processes, and a connection that can be disturbed.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// Whether etcd is installed. If not, says which test is skipped, and fails where `CI=true`.
#[expect(clippy::print_stderr, reason = "nothing is skipped silently")]
pub(crate) fn etcd_is_there(test: &str) -> bool {
    let run = Command::new("etcd").arg("--version").stdout(Stdio::null()).status();
    if run.is_ok_and(|status| status.success()) {
        return true;
    }
    assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{test} needs etcd");
    eprintln!("SKIPPED {test}: etcd is not installed");
    false
}

/// A cluster of etcd on this machine; its processes end with it.
pub(crate) struct Cluster {
    pub(crate) members: Vec<Member>,
    _folder: TempDir,
}

pub(crate) struct Member {
    pub(crate) url: String,
    pub(crate) address: SocketAddr,
    arguments: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
}

impl Cluster {
    /// Starts `size` members and waits until each of them answers, which takes a leader.
    pub(crate) async fn start(size: usize) -> Self {
        Self::start_with(size, "http", &[]).await
    }

    /// Starts members that speak `scheme` to clients, with further arguments for etcd.
    pub(crate) async fn start_with(size: usize, scheme: &str, more: &[String]) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let ports: Vec<(u16, u16)> = (0..size).map(|_| (free_port(), free_port())).collect();
        let peer = |port: u16| format!("http://127.0.0.1:{port}");
        let all: Vec<String> =
            ports.iter().enumerate().map(|(n, port)| format!("m{n}={}", peer(port.1))).collect();
        let mut members = Vec::new();
        for (n, (client, peers)) in ports.iter().enumerate() {
            let url = format!("{scheme}://127.0.0.1:{client}");
            let data = folder.path().join(format!("m{n}"));
            let mut arguments: Vec<String> = [
                ("name", format!("m{n}")),
                ("data-dir", data.display().to_string()),
                ("listen-client-urls", url.clone()),
                ("advertise-client-urls", url.clone()),
                ("listen-peer-urls", peer(*peers)),
                ("initial-advertise-peer-urls", peer(*peers)),
                ("initial-cluster", all.join(",")),
                ("logger", "zap".to_owned()),
                ("log-level", "error".to_owned()),
            ]
            .map(|(name, value)| format!("--{name}={value}"))
            .into();
            arguments.extend_from_slice(more);
            let log = folder.path().join(format!("m{n}.log"));
            let address = SocketAddr::from(([127, 0, 0, 1], *client));
            let mut member = Member { url, address, arguments, log, child: None };
            member.start();
            members.push(member);
        }
        let cluster = Self { members, _folder: folder };
        for member in &cluster.members {
            member.wait().await;
            if scheme == "http" {
                member.answers().await;
            }
        }
        cluster
    }

    pub(crate) fn urls(&self) -> Vec<String> {
        self.members.iter().map(|member| member.url.clone()).collect()
    }

    /// The index of the member that leads.
    pub(crate) async fn leader(&self) -> usize {
        for (index, member) in self.members.iter().enumerate() {
            let Ok(mut client) = etcd_client::Client::connect([&member.url], None).await else {
                continue;
            };
            let Ok(status) = client.status().await else { continue };
            let id = status.header().map_or(0, etcd_client::ResponseHeader::member_id);
            if status.leader() == id {
                return index;
            }
        }
        panic!("no member leads");
    }
}

impl Member {
    pub(crate) fn start(&mut self) {
        let log = std::fs::File::create(&self.log).expect("a log");
        let child = Command::new("etcd")
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.child = Some(child.expect("etcd is installed"));
    }

    /// Waits until the client port accepts; the cluster may still be electing.
    pub(crate) async fn wait(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(self.address).await.is_err() {
            let log = || std::fs::read_to_string(&self.log).unwrap_or_default();
            assert!(Instant::now() < deadline, "etcd does not start: {}", log());
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn answers(&self) {
        let client = etcd_client::Client::connect([&self.url], None).await.expect("a URL");
        let deadline = Instant::now() + Duration::from_secs(20);
        while client.clone().get("/", None).await.is_err() {
            assert!(Instant::now() < deadline, "etcd elects no leader");
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("it is our child");
            child.wait().expect("it was killed");
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a process id"));
        kill(pid, signal).expect("it is our child");
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a [`Proxy`] does with connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Passes everything on.
    Forward,
    /// Passes nothing on and closes nothing, like a network that drops packets.
    Swallow,
    /// Passes on what is asked, and nothing of what is answered.
    Deafen,
    /// Closes everything.
    Close,
}

/// A TCP connection to `target` that can be disturbed.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    mode: watch::Sender<Mode>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let mode = watch::Sender::new(Mode::Forward);
        let modes = mode.clone();
        let task = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.expect("accepting");
                tokio::spawn(forward(client, target, modes.subscribe()));
            }
        });
        Self { address, mode, task }
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(client: TcpStream, target: SocketAddr, mut modes: watch::Receiver<Mode>) {
    let Ok(server) = TcpStream::connect(target).await else { return };
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let gate = modes.clone();
    tokio::select! {
        () = pump(client_read, server_write, gate.clone(), &[Mode::Forward, Mode::Deafen]) => {}
        () = pump(server_read, client_write, gate, &[Mode::Forward]) => {}
        _ = modes.wait_for(|mode| *mode == Mode::Close) => {}
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut gate: watch::Receiver<Mode>,
    open: &[Mode],
) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if gate.wait_for(|mode| open.contains(mode)).await.is_err()
            || to.write_all(&buffer[..length]).await.is_err()
        {
            return;
        }
    }
}

/// An address that drops what is sent to it: a listener that accepts nothing and whose queue is
/// full. The sockets must be kept.
pub(crate) async fn black_hole() -> (SocketAddr, Vec<Box<dyn std::any::Any + Send>>) {
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
    let listener = socket.listen(1).expect("listening");
    let address = listener.local_addr().expect("bound");
    let mut kept: Vec<Box<dyn std::any::Any + Send>> = vec![Box::new(listener)];
    loop {
        let connect = TcpStream::connect(address);
        match tokio::time::timeout(Duration::from_millis(200), connect).await {
            Ok(stream) => kept.push(Box::new(stream.expect("the queue has room"))),
            Err(_) => return (address, kept),
        }
    }
}

fn free_port() -> u16 {
    let listener = StdListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound").port()
}
