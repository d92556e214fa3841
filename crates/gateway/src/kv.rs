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
}

impl Op {
    /// The key that the operation changes.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// A transaction: if all of `compare` hold, all of `then` happen at one revision; else nothing.
/// No key may be changed twice by one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Txn {
    /// The conditions.
    pub compare: Vec<Compare>,
    /// The changes.
    pub then: Vec<Op>,
}

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TxnReply {
    /// Whether the conditions held and the changes were made.
    pub committed: bool,
    /// The store's revision after the transaction. Who watches knows all that the transaction
    /// saw and did once the watch has reached this revision.
    pub revision: Revision,
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
