//! The daemon: configuration -> build -> spawn, and an orderly end.

mod lock;
mod logs;
mod restart;
mod socket;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use futures_util::FutureExt;
use sd_notify::NotifyState;
use selvedge_api::Error;
use selvedge_api::agent::{Info, Planes, RestartRequest, Restarting};
use selvedge_api::mesh::Tunnels;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::restart::Program;
use crate::config::{Config, GatewayConfig, WireGuard};
use crate::gateway_plane::{self, GatewayHandle};
use crate::http;
use crate::mesh_plane::{self, MeshHandle};
use crate::tunnels;

/// How long the planes and the API may take to end once they are told to, beside the hooks of the
/// operator's.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// How long the other gateways wait for an agent that starts again, unless another time is asked
/// for, and what may be asked for.
const AWAY: Duration = Duration::from_secs(10);
const AWAY_BOUNDS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Runs an agent until it is told to stop (SIGINT, SIGTERM) or cannot go on. Told to start again
/// (SIGHUP, or by its API), it becomes the program that is at its path then.
///
/// # Errors
/// If the agent cannot start, or a plane ends by itself.
pub fn run(config: Config) -> anyhow::Result<()> {
    selvedge_host::memory::use_one_arena();
    logs::init(&config.log);
    let program = Program::of_this_process()?;
    while run_once(config.clone(), &program)? == End::Restart {
        let error = program.exec();
        // Somebody is expected back by the other gateways.
        warn!(
            program = %program.path().display(), %error,
            "the program cannot be started again; going on with the one that runs"
        );
    }
    Ok(())
}

/// How a run of the agent ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Stop,
    Restart,
}

fn run_once(config: Config, program: &Program) -> anyhow::Result<End> {
    // An agent mostly waits. Yet a netlink request blocks its thread while anybody on the host
    // holds the kernel's RTNL lock, for seconds at times. The gateway plane's applier has a
    // thread of its own for that; of these two, the mesh plane's may block one.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(Agent::run(config, program));
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
    /// How long hooks may hold up the end.
    hooks: Duration,
    signals: Signals,
    started_ms: u64,
    restarts: (mpsc::Sender<RestartAsk>, mpsc::Receiver<RestartAsk>),
}

/// Somebody asks by the API that the agent start again.
pub(crate) type RestartAsk = (RestartRequest, oneshot::Sender<Result<Restarting, Error>>);

impl Agent {
    async fn run(config: Config, program: &Program) -> anyhow::Result<End> {
        let signals = Signals::new()?;
        let _lock = lock::take(&config.state)?;
        let listener = socket::bind(&config.socket, config.socket_group.as_deref()).await?;
        let mut agent = Self {
            shutdown: CancellationToken::new(),
            tasks: Vec::new(),
            gateway: None,
            hooks: config.mesh.as_ref().map(|mesh| mesh.options.at_the_end()).unwrap_or_default(),
            signals,
            started_ms: unix_ms(),
            restarts: mpsc::channel(1),
        };
        let served = agent.start(&config, listener).await;
        let result = match served {
            Ok(()) => agent.until_end(program).await,
            Err(error) => Err(error),
        };
        let restarts = result.as_ref().is_ok_and(|end| *end == End::Restart);
        if !restarts {
            let limit = extend(agent.hooks);
            notify(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(limit)]);
        }
        let mut signals = agent.stop().await;
        // Whoever told it to stop meanwhile did not mean the program that would come after it.
        let stopped = restarts.then(|| signals.pending_stop()).flatten();
        if let Some(name) = stopped {
            info!(signal = name, "stopping instead of starting again");
            notify(&[NotifyState::Stopping]);
        } else if restarts {
            info!(program = %program.path().display(), "starting again");
            return result;
        }
        socket::remove(&config.socket);
        info!("stopped");
        result.map(|_| End::Stop)
    }

    async fn start(
        &mut self,
        config: &Config,
        listener: tokio::net::UnixListener,
    ) -> anyhow::Result<()> {
        let started = Instant::now();
        let mesh = self.start_mesh(config).await?;
        let tunnels = self.start_tunnels(config, mesh.as_ref()).await?;
        let gateway = self.start_gateway(config.gateway.clone()).await?;
        let planes = Planes { mesh: mesh.is_some(), gateway: gateway.is_some() };
        let info = Info {
            name: config.name.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_s: 0,
            started_ms: self.started_ms,
            planes,
        };
        let parts = http::Parts {
            mesh,
            gateway,
            tunnels,
            restarts: self.restarts.0.clone(),
            shutdown: self.shutdown.clone(),
        };
        let serving = http::serve(listener, http::App::new(info, started, parts));
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

    /// Before the gateway plane: what it looks for is there then, if the mesh is.
    async fn start_tunnels(
        &mut self,
        config: &Config,
        mesh: Option<&MeshHandle>,
    ) -> anyhow::Result<Option<watch::Receiver<Tunnels>>> {
        let dry = config.mesh.as_ref().is_none_or(|mesh| mesh.wireguard == WireGuard::Dry);
        let (Some(vxlan), Some(mesh), false) = (&config.vxlan, mesh, dry) else { return Ok(None) };
        let spawned = tunnels::spawn(vxlan.clone(), mesh.clone(), self.shutdown.clone()).await;
        let (status, task) = spawned?;
        self.tasks.push(("tunnels", task));
        Ok(Some(status))
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

    /// Waits until the agent is told to end or to start again, or until a part ends by itself,
    /// which is no good end.
    async fn until_end(&mut self, program: &Program) -> anyhow::Result<End> {
        loop {
            let Self { tasks, signals, restarts, .. } = self;
            let asked = tokio::select! {
                signal = signals.next() => match signal {
                    Told::Restart => None,
                    Told::Stop(name) => {
                        info!(signal = name, "stopping");
                        self.drain().await;
                        return Ok(End::Stop);
                    }
                },
                // This struct holds a sender too.
                Some(asked) = restarts.1.recv() => Some(asked),
                (index, reason) = first_end(tasks) => {
                    let (name, _) = tasks.swap_remove(index);
                    error!(part = name, reason, "a part of the agent ended by itself; stopping");
                    anyhow::bail!("the {name} ended by itself: {reason}")
                }
            };
            if self.restart(asked, program).await {
                return Ok(End::Restart);
            }
        }
    }

    /// Prepares the restart: the program can start, and the other gateways wait for it. Returns
    /// whether it may begin; if not, nothing has changed.
    async fn restart(&mut self, asked: Option<RestartAsk>, program: &Program) -> bool {
        let (request, reply) = asked.unzip();
        let away = match away(request.and_then(|request| request.for_ms)) {
            Ok(away) => away,
            Err(error) => return refuse(reply, error),
        };
        if let Err(error) = program.check().await {
            warn!(error = format!("{error:#}"), "not restarted: the agent goes on as it is");
            let error = Error::conflict(format!("not restarted: {error:#}"));
            return refuse(reply, error.hint("put that right; the agent goes on as it is"));
        }
        if let Some(reply) = reply {
            // Whoever asked may have gone away.
            drop(reply.send(Ok(Restarting {
                program: program.path().display().to_string(),
                for_ms: u64::try_from(away.as_millis()).unwrap_or(u64::MAX),
                started_ms: self.started_ms,
            })));
        }
        reloading();
        if let Some((gateway, _)) = self.gateway.take()
            && let Err(error) = gateway.detach(away).await
        {
            warn!(%error, "the other gateways were not told");
        }
        true
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
            name = self.signals.stop() => warn!(signal = name, "second signal: stopping at once"),
        }
    }

    /// Ends all parts; the signals are listened for on.
    async fn stop(self) -> Signals {
        self.shutdown.cancel();
        let limit = STOP_LIMIT + self.hooks;
        for (name, task) in self.tasks {
            match tokio::time::timeout(limit, task).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => error!(part = name, %error, "a part of the agent failed"),
                Err(_) => warn!(part = name, "a part of the agent did not end in time"),
            }
        }
        self.signals
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
    hangup: Signal,
}

/// What a signal says.
enum Told {
    Stop(&'static str),
    Restart,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.interrupt.recv() => Told::Stop("SIGINT"),
            _ = self.terminate.recv() => Told::Stop("SIGTERM"),
            _ = self.hangup.recv() => Told::Restart,
        }
    }

    /// The signal to stop that has come and was not heard yet.
    fn pending_stop(&mut self) -> Option<&'static str> {
        let interrupted = self.interrupt.recv().now_or_never().is_some();
        let terminated = self.terminate.recv().now_or_never().is_some();
        interrupted.then_some("SIGINT").or(terminated.then_some("SIGTERM"))
    }

    /// Waits for a signal to stop. One to start again is too late by then.
    async fn stop(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

/// How long the others shall wait, if that makes sense.
fn away(for_ms: Option<u64>) -> Result<Duration, Error> {
    let away = for_ms.map_or(AWAY, Duration::from_millis);
    let (least, most) = AWAY_BOUNDS;
    if (least..=most).contains(&away) {
        return Ok(away);
    }
    let (least, most) = (least.as_secs(), most.as_secs());
    Err(Error::invalid(format!(
        "the other gateways can be asked to wait for {least} s to {most} s, not for {} s",
        away.as_secs_f64()
    )))
}

/// Answers whoever asked, and says that nothing begins.
fn refuse(reply: Option<oneshot::Sender<Result<Restarting, Error>>>, error: Error) -> bool {
    if let Some(reply) = reply {
        drop(reply.send(Err(error)));
    }
    false
}

/// Completes when this process is told to stop (SIGINT, SIGTERM).
///
/// # Errors
/// If the signals cannot be listened for.
pub(crate) fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let listen = |kind| signal(kind).context("cannot listen for signals");
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// What systemd should grant us for a drain or for hooks, in microseconds, with some room.
fn extend(limit: Duration) -> u32 {
    u32::try_from((limit + STOP_LIMIT).as_micros()).unwrap_or(u32::MAX)
}

/// Tells the service manager that the agent starts again; the next run says when it is ready.
fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "the service manager was not told"),
    }
}

fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Tells the service manager, if there is one. That it does not listen is no failure of ours.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager was not notified");
    }
}
