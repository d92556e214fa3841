//! The invariants of the gateway plane, checked after every event.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use selvedge_gateway::cache::{Cache, Concern};
use selvedge_gateway::kv::Event;
use selvedge_model::{NodeName, Time, Vni};

use super::world::Host;

/// How long two running agents may both answer for a network outside a planned move.
const FENCE: Duration = Duration::from_secs(1);

/// Watches over a run.
#[derive(Debug)]
pub struct Checker {
    budget: usize,
    cache: Cache,
    moving: BTreeSet<Vni>,
    owners: BTreeMap<Vni, NodeName>,
    epochs: BTreeMap<Vni, u64>,
    doubles: BTreeMap<Vni, Time>,
    /// Networks for which a host or the store changed something since the last look.
    touched: BTreeSet<Vni>,
    /// Networks that changed their owner since this was last cleared.
    pub moved: BTreeSet<Vni>,
    /// What was found: the invariant, and a sentence.
    pub violations: Vec<String>,
}

impl Checker {
    /// A checker for clusters that allow `budget` planned moves at once.
    #[must_use]
    pub fn new(budget: usize) -> Self {
        Self {
            budget,
            cache: Cache::default(),
            moving: BTreeSet::new(),
            owners: BTreeMap::new(),
            epochs: BTreeMap::new(),
            doubles: BTreeMap::new(),
            touched: BTreeSet::new(),
            moved: BTreeSet::new(),
            violations: Vec::new(),
        }
    }

    /// Takes in what changed in the store.
    pub fn store_changed(&mut self, events: &[Event], now: Time) {
        let mut touched = BTreeSet::new();
        for event in events {
            if let Concern::Network(vni) = self.cache.apply(event) {
                touched.insert(vni);
            }
        }
        for vni in touched {
            self.network_changed(vni, now);
        }
        if self.moving.len() > self.budget {
            let moving = self.moving.len();
            self.violation(now, "G5", format!("{moving} planned moves, budget {}", self.budget));
        }
        if let Some((key, problem)) = self.cache.problems.first_key_value() {
            let text = format!("{key}: {problem}");
            self.violation(now, "keys", text);
        }
    }

    /// Takes note that the kernel of some host does something else for a network.
    pub fn touch(&mut self, vni: Vni) {
        self.touched.insert(vni);
    }

    /// Looks at what the hosts do for the networks that were touched, or are answered for twice.
    pub fn hosts(&mut self, hosts: &[Host], now: Time) {
        self.touched.extend(self.doubles.keys());
        while let Some(vni) = self.touched.pop_first() {
            self.check_answering(vni, hosts, now);
        }
    }

    fn network_changed(&mut self, vni: Vni, now: Time) {
        self.touched.insert(vni);
        let network = self.cache.networks.get(&vni).cloned().unwrap_or_default();
        match network.state().is_migration() {
            true => self.moving.insert(vni),
            false => self.moving.remove(&vni),
        };
        let Some(owner) = network.current() else { return };
        if self.owners.get(&vni) == Some(owner) {
            return;
        }
        self.owners.insert(vni, owner.clone());
        self.moved.insert(vni);
        self.check_history(vni, owner, now);
    }

    /// G7, and the part of G1 that says that epochs only grow.
    fn check_history(&mut self, vni: Vni, owner: &NodeName, now: Time) {
        let change = self.cache.history.get(&vni).and_then(|history| history.changes.last());
        let Some(change) = change.filter(|change| change.owner == *owner).cloned() else {
            return self.violation(now, "G7", format!("network {vni}: no history of {owner}"));
        };
        let before = self.epochs.insert(vni, change.epoch).unwrap_or(0);
        if change.epoch <= before {
            let text = format!("network {vni}: epoch {} after {before}", change.epoch);
            self.violation(now, "G1", text);
        }
        if change.reason.is_empty() {
            self.violation(now, "G7", format!("network {vni}: {owner} without a reason"));
        }
    }

    /// G1: running agents never both serve a network outside a planned move, but for the overlap
    /// of a takeover.
    fn check_answering(&mut self, vni: Vni, hosts: &[Host], now: Time) {
        let answers = |host: &&Host| host.kernel.get(&vni).is_some_and(|duty| duty.answering);
        let running = |host: &&Host| host.agent.is_some() && host.linked;
        let count = hosts.iter().filter(running).filter(answers).count();
        if count < 2 || self.moving.contains(&vni) {
            self.doubles.remove(&vni);
            return;
        }
        let since = *self.doubles.entry(vni).or_insert(now);
        if now.since(since) > FENCE {
            self.doubles.remove(&vni);
            self.violation(now, "G1", format!("network {vni} is served by {count} for too long"));
        }
    }

    fn violation(&mut self, now: Time, name: &str, text: String) {
        self.violations.push(format!("{now} {name}: {text}"));
    }
}
