//! Evictions: signed by who admitted, told to all at once over every link, and compared in passing
//! by those who probe each other. They are no part of the state that is compared elsewhere: a node
//! of a version that knows of none agrees with the others on all the rest.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use selvedge_model::{NodeId, Time};

use super::{Mesh, MeshError};
use crate::crdt::Digest;
use crate::event::Event;
use crate::eviction::{Evicted, Eviction};
use crate::journal::Input;
use crate::rates::Purpose;
use crate::reconcile::{self, Answer, Ranges};
use crate::signed::{Raw, Signed, SignedError};
use crate::wire::{Message, Records};

/// So many evictions go into one message, and so many at a time who holds none is told.
const PARCEL: usize = 64;
/// More than so many at a time are left to comparison, because the others most likely have them.
const PUSH_LIMIT: usize = 8;
/// So many of its own a node brings along when it introduces itself, the last ones.
const OWN: usize = 8;
/// A node that does not know that it is evicted, or says that it holds no evictions, is told again
/// after this.
const AGAIN: Duration = Duration::from_secs(20);
/// So many nodes are remembered to have been told.
const MAX_TOLD: usize = 4096;

/// Comparisons of evictions, and who was told.
#[derive(Debug, Default)]
pub(super) struct Evicting {
    /// With whom to compare, and when; whether that node holds any.
    due: Option<(Time, NodeId, bool)>,
    told: BTreeMap<NodeId, Time>,
}

impl Evicting {
    /// When [`Mesh::begin_due_evictions`] is to be called.
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        self.due.map(|(due, _, _)| due)
    }

    /// Forgets who was told long ago.
    pub(super) fn forget(&mut self, now: Time) {
        self.told.retain(|_, at| now.since(*at) < AGAIN);
    }

    /// Whether a node is to be told now; notes that it is.
    fn may_tell(&mut self, node: NodeId, now: Time) -> bool {
        self.forget(now);
        let may = self.told.len() < MAX_TOLD && !self.told.contains_key(&node);
        if may {
            self.told.insert(node, now);
        }
        may
    }
}

impl Mesh {
    /// Puts a node out of the mesh, and with it all whom it admitted: they come back only with new
    /// invites. The founder may evict all others; who may invite, those that it admitted. Returns
    /// who is a member no more, ascending.
    ///
    /// # Errors
    /// If this node may not.
    pub fn evict(&mut self, node: NodeId) -> Result<Vec<NodeId>, MeshError> {
        self.note_input(&Input::Evict(node));
        self.check_eviction(node)?;
        let evicted = self.sign_eviction(node)?;
        let before = self.reported.clone();
        self.take_evicted(vec![evicted], None);
        Ok(before.into_iter().filter(|member| !self.is_member(*member)).collect())
    }

    /// Who would be a member no more if this node evicted another, ascending; nothing is done.
    ///
    /// # Errors
    /// If this node may not.
    pub fn would_go(&self, node: NodeId) -> Result<Vec<NodeId>, MeshError> {
        self.check_eviction(node)?;
        let goes = |member: &NodeId| {
            let held = self.state.roster.map.get(member);
            *member == node || held.is_some_and(|held| held.claim().issuer == node)
        };
        Ok(self.reported.iter().filter(|member| goes(member)).copied().collect())
    }

    /// All evictions that are known here.
    pub fn evictions(&self) -> impl Iterator<Item = &Eviction> {
        self.state.roster.evictions.iter().map(Evicted::eviction)
    }

    /// In short which evictions are known here. Nodes that agree on them have equal digests.
    #[must_use]
    pub fn evictions_digest(&self) -> Digest {
        self.state.roster.evictions.map().digest()
    }

    /// The eviction by which this node is no member any more: of itself, or of who admitted it. It
    /// takes part no more, until it joins with a new invite.
    #[must_use]
    pub fn evicted(&self) -> Option<&Eviction> {
        let own = self.state.roster.map.added(&self.node())?;
        self.state.roster.evictions.barring(own.claim()).map(Evicted::eviction)
    }

    /// Whether this node takes part no more.
    pub(super) fn is_out(&self) -> bool {
        self.has_left || self.evicted().is_some()
    }

    fn check_eviction(&self, node: NodeId) -> Result<(), MeshError> {
        let refused = |reason| Err(MeshError::MayNotEvict { node, reason });
        let map = &self.state.roster.map;
        let may_invite = map.added(&self.node()).is_some_and(|own| own.certificate().may_invite);
        let founder = self.genesis().founder;
        let issuer = map.added(&node).map(|entry| entry.certificate().issuer);
        match issuer {
            _ if self.is_out() => refused("this node is no member itself"),
            _ if node == self.node() => refused("a node leaves by itself: selvedge mesh leave"),
            _ if node == founder => refused("nobody can evict the founder"),
            _ if self.node() == founder => Ok(()),
            _ if self.state.roster.evictions.is_full(node, self.node()) => refused(
                "this node has evicted as many as it may (1024): the founder may evict it, or \
                 this node, and invite this node again",
            ),
            _ if !may_invite => refused("only the founder and those who may invite evict others"),
            // One that is forgotten, or was never seen. It bars this node's certificates alone.
            None => Ok(()),
            Some(issuer) if issuer == self.node() => Ok(()),
            _ => refused("it was admitted by another; the founder, or that one, may evict it"),
        }
    }

    fn sign_eviction(&self, node: NodeId) -> Result<Evicted, MeshError> {
        let last = self.state.roster.evictions.of(node, self.node()).map(Evicted::eviction);
        // Its certificate may pardon an eviction that was lost with this node's disk.
        let held = self.state.roster.map.added(&node).map(|entry| entry.claim());
        let pardoned = held.filter(|claim| claim.issuer == self.node()).map_or(0, |c| c.pardons);
        let number = last.map_or(0, |last| last.number).max(pardoned).saturating_add(1);
        let eviction = Eviction {
            mesh: self.id(),
            node,
            number,
            by: self.node(),
            sponsor: self.sponsor(),
            issued: self.wall.0,
            count: self.state.roster.evictions.count_by(self.node()).saturating_add(1),
        };
        let refused = |error: SignedError| MeshError::Write(error.into());
        let raw = Signed::sign(eviction, &self.identity).map_err(refused)?.raw().clone();
        self.state.roster.verify_eviction(raw).map_err(|error| {
            refused(SignedError::Malformed { what: "eviction", detail: error.to_string() })
        })
    }

    /// Takes over what another says of evictions, and passes on what is new. Of strangers only so
    /// many are looked at.
    pub(super) fn take_evictions(&mut self, from: NodeId, mut raws: Vec<Raw>) {
        raws.retain(|raw| !self.state.roster.evictions.holds(raw));
        if !self.is_member(from) {
            let (rates, now) = (&mut self.rates, self.now);
            raws.retain(|_| rates.take(from, false, (Purpose::Eviction, 0), now).is_ok());
        }
        let mut held = Vec::new();
        for raw in raws {
            match self.state.roster.verify_eviction(raw) {
                Ok(evicted) => held.push(evicted),
                Err(error) => self.reject(from, error.into()),
            }
        }
        self.take_evicted(held, Some(from));
    }

    fn take_evicted(&mut self, mut evicted: Vec<Evicted>, from: Option<NodeId>) {
        // The links are those from before: who is evicted is to hear of it too.
        self.refresh_neighbours();
        let mut told = self.neighbours.clone();
        let own = self.node();
        let felt = evicted.iter().map(Evicted::eviction).filter(|eviction| self.is_felt(eviction));
        let felt: BTreeSet<NodeId> = felt.map(|eviction| eviction.node).collect();
        evicted.retain(|one| self.state.roster.evict(one.clone(), &own));
        if evicted.is_empty() {
            return;
        }
        for Eviction { node, by, .. } in evicted.iter().map(Evicted::eviction) {
            told.extend(from.is_none().then_some(*node));
            if felt.contains(node) {
                self.events.push_back(Event::Evicted { node: *node, by: *by });
                self.state.ways_back.remove(node);
            }
        }
        self.changed();
        let barred = |node: &&NodeId| !self.is_member(**node);
        let gone: Vec<NodeId> = self.reported.iter().filter(barred).copied().collect();
        gone.iter().for_each(|node| self.report_member(*node));
        self.acquit();
        told.retain(|node| Some(*node) != from);
        let told: Vec<NodeId> = told.into_iter().collect();
        if evicted.len() <= PUSH_LIMIT {
            self.send_evicted(&told, evicted.iter());
        }
    }

    /// What those who were evicted said of others' lives counts no more, be it that they had left.
    fn acquit(&mut self) {
        let (roster, wall) = (&self.state.roster, self.wall);
        for node in self.lives.drop_unless(|node| roster.is_witness(node, wall)) {
            self.note_life(node, self.now);
        }
    }

    /// Whether an eviction puts anybody out, as far as this node knows.
    fn is_felt(&self, eviction: &Eviction) -> bool {
        let held = self.state.roster.map.added(&eviction.node);
        eviction.by == self.genesis().founder
            || held.is_some_and(|held| held.certificate().issuer == eviction.by)
    }

    fn send_evicted<'a>(&mut self, to: &[NodeId], evicted: impl Iterator<Item = &'a Evicted>) {
        self.send_all(to, &parcels(evicted));
    }

    /// Tells a node why it is not heard, if it is because it was evicted.
    pub(super) fn tell_if_evicted(&mut self, node: NodeId) {
        if !self.is_member(node)
            && let Some(evicted) = self.state.roster.evictions.any_of(node).cloned()
        {
            self.tell_of(&evicted, node);
        }
    }

    /// Tells a node that showed something that is void by it of an eviction.
    pub(super) fn tell_of_eviction(&mut self, (node, by): (NodeId, NodeId), to: NodeId) {
        if let Some(evicted) = self.state.roster.evictions.of(node, by).cloned() {
            self.tell_of(&evicted, to);
        }
    }

    fn tell_of(&mut self, evicted: &Evicted, to: NodeId) {
        if self.evicting.may_tell(to, self.now) {
            self.send_evicted(&[to], std::iter::once(evicted));
        }
    }

    /// Compares evictions with a partner that has told the hash of its own.
    pub(super) fn compare_evictions(&mut self, partner: NodeId, theirs: Option<u32>, now: Time) {
        let ours = self.state.roster.evictions.summary();
        if ours == theirs {
            self.evicting.due.take_if(|(_, with, _)| *with == partner);
        } else if ours.is_some() && self.evicting.due.is_none() {
            // Who holds none will be told.
            let wait = self.patience(partner);
            self.evicting.due = Some((now + wait, partner, theirs.is_some()));
        }
    }

    /// Begins the comparison that is due.
    pub(super) fn begin_due_evictions(&mut self, now: Time) {
        let Some((_, partner, holds_some)) = self.evicting.due.take_if(|(due, ..)| *due <= now)
        else {
            return;
        };
        if !self.is_member(partner) {
            return;
        }
        self.compare_now(partner, holds_some);
    }

    /// Begins a comparison with a partner that has just introduced itself, if there is need.
    pub(super) fn begin_evictions(&mut self, partner: NodeId, theirs: Option<u32>) {
        let ours = self.state.roster.evictions.summary();
        if ours.is_some() && ours != theirs {
            self.compare_now(partner, theirs.is_some());
        }
    }

    /// Who holds none is told some: then it holds some, and compares. It pays for them as for any
    /// answer.
    fn compare_now(&mut self, partner: NodeId, holds_some: bool) {
        if holds_some {
            let whole = Ranges::whole(&self.state.roster.evictions.map().digest());
            self.send(partner, Message::Evictions(whole));
        } else if self.evicting.may_tell(partner, self.now) {
            // It may be of a version that takes no notice, and would not understand more.
            let some = self.state.roster.evictions.iter().take(PARCEL).cloned();
            let some: Vec<Evicted> = some.collect();
            let len = some.iter().map(|evicted| evicted.raw().bytes.len() + 74).sum();
            self.rates.charge(partner, (Purpose::Repair, len), self.now);
            // For the next time is far off.
            for message in parcels(some.iter()) {
                self.send_surely(partner, message);
            }
        }
    }

    /// Brings along what this node has evicted last: whoever holds its record to have expired, for
    /// its clock is wrong, compares nothing with it.
    pub(super) fn send_own_evictions(&mut self, partner: NodeId) {
        let own = self.node();
        let held = self.state.roster.evictions.iter();
        let mut own: Vec<Evicted> = held.filter(|one| one.eviction().by == own).cloned().collect();
        own.sort_by_key(|evicted| Reverse(evicted.eviction().count));
        own.truncate(OWN);
        self.send_evicted(&[partner], own.iter());
    }

    /// Goes on with a comparison.
    pub(super) fn receive_evictions(&mut self, from: NodeId, ranges: &Ranges) {
        let map = self.state.roster.evictions.map();
        let wanted = reconcile::wanted(map, &ranges.want);
        let Answer { ranges, entries } = reconcile::answer(map, ranges);
        let lacking = wanted.into_iter().chain(entries).map(|(id, _)| id);
        let lacking: Vec<Evicted> = lacking.filter_map(|id| map.added(&id).cloned()).collect();
        self.send_evicted(&[from], lacking.iter());
        if let Some(ranges) = ranges {
            self.send(from, Message::Evictions(ranges));
        }
    }
}

/// Evictions as messages.
fn parcels<'a>(evicted: impl Iterator<Item = &'a Evicted>) -> Vec<Message> {
    let raws: Vec<Raw> = evicted.map(|one| one.raw().clone()).collect();
    let parcels = raws.chunks(PARCEL).map(|evictions| {
        Message::Records(Records { evictions: evictions.to_vec(), ..Records::default() })
    });
    parcels.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_all_the_time_is_told_again_in_time() {
        let (node, mut evicting) = (NodeId([1; 32]), Evicting::default());
        let at = |seconds| Time::ZERO + Duration::from_secs(seconds);
        let told = (0..60).filter(|second| evicting.may_tell(node, at(*second)));
        assert_eq!(told.collect::<Vec<_>>(), [0, 20, 40]);
    }
}
