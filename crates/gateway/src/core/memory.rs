//! What a run of the agent leaves to the next one on its host.
//!
//! An agent that is started while the store is away finds its host serving, as the run before left
//! it. Whether that is still right the other voters know: until it is registered itself, it asks
//! them in the name of the run before, and falls silent like anybody who has no word of a majority.
//! How that run voted it does not know; so it confirms nobody meanwhile ([`Answer::Unsure`]).
//!
//! [`Answer::Unsure`]: crate::probe::Answer::Unsure

use std::collections::BTreeMap;

use selvedge_model::{NodeName, Time};
use serde::{Deserialize, Serialize};

use super::Gateway;
use crate::cache::RosterValue;
use crate::kv::Revision;

/// What a run leaves to the next one: who it was, and whom to ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// The revision of the store at which this was so.
    pub revision: Revision,
    /// What the run was registered as.
    pub incarnation: Revision,
    /// All nodes of the roster, itself included.
    pub nodes: BTreeMap<NodeName, Remembered>,
}

/// A node as a former run knew it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// What it was registered as.
    pub incarnation: Option<Revision>,
    /// Its entry in the roster.
    pub roster: RosterValue,
}

impl Gateway {
    /// Tells one state of [`memory`](Self::memory) from another; `None` while there is none.
    #[must_use]
    pub fn memory_version(&self) -> Option<(Revision, Revision)> {
        Some((self.incarnation()?, self.cache.nodes_revision))
    }

    /// What the next run on this host should know, if this one is registered. The driver keeps it.
    #[must_use]
    pub fn memory(&self) -> Option<Memory> {
        let (incarnation, revision) = self.memory_version()?;
        let remembered = |(name, roster): (&NodeName, _)| {
            let incarnation = self.cache.live.get(name).map(|live| live.incarnation);
            (name.clone(), Remembered { incarnation, roster })
        };
        let roster = self.cache.roster.iter().map(|(name, slot)| (name, slot.value.clone()));
        Some(Memory { revision, incarnation, nodes: roster.map(remembered).collect() })
    }

    /// Takes in what the run before has left, before anything else. That of a host with another
    /// identity is ignored.
    pub fn recall(&mut self, memory: Memory, now: Time) {
        let own = memory.nodes.get(&self.config.name);
        if self.synced || own.is_none_or(|own| own.roster.identity != self.config.identity) {
            return;
        }
        self.recalled = Some(memory.incarnation);
        self.last_incarnation = self.recalled;
        self.cache.recall(memory);
        self.voters_changed();
        self.run(now);
    }

    /// The incarnation in whose name this node asks the others: its own; until it has one, that of the
    /// run before, or the one that the store has forgotten.
    pub(super) fn spoken_for(&self) -> Option<Revision> {
        self.incarnation().or(self.recalled).or_else(|| self.was_forgotten_as())
    }
}
