//! Members with their real cores, on virtual time.

mod fate;
mod follow;
mod later;
mod people;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use selvedge_mesh::{Config, Identity, Mesh, Profile, State, Transmit, UnixTime, Verifier};
use selvedge_model::{NodeId, Time};

use super::clock::Clock;
use super::invariants::Watch;
use super::net::{Conditions, Net, Port};
pub use follow::Tracked;
pub use people::profile;

/// The wall clock when a run begins.
pub(super) const WALL: u64 = 1_795_000_000;

/// How often the invariants are looked at.
const LOOK: Duration = Duration::from_secs(1);

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
    /// So many of the members, the last ones, are behind a NAT.
    pub clients: usize,
    /// Clocks run fast or slow by up to so many millionths.
    pub drift: u32,
    /// Wall clocks are ahead by up to so many seconds.
    pub ahead: u64,
    /// The members after the founder that may invite: by how many seconds the wall clock of each
    /// is ahead.
    pub inviters: Vec<i64>,
    /// Whether the invariants are looked at that need every message to be read.
    pub watched: bool,
}

impl Setup {
    /// Members in plain view of each other, whose clocks are right.
    #[must_use]
    pub fn plain(nodes: usize, seed: u64, conditions: Conditions) -> Self {
        Self {
            nodes,
            seed,
            conditions,
            config: Config::default(),
            stalling: 0.0,
            clients: 0,
            drift: 0,
            ahead: 0,
            inviters: Vec::new(),
            watched: false,
        }
    }
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
    /// What its clocks show.
    pub clock: Clock,
    /// What was on its disk when it first ran.
    pub first_disk: Option<State>,
    /// What is on its disk, if it has crashed.
    pub disk: Option<State>,
    /// Whether it has left for good, or was evicted.
    pub left: bool,
    /// The place of the member that admitted it; the founder's if that did.
    pub host: usize,
    /// The greatest sequence number that it was seen to give out.
    pub told: u64,
    /// Whether it runs the version that comes next.
    pub later: bool,
    stalls: bool,
    stalled_until: Time,
    /// It stood still for longer than is to be tolerated until then.
    excused_until: Time,
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
    /// Whom somebody held to be down who was not, and when somebody last came to do so.
    convicted: BTreeMap<NodeId, Time>,
    /// Since when the mesh is not torn apart, and those who were down or apart before may still
    /// be held so.
    pub whole_since: Option<Time>,
    /// What happened last, the newest at the end.
    pub history: VecDeque<String>,
    /// The same at the first violation.
    pub before: Vec<String>,
    watch: Watch,
    looks_at: Time,
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
            verifier: match setup.watched {
                true => Verifier::shared(),
                false => Verifier::sparing(),
            },
            queue: BinaryHeap::new(),
            order: 0,
            convicted: BTreeMap::new(),
            whole_since: Some(Time::ZERO),
            history: VecDeque::new(),
            before: Vec::new(),
            watch: Watch::default(),
            looks_at: Time::ZERO + LOOK,
            setup,
        };
        let state = world.people();
        for place in 0..world.nodes.len() {
            let own = state.kept_by(world.nodes[place].id).expect("all have a record");
            world.start(place, own);
        }
        world
    }

    /// What a node's clocks show: the one that only counts, and the wall clock.
    pub(super) fn clocks(&self, place: usize) -> (Time, UnixTime) {
        self.nodes[place].clock.read(self.now)
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

    /// The places of the nodes that run.
    pub fn running(&self) -> impl Iterator<Item = usize> {
        self.nodes
            .iter()
            .enumerate()
            .filter(|(_, node)| node.mesh.is_some() && !node.left)
            .map(|(place, _)| place)
    }

    /// The place of a running node drawn at random, the founder aside.
    pub fn draw(&mut self) -> usize {
        loop {
            let place = self.rng.random_range(1.min(self.nodes.len() - 1)..self.nodes.len());
            if self.nodes[place].mesh.is_some() && !self.nodes[place].left {
                return place;
            }
        }
    }

    /// Whether a node runs the version that comes next.
    fn is_later(&self, id: NodeId) -> bool {
        self.places.get(&beginning(id)).is_some_and(|place| self.nodes[*place].later)
    }

    /// Runs for a while, and looks at the invariants every second.
    pub fn run(&mut self, length: Duration) {
        let end = self.now + length;
        while self.looks_at <= end {
            self.run_to(self.looks_at);
            self.look_around();
            self.looks_at = self.looks_at + LOOK;
        }
        self.run_to(end);
    }

    fn run_to(&mut self, end: Time) {
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
        let (now, wall) = self.clocks(place);
        if let Some(mesh) = &mut self.nodes[place].mesh {
            mesh.handle_timeout(now, wall);
            self.settle(place);
        }
    }

    fn arrival(&mut self, from: usize, to: usize, bytes: Arc<[u8]>) {
        if !self.net.reaches(&self.nodes[from].port, &self.nodes[to].port) {
            return;
        }
        let ((now, wall), sender) = (self.clocks(to), self.nodes[from].id);
        let receiver = &mut self.nodes[to];
        if self.now < receiver.stalled_until {
            let until = receiver.stalled_until;
            return self.push(until, Happening::Arrival { from, to, bytes });
        }
        receiver.port.received += bytes.len() as u64;
        let Some(mesh) = &mut receiver.mesh else { return };
        mesh.handle_message(sender, &bytes, now, wall);
        self.messages += 1;
        self.count_copies(&bytes);
        if self.setup.watched {
            Watch::read(self, from, &bytes);
        }
        self.settle(to);
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
        if let Some(due) = due.map(|due| node.clock.moment(due).max(self.now))
            && node.armed.is_none_or(|armed| due < armed)
        {
            node.armed = Some(due);
            self.push(due, Happening::Timer(place));
        }
        self.look(place);
    }

    fn transmit(&mut self, from: usize, transmit: &Transmit) {
        let Some(to) = self.places.get(&beginning(transmit.to)).copied() else { return };
        let Transmit { bytes, datagram, .. } = transmit;
        if !self.nodes[from].later {
            return self.carry(from, to, bytes.clone(), *datagram);
        }
        self.carry(from, to, later::laid_out(bytes).into(), *datagram);
        if kind(bytes) == 24 {
            self.carry(from, to, later::unknown(bytes).into(), true);
        }
    }

    fn carry(&mut self, from: usize, to: usize, bytes: Arc<[u8]>, datagram: bool) {
        let (len, now, up) = (bytes.len(), self.now, self.nodes[to].mesh.is_some());
        let receiver = self.nodes[to].port;
        let sender = &mut self.nodes[from].port;
        let fate = match datagram {
            true => self.net.datagram((sender, &receiver), (from, to), len, now),
            false => self.net.stream((sender, &receiver), (from, to), up, len, now),
        };
        self.account(&bytes, fate.bytes);
        for at in fate.arrivals {
            self.push(at, Happening::Arrival { from, to, bytes: bytes.clone() });
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
}

/// The number of a message's kind: it follows the version and the mesh.
pub(super) fn kind(bytes: &[u8]) -> u8 {
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
