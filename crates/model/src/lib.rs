//! Names and values that both planes share.
//!
//! Everything here is plain data: no I/O, no clock, no randomness. Each type parses from text
//! and prints the same text back, refuses what it cannot represent, and says why.

mod id;
mod name;
mod prefix;
mod time;
mod vni;

pub use id::{MeshId, NodeId, ParseIdError, WgKey};
pub use name::{NodeName, ParseNameError};
pub use prefix::{ParsePrefixError, Prefix};
pub use time::Time;
pub use vni::{ParseVniError, Vni, VniRanges};

use serde::{Deserialize, Serialize};

/// Counts versions of a configuration. Higher is newer.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Generation(pub u64);
