//! QUIC between agents, identities checked.
//!
//! A [`Transport`] owns one UDP port. Both ends of a connection prove their Ed25519 identity by
//! raw public keys (RFC 7250) in the TLS handshake; a dial names the identity that it expects,
//! and an [`AccessList`] that may change at any time says who is served. One message is one
//! unidirectional stream of bounded length.
//!
//! Delivery is best effort: a message is dropped, and counted, when its partner cannot be reached
//! or its queue is full. What must arrive is repeated by the protocol above.
//!
//! ```text
//!  send, connect ──▶ hub ──▶ writer ══▶ one connection per partner ══▶ reader ──▶ Received
//! ```

mod access;
mod error;
mod hello;
mod hub;
mod link;
#[cfg(test)]
mod tests;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use selvedge_model::NodeId;
use tokio::sync::{mpsc, oneshot, watch};
use zeroize::Zeroizing;

pub use crate::access::{Access, AccessList};
pub use crate::error::{BindError, ConnectError, DialError, SendError};
pub use crate::hello::PROTOCOL_VERSION;

/// The greatest message, in bytes.
pub const MAX_MESSAGE: usize = 1024 * 1024;

/// The greatest message that a stranger may send, in bytes.
pub const MAX_STRANGER_MESSAGE: usize = 16 * 1024;

/// Requests that wait for the hub, and received messages that wait for the owner.
const QUEUE: usize = 1024;

/// What a [`Transport`] is made of.
pub struct Config {
    /// The address of the UDP socket. `[::]` serves IPv4 too, and falls back to `0.0.0.0` on a
    /// host without IPv6. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// The seed of the Ed25519 identity (RFC 8032).
    pub secret: Zeroizing<[u8; 32]>,
    /// Who is served; a change takes effect on live connections at once.
    pub access: watch::Receiver<AccessList>,
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
}

/// A handle to the endpoint. When the last one is dropped the connections are closed.
#[derive(Clone, Debug)]
pub struct Transport {
    node: NodeId,
    local: SocketAddr,
    requests: mpsc::Sender<hub::Request>,
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
        let endpoint = tls::endpoint(&keys, config.listen)?;
        let local = endpoint
            .local_addr()
            .map_err(|source| BindError::Socket { listen: config.listen, source })?;
        let (requests, from_handles) = mpsc::channel(QUEUE);
        let (inbox, received) = mpsc::channel(QUEUE);
        let counters = Arc::new(Counters::default());
        let hub = hub::Hub::new(endpoint, keys, config.access, inbox, counters.clone())?;
        tokio::spawn(hub.run(from_handles));
        Ok((Self { node, local, requests, counters }, received))
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
        let request = hub::Request::Send { to, addrs: addrs.to_vec(), bytes };
        self.requests.try_send(request).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => SendError::Busy,
            mpsc::error::TrySendError::Closed(_) => SendError::Closed,
        })
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

    /// Says goodbye to all partners and stops serving; waits for a fifth of a second at most.
    pub async fn close(&self) {
        let (reply, answer) = oneshot::channel();
        if self.requests.send(hub::Request::Close { reply }).await.is_ok() {
            answer.await.unwrap_or_default();
        }
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> CounterValues {
        self.counters.read()
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
            fn read(&self) -> CounterValues {
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
