//! Running commands of the operator's: the same for hooks of both planes.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStderr, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::debug;

/// How much of what a hook writes to standard error is kept, in bytes.
const TAIL: usize = 2048;
/// How long the end of standard error is awaited once the hook itself has ended: a process that
/// it left in the background may keep it open for ever.
const TAIL_PATIENCE: Duration = Duration::from_millis(100);

/// The command of these words, a program and its arguments, with the facts in its environment
/// beside the agent's own; `None` if there are no words. No shell is involved.
pub(crate) fn command(words: &[String], facts: Vec<(&'static str, String)>) -> Option<Command> {
    let [program, arguments @ ..] = words else { return None };
    let mut command = Command::new(program);
    // The agent's line to systemd is the agent's.
    command.args(arguments).envs(facts).env_remove("NOTIFY_SOCKET");
    Some(command)
}

/// Runs a command to its end in a process group of its own, which is killed if it takes too long.
///
/// # Errors
/// If it cannot be started, takes too long, or does not exit with 0: what happened, and the last
/// line that it wrote to standard error.
pub(crate) async fn perform(mut command: Command, limit: Duration) -> Result<(), String> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.process_group(0).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| {
        format!("cannot start {}: {error}", command.as_std().get_program().to_string_lossy())
    })?;
    let mut tail = tokio::spawn(tail(child.stderr.take()));
    let ended = timeout(limit, child.wait()).await;
    let result = match ended {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(complaint(status, &mut tail).await),
        Ok(Err(error)) => Err(format!("cannot wait for it: {error}")),
        Err(_) => {
            kill_group(&mut child).await;
            Err(format!("killed, because it took longer than {} s", limit.as_secs_f64()))
        }
    };
    tail.abort();
    result
}

/// The exit status, and the last line that the hook has written to standard error.
async fn complaint(status: ExitStatus, tail: &mut JoinHandle<Vec<u8>>) -> String {
    let text = timeout(TAIL_PATIENCE, tail).await.ok().and_then(Result::ok).unwrap_or_default();
    let text = printable(&String::from_utf8_lossy(&text));
    match text.trim() {
        "" => status.to_string(),
        text => format!("{status}: {text}"),
    }
}

/// The end of what comes.
async fn tail(stderr: Option<ChildStderr>) -> Vec<u8> {
    let Some(mut stderr) = stderr else { return Vec::new() };
    let (mut kept, mut buffer) = (Vec::new(), [0; TAIL]);
    while let Ok(read @ 1..) = stderr.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..read]);
        let surplus = kept.len().saturating_sub(TAIL);
        kept.drain(..surplus);
    }
    let end = kept.trim_ascii_end();
    let last = end.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    last.to_vec()
}

/// Kills a process with all that it has started, and waits for its end.
async fn kill_group(child: &mut Child) {
    // Its number is ours until it has been waited for.
    let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    if let Some(Err(error)) = group.map(|group| killpg(group, Signal::SIGKILL)) {
        debug!(%error, "a hook had ended meanwhile");
    }
    if let Err(error) = child.wait().await {
        debug!(%error, "a hook cannot be waited for");
    }
}

/// The text without control characters: it comes from others, and goes into an environment and
/// into logs.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
