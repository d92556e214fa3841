//! Meshes as the API shows them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use selvedge_api::mesh::{Member, MemberState, Mesh, Role, Summary};
use selvedge_host::wireguard::PeerStatus;
use selvedge_model::NodeId;

use super::seat::Seated;

/// Who was heard within this time is there.
const FRESH: Duration = Duration::from_secs(60);

/// A WireGuard session that is older than this is renewed or dead (the protocol's
/// `Reject-After-Time`).
const SESSION: Duration = Duration::from_secs(180);

/// When each node was last heard.
pub(super) type Heard = BTreeMap<NodeId, Instant>;

pub(super) fn summary(seat: &Seated) -> Summary {
    Summary {
        id: seat.id(),
        name: seat.name().to_owned(),
        interface: seat.wire.interface.clone(),
        address: seat.core.address(),
        members: seat.core.members().count(),
    }
}

/// A mesh without what WireGuard knows; see [`complete`].
pub(super) fn mesh(seat: &Seated, heard: &Heard) -> Mesh {
    let desired = seat.core.desired_wireguard();
    let own = seat.core.node();
    let member = |member: selvedge_mesh::Member| {
        let spec = desired.get(&member.wg);
        let text = |text: String| (!text.is_empty()).then_some(text);
        Member {
            node: member.node,
            own: member.node == own,
            alias: text(member.profile.alias),
            description: text(member.profile.description),
            role: role(member.role),
            address: member.address,
            wg_key: member.wg,
            endpoints: member.profile.endpoints.iter().map(|endpoint| endpoint.addr).collect(),
            endpoint: spec.and_then(|spec| spec.endpoint),
            state: if member.node == own { MemberState::Alive } else { state(member.node, heard) },
            allowed_ips: spec.map(|spec| spec.allowed.clone()).unwrap_or_default(),
            keepalive_s: spec.and_then(|spec| u16::try_from(spec.keepalive?.as_secs()).ok()),
            handshake_age_s: None,
            rx_bytes: 0,
            tx_bytes: 0,
        }
    };
    Mesh {
        id: seat.id(),
        name: seat.name().to_owned(),
        node: own,
        interface: seat.wire.interface.clone(),
        address: seat.core.address(),
        prefix: seat.core.prefix(),
        listen_port: seat.wire.port,
        members: seat.core.members().map(member).collect(),
    }
}

/// Adds what WireGuard knows of the members.
pub(super) fn complete(mesh: &mut Mesh, peers: &[PeerStatus]) {
    for member in &mut mesh.members {
        let Some(peer) = peers.iter().find(|peer| peer.key == member.wg_key) else { continue };
        member.endpoint = peer.endpoint.or(member.endpoint);
        member.handshake_age_s = peer.last_handshake.map(|age| age.as_secs());
        (member.rx_bytes, member.tx_bytes) = (peer.rx, peer.tx);
        if peer.last_handshake.is_some_and(|age| age < SESSION) {
            member.state = MemberState::Alive;
        }
    }
}

const fn role(role: selvedge_mesh::Role) -> Role {
    match role {
        selvedge_mesh::Role::Peer => Role::Peer,
        selvedge_mesh::Role::Client => Role::Client,
    }
}

fn state(node: NodeId, heard: &Heard) -> MemberState {
    match heard.get(&node).map(Instant::elapsed) {
        Some(age) if age < FRESH => MemberState::Alive,
        Some(_) => MemberState::Suspect,
        None => MemberState::Unknown,
    }
}
