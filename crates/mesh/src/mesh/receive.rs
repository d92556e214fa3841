//! What a message does.

use selvedge_model::{NodeId, Time};

use super::Mesh;
use crate::crdt::{Entry, Versions};
use crate::event::Rejection;
use crate::roster::RosterEntry;
use crate::signed::Raw;
use crate::wire::{Envelope, MAX_WANT, Message, Records, Stamps, Summary, Want};

impl Mesh {
    /// Takes in a message. All of it is decoded before anything is changed.
    pub(super) fn receive(
        &mut self,
        from: NodeId,
        bytes: &[u8],
        now: Time,
    ) -> Result<(), Rejection> {
        let Envelope { mesh, message } = Envelope::decode(bytes)?;
        if mesh != self.id() {
            return Err(Rejection::WrongMesh { found: mesh });
        }
        match message {
            Message::Join(join) => self.receive_join(from, join),
            Message::Digest(summary) => self.receive_digest(from, summary),
            Message::Same
            | Message::Stamps(_)
            | Message::Want(_)
            | Message::Records(_)
            | Message::WhoAreYou
            | Message::Welcome(_)
            | Message::Refused(_) => self.receive_from_member(from, message, now),
        }
    }

    fn receive_from_member(
        &mut self,
        from: NodeId,
        message: Message,
        now: Time,
    ) -> Result<(), Rejection> {
        if !self.is_member(from) || from == self.node() {
            return Err(Rejection::NotAMember);
        }
        match message {
            Message::Stamps(stamps) => self.receive_stamps(from, stamps),
            Message::Want(want) => self.receive_want(from, &want),
            Message::Records(records) => self.receive_records(from, records, now),
            Message::WhoAreYou => self.begin_sync(from, true),
            Message::Same => {}
            Message::Digest(_) | Message::Join(_) | Message::Welcome(_) | Message::Refused(_) => {
                return Err(Rejection::Unexpected { kind: message.kind() });
            }
        }
        Ok(())
    }

    /// Begins on the receiving side. Of a node that is not known here it asks who it is: the
    /// answer is shorter than the question, so that nothing is amplified.
    fn receive_digest(&mut self, from: NodeId, summary: Summary) -> Result<(), Rejection> {
        let theirs = summary.digest();
        match summary.introduction {
            Some(raw) => self.receive_introduction(from, raw)?,
            None if !self.is_member(from) => {
                self.send(from, Message::WhoAreYou);
                return Ok(());
            }
            None => {}
        }
        match theirs == self.digest() {
            true => self.send(from, Message::Same),
            false => self.send_stamps(from),
        }
        Ok(())
    }

    fn receive_introduction(&mut self, from: NodeId, raw: Raw) -> Result<(), Rejection> {
        if self.state.roster.holds_record(&raw) {
            // Held since, but perhaps removed.
            self.tell_if_outdone(from, &raw);
        } else {
            let (node, entry) = self.state.roster.verify_record(raw)?;
            if node != from {
                return Err(Rejection::NotItsIntroduction { shown: node });
            }
            self.merge_and_push(from, vec![(node, entry)]);
        }
        match self.is_member(from) {
            true => Ok(()),
            false => Err(Rejection::NotAMember),
        }
    }

    /// Sends what the other lacks, and asks for what we lack.
    fn receive_stamps(&mut self, from: NodeId, stamps: Stamps) {
        let range = super::sync::range(stamps.after, stamps.through);
        let theirs = stamps.stamps.iter().map(|stamp| (stamp.node, stamp.versions()));
        let theirs = theirs.collect::<std::collections::BTreeMap<NodeId, Versions>>();
        let map = &self.state.roster.map;
        let lacking: Vec<NodeId> = map.lacking(&theirs).copied().collect();
        let newer: Vec<RosterEntry> = match range {
            Some(range) => map.delta(&theirs, range).map(|(_, entry)| entry.cloned()).collect(),
            None => Vec::new(),
        };
        self.send_entries(from, &newer);
        for nodes in lacking.chunks(MAX_WANT) {
            self.send(from, Message::Want(Want { nodes: nodes.to_vec() }));
        }
    }

    fn receive_want(&mut self, from: NodeId, want: &Want) {
        let nodes: std::collections::BTreeSet<&NodeId> = want.nodes.iter().collect();
        let map = &self.state.roster.map;
        let entries = nodes.into_iter().flat_map(|node| map.entries_of(node));
        let entries: Vec<RosterEntry> = entries.map(|entry| entry.cloned()).collect();
        self.send_entries(from, &entries);
    }

    fn receive_records(&mut self, from: NodeId, mut records: Records, now: Time) {
        // Most news arrives several times; what is held already need not be verified again.
        records.records.retain(|raw| !self.state.roster.holds_record(raw));
        records.removals.retain(|raw| !self.state.roster.holds_removal(raw));
        let (entries, errors) = self.state.roster.verify_all(records);
        for error in errors {
            self.reject(from, error.into());
        }
        let news = self.merge_and_push(from, entries);
        if news > self.config.push_limit {
            self.sync_soon(now);
        }
    }

    /// Takes over what is new and passes it on, if it is little. Returns how much was new.
    fn merge_and_push(&mut self, from: NodeId, entries: Vec<(NodeId, RosterEntry)>) -> usize {
        let mut news = Vec::new();
        let mut shown = None;
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
        let count = news.len();
        if count <= self.config.push_limit {
            self.push(news, Some(from));
        }
        if let Some(shown) = shown {
            self.tell_if_outdone(from, &shown);
        }
        count
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
        self.send_entries(node, &entries);
    }
}
