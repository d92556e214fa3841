//! The supervisor against a model of the store in this process, in virtual time, with faults.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use selvedge_gateway::kv::{Event, Health, KeyValue, Op, Txn, TxnReply};
use selvedge_gateway::model::Model;
use selvedge_model::Time;
use tokio::sync::{Notify, watch};
use tokio::time::timeout_at;

use super::*;

const TTL: Duration = Duration::from_secs(3);

/// A store with faults to order.
struct Faulty {
    model: Mutex<Model>,
    start: Instant,
    changed: watch::Sender<()>,
    /// No call is answered any more.
    hang: AtomicBool,
    /// Every call fails.
    down: AtomicBool,
    /// Watches report nothing any more, nor do they end.
    mute: AtomicBool,
    /// Ends the watches that there are.
    cut: Notify,
    reads: AtomicUsize,
}

impl Faulty {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            model: Mutex::new(Model::new()),
            start: Instant::now(),
            changed: watch::Sender::new(()),
            hang: AtomicBool::new(false),
            down: AtomicBool::new(false),
            mute: AtomicBool::new(false),
            cut: Notify::new(),
            reads: AtomicUsize::new(0),
        })
    }

    /// Runs `f` on the model at the present time.
    fn with<T>(&self, f: impl FnOnce(&mut Model, Time) -> T) -> T {
        let mut model = self.model.lock().expect("no panic while locked");
        let now = Time::ZERO + self.start.elapsed();
        model.expire(now);
        let result = f(&mut model, now);
        self.changed.send_replace(());
        result
    }

    async fn call<T>(
        &self,
        f: impl FnOnce(&mut Model, Time) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if self.hang.load(Ordering::Relaxed) {
            sleep(Duration::from_secs(2)).await;
        }
        if self.hang.load(Ordering::Relaxed) || self.down.load(Ordering::Relaxed) {
            return Err(unavailable("ordered"));
        }
        self.with(f)
    }

    fn put(&self, key: &str) -> Revision {
        let op = Op::Put { key: key.to_owned(), value: Vec::new(), lease: None };
        self.run(op)
    }

    fn delete(&self, key: &str) -> Revision {
        self.run(Op::Delete { key: key.to_owned() })
    }

    fn run(&self, op: Op) -> Revision {
        let txn = Txn { compare: Vec::new(), then: vec![op] };
        self.with(|model, _| model.txn(&txn)).expect("accepted").revision
    }

    fn keys(&self) -> Vec<KeyValue> {
        self.with(|model, _| model.read(&prefixes()).keys)
    }
}

#[async_trait]
impl Store for Arc<Faulty> {
    async fn txn(&self, txn: Txn) -> Result<TxnReply, StoreError> {
        self.call(|model, _| model.txn(&txn)).await
    }

    async fn read(&self, prefixes: &[String]) -> Result<Snapshot, StoreError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.call(|model, _| Ok(model.read(prefixes))).await
    }

    async fn watch(&self, prefixes: &[String], mut after: Revision) -> Result<Watched, StoreError> {
        self.call(|model, _| model.events_after(prefixes, after)).await?;
        let (sender, receiver) = mpsc::channel(100);
        let (store, prefixes) = (Arc::clone(self), prefixes.to_vec());
        // A watch that is muted stays so.
        let mut muted = false;
        tokio::spawn(async move {
            let mut changed = store.changed.subscribe();
            loop {
                muted |= store.mute.load(Ordering::Relaxed);
                let batch = {
                    let model = store.model.lock().expect("no panic while locked");
                    model.events_after(&prefixes, after)
                };
                match batch {
                    Ok(batch) if batch.events.is_empty() || muted => {}
                    Ok(batch) => {
                        after = batch.revision;
                        let _ = sender.send(Ok(batch)).await;
                    }
                    Err(error) => {
                        let _ = sender.send(Err(error)).await;
                        return;
                    }
                }
                tokio::select! {
                    result = changed.changed() => result.expect("the store lives"),
                    () = sender.closed() => return,
                    () = store.cut.notified() => {
                        let _ = sender.send(Err(unavailable("cut"))).await;
                        return;
                    }
                }
            }
        });
        Ok(receiver)
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.call(|model, now| Ok(model.grant(ttl, now))).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.call(|model, now| model.keep_alive(lease, now)).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.call(|model, _| model.revoke(lease)).await
    }

    async fn health(&self, _: Duration) -> Health {
        unreachable!("the supervisor does not ask")
    }
}

fn prefixes() -> Vec<String> {
    vec!["/a/".to_owned(), "/c/".to_owned()]
}

/// A consumer that checks what it is promised and keeps the state that it was told.
struct Consumer {
    inputs: mpsc::Receiver<Input>,
    keys: std::collections::BTreeMap<String, KeyValue>,
    revision: Option<Revision>,
    /// Everything but snapshots and batches, and the number of snapshots.
    words: Vec<Input>,
    snapshots: usize,
}

impl Consumer {
    fn take(&mut self, input: Input) {
        match input {
            Input::Snapshot(snapshot) => {
                assert!(self.revision <= Some(snapshot.revision), "time runs backwards");
                self.snapshots += 1;
                self.revision = Some(snapshot.revision);
                self.keys = snapshot.keys.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
            }
            Input::Batch(batch) => {
                let before = self.revision.expect("a snapshot comes first");
                assert!(batch.revision > before, "a batch repeats what was seen");
                for event in batch.events {
                    self.apply(event, before);
                }
                self.revision = Some(batch.revision);
            }
            Input::Connected | Input::Disconnected { .. } | Input::Lease(_) | Input::LeaseLost => {
                self.words.push(input);
            }
        }
    }

    fn apply(&mut self, event: Event, before: Revision) {
        match event {
            Event::Put(kv) => {
                assert!(kv.modified > before);
                self.keys.insert(kv.key.clone(), kv);
            }
            Event::Delete { key, modified } => {
                assert!(modified > before);
                assert!(self.keys.remove(&key).is_some(), "{key} was never reported");
            }
        }
    }

    /// Takes what comes until nothing has come for `idle`.
    async fn settle(&mut self, idle: Duration) {
        while let Ok(Some(input)) = timeout(idle, self.inputs.recv()).await {
            self.take(input);
        }
    }

    /// Takes what comes in the given time.
    async fn spend(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while let Ok(Some(input)) = timeout_at(end, self.inputs.recv()).await {
            self.take(input);
        }
    }

    fn words(&mut self) -> Vec<Input> {
        std::mem::take(&mut self.words)
    }
}

fn start(store: &Arc<Faulty>) -> (Supervisor, Consumer) {
    start_with(store, |_| {})
}

fn start_with(store: &Arc<Faulty>, set: impl FnOnce(&mut Settings)) -> (Supervisor, Consumer) {
    let (sender, inputs) = mpsc::channel(64);
    let mut settings = Settings::new(prefixes(), TTL);
    settings.seed = 1;
    set(&mut settings);
    let supervisor = Supervisor::spawn_with(Arc::new(Arc::clone(store)), settings, sender);
    let (keys, words) = (std::collections::BTreeMap::new(), Vec::new());
    (supervisor, Consumer { inputs, keys, revision: None, words, snapshots: 0 })
}

/// A store with nine keys, and a consumer that has read them and taken note of everything said.
async fn known() -> (Arc<Faulty>, Supervisor, Consumer) {
    let store = Faulty::new();
    for n in 0..9 {
        store.put(&format!("/a/{n}"));
    }
    let (supervisor, mut consumer) = start(&store);
    consumer.settle(SHORT).await;
    consumer.words();
    (store, supervisor, consumer)
}

const SHORT: Duration = Duration::from_millis(500);

fn is_down(words: &[Input], part: &str) -> bool {
    matches!(words, [Input::Disconnected { reason }] if reason.contains(part))
}

#[tokio::test(start_paused = true)]
async fn begins_with_a_snapshot_and_goes_on_with_batches() {
    let store = Faulty::new();
    store.put("/a/1");
    let (supervisor, mut consumer) = start(&store);
    consumer.settle(SHORT).await;
    let words = consumer.words();
    assert!(words.contains(&Input::Connected) && words.contains(&Input::Lease(LeaseId(1))));
    assert_eq!(words.len(), 2);
    store.put("/c/1");
    store.put("/b/1");
    let last = store.delete("/a/1");
    consumer.settle(SHORT).await;
    assert_eq!(consumer.revision, Some(last));
    assert_eq!(consumer.keys.into_values().collect::<Vec<_>>(), store.keys());
    assert_eq!(consumer.snapshots, 1);
    supervisor.shutdown().await.expect("the store answers");
}

#[tokio::test(start_paused = true)]
async fn a_cut_watch_resumes_without_a_gap_or_a_snapshot() {
    let store = Faulty::new();
    let (_supervisor, mut consumer) = start(&store);
    consumer.settle(SHORT).await;
    consumer.words();
    for round in 0..20 {
        store.put(&format!("/a/{round}"));
        store.cut.notify_waiters();
        store.put(&format!("/c/{round}"));
        tokio::task::yield_now().await;
        store.delete(&format!("/a/{}", round / 2));
    }
    consumer.settle(SHORT).await;
    assert_eq!(consumer.keys.values().cloned().collect::<Vec<_>>(), store.keys());
    assert_eq!(consumer.snapshots, 1);
    let words = consumer.words();
    assert!(matches!(words.first(), Some(Input::Disconnected { .. })), "{words:?}");
    assert_eq!(words.last(), Some(&Input::Connected));
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_told_once_and_compaction_costs_a_snapshot() {
    let store = Faulty::new();
    store.put("/a/1");
    let (_supervisor, mut consumer) = start(&store);
    consumer.settle(SHORT).await;
    consumer.words();
    store.down.store(true, Ordering::Relaxed);
    store.cut.notify_waiters();
    consumer.settle(Duration::from_secs(1)).await;
    assert!(is_down(&consumer.words(), "cut"));
    let puts: Vec<Revision> = (0..5).map(|n| store.put(&format!("/c/{n}"))).collect();
    store.delete("/a/1");
    store.with(|model, _| model.compact(puts[4])).expect("not compacted before");
    sleep(Duration::from_secs(20)).await;
    store.down.store(false, Ordering::Relaxed);
    consumer.settle(Duration::from_secs(3)).await;
    assert_eq!(consumer.keys.values().cloned().collect::<Vec<_>>(), store.keys());
    assert_eq!(consumer.snapshots, 2);
    assert!(consumer.words().contains(&Input::Connected));
}

#[tokio::test(start_paused = true)]
async fn the_lease_is_kept_and_a_lost_one_is_granted_anew() {
    let store = Faulty::new();
    let (_supervisor, mut consumer) = start(&store);
    consumer.settle(Duration::from_secs(60)).await;
    assert_eq!(consumer.words().len(), 2, "connected, and one lease");
    store.with(|model, _| model.revoke(LeaseId(1))).expect("it is held");
    consumer.settle(Duration::from_secs(2)).await;
    assert_eq!(consumer.words(), [Input::LeaseLost, Input::Lease(LeaseId(2))]);
}

#[tokio::test(start_paused = true)]
async fn an_outage_shorter_than_the_lease_does_not_cost_it() {
    let store = Faulty::new();
    let (_supervisor, mut consumer) = start(&store);
    consumer.settle(SHORT).await;
    consumer.words();
    for _ in 0..20 {
        store.down.store(true, Ordering::Relaxed);
        consumer.spend(Duration::from_millis(1500)).await;
        store.down.store(false, Ordering::Relaxed);
        consumer.spend(Duration::from_millis(2100)).await;
    }
    assert!(!consumer.words().contains(&Input::LeaseLost));
}

#[tokio::test(start_paused = true)]
async fn without_an_answer_the_lease_does_not_count_as_lost() {
    let store = Faulty::new();
    let (_supervisor, mut consumer) = start(&store);
    consumer.settle(SHORT).await;
    consumer.words();
    store.hang.store(true, Ordering::Relaxed);
    consumer.settle(Duration::from_secs(30)).await;
    assert!(is_down(&consumer.words(), "ordered"), "the silent watch was looked into");
    store.hang.store(false, Ordering::Relaxed);
    consumer.settle(Duration::from_secs(4)).await;
    let words = consumer.words();
    let lost = words.iter().position(|word| *word == Input::LeaseLost).expect("it expired");
    assert!(words[lost..].contains(&Input::Lease(LeaseId(2))), "{words:?}");
    assert!(words.contains(&Input::Connected));
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_fell_silent_is_noticed() {
    let store = Faulty::new();
    store.put("/a/1");
    let (_supervisor, mut consumer) = start(&store);
    consumer.settle(SHORT).await;
    store.mute.store(true, Ordering::Relaxed);
    store.delete("/a/1");
    consumer.settle(SHORT).await;
    assert_eq!(consumer.keys.len(), 1, "the watch is mute");
    store.mute.store(false, Ordering::Relaxed);
    consumer.settle(Duration::from_secs(8)).await;
    assert_eq!((consumer.keys.len(), consumer.snapshots), (0, 2));
    store.put("/a/2");
    consumer.settle(SHORT).await;
    assert_eq!((consumer.keys.len(), consumer.snapshots), (1, 2), "the new watch works");
}

#[tokio::test(start_paused = true)]
async fn keys_of_others_cause_ever_fewer_reads() {
    let store = Faulty::new();
    let (_supervisor, mut consumer) = start(&store);
    consumer.settle(SHORT).await;
    for _ in 0..600 {
        store.put("/b/1");
        consumer.settle(Duration::from_secs(1)).await;
    }
    assert!((2..12).contains(&consumer.snapshots), "{} snapshots", consumer.snapshots);
    let revision = store.with(|model, _| model.revision());
    let behind = revision.0 - consumer.revision.expect("read").0;
    assert!(behind < 400, "the consumer hears of progress");
    assert_eq!(consumer.words().len(), 2, "it never counted as disconnected");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_was_reset_is_refused_until_it_is_the_old_one() {
    let (store, _supervisor, mut consumer) = known().await;
    let old = store.with(|model, _| std::mem::take(model));
    store.put("/a/other");
    store.cut.notify_waiters();
    consumer.settle(Duration::from_secs(10)).await;
    let words = consumer.words();
    let reset = |word: &Input| is_down(std::slice::from_ref(word), "reset");
    assert_eq!(words.iter().filter(|word| reset(word)).count(), 1, "{words:?}");
    assert!(!words.contains(&Input::Connected));
    assert_eq!((consumer.keys.len(), consumer.snapshots), (9, 1), "it was not read");
    store.with(|model, _| *model = old);
    consumer.settle(Duration::from_secs(4)).await;
    assert!(consumer.words().contains(&Input::Connected));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_was_reset_and_has_caught_up_is_read_anew() {
    let (store, _supervisor, mut consumer) = known().await;
    store.with(|model, _| std::mem::take(model));
    store.put("/a/other");
    store.cut.notify_waiters();
    consumer.settle(Duration::from_secs(10)).await;
    consumer.words();
    while store.put("/b") < consumer.revision.expect("read") {}
    consumer.settle(Duration::from_secs(4)).await;
    assert!(consumer.words().contains(&Input::Connected));
    assert_eq!((consumer.keys.len(), consumer.snapshots), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn what_an_earlier_run_has_read_is_the_least() {
    let store = Faulty::new();
    store.put("/a/1");
    let floor = Revision(20);
    let (_supervisor, mut consumer) = start_with(&store, |settings| settings.floor = floor);
    consumer.settle(Duration::from_secs(4)).await;
    let words = consumer.words();
    assert!(words.iter().any(|word| is_down(std::slice::from_ref(word), "reset")), "{words:?}");
    while store.put("/b") < floor {}
    consumer.settle(Duration::from_secs(4)).await;
    assert_eq!((consumer.keys.len(), consumer.snapshots), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn the_end_revokes_the_lease_or_leaves_it() {
    let store = Faulty::new();
    let leases = || store.with(|model, _| model.leases().count());
    let (supervisor, mut consumer) = start(&store);
    consumer.settle(SHORT).await;
    supervisor.shutdown().await.expect("the store answers");
    assert_eq!(leases(), 0);
    let (supervisor, mut consumer) = start(&store);
    consumer.settle(SHORT).await;
    assert_eq!(supervisor.detach().await, Some(LeaseId(2)));
    assert_eq!(leases(), 1);
    sleep(TTL).await;
    assert_eq!(leases(), 0, "nobody keeps it alive");
    let (_supervisor, mut consumer) = start(&store);
    consumer.settle(SHORT).await;
    drop(consumer);
    sleep(TTL * 2).await;
    assert_eq!(leases(), 0, "nobody listens any more");
}

#[tokio::test(start_paused = true)]
async fn what_a_store_that_was_reset_says_of_leases_means_nothing() {
    let (store, _supervisor, mut consumer) = known().await;
    store.with(|model, _| std::mem::take(model));
    store.cut.notify_waiters();
    consumer.settle(TTL * 5).await;
    assert!(!consumer.words().contains(&Input::LeaseLost));
    while store.put("/b") < consumer.revision.expect("read") {}
    consumer.settle(TTL * 2).await;
    let words = consumer.words();
    let at = |word: &Input| words.iter().position(|it| it == word);
    assert!(at(&Input::Connected) < at(&Input::LeaseLost), "it is read first: {words:?}");
    assert!(words.iter().any(|word| matches!(word, Input::Lease(_))));
    assert_eq!(consumer.snapshots, 2);
}
