//! The daemon: configuration -> build -> spawn, and an orderly end.

mod lock;
mod logs;
mod socket;

use std::time::{Duration, Instant};

use anyhow::Context;
use sd_notify::NotifyState;
use selvedge_api::agent::{Info, Planes};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::config::{Config, GatewayConfig};
use crate::gateway_plane::{self, GatewayHandle};
use crate::http;
use crate::mesh_plane::{self, MeshHandle};

/// How long the planes and the API may take to end once they are told to.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Runs an agent until it is told to stop (SIGINT, SIGTERM) or cannot go on.
///
/// # Errors
/// If the agent cannot start, or a plane ends by itself.
pub fn run(config: Config) -> anyhow::Result<()> {
    selvedge_host::memory::use_one_arena();
    logs::init(&config.log);
    // An agent mostly waits. Yet a netlink request blocks its thread while anybody on the host
    // holds the kernel's RTNL lock, for seconds at times. The gateway plane's applier has a
    // thread of its own for that; of these two, the mesh plane's may block one.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(Agent::run(config));
    // Nothing blocking is worth waiting for by now: what must end in order has ended.
    runtime.shutdown_background();
    result
}

/// Puts back what the agent found on this host, for good; it must not run.
///
/// # Errors
/// If the agent runs, or the host cannot be changed.
pub fn release(config: &Config) -> anyhow::Result<()> {
    logs::init(&config.log);
    let Some(gateway) = &config.gateway else {
        anyhow::bail!("there is no gateway plane in this configuration: nothing to put back")
    };
    let _lock = lock::take(&config.state)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let released = runtime.block_on(gateway_plane::release(gateway))?;
    info!(networks = released, "released");
    Ok(())
}

/// A running agent: its parts and what ends them.
struct Agent {
    shutdown: CancellationToken,
    tasks: Vec<(&'static str, JoinHandle<()>)>,
    gateway: Option<(GatewayHandle, Duration)>,
    signals: Signals,
}

impl Agent {
    async fn run(config: Config) -> anyhow::Result<()> {
        let _lock = lock::take(&config.state)?;
        let listener = socket::bind(&config.socket, config.socket_group.as_deref()).await?;
        let mut agent = Self {
            shutdown: CancellationToken::new(),
            tasks: Vec::new(),
            gateway: None,
            signals: Signals::new()?,
        };
        let served = agent.start(&config, listener).await;
        let result = match served {
            Ok(()) => agent.until_end().await,
            Err(error) => Err(error),
        };
        agent.stop().await;
        socket::remove(&config.socket);
        info!("stopped");
        result
    }

    async fn start(
        &mut self,
        config: &Config,
        listener: tokio::net::UnixListener,
    ) -> anyhow::Result<()> {
        let started = Instant::now();
        let mesh = self.start_mesh(config).await?;
        let gateway = self.start_gateway(config.gateway.clone()).await?;
        let planes = Planes { mesh: mesh.is_some(), gateway: gateway.is_some() };
        let info = Info {
            name: config.name.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_s: 0,
            planes,
        };
        let app = http::App::new(info, started, mesh, gateway);
        let serving = http::serve(listener, app, self.shutdown.clone());
        self.tasks.push(("API", tokio::spawn(serving)));
        info!(
            name = %config.name,
            socket = %config.socket.display(),
            mesh = planes.mesh,
            gateway = planes.gateway,
            "started"
        );
        notify(&[NotifyState::Ready]);
        Ok(())
    }

    async fn start_mesh(&mut self, config: &Config) -> anyhow::Result<Option<MeshHandle>> {
        let Some(mesh) = config.mesh.clone() else { return Ok(None) };
        let (handle, task) = mesh_plane::spawn(mesh, self.shutdown.clone()).await?;
        self.tasks.push(("mesh plane", task));
        Ok(Some(handle))
    }

    async fn start_gateway(
        &mut self,
        config: Option<GatewayConfig>,
    ) -> anyhow::Result<Option<GatewayHandle>> {
        let Some(config) = config else { return Ok(None) };
        let limit = config.drain_timeout;
        let (handle, task) = gateway_plane::spawn(config, self.shutdown.clone()).await?;
        self.tasks.push(("gateway plane", task));
        self.gateway = Some((handle.clone(), limit));
        Ok(Some(handle))
    }

    /// Waits for a signal, which is a good end, or for a part that ends by itself, which is not.
    async fn until_end(&mut self) -> anyhow::Result<()> {
        let Self { tasks, signals, .. } = self;
        tokio::select! {
            name = signals.next() => {
                info!(signal = name, "stopping");
                self.drain().await;
                Ok(())
            }
            (index, reason) = first_end(tasks) => {
                let (name, _) = tasks.swap_remove(index);
                error!(part = name, reason, "a part of the agent ended by itself; stopping");
                anyhow::bail!("the {name} ended by itself: {reason}")
            }
        }
    }

    /// Hands the gateway's networks over, within its time limit and unless a second signal comes.
    async fn drain(&mut self) {
        let Some((gateway, limit)) = self.gateway.take() else { return };
        notify(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(extend(limit))]);
        tokio::select! {
            drained = tokio::time::timeout(limit, gateway.shutdown_drain()) => match drained {
                Ok(Ok(())) => info!("drained"),
                Ok(Err(error)) => warn!(%error, "not drained; networks are taken over after us"),
                Err(_) => warn!(limit_s = limit.as_secs(), "not drained in time; stopping"),
            },
            name = self.signals.next() => warn!(signal = name, "second signal: stopping at once"),
        }
    }

    async fn stop(self) {
        notify(&[NotifyState::Stopping]);
        self.shutdown.cancel();
        for (name, task) in self.tasks {
            match tokio::time::timeout(STOP_LIMIT, task).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => error!(part = name, %error, "a part of the agent failed"),
                Err(_) => warn!(part = name, "a part of the agent did not end in time"),
            }
        }
    }
}

/// The first of the tasks that ends, and how.
async fn first_end(tasks: &mut [(&'static str, JoinHandle<()>)]) -> (usize, String) {
    std::future::poll_fn(|context| {
        for (index, (_, task)) in tasks.iter_mut().enumerate() {
            if let std::task::Poll::Ready(end) = std::pin::Pin::new(task).poll(context) {
                let reason = end.err().map_or_else(|| "no reason".to_owned(), |e| e.to_string());
                return std::task::Poll::Ready((index, reason));
            }
        }
        std::task::Poll::Pending
    })
    .await
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

/// Completes when this process is told to stop (SIGINT, SIGTERM).
///
/// # Errors
/// If the signals cannot be listened for.
pub(crate) fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let mut signals = Signals::new()?;
    Ok(async move {
        signals.next().await;
    })
}

/// What systemd should grant us for the drain, in microseconds, with some room.
fn extend(limit: Duration) -> u32 {
    u32::try_from((limit + STOP_LIMIT).as_micros()).unwrap_or(u32::MAX)
}

/// Tells the service manager, if there is one. That it does not listen is no failure of ours.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager was not notified");
    }
}
