use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a look at the host, at FRRouting or at a mesh has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is about, such as `bgpd`, `bridge br7` or the name of a mesh.
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

impl Finding {
    /// It is as it should be.
    #[must_use]
    pub fn ok(subject: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            severity: Severity::Ok,
            subject: subject.into(),
            text: text.into(),
            place: Place::Shell,
            fix: Vec::new(),
        }
    }

    /// It may be meant so.
    #[must_use]
    pub fn warning(subject: impl Into<String>, text: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::ok(subject, text) }
    }

    /// The job cannot be done, or not well.
    #[must_use]
    pub fn problem(subject: impl Into<String>, text: impl Into<String>) -> Self {
        Self { severity: Severity::Problem, ..Self::ok(subject, text) }
    }

    /// With lines for `vtysh` that put it right.
    #[must_use]
    pub fn vtysh<S: Into<String>>(self, lines: impl IntoIterator<Item = S>) -> Self {
        Self { place: Place::Vtysh, ..self.shell(lines) }
    }

    /// With lines for a shell that put it right.
    #[must_use]
    pub fn shell<S: Into<String>>(self, lines: impl IntoIterator<Item = S>) -> Self {
        let fix = lines.into_iter().map(Into::into).collect();
        Self { place: Place::Shell, fix, ..self }
    }
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
    /// The job cannot be done, or not well.
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
