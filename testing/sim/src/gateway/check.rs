//! The invariants of the gateway plane, checked after every event, and whether it is at rest.
//!
//! - G1: the overlap of two that answer for a network, and epochs that only grow.
//! - G2: who has no right to serve is silent, and who has it, or owns a network and is sound, is
//!   not.
//! - G3: in planned moves, by the kernels of both ends: see [`planned`](super::planned).
//! - G4: nobody is convicted whom a majority hears, and nothing is taken from a sound owner; how
//!   many networks a loss moves is for whoever causes it to count.
//! - G5: the budget of planned moves. G7: the history of each change of owner.
//! - G6: keys that make sense, here; rest in the end is for whoever puts everything right to wait
//!   for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use selvedge_gateway::cache::{Cache, Concern, History, Network};
use selvedge_gateway::desired::Duty;
use selvedge_gateway::kv::{Event, Revision, Snapshot};
use selvedge_gateway::machine::State;
use selvedge_gateway::placement::Ring;
use selvedge_model::{NodeName, Time, Vni};

use super::footing::Footing;
use super::host::Host;
use super::loss::Loss;
use super::planned::Moves;
use super::world::Setup;

/// How long two running agents may both answer for a network outside a planned move, and how long
/// one may that has no right to.
const FENCE: Duration = Duration::from_secs(1);
/// How much longer it may take where it is the nodes that find out: a probe is due, the switch is
/// thrown, and this is looked at now and then.
const SLACK: Duration = Duration::from_millis(200);
/// How long an owner whom nothing is wrong with may not answer.
const HICCUP: Duration = Duration::from_millis(500);

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
    /// Whether what changes in the store now is none of the agents' doing.
    pub meddling: bool,
    /// Since when the store has answered.
    pub store_whole_since: Option<Time>,
    /// The loss of a gateway that is being timed.
    pub loss: Option<Loss>,
    /// How long networks were answered for twice, outside planned moves, in ms.
    pub overlaps: Vec<f64>,
    /// The planned moves under way, by which G3 is judged.
    pub moves: Moves,
    budget: usize,
    /// Whether the nodes probe each other.
    probing: bool,
    vnis: Vec<Vni>,
    footings: Vec<Footing>,
    /// Hosts for which a violation was reported that goes on.
    reported: BTreeSet<usize>,
    /// Networks that a sound owner does not answer for, and since when.
    withdrawn: BTreeMap<Vni, Time>,
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
    /// A checker for a cluster with these networks.
    #[must_use]
    pub fn new(vnis: Vec<Vni>, setup: &Setup) -> Self {
        let all: BTreeSet<Vni> = vnis.iter().copied().collect();
        Self {
            cache: Cache::default(),
            moved: BTreeSet::new(),
            strangers: BTreeSet::new(),
            expects_problems: false,
            violations: Vec::new(),
            meddling: false,
            store_whole_since: None,
            loss: None,
            overlaps: Vec::new(),
            moves: Moves::default(),
            budget: setup.budget,
            probing: setup.probing,
            vnis,
            footings: vec![Footing::UNKNOWN; setup.gateways + setup.witnesses],
            reported: BTreeSet::new(),
            withdrawn: BTreeMap::new(),
            ring: Ring::default(),
            owners: BTreeMap::new(),
            epochs: BTreeMap::new(),
            doubles: BTreeMap::new(),
            touched: BTreeSet::new(),
            restless: all.clone(),
            away: all,
        }
    }

    /// How a host stood when this was last looked at.
    #[must_use]
    pub fn footing(&self, host: usize) -> Footing {
        self.footings.get(host).copied().unwrap_or(Footing::UNKNOWN)
    }

    /// Takes note of how a host stands.
    pub fn set_footing(&mut self, host: usize, footing: Footing) {
        let Some(before) = self.footings.get_mut(host) else { return };
        let changed = before.lost_since.is_some() != footing.lost_since.is_some();
        *before = footing;
        if changed {
            self.touch_all();
        }
    }

    /// Takes in what changed in the store.
    pub fn store_changed(&mut self, events: &[Event], hosts: &[Host], now: Time) {
        let moving = self.cache.moving.clone();
        let verdicts: BTreeSet<_> = self.cache.verdicts.keys().cloned().collect();
        let concerns: BTreeSet<Concern> =
            events.iter().map(|event| self.cache.apply(event)).collect();
        if concerns.contains(&Concern::Nodes) {
            self.nodes_changed();
            self.check_verdicts(&verdicts, hosts, now);
        }
        for concern in concerns {
            if let Concern::Network(vni) = concern {
                self.network_changed(vni, moving.contains(&vni), hosts, now);
            }
        }
        self.check_budget(now);
        self.check_keys(now);
    }

    /// Takes in everything anew, from a store that has taken the place of another.
    pub fn store_replaced(&mut self, snapshot: Snapshot) {
        self.cache.replace(snapshot);
        let owner = |(vni, network): (&Vni, &Network)| Some((*vni, network.current()?.clone()));
        self.owners = self.cache.networks.iter().filter_map(owner).collect();
        let last = |(vni, history): (&Vni, &History)| Some((*vni, history.changes.last()?.epoch));
        self.epochs = self.cache.history.iter().filter_map(last).collect();
        self.moves.forget();
        self.nodes_changed();
        self.touch_all();
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
        if !self.probing {
            self.touched.extend(self.doubles.keys());
        }
        while let Some(vni) = self.touched.pop_first() {
            self.check_answering(vni, hosts, now);
            if let Some(wrong) = self.moves.look(vni, &self.cache, hosts, now) {
                self.violation(now, "G3", Some(vni), wrong.to_owned());
            }
            if let Some(loss) = &mut self.loss {
                loss.note(vni, hosts, now);
            }
            let restless = self.unrest_of(vni, hosts).is_some();
            set_member(&mut self.restless, vni, restless);
            let placed = self.ring.owner(vni);
            let away = self.cache.networks.get(&vni).and_then(Network::current) != placed;
            set_member(&mut self.away, vni, away);
        }
    }

    /// Looks at what goes on for too long.
    pub fn look(&mut self, hosts: &[Host], now: Time) {
        for vni in self.doubles.keys().copied().collect::<Vec<_>>() {
            self.check_answering(vni, hosts, now);
        }
        for (number, host) in hosts.iter().enumerate() {
            self.check_right(number, host, now);
        }
        self.check_withdrawn(hosts, now);
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

    /// Takes note of a violation that somebody else has found.
    pub fn report(&mut self, invariant: &'static str, text: &str, now: Time) {
        self.violation(now, invariant, None, text.to_owned());
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
            let kernel = host.kernel.get(&vni).copied().unwrap_or_default();
            let (right, duty) = match host.name == *owner && !host.name_taken {
                true => ([Duty::FULL, Duty::TAKEOVER].contains(&host.duty(vni)), host.duty(vni)),
                false => (kernel == Duty::NONE, kernel),
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
        let ring = self.cache.ring(|name| self.cache.is_struck(name));
        if ring != self.ring {
            self.ring = ring;
            self.touch_all();
            self.forget_homeless();
        }
    }

    /// What nobody has and nobody may have, since all are drained, is nobody's: whoever may have
    /// it first takes it from no one.
    fn forget_homeless(&mut self) {
        let cache = &self.cache;
        let vacant = |vni: &Vni| cache.networks.get(vni).and_then(Network::current).is_none();
        let ring = &self.ring;
        self.owners.retain(|vni, _| ring.owner(*vni).is_some() || !vacant(vni));
    }

    fn network_changed(&mut self, vni: Vni, planned: bool, hosts: &[Host], now: Time) {
        self.touched.insert(vni);
        let network = self.cache.networks.get(&vni);
        let Some(owner) = network.and_then(Network::current).cloned() else {
            if self.ring.owner(vni).is_none() {
                self.owners.remove(&vni);
            }
            return;
        };
        if self.owners.get(&vni) == Some(&owner) {
            return;
        }
        let before = self.owners.insert(vni, owner.clone());
        self.moved.insert(vni);
        if let Some(before) = before.filter(|_| !planned) {
            self.check_taken(vni, &before, hosts, now);
        }
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
    /// of a takeover.
    fn check_answering(&mut self, vni: Vni, hosts: &[Host], now: Time) {
        let answers = |(number, host): &(usize, &Host)| {
            host.kernel.contains_key(&vni) && host.answers(vni) && self.counts(*number, host, now)
        };
        let both: Vec<&Host> =
            hosts.iter().enumerate().filter(answers).map(|(_, host)| host).collect();
        if both.len() < 2 || self.cache.moving.contains(&vni) {
            if let Some(since) = self.doubles.remove(&vni) {
                self.overlaps.push(now.since(since).as_secs_f64() * 1000.0);
            }
            return;
        }
        let running = both.iter().map(|host| host.running_since).max().unwrap_or(now);
        let since = (*self.doubles.entry(vni).or_insert(now)).max(running);
        let limit = if self.probing { FENCE + SLACK } else { FENCE };
        if now.since(since) > limit {
            let names: Vec<&str> = both.iter().map(|host| host.name.as_str()).collect();
            let text = format!("served by {names:?} for more than {limit:?}");
            self.doubles.remove(&vni);
            self.violation(now, "G1", Some(vni), text);
        }
    }

    /// Whether what a host answers counts. One whose agent does not run may linger; so may one
    /// that is set to serve on when it is cut off, or was made to by force, and one whose agent runs for
    /// the first time and has not found the store yet: it leaves alone what it does not know. Without
    /// probes, one that cannot have heard that it lost a network is exempt until it hears.
    fn counts(&self, number: usize, host: &Host, now: Time) -> bool {
        let Footing { lost_since, may_serve_lost, .. } = self.footing(number);
        match self.probing {
            true => {
                let cut_off = lost_since.is_some() || host.isolated || host.forced;
                host.knows_others() && host.runs(now) && !(cut_off && may_serve_lost)
            }
            false => host.agent.is_some() && host.hears,
        }
    }

    /// G2: who has no right to serve is silent, and who has is not.
    fn check_right(&mut self, number: usize, host: &Host, now: Time) {
        let footing = self.footing(number);
        let lost = footing.lost_since.map(|since| now.since(since.max(host.running_since)));
        let serves_unentitled = lost.is_some_and(|lost| lost > FENCE + SLACK)
            && host.knows_others()
            && !footing.may_serve_lost
            && host.runs(now)
            && host.answers_any();
        let silent_for_nothing = footing.sound && host.silenced && host.runs(now) && !host.excused;
        let text = match (serves_unentitled, silent_for_nothing) {
            (true, _) => "answers, although neither a majority nor the store does",
            (_, true) => "is silent, although a majority of the voters answers it",
            (false, false) => {
                self.reported.remove(&number);
                return;
            }
        };
        if self.reported.insert(number) {
            self.violation(now, "G2", None, format!("{} {text}", host.name));
        }
    }

    /// G2: an owner whom nothing is wrong with goes on, whatever becomes of the store.
    fn check_withdrawn(&mut self, hosts: &[Host], now: Time) {
        let mut still = BTreeMap::new();
        for vni in &self.restless {
            let Some(network) = self.cache.networks.get(vni) else { continue };
            let idle = network.state() == State::Idle && !self.cache.is_blocked(*vni);
            let owner = network.current().filter(|_| idle);
            let owner = owner.and_then(|name| hosts.iter().position(|host| host.name == *name));
            if owner.is_some_and(|owner| self.footing(owner).sound && !hosts[owner].answers(*vni)) {
                still.insert(*vni, self.withdrawn.get(vni).copied().unwrap_or(now));
            }
        }
        let long = still.iter().find(|(_, since)| now.since(**since) > HICCUP);
        let long = long.map(|(vni, _)| *vni);
        self.withdrawn = still;
        if let Some(vni) = long {
            self.withdrawn.clear();
            let text = "its owner does not answer, although nothing is wrong with it";
            self.violation(now, "G2", Some(vni), text.to_owned());
        }
    }

    /// G4: nobody is convicted whom a majority of the voters hears.
    fn check_verdicts(
        &mut self,
        before: &BTreeSet<(NodeName, Revision)>,
        hosts: &[Host],
        now: Time,
    ) {
        if self.meddling || self.cache.verdicts.len() <= before.len() {
            return;
        }
        let sound = |number: usize| self.is_sound(number, hosts, now);
        let wronged = hosts.iter().enumerate().find_map(|(number, host)| {
            let incarnation = self.cache.live.get(&host.name)?.incarnation;
            let verdict = (host.name.clone(), incarnation);
            let new = self.cache.verdicts.contains_key(&verdict) && !before.contains(&verdict);
            (new && sound(number)).then(|| host.name.clone())
        });
        if let Some(name) = wronged {
            let text = format!("{name} is convicted, although a majority of the voters hears it");
            self.violation(now, "G4", None, text);
        }
    }

    fn is_sound(&self, number: usize, hosts: &[Host], now: Time) -> bool {
        let host = &hosts[number];
        self.footing(number).sound && host.runs(now) && !host.excused && !host.leaving
    }

    /// G4: nothing is taken from an owner whom nothing is wrong with, but in planned moves.
    fn check_taken(&mut self, vni: Vni, owner: &NodeName, hosts: &[Host], now: Time) {
        let number = hosts.iter().position(|host| host.name == *owner);
        let sound =
            |number: usize| self.is_sound(number, hosts, now) && !self.cache.is_struck(owner);
        if !self.meddling && number.is_some_and(sound) {
            let text = format!("taken from {owner}, although nothing is wrong with it");
            self.violation(now, "G4", Some(vni), text);
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
