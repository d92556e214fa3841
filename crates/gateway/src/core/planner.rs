//! Planned moves: one node starts them, the others take their turns.
//!
//! The planner is whoever holds [`keys::PLANNER`] under its lease. That key is the budget too:
//! each start compares its revision and writes it anew, so that starts happen one after the
//! other. A start therefore knows of all starts before it, its own unanswered ones and those of
//! earlier planners included, or it is refused; and so counting the moves under way bounds them.

use std::collections::{BTreeMap, BTreeSet};

use selvedge_model::{NodeName, Time, Vni};

use super::network::{View, guard, put_next, put_state};
use super::{Event, Gateway, Pending, Purpose};
use crate::cache::{Network, Planner};
use crate::keys;
use crate::kv::{Compare, LeaseId, Op, Revision, Txn};
use crate::machine::State;

/// How many moves one transaction starts at most; stores bound the length of transactions.
const BATCH: usize = 20;

/// Where a network that is served should be instead. The urgent ones come first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Wish {
    /// Whether the owner may keep networks. One that drains does not wait for anybody.
    owner_stays: bool,
    target: NodeName,
}

/// What a planner has to know at a glance.
#[derive(Debug, Default)]
pub(super) struct Plan {
    wishes: BTreeMap<Vni, Wish>,
    /// The same, by wish.
    queue: BTreeMap<Wish, BTreeSet<Vni>>,
    /// When a node joined; `None` for those that were there before this agent.
    joined: BTreeMap<NodeName, Option<Time>>,
    pub(super) campaign: Pending,
    pub(super) start: Pending,
    is_planner: bool,
}

impl Plan {
    /// Takes in who may be given networks. What is there at first has been there for long.
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
        self.set_wish(vni, None);
    }

    pub(super) const fn is_planner(&self) -> bool {
        self.is_planner
    }

    fn set_wish(&mut self, vni: Vni, wish: Option<Wish>) {
        if self.wishes.get(&vni) == wish.as_ref() {
            return;
        }
        if let Some(before) = self.wishes.remove(&vni)
            && let Some(queue) = self.queue.get_mut(&before)
        {
            queue.remove(&vni);
        }
        if let Some(wish) = wish {
            self.queue.entry(wish.clone()).or_default().insert(vni);
            self.wishes.insert(vni, wish);
        }
    }
}

impl Gateway {
    /// Sorts a network into those that should be elsewhere, or not.
    pub(super) fn note_for_plan(&mut self, vni: Vni, view: &View, network: &Network) {
        let served = view.state == State::Idle && view.there.current;
        let owner = network.current().filter(|_| served);
        let wish = owner.zip(self.ring.owner(vni)).filter(|(owner, target)| owner != target);
        let wish = wish.map(|(owner, target)| Wish {
            owner_stays: self.plan.joined.contains_key(owner),
            target: target.clone(),
        });
        self.plan.set_wish(vni, wish);
    }

    /// Campaigns for the planner's key, or plans if this node holds it.
    pub(super) fn make_plan(&mut self, now: Time) {
        let (Some(incarnation), Some(lease)) = (self.incarnation(), self.lease) else {
            return self.set_planner(false);
        };
        let key = self.cache.planner.clone();
        let held = key.as_ref().filter(|held| held.lease == Some(lease));
        self.set_planner(held.is_some());
        match (held, key.as_ref()) {
            (Some(held), _) => self.start_moves(incarnation, lease, held.modified, now),
            (None, key) if self.is_vacant(key) => self.campaign(incarnation, lease, key, now),
            (None, _) => {}
        }
    }

    fn set_planner(&mut self, is_planner: bool) {
        if self.plan.is_planner != is_planner {
            self.plan.is_planner = is_planner;
            self.events.push_back(Event::Planner(is_planner));
        }
    }

    /// Whether nobody plans: the key is an earlier run's of this very node, that of one that is
    /// convicted, whose starts are refused from then on, or makes no sense.
    fn is_vacant(&self, key: Option<&Planner>) -> bool {
        key.is_none_or(|held| {
            let idle = |name: &NodeName| *name == self.config.name || self.cache.is_struck(name);
            held.value.as_ref().is_none_or(idle) || held.lease.is_none()
        })
    }

    fn campaign(
        &mut self,
        incarnation: Revision,
        lease: LeaseId,
        found: Option<&Planner>,
        now: Time,
    ) {
        if !self.plan.campaign.is_free(self.cache.revision, now) {
            return;
        }
        let key = keys::PLANNER.to_owned();
        let vacant = match found {
            None => Compare::Absent { key },
            Some(found) => Compare::Modified { key, at: found.modified },
        };
        let mut compare = vec![vacant];
        compare.extend(self.own_guard(incarnation));
        let then = vec![self.put_planner(lease)];
        self.plan.campaign = Pending::Sent;
        self.send(Purpose::Campaign, Txn { compare, then });
    }

    fn put_planner(&self, lease: LeaseId) -> Op {
        let value = self.config.name.as_str().into();
        Op::Put { key: keys::PLANNER.to_owned(), value, lease: Some(lease) }
    }

    /// Starts as many moves as the budget allows.
    fn start_moves(&mut self, incarnation: Revision, lease: LeaseId, held: Revision, now: Time) {
        let free = self.config.budget.saturating_sub(self.cache.moving.len()).min(BATCH);
        if free == 0 || !self.plan.start.is_free(self.cache.revision, now) {
            return;
        }
        let chosen = self.choose(free, now);
        if chosen.is_empty() {
            return;
        }
        let mut compare = vec![Compare::Modified { key: keys::PLANNER.to_owned(), at: held }];
        compare.extend(self.own_guard(incarnation));
        let mut then = vec![self.put_planner(lease)];
        for (vni, target, lease) in chosen {
            if let Some(network) = self.cache.networks.get(&vni) {
                compare.extend(guard(vni, network));
                then.push(put_state(vni, State::MigrationDecided));
                then.push(put_next(vni, Some((&target, lease))));
            }
        }
        self.plan.start = Pending::Sent;
        self.send(Purpose::Start, Txn { compare, then });
    }

    /// The next moves to start, with the lease of each one's target.
    fn choose(&mut self, count: usize, now: Time) -> Vec<(Vni, NodeName, LeaseId)> {
        let mut chosen = Vec::new();
        for (wish, vnis) in &self.plan.queue {
            let Some(lease) = self.lease_of(&wish.target) else { continue };
            // What was wished for before it left the ring is not yet forgotten.
            let Some(joined) = self.plan.joined.get(&wish.target) else { continue };
            let until = self.held_down_until(wish, *joined).filter(|until| now < *until);
            if let Some(until) = until.filter(|_| !vnis.is_empty()) {
                self.alarms.insert((until, None));
                continue;
            }
            let left = count - chosen.len();
            chosen.extend(vnis.iter().take(left).map(|vni| (*vni, wish.target.clone(), lease)));
        }
        chosen
    }

    /// Until when a target that has `joined` only just is left alone.
    fn held_down_until(&self, wish: &Wish, joined: Option<Time>) -> Option<Time> {
        joined.filter(|_| wish.owner_stays).map(|joined| joined + self.config.hold_down)
    }

    /// The lease that a node's keys hang on.
    fn lease_of(&self, name: &NodeName) -> Option<LeaseId> {
        let live = self.cache.live.get(name).and_then(|live| live.lease);
        live.or_else(|| self.cache.nodes.get(name).map(|node| node.lease))
    }

    /// Whether the roster says that this node has left, as far as it can still be written.
    fn has_told_the_roster(&self) -> bool {
        let entry = self.cache.roster.get(&self.config.name);
        self.incarnation().is_none() || entry.is_none_or(|entry| entry.value.left)
    }

    /// Whether everything has been handed over, after the word to leave.
    pub(super) fn check_left(&mut self) {
        if !self.leaving || self.left {
            return;
        }
        // What a host of the same name has is not this one's to hand over.
        let taken = matches!(self.standing, super::Standing::NameTaken { .. });
        // Nor is what makes no sense: nobody could take it.
        if taken || self.has_nothing_left() && self.has_told_the_roster() {
            self.left = true;
            self.events.push_back(Event::Left);
        }
    }
}
