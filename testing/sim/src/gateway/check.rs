//! The invariants of the gateway plane, checked after every event, and whether it is at rest.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use selvedge_gateway::cache::{Cache, Concern, Network};
use selvedge_gateway::desired::Duty;
use selvedge_gateway::kv::Event;
use selvedge_gateway::machine::State;
use selvedge_gateway::placement::Ring;
use selvedge_model::{NodeName, Time, Vni};

use super::world::Host;

/// How long two running agents may both answer for a network outside a planned move.
const FENCE: Duration = Duration::from_secs(1);

/// An invariant that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// When.
    pub at: Time,
    /// The invariant's name.
    pub invariant: &'static str,
    /// The network concerned.
    pub vni: Option<Vni>,
    /// What was found.
    pub text: String,
}

/// Watches over a run.
#[derive(Debug)]
pub struct Checker {
    /// What the store says.
    pub cache: Cache,
    /// Networks that changed their owner since this was last cleared.
    pub moved: BTreeSet<Vni>,
    /// Nodes that are not ours: their moves and their histories are not ours to bound or keep.
    pub strangers: BTreeSet<NodeName>,
    /// Whether keys that make no sense are part of the scenario.
    pub expects_problems: bool,
    /// What was found.
    pub violations: Vec<Violation>,
    budget: usize,
    vnis: Vec<Vni>,
    ring: Ring,
    owners: BTreeMap<Vni, NodeName>,
    epochs: BTreeMap<Vni, u64>,
    /// Networks that more than one answers for, and since when.
    doubles: BTreeMap<Vni, Time>,
    /// Networks for which a host or the store changed something since the last look.
    touched: BTreeSet<Vni>,
    /// Networks that are not idle and served by their owner alone.
    restless: BTreeSet<Vni>,
    /// Networks that are not where the ring wants them.
    away: BTreeSet<Vni>,
}

impl Checker {
    /// A checker for clusters with these networks that allow `budget` planned moves at once.
    #[must_use]
    pub fn new(vnis: Vec<Vni>, budget: usize) -> Self {
        let all: BTreeSet<Vni> = vnis.iter().copied().collect();
        Self {
            cache: Cache::default(),
            moved: BTreeSet::new(),
            strangers: BTreeSet::new(),
            expects_problems: false,
            violations: Vec::new(),
            budget,
            vnis,
            ring: Ring::default(),
            owners: BTreeMap::new(),
            epochs: BTreeMap::new(),
            doubles: BTreeMap::new(),
            touched: BTreeSet::new(),
            restless: all.clone(),
            away: all,
        }
    }

    /// Takes in what changed in the store.
    pub fn store_changed(&mut self, events: &[Event], now: Time) {
        let concerns: BTreeSet<Concern> =
            events.iter().map(|event| self.cache.apply(event)).collect();
        if concerns.contains(&Concern::Nodes) {
            self.nodes_changed();
        }
        for concern in concerns {
            if let Concern::Network(vni) = concern {
                self.network_changed(vni, now);
            }
        }
        self.check_budget(now);
        self.check_keys(now);
    }

    /// Takes note that the kernel of some host does something else for a network.
    pub fn touch(&mut self, vni: Vni) {
        self.touched.insert(vni);
    }

    /// Takes note that agents came or went.
    pub fn touch_all(&mut self) {
        self.touched.extend(&self.vnis);
    }

    /// Looks at what the hosts do for the networks that were touched, or are answered for twice.
    pub fn hosts(&mut self, hosts: &[Host], now: Time) {
        self.touched.extend(self.doubles.keys());
        while let Some(vni) = self.touched.pop_first() {
            self.check_answering(vni, hosts, now);
            let restless = self.unrest_of(vni, hosts).is_some();
            set_member(&mut self.restless, vni, restless);
            let placed = self.ring.owner(vni);
            let away = self.cache.networks.get(&vni).and_then(Network::current) != placed;
            set_member(&mut self.away, vni, away);
        }
    }

    /// Whether every network is idle and served by its owner and nobody else, where the ring
    /// wants it.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        self.is_served() && self.away.is_empty()
    }

    /// Whether every network is idle and served by its owner and nobody else.
    #[must_use]
    pub fn is_served(&self) -> bool {
        self.restless.is_empty()
    }

    /// What is missing for rest, in words.
    #[must_use]
    pub fn unrest(&self, hosts: &[Host]) -> Option<String> {
        let restless = self.restless.iter().find_map(|vni| self.unrest_of(*vni, hosts));
        restless.or_else(|| {
            let vni = self.away.first()?;
            let owner = self.cache.networks.get(vni).and_then(Network::current);
            Some(format!("network {vni} of {owner:?} belongs on {:?}", self.ring.owner(*vni)))
        })
    }

    fn unrest_of(&self, vni: Vni, hosts: &[Host]) -> Option<String> {
        let network = self.cache.networks.get(&vni).cloned().unwrap_or_default();
        let (state, next) = (network.state(), network.next());
        if state != State::Idle || next.is_some() || self.cache.is_blocked(vni) {
            return Some(format!("network {vni} is {state}, next {next:?}"));
        }
        let Some(owner) = network.current() else {
            return Some(format!("network {vni} has no owner"));
        };
        let runs = |host: &&Host| host.agent.is_some();
        for host in hosts.iter().filter(runs) {
            let duty = host.kernel.get(&vni).copied().unwrap_or_default();
            let right = match host.name == *owner && !host.name_taken {
                true => duty == Duty::FULL || duty == Duty::TAKEOVER,
                false => duty == Duty::NONE,
            };
            if !right {
                return Some(format!("network {vni} of {owner}: {} does {duty:?}", host.name));
            }
        }
        let there = hosts.iter().filter(runs).any(|host| host.name == *owner && !host.name_taken);
        let there = there || self.strangers.contains(owner);
        (!there).then(|| format!("network {vni} is owned by {owner}, whose agent is gone"))
    }

    fn nodes_changed(&mut self) {
        let ring = self.cache.ring();
        if ring != self.ring {
            self.ring = ring;
            self.touch_all();
        }
    }

    fn network_changed(&mut self, vni: Vni, now: Time) {
        self.touched.insert(vni);
        let network = self.cache.networks.get(&vni);
        let Some(owner) = network.and_then(Network::current).cloned() else { return };
        if self.owners.get(&vni) == Some(&owner) {
            return;
        }
        self.owners.insert(vni, owner.clone());
        self.moved.insert(vni);
        if !self.strangers.contains(&owner) {
            self.check_history(vni, &owner, now);
        }
    }

    /// G5.
    fn check_budget(&mut self, now: Time) {
        if self.cache.moving.len() <= self.budget {
            return;
        }
        let next = |vni: &Vni| self.cache.networks.get(vni).and_then(Network::next);
        let ours = |vni: &&Vni| next(vni).is_none_or(|next| !self.strangers.contains(next));
        let moving = self.cache.moving.iter().filter(ours).count();
        if moving > self.budget {
            let text = format!("{moving} planned moves, the budget is {}", self.budget);
            self.violation(now, "G5", self.cache.moving.first().copied(), text);
        }
    }

    fn check_keys(&mut self, now: Time) {
        let problem = self.cache.problems.first_key_value().filter(|_| !self.expects_problems);
        if let Some(text) = problem.map(|(key, problem)| format!("{key}: {problem}")) {
            self.violation(now, "G6 (keys consistent)", None, text);
        }
    }

    /// G7, and the part of G1 that says that epochs only grow.
    fn check_history(&mut self, vni: Vni, owner: &NodeName, now: Time) {
        let change = self.cache.history.get(&vni).and_then(|history| history.changes.last());
        let Some(change) = change.filter(|change| change.owner == *owner).cloned() else {
            let text = format!("{owner} became the owner, which is not in the history");
            return self.violation(now, "G7", Some(vni), text);
        };
        let before = self.epochs.insert(vni, change.epoch).unwrap_or(0);
        if change.epoch <= before {
            let text = format!("epoch {} after {before}", change.epoch);
            self.violation(now, "G1", Some(vni), text);
        }
        if change.reason.is_empty() {
            self.violation(now, "G7", Some(vni), format!("{owner} is the owner without a reason"));
        }
    }

    /// G1: running agents never both serve a network outside a planned move, but for the overlap
    /// of a takeover. Who cannot have heard that it lost a network is exempt until it hears.
    fn check_answering(&mut self, vni: Vni, hosts: &[Host], now: Time) {
        let answers = |host: &&Host| host.kernel.get(&vni).is_some_and(|duty| duty.answering);
        let hears = |host: &&Host| host.agent.is_some() && host.hears;
        let names: Vec<&NodeName> =
            hosts.iter().filter(hears).filter(answers).map(|host| &host.name).collect();
        if names.len() < 2 || self.cache.moving.contains(&vni) {
            self.doubles.remove(&vni);
            return;
        }
        let since = *self.doubles.entry(vni).or_insert(now);
        if now.since(since) > FENCE {
            self.doubles.remove(&vni);
            let text = format!("served by {names:?} for more than {FENCE:?}");
            self.violation(now, "G1", Some(vni), text);
        }
    }

    fn violation(&mut self, at: Time, invariant: &'static str, vni: Option<Vni>, text: String) {
        self.violations.push(Violation { at, invariant, vni, text });
    }
}

fn set_member(set: &mut BTreeSet<Vni>, vni: Vni, member: bool) {
    if member {
        set.insert(vni)
    } else {
        set.remove(&vni)
    };
}
