//! What a store that was emptied, or restored from an old backup, has to say so that all go on.

use std::collections::BTreeMap;

use selvedge_model::{NodeName, Time, Vni};

use super::Gateway;
use super::network::put_state;
use super::registration::put_json;
use crate::cache::{History, Network};
use crate::keys;
use crate::kv::{Op, Revision};
use crate::machine::State;

/// For how many lives of a lease those whom a store has forgotten are still told that they are
/// registered: they look for it every two seconds. Their networks are left alone for twice as long,
/// because others may have read it later.
const AMNESTY: u32 = 3;

/// Those who were registered in the former store, of which the present one knows nobody.
#[derive(Clone, Debug)]
pub(super) struct Forgotten {
    registrations: BTreeMap<NodeName, Revision>,
    since: Time,
}

impl Gateway {
    /// What the store held when it was last read, as far as no lease kept it: who takes part, and
    /// who owned each network; and the revision as of which that was so. `None` if this run has
    /// not read it.
    ///
    /// To those who read it, it looks like a store that was away until all leases had ended: who
    /// served a network claims it anew, and the others leave it alone for as long as that one may
    /// still serve.
    #[must_use]
    pub fn refill(&self) -> Option<(Revision, Vec<Op>)> {
        if !self.synced {
            return None;
        }
        let roster = self.cache.roster.iter();
        let roster = roster.map(|(name, slot)| put_json(keys::roster(name), &slot.value, None));
        let networks = self.cache.networks.iter();
        let networks = networks.filter(|(vni, _)| !self.cache.is_blocked(**vni));
        let networks = networks.filter_map(|(vni, network)| self.owned(*vni, network)).flatten();
        Some((self.cache.revision, roster.chain(networks).collect()))
    }

    /// Who is registered as what.
    pub(super) fn registrations(&self) -> BTreeMap<NodeName, Revision> {
        let live = self.cache.live.iter();
        live.map(|(name, live)| (name.clone(), live.incarnation)).collect()
    }

    /// Takes note if of several registrations not one is left: then it is the store that has lost
    /// them, and not each of them its lease.
    pub(super) fn note_forgotten(&mut self, before: BTreeMap<NodeName, Revision>, now: Time) {
        let stands = |(name, at): (&NodeName, &Revision)| {
            self.cache.live.get(name).is_some_and(|live| live.incarnation == *at)
        };
        if before.len() > 1 && !before.iter().any(stands) {
            self.forgotten = Some(Forgotten { registrations: before, since: now });
        }
    }

    /// What a node was registered as in the former store, while it is given time to read the present
    /// one and to register there.
    pub(super) fn forgotten(&self, name: &NodeName, now: Time) -> Option<Revision> {
        self.forgotten_within(AMNESTY, name, now)
    }

    /// Whether a node may be serving because others, or this one, take it for registered still.
    pub(super) fn is_spared(&self, name: &NodeName, now: Time) -> bool {
        let says = |voter: &NodeName| self.liveness.says_it_hears(voter, name, now);
        self.forgotten_within(2 * AMNESTY, name, now).is_some()
            && (self.liveness.hears(name, now) || self.electorate.voters.iter().any(says))
    }

    /// What this node was registered as in the former store, if it is not in the present one yet.
    pub(super) fn was_forgotten_as(&self) -> Option<Revision> {
        self.forgotten.as_ref()?.registrations.get(&self.config.name).copied()
    }

    /// This node is registered again.
    pub(super) fn forget_own(&mut self) {
        if let Some(forgotten) = &mut self.forgotten {
            forgotten.registrations.remove(&self.config.name);
        }
    }

    /// Whether one that the store had forgotten has registered a moment ago.
    pub(super) fn is_returning(&self, name: &NodeName, now: Time) -> bool {
        let lease = self.config.timing.lease;
        let recent = |(_, at): &(Revision, Time)| now < *at + lease;
        self.forgotten_within(2 * AMNESTY, name, now).is_some()
            && self.registered_at.get(name).is_some_and(recent)
    }

    fn forgotten_within(&self, lives: u32, name: &NodeName, now: Time) -> Option<Revision> {
        let end = |it: &&Forgotten| it.since + self.config.timing.lease * lives;
        let forgotten = self.forgotten.as_ref().filter(|it| now < end(it))?;
        forgotten.registrations.get(name).copied()
    }

    /// That a network has had this owner, who is gone for the time being.
    fn owned(&self, vni: Vni, network: &Network) -> Option<[Op; 2]> {
        let known = self.cache.history.get(&vni).cloned().unwrap_or_default();
        let history = match network.current() {
            Some(owner) => known.up_to(owner),
            None => known,
        };
        history.changes.last()?;
        let history = put_json(keys::history(vni), &history, None);
        Some([put_state(vni, State::Idle), history])
    }
}

impl History {
    /// With this owner as the last; the predecessor's changes are not recorded.
    fn up_to(self, owner: &NodeName) -> Self {
        match self.changes.last() {
            Some(last) if last.owner == *owner => self,
            last => {
                let at_ms = last.map_or(0, |last| last.at_ms);
                self.with(owner.clone(), "found in the store".to_owned(), at_ms)
            }
        }
    }
}
