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
    let mended = scenario.steps.iter().filter(|step| step.action == Action::Mend);
    let mended = mended.map(|step| step.at).reduce(f64::max).unwrap_or(f64::INFINITY);
    // Without these what was torn apart stays so, and nothing can be expected.
    let calms = |action: &Action| matches!(action, Action::Mend | Action::Loss(_));
    let is_kept = |step: &Step| step.at >= mended && calms(&step.action);
    if count > 3 {
        for half in [0..count / 2, count / 2..count] {
            candidates.push(with(scenario, |simpler| {
                let kept: Vec<Step> = simpler.steps.splice(half, []).filter(is_kept).collect();
                simpler.steps.extend(kept);
            }));
        }
        candidates.retain(|simpler| simpler.steps.len() < count);
    }
    if scenario.nodes > 2 {
        for nodes in [scenario.nodes / 2, scenario.nodes - 1] {
            candidates.push(with(scenario, |simpler| {
                simpler.nodes = nodes;
                simpler.clients = simpler.clients.min(nodes - 1);
            }));
        }
    }
    for step in (0..count).filter(|step| !is_kept(&scenario.steps[*step])) {
        candidates.push(with(scenario, |simpler| drop(simpler.steps.remove(step))));
    }
    for calm in [calm_loss, calm_network, calm_clocks, calm_stalls] {
        let calmer = with(scenario, calm);
        candidates.extend((calmer != *scenario).then_some(calmer));
    }
    candidates
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
