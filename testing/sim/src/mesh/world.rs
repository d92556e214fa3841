//! Members with their real cores, on virtual time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use selvedge_mesh::wire::{Envelope, Message};
use selvedge_mesh::{
    Config, Endpoint, Event, Identity, Life, Mesh, Profile, State, Transmit, UnixTime, Verifier,
};
use selvedge_model::{NodeId, Time, WgKey};

use super::net::{Conditions, Net, Port, REGIONS};

/// The wall clock when a run begins.
const WALL: u64 = 1_795_000_000;
/// Records were last renewed within so many seconds.
const RENEWED: u64 = 22 * 3600;

/// What a world is made of.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Number of members at the start.
    pub nodes: usize,
    /// Where all randomness comes from.
    pub seed: u64,
    /// How the network behaves.
    pub conditions: Conditions,
    /// How the members behave.
    pub config: Config,
    /// This part of the nodes stalls now and then, for up to a second.
    pub stalling: f64,
}

/// A node, running or not.
#[derive(Debug)]
pub struct Node {
    /// Its part in the mesh; `None` while it does not run.
    pub mesh: Option<Mesh>,
    /// Who it is.
    pub id: NodeId,
    /// Where it is attached.
    pub port: Port,
    stalls: bool,
    stalled_until: Time,
    armed: Option<Time>,
}

/// The bytes that were sent, by what for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    /// Probes and their answers.
    pub probes: u64,
    /// Records and rumors that are new, and their announcements.
    pub news: u64,
    /// Reconciliation.
    pub repair: u64,
    /// Admission.
    pub joins: u64,
}

/// Something that all are to come to know.
#[derive(Debug)]
pub struct Tracked {
    /// Who said or did it.
    pub node: NodeId,
    what: What,
    /// When.
    pub since: Time,
    unknowing: BTreeSet<usize>,
    /// When each other node came to know it, in order.
    pub known: Vec<Duration>,
    /// Copies of it that were received as news.
    pub copies: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Record(u64),
    Down,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    Timer(usize),
    Arrival { from: usize, to: usize, bytes: Arc<[u8]> },
    Stall(usize),
}

/// The whole.
#[derive(Debug)]
pub struct World {
    /// The moment.
    pub now: Time,
    /// All nodes that ever were.
    pub nodes: Vec<Node>,
    /// The network.
    pub net: Net,
    /// What is being followed.
    pub tracked: Vec<Tracked>,
    /// How often a running node in reach was held to be down: by whom it was first.
    pub false_failures: Vec<String>,
    /// Invariants that did not hold, in words.
    pub violations: Vec<String>,
    /// Bytes by purpose.
    pub traffic: Traffic,
    /// Messages that arrived.
    pub messages: u64,
    /// What all draw from.
    pub rng: ChaCha8Rng,
    /// Where in `nodes` a node is, by the first bytes of its identity.
    places: BTreeMap<u64, usize>,
    identities: Vec<Identity>,
    setup: Setup,
    verifier: Verifier,
    queue: BinaryHeap<Reverse<(Time, u64, Happening)>>,
    order: u64,
    /// Whom somebody held to be down who was not.
    convicted: BTreeSet<NodeId>,
    /// Since when the mesh is not torn apart, and those who were down or apart before may still
    /// be held so.
    pub whole_since: Option<Time>,
}

impl World {
    /// A mesh that all have joined long ago, and that starts now.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(setup.seed);
        let net = Net::new(setup.conditions, ChaCha8Rng::seed_from_u64(setup.seed ^ 0x6e65_7400));
        let mut world = Self {
            now: Time::ZERO,
            nodes: Vec::new(),
            net,
            tracked: Vec::new(),
            false_failures: Vec::new(),
            violations: Vec::new(),
            traffic: Traffic::default(),
            messages: 0,
            rng,
            places: BTreeMap::new(),
            identities: Vec::new(),
            verifier: Verifier::shared(),
            queue: BinaryHeap::new(),
            order: 0,
            convicted: BTreeSet::new(),
            whole_since: Some(Time::ZERO),
            setup,
        };
        let state = world.people();
        for place in 0..world.nodes.len() {
            let own = state.kept_by(world.nodes[place].id).expect("all have a record");
            world.start(place, own);
        }
        world
    }

    /// Adds a node that does not run yet, and returns its place.
    pub fn add(&mut self) -> usize {
        let place = self.nodes.len();
        let mut secret = [0; 32];
        secret[..8].copy_from_slice(&self.setup.seed.to_le_bytes());
        secret[8..16].copy_from_slice(&(place as u64).to_le_bytes());
        let identity = Identity::from_secret(&secret);
        let region = self.rng.random_range(0..REGIONS);
        let port = Port { region, side: 0, free: self.now, sent: 0, received: 0 };
        let stalls = self.rng.random_range(0.0..1.0) < self.setup.stalling;
        let id = identity.node_id();
        self.nodes.push(Node {
            mesh: None,
            id,
            port,
            stalls,
            stalled_until: Time::ZERO,
            armed: None,
        });
        self.places.insert(beginning(id), place);
        self.identities.push(identity);
        place
    }

    /// Makes the members, and the state that all of them know.
    fn people(&mut self) -> State {
        for _ in 0..self.setup.nodes {
            self.add();
        }
        let life = self.setup.config.record_life;
        let lives: Vec<Life> = (0..self.setup.nodes)
            .map(|_| Life::new(UnixTime(WALL - self.rng.random_range(0..RENEWED)), life))
            .collect();
        let founder = &self.identities[0];
        let mut state =
            State::found(founder, "sim", [7; 16], key(0), profile(0)).expect("in bounds");
        state.verify_by(self.verifier.clone());
        let others = self.identities.iter().zip(&lives).enumerate().skip(1);
        let others = others.map(|(n, (identity, life))| (identity, key(n), profile(n), *life));
        state.peopled(founder, others).expect("in bounds")
    }

    /// Starts a node with what it kept.
    pub fn start(&mut self, place: usize, mut state: State) {
        state.verify_by(self.verifier.clone());
        let seed = self.rng.random();
        let identity = self.identities[place].clone();
        let config = self.setup.config.clone();
        let wall = self.wall();
        let mesh = Mesh::new(identity, state, config, seed, self.now, wall).expect("its own state");
        self.nodes[place].mesh = Some(mesh);
        self.nodes[place].armed = None;
        self.convicted.remove(&self.nodes[place].id);
        if self.nodes[place].stalls {
            self.push(self.now, Happening::Stall(place));
        }
        self.settle(place);
    }

    /// Stops a node at once, and returns what is on its disk.
    pub fn crash(&mut self, place: usize) -> Option<State> {
        let mesh = self.nodes[place].mesh.take();
        let (id, since) = (self.nodes[place].id, self.now);
        let unknowing = self.running().collect();
        let what = What::Down;
        let (known, copies) = (Vec::new(), 0);
        self.tracked.push(Tracked { node: id, what, since, unknowing, known, copies });
        mesh.map(Mesh::into_state)
    }

    /// Lets a node say something new, and follows that.
    pub fn update(&mut self, place: usize) {
        self.change(place);
        self.track_record(place);
    }

    /// Lets a node say something new.
    pub fn change(&mut self, place: usize) {
        let text = self.order;
        let Some(mesh) = &mut self.nodes[place].mesh else { return };
        let description = format!("update {text}");
        mesh.set_profile(Profile { description, ..mesh.profile() }).expect("in bounds");
        self.settle(place);
    }

    /// Follows how the record of a node becomes known.
    pub fn track_record(&mut self, place: usize) {
        let node = self.nodes[place].id;
        let Some(mesh) = &self.nodes[place].mesh else { return };
        let what = What::Record(mesh.seq(node));
        let unknowing = self.running().filter(|other| *other != place).collect();
        let (since, known, copies) = (self.now, Vec::new(), 0);
        self.tracked.push(Tracked { node, what, since, unknowing, known, copies });
    }

    /// The places of the nodes that run.
    pub fn running(&self) -> impl Iterator<Item = usize> {
        self.nodes
            .iter()
            .enumerate()
            .filter(|(_, node)| node.mesh.is_some())
            .map(|(place, _)| place)
    }

    /// The place of a running node drawn at random, the founder aside.
    pub fn draw(&mut self) -> usize {
        loop {
            let place = self.rng.random_range(1.min(self.nodes.len() - 1)..self.nodes.len());
            if self.nodes[place].mesh.is_some() {
                return place;
            }
        }
    }

    /// Whether all running nodes hold the same.
    pub fn agreed(&mut self) -> bool {
        let mut digests =
            self.nodes.iter_mut().filter_map(|node| node.mesh.as_mut()).map(Mesh::digest);
        let first = digests.next();
        digests.all(|digest| Some(digest) == first)
    }

    /// The number of those that running nodes hold to be down, summed over them, and how many they
    /// should.
    #[must_use]
    pub fn held_down(&self) -> usize {
        self.nodes.iter().filter_map(|node| node.mesh.as_ref()).map(Mesh::count_down).sum()
    }

    /// Tears the mesh apart: the nodes for which `side` says so are on their own.
    pub fn tear(&mut self, side: impl Fn(usize) -> u8) {
        for (place, node) in self.nodes.iter_mut().enumerate() {
            node.port.side = side(place);
        }
        self.whole_since = None;
    }

    /// Makes the mesh whole again.
    pub fn mend(&mut self) {
        self.nodes.iter_mut().for_each(|node| node.port.side = 0);
        self.whole_since = Some(self.now);
    }

    /// Runs for a while.
    pub fn run(&mut self, length: Duration) {
        let end = self.now + length;
        while let Some(Reverse((at, ..))) = self.queue.peek()
            && *at <= end
            && let Some(Reverse((at, _, happening))) = self.queue.pop()
        {
            self.now = self.now.max(at);
            self.happen(happening);
        }
        self.now = end;
    }

    /// Runs until `done` holds, looking every 10 ms. How long that took, if it did within `limit`.
    pub fn run_until(
        &mut self,
        limit: Duration,
        mut done: impl FnMut(&mut Self) -> bool,
    ) -> Option<Duration> {
        let began = self.now;
        while !done(self) {
            if self.now.since(began) > limit {
                return None;
            }
            self.run(Duration::from_millis(10));
        }
        Some(self.now.since(began))
    }

    /// The wall clock.
    #[must_use]
    pub fn wall(&self) -> UnixTime {
        UnixTime(WALL + self.now.as_micros() / 1_000_000)
    }

    /// The identity of a node.
    #[must_use]
    pub fn identity(&self, place: usize) -> Identity {
        self.identities[place].clone()
    }

    /// Sends a message from one node to another, as something outside the members' cores does.
    pub fn send(&mut self, from: usize, to: usize, bytes: &[u8]) {
        let id = self.nodes[to].id;
        self.transmit(from, &Transmit { to: id, bytes: bytes.into(), datagram: false });
    }

    /// How long a message over a stream takes between two nodes.
    pub fn exchange_time(&mut self, from: usize, to: usize, len: usize) -> Duration {
        let (receiver, now) = (self.nodes[to].port, self.now);
        let sender = &mut self.nodes[from].port;
        let fate = self.net.stream((sender, &receiver), (from, to), true, len, now);
        fate.arrivals.first().map_or(Duration::ZERO, |at| at.since(now))
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Timer(place) => self.timer(place),
            Happening::Stall(place) => self.stall(place),
            Happening::Arrival { from, to, bytes } => self.arrival(from, to, bytes),
        }
    }

    fn timer(&mut self, place: usize) {
        let node = &mut self.nodes[place];
        if node.armed != Some(self.now) {
            // An earlier one was set since.
            return;
        }
        if self.now < node.stalled_until {
            let until = node.stalled_until;
            node.armed = Some(until);
            return self.push(until, Happening::Timer(place));
        }
        node.armed = None;
        let (now, wall) = (self.now, self.wall());
        if let Some(mesh) = &mut self.nodes[place].mesh {
            mesh.handle_timeout(now, wall);
            self.settle(place);
        }
    }

    fn arrival(&mut self, from: usize, to: usize, bytes: Arc<[u8]>) {
        let (sender, receiver) = (self.nodes[from].id, &mut self.nodes[to]);
        if receiver.port.side != self.nodes[from].port.side {
            return;
        }
        let receiver = &mut self.nodes[to];
        if self.now < receiver.stalled_until {
            let until = receiver.stalled_until;
            return self.push(until, Happening::Arrival { from, to, bytes });
        }
        receiver.port.received += bytes.len() as u64;
        let (now, wall) = (self.now, UnixTime(WALL + self.now.as_micros() / 1_000_000));
        let Some(mesh) = &mut receiver.mesh else { return };
        mesh.handle_message(sender, &bytes, now, wall);
        self.messages += 1;
        self.count_copies(&bytes);
        self.settle(to);
    }

    /// Stops a node for a moment, and sets the time of the next one.
    fn stall(&mut self, place: usize) {
        if self.nodes[place].mesh.is_none() {
            return;
        }
        let length = Duration::from_millis(self.rng.random_range(1..=1000));
        self.nodes[place].stalled_until = self.now + length;
        let next = Duration::from_millis(self.rng.random_range(2000..20_000));
        self.push(self.now + length + next, Happening::Stall(place));
    }

    /// Takes from a core what it has to say, and sets its timer.
    fn settle(&mut self, place: usize) {
        while let Some(event) = self.nodes[place].mesh.as_mut().and_then(Mesh::poll_event) {
            self.note(place, &event);
        }
        while let Some(transmit) = self.nodes[place].mesh.as_mut().and_then(Mesh::poll_transmit) {
            self.transmit(place, &transmit);
        }
        let due = self.nodes[place].mesh.as_ref().and_then(Mesh::poll_timeout);
        let node = &mut self.nodes[place];
        if let Some(due) = due.map(|due| due.max(self.now))
            && node.armed.is_none_or(|armed| due < armed)
        {
            node.armed = Some(due);
            self.push(due, Happening::Timer(place));
        }
        self.look(place);
    }

    fn transmit(&mut self, from: usize, transmit: &Transmit) {
        let Some(to) = self.places.get(&beginning(transmit.to)).copied() else { return };
        let (len, now, up) = (transmit.bytes.len(), self.now, self.nodes[to].mesh.is_some());
        let receiver = self.nodes[to].port;
        let sender = &mut self.nodes[from].port;
        let fate = match transmit.datagram {
            true => self.net.datagram(sender, &receiver, len, now),
            false => self.net.stream((sender, &receiver), (from, to), up, len, now),
        };
        self.account(&transmit.bytes, fate.bytes);
        for at in fate.arrivals {
            let bytes = transmit.bytes.clone();
            self.push(at, Happening::Arrival { from, to, bytes });
        }
    }

    fn account(&mut self, bytes: &[u8], on_wire: u64) {
        let purpose = match kind(bytes) {
            24..=28 => &mut self.traffic.probes,
            8..=11 => &mut self.traffic.news,
            16..=18 => &mut self.traffic.joins,
            _ => &mut self.traffic.repair,
        };
        *purpose += on_wire;
    }

    fn push(&mut self, at: Time, happening: Happening) {
        self.order += 1;
        self.queue.push(Reverse((at, self.order, happening)));
    }

    /// Counts the copies of what is followed in a message that arrived.
    fn count_copies(&mut self, bytes: &[u8]) {
        if kind(bytes) != 8 || self.tracked.is_empty() {
            return;
        }
        let Ok(Envelope { message: Message::News(news), .. }) = Envelope::decode(bytes) else {
            return;
        };
        for tracked in &mut self.tracked {
            let id = tracked.node;
            let holds =
                |raw: &selvedge_mesh::Raw| raw.bytes.windows(32).any(|w| w == id.as_bytes());
            if matches!(tracked.what, What::Record(_)) {
                tracked.copies +=
                    news.entries.records.iter().filter(|raw| holds(raw)).count() as u64;
            }
        }
    }

    /// Looks whether a node has come to know what is followed.
    fn look(&mut self, place: usize) {
        let Some(mesh) = &self.nodes[place].mesh else { return };
        for tracked in &mut self.tracked {
            let knows = || match tracked.what {
                What::Record(seq) => mesh.seq(tracked.node) >= seq,
                What::Down => mesh.is_down(tracked.node),
            };
            if tracked.unknowing.contains(&place) && knows() {
                tracked.unknowing.remove(&place);
                tracked.known.push(self.now.since(tracked.since));
            }
        }
    }

    fn note(&mut self, place: usize, event: &Event) {
        match event {
            Event::MemberDown(node) => self.note_down(place, *node),
            Event::MemberUp(node) => drop(self.convicted.remove(node)),
            Event::Rejected { reason, .. } => match reason.kind() {
                // Who has just come, or gone, is not known to all.
                "not_a_member" | "rumor" | "expired" => {}
                kind => self.violation(format!("M1: {place} rejected: {kind}: {reason}")),
            },
            Event::MemberJoined(_)
            | Event::MemberUpdated(_)
            | Event::MemberLeft(_)
            | Event::StateChanged => {}
        }
    }

    fn note_down(&mut self, place: usize, node: NodeId) {
        let Some(target) = self.places.get(&beginning(node)).map(|place| &self.nodes[*place])
        else {
            return;
        };
        // What was under way when the mesh became whole may still be concluded.
        let whole = self.whole_since.is_some_and(|since| self.now.since(since) > GRACE);
        if whole && target.mesh.is_some() && self.convicted.insert(node) {
            let text = format!("seed {}, {}: node {place}", self.setup.seed, self.now);
            self.false_failures.push(format!("{text} holds {node} to be down, which runs"));
        }
    }

    /// Notes that an invariant does not hold.
    pub fn violation(&mut self, what: String) {
        if self.violations.len() < 1000 {
            self.violations.push(format!("seed {}, {}: {what}", self.setup.seed, self.now));
        }
    }
}

impl Tracked {
    /// After how long this part of the others knew, if they did.
    #[must_use]
    pub fn known_by(&self, part: f64) -> Option<Duration> {
        let others = self.known.len() + self.unknowing.len();
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a part of a small number"
        )]
        let count = (others as f64 * part).ceil() as usize;
        self.known.get(count.max(1) - 1).copied()
    }

    /// Whether all others know.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.unknowing.is_empty()
    }

    /// Forgets that a node is to know.
    pub fn without(&mut self, place: usize) {
        self.unknowing.remove(&place);
    }
}

/// How long after a partition has ended suspicions from before may become verdicts.
const GRACE: Duration = Duration::from_secs(60);

/// The number of a message's kind: it follows the version and the mesh.
fn kind(bytes: &[u8]) -> u8 {
    match bytes.get(23..) {
        Some([0x18, kind, ..]) => *kind,
        Some([kind, ..]) => *kind,
        _ => 0,
    }
}

/// Comparing numbers is faster than comparing bytes, and this is done for each message.
fn beginning(id: NodeId) -> u64 {
    id.as_bytes().first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}

fn key(number: usize) -> WgKey {
    let mut key = [9; 32];
    key[..8].copy_from_slice(&(number as u64).to_le_bytes());
    WgKey(key)
}

/// What a node says of itself at first.
#[must_use]
pub fn profile(number: usize) -> Profile {
    let number = u32::try_from(number).unwrap_or(u32::MAX);
    let address = (0x0a00_0000 | number).to_be_bytes();
    let endpoint = |port| Endpoint::from(SocketAddr::from((address, port)));
    Profile {
        endpoints: vec![endpoint(51_820)],
        control: vec![endpoint(7654)],
        alias: format!("host-{number}"),
        description: String::new(),
    }
}
