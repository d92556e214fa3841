//! The client of the embedded store: one connection for all calls and watches, opened when it is
//! needed and again when it is lost.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{Stream, StreamExt, stream};
use selvedge_gateway::kv::{
    Batch, Event, Health, KeyValue, LeaseId, Revision, Snapshot, StoreError, Txn, TxnReply,
};
use selvedge_gateway::model;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Address;
use super::wire::{
    Answer, Call, FrameError, Hello, MAX_FRAME, MAX_REQUEST, Reply, Request, VERSION, Welcome,
    encode, read,
};
use crate::{DEFAULT_TIMEOUT, Store, WatchSender};

/// How many calls wait for their turn on the connection.
const CALLS: usize = 256;

/// How many keys or events an answer may have; a server that sends more is broken.
const MAX_ITEMS: usize = 1 << 22;

/// A client of an embedded store.
#[derive(Debug)]
pub struct EmbeddedStore {
    address: Address,
    timeout: Duration,
    connection: Mutex<Option<Arc<Connection>>>,
    /// The identity of the store that was met first.
    identity: OnceLock<u64>,
}

impl EmbeddedStore {
    /// A client of the store at `address`. It connects with the first call.
    #[must_use]
    pub fn new(address: Address) -> Self {
        let (connection, identity) = (Mutex::new(None), OnceLock::new());
        Self { address, timeout: DEFAULT_TIMEOUT, connection, identity }
    }

    /// Sets how long each call may take.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Makes the store forget its history up to and including `revision`.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] if that was done before; [`StoreError::Refused`] if `revision`
    /// lies in the future.
    pub async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.done(Request::Compact(revision)).await
    }

    async fn done(&self, request: Request) -> Result<(), StoreError> {
        match self.call(request).await? {
            Outcome::Done => Ok(()),
            other @ (Outcome::Txn(_) | Outcome::Snapshot(_) | Outcome::Lease(_)) => {
                Err(other.unexpected())
            }
        }
    }

    async fn call(&self, request: Request) -> Result<Outcome, StoreError> {
        let (reply, outcome) = oneshot::channel();
        self.submit(request, Waiter::Call { reply, keys: Vec::new() }, outcome).await
    }

    /// Hands a request to the connection and waits for its outcome within the time limit. A
    /// connection on which nothing comes back in time is given up, with all its watches.
    async fn submit<T>(
        &self,
        request: Request,
        waiter: Waiter,
        outcome: oneshot::Receiver<Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let mut used = None;
        let work = async {
            let connection = self.connection().await?;
            used = Some(Arc::clone(&connection));
            connection.calls.send((request, waiter)).await.map_err(|_| lost())?;
            outcome.await.map_err(|_| lost())?
        };
        let result = timeout(self.timeout, work).await;
        result.unwrap_or_else(|_| {
            if let Some(connection) = used {
                connection.closed.cancel();
            }
            let waited = self.timeout.as_millis();
            Err(StoreError::Unavailable(format!("no answer from {} in {waited} ms", self.address)))
        })
    }

    async fn connection(&self) -> Result<Arc<Connection>, StoreError> {
        let mut slot = self.connection.lock().await;
        if let Some(connection) = slot.as_ref().filter(|c| !c.closed.is_cancelled()) {
            return Ok(Arc::clone(connection));
        }
        *slot = None;
        let connection = Arc::new(self.connect().await?);
        *slot = Some(Arc::clone(&connection));
        Ok(connection)
    }

    async fn connect(&self) -> Result<Connection, StoreError> {
        let failed = |error: FrameError| {
            StoreError::Unavailable(format!("connecting to {}: {error}", self.address))
        };
        let (mut reader, mut writer) = open(&self.address).await.map_err(|e| failed(e.into()))?;
        let welcome = greet(&mut reader, &mut writer).await.map_err(failed)?;
        match welcome {
            Welcome::Refused { reason } => Err(StoreError::Refused(reason)),
            Welcome::Store { identity } if identity != *self.identity.get_or_init(|| identity) => {
                let what = format!("the store was reset: another one serves {}", self.address);
                Err(StoreError::Refused(what))
            }
            Welcome::Store { .. } => Ok(Connection::start(reader, writer)),
        }
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn txn(&self, txn: Txn) -> Result<TxnReply, StoreError> {
        model::check(&txn)?;
        match self.call(Request::Txn(txn)).await? {
            Outcome::Txn(reply) => Ok(reply),
            other @ (Outcome::Snapshot(_) | Outcome::Lease(_) | Outcome::Done) => {
                Err(other.unexpected())
            }
        }
    }

    async fn read(&self, prefixes: &[String]) -> Result<Snapshot, StoreError> {
        match self.call(Request::Read { prefixes: prefixes.to_vec() }).await? {
            Outcome::Snapshot(snapshot) => Ok(snapshot),
            other @ (Outcome::Txn(_) | Outcome::Lease(_) | Outcome::Done) => {
                Err(other.unexpected())
            }
        }
    }

    async fn watch(
        &self,
        prefixes: &[String],
        after: Revision,
    ) -> Result<mpsc::Receiver<Result<Batch, StoreError>>, StoreError> {
        let (sender, receiver) = WatchSender::channel();
        let (ready, started) = oneshot::channel();
        let waiter = Waiter::Watch { ready: Some(ready), sender, events: Vec::new() };
        let request = Request::Watch { prefixes: prefixes.to_vec(), after };
        self.submit(request, waiter, started).await?;
        Ok(receiver)
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        match self.call(Request::Grant { ttl_ms }).await? {
            Outcome::Lease(lease) => Ok(lease),
            other @ (Outcome::Txn(_) | Outcome::Snapshot(_) | Outcome::Done) => {
                Err(other.unexpected())
            }
        }
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.done(Request::KeepAlive(lease)).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.done(Request::Revoke(lease)).await
    }

    /// The only member leads if it answers.
    async fn health(&self, patience: Duration) -> Health {
        let answered = timeout(patience, self.read(&[])).await;
        let led = matches!(answered, Ok(Ok(_)));
        Health { members: 1, answering: usize::from(led), led }
    }
}

/// A whole answer.
#[derive(Debug)]
enum Outcome {
    Txn(TxnReply),
    Snapshot(Snapshot),
    Lease(LeaseId),
    Done,
}

impl Outcome {
    fn unexpected(self) -> StoreError {
        StoreError::Unavailable(format!("the store answered another question: {self:?}"))
    }
}

/// Who waits for the answers to a call.
enum Waiter {
    Call {
        reply: oneshot::Sender<Result<Outcome, StoreError>>,
        /// The parts of a snapshot that have come.
        keys: Vec<KeyValue>,
    },
    Watch {
        /// Until the watch is established.
        ready: Option<oneshot::Sender<Result<(), StoreError>>>,
        sender: WatchSender,
        /// The parts of a batch that have come.
        events: Vec<Event>,
    },
}

impl Waiter {
    fn is_abandoned(&self) -> bool {
        match self {
            Self::Call { .. } => false,
            Self::Watch { ready, sender, .. } => ready.is_none() && sender.is_closed(),
        }
    }

    fn fail(self, error: StoreError) {
        // Sending fails only if nobody waits any more.
        match self {
            Self::Call { reply, .. } => drop(reply.send(Err(error))),
            Self::Watch { ready: Some(ready), .. } => drop(ready.send(Err(error))),
            Self::Watch { ready: None, sender, .. } => sender.end(error),
        }
    }

    /// Takes an answer; returns itself if more answers are to come.
    fn take(self, answer: Answer) -> Option<Self> {
        match self {
            Self::Call { reply, keys } => Self::take_call(reply, keys, answer),
            Self::Watch { ready, sender, events } => {
                Self::take_watch(ready, sender, events, answer)
            }
        }
    }

    fn take_call(
        reply: oneshot::Sender<Result<Outcome, StoreError>>,
        mut keys: Vec<KeyValue>,
        answer: Answer,
    ) -> Option<Self> {
        let outcome = match answer {
            Answer::Keys { keys: more, last } => {
                keys.extend(more);
                match last {
                    None if keys.len() <= MAX_ITEMS => return Some(Self::Call { reply, keys }),
                    None => Err(StoreError::Unavailable("an endless answer".to_owned())),
                    Some(revision) => Ok(Outcome::Snapshot(Snapshot { revision, keys })),
                }
            }
            Answer::Txn(reply) => Ok(Outcome::Txn(reply)),
            Answer::Lease(lease) => Ok(Outcome::Lease(lease)),
            Answer::Done => Ok(Outcome::Done),
            Answer::Failed(error) => Err(error),
            Answer::Events { .. } => {
                Err(StoreError::Unavailable("the store answered another question".to_owned()))
            }
        };
        // Who gave up waiting does not want it.
        let _ = reply.send(outcome);
        None
    }

    fn take_watch(
        ready: Option<oneshot::Sender<Result<(), StoreError>>>,
        sender: WatchSender,
        mut events: Vec<Event>,
        answer: Answer,
    ) -> Option<Self> {
        match (answer, ready) {
            // If nobody waits for the watch any more, it is abandoned, and cancelled in time.
            (Answer::Done, Some(ready)) => drop(ready.send(Ok(()))),
            (Answer::Events { events: more, last }, None) => {
                events.extend(more);
                if let Some(revision) = last {
                    let batch = Batch { revision, events: std::mem::take(&mut events) };
                    if !sender.send(batch) {
                        return None;
                    }
                } else if events.len() > MAX_ITEMS {
                    sender.end(StoreError::Unavailable("an endless answer".to_owned()));
                    return None;
                }
            }
            (answer, ready) => {
                let error = match answer {
                    Answer::Failed(error) => error,
                    Answer::Txn(_)
                    | Answer::Lease(_)
                    | Answer::Done
                    | Answer::Keys { .. }
                    | Answer::Events { .. } => {
                        StoreError::Unavailable("the store answered another question".to_owned())
                    }
                };
                Self::Watch { ready, sender, events }.fail(error);
                return None;
            }
        }
        Some(Self::Watch { ready: None, sender, events })
    }
}

/// A connection that has been established. Its task ends when this is dropped.
#[derive(Debug)]
struct Connection {
    calls: mpsc::Sender<(Request, Waiter)>,
    /// Cancelled when the connection is over, and to end it.
    closed: CancellationToken,
    _guard: DropGuard,
}

impl Connection {
    fn start(reader: Reader, writer: Writer) -> Self {
        let (calls, inbox) = mpsc::channel(CALLS);
        let closed = CancellationToken::new();
        tokio::spawn(run(inbox, reader, writer, closed.clone()));
        Self { calls, closed: closed.clone(), _guard: closed.drop_guard() }
    }
}

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// Carries calls and answers until the connection is over, then tells everybody who waits.
async fn run(
    mut calls: mpsc::Receiver<(Request, Waiter)>,
    reader: Reader,
    writer: Writer,
    closed: CancellationToken,
) {
    let (frames, outgoing) = mpsc::channel(CALLS);
    let mut desk = Desk { frames, waiting: BTreeMap::new(), next: 1 };
    let mut replies = std::pin::pin!(replies(reader));
    let mut writing = std::pin::pin!(write(outgoing, writer));
    let reason = loop {
        tokio::select! {
            () = closed.cancelled() => break "the connection was given up".to_owned(),
            reason = &mut writing => break reason,
            Some((request, waiter)) = calls.recv() => desk.call(request, waiter),
            reply = replies.next() => match reply {
                Some(Ok(reply)) => desk.reply(reply),
                Some(Err(error)) => break error.to_string(),
                None => break "the store closed the connection".to_owned(),
            },
        }
    };
    closed.cancel();
    calls.close();
    while let Some((_, waiter)) = calls.recv().await {
        waiter.fail(StoreError::Unavailable(reason.clone()));
    }
    for waiter in desk.waiting.into_values() {
        waiter.fail(StoreError::Unavailable(reason.clone()));
    }
}

/// Numbers the calls and finds those who wait for the answers.
struct Desk {
    frames: mpsc::Sender<Vec<u8>>,
    waiting: BTreeMap<u64, Waiter>,
    next: u64,
}

impl Desk {
    fn call(&mut self, request: Request, waiter: Waiter) {
        self.cancel_abandoned();
        let id = self.next;
        match self.send(request) {
            Ok(()) => drop(self.waiting.insert(id, waiter)),
            Err(error) => waiter.fail(error),
        }
    }

    /// Answers to a call that nobody waits for are the normal end of a watch.
    fn reply(&mut self, reply: Reply) {
        let Some(waiter) = self.waiting.remove(&reply.id) else { return };
        if let Some(waiter) = waiter.take(reply.answer) {
            self.waiting.insert(reply.id, waiter);
        }
    }

    fn cancel_abandoned(&mut self) {
        let abandoned = self.waiting.extract_if(.., |_, waiter| waiter.is_abandoned());
        for watch in abandoned.map(|(id, _)| id).collect::<Vec<_>>() {
            // If it cannot be sent, the next reply finds nobody.
            let _ = self.send(Request::Cancel { watch });
        }
    }

    fn send(&mut self, request: Request) -> Result<(), StoreError> {
        let call = Call { id: self.next, request };
        self.next += 1;
        let frame =
            encode(&call, MAX_REQUEST).map_err(|error| StoreError::Refused(error.to_string()))?;
        let full = |_| StoreError::Unavailable("too many calls are waiting".to_owned());
        self.frames.try_send(frame).map_err(full)
    }
}

fn replies(reader: Reader) -> impl Stream<Item = Result<Reply, FrameError>> {
    stream::unfold(reader, async |mut reader| {
        let reply = read::<Reply>(&mut reader, MAX_FRAME).await.transpose()?;
        Some((reply, reader))
    })
}

/// Writes frames; returns the reason why it stopped.
async fn write(mut frames: mpsc::Receiver<Vec<u8>>, mut writer: Writer) -> String {
    while let Some(frame) = frames.recv().await {
        if let Err(error) = writer.write_all(&frame).await {
            return format!("writing to the store: {error}");
        }
    }
    "the client is gone".to_owned()
}

async fn open(address: &Address) -> io::Result<(Reader, Writer)> {
    match address {
        Address::Unix(path) => {
            let (reader, writer) = UnixStream::connect(path).await?.into_split();
            Ok((Box::new(reader), Box::new(writer)))
        }
        Address::Tcp(address) => {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let (reader, writer) = stream.into_split();
            Ok((Box::new(reader), Box::new(writer)))
        }
    }
}

async fn greet(reader: &mut Reader, writer: &mut Writer) -> Result<Welcome, FrameError> {
    writer.write_all(&encode(&Hello { selvedge_store: VERSION }, MAX_FRAME)?).await?;
    let end = || FrameError::Io(io::ErrorKind::UnexpectedEof.into());
    read(reader, MAX_FRAME).await?.ok_or_else(end)
}

fn lost() -> StoreError {
    StoreError::Unavailable("the connection to the store was lost".to_owned())
}
