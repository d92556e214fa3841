//! What a node has to say to people.

use std::fmt;
use std::time::Duration;

use selvedge_model::{NodeName, Vni};

use super::status;
use crate::kv::Revision;
use crate::machine::State;

/// Why a network changed its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It had none before.
    First,
    /// A planned move from this node.
    Move(NodeName),
    /// The owner's registration ended, or it resigned.
    Gone(NodeName),
    /// The owner was convicted.
    Verdict(NodeName),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::First => f.write_str("it had no owner before"),
            Self::Move(from) => write!(f, "planned move from {from}"),
            Self::Gone(from) => write!(f, "{from} is gone: its lease ended or it resigned"),
            Self::Verdict(from) => write!(f, "{from} was convicted"),
        }
    }
}

/// Something that is worth a line in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// This node is registered.
    Registered {
        /// Names this run of the agent.
        incarnation: Revision,
    },
    /// Another host is registered under this node's name; this one waits.
    NameTaken {
        /// What the other says of itself.
        identity: String,
    },
    /// This incarnation counts as dead by a verdict; all its networks are given up.
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
        vni: Vni,
        /// The state before.
        from: State,
        /// The state now.
        to: State,
    },
    /// A network has come to this node.
    Gained {
        /// The network.
        vni: Vni,
        /// Whether by a planned move.
        planned: bool,
        /// Why, as the history has it.
        reason: String,
    },
    /// A network has left this node.
    Lost {
        /// The network.
        vni: Vni,
        /// Its owner now.
        to: Option<NodeName>,
    },
    /// This node plans, or no longer does.
    Planner(bool),
    /// A voter that was heard is heard no more on any path.
    Suspected {
        /// Who.
        name: NodeName,
        /// For how long it has not answered.
        silent_for: Duration,
    },
    /// A voter is heard again, or for the first time.
    Heard(NodeName),
    /// This node has voted that another is lost.
    Voted(NodeName),
    /// A verdict stands in the store.
    Verdict {
        /// Who counts as dead.
        name: NodeName,
        /// Why.
        reason: String,
        /// From this node's own suspicion to the verdict, if it had one.
        after: Option<Duration>,
    },
    /// Networks of a lost gateway are taken over before the store has confirmed the verdict.
    Prepared {
        /// Who is lost.
        name: NodeName,
        /// How many networks this node takes over.
        networks: usize,
    },
    /// This node may serve for another reason than before, or may not.
    Right {
        /// The reason.
        right: status::Right,
        /// For how long it had no word of a majority or of the store.
        unconfirmed_for: Duration,
    },
    /// What keeps this host from doing its job has changed; nothing: it is fit.
    Fitness(Vec<String>),
    /// This node asks the others to take its networks over, because it cannot do its job.
    AsksForRelief,
    /// This node owns nothing any more, after [`super::Gateway::leave`].
    Left,
}

/// Why a word of the operator was refused. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OperatorError {
    /// No such node.
    #[error("no gateway is named {0}; `selvedge gateway status` lists them")]
    Unknown(NodeName),
    /// The store's contents are not known yet.
    #[error("the store has not been read yet")]
    NotSynced,
    /// The node is alive.
    #[error("{0} answers {1}: drain it instead, with `selvedge gateway drain {0}`")]
    Heard(NodeName, NodeName),
    /// The node takes part still.
    #[error("{0} is registered: stop its agent before it is removed")]
    Registered(NodeName),
    /// The node is the predecessor's, which knows no draining from outside.
    #[error("{0} runs the predecessor's daemon: stop that daemon to drain it")]
    Predecessor(NodeName),
}
