use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use selvedge_model::NodeId;

/// Why a transport was not started.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The UDP socket could not be opened or bound.
    #[error("cannot bind the QUIC socket to {listen}")]
    Socket {
        /// The address asked for.
        listen: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The identity could not be loaded into TLS.
    #[error("cannot load the identity into TLS")]
    Tls(#[from] rustls::Error),
    /// The system gave no random bytes.
    #[error("the system gives no random bytes: {0}")]
    Random(String),
}

/// Why a message was not queued. No state changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Longer than [`MAX_MESSAGE`](crate::MAX_MESSAGE), or, as a datagram, than
    /// [`MAX_DATAGRAM`](crate::MAX_DATAGRAM).
    #[error(
        "a message of {len} bytes is longer than allowed: {stream} bytes, or {datagram} as a \
         datagram",
        stream = crate::MAX_MESSAGE,
        datagram = crate::MAX_DATAGRAM
    )]
    TooLong {
        /// The message's length in bytes.
        len: usize,
    },
    /// Too many requests wait already.
    #[error("the transport is busy: too many messages wait to be sent")]
    Busy,
    /// The transport was closed.
    #[error("the transport is closed")]
    Closed,
}

/// Why there is no connection to a partner.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConnectError {
    /// No address is known and it is not connected.
    #[error("no address of node {node} is known")]
    NoAddress {
        /// The partner.
        node: NodeId,
    },
    /// Every address was tried in vain.
    #[error("cannot reach node {node}: {}", Attempts(attempts))]
    Unreachable {
        /// The partner.
        node: NodeId,
        /// Each address tried, and why it did not work.
        attempts: Vec<(SocketAddr, DialError)>,
    },
    /// Too many connections are open.
    #[error("cannot connect to node {node}: too many connections are open")]
    TooMany {
        /// The partner.
        node: NodeId,
    },
    /// The transport was closed.
    #[error("cannot connect to node {node}: the transport is closed")]
    Closed {
        /// The partner.
        node: NodeId,
    },
}

/// Why one address did not lead to the partner.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// Nobody answered in time.
    #[error("no answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// Another node lives there.
    #[error("another node answers there: {found}")]
    WrongIdentity {
        /// The identity that was found.
        found: NodeId,
    },
    /// It speaks another version of the protocol.
    #[error("it speaks version {theirs} of the transport protocol, this agent version {ours}")]
    Version {
        /// This agent's version.
        ours: u16,
        /// The partner's version.
        theirs: u16,
    },
    /// It answered, but does not want this node.
    #[error("it refused: {0}")]
    Refused(String),
    /// It is no agent, or does not follow the protocol.
    #[error("it does not follow the transport protocol: {0}")]
    Protocol(String),
    /// The connection could not be made or was lost.
    #[error("{0}")]
    Lost(String),
}

struct Attempts<'a>(&'a [(SocketAddr, DialError)]);

impl fmt::Display for Attempts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (addr, why)) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{addr}: {why}")?;
        }
        Ok(())
    }
}
