//! Peers and clients: who reaches whom by WireGuard alone.

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use proptest::prelude::*;
use selvedge_mesh::Role;
use selvedge_mesh::address::node_address;
use selvedge_model::{NodeId, Prefix};
use selvedge_topology::direct::Wish;
use selvedge_topology::{Claim, Options, Refusal, View, attachment, claim, owners, plan};
use world::{Fate, World, member, mesh, node};

const CLIENTS: u8 = 100;

/// Peers 1.., clients 101..
fn world(peers: u8, clients: u8) -> World {
    let mut world = World::default();
    let all = (1..=peers).map(|number| (number, Role::Peer));
    let all = all.chain((1..=clients).map(|number| (CLIENTS + number, Role::Client)));
    for (number, role) in all {
        world.join(mesh(1), member(mesh(1), number, role), Options::default());
    }
    world
}

fn address(of: NodeId) -> std::net::Ipv6Addr {
    node_address(mesh(1), of)
}

fn all_pairs_reach(world: &World) {
    let alive = world.alive();
    for from in &alive {
        for to in alive.iter().filter(|to| *to != from) {
            assert_eq!(world.send(*from, address(*to)), Fate::Arrived(*to, 0), "{from} to {to}");
        }
    }
}

fn serving(world: &World, by: NodeId) -> BTreeMap<NodeId, NodeId> {
    let view = world.views(by).remove(0);
    let clients = view.members.iter().filter(|member| member.role == Role::Client);
    clients.filter_map(|it| Some((it.node, attachment(&view, it)?.serving))).collect()
}

fn disjoint(allowed: &[Prefix]) -> bool {
    let apart = |a: &Prefix, b: &Prefix| !a.contains(b.addr()) && !b.contains(a.addr());
    allowed.iter().enumerate().all(|(at, a)| allowed[..at].iter().all(|b| apart(a, b)))
}

#[test]
fn a_client_has_one_peer_for_all_and_one_that_stands_by() {
    let mut world = world(3, 2);
    world.settle();
    let plan = &world.plans[&node(CLIENTS + 1)].meshes[&mesh(1)];
    let at = serving(&world, node(1))[&node(CLIENTS + 1)];
    let specs: Vec<_> = plan.peers.iter().map(|(key, spec)| (NodeId(key.0), spec)).collect();
    assert_eq!(specs.len(), 2);
    for (peer, spec) in specs {
        assert!(spec.keepalive.is_some() && spec.endpoint.is_some(), "its NAT has to stay open");
        let expected = if peer == at { vec![plan.relays.overlay] } else { Vec::new() };
        assert_eq!(spec.allowed.iter().copied().collect::<Vec<_>>(), expected);
        // The other end knows it, too, so that its handshake is answered.
        let theirs = &world.plans[&peer].meshes[&mesh(1)].peers;
        let ours = theirs.iter().find(|(key, _)| key.0 == [CLIENTS + 1; 32]).expect("known").1;
        assert_eq!(ours.allowed.is_empty(), peer != at);
        assert_eq!(ours.endpoint, None, "it is heard, not called");
    }
}

/// Has a client have another one as a peer.
fn wish(world: &mut World, own: NodeId, partner: NodeId, carries: bool) {
    let options = world.options.get_mut(&(mesh(1), own)).expect("a member");
    let endpoint = "198.51.100.7:9".parse().ok();
    options.direct.insert(partner, Wish { endpoint, carries });
}

#[test]
fn clients_that_have_a_direct_path_send_there_and_others_by_their_peers() {
    let mut world = world(3, 4);
    let [a, b, c, peer] = [CLIENTS + 1, CLIENTS + 2, CLIENTS + 3, 1].map(node);
    for (own, partner) in [(a, b), (b, a)] {
        wish(&mut world, own, partner, true);
    }
    wish(&mut world, a, c, false);
    // Nobody but a client has direct paths, and none leads to a peer.
    wish(&mut world, peer, a, true);
    wish(&mut world, a, peer, true);
    world.settle();
    all_pairs_reach(&world);
    let peers = |of: NodeId| &world.plans[&of].meshes[&mesh(1)].peers;
    let at = |of: NodeId, partner: NodeId| {
        peers(of).iter().find(|(key, _)| key.0 == partner.0).map(|(_, spec)| spec.clone())
    };
    let direct = at(a, b).expect("a peer");
    assert_eq!(direct.allowed, BTreeSet::from([Prefix::host(address(b).into())]));
    assert!(direct.endpoint.is_some() && direct.keepalive.is_some());
    assert!(at(a, c).expect("tried").allowed.is_empty(), "nothing moves before it is agreed");
    assert_eq!(at(c, a), None);
    assert!(at(peer, a).is_none_or(|spec| spec.endpoint.is_none()));
}

#[test]
fn a_client_alone_and_a_mesh_without_members_are_no_trouble() {
    let mut world = world(0, 2);
    world.settle();
    assert!(world.plans.values().all(|plan| plan.meshes[&mesh(1)].peers.is_empty()));
    let stranger = View { own: node(250), ..world.views(node(CLIENTS + 1)).remove(0) };
    assert!(plan(&[stranger]).meshes.is_empty());
    assert!(plan(&[]).meshes.is_empty());
}

#[test]
fn a_drained_peer_and_one_that_is_avoided_serve_nobody() {
    let mut world = world(3, 40);
    world.settle();
    let members = world.members.get_mut(&mesh(1)).expect("there");
    members.get_mut(&node(1)).expect("there").drained = true;
    members.get_mut(&node(CLIENTS + 1)).expect("there").avoids = vec![node(2)];
    world.settle();
    let after = serving(&world, node(3));
    assert!(after.values().all(|peer| *peer != node(1)));
    assert_eq!(after[&node(CLIENTS + 1)], node(3));
    all_pairs_reach(&world);
}

#[test]
fn one_key_is_one_peer() {
    let mut world = world(4, 0);
    let members = world.members.get_mut(&mesh(1)).expect("there");
    members.get_mut(&node(3)).expect("there").key = member(mesh(1), 2, Role::Peer).key;
    members.get_mut(&node(4)).expect("there").key = member(mesh(1), 1, Role::Peer).key;
    world.settle();
    let peers = &world.plans[&node(1)].meshes[&mesh(1)].peers;
    let allowed: Vec<_> = peers.values().map(|spec| spec.allowed.clone()).collect();
    assert_eq!(allowed, [BTreeSet::from([Prefix::host(address(node(2)).into())])]);
}

/// All claim an address of the prefix, in the order of the nodes.
fn claim_all(world: &mut World, prefix: Prefix) -> BTreeMap<NodeId, Ipv4Addr> {
    for options in world.options.values_mut() {
        options.ipv4 = Some(prefix);
    }
    let members = world.members.get_mut(&mesh(1)).expect("there");
    for node in members.keys().copied().collect::<Vec<_>>() {
        let claims: Vec<Claim> = members.values().map(Claim::of).collect();
        members.get_mut(&node).expect("there").ipv4 = claim(mesh(1), prefix, node, &claims);
    }
    members.iter().filter_map(|(node, member)| Some((*node, member.ipv4?))).collect()
}

/// To whom a node sends what is for an address.
fn holder(world: &World, by: NodeId, of: Ipv4Addr) -> Option<NodeId> {
    let peers = &world.plans[&by].meshes[&mesh(1)].peers;
    let holds = |prefix: &Prefix| prefix.contains(of.into());
    let found = peers.iter().find(|(_, spec)| spec.allowed.iter().any(holds));
    found.map(|(key, _)| NodeId(key.0))
}

#[test]
fn addresses_of_both_families_are_a_members_own() {
    let mut world = world(2, 1);
    let ipv4 = claim_all(&mut world, "10.9.0.0/16".parse().expect("a prefix"));
    world.settle();
    let client = node(CLIENTS + 1);
    let at = serving(&world, node(1))[&client];
    let other = if at == node(1) { node(2) } else { node(1) };
    assert_eq!(holder(&world, at, ipv4[&client]), Some(client));
    assert_eq!(holder(&world, other, ipv4[&client]), Some(at));
    assert_eq!(holder(&world, client, ipv4[&other]), Some(at));
    let relays = &world.plans[&at].meshes[&mesh(1)].relays;
    assert_eq!(relays.own_ipv4, Some(ipv4[&at]));
    assert_eq!(relays.send(ipv4[&at].into(), ipv4[&other].into()), Ok(None));
}

#[test]
fn an_address_in_ipv4_is_its_owners_whoever_claims_it() {
    let mut world = world(4, 0);
    let prefix: Prefix = "10.9.0.0/28".parse().expect("a prefix");
    let ipv4 = claim_all(&mut world, prefix);
    let members = world.members.get_mut(&mesh(1)).expect("there");
    // Two parts of the mesh met, in which 2 and 3 had claimed one address; 4 claims anything.
    let common = (1..=14).map(|host| Ipv4Addr::new(10, 9, 0, host)).find(|address| {
        let alone = |number| {
            let claim = Claim { node: node(number), rank: 0, address: Some(*address) };
            owners(mesh(1), prefix, &[claim]).len() == 1
        };
        alone(2) && alone(3) && ![ipv4[&node(1)], ipv4[&node(4)]].contains(address)
    });
    let common = common.expect("each may claim any of so few");
    for number in [2, 3] {
        let member = members.get_mut(&node(number)).expect("there");
        member.ipv4 = Some(common);
        member.serial = 10 - u64::from(number);
    }
    let anywhere = Ipv4Addr::new(198, 51, 100, 1);
    members.get_mut(&node(4)).expect("there").ipv4 = Some(anywhere);
    world.settle();
    for by in [1, 2, 4].map(node) {
        assert_eq!(holder(&world, by, common), Some(node(3)), "admitted first, by {by}");
        assert_eq!(holder(&world, by, anywhere), None, "not of the prefix, by {by}");
        let relays = &world.plans[&by].meshes[&mesh(1)].relays;
        assert_eq!(relays.hops.find(anywhere.into()), None);
        let from = node_address(mesh(1), node(2));
        let refused = relays.take_relayed(from, 9, common.into(), relays.own.into());
        assert_eq!(refused, Err(Refusal::Source), "nobody believes a loser");
    }
    let own = |number| world.plans[&node(number)].meshes[&mesh(1)].relays.own_ipv4;
    assert_eq!([own(2), own(3), own(4)], [None, Some(common), None]);
    world.options.values_mut().for_each(|options| options.ipv4 = None);
    world.settle();
    assert_eq!(holder(&world, node(1), common), None, "the mesh has no IPv4");
}

#[test]
fn a_key_is_that_of_who_was_admitted_first() {
    let mut world = world(3, 0);
    let members = world.members.get_mut(&mesh(1)).expect("there");
    let key = members[&node(3)].key;
    members.get_mut(&node(3)).expect("there").serial = 1;
    let thief = members.get_mut(&node(2)).expect("there");
    (thief.key, thief.serial) = (key, 2);
    world.settle();
    let peers = &world.plans[&node(1)].meshes[&mesh(1)].peers;
    let allowed = BTreeSet::from([Prefix::host(address(node(3)).into())]);
    assert_eq!(
        peers.iter().map(|(key, spec)| (key, &spec.allowed)).collect::<Vec<_>>(),
        [(&key, &allowed)]
    );
}

#[test]
fn a_drained_peer_serves_until_its_clients_have_heard() {
    let mut world = world(3, 20);
    world.settle();
    let drained = node(1);
    let mine = |world: &World| {
        let by_node = serving(world, drained).into_iter();
        by_node.filter(|(_, peer)| *peer == drained).map(|(client, _)| client).collect::<Vec<_>>()
    };
    let clients = mine(&world);
    assert!(!clients.is_empty(), "some of twenty");
    let members = world.members.get_mut(&mesh(1)).expect("there");
    members.get_mut(&drained).expect("there").drained = true;
    let options = world.options.get_mut(&(mesh(1), drained)).expect("there");
    options.still_serving = true;
    world.step(drained);
    for client in &clients {
        let fate = world.carry(mesh(1), *client, address(*client), address(drained));
        assert_eq!(fate, Ok(drained), "{client} has not heard of it");
    }
    world.settle();
    assert_eq!(mine(&world), clients);
    world.options.get_mut(&(mesh(1), drained)).expect("there").still_serving = false;
    world.settle();
    assert_eq!(mine(&world), []);
    all_pairs_reach(&world);
}

#[test]
fn no_tunnel_leads_through_itself() {
    let mut world = world(3, 0);
    let members = world.members.get_mut(&mesh(1)).expect("there");
    let within = (address(node(3)), 51_820).into();
    members.get_mut(&node(2)).expect("there").endpoints.insert(0, within);
    members.get_mut(&node(3)).expect("there").endpoints = vec![within];
    world.settle();
    let peers = world.plans[&node(1)].meshes[&mesh(1)].peers.values();
    let endpoints: Vec<_> = peers.map(|spec| spec.endpoint).collect();
    assert_eq!(endpoints, [Some(([192, 0, 2, 2], 51_820).into()), None]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_pair_of_live_members_has_a_path_and_no_prefix_two_peers(
        peers in 1..7_u8,
        clients in 0..9_u8,
        down in prop::collection::btree_set(1..7_u8, 0..6),
    ) {
        let mut world = world(peers, clients);
        world.settle();
        all_pairs_reach(&world);
        let failed: Vec<NodeId> = down.into_iter().filter(|it| *it < peers).map(node).collect();
        failed.iter().for_each(|node| world.fail(*node));
        world.settle();
        all_pairs_reach(&world);
        for plan in world.plans.values() {
            let peers = plan.meshes[&mesh(1)].peers.values();
            let allowed: Vec<_> = peers.flat_map(|spec| spec.allowed.iter().copied()).collect();
            prop_assert!(disjoint(&allowed), "{allowed:?}");
        }
    }

    /// Whatever the ends wish, and also while they do not agree.
    #[test]
    fn direct_paths_take_no_prefix_from_another_and_leave_no_address_without_a_way(
        peers in 1..5_u8,
        wishes in prop::collection::vec((0..5_u8, 0..5_u8, any::<bool>()), 0..12),
    ) {
        let mut world = world(peers, 5);
        let client = |number: u8| node(CLIENTS + 1 + number);
        for (own, partner, carries) in wishes {
            wish(&mut world, client(own), client(partner), carries);
        }
        world.settle();
        for own in (0..5).map(client) {
            let specs = world.plans[&own].meshes[&mesh(1)].peers.values();
            let allowed: Vec<Prefix> = specs.flat_map(|it| it.allowed.iter().copied()).collect();
            let unique: BTreeSet<Prefix> = allowed.iter().copied().collect();
            prop_assert_eq!(unique.len(), allowed.len(), "{:?}", allowed);
            let covered = |it: u8| allowed.iter().any(|p| p.contains(address(client(it)).into()));
            prop_assert!((0..5).all(covered));
        }
        let wish = |a: u8, b: u8| {
            let wish = world.options[&(mesh(1), client(a))].direct.get(&client(b)).copied();
            wish.is_some_and(|wish| wish.carries)
        };
        for (a, b) in (0..5).flat_map(|a| (0..5).map(move |b| (a, b))).filter(|(a, b)| a != b) {
            let fate = world.send(client(a), address(client(b)));
            let agreed = wish(a, b) == wish(b, a);
            let expected = if agreed { Fate::Arrived(client(b), 0) } else { Fate::Lost };
            prop_assert_eq!(fate, expected);
        }
    }

    #[test]
    fn only_the_failed_peers_clients_move(peers in 2..9_u8, failed in any::<prop::sample::Index>()) {
        let mut world = world(peers, 60);
        let by = node(CLIENTS + 1);
        let before = serving(&world, by);
        let failed = node(1 + u8::try_from(failed.index(usize::from(peers))).expect("few"));
        world.learn_down(by, failed);
        let after = serving(&world, by);
        for (client, peer) in before {
            prop_assert_eq!(after[&client] == peer, peer != failed);
        }
    }

    /// Each believes what it likes about who lives, who is drained and who avoids whom.
    #[test]
    fn no_packet_runs_in_a_circle_whatever_everybody_believes(
        beliefs in prop::collection::vec(any::<(u64, u64, u64)>(), 12),
    ) {
        let mut world = world(6, 6);
        let nodes: Vec<NodeId> = world.nodes().into_iter().collect();
        for (own, (dead, drained, avoids)) in nodes.iter().zip(&beliefs) {
            let mut view = world.views(*own).remove(0);
            for (at, member) in view.members.iter_mut().enumerate() {
                member.live = member.node == *own || dead >> at & 1 == 0;
                member.drained = drained >> at & 1 == 1;
                let shunned = (0..6).filter(|peer| avoids >> (at * 5 + peer) & 1 == 1);
                member.avoids = shunned.map(|peer| nodes[peer]).collect();
            }
            world.plans.insert(*own, plan(&[view]));
        }
        let mut fates = BTreeSet::new();
        for from in &nodes {
            for to in nodes.iter().filter(|to| *to != from) {
                let fate = world.carry(mesh(1), *from, address(*from), address(*to));
                prop_assert!(!matches!(fate, Err(Fate::Circle(_))), "{:?}", fate);
                fates.insert(fate.is_ok());
            }
        }
        prop_assert!(fates.contains(&true), "some packets arrive");
    }
}
