//! Scenarios as files: what a mesh is made of, what happens to it, and what must come of it.
//!
//! ```toml
//! about = "Halves that were apart for a minute are one again."
//! nodes = 20
//!
//! [[step]]
//! at = 5.0
//! do = { tear = { parts = [10, 10] } }
//!
//! [[step]]
//! at = 65.0
//! do = "mend"
//!
//! [[expect]]
//! from = 65.0
//! within = 5.0
//! that = "agreed"
//! ```
//!
//! `docs/mesh-simulator.md` lists all words.

mod chaos;
mod play;
mod shrink;

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use chaos::chaos;
pub use play::{Outcome, Report, play};
pub use shrink::{Shrunk, shrink};

/// A scenario.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Scenario {
    /// What it is about, in a sentence.
    pub about: String,
    /// Number of members at the start.
    pub nodes: usize,
    /// Seeds to run it with.
    #[serde(default = "one_seed")]
    pub seeds: Vec<u64>,
    /// The chance that a packet is lost.
    #[serde(default = "default_loss")]
    pub loss: f64,
    /// The chance that a datagram arrives twice.
    #[serde(default)]
    pub duplication: f64,
    /// Delays vary up to this part of themselves, so that packets overtake each other.
    #[serde(default = "default_jitter")]
    pub jitter: f64,
    /// This part of the nodes stalls every few seconds for up to a second.
    #[serde(default)]
    pub stalling: f64,
    /// So many of the members, the last ones, are clients behind a NAT.
    #[serde(default)]
    pub clients: usize,
    /// Clocks run fast or slow by up to so many millionths.
    #[serde(default)]
    pub drift_ppm: u32,
    /// Wall clocks are ahead by up to so many seconds.
    #[serde(default)]
    pub ahead_s: u64,
    /// So many members after the founder may invite, and by so many seconds the wall clock of each
    /// is ahead, or behind.
    #[serde(default)]
    pub inviters_ahead_s: Vec<i64>,
    /// Seconds for which records live; a day if absent.
    #[serde(default)]
    pub record_life_s: Option<u64>,
    /// So many running nodes in reach may be held to be down.
    #[serde(default)]
    pub false_failures: usize,
    /// How long it goes on, in seconds; at least until the last expectation.
    #[serde(default)]
    pub seconds: f64,
    /// What happens, in any order.
    #[serde(default, rename = "step")]
    pub steps: Vec<Step>,
    /// What must come of it.
    #[serde(default, rename = "expect")]
    pub expectations: Vec<Expectation>,
}

/// Something that happens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// When, in seconds from the start.
    pub at: f64,
    /// What is done to several nodes is spread over so many seconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub over: f64,
    /// What.
    #[serde(rename = "do")]
    pub action: Action,
}

/// What may happen. Nodes are drawn at random among those that run; the founder is spared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Action {
    /// So many nodes say something new, which is followed.
    Update(usize),
    /// So many nodes stop without a word.
    Crash(usize),
    /// So many of those that crashed come back with what they knew.
    Return(usize),
    /// The same with a disk that went back to what was on it in the beginning.
    ReturnOld(usize),
    /// So many nodes of this version restart with the one that comes next.
    Upgrade(usize),
    /// So many new nodes join; so does who lost its disk.
    Join(usize),
    /// So many nodes leave for good.
    Leave(usize),
    /// The founder evicts so many nodes.
    Evict(usize),
    /// The founder evicts so many of those that crashed and may come back.
    EvictAbsent(usize),
    /// So many new nodes join by members that may invite, if any run.
    Admit(usize),
    /// Members that may invite evict so many of those whom they admitted.
    EvictGuest(usize),
    /// So many nodes stand still.
    Freeze {
        /// How many.
        nodes: usize,
        /// For how long.
        seconds: f64,
    },
    /// The mesh is torn into parts of so many nodes each, in order; the rest are in the last one.
    Tear {
        /// How many nodes each part has.
        parts: Vec<usize>,
        /// So many nodes, the last ones, remain in reach of all.
        #[serde(default)]
        bridges: usize,
    },
    /// Nothing that the first so many nodes send reaches the next so many.
    OneWay {
        /// The senders.
        from: usize,
        /// The receivers.
        to: usize,
    },
    /// All that was cut is whole again.
    Mend,
    /// The chance that a packet is lost is another from now on.
    Loss(f64),
}

/// What must come of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expectation {
    /// From when on it is waited for, in seconds from the start.
    pub from: f64,
    /// After so many seconds it must hold.
    pub within: f64,
    /// What.
    pub that: Claim,
}

/// What can be expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Claim {
    /// All running nodes hold the same state.
    Agreed,
    /// What was said, who joined and who crashed so far is known to all that ran then.
    Known,
    /// Every running node knows which of the members run, and which do not.
    Lives,
    /// Everybody who was evicted, and ran since, has heard of it.
    Out,
}

/// Why a scenario cannot be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScenarioError(String);

impl fmt::Display for ScenarioError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "reading the scenario: {}", self.0)
    }
}

impl std::error::Error for ScenarioError {}

impl Scenario {
    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read, is no scenario, or makes no sense.
    pub fn load(path: &Path) -> Result<Self, ScenarioError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ScenarioError(format!("{}: {error}", path.display())))?;
        Self::parse(&text)
            .map_err(|ScenarioError(why)| ScenarioError(format!("{}: {why}", path.display())))
    }

    /// Reads a scenario from text.
    ///
    /// # Errors
    /// If it is no scenario, or makes no sense.
    pub fn parse(text: &str) -> Result<Self, ScenarioError> {
        let scenario: Self =
            toml::from_str(text).map_err(|error| ScenarioError(error.to_string()))?;
        scenario.check()?;
        Ok(scenario)
    }

    fn check(&self) -> Result<(), ScenarioError> {
        let chances = [self.loss, self.duplication, self.stalling];
        let times = self.steps.iter().flat_map(|step| [step.at, step.over]);
        let bounds = self.expectations.iter().flat_map(|expect| [expect.from, expect.within]);
        let faults = [
            (self.nodes == 0, "nodes: a mesh has at least one"),
            (self.clients >= self.nodes, "clients: not all members can be clients"),
            (self.inviters_ahead_s.len() >= self.nodes, "inviters-ahead-s: as many as members"),
            (self.seeds.is_empty(), "seeds: at least one is needed"),
            (!chances.iter().all(|c| (0.0..=1.0).contains(c)), "a chance is from 0 to 1"),
            (!(0.0..=10.0).contains(&self.jitter), "jitter is from 0 to 10"),
            (
                !times.chain(bounds).chain([self.seconds]).all(|t| (0.0..=1e6).contains(&t)),
                "a time is from 0 to 1000000 seconds",
            ),
            (self.expectations.is_empty(), "expect: nothing is expected"),
        ];
        match faults.into_iter().find(|(fault, _)| *fault) {
            Some((_, why)) => Err(ScenarioError(why.to_owned())),
            None => Ok(()),
        }
    }

    /// The scenario as a file.
    #[must_use]
    pub fn to_text(&self) -> String {
        toml::to_string(self).expect("plain numbers and words")
    }

    /// The steps by time, those that are spread over a while one node at a time.
    #[must_use]
    pub(crate) fn timeline(&self) -> Vec<(f64, Action)> {
        let mut timeline: Vec<(f64, Action)> = self.steps.iter().flat_map(Step::spread).collect();
        timeline.sort_by(|a, b| a.0.total_cmp(&b.0));
        timeline
    }

    /// The last moment that matters, in seconds.
    #[must_use]
    pub(crate) fn end(&self) -> f64 {
        let steps = self.steps.iter().map(|step| step.at + step.over);
        let expected = self.expectations.iter().map(|expect| expect.from + expect.within);
        steps.chain(expected).fold(self.seconds, f64::max)
    }
}

/// What is done to so many nodes.
type OfSome = fn(usize) -> Action;

impl Step {
    fn spread(&self) -> Vec<(f64, Action)> {
        let several: Option<(usize, OfSome)> = match &self.action {
            Action::Update(count) => Some((*count, Action::Update)),
            Action::Crash(count) => Some((*count, Action::Crash)),
            Action::Return(count) => Some((*count, Action::Return)),
            Action::ReturnOld(count) => Some((*count, Action::ReturnOld)),
            Action::Upgrade(count) => Some((*count, Action::Upgrade)),
            Action::Join(count) => Some((*count, Action::Join)),
            Action::Leave(count) => Some((*count, Action::Leave)),
            Action::Evict(count) => Some((*count, Action::Evict)),
            Action::EvictAbsent(count) => Some((*count, Action::EvictAbsent)),
            Action::Admit(count) => Some((*count, Action::Admit)),
            Action::EvictGuest(count) => Some((*count, Action::EvictGuest)),
            Action::Freeze { .. }
            | Action::Tear { .. }
            | Action::OneWay { .. }
            | Action::Mend
            | Action::Loss(_) => None,
        };
        let Some((count, one)) = several else { return vec![(self.at, self.action.clone())] };
        #[allow(clippy::cast_precision_loss, reason = "a number of nodes")]
        let at = |n: usize| self.at + self.over * n as f64 / count as f64;
        (0..count).map(|n| (at(n), one(1))).collect()
    }
}

fn one_seed() -> Vec<u64> {
    vec![1]
}

const fn default_loss() -> f64 {
    0.01
}

const fn default_jitter() -> f64 {
    0.1
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde asks for")]
fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        about = "Everything."
        nodes = 8
        clients = 2
        [[step]]
        at = 2
        over = 1
        do = { update = 2 }
        [[step]]
        at = 1
        do = { tear = { parts = [3, 3], bridges = 1 } }
        [[step]]
        at = 3
        do = "mend"
        [[expect]]
        from = 3
        within = 5
        that = "agreed"
    "#;

    #[test]
    fn a_file_is_read_and_written() {
        let scenario = Scenario::parse(TEXT).expect("holds");
        assert_eq!((scenario.nodes, scenario.clients, scenario.loss), (8, 2, 0.01));
        assert_eq!(Scenario::parse(&scenario.to_text()), Ok(scenario.clone()));
        let tear = Action::Tear { parts: vec![3, 3], bridges: 1 };
        let one = Action::Update(1);
        let expected = [(1.0, tear), (2.0, one.clone()), (2.5, one), (3.0, Action::Mend)];
        assert_eq!(scenario.timeline(), expected);
        assert!((scenario.end() - 8.0).abs() < 1e-9);
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        for (from, to, why) in [
            ("nodes = 8", "nodes = 0", "at least one"),
            ("clients = 2", "clients = 8", "can be clients"),
            ("clients = 2", "loss = 1.5", "a chance"),
            ("clients = 2", "los = 0.5", "unknown field"),
            ("at = 2", "at = -1", "a time"),
            ("\"mend\"", "\"bend\"", "unknown variant"),
            ("that = \"agreed\"", "that = \"peace\"", "unknown variant"),
        ] {
            let error = Scenario::parse(&TEXT.replace(from, to)).expect_err(to);
            assert!(error.to_string().contains(why), "{to}: {error}");
        }
    }
}
