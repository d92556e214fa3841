//! Scenarios in which everything that may go wrong does, at random.

use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::{Action, Claim, Expectation, Scenario, Step};

/// Trouble begins, and ends, at these seconds.
const TROUBLE: (f64, f64) = (3.0, 90.0);
/// After so many seconds of peace all has to be well. Nodes that were apart try each other every
/// few seconds, and who was convicted again and again may wait for two minutes before it
/// contradicts once more.
const PEACE: f64 = 120.0;

/// What befalls a mesh of this seed.
#[must_use]
pub fn chaos(seed: u64) -> Scenario {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x6368_616f_7300);
    let nodes = rng.random_range(4..=32);
    let inviters = rng.random_range(0..=2);
    let rolls = rng.random_range(3..=25);
    let mut steps: Vec<Step> = (0..rolls).map(|_| trouble(nodes, &mut rng)).collect();
    let (_, end) = TROUBLE;
    steps.extend([Action::Mend, Action::Loss(0.01)].map(|action| step(end, 0.0, action)));
    let claims = [Claim::Agreed, Claim::Lives, Claim::Out];
    let soon = claims.map(|that| Expectation { from: end, within: PEACE, that });
    // Again, for what holds at once may be yet to be undone by what is on its way.
    let still = claims.map(|that| Expectation { from: end + PEACE, within: 1.0, that });
    Scenario {
        about: format!("Chaos, by seed {seed}."),
        nodes,
        seeds: vec![seed],
        loss: *[0.0, 0.01, 0.05].choose(&mut rng).expect("there are some"),
        duplication: rng.random_range(0.0..0.02),
        jitter: rng.random_range(0.0..1.0),
        stalling: *[0.0, 0.1].choose(&mut rng).expect("there are some"),
        clients: rng.random_range(0..=nodes / 4),
        drift_ppm: rng.random_range(0..500),
        ahead_s: 0,
        inviters_ahead_s: (0..inviters).map(|_| rng.random_range(-30..=30)).collect(),
        record_life_s: None,
        // Whoever stalls while packets are lost may be.
        false_failures: usize::MAX >> 1,
        seconds: 0.0,
        steps,
        expectations: soon.into_iter().chain(still).collect(),
    }
}

fn trouble(nodes: usize, rng: &mut ChaCha8Rng) -> Step {
    let (from, to) = TROUBLE;
    let (at, over): (f64, f64) = (rng.random_range(from..to), rng.random_range(0.0..20.0));
    let few = rng.random_range(1..=3);
    let action = match rng.random_range(0..16) {
        0 | 1 => Action::Update(2 * few),
        2 => Action::Crash(few),
        3 => Action::Return(few),
        4 => Action::ReturnOld(few),
        5 => Action::Upgrade(2 * few),
        6 => Action::Join(few),
        7 => Action::Leave(few),
        8 => Action::Evict(few),
        9 => Action::EvictAbsent(1),
        10 => Action::Admit(few),
        11 => Action::EvictGuest(1),
        12 => Action::Freeze { nodes: few, seconds: rng.random_range(0.5..20.0) },
        13 => {
            let first = rng.random_range(1..nodes);
            Action::Tear { parts: vec![first, nodes - first], bridges: rng.random_range(0..2) }
        }
        14 => Action::OneWay { from: rng.random_range(1..nodes), to: rng.random_range(1..nodes) },
        _ => match rng.random_bool(0.5) {
            true => Action::Mend,
            false => Action::Loss(rng.random_range(0.0..0.2)),
        },
    };
    step(at, over.min(to - at), action)
}

fn step(at: f64, over: f64, action: Action) -> Step {
    // As few digits as a file is written with by hand.
    let round = |seconds: f64| (seconds * 10.0).floor() / 10.0;
    Step { at: round(at), over: round(over), action }
}
