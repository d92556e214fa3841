//! The gateway plane's driver: it gives the core what the store, the host and the operator say,
//! runs the transactions that the core asks for, and has the host follow its desired state.
//!
//! ```text
//!  requests ──┐                 ┌─▶ transactions ─▶ store
//!  store ─────┼─▶ plane ─ core ─┤
//!  timers ────┤                 └─▶ applier ─▶ driver ─▶ kernel, FRR
//!  applier ───┘                        │
//!     ▲────────────── reached ─────────┘
//! ```

mod applier;
mod found;
mod host;
mod plane;
mod store;
mod view;

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context;
use selvedge_api::Error;
use selvedge_api::gateway::{Drain, NetworkRow, Status};
use selvedge_model::NodeName;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use self::host::Host;
use self::plane::Plane;
use crate::config::GatewayConfig;

/// Requests that wait for the plane.
const QUEUE: usize = 64;

/// How long the plane may take to answer. It never waits for the store or the host, so this is
/// far more than it needs.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks the gateway plane for things. Cheap to clone.
#[derive(Clone, Debug)]
pub struct GatewayHandle {
    requests: mpsc::Sender<Request>,
}

type Reply<T> = oneshot::Sender<T>;

/// What the plane can be asked for.
#[derive(Debug)]
enum Request {
    Status(Reply<Status>),
    Networks(Reply<Vec<NetworkRow>>),
    Drain(Option<NodeName>, bool, Reply<Result<Drain, Error>>),
    Leave(Reply<Result<(), Error>>),
}

/// Starts the gateway plane; it ends, and the task with it, when `shutdown` is cancelled.
///
/// # Errors
/// If the configuration of the store makes no sense, the host cannot be read, or this process
/// may not change it. A store that does not answer is no error: the plane waits for it.
pub async fn spawn(
    config: GatewayConfig,
    shutdown: CancellationToken,
) -> anyhow::Result<(GatewayHandle, JoinHandle<()>)> {
    let (requests, from_handles) = mpsc::channel(QUEUE);
    let plane = Plane::open(config).await.context("cannot start the gateway plane")?;
    let task = tokio::spawn(plane.run(from_handles, shutdown));
    Ok((GatewayHandle { requests }, task))
}

/// Gives all networks up for good, with no agent running: this host does nothing for them any
/// more, and the bridges are as the first agent found them. Returns how many there were.
///
/// # Errors
/// If the host cannot be read or changed. What was not put back is still on record.
pub async fn release(config: &GatewayConfig) -> anyhow::Result<usize> {
    Host::release_former(config, &BTreeSet::new()).await
}

impl GatewayHandle {
    /// What this gateway knows of itself and of the others.
    ///
    /// # Errors
    /// If the plane has ended.
    pub async fn status(&self) -> Result<Status, Error> {
        self.ask(Request::Status).await
    }

    /// All networks of this gateway, by VNI.
    ///
    /// # Errors
    /// If the plane has ended.
    pub async fn networks(&self) -> Result<Vec<NetworkRow>, Error> {
        self.ask(Request::Networks).await
    }

    /// Drains a gateway, by default this one: its networks move elsewhere, and none is placed
    /// there until [`undrain`](Self::undrain). Returns as soon as the word is on its way to the
    /// store; [`networks`](Self::networks) shows what follows.
    ///
    /// # Errors
    /// If there is no such gateway, or the store has not been read yet.
    pub async fn drain(&self, name: Option<NodeName>) -> Result<Drain, Error> {
        self.ask(|reply| Request::Drain(name, true, reply)).await?
    }

    /// Lets networks be placed on a gateway again.
    ///
    /// # Errors
    /// As for [`drain`](Self::drain).
    pub async fn undrain(&self, name: Option<NodeName>) -> Result<Drain, Error> {
        self.ask(|reply| Request::Drain(name, false, reply)).await?
    }

    /// Drains this gateway because its agent stops; returns once it serves no network, or at
    /// once if nobody else could take them. The agent sets the time limit.
    ///
    /// # Errors
    /// If the store was never read, so that nothing can be handed over.
    pub async fn shutdown_drain(&self) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Leave(reply)).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let asked = async {
            self.requests.send(request(reply)).await.map_err(|_| ended())?;
            answer.await.map_err(|_| ended())
        };
        let late = || Error::internal("the gateway plane does not answer");
        timeout(PATIENCE, asked).await.unwrap_or_else(|_| Err(late()))
    }
}

fn ended() -> Error {
    Error::unavailable("the gateway plane has ended")
}
