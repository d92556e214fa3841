//! Whether a node whose registration merely ended serves no more.
//!
//! Without a verdict it may be cut off from the store alone. Then it serves until it hears of the
//! end, or for `fence`; with a majority of the voters on its side it goes on. So whoever is to act
//! in its place waits, and leaves it alone if that majority may be there.

use selvedge_model::{NodeName, Time, Vni};

use super::Gateway;
use super::status::Right;
use crate::cache::Network;
use crate::machine::{self, Role, State};

impl Gateway {
    /// Whether a network may be claimed as far as its last owner goes. One that resigned or was
    /// convicted is no obstacle.
    pub(super) fn is_free(&mut self, vni: Vni, network: &Network, now: Time) -> bool {
        let history = self.cache.history.get(&vni).and_then(|history| history.changes.last());
        let last = network.current().or(history.map(|change| &change.owner));
        let doubtful = network.state() != State::Unassigned
            && last.is_some_and(|last| self.may_still_serve(last, now));
        let last = last.filter(|_| doubtful).cloned();
        let Some(local) = self.locals.get_mut(&vni) else { return false };
        let Some(last) = last else {
            local.vacant_since = None;
            return true;
        };
        let since = *local.vacant_since.get_or_insert(now);
        self.has_ended(vni, &last, since, now)
    }

    /// Whether a planned move is to be left as it is, although the one to come has lost its
    /// registration: it may be cut off from the store alone, and answers already.
    pub(super) fn waits_for_vanished(&mut self, vni: Vni, network: &Network, now: Time) -> bool {
        let state = network.state();
        let Some(local) = self.locals.get_mut(&vni) else { return false };
        if !state.is_migration() || network.next().is_some() {
            local.arriving = network.next().cloned();
            local.vanished_since = None;
            return false;
        }
        let answers = machine::duty(state, Role::Next).answering;
        let Some(next) = local.arriving.clone().filter(|_| answers) else { return false };
        if !self.may_still_serve(&next, now) {
            return false;
        }
        let Some(local) = self.locals.get_mut(&vni) else { return false };
        let since = *local.vanished_since.get_or_insert(now);
        !self.has_ended(vni, &next, since, now)
    }

    /// Whether a node whose registration ended at `since`, without a verdict, serves no more. If
    /// not, the network is looked at again.
    fn has_ended(&mut self, vni: Vni, name: &NodeName, since: Time, now: Time) -> bool {
        let fence = self.config.timing.fence;
        let until = since + fence;
        let outvoted = self.may_have_majority(name, since, now);
        let backed = matches!(self.title.right, Right::Majority | Right::Unknown) || !outvoted;
        let ended = now >= until && backed && !self.is_spared(name, now);
        if !ended {
            self.alarms.insert((until.max(now + fence / 4), Some(vni)));
        }
        ended
    }

    /// Whether a node whose registration ended at `since` may have a majority of the voters on its
    /// side: those that are cut off from the store with it, and those that say that they hear it. It
    /// may not know of those who have registered since it was last heard of.
    fn may_have_majority(&self, name: &NodeName, since: Time, now: Time) -> bool {
        let may_hear = |voter: &&&NodeName| {
            if ***voter == self.config.name {
                return self.liveness.hears(name, now);
            }
            **voter == name
                || !self.cache.live.contains_key(**voter)
                || self.liveness.says_it_hears(voter, name, now)
        };
        let timing = self.config.timing;
        let is_new = |voter: &&NodeName| {
            let registered = self.registered_at.get(*voter);
            registered.is_some_and(|(_, at)| *at + timing.lease + timing.fence > since)
        };
        let known: Vec<&NodeName> =
            self.electorate.voters.iter().filter(|voter| !is_new(voter)).collect();
        self.electorate.voters.len() > 2 && known.iter().filter(may_hear).count() > known.len() / 2
    }

    /// Whether a node is a voter whose registration ended without a verdict, or that came back a
    /// moment ago and is about to claim what it served.
    fn may_still_serve(&self, name: &NodeName, now: Time) -> bool {
        *name != self.config.name
            && self.electorate.voters.contains(name)
            && (!self.cache.live.contains_key(name) || self.is_returning(name, now))
            && !self.is_lost(name)
    }
}
