//! Hosts on one bridge, each a network namespace with an agent.

#![allow(dead_code, unreachable_pub, reason = "each of the files that use it uses a part")]

use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use selvedge_api::Client;
use selvedge_api::mesh::{CreateRequest, InviteRequest, JoinRequest, Mesh, Role};
use selvedge_host::netlink::{AddressOptions, Netlink, NewLink};
use selvedge_host::netns::{self, Ephemeral};
use selvedge_model::Prefix;
use tempfile::TempDir;
use tokio::time::sleep;

/// All hosts.
pub struct Lab {
    folder: TempDir,
    pub hosts: Vec<Host>,
    switch: Ephemeral,
}

pub struct Host {
    pub namespace: Ephemeral,
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
    pub async fn new(tag: &str, hosts: u8) -> Option<Self> {
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

    pub async fn start_all(&mut self) {
        for host in 0..self.hosts.len() {
            self.start(host).await;
        }
    }

    /// Starts the agent of a host and waits until it answers.
    pub async fn start(&mut self, host: usize) {
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

    pub fn kill(&mut self, host: usize) {
        stop(&mut self.hosts[host].agent);
    }

    /// Host 0 founds a mesh, the others join.
    pub async fn form(&self, name: &str) -> Mesh {
        let others: Vec<_> = (1..self.hosts.len()).map(|host| (host, None)).collect();
        self.form_of(name, 0, &others).await
    }

    /// A host founds a mesh, the others join in the roles that they ask for.
    pub async fn form_of(
        &self,
        name: &str,
        founder: usize,
        others: &[(usize, Option<Role>)],
    ) -> Mesh {
        let request = CreateRequest { name: name.to_owned(), ..CreateRequest::default() };
        let mesh = self.client(founder).create_mesh(&request).await.expect("founded");
        let request = InviteRequest { uses: 10, expires_s: 600, ..InviteRequest::default() };
        let token = self.client(founder).invite(name, &request).await.expect("invited").token;
        for (host, role) in others.iter().copied() {
            let request = JoinRequest { token: token.clone(), role, ..JoinRequest::default() };
            let joined = self.client(host).join_mesh(&request).await;
            joined.unwrap_or_else(|error| panic!("{error}\n{}", self.read_log(host)));
        }
        for host in others.iter().map(|(host, _)| *host).chain([founder]) {
            self.sees(host, name, others.len() + 1).await;
        }
        mesh
    }

    /// Writes what the agent of a host is started with.
    pub fn configure(&self, host: usize, text: &str) {
        std::fs::write(self.path(host, "toml"), text).expect("writes");
    }

    /// Another namespace behind a host, on a link of its own: the host's end is `eth1`, and has
    /// the first of each pair of addresses, this one's end is `eth0`, and has the second.
    pub async fn behind(&self, host: usize, tag: &str, links: &[(&str, &str)]) -> Ephemeral {
        let name = format!("svmesh-{}-{tag}-behind", std::process::id());
        let namespace = Ephemeral::create(&name).expect("a namespace");
        let near = Netlink::in_namespace(&self.hosts[host].namespace).expect("netlink");
        let veth = NewLink::Veth { peer: "eth0", namespace: Some(&namespace) };
        near.add_link("eth1", &veth).await.expect("a pair of interfaces");
        let far = Netlink::in_namespace(&namespace).expect("netlink");
        let options = AddressOptions { no_dad: true, no_prefix_route: false };
        for (netlink, name, at) in [(&near, "eth1", 0), (&far, "eth0", 1)] {
            let index = netlink.link(name).await.expect("listed").expect("there").index;
            netlink.set_up(index, true, None).await.expect("up");
            for link in links {
                let addr = [link.0, link.1][at].parse().expect("a prefix");
                netlink.add_address(index, addr, options).await.expect("added");
            }
        }
        namespace
    }

    pub async fn sees(&self, host: usize, mesh: &str, members: usize) {
        let deadline = Instant::now() + Duration::from_secs(15);
        while self.show(host, mesh).await.members.len() != members {
            assert!(Instant::now() < deadline, "host {host}:\n{}", self.read_log(host));
            sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn addresses(&self, mesh: &str) -> Vec<Ipv6Addr> {
        let mut addresses = Vec::new();
        for host in 0..self.hosts.len() {
            addresses.push(self.show(host, mesh).await.address);
        }
        addresses
    }

    pub async fn show(&self, host: usize, mesh: &str) -> Mesh {
        self.client(host).mesh(mesh).await.expect("it is a member")
    }

    pub fn client(&self, host: usize) -> Client {
        Client::new(self.path(host, "sock"))
            .expect("a client")
            .with_timeout(Duration::from_secs(30))
    }

    /// Pings until an answer comes, for a minute at most.
    pub async fn pings(&self, from: usize, to: impl Into<IpAddr>, payload: &str) {
        let (deadline, to) = (Instant::now() + Duration::from_secs(60), to.into());
        while !self.ping(from, to, payload) {
            assert!(Instant::now() < deadline, "{from} cannot ping {to}:\n{}", self.read_log(from));
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// One ping that must not be fragmented.
    pub fn ping(&self, from: usize, to: impl Into<IpAddr>, payload: &str) -> bool {
        let to = to.into().to_string();
        self.run(from, "ping", &["-n", "-c1", "-W1", "-Mdo", "-s", payload, &to]).status.success()
    }

    /// The routes by members of a host.
    pub fn routes(&self, host: usize) -> String {
        let table = |family, table| self.ip(host, &format!("{family} route show table {table}"));
        let both = |number| table("-4", number) + &table("-6", number);
        both(5021) + &both(5022)
    }

    /// What `ip` prints on a host.
    pub fn ip(&self, host: usize, args: &str) -> String {
        let args: Vec<&str> = args.split_whitespace().collect();
        String::from_utf8(self.run(host, "ip", &args).stdout).expect("text")
    }

    pub fn has_interface(&self, host: usize, name: &str) -> bool {
        self.run(host, "ip", &["link", "show", "dev", name]).status.success()
    }

    /// Takes the carrier from a host, or gives it back.
    pub async fn cut(&self, host: usize, cut: bool) {
        let netlink = Netlink::in_namespace(&self.switch).expect("netlink");
        let port = netlink.link(&port(host + 1)).await.expect("listed").expect("there");
        netlink.set_up(port.index, !cut, None).await.expect("set");
    }

    pub async fn move_host(&mut self, host: usize, to: &str) {
        let to: Prefix = to.parse().expect("a prefix");
        let host = &mut self.hosts[host];
        let netlink = Netlink::in_namespace(&host.namespace).expect("netlink");
        let index = netlink.link("eth0").await.expect("listed").expect("there").index;
        netlink.del_address(index, host.addr).await.expect("removed");
        netlink.add_address(index, to, AddressOptions::default()).await.expect("added");
        host.addr = to;
    }

    /// Asks a server for the address of a name, from a socket of a host.
    pub fn resolve(&self, host: usize, server: SocketAddr, name: &str) -> Option<Ipv6Addr> {
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

    pub fn run(&self, host: usize, program: &str, args: &[&str]) -> Output {
        let mut command = self.hosts[host].namespace.command(program);
        command.args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"))
    }

    pub fn path(&self, host: usize, part: &str) -> PathBuf {
        Path::join(self.folder.path(), format!("{host}.{part}"))
    }

    fn log(&self, host: usize) -> PathBuf {
        self.path(host, "log")
    }

    pub fn read_log(&self, host: usize) -> String {
        std::fs::read_to_string(self.log(host)).unwrap_or_default()
    }

    /// What all agents have written.
    pub fn logs(&self) -> String {
        let of = |host| format!("--- host {host}\n{}", self.read_log(host));
        (0..self.hosts.len()).map(of).collect()
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
