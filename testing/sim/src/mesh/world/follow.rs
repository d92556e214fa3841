//! What is followed: who comes to know what, and what must not be.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use selvedge_mesh::wire::{Envelope, Message};
use selvedge_mesh::{Event, Mesh};
use selvedge_model::{NodeId, Time};

use super::{World, beginning, kind};

/// So much of the history is kept.
const HISTORY: usize = 60;

/// How long after a partition has ended suspicions from before may become verdicts.
const GRACE: Duration = Duration::from_secs(60);

/// One false verdict reaches everybody well within this time; what comes later is another.
pub(super) const EPISODE: Duration = Duration::from_secs(20);

/// Something that all are to come to know.
#[derive(Debug)]
pub struct Tracked {
    /// Who said or did it.
    pub node: NodeId,
    what: What,
    /// When.
    pub since: Time,
    unknowing: BTreeSet<usize>,
    /// When each other node came to know it, in order.
    pub known: Vec<Duration>,
    /// Copies of it that were received as news.
    pub copies: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Record(u64),
    Down,
}

impl World {
    /// Notes something for whoever looks into a violation.
    pub fn note_history(&mut self, what: String) {
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(format!("{}: {what}", self.now));
    }

    /// Notes what sequence numbers the running nodes have given out.
    pub fn note_told(&mut self) {
        for node in &mut self.nodes {
            let told = node.mesh.as_ref().map_or(0, |mesh| mesh.seq(node.id));
            node.told = node.told.max(told);
        }
    }

    /// Looks at all invariants that can be looked at at any time.
    pub fn look_around(&mut self) {
        let mut watch = std::mem::take(&mut self.watch);
        watch.look(self);
        self.watch = watch;
    }

    /// Follows how the record of a node becomes known.
    pub fn track_record(&mut self, place: usize) {
        let node = self.nodes[place].id;
        let Some(mesh) = &self.nodes[place].mesh else { return };
        let what = What::Record(mesh.seq(node));
        let unknowing = self.running().filter(|other| *other != place).collect();
        self.track(node, what, unknowing);
    }

    /// Follows how the crash of a node, which does not run any more, becomes known.
    pub(super) fn track_crash(&mut self, place: usize) {
        // Who has crashed need not know anything any more.
        self.tracked.iter_mut().for_each(|tracked| tracked.without(place));
        let unknowing = self.running().collect();
        self.track(self.nodes[place].id, What::Down, unknowing);
    }

    /// From now on a node need not be held to be down.
    pub(super) fn forget_crash(&mut self, place: usize) {
        let id = self.nodes[place].id;
        self.tracked.retain(|tracked| !(tracked.node == id && tracked.what == What::Down));
    }

    fn track(&mut self, node: NodeId, what: What, unknowing: BTreeSet<usize>) {
        let (since, known, copies) = (self.now, Vec::new(), 0);
        self.tracked.push(Tracked { node, what, since, unknowing, known, copies });
    }

    /// Whether nobody runs who was evicted: all of them have heard of it.
    #[must_use]
    pub fn evicted_are_out(&self) -> bool {
        self.nodes.iter().all(|node| !node.left || node.mesh.is_none())
    }

    /// Whether all running nodes hold the same, of who is evicted too.
    pub fn agreed(&mut self) -> bool {
        let digests =
            self.nodes.iter_mut().filter(|node| !node.left).filter_map(|node| node.mesh.as_mut());
        let mut digests = digests.map(|mesh| (mesh.digest(), mesh.evictions_digest()));
        let first = digests.next();
        digests.all(|digest| Some(digest) == first)
    }

    /// Whether every running node knows which of the members run.
    #[must_use]
    pub fn right_about_lives(&self) -> bool {
        self.wrong_about_lives().next().is_none()
    }

    /// Who is wrong about whom, in words.
    pub fn wrong_about_lives(&self) -> impl Iterator<Item = String> {
        let stopped = self.nodes.iter().enumerate().filter(|(_, node)| node.mesh.is_none());
        let stopped: BTreeMap<NodeId, usize> = stopped.map(|(at, node)| (node.id, at)).collect();
        let running = self.nodes.iter().enumerate().filter(|(_, node)| !node.left);
        let running = running.filter_map(|(place, node)| Some((place, node.mesh.as_ref()?)));
        running.flat_map(move |(place, mesh)| {
            let wrong = mesh.down().filter(|id| !stopped.contains_key(id));
            let wrong = wrong.map(|id| (self.places.get(&beginning(id)).copied(), "down"));
            let lacking =
                stopped.iter().filter(|(id, _)| !mesh.is_down(**id) && mesh.is_member(**id));
            // Clients are watched by one peer alone.
            let serves = |id: &NodeId| mesh.attachment(*id) == Some(mesh.node());
            let lacking = lacking.filter(|(id, at)| !self.nodes[**at].port.nat || serves(id));
            let lacking = lacking.map(|(_, at)| (Some(*at), "up"));
            let both: Vec<(Option<usize>, &str)> = wrong.chain(lacking).collect();
            both.into_iter().map(move |(at, how)| format!("{place} holds {at:?} to be {how}"))
        })
    }

    /// The number of those that running nodes hold to be down, summed over them, and how many they
    /// should.
    #[must_use]
    pub fn held_down(&self) -> usize {
        self.nodes.iter().filter_map(|node| node.mesh.as_ref()).map(Mesh::count_down).sum()
    }

    /// Counts the copies of what is followed in a message that arrived.
    pub(super) fn count_copies(&mut self, bytes: &[u8]) {
        if kind(bytes) != 8 || self.tracked.is_empty() {
            return;
        }
        let Ok(Envelope { message: Message::News(news), .. }) = Envelope::decode(bytes) else {
            return;
        };
        for tracked in &mut self.tracked {
            let id = tracked.node;
            let holds =
                |raw: &selvedge_mesh::Raw| raw.bytes.windows(32).any(|w| w == id.as_bytes());
            if matches!(tracked.what, What::Record(_)) {
                tracked.copies +=
                    news.entries.records.iter().filter(|raw| holds(raw)).count() as u64;
            }
        }
    }

    /// Looks whether a node has come to know what is followed.
    pub(super) fn look(&mut self, place: usize) {
        let Some(mesh) = &self.nodes[place].mesh else { return };
        for tracked in &mut self.tracked {
            let knows = || match tracked.what {
                What::Record(seq) => mesh.seq(tracked.node) >= seq,
                What::Down => mesh.is_down(tracked.node),
            };
            if tracked.unknowing.contains(&place) && knows() {
                tracked.unknowing.remove(&place);
                tracked.known.push(self.now.since(tracked.since));
            }
        }
    }

    pub(super) fn note(&mut self, place: usize, event: &Event) {
        match event {
            Event::MemberDown(node) => {
                self.note_change(place, *node, "to be down");
                self.note_down(place, *node);
            }
            Event::MemberUp(node) => self.note_change(place, *node, "to be up again"),
            Event::Rejected { from, reason } => match reason.kind() {
                // Who has just come, or gone, is not known to all.
                "not_a_member" | "rumor" | "expired" => {}
                "message_kind" if self.is_later(*from) => {}
                kind => self.violation(format!("M1: {place} rejected: {kind}: {reason}")),
            },
            Event::Evicted { .. } => {
                let mesh = self.nodes[place].mesh.as_ref();
                if mesh.is_some_and(|mesh| mesh.evicted().is_some()) {
                    self.quit(place);
                }
            }
            Event::MemberJoined(_)
            | Event::MemberUpdated(_)
            | Event::MemberLeft(_)
            | Event::Called(_)
            | Event::Passing(_)
            | Event::StateChanged => {}
        }
    }

    fn note_change(&mut self, place: usize, node: NodeId, how: &str) {
        if self.setup.watched {
            let target = self.places.get(&beginning(node)).copied().unwrap_or(usize::MAX);
            self.note_history(format!("node {place} finds node {target} {how}"));
        }
    }

    fn note_down(&mut self, place: usize, node: NodeId) {
        let Some(target) = self.places.get(&beginning(node)).map(|place| &self.nodes[*place])
        else {
            return;
        };
        // What was under way when the mesh became whole may still be concluded.
        let whole = self.whole_since.is_some_and(|since| self.now.since(since) > GRACE);
        if !whole || target.mesh.is_none() || self.now < target.excused_until {
            return;
        }
        let last = self.convicted.insert(node, self.now);
        if last.is_none_or(|last| self.now.since(last) > EPISODE) {
            let text = format!("seed {}, {}: node {place}", self.setup.seed, self.now);
            self.false_failures.push(format!("{text} holds {node} to be down, which runs"));
        }
    }

    /// Notes that an invariant does not hold.
    pub fn violation(&mut self, what: String) {
        if self.violations.is_empty() {
            self.before = self.history.iter().cloned().collect();
        }
        if self.violations.len() < 1000 {
            self.violations.push(format!("seed {}, {}: {what}", self.setup.seed, self.now));
        }
    }
}

impl Tracked {
    /// After how long this part of the others knew, if they did.
    #[must_use]
    pub fn known_by(&self, part: f64) -> Option<Duration> {
        let others = self.known.len() + self.unknowing.len();
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a part of a small number"
        )]
        let count = (others as f64 * part).ceil() as usize;
        self.known.get(count.max(1) - 1).copied()
    }

    /// Whether all others know.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.unknowing.is_empty()
    }

    /// Forgets that a node is to know.
    pub fn without(&mut self, place: usize) {
        self.unknowing.remove(&place);
    }
}
