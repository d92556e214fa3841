//! What is wrong with the meshes of this node, and what to do about it.
//!
//! [`examine`] asks the host and the members, and changes nothing; [`judge`] says what the answers
//! mean.

mod judge;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use selvedge_api::gateway::Finding;
use selvedge_api::mesh::{Dns, Member, Mesh};
use selvedge_host::clock;
use selvedge_host::firewall::Ruleset;
use selvedge_host::netlink::Netlink;
use selvedge_host::ping::{Probe, ping};
use selvedge_host::sysctl::{self, Family};
use selvedge_host::wireguard::DETOUR;
use selvedge_model::{MeshId, NodeId};

use super::seat::Seated;
use super::setup::wall;
use super::topology::Ground;

/// So many members of a mesh are asked whether WireGuard reaches them.
const ASKED: usize = 64;
/// How long they may take, the handshake included.
const PATIENCE: Duration = Duration::from_secs(4);
/// What the smallest packet has that is sent.
const SMALL: u16 = 64;

/// What is known of the agent beside its meshes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// The UDP port on which agents talk to each other; 0 if any was to be taken.
    pub(super) port: u16,
    /// The kernel is left alone.
    pub(super) dry: bool,
}

/// What the plane knows beside what it shows.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) meshes: BTreeMap<MeshId, Inside>,
    /// What this host is to do for all meshes.
    pub(super) ground: Ground,
}

/// The same of one mesh.
#[derive(Debug, Default)]
pub(super) struct Inside {
    control: BTreeMap<NodeId, Control>,
    /// Packets of others are to pass this host.
    forwards: bool,
}

/// What the agents know of a member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Control {
    /// The members agree that it is down.
    down: bool,
    /// The IPv4 address that it claims; another may own it.
    claim: Option<Ipv4Addr>,
}

/// What is known of a mesh.
pub(super) fn inside(seat: &Seated) -> Inside {
    let of_member = |member: selvedge_mesh::Member| {
        let down = seat.core.is_down(member.node);
        (member.node, Control { down, claim: member.profile.overlay_ipv4 })
    };
    let control = seat.core.members().map(of_member).collect();
    Inside { control, forwards: seat.layout.forwards }
}

/// What there is to judge.
struct Facts {
    place: Place,
    /// Seconds since 1970, by this host's clock.
    now: u64,
    meshes: Vec<Examined>,
    /// What this host is to do for all of them.
    ground: Ground,
    dns: Dns,
    /// `None` if the agent leaves it alone.
    host: Option<Host>,
}

/// A mesh and its members.
struct Examined {
    mesh: Mesh,
    inside: Inside,
    link: Option<Link>,
    echoes: BTreeMap<NodeId, Echo>,
}

#[derive(Clone, Copy)]
struct Link {
    up: bool,
    mtu: u32,
}

/// What a member answered to through WireGuard.
#[derive(Clone, Copy, Default)]
struct Echo {
    small: Option<Duration>,
    /// To a packet as large as the interface's MTU.
    full: Option<Duration>,
}

/// What the host's kernel says.
struct Host {
    synchronized: Option<bool>,
    /// By family: whether packets are forwarded.
    forwarding: [(Family, Result<bool, String>); 2],
    /// The interfaces that take packets only from where they would answer to.
    strict: BTreeSet<String>,
    /// Whether the rules are there by which routes by exits are found.
    detour: Result<bool, String>,
    firewall: Result<Ruleset, String>,
}

/// Looks at everything once.
pub(super) async fn examine(
    place: Place,
    meshes: Vec<Mesh>,
    mut known: Known,
    dns: Dns,
) -> Vec<Finding> {
    let examined = meshes.into_iter().map(|mesh| Examined {
        inside: known.meshes.remove(&mesh.id).unwrap_or_default(),
        mesh,
        link: None,
        echoes: BTreeMap::new(),
    });
    let mut meshes: Vec<Examined> = examined.collect();
    let mut unseen = Vec::new();
    if !place.dry {
        unseen.extend(look_at_links(&mut meshes).await);
        unseen.extend(ask(&mut meshes).await);
    }
    let host = if place.dry { None } else { Some(host(&meshes).await) };
    let facts = Facts { place, now: wall().0, meshes, ground: known.ground, dns, host };
    judge::judge(&facts, unseen)
}

/// Fills in the interfaces. What cannot be read is a finding.
async fn look_at_links(meshes: &mut [Examined]) -> Option<Finding> {
    let links = match Netlink::new() {
        Ok(netlink) => netlink.links().await,
        Err(error) => Err(error),
    };
    let links = match links {
        Ok(links) => links,
        Err(error) => return Some(Finding::warning("interfaces", error.to_string())),
    };
    for examined in meshes {
        let link = links.iter().find(|link| link.name == examined.mesh.interface);
        examined.link = link.map(|link| Link { up: link.up, mtu: link.mtu });
    }
    None
}

/// Fills in whom WireGuard reaches.
async fn ask(meshes: &mut [Examined]) -> Option<Finding> {
    let mut asked = Vec::new();
    let mut probes = Vec::new();
    for (number, examined) in meshes.iter().enumerate() {
        let Some(link) = examined.link.filter(|link| link.up) else { continue };
        let full = u16::try_from(link.mtu).unwrap_or(u16::MAX);
        for member in sample(&examined.mesh) {
            asked.push((number, member.node));
            probes.extend([SMALL, full].map(|size| Probe { to: member.address, size }));
        }
    }
    let answers = match ping(&probes, PATIENCE).await {
        Ok(answers) => answers,
        Err(error) => {
            let text = format!("nobody can be asked whether WireGuard reaches it: {error}");
            return Some(Finding::warning("ping", text));
        }
    };
    for ((number, node), answer) in asked.into_iter().zip(answers.chunks(2)) {
        let [small, full] = [0, 1].map(|at| answer.get(at).copied().flatten());
        meshes[number].echoes.insert(node, Echo { small, full });
    }
    None
}

/// The members that are asked, those with whom this node has no session first.
fn sample(mesh: &Mesh) -> Vec<&Member> {
    let mut others: Vec<&Member> = mesh.members.iter().filter(|member| !member.own).collect();
    others.sort_by_key(|member| (member.via.is_some(), member.handshake_age_s.is_some()));
    others.truncate(ASKED);
    others
}

async fn host(meshes: &[Examined]) -> Host {
    let forwarding = [Family::V4, Family::V6].map(|family| {
        let on = sysctl::get(family, "all", "forwarding").map(|value| value != 0);
        (family, on.map_err(|error| error.to_string()))
    });
    let names = meshes.iter().map(|examined| &examined.mesh.interface);
    let strict = names.filter(|name| sysctl::effective(name, "rp_filter").is_ok_and(|it| it == 1));
    Host {
        synchronized: clock::is_synchronized(),
        forwarding,
        strict: strict.cloned().collect(),
        detour: detour().await.map_err(|error| error.to_string()),
        firewall: Ruleset::read().await.map_err(|error| error.to_string()),
    }
}

async fn detour() -> Result<bool, selvedge_host::netlink::Error> {
    Netlink::new()?.has_detour(DETOUR).await
}
