//! The one task that knows all partners: it dials, keeps one connection per partner, and hands
//! messages to it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use selvedge_model::NodeId;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::hello::{self, Established, Hello, PROTOCOL_VERSION, code};
use crate::link::{Context, Link, PARTNER_QUEUE};
use crate::room::{Outgoing, Room};
use crate::tls::Keys;
use crate::{Access, AccessList, BindError, ConnectError, Counters, DialError, Received, WAITING};

/// How long the goodbye to the partners may take when the transport is closed.
const GOODBYE: Duration = Duration::from_millis(200);

/// How many connections there may be.
const MAX_LINKS: usize = 1024;

/// From so many unfinished handshakes on, altogether or with one network (an IPv4 address or an
/// IPv6 /64), a client must first prove that it can be reached at its address (RFC 9000, section
/// 8.1.2), so that nobody can use up the share of another's network.
const HANDSHAKES_BEFORE_RETRY: usize = 32;
const HANDSHAKES_BEFORE_RETRY_PER_NETWORK: usize = 8;

/// From so many unfinished handshakes on, altogether or with one network, a client is refused.
const MAX_HANDSHAKES: usize = 256;
const MAX_HANDSHAKES_PER_NETWORK: usize = 32;

/// How many strangers are admitted in each window of time, altogether and from one network.
const STRANGER_WINDOW: Duration = Duration::from_secs(10);
const STRANGERS: usize = 256;
const STRANGERS_PER_NETWORK: usize = 64;

/// The least time between two warnings of nodes of another version.
const VERSION_WARNINGS: Duration = Duration::from_secs(60);

/// How many addresses of a partner are tried, and how long after the one before.
const MAX_ADDRS: usize = 8;
const STAGGER: Duration = Duration::from_millis(250);

/// How many places may be looked at for whoever lives there.
const MAX_FINDING: usize = 8;

/// After a failed dial messages are dropped for this time, doubled by each further failure.
/// The greatest is short: it delays the healing of a partition.
const BACKOFF: Duration = Duration::from_millis(250);
const MAX_BACKOFF: Duration = Duration::from_secs(4);

/// What handles ask for.
pub(crate) enum Request {
    Send { to: NodeId, addrs: Vec<SocketAddr>, message: Outgoing },
    Find { addrs: Vec<SocketAddr>, message: Outgoing },
    Connect { to: NodeId, addrs: Vec<SocketAddr>, reply: ConnectReply },
    Close { reply: oneshot::Sender<()> },
}

type ConnectReply = oneshot::Sender<Result<SocketAddr, ConnectError>>;

/// What the hub's tasks report.
enum Report {
    Accepted(IpAddr, Result<Established, DialError>),
    Dialled(NodeId, Result<Established, ConnectError>),
    Found(Result<Established, Vec<(SocketAddr, DialError)>>, Outgoing),
    Closed(NodeId, usize),
}

#[derive(Default)]
struct Partner {
    link: Option<Link>,
    dialling: bool,
    queue: VecDeque<Outgoing>,
    waiting: Vec<ConnectReply>,
    failures: u32,
    not_before: Option<Instant>,
}

impl Partner {
    fn backing_off(&self, now: Instant) -> bool {
        self.not_before.is_some_and(|at| now < at)
    }

    /// Whether it may be forgotten.
    fn is_idle(&self, now: Instant) -> bool {
        self.link.is_none() && !self.dialling && !self.backing_off(now)
    }

    fn note_failure(&mut self, now: Instant) {
        let pause = BACKOFF.saturating_mul(1 << self.failures.min(8)).min(MAX_BACKOFF);
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(now + pause);
    }
}

/// The handshakes that others began and that are under way, by network.
#[derive(Default)]
struct Handshakes {
    total: usize,
    by_network: BTreeMap<IpAddr, usize>,
}

/// What is done about a client's first packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Accept,
    Retry,
    Refuse,
}

impl Handshakes {
    /// `validated` says whether the client has proved that it can be reached at its address.
    fn verdict(&self, network: IpAddr, validated: bool) -> Verdict {
        let same = self.by_network.get(&network).copied().unwrap_or_default();
        let many =
            self.total >= HANDSHAKES_BEFORE_RETRY || same >= HANDSHAKES_BEFORE_RETRY_PER_NETWORK;
        if self.total >= MAX_HANDSHAKES || same >= MAX_HANDSHAKES_PER_NETWORK {
            Verdict::Refuse
        } else if many && !validated {
            Verdict::Retry
        } else {
            Verdict::Accept
        }
    }

    fn begin(&mut self, network: IpAddr) {
        self.total += 1;
        *self.by_network.entry(network).or_default() += 1;
    }

    fn end(&mut self, network: IpAddr) {
        self.total -= 1;
        if let Some(same) = self.by_network.get_mut(&network) {
            *same -= 1;
            if *same == 0 {
                self.by_network.remove(&network);
            }
        }
    }
}

pub(crate) struct Hub {
    endpoint: quinn::Endpoint,
    keys: Keys,
    hello: Hello,
    context: Context,
    partners: BTreeMap<NodeId, Partner>,
    handshakes: Handshakes,
    strangers: VecDeque<(Instant, IpAddr)>,
    finding: usize,
    version_warned: Option<Instant>,
    reports: mpsc::Receiver<Report>,
    reporter: mpsc::Sender<Report>,
    /// To whom there is a connection.
    linked: watch::Sender<BTreeSet<NodeId>>,
}

impl Hub {
    pub(crate) fn new(
        endpoint: quinn::Endpoint,
        keys: Keys,
        access: watch::Receiver<AccessList>,
        inbox: mpsc::Sender<Received>,
        counters: Arc<Counters>,
        linked: watch::Sender<BTreeSet<NodeId>>,
    ) -> Result<Self, BindError> {
        let instance = getrandom::u64().map_err(|error| BindError::Random(error.to_string()))?;
        let (reporter, reports) = mpsc::channel(256);
        Ok(Self {
            endpoint,
            keys,
            hello: Hello { version: PROTOCOL_VERSION, instance },
            context: Context { inbox, access, counters, room: Room::new(WAITING) },
            partners: BTreeMap::new(),
            handshakes: Handshakes::default(),
            strangers: VecDeque::new(),
            finding: 0,
            version_warned: None,
            reports,
            reporter,
            linked,
        })
    }

    /// Runs until the last handle is gone or one asks for the end.
    pub(crate) async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut sweep = interval(Duration::from_secs(60));
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let done = loop {
            tokio::select! {
                request = requests.recv() => match request {
                    Some(Request::Send { to, addrs, message }) => self.send(to, &addrs, message),
                    Some(Request::Find { addrs, message }) => self.find(addrs, message),
                    Some(Request::Connect { to, addrs, reply }) => self.connect(to, &addrs, reply),
                    Some(Request::Close { reply }) => break Some(reply),
                    None => break None,
                },
                Some(incoming) = self.endpoint.accept() => self.answer(incoming),
                Some(report) = self.reports.recv() => self.note(report),
                now = sweep.tick() => self.partners.retain(|_, partner| !partner.is_idle(now)),
            }
        };
        self.endpoint.close(code::DONE, b"the agent stops");
        // The partners' idle timeouts do the rest if this takes longer.
        timeout(GOODBYE, self.endpoint.wait_idle()).await.unwrap_or_default();
        // The socket is closed before anybody hears that it is.
        drop(self);
        if let Some(done) = done {
            done.send(()).unwrap_or_default();
        }
    }

    fn send(&mut self, to: NodeId, addrs: &[SocketAddr], message: Outgoing) {
        let counters = self.context.counters.clone();
        let partner = self.partners.entry(to).or_default();
        if let Some(link) = &partner.link {
            if !link.send(message) {
                counters.overflowed.bump();
            }
        } else if partner.dialling {
            match partner.queue.len() < PARTNER_QUEUE {
                true => partner.queue.push_back(message),
                false => counters.overflowed.bump(),
            }
        } else if addrs.is_empty() || partner.backing_off(Instant::now()) {
            counters.unreachable.bump();
        } else {
            partner.queue.push_back(message);
            self.dial(to, addrs);
        }
    }

    fn connect(&mut self, to: NodeId, addrs: &[SocketAddr], reply: ConnectReply) {
        let partner = self.partners.entry(to).or_default();
        if let Some(link) = &partner.link {
            reply.send(Ok(link.remote())).unwrap_or_default();
        } else if addrs.is_empty() && !partner.dialling {
            reply.send(Err(ConnectError::NoAddress { node: to })).unwrap_or_default();
        } else {
            partner.waiting.push(reply);
            if !partner.dialling {
                self.dial(to, addrs);
            }
        }
    }

    fn dial(&mut self, node: NodeId, addrs: &[SocketAddr]) {
        let full = self.links() >= MAX_LINKS;
        let (endpoint, keys, hello) = (self.endpoint.clone(), self.keys.clone(), self.hello);
        let reporter = self.reporter.clone();
        let addrs: Vec<_> = addrs.iter().copied().take(MAX_ADDRS).collect();
        self.partners.entry(node).or_default().dialling = true;
        tokio::spawn(async move {
            let result = match full {
                true => Err(ConnectError::TooMany { node }),
                false => dial_any(endpoint, keys, hello, Some(node), addrs)
                    .await
                    .map_err(|attempts| ConnectError::Unreachable { node, attempts }),
            };
            // Fails only when the hub is gone.
            reporter.send(Report::Dialled(node, result)).await.unwrap_or_default();
        });
    }

    /// Dials whoever lives at one of the addresses.
    fn find(&mut self, addrs: Vec<SocketAddr>, message: Outgoing) {
        if self.finding >= MAX_FINDING || self.links() >= MAX_LINKS {
            return self.context.counters.unreachable.bump();
        }
        self.finding += 1;
        let (endpoint, keys, hello) = (self.endpoint.clone(), self.keys.clone(), self.hello);
        let reporter = self.reporter.clone();
        tokio::spawn(async move {
            let addrs = addrs.into_iter().take(MAX_ADDRS).collect();
            let found = dial_any(endpoint, keys, hello, None, addrs).await;
            reporter.send(Report::Found(found, message)).await.unwrap_or_default();
        });
    }

    fn note_found(
        &mut self,
        found: Result<Established, Vec<(SocketAddr, DialError)>>,
        message: Outgoing,
    ) {
        self.finding -= 1;
        let counters = self.context.counters.clone();
        let established = match found {
            Ok(established) => established,
            Err(attempts) => {
                tracing::debug!(?attempts, "nobody was found");
                counters.dials_failed.bump();
                return counters.unreachable.bump();
            }
        };
        let node = established.node;
        if node == self.keys.node() {
            established.connection.close(code::DONE, b"this is the caller itself");
            return counters.unreachable.bump();
        }
        self.adopt(established);
        // Another connection to it may be the one that is kept.
        self.send(node, &[], message);
    }

    fn answer(&mut self, incoming: quinn::Incoming) {
        let network = network(incoming.remote_address().ip(), 32);
        match self.handshakes.verdict(network, !incoming.may_retry()) {
            Verdict::Refuse => return incoming.refuse(),
            // Fails only for a client that did so already.
            Verdict::Retry => return incoming.retry().unwrap_or_default(),
            Verdict::Accept => self.handshakes.begin(network),
        }
        let (hello, access) = (self.hello, self.context.access.clone());
        let reporter = self.reporter.clone();
        tokio::spawn(async move {
            let result = hello::accept(incoming, hello, access).await;
            reporter.send(Report::Accepted(network, result)).await.unwrap_or_default();
        });
    }

    fn note(&mut self, report: Report) {
        match report {
            Report::Accepted(network, result) => {
                self.handshakes.end(network);
                match result {
                    Ok(established) => self.admit(established),
                    Err(error) => self.note_rejection(&error),
                }
            }
            Report::Dialled(node, result) => self.note_dialled(node, result),
            Report::Found(found, message) => self.note_found(found, message),
            Report::Closed(node, id) => {
                if let Some(partner) = self.partners.get_mut(&node) {
                    partner.link.take_if(|link| link.connection.stable_id() == id);
                }
                self.note_link(node);
            }
        }
    }

    fn note_rejection(&mut self, error: &DialError) {
        tracing::debug!(%error, "an incoming connection came to nothing");
        match error {
            DialError::Version { .. } => self.note_version(error),
            DialError::Refused(_) => self.context.counters.refused.bump(),
            DialError::Timeout(_)
            | DialError::WrongIdentity { .. }
            | DialError::Protocol(_)
            | DialError::Lost(_) => {}
        }
    }

    /// Two versions do not go together: the operator has to know, but nobody may fill the log.
    fn note_version(&mut self, error: &dyn std::error::Error) {
        self.context.counters.version_mismatches.bump();
        let now = Instant::now();
        if self.version_warned.is_none_or(|at| now - at > VERSION_WARNINGS) {
            self.version_warned = Some(now);
            tracing::warn!(%error, "a node speaks another version; its connection was closed");
        }
    }

    fn note_dialled(&mut self, node: NodeId, result: Result<Established, ConnectError>) {
        self.partners.entry(node).or_default().dialling = false;
        match result {
            Ok(established) => self.adopt(established),
            Err(error) => self.note_dial_failed(node, &error),
        }
    }

    fn note_dial_failed(&mut self, node: NodeId, error: &ConnectError) {
        tracing::debug!(%error, "a dial failed");
        if let ConnectError::Unreachable { attempts, .. } = error
            && attempts.iter().any(|(_, why)| matches!(why, DialError::Version { .. }))
        {
            self.note_version(error);
        }
        let counters = &self.context.counters;
        counters.dials_failed.bump();
        let partner = self.partners.entry(node).or_default();
        // The partner may have dialled us meanwhile.
        if let Some(link) = &partner.link {
            let remote = link.remote();
            partner.waiting.drain(..).for_each(|reply| reply.send(Ok(remote)).unwrap_or_default());
            return;
        }
        counters.unreachable.add(partner.queue.len());
        partner.queue.clear();
        partner.note_failure(Instant::now());
        for reply in partner.waiting.drain(..) {
            reply.send(Err(error.clone())).unwrap_or_default();
        }
    }

    /// Takes a connection that somebody made to us, unless there are too many.
    fn admit(&mut self, established: Established) {
        let stranger = self.context.access.borrow().of(&established.node) != Access::Member;
        let remote = established.connection.remote_address().ip();
        if stranger && !self.admit_stranger(remote) {
            self.context.counters.strangers_limited.bump();
            established.connection.close(code::LIMIT, b"too many strangers, try again later");
        } else if self.links() >= MAX_LINKS {
            established.connection.close(code::LIMIT, b"too many connections");
        } else {
            self.adopt(established);
        }
    }

    fn admit_stranger(&mut self, ip: IpAddr) -> bool {
        let now = Instant::now();
        while self.strangers.front().is_some_and(|(at, _)| now - *at > STRANGER_WINDOW) {
            self.strangers.pop_front();
        }
        let network = network(ip, 32);
        let same = self.strangers.iter().filter(|(_, other)| *other == network).count();
        let admitted = self.strangers.len() < STRANGERS && same < STRANGERS_PER_NETWORK;
        if admitted {
            self.strangers.push_back((now, network));
        }
        admitted
    }

    /// Makes a connection the partner's link, unless a better one exists already.
    fn adopt(&mut self, established: Established) {
        let node = established.node;
        let id = established.connection.stable_id();
        let reporter = self.reporter.clone();
        let closed = async move {
            reporter.send(Report::Closed(node, id)).await.unwrap_or_default();
        };
        self.context.counters.connected.bump();
        tracing::debug!(node = %node.short(), dialled = established.dialled, "connected");
        let link = Link::start(established, self.context.clone(), closed);
        let ours = self.keys.node();
        let partner = self.partners.entry(node).or_default();
        match partner.link.take() {
            None => partner.link = Some(link),
            Some(old) => partner.link = Some(keep_one(ours, node, old, link)),
        }
        self.note_link(node);
        self.flush(node);
    }

    /// Tells whether there is a connection to a node.
    fn note_link(&self, node: NodeId) {
        let link = self.partners.get(&node).is_some_and(|partner| partner.link.is_some());
        self.linked.send_if_modified(|linked| match link {
            true => linked.insert(node),
            false => linked.remove(&node),
        });
    }

    /// A connection is there: sends what waited for it and tells who waited for it.
    fn flush(&mut self, node: NodeId) {
        let Some(partner) = self.partners.get_mut(&node) else { return };
        let Some(link) = &partner.link else { return };
        (partner.failures, partner.not_before) = (0, None);
        for message in partner.queue.drain(..) {
            if !link.send(message) {
                self.context.counters.overflowed.bump();
            }
        }
        let remote = link.remote();
        partner.waiting.drain(..).for_each(|reply| reply.send(Ok(remote)).unwrap_or_default());
    }

    fn links(&self) -> usize {
        self.partners.values().filter(|partner| partner.link.is_some()).count()
    }
}

/// Dials all addresses, each a moment after the one before; the first connection wins. Only over
/// that one hello is said: the other side must not take one for the better that is closed here.
async fn dial_any(
    endpoint: quinn::Endpoint,
    keys: Keys,
    hello: Hello,
    node: Option<NodeId>,
    addrs: Vec<SocketAddr>,
) -> Result<Established, Vec<(SocketAddr, DialError)>> {
    let mut dials = JoinSet::new();
    for (addr, index) in addrs.into_iter().zip(0..) {
        let (endpoint, keys) = (endpoint.clone(), keys.clone());
        dials.spawn(async move {
            sleep(STAGGER * index).await;
            (addr, hello::dial(endpoint, keys, node, addr).await)
        });
    }
    let mut attempts = Vec::new();
    while let Some(joined) = dials.join_next().await {
        let (addr, dialled) = match joined {
            Ok(joined) => joined,
            Err(error) => {
                tracing::error!(%error, "a dial did not end in order");
                continue;
            }
        };
        let greeted = match dialled {
            Ok(dialled) => dialled.greet(hello).await,
            Err(why) => Err(why),
        };
        match greeted {
            // The others end with the set.
            Ok(established) => return Ok(established),
            Err(why) => attempts.push((addr, why)),
        }
    }
    Err(attempts)
}

/// Both sides keep the same one of two connections: that of the partner's newer start, or else
/// the newer one of the same direction, or else the one that the lesser identity dialled.
fn keep_one(ours: NodeId, theirs: NodeId, old: Link, new: Link) -> Link {
    if old.instance != new.instance {
        old.connection.close(code::DUPLICATE, b"the agent was started again");
        return new;
    }
    if old.dialled == new.dialled || new.dialled == (ours < theirs) {
        old.retire();
        return new;
    }
    new.retire();
    old
}

/// What counts as one network in the limits for strangers: so many bits of an IPv4 address, or an
/// IPv6 /64.
pub(crate) fn network(ip: IpAddr, bits: u32) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            Ipv4Addr::from_bits(v4.to_bits() & mask).into()
        }
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) & (u128::MAX << 64)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_group_addresses() {
        let network = |text: &str| network(text.parse().expect("an address"), 32).to_string();
        assert_eq!(network("2001:db8::1:2:3:4"), "2001:db8::");
        assert_eq!(network("::ffff:192.0.2.1"), "192.0.2.1");
    }

    #[test]
    fn one_network_cannot_take_all_handshakes() {
        let network = |n: u8| IpAddr::from([192, 0, 2, n]);
        let mut handshakes = Handshakes::default();
        // As many as one network can get, from whoever proves its address when asked to.
        let fill = |handshakes: &mut Handshakes, from| {
            let accepted = |h: &Handshakes| h.verdict(from, true) == Verdict::Accept;
            (0..1000)
                .take_while(|_| accepted(handshakes).then(|| handshakes.begin(from)).is_some())
                .count()
        };
        assert_eq!(fill(&mut handshakes, network(1)), MAX_HANDSHAKES_PER_NETWORK);
        assert_eq!(handshakes.verdict(network(1), true), Verdict::Refuse);
        assert_eq!(handshakes.verdict(network(2), false), Verdict::Retry);
        assert_eq!(handshakes.verdict(network(2), true), Verdict::Accept);
        handshakes.end(network(1));
        assert_eq!(handshakes.verdict(network(1), true), Verdict::Accept);
        handshakes.begin(network(1));
        let others: usize = (2..100).map(|n| fill(&mut handshakes, network(n))).sum();
        assert_eq!(others, MAX_HANDSHAKES - MAX_HANDSHAKES_PER_NETWORK);
        assert_eq!(handshakes.verdict(network(200), true), Verdict::Refuse);
    }

    #[test]
    fn addresses_that_are_not_proved_use_up_little() {
        let victim = IpAddr::from([192, 0, 2, 1]);
        let mut handshakes = Handshakes::default();
        for _ in 0..HANDSHAKES_BEFORE_RETRY_PER_NETWORK {
            assert_eq!(handshakes.verdict(victim, false), Verdict::Accept);
            handshakes.begin(victim);
        }
        assert_eq!(handshakes.verdict(victim, false), Verdict::Retry);
        assert_eq!(handshakes.verdict(victim, true), Verdict::Accept);
        (0..HANDSHAKES_BEFORE_RETRY_PER_NETWORK).for_each(|_| handshakes.end(victim));
        assert!(handshakes.by_network.is_empty(), "nothing is left behind");
    }

    #[test]
    fn back_off_grows_and_ends() {
        let mut partner = Partner::default();
        let now = Instant::now();
        assert!(partner.is_idle(now));
        partner.note_failure(now);
        assert!(partner.backing_off(now) && !partner.is_idle(now));
        assert!(!partner.backing_off(now + BACKOFF));
        partner.note_failure(now);
        assert!(partner.backing_off(now + BACKOFF));
        (0..40).for_each(|_| partner.note_failure(now));
        assert!(!partner.backing_off(now + MAX_BACKOFF), "never longer than the greatest");
    }
}
