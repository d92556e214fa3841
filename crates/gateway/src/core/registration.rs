//! This node's own keys: the roster entry, the registration, and the entry on the ring.

use selvedge_model::{NodeName, Time};

use super::{Event, Gateway, Pending, Purpose};
use crate::cache::{LiveValue, RosterValue};
use crate::keys;
use crate::kv::{Compare, LeaseId, Op, Revision, StoreError, Txn, TxnReply};

impl Gateway {
    /// Whether this node may write: it is registered under its present lease, as far as the
    /// store has said, and no verdict stands against it.
    pub(super) fn is_registered(&self) -> bool {
        self.registered.is_some()
    }

    /// Brings this node's own keys in order, one transaction at a time.
    pub(super) fn register(&mut self, now: Time) {
        self.note_registration();
        let Some(lease) = self.lease else { return };
        if !self.registration.is_free(self.cache.revision, now) {
            if let Pending::RetryAt(at) = self.registration {
                self.alarm_registration(at);
            }
            return;
        }
        if let Some(txn) = self.registration_txn(lease) {
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

    /// Writes the operator's word into the roster.
    pub(super) fn write_roster(&mut self, name: &NodeName, drained: bool) {
        let Some(entry) = self.cache.roster.get(name) else { return };
        let value = RosterValue { drained, ..entry.clone() };
        let key = keys::roster(name);
        let txn = Txn {
            compare: vec![Compare::Exists { key: key.clone() }],
            then: vec![put_json(key, &value, None)],
        };
        self.roster = Pending::Sent;
        self.send(Purpose::Roster(name.clone(), drained), txn);
    }

    /// An operator's word is not dropped because the store did not answer once.
    pub(super) fn roster_replied(
        &mut self,
        name: NodeName,
        drained: bool,
        reply: Result<TxnReply, StoreError>,
        pending: Pending,
    ) {
        self.roster = pending;
        if reply.is_err() {
            self.write_roster(&name, drained);
        }
    }

    /// Whether an operator has drained this node.
    pub(super) fn is_drained(&self) -> bool {
        self.cache.roster.get(&self.config.name).is_some_and(|entry| entry.drained)
    }

    fn note_registration(&mut self) {
        let name = &self.config.name;
        let live = self.cache.live.get(name).filter(|live| live.lease == self.lease);
        let convicted = self.cache.is_convicted(name) && live.is_some();
        let registered = live.map(|live| live.incarnation).filter(|_| !convicted);
        if convicted && !self.convicted {
            self.events.push_back(Event::Convicted);
        }
        if let Some(incarnation) = registered.filter(|_| registered != self.registered) {
            self.events.push_back(Event::Registered { incarnation });
        }
        if (convicted, registered) != (self.convicted, self.registered) {
            self.dirty.extend(self.locals.keys());
        }
        (self.convicted, self.registered) = (convicted, registered);
    }

    fn registration_txn(&mut self, lease: LeaseId) -> Option<Txn> {
        let name = &self.config.name;
        let Some(live) = self.cache.live.get(name) else {
            self.name_taken = false;
            return Some(self.new_registration(lease));
        };
        if live.lease == Some(lease) && !self.convicted {
            return self.ring_entry_txn(lease, live.incarnation);
        }
        if live.lease != Some(lease) && live.value.identity != self.config.identity {
            self.report_taken(live.value.identity.clone());
            return None;
        }
        // What an earlier run left, or what was convicted: a new incarnation needs a new key.
        let compare = vec![Compare::Created { key: keys::live(name), at: live.incarnation }];
        Some(Txn { compare, then: vec![Op::Delete { key: keys::live(name) }] })
    }

    fn new_registration(&self, lease: LeaseId) -> Txn {
        let name = &self.config.name;
        let value = LiveValue {
            identity: self.config.identity.clone(),
            version: self.config.version.clone(),
        };
        let live = keys::live(name);
        let mut then = vec![put_json(live.clone(), &value, Some(lease))];
        if !self.cache.roster.contains_key(name) {
            then.push(put_json(keys::roster(name), &RosterValue::default(), None));
        }
        Txn { compare: vec![Compare::Absent { key: live }], then }
    }

    /// The entry on the ring says "place networks here", so it goes when this node drains.
    fn ring_entry_txn(&self, lease: LeaseId, incarnation: Revision) -> Option<Txn> {
        let name = &self.config.name;
        let wanted = !self.leaving && !self.is_drained();
        let entry = self.cache.nodes.get(name);
        let right = entry.is_some_and(|e| e.lease == Some(lease) && e.ids == self.config.ids);
        let key = keys::node(name);
        let op = match wanted {
            true if !right => put_json(key, &self.config.ids, Some(lease)),
            false if entry.is_some() => Op::Delete { key },
            true | false => return None,
        };
        Some(Txn { compare: self.own_guard(incarnation).into(), then: vec![op] })
    }

    fn report_taken(&mut self, identity: String) {
        if !self.name_taken {
            self.name_taken = true;
            self.events.push_back(Event::NameTaken { identity });
        }
    }

    fn alarm_registration(&mut self, at: Time) {
        // Any network's alarm wakes the whole core.
        if let Some(vni) = self.locals.keys().next() {
            self.alarms.insert((at, *vni));
        }
    }
}

/// A put of a value that is always representable as JSON.
pub(super) fn put_json(key: String, value: &impl serde::Serialize, lease: Option<LeaseId>) -> Op {
    let value = serde_json::to_vec(value).expect("plain values without maps of odd keys");
    Op::Put { key, value, lease }
}
