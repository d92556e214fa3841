//! Broadcast trees: news goes on at once over *eager* links, and is announced over *lazy* ones.
//!
//! (Leitão, Pereira, Rodrigues: Epidemic Broadcast Trees, SRDS 2007.) A link over which news
//! arrives that others brought before becomes lazy, by agreement of both its ends; one over which
//! something is announced that does not arrive otherwise becomes eager again. So the fastest links
//! stay. Unlike there, a node tolerates a few copies of each news before it gives up a link: with
//! one copy, a single lost packet cuts off all behind it until it is noticed.
//!
//! ```text
//!             one copy too many arrived over it: prune
//!   ┌───────┐ ────────────────────────────────────────▶ ┌──────┐
//!   │ eager │                                           │ lazy │
//!   └───────┘ ◀──────────────────────────────────────── └──────┘
//!             announced over it, not arrived: graft
//! ```

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use minicbor::{Decode, Encode};
use selvedge_model::{NodeId, Time};

use crate::codec::fixed;

/// How long news is remembered, to count its copies.
const MEMORY: Duration = Duration::from_secs(10);
/// The greatest number of news remembered, and of those missed.
const MAX_NEWS: usize = 4096;
/// How long after an announcement news may still arrive by itself.
const PATIENCE: Duration = Duration::from_millis(60);
/// How long after asking one for it the next is asked.
const RETRY: Duration = Duration::from_millis(250);
/// The greatest number of those that can be asked for one thing.
const MAX_SOURCES: usize = 4;

/// Names a piece of news in an announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct NewsId {
    /// What it is.
    #[n(0)]
    pub kind: NewsKind,
    /// How the identity of the node that it is of begins.
    #[cbor(n(1), with = "fixed")]
    pub node: [u8; 8],
    /// The sequence number of an entry, the incarnation of a rumor.
    #[n(2)]
    pub stamp: u64,
}

/// By kind, node and stamp, compared as numbers: each copy of each piece of news is looked up.
impl Ord for NewsId {
    fn cmp(&self, other: &Self) -> Ordering {
        let place = |id: &Self| (id.kind, u64::from_be_bytes(id.node), id.stamp);
        place(self).cmp(&place(other))
    }
}

impl PartialOrd for NewsId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The kinds of news.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(index_only)]
pub enum NewsKind {
    /// A record or a removal.
    #[n(0)]
    Entry,
    /// A sign of life.
    #[n(1)]
    Alive,
    /// A verdict.
    #[n(2)]
    Verdict,
}

/// The links' states, and what is known of recent news.
#[derive(Clone, Debug)]
pub(crate) struct Broadcast {
    /// Copies of one piece of news that are tolerated.
    copies: usize,
    lazy: BTreeSet<NodeId>,
    seen: BTreeMap<NewsId, usize>,
    /// When it was first seen.
    order: VecDeque<(Time, NewsId)>,
    missing: BTreeMap<NewsId, Missing>,
}

#[derive(Clone, Debug)]
struct Missing {
    due: Time,
    sources: VecDeque<NodeId>,
}

/// To whom news goes, and to whom its announcement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Targets {
    pub(crate) eager: Vec<NodeId>,
    pub(crate) lazy: Vec<NodeId>,
}

impl Broadcast {
    pub(crate) const fn new(copies: usize) -> Self {
        Self {
            copies,
            lazy: BTreeSet::new(),
            seen: BTreeMap::new(),
            order: VecDeque::new(),
            missing: BTreeMap::new(),
        }
    }

    /// Forgets the links to those that are no neighbours any more.
    pub(crate) fn retain(&mut self, neighbours: &BTreeSet<NodeId>) {
        self.lazy.retain(|node| neighbours.contains(node));
    }

    /// News that began here: all neighbours get it, lest one lost packet stops it at once.
    pub(crate) fn begin(
        &mut self,
        news: &[NewsId],
        neighbours: &BTreeSet<NodeId>,
        now: Time,
    ) -> Targets {
        self.note(news, now);
        Targets { eager: neighbours.iter().copied().collect(), lazy: Vec::new() }
    }

    /// News that was new here and came from `from`. Returns to whom it goes on.
    pub(crate) fn go_on(
        &mut self,
        news: &[NewsId],
        from: NodeId,
        neighbours: &BTreeSet<NodeId>,
        now: Time,
    ) -> Targets {
        self.note(news, now);
        let others = neighbours.iter().copied().filter(|node| *node != from);
        let (lazy, eager) = others.partition(|node| self.lazy.contains(node));
        Targets { eager, lazy }
    }

    /// Counts copies that `from` sent over its link. Says whether the link is to become lazy.
    pub(crate) fn count(&mut self, news: &[NewsId], from: NodeId) -> bool {
        let mut many = false;
        for id in news {
            if let Some(copies) = self.seen.get_mut(id) {
                *copies += 1;
                many |= *copies > self.copies;
            }
        }
        if many {
            self.lazy.insert(from);
        }
        many
    }

    /// Whether this was news here a moment ago. No means nothing.
    pub(crate) fn has_seen(&self, id: &NewsId) -> bool {
        self.seen.contains_key(id)
    }

    /// The other end has made the link lazy.
    pub(crate) fn pruned(&mut self, by: NodeId) {
        self.lazy.insert(by);
    }

    /// The other end has made the link eager.
    pub(crate) fn grafted(&mut self, by: NodeId) {
        self.lazy.remove(&by);
    }

    /// `from` announced something that is lacking here.
    pub(crate) fn announced(&mut self, id: NewsId, from: NodeId, now: Time) {
        if self.missing.len() >= MAX_NEWS && !self.missing.contains_key(&id) {
            return;
        }
        let missing = self.missing.entry(id);
        let missing =
            missing.or_insert_with(|| Missing { due: now + PATIENCE, sources: VecDeque::new() });
        if missing.sources.len() < MAX_SOURCES && !missing.sources.contains(&from) {
            missing.sources.push_back(from);
        }
    }

    /// When [`Broadcast::handle_timeout`] is to be called.
    pub(crate) fn poll_timeout(&self) -> Option<Time> {
        self.missing.values().map(|missing| missing.due).min()
    }

    /// What to ask for, and whom.
    pub(crate) fn handle_timeout(&mut self, now: Time) -> BTreeMap<NodeId, Vec<NewsId>> {
        let mut asked: BTreeMap<NodeId, Vec<NewsId>> = BTreeMap::new();
        self.missing.retain(|id, missing| {
            if missing.due > now {
                return true;
            }
            // When all were asked, reconciliation will bring it.
            let Some(source) = missing.sources.pop_front() else { return false };
            missing.due = now + RETRY;
            asked.entry(source).or_default().push(*id);
            true
        });
        self.lazy.retain(|node| !asked.contains_key(node));
        asked
    }

    /// Notes that news is here. The copy that brought it is counted by [`Broadcast::count`].
    fn note(&mut self, news: &[NewsId], now: Time) {
        for id in news {
            self.missing.remove(id);
            if self.seen.insert(*id, 1).is_none() {
                self.order.push_back((now, *id));
            }
        }
        while let Some((when, id)) = self.order.front().copied() {
            if now.since(when) < MEMORY && self.order.len() <= MAX_NEWS {
                break;
            }
            self.order.pop_front();
            self.seen.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u8) -> NodeId {
        NodeId([number; 32])
    }

    fn news(number: u8) -> NewsId {
        NewsId { kind: NewsKind::Entry, node: [number; 8], stamp: 1 }
    }

    fn at(ms: u64) -> Time {
        Time::from_micros(ms * 1000)
    }

    fn neighbours() -> BTreeSet<NodeId> {
        [1, 2, 3].map(node).into()
    }

    #[test]
    fn the_fastest_links_stay_eager() {
        let mut tree = Broadcast::new(2);
        let targets = tree.go_on(&[news(7)], node(1), &neighbours(), at(0));
        assert_eq!(targets.eager, [node(2), node(3)]);
        assert!(!tree.count(&[news(7)], node(2)), "the second copy is tolerated");
        assert!(tree.count(&[news(7)], node(3)), "the third is not");
        let targets = tree.go_on(&[news(8)], node(1), &neighbours(), at(5));
        assert_eq!((targets.eager, targets.lazy), (vec![node(2)], vec![node(3)]));
        tree.pruned(node(2));
        tree.grafted(node(3));
        let targets = tree.go_on(&[news(9)], node(1), &neighbours(), at(9));
        assert_eq!((targets.eager, targets.lazy), (vec![node(3)], vec![node(2)]));
        let own = tree.begin(&[news(10)], &neighbours(), at(9));
        assert_eq!(own.eager.len(), 3, "what begins here goes to all");
    }

    #[test]
    fn what_is_announced_and_does_not_arrive_is_asked_for() {
        let mut tree = Broadcast::new(1);
        tree.pruned(node(2));
        tree.announced(news(7), node(2), at(0));
        tree.announced(news(7), node(3), at(10));
        tree.announced(news(8), node(3), at(10));
        tree.go_on(&[news(8)], node(1), &neighbours(), at(50));
        assert_eq!(tree.poll_timeout(), Some(at(60)));
        assert!(tree.handle_timeout(at(59)).is_empty());
        assert_eq!(tree.handle_timeout(at(60)), [(node(2), vec![news(7)])].into());
        assert_eq!(tree.handle_timeout(at(310)), [(node(3), vec![news(7)])].into());
        assert!(tree.handle_timeout(at(560)).is_empty());
        assert_eq!(tree.poll_timeout(), None);
        let targets = tree.go_on(&[news(9)], node(1), &neighbours(), at(950));
        assert!(targets.lazy.is_empty(), "who was asked is eager again");
    }

    #[test]
    fn memory_is_bounded() {
        let mut tree = Broadcast::new(2);
        for number in 0..20_000_u64 {
            let id = NewsId { stamp: number, ..news(1) };
            tree.announced(id, node(1), at(0));
            tree.go_on(&[NewsId { stamp: number + 100_000, ..id }], node(1), &neighbours(), at(0));
        }
        assert!(tree.seen.len() <= MAX_NEWS && tree.order.len() <= MAX_NEWS);
        assert!(tree.missing.len() <= MAX_NEWS);
        tree.go_on(&[news(2)], node(1), &neighbours(), at(20_000));
        assert_eq!(tree.seen.len(), 1);
    }
}
