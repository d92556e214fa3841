//! Becoming a member: founding a mesh, and joining one. Each is one task that prepares
//! everything, WireGuard and the state on disk included, and hands the plane a finished seat; if
//! it fails on the way, it takes back what it made.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use selvedge_api::mesh::{CreateRequest, JoinRequest, Role};
use selvedge_host::netlink::Netlink;
use selvedge_host::wireguard::{self, Backend, PrivateKey};
use selvedge_mesh::address::mesh_prefix;
use selvedge_mesh::{
    Bootstrap, Identity, Invite, JoinError, Joining, NamedEndpoint, Profile, Signed, State,
    UnixTime,
};
use selvedge_model::{MeshId, NodeId, Prefix};
use selvedge_transport::Transport;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::applier::{self, Applier};
use super::endpoints;
use super::error::PlaneError;
use super::events::Stream;
use super::files::{Files, MeshFile};
use super::hooks::Hooks;
use crate::config::{Host, MeshOptions, OptionsByMesh, Place};

/// How often a bootstrap node is asked, and how long it may take to answer each time.
const ATTEMPTS: usize = 3;
const ANSWER: Duration = Duration::from_secs(4);

/// The MTU of an interface in bytes until it is known by what ways its packets go: that of
/// Ethernet less what WireGuard adds.
pub(super) const MTU: u16 = 1500 - wireguard::OVERHEAD;

/// What every setup needs.
#[derive(Clone)]
pub(super) struct Setup {
    pub(super) identity: Identity,
    pub(super) transport: Transport,
    pub(super) files: Files,
    /// `None`: dry, the host is not touched.
    pub(super) netlink: Option<Netlink>,
    /// The overlay prefixes of all meshes of this node.
    pub(super) overlays: Vec<Prefix>,
    pub(super) default_alias: String,
    /// The port of the transport.
    pub(super) listen_port: u16,
    /// Who is to do the work of WireGuard; `None`: whoever can.
    pub(super) backend: Option<Backend>,
    pub(super) options: OptionsByMesh,
    pub(super) stream: Stream,
    /// How many hooks have failed.
    pub(super) hook_failures: Arc<AtomicU64>,
}

/// A place in a mesh, ready to be used.
pub(super) struct Seat {
    pub(super) state: State,
    pub(super) wire: Wire,
}

/// What WireGuard of one mesh needs and no other mesh may have.
#[derive(Clone, Debug)]
pub(super) struct Socket {
    pub(super) interface: String,
    /// The UDP port; 0 for a free one.
    pub(super) port: u16,
}

/// WireGuard of one mesh.
pub(super) struct Wire {
    pub(super) key: PrivateKey,
    pub(super) port: u16,
    pub(super) interface: String,
    pub(super) applier: Applier,
}

/// An answer to a join request, as the plane passes it on.
pub(super) type Answer = (NodeId, Vec<u8>);

/// The address of this node's interface in a mesh: its own within the prefix of all.
pub(super) fn interface_address(mesh: MeshId, node: NodeId) -> Prefix {
    let address = selvedge_mesh::address::node_address(mesh, node);
    Prefix::new(address.into(), 64).expect("an IPv6 prefix may have 64 bits")
}

/// Now, on the wall clock.
pub(super) fn wall() -> UnixTime {
    UnixTime(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
}

pub(super) fn random<const N: usize>() -> Result<[u8; N], PlaneError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| PlaneError::Random(error.to_string()))?;
    Ok(bytes)
}

impl Setup {
    /// Founds a mesh.
    pub(super) async fn found(
        self,
        request: CreateRequest,
        socket: Socket,
    ) -> Result<Seat, PlaneError> {
        let salt = random()?;
        let key = PrivateKey::from_bytes(random()?);
        let places = self.places(self.options.of_new(&request.name), &[], &[]).await;
        let found = |wg, port| {
            let (alias, description) = (request.alias.clone(), request.description.clone());
            let profile = self.profile(port, &places, alias, description);
            State::found(&self.identity, &request.name, salt, wg, profile)
        };
        // What is wrong with the request shows before anything is made.
        let draft = found(key.public(), 0)?;
        let wire = self.wire(draft.mesh(), &request.name, key, socket).await?;
        let state = found(wire.key.public(), wire.port).map_err(PlaneError::from);
        self.seat(state, wire).await
    }

    /// Redeems an invite.
    pub(super) async fn join(
        self,
        invite: Signed<Invite>,
        request: JoinRequest,
        socket: Socket,
        answers: mpsc::Receiver<Answer>,
    ) -> Result<Seat, PlaneError> {
        let key = PrivateKey::from_bytes(random()?);
        let towards: Vec<_> = invite.value().bootstrap.iter().map(|place| place.addr).collect();
        let (mesh, name) = (invite.value().mesh(), &invite.value().genesis.name);
        let options = self.options.of(mesh, name);
        let own: Vec<_> = [Some(mesh_prefix(mesh)), options.ipv4].into_iter().flatten().collect();
        let places = self.places(options, &towards, &own).await;
        let prepare = |wg, port| {
            let (alias, description) = (request.alias.clone(), request.description.clone());
            let profile = self.profile(port, &places, alias, description);
            let profile = Profile { client: request.role == Some(Role::Client), ..profile };
            Joining::new(self.identity.clone(), invite.clone(), wg, profile, wall())
        };
        prepare(key.public(), 0)?;
        let wire = self.wire(mesh, name, key, socket).await?;
        let state = match prepare(wire.key.public(), wire.port) {
            Ok(joining) => self.ask(&joining, answers).await,
            Err(error) => Err(error.into()),
        };
        self.seat(state, wire).await
    }

    /// What to announce in a mesh: the addresses configured, or else those of the host, the ones
    /// from which packets to `towards` leave first; and the names configured. A mesh may run over another one of the
    /// node's if that is what is configured, but never over itself: `own` are its overlay prefixes.
    pub(super) async fn places(
        &self,
        options: &MeshOptions,
        towards: &[SocketAddr],
        own: &[Prefix],
    ) -> Vec<Place> {
        let inside = |ip: IpAddr| own.iter().any(|overlay| overlay.contains(ip));
        let outside = |place: &&Place| !place.address().is_some_and(inside);
        let configured = options.endpoints.iter().filter(outside).cloned();
        if options.endpoints.iter().any(|place| place.address().is_some()) {
            return configured.collect();
        }
        let netlink = self.netlink.as_ref();
        let found = endpoints::discover(netlink, towards, &self.overlays).await;
        found.into_iter().map(Place::from).chain(configured).collect()
    }

    /// `profile` with the places where this node is reached, where WireGuard has `port` if nothing
    /// else is said.
    pub(super) fn reached_at(&self, profile: Profile, places: &[Place], port: u16) -> Profile {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let mut profile = Profile { version, ..profile };
        profile.endpoints.clear();
        profile.control.clear();
        profile.names.clear();
        for place in places {
            let port = place.port.unwrap_or(port);
            match &place.host {
                Host::Address(ip) => {
                    profile.endpoints.push(SocketAddr::new(*ip, port).into());
                    profile.control.push(SocketAddr::new(*ip, self.listen_port).into());
                }
                Host::Name(host) => {
                    let (host, control) = (host.clone(), self.listen_port);
                    profile.names.push(NamedEndpoint { host, port, control });
                }
            }
        }
        profile
    }

    /// The device of a mesh.
    pub(super) fn device(
        &self,
        mesh: MeshId,
        name: &str,
        key: &PrivateKey,
        Socket { interface, port }: Socket,
    ) -> Applier {
        let options = self.options.of(mesh, name);
        let config = wireguard::Config {
            name: interface,
            private_key: key.clone(),
            listen_port: port,
            mtu: options.mtu.unwrap_or(MTU),
            addresses: vec![interface_address(mesh, self.identity.node_id())],
            backend: self.backend,
            control: None,
        };
        let (hooks, stream) = (options.hooks.clone(), self.stream.clone());
        let (node, failures) = (self.identity.node_id(), self.hook_failures.clone());
        let name = name.to_owned();
        let hooks = Hooks { config: hooks, mesh, node, name, stream, failures };
        Applier::start(self.netlink.clone(), config, Some(hooks))
    }

    /// What this node says about itself.
    fn profile(
        &self,
        port: u16,
        places: &[Place],
        alias: Option<String>,
        description: Option<String>,
    ) -> Profile {
        let profile = Profile {
            alias: alias.unwrap_or_else(|| self.default_alias.clone()),
            description: description.unwrap_or_default(),
            ..Profile::default()
        };
        self.reached_at(profile, places, port)
    }

    async fn wire(
        &self,
        mesh: MeshId,
        name: &str,
        key: PrivateKey,
        socket: Socket,
    ) -> Result<Wire, PlaneError> {
        let interface = socket.interface.clone();
        let applier = self.device(mesh, name, &key, socket);
        match applier::settled(applier.status()).await {
            Ok(port) => Ok(Wire { key, port, interface, applier }),
            Err(reason) => {
                applier.stop().await;
                Err(PlaneError::WireGuard { interface, reason })
            }
        }
    }

    /// Asks the bootstrap nodes, one after the other, to be admitted.
    async fn ask(
        &self,
        joining: &Joining,
        mut answers: mpsc::Receiver<Answer>,
    ) -> Result<State, PlaneError> {
        let mut unreachable = Vec::new();
        let mut failure = None;
        for (node, addrs) in by_node(joining.bootstrap()) {
            if let Err(error) = self.transport.connect(node, &addrs).await {
                unreachable.push(error);
                continue;
            }
            match self.ask_one(joining, node, &addrs, &mut answers).await {
                Ok(state) => return Ok(state),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or(PlaneError::Unreachable(unreachable)))
    }

    async fn ask_one(
        &self,
        joining: &Joining,
        node: NodeId,
        addrs: &[SocketAddr],
        answers: &mut mpsc::Receiver<Answer>,
    ) -> Result<State, PlaneError> {
        for _ in 0..ATTEMPTS {
            // If too much waits to be sent, the next attempt may do better.
            let sent = self.transport.send(node, addrs, joining.message());
            let until = Instant::now() + ANSWER;
            while let Ok(Some((from, bytes))) = timeout_at(until, answers.recv()).await {
                match joining.handle_message(from, &bytes, wall()) {
                    Ok(state) => return Ok(state),
                    // News of the mesh that comes before the answer.
                    Err(JoinError::NotAsked(_) | JoinError::Unexpected { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            tracing::debug!(node = %node.short(), ?sent, "no answer to the request to join");
        }
        Err(PlaneError::NoAnswer)
    }

    /// Writes the state to disk, or takes the interface back if there is none to write.
    async fn seat(&self, state: Result<State, PlaneError>, wire: Wire) -> Result<Seat, PlaneError> {
        let written = match state {
            Ok(state) => {
                let file = wire.file(state.encode());
                let written = self.files.clone().save_aside(state.mesh(), file).await;
                written.map(|()| state).map_err(PlaneError::from)
            }
            Err(error) => Err(error),
        };
        match written {
            Ok(state) => Ok(Seat { state, wire }),
            Err(error) => {
                wire.applier.stop().await;
                Err(error)
            }
        }
    }
}

impl Wire {
    /// What is kept on disk of the mesh, whose core's snapshot is `core`.
    pub(super) fn file(&self, core: Vec<u8>) -> MeshFile {
        let interface = self.interface.clone();
        MeshFile { key: self.key.clone(), port: self.port, interface, core }
    }
}

/// The places to ask, by the node that lives there, in the order of the invite.
fn by_node(places: &[Bootstrap]) -> Vec<(NodeId, Vec<SocketAddr>)> {
    let mut nodes: Vec<(NodeId, Vec<SocketAddr>)> = Vec::new();
    for Bootstrap { addr, node } in places {
        match nodes.iter_mut().find(|(known, _)| known == node) {
            Some((_, addrs)) => addrs.push(*addr),
            None => nodes.push((*node, vec![*addr])),
        }
    }
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_asked_once_at_all_its_addresses() {
        let place = |addr: &str, node| Bootstrap {
            addr: addr.parse().expect("an address"),
            node: NodeId([node; 32]),
        };
        let places =
            [place("192.0.2.1:1", 1), place("192.0.2.2:1", 2), place("[2001:db8::1]:1", 1)];
        let nodes = by_node(&places);
        assert_eq!(nodes.len(), 2);
        assert_eq!(nodes[0], (NodeId([1; 32]), vec![places[0].addr, places[2].addr]));
        assert_eq!(nodes[1], (NodeId([2; 32]), vec![places[1].addr]));
    }
}
