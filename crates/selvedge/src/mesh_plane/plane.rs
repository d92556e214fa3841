//! The loop of the mesh plane.

mod paths;
mod places;
mod planning;
mod requests;
mod sockets;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use selvedge_api::Error;
use selvedge_api::mesh::{Mesh, Role, What};
use selvedge_host::netlink::Netlink;
use selvedge_host::wireguard::{Backend, DETOUR, PeerStatus};
use selvedge_mesh::wire::{self, Envelope, Refused, RefusedReason};
use selvedge_mesh::{Identity, Knock, State};
use selvedge_model::{MeshId, NodeId, Time};
use selvedge_transport::{AccessList, Received, Transport};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::endpoints;
use super::error::PlaneError;
use super::events::{self, Stream};
use super::files::{Files, FilesError, MeshFile};
use super::ground::Landlord;
use super::hosts::Hosts;
use super::recorder::Recorder;
use super::seat::{Message, Seated, Wanted};
use super::setup::{self, Answer, Seat, Setup, Socket, Wire, wall};
use super::topology::Planned;
use super::{Reply, Request, observed, view};
use crate::config::{MeshConfig, Place, WireGuard};
use crate::identity;
use planning::Planning;
use sockets::Sockets;

/// How often the host's addresses are looked at, and forgotten nodes forgotten.
const HOUSEKEEPING: Duration = Duration::from_secs(30);

/// How long to wait before a write that failed is tried again.
const WRITE_AGAIN: Duration = Duration::from_secs(5);

/// How many partners' addresses tell which own address is of use.
const PARTNERS_ASKED: usize = 4;

/// The kind of message that asks to join, and that tells where this node is seen.
const JOIN: u64 = 16;
const SEEN: u64 = 30;

// What the core takes for a datagram, the transport takes as one.
const _: () = assert!(wire::MAX_DATAGRAM <= selvedge_transport::MAX_DATAGRAM);

/// What the plane's own tasks report.
enum Report {
    /// A mesh was founded or joined, or not; the interface's name and the port were reserved for it.
    SetUp {
        mesh: Option<MeshId>,
        interface: String,
        seat: Box<Result<Seat, PlaneError>>,
        reply: Reply<Mesh>,
    },
    /// A mesh was left; the interface's name is free again.
    Left { mesh: MeshId, interface: String },
    /// A write has ended.
    Written { mesh: MeshId, result: Result<(), FilesError> },
    /// It is time to try a write again.
    WriteAgain(MeshId),
    /// The members of a mesh that was left have had time to hear of it.
    Forgotten,
    /// What the host is to do for all meshes; `None` if that could not be planned.
    Planned(Option<Arc<Planned>>),
    /// What WireGuard knows of its peers.
    Looked(MeshId, Vec<PeerStatus>),
    /// What to announce in each mesh.
    Places(BTreeMap<MeshId, Vec<Place>>),
    /// The addresses of a host that a member names.
    Resolved { name: String, answer: Option<BTreeSet<IpAddr>> },
}

/// The mesh plane.
pub(super) struct Plane {
    config: MeshConfig,
    setup: Setup,
    received: mpsc::Receiver<Received>,
    access: watch::Sender<AccessList>,
    began: Instant,
    meshes: BTreeMap<MeshId, Seated>,
    /// Where answers to join requests go.
    joins: BTreeMap<MeshId, mpsc::Sender<Answer>>,
    /// Meshes that are being left.
    leaving: BTreeSet<MeshId>,
    /// Interfaces that are being made or removed, with their ports if these are known.
    reserved: BTreeMap<String, u16>,
    heard: view::Heard,
    hosts: Hosts,
    planning: Planning,
    /// `None`: dry, the host is not touched.
    landlord: Option<Landlord>,
    reports: mpsc::Receiver<Report>,
    reporter: mpsc::Sender<Report>,
}

impl Plane {
    /// Reads the state and binds the transport.
    pub(super) async fn open(config: MeshConfig, stream: Stream) -> anyhow::Result<Self> {
        let files = Files::open(&config.state)?;
        let secret = identity::load_secret(&config.state)?;
        let stored = files.meshes()?;
        let identity = Identity::from_secret(&secret);
        let nobody = AccessList { strangers: true, ..AccessList::default() };
        let (access, follow) = watch::channel(nobody);
        let netlink = match config.wireguard {
            WireGuard::Dry => None,
            WireGuard::Auto | WireGuard::Kernel | WireGuard::Userspace => {
                Some(Netlink::new().context("cannot talk to the kernel")?)
            }
        };
        let (transport, received) = Transport::bind(selvedge_transport::Config {
            listen: config.listen,
            secret,
            access: follow,
            mark: netlink.as_ref().map(|_| DETOUR.mark),
        })?;
        let settings = config.state.join("settings.json");
        let landlord = netlink.clone().map(|netlink| Landlord::start(netlink, settings));
        info!(node = %identity.node_id(), listen = %transport.local_addr(), "this is the mesh node");
        let setup = Setup {
            identity,
            listen_port: transport.local_addr().port(),
            transport,
            files,
            netlink,
            overlays: Vec::new(),
            default_alias: config.name.to_string(),
            backend: backend(config.wireguard),
            options: config.options.clone(),
            stream,
            hook_failures: Arc::default(),
        };
        let (reporter, reports) = mpsc::channel(64);
        let mut plane = Self {
            config,
            setup,
            received,
            access,
            began: Instant::now(),
            meshes: BTreeMap::new(),
            joins: BTreeMap::new(),
            leaving: BTreeSet::new(),
            reserved: BTreeMap::new(),
            heard: view::Heard::new(),
            hosts: Hosts::default(),
            planning: Planning::default(),
            landlord,
            reports,
            reporter,
        };
        plane.restore(stored).await;
        // Also without a mesh: an earlier run may have left something behind.
        plane.planning.note();
        Ok(plane)
    }

    /// Runs until `shutdown`; then removes the interfaces and says goodbye.
    pub(super) async fn run(
        mut self,
        mut requests: mpsc::Receiver<Request>,
        shutdown: CancellationToken,
    ) {
        let mut housekeeping = interval(HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (changed, mut moved) = mpsc::channel(1);
        if self.setup.netlink.is_some() {
            tokio::spawn(endpoints::follow(changed));
        }
        loop {
            let due = self.due();
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(request) = requests.recv() => self.handle_request(request).await,
                Some(received) = self.received.recv() => self.handle_message(received),
                Some(report) = self.reports.recv() => self.handle_report(report),
                () = sleep_until(due.into()) => self.handle_timeout(),
                Some(()) = moved.recv() => {
                    self.keep_house();
                    self.planning.note();
                }
                _ = housekeeping.tick() => self.keep_house(),
            }
        }
        self.close().await;
    }

    // Inputs.

    fn handle_message(&mut self, Received { from, remote, bytes, .. }: Received) {
        let mesh = match selvedge_mesh::wire::mesh_of(&bytes) {
            Ok(mesh) => mesh,
            Err(error) => return debug!(%from, %error, "a message cannot be read"),
        };
        if let Some(join) = self.joins.get(&mesh) {
            // If answers pile up, the next attempt will bring another.
            join.try_send((from, bytes)).unwrap_or_default();
        } else if wire::kind_of(&bytes) == Ok(SEEN) {
            self.note_seen(mesh, from, &bytes);
        } else if let Some(seat) = self.meshes.get_mut(&mesh) {
            seat.core.handle_message(from, &bytes, now(self.began), wall());
            if seat.core.is_member(from) {
                self.heard.insert(from, view::Contact { at: Instant::now(), from: remote });
            }
            self.drive(mesh);
        } else {
            debug!(%from, %mesh, "a message of a mesh that this node is not in");
            if selvedge_mesh::wire::kind_of(&bytes) == Ok(JOIN) {
                self.refuse_join(from, mesh);
            }
        }
    }

    fn handle_timeout(&mut self) {
        if self.meshes.values().any(|seat| seat.wire.applier.has_news()) {
            self.planning.note();
        }
        self.look_up(Instant::now());
        if self.planning.begin(Instant::now()) {
            self.plan();
        }
        self.begin_looks();
        let (now, wall) = (now(self.began), wall());
        let due = |seat: &Seated| seat.core.poll_timeout().is_some_and(|due| due <= now);
        let due: Vec<_> = self.meshes.values().filter(|seat| due(seat)).map(Seated::id).collect();
        for mesh in due {
            if let Some(seat) = self.meshes.get_mut(&mesh) {
                seat.core.handle_timeout(now, wall);
            }
            self.drive(mesh);
        }
    }

    fn handle_report(&mut self, report: Report) {
        match report {
            Report::SetUp { mesh, interface, seat, reply } => {
                self.reserved.remove(&interface);
                if let Some(mesh) = mesh {
                    self.joins.remove(&mesh);
                }
                match *seat {
                    Ok(seat) => self.sit_down(seat, reply),
                    Err(error) => answer(reply, Err(error)),
                }
            }
            Report::Left { mesh, interface } => {
                self.leaving.remove(&mesh);
                self.reserved.remove(&interface);
            }
            Report::Written { mesh, result } => self.note_written(mesh, result),
            Report::WriteAgain(mesh) => {
                if let Some(wanted) = self.meshes.get_mut(&mesh).map(Seated::resume) {
                    self.carry_out(mesh, wanted);
                }
            }
            Report::Forgotten => self.update_access(),
            Report::Planned(planned) => self.follow(planned),
            Report::Looked(mesh, peers) => self.look_at_paths(mesh, &peers),
            Report::Places(places) => self.announce(places),
            Report::Resolved { name, answer } => {
                if self.hosts.note(&name, answer, Instant::now()) {
                    self.planning.note();
                }
            }
        }
    }

    fn keep_house(&mut self) {
        self.planning.doubt_links();
        let meshes = &self.meshes;
        self.heard.retain(|node, _| meshes.values().any(|seat| seat.core.is_member(*node)));
        self.tell_seen();
        let partners = self.meshes.values().map(|seat| {
            let overlays: Vec<_> = seat.overlays().collect();
            (seat.id(), seat.options.clone(), partner_addresses(seat), overlays)
        });
        let partners: Vec<_> = partners.collect();
        let (setup, reporter) = (self.setup(), self.reporter.clone());
        tokio::spawn(async move {
            let mut places = BTreeMap::new();
            for (mesh, options, towards, own) in partners {
                places.insert(mesh, setup.places(&options, &towards, &own).await);
            }
            report(&reporter, Report::Places(places)).await;
        });
    }

    // Meshes.

    /// Takes up all meshes that are on disk.
    async fn restore(&mut self, stored: Vec<(MeshId, MeshFile)>) {
        let mut sockets = Sockets::of(&stored);
        for (mesh, file) in stored {
            let state = match State::decode(&file.core) {
                Ok(state) if state.mesh() == mesh => state,
                Ok(_) => {
                    self.setup.files.put_aside(mesh, &"it is the state of another mesh");
                    continue;
                }
                Err(error) => {
                    self.setup.files.put_aside(mesh, &error);
                    continue;
                }
            };
            let name = &state.genesis().name;
            let Socket { interface, port } = sockets.choose(&self.setup.options, mesh, name);
            let socket = Socket { interface: interface.clone(), port };
            let key = file.key;
            let applier = self.setup.device(mesh, name, &key, socket);
            let wire = Wire { key, port, interface, applier };
            if let Err(error) = self.seat(Seat { state, wire }) {
                self.setup.files.put_aside(mesh, &error);
            }
        }
        let meshes: Vec<_> = self.meshes.values().map(|seat| (seat.id(), seat.name())).collect();
        for name in self.setup.options.idle(&meshes) {
            warn!(section = format!("mesh.named.{name}"), "this node is in no such mesh (yet)");
        }
    }

    /// Begins to use a mesh.
    fn seat(&mut self, Seat { state, wire }: Seat) -> Result<MeshId, PlaneError> {
        let seed = u64::from_be_bytes(setup::random()?);
        let identity = self.setup.identity.clone();
        let config = selvedge_mesh::Config::default();
        let (now, wall) = (now(self.began), wall());
        let recorder = self.config.record.as_ref().and_then(|file| self.record(file, &state));
        let begin = match recorder {
            Some(_) => selvedge_mesh::Mesh::recorded,
            None => selvedge_mesh::Mesh::new,
        };
        let mut core = begin(identity, state, config, seed, now, wall)?;
        core.set_bootstrap(self.config.bootstrap.clone());
        let mesh = core.id();
        let options = self.setup.options.of(mesh, &core.genesis().name).clone();
        if let Some(role) = options.role {
            core.edit_profile(|profile| profile.client = role == Role::Client)?;
        }
        info!(mesh = core.genesis().name, id = %mesh, address = %core.address(), "member of a mesh");
        self.setup.stream.publish(events::event(mesh, &core.genesis().name, What::Entered));
        self.meshes.insert(mesh, Seated::new(core, wire, options, recorder, seed));
        self.update_access();
        self.drive(mesh);
        Ok(mesh)
    }

    /// Where a mesh is recorded: the first one in the file that was named, others beside it.
    fn record(&self, file: &Path, state: &State) -> Option<Recorder> {
        let mut path = file.as_os_str().to_owned();
        if !self.meshes.is_empty() {
            path.push(format!(".{}", state.mesh()));
        }
        Recorder::open(path.into())
    }

    fn sit_down(&mut self, seat: Seat, reply: Reply<Mesh>) {
        match self.seat(seat) {
            Ok(mesh) => self.show(mesh, reply),
            Err(error) => answer(reply, Err(error)),
        }
    }

    /// Does what a mesh wants done after its core was called.
    fn drive(&mut self, mesh: MeshId) {
        if let Some(seat) = self.meshes.get_mut(&mesh) {
            let wanted = seat.drive();
            self.carry_out(mesh, wanted);
            self.drive_paths(mesh);
        }
    }

    fn carry_out(&mut self, mesh: MeshId, wanted: Wanted) {
        if wanted.members_changed {
            self.update_access();
        }
        if wanted.replan {
            self.planning.note();
        }
        let Some(seat) = self.meshes.get_mut(&mesh) else { return };
        for call in wanted.called {
            seat.paths.hear(call, now(self.began));
        }
        for what in wanted.told {
            self.setup.stream.publish(events::event(mesh, seat.name(), what));
        }
        if let Some(file) = wanted.write {
            let (files, reporter) = (self.setup.files.clone(), self.reporter.clone());
            seat.note_write(tokio::spawn(async move {
                let result = files.save_aside(mesh, file).await;
                report(&reporter, Report::Written { mesh, result }).await;
            }));
        }
        let Some(seat) = self.meshes.get(&mesh) else { return };
        wanted.knocks.into_iter().for_each(|knock| self.knock(knock));
        for message in wanted.send {
            let mut addrs = self.control_places(seat, message.to);
            // Datagrams go there anyway; a connection has to be told.
            if let (false, Some(contact)) = (message.datagram, self.heard.get(&message.to)) {
                addrs.insert(0, contact.from);
            }
            self.send(&message, &addrs);
        }
    }

    fn note_written(&mut self, mesh: MeshId, result: Result<(), FilesError>) {
        let Some(seat) = self.meshes.get_mut(&mesh) else { return };
        let wanted = seat.written(result.is_ok());
        self.carry_out(mesh, wanted);
        let Err(error) = result else { return };
        error!(%mesh, %error, "cannot write the state of a mesh; trying again");
        let reporter = self.reporter.clone();
        tokio::spawn(async move {
            tokio::time::sleep(WRITE_AGAIN).await;
            report(&reporter, Report::WriteAgain(mesh)).await;
        });
    }

    /// Tells the members where this node is reached now.
    fn announce(&mut self, places: BTreeMap<MeshId, Vec<Place>>) {
        for (mesh, places) in places {
            let Some(seat) = self.meshes.get(&mesh) else { continue };
            let observed = self.observed(seat, Instant::now());
            let Some(seat) = self.meshes.get_mut(&mesh) else { continue };
            // A host that has no address for a moment is reached where it was before, if at all.
            if places.is_empty() {
                continue;
            }
            let (control, port) = (self.setup.listen_port, seat.wire.port);
            let mut profile = self.setup.reached_at(seat.core.profile(), &places, port);
            observed::announce(&mut profile, &observed, control, port);
            match seat.core.set_profile(profile) {
                Ok(true) => {
                    let places: Vec<_> = places.iter().map(ToString::to_string).collect();
                    info!(mesh = seat.name(), ?places, ?observed, "announcing new addresses");
                }
                Ok(false) => {}
                Err(error) => warn!(mesh = seat.name(), %error, "cannot announce addresses"),
            }
            self.drive(mesh);
        }
    }

    fn update_access(&self) {
        let cores = self.meshes.values().map(|seat| &seat.core);
        let members = cores.flat_map(|core| core.members().map(|member| member.node)).collect();
        // Who is not known yet may be a member that others admitted, or may want to join; if this
        // node is in no mesh any more, it is told so.
        let list = AccessList { members, refused: BTreeSet::new(), strangers: true };
        self.access.send_if_modified(|current| {
            let differs = *current != list;
            *current = list;
            differs
        });
    }

    /// Sends a message to whoever is found at a place.
    fn knock(&self, Knock { place, bytes }: Knock) {
        let transport = self.setup.transport.clone();
        tokio::spawn(async move {
            let addrs: Vec<_> = match tokio::net::lookup_host(&place).await {
                Ok(addrs) => addrs.collect(),
                Err(error) => return debug!(place, %error, "a bootstrap place has no address"),
            };
            if let Err(error) = transport.find(&addrs, bytes.to_vec()) {
                debug!(place, %error, "a message was not sent");
            }
        });
    }

    fn send(&self, message: &Message, addrs: &[SocketAddr]) {
        let Message { to, bytes, datagram } = message;
        let transport = &self.setup.transport;
        let queued = match datagram {
            true => transport.send_datagram(*to, addrs, bytes.to_vec()),
            false => transport.send(*to, addrs, bytes.to_vec()),
        };
        if let Err(error) = queued {
            debug!(%to, %error, "a message was not sent");
        }
    }

    /// Tells a node that wants to join a mesh which this node is not in, so that it does not wait
    /// in vain: the founder may have left, or lost its state.
    fn refuse_join(&self, to: NodeId, mesh: MeshId) {
        let detail = format!(
            "this node is not a member of the mesh {mesh} (any more): the invite cannot be \
             redeemed; ask another member for a new one"
        );
        let refused = Refused { reason: Some(RefusedReason::NotIssuer), detail };
        let envelope = Envelope { mesh, message: wire::Message::Refused(refused) };
        let message = Message { to, bytes: envelope.encode().into(), datagram: false };
        self.send(&message, &[]);
    }

    /// When the first timer of a core ends.
    fn due(&self) -> Instant {
        let timers = self.meshes.values();
        let timers = timers.flat_map(|seat| [seat.core.poll_timeout(), seat.paths.poll_timeout()]);
        let timers = timers.flatten();
        let wait = timers.min().map_or(HOUSEKEEPING, |due| due.since(now(self.began)));
        let due = Instant::now() + wait;
        [self.planning.due(), self.hosts.due()].into_iter().flatten().fold(due, Instant::min)
    }

    async fn close(mut self) {
        // All is on disk before any hook of the operator's is waited for.
        for (mesh, seat) in &mut self.meshes {
            seat.until_written().await;
            if let Some(file) = seat.unwritten()
                && let Err(error) = self.setup.files.clone().save_aside(*mesh, file).await
            {
                error!(%mesh, %error, "cannot write the state of a mesh");
            }
        }
        if let Some(landlord) = self.landlord {
            landlord.stop().await;
        }
        let appliers = self.meshes.into_values().map(|seat| seat.wire.applier.stop());
        futures_util::future::join_all(appliers).await;
        self.setup.transport.close().await;
    }
}

/// Who does the work of WireGuard; `None`: whoever can.
const fn backend(wanted: WireGuard) -> Option<Backend> {
    match wanted {
        WireGuard::Kernel => Some(Backend::Kernel),
        WireGuard::Userspace => Some(Backend::Userspace),
        WireGuard::Auto | WireGuard::Dry => None,
    }
}

fn now(began: Instant) -> Time {
    Time::ZERO + began.elapsed()
}

fn answer<T>(reply: Reply<T>, result: Result<T, PlaneError>) {
    // Who asked may have gone.
    reply.send(result.map_err(Error::from)).unwrap_or_default();
}

async fn report(reporter: &mpsc::Sender<Report>, report: Report) {
    // Fails only when the plane has ended.
    reporter.send(report).await.unwrap_or_default();
}

/// Addresses of some partners, to find out from which own addresses they are reached.
fn partner_addresses(seat: &Seated) -> Vec<SocketAddr> {
    let own = seat.core.node();
    let others = seat.core.members().filter(|member| member.node != own);
    let first = others.filter_map(|member| Some(member.profile.control.first()?.addr));
    first.take(PARTNERS_ASKED).collect()
}
