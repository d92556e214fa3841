//! What passes between the agents and the store: transactions, watches, leases, health.

use std::time::Duration;

use rand::RngExt;
use selvedge_gateway::kv::{Health, LeaseId, StoreError, Txn, TxnReply};
use selvedge_gateway::{StoreInput, Token, keys};
use selvedge_model::Time;

use super::host::Input;
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
        let reply = self.store.txn(&txn);
        self.store_changed();
        let at = self.delay_micros(200, 2000 + self.disk);
        self.push(at, Action::ToAgent(host, run, Input::Reply(token, reply)));
    }

    fn txn_fails(&mut self, host: usize, run: u64, token: Token, txn: Txn) {
        // The old leader may have passed it on before it was lost; then the new one commits it.
        if self.reaches_any(host) && self.rng.random_bool(0.2) {
            self.late.push(txn);
        }
        let reply = Err(StoreError::Unavailable("simulated".to_owned()));
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
            let reply = Err(StoreError::Unavailable("simulated".to_owned()));
            let at = self.delay(5, 1000);
            return self.push(at, Action::ToAgent(host, run, Input::Reply(token, reply)));
        }
        self.on_agent(host, |agent, now| agent.handle_reply(token, reply, now));
    }

    fn reaches_any(&self, host: usize) -> bool {
        (0..self.cluster.members.len()).any(|member| self.reaches_member(host, member))
    }

    /// What a new leader does first: it commits what it was told before, and all leases get
    /// their full time again.
    pub(super) fn elected(&mut self) {
        for txn in std::mem::take(&mut self.late) {
            // It may be refused like any other; nobody waits for the answer.
            let _ = self.store.txn(&txn);
        }
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
        let lease = self.hosts[host].lease;
        if lease.is_some_and(|id| self.store.keep_alive(id, self.now).is_err()) {
            self.hosts[host].lease = None;
            self.tell(host, StoreInput::LeaseLost);
        }
        if self.hosts[host].lease.is_none() {
            let lease = self.store.grant(self.setup.timing.lease, self.now);
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
        if let Some(at) = pause {
            self.hosts[host].delivering = true;
            return self.push(at, Action::ToAgent(host, run, Input::Deliver));
        }
        let prefixes = keys::PREFIXES.map(str::to_owned);
        let input = match self.hosts[host].seen {
            None => StoreInput::Snapshot(self.store.read(&prefixes)),
            Some(seen) => match self.store.events_after(&prefixes, seen) {
                Ok(batch) => StoreInput::Batch(batch),
                Err(_) => StoreInput::Snapshot(self.store.read(&prefixes)),
            },
        };
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
            let lag = self.hosts[host].part.watch_lag * 1000;
            let at = self.delay_micros(200, 3000 + lag);
            self.push(at, Action::ToAgent(host, run, Input::Deliver));
        }
        let next = self.store.next_expiry().map(|at| self.scanned_at(at));
        if let Some(at) = next.filter(|at| self.expire_at.is_none_or(|known| *at < known)) {
            self.expire_at = Some(at);
            self.push(at, Action::Expire);
        }
    }

    /// When the end of a lease is noticed. The store that is nowhere notices at once.
    fn scanned_at(&self, at: Time) -> Time {
        let at = at.max(self.now);
        match self.cluster.members.is_empty() {
            true => at,
            false => Time::from_micros(at.as_micros().next_multiple_of(EXPIRY_SCAN)),
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
