//! The server: one socket for UDP and one for TCP at one address.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::answer::{Limit, answer};
use crate::zone::Zone;

/// The longest query that is read, in bytes.
const QUERY_MAX: usize = 4096;
/// How many connections there are at most; more wait to be accepted.
const CONNECTIONS: usize = 32;
/// How many of them one address may have; more are closed at once.
const CONNECTIONS_EACH: usize = 4;
/// How long a connection may last, busy or not: others wait for its place.
const LIFETIME: Duration = Duration::from_secs(60);
/// How long a connection may be idle, or take for one message (RFC 7766, section 6.2.3).
const IDLE: Duration = Duration::from_secs(10);
/// The pause after an error of a socket, so that one that lasts does not fill the log or the CPU.
const PAUSE: Duration = Duration::from_secs(1);

/// Why a server cannot be started. Nothing is left behind.
#[derive(Debug)]
pub struct ServeError {
    /// Where it was to listen.
    pub address: SocketAddr,
    /// What the system said.
    pub source: io::Error,
}

impl std::fmt::Display for ServeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot answer DNS questions at {}: {}", self.address, self.source)
    }
}

impl std::error::Error for ServeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// A server that listens.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Server {
    /// Listens at an address; with port 0, at one that is free for both.
    ///
    /// # Errors
    /// If the address is not this host's, or its port is taken or forbidden.
    pub async fn bind(address: SocketAddr) -> Result<Self, ServeError> {
        let refused = |source| ServeError { address, source };
        let tcp = TcpListener::bind(address).await.map_err(refused)?;
        let address = tcp.local_addr().map_err(refused)?;
        let udp = UdpSocket::bind(address).await.map_err(refused)?;
        Ok(Self { address, udp, tcp })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers with the latest of `zones`, until it is dropped.
    pub async fn run(self, zones: watch::Receiver<Arc<Zone>>) {
        let Self { address, udp, tcp } = self;
        tokio::join!(datagrams(&udp, zones.clone(), address), connections(&tcp, zones, address));
    }
}

async fn datagrams(socket: &UdpSocket, zones: watch::Receiver<Arc<Zone>>, address: SocketAddr) {
    let mut buffer = vec![0; QUERY_MAX];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                warn!(%address, %error, "cannot receive DNS questions");
                sleep(PAUSE).await;
                continue;
            }
        };
        let zone = zones.borrow().clone();
        if !zone.serves(from.ip()) {
            debug!(%from, "a DNS question from outside of the meshes is not answered");
            continue;
        }
        let Some(response) = answer(&zone, &buffer[..length], Limit::Datagram) else { continue };
        if let Err(error) = socket.send_to(&response, from).await {
            debug!(%from, %error, "a DNS answer was not sent");
        }
    }
}

async fn connections(listener: &TcpListener, zones: watch::Receiver<Arc<Zone>>, at: SocketAddr) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let guests = Arc::new(Guests::default());
    // Dropped with the server, and all connections with it.
    let mut tasks = JoinSet::new();
    loop {
        // The semaphore is never closed.
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        while tasks.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, from)) if zones.borrow().serves(from.ip()) => {
                let Some(guest) = guests.admit(from.ip()) else {
                    debug!(%from, "an address has too many connections, one more is closed");
                    continue;
                };
                let talk = converse(stream, zones.clone());
                tasks.spawn(async move {
                    let _held = (permit, guest);
                    // Done or not, it ends here.
                    _ = timeout(LIFETIME, talk).await;
                });
            }
            Ok((_, from)) => debug!(%from, "a connection from outside of the meshes is closed"),
            Err(error) => {
                warn!(address = %at, %error, "cannot accept DNS connections");
                sleep(PAUSE).await;
            }
        }
    }
}

/// How many connections each address has.
#[derive(Debug, Default)]
struct Guests(Mutex<BTreeMap<IpAddr, usize>>);

/// One connection among those of an address, until it is dropped.
#[derive(Debug)]
struct Guest {
    guests: Arc<Guests>,
    address: IpAddr,
}

impl Guests {
    /// `None` if the address has as many as it may have.
    fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Guest> {
        let mut counts = self.counts();
        let count = counts.entry(address).or_default();
        if *count == CONNECTIONS_EACH {
            return None;
        }
        *count += 1;
        Some(Guest { guests: Arc::clone(self), address })
    }

    /// Nothing panics while it is held, and a count would not be broken by it.
    fn counts(&self) -> MutexGuard<'_, BTreeMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut counts = self.guests.counts();
        let left = counts.remove(&self.address).unwrap_or_default().saturating_sub(1);
        if left > 0 {
            counts.insert(self.address, left);
        }
    }
}

/// Answers the queries of one connection, one after the other.
async fn converse(mut stream: TcpStream, zones: watch::Receiver<Arc<Zone>>) {
    while let Ok(Ok(query)) = timeout(IDLE, receive(&mut stream)).await {
        let zone = zones.borrow().clone();
        let Some(response) = answer(&zone, &query, Limit::Stream) else { return };
        if !matches!(timeout(IDLE, send(&mut stream, &response)).await, Ok(Ok(()))) {
            return;
        }
    }
}

/// A message with its length before it (RFC 1035, section 4.2.2).
async fn receive(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > QUERY_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut query = vec![0; length];
    stream.read_exact(&mut query).await?;
    Ok(query)
}

async fn send(stream: &mut TcpStream, response: &[u8]) -> io::Result<()> {
    let length = u16::try_from(response.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    stream.write_all(&[&length.to_be_bytes(), response].concat()).await
}
