//! This node's own keys: the roster entry, the registration, and the entry on the ring.

use std::time::Duration;

use selvedge_model::{NodeName, Time};

use super::{Event, Gateway, Pending, Purpose, Word};
use crate::cache::{Live, LiveValue, RosterValue, Slot};
use crate::keys;
use crate::kv::{Compare, LeaseId, Op, Revision, Txn};

/// For how long a convicted node leaves its networks to others before it registers anew.
const YIELD: Duration = Duration::from_secs(3);

/// What the store says of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Not registered under its present lease: not yet, or no more.
    Unregistered,
    /// Registered, and no verdict stands against it: it may write.
    Registered(Revision),
    /// The incarnation under its name counts as dead: it serves nothing.
    Convicted,
    /// Another host has its name, and what the store says of the name is that one's.
    NameTaken {
        /// What the other says of itself.
        identity: String,
    },
}

impl Gateway {
    /// This node's incarnation, if it may write.
    pub(super) const fn incarnation(&self) -> Option<Revision> {
        match self.standing {
            Standing::Registered(incarnation) => Some(incarnation),
            Standing::Unregistered | Standing::Convicted | Standing::NameTaken { .. } => None,
        }
    }

    /// Whether what the store says of this node's name does not entitle this host.
    pub(super) const fn is_barred(&self) -> bool {
        match self.standing {
            Standing::Convicted | Standing::NameTaken { .. } => true,
            Standing::Registered(_) | Standing::Unregistered => false,
        }
    }

    /// Brings this node's own keys in order, one transaction at a time.
    pub(super) fn register(&mut self, now: Time) {
        self.note_standing(now);
        let Some(lease) = self.lease else { return };
        if !self.registration.is_free(self.cache.revision, now) {
            return;
        }
        if let Some(txn) = self.registration_txn(lease, now) {
            self.registration = Pending::Sent;
            self.send(Purpose::Registration, txn);
        }
    }

    /// What every transaction of this node compares besides its own ground: its registration is
    /// unchanged, and no verdict stands against it.
    pub(super) fn own_guard(&self, incarnation: Revision) -> [Compare; 2] {
        let name = &self.config.name;
        [
            Compare::Created { key: keys::live(name), at: incarnation },
            Compare::Absent { key: keys::verdict(name, incarnation) },
        ]
    }

    /// Writes a word of the operator into the roster, until it stands there.
    pub(super) fn write_word(&mut self, now: Time) {
        // What was written is seen first: the word after it may be the opposite.
        if !self.word.is_free(self.cache.revision, now) {
            return;
        }
        let (roster, live) = (&self.cache.roster, &self.cache.live);
        let open = |name: &NodeName, word: Word| {
            roster
                .get(name)
                .is_some_and(|entry| word.is_open(entry.value.drained, live.contains_key(name)))
        };
        self.words.retain(|name, word| open(name, *word));
        let Some((name, word)) = self.words.first_key_value() else { return };
        let (name, word) = (name.clone(), *word);
        let Some(entry) = self.cache.roster.get(&name) else { return };
        let mut txn = word_txn(&name, word, entry);
        if word == Word::Remove {
            let verdicts = self.cache.verdicts_on(&name).take(16);
            txn.then.extend(verdicts.map(|at| Op::Delete { key: keys::verdict(&name, at) }));
        }
        self.word = Pending::Sent;
        self.send(Purpose::Word, txn);
    }

    fn note_standing(&mut self, now: Time) {
        let standing = self.standing_now();
        if standing == self.standing {
            return;
        }
        match &standing {
            Standing::Unregistered => {}
            Standing::Registered(incarnation) => {
                self.events.push_back(Event::Registered { incarnation: *incarnation });
            }
            Standing::Convicted => self.events.push_back(Event::Convicted),
            Standing::NameTaken { identity } => {
                self.events.push_back(Event::NameTaken { identity: identity.clone() });
            }
        }
        self.convicted_at = (standing == Standing::Convicted).then_some(now);
        if let Standing::Registered(incarnation) = standing {
            if self.last_incarnation > Some(incarnation) {
                // By a store that was restored: what others said of this one, the former store did.
                self.title.forget_words();
            }
            // The store has just said so.
            self.last_incarnation = Some(incarnation);
            self.recalled = None;
            self.forget_own();
            self.title.note_confirmation(now);
            self.liveness.begin(now);
        }
        self.standing = standing;
        self.dirty.extend(self.locals.keys());
    }

    fn standing_now(&self) -> Standing {
        let name = &self.config.name;
        let Some(live) = self.cache.live.get(name) else { return Standing::Unregistered };
        let ours = live.lease.is_some() && live.lease == self.lease;
        match &live.value {
            Some(value) if !ours && value.identity != self.config.identity => {
                Standing::NameTaken { identity: value.identity.clone() }
            }
            _ if self.cache.is_convicted(name) => Standing::Convicted,
            Some(_) if ours => Standing::Registered(live.incarnation),
            Some(_) | None => Standing::Unregistered,
        }
    }

    fn registration_txn(&mut self, lease: LeaseId, now: Time) -> Option<Txn> {
        let live = self.cache.live.get(&self.config.name).cloned();
        match (&self.standing, live) {
            (Standing::Registered(incarnation), live) => {
                let incarnation = *incarnation;
                let roster = self.roster_txn(incarnation);
                let live = || live.and_then(|live| self.live_txn(&live, lease, incarnation));
                let txn = roster.or_else(live);
                txn.or_else(|| self.ring_entry_txn(lease, incarnation, now))
            }
            (Standing::NameTaken { .. }, _) => None,
            (Standing::Convicted, Some(live)) => {
                self.has_yielded(now).then(|| self.end_of_registration(&live))
            }
            (Standing::Unregistered | Standing::Convicted, None) => {
                Some(self.new_registration(lease))
            }
            // Nobody's: it is mended, and stays what it was created as.
            (Standing::Unregistered, Some(live)) if live.value.is_none() => {
                let compare = vec![Compare::Created {
                    key: keys::live(&self.config.name),
                    at: live.incarnation,
                }];
                Some(Txn { compare, then: vec![self.put_live(lease)] })
            }
            // An earlier run of this node: a new incarnation needs a new key.
            (Standing::Unregistered, Some(live)) => Some(self.end_of_registration(&live)),
        }
    }

    /// Whether a convicted node has given the others time to take its networks over.
    fn has_yielded(&mut self, now: Time) -> bool {
        let until = self.convicted_at.map_or(now, |at| at + YIELD);
        let stays = |vni| self.cache.is_blocked(vni) || self.ring.owner(vni).is_none();
        let done = now >= until || self.cache.named(&self.config.name).all(stays);
        if !done {
            self.alarms.insert((until, None));
        }
        done
    }

    fn end_of_registration(&self, live: &Live) -> Txn {
        let key = keys::live(&self.config.name);
        let compare = vec![Compare::Created { key: key.clone(), at: live.incarnation }];
        Txn { compare, then: vec![Op::Delete { key }] }
    }

    fn new_registration(&self, lease: LeaseId) -> Txn {
        let name = &self.config.name;
        let mut compare = vec![Compare::Absent { key: keys::live(name) }];
        let mut then = vec![self.put_live(lease)];
        if let Some((condition, put)) = self.roster_change() {
            compare.push(condition);
            then.push(put);
        }
        Txn { compare, then }
    }

    fn put_live(&self, lease: LeaseId) -> Op {
        put_json(keys::live(&self.config.name), &self.live_value(), Some(lease))
    }

    fn live_value(&self) -> LiveValue {
        LiveValue {
            identity: self.config.identity.clone(),
            version: self.config.version.clone(),
            networks: Some(self.ranges.clone()).filter(|_| !self.config.networks.is_empty()),
        }
    }

    /// Writes the registration anew if what it says is no longer so.
    fn live_txn(&self, live: &Live, lease: LeaseId, incarnation: Revision) -> Option<Txn> {
        let right = live.value.as_ref() == Some(&self.live_value());
        (!right).then(|| Txn {
            compare: self.own_guard(incarnation).into(),
            then: vec![self.put_live(lease)],
        })
    }

    /// Puts the roster entry right: somebody has removed it, or this node is reached elsewhere
    /// now, or it leaves.
    fn roster_txn(&self, incarnation: Revision) -> Option<Txn> {
        let (condition, put) = self.roster_change()?;
        let mut compare = Vec::from(self.own_guard(incarnation));
        compare.push(condition);
        Some(Txn { compare, then: vec![put] })
    }

    /// What has to be written for the roster to be right, and on which condition. What operators
    /// and newer versions have written there stays.
    fn roster_change(&self) -> Option<(Compare, Op)> {
        let name = &self.config.name;
        let key = keys::roster(name);
        let entry = self.cache.roster.get(name);
        let known = entry.map(|entry| entry.value.clone()).unwrap_or_default();
        let value = RosterValue {
            role: self.config.role,
            identity: self.config.identity.clone(),
            probe: self.config.probe.clone(),
            left: self.has_nothing_left(),
            ..known
        };
        let condition = match entry {
            Some(entry) if entry.value == value => return None,
            Some(entry) => Compare::Modified { key: key.clone(), at: entry.modified },
            None => Compare::Absent { key: key.clone() },
        };
        Some((condition, put_json(key, &value, None)))
    }

    /// Whether this node is on its way out and serves nothing any more.
    pub(super) fn has_nothing_left(&self) -> bool {
        let blocked = |vni| self.cache.is_blocked(vni);
        self.leaving && self.cache.named(&self.config.name).all(blocked)
    }

    /// The entry on the ring says "place networks here", so it goes when this node drains, and a
    /// node that can serve nothing has none.
    fn ring_entry_txn(&mut self, lease: LeaseId, incarnation: Revision, now: Time) -> Option<Txn> {
        let placeable = self.is_placeable(now);
        let name = &self.config.name;
        let drained = self.cache.roster.get(name).is_some_and(|entry| entry.value.drained);
        let able = !self.config.networks.is_empty();
        let entry = self.cache.nodes.get(name);
        // What is left of an incarnation that has lost everything is nothing to keep.
        let has_any = || self.cache.owned(name).next().is_some();
        let placeable = placeable.unwrap_or_else(|| entry.is_some() && has_any());
        let wanted = able && placeable && !self.leaving && !drained;
        let right = entry.is_some_and(|e| e.lease == lease && e.ids == self.config.ids);
        let key = keys::node(name);
        let op = match wanted {
            true if !right => put_json(key, &self.config.ids, Some(lease)),
            false if entry.is_some() => Op::Delete { key },
            true | false => return None,
        };
        Some(Txn { compare: self.own_guard(incarnation).into(), then: vec![op] })
    }
}

impl Word {
    /// Whether there is anything to write for it. Who has come back is not removed.
    const fn is_open(self, drained: bool, live: bool) -> bool {
        match self {
            Self::Drain => !drained,
            Self::Undrain => drained,
            Self::Remove => !live,
        }
    }
}

fn word_txn(name: &NodeName, word: Word, entry: &Slot<RosterValue>) -> Txn {
    let key = keys::roster(name);
    let mut compare = vec![Compare::Modified { key: key.clone(), at: entry.modified }];
    let then = match word {
        Word::Drain | Word::Undrain => {
            let value = RosterValue { drained: word == Word::Drain, ..entry.value.clone() };
            put_json(key, &value, None)
        }
        Word::Remove => {
            compare.push(Compare::Absent { key: keys::live(name) });
            Op::Delete { key }
        }
    };
    Txn { compare, then: vec![then] }
}

/// A put of a value that is always representable as JSON.
pub(super) fn put_json(key: String, value: &impl serde::Serialize, lease: Option<LeaseId>) -> Op {
    let value = serde_json::to_vec(value).expect("plain values without maps of odd keys");
    Op::Put { key, value, lease }
}
