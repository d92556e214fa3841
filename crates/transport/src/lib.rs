//! QUIC and sealed datagrams between agents, identities checked.
//!
//! A [`Transport`] owns one UDP port. Both ends of a connection prove their Ed25519 identity by
//! raw public keys (RFC 7250) in the TLS handshake; a dial names the identity that it expects,
//! and an [`AccessList`] that may change at any time says who is served. One message is one
//! unidirectional stream of bounded length.
//!
//! Small messages need no connection: [`Transport::send_datagram`] seals them one by one under a
//! session that is cheap to begin and costs nothing to keep ([`frame`]).
//!
//! Delivery is best effort: a message is dropped, and counted, when its partner cannot be reached
//! or too much waits. What must arrive is repeated by the protocol above.
//!
//! ```text
//!  send, connect ──▶ hub ──▶ writer ══▶ one connection per partner ══▶ reader ──▶ Received
//!  send_datagram ──▶ courier ─────────▶ the same socket ─────────────▶ courier ─────▲
//! ```

mod access;
mod agreement;
mod datagram;
mod error;
mod hello;
mod hub;
mod link;
mod mux;
mod room;
#[cfg(test)]
mod tests;
mod tls;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use selvedge_model::NodeId;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep;
use zeroize::Zeroizing;

pub use crate::access::{Access, AccessList};
pub use crate::agreement::Agreement;
pub use crate::datagram::frame;
pub use crate::error::{BindError, ConnectError, DialError, SendError};
pub use crate::hello::PROTOCOL_VERSION;

/// The greatest message, in bytes.
pub const MAX_MESSAGE: usize = 1024 * 1024;

/// The greatest message that a stranger may send, in bytes.
pub const MAX_STRANGER_MESSAGE: usize = 16 * 1024;

/// The greatest message that [`Transport::send_datagram`] takes, in bytes.
pub const MAX_DATAGRAM: usize = frame::MAX_FRAME - frame::OVERHEAD;

/// Requests that wait for the hub, and received messages that wait for the owner.
const QUEUE: usize = 1024;

/// How many bytes of messages may wait to be sent over streams, all partners together, and how
/// many of received ones for the owner.
const WAITING: usize = 32 * 1024 * 1024;

/// What a [`Transport`] is made of.
pub struct Config {
    /// The address of the UDP socket. `[::]` serves IPv4 too, and falls back to `0.0.0.0` on a
    /// host without IPv6. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// The seed of the Ed25519 identity (RFC 8032).
    pub secret: Zeroizing<[u8; 32]>,
    /// Who is served; a change takes effect on live connections at once.
    pub access: watch::Receiver<AccessList>,
    /// The mark of all packets that are sent (`SO_MARK`), by which routing rules know them. It
    /// takes `CAP_NET_ADMIN`.
    pub mark: Option<u32>,
}

/// A message that arrived.
#[derive(Debug)]
pub struct Received {
    /// The identity that the sender proved.
    pub from: NodeId,
    /// Where it came from; an IPv4 address is never in its mapped form.
    pub remote: SocketAddr,
    /// The message.
    pub bytes: Vec<u8>,
    /// What it takes up of the room for received messages; none if it was a datagram.
    #[expect(dead_code, reason = "held until the message is gone")]
    taken: Option<room::Taken>,
}

impl Received {
    const fn new(from: NodeId, remote: SocketAddr, bytes: Vec<u8>) -> Self {
        Self { from, remote, bytes, taken: None }
    }
}

/// A handle to the endpoint. When the last one is dropped the connections are closed.
#[derive(Clone, Debug)]
pub struct Transport {
    node: NodeId,
    local: SocketAddr,
    requests: mpsc::Sender<hub::Request>,
    datagrams: mpsc::Sender<datagram::Request>,
    socket: Weak<mux::Mux>,
    room: room::Room,
    counters: Arc<Counters>,
}

impl Transport {
    /// Binds the socket and starts to serve, on the current tokio runtime.
    ///
    /// # Errors
    /// If the socket cannot be bound or the keys cannot be loaded. Nothing was started then.
    pub fn bind(config: Config) -> Result<(Self, mpsc::Receiver<Received>), BindError> {
        let keys = tls::Keys::new(&config.secret)?;
        let node = keys.node();
        let agreement = Agreement::of(&config.secret);
        let counters = Arc::new(Counters::default());
        let (divert, diverted) = mpsc::channel(QUEUE);
        let (endpoint, socket) =
            tls::endpoint(&keys, (config.listen, config.mark), divert, counters.clone())?;
        let local = endpoint
            .local_addr()
            .map_err(|source| BindError::Socket { listen: config.listen, source })?;
        let (requests, from_handles) = mpsc::channel(QUEUE);
        let (datagrams, to_seal) = mpsc::channel(QUEUE);
        let (inbox, received) = mpsc::channel(QUEUE);
        let Config { access, .. } = config;
        let freed = Arc::downgrade(&socket);
        let room = room::Room::new(WAITING);
        let (linked, links) = watch::channel(BTreeSet::new());
        let detour = datagram::Detour::new(requests.clone(), links, room.clone());
        let courier = datagram::Courier::new(
            agreement,
            socket,
            access.clone(),
            inbox.clone(),
            counters.clone(),
            detour,
        )?;
        let hub = hub::Hub::new(endpoint, keys, access, inbox, counters.clone(), linked)?;
        tokio::spawn(hub.run(from_handles));
        tokio::spawn(courier.run(to_seal, diverted));
        Ok((Self { node, local, requests, datagrams, socket: freed, room, counters }, received))
    }

    /// The own identity.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// The address of the socket.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Queues a message for a partner. A live connection to it is used, whoever dialled it;
    /// without one the addresses are dialled, unless the last dial failed a moment ago. With no
    /// addresses the message can only go over a live connection, as an answer does.
    ///
    /// # Errors
    /// If the message is too long or too much waits already; nothing was queued then. What
    /// happens later shows in [`Transport::counters`] alone.
    pub fn send(&self, to: NodeId, addrs: &[SocketAddr], bytes: Vec<u8>) -> Result<(), SendError> {
        if bytes.len() > MAX_MESSAGE {
            return Err(SendError::TooLong { len: bytes.len() });
        }
        let taken = self.room.try_take(bytes.len()).ok_or(SendError::Busy)?;
        let message = room::Outgoing { bytes, taken };
        let request = hub::Request::Send { to, addrs: addrs.to_vec(), message };
        self.requests.try_send(request).map_err(not_queued)
    }

    /// Queues a message for whoever is found at one of the addresses. It is connected to whatever
    /// its identity is, and served like one that was dialled by name, unless it is evicted.
    ///
    /// # Errors
    /// If the message is too long or too much waits already; nothing was queued then.
    pub fn find(&self, addrs: &[SocketAddr], bytes: Vec<u8>) -> Result<(), SendError> {
        if bytes.len() > MAX_MESSAGE {
            return Err(SendError::TooLong { len: bytes.len() });
        }
        let taken = self.room.try_take(bytes.len()).ok_or(SendError::Busy)?;
        let message = room::Outgoing { bytes, taken };
        let request = hub::Request::Find { addrs: addrs.to_vec(), message };
        self.requests.try_send(request).map_err(not_queued)
    }

    /// Queues a small message for a partner, as a sealed datagram. It goes to where the partner
    /// was heard last; if that is unknown, or it has been silent, the first of the addresses are
    /// tried. To a partner that answers none it goes over a stream, and if there is no connection,
    /// one is made, which is tried the more seldom the more often it was in vain. A partner that is no member can be sent datagrams; whether it takes them is its own
    /// choice.
    ///
    /// # Errors
    /// If the message is longer than [`MAX_DATAGRAM`] or too many wait already; nothing was queued
    /// then. What happens later shows in [`Transport::counters`] alone.
    pub fn send_datagram(
        &self,
        to: NodeId,
        addrs: &[SocketAddr],
        message: Vec<u8>,
    ) -> Result<(), SendError> {
        if message.len() > MAX_DATAGRAM {
            return Err(SendError::TooLong { len: message.len() });
        }
        let request = datagram::Request::Send { to, addrs: addrs.to_vec(), message };
        self.datagrams.try_send(request).map_err(not_queued)
    }

    /// Makes sure that there is a connection to a partner, and returns its remote address.
    /// All addresses are tried, each a quarter of a second after the one before.
    ///
    /// # Errors
    /// If none of them led to the partner; the error says for each address why.
    pub async fn connect(
        &self,
        to: NodeId,
        addrs: &[SocketAddr],
    ) -> Result<SocketAddr, ConnectError> {
        let (reply, answer) = oneshot::channel();
        let request = hub::Request::Connect { to, addrs: addrs.to_vec(), reply };
        let closed = || ConnectError::Closed { node: to };
        self.requests.send(request).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    /// Says goodbye to all partners and stops serving. When it returns the port is free again,
    /// unless that takes longer than a second.
    pub async fn close(&self) {
        let (reply, answer) = oneshot::channel();
        if self.requests.send(hub::Request::Close { reply }).await.is_ok() {
            answer.await.unwrap_or_default();
        }
        self.datagrams.send(datagram::Request::Close).await.unwrap_or_default();
        for _ in 0..100 {
            if self.socket.strong_count() == 0 {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> CounterValues {
        self.counters.read()
    }
}

#[allow(clippy::needless_pass_by_value, reason = "the shape that map_err asks for")]
fn not_queued<T>(error: mpsc::error::TrySendError<T>) -> SendError {
    match error {
        mpsc::error::TrySendError::Full(_) => SendError::Busy,
        mpsc::error::TrySendError::Closed(_) => SendError::Closed,
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        #[derive(Debug, Default)]
        pub(crate) struct Counters { $(pub(crate) $name: Counter),+ }

        /// Events since the transport was bound.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct CounterValues { $($(#[$doc])* pub $name: u64),+ }

        impl Counters {
            pub(crate) fn read(&self) -> CounterValues {
                CounterValues { $($name: self.$name.0.load(Ordering::Relaxed)),+ }
            }
        }
    };
}

counters! {
    /// Messages written to a connection.
    sent,
    /// Messages received whole.
    received,
    /// Messages dropped because no connection could be made.
    unreachable,
    /// Messages dropped because the partner's queue was full.
    overflowed,
    /// Connections made, by either side.
    connected,
    /// Dials that failed.
    dials_failed,
    /// Connections of evicted identities that were closed.
    refused,
    /// Strangers turned away because there were too many of them or they sent too much.
    strangers_limited,
    /// Messages that were longer than allowed.
    oversized,
    /// Connections closed because the other side speaks another protocol version.
    version_mismatches,
    /// Messages sent as datagrams.
    datagrams_sent,
    /// Messages received as datagrams.
    datagrams_received,
    /// Datagrams that were forged, repeated, damaged, of an unknown session, or of somebody who is
    /// not served.
    datagrams_refused,
    /// Messages that were to be sent as datagrams, and datagrams received, that were dropped
    /// because nobody answered or too much waited.
    datagrams_dropped,
    /// Messages that were to be sent as datagrams and went over a stream, because datagrams do not
    /// get through, or did not yet.
    datagrams_detoured,
    /// Bytes sent, of connections and of datagrams, with the headers of IPv4 and UDP.
    wire_bytes_sent,
    /// Bytes received, counted in the same way.
    wire_bytes_received,
}

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: usize) {
        self.0.fetch_add(count as u64, Ordering::Relaxed);
    }

    pub(crate) fn bump(&self) {
        self.add(1);
    }
}
