//! Who may admit, announce and evict (M4): an eviction is final wherever it is known.

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::{
    Net, WALL, admit, ask, events, founder, identity, join, joining, mesh_of, profile, terms,
    transmits, wg,
};
use selvedge_mesh::rumor::{Accusation, Rumor};
use selvedge_mesh::wire::{Envelope, Message, News, Probe, Records, RefusedReason, Summary};
use selvedge_mesh::{
    Certificate, Config, Event, Grant, Invite, JoinError, Mesh, MeshError, Raw, Record, Role,
    Signed, State, UnixTime,
};
use selvedge_model::{NodeId, Prefix, Time};

fn id(number: u32) -> NodeId {
    identity(number).node_id()
}

fn prefix(text: &str) -> Prefix {
    text.parse().expect("a prefix")
}

fn grant(prefixes: &[&str], may_invite: bool) -> Grant {
    let prefixes = prefixes.iter().map(|text| prefix(text)).collect();
    Grant { prefixes, may_invite, ..Grant::default() }
}

/// An invite that was made so many seconds after all else.
fn invite(by: &Mesh, number: u8, grant: Grant, later: u64) -> Result<Signed<Invite>, MeshError> {
    let wall = UnixTime(WALL.0 + later);
    by.invite(selvedge_mesh::InviteTerms { grant, ..terms(number, 100) }, wall)
}

/// Admits a node by `by`, whoever that is.
fn admitted(by: &mut Mesh, number: u32, grant: Grant) -> Mesh {
    let invite = invite(by, 9, grant, 0).expect("it may");
    mesh_of(number, join(by, &joining(number, &invite), id(number)).expect("admitted"))
}

/// The founder (0), 1 to `count` by the founder, of whom 1 may invite and has admitted 100 and 101.
fn net(seed: u64, count: u32) -> Net {
    let mut net = Net::new(seed);
    let mut founder = founder();
    let mut inviter = admitted(&mut founder, 1, grant(&["10.0.0.0/8"], true));
    let guests =
        [100, 101].map(|number| admitted(&mut inviter, number, grant(&["10.7.0.0/16"], false)));
    let others: Vec<Mesh> = (2..=count).map(|number| admit(&mut founder, number)).collect();
    for mesh in others.into_iter().chain(guests).chain([founder, inviter]) {
        net.add(mesh);
    }
    net.run(Duration::from_secs(20));
    net.run_until_agreed(Duration::from_secs(20)).expect("they agree");
    net
}

/// Checks that nobody else knows a node as a member or a peer of WireGuard.
fn assert_gone(net: &mut Net, number: u32) {
    let nobody = |mesh: &Mesh| {
        !mesh.is_member(id(number)) && !mesh.desired_wireguard().contains_key(&wg(number))
    };
    let others = net.nodes.values().filter(|mesh| mesh.evicted().is_none());
    let knowing: Vec<NodeId> = others.filter(|mesh| !nobody(mesh)).map(Mesh::node).collect();
    assert_eq!(knowing, [], "they know {number} still");
}

fn is_member_of_all(net: &mut Net, number: u32) -> bool {
    net.nodes.values().filter(|mesh| mesh.evicted().is_none()).all(|m| m.is_member(id(number)))
}

/// What a node says of itself, as it travels.
fn own_record(mesh: &Mesh) -> Raw {
    let mut copy = State::decode(&mesh.snapshot()).map(|state| {
        let number = (0..200).find(|number| id(*number) == mesh.node()).expect("one of ours");
        mesh_of(number, state)
    });
    let copy = copy.as_mut().expect("its own");
    copy.handle_timeout(Time::ZERO, WALL);
    let mut sent = transmits(copy).into_iter();
    let introduction = sent.find_map(|(_, bytes)| {
        let message = Envelope::decode(&bytes).expect("our own").message;
        if let Message::Digest(summary) = message { summary.introduction } else { None }
    });
    introduction.expect("it introduces itself when it starts")
}

/// Lets `node` introduce itself to `to`.
fn greet(node: &Mesh, to: &mut Mesh) {
    let introduction = Some(own_record(node));
    let message =
        Message::Digest(Summary { hash: [0; 16], count: 0, introduction, evictions: None });
    let bytes = Envelope { mesh: to.id(), message }.encode();
    to.handle_message(node.node(), &bytes, Time::ZERO, WALL);
}

fn give_record(to: &mut Mesh, from: NodeId, raw: Raw) {
    let message = Message::Records(Records { records: vec![raw], ..Records::default() });
    let bytes = Envelope { mesh: to.id(), message }.encode();
    to.handle_message(from, &bytes, Time::ZERO, WALL);
}

#[test]
fn a_member_announces_what_its_invite_allows() {
    let mut founder = founder();
    let mut member = admitted(&mut founder, 1, grant(&["10.1.0.0/16", "fd12::/48"], false));
    let asked = ["10.1.2.0/24", "10.2.0.0/16", "10.0.0.0/8", "fd12::/64", "0.0.0.0/0"];
    member.set_routes(asked.iter().map(|text| prefix(text)).collect()).expect("in bounds");
    for seen in [member.member(id(1)), member.member(id(0))] {
        let seen = seen.expect("a member");
        let routes: Vec<Prefix> = seen.routes().collect();
        let expected = [prefix("10.1.2.0/24"), prefix("fd12::/64")];
        assert_eq!(routes, if seen.founder { &[][..] } else { &expected });
    }
    assert_eq!(member.member(id(1)).expect("a member").issuer, id(0));
}

#[test]
fn nobody_grants_more_than_it_was_granted() {
    let mut founder = founder();
    let mut inviter = admitted(&mut founder, 1, grant(&["10.0.0.0/8"], true));
    let guest = admitted(&mut inviter, 2, grant(&["10.7.0.0/16"], false));
    let mut client = admitted(&mut founder, 3, Grant { role: Role::Client, ..grant(&[], true) });
    let refused = |by: &Mesh, grant: Grant| {
        let error = invite(by, 5, grant, 0).expect_err("too much");
        assert!(matches!(error, MeshError::MayNotInvite { .. }), "{error}");
    };
    refused(&inviter, grant(&["10.0.0.0/7"], false));
    refused(&inviter, grant(&["10.1.0.0/16", "192.0.2.0/24"], false));
    refused(&inviter, grant(&["::/0"], false));
    refused(&inviter, grant(&[], true));
    refused(&client, Grant::default());
    refused(&guest, Grant::default());
    let by_client = Grant { role: Role::Client, ..Grant::default() };
    client.set_profile(profile(3)).expect("in bounds");
    invite(&client, 5, by_client, 0).expect("another client");
}

/// As above, by a member whose program does not check.
#[test]
fn who_may_be_an_exit_grants_that_and_no_networks() {
    let mut founder = founder();
    let inviter = admitted(&mut founder, 1, grant(&["0.0.0.0/0", "::/0"], true));
    assert!(invite(&inviter, 9, grant(&["0.0.0.0/0"], false), 0).is_ok());
    for more in ["10.0.0.0/8", "fd00::/8"] {
        let refused = invite(&inviter, 9, grant(&[more], false), 0);
        assert!(matches!(refused, Err(MeshError::MayNotInvite { .. })), "{more}");
    }
}

/// Whose key or address two members name, is decided by who was admitted first, and whoever
/// invites chooses the numbers of its own certificates.
#[test]
fn nobody_ranks_before_those_whom_an_earlier_inviter_admitted() {
    let mut founder = founder();
    let mut inviters = [1, 2].map(|number| admitted(&mut founder, number, grant(&[], true)));
    let guest = |mesh: &mut Mesh, number| admitted(mesh, number, grant(&[], false));
    let [early, late] = &mut inviters;
    for number in 100..104 {
        guest(early, number);
    }
    let ranks = |mesh: &Mesh, number| mesh.member(id(number)).expect("a member").serial;
    let last_of_early = ranks(&guest(early, 104), 104);
    let first_of_late = ranks(&guest(late, 105), 105);
    assert!(ranks(early, 1) < last_of_early && last_of_early < first_of_late);
}

#[test]
fn all_refuse_what_an_issuer_could_not_grant() {
    let mut founder = founder();
    let mut inviter = admitted(&mut founder, 1, grant(&["10.0.0.0/8"], true));
    let guest = admitted(&mut inviter, 2, Grant::default());
    let raw = own_record(&guest);
    let record = Signed::<Record>::verify(raw.clone()).expect("valid").value().clone();
    let own = Signed::<Certificate>::verify(record.certificate.clone()).expect("valid");
    let own = own.value().clone();
    let forged = |certificate: Certificate| {
        let certificate = Signed::sign(certificate, &identity(1)).expect("in bounds").raw().clone();
        let record = Record { certificate, seq: 99, ..record.clone() };
        Signed::sign(record, &identity(2)).expect("in bounds").raw().clone()
    };
    let far = own.not_after + 1;
    let forgeries = [
        Certificate { prefixes: vec![prefix("192.0.2.0/24")], ..own.clone() },
        Certificate { may_invite: true, ..own.clone() },
        Certificate { not_after: far, ..own.clone() },
        Certificate { sponsor: None, ..own.clone() },
        Certificate { sponsor: Some(record.certificate.clone()), ..own.clone() },
    ];
    greet(&inviter, &mut founder);
    for (number, forgery) in (1..).zip(forgeries) {
        give_record(&mut founder, id(1), forged(forgery));
        assert_eq!(founder.rejections().get("record_certificate"), Some(&number));
    }
    assert!(!founder.is_member(id(2)));
    give_record(&mut founder, id(1), forged(own));
    assert!(founder.is_member(id(2)), "the same without a forgery");
}

#[test]
fn all_hear_of_an_eviction_and_so_does_the_evicted() {
    for seed in 0..4 {
        let mut net = net(seed, 9);
        (net.loss, net.double) = (100, 50);
        let gone = net.node(0).evict(id(4)).expect("the founder may");
        assert_eq!(gone, [id(4)]);
        net.run(Duration::from_secs(15));
        assert_gone(&mut net, 4);
        let evicted = net.node(4);
        assert_eq!(evicted.evicted().map(|e| (e.node, e.by)), Some((id(4), id(0))), "seed {seed}");
        assert!(evicted.desired_wireguard().is_empty() && evicted.poll_timeout().is_none());
        let told = Event::Evicted { node: id(4), by: id(0) };
        for number in [2, 4] {
            assert!(events(net.node(number)).contains(&told), "seed {seed}, node {number}");
        }
        assert!(events(net.node(3)).contains(&Event::MemberLeft(id(4))));
        assert!(is_member_of_all(&mut net, 5), "and nobody else");
    }
}

#[test]
fn an_eviction_costs_little_once_it_is_known() {
    let mut net = net(1, 9);
    let traffic = |net: &mut Net| {
        let before = net.bytes;
        net.run(Duration::from_secs(60));
        net.bytes - before
    };
    let before = traffic(&mut net);
    net.node(0).evict(id(4)).expect("the founder may");
    net.run(Duration::from_secs(15));
    let after = traffic(&mut net);
    // A few bytes in every probe, none in its answer, and one node less.
    assert!(after * 100 < before * 103, "{before} bytes before, {after} after");
}

#[test]
fn with_who_may_invite_go_those_whom_it_admitted() {
    let mut net = net(2, 6);
    let gone: BTreeSet<NodeId> = net.node(0).evict(id(1)).expect("it may").into_iter().collect();
    assert_eq!(gone, [id(1), id(100), id(101)].into());
    net.run(Duration::from_secs(15));
    for number in [1, 100, 101] {
        assert_gone(&mut net, number);
        let by = net.node(number).evicted().map(|eviction| eviction.node);
        assert_eq!(by, Some(id(1)), "node {number} knows by whose eviction it is out");
    }
    // Its key may be in the wrong hands: what it signs now is worth nothing.
    let mut thief = mesh_of(1, State::decode(&net.node(1).snapshot()).expect("its own"));
    assert!(invite(&thief, 3, Grant::default(), 50).is_err());
    assert!(thief.evict(id(100)).is_err());
}

#[test]
fn who_may_invite_evicts_those_alone_whom_it_admitted() {
    let mut net = net(3, 6);
    for (by, node) in [(1, 4), (1, 0), (1, 1), (2, 100), (2, 3), (100, 101), (0, 0)] {
        let error = net.node(by).evict(id(node)).expect_err("it may not");
        assert!(matches!(error, MeshError::MayNotEvict { .. }), "{by} {node}: {error}");
    }
    assert_eq!(net.node(1).evict(id(100)).expect("it admitted it"), [id(100)]);
    net.run(Duration::from_secs(15));
    assert_gone(&mut net, 100);
    assert!(is_member_of_all(&mut net, 101));
}

#[test]
fn an_eviction_wins_when_a_partition_ends() {
    for seed in 0..4 {
        let mut net = net(seed, 8);
        net.island = [4, 5, 6, 100].map(id).into();
        net.run(Duration::from_secs(30));
        net.node(0).evict(id(4)).expect("the founder may");
        // On its side of the partition nobody knows, and it says something new meanwhile.
        net.node(4).set_alias("still here".into()).expect("in bounds");
        net.run(Duration::from_secs(30));
        assert!(net.node(5).is_member(id(4)), "nobody told it");
        net.island.clear();
        net.run(Duration::from_secs(60));
        assert_gone(&mut net, 4);
        let mut digests =
            net.nodes.values_mut().filter(|m| m.evicted().is_none()).map(Mesh::digest);
        let first = digests.next();
        assert!(digests.all(|digest| Some(digest) == first), "seed {seed}");
        assert!(net.node(4).evicted().is_some(), "seed {seed}");
    }
}

#[test]
fn nothing_that_it_said_or_says_brings_it_back() {
    let mut net = net(5, 5);
    let old = own_record(net.node(4));
    let kept = net.node(4).snapshot();
    net.node(0).evict(id(4)).expect("the founder may");
    net.run(Duration::from_secs(10));
    // A copy of it that has not heard, with a greater sequence number.
    let mut zombie = mesh_of(4, State::decode(&kept).expect("its own"));
    zombie.set_alias("back".into()).expect("in bounds");
    let new = own_record(&zombie);
    zombie.leave().expect("it does not know");
    let before = net.node(2).digest();
    events(net.node(2));
    for raw in [old, new] {
        give_record(net.node(2), id(3), raw);
    }
    assert_eq!(net.node(2).digest(), before);
    assert_eq!(net.node(2).rejections().get("evicted"), Some(&2));
    assert!(events(net.node(2)).iter().all(|event| !matches!(event, Event::Rejected { .. })));
    assert_gone(&mut net, 4);
}

#[test]
fn an_eviction_survives_restarts() {
    let mut net = net(6, 4);
    net.node(0).evict(id(3)).expect("the founder may");
    net.run(Duration::from_secs(10));
    for number in [2, 3] {
        let kept = State::decode(&net.node(number).snapshot()).expect("its own");
        let restarted = mesh_of(number, kept);
        assert_eq!(restarted.evicted().is_some(), number == 3);
        assert_eq!(restarted.evictions().count(), 1);
        assert!(!restarted.desired_wireguard().contains_key(&wg(3)));
    }
}

#[test]
fn who_was_evicted_comes_back_with_a_new_invite_alone() {
    let mut net = net(7, 5);
    let token = invite(net.node(0), 7, Grant::default(), 0).expect("the founder may");
    net.node(0).evict(id(4)).expect("the founder may");
    net.run(Duration::from_secs(10));
    let refused = join(net.node(0), &joining(4, &token), id(4)).expect_err("an old invite");
    let reason = Some(RefusedReason::Evicted);
    assert!(matches!(&refused, JoinError::Refused { reason: r, .. } if *r == reason), "{refused}");
    let by_member = invite(net.node(1), 7, Grant::default(), 60).expect("it may invite");
    let refused = join(net.node(1), &joining(4, &by_member), id(4)).expect_err("not the founder's");
    assert!(matches!(refused, JoinError::Refused { reason: r, .. } if r == reason));
    let token = invite(net.node(0), 8, Grant::default(), 60).expect("the founder may");
    let state = join(net.node(0), &joining(4, &token), id(4)).expect("a new invite");
    net.add(mesh_of(4, state));
    net.run(Duration::from_secs(20));
    net.run_until_agreed(Duration::from_secs(20)).expect("they agree");
    assert!(net.node(4).evicted().is_none() && is_member_of_all(&mut net, 4));
    // And goes again.
    net.node(0).evict(id(4)).expect("the founder may");
    net.run(Duration::from_secs(10));
    assert_gone(&mut net, 4);
}

/// A certificate is given again to who lost it, but not to who lost its place.
#[test]
fn asking_again_is_no_way_back() {
    let mut net = net(8, 3);
    let token = invite(net.node(0), 7, Grant::default(), 0).expect("the founder may");
    let again = joining(50, &token);
    ask(net.node(0), &again, id(50));
    join(net.node(0), &again, id(50)).expect("the same certificate");
    net.node(0).evict(id(50)).expect("known by its certificate alone");
    assert!(join(net.node(0), &again, id(50)).is_err());
}

/// It is the same member again, with what was on its disk when it was switched off.
fn switched_on(net: &mut Net, number: u32, disk: &[u8]) {
    let state = State::decode(disk).expect("its own");
    let (now, wall) = (net.now, net.wall);
    let seed = u64::from(number);
    let mesh = Mesh::new(identity(number), state, Config::default(), seed, now, wall);
    net.add(mesh.expect("its own"));
}

fn switched_off(net: &mut Net, number: u32) -> Vec<u8> {
    net.nodes.remove(&id(number)).expect("it runs").snapshot()
}

#[test]
fn who_was_away_for_days_hears_that_it_is_out() {
    for (seed, number, by) in [(0, 4, 0), (1, 100, 1)] {
        let mut net = net(seed, 5);
        let disk = switched_off(&mut net, number);
        net.run(Duration::from_secs(10));
        net.node(by).evict(id(number)).expect("it may");
        net.pass_days(3);
        switched_on(&mut net, number, &disk);
        net.run(Duration::from_secs(180));
        let evicted = net.node(number).evicted().map(|eviction| (eviction.node, eviction.by));
        assert_eq!(evicted, Some((id(number), id(by))), "seed {seed}");
        assert_gone(&mut net, number);
    }
}

#[test]
fn who_was_away_for_days_learns_who_is_out_before_who_is_in() {
    for seed in 0..3 {
        let mut net = net(seed, 6);
        let disk = switched_off(&mut net, 4);
        net.run(Duration::from_secs(10));
        // One that runs on and goes on talking, for nobody tells it.
        let zombie = net.node(3).snapshot();
        net.node(0).evict(id(3)).expect("the founder may");
        net.pass_days(3);
        net.nodes.remove(&id(3));
        switched_on(&mut net, 3, &zombie);
        net.island = [id(3)].into();
        switched_on(&mut net, 4, &disk);
        for _ in 0..1800 {
            net.run(Duration::from_millis(100));
            let back = net.node(4);
            let others = back.members().count() - 1;
            // One or two may have called on it themselves; of the rest it hears from these.
            let learnt = others <= 2 || back.evictions().count() == 1;
            assert!(learnt, "seed {seed}: it knows {others} and no eviction");
            assert!(!back.is_member(id(3)), "seed {seed}");
        }
        assert!(net.node(4).is_member(id(0)) && is_member_of_all_but(&mut net, 4, 3));
    }
}

fn is_member_of_all_but(net: &mut Net, number: u32, but: u32) -> bool {
    let others = net.nodes.values().filter(|mesh| mesh.node() != id(but));
    others.clone().all(|mesh| mesh.is_member(id(number)))
}

const DAY: i64 = 86_400;

#[test]
fn an_eviction_by_who_has_a_wrong_clock_counts() {
    for (seed, astray) in [(0, DAY + 3600), (1, -DAY - 3600), (2, -2 * DAY)] {
        let mut net = net(seed, 6);
        net.loss = 100;
        net.astray.insert(id(1), astray);
        net.run(Duration::from_secs(30));
        // On its side of a partition, so that nobody hears of it at once.
        net.island = [id(1)].into();
        net.run(Duration::from_secs(5));
        net.node(1).evict(id(100)).expect("it admitted it");
        net.run(Duration::from_secs(5));
        net.island.clear();
        net.run(Duration::from_secs(120));
        assert_gone(&mut net, 100);
        assert!(net.node(100).evicted().is_some(), "{astray} s: it knows");
        assert!(net.node(2).is_member(id(101)), "{astray} s: and nobody else");
    }
}

/// Tells a node what time it is.
fn set_clock(mesh: &mut Mesh, later: i64) {
    mesh.handle_timeout(Time::ZERO, UnixTime(WALL.0.saturating_add_signed(later)));
    transmits(mesh);
}

#[test]
fn no_clock_decides_whether_an_invite_or_an_eviction_came_first() {
    for clocks in [[DAY, 0, 0], [0, DAY, 0], [0, 0, 0], [-DAY, DAY, -DAY], [DAY, -DAY, 0]] {
        let mut founder = founder();
        let mut inviter = admitted(&mut founder, 1, grant(&[], true));
        let [old, evicted, new] = clocks;
        let token = |inviter: &Mesh, number, at: i64| {
            let wall = UnixTime(WALL.0.saturating_add_signed(at));
            let not_after = UnixTime(WALL.0 + 10 * 86_400);
            let terms = selvedge_mesh::InviteTerms { not_after, ..terms(number, 100) };
            inviter.invite(terms, wall).expect("it may")
        };
        set_clock(&mut inviter, old);
        let first = token(&inviter, 1, old);
        join(&mut inviter, &joining(50, &first), id(50)).expect("admitted");
        set_clock(&mut inviter, evicted);
        inviter.evict(id(50)).expect("it admitted it");
        set_clock(&mut inviter, new);
        let refused = join(&mut inviter, &joining(50, &first), id(50)).expect_err("an old one");
        let reason = Some(RefusedReason::Evicted);
        assert!(
            matches!(refused, JoinError::Refused { reason: r, .. } if r == reason),
            "{clocks:?}"
        );
        let second = token(&inviter, 2, new);
        join(&mut inviter, &joining(50, &second), id(50)).expect("a new one");
    }
}

/// Who was evicted and came back does not admit with what it signed before.
#[test]
fn invites_go_with_who_made_them() {
    let mut founder = founder();
    let inviter = admitted(&mut founder, 1, grant(&[], true));
    let old = invite(&inviter, 5, Grant::default(), 0).expect("it may");
    founder.evict(id(1)).expect("the founder may");
    let token = invite(&founder, 10, grant(&[], true), 60).expect("the founder may");
    let state = join(&mut founder, &joining(1, &token), id(1)).expect("a new invite");
    let mut back = mesh_of(1, state);
    let reason = Some(RefusedReason::Evicted);
    let refused = join(&mut back, &joining(50, &old), id(50)).expect_err("of before");
    assert!(matches!(&refused, JoinError::Refused { reason: r, .. } if *r == reason), "{refused}");
    let new = invite(&back, 6, Grant::default(), 0).expect("it may");
    join(&mut back, &joining(50, &new), id(50)).expect("of now");
}

#[test]
fn who_has_evicted_as_many_as_it_may_is_told_so() {
    let mut founder = founder();
    let mut inviter = admitted(&mut founder, 1, grant(&[], true));
    let unknown = |number: u32| {
        let mut node = [7; 32];
        node[..4].copy_from_slice(&number.to_be_bytes());
        NodeId(node)
    };
    for number in 0..1024 {
        inviter.evict(unknown(number)).expect("there is room");
        transmits(&mut inviter);
        events(&mut inviter);
    }
    let error = inviter.evict(unknown(1024)).expect_err("no room");
    assert!(error.to_string().contains("the founder may evict it"), "{error}");
    assert_eq!(inviter.evictions().count(), 1024);
    inviter.evict(unknown(3)).expect("again");
}

/// How many evictions one node has to send to another.
fn evictions_for(mesh: &mut Mesh, to: NodeId) -> usize {
    let sent = transmits(mesh).into_iter().filter(|(node, _)| *node == to);
    let messages = sent.map(|(_, bytes)| Envelope::decode(&bytes).expect("our own").message);
    let count = |message| {
        let Message::Records(records) = message else { return 0 };
        records.evictions.len()
    };
    messages.map(count).sum()
}

#[test]
fn who_says_that_it_holds_no_evictions_is_told_a_few_at_a_time() {
    let mut net = net(4, 4);
    net.island = [id(3)].into();
    for number in 1000..1200 {
        net.node(0).evict(id(number)).expect("the founder may");
    }
    net.run(Duration::from_secs(10));
    let (now, wall) = (net.now, net.wall);
    let founder = net.node(0);
    transmits(founder);
    let probe = Probe { number: 1, hash: [0; 8], down: None, lives: None, evictions: None };
    let ask = Envelope { mesh: founder.id(), message: Message::Ping(probe) }.encode();
    let mut told = 0;
    for tenth in 0..150 {
        let now = now + Duration::from_millis(100 * tenth);
        founder.handle_message(id(3), &ask, now, wall);
        founder.handle_timeout(now, wall);
        told += evictions_for(founder, id(3));
    }
    assert!((1..=64).contains(&told), "{told}");
    net.now = now + Duration::from_secs(15);
    net.island.clear();
    net.run_until_agreed(Duration::from_secs(60)).expect("it compares the rest");
    assert_eq!(net.node(3).evictions().count(), 200);
}

fn accusation(net: &mut Net, by: u32, target: u32) -> Raw {
    let (mesh, accuser, target) = (net.node(0).id(), id(by), id(target));
    let accusation = Accusation { mesh, accuser, target, incarnation: 0 };
    Signed::sign(accusation, &identity(by)).expect("in bounds").raw().clone()
}

/// Tells node 2 that some accuse another. Whether it believes that.
fn believes(net: &mut Net, accusers: &[u32], target: u32) -> bool {
    let accusations = accusers.iter().map(|by| accusation(net, *by, target)).collect();
    let rumors = vec![Rumor { alive: None, accusations }];
    let news = News { entries: Records::default(), rumors };
    let (now, wall, mesh) = (net.now, net.wall, net.node(0).id());
    let bytes = Envelope { mesh, message: Message::News(news) }.encode();
    net.node(2).handle_message(id(5), &bytes, now, wall);
    net.node(2).is_down(id(target))
}

#[test]
fn those_whom_one_member_admitted_are_one_voice() {
    let mut net = net(9, 6);
    assert!(!believes(&mut net, &[100, 101], 3), "two guests of one member");
    assert!(!believes(&mut net, &[100, 1], 3), "and that one");
    assert!(!believes(&mut net, &[1, 100, 101], 0));
    assert_eq!(net.node(2).rejections().get("rumor"), Some(&3));
    assert!(believes(&mut net, &[100, 4], 3), "and another");
    assert!(believes(&mut net, &[4, 5], 6), "two of the founder's");
    assert!(believes(&mut net, &[1, 101], 100), "whom it admitted itself");
}

#[test]
fn what_the_evicted_said_of_others_lives_counts_no_more() {
    let mut net = net(10, 6);
    assert!(believes(&mut net, &[4, 5], 3) && believes(&mut net, &[5, 0], 6));
    assert!(believes(&mut net, &[100, 5], 101));
    events(net.node(2));
    let (now, wall) = (net.now, net.wall);
    net.node(0).evict(id(4)).expect("the founder may");
    net.node(0).evict(id(1)).expect("the founder may");
    // Whoever is told, it is the same.
    for (_, bytes) in transmits(net.node(0)) {
        net.node(2).handle_message(id(0), &bytes, now, wall);
    }
    assert!(!net.node(2).is_member(id(4)) && !net.node(2).is_down(id(3)), "4 said so");
    assert!(net.node(2).is_down(id(6)), "others said so");
    assert!(events(net.node(2)).contains(&Event::MemberUp(id(3))));
    assert!(!believes(&mut net, &[4, 5], 3));
}

/// All but the founder came by one member; and the same with a few others.
#[test]
fn failures_are_found_where_one_member_admitted_nearly_all() {
    for (seed, others) in [(0, 1), (1, 3)] {
        let mut net = net(seed, others);
        for number in 102..112 {
            let guest = admitted(net.node(1), number, grant(&[], false));
            net.add(guest);
        }
        net.run(Duration::from_secs(20));
        net.run_until_agreed(Duration::from_secs(20)).expect("they agree");
        let founders = if others == 1 { 0 } else { 2 };
        for dead in [105, founders, 106] {
            switched_off(&mut net, dead);
            net.run(Duration::from_secs(12));
            let unknowing: Vec<NodeId> =
                net.nodes.values().filter(|mesh| !mesh.is_down(id(dead))).map(Mesh::node).collect();
            assert_eq!(unknowing, [], "seed {seed}: they hold {dead} to be up");
        }
    }
}

/// A record of another whom a member admits, with a number that it chooses.
fn guest_record(inviter: &Mesh, number: u32, serial: u64) -> Raw {
    let sponsor = Signed::<Record>::verify(own_record(inviter)).expect("valid");
    let sponsor = sponsor.value().certificate.clone();
    let not_after = inviter.member(inviter.node()).expect("a member").not_after.0;
    let certificate = Certificate {
        mesh: inviter.id(),
        subject: id(number),
        wg: wg(number),
        role: Role::Peer,
        prefixes: vec![],
        may_invite: false,
        not_after,
        serial,
        issuer: inviter.node(),
        sponsor: Some(sponsor),
        pardons: 0,
        guests: None,
    };
    let certificate = Signed::sign(certificate, &identity(1)).expect("in bounds").raw().clone();
    let (profile, life) = (profile(number), selvedge_mesh::Life::default());
    let (mesh, node) = (inviter.id(), id(number));
    let record = Record { mesh, node, seq: 1, certificate, profile, life };
    Signed::sign(record, &identity(number)).expect("in bounds").raw().clone()
}

#[test]
fn nobody_admits_more_than_it_may() {
    let mut founder = founder();
    let few = Grant { guests: Some(2), ..grant(&[], true) };
    let mut inviter = admitted(&mut founder, 1, few);
    let token = invite(&inviter, 9, Grant::default(), 0).expect("it may");
    let ask_for = |inviter: &mut Mesh, number| join(inviter, &joining(number, &token), id(number));
    ask_for(&mut inviter, 50).expect("the first");
    ask_for(&mut inviter, 51).expect("the second");
    ask_for(&mut inviter, 50).expect("asking again is no third");
    let refused = ask_for(&mut inviter, 52).expect_err("a third");
    let reason = Some(RefusedReason::Full);
    assert!(matches!(&refused, JoinError::Refused { reason: r, .. } if *r == reason), "{refused}");
    inviter.evict(id(51)).expect("it admitted it");
    ask_for(&mut inviter, 52).expect("there is room again");
}

/// Also a member whose program does not count; all hold the same of them, in whatever order they
/// come.
#[test]
fn of_too_many_guests_the_first_are_held() {
    let mut founder = founder();
    let few = Grant { guests: Some(2), ..grant(&[], true) };
    let inviter = admitted(&mut founder, 1, few);
    let guests = [(50, 9), (51, 3), (52, 7), (53, 3)];
    let mut kept = guests.map(|(number, serial)| (serial, id(number)));
    kept.sort_unstable();
    for turn in 0..guests.len() {
        let mut observer = admit(&mut founder, 2);
        greet(&inviter, &mut observer);
        for (number, serial) in guests.iter().cycle().skip(turn).take(guests.len()) {
            give_record(&mut observer, id(1), guest_record(&inviter, *number, *serial));
        }
        let held = kept.map(|(_, node)| observer.is_member(node));
        assert_eq!(held, [true, true, false, false], "{turn}");
    }
}
