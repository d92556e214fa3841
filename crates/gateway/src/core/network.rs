//! One network: what this host shall do for it, and which transaction is this node's to write.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use selvedge_model::{NodeName, Time, Vni};

use super::registration::put_json;
use super::standin::StandIn;
use super::{CATCH_UP, Event, Gateway, Pending, Purpose, Reason};
use crate::cache::Network;
use crate::desired::{Desired, Duty, Upstream};
use crate::keys::{self, Field};
use crate::kv::{Compare, LeaseId, MAX_NESTED, Op, Revision, Txn, TxnReply};
use crate::machine::{self, Presence, Role, State, Step, Wait};

/// For how long the more-specific routes of a new owner stay: until the routes of the one before
/// have aged out of any routing protocol with its usual timers.
const HALVES: Duration = Duration::from_secs(30);
/// The same after a planned move, where the one before has withdrawn its routes: until that has
/// reached everybody. The shorter this is, the sooner a successor has routes that are more
/// specific than ours, if this gateway is lost in its turn.
const HALVES_AFTER_MOVE: Duration = Duration::from_secs(5);
/// For how long after a takeover the announcements are repeated every second.
const FRESH: Duration = Duration::from_secs(10);
/// When else the announcements of a takeover are repeated.
const ECHOES: [Duration; 2] = [Duration::from_millis(200), Duration::from_millis(700)];
/// For how long a takeover is remembered, and when it is announced again if a gateway is back.
const MEMORY: Duration = Duration::from_secs(120);
const REMINDERS: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_millis(1000),
];
/// How many steps one transaction carries at most: the bound of the store, less what this node
/// compares for all of them.
const STEPS: usize = MAX_NESTED - 20;
/// How many transactions of steps are under way at most. A store that is given thousands of
/// networks at once falls behind, and then its members hold each other for lost.
const WINDOW: usize = 4;
/// For how long a gateway that is named but not registered counts as there: it may be about to
/// register anew.
const ORPHAN: Duration = Duration::from_secs(3);

/// What this node remembers of a network beside what the store says.
#[derive(Debug, Default)]
pub(super) struct Local {
    /// What the applier was told; `None` until this node knows what to ask for.
    desired: Option<Desired>,
    /// The duty that the applier last reported as reached.
    reached: Option<Duty>,
    /// Since when that is the desired one.
    reached_at: Option<Time>,
    /// The announcements that it reported.
    announced: u64,
    /// The state and role when it was last looked at.
    seen: Option<(State, Role)>,
    /// The state and role for which an announcement was last considered.
    entered: Option<(State, Role)>,
    /// Whether this node is, or was last, the owner.
    served: bool,
    /// When this node took over from a lost gateway.
    took_over: Option<Time>,
    /// Until when it attracts traffic by more-specific routes, as a new owner.
    halves_until: Option<Time>,
    /// Since when a gateway is named here that is not registered.
    orphaned: Option<Time>,
    /// Whether this node has given the network up without a successor.
    pub(super) resigned: bool,
    /// Who takes it over from a gateway that is presumed to be lost. That stays until the verdict
    /// is committed, so that no third one takes it over from the second.
    heir: Option<NodeName>,
    /// Whether this node took it over so, and what it knows of others that the store names.
    pub(super) stand_in: Option<StandIn>,
    /// Since when it has no owner whose registration stands.
    pub(super) vacant_since: Option<Time>,
    /// Who comes, or was to come, in the planned move under way; since when its registration does
    /// not stand.
    pub(super) arriving: Option<NodeName>,
    pub(super) vanished_since: Option<Time>,
    pub(super) pending: Pending,
}

impl Local {
    pub(super) fn applied(&mut self, desired: Desired, now: Time) {
        self.announced = self.announced.max(desired.announce);
        self.reached = Some(desired.duty);
        if self.desired.is_some_and(|wanted| wanted.duty == desired.duty) {
            self.reached_at.get_or_insert(now);
        }
    }

    /// Whether it took over a moment ago, so that it announces itself every second.
    pub(super) fn is_fresh(&self, now: Time) -> bool {
        self.took_over.is_some_and(|at| now.since(at) < FRESH)
    }

    pub(super) const fn forget_takeover(&mut self) {
        self.took_over = None;
        self.halves_until = None;
    }

    pub(super) const fn desired(&self) -> Option<Desired> {
        self.desired
    }

    pub(super) const fn reached(&self) -> Option<Duty> {
        self.reached
    }

    /// When what comes before a step will have been done; `None` if that is not known yet.
    fn done_at(&self, wait: Wait, settle: Duration) -> Option<Time> {
        let wanted = self.desired?;
        match wait {
            Wait::None => Some(Time::ZERO),
            Wait::Duty => self.reached_at,
            Wait::Settle => self.reached_at.map(|at| at + settle),
            Wait::Announced => self.reached_at.filter(|_| self.announced >= wanted.announce),
        }
    }
}

/// A network as this node sees it.
pub(super) struct View {
    pub(super) state: State,
    role: Role,
    pub(super) there: Presence,
    /// Whether the store names this node, but by the word of an earlier incarnation.
    stale: bool,
    /// Whether a gateway that the store names is presumed to be lost, without a verdict yet.
    presumptive: bool,
}

impl Gateway {
    /// Looks at one network and does what is this node's to do.
    pub(super) fn look_at(&mut self, vni: Vni, now: Time) {
        if self.cache.is_blocked(vni) {
            self.plan.forget(vni);
            return self.withdraw_if_resigned(vni);
        }
        let network = self.cache.networks.get(&vni).cloned().unwrap_or_default();
        let view = self.view(vni, &network, now);
        // The planner plans for all, also for what it cannot serve itself.
        self.note_for_plan(vni, &view, &network);
        if !self.locals.contains_key(&vni) {
            return;
        }
        self.note_change(vni, &view, &network, now);
        let mut step = machine::step(view.state, view.role, view.there);
        if step == Step::Claim
            && !(self.may_claim(vni, view.role) && self.is_free(vni, &network, now))
        {
            step = Step::Rest;
        }
        self.resign_if_alone(vni);
        self.set_duty(vni, &view, &network, step, now);
        self.take_step(vni, &view, &network, step, now);
    }

    /// Asks for one announcement more, if the network is served here.
    pub(super) fn announce(&mut self, vni: Vni) {
        let Some(local) = self.locals.get_mut(&vni) else { return };
        if let Some(desired) = local.desired.as_mut().filter(|desired| desired.duty.answering) {
            desired.announce += 1;
            self.desired.insert(vni, *desired);
        }
    }

    /// Takes in what became of steps that were sent together.
    pub(super) fn note_steps(&mut self, vnis: &[Vni], reply: Option<TxnReply>, pending: Pending) {
        let nested = reply.map(|reply| (reply.committed, reply.revision, reply.nested));
        for (at, vni) in vnis.iter().enumerate() {
            let pending = match (&nested, pending) {
                // The step was refused although the others were taken.
                (Some((true, revision, done)), Pending::Committed(..))
                    if !done.get(at).copied().unwrap_or(true) =>
                {
                    Pending::Refused(*revision, self.looked_at + CATCH_UP)
                }
                (_, pending) => pending,
            };
            self.set_pending(*vni, pending);
        }
    }

    fn set_pending(&mut self, vni: Vni, pending: Pending) {
        self.alarms.extend(pending.wakes_at().map(|at| (at, Some(vni))));
        if let Pending::Refused(revision, _) = pending {
            self.waiting.insert((revision, vni));
        }
        if let Some(local) = self.locals.get_mut(&vni) {
            local.pending = pending;
            self.dirty.insert(vni);
        }
    }

    /// Looks again at networks whose last transaction was refused: now it is known why.
    pub(super) fn wake_waiting(&mut self) {
        while let Some((revision, vni)) = self.waiting.first().copied() {
            if revision > self.cache.revision {
                return;
            }
            self.waiting.remove(&(revision, vni));
            self.dirty.insert(vni);
        }
    }

    /// Names who takes a network over from a gateway that is presumed to be lost. Returns whether
    /// it is this node.
    pub(super) fn name_heir(&mut self, vni: Vni) -> bool {
        let network = self.cache.networks.get(&vni).cloned().unwrap_or_default();
        let there = |name: &&NodeName| self.is_known(name) && !self.is_lost(name);
        let moving = network.state().is_migration() || network.state() == State::FailoverDecided;
        let next = network.next().filter(|_| moving).filter(there);
        let heir = next.or_else(|| self.ring.owner(vni)).cloned();
        let mine = heir.as_ref() == Some(&self.config.name);
        let before = self.locals.get(&vni).and_then(|local| local.heir.as_ref());
        // An heir that an operator has given up is none, with no store to say so.
        let vacant = before.is_none_or(|heir| self.is_forced(heir));
        match self.locals.get_mut(&vni) {
            Some(local) if vacant => local.heir = heir,
            Some(_) | None => {}
        }
        mine && self.locals.contains_key(&vni)
    }

    /// The networks that a node was to take over.
    pub(super) fn inherited_by(&self, name: &NodeName) -> Vec<Vni> {
        let heir = |local: &Local| local.heir.as_ref() == Some(name);
        self.locals.iter().filter(|(_, local)| heir(local)).map(|(vni, _)| *vni).collect()
    }

    /// Whether an owner or owner to be is presumed to be lost: there is no verdict yet.
    fn is_presumptive(&self, network: &Network) -> bool {
        [network.current(), network.next()].into_iter().flatten().any(|name| self.is_presumed(name))
    }

    /// Takes the network over ahead of the verdict, if it falls to this node.
    fn inherit(&mut self, vni: Vni, now: Time) {
        let me = &self.config.name;
        let Some(local) = self.locals.get_mut(&vni) else { return };
        if local.heir.as_ref() != Some(me) || local.resigned {
            return;
        }
        if local.took_over.is_none() {
            local.took_over = Some(now);
            self.echo(vni, now);
            self.attract_by_halves(vni, now + HALVES);
        }
        if let Some(local) = self.locals.get_mut(&vni) {
            local.stand_in = Some(StandIn::default());
        }
        self.want(vni, Duty::TAKEOVER);
    }

    /// Announces what was taken over lately: a gateway is back that may have answered for it, or
    /// let its kernel do so.
    pub(super) fn remind_stations(&mut self, now: Time) {
        let recent = |local: &Local| local.took_over.is_some_and(|at| now.since(at) < MEMORY);
        let taken = self.locals.iter().filter(|(_, local)| recent(local)).map(|(vni, _)| *vni);
        let echoes = taken.flat_map(|vni| REMINDERS.map(|after| (now + after, vni)));
        self.echoes.extend(echoes);
    }

    /// Repeats the announcement soon: what was lost is not missed until the next second.
    fn echo(&mut self, vni: Vni, now: Time) {
        self.echoes.extend(ECHOES.map(|after| (now + after, vni)));
    }

    fn attract_by_halves(&mut self, vni: Vni, until: Time) {
        if let Some(local) = self.locals.get_mut(&vni) {
            local.halves_until = local.halves_until.max(Some(until));
            self.alarms.insert((until, Some(vni)));
        }
    }

    /// Gives all networks up without a successor: others may claim them at once. Those are among
    /// them that this host still serves although the store names nobody.
    pub(super) fn resign_all(&mut self) {
        let named: BTreeSet<Vni> = self.cache.named(&self.config.name).collect();
        for (vni, local) in &mut self.locals {
            let busy = local.desired.is_some_and(|desired| desired.duty != Duty::NONE);
            if busy || named.contains(vni) {
                local.resigned = true;
                self.dirty.insert(*vni);
            }
        }
    }

    /// Nobody acts on a network whose keys make no sense, but a host that stops falls silent.
    fn withdraw_if_resigned(&mut self, vni: Vni) {
        if self.locals.get(&vni).is_some_and(|local| local.resigned) {
            self.want(vni, Duty::NONE);
        }
    }

    /// Without anybody to hand over to, a node that leaves gives a network up.
    fn resign_if_alone(&mut self, vni: Vni) {
        let alone = self.leaving && self.ring.owner(vni).is_none();
        if let Some(local) = self.locals.get_mut(&vni) {
            local.resigned |= alone;
        }
    }

    fn view(&mut self, vni: Vni, network: &Network, now: Time) -> View {
        let state = network.state();
        let grace = self.orphans_count(vni, network, now);
        let vanished = self.waits_for_vanished(vni, network, now);
        let (current, next) = (network.current(), network.next());
        let there = Presence {
            current: self.is_there(current, grace),
            // One that is to take over from itself is nobody to wait for, except to finish.
            next: vanished
                || (self.is_there(next, grace)
                    && (current != next || state == State::FailoverDecided)),
        };
        let role = self.role(network);
        let (stale, presumptive) = (self.is_stale(network, role), self.is_presumptive(network));
        if let Some(local) = self.locals.get_mut(&vni).filter(|_| !presumptive) {
            local.heir = None;
        }
        View { state, role, there, stale, presumptive }
    }

    /// What an earlier incarnation was entitled to has to be written anew by this one.
    fn is_stale(&self, network: &Network, role: Role) -> bool {
        let slot = match role {
            Role::Current => network.current.as_ref().map(|slot| (slot.lease, slot.modified)),
            Role::Next => network.next.as_ref().map(|slot| (slot.lease, slot.modified)),
            Role::Other => return false,
        };
        let since = self.incarnation();
        slot.is_none_or(|(lease, written)| {
            lease != self.lease || since.is_none_or(|since| written < since)
        })
    }

    fn role(&self, network: &Network) -> Role {
        let me = Some(&self.config.name);
        let (owns, follows) = (network.current() == me, network.next() == me);
        let takes_over = follows && network.state() == State::FailoverDecided;
        if self.is_barred() || !(owns || follows) {
            return Role::Other;
        }
        if owns && !takes_over { Role::Current } else { Role::Next }
    }

    /// Whether a gateway that the store names is there: it is not convicted, and known.
    fn is_there(&self, name: Option<&NodeName>, orphans_count: bool) -> bool {
        name.is_some_and(|name| !self.is_lost(name) && (orphans_count || self.is_known(name)))
    }

    /// Whether gateways that are named but not registered still count as there.
    fn orphans_count(&mut self, vni: Vni, network: &Network, now: Time) -> bool {
        let names = [network.current(), network.next()];
        let orphans = names.into_iter().flatten().any(|name| !self.is_known(name));
        let Some(local) = self.locals.get_mut(&vni) else { return true };
        if !orphans {
            local.orphaned = None;
            return true;
        }
        let until = *local.orphaned.get_or_insert(now) + ORPHAN;
        if now < until {
            self.alarms.insert((until, Some(vni)));
        }
        now < until
    }

    /// Reports what has changed since this network was last looked at.
    fn note_change(&mut self, vni: Vni, view: &View, network: &Network, now: Time) {
        let Some(local) = self.locals.get_mut(&vni) else { return };
        let entered = (view.state, view.role);
        let before = local.seen.replace(entered);
        if let Some((from, _)) = before.filter(|(from, _)| *from != view.state) {
            self.events.push_back(Event::State { vni, from, to: view.state });
        }
        if before != Some(entered) && takes_over(before, entered) {
            // Where nobody was before there are no routes to beat, and no other answers.
            let first = network.current().is_none() && !self.cache.history.contains_key(&vni);
            if !first || self.predecessor {
                local.took_over = Some(now);
            }
            self.echo(vni, now);
            self.attract_by_halves(vni, now + if first { HALVES_AFTER_MOVE } else { HALVES });
        }
        if before != Some(entered) && arrives(before, entered) {
            self.attract_by_halves(vni, now + HALVES_AFTER_MOVE);
        }
        self.note_owner(vni, view, network, before);
    }

    /// Reports a network that has come to this node, or left it. The owner may have changed
    /// although neither the state nor this node's role has.
    fn note_owner(
        &mut self,
        vni: Vni,
        view: &View,
        network: &Network,
        before: Option<(State, Role)>,
    ) {
        let Some(local) = self.locals.get_mut(&vni) else { return };
        let owns = view.role == Role::Current;
        if owns && !local.served {
            local.served = true;
            let changes = self.cache.history.get(&vni).map(|history| history.changes.as_slice());
            let reason = changes.and_then(<[_]>::last).map(|change| change.reason.clone());
            let reason = reason.unwrap_or_default();
            let planned = before.is_some_and(|(state, _)| state.is_migration());
            self.events.push_back(Event::Gained { vni, planned, reason });
        } else if !owns && local.served && network.current().is_some() {
            local.served = false;
            local.forget_takeover();
            let to = network.current().filter(|current| **current != self.config.name);
            self.events.push_back(Event::Lost { vni, to: to.cloned() });
        }
    }

    /// Whether a network that nobody has is this node's to claim.
    fn may_claim(&self, vni: Vni, role: Role) -> bool {
        let me = &self.config.name;
        let local = self.locals.get(&vni);
        if self.incarnation().is_none() || local.is_some_and(|local| local.resigned) {
            return false;
        }
        match role {
            Role::Current | Role::Next => true,
            // Who served it last has everything in place, so it may be first.
            Role::Other => {
                let served = local.is_some_and(|local| local.served);
                let on_ring = self.cache.nodes.contains_key(me);
                !self.leaving && ((served && on_ring) || self.ring.owner(vni) == Some(me))
            }
        }
    }

    /// Tells the applier what this host shall do.
    fn set_duty(&mut self, vni: Vni, view: &View, network: &Network, step: Step, now: Time) {
        let Some(local) = self.locals.get(&vni) else { return };
        let mut duty = machine::duty(view.state, view.role);
        if local.resigned || self.is_barred() || !self.may_serve() {
            return self.want(vni, Duty::NONE);
        }
        if view.presumptive && step == Step::Claim {
            return self.inherit(vni, now);
        }
        if self.stand_in(vni, network, duty, now) {
            return;
        }
        let Some(local) = self.locals.get(&vni) else { return };
        let unowned = !view.there.current && !view.there.next;
        let about_to_own =
            unowned && (step == Step::Claim || local.served || self.incarnation().is_none());
        // Until the network is another's, what the host does from an earlier run, or as the last
        // owner, is better than nothing.
        if about_to_own || view.stale {
            return;
        }
        let recent = local.halves_until.is_some_and(|until| now < until);
        if duty.upstream == Upstream::Whole && (recent || self.predecessor) {
            duty.upstream = Upstream::Halves;
        }
        self.want(vni, duty);
        self.announce_on_entry(vni, view);
    }

    /// Tells the applier of a duty that is new. Whoever begins to answer announces itself.
    pub(super) fn want(&mut self, vni: Vni, duty: Duty) {
        let Some(local) = self.locals.get_mut(&vni) else { return };
        let before = local.desired.unwrap_or_default();
        if local.desired.is_some() && before.duty == duty {
            return;
        }
        let begins = duty.answering && !before.duty.answering;
        if !duty.answering {
            local.stand_in = None;
        }
        let desired = Desired { duty, announce: before.announce + u64::from(begins) };
        local.desired = Some(desired);
        local.reached_at = None;
        self.desired.insert(vni, desired);
        if duty.answering {
            self.answering.insert(vni);
        } else {
            self.answering.remove(&vni);
        }
    }

    /// Asks for an announcement when a state is entered that calls for one.
    fn announce_on_entry(&mut self, vni: Vni, view: &View) {
        let Some(local) = self.locals.get_mut(&vni) else { return };
        let now = (view.state, view.role);
        let before = local.entered.replace(now);
        if announces(before, now) {
            self.announce(vni);
        }
    }

    /// Writes the transaction that is this node's turn, if what comes before it is done.
    fn take_step(&mut self, vni: Vni, view: &View, network: &Network, step: Step, now: Time) {
        let (Some(incarnation), Some(lease), Some(local)) =
            (self.incarnation(), self.lease, self.locals.get(&vni))
        else {
            return;
        };
        if !local.pending.is_free(self.cache.revision, now) {
            return;
        }
        if local.resigned {
            let then = self.resignation(vni, network);
            if !then.is_empty() {
                self.write(vni, incarnation, network, vec![], then);
            }
            return;
        }
        if view.stale && view.role != Role::Other {
            let then = vec![self.adopted(vni, view.role, lease)];
            return self.write(vni, incarnation, network, vec![], then);
        }
        match step {
            // Nothing can be committed against a gateway before the verdict is.
            Step::Claim if view.presumptive => {}
            Step::Rest => {}
            Step::Advance(to, wait) => {
                if self.is_done(vni, wait, now) {
                    self.write(vni, incarnation, network, vec![], vec![put_state(vni, to)]);
                }
            }
            Step::Finish(wait) => {
                if self.is_done(vni, wait, now) {
                    let then = self.finished(vni, view, network, lease, now);
                    self.write(vni, incarnation, network, vec![], then);
                }
            }
            Step::Resume => {
                let then = vec![put_state(vni, State::Idle), put_next(vni, None)];
                self.write(vni, incarnation, network, vec![], then);
            }
            Step::Claim => {
                let next = put_next(vni, Some((&self.config.name, lease)));
                let then = vec![put_state(vni, State::FailoverDecided), next];
                self.write(vni, incarnation, network, self.ground(network), then);
            }
        }
    }

    fn is_done(&mut self, vni: Vni, wait: Wait, now: Time) -> bool {
        let settle = self.config.settle;
        let at = self.locals.get(&vni).and_then(|local| local.done_at(wait, settle));
        if let Some(at) = at.filter(|at| *at > now) {
            self.alarms.insert((at, Some(vni)));
        }
        at.is_some_and(|at| at <= now)
    }

    /// Takes this node out of a network.
    fn resignation(&self, vni: Vni, network: &Network) -> Vec<Op> {
        let me = Some(&self.config.name);
        let mut then = Vec::new();
        if network.current() == me {
            then.push(put_state(vni, State::Unassigned));
            then.push(Op::Delete { key: keys::network(vni, Field::Current) });
        }
        if network.next() == me {
            then.push(put_next(vni, None));
        }
        then
    }

    /// What an earlier run of this node left, under the lease of this one.
    fn adopted(&self, vni: Vni, role: Role, lease: LeaseId) -> Op {
        let me = &self.config.name;
        match role {
            Role::Next => put_next(vni, Some((me, lease))),
            Role::Current | Role::Other => put_current(vni, me, lease),
        }
    }

    fn finished(
        &self,
        vni: Vni,
        view: &View,
        network: &Network,
        lease: LeaseId,
        now: Time,
    ) -> Vec<Op> {
        let me = &self.config.name;
        let history = self.cache.history.get(&vni).cloned().unwrap_or_default();
        let before = history.changes.last().map(|change| &change.owner);
        let reason = match (network.current().or(before), view.state) {
            (None, _) => Reason::First,
            (Some(from), State::MigrationEvpnWithdrawn) => Reason::Move(from.clone()),
            (Some(from), _) if self.cache.is_struck(from) => Reason::Verdict(from.clone()),
            (Some(from), _) => Reason::Gone(from.clone()),
        };
        let history = history.with(me.clone(), reason.to_string(), self.wall_ms(now));
        vec![
            put_state(vni, State::Idle),
            put_current(vni, me, lease),
            put_next(vni, None),
            put_json(keys::history(vni), &history, None),
        ]
    }

    /// The ground on which a network is claimed, as far as keys of lost gateways still stand:
    /// the verdict, or the absence of any registration.
    fn ground(&self, network: &Network) -> Vec<Compare> {
        let me = &self.config.name;
        let named = [network.current(), network.next()].into_iter().flatten();
        named.filter(|name| *name != me).flat_map(|name| self.ground_against(name)).collect()
    }

    fn ground_against(&self, name: &NodeName) -> Vec<Compare> {
        match self.cache.live.get(name) {
            Some(live) => vec![Compare::Exists { key: keys::verdict(name, live.incarnation) }],
            None => vec![
                Compare::Absent { key: keys::live(name) },
                Compare::Absent { key: keys::node(name) },
            ],
        }
    }

    /// Has a step of a network sent, guarded by this node's registration and by all three keys of
    /// the network being as they were seen.
    fn write(
        &mut self,
        vni: Vni,
        incarnation: Revision,
        network: &Network,
        ground: Vec<Compare>,
        then: Vec<Op>,
    ) {
        let mut compare = Vec::from(guard(vni, network));
        compare.extend(ground);
        if let Some(local) = self.locals.get_mut(&vni) {
            local.pending = Pending::Sent;
        }
        self.outbox.steps.push_back((incarnation, vni, Txn { compare, then }));
    }

    /// Sends steps that wait, if not too much is under way. Each stands and falls by itself, all
    /// of them with this node's registration.
    pub(super) fn send_steps(&mut self) {
        if self.outbox.under_way >= WINDOW {
            return;
        }
        let Some((incarnation, steps)) = self.outbox.take() else { return };
        self.outbox.under_way += 1;
        let (vnis, then) = steps.into_iter().map(|(vni, txn)| (vni, Op::Nested(txn))).unzip();
        let compare = self.own_guard(incarnation).into();
        self.send(Purpose::Networks(vnis), Txn { compare, then });
    }
}

/// Steps of networks that wait to be sent together.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// Each with the incarnation that it was written for.
    steps: VecDeque<(Revision, Vni, Txn)>,
    /// How many transactions of steps have not been answered.
    under_way: usize,
}

impl Outbox {
    /// As many as one transaction carries, all of one incarnation.
    fn take(&mut self) -> Option<(Revision, Vec<(Vni, Txn)>)> {
        let incarnation = self.steps.front()?.0;
        let same = self.steps.iter().take(STEPS).take_while(|(it, ..)| *it == incarnation).count();
        Some((incarnation, self.steps.drain(..same).map(|(_, vni, txn)| (vni, txn)).collect()))
    }

    /// Takes note that a transaction of steps was answered, or will not be.
    pub(super) const fn note_answer(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
    }
}

/// Whether this change means that a gateway was lost, whose routes may linger: from an owner, or
/// from the one to come.
fn takes_over(before: Option<(State, Role)>, now: (State, Role)) -> bool {
    now == (State::FailoverDecided, Role::Next) || resumes(before, now)
}

/// Whether this change completes a planned move to this node.
fn arrives(before: Option<(State, Role)>, now: (State, Role)) -> bool {
    now == (State::Idle, Role::Current) && before.is_some_and(|(_, role)| role == Role::Next)
}

/// Whether entering this state calls for an announcement, even if this host answered before.
fn announces(before: Option<(State, Role)>, now: (State, Role)) -> bool {
    let calls = [(State::FailoverDecided, Role::Next), (State::MigrationArpDisabled, Role::Next)];
    // When a move is called off, the one to come may have announced itself.
    before != Some(now) && (calls.contains(&now) || resumes(before, now))
}

/// Whether an owner goes on alone after a move that was called off.
fn resumes(before: Option<(State, Role)>, now: (State, Role)) -> bool {
    let moved = |state: State| state.is_migration() || state == State::FailoverDecided;
    now == (State::Idle, Role::Current)
        && before.is_some_and(|(state, role)| role == Role::Current && moved(state))
}

/// The three keys of a network are as they were seen.
pub(super) fn guard(vni: Vni, network: &Network) -> [Compare; 3] {
    let slots = [
        (Field::Type, network.state.as_ref().map(|slot| slot.modified)),
        (Field::Current, network.current.as_ref().map(|slot| slot.modified)),
        (Field::Next, network.next.as_ref().map(|slot| slot.modified)),
    ];
    slots.map(|(field, modified)| {
        let key = keys::network(vni, field);
        match modified {
            Some(at) => Compare::Modified { key, at },
            None => Compare::Absent { key },
        }
    })
}

pub(super) fn put_state(vni: Vni, state: State) -> Op {
    let value = state.number().to_string().into_bytes();
    Op::Put { key: keys::network(vni, Field::Type), value, lease: None }
}

fn put_current(vni: Vni, name: &NodeName, lease: LeaseId) -> Op {
    let value = name.as_str().into();
    Op::Put { key: keys::network(vni, Field::Current), value, lease: Some(lease) }
}

/// The predecessor writes an empty value without a lease when there is no next gateway.
pub(super) fn put_next(vni: Vni, next: Option<(&NodeName, LeaseId)>) -> Op {
    let value = next.map_or("", |(name, _)| name.as_str()).into();
    Op::Put { key: keys::network(vni, Field::Next), value, lease: next.map(|(_, lease)| lease) }
}
