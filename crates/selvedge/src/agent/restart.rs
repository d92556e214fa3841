//! Starting the agent again, in the same process: the program at its path, which may be another
//! one than runs, with the same arguments and environment.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::time::timeout;

/// How long the program may take to check its configuration.
const CHECK_LIMIT: Duration = Duration::from_secs(5);

/// How this process was started. Found out at once: when the program is replaced later, `/proc`
/// no longer names its path.
#[derive(Clone, Debug)]
pub(super) struct Program {
    path: PathBuf,
    /// The name under which it was called, and its arguments.
    arguments: Vec<OsString>,
}

impl Program {
    /// The program of this process.
    ///
    /// # Errors
    /// If the system does not say which it is.
    pub(super) fn of_this_process() -> anyhow::Result<Self> {
        let executable =
            std::env::current_exe().context("cannot find out which program this is")?;
        let arguments: Vec<OsString> = std::env::args_os().collect();
        let search = std::env::var_os("PATH").unwrap_or_default();
        let called = arguments.first().map_or(OsStr::new(""), OsString::as_os_str);
        let path = path_of(called, &search, &executable);
        Ok(Self { path, arguments })
    }

    /// What is started.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Has the program that is at the path now check its configuration. Nothing is changed.
    ///
    /// # Errors
    /// If it cannot be started, or refuses the configuration; then it says why.
    pub(super) async fn check(&self) -> anyhow::Result<()> {
        let path = self.path.display();
        let mut command = tokio::process::Command::from(self.command());
        command.arg("--check").stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        let output = timeout(CHECK_LIMIT, command.output()).await;
        let output = output
            .with_context(|| format!("{path} did not check its configuration in time"))?
            .with_context(|| format!("cannot start {path}"))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            bail!("{path} cannot start with this configuration: {}", text.trim());
        }
        Ok(())
    }

    /// Becomes the program that is at the path now. Returns only if that fails. What is open is
    /// closed by it: every file of this process is close-on-exec.
    pub(super) fn exec(&self) -> io::Error {
        self.command().exec()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        if let [called, arguments @ ..] = self.arguments.as_slice() {
            command.arg0(called).args(arguments);
        }
        command
    }
}

/// The path at which the program that runs as `executable` was called. Where that is a link it
/// stays one, so that it may be bent to another version later.
fn path_of(called: &OsStr, search: &OsStr, executable: &Path) -> PathBuf {
    let name = Path::new(called);
    let candidates: Vec<PathBuf> = match name.components().count() {
        0 => Vec::new(),
        1 if !called.as_encoded_bytes().contains(&b'/') => {
            std::env::split_paths(search).map(|folder| folder.join(name)).collect()
        }
        _ => vec![name.to_owned()],
    };
    let is_this = |path: &PathBuf| path.canonicalize().is_ok_and(|real| real == executable);
    let found = candidates.into_iter().find(is_this);
    // A relative path would change its meaning with the working directory.
    found.and_then(|path| std::path::absolute(path).ok()).unwrap_or_else(|| undeleted(executable))
}

/// Linux marks the path of a program that was replaced while it was being started.
fn undeleted(executable: &Path) -> PathBuf {
    let text = executable.as_os_str().to_str();
    text.and_then(|text| text.strip_suffix(" (deleted)")).map_or(executable.to_owned(), Into::into)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_path_is_the_one_that_it_was_called_by() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path().canonicalize().expect("is there");
        let (real, link) = (folder.join("program-1.0"), folder.join("program"));
        std::fs::write(&real, "").expect("writes");
        symlink(&real, &link).expect("links");
        let nowhere = OsStr::new("/nowhere");
        assert_eq!(path_of(link.as_os_str(), nowhere, &real), link, "the link, not its target");
        let search = std::env::join_paths([Path::new("/nowhere"), &folder]).expect("a list");
        assert_eq!(path_of(OsStr::new("program"), &search, &real), link);
        // Whoever starts a program may name it as they like.
        assert_eq!(path_of(OsStr::new("another"), &search, &real), real);
        assert_eq!(path_of(OsStr::new(""), &search, &real), real);
        let replaced = folder.join("program-1.0 (deleted)");
        assert_eq!(path_of(OsStr::new("another"), nowhere, &replaced), real);
    }

    fn program(arguments: &[&str]) -> Program {
        let arguments = ["sh"].iter().chain(arguments).map(OsString::from).collect();
        Program { path: "/bin/sh".into(), arguments }
    }

    #[tokio::test]
    async fn a_program_that_refuses_its_configuration_is_not_started() {
        let says = "echo \"error: $0 is wrong\" >&2; exit 1";
        let error = program(&["-c", says]).check().await.expect_err("refuses").to_string();
        let expected = "/bin/sh cannot start with this configuration: error: --check is wrong";
        assert_eq!(error, expected);
        program(&["-c", "test $0 = --check"]).check().await.expect("agrees");
        let missing = Program { path: "/nowhere/x".into(), arguments: Vec::new() };
        let error = missing.check().await.expect_err("not there").to_string();
        assert_eq!(error, "cannot start /nowhere/x");
    }

    #[test]
    fn where_nothing_can_be_started_this_program_runs_on() {
        let missing = Program { path: "/nowhere/x".into(), arguments: vec!["x".into()] };
        assert_eq!(missing.exec().kind(), io::ErrorKind::NotFound);
    }
}
