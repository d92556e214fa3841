//! The deterministic model of the store: etcd's v3 semantics in memory.
//!
//! [`Model`] is pure. It has no clock and no random source: whoever drives it says what time it
//! is. The simulator drives it with virtual time; the embedded store serves one over a socket.
//!
//! It follows <https://etcd.io/docs/v3.4/learning/api/>: one revision per transaction that
//! changes something; the end of a lease removes all keys of the lease at one revision; a watch
//! replays history until that history is compacted.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::time::Duration;

use selvedge_model::Time;

use crate::kv::{
    Batch, Compare, Event, KeyValue, LeaseId, Op, Revision, Snapshot, StoreError, Txn, TxnReply,
};

/// How many conditions, and how many changes, a transaction may have (etcd's `--max-txn-ops`).
pub const MAX_OPS: usize = 128;

/// How many bytes the keys and values of a transaction may have, with [`OP_OVERHEAD`] for each
/// condition and change (etcd's `--max-request-bytes`).
pub const MAX_TXN_BYTES: usize = 3 << 19;

/// What a condition or change counts besides its key and value, in bytes.
pub const OP_OVERHEAD: usize = 64;

/// The shortest life of a lease; a shorter one is raised to this (etcd's, with its defaults).
pub const MIN_TTL: Duration = Duration::from_secs(2);

/// How many events a model remembers for watches unless told otherwise.
pub const DEFAULT_HISTORY: usize = 1 << 16;

/// Whether every store would accept the form of `txn`: number of operations, sizes, no empty key,
/// no key changed twice.
///
/// # Errors
/// [`StoreError::Refused`], which says what is wrong.
pub fn check(txn: &Txn) -> Result<(), StoreError> {
    let ops = txn.compare.len().max(txn.then.len());
    if ops > MAX_OPS {
        return Err(refused(format!("{ops} operations, more than {MAX_OPS}")));
    }
    let bytes = txn_bytes(txn);
    if bytes > MAX_TXN_BYTES {
        return Err(refused(format!("{bytes} bytes, more than {MAX_TXN_BYTES}")));
    }
    let mut changed = BTreeSet::new();
    for key in txn.then.iter().map(Op::key) {
        if !changed.insert(key) {
            return Err(refused(format!("{key} is changed twice")));
        }
    }
    if txn.compare.iter().map(compared_key).chain(changed).any(str::is_empty) {
        return Err(refused("an empty key".to_owned()));
    }
    Ok(())
}

/// A store in memory. Failed calls change nothing.
#[derive(Clone, Debug)]
pub struct Model {
    revision: Revision,
    keys: BTreeMap<String, KeyValue>,
    leases: BTreeMap<LeaseId, Lease>,
    /// The same leases by the time at which they end.
    deadlines: BTreeSet<(Time, LeaseId)>,
    last_lease: i64,
    history: History,
}

impl Default for Model {
    fn default() -> Self {
        Self::new()
    }
}

impl Model {
    /// An empty store at revision 1, as a new etcd is, that remembers [`DEFAULT_HISTORY`] events.
    #[must_use]
    pub fn new() -> Self {
        Self::with_history(DEFAULT_HISTORY)
    }

    /// An empty store that remembers `events` events for watches; older revisions are compacted.
    /// The latest revision is always remembered.
    #[must_use]
    pub fn with_history(events: usize) -> Self {
        Self {
            revision: Revision(1),
            keys: BTreeMap::new(),
            leases: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            last_lease: 0,
            history: History::new(events),
        }
    }

    /// The revision of the latest change.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The revision up to which, itself included, the history is gone.
    #[must_use]
    pub fn compacted(&self) -> Revision {
        self.history.compacted
    }

    /// One key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&KeyValue> {
        self.keys.get(key)
    }

    /// All keys under any of `prefixes`, each once, in ascending order.
    #[must_use]
    pub fn read(&self, prefixes: &[String]) -> Snapshot {
        let keys = disjoint(prefixes).into_iter().flat_map(|prefix| self.under(prefix));
        Snapshot { revision: self.revision, keys: keys.cloned().collect() }
    }

    /// Runs a transaction.
    ///
    /// # Errors
    /// [`StoreError::Refused`] as by [`check`]; [`StoreError::NoLease`] if the conditions hold
    /// and a put names a lease that does not exist.
    pub fn txn(&mut self, txn: &Txn) -> Result<TxnReply, StoreError> {
        check(txn)?;
        if !txn.compare.iter().all(|compare| self.holds(compare)) {
            return Ok(TxnReply { committed: false, revision: self.revision });
        }
        for op in &txn.then {
            self.check_lease(op)?;
        }
        let next = Revision(self.revision.0 + 1);
        let events = txn.then.iter().filter_map(|op| self.apply(op, next)).collect();
        self.commit(events);
        Ok(TxnReply { committed: true, revision: self.revision })
    }

    /// Everything that happened under `prefixes` after revision `after`, up to now.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] if some of it is forgotten; [`StoreError::Refused`] if `after`
    /// lies in the future, that is, comes from another store.
    pub fn events_after(&self, prefixes: &[String], after: Revision) -> Result<Batch, StoreError> {
        self.events_after_up_to(prefixes, after, usize::MAX)
    }

    /// As [`events_after`](Self::events_after), but stops after the first whole revision with
    /// which the batch has `limit` events or more.
    ///
    /// # Errors
    /// The same.
    pub fn events_after_up_to(
        &self,
        prefixes: &[String],
        after: Revision,
        limit: usize,
    ) -> Result<Batch, StoreError> {
        if after > self.revision {
            let now = self.revision;
            let what = format!("the store was reset: it is at revision {now}, before {after}");
            return Err(refused(what));
        }
        let prefixes = disjoint(prefixes);
        let mut events = Vec::new();
        for change in self.history.after(after)? {
            let ours = |e: &&Event| prefixes.iter().any(|p| event_key(e).starts_with(p));
            events.extend(change.events.iter().filter(ours).cloned());
            if events.len() >= limit {
                return Ok(Batch { revision: change.revision, events });
            }
        }
        Ok(Batch { revision: self.revision, events })
    }

    /// Forgets the history up to and including `revision`.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] if that was done before; [`StoreError::Refused`] if `revision`
    /// lies in the future.
    pub fn compact(&mut self, revision: Revision) -> Result<(), StoreError> {
        if revision > self.revision {
            let now = self.revision;
            return Err(refused(format!("revision {revision} is ahead of the store, at {now}")));
        }
        self.history.compact(revision)
    }

    /// Grants a lease with an id that no lease had before. `ttl` is raised to whole seconds and
    /// to [`MIN_TTL`].
    pub fn grant(&mut self, ttl: Duration, now: Time) -> LeaseId {
        self.last_lease += 1;
        let id = LeaseId(self.last_lease);
        self.insert_lease(id, ttl, now);
        id
    }

    /// Grants a lease with the given id.
    ///
    /// # Errors
    /// [`StoreError::Refused`] if the id is not positive or taken.
    pub fn grant_with_id(
        &mut self,
        id: LeaseId,
        ttl: Duration,
        now: Time,
    ) -> Result<(), StoreError> {
        if id.0 <= 0 || self.leases.contains_key(&id) {
            return Err(refused(format!("lease {id} exists or is no valid id")));
        }
        self.last_lease = self.last_lease.max(id.0);
        self.insert_lease(id, ttl, now);
        Ok(())
    }

    /// Lets a lease live for its full time from `now` on.
    ///
    /// # Errors
    /// [`StoreError::NoLease`] if it does not exist, or has ended and is yet to be removed.
    pub fn keep_alive(&mut self, id: LeaseId, now: Time) -> Result<(), StoreError> {
        let lease = self.leases.get_mut(&id).filter(|lease| lease.deadline > now);
        let lease = lease.ok_or(StoreError::NoLease(id))?;
        self.deadlines.remove(&(lease.deadline, id));
        lease.deadline = now + lease.ttl;
        self.deadlines.insert((lease.deadline, id));
        Ok(())
    }

    /// Ends a lease and removes all its keys at one revision.
    ///
    /// # Errors
    /// [`StoreError::NoLease`] if it does not exist.
    pub fn revoke(&mut self, id: LeaseId) -> Result<(), StoreError> {
        let lease = self.leases.remove(&id).ok_or(StoreError::NoLease(id))?;
        self.deadlines.remove(&(lease.deadline, id));
        let next = Revision(self.revision.0 + 1);
        let mut events = Vec::new();
        for key in lease.keys {
            self.keys.remove(&key);
            events.push(Event::Delete { key, modified: next });
        }
        self.commit(events);
        Ok(())
    }

    /// Ends all leases whose time is over, the earliest first, each at a revision of its own if
    /// it has keys. Returns those leases.
    pub fn expire(&mut self, now: Time) -> Vec<LeaseId> {
        let mut ended = Vec::new();
        while let Some(&(deadline, id)) = self.deadlines.first() {
            if deadline > now || self.revoke(id).is_err() {
                break;
            }
            ended.push(id);
        }
        ended
    }

    /// When [`expire`](Self::expire) has something to do next. Changes with every call about
    /// leases.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Time> {
        self.deadlines.first().map(|&(deadline, _)| deadline)
    }

    /// The leases that exist, with the time at which each ends.
    pub fn leases(&self) -> impl Iterator<Item = (LeaseId, Time)> + '_ {
        self.leases.iter().map(|(id, lease)| (*id, lease.deadline))
    }

    fn under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a KeyValue> + 'a {
        let from = self.keys.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
        from.take_while(move |(key, _)| key.starts_with(prefix)).map(|(_, kv)| kv)
    }

    fn holds(&self, compare: &Compare) -> bool {
        let found = self.keys.get(compared_key(compare));
        match compare {
            Compare::Absent { .. } => found.is_none(),
            Compare::Exists { .. } => found.is_some(),
            Compare::Modified { at, .. } => found.is_some_and(|kv| kv.modified == *at),
            Compare::Created { at, .. } => found.is_some_and(|kv| kv.create == *at),
        }
    }

    fn check_lease(&self, op: &Op) -> Result<(), StoreError> {
        match op {
            Op::Put { lease: Some(id), .. } if !self.leases.contains_key(id) => {
                Err(StoreError::NoLease(*id))
            }
            Op::Put { .. } | Op::Delete { .. } => Ok(()),
        }
    }

    fn apply(&mut self, op: &Op, at: Revision) -> Option<Event> {
        match op {
            Op::Put { key, value, lease } => {
                let kv = self.put(key, value, *lease, at);
                Some(Event::Put(kv))
            }
            Op::Delete { key } => {
                let old = self.keys.remove(key)?;
                self.detach(&old);
                Some(Event::Delete { key: old.key, modified: at })
            }
        }
    }

    fn put(&mut self, key: &str, value: &[u8], lease: Option<LeaseId>, at: Revision) -> KeyValue {
        let old = self.keys.remove(key);
        if let Some(old) = &old {
            self.detach(old);
        }
        if let Some(lease) = lease.and_then(|id| self.leases.get_mut(&id)) {
            lease.keys.insert(key.to_owned());
        }
        let kv = KeyValue {
            key: key.to_owned(),
            value: value.to_vec(),
            create: old.map_or(at, |old| old.create),
            modified: at,
            lease,
        };
        self.keys.insert(key.to_owned(), kv.clone());
        kv
    }

    fn detach(&mut self, kv: &KeyValue) {
        if let Some(lease) = kv.lease.and_then(|id| self.leases.get_mut(&id)) {
            lease.keys.remove(&kv.key);
        }
    }

    fn commit(&mut self, events: Vec<Event>) {
        if !events.is_empty() {
            self.revision.0 += 1;
            self.history.push(Change { revision: self.revision, events });
        }
    }

    fn insert_lease(&mut self, id: LeaseId, ttl: Duration, now: Time) {
        let whole = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let ttl = Duration::from_secs(whole).max(MIN_TTL);
        let deadline = now + ttl;
        self.leases.insert(id, Lease { ttl, deadline, keys: BTreeSet::new() });
        self.deadlines.insert((deadline, id));
    }
}

#[derive(Clone, Debug)]
struct Lease {
    ttl: Duration,
    deadline: Time,
    keys: BTreeSet<String>,
}

/// All events of one revision.
#[derive(Clone, Debug)]
struct Change {
    revision: Revision,
    events: Vec<Event>,
}

/// The latest revisions, in order and without a gap.
#[derive(Clone, Debug)]
struct History {
    changes: VecDeque<Change>,
    /// The number of events in `changes`.
    events: usize,
    limit: usize,
    compacted: Revision,
}

impl History {
    fn new(limit: usize) -> Self {
        Self { changes: VecDeque::new(), events: 0, limit, compacted: Revision(0) }
    }

    fn push(&mut self, change: Change) {
        self.events += change.events.len();
        self.changes.push_back(change);
        while self.events > self.limit && self.changes.len() > 1 {
            self.forget_oldest();
        }
    }

    fn after(&self, after: Revision) -> Result<impl Iterator<Item = &Change>, StoreError> {
        if after < self.compacted {
            return Err(StoreError::Compacted(self.compacted));
        }
        let seen = self.changes.partition_point(|change| change.revision <= after);
        Ok(self.changes.iter().skip(seen))
    }

    fn compact(&mut self, revision: Revision) -> Result<(), StoreError> {
        if revision <= self.compacted {
            return Err(StoreError::Compacted(self.compacted));
        }
        while self.changes.front().is_some_and(|change| change.revision <= revision) {
            self.forget_oldest();
        }
        self.compacted = revision;
        Ok(())
    }

    fn forget_oldest(&mut self) {
        if let Some(change) = self.changes.pop_front() {
            self.events -= change.events.len();
            self.compacted = change.revision;
        }
    }
}

/// The key of an event.
#[must_use]
pub fn event_key(event: &Event) -> &str {
    match event {
        Event::Put(kv) => &kv.key,
        Event::Delete { key, .. } => key,
    }
}

/// The prefixes in ascending order without those that another one covers.
#[must_use]
pub fn disjoint(prefixes: &[String]) -> Vec<&str> {
    let mut sorted: Vec<&str> = prefixes.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    let mut kept: Vec<&str> = Vec::new();
    for prefix in sorted {
        if !kept.last().is_some_and(|last| prefix.starts_with(last)) {
            kept.push(prefix);
        }
    }
    kept
}

fn compared_key(compare: &Compare) -> &str {
    match compare {
        Compare::Absent { key }
        | Compare::Exists { key }
        | Compare::Modified { key, .. }
        | Compare::Created { key, .. } => key,
    }
}

fn txn_bytes(txn: &Txn) -> usize {
    let compared = txn.compare.iter().map(|c| compared_key(c).len() + OP_OVERHEAD);
    let changed = txn.then.iter().map(|op| match op {
        Op::Put { key, value, .. } => key.len() + value.len() + OP_OVERHEAD,
        Op::Delete { key } => key.len() + OP_OVERHEAD,
    });
    compared.chain(changed).sum()
}

fn refused(reason: String) -> StoreError {
    StoreError::Refused(reason)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TTL: Duration = Duration::from_secs(3);

    fn put(key: &str, value: &str, lease: Option<LeaseId>) -> Op {
        Op::Put { key: key.to_owned(), value: value.into(), lease }
    }

    fn delete(key: &str) -> Op {
        Op::Delete { key: key.to_owned() }
    }

    fn then(ops: impl IntoIterator<Item = Op>) -> Txn {
        Txn { compare: Vec::new(), then: ops.into_iter().collect() }
    }

    fn all() -> Vec<String> {
        vec![String::new()]
    }

    fn secs(secs: u64) -> Time {
        Time::ZERO + Duration::from_secs(secs)
    }

    #[test]
    fn only_a_transaction_that_changes_something_makes_a_revision() {
        let mut model = Model::new();
        let unchanged = model.txn(&then([delete("a")])).expect("a form that is accepted");
        assert_eq!(unchanged, TxnReply { committed: true, revision: Revision(1) });
        let changed = model.txn(&then([put("a", "1", None), put("b", "1", None)]));
        assert_eq!(changed, Ok(TxnReply { committed: true, revision: Revision(2) }));
        let same = model.txn(&then([put("a", "1", None)])).expect("a form that is accepted");
        assert_eq!(same.revision, Revision(3), "a put of the same value is a change");
        assert_eq!(
            model.get("a").map(|kv| (kv.create, kv.modified)),
            Some((Revision(2), Revision(3)))
        );
    }

    #[test]
    fn refuses_what_etcd_refuses() {
        let mut model = Model::new();
        let refused = |r: Result<TxnReply, StoreError>| matches!(r, Err(StoreError::Refused(_)));
        assert!(refused(model.txn(&then([put("a", "1", None), delete("a")]))));
        assert!(refused(model.txn(&then([delete("")]))));
        let ops = |n: usize| (0..n).map(|i| put(&format!("k{i}"), "", None));
        assert!(refused(model.txn(&then(ops(MAX_OPS + 1)))));
        let big = "x".repeat(MAX_TXN_BYTES);
        assert!(refused(model.txn(&then([put("big", &big, None)]))));
        assert_eq!(model.revision(), Revision(1));
        assert!(model.txn(&then(ops(MAX_OPS))).is_ok());
    }

    #[test]
    fn an_unknown_lease_matters_only_if_the_conditions_hold() {
        let mut model = Model::new();
        let mut txn = then([put("a", "1", None), put("b", "1", Some(LeaseId(9)))]);
        assert_eq!(model.txn(&txn), Err(StoreError::NoLease(LeaseId(9))));
        assert_eq!(model.read(&all()).keys, Vec::new(), "nothing was changed");
        txn.compare.push(Compare::Exists { key: "a".to_owned() });
        assert_eq!(model.txn(&txn), Ok(TxnReply { committed: false, revision: Revision(1) }));
    }

    #[test]
    fn a_lease_takes_all_its_keys_at_one_revision() {
        let mut model = Model::new();
        let (one, two) = (model.grant(TTL, secs(0)), model.grant(TTL, secs(1)));
        let puts = ["a", "b", "c", "d"].map(|key| put(key, "", Some(one)));
        model.txn(&then(puts)).expect("the lease exists");
        model.txn(&then([put("b", "", Some(two)), put("c", "", None)])).expect("both exist");
        assert_eq!(model.next_expiry(), Some(secs(3)));
        assert_eq!(model.expire(Time::from_micros(2_999_999)), Vec::new());
        assert_eq!(model.expire(secs(3)), vec![one]);
        let gone = |key: &str| Event::Delete { key: key.to_owned(), modified: Revision(4) };
        let batch = model.events_after(&all(), Revision(3)).expect("nothing is compacted");
        assert_eq!(batch, Batch { revision: Revision(4), events: vec![gone("a"), gone("d")] });
        assert_eq!(model.keep_alive(one, secs(3)), Err(StoreError::NoLease(one)));
        assert_eq!(model.keep_alive(two, secs(3)), Ok(()));
        assert_eq!(model.next_expiry(), Some(secs(6)));
        assert_eq!(model.revoke(two), Ok(()));
        assert_eq!(model.read(&all()).keys.len(), 1, "only the detached key is left");
        assert_eq!(model.next_expiry(), None);
    }

    #[test]
    fn a_lease_that_has_ended_cannot_be_kept_alive() {
        let mut model = Model::new();
        let lease = model.grant(Duration::from_millis(2_001), secs(0));
        assert_eq!(model.next_expiry(), Some(secs(3)), "raised to whole seconds");
        assert_eq!(model.keep_alive(lease, secs(3)), Err(StoreError::NoLease(lease)));
        assert!(model.grant_with_id(lease, TTL, secs(3)).is_err(), "it is still there");
        assert_eq!(model.grant_with_id(LeaseId(70), TTL, secs(3)), Ok(()));
        assert_eq!(model.grant(TTL, secs(3)), LeaseId(71));
    }

    #[test]
    fn prefixes_that_overlap_yield_each_key_once() {
        let mut model = Model::new();
        let keys = ["a", "ab", "abc", "b", "ba"].map(|key| put(key, "", None));
        model.txn(&then(keys)).expect("a form that is accepted");
        let prefixes = ["b", "ab", "abc"].map(str::to_owned);
        let keys: Vec<_> = model.read(&prefixes).keys.into_iter().map(|kv| kv.key).collect();
        assert_eq!(keys, ["ab", "abc", "b", "ba"]);
        let events = model.events_after(&prefixes, Revision(1)).expect("not compacted").events;
        assert_eq!(events.len(), 4);
    }

    #[test]
    fn history_is_bounded_by_whole_revisions() {
        let mut model = Model::with_history(3);
        for _ in 0..3 {
            model.txn(&then([put("a", "", None), put("b", "", None)])).expect("accepted");
        }
        assert_eq!(model.compacted(), Revision(3));
        let old = model.events_after(&all(), Revision(2));
        assert_eq!(old, Err(StoreError::Compacted(Revision(3))));
        let new = model.events_after(&all(), Revision(3)).expect("remembered");
        assert_eq!((new.revision, new.events.len()), (Revision(4), 2));
        assert!(matches!(model.events_after(&all(), Revision(5)), Err(StoreError::Refused(_))));
    }

    /// The naive oracle: every state that there ever was.
    struct Oracle {
        /// The index is the revision; index 0 stands for the time before.
        states: Vec<BTreeMap<String, KeyValue>>,
        /// Each with its time to live and its end, in seconds.
        leases: Vec<(LeaseId, u64, u64)>,
        compacted: usize,
        now: u64,
    }

    impl Oracle {
        fn new() -> Self {
            let states = vec![BTreeMap::new(), BTreeMap::new()];
            Self { states, leases: Vec::new(), compacted: 0, now: 0 }
        }

        fn current(&self) -> BTreeMap<String, KeyValue> {
            self.states.last().cloned().unwrap_or_default()
        }

        fn next(&self) -> Revision {
            Revision(i64::try_from(self.states.len()).expect("few states"))
        }

        fn commit(&mut self, state: BTreeMap<String, KeyValue>) {
            if state != self.current() {
                self.states.push(state);
            }
        }

        fn txn(&mut self, txn: &Txn) {
            let mut state = self.current();
            let holds = txn.compare.iter().all(|compare| match compare {
                Compare::Absent { key } => !state.contains_key(key),
                Compare::Exists { key } => state.contains_key(key),
                Compare::Modified { key, at } => state.get(key).map(|kv| kv.modified) == Some(*at),
                Compare::Created { key, at } => state.get(key).map(|kv| kv.create) == Some(*at),
            });
            let unique: BTreeSet<_> = txn.then.iter().map(Op::key).collect();
            if !holds || unique.len() < txn.then.len() || !self.leases_exist(txn) {
                return;
            }
            for op in &txn.then {
                match op {
                    Op::Put { key, value, lease } => {
                        let create = state.get(key).map_or(self.next(), |kv| kv.create);
                        let (key, value, lease) = (key.clone(), value.clone(), *lease);
                        let modified = self.next();
                        let kv = KeyValue { key: key.clone(), value, create, modified, lease };
                        state.insert(key, kv);
                    }
                    Op::Delete { key } => {
                        state.remove(key);
                    }
                }
            }
            self.commit(state);
        }

        fn leases_exist(&self, txn: &Txn) -> bool {
            txn.then.iter().all(|op| match op {
                Op::Put { lease: Some(id), .. } => self.leases.iter().any(|(l, ..)| l == id),
                Op::Put { .. } | Op::Delete { .. } => true,
            })
        }

        fn revoke(&mut self, id: LeaseId) {
            self.leases.retain(|(lease, ..)| *lease != id);
            let mut state = self.current();
            state.retain(|_, kv| kv.lease != Some(id));
            self.commit(state);
        }

        fn expire(&mut self) {
            let mut ended: Vec<_> = self.leases.clone();
            ended.retain(|(.., deadline)| *deadline <= self.now);
            ended.sort_by_key(|(id, _, deadline)| (*deadline, *id));
            for (id, ..) in ended {
                self.revoke(id);
            }
        }

        fn events(&self, prefix: &str, after: usize) -> Vec<Event> {
            let mut events = Vec::new();
            for (at, pair) in self.states.windows(2).enumerate().skip(after) {
                let revision = Revision(i64::try_from(at + 1).expect("few states"));
                let keys: BTreeSet<_> = pair.iter().flat_map(BTreeMap::keys).collect();
                for key in keys.into_iter().filter(|key| key.starts_with(prefix)) {
                    match (pair[0].get(key), pair[1].get(key)) {
                        (_, Some(kv)) if kv.modified == revision => {
                            events.push(Event::Put(kv.clone()));
                        }
                        (Some(_), None) => {
                            events.push(Event::Delete { key: key.clone(), modified: revision });
                        }
                        (None, None) | (_, Some(_)) => {}
                    }
                }
            }
            events
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Txn(Txn),
        Grant(u64),
        KeepAlive(usize),
        Revoke(usize),
        Wait(u64),
        Compact(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            8 => txns().prop_map(Step::Txn),
            2 => (2..6u64).prop_map(Step::Grant),
            1 => (0..4usize).prop_map(Step::KeepAlive),
            1 => (0..4usize).prop_map(Step::Revoke),
            2 => (0..4u64).prop_map(Step::Wait),
            1 => (0..6usize).prop_map(Step::Compact),
        ];
        prop::collection::vec(step, 0..60)
    }

    fn txns() -> impl Strategy<Value = Txn> {
        let key =
            || prop::sample::select(vec!["a", "a/1", "a/2", "b", "b/1"]).prop_map(str::to_owned);
        let at = (1..12i64).prop_map(Revision);
        let lease = prop::option::of((1..4i64).prop_map(LeaseId));
        let compare = prop_oneof![
            key().prop_map(|key| Compare::Absent { key }),
            key().prop_map(|key| Compare::Exists { key }),
            (key(), at.clone()).prop_map(|(key, at)| Compare::Modified { key, at }),
            (key(), at).prop_map(|(key, at)| Compare::Created { key, at }),
        ];
        let op = prop_oneof![
            2 => (key(), any::<u8>(), lease)
                .prop_map(|(key, value, lease)| Op::Put { key, value: vec![value], lease }),
            1 => key().prop_map(|key| Op::Delete { key }),
        ];
        (prop::collection::vec(compare, 0..2), prop::collection::vec(op, 0..4))
            .prop_map(|(compare, then)| Txn { compare, then })
    }

    fn take(step: Step, model: &mut Model, oracle: &mut Oracle) {
        let now = |oracle: &Oracle| secs(oracle.now);
        let nth = |oracle: &Oracle, n: usize| oracle.leases.get(n).map(|(id, ..)| *id);
        match step {
            Step::Txn(txn) => {
                let _ = model.txn(&txn);
                oracle.txn(&txn);
            }
            Step::Grant(ttl) => {
                let id = model.grant(Duration::from_secs(ttl), now(oracle));
                oracle.leases.push((id, ttl, oracle.now + ttl));
            }
            Step::KeepAlive(n) => {
                if let Some(id) = nth(oracle, n) {
                    model.keep_alive(id, now(oracle)).expect("expired ones were removed");
                    oracle.leases[n].2 = oracle.now + oracle.leases[n].1;
                }
            }
            Step::Revoke(n) => {
                if let Some(id) = nth(oracle, n) {
                    model.revoke(id).expect("it exists");
                    oracle.revoke(id);
                }
            }
            Step::Wait(time) => {
                oracle.now += time;
                model.expire(now(oracle));
                oracle.expire();
            }
            Step::Compact(back) => {
                let to = oracle.states.len().saturating_sub(1 + back);
                if model.compact(Revision(i64::try_from(to).expect("few"))).is_ok() {
                    oracle.compacted = to;
                }
            }
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_oracle(steps in steps()) {
            let (mut model, mut oracle) = (Model::new(), Oracle::new());
            for step in steps {
                take(step, &mut model, &mut oracle);
                let keys: Vec<_> = oracle.current().into_values().collect();
                let snapshot = model.read(&all());
                prop_assert_eq!(snapshot.keys, keys);
                prop_assert_eq!(snapshot.revision.0 + 1, oracle.next().0);
                let first = oracle.leases.iter().map(|(.., deadline)| secs(*deadline)).min();
                prop_assert_eq!(model.next_expiry(), first);
            }
            for after in 0..oracle.states.len() {
                for prefix in ["", "a", "b/"] {
                    let from = Revision(i64::try_from(after).expect("few"));
                    let got = model.events_after(&[prefix.to_owned()], from);
                    if after < oracle.compacted {
                        prop_assert_eq!(got, Err(StoreError::Compacted(model.compacted())));
                        continue;
                    }
                    let mut events = got.expect("neither compacted nor in the future").events;
                    events.sort_by_key(|e| (modified(e), event_key(e).to_owned()));
                    prop_assert_eq!(events, oracle.events(prefix, after));
                }
            }
        }

        #[test]
        fn pages_of_events_make_up_the_whole(steps in steps(), limit in 1..5usize) {
            let (mut model, mut oracle) = (Model::new(), Oracle::new());
            for step in steps.into_iter().filter(|step| !matches!(step, Step::Compact(_))) {
                take(step, &mut model, &mut oracle);
            }
            let (mut after, mut events) = (Revision(0), Vec::new());
            while after < model.revision() {
                let page = model.events_after_up_to(&all(), after, limit).expect("not compacted");
                prop_assert!(page.revision > after);
                after = page.revision;
                events.extend(page.events);
            }
            let whole = model.events_after(&all(), Revision(0)).expect("not compacted");
            prop_assert_eq!(events, whole.events);
        }
    }

    fn modified(event: &Event) -> Revision {
        match event {
            Event::Put(kv) => kv.modified,
            Event::Delete { modified, .. } => *modified,
        }
    }
}
