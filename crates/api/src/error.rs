use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Why the agent did not do what it was asked: the body of every answer that is no success.
///
/// Unless the message says otherwise, nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// The kind of failure, for machines.
    pub code: Code,
    /// What failed and why, for people.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Error {
    /// An error without a hint.
    #[must_use]
    pub fn new(code: Code, message: impl fmt::Display) -> Self {
        Self { code, message: message.to_string(), hint: None }
    }

    /// The same error with a word on what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    /// What was asked for is malformed or not allowed ([`Code::Invalid`]).
    #[must_use]
    pub fn invalid(message: impl fmt::Display) -> Self {
        Self::new(Code::Invalid, message)
    }

    /// What was named does not exist ([`Code::NotFound`]).
    #[must_use]
    pub fn not_found(message: impl fmt::Display) -> Self {
        Self::new(Code::NotFound, message)
    }

    /// The state of things forbids it ([`Code::Conflict`]).
    #[must_use]
    pub fn conflict(message: impl fmt::Display) -> Self {
        Self::new(Code::Conflict, message)
    }

    /// Something that is needed does not answer ([`Code::Unavailable`]).
    #[must_use]
    pub fn unavailable(message: impl fmt::Display) -> Self {
        Self::new(Code::Unavailable, message)
    }

    /// The agent itself failed ([`Code::Internal`]).
    #[must_use]
    pub fn internal(message: impl fmt::Display) -> Self {
        Self::new(Code::Internal, message)
    }
}

/// The kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The request is malformed, or a value in it is not allowed.
    Invalid,
    /// What it names does not exist.
    NotFound,
    /// The state of things forbids it: it exists already, or is in use.
    Conflict,
    /// The plane that would do it is not enabled on this agent.
    Disabled,
    /// Something that it needs (another node, the store, the kernel) does not answer now.
    Unavailable,
    /// It was not done in time. It may still happen.
    Timeout,
    /// The agent itself failed.
    Internal,
    /// A kind that a newer agent knows and this client does not.
    #[serde(other)]
    Unknown,
}

impl Code {
    /// The HTTP status (RFC 9110) that goes with it.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::NotFound | Self::Disabled => 404,
            Self::Conflict => 409,
            Self::Unavailable => 503,
            Self::Timeout => 504,
            Self::Internal | Self::Unknown => 500,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_survive_the_wire() {
        let error = Error::not_found("no mesh is called \"x\"").hint("see `selvedge mesh list`");
        let text = serde_json::to_string(&error).expect("serialises");
        assert_eq!(
            text,
            r#"{"code":"not-found","message":"no mesh is called \"x\"","hint":"see `selvedge mesh list`"}"#
        );
        assert_eq!(serde_json::from_str::<Error>(&text).expect("parses"), error);
    }

    #[test]
    fn codes_of_a_newer_agent_are_no_failure_to_parse() {
        let text = r#"{"code":"on-strike","message":"no","extra":1}"#;
        let error: Error = serde_json::from_str(text).expect("parses");
        assert_eq!(error, Error::new(Code::Unknown, "no"));
    }
}
