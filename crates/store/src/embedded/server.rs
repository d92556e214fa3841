//! The server of the embedded store.
//!
//! One task, the hub, owns the model and the clock; it answers requests one after another and
//! never waits for anybody. Each connection has a task that reads requests, one that writes, and
//! one per watch. A watch asks the hub for what is new whenever the revision has grown, so that a
//! slow client costs no memory: it only falls behind, and in the end reads everything again.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use selvedge_gateway::kv::{Batch, Revision, StoreError};
use selvedge_gateway::model::Model;
use selvedge_model::Time;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use super::Address;
use super::wire::{
    Answer, Call, FrameError, Hello, MAX_FRAME, MAX_REQUEST, Reply, Request, VERSION, Welcome,
    encode, event_parts, key_parts, read,
};

/// How many clients may be connected.
const MAX_CONNECTIONS: usize = 256;
/// How many watches a connection may have.
const MAX_WATCHES: usize = 64;
/// How many events a watch gets at once, rounded up to a whole revision.
const EVENTS_AT_ONCE: usize = 1000;
/// How long a client may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// How many frames wait for a client that does not read them.
const OUTGOING: usize = 64;

/// A socket that listens for clients. A Unix socket is removed when it is dropped.
#[derive(Debug)]
pub enum Listener {
    /// A Unix socket, open to its owner only.
    Unix(UnixListener, SocketFile),
    /// A TCP socket.
    Tcp(TcpListener),
}

/// The file of a Unix socket; removed when dropped.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Listener {
    /// Listens at `address`. Port 0 means any free port; a socket file that nobody listens at any
    /// more is replaced.
    ///
    /// # Errors
    /// What the operating system says; [`io::ErrorKind::AddrInUse`] if another server listens.
    pub async fn bind(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => TcpListener::bind(address).await.map(Self::Tcp),
            Address::Unix(path) => {
                remove_stale(path).await?;
                let listener = UnixListener::bind(path)?;
                let file = SocketFile(path.clone());
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
                Ok(Self::Unix(listener, file))
            }
        }
    }

    /// Where it listens, with the port that was chosen.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn address(&self) -> io::Result<Address> {
        match self {
            Self::Unix(_, file) => Ok(Address::Unix(file.0.clone())),
            Self::Tcp(listener) => listener.local_addr().map(Address::Tcp),
        }
    }

    async fn accept(&self) -> io::Result<(Reader, Writer)> {
        match self {
            Self::Unix(listener, _) => {
                let (read, write) = listener.accept().await?.0.into_split();
                Ok((Box::new(read), Box::new(write)))
            }
            Self::Tcp(listener) => {
                let stream = listener.accept().await?.0;
                stream.set_nodelay(true)?;
                let (read, write) = stream.into_split();
                Ok((Box::new(read), Box::new(write)))
            }
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // If it cannot be removed, the next server finds that nobody listens.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Serves an empty store until `shutdown` completes. Leases outlive the connections of those who
/// hold them; a client that vanishes loses its watches only.
///
/// # Errors
/// If no random identity can be drawn. Trouble with one client is logged and ends that client's
/// connection.
pub async fn serve(listener: Listener, shutdown: impl Future<Output = ()>) -> io::Result<()> {
    let identity = getrandom::u64().map_err(io::Error::other)?;
    let (commands, inbox) = mpsc::channel(1024);
    let (revision, revisions) = watch::channel(Revision(0));
    let mut tasks = JoinSet::new();
    tasks.spawn(hub(inbox, revision));
    let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => return Ok(()),
            Some(_) = tasks.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match (accepted, Arc::clone(&free).try_acquire_owned()) {
            (Ok((reader, writer)), Ok(permit)) => {
                let hub = Hub { commands: commands.clone(), revisions: revisions.clone() };
                tasks.spawn(async move {
                    if let Err(error) = connection(identity, hub, reader, writer).await {
                        tracing::debug!(%error, "a client of the embedded store was dropped");
                    }
                    drop(permit);
                });
            }
            (Ok(_), Err(_)) => tracing::warn!("too many clients of the embedded store"),
            (Err(error), _) => {
                tracing::warn!(%error, "accepting a client of the embedded store");
                // Typically out of file descriptors: do not spin.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// What a connection asks of the hub.
enum Command {
    Request(Request, oneshot::Sender<Vec<Answer>>),
    Events(Vec<String>, Revision, oneshot::Sender<Result<Batch, StoreError>>),
}

/// A connection's way to the hub.
#[derive(Clone)]
struct Hub {
    commands: mpsc::Sender<Command>,
    revisions: watch::Receiver<Revision>,
}

impl Hub {
    /// `None` while the server is being shut down.
    async fn request(&self, request: Request) -> Option<Vec<Answer>> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Request(request, reply)).await.ok()?;
        answer.await.ok()
    }

    async fn events(
        &self,
        prefixes: &[String],
        after: Revision,
    ) -> Option<Result<Batch, StoreError>> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Events(prefixes.to_vec(), after, reply)).await.ok()?;
        answer.await.ok()
    }
}

/// Owns the model: runs commands in order, and ends leases in time.
async fn hub(mut inbox: mpsc::Receiver<Command>, revision: watch::Sender<Revision>) {
    let start = Instant::now();
    let now = || Time::ZERO + start.elapsed();
    let mut model = Model::new();
    loop {
        let expiry = model.next_expiry().map(|at| start + at.since(Time::ZERO));
        let wake = expiry.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
        let command = tokio::select! {
            command = inbox.recv() => match command {
                Some(command) => Some(command),
                None => return,
            },
            () = sleep_until(wake) => None,
        };
        model.expire(now());
        match command {
            Some(Command::Request(request, reply)) => {
                // Whoever asked may be gone; what was asked is done all the same.
                let _ = reply.send(answer(&mut model, request, now()));
            }
            Some(Command::Events(prefixes, after, reply)) => {
                let _ = reply.send(model.events_after_up_to(&prefixes, after, EVENTS_AT_ONCE));
            }
            None => {}
        }
        revision
            .send_if_modified(|seen| std::mem::replace(seen, model.revision()) != model.revision());
    }
}

fn answer(model: &mut Model, request: Request, now: Time) -> Vec<Answer> {
    let done = |result: Result<(), StoreError>| match result {
        Ok(()) => Answer::Done,
        Err(error) => Answer::Failed(error),
    };
    let single = match request {
        Request::Txn(txn) => match model.txn(&txn) {
            Ok(reply) => Answer::Txn(reply),
            Err(error) => Answer::Failed(error),
        },
        Request::Read { prefixes } => {
            let snapshot = model.read(&prefixes);
            return key_parts(snapshot.keys, snapshot.revision);
        }
        // The first look only; the connection keeps watching.
        Request::Watch { prefixes, after } => {
            done(model.events_after_up_to(&prefixes, after, 0).map(drop))
        }
        Request::Cancel { .. } => Answer::Done,
        Request::Grant { ttl_ms } => {
            Answer::Lease(model.grant(Duration::from_millis(ttl_ms.min(MAX_TTL_MS)), now))
        }
        Request::KeepAlive(lease) => done(model.keep_alive(lease, now)),
        Request::Revoke(lease) => done(model.revoke(lease)),
        Request::Compact(revision) => done(model.compact(revision)),
    };
    vec![single]
}

/// The longest lease: a year.
const MAX_TTL_MS: u64 = 365 * 24 * 3600 * 1000;

async fn connection(
    identity: u64,
    hub: Hub,
    mut reader: Reader,
    mut writer: Writer,
) -> Result<(), FrameError> {
    if !welcome(identity, &mut reader, &mut writer).await? {
        return Ok(());
    }
    let (out, frames) = mpsc::channel(OUTGOING);
    let mut tasks = JoinSet::new();
    tasks.spawn(write(frames, writer));
    let mut watches = Watches { tasks, running: BTreeMap::new() };
    while let Some(call) = read::<Call>(&mut reader, MAX_REQUEST).await? {
        watches.reap();
        if let Request::Cancel { watch } = call.request {
            watches.cancel(watch);
        }
        if handle(call, &hub, &out, &mut watches).await.is_none() {
            break;
        }
    }
    Ok(())
}

/// Exchanges the first frames. False if the client speaks another version, which it is told.
async fn welcome(
    identity: u64,
    reader: &mut Reader,
    writer: &mut Writer,
) -> Result<bool, FrameError> {
    let hello = timeout(HELLO_TIMEOUT, read::<Hello>(reader, 4096)).await;
    let hello = hello.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let Some(hello) = hello else { return Ok(false) };
    let known = hello.selvedge_store == VERSION;
    let welcome = if known {
        Welcome::Store { identity }
    } else {
        let asked = hello.selvedge_store;
        let reason = format!("protocol version {asked} is unknown, this store speaks {VERSION}");
        Welcome::Refused { reason }
    };
    writer.write_all(&encode(&welcome, MAX_FRAME)?).await?;
    Ok(known)
}

/// Answers a call. `None` if the connection is over.
async fn handle(
    call: Call,
    hub: &Hub,
    out: &mpsc::Sender<Vec<u8>>,
    watches: &mut Watches,
) -> Option<()> {
    let id = call.id;
    let mut watched = None;
    if let Request::Watch { prefixes, after } = &call.request {
        watched = Some((prefixes.clone(), *after));
    }
    if watched.is_some() && watches.running.len() >= MAX_WATCHES {
        let reason = format!("more than {MAX_WATCHES} watches on a connection");
        return send(out, id, Answer::Failed(StoreError::Refused(reason))).await;
    }
    let answers = hub.request(call.request).await?;
    let begun = matches!(answers.as_slice(), [Answer::Done]);
    for answer in answers {
        send(out, id, answer).await?;
    }
    if let Some((prefixes, after)) = watched.filter(|_| begun) {
        watches.start(id, watch_keys(id, prefixes, after, hub.clone(), out.clone()));
    }
    Some(())
}

/// The tasks of a connection; all end with it.
struct Watches {
    tasks: JoinSet<()>,
    running: BTreeMap<u64, AbortHandle>,
}

impl Watches {
    fn start(&mut self, id: u64, watch: impl Future<Output = ()> + Send + 'static) {
        let handle = self.tasks.spawn(watch);
        if let Some(former) = self.running.insert(id, handle) {
            former.abort();
        }
    }

    fn cancel(&mut self, id: u64) {
        if let Some(handle) = self.running.remove(&id) {
            handle.abort();
        }
    }

    fn reap(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        self.running.retain(|_, handle| !handle.is_finished());
    }
}

/// Sends what happens under `prefixes` until the client cancels or has fallen too far behind.
async fn watch_keys(
    id: u64,
    prefixes: Vec<String>,
    mut after: Revision,
    mut hub: Hub,
    out: mpsc::Sender<Vec<u8>>,
) {
    loop {
        if *hub.revisions.borrow_and_update() <= after && hub.revisions.changed().await.is_err() {
            return;
        }
        let answers = match hub.events(&prefixes, after).await {
            None => return,
            Some(Err(error)) => vec![Answer::Failed(error)],
            Some(Ok(batch)) => {
                after = batch.revision;
                event_parts(batch.events, batch.revision)
            }
        };
        let failed = matches!(answers.as_slice(), [Answer::Failed(_)]);
        for answer in answers {
            if send(&out, id, answer).await.is_none() {
                return;
            }
        }
        if failed {
            return;
        }
    }
}

async fn send(out: &mpsc::Sender<Vec<u8>>, id: u64, answer: Answer) -> Option<()> {
    let frame = encode(&Reply { id, answer }, MAX_FRAME).or_else(|error| {
        let refused = StoreError::Refused(format!("the answer cannot be sent: {error}"));
        encode(&Reply { id, answer: Answer::Failed(refused) }, MAX_FRAME)
    });
    out.send(frame.ok()?).await.ok()
}

async fn write(mut frames: mpsc::Receiver<Vec<u8>>, mut writer: Writer) {
    while let Some(frame) = frames.recv().await {
        if writer.write_all(&frame).await.is_err() {
            return;
        }
    }
}

async fn remove_stale(path: &Path) -> io::Result<()> {
    match UnixStream::connect(path).await {
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
        }
        // There is none, or binding will say what is wrong.
        Err(_) => Ok(()),
    }
}
