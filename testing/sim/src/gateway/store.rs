//! What passes between the agents and the store: transactions, watches, leases, health.

use std::time::Duration;

use rand::RngExt;
use selvedge_gateway::kv::{Health, LeaseId, StoreError, Txn, TxnReply};
use selvedge_gateway::model::Model;
use selvedge_gateway::{StoreInput, Token, keys};
use selvedge_model::Time;

use super::cluster::{Cluster, Member};
use super::host::Input;
use super::log::unavailable;
use super::world::{Action, World};

/// How often a lease is renewed.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// How often the supervisor looks whether the store answers.
const PULSE: Duration = Duration::from_millis(100);
/// How long the store may not answer until the supervisor says so.
const PATIENCE: Duration = Duration::from_millis(300);
/// How often etcd looks for leases that have ended, in microseconds.
const EXPIRY_SCAN: u64 = 500_000;

impl World {
    /// Whether a host's connection to a member works.
    fn reaches_member(&self, host: usize, member: usize) -> bool {
        let site = self.cluster.members[member].site;
        let up = self.store_up && self.hosts[host].linked && self.hosts[host].powered;
        up && self.cluster.members[member].answers() && self.links.carries_store(host, site)
    }

    /// The member that answers a host's requests, if any does; the host's own one first.
    #[must_use]
    pub fn route(&self, host: usize) -> Option<usize> {
        if self.cluster.members.is_empty() {
            return (self.store_up && self.hosts[host].linked).then_some(0);
        }
        let serves =
            |member: &usize| self.reaches_member(host, *member) && self.cluster.serves(*member);
        let own = self.cluster.members.iter().position(|member| member.site == host);
        let last = self.hosts[host].member;
        own.into_iter().chain(last).chain(0..self.cluster.members.len()).find(serves)
    }

    /// The same; and how much longer it takes because the host has to turn to another member.
    fn turn_to(&mut self, host: usize) -> Option<Duration> {
        let member = self.route(host)?;
        let before = self.hosts[host].member.replace(member);
        let same = before.is_none_or(|before| before == member);
        let micros = if same { 0 } else { self.rng.random_range(5_000..200_000) };
        Some(Duration::from_micros(micros))
    }

    /// Changes the store's members, and lets them notice.
    pub fn with_cluster(&mut self, change: impl FnOnce(&mut Cluster)) {
        change(&mut self.cluster);
        self.cluster_changed();
    }

    /// Lets the store's members notice what has changed between them.
    pub(super) fn cluster_changed(&mut self) {
        let Self { cluster, links, rng, now, .. } = self;
        let elected = cluster.look(|from, to| links.carries_peers(from, to), *now, rng);
        if elected {
            self.elected();
        }
        if !self.log.is_empty() {
            self.push(self.now, Action::Commit);
        }
        let next = self.cluster.next().map(|next| next.max(self.now));
        if let Some(at) = next.filter(|at| self.cluster_at.is_none_or(|known| *at < known)) {
            self.cluster_at = Some(at);
            self.push(at, Action::Cluster);
        }
    }

    /// The time has come at which the members do something by themselves.
    pub(super) fn cluster_due(&mut self) {
        if self.cluster_at == Some(self.now) {
            self.cluster_at = None;
            self.cluster_changed();
        }
    }

    /// Changes the members at a site, and lets them notice.
    pub(super) fn each_member_at(&mut self, site: usize, change: impl Fn(&mut Member)) {
        self.cluster.members.iter_mut().filter(|member| member.site == site).for_each(change);
        self.cluster_changed();
    }

    /// Whether the host talks to a member that only believes to lead.
    fn is_deluded(&self, host: usize) -> bool {
        let mut members = 0..self.cluster.members.len();
        self.deluded_leaders_renew
            && members.any(|m| self.reaches_member(host, m) && self.cluster.is_deluded(m))
    }

    pub(super) fn txn_arrives(&mut self, host: usize, run: u64, token: Token, txn: Txn) {
        // What an agent sent arrives even if the agent has crashed since.
        let Some(turn) = self.turn_to(host) else { return self.txn_fails(host, run, token, txn) };
        if !turn.is_zero() {
            return self.push(self.now + turn, Action::TxnArrives(host, run, token, Box::new(txn)));
        }
        self.propose(host, run, token, txn);
    }

    fn txn_fails(&mut self, host: usize, run: u64, token: Token, txn: Txn) {
        // The old leader may have passed it on before it was lost; then the new one commits it.
        let leaderless = self.cluster.acting_leader().is_none();
        if leaderless && self.reaches_any(host) && self.rng.random_bool(0.2) {
            self.propose_unheard(host, run, txn);
        }
        let reply = Err(unavailable());
        let at = self.delay(5, 1000);
        self.push(at, Action::ToAgent(host, run, Input::Reply(token, reply)));
    }

    /// An answer comes, if the way back is still there.
    pub(super) fn reply(
        &mut self,
        host: usize,
        run: u64,
        token: Token,
        reply: Result<TxnReply, StoreError>,
    ) {
        if reply.is_ok() && !self.cluster.members.is_empty() && !self.reaches_any(host) {
            let reply = Err(unavailable());
            let at = self.delay(5, 1000);
            return self.push(at, Action::ToAgent(host, run, Input::Reply(token, reply)));
        }
        self.on_agent(host, |agent, now| agent.handle_reply(token, reply, now));
    }

    fn reaches_any(&self, host: usize) -> bool {
        (0..self.cluster.members.len()).any(|member| self.reaches_member(host, member))
    }

    /// What a new leader does first: it commits what it has of the log, and all leases get their
    /// full time again.
    pub(super) fn elected(&mut self) {
        self.inherit_log();
        let leases: Vec<(LeaseId, Time)> = self.store.leases().collect();
        for (lease, mut ends) in leases {
            // The model renews no lease whose time is over, so it is led up to the present.
            while ends <= self.now {
                let _ = self.store.keep_alive(lease, Time::from_micros(ends.as_micros() - 1));
                let renewed = self.store.leases().find(|(id, _)| *id == lease);
                ends = renewed.map_or(self.now + KEEP_ALIVE, |(_, ends)| ends);
            }
            let _ = self.store.keep_alive(lease, self.now);
        }
        self.expire_at = None;
        self.store_changed();
    }

    /// The store is lost, and another one stands in its place: an empty one, or what was restored
    /// from a backup. Its leases get their full time, and no new one has an id that was used before.
    pub fn replace_store(&mut self, store: Model) {
        let last = self.store.grant(KEEP_ALIVE, self.now);
        self.store = store;
        let spent = self.store.grant_with_id(last, KEEP_ALIVE, self.now);
        spent.and_then(|()| self.store.revoke(last)).expect("the former store has just given it");
        self.lose_log();
        self.checked = self.store.revision();
        self.checker.store_replaced(self.store.read(&keys::PREFIXES.map(str::to_owned)));
        self.elected();
        for host in 0..self.hosts.len() {
            self.hosts[host].reset = true;
            self.note_hearing(host);
        }
    }

    /// Whether what a host has read is newer than the store: it was reset, and is not read.
    pub(super) fn is_refused(&self, host: usize) -> bool {
        self.hosts[host].floor.is_some_and(|floor| floor > self.store.revision())
    }

    pub(super) fn keep_alive(&mut self, host: usize) {
        let run = self.hosts[host].run;
        let again = match self.route(host) {
            Some(_) => {
                self.renew(host);
                KEEP_ALIVE
            }
            None => KEEP_ALIVE / 4,
        };
        self.push(self.now + again, Action::ToAgent(host, run, Input::KeepAlive));
    }

    fn renew(&mut self, host: usize) {
        // What a store that is refused says of leases means nothing.
        let lease = self.hosts[host].lease.filter(|_| !self.is_refused(host));
        if lease.is_some_and(|id| self.store.keep_alive(id, self.now).is_err()) {
            self.hosts[host].lease = None;
            self.tell(host, StoreInput::LeaseLost);
        }
        let there = &mut self.hosts[host];
        if there.lease.is_none() && !std::mem::replace(&mut there.granting, true) {
            let run = there.run;
            self.propose_grant(host, run);
        }
        self.store_changed();
    }

    pub(super) fn granted(&mut self, host: usize, lease: Option<LeaseId>) {
        self.hosts[host].granting = false;
        if let Some(lease) = lease {
            self.hosts[host].lease = Some(lease);
            self.tell(host, StoreInput::Lease(lease));
        }
        self.store_changed();
    }

    /// A voter renews the lease of another.
    pub(super) fn renew_for_other(&mut self, host: usize, lease: LeaseId) {
        if self.route(host).is_some() {
            // Whether it succeeds is nobody's business.
            let _ = self.store.keep_alive(lease, self.now);
            self.store_changed();
        }
    }

    pub(super) fn tell(&mut self, host: usize, input: StoreInput) {
        self.on_agent(host, |agent, now| agent.handle_store(input, now));
    }

    /// The supervisor notices that the store answers, or no longer does.
    pub(super) fn pulse(&mut self, host: usize) {
        let answers = self.route(host).is_some() || self.is_deluded(host);
        let answers = answers && !self.is_refused(host);
        let there = &mut self.hosts[host];
        let run = there.run;
        there.away_since = if answers { None } else { there.away_since.or(Some(self.now)) };
        let away = there.away_since.is_some_and(|since| self.now.since(since) > PATIENCE);
        if answers != there.told_connected && (answers || away) {
            there.told_connected = answers;
            let input = if answers { StoreInput::Connected } else { StoreInput::Disconnected };
            self.tell(host, input);
        }
        self.push(self.now + PULSE, Action::ToAgent(host, run, Input::Pulse));
    }

    /// All members are asked; those that do not answer take all the time there is.
    pub(super) fn ask_health(&mut self, host: usize, run: u64) {
        let health = match self.cluster.members.is_empty() {
            true => {
                let up = self.route(host).is_some();
                Health { members: 1, answering: usize::from(up), led: up }
            }
            false => self.cluster.health(|member| self.reaches_member(host, member)),
        };
        let at = match health.answering == health.members {
            true => self.delay(1, 5),
            false => self.now + self.setup.timing.patience,
        };
        self.push(at, Action::ToAgent(host, run, Input::Health(health)));
    }

    /// The watch has something, or everything is to be read first.
    pub(super) fn deliver(&mut self, host: usize) {
        let run = self.hosts[host].run;
        self.hosts[host].delivering = false;
        let pause = match self.turn_to(host) {
            Some(turn) if turn.is_zero() => None,
            Some(turn) => Some(self.now + turn),
            // The supervisor tries again.
            None => Some(self.delay(50, 150)),
        };
        let pause = pause.or_else(|| self.is_refused(host).then(|| self.delay(50, 150)));
        if let Some(at) = pause {
            self.hosts[host].delivering = true;
            return self.push(at, Action::ToAgent(host, run, Input::Deliver));
        }
        let prefixes = keys::PREFIXES.map(str::to_owned);
        let reset = std::mem::take(&mut self.hosts[host].reset);
        let input = match self.hosts[host].seen.filter(|_| !reset) {
            None => StoreInput::Snapshot(self.store.read(&prefixes)),
            Some(seen) => match self.store.events_after(&prefixes, seen) {
                Ok(batch) => StoreInput::Batch(batch),
                Err(_) => StoreInput::Snapshot(self.store.read(&prefixes)),
            },
        };
        self.hosts[host].floor = Some(self.store.revision());
        if self.hosts[host].seen.replace(self.store.revision()).is_none() {
            self.checker.touch_all();
        }
        self.hosts[host].hears = true;
        self.tell(host, input);
    }

    /// Schedules what follows from a change in the store.
    pub(super) fn store_changed(&mut self) {
        let revision = self.store.revision();
        for host in 0..self.hosts.len() {
            if !self.hosts[host].is_behind(revision) {
                continue;
            }
            self.hosts[host].delivering = true;
            let run = self.hosts[host].run;
            let lag = self.hosts[host].part.watch_lag * 1000 + self.disk_of(host);
            let at = self.delay_micros(200, 3000 + lag);
            self.push(at, Action::ToAgent(host, run, Input::Deliver));
        }
        let next = self.store.next_expiry().map(|at| self.scanned_at(at));
        if let Some(at) = next.filter(|at| self.expire_at.is_none_or(|known| *at < known)) {
            self.expire_at = Some(at);
            self.push(at, Action::Expire);
        }
    }

    /// When the end of a lease is noticed and written. The store that is nowhere notices at once.
    fn scanned_at(&self, at: Time) -> Time {
        let at = at.max(self.now);
        match self.cluster.members.is_empty() {
            true => at,
            false => {
                let scan = at.as_micros().next_multiple_of(EXPIRY_SCAN);
                Time::from_micros(scan + self.cluster.commit_time())
            }
        }
    }

    /// Ends leases whose time is over, if there is a leader who could notice.
    pub(super) fn expire(&mut self) {
        if self.expire_at != Some(self.now) {
            return;
        }
        self.expire_at = None;
        if !self.cluster.members.is_empty() && self.cluster.acting_leader().is_none() {
            return;
        }
        self.store.expire(self.now);
        self.store_changed();
    }
}
