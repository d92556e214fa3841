//! Meshes on a network in memory that loses, doubles, delays and reorders what is sent.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use selvedge_mesh::{
    Config, Endpoint, Event, Grant, Identity, Invite, InviteId, InviteTerms, JoinError, Joining,
    Mesh, Profile, Signed, State, Transmit, UnixTime,
};
use selvedge_model::{NodeId, Time, WgKey};

pub(crate) const WALL: UnixTime = UnixTime(1_795_000_000);

pub(crate) fn identity(number: u32) -> Identity {
    let mut secret = [0x5e; 32];
    secret[..4].copy_from_slice(&number.to_be_bytes());
    Identity::from_secret(&secret)
}

pub(crate) fn wg(number: u32) -> WgKey {
    let mut key = [0x77; 32];
    key[..4].copy_from_slice(&number.to_be_bytes());
    WgKey(key)
}

pub(crate) fn profile(number: u32) -> Profile {
    let [_, _, high, low] = number.to_be_bytes();
    let endpoint = |port| Endpoint::from(SocketAddr::from(([192, 0, high, low], port)));
    Profile {
        endpoints: vec![endpoint(51_820)],
        control: vec![endpoint(7654)],
        alias: format!("node-{number}"),
        ..Profile::default()
    }
}

pub(crate) fn found() -> State {
    State::found(&identity(0), "campus", [9; 16], wg(0), profile(0)).expect("in bounds")
}

pub(crate) fn mesh_of(number: u32, state: State) -> Mesh {
    let seed = u64::from(number);
    Mesh::new(identity(number), state, Config::default(), seed, Time::ZERO, WALL).expect("its own")
}

pub(crate) fn founder() -> Mesh {
    mesh_of(0, found())
}

pub(crate) fn terms(id: u8, uses: u32) -> InviteTerms {
    let not_after = UnixTime(WALL.0 + 3600);
    InviteTerms { id: InviteId([id; 16]), grant: Grant::default(), uses, not_after }
}

pub(crate) fn invite(founder: &Mesh, id: u8, uses: u32) -> Signed<Invite> {
    founder.invite(terms(id, uses), WALL).expect("the founder may")
}

pub(crate) fn joining(number: u32, invite: &Signed<Invite>) -> Joining {
    let (identity, wg, profile) = (identity(number), wg(number), profile(number));
    Joining::new(identity, invite.clone(), wg, profile, WALL).expect("a valid invite")
}

/// One message there, the answer back.
pub(crate) fn join(
    founder: &mut Mesh,
    joining: &Joining,
    from: NodeId,
) -> Result<State, JoinError> {
    let founder_id = founder.node();
    joining.handle_message(founder_id, &ask(founder, joining, from), WALL)
}

/// What the founder answers.
pub(crate) fn ask(founder: &mut Mesh, joining: &Joining, from: NodeId) -> Vec<u8> {
    while founder.poll_transmit().is_some() {}
    founder.handle_message(from, &joining.message(), Time::ZERO, WALL);
    let Transmit { to, bytes, datagram } = founder.poll_transmit().expect("each join is answered");
    assert_eq!((to, datagram), (from, false));
    bytes.to_vec()
}

pub(crate) fn admit(founder: &mut Mesh, number: u32) -> Mesh {
    let invite = invite(founder, 1, 1_000_000);
    let joining = joining(number, &invite);
    let state = join(founder, &joining, identity(number).node_id()).expect("admitted");
    mesh_of(number, state)
}

/// All events that wait.
pub(crate) fn events(mesh: &mut Mesh) -> Vec<Event> {
    std::iter::from_fn(|| mesh.poll_event()).collect()
}

/// All messages that wait.
pub(crate) fn transmits(mesh: &mut Mesh) -> Vec<(NodeId, Vec<u8>)> {
    std::iter::from_fn(|| mesh.poll_transmit()).map(|sent| (sent.to, sent.bytes.to_vec())).collect()
}

pub(crate) struct Net {
    pub(crate) now: Time,
    /// What right wall clocks show.
    pub(crate) wall: UnixTime,
    /// Seconds by which some are wrong.
    pub(crate) astray: BTreeMap<NodeId, i64>,
    pub(crate) nodes: BTreeMap<NodeId, Mesh>,
    /// Of 1000 messages so many are lost.
    pub(crate) loss: u32,
    /// Of 1000 messages so many arrive twice.
    pub(crate) double: u32,
    /// Nodes that only each other can reach.
    pub(crate) island: BTreeSet<NodeId>,
    /// Who does not reach whom.
    pub(crate) broken: BTreeSet<(NodeId, NodeId)>,
    /// Who has sent to whom, while that is watched.
    pairs: Option<BTreeSet<(NodeId, NodeId)>>,
    /// Bytes that were sent.
    pub(crate) bytes: u64,
    /// A hash of everything that was delivered, in order.
    pub(crate) trace: blake3::Hasher,
    queue: BTreeMap<(Time, u64), (NodeId, NodeId, Vec<u8>)>,
    sent: u64,
    rng: ChaCha8Rng,
}

impl Net {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            now: Time::ZERO,
            wall: WALL,
            astray: BTreeMap::new(),
            nodes: BTreeMap::new(),
            loss: 0,
            double: 0,
            island: BTreeSet::new(),
            broken: BTreeSet::new(),
            pairs: None,
            bytes: 0,
            trace: blake3::Hasher::new(),
            queue: BTreeMap::new(),
            sent: 0,
            rng: ChaCha8Rng::seed_from_u64(seed),
        }
    }

    pub(crate) fn add(&mut self, mesh: Mesh) {
        self.nodes.insert(mesh.node(), mesh);
    }

    /// A founder and `count - 1` nodes that joined it.
    pub(crate) fn with_members(seed: u64, count: u32) -> Self {
        let mut net = Self::new(seed);
        let mut founder = founder();
        let joined: Vec<Mesh> = (1..count).map(|number| admit(&mut founder, number)).collect();
        net.add(founder);
        joined.into_iter().for_each(|mesh| net.add(mesh));
        net
    }

    pub(crate) fn node(&mut self, number: u32) -> &mut Mesh {
        self.nodes.get_mut(&identity(number).node_id()).expect("a node of this number")
    }

    pub(crate) fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            self.collect();
            let timer = self.nodes.values().filter_map(|mesh| mesh.poll_timeout()).min();
            let arrival = self.queue.keys().next().map(|(time, _)| *time);
            let Some(next) = timer.into_iter().chain(arrival).min().filter(|next| *next <= end)
            else {
                break;
            };
            self.now = self.now.max(next);
            self.step();
        }
        self.now = end;
    }

    /// Runs for a while. Who sent to whom.
    pub(crate) fn watch(&mut self, duration: Duration) -> BTreeSet<(NodeId, NodeId)> {
        self.pairs = Some(BTreeSet::new());
        self.run(duration);
        self.pairs.take().unwrap_or_default()
    }

    /// Runs until all agree. How long that took, if it did within `limit`.
    pub(crate) fn run_until_agreed(&mut self, limit: Duration) -> Option<Duration> {
        let start = self.now;
        while !self.agreed() {
            if self.now.since(start) > limit {
                return None;
            }
            self.run(Duration::from_millis(10));
        }
        Some(self.now.since(start))
    }

    pub(crate) fn agreed(&mut self) -> bool {
        let running = self.nodes.values_mut().filter(|mesh| mesh.evicted().is_none());
        let mut digests = running.map(|mesh| (mesh.digest(), mesh.evictions_digest()));
        let first = digests.next();
        digests.all(|digest| Some(digest) == first)
    }

    fn step(&mut self) {
        let now = self.now;
        let walls: BTreeMap<NodeId, UnixTime> =
            self.nodes.keys().map(|node| (*node, self.wall_of(*node))).collect();
        for (node, mesh) in &mut self.nodes {
            mesh.handle_timeout(now, walls[node]);
        }
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= now) {
            let (from, to, bytes) = entry.remove();
            self.trace.update(from.as_bytes()).update(to.as_bytes()).update(&bytes);
            if let Some(mesh) = self.nodes.get_mut(&to) {
                mesh.handle_message(from, &bytes, now, walls[&to]);
            }
        }
    }

    /// What the wall clock of a node shows.
    pub(crate) fn wall_of(&self, node: NodeId) -> UnixTime {
        let astray = self.astray.get(&node).copied().unwrap_or_default();
        UnixTime(self.wall.0.saturating_add_signed(astray))
    }

    /// Lets days pass in which little happens, so that what nobody renews is forgotten.
    pub(crate) fn pass_days(&mut self, days: u64) {
        for _ in 0..days * 8 {
            self.wall = UnixTime(self.wall.0 + 3 * 3600);
            self.run(Duration::from_secs(3));
        }
    }

    /// Takes over what the nodes send.
    fn collect(&mut self) {
        let mut sent = Vec::new();
        for (from, mesh) in &mut self.nodes {
            sent.extend(transmits(mesh).into_iter().map(|(to, bytes)| (*from, to, bytes)));
        }
        for (from, to, bytes) in sent {
            self.bytes += bytes.len() as u64;
            if let Some(pairs) = &mut self.pairs {
                pairs.insert((from, to));
            }
            if self.broken.contains(&(from, to)) {
                continue;
            }
            if self.island.contains(&from) != self.island.contains(&to) {
                continue;
            }
            let copies = u32::from(self.chance(self.double)) + 1;
            for _ in 0..copies {
                if !self.chance(self.loss) {
                    let delay = Duration::from_millis(self.rng.random_range(1..60));
                    self.sent += 1;
                    let message = (from, to, bytes.clone());
                    self.queue.insert((self.now + delay, self.sent), message);
                }
            }
        }
    }

    fn chance(&mut self, of_1000: u32) -> bool {
        self.rng.random_range(0..1000) < of_1000
    }
}
