//! Agents as processes in network namespaces: userspace WireGuard, real packets, real kills.
//!
//! Needs root. Without it the tests are skipped and say so; with `CI=true` that is a failure.

use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use selvedge_api::Client;
use selvedge_api::mesh::{CreateRequest, InviteRequest, JoinRequest, Mesh};
use selvedge_host::netlink::{AddressOptions, Netlink, NewLink};
use selvedge_host::netns::{self, Ephemeral};
use selvedge_model::Prefix;
use tempfile::TempDir;
use tokio::time::sleep;

/// The largest payload of a ping that fits into the MTU of 1420 bytes.
const FULL_PAYLOAD: &str = "1372";

#[tokio::test]
async fn three_hosts_reach_each_other_and_survive_kills() {
    let Some(mut lab) = Lab::new("t", 3).await else { return };
    lab.start_all().await;
    let mesh = lab.form("campus").await;
    let addresses = lab.addresses("campus").await;
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        lab.pings(from, addresses[to], FULL_PAYLOAD).await;
    }
    assert!(!lab.ping(0, addresses[1], "1373"), "the MTU is no greater than it says");
    let before = lab.show(1, "campus").await;

    // All die at once, and one comes back alone.
    (0..3).for_each(|host| lab.kill(host));
    assert!(!lab.has_interface(1, &before.interface), "the interface dies with its process");
    lab.start(1).await;
    let after = lab.show(1, "campus").await;
    assert_eq!(identity(&after), identity(&before));
    assert_eq!(after.members.len(), 3, "the last known state");

    // The others follow, and everything is as it was.
    lab.start(0).await;
    lab.start(2).await;
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        lab.pings(from, addresses[to], FULL_PAYLOAD).await;
    }

    // A single host restarts among living ones: their old sessions must not linger.
    lab.kill(2);
    lab.start(2).await;
    let restarted = Instant::now();
    lab.pings(0, addresses[2], "56").await;
    lab.pings(1, addresses[2], "56").await;
    assert!(restarted.elapsed() < Duration::from_secs(10), "{:?}", restarted.elapsed());
    assert_eq!(lab.show(2, "campus").await.id, mesh.id);
}

#[tokio::test]
async fn a_host_leaves_and_its_peers_forget_it() {
    let Some(mut lab) = Lab::new("l", 3).await else { return };
    lab.start_all().await;
    lab.form("campus").await;
    let addresses = lab.addresses("campus").await;
    lab.pings(0, addresses[2], "56").await;
    let interface = lab.show(2, "campus").await.interface;
    lab.client(2).leave_mesh("campus").await.expect("left");
    assert!(!lab.has_interface(2, &interface));
    for host in [0, 1] {
        lab.sees(host, "campus", 2).await;
    }
    assert!(!lab.ping(0, addresses[2], "56"));
    lab.pings(0, addresses[1], "56").await;
}

#[tokio::test]
async fn a_host_that_moves_is_found_again() {
    let Some(mut lab) = Lab::new("m", 2).await else { return };
    lab.start_all().await;
    lab.form("campus").await;
    let addresses = lab.addresses("campus").await;
    lab.pings(0, addresses[1], "56").await;
    lab.kill(1);
    lab.move_host(1, "192.0.2.77/24").await;
    lab.start(1).await;
    lab.pings(0, addresses[1], "56").await;
    lab.pings(1, addresses[0], "56").await;
    let seen = lab.show(0, "campus").await;
    let moved = seen.members.iter().find(|member| !member.own).expect("the other");
    assert_eq!(moved.endpoint.expect("known").ip().to_string(), "192.0.2.77");
}

#[tokio::test]
async fn a_host_that_was_cut_off_catches_up() {
    let Some(mut lab) = Lab::new("c", 3).await else { return };
    lab.start_all().await;
    lab.form("campus").await;
    let addresses = lab.addresses("campus").await;
    lab.cut(2, true).await;
    assert!(!lab.ping(0, addresses[2], "56"));
    lab.client(1).leave_mesh("campus").await.expect("left");
    lab.sees(0, "campus", 2).await;
    assert_eq!(lab.show(2, "campus").await.members.len(), 3, "it cannot know");
    lab.cut(2, false).await;
    lab.sees(2, "campus", 2).await;
    lab.pings(0, addresses[2], FULL_PAYLOAD).await;
}

#[tokio::test]
async fn names_are_answered_in_the_mesh_and_hooks_run_around_its_interface() {
    let Some(mut lab) = Lab::new("n", 2).await else { return };
    let hooks = lab.path(0, "hooks");
    let script = format!(
        "ip link show dev $SELVEDGE_INTERFACE >/dev/null 2>&1 && is=there || is=gone; \
         echo $SELVEDGE_EVENT $is >> {}",
        hooks.display()
    );
    let hook = format!("[\"/bin/sh\", \"-c\", \"{script}\"]");
    let kinds = ["pre_up", "post_up", "pre_down", "post_down"];
    let lines: String = kinds.map(|kind| format!("{kind} = {hook}\n")).concat();
    let config = format!("[mesh.dns]\n[mesh.hooks]\n{lines}");
    std::fs::write(lab.path(0, "toml"), config).expect("writes");
    lab.start_all().await;
    lab.form("campus").await;
    let addresses = lab.addresses("campus").await;
    lab.pings(1, addresses[0], "56").await;

    // A member asks at the overlay address, and programs of the host at the loopback address.
    let name = "host1.campus.mesh.internal.";
    for (host, server) in [(1, addresses[0].to_string()), (0, "127.0.0.153".to_owned())] {
        let server = SocketAddr::new(server.parse().expect("an address"), 53);
        let deadline = Instant::now() + Duration::from_secs(60);
        while lab.resolve(host, server, name) != Some(addresses[1]) {
            assert!(Instant::now() < deadline, "{server}:\n{}", lab.read_log(0));
            sleep(Duration::from_millis(100)).await;
        }
    }

    lab.client(0).leave_mesh("campus").await.expect("left");
    let told = std::fs::read_to_string(hooks).expect("the hooks have written");
    assert_eq!(told, "pre_up gone\npost_up there\npre_down there\npost_down gone\n");
}

fn identity(mesh: &Mesh) -> impl PartialEq + std::fmt::Debug + use<> {
    let own = mesh.members.iter().find(|member| member.own).expect("a member of its own mesh");
    (mesh.id, mesh.node, mesh.address, mesh.listen_port, mesh.interface.clone(), own.wg_key)
}

/// Hosts on one bridge, each a namespace with an agent.
struct Lab {
    folder: TempDir,
    hosts: Vec<Host>,
    switch: Ephemeral,
}

struct Host {
    namespace: Ephemeral,
    agent: Option<Child>,
    addr: Prefix,
}

impl Drop for Host {
    fn drop(&mut self) {
        stop(&mut self.agent);
    }
}

fn stop(agent: &mut Option<Child>) {
    if let Some(mut agent) = agent.take() {
        agent.kill().expect("it is ours");
        agent.wait().expect("it is ours");
    }
}

impl Lab {
    /// `None`, with the reason on standard error, if namespaces cannot be made here.
    #[allow(clippy::print_stderr, reason = "a skipped test says so")]
    async fn new(tag: &str, hosts: u8) -> Option<Self> {
        if let Err(error) = netns::can_create() {
            let ci = std::env::var("CI").is_ok_and(|value| value == "true");
            assert!(!ci, "this test must run here: {error}");
            eprintln!("skipped: {error}");
            return None;
        }
        let name = |part: &str| format!("svmesh-{}-{tag}-{part}", std::process::id());
        let switch = Ephemeral::create(&name("sw")).expect("a namespace");
        let netlink = Netlink::in_namespace(&switch).expect("netlink");
        netlink.add_link("br0", &NewLink::Bridge).await.expect("a bridge");
        let bridge = netlink.link("br0").await.expect("listed").expect("just made").index;
        netlink.set_up(bridge, true, None).await.expect("up");
        let mut made = Vec::new();
        for number in 1..=hosts {
            let namespace = Ephemeral::create(&name(&format!("h{number}"))).expect("a namespace");
            plug(&netlink, bridge, &namespace, number).await;
            let addr: Prefix = format!("192.0.2.{number}/24").parse().expect("a prefix");
            address(&namespace, addr).await;
            made.push(Host { namespace, agent: None, addr });
        }
        let folder = tempfile::tempdir().expect("a folder");
        Some(Self { folder, hosts: made, switch })
    }

    async fn start_all(&mut self) {
        for host in 0..self.hosts.len() {
            self.start(host).await;
        }
    }

    /// Starts the agent of a host and waits until it answers.
    async fn start(&mut self, host: usize) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log(host));
        let log = log.expect("writable");
        let mut command = Command::new(env!("CARGO_BIN_EXE_selvedge"));
        command
            .args(["agent", "--mesh", "--debug", "--name", &format!("host{host}")])
            .arg("--state")
            .arg(self.path(host, "state"))
            .arg("--socket")
            .arg(self.path(host, "sock"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file"))
            .stderr(log);
        if self.path(host, "toml").exists() {
            command.arg("--config").arg(self.path(host, "toml"));
        }
        self.hosts[host].namespace.attach(&mut command);
        netns::die_with_parent(&mut command);
        self.hosts[host].agent = Some(command.spawn().expect("the agent starts"));
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.client(host).info().await.is_err() {
            assert!(Instant::now() < deadline, "no answer:\n{}", self.read_log(host));
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn kill(&mut self, host: usize) {
        stop(&mut self.hosts[host].agent);
    }

    /// Host 0 founds a mesh, the others join.
    async fn form(&self, name: &str) -> Mesh {
        let request = CreateRequest { name: name.to_owned(), ..CreateRequest::default() };
        let mesh = self.client(0).create_mesh(&request).await.expect("founded");
        let request = InviteRequest { uses: 10, expires_s: 600, ..InviteRequest::default() };
        let token = self.client(0).invite(name, &request).await.expect("invited").token;
        for host in 1..self.hosts.len() {
            let request = JoinRequest { token: token.clone(), ..JoinRequest::default() };
            let joined = self.client(host).join_mesh(&request).await;
            joined.unwrap_or_else(|error| panic!("{error}\n{}", self.read_log(host)));
        }
        for host in 0..self.hosts.len() {
            self.sees(host, name, self.hosts.len()).await;
        }
        mesh
    }

    async fn sees(&self, host: usize, mesh: &str, members: usize) {
        let deadline = Instant::now() + Duration::from_secs(15);
        while self.show(host, mesh).await.members.len() != members {
            assert!(Instant::now() < deadline, "host {host}:\n{}", self.read_log(host));
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn addresses(&self, mesh: &str) -> Vec<Ipv6Addr> {
        let mut addresses = Vec::new();
        for host in 0..self.hosts.len() {
            addresses.push(self.show(host, mesh).await.address);
        }
        addresses
    }

    async fn show(&self, host: usize, mesh: &str) -> Mesh {
        self.client(host).mesh(mesh).await.expect("it is a member")
    }

    fn client(&self, host: usize) -> Client {
        Client::new(self.path(host, "sock"))
            .expect("a client")
            .with_timeout(Duration::from_secs(30))
    }

    /// Pings until an answer comes, for ten seconds at most.
    async fn pings(&self, from: usize, to: Ipv6Addr, payload: &str) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.ping(from, to, payload) {
            assert!(Instant::now() < deadline, "{from} cannot ping {to}:\n{}", self.read_log(from));
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// One ping that must not be fragmented.
    fn ping(&self, from: usize, to: Ipv6Addr, payload: &str) -> bool {
        let to = to.to_string();
        self.run(from, "ping", &["-6", "-n", "-c1", "-W1", "-Mdo", "-s", payload, &to])
            .status
            .success()
    }

    fn has_interface(&self, host: usize, name: &str) -> bool {
        self.run(host, "ip", &["link", "show", "dev", name]).status.success()
    }

    /// Takes the carrier from a host, or gives it back.
    async fn cut(&self, host: usize, cut: bool) {
        let netlink = Netlink::in_namespace(&self.switch).expect("netlink");
        let port = netlink.link(&port(host + 1)).await.expect("listed").expect("there");
        netlink.set_up(port.index, !cut, None).await.expect("set");
    }

    async fn move_host(&mut self, host: usize, to: &str) {
        let to: Prefix = to.parse().expect("a prefix");
        let host = &mut self.hosts[host];
        let netlink = Netlink::in_namespace(&host.namespace).expect("netlink");
        let index = netlink.link("eth0").await.expect("listed").expect("there").index;
        netlink.del_address(index, host.addr).await.expect("removed");
        netlink.add_address(index, to, AddressOptions::default()).await.expect("added");
        host.addr = to;
    }

    /// Asks a server for the address of a name, from a socket of a host.
    fn resolve(&self, host: usize, server: SocketAddr, name: &str) -> Option<Ipv6Addr> {
        let mut query = Message::new(7, MessageType::Query, OpCode::Query);
        query.add_query(Query::query(Name::from_str(name).ok()?, RecordType::AAAA));
        let any: SocketAddr =
            if server.is_ipv6() { ([0_u16; 8], 0).into() } else { ([0, 0, 0, 0], 0).into() };
        let socket = self.hosts[host].namespace.run(|| UdpSocket::bind(any)).ok()?.ok()?;
        socket.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        socket.send_to(&query.to_vec().ok()?, server).ok()?;
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).ok()?;
        let answer = Message::from_vec(&buffer[..length]).ok()?.answers.pop()?;
        answer.data.to_string().parse().ok()
    }

    fn run(&self, host: usize, program: &str, args: &[&str]) -> Output {
        let mut command = self.hosts[host].namespace.command(program);
        command.args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"))
    }

    fn path(&self, host: usize, part: &str) -> PathBuf {
        Path::join(self.folder.path(), format!("{host}.{part}"))
    }

    fn log(&self, host: usize) -> PathBuf {
        self.path(host, "log")
    }

    fn read_log(&self, host: usize) -> String {
        std::fs::read_to_string(self.log(host)).unwrap_or_default()
    }
}

/// The switch's interface towards a host.
fn port(number: usize) -> String {
    format!("p{number}")
}

/// Connects a namespace to the switch.
async fn plug(netlink: &Netlink, bridge: u32, namespace: &Ephemeral, number: u8) {
    let port = port(number.into());
    let veth = NewLink::Veth { peer: "eth0", namespace: Some(namespace) };
    netlink.add_link(&port, &veth).await.expect("a pair of interfaces");
    let index = netlink.link(&port).await.expect("listed").expect("just made").index;
    netlink.set_master(index, Some(bridge)).await.expect("in the bridge");
    netlink.set_up(index, true, None).await.expect("up");
}

async fn address(namespace: &Ephemeral, addr: Prefix) {
    let netlink = Netlink::in_namespace(namespace).expect("netlink");
    for name in ["lo", "eth0"] {
        let index = netlink.link(name).await.expect("listed").expect("there").index;
        netlink.set_up(index, true, None).await.expect("up");
        if name == "eth0" {
            netlink.add_address(index, addr, AddressOptions::default()).await.expect("added");
        }
    }
}
