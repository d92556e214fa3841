//! A gateway on a host of its own, fabric `flood`: what its agent does to the kernel, what a kill
//! leaves, what a stop withdraws, and that everything can be put back.
//!
//! Needs root. Without it the test is skipped and says so; with `CI=true` that is a failure.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use selvedge_host::netns::{self, Ephemeral};

const LIMIT: Duration = Duration::from_secs(20);
const CONFIG: &str = "
name = \"gw1\"
[gateway]
networks = \"NETWORKS\"
fabric = \"flood\"
drain_timeout_s = 5
[gateway.flood]
uplink = \"up0\"
endpoints = [\"192.0.2.9\"]
";

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Host {
    namespace: Ephemeral,
    folder: tempfile::TempDir,
}

impl Host {
    /// A host with two networks, as an operator would have set it up.
    #[allow(clippy::print_stderr, reason = "a skipped test says so")]
    fn new() -> Option<Self> {
        if let Err(error) = netns::can_create() {
            let ci = std::env::var("CI").is_ok_and(|value| value == "true");
            assert!(!ci, "this test must run here: {error}");
            eprintln!("skipped: a_host_is_changed_and_put_back: {error}");
            return None;
        }
        let name = format!("svgwhost-{}", std::process::id());
        let namespace = Ephemeral::create(&name).expect("a namespace");
        let host = Self { namespace, folder: tempfile::tempdir().expect("a folder") };
        host.sh("ip link set lo up; sysctl -qw net.ipv4.ip_forward=1");
        host.sh("ip link add up0 type veth peer name router0; ip link set up0 up");
        host.sh("ip link set router0 up; ip addr add 172.20.255.1/16 dev up0");
        host.sh("ip addr add 192.0.2.1/32 dev lo");
        for vni in [1, 2] {
            host.sh(&format!("ip link add br{vni} type bridge; ip link set br{vni} up"));
            host.sh(&format!("ip addr add 10.1.{vni}.1/24 dev br{vni}"));
            host.sh(&format!(
                "ip link add vxlan{vni} type vxlan id {vni} local 192.0.2.1 dstport 4789; \
                 ip link set vxlan{vni} master br{vni} up"
            ));
        }
        Some(host)
    }

    fn sh(&self, script: &str) -> String {
        let output = self.namespace.command("sh").arg("-ec").arg(script).output().expect("runs");
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn store(&self) -> Process {
        let listen = format!("--listen=unix:{}", self.path("store").display());
        start(Command::new(env!("CARGO_BIN_EXE_selvedge")).args(["store", &listen]))
    }

    /// The agent for the networks from 1 to `last`.
    fn agent(&self, last: u32) -> Command {
        let config = self.path("agent.toml");
        let mut text = CONFIG.replace("NETWORKS", &format!("1-{last}"));
        for vni in 1..=last {
            text +=
                &format!("[[gateway.network]]\nvni = {vni}\nnext_hops = [\"172.20.0.{vni}\"]\n");
        }
        std::fs::write(&config, text).expect("writes");
        let mut command = self.namespace.command(env!("CARGO_BIN_EXE_selvedge"));
        command.arg("agent").arg("--config").arg(config);
        command.arg(format!("--embedded=unix:{}", self.path("store").display()));
        command.arg("--state").arg(self.path("state")).arg("--socket").arg(self.path("sock"));
        command
    }

    fn serves(&self, vni: u32) -> bool {
        let uplink = self.sh("ip -o addr show dev up0");
        let routes = self.sh("ip route");
        let answers = self.sh(&format!("cat /proc/sys/net/ipv4/conf/br{vni}/arp_ignore"));
        uplink.contains(&format!("172.20.0.{vni}/32"))
            && routes.contains(&format!("10.1.{vni}.0/24 dev br{vni}"))
            && answers.trim() == "0"
    }

    fn is_silent(&self, vni: u32) -> bool {
        let uplink = self.sh("ip -o addr show dev up0");
        let answers = self.sh(&format!("cat /proc/sys/net/ipv4/conf/br{vni}/arp_ignore"));
        !uplink.contains(&format!("172.20.0.{vni}/32")) && answers.trim() == "8"
    }

    /// Whether the bridge is as the operator made it.
    fn is_untouched(&self, vni: u32) -> bool {
        let bridge = self.sh(&format!("ip -o -4 addr show dev br{vni}"));
        let answers = self.sh(&format!("cat /proc/sys/net/ipv4/conf/br{vni}/arp_ignore"));
        bridge.contains(&format!("10.1.{vni}.1/24"))
            && !bridge.contains("/32")
            && answers.trim() == "0"
            && !self.sh("ip -o addr show dev up0").contains(&format!("172.20.0.{vni}/32"))
    }

    fn registered(&self) -> bool {
        let mut command = Command::new(env!("CARGO_BIN_EXE_selvedge"));
        command.args(["gateway", "status", "--json", "--socket"]).arg(self.path("sock"));
        let output = command.output().expect("runs");
        String::from_utf8_lossy(&output.stdout).contains("\"registered\":true")
    }
}

fn start(command: &mut Command) -> Process {
    Process(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts"))
}

fn until(what: &str, reached: impl Fn() -> bool) {
    let end = Instant::now() + LIMIT;
    while !reached() {
        assert!(Instant::now() < end, "{what}: not reached");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_host_is_changed_and_put_back() {
    let Some(host) = Host::new() else { return };
    let _store = host.store();
    until("the store listens", || host.path("store").exists());

    let mut agent = start(&mut host.agent(2));
    until("both networks are served", || host.serves(1) && host.serves(2));
    assert!(host.sh("ip -o -4 addr show dev br1").contains("10.1.1.1/32"));

    // A kill leaves everything as it is, and the next run adopts it without a gap.
    agent.0.kill().expect("ours");
    agent.0.wait().expect("ours");
    assert!(host.serves(1) && host.serves(2), "the kernel goes on");
    let mut agent = start(&mut host.agent(2));
    until("it is back", || {
        assert!(host.serves(1) && host.serves(2), "a restart interrupts nothing");
        host.registered()
    });

    // A stop withdraws.
    kill(Pid::from_raw(agent.0.id().cast_signed()), Signal::SIGTERM).expect("it runs");
    assert!(agent.0.wait().expect("ours").success());
    assert!(host.is_silent(1) && host.is_silent(2), "nobody answers for a stopped gateway");

    // A network that is configured no more is put back by the next run.
    let mut agent = start(&mut host.agent(1));
    until("network 1 is served, 2 is put back", || host.serves(1) && host.is_untouched(2));

    // All of it is put back on request, though not under a running agent.
    assert!(!host.agent(1).arg("--release").status().expect("runs").success());
    assert!(host.serves(1));
    kill(Pid::from_raw(agent.0.id().cast_signed()), Signal::SIGTERM).expect("it runs");
    agent.0.wait().expect("ours");
    assert!(host.agent(1).arg("--release").status().expect("runs").success());
    assert!(host.is_untouched(1), "{}", host.sh("ip -o addr"));
}
