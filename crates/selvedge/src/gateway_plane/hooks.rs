//! Hooks: a command of the operator's for each network that this gateway takes over or gives up.
//!
//! Hooks run beside the gateway plane and never delay it. A few run at once; of a network, one at
//! a time. What happens to a network while its hook runs replaces what waits for it: the last
//! word is the truth, and only that has to be brought about. `docs/hooks.md` is the page for those
//! who write them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use selvedge_api::gateway::What;
use selvedge_host::inventory::NamePattern;
use selvedge_model::{NodeName, Vni};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tracing::{debug, info, warn};

use super::events::Stream;
use crate::hooks::{command, perform, printable};

/// How many hooks run at once.
const PARALLEL: usize = 8;
/// Events that the runner has not taken in yet. It takes them in at once, so this is reached only
/// if the whole agent hangs; what comes then is left out, and counted as failed.
const QUEUE: usize = 1 << 16;
/// The operator's commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HooksConfig {
    /// Program and arguments, run for each network that this gateway takes over.
    pub take_over: Option<Vec<String>>,
    /// The same for each network that it gives up.
    pub give_up: Option<Vec<String>>,
    /// How long each may run.
    pub timeout: Duration,
}

impl Default for HooksConfig {
    fn default() -> Self {
        Self { take_over: None, give_up: None, timeout: Duration::from_secs(5) }
    }
}

/// Which of the commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    TakeOver,
    GiveUp,
}

impl Kind {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::TakeOver => "take_over",
            Self::GiveUp => "give_up",
        }
    }
}

/// What a hook is told of the event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) kind: Kind,
    pub(super) vni: Vni,
    /// Why, as the history has it.
    pub(super) reason: String,
    /// Who owns the network now.
    pub(super) owner: Option<NodeName>,
    /// Who owned it before.
    pub(super) from: Option<NodeName>,
    /// Whether by a planned move.
    pub(super) planned: bool,
    /// Whether it was this gateway's before its agent was started again.
    pub(super) kept: bool,
}

/// How hooks have fared since the agent started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) succeeded: u64,
    pub(super) failed: u64,
    /// How many run or wait now.
    pub(super) open: usize,
}

/// Where the plane leaves what happens. When it is dropped, what waits is still run.
#[derive(Debug)]
pub(super) struct Hooks {
    facts: Option<mpsc::Sender<Facts>>,
    tally: watch::Receiver<Tally>,
    overflown: u64,
}

impl Hooks {
    /// Starts the runner on the present runtime. It ends when all that was left with it is done
    /// and nothing more can come.
    pub(super) fn spawn(
        config: HooksConfig,
        node: NodeName,
        bridge: NamePattern,
        stream: Stream,
    ) -> (Self, JoinHandle<()>) {
        let (facts, incoming) = mpsc::channel(QUEUE);
        let wanted = config.take_over.is_some() || config.give_up.is_some();
        let (tally, seen) = watch::channel(Tally::default());
        let about = About { config, node, bridge };
        let task = tokio::spawn(Runner::new(about, incoming, stream, tally).run());
        (Self { facts: wanted.then_some(facts), tally: seen, overflown: 0 }, task)
    }

    /// Has the hook for this event run, if there is one.
    pub(super) fn run(&mut self, facts: Facts) {
        let Some(runner) = &self.facts else { return };
        if runner.try_send(facts).is_err() {
            self.overflown += 1;
        }
    }

    pub(super) fn tally(&self) -> Tally {
        let tally = *self.tally.borrow();
        Tally { failed: tally.failed + self.overflown, ..tally }
    }

    /// Tells how many hooks run or wait, at any time.
    pub(super) fn watch(&self) -> watch::Receiver<Tally> {
        self.tally.clone()
    }
}

/// What is the same for all hooks.
struct About {
    config: HooksConfig,
    node: NodeName,
    bridge: NamePattern,
}

impl About {
    fn command(&self, kind: Kind) -> Option<&[String]> {
        match kind {
            Kind::TakeOver => self.config.take_over.as_deref(),
            Kind::GiveUp => self.config.give_up.as_deref(),
        }
    }

    fn environment(&self, facts: &Facts) -> Vec<(&'static str, String)> {
        let name = |name: &Option<NodeName>| name.as_ref().map(ToString::to_string);
        let flag = |on: bool| if on { "1" } else { "0" }.to_owned();
        vec![
            ("SELVEDGE_EVENT", facts.kind.name().to_owned()),
            ("SELVEDGE_VNI", facts.vni.to_string()),
            ("SELVEDGE_BRIDGE", self.bridge.name(facts.vni)),
            ("SELVEDGE_NODE", self.node.to_string()),
            ("SELVEDGE_OWNER", name(&facts.owner).unwrap_or_default()),
            ("SELVEDGE_FROM", name(&facts.from).unwrap_or_default()),
            ("SELVEDGE_REASON", printable(&facts.reason)),
            ("SELVEDGE_PLANNED", flag(facts.planned)),
            ("SELVEDGE_KEPT", flag(facts.kept)),
        ]
    }
}

type End = (Vni, Kind, Result<(), String>);

/// Runs the hooks.
struct Runner {
    about: About,
    incoming: mpsc::Receiver<Facts>,
    stream: Stream,
    tally: watch::Sender<Tally>,
    /// The last word of each network that waits, and the order in which they began to wait.
    waiting: BTreeMap<Vni, Facts>,
    order: VecDeque<Vni>,
    running: BTreeSet<Vni>,
    jobs: JoinSet<End>,
    /// Hooks whose last run failed, so that it is logged when that begins and when it ends.
    failing: BTreeSet<Kind>,
}

impl Runner {
    fn new(
        about: About,
        incoming: mpsc::Receiver<Facts>,
        stream: Stream,
        tally: watch::Sender<Tally>,
    ) -> Self {
        let (waiting, order, running, jobs, failing) = Default::default();
        Self { about, incoming, stream, tally, waiting, order, running, jobs, failing }
    }

    async fn run(mut self) {
        loop {
            self.start_due();
            tokio::select! {
                Some(facts) = self.incoming.recv() => self.take(facts),
                Some(end) = self.jobs.join_next() => self.end(end),
                else => return,
            }
        }
    }

    fn take(&mut self, facts: Facts) {
        if self.about.command(facts.kind).is_none() {
            // Nothing is to be run, but what waits is out of date.
            if self.waiting.remove(&facts.vni).is_some() {
                self.order.retain(|vni| *vni != facts.vni);
            }
            return;
        }
        let vni = facts.vni;
        if self.waiting.insert(vni, facts).is_none() {
            self.order.push_back(vni);
        }
    }

    /// Starts what waits, oldest first, as far as there is room and its network has none running.
    fn start_due(&mut self) {
        while self.running.len() < PARALLEL {
            let free = self.order.iter().position(|vni| !self.running.contains(vni));
            let Some(vni) = free.and_then(|index| self.order.remove(index)) else { break };
            if let Some(facts) = self.waiting.remove(&vni) {
                self.start(&facts);
            }
        }
        let open = self.waiting.len() + self.running.len();
        self.tally.send_if_modified(|tally| std::mem::replace(&mut tally.open, open) != open);
    }

    fn start(&mut self, facts: &Facts) {
        let Some(words) = self.about.command(facts.kind) else { return };
        let (vni, kind, limit) = (facts.vni, facts.kind, self.about.config.timeout);
        let Some(command) = command(words, self.about.environment(facts)) else { return };
        debug!(%vni, hook = kind.name(), ?words, "hook started");
        self.running.insert(vni);
        self.jobs.spawn(async move { (vni, kind, perform(command, limit).await) });
    }

    fn end(&mut self, end: Result<End, tokio::task::JoinError>) {
        // The jobs are ours and do not panic; if one did, its network would stay blocked.
        let Ok((vni, kind, result)) = end else { return };
        self.running.remove(&vni);
        match result {
            Ok(()) => {
                self.tally.send_modify(|tally| tally.succeeded += 1);
                if self.failing.remove(&kind) {
                    info!(hook = kind.name(), %vni, "the hook succeeds again");
                }
            }
            Err(problem) => {
                self.tally.send_modify(|tally| tally.failed += 1);
                if self.failing.insert(kind) {
                    warn!(hook = kind.name(), %vni, problem, "the hook failed");
                } else {
                    debug!(hook = kind.name(), %vni, problem, "the hook failed again");
                }
                self.stream.publish(What::HookFailed { vni, hook: kind.name().into(), problem });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::time::Instant;

    use tokio::time::timeout;

    use super::super::events;
    use super::*;

    /// Far more than anything here takes.
    const LIMIT: Duration = Duration::from_secs(60);

    struct Fixture {
        hooks: Hooks,
        task: JoinHandle<()>,
        events: events::Subscriber,
        folder: tempfile::TempDir,
    }

    impl Fixture {
        /// With these shell scripts, in a folder of their own; `$LOG` is a file there.
        fn new(take_over: Option<&str>, give_up: Option<&str>, timeout: Duration) -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let command = |script: &str| {
                let log = folder.path().join("log");
                let script = format!("LOG={}; {script}", log.display());
                vec!["/bin/sh".to_owned(), "-c".to_owned(), script]
            };
            let (take_over, give_up) = (take_over.map(command), give_up.map(command));
            let config = HooksConfig { take_over, give_up, timeout };
            let bridge = "br{vni}".parse().expect("a pattern");
            let stream = Stream::new();
            let events = stream.subscribe();
            let node = "gw1".parse().expect("a name");
            let (hooks, task) = Hooks::spawn(config, node, bridge, stream);
            Self { hooks, task, events, folder }
        }

        /// Waits until everything is done; the lines that the hooks have written.
        async fn log(self) -> Vec<String> {
            drop(self.hooks);
            timeout(LIMIT, self.task).await.expect("no hang").expect("no panic");
            let text = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            text.lines().map(ToOwned::to_owned).collect()
        }
    }

    fn facts(vni: u32, kind: Kind) -> Facts {
        Facts {
            kind,
            vni: vni.try_into().expect("vni"),
            reason: "gw2 was\nconvicted".to_owned(),
            owner: Some("gw1".parse().expect("a name")),
            from: None,
            planned: false,
            kept: false,
        }
    }

    #[tokio::test]
    async fn the_facts_are_in_the_environment_and_no_shell_looks_at_them() {
        let script = "env | grep ^SELVEDGE_ | sort > $LOG";
        let mut fixture = Fixture::new(Some(script), None, LIMIT);
        let mut facts = facts(7, Kind::TakeOver);
        facts.from = Some("gw2".parse().expect("a name"));
        facts.reason = "$(touch /tmp/never); gw2 was\nconvicted".to_owned();
        fixture.hooks.run(facts);
        let expected = [
            "SELVEDGE_BRIDGE=br7",
            "SELVEDGE_EVENT=take_over",
            "SELVEDGE_FROM=gw2",
            "SELVEDGE_KEPT=0",
            "SELVEDGE_NODE=gw1",
            "SELVEDGE_OWNER=gw1",
            "SELVEDGE_PLANNED=0",
            "SELVEDGE_REASON=$(touch /tmp/never); gw2 was convicted",
            "SELVEDGE_VNI=7",
        ];
        assert_eq!(fixture.log().await, expected);
    }

    #[tokio::test]
    async fn of_a_network_one_at_a_time_in_order_and_the_last_word_counts() {
        let script = "sleep 0.3; echo $SELVEDGE_VNI $SELVEDGE_EVENT >> $LOG";
        let mut fixture = Fixture::new(Some(script), Some(script), LIMIT);
        fixture.hooks.run(facts(1, Kind::TakeOver));
        let mut open = fixture.hooks.watch();
        open.wait_for(|tally| tally.open == 1).await.expect("it started");
        // The first two are overtaken while the hook above runs.
        for kind in [Kind::GiveUp, Kind::TakeOver, Kind::GiveUp] {
            fixture.hooks.run(facts(1, kind));
        }
        assert_eq!(fixture.log().await, ["1 take_over", "1 give_up"]);
    }

    #[tokio::test]
    async fn a_bounded_number_runs_at_once_and_all_run() {
        let script = "mkdir $LOG.$SELVEDGE_VNI; ls -d $LOG.* | wc -l >> $LOG; \
                      sleep 0.1; rmdir $LOG.$SELVEDGE_VNI";
        let mut fixture = Fixture::new(Some(script), None, LIMIT);
        for vni in 1..=30 {
            fixture.hooks.run(facts(vni, Kind::TakeOver));
        }
        let at_once: Vec<usize> =
            fixture.log().await.iter().map(|line| line.trim().parse().expect("a number")).collect();
        assert_eq!(at_once.len(), 30);
        assert!(at_once.iter().all(|number| *number <= PARALLEL), "{at_once:?}");
        assert!(at_once.iter().any(|number| *number > 1), "{at_once:?}");
    }

    #[tokio::test]
    async fn what_takes_too_long_is_killed_with_all_that_it_has_started() {
        let script = "sleep 1000 & echo $! > $LOG; wait";
        let mut fixture = Fixture::new(Some(script), None, Duration::from_millis(500));
        fixture.hooks.run(facts(3, Kind::TakeOver));
        let began = Instant::now();
        let what = timeout(LIMIT, fixture.events.next()).await.expect("no hang").what;
        let What::HookFailed { hook, problem, .. } = what else { panic!("{what:?}") };
        assert_eq!(hook, "take_over");
        assert_eq!(problem, "killed, because it took longer than 0.5 s");
        assert!(began.elapsed() < LIMIT);
        assert_eq!(fixture.hooks.tally().failed, 1);
        let child = fixture.log().await.remove(0);
        let gone = || !is_running(&child);
        while !gone() {
            assert!(began.elapsed() < LIMIT, "process {child} of the hook still runs");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether a process is there and no zombie: it may have a parent that does not wait for it.
    fn is_running(pid: &str) -> bool {
        let stat = fs::read_to_string(Path::new("/proc").join(pid).join("stat"));
        stat.is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").trim().starts_with('Z'))
    }

    #[tokio::test]
    async fn failures_are_reported_with_their_last_words() {
        let mut fixture = Fixture::new(Some("echo one >&2; echo two >&2; exit 3"), None, LIMIT);
        fixture.hooks.run(facts(3, Kind::TakeOver));
        // There is no command for this one, so that it neither runs nor fails.
        fixture.hooks.run(facts(4, Kind::GiveUp));
        let what = timeout(LIMIT, fixture.events.next()).await.expect("no hang").what;
        let What::HookFailed { vni, problem, .. } = what else { panic!("{what:?}") };
        assert_eq!((u32::from(vni), problem.as_str()), (3, "exit status: 3: two"));
        let mut tally = fixture.hooks.watch();
        let tally = *tally.wait_for(|tally| tally.open == 0).await.expect("runs");
        assert_eq!(tally, Tally { succeeded: 0, failed: 1, open: 0 });
        assert_eq!(fixture.log().await, [""; 0]);
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_a_failure_like_any_other() {
        let config = HooksConfig {
            take_over: Some(vec!["/nowhere/hook".to_owned()]),
            give_up: None,
            timeout: LIMIT,
        };
        let stream = Stream::new();
        let mut events = stream.subscribe();
        let bridge = "br{vni}".parse().expect("a pattern");
        let (mut hooks, _task) =
            Hooks::spawn(config, "gw1".parse().expect("a name"), bridge, stream);
        hooks.run(facts(1, Kind::TakeOver));
        let what = timeout(LIMIT, events.next()).await.expect("no hang").what;
        let What::HookFailed { problem, .. } = what else { panic!("{what:?}") };
        assert!(problem.starts_with("cannot start /nowhere/hook: "), "{problem}");
    }
}
