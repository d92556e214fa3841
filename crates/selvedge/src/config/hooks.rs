//! The section `[gateway.hooks]`: commands of the operator's.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::check::{Result, value, within};
use crate::gateway_plane::HooksConfig;

/// The section `[gateway.hooks]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "described in `HooksConfig`")]
pub struct HooksFile {
    pub take_over: Option<Command>,
    pub give_up: Option<Command>,
    pub timeout_s: Option<u64>,
}

/// A program, alone or with arguments.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged, expecting = "expected a program's path, or a list of it and its arguments")]
pub enum Command {
    /// The program's path.
    Program(String),
    /// The program's path, and its arguments.
    WithArguments(Vec<String>),
}

pub(super) fn hooks(file: &HooksFile) -> Result<HooksConfig> {
    let seconds = within("gateway.hooks.timeout_s", file.timeout_s, 5, (1, 3600))?;
    Ok(HooksConfig {
        take_over: command("gateway.hooks.take_over", file.take_over.as_ref())?,
        give_up: command("gateway.hooks.give_up", file.give_up.as_ref())?,
        timeout: Duration::from_secs(seconds),
    })
}

/// No shell is involved: what is run is what stands here.
fn command(key: &str, given: Option<&Command>) -> Result<Option<Vec<String>>> {
    let Some(given) = given else { return Ok(None) };
    let words = match given {
        Command::Program(program) => vec![program.clone()],
        Command::WithArguments(words) => words.clone(),
    };
    match words.first() {
        Some(program) if program.starts_with('/') => Ok(Some(words)),
        _ => Err(value(
            key,
            format!("{words:?}"),
            "expected the absolute path of a program, such as \"/etc/selvedge/hook\", or a list \
             of it and its arguments",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<HooksConfig> {
        hooks(&toml::from_str(text).expect("a section"))
    }

    #[test]
    fn a_program_has_arguments_or_none() {
        assert_eq!(load("").ok(), Some(HooksConfig::default()));
        let config = load("take_over = '/a b'\ngive_up = ['/c', '-d']\ntimeout_s = 9");
        let config = config.expect("complete");
        assert_eq!(config.take_over, Some(vec!["/a b".to_owned()]));
        assert_eq!(config.give_up, Some(vec!["/c".to_owned(), "-d".to_owned()]));
        assert_eq!(config.timeout, Duration::from_secs(9));
    }

    #[test]
    fn what_is_no_program_is_refused() {
        for bad in ["''", "'logger'", "[]", "['logger', '/x']"] {
            let error = load(&format!("give_up = {bad}")).expect_err("refused").to_string();
            assert!(error.starts_with("gateway.hooks.give_up = ["), "{error}");
            assert!(error.contains("expected the absolute path of a program"), "{error}");
        }
        let error = load("timeout_s = 0").expect_err("refused").to_string();
        assert_eq!(error, "gateway.hooks.timeout_s = 0: expected 1 to 3600");
        let error = toml::from_str::<HooksFile>("give_up = 1").expect_err("refused").to_string();
        assert!(error.contains("expected a program's path, or a list"), "{error}");
    }
}
