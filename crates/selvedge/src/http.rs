//! The HTTP API on the Unix socket: paths to calls of the planes, and back to JSON.

mod mesh;
mod metrics;
mod openapi;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body as Bytes;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures_util::{Stream, stream};
use selvedge_api::agent::{Info, RestartRequest, Restarting};
use selvedge_api::gateway::{
    ChangeRow, Drain, DrainRequest, Event, Finding, HistoryQuery, NetworkRow, Refill, Removed,
    Status, Takeover, TakeoverRequest,
};
use selvedge_api::mesh::Tunnels;
use selvedge_api::{Code, Error};
use selvedge_model::NodeName;
use serde::Serialize;
use tokio::net::UnixListener;
use tokio::sync::watch::Receiver;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::agent::RestartAsk;
use crate::gateway_plane::GatewayHandle;
use crate::mesh_plane::MeshHandle;
use crate::stream::{Subscriber, Told};

/// The greatest body of a request, in bytes. An invite with all its addresses fits many times.
const BODY_MAX: usize = 64 * 1024;

/// How long the agent may take to say whether it can start again. It has the program check its
/// configuration, within a time limit of its own.
const RESTART_LIMIT: Duration = Duration::from_secs(10);

/// What the handlers ask.
pub(crate) struct Parts {
    pub(crate) mesh: Option<MeshHandle>,
    pub(crate) gateway: Option<GatewayHandle>,
    /// The overlay networks over a mesh, if there are any.
    pub(crate) tunnels: Option<Receiver<Tunnels>>,
    /// Where the agent is asked to start again.
    pub(crate) restarts: mpsc::Sender<RestartAsk>,
    /// Ends the API.
    pub(crate) shutdown: CancellationToken,
}

/// What the handlers need.
pub(crate) struct App {
    info: Info,
    started: Instant,
    parts: Parts,
}

impl App {
    pub(crate) const fn new(info: Info, started: Instant, parts: Parts) -> Self {
        Self { info, started, parts }
    }

    fn info(&self) -> Info {
        Info { uptime_s: self.started.elapsed().as_secs(), ..self.info.clone() }
    }

    fn mesh(&self) -> Result<&MeshHandle, Failure> {
        self.parts.mesh.as_ref().ok_or_else(|| disabled("mesh"))
    }

    fn gateway(&self) -> Result<&GatewayHandle, Failure> {
        self.parts.gateway.as_ref().ok_or_else(|| disabled("gateway"))
    }
}

/// Serves the API until its `shutdown` is cancelled and the requests under way are answered.
pub(crate) async fn serve(listener: UnixListener, app: App) {
    let shutdown = app.parts.shutdown.clone();
    let served =
        axum::serve(listener, router(app)).with_graceful_shutdown(shutdown.cancelled_owned()).await;
    if let Err(error) = served {
        error!(%error, "the API ended");
    }
}

fn router(app: App) -> Router {
    let (v1, description) = described().split_for_parts();
    let description = openapi::describe(description);
    let v1 = v1.route(openapi::PATH, get(async || Json(description)));
    Router::new()
        .nest(selvedge_api::PREFIX, v1)
        .fallback(unknown)
        .method_not_allowed_fallback(not_allowed)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(Arc::new(app))
}

/// All calls, each with its description: what is not described is not served.
fn described() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(agent))
        .routes(routes!(restart))
        .routes(routes!(metrics))
        .routes(routes!(mesh::meshes, mesh::create))
        .routes(routes!(mesh::join))
        .routes(routes!(mesh::draw))
        .routes(routes!(mesh::watch_meshes))
        .routes(routes!(mesh::doctor))
        .routes(routes!(mesh::show, mesh::leave))
        .routes(routes!(mesh::invite))
        .routes(routes!(mesh::evict))
        .routes(routes!(mesh::eviction))
        .routes(routes!(mesh::edit))
        .routes(routes!(mesh::ask))
        .routes(routes!(mesh::dns))
        .routes(routes!(mesh::tunnels))
        .routes(routes!(status))
        .routes(routes!(networks))
        .routes(routes!(drain))
        .routes(routes!(undrain))
        .routes(routes!(take_over))
        .routes(routes!(refill))
        .routes(routes!(remove))
        .routes(routes!(history))
        .routes(routes!(check))
        .routes(routes!(watch))
}

type Shared = State<Arc<App>>;
type Body<T> = Result<Json<T>, JsonRejection>;
type Answer<T> = Result<Json<T>, Failure>;

/// What the agent says of itself.
#[utoipa::path(
    get,
    path = "/agent",
    tag = "agent",
    responses((status = 200, body = Info))
)]
async fn agent(State(app): Shared) -> Json<Info> {
    Json(app.info())
}

/// Has the agent start again.
#[utoipa::path(
    post,
    path = "/agent/restart",
    tag = "agent",
    request_body = RestartRequest,
    responses((status = 200, body = Restarting))
)]
async fn restart(State(app): Shared, body: Body<RestartRequest>) -> Answer<Restarting> {
    let (reply, answer) = oneshot::channel();
    let ended = || Error::unavailable("the agent is stopping");
    app.parts.restarts.try_send((body?.0, reply)).map_err(|_| {
        Error::conflict("the agent is about to start again, or to stop").hint("wait a moment")
    })?;
    let late = |_| Error::internal("the agent does not say whether it starts again");
    Ok(Json(timeout(RESTART_LIMIT, answer).await.map_err(late)?.map_err(|_| ended())??))
}

/// The metrics in the OpenMetrics text format.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "agent",
    responses((status = 200, body = String, content_type = "application/openmetrics-text"))
)]
async fn metrics(State(app): Shared) -> Result<impl IntoResponse, Failure> {
    let status = match &app.parts.gateway {
        Some(gateway) => gateway.status().await.ok(),
        None => None,
    };
    let meshes = match &app.parts.mesh {
        Some(mesh) => mesh.list().await.ok(),
        None => None,
    };
    let traffic = match &app.parts.mesh {
        Some(mesh) => mesh.traffic().await.ok(),
        None => None,
    };
    let meshes = meshes.as_deref().zip(traffic.as_ref());
    let text = metrics::encode(&app.info(), meshes, status.as_ref())
        .map_err(|error| Failure(Error::internal(format!("cannot write the metrics: {error}"))))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text))
}

/// What the gateway knows of itself and the others.
#[utoipa::path(
    get,
    path = "/gateway",
    tag = "gateway",
    responses((status = 200, body = Status))
)]
async fn status(State(app): Shared) -> Answer<Status> {
    Ok(Json(app.gateway()?.status().await?))
}

/// All networks in the order of their VNIs.
#[utoipa::path(
    get,
    path = "/gateway/networks",
    tag = "gateway",
    responses((status = 200, body = Vec<NetworkRow>))
)]
async fn networks(State(app): Shared) -> Answer<Vec<NetworkRow>> {
    Ok(Json(app.gateway()?.networks().await?))
}

/// Starts to drain a gateway.
#[utoipa::path(
    post,
    path = "/gateway/drain",
    tag = "gateway",
    request_body = DrainRequest,
    responses((status = 200, body = Drain))
)]
async fn drain(State(app): Shared, body: Body<DrainRequest>) -> Answer<Drain> {
    Ok(Json(app.gateway()?.drain(body?.0.name).await?))
}

/// Ends the drain of a gateway.
#[utoipa::path(
    post,
    path = "/gateway/undrain",
    tag = "gateway",
    request_body = DrainRequest,
    responses((status = 200, body = Drain))
)]
async fn undrain(State(app): Shared, body: Body<DrainRequest>) -> Answer<Drain> {
    Ok(Json(app.gateway()?.undrain(body?.0.name).await?))
}

/// Takes the networks of a lost gateway over without asking the store.
#[utoipa::path(
    post,
    path = "/gateway/takeover",
    tag = "gateway",
    request_body = TakeoverRequest,
    responses((status = 200, body = Takeover))
)]
async fn take_over(State(app): Shared, body: Body<TakeoverRequest>) -> Answer<Takeover> {
    Ok(Json(app.gateway()?.take_over(body?.0.name).await?))
}

/// Fills a store that was reset with what this agent knew of the former one, for some seconds.
#[utoipa::path(
    post,
    path = "/gateway/refill",
    tag = "gateway",
    responses((status = 200, body = Refill))
)]
async fn refill(State(app): Shared) -> Answer<Refill> {
    Ok(Json(app.gateway()?.refill().await?))
}

/// Strikes a node that is gone for good from the roster.
#[utoipa::path(
    delete,
    path = "/gateway/nodes/{name}",
    tag = "gateway",
    params(("name" = String, Path, description = "the node")),
    responses((status = 200, body = Removed))
)]
async fn remove(State(app): Shared, Path(name): Path<String>) -> Answer<Removed> {
    let name: NodeName = name.parse().map_err(Error::invalid)?;
    Ok(Json(app.gateway()?.remove(name).await?))
}

/// The latest changes of owners.
#[utoipa::path(
    get,
    path = "/gateway/history",
    tag = "gateway",
    params(("vni" = Option<u32>, Query, description = "of this network alone"), ("last" = Option<usize>, Query, description = "so many at most")),
    responses((status = 200, body = Vec<ChangeRow>))
)]
async fn history(
    State(app): Shared,
    query: Result<Query<HistoryQuery>, QueryRejection>,
) -> Answer<Vec<ChangeRow>> {
    let Query(query) = query.map_err(|rejection| Error::invalid(rejection.body_text()))?;
    Ok(Json(app.gateway()?.history(query).await?))
}

/// What is right and wrong with this host and its FRRouting.
#[utoipa::path(
    get,
    path = "/gateway/check",
    tag = "gateway",
    responses((status = 200, body = Vec<Finding>))
)]
async fn check(State(app): Shared) -> Answer<Vec<Finding>> {
    Ok(Json(app.gateway()?.check().await))
}

/// A line of JSON for each event (<https://github.com/ndjson/ndjson-spec>), without end.
#[utoipa::path(
    get,
    path = "/gateway/watch",
    tag = "gateway",
    responses((status = 200, body = Event, content_type = "application/x-ndjson"))
)]
async fn watch(State(app): Shared) -> Result<impl IntoResponse, Failure> {
    let events = app.gateway()?.watch();
    let body = Bytes::from_stream(lines(events, app.parts.shutdown.clone()));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body))
}

fn lines<E: Told + Serialize>(
    events: Subscriber<E>,
    shutdown: CancellationToken,
) -> impl Stream<Item = Result<Vec<u8>, Infallible>> {
    stream::unfold((events, shutdown), async |(mut events, shutdown)| {
        let event = tokio::select! {
            // What has happened is told before the end.
            biased;
            event = events.next() => event,
            () = shutdown.cancelled() => return None,
        };
        Some((Ok(line(&event)?), (events, shutdown)))
    })
}

fn line(event: &impl Serialize) -> Option<Vec<u8>> {
    let mut line = match serde_json::to_vec(event) {
        Ok(line) => line,
        Err(error) => {
            error!(%error, "an event cannot be written as JSON");
            return None;
        }
    };
    line.push(b'\n');
    Some(line)
}

async fn unknown(uri: Uri) -> Failure {
    let message = format!("this agent's API has no path {}", uri.path());
    Failure(Error::not_found(message).hint("client and agent may be of different versions"))
}

async fn not_allowed(method: axum::http::Method, uri: Uri) -> Response {
    let message = format!("{method} is not possible on {}", uri.path());
    (StatusCode::METHOD_NOT_ALLOWED, Json(Error::invalid(message))).into_response()
}

fn disabled(plane: &str) -> Failure {
    let message = format!("the {plane} plane is not enabled on this agent");
    let hint = format!("write a section [{plane}] into its configuration and start it again");
    Failure(Error::new(Code::Disabled, message).hint(hint))
}

/// An [`Error`] on its way out.
#[derive(Debug)]
struct Failure(Error);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl From<JsonRejection> for Failure {
    fn from(rejection: JsonRejection) -> Self {
        Self(Error::invalid(rejection.body_text()))
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let Self(error) = self;
        debug!(code = ?error.code, %error, "refused");
        let status = StatusCode::from_u16(error.code.status());
        (status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), Json(error)).into_response()
    }
}

#[cfg(test)]
mod tests {
    use selvedge_api::agent::Planes;
    use selvedge_api::{Client, ClientError};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::*;

    struct Served {
        dir: tempfile::TempDir,
        shutdown: CancellationToken,
        task: tokio::task::JoinHandle<()>,
        asked: mpsc::Receiver<RestartAsk>,
    }

    impl Served {
        fn start() -> Self {
            let dir = tempfile::tempdir().expect("temporary folder");
            let listener = UnixListener::bind(dir.path().join("s")).expect("binds");
            let info = Info {
                name: "gw1".to_owned(),
                version: "0".to_owned(),
                pid: 7,
                uptime_s: 0,
                started_ms: 0,
                planes: Planes::default(),
            };
            let (restarts, asked) = mpsc::channel(1);
            let shutdown = CancellationToken::new();
            let (mesh, gateway, tunnels) = (None, None, None);
            let parts = Parts { mesh, gateway, tunnels, restarts, shutdown: shutdown.clone() };
            let task = tokio::spawn(serve(listener, App::new(info, Instant::now(), parts)));
            Self { dir, shutdown, task, asked }
        }

        fn client(&self) -> Client {
            Client::new(self.dir.path().join("s")).expect("client")
        }

        async fn raw(&self, request: &str) -> String {
            let mut stream = UnixStream::connect(self.dir.path().join("s")).await.expect("open");
            stream.write_all(request.as_bytes()).await.expect("writes");
            let mut text = String::new();
            stream.read_to_string(&mut text).await.expect("reads");
            text
        }
    }

    #[tokio::test]
    async fn the_agent_answers_its_client() {
        let served = Served::start();
        let info = served.client().info().await.expect("answers");
        assert_eq!((info.name.as_str(), info.pid), ("gw1", 7));
        let metrics = served.client().metrics().await.expect("answers");
        assert!(metrics.contains("selvedge_build_info{version=\"0\"} 1"), "{metrics}");
        assert!(metrics.ends_with("# EOF\n"), "{metrics}");
        served.shutdown.cancel();
        served.task.await.expect("ends");
    }

    #[tokio::test]
    async fn planes_that_do_not_run_say_so() {
        let served = Served::start();
        let error = served.client().meshes().await.expect_err("disabled");
        assert_eq!(error.to_string(), "the mesh plane is not enabled on this agent");
        assert!(error.hint().is_some_and(|hint| hint.contains("[mesh]")));
        let error = served.client().drain(None).await.expect_err("disabled");
        assert!(matches!(error, ClientError::Api(e) if e.code == Code::Disabled));
    }

    #[tokio::test]
    async fn a_restart_is_the_agents_to_decide() {
        let mut served = Served::start();
        let client = served.client();
        let request = RestartRequest { for_ms: Some(5000) };
        let asking = tokio::spawn(async move { client.restart(&request).await });
        let (request, reply) = served.asked.recv().await.expect("asked");
        assert_eq!(request.for_ms, Some(5000));
        reply.send(Err(Error::conflict("no"))).expect("waits");
        let error = asking.await.expect("ends").expect_err("refused");
        assert!(matches!(error, ClientError::Api(e) if e.code == Code::Conflict));
    }

    #[tokio::test]
    async fn bad_requests_get_reasons() {
        let served = Served::start();
        let head = "HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
        let text = served.raw(&format!("GET /v9/x {head}\r\n")).await;
        assert!(text.starts_with("HTTP/1.1 404") && text.contains("no path /v9/x"), "{text}");
        let text = served.raw(&format!("DELETE /v1/agent {head}\r\n")).await;
        assert!(text.starts_with("HTTP/1.1 405") && text.contains("DELETE is not"), "{text}");
    }
}
