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

pub use crate::kv::MAX_OPS;

/// How many bytes the keys and values of a transaction may have, with [`OP_OVERHEAD`] for each
/// condition and change (etcd's `--max-request-bytes`).
pub const MAX_TXN_BYTES: usize = 3 << 19;

/// What a condition or change counts besides its key and value, in bytes.
pub const OP_OVERHEAD: usize = 64;

/// The shortest life of a lease; a shorter one is raised to this (etcd's, with its defaults).
pub const MIN_TTL: Duration = Duration::from_secs(2);

/// By how much [`Model::bump_beyond`] goes beyond.
const BUMP: i64 = 1_000_000;

/// How many events a model remembers for watches unless told otherwise.
pub const DEFAULT_HISTORY: usize = 1 << 16;

/// Whether every store would accept the form of `txn`: number of operations, sizes, no empty key,
/// no key changed twice, no nesting in what is nested.
///
/// # Errors
/// [`StoreError::Refused`], which says what is wrong.
pub fn check(txn: &Txn) -> Result<(), StoreError> {
    let ops = ops(txn) + nested(txn).map(ops).max().unwrap_or_default();
    if ops > MAX_OPS {
        return Err(refused(format!("{ops} operations, more than {MAX_OPS}")));
    }
    let bytes = txn_bytes(txn);
    if bytes > MAX_TXN_BYTES {
        return Err(refused(format!("{bytes} bytes, more than {MAX_TXN_BYTES}")));
    }
    check_keys(txn)
}

fn check_keys(txn: &Txn) -> Result<(), StoreError> {
    let mut changed = BTreeSet::new();
    for op in txn.changes() {
        let Some(key) = op.key() else {
            return Err(refused("a nested transaction nests another one".to_owned()));
        };
        if !changed.insert(key) {
            return Err(refused(format!("{key} is changed twice")));
        }
    }
    let mut compared = conditions(txn).map(compared_key);
    if changed.contains("") || compared.any(str::is_empty) {
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
        if !self.all_hold(txn) {
            let nested = Vec::new();
            return Ok(TxnReply { committed: false, revision: self.revision, nested });
        }
        // All is decided before anything is changed.
        let due: Vec<bool> = txn.then.iter().map(|op| self.is_due(op)).collect();
        let decided = || txn.then.iter().zip(&due);
        let changes = || decided().filter(|(_, due)| **due).flat_map(|(op, _)| op.parts());
        for op in changes() {
            self.check_lease(op)?;
        }
        let next = Revision(self.revision.0 + 1);
        let events = changes().filter_map(|op| self.apply(op, next)).collect();
        self.commit(events);
        let nested = decided().filter(|(op, _)| op.key().is_none()).map(|(_, due)| *due).collect();
        Ok(TxnReply { committed: true, revision: self.revision, nested })
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

    /// Goes to a revision well beyond `last`, if it is not there, and forgets the history: what
    /// `etcdutl snapshot restore` makes of a backup with `--bump-revision` and `--mark-compacted`,
    /// so that whoever watches reads everything anew.
    pub fn bump_beyond(&mut self, last: Revision) {
        self.revision = Revision(self.revision.max(last).0 + BUMP);
        self.history.forget();
        self.history.compacted = self.revision;
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

    fn all_hold(&self, txn: &Txn) -> bool {
        txn.compare.iter().all(|compare| self.holds(compare))
    }

    /// Whether an operation of a transaction that is committed takes place.
    fn is_due(&self, op: &Op) -> bool {
        match op {
            Op::Put { .. } | Op::Delete { .. } => true,
            Op::Nested(txn) => self.all_hold(txn),
        }
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
            Op::Put { .. } | Op::Delete { .. } | Op::Nested(_) => Ok(()),
        }
    }

    /// Makes a change; a nested transaction is none, but has some.
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
            Op::Nested(_) => None,
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

    fn forget(&mut self) {
        self.changes.clear();
        self.events = 0;
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
    let compared = conditions(txn).map(|c| compared_key(c).len() + OP_OVERHEAD);
    let changed = txn.changes().map(|op| match op {
        Op::Put { key, value, .. } => key.len() + value.len() + OP_OVERHEAD,
        Op::Delete { key } => key.len() + OP_OVERHEAD,
        Op::Nested(_) => 0,
    });
    let nested = nested(txn).map(|_| OP_OVERHEAD);
    compared.chain(changed).chain(nested).sum()
}

/// What etcd counts of a transaction, what it nests aside.
fn ops(txn: &Txn) -> usize {
    txn.compare.len().max(txn.then.len())
}

fn nested(txn: &Txn) -> impl Iterator<Item = &Txn> {
    txn.then.iter().filter_map(|op| match op {
        Op::Nested(txn) => Some(txn),
        Op::Put { .. } | Op::Delete { .. } => None,
    })
}

fn conditions(txn: &Txn) -> impl Iterator<Item = &Compare> {
    txn.compare.iter().chain(nested(txn).flat_map(|nested| &nested.compare))
}

fn refused(reason: String) -> StoreError {
    StoreError::Refused(reason)
}

#[cfg(test)]
mod tests;
