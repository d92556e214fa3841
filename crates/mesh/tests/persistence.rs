//! A restart keeps identity, address and the last known state (M7).

mod common;

use std::time::Duration;

use common::{Net, WALL, admit, founder, identity, join, joining, mesh_of, profile, wg};
use proptest::prelude::*;
use selvedge_mesh::{Config, Mesh, MeshError, SnapshotError, State};
use selvedge_model::Time;

const LIMIT: Duration = Duration::from_secs(120);

fn settled() -> Net {
    let mut net = Net::with_members(1, 6);
    net.run_until_agreed(LIMIT).expect("agree");
    net.node(5).leave().expect("a member");
    net.run(Duration::from_secs(20));
    net.nodes.remove(&identity(5).node_id());
    assert!(net.agreed());
    net
}

#[test]
fn a_restart_keeps_everything() {
    let mut net = settled();
    let before = net.node(2);
    let state = State::decode(&before.snapshot()).expect("just written");
    assert_eq!(state.wg(), Some(wg(2)));
    let mut after = mesh_of(2, state);
    assert_eq!(after.address(), before.address());
    assert_eq!(after.node(), before.node());
    assert_eq!(after.digest(), before.digest());
    assert_eq!(after.desired_wireguard(), before.desired_wireguard());
    assert_eq!(after.members().collect::<Vec<_>>(), before.members().collect::<Vec<_>>());
    assert_eq!(after.snapshot(), before.snapshot());
    assert_eq!(after.genesis().name, "campus");
}

#[test]
fn a_node_that_was_away_catches_up() {
    let mut net = settled();
    let state = State::decode(&net.node(2).snapshot()).expect("just written");
    net.nodes.remove(&identity(2).node_id());
    net.node(3).set_profile(profile(33)).expect("in bounds");
    let newcomer = admit(net.node(0), 40);
    net.add(newcomer);
    net.run(Duration::from_secs(60));
    let now = net.now;
    let back = Mesh::new(identity(2), state, Config::default(), 99, now, WALL).expect("its own");
    net.add(back);
    net.run_until_agreed(LIMIT).expect("agree");
    assert_eq!(net.node(2).members().count(), 6);
}

/// A node that went back to an older copy of its disk, or joined anew under the same identity.
#[test]
fn a_node_that_forgot_its_last_words_outdoes_them() {
    let mut net = settled();
    let old = State::decode(&net.node(2).snapshot()).expect("just written");
    for number in [20, 21, 22] {
        net.node(2).set_profile(profile(number)).expect("in bounds");
    }
    net.run_until_agreed(LIMIT).expect("agree");
    let node = identity(2).node_id();
    let last = net.node(3).member(node).expect("a member").seq;
    net.nodes.remove(&node);
    let now = net.now;
    net.add(Mesh::new(identity(2), old, Config::default(), 7, now, WALL).expect("its own"));
    net.run(Duration::from_secs(60));
    assert!(net.agreed());
    let seen = net.node(3).member(node).expect("a member");
    assert_eq!(seen.profile, profile(2));
    assert_eq!(seen.seq, last + 1);
}

/// Two agents with one identity, say on a cloned disk, do not flood the mesh.
#[test]
fn twins_do_not_flood() {
    let mut net = settled();
    let twin = State::decode(&net.node(2).snapshot()).expect("just written");
    let mut twin = mesh_of(2, twin);
    twin.set_profile(profile(77)).expect("in bounds");
    // What each of them says reaches the other as a message of node 3.
    let node = identity(2).node_id();
    let third = identity(3).node_id();
    let start = net.node(3).member(node).expect("a member").seq;
    for _ in 0..50 {
        net.run(Duration::from_millis(200));
        let now = net.now;
        twin.handle_timeout(now, WALL);
        common::events(&mut twin);
        for (_, bytes) in common::transmits(&mut twin) {
            net.node(3).handle_message(node, &bytes, now, WALL);
        }
        for (to, bytes) in common::transmits(net.node(3)) {
            if to == node {
                twin.handle_message(third, &bytes, now, WALL);
                net.node(2).handle_message(third, &bytes, now, WALL);
            }
        }
    }
    let said = net.node(3).member(node).expect("a member").seq - start;
    assert!((1..=12).contains(&said), "{said} records in 10 s");
}

#[test]
fn the_state_of_another_node_is_refused() {
    let state = common::found();
    let error = Mesh::new(identity(1), state, Config::default(), 1, Time::ZERO, WALL);
    assert!(matches!(error, Err(MeshError::ForeignState { .. })));
}

#[test]
fn what_is_wrong_with_a_snapshot_is_named() {
    let whole = founder().snapshot();
    assert_eq!(State::decode(b""), Err(SnapshotError::NotASnapshot));
    assert_eq!(State::decode(b"hello"), Err(SnapshotError::NotASnapshot));
    for len in 4..whole.len() {
        assert_eq!(State::decode(&whole[..len]), Err(SnapshotError::Checksum), "{len}");
    }
    let mut newer = whole.clone();
    newer[4] = 9;
    let error = State::decode(&newer).expect_err("newer");
    assert_eq!(error.to_string(), "the state has version 9, which is not known here (known: 1)");
    for index in 5..whole.len() {
        let mut changed = whole.clone();
        changed[index] ^= 0x10;
        assert_eq!(State::decode(&changed), Err(SnapshotError::Checksum), "{index}");
    }
}

/// Behind a right checksum the entries are verified all the same.
#[test]
fn a_forged_snapshot_is_refused() {
    let mut net = settled();
    let whole = net.node(2).snapshot();
    let body = &whole[21..];
    let (mut refused, mut same) = (0, 0);
    for index in (0..body.len()).step_by(7) {
        let mut forged = body.to_vec();
        forged[index] ^= 1;
        match State::decode(&State::frame(&forged)) {
            Err(SnapshotError::Checksum | SnapshotError::NotASnapshot) => panic!("a right header"),
            Err(_) => refused += 1,
            Ok(_) => same += 1,
        }
    }
    // The name of the mesh, the salt's use aside, is not signed in a snapshot.
    assert!(refused > 50 * same, "{refused} refused, {same} accepted");
}

#[test]
fn who_joins_again_under_the_same_identity_outdoes_its_past() {
    let mut founder = founder();
    let mut first = admit(&mut founder, 1);
    first.set_profile(profile(9)).expect("in bounds");
    let state = State::decode(&first.snapshot()).expect("just written");
    assert_eq!(state.profile(), Some(&profile(9)));
    let mut net = Net::new(1);
    net.add(founder);
    net.add(first);
    net.run_until_agreed(LIMIT).expect("agree");
    let invite = common::invite(net.node(0), 7, 1);
    let again = joining(1, &invite);
    let state = join(net.node(0), &again, identity(1).node_id()).expect("admitted");
    net.nodes.remove(&identity(1).node_id());
    net.add(mesh_of(1, state));
    net.run_until_agreed(LIMIT).expect("agree");
    let seen = net.node(0).member(identity(1).node_id()).expect("a member");
    assert_eq!(seen.profile, profile(1));
}

proptest! {
    #[test]
    fn random_snapshots_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(State::decode(&bytes).is_err());
        prop_assert!(State::decode(&State::frame(&bytes)).is_err());
    }

    #[test]
    fn random_messages_never_panic(
        kind in 0..30_u8,
        body in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut mesh = founder();
        let mut bytes = vec![0x84, 1, 0x54];
        bytes.extend(mesh.id().as_bytes());
        bytes.extend(minicbor::to_vec(kind).expect("encodes"));
        bytes.extend(body);
        let from = identity(1).node_id();
        mesh.handle_message(from, &bytes, Time::ZERO, WALL);
        prop_assert_eq!(mesh.members().count(), 1);
    }
}
