//! Who took a network over ahead of the verdict, and is told by the store that it is another's.
//!
//! The transaction that would have made it the owner was refused: the owner of record is back
//! before the verdict was written, or a move that had begun before was committed late. Packets come
//! here by then, so this node serves on until the one that the store names does, and goes in the
//! order of a planned move. Both serve meanwhile, for less than `fence`.

use std::time::Duration;

use selvedge_model::{NodeName, Time, Vni};

use super::{Event, Gateway};
use crate::cache::{Network, Slot};
use crate::desired::{Duty, Upstream};
use crate::kv::LeaseId;
use crate::machine::{self, Role, State};

/// The quarters of `fence` that the one whom the store names has to take its place, and that
/// routing and stations have to follow at each step of going.
const PATIENCE: u32 = 2;
/// What one does who no longer attracts, but answers those who have not heard of it.
const LEAVING: Duty = Duty { upstream: Upstream::Off, ..Duty::FULL };

/// What a node that took over ahead of the verdict knows of the one whom the store names.
#[derive(Debug, Default)]
pub(super) struct StandIn {
    /// Since when the store names one that is there.
    named_since: Option<Time>,
    /// Since when that one serves.
    serves_since: Option<Time>,
}

impl StandIn {
    /// When this node begins to go.
    fn leaves_at(&self, quarter: Duration) -> Option<Time> {
        let served = self.serves_since.map(|since| since + quarter);
        let named = self.named_since.map(|since| since + quarter * PATIENCE);
        [served, named].into_iter().flatten().min()
    }
}

impl Gateway {
    /// Serves a network on that was taken over ahead of the verdict, and hands it over; does never
    /// less than `duty`, what the store asks of this node. Returns false if there is nothing of that
    /// kind to do, or no more.
    pub(super) fn stand_in(&mut self, vni: Vni, network: &Network, duty: Duty, now: Time) -> bool {
        let named = self.rival(network).cloned();
        let serves = named.is_some() && self.is_served(network);
        let quarter = self.config.timing.fence / 4;
        let Some(local) = self.locals.get_mut(&vni) else { return false };
        if duty.answering {
            // By the store's word too.
            local.stand_in = None;
        }
        let Some(stand_in) = &mut local.stand_in else { return false };
        let since = |known: Option<Time>, holds: bool| holds.then(|| known.unwrap_or(now));
        stand_in.named_since = since(stand_in.named_since, named.is_some());
        stand_in.serves_since = since(stand_in.serves_since, serves);
        match stand_in.leaves_at(quarter) {
            Some(at) if now >= at + quarter => {
                local.stand_in = None;
                local.forget_takeover();
                self.events.push_back(Event::Lost { vni, to: named });
                return false;
            }
            Some(at) if now >= at => self.go_on_until(vni, LEAVING.with(duty), Some(at + quarter)),
            at => self.go_on_until(vni, Duty::TAKEOVER, at),
        }
        true
    }

    fn go_on_until(&mut self, vni: Vni, duty: Duty, until: Option<Time>) {
        self.alarms.extend(until.map(|at| (at, Some(vni))));
        self.want(vni, duty);
    }

    /// Whom the store names beside this node, if that one is there.
    fn rival<'a>(&self, network: &'a Network) -> Option<&'a NodeName> {
        let named = [network.next(), network.current()].into_iter().flatten();
        let there = |name: &&NodeName| self.is_known(name) && !self.is_lost(name);
        named.filter(|name| **name != self.config.name).find(there)
    }

    /// Whether one that is there does what the store has it do, by its own word: it has written its
    /// name in its present incarnation.
    fn is_served(&self, network: &Network) -> bool {
        let state = network.state();
        let answers = |role| machine::duty(state, role).answering;
        let current = network.current.as_ref().is_some_and(|slot| self.is_own(slot, &slot.value));
        let next = network
            .next
            .as_ref()
            .is_some_and(|slot| slot.value.as_ref().is_some_and(|name| self.is_own(slot, name)));
        // A takeover is done when it is written that it is.
        current && answers(Role::Current)
            || next && answers(Role::Next) && state != State::FailoverDecided
    }

    /// Whether what stands in the store was written for the present incarnation of `name`.
    fn is_own<T>(&self, slot: &Slot<T>, name: &NodeName) -> bool {
        let there = !self.is_lost(name) && *name != self.config.name;
        let under = |lease: Option<LeaseId>| lease.is_some() && lease == slot.lease;
        let live = self.cache.live.get(name);
        there && live.is_some_and(|live| under(live.lease) && slot.modified >= live.incarnation)
    }
}
