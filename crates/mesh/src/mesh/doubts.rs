//! Agreement on who is down, where news did not bring it: after a partition, or to who has just
//! started.
//!
//! Probes carry a hash of the verdicts that their sender holds. Two nodes whose hashes stay
//! different find out by ranges which verdicts one of them lacks. The one that lacks a verdict does
//! not just believe it, for after a partition both sides hold verdicts against all of the other
//! side: it asks the convicted node first, which contradicts if it lives, and so both learn the
//! truth. Only if that node does not answer is the verdict fetched, with its signatures, and
//! believed as any other.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::seq::SliceRandom as _;
use selvedge_model::{NodeId, Time};

use super::Mesh;
use crate::broadcast::{NewsId, NewsKind};
use crate::reconcile::{self, Answer, Part, Prefix, Ranges};
use crate::wire::{MAX_NEWS, Message, Named, News, Records};

/// So many ranges are followed at a time, drawn at random. After a partition everything is
/// different and everybody compares, so that each need look at a part only.
const RANGES: usize = 12;
/// So many convicted nodes one message makes this node ask.
const HEARINGS: usize = 128;
/// How long a convicted node has to answer.
const HEARING: Duration = Duration::from_millis(1500);
/// How long it counts that it did not.
const MEMORY: Duration = Duration::from_secs(60);
/// So many hearings are held at once.
const MAX_HEARINGS: usize = 4096;

/// Comparisons of verdicts, and hearings of those who were convicted.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    /// With whom to compare, and when.
    pub(super) due: Option<(Time, NodeId)>,
    /// Who was asked whether it lives, because others hold it to be down, and when.
    hearings: BTreeMap<NodeId, Time>,
}

impl Doubts {
    /// A node answered: it lives.
    pub(super) fn heard(&mut self, node: NodeId) {
        self.hearings.remove(&node);
    }

    /// Forgets hearings of long ago.
    pub(super) fn forget(&mut self, now: Time) {
        self.hearings.retain(|_, began| now.since(*began) < MEMORY);
    }
}

impl Mesh {
    /// Compares verdicts with a partner that has told the hash of its own.
    pub(super) fn compare_verdicts(&mut self, partner: NodeId, theirs: Option<u32>, now: Time) {
        if theirs == self.lives.summary() {
            self.doubts.due.take_if(|(_, with)| *with == partner);
            return;
        }
        if self.doubts.due.is_none() {
            let wait = self.patience(partner);
            self.doubts.due = Some((now + wait, partner));
        }
    }

    /// Begins the comparison that is due.
    pub(super) fn begin_due_comparison(&mut self, now: Time) {
        if let Some((_, partner)) = self.doubts.due.take_if(|(due, _)| *due <= now)
            && self.is_member(partner)
        {
            let whole = Ranges::whole(&self.lives.verdicts().digest());
            self.send(partner, Message::Lives(whole));
        }
    }

    /// Goes on with a comparison.
    pub(super) fn receive_lives(&mut self, from: NodeId, ranges: &Ranges, now: Time) {
        self.send_verdicts(from, &ranges.want);
        let Answer { ranges, entries } = reconcile::answer(self.lives.verdicts(), ranges);
        self.send_doubts(from, &entries.into_iter().map(|(node, _)| node).collect::<Vec<_>>());
        let Some(mut ranges) = ranges else { return };
        let lacking = std::mem::take(&mut ranges.want);
        let lacking = lacking.iter().filter_map(|start| self.named(start));
        let lacking: Vec<_> = lacking.map(|node| (node, self.lives.incarnation(node))).collect();
        ranges.want = self.hear_doubts(from, lacking, now);
        self.choose_ranges(&mut ranges.parts);
        if !ranges.parts.is_empty() || !ranges.want.is_empty() {
            self.send(from, Message::Lives(ranges));
        }
    }

    /// Hears which nodes another holds to be down, and wants the verdicts against those that have
    /// not answered for long.
    pub(super) fn receive_doubts(&mut self, from: NodeId, named: &Named, now: Time) {
        let verdicts = named.news.iter().filter(|id| id.kind == NewsKind::Verdict);
        let nodes = verdicts.filter_map(|id| {
            let map = &self.state.roster.map;
            map.keys_beginning(&id.node).next().map(|node| (*node, id.stamp))
        });
        let nodes: Vec<(NodeId, u64)> = nodes.collect();
        let want = self.hear_doubts(from, nodes, now);
        if !want.is_empty() {
            self.send(from, Message::Lives(Ranges { want, ..Ranges::default() }));
        }
    }

    /// Asks those whom `from` holds to be down whether they live. Returns those who were asked
    /// long ago and did not answer.
    fn hear_doubts(
        &mut self,
        from: NodeId,
        mut doubts: Vec<(NodeId, u64)>,
        now: Time,
    ) -> Vec<Prefix> {
        // Others ask others.
        doubts.shuffle(&mut self.rng);
        let (mut want, mut told, mut asked) = (Vec::new(), Vec::new(), 0);
        for (node, incarnation) in doubts {
            if node == self.node() {
                self.refute_claim(from, incarnation, now);
            } else if self.lives.holds_verdict(node, incarnation) {
                // The same, or more.
            } else if self.lives.incarnation(node) > incarnation && !self.lives.is_down(node) {
                told.extend(self.lives.rumor(node));
            } else if self.was_unheard(node, now) {
                want.push(reconcile::prefix(&node));
            } else if asked < HEARINGS && self.begin_hearing(node, now) {
                asked += 1;
            }
        }
        self.send_rumors(from, told);
        want
    }

    /// Whether a node was asked long enough ago and has not answered, or is known not to answer.
    pub(super) fn was_unheard(&self, node: NodeId, now: Time) -> bool {
        let began = self.doubts.hearings.get(&node);
        self.lives.is_down(node) || began.is_some_and(|began| now.since(*began) >= HEARING)
    }

    /// Asks a node that others hold to be down whether it lives. Says whether it had to be asked.
    fn begin_hearing(&mut self, node: NodeId, now: Time) -> bool {
        let hearings = &mut self.doubts.hearings;
        if hearings.contains_key(&node) || hearings.len() >= MAX_HEARINGS || !self.is_member(node) {
            return false;
        }
        self.doubts.hearings.insert(node, now);
        let number = self.detector.next_number();
        let mut probe = self.probe(node, number);
        // The life that is known here: what others say of a later one has no signature.
        probe.down = Some(self.lives.incarnation(node));
        self.send(node, Message::Ping(probe));
        true
    }

    /// Sends the verdicts that are asked for, and where there is none any more what outdid it.
    fn send_verdicts(&mut self, to: NodeId, want: &[Prefix]) {
        let want: BTreeSet<&Prefix> = want.iter().collect();
        let nodes = want.into_iter().filter_map(|start| self.named(start));
        let rumors = nodes.filter_map(|node| self.lives.rumor(node)).collect();
        self.send_rumors(to, rumors);
    }

    /// Names verdicts that another lacks.
    fn send_doubts(&mut self, to: NodeId, nodes: &[NodeId]) {
        let ids = nodes.iter().map(|node| NewsId {
            kind: NewsKind::Verdict,
            node: super::gossip::beginning(*node),
            stamp: self.lives.incarnation(*node),
        });
        let ids: Vec<NewsId> = ids.collect();
        for news in ids.chunks(MAX_NEWS) {
            self.send(to, Message::Doubt(Named { news: news.to_vec() }));
        }
    }

    /// The member whose identity begins so.
    fn named(&self, start: &Prefix) -> Option<NodeId> {
        self.state.roster.map.keys_beginning(start).next().copied()
    }

    /// Follows a few of many ranges, drawn at random.
    fn choose_ranges(&mut self, parts: &mut [Part]) {
        let mut open: Vec<usize> = (0..parts.len())
            .filter(|part| parts[*part].hash.is_some() || parts[*part].items.is_some())
            .collect();
        open.shuffle(&mut self.rng);
        for part in open.into_iter().skip(RANGES) {
            parts[part] = Part { end: parts[part].end.take(), hash: None, items: None };
        }
    }

    /// Contradicts to `by` and to all others.
    pub(super) fn tell_of_life(&mut self, by: NodeId) {
        if let Some(rumor) = self.lives.rumor(self.node()) {
            let news = News { entries: Records::default(), rumors: vec![rumor] };
            self.send(by, Message::News(news));
        }
    }
}
