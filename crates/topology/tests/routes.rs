//! Routes between meshes, networks behind members, and exits.

mod world;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv6Addr;

use proptest::prelude::*;
use selvedge_mesh::address::{mesh_prefix, node_address};
use selvedge_mesh::{Bridged, Role};
use selvedge_model::{MeshId, NodeId, Prefix};
use selvedge_topology::{ExitUse, Member, Options, Refusal, plan};
use world::{Fate, World, member, mesh, node};

fn bridge() -> Options {
    Options { bridge: true, ..Options::default() }
}

/// `count` meshes, in a chain, or in a ring to which one more is tied, with `bridges` bridges
/// between neighbours and two members in each that bridge nothing, one of them a client. Every
/// third bridge is a client, too.
fn world(count: u8, ring: bool, bridges: u8) -> World {
    let mut world = World::default();
    for at in 0..count + u8::from(ring) {
        let of = mesh(at + 1);
        world.join(of, member(of, 10 * at + 1, Role::Peer), Options::default());
        world.join(of, member(of, 10 * at + 2, Role::Client), Options::default());
        let next = match at + 1 {
            next if next < count => next,
            next if ring && next == count => 0,
            // What is tied to a ring is tied to its first mesh.
            next if next > count => 0,
            _ => continue,
        };
        for number in 0..bridges {
            let role = if number % 3 == 2 { Role::Client } else { Role::Peer };
            for of in [of, mesh(next + 1)] {
                world.join(of, member(of, bridge_number(at, number), role), bridge());
            }
        }
    }
    world
}

const fn bridge_number(at: u8, number: u8) -> u8 {
    100 + 10 * at + number
}

fn addresses(world: &World) -> Vec<(NodeId, MeshId, Ipv6Addr)> {
    let all = world.members.iter().flat_map(|(mesh, members)| {
        members.keys().map(|node| (*node, *mesh, node_address(*mesh, *node)))
    });
    all.filter(|(node, ..)| !world.down.contains(node)).collect()
}

/// How many bridges a packet from a mesh to another passes at least.
fn bridges_between(world: &World, from: MeshId) -> BTreeMap<MeshId, usize> {
    let mut found = BTreeMap::from([(from, 0)]);
    let mut queue = VecDeque::from([from]);
    while let Some(at) = queue.pop_front() {
        let of_node = |node: &NodeId| {
            let holds = |(mesh, members): (&MeshId, &BTreeMap<NodeId, Member>)| {
                members.contains_key(node).then_some(*mesh)
            };
            world.members.iter().filter_map(holds).collect::<Vec<_>>()
        };
        let alive = world.members[&at].keys().filter(|node| !world.down.contains(node));
        for next in alive.flat_map(of_node) {
            if !found.contains_key(&next) {
                found.insert(next, found[&at] + 1);
                queue.push_back(next);
            }
        }
    }
    found
}

/// Every address is reached from every node, over as few bridges as there are, or not at all if
/// there is no way; and nobody has a route that leads nowhere.
fn exactly_what_can_be_reached_is(world: &World) {
    for from in world.alive() {
        let own: Vec<MeshId> = world
            .members
            .iter()
            .filter(|(_, it)| it.contains_key(&from))
            .map(|(m, _)| *m)
            .collect();
        let reach: Vec<_> = own.iter().map(|mesh| bridges_between(world, *mesh)).collect();
        for (to, of, address) in addresses(world).into_iter().filter(|(to, ..)| *to != from) {
            let least = reach.iter().filter_map(|reach| reach.get(&of)).min();
            match (world.send(from, address), least) {
                (Fate::Arrived(there, relays), Some(least)) => {
                    assert_eq!(there, to);
                    // The last relay may be to the destination itself.
                    assert!(
                        relays <= least + 1,
                        "{from} to {address}: {relays} relays, not {least}"
                    );
                }
                (Fate::Dropped(at, None), None) => assert_eq!(at, from, "a stale route"),
                (fate, least) => panic!("{from} to {to} in {of}: {fate:?}, {least:?} bridges"),
            }
        }
    }
}

#[test]
fn chains_and_rings_of_meshes_reach_each_other() {
    for (count, ring) in [(2, false), (4, false), (6, false), (3, true), (4, true), (5, true)] {
        let mut world = world(count, ring, 3);
        world.settle();
        exactly_what_can_be_reached_is(&world);
    }
}

#[test]
fn equal_exits_share_the_nodes_and_the_rest_takes_over() {
    let mut world = world(2, false, 2);
    for number in 20..60 {
        world.join(mesh(1), member(mesh(1), number, Role::Peer), Options::default());
    }
    world.settle();
    let used = |world: &World| {
        let mut used: BTreeMap<Ipv6Addr, usize> = BTreeMap::new();
        for plan in world.plans.iter().filter(|(it, _)| (20..60).contains(&it.0[0])).map(|(_, p)| p)
        {
            let relays = &plan.meshes[&mesh(1)].relays;
            let hop = relays.send(relays.own.into(), node_address(mesh(2), node(11)).into());
            *used.entry(hop.expect("routed").expect("relayed").via).or_default() += 1;
        }
        used
    };
    let shares = used(&world);
    assert_eq!(shares.values().sum::<usize>(), 40);
    assert!(shares.len() == 2 && shares.values().all(|share| *share >= 10), "{shares:?}");
    world.fail(node(bridge_number(0, 0)));
    world.settle();
    assert_eq!(
        used(&world),
        BTreeMap::from([(node_address(mesh(1), node(bridge_number(0, 1))), 40)])
    );
    exactly_what_can_be_reached_is(&world);
}

#[test]
fn a_ring_takes_the_other_way_round() {
    let mut world = world(4, true, 1);
    world.settle();
    let to = node_address(mesh(2), node(11));
    assert_eq!(world.send(node(1), to), Fate::Arrived(node(11), 2));
    world.fail(node(bridge_number(0, 0)));
    world.settle();
    assert_eq!(world.send(node(1), to), Fate::Arrived(node(11), 4), "three bridges");
    exactly_what_can_be_reached_is(&world);
}

fn prefix(text: &str) -> Prefix {
    text.parse().expect("a prefix")
}

#[test]
fn networks_behind_members_are_reached_as_certificates_allow() {
    let mut world = world(3, false, 1);
    let network = prefix("2001:db8:7::/48");
    world.members.get_mut(&mesh(1)).expect("there").get_mut(&node(1)).expect("there").networks =
        vec![network];
    world.settle();
    let routed = |world: &World, at: u8, of: u8| {
        world.plans[&node(at)].meshes[&mesh(of)].routes.contains(&network)
    };
    assert!(routed(&world, 2, 1) && routed(&world, bridge_number(0, 0), 1));
    assert!(!routed(&world, 1, 1), "it is the node's own");
    assert!(!routed(&world, 11, 2), "no certificate lets the bridge announce it in mesh 2");
    let bridges = [(2, bridge_number(0, 0)), (3, bridge_number(1, 0))];
    for (of, number) in bridges {
        let members = world.members.get_mut(&mesh(of)).expect("there");
        members.get_mut(&node(number)).expect("there").permits.push(prefix("2001:db8::/32"));
    }
    world.settle();
    assert!(routed(&world, 11, 2) && routed(&world, 21, 3));
    let inside = "2001:db8:7::1".parse().expect("an address");
    // It gets as far as the member, whose host has the route to it.
    assert_eq!(world.send(node(21), inside), Fate::Dropped(node(1), None));
    world.fail(node(1));
    world.settle();
    assert_eq!(world.send(node(21), inside), Fate::Dropped(node(21), None));
}

/// Mesh 1, which one bridge connects with mesh 2, and a member that says that it bridges, too.
fn world_with_impostor(permits: &[&str]) -> World {
    let mut world = world(2, false, 1);
    let mut impostor = member(mesh(1), 30, Role::Peer);
    impostor.permits = permits.iter().map(|text| prefix(text)).collect();
    world.join(mesh(1), impostor, Options::default());
    world.settle();
    let lie = Bridged { prefix: mesh_prefix(mesh(2)), path: vec![mesh(2)] };
    for by in world.nodes() {
        world.seen.insert((by, mesh(1), node(30)), vec![lie.clone()]);
        world.step(by);
    }
    world
}

/// By whom the members of mesh 1 send to mesh 2, and whose packets from there they take.
fn believed(world: &World) -> BTreeSet<NodeId> {
    let there: std::net::IpAddr = node_address(mesh(2), node(11)).into();
    let candidates = || [node(30), node(bridge_number(0, 0))].into_iter();
    let mut believed = BTreeSet::new();
    for plan in [1, 2].map(|number| &world.plans[&node(number)].meshes[&mesh(1)]) {
        let relays = &plan.relays;
        let via = relays.hops.find(there).map(|(_, hop)| hop.via);
        believed.extend(candidates().filter(|it| {
            let from = node_address(mesh(1), *it);
            via == Some(from) || relays.take_relayed(from, 0, there, relays.own.into()).is_ok()
        }));
    }
    believed
}

#[test]
fn nobody_attracts_another_meshs_packets_without_a_certificate() {
    let bridge = node(bridge_number(0, 0));
    for permits in [&[][..], &["10.0.0.0/8"], &["::/0"], &["fd00::/64"]] {
        let world = world_with_impostor(permits);
        assert_eq!(believed(&world), BTreeSet::from([bridge]), "{permits:?}");
    }
    let (any, one) = (["fd00::/8"], [mesh_prefix(mesh(2)).to_string()]);
    for permits in [&any[..], &[one[0].as_str()]] {
        let world = world_with_impostor(permits);
        assert_eq!(believed(&world), BTreeSet::from([bridge, node(30)]), "{permits:?}");
    }
}

#[test]
fn a_bridge_tells_what_its_certificate_keeps_it_from() {
    let mut world = world(3, false, 1);
    let bridge = node(bridge_number(0, 0));
    let members = world.members.get_mut(&mesh(1)).expect("there");
    members.get_mut(&bridge).expect("there").permits = vec![mesh_prefix(mesh(2))];
    world.settle();
    let plan = &world.plans[&bridge].meshes[&mesh(1)];
    let announced: Vec<_> = plan.announce.iter().map(|bridged| bridged.prefix).collect();
    assert_eq!(announced, [mesh_prefix(mesh(2))]);
    assert_eq!(plan.unpermitted, BTreeSet::from([mesh_prefix(mesh(3))]));
    assert_eq!(world.plans[&bridge].meshes[&mesh(2)].unpermitted, BTreeSet::new());
}

#[test]
fn a_mesh_that_the_node_left_leads_nowhere() {
    let mut world = world(2, false, 1);
    world.settle();
    let bridge = node(bridge_number(0, 0));
    let mut views = world.views(bridge);
    views[0].members.retain(|member| member.node != bridge);
    let plan = plan(&views);
    assert_eq!(plan.meshes.keys().collect::<Vec<_>>(), [&mesh(2)]);
    assert_eq!(plan.meshes[&mesh(2)].announce, []);
}

#[test]
fn what_is_not_accepted_does_not_come_in_either() {
    let mut world = world(1, false, 0);
    let members = world.members.get_mut(&mesh(1)).expect("there");
    let networks = ["10.1.0.0/16", "10.2.0.0/16", "0.0.0.0/0"].map(prefix);
    members.get_mut(&node(1)).expect("there").networks = networks.to_vec();
    let takes = |options: Options, src: &str| {
        let mut world = world.clone();
        world.options.insert((mesh(1), node(2)), options);
        world.settle();
        let relays = &world.plans[&node(2)].meshes[&mesh(1)].relays;
        let from = node_address(mesh(1), node(1));
        let src = src.parse().expect("an address");
        relays.take_relayed(from, 0, src, relays.own.into()).is_ok()
    };
    let of = |accept: &str| Options { accept: vec![prefix(accept)], ..Options::default() };
    assert!(takes(of("10.1.0.0/16"), "10.1.0.9"));
    assert!(!takes(of("10.1.0.0/16"), "10.2.0.9"));
    let by = |exit| Options { exit, ..Options::default() };
    assert!(takes(by(ExitUse::Any), "198.51.100.1"));
    assert!(takes(by(ExitUse::Only(node(1))), "198.51.100.1"));
    for exit in [ExitUse::None, ExitUse::Only(node(9))] {
        assert!(!takes(by(exit), "198.51.100.1"), "{exit:?}");
    }
}

#[test]
fn of_equal_bridges_and_exits_those_that_are_drained_come_last() {
    let mut world = world(2, false, 2);
    for number in 20..40 {
        world.join(mesh(1), member(mesh(1), number, Role::Peer), Options::default());
    }
    let drained = node(bridge_number(0, 0));
    for of in [mesh(1), mesh(2)] {
        let members = world.members.get_mut(&of).expect("there");
        members.get_mut(&drained).expect("there").drained = true;
    }
    world.settle();
    let other = node_address(mesh(1), node(bridge_number(0, 1)));
    let to = node_address(mesh(2), node(11)).into();
    for number in 20..40 {
        let relays = &world.plans[&node(number)].meshes[&mesh(1)].relays;
        assert_eq!(relays.hops.find(to).map(|(_, hop)| hop.via), Some(other), "{number}");
    }
    world.fail(node(bridge_number(0, 1)));
    world.settle();
    exactly_what_can_be_reached_is(&world);
}

#[test]
fn one_mesh_is_the_way_to_everywhere() {
    let mut world = world(2, false, 1);
    let bridge = node(bridge_number(0, 0));
    for (of, exit) in [(1, 1), (2, 11)] {
        let members = world.members.get_mut(&mesh(of)).expect("there");
        members.get_mut(&node(exit)).expect("there").networks = vec![prefix("::/0")];
    }
    let defaults = |first: ExitUse, second: ExitUse| {
        let mut world = world.clone();
        for (of, exit) in [(1, first), (2, second)] {
            world.options.get_mut(&(mesh(of), bridge)).expect("there").exit = exit;
        }
        world.settle();
        [1, 2].map(|of| world.plans[&bridge].meshes[&mesh(of)].defaults.len())
    };
    assert_eq!(defaults(ExitUse::None, ExitUse::None), [0, 0]);
    assert_eq!(defaults(ExitUse::None, ExitUse::Any), [0, 1]);
    assert_eq!(defaults(ExitUse::Any, ExitUse::Any), [1, 0]);
    assert_eq!(defaults(ExitUse::Any, ExitUse::Only(node(11))), [0, 2], "and no IPv4 past it");
}

#[test]
fn own_networks_and_meshes_are_never_routed_away() {
    let mut world = world(2, false, 1);
    let thief = world.members.get_mut(&mesh(1)).expect("there").get_mut(&node(1)).expect("there");
    let inside = Prefix::new(node_address(mesh(1), node(2)).into(), 128).expect("valid");
    thief.networks = vec![mesh_prefix(mesh(2)), inside, prefix("fe80::/10"), prefix("127.0.0.0/8")];
    thief.networks.push(prefix("10.0.0.0/8"));
    world.settle();
    let bridge = &world.plans[&node(bridge_number(0, 0))];
    assert_eq!(bridge.meshes[&mesh(1)].routes, BTreeSet::from([prefix("10.0.0.0/8")]));
    let picky = Options { accept: vec![prefix("10.1.0.0/16")], ..Options::default() };
    world.options.insert((mesh(1), node(2)), picky);
    world.settle();
    let routes = &world.plans[&node(2)].meshes[&mesh(1)].routes;
    assert!(!routes.contains(&prefix("10.0.0.0/8")), "more than it accepts");
}

#[test]
fn exits_are_used_by_those_who_want_one() {
    let mut world = world(1, false, 0);
    let everywhere = prefix("::/0");
    for number in [30, 31] {
        let mut exit = member(mesh(1), number, Role::Peer);
        exit.networks = vec![everywhere];
        world.join(mesh(1), exit, Options::default());
    }
    for number in 40..80 {
        let options = Options { exit: ExitUse::Any, ..Options::default() };
        world.join(mesh(1), member(mesh(1), number, Role::Client), options);
    }
    world.options.get_mut(&(mesh(1), node(2))).expect("there").exit = ExitUse::Only(node(31));
    world.settle();
    let outside: Ipv6Addr = "2001:db8::1".parse().expect("an address");
    let exit_of = |world: &World, number: u8| match world.send(node(number), outside) {
        Fate::Dropped(at, None) => at,
        fate @ (Fate::Arrived(..) | Fate::Dropped(..) | Fate::Lost | Fate::Circle(_)) => {
            panic!("{number}: {fate:?}")
        }
    };
    let used: Vec<_> = (40..80).map(|number| exit_of(&world, number)).collect();
    assert!(used.iter().all(|exit| [node(30), node(31)].contains(exit)));
    assert!(used.iter().filter(|exit| **exit == node(30)).count().abs_diff(20) < 12, "{used:?}");
    assert_eq!(exit_of(&world, 2), node(31));
    assert_eq!(exit_of(&world, 1), node(1), "who wants none has none");
    world.fail(node(31));
    world.settle();
    assert!((40..80).all(|number| exit_of(&world, number) == node(30)));
    // Rather nowhere than past the exit that it asked for.
    assert_eq!(world.send(node(2), outside), Fate::Dropped(node(2), Some(Refusal::NoRoute)));
}

/// Two exits of both families, and what `user` wants of them.
fn world_with_exits(user: u8, exit: ExitUse) -> World {
    let mut world = world(1, false, 0);
    for number in [30, 31] {
        let mut exit = member(mesh(1), number, Role::Peer);
        exit.networks = selvedge_topology::everywhere().into();
        world.join(mesh(1), exit, Options::default());
    }
    if ![30, 31].contains(&user) {
        world.join(mesh(1), member(mesh(1), user, Role::Client), Options::default());
    }
    world.options.get_mut(&(mesh(1), node(user))).expect("there").exit = exit;
    world
}

#[test]
fn an_exit_uses_none_in_a_family_in_which_it_is_one() {
    for exit in [ExitUse::Any, ExitUse::Only(node(31))] {
        let mut world = world_with_exits(30, exit);
        world.settle();
        assert!(world.plans[&node(30)].meshes[&mesh(1)].defaults.is_empty(), "{exit:?}");
        let members = world.members.get_mut(&mesh(1)).expect("there");
        members.get_mut(&node(30)).expect("there").networks = vec![prefix("::/0")];
        world.settle();
        let defaults = &world.plans[&node(30)].meshes[&mesh(1)].defaults;
        assert_eq!(*defaults, BTreeSet::from([prefix("0.0.0.0/0")]), "{exit:?}");
    }
}

#[test]
fn a_host_leaves_by_one_site_in_both_families() {
    let exits = |user| {
        let mut world = world_with_exits(user, ExitUse::Any);
        world.settle();
        let hops = &world.plans[&node(user)].meshes[&mesh(1)].relays.hops;
        let by: Vec<_> =
            hops.iter().filter(|(at, _)| at.len() == 0).map(|(_, it)| it.via).collect();
        <[Ipv6Addr; 2]>::try_from(by).expect("one in each family")
    };
    let used: BTreeSet<_> = (40..60).map(exits).collect();
    assert!(used.iter().all(|[v4, v6]| v4 == v6), "{used:?}");
    assert_eq!(used.len(), 2, "both are used");
}

#[derive(Clone, Copy, Debug)]
enum Happening {
    /// A node looks at what it knows and plans.
    Plan(u8),
    /// A record reaches a node.
    Hear(u8, u8),
    /// A node fails.
    Fail(u8),
    /// A node learns which nodes are down.
    Detect(u8),
    /// A packet is sent.
    Send(u8, u8),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        4 => any::<u8>().prop_map(Happening::Plan),
        6 => any::<(u8, u8)>().prop_map(|(by, of)| Happening::Hear(by, of)),
        1 => any::<u8>().prop_map(Happening::Fail),
        3 => any::<u8>().prop_map(Happening::Detect),
        8 => any::<(u8, u8)>().prop_map(|(from, to)| Happening::Send(from, to)),
    ]
}

/// Nobody announces a way through the mesh in which it announces it, nor through another mesh of
/// its own than the first one on it.
fn announcements_never_lead_back(world: &World) {
    for (own, plan) in &world.plans {
        for (of, plan) in &plan.meshes {
            let path = |path: &[MeshId]| {
                path.iter().filter(|it| world.members[it].contains_key(own)).count()
            };
            let fine = plan.announce.iter().all(|it| !it.path.contains(of) && path(&it.path) == 1);
            assert!(fine, "{own} in {of}: {:?}", plan.announce);
        }
    }
}

/// Lets it happen in a world that had settled; how many packets arrived and how many did not.
fn run(world: &mut World, happenings: &[Happening]) -> (usize, usize) {
    let bridges: Vec<NodeId> = world.nodes().into_iter().filter(|it| it.0[0] >= 100).collect();
    let (mut arrived, mut lost) = (0, 0);
    for happening in happenings {
        let alive = world.alive();
        let pick = |number: u8| alive[usize::from(number) % alive.len()];
        match *happening {
            Happening::Plan(number) => {
                world.step(pick(number));
                announcements_never_lead_back(world);
            }
            Happening::Fail(number) => world.fail(bridges[usize::from(number) % bridges.len()]),
            Happening::Hear(by, of) => {
                let records: Vec<_> = world.published.keys().copied().collect();
                let (mesh, of) = records[usize::from(of) % records.len()];
                world.deliver(pick(by), mesh, of);
            }
            Happening::Detect(by) => {
                let by = pick(by);
                world.down.clone().into_iter().for_each(|of| world.learn_down(by, of));
            }
            Happening::Send(from, to) => {
                let to = addresses(world)[usize::from(to) % addresses(world).len()].2;
                match world.send(pick(from), to) {
                    Fate::Circle(at) => panic!("a packet came to {at} twice"),
                    Fate::Arrived(..) => arrived += 1,
                    Fate::Dropped(..) | Fate::Lost => lost += 1,
                }
            }
        }
    }
    (arrived, lost)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// At no time a packet comes to a node twice; and when all have heard all, just what can be
    /// reached is reached, and no route is left that leads nowhere.
    #[test]
    fn whatever_fails_in_whatever_order_nothing_circles_and_nothing_stale_stays(
        count in 4..7_u8,
        ring in any::<bool>(),
        bridges in 1..3_u8,
        happenings in prop::collection::vec(happening(), 0..150),
    ) {
        let mut world = world(count, ring, bridges);
        world.settle();
        run(&mut world, &happenings);
        let rounds = world.settle();
        // What rests on what is gone dies at least one mesh further in each round.
        prop_assert!(rounds <= usize::from(count) + 2, "{rounds} rounds");
        announcements_never_lead_back(&world);
        exactly_what_can_be_reached_is(&world);
    }

    /// Every node has its own idea of what the others announce: anything that a record can say.
    #[test]
    fn no_packet_runs_in_a_circle_whatever_records_say(
        beliefs in prop::collection::vec(prop::collection::vec(4..8_u8, 0..3), 400),
    ) {
        let mut world = world(3, true, 2);
        let records: Vec<(MeshId, NodeId)> = world
            .members
            .iter()
            .flat_map(|(mesh, members)| members.keys().map(|node| (*mesh, *node)))
            .filter(|(_, node)| node.0[0] >= 100)
            .collect();
        let mut beliefs = beliefs.iter().cycle();
        for by in world.nodes() {
            for (of, member) in &records {
                // A way to everywhere, so that no source is refused.
                let said = (1..10).zip(beliefs.by_ref()).map(|(to, through)| Bridged {
                    prefix: mesh_prefix(mesh(to)),
                    path: through.iter().map(|it| mesh(it + 1)).chain([mesh(to)]).collect(),
                });
                world.seen.insert((by, *of, *member), said.collect());
            }
        }
        for node in world.nodes() {
            world.step(node);
        }
        let mut relayed = 0;
        let nobodys = (node(1), mesh(9), node_address(mesh(9), node(1)));
        for from in world.nodes() {
            for (_, _, address) in addresses(&world).into_iter().chain([nobodys]) {
                match world.send(from, address) {
                    Fate::Circle(at) => panic!("a packet from {from} to {address} came to {at} twice"),
                    Fate::Arrived(_, relays) => relayed += relays,
                    Fate::Dropped(..) | Fate::Lost => {}
                }
            }
        }
        prop_assert!(relayed > 0, "some packets arrive");
    }
}
