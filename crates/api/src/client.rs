mod watch;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use selvedge_model::NodeName;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, agent, gateway, mesh};

pub use watch::Watch;

/// How long an answer may take unless [`Client::with_timeout`] says otherwise. Joining a mesh
/// tries several addresses, so this is generous.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A client of one agent, over the agent's Unix socket.
///
/// Cheap to clone. Each call is one request with a time limit; nothing is retried, because a
/// request that was not answered may have been carried out.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    socket: PathBuf,
    timeout: Duration,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The agent answered that it did not do it.
    #[error(transparent)]
    Api(#[from] Error),
    /// Nobody serves the socket. Nothing was changed.
    #[error("the agent is not running: {why} {}", socket.display())]
    NotRunning {
        /// Where the agent was expected.
        socket: PathBuf,
        /// `no socket at` or `nobody answers at`.
        why: &'static str,
    },
    /// The socket may not be opened by this user. Nothing was changed.
    #[error("no permission to open {}", socket.display())]
    Denied {
        /// The socket.
        socket: PathBuf,
    },
    /// No answer in time. Whether it was done is unknown.
    #[error("{request}: the agent did not answer within {} s", limit.as_secs_f64())]
    Timeout {
        /// Method and path.
        request: String,
        /// The time limit.
        limit: Duration,
    },
    /// The connection broke, or the answer is none of ours. Whether it was done is unknown.
    #[error("{request}: {reason}")]
    Broken {
        /// Method and path.
        request: String,
        /// What happened.
        reason: String,
    },
}

impl ClientError {
    /// What to do about it, if anything is known to help.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Api(error) => error.hint.clone(),
            Self::NotRunning { .. } => Some(
                "start it with `selvedge agent`, or name the socket of a running one with --socket"
                    .to_owned(),
            ),
            Self::Denied { .. } => {
                Some("use root or a member of the group in `socket_group`".to_owned())
            }
            Self::Timeout { .. } | Self::Broken { .. } => {
                Some("look at the agent's log; ask again what the state is".to_owned())
            }
        }
    }
}

impl Client {
    /// A client of the agent that serves `socket`. Nothing is opened yet.
    ///
    /// # Errors
    /// [`ClientError::Broken`] if the HTTP client cannot be set up.
    pub fn new(socket: impl Into<PathBuf>) -> Result<Self, ClientError> {
        let socket = socket.into();
        let http = reqwest::Client::builder()
            .unix_socket(socket.as_path())
            .pool_max_idle_per_host(1)
            .build()
            .map_err(|error| broken("set-up", error))?;
        Ok(Self { http, socket, timeout: TIMEOUT })
    }

    /// The same client with another time limit per call.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The socket that it talks to.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What the agent says of itself.
    ///
    /// # Errors
    /// Like every call: see [`ClientError`].
    pub async fn info(&self) -> Result<agent::Info, ClientError> {
        self.get(&["agent"]).await
    }

    /// Has the agent start again: the program at its path, with the same arguments. Returns before
    /// that happens; [`info`](Self::info) tells the runs apart.
    ///
    /// # Errors
    /// See [`ClientError`]; also if the program could not be started. Nothing was changed then.
    pub async fn restart(
        &self,
        request: &agent::RestartRequest,
    ) -> Result<agent::Restarting, ClientError> {
        self.post(&["agent", "restart"], request).await
    }

    /// The agent's metrics in the OpenMetrics text format.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn metrics(&self) -> Result<String, ClientError> {
        self.text(&["metrics"]).await
    }

    /// All meshes of the agent.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn meshes(&self) -> Result<Vec<mesh::Summary>, ClientError> {
        self.get(&["meshes"]).await
    }

    /// One mesh, by name or id.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn mesh(&self, mesh: &str) -> Result<mesh::Mesh, ClientError> {
        self.get(&["meshes", mesh]).await
    }

    /// Founds a mesh.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn create_mesh(
        &self,
        request: &mesh::CreateRequest,
    ) -> Result<mesh::Mesh, ClientError> {
        self.post(&["meshes"], request).await
    }

    /// Joins a mesh.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn join_mesh(&self, request: &mesh::JoinRequest) -> Result<mesh::Mesh, ClientError> {
        self.post(&["meshes", "join"], request).await
    }

    /// Makes a token with which others join a mesh, by name or id.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn invite(
        &self,
        mesh: &str,
        request: &mesh::InviteRequest,
    ) -> Result<mesh::Invite, ClientError> {
        self.post(&["meshes", mesh, "invites"], request).await
    }

    /// Leaves a mesh, by name or id.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn leave_mesh(&self, mesh: &str) -> Result<mesh::Left, ClientError> {
        self.call(Request::new(Method::DELETE, &["meshes", mesh]), None::<&()>).await
    }

    /// Puts a member, by name or id, out of a mesh, by name or id.
    ///
    /// # Errors
    /// See [`ClientError`]; also if this node may not.
    pub async fn evict(&self, mesh: &str, member: &str) -> Result<mesh::Evicted, ClientError> {
        let path = ["meshes", mesh, "members", member];
        self.call(Request::new(Method::DELETE, &path), None::<&()>).await
    }

    /// Who would be put out of a mesh with a member, each by name or id; nothing is done.
    ///
    /// # Errors
    /// See [`ClientError`]; also if this node may not.
    pub async fn eviction(&self, mesh: &str, member: &str) -> Result<mesh::Evicted, ClientError> {
        let path = ["meshes", mesh, "members", member, "eviction"];
        self.call(Request::new(Method::GET, &path), None::<&()>).await
    }

    /// Says something else about this node in a mesh, by name or id.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn edit_node(
        &self,
        mesh: &str,
        request: &mesh::EditRequest,
    ) -> Result<mesh::Mesh, ClientError> {
        self.call(Request::new(Method::PATCH, &["meshes", mesh, "node"]), Some(request)).await
    }

    /// The answer to a JMESPath expression over the members of a mesh, by name or id.
    ///
    /// # Errors
    /// See [`ClientError`]; also if the expression is malformed, or too long or too deep.
    pub async fn query_mesh(
        &self,
        mesh: &str,
        expression: &str,
    ) -> Result<serde_json::Value, ClientError> {
        let request = mesh::QueryRequest { expression: expression.to_owned() };
        self.post(&["meshes", mesh, "query"], &request).await
    }

    /// All meshes as one graph in the language of Graphviz.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn mesh_graph(&self) -> Result<String, ClientError> {
        self.text(&["meshes", "graph"]).await
    }

    /// What happens in all meshes from now on.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn watch_meshes(&self) -> Result<Watch<mesh::Event>, ClientError> {
        self.events(&["meshes", "watch"]).await
    }

    /// What is wrong with all meshes, or with one, and what to do about it; the gravest first.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn doctor(&self, mesh: Option<&str>) -> Result<Vec<gateway::Finding>, ClientError> {
        let mut request = Request::new(Method::GET, &["meshes", "doctor"]);
        request.query.extend(mesh.map(|mesh| ("mesh", mesh.to_owned())));
        self.call(request, None::<&()>).await
    }

    /// How names of mesh members are answered on this host.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn dns(&self) -> Result<mesh::Dns, ClientError> {
        self.get(&["dns"]).await
    }

    /// The overlay networks that this host carries over a mesh.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn tunnels(&self) -> Result<mesh::Tunnels, ClientError> {
        self.get(&["tunnels"]).await
    }

    /// The description of the API (OpenAPI 3.1), as JSON.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn openapi(&self) -> Result<serde_json::Value, ClientError> {
        self.get(&["openapi.json"]).await
    }

    /// What the gateway knows of itself and the others.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn gateway(&self) -> Result<gateway::Status, ClientError> {
        self.get(&["gateway"]).await
    }

    /// All networks in the order of their VNIs.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn networks(&self) -> Result<Vec<gateway::NetworkRow>, ClientError> {
        self.get(&["gateway", "networks"]).await
    }

    /// Starts to drain a gateway, `None` being the one that is asked. Returns at once.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn drain(&self, name: Option<NodeName>) -> Result<gateway::Drain, ClientError> {
        self.post(&["gateway", "drain"], &gateway::DrainRequest { name }).await
    }

    /// Ends the drain of a gateway.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn undrain(&self, name: Option<NodeName>) -> Result<gateway::Drain, ClientError> {
        self.post(&["gateway", "undrain"], &gateway::DrainRequest { name }).await
    }

    /// Takes the networks of a lost gateway over without asking the store. Returns as soon as that
    /// has begun; [`watch`](Self::watch) shows what follows.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn take_over(&self, name: NodeName) -> Result<gateway::Takeover, ClientError> {
        self.post(&["gateway", "takeover"], &gateway::TakeoverRequest { name }).await
    }

    /// Fills a store that was reset with what this agent knew of the former one, for some seconds: to
    /// be repeated until it is done.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn refill(&self) -> Result<gateway::Refill, ClientError> {
        self.post(&["gateway", "refill"], &()).await
    }

    /// Strikes a node that is gone for good from the roster.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn remove(&self, name: &NodeName) -> Result<gateway::Removed, ClientError> {
        let path = ["gateway", "nodes", name.as_str()];
        self.call(Request::new(Method::DELETE, &path), None::<&()>).await
    }

    /// The latest changes of owners, in the order in which they happened.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn history(
        &self,
        query: gateway::HistoryQuery,
    ) -> Result<Vec<gateway::ChangeRow>, ClientError> {
        let mut request = Request::new(Method::GET, &["gateway", "history"]);
        let vni = query.vni.map(|vni| ("vni", vni.to_string()));
        let last = query.last.map(|last| ("last", last.to_string()));
        request.query.extend(vni.into_iter().chain(last));
        self.call(request, None::<&()>).await
    }

    /// What is right and wrong with this host and its FRRouting, for a gateway.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn check(&self) -> Result<Vec<gateway::Finding>, ClientError> {
        self.get(&["gateway", "check"]).await
    }

    /// What happens at the gateway from now on.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn watch(&self) -> Result<Watch, ClientError> {
        self.events(&["gateway", "watch"]).await
    }

    async fn events<T: DeserializeOwned>(&self, path: &[&str]) -> Result<Watch<T>, ClientError> {
        let request = Request::new(Method::GET, path);
        let builder = self.http.request(request.method.clone(), request.url());
        let response = self.checked(&request, builder).await?;
        Ok(Watch::new(request.to_string(), response))
    }

    async fn text(&self, path: &[&str]) -> Result<String, ClientError> {
        let request = Request::new(Method::GET, path);
        let response = self.send(&request, None::<&()>).await?;
        response.text().await.map_err(|error| self.explain(&request, error))
    }

    async fn get<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, ClientError> {
        self.call(Request::new(Method::GET, path), None::<&()>).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.call(Request::new(Method::POST, path), Some(body)).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        request: Request,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let response = self.send(&request, body).await?;
        response.json().await.map_err(|error| self.explain(&request, error))
    }

    async fn send(
        &self,
        request: &Request,
        body: Option<&impl Serialize>,
    ) -> Result<Response, ClientError> {
        let mut builder =
            self.http.request(request.method.clone(), request.url()).timeout(self.timeout);
        if let Some(body) = body {
            builder = builder.json(body);
        }
        self.checked(request, builder).await
    }

    /// The answer, if it is a success.
    async fn checked(
        &self,
        request: &Request,
        builder: RequestBuilder,
    ) -> Result<Response, ClientError> {
        let response = builder.send().await.map_err(|error| self.explain(request, error))?;
        match response.status() {
            status if status.is_success() => Ok(response),
            status => Err(self.refusal(request, status, response).await),
        }
    }

    async fn refusal(
        &self,
        request: &Request,
        status: StatusCode,
        response: Response,
    ) -> ClientError {
        let text = match response.text().await {
            Ok(text) => text,
            Err(error) => return self.explain(request, error),
        };
        match serde_json::from_str(&text) {
            Ok(error) => ClientError::Api(error),
            Err(_) => broken(&request.to_string(), format!("{status} without a reason")),
        }
    }

    fn explain(&self, request: &Request, error: reqwest::Error) -> ClientError {
        let socket = self.socket.clone();
        if error.is_timeout() {
            return ClientError::Timeout { request: request.to_string(), limit: self.timeout };
        }
        match io_kind(&error).filter(|_| error.is_connect()) {
            Some(io::ErrorKind::NotFound) => {
                ClientError::NotRunning { socket, why: "no socket at" }
            }
            Some(io::ErrorKind::ConnectionRefused) => {
                ClientError::NotRunning { socket, why: "nobody answers at" }
            }
            Some(io::ErrorKind::PermissionDenied) => ClientError::Denied { socket },
            Some(_) | None => broken(&request.to_string(), chain(&error)),
        }
    }
}

/// Method and path of one call.
struct Request {
    method: Method,
    path: Vec<String>,
    query: Vec<(&'static str, String)>,
}

impl Request {
    fn new(method: Method, path: &[&str]) -> Self {
        let path = path.iter().map(|&segment| segment.to_owned()).collect();
        Self { method, path, query: Vec::new() }
    }

    /// The host is of no meaning on a Unix socket; HTTP wants one all the same.
    fn url(&self) -> Url {
        let mut url = Url::parse("http://agent/v1").expect("a constant that is a URL");
        url.path_segments_mut().expect("http URLs have paths").extend(&self.path);
        if !self.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&self.query);
        }
        url
    }
}

impl std::fmt::Display for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.method, self.url().path())
    }
}

fn broken(request: &str, reason: impl std::fmt::Display) -> ClientError {
    ClientError::Broken { request: request.to_owned(), reason: reason.to_string() }
}

fn sources(error: &reqwest::Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    let first: &(dyn std::error::Error + 'static) = error;
    std::iter::successors(Some(first), |error| error.source())
}

fn io_kind(error: &reqwest::Error) -> Option<io::ErrorKind> {
    sources(error).find_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind)
}

fn chain(error: &reqwest::Error) -> String {
    sources(error).skip(1).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;

    /// Serves one connection on a socket: reads a request, writes `reply` and keeps the line open.
    async fn once(listener: UnixListener, reply: &'static str) -> String {
        let (mut stream, _) = listener.accept().await.expect("accepts");
        let mut buffer = vec![0; 4096];
        let read = stream.read(&mut buffer).await.expect("reads");
        stream.write_all(reply.as_bytes()).await.expect("writes");
        String::from_utf8_lossy(&buffer[..read]).into_owned()
    }

    fn socket() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("agent.sock");
        (dir, path)
    }

    #[tokio::test]
    async fn an_absent_agent_is_said_to_be_absent() {
        let (_dir, path) = socket();
        let client = Client::new(&path).expect("client");
        let error = client.info().await.expect_err("nobody there");
        let expected = format!("the agent is not running: no socket at {}", path.display());
        assert_eq!(error.to_string(), expected);
        drop(UnixListener::bind(&path).expect("binds"));
        let error = client.info().await.expect_err("nobody there");
        assert!(error.to_string().contains("nobody answers at"), "{error}");
    }

    #[tokio::test]
    async fn names_are_escaped_and_errors_come_back_whole() {
        let (_dir, path) = socket();
        let listener = UnixListener::bind(&path).expect("binds");
        let reply = "HTTP/1.1 404 Not Found\r\ncontent-length: 42\r\n\r\n\
                     {\"code\":\"not-found\",\"message\":\"no mesh x\"}";
        let server = tokio::spawn(once(listener, reply));
        let client = Client::new(&path).expect("client");
        let error = client.mesh("a/b c").await.expect_err("refused");
        assert!(matches!(error, ClientError::Api(e) if e == Error::not_found("no mesh x")));
        let request = server.await.expect("served");
        assert!(request.starts_with("GET /v1/meshes/a%2Fb%20c HTTP/1.1\r\n"), "{request}");
    }

    #[tokio::test]
    async fn a_foreign_answer_is_named() {
        let (_dir, path) = socket();
        let listener = UnixListener::bind(&path).expect("binds");
        let reply = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
        let server = tokio::spawn(once(listener, reply));
        let client = Client::new(&path).expect("client");
        let error = client.gateway().await.expect_err("not JSON");
        assert!(error.to_string().starts_with("GET /v1/gateway: "), "{error}");
        server.await.expect("served");
    }

    #[tokio::test]
    async fn events_come_one_by_one_however_they_were_cut() {
        let (_dir, path) = socket();
        let listener = UnixListener::bind(&path).expect("binds");
        let (first, second) =
            ("{\"at_ms\":1,\"event\":\"conv", "icted\"}\n{\"at_ms\":2,\"event\":\"left\"}\n");
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("accepts");
            let mut buffer = vec![0; 4096];
            let read = stream.read(&mut buffer).await.expect("reads");
            let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).await.expect("writes");
            for part in [first, second, ""] {
                let chunk = format!("{:x}\r\n{part}\r\n", part.len());
                stream.write_all(chunk.as_bytes()).await.expect("writes");
            }
            String::from_utf8_lossy(&buffer[..read]).into_owned()
        });
        let mut watch = Client::new(&path).expect("client").watch().await.expect("watches");
        let mut next = async || watch.next().await.expect("an event").map(|event| event.what);
        assert_eq!(next().await, Some(gateway::What::Convicted));
        assert_eq!(next().await, Some(gateway::What::Left));
        assert_eq!(next().await, None, "the agent has ended");
        let request = server.await.expect("served");
        assert!(request.starts_with("GET /v1/gateway/watch HTTP/1.1\r\n"), "{request}");
    }

    #[tokio::test]
    async fn what_is_asked_for_is_in_the_query() {
        let (_dir, path) = socket();
        let listener = UnixListener::bind(&path).expect("binds");
        let server = tokio::spawn(once(listener, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]"));
        let client = Client::new(&path).expect("client");
        let query = gateway::HistoryQuery { vni: 7.try_into().ok(), last: Some(3) };
        assert_eq!(client.history(query).await.expect("answers"), []);
        let request = server.await.expect("served");
        assert!(request.starts_with("GET /v1/gateway/history?vni=7&last=3 HTTP"), "{request}");
    }

    #[tokio::test]
    async fn silence_ends_with_the_time_limit() {
        let (_dir, path) = socket();
        let _listener = UnixListener::bind(&path).expect("binds");
        let client = Client::new(&path).expect("client").with_timeout(Duration::from_millis(50));
        let error = client.meshes().await.expect_err("silent");
        let expected = "GET /v1/meshes: the agent did not answer within 0.05 s";
        assert_eq!(error.to_string(), expected);
    }
}
