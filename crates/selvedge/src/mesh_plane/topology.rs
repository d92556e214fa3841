//! What this host is to do for all meshes of its node together: the plan of `selvedge_topology`,
//! made from what the members say and what the operator wants, in the words of the host.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use selvedge_api::mesh::Exit as ExitState;
use selvedge_dns::names::{label, names};
use selvedge_host::masquerade::Masquerade;
use selvedge_host::netlink::{Address, Link, Netlink};
use selvedge_host::wireguard::PeerSpec;
use selvedge_mesh::Bridged;
use selvedge_model::{MeshId, NodeId, Prefix, WgKey};
use selvedge_topology::direct::Wish;
use selvedge_topology::{
    Claim, ExitUse, Member, MeshPlan, Options, PathMtu, Underlay, View, claim, everywhere, overlap,
    overlay_mtu, owners, plan,
};

use super::applier::{Desired, Peers};
use super::endpoints::source_towards;
use super::exits;
use super::names::FindError;
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
    /// The exit that is wanted is no member: why not.
    pub(super) lost_exit: Option<String>,
    /// The families in which an exit is wanted though this node is one itself.
    pub(super) own_exits: BTreeSet<Prefix>,
    /// The IPv4 prefix overlaps that of this other mesh of the node, and is not used.
    pub(super) crowded_by: Option<MeshId>,
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

/// What a plan is made of.
#[derive(Debug, PartialEq)]
struct Facts {
    views: Vec<View>,
    /// For each of them: why the exit that is wanted is no member, if it is none.
    lost_exits: Vec<Option<String>>,
    /// The meshes that go without an IPv4 prefix, and for which others.
    crowded: BTreeMap<MeshId, MeshId>,
    links: Arc<Links>,
}

impl Facts {
    fn of(sites: &mut [Site], links: Arc<Links>) -> Self {
        let crowded = give_way(sites);
        let (views, lost_exits) = sites.iter().map(view_of).unzip();
        Self { views, lost_exits, crowded, links }
    }
}

/// A plan, and what it was made of.
#[derive(Debug)]
pub(super) struct Planned {
    facts: Facts,
    pub(super) outcome: Outcome,
}

impl Planned {
    pub(super) fn links(&self) -> Arc<Links> {
        self.facts.links.clone()
    }
}

/// Plans for all meshes of the node. If nothing is different from what `last` was made of, that is
/// the plan: most of what members say anew, and that they are still there, changes no route.
pub(super) fn decide(
    sites: &mut [Site],
    links: Arc<Links>,
    last: Option<Arc<Planned>>,
) -> Arc<Planned> {
    let facts = Facts::of(sites, links);
    match last.filter(|last| last.facts == facts) {
        Some(last) => last,
        None => {
            let outcome = outcome(sites, &facts);
            Arc::new(Planned { facts, outcome })
        }
    }
}

fn outcome(sites: &[Site], facts: &Facts) -> Outcome {
    let Facts { views, lost_exits, crowded, links } = facts;
    let own_exits: BTreeSet<Prefix> =
        views.iter().filter_map(View::me).flat_map(Member::exits).collect();
    let mut planned = plan(views).meshes;
    let speaks_ipv4 = views.iter().any(|view| view.me().is_some_and(|me| me.ipv4.is_some()));
    let mut outcome = Outcome::default();
    for ((site, view), lost_exit) in sites.iter().zip(views).zip(lost_exits) {
        let mut layout = match planned.remove(&site.mesh) {
            Some(plan) => {
                outcome.ground.add(site, &plan);
                let lost_exit = lost_exit.clone();
                Layout { lost_exit, ..Layout::of(site, view, plan, speaks_ipv4) }
            }
            None => Layout::of_nobody(site),
        };
        exits::note_own(&mut layout.exits, &own_exits);
        layout.crowded_by = crowded.get(&site.mesh).copied();
        if site.options.exit != Exit::None {
            layout.own_exits.clone_from(&own_exits);
        }
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

/// Takes the IPv4 prefix from meshes in which it overlaps that of another, which they are told
/// apart by: one of the two would get the packets of both. Who has an address already keeps it.
fn give_way(sites: &mut [Site]) -> BTreeMap<MeshId, MeshId> {
    let has_one = |site: &Site| {
        let mut members = site.members.iter().map(|(member, _)| member);
        let own = members.find(|member| member.node == site.own);
        own.is_some_and(|own| own.profile.overlay_ipv4.is_some())
    };
    let mut order: Vec<&mut Site> = sites.iter_mut().collect();
    order.sort_by_key(|site| (!has_one(site), site.mesh));
    let mut taken: Vec<(Prefix, MeshId)> = Vec::new();
    let mut crowded = BTreeMap::new();
    for site in order {
        let Some(prefix) = site.options.ipv4 else { continue };
        match taken.iter().find(|(other, _)| overlap(*other, prefix)) {
            Some((_, by)) => {
                site.options.ipv4 = None;
                crowded.insert(site.mesh, *by);
            }
            None => taken.push((prefix, site.mesh)),
        }
    }
    crowded
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
            lost_exit: None,
            own_exits: BTreeSet::new(),
            crowded_by: None,
            desired: Desired {
                peers: peers(plan.peers),
                relays: Some(plan.relays),
                routes,
                addresses: addresses.into_iter().flatten().collect(),
                mtu: None,
                role: me.map(|me| me.role),
            },
        }
    }
}

/// A mesh as plans see it, and why the exit that is wanted there is no member, if it is none.
fn view_of(site: &Site) -> (View, Option<String>) {
    let MeshOptions { bridge, accept, ipv4, keepalive, .. } = site.options.clone();
    let (exit, lost_exit) = match exit_of(site) {
        Ok(exit) => (exit, None),
        // Nobody has this id: packets to elsewhere are dropped rather than sent past the exit.
        Err(error) => (ExitUse::Only(NOBODY), Some(error.to_string())),
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
    (View { mesh: site.mesh, own: site.own, members, options }, lost_exit)
}

fn exit_of(site: &Site) -> Result<ExitUse, FindError> {
    Ok(match &site.options.exit {
        Exit::None => ExitUse::None,
        Exit::Any => ExitUse::Any,
        Exit::Member(name) => ExitUse::Only(member_called(site, name)?),
    })
}

const NOBODY: NodeId = NodeId([0; 32]);

/// Who has which IPv4 address in the mesh, the own node as it is to claim.
fn addresses(site: &Site) -> BTreeMap<NodeId, Ipv4Addr> {
    let Some(prefix) = site.options.ipv4 else { return BTreeMap::new() };
    let mut claims: Vec<Claim> = site.members.iter().map(|(member, _)| claim_of(member)).collect();
    let own = claim(site.mesh, prefix, site.own, &claims);
    for claim in claims.iter_mut().filter(|claim| claim.node == site.own) {
        claim.address = own;
    }
    owned(site.mesh, prefix, &claims)
}

/// Who has which IPv4 address of `prefix` by these claims.
pub(super) fn owned(mesh: MeshId, prefix: Prefix, claims: &[Claim]) -> BTreeMap<NodeId, Ipv4Addr> {
    owners(mesh, prefix, claims).into_iter().map(|(address, node)| (node, address)).collect()
}

/// What a member claims of the mesh's IPv4 prefix.
pub(super) const fn claim_of(member: &selvedge_mesh::Member) -> Claim {
    Claim { node: member.node, rank: member.serial, address: member.profile.overlay_ipv4 }
}

/// The member that an operator means. A name means the one that it belongs to, so that nobody who
/// claims it too takes it away.
fn member_called(site: &Site, selector: &str) -> Result<NodeId, FindError> {
    let claims: Vec<_> = site.members.iter().map(|(member, _)| view::claim(member)).collect();
    let named = names(&claims);
    let owner = label(selector)
        .and_then(|label| named.into_iter().find(|(_, named)| named.name == label))
        .map(|(node, _)| node);
    let found = owner.map_or_else(|| view::find_among(&claims, selector), Ok)?;
    let is_member = claims.iter().any(|claim| claim.node == found);
    is_member.then_some(found).ok_or_else(|| FindError::NoMember(selector.to_owned()))
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
    use selvedge_mesh::{Profile, Role, UnixTime};

    use super::*;

    fn member(number: u8, alias: &str) -> (selvedge_mesh::Member, bool) {
        let (mesh, node) = (MeshId([1; 20]), NodeId([number; 32]));
        let profile = Profile { alias: alias.to_owned(), ..Profile::default() };
        let member = selvedge_mesh::Member {
            node,
            address: selvedge_mesh::address::node_address(mesh, node),
            wg: WgKey([number; 32]),
            role: Role::Peer,
            profile,
            seq: 1,
            not_after: UnixTime(1),
            founder: number == 1,
            issuer: NodeId([1; 32]),
            may_invite: false,
            allowed: everywhere().into(),
            issued: UnixTime(1),
            serial: number.into(),
        };
        (member, true)
    }

    /// A mesh of node 1 with two others.
    fn site(mesh: u8, options: MeshOptions) -> Site {
        Site {
            mesh: MeshId([mesh; 20]),
            own: NodeId([1; 32]),
            interface: format!("sv-{mesh}"),
            members: vec![member(1, "own"), member(2, "GW1"), member(3, "gw1")],
            options,
            direct: BTreeMap::new(),
            attempts: Vec::new(),
            still_serving: false,
        }
    }

    fn decided(sites: &mut [Site]) -> Outcome {
        decide(sites, Arc::default(), None).outcome.clone()
    }

    #[test]
    fn of_two_that_claim_an_address_one_has_it() {
        // With two addresses for all, everybody may claim each of them.
        let ipv4 = "100.64.0.0/30".parse().ok();
        let [first, second] = [1, 2].map(|last| Ipv4Addr::new(100, 64, 0, last));
        let mut site = site(1, MeshOptions { ipv4, ..MeshOptions::default() });
        for ((member, _), address) in site.members.iter_mut().zip([first, second, second]) {
            member.profile.overlay_ipv4 = Some(address);
        }
        let outcome = decided(&mut [site]);
        let layout = &outcome.layouts[&MeshId([1; 20])];
        let owned = [(NodeId([1; 32]), first), (NodeId([2; 32]), second)];
        assert_eq!(layout.ipv4s, BTreeMap::from(owned));
        assert!(layout.exits.is_empty() && !layout.forwards);
    }

    #[test]
    fn an_exit_is_found_by_whatever_a_member_is_called() {
        let site = site(1, MeshOptions::default());
        let (second, third) = (NodeId([2; 32]), NodeId([3; 32]));
        let begin = second.to_string()[..8].to_owned();
        for name in ["GW1", "gw1", "Gw1", &begin, &second.to_string()] {
            assert_eq!(member_called(&site, name), Ok(second), "{name}");
        }
        let longer = format!("gw1-{}", &third.to_string()[..4]);
        assert_eq!(member_called(&site, &longer), Ok(third));
        for name in ["gw2", &NodeId([9; 32]).to_string()] {
            let error = FindError::NoMember(name.to_owned());
            assert_eq!(member_called(&site, name), Err(error), "{name}");
        }
    }

    #[test]
    fn an_exit_that_is_no_member_is_said_and_nothing_leaves() {
        let exit = Exit::Member("nobody".to_owned());
        let mut sites = [site(1, MeshOptions { exit, ..MeshOptions::default() })];
        let outcome = decided(&mut sites);
        let layout = &outcome.layouts[&MeshId([1; 20])];
        let said = layout.lost_exit.as_deref().expect("said");
        assert!(said.contains("no member called \"nobody\""), "{said}");
        assert!(everywhere().iter().all(|it| layout.desired.routes.contains(it)));
    }

    #[test]
    fn an_exit_that_wants_an_exit_is_told() {
        let mut site = site(1, MeshOptions { exit: Exit::Any, ..MeshOptions::default() });
        site.members[0].0.profile.routes = vec![everywhere()[1]];
        site.members[1].0.profile.routes = everywhere().into();
        let outcome = decided(&mut [site]);
        let layout = &outcome.layouts[&MeshId([1; 20])];
        assert_eq!(layout.own_exits, BTreeSet::from([everywhere()[1]]));
        assert!(!layout.desired.routes.contains(&everywhere()[1]));
    }

    #[test]
    fn of_two_meshes_with_one_ipv4_prefix_who_has_an_address_keeps_it() {
        let wide = MeshOptions { ipv4: "10.9.0.0/16".parse().ok(), ..MeshOptions::default() };
        let narrow = MeshOptions { ipv4: "10.9.8.0/24".parse().ok(), ..MeshOptions::default() };
        let mut sites = [site(1, wide), site(2, narrow)];
        let crowded = |sites: &[Site; 2]| {
            let outcome = decided(&mut sites.clone());
            let of = |mesh| outcome.layouts[&MeshId([mesh; 20])].clone();
            [of(1), of(2)].map(|layout| (layout.ipv4.is_some(), layout.crowded_by))
        };
        assert_eq!(crowded(&sites), [(true, None), (false, Some(MeshId([1; 20])))]);
        sites[1].members[0].0.profile.overlay_ipv4 = Some([10, 9, 8, 7].into());
        assert_eq!(crowded(&sites), [(false, Some(MeshId([2; 20]))), (true, None)]);
        sites[0].options.ipv4 = "10.8.0.0/16".parse().ok();
        assert_eq!(crowded(&sites), [(true, None), (true, None)]);
    }

    #[test]
    fn a_plan_is_made_anew_if_a_fact_is_another() {
        let links =
            |mtu| Arc::new(Links { mtus: BTreeMap::from([(IpAddr::from([192, 0, 2, 1]), mtu)]) });
        let all = || [site(1, MeshOptions::default())];
        let first = decide(&mut all(), links(1500), None);
        let same = |sites: &mut [Site], mtu| {
            Arc::ptr_eq(&first, &decide(sites, links(mtu), Some(first.clone())))
        };
        assert!(same(&mut all(), 1500) && !same(&mut all(), 1400));
        let accept = Vec::new();
        assert!(!same(&mut [site(1, MeshOptions { accept, ..MeshOptions::default() })], 1500));
    }

    #[test]
    fn why_an_exit_is_no_member_is_said_anew_if_it_is_for_another_reason() {
        let exit = Exit::Member(NodeId([2; 32]).to_string()[..2].to_owned());
        let mut sites = [site(1, MeshOptions { exit, ..MeshOptions::default() })];
        let first = decide(&mut sites, Arc::default(), None);
        let said = |planned: &Planned| planned.outcome.layouts[&MeshId([1; 20])].lost_exit.clone();
        sites[0].members.truncate(1);
        let second = decide(&mut sites, Arc::default(), Some(first.clone()));
        assert!(said(&first) != said(&second), "{:?}", said(&first));
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
