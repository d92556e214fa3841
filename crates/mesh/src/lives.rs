//! Who is held to be down, and since which incarnation.

use std::collections::BTreeMap;
use std::ops::Bound;

use selvedge_model::NodeId;

use crate::crdt::{Content, Digest, Entry, TwoPhaseMap};
use crate::rumor::{Alive, Rumor, Verdict};
use crate::signed::Signed;

/// What is held of the members' lives. Who is not in it has done nothing of note: it lives.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lives {
    of: BTreeMap<NodeId, Standing>,
    down: usize,
    /// The verdicts alone, to compare them with others'.
    verdicts: Verdicts,
}

/// The verdicts that a node holds, in a form that can be compared by ranges.
pub(crate) type Verdicts = TwoPhaseMap<NodeId, Mark, Never>;

/// The incarnation that a verdict is of. Two verdicts of one incarnation say the same, whoever
/// accused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark(u64);

impl Mark {
    pub(crate) const fn incarnation(self) -> u64 {
        self.0
    }
}

/// A verdict is not buried but contradicted, and then dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Never {}

impl Content for Mark {
    fn stamp(&self) -> u64 {
        self.0
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

#[derive(Clone, Debug, Default)]
struct Standing {
    /// Of the last sign of life or verdict.
    incarnation: u64,
    alive: Option<Signed<Alive>>,
    down: Option<Down>,
}

#[derive(Clone, Debug)]
enum Down {
    /// Several members found so.
    Verdict(Verdict),
    /// This node found so, with nobody in reach to bear it out.
    OwnEyes,
}

impl Lives {
    pub(crate) fn is_down(&self, node: NodeId) -> bool {
        self.of.get(&node).is_some_and(|standing| standing.down.is_some())
    }

    /// The incarnation of which a node is held to be down.
    pub(crate) fn held_down(&self, node: NodeId) -> Option<u64> {
        let standing = self.of.get(&node)?;
        standing.down.as_ref().map(|_| standing.incarnation)
    }

    /// Of the last sign of life or verdict.
    pub(crate) fn incarnation(&self, node: NodeId) -> u64 {
        self.of.get(&node).map_or(0, |standing| standing.incarnation)
    }

    /// The number of those that are down.
    pub(crate) const fn count_down(&self) -> usize {
        self.down
    }

    /// Those that are down, ascending.
    pub(crate) fn down(&self) -> impl Iterator<Item = NodeId> {
        self.of.iter().filter(|(_, standing)| standing.down.is_some()).map(|(node, _)| *node)
    }

    /// Those of whom this node alone found that they are down, ascending.
    pub(crate) fn own_eyes(&self) -> impl Iterator<Item = NodeId> {
        let found = |standing: &Standing| matches!(standing.down, Some(Down::OwnEyes));
        self.of.iter().filter(move |(_, standing)| found(standing)).map(|(node, _)| *node)
    }

    /// The first that is down after `node`, in a circle.
    pub(crate) fn next_down(&self, node: NodeId) -> Option<NodeId> {
        let after = self.of.range((Bound::Excluded(node), Bound::Unbounded));
        let around = after.chain(self.of.range(..=node));
        let mut down = around.filter(|(_, standing)| standing.down.is_some());
        down.next().map(|(node, _)| *node)
    }

    /// Whether a sign of life would be news.
    pub(crate) fn lacks_alive(&self, node: NodeId, incarnation: u64) -> bool {
        incarnation > self.incarnation(node)
    }

    /// Whether a verdict would be news.
    pub(crate) fn lacks_verdict(&self, node: NodeId, incarnation: u64) -> bool {
        self.of.get(&node).is_none_or(|held| match held.down {
            Some(Down::Verdict(_)) => incarnation > held.incarnation,
            Some(Down::OwnEyes) | None => incarnation >= held.incarnation,
        })
    }

    /// Takes over a sign of life. Says whether it was news.
    pub(crate) fn hear_alive(&mut self, alive: Signed<Alive>) -> bool {
        let Alive { node, incarnation, .. } = *alive.value();
        let news = self.lacks_alive(node, incarnation);
        if news {
            let standing = Standing { incarnation, alive: Some(alive), down: None };
            self.set(node, standing);
        }
        news
    }

    /// Takes over a verdict. Says whether it was news.
    pub(crate) fn hear_verdict(&mut self, verdict: Verdict) -> bool {
        let (node, incarnation) = (verdict.target(), verdict.incarnation());
        let news = self.lacks_verdict(node, incarnation);
        if news {
            let down = Some(Down::Verdict(verdict));
            self.set(node, Standing { incarnation, alive: None, down });
        }
        news
    }

    /// Notes what this node found by itself.
    pub(crate) fn see_down(&mut self, node: NodeId) {
        let standing = self.of.get(&node).cloned().unwrap_or_default();
        if standing.down.is_none() {
            self.set(node, Standing { down: Some(Down::OwnEyes), ..standing });
        }
    }

    /// Notes that a node was heard: what this node found by itself, it was wrong about. Says
    /// whether it had found so.
    pub(crate) fn see_alive(&mut self, node: NodeId) -> bool {
        let standing = self.of.get(&node).filter(|held| matches!(held.down, Some(Down::OwnEyes)));
        let Some(standing) = standing.cloned() else { return false };
        self.set(node, Standing { down: None, ..standing });
        true
    }

    /// What to tell those who have not heard of it.
    pub(crate) fn rumor(&self, node: NodeId) -> Option<Rumor> {
        let standing = self.of.get(&node)?;
        let alive = || {
            let raw = standing.alive.as_ref()?.raw().clone();
            Some(Rumor { alive: Some(raw), accusations: Vec::new() })
        };
        match &standing.down {
            Some(Down::Verdict(verdict)) => Some(verdict.rumor()),
            Some(Down::OwnEyes) | None => alive(),
        }
    }

    /// Those of whom anything is held whose identity begins so.
    pub(crate) fn beginning(&self, prefix: [u8; 8]) -> impl Iterator<Item = NodeId> {
        let mut start = [0; 32];
        start[..8].copy_from_slice(&prefix);
        let from = self.of.range(NodeId(start)..).map(|(node, _)| *node);
        from.take_while(move |node| node.as_bytes().starts_with(&prefix))
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
        self.verdicts.added(&node).is_some_and(|held| held.incarnation() >= incarnation)
    }

    /// Forgets all of whom `keep` does not hold.
    pub(crate) fn retain(&mut self, keep: impl Fn(NodeId) -> bool) {
        let dropped: Vec<NodeId> = self.of.keys().copied().filter(|node| !keep(*node)).collect();
        dropped.into_iter().for_each(|node| self.forget(node));
    }

    /// Forgets what is held of a node.
    pub(crate) fn forget(&mut self, node: NodeId) {
        self.verdicts.forget(&node);
        let before = self.of.remove(&node);
        self.down -= usize::from(before.is_some_and(|before| before.down.is_some()));
    }

    fn set(&mut self, node: NodeId, standing: Standing) {
        self.forget(node);
        self.down += usize::from(standing.down.is_some());
        if let Some(Down::Verdict(_)) = standing.down {
            self.verdicts.merge_entry(node, Entry::Add(Mark(standing.incarnation)));
        }
        self.of.insert(node, standing);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;
    use crate::rumor::Accusation;
    use crate::verifier::Verifier;
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
