//! The first message in either direction. TLS tells a client that it is connected before the
//! server has looked at it; only the server's hello says that it is welcome.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use quinn::{Connection, ConnectionError, VarInt};
use selvedge_model::NodeId;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use crate::tls::{self, Keys};
use crate::{Access, AccessList, DialError};

/// The version of the transport protocol: the hello, and one message per stream after it. Agents of
/// adjacent versions talk to each other in the older one's.
pub const PROTOCOL_VERSION: u16 = 1;

/// How long a handshake may take, the hello included.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(5);

const MAGIC: &[u8; 8] = b"selvedge";
const HELLO_LEN: usize = 18;
/// Later versions may say more.
const MAX_HELLO_LEN: usize = 256;

/// How many characters of the other side's reason for a close are kept.
const MAX_REASON: usize = 200;

/// Application codes of QUIC connection closes.
pub(crate) mod code {
    use quinn::VarInt;

    pub(crate) const DONE: VarInt = VarInt::from_u32(0);
    pub(crate) const REFUSED: VarInt = VarInt::from_u32(1);
    pub(crate) const VERSION: VarInt = VarInt::from_u32(2);
    pub(crate) const PROTOCOL: VarInt = VarInt::from_u32(3);
    pub(crate) const LIMIT: VarInt = VarInt::from_u32(4);
    pub(crate) const DUPLICATE: VarInt = VarInt::from_u32(5);
    pub(crate) const STALLED: VarInt = VarInt::from_u32(6);
}

/// What one side says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) version: u16,
    /// Drawn at random by each start of an agent.
    pub(crate) instance: u64,
}

impl Hello {
    fn encode(self) -> [u8; HELLO_LEN] {
        let mut bytes = [0; HELLO_LEN];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..10].copy_from_slice(&self.version.to_be_bytes());
        bytes[10..].copy_from_slice(&self.instance.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(MAGIC)?;
        let (version, rest) = rest.split_first_chunk()?;
        let version = u16::from_be_bytes(*version);
        // Only the magic and the version are the same in all versions.
        let instance = rest.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        (version != PROTOCOL_VERSION || rest.len() >= 8).then_some(Self { version, instance })
    }
}

/// A connection whose two sides know and want each other.
#[derive(Debug)]
pub(crate) struct Established {
    pub(crate) connection: Connection,
    pub(crate) node: NodeId,
    pub(crate) dialled: bool,
    pub(crate) instance: u64,
}

/// A connection that was dialled and over which nothing was said yet.
#[derive(Debug)]
pub(crate) struct Dialled {
    connection: Connection,
    node: NodeId,
    /// When the handshake has taken too long.
    until: Instant,
}

/// Dials `addr` and expects `node` there, or whoever it is. The other side takes the connection
/// for one only once it hears [`Dialled::greet`].
pub(crate) async fn dial(
    endpoint: quinn::Endpoint,
    keys: Keys,
    node: Option<NodeId>,
    addr: SocketAddr,
) -> Result<Dialled, DialError> {
    let until = Instant::now() + HANDSHAKE;
    let (config, found) = keys.dial(node).map_err(|error| DialError::Lost(error.to_string()))?;
    let connecting = endpoint
        .connect_with(config, addr, "selvedge")
        .map_err(|error| DialError::Lost(error.to_string()))?;
    let expected = node.map(|node| (node, &found));
    let connected = timeout_at(until, connecting).await;
    let connected = connected.map_err(|_| DialError::Timeout(HANDSHAKE))?;
    let connection = connected.map_err(|error| explain(error, expected))?;
    let node = tls::peer(&connection)
        .ok_or_else(|| DialError::Protocol("it proved no identity".to_owned()))?;
    Ok(Dialled { connection, node, until })
}

impl Dialled {
    /// Says hello and hears the other side's.
    pub(crate) async fn greet(self, hello: Hello) -> Result<Established, DialError> {
        let Self { connection, node, until } = self;
        let exchanged = timeout_at(until, exchange(&connection, hello)).await;
        let instance = exchanged.unwrap_or(Err(DialError::Timeout(HANDSHAKE)))?.instance;
        Ok(Established { connection, node, dialled: true, instance })
    }
}

/// Answers a dial, if the identity that it proves is served.
pub(crate) async fn accept(
    incoming: quinn::Incoming,
    hello: Hello,
    access: watch::Receiver<AccessList>,
) -> Result<Established, DialError> {
    let handshake = async {
        let connection = incoming.await.map_err(|error| explain(error, None))?;
        let node = tls::peer(&connection)
            .ok_or_else(|| DialError::Protocol("it proved no identity".to_owned()))?;
        if access.borrow().of(&node) == Access::Refused {
            connection.close(code::REFUSED, b"this node is not welcome here");
            return Err(DialError::Refused(format!("node {node} is not welcome here")));
        }
        let theirs = exchange(&connection, hello).await?;
        Ok(Established { connection, node, dialled: false, instance: theirs.instance })
    };
    timeout(HANDSHAKE, handshake).await.unwrap_or(Err(DialError::Timeout(HANDSHAKE)))
}

/// Says hello and hears it. Both sides speak at once, so that each can name both versions.
async fn exchange(connection: &Connection, ours: Hello) -> Result<Hello, DialError> {
    let spoken = async {
        let mut stream = connection.open_uni().await.map_err(|error| explain(error, None))?;
        let lost = |error: quinn::WriteError| lost(connection, &error);
        stream.write_all(&ours.encode()).await.map_err(lost)?;
        // Fails only if the stream was closed before, which nobody else can do.
        stream.finish().map_err(|error| DialError::Lost(error.to_string()))
    };
    let heard = async {
        let mut stream = connection.accept_uni().await.map_err(|error| explain(error, None))?;
        let read = stream.read_to_end(MAX_HELLO_LEN).await;
        let bytes = read.map_err(|error| lost(connection, &error))?;
        Hello::decode(&bytes).ok_or_else(|| DialError::Protocol("no hello".to_owned()))
    };
    let result = tokio::try_join!(spoken, heard).map(|((), hello)| hello);
    let result = result.and_then(|theirs| common_version(ours, theirs));
    close_if_failed(connection, &result);
    result
}

fn common_version(ours: Hello, theirs: Hello) -> Result<Hello, DialError> {
    match ours.version.abs_diff(theirs.version) <= 1 {
        true => Ok(theirs),
        false => Err(DialError::Version { ours: ours.version, theirs: theirs.version }),
    }
}

fn close_if_failed(connection: &Connection, result: &Result<Hello, DialError>) {
    match result {
        Ok(_) => {}
        Err(DialError::Version { ours, theirs }) => {
            // The other side's own error is made from these bytes; see `explain`.
            let [a, b] = ours.to_be_bytes();
            let [c, d] = theirs.to_be_bytes();
            connection.close(code::VERSION, &[a, b, c, d]);
        }
        Err(error) => connection.close(code::PROTOCOL, error.to_string().as_bytes()),
    }
}

/// Why a stream ended, in the words of the connection if that is closed.
fn lost(connection: &Connection, error: &dyn std::error::Error) -> DialError {
    match connection.close_reason() {
        Some(reason) => explain(reason, None),
        None => DialError::Protocol(error.to_string()),
    }
}

/// What a lost connection means to whoever dialled it; `expected` is the identity that was
/// dialled and the one that was found.
fn explain(
    error: ConnectionError,
    expected: Option<(NodeId, &Arc<OnceLock<NodeId>>)>,
) -> DialError {
    if let Some((expected, found)) = expected
        && let Some(found) = found.get()
        && *found != expected
    {
        return DialError::WrongIdentity { found: *found };
    }
    match error {
        ConnectionError::ApplicationClosed(close) => explain_close(close.error_code, &close.reason),
        ConnectionError::TimedOut => DialError::Timeout(HANDSHAKE),
        ConnectionError::VersionMismatch
        | ConnectionError::TransportError(_)
        | ConnectionError::ConnectionClosed(_)
        | ConnectionError::Reset
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted => DialError::Lost(printable(&error.to_string())),
    }
}

fn explain_close(code: VarInt, reason: &[u8]) -> DialError {
    if let (code::VERSION, Some([a, b, c, d])) = (code, reason.first_chunk()) {
        let (theirs, ours) = (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]));
        return DialError::Version { ours, theirs };
    }
    let text = printable(&String::from_utf8_lossy(reason));
    match code {
        code::PROTOCOL => DialError::Protocol(text),
        _ => DialError::Refused(text),
    }
}

/// What the other side says, fit for the operator's terminal: one line of bounded length.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_REASON).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hello_survives_its_encoding() {
        let hello = Hello { version: PROTOCOL_VERSION, instance: u64::MAX - 1 };
        assert_eq!(Hello::decode(&hello.encode()), Some(hello));
        let longer = [&hello.encode()[..], b"more"].concat();
        assert_eq!(Hello::decode(&longer), Some(hello), "later fields are skipped");
    }

    #[test]
    fn bad_hellos_are_refused_but_versions_are_read() {
        let hello = Hello { version: PROTOCOL_VERSION, instance: 5 }.encode();
        for len in 0..HELLO_LEN {
            assert_eq!(Hello::decode(&hello[..len]), None, "{len} bytes");
        }
        let other = Hello::decode(b"selvedge\xff\x01").expect("a version is enough");
        assert_eq!(other.version, 0xff01);
        assert_eq!(Hello::decode(b"Selvedge\x00\x01\0\0\0\0\0\0\0\0"), None);
    }

    #[test]
    fn a_close_names_both_versions() {
        let error = explain_close(code::VERSION, &[0, 9, 0, 1]);
        assert_eq!(error, DialError::Version { ours: 1, theirs: 9 });
        assert!(matches!(explain_close(code::VERSION, &[]), DialError::Refused(_)));
    }

    #[test]
    fn a_close_cannot_play_with_the_terminal() {
        let reason = [&b"\x1b[2J\r\nno\x07\xc2\x9b"[..], &[b'x'; 1000]].concat();
        let expected = format!("[2Jno{}", "x".repeat(MAX_REASON - 5));
        assert_eq!(explain_close(code::REFUSED, &reason), DialError::Refused(expected.clone()));
        assert_eq!(explain_close(code::PROTOCOL, &reason), DialError::Protocol(expected));
        // A close of QUIC itself carries a text of the other side too.
        let close = quinn::ConnectionClose {
            error_code: quinn::TransportErrorCode::NO_ERROR,
            frame_type: None,
            reason: reason.into(),
        };
        let error = explain(ConnectionError::ConnectionClosed(close), None);
        let DialError::Lost(text) = error else { panic!("{error:?}") };
        assert!(text.contains("[2Jno") && text.chars().count() == MAX_REASON, "{text:?}");
        assert!(!text.contains(char::is_control), "{text:?}");
    }
}
