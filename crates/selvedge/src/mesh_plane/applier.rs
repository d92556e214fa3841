//! Makes WireGuard on this host what the mesh wants: one small task per mesh, which converges on
//! the latest desired state and makes the device anew when it has failed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use selvedge_host::netlink::Netlink;
use selvedge_host::wireguard::{
    self, Backend, Changes, DETOUR, Destinations, Device, PeerSpec, PeerStatus,
};
use selvedge_mesh::Role;
use selvedge_model::{Prefix, WgKey};
use selvedge_topology::Relays;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tracing::{debug, error, info, warn};

use super::hooks::{Hooks, Kind};
use super::silence::Silence;

/// The peers that a device shall have.
pub(super) type Peers = BTreeMap<WgKey, PeerSpec>;

/// How often each peer's endpoint was tried in vain.
pub(super) type Unanswered = BTreeMap<WgKey, usize>;

/// What a device knows of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// Its peers.
    pub(super) peers: Vec<PeerStatus>,
    /// How many packets its relays have refused since it was made.
    pub(super) refused: u64,
}

type Question = oneshot::Sender<Told>;

/// What a mesh's interface shall be, and what is behind it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Desired {
    /// The peers.
    pub(super) peers: Peers,
    /// What becomes of packets beyond the mesh; `None`: it is not known yet.
    pub(super) relays: Option<Relays>,
    /// What is routed into it besides its own network.
    pub(super) routes: BTreeSet<Prefix>,
    /// The addresses of the interface; none: those that it was made with.
    pub(super) addresses: Vec<Prefix>,
    /// Its MTU in bytes; `None`: the one that it was made with.
    pub(super) mtu: Option<u16>,
    /// What this node is in the mesh, for hooks; `None`: it is not known yet.
    pub(super) role: Option<Role>,
}

/// How often a device is looked after, and how long to wait before it is made anew.
const CARE: Duration = Duration::from_secs(5);

/// How long a hook waits for the first plan at most.
const PLANNED: Duration = Duration::from_secs(2);

/// The state of a mesh's WireGuard on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// Not yet known.
    Starting,
    /// The device listens on this port.
    Ready {
        /// The UDP port.
        port: u16,
        /// Who does the work; `None`: nobody, it is dry.
        backend: Option<Backend>,
    },
    /// It could not be made; this is tried again and again.
    Failed {
        /// Why.
        reason: String,
    },
}

/// The plane's end of an applier. Dropping it ends the task, and the device with it.
#[derive(Debug)]
pub(super) struct Applier {
    /// `None`: not known yet, so that the peers that an earlier run left in the kernel stay.
    desired: watch::Sender<Option<Arc<Desired>>>,
    status: watch::Receiver<Status>,
    unanswered: watch::Receiver<Unanswered>,
    questions: mpsc::Sender<Question>,
    destinations: Destinations,
    task: JoinHandle<()>,
}

/// Asks an applier what its device knows. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Inquirer(mpsc::Sender<Question>);

impl Inquirer {
    /// What the device knows; nothing if there is none.
    pub(super) async fn ask(&self) -> Told {
        let (reply, answer) = oneshot::channel();
        match self.0.send(reply).await {
            Ok(()) => answer.await.unwrap_or_default(),
            Err(_) => Told::default(),
        }
    }
}

impl Applier {
    /// Starts a device. Without `netlink` (dry) the host is not touched, and no hook is run.
    pub(super) fn start(
        netlink: Option<Netlink>,
        config: wireguard::Config,
        hooks: Option<Hooks>,
    ) -> Self {
        let (desired, follow) = watch::channel(None);
        let (report, status) = watch::channel(Status::Starting);
        let (questions, asked) = mpsc::channel(16);
        let (count, unanswered) = watch::channel(Unanswered::default());
        let patience = Silence::default();
        let destinations = Destinations::default();
        let worker = Worker {
            desired: follow,
            report,
            questions: asked,
            hooks,
            patience,
            count,
            destinations: destinations.clone(),
        };
        let task = tokio::spawn(async move {
            match netlink {
                Some(netlink) => worker.run(&netlink, config).await,
                None => worker.run_dry(config.listen_port).await,
            }
        });
        Self { desired, status, unanswered, questions, destinations, task }
    }

    /// Sets the state to converge on.
    pub(super) fn set(&self, desired: Desired) {
        self.desired.send_if_modified(|current| {
            let differs = current.as_deref() != Some(&desired);
            if differs {
                *current = Some(Arc::new(desired));
            }
            differs
        });
    }

    /// The peers to converge on.
    pub(super) fn peers(&self) -> Peers {
        self.desired.borrow().as_ref().map(|desired| desired.peers.clone()).unwrap_or_default()
    }

    /// Who does the work, if anybody does.
    pub(super) fn backend(&self) -> Option<Backend> {
        match *self.status.borrow() {
            Status::Ready { backend, .. } => backend,
            Status::Starting | Status::Failed { .. } => None,
        }
    }

    /// How the device does.
    pub(super) fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// How often each peer's endpoint was tried in vain.
    pub(super) fn unanswered(&mut self) -> Unanswered {
        self.unanswered.borrow_and_update().clone()
    }

    /// Whether that is news since it was asked.
    pub(super) fn has_news(&self) -> bool {
        self.unanswered.has_changed().unwrap_or(false)
    }

    pub(super) fn inquirer(&self) -> Inquirer {
        Inquirer(self.questions.clone())
    }

    /// To whom this host sends packets.
    pub(super) const fn destinations(&self) -> &Destinations {
        &self.destinations
    }

    /// Ends the device and waits until its interface is gone.
    pub(super) async fn stop(self) {
        let Self { desired, task, .. } = self;
        drop(desired);
        if let Err(error) = task.await {
            error!(%error, "an applier did not end in order");
        }
    }
}

/// Waits until it is known whether the device could be made; its port, or why not.
pub(super) async fn settled(mut status: watch::Receiver<Status>) -> Result<u16, String> {
    let settled = status.wait_for(|status| *status != Status::Starting).await;
    match settled.as_deref() {
        Ok(Status::Ready { port, .. }) => Ok(*port),
        Ok(Status::Failed { reason }) => Err(reason.clone()),
        Ok(Status::Starting) | Err(_) => Err("the applier has ended".to_owned()),
    }
}

struct Worker {
    desired: watch::Receiver<Option<Arc<Desired>>>,
    report: watch::Sender<Status>,
    questions: mpsc::Receiver<Question>,
    hooks: Option<Hooks>,
    patience: Silence,
    count: watch::Sender<Unanswered>,
    destinations: Destinations,
}

/// Why a device is used no longer.
enum End {
    /// Nobody wants it any more.
    Unwanted,
    /// It stopped by itself.
    Failed,
    /// It is the kernel's, and packets are to be carried that only this process carries.
    Incapable,
}

/// What came of an attempt to apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Applied {
    Yes,
    /// Not all of it; to be tried again.
    Behind,
    /// As far as the kernel can.
    InPart,
}

impl Worker {
    async fn run(mut self, netlink: &Netlink, mut config: wireguard::Config) {
        loop {
            self.hook(Kind::PreUp, &config).await;
            match Device::create(netlink, &config).await {
                Ok(mut device) => {
                    config.listen_port = device.port();
                    device.note_destinations(&self.destinations);
                    if let Err(error) = device.set_mark(DETOUR.mark).await {
                        warn!(interface = config.name, %error, "cannot keep WireGuard's own packets off its exits");
                    }
                    let (port, backend) = (config.listen_port, device.backend());
                    info!(interface = config.name, port, by = %backend, "WireGuard is up");
                    self.report.send_replace(Status::Ready { port, backend: Some(backend) });
                    self.until_planned().await;
                    // A hook finds the peers that are known by now.
                    let applied = self.apply(&mut device).await;
                    self.hook(Kind::PostUp, &config).await;
                    let any = config.backend.is_none();
                    let end = self.serve(&mut device, applied, any).await;
                    self.hook(Kind::PreDown, &config).await;
                    if let Err(error) = device.stop().await {
                        error!(interface = config.name, %error, "WireGuard did not stop in order");
                    }
                    self.hook(Kind::PostDown, &config).await;
                    match end {
                        End::Unwanted => return,
                        End::Incapable => {
                            info!(
                                interface = config.name,
                                "packets from or to beyond the mesh: the agent carries them itself"
                            );
                            config.backend = Some(Backend::Userspace);
                            continue;
                        }
                        End::Failed => error!(
                            interface = config.name,
                            "WireGuard stopped by itself; making it anew"
                        ),
                    }
                }
                Err(error) => self.note_failure(&config.name, &error),
            }
            if !self.pause().await {
                return;
            }
        }
    }

    async fn hook(&self, kind: Kind, config: &wireguard::Config) {
        if let Some(hooks) = &self.hooks {
            let desired = self.desired.borrow().clone().unwrap_or_default();
            hooks.run(kind, config, &desired).await;
        }
    }

    /// Waits a while for what the interface is to be, if somebody is to be told of it.
    async fn until_planned(&mut self) {
        if self.hooks.as_ref().is_some_and(|hooks| hooks.has(Kind::PostUp)) {
            let planned =
                self.desired.wait_for(|it| it.as_ref().is_some_and(|it| it.relays.is_some()));
            // If it takes longer, the hook is told what is known.
            timeout(PLANNED, planned).await.map(drop).unwrap_or_default();
        }
    }

    async fn run_dry(mut self, port: u16) {
        let port = if port == 0 { free_port() } else { port };
        self.report.send_replace(Status::Ready { port, backend: None });
        loop {
            tokio::select! {
                changed = self.desired.changed() => if changed.is_err() { return },
                Some(reply) = self.questions.recv() => reply.send(Told::default()).unwrap_or_default(),
            }
        }
    }

    /// Looks after a device, given what came of the first attempt to apply; `any` says whether
    /// another one may take its place.
    async fn serve(&mut self, device: &mut Device, mut applied: Applied, any: bool) -> End {
        let mut care = interval(CARE);
        care.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut limited = false;
        loop {
            if applied == Applied::InPart {
                if any {
                    return End::Incapable;
                }
                self.note_limit(device, &mut limited);
            }
            let greeting = device.greeting_due();
            tokio::select! {
                changed = self.desired.changed() => match changed {
                    Ok(()) => applied = self.apply(device).await,
                    Err(_) => return End::Unwanted,
                },
                () = wait_until(greeting) => match device.greet_again().await {
                    Ok(greeted) => debug!(interface = device.name(), greeted, "greeted again"),
                    Err(error) => {
                        debug!(interface = device.name(), %error, "not greeted again");
                        applied = Applied::Behind;
                    }
                },
                Some(reply) = self.questions.recv() => {
                    let told = Told { peers: device.peers().await, refused: device.refused() };
                    // Who asked may have gone.
                    reply.send(told).unwrap_or_default();
                }
                _ = care.tick() => {
                    match device.has_failed().await {
                        Ok(true) => return End::Failed,
                        Ok(false) => {
                            self.repair(device).await;
                            self.note_silence(&device.peers().await);
                        }
                        Err(error) => warn!(interface = device.name(), %error, "cannot look after the device"),
                    }
                    if applied == Applied::Behind {
                        applied = self.apply(device).await;
                    }
                }
            }
        }
    }

    /// Applies the latest desired state, once it is known.
    async fn apply(&mut self, device: &mut Device) -> Applied {
        let Some(desired) = self.desired.borrow_and_update().clone() else { return Applied::Yes };
        let carried = desired.relays.clone().is_none_or(|relays| device.set_relays(relays));
        match converge(device, &desired).await {
            Ok(changes) => {
                debug!(interface = device.name(), ?changes, carried, "applied");
                if carried { Applied::Yes } else { Applied::InPart }
            }
            Err(error) => {
                error!(interface = device.name(), %error, "cannot apply; trying again");
                Applied::Behind
            }
        }
    }

    fn note_limit(&self, device: &Device, noted: &mut bool) {
        if !std::mem::replace(noted, true) {
            warn!(
                interface = device.name(),
                "the kernel's WireGuard carries packets between members alone: what is behind \
                 them is not reached, nor are IPv4 addresses; set mesh.wireguard = \"auto\""
            );
        }
    }

    /// Counts whose endpoint was tried in vain.
    fn note_silence(&mut self, peers: &[PeerStatus]) {
        let silent = self.patience.note(peers);
        if !silent.is_empty() {
            self.count.send_modify(|count| {
                silent.into_iter().for_each(|key| *count.entry(key).or_default() += 1);
            });
        }
    }

    /// Puts right what others have changed.
    async fn repair(&self, device: &Device) {
        let wrong = match device.repair().await {
            Ok(wrong) => {
                let desired = self.desired.borrow().clone();
                match desired {
                    Some(it) => device.set_routes(&it.routes).await.map(|it| wrong || it),
                    None => Ok(wrong),
                }
            }
            Err(error) => Err(error),
        };
        match wrong {
            Ok(false) => {}
            Ok(true) => warn!(
                interface = device.name(),
                "somebody changed the interface's addresses, routes, MTU or state; put right"
            ),
            Err(error) => {
                warn!(interface = device.name(), %error, "cannot put the interface right");
            }
        }
    }

    fn note_failure(&self, interface: &str, failure: &wireguard::Error) {
        let failed = Status::Failed { reason: failure.to_string() };
        self.report.send_if_modified(|status| {
            let news = *status != failed;
            if news {
                error!(interface, error = %failure, "no WireGuard; trying again");
                *status = failed;
            }
            news
        });
    }

    /// Waits before the next attempt; `false` if nobody wants one.
    async fn pause(&mut self) -> bool {
        let waited = sleep(CARE);
        tokio::pin!(waited);
        loop {
            tokio::select! {
                () = &mut waited => return true,
                changed = self.desired.changed() => if changed.is_err() { return false },
                Some(reply) = self.questions.recv() => reply.send(Told::default()).unwrap_or_default(),
            }
        }
    }
}

/// Makes a device what is desired. What carries packets comes before what leads them there.
async fn converge(device: &mut Device, desired: &Desired) -> Result<Changes, wireguard::Error> {
    let changes = device.apply(&desired.peers).await?;
    device.shape(desired.mtu, &desired.addresses).await?;
    device.set_routes(&desired.routes).await?;
    Ok(changes)
}

/// Waits until then, or for ever.
async fn wait_until(then: Option<std::time::Instant>) {
    match then {
        Some(then) => sleep_until(then.into()).await,
        None => std::future::pending().await,
    }
}

/// A port that nobody used a moment ago.
fn free_port() -> u16 {
    let socket = UdpSocket::bind("[::]:0").or_else(|_| UdpSocket::bind("0.0.0.0:0"));
    socket.and_then(|socket| socket.local_addr()).map_or(0, |addr| addr.port())
}

#[cfg(test)]
mod tests {
    use selvedge_host::wireguard::PrivateKey;

    use super::*;

    #[tokio::test]
    async fn a_dry_applier_has_a_port_and_no_peers() {
        let config = wireguard::Config {
            name: "sv-dry".to_owned(),
            private_key: PrivateKey::from_bytes([1; 32]),
            listen_port: 0,
            mtu: 1420,
            addresses: Vec::new(),
            backend: None,
            control: None,
        };
        let applier = Applier::start(None, config, None);
        assert!(settled(applier.status()).await.expect("dry always works") > 0);
        let peer = PeerSpec { keepalive: Some(25), ..PeerSpec::default() };
        let peers = Peers::from([(WgKey([2; 32]), peer)]);
        applier.set(Desired { peers, ..Desired::default() });
        assert_eq!(applier.inquirer().ask().await, Told::default());
        applier.stop().await;
    }
}
