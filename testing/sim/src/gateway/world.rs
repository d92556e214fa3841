//! A cluster of gateways on virtual time.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use selvedge_gateway::desired::{Desired, Duty};
use selvedge_gateway::keys;
use selvedge_gateway::kv::{LeaseId, Revision, StoreError, Txn, TxnReply};
use selvedge_gateway::model::Model;
use selvedge_gateway::placement;
use selvedge_gateway::{Config, Event, Gateway, StoreInput, Token};
use selvedge_model::{NodeName, Time, Vni};

use super::check::Checker;

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

/// A gateway host: its kernel, and the agent if it runs.
#[derive(Debug)]
pub struct Host {
    /// Its name.
    pub name: NodeName,
    /// What the kernel does; it goes on when the agent has crashed.
    pub kernel: BTreeMap<Vni, Duty>,
    /// The agent.
    pub agent: Option<Gateway>,
    /// Whether the host reaches the store.
    pub linked: bool,
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
    checked: Revision,
    rng: ChaCha8Rng,
    queue: BTreeMap<(Time, u64), Action>,
    sequence: u64,
}

impl World {
    /// A cluster in which no agent runs yet.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        let hosts = (1..=setup.gateways).map(Host::new).collect();
        let mut world = Self {
            now: Time::from_micros(1),
            store: Model::with_history(usize::MAX),
            store_up: true,
            hosts,
            checker: Checker::new(setup.budget),
            checked: Revision(0),
            rng: ChaCha8Rng::seed_from_u64(setup.seed),
            queue: BTreeMap::new(),
            sequence: 0,
            setup,
        };
        world.checked = world.store.revision();
        world
    }

    /// Starts the agent of a host: a new run, that finds the kernel as it is.
    pub fn start(&mut self, host: usize) {
        let name = self.hosts[host].name.clone();
        let config = Config {
            ids: placement::ids_of(&name, placement::DEFAULT_IDS),
            identity: name.to_string(),
            name,
            version: "sim".to_owned(),
            networks: (1..=self.setup.networks).filter_map(|n| n.try_into().ok()).collect(),
            settle: Duration::from_millis(400),
            announce: Duration::from_secs(10),
            budget: self.setup.budget,
            hold_down: self.setup.hold_down,
            wall_at_zero_ms: 1_800_000_000_000,
        };
        self.hosts[host].kernel.keys().for_each(|vni| self.checker.touch(*vni));
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
    }

    /// Kills agent and kernel.
    pub fn power_off(&mut self, host: usize) {
        self.crash(host);
        self.hosts[host].kernel.clear();
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

    /// The owner of a network, and its state's number, as the store has them.
    #[must_use]
    pub fn network(&self, vni: Vni) -> (Option<String>, String, String) {
        let text = |field| {
            let kv = self.store.get(&keys::network(vni, field))?;
            Some(String::from_utf8_lossy(&kv.value).into_owned())
        };
        let current = text(keys::Field::Current);
        let state = text(keys::Field::Type).unwrap_or_else(|| "0".to_owned());
        (current, state, text(keys::Field::Next).unwrap_or_default())
    }

    /// All networks.
    pub fn vnis(&self) -> impl Iterator<Item = Vni> + use<> {
        (1..=self.setup.networks).filter_map(|number| number.try_into().ok())
    }

    /// Why the cluster is not at rest; `None` if every network is idle, owned by a gateway whose
    /// agent runs, and served by that one's kernel and no other running one's.
    #[must_use]
    pub fn unrest(&self) -> Option<String> {
        self.vnis().find_map(|vni| self.unrest_of(vni))
    }

    /// Why the cluster is not balanced: a network that is not where the placement wants it, as
    /// the first running agent sees it.
    #[must_use]
    pub fn imbalance(&self) -> Option<String> {
        let agent = self.hosts.iter().find_map(|host| host.agent.as_ref())?;
        let away = agent.networks().into_iter().find(|row| row.current != row.placed)?;
        Some(format!("network {} of {:?} belongs on {:?}", away.vni, away.current, away.placed))
    }

    fn unrest_of(&self, vni: Vni) -> Option<String> {
        let (current, state, next) = self.network(vni);
        if state != "1" || !next.is_empty() {
            return Some(format!("network {vni} is in state {state}, next {next:?}"));
        }
        let Some(owner) = current else { return Some(format!("network {vni} has no owner")) };
        for host in self.hosts.iter().filter(|host| host.agent.is_some()) {
            let duty = host.kernel.get(&vni).copied().unwrap_or_default();
            let right = match host.name.as_str() == owner {
                true => duty == Duty::FULL || duty == Duty::TAKEOVER,
                false => duty == Duty::NONE,
            };
            if !right {
                return Some(format!("network {vni} of {owner}: {} does {duty:?}", host.name));
            }
        }
        let runs = self.hosts.iter().any(|h| h.name.as_str() == owner && h.agent.is_some());
        (!runs).then(|| format!("network {vni} is owned by {owner}, whose agent is gone"))
    }

    fn act(&mut self, action: Action) {
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
            there.left |= event == Event::Left;
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
        self.tell(host, run, input);
    }

    /// Schedules what follows from a change in the store.
    fn store_changed(&mut self) {
        let revision = self.store.revision();
        let behind: Vec<usize> = (0..self.hosts.len())
            .filter(|host| self.hosts[*host].is_behind(revision))
            .collect();
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
        let prefixes = ["/wmgwd/".to_owned(), "/selvedge/history/".to_owned()];
        if let Ok(batch) = self.store.events_after(&prefixes, self.checked)
            && self.checked < self.store.revision()
        {
            self.checked = self.store.revision();
            self.checker.store_changed(&batch.events, self.now);
        }
        self.checker.hosts(&self.hosts, self.now);
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

impl Host {
    fn new(number: usize) -> Self {
        Self {
            name: format!("gw{number}").parse().expect("a short name of letters and digits"),
            kernel: BTreeMap::new(),
            agent: None,
            linked: true,
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
        let (name, run) = (self.name.clone(), self.run + 1);
        *self = Self { name, run, kernel, linked: self.linked, ..Self::new(1) };
        self.agent = Some(agent);
        self.delivering = true;
        run
    }
}
