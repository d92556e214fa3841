//! Tools that run to their end.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use crate::Error;

/// Runs a command and returns its standard output; a status other than success is an error.
pub(crate) fn run(command: &mut Command) -> Result<String, Error> {
    feed(command, "")
}

/// As [`run`], with `input` on its standard input.
pub(crate) fn feed(command: &mut Command, input: &str) -> Result<String, Error> {
    let output = output(command, input)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    Err(Error::Command { command: line(command), message: message.trim().to_owned() })
}

fn output(command: &mut Command, input: &str) -> Result<Output, Error> {
    let failed = |command: &Command| Error::io(format!("run `{}`", line(command)));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed(command))?;
    let mut stdin = child.stdin.take().expect("it was piped above");
    std::thread::scope(|scope| {
        // On a thread, because a tool may fill its output before it has read all of its input. A
        // tool that does not read to the end says why itself.
        scope.spawn(move || stdin.write_all(input.as_bytes()));
        child.wait_with_output().map_err(failed(command))
    })
}

fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
