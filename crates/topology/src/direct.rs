//! Direct paths between clients: which are tried, which carry packets, and what the two ends say
//! to each other about it.

mod path;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use selvedge_mesh::wire::Call;
use selvedge_model::{NodeId, Time};

use crate::endpoint::is_private;
pub use path::Ended;
use path::{Path, Stage, Step};

/// So many paths at most are tried or carry packets at a time.
pub const MAX_PATHS: usize = 64;
/// A path that was used within this time is not given up for another.
const BUSY: Duration = Duration::from_secs(30);
/// So many partners are remembered that no path leads to now.
const MAX_RESTING: usize = 1024;
/// A partner is asked at most so often, after a few at once.
const ASK_EVERY: Duration = Duration::from_millis(100);
const ASKED_AT_ONCE: u32 = 32;
/// How often to look while something is under way, and else.
const LOOK: Duration = Duration::from_millis(200);
const LOOK_CALMLY: Duration = Duration::from_secs(1);
/// So many places are tried of one partner.
const MAX_PLACES: usize = 4;

/// The direct paths of one client in one mesh.
///
/// A path begins where there is something to send: the partner is asked by way of the peers that
/// both are attached to, each of which adds where it sees its client. Then both ends send
/// handshakes there at once, which opens their NATs for each other. WireGuard takes packets of a
/// source from one peer alone, so the addresses move only when both know that both have a session:
/// each says so, and follows the other's word. What fails, falls silent or is not used ends, and
/// the packets take the way by the peers, as those of all other partners do all the time.
///
/// Without clock and I/O: `now` is an argument, and the same inputs make the same outputs.
#[derive(Clone, Debug)]
pub struct Direct {
    own: NodeId,
    partners: BTreeMap<NodeId, Vec<SocketAddr>>,
    paths: BTreeMap<NodeId, Path>,
    /// The number of the next attempt.
    number: u64,
    /// When all that was asked will be forgiven.
    asked: Time,
    looked: Time,
    calls: VecDeque<Call>,
    news: VecDeque<News>,
    probes: Vec<NodeId>,
    counts: Counts,
}

/// A WireGuard peer for a partner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Where to send handshakes; `None`: the partner sends first.
    pub endpoint: Option<SocketAddr>,
    /// Whether it has the partner's addresses.
    pub carries: bool,
}

/// What WireGuard knows of a partner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Whether there is a session.
    pub session: bool,
    /// How many bytes were received.
    pub rx: u64,
}

/// What became of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// Handshakes are sent from now on.
    Tried(NodeId),
    /// It carries packets from now on.
    Begun(NodeId),
    /// It does not, or no more.
    Ended(NodeId, Ended),
}

/// How it went so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Attempts.
    pub attempts: u64,
    /// Attempts that did not lead to a path, and paths that fell silent.
    pub failures: u64,
}

/// What one end says to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Word {
    /// Let us try.
    Ask = 0,
    /// Yes, I have begun.
    Answer = 1,
    /// I have a session with you.
    Met = 2,
    /// We both have one, and I send directly from now on.
    Agreed = 3,
    /// I do not, or no more.
    Part = 4,
}

impl Word {
    const fn of(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Ask),
            1 => Some(Self::Answer),
            2 => Some(Self::Met),
            3 => Some(Self::Agreed),
            4 => Some(Self::Part),
            _ => None,
        }
    }
}

impl Direct {
    /// No paths yet, of client `own`. `seed` is to differ each time, lest what is left of an
    /// earlier life be taken for an answer.
    #[must_use]
    pub const fn new(own: NodeId, seed: u64) -> Self {
        Self {
            own,
            partners: BTreeMap::new(),
            paths: BTreeMap::new(),
            number: seed,
            asked: Time::ZERO,
            looked: Time::ZERO,
            calls: VecDeque::new(),
            news: VecDeque::new(),
            probes: Vec::new(),
            counts: Counts { attempts: 0, failures: 0 },
        }
    }

    /// Whom paths may lead to, with the endpoints that they announce: the other clients; none, if
    /// the own node is not one. Who announces something new is tried anew.
    pub fn set_partners(&mut self, partners: BTreeMap<NodeId, Vec<SocketAddr>>, now: Time) {
        for (node, path) in &mut self.paths {
            if self.partners.get(node) != partners.get(node) {
                path.forgive(now);
            }
        }
        self.partners = partners;
        let gone = |node: &&NodeId| !self.partners.contains_key(*node);
        let gone: Vec<NodeId> = self.paths.keys().filter(gone).copied().collect();
        for node in gone {
            self.apply(node, Some(Step::End(Ended::Unwanted)), now);
            self.paths.remove(&node);
        }
    }

    /// Takes note that the own host sends to a partner.
    pub fn note_use(&mut self, node: NodeId, now: Time) {
        if !self.partners.contains_key(&node) {
            return;
        }
        let path = self.paths.entry(node).or_insert_with(|| Path::new(now));
        path.used = now;
        if path.may_begin(now) && self.has_room(now) && self.may_ask(now) {
            let number = self.next_number();
            self.counts.attempts += 1;
            let step = self.paths.get_mut(&node).map(|path| path.ask(number, now));
            self.apply(node, step, now);
        }
    }

    /// Takes in what a partner says.
    pub fn hear(&mut self, call: Call, now: Time) {
        let Some(word) = Word::of(call.word) else { return };
        if call.to != self.own || !self.partners.contains_key(&call.from) {
            return;
        }
        let places = match word {
            Word::Ask | Word::Answer => self.places(&call),
            Word::Met | Word::Agreed | Word::Part => Vec::new(),
        };
        let begins = word == Word::Ask && !self.is_active(call.from);
        if begins && !self.has_room(now) {
            return;
        }
        let lesser = self.own < call.from;
        let path = self.paths.entry(call.from).or_insert_with(|| Path::new(now));
        let step = path.hear(word, call.number, places, lesser, now);
        self.counts.attempts += u64::from(begins && path.is_active());
        self.apply(call.from, step, now);
    }

    /// Takes in what WireGuard knows, and does what is due.
    pub fn look(&mut self, links: &BTreeMap<NodeId, Link>, now: Time) {
        self.looked = now;
        self.probes.clear();
        let nodes: Vec<NodeId> = self.paths.keys().copied().collect();
        for node in nodes {
            let link = links.get(&node).copied().unwrap_or_default();
            let step = self.paths.get_mut(&node).and_then(|path| path.look(link, now));
            self.apply(node, step, now);
        }
        self.forget();
    }

    /// When [`Direct::look`] is to be called next; `None` if there is nobody to reach.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        let busy = self.paths.values().any(Path::is_under_way);
        let pause = if busy { LOOK } else { LOOK_CALMLY };
        (!self.partners.is_empty()).then(|| self.looked + pause)
    }

    /// The next thing to say, by the own peer.
    pub fn poll_call(&mut self) -> Option<Call> {
        self.calls.pop_front()
    }

    /// What happened next. The wishes may be others then.
    pub fn poll_news(&mut self) -> Option<News> {
        self.news.pop_front()
    }

    /// To whom a small packet is to be sent after a look, so that they hear something.
    pub fn probes(&self) -> impl Iterator<Item = NodeId> {
        self.probes.iter().copied()
    }

    /// The partners that WireGuard is to have as peers.
    #[must_use]
    pub fn wishes(&self) -> BTreeMap<NodeId, Wish> {
        self.paths.iter().filter_map(|(node, path)| Some((*node, path.wish()?))).collect()
    }

    /// How it went so far.
    #[must_use]
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    fn is_active(&self, node: NodeId) -> bool {
        self.paths.get(&node).is_some_and(Path::is_active)
    }

    /// Does what a path wants done.
    fn apply(&mut self, node: NodeId, step: Option<Step>, now: Time) {
        match step {
            None => {}
            Some(Step::Say(word, number)) => self.say(node, word, number),
            Some(Step::Try(word)) => self.tell(News::Tried(node), node, word),
            Some(Step::Begin(word)) => self.tell(News::Begun(node), node, word),
            Some(Step::Probe) => self.probes.push(node),
            Some(Step::End(why)) => self.end(node, why, now),
        }
    }

    fn tell(&mut self, news: News, node: NodeId, word: Option<Word>) {
        self.news.push_back(news);
        if let (Some(word), Some(number)) = (word, self.number_of(node)) {
            self.say(node, word, number);
        }
    }

    fn end(&mut self, node: NodeId, why: Ended, now: Time) {
        let Some(number) = self.number_of(node) else { return };
        if why.is_told() {
            self.say(node, Word::Part, number);
        }
        self.counts.failures += u64::from(why.is_failure());
        if let Some(path) = self.paths.get_mut(&node) {
            path.rest(why, now);
            self.news.push_back(News::Ended(node, why));
        }
    }

    fn number_of(&self, node: NodeId) -> Option<u64> {
        self.paths.get(&node)?.number()
    }

    fn say(&mut self, to: NodeId, word: Word, number: u64) {
        let (from, word) = (self.own, word as u8);
        self.calls.push_back(Call { from, to, number, word, seen: None, yours: None });
    }

    fn next_number(&mut self) -> u64 {
        self.number = self.number.wrapping_add(1);
        self.number
    }

    /// Whether a path more may be tried, if need be instead of one that is not used.
    fn has_room(&mut self, now: Time) -> bool {
        let active = || self.paths.iter().filter(|(_, path)| path.is_active());
        if active().count() < MAX_PATHS {
            return true;
        }
        let unused = active().filter(|(_, path)| now.since(path.used) > BUSY);
        let least = unused.min_by_key(|(_, path)| path.used).map(|(node, _)| *node);
        if let Some(node) = least {
            self.apply(node, Some(Step::End(Ended::Unused)), now);
        }
        least.is_some()
    }

    fn may_ask(&mut self, now: Time) -> bool {
        let asked = self.asked.max(now) + ASK_EVERY;
        let may = asked <= now + ASK_EVERY * ASKED_AT_ONCE;
        if may {
            self.asked = asked;
        }
        may
    }

    /// Where the caller may be reached, the most promising first: behind one NAT at the addresses
    /// that it knows of itself, and else where it is seen.
    fn places(&self, call: &Call) -> Vec<SocketAddr> {
        let announced = self.partners.get(&call.from).map(Vec::as_slice).unwrap_or_default();
        let (inner, outer): (Vec<SocketAddr>, Vec<SocketAddr>) =
            announced.iter().partition(|it| is_private(it.ip()));
        let near =
            call.seen.is_some() && call.seen.map(|it| it.ip()) == call.yours.map(|it| it.ip());
        let inner = inner.into_iter().filter(|_| near);
        let mut places: Vec<SocketAddr> = Vec::new();
        for place in inner.chain(call.seen).chain(outer).filter(crate::endpoint::is_usable) {
            if !places.contains(&place) && places.len() < MAX_PLACES {
                places.push(place);
            }
        }
        places
    }

    /// Forgets those that were not used for the longest time, if there are too many.
    fn forget(&mut self) {
        let resting = || self.paths.iter().filter(|(_, path)| !path.is_active());
        let Some(excess) = resting().count().checked_sub(MAX_RESTING) else { return };
        let mut oldest: Vec<(Time, NodeId)> =
            resting().map(|(node, path)| (path.used, *node)).collect();
        oldest.sort_unstable();
        oldest.iter().take(excess).for_each(|(_, node)| drop(self.paths.remove(node)));
    }
}

impl Path {
    fn wish(&self) -> Option<Wish> {
        match &self.stage {
            Stage::Resting { .. } | Stage::Asked { .. } => None,
            Stage::Trying(_) => Some(Wish { endpoint: self.place(), carries: false }),
            Stage::Carrying(_) => Some(Wish { endpoint: self.place(), carries: true }),
        }
    }
}
