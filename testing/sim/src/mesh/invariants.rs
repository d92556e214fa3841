//! What must hold of members at any time, whatever happens to them.
//!
//! - M1: a record is its owner's: nobody holds a sequence number that its owner has not given
//!   out, and nobody goes back to a lesser one.
//! - M2: equal digests mean equal states.
//! - M3: an overlay address is the function of mesh and identity, and no two members share one.
//! - M4: who has left or was evicted, and is known to have, stays out.
//! - M5: no two WireGuard peers may send from one address, and none is kept of a node that left.
//! - M7: a restart with nobody in reach keeps identity, address and state.
//! - M8: a verdict that travels is borne by several accusations, none of them the same.
//!
//! M6, that a partition heals, is a claim about a length of time: scenarios state it.

use std::collections::{BTreeMap, BTreeSet};

use selvedge_mesh::rumor::MIN_ACCUSATIONS;
use selvedge_mesh::wire::{Envelope, Message};
use selvedge_mesh::{Mesh, State, address::node_address};
use selvedge_model::NodeId;

use super::world::{World, kind};

/// So many observers are looked at at a time, others each time; fewer in a mesh of thousands.
const OBSERVERS: std::ops::RangeInclusive<usize> = 2..=12;
/// What all of them together hold, at most, if they are not the fewest.
const RECORDS: usize = 6000;
/// The kind of messages that carry rumors.
const NEWS: u8 = 8;

/// What was seen before, to see what went back.
#[derive(Debug, Default)]
pub struct Watch {
    /// The observer from which the next look begins.
    next: usize,
    /// What an observer held of all others, by their places.
    held: BTreeMap<usize, Vec<u64>>,
    /// Whom an observer knew to have left.
    gone: BTreeSet<(usize, usize)>,
}

impl Watch {
    /// A node starts from nothing, or from its disk.
    pub(super) fn forget(&mut self, place: usize) {
        self.held.remove(&place);
        self.gone.retain(|(observer, _)| *observer != place);
    }

    /// Looks at some of the nodes.
    pub(super) fn look(&mut self, world: &mut World) {
        world.note_told();
        let running: Vec<usize> = world.running().collect();
        let count = (RECORDS / running.len().max(1)).clamp(*OBSERVERS.start(), *OBSERVERS.end());
        let count = count.min(running.len());
        let chosen = (0..count).map(|n| running[(self.next + n) % running.len()]);
        let chosen: Vec<usize> = chosen.collect();
        self.next += count;
        let mut broken = Vec::new();
        for observer in &chosen {
            self.look_through(world, *observer, &mut broken);
        }
        for pair in chosen.windows(2) {
            broken.extend(compare(world, pair[0], pair[1]));
        }
        broken.into_iter().for_each(|what| world.violation(what));
    }

    /// What one node holds of the others.
    fn look_through(&mut self, world: &World, observer: usize, broken: &mut Vec<String>) {
        let Some(mesh) = &world.nodes[observer].mesh else { return };
        let before = self.held.entry(observer).or_default();
        before.resize(world.nodes.len(), 0);
        for (place, node) in world.nodes.iter().enumerate() {
            let held = mesh.seq(node.id);
            if held > node.told {
                let told = node.told;
                broken.push(format!(
                    "M1: node {observer} holds record {held} of node {place}, which told {told}"
                ));
            }
            let before = std::mem::replace(&mut before[place], held);
            if held < before && held != 0 {
                broken.push(format!(
                    "M1: node {observer} went back from record {before} of node {place} to {held}"
                ));
            }
            let is_member = mesh.is_member(node.id);
            if node.left && before > 0 && !is_member {
                self.gone.insert((observer, place));
            } else if is_member && self.gone.contains(&(observer, place)) {
                broken.push(format!("M4: node {observer} took node {place} back, which is out"));
            }
        }
        broken.extend(check_addresses(mesh, observer));
    }

    /// M7: compares a node that has just started with what was on its disk.
    pub(super) fn restarted(world: &mut World, place: usize, mut disk: State) {
        disk.verify_by(selvedge_mesh::Verifier::default());
        let id = world.nodes[place].id;
        let Some(mesh) = &world.nodes[place].mesh else { return };
        let same = mesh.node() == id && disk.node() == id && mesh.id() == disk.mesh();
        let own = mesh.address() == node_address(disk.mesh(), id);
        if !same || !own || mesh.snapshot() != disk.encode() {
            world.violation(format!("M7: node {place} is not what it was before it restarted"));
        }
    }

    /// M8: reads a message for verdicts.
    pub(super) fn read(world: &mut World, from: usize, bytes: &[u8]) {
        if kind(bytes) != NEWS {
            return;
        }
        let Ok(Envelope { message: Message::News(news), .. }) = Envelope::decode(bytes) else {
            return world.violation(format!("M8: node {from} sends news that cannot be read"));
        };
        for rumor in news.rumors.iter().filter(|rumor| rumor.alive.is_none()) {
            let words: BTreeSet<&[u8]> =
                rumor.accusations.iter().map(|raw| &raw.bytes[..]).collect();
            if words.len() < MIN_ACCUSATIONS {
                world
                    .violation(format!("M8: node {from} sends a verdict by {} alone", words.len()));
            }
        }
    }
}

/// M3 and M5.
fn check_addresses(mesh: &Mesh, observer: usize) -> Vec<String> {
    let mut broken = Vec::new();
    let mut addresses = BTreeSet::new();
    let mut expected = BTreeSet::new();
    for member in mesh.members() {
        if member.address != node_address(mesh.id(), member.node) {
            broken.push(format!("M3: node {observer} has a wrong address for {}", member.node));
        }
        if !addresses.insert(member.address) {
            broken.push(format!("M3: node {observer} has {} twice", member.address));
        }
        expected.insert(member.wg);
    }
    let mut allowed = BTreeSet::new();
    for (key, peer) in mesh.desired_wireguard() {
        if !expected.contains(&key) {
            broken.push(format!("M5: node {observer} keeps a peer that is no member"));
        }
        for prefix in peer.allowed {
            if !allowed.insert(prefix) {
                broken.push(format!("M5: node {observer} gives {prefix} to two peers"));
            }
        }
    }
    broken
}

/// M2.
fn compare(world: &mut World, one: usize, other: usize) -> Option<String> {
    let digest = |world: &mut World, place: usize| Some(world.nodes[place].mesh.as_mut()?.digest());
    if digest(world, one)? != digest(world, other)? {
        return None;
    }
    let held = |place: usize| -> Option<Vec<(NodeId, u64)>> {
        let mesh = world.nodes[place].mesh.as_ref()?;
        Some(world.nodes.iter().map(|node| (node.id, mesh.seq(node.id))).collect())
    };
    (held(one)? != held(other)?)
        .then(|| format!("M2: nodes {one} and {other} hold something else under one digest"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use selvedge_mesh::Raw;
    use selvedge_mesh::rumor::Rumor;
    use selvedge_mesh::wire::{News, Records};

    use super::*;
    use crate::mesh::net::Conditions;
    use crate::mesh::world::Setup;

    fn world() -> World {
        let conditions = Conditions { loss: 0.0, double: 0.0, jitter: 0.0 };
        let mut world = World::new(Setup { watched: true, ..Setup::plain(6, 1, conditions) });
        world.run(Duration::from_secs(5));
        world.look_around();
        assert_eq!(world.violations, Vec::<String>::new());
        world
    }

    fn assert_broken(world: &World, rule: &str) {
        let first = world.violations.first().expect("a violation");
        assert!(first.contains(rule) && first.contains("seed 1"), "{first}");
    }

    #[test]
    fn a_record_that_its_owner_did_not_give_out_is_seen() {
        let mut world = world();
        world.update(2);
        world.run(Duration::from_secs(2));
        // As if it were another's doing.
        world.power_off(2);
        world.nodes[2].told -= 1;
        world.look_around();
        assert_broken(&world, "M1: ");
    }

    #[test]
    fn going_back_is_seen() {
        let mut world = world();
        world.update(2);
        world.run(Duration::from_secs(2));
        world.look_around();
        let old = world.nodes[3].first_disk.clone().expect("it ran");
        world.start(3, old);
        world.look_around();
        assert_broken(&world, "M1: node 3 went back");
    }

    #[test]
    fn who_left_and_is_a_member_again_is_seen() {
        let mut world = world();
        world.leave(2);
        world.run(Duration::from_secs(2));
        world.look_around();
        assert_eq!(world.violations, Vec::<String>::new());
        let old = world.nodes[3].first_disk.clone().expect("it ran");
        world.start(3, old);
        world.look_around();
        assert!(
            world.violations.iter().any(|what| what.contains("M4: ")),
            "{:?}",
            world.violations
        );
    }

    #[test]
    fn a_restart_with_something_else_is_seen() {
        let mut world = world();
        world.update(2);
        let other = world.nodes[2].first_disk.clone().expect("it ran");
        Watch::restarted(&mut world, 2, other);
        assert_broken(&world, "M7: ");
    }

    #[test]
    fn a_verdict_by_one_alone_is_seen() {
        let mut world = world();
        let word = Raw { bytes: vec![1], signature: [0; 64] };
        let rumor = Rumor { alive: None, accusations: vec![word.clone(), word] };
        let news = News { entries: Records::default(), rumors: vec![rumor] };
        let mesh = world.nodes[1].mesh.as_ref().expect("it runs").id();
        let bytes = Envelope { mesh, message: Message::News(news) }.encode();
        world.send(1, 2, &bytes);
        world.run(Duration::from_secs(1));
        assert_broken(&world, "M8: node 1");
        assert!(world.nodes[2].mesh.as_ref().is_some_and(|mesh| mesh.count_down() == 0));
    }
}
