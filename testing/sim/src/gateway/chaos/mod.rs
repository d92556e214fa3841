//! Everything that may go wrong, at random, from many seeds: the invariants hold throughout, and
//! in the end the cluster comes to rest and survives the loss of a gateway as if nothing had been.

mod blows;
mod report;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use selvedge_gateway::model::Model;
use selvedge_gateway::{Isolated, NodeRole, Timing};
use selvedge_model::Vni;

pub use self::report::{Quantiles, Report};
use super::cluster::FAST_DISK;
use super::host::Clock;
use super::loss::Loss;
use super::world::{Place, Setup, World};

/// How long a cluster is given to come to rest.
const PATIENCE: Duration = Duration::from_secs(120);
/// How soon all networks of a lost gateway are served again, if nothing else is wrong.
const TAKEOVER: Duration = Duration::from_millis(1500);
/// How long a cluster is left alone so that nothing from before is open.
const QUIET: Duration = Duration::from_secs(10);
/// So many violations are kept in words.
const TOLD: usize = 5;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The seeds.
    pub seeds: std::ops::Range<u64>,
    /// Number of overlay networks.
    pub networks: u32,
    /// Number of gateways; by default it depends on the seed.
    pub gateways: Option<usize>,
    /// How many seeds run at once.
    pub jobs: usize,
    /// The times of failure detection.
    pub timing: Timing,
}

/// What came of one seed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Every violation, in words.
    pub violations: Vec<String>,
    /// How long each network of a lost gateway was not served, in ms.
    pub takeover_ms: Vec<f64>,
    /// How long networks were answered for twice outside planned moves, in ms.
    pub overlap_ms: Vec<f64>,
    /// How long the cluster took to come to rest after everything was put right, in ms.
    pub rest_ms: Vec<f64>,
    /// Networks whose owner changed while a gateway was lost and nothing else was wrong.
    pub moves_on_loss: usize,
    /// Those among them that the lost gateway did not have.
    pub needless_moves: usize,
    /// Planned moves that were judged from their beginning to their end.
    pub moves_judged: usize,
    /// Events that were simulated.
    pub events: u64,
    /// Virtual time, in s.
    pub virtual_s: f64,
}

/// Runs all seeds.
#[must_use]
pub fn run(options: &Options) -> Report {
    #[expect(clippy::disallowed_types, reason = "the real time that the run took is reported")]
    let began = std::time::Instant::now();
    let next = AtomicU64::new(options.seeds.start);
    let work = || {
        let mut outcomes = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if !options.seeds.contains(&seed) {
                return outcomes;
            }
            outcomes.push((seed, run_seed(seed, options)));
        }
    };
    // Each seed has a world of its own, so that it does not matter which thread runs it.
    let mut outcomes: Vec<(u64, Outcome)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..options.jobs.max(1)).map(|_| scope.spawn(work)).collect();
        let joined = threads.into_iter().map(|thread| thread.join().expect("a run panicked"));
        joined.flatten().collect()
    });
    outcomes.sort_by_key(|(seed, _)| *seed);
    let outcomes = outcomes.into_iter().map(|(_, outcome)| outcome);
    Report::new(options, outcomes, began.elapsed())
}

/// Runs one seed.
#[must_use]
pub fn run_seed(seed: u64, options: &Options) -> Outcome {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let setup = setup(seed, options, &mut rng);
    let outcome = Outcome::default();
    let mut run = Run { world: World::new(setup), rng, backup: None, outcome };
    run.world.ends_at_violation = true;
    run.begin();
    if run.is_sound() && !seed.is_multiple_of(4) {
        run.strike_often();
        run.put_right();
        run.settle("everything was put right");
    }
    let losses = if seed.is_multiple_of(4) { 3 } else { 1 };
    for _ in 0..losses {
        if run.is_sound() {
            run.lose_one();
        }
    }
    run.finish()
}

/// Two, three, five and eight gateways, without a witness, with one or two, the store with them or
/// apart.
fn setup(seed: u64, options: &Options, rng: &mut ChaCha8Rng) -> Setup {
    let gateways = options.gateways.unwrap_or([3, 2, 3, 2, 5, 3, 2, 5, 3, 8][seed as usize % 10]);
    let witnesses = [0, 0, 0, 1, 1, 2][rng.random_range(0..6)];
    let store = match (gateways + witnesses, rng.random_range(0..10)) {
        (0..=2, 0..=2) => Place::Elsewhere(1),
        (0..=2, _) => Place::Elsewhere(3),
        (_, 0) => Place::Elsewhere(1),
        (_, 1..=2) => Place::Elsewhere(3),
        (_, _) => Place::OnHosts,
    };
    let budget = (options.networks as usize / 12).max(3);
    let setup = Setup::plain(gateways, options.networks, seed).probing();
    Setup { witnesses, budget, store, timing: options.timing, ..setup }
}

/// One seed as it runs.
struct Run {
    world: World,
    rng: ChaCha8Rng,
    /// What the store can be restored from.
    backup: Option<Model>,
    outcome: Outcome,
}

impl Run {
    fn is_sound(&self) -> bool {
        self.world.violations.is_empty() && self.outcome.violations.is_empty()
    }

    /// Starts all agents, on hosts whose clocks differ.
    fn begin(&mut self) {
        let isolated = match self.rng.random_range(0..10) {
            0 => Isolated::Stop,
            1 => Isolated::Serve,
            _ => Isolated::Auto,
        };
        let lossy = self.rng.random_range(0..3);
        self.world.with_links(|links| links.for_each(|_, _, _, way| way.loss = lossy));
        for host in 0..self.world.hosts.len() {
            let part = &mut self.world.hosts[host].part;
            part.isolated = isolated;
            part.clock = Clock {
                offset: self.rng.random_range(0..100_000_000),
                drift: self.rng.random_range(-100..=100),
            };
            part.watch_lag = if self.rng.random_bool(0.1) { 100 } else { 0 };
            self.world.start(host);
        }
        self.settle("the start");
    }

    fn strike_often(&mut self) {
        for _ in 0..self.rng.random_range(5..30) {
            // Often in quick succession, in the middle of moves; sometimes past a lease.
            let pause = if self.rng.random_bool(0.8) { 1..800 } else { 800..5000 };
            let pause = Duration::from_millis(self.rng.random_range(pause));
            self.world.run_for(pause);
            self.strike();
            if !self.is_sound() {
                return;
            }
        }
        self.world.run_for(Duration::from_secs(2));
    }

    /// Ends all that is wrong. Agents that run go on; those that do not are started.
    fn put_right(&mut self) {
        self.tell("everything is put right".to_owned());
        self.end_faults();
        self.world.run_for(QUIET);
        for host in 0..self.world.hosts.len() {
            self.undrain(host);
        }
        self.world.run_for(Duration::from_secs(3));
    }

    fn end_faults(&mut self) {
        let world = &mut self.world;
        world.store_up = true;
        world.with_links(super::links::Links::mend);
        world.with_cluster(|cluster| {
            for member in &mut cluster.members {
                (member.up, member.frozen, member.disk) = (true, false, FAST_DISK);
            }
        });
        for host in 0..world.hosts.len() {
            world.set_linked(host, true);
            world.set_frozen(host, false);
            world.set_paused(host, false);
            if world.hosts[host].leaving || world.hosts[host].agent.is_none() {
                world.crash(host);
                world.start(host);
            }
        }
        (0..self.world.hosts.len()).for_each(|host| self.relieve(host));
    }

    /// G6: whatever happened, the cluster comes to rest, and nobody is silent.
    fn settle(&mut self, what: &str) {
        let began = self.world.now;
        let all = self.world.setup.gateways;
        let settled = |world: &mut World| {
            world.checker.cache.nodes.len() == all
                && world.checker.is_at_rest()
                && !world.hosts.iter().any(|host| host.silenced)
        };
        let done = self.world.run_until(began + PATIENCE, settled);
        self.outcome.rest_ms.push(self.world.now.since(began).as_secs_f64() * 1000.0);
        if !done && self.is_sound() {
            let silent = self.world.hosts.iter().find(|host| host.silenced);
            let silent = silent.map(|host| format!("{} is silent", host.name));
            let why = silent.or_else(|| self.world.checker.unrest(&self.world.hosts));
            let why = why.unwrap_or_else(|| format!("not {all} gateways on the ring"));
            self.violation("G6", &format!("no rest after {what}: {why}"));
        }
    }

    /// One gateway is lost while nothing else is wrong, and comes back.
    fn lose_one(&mut self) {
        self.world.run_for(QUIET);
        self.settle("a quiet time");
        let victim = self.rng.random_range(0..self.world.setup.gateways);
        let name = self.world.hosts[victim].name.clone();
        let own: BTreeSet<Vni> = self.world.checker.cache.owned(&name).collect();
        let fault = self.rng.random_range(0..3);
        let leads = self.world.leads(victim);
        self.tell(format!("{name} is lost, in way {fault}; the store's leader with it: {leads}"));
        self.world.checker.moved.clear();
        self.world.checker.loss = Some(Loss::new(victim, own.iter().copied(), self.world.now));
        self.take_away(victim, fault);
        let over = |world: &mut World| world.checker.loss.as_ref().is_none_or(Loss::is_over);
        self.world.run_until(self.world.now + TAKEOVER, over);
        self.judge_loss();
        let away = Duration::from_millis(self.rng.random_range(500..8000));
        self.world.run_for(away);
        self.count_moves(&own);
        self.give_back(victim);
        self.settle("the return of a lost gateway");
    }

    fn take_away(&mut self, victim: usize, fault: u32) {
        let paths = 0..super::links::PATHS;
        match fault {
            0 => self.world.power_off(victim),
            1 => self.world.with_links(|links| {
                paths.for_each(|path| links.set_carrier(victim, path, false));
            }),
            _ => self.world.set_paused(victim, true),
        }
    }

    fn give_back(&mut self, victim: usize) {
        self.tell(format!("{} is back", self.world.hosts[victim].name));
        self.world.with_links(super::links::Links::mend);
        self.world.set_paused(victim, false);
        if self.world.hosts[victim].agent.is_none() {
            self.world.start(victim);
        }
    }

    fn judge_loss(&mut self) {
        let Some(loss) = self.world.checker.loss.take() else { return };
        if let Some(vni) = loss.pending().first() {
            let count = loss.pending().len();
            let text = format!("{count} networks are not served {TAKEOVER:?} after a loss: {vni}");
            self.violation("takeover", &text);
        }
        self.outcome.takeover_ms.extend(loss.took_ms);
    }

    /// G4: a lost gateway moves its own networks and no others.
    fn count_moves(&mut self, own: &BTreeSet<Vni>) {
        let moved = &self.world.checker.moved;
        let needless = moved.difference(own).count();
        self.outcome.moves_on_loss += moved.len();
        self.outcome.needless_moves += needless;
        if needless * 100 > self.world.setup.networks as usize {
            self.violation("G4", &format!("{needless} needless moves on a loss"));
        }
    }

    fn tell(&mut self, line: String) {
        self.world.story.push(format!("{}: {line}", self.world.now));
    }

    fn violation(&mut self, invariant: &'static str, text: &str) {
        let now = self.world.now;
        self.world.checker.report(invariant, text, now);
        self.world.describe();
    }

    fn finish(mut self) -> Outcome {
        self.outcome.violations.append(&mut self.world.violations);
        self.outcome.violations.truncate(TOLD);
        self.outcome.overlap_ms.append(&mut self.world.checker.overlaps);
        self.outcome.moves_judged = self.world.checker.moves.judged;
        self.outcome.events = self.world.actions;
        self.outcome.virtual_s = self.world.now.as_millis() as f64 / 1000.0;
        self.outcome
    }

    /// Gives a host back whatever it was told that it cannot do.
    fn relieve(&mut self, host: usize) {
        self.world.hosts[host].excused = false;
        self.world.hosts[host].forced = false;
        let gateway = self.world.hosts[host].part.role == NodeRole::Gateway;
        let all: BTreeSet<Vni> = self.world.vnis().filter(|_| gateway).collect();
        self.world.with_agent(host, |agent, now| {
            agent.handle_problems(Vec::new(), now);
            agent.handle_networks(all, now);
        });
    }
}
