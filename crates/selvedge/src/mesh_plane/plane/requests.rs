//! What users ask for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use selvedge_api::mesh::{
    CreateRequest, EditRequest, Evicted, Invite, InviteRequest, JoinRequest, Left, Mesh, Role, What,
};
use selvedge_mesh::{Grant, InviteId, InviteTerms, Signed};
use selvedge_model::{MeshId, Prefix};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tracing::{info, warn};

use super::super::error::PlaneError;
use super::super::events;
use super::super::ground::Landlord;
use super::super::measure::{Measured, Measures};
use super::super::names::{self, FindError};
use super::super::seat::{Message, Seated};
use super::super::setup::{self, Setup, Socket, wall};
use super::super::{Reply, Request, doctor, view};
use super::{Plane, Report, answer, report};
use crate::config::MeshOptions;

/// How long the members of a mesh that was left may take to hear of it before their connections
/// are closed.
const FAREWELL: Duration = Duration::from_secs(2);

impl Plane {
    pub(super) async fn handle_request(&mut self, request: Request) {
        match request {
            Request::Create(request, reply) => self.create(request, reply).await,
            Request::Traffic(reply) => answer(reply, Ok(self.setup.transport.counters())),
            Request::Join(request, reply) => self.join(request, reply).await,
            Request::List(reply) => {
                answer(reply, Ok(self.meshes.values().map(view::summary).collect()));
            }
            Request::Show(mesh, reply) => match self.find(&mesh) {
                Ok(mesh) => self.show(mesh, reply),
                Err(error) => answer(reply, Err(error)),
            },
            Request::Sites(reply) => {
                answer(reply, Ok(self.meshes.values().map(view::site).collect()));
            }
            Request::Known(reply) => {
                let seats = self.meshes.values();
                let meshes = seats.map(|seat| (seat.id(), doctor::inside(seat)));
                let ground = self.landlord.as_ref().and_then(Landlord::wish).unwrap_or_default();
                answer(reply, Ok(doctor::Known { meshes: meshes.collect(), ground }));
            }
            Request::Measure(reply) => self.measure(reply),
            Request::Edit(mesh, request, reply) => match self.edit(&mesh, request) {
                Ok(mesh) => self.show(mesh, reply),
                Err(error) => answer(reply, Err(error)),
            },
            Request::Invite(mesh, request, reply) => answer(reply, self.invite(&mesh, request)),
            Request::Evict(mesh, member, reply) => answer(reply, self.evict(&mesh, &member)),
            Request::Eviction(mesh, member, reply) => {
                answer(reply, self.eviction(&mesh, &member));
            }
            Request::Leave(mesh, reply) => match self.find(&mesh) {
                Ok(mesh) => self.leave(mesh, reply),
                Err(error) => answer(reply, Err(error)),
            },
        }
    }

    async fn create(&mut self, request: CreateRequest, reply: Reply<Mesh>) {
        if self.meshes.values().any(|seat| seat.name() == request.name) {
            return answer(reply, Err(PlaneError::NameTaken(request.name)));
        }
        let options = self.setup.options.of_new(&request.name).clone();
        if options.role == Some(Role::Client) {
            return answer(reply, Err(PlaneError::ClientFounds(request.name)));
        }
        let socket = match self.reserve(&request.name, &options, request.port).await {
            Ok(socket) => socket,
            Err(error) => return answer(reply, Err(error)),
        };
        let interface = socket.interface.clone();
        let (setup, reporter) = (self.setup(), self.reporter.clone());
        tokio::spawn(async move {
            let seat = Box::new(setup.found(request, socket).await);
            report(&reporter, Report::SetUp { mesh: None, interface, seat, reply }).await;
        });
    }

    async fn join(&mut self, request: JoinRequest, reply: Reply<Mesh>) {
        let invite = match self.check_token(&request.token) {
            Ok(invite) => invite,
            Err(error) => return answer(reply, Err(error)),
        };
        let mesh = invite.value().mesh();
        let name = &invite.value().genesis.name;
        let options = self.setup.options.of(mesh, name).clone();
        let socket = match self.reserve(name, &options, request.port).await {
            Ok(socket) => socket,
            Err(error) => return answer(reply, Err(error)),
        };
        let interface = socket.interface.clone();
        let (forward, answers) = mpsc::channel(16);
        self.joins.insert(mesh, forward);
        let (setup, reporter) = (self.setup(), self.reporter.clone());
        tokio::spawn(async move {
            let seat = setup.join(invite, request, socket, answers).await;
            let seat = Box::new(seat);
            report(&reporter, Report::SetUp { mesh: Some(mesh), interface, seat, reply }).await;
        });
    }

    fn check_token(&self, token: &str) -> Result<Signed<selvedge_mesh::Invite>, PlaneError> {
        let invite = Signed::from_token(token)?;
        let mesh = invite.value().mesh();
        if let Some(seat) = self.meshes.get(&mesh) {
            return Err(PlaneError::AlreadyMember { mesh, name: seat.name().to_owned() });
        }
        if self.leaving.contains(&mesh) {
            return Err(PlaneError::StillLeaving(mesh));
        }
        if self.joins.contains_key(&mesh) {
            return Err(PlaneError::AlreadyJoining(mesh));
        }
        self.setup.files.make_room(mesh)?;
        Ok(invite)
    }

    pub(super) fn show(&self, mesh: MeshId, reply: Reply<Mesh>) {
        let Some(seat) = self.meshes.get(&mesh) else {
            return answer(reply, Err(FindError::Unknown(mesh.to_string()).into()));
        };
        let mut shown = view::mesh(seat, &self.heard);
        let inquirer = seat.wire.applier.inquirer();
        tokio::spawn(async move {
            view::complete(&mut shown, &inquirer.ask().await.peers);
            answer(reply, Ok(shown));
        });
    }

    fn measure(&self, reply: Reply<Measures>) {
        let measure =
            |seat: &Seated| (Measured::of(seat, &self.heard), seat.wire.applier.inquirer());
        let started: Vec<_> = self.meshes.values().map(measure).collect();
        let transport = self.setup.transport.counters();
        let hook_failures = self.setup.hook_failures.load(Ordering::Relaxed);
        tokio::spawn(async move {
            let completed = started.iter().map(|(mesh, inquirer)| mesh.clone().complete(inquirer));
            let meshes = join_all(completed).await;
            answer(reply, Ok(Measures { meshes, transport, hook_failures }));
        });
    }

    fn invite(&mut self, mesh: &str, request: InviteRequest) -> Result<Invite, PlaneError> {
        let mesh = self.find(mesh)?;
        let seat = self.meshes.get(&mesh).ok_or(PlaneError::Stopping)?;
        if request.uses == 0 {
            return Err(PlaneError::NoUses);
        }
        let role = match request.role {
            Role::Peer => selvedge_mesh::Role::Peer,
            Role::Client => selvedge_mesh::Role::Client,
        };
        let not_after = wall().after(Duration::from_secs(request.expires_s));
        let id = InviteId(setup::random()?);
        let prefixes = request.allow.iter().map(Prefix::network).collect();
        let InviteRequest { may_invite, guests, .. } = request;
        let grant = Grant { role, prefixes, may_invite, guests };
        let terms = InviteTerms { id, grant, uses: request.uses, not_after };
        let token = seat.core.invite(terms, wall())?.to_token();
        Ok(Invite { token, mesh, uses: request.uses, expires: not_after.0 })
    }

    fn evict(&mut self, mesh: &str, member: &str) -> Result<Evicted, PlaneError> {
        let mesh = self.find(mesh)?;
        let seat = self.meshes.get_mut(&mesh).ok_or(PlaneError::Stopping)?;
        let node = view::find(seat, member)?;
        let gone = seat.core.evict(node)?;
        self.drive(mesh);
        Ok(Evicted { mesh, node, gone })
    }

    fn eviction(&self, mesh: &str, member: &str) -> Result<Evicted, PlaneError> {
        let mesh = self.find(mesh)?;
        let seat = self.meshes.get(&mesh).ok_or(PlaneError::Stopping)?;
        let node = view::find(seat, member)?;
        Ok(Evicted { mesh, node, gone: seat.core.would_go(node)? })
    }

    /// Says something else about this node.
    fn edit(&mut self, mesh: &str, request: EditRequest) -> Result<MeshId, PlaneError> {
        let mesh = self.find(mesh)?;
        let seat = self.meshes.get_mut(&mesh).ok_or(PlaneError::Stopping)?;
        seat.core.edit_profile(|profile| {
            profile.alias = request.alias.unwrap_or(std::mem::take(&mut profile.alias));
            profile.shared = request.shared.unwrap_or(profile.shared);
            profile.client = request.role.map_or(profile.client, |role| role == Role::Client);
            profile.drained = request.drained.unwrap_or(profile.drained);
            let description = std::mem::take(&mut profile.description);
            profile.description = request.description.unwrap_or(description);
            for (key, value) in request.services {
                match value {
                    Some(value) => drop(profile.services.insert(key, value)),
                    None => drop(profile.services.remove(&key)),
                }
            }
        })?;
        self.drive(mesh);
        Ok(mesh)
    }

    fn leave(&mut self, mesh: MeshId, reply: Reply<Left>) {
        let Some(mut seat) = self.meshes.remove(&mesh) else {
            return answer(reply, Err(FindError::Unknown(mesh.to_string()).into()));
        };
        if let Err(error) = seat.core.leave() {
            self.meshes.insert(mesh, seat);
            return answer(reply, Err(error.into()));
        }
        let partners: BTreeMap<_, _> =
            seat.core.members().map(|m| (m.node, seat.core.control_endpoints(m.node))).collect();
        let left = Left { id: mesh, name: seat.name().to_owned() };
        // What is on disk is removed, so nothing need be written before the news is sent.
        while let Some(transmit) = seat.core.poll_transmit() {
            let message = Message::from(transmit);
            let addrs = partners.get(&message.to).map_or(&[][..], Vec::as_slice);
            self.send(&message, addrs);
        }
        self.planning.note();
        info!(mesh = left.name, id = %mesh, "left the mesh");
        self.setup.stream.publish(events::event(mesh, &left.name, What::Left));
        let interface = seat.wire.interface.clone();
        self.leaving.insert(mesh);
        self.reserved.insert(interface.clone(), seat.wire.port);
        let (files, reporter) = (self.setup.files.clone(), self.reporter.clone());
        tokio::spawn(async move {
            // A write that is under way must not bring the file back.
            seat.until_written().await;
            let removed = files.remove_aside(mesh).await;
            seat.wire.applier.stop().await;
            report(&reporter, Report::Left { mesh, interface }).await;
            answer(reply, removed.map(|()| left).map_err(PlaneError::Left));
            sleep(FAREWELL).await;
            report(&reporter, Report::Forgotten).await;
        });
    }

    fn find(&self, selector: &str) -> Result<MeshId, PlaneError> {
        let meshes = self.meshes.values().map(|seat| (seat.id(), seat.name()));
        Ok(names::find(selector, meshes)?)
    }

    /// What a mesh is set up with.
    pub(super) fn setup(&self) -> Setup {
        let overlays = self.meshes.values().flat_map(Seated::overlays).collect();
        Setup { overlays, ..self.setup.clone() }
    }

    /// Chooses interface and port of a new mesh, and keeps them from others.
    async fn reserve(
        &mut self,
        mesh: &str,
        options: &MeshOptions,
        asked: Option<u16>,
    ) -> Result<Socket, PlaneError> {
        let port = self.port(options.port, asked)?;
        let mut taken: BTreeSet<_> = self.reserved.keys().cloned().collect();
        taken.extend(self.meshes.values().map(|seat| seat.wire.interface.clone()));
        if let Some(netlink) = &self.setup.netlink {
            match netlink.links().await {
                Ok(links) => taken.extend(links.into_iter().map(|link| link.name)),
                Err(error) => warn!(%error, "cannot list the host's interfaces"),
            }
        }
        let interface = names::interface(&options.interface, mesh, &taken);
        self.reserved.insert(interface.clone(), port);
        Ok(Socket { interface, port })
    }

    /// The port of a new mesh: the one that is asked for, or else the configured one if no other
    /// mesh has it.
    fn port(&self, configured: Option<u16>, asked: Option<u16>) -> Result<u16, PlaneError> {
        let is_taken = |port: u16| {
            port != 0
                && (self.meshes.values().any(|seat| seat.wire.port == port)
                    || self.reserved.values().any(|reserved| *reserved == port))
        };
        match (asked, configured) {
            (Some(port), _) if is_taken(port) => Err(PlaneError::PortTaken(port)),
            (Some(port), _) => Ok(port),
            (None, configured) => Ok(configured.filter(|port| !is_taken(*port)).unwrap_or(0)),
        }
    }
}
