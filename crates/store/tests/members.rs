//! How soon the client of an etcd of three members notices that one is lost, and goes on.

mod support;

use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use selvedge_gateway::kv::{
    Batch, Compare, Health, LeaseId, Op, Revision, StoreError, Txn, TxnReply,
};
use selvedge_store::Store;
use selvedge_store::etcd::{EtcdConfig, EtcdStore};
use selvedge_store::supervisor::{Input, Supervisor};
use support::{Cluster, Mode, Proxy, black_hole, etcd_is_there};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

/// Tells a client that hangs from a busy machine.
const SOON: Duration = Duration::from_millis(1500);
/// An election takes one or two seconds, on a busy machine several of them.
const ELECTED: Duration = Duration::from_secs(15);
const PATIENCE: Duration = Duration::from_millis(100);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_tells_whether_a_leader_answers() {
    if !etcd_is_there("members::health_tells_whether_a_leader_answers") {
        return;
    }
    let cluster = Cluster::start(3).await;
    let store = client(cluster.urls()).await;
    let all = Health { members: 3, answering: 3, led: true };
    eventually(&store, |health| *health == all).await;
    let leader = cluster.leader().await;
    cluster.members[leader].signal(Signal::SIGSTOP);
    let asked = Instant::now();
    let health = store.health(PATIENCE).await;
    let took = asked.elapsed();
    assert!(took < PATIENCE * 10, "{took:?}");
    figure("leaderless seen", took);
    assert!(!health.led && !health.is_whole(), "the leader is stopped: {health:?}");
    // A follower may be late, the machine being busy, but the leader is no more.
    eventually(&store, |health| health.is_leaderless()).await;
    eventually(&store, |health| health.is_whole()).await;
    let health = store.health(SOON).await;
    assert_eq!(health, Health { members: 3, answering: 2, led: true });
    cluster.members[leader].signal(Signal::SIGCONT);
    eventually(&store, |health| *health == all).await;
    // Fewer endpoints than members: the leader cannot be asked, and is believed in.
    let follower = (cluster.leader().await + 1) % 3;
    let one = client(vec![cluster.urls()[follower].clone()]).await;
    let expected = Health { members: 3, answering: 1, led: true };
    eventually(&one, |health| *health == expected).await;
}

#[tokio::test]
async fn health_is_told_in_time_whoever_is_silent() {
    let (hole, _kept) = black_hole().await;
    let store = client(vec![format!("http://{hole}"), "http://127.0.0.1:1".to_owned()]).await;
    for _ in 0..30 {
        let asked = Instant::now();
        let health = store.health(PATIENCE).await;
        assert!(asked.elapsed() < PATIENCE * 10, "{:?}", asked.elapsed());
        assert_eq!(health, Health { members: 2, answering: 0, led: false });
        assert!(!health.is_leaderless(), "who sees nobody knows nothing");
    }
}

/// The member that serves the client is stopped; it is not the leader. Everything goes on with
/// another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_follower_holds_nothing_up() {
    if !etcd_is_there("members::a_silent_follower_holds_nothing_up") {
        return;
    }
    let cluster = Cluster::start(3).await;
    for call in ["txn", "read", "grant", "keep_alive", "watch"] {
        let victim = (cluster.leader().await + 1) % 3;
        let mut urls = cluster.urls();
        urls.rotate_left(victim);
        let store = client(urls).await;
        let other = client(vec![cluster.urls()[(victim + 1) % 3].clone()]).await;
        let begin = write(&store, &format!("/m/{call}/1")).await.expect("all are there").revision;
        let lease = store.grant(Duration::from_secs(60)).await.expect("all are there");
        let mut watch = store.watch(&[format!("/m/{call}/")], begin).await.expect("all are there");
        sleep(Duration::from_millis(300)).await;
        cluster.members[victim].signal(Signal::SIGSTOP);
        let stopped = Instant::now();
        match call {
            "txn" => {
                let reply = write(&store, "/m/txn/2").await.expect("two members are there");
                assert!(reply.committed);
            }
            "read" => drop(store.read(&["/m/".to_owned()]).await.expect("two are there")),
            "grant" => drop(store.grant(Duration::from_secs(60)).await.expect("two are there")),
            "keep_alive" => store.keep_alive(lease).await.expect("two are there"),
            _ => {
                let written = write(&other, "/m/watch/2").await.expect("two are there").revision;
                until(&mut watch, written).await;
            }
        }
        let took = stopped.elapsed();
        figure(&format!("{call} after the loss of the member in use"), took);
        assert!(took < SOON, "{call}: {took:?}");
        cluster.members[victim].signal(Signal::SIGCONT);
        settle(&cluster).await;
    }
}

/// The leader is stopped, and the client used it. As soon as there is a new one, calls that were
/// begun before are answered, and the watch goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_go_on_with_the_new_leader() {
    if !etcd_is_there("members::calls_go_on_with_the_new_leader") {
        return;
    }
    let cluster = Cluster::start(3).await;
    for shift in [0, 1] {
        let leader = cluster.leader().await;
        let mut urls = cluster.urls();
        urls.rotate_left((leader + shift) % 3);
        let mut config = EtcdConfig::new(urls.clone());
        config.timeout = ELECTED;
        let store = EtcdStore::new(config).await.expect("right URLs");
        let begin = write(&store, &format!("/n/{shift}/1")).await.expect("all are there").revision;
        let mut watch = store.watch(&["/n/".to_owned()], begin).await.expect("all are there");
        sleep(Duration::from_millis(300)).await;
        cluster.members[leader].signal(Signal::SIGSTOP);
        let written = {
            let store = store.clone();
            let key = format!("/n/{shift}/2");
            tokio::spawn(async move { (write(&store, &key).await, Instant::now()) })
        };
        let witness = client(urls).await;
        eventually(&witness, |health| health.is_leaderless()).await;
        while !witness.health(Duration::from_millis(20)).await.is_whole() {}
        let elected = Instant::now();
        let (reply, at) = written.await.expect("it runs");
        figure(&format!("txn after the election, shift {shift}"), at - elected);
        assert!(at - elected < SOON, "{:?}", at - elected);
        until(&mut watch, reply.expect("there is a leader").revision).await;
        figure(&format!("watch after the election, shift {shift}"), elected.elapsed());
        assert!(elected.elapsed() < SOON, "{:?}", elected.elapsed());
        cluster.members[leader].signal(Signal::SIGCONT);
        settle(&cluster).await;
    }
}

/// All members are away for longer than the lease lives. It is still there when they are back,
/// and its keys with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_outlives_the_absence_of_the_store() {
    if !etcd_is_there("members::a_lease_outlives_the_absence_of_the_store") {
        return;
    }
    let mut cluster = Cluster::start(3).await;
    let store = Arc::new(client(cluster.urls()).await);
    let (sender, mut inputs) = mpsc::channel(1024);
    let ttl = Duration::from_secs(5);
    let supervisor = Supervisor::spawn(store.clone(), vec!["/l/".to_owned()], ttl, sender);
    let lease = granted(&mut inputs).await;
    let bound = Op::Put { key: "/l/live".to_owned(), value: vec![], lease: Some(lease) };
    let txn = Txn { compare: Vec::new(), then: vec![bound] };
    store.txn(txn).await.expect("all are there");
    for member in &mut cluster.members {
        member.kill();
    }
    sleep(ttl * 2).await;
    for member in &mut cluster.members {
        member.start();
    }
    eventually(&store, |health| health.is_whole()).await;
    // Long enough for the lease to end if nobody kept it alive.
    sleep(ttl * 2).await;
    let keys = store.read(&["/l/".to_owned()]).await.expect("all are back").keys;
    assert_eq!(keys.iter().map(|kv| kv.lease).collect::<Vec<_>>(), [Some(lease)]);
    while let Ok(input) = inputs.try_recv() {
        assert!(!matches!(input, Input::Lease(_) | Input::LeaseLost), "{input:?}");
    }
    assert_eq!(supervisor.detach().await, Some(lease));
}

/// Anybody may keep a lease alive, or end it.
#[tokio::test]
async fn leases_of_others_are_kept_and_ended() {
    if !etcd_is_there("members::leases_of_others_are_kept_and_ended") {
        return;
    }
    let cluster = Cluster::start(1).await;
    let (owner, other) = (client(cluster.urls()).await, client(cluster.urls()).await);
    let lease = owner.grant(Duration::from_secs(2)).await.expect("granted");
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(6) {
        other.keep_alive(lease).await.expect("it is kept alive");
        sleep(Duration::from_millis(400)).await;
    }
    owner.keep_alive(lease).await.expect("another client kept it");
    other.revoke(lease).await.expect("it is there");
    for store in [&owner, &other] {
        assert_eq!(store.keep_alive(lease).await, Err(StoreError::NoLease(lease)));
        assert_eq!(store.revoke(lease).await, Err(StoreError::NoLease(lease)));
    }
}

/// The answers of the member in use are lost on the way. What was asked is done once: the lease
/// that is reported is the only one, and a guarded transaction that is sent again changes nothing
/// more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_repeated_is_done_once() {
    if !etcd_is_there("members::what_is_repeated_is_done_once") {
        return;
    }
    let cluster = Cluster::start(1).await;
    let url = cluster.members[0].url.clone();
    let proxy = Proxy::start(cluster.members[0].address).await;
    let store = client(vec![format!("http://{}", proxy.address), url.clone()]).await;
    let begin = write(&store, "/o/1").await.expect("the proxy forwards").revision;
    proxy.set(Mode::Deafen);
    let reply = write(&store, "/o/2").await.expect("the other endpoint answers");
    assert_eq!(reply.revision, Revision(begin.0 + 1), "it was done once");
    assert!(!reply.committed, "the repetition found it done");
    proxy.set(Mode::Close);
    proxy.set(Mode::Forward);
    let store = client(vec![format!("http://{}", proxy.address), url.clone()]).await;
    store.read(&["/o/".to_owned()]).await.expect("the proxy forwards");
    proxy.set(Mode::Deafen);
    let lease = store.grant(Duration::from_secs(60)).await.expect("the other endpoint answers");
    let mut direct = etcd_client::Client::connect([url], None).await.expect("a URL");
    let leases = direct.leases().await.expect("it answers");
    let ids: Vec<_> = leases.leases().iter().map(|status| LeaseId(status.id())).collect();
    assert_eq!(ids, [lease]);
}

async fn client(urls: Vec<String>) -> EtcdStore {
    EtcdStore::new(EtcdConfig::new(urls)).await.expect("right URLs")
}

/// Creates a key.
async fn write(store: &EtcdStore, key: &str) -> Result<TxnReply, StoreError> {
    let compare = vec![Compare::Absent { key: key.to_owned() }];
    let then = vec![Op::Put { key: key.to_owned(), value: vec![], lease: None }];
    store.txn(Txn { compare, then }).await
}

async fn eventually(store: &EtcdStore, holds: impl Fn(&Health) -> bool) {
    let deadline = Instant::now() + ELECTED;
    loop {
        let health = store.health(PATIENCE).await;
        if holds(&health) {
            return;
        }
        assert!(Instant::now() < deadline, "{health:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until all members answer and follow a leader.
async fn settle(cluster: &Cluster) {
    let store = client(cluster.urls()).await;
    eventually(&store, |health| health.led && health.answering == 3).await;
}

/// Waits until a watch has reported everything up to `revision`.
async fn until(watch: &mut mpsc::Receiver<Result<Batch, StoreError>>, revision: Revision) {
    loop {
        let item = timeout(ELECTED, watch.recv()).await.expect("it comes in time");
        let batch = item.expect("the reason comes before the end").expect("it goes on");
        if batch.revision >= revision {
            return;
        }
    }
}

async fn granted(inputs: &mut mpsc::Receiver<Input>) -> LeaseId {
    loop {
        let input = timeout(ELECTED, inputs.recv()).await.expect("it comes in time");
        if let Input::Lease(lease) = input.expect("the supervisor runs") {
            return lease;
        }
    }
}

/// Shows a figure for the documentation, with `--nocapture`.
#[expect(clippy::print_stdout, reason = "the figures are for who asks for them")]
fn figure(what: &str, took: Duration) {
    println!("{what}: {} ms", took.as_millis());
}
