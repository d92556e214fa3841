//! What a message does.

use selvedge_model::{NodeId, Time};

use super::Mesh;
use crate::event::Rejection;
use crate::wire::{Envelope, Message, Records};

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
        if from == self.node() {
            return Err(Rejection::NotAMember);
        }
        if !matches!(message, Message::Join(_)) {
            self.tell_if_evicted(from);
        }
        match message {
            Message::Join(join) => self.receive_join(from, join),
            Message::Digest(summary) => self.receive_digest(from, summary, now),
            Message::Ping(probe) => {
                self.receive_ping(from, probe, now);
                Ok(())
            }
            Message::Same
            | Message::Ranges(_)
            | Message::Records(_)
            | Message::News(_)
            | Message::Announce(_)
            | Message::Graft(_)
            | Message::Prune
            | Message::Lives(_)
            | Message::Doubt(_)
            | Message::Evictions(_)
            | Message::WhoAreYou
            | Message::Welcome(_)
            | Message::Refused(_)
            | Message::Ack(_)
            | Message::Ask(_)
            | Message::Vouch(_)
            | Message::Accuse(_)
            | Message::Call(_)
            | Message::Seen(_) => self.receive_from_member(from, message, now),
        }
    }

    fn receive_from_member(
        &mut self,
        from: NodeId,
        message: Message,
        now: Time,
    ) -> Result<(), Rejection> {
        if !self.is_member(from) {
            return self.receive_from_stranger(from, &message, now);
        }
        if message != Message::WhoAreYou {
            self.house.answered = true;
        }
        match message {
            Message::Same => self.receive_same(from),
            Message::Ranges(ranges) => self.receive_ranges(from, &ranges, now),
            Message::Records(records) => self.receive_records(from, records, now),
            Message::News(news) => self.receive_news(from, news, now),
            Message::Announce(named) => self.receive_announcement(from, &named, now),
            Message::Graft(named) => self.receive_graft(from, &named),
            Message::Prune => self.broadcast.pruned(from),
            Message::Lives(ranges) => self.receive_lives(from, &ranges, now),
            Message::Doubt(named) => self.receive_doubts(from, &named, now),
            Message::Evictions(ranges) => self.receive_evictions(from, &ranges),
            Message::WhoAreYou => {
                // Its answer counts as one of several, as long as this node has just started.
                self.syncing.asked.insert(from);
                self.begin_sync(from, true);
            }
            Message::Ack(probe) => self.receive_ack(from, probe, now),
            Message::Ask(ask) => self.receive_ask(from, ask, now),
            Message::Vouch(vouch) => self.receive_vouch(from, vouch),
            Message::Accuse(accuse) => self.receive_accusation(from, accuse)?,
            Message::Call(call) => self.receive_call(from, call),
            Message::Digest(_)
            | Message::Ping(_)
            | Message::Join(_)
            | Message::Welcome(_)
            | Message::Refused(_)
            | Message::Seen(_) => {
                return Err(Rejection::Unexpected { kind: message.kind() });
            }
        }
        Ok(())
    }

    /// Somebody that was forgotten, and is tried again, answers, or one that was found behind a
    /// door: it is to say who it is. Evictions speak for themselves, whoever brings them: this node
    /// may have forgotten all others, or another hold this one's clock, or its own, to be right.
    fn receive_from_stranger(
        &mut self,
        from: NodeId,
        message: &Message,
        now: Time,
    ) -> Result<(), Rejection> {
        if let Message::Records(Records { evictions, .. }) = message
            && !evictions.is_empty()
        {
            self.take_evictions(from, evictions.clone());
            return Ok(());
        }
        let asked = self.state.ways_back.contains_key(&from) || self.door.expects(now);
        if asked && matches!(message, Message::Same | Message::Ranges(_)) {
            self.send(from, Message::WhoAreYou);
        }
        Err(Rejection::NotAMember)
    }
}
