//! What the kernel's WireGuard is told and tells (`include/uapi/linux/wireguard.h`), as bytes.
//!
//! A message and each of its attributes are limited to 64 KiB, so thousands of peers, or of one
//! peer's prefixes, take several. In both directions a peer that does not fit goes on in the next
//! message under the same key.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::{Duration, SystemTime};

use selvedge_model::{Prefix, WgKey};

use super::super::plan::{Step, Update};
use super::super::{PeerSpec, PeerStatus};
use crate::netlink::attribute::{Malformed, attributes, exactly, put, put_nested};

/// The name of the part, and the version of its commands.
pub(super) const FAMILY: (&str, u8) = ("wireguard", 1);
pub(super) const GET_DEVICE: u8 = 0;
pub(super) const SET_DEVICE: u8 = 1;

const IFINDEX: u16 = 1;
const PRIVATE_KEY: u16 = 3;
const PUBLIC_KEY: u16 = 4;
const LISTEN_PORT: u16 = 6;
const FWMARK: u16 = 7;
const PEERS: u16 = 8;

const PEER_PUBLIC_KEY: u16 = 1;
const PEER_FLAGS: u16 = 3;
const PEER_ENDPOINT: u16 = 4;
const PEER_KEEPALIVE: u16 = 5;
const PEER_LAST_HANDSHAKE: u16 = 6;
const PEER_RX_BYTES: u16 = 7;
const PEER_TX_BYTES: u16 = 8;
const PEER_ALLOWED: u16 = 9;

const REMOVE_ME: u32 = 1;
const REPLACE_ALLOWED: u32 = 2;
const UPDATE_ONLY: u32 = 4;

const ALLOWED_FAMILY: u16 = 1;
const ALLOWED_ADDR: u16 = 2;
const ALLOWED_LENGTH: u16 = 3;

/// So many bytes of peers are in a message, or one piece of a peer more.
const MESSAGE: usize = 16 * 1024;
/// So many prefixes are in a piece of a peer, of some 40 bytes each.
const PIECE: usize = 128;

/// The command that gives a device what belongs to itself; `None` leaves it.
pub(super) fn device(
    index: u32,
    key: Option<&[u8; 32]>,
    port: Option<u16>,
    mark: Option<u32>,
) -> Vec<u8> {
    let mut bytes = which(index);
    if let Some(key) = key {
        put(&mut bytes, PRIVATE_KEY, key);
    }
    if let Some(port) = port {
        put(&mut bytes, LISTEN_PORT, &port.to_ne_bytes());
    }
    if let Some(mark) = mark {
        put(&mut bytes, FWMARK, &mark.to_ne_bytes());
    }
    bytes
}

/// What says of which device the rest is.
pub(super) fn which(index: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    put(&mut bytes, IFINDEX, &index.to_ne_bytes());
    bytes
}

/// The commands that take these steps, in their order.
pub(super) fn peers(index: u32, steps: &[Step<'_>]) -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    let mut filled = Vec::new();
    let mut close = |filled: &mut Vec<u8>| {
        let mut bytes = which(index);
        put_nested(&mut bytes, PEERS, &std::mem::take(filled));
        messages.push(bytes);
    };
    for piece in steps.iter().flat_map(pieces) {
        put_nested(&mut filled, 0, &piece);
        if filled.len() >= MESSAGE {
            close(&mut filled);
        }
    }
    if !filled.is_empty() {
        close(&mut filled);
    }
    messages
}

/// A step as one peer in a message, or as several under one key.
fn pieces(step: &Step<'_>) -> Vec<Vec<u8>> {
    match *step {
        Step::Remove(key) => vec![piece(key, REMOVE_ME)],
        Step::Add(key, spec) => {
            let whole = Update {
                endpoint: spec.endpoint,
                keepalive: spec.keepalive.map(Some),
                allowed: Some(spec),
            };
            changed(key, 0, &whole)
        }
        Step::Update(key, update) => changed(key, UPDATE_ONLY, &update),
    }
}

fn changed(key: WgKey, flags: u32, update: &Update<'_>) -> Vec<Vec<u8>> {
    let replace = if update.allowed.is_some() { REPLACE_ALLOWED } else { 0 };
    let mut first = piece(key, flags | replace);
    if let Some(endpoint) = update.endpoint {
        put(&mut first, PEER_ENDPOINT, &socket_address(endpoint));
    }
    if let Some(keepalive) = update.keepalive {
        put(&mut first, PEER_KEEPALIVE, &keepalive.unwrap_or(0).to_ne_bytes());
    }
    let mut pieces = vec![first];
    let prefixes: Vec<Prefix> =
        update.allowed.into_iter().flat_map(|spec| &spec.allowed).copied().collect();
    for (number, chunk) in prefixes.chunks(PIECE).enumerate() {
        // Only the first piece replaces; the others add to it.
        if number > 0 {
            pieces.push(piece(key, UPDATE_ONLY));
        }
        let last = pieces.last_mut().expect("there is the first one");
        put_nested(last, PEER_ALLOWED, &allowed(chunk));
    }
    pieces
}

fn piece(key: WgKey, flags: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    put(&mut bytes, PEER_PUBLIC_KEY, key.as_bytes());
    if flags != 0 {
        put(&mut bytes, PEER_FLAGS, &flags.to_ne_bytes());
    }
    bytes
}

fn allowed(prefixes: &[Prefix]) -> Vec<u8> {
    let mut list = Vec::new();
    for prefix in prefixes.iter().map(Prefix::network) {
        let mut bytes = Vec::new();
        put(&mut bytes, ALLOWED_FAMILY, &family(prefix.addr()).to_ne_bytes());
        match prefix.addr() {
            IpAddr::V4(addr) => put(&mut bytes, ALLOWED_ADDR, &addr.octets()),
            IpAddr::V6(addr) => put(&mut bytes, ALLOWED_ADDR, &addr.octets()),
        }
        put(&mut bytes, ALLOWED_LENGTH, &[prefix.len()]);
        put_nested(&mut list, 0, &bytes);
    }
    list
}

const fn family(addr: IpAddr) -> u16 {
    match addr {
        IpAddr::V4(_) => 2,
        IpAddr::V6(_) => 10,
    }
}

/// `struct sockaddr_in` or `sockaddr_in6`: the port is in the order of the network.
fn socket_address(at: SocketAddr) -> Vec<u8> {
    let mut bytes = family(at.ip()).to_ne_bytes().to_vec();
    bytes.extend(at.port().to_be_bytes());
    match at {
        SocketAddr::V4(at) => {
            bytes.extend(at.ip().octets());
            bytes.extend([0; 8]);
        }
        SocketAddr::V6(at) => {
            bytes.extend([0; 4]);
            bytes.extend(at.ip().octets());
            bytes.extend(at.scope_id().to_ne_bytes());
        }
    }
    bytes
}

/// A device as the kernel tells of it, put together from the messages of one dump.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    pub(super) public_key: Option<WgKey>,
    pub(super) port: u16,
    pub(super) mark: u32,
    pub(super) peers: BTreeMap<WgKey, ToldPeer>,
}

/// A peer of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ToldPeer {
    pub(super) spec: PeerSpec,
    /// When the last handshake was completed, since 1970; zero: never.
    last_handshake: Duration,
    rx: u64,
    tx: u64,
}

impl Told {
    /// Takes the attributes of the next message.
    ///
    /// # Errors
    /// If they are malformed. What kind of attribute is not known is passed over.
    pub fn add(&mut self, message: &[u8]) -> Result<(), Malformed> {
        for attribute in attributes(message) {
            match attribute? {
                (PUBLIC_KEY, value) => self.public_key = Some(WgKey(exactly(value)?)),
                (LISTEN_PORT, value) => self.port = u16::from_ne_bytes(exactly(value)?),
                (FWMARK, value) => self.mark = u32::from_ne_bytes(exactly(value)?),
                (PEERS, value) => {
                    for peer in attributes(value) {
                        self.add_peer(peer?.1)?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A piece of a peer: what it does not say was said before.
    fn add_peer(&mut self, piece: &[u8]) -> Result<(), Malformed> {
        let keys = attributes(piece).filter_map(Result::ok);
        let key = keys.filter(|(kind, _)| *kind == PEER_PUBLIC_KEY).map(|(_, value)| value).next();
        let key = WgKey(exactly(key.ok_or(Malformed("a peer has no key"))?)?);
        let peer = self.peers.entry(key).or_default();
        for attribute in attributes(piece) {
            peer.add(attribute?)?;
        }
        Ok(())
    }

    /// The peers at this time.
    pub(super) fn statuses(&self, now: SystemTime) -> Vec<PeerStatus> {
        let since = |peer: &ToldPeer| {
            let at = SystemTime::UNIX_EPOCH.checked_add(peer.last_handshake)?;
            // A clock that was set back makes it just now.
            (!peer.last_handshake.is_zero()).then(|| now.duration_since(at).unwrap_or_default())
        };
        let status = |(key, peer): (&WgKey, &ToldPeer)| PeerStatus {
            key: *key,
            endpoint: peer.spec.endpoint,
            last_handshake: since(peer),
            rx: peer.rx,
            tx: peer.tx,
        };
        self.peers.iter().map(status).collect()
    }
}

impl ToldPeer {
    fn add(&mut self, (kind, value): (u16, &[u8])) -> Result<(), Malformed> {
        match kind {
            PEER_ENDPOINT => self.spec.endpoint = told_address(value)?,
            PEER_KEEPALIVE => {
                let seconds = u16::from_ne_bytes(exactly(value)?);
                self.spec.keepalive = (seconds > 0).then_some(seconds);
            }
            PEER_LAST_HANDSHAKE => self.last_handshake = told_time(value)?,
            PEER_RX_BYTES => self.rx = u64::from_ne_bytes(exactly(value)?),
            PEER_TX_BYTES => self.tx = u64::from_ne_bytes(exactly(value)?),
            PEER_ALLOWED => {
                for prefix in attributes(value) {
                    self.spec.allowed.insert(told_prefix(prefix?.1)?);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Of a family that is not known there is no address.
fn told_address(value: &[u8]) -> Result<Option<SocketAddr>, Malformed> {
    let short = || Malformed("an endpoint is cut off");
    let at = |from: usize| value.get(from..).ok_or_else(short);
    let number = |from| at(from)?.first_chunk::<2>().copied().ok_or_else(short);
    let port = u16::from_be_bytes(number(2)?);
    Ok(match u16::from_ne_bytes(number(0)?) {
        2 => {
            let ip = Ipv4Addr::from(*at(4)?.first_chunk::<4>().ok_or_else(short)?);
            Some(SocketAddr::from((ip, port)))
        }
        10 => {
            let ip = Ipv6Addr::from(*at(8)?.first_chunk::<16>().ok_or_else(short)?);
            let scope = u32::from_ne_bytes(*at(24)?.first_chunk::<4>().ok_or_else(short)?);
            Some(SocketAddrV6::new(ip, port, 0, scope).into())
        }
        _ => None,
    })
}

/// `struct __kernel_timespec`: seconds and nanoseconds, 64 bits each.
fn told_time(value: &[u8]) -> Result<Duration, Malformed> {
    let bytes = exactly::<16>(value)?;
    let [seconds, nanoseconds] = [0, 8].map(|at| {
        let number = bytes[at..].first_chunk::<8>().copied().unwrap_or_default();
        u64::try_from(i64::from_ne_bytes(number)).unwrap_or(0)
    });
    Ok(Duration::from_secs(seconds).saturating_add(Duration::from_nanos(nanoseconds)))
}

fn told_prefix(bytes: &[u8]) -> Result<Prefix, Malformed> {
    let (mut addr, mut length) = (None, None);
    for attribute in attributes(bytes) {
        match attribute? {
            (ALLOWED_ADDR, value) if value.len() == 4 => {
                addr = Some(IpAddr::from(exactly::<4>(value)?));
            }
            (ALLOWED_ADDR, value) => addr = Some(IpAddr::from(exactly::<16>(value)?)),
            (ALLOWED_LENGTH, value) => length = Some(exactly::<1>(value)?[0]),
            _ => {}
        }
    }
    let prefix = addr.zip(length).and_then(|(addr, length)| Prefix::new(addr, length));
    prefix.ok_or(Malformed("a prefix has no address, or no length of its family"))
}

#[cfg(test)]
mod tests;
