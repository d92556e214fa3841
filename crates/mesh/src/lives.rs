//! Who is held to be down, and since which incarnation.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use selvedge_model::NodeId;

use crate::crdt::{Content, Digest, Entry, TwoPhaseMap};
use crate::rumor::{Alive, Rumor, Verdict};
use crate::signed::Signed;
use crate::verifier::Verifier;

/// What is held of the members' lives. Who is not in it has done nothing of note: it lives.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lives {
    /// The last signs of life of those against whom no verdict stands.
    alive: BTreeMap<NodeId, Arc<Signed<Alive>>>,
    /// What several members found.
    verdicts: Verdicts,
    /// Who this node found to be down by itself, with nobody in reach to bear it out.
    own_eyes: BTreeSet<NodeId>,
}

/// The verdicts that a node holds, in a form that can be compared by ranges. Two verdicts of one
/// incarnation say the same, whoever accused.
pub(crate) type Verdicts = TwoPhaseMap<NodeId, Verdict, Never>;

/// No identity is before it.
const FIRST: NodeId = NodeId([0; 32]);

/// A verdict is not buried but contradicted, and then dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Never {}

impl Content for Verdict {
    fn stamp(&self) -> u64 {
        self.incarnation()
    }

    fn tie(&self) -> [u8; 16] {
        [0; 16]
    }

    fn expiry(&self) -> u64 {
        u64::MAX
    }
}

impl Content for Never {
    fn stamp(&self) -> u64 {
        match *self {}
    }

    fn tie(&self) -> [u8; 16] {
        match *self {}
    }

    fn expiry(&self) -> u64 {
        match *self {}
    }
}

impl Lives {
    pub(crate) fn is_down(&self, node: NodeId) -> bool {
        self.verdict(node).is_some() || self.own_eyes.contains(&node)
    }

    /// The incarnation of which a node is held to be down.
    pub(crate) fn held_down(&self, node: NodeId) -> Option<u64> {
        self.is_down(node).then(|| self.incarnation(node))
    }

    /// Of the last sign of life or verdict.
    pub(crate) fn incarnation(&self, node: NodeId) -> u64 {
        let of_verdict = self.verdict(node).map(Verdict::incarnation);
        let of_life = || self.alive.get(&node).map(|alive| alive.value().incarnation);
        of_verdict.or_else(of_life).unwrap_or(0)
    }

    /// The number of those that are down.
    pub(crate) fn count_down(&self) -> usize {
        self.verdicts.len() + self.own_eyes.len()
    }

    /// Those that are down, ascending.
    pub(crate) fn down(&self) -> impl Iterator<Item = NodeId> {
        self.down_from(FIRST)
    }

    fn down_from(&self, start: NodeId) -> impl Iterator<Item = NodeId> {
        let convicted = self.verdicts.iter_from(start.as_bytes());
        let mut convicted = convicted.map(|(node, _)| *node).peekable();
        let mut seen = self.own_eyes.range(start..).copied().peekable();
        std::iter::from_fn(move || match (convicted.peek(), seen.peek()) {
            (Some(one), Some(other)) if other < one => seen.next(),
            (Some(_), _) => convicted.next(),
            (None, _) => seen.next(),
        })
    }

    /// Those of whom this node alone found that they are down, ascending.
    pub(crate) fn own_eyes(&self) -> impl Iterator<Item = NodeId> {
        self.own_eyes.iter().copied()
    }

    /// The first that is down after `node`, in a circle.
    pub(crate) fn next_down(&self, node: NodeId) -> Option<NodeId> {
        let after = self.down_from(node).find(|other| *other != node);
        after.or_else(|| self.down().next())
    }

    /// Whether a sign of life would be news.
    pub(crate) fn lacks_alive(&self, node: NodeId, incarnation: u64) -> bool {
        incarnation > self.incarnation(node)
    }

    /// Whether a verdict would be news.
    pub(crate) fn lacks_verdict(&self, node: NodeId, incarnation: u64) -> bool {
        match self.verdict(node) {
            Some(held) => incarnation > held.incarnation(),
            None => incarnation >= self.incarnation(node),
        }
    }

    /// Takes over a sign of life. Says whether it was news.
    pub(crate) fn hear_alive(&mut self, alive: impl Into<Arc<Signed<Alive>>>) -> bool {
        let alive = alive.into();
        let Alive { node, incarnation, .. } = *alive.value();
        let news = self.lacks_alive(node, incarnation);
        if news {
            self.forget(node);
            self.alive.insert(node, alive);
        }
        news
    }

    /// Takes over a verdict. Says whether it was news.
    pub(crate) fn hear_verdict(&mut self, verdict: Verdict) -> bool {
        let node = verdict.target();
        let news = self.lacks_verdict(node, verdict.incarnation());
        if news {
            self.alive.remove(&node);
            self.own_eyes.remove(&node);
            self.verdicts.merge_entry(node, Entry::Add(verdict));
        }
        news
    }

    /// Notes what this node found by itself.
    pub(crate) fn see_down(&mut self, node: NodeId) {
        if self.verdict(node).is_none() {
            self.own_eyes.insert(node);
        }
    }

    /// Notes that a node was heard: what this node found by itself, it was wrong about. Says
    /// whether it had found so.
    pub(crate) fn see_alive(&mut self, node: NodeId) -> bool {
        self.own_eyes.remove(&node)
    }

    /// What to tell those who have not heard of it.
    pub(crate) fn rumor(&self, node: NodeId) -> Option<Rumor> {
        let alive = || {
            let raw = self.alive.get(&node)?.raw().clone();
            Some(Rumor { alive: Some(raw), accusations: Vec::new() })
        };
        self.verdict(node).map(Verdict::rumor).or_else(alive)
    }

    /// Those of whom others have said anything whose identity begins so.
    pub(crate) fn beginning(&self, prefix: [u8; 8]) -> impl Iterator<Item = NodeId> {
        let mut start = [0; 32];
        start[..8].copy_from_slice(&prefix);
        let convicted = self.verdicts.iter_from(&start).map(|(node, _)| *node);
        let living = self.alive.range(NodeId(start)..).map(|(node, _)| *node);
        let begins = move |node: &NodeId| node.as_bytes().starts_with(&prefix);
        convicted.take_while(begins).chain(living.take_while(begins))
    }

    /// The verdicts that are held.
    pub(crate) const fn verdicts(&self) -> &Verdicts {
        &self.verdicts
    }

    /// In short which verdicts are held; `None` if there are none.
    pub(crate) fn summary(&self) -> Option<u32> {
        let Digest { hash: [a, b, c, d, ..], count } = self.verdicts.digest();
        (count > 0).then(|| u32::from_be_bytes([a, b, c, d]))
    }

    /// Whether a verdict, this one or a later one, is held.
    pub(crate) fn holds_verdict(&self, node: NodeId, incarnation: u64) -> bool {
        self.verdict(node).is_some_and(|held| held.incarnation() >= incarnation)
    }

    /// Forgets all of whom `keep` does not hold.
    pub(crate) fn retain(&mut self, keep: impl Fn(NodeId) -> bool) {
        let held = self.down().chain(self.alive.keys().copied());
        let dropped: Vec<NodeId> = held.filter(|node| !keep(*node)).collect();
        dropped.into_iter().for_each(|node| self.forget(node));
    }

    /// Drops the verdicts that rest on the word of others than witnesses, and returns against whom
    /// they were.
    pub(crate) fn drop_unless(&mut self, is_witness: impl Fn(NodeId) -> bool) -> Vec<NodeId> {
        let rests = |verdict: &Verdict| !verdict.accusers().all(&is_witness);
        let dropped = self.verdicts.iter().filter(|(_, verdict)| rests(verdict));
        let dropped: Vec<NodeId> = dropped.map(|(node, _)| *node).collect();
        dropped.iter().for_each(|node| self.verdicts.forget(node));
        dropped
    }

    /// Forgets what is held of a node.
    pub(crate) fn forget(&mut self, node: NodeId) {
        self.verdicts.forget(&node);
        self.alive.remove(&node);
        self.own_eyes.remove(&node);
    }

    /// Keeps equal verdicts in one copy with all who use the verifier.
    pub(crate) fn share(&mut self, verifier: &Verifier) {
        verifier.share_verdicts(&mut self.verdicts);
    }

    /// The verdict that is held against a node.
    pub(crate) fn verdict(&self, node: NodeId) -> Option<&Verdict> {
        self.verdicts.added(&node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;
    use crate::rumor::Accusation;
    use selvedge_model::MeshId;

    const MESH: MeshId = MeshId([1; 20]);

    fn identity(number: u8) -> Identity {
        Identity::from_secret(&[number; 32])
    }

    fn verdict(incarnation: u64) -> Verdict {
        let accuse = |by| Accusation::sign(MESH, identity(9).node_id(), incarnation, &identity(by));
        Verdict::of(&[accuse(1), accuse(2)], &Verifier::default()).expect("two members")
    }

    fn alive(incarnation: u64) -> Signed<Alive> {
        Alive::sign(MESH, incarnation, &identity(9))
    }

    /// Every order of the same rumors leads to the same: the greatest incarnation counts, and of
    /// equal ones the verdict.
    #[test]
    fn the_order_of_rumors_does_not_count() {
        let node = identity(9).node_id();
        let tell = |order: &[usize]| {
            let mut lives = Lives::default();
            for rumor in order {
                match rumor {
                    0 => lives.hear_verdict(verdict(0)),
                    1 => lives.hear_alive(alive(1)),
                    2 => lives.hear_verdict(verdict(1)),
                    _ => lives.hear_alive(alive(2)),
                };
            }
            (lives.incarnation(node), lives.held_down(node), lives.count_down())
        };
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            assert_eq!(tell(&order), (1, Some(1), 1), "{order:?}");
        }
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 3, 0, 1], [1, 3, 2, 0]] {
            assert_eq!(tell(&order), (2, None, 0), "{order:?}");
        }
    }

    #[test]
    fn own_eyes_give_way_to_being_heard_and_verdicts_do_not() {
        let node = identity(9).node_id();
        let mut lives = Lives::default();
        lives.see_down(node);
        assert!(lives.is_down(node) && lives.rumor(node).is_none());
        assert!(lives.see_alive(node) && !lives.is_down(node));
        lives.see_down(node);
        assert!(lives.hear_verdict(verdict(0)), "others are to know");
        assert!(!lives.hear_verdict(verdict(0)));
        assert!(!lives.see_alive(node) && lives.is_down(node));
        assert_eq!(lives.next_down(node), Some(node));
        assert_eq!(lives.next_down(NodeId([0; 32])), Some(node));
        assert_eq!(lives.rumor(node), Some(verdict(0).rumor()));
        assert!(lives.hear_alive(alive(1)) && !lives.hear_alive(alive(1)));
        assert_eq!(lives.next_down(node), None);
        let told = lives.rumor(node).expect("a sign of life");
        assert_eq!(told.alive.as_ref(), Some(alive(1).raw()));
        lives.retain(|_| false);
        assert_eq!(lives.incarnation(node), 0);
    }

    #[test]
    fn what_rests_on_a_word_that_counts_no_more_is_dropped() {
        let node = identity(9).node_id();
        let mut lives = Lives::default();
        lives.hear_verdict(verdict(0));
        let but = |number| move |witness| witness != identity(number).node_id();
        assert_eq!(lives.drop_unless(but(3)), []);
        assert!(lives.is_down(node));
        assert_eq!(lives.drop_unless(but(2)), [node]);
        assert!(!lives.is_down(node) && lives.summary().is_none());
        assert!(lives.hear_verdict(verdict(0)), "others may find it again");
    }

    #[test]
    fn convicted_or_seen_they_are_named_in_order() {
        let mut lives = Lives::default();
        lives.hear_verdict(verdict(0));
        let convicted = identity(9).node_id();
        let around = [NodeId([0; 32]), convicted, NodeId([255; 32])];
        lives.see_down(around[2]);
        lives.see_down(around[0]);
        assert!(lives.down().eq(around) && lives.count_down() == 3);
        for (at, node) in around.iter().enumerate() {
            assert_eq!(lives.next_down(*node), Some(around[(at + 1) % 3]));
        }
        let mut start = [0; 8];
        start.copy_from_slice(&convicted.as_bytes()[..8]);
        assert!(lives.beginning(start).eq([convicted]));
        lives.retain(|node| node == around[0]);
        assert!(lives.down().eq([around[0]]) && lives.own_eyes().eq([around[0]]));
    }

    /// What is compared with others is the verdicts that stand, and nothing else.
    #[test]
    fn equal_verdicts_are_equal_in_short() {
        let node = identity(9).node_id();
        let (mut one, mut other) = (Lives::default(), Lives::default());
        assert_eq!(one.summary(), None);
        one.hear_verdict(verdict(0));
        one.hear_alive(alive(1));
        assert_eq!(one.summary(), other.summary(), "contradicted, or never heard of");
        one.see_down(node);
        assert_eq!(one.summary(), None, "own eyes are nobody else's business");
        one.hear_verdict(verdict(1));
        other.hear_verdict(verdict(1));
        assert!(one.summary().is_some() && one.summary() == other.summary());
        assert!(one.holds_verdict(node, 1) && !one.holds_verdict(node, 2));
        other.hear_verdict(verdict(2));
        assert_ne!(one.summary(), other.summary());
        other.forget(node);
        assert_eq!((other.summary(), other.count_down()), (None, 0));
    }
}
