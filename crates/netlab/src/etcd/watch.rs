//! A watch of the laboratory's own, to time what happens in the store.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::ChildStdout;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use selvedge_model::Time;
use serde_json::Value;

use super::{decoded, parse};
use crate::{Error, Host, Process, Recipe, clock};

/// A change that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// When it was first seen, on the clock of [`crate::clock::now`].
    pub at: Time,
    /// The revision of the change.
    pub revision: u64,
    /// The key.
    pub key: String,
    /// The new value; `None` if the key was removed.
    pub value: Option<String>,
}

/// Watches every member on its own, so that the loss of one delays nothing: what counts is the
/// first that reports a change. A watch that a member gives up, for want of a leader, is opened
/// again after the last revision that was reported. Ends when it is dropped.
#[derive(Debug)]
pub struct Watch {
    seen: Arc<Mutex<Log>>,
    watchers: Vec<Arc<Watcher>>,
}

/// Changes by revision and key.
type Log = BTreeMap<(u64, String), (Time, Option<String>)>;

impl Watch {
    pub(super) fn start(host: &Host, endpoints: &[String], prefix: &str) -> Result<Self, Error> {
        let mut watch = Self { seen: Arc::default(), watchers: Vec::new() };
        for (index, endpoint) in endpoints.iter().enumerate() {
            let recipe = Recipe::new(&format!("watch{index}"), host, "etcdctl")
                .env("ETCDCTL_API", "3")
                .args(["--endpoints", endpoint, "watch", "--prefix", prefix, "-w", "json"])
                .piped();
            let watcher = Arc::new(Watcher { recipe, process: Mutex::default() });
            watcher.open(0)?;
            let (log, own) = (Arc::clone(&watch.seen), Arc::clone(&watcher));
            std::thread::spawn(move || own.follow(&log));
            watch.watchers.push(watcher);
        }
        // A watch that is not up yet would miss what comes next, and says nothing when it is.
        std::thread::sleep(SETTLE);
        Ok(watch)
    }

    /// All changes so far, in the order of revisions.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        let log = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let change = |((revision, key), (at, value)): (&(u64, String), &(Time, Option<String>))| {
            Seen { at: *at, revision: *revision, key: key.clone(), value: value.clone() }
        };
        log.iter().map(change).collect()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        for watcher in &self.watchers {
            watcher.close();
        }
    }
}

/// The watch of one member.
#[derive(Debug)]
struct Watcher {
    recipe: Recipe,
    process: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    process: Option<Process>,
    closed: bool,
}

impl Watcher {
    /// Opens the watch; `from` is the first revision to report, or 0 for what comes next.
    fn open(&self, from: u64) -> Result<(), Error> {
        let mut state = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.closed {
            let recipe = self.recipe.clone().args(["--rev", &from.to_string()]);
            state.process = Some(recipe.start()?);
        }
        Ok(())
    }

    fn close(&self) {
        let mut state = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        state.closed = true;
        // The thread then reads the end of the output, and ends.
        state.process = None;
    }

    fn follow(&self, log: &Mutex<Log>) {
        while let Some(output) = self.output() {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                note(log, &line, clock::now());
            }
            std::thread::sleep(PAUSE);
            if let Err(error) = self.open(next(log)) {
                tracing::warn!(%error, "a watch of the laboratory has ended");
                return;
            }
        }
    }

    /// `None` once the watch was closed.
    fn output(&self) -> Option<ChildStdout> {
        let mut state = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        state.process.as_mut().and_then(Process::output)
    }
}

const SETTLE: Duration = Duration::from_millis(300);
/// Before a watch that was given up is opened again.
const PAUSE: Duration = Duration::from_millis(200);

fn note(log: &Mutex<Log>, line: &str, now: Time) {
    match changes(line) {
        Ok(changes) => {
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            for (revision, key, value) in changes {
                log.entry((revision, key)).or_insert((now, value));
            }
        }
        Err(error) => tracing::warn!(%error, "a line of a watch is lost"),
    }
}

/// The first revision that no watch has reported; 0 if none has reported any. A watch that
/// reports a revision has reported all before it.
fn next(log: &Mutex<Log>) -> u64 {
    let log = log.lock().unwrap_or_else(PoisonError::into_inner);
    log.last_key_value().map_or(0, |((revision, _), _)| revision + 1)
}

/// Revision, key, and value if it was not removed.
type Change = (u64, String, Option<String>);

fn changes(line: &str) -> Result<Vec<Change>, Error> {
    let answer: Value = parse(line)?;
    let events = answer["Events"].as_array().map(Vec::as_slice).unwrap_or_default();
    let change = |event: &Value| {
        let kv = &event["kv"];
        let removed = event["type"].as_u64() == Some(1) || event["type"] == "DELETE";
        let value = if removed { None } else { Some(decoded(&kv["value"])?) };
        Ok((kv["mod_revision"].as_u64().unwrap_or_default(), decoded(&kv["key"])?, value))
    };
    events.iter().map(change).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_report_of_a_change_counts() {
        let log = Mutex::new(Log::new());
        let put = r#"{"Header":{"revision":9},"Events":[{"kv":{"key":"L2E=","mod_revision":9,"value":"MQ=="}}]}"#;
        let delete = r#"{"Events":[{"type":1,"kv":{"key":"L2E=","mod_revision":10}}]}"#;
        assert_eq!(next(&log), 0);
        note(&log, put, Time::from_micros(5));
        assert_eq!(next(&log), 10);
        note(&log, put, Time::from_micros(8));
        note(&log, delete, Time::from_micros(9));
        let watch = Watch { seen: Arc::new(log), watchers: Vec::new() };
        let at = |micros, revision, value: Option<&str>| Seen {
            at: Time::from_micros(micros),
            revision,
            key: "/a".to_owned(),
            value: value.map(str::to_owned),
        };
        assert_eq!(watch.seen(), [at(5, 9, Some("1")), at(9, 10, None)]);
    }
}
