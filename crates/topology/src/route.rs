//! Which way leads to a prefix, and what to announce of it in the other meshes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use selvedge_mesh::address::mesh_prefix;
use selvedge_mesh::{Bridged, Profile};
use selvedge_model::{MeshId, NodeId, Prefix};

use crate::relay::Hop;
use crate::rendezvous;
use crate::view::{ExitUse, Member, Seat, View, covers, everywhere};

/// A way to a prefix, by a member of one of the own meshes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    pub(crate) mesh: MeshId,
    pub(crate) exit: NodeId,
    pub(crate) hop: Hop,
    drained: bool,
    /// The meshes beyond this one, the nearest first.
    path: Vec<MeshId>,
}

/// The ways to all prefixes outside the own meshes, those of length zero aside: the nearest
/// ones.
pub(crate) fn ways(seats: &[Seat<'_>]) -> BTreeMap<Prefix, Way> {
    let mut offers: BTreeMap<Prefix, Vec<Way>> = BTreeMap::new();
    for seat in seats {
        for (prefix, way) in offers_of(seat, seats) {
            offers.entry(prefix).or_default().push(way);
        }
    }
    let own = seats.first().map(|seat| seat.me.node);
    let chosen = |(prefix, ways)| Some((prefix, nearest(own?, prefix, ways)?));
    offers.into_iter().filter_map(chosen).collect()
}

/// The way to everywhere in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) mesh: MeshId,
    /// `None` if the exit that was asked for does not carry the family, or does not live.
    pub(crate) hop: Option<Hop>,
}

/// The exits that the own node uses, by the prefixes of length zero: of several meshes that offer
/// one, by the first in which a certain one is asked for, else by the first. None in a family in
/// which it is an exit itself: what others send by it would run on into an exit that refuses it.
pub(crate) fn exits(seats: &[Seat<'_>]) -> BTreeMap<Prefix, Exit> {
    let mut views: Vec<&View> = seats.iter().map(|seat| seat.view).collect();
    views.sort_by_key(|view| !matches!(view.options.exit, ExitUse::Only(_)));
    let first = |prefix| views.iter().find_map(|view| exit(view, prefix));
    let own: BTreeSet<Prefix> = seats.iter().flat_map(|seat| seat.me.exits()).collect();
    let used = everywhere().into_iter().filter(|prefix| !own.contains(prefix));
    used.filter_map(|prefix| Some((prefix, first(prefix)?))).collect()
}

fn exit(view: &View, prefix: Prefix) -> Option<Exit> {
    let exits = view.others().filter(|it| view.leaves_by(it.node) && is_exit(it, prefix));
    let nearest = nearest(view.own, prefix, exits.map(|it| way(view, it, 1)).collect());
    let asked_for = matches!(view.options.exit, ExitUse::Only(_));
    let exit = Exit { mesh: view.mesh, hop: nearest.map(|way| way.hop) };
    (asked_for || exit.hop.is_some()).then_some(exit)
}

/// What the own node says in one mesh of what it reaches by its others.
#[derive(Debug, Default)]
pub(crate) struct Announcements {
    /// The nearest first.
    pub(crate) list: Vec<Bridged>,
    /// How much there was no room for.
    pub(crate) left_out: usize,
    /// What its certificate does not allow.
    pub(crate) unpermitted: BTreeSet<Prefix>,
}

/// The announcements in the mesh of `seat`.
pub(crate) fn announcements(
    seat: &Seat<'_>,
    seats: &[Seat<'_>],
    ways: &BTreeMap<Prefix, Way>,
) -> Announcements {
    let (permitted, refused) = beyond(seat, seats, ways)
        .into_iter()
        .partition::<Vec<_>, _>(|bridged| seat.me.may_announce(bridged.prefix));
    let mut list = permitted;
    list.sort_by_key(|bridged| (bridged.path.len(), bridged.prefix));
    let left_out = list.len().saturating_sub(Profile::MAX_BRIDGED);
    list.truncate(Profile::MAX_BRIDGED);
    let unpermitted = refused.into_iter().map(|bridged| bridged.prefix).collect();
    Announcements { list, left_out, unpermitted }
}

/// What the own node connects the mesh of `seat` with.
fn beyond(seat: &Seat<'_>, seats: &[Seat<'_>], ways: &BTreeMap<Prefix, Way>) -> Vec<Bridged> {
    if !seat.view.options.bridge {
        return Vec::new();
    }
    let others = seats.iter().map(|other| other.view).filter(|other| other.mesh != seat.mesh());
    let bridges: Vec<&View> = others.filter(|other| other.options.bridge).collect();
    let meshes = bridges.iter().flat_map(|other| {
        other.overlays().map(|prefix| Bridged { prefix, path: vec![other.mesh] })
    });
    let learned = ways.iter().filter(|(_, way)| bridges.iter().any(|it| it.mesh == way.mesh));
    let learned = learned.map(|(prefix, way)| Bridged {
        prefix: *prefix,
        path: [&[way.mesh], way.path.as_slice()].concat(),
    });
    meshes.chain(learned).filter(|bridged| leads_away(bridged, seat.mesh())).collect()
}

/// How far a member that announces `bridged` is from its destination, plus one.
pub(crate) fn distance(bridged: &Bridged) -> u8 {
    // In its last mesh, the prefix of a mesh is at hand; a network is behind a member.
    let behind = usize::from(!is_mesh(bridged));
    u8::try_from(bridged.path.len() + behind).unwrap_or(u8::MAX)
}

/// Whether the rules let `member` announce this in `mesh`. It needs a certificate that says so,
/// also for the prefix of a mesh: who says that it bridges to a mesh gets the packets to it.
pub(crate) fn is_acceptable(member: &Member, bridged: &Bridged, mesh: MeshId) -> bool {
    leads_away(bridged, mesh) && member.may_announce(bridged.prefix)
}

fn leads_away(bridged: &Bridged, mesh: MeshId) -> bool {
    let path = &bridged.path;
    (1..=Bridged::MAX_PATH).contains(&path.len())
        && bridged.prefix.len() > 0
        && !path.contains(&mesh)
}

fn is_mesh(bridged: &Bridged) -> bool {
    bridged.path.last().is_some_and(|mesh| mesh_prefix(*mesh) == bridged.prefix)
}

fn offers_of<'a>(
    seat: &'a Seat<'a>,
    seats: &'a [Seat<'a>],
) -> impl Iterator<Item = (Prefix, Way)> + 'a {
    let view = seat.view;
    let meshes: BTreeSet<MeshId> = seats.iter().map(Seat::mesh).collect();
    let offers = view.others().filter(|member| member.live).flat_map(move |member| {
        let networks = member.networks.iter().filter(|prefix| prefix.len() > 0);
        let networks = networks.map(|prefix| (prefix.network(), way(view, member, 1)));
        // A way through an own mesh would lead back to where this node stands itself.
        let foreign = |bridged: &&Bridged| {
            is_acceptable(member, bridged, view.mesh)
                && !bridged.path.iter().any(|mesh| meshes.contains(mesh))
        };
        let bridged = member.bridged.iter().filter(foreign).cloned().map(|bridged| {
            let way = way(view, member, distance(&bridged));
            (bridged.prefix.network(), Way { path: bridged.path, ..way })
        });
        networks.chain(bridged.collect::<Vec<_>>())
    });
    offers.filter(|(prefix, _)| view.accepts(*prefix) && is_usable(seats, *prefix))
}

fn way(view: &View, member: &Member, distance: u8) -> Way {
    let hop = Hop { via: member.address, distance };
    let (mesh, exit, drained) = (view.mesh, member.node, member.drained);
    Way { mesh, exit, hop, drained, path: Vec::new() }
}

/// Whether a prefix may be routed: it can be, and it takes nothing away from the node's own
/// links, networks and meshes.
fn is_usable(seats: &[Seat<'_>], prefix: Prefix) -> bool {
    let ours = seats.iter().any(|Seat { view, me, .. }| {
        let mut inside = view.overlays();
        inside.any(|own| covers(own, prefix))
            || me.networks.iter().any(|network| network.network() == prefix)
    });
    !ours && is_routable(prefix.addr())
}

fn is_routable(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(ip) => !(ip.is_loopback() || ip.is_link_local() || ip.octets()[0] >= 224),
        IpAddr::V6(ip) => !(ip.is_loopback() || ip.is_unicast_link_local() || ip.is_multicast()),
    }
}

/// The nearest way, of equal ones one by a member that is not drained, of these one by
/// rendezvous hashing.
fn nearest(own: NodeId, prefix: Prefix, mut ways: Vec<Way>) -> Option<Way> {
    let rank = |way: &Way| (way.hop.distance, way.drained);
    let least = ways.iter().map(rank).min()?;
    ways.retain(|way| rank(way) == least);
    // A host leaves by the same site in both families, if that has both.
    let prefix = if prefix.len() == 0 { String::new() } else { prefix.to_string() };
    let name = |way: &Way| [way.mesh.as_bytes().as_slice(), way.exit.as_bytes()].concat();
    rendezvous::choose(&[own.as_bytes(), prefix.as_bytes()], ways, name)
}

fn is_exit(member: &Member, prefix: Prefix) -> bool {
    member.live && member.networks.contains(&prefix)
}
