//! A store and some agents without any delay between them.

use std::collections::BTreeMap;
use std::time::Duration;

use selvedge_gateway::cache::Cache;
use selvedge_gateway::desired::{Desired, Duty};
use selvedge_gateway::keys;
use selvedge_gateway::kv::{Compare, Health, LeaseId, Op, Revision, StoreError, Txn};
use selvedge_gateway::model::Model;
use selvedge_gateway::placement::fmix64;
use selvedge_gateway::{Config, Event, Gateway, Isolated, NodeRole, StoreInput, Timing, Token};
use selvedge_model::{NodeName, Time, Vni};

pub(crate) const BUDGET: usize = 2;
pub(crate) const HOLD_DOWN: Duration = Duration::from_secs(5);
pub(crate) const SETTLE: Duration = Duration::from_millis(400);
pub(crate) const MS: Duration = Duration::from_millis(1);
pub(crate) const SECOND: Duration = Duration::from_secs(1);

pub(crate) struct Agent {
    pub(crate) core: Gateway,
    pub(crate) lease: LeaseId,
    pub(crate) events: Vec<Event>,
    /// What was asked of the host, the latest for each network.
    pub(crate) wanted: BTreeMap<Vni, Desired>,
    /// Whether its transactions go to the store; else they pile up in `held`.
    pub(crate) writes: bool,
    pub(crate) held: Vec<(Token, Txn)>,
    /// Whether it hears what happens in the store.
    pub(crate) hears: bool,
    /// Whether its host does at once what it is asked.
    pub(crate) applies: bool,
    /// Whether other voters and it reach each other.
    pub(crate) linked: bool,
    /// Whether its process runs.
    pub(crate) runs: bool,
    /// Whether its host was told to be silent.
    pub(crate) silent: bool,
    /// How often the switch was touched.
    pub(crate) switches: usize,
    seen: Option<Revision>,
}

pub(crate) struct Bench {
    pub(crate) store: Model,
    pub(crate) now: Time,
    pub(crate) agents: Vec<Agent>,
    /// How the store's members are; without a leader nobody writes, and nobody hears.
    pub(crate) health: Health,
}

pub(crate) const WHOLE: Health = Health { members: 3, answering: 3, led: true };

pub(crate) fn vni(number: u32) -> Vni {
    number.try_into().expect("a valid vni")
}

pub(crate) fn name(text: &str) -> NodeName {
    text.parse().expect("a valid name")
}

/// Ids that draw exactly these networks.
pub(crate) fn ids_for(vnis: &[u32]) -> Vec<u64> {
    vnis.iter().map(|vni| fmix64(u64::from(*vni))).collect()
}

pub(crate) fn config(text: &str, ids: Vec<u64>, networks: u32) -> Config {
    Config {
        name: name(text),
        identity: format!("key of {text}"),
        version: "1".to_owned(),
        ids,
        networks: (1..=networks).map(vni).collect(),
        settle: SETTLE,
        announce: Duration::from_secs(10),
        budget: BUDGET,
        hold_down: HOLD_DOWN,
        damping: Duration::from_secs(20),
        wall_at_zero_ms: 0,
        role: NodeRole::Gateway,
        probe: Vec::new(),
        timing: Timing::default(),
        isolated: Isolated::Auto,
    }
}

impl Bench {
    pub(crate) fn new() -> Self {
        let (store, agents) = (Model::new(), Vec::new());
        Self { store, now: Time::from_micros(1), agents, health: WHOLE }
    }

    /// Adds an agent and returns its index; nothing has happened yet.
    pub(crate) fn add(&mut self, config: Config) -> usize {
        let lease = self.lease();
        let core = Gateway::new(config, 1, self.now);
        self.agents.push(Agent {
            core,
            lease,
            events: Vec::new(),
            wanted: BTreeMap::new(),
            writes: true,
            held: Vec::new(),
            hears: true,
            applies: true,
            linked: true,
            runs: true,
            silent: false,
            switches: 0,
            seen: None,
        });
        let index = self.agents.len() - 1;
        self.agents[index].core.handle_store(StoreInput::Lease(lease), self.now);
        index
    }

    /// Gives an agent a new lease instead of one that has ended.
    pub(crate) fn renew(&mut self, agent: usize) {
        let (lease, now) = (self.lease(), self.now);
        self.agents[agent].lease = lease;
        self.agents[agent].core.handle_store(StoreInput::LeaseLost, now);
        self.agents[agent].core.handle_store(StoreInput::Lease(lease), now);
    }

    /// In place of the store there is another one, without leases; nobody reads it yet.
    pub(crate) fn replace_store(&mut self, ops: Vec<Op>, beyond: Revision) {
        self.store = Model::new();
        self.store.txn(&Txn { compare: vec![], then: ops }).expect("accepted");
        while self.store.revision() <= beyond {
            self.put(keys::REFILLED, "", None);
        }
        for agent in 0..self.agents.len() {
            self.agents[agent].seen = None;
        }
    }

    /// Begins a new run of an agent on a host that goes on as it is, with a lease of its own.
    pub(crate) fn run_anew(&mut self, agent: usize, config: Config) {
        let (lease, now) = (self.lease(), self.now);
        let agent = &mut self.agents[agent];
        let memory = agent.core.memory();
        (agent.core, agent.lease, agent.seen) = (Gateway::new(config, 2, now), lease, None);
        if let Some(memory) = memory {
            agent.core.recall(memory, now);
        }
        agent.core.handle_store(StoreInput::Lease(lease), now);
        agent.runs = true;
    }

    /// Lets a host do what it was asked for, and keep up from now on.
    pub(crate) fn catch_up(&mut self, agent: usize) {
        let agent = &mut self.agents[agent];
        agent.applies = true;
        let wanted: Vec<(Vni, Desired)> = agent.wanted.clone().into_iter().collect();
        agent.core.handle_applied(wanted, self.now);
    }

    /// A lease that outlives the test unless it is revoked.
    pub(crate) fn lease(&mut self) -> LeaseId {
        self.store.grant(Duration::from_secs(1_000_000), self.now)
    }

    pub(crate) fn put(&mut self, key: &str, value: &str, lease: Option<LeaseId>) {
        let op = Op::Put { key: key.to_owned(), value: value.into(), lease };
        let txn = Txn { compare: vec![], then: vec![op] };
        assert!(self.store.txn(&txn).expect("accepted").committed);
    }

    /// Lets everybody hear and do everything until nobody has anything to do.
    pub(crate) fn settle(&mut self) {
        for _ in 0..10_000 {
            let before = self.store.revision();
            let quiet = (0..self.agents.len()).map(|agent| self.turn(agent)).all(|busy| !busy);
            if quiet && before == self.store.revision() {
                return;
            }
        }
        panic!("no end of it: {:?}", self.store.read(&[String::from("/")]).keys);
    }

    /// Lets time pass.
    pub(crate) fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        self.settle();
        while let Some(at) =
            self.agents.iter().filter(|a| a.runs).map(|a| a.core.poll_timeout()).min()
        {
            if at > until {
                break;
            }
            self.now = self.now.max(at);
            for agent in self.agents.iter_mut().filter(|agent| agent.runs) {
                if agent.core.poll_timeout() <= self.now {
                    agent.core.handle_timeout(self.now);
                }
            }
            self.settle();
        }
        self.now = until;
    }

    /// The store's contents, parsed.
    pub(crate) fn cache(&self) -> Cache {
        let mut cache = Cache::default();
        cache.replace(self.store.read(&keys::PREFIXES.map(str::to_owned)));
        cache
    }

    /// What a node is registered as.
    pub(crate) fn incarnation(&self, text: &str) -> Option<Revision> {
        self.cache().live.get(&name(text)).map(|live| live.incarnation)
    }

    pub(crate) fn owner(&self, number: u32) -> Option<String> {
        let cache = self.cache();
        cache.networks.get(&vni(number))?.current().map(ToString::to_string)
    }

    pub(crate) fn duty(&self, agent: usize, number: u32) -> Duty {
        self.agents[agent].wanted.get(&vni(number)).copied().unwrap_or_default().duty
    }

    /// The transactions that an agent wants to run, in words, with every revision checked
    /// against the store.
    pub(crate) fn held(&self, agent: usize) -> Vec<String> {
        self.agents[agent].held.iter().flat_map(|(_, txn)| self.words(txn)).collect()
    }

    /// A nested transaction is told with what surrounds it, as one by itself.
    fn words(&self, txn: &Txn) -> Vec<String> {
        let told = |compare: Vec<Compare>, then: &[Op]| {
            let compare: Vec<String> = compare.iter().map(|c| self.condition(c)).collect();
            let then: Vec<String> = then.iter().map(change).collect();
            format!("if {}; then {}", compare.join(", "), then.join(", "))
        };
        let own: Vec<Op> =
            txn.then.iter().filter(|op| !matches!(op, Op::Nested(_))).cloned().collect();
        let nested = txn.then.iter().filter_map(|op| match op {
            Op::Nested(inner) => {
                Some(told([txn.compare.clone(), inner.compare.clone()].concat(), &inner.then))
            }
            Op::Put { .. } | Op::Delete { .. } => None,
        });
        let plain = (!own.is_empty()).then(|| told(txn.compare.clone(), &own));
        plain.into_iter().chain(nested).collect()
    }

    fn condition(&self, compare: &Compare) -> String {
        let found = |key| self.store.get(key).expect("what is compared exists");
        match compare {
            Compare::Absent { key } => format!("no {}", short(key)),
            Compare::Exists { key } => format!("any {}", short(key)),
            Compare::Modified { key, at } => {
                assert_eq!(found(key).modified, *at, "{key}");
                format!("same {}", short(key))
            }
            Compare::Created { key, at } => {
                assert_eq!(found(key).create, *at, "{key}");
                format!("own {}", short(key))
            }
        }
    }

    fn turn(&mut self, index: usize) -> bool {
        let (up, health) = (self.health.led, self.health);
        let agent = &mut self.agents[index];
        if !agent.runs {
            return false;
        }
        let mut busy = up && agent.hears && agent.hear(&self.store, self.now);
        if agent.core.poll_health() {
            agent.core.handle_health(health, self.now);
        }
        if let Some(silent) = agent.core.poll_silence() {
            agent.silent = silent;
            agent.switches += 1;
        }
        // Leases outlive the test here.
        while agent.core.poll_renewal().is_some() {}
        while let Some(event) = agent.core.poll_event() {
            agent.events.push(event);
        }
        let mut reached = Vec::new();
        while let Some((vni, desired)) = agent.core.poll_desired() {
            agent.wanted.insert(vni, desired);
            reached.push((vni, desired));
        }
        if agent.applies && !reached.is_empty() {
            agent.core.handle_applied(reached, self.now);
            busy = true;
        }
        while let Some((token, txn)) = agent.core.poll_transaction() {
            if agent.writes {
                let away = StoreError::Unavailable("no leader".to_owned());
                let reply = if up { self.store.txn(&txn) } else { Err(away) };
                agent.core.handle_reply(token, reply, self.now);
                busy = true;
            } else {
                agent.held.push((token, txn));
            }
        }
        self.deliver(index) || busy
    }

    /// Takes what an agent has to say to the others.
    fn deliver(&mut self, from: usize) -> bool {
        let mut busy = false;
        while let Some(outgoing) = self.agents[from].core.poll_message() {
            let (linked, sender) = {
                let agent = &self.agents[from];
                (agent.linked, agent.core.name().clone())
            };
            let named = |agent: &&mut Agent| *agent.core.name() == outgoing.to;
            let to = self.agents.iter_mut().find(named).filter(|to| linked && to.linked && to.runs);
            let Some(to) = to else { continue };
            to.core.handle_message(&sender, outgoing.addr, outgoing.message, self.now);
            busy = true;
        }
        busy
    }
}

impl Agent {
    fn hear(&mut self, store: &Model, now: Time) -> bool {
        let prefixes = keys::PREFIXES.map(str::to_owned);
        let input = match self.seen {
            None => StoreInput::Snapshot(store.read(&prefixes)),
            Some(seen) if seen == store.revision() => return false,
            Some(seen) => StoreInput::Batch(store.events_after(&prefixes, seen).expect("recent")),
        };
        self.seen = Some(store.revision());
        self.core.handle_store(input, now);
        true
    }
}

fn change(op: &Op) -> String {
    match op {
        Op::Delete { key } => format!("delete {}", short(key)),
        Op::Put { key, value, lease } => {
            let value = String::from_utf8_lossy(value);
            let lease = lease.map(|lease| format!(" on lease {lease}")).unwrap_or_default();
            format!("{}={value:?}{lease}", short(key))
        }
        Op::Nested(_) => unreachable!("told as transactions by themselves"),
    }
}

fn short(key: &str) -> &str {
    key.trim_start_matches("/selvedge/").trim_start_matches("/wmgwd/vni/")
}
