//! Clients are watched by the peer they are attached to, probe that one alone, and move by
//! themselves.

mod common;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use common::{Net, WALL, events, identity, transmits};
use selvedge_mesh::wire::{Call, Envelope, Message};
use selvedge_mesh::{Event, Mesh, Role, attached_to};
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
    for mesh in (0..PEERS).filter_map(|number| net.nodes.get(&node(number))) {
        let ours = |client: &NodeId| mesh.attachment(*client) == Some(mesh.node());
        let clients = mesh.members().map(|member| member.node).filter(ours);
        assert!(mesh.wards().eq(clients), "{} watches those that it serves", mesh.node());
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
    net.node(2).set_drained(false).expect("in bounds");
    net.run(Duration::from_secs(3));
    assert_attached(&net, &BTreeSet::from([node(2)]));
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

fn call(from: u32, to: u32) -> Call {
    Call { from: node(from), to: node(to), number: 7, word: 1, seen: None, yours: None }
}

fn number_of(wanted: NodeId) -> u32 {
    (0..PEERS + CLIENTS).find(|number| node(*number) == wanted).expect("a member")
}

/// What a node does with a call that comes from `by`.
fn hear(net: &mut Net, at: u32, by: NodeId, call: Call) -> Vec<Event> {
    let mesh = net.node(at);
    drop((events(mesh), transmits(mesh)));
    let bytes = Envelope { mesh: mesh.id(), message: Message::Call(call) }.encode();
    let now = net.now;
    net.node(at).handle_message(by, &bytes, now, WALL);
    events(net.node(at))
}

/// The one message that a node sends.
fn sent(mesh: &mut Mesh) -> (NodeId, Call) {
    let (to, bytes) = transmits(mesh).pop().expect("it sends something");
    match Envelope::decode(&bytes).map(|sent| sent.message) {
        Ok(Message::Call(call)) => (to, call),
        other => panic!("{other:?} is no call"),
    }
}

#[test]
fn what_a_client_says_to_another_passes_by_the_peers_of_both() {
    let mut net = net(8);
    let clients = PEERS..PEERS + CLIENTS;
    let place = |last| Some(SocketAddr::from(([198, 51, 100, last], 9)));
    let mut legs = BTreeSet::new();
    for (from, to) in clients.clone().flat_map(|a| clients.clone().map(move |b| (a, b))) {
        if from == to {
            continue;
        }
        let [first, last] =
            [from, to].map(|it| net.node(0).attachment(node(it)).expect("attached"));
        drop(transmits(net.node(from)));
        // What a client says of its own place is nobody's to believe.
        net.node(from).call(Call { seen: place(66), ..call(from, to) });
        assert_eq!(sent(net.node(from)), (first, call(from, to)));
        let by = number_of(first);
        let claimed = Call { seen: place(66), yours: place(66), ..call(from, to) };
        assert_eq!(hear(&mut net, by, node(from), claimed), [Event::Passing(call(from, to))]);
        let seen = Call { seen: place(1), ..call(from, to) };
        net.node(by).pass_on(seen);
        let (next, mut passed) = sent(net.node(by));
        if first != last {
            assert_eq!((next, passed), (last, seen));
            let heard = hear(&mut net, number_of(last), first, passed);
            assert_eq!(heard, [Event::Passing(seen)]);
            net.node(number_of(last)).pass_on(Call { yours: place(2), ..seen });
            passed = sent(net.node(number_of(last))).1;
        }
        assert_eq!(hear(&mut net, to, last, passed), [Event::Called(passed)]);
        legs.insert(first == last);
    }
    assert_eq!(legs.len(), 2, "by one peer, and by two");
}

#[test]
fn nobody_speaks_for_clients_that_are_not_its_own() {
    let mut net = net(9);
    let home = |net: &mut Net, it| net.node(0).attachment(node(it)).expect("attached");
    let from = PEERS;
    let first = home(&mut net, from);
    let mut others = PEERS + 1..PEERS + CLIENTS;
    let to = others.find(|it| home(&mut net, *it) != first).expect("not all have one peer");
    let last = home(&mut net, to);
    let strangers = (0..PEERS).map(node).filter(|peer| *peer != first && *peer != last);
    for peer in strangers.chain([node(PEERS + CLIENTS - 1)]) {
        assert_eq!(hear(&mut net, number_of(last), peer, call(from, to)), []);
        assert_eq!(hear(&mut net, to, peer, call(from, to)), []);
    }
    // Nor is it of use to be a client, or a peer, of others.
    for wrong in (0..PEERS).filter(|peer| node(*peer) != first) {
        assert_eq!(hear(&mut net, wrong, node(from), call(from, to)), []);
    }
    assert_eq!(hear(&mut net, number_of(first), last, call(from, to)), []);
    // A peer that is attached to nobody has nobody to call by.
    drop(transmits(net.node(0)));
    net.node(0).call(call(0, to));
    assert_eq!(transmits(net.node(0)), []);
}

#[test]
fn who_calls_without_end_is_not_passed_on() {
    let mut net = net(10);
    let (from, to) = (PEERS, PEERS + 1);
    let home = net.node(0).attachment(node(from)).expect("attached");
    let passed = (0..5000)
        .filter(|_| !hear(&mut net, number_of(home), node(from), call(from, to)).is_empty());
    assert!((1..=2500).contains(&passed.count()));
}
