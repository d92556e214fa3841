//! The sections `[gateway.hooks]` and `[mesh.hooks]`: commands of the operator's.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::check::{Result, value, within};
use crate::gateway_plane::HooksConfig;
use crate::mesh_plane::MeshHooks;

/// The section `[gateway.hooks]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "described in `HooksConfig`")]
pub struct HooksFile {
    pub take_over: Option<Command>,
    pub give_up: Option<Command>,
    pub timeout_s: Option<u64>,
}

/// The section `[mesh.hooks]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "described in `MeshHooks`")]
pub struct MeshHooksFile {
    pub pre_up: Option<Command>,
    pub post_up: Option<Command>,
    pub pre_down: Option<Command>,
    pub post_down: Option<Command>,
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

impl MeshHooksFile {
    /// What is said here, and where nothing is, what `base` says.
    pub(super) fn over(self, base: Self) -> Self {
        Self {
            pre_up: self.pre_up.or(base.pre_up),
            post_up: self.post_up.or(base.post_up),
            pre_down: self.pre_down.or(base.pre_down),
            post_down: self.post_down.or(base.post_down),
            timeout_s: self.timeout_s.or(base.timeout_s),
        }
    }
}

pub(super) fn mesh_hooks(section: &str, file: &MeshHooksFile) -> Result<MeshHooks> {
    let key = |key: &str| format!("{section}.hooks.{key}");
    let seconds = within(&key("timeout_s"), file.timeout_s, 5, (1, 3600))?;
    Ok(MeshHooks {
        pre_up: command(&key("pre_up"), file.pre_up.as_ref())?,
        post_up: command(&key("post_up"), file.post_up.as_ref())?,
        pre_down: command(&key("pre_down"), file.pre_down.as_ref())?,
        post_down: command(&key("post_down"), file.post_down.as_ref())?,
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
    fn meshes_have_hooks_of_their_own() {
        let file = toml::from_str("pre_up = '/a'\npost_down = ['/b', 'c']\ntimeout_s = 7");
        let config = mesh_hooks("mesh", &file.expect("a section")).expect("complete");
        let words = |words: &[&str]| Some(words.iter().map(|&word| word.to_owned()).collect());
        assert_eq!((config.pre_up, config.post_up), (words(&["/a"]), None));
        assert_eq!((config.pre_down, config.post_down), (None, words(&["/b", "c"])));
        assert_eq!(config.timeout, Duration::from_secs(7));
        let bad = toml::from_str("post_up = 'wg'").expect("a section");
        let error = mesh_hooks("mesh", &bad).expect_err("refused").to_string();
        assert!(error.starts_with("mesh.hooks.post_up = [\"wg\"]: expected"), "{error}");
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
