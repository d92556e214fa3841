//! The network between the members: who reaches whom, when, and at what price in bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;
use selvedge_model::Time;

/// One-way delays between regions in ms: two in Europe, two in North America, South America,
/// India, Japan, Australia.
const DELAYS: [[u64; REGIONS]; REGIONS] = [
    [1, 10, 40, 70, 95, 60, 110, 135],
    [10, 1, 45, 75, 100, 55, 115, 140],
    [40, 45, 1, 32, 60, 95, 80, 100],
    [70, 75, 32, 1, 90, 110, 55, 70],
    [95, 100, 60, 90, 1, 150, 130, 150],
    [60, 55, 95, 110, 150, 1, 60, 75],
    [110, 115, 80, 55, 130, 60, 1, 55],
    [135, 140, 100, 70, 150, 75, 55, 1],
];
/// The number of regions.
pub const REGIONS: usize = 8;

/// IPv4, UDP, and what `selvedge-transport` puts around a sealed datagram.
const DATAGRAM_OVERHEAD: u64 = 28 + 29;
/// What it takes to ask for a session of datagrams, and to grant one.
const KNOCK: u64 = 28 + 66 + 28 + 82;
/// How often a session is asked for before what waits for it is dropped, and how far apart.
const KNOCKS: u32 = 2;
const AGAIN: Duration = Duration::from_millis(400);
/// A packet of a stream carries so much.
const SEGMENT: u64 = 1150;
/// IPv4, UDP, QUIC, and half an acknowledgement.
const SEGMENT_OVERHEAD: u64 = 28 + 30 + 35;
/// What a QUIC handshake costs each side, its padded first packets included.
const HANDSHAKE: u64 = 2500;
/// A NAT lets nobody in through a hole that its host has not used for so long.
const HOLE: Duration = Duration::from_secs(60);
/// A connection that is not used for so long is gone.
const CONNECTION: Duration = Duration::from_secs(30);
/// What a stream may send before it hears that something arrived.
const FIRST_WINDOW: u64 = 14_000;
/// Bytes per second that a node can send.
const UPLINK: u64 = 100_000_000 / 8;

/// How the network behaves.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    /// The chance that a packet is lost.
    pub loss: f64,
    /// The chance that a datagram arrives twice.
    pub double: f64,
    /// Delays vary up to this part of themselves, so that packets overtake each other.
    pub jitter: f64,
}

/// The network.
#[derive(Debug)]
pub struct Net {
    /// How it behaves now.
    pub conditions: Conditions,
    /// Nothing that the nodes of the first side send reaches those of the second.
    pub cuts: BTreeSet<(u8, u8)>,
    /// When two nodes last used their connection, the lesser first.
    connections: BTreeMap<(usize, usize), Time>,
    /// Who has started since the run began. All others have sessions with each other: these last
    /// until one of the two starts again.
    started: BTreeSet<usize>,
    /// From when on the session of two nodes, the lesser first, one of which has started since, can
    /// be used.
    sessions: BTreeMap<(usize, usize), Time>,
    /// When a node behind a NAT last sent something to another: only then does an answer pass.
    holes: BTreeMap<(usize, usize), Time>,
    rng: ChaCha8Rng,
}

/// Where a node is attached.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    /// The region.
    pub region: usize,
    /// Which sides do not reach which is said by [`Net::cuts`].
    pub side: u8,
    /// Whether only those can reach it that it sent something to a moment ago.
    pub nat: bool,
    /// When it can send the next packet.
    pub free: Time,
    /// Bytes sent so far, on the wire.
    pub sent: u64,
    /// Bytes received so far, on the wire.
    pub received: u64,
}

/// What becomes of a message: when its copies arrive, and how long it is on the wire.
#[derive(Clone, Debug, Default)]
pub struct Fate {
    /// When it arrives; empty if it is lost.
    pub arrivals: Vec<Time>,
    /// Bytes on the wire.
    pub bytes: u64,
}

impl Net {
    /// A network without connections.
    #[must_use]
    pub fn new(conditions: Conditions, rng: ChaCha8Rng) -> Self {
        Self {
            conditions,
            cuts: BTreeSet::new(),
            connections: BTreeMap::new(),
            started: BTreeSet::new(),
            sessions: BTreeMap::new(),
            holes: BTreeMap::new(),
            rng,
        }
    }

    /// Notes that a node has started, and has no sessions.
    pub fn start(&mut self, place: usize) {
        self.started.insert(place);
        self.sessions.retain(|(one, other), _| *one != place && *other != place);
    }

    /// Whether what one node sends can reach another.
    #[must_use]
    pub fn reaches(&self, from: &Port, to: &Port) -> bool {
        self.cuts.is_empty() || !self.cuts.contains(&(from.side, to.side))
    }

    /// Whether NATs let a packet pass. `who` are the numbers of sender and receiver.
    fn passes(&mut self, from: &Port, to: &Port, who: (usize, usize), now: Time) -> bool {
        if from.nat {
            self.holes.insert(who, now);
        }
        let hole = || self.holes.get(&(who.1, who.0));
        !to.nat || hole().is_some_and(|used| now.since(*used) <= HOLE)
    }

    /// Sends a datagram. `who` are the numbers of sender and receiver.
    pub fn datagram(
        &mut self,
        (from, to): (&mut Port, &Port),
        who: (usize, usize),
        len: usize,
        now: Time,
    ) -> Fate {
        let reaches = self.passes(from, to, who, now) && self.reaches(from, to);
        let (ready, knocks) = self.session((from, to), who, reaches, now);
        let bytes = len as u64 + DATAGRAM_OVERHEAD + knocks;
        let leaves = leave(from, bytes, now);
        let Some(leaves) = ready.map(|ready| leaves.max(ready)) else {
            return Fate { arrivals: Vec::new(), bytes };
        };
        let copies = usize::from(self.chance(self.conditions.double)) + 1;
        let mut arrivals = Vec::with_capacity(copies);
        for _ in 0..copies {
            if reaches && !self.chance(self.conditions.loss) {
                arrivals.push(leaves + self.delay(from.region, to.region));
            }
        }
        Fate { arrivals, bytes }
    }

    /// From when on two nodes can send each other datagrams, which takes a round trip if they have
    /// not before, and the bytes that both send for that; `None` if that fails.
    fn session(
        &mut self,
        (from, to): (&Port, &Port),
        who: (usize, usize),
        reaches: bool,
        now: Time,
    ) -> (Option<Time>, u64) {
        if !self.started.contains(&who.0) && !self.started.contains(&who.1) {
            return (Some(now), 0);
        }
        if let Some(ready) = self.sessions.get(&pair(who)) {
            return (Some(*ready), 0);
        }
        let there_and_back = reaches && self.reaches(to, from);
        for knock in 0..KNOCKS {
            let lost = self.chance(self.conditions.loss) || self.chance(self.conditions.loss);
            if there_and_back && !lost {
                let round = self.delay(from.region, to.region) + self.delay(to.region, from.region);
                let ready = now + AGAIN * knock + round;
                self.sessions.insert(pair(who), ready);
                return (Some(ready), KNOCK * u64::from(knock + 1));
            }
        }
        (None, KNOCK * u64::from(KNOCKS))
    }

    /// Sends a message over a stream: what is lost is repeated, and a long one needs several
    /// round trips. `who` are the numbers of sender and receiver; `up` is whether the receiver runs.
    pub fn stream(
        &mut self,
        (from, to): (&mut Port, &Port),
        who: (usize, usize),
        up: bool,
        len: usize,
        now: Time,
    ) -> Fate {
        let passes = self.passes(from, to, who, now);
        if !passes || !self.reaches(from, to) || !self.reaches(to, from) || !up {
            // A few first packets of a handshake.
            let bytes = HANDSHAKE / 2;
            from.sent += bytes;
            return Fate { arrivals: Vec::new(), bytes: 0 };
        }
        let used = self.connections.insert(pair(who), now);
        let fresh = used.is_none_or(|used| now.since(used) > CONNECTION);
        let segments = (len as u64).div_ceil(SEGMENT).max(1);
        let handshake = if fresh { HANDSHAKE } else { 0 };
        let bytes = len as u64 + segments * SEGMENT_OVERHEAD + handshake;
        let leaves = leave(from, bytes, now);
        let round = self.delay(from.region, to.region) + self.delay(to.region, from.region);
        let lost =
            self.chance(1.0 - (1.0 - self.conditions.loss).powi(segments.min(1 << 20) as i32));
        let growth = (len as u64 / FIRST_WINDOW + 1).ilog2();
        let rounds = u32::from(fresh) + growth + u32::from(lost);
        Fate { arrivals: vec![leaves + round * rounds + round / 2], bytes }
    }

    fn delay(&mut self, from: usize, to: usize) -> Duration {
        let base = Duration::from_millis(DELAYS[from][to]);
        base.mul_f64(self.rng.random_range(1.0..=1.0 + self.conditions.jitter))
    }

    fn chance(&mut self, of_one: f64) -> bool {
        of_one > 0.0 && self.rng.random_range(0.0..1.0) < of_one
    }
}

/// Two nodes, the lesser first.
fn pair(who: (usize, usize)) -> (usize, usize) {
    (who.0.min(who.1), who.0.max(who.1))
}

/// When the last byte has left.
fn leave(port: &mut Port, bytes: u64, now: Time) -> Time {
    port.sent += bytes;
    port.free = port.free.max(now) + Duration::from_micros(bytes * 1_000_000 / UPLINK);
    port.free
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    fn port(region: usize, side: u8) -> Port {
        Port { region, side, nat: false, free: Time::ZERO, sent: 0, received: 0 }
    }

    fn net(loss: f64) -> Net {
        let conditions = Conditions { loss, double: 0.0, jitter: 0.1 };
        Net::new(conditions, ChaCha8Rng::seed_from_u64(1))
    }

    #[test]
    fn delays_are_the_same_both_ways_and_within_the_bounds() {
        for (from, row) in DELAYS.iter().enumerate() {
            for (to, delay) in row.iter().enumerate() {
                assert_eq!(*delay, DELAYS[to][from]);
                assert!((1..=150).contains(delay));
            }
        }
    }

    #[test]
    fn datagrams_are_lost_as_often_as_said_and_never_where_a_link_is_cut() {
        let mut net = net(0.1);
        net.cuts.insert((0, 1));
        let mut from = port(0, 0);
        let arrived = |net: &mut Net, from: &mut Port, to: Port| {
            (0..10_000)
                .filter(|_| !net.datagram((from, &to), (0, 1), 100, Time::ZERO).arrivals.is_empty())
                .count()
        };
        let here = arrived(&mut net, &mut from, port(7, 0));
        assert!((8_800..9_200).contains(&here), "{here}");
        assert_eq!(arrived(&mut net, &mut from, port(7, 1)), 0);
        let back = arrived(&mut net, &mut port(7, 1), port(0, 0));
        assert!((8_800..9_200).contains(&back), "the way back is not cut: {back}");
    }

    #[test]
    fn a_nat_lets_in_only_answers() {
        let mut net = net(0.0);
        let (mut host, mut out) = (Port { nat: true, ..port(0, 0) }, port(1, 0));
        let mut arrives = |inwards: bool, seconds: u64| {
            let now = Time::from_micros(seconds * 1_000_000);
            let fate = match inwards {
                true => net.datagram((&mut out, &host), (1, 0), 100, now),
                false => net.datagram((&mut host, &out), (0, 1), 100, now),
            };
            !fate.arrivals.is_empty()
        };
        assert!(!arrives(true, 0));
        assert!(arrives(false, 1) && arrives(true, 2));
        assert!(arrives(true, 61) && !arrives(true, 62), "a minute later the hole is closed");
    }

    #[test]
    fn the_first_datagram_to_or_from_who_has_started_waits_for_a_session() {
        let mut net = net(0.0);
        let (mut a, b) = (port(0, 0), port(2, 0));
        let mut send = |net: &mut Net, ms: u64| {
            let now = Time::from_micros(ms * 1000);
            let fate = net.datagram((&mut a, &b), (0, 1), 100, now);
            (fate.arrivals.first().map(|at| at.since(now).as_millis()), fate.bytes)
        };
        let (usual, bytes) = send(&mut net, 0);
        assert!(usual.is_some_and(|ms| (40..45).contains(&ms)), "{usual:?}");
        net.start(1);
        let (first, with_knock) = send(&mut net, 1000);
        assert!(first.is_some_and(|ms| (120..133).contains(&ms)), "{first:?}");
        assert_eq!(with_knock, bytes + KNOCK);
        let (under_way, _) = send(&mut net, 1050);
        assert!(under_way.is_some_and(|ms| (70..85).contains(&ms)), "{under_way:?}");
        assert_eq!(send(&mut net, 2000).1, bytes);
        net.start(0);
        net.cuts.insert((0, 0));
        assert_eq!(send(&mut net, 3000), (None, bytes + 2 * KNOCK), "nobody answers");
        net.cuts.clear();
        assert_eq!(send(&mut net, 4000).1, with_knock);
    }

    #[test]
    fn a_long_message_needs_round_trips_and_the_first_a_handshake() {
        let mut net = net(0.0);
        let (mut a, b) = (port(0, 0), port(2, 0));
        let first = net.stream((&mut a, &b), (0, 1), true, 100, Time::ZERO);
        let second = net.stream((&mut a, &b), (1, 0), true, 100, Time::ZERO);
        let third = net.stream((&mut a, &b), (1, 0), true, 1_000_000, Time::ZERO);
        assert!(first.bytes > second.bytes + 2000);
        assert!(first.arrivals[0] > second.arrivals[0] + Duration::from_millis(70));
        assert!(third.arrivals[0] > second.arrivals[0] + Duration::from_millis(400));
        assert!(net.stream((&mut a, &b), (0, 1), false, 100, Time::ZERO).arrivals.is_empty());
    }
}
