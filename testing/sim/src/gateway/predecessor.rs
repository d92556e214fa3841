//! The predecessor's daemon, as far as others see it in the store.
//!
//! It has a key of its own name under its lease and takes its turns as it does: it pulls every
//! network to where its ring says, knows no budget, writes no history, and compares nothing but
//! the revision of a network's `type`.

use std::time::Duration;

use selvedge_gateway::cache::Network;
use selvedge_gateway::keys::{self, Field};
use selvedge_gateway::kv::{Compare, LeaseId, Op, Txn};
use selvedge_gateway::machine::State;
use selvedge_gateway::placement;
use selvedge_model::{NodeName, Vni};

use super::world::World;

/// How often it looks at the store.
const STEP: Duration = Duration::from_millis(20);
const TTL: Duration = Duration::from_secs(3);

/// One daemon of the predecessor.
#[derive(Debug)]
pub struct Predecessor {
    name: NodeName,
    ids: Vec<u64>,
    lease: LeaseId,
    /// It places nothing here any more and waits until nothing is left.
    draining: bool,
}

impl Predecessor {
    /// Starts one under this name.
    pub fn start(world: &mut World, name: &str) -> Self {
        let name: NodeName = name.parse().expect("a valid name");
        world.checker.strangers.insert(name.clone());
        let ids = placement::ids_of(&name, placement::DEFAULT_IDS);
        let lease = world.store.grant(TTL, world.now);
        let daemon = Self { name, ids, lease, draining: false };
        let value = serde_json::to_vec(&daemon.ids).expect("plain numbers");
        let key = keys::node(&daemon.name);
        let op = Op::Put { key, value, lease: Some(lease) };
        world.txn(&Txn { compare: vec![], then: vec![op] });
        daemon
    }

    /// Unregisters, as on SIGINT: it goes on taking its turns until nothing is left.
    pub fn drain(&mut self, world: &mut World) {
        self.draining = true;
        let op = Op::Delete { key: keys::node(&self.name) };
        world.txn(&Txn { compare: vec![], then: vec![op] });
    }

    /// Lets time pass in which it keeps its lease and takes its turns, until `stop` says so.
    /// Returns whether it did.
    pub fn run(
        &self,
        world: &mut World,
        time: Duration,
        mut stop: impl FnMut(&mut World) -> bool,
    ) -> bool {
        let until = world.now + time;
        while world.now < until {
            // Its lease may be over; then it goes on in vain, as it does.
            let _ = world.store.keep_alive(self.lease, world.now);
            for vni in world.vnis() {
                self.take_turn(world, vni);
            }
            let next = world.now + STEP;
            if world.run_until(next, &mut stop) {
                return true;
            }
        }
        false
    }

    fn take_turn(&self, world: &mut World, vni: Vni) {
        let network = world.network(vni);
        let Some(then) = self.turn(world, vni, &network) else { return };
        let key = keys::network(vni, Field::Type);
        let unchanged = match &network.state {
            Some(slot) => Compare::Modified { key, at: slot.modified },
            None => Compare::Absent { key },
        };
        world.txn(&Txn { compare: vec![unchanged], then });
    }

    fn turn(&self, world: &World, vni: Vni, network: &Network) -> Option<Vec<Op>> {
        let mine = |name: Option<&NodeName>| name == Some(&self.name);
        let (owns, follows) = (mine(network.current()), mine(network.next()));
        let both = network.current().is_some() && network.next().is_some();
        let put = |state| put_state(vni, state);
        let me = self.name.as_str();
        let next = Op::Put {
            key: keys::network(vni, Field::Next),
            value: me.into(),
            lease: Some(self.lease),
        };
        let state = network.state();
        match state {
            State::Unassigned if self.is_placed_here(world, vni) => {
                Some(vec![put(State::FailoverDecided), next])
            }
            State::Unassigned => None,
            State::Idle if network.current().is_none() => Some(vec![put(State::Unassigned)]),
            State::Idle if !owns && self.is_placed_here(world, vni) => {
                Some(vec![put(State::MigrationDecided), next])
            }
            State::Idle => None,
            State::FailoverDecided if network.next().is_none() => {
                Some(vec![put(State::Unassigned)])
            }
            State::MigrationEvpnWithdrawn | State::FailoverDecided if follows => {
                Some(self.finish(vni))
            }
            State::FailoverDecided => None,
            _move if !both => Some(vec![put(State::Unassigned)]),
            State::MigrationDecided
            | State::MigrationOspfAdvertised
            | State::MigrationArpEnabled
            | State::MigrationGratuitousArpSent => owns.then(|| vec![put(after(state))]),
            State::MigrationConfirmed
            | State::MigrationOspfWithdrawn
            | State::MigrationArpDisabled => follows.then(|| vec![put(after(state))]),
            State::MigrationEvpnWithdrawn => None,
        }
    }

    fn finish(&self, vni: Vni) -> Vec<Op> {
        let (key, value) = (keys::network(vni, Field::Current), self.name.as_str().into());
        vec![
            put_state(vni, State::Idle),
            Op::Put { key, value, lease: Some(self.lease) },
            Op::Put { key: keys::network(vni, Field::Next), value: vec![], lease: None },
        ]
    }

    fn is_placed_here(&self, world: &World, vni: Vni) -> bool {
        let cache = &world.checker.cache;
        let ring = cache.ring(|name| cache.is_struck(name));
        !self.draining && ring.owner(vni) == Some(&self.name)
    }
}

fn after(state: State) -> State {
    State::from_number(state.number() + 1).expect("a move has a state after each of its own")
}

fn put_state(vni: Vni, state: State) -> Op {
    let value = state.number().to_string().into_bytes();
    Op::Put { key: keys::network(vni, Field::Type), value, lease: None }
}
