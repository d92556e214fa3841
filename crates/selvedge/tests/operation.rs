//! Operating a gateway from the command line: restart and upgrade, hooks, history, events, and
//! the words that an operator has to mean. Agents and store are processes; no host is touched.

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);
const NETWORKS: u64 = 12;
const PROGRAM: &str = env!("CARGO_BIN_EXE_selvedge");

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A store, and a folder for everything.
struct Site {
    folder: tempfile::TempDir,
    _store: Process,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let listen = format!("--listen=unix:{}", folder.path().join("store").display());
        let store = Command::new(PROGRAM).args(["store", &listen]).stdout(Stdio::null()).spawn();
        Self { folder, _store: Process(store.expect("starts")) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// An agent for all networks, with more lines in its configuration, started by a link of its
    /// own to the program.
    fn agent(&self, id: &str, name: &str, more: &str) -> Agent {
        let program = self.path(&format!("{id}.program"));
        symlink(PROGRAM, &program).expect("links");
        let config = self.path(&format!("{id}.toml"));
        let text = format!(
            "name = '{name}'\nstate = '{state}'\nsocket = '{socket}'\n[gateway]\n\
             networks = '1-{NETWORKS}'\ndry = true\nhold_down_s = 0\nsettle_ms = 100\n\
             [gateway.embedded]\naddress = 'unix:{store}'\n{more}",
            state = self.path(&format!("{id}.state")).display(),
            socket = self.path(&format!("{id}.sock")).display(),
            store = self.path("store").display(),
        );
        fs::write(&config, text).expect("writes");
        let child = Command::new(&program).args(["agent", "--config"]).arg(&config).spawn();
        let socket = self.path(&format!("{id}.sock"));
        Agent { process: Process(child.expect("starts")), program, config, socket }
    }
}

struct Agent {
    process: Process,
    program: PathBuf,
    config: PathBuf,
    socket: PathBuf,
}

impl Agent {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.arg("gateway").args(args).arg("--socket").arg(&self.socket);
        command
    }

    fn output(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("runs")
    }

    fn json(&self, args: &[&str]) -> Value {
        let output = self.output(&[args, &["--json"]].concat());
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {errors}");
        serde_json::from_slice(&output.stdout).expect("prints JSON")
    }

    fn refused(&self, args: &[&str]) -> String {
        let output = self.output(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
        String::from_utf8(output.stderr).expect("text")
    }

    /// The status, once there is one that is as expected.
    fn status_when(&self, what: &str, reached: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + LIMIT;
        loop {
            let output = self.output(&["status", "--json"]);
            let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            if reached(&status) {
                return status;
            }
            assert!(Instant::now() < end, "not reached: {what}: {status:#} {output:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until all networks are at rest and this gateway serves some of them.
    fn settled(&self, gateways: usize) -> Value {
        self.status_when("all networks are at rest", |status| {
            let nodes = status["nodes"].as_array().map_or(&[][..], Vec::as_slice);
            let serving = |node: &&Value| node["serving"].as_u64() > Some(0);
            status["registered"] == true
                && status["networks"]["serving"] == NETWORKS
                && nodes.iter().filter(serving).count() == gateways
        })
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.0.id().cast_signed()), signal).expect("it runs");
    }

    /// Puts a script in the place of the program.
    fn replace_program(&self, script: &str) {
        let new = self.program.with_extension("new");
        fs::write(&new, format!("#!/bin/sh\n{script}\n")).expect("writes");
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).expect("sets");
        fs::rename(&new, &self.program).expect("renames");
    }
}

/// For each agent the section by which it takes part in the detection of failures, with more lines
/// in it.
fn probes<const N: usize>(more: &str) -> [String; N] {
    // All are open at once, so that they differ.
    let sockets = [(); N].map(|()| UdpSocket::bind("127.0.0.1:0").expect("binds"));
    sockets.map(|socket| {
        let address = socket.local_addr().expect("bound");
        format!("[gateway.probe]\nlisten = '{address}'\naddresses = ['127.0.0.1']\n{more}")
    })
}

/// Who owns what, and since which epoch.
fn owners(history: &Value) -> Vec<(u64, u64, String)> {
    let rows = history.as_array().expect("a list").iter();
    let mut owners: Vec<_> = rows
        .map(|row| {
            let number = |key: &str| row[key].as_u64().expect("a number");
            (number("vni"), number("epoch"), row["owner"].to_string())
        })
        .collect();
    owners.sort();
    owners
}

#[test]
fn a_restart_keeps_everything_in_its_place() {
    let site = Site::new();
    // Patient, so that a busy machine is taken for no loss.
    let [probe_one, probe_two] = probes("suspect_ms = 1500\nfence_ms = 3000\n");
    let one = site.agent("one", "gw1", &probe_one);
    let two = site.agent("two", "gw2", &probe_two);
    let before = one.settled(2);
    two.settled(2);
    one.status_when("it hears the other", |status| status["partners"][0]["heard"] == true);
    let history = owners(&one.json(&["history", "--last=1000"]));
    assert!(history.len() >= 12, "{history:?}");

    let mut watcher = one.command(&["watch", "--json"]);
    let watcher = watcher.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
    // That it watches can only be seen by what it prints; a moment is enough, and if it is not,
    // it prints nothing and the test fails.
    std::thread::sleep(Duration::from_secs(2));
    let restarted = one.json(&["restart", "--for=30s"]);
    assert_eq!(restarted["pid"], one.process.0.id(), "{restarted}");
    assert_eq!(restarted["registered"], true);
    assert_eq!(restarted["program"], one.program.display().to_string());
    let after = one.settled(2);
    assert_ne!(after["incarnation"], before["incarnation"]);
    assert_eq!(owners(&one.json(&["history", "--last=1000"])), history, "nothing has moved");
    let kept = after["counters"]["kept"].as_u64();
    assert!(kept > Some(0) && after["counters"]["failovers"] == 0, "{}", after["counters"]);

    let watched = watcher.wait_with_output().expect("ends with the agent");
    let lines = String::from_utf8(watched.stdout).expect("text");
    let restarting = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let restarting = restarting.filter(|event| event["event"] == "restarting");
    assert_eq!(restarting.map(|event| event["for_ms"].clone()).collect::<Vec<_>>(), [30_000]);
    let end = String::from_utf8_lossy(&watched.stderr);
    assert_eq!(end, "error: the agent has ended\n");
}

#[test]
fn a_loss_is_told_and_timed() {
    let site = Site::new();
    let [one, two, three] = probes("");
    let one = site.agent("one", "gw1", &one);
    let two = site.agent("two", "gw2", &two);
    let three = site.agent("three", "gw3", &three);
    for agent in [&one, &two, &three] {
        agent.settled(3);
    }
    let status = one.status_when("all are heard", |status| {
        let heard = |row: &&Value| row["heard"] == true;
        let partners = status["partners"].as_array().map_or(&[][..], Vec::as_slice);
        partners.iter().filter(heard).count() == 2
    });
    assert_eq!(status["voters"], serde_json::json!(["gw1", "gw2", "gw3"]));
    assert_eq!(status["failover"]["possible"], true, "{:#}", status["failover"]);
    let lives = |status: &Value, name: &str| {
        let nodes = status["nodes"].as_array().expect("a list").iter();
        let mut rows = nodes.filter(|row| row["name"] == name);
        rows.next().map(|row| row["registered"] == true && row["convicted"] == false)
    };
    drop(three);
    let status = one.status_when("the lost one counts as dead, and its networks are served", |s| {
        lives(s, "gw3") != Some(true) && s["networks"]["serving"] == NETWORKS
    });
    let counters = &status["counters"];
    assert!(counters["verdicts"].as_u64() > Some(0), "{counters}");
    assert!(counters["probes_received"].as_u64() > Some(0), "{counters}");
    let changes = one.json(&["history", "--last=1000"]);
    let convicted = |row: &&Value| row["reason"] == "gw3 was convicted";
    assert!(changes.as_array().expect("a list").iter().any(|row| convicted(&row)), "{changes:#}");
    let taken: u64 = [&one, &two]
        .map(|agent| agent.json(&["status"])["times"]["takeover"]["count"].as_u64())
        .map(|count| count.expect("a number"))
        .iter()
        .sum();
    assert!(taken > 0, "each network that was taken over is timed");
}

#[test]
fn a_hangup_starts_what_is_installed_now() {
    let site = Site::new();
    let one = site.agent("one", "gw1", "");
    let before = one.settled(1);
    let log = site.path("upgraded");
    one.replace_program(&format!("echo $* >> {}; exec {PROGRAM} \"$@\"", log.display()));
    one.signal(Signal::SIGHUP);
    one.status_when("another incarnation", |status| {
        let incarnation = &status["incarnation"];
        incarnation.is_i64() && *incarnation != before["incarnation"]
    });
    let started = fs::read_to_string(&log).expect("the new program ran");
    let config = one.config.display();
    let expected = format!("agent --config {config} --check\nagent --config {config}\n");
    assert_eq!(started, expected, "first it checks, then it runs");
    one.settled(1);
}

#[test]
fn what_cannot_start_is_not_started() {
    let site = Site::new();
    let one = site.agent("one", "gw1", "");
    let before = one.settled(1);
    let good = fs::read_to_string(&one.config).expect("reads");
    fs::write(&one.config, format!("{good}\n[gateway.nonsense]\n")).expect("writes");
    let error = one.refused(&["restart"]);
    assert!(error.contains("not restarted") && error.contains("nonsense"), "{error}");
    let error = one.refused(&["restart", "--for=3600s"]);
    assert!(error.contains("to wait for 1 s to 60 s, not for 3600 s"), "{error}");
    one.signal(Signal::SIGHUP);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(one.settled(1)["incarnation"], before["incarnation"], "it has never ended");
}

#[test]
fn where_the_program_vanishes_the_running_one_goes_on() {
    let site = Site::new();
    let one = site.agent("one", "gw1", "");
    let before = one.settled(1);
    one.replace_program("rm $0");
    let restarted = one.json(&["restart", "--for=30s"]);
    assert_eq!(restarted["pid"], one.process.0.id());
    assert!(!one.program.exists());
    assert_ne!(one.settled(1)["incarnation"], before["incarnation"]);
    // It can still be stopped in order.
    one.signal(Signal::SIGTERM);
    let mut process = one.process;
    assert!(process.0.wait().expect("ends").success());
}

#[test]
fn hooks_follow_the_networks() {
    let site = Site::new();
    let log = site.path("log");
    let hook = site.path("hook");
    let facts = "$1 $SELVEDGE_EVENT $SELVEDGE_VNI $SELVEDGE_BRIDGE $SELVEDGE_NODE $SELVEDGE_OWNER";
    fs::write(&hook, format!("#!/bin/sh\necho \"{facts}\" >> {}\n", log.display()))
        .expect("writes");
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).expect("sets");
    let hook = hook.display();
    let one = site.agent(
        "one",
        "gw1",
        &format!("[gateway.hooks]\ntake_over = ['{hook}', 'a b']\ngive_up = '{hook}'\n"),
    );
    one.settled(1);
    let lines = |status: &Value| status["counters"]["hooks"].as_u64();
    one.status_when("each network has had its hook", |s| lines(s) == Some(NETWORKS));
    let taken = sorted_lines(&log);
    let expected = |vni| format!("a b take_over {vni} br{vni} gw1 gw1");
    let mut all: Vec<String> = (1..=NETWORKS).map(expected).collect();
    all.sort();
    assert_eq!(taken, all);

    let two = site.agent("two", "gw2", "");
    two.settled(2);
    one.json(&["drain", "--timeout=60s"]);
    let status = one.status_when("each was given up", |s| lines(s) == Some(2 * NETWORKS));
    assert_eq!(status["counters"]["hook_failures"], 0);
    let given: Vec<String> =
        sorted_lines(&log).into_iter().filter(|line| line.contains("give_up")).collect();
    let expected = |vni| format!(" give_up {vni} br{vni} gw1 gw2");
    let mut all: Vec<String> = (1..=NETWORKS).map(expected).collect();
    all.sort();
    assert_eq!(given, all);
}

fn sorted_lines(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).expect("reads");
    let mut lines: Vec<String> = text.lines().map(ToOwned::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn grave_words_have_to_be_meant() {
    let site = Site::new();
    let one = site.agent("one", "gw1", "");
    one.settled(1);
    let error = one.refused(&["takeover", "gw2"]);
    assert!(error.starts_with("error: nothing was done"), "{error}");
    assert!(error.ends_with("selvedge gateway takeover --force gw2\n"), "{error}");
    let error = one.refused(&["takeover", "--force", "gw2"]);
    assert!(error.starts_with("error: no gateway is named gw2"), "{error}");
    let error = one.refused(&["remove", "gw2"]);
    assert!(error.starts_with("error: no gateway is named gw2"), "{error}");
    let row = &one.json(&["history", "7"])[0];
    let fields = (&row["vni"], &row["owner"], &row["reason"]);
    assert_eq!(fields, (&7.into(), &"gw1".into(), &"it had no owner before".into()));
}

#[test]
fn a_gateway_whose_name_is_taken_says_so() {
    let site = Site::new();
    let one = site.agent("one", "gw1", "");
    one.settled(1);
    let two = site.agent("two", "gw1", "");
    let status = two.status_when("it knows why", |status| {
        status["unregistered"].as_str().is_some_and(|why| why.contains("another host"))
    });
    assert_eq!(status["registered"], false);
    let page = two.output(&["status"]);
    let page = String::from_utf8_lossy(&page.stdout);
    assert!(page.contains("NOT registered (another host is registered as gw1: "), "{page}");
}

#[test]
fn a_host_is_checked_with_an_agent_and_without() {
    let site = Site::new();
    let one = site.agent("one", "gw1", "");
    one.settled(1);
    let asked = one.json(&["check"]);
    assert_eq!((&asked[0]["severity"], &asked[0]["subject"]), (&"ok".into(), &"fabric".into()));
    let Agent { process, config, .. } = &one;
    let by_itself = one.json(&["check", "--config", config.to_str().expect("text")]);
    assert_eq!(by_itself, asked);
    kill(Pid::from_raw(process.0.id().cast_signed()), Signal::SIGKILL).expect("it runs");
    let end = Instant::now() + LIMIT;
    while one.output(&["check"]).status.success() {
        assert!(Instant::now() < end, "the agent was killed");
    }
    let error = one.refused(&["check"]);
    assert!(error.starts_with("error: with --config FILE no agent is needed: "), "{error}");
}

#[test]
fn a_configuration_is_checked_without_an_agent() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("agent.toml");
    let check = |text: &str| {
        fs::write(&config, text).expect("writes");
        let mut command = Command::new(PROGRAM);
        command.args(["agent", "--check", "--config"]).arg(&config).output().expect("runs")
    };
    let good =
        check("name = 'gw1'\n[gateway]\nnetworks = '1'\n[gateway.embedded]\naddress = 'unix:/s'\n");
    assert!(good.status.success(), "{good:?}");
    assert_eq!(good.stdout, b"the configuration is complete and makes sense\n");
    let bad = check("name = 'gw1'\n[gateway]\nnetwroks = '1'\n");
    assert_eq!(bad.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&bad.stderr).contains("netwroks"), "{bad:?}");
}
