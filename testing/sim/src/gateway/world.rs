//! A cluster of gateways on virtual time: the hosts, and what happens when.
//!
//! What passes between an agent and the store is in `store.rs`, next to this file.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use selvedge_gateway::cache::Network;
use selvedge_gateway::keys;
use selvedge_gateway::kv::{self, LeaseId, Op, Revision, Txn};
use selvedge_gateway::model::Model;
use selvedge_gateway::placement;
use selvedge_gateway::probe::{Message, Outgoing};
use selvedge_gateway::status::Right;
use selvedge_gateway::{Config, Event, Gateway, NodeRole, Timing, Token};
use selvedge_model::{NodeName, Time, Vni};

use super::check::{Checker, Violation};
use super::cluster::Cluster;
use super::footing;
use super::host::{Host, Input};
use super::links::{self, Links, PATHS};
use super::log::Proposal;
use super::planned::SETTLE;

/// How many changes of a network a violation is reported with.
const LAST_CHANGES: usize = 12;
/// How often what takes time is looked at: how long something lasts that may not last.
const LOOK: Duration = Duration::from_millis(25);

/// What the cluster looks like.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Number of gateways; they are named `gw1`, `gw2` and so on.
    pub gateways: usize,
    /// Number of witnesses, `w1` and so on; their hosts follow those of the gateways.
    pub witnesses: usize,
    /// Number of networks, with the VNIs from 1.
    pub networks: u32,
    /// Planned moves that may run at once.
    pub budget: usize,
    /// How long a node must be back before it is given networks.
    pub hold_down: Duration,
    /// Whether the nodes probe each other.
    pub probing: bool,
    /// For how long an agent waits until routing has followed a step of a planned move.
    pub settle: Duration,
    /// The times of failure detection.
    pub timing: Timing,
    /// Where the store is.
    pub store: Place,
    /// Where all randomness comes from.
    pub seed: u64,
}

/// Where the store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere in particular: one that is there, or not, for everybody.
    Anywhere,
    /// Three members on the first three hosts.
    OnHosts,
    /// So many members, each on a host of its own that has no agent.
    Elsewhere(usize),
}

impl Setup {
    /// A cluster without probes, and a store that is simply there.
    #[must_use]
    pub fn plain(gateways: usize, networks: u32, seed: u64) -> Self {
        Self {
            gateways,
            witnesses: 0,
            networks,
            budget: 3,
            hold_down: Duration::from_secs(1),
            probing: false,
            settle: SETTLE,
            timing: Timing::default(),
            store: Place::Anywhere,
            seed,
        }
    }

    /// A cluster whose nodes probe each other.
    #[must_use]
    pub fn probing(self) -> Self {
        Self { probing: true, ..self }
    }
}

/// What happens at some time.
#[derive(Debug)]
pub(super) enum Action {
    ToAgent(usize, u64, Input),
    /// The agent's next deadline, as it was when this was scheduled.
    Timer(usize, u64, Time),
    Wake(usize),
    TxnArrives(usize, u64, Token, Box<Txn>),
    /// Some of the log may be committed.
    Commit,
    /// Who waits for the answer to a transaction does not wait longer.
    GiveUp(usize, u64, Token),
    Renew(usize, LeaseId),
    Expire,
    Cluster,
    Look,
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
    /// The members of the store, if it is anywhere.
    pub cluster: Cluster,
    /// Whether a member that was cut off as the leader seems to renew leases, as etcd 3.4 does.
    pub deluded_leaders_renew: bool,
    /// The paths between the hosts.
    pub links: Links,
    /// The hosts.
    pub hosts: Vec<Host>,
    /// The invariants.
    pub checker: Checker,
    /// Every violation with the seed and what happened before.
    pub violations: Vec<String>,
    /// Whether time stands still after a violation.
    pub ends_at_violation: bool,
    /// What was done to the cluster, for reports.
    pub story: Vec<String>,
    pub(super) rng: ChaCha8Rng,
    pub(super) log: VecDeque<Proposal>,
    pub(super) expire_at: Option<Time>,
    pub(super) cluster_at: Option<Time>,
    pub(super) checked: Revision,
    /// When each revision was first seen.
    times: BTreeMap<Revision, Time>,
    queue: BinaryHeap<Entry>,
    sequence: u64,
    /// How many actions were taken.
    pub actions: u64,
    outgoing: Vec<Outgoing>,
}

impl World {
    /// A cluster in which no agent runs yet.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        let names = |prefix: &'static str, count| (1..=count).map(move |n| format!("{prefix}{n}"));
        let names = names("gw", setup.gateways).chain(names("w", setup.witnesses));
        let mut hosts: Vec<Host> = names.map(|name| Host::new(&name)).collect();
        hosts[setup.gateways..].iter_mut().for_each(|host| host.part.role = NodeRole::Witness);
        let sites = match setup.store {
            Place::Anywhere => 0..0,
            Place::OnHosts => 0..hosts.len().min(3),
            Place::Elsewhere(members) => hosts.len()..hosts.len() + members,
        };
        let vnis = vnis(setup.networks).collect();
        let store = Model::new();
        let mut world = Self {
            now: Time::from_micros(1),
            checked: store.revision(),
            store,
            store_up: true,
            links: Links::new(hosts.len().max(sites.end)),
            cluster: Cluster::new(sites),
            deluded_leaders_renew: true,
            hosts,
            checker: Checker::new(vnis, &setup),
            violations: Vec::new(),
            ends_at_violation: false,
            story: Vec::new(),
            log: VecDeque::new(),
            expire_at: None,
            cluster_at: None,
            times: BTreeMap::new(),
            rng: ChaCha8Rng::seed_from_u64(setup.seed),
            queue: BinaryHeap::new(),
            sequence: 0,
            actions: 0,
            outgoing: Vec::new(),
            setup,
        };
        if world.setup.probing {
            world.push(world.now + LOOK, Action::Look);
        }
        world
    }

    /// Adds a host; returns its index.
    ///
    /// # Panics
    /// If the store's members have hosts of their own, which come after all others.
    pub fn add_host(&mut self, name: &str, identity: &str) -> usize {
        assert_eq!(self.setup.store, Place::Anywhere, "sites are numbered as hosts");
        self.hosts.push(Host { identity: identity.to_owned(), ..Host::new(name) });
        self.links.add_site();
        self.hosts.len() - 1
    }

    /// Starts the agent of a host: a new run, that finds the kernel as it is.
    pub fn start(&mut self, host: usize) {
        self.power_on(host);
        self.checker.touch_all();
        let seed = self.rng.random();
        let local = self.hosts[host].local(self.now);
        let mut agent = Gateway::new(self.config(host), seed, local);
        if let Some(memory) = self.hosts[host].memory.clone() {
            agent.recall(memory, local);
        }
        let run = self.hosts[host].start(agent, self.now);
        let soon = self.delay(1, 50);
        self.push(soon, Action::ToAgent(host, run, Input::KeepAlive));
        let soon = self.delay(1, 20);
        self.push(soon, Action::ToAgent(host, run, Input::Deliver));
        let soon = self.delay(5, 100);
        self.push(soon, Action::ToAgent(host, run, Input::Pulse));
        self.drive(host);
    }

    fn config(&self, host: usize) -> Config {
        let Host { name, part, identity, .. } = &self.hosts[host];
        let gateway = part.role == NodeRole::Gateway;
        let paths = if self.setup.probing { 0..PATHS } else { 0..0 };
        Config {
            ids: placement::ids_of(name, placement::DEFAULT_IDS),
            identity: identity.clone(),
            name: name.clone(),
            version: "sim".to_owned(),
            networks: vnis(self.setup.networks).filter(|_| gateway).collect(),
            settle: self.setup.settle,
            announce: Duration::from_secs(10),
            budget: self.setup.budget,
            hold_down: self.setup.hold_down,
            damping: Duration::from_secs(20),
            wall_at_zero_ms: 1_800_000_000_000,
            role: part.role,
            probe: paths.map(|path| links::address(host, path)).collect(),
            timing: self.setup.timing,
            isolated: part.isolated,
        }
    }

    /// Kills the agent of a host; the kernel goes on.
    pub fn crash(&mut self, host: usize) {
        let host = &mut self.hosts[host];
        host.run += 1;
        host.agent = None;
        host.inbox.clear();
        self.checker.touch_all();
    }

    /// Kills agent and kernel, and the store's member there.
    pub fn power_off(&mut self, host: usize) {
        self.crash(host);
        let there = &mut self.hosts[host];
        there.kernel.clear();
        there.routes.clear();
        there.silenced = false;
        there.powered = false;
        there.paused = false;
        self.each_member_at(host, |member| (member.up, member.frozen) = (false, false));
    }

    fn power_on(&mut self, host: usize) {
        if !std::mem::replace(&mut self.hosts[host].powered, true) {
            self.each_member_at(host, |member| member.up = true);
        }
    }

    /// Cuts a host off from the store, or lifts that again.
    pub fn set_linked(&mut self, host: usize, linked: bool) {
        self.hosts[host].linked = linked;
        self.note_hearing(host);
    }

    /// Stops an agent, or lets it go on; its kernel goes on all the time.
    pub fn set_frozen(&mut self, host: usize, frozen: bool) {
        let was = std::mem::replace(&mut self.hosts[host].frozen, frozen);
        self.note_hearing(host);
        if was && !frozen {
            self.wake(host);
        }
    }

    /// Stops everything on a host, or lets it go on.
    pub fn set_paused(&mut self, host: usize, paused: bool) {
        let was = std::mem::replace(&mut self.hosts[host].paused, paused);
        self.each_member_at(host, |member| member.frozen = paused);
        self.note_hearing(host);
        if was && !paused {
            self.wake(host);
        }
    }

    /// Takes the processor from an agent for a while.
    pub fn stall(&mut self, host: usize, time: Duration) {
        self.hosts[host].stalled_until = self.hosts[host].stalled_until.max(self.now + time);
        self.push(self.hosts[host].stalled_until, Action::Wake(host));
        self.checker.touch_all();
    }

    /// Changes the links, and lets the store notice.
    pub fn with_links(&mut self, change: impl FnOnce(&mut Links)) {
        change(&mut self.links);
        self.cluster_changed();
    }

    /// Who was cut off or frozen hears when it is told what it missed.
    pub(super) fn note_hearing(&mut self, host: usize) {
        let revision = self.store.revision();
        let host = &mut self.hosts[host];
        host.hears = host.linked && !host.frozen && host.seen == Some(revision);
        self.checker.touch_all();
    }

    /// Gives an agent an operator's word, at the time that its clock shows.
    pub fn with_agent(&mut self, host: usize, act: impl FnOnce(&mut Gateway, Time)) {
        let now = self.hosts[host].local(self.now);
        if let Some(agent) = &mut self.hosts[host].agent {
            act(agent, now);
        }
        self.drive(host);
    }

    /// Lets time pass until `until`, or until `stop` says so after a step. Returns whether it did.
    pub fn run_until(&mut self, until: Time, mut stop: impl FnMut(&mut Self) -> bool) -> bool {
        loop {
            if self.ends_at_violation && !self.violations.is_empty() {
                return false;
            }
            if stop(self) {
                return true;
            }
            if self.queue.peek().is_none_or(|entry| entry.at > until) {
                self.now = until;
                return false;
            }
            if let Some(Entry { at, action, .. }) = self.queue.pop() {
                self.now = self.now.max(at);
                self.actions += 1;
                self.act(action);
                self.check();
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

    /// The host with this name.
    #[must_use]
    pub fn host_named(&self, name: &NodeName) -> Option<usize> {
        self.hosts.iter().position(|host| host.name == *name)
    }

    /// Whether the store's leader is on a host.
    #[must_use]
    pub fn leads(&self, host: usize) -> bool {
        let leader = self.cluster.acting_leader();
        leader.is_some_and(|leader| self.cluster.members[leader].site == host)
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
        self.checker.meddling = true;
        let reply = self.store.txn(txn);
        self.store_changed();
        self.check();
        self.checker.meddling = false;
        reply.is_ok_and(|reply| reply.committed)
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::ToAgent(host, run, input) => self.arrive(host, run, input),
            Action::Timer(host, run, due) => self.timer(host, run, due),
            Action::Wake(host) => self.wake(host),
            Action::TxnArrives(host, run, token, txn) => self.txn_arrives(host, run, token, *txn),
            Action::Commit => self.commit(),
            Action::GiveUp(host, run, token) => self.give_up(host, run, token),
            Action::Renew(host, lease) => self.renew_for_other(host, lease),
            Action::Expire => self.expire(),
            Action::Cluster => self.cluster_due(),
            Action::Look => {
                footing::look(self);
                self.push(self.now + LOOK, Action::Look);
            }
        }
    }

    fn arrive(&mut self, host: usize, run: u64, input: Input) {
        if self.hosts[host].paused && matches!(input, Input::Message(..)) {
            return;
        }
        if self.hosts[host].is_stopped(self.now) {
            return self.hosts[host].keep(run, input);
        }
        self.take_in(host, run, input);
    }

    fn take_in(&mut self, host: usize, run: u64, input: Input) {
        if let Input::Message(from, path, message) = input {
            return self.message(host, from, path, *message);
        }
        if self.hosts[host].run != run || self.hosts[host].agent.is_none() {
            return;
        }
        match input {
            Input::Message(..) => {}
            Input::Reply(token, reply) => self.reply(host, run, token, reply),
            Input::Health(health) => {
                self.on_agent(host, |agent, now| agent.handle_health(health, now));
            }
            Input::Deliver => self.deliver(host),
            Input::KeepAlive => self.keep_alive(host),
            Input::Granted(lease) => self.granted(host, lease),
            Input::Pulse => self.pulse(host),
            Input::Apply => self.apply(host),
            Input::Silence => self.silence(host),
        }
    }

    /// A datagram is authenticated by the key that the roster has for its sender's name.
    fn message(&mut self, host: usize, from: usize, path: usize, message: Message) {
        let Host { name, identity, .. } = &self.hosts[from];
        let known = self.checker.cache.roster.get(name).map(|entry| &entry.value.identity);
        if known.is_some_and(|known| !known.is_empty() && known != identity) {
            return;
        }
        let (name, addr) = (name.clone(), links::address(from, path));
        self.on_agent(host, |agent, now| agent.handle_message(&name, addr, message, now));
    }

    fn timer(&mut self, host: usize, run: u64, due: Time) {
        let there = &mut self.hosts[host];
        if there.run != run || there.alarm != Some(due) {
            return;
        }
        there.alarm = None;
        if there.is_stopped(self.now) {
            return;
        }
        if there.timer.is_some_and(|timer| timer <= self.now) {
            self.on_agent(host, |agent, now| agent.handle_timeout(now));
        } else {
            self.set_alarm(host);
        }
    }

    /// An agent goes on, if nothing stops it: all that has happened meanwhile comes at once, and
    /// its own timers may come before that or after.
    fn wake(&mut self, host: usize) {
        self.checker.touch_all();
        self.cluster_changed();
        if self.hosts[host].is_stopped(self.now) {
            return;
        }
        self.hosts[host].running_since = self.now;
        if self.rng.random_bool(0.5) {
            self.on_agent(host, |agent, now| agent.handle_timeout(now));
        }
        self.hosts[host].datagrams = 0;
        for (run, input) in std::mem::take(&mut self.hosts[host].inbox) {
            self.take_in(host, run, input);
        }
        self.set_alarm(host);
    }

    pub(super) fn on_agent(&mut self, host: usize, act: impl FnOnce(&mut Gateway, Time)) {
        let there = &mut self.hosts[host];
        let now = there.part.clock.local(self.now);
        if let Some(agent) = &mut there.agent {
            act(agent, now);
            self.drive(host);
        }
    }

    /// Takes all outputs of an agent.
    fn drive(&mut self, host: usize) {
        let there = &mut self.hosts[host];
        let Some(agent) = &mut there.agent else { return };
        let run = there.run;
        let mut outgoing = std::mem::take(&mut self.outgoing);
        outgoing.extend(std::iter::from_fn(|| agent.poll_message()));
        there.wanted.extend(std::iter::from_fn(|| agent.poll_desired()));
        let txns: Vec<_> = std::iter::from_fn(|| agent.poll_transaction()).collect();
        let renewals: Vec<_> = std::iter::from_fn(|| agent.poll_renewal()).collect();
        let events: Vec<_> = std::iter::from_fn(|| agent.poll_event()).collect();
        let asks = agent.poll_health();
        let silence = agent.poll_silence();
        let timer = agent.poll_timeout();
        let version = agent.memory_version().filter(|_| self.setup.probing);
        if version.is_some() && version != there.remembered {
            (there.remembered, there.memory) = (version, agent.memory());
        }
        there.timer = Some(there.part.clock.world(timer));
        for event in events {
            self.take_event(host, event);
        }
        for message in outgoing.drain(..) {
            self.send(host, message);
        }
        self.outgoing = outgoing;
        for (token, txn) in txns {
            let at = self.delay_micros(200, 2000);
            self.push(at, Action::TxnArrives(host, run, token, Box::new(txn)));
        }
        for lease in renewals {
            let at = self.delay_micros(200, 3000);
            self.push(at, Action::Renew(host, lease));
        }
        if asks {
            self.ask_health(host, run);
        }
        if let Some(silence) = silence {
            self.want_silence(host, silence);
        }
        self.start_applying(host, run);
        self.set_alarm(host);
    }

    fn start_applying(&mut self, host: usize, run: u64) {
        let there = &mut self.hosts[host];
        if !there.wanted.is_empty() && !there.applying {
            there.applying = true;
            let at = self.delay(2, 40);
            self.push(at, Action::ToAgent(host, run, Input::Apply));
        }
    }

    /// Schedules the next deadline of an agent, unless that is done.
    fn set_alarm(&mut self, host: usize) {
        let there = &mut self.hosts[host];
        let Some(timer) = there.timer.filter(|_| there.agent.is_some()) else { return };
        // A driver that is always late takes it not too exactly; one that is never does not end.
        let due = timer.max(self.now + Duration::from_micros(10));
        if there.alarm.is_some_and(|alarm| alarm <= due) {
            return;
        }
        there.alarm = Some(due);
        let run = there.run;
        let late = Duration::from_micros(self.rng.random_range(0..1000));
        self.push(due + late, Action::Timer(host, run, due));
    }

    fn take_event(&mut self, host: usize, event: Event) {
        let now = self.now;
        let there = &mut self.hosts[host];
        if event == Event::Left {
            there.left = true;
        } else if matches!(event, Event::NameTaken { .. }) {
            there.name_taken = true;
        } else if matches!(event, Event::Registered { .. }) {
            there.name_taken = false;
        }
        if let Event::Right { right, .. } = event {
            there.isolated = right == Right::Isolated;
            self.checker.touch_all();
        }
        let one_of_many =
            matches!(event, Event::State { .. } | Event::Gained { .. } | Event::Lost { .. });
        if !one_of_many && !matches!(event, Event::Heard(_)) {
            there.note(now, format!("{event:?}"));
        }
    }

    fn send(&mut self, host: usize, outgoing: Outgoing) {
        let Some((to, path)) = links::place(outgoing.addr) else { return };
        if to >= self.hosts.len() || self.hosts[to].name != outgoing.to {
            return;
        }
        let [first, copy] = self.links.send(host, to, path, &mut self.rng);
        let input = |message| Action::ToAgent(to, 0, Input::Message(host, path, message));
        if let Some(delay) = copy {
            self.push(self.now + delay, input(Box::new(outgoing.message.clone())));
        }
        if let Some(delay) = first {
            self.push(self.now + delay, input(Box::new(outgoing.message)));
        }
    }

    fn apply(&mut self, host: usize) {
        let there = &mut self.hosts[host];
        there.applying = false;
        let wanted = std::mem::take(&mut there.wanted);
        for (vni, desired) in &wanted {
            if there.set_kernel(*vni, desired.duty, self.now) {
                self.checker.touch(*vni);
            }
        }
        self.on_agent(host, |agent, now| agent.handle_applied(wanted, now));
    }

    fn want_silence(&mut self, host: usize, silence: bool) {
        let there = &mut self.hosts[host];
        there.wants_silence = silence;
        if !std::mem::replace(&mut there.switching, true) {
            let run = there.run;
            let at = self.delay(5, 50);
            self.push(at, Action::ToAgent(host, run, Input::Silence));
        }
    }

    fn silence(&mut self, host: usize) {
        let there = &mut self.hosts[host];
        there.switching = false;
        if there.silenced != there.wants_silence {
            there.silenced = there.wants_silence;
            let line = if there.silenced { "silent" } else { "silent no more" };
            there.note(self.now, line.to_owned());
            self.checker.touch_all();
        }
    }

    fn check(&mut self) {
        if self.checked < self.store.revision() {
            let prefixes = keys::PREFIXES.map(str::to_owned);
            let batch = self.store.events_after(&prefixes, self.checked);
            let batch = batch.expect("less than the store remembers happens at once");
            self.checked = batch.revision;
            self.times.insert(batch.revision, self.now);
            self.checker.store_changed(&batch.events, &self.hosts, self.now);
        }
        self.checker.hosts(&self.hosts, self.now);
        self.describe();
    }

    /// Puts the violations that were found into words.
    pub(super) fn describe(&mut self) {
        for number in self.violations.len()..self.checker.violations.len() {
            let text = self.described(&self.checker.violations[number]);
            self.violations.push(text);
        }
    }

    /// A violation with all that is needed to look into it.
    fn described(&self, violation: &Violation) -> String {
        let Violation { at, invariant, vni, text } = violation;
        let seed = self.setup.seed;
        let network = vni.map(|vni| format!(" network {vni}:")).unwrap_or_default();
        let mut lines = format!("seed {seed}, {at}: {invariant}:{network} {text}");
        for host in &self.hosts {
            lines += &format!("\n  {}", self.told_host(host, *vni));
        }
        if let Some(vni) = vni {
            let prefixes = [format!("/wmgwd/vni/{vni}/"), format!("{}/", keys::history(*vni))];
            let events = self.store.events_after(&prefixes, self.store.compacted());
            let events = events.map(|batch| batch.events).unwrap_or_default();
            for event in events.iter().skip(events.len().saturating_sub(LAST_CHANGES)) {
                lines += &format!("\n  {}", self.told(event));
            }
        }
        for line in self.story.iter().skip(self.story.len().saturating_sub(LAST_CHANGES)) {
            lines += &format!("\n  {line}");
        }
        lines
    }

    fn told_host(&self, host: &Host, vni: Option<Vni>) -> String {
        let state = match &host.agent {
            None if !host.powered => "is off",
            None => "does not run",
            Some(_) if host.is_stopped(self.now) => "is stopped",
            Some(_) => "runs",
        };
        let silent = if host.silenced { ", is silent" } else { "" };
        let duty = vni.map(|vni| format!(" and does {:?}", host.kernel.get(&vni)));
        let mut line = format!("{} {state}{silent}{}", host.name, duty.unwrap_or_default());
        for (at, event) in &host.log {
            line += &format!("\n    {at}: {event}");
        }
        line
    }

    fn told(&self, event: &kv::Event) -> String {
        let (key, value, at) = match event {
            kv::Event::Put(kv) => (&kv.key, String::from_utf8_lossy(&kv.value), kv.modified),
            kv::Event::Delete { key, modified } => (key, "deleted".into(), *modified),
        };
        let time = self.times.range(at..).next().map(|(_, time)| time.to_string());
        format!("{} revision {at}: {key} {value}", time.unwrap_or_default())
    }

    pub(super) fn delay(&mut self, from_ms: u64, to_ms: u64) -> Time {
        self.delay_micros(from_ms * 1000, to_ms * 1000)
    }

    pub(super) fn delay_micros(&mut self, from: u64, to: u64) -> Time {
        self.now + Duration::from_micros(self.rng.random_range(from..to))
    }

    pub(super) fn push(&mut self, at: Time, action: Action) {
        self.sequence += 1;
        self.queue.push(Entry { at, sequence: self.sequence, action });
    }
}

fn vnis(networks: u32) -> impl Iterator<Item = Vni> {
    (1..=networks).filter_map(|number| number.try_into().ok())
}

/// An action and its time. The earliest is the greatest, as the heap wants it.
#[derive(Debug)]
struct Entry {
    at: Time,
    sequence: u64,
    action: Action,
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.sequence).cmp(&(self.at, self.sequence))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}
