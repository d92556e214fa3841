use std::net::SocketAddr;

use selvedge_model::NodeName;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Whether a gateway that is lost now would be replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Failover {
    /// Whether it would.
    pub possible: bool,
    /// Why not, for people.
    #[serde(default)]
    pub reason: Option<String>,
}

impl Default for Failover {
    fn default() -> Self {
        Self { possible: false, reason: Some("this agent is too old to say".to_owned()) }
    }
}

/// Whether a gateway may serve, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Right {
    /// Whether it may.
    pub serve: bool,
    /// Why, or why not.
    pub cause: Cause,
}

/// What the right to serve rests on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Neither a majority of the voters nor the store has confirmed it in time: no right.
    None,
    /// A majority of the voters, itself counted, hears it.
    Majority,
    /// The store has confirmed that no verdict stands against it.
    Store,
    /// It is cut off, and told to serve on.
    Isolated,
    /// Nobody was to be asked so far: it is alone, or has not registered since it was started.
    #[default]
    #[serde(other)]
    Unknown,
}

impl Cause {
    /// The cause as a part of a sentence.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::None => "neither a majority nor the store confirms it",
            Self::Unknown => "nobody else was to be asked so far",
            Self::Majority => "heard by a majority",
            Self::Store => "confirmed by the store",
            Self::Isolated => "cut off, and told to serve on",
        }
    }
}

/// The members of the store, as each of them was asked by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Members {
    /// How many there are.
    pub members: usize,
    /// How many of them answered.
    pub answering: usize,
    /// Whether one of those names a leader that answers.
    pub led: bool,
}

/// Another voter, as this one hears it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Partner {
    /// Its name.
    #[schema(value_type = String)]
    pub name: NodeName,
    /// Whether it has answered a moment ago.
    pub heard: bool,
    /// How long ago it last answered on any path, in milliseconds; `None`: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent_ms: Option<u64>,
    /// The paths to it.
    #[serde(default)]
    pub paths: Vec<Path>,
    /// Whom it hears itself, as it last said.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub hears: Vec<NodeName>,
    /// Who has voted that it is lost.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub voted_by: Vec<NodeName>,
    /// For how long it will yet be away on purpose, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub away_ms: Option<u64>,
}

/// A path to a voter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Path {
    /// Where it is probed.
    #[schema(value_type = String)]
    pub address: SocketAddr,
    /// How long ago it last answered there, in milliseconds; `None`: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent_ms: Option<u64>,
    /// How long the last answer took, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round_trip_us: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_a_newer_agent_knows_is_unknown() {
        let right: Right =
            serde_json::from_str(r#"{"serve":true,"cause":"luck"}"#).expect("parses");
        assert_eq!(right, Right { serve: true, cause: Cause::Unknown });
    }

    #[test]
    fn who_does_not_say_whether_failover_is_possible_does_not_count_as_safe() {
        assert!(!Failover::default().possible);
        let text = serde_json::to_string(&Failover { possible: true, reason: None });
        assert_eq!(text.expect("serialises"), r#"{"possible":true,"reason":null}"#);
    }
}
