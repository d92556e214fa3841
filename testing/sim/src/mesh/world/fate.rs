//! What befalls members: crashes and returns, pauses, partitions.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::RngExt as _;
use selvedge_mesh::{Mesh, State};

use super::follow::EPISODE;
use super::{Happening, World};
use crate::mesh::invariants::Watch;

impl World {
    /// Stops a node at once, and returns what is on its disk.
    pub fn crash(&mut self, place: usize) -> Option<State> {
        self.note_told();
        let mesh = self.nodes[place].mesh.take();
        self.track_crash(place);
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
        self.forget_crash(place);
        self.note_history(format!("node {place} comes back, old: {old}"));
        let before = state.clone();
        self.start(place, state);
        Watch::restarted(self, place, before);
    }

    /// Restarts a node, which runs the version that comes next from now on.
    pub fn upgrade(&mut self, place: usize) {
        self.power_off(place);
        self.nodes[place].later = true;
        self.note_history(format!("node {place} is upgraded"));
        self.restart(place, false);
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

    /// Lets the founder evict a node, which goes on until it hears of it, and so do those whom it
    /// admitted.
    pub fn evict(&mut self, place: usize) {
        self.evict_by(0, place);
    }

    /// The same by another member, which admitted the node.
    pub fn evict_by(&mut self, by: usize, place: usize) {
        let id = self.nodes[place].id;
        let Some(mesh) = &mut self.nodes[by].mesh else { return };
        mesh.evict(id).expect("it may");
        self.settle(by);
        self.note_history(format!("node {by} evicts node {place}"));
        let guests = self.nodes.iter().enumerate().filter(|(_, node)| node.host == place);
        let guests: Vec<usize> = guests.map(|(guest, _)| guest).filter(|_| place != 0).collect();
        for gone in guests.into_iter().chain([place]) {
            let id = self.nodes[gone].id;
            self.nodes[gone].left = true;
            self.tracked.retain(|tracked| tracked.node != id);
            self.tracked.iter_mut().for_each(|tracked| tracked.without(gone));
        }
    }

    /// A node that hears that it is out takes part no more.
    pub(super) fn quit(&mut self, place: usize) {
        self.note_told();
        self.note_history(format!("node {place} hears that it was evicted"));
        self.watch.forget(place);
        self.nodes[place].mesh = None;
    }

    /// Tears the mesh apart: the nodes for which `side` says so are on their own.
    pub fn tear(&mut self, side: impl Fn(usize) -> u8) {
        self.sides(side);
        let sides: BTreeSet<u8> = self.nodes.iter().map(|node| node.port.side).collect();
        let pairs = sides.iter().flat_map(|from| sides.iter().map(move |to| (*from, *to)));
        self.net.cuts = pairs.filter(|(from, to)| from != to).collect();
    }

    /// Says on which side each node is; which sides do not reach which is up to
    /// [`Net::cuts`](super::Net::cuts).
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

    /// Stops a node for a moment, and sets the time of the next one.
    pub(super) fn stall(&mut self, place: usize) {
        if self.nodes[place].mesh.is_none() {
            return;
        }
        let length = Duration::from_millis(self.rng.random_range(1..=1000));
        self.nodes[place].stalled_until = self.now + length;
        let next = Duration::from_millis(self.rng.random_range(2000..20_000));
        self.push(self.now + length + next, Happening::Stall(place));
    }
}
