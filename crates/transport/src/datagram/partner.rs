//! One partner: its sessions, the handshake under way, and what waits for that.
//!
//! ```text
//!            send                 answer
//!  nothing ────────▶ knocking ───────────────▶ current ──▶ previous (still opens)
//!     │                 └ no answer ▶ deaf       ▲
//!     └─ knock heard ─▶ pending ─ first datagram ┘
//! ```
//!
//! One that does not answer knocks may be away, or datagrams do not get through to it: what is for
//! it is handed back, to go over a stream, until a datagram of its own is heard.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use selvedge_model::NodeId;
use tokio::time::Instant;

use super::allowance::Allowance;
use super::frame::Nonce;
use super::keys::{Pair, Session};

/// How many messages wait for a session, and how long.
const QUEUE: usize = 16;
const WAIT: Duration = Duration::from_secs(2);

/// A session in which nothing was heard for so long after something was sent may be one that the
/// partner has forgotten, or it may have moved: another is asked for meanwhile.
const SILENCE: Duration = Duration::from_millis(500);

/// How often a knock is repeated, how long after the one before, and the pause after the last.
const KNOCKS: u32 = 2;
const AGAIN: Duration = Duration::from_millis(400);
const PAUSE: Duration = Duration::from_secs(1);

/// How many addresses are knocked at.
const MAX_ADDRS: usize = 8;

/// How many sessions that a partner asked for await its first datagram: a knock that somebody
/// recorded and repeats gets a place of its own, and does not take that of the genuine one.
const MAX_PENDING: usize = 4;

/// How many sessions a partner is granted in a second, and how often each is granted again: a
/// knock goes to several addresses, and a second time.
const GRANTS: u32 = 20;

/// What is to be sent.
#[derive(Default)]
pub(super) struct Outbox {
    /// Datagrams, and to where.
    pub(super) datagrams: VecDeque<(SocketAddr, Vec<u8>)>,
    /// Messages that do not get through as datagrams.
    pub(super) detoured: VecDeque<Detoured>,
}

/// A message that does not get through as a datagram.
pub(super) struct Detoured {
    pub(super) to: NodeId,
    /// Where its receiver may be reached.
    pub(super) addrs: Vec<SocketAddr>,
    pub(super) message: Vec<u8>,
}

impl Outbox {
    fn push(&mut self, to: SocketAddr, datagram: Vec<u8>) {
        self.datagrams.push_back((to, datagram));
    }
}

/// What happened to messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) sent: usize,
    pub(super) unreachable: usize,
    pub(super) overflowed: usize,
}

pub(super) struct Partner {
    pub(super) pair: Pair,
    current: Option<Session>,
    previous: Option<Session>,
    /// In the order in which they were asked for.
    pending: VecDeque<Pending>,
    grants: Allowance,
    knock: Option<Knock>,
    knock_not_before: Option<Instant>,
    queue: VecDeque<Waiting>,
    addrs: Vec<SocketAddr>,
    /// Where it was heard last.
    remote: Option<SocketAddr>,
    /// It did not answer the last knock, and no datagram of its own was heard since.
    deaf: bool,
    /// When the first message went out that nothing was heard after.
    unheard_since: Option<Instant>,
    /// When it was last of use.
    pub(super) used: Instant,
}

/// A message that waits for a session.
struct Waiting {
    since: Instant,
    message: Vec<u8>,
    /// It went, or was to go, over a stream meanwhile.
    detoured: bool,
}

/// A session that the partner asked for and has not used yet.
struct Pending {
    challenge: Nonce,
    token: Nonce,
    session: Session,
    answers: Allowance,
}

struct Knock {
    challenge: Nonce,
    times: u32,
    due: Instant,
}

/// What an authentic datagram is.
pub(super) enum Opened {
    /// It confirms a session, and says nothing.
    Empty,
    /// It carries a message.
    Message(Vec<u8>),
}

impl Partner {
    pub(super) const fn new(pair: Pair, now: Instant) -> Self {
        Self {
            pair,
            current: None,
            previous: None,
            pending: VecDeque::new(),
            grants: Allowance::new(GRANTS, now),
            knock: None,
            knock_not_before: None,
            queue: VecDeque::new(),
            addrs: Vec::new(),
            remote: None,
            deaf: false,
            unheard_since: None,
            used: now,
        }
    }

    /// The sessions by which its datagrams are known.
    pub(super) fn sessions(&self) -> impl Iterator<Item = [u8; 8]> {
        let pending = self.pending.iter().map(|pending| &pending.session);
        self.current.iter().chain(&self.previous).chain(pending).map(|session| session.id)
    }

    /// Whether messages can be sent at once.
    pub(super) const fn has_session(&self) -> bool {
        self.current.is_some()
    }

    /// Sends a message over the session that there is, or keeps it for the one that it asks for,
    /// if there is a `challenge` to ask with. If there is none, and a connection (`linked`), or if
    /// the last knock was in vain, it does not wait for that.
    pub(super) fn send(
        &mut self,
        addrs: &[SocketAddr],
        message: Vec<u8>,
        linked: bool,
        now: Instant,
        challenge: impl FnOnce() -> Option<Nonce>,
        out: &mut Outbox,
    ) -> Tally {
        self.used = now;
        if !addrs.is_empty() {
            self.addrs = addrs.iter().copied().take(MAX_ADDRS).collect();
        }
        let sent = self.transmit(&message, now, out);
        let mut tally = Tally { sent: usize::from(sent), ..Tally::default() };
        if sent && !self.is_silent(now) {
            return tally;
        }
        self.begin_knock(now, challenge);
        let detoured = self.deaf || linked && self.current.is_none();
        if detoured {
            self.detour(message.clone(), out);
        }
        let lost = usize::from(!sent && !detoured);
        match (&self.knock, self.queue.len() < QUEUE) {
            // Over a connection it arrives.
            _ if detoured && linked => {}
            (Some(_), true) => self.queue.push_back(Waiting { since: now, message, detoured }),
            (Some(_), false) => tally.overflowed += lost,
            (None, _) => tally.unreachable += lost,
        }
        let driven = self.drive(now, out);
        Tally { unreachable: tally.unreachable + driven.unreachable, ..tally }
    }

    /// Hands a message back, to go over a stream.
    fn detour(&self, message: Vec<u8>, out: &mut Outbox) {
        let addrs = self.remote.into_iter().chain(self.addrs.iter().copied()).collect();
        let to = self.pair.partner();
        out.detoured.push_back(Detoured { to, addrs, message });
    }

    /// Seals a message and sends it to where the partner was heard; whether there was a session.
    fn transmit(&mut self, message: &[u8], now: Instant, out: &mut Outbox) -> bool {
        let sealed = self.current.as_mut().and_then(|session| session.seal(message));
        let (Some(remote), Some(sealed)) = (self.remote, sealed) else { return false };
        out.push(remote, sealed);
        self.unheard_since.get_or_insert(now);
        true
    }

    fn is_silent(&self, now: Instant) -> bool {
        let used_up = self.current.as_ref().is_some_and(Session::is_used_up);
        used_up || self.unheard_since.is_some_and(|since| now - since >= SILENCE)
    }

    fn begin_knock(&mut self, now: Instant, challenge: impl FnOnce() -> Option<Nonce>) {
        let waiting = self.knock_not_before.is_some_and(|at| now < at);
        let nowhere = self.addrs.is_empty() && self.remote.is_none();
        if self.knock.is_none() && !waiting && !nowhere {
            self.knock = challenge().map(|challenge| Knock { challenge, times: 0, due: now });
        }
    }

    /// When [`Partner::drive`] is to be called.
    pub(super) fn due(&self) -> Option<Instant> {
        self.knock.as_ref().map(|knock| knock.due)
    }

    /// Repeats a knock, or gives up.
    pub(super) fn drive(&mut self, now: Instant, out: &mut Outbox) -> Tally {
        let Some(knock) = self.knock.as_mut().filter(|knock| knock.due <= now) else {
            return Tally::default();
        };
        if knock.times == KNOCKS {
            self.knock = None;
            self.knock_not_before = Some(now + PAUSE);
            self.deaf = true;
            let waiting = std::mem::take(&mut self.queue).into_iter();
            waiting.filter(|it| !it.detoured).for_each(|it| self.detour(it.message, out));
            return Tally::default();
        }
        knock.times += 1;
        knock.due = now + AGAIN * knock.times;
        let datagram = self.pair.knock(knock.challenge);
        let heard = self.remote.filter(|remote| !self.addrs.contains(remote));
        for addr in heard.iter().chain(&self.addrs) {
            out.push(*addr, datagram.clone());
        }
        Tally::default()
    }

    /// The partner, of whom this is an authentic knock, asks for a session; whether it is answered.
    pub(super) fn knocked(
        &mut self,
        remote: SocketAddr,
        challenge: Nonce,
        now: Instant,
        token: impl FnOnce() -> Nonce,
        out: &mut Outbox,
    ) -> bool {
        self.used = now;
        // A knock that is repeated gets the same answer, whichever of the two was lost.
        let asked = |pending: &Pending| pending.challenge == challenge;
        if !self.pending.iter().any(asked) && self.grants.take(now) {
            self.begin_pending(challenge, token(), now);
        }
        let Some(pending) = self.pending.iter_mut().find(|pending| asked(pending)) else {
            return false;
        };
        let answered = pending.answers.take(now);
        if answered {
            out.push(remote, self.pair.answer(challenge, pending.token));
        }
        answered
    }

    fn begin_pending(&mut self, challenge: Nonce, token: Nonce, now: Instant) {
        if self.pending.len() == MAX_PENDING {
            self.pending.pop_front();
        }
        let session = self.pair.session(false, challenge, token);
        let answers = Allowance::new(GRANTS, now);
        self.pending.push_back(Pending { challenge, token, session, answers });
    }

    /// The partner uses a session that it asked for: it will use none that it asked for before.
    fn confirm(&mut self, id: [u8; 8]) -> bool {
        let found = self.pending.iter().position(|pending| pending.session.id == id);
        let asked = self.pending.drain(..found.map_or(0, |at| at + 1)).next_back();
        let confirmed = asked.is_some();
        if let Some(Pending { session, .. }) = asked {
            self.previous = self.current.replace(session);
        }
        confirmed
    }

    /// The partner, of whom this is an authentic answer, grants a session. What waited is sent; if
    /// nothing did, an empty datagram confirms it. `None` if it was not asked for.
    pub(super) fn answered(
        &mut self,
        remote: SocketAddr,
        challenge: Nonce,
        token: Nonce,
        now: Instant,
        out: &mut Outbox,
    ) -> Option<Tally> {
        self.knock.take_if(|knock| knock.challenge == challenge)?;
        let session = self.pair.session(true, challenge, token);
        self.previous = self.current.replace(session);
        self.heard(remote, now);
        let tally = self.flush(now, out);
        if tally.sent == 0 {
            self.transmit(&[], now, out);
            // Nobody answers an empty one.
            self.unheard_since = None;
        }
        Some(tally)
    }

    /// Opens a data frame that names one of the sessions.
    pub(super) fn open(
        &mut self,
        remote: SocketAddr,
        id: [u8; 8],
        counter: u32,
        sealed: &[u8],
        now: Instant,
        out: &mut Outbox,
    ) -> Option<(Opened, Tally)> {
        let pending = self.pending.iter_mut().map(|pending| &mut pending.session);
        let known = self.current.iter_mut().chain(&mut self.previous).chain(pending);
        let content =
            known.filter(|session| session.id == id).find_map(|s| s.open(counter, sealed));
        let content = content?;
        self.heard(remote, now);
        let mut tally = Tally::default();
        if self.confirm(id) {
            tally = self.flush(now, out);
        }
        let opened = if content.is_empty() { Opened::Empty } else { Opened::Message(content) };
        Some((opened, tally))
    }

    fn heard(&mut self, remote: SocketAddr, now: Instant) {
        self.used = now;
        self.remote = Some(remote);
        self.deaf = false;
        self.unheard_since = None;
        self.knock_not_before = None;
    }

    /// Sends what waited for the session that there is now.
    fn flush(&mut self, now: Instant, out: &mut Outbox) -> Tally {
        self.knock = None;
        let mut tally = Tally::default();
        for Waiting { since, message, .. } in std::mem::take(&mut self.queue) {
            match now - since <= WAIT && self.transmit(&message, now, out) {
                true => tally.sent += 1,
                false => tally.unreachable += 1,
            }
        }
        tally
    }
}
