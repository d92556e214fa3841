//! The vocabulary of the store: what etcd and the embedded model of it have in common.
//!
//! Keys are text and values are bytes. The store keeps one [`Revision`] that grows by one with
//! each transaction that changes something; every key remembers the revisions at which it was
//! created and last modified. A key may hang on a lease and vanishes with it. These are the
//! semantics of etcd's v3 API (<https://etcd.io/docs/v3.4/learning/api/>).

use std::fmt;

use serde::{Deserialize, Serialize};

/// A version of the whole store. Zero comes before everything.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Revision(pub i64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A lease as the store numbers it; never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseId(pub i64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// A key with its value and what the store knows of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyValue {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// The revision at which the key came into being (after its last deletion).
    pub create: Revision,
    /// The revision of the last change.
    pub modified: Revision,
    /// The lease on which the key hangs.
    pub lease: Option<LeaseId>,
}

/// A condition of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compare {
    /// The key does not exist.
    Absent {
        /// The key.
        key: String,
    },
    /// The key exists, whatever its value.
    Exists {
        /// The key.
        key: String,
    },
    /// The key exists and was last modified at exactly this revision.
    Modified {
        /// The key.
        key: String,
        /// Its modification revision.
        at: Revision,
    },
    /// The key exists and was created at exactly this revision.
    Created {
        /// The key.
        key: String,
        /// Its creation revision.
        at: Revision,
    },
}

/// A change that a transaction makes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Sets a key.
    Put {
        /// The key.
        key: String,
        /// The new value.
        value: Vec<u8>,
        /// The lease on which the key hangs from now on; `None` detaches it.
        lease: Option<LeaseId>,
    },
    /// Removes a key; one that does not exist is no error.
    Delete {
        /// The key.
        key: String,
    },
    /// Runs a transaction within the transaction, with conditions of its own. If they do not
    /// hold, only its own changes are left out. It may not nest further ones.
    Nested(Txn),
}

impl Op {
    /// The key that the operation itself changes; a nested transaction has none of its own.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => Some(key),
            Self::Nested(_) => None,
        }
    }

    /// Whether `compare` does not hold after this operation if it did before.
    fn undoes(&self, compare: &Compare) -> bool {
        match (self, compare) {
            (
                Self::Put { key, .. },
                Compare::Absent { key: of } | Compare::Modified { key: of, .. },
            )
            | (
                Self::Delete { key },
                Compare::Exists { key: of }
                | Compare::Modified { key: of, .. }
                | Compare::Created { key: of, .. },
            ) => key == of,
            (Self::Put { .. }, Compare::Exists { .. } | Compare::Created { .. })
            | (Self::Delete { .. }, Compare::Absent { .. })
            | (Self::Nested(_), _) => false,
        }
    }

    /// The operation itself, or those of the nested transaction.
    #[must_use]
    pub fn parts(&self) -> &[Self] {
        match self {
            Self::Put { .. } | Self::Delete { .. } => std::slice::from_ref(self),
            Self::Nested(txn) => &txn.then,
        }
    }
}

/// How many conditions, and how many changes, a transaction may have (etcd's `--max-txn-ops`).
/// What a nested transaction has of either counts on top of what surrounds it.
pub const MAX_OPS: usize = 128;

/// How many nested transactions fit into one that has nothing else, if each has at most 7
/// conditions and 7 changes: [`MAX_OPS`] less the longer of the two lists. etcd 3.4.23 accepts as
/// many and refuses one more.
pub const MAX_NESTED: usize = MAX_OPS - 7;

/// A transaction: if all of `compare` hold, all of `then` happen at one revision; else nothing.
/// All conditions, those of nested transactions too, are about the state before the transaction.
/// No key may be changed twice by one transaction, its nested ones included, whether their
/// conditions hold or not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Txn {
    /// The conditions.
    pub compare: Vec<Compare>,
    /// The changes.
    pub then: Vec<Op>,
}

impl Txn {
    /// What the transaction may change: its own puts and deletions, and those of its nested
    /// transactions.
    pub fn changes(&self) -> impl Iterator<Item = &Op> {
        self.then.iter().flat_map(Op::parts)
    }

    /// Whether the transaction may be sent again by who does not know whether it was run: its own
    /// changes make its own conditions fail, or it does nothing but run nested transactions of
    /// which that is true. A repetition then says that it was not committed, or that what it
    /// nests did not hold, at a revision at which the truth can be seen.
    #[must_use]
    pub fn is_guarded(&self) -> bool {
        self.undoes_itself()
            || self.then.iter().all(|op| match op {
                Op::Nested(txn) => txn.undoes_itself(),
                Op::Put { .. } | Op::Delete { .. } => false,
            })
    }

    /// Whether a change makes a condition fail for whoever comes next.
    fn undoes_itself(&self) -> bool {
        self.then.iter().any(|op| self.compare.iter().any(|compare| op.undoes(compare)))
    }
}

/// What became of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TxnReply {
    /// Whether the conditions held and the changes were made.
    pub committed: bool,
    /// The store's revision after the transaction. Who watches knows all that the transaction
    /// saw and did once the watch has reached this revision.
    pub revision: Revision,
    /// For each nested transaction, in order, whether its conditions held and its changes were
    /// made. Empty if the transaction that surrounds them was not committed.
    pub nested: Vec<bool>,
}

/// One change as a watch reports it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A key was created or modified.
    Put(KeyValue),
    /// A key was removed, by a transaction or with its lease.
    Delete {
        /// The key.
        key: String,
        /// The revision of the removal.
        modified: Revision,
    },
}

/// The changes of one or more whole revisions, in order, as a watch delivers them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// The watcher has now seen everything up to and including this revision.
    pub revision: Revision,
    /// The changes.
    pub events: Vec<Event>,
}

/// All keys under the watched prefixes at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The revision that was read.
    pub revision: Revision,
    /// The keys in ascending order.
    pub keys: Vec<KeyValue>,
}

/// Why the store did not do what it was asked. Whether a transaction took effect is unknown
/// after [`Unavailable`](StoreError::Unavailable) and no with every other error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum StoreError {
    /// No answer: no connection, no leader, or a timeout. The effect is unknown.
    #[error("the store does not answer: {0}")]
    Unavailable(String),
    /// The lease does not exist or has expired.
    #[error("lease {0} does not exist")]
    NoLease(LeaseId),
    /// The revision asked for has been compacted away; read everything again.
    #[error("revisions before {0} are compacted")]
    Compacted(Revision),
    /// The store refused the request itself (permissions, size, a key changed twice).
    #[error("the store refused the request: {0}")]
    Refused(String),
}

/// How the members of the store are, as each of them was asked by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// How many members there are.
    pub members: usize,
    /// How many of them answered.
    pub answering: usize,
    /// Whether one of those names a leader that answers.
    pub led: bool,
}

impl Health {
    /// Whether the store is seen to have no leader: a majority of its members answers, and none
    /// names a leader that answers.
    #[must_use]
    pub const fn is_leaderless(&self) -> bool {
        self.answering > self.members / 2 && !self.led
    }

    /// Whether the store has a majority that follows a leader.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.answering > self.members / 2 && self.led
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> String {
        "k".to_owned()
    }

    fn put() -> Op {
        Op::Put { key: key(), value: Vec::new(), lease: None }
    }

    fn txn(compare: &[Compare], then: &[Op]) -> Txn {
        Txn { compare: compare.to_vec(), then: then.to_vec() }
    }

    #[test]
    fn a_guarded_transaction_makes_its_own_conditions_fail() {
        let (absent, exists) = (Compare::Absent { key: key() }, Compare::Exists { key: key() });
        let modified = Compare::Modified { key: key(), at: Revision(3) };
        let created = Compare::Created { key: key(), at: Revision(3) };
        let delete = Op::Delete { key: key() };
        for (compare, puts, deletes) in [
            (&absent, true, false),
            (&exists, false, true),
            (&modified, true, true),
            (&created, false, true),
        ] {
            let compare = std::slice::from_ref(compare);
            assert_eq!(txn(compare, &[put()]).is_guarded(), puts, "{compare:?}");
            assert_eq!(txn(compare, std::slice::from_ref(&delete)).is_guarded(), deletes);
        }
        let other = Compare::Absent { key: "other".to_owned() };
        assert!(!txn(std::slice::from_ref(&other), &[put()]).is_guarded(), "of another key");
        assert!(txn(&[other, absent], &[put()]).is_guarded(), "one is enough");
        assert!(!txn(&[], &[put()]).is_guarded());
    }

    #[test]
    fn nested_transactions_guard_themselves_or_all_is_guarded() {
        let absent = || Compare::Absent { key: key() };
        let guarded = || Op::Nested(txn(&[absent()], &[put()]));
        let bare = || Op::Nested(txn(&[], &[Op::Delete { key: "x".to_owned() }]));
        assert!(txn(&[], &[guarded()]).is_guarded());
        assert!(!txn(&[], &[guarded(), bare()]).is_guarded());
        assert!(!txn(&[absent()], &[bare()]).is_guarded());
        assert!(txn(&[absent()], &[put(), bare()]).is_guarded());
    }
}
