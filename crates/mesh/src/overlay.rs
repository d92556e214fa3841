//! Who tells whom, and who watches whom: links that follow from the membership.
//!
//! All nodes know all members, so the links need not be negotiated: the identities, in order,
//! make a ring, and each node is linked to its neighbours on it, and, so that a few hops lead
//! everywhere, to the owners of its images: the ring is cut into arcs, the arcs are paired as if
//! at random, twice, and the owner of a position is the first node at or after the same place in
//! the arc's partner. Two images lead back, so that both ends of a link know of it, except while
//! they know of different members. Who is down is passed over by all, so a link that ends is
//! replaced at once, and two halves of a mesh that find each other again are one.

use std::collections::BTreeSet;

use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;
use selvedge_model::NodeId;

use crate::admission::Role;
use crate::lives::Lives;
use crate::record::Admitted;
use crate::roster::{Roster, role_of};
use crate::time::UnixTime;

/// What the pairings are made of: the digits of pi, in which nobody hid anything.
const PAIRINGS: [u64; 2] = [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344];
/// The ring has two to the power of this many arcs.
const ARC_BITS: u32 = 12;
/// The places in one arc.
const PLACES: u64 = u64::MAX >> ARC_BITS;

/// So many links to images of one kind at most end at a node, so that nobody can choose
/// identities that make another serve a great many.
const MAX_IMAGES: usize = 8;

/// How often a random node is drawn anew if it will not do.
const DRAWS: usize = 32;

/// The members that this node counts on, itself among them.
pub(crate) struct View<'a> {
    pub(crate) roster: &'a Roster,
    pub(crate) lives: &'a Lives,
    pub(crate) own: NodeId,
    pub(crate) wall: UnixTime,
    /// The clients that are attached to this node.
    pub(crate) wards: &'a BTreeSet<NodeId>,
}

impl<'a> View<'a> {
    /// Whether a node is a member that is not down.
    pub(crate) fn stands(&self, node: NodeId) -> bool {
        self.roster.map.get(&node).is_some_and(|entry| self.is_standing(node, entry))
    }

    /// Whether this node may watch another: a peer that stands, or a client of its own that does.
    pub(crate) fn watches(&self, node: NodeId) -> bool {
        self.stands(node) || self.wards.contains(&node) && !self.lives.is_down(node)
    }

    /// About how many members stand.
    pub(crate) fn count(&self) -> usize {
        self.roster.map.len().saturating_sub(self.lives.count_down())
    }

    /// The peer that this node watches: the next one on the ring; of a client the one that it is
    /// attached to.
    pub(crate) fn successor(&self) -> Option<NodeId> {
        if self.is_client() {
            return self.home();
        }
        self.standing_from(self.own).find(|node| *node != self.own)
    }

    /// The nodes that this node exchanges news with.
    pub(crate) fn neighbours(&self) -> BTreeSet<NodeId> {
        let mut links: BTreeSet<NodeId> = self.successor().into_iter().collect();
        if self.is_client() {
            return links;
        }
        links.extend(self.wards.iter().copied().filter(|ward| !self.lives.is_down(*ward)));
        let Some(before) = self.predecessor() else { return links };
        links.insert(before);
        for pairing in PAIRINGS {
            links.extend(self.owner(image(position(self.own), pairing)));
            links.extend(self.images_owned(pairing, before));
        }
        links.remove(&self.own);
        links
    }

    /// A peer that stands, drawn at random, none of `without`. A client draws the one that it is
    /// attached to, for it talks to no other.
    pub(crate) fn draw(&self, without: &BTreeSet<NodeId>, rng: &mut ChaCha8Rng) -> Option<NodeId> {
        if self.is_client() {
            return self.home().filter(|home| !without.contains(home));
        }
        let count = self.roster.map.len();
        for _ in 0..DRAWS.min(count * 4) {
            let (node, entry) = self.roster.map.nth(rng.random_range(0..count))?;
            let fits = *node != self.own && !without.contains(node);
            if entry.is_some_and(|entry| fits && self.is_standing(*node, entry)) {
                return Some(*node);
            }
        }
        // Few will do: the first one from a random point on.
        let start = NodeId(rng.random());
        self.standing_from(start).find(|node| *node != self.own && !without.contains(node))
    }

    /// If one member answers for all of these ([`Roster::answers_for`]): a peer that stands for whom
    /// another does, none of `without`. Nobody who is a client asks one, for it talks to one alone.
    pub(crate) fn independent_of(
        &self,
        nodes: &[NodeId],
        without: &BTreeSet<NodeId>,
        rng: &mut ChaCha8Rng,
    ) -> Option<NodeId> {
        let mut sources = nodes.iter().map(|node| self.roster.answers_for(*node));
        let source = sources.next()?;
        if self.is_client() || sources.any(|other| other != source) {
            return None;
        }
        let fits = |node: &NodeId| {
            *node != self.own && !without.contains(node) && self.roster.answers_for(*node) != source
        };
        self.standing_from(NodeId(rng.random())).find(fits)
    }

    fn is_standing(&self, node: NodeId, entry: &Admitted) -> bool {
        self.is_peer(entry) && (node == self.own || !self.lives.is_down(node))
    }

    fn is_peer(&self, entry: &Admitted) -> bool {
        !entry.certificate().has_expired(self.wall) && role_of(entry) == Role::Peer
    }

    /// All peers, ascending, be they up or down.
    pub(crate) fn peers(&self) -> impl Iterator<Item = (NodeId, &'a Admitted)> {
        let all = self.roster.map.iter().map(|(node, entry)| (*node, entry));
        all.filter(|(_, entry)| self.is_peer(entry))
    }

    /// All peers that stand, ascending.
    pub(crate) fn standing_peers(&self) -> impl Iterator<Item = (NodeId, &'a Admitted)> {
        self.peers().filter(|(node, entry)| self.is_standing(*node, entry))
    }

    /// Those that stand from `start` on, once around the ring.
    fn standing_from(&self, start: NodeId) -> impl Iterator<Item = NodeId> {
        let after = self.roster.map.iter_from(start.as_bytes());
        let around = self.roster.map.iter().take_while(move |(node, _)| **node < start);
        after.chain(around).filter(|(node, entry)| self.is_standing(**node, entry)).map(|(n, _)| *n)
    }

    /// The first that stands at or after a position.
    fn owner(&self, at: u64) -> Option<NodeId> {
        self.standing_from(at_position(at)).next()
    }

    /// The last that stands before this node on the ring.
    fn predecessor(&self) -> Option<NodeId> {
        let count = self.roster.map.len();
        let rank = self.roster.map.rank(self.own.as_bytes());
        let ranks = (0..rank).rev().chain((rank..count).rev());
        let nodes = ranks.filter_map(|rank| self.roster.map.nth(rank));
        let mut standing = nodes.filter_map(|(node, entry)| {
            entry.is_some_and(|entry| self.is_standing(*node, entry)).then_some(*node)
        });
        standing.find(|node| *node != self.own)
    }

    /// Those whose image this node owns, `before` being the one ahead of it.
    fn images_owned(&self, pairing: u64, before: NodeId) -> BTreeSet<NodeId> {
        let (mut at, last) = (position(before).wrapping_add(1), position(self.own));
        let mut owned = BTreeSet::new();
        while owned.len() < MAX_IMAGES {
            // From here to the end of the arc, or to this node if that comes first.
            let length = (PLACES - (at & PLACES)).min(last.wrapping_sub(at));
            let first = image(at, pairing);
            let within = |node: &NodeId| position(*node).wrapping_sub(first) <= length;
            owned
                .extend(self.standing_from(at_position(first)).take_while(within).take(MAX_IMAGES));
            at = at.wrapping_add(length);
            if at == last {
                break;
            }
            at = at.wrapping_add(1);
        }
        owned
    }
}

/// The same place in the arc that a position's arc is paired with.
fn image(position: u64, pairing: u64) -> u64 {
    let arc = position >> (64 - ARC_BITS);
    let mate = shuffled(shuffled(arc, pairing, false) ^ 1, pairing, true);
    mate << (64 - ARC_BITS) | position & PLACES
}

/// A permutation of the arcs, or its inverse: a Feistel network on the halves of the number.
fn shuffled(arc: u64, key: u64, inverse: bool) -> u64 {
    const HALF: u32 = ARC_BITS / 2;
    let (mut left, mut right) = (arc >> HALF, arc & ((1 << HALF) - 1));
    for round in 0..4 {
        let round = if inverse { 3 - round } else { round };
        let mixed = |half: u64| {
            let seed = key.rotate_left(round * 16) ^ half.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (seed ^ seed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> (64 - HALF)
        };
        (left, right) = match inverse {
            false => (right, left ^ mixed(right)),
            true => (right ^ mixed(left), left),
        };
    }
    left << HALF | right
}

/// Where on the ring a node is.
fn position(node: NodeId) -> u64 {
    let (first, _) = node.as_bytes().split_first_chunk().unwrap_or((&[0; 8], &[]));
    u64::from_be_bytes(*first)
}

fn at_position(position: u64) -> NodeId {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&position.to_be_bytes());
    NodeId(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, VecDeque};

    use rand::SeedableRng as _;

    use super::*;
    use crate::testing::{WALL, roster};
    static NONE: BTreeSet<NodeId> = BTreeSet::new();

    fn links(roster: &Roster, lives: &Lives) -> BTreeMap<NodeId, BTreeSet<NodeId>> {
        let view = |own| View { roster, lives, own, wall: WALL, wards: &NONE };
        // Whoever is down counts on itself, but nobody asks it here.
        let standing = roster.nodes(WALL).filter(|node| !lives.is_down(*node));
        standing.map(|node| (node, view(node).neighbours())).collect()
    }

    /// The greatest number of hops from the first node to any; `None` if some are not reached.
    fn hops(links: &BTreeMap<NodeId, BTreeSet<NodeId>>) -> Option<usize> {
        let first = *links.keys().next()?;
        let mut reached = BTreeMap::from([(first, 0)]);
        let mut queue = VecDeque::from([first]);
        while let Some(node) = queue.pop_front() {
            for next in &links[&node] {
                if !reached.contains_key(next) {
                    reached.insert(*next, reached[&node] + 1);
                    queue.push_back(*next);
                }
            }
        }
        (reached.len() == links.len()).then(|| reached.into_values().max().unwrap_or(0))
    }

    #[test]
    fn images_come_in_pairs() {
        for pairing in PAIRINGS {
            let mates: BTreeSet<u64> = (0..1 << ARC_BITS)
                .map(|arc| {
                    let position = arc << (64 - ARC_BITS) | 77;
                    let there = image(position, pairing);
                    assert_eq!(image(there, pairing), position);
                    assert_ne!(there, position);
                    assert_eq!(there & PLACES, 77);
                    there
                })
                .collect();
            assert_eq!(mates.len(), 1 << ARC_BITS);
        }
    }

    #[test]
    fn links_are_known_at_both_ends_and_lead_everywhere() {
        let roster = roster(600);
        let mut lives = Lives::default();
        for down in [0, 200] {
            roster.map.iter().step_by(2).take(down).for_each(|(node, _)| lives.see_down(*node));
            let links = links(&roster, &lives);
            let failed = lives.down().filter(|node| roster.is_member(*node, WALL)).count();
            assert_eq!(links.len(), 540 - failed);
            let one_sided = links.iter().flat_map(|(node, to)| to.iter().map(move |to| (node, to)));
            let one_sided = one_sided.filter(|(node, to)| !links[to].contains(node)).count();
            // Only those that the bound cut off.
            assert!(one_sided <= 4, "{one_sided}");
            let degrees: Vec<usize> = links.values().map(BTreeSet::len).collect();
            let total: usize = degrees.iter().sum();
            assert!(total <= links.len() * 6, "{total}");
            assert!(degrees.iter().all(|degree| (2..=20).contains(degree)));
            let hops = hops(&links).expect("connected");
            assert!(hops <= 8, "{hops}");
        }
    }

    #[test]
    fn small_meshes_are_linked_too() {
        let lives = Lives::default();
        for count in 1..9 {
            let roster = roster(count);
            let links = links(&roster, &lives);
            assert!(hops(&links).is_some(), "{count}");
            assert!(links.iter().all(|(node, to)| !to.contains(node)));
        }
    }

    #[test]
    fn everybody_is_watched_by_one_and_all_are_drawn() {
        let roster = roster(60);
        let mut lives = Lives::default();
        roster.map.iter().take(20).for_each(|(node, _)| lives.see_down(*node));
        let view = |own| View { roster: &roster, lives: &lives, own, wall: WALL, wards: &NONE };
        let standing: BTreeSet<NodeId> = links(&roster, &lives).into_keys().collect();
        let watched: BTreeSet<NodeId> =
            standing.iter().filter_map(|node| view(*node).successor()).collect();
        assert_eq!(watched, standing);
        let own = *standing.first().expect("some stand");
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let without = BTreeSet::from([*standing.last().expect("some stand")]);
        let drawn: BTreeSet<NodeId> =
            (0..2000).filter_map(|_| view(own).draw(&without, &mut rng)).collect();
        let expected: BTreeSet<NodeId> = &standing - &(&without | &BTreeSet::from([own]));
        assert_eq!(drawn, expected);
        let nobody = view(own).draw(&standing, &mut rng);
        assert_eq!(nobody, None);
    }
}
