//! A cluster of gateways on virtual time.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use selvedge_gateway::cache::Network;
use selvedge_gateway::desired::{Desired, Duty};
use selvedge_gateway::keys;
use selvedge_gateway::kv::{self, LeaseId, Op, Revision, StoreError, Txn, TxnReply};
use selvedge_gateway::model::Model;
use selvedge_gateway::placement;
use selvedge_gateway::{Config, Event, Gateway, StoreInput, Token};
use selvedge_model::{NodeName, Time, Vni};

use super::check::{Checker, Violation};

/// How many changes of a network a violation is reported with.
const LAST_CHANGES: usize = 12;
/// How soon a frozen agent goes on at the latest when it may.
const THAW: Duration = Duration::from_millis(20);
/// How long a lease lives.
const TTL: Duration = Duration::from_secs(3);
/// How often it is renewed.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// What the cluster looks like.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Number of gateways; they are named `gw1`, `gw2` and so on.
    pub gateways: usize,
    /// Number of networks, with the VNIs from 1.
    pub networks: u32,
    /// Planned moves that may run at once.
    pub budget: usize,
    /// How long a node must be back before it is given networks.
    pub hold_down: Duration,
    /// Where all randomness comes from.
    pub seed: u64,
}

/// What happens at some time.
#[derive(Debug)]
enum Action {
    Timer(usize, u64),
    Deliver(usize, u64),
    KeepAlive(usize, u64),
    TxnArrives(usize, u64, Token, Txn),
    Reply(usize, u64, Token, Result<TxnReply, StoreError>),
    Apply(usize, u64),
    Expire,
}

impl Action {
    /// The host whose agent takes part.
    const fn agent(&self) -> Option<usize> {
        match self {
            Self::Timer(host, _)
            | Self::Deliver(host, _)
            | Self::KeepAlive(host, _)
            | Self::Reply(host, ..)
            | Self::Apply(host, _) => Some(*host),
            // What was sent arrives.
            Self::TxnArrives(..) | Self::Expire => None,
        }
    }
}

/// A gateway host: its kernel, and the agent if it runs.
#[derive(Debug)]
pub struct Host {
    /// Its name.
    pub name: NodeName,
    /// What the kernel does; it goes on when the agent has crashed.
    pub kernel: BTreeMap<Vni, Duty>,
    /// The agent.
    pub agent: Option<Gateway>,
    /// What its agent calls itself, to be told from another with the same name.
    pub identity: String,
    /// Whether the host reaches the store.
    pub linked: bool,
    /// Whether its agent is stopped, and will go on where it was.
    pub frozen: bool,
    /// Whether its agent has heard from the store since it was last cut off or frozen.
    pub hears: bool,
    /// Whether its agent has found its name taken.
    pub name_taken: bool,
    /// Whether the agent has said that it owns nothing any more.
    pub left: bool,
    run: u64,
    seen: Option<Revision>,
    lease: Option<LeaseId>,
    wanted: BTreeMap<Vni, Desired>,
    applying: bool,
    delivering: bool,
    timer: Option<Time>,
}

/// The cluster.
pub struct World {
    /// What it was made of.
    pub setup: Setup,
    /// The present.
    pub now: Time,
    /// The store.
    pub store: Model,
    /// Whether the store answers anybody.
    pub store_up: bool,
    /// The hosts.
    pub hosts: Vec<Host>,
    /// The invariants.
    pub checker: Checker,
    /// Every violation with the seed and what happened to the network before.
    pub violations: Vec<String>,
    checked: Revision,
    /// When each revision was first seen.
    times: BTreeMap<Revision, Time>,
    rng: ChaCha8Rng,
    queue: BTreeMap<(Time, u64), Action>,
    sequence: u64,
}

impl World {
    /// A cluster in which no agent runs yet.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        let hosts = (1..=setup.gateways).map(|number| Host::new(&format!("gw{number}"))).collect();
        let vnis = vnis(setup.networks).collect();
        let store = Model::new();
        Self {
            now: Time::from_micros(1),
            checked: store.revision(),
            store,
            store_up: true,
            hosts,
            checker: Checker::new(vnis, setup.budget),
            violations: Vec::new(),
            times: BTreeMap::new(),
            rng: ChaCha8Rng::seed_from_u64(setup.seed),
            queue: BTreeMap::new(),
            sequence: 0,
            setup,
        }
    }

    /// Adds a host; returns its index.
    pub fn add_host(&mut self, name: &str, identity: &str) -> usize {
        self.hosts.push(Host { identity: identity.to_owned(), ..Host::new(name) });
        self.hosts.len() - 1
    }

    /// Starts the agent of a host: a new run, that finds the kernel as it is.
    pub fn start(&mut self, host: usize) {
        let name = self.hosts[host].name.clone();
        let config = Config {
            ids: placement::ids_of(&name, placement::DEFAULT_IDS),
            identity: self.hosts[host].identity.clone(),
            name,
            version: "sim".to_owned(),
            networks: vnis(self.setup.networks).collect(),
            settle: Duration::from_millis(400),
            announce: Duration::from_secs(10),
            budget: self.setup.budget,
            hold_down: self.setup.hold_down,
            wall_at_zero_ms: 1_800_000_000_000,
        };
        self.checker.touch_all();
        let seed = self.rng.random();
        let agent = Gateway::new(config, seed, self.now);
        let run = self.hosts[host].start(agent);
        let soon = self.delay(1, 50);
        self.push(soon, Action::KeepAlive(host, run));
        let soon = self.delay(1, 20);
        self.push(soon, Action::Deliver(host, run));
        self.drive(host);
    }

    /// Kills the agent of a host; the kernel goes on.
    pub fn crash(&mut self, host: usize) {
        let host = &mut self.hosts[host];
        host.run += 1;
        host.agent = None;
        self.checker.touch_all();
    }

    /// Kills agent and kernel.
    pub fn power_off(&mut self, host: usize) {
        self.crash(host);
        self.hosts[host].kernel.clear();
    }

    /// Cuts a host off from the store, or lifts that again.
    pub fn set_linked(&mut self, host: usize, linked: bool) {
        self.hosts[host].linked = linked;
        self.note_hearing(host);
    }

    /// Stops an agent, or lets it go on; its kernel goes on all the time.
    pub fn set_frozen(&mut self, host: usize, frozen: bool) {
        self.hosts[host].frozen = frozen;
        self.note_hearing(host);
    }

    /// Who was cut off or frozen hears when it is told what it missed.
    fn note_hearing(&mut self, host: usize) {
        let revision = self.store.revision();
        let host = &mut self.hosts[host];
        host.hears = host.linked && !host.frozen && host.seen == Some(revision);
        self.checker.touch_all();
    }

    /// Gives an agent an operator's word.
    pub fn with_agent(&mut self, host: usize, act: impl FnOnce(&mut Gateway, Time)) {
        let now = self.now;
        if let Some(agent) = &mut self.hosts[host].agent {
            act(agent, now);
        }
        self.drive(host);
    }

    /// Lets time pass until `until`, or until `stop` says so after a step. Returns whether it did.
    pub fn run_until(&mut self, until: Time, mut stop: impl FnMut(&mut Self) -> bool) -> bool {
        loop {
            if stop(self) {
                return true;
            }
            match self.queue.first_entry() {
                Some(entry) if entry.key().0 <= until => {
                    let ((at, _), action) = entry.remove_entry();
                    self.now = self.now.max(at);
                    self.act(action);
                    self.check();
                }
                Some(_) | None => {
                    self.now = until;
                    return false;
                }
            }
        }
    }

    /// Lets time pass.
    pub fn run_for(&mut self, time: Duration) {
        self.run_until(self.now + time, |_| false);
    }

    /// All networks.
    pub fn vnis(&self) -> impl Iterator<Item = Vni> + use<> {
        vnis(self.setup.networks)
    }

    /// A network as the store has it.
    #[must_use]
    pub fn network(&self, vni: Vni) -> Network {
        self.checker.cache.networks.get(&vni).cloned().unwrap_or_default()
    }

    /// How many networks the store says a node owns.
    #[must_use]
    pub fn owned_by(&self, name: &str) -> usize {
        let name = name.parse().expect("a valid name");
        self.checker.cache.owned(&name).count()
    }

    /// Writes keys past all agents, as a foreign client would: a value, or `None` to delete.
    pub fn meddle(&mut self, key: &str, value: Option<&str>) {
        let key = key.to_owned();
        let op = match value {
            Some(value) => Op::Put { key, value: value.into(), lease: None },
            None => Op::Delete { key },
        };
        self.txn(&Txn { compare: vec![], then: vec![op] });
    }

    /// Runs a transaction past all agents. Returns whether it was committed.
    pub fn txn(&mut self, txn: &Txn) -> bool {
        let reply = self.store.txn(txn);
        self.store_changed();
        self.check();
        reply.is_ok_and(|reply| reply.committed)
    }

    fn act(&mut self, action: Action) {
        if action.agent().is_some_and(|host| self.hosts[host].frozen) {
            return self.push(self.now + THAW, action);
        }
        match action {
            Action::Timer(host, run) => {
                let now = self.now;
                self.on_agent(host, run, |agent| agent.handle_timeout(now));
            }
            Action::Deliver(host, run) => self.deliver(host, run),
            Action::KeepAlive(host, run) => self.keep_alive(host, run),
            Action::TxnArrives(host, run, token, txn) => self.txn_arrives(host, run, token, &txn),
            Action::Reply(host, run, token, reply) => {
                let now = self.now;
                self.on_agent(host, run, |agent| agent.handle_reply(token, reply, now));
            }
            Action::Apply(host, run) => self.apply(host, run),
            Action::Expire => {
                self.store.expire(self.now);
                self.store_changed();
            }
        }
    }

    fn on_agent(&mut self, host: usize, run: u64, act: impl FnOnce(&mut Gateway)) {
        let there = &mut self.hosts[host];
        if there.run != run {
            return;
        }
        if let Some(agent) = &mut there.agent {
            act(agent);
        }
        self.drive(host);
    }

    /// Takes all outputs of an agent.
    fn drive(&mut self, host: usize) {
        let now = self.now;
        let there = &mut self.hosts[host];
        let Some(agent) = &mut there.agent else { return };
        let run = there.run;
        let mut txns = Vec::new();
        while let Some(txn) = agent.poll_transaction() {
            txns.push(txn);
        }
        while let Some((vni, desired)) = agent.poll_desired() {
            there.wanted.insert(vni, desired);
        }
        while let Some(event) = agent.poll_event() {
            match event {
                Event::Left => there.left = true,
                Event::NameTaken { .. } => there.name_taken = true,
                Event::Registered { .. } => there.name_taken = false,
                Event::Convicted
                | Event::ForeignValue { .. }
                | Event::State { .. }
                | Event::Gained { .. }
                | Event::Lost { .. }
                | Event::Planner(_) => {}
            }
        }
        let timer = agent.poll_timeout().max(now);
        let new_timer = there.timer != Some(timer);
        there.timer = Some(timer);
        let applies = !there.wanted.is_empty() && !there.applying;
        there.applying |= applies;
        for (token, txn) in txns {
            let at = self.delay_micros(200, 2000);
            self.push(at, Action::TxnArrives(host, run, token, txn));
        }
        if new_timer {
            self.push(timer, Action::Timer(host, run));
        }
        if applies {
            let at = self.delay(2, 40);
            self.push(at, Action::Apply(host, run));
        }
    }

    fn reaches_store(&self, host: usize) -> bool {
        self.store_up && self.hosts[host].linked
    }

    fn txn_arrives(&mut self, host: usize, run: u64, token: Token, txn: &Txn) {
        // What an agent sent arrives even if the agent has crashed since.
        let reply = match self.reaches_store(host) {
            true => self.store.txn(txn),
            false => Err(StoreError::Unavailable("simulated".to_owned())),
        };
        self.store_changed();
        let at = self.delay_micros(200, 2000);
        self.push(at, Action::Reply(host, run, token, reply));
    }

    fn keep_alive(&mut self, host: usize, run: u64) {
        if self.hosts[host].run != run || self.hosts[host].agent.is_none() {
            return;
        }
        if self.reaches_store(host) {
            let lost = self.hosts[host]
                .lease
                .is_some_and(|id| self.store.keep_alive(id, self.now).is_err());
            if lost {
                self.hosts[host].lease = None;
                self.tell(host, run, StoreInput::LeaseLost);
            }
            if self.hosts[host].lease.is_none() {
                let lease = self.store.grant(TTL, self.now);
                self.hosts[host].lease = Some(lease);
                self.tell(host, run, StoreInput::Lease(lease));
            }
            self.store_changed();
        }
        self.push(self.now + KEEP_ALIVE, Action::KeepAlive(host, run));
    }

    fn tell(&mut self, host: usize, run: u64, input: StoreInput) {
        let now = self.now;
        self.on_agent(host, run, |agent| agent.handle_store(input, now));
    }

    fn deliver(&mut self, host: usize, run: u64) {
        if self.hosts[host].run != run {
            return;
        }
        self.hosts[host].delivering = false;
        if !self.reaches_store(host) {
            // The supervisor tries again.
            self.hosts[host].delivering = true;
            let at = self.delay(50, 150);
            return self.push(at, Action::Deliver(host, run));
        }
        let prefixes = keys::PREFIXES.map(str::to_owned);
        let input = match self.hosts[host].seen {
            None => StoreInput::Snapshot(self.store.read(&prefixes)),
            Some(seen) => match self.store.events_after(&prefixes, seen) {
                Ok(batch) => StoreInput::Batch(batch),
                Err(_) => StoreInput::Snapshot(self.store.read(&prefixes)),
            },
        };
        self.hosts[host].seen = Some(self.store.revision());
        self.hosts[host].hears = true;
        self.tell(host, run, input);
    }

    /// Schedules what follows from a change in the store.
    fn store_changed(&mut self) {
        let revision = self.store.revision();
        let behind: Vec<usize> =
            (0..self.hosts.len()).filter(|host| self.hosts[*host].is_behind(revision)).collect();
        for host in behind {
            self.hosts[host].delivering = true;
            let run = self.hosts[host].run;
            let at = self.delay_micros(200, 3000);
            self.push(at, Action::Deliver(host, run));
        }
        if let Some(at) = self.store.next_expiry() {
            self.push(at.max(self.now), Action::Expire);
        }
    }

    fn apply(&mut self, host: usize, run: u64) {
        let there = &mut self.hosts[host];
        if there.run != run {
            return;
        }
        there.applying = false;
        let wanted = std::mem::take(&mut there.wanted);
        for (vni, desired) in &wanted {
            if there.kernel.insert(*vni, desired.duty) != Some(desired.duty) {
                self.checker.touch(*vni);
            }
        }
        let now = self.now;
        self.on_agent(host, run, |agent| agent.handle_applied(wanted, now));
    }

    fn check(&mut self) {
        if self.checked < self.store.revision() {
            let prefixes = keys::PREFIXES.map(str::to_owned);
            let batch = self.store.events_after(&prefixes, self.checked);
            let batch = batch.expect("less than the store remembers happens at once");
            self.checked = batch.revision;
            self.times.insert(batch.revision, self.now);
            self.checker.store_changed(&batch.events, self.now);
        }
        self.checker.hosts(&self.hosts, self.now);
        for number in self.violations.len()..self.checker.violations.len() {
            let text = self.described(&self.checker.violations[number]);
            self.violations.push(text);
        }
    }

    /// A violation with all that is needed to look into it.
    fn described(&self, violation: &Violation) -> String {
        let Violation { at, invariant, vni, text } = violation;
        let seed = self.setup.seed;
        let Some(vni) = vni else { return format!("seed {seed}, {at}: {invariant}: {text}") };
        let mut lines = format!("seed {seed}, {at}: {invariant}: network {vni}: {text}");
        for host in &self.hosts {
            let duty = host.kernel.get(vni).copied().unwrap_or_default();
            let runs = if host.agent.is_some() { "runs" } else { "does not run" };
            lines += &format!("\n  {} {runs} and does {duty:?}", host.name);
        }
        let prefixes = [format!("/wmgwd/vni/{vni}/"), format!("{}/", keys::history(*vni))];
        let events = self.store.events_after(&prefixes, self.store.compacted());
        let events = events.map(|batch| batch.events).unwrap_or_default();
        for event in events.iter().skip(events.len().saturating_sub(LAST_CHANGES)) {
            lines += &format!("\n  {}", self.told(event));
        }
        lines
    }

    fn told(&self, event: &kv::Event) -> String {
        let (key, value, at) = match event {
            kv::Event::Put(kv) => (&kv.key, String::from_utf8_lossy(&kv.value), kv.modified),
            kv::Event::Delete { key, modified } => (key, "deleted".into(), *modified),
        };
        let time = self.times.range(at..).next().map(|(_, time)| time.to_string());
        format!("{} revision {at}: {key} {value}", time.unwrap_or_default())
    }

    fn delay(&mut self, from_ms: u64, to_ms: u64) -> Time {
        self.delay_micros(from_ms * 1000, to_ms * 1000)
    }

    fn delay_micros(&mut self, from: u64, to: u64) -> Time {
        self.now + Duration::from_micros(self.rng.random_range(from..to))
    }

    fn push(&mut self, at: Time, action: Action) {
        // An expiry is looked at once per moment, however often it is scheduled.
        if matches!(action, Action::Expire)
            && self.queue.range((at, 0)..=(at, u64::MAX)).any(|(_, a)| matches!(a, Action::Expire))
        {
            return;
        }
        self.sequence += 1;
        self.queue.insert((at, self.sequence), action);
    }
}

fn vnis(networks: u32) -> impl Iterator<Item = Vni> {
    (1..=networks).filter_map(|number| number.try_into().ok())
}

impl Host {
    fn new(name: &str) -> Self {
        Self {
            name: name.parse().expect("a valid name"),
            kernel: BTreeMap::new(),
            agent: None,
            identity: name.to_owned(),
            linked: true,
            frozen: false,
            hears: false,
            name_taken: false,
            left: false,
            run: 0,
            seen: None,
            lease: None,
            wanted: BTreeMap::new(),
            applying: false,
            delivering: false,
            timer: None,
        }
    }

    fn is_behind(&self, revision: Revision) -> bool {
        let behind = self.seen.is_some_and(|seen| seen < revision);
        behind && self.agent.is_some() && !self.delivering
    }

    fn start(&mut self, agent: Gateway) -> u64 {
        let kernel = std::mem::take(&mut self.kernel);
        let identity = std::mem::take(&mut self.identity);
        let (run, linked) = (self.run + 1, self.linked);
        *self = Self { run, kernel, identity, linked, ..Self::new(self.name.as_str()) };
        self.agent = Some(agent);
        self.delivering = true;
        run
    }
}
