//! The agent's API: versioned request and response types, and the typed client.
//!
//! The agent serves HTTP/1.1 with JSON bodies on a Unix socket, under [`PREFIX`]. A request that
//! fails answers with an [`Error`] as its body. Fields may be added to any type; readers skip
//! those that they do not know.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/agent` | | [`agent::Info`] |
//! | `POST /v1/agent/restart` | [`agent::RestartRequest`] | [`agent::Restarting`] |
//! | `GET /v1/metrics` | | text in the OpenMetrics format |
//! | `GET /v1/meshes` | | list of [`mesh::Summary`] |
//! | `POST /v1/meshes` | [`mesh::CreateRequest`] | [`mesh::Mesh`] |
//! | `POST /v1/meshes/join` | [`mesh::JoinRequest`] | [`mesh::Mesh`] |
//! | `GET /v1/meshes/{mesh}` | | [`mesh::Mesh`] |
//! | `GET /v1/meshes/graph` | | text in the language of Graphviz |
//! | `GET /v1/meshes/watch` | | a line with a [`mesh::Event`] for each that happens, without end |
//! | `GET /v1/meshes/doctor` | query: `mesh` | list of [`gateway::Finding`] |
//! | `DELETE /v1/meshes/{mesh}` | | [`mesh::Left`] |
//! | `PATCH /v1/meshes/{mesh}/node` | [`mesh::EditRequest`] | [`mesh::Mesh`] |
//! | `POST /v1/meshes/{mesh}/query` | [`mesh::QueryRequest`] | any JSON |
//! | `POST /v1/meshes/{mesh}/invites` | [`mesh::InviteRequest`] | [`mesh::Invite`] |
//! | `DELETE /v1/meshes/{mesh}/members/{member}` | | [`mesh::Evicted`] |
//! | `GET /v1/meshes/{mesh}/members/{member}/eviction` | | [`mesh::Evicted`], nothing done |
//! | `GET /v1/dns` | | [`mesh::Dns`] |
//! | `GET /v1/tunnels` | | [`mesh::Tunnels`] |
//! | `GET /v1/openapi.json` | | the description of all this (OpenAPI 3.1) |
//! | `GET /v1/gateway` | | [`gateway::Status`] |
//! | `GET /v1/gateway/networks` | | list of [`gateway::NetworkRow`] |
//! | `POST /v1/gateway/drain` | [`gateway::DrainRequest`] | [`gateway::Drain`] |
//! | `POST /v1/gateway/undrain` | [`gateway::DrainRequest`] | [`gateway::Drain`] |
//! | `POST /v1/gateway/takeover` | [`gateway::TakeoverRequest`] | [`gateway::Takeover`] |
//! | `POST /v1/gateway/refill` | | [`gateway::Refill`] |
//! | `DELETE /v1/gateway/nodes/{name}` | | [`gateway::Removed`] |
//! | `GET /v1/gateway/history` | query: [`gateway::HistoryQuery`] | list of [`gateway::ChangeRow`] |
//! | `GET /v1/gateway/check` | | list of [`gateway::Finding`] |
//! | `GET /v1/gateway/watch` | | a line with a [`gateway::Event`] for each that happens, without end |
//!
//! `{mesh}` is the mesh's name, its id, or the beginning of its id if that is unique. A mesh that is
//! called `join`, `graph`, `watch` or `doctor` is reached by its id.

pub mod agent;
mod client;
mod error;
pub mod gateway;
pub mod mesh;

pub use client::{Client, ClientError, Watch};
pub use error::{Code, Error};

/// Where this version of the API begins in every path.
pub const PREFIX: &str = "/v1";
