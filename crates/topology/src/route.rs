//! Which way leads to a prefix, and what to announce of it in the other meshes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use selvedge_mesh::address::mesh_prefix;
use selvedge_mesh::{Bridged, Profile};
use selvedge_model::{MeshId, NodeId, Prefix};

use crate::relay::Hop;
use crate::rendezvous;
use crate::view::{ExitUse, Member, View, covers};

/// A way to a prefix, by a member of one of the own meshes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    pub(crate) mesh: MeshId,
    pub(crate) exit: NodeId,
    pub(crate) hop: Hop,
    /// The meshes beyond this one, the nearest first.
    path: Vec<MeshId>,
}

/// The ways to all prefixes outside the own meshes, those of length zero aside: the nearest
/// exit, of equal ones one by rendezvous hashing.
pub(crate) fn ways(views: &[View]) -> BTreeMap<Prefix, Way> {
    let mut offers: BTreeMap<Prefix, Vec<Way>> = BTreeMap::new();
    for view in views {
        for (prefix, way) in offers_of(view, views) {
            offers.entry(prefix).or_default().push(way);
        }
    }
    let own = views.first().map(|view| view.own);
    let chosen = |(prefix, ways)| Some((prefix, nearest(own?, prefix, ways)?));
    offers.into_iter().filter_map(chosen).collect()
}

/// The exit that the own node uses in a mesh, by family: the prefix of length zero and the way.
/// With [`ExitUse::Only`] a family that the exit does not carry has no way but is listed.
pub(crate) fn exits(view: &View) -> BTreeMap<Prefix, Option<Way>> {
    let lone = |prefix| {
        let ways =
            view.others().filter(|member| is_exit(member, prefix)).map(|it| way(view, it, 1));
        match view.options.exit {
            ExitUse::None => None,
            ExitUse::Any => nearest(view.own, prefix, ways.collect()).map(Some),
            ExitUse::Only(node) => Some(ways.into_iter().find(|way| way.exit == node)),
        }
    };
    everywhere().into_iter().filter_map(|prefix| Some((prefix, lone(prefix)?))).collect()
}

/// What the own node announces in the mesh of `view` of what it reaches by its other meshes, the
/// nearest first, and how much there was no room for.
pub(crate) fn announcements(
    view: &View,
    views: &[View],
    ways: &BTreeMap<Prefix, Way>,
) -> (Vec<Bridged>, usize) {
    let Some(me) = view.me().filter(|_| view.options.bridge) else { return (Vec::new(), 0) };
    let bridges: Vec<&View> =
        views.iter().filter(|other| other.options.bridge && other.mesh != view.mesh).collect();
    let meshes = bridges.iter().flat_map(|other| {
        let prefixes = [Some(other.prefix()), other.options.ipv4];
        prefixes.into_iter().flatten().map(|prefix| Bridged { prefix, path: vec![other.mesh] })
    });
    let learned = ways.iter().filter(|(_, way)| bridges.iter().any(|it| it.mesh == way.mesh));
    let learned = learned.map(|(prefix, way)| Bridged {
        prefix: *prefix,
        path: [&[way.mesh], way.path.as_slice()].concat(),
    });
    let mut list: Vec<Bridged> =
        meshes.chain(learned).filter(|bridged| is_acceptable(me, bridged, view.mesh)).collect();
    list.sort_by_key(|bridged| (bridged.path.len(), bridged.prefix));
    let surplus = list.len().saturating_sub(Profile::MAX_BRIDGED);
    list.truncate(Profile::MAX_BRIDGED);
    (list, surplus)
}

/// How far a member that announces `bridged` is from its destination, plus one.
pub(crate) fn distance(bridged: &Bridged) -> u8 {
    // In its last mesh, the prefix of a mesh is at hand; a network is behind a member.
    let behind = usize::from(!is_mesh(bridged));
    u8::try_from(bridged.path.len() + behind).unwrap_or(u8::MAX)
}

/// Whether the rules let `member` announce this in `mesh`. The prefix of a mesh follows from its
/// id, so that nobody can pass off another network as one; anything else needs a certificate.
pub(crate) fn is_acceptable(member: &Member, bridged: &Bridged, mesh: MeshId) -> bool {
    let path = &bridged.path;
    (1..=Bridged::MAX_PATH).contains(&path.len())
        && bridged.prefix.len() > 0
        && !path.contains(&mesh)
        && (is_mesh(bridged) || member.may_announce(bridged.prefix))
}

fn is_mesh(bridged: &Bridged) -> bool {
    bridged.path.last().is_some_and(|mesh| mesh_prefix(*mesh) == bridged.prefix)
}

fn offers_of<'a>(view: &'a View, views: &'a [View]) -> impl Iterator<Item = (Prefix, Way)> + 'a {
    let meshes: BTreeSet<MeshId> = views.iter().map(|view| view.mesh).collect();
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
    offers.filter(|(prefix, _)| is_usable(view, views, *prefix))
}

fn way(view: &View, member: &Member, distance: u8) -> Way {
    let hop = Hop { via: member.address, distance };
    Way { mesh: view.mesh, exit: member.node, hop, path: Vec::new() }
}

/// Whether a prefix may be routed: it can be, the node wants it, and it takes nothing away from
/// the node's own networks and meshes.
fn is_usable(view: &View, views: &[View], prefix: Prefix) -> bool {
    let ours = views.iter().any(|view| {
        let overlays = [Some(view.prefix()), view.options.ipv4];
        let networks = view.me().into_iter().flat_map(|me| &me.networks);
        overlays.into_iter().flatten().any(|overlay| covers(overlay, prefix))
            || networks.into_iter().any(|network| network.network() == prefix)
    });
    let wanted = view.options.accept.iter().any(|accept| covers(*accept, prefix));
    !ours && wanted && is_routable(prefix.addr())
}

fn is_routable(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(ip) => !(ip.is_loopback() || ip.is_link_local() || ip.octets()[0] >= 224),
        IpAddr::V6(ip) => !(ip.is_loopback() || ip.is_unicast_link_local() || ip.is_multicast()),
    }
}

fn nearest(own: NodeId, prefix: Prefix, mut ways: Vec<Way>) -> Option<Way> {
    let least = ways.iter().map(|way| way.hop.distance).min()?;
    ways.retain(|way| way.hop.distance == least);
    let prefix = prefix.to_string();
    let name = |way: &Way| [way.mesh.as_bytes().as_slice(), way.exit.as_bytes()].concat();
    rendezvous::choose(&[own.as_bytes(), prefix.as_bytes()], ways, name)
}

fn is_exit(member: &Member, prefix: Prefix) -> bool {
    member.live && member.networks.contains(&prefix)
}

/// The prefix of length zero of each family.
fn everywhere() -> [Prefix; 2] {
    let all = |addr: IpAddr| Prefix::new(addr, 0).expect("every family has the length zero");
    [all(IpAddr::from([0; 4])), all(Ipv6Addr::UNSPECIFIED.into())]
}
