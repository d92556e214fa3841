use std::fmt;

use selvedge_model::{NodeName, Vni};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Cause, State};

/// Something that has happened at a gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// When, in milliseconds since 1970 (UTC), by the gateway's clock.
    pub at_ms: u64,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What has happened: in JSON the field `event` and those of the kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "snake_case")]
pub enum What {
    /// Who watches has read too slowly: some events are left out here.
    Missed {
        /// How many.
        events: u64,
    },
    /// The gateway is registered.
    Registered {
        /// The create revision of the registration.
        incarnation: i64,
    },
    /// Another host is registered under this gateway's name; this one waits.
    NameTaken {
        /// What the other says of itself.
        identity: String,
    },
    /// A verdict stands against this gateway; it gives all its networks up.
    Convicted,
    /// A key of the store makes no sense and is left alone.
    ForeignValue {
        /// The key.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A network is in another state.
    State {
        /// The network.
        #[schema(value_type = u32)]
        vni: Vni,
        /// The state before.
        from: State,
        /// The state now.
        to: State,
    },
    /// A network has come to this gateway.
    Gained {
        /// The network.
        #[schema(value_type = u32)]
        vni: Vni,
        /// Whether by a planned move.
        planned: bool,
        /// Whether it was this gateway's before its agent was started again.
        kept: bool,
        /// Who had it before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Option<String>)]
        from: Option<NodeName>,
        /// Why, as the history has it.
        reason: String,
    },
    /// A network has left this gateway.
    Lost {
        /// The network.
        #[schema(value_type = u32)]
        vni: Vni,
        /// Its owner now.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Option<String>)]
        to: Option<NodeName>,
    },
    /// This gateway plans moves, or no longer does.
    Planner {
        /// Whether it does.
        here: bool,
    },
    /// A voter is heard no more on any path.
    Suspected {
        /// Who.
        #[schema(value_type = String)]
        name: NodeName,
        /// For how long it has not answered, in milliseconds.
        silent_ms: u64,
    },
    /// A voter is heard again, or for the first time.
    Heard {
        /// Who.
        #[schema(value_type = String)]
        name: NodeName,
    },
    /// This node has voted that another is lost.
    Voted {
        /// Who is lost.
        #[schema(value_type = String)]
        name: NodeName,
    },
    /// A verdict stands in the store.
    Verdict {
        /// Who counts as dead.
        #[schema(value_type = String)]
        name: NodeName,
        /// Why.
        reason: String,
        /// From this node's own suspicion to the verdict, in milliseconds, if it had one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after_ms: Option<u64>,
    },
    /// Networks of a lost gateway are taken over before the store has confirmed the verdict.
    Prepared {
        /// Who is lost.
        #[schema(value_type = String)]
        name: NodeName,
        /// How many networks this gateway takes over.
        networks: usize,
    },
    /// The right to serve rests on something else than before, or has ended.
    Right {
        /// Whether this gateway may serve.
        serve: bool,
        /// Why, or why not.
        cause: Cause,
        /// For how long it had no word of a majority or of the store, in milliseconds.
        unconfirmed_ms: u64,
    },
    /// All networks of this host are silenced at once, or that is lifted.
    Silenced {
        /// Whether they are.
        on: bool,
    },
    /// What keeps this host from doing its job has changed.
    Fitness {
        /// What does, each a sentence; empty: nothing any more.
        problems: Vec<String>,
    },
    /// This gateway asks the others to take its networks over, because it cannot do its job.
    AsksForRelief,
    /// The store answers, or does not.
    Store {
        /// Whether it does.
        connected: bool,
        /// Why not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// A command of `[gateway.hooks]` has failed.
    HookFailed {
        /// The network that it was for.
        #[schema(value_type = u32)]
        vni: Vni,
        /// `take_over` or `give_up`.
        hook: String,
        /// What happened.
        problem: String,
    },
    /// The agent starts again, as announced to the others.
    Restarting {
        /// For how long the others wait for it, in milliseconds.
        for_ms: u64,
    },
    /// This gateway owns nothing any more and takes nothing: its agent ends.
    Left,
    /// Something that a newer agent knows and this client does not.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for Event {
    /// The time of day (UTC) and what happened, in one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, millis) = (self.at_ms / 1000 % 86400, self.at_ms % 1000);
        let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        write!(f, "{hours:02}:{minutes:02}:{seconds:02}.{millis:03}  {}", self.what)
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missed { events } => write!(f, "({events} events were missed here)"),
            Self::Registered { incarnation } => write!(f, "registered at revision {incarnation}"),
            Self::NameTaken { identity } => {
                write!(f, "another host is registered under this name: {identity}")
            }
            Self::Convicted => f.write_str("convicted: this gateway counts as dead"),
            Self::ForeignValue { key, problem } => write!(f, "{key} in the store: {problem}"),
            Self::State { vni, from, to } => {
                write!(f, "network {vni}: {} -> {}", from.as_str(), to.as_str())
            }
            Self::Gained { vni, kept: true, .. } => {
                write!(f, "network {vni} kept over the restart")
            }
            Self::Gained { vni, reason, .. } => write!(f, "network {vni} gained: {reason}"),
            Self::Lost { vni, to: Some(to) } => write!(f, "network {vni} given up: {to} has it"),
            Self::Lost { vni, to: None } => write!(f, "network {vni} given up"),
            Self::Planner { here: true } => f.write_str("plans moves from now on"),
            Self::Planner { here: false } => f.write_str("plans no moves any more"),
            Self::Suspected { name, silent_ms } => {
                write!(f, "{name} suspected: silent for {silent_ms} ms")
            }
            Self::Heard { name } => write!(f, "{name} heard"),
            Self::Voted { name } => write!(f, "voted that {name} is lost"),
            Self::Verdict { name, reason, after_ms: Some(after) } => {
                write!(f, "verdict against {name} {after} ms after the suspicion: {reason}")
            }
            Self::Verdict { name, reason, after_ms: None } => {
                write!(f, "verdict against {name}: {reason}")
            }
            Self::Prepared { name, networks } => {
                write!(f, "takes over {networks} networks of {name}; the store does not answer yet")
            }
            Self::Right { serve, cause, unconfirmed_ms } => {
                let may = if *serve { "may serve" } else { "may NOT serve" };
                write!(f, "{may}: {}; unconfirmed for {unconfirmed_ms} ms", cause.text())
            }
            Self::Silenced { on: true } => f.write_str("all networks silenced"),
            Self::Silenced { on: false } => f.write_str("networks no longer silenced"),
            Self::Fitness { problems } if problems.is_empty() => f.write_str("fit again"),
            Self::Fitness { problems } => write!(f, "unfit: {}", problems.join("; ")),
            Self::AsksForRelief => f.write_str("asks the others to take its networks over"),
            Self::Store { connected: true, .. } => f.write_str("the store answers"),
            Self::Store { connected: false, reason } => {
                write!(f, "the store does not answer: {}", reason.as_deref().unwrap_or("no reason"))
            }
            Self::HookFailed { vni, hook, problem } => {
                write!(f, "network {vni}: the hook {hook} failed: {problem}")
            }
            Self::Restarting { for_ms } => {
                write!(f, "the agent starts again; the others wait for {for_ms} ms")
            }
            Self::Left => f.write_str("owns nothing any more"),
            Self::Unknown => f.write_str("(something that this client does not know)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(what: What) -> Event {
        Event { at_ms: 1_700_000_000_007, what }
    }

    #[test]
    fn an_event_is_one_flat_object() {
        let vni = 7.try_into().expect("valid");
        let event = at(What::Gained {
            vni,
            planned: false,
            kept: false,
            from: Some("gw2".parse().expect("valid")),
            reason: "gw2 was convicted".to_owned(),
        });
        let text = serde_json::to_string(&event).expect("serialises");
        assert_eq!(
            text,
            r#"{"at_ms":1700000000007,"event":"gained","vni":7,"planned":false,"kept":false,"from":"gw2","reason":"gw2 was convicted"}"#
        );
        assert_eq!(serde_json::from_str::<Event>(&text).expect("parses"), event);
        assert_eq!(event.to_string(), "22:13:20.007  network 7 gained: gw2 was convicted");
    }

    #[test]
    fn events_of_a_newer_agent_are_no_failure_to_parse() {
        let text = r#"{"at_ms":1700000000007,"event":"danced","with":"gw2"}"#;
        assert_eq!(serde_json::from_str::<Event>(text).expect("parses"), at(What::Unknown));
        let text = serde_json::to_string(&at(What::Convicted)).expect("serialises");
        assert_eq!(text, r#"{"at_ms":1700000000007,"event":"convicted"}"#);
    }
}
