//! What all partners share: whose datagram it is, and how much is done for whom. No I/O: datagrams
//! and the time come in, datagrams to send come out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use selvedge_model::NodeId;
use tokio::time::Instant;

use super::allowance::{Allowance, Shares};
use super::frame::{Frame, Nonce};
use super::keys::Pair;
use super::partner::{Detoured, Opened, Outbox, Partner, Tally};
use crate::{Access, AccessList, Agreement, Counters};

/// How many partners are remembered: who was not of use for longest goes first, and strangers
/// before members.
const MAX_PARTNERS: usize = 8192;

/// How many handshakes of this node may be under way.
const MAX_KNOCKING: usize = 1024;

/// What strangers of one network, and all together, may ask for in a second: each handshake costs
/// an agreement of keys.
const STRANGERS_KNOCKS: [u32; 2] = [50, 400];
const STRANGERS_MESSAGES: [u32; 2] = [200, 1600];

/// How many knocks of members who are not remembered are looked at in a second.
const NEWCOMERS_KNOCKS: u32 = 1000;

/// All partners.
pub(super) struct Post {
    agreement: Agreement,
    partners: BTreeMap<NodeId, Partner>,
    sessions: BTreeMap<[u8; 8], NodeId>,
    knocking: BTreeSet<NodeId>,
    random: Random,
    strangers_knocks: Shares,
    strangers_messages: Shares,
    newcomers_knocks: Allowance,
    out: Outbox,
    counters: Arc<Counters>,
}

impl Post {
    /// `seed` is 32 bytes of a cryptographic random source.
    pub(super) fn new(
        agreement: Agreement,
        seed: [u8; 32],
        counters: Arc<Counters>,
        now: Instant,
    ) -> Self {
        Self {
            agreement,
            partners: BTreeMap::new(),
            sessions: BTreeMap::new(),
            knocking: BTreeSet::new(),
            random: Random { seed, drawn: 0 },
            strangers_knocks: shares(STRANGERS_KNOCKS, now),
            strangers_messages: shares(STRANGERS_MESSAGES, now),
            newcomers_knocks: Allowance::new(NEWCOMERS_KNOCKS, now),
            out: Outbox::default(),
            counters,
        }
    }

    /// The next datagram to send, and to where.
    pub(super) fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.out.datagrams.pop_front()
    }

    /// The next message that does not get through as a datagram.
    pub(super) fn poll_detoured(&mut self) -> Option<Detoured> {
        self.out.detoured.pop_front()
    }

    /// When [`Post::handle_timeout`] is to be called.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.knocking.iter().filter_map(|node| self.partners.get(node)?.due()).min()
    }

    /// Repeats what was not answered, or gives it up.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        let Self { partners, knocking, out, counters, .. } = self;
        knocking.retain(|node| {
            let Some(partner) = partners.get_mut(node) else { return false };
            note(counters, partner.drive(now, out));
            partner.due().is_some()
        });
    }

    /// Sends a message to a partner; `linked` says whether there is a connection to it.
    pub(super) fn send(
        &mut self,
        to: NodeId,
        addrs: &[SocketAddr],
        message: Vec<u8>,
        linked: bool,
        access: &AccessList,
        now: Instant,
    ) {
        let knocks = self.knocking.len() < MAX_KNOCKING || self.knocking.contains(&to);
        // Whoever there is a session with needs no handshake.
        let possible = knocks || self.partners.get(&to).is_some_and(Partner::has_session);
        if !possible || access.of_dialled(&to) == Access::Refused || !self.meet(to, access, now) {
            return self.counters.datagrams_dropped.bump();
        }
        let Some(partner) = self.partners.get_mut(&to) else { return };
        let random = &mut self.random;
        let challenge = || knocks.then(|| random.draw());
        let tally = partner.send(addrs, message, linked, now, challenge, &mut self.out);
        note(&self.counters, tally);
        if partner.due().is_some() {
            self.knocking.insert(to);
        }
    }

    /// Takes in a datagram. What it carries, and whose it is, if it is authentic, new, and of
    /// somebody who is served.
    pub(super) fn receive(
        &mut self,
        remote: SocketAddr,
        datagram: &[u8],
        access: &AccessList,
        now: Instant,
    ) -> Option<(NodeId, Vec<u8>)> {
        let received = match Frame::parse(datagram) {
            Ok(Frame::Knock { from, challenge, .. }) => {
                self.knocked(remote, from, challenge, datagram, access, now).then_some(None)
            }
            Ok(Frame::Answer { from, challenge, token, .. }) => {
                self.answered(remote, from, [challenge, token], datagram, now).then_some(None)
            }
            Ok(Frame::Data { session, counter, sealed }) => {
                self.opened(remote, session, counter, sealed, access, now)
            }
            Err(_) => None,
        };
        if received.is_none() {
            self.counters.datagrams_refused.bump();
        }
        received.flatten()
    }

    /// Forgets all who are served no more.
    pub(super) fn follow(&mut self, access: &AccessList) {
        let refused = |node: &&NodeId| access.of_dialled(node) == Access::Refused;
        for node in self.partners.keys().filter(refused).copied().collect::<Vec<_>>() {
            self.forget(node);
        }
    }

    fn knocked(
        &mut self,
        remote: SocketAddr,
        from: NodeId,
        challenge: Nonce,
        datagram: &[u8],
        access: &AccessList,
        now: Instant,
    ) -> bool {
        match access.of(&from) {
            Access::Refused => return false,
            Access::Stranger if !self.strangers_knocks.take(remote.ip(), now) => {
                self.counters.strangers_limited.bump();
                return false;
            }
            Access::Stranger | Access::Member => {}
        }
        if !self.admits(from, datagram, access, now) {
            return false;
        }
        let Some(partner) = self.partners.get_mut(&from) else { return false };
        let random = &mut self.random;
        let before: Vec<_> = partner.sessions().collect();
        let answered = partner.knocked(remote, challenge, now, || random.draw(), &mut self.out);
        self.index(from, &before);
        answered
    }

    fn answered(
        &mut self,
        remote: SocketAddr,
        from: NodeId,
        [challenge, token]: [Nonce; 2],
        datagram: &[u8],
        now: Instant,
    ) -> bool {
        let partner = self.partners.get_mut(&from).filter(|p| p.pair.verifies(datagram));
        let Some(partner) = partner else { return false };
        let before: Vec<_> = partner.sessions().collect();
        let answered = partner.answered(remote, challenge, token, now, &mut self.out);
        note(&self.counters, answered.unwrap_or_default());
        self.index(from, &before);
        // A knock goes to several addresses, and each may be answered: that is no offence.
        true
    }

    fn opened(
        &mut self,
        remote: SocketAddr,
        session: [u8; 8],
        counter: u32,
        sealed: &[u8],
        access: &AccessList,
        now: Instant,
    ) -> Option<Option<(NodeId, Vec<u8>)>> {
        let from = *self.sessions.get(&session)?;
        let right = access.of(&from);
        if right == Access::Refused {
            return None;
        }
        let partner = self.partners.get_mut(&from)?;
        let before: Vec<_> = partner.sessions().collect();
        let (opened, tally) = partner.open(remote, session, counter, sealed, now, &mut self.out)?;
        note(&self.counters, tally);
        self.index(from, &before);
        if right == Access::Stranger && !self.strangers_messages.take(remote.ip(), now) {
            self.counters.strangers_limited.bump();
            return Some(None);
        }
        match opened {
            Opened::Empty => Some(None),
            Opened::Message(content) => Some(Some((from, content))),
        }
    }

    /// Whether a knock is that of `from`, who is known then. Of a forged one nothing is kept but
    /// the keys that it shares with a member, so that the next one costs no agreement.
    fn admits(&mut self, from: NodeId, datagram: &[u8], access: &AccessList, now: Instant) -> bool {
        if let Some(partner) = self.partners.get(&from) {
            return partner.pair.verifies(datagram);
        }
        let member = access.of(&from) == Access::Member;
        if member && !self.newcomers_knocks.take(now) {
            return false;
        }
        let Some(pair) = self.pair(from) else { return false };
        let authentic = pair.verifies(datagram);
        // Nobody is forgotten for the sake of a forgery.
        if authentic || member && self.partners.len() < MAX_PARTNERS {
            self.remember(from, pair, access, now);
        }
        authentic
    }

    /// Makes sure that a partner is known, if its identity is a key.
    fn meet(&mut self, node: NodeId, access: &AccessList, now: Instant) -> bool {
        if self.partners.contains_key(&node) {
            return true;
        }
        match self.pair(node) {
            Some(pair) => self.remember(node, pair, access, now),
            None => return false,
        }
        true
    }

    fn pair(&self, node: NodeId) -> Option<Pair> {
        let other = node != self.agreement.own();
        other.then(|| Pair::new(&self.agreement, node)).flatten()
    }

    fn remember(&mut self, node: NodeId, pair: Pair, access: &AccessList, now: Instant) {
        if self.partners.len() >= MAX_PARTNERS {
            let rank = |(node, partner): &(&NodeId, &Partner)| {
                (access.of(node) == Access::Member, partner.used)
            };
            let last = self.partners.iter().min_by_key(rank).map(|(node, _)| *node);
            last.into_iter().for_each(|node| self.forget(node));
        }
        self.partners.insert(node, Partner::new(pair, now));
    }

    fn forget(&mut self, node: NodeId) {
        if let Some(partner) = self.partners.remove(&node) {
            for session in partner.sessions() {
                self.sessions.remove(&session);
            }
        }
        self.knocking.remove(&node);
    }

    /// Notes which sessions a partner has now.
    fn index(&mut self, node: NodeId, before: &[[u8; 8]]) {
        let Some(partner) = self.partners.get(&node) else { return };
        for session in before {
            self.sessions.remove(session);
        }
        self.sessions.extend(partner.sessions().map(|session| (session, node)));
        if partner.due().is_none() {
            self.knocking.remove(&node);
        }
    }
}

const fn shares([each, total]: [u32; 2], now: Instant) -> Shares {
    Shares::new(each, total, now)
}

fn note(counters: &Counters, tally: Tally) {
    counters.datagrams_sent.add(tally.sent);
    counters.datagrams_dropped.add(tally.unreachable + tally.overflowed);
}

/// Numbers that nobody can guess.
struct Random {
    seed: [u8; 32],
    drawn: u64,
}

impl Random {
    fn draw(&mut self) -> Nonce {
        self.drawn += 1;
        let hash = blake3::keyed_hash(&self.seed, &self.drawn.to_be_bytes());
        std::array::from_fn(|index| hash.as_bytes()[index])
    }
}

#[cfg(test)]
mod tests;
