//! The mesh plane's part of the API.

use axum::Json;
use axum::body::Body as Bytes;
use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::IntoResponse;
use selvedge_api::gateway::Finding;
use selvedge_api::mesh::{
    CreateRequest, Dns, EditRequest, Event, Evicted, Invite, InviteRequest, JoinRequest, Left,
    Mesh, QueryRequest, Summary, Tunnels,
};
use selvedge_api::{Code, Error};
use serde::Deserialize;
use serde_json::Value;
use tokio::task::spawn_blocking;
use utoipa::IntoParams;

use super::{Answer, Body, Failure, Shared, lines};
use crate::mesh_plane::{graph, query};

/// The mesh that a path names.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct Which {
    /// its name, its id, or the unique beginning of its id
    mesh: String,
}

/// All meshes of this node.
#[utoipa::path(
    get,
    path = "/meshes",
    tag = "mesh",
    responses((status = 200, body = Vec<Summary>))
)]
pub(super) async fn meshes(State(app): Shared) -> Answer<Vec<Summary>> {
    Ok(Json(app.mesh()?.list().await?))
}

/// Founds a mesh.
#[utoipa::path(
    post,
    path = "/meshes",
    tag = "mesh",
    request_body = CreateRequest,
    responses((status = 200, body = Mesh))
)]
pub(super) async fn create(State(app): Shared, body: Body<CreateRequest>) -> Answer<Mesh> {
    Ok(Json(app.mesh()?.create(body?.0).await?))
}

/// Joins a mesh with a token that a member made.
#[utoipa::path(
    post,
    path = "/meshes/join",
    tag = "mesh",
    request_body = JoinRequest,
    responses((status = 200, body = Mesh))
)]
pub(super) async fn join(State(app): Shared, body: Body<JoinRequest>) -> Answer<Mesh> {
    Ok(Json(app.mesh()?.join(body?.0).await?))
}

/// One mesh with its members.
#[utoipa::path(
    get,
    path = "/meshes/{mesh}",
    tag = "mesh",
    params(Which),
    responses((status = 200, body = Mesh))
)]
pub(super) async fn show(State(app): Shared, Path(Which { mesh }): Path<Which>) -> Answer<Mesh> {
    Ok(Json(app.mesh()?.show(&mesh).await?))
}

/// Leaves a mesh.
#[utoipa::path(
    delete,
    path = "/meshes/{mesh}",
    tag = "mesh",
    params(Which),
    responses((status = 200, body = Left))
)]
pub(super) async fn leave(State(app): Shared, Path(Which { mesh }): Path<Which>) -> Answer<Left> {
    Ok(Json(app.mesh()?.leave(&mesh).await?))
}

/// Makes a token with which others join.
#[utoipa::path(
    post,
    path = "/meshes/{mesh}/invites",
    tag = "mesh",
    params(Which),
    request_body = InviteRequest,
    responses((status = 200, body = Invite))
)]
pub(super) async fn invite(
    State(app): Shared,
    Path(Which { mesh }): Path<Which>,
    body: Body<InviteRequest>,
) -> Answer<Invite> {
    Ok(Json(app.mesh()?.invite(&mesh, body?.0).await?))
}

/// The member that a path names.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct Whom {
    /// the mesh: its name, its id, or the unique beginning of its id
    mesh: String,
    /// the member: its name, its alias, its id, or the unique beginning of its id
    member: String,
}

/// Puts a member out of a mesh, for good. With it go those whom it admitted.
#[utoipa::path(
    delete,
    path = "/meshes/{mesh}/members/{member}",
    tag = "mesh",
    params(Whom),
    responses((status = 200, body = Evicted))
)]
pub(super) async fn evict(
    State(app): Shared,
    Path(Whom { mesh, member }): Path<Whom>,
) -> Answer<Evicted> {
    Ok(Json(app.mesh()?.evict(&mesh, &member).await?))
}

/// Who would be put out of a mesh with a member. Does nothing.
#[utoipa::path(
    get,
    path = "/meshes/{mesh}/members/{member}/eviction",
    tag = "mesh",
    params(Whom),
    responses((status = 200, body = Evicted))
)]
pub(super) async fn eviction(
    State(app): Shared,
    Path(Whom { mesh, member }): Path<Whom>,
) -> Answer<Evicted> {
    Ok(Json(app.mesh()?.eviction(&mesh, &member).await?))
}

/// Says something else about this node in a mesh.
#[utoipa::path(
    patch,
    path = "/meshes/{mesh}/node",
    tag = "mesh",
    params(Which),
    request_body = EditRequest,
    responses((status = 200, body = Mesh))
)]
pub(super) async fn edit(
    State(app): Shared,
    Path(Which { mesh }): Path<Which>,
    body: Body<EditRequest>,
) -> Answer<Mesh> {
    Ok(Json(app.mesh()?.edit(&mesh, body?.0).await?))
}

/// The answer to a JMESPath expression over the members of a mesh.
#[utoipa::path(
    post,
    path = "/meshes/{mesh}/query",
    tag = "mesh",
    params(Which),
    request_body = QueryRequest,
    responses((status = 200, body = Value))
)]
pub(super) async fn ask(
    State(app): Shared,
    Path(Which { mesh }): Path<Which>,
    body: Body<QueryRequest>,
) -> Answer<Value> {
    let Json(QueryRequest { expression }) = body?;
    let mesh = app.mesh()?.show(&mesh).await?;
    // Thousands of members are work, which must not hold up who drives the planes.
    let answered = spawn_blocking(move || query::answer(&mesh, &expression)).await;
    let answer = answered.map_err(|error| Error::internal(format!("no answer: {error}")))?;
    Ok(Json(answer.map_err(Error::from)?))
}

/// All meshes as one graph in the language of Graphviz.
#[utoipa::path(
    get,
    path = "/meshes/graph",
    tag = "mesh",
    responses((status = 200, body = String, content_type = "text/vnd.graphviz"))
)]
pub(super) async fn draw(State(app): Shared) -> Result<impl IntoResponse, Failure> {
    let meshes = app.mesh()?.show_all().await?;
    Ok(([(header::CONTENT_TYPE, "text/vnd.graphviz; charset=utf-8")], graph::dot(&meshes)))
}

/// Which meshes are looked at.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Patient {
    /// one of them: its name, its id, or the unique beginning of its id; all if it is left out
    mesh: Option<String>,
}

/// What is wrong with the meshes of this node, and what to do about it; the gravest first.
#[utoipa::path(
    get,
    path = "/meshes/doctor",
    tag = "mesh",
    params(Patient),
    responses((status = 200, body = Vec<Finding>))
)]
pub(super) async fn doctor(
    State(app): Shared,
    Query(Patient { mesh }): Query<Patient>,
) -> Answer<Vec<Finding>> {
    Ok(Json(app.mesh()?.doctor(mesh.as_deref()).await?))
}

/// A line of JSON for each event in the meshes, without end.
#[utoipa::path(
    get,
    path = "/meshes/watch",
    tag = "mesh",
    responses((status = 200, body = Event, content_type = "application/x-ndjson"))
)]
pub(super) async fn watch_meshes(State(app): Shared) -> Result<impl IntoResponse, Failure> {
    let events = app.mesh()?.watch();
    let body = Bytes::from_stream(lines(events, app.parts.shutdown.clone()));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body))
}

/// How names of mesh members are answered on this host.
#[utoipa::path(
    get,
    path = "/dns",
    tag = "mesh",
    responses((status = 200, body = Dns))
)]
pub(super) async fn dns(State(app): Shared) -> Answer<Dns> {
    Ok(Json(app.mesh()?.dns()))
}

/// The overlay networks that this host carries over a mesh.
#[utoipa::path(
    get,
    path = "/tunnels",
    tag = "mesh",
    responses((status = 200, body = Tunnels))
)]
pub(super) async fn tunnels(State(app): Shared) -> Answer<Tunnels> {
    let tunnels = app.parts.tunnels.as_ref().map(|tunnels| tunnels.borrow().clone());
    let none = || {
        let error = Error::new(Code::Disabled, "this host carries no networks over a mesh");
        error.hint("write a section [vxlan] into the agent's configuration and start it again")
    };
    Ok(Json(tunnels.ok_or_else(none)?))
}
