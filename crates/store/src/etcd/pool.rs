//! One connection per endpoint, and which of them is used.

use std::fmt;
use std::future::Future;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::{
    Certificate, Client, ConnectOptions, GetOptions, Identity, ResponseHeader, TlsOptions,
};
use selvedge_gateway::kv::StoreError;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::fault::Fault;
use super::{EtcdConfig, EtcdConfigError, EtcdTls};

/// How long connecting to one endpoint may take, the handshake and the first answer included.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(300);
/// How often an idle connection with a watch is tried. etcd closes connections that are tried
/// more often than every 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(6);
/// How long the answer to that may take.
const PING_TIMEOUT: Duration = Duration::from_secs(1);
/// The pause after all endpoints have failed, one after another.
const PAUSE: Duration = Duration::from_millis(50);

/// A connection to a member that has answered.
#[derive(Clone)]
pub(super) struct Live {
    pub(super) client: Client,
    /// Cancelled when the connection is given up.
    pub(super) down: CancellationToken,
}

/// The endpoints. One is in use until it fails, then the next one is.
pub(super) struct Pool {
    endpoints: Vec<Endpoint>,
    current: AtomicUsize,
    options: ConnectOptions,
    auth: Option<(String, String)>,
    timeout: Duration,
    /// The id of the cluster that answered first.
    cluster: OnceLock<u64>,
}

struct Endpoint {
    url: String,
    live: Mutex<Option<Live>>,
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
        let endpoint = |url| Endpoint { url, live: Mutex::new(None) };
        let endpoints = endpoints.into_iter().map(endpoint).collect();
        let (current, cluster) = (AtomicUsize::new(0), OnceLock::new());
        Ok(Self { endpoints, current, options, auth, timeout, cluster })
    }

    /// Runs a call that may be repeated, on one endpoint after another until one of them answers
    /// or the time limit is reached.
    pub(super) async fn repeat<T, E, F>(
        &self,
        what: &str,
        call: impl Fn(Live) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, E>>,
        Fault: From<E>,
    {
        let deadline = Instant::now() + self.timeout;
        loop {
            let (index, live) = self.connected(what, deadline).await?;
            let limit = self.try_limit().min(deadline - Instant::now());
            match self.attempt(index, live, limit, &call).await {
                Ok(value) => return Ok(value),
                Err(fault @ Fault::Final(_)) => return Err(fault.into_error(what)),
                Err(fault @ Fault::Again { .. }) => {
                    tracing::debug!(endpoint = self.endpoints[index].url, ?fault, what);
                    self.pause(index).await;
                    if Instant::now() >= deadline {
                        return Err(fault.into_error(what));
                    }
                }
            }
        }
    }

    /// Runs a call that must not be sent twice, on an endpoint that has answered before.
    pub(super) async fn once<T, E, F>(
        &self,
        what: &str,
        call: impl Fn(Live) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, E>>,
        Fault: From<E>,
    {
        let deadline = Instant::now() + self.timeout;
        let (index, live) = self.connected(what, deadline).await?;
        let limit = deadline - Instant::now();
        self.attempt(index, live, limit, &call).await.map_err(|fault| fault.into_error(what))
    }

    /// Whether an answer comes from the cluster that all the others came from.
    pub(super) fn check_cluster(&self, header: Option<&ResponseHeader>) -> Result<(), StoreError> {
        let Some(found) = header.map(ResponseHeader::cluster_id) else { return Ok(()) };
        let known = *self.cluster.get_or_init(|| found);
        if known == found {
            return Ok(());
        }
        let what = format!("the store was reset: cluster {found:x} answers instead of {known:x}");
        Err(StoreError::Refused(what))
    }

    /// The endpoint in use, connected; or the next one that can be.
    async fn connected(&self, what: &str, deadline: Instant) -> Result<(usize, Live), StoreError> {
        loop {
            let index = self.current.load(Ordering::Relaxed);
            let fault = match self.live(index).await {
                Ok(live) => return Ok((index, live)),
                Err(fault @ Fault::Final(_)) => return Err(fault.into_error(what)),
                Err(fault @ Fault::Again { .. }) => fault,
            };
            tracing::debug!(endpoint = self.endpoints[index].url, ?fault, "connecting");
            self.leave(index);
            self.pause(index).await;
            if Instant::now() >= deadline {
                return Err(fault.into_error(what));
            }
        }
    }

    /// Tries a call once. An endpoint that fails is left; its connection is given up if it does
    /// not work any more.
    async fn attempt<T, E, F>(
        &self,
        index: usize,
        live: Live,
        limit: Duration,
        call: impl Fn(Live) -> F,
    ) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, E>>,
        Fault: From<E>,
    {
        let down = live.down.clone();
        let result = tokio::select! {
            result = timeout(limit, call(live)) => match result {
                Ok(result) => result.map_err(Fault::from),
                Err(_) => Err(silent(limit)),
            },
            () = down.cancelled() => Err(Fault::again("the connection was given up")),
        };
        if let Err(Fault::Again { broken, .. }) = &result {
            if *broken {
                self.give_up(index, &down).await;
            }
            self.leave(index);
        }
        result
    }

    async fn live(&self, index: usize) -> Result<Live, Fault> {
        let endpoint = &self.endpoints[index];
        let mut slot = endpoint.live.lock().await;
        if let Some(live) = slot.as_ref().filter(|live| !live.down.is_cancelled()) {
            return Ok(live.clone());
        }
        let connected = timeout(CONNECT_TIMEOUT, self.connect(&endpoint.url)).await;
        let client = connected.unwrap_or_else(|_| Err(silent(CONNECT_TIMEOUT)))?;
        let live = Live { client, down: CancellationToken::new() };
        *slot = Some(live.clone());
        Ok(live)
    }

    /// Connects, and makes sure that the member answers and knows a leader.
    async fn connect(&self, url: &str) -> Result<Client, Fault> {
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

    async fn give_up(&self, index: usize, down: &CancellationToken) {
        down.cancel();
        let mut slot = self.endpoints[index].live.lock().await;
        if slot.as_ref().is_some_and(|live| live.down.is_cancelled()) {
            *slot = None;
        }
    }

    /// Makes the next endpoint the current one, unless somebody else did.
    fn leave(&self, index: usize) {
        let next = (index + 1) % self.endpoints.len();
        // If it fails, another caller has left the endpoint before us.
        let _ = self.current.compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Waits a little before the endpoints are gone through again.
    async fn pause(&self, failed: usize) {
        if failed + 1 == self.endpoints.len() {
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// How long one endpoint may take for what can be repeated on another.
    fn try_limit(&self) -> Duration {
        if self.endpoints.len() == 1 { self.timeout } else { self.timeout / 4 }
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

fn silent(limit: Duration) -> Fault {
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
        let pool = Pool::new(config).await.expect("two URLs");
        let begun = Instant::now();
        let call = |_: Live| async { Ok::<(), etcd_client::Error>(()) };
        let result = pool.once("nothing", call).await;
        assert!(matches!(result, Err(StoreError::Unavailable(_))), "{result:?}");
        assert!(begun.elapsed() < Duration::from_millis(3000), "{:?}", begun.elapsed());
    }
}
