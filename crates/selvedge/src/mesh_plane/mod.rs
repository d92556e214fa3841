//! The mesh plane's driver: it gives the core of the mesh packets, timers and requests, sends
//! what the core wants sent, keeps its state on disk, and has WireGuard follow it.
//!
//! ```text
//!  requests ─┐                 ┌─▶ files      (before anything that was decided is sent)
//!  packets ──┼─▶ plane ─ core ─┼─▶ transport
//!  timers ───┘                 └─▶ topology ─▶ applier ─▶ WireGuard, routes
//! ```

mod applier;
mod direct;
mod dns;
mod doctor;
pub(crate) mod endpoints;
mod error;
mod events;
mod exits;
mod files;
pub(crate) mod graph;
mod ground;
mod hooks;
mod hosts;
pub(crate) mod measure;
mod names;
mod observed;
mod plane;
pub(crate) mod query;
mod recorder;
mod resolved;
mod seat;
mod setup;
mod silence;
mod topology;
mod view;

use std::time::Duration;

use anyhow::Context;
use selvedge_api::Error;
use selvedge_api::gateway::Finding;
use selvedge_api::mesh::{
    CreateRequest, Dns, EditRequest, Evicted, Invite, InviteRequest, JoinRequest, Left, Mesh,
    Summary,
};
use selvedge_transport::CounterValues;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use self::events::Stream;
pub use self::events::Subscriber;
pub use self::hooks::MeshHooks;
use self::measure::Measures;
use self::plane::Plane;
use self::view::Seen;
use crate::config::MeshConfig;

/// Requests that wait for the plane.
const QUEUE: usize = 64;

/// No request takes longer: several bootstrap nodes, each with its time limits, included.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks the mesh plane for things. Cheap to clone.
#[derive(Clone, Debug)]
pub struct MeshHandle {
    requests: mpsc::Sender<Request>,
    stream: Stream,
    dns: watch::Receiver<Dns>,
    place: doctor::Place,
}

type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What the plane can be asked for.
#[derive(Debug)]
enum Request {
    Create(CreateRequest, Reply<Mesh>),
    Traffic(Reply<CounterValues>),
    Join(JoinRequest, Reply<Mesh>),
    List(Reply<Vec<Summary>>),
    Show(String, Reply<Mesh>),
    /// How the members of all meshes are heard.
    Known(Reply<doctor::Known>),
    Measure(Reply<Measures>),
    /// All meshes, as far as names are made of them.
    Sites(Reply<Vec<Seen>>),
    Edit(String, EditRequest, Reply<Mesh>),
    Invite(String, InviteRequest, Reply<Invite>),
    Evict(String, String, Reply<Evicted>),
    /// What that would do.
    Eviction(String, String, Reply<Evicted>),
    Leave(String, Reply<Left>),
}

/// Starts the mesh plane, with all meshes that this node was a member of when it stopped; it
/// ends, and the task with it, when `shutdown` is cancelled.
///
/// # Errors
/// If the identity cannot be read or the transport's address cannot be bound. A mesh whose state
/// is damaged or whose interface cannot be made is no error: it is reported in the log.
pub async fn spawn(
    config: MeshConfig,
    shutdown: CancellationToken,
) -> anyhow::Result<(MeshHandle, JoinHandle<()>)> {
    let (requests, from_handles) = mpsc::channel(QUEUE);
    let stream = Stream::new();
    let dns_config = config.dns.clone();
    let overlay = config.wireguard != crate::config::WireGuard::Dry;
    let place = doctor::Place { port: config.listen.port(), dry: !overlay };
    let opened = Plane::open(config, stream.clone()).await;
    let plane = opened.context("cannot start the mesh plane")?;
    let (status, dns) = watch::channel(Dns::default());
    let handle = MeshHandle { requests, stream, dns, place };
    if let Some(config) = dns_config {
        let shutdown = shutdown.clone();
        tokio::spawn(dns::run(config, handle.clone(), status, overlay, shutdown));
    }
    let task = tokio::spawn(plane.run(from_handles, shutdown));
    Ok((handle, task))
}

impl MeshHandle {
    /// Founds a mesh. When it returns the mesh is on disk and its interface is up.
    ///
    /// # Errors
    /// If the name is taken or malformed, or WireGuard cannot be started. Nothing is left behind.
    pub async fn create(&self, request: CreateRequest) -> Result<Mesh, Error> {
        self.ask(|reply| Request::Create(request, reply)).await
    }

    /// Joins a mesh. When it returns this node is a member and that is on disk.
    ///
    /// # Errors
    /// If the token is damaged, expired, used up or of a mesh that this node is in, or if nobody
    /// whom it names can be reached; then the error says for each address why. Nothing is left
    /// behind.
    pub async fn join(&self, request: JoinRequest) -> Result<Mesh, Error> {
        self.ask(|reply| Request::Join(request, reply)).await
    }

    /// What the agents' transport has carried so far.
    ///
    /// # Errors
    /// If the plane is stopping.
    pub async fn traffic(&self) -> Result<CounterValues, Error> {
        self.ask(Request::Traffic).await
    }

    /// What is counted in the meshes.
    ///
    /// # Errors
    /// If the plane is stopping.
    pub(crate) async fn measure(&self) -> Result<Measures, Error> {
        self.ask(Request::Measure).await
    }

    /// All meshes of this node.
    ///
    /// # Errors
    /// If the plane is stopping.
    pub async fn list(&self) -> Result<Vec<Summary>, Error> {
        self.ask(Request::List).await
    }

    /// One mesh; `mesh` is an id, a name, or the unique beginning of an id.
    ///
    /// # Errors
    /// If there is none, or several.
    pub async fn show(&self, mesh: &str) -> Result<Mesh, Error> {
        self.ask(|reply| Request::Show(mesh.to_owned(), reply)).await
    }

    /// All meshes of this node with their members.
    ///
    /// # Errors
    /// If the plane is stopping.
    pub async fn show_all(&self) -> Result<Vec<Mesh>, Error> {
        let mut meshes = Vec::new();
        for summary in self.list().await? {
            match self.show(&summary.id.to_string()).await {
                Ok(mesh) => meshes.push(mesh),
                // It was left meanwhile.
                Err(error) if error.code == selvedge_api::Code::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(meshes)
    }

    /// Says something else about this node in a mesh.
    ///
    /// # Errors
    /// If there is no such mesh, or what is to be said is out of bounds. Nothing was changed.
    pub async fn edit(&self, mesh: &str, request: EditRequest) -> Result<Mesh, Error> {
        self.ask(|reply| Request::Edit(mesh.to_owned(), request, reply)).await
    }

    /// Everything that happens in the meshes from now on.
    #[must_use]
    pub fn watch(&self) -> Subscriber {
        self.stream.subscribe()
    }

    /// How names are answered.
    #[must_use]
    pub fn dns(&self) -> Dns {
        self.dns.borrow().clone()
    }

    /// What is wrong with all meshes, or with one, and what to do about it; the gravest first.
    /// Nothing is changed.
    ///
    /// # Errors
    /// If there is no such mesh, or several.
    pub async fn doctor(&self, mesh: Option<&str>) -> Result<Vec<Finding>, Error> {
        let meshes = match mesh {
            Some(mesh) => vec![self.show(mesh).await?],
            None => self.show_all().await?,
        };
        let known = self.ask(Request::Known).await?;
        Ok(doctor::examine(self.place, meshes, known, self.dns()).await)
    }

    async fn sites(&self) -> Result<Vec<Seen>, Error> {
        self.ask(Request::Sites).await
    }

    /// Makes a token with which others can join.
    ///
    /// # Errors
    /// If there is no such mesh, this node may not invite, or the terms make no sense.
    pub async fn invite(&self, mesh: &str, request: InviteRequest) -> Result<Invite, Error> {
        self.ask(|reply| Request::Invite(mesh.to_owned(), request, reply)).await
    }

    /// Puts a member out of a mesh; `member` is a name, an alias, an id, or the unique beginning of
    /// an id.
    ///
    /// # Errors
    /// If there is no such mesh or member, or this node may not evict it.
    pub async fn evict(&self, mesh: &str, member: &str) -> Result<Evicted, Error> {
        self.ask(|reply| Request::Evict(mesh.to_owned(), member.to_owned(), reply)).await
    }

    /// Who would go if [`MeshHandle::evict`] were asked; nothing is done.
    ///
    /// # Errors
    /// As there.
    pub async fn eviction(&self, mesh: &str, member: &str) -> Result<Evicted, Error> {
        self.ask(|reply| Request::Eviction(mesh.to_owned(), member.to_owned(), reply)).await
    }

    /// Leaves a mesh: tells some members, removes the interface and the state on disk.
    ///
    /// # Errors
    /// If there is no such mesh, or its state cannot be removed.
    pub async fn leave(&self, mesh: &str) -> Result<Left, Error> {
        self.ask(|reply| Request::Leave(mesh.to_owned(), reply)).await
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Error> {
        let stopping = || Error::unavailable("the mesh plane is stopping");
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| stopping())?;
        match timeout(PATIENCE, answer).await {
            Ok(answer) => answer.map_err(|_| stopping())?,
            Err(_) => {
                let text =
                    "the mesh plane has not answered in time; it may still do what it was asked";
                Err(Error::new(selvedge_api::Code::Timeout, text))
            }
        }
    }
}
