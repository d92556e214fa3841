use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a look at the host and at FRRouting has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is about, such as `bgpd` or `bridge br7`.
    pub subject: String,
    /// What is right or wrong, a sentence.
    pub text: String,
    /// Where the lines are to be entered.
    #[serde(default)]
    pub place: Place,
    /// Lines that put it right. Words in capitals stand for what only the operator knows.
    #[serde(default)]
    pub fix: Vec<String>,
}

/// Where the lines of a [`Finding`] are to be entered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// In a shell, as root.
    #[default]
    Shell,
    /// In `vtysh`, after `configure terminal`.
    Vtysh,
}

/// How bad a [`Finding`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// It is as it should be.
    Ok,
    /// It may be meant so.
    Warning,
    /// Networks cannot be served, or not well.
    Problem,
}

impl Severity {
    /// As it stands in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}
