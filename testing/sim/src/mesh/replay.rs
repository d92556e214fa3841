//! Replays what the core of a member was told, from the log of an agent that records it.

use std::collections::BTreeMap;
use std::path::Path;

use selvedge_mesh::journal;
use serde::Serialize;

/// What the core came to.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The mesh.
    pub mesh: String,
    /// Whose core it is.
    pub node: String,
    /// Number of inputs.
    pub inputs: u64,
    /// The core's time of the last one, in s.
    pub last_s: f64,
    /// Number of members.
    pub members: usize,
    /// Those of them that are held to be down.
    pub down: Vec<String>,
    /// A hash of the replicated state.
    pub state: String,
    /// Bytes of the whole state.
    pub state_bytes: usize,
    /// What was not accepted, by kind.
    pub rejections: BTreeMap<&'static str, u64>,
    /// Whether the log ends within an input.
    pub cut: bool,
}

/// Replays a log.
///
/// # Errors
/// In words, if the file cannot be read, is no log, or leads to another state than the recorded
/// one.
pub fn replay(file: &Path) -> Result<Report, String> {
    let log = std::fs::read(file)
        .map_err(|error| format!("reading the log {}: {error}", file.display()))?;
    let journal::Replayed { mut mesh, inputs, now, cut } = journal::replay(&log)
        .map_err(|error| format!("replaying the log {}: {error}", file.display()))?;
    let hash = mesh.digest().hash;
    Ok(Report {
        mesh: mesh.id().to_string(),
        node: mesh.node().to_string(),
        inputs,
        last_s: super::scale::seconds(std::time::Duration::from_micros(now.as_micros())),
        members: mesh.members().count(),
        down: mesh.down().map(|node| node.to_string()).collect(),
        state: hash.iter().map(|byte| format!("{byte:02x}")).collect(),
        state_bytes: mesh.snapshot().len(),
        rejections: mesh.rejections().clone(),
        cut,
    })
}

#[cfg(test)]
mod tests {
    use selvedge_mesh::{Config, Identity, Mesh, Profile, State, UnixTime};
    use selvedge_model::{Time, WgKey};

    use super::*;

    #[test]
    fn a_log_in_a_file_is_replayed_and_other_files_are_refused() {
        let identity = Identity::from_secret(&[1; 32]);
        let state = State::found(&identity, "log", [2; 16], WgKey([3; 32]), Profile::default())
            .expect("in bounds");
        let (config, wall) = (Config::default(), UnixTime(1_795_000_000));
        let mut mesh =
            Mesh::recorded(identity, state, config, 7, Time::ZERO, wall).expect("its own state");
        mesh.handle_timeout(Time::ZERO, wall);
        mesh.set_alias("renamed".to_owned()).expect("in bounds");
        let file = std::env::temp_dir().join(format!("selvedge-replay-{}", std::process::id()));
        std::fs::write(&file, mesh.poll_journal().expect("it was told something")).expect("writes");
        let report = replay(&file).expect("replays");
        assert_eq!((report.inputs, report.members), (2, 1));
        assert_eq!(report.state_bytes, mesh.snapshot().len());
        std::fs::write(&file, "something else").expect("writes");
        let error = replay(&file).expect_err("no log");
        std::fs::remove_file(&file).expect("was there");
        assert!(error.ends_with("this is not the log of a mesh core"), "{error}");
    }
}
