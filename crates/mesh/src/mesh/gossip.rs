//! How news spreads: over the broadcast tree, entries and rumors alike.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use selvedge_model::{NodeId, Time};

use super::{Mesh, node_of};
use crate::broadcast::{NewsId, NewsKind, Targets};
use crate::crdt::Entry;
use crate::event::Rejection;
use crate::record::{Record, Removal};
use crate::roster::RosterEntry;
use crate::rumor::{self, Alive, Rumor, RumorError, Verdict};
use crate::signed::{Raw, Signed};
use crate::wire::{MAX_DATAGRAM, MAX_NEWS, MAX_RUMORS, Message, Named, News, Records};

/// What goes into one message, beside its header.
const BUDGET: usize = MAX_DATAGRAM - 80;

/// Rumors that follow another within this time wait for each other.
const CROWD: Duration = Duration::from_millis(40);

/// No more than so many wait.
const MAX_CROWD: usize = 1024;

/// Rumors that wait to be spread.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    /// Who brought each, if not this node.
    waiting: Vec<(Option<NodeId>, Rumor)>,
    /// Until then they wait.
    next: Time,
}

impl Crowd {
    /// When [`Mesh::spread_due_rumors`] is to be called.
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        (!self.waiting.is_empty()).then_some(self.next)
    }
}

/// What a message brought, sorted by whether it is held already.
#[derive(Default)]
struct Sorted {
    known: Vec<NewsId>,
    records: Records,
    rumors: Vec<Rumor>,
}

impl Mesh {
    /// Spreads entries that are new here; `from` brought them, or they began here.
    pub(super) fn push(&mut self, news: &[RosterEntry], from: Option<NodeId>, now: Time) {
        if news.is_empty() {
            return;
        }
        let ids: Vec<NewsId> = news.iter().map(id_of_entry).collect();
        let mut targets = self.targets(&ids, from, now);
        if let [only] = news {
            // Whoever said it knows it.
            targets.eager.retain(|node| *node != node_of(only));
            targets.lazy.retain(|node| *node != node_of(only));
        }
        let messages = super::sync::chunks(news.iter(), BUDGET);
        let messages = messages.into_iter().map(|entries| News { entries, rumors: Vec::new() });
        self.spread(&targets, messages.collect(), &ids);
    }

    /// Spreads a rumor that is new here: at once, or, if others went before it a moment ago, with
    /// those that follow, so that many at a time need few messages.
    pub(super) fn push_rumor(&mut self, rumor: Rumor, from: Option<NodeId>, now: Time) {
        self.crowd.waiting.push((from, rumor));
        if now >= self.crowd.next || self.crowd.waiting.len() >= MAX_CROWD {
            self.spread_rumors(now);
        }
    }

    /// Spreads the rumors that wait, if it is time.
    pub(super) fn spread_due_rumors(&mut self, now: Time) {
        if self.crowd.poll_timeout().is_some_and(|due| due <= now) {
            self.spread_rumors(now);
        }
    }

    fn spread_rumors(&mut self, now: Time) {
        self.crowd.next = now + CROWD;
        let mut parcels: BTreeMap<NodeId, (Vec<Rumor>, Vec<NewsId>)> = BTreeMap::new();
        for (from, rumor) in std::mem::take(&mut self.crowd.waiting) {
            let Some(id) = id_of_rumor(&rumor) else { continue };
            let targets = self.targets(&[id], from, now);
            for node in targets.eager {
                parcels.entry(node).or_default().0.push(rumor.clone());
            }
            for node in targets.lazy {
                parcels.entry(node).or_default().1.push(id);
            }
        }
        for (node, (rumors, ids)) in parcels {
            self.send_rumors(node, rumors);
            for news in ids.chunks(MAX_NEWS) {
                self.send(node, Message::Announce(Named { news: news.to_vec() }));
            }
        }
    }

    /// Sends rumors: a few as datagrams, many in a long message.
    pub(super) fn send_rumors(&mut self, to: NodeId, rumors: Vec<Rumor>) {
        let total: usize = rumors.iter().map(len_of_rumor).sum();
        let budget = if total <= 4 * BUDGET { BUDGET } else { usize::MAX };
        let (mut chunk, mut bytes) = (Vec::new(), 0);
        for rumor in rumors {
            let len = len_of_rumor(&rumor);
            if !chunk.is_empty() && (bytes + len > budget || chunk.len() == MAX_RUMORS) {
                let rumors = std::mem::take(&mut chunk);
                self.send(to, Message::News(News { entries: Records::default(), rumors }));
                bytes = 0;
            }
            bytes += len;
            chunk.push(rumor);
        }
        if !chunk.is_empty() {
            self.send(to, Message::News(News { entries: Records::default(), rumors: chunk }));
        }
    }

    /// Takes in news, and passes it on.
    pub(super) fn receive_news(&mut self, from: NodeId, mut news: News, now: Time) {
        self.take_evictions(from, std::mem::take(&mut news.entries.evictions));
        let Sorted { known, records, rumors } = self.sort(news);
        if self.broadcast.count(&known, from) {
            self.send(from, Message::Prune);
        }
        let (entries, errors) = self.state.roster.verify_all(records);
        for error in errors {
            self.reject(from, error.into());
        }
        let mut fresh = Vec::new();
        for (node, entry) in entries {
            match self.merge(node, entry.clone()) {
                Ok(true) => fresh.push(entry),
                Ok(false) => {}
                Err(reason) => self.reject(from, reason),
            }
        }
        self.push(&fresh, Some(from), now);
        for rumor in rumors {
            match self.hear(from, &rumor, now) {
                Ok(true) => self.push_rumor(rumor, Some(from), now),
                Ok(false) => {}
                Err(reason) => self.reject(from, Rejection::Rumor(reason)),
            }
        }
    }

    /// Takes over a rumor. Says whether it was new.
    fn hear(&mut self, from: NodeId, rumor: &Rumor, now: Time) -> Result<bool, RumorError> {
        let (mesh, roster, wall) = (self.id(), &self.state.roster, self.wall);
        let is_member = |node| roster.is_member(node, wall);
        if let Some(raw) = &rumor.alive {
            let alive = Alive::verify(raw, mesh, is_member, &roster.verifier)?;
            let node = alive.value().node;
            let news = self.lives.hear_alive(alive);
            if news {
                self.detector.note_life(node, now);
            }
            self.note_life(node, now);
            return Ok(news);
        }
        if rumor.accusations.is_empty() {
            return Ok(false);
        }
        match self.verify_verdict(rumor) {
            Ok(verdict) => Ok(self.hear_verdict(from, verdict, now)),
            Err(error) => {
                // Others go by it all the same, and will not look again: this node has to.
                if let Some((node, _)) = Verdict::peek(&rumor.accusations)
                    && self.was_unheard(node, now)
                {
                    self.detector.probe(node, now);
                }
                Err(error)
            }
        }
    }

    fn verify_verdict(&self, rumor: &Rumor) -> Result<Verdict, RumorError> {
        let (mesh, roster, wall) = (self.id(), &self.state.roster, self.wall);
        let is_witness = |node| roster.is_witness(node, wall);
        let verdict = Verdict::verify(&rumor.accusations, mesh, is_witness, &roster.verifier)?;
        rumor::check_members([verdict.target()], |node| roster.is_member(node, wall))?;
        match roster.convicts(verdict.accusers(), verdict.target()) {
            true => Ok(verdict),
            false => Err(RumorError::OneSource),
        }
    }

    /// Takes over a verdict that holds. Says whether it was new.
    fn hear_verdict(&mut self, from: NodeId, verdict: Verdict, now: Time) -> bool {
        let (node, incarnation) = (verdict.target(), verdict.incarnation());
        if node == self.node() {
            self.refute(from, incarnation, now);
            return false;
        }
        // Who has left may have left its word in stock: it counts only against whom this node
        // does not hear itself.
        let all_there = verdict.accusers().all(|accuser| self.is_member(accuser));
        if !all_there && !self.was_unheard(node, now) {
            return false;
        }
        if self.would_replace(node, incarnation) {
            self.lives.forget(node);
        }
        let news = self.lives.hear_verdict(verdict);
        self.note_life(node, now);
        news
    }

    /// Whether a verdict is to take the place of one that is held, but not borne out any more.
    fn would_replace(&self, node: NodeId, incarnation: u64) -> bool {
        incarnation >= self.lives.incarnation(node) && !self.is_borne_out(node)
    }

    /// Whether the verdict that is held against a node, if there is one, would be believed by
    /// somebody who does not hold it yet: who bore it out may have been forgotten since.
    pub(super) fn is_borne_out(&self, node: NodeId) -> bool {
        let (roster, wall) = (&self.state.roster, self.wall);
        self.lives.verdict(node).is_none_or(|verdict| {
            verdict.accusers().all(|accuser| roster.is_witness(accuser, wall))
                && roster.convicts(verdict.accusers(), node)
        })
    }

    /// Notes what is announced and lacking here.
    pub(super) fn receive_announcement(&mut self, from: NodeId, named: &Named, now: Time) {
        for id in &named.news {
            if self.lacks(id) {
                self.broadcast.announced(*id, from, now);
            }
        }
    }

    /// Sends what is asked for.
    pub(super) fn receive_graft(&mut self, from: NodeId, named: &Named) {
        self.broadcast.grafted(from);
        let asked: BTreeSet<&NewsId> = named.news.iter().collect();
        let entries: Vec<RosterEntry> =
            asked.iter().flat_map(|id| self.entries_named(id)).collect();
        for entries in super::sync::chunks(entries.iter(), BUDGET) {
            self.send(from, Message::News(News { entries, rumors: Vec::new() }));
        }
        let rumors = asked.iter().flat_map(|id| self.rumors_named(id)).collect();
        self.send_rumors(from, rumors);
    }

    /// Asks for what was announced and did not arrive.
    pub(super) fn begin_due_grafts(&mut self, now: Time) {
        for (node, ids) in self.broadcast.handle_timeout(now) {
            let ids: Vec<NewsId> = ids.into_iter().filter(|id| self.lacks(id)).collect();
            for news in ids.chunks(MAX_NEWS) {
                self.send(node, Message::Graft(Named { news: news.to_vec() }));
            }
        }
    }

    fn targets(&mut self, ids: &[NewsId], from: Option<NodeId>, now: Time) -> Targets {
        self.refresh_neighbours();
        match from {
            Some(from) => self.broadcast.go_on(ids, from, &self.neighbours, now),
            None => self.broadcast.begin(ids, &self.neighbours, now),
        }
    }

    fn spread(&mut self, targets: &Targets, messages: Vec<News>, ids: &[NewsId]) {
        let bodies: Vec<Message> = messages.into_iter().map(Message::News).collect();
        self.send_all(&targets.eager, &bodies);
        let named = ids.chunks(MAX_NEWS).map(|news| Named { news: news.to_vec() });
        self.send_all(&targets.lazy, &named.map(Message::Announce).collect::<Vec<_>>());
    }

    /// Tells what is held already from what is not.
    fn sort(&self, news: News) -> Sorted {
        let mut sorted = Sorted::default();
        for raw in news.entries.records {
            match Signed::<Record>::peek(&raw) {
                Some(record) if self.is_old(Entry::Add(&raw), record.node, record.seq) => {
                    sorted.known.push(entry_id(record.node, record.seq));
                }
                _ => sorted.records.records.push(raw),
            }
        }
        for raw in news.entries.removals {
            match Signed::<Removal>::peek(&raw) {
                Some(removal) if self.is_old(Entry::Remove(&raw), removal.node, removal.seq) => {
                    sorted.known.push(entry_id(removal.node, removal.seq));
                }
                _ => sorted.records.removals.push(raw),
            }
        }
        for rumor in news.rumors {
            match id_of_rumor(&rumor) {
                Some(id) if !self.lacks(&id) => sorted.known.push(id),
                _ => sorted.rumors.push(rumor),
            }
        }
        sorted
    }

    /// Whether an entry is held, or a newer one of its kind.
    fn is_old(&self, raw: Entry<&Raw, &Raw>, node: NodeId, seq: u64) -> bool {
        let map = &self.state.roster.map;
        match raw {
            Entry::Add(raw) => {
                map.added(&node).is_some_and(|held| held.record().seq > seq || held.raw() == raw)
            }
            Entry::Remove(raw) => {
                map.removed(&node).is_some_and(|held| held.removal().seq > seq || held.raw() == raw)
            }
        }
    }

    fn lacks(&self, id: &NewsId) -> bool {
        // Most copies are of something that came a moment ago. A verdict may have been dropped since,
        // because one who bore it was evicted.
        let seen = id.kind == NewsKind::Entry && self.broadcast.has_seen(id);
        !seen && self.holds_nothing_as_new(id)
    }

    fn holds_nothing_as_new(&self, id: &NewsId) -> bool {
        match id.kind {
            NewsKind::Entry => {
                let map = &self.state.roster.map;
                !map.keys_beginning(&id.node).any(|node| map.stamp(node) >= id.stamp)
            }
            NewsKind::Alive => {
                self.of_prefix(id).all(|node| self.lives.lacks_alive(node, id.stamp))
            }
            NewsKind::Verdict => {
                let lacks = |node| {
                    self.lives.lacks_verdict(node, id.stamp) || self.would_replace(node, id.stamp)
                };
                self.of_prefix(id).all(lacks)
            }
        }
    }

    /// Members whose identity begins as the name says: one, or none.
    fn of_prefix<'a>(&'a self, id: &'a NewsId) -> impl Iterator<Item = NodeId> + 'a {
        self.state.roster.map.keys_beginning(&id.node).copied().take(2)
    }

    fn entries_named(&self, id: &NewsId) -> Vec<RosterEntry> {
        let map = &self.state.roster.map;
        let of_entries = id.kind == NewsKind::Entry;
        let nodes = map.keys_beginning(&id.node).take(2).filter(|_| of_entries);
        nodes.flat_map(|node| map.entries_of(node)).map(|entry| entry.cloned()).collect()
    }

    fn rumors_named(&self, id: &NewsId) -> Vec<Rumor> {
        let of_lives = id.kind != NewsKind::Entry;
        let nodes = self.lives.beginning(id.node).take(2).filter(|_| of_lives);
        nodes.filter_map(|node| self.lives.rumor(node)).collect()
    }
}

/// About how many bytes a rumor takes.
fn len_of_rumor(rumor: &Rumor) -> usize {
    let raws = rumor.alive.iter().chain(&rumor.accusations);
    raws.map(|raw| raw.bytes.len() + 74).sum::<usize>() + 4
}

fn entry_id(node: NodeId, stamp: u64) -> NewsId {
    NewsId { kind: NewsKind::Entry, node: beginning(node), stamp }
}

fn id_of_entry(entry: &RosterEntry) -> NewsId {
    let seq = match entry {
        Entry::Add(admitted) => admitted.record().seq,
        Entry::Remove(removed) => removed.removal().seq,
    };
    entry_id(node_of(entry), seq)
}

fn id_of_rumor(rumor: &Rumor) -> Option<NewsId> {
    let (kind, node, stamp) = match &rumor.alive {
        Some(raw) => {
            let alive = Signed::<Alive>::peek(raw)?;
            (NewsKind::Alive, alive.node, alive.incarnation)
        }
        None => {
            let (node, incarnation) = Verdict::peek(&rumor.accusations)?;
            (NewsKind::Verdict, node, incarnation)
        }
    };
    Some(NewsId { kind, node: beginning(node), stamp })
}

/// How an identity begins.
pub(super) fn beginning(node: NodeId) -> [u8; 8] {
    node.as_bytes().first_chunk().copied().unwrap_or_default()
}
