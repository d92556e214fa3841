//! The etcd engine.
//!
//! **Endpoints.** Each endpoint has a connection of its own, and one of them is used until it
//! fails; then another one is. A single balanced channel over all of them would keep sending to
//! an endpoint that swallows packets. A connection counts only once the member behind it has
//! answered something. A call that may be repeated is sent to the next endpoint as well when its
//! member, asked how it is, is silent; it is sent again when there is a new leader. Grants
//! bring their lease's id along, so that a repetition grants nothing more.
//!
//! A transaction may be repeated if it is guarded ([`Txn::is_guarded`]). Whether a reply that it
//! was not committed is the answer to a repetition is not told: the truth shows at the reply's
//! revision. A transaction that is not guarded is sent once; without an answer it is
//! [`StoreError::Unavailable`], its effect unknown.
//!
//! While there is a watch, its member is asked how it is every 100 ms, and all are every second;
//! while a call waits, all are every 20 to 60 ms. A member that is silent, has no leader or lags
//! behind is left for a better one, and the watch goes on there without the consumer's doing.
//!
//! Measured with three members of etcd 3.4.23 on two cores: after the member in use was stopped
//! (not the leader), a call is answered within 87 to 91 ms and an event arrives within 157 ms;
//! after the election that followed the loss of the leader, both take 36 to 46 ms.
//!
//! **Watches.** Several prefixes are watched by one watch over the range that spans them, and
//! the keys between are dropped here. Two watches, even on one stream, would report the parts of
//! one revision in separate messages without a word that the revision is complete. With
//! authentication, the user therefore needs read permission for the whole range, for instance
//! `[/selvedge/, /wmgwd0)`.
//!
//! A watch is opened at the revision that was seen last, not at the one after it, and what was
//! seen is dropped: etcd's compaction may lose a deletion made at the very revision to which the
//! history was compacted, and would not tell a watch that begins there.

mod assemble;
mod fault;
mod lookout;
mod pool;
mod race;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{
    Compare as EtcdCompare, CompareOp, GetOptions, LeaseGrantOptions, PutOptions, TxnOp,
    TxnOpResponse, TxnResponse, WatchOptions,
};
use selvedge_gateway::kv::{
    Batch, Compare, Health, KeyValue, LeaseId, Op, Revision, Snapshot, StoreError, Txn, TxnReply,
};
use selvedge_gateway::model;
use tokio::sync::mpsc;
use tokio::time::sleep;

use self::assemble::Assembler;
use self::fault::Fault;
use self::pool::{Live, Pool};
use crate::{DEFAULT_TIMEOUT, Store, WatchSender};

/// How many keys a page of a read has at most.
const PAGE: i64 = 1000;
/// How often a read begins anew because its revision was compacted meanwhile.
const READS: usize = 4;
/// The pause before a watch goes on elsewhere.
const REOPENING: Duration = Duration::from_millis(5);
/// The longest answer that is accepted, in bytes. etcd cuts watch answers at 2 MiB, and a page
/// that is longer is read in smaller ones.
const MAX_ANSWER: usize = 16 << 20;

/// How to reach a cluster of etcd.
#[derive(Clone)]
pub struct EtcdConfig {
    /// The members' client URLs, `http://host:2379` or `https://host:2379`; the first is
    /// preferred.
    pub endpoints: Vec<String>,
    /// Certificates; needed with `https`.
    pub tls: Option<EtcdTls>,
    /// User and password.
    pub auth: Option<(String, String)>,
    /// How long a call may take; a read may take so long for each page.
    pub timeout: Duration,
}

impl EtcdConfig {
    /// A configuration without TLS and authentication, with the default time limit.
    pub fn new(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let endpoints = endpoints.into_iter().map(Into::into).collect();
        Self { endpoints, tls: None, auth: None, timeout: DEFAULT_TIMEOUT }
    }
}

impl fmt::Debug for EtcdConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdConfig")
            .field("endpoints", &self.endpoints)
            .field("tls", &self.tls)
            .field("user", &self.auth.as_ref().map(|(user, _)| user))
            .field("timeout", &self.timeout)
            .finish()
    }
}

/// Certificates for etcd, each as the contents of a PEM file.
#[derive(Clone)]
pub struct EtcdTls {
    /// The certificate authority that signed the members' certificates.
    pub ca: Vec<u8>,
    /// The client's certificate and its private key, if the members ask for one.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl fmt::Debug for EtcdTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdTls")
            .field("identity", &self.identity.is_some())
            .finish_non_exhaustive()
    }
}

/// What is wrong with an [`EtcdConfig`].
#[derive(Debug, thiserror::Error)]
pub enum EtcdConfigError {
    /// There is none.
    #[error("no etcd endpoint is given")]
    NoEndpoint,
    /// It holds no certificate.
    #[error("the file of etcd's certificate authority holds no PEM certificate")]
    Authority,
    /// It is no URL that etcd could have.
    #[error("etcd endpoint {endpoint:?}: {reason}")]
    Endpoint {
        /// The endpoint as it was given.
        endpoint: String,
        /// What is wrong with it, or with the certificates for it.
        reason: String,
    },
}

/// A store kept by etcd.
#[derive(Clone)]
pub struct EtcdStore {
    pool: Arc<Pool>,
    foreign: Arc<AtomicU64>,
}

impl EtcdStore {
    /// Prepares a client; it connects when it is used.
    ///
    /// # Errors
    /// [`EtcdConfigError`] if the configuration cannot work.
    pub async fn new(config: EtcdConfig) -> Result<Self, EtcdConfigError> {
        let pool = Arc::new(Pool::new(config).await?);
        Ok(Self { pool, foreign: Arc::default() })
    }

    /// How many times a key was met, and skipped, that is not text.
    #[must_use]
    pub fn foreign_keys(&self) -> u64 {
        self.foreign.load(Ordering::Relaxed)
    }

    async fn page(
        &self,
        page: &Page<'_>,
        limit: i64,
    ) -> Result<etcd_client::GetResponse, StoreError> {
        let mut options = GetOptions::new().with_range(prefix_end(page.prefix)).with_limit(limit);
        if let Some(revision) = page.revision {
            options = options.with_revision(revision.0);
        }
        let call = |live: Live| {
            let mut kv = live.client.kv_client().max_decoding_message_size(MAX_ANSWER);
            let (from, options) = (page.from.clone(), options.clone());
            async move { kv.get(from, Some(options)).await }
        };
        match self.pool.repeat("reading", call).await {
            Err(error) if limit > 1 && fault::is_too_long(&error) => {
                Box::pin(self.page(page, limit / 10 + 1)).await
            }
            answer => answer,
        }
    }

    async fn read_once(&self, prefixes: &[&str]) -> Result<Snapshot, StoreError> {
        let mut snapshot = Snapshot::default();
        let mut revision = None;
        for prefix in prefixes {
            let mut page = Page { prefix, from: first_key(prefix), revision };
            loop {
                let mut answer = self.page(&page, PAGE).await?;
                let header = answer.header().ok_or_else(no_header)?;
                revision = revision.or(Some(Revision(header.revision())));
                let (kvs, more) = (answer.take_kvs(), answer.more());
                page.revision = revision;
                page.from = kvs.last().map_or_else(Vec::new, |kv| successor(kv.key()));
                snapshot.keys.extend(kvs.into_iter().filter_map(|kv| self.translate(kv)));
                if !more || page.from.is_empty() {
                    break;
                }
            }
        }
        snapshot.revision = revision.unwrap_or_default();
        Ok(snapshot)
    }

    fn translate(&self, kv: etcd_client::KeyValue) -> Option<KeyValue> {
        let translated = translate(kv);
        if translated.is_none() && self.foreign.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(
                "etcd holds keys under our prefixes that are not text; they are skipped"
            );
        }
        translated
    }

    /// Opens a watch on `live`: the stream of answers after the one that says it is established.
    async fn open(
        &self,
        live: &Live,
        span: &Span,
        after: Revision,
    ) -> Result<etcd_client::WatchStream, Fault> {
        let options = WatchOptions::new()
            .with_range(span.end.clone())
            .with_start_revision(after.0.max(1))
            .with_progress_notify()
            .with_fragment();
        let mut client = live.client.watch_client().max_decoding_message_size(MAX_ANSWER);
        let mut stream = client.watch(span.begin.clone(), Some(options)).await?;
        loop {
            let message = stream.message().await?;
            let message = message.ok_or_else(|| Fault::again("the watch was not opened"))?;
            self.pool.check_cluster(message.header())?;
            if let Some(error) = fault::cancelled(&message) {
                return Err(error);
            }
            if message.created() {
                return Ok(stream);
            }
        }
    }

    /// Opens a watch on any endpoint.
    async fn open_anywhere(
        &self,
        span: &Span,
        after: Revision,
    ) -> Result<(etcd_client::WatchStream, Live), StoreError> {
        let open = |live: Live| {
            let (store, span) = (self.clone(), span.clone());
            async move {
                let stream = store.open(&live, &span, after).await?;
                Ok::<_, Fault>((stream, live))
            }
        };
        self.pool.repeat("opening a watch", open).await
    }

    /// Passes on what a watch reports, from one endpoint after another. Returns why that ends,
    /// unless the consumer is gone.
    async fn follow_anywhere(
        &self,
        mut opened: (etcd_client::WatchStream, Live),
        span: Span,
        after: Revision,
        sender: &WatchSender,
    ) -> Option<StoreError> {
        let mut assembler = Assembler::new(span.prefixes.clone(), after);
        loop {
            let (stream, live) = opened;
            let fault = tokio::select! {
                () = live.down.cancelled() => Fault::again("the endpoint was given up"),
                fault = self.follow(stream, &mut assembler, sender) => fault?,
            };
            tracing::debug!(?fault, "a watch goes on elsewhere");
            match fault {
                Fault::Final(error) => return Some(error),
                Fault::Again { broken: true, .. } => live.down.cancel(),
                Fault::Again { broken: false, .. } => {}
            }
            assembler = assembler.restarted();
            // A watch that ends as soon as it is open must not keep everybody busy.
            sleep(REOPENING).await;
            opened = match self.open_anywhere(&span, assembler.seen()).await {
                Ok(opened) => opened,
                Err(error) => return Some(error),
            };
        }
    }

    /// Passes on what a watch reports until it ends; returns why, unless the consumer is gone.
    async fn follow(
        &self,
        mut stream: etcd_client::WatchStream,
        assembler: &mut Assembler,
        sender: &WatchSender,
    ) -> Option<Fault> {
        loop {
            let message = match stream.message().await {
                Ok(Some(message)) => message,
                Ok(None) => return Some(Fault::again("etcd ended the watch")),
                Err(error) => return Some(error.into()),
            };
            if let Some(fault) = fault::cancelled(&message) {
                return Some(fault);
            }
            if message.created() {
                continue;
            }
            let batch = assembler.take(message.0, |kv| self.translate(etcd_client::KeyValue(kv)));
            if batch.is_some_and(|batch| !sender.send(batch)) {
                return None;
            }
        }
    }
}

impl fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdStore").field("pool", &self.pool).finish_non_exhaustive()
    }
}

#[async_trait]
impl Store for EtcdStore {
    async fn txn(&self, txn: Txn) -> Result<TxnReply, StoreError> {
        model::check(&txn)?;
        let lease = txn.changes().find_map(lease_of);
        let request = request(&txn);
        let call = |live: Live| {
            let (mut kv, request) = (live.client.kv_client(), request.clone());
            async move { kv.txn(request).await }
        };
        let answer = if txn.is_guarded() {
            self.pool.repeat("a transaction", call).await
        } else {
            self.pool.once("a transaction", call).await
        };
        let answer = answer.map_err(|error| name_lease(error, lease.as_ref()))?;
        reply(&answer)
    }

    async fn read(&self, prefixes: &[String]) -> Result<Snapshot, StoreError> {
        let prefixes = model::disjoint(prefixes);
        for _ in 0..READS {
            match self.read_once(&prefixes).await {
                // The revision of the first page went away before the last page.
                Err(StoreError::Compacted(_)) => {}
                other => return other,
            }
        }
        Err(unavailable("the history is compacted faster than it can be read"))
    }

    async fn watch(
        &self,
        prefixes: &[String],
        after: Revision,
    ) -> Result<mpsc::Receiver<Result<Batch, StoreError>>, StoreError> {
        let span = Span::of(prefixes)?;
        let opened = self.open_anywhere(&span, after).await?;
        let (sender, receiver) = WatchSender::channel();
        let store = self.clone();
        tokio::spawn(async move {
            let _watching = store.pool.watching();
            let reason = tokio::select! {
                () = sender.closed() => None,
                reason = store.follow_anywhere(opened, span, after, &sender) => reason,
            };
            if let Some(reason) = reason {
                sender.end(reason);
            }
        });
        Ok(receiver)
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let whole = ttl.max(model::MIN_TTL).as_millis().div_ceil(1000);
        let seconds = i64::try_from(whole).unwrap_or(i64::MAX);
        let id = draw_lease()?;
        let call = |live: Live| {
            let mut leases = live.client.lease_client();
            let options = LeaseGrantOptions::new().with_id(id.0);
            async move { leases.grant(seconds, Some(options)).await }
        };
        match self.pool.repeat("granting a lease", call).await {
            Ok(_) => Ok(id),
            // An earlier try was granted, only its answer was lost.
            Err(StoreError::Refused(reason)) if reason.contains("lease already exists") => Ok(id),
            Err(error) => Err(error),
        }
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        let call = |live: Live| {
            let mut leases = live.client.lease_client();
            async move { leases.keep_alive(lease.0).await }
        };
        let kept = self.pool.repeat("keeping a lease alive", call).await;
        kept.map(drop).map_err(|error| name_lease(error, Some(&lease)))
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        let call = |live: Live| {
            let mut leases = live.client.lease_client();
            async move { leases.revoke(lease.0).await }
        };
        let revoked = self.pool.repeat("revoking a lease", call).await;
        revoked.map(drop).map_err(|error| name_lease(error, Some(&lease)))
    }

    async fn health(&self, patience: Duration) -> Health {
        self.pool.health(patience).await
    }
}

/// Where a read goes on.
struct Page<'a> {
    prefix: &'a str,
    from: Vec<u8>,
    revision: Option<Revision>,
}

/// The smallest range that has all keys under some prefixes.
#[derive(Clone)]
struct Span {
    begin: Vec<u8>,
    end: Vec<u8>,
    prefixes: Vec<String>,
}

impl Span {
    fn of(prefixes: &[String]) -> Result<Self, StoreError> {
        let disjoint = model::disjoint(prefixes);
        let (Some(first), Some(last)) = (disjoint.first(), disjoint.last()) else {
            return Err(StoreError::Refused("nothing to watch".to_owned()));
        };
        Ok(Self {
            begin: first_key(first),
            end: prefix_end(last),
            prefixes: disjoint.into_iter().map(str::to_owned).collect(),
        })
    }
}

/// The smallest key under `prefix`. The empty prefix stands for all keys, of which one NUL is the
/// smallest; etcd takes no empty key.
fn first_key(prefix: &str) -> Vec<u8> {
    if prefix.is_empty() { vec![0] } else { prefix.as_bytes().to_vec() }
}

/// The first key after all keys under `prefix`; one NUL, etcd's sign for the end of everything,
/// if there is none.
fn prefix_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

/// The first key after `key`.
fn successor(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

fn translate(kv: etcd_client::KeyValue) -> Option<KeyValue> {
    let (create, modified) = (Revision(kv.create_revision()), Revision(kv.mod_revision()));
    let lease = (kv.lease() != 0).then(|| LeaseId(kv.lease()));
    let (key, value) = kv.into_key_value();
    Some(KeyValue { key: String::from_utf8(key).ok()?, value, create, modified, lease })
}

fn request(txn: &Txn) -> etcd_client::Txn {
    let compare: Vec<EtcdCompare> = txn.compare.iter().map(compare).collect();
    let mut then: Vec<TxnOp> = txn.then.iter().map(op).collect();
    if then.is_empty() {
        // etcd answers a transaction without operations from what the member knows, however old
        // that is. One that reads is linearizable.
        then.push(TxnOp::get("/", Some(GetOptions::new().with_count_only())));
    }
    etcd_client::Txn::new().when(compare).and_then(then)
}

fn compare(compare: &Compare) -> EtcdCompare {
    match compare {
        Compare::Absent { key } => EtcdCompare::create_revision(key.as_str(), CompareOp::Equal, 0),
        Compare::Exists { key } => {
            EtcdCompare::create_revision(key.as_str(), CompareOp::Greater, 0)
        }
        Compare::Modified { key, at } => {
            EtcdCompare::mod_revision(key.as_str(), CompareOp::Equal, at.0)
        }
        Compare::Created { key, at } => {
            EtcdCompare::create_revision(key.as_str(), CompareOp::Equal, at.0)
        }
    }
}

fn reply(answer: &TxnResponse) -> Result<TxnReply, StoreError> {
    let revision = Revision(answer.header().ok_or_else(no_header)?.revision());
    let nested = answer.op_responses().into_iter().filter_map(|part| match part {
        TxnOpResponse::Txn(nested) => Some(nested.succeeded()),
        TxnOpResponse::Put(_) | TxnOpResponse::Get(_) | TxnOpResponse::Delete(_) => None,
    });
    Ok(TxnReply { committed: answer.succeeded(), revision, nested: nested.collect() })
}

fn op(op: &Op) -> TxnOp {
    match op {
        Op::Put { key, value, lease } => {
            let options = lease.map(|lease| PutOptions::new().with_lease(lease.0));
            TxnOp::put(key.as_str(), value.clone(), options)
        }
        Op::Delete { key } => TxnOp::delete(key.as_str(), None),
        Op::Nested(txn) => TxnOp::txn(request(txn)),
    }
}

fn lease_of(op: &Op) -> Option<LeaseId> {
    match op {
        Op::Put { lease, .. } => *lease,
        Op::Delete { .. } | Op::Nested(_) => None,
    }
}

/// An id for a new lease, so that a repeated grant does not make a second one.
fn draw_lease() -> Result<LeaseId, StoreError> {
    let drawn = getrandom::u64().map_err(|e| unavailable(&format!("drawing a lease's id: {e}")))?;
    Ok(LeaseId((drawn >> 1).max(1).cast_signed()))
}

/// etcd does not say which lease it misses.
fn name_lease(error: StoreError, lease: Option<&LeaseId>) -> StoreError {
    match (error, lease) {
        (StoreError::NoLease(_), Some(lease)) => StoreError::NoLease(*lease),
        (error, _) => error,
    }
}

fn no_header() -> StoreError {
    unavailable("etcd answered without a header")
}

fn unavailable(reason: &str) -> StoreError {
    StoreError::Unavailable(reason.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_end_after_the_last_key() {
        assert_eq!(prefix_end("/wmgwd/"), b"/wmgwd0");
        assert_eq!(prefix_end("a\u{7f}"), b"a\x80");
        assert_eq!(prefix_end(""), [0]);
        let span = Span::of(&["/wmgwd/".to_owned(), "/selvedge/".to_owned()]).expect("two");
        assert_eq!(
            (span.begin.as_slice(), span.end.as_slice()),
            (&b"/selvedge/"[..], &b"/wmgwd0"[..])
        );
        assert!(matches!(Span::of(&[]), Err(StoreError::Refused(_))));
    }

    #[test]
    fn a_password_is_not_printed() {
        let mut config = EtcdConfig::new(["http://localhost:2379"]);
        config.auth = Some(("root".to_owned(), "secret".to_owned()));
        let text = format!("{config:?}");
        assert!(text.contains("root") && !text.contains("secret"), "{text}");
    }
}
