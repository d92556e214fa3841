//! Planned moves: one node starts them, the others take their turns.
//!
//! The planner is whoever created [`keys::PLANNER`], under its lease. Each start compares that
//! key's creation, so that nothing an earlier planner sent late can commit; and a new planner
//! knows all that earlier ones started, because its view has reached the revision at which it
//! became the planner. So counting the moves under way bounds them, without a counter to keep.

use std::collections::{BTreeMap, BTreeSet};

use selvedge_model::{NodeName, Time, Vni};

use super::network::{View, put_next, put_state};
use super::{Event, Gateway, Pending, Purpose};
use crate::cache::Network;
use crate::keys;
use crate::kv::{Compare, LeaseId, Op, Revision, Txn};
use crate::machine::State;

/// What a planner has to know at a glance.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Networks in a planned move.
    moving: BTreeSet<Vni>,
    /// Networks whose move this node has begun to start.
    pub(super) starting: BTreeSet<Vni>,
    /// Networks that are served, but not where the placement wants them.
    misplaced: BTreeSet<Vni>,
    /// Networks whose last transaction the watch has not caught up with.
    pub(super) waiting: BTreeSet<(Revision, Vni)>,
    /// When a node joined; `None` for those that were there before this agent.
    joined: BTreeMap<NodeName, Option<Time>>,
    pub(super) campaign: Pending,
    is_planner: bool,
}

impl Plan {
    pub(super) fn note_nodes<'a>(
        &mut self,
        names: impl Iterator<Item = &'a NodeName>,
        first: bool,
        now: Time,
    ) {
        let before = std::mem::take(&mut self.joined);
        let since = |name| before.get(name).copied().unwrap_or((!first).then_some(now));
        self.joined = names.map(|name| (name.clone(), since(name))).collect();
    }

    pub(super) fn forget(&mut self, vni: Vni) {
        self.moving.remove(&vni);
        self.starting.remove(&vni);
        self.misplaced.remove(&vni);
    }

    pub(super) const fn is_planner(&self) -> bool {
        self.is_planner
    }

    pub(super) fn moving(&self) -> usize {
        self.moving.union(&self.starting).count()
    }
}

impl Gateway {
    /// Sorts a network into what is moving and what should.
    pub(super) fn note_for_plan(&mut self, vni: Vni, view: &View, network: &Network) {
        let placed = self.ring.owner(vni);
        let misplaced = view.state == State::Idle
            && view.there.current
            && placed.is_some_and(|placed| Some(placed) != network.current());
        set_member(&mut self.plan.moving, vni, view.state.is_migration());
        set_member(&mut self.plan.misplaced, vni, misplaced);
    }

    /// Campaigns for the planner's lease, or plans if this node holds it.
    pub(super) fn make_plan(&mut self, now: Time) {
        let (Some(incarnation), Some(lease)) = (self.registered, self.lease) else {
            return self.set_planner(None);
        };
        let held = self.cache.planner.as_ref().filter(|planner| planner.name == self.config.name);
        let since = held.filter(|planner| planner.lease == Some(lease)).map(|held| held.since);
        self.set_planner(since);
        match since {
            Some(since) => self.start_moves(incarnation, since, now),
            None => self.campaign(incarnation, lease, now),
        }
    }

    fn set_planner(&mut self, since: Option<Revision>) {
        if self.plan.is_planner != since.is_some() {
            self.plan.is_planner = since.is_some();
            self.events.push_back(Event::Planner(since.is_some()));
        }
    }

    fn campaign(&mut self, incarnation: Revision, lease: LeaseId, now: Time) {
        if !self.plan.campaign.is_free(self.cache.revision, now) {
            return;
        }
        let key = keys::PLANNER.to_owned();
        let vacant = match &self.cache.planner {
            None => Compare::Absent { key: key.clone() },
            // An earlier run of this very node.
            Some(held) if held.name == self.config.name => {
                Compare::Created { key: key.clone(), at: held.since }
            }
            Some(_) => return,
        };
        let mut compare = vec![vacant];
        compare.extend(self.own_guard(incarnation));
        let value = self.config.name.as_str().into();
        let then = vec![Op::Put { key, value, lease: Some(lease) }];
        self.plan.campaign = Pending::Sent;
        self.send(Purpose::Campaign, Txn { compare, then });
    }

    /// Starts as many moves as the budget allows.
    fn start_moves(&mut self, incarnation: Revision, since: Revision, now: Time) {
        let mut free = self.config.budget.saturating_sub(self.plan.moving());
        let mut after = None;
        while free > 0 {
            let next = self.plan.misplaced.iter().find(|vni| after.is_none_or(|a| **vni > a));
            let Some(vni) = next.copied() else { return };
            after = Some(vni);
            if self.start_move(vni, incarnation, since, now) {
                free -= 1;
            }
        }
    }

    fn start_move(&mut self, vni: Vni, incarnation: Revision, since: Revision, now: Time) -> bool {
        let (Some(network), Some(target)) =
            (self.cache.networks.get(&vni).cloned(), self.ring.owner(vni).cloned())
        else {
            return false;
        };
        let free =
            self.locals.get(&vni).is_some_and(|l| l.pending.is_free(self.cache.revision, now));
        if !free || self.is_held_down(vni, &network, &target, now) {
            return false;
        }
        let Some(lease) = self.lease_of(&target) else { return false };
        let planner = Compare::Created { key: keys::PLANNER.to_owned(), at: since };
        let next = put_next(vni, Some((&target, lease)));
        let then = vec![put_state(vni, State::MigrationDecided), next];
        self.plan.starting.insert(vni);
        self.write(vni, incarnation, &network, vec![planner], then);
        true
    }

    /// Whether the target has only just come back. An owner that wants to go does not wait.
    fn is_held_down(&mut self, vni: Vni, network: &Network, target: &NodeName, now: Time) -> bool {
        let owner_stays = network.current().is_some_and(|c| self.cache.nodes.contains_key(c));
        let joined = self.plan.joined.get(target).copied().flatten();
        let until = joined.map(|at| at + self.config.hold_down);
        match until.filter(|until| owner_stays && now < *until) {
            Some(until) => {
                self.alarms.insert((until, vni));
                true
            }
            None => false,
        }
    }

    /// The lease that a node's keys hang on.
    fn lease_of(&self, name: &NodeName) -> Option<LeaseId> {
        let live = self.cache.live.get(name).map(|live| live.lease);
        live.or_else(|| self.cache.nodes.get(name).map(|node| node.lease)).flatten()
    }

    /// Whether everything has been handed over, after the word to leave.
    pub(super) fn check_left(&mut self, now: Time) {
        if !self.leaving || self.left {
            return;
        }
        if self.registered.is_some() && self.ring.is_empty() {
            let mine: Vec<Vni> = self.owned().filter(|vni| self.is_idle(*vni, now)).collect();
            for vni in mine {
                self.resign_network(vni);
            }
        }
        if self.owned().next().is_none() {
            self.left = true;
            self.events.push_back(Event::Left);
        }
    }

    fn is_idle(&self, vni: Vni, now: Time) -> bool {
        self.locals.get(&vni).is_some_and(|l| l.pending.is_free(self.cache.revision, now))
    }
}

fn set_member(set: &mut BTreeSet<Vni>, vni: Vni, member: bool) {
    if member {
        set.insert(vni)
    } else {
        set.remove(&vni)
    };
}
