//! Mesh planes in this process that touch no interface: requests, state on disk, bad input.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use selvedge::config::{MeshConfig, MeshOptions, OptionsByMesh, WireGuard};
use selvedge::mesh_plane::{MeshHandle, spawn};
use selvedge_api::mesh::{CreateRequest, EditRequest, InviteRequest, JoinRequest, Mesh, Role};
use selvedge_api::{Code, Error};
use selvedge_model::Prefix;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

struct Node {
    name: &'static str,
    folder: TempDir,
    /// The same after a restart.
    listen: SocketAddr,
    bootstrap: Vec<String>,
    record: Option<PathBuf>,
    options: OptionsByMesh,
    running: Option<(MeshHandle, JoinHandle<()>, CancellationToken)>,
}

impl Node {
    async fn start(name: &'static str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let free = UdpSocket::bind((LOOPBACK, 0)).and_then(|socket| socket.local_addr());
        let listen = free.expect("a free port");
        let (bootstrap, record) = (Vec::new(), None);
        let base = MeshOptions { endpoints: vec![LOOPBACK.into()], ..MeshOptions::default() };
        let options = OptionsByMesh { base, ..OptionsByMesh::default() };
        let mut node = Self { name, folder, listen, bootstrap, record, options, running: None };
        node.run().await.expect("the plane starts");
        node
    }

    async fn run(&mut self) -> anyhow::Result<()> {
        let config = MeshConfig {
            name: self.name.parse()?,
            state: self.folder.path().to_owned(),
            listen: self.listen,
            bootstrap: self.bootstrap.clone(),
            record: self.record.clone(),
            wireguard: WireGuard::Dry,
            options: self.options.clone(),
            dns: None,
        };
        let shutdown = CancellationToken::new();
        let (handle, task) = spawn(config, shutdown.clone()).await?;
        self.running = Some((handle, task, shutdown));
        Ok(())
    }

    async fn stop(&mut self) {
        let (_, task, shutdown) = self.running.take().expect("it runs");
        shutdown.cancel();
        task.await.expect("an orderly end");
    }

    async fn restart(&mut self) {
        self.stop().await;
        self.run().await.expect("the plane starts again");
    }

    fn handle(&self) -> &MeshHandle {
        &self.running.as_ref().expect("it runs").0
    }

    async fn create(&self, name: &str) -> Mesh {
        let request = CreateRequest { name: name.to_owned(), ..CreateRequest::default() };
        self.handle().create(request).await.expect("founded")
    }

    async fn token(&self, mesh: &str, uses: u32) -> String {
        let request = InviteRequest { uses, expires_s: 3600, ..InviteRequest::default() };
        self.handle().invite(mesh, request).await.expect("invited").token
    }

    async fn join(&self, token: &str) -> Result<Mesh, Error> {
        let request = JoinRequest { token: token.to_owned(), ..JoinRequest::default() };
        self.handle().join(request).await
    }

    async fn show(&self, mesh: &str) -> Mesh {
        self.handle().show(mesh).await.expect("it is there")
    }

    /// Waits until the mesh has so many members here.
    async fn sees(&self, mesh: &str, members: usize) {
        let deadline = Instant::now() + Duration::from_secs(15);
        // Packets follow a moment after the news.
        let seen = |mesh: &Mesh| {
            let linked = mesh.members.iter().filter(|it| it.own || !it.allowed_ips.is_empty());
            (mesh.members.len(), linked.count()) == (members, members)
        };
        while !seen(&self.show(mesh).await) {
            assert!(Instant::now() < deadline, "{} never saw {members} members", self.name);
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn mesh_files(&self) -> Vec<PathBuf> {
        files(&self.folder.path().join("mesh"))
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("readable").path()).collect();
    // The daemon may be writing one anew at this moment.
    paths.retain(|path| path.extension().is_none_or(|extension| extension != "tmp"));
    paths.sort();
    paths
}

/// What must survive a restart.
fn lasting(mesh: &Mesh) -> impl PartialEq + std::fmt::Debug + use<> {
    let members: Vec<_> =
        mesh.members.iter().map(|m| (m.node, m.address, m.wg_key, m.alias.clone())).collect();
    (
        mesh.id,
        mesh.node,
        mesh.address,
        mesh.prefix,
        mesh.listen_port,
        mesh.interface.clone(),
        members,
    )
}

#[tokio::test]
async fn three_nodes_form_a_mesh_and_one_leaves() {
    let (a, b, c) = (Node::start("a").await, Node::start("b").await, Node::start("c").await);
    let mesh = a.create("campus").await;
    let token = a.token("campus", 2).await;
    let joined = b.join(&token).await.expect("joined");
    assert_eq!((joined.id, joined.members.len()), (mesh.id, 2));
    c.join(&token).await.expect("joined");
    for node in [&a, &b, &c] {
        node.sees("campus", 3).await;
    }
    let shown = b.show("campus").await;
    let aliases: Vec<_> = shown.members.iter().filter_map(|member| member.alias.clone()).collect();
    assert!(["a", "b", "c"].iter().all(|name| aliases.iter().any(|alias| alias == name)));
    let other = shown.members.iter().find(|member| !member.own).expect("two others");
    assert!(shown.prefix.contains(other.address.into()));
    assert_eq!(other.allowed_ips[0].to_string(), format!("{}/128", other.address));
    c.handle().leave("campus").await.expect("left");
    assert!(c.mesh_files().is_empty());
    for node in [&a, &b] {
        node.sees("campus", 2).await;
    }
    let list = c.handle().list().await.expect("listed");
    assert!(list.is_empty());
}

#[tokio::test]
async fn who_left_can_come_back() {
    let (a, b) = (Node::start("a").await, Node::start("b").await);
    a.create("campus").await;
    let token = a.token("campus", 2).await;
    b.join(&token).await.expect("joined");
    b.handle().leave("campus").await.expect("left");
    a.sees("campus", 1).await;
    b.join(&token).await.expect("joined again");
    a.sees("campus", 2).await;
    b.sees("campus", 2).await;
}

/// Waits until the node knows that it is out.
async fn learns_of_its_eviction(node: &Node) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while node.show("campus").await.evicted.is_none() {
        assert!(Instant::now() < deadline, "{} never heard of it", node.name);
        sleep(Duration::from_millis(50)).await;
    }
    let listed = node.handle().list().await.expect("a list");
    assert!(listed.iter().all(|mesh| mesh.evicted));
}

#[tokio::test]
async fn members_admit_with_what_they_may_and_who_is_evicted_stays_out() {
    let (a, b, c) = (Node::start("a").await, Node::start("b").await, Node::start("c").await);
    let mut d = Node::start("d").await;
    let founder = a.create("campus").await.node;
    let wide: Vec<Prefix> = vec!["10.0.0.0/8".parse().expect("a prefix")];
    let narrow: Vec<Prefix> = vec!["10.7.0.0/16".parse().expect("a prefix")];
    let terms = |allow: &[Prefix], may_invite| InviteRequest {
        uses: 5,
        expires_s: 3600,
        allow: allow.to_vec(),
        may_invite,
        ..InviteRequest::default()
    };
    let invite = a.handle().invite("campus", terms(&wide, true)).await.expect("the founder may");
    let inviter = b.join(&invite.token).await.expect("admitted").node;
    let error = b.handle().invite("campus", terms(&wide, true)).await.expect_err("too much");
    assert_eq!(error.code, Code::Conflict);
    let guest = b.handle().invite("campus", terms(&narrow, false)).await.expect("it may");
    let node = c.join(&guest.token).await.expect("admitted").node;
    a.sees("campus", 3).await;
    let shown = a.show("campus").await;
    let member = shown.members.iter().find(|member| member.node == node).expect("shown");
    assert_eq!((member.admission.by, &member.admission.allowed), (Some(inviter), &narrow));
    // One that hears of it at once, and one that is away.
    d.join(&a.token("campus", 1).await).await.expect("admitted");
    for other in [&a, &b, &c] {
        other.sees("campus", 4).await;
    }
    let away = d.show("campus").await.node;
    d.stop().await;
    let error = c.handle().evict("campus", &founder.to_string()).await.expect_err("it may not");
    assert_eq!(error.code, Code::Conflict);
    let error = b.handle().evict("campus", "d").await.expect_err("it did not admit it");
    assert!(error.message.contains("admitted by another"), "{error}");
    let unknown = a.handle().evict("campus", "nobody").await.expect_err("unknown");
    assert_eq!(unknown.code, Code::NotFound);
    let error = b.handle().eviction("campus", "d").await.expect_err("nor could it");
    assert!(error.message.contains("admitted by another"), "{error}");
    let would = a.handle().eviction("campus", "b").await.expect("the founder may");
    let mut gone = vec![inviter, node];
    gone.sort_unstable();
    assert_eq!((would.node, would.gone), (inviter, gone));
    a.sees("campus", 4).await;
    let evicted = b.handle().evict("campus", "c").await.expect("it admitted it");
    assert_eq!((evicted.node, evicted.gone), (node, vec![node]));
    a.handle().evict("campus", "d").await.expect("the founder may");
    for other in [&a, &b] {
        other.sees("campus", 2).await;
    }
    learns_of_its_eviction(&c).await;
    d.run().await.expect("it starts again");
    learns_of_its_eviction(&d).await;
    // Back with a new invite, after it has left what it is no member of.
    d.handle().leave("campus").await.expect("left");
    let back = d.join(&a.token("campus", 1).await).await.expect("admitted again");
    assert_eq!(back.node, away);
    a.sees("campus", 3).await;
    assert!(d.show("campus").await.evicted.is_none());
}

#[tokio::test]
async fn a_restart_keeps_everything_with_nobody_else_there() {
    let (mut a, mut b) = (Node::start("a").await, Node::start("b").await);
    a.create("campus").await;
    a.create("other").await;
    let token = a.token("campus", 1).await;
    b.join(&token).await.expect("joined");
    a.sees("campus", 2).await;
    let (at_a, at_b) = (a.show("campus").await, b.show("campus").await);
    a.stop().await;
    b.restart().await;
    assert_eq!(lasting(&b.show("campus").await), lasting(&at_b));
    b.stop().await;
    a.run().await.expect("it starts");
    assert_eq!(lasting(&a.show("campus").await), lasting(&at_a));
    assert_eq!(a.handle().list().await.expect("listed").len(), 2);
    b.run().await.expect("it starts");
    assert_eq!(lasting(&b.show("campus").await), lasting(&at_b));
    // They find each other again: what one says, the other hears.
    let c = Node::start("c").await;
    c.join(&a.token("campus", 1).await).await.expect("joined");
    b.sees("campus", 3).await;
}

#[tokio::test]
async fn who_moved_while_the_other_was_away_is_found_by_bootstrap() {
    let (mut a, mut b) = (Node::start("a").await, Node::start("b").await);
    a.create("campus").await;
    b.join(&a.token("campus", 1).await).await.expect("joined");
    a.sees("campus", 2).await;
    b.stop().await;
    a.stop().await;
    // No address that is on disk leads anywhere now.
    let free = UdpSocket::bind((LOOPBACK, 0)).and_then(|socket| socket.local_addr());
    let others = a.listen;
    a.listen = free.expect("a free port");
    assert_ne!(a.listen, others);
    a.run().await.expect("it starts");
    let free = UdpSocket::bind((LOOPBACK, 0)).and_then(|socket| socket.local_addr());
    b.listen = free.expect("a free port");
    b.bootstrap = vec!["127.0.0.1:9".to_owned(), format!("localhost:{}", a.listen.port())];
    b.run().await.expect("it starts");
    let request = EditRequest { alias: Some("found".to_owned()), ..EditRequest::default() };
    b.handle().edit("campus", request).await.expect("said");
    let deadline = Instant::now() + Duration::from_secs(120);
    let found = |mesh: &Mesh| mesh.members.iter().any(|m| m.alias.as_deref() == Some("found"));
    while !found(&a.show("campus").await) {
        assert!(Instant::now() < deadline, "it was not found");
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn what_the_core_is_told_is_recorded() {
    let mut a = Node::start("a").await;
    a.create("campus").await;
    a.stop().await;
    let log = a.folder.path().join("campus.log");
    a.record = Some(log.clone());
    a.run().await.expect("it starts");
    let b = Node::start("b").await;
    b.join(&a.token("campus", 1).await).await.expect("joined");
    a.sees("campus", 2).await;
    a.stop().await;
    let mode = std::fs::metadata(&log).expect("written").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let replayed = selvedge_mesh::journal::replay(&std::fs::read(&log).expect("readable"));
    let replayed = replayed.expect("a log that replays");
    assert!(replayed.inputs > 2 && !replayed.cut);
    assert_eq!(replayed.mesh.members().count(), 2);
}

#[tokio::test]
async fn a_use_of_an_invite_counts_over_restarts() {
    let mut a = Node::start("a").await;
    let (b, c) = (Node::start("b").await, Node::start("c").await);
    a.create("campus").await;
    let token = a.token("campus", 1).await;
    b.join(&token).await.expect("joined");
    a.restart().await;
    let error = c.join(&token).await.expect_err("used up");
    assert!(error.message.contains("used up: 1 of 1"), "{error}");
    assert_eq!(error.code, Code::Invalid);
    assert!(c.mesh_files().is_empty(), "nothing is left behind");
}

#[tokio::test]
async fn bad_tokens_are_told_apart() {
    let (a, b) = (Node::start("a").await, Node::start("b").await);
    let mesh = a.create("campus").await;
    let token = a.token("campus", 1).await;
    for (bad, expected) in [
        (&token[..token.len() / 2], "incomplete or damaged"),
        ("svm9abc", "version 9"),
        ("hello", "not an invite token"),
        ("", "not an invite token"),
    ] {
        let error = b.join(bad).await.expect_err("refused");
        assert!(error.message.contains(expected), "{bad:?}: {error}");
        assert_eq!(error.code, Code::Invalid);
        assert!(error.hint.is_some());
    }
    let error = a.join(&token).await.expect_err("the founder is in it");
    assert!(error.message.contains("\"campus\"") && error.message.contains("already"), "{error}");
    assert_eq!(error.code, Code::Conflict);
    b.join(&token).await.expect("joined");
    let error = b.join(&token).await.expect_err("joined already");
    assert!(error.message.contains(&mesh.id.to_string()), "{error}");
    assert_eq!(error.code, Code::Conflict);
}

#[tokio::test]
async fn a_token_whose_issuer_left_says_so() {
    let (mut a, b) = (Node::start("a").await, Node::start("b").await);
    a.create("campus").await;
    let token = a.token("campus", 1).await;
    a.handle().leave("campus").await.expect("left");
    for _ in 0..2 {
        let error = b.join(&token).await.expect_err("nobody can redeem it");
        assert!(error.message.contains("not a member of the mesh"), "{error}");
        assert!(b.mesh_files().is_empty());
        // It says so still when it knows nothing of that mesh any more.
        a.restart().await;
    }
}

#[tokio::test]
async fn an_expired_token_says_when() {
    let (a, b) = (Node::start("a").await, Node::start("b").await);
    a.create("campus").await;
    let request = InviteRequest { uses: 1, expires_s: 0, ..InviteRequest::default() };
    let invite = a.handle().invite("campus", request).await.expect("invited");
    sleep(Duration::from_millis(2100)).await;
    let error = b.join(&invite.token).await.expect_err("expired");
    assert!(error.message.contains("the invite expired at 20"), "{error}");
    assert!(error.hint.is_some_and(|hint| hint.contains("clock")));
    let none = InviteRequest { uses: 0, expires_s: 60, ..InviteRequest::default() };
    let error = a.handle().invite("campus", none).await.expect_err("useless");
    assert_eq!(error.code, Code::Invalid);
}

#[tokio::test]
async fn an_unreachable_member_is_named_with_its_address() {
    let (mut a, b) = (Node::start("a").await, Node::start("b").await);
    let mesh = a.create("campus").await;
    let token = a.token("campus", 1).await;
    a.stop().await;
    let error = b.join(&token).await.expect_err("nobody there");
    assert_eq!(error.code, Code::Unavailable);
    assert!(error.message.contains(&mesh.node.to_string()), "{error}");
    assert!(error.message.contains("127.0.0.1:"), "{error}");
    assert!(b.mesh_files().is_empty(), "nothing is left behind");
    // It can try again, and does not join twice at a time.
    let (first, second) = tokio::join!(b.join(&token), b.join(&token));
    let codes = [first, second].map(|result| result.expect_err("nobody there").code);
    assert!(codes.contains(&Code::Conflict), "{codes:?}");
}

#[tokio::test]
async fn names_and_meshes_are_checked() {
    let a = Node::start("a").await;
    let mesh = a.create("campus").await;
    let create = |name: &str| {
        a.handle().create(CreateRequest { name: name.to_owned(), ..CreateRequest::default() })
    };
    assert_eq!(create("campus").await.expect_err("taken").code, Code::Conflict);
    assert_eq!(create("no/name").await.expect_err("malformed").code, Code::Invalid);
    let rude = CreateRequest {
        alias: Some("\u{1b}[2J".to_owned()),
        name: "x".to_owned(),
        ..CreateRequest::default()
    };
    assert_eq!(a.handle().create(rude).await.expect_err("malformed").code, Code::Invalid);
    assert_eq!(a.mesh_files().len(), 1);
    assert_eq!(a.handle().show("nowhere").await.expect_err("unknown").code, Code::NotFound);
    assert_eq!(a.handle().leave("nowhere").await.expect_err("unknown").code, Code::NotFound);
    assert_eq!(a.show(&mesh.id.to_string()[..8]).await.id, mesh.id);
}

#[tokio::test]
async fn the_port_is_the_first_ones_or_what_is_asked_for() {
    let mut a = Node::start("a").await;
    a.options.base.port = Some(51_820);
    a.restart().await;
    let create = |name: &str, port| {
        let request = CreateRequest { name: name.to_owned(), port, ..CreateRequest::default() };
        a.handle().create(request)
    };
    let (one, two) = tokio::join!(create("one", None), create("two", None));
    let ports = [one, two].map(|mesh| mesh.expect("founded").listen_port);
    assert_eq!(ports.iter().filter(|port| **port == 51_820).count(), 1, "{ports:?}");
    assert_eq!(create("three", Some(51_820)).await.expect_err("taken").code, Code::Conflict);
    assert_eq!(create("three", Some(51_823)).await.expect("founded").listen_port, 51_823);
    let named = MeshOptions { port: Some(51_824), ..a.options.base.clone() };
    a.options.named.insert("three".to_owned(), named);
    a.restart().await;
    let mesh = a.show("three").await;
    assert_eq!(mesh.listen_port, 51_824);
    let deadline = Instant::now() + Duration::from_secs(60);
    while a.show("three").await.members[0].endpoints[0].port() != 51_824 {
        assert!(Instant::now() < deadline, "it never said so");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_client_founds_no_mesh() {
    let mut a = Node::start("a").await;
    a.options.base.role = Some(Role::Client);
    a.restart().await;
    let request = CreateRequest { name: "campus".to_owned(), ..CreateRequest::default() };
    let error = a.handle().create(request).await.expect_err("refused");
    assert!(error.message.contains("a client"), "{error}");
    assert!(a.mesh_files().is_empty());
}

/// A mesh may run over another one of the node's, if that is configured.
#[tokio::test]
async fn configured_endpoints_in_another_overlay_are_announced() {
    let mut a = Node::start("a").await;
    let inner = a.create("inner").await.address;
    let named =
        MeshOptions { endpoints: vec![IpAddr::from(inner).into()], ..MeshOptions::default() };
    a.options.named.insert("outer".to_owned(), named);
    a.restart().await;
    a.create("outer").await;
    // Beyond the agent's first look at its addresses.
    a.restart().await;
    sleep(Duration::from_secs(1)).await;
    let outer = a.show("outer").await;
    let announced: Vec<_> = outer.members[0].endpoints.iter().map(SocketAddr::ip).collect();
    assert_eq!(announced, [IpAddr::from(inner)]);
}

#[tokio::test]
async fn a_damaged_mesh_is_kept_aside_and_the_others_live() {
    let mut a = Node::start("a").await;
    let damaged = a.create("damaged").await;
    a.create("sound").await;
    a.stop().await;
    let path = a.folder.path().join(format!("mesh/{}.state", damaged.id));
    let mut bytes = std::fs::read(&path).expect("it is there");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, &bytes).expect("writable");
    a.run().await.expect("the plane starts all the same");
    let names: Vec<_> =
        a.handle().list().await.expect("listed").into_iter().map(|mesh| mesh.name).collect();
    assert_eq!(names, ["sound"]);
    assert!(!path.exists());
    let aside =
        a.mesh_files().into_iter().find(|path| path.to_string_lossy().contains(".corrupt-"));
    assert_eq!(std::fs::read(aside.expect("kept aside")).expect("readable"), bytes);
}

#[tokio::test]
async fn a_damaged_identity_stops_the_start() {
    let mut a = Node::start("a").await;
    a.stop().await;
    let path = a.folder.path().join("identity.key");
    std::fs::write(&path, b"not a key").expect("writable");
    let error = format!("{:#}", a.run().await.expect_err("damaged"));
    assert!(error.contains("identity.key") && error.contains("damaged"), "{error}");
    assert_eq!(std::fs::read(&path).expect("left alone"), b"not a key");
}
