//! What the engines and the supervisor do when members die, fall silent, or say no.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use selvedge_gateway::kv::{
    Compare, Event, KeyValue, LeaseId, Op, Revision, StoreError, Txn, TxnReply,
};
use selvedge_store::Store;
use selvedge_store::embedded::{Address, EmbeddedStore, Listener, serve};
use selvedge_store::etcd::{EtcdConfig, EtcdStore, EtcdTls};
use selvedge_store::supervisor::{Input, Settings, Supervisor};
use support::{Cluster, Mode, Proxy, black_hole, etcd_is_there};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

const TTL: Duration = Duration::from_secs(4);

/// A member is killed, first a follower, then the leader. The client that uses it goes on, keeps
/// its lease, and sees every change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_members_that_die_cost_nothing_but_time() {
    if !etcd_is_there("faults::etcd_members_that_die_cost_nothing_but_time") {
        return;
    }
    let mut cluster = Cluster::start(3).await;
    let follower = (cluster.leader().await + 1) % 3;
    for leading in [false, true] {
        let leader = cluster.leader().await;
        let victim = if leading { leader } else { follower };
        // The victim is the endpoint that is preferred.
        let mut urls = cluster.urls();
        urls.rotate_left(victim);
        let store = etcd(urls).await;
        let mut gateway = Gateway::start(store.clone(), Duration::from_secs(5));
        let lease = gateway.ready().await;
        bind(&*store, "/selvedge/live/a", lease).await;
        let before = write(&*store, "/wmgwd/1").await;
        cluster.members[victim].kill();
        let killed = Instant::now();
        let after = write(&*store, "/wmgwd/2").await;
        let outage = killed.elapsed();
        assert!(after > before);
        // A client that waited for the dead would take its connection's time limits, 7 s and more;
        // an election has to be waited for.
        let limit = if leading { 12_000 } else { 4000 };
        assert!(outage < Duration::from_millis(limit), "{outage:?}, leading: {leading}");
        gateway.agrees(&*store).await;
        sleep(TTL).await;
        gateway.agrees(&*store).await;
        assert!(gateway.keys.contains_key("/selvedge/live/a"), "the lease was lost");
        gateway.end().await;
        cluster.members[victim].start();
        cluster.members[victim].wait().await;
    }
}

/// The process of a member is stopped: its connections stay open, and nothing answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_member_that_falls_silent_is_left() {
    if !etcd_is_there("faults::an_etcd_member_that_falls_silent_is_left") {
        return;
    }
    let cluster = Cluster::start(3).await;
    let victim = (cluster.leader().await + 1) % 3;
    let mut urls = cluster.urls();
    urls.rotate_left(victim);
    let store = etcd(urls.clone()).await;
    let mut gateway = Gateway::start(store.clone(), Duration::from_secs(5));
    let lease = gateway.ready().await;
    bind(&*store, "/selvedge/live/a", lease).await;
    cluster.members[victim].signal(Signal::SIGSTOP);
    let stopped = Instant::now();
    store.keep_alive(lease).await.expect("another member answers");
    let kept = stopped.elapsed();
    assert!(kept < Duration::from_millis(2500), "a keep-alive took {kept:?}");
    write(&*store, "/wmgwd/1").await;
    gateway.agrees(&*store).await;
    let seen = stopped.elapsed();
    assert!(seen < Duration::from_millis(5000), "the watch took {seen:?}");
    // A client that starts now does not wait for the silent one either.
    let begun = Instant::now();
    write(&*etcd(urls).await, "/wmgwd/2").await;
    assert!(begun.elapsed() < Duration::from_millis(2500), "{:?}", begun.elapsed());
    sleep(TTL).await;
    gateway.agrees(&*store).await;
    assert!(gateway.keys.contains_key("/selvedge/live/a"), "the lease was lost");
    cluster.members[victim].signal(Signal::SIGCONT);
    gateway.end().await;
}

#[tokio::test]
async fn an_endpoint_that_drops_packets_costs_a_moment() {
    if !etcd_is_there("faults::an_endpoint_that_drops_packets_costs_a_moment") {
        return;
    }
    let cluster = Cluster::start(1).await;
    let (hole, _kept) = black_hole().await;
    let store = etcd(vec![format!("http://{hole}"), cluster.members[0].url.clone()]).await;
    for limit in [Duration::from_millis(2500), Duration::from_millis(1000)] {
        let begun = Instant::now();
        store.read(&prefixes()).await.expect("the other endpoint answers");
        assert!(begun.elapsed() < limit, "{:?}", begun.elapsed());
    }
}

/// Without an answer the effect of a transaction is unknown, and the caller is told so in time.
#[tokio::test]
async fn a_transaction_without_an_answer_is_not_repeated() {
    if !etcd_is_there("faults::a_transaction_without_an_answer_is_not_repeated") {
        return;
    }
    let cluster = Cluster::start(1).await;
    let proxy = Proxy::start(cluster.members[0].address).await;
    let store =
        etcd(vec![format!("http://{}", proxy.address), cluster.members[0].url.clone()]).await;
    put(&*store, "/wmgwd/1").await.expect("the proxy forwards");
    proxy.set(Mode::Swallow);
    let begun = Instant::now();
    let result = put(&*store, "/wmgwd/2").await;
    assert!(matches!(result, Err(StoreError::Unavailable(_))), "{result:?}");
    assert!(begun.elapsed() < Duration::from_millis(4000), "{:?}", begun.elapsed());
    put(&*store, "/wmgwd/3").await.expect("the other endpoint is used by now");
    let keys = store.read(&prefixes()).await.expect("it answers").keys;
    let keys: Vec<_> = keys.iter().map(|kv| kv.key.as_str()).collect();
    assert_eq!(keys, ["/wmgwd/1", "/wmgwd/3"], "the second was sent to one endpoint only");
}

/// The watch is cut, swallowed, and overtaken by compaction, with etcd and the embedded store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_supervisor_bridges_what_a_connection_suffers() {
    let (address, _server) = embedded("tcp:127.0.0.1:0").await;
    let Address::Tcp(target) = address else { panic!("it is TCP") };
    let direct = Arc::new(EmbeddedStore::new(address));
    let proxy = Proxy::start(target).await;
    let store = Arc::new(EmbeddedStore::new(Address::Tcp(proxy.address)));
    let compact = async |revision| direct.compact(revision).await.expect("not compacted");
    suffer(store, &*direct, &proxy, compact).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_supervisor_bridges_what_a_connection_to_etcd_suffers() {
    if !etcd_is_there("faults::the_supervisor_bridges_what_a_connection_to_etcd_suffers") {
        return;
    }
    let cluster = Cluster::start(1).await;
    let proxy = Proxy::start(cluster.members[0].address).await;
    let direct = etcd(cluster.urls()).await;
    let store = etcd(vec![format!("http://{}", proxy.address)]).await;
    let client = etcd_client::Client::connect(cluster.urls(), None).await.expect("a URL");
    let compact = async |revision: Revision| {
        client.clone().compact(revision.0, None).await.expect("not compacted");
    };
    suffer(store, &*direct, &proxy, compact).await;
}

async fn suffer(
    store: Arc<dyn Store>,
    direct: &dyn Store,
    proxy: &Proxy,
    compact: impl AsyncFn(Revision),
) {
    let mut gateway = Gateway::start(store, Duration::from_secs(1));
    gateway.ready().await;
    write(direct, "/wmgwd/1").await;
    write(direct, "/selvedge/1").await;
    gateway.agrees(direct).await;
    for mode in [Mode::Close, Mode::Swallow] {
        let snapshots = gateway.snapshots;
        proxy.set(mode);
        for n in 0..20 {
            write(direct, &format!("/wmgwd/{n}")).await;
        }
        delete(direct, "/selvedge/1").await;
        proxy.set(Mode::Forward);
        gateway.agrees(direct).await;
        assert_eq!(gateway.snapshots, snapshots, "{mode:?}: it resumed after what it had seen");
        write(direct, "/selvedge/1").await;
    }
    proxy.set(Mode::Swallow);
    gateway.disconnected().await;
    let last = write(direct, "/wmgwd/2").await;
    compact(last).await;
    delete(direct, "/wmgwd/3").await;
    proxy.set(Mode::Forward);
    gateway.agrees(direct).await;
    assert!(gateway.snapshots > 1, "what was compacted was read anew");
    gateway.end().await;
}

#[tokio::test]
async fn etcd_asks_for_user_and_password() {
    if !etcd_is_there("faults::etcd_asks_for_user_and_password") {
        return;
    }
    let cluster = Cluster::start(1).await;
    enable_auth(&cluster.members[0].url).await;
    let with = async |auth: Option<(&str, &str)>| {
        let mut config = EtcdConfig::new(cluster.urls());
        config.auth = auth.map(|(user, password)| (user.to_owned(), password.to_owned()));
        EtcdStore::new(config).await.expect("one URL")
    };
    let refused = |result: Result<_, StoreError>| matches!(result, Err(StoreError::Refused(_)));
    assert!(refused(with(None).await.read(&prefixes()).await.map(drop)));
    assert!(refused(with(Some(("gateway", "wrong"))).await.read(&prefixes()).await.map(drop)));
    let store = with(Some(("gateway", "secret"))).await;
    let snapshot = store.read(&prefixes()).await.expect("permitted");
    let mut watch = store.watch(&prefixes(), snapshot.revision).await.expect("permitted");
    let lease = store.grant(TTL).await.expect("permitted");
    bind(&store, "/selvedge/live/a", lease).await;
    store.keep_alive(lease).await.expect("permitted");
    let item = timeout(Duration::from_secs(5), watch.recv()).await.expect("in time");
    assert_eq!(item.expect("open").expect("permitted").events.len(), 1);
    let elsewhere = put(&store, "/etc/passwd").await;
    assert!(matches!(elsewhere, Err(StoreError::Refused(_))), "{elsewhere:?}");
    let elsewhere = store.watch(&["/etc/".to_owned()], Revision(1)).await;
    let reason = elsewhere.expect_err("not permitted").to_string();
    assert!(reason.contains("permission denied"), "{reason}");
}

#[tokio::test]
async fn etcd_asks_for_certificates() {
    if !etcd_is_there("faults::etcd_asks_for_certificates") {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let certificates = Certificates::new();
    let file = |name: &str, pem: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, pem).expect("a temporary file");
        path.display().to_string()
    };
    let arguments = [
        format!("--cert-file={}", file("server.pem", &certificates.server.0)),
        format!("--key-file={}", file("server.key", &certificates.server.1)),
        format!("--trusted-ca-file={}", file("ca.pem", &certificates.ca)),
        "--client-cert-auth".to_owned(),
    ];
    let cluster = Cluster::start_with(1, "https", &arguments).await;
    let with = async |ca: &str, identity: Option<&(String, String)>| {
        let bytes = |pem: &String| pem.clone().into_bytes();
        let identity = identity.map(|(certificate, key)| (bytes(certificate), bytes(key)));
        let mut config = EtcdConfig::new(cluster.urls());
        config.tls = Some(EtcdTls { ca: ca.as_bytes().to_vec(), identity });
        EtcdStore::new(config).await.expect("certificates").read(&prefixes()).await
    };
    let client = Some(&certificates.client);
    assert_eq!(with(&certificates.ca, client).await.map(|s| s.keys), Ok(vec![]));
    let unknown = with(&Certificates::new().ca, client).await;
    assert!(matches!(unknown, Err(StoreError::Unavailable(_))), "{unknown:?}");
    let nobody = with(&certificates.ca, None).await;
    assert!(matches!(nobody, Err(StoreError::Unavailable(_))), "{nobody:?}");
}

#[tokio::test]
async fn keys_that_are_no_text_are_skipped_and_counted() {
    if !etcd_is_there("faults::keys_that_are_no_text_are_skipped_and_counted") {
        return;
    }
    let cluster = Cluster::start(1).await;
    let store = etcd(cluster.urls()).await;
    let begin = store.read(&prefixes()).await.expect("it answers").revision;
    let mut client = etcd_client::Client::connect(cluster.urls(), None).await.expect("a URL");
    client.put(b"/wmgwd/\xff\xfe".to_vec(), "x", None).await.expect("etcd takes any bytes");
    let last = write(&*store, "/wmgwd/1").await;
    let snapshot = store.read(&prefixes()).await.expect("it answers");
    assert_eq!((snapshot.keys.len(), store.foreign_keys()), (1, 1));
    let mut watch = store.watch(&prefixes(), begin).await.expect("not compacted");
    let (mut events, mut seen) = (0, begin);
    while seen < last {
        let item = timeout(Duration::from_secs(5), watch.recv()).await.expect("in time");
        let batch = item.expect("open").expect("no error");
        (events, seen) = (events + batch.events.len(), batch.revision);
    }
    assert_eq!((events, store.foreign_keys()), (1, 2));
}

#[tokio::test]
async fn an_embedded_store_that_was_reset_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let address = format!("unix:{}", folder.path().join("store.sock").display());
    let (address, server) = embedded(&address).await;
    let store = EmbeddedStore::new(address.clone());
    write(&store, "/wmgwd/1").await;
    let mut watch = store.watch(&prefixes(), Revision(1)).await.expect("not compacted");
    assert!(Listener::bind(&address).await.is_err(), "somebody listens there");
    server.abort();
    assert!(server.await.is_err(), "it was aborted");
    while let Some(item) = timeout(TTL, watch.recv()).await.expect("the watch ends") {
        assert!(matches!(item, Ok(_) | Err(StoreError::Unavailable(_))), "{item:?}");
    }
    assert!(matches!(put(&store, "/a").await, Err(StoreError::Unavailable(_))));
    let (_, _server) = embedded(&address.to_string()).await;
    match put(&store, "/wmgwd/1").await {
        Err(StoreError::Refused(reason)) => assert!(reason.contains("reset"), "{reason}"),
        other => panic!("{other:?}"),
    }
    write(&EmbeddedStore::new(address), "/wmgwd/1").await;
}

/// A client that vanishes, or talks nonsense, harms nobody, and its leases live on.
#[tokio::test]
async fn clients_of_an_embedded_store_harm_only_themselves() {
    let (address, _server) = embedded("tcp:127.0.0.1:0").await;
    let Address::Tcp(target) = address else { panic!("it is TCP") };
    let (one, two) = (EmbeddedStore::new(address.clone()), EmbeddedStore::new(address));
    let lease = one.grant(Duration::from_secs(2)).await.expect("granted");
    bind(&one, "/selvedge/live/a", lease).await;
    drop(one);
    let frame = |text: &str| {
        let length = u32::try_from(text.len()).expect("short").to_be_bytes();
        [&length, text.as_bytes()].concat()
    };
    for nonsense in [
        vec![0xff; 100],
        frame("nonsense"),
        frame(r#"{"selvedge_store":2}"#).into_iter().chain(frame("{}")).collect(),
        frame(r#"{"selvedge_store":2}"#).into_iter().chain([0x7f; 9]).collect(),
    ] {
        let mut stream = TcpStream::connect(target).await.expect("it listens");
        stream.write_all(&nonsense).await.expect("sent");
        let mut rest = Vec::new();
        let end = timeout(Duration::from_secs(2), stream.read_to_end(&mut rest)).await;
        assert!(end.is_ok(), "the connection is closed");
    }
    let mut stream = TcpStream::connect(target).await.expect("it listens");
    stream.write_all(&frame(r#"{"selvedge_store":3,"more":[]}"#)).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.contains("version 3 is unknown"), "{answer}");
    assert_eq!(two.read(&prefixes()).await.expect("it answers").keys.len(), 1);
    sleep(Duration::from_millis(2200)).await;
    assert_eq!(two.read(&prefixes()).await.expect("it answers").keys.len(), 0);
}

/// A consumer of the supervisor's inputs that checks what it is promised.
struct Gateway {
    supervisor: Supervisor,
    inputs: mpsc::Receiver<Input>,
    keys: BTreeMap<String, KeyValue>,
    revision: Revision,
    snapshots: usize,
    lease: Option<LeaseId>,
    connected: bool,
}

impl Gateway {
    fn start(store: Arc<dyn Store>, quiet: Duration) -> Self {
        let (sender, inputs) = mpsc::channel(64);
        let mut settings = Settings::new(prefixes(), TTL);
        (settings.quiet, settings.seed) = (quiet, 7);
        Self {
            supervisor: Supervisor::spawn_with(store, settings, sender),
            inputs,
            keys: BTreeMap::new(),
            revision: Revision(0),
            snapshots: 0,
            lease: None,
            connected: false,
        }
    }

    /// Waits for the first snapshot and lease.
    async fn ready(&mut self) -> LeaseId {
        while !self.connected || self.lease.is_none() {
            self.step().await;
        }
        self.lease.expect("just seen")
    }

    async fn disconnected(&mut self) {
        while self.connected {
            self.step().await;
        }
    }

    /// Waits until it has seen what the store has, and compares.
    async fn agrees(&mut self, store: &dyn Store) {
        let truth = store.read(&prefixes()).await.expect("the store answers");
        let latest = truth.keys.iter().map(|kv| kv.modified).max().unwrap_or_default();
        // A deletion has no key that shows its revision, so the keys are compared as well.
        while self.revision < latest || self.keys.len() != truth.keys.len() {
            self.step().await;
        }
        assert_eq!(self.keys.values().cloned().collect::<Vec<_>>(), truth.keys);
    }

    async fn step(&mut self) {
        let input = timeout(Duration::from_secs(20), self.inputs.recv()).await;
        match input.expect("it comes in time").expect("the supervisor runs") {
            Input::Snapshot(snapshot) => {
                assert!(snapshot.revision >= self.revision);
                self.snapshots += 1;
                self.revision = snapshot.revision;
                self.keys = snapshot.keys.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
            }
            Input::Batch(batch) => {
                assert!(batch.revision > self.revision, "{} comes again", batch.revision);
                for event in batch.events {
                    self.apply(event);
                }
                self.revision = batch.revision;
            }
            Input::Connected => self.connected = true,
            Input::Disconnected { .. } => self.connected = false,
            Input::Lease(lease) => self.lease = Some(lease),
            Input::LeaseLost => self.lease = None,
        }
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Put(kv) => {
                assert!(kv.modified > self.revision);
                self.keys.insert(kv.key.clone(), kv);
            }
            Event::Delete { key, modified } => {
                assert!(modified > self.revision);
                assert!(self.keys.remove(&key).is_some(), "{key} was never reported");
            }
        }
    }

    async fn end(self) {
        self.supervisor.shutdown().await.expect("the store answers");
    }
}

fn prefixes() -> Vec<String> {
    vec!["/wmgwd/".to_owned(), "/selvedge/".to_owned()]
}

async fn etcd(urls: Vec<String>) -> Arc<EtcdStore> {
    Arc::new(EtcdStore::new(EtcdConfig::new(urls)).await.expect("right URLs"))
}

async fn embedded(address: &str) -> (Address, JoinHandle<std::io::Result<()>>) {
    let address = address.parse().expect("an address");
    let listener = Listener::bind(&address).await.expect("a free address");
    let address = listener.address().expect("bound");
    (address, tokio::spawn(serve(listener, std::future::pending())))
}

async fn run(store: &dyn Store, op: Op) -> Result<TxnReply, StoreError> {
    store.txn(Txn { compare: Vec::new(), then: vec![op] }).await
}

async fn put(store: &dyn Store, key: &str) -> Result<TxnReply, StoreError> {
    run(store, Op::Put { key: key.to_owned(), value: b"x".to_vec(), lease: None }).await
}

async fn delete(store: &dyn Store, key: &str) {
    run(store, Op::Delete { key: key.to_owned() }).await.expect("the store answers");
}

async fn bind(store: &dyn Store, key: &str, lease: LeaseId) {
    let put = Op::Put { key: key.to_owned(), value: vec![], lease: Some(lease) };
    let absent = Compare::Absent { key: key.to_owned() };
    let txn = Txn { compare: vec![absent], then: vec![put] };
    assert!(store.txn(txn).await.expect("the store answers").committed);
}

/// Writes, again and again while the store is away; returns the revision.
async fn write(store: &dyn Store, key: &str) -> Revision {
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        match put(store, key).await {
            Ok(reply) => return reply.revision,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// A user `gateway` who may use our range of keys and no other.
async fn enable_auth(url: &str) {
    use etcd_client::{Client, Permission};
    let mut client = Client::connect([url], None).await.expect("a URL");
    client.role_add("gateways").await.expect("a role");
    let range = Permission::read_write("/selvedge/").with_range_end("/wmgwd0");
    client.role_grant_permission("gateways", range).await.expect("a permission");
    client.user_add("root", "root", None).await.expect("a user");
    client.user_grant_role("root", "root").await.expect("a role of root's");
    client.user_add("gateway", "secret", None).await.expect("a user");
    client.user_grant_role("gateway", "gateways").await.expect("a role");
    client.auth_enable().await.expect("authentication");
}

/// A certificate authority, and certificates with their keys, as PEM.
struct Certificates {
    ca: String,
    server: (String, String),
    client: (String, String),
}

impl Certificates {
    fn new() -> Self {
        use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).expect("a certificate").pem();
        let issuer = Issuer::new(params, key);
        let issue = |usage| {
            let key = KeyPair::generate().expect("a key");
            let mut params =
                CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("an address");
            params.extended_key_usages = usage;
            let certificate = params.signed_by(&key, &issuer).expect("a certificate");
            (certificate.pem(), key.serialize_pem())
        };
        use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
        Self { ca, server: issue(vec![ServerAuth, ClientAuth]), client: issue(vec![ClientAuth]) }
    }
}
