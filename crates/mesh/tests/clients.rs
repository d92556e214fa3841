//! Clients are watched by the peer they are attached to, probe that one alone, and move by
//! themselves.

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::{Net, identity};
use selvedge_mesh::{Mesh, Role, attached_to};
use selvedge_model::NodeId;

const LIMIT: Duration = Duration::from_secs(120);
const PEERS: u32 = 6;
const CLIENTS: u32 = 9;

fn node(number: u32) -> NodeId {
    identity(number).node_id()
}

/// Six peers and nine clients, all of whom agree.
fn net(seed: u64) -> Net {
    let mut net = Net::with_members(seed, PEERS + CLIENTS);
    net.run_until_agreed(LIMIT).expect("agree");
    for client in PEERS..PEERS + CLIENTS {
        assert!(net.node(client).set_client(true).expect("in bounds"));
    }
    net.run(Duration::from_secs(5));
    net.run_until_agreed(LIMIT).expect("agree");
    net
}

fn assert_attached(net: &Net, peers: &BTreeSet<NodeId>) {
    for mesh in net.nodes.values() {
        for client in (PEERS..PEERS + CLIENTS).map(node) {
            if net.nodes.contains_key(&client) {
                let expected = attached_to(client, peers.iter().copied());
                assert_eq!(mesh.attachment(client), expected);
            }
        }
    }
}

fn peers() -> BTreeSet<NodeId> {
    (0..PEERS).map(node).collect()
}

#[test]
fn all_agree_on_who_serves_whom() {
    let mut net = net(1);
    assert_attached(&net, &peers());
    let wards: usize = (0..PEERS).map(|peer| net.node(peer).wards().count()).sum();
    assert_eq!(wards, CLIENTS as usize, "each client is watched by one");
    let member = net.node(0).member(node(PEERS)).expect("a member");
    assert_eq!(member.role, Role::Client);
    assert_eq!(net.node(0).attachment(node(1)), None, "peers are not attached");
}

#[test]
fn a_client_talks_to_its_peer_alone() {
    let mut net = net(2);
    let client = node(PEERS);
    let home = net.node(0).attachment(client).expect("attached");
    let pairs = net.watch(Duration::from_secs(20));
    let partners: BTreeSet<NodeId> = pairs
        .iter()
        .filter_map(|(from, to)| match (*from == client, *to == client) {
            (true, _) => Some(*to),
            (_, true) => Some(*from),
            _ => None,
        })
        .collect();
    assert_eq!(partners, BTreeSet::from([home]));
}

#[test]
fn a_client_that_fails_is_found_by_all() {
    let mut net = net(3);
    net.nodes.remove(&node(PEERS));
    net.run(Duration::from_secs(10));
    assert!(net.nodes.values().all(|mesh| mesh.down().eq([node(PEERS)])));
}

#[test]
fn the_clients_of_a_peer_that_fails_move_and_no_others() {
    let mut net = net(4);
    let lost = net.node(0).attachment(node(PEERS)).expect("attached");
    net.nodes.remove(&lost);
    net.run(Duration::from_secs(10));
    let mut left = peers();
    left.remove(&lost);
    assert_attached(&net, &left);
    let down = |mesh: &Mesh| mesh.down().eq([lost]);
    assert!(net.nodes.values().all(down), "and clients hear of the verdict too");
    // It still hears what is new.
    let other = *left.first().expect("five are left");
    let said = common::profile(400);
    net.nodes.get_mut(&other).expect("runs").set_profile(said.clone()).expect("in bounds");
    net.run(Duration::from_secs(2));
    assert_eq!(net.node(PEERS).member(other).map(|m| m.profile), Some(said));
}

#[test]
fn a_drained_peer_serves_only_if_there_is_no_other() {
    let mut net = net(5);
    net.node(2).set_drained(true).expect("in bounds");
    net.run(Duration::from_secs(3));
    let mut left = peers();
    left.remove(&node(2));
    assert_attached(&net, &left);
    for number in 0..PEERS {
        net.node(number).set_drained(true).expect("in bounds");
    }
    net.run(Duration::from_secs(3));
    assert_attached(&net, &peers());
}

/// Everybody reaches the peer but this client: it moves, and says so, and nobody is down.
#[test]
fn a_client_whose_path_is_broken_moves_by_itself() {
    let mut net = net(6);
    let client = node(PEERS);
    let home = net.node(0).attachment(client).expect("attached");
    net.broken.insert((client, home));
    net.broken.insert((home, client));
    net.run(Duration::from_secs(20));
    let mut others = peers();
    others.remove(&home);
    let expected = attached_to(client, others.iter().copied());
    for mesh in net.nodes.values() {
        assert_eq!(mesh.attachment(client), expected);
        assert!(!mesh.is_down(client), "it contradicts whoever says so");
        assert_eq!(mesh.is_down(home), mesh.node() == client);
    }
    net.broken.clear();
    net.run(Duration::from_secs(10));
    assert_attached(&net, &peers());
}

/// Clients do not help to find out who has failed, so they must not count where it is decided
/// how many have to.
#[test]
fn a_peer_that_fails_among_few_is_found_by_all() {
    let mut net = Net::with_members(7, 6);
    net.run_until_agreed(LIMIT).expect("agree");
    for client in 3..6 {
        assert!(net.node(client).set_client(true).expect("in bounds"));
    }
    net.run(Duration::from_secs(5));
    net.run_until_agreed(LIMIT).expect("agree");
    net.nodes.remove(&node(1));
    net.run(Duration::from_secs(10));
    let down = |mesh: &Mesh| mesh.down().eq([node(1)]);
    assert!(net.nodes.values().all(down), "the clients, too");
}
