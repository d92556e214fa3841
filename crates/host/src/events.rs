//! What the kernel says about interfaces and their addresses, as it happens.
//!
//! [`Events`] hears the kernel's notifications and tells the *latest* state of what they concern:
//! what changed several times before anybody asked is told once, and what changed back is not told
//! at all. So memory is bounded by the number of interfaces, however slowly somebody listens.
//!
//! A lost carrier is heard within milliseconds. The kernel itself holds back: of interfaces that
//! stand on no other it passes on one wave of carrier changes a second, so that the second of two
//! losses within a second may be heard late.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use nix::libc;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use crate::netlink::{self, Link};

/// Why the kernel's notifications cannot be heard.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such socket.
    #[error("cannot open a netlink socket for the kernel's notifications: {0}")]
    Open(#[source] io::Error),
    /// The socket broke. It is of no more use.
    #[error("cannot hear the kernel's notifications any more: {0}")]
    Broken(#[source] io::Error),
}

/// What has changed. Interfaces are known by their number: names wander.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An interface has appeared, or is not as it was: carrier, name, bridge and so on.
    Link(Link),
    /// An interface is gone.
    LinkGone {
        /// Its number.
        index: u32,
        /// The name it had last.
        name: String,
    },
    /// An address came to an interface, or went.
    Addresses {
        /// The interface's number.
        index: u32,
    },
    /// Everything has to be looked at anew: the first of all changes, and the one that stands for
    /// those that the kernel could not deliver, as they were too many.
    Missed,
}

/// The changes in one network namespace.
///
/// The order of use: [`Events::open`], then [`Events::next`]; at each [`Change::Missed`] (the
/// first is one) read the interfaces by [`netlink::Netlink::links`]. What changes meanwhile comes
/// as a change of its own.
pub struct Events {
    socket: TokioSocket,
    news: News,
}

/// What the kernel may hold for us until we read it: some thousand notifications.
const BUFFER: u32 = 4 << 20;

/// As many notifications are read in one go. There may be no end of them.
const GULP: usize = 1000;

impl Events {
    /// Listens in the network namespace of the calling thread.
    ///
    /// # Errors
    /// If there is no such socket.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn open() -> Result<Self, Error> {
        Self::with_buffer(BUFFER)
    }

    fn with_buffer(bytes: u32) -> Result<Self, Error> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE).map_err(Error::Open)?;
        let inner = socket.socket_mut();
        inner.set_rx_buf_sz(bytes).map_err(Error::Open)?;
        inner.bind(&SocketAddr::new(0, 0)).map_err(Error::Open)?;
        for group in [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr]
        {
            inner.add_membership(group as u32).map_err(Error::Open)?;
        }
        Ok(Self { socket, news: News::default() })
    }

    /// The next change. Nothing is lost if the future is dropped before it is ready.
    ///
    /// # Errors
    /// If the socket broke.
    pub async fn next(&mut self) -> Result<Change, Error> {
        loop {
            if let Some(change) = self.news.pop() {
                return Ok(change);
            }
            let first = self.socket.recv_from_full().await;
            self.take(first)?;
            self.drain()?;
        }
    }

    /// Reads what else is there without waiting.
    fn drain(&mut self) -> Result<(), Error> {
        for _ in 0..GULP {
            let received = self.socket.socket_ref().recv_from_full();
            if received.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
                break;
            }
            self.take(received)?;
        }
        Ok(())
    }

    fn take(&mut self, received: io::Result<(Vec<u8>, SocketAddr)>) -> Result<(), Error> {
        match received {
            // Only the kernel's own word counts.
            Ok((bytes, sender)) if sender.port_number() == 0 => self.news.read(&bytes),
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => self.news.miss(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::Broken(error)),
        }
        Ok(())
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").field("news", &self.news).finish_non_exhaustive()
    }
}

/// What is to be told, and what was told last. Pure.
#[derive(Debug)]
struct News {
    missed: bool,
    links: BTreeMap<u32, Fresh>,
    addresses: BTreeSet<u32>,
    told: BTreeMap<u32, Link>,
}

/// What is new of an interface.
#[derive(Debug)]
enum Fresh {
    Changed(Link),
    Gone(String),
}

impl Default for News {
    fn default() -> Self {
        let (links, addresses, told) = Default::default();
        Self { missed: true, links, addresses, told }
    }
}

impl News {
    fn pop(&mut self) -> Option<Change> {
        if std::mem::take(&mut self.missed) {
            return Some(Change::Missed);
        }
        if let Some((index, fresh)) = self.links.pop_first() {
            return Some(self.tell(index, fresh));
        }
        self.addresses.pop_first().map(|index| Change::Addresses { index })
    }

    fn tell(&mut self, index: u32, fresh: Fresh) -> Change {
        match fresh {
            Fresh::Changed(link) => {
                self.told.insert(index, link.clone());
                Change::Link(link)
            }
            Fresh::Gone(name) => {
                self.told.remove(&index);
                Change::LinkGone { index, name }
            }
        }
    }

    /// Whoever looks at everything anew needs nothing of what came before.
    fn miss(&mut self) {
        *self = Self::default();
    }

    /// A datagram holds one notification or several, each at a multiple of four bytes. What
    /// cannot be read may have been anything.
    fn read(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) else {
                return self.miss();
            };
            let length = (message.header.length as usize).next_multiple_of(4).max(4);
            bytes = bytes.get(length..).unwrap_or_default();
            if let NetlinkPayload::InnerMessage(inner) = message.payload {
                self.note(&inner);
            }
        }
    }

    #[allow(
        clippy::wildcard_enum_match_arm,
        reason = "the enum is rtnetlink's; it lists all that there is, and grows"
    )]
    fn note(&mut self, message: &RouteNetlinkMessage) {
        match message {
            // A bridge speaks of its ports in these words too, with its own family: a port that
            // leaves it is not gone.
            RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link)
                if link.header.interface_family != AddressFamily::Unspec => {}
            RouteNetlinkMessage::NewLink(_) => {
                if let Some(link) = netlink::link_of(message) {
                    self.compare(link);
                }
            }
            RouteNetlinkMessage::DelLink(link) => {
                let index = link.header.index;
                let link = netlink::link_of(&RouteNetlinkMessage::NewLink(link.clone()));
                let name = link.map(|link| link.name).unwrap_or_default();
                self.links.insert(index, Fresh::Gone(name));
                self.addresses.remove(&index);
            }
            RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) => {
                self.addresses.insert(address.header.index);
            }
            _ => {}
        }
    }

    /// Only what differs from what was told last is to be told.
    fn compare(&mut self, link: Link) {
        let index = link.index;
        match self.told.get(&index) == Some(&link) {
            true => drop(self.links.remove(&index)),
            false => drop(self.links.insert(index, Fresh::Changed(link))),
        }
    }
}

#[cfg(test)]
mod tests;
