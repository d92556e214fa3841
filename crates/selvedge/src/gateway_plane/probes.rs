//! The socket of the probes: datagrams in, datagrams out, each sealed for its one receiver.
//!
//! It is meant for the plane's own loop, on a thread of its own that has been raised by
//! [`selvedge_host::priority::raise`]: what is heard goes to the core without waiting for a task
//! of another thread, so that other work on the host makes nobody look dead. Before a deadline of
//! the core counts, the loop calls [`Probes::drain`]: what has come is older than the clock.
//!
//! Probes leave with the source address that the route to the partner has, and acknowledgements
//! too, so that they pass where reverse paths are checked (RFC 3704). Nothing but what the roster's
//! keys have authenticated is answered or handed on.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use selvedge_gateway::probe::{Message, Outgoing};
use selvedge_gateway::wire::{self, MAX_DATAGRAM, OpenError, PairKey};
use selvedge_host::netlink::{self, Address, Netlink};
use selvedge_model::{NodeId, NodeName};
use selvedge_transport::Agreement;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tracing::{debug, trace, warn};

use super::sources::Sources;
use crate::config::{GatewayConfig, ProbeConfig};
use crate::mesh_plane::endpoints;

/// On how many addresses a host is probed if none is configured.
const MAX_PATHS: usize = 4;
/// How many datagrams are read in one go, before others have their turn.
const BATCH: usize = 256;
/// DSCP CS6, "network control" (RFC 4594, section 3.1), in the place of the former type of service.
const CS6: u32 = 48 << 2;
/// Room for what waits to be sent. A datagram to a neighbour whose link-layer address is not known
/// yet counts here until the kernel gives it up, after 3 s; with little room a few dead partners
/// would keep the probes to the living from leaving. What is in it is seldom more than nothing.
const SEND_ROOM: usize = 8 << 20;
/// Room for what waits to be read: a second of probes from many partners.
const RECEIVE_ROOM: usize = 4 << 20;
/// For how long a source must send what is refused until it is worth a line in the log: a partner
/// may be known to it, and it not yet here.
const PERSISTENT: Duration = Duration::from_secs(5);
/// The pause between two lines about the same source.
const PAUSE: Duration = Duration::from_secs(60);
/// How many sources are kept apart.
const MAX_SOURCES: usize = 64;

/// A message of a known node.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Heard {
    /// Who sent it.
    pub(super) from: NodeName,
    /// Where it came from: where to send the answer.
    pub(super) addr: SocketAddr,
    /// What it says.
    pub(super) message: Message,
}

/// What went over the socket so far, in datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ProbeCounters {
    /// Given to the kernel.
    pub(super) sent: u64,
    /// Not sent: no key, no route, no room.
    pub(super) unsent: u64,
    /// Authentic and understood.
    pub(super) received: u64,
    /// No probe at all.
    pub(super) garbage: u64,
    /// From nobody of the roster.
    pub(super) unknown_sender: u64,
    /// Not sealed with the key of the sender that they name.
    pub(super) bad_seal: u64,
    /// Of another version, or otherwise not understood.
    pub(super) not_understood: u64,
}

impl ProbeCounters {
    /// All that came in and was not handed on.
    pub(super) const fn refused(&self) -> u64 {
        self.garbage + self.unknown_sender + self.bad_seal + self.not_understood
    }
}

/// The socket, and the keys of the partners.
pub(super) struct Probes {
    /// The runtime's handle to the socket: tells when there is something to read.
    arrivals: tokio::net::UdpSocket,
    /// The same socket, for all else: it does what it is told, whatever the runtime believes.
    socket: UdpSocket,
    sources: Sources,
    intake: Intake,
}

impl Probes {
    /// Opens the socket, in the network namespace of the calling thread and for the runtime of the
    /// calling task. Until [`set_roster`](Self::set_roster) nobody is known.
    ///
    /// # Errors
    /// If the address cannot be listened on.
    pub(super) fn open(
        config: &ProbeConfig,
        name: NodeName,
        agreement: Agreement,
    ) -> anyhow::Result<Self> {
        let listen = config.listen;
        let socket = bind(listen).with_context(|| {
            format!("cannot listen for probes on {listen}; gateway.probe.listen names the address")
        })?;
        let is_v6 = socket.local_addr()?.is_ipv6();
        let arrivals = tokio::net::UdpSocket::from_std(socket.try_clone()?)?;
        let intake = Intake::new(name, agreement, is_v6);
        Ok(Self { arrivals, socket, sources: Sources::default(), intake })
    }

    /// Takes in who may send: names, with their identities as text (see [`NodeId`]). Whoever is
    /// not among them is refused from now on. Keys are computed for those that are new.
    pub(super) fn set_roster<'a>(
        &mut self,
        roster: impl IntoIterator<Item = (&'a NodeName, &'a str)>,
    ) {
        self.intake.keys.update(roster);
    }

    /// Waits until datagrams have come, and takes them. What is refused may leave nothing. No
    /// datagram is lost if the future is dropped before it is done.
    pub(super) async fn receive(&mut self) -> Vec<Heard> {
        let Self { arrivals, socket, intake, .. } = self;
        if arrivals.readable().await.is_err() {
            // The runtime ends.
            return std::future::pending().await;
        }
        let mut heard = Vec::new();
        // Within `try_io`, so that nothing that comes meanwhile is forgotten with what was read.
        let _ = arrivals.try_io(Interest::READABLE, || {
            let is_empty;
            (heard, is_empty) = intake.drain(socket, Instant::now());
            if is_empty { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        heard
    }

    /// Takes what has come by now, without waiting, whatever the runtime knows of it.
    pub(super) fn drain(&mut self) -> Vec<Heard> {
        self.intake.drain(&self.socket, Instant::now()).0
    }

    /// Sends a message. One that cannot be sent is counted: a path that is gone is no error, and
    /// the core finds out by itself.
    pub(super) fn send(&mut self, outgoing: &Outgoing) {
        let now = Instant::now();
        let sealed = self.intake.seal(outgoing, now);
        let sent = sealed.and_then(|datagram| {
            let addr = for_socket(outgoing.addr, self.intake.is_v6);
            let result = self.sources.send(&self.socket, &datagram, addr, now);
            result.inspect_err(|error| trace!(to = %outgoing.to, %addr, %error, "not sent")).ok()
        });
        match sent {
            Some(_) => self.intake.counters.sent += 1,
            None => self.intake.counters.unsent += 1,
        }
    }

    /// What went over the socket so far.
    pub(super) const fn counters(&self) -> ProbeCounters {
        self.intake.counters
    }
}

/// The addresses at which other voters shall probe this host: those that are configured, or else
/// those that it has and that lead outside, the first of each interface before the second of any.
/// They are read once: a host whose addresses change later has them configured.
///
/// # Errors
/// If the kernel does not tell.
pub(super) async fn addresses(config: &GatewayConfig) -> anyhow::Result<Vec<SocketAddr>> {
    let ProbeConfig { listen, addresses } = &config.probe;
    let ips = match (addresses, listen.ip()) {
        (Some(ips), _) => ips.clone(),
        (None, ip) if !ip.is_unspecified() => vec![ip],
        (None, any) => own_addresses(any.is_ipv6()).await.context(
            "cannot find out at which addresses this host is reached; gateway.probe.addresses can \
             name them",
        )?,
    };
    Ok(ips.into_iter().map(|ip| SocketAddr::new(ip, listen.port())).collect())
}

async fn own_addresses(with_v6: bool) -> Result<Vec<IpAddr>, netlink::Error> {
    let netlink = Netlink::new()?;
    let (links, found) = (netlink.links().await?, netlink.addresses().await?);
    let usable = |address: &&Address| with_v6 || address.prefix.addr().is_ipv4();
    Ok(paths(endpoints::outward(&links, &found).filter(usable)))
}

/// A few addresses, of as many interfaces as possible.
fn paths<'a>(outward: impl Iterator<Item = &'a Address>) -> Vec<IpAddr> {
    let mut seen: BTreeMap<u32, u32> = BTreeMap::new();
    // Further addresses of one subnet, temporary ones, and those that are about to go (flags of
    // rtnetlink(7); the first is called temporary for IPv6).
    let passing = libc::IFA_F_SECONDARY | libc::IFA_F_DEPRECATED;
    let mut ranked: Vec<(u32, IpAddr)> = outward
        .filter(|address| address.flags & passing == 0)
        .map(|address| {
            let rank = seen.entry(address.index).or_default();
            *rank += 1;
            (*rank, address.prefix.addr())
        })
        .collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, ip)| ip).take(MAX_PATHS).collect()
}

fn bind(listen: SocketAddr) -> io::Result<UdpSocket> {
    match bind_exactly(listen) {
        // A host whose IPv6 is switched off still has IPv4.
        Err(_) if listen.ip() == Ipv6Addr::UNSPECIFIED && !has_ipv6() => {
            bind_exactly((Ipv4Addr::UNSPECIFIED, listen.port()).into())
        }
        bound => bound,
    }
}

fn has_ipv6() -> bool {
    UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

fn bind_exactly(listen: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP))?;
    if listen.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&listen.into())?;
    let marked = mark(&socket, listen.is_ipv6());
    if let Err(error) = marked {
        debug!(%error, "probes leave without a class of their own");
    }
    make_room(&socket);
    Ok(socket.into())
}

/// Has routers and switches on the way treat the probes as they do routing protocols.
fn mark(socket: &Socket, is_v6: bool) -> io::Result<()> {
    if is_v6 {
        socket.set_tclass_v6(CS6)?;
    }
    // A socket for IPv6 sends to IPv4 addresses too.
    socket.set_tos_v4(CS6)
}

/// Beyond the limits of the system if this is permitted, otherwise within them.
fn make_room(socket: &Socket) {
    let forced = setsockopt(socket, sockopt::SndBufForce, &SEND_ROOM)
        .and_then(|()| setsockopt(socket, sockopt::RcvBufForce, &RECEIVE_ROOM));
    if let Err(error) = forced {
        debug!(%error, "probes have the room that the system gives");
        // That much is always given.
        let _ = socket.set_send_buffer_size(SEND_ROOM);
        let _ = socket.set_recv_buffer_size(RECEIVE_ROOM);
    }
}

/// `addr` as a socket of its kind takes it.
const fn for_socket(addr: SocketAddr, is_v6: bool) -> SocketAddr {
    match addr {
        SocketAddr::V4(v4) if is_v6 => {
            SocketAddr::V6(SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0))
        }
        SocketAddr::V4(_) | SocketAddr::V6(_) => addr,
    }
}

/// `addr` as everybody else knows it.
fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr.ip().to_canonical() {
        IpAddr::V4(v4) => SocketAddr::from((v4, addr.port())),
        IpAddr::V6(_) => addr,
    }
}

/// All of it but the socket.
struct Intake {
    name: NodeName,
    is_v6: bool,
    keys: Keyring,
    counters: ProbeCounters,
    complaints: Complaints,
    buffer: Box<[u8; MAX_DATAGRAM + 1]>,
}

impl Intake {
    fn new(name: NodeName, agreement: Agreement, is_v6: bool) -> Self {
        Self {
            keys: Keyring::new(name.clone(), agreement),
            name,
            is_v6,
            counters: ProbeCounters::default(),
            complaints: Complaints::default(),
            buffer: Box::new([0; MAX_DATAGRAM + 1]),
        }
    }

    /// Reads at most [`BATCH`] datagrams. Says too whether none is left.
    fn drain(&mut self, socket: &UdpSocket, now: Instant) -> (Vec<Heard>, bool) {
        let mut heard = Vec::new();
        for _ in 0..BATCH {
            match socket.recv_from(&mut self.buffer[..]) {
                Ok((length, addr)) => heard.extend(self.open(length, canonical(addr), now)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    if error.kind() != io::ErrorKind::WouldBlock {
                        debug!(%error, "cannot read from the socket of the probes");
                    }
                    return (heard, true);
                }
            }
        }
        (heard, false)
    }

    fn open(&mut self, length: usize, addr: SocketAddr, now: Instant) -> Option<Heard> {
        match wire::open(&self.buffer[..length], |from| self.keys.receiving(from)) {
            Ok((from, message)) => {
                self.counters.received += 1;
                trace!(%from, %addr, ?message, "received");
                Some(Heard { from, addr, message })
            }
            Err(error) => {
                self.refuse(&error, addr, now);
                None
            }
        }
    }

    fn refuse(&mut self, error: &OpenError, addr: SocketAddr, now: Instant) {
        let counters = &mut self.counters;
        let advice = match error {
            OpenError::Garbage => {
                counters.garbage += 1;
                "something else uses this port; keep it out, or choose another one"
            }
            OpenError::UnknownSender(from) if *from == self.name => {
                counters.unknown_sender += 1;
                "another host has this gateway's name, or one of its addresses is this host's own"
            }
            OpenError::UnknownSender(_) => {
                counters.unknown_sender += 1;
                "a node that was removed, or that uses another store; stop its agent"
            }
            OpenError::BadTag(_) => {
                counters.bad_seal += 1;
                "two hosts under one name, a new identity, or a forgery; see which host this is"
            }
            OpenError::Version { .. } | OpenError::Contents { .. } => {
                counters.not_understood += 1;
                "its agent has another version; upgrade the older one"
            }
        };
        trace!(%addr, %error, "refused");
        // Until the roster is known, everybody is unknown.
        if self.keys.is_known && self.complaints.is_due(addr.ip(), now) {
            warn!(source = %addr, reason = %error, "probes are refused: {advice}");
        }
    }

    /// The datagram of a message, if there is a key for it and it fits.
    fn seal(&mut self, outgoing: &Outgoing, now: Instant) -> Option<Vec<u8>> {
        let key = self.keys.sending(&outgoing.to)?;
        match wire::seal(&outgoing.message, &self.name, key) {
            Ok(datagram) => Some(datagram),
            Err(error) => {
                if self.complaints.is_due(outgoing.addr.ip(), now) {
                    warn!(to = %outgoing.to, %error, "probes cannot be sent");
                }
                None
            }
        }
    }
}

/// The keys of the partners.
struct Keyring {
    name: NodeName,
    agreement: Agreement,
    partners: BTreeMap<NodeName, Partner>,
    /// Whether the roster was ever given.
    is_known: bool,
}

/// Somebody of the roster.
struct Partner {
    identity: String,
    /// `None` if the identity is not one to agree with.
    pair: Option<Pair>,
}

/// The keys for both directions.
struct Pair {
    to: PairKey,
    from: PairKey,
}

impl Keyring {
    const fn new(name: NodeName, agreement: Agreement) -> Self {
        Self { name, agreement, partners: BTreeMap::new(), is_known: false }
    }

    fn receiving(&self, name: &NodeName) -> Option<&PairKey> {
        Some(&self.partners.get(name)?.pair.as_ref()?.from)
    }

    fn sending(&self, name: &NodeName) -> Option<&PairKey> {
        Some(&self.partners.get(name)?.pair.as_ref()?.to)
    }

    fn update<'a>(&mut self, roster: impl IntoIterator<Item = (&'a NodeName, &'a str)>) {
        let mut before = std::mem::take(&mut self.partners);
        self.is_known = true;
        for (name, identity) in roster {
            if *name == self.name {
                continue;
            }
            let known = before.remove(name).filter(|partner| partner.identity == identity);
            let partner = known.unwrap_or_else(|| self.meet(name, identity));
            self.partners.insert(name.clone(), partner);
        }
    }

    fn meet(&self, name: &NodeName, identity: &str) -> Partner {
        let pair = identity.parse().ok().and_then(|id| self.pair(&id));
        // Whoever has given no identity is of an older version, and does not vote.
        if pair.is_none() && !identity.is_empty() {
            warn!(
                node = %name, identity,
                "the roster has no usable identity for a node: its probes are refused. Two hosts \
                 with one identity need one of their own each: move the file identity.key away"
            );
        }
        Partner { identity: identity.to_owned(), pair }
    }

    /// The keys with a partner. None with one that has this host's own identity: its datagrams
    /// could not be told from reflected ones.
    fn pair(&self, partner: &NodeId) -> Option<Pair> {
        let own = self.agreement.own();
        if *partner == own {
            return None;
        }
        let shared = self.agreement.shared(partner)?;
        let key = |sender: &NodeId, receiver: &NodeId| {
            PairKey::derive(&shared, sender.as_bytes(), receiver.as_bytes())
        };
        Some(Pair { to: key(&own, partner), from: key(partner, &own) })
    }
}

/// Says when a source that is refused is worth a line in the log: what others send must not fill
/// it.
#[derive(Default)]
struct Complaints {
    sources: BTreeMap<IpAddr, Source>,
}

struct Source {
    since: Instant,
    last: Instant,
    warned: Option<Instant>,
}

impl Complaints {
    fn is_due(&mut self, source: IpAddr, now: Instant) -> bool {
        let is_over = |source: &Source| now.duration_since(source.last) > PAUSE;
        if self.sources.len() >= MAX_SOURCES {
            self.sources.retain(|_, source| !is_over(source));
        }
        if self.sources.len() >= MAX_SOURCES && !self.sources.contains_key(&source) {
            return false;
        }
        let new = Source { since: now, last: now, warned: None };
        let entry = self.sources.entry(source).or_insert(new);
        if is_over(entry) {
            *entry = Source { since: now, last: now, warned: None };
        }
        entry.last = now;
        let is_due = now.duration_since(entry.since) >= PERSISTENT
            && entry.warned.is_none_or(|at| now.duration_since(at) >= PAUSE);
        if is_due {
            entry.warned = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use selvedge_gateway::kv::Revision;
    use selvedge_gateway::probe::{Body, News};
    use selvedge_host::netlink::{Link, LinkKind};
    use tokio::time::timeout;

    use super::*;
    use crate::config::{Config, File};

    /// Tells a hang from a busy machine.
    const LONG: Duration = Duration::from_secs(30);

    fn name(text: &str) -> NodeName {
        text.parse().expect("a name")
    }

    fn agreement(seed: u8) -> Agreement {
        Agreement::of(&[seed; 32])
    }

    fn identity(seed: u8) -> String {
        agreement(seed).own().to_string()
    }

    /// The socket of the node `gw<seed>`; the system chooses the port.
    fn probes(listen: &str, seed: u8) -> Probes {
        let listen = listen.parse().expect("an address");
        let config = ProbeConfig { listen, addresses: None };
        Probes::open(&config, name(&format!("gw{seed}")), agreement(seed)).expect("it opens")
    }

    fn know(probes: &mut Probes, seeds: impl IntoIterator<Item = u8>) {
        let roster: Vec<_> =
            seeds.into_iter().map(|seed| (name(&format!("gw{seed}")), identity(seed))).collect();
        probes.set_roster(roster.iter().map(|(name, identity)| (name, identity.as_str())));
    }

    /// Where `probes` is reached over the loopback.
    fn at(probes: &Probes, ip: impl Into<IpAddr>) -> SocketAddr {
        let local = probes.socket.local_addr().expect("it is bound");
        SocketAddr::new(ip.into(), local.port())
    }

    fn message(nonce: u64) -> Message {
        Message { incarnation: Revision(7), body: Body::Probe { nonce }, news: News::default() }
    }

    fn to(seed: u8, addr: SocketAddr, nonce: u64) -> Outgoing {
        Outgoing { to: name(&format!("gw{seed}")), addr, message: message(nonce) }
    }

    /// What comes until there are `count` messages.
    async fn heard(probes: &mut Probes, count: usize) -> Vec<Heard> {
        let mut all = Vec::new();
        let collect = async {
            while all.len() < count {
                all.extend(probes.receive().await);
            }
        };
        timeout(LONG, collect).await.expect("they come");
        all
    }

    /// What is refused, once `count` datagrams are.
    async fn refused(probes: &mut Probes, count: u64) -> ProbeCounters {
        let wait = async {
            while probes.counters().refused() < count {
                assert_eq!(probes.receive().await, []);
            }
        };
        timeout(LONG, wait).await.expect("they come");
        probes.counters()
    }

    #[tokio::test]
    async fn partners_hear_each_other_over_both_families() {
        let (mut one, mut two) = (probes("[::]:0", 1), probes("[::]:0", 2));
        know(&mut one, [1, 2]);
        know(&mut two, [1, 2]);
        for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
            one.send(&to(2, at(&two, ip), 5));
            let [Heard { from, addr, message: received }] =
                heard(&mut two, 1).await.try_into().expect("one");
            assert_eq!((from, addr, received), (name("gw1"), at(&one, ip), message(5)));
            two.send(&to(1, addr, 6));
            let answer = Heard { from: name("gw2"), addr: at(&two, ip), message: message(6) };
            assert_eq!(heard(&mut one, 1).await, [answer]);
        }
        let counters = ProbeCounters { sent: 2, received: 2, ..ProbeCounters::default() };
        assert_eq!((one.counters(), two.counters()), (counters, counters));
    }

    #[tokio::test]
    async fn nothing_is_handed_on_that_no_partner_sealed() {
        let (mut one, mut two) = (probes("127.0.0.1:0", 1), probes("127.0.0.1:0", 2));
        know(&mut one, [2]);
        let (here, there) = (at(&one, Ipv4Addr::LOCALHOST), at(&two, Ipv4Addr::LOCALHOST));
        // Before the roster is known, and from who is not in it.
        one.send(&to(2, there, 1));
        assert_eq!(refused(&mut two, 1).await.unknown_sender, 1);
        know(&mut two, [3]);
        one.send(&to(2, there, 1));
        assert_eq!(refused(&mut two, 2).await.unknown_sender, 2);
        // Under a partner's name, with another identity.
        let (gw1, other) = (name("gw1"), identity(4));
        two.set_roster([(&gw1, other.as_str())]);
        one.send(&to(2, there, 1));
        assert_eq!(refused(&mut two, 3).await.bad_seal, 1);
        // What is reflected, and what is none of ours.
        know(&mut two, [1]);
        one.send(&to(2, here, 1));
        assert_eq!(refused(&mut one, 1).await.unknown_sender, 1);
        for garbage in [&b""[..], b"x", &[0; 1500]] {
            one.socket.send_to(garbage, there).expect("sent");
        }
        assert_eq!(refused(&mut two, 6).await.garbage, 3);
        // The same socket is good for what is in order.
        one.send(&to(2, there, 9));
        assert_eq!(heard(&mut two, 1).await[0].message, message(9));
    }

    #[tokio::test]
    async fn what_has_come_is_found_whatever_the_runtime_knows() {
        let (mut one, mut two) = (probes("127.0.0.1:0", 1), probes("127.0.0.1:0", 2));
        know(&mut one, [2]);
        know(&mut two, [1]);
        let there = at(&two, Ipv4Addr::LOCALHOST);
        for round in 0..3 {
            one.send(&to(2, there, round));
            // No await between sending and here: the runtime has not looked.
            assert_eq!(two.drain().len(), 1);
            assert_eq!(two.drain(), []);
            // And still nothing is missed afterwards.
            one.send(&to(2, there, 100 + round));
            assert_eq!(heard(&mut two, 1).await[0].message, message(100 + round));
        }
    }

    #[tokio::test]
    async fn a_flood_comes_in_turns() {
        let (mut one, mut two) = (probes("127.0.0.1:0", 1), probes("127.0.0.1:0", 2));
        know(&mut one, [2]);
        know(&mut two, [1]);
        let there = at(&two, Ipv4Addr::LOCALHOST);
        for nonce in 0..100 {
            one.send(&to(2, there, nonce));
            // Two of three are none.
            for _ in 0..2 {
                one.socket.send_to(b"garbage", there).expect("sent");
            }
        }
        assert_eq!(two.receive().await.len(), BATCH / 3 + 1);
        let rest = heard(&mut two, 100 - (BATCH / 3 + 1)).await;
        assert_eq!(rest.last().map(|last| &last.message), Some(&message(99)));
    }

    #[tokio::test]
    async fn what_cannot_be_sent_is_counted() {
        let mut one = probes("127.0.0.1:0", 1);
        know(&mut one, [2]);
        let nowhere = SocketAddr::from((Ipv6Addr::LOCALHOST, 9));
        one.send(&to(2, nowhere, 1));
        one.send(&to(3, at(&one, Ipv4Addr::LOCALHOST), 1));
        assert_eq!(one.counters(), ProbeCounters { unsent: 2, ..ProbeCounters::default() });
    }

    #[tokio::test]
    async fn probes_are_marked_for_both_families() {
        let probes = probes("[::]:0", 1);
        let socket = socket2::SockRef::from(&probes.socket);
        assert_eq!((socket.tclass_v6().ok(), socket.tos_v4().ok()), (Some(CS6), Some(CS6)));
    }

    #[test]
    fn keys_are_kept_while_the_identity_stays() {
        let mut ring = Keyring::new(name("gw1"), agreement(1));
        let (gw2, gw3, two, three) = (name("gw2"), name("gw3"), identity(2), identity(3));
        ring.update([(&gw2, two.as_str()), (&gw3, "")]);
        assert!(ring.receiving(&gw2).is_some() && ring.receiving(&gw3).is_none());
        ring.update([(&gw3, three.as_str())]);
        assert!(ring.sending(&gw2).is_none() && ring.sending(&gw3).is_some());
    }

    #[test]
    fn there_are_no_keys_with_oneself_nor_with_what_is_no_identity() {
        let mut ring = Keyring::new(name("gw1"), agreement(1));
        let (gw1, gw2, gw3) = (name("gw1"), name("gw2"), name("gw3"));
        let (one, two) = (identity(1), identity(2));
        // Its own name, its own identity under another's, and nonsense.
        ring.update([(&gw1, two.as_str()), (&gw2, one.as_str()), (&gw3, "banana")]);
        for name in [&gw1, &gw2, &gw3] {
            assert!(ring.receiving(name).is_none() && ring.sending(name).is_none(), "{name}");
        }
    }

    #[test]
    fn only_who_is_persistent_is_worth_a_line_and_not_many() {
        let mut complaints = Complaints::default();
        let start = Instant::now();
        let source = IpAddr::from([192, 0, 2, 1]);
        let due: Vec<u64> = (0..3000)
            .filter(|tick| complaints.is_due(source, start + Duration::from_millis(50 * tick)))
            .collect();
        // After 5 s, and each minute then.
        assert_eq!(due, [100, 1300, 2500]);
        // After a long pause it begins anew.
        let later = start + Duration::from_secs(1000);
        assert!(!complaints.is_due(source, later));
        assert!(complaints.is_due(source, later + PERSISTENT));
    }

    #[test]
    fn many_sources_need_no_memory() {
        let mut complaints = Complaints::default();
        let start = Instant::now();
        for number in 0..10_000_u32 {
            complaints.is_due(Ipv4Addr::from(number).into(), start);
        }
        assert_eq!(complaints.sources.len(), MAX_SOURCES);
        // Once they are silent there is room for others.
        let (new, later) = (Ipv6Addr::LOCALHOST.into(), start + PAUSE * 2);
        complaints.is_due(new, later);
        assert!(complaints.is_due(new, later + PERSISTENT));
    }

    fn address(index: u32, prefix: &str, flags: u32) -> Address {
        Address { index, prefix: prefix.parse().expect("a prefix"), scope: 0, flags }
    }

    fn link(index: u32, kind: LinkKind) -> Link {
        let name = format!("if{index}");
        let (master, mac, vxlan) = (None, None, None);
        Link { index, name, kind, master, mac, up: true, carrier: true, mtu: 1500, vxlan }
    }

    #[test]
    fn paths_lead_over_as_many_interfaces_as_possible() {
        let links = [
            link(1, LinkKind::Other),
            link(2, LinkKind::Other),
            link(3, LinkKind::Bridge),
            link(4, LinkKind::Veth),
        ];
        let found = [
            address(1, "192.0.2.1/24", 0),
            address(1, "192.0.2.2/24", libc::IFA_F_SECONDARY),
            address(2, "198.51.100.1/24", 0),
            address(3, "10.0.0.1/24", 0),
            address(4, "203.0.113.1/24", 0),
            address(1, "2001:db8:1::1/64", 0),
            address(2, "2001:db8:2::9/64", libc::IFA_F_DEPRECATED),
            address(2, "2001:db8:2::1/64", 0),
        ];
        let paths: Vec<String> =
            paths(endpoints::outward(&links, &found)).iter().map(IpAddr::to_string).collect();
        assert_eq!(paths, ["192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8:1::1"]);
    }

    #[tokio::test]
    async fn addresses_that_are_configured_win() {
        let one = IpAddr::from([192, 0, 2, 1]);
        assert_eq!(told("[::]:7", "addresses = ['192.0.2.1']").await, [SocketAddr::new(one, 7)]);
        assert_eq!(told("192.0.2.1:7", "").await, [SocketAddr::new(one, 7)]);
        assert_eq!(told("[::]:7", "addresses = []").await, []);
        // What this host has is not known here; but never is it more than a few, nor loopback.
        let found = told("[::]:7", "").await;
        assert!(found.len() <= MAX_PATHS && found.iter().all(|addr| !addr.ip().is_loopback()));
        let found = told("0.0.0.0:7", "").await;
        assert!(found.iter().all(SocketAddr::is_ipv4));
    }

    async fn told(listen: &str, keys: &str) -> Vec<SocketAddr> {
        let text = format!(
            "name = 'gw1'\n[gateway]\nnetworks = '1'\n[gateway.embedded]\naddress = 'unix:/s'\n\
             [gateway.probe]\nlisten = '{listen}'\n{keys}"
        );
        let file = File::parse(&text, "test").expect("TOML");
        let config = Config::try_from(file).expect("complete");
        addresses(&config.gateway.expect("enabled")).await.expect("the kernel answers")
    }
}
