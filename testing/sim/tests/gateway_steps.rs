//! What may befall nodes that watch over each other at every step of a takeover, and what operators
//! may say at every step of a takeover and of a planned move.

mod common;

use std::time::Duration;

use common::{PATIENCE, rest, setup, sound, until_state};
use selvedge_gateway::machine::State;
use selvedge_model::{NodeName, Time, Vni};
use selvedge_sim::gateway::links::{Links, PATHS};
use selvedge_sim::gateway::world::{Place, Setup, World};

/// So many that each of five gateways has some.
const NETWORKS: u32 = 20;
/// How long a step is waited for. Not every takeover has every step.
const SOON: Duration = Duration::from_secs(3);

/// How far a takeover has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// One has voted.
    Voted,
    /// A majority has.
    Agreed,
    /// A successor acts before anything is committed.
    Acted,
    /// The verdict is committed.
    Convicted,
    /// A network is claimed.
    Claimed,
    /// A network has its new owner.
    Owned,
}

const STEPS: [Step; 6] =
    [Step::Voted, Step::Agreed, Step::Acted, Step::Convicted, Step::Claimed, Step::Owned];

/// A takeover as it is watched.
struct Takeover {
    world: World,
    lost: usize,
    own: Vec<Vni>,
    at: Time,
}

impl Takeover {
    /// Five gateways at rest, the store on the first three; the links of one are cut.
    fn begin(lost: usize, seed: u64) -> Self {
        let setup = Setup { store: Place::OnHosts, ..setup(5, NETWORKS, seed).probing() };
        let mut world = common::awake(setup);
        let name = world.hosts[lost].name.clone();
        let own = world.checker.cache.owned(&name).collect();
        let at = world.now;
        world.with_links(|links| (0..PATHS).for_each(|path| links.set_carrier(lost, path, false)));
        Self { world, lost, own, at }
    }

    fn name(&self) -> NodeName {
        self.world.hosts[self.lost].name.clone()
    }

    /// Runs until the step; returns who took it, if it was taken.
    fn until(&mut self, step: Step) -> Option<usize> {
        let (lost, at, own, name) = (self.lost, self.at, &self.own, self.name());
        let mut actor = None;
        self.world.run_until(at + SOON, |world| {
            actor = taken_by(world, step, lost, &name, own, at);
            actor.is_some()
        });
        actor
    }
}

fn taken_by(
    world: &World,
    step: Step,
    lost: usize,
    name: &NodeName,
    own: &[Vni],
    since: Time,
) -> Option<usize> {
    let others = || (0..world.hosts.len()).filter(|host| *host != lost);
    let said = |host: &usize, what: &str| {
        let mut lines = world.hosts[*host].log.iter();
        lines.any(|(at, line)| *at >= since && line.starts_with(what))
    };
    let named = |name: &NodeName| world.host_named(name);
    match step {
        Step::Voted => others().find(|host| said(host, "Voted(")),
        Step::Agreed => others().filter(|host| said(host, "Voted(")).nth(2),
        Step::Acted => others().find(|host| {
            let serves = |vni: &Vni| world.hosts[*host].answers(*vni);
            !world.checker.cache.is_struck(name) && own.iter().any(serves)
        }),
        Step::Convicted => others().find(|_| world.checker.cache.is_struck(name)),
        Step::Claimed => own.iter().find_map(|vni| {
            let network = world.network(*vni);
            let claimed = network.state() == State::FailoverDecided;
            network.next().filter(|_| claimed).and_then(named)
        }),
        Step::Owned => own.iter().find_map(|vni| {
            let owner = world.network(*vni).current().cloned();
            owner.filter(|owner| owner != name).as_ref().and_then(named)
        }),
    }
}

/// Everything is put right: all run, and all links are sound. Nothing is drained.
fn put_right(world: &mut World) {
    world.with_links(Links::mend);
    for host in 0..world.hosts.len() {
        if world.hosts[host].leaving || world.hosts[host].left {
            world.crash(host);
        }
        if world.hosts[host].agent.is_none() {
            world.start(host);
        }
        world.hosts[host].excused = false;
    }
    world.run_for(Duration::from_secs(12));
    for host in 0..world.hosts.len() {
        let name = world.hosts[host].name.clone();
        let done = |world: &mut World| {
            let mut said = true;
            world
                .with_agent(host, |agent, now| said = agent.set_drained(&name, false, now).is_ok());
            said
        };
        let patience = world.now + PATIENCE;
        assert!(world.run_until(patience, done), "{name} knows its own name");
    }
    world.run_for(Duration::from_secs(3));
}

/// Whose agent dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    /// The one that took the step.
    Actor,
    /// One that did not.
    Other,
    /// All but the lost one.
    Everybody,
}

/// What becomes of the victims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Their hosts are gone, and with them members of the store.
    PowerOff,
    /// Their agents come back before their leases end.
    BackSoon,
    /// Their agents come back after that.
    BackLate,
    /// The lost gateway is back at that moment.
    LostIsBack,
}

const FATES: [(Victim, Fate); 8] = [
    (Victim::Actor, Fate::PowerOff),
    (Victim::Actor, Fate::BackSoon),
    (Victim::Actor, Fate::BackLate),
    (Victim::Actor, Fate::LostIsBack),
    (Victim::Other, Fate::PowerOff),
    (Victim::Other, Fate::BackSoon),
    (Victim::Everybody, Fate::BackSoon),
    (Victim::Everybody, Fate::BackLate),
];

fn crash(takeover: &mut Takeover, actor: usize, victim: Victim, fate: Fate) {
    let (world, lost) = (&mut takeover.world, takeover.lost);
    let hit = |host: &usize| match victim {
        Victim::Actor => *host == actor,
        Victim::Other => *host == bystander(actor, lost),
        Victim::Everybody => *host != lost,
    };
    let hosts: Vec<usize> = (0..world.hosts.len()).filter(hit).collect();
    for host in &hosts {
        match fate {
            Fate::PowerOff => world.power_off(*host),
            Fate::BackSoon | Fate::BackLate => world.crash(*host),
            Fate::LostIsBack => world.with_links(Links::mend),
        }
    }
    let away = match fate {
        Fate::BackLate => Duration::from_secs(8),
        Fate::BackSoon => Duration::from_millis(300),
        Fate::PowerOff | Fate::LostIsBack => return,
    };
    world.run_for(away);
    hosts.iter().for_each(|host| world.start(*host));
}

/// Somebody else than these two.
fn bystander(actor: usize, lost: usize) -> usize {
    (2..5).find(|host| *host != actor && *host != lost).expect("one of three is neither")
}

/// Until then nothing but what was lost is away; in the end everything is back.
fn ends_in_serving(takeover: Takeover, what: &str) {
    let Takeover { mut world, .. } = takeover;
    world.run_for(Duration::from_secs(5));
    sound(&world, what);
    if world.cluster.acting_leader().is_some() {
        rest(&mut world, &format!("{what}: without the lost"));
    }
    put_right(&mut world);
    rest(&mut world, what);
}

/// Returns which steps were taken, of all takeovers of a host.
fn crashes(lost: usize) -> Vec<Step> {
    let mut reached = Vec::new();
    for (number, step) in (0..).zip(STEPS) {
        for (of, (victim, fate)) in (0..).zip(FATES) {
            let mut takeover = Takeover::begin(lost, number * 10 + of);
            let Some(actor) = takeover.until(step) else { continue };
            reached.push(step);
            // At once, or in the middle of what follows.
            let lag = [0, 25, 60][((number + of) % 3) as usize];
            takeover.world.run_for(Duration::from_millis(lag));
            crash(&mut takeover, actor, victim, fate);
            let what = format!("gw{}: {step:?} + {lag} ms, {victim:?} {fate:?}", lost + 1);
            ends_in_serving(takeover, &what);
        }
    }
    reached.dedup();
    reached
}

#[test]
fn crashes_at_every_step_of_a_takeover() {
    // The store answers, so that nobody acts before the verdict is there.
    let without_acting: Vec<Step> = STEPS.into_iter().filter(|step| *step != Step::Acted).collect();
    assert_eq!(crashes(3), without_acting);
}

#[test]
fn crashes_at_every_step_of_a_takeover_that_takes_the_stores_leader_too() {
    assert_eq!(crashes(0), STEPS);
}

/// What an operator says of a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Drain,
    /// And a moment later the opposite.
    DrainAndUndrain,
    Leave,
    /// Its networks are to be taken over by force.
    Force,
    Remove,
}

const WORDS: [Word; 5] =
    [Word::Drain, Word::DrainAndUndrain, Word::Leave, Word::Force, Word::Remove];

/// The operator says it to the agent of `by`, which may refuse it.
fn say(world: &mut World, word: Word, of: usize, by: usize) {
    let name = world.hosts[of].name.clone();
    let drain = |world: &mut World, drained| {
        world.with_agent(by, |agent, now| drop(agent.set_drained(&name, drained, now)));
    };
    match word {
        Word::Drain => drain(world, true),
        Word::DrainAndUndrain => {
            drain(world, true);
            world.run_for(Duration::from_millis(350));
            drain(world, false);
        }
        Word::Leave => {
            world.hosts[of].leaving = true;
            world.with_agent(of, |agent, now| agent.leave(now));
        }
        Word::Force => {
            let mut forced = false;
            world.with_agent(by, |agent, now| forced = agent.take_over(&name, now).is_ok());
            world.hosts[of].excused |= forced;
            world.hosts.iter_mut().for_each(|host| host.forced |= forced);
        }
        Word::Remove => {
            // It is refused until the registration has ended.
            for pause in [0, 8] {
                world.run_for(Duration::from_secs(pause));
                world.with_agent(by, |agent, now| drop(agent.remove(&name, now)));
            }
        }
    }
}

#[test]
fn words_at_every_step_of_a_takeover() {
    for (number, step) in (0..).zip(STEPS) {
        for (of_word, word) in (0..).zip(WORDS) {
            for of_lost in [false, true] {
                let seed = 1000 + number * 100 + of_word * 10 + u64::from(of_lost);
                let mut takeover = Takeover::begin(0, seed);
                let Some(actor) = takeover.until(step) else { continue };
                let of = if of_lost { takeover.lost } else { actor };
                let by = bystander(actor, takeover.lost);
                say(&mut takeover.world, word, of, by);
                ends_in_serving(takeover, &format!("{step:?}, {word:?} of gw{}", of + 1));
            }
        }
    }
}

/// Of whom something is said while a network moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Current,
    Next,
    Both,
}

#[test]
fn words_at_every_step_of_a_planned_move() {
    for state in State::ALL.into_iter().filter(|state| state.is_migration()) {
        for (of_word, word) in (0..).zip(WORDS) {
            for (of_part, part) in (0..).zip([Part::Current, Part::Next, Part::Both]) {
                let seed = u64::from(state.number()) * 100 + of_word * 10 + of_part;
                let what = format!("{state}, {word:?} of {part:?}");
                say_in_a_move(state, word, part, seed, &what);
            }
        }
    }
}

fn say_in_a_move(state: State, word: Word, part: Part, seed: u64, what: &str) {
    let mut world = common::world(3, 2, 12, seed);
    world.start(2);
    let vni = until_state(&mut world, state).unwrap_or_else(|| panic!("{what}: not reached"));
    let network = world.network(vni);
    let current = network.current().filter(|_| part != Part::Next).cloned();
    let next = network.next().filter(|_| part != Part::Current).cloned();
    for name in [current, next].into_iter().flatten() {
        let of = world.host_named(&name).expect("one of ours");
        say(&mut world, word, of, (of + 1) % 3);
    }
    world.run_for(Duration::from_secs(10));
    sound(&world, what);
    put_right(&mut world);
    rest(&mut world, what);
}
