//! Reconciliation: whatever news did not bring, because a packet was lost, a node was away, or
//! the mesh was torn apart. Two nodes that probe each other compare their states in passing; if
//! they stay different, one of them begins.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::RngExt as _;
use selvedge_model::{NodeId, Time};

use super::Mesh;
use crate::crdt::{Digest, Entry};
use crate::event::Rejection;
use crate::reconcile::{self, Answer, Ranges};
use crate::roster::RosterEntry;
use crate::signed::Raw;
use crate::wire::{MAX_RECORDS, Message, RECORDS_BUDGET, Records, Summary};

/// How long a node that is being sent a great deal begins no other reconciliation, lest it is
/// sent everything several times.
const BUSY: Duration = Duration::from_secs(1);
/// How long the one that answered first may take for the next step.
const SOURCE: Duration = Duration::from_secs(2);
/// New entries beyond this number in one message are a great deal.
const BULK: usize = 64;

/// What is known of reconciliations under way.
#[derive(Debug)]
pub(super) struct Syncing {
    /// With whom to begin one, and when, unless the difference has vanished by then.
    pub(super) due: Option<(Time, NodeId)>,
    /// A great deal is being received until then.
    busy: Time,
    /// Whom this node asked since it has started.
    pub(super) asked: BTreeSet<NodeId>,
    /// Who of these answered first when this node had just started, and until when the others that were
    /// asked do not count.
    source: Option<(NodeId, Time)>,
    /// Whether this node has been found to hold what another holds since it started.
    pub(super) settled: bool,
}

impl Syncing {
    pub(super) const fn new() -> Self {
        Self { due: None, busy: Time::ZERO, asked: BTreeSet::new(), source: None, settled: false }
    }

    /// Whether this node has just started, and this is the one that it takes everything from.
    fn is_source(&self, node: NodeId) -> bool {
        !self.settled && self.source.is_some_and(|(source, _)| source == node)
    }
}

impl Mesh {
    /// Compares states with a partner that has told the beginning of its hash.
    pub(super) fn compare(&mut self, partner: NodeId, hash: [u8; 8], now: Time) {
        if self.digest().hash[..8] == hash {
            self.syncing.settled = true;
            self.syncing.due.take_if(|(_, with)| *with == partner);
            return;
        }
        if self.syncing.due.is_none() && now >= self.syncing.busy {
            let wait = self.patience(partner);
            self.syncing.due = Some((now + wait, partner));
        }
    }

    /// How long to wait for news that would make up for a difference.
    pub(super) fn patience(&mut self, partner: NodeId) -> Duration {
        match self.lives.is_down(partner) {
            // Who comes back from afar has had none.
            true => Duration::ZERO,
            false => self.config.settle.mul_f64(self.rng.random_range(0.25..1.75)),
        }
    }

    /// Begins the reconciliation that is due.
    pub(super) fn begin_due_sync(&mut self, now: Time) {
        if let Some((_, partner)) = self.syncing.due.take_if(|(due, _)| *due <= now)
            && now >= self.syncing.busy
            && self.is_member(partner)
        {
            self.begin_sync(partner, false);
        }
    }

    /// Begins a reconciliation with `partner`.
    pub(super) fn begin_sync(&mut self, partner: NodeId, introduce: bool) {
        if introduce {
            // First, in case that this node is not heard on anything else.
            self.send_own_evictions(partner);
        }
        let summary = self.summary(introduce);
        self.send(partner, Message::Digest(summary));
    }

    /// What this node holds in short, and if it is to be introduced, who it is.
    pub(super) fn summary(&mut self, introduce: bool) -> Summary {
        let Digest { hash, count } = self.digest();
        let own = self.state.roster.map.added(&self.node()).map(|own| own.raw().clone());
        let introduction = own.filter(|_| introduce);
        let evictions = self.state.roster.evictions.summary().filter(|_| introduce);
        Summary { hash, count, introduction, evictions }
    }

    /// Begins on the receiving side. Of a node that is not known here it asks who it is: the
    /// answer is shorter than the question, so that nothing is amplified.
    pub(super) fn receive_digest(
        &mut self,
        from: NodeId,
        summary: Summary,
        now: Time,
    ) -> Result<(), Rejection> {
        let theirs = summary.digest();
        match summary.introduction {
            Some(raw) => {
                self.receive_introduction(from, raw, now)?;
                // Who is out comes before who is in.
                self.begin_evictions(from, summary.evictions);
            }
            None if !self.is_member(from) => {
                self.send(from, Message::WhoAreYou);
                return Ok(());
            }
            None => {}
        }
        if theirs == self.digest() {
            self.send(from, Message::Same);
        } else if now >= self.syncing.busy {
            self.answer(from, &Ranges::whole(&theirs));
        }
        Ok(())
    }

    fn receive_introduction(&mut self, from: NodeId, raw: Raw, now: Time) -> Result<(), Rejection> {
        if self.state.roster.holds_record(&raw) {
            // Held since, but perhaps removed.
            self.tell_if_outdone(from, &raw);
        } else {
            let (node, entry) = self.state.roster.verify_record(raw)?;
            if node != from {
                return Err(Rejection::NotItsIntroduction { shown: node });
            }
            self.merge_and_push(from, vec![(node, entry)], now);
        }
        match self.is_member(from) {
            true => Ok(()),
            false => Err(Rejection::NotAMember),
        }
    }

    pub(super) fn receive_same(&mut self, from: NodeId) {
        self.syncing.settled = true;
        self.syncing.due.take_if(|(_, with)| *with == from);
    }

    /// Goes on with a reconciliation. Who has just started asks several, and goes on with the one
    /// that answers first: it is the nearest.
    pub(super) fn receive_ranges(&mut self, from: NodeId, ranges: &Ranges, now: Time) {
        if !self.syncing.settled && self.syncing.asked.contains(&from) {
            let others = |(first, until): (NodeId, Time)| first != from && now < until;
            if self.syncing.source.is_some_and(others) {
                return;
            }
            self.syncing.source = Some((from, now + SOURCE));
            // A great deal is coming, and nobody else need send it too.
            self.syncing.busy = now + SOURCE;
        }
        let map = &self.state.roster.map;
        let entries = reconcile::wanted(map, &ranges.want);
        self.send_entries(from, entries.iter().map(|(_, entry)| entry));
        self.answer(from, ranges);
    }

    /// Answers what is asked of ranges. Where a great deal is under way one lost packet would cost
    /// the other side seconds, so there everything goes over the stream that it needs anyway.
    fn answer(&mut self, to: NodeId, asked: &Ranges) {
        let Answer { ranges, entries } = reconcile::answer(&self.state.roster.map, asked);
        self.send_entries(to, entries.iter().map(|(_, entry)| entry));
        let Some(ranges) = ranges else { return };
        let streams = self.transmits.back().is_some_and(|last| last.to == to && !last.datagram);
        match streams || self.syncing.is_source(to) {
            true => self.send_surely(to, Message::Ranges(ranges)),
            false => self.send(to, Message::Ranges(ranges)),
        }
    }

    /// Takes over what reconciliation brought, and passes it on if it is little.
    pub(super) fn receive_records(&mut self, from: NodeId, mut records: Records, now: Time) {
        self.take_evictions(from, std::mem::take(&mut records.evictions));
        // What is held already need not be verified again.
        records.records.retain(|raw| !self.state.roster.holds_record(raw));
        records.removals.retain(|raw| !self.state.roster.holds_removal(raw));
        let (entries, errors) = self.state.roster.verify_all(records);
        for error in errors {
            self.reject(from, error.into());
        }
        if self.merge_and_push(from, entries, now) > BULK {
            self.syncing.busy = now + BUSY;
        }
    }

    /// Takes over what is new, and passes it on if it is little. Who has just come does not
    /// pass on what most likely everybody else knows, but for what others say of themselves.
    /// Says how much was new.
    pub(super) fn merge_and_push(
        &mut self,
        from: NodeId,
        entries: Vec<(NodeId, RosterEntry)>,
        now: Time,
    ) -> usize {
        let (mut news, mut shown) = (Vec::new(), None);
        let direct = entries.len() == 1 && entries.iter().all(|(node, _)| *node == from);
        for (node, entry) in entries {
            if let (true, Entry::Add(admitted)) = (node == from, &entry) {
                shown = Some(admitted.raw().clone());
            }
            match self.merge(node, entry.clone()) {
                Ok(true) => news.push(entry),
                Ok(false) => {}
                Err(reason) => self.reject(from, reason),
            }
        }
        if news.len() <= self.config.push_limit && (direct || self.syncing.settled) {
            self.push(&news, Some(from), now);
        }
        if let Some(shown) = shown {
            self.tell_if_outdone(from, &shown);
        }
        news.len()
    }

    /// Sends a node what is held of it, two entries at most, if that outdoes the record that it
    /// has shown: it may have gone back to an older copy of its disk, and nobody else would tell
    /// it, since who is held as removed is not heard.
    fn tell_if_outdone(&mut self, node: NodeId, shown: &Raw) {
        let map = &self.state.roster.map;
        if map.get(&node).is_some_and(|held| held.raw() == shown) {
            return;
        }
        let entries: Vec<RosterEntry> = map.entries_of(&node).map(|entry| entry.cloned()).collect();
        self.send_entries(node, entries.iter());
    }

    /// Sends entries, in as many messages as they need.
    fn send_entries<'a>(&mut self, to: NodeId, entries: impl Iterator<Item = &'a RosterEntry>) {
        for records in chunks(entries, RECORDS_BUDGET) {
            self.send(to, Message::Records(records));
        }
    }
}

/// Entries as bodies of messages of about `budget` bytes at most, or one entry.
pub(super) fn chunks<'a>(
    entries: impl Iterator<Item = &'a RosterEntry>,
    budget: usize,
) -> Vec<Records> {
    let mut chunks = Vec::new();
    let (mut chunk, mut bytes) = (Records::default(), 0);
    for entry in entries {
        let raw = match entry {
            Entry::Add(admitted) => admitted.raw(),
            Entry::Remove(removed) => removed.raw(),
        };
        let len = raw.bytes.len() + raw.signature.len() + 10;
        if bytes > 0 && bytes + len > budget
            || chunk.records.len().max(chunk.removals.len()) == MAX_RECORDS
        {
            chunks.push(std::mem::take(&mut chunk));
            bytes = 0;
        }
        bytes += len;
        match entry {
            Entry::Add(_) => chunk.records.push(raw.clone()),
            Entry::Remove(_) => chunk.removals.push(raw.clone()),
        }
    }
    if bytes > 0 {
        chunks.push(chunk);
    }
    chunks
}
