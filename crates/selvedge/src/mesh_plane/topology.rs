//! What this host is to do for all meshes of its node together: the plan of `selvedge_topology`,
//! made from what the members say and what the operator wants, in the words of the host.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use selvedge_api::mesh::Exit as ExitState;
use selvedge_host::masquerade::Masquerade;
use selvedge_host::netlink::{Address, Link, Netlink};
use selvedge_host::wireguard::PeerSpec;
use selvedge_mesh::Bridged;
use selvedge_model::{MeshId, NodeId, Prefix, WgKey};
use selvedge_topology::direct::Wish;
use selvedge_topology::{
    Claim, ExitUse, Member, MeshPlan, Options, PathMtu, Underlay, View, claim, everywhere,
    overlay_mtu, owners, plan,
};

use super::applier::{Desired, Peers};
use super::endpoints::source_towards;
use super::exits;
use super::view;
use crate::config::{Exit, MeshOptions};

/// A mesh as the plane knows it.
#[derive(Clone, Debug)]
pub(super) struct Site {
    pub(super) mesh: MeshId,
    pub(super) own: NodeId,
    pub(super) interface: String,
    /// All members, and whether they answer.
    pub(super) members: Vec<(selvedge_mesh::Member, bool)>,
    pub(super) options: MeshOptions,
    /// How often a member's endpoint was tried in vain.
    pub(super) attempts: Vec<(NodeId, usize)>,
    /// The clients that packets go to directly, or that this is tried with.
    pub(super) direct: BTreeMap<NodeId, Wish>,
    /// The node was drained so lately that its clients may not have heard of it.
    pub(super) still_serving: bool,
}

/// What is around this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Links {
    /// The MTU in bytes of the link that an address of its own is on.
    mtus: BTreeMap<IpAddr, u16>,
}

impl Links {
    /// Looks at the host. What cannot be seen is taken for not there.
    pub(super) async fn look(netlink: Option<&Netlink>) -> Self {
        let Some(netlink) = netlink else { return Self::default() };
        match (netlink.links().await, netlink.addresses().await) {
            (Ok(links), Ok(addresses)) => Self::of(&links, &addresses),
            (Err(error), _) | (_, Err(error)) => {
                tracing::debug!(%error, "the links of this host cannot be seen");
                Self::default()
            }
        }
    }

    fn of(links: &[Link], addresses: &[Address]) -> Self {
        let mtus: BTreeMap<u32, u32> = links.iter().map(|link| (link.index, link.mtu)).collect();
        let of = |address: &Address| {
            let mtu = *mtus.get(&address.index)?;
            Some((address.prefix.addr(), u16::try_from(mtu).unwrap_or(u16::MAX)))
        };
        Self { mtus: addresses.iter().filter_map(of).collect() }
    }

    /// The MTU of an interface whose peers are reached there: whatever fits through the narrowest
    /// link, also over IPv6, which the next partner may have. `None` if no link is known.
    fn mtu(&self, peers: &Peers) -> Option<u16> {
        let places: BTreeSet<SocketAddr> =
            peers.values().filter_map(|peer| peer.endpoint).collect();
        let places = places.into_iter().take(MAX_PATHS);
        let link = |place| self.mtus.get(&source_towards(place)?).copied();
        let narrowest = places.filter_map(link).min()?;
        let path = PathMtu { underlay: Underlay::V6, bytes: narrowest };
        // A link of this host with jumbo frames says nothing about the links behind it.
        Some(overlay_mtu([path]).bytes.min(overlay_mtu([]).bytes))
    }
}

/// So many ways are looked at for the MTU at most.
const MAX_PATHS: usize = 256;

/// What is to be done.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcome {
    /// For each mesh.
    pub(super) layouts: BTreeMap<MeshId, Layout>,
    /// For all of them.
    pub(super) ground: Ground,
}

/// What is to be done for one mesh.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Layout {
    /// The interface and what is behind it.
    pub(super) desired: Desired,
    /// What the node is to say that it reaches by its other meshes.
    pub(super) announce: Vec<Bridged>,
    /// How much of that a record has no room for.
    pub(super) left_out: usize,
    /// What its certificate keeps it from saying.
    pub(super) unpermitted: BTreeSet<Prefix>,
    /// The IPv4 address that it is to claim.
    pub(super) ipv4: Option<Ipv4Addr>,
    /// Where packets beyond the mesh go, and the member by which.
    pub(super) used: BTreeMap<Prefix, NodeId>,
    /// The exits that are asked for.
    pub(super) exits: Vec<ExitState>,
    /// Who has which IPv4 address.
    pub(super) ipv4s: BTreeMap<NodeId, Ipv4Addr>,
    /// Packets of others are to pass this host.
    pub(super) forwards: bool,
    /// The exit that is wanted is no member.
    pub(super) lost_exit: Option<String>,
}

/// What this host is to do for all meshes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ground {
    /// There are routes in tables of their own, which are to be looked into.
    pub(super) detour: bool,
    /// What one exit alone may carry is never sent past it, also while the agent is stopped.
    pub(super) closed: bool,
    /// Some of them are for IPv4.
    pub(super) detour_ipv4: bool,
    /// Packets of others pass.
    pub(super) forward: bool,
    /// What bears the address of this host when it leaves.
    pub(super) masquerade: Masquerade,
}

/// A plan, and what it was made of.
#[derive(Debug)]
pub(super) struct Planned {
    views: Vec<View>,
    links: Arc<Links>,
    pub(super) outcome: Outcome,
}

impl Planned {
    pub(super) fn links(&self) -> Arc<Links> {
        self.links.clone()
    }
}

/// Plans for all meshes of the node. If nothing is different from what `last` was made of, that is
/// the plan: most of what members say anew, and that they are still there, changes no route.
pub(super) fn decide(
    sites: &[Site],
    links: Arc<Links>,
    last: Option<Arc<Planned>>,
) -> Arc<Planned> {
    let views: Vec<View> = sites.iter().map(view_of).collect();
    match last.filter(|last| last.links == links && last.views == views) {
        Some(last) => last,
        None => {
            let outcome = outcome(sites, &views, &links);
            Arc::new(Planned { views, links, outcome })
        }
    }
}

fn outcome(sites: &[Site], views: &[View], links: &Links) -> Outcome {
    let mut planned = plan(views).meshes;
    let speaks_ipv4 = views.iter().any(|view| view.me().is_some_and(|me| me.ipv4.is_some()));
    let mut outcome = Outcome::default();
    for (site, view) in sites.iter().zip(views) {
        let mut layout = match planned.remove(&site.mesh) {
            Some(plan) => {
                outcome.ground.add(site, &plan);
                Layout::of(site, view, plan, speaks_ipv4)
            }
            None => Layout::of_nobody(site),
        };
        exits::note_own(&mut layout.exits, views);
        layout.desired.mtu = site.options.mtu.or_else(|| links.mtu(&layout.desired.peers));
        outcome.ground.closed |= matches!(site.options.exit, Exit::Member(_));
        outcome.ground.detour |= outcome.ground.closed || !layout.desired.routes.is_empty();
        outcome.ground.detour_ipv4 |= layout.desired.routes.iter().any(|it| it.addr().is_ipv4());
        outcome.layouts.insert(site.mesh, layout);
    }
    outcome.ground.masquerade.meshes = match outcome.ground.masquerade.sources.is_empty() {
        true => BTreeSet::new(),
        false => sites.iter().map(|site| site.interface.clone()).collect(),
    };
    outcome
}

impl Ground {
    fn add(&mut self, site: &Site, plan: &MeshPlan) {
        self.forward |= plan.forwards && site.options.forward;
        if site.options.masquerade {
            let own = [Some(plan.relays.overlay), site.options.ipv4];
            self.masquerade.sources.extend(own.into_iter().flatten());
            self.masquerade.sources.extend(&plan.routes);
        }
    }
}

impl Layout {
    /// Of a mesh that the node is out of. What one exit alone may carry is not sent past it.
    fn of_nobody(site: &Site) -> Self {
        let routes = match site.options.exit {
            Exit::Member(_) => everywhere().into(),
            Exit::None | Exit::Any => BTreeSet::new(),
        };
        let desired = Desired { routes, ..Desired::default() };
        Self { desired, ..Self::default() }
    }

    fn of(site: &Site, view: &View, plan: MeshPlan, speaks_ipv4: bool) -> Self {
        let me = view.me();
        let ipv4 = me.and_then(|me| me.ipv4);
        // What one exit alone may carry is never sent past it.
        let closed = matches!(view.options.exit, ExitUse::Only(_));
        // Without an address of its own this host has nothing to send IPv4 from, but may relay.
        let speaks_ipv4 = ipv4.is_some() || (site.options.bridge && speaks_ipv4);
        let usable = |prefix: &&Prefix| speaks_ipv4 || prefix.addr().is_ipv6();
        let defaults = plan.defaults.iter().filter(|it| closed || usable(it));
        let routes = plan.routes.iter().filter(usable).chain(defaults).copied().collect();
        let own = me.and_then(|me| Prefix::new(me.address.into(), 64));
        let within = |address: Ipv4Addr| Prefix::new(address.into(), site.options.ipv4?.len());
        let addresses = [own, ipv4.and_then(within)];
        let used = used(view, &plan);
        let ipv4s = view.members.iter().filter_map(|member| Some((member.node, member.ipv4?)));
        Self {
            exits: exits::exits(view, &used, speaks_ipv4),
            used,
            ipv4s: ipv4s.collect(),
            forwards: plan.forwards,
            announce: plan.announce,
            left_out: plan.left_out,
            unpermitted: plan.unpermitted,
            ipv4,
            lost_exit: lost_exit(site, view),
            desired: Desired {
                peers: peers(plan.peers),
                relays: Some(plan.relays),
                routes,
                addresses: addresses.into_iter().flatten().collect(),
                mtu: None,
            },
        }
    }
}

fn view_of(site: &Site) -> View {
    let MeshOptions { bridge, accept, ipv4, keepalive, .. } = site.options.clone();
    let exit = match &site.options.exit {
        Exit::None => ExitUse::None,
        Exit::Any => ExitUse::Any,
        // Nobody has this id: packets to elsewhere are dropped rather than sent past the exit.
        Exit::Member(name) => ExitUse::Only(member_called(site, name).unwrap_or(NOBODY)),
    };
    let options = Options {
        bridge,
        accept,
        exit,
        ipv4,
        client_keepalive: keepalive,
        attempts: site.attempts.clone(),
        direct: site.direct.clone(),
        still_serving: site.still_serving,
        ..Options::default()
    };
    let addresses = addresses(site);
    let member = |(member, live): &(selvedge_mesh::Member, bool)| Member {
        ipv4: addresses.get(&member.node).copied(),
        ..Member::new(member, *live || member.node == site.own)
    };
    let members = site.members.iter().map(member).collect();
    View { mesh: site.mesh, own: site.own, members, options }
}

const NOBODY: NodeId = NodeId([0; 32]);

/// Who has which IPv4 address in the mesh, the own node as it is to claim.
fn addresses(site: &Site) -> BTreeMap<NodeId, Ipv4Addr> {
    let Some(prefix) = site.options.ipv4 else { return BTreeMap::new() };
    let of = |(member, _): &(selvedge_mesh::Member, bool)| Claim {
        node: member.node,
        rank: member.serial,
        address: member.profile.overlay_ipv4,
    };
    let mut claims: Vec<Claim> = site.members.iter().map(of).collect();
    let own = claim(site.mesh, prefix, site.own, &claims);
    for claim in claims.iter_mut().filter(|claim| claim.node == site.own) {
        claim.address = own;
    }
    owners(site.mesh, prefix, &claims).into_iter().map(|(address, node)| (node, address)).collect()
}

/// The member that an operator means: by its id, or by its name in the mesh.
fn member_called(site: &Site, name: &str) -> Option<NodeId> {
    let members = || site.members.iter().map(|(member, _)| member);
    if let Ok(node) = name.parse::<NodeId>() {
        return members().map(|member| member.node).find(|it| *it == node);
    }
    let claims: Vec<_> = members().map(view::claim).collect();
    let named = selvedge_dns::names::names(&claims);
    named.into_iter().find(|(_, named)| named.name == name).map(|(node, _)| node)
}

fn lost_exit(site: &Site, view: &View) -> Option<String> {
    match &site.options.exit {
        Exit::Member(name) if view.options.exit == ExitUse::Only(NOBODY) => Some(name.clone()),
        Exit::None | Exit::Any | Exit::Member(_) => None,
    }
}

fn used(view: &View, plan: &MeshPlan) -> BTreeMap<Prefix, NodeId> {
    let nodes: BTreeMap<_, _> =
        view.members.iter().map(|member| (member.address, member.node)).collect();
    // Those at no distance are the members' own addresses.
    let beyond = plan.relays.hops.iter().filter(|(_, hop)| hop.distance > 0);
    beyond.filter_map(|(prefix, hop)| Some((*prefix, *nodes.get(&hop.via)?))).collect()
}

fn peers(planned: BTreeMap<WgKey, selvedge_topology::PeerSpec>) -> Peers {
    let spec = |spec: selvedge_topology::PeerSpec| PeerSpec {
        endpoint: spec.endpoint,
        allowed: spec.allowed,
        keepalive: spec.keepalive.map(|every| u16::try_from(every.as_secs()).unwrap_or(u16::MAX)),
    };
    planned.into_iter().map(|(key, wish)| (key, spec(wish))).collect()
}

#[cfg(test)]
mod tests {
    use selvedge_mesh::{Profile, Role, UnixTime, address};

    use super::*;

    const MESH: MeshId = MeshId([7; 20]);

    /// Who was admitted as number `serial`.
    fn member(serial: u8, overlay_ipv4: Option<Ipv4Addr>) -> (selvedge_mesh::Member, bool) {
        let node = NodeId([serial; 32]);
        let member = selvedge_mesh::Member {
            node,
            address: address::node_address(MESH, node),
            wg: WgKey([serial; 32]),
            role: Role::Peer,
            profile: Profile { overlay_ipv4, ..Profile::default() },
            seq: 1,
            not_after: UnixTime(1),
            founder: false,
            issuer: NodeId([9; 32]),
            may_invite: false,
            allowed: Vec::new(),
            issued: UnixTime(1),
            serial: serial.into(),
        };
        (member, true)
    }

    #[test]
    fn of_two_that_claim_an_address_one_has_it() {
        // With two addresses for all, everybody may claim each of them.
        let prefix: Prefix = "100.64.0.0/30".parse().expect("a prefix");
        let [first, second] = [1, 2].map(|last| Ipv4Addr::new(100, 64, 0, last));
        let members =
            vec![member(1, Some(first)), member(2, Some(second)), member(3, Some(second))];
        let site = Site {
            mesh: MESH,
            own: NodeId([1; 32]),
            interface: "sv-campus".to_owned(),
            members,
            options: MeshOptions { ipv4: Some(prefix), ..MeshOptions::default() },
            direct: BTreeMap::new(),
            attempts: Vec::new(),
            still_serving: false,
        };
        let planned = decide(&[site], Arc::default(), None);
        let layout = planned.outcome.layouts.get(&MESH).expect("planned");
        let owned = [(NodeId([1; 32]), first), (NodeId([2; 32]), second)];
        assert_eq!(layout.ipv4s, BTreeMap::from(owned));
        assert!(layout.exits.is_empty() && !layout.forwards);
    }

    #[test]
    fn a_plan_is_made_anew_if_a_fact_is_another() {
        let site = |accept: Vec<Prefix>| Site {
            mesh: MeshId([1; 20]),
            own: NodeId([2; 32]),
            interface: "sv-a".to_owned(),
            members: Vec::new(),
            options: MeshOptions { accept, ..MeshOptions::default() },
            direct: BTreeMap::new(),
            attempts: Vec::new(),
            still_serving: false,
        };
        let all = || vec![site(everywhere().into())];
        let links =
            |mtu| Arc::new(Links { mtus: BTreeMap::from([(IpAddr::from([192, 0, 2, 1]), mtu)]) });
        let first = decide(&all(), links(1500), None);
        let last = || Some(first.clone());
        assert!(Arc::ptr_eq(&first, &decide(&all(), links(1500), last())));
        assert!(!Arc::ptr_eq(&first, &decide(&all(), links(1400), last())));
        assert!(!Arc::ptr_eq(&first, &decide(&[site(Vec::new())], links(1500), last())));
    }

    #[test]
    fn the_mtu_leaves_room_for_wireguard_on_the_link_to_the_peers() {
        // A host without any way out has no path to look at.
        let Some(own) = source_towards(SocketAddr::from(([192, 0, 2, 1], 9))) else { return };
        let links = Links { mtus: BTreeMap::from([(own, 1492)]) };
        assert_eq!(links.mtu(&Peers::new()), None, "nobody is there yet");
        let endpoint = Some(SocketAddr::from(([192, 0, 2, 1], 9)));
        let peers = Peers::from([(WgKey([1; 32]), PeerSpec { endpoint, ..PeerSpec::default() })]);
        assert_eq!(links.mtu(&peers), Some(1412));
    }
}
