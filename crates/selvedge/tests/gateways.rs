//! Two gateways and a store as processes: the gateway plane from the command line, with no host
//! touched.

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
    fn start(folder: &Path, name: &str, store: &str) -> Self {
        let socket = folder.join(format!("{name}.sock"));
        let state = folder.join(format!("{name}.state"));
        let config = folder.join(format!("{name}.toml"));
        std::fs::write(&config, "[gateway]\nhold_down_s = 0\nsettle_ms = 100\n").expect("writes");
        let networks = format!("--networks=1-{NETWORKS}");
        let args = [
            "agent",
            "--config",
            config.to_str().expect("text"),
            "--name",
            name,
            &networks,
            store,
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

    /// Who owns what.
    fn owners(&self) -> Vec<Value> {
        let rows = self.ask(&["networks"]).expect("answers");
        rows.as_array().expect("a list").iter().map(|row| row["current"].clone()).collect()
    }

    fn wait_until(&self, what: &str, reached: impl Fn(&Value) -> bool) {
        let end = Instant::now() + LIMIT;
        loop {
            let status = self.ask(&["status"]).expect("answers");
            if reached(&status) {
                return;
            }
            assert!(Instant::now() < end, "{}: {what} not reached: {status}", self.name);
            std::thread::sleep(Duration::from_millis(100));
        }
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
    let store = format!("--embedded=unix:{}", folder.path().join("store").display());
    let one = Gateway::start(folder.path(), "gw1", &store);
    one.wait_for("all networks are its own", |share| share == NETWORKS);

    let mut two = Gateway::start(folder.path(), "gw2", &store);
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

/// etcd with one member, whose contents are in `data`.
fn etcd(data: &Path, port: u16) -> Process {
    let url = format!("http://127.0.0.1:{port}");
    let mut command = Command::new("etcd");
    command.arg("--data-dir").arg(data).args(["--listen-peer-urls=http://127.0.0.1:0"]);
    command.args([format!("--listen-client-urls={url}"), format!("--advertise-client-urls={url}")]);
    command.args(["--log-level=error", "--logger=zap"]).stdout(Stdio::null()).stderr(Stdio::null());
    Process(command.spawn().expect("etcd is installed"))
}

#[test]
fn a_store_that_was_emptied_is_filled_again_and_nothing_moves() {
    if Command::new("etcd").arg("--version").stdout(Stdio::null()).status().is_err() {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "etcd is needed");
        return println!("skipped: a_store_that_was_emptied_is_filled_again: etcd is missing");
    }
    let folder = tempfile::tempdir().expect("temporary folder");
    let data = folder.path().join("etcd");
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = free.local_addr().expect("bound").port();
    drop(free);
    let store = format!("--etcd=http://127.0.0.1:{port}");
    let running = etcd(&data, port);
    let agents = ["gw1", "gw2"].map(|name| Gateway::start(folder.path(), name, &store));
    agents[0].wait_for("its share", |share| share > 0 && share < NETWORKS);
    let owners = agents[0].owners();
    let refused = agents[0].ask(&["refill", "--force"]).expect_err("nothing is lost");
    assert!(refused.contains("was not reset"), "{refused}");

    drop(running);
    std::fs::remove_dir_all(&data).expect("removes");
    let _running = etcd(&data, port);
    for agent in &agents {
        agent.wait_until("it refuses the store", |status| status["store"]["connected"] == false);
    }
    std::thread::sleep(Duration::from_secs(5));
    assert!(agents.iter().all(|agent| agent.owners() == owners), "nothing moves meanwhile");
    let explained = agents[1].ask(&["refill"]).expect_err("it has to be forced");
    assert!(explained.contains("--force"), "{explained}");
    let refill = agents[1].ask(&["refill", "--force"]).expect("fills it");
    assert_eq!(refill["done"], true, "{refill}");
    for agent in &agents {
        agent.wait_until("it is registered", |status| {
            status["store"]["connected"] == true && !status["incarnation"].is_null()
        });
        agent.wait_for("its share", |share| share > 0 && share < NETWORKS);
        assert_eq!(agent.owners(), owners, "{}", agent.name);
    }
}
