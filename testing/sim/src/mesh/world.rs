//! Members with their real cores, on virtual time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
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

use super::clock::Clock;
use super::invariants::Watch;
use super::net::{Conditions, Net, Port, REGIONS};

/// The wall clock when a run begins.
pub(super) const WALL: u64 = 1_795_000_000;
/// No member renews its record sooner than after this part of its life, in twelfths. Records that
/// were due long ago would all be renewed at once when a run begins, as happens in no mesh.
const RENEWED: u32 = 9;

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
    /// Whether it has left for good.
    pub left: bool,
    /// The greatest sequence number that it was seen to give out.
    pub told: u64,
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
    /// Whom somebody held to be down who was not, and when somebody last came to do so.
    convicted: BTreeMap<NodeId, Time>,
    /// Since when the mesh is not torn apart, and those who were down or apart before may still
    /// be held so.
    pub whole_since: Option<Time>,
    /// What happened last, the newest at the end.
    pub history: VecDeque<String>,
    watch: Watch,
}

/// So much of the history is kept.
const HISTORY: usize = 60;

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
            convicted: BTreeMap::new(),
            whole_since: Some(Time::ZERO),
            history: VecDeque::new(),
            watch: Watch::default(),
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
        let first_client = self.setup.nodes - self.setup.clients.min(self.setup.nodes - 1);
        let nat = (first_client..self.setup.nodes).contains(&place);
        // Whoever is new comes to the founder.
        let side = self.nodes.first().map_or(0, |founder| founder.port.side);
        let port = Port { region, side, nat, free: self.now, sent: 0, received: 0 };
        let stalls = self.rng.random_range(0.0..1.0) < self.setup.stalling;
        let clock = Clock::draw(self.setup.drift, self.setup.ahead, &mut self.rng);
        let id = identity.node_id();
        self.nodes.push(Node {
            mesh: None,
            id,
            port,
            clock,
            first_disk: None,
            disk: None,
            left: false,
            told: 0,
            stalls,
            stalled_until: Time::ZERO,
            excused_until: Time::ZERO,
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
        let oldest = (life / 12 * RENEWED).as_secs().max(1);
        let lives: Vec<Life> = (0..self.setup.nodes)
            .map(|_| Life::new(UnixTime(WALL - self.rng.random_range(0..oldest)), life))
            .collect();
        let founder = &self.identities[0];
        let mut state =
            State::found(founder, "sim", [7; 16], key(0), profile(0)).expect("in bounds");
        state.verify_by(self.verifier.clone());
        let others = self.identities.iter().zip(&lives).enumerate().skip(1);
        let told = |n: usize| Profile { client: self.nodes[n].port.nat, ..profile(n) };
        let others = others.map(|(n, (identity, life))| (identity, key(n), told(n), *life));
        state.peopled(founder, others).expect("in bounds")
    }

    /// Starts a node with what it kept.
    pub fn start(&mut self, place: usize, mut state: State) {
        state.verify_by(self.verifier.clone());
        let seed = self.rng.random();
        let identity = self.identities[place].clone();
        let config = self.setup.config.clone();
        let (now, wall) = self.clocks(place);
        let kept = state.clone();
        let mesh = Mesh::new(identity, state, config, seed, now, wall).expect("its own state");
        let node = &mut self.nodes[place];
        node.first_disk.get_or_insert(kept);
        node.mesh = Some(mesh);
        node.armed = None;
        self.convicted.remove(&node.id);
        if self.nodes[place].stalls {
            self.push(self.now, Happening::Stall(place));
        }
        self.settle(place);
    }

    /// Stops a node at once, and returns what is on its disk.
    pub fn crash(&mut self, place: usize) -> Option<State> {
        self.note_told();
        let mesh = self.nodes[place].mesh.take();
        let (id, since) = (self.nodes[place].id, self.now);
        let unknowing = self.running().collect();
        let what = What::Down;
        let (known, copies) = (Vec::new(), 0);
        // Who has crashed need not know anything any more.
        self.tracked.iter_mut().for_each(|tracked| tracked.without(place));
        self.tracked.push(Tracked { node: id, what, since, unknowing, known, copies });
        self.note_history(format!("node {place} crashes"));
        self.watch.forget(place);
        mesh.map(Mesh::into_state)
    }

    /// Stops a node and lets it come back later with what it knew: see [`World::restart`].
    pub fn power_off(&mut self, place: usize) {
        self.nodes[place].disk = self.crash(place);
    }

    /// Starts a node that was powered off with what is on its disk, which may have gone back to
    /// what it was when the node first ran.
    pub fn restart(&mut self, place: usize, old: bool) {
        let node = &mut self.nodes[place];
        let (kept, first) = (node.disk.take(), node.first_disk.clone());
        let Some(state) = (if old { first } else { kept }) else { return };
        let id = node.id;
        // From now on it need not be held to be down.
        self.tracked.retain(|tracked| !(tracked.node == id && tracked.what == What::Down));
        self.note_history(format!("node {place} comes back, old: {old}"));
        let before = state.clone();
        self.start(place, state);
        Watch::restarted(self, place, before);
    }

    /// Lets a node stand still, and what it is sent wait.
    pub fn freeze(&mut self, place: usize, length: Duration) {
        let until = self.now + length;
        let node = &mut self.nodes[place];
        node.stalled_until = node.stalled_until.max(until);
        if length > Duration::from_secs(1) {
            node.excused_until = until + EPISODE;
        }
        self.note_history(format!("node {place} stands still for {length:?}"));
    }

    /// Lets a node leave the mesh for good.
    pub fn leave(&mut self, place: usize) {
        let Some(mesh) = &mut self.nodes[place].mesh else { return };
        mesh.leave().expect("it has not left before");
        self.note_told();
        self.settle(place);
        self.note_history(format!("node {place} leaves"));
        self.watch.forget(place);
        let node = &mut self.nodes[place];
        (node.mesh, node.left) = (None, true);
        self.tracked.iter_mut().for_each(|tracked| tracked.without(place));
    }

    /// Notes something for whoever looks into a violation.
    pub fn note_history(&mut self, what: String) {
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(format!("{}: {what}", self.now));
    }

    /// Notes what sequence numbers the running nodes have given out.
    pub fn note_told(&mut self) {
        for node in &mut self.nodes {
            let told = node.mesh.as_ref().map_or(0, |mesh| mesh.seq(node.id));
            node.told = node.told.max(told);
        }
    }

    /// What a node's clocks show: the one that only counts, and the wall clock.
    fn clocks(&self, place: usize) -> (Time, UnixTime) {
        self.nodes[place].clock.read(self.now)
    }

    /// Looks at all invariants that can be looked at at any time.
    pub fn look_around(&mut self) {
        let mut watch = std::mem::take(&mut self.watch);
        watch.look(self);
        self.watch = watch;
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

    /// Whether every running node knows which of the members run.
    #[must_use]
    pub fn right_about_lives(&self) -> bool {
        let dead: BTreeSet<NodeId> = self
            .nodes
            .iter()
            .filter(|node| node.mesh.is_none() && !node.left && !node.port.nat)
            .map(|node| node.id)
            .collect();
        let running = self.nodes.iter().filter_map(|node| node.mesh.as_ref());
        running.into_iter().all(|mesh| {
            mesh.down().all(|node| dead.contains(&node))
                && dead.iter().all(|node| mesh.is_down(*node) || !mesh.is_member(*node))
        })
    }

    /// The number of those that running nodes hold to be down, summed over them, and how many they
    /// should.
    #[must_use]
    pub fn held_down(&self) -> usize {
        self.nodes.iter().filter_map(|node| node.mesh.as_ref()).map(Mesh::count_down).sum()
    }

    /// Tears the mesh apart: the nodes for which `side` says so are on their own.
    pub fn tear(&mut self, side: impl Fn(usize) -> u8) {
        self.sides(side);
        let sides: BTreeSet<u8> = self.nodes.iter().map(|node| node.port.side).collect();
        let pairs = sides.iter().flat_map(|from| sides.iter().map(move |to| (*from, *to)));
        self.net.cuts = pairs.filter(|(from, to)| from != to).collect();
    }

    /// Says on which side each node is; which sides do not reach which is up to [`Net::cuts`].
    pub fn sides(&mut self, side: impl Fn(usize) -> u8) {
        for (place, node) in self.nodes.iter_mut().enumerate() {
            node.port.side = side(place);
        }
        self.whole_since = None;
    }

    /// Makes the mesh whole again.
    pub fn mend(&mut self) {
        self.nodes.iter_mut().for_each(|node| node.port.side = 0);
        self.net.cuts.clear();
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
        let (len, now, up) = (transmit.bytes.len(), self.now, self.nodes[to].mesh.is_some());
        let receiver = self.nodes[to].port;
        let sender = &mut self.nodes[from].port;
        let fate = match transmit.datagram {
            true => self.net.datagram((sender, &receiver), (from, to), len, now),
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
            Event::MemberDown(node) => {
                self.note_change(place, *node, "to be down");
                self.note_down(place, *node);
            }
            Event::MemberUp(node) => self.note_change(place, *node, "to be up again"),
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

    fn note_change(&mut self, place: usize, node: NodeId, how: &str) {
        if self.setup.watched {
            let target = self.places.get(&beginning(node)).copied().unwrap_or(usize::MAX);
            self.note_history(format!("node {place} finds node {target} {how}"));
        }
    }

    fn note_down(&mut self, place: usize, node: NodeId) {
        let Some(target) = self.places.get(&beginning(node)).map(|place| &self.nodes[*place])
        else {
            return;
        };
        // What was under way when the mesh became whole may still be concluded.
        let whole = self.whole_since.is_some_and(|since| self.now.since(since) > GRACE);
        if !whole || target.mesh.is_none() || self.now < target.excused_until {
            return;
        }
        let last = self.convicted.insert(node, self.now);
        if last.is_none_or(|last| self.now.since(last) > EPISODE) {
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

/// One false verdict reaches everybody well within this time; what comes later is another.
const EPISODE: Duration = Duration::from_secs(20);

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
        ..Profile::default()
    }
}
