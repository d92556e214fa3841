//! Plays a scenario.

use std::fmt::Write as _;
use std::time::Duration;

use rand::seq::IteratorRandom as _;
use selvedge_mesh::Config;
use selvedge_model::Time;
use serde::Serialize;

use super::{Action, Claim, Scenario};
use crate::mesh::net::Conditions;
use crate::mesh::scale::{join_at, millis, round, seconds};
use crate::mesh::world::{Node, Setup, Tracked, World};

/// How often expectations are looked at while they are waited for.
const STEP: Duration = Duration::from_millis(20);
/// So many details are kept.
const DETAILS: usize = 20;

/// What came of a scenario, with one seed.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// What it is about.
    pub about: String,
    /// The seed.
    pub seed: u64,
    /// Number of members at the start.
    pub nodes: usize,
    /// What was expected, in the order of the file.
    pub expectations: Vec<Outcome>,
    /// How many running nodes in reach were held to be down.
    pub false_failures: usize,
    /// Messages that arrived.
    pub messages: u64,
    /// Bytes on the wire that a node sends in a second, on average over all.
    pub bytes_per_node_s: f64,
    /// Virtual time of the whole, in s.
    pub virtual_s: f64,
    /// Number of violations, expectations that were not met among them.
    pub violations: usize,
    /// The first of them in words.
    #[serde(skip)]
    pub details: Vec<String>,
    /// What happened last before the first of them.
    #[serde(skip)]
    pub history: Vec<String>,
}

/// What became of an expectation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// What was expected.
    pub that: Claim,
    /// From when on, in s.
    pub from: f64,
    /// After how long it held, in ms; nothing if it did not in time.
    pub ms: Option<f64>,
}

struct Player<'a> {
    scenario: &'a Scenario,
    world: World,
    outcomes: Vec<Option<Duration>>,
}

/// Plays a scenario with a seed.
#[must_use]
pub fn play(scenario: &Scenario, seed: u64) -> Report {
    let world = World::new(setup(scenario, seed));
    let outcomes = vec![None; scenario.expectations.len()];
    let mut player = Player { scenario, world, outcomes };
    for (at, action) in scenario.timeline() {
        player.run_to(moment(at));
        player.act(&action);
    }
    player.run_to(moment(scenario.end()));
    player.finish(seed)
}

fn setup(scenario: &Scenario, seed: u64) -> Setup {
    let Scenario { loss, duplication: double, jitter, .. } = *scenario;
    let life = scenario.record_life_s.map(Duration::from_secs);
    let config = Config::default();
    let record_life = life.unwrap_or(config.record_life);
    Setup {
        config: Config { record_life, ..config },
        stalling: scenario.stalling,
        clients: scenario.clients,
        drift: scenario.drift_ppm,
        ahead: scenario.ahead_s,
        inviters: scenario.inviters_ahead_s.clone(),
        watched: true,
        ..Setup::plain(scenario.nodes, seed, Conditions { loss, double, jitter })
    }
}

fn moment(at: f64) -> Time {
    Time::ZERO + Duration::from_secs_f64(at)
}

impl Player<'_> {
    /// Runs, and looks at what is expected while it is.
    fn run_to(&mut self, end: Time) {
        while self.world.now < end {
            let now = self.world.now;
            let next = if self.awaits() { now + STEP } else { self.next_expected().max(now) };
            self.world.run(next.min(end).since(now));
            self.look_at_expectations();
        }
    }

    fn next_expected(&self) -> Time {
        let later = self.scenario.expectations.iter().map(|expect| moment(expect.from));
        later.filter(|from| *from > self.world.now).min().unwrap_or(Time::from_micros(u64::MAX))
    }

    fn awaits(&self) -> bool {
        let mut open = self.scenario.expectations.iter().zip(&self.outcomes);
        open.any(|(expect, outcome)| {
            let (from, last) = (moment(expect.from), moment(expect.from + expect.within));
            outcome.is_none() && (from..=last).contains(&self.world.now)
        })
    }

    fn look_at_expectations(&mut self) {
        let now = self.world.now;
        for (expect, outcome) in self.scenario.expectations.iter().zip(&mut self.outcomes) {
            let (from, last) = (moment(expect.from), moment(expect.from + expect.within));
            if outcome.is_none()
                && (from..=last).contains(&now)
                && holds(&mut self.world, expect.that)
            {
                *outcome = Some(now.since(from));
            }
        }
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Update(count) => self.each(*count, World::update),
            Action::Crash(count) => self.each(*count, World::power_off),
            Action::Leave(count) => self.each(*count, World::leave),
            Action::Evict(count) => self.each(*count, World::evict),
            Action::Return(count) => (0..*count).for_each(|_| self.restart(false)),
            Action::ReturnOld(count) => (0..*count).for_each(|_| self.restart(true)),
            Action::Upgrade(count) => {
                self.each_of(*count, |node| !node.later, World::upgrade);
            }
            Action::Join(count) => (0..*count).for_each(|_| self.join(0)),
            Action::Admit(count) => (0..*count).for_each(|_| {
                let inviters: Vec<usize> = self.world.inviters().collect();
                if let Some(host) = inviters.into_iter().choose(&mut self.world.rng) {
                    self.join(host);
                }
            }),
            Action::EvictAbsent(count) => (0..*count).for_each(|_| self.evict_absent()),
            Action::EvictGuest(count) => (0..*count).for_each(|_| self.evict_guest()),
            Action::Freeze { nodes, seconds } => {
                let length = Duration::from_secs_f64(*seconds);
                self.each(*nodes, |world, place| world.freeze(place, length));
            }
            Action::Tear { parts, bridges } => self.tear(parts, *bridges),
            Action::OneWay { from, to } => {
                let (from, to) = (*from, *to);
                self.world.sides(|place| match place {
                    place if place < from => 1,
                    place if place < from + to => 2,
                    _ => 0,
                });
                self.world.net.cuts = [(1, 2)].into();
                self.world.note_history("one way is cut".to_owned());
            }
            Action::Mend => {
                self.world.mend();
                self.world.note_history("whole again".to_owned());
            }
            Action::Loss(chance) => self.world.net.conditions.loss = *chance,
        }
    }

    /// Does something to so many running nodes, each another one.
    fn each(&mut self, count: usize, what: impl FnMut(&mut World, usize)) {
        self.each_of(count, |_| true, what);
    }

    /// The same to some of those of which `fits` holds.
    fn each_of(
        &mut self,
        count: usize,
        fits: impl Fn(&Node) -> bool,
        mut what: impl FnMut(&mut World, usize),
    ) {
        let (world, fits) = (&self.world, |place: &usize| fits(&self.world.nodes[*place]));
        let places: Vec<usize> = world.running().filter(|at| *at != 0).filter(fits).collect();
        let mut chosen = places.into_iter().sample(&mut self.world.rng, count);
        chosen.sort_unstable();
        chosen.into_iter().for_each(|place| what(&mut self.world, place));
    }

    fn restart(&mut self, old: bool) {
        let off = |(place, node): (usize, &Node)| node.disk.is_some().then_some(place);
        let places: Vec<usize> = self.world.nodes.iter().enumerate().filter_map(off).collect();
        if let Some(place) = places.into_iter().choose(&mut self.world.rng) {
            self.world.restart(place, old);
        }
    }

    fn evict_absent(&mut self) {
        let nodes = self.world.nodes.iter().enumerate();
        let absent = nodes.filter(|(_, node)| node.disk.is_some() && !node.left);
        let absent: Vec<usize> = absent.map(|(place, _)| place).collect();
        if let Some(place) = absent.into_iter().choose(&mut self.world.rng) {
            self.world.evict(place);
        }
    }

    fn evict_guest(&mut self) {
        let inviters: Vec<usize> = self.world.inviters().collect();
        let guests = self.world.running().map(|place| (self.world.nodes[place].host, place));
        let guests = guests.filter(|(host, _)| inviters.contains(host));
        let guests: Vec<(usize, usize)> = guests.collect();
        if let Some((host, guest)) = guests.into_iter().choose(&mut self.world.rng) {
            self.world.evict_by(host, guest);
        }
    }

    /// Lets a new node join by a member.
    fn join(&mut self, host: usize) {
        match join_at(&mut self.world, host) {
            Some(place) => {
                self.world.track_record(place);
                self.world.note_history(format!("node {place} joins"));
            }
            None => self.world.violation("a node could not join".to_owned()),
        }
    }

    /// Sides count from one; who reaches all is on side zero.
    fn tear(&mut self, parts: &[usize], bridges: usize) {
        let count = self.world.nodes.len();
        let first_bridge = count - bridges.min(count);
        self.world.tear(|place| {
            let ends = parts.iter().scan(0, |end, part| {
                *end += part;
                Some(*end)
            });
            let side =
                1 + ends.take(parts.len().saturating_sub(1)).filter(|end| place >= *end).count();
            if place >= first_bridge { 0 } else { u8::try_from(side).unwrap_or(u8::MAX) }
        });
        self.world.net.cuts.retain(|(from, to)| *from != 0 && *to != 0);
        self.world.note_history(format!("torn into {parts:?}, {bridges} bridges"));
    }

    fn finish(mut self, seed: u64) -> Report {
        self.world.look_around();
        self.report_unmet();
        let world = &mut self.world;
        let allowed = self.scenario.false_failures;
        let false_failures = world.false_failures.len();
        if false_failures > allowed {
            let failures = std::mem::take(&mut world.false_failures);
            world.violations.extend(failures.into_iter().map(|what| format!("M8: {what}")));
        }
        if world.before.is_empty() && !world.violations.is_empty() {
            world.before = world.history.iter().cloned().collect();
        }
        let sent: u64 = world.nodes.iter().map(|node| node.port.sent).sum();
        let virtual_s = seconds(world.now.since(Time::ZERO));
        let outcomes = self.scenario.expectations.iter().zip(&self.outcomes);
        let outcomes = outcomes.map(|(expect, outcome)| Outcome {
            that: expect.that,
            from: expect.from,
            ms: outcome.map(millis),
        });
        #[allow(clippy::cast_precision_loss, reason = "a rate")]
        let rate = sent as f64 / (world.nodes.len() as f64 * virtual_s.max(0.001));
        Report {
            about: self.scenario.about.clone(),
            seed,
            nodes: self.scenario.nodes,
            expectations: outcomes.collect(),
            false_failures,
            messages: world.messages,
            bytes_per_node_s: round(rate),
            virtual_s,
            violations: world.violations.len(),
            details: world.violations.iter().take(DETAILS).cloned().collect(),
            history: std::mem::take(&mut world.before),
        }
    }

    fn report_unmet(&mut self) {
        for (expect, outcome) in self.scenario.expectations.iter().zip(&self.outcomes) {
            if outcome.is_none() {
                let name = match expect.that {
                    Claim::Agreed => "M6: agreed",
                    Claim::Known => "M2: known",
                    Claim::Lives => "lives",
                    Claim::Out => "M4: out",
                };
                let (from, within) = (expect.from, expect.within);
                let mut what = format!("{name}: not within {within} s from {from} s on");
                if expect.that == Claim::Lives {
                    let wrong: Vec<String> = self.world.wrong_about_lives().take(DETAILS).collect();
                    let _ = write!(what, "; {}", wrong.join(", "));
                }
                self.world.violation(what);
            }
        }
    }
}

fn holds(world: &mut World, claim: Claim) -> bool {
    match claim {
        Claim::Agreed => world.agreed(),
        Claim::Known => world.tracked.iter().all(Tracked::is_known),
        Claim::Lives => world.right_about_lives(),
        Claim::Out => world.evicted_are_out(),
    }
}
