//! How the state spreads: news at once to a few, and reconciliation of two nodes now and then,
//! which brings whatever got lost. (Demers et al.: Epidemic Algorithms for Replicated Database
//! Maintenance, PODC 1987.)

use std::ops::Bound;
use std::time::Duration;

use rand::RngExt as _;
use rand::seq::IteratorRandom as _;
use selvedge_model::{NodeId, Time};

use super::{Mesh, node_of};
use crate::crdt::Entry;
use crate::roster::RosterEntry;
use crate::wire::{
    Envelope, MAX_RECORDS, MAX_STAMPS, Message, RECORDS_BUDGET, Records, Stamp, Stamps, Summary,
};

impl Mesh {
    /// Reconciles with one member, or, at the start, introduces this node to a few, and sets the
    /// time of the next round.
    pub(super) fn begin_due_syncs(&mut self, now: Time) {
        let introduce = std::mem::take(&mut self.introductions);
        let partners = self.draw_members(introduce.max(1), &[]);
        for partner in partners {
            self.begin_sync(partner, introduce > 0);
        }
        let interval = u64::try_from(self.config.sync_interval.as_micros()).unwrap_or(u64::MAX / 2);
        let jittered = self.rng.random_range(interval - interval / 4..=interval + interval / 4);
        // A zero interval must not make an endless loop.
        self.next_sync = now + Duration::from_micros(jittered.max(1));
    }

    /// Begins a reconciliation with `partner`.
    pub(super) fn begin_sync(&mut self, partner: NodeId, introduce: bool) {
        let digest = self.digest();
        let own = self.state.roster.map.added(&self.node()).map(|own| own.raw().clone());
        let introduction = own.filter(|_| introduce);
        let summary = Summary { hash: digest.hash, count: digest.count, introduction };
        self.send(partner, Message::Digest(summary));
    }

    /// Reconciles again soon: much was new here, so much may be new to others.
    pub(super) fn sync_soon(&mut self, now: Time) {
        self.next_sync = self.next_sync.min(now + self.config.sync_interval / 4);
    }

    /// Sends news to a few members: not to whom it came from, nor to whom it is of.
    pub(super) fn push(&mut self, news: Vec<RosterEntry>, from: Option<NodeId>) {
        if news.is_empty() {
            return;
        }
        let mut without: Vec<NodeId> = from.into_iter().collect();
        if let [only] = news.as_slice() {
            without.push(node_of(only));
        }
        for partner in self.draw_members(self.config.fan_out, &without) {
            self.send_entries(partner, &news);
        }
    }

    pub(super) fn send(&mut self, to: NodeId, message: Message) {
        let envelope = Envelope { mesh: self.id(), message };
        self.transmits.push_back((to, envelope.encode()));
    }

    /// Sends entries, in as many messages as they need.
    pub(super) fn send_entries(&mut self, to: NodeId, entries: &[RosterEntry]) {
        for records in chunks(entries.iter()) {
            self.send(to, Message::Records(records));
        }
    }

    /// Sends the versions of all entries, in as many messages as they need, each of which covers
    /// a range of keys of its own.
    pub(super) fn send_stamps(&mut self, to: NodeId) {
        let stamps: Vec<Stamp> = self
            .state
            .roster
            .map
            .stamps(..)
            .map(|(node, of)| Stamp { node: *node, added: of.added, removed: of.removed })
            .collect();
        let mut chunks = stamps.chunks(MAX_STAMPS).peekable();
        let mut after = None;
        while let Some(chunk) = chunks.next() {
            let last = chunk.last().map(|stamp| stamp.node);
            let through = last.filter(|_| chunks.peek().is_some());
            self.send(to, Message::Stamps(Stamps { after, through, stamps: chunk.to_vec() }));
            after = last;
        }
    }

    /// So many members, drawn at random, this node aside.
    fn draw_members(&mut self, count: usize, without: &[NodeId]) -> Vec<NodeId> {
        let own = self.node();
        let nodes = self.state.roster.nodes(self.wall);
        nodes.filter(|node| *node != own && !without.contains(node)).sample(&mut self.rng, count)
    }
}

/// The keys after the one, through the other; `None` if there cannot be any.
pub(super) fn range(
    after: Option<NodeId>,
    through: Option<NodeId>,
) -> Option<(Bound<NodeId>, Bound<NodeId>)> {
    if let (Some(after), Some(through)) = (after, through)
        && after >= through
    {
        return None;
    }
    let after = after.map_or(Bound::Unbounded, Bound::Excluded);
    Some((after, through.map_or(Bound::Unbounded, Bound::Included)))
}

/// Entries as bodies of messages of bounded size.
pub(super) fn chunks<'a>(entries: impl Iterator<Item = &'a RosterEntry>) -> Vec<Records> {
    let mut chunks = Vec::new();
    let (mut chunk, mut bytes) = (Records::default(), 0);
    for entry in entries {
        let (list, raw) = match entry {
            Entry::Add(admitted) => (&mut chunk.records, admitted.raw()),
            Entry::Remove(removed) => (&mut chunk.removals, removed.raw()),
        };
        bytes += raw.bytes.len() + raw.signature.len();
        list.push(raw.clone());
        if bytes > RECORDS_BUDGET || list.len() == MAX_RECORDS {
            chunks.push(std::mem::take(&mut chunk));
            bytes = 0;
        }
    }
    if chunk != Records::default() {
        chunks.push(chunk);
    }
    chunks
}
