//! A live connection: a task that reads it and a task that writes it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, ReadToEndError};
use selvedge_model::NodeId;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use crate::hello::{Established, code};
use crate::room::{Outgoing, Room};
use crate::{Access, AccessList, Counters, MAX_MESSAGE, MAX_STRANGER_MESSAGE, Received};

/// How many messages wait for a partner.
pub(crate) const PARTNER_QUEUE: usize = 256;

/// How long a stranger may stay, and how many messages it may send meanwhile.
const STRANGER_STAY: Duration = Duration::from_secs(30);
const STRANGER_MESSAGES: usize = 8;

const MEMBER_STREAMS: u32 = 64;
const MEMBER_WINDOW: u32 = 4 * 1024 * 1024;

/// How long one message may take on its way.
const STALL: Duration = Duration::from_secs(10);

/// How long a superfluous connection is still read, for what is under way on it.
const RETIREMENT: Duration = Duration::from_secs(3);

/// The hub's end of a live connection.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) connection: Connection,
    pub(crate) dialled: bool,
    pub(crate) instance: u64,
    writer: mpsc::Sender<Outgoing>,
}

/// What the two tasks share with the transport.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) inbox: mpsc::Sender<Received>,
    pub(crate) access: watch::Receiver<AccessList>,
    pub(crate) counters: Arc<Counters>,
    /// For received messages that wait for the owner.
    pub(crate) room: Room,
}

impl Link {
    /// Starts to serve a connection; `closed` is called once it has ended.
    pub(crate) fn start(
        established: Established,
        context: Context,
        closed: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        let Established { connection, node, dialled, instance } = established;
        let (writer, queue) = mpsc::channel(PARTNER_QUEUE);
        tokio::spawn(write(connection.clone(), queue, context.counters.clone()));
        let reader = Reader { connection: connection.clone(), node, dialled, context };
        tokio::spawn(async move {
            reader.run().await;
            closed.await;
        });
        Self { connection, dialled, instance, writer }
    }

    /// Queues a message; `false` if the queue is full.
    pub(crate) fn send(&self, message: Outgoing) -> bool {
        self.writer.try_send(message).is_ok()
    }

    pub(crate) fn remote(&self) -> SocketAddr {
        remote(&self.connection)
    }

    /// Sends nothing more, and closes the connection when what is under way has had time to
    /// arrive.
    pub(crate) fn retire(self) {
        tokio::spawn(async move {
            sleep(RETIREMENT).await;
            self.connection.close(code::DUPLICATE, b"another connection is in use");
        });
    }
}

/// The remote address, IPv4 in its own form also on a socket that serves both families.
fn remote(connection: &Connection) -> SocketAddr {
    let addr = connection.remote_address();
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

async fn write(
    connection: Connection,
    mut queue: mpsc::Receiver<Outgoing>,
    counters: Arc<Counters>,
) {
    while let Some(message) = queue.recv().await {
        match timeout(STALL, write_message(&connection, &message.bytes)).await {
            Ok(Ok(())) => counters.sent.bump(),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a message was not sent");
                counters.unreachable.add(1 + queue.len());
                return;
            }
            Err(_) => {
                counters.unreachable.add(1 + queue.len());
                connection.close(code::STALLED, b"a message was not taken in time");
                return;
            }
        }
    }
}

async fn write_message(connection: &Connection, bytes: &[u8]) -> Result<(), quinn::WriteError> {
    let mut stream = connection.open_uni().await?;
    stream.write_all(bytes).await?;
    stream.finish()?;
    Ok(())
}

struct Reader {
    connection: Connection,
    node: NodeId,
    dialled: bool,
    context: Context,
}

impl Reader {
    /// Reads until the connection ends or the identity is served no more.
    async fn run(self) {
        tokio::select! {
            () = self.read_messages() => {}
            () = self.watch_access() => {}
        }
        tracing::debug!(node = %self.node.short(), reason = ?self.connection.close_reason(), "connection closed");
    }

    async fn read_messages(&self) {
        let mut from_stranger = 0;
        while let Ok(mut stream) = self.connection.accept_uni().await {
            let stranger = self.access() != Access::Member;
            from_stranger += usize::from(stranger);
            if stranger && from_stranger > STRANGER_MESSAGES {
                self.context.counters.strangers_limited.bump();
                return self.connection.close(code::LIMIT, b"too many messages from a stranger");
            }
            let limit = if stranger { MAX_STRANGER_MESSAGE } else { MAX_MESSAGE };
            match timeout(STALL, stream.read_to_end(limit)).await {
                Ok(Ok(bytes)) => self.deliver(bytes).await,
                Ok(Err(ReadToEndError::TooLong)) => {
                    self.context.counters.oversized.bump();
                    let reason = format!("a message is longer than the {limit} bytes allowed");
                    return self.connection.close(code::LIMIT, reason.as_bytes());
                }
                // A message that its sender gave up.
                Ok(Err(ReadToEndError::Read(_))) => {}
                Err(_) => {
                    return self.connection.close(code::STALLED, b"a message did not end in time");
                }
            }
        }
    }

    async fn deliver(&self, bytes: Vec<u8>) {
        self.context.counters.received.bump();
        let taken = self.context.room.take(bytes.len()).await;
        let (from, remote) = (self.node, remote(&self.connection));
        let received = Received { taken, ..Received::new(from, remote, bytes) };
        // Fails only when the transport's owner is gone, and then the hub ends too.
        self.context.inbox.send(received).await.unwrap_or_default();
    }

    fn access(&self) -> Access {
        let list = self.context.access.borrow();
        if self.dialled { list.of_dialled(&self.node) } else { list.of(&self.node) }
    }

    /// Follows what the identity may do, and ends when that is nothing any more.
    async fn watch_access(&self) {
        let mut access = self.context.access.clone();
        let stay = sleep(STRANGER_STAY);
        tokio::pin!(stay);
        loop {
            access.mark_unchanged();
            match self.access() {
                Access::Refused => return self.refuse(),
                Access::Member => self.raise_limits(),
                Access::Stranger if stay.is_elapsed() => {
                    return self.connection.close(code::LIMIT, b"a stranger may not stay");
                }
                Access::Stranger => {}
            }
            tokio::select! {
                Ok(()) = access.changed() => {}
                () = &mut stay, if !stay.is_elapsed() => {}
                // Nobody is left who could change the list; the last one holds.
                else => std::future::pending().await,
            }
        }
    }

    fn refuse(&self) {
        self.context.counters.refused.bump();
        self.connection.close(code::REFUSED, b"this node is not welcome here any more");
    }

    fn raise_limits(&self) {
        self.connection.set_max_concurrent_uni_streams(MEMBER_STREAMS.into());
        self.connection.set_receive_window(MEMBER_WINDOW.into());
    }
}
