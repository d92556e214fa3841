//! Members: how they come to be, and to run.

use std::net::SocketAddr;

use rand::RngExt as _;
use selvedge_mesh::{Endpoint, Identity, Life, Mesh, Profile, State, UnixTime};
use selvedge_model::{Time, WgKey};

use super::{Happening, Node, WALL, World, beginning};
use crate::mesh::clock::Clock;
use crate::mesh::net::{Port, REGIONS};

/// No member renews its record sooner than after this part of its life, in twelfths. Records that
/// were due long ago would all be renewed at once when a run begins, as happens in no mesh.
const RENEWED: u32 = 9;

impl World {
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
        let inviter = place.checked_sub(1).and_then(|rank| self.setup.inviters.get(rank));
        let clock = inviter.map_or(clock, |ahead| clock.set(*ahead));
        let id = identity.node_id();
        self.nodes.push(Node {
            mesh: None,
            id,
            port,
            clock,
            first_disk: None,
            disk: None,
            left: false,
            host: 0,
            told: 0,
            later: false,
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
    pub(super) fn people(&mut self) -> State {
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
        let inviters = self.setup.inviters.len() as u64;
        state.peopled(founder, inviters, others).expect("in bounds")
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
        if self.now > Time::ZERO {
            self.net.start(place);
        }
        self.convicted.remove(&node.id);
        if self.nodes[place].stalls {
            self.push(self.now, Happening::Stall(place));
        }
        self.settle(place);
    }

    /// The places of the members that may invite and run, the founder aside.
    pub fn inviters(&self) -> impl Iterator<Item = usize> {
        let count = self.setup.inviters.len();
        self.running().filter(move |place| (1..=count).contains(place))
    }

    /// The identity of a node.
    #[must_use]
    pub fn identity(&self, place: usize) -> Identity {
        self.identities[place].clone()
    }
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
