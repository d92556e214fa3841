//! The agent as a process, and the command line as its client, over a real socket.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(10);

/// An agent with the mesh plane, which touches no host, in a folder of its own.
struct Agent {
    child: Child,
    socket: PathBuf,
}

impl Agent {
    fn start(folder: &Path) -> Self {
        let agent = Self { child: spawn(folder, "agent.sock"), socket: folder.join("agent.sock") };
        let end = Instant::now() + LIMIT;
        while !agent.ask(&["mesh", "list"]).status.success() {
            assert!(Instant::now() < end, "the agent does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        agent
    }

    fn ask(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_selvedge"));
        command.args(args).arg("--socket").arg(&self.socket);
        command.output().expect("runs")
    }

    fn json(&self, args: &[&str]) -> Value {
        let output = self.ask(&[args, &["--json"]].concat());
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {errors}");
        serde_json::from_slice(&output.stdout).expect("prints JSON")
    }

    fn refused(&self, args: &[&str]) -> String {
        let output = self.ask(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(output.stdout.is_empty(), "{args:?} prints nothing where results go");
        String::from_utf8(output.stderr).expect("text")
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, signal).expect("it runs");
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(folder: &Path, socket: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_selvedge"))
        .args(["agent", "--name=one", "--dry", "--listen=127.0.0.1:0"])
        .arg("--state")
        .arg(folder.join("state"))
        .arg("--socket")
        .arg(folder.join(socket))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts")
}

#[test]
fn a_mesh_is_created_and_survives_a_kill() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let agent = Agent::start(folder.path());
    assert_eq!(agent.json(&["mesh", "list"]), Value::Array(vec![]));
    let created = agent.json(&["mesh", "create", "campus"]);
    assert_eq!(created["name"], "campus");
    assert_eq!(created["members"][0]["own"], true);
    assert_eq!(agent.json(&["mesh", "show"])["address"], created["address"]);
    let token = agent.ask(&["mesh", "invite"]);
    assert!(token.stdout.starts_with(b"svm1"), "{token:?}");

    drop(agent);
    let agent = Agent::start(folder.path());
    let shown = agent.json(&["mesh", "show", "campus"]);
    for same in ["id", "node", "address"] {
        assert_eq!(shown[same], created[same], "{same}");
    }
    assert_eq!(agent.json(&["mesh", "leave", "campus"])["id"], created["id"]);
    assert_eq!(agent.json(&["mesh", "list"]), Value::Array(vec![]));
}

#[test]
fn errors_name_the_thing_and_what_to_do() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let agent = Agent::start(folder.path());
    let error = agent.refused(&["mesh", "show", "nowhere"]);
    assert!(error.starts_with("error: ") && error.contains("nowhere"), "{error}");
    let error = agent.refused(&["mesh", "join", "svm1damaged"]);
    assert!(error.contains("token"), "{error}");
    let error = agent.refused(&["gateway", "status"]);
    assert_eq!(
        error,
        "error: the gateway plane is not enabled on this agent\n\
         hint: write a section [gateway] into its configuration and start it again\n"
    );
    drop(agent);
    let absent = Agent { child: spawn(folder.path(), "other.sock"), socket: "/nowhere/x".into() };
    let error = absent.refused(&["mesh", "list"]);
    assert_eq!(
        error,
        "error: the agent is not running: no socket at /nowhere/x\n\
         hint: start it with `selvedge agent`, or name the socket of a running one with --socket\n"
    );
}

#[test]
fn one_agent_per_state_folder() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let agent = Agent::start(folder.path());
    let mut second = spawn(folder.path(), "second.sock");
    assert_eq!(second.wait().expect("ends").code(), Some(1));
    let mut errors = String::new();
    second.stderr.take().expect("piped").read_to_string(&mut errors).expect("text");
    let expected = format!("another agent (process {}) uses the state folder", agent.child.id());
    assert!(errors.contains(&expected), "{errors}");
}

#[test]
fn a_signal_ends_it_in_order() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let folder = tempfile::tempdir().expect("temporary folder");
        let mut agent = Agent::start(folder.path());
        agent.signal(signal);
        assert_eq!(agent.child.wait().expect("ends").code(), Some(0), "{signal}");
        assert!(!agent.socket.exists(), "the socket is gone");
        let mut log = String::new();
        agent.child.stderr.take().expect("piped").read_to_string(&mut log).expect("text");
        assert!(!log.contains("ERROR"), "{log}");
    }
}
