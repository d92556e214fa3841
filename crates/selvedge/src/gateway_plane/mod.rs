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
mod check;
mod condition;
mod events;
mod found;
mod hooks;
mod host;
mod memory;
mod plane;
mod probes;
mod refill;
mod sources;
mod store;
mod view;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use selvedge_api::Error;
use selvedge_api::gateway::{
    ChangeRow, Drain, Finding, HistoryQuery, NetworkRow, Refill, Removed, Status, Takeover,
};
use selvedge_host::priority;
use selvedge_model::NodeName;
use tokio::runtime;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

pub use self::events::Subscriber;
use self::events::{Journal, Stream};
pub use self::hooks::HooksConfig;
use self::hooks::{Hooks, Tally};
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
    stream: Stream,
    hooks: watch::Receiver<Tally>,
    config: Arc<GatewayConfig>,
}

type Reply<T> = oneshot::Sender<T>;

/// What the plane can be asked for.
#[derive(Debug)]
enum Request {
    Status(Reply<Status>),
    Networks(Reply<Vec<NetworkRow>>),
    Drain(Option<NodeName>, bool, Reply<Result<Drain, Error>>),
    Leave(Reply<Result<(), Error>>),
    TakeOver(NodeName, Reply<Result<Takeover, Error>>),
    Refill(Reply<Result<Refill, Error>>),
    Remove(NodeName, Reply<Result<Removed, Error>>),
    History(HistoryQuery, Reply<Vec<ChangeRow>>),
    Detach(Duration, Reply<()>),
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
    let stream = Stream::new();
    let bridge = config.bridge.parse()?;
    let (hooks, hooks_end) =
        Hooks::spawn(config.hooks.clone(), config.name.clone(), bridge, stream.clone());
    let handle = GatewayHandle {
        requests,
        stream: stream.clone(),
        hooks: hooks.watch(),
        config: Arc::new(config.clone()),
    };
    let journal = Journal::new(config.name.clone(), stream, hooks);
    let ended = start(config, journal, from_handles, shutdown).await?;
    let task = tokio::spawn(async move {
        if ended.await.is_err() {
            error!("the gateway plane has failed");
        }
        // The last hooks are those of what was handed over at the end.
        if let Err(error) = hooks_end.await {
            warn!(%error, "the hooks' runner failed");
        }
    });
    Ok((handle, task))
}

/// Runs the plane on a thread of its own, before all ordinary work: other voters take one that
/// answers late for lost. Returns once it runs; what is returned says when it has ended.
async fn start(
    config: GatewayConfig,
    journal: Journal,
    requests: mpsc::Receiver<Request>,
    shutdown: CancellationToken,
) -> anyhow::Result<oneshot::Receiver<()>> {
    let (opened, is_open) = oneshot::channel();
    let (ended, has_ended) = oneshot::channel();
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let work = async move {
        let (plane, result) = match Plane::open(config, journal).await {
            Ok(plane) => (Some(plane), Ok(())),
            Err(error) => (None, Err(error)),
        };
        let awaited = opened.send(result).is_ok();
        if let Some(plane) = plane.filter(|_| awaited) {
            plane.run(requests, shutdown).await;
        }
    };
    thread::Builder::new()
        .name("gateway".to_owned())
        .spawn(move || {
            let priority = priority::raise();
            debug!(?priority, "the gateway plane's thread");
            runtime.block_on(work);
            // Whoever waits for it may have ended before.
            let _ = ended.send(());
        })
        .context("cannot start the gateway plane's thread")?;
    let opened = is_open.await.context("the gateway plane has failed")?;
    opened.context("cannot start the gateway plane")?;
    Ok(has_ended)
}

/// Looks at this host and its FRRouting: what a gateway with this configuration needs of them, and
/// what is wrong.
pub async fn check(config: &GatewayConfig) -> Vec<Finding> {
    check::run(config).await
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

    /// Takes the networks of a lost gateway over without asking the store. Returns as soon as that
    /// has begun.
    ///
    /// # Errors
    /// If there is no such gateway, or it is heard.
    pub async fn take_over(&self, name: NodeName) -> Result<Takeover, Error> {
        self.ask(|reply| Request::TakeOver(name, reply)).await?
    }

    /// Fills a store that was reset with what this agent knew of the former one. Returns after some
    /// seconds, and is to be asked again until it is done.
    ///
    /// # Errors
    /// If this agent has not read the former store, or the store was not reset or does not answer.
    pub async fn refill(&self) -> Result<Refill, Error> {
        self.ask(Request::Refill).await?
    }

    /// Strikes a node that is gone for good from the roster.
    ///
    /// # Errors
    /// If there is no such node, or it is registered.
    pub async fn remove(&self, name: NodeName) -> Result<Removed, Error> {
        self.ask(|reply| Request::Remove(name, reply)).await?
    }

    /// The latest changes of owners, in the order in which they happened.
    ///
    /// # Errors
    /// If the plane has ended.
    pub async fn history(&self, query: HistoryQuery) -> Result<Vec<ChangeRow>, Error> {
        self.ask(|reply| Request::History(query, reply)).await
    }

    /// Everything that happens from now on.
    #[must_use]
    pub fn watch(&self) -> Subscriber {
        self.stream.subscribe()
    }

    /// Looks at this host: see [`check`].
    pub async fn check(&self) -> Vec<Finding> {
        check(&self.config).await
    }

    /// Says to the other gateways that this agent will be away for `away`, and ends the plane: the
    /// host and the registration stay as they are, for the agent's next run. Hooks that run or
    /// wait are given their time first.
    ///
    /// # Errors
    /// If the plane has ended.
    pub async fn detach(&self, away: Duration) -> Result<(), Error> {
        let mut hooks = self.hooks.clone();
        let limit = self.config.hooks.timeout;
        if timeout(limit, hooks.wait_for(|tally| tally.open == 0)).await.is_err() {
            warn!("hooks still run; the restart does not wait for them any longer");
        }
        self.ask(|reply| Request::Detach(away, reply)).await
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
