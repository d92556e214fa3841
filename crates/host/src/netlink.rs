//! Links, addresses, routes and forwarding entries of the kernel, as plain values.
//!
//! A [`Netlink`] speaks to one network namespace: the one that its socket was opened in. All
//! operations are idempotent: adding what exists and deleting what is absent succeed.

pub(crate) mod attribute;
mod codec;
pub(crate) mod generic;
mod link;
mod rule;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use nix::libc;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REPLACE,
    NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use selvedge_model::Prefix;
use tokio::sync::Mutex;

use crate::netns::{self, Namespace};

pub use attribute::Malformed;
pub use link::{Link, LinkKind, NewLink, Vxlan};
pub use rule::Detour;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// The MAC address under which VXLAN keeps the tunnel endpoints that get flooded frames.
pub const FLOOD: Mac = [0; 6];

/// The table that ordinary routes are in (`RT_TABLE_MAIN`).
pub const MAIN_TABLE: u32 = 254;

/// Why a netlink operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket could not be opened. Nothing was changed.
    #[error("cannot open a netlink socket: {0}")]
    Open(#[source] io::Error),
    /// The namespace could not be entered. Nothing was changed.
    #[error("cannot open a netlink socket: {0}")]
    Namespace(#[from] netns::Error),
    /// The kernel refused. The object that is named was not changed; other objects of the same
    /// call were.
    #[error("cannot {operation} {object}: {source}")]
    Refused {
        /// What was tried.
        operation: &'static str,
        /// On what.
        object: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// No answer came. Whether the object was changed is unknown.
    #[error("cannot {operation} {object}: {reason}")]
    Lost {
        /// What was tried.
        operation: &'static str,
        /// On what.
        object: String,
        /// What happened to the answer.
        reason: &'static str,
    },
    /// The table that was read changed under the reader again and again. Nothing was changed.
    #[error("cannot {0}: the table kept changing while it was read")]
    Unstable(&'static str),
}

impl Error {
    /// Whether the kernel refused for this reason (`E*`).
    #[must_use]
    pub fn is(&self, errno: i32) -> bool {
        matches!(self, Self::Refused { source, .. } if source.raw_os_error() == Some(errno))
    }
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// The interface's index.
    pub index: u32,
    /// The address with the length of its network.
    pub prefix: Prefix,
    /// The kernel's scope: 0 global, 253 link, 254 host.
    pub scope: u8,
    /// The kernel's flags (`IFA_F_*`).
    pub flags: u32,
}

impl Address {
    /// What [`Netlink::add_address`] needs to make the same address again.
    #[must_use]
    pub const fn options(&self) -> AddressOptions {
        AddressOptions {
            no_prefix_route: self.flags & libc::IFA_F_NOPREFIXROUTE != 0,
            no_dad: self.flags & libc::IFA_F_NODAD != 0,
        }
    }

    /// Whether the kernel still looks for duplicates of the address and does not use it yet.
    #[must_use]
    pub const fn is_tentative(&self) -> bool {
        self.flags & libc::IFA_F_TENTATIVE != 0
    }

    /// Whether it is used for a while only: a temporary address of IPv6 (RFC 8981), or one that
    /// is deprecated.
    #[must_use]
    pub const fn is_fleeting(&self) -> bool {
        // Of IPv4 the first bit says something else: that the network has another address here.
        let temporary = self.prefix.addr().is_ipv6() && self.flags & libc::IFA_F_TEMPORARY != 0;
        temporary || self.flags & libc::IFA_F_DEPRECATED != 0
    }
}

/// How an address is added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressOptions {
    /// Make no route to the address's network.
    pub no_prefix_route: bool,
    /// Use the address at once, without looking for duplicates (IPv6 only).
    pub no_dad: bool,
}

/// A unicast route with at most one next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The destination; host bits are ignored.
    pub dst: Prefix,
    /// Index of the interface that packets leave by.
    pub oif: Option<u32>,
    /// The next hop.
    pub gateway: Option<IpAddr>,
    /// Who owns the route (`RTPROT_*`).
    pub protocol: u8,
    /// The routing table.
    pub table: u32,
    /// The preference, lower is better. 0 leaves it to the kernel, which reports 1024 for IPv6.
    pub metric: u32,
    /// The source address of packets that this host sends by this route.
    pub prefsrc: Option<IpAddr>,
}

impl Route {
    /// A route out of the interface `oif` in the main table.
    #[must_use]
    pub const fn on_link(dst: Prefix, oif: u32, protocol: u8) -> Self {
        Self {
            dst,
            oif: Some(oif),
            gateway: None,
            protocol,
            table: MAIN_TABLE,
            metric: 0,
            prefsrc: None,
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.dst.network())?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if let Some(oif) = self.oif {
            write!(f, " dev #{oif}")?;
        }
        write!(f, " table {} proto {}", self.table, self.protocol)
    }
}

/// Which routes to read. The default is all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteFilter {
    /// Only those of this owner (`RTPROT_*`).
    pub protocol: Option<u8>,
    /// Only those of this table.
    pub table: Option<u32>,
}

/// A forwarding entry of a VXLAN interface: frames for `mac` go to the tunnel endpoint `dst`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FdbEntry {
    /// The VXLAN interface's index.
    pub index: u32,
    /// The destination; [`FLOOD`] for frames that are flooded.
    pub mac: Mac,
    /// The tunnel endpoint.
    pub dst: IpAddr,
    /// Whether the entry was configured and not learned.
    pub permanent: bool,
}

/// A table of neighbours: the stations' Ethernet addresses by their IP addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighbourTable {
    /// Whether it is that of ARP, and not that of ND.
    pub is_v4: bool,
    /// How many entries it may hold (`gc_thresh3`).
    pub limit: u32,
    /// How many it holds.
    pub entries: u32,
}

/// A connection to the kernel's routing netlink. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: rtnetlink::Handle,
    /// The kernel refuses to begin a dump on a socket while another is under way.
    dumps: Arc<Mutex<()>>,
}

impl Netlink {
    /// Opens a socket in the network namespace of the calling thread and spawns the task that
    /// reads it on the current Tokio runtime, where it ends with the last clone.
    ///
    /// # Errors
    /// If the socket cannot be opened.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn new() -> Result<Self, Error> {
        let connection = rtnetlink::new_connection_with_strict_check();
        let (mut connection, handle, _) = connection.map_err(Error::Open)?;
        // Only explicit answers count: a stream that just ends means that the socket died, and
        // the end of a dump tells whether it was interrupted.
        connection.set_forward_ack(true);
        connection.set_forward_done(true);
        tokio::spawn(connection);
        Ok(Self { handle, dumps: Arc::default() })
    }

    /// The same in another network namespace; the task runs on the current Tokio runtime.
    ///
    /// # Errors
    /// If the namespace cannot be entered or the socket not be opened.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn in_namespace(namespace: &Namespace) -> Result<Self, Error> {
        let runtime = tokio::runtime::Handle::current();
        namespace.run(move || {
            let _entered = runtime.enter();
            Self::new()
        })?
    }

    /// All interfaces.
    ///
    /// # Errors
    /// If they cannot be read.
    pub async fn links(&self) -> Result<Vec<Link>, Error> {
        let messages = self.dump("list the interfaces", codec::get_links()).await?;
        Ok(messages.iter().filter_map(codec::link).collect())
    }

    /// The interface called `name`, if there is one.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub async fn link(&self, name: &str) -> Result<Option<Link>, Error> {
        let flags = NLM_F_REQUEST | NLM_F_ACK;
        let request = codec::get_link(name);
        let outcome = match self.request(request, flags) {
            Ok(stream) => collect(stream).await,
            Err(failure) => Err(failure),
        };
        match outcome {
            Ok(answer) => Ok(answer.messages.iter().find_map(codec::link)),
            Err(Failure::Errno(libc::ENODEV)) => Ok(None),
            Err(failure) => Err(failure.into_error("look up the interface", name)),
        }
    }

    /// Sets an interface up or down, and its MTU in bytes if one is given.
    ///
    /// # Errors
    /// If the kernel refuses; then neither is changed.
    pub async fn set_up(&self, index: u32, up: bool, mtu: Option<u32>) -> Result<(), Error> {
        let message = codec::set_link(index, up, mtu);
        self.change_one(&CONFIGURE_LINK, &format!("#{index}"), message).await
    }

    /// Puts an interface into a bridge, or takes it out.
    ///
    /// # Errors
    /// If the kernel refuses; then nothing is changed.
    pub async fn set_master(&self, index: u32, master: Option<u32>) -> Result<(), Error> {
        let message = codec::set_master(index, master);
        self.change_one(&CONFIGURE_LINK, &format!("#{index}"), message).await
    }

    /// Makes an interface, which is down at first. If one of that name exists, it stays as it
    /// is.
    ///
    /// # Errors
    /// If the kernel refuses; then nothing is changed.
    pub async fn add_link(&self, name: &str, new: &NewLink<'_>) -> Result<(), Error> {
        self.change_one(&ADD_LINK, name, codec::new_link(name, new)).await
    }

    /// Removes an interface.
    ///
    /// # Errors
    /// If the kernel refuses; then nothing is changed.
    pub async fn del_link(&self, index: u32) -> Result<(), Error> {
        self.change_one(&DEL_LINK, &format!("#{index}"), codec::del_link(index)).await
    }

    /// The addresses of all interfaces.
    ///
    /// # Errors
    /// If they cannot be read.
    pub async fn addresses(&self) -> Result<Vec<Address>, Error> {
        let messages = self.dump("list the addresses", codec::get_addresses()).await?;
        Ok(messages.iter().filter_map(codec::address).collect())
    }

    /// Gives the interface an address. If it carries the address already, the options are set
    /// anew for IPv6 and stay as they are for IPv4.
    ///
    /// # Errors
    /// If the kernel refuses; then nothing is changed.
    pub async fn add_address(
        &self,
        index: u32,
        prefix: Prefix,
        options: AddressOptions,
    ) -> Result<(), Error> {
        self.add_addresses(index, &[prefix], options).await
    }

    /// Gives the interface many addresses as [`Netlink::add_address`] does. All are tried.
    ///
    /// # Errors
    /// The first refusal. All addresses that were not refused are there.
    pub async fn add_addresses(
        &self,
        index: u32,
        addresses: &[Prefix],
        options: AddressOptions,
    ) -> Result<(), Error> {
        let items: Vec<OnInterface> = addresses.iter().map(|it| OnInterface(*it, index)).collect();
        self.change(&ADD_ADDRESS, &items, |it| codec::new_address(index, it.0, options)).await
    }

    /// Takes an address from the interface.
    ///
    /// # Errors
    /// If the kernel refuses; then nothing is changed.
    pub async fn del_address(&self, index: u32, prefix: Prefix) -> Result<(), Error> {
        self.del_addresses(index, &[prefix]).await
    }

    /// Takes many addresses from the interface. All are tried.
    ///
    /// # Errors
    /// The first refusal. All addresses that were not refused are gone.
    pub async fn del_addresses(&self, index: u32, addresses: &[Prefix]) -> Result<(), Error> {
        let items: Vec<OnInterface> = addresses.iter().map(|it| OnInterface(*it, index)).collect();
        self.change(&DEL_ADDRESS, &items, |it| codec::del_address(index, it.0)).await
    }

    /// The unicast routes of both families that pass the filter.
    ///
    /// # Errors
    /// If they cannot be read.
    pub async fn routes(&self, filter: RouteFilter) -> Result<Vec<Route>, Error> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let messages = self.dump("list the routes", codec::get_routes(family, filter)).await?;
            routes.extend(messages.iter().filter_map(codec::route));
        }
        let wanted = |route: &Route| {
            filter.protocol.is_none_or(|protocol| route.protocol == protocol)
                && filter.table.is_none_or(|table| route.table == table)
        };
        routes.retain(wanted);
        Ok(routes)
    }

    /// Adds a route, or replaces the one with the same destination, table and metric.
    ///
    /// # Errors
    /// If the kernel refuses; then nothing is changed.
    pub async fn add_route(&self, route: &Route) -> Result<(), Error> {
        self.add_routes(std::slice::from_ref(route)).await
    }

    /// Adds or replaces many routes. All are tried.
    ///
    /// # Errors
    /// The first refusal. All routes that were not refused are there.
    pub async fn add_routes(&self, routes: &[Route]) -> Result<(), Error> {
        self.change(&ADD_ROUTE, routes, codec::new_route).await
    }

    /// Deletes a route.
    ///
    /// # Errors
    /// If the kernel refuses; then nothing is changed.
    pub async fn del_route(&self, route: &Route) -> Result<(), Error> {
        self.del_routes(std::slice::from_ref(route)).await
    }

    /// Deletes many routes. All are tried.
    ///
    /// # Errors
    /// The first refusal. All routes that were not refused are gone.
    pub async fn del_routes(&self, routes: &[Route]) -> Result<(), Error> {
        self.change(&DEL_ROUTE, routes, codec::del_route).await
    }

    /// The tables of neighbours (ARP and ND), which all namespaces of the machine share.
    ///
    /// # Errors
    /// If they cannot be read.
    pub async fn neighbour_tables(&self) -> Result<Vec<NeighbourTable>, Error> {
        let request = codec::get_neighbour_tables();
        let messages = self.dump("list the tables of neighbours", request).await?;
        Ok(messages.iter().filter_map(codec::neighbour_table).collect())
    }

    /// The forwarding entries of a VXLAN interface that name a tunnel endpoint.
    ///
    /// # Errors
    /// If they cannot be read.
    pub async fn fdb(&self, index: u32) -> Result<Vec<FdbEntry>, Error> {
        let messages = self.dump("list the forwarding entries", codec::get_fdb(index)).await?;
        let entries = messages.iter().filter_map(codec::fdb_entry);
        Ok(entries.filter(|entry| entry.index == index).collect())
    }

    /// The same of all VXLAN interfaces at once.
    ///
    /// # Errors
    /// If they cannot be read.
    pub async fn all_fdbs(&self) -> Result<Vec<FdbEntry>, Error> {
        let messages = self.dump("list the forwarding entries", codec::get_fdb(0)).await?;
        Ok(messages.iter().filter_map(codec::fdb_entry).collect())
    }

    /// Adds a permanent forwarding entry to a VXLAN interface: one more endpoint for [`FLOOD`],
    /// the only one for another MAC address.
    ///
    /// # Errors
    /// If the kernel refuses; then nothing is changed.
    pub async fn add_fdb(&self, index: u32, mac: Mac, dst: IpAddr) -> Result<(), Error> {
        self.add_fdb_entries(&[FdbEntry { index, mac, dst, permanent: true }]).await
    }

    /// Adds many forwarding entries as [`Netlink::add_fdb`] does. All are tried.
    ///
    /// # Errors
    /// The first refusal. All entries that were not refused are there.
    pub async fn add_fdb_entries(&self, entries: &[FdbEntry]) -> Result<(), Error> {
        let (flood, unicast): (Vec<_>, Vec<_>) =
            entries.iter().copied().partition(|entry| entry.mac == FLOOD);
        let flood = self.change(&APPEND_FDB, &flood, codec::new_fdb).await;
        self.change(&REPLACE_FDB, &unicast, codec::new_fdb).await.and(flood)
    }

    /// Deletes a forwarding entry of a VXLAN interface.
    ///
    /// # Errors
    /// If the kernel refuses; then nothing is changed.
    pub async fn del_fdb(&self, index: u32, mac: Mac, dst: IpAddr) -> Result<(), Error> {
        self.del_fdb_entries(&[FdbEntry { index, mac, dst, permanent: true }]).await
    }

    /// Deletes many forwarding entries. All are tried.
    ///
    /// # Errors
    /// The first refusal. All entries that were not refused are gone.
    pub async fn del_fdb_entries(&self, entries: &[FdbEntry]) -> Result<(), Error> {
        self.change(&DEL_FDB, entries, codec::del_fdb).await
    }
}

impl fmt::Display for FdbEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, byte) in self.mac.iter().enumerate() {
            let colon = if position == 0 { "" } else { ":" };
            write!(f, "{colon}{byte:02x}")?;
        }
        write!(f, " to {} on #{}", self.dst, self.index)
    }
}

/// The interface that a message of the kernel's describes.
pub(crate) fn link_of(message: &RouteNetlinkMessage) -> Option<Link> {
    codec::link(message)
}

/// An address and the interface that it is on, for people.
struct OnInterface(Prefix, u32);

impl fmt::Display for OnInterface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on #{}", self.0, self.1)
    }
}

/// A kind of change: how it is asked for, and which refusals mean that it was done before.
struct Change {
    operation: &'static str,
    flags: u16,
    tolerated: &'static [i32],
}

const REPLACE: u16 = NLM_F_CREATE | NLM_F_REPLACE;
const APPEND: u16 = NLM_F_CREATE | NLM_F_APPEND;
const EXCLUSIVE: u16 = NLM_F_CREATE | rtnetlink::packet_core::NLM_F_EXCL;

const CONFIGURE_LINK: Change =
    Change { operation: "configure the interface", flags: 0, tolerated: &[] };
const ADD_LINK: Change =
    Change { operation: "make the interface", flags: EXCLUSIVE, tolerated: &[libc::EEXIST] };
const DEL_LINK: Change =
    Change { operation: "remove the interface", flags: 0, tolerated: &[libc::ENODEV] };
const ADD_ADDRESS: Change =
    Change { operation: "add the address", flags: REPLACE, tolerated: &[libc::EEXIST] };
const DEL_ADDRESS: Change = Change {
    operation: "delete the address",
    flags: 0,
    tolerated: &[libc::EADDRNOTAVAIL, libc::ENODEV],
};
const ADD_ROUTE: Change = Change { operation: "add the route", flags: REPLACE, tolerated: &[] };
const DEL_ROUTE: Change = Change {
    operation: "delete the route",
    flags: 0,
    // IPv4 answers ESRCH for the route and ENODEV for its interface, IPv6 ENOENT for the table.
    tolerated: &[libc::ESRCH, libc::ENODEV, libc::ENOENT],
};
const APPEND_FDB: Change =
    Change { operation: "add the forwarding entry", flags: APPEND, tolerated: &[libc::EEXIST] };
const REPLACE_FDB: Change =
    Change { operation: "add the forwarding entry", flags: REPLACE, tolerated: &[] };
const DEL_FDB: Change = Change {
    operation: "delete the forwarding entry",
    flags: 0,
    tolerated: &[libc::ENOENT, libc::ENODEV],
};

/// A dump that is interrupted this often is given up.
const DUMP_ATTEMPTS: usize = 10;

/// The kernel answers within microseconds; this only keeps a lost answer from hanging a loop.
const PATIENCE: Duration = Duration::from_secs(10);

impl Netlink {
    async fn change_one(
        &self,
        change: &Change,
        object: &str,
        message: RouteNetlinkMessage,
    ) -> Result<(), Error> {
        self.change(change, &[object], |_| message.clone()).await
    }

    /// Asks for a change of every item. The requests are queued all at once, so that the
    /// connection's task works through them without waiting for us.
    async fn change<T: fmt::Display>(
        &self,
        change: &Change,
        items: &[T],
        encode: impl Fn(&T) -> RouteNetlinkMessage,
    ) -> Result<(), Error> {
        let flags = NLM_F_REQUEST | NLM_F_ACK | change.flags;
        let answers: Vec<_> = items.iter().map(|item| self.request(encode(item), flags)).collect();
        let mut result = Ok(());
        for (item, answer) in items.iter().zip(answers) {
            let outcome = match answer {
                Ok(stream) => collect(stream).await.map(drop),
                Err(failure) => Err(failure),
            };
            match outcome {
                Ok(()) => {}
                Err(Failure::Errno(code)) if change.tolerated.contains(&code) => {}
                Err(failure) => {
                    result = result.and(Err(failure.into_error(change.operation, item)));
                }
            }
        }
        result
    }

    async fn dump(
        &self,
        operation: &'static str,
        request: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        let _alone = self.dumps.lock().await;
        dump(operation, || self.request(request.clone(), NLM_F_REQUEST | NLM_F_DUMP)).await
    }

    fn request(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<impl Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + use<>, Failure> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = flags;
        self.handle.clone().request(request).map_err(|_| Failure::Lost("the socket is closed"))
    }
}

/// Asks for a dump until one was not interrupted.
async fn dump<T, S: Stream<Item = NetlinkMessage<T>>>(
    operation: &'static str,
    ask: impl Fn() -> Result<S, Failure>,
) -> Result<Vec<T>, Error> {
    for _ in 0..DUMP_ATTEMPTS {
        let outcome = match ask() {
            Ok(stream) => collect(stream).await,
            Err(failure) => Err(failure),
        };
        match outcome {
            Ok(answer) if answer.interrupted => {}
            Ok(answer) => return Ok(answer.messages),
            // There is no such routing table yet.
            Err(Failure::Errno(libc::ENOENT)) => return Ok(Vec::new()),
            Err(failure) => return Err(failure.into_error(operation, "of the kernel")),
        }
    }
    Err(Error::Unstable(operation))
}

/// What the kernel answered to one request.
struct Answer<T> {
    messages: Vec<T>,
    interrupted: bool,
}

/// Why there is no [`Answer`].
enum Failure {
    Errno(i32),
    Lost(&'static str),
}

impl Failure {
    fn into_error(self, operation: &'static str, object: impl fmt::Display) -> Error {
        let object = object.to_string();
        match self {
            Self::Errno(code) => {
                let source = io::Error::from_raw_os_error(code);
                Error::Refused { operation, object, source }
            }
            Self::Lost(reason) => Error::Lost { operation, object, reason },
        }
    }
}

async fn collect<T>(stream: impl Stream<Item = NetlinkMessage<T>>) -> Result<Answer<T>, Failure> {
    let all = read_to_end(stream);
    tokio::time::timeout(PATIENCE, all).await.unwrap_or(Err(Failure::Lost("no answer in time")))
}

async fn read_to_end<T>(
    stream: impl Stream<Item = NetlinkMessage<T>>,
) -> Result<Answer<T>, Failure> {
    let mut stream = std::pin::pin!(stream);
    let mut answer = Answer { messages: Vec::new(), interrupted: false };
    while let Some(message) = stream.next().await {
        answer.interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
        match message.payload {
            NetlinkPayload::InnerMessage(inner) => answer.messages.push(inner),
            NetlinkPayload::Done(done) if done.code < 0 => return Err(Failure::Errno(-done.code)),
            NetlinkPayload::Done(_) => return Ok(answer),
            NetlinkPayload::Error(error) => match error.code {
                Some(code) => return Err(Failure::Errno(code.get().abs())),
                None => return Ok(answer),
            },
            NetlinkPayload::Overrun(_) => return Err(Failure::Lost("the answer was overrun")),
            // What we did not ask for is not for us.
            NetlinkPayload::Noop | _ => {}
        }
    }
    Err(Failure::Lost("the socket closed before the answer"))
}

#[cfg(test)]
mod tests;
