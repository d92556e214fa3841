//! What agents have logged.

use std::path::Path;

use selvedge_netlab::Process;

use crate::progress::say;

/// Shows the last lines of an agent's log.
pub(crate) fn show_end(name: &str, agent: &mut Process) {
    let text = std::fs::read_to_string(agent.log()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(12).collect();
    let state = agent.status().unwrap_or_else(|| "running".to_owned());
    say!("log of the agent on {name} ({state}):");
    for line in lines.into_iter().rev() {
        say!("  {line}");
    }
}

/// Copies all logs of a laboratory to the folder `to`, if there is one, and says if it cannot.
pub(crate) fn keep(from: &Path, to: Option<&Path>) {
    let Some(to) = to else { return };
    if let Err(error) = copy(from, to) {
        say!("the logs could not be kept in {}: {error}", to.display());
    }
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let path = entry?.path();
        if let (Some("log"), Some(name)) =
            (path.extension().and_then(|it| it.to_str()), path.file_name())
        {
            std::fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}
