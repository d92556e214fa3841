//! From silence to a verdict, and to a takeover.
//!
//! ```text
//!   silent on all paths ──▶ vote ──▶ a majority has voted ──▶ verdict in the store ──▶ claims
//!                            │             │                        ▲
//!   asks for relief itself ──┘             └─ no answer, and no ────┘ networks taken over first
//!   an operator's word  ─────────────────────  leader is seen
//! ```
//!
//! A vote binds: who has voted acknowledges that incarnation no more until the store has decided.
//! So a majority of votes means that the suspect loses its right to serve within `fence`. With two
//! voters there is no majority; then the doubt is written into the store, where the one in doubt
//! can refute it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use selvedge_model::{NodeName, Time, Vni};

use super::doubt::Doubt;
use super::liveness::{Hearing, Registered};
use super::registration::put_json;
use super::{Event, Gateway, NodeRole, OperatorError, Pending, Purpose};
use crate::cache::{RosterValue, VerdictValue};
use crate::keys;
use crate::kv::{Compare, Health, LeaseId, Op, Revision, Txn, TxnReply};
use crate::probe::{Stage, Vote};

/// How often the store's members are asked how they are, with and without a vote that stands.
const HEALTH_URGENT: Duration = Duration::from_millis(50);
const HEALTH: Duration = Duration::from_secs(1);
/// For how long a vote is new.
const URGENT: Duration = Duration::from_secs(5);
/// How often stations are reminded of their gateway at most, because others are back.
const REMINDED: Duration = Duration::from_secs(5);
/// For how long an answer about the store's members is waited for.
const HEALTH_LIMIT: Duration = Duration::from_secs(1);

/// A vote of this node.
#[derive(Debug)]
pub(super) struct Ballot {
    pub(super) incarnation: Revision,
    at: Time,
    pub(super) stage: Stage,
    /// Since when a majority has voted so.
    majority_since: Option<Time>,
    /// The transaction that writes the verdict, or asks whether there is one.
    pending: Pending,
}

/// What this node knows of its own and others' votes.
#[derive(Debug, Default)]
pub(super) struct Court {
    pub(super) ballots: BTreeMap<NodeName, Ballot>,
    pub(super) doubts: BTreeMap<NodeName, Doubt>,
    /// Incarnations whose networks are taken over before the verdict is committed.
    pub(super) presumed: BTreeMap<NodeName, Revision>,
    pub(super) health: Option<(Health, Time)>,
    health_asked: Option<Time>,
    health_due: Time,
    health_wanted: bool,
    renewed_at: Time,
    renewals: Vec<LeaseId>,
    /// A transaction of this node about itself: to refute a doubt, or to clear up.
    pub(super) chores: Pending,
    /// What this node knows of each suspect's networks, as of a revision.
    pub(super) digests: BTreeMap<NodeName, u64>,
    pub(super) digested: Revision,
    /// When stations were last reminded of their new gateway.
    reminded_at: Option<Time>,
    /// Whether others could serve what this unfit host serves, as of a revision.
    relievable: Option<(Revision, bool)>,
    /// When suspects were first suspected, to tell how long it took.
    suspected: BTreeMap<NodeName, Time>,
    /// The verdicts that were reported.
    known: BTreeSet<(NodeName, Revision)>,
}

impl Court {
    /// Whether networks of this incarnation count as without an owner already.
    pub(super) fn presumes(&self, name: &NodeName, incarnation: Revision) -> bool {
        self.presumed.get(name) == Some(&incarnation)
    }

    pub(super) fn poll_health(&mut self) -> bool {
        std::mem::take(&mut self.health_wanted)
    }

    pub(super) fn poll_renewal(&mut self) -> Option<LeaseId> {
        self.renewals.pop()
    }

    /// Whether this node has voted against this incarnation.
    pub(super) fn has_voted(&self, name: &NodeName, incarnation: Revision) -> bool {
        self.ballots.get(name).is_some_and(|ballot| ballot.incarnation == incarnation)
    }

    /// Whether a vote stands that nothing has come of yet.
    fn is_open(&self, settled: impl Fn(&NodeName, &Ballot) -> bool) -> bool {
        self.ballots.iter().any(|(name, ballot)| !settled(name, ballot))
    }
}

impl Gateway {
    /// How many votes are a majority.
    pub(super) fn majority(&self) -> usize {
        self.electorate.voters.len() / 2 + 1
    }

    /// Whether a gateway counts as lost: by a verdict, or presumed to be.
    pub(super) fn is_lost(&self, name: &NodeName) -> bool {
        self.cache.is_struck(name) || self.is_presumed(name)
    }

    /// Whether a gateway counts as lost ahead of the verdict.
    pub(super) fn is_presumed(&self, name: &NodeName) -> bool {
        let live = self.cache.live.get(name);
        live.is_some_and(|live| self.court.presumes(name, live.incarnation))
            && !self.cache.is_convicted(name)
    }

    /// Takes in who votes, after something about the nodes has changed.
    pub(super) fn voters_changed(&mut self) {
        let partners = if self.is_probed() { self.partners() } else { Vec::new() };
        self.liveness.set_partners(partners);
        self.count_electorate();
    }

    /// The other voters, as the store has them.
    fn partners(&self) -> Vec<Registered> {
        let others = self.cache.possible_voters().filter(|(name, _)| **name != self.config.name);
        let partner = |(name, value): (&NodeName, &RosterValue)| Registered {
            name: name.clone(),
            incarnation: self.cache.live.get(name).map(|live| live.incarnation),
            addresses: value.probe.clone(),
        };
        others.map(partner).collect()
    }

    /// Who votes: as the store says, or as others say who have read more of it; without those
    /// whom an operator has given up.
    pub(super) fn count_electorate(&mut self) {
        let own = self.cache.electorate();
        let heard = self.liveness.news().map(|(_, _, news)| &news.electorate);
        let newest = heard.filter(|theirs| theirs.revision > own.revision);
        let mut electorate = newest.max_by_key(|it| it.revision).cloned().unwrap_or(own);
        electorate.voters.retain(|name| !self.is_forced(name));
        self.electorate = electorate;
    }

    pub(super) fn is_forced(&self, name: &NodeName) -> bool {
        let ballot = self.court.ballots.get(name);
        let forced = ballot.is_some_and(|ballot| ballot.stage == Stage::Forced);
        (forced && !self.cache.is_struck(name)) || self.given_up.contains(name)
    }

    /// Looks at the other voters, and does what follows.
    pub(super) fn watch_over(&mut self, now: Time) {
        if !self.liveness.is_watching() {
            return;
        }
        self.note_hearing(now);
        self.end_ballots(now);
        if self.incarnation().is_some() {
            self.cast_ballots(now);
            self.weigh_ballots(now);
            self.doubt_the_other(now);
        }
        self.refute(now);
        self.ask_health(now);
        self.tend_leases(now);
    }

    /// When [`watch_over`](Self::watch_over) has something to do at the latest.
    pub(super) fn watch_at(&self, now: Time) -> Option<Time> {
        let patience = self.config.timing.patience;
        let ballots = self.court.ballots.values();
        let majorities = ballots.filter_map(|ballot| ballot.majority_since);
        let acts = majorities.map(|at| at + patience).filter(|at| *at > now).min();
        [self.liveness.due_at(), self.liveness.next_suspicion(now), acts]
            .into_iter()
            .flatten()
            .min()
    }

    fn note_hearing(&mut self, now: Time) {
        for change in self.liveness.changes(now) {
            match change {
                Hearing::Heard(name) => {
                    self.court.suspected.remove(&name);
                    if self.court.reminded_at.is_none_or(|at| now.since(at) > REMINDED) {
                        self.court.reminded_at = Some(now);
                        self.remind_stations(now);
                    }
                    self.events.push_back(Event::Heard(name));
                }
                Hearing::Silent(name, silent_for) => {
                    self.court.suspected.insert(name.clone(), now);
                    self.events.push_back(Event::Suspected { name, silent_for });
                }
            }
        }
    }

    /// Ends the votes against incarnations that are there no more, and those that may end because
    /// the suspect is heard again.
    fn end_ballots(&mut self, now: Time) {
        let registered = self.incarnation().is_some();
        let (cache, config) = (&self.cache, &self.config);
        self.court.ballots.retain(|name, ballot| {
            let live = cache.live.get(name).map(|live| live.incarnation);
            // After the verdict it stands until the node is back.
            let gone = live.is_none()
                && cache.is_struck(name)
                && cache.roster.contains_key(name)
                && *name != config.name;
            registered && (gone || live == Some(ballot.incarnation))
        });
        let court = &mut self.court;
        let ballots = &court.ballots;
        court.presumed.retain(|name, _| ballots.contains_key(name));
        let names: Vec<NodeName> = self.court.ballots.keys().cloned().collect();
        for name in names {
            self.end_ballot(&name, now);
        }
    }

    fn end_ballot(&mut self, name: &NodeName, now: Time) {
        let Some(ballot) = self.court.ballots.get(name) else { return };
        let incarnation = ballot.incarnation;
        if self.cache.is_struck(name) {
            return self.raise(name, Stage::Acted);
        }
        let heard_again = match *name == self.config.name {
            true => self.unfit.is_empty(),
            false => self.liveness.hears(name, now) && !self.is_relieved(name, now),
        };
        let open = ballot.stage <= Stage::Firm && !self.others_acted(name, incarnation);
        if !heard_again || !open {
            return;
        }
        let fresh = self.health_since(ballot.at);
        match (ballot.stage, fresh) {
            // Whether the store could have decided is not known yet.
            (_, None) => {}
            (Stage::Tentative, Some(health)) if !health.is_whole() && !health.is_leaderless() => {
                self.court.ballots.remove(name);
            }
            (_, Some(_)) => self.ask_about(name, incarnation, now),
        }
    }

    /// Asks the store whether it has decided, by a transaction that changes nothing.
    fn ask_about(&mut self, name: &NodeName, incarnation: Revision, now: Time) {
        let revision = self.cache.revision;
        let Some(ballot) = self.court.ballots.get_mut(name) else { return };
        if !ballot.pending.is_free(revision, now) {
            return;
        }
        ballot.pending = Pending::Sent;
        let compare = against(name, incarnation).into();
        self.send(Purpose::Acquit(name.clone(), incarnation), Txn { compare, then: vec![] });
    }

    fn raise(&mut self, name: &NodeName, stage: Stage) {
        if let Some(ballot) = self.court.ballots.get_mut(name) {
            ballot.stage = ballot.stage.max(stage);
        }
    }

    /// What is known of the store's members since `at`.
    fn health_since(&self, at: Time) -> Option<Health> {
        self.court.health.filter(|(_, asked)| *asked >= at).map(|(health, _)| health)
    }

    fn asks_for_relief(&self, name: &NodeName) -> bool {
        let Some(live) = self.cache.live.get(name) else { return false };
        let mut votes = self.liveness.votes_against(name, live.incarnation);
        votes.any(|(voter, _)| voter == name)
    }

    /// Whether a node asks for relief that it can have: by a store that answers or is about to, and
    /// by another gateway.
    fn is_relieved(&self, name: &NodeName, now: Time) -> bool {
        let recent = self.court.health.filter(|(_, asked)| now.since(*asked) < HEALTH * 3);
        let decides = recent.is_some_and(|(health, _)| health.is_whole() || health.is_leaderless());
        decides && self.asks_for_relief(name) && self.has_substitute(name, now)
    }

    /// Whether another gateway than `name`, this one included, could take networks over from it.
    fn has_substitute(&self, name: &NodeName, now: Time) -> bool {
        let me = &self.config.name;
        let able = |other: &NodeName| {
            let sound = match other == me {
                true => self.unfit.is_empty(),
                false => self.liveness.hears(other, now) && !self.liveness.is_unfit(other),
            };
            other != name && !self.is_lost(other) && sound
        };
        self.cache.nodes.keys().any(able)
    }

    fn cast_ballots(&mut self, now: Time) {
        self.ask_for_relief(now);
        let voters = self.electorate.voters.clone();
        let others = voters.iter().filter(|name| **name != self.config.name);
        let lost: Vec<(NodeName, Revision, Stage)> = others
            .filter_map(|name| {
                let (incarnation, stage) = self.charge(name, now)?;
                Some((name.clone(), incarnation, stage))
            })
            .collect();
        for (name, incarnation, stage) in lost {
            self.cast(name, incarnation, stage, now);
        }
    }

    /// The incarnation of a voter that this node is to vote against, and how.
    fn charge(&self, name: &NodeName, now: Time) -> Option<(Revision, Stage)> {
        let incarnation = self.cache.live.get(name)?.incarnation;
        if self.court.ballots.contains_key(name) || self.cache.is_convicted(name) {
            return None;
        }
        let forced = self.is_forced_by_others(name, incarnation, now);
        if self.is_relieved(name, now) {
            return Some((incarnation, Stage::Tentative));
        }
        let (silent, _) = self.liveness.silence(name, now)?;
        match silent == incarnation {
            true if forced => Some((incarnation, Stage::Forced)),
            true if self.is_in_touch_without(name, now) => Some((incarnation, Stage::Tentative)),
            true | false => None,
        }
    }

    /// Whether an operator has told another voter that a node is lost, which this one does not
    /// hear either.
    fn is_forced_by_others(&self, name: &NodeName, incarnation: Revision, now: Time) -> bool {
        let mut votes = self.liveness.votes_against(name, incarnation);
        votes.any(|(_, vote)| vote.stage == Stage::Forced)
            && self.liveness.silence(name, now).is_some()
    }

    /// Whether this node hears so many voters that, itself counted, they are a majority without
    /// the suspect.
    fn is_in_touch_without(&self, suspect: &NodeName, now: Time) -> bool {
        let me = &self.config.name;
        let voters = self.electorate.voters.iter();
        let heard = voters
            .filter(|name| *name != suspect && (*name == me || self.liveness.hears(name, now)));
        heard.count() >= self.majority()
    }

    fn cast(&mut self, name: NodeName, incarnation: Revision, stage: Stage, now: Time) {
        let ballot =
            Ballot { incarnation, at: now, stage, majority_since: None, pending: Pending::No };
        self.court.ballots.insert(name.clone(), ballot);
        self.court.health_due = now;
        self.events.push_back(Event::Voted(name));
        self.tell_everybody(now);
    }

    /// A host that cannot do its job votes against itself, if others are there to do it.
    fn ask_for_relief(&mut self, now: Time) {
        let Some(incarnation) = self.incarnation().filter(|_| !self.unfit.is_empty()) else {
            return;
        };
        let me = self.config.name.clone();
        let asks = self.court.has_voted(&me, incarnation);
        if !asks && self.has_substitute(&me, now) && self.is_relievable() {
            self.events.push_back(Event::AsksForRelief);
            self.cast(me, incarnation, Stage::Tentative, now);
        }
    }

    /// Whether this host serves anything that another gateway could serve.
    fn is_relievable(&mut self) -> bool {
        let revision = self.cache.revision;
        if let Some((_, relievable)) = self.court.relievable.filter(|(at, _)| *at == revision) {
            return relievable;
        }
        let me = &self.config.name;
        let others = self.cache.ring(|name| name == me || self.is_lost(name));
        let free = |vni: Vni| !self.cache.is_blocked(vni) && others.owner(vni).is_some();
        let relievable = self.cache.named(me).any(free);
        self.court.relievable = Some((revision, relievable));
        relievable
    }

    /// Whether networks are better placed elsewhere while this host is not sound. Of several that
    /// are not, the first by name stays on the ring.
    pub(super) fn is_replaceable(&self, now: Time) -> bool {
        let me = &self.config.name;
        let first = || {
            let gateway = |name: &&NodeName| {
                self.cache
                    .roster
                    .get(*name)
                    .is_some_and(|slot| slot.value.role == NodeRole::Gateway)
            };
            let mut others = self.liveness.heard(now).filter(gateway);
            !others.any(|other| other < me && !self.is_lost(other))
        };
        self.has_substitute(me, now) || !first()
    }

    fn weigh_ballots(&mut self, now: Time) {
        let names: Vec<NodeName> = self.court.ballots.keys().cloned().collect();
        for name in names {
            self.weigh(&name, now);
        }
    }

    fn weigh(&mut self, name: &NodeName, now: Time) {
        let Some(ballot) = self.court.ballots.get(name) else { return };
        let (incarnation, at, stage) = (ballot.incarnation, ballot.at, ballot.stage);
        if self.cache.is_struck(name) {
            return;
        }
        self.firm_up(name, at);
        if stage < Stage::Forced && self.is_forced_by_others(name, incarnation, now) {
            self.raise(name, Stage::Forced);
            self.count_electorate();
            self.tell_everybody(now);
        }
        let stage = self.court.ballots.get(name).map_or(stage, |ballot| ballot.stage);
        let votes = self.votes(name, incarnation, Stage::Tentative, None);
        let forced = stage == Stage::Forced;
        let enough = votes >= self.majority() || forced || stage == Stage::Acted;
        let Some(ballot) = self.court.ballots.get_mut(name) else { return };
        if !enough {
            ballot.majority_since = None;
            return;
        }
        let since = *ballot.majority_since.get_or_insert(now);
        self.write_verdict(name, incarnation, vec![], now);
        let late = now.since(since) >= self.config.timing.patience;
        if *name != self.config.name && !self.is_presumed(name) && (forced || late) {
            self.presume(name, incarnation, at, forced, now);
        }
    }

    /// A vote stands firm once the store is known to have no leader.
    fn firm_up(&mut self, name: &NodeName, at: Time) {
        if self.health_since(at).is_some_and(|health| health.is_leaderless()) {
            self.raise(name, Stage::Firm);
        }
    }

    /// How many voters have voted so, at that stage at least; only those that know the same of
    /// the suspect's networks, if a digest is given.
    fn votes(
        &self,
        suspect: &NodeName,
        incarnation: Revision,
        stage: Stage,
        digest: Option<u64>,
    ) -> usize {
        let own = self.court.ballots.get(suspect).is_some_and(|ballot| ballot.stage >= stage);
        let (fence, now) = (self.config.timing.fence, self.looked_at);
        let counts = |(voter, vote): &(&NodeName, &Vote)| {
            self.electorate.voters.contains(voter)
                && self.liveness.heard_within(voter, fence, now)
                && vote.stage >= stage
                && digest.is_none_or(|digest| digest == vote.networks)
        };
        let others = self.liveness.votes_against(suspect, incarnation).filter(counts);
        let own = own && self.electorate.voters.contains(&self.config.name);
        others.count() + usize::from(own)
    }

    /// Writes the verdict, if it is absent. `ground` is what else it stands on.
    fn write_verdict(
        &mut self,
        name: &NodeName,
        incarnation: Revision,
        ground: Vec<Compare>,
        now: Time,
    ) {
        let Some(own) = self.incarnation() else { return };
        let revision = self.cache.revision;
        let Some(ballot) = self.court.ballots.get_mut(name) else { return };
        if !ballot.pending.is_free(revision, now) {
            return;
        }
        ballot.pending = Pending::Sent;
        let txn = self.verdict_txn(name, own, incarnation, ground, now);
        self.send(Purpose::Verdict(name.clone(), incarnation), txn);
    }

    pub(super) fn verdict_txn(
        &self,
        name: &NodeName,
        own: Revision,
        incarnation: Revision,
        ground: Vec<Compare>,
        now: Time,
    ) -> Txn {
        // A node that votes against itself is registered by the same key: no compare twice.
        let mut compare =
            if *name == self.config.name { vec![] } else { self.own_guard(own).into() };
        compare.extend(against(name, incarnation));
        compare.extend(ground);
        let value = VerdictValue {
            by: self.config.name.to_string(),
            reason: self.reason_against(name),
            at_ms: self.wall_ms(now),
        };
        let mut then = vec![put_json(keys::verdict(name, incarnation), &value, None)];
        if self.cache.suspicions.contains_key(&(name.clone(), incarnation)) {
            then.push(Op::Delete { key: keys::suspicion(name, incarnation) });
        }
        Txn { compare, then }
    }

    /// Who has voted that a node is lost.
    pub(super) fn voters_against(&self, name: &NodeName) -> Vec<NodeName> {
        let Some(live) = self.cache.live.get(name) else { return Vec::new() };
        let others = self.liveness.votes_against(name, live.incarnation);
        let own = self.court.has_voted(name, live.incarnation);
        let own = own.then(|| self.config.name.clone());
        others.map(|(voter, _)| voter.clone()).chain(own).collect()
    }

    fn reason_against(&self, name: &NodeName) -> String {
        let ballot = self.court.ballots.get(name);
        if *name == self.config.name {
            return format!("it cannot do its job: {}", self.unfit.join("; "));
        }
        if ballot.is_none() {
            let me = &self.config.name;
            return format!("not heard by {me}, the only other voter, and not refuted");
        }
        if ballot.is_some_and(|ballot| ballot.stage == Stage::Forced) {
            return format!("an operator's word on {}", self.config.name);
        }
        let relief = if self.asks_for_relief(name) { "it asks for relief; " } else { "" };
        let mut voters: Vec<String> =
            self.voters_against(name).iter().map(NodeName::to_string).collect();
        voters.sort_unstable();
        format!("{relief}voted by {}", voters.join(", "))
    }

    /// Takes the suspect's networks over ahead of the verdict, if the store has no leader that
    /// could commit it, and a majority stands firm and agrees on what there is to take.
    fn presume(
        &mut self,
        name: &NodeName,
        incarnation: Revision,
        at: Time,
        forced: bool,
        now: Time,
    ) {
        let leaderless = self.health_since(at).is_some_and(|health| health.is_leaderless());
        let agreed = || {
            let digest = Some(self.digest(name));
            self.votes(name, incarnation, Stage::Firm, digest) >= self.majority()
        };
        if !(forced || leaderless && agreed()) {
            return;
        }
        self.court.presumed.insert(name.clone(), incarnation);
        self.raise(name, Stage::Acted);
        self.nodes_changed(now);
        let mut named: BTreeSet<Vni> = self.cache.named(name).collect();
        if forced {
            named.extend(self.inherited_by(name));
        }
        let heirs = named.iter().filter(|vni| self.name_heir(**vni)).count();
        self.events.push_back(Event::Prepared { name: name.clone(), networks: heirs });
        self.dirty.extend(named);
        self.tell_everybody(now);
    }

    /// Refutes a doubt of this node: whoever can write is alive. And clears up what verdicts on
    /// earlier incarnations are left.
    fn refute(&mut self, now: Time) {
        let Some(own) = self.incarnation() else { return };
        if !self.court.chores.is_free(self.cache.revision, now) {
            return;
        }
        let me = &self.config.name;
        let doubted = self.cache.suspicions.contains_key(&(me.clone(), own));
        let old = self.cache.verdicts_on(me).filter(|incarnation| *incarnation < own);
        let mut then: Vec<Op> =
            old.take(16).map(|at| Op::Delete { key: keys::verdict(me, at) }).collect();
        if doubted && self.unfit.is_empty() {
            then.push(Op::Delete { key: keys::suspicion(me, own) });
        }
        if !then.is_empty() {
            self.court.chores = Pending::Sent;
            let compare = self.own_guard(own).into();
            self.send(Purpose::Chores, Txn { compare, then });
        }
    }

    fn ask_health(&mut self, now: Time) {
        let recent = |ballot: &Ballot| now.since(ballot.at) < URGENT;
        let open = self.court.is_open(|name, ballot| self.cache.is_struck(name) || !recent(ballot));
        let interval = if open { HEALTH_URGENT } else { HEALTH };
        let court = &mut self.court;
        if open {
            court.health_due = court.health_due.min(now + interval);
        }
        let waiting = court.health_asked.is_some_and(|at| now.since(at) < HEALTH_LIMIT);
        if now >= court.health_due && !waiting {
            court.health_due = now + interval;
            court.health_asked = Some(now);
            court.health_wanted = true;
        }
    }

    pub(super) fn note_health(&mut self, health: Health) {
        if let Some(asked) = self.court.health_asked.take() {
            self.court.health = Some((health, asked));
        }
    }

    /// Keeps the leases of those alive that are heard, so that nobody loses it who is cut off from
    /// the store alone. Those of the dead end by themselves: the end of a lease cannot be guarded,
    /// and a convicted node that is back registers anew under the one it has.
    fn tend_leases(&mut self, now: Time) {
        if now.since(self.court.renewed_at) < self.config.timing.lease / 3 {
            return;
        }
        self.court.renewed_at = now;
        let lease = |name: &NodeName| self.cache.live.get(name).and_then(|live| live.lease);
        let expected = self.liveness.expected(now).filter(|name| !self.cache.is_struck(name));
        let kept = expected.filter_map(lease).collect();
        self.court.renewals = kept;
    }

    /// Takes in the answer to a transaction about another node.
    pub(super) fn note_court(
        &mut self,
        purpose: &Purpose,
        reply: Option<&TxnReply>,
        pending: Pending,
    ) {
        match purpose {
            Purpose::Verdict(name, incarnation) => self.set_ballot(name, *incarnation, pending),
            Purpose::Acquit(name, incarnation) => {
                self.set_ballot(name, *incarnation, pending);
                let open = self.court.ballots.get(name).is_some_and(|b| b.stage <= Stage::Firm);
                if reply.is_some_and(|reply| reply.committed) && open {
                    self.court.ballots.remove(name);
                }
            }
            Purpose::Doubt(name) => {
                let at = self.looked_at;
                if let Some(doubt) = self.court.doubts.get_mut(name) {
                    doubt.pending = pending;
                    let written = reply.filter(|reply| reply.committed);
                    doubt.written = doubt.written.or(written.map(|reply| (reply.revision, at)));
                }
            }
            Purpose::Chores => self.court.chores = pending,
            Purpose::Networks(_)
            | Purpose::Registration
            | Purpose::Campaign
            | Purpose::Start
            | Purpose::Confirm(_)
            | Purpose::Word => {}
        }
    }

    fn set_ballot(&mut self, name: &NodeName, incarnation: Revision, pending: Pending) {
        let ballot = self.court.ballots.get_mut(name);
        if let Some(ballot) = ballot.filter(|ballot| ballot.incarnation == incarnation) {
            ballot.pending = pending;
        }
    }

    /// Reports verdicts that are new.
    pub(super) fn report_verdicts(&mut self, now: Time) {
        let known = &self.court.known;
        let registered = |name: &NodeName, incarnation: Revision| {
            self.cache.live.get(name).is_some_and(|live| live.incarnation == incarnation)
        };
        let verdicts = self.cache.verdicts.iter();
        let new: Vec<_> = verdicts
            .filter(|(key, _)| !known.contains(key) && registered(&key.0, key.1))
            .map(|(key, value)| (key.clone(), value.reason.clone()))
            .collect();
        for ((name, incarnation), reason) in new {
            let after = self.court.suspected.get(&name).map(|at| now.since(*at));
            self.court.known.insert((name.clone(), incarnation));
            self.events.push_back(Event::Verdict { name, reason, after });
        }
        let verdicts = &self.cache.verdicts;
        self.court.known.retain(|key| verdicts.contains_key(key));
    }

    /// An operator's word that a gateway is lost.
    pub(super) fn force(&mut self, name: &NodeName, now: Time) -> Result<(), OperatorError> {
        let me = &self.config.name;
        if name == me || self.liveness.hears(name, now) {
            return Err(OperatorError::Heard(name.clone(), me.clone()));
        }
        match self.cache.live.get(name).map(|live| live.incarnation) {
            Some(incarnation) => {
                self.cast(name.clone(), incarnation, Stage::Forced, now);
            }
            None if self.cache.roster.contains_key(name) => {
                self.given_up.insert(name.clone());
                self.dirty.extend(self.locals.keys());
            }
            None => return Err(OperatorError::Unknown(name.clone())),
        }
        self.count_electorate();
        self.tell_everybody(now);
        Ok(())
    }

    /// Why a gateway that is lost could not be replaced now.
    pub(super) fn failover_impossible(&self, now: Time) -> Option<String> {
        let me = &self.config.name;
        let heard = |name: &&NodeName| *name == me || self.liveness.hears(name, now);
        let (voters, touched) = {
            let all = &self.electorate.voters;
            (all.len(), all.iter().filter(heard).count())
        };
        let health = self.court.health.map(|(health, _)| health);
        let whole = health.is_some_and(|health| health.is_whole());
        if !whole && !self.connected || health.is_some_and(|health| !health.is_whole()) {
            let answering = health.map_or(0, |health| health.answering);
            let members = health.map_or(0, |health| health.members);
            return Some(format!(
                "the store has no majority that follows a leader ({answering} of {members} members answer)"
            ));
        }
        if voters > 2 && touched < self.majority() {
            return Some(format!("only {touched} of {voters} voters are heard"));
        }
        let others = self.cache.nodes.keys().filter(|name| *name != me && !self.is_lost(name));
        match (others.count(), self.unprobed()) {
            (0, _) => Some("there is no other gateway".to_owned()),
            (_, Some(name)) => Some(format!(
                "{name} has no address for probes: its loss is noticed by the end of its lease alone"
            )),
            (_, None) => None,
        }
    }

    /// A gateway that networks are placed on, and that nobody can watch over.
    fn unprobed(&self) -> Option<&NodeName> {
        let silent = |name: &&NodeName| {
            let entry = self.cache.roster.get(*name);
            entry.is_some_and(|slot| slot.value.probe.is_empty()) && !self.is_lost(name)
        };
        self.cache.nodes.keys().find(silent)
    }
}

/// What each verdict compares: that the incarnation is registered, and not convicted yet.
pub(super) fn against(name: &NodeName, incarnation: Revision) -> [Compare; 2] {
    [
        Compare::Created { key: keys::live(name), at: incarnation },
        Compare::Absent { key: keys::verdict(name, incarnation) },
    ]
}
