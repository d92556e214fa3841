//! Two gateways and the embedded store as processes: the gateway plane from the command line,
//! with no host touched.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(30);
const NETWORKS: u64 = 12;

struct Process(Child);

impl Process {
    fn start(args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_selvedge"));
        Self(command.args(args).stdout(Stdio::null()).spawn().expect("starts"))
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().cast_signed()), signal).expect("it runs");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Gateway {
    process: Process,
    socket: PathBuf,
    name: String,
}

impl Gateway {
    fn start(folder: &Path, name: &str) -> Self {
        let socket = folder.join(format!("{name}.sock"));
        let state = folder.join(format!("{name}.state"));
        let config = folder.join(format!("{name}.toml"));
        std::fs::write(&config, "[gateway]\nhold_down_s = 0\nsettle_ms = 100\n").expect("writes");
        let networks = format!("--networks=1-{NETWORKS}");
        let embedded = format!("--embedded=unix:{}", folder.join("store").display());
        let args = [
            "agent",
            "--config",
            config.to_str().expect("text"),
            "--name",
            name,
            &networks,
            &embedded,
            "--dry",
            "--state",
            state.to_str().expect("text"),
            "--socket",
            socket.to_str().expect("text"),
        ];
        Self { process: Process::start(&args), socket, name: name.to_owned() }
    }

    fn ask(&self, args: &[&str]) -> Result<Value, String> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_selvedge"));
        command.arg("gateway").args(args).arg("--json").arg("--socket").arg(&self.socket);
        let output = command.output().expect("runs");
        match output.status.success() {
            true => Ok(serde_json::from_slice(&output.stdout).expect("prints JSON")),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// How many networks this gateway serves, once all are served and none moves.
    fn share(&self) -> Result<u64, String> {
        let status = self.ask(&["status"])?;
        if status["networks"]["serving"] != NETWORKS || status["networks"]["moving"] != 0 {
            return Err(status.to_string());
        }
        let rows = self.ask(&["networks"])?;
        let rows = rows.as_array().expect("a list");
        assert_eq!(rows.len() as u64, NETWORKS);
        Ok(rows.iter().filter(|row| row["current"] == self.name.as_str()).count() as u64)
    }

    fn wait_for(&self, what: &str, reached: impl Fn(u64) -> bool) {
        let end = Instant::now() + LIMIT;
        let mut seen = self.share();
        while !seen.as_ref().is_ok_and(|share| reached(*share)) {
            assert!(Instant::now() < end, "{}: {what} not reached: {seen:?}", self.name);
            std::thread::sleep(Duration::from_millis(100));
            seen = self.share();
        }
    }
}

#[test]
fn gateways_share_drain_and_hand_over() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let listen = format!("--listen=unix:{}", folder.path().join("store").display());
    let _store = Process::start(&["store", &listen]);
    let one = Gateway::start(folder.path(), "gw1");
    one.wait_for("all networks are its own", |share| share == NETWORKS);

    let mut two = Gateway::start(folder.path(), "gw2");
    two.wait_for("a share", |share| share > 0 && share < NETWORKS);

    let drained = one.ask(&["drain", "--timeout=30s"]).expect("drains");
    assert_eq!((&drained["name"], &drained["serving"]), (&"gw1".into(), &0.into()));
    one.wait_for("nothing is left", |share| share == 0);
    one.ask(&["undrain"]).expect("undrains");
    one.wait_for("its share again", |share| share > 0);

    two.process.signal(Signal::SIGTERM);
    let status = two.process.0.wait().expect("ends");
    assert!(status.success(), "{status}");
    assert_eq!(one.share(), Ok(NETWORKS), "they were handed over before it ended");
}
