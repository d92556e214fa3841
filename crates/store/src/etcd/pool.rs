//! One connection per endpoint, and which of them is used.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use etcd_client::{
    Certificate, Client, ConnectOptions, GetOptions, Identity, ResponseHeader, TlsOptions,
};
use futures_util::future::{BoxFuture, FutureExt as _, Shared};
use selvedge_gateway::kv::{Health, StoreError};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::fault::Fault;
use super::lookout::{Answer, Leadership, Lookout, lock, unfit};
use super::race::{Plan, Race};
use super::{EtcdConfig, EtcdConfigError, EtcdTls};

/// How long connecting to one endpoint may take, the handshake and the first answer included.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(300);
/// How often an idle connection with a watch is tried. etcd closes connections that are tried
/// more often than every 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(6);
/// How long the answer to that may take.
const PING_TIMEOUT: Duration = Duration::from_secs(1);
/// How often the member in use is asked how it is while there is a watch.
const ROUND: Duration = Duration::from_millis(100);
/// How often all members are asked while a call waits for its answer.
const BUSY_ROUND: Duration = Duration::from_millis(20);
/// How long a member may take to answer how it is.
const PATIENCE: Duration = Duration::from_millis(100);
/// The same while a call waits: a silent member must not keep the news of a new leader back.
const BUSY_PATIENCE: Duration = Duration::from_millis(40);
/// All members are asked in every so many rounds, even if nothing is wrong.
const FULL_ROUND: u32 = 10;
/// By how much a member may lag behind another one.
const LAG: Duration = Duration::from_millis(500);

/// A connection to a member that has answered.
#[derive(Clone)]
pub(super) struct Live {
    pub(super) client: Client,
    /// Cancelled when the connection is given up.
    pub(super) down: CancellationToken,
}

/// A connection that is being made or has been made, for all who wait for it.
type Connecting = Shared<BoxFuture<'static, Result<Live, Fault>>>;

/// The endpoints. One is in use until it fails, then another one is.
pub(super) struct Pool {
    endpoints: Vec<Endpoint>,
    current: AtomicUsize,
    connector: Arc<Connector>,
    timeout: Duration,
    lookout: Lookout,
    /// How many want the members to be looked after: watches, and calls that wait for long.
    watches: Arc<AtomicUsize>,
    waiting: Arc<AtomicUsize>,
    looking: AtomicBool,
    leadership: watch::Sender<Option<Leadership>>,
}

struct Endpoint {
    url: String,
    connecting: Mutex<Option<Connecting>>,
}

/// Makes connections.
struct Connector {
    options: ConnectOptions,
    auth: Option<(String, String)>,
    /// The id of the cluster that answered first.
    cluster: OnceLock<u64>,
}

/// Counts somebody for as long as it exists.
pub(super) struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(counter: &Arc<AtomicUsize>) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(counter))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pool {
    /// Prepares the endpoints without connecting to any.
    pub(super) async fn new(config: EtcdConfig) -> Result<Self, EtcdConfigError> {
        let EtcdConfig { endpoints, tls, auth, timeout } = config;
        if endpoints.is_empty() {
            return Err(EtcdConfigError::NoEndpoint);
        }
        if tls.as_ref().is_some_and(|tls| !contains(&tls.ca, CERTIFICATE)) {
            return Err(EtcdConfigError::Authority);
        }
        let options = options(tls.as_ref());
        for endpoint in &endpoints {
            check(endpoint, tls.is_some(), &options).await.map_err(|reason| {
                EtcdConfigError::Endpoint { endpoint: endpoint.clone(), reason }
            })?;
        }
        let lookout = Lookout::new(&endpoints, options.clone().with_require_leader(false));
        let endpoint = |url| Endpoint { url, connecting: Mutex::new(None) };
        Ok(Self {
            endpoints: endpoints.into_iter().map(endpoint).collect(),
            current: AtomicUsize::new(0),
            connector: Arc::new(Connector { options, auth, cluster: OnceLock::new() }),
            timeout,
            lookout,
            watches: Arc::default(),
            waiting: Arc::default(),
            looking: AtomicBool::new(false),
            leadership: watch::Sender::new(None),
        })
    }

    /// How the members are; takes no longer than `patience`.
    pub(super) async fn health(&self, patience: Duration) -> Health {
        self.lookout.health(patience).await
    }

    /// Runs a call that may be repeated, on one endpoint after another until one of them answers
    /// or the time limit is reached.
    pub(super) async fn repeat<T, E, F>(
        self: &Arc<Self>,
        what: &str,
        call: impl Fn(Live) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, E>>,
        Fault: From<E>,
    {
        let try_on = |index| self.attempt(index, &call);
        Race::new(self, Plan::Repeat).run(try_on).await.map_err(|fault| fault.into_error(what))
    }

    /// Runs a call that must not be sent twice, on an endpoint that has answered before. Ends
    /// early if that one falls silent.
    pub(super) async fn once<T, E, F>(
        self: &Arc<Self>,
        what: &str,
        call: impl Fn(Live) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, E>>,
        Fault: From<E>,
    {
        let connected = |index| async move { Ok((index, self.live(index).await?)) };
        let found = Race::new(self, Plan::Repeat).run(connected).await;
        let (index, live) = found.map_err(|fault: Fault| fault.into_error(what))?;
        let try_on = |_| async { call(live.clone()).await.map_err(Fault::from) };
        let result = Race::new(self, Plan::Once(index)).run(try_on).await;
        result.map_err(|fault| fault.into_error(what))
    }

    /// Whether an answer comes from the cluster that all the others came from.
    pub(super) fn check_cluster(&self, header: Option<&ResponseHeader>) -> Result<(), StoreError> {
        self.connector.check_cluster(header)
    }

    /// Has the members looked after until the result is dropped.
    pub(super) fn watching(self: &Arc<Self>) -> Counted {
        self.look();
        Counted::new(&self.watches)
    }

    /// The same for a call that has waited for long.
    pub(super) fn waiting(self: &Arc<Self>) -> Counted {
        self.look();
        Counted::new(&self.waiting)
    }

    /// Who leads; changes while somebody looks.
    pub(super) fn leadership(&self) -> watch::Receiver<Option<Leadership>> {
        self.leadership.subscribe()
    }

    /// How long a call may take.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// How many endpoints there are.
    pub(super) fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// The endpoint in use.
    pub(super) fn current(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    /// Uses another endpoint from now on, unless somebody else has left this one before.
    pub(super) fn move_on(&self, from: usize, to: usize) {
        let moved = self.current.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed);
        if moved.is_ok() && from != to {
            tracing::debug!(from = self.endpoints[from].url, to = self.endpoints[to].url, "moving");
        }
    }

    /// What the member behind an endpoint says of itself.
    pub(super) async fn ask(&self, index: usize, patience: Duration) -> Option<Answer> {
        self.lookout.ask(index, patience).await
    }

    /// Tries a call once; the connection is given up if it does not work any more.
    async fn attempt<T, E, F>(&self, index: usize, call: impl Fn(Live) -> F) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, E>>,
        Fault: From<E>,
    {
        let live = self.live(index).await?;
        let down = live.down.clone();
        let result = tokio::select! {
            result = call(live) => result.map_err(Fault::from),
            () = down.cancelled() => Err(Fault::again("the connection was given up")),
        };
        if let Err(Fault::Again { broken: true, .. }) = &result {
            down.cancel();
        }
        result.inspect_err(|fault| {
            tracing::debug!(endpoint = self.endpoints[index].url, ?fault);
        })
    }

    /// The connection to an endpoint, made if need be. Who waits for it no longer does not stop
    /// the others, nor those who come after.
    async fn live(&self, index: usize) -> Result<Live, Fault> {
        let connecting = self.connecting(index);
        connecting.await
    }

    fn connecting(&self, index: usize) -> Connecting {
        let endpoint = &self.endpoints[index];
        let mut slot = lock(&endpoint.connecting);
        let usable = |connecting: &&Connecting| match connecting.peek() {
            None => true,
            Some(Ok(live)) => !live.down.is_cancelled(),
            Some(Err(_)) => false,
        };
        if let Some(connecting) = slot.as_ref().filter(usable) {
            return connecting.clone();
        }
        let task = tokio::spawn(Arc::clone(&self.connector).connect(endpoint.url.clone()));
        let joined =
            task.map(|end| end.unwrap_or_else(|error| Err(Fault::again(error.to_string()))));
        slot.insert(joined.boxed().shared()).clone()
    }

    /// Drops the connection to an endpoint, if there is one.
    fn give_up(&self, index: usize) {
        let slot = lock(&self.endpoints[index].connecting);
        if let Some(Ok(live)) = slot.as_ref().and_then(Shared::peek)
            && !live.down.is_cancelled()
        {
            tracing::debug!(endpoint = self.endpoints[index].url, "giving up a connection");
            live.down.cancel();
        }
    }

    /// Starts to look after the members, unless that is going on.
    fn look(self: &Arc<Self>) {
        if !self.looking.swap(true, Ordering::Relaxed) {
            tokio::spawn(look(Arc::downgrade(self)));
        }
    }

    /// One round of looking after the members.
    async fn round(&self, rounds: &mut Rounds) {
        let is_waited_for = self.waiting.load(Ordering::Relaxed) > 0;
        let mut silent = None;
        if !is_waited_for && !rounds.is_full() {
            let current = self.current();
            match self.ask(current, PATIENCE).await {
                Some(answer) if answer.is_led() => return,
                Some(_) => {}
                None => silent = Some(current),
            }
        }
        let patience = if is_waited_for { BUSY_PATIENCE } else { PATIENCE };
        let answers = self.lookout.ask_all_but(silent, patience).await;
        let unfit = rounds.unfit(&answers, is_waited_for);
        self.sort_out(&unfit, &answers);
        let leadership = self.lookout.leadership(&answers);
        self.leadership
            .send_if_modified(|known| std::mem::replace(known, leadership) != leadership);
        rounds.note(answers);
    }

    /// Leaves the endpoints that are unfit, and connects to the others, so that the connections
    /// are there when they are needed.
    fn sort_out(&self, unfit: &[usize], answers: &[Option<Answer>]) {
        let count = self.endpoints.len();
        for (index, answer) in answers.iter().enumerate() {
            if unfit.contains(&index) {
                self.give_up(index);
                let others = (1..count).map(|n| (index + n) % count);
                let fit = others.into_iter().find(|other| !unfit.contains(other));
                self.move_on(index, fit.unwrap_or(index));
            } else if answer.is_some() {
                let _ = self.connecting(index).now_or_never();
            }
        }
    }
}

/// What is remembered from round to round.
struct Rounds {
    number: u32,
    before: Vec<Option<Answer>>,
    noted: Instant,
    /// Who seemed unfit in the latest round.
    suspects: Vec<usize>,
}

impl Rounds {
    /// Whom to leave after a round; after a short one only who was unfit in the one before, too.
    fn unfit(&mut self, answers: &[Option<Answer>], is_short: bool) -> Vec<usize> {
        let unfit = unfit(&self.before, answers);
        let suspects = std::mem::replace(&mut self.suspects, unfit.clone());
        unfit.into_iter().filter(|index| !is_short || suspects.contains(index)).collect()
    }

    fn is_full(&mut self) -> bool {
        self.number += 1;
        self.number.is_multiple_of(FULL_ROUND)
    }

    /// Keeps answers to compare later ones with.
    fn note(&mut self, answers: Vec<Option<Answer>>) {
        if self.noted.elapsed() >= LAG {
            (self.before, self.noted) = (answers, Instant::now());
        }
    }
}

/// Looks after the members while somebody wants it, and the pool exists.
async fn look(pool: Weak<Pool>) {
    let (before, suspects, noted) = (Vec::new(), Vec::new(), Instant::now());
    let mut rounds = Rounds { number: 0, before, noted, suspects };
    loop {
        let Some(pool) = pool.upgrade() else { return };
        let is_waited_for = pool.waiting.load(Ordering::Relaxed) > 0;
        if is_waited_for || pool.watches.load(Ordering::Relaxed) > 0 {
            pool.round(&mut rounds).await;
        }
        drop(pool);
        sleep(if is_waited_for { BUSY_ROUND } else { ROUND }).await;
    }
}

impl Connector {
    /// Connects, and makes sure that the member answers.
    async fn connect(self: Arc<Self>, url: String) -> Result<Live, Fault> {
        let connected = timeout(CONNECT_TIMEOUT, self.client(&url)).await;
        let client = connected.unwrap_or_else(|_| Err(silent(CONNECT_TIMEOUT)))?;
        Ok(Live { client, down: CancellationToken::new() })
    }

    async fn client(&self, url: &str) -> Result<Client, Fault> {
        let mut client = Client::connect([url], Some(self.options.clone())).await?;
        if self.auth.is_some() {
            client.update_user(self.auth.clone()).await?;
        }
        let options = GetOptions::new().with_serializable().with_count_only();
        match client.get(PROBE, Some(options)).await.map_err(Fault::from) {
            Ok(answer) => self.check_cluster(answer.header())?,
            // The member answers; what the user may do shows when it is done.
            Err(Fault::Final(StoreError::Refused(_))) => {}
            Err(fault) => return Err(fault),
        }
        Ok(client)
    }

    fn check_cluster(&self, header: Option<&ResponseHeader>) -> Result<(), StoreError> {
        let Some(found) = header.map(ResponseHeader::cluster_id) else { return Ok(()) };
        let known = *self.cluster.get_or_init(|| found);
        if known == found {
            return Ok(());
        }
        let what = format!("the store was reset: cluster {found:x} answers instead of {known:x}");
        Err(StoreError::Refused(what))
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.endpoints.iter().map(|endpoint| &endpoint.url)).finish()
    }
}

/// A key that is read to see whether a member answers.
const PROBE: &str = "/selvedge/";

/// What a certificate in a PEM file begins with; without one, no member would be trusted.
const CERTIFICATE: &[u8] = b"-----BEGIN CERTIFICATE-----";

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// The fault of an endpoint that has not answered for so long.
pub(super) fn silent(limit: Duration) -> Fault {
    Fault::Again { reason: format!("no answer in {} ms", limit.as_millis()), broken: true }
}

fn options(tls: Option<&EtcdTls>) -> ConnectOptions {
    let options = ConnectOptions::new()
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
        .with_keep_alive_while_idle(false)
        .with_require_leader(true)
        .with_auto_token_refresh(true);
    let Some(tls) = tls else { return options };
    let mut certificates = TlsOptions::new().ca_certificate(Certificate::from_pem(&tls.ca));
    if let Some((certificate, key)) = &tls.identity {
        certificates = certificates.identity(Identity::from_pem(certificate, key));
    }
    options.with_tls(certificates)
}

/// Whether a client can be made for a URL. Nothing is sent.
async fn check(url: &str, tls: bool, options: &ConnectOptions) -> Result<(), String> {
    match (url.split_once("://").map(|(scheme, _)| scheme), tls) {
        (Some("http"), false) | (Some("https"), true) => {}
        (Some("http"), true) => {
            return Err("certificates are given, but it is not https".to_owned());
        }
        (Some("https"), false) => return Err("https needs a certificate authority".to_owned()),
        (Some(_) | None, _) => {
            return Err("expected http://host:port or https://host:port".to_owned());
        }
    }
    Client::connect([url], Some(options.clone())).await.map(drop).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(endpoints: &[&str]) -> EtcdConfig {
        EtcdConfig::new(endpoints.iter().copied())
    }

    #[tokio::test]
    async fn a_wrong_configuration_is_named() {
        let none = Pool::new(config(&[])).await.expect_err("no endpoint");
        assert!(matches!(none, EtcdConfigError::NoEndpoint));
        for url in ["localhost:2379", "ftp://x:1", "https://x:1", "http://", "http://a b:1"] {
            let error = Pool::new(config(&["http://ok:2379", url])).await.expect_err(url);
            assert!(error.to_string().contains(&format!("{url:?}")), "{error}");
        }
        let mut tls = config(&["https://x:1"]);
        tls.tls = Some(EtcdTls { ca: b"no certificate".to_vec(), identity: None });
        let error = Pool::new(tls).await.expect_err("no certificate");
        assert!(matches!(error, EtcdConfigError::Authority));
    }

    /// One address refuses, and one swallows (a listener whose queue is full); none answers.
    #[tokio::test]
    async fn a_call_ends_in_time_if_nobody_answers() {
        let swallowing = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = swallowing.local_addr().expect("bound");
        let urls = [format!("http://{address}"), "http://127.0.0.1:1".to_owned()];
        let mut config = EtcdConfig::new(urls);
        config.timeout = Duration::from_millis(800);
        let pool = Arc::new(Pool::new(config).await.expect("two URLs"));
        let begun = Instant::now();
        let call = |_: Live| async { Ok::<(), etcd_client::Error>(()) };
        let result = pool.once("nothing", call).await;
        assert!(matches!(result, Err(StoreError::Unavailable(_))), "{result:?}");
        assert!(begun.elapsed() < Duration::from_millis(3000), "{:?}", begun.elapsed());
    }
}
