//! The right to serve, and the switch that follows it.
//!
//! A node may serve while a majority of the voters, itself counted, hears it, or while the store
//! confirms that no verdict stands against it. Both must have been so within
//! [`Timing::fence`](super::Timing::fence). Lease keep-alives do not count: an isolated leader of
//! etcd 3.4 goes on renewing leases.

use std::time::Duration;

use selvedge_model::{NodeName, Time};

use super::status::Right;
use super::{Event, Gateway, Isolated, Pending, Purpose, Timing};
use crate::kv::{Revision, Txn};

/// How much of `fence` is left for the switch itself, as a fraction.
const SWITCH: u32 = 5;
/// How long a process that slept has to ask before it loses the right.
const ASK: Duration = Duration::from_millis(50);

/// What this node knows of its right to serve.
#[derive(Debug)]
pub(super) struct Title {
    pub(super) right: Right,
    /// When the store was last asked what it then confirmed.
    confirmed: Option<Time>,
    asked_at: Time,
    pub(super) asking: Pending,
    /// By how much older a word may be for a process that slept, and until when it may ask.
    grace: Duration,
    grace_until: Time,
    /// An incarnation of this node that others have said is convicted.
    told: Option<Revision>,
    /// An incarnation of this node that others know not to be registered, and since when they say
    /// so.
    ended: Option<(Revision, Time)>,
    /// Until when this node was registered, as far as it knows.
    registered_until: Time,
    /// When the last word of a majority was asked for. It counts for its time although the
    /// electorate has changed since.
    majority_word: Time,
    /// When the last word of a majority or of the store was asked for.
    last_word: Time,
    /// Whether the host was told to be silent; `None` until it is known: an earlier run may have
    /// left it silent.
    silenced: Option<bool>,
    pub(super) switch: Option<bool>,
}

impl Title {
    pub(super) const fn new(now: Time) -> Self {
        Self {
            right: Right::Unknown,
            confirmed: None,
            asked_at: Time::ZERO,
            asking: Pending::No,
            grace: Duration::ZERO,
            grace_until: Time::ZERO,
            told: None,
            ended: None,
            registered_until: Time::ZERO,
            majority_word: Time::ZERO,
            last_word: now,
            silenced: None,
            switch: None,
        }
    }

    /// Takes note that another voter knows of a verdict against this incarnation.
    pub(super) const fn note_conviction(&mut self, incarnation: Revision) {
        self.told = Some(incarnation);
    }

    /// Takes note that another voter, which has read more of the store, knows this incarnation not
    /// to be registered.
    pub(super) fn note_end(&mut self, incarnation: Revision, now: Time) {
        if self.ended.is_none_or(|(known, _)| known != incarnation) {
            self.ended = Some((incarnation, now));
        }
    }

    /// Forgets what others have said of incarnations of this node.
    pub(super) const fn forget_words(&mut self) {
        (self.told, self.ended) = (None, None);
    }

    /// Takes note that the store has confirmed the registration, when asked at `asked`.
    pub(super) fn note_confirmation(&mut self, asked: Time) {
        self.confirmed = self.confirmed.max(Some(asked));
    }

    /// Takes note that this process slept. One that slept for less than its lease asks first.
    pub(super) fn note_sleep(&mut self, slept: Duration, lease: Duration, now: Time) {
        if self.right != Right::None && slept <= lease {
            self.grace = slept + ASK;
            self.grace_until = now + ASK;
        }
    }
}

impl Gateway {
    /// Whether this node may serve. Before anybody could be asked, what the host does stays.
    pub(super) fn may_serve(&self) -> bool {
        self.title.right != Right::None
    }

    /// Looks at the right to serve, and asks the store if the voters do not confirm it.
    pub(super) fn check_right(&mut self, now: Time) {
        if self.spoken_for().is_some() {
            self.title.registered_until = now;
        }
        if self.title.right == Right::Unknown && self.is_watched() {
            // Until now nobody else had a vote.
            self.title.note_confirmation(now);
        }
        self.ask_store(now);
        let (right, word) = self.right_now(now);
        self.title.last_word = self.title.last_word.max(word);
        if right == Right::Majority {
            self.title.majority_word = word;
        }
        // If an earlier run was silenced, a word to this one ends that.
        let heard = match self.recalled {
            Some(_) => right == Right::Majority,
            None => right != Right::Unknown || self.incarnation().is_some(),
        };
        if heard || right == Right::None {
            self.set_silence(right == Right::None);
        }
        if right == self.title.right {
            return;
        }
        let before = std::mem::replace(&mut self.title.right, right);
        let unconfirmed_for = now.since(self.title.last_word);
        self.events.push_back(Event::Right { right, unconfirmed_for });
        if (before == Right::None) != (right == Right::None) {
            self.dirty.extend(self.locals.keys());
        }
    }

    /// When the right may end, or the store has to be asked.
    pub(super) fn right_changes_at(&self) -> Option<Time> {
        let watched = self.is_watched() && self.title.right != Right::None;
        watched.then(|| self.title.last_word + self.allowance()).filter(|at| *at > self.looked_at)
    }

    /// Whether the host was told to be silent.
    pub(super) fn is_silenced(&self) -> bool {
        self.title.silenced == Some(true)
    }

    fn set_silence(&mut self, silent: bool) {
        if self.title.silenced != Some(silent) {
            self.title.silenced = Some(silent);
            self.title.switch = Some(silent);
        }
    }

    /// For how long a word counts: the switch takes its time too. Whoever cannot be probed loses its
    /// networks with its lease, which was renewed within a third of its life before that.
    fn allowance(&self) -> Duration {
        let Timing { fence, lease, .. } = self.config.timing;
        if self.is_probed() { fence - fence / SWITCH } else { lease / 2 }
    }

    /// Whether others could take this node's networks over without its knowing, and it is to mind:
    /// by their votes, or at the end of its lease if it has no address for probes. Such a one cannot
    /// tell whether it is cut off or the store is away, and stops only if it was told to.
    fn is_watched(&self) -> bool {
        let other = |name: &NodeName| *name != self.config.name;
        match self.is_probed() {
            true => self.electorate.voters.iter().any(other),
            false => self.config.isolated == Isolated::Stop && self.cache.nodes.keys().any(other),
        }
    }

    /// Whether the others can watch over this node.
    pub(super) fn is_probed(&self) -> bool {
        !self.config.probe.is_empty()
    }

    /// The right as of now, and when the word was asked for on which it stands.
    fn right_now(&self, now: Time) -> (Right, Time) {
        if !self.is_watched() {
            return (Right::Unknown, now);
        }
        if self.title.told.is_some() && self.title.told == self.last_incarnation {
            return (Right::None, Time::ZERO);
        }
        let Some(last) = self.last_incarnation else { return (Right::Unknown, now) };
        let asks = now < self.title.grace_until;
        let grace = if asks { self.title.grace } else { Duration::ZERO };
        // Who has lost the right needs a fresh word: an old one may count because fewer vote now,
        // and would end at once.
        let stale = if self.title.right == Right::None { 2 } else { 1 };
        let allowance = self.allowance() / stale + grace;
        let fresh = |at: Time| now.since(at) < allowance;
        if self.title.ended.is_some_and(|(known, since)| known == last && !fresh(since)) {
            return (Right::None, Time::ZERO);
        }
        let kept = Some(self.title.majority_word).filter(|_| self.title.right == Right::Majority);
        let majority = self.majority_heard_at(last).max(kept).filter(|at| fresh(*at));
        let store = self.title.confirmed.filter(|at| fresh(*at) && !self.is_withheld(now));
        match (majority, store) {
            (Some(at), _) => (Right::Majority, at),
            (None, Some(at)) => (Right::Store, at),
            (None, None) if self.serves_isolated() && !self.is_withheld(now) => {
                (Right::Isolated, Time::ZERO)
            }
            (None, None) => (Right::None, Time::ZERO),
        }
    }

    fn is_withheld(&self, now: Time) -> bool {
        self.liveness.is_withheld(self.config.timing.fence, now)
    }

    fn serves_isolated(&self) -> bool {
        let votes = self.electorate.voters.contains(&self.config.name);
        match self.config.isolated {
            // Whom the others have struck is not one of two, and who was struck may be back. Of two,
            // one that votes against the other acts without the store if that one asked for it.
            Isolated::Auto => {
                let two = self.cache.possible_voters().count() <= 2;
                votes && two && !self.liveness.is_left_against()
            }
            Isolated::Stop => false,
            Isolated::Serve => true,
        }
    }

    /// The latest time since which a majority of the voters, itself counted, has heard this node.
    fn majority_heard_at(&self, last: Revision) -> Option<Time> {
        let me = &self.config.name;
        let heard = |name| {
            // Whoever has lost its registration no longer hears itself.
            if name == me {
                Some(self.title.registered_until)
            } else {
                self.liveness.confirmed(name)
            }
        };
        let mut times: Vec<Time> = self.electorate.voters.iter().filter_map(heard).collect();
        times.sort_unstable_by(|a, b| b.cmp(a));
        let heard = times.get(self.majority() - 1).copied();
        // Others may act on the end of the registration, once `fence` has passed.
        let ended = self.title.ended.filter(|(incarnation, _)| *incarnation == last);
        heard.map(|at| ended.map_or(at, |(_, end)| at.min(end)))
    }

    /// Asks the store, by a transaction that changes nothing, whether this registration stands.
    fn ask_store(&mut self, now: Time) {
        let Some(incarnation) = self.incarnation().filter(|_| self.is_watched()) else { return };
        let fence = self.config.timing.fence;
        let majority = self.majority_heard_at(incarnation);
        let needed = majority.is_none_or(|at| now.since(at) >= fence / 3);
        let lately = now.since(self.title.asked_at) < fence / 4;
        let overdue = now.since(self.title.asked_at) >= fence / 2;
        let free = self.title.asking.is_free(self.cache.revision, now) || overdue;
        if !needed || !free || (lately && self.title.asked_at != Time::ZERO) {
            return;
        }
        self.title.asking = Pending::Sent;
        self.title.asked_at = now;
        let compare = Vec::from(self.own_guard(incarnation));
        self.send(Purpose::Confirm(now), Txn { compare, then: vec![] });
    }
}
