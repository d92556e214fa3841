//! One suite for all engines: the embedded one over both kinds of sockets, and real etcd.
//!
//! Each part works under a prefix of its own, on one store for all of them.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{CompareOp, DeleteOptions, TxnOp};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use selvedge_gateway::kv::{
    Batch, Compare, Event, Health, KeyValue, LeaseId, MAX_NESTED, Op, Revision, StoreError, Txn,
    TxnReply,
};
use selvedge_gateway::model::{MAX_OPS, MAX_TXN_BYTES, Model, event_key};
use selvedge_model::Time;
use selvedge_store::Store;
use selvedge_store::embedded::{Address, EmbeddedStore, Listener, serve};
use selvedge_store::etcd::{EtcdConfig, EtcdStore};
use support::{Cluster, etcd_is_there};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

/// A store whose history can be compacted from outside.
#[async_trait]
trait Subject: Store {
    async fn compact(&self, revision: Revision);
}

#[async_trait]
impl Subject for EmbeddedStore {
    async fn compact(&self, revision: Revision) {
        EmbeddedStore::compact(self, revision).await.expect("not compacted before");
    }
}

/// etcd, with a client of its own kind for what the engine does not offer.
struct Etcd {
    store: EtcdStore,
    client: etcd_client::Client,
}

#[async_trait]
impl Subject for Etcd {
    async fn compact(&self, revision: Revision) {
        let mut client = self.client.clone();
        client.compact(revision.0, None).await.expect("not compacted before");
    }
}

#[async_trait]
impl Store for Etcd {
    async fn txn(&self, txn: Txn) -> Result<TxnReply, StoreError> {
        self.store.txn(txn).await
    }

    async fn read(
        &self,
        prefixes: &[String],
    ) -> Result<selvedge_gateway::kv::Snapshot, StoreError> {
        self.store.read(prefixes).await
    }

    async fn watch(&self, prefixes: &[String], after: Revision) -> Result<Watched, StoreError> {
        self.store.watch(prefixes, after).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.store.grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.revoke(lease).await
    }

    async fn health(&self, patience: Duration) -> Health {
        self.store.health(patience).await
    }
}

type Watched = mpsc::Receiver<Result<Batch, StoreError>>;

#[tokio::test]
async fn embedded_over_unix() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    embedded(Address::Unix(folder.path().join("store.sock"))).await;
}

#[tokio::test]
async fn embedded_over_tcp() {
    embedded("tcp:127.0.0.1:0".parse().expect("an address")).await;
}

#[tokio::test]
async fn etcd() {
    if !etcd_is_there("conformance::etcd") {
        return;
    }
    let cluster = Cluster::start(1).await;
    let store = EtcdStore::new(EtcdConfig::new(cluster.urls())).await.expect("one URL");
    let client = etcd_client::Client::connect(cluster.urls(), None).await.expect("a URL");
    etcd_nests_no_more(&client).await;
    client
        .clone()
        .delete("/too-many/", Some(DeleteOptions::new().with_prefix()))
        .await
        .expect("done");
    suite(Arc::new(Etcd { store, client }), 1 << 20).await;
}

async fn embedded(address: Address) {
    let listener = Listener::bind(&address).await.expect("a free address");
    let address = listener.address().expect("bound");
    let server = tokio::spawn(serve(listener, std::future::pending()));
    suite(Arc::new(EmbeddedStore::new(address)), 1 << 16).await;
    server.abort();
}

/// `large` is the size of the values of which 20 are longer than any single message, in bytes.
async fn suite(store: Arc<dyn Subject>, large: usize) {
    follows_the_model(&*store).await;
    compacted_history_is_refused(&*store).await;
    conditions(&*store).await;
    refusals(&*store).await;
    nested_transactions(&*store).await;
    let health = store.health(Duration::from_secs(5)).await;
    assert_eq!(health, Health { members: 1, answering: 1, led: true });
    reads_are_of_one_revision(&store).await;
    revisions_are_not_split(&store).await;
    tokio::join!(leases_end(&*store), leases_live(&*store));
    large_values(&*store, large).await;
}

/// Random transactions and leases have the same replies, states and events as in the model.
async fn follows_the_model(store: &dyn Subject) {
    let all = under("model");
    let begin = store.read(&all).await.expect("the store answers").revision;
    let mut model = Model::new();
    let offset = begin.0 - model.revision().0;
    let mut leases: Vec<(LeaseId, LeaseId)> = Vec::new();
    for step in random_steps() {
        match step {
            Step::Txn(txn) => {
                let expected = model.txn(&with_leases(&txn, &leases, |pair| pair.0));
                let asked = shifted(&with_leases(&txn, &leases, |pair| pair.1), offset);
                let got = store.txn(asked).await;
                match (expected, got) {
                    (Ok(mut expected), Ok(got)) => {
                        expected.revision.0 += offset;
                        assert_eq!(got, expected, "{txn:?}");
                    }
                    (Err(StoreError::NoLease(_)), Err(StoreError::NoLease(_)))
                    | (Err(StoreError::Refused(_)), Err(StoreError::Refused(_))) => {}
                    (expected, got) => panic!("{txn:?}: {got:?} instead of {expected:?}"),
                }
            }
            Step::Grant => {
                let theirs = store.grant(Duration::from_secs(60)).await.expect("granted");
                leases.push((model.grant(Duration::from_secs(60), Time::ZERO), theirs));
            }
            Step::Revoke(n) => {
                if let Some((ours, theirs)) = leases.get(n) {
                    assert_eq!(model.revoke(*ours).is_ok(), store.revoke(*theirs).await.is_ok());
                }
            }
        }
    }
    let back = |id: LeaseId| leases.iter().find(|pair| pair.1 == id).map(|pair| pair.0);
    let snapshot = store.read(&all).await.expect("the store answers");
    let everything = store.read(&[String::new()]).await.expect("the store answers");
    assert_eq!(everything, snapshot, "there are no other keys yet");
    let keys: Vec<_> = snapshot.keys.into_iter().map(|kv| rebased(kv, offset, &back)).collect();
    assert_eq!(keys, model.read(&all).keys);
    for after in [1, 5, 50, model.revision().0] {
        let expected = model.events_after(&all, Revision(after)).expect("not compacted");
        let events = watched(store, &all, Revision(after + offset), snapshot.revision).await;
        let events = events.into_iter().map(|event| match event {
            Event::Put(kv) => Event::Put(rebased(kv, offset, &back)),
            Event::Delete { key, modified } => {
                Event::Delete { key, modified: Revision(modified.0 - offset) }
            }
        });
        // Of the keys that a lease takes with it, etcd does not say in which order they go.
        let sorted = |mut events: Vec<Event>| {
            events.sort_by_key(|event| (modified(event), event_key(event).to_owned()));
            events
        };
        assert_eq!(sorted(events.collect()), sorted(expected.events), "after {after}");
    }
}

async fn compacted_history_is_refused(store: &dyn Subject) {
    let all = under("compact");
    let mut revisions = Vec::new();
    for n in 0..5 {
        revisions.push(put(store, &format!("{}{n}", all[0]), "", None).await);
    }
    let mut open = store.watch(&all, revisions[4]).await.expect("not compacted");
    let last = delete(store, &format!("{}1", all[0])).await;
    assert_eq!(collect(&mut open, last).await.len(), 1);
    store.compact(last).await;
    let end = match store.watch(&all, revisions[0]).await {
        Err(error) => error,
        Ok(mut watch) => next(&mut watch).await.expect_err("compacted"),
    };
    assert_eq!(end, StoreError::Compacted(last));
    // A watch that has seen everything goes on, and one may begin after the compacted revision.
    let mut late = store.watch(&all, last).await.expect("not compacted");
    let new = put(store, &format!("{}9", all[0]), "", None).await;
    assert_eq!(collect(&mut open, new).await.len(), 1);
    assert_eq!(collect(&mut late, new).await.len(), 1);
    assert_eq!(store.read(&all).await.expect("the store answers").keys.len(), 5);
}

async fn conditions(store: &dyn Subject) {
    let key = format!("{}k", under("conditions")[0]);
    let if_ = async |compare: Compare| {
        let then = vec![Op::Put { key: key.clone(), value: b"x".to_vec(), lease: None }];
        store.txn(Txn { compare: vec![compare], then }).await.expect("it is answered")
    };
    let (absent, exists) =
        (Compare::Absent { key: key.clone() }, Compare::Exists { key: key.clone() });
    let modified = |at| Compare::Modified { key: key.clone(), at };
    let created = |at| Compare::Created { key: key.clone(), at };
    assert!(!if_(exists.clone()).await.committed);
    assert!(!if_(modified(Revision(1))).await.committed);
    let first = if_(absent.clone()).await;
    assert!(first.committed);
    assert!(!if_(absent).await.committed);
    let second = if_(modified(first.revision)).await;
    assert!(second.committed && second.revision > first.revision);
    assert!(!if_(modified(first.revision)).await.committed);
    assert!(!if_(created(second.revision)).await.committed);
    assert!(if_(created(first.revision)).await.committed);
    assert!(if_(exists).await.committed);
}

async fn refusals(store: &dyn Subject) {
    let prefix = &under("refusals")[0];
    let op = |n: usize, size: usize| Op::Put {
        key: format!("{prefix}{n}"),
        value: vec![7; size],
        lease: None,
    };
    let run = async |then: Vec<Op>| store.txn(Txn { compare: Vec::new(), then }).await;
    let refused = |result| matches!(result, Err(StoreError::Refused(_)));
    assert!(refused(run(vec![op(1, 1), op(1, 1)]).await));
    assert!(refused(run(vec![op(1, 1), Op::Delete { key: format!("{prefix}1") }]).await));
    assert!(refused(run((0..=MAX_OPS).map(|n| op(n, 1)).collect()).await));
    assert!(refused(run(vec![op(1, MAX_TXN_BYTES)]).await));
    assert!(refused(run(vec![Op::Delete { key: String::new() }]).await));
    let nest = |then| Op::Nested(Txn { compare: Vec::new(), then });
    assert!(refused(run(vec![nest(vec![op(1, 1)]), nest(vec![op(1, 1)])]).await));
    assert!(refused(run(vec![nest(vec![nest(vec![op(1, 1)])])]).await));
    let unknown = LeaseId(77_777);
    let leased = Op::Put { key: format!("{prefix}l"), value: vec![], lease: Some(unknown) };
    assert_eq!(run(vec![op(1, 1), leased]).await, Err(StoreError::NoLease(unknown)));
    assert_eq!(store.keep_alive(unknown).await, Err(StoreError::NoLease(unknown)));
    assert_eq!(store.revoke(unknown).await, Err(StoreError::NoLease(unknown)));
    assert_eq!(store.read(&under("refusals")).await.expect("answered").keys, Vec::new());
    assert!(run((0..MAX_OPS).map(|n| op(n, 1)).collect()).await.is_ok());
    assert!(run(vec![op(1, MAX_TXN_BYTES - 1000)]).await.is_ok());
}

/// As many nested transactions as there may be, one revision for all of them, and their verdicts.
async fn nested_transactions(store: &dyn Subject) {
    let all = under("nested");
    let begin = put(store, &format!("{}0", all[0]), "", None).await;
    let many = nested(&all[0], MAX_NESTED);
    let first = store.txn(many.clone()).await.expect("they fit");
    let held: Vec<bool> = (0..MAX_NESTED).map(|n| n != 0).collect();
    let expected = TxnReply { committed: true, revision: Revision(begin.0 + 1), nested: held };
    assert_eq!(first, expected);
    let mut watch = store.watch(&all, begin).await.expect("not compacted");
    let batch = next(&mut watch).await.expect("no error");
    assert_eq!((batch.revision, batch.events.len()), (first.revision, 4 * (MAX_NESTED - 1)));
    let again = store.txn(many.clone()).await.expect("they fit");
    let nested = vec![false; MAX_NESTED];
    assert_eq!(again, TxnReply { nested, ..first.clone() }, "nothing changes, no revision");
    let mut outer = many;
    outer.compare = vec![Compare::Absent { key: format!("{}0", all[0]) }];
    let refused = store.txn(outer).await.expect("they fit");
    assert_eq!(refused, TxnReply { committed: false, nested: Vec::new(), ..first });
}

/// Nested transactions of 7 conditions and 4 changes each, the nth for the key of that number.
fn nested(prefix: &str, count: usize) -> Txn {
    let absent = |n: usize| Compare::Absent { key: format!("{prefix}{n}") };
    let op = |key: String| Op::Put { key, value: b"x".to_vec(), lease: None };
    let one = |n: usize| {
        let compare = vec![absent(n); 7];
        let more = ["/a", "/b", "/c"].map(|part| op(format!("{prefix}{n}{part}")));
        let then = [op(format!("{prefix}{n}"))].into_iter().chain(more).collect();
        Op::Nested(Txn { compare, then })
    };
    Txn { compare: Vec::new(), then: (0..count).map(one).collect() }
}

/// etcd takes no more nested transactions than this library allows; the suite shows that it takes
/// as many.
async fn etcd_nests_no_more(client: &etcd_client::Client) {
    let one = |n: usize| {
        let key = format!("/too-many/{n}");
        let absent = etcd_client::Compare::version(key.clone(), CompareOp::Equal, 0);
        let put = TxnOp::put(key, "", None);
        TxnOp::txn(etcd_client::Txn::new().when(vec![absent; 7]).and_then([put]))
    };
    for (count, accepted) in [(MAX_NESTED, true), (MAX_NESTED + 1, false)] {
        let txn = etcd_client::Txn::new().and_then((0..count).map(one).collect::<Vec<_>>());
        assert_eq!(client.clone().txn(txn).await.is_ok(), accepted, "{count}");
    }
}

/// The end of a lease removes its keys, all of them at one revision, and no others.
async fn leases_end(store: &dyn Subject) {
    let all = under("expiry");
    let key = |name: &str| format!("{}{name}", all[0]);
    let granted = Instant::now();
    let lease = store.grant(Duration::from_millis(1500)).await.expect("granted");
    let other = store.grant(Duration::from_secs(60)).await.expect("granted");
    let then = ["a", "b", "c", "d", "e"].map(|name| Op::Put {
        key: key(name),
        value: Vec::new(),
        lease: Some(lease),
    });
    let txn = Txn { compare: Vec::new(), then: then.to_vec() };
    store.txn(txn).await.expect("committed");
    put(store, &key("d"), "moved to another lease", Some(other)).await;
    let last = put(store, &key("e"), "detached", None).await;
    let mut watch = store.watch(&all, last).await.expect("not compacted");
    let batch = next(&mut watch).await.expect("no error");
    assert!(granted.elapsed() >= Duration::from_secs(2), "a lease lives for 2 s at least");
    let at = |event: &Event| match event {
        Event::Delete { key, modified } => (key.clone(), *modified),
        Event::Put(kv) => panic!("{kv:?} is no deletion"),
    };
    let mut gone: Vec<_> = batch.events.iter().map(at).collect();
    gone.sort();
    let at_once = gone[0].1;
    assert_eq!(gone, ["a", "b", "c"].map(|name| (key(name), at_once)));
    assert!(at_once > last && at_once <= batch.revision);
    assert_eq!(store.keep_alive(lease).await, Err(StoreError::NoLease(lease)));
    store.revoke(other).await.expect("it lives");
    let left = store.read(&all).await.expect("answered").keys;
    assert_eq!(left.iter().map(|kv| kv.key.clone()).collect::<Vec<_>>(), [key("e")]);
    assert_eq!(left[0].lease, None);
}

async fn leases_live(store: &dyn Subject) {
    let all = under("alive");
    let lease = store.grant(Duration::from_secs(3)).await.expect("granted");
    put(store, &format!("{}a", all[0]), "", Some(lease)).await;
    for _ in 0..6 {
        sleep(Duration::from_millis(800)).await;
        store.keep_alive(lease).await.expect("it is kept alive");
    }
    assert_eq!(store.read(&all).await.expect("answered").keys.len(), 1);
    store.revoke(lease).await.expect("it lives");
    assert_eq!(store.read(&all).await.expect("answered").keys.len(), 0);
}

/// A read that takes several pages shows one revision, whatever is written meanwhile.
async fn reads_are_of_one_revision(store: &Arc<dyn Subject>) {
    let all = under("pages");
    for chunk in 0..20 {
        let then = (0..125).map(|n| Op::Put {
            key: format!("{}{chunk:02}/{n:03}", all[0]),
            value: b"0".to_vec(),
            lease: None,
        });
        let txn = Txn { compare: Vec::new(), then: then.collect() };
        store.txn(txn).await.expect("committed");
    }
    // The first and the last key always have the same value.
    let (first, last) = (format!("{}00/000", all[0]), format!("{}19/124", all[0]));
    let both = move |n: usize| {
        let put = |key: &String| Op::Put {
            key: key.clone(),
            value: format!("{n}").into_bytes(),
            lease: None,
        };
        Txn { compare: Vec::new(), then: vec![put(&first), put(&last)] }
    };
    store.txn(both(0)).await.expect("committed");
    let writer = tokio::spawn({
        let store = Arc::clone(store);
        async move {
            for n in 1..200 {
                store.txn(both(n)).await.expect("committed");
            }
        }
    });
    let overlapping = [all[0].clone(), format!("{}1", all[0])];
    while !writer.is_finished() {
        let snapshot = store.read(&overlapping).await.expect("answered");
        assert_eq!(snapshot.keys.len(), 2500);
        assert!(snapshot.keys.is_sorted_by(|a, b| a.key < b.key));
        assert!(snapshot.keys.iter().all(|kv| kv.modified <= snapshot.revision));
        let (first, last) = (&snapshot.keys[0], &snapshot.keys[2499]);
        assert_eq!((&first.value, first.modified), (&last.value, last.modified));
    }
    writer.await.expect("the writer");
}

/// Several watches of two prefixes, begun before, during and after the changes, each see every
/// revision once, whole and in order, although others change keys between the prefixes.
async fn revisions_are_not_split(store: &Arc<dyn Subject>) {
    let watched = vec!["/split/z/".to_owned(), "/split/a/".to_owned()];
    let begin = store.read(&watched).await.expect("answered").revision;
    let mut early = store.watch(&watched, begin).await.expect("not compacted");
    let writer = tokio::spawn({
        let store = Arc::clone(store);
        async move {
            let mut last = Revision(0);
            for n in 0..150 {
                let keys = ["/split/a/1", "/split/m/1", "/split/z/1", "/split/a/2"];
                let value = format!("{n}").into_bytes();
                let put =
                    |key: &str| Op::Put { key: key.into(), value: value.clone(), lease: None };
                let txn = Txn { compare: Vec::new(), then: keys.map(put).to_vec() };
                last = store.txn(txn).await.expect("committed").revision;
                put_one(&*store, "/split/m/2").await;
            }
            last
        }
    });
    sleep(Duration::from_millis(50)).await;
    let mut middle = store.watch(&watched, begin).await.expect("not compacted");
    let last = writer.await.expect("the writer");
    let mut late = store.watch(&watched, begin).await.expect("not compacted");
    for watch in [&mut early, &mut middle, &mut late] {
        let mut seen = begin;
        let mut count = 0;
        while seen < last {
            let batch = next(watch).await.expect("no error");
            assert!(batch.revision > seen, "{seen} comes again");
            let mut of: BTreeMap<Revision, Vec<&str>> = BTreeMap::new();
            for event in &batch.events {
                assert!(modified(event) > seen && modified(event) <= batch.revision);
                of.entry(modified(event)).or_default().push(event_key(event));
            }
            for keys in of.values() {
                assert_eq!(keys, &["/split/a/1", "/split/z/1", "/split/a/2"]);
            }
            count += of.len();
            seen = batch.revision;
        }
        assert_eq!(count, 150);
    }
}

/// Answers and watches that are longer than any single message.
async fn large_values(store: &dyn Subject, size: usize) {
    let all = under("large");
    let begin = store.read(&all).await.expect("answered").revision;
    let mut last = begin;
    for n in 0..20 {
        let value = vec![b'0' + n; size];
        let then = vec![Op::Put { key: format!("{}{n:02}", all[0]), value, lease: None }];
        last = store.txn(Txn { compare: Vec::new(), then }).await.expect("committed").revision;
    }
    let keys = store.read(&all).await.expect("answered").keys;
    let right = |n: usize, value: &[u8]| {
        value.len() == size && value.iter().all(|byte| usize::from(*byte) == n + 48)
    };
    assert_eq!(keys.len(), 20);
    assert!(keys.iter().enumerate().all(|(n, kv)| right(n, &kv.value)));
    let events = watched(store, &all, begin, last).await;
    assert_eq!(events.len(), 20);
    for (n, event) in events.iter().enumerate() {
        assert!(matches!(event, Event::Put(kv) if right(n, &kv.value)));
    }
}

fn under(part: &str) -> Vec<String> {
    vec![format!("/{part}/")]
}

async fn put(store: &dyn Subject, key: &str, value: &str, lease: Option<LeaseId>) -> Revision {
    let then = vec![Op::Put { key: key.to_owned(), value: value.into(), lease }];
    store.txn(Txn { compare: Vec::new(), then }).await.expect("committed").revision
}

async fn put_one(store: &dyn Subject, key: &str) {
    put(store, key, "", None).await;
}

async fn delete(store: &dyn Subject, key: &str) -> Revision {
    let then = vec![Op::Delete { key: key.to_owned() }];
    store.txn(Txn { compare: Vec::new(), then }).await.expect("committed").revision
}

/// The next item of a watch that is not mere progress.
async fn next(watch: &mut Watched) -> Result<Batch, StoreError> {
    loop {
        let item = timeout(Duration::from_secs(10), watch.recv()).await.expect("it comes in time");
        match item.expect("the reason comes before the end") {
            Ok(batch) if batch.events.is_empty() => {}
            other => return other,
        }
    }
}

/// The events up to a revision that has one.
async fn collect(watch: &mut Watched, until: Revision) -> Vec<Event> {
    let mut events = Vec::new();
    loop {
        let batch = next(watch).await.expect("no error");
        events.extend(batch.events);
        if batch.revision >= until {
            return events;
        }
    }
}

async fn watched(
    store: &dyn Subject,
    prefixes: &[String],
    after: Revision,
    until: Revision,
) -> Vec<Event> {
    if after >= until {
        return Vec::new();
    }
    let mut watch = store.watch(prefixes, after).await.expect("not compacted");
    collect(&mut watch, until).await
}

fn modified(event: &Event) -> Revision {
    match event {
        Event::Put(kv) => kv.modified,
        Event::Delete { modified, .. } => *modified,
    }
}

#[derive(Clone, Debug)]
enum Step {
    Txn(Txn),
    Grant,
    Revoke(usize),
}

/// The same steps at each run.
fn random_steps() -> Vec<Step> {
    let key = || prop::sample::select(vec!["/model/a", "/model/b", "/model/c", "/model/d"]);
    let key = || key().prop_map(str::to_owned);
    let at = || (1..120i64).prop_map(Revision);
    let compare = prop_oneof![
        key().prop_map(|key| Compare::Absent { key }),
        key().prop_map(|key| Compare::Exists { key }),
        (key(), at()).prop_map(|(key, at)| Compare::Modified { key, at }),
        (key(), at()).prop_map(|(key, at)| Compare::Created { key, at }),
    ];
    let lease = || prop::option::of((0..6i64).prop_map(LeaseId));
    let op = prop_oneof![
        2 => (key(), any::<Vec<u8>>(), lease())
            .prop_map(|(key, value, lease)| Op::Put { key, value, lease }),
        1 => key().prop_map(|key| Op::Delete { key }),
    ];
    let txn = |op: BoxedStrategy<Op>| {
        (prop::collection::vec(compare.clone(), 0..2), prop::collection::vec(op, 0..4))
            .prop_map(|(compare, then)| Txn { compare, then })
    };
    let nested = txn(op.clone().boxed()).prop_map(Op::Nested);
    let txn = txn(prop_oneof![3 => op, 1 => nested].boxed());
    let step = prop_oneof![
        12 => txn.prop_map(Step::Txn),
        1 => Just(Step::Grant),
        1 => (0..6usize).prop_map(Step::Revoke),
    ];
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let steps = prop::collection::vec(step, 400).new_tree(&mut runner).expect("no filter");
    let last = put_at_the_end();
    steps.current().into_iter().chain([Step::Txn(last)]).collect()
}

/// The last revision has an event, for which one can wait.
fn put_at_the_end() -> Txn {
    let op = Op::Put { key: "/model/end".to_owned(), value: vec![], lease: None };
    Txn { compare: Vec::new(), then: vec![op] }
}

/// The transaction with the nth lease instead of the number n; one that does not exist if n is
/// too great.
fn with_leases(
    txn: &Txn,
    leases: &[(LeaseId, LeaseId)],
    pick: fn(&(LeaseId, LeaseId)) -> LeaseId,
) -> Txn {
    let mut txn = txn.clone();
    for op in &mut txn.then {
        match op {
            Op::Put { lease: Some(lease), .. } => {
                let nth = usize::try_from(lease.0).ok().and_then(|n| leases.get(n));
                *lease = nth.map_or(LeaseId(999_999), pick);
            }
            Op::Nested(nested) => *nested = with_leases(nested, leases, pick),
            Op::Put { .. } | Op::Delete { .. } => {}
        }
    }
    txn
}

/// The transaction as it is on a store that is `offset` revisions ahead of the model.
fn shifted(txn: &Txn, offset: i64) -> Txn {
    let mut txn = txn.clone();
    for compare in &mut txn.compare {
        match compare {
            Compare::Modified { at, .. } | Compare::Created { at, .. } => at.0 += offset,
            Compare::Absent { .. } | Compare::Exists { .. } => {}
        }
    }
    for op in &mut txn.then {
        if let Op::Nested(nested) = op {
            *nested = shifted(nested, offset);
        }
    }
    txn
}

/// The key as it is in the model.
fn rebased(mut kv: KeyValue, offset: i64, lease: &impl Fn(LeaseId) -> Option<LeaseId>) -> KeyValue {
    kv.create.0 -= offset;
    kv.modified.0 -= offset;
    kv.lease = kv.lease.map(|id| lease(id).expect("granted by this test"));
    kv
}
