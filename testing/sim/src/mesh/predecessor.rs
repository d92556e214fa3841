//! The predecessor's way of spreading a change, to compare with.
//!
//! Peers sorted by key are cut into neighbourhoods of 64. Every 2 s a node that has changes under
//! way reconciles with 3 random neighbours, with some chance one of them of another
//! neighbourhood, for 3 rounds after it has heard of the last change; a node that heard nothing
//! for 20 s pulls from one neighbour. A reconciliation exchanges all stamps, then what differs.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use selvedge_model::Time;

use super::net::{Conditions, Net, Port, REGIONS};
use super::scale::{Options, Report, Spread, millis, round};

const NEIGHBOURHOOD: usize = 64;
const ELSEWHERE: f64 = 0.15;
const FAN_OUT: usize = 3;
const ROUNDS: u32 = 3;
const SYNC: Duration = Duration::from_secs(2);
const PULL: Duration = Duration::from_secs(20);
/// Bytes of a stamp with its key, and of a record.
const STAMP: usize = 56;
const RECORD: usize = 500;
const PATIENCE: Duration = Duration::from_secs(600);

struct Node {
    port: Port,
    known: Option<Time>,
    rounds: u32,
    heard: Time,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    Round(usize),
    /// A reconciliation reaches the other side; with what the first side knew.
    Sync {
        from: usize,
        to: usize,
        knows: bool,
    },
    /// The answer, with what the other side knew.
    Answer {
        to: usize,
        knows: bool,
    },
}

struct World {
    now: Time,
    nodes: Vec<Node>,
    net: Net,
    rng: ChaCha8Rng,
    queue: BinaryHeap<Reverse<(Time, u64, Happening)>>,
    order: u64,
    copies: u64,
}

/// Spreads changes one after the other, and notes how long each took.
pub fn run(options: &Options, report: &mut Report) {
    let mut world = World::new(options);
    let known = world.spread_several(options);
    let worst = |part: f64| {
        let at =
            |times: &Vec<Duration>| times[((times.len() as f64 * part).ceil() as usize).max(1) - 1];
        millis(known.iter().map(at).max().unwrap_or_default())
    };
    report.update_ms = Spread { p50: worst(0.5), p99: worst(0.99), max: worst(1.0) };
    let receivers = (world.nodes.len() * known.len()) as f64;
    report.copies_per_update = round(world.copies as f64 / receivers);
    report.virtual_s = super::scale::seconds(world.now.since(Time::ZERO));
}

/// When the nodes came to know of each of several changes, in order.
#[must_use]
pub fn spread(options: &Options) -> Vec<Vec<Duration>> {
    World::new(options).spread_several(options)
}

impl World {
    fn new(options: &Options) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
        let conditions = Conditions { loss: options.loss, double: 0.0, jitter: 0.1 };
        let net = Net::new(conditions, ChaCha8Rng::seed_from_u64(options.seed ^ 1));
        let nodes = (0..options.nodes).map(|_| Node {
            port: Port {
                region: rng.random_range(0..REGIONS),
                side: 0,
                nat: false,
                free: Time::ZERO,
                sent: 0,
                received: 0,
            },
            known: None,
            rounds: 0,
            heard: Time::ZERO,
        });
        let nodes = nodes.collect();
        let (now, queue) = (Time::ZERO, BinaryHeap::new());
        let mut world = Self { now, nodes, net, rng, queue, order: 0, copies: 0 };
        for place in 0..world.nodes.len() {
            let at = Time::ZERO + SYNC.mul_f64(world.rng.random_range(0.0..1.0));
            world.push(at, Happening::Round(place));
        }
        world
    }

    fn spread_several(&mut self, options: &Options) -> Vec<Vec<Duration>> {
        (0..options.updates.min(5)).map(|_| self.spread()).collect()
    }

    /// One change, from a random node, until all know it. When each came to know it, in order.
    fn spread(&mut self) -> Vec<Duration> {
        let began = self.now;
        self.nodes.iter_mut().for_each(|node| node.known = None);
        let first = self.rng.random_range(0..self.nodes.len());
        self.learn(first);
        let mut lacking = self.nodes.len() - 1;
        while lacking > 0 && self.now.since(began) < PATIENCE {
            let Some(Reverse((at, _, happening))) = self.queue.pop() else { break };
            self.now = at;
            lacking -= usize::from(self.happen(&happening));
        }
        let known = self.nodes.iter().map(|node| node.known.map_or(PATIENCE, |at| at.since(began)));
        let mut known: Vec<Duration> = known.collect();
        known.sort();
        known
    }

    /// Says whether a node has learned of the change.
    fn happen(&mut self, happening: &Happening) -> bool {
        match *happening {
            Happening::Round(place) => {
                self.push(self.now + SYNC, Happening::Round(place));
                self.round(place);
                false
            }
            Happening::Sync { from, to, knows } => {
                let known = self.nodes[to].known.is_some();
                self.send(to, from, known && !knows, |knows| Happening::Answer { to: from, knows });
                self.hear(to, knows)
            }
            Happening::Answer { to, knows } => self.hear(to, knows),
        }
    }

    fn round(&mut self, place: usize) {
        let node = &mut self.nodes[place];
        let infected = node.rounds > 0;
        node.rounds = node.rounds.saturating_sub(1);
        let pulls = self.now.since(node.heard) > PULL;
        let count = if infected { FAN_OUT } else { usize::from(pulls) };
        if pulls {
            node.heard = self.now;
        }
        for partner in 0..count {
            let elsewhere = partner == 0 && self.rng.random_range(0.0..1.0) < ELSEWHERE;
            let to = self.partner(place, elsewhere);
            let knows = self.nodes[place].known.is_some();
            self.send(place, to, false, |_| Happening::Sync { from: place, to, knows });
        }
    }

    fn partner(&mut self, place: usize, elsewhere: bool) -> usize {
        if elsewhere {
            return self.rng.random_range(0..self.nodes.len());
        }
        let first = place / NEIGHBOURHOOD * NEIGHBOURHOOD;
        self.rng.random_range(first..(first + NEIGHBOURHOOD).min(self.nodes.len()))
    }

    /// All stamps, and the record if it is known to be lacking there.
    fn send(&mut self, from: usize, to: usize, record: bool, what: impl Fn(bool) -> Happening) {
        let len = self.nodes.len() * STAMP + if record { RECORD } else { 0 };
        let knows = self.nodes[from].known.is_some();
        let receiver = self.nodes[to].port;
        let sender = &mut self.nodes[from].port;
        let fate = self.net.stream((sender, &receiver), (from, to), true, len, self.now);
        for at in fate.arrivals {
            self.push(at, what(knows));
        }
    }

    fn hear(&mut self, place: usize, knows: bool) -> bool {
        self.nodes[place].heard = self.now;
        self.copies += u64::from(knows);
        let news = knows && self.nodes[place].known.is_none();
        if news {
            self.learn(place);
        }
        news
    }

    fn learn(&mut self, place: usize) {
        self.nodes[place].known = Some(self.now);
        self.nodes[place].rounds = ROUNDS;
    }

    fn push(&mut self, at: Time, happening: Happening) {
        self.order += 1;
        self.queue.push(Reverse((at, self.order, happening)));
    }
}
