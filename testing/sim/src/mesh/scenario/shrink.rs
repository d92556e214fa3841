//! Looks for a shorter scenario that breaks the same rule with the same seed.

use super::{Action, Scenario, Step, play};

/// So many attempts are made at most.
const ATTEMPTS: usize = 300;

/// The shortest scenario found.
#[derive(Clone, Debug, PartialEq)]
pub struct Shrunk {
    /// It.
    pub scenario: Scenario,
    /// The rule that it breaks.
    pub rule: String,
    /// What happened last before that.
    pub history: Vec<String>,
    /// The attempts that it took.
    pub attempts: usize,
}

/// Takes steps and nodes out of a scenario as long as it breaks the same rule as before; `None`
/// if it breaks none.
#[must_use]
pub fn shrink(scenario: &Scenario, seed: u64) -> Option<Shrunk> {
    let (rule, history) = broken(scenario, seed)?;
    let mut best = Shrunk { scenario: scenario.clone(), rule, history, attempts: 1 };
    while let Some(better) = improve(&best, seed) {
        best = better;
    }
    Some(best)
}

/// The first simplification that still breaks the rule.
fn improve(best: &Shrunk, seed: u64) -> Option<Shrunk> {
    for (tried, candidate) in candidates(&best.scenario).into_iter().enumerate() {
        let attempts = best.attempts + tried + 1;
        if attempts > ATTEMPTS {
            return None;
        }
        if let Some((rule, history)) = broken(&candidate, seed)
            && rule == best.rule
        {
            return Some(Shrunk { scenario: candidate, rule, history, attempts });
        }
    }
    None
}

/// The rule that is broken first, and what led to it.
fn broken(scenario: &Scenario, seed: u64) -> Option<(String, Vec<String>)> {
    let report = play(scenario, seed);
    let first = report.details.first()?;
    // "seed 1, 2.5s: M1: what exactly"
    let rule = first.split(": ").nth(1).unwrap_or(first).to_owned();
    Some((rule, report.history))
}

/// Simpler ones, the much simpler first.
fn candidates(scenario: &Scenario) -> Vec<Scenario> {
    let mut candidates = Vec::new();
    let count = scenario.steps.len();
    if count > 3 {
        for half in [0..count / 2, count / 2..count] {
            candidates.push(with(scenario, |simpler| {
                let half = simpler.steps.splice(half, []).filter(mends).collect::<Vec<_>>();
                simpler.steps.extend(half);
            }));
        }
    }
    if scenario.nodes > 2 {
        for nodes in [scenario.nodes / 2, scenario.nodes - 1] {
            candidates.push(with(scenario, |simpler| {
                simpler.nodes = nodes;
                simpler.clients = simpler.clients.min(nodes - 1);
            }));
        }
    }
    for step in (0..count).filter(|step| !mends(&scenario.steps[*step])) {
        candidates.push(with(scenario, |simpler| drop(simpler.steps.remove(step))));
    }
    for calm in [calm_loss, calm_network, calm_clocks, calm_stalls] {
        let calmer = with(scenario, calm);
        candidates.extend((calmer != *scenario).then_some(calmer));
    }
    candidates
}

/// Without this what was torn apart stays so, and nothing can be expected.
fn mends(step: &Step) -> bool {
    step.action == Action::Mend
}

fn calm_loss(scenario: &mut Scenario) {
    scenario.loss = 0.0;
}

fn calm_network(scenario: &mut Scenario) {
    (scenario.duplication, scenario.jitter) = (0.0, 0.0);
}

fn calm_clocks(scenario: &mut Scenario) {
    (scenario.drift_ppm, scenario.ahead_s) = (0, 0);
}

fn calm_stalls(scenario: &mut Scenario) {
    scenario.stalling = 0.0;
}

fn with(scenario: &Scenario, change: impl FnOnce(&mut Scenario)) -> Scenario {
    let mut other = scenario.clone();
    change(&mut other);
    other
}
