//! A record is written by its owner alone (M1), and who is no member is not heard.

mod common;

use common::{
    WALL, admit, ask, events, founder, identity, invite, join, joining, mesh_of, profile, terms,
    transmits, wg,
};
use selvedge_mesh::reconcile::{self, Ranges};
use selvedge_mesh::wire::{Envelope, Message, News, Records, RefusedReason, Summary};
use selvedge_mesh::{
    Certificate, Event, Identity, Invite, JoinError, Joining, Life, MAX_SEQ, Mesh, MeshError,
    Profile, Raw, Record, Rejection, Removal, Role, Signed, State, Statement, UnixTime,
};
use selvedge_model::{MeshId, NodeId, Time};

/// The founder, and a member that it knows.
fn pair() -> (Mesh, Mesh) {
    let mut founder = founder();
    let mut member = admit(&mut founder, 1);
    greet(&mut member, &mut founder);
    assert!(founder.is_member(member.node()));
    (founder, member)
}

/// Lets `node` introduce itself to `to`.
fn greet(node: &mut Mesh, to: &mut Mesh) {
    let introduction = own_record(node);
    let digest =
        Summary { hash: [0; 16], count: 0, introduction: Some(introduction), evictions: None };
    give(to, node.node(), Message::Digest(digest));
    transmits(to);
    events(to);
}

/// The record of a node, as it travels.
fn own_record(mesh: &Mesh) -> Raw {
    records_of(mesh, mesh.node()).records.swap_remove(0)
}

/// What `mesh` holds of a node.
fn records_of(mesh: &Mesh, node: NodeId) -> Records {
    // Ask a copy, as any member could.
    let state = State::decode(&mesh.snapshot()).expect("its own");
    let number = (0..1000).find(|n| identity(*n).node_id() == mesh.node()).expect("one of ours");
    let mut copy = mesh_of(number, state);
    let asker = copy.members().map(|m| m.node).find(|n| *n != mesh.node()).expect("a member");
    transmits(&mut copy);
    give(&mut copy, asker, want(node));
    let (_, bytes) = transmits(&mut copy).pop().expect("an answer");
    let message = Envelope::decode(&bytes).expect("our own format").message;
    let Message::Records(records) = message else { panic!("{message:?} is no answer") };
    records
}

/// Asks for what is held of a node.
fn want(node: NodeId) -> Message {
    Message::Ranges(Ranges { want: vec![reconcile::prefix(&node)], ..Ranges::default() })
}

fn give(to: &mut Mesh, from: NodeId, message: Message) {
    let bytes = Envelope { mesh: to.id(), message }.encode();
    to.handle_message(from, &bytes, Time::ZERO, WALL);
}

fn give_record(to: &mut Mesh, from: NodeId, raw: Raw) {
    give(to, from, Message::Records(Records { records: vec![raw], ..Records::default() }));
}

/// The record in `raw`, changed and signed anew.
fn resigned(raw: &Raw, signer: &Identity, change: impl FnOnce(&mut Record)) -> Raw {
    let mut record = Signed::<Record>::verify(raw.clone()).expect("valid").value().clone();
    change(&mut record);
    record.node = signer.node_id();
    Signed::sign(record, signer).expect("in bounds").raw().clone()
}

/// `change` must be refused, as `kind`, without a trace.
fn assert_refused(kind: &str, change: impl FnOnce(&mut Mesh, &Mesh)) {
    let (mut founder, member) = pair();
    let (digest, before) = (founder.digest(), founder.snapshot());
    change(&mut founder, &member);
    assert_eq!(founder.digest(), digest);
    assert_eq!(founder.snapshot(), before);
    assert_eq!(founder.rejections().get(kind), Some(&1), "{:?}", founder.rejections());
    let told = events(&mut founder);
    assert!(matches!(told.as_slice(), [Event::Rejected { .. }]), "{told:?}");
}

#[test]
fn a_forged_record_is_refused() {
    assert_refused("record_signature", |founder, member| {
        let mut raw = own_record(founder);
        let last = raw.bytes.len() - 1;
        raw.bytes[last] ^= 1;
        give_record(founder, member.node(), raw);
    });
}

#[test]
fn a_record_signed_by_another_is_refused() {
    assert_refused("record_signature", |founder, member| {
        // Its owner's name stays, another signs, with all that a member could know.
        let mut raw = own_record(founder);
        let forger = identity(1);
        let forged = resigned(&own_record(member), &forger, |record| record.seq = 9);
        raw.signature = forged.signature;
        give_record(founder, member.node(), raw);
    });
}

#[test]
fn a_record_with_anothers_certificate_is_refused() {
    assert_refused("record_certificate", |founder, member| {
        let stranger = identity(99);
        let raw = resigned(&own_record(member), &stranger, |_| {});
        give_record(founder, member.node(), raw);
    });
}

#[test]
fn a_certificate_that_a_member_signed_is_refused() {
    assert_refused("record_certificate", |founder, member| {
        let (issuer, friend) = (identity(1), identity(99));
        let certificate = certificate_by(founder, &issuer, friend.node_id());
        let raw = resigned(&own_record(member), &friend, |r| r.certificate = certificate);
        give_record(founder, member.node(), raw);
    });
}

#[test]
fn a_sequence_number_out_of_bounds_is_refused() {
    assert_refused("record_signature", |founder, member| {
        // `Signed::sign` would refuse it, so it is patched in and signed by hand.
        let raw = own_record(member);
        let record = Signed::<Record>::verify(raw).expect("valid").value().clone();
        let raw = sign_unchecked(&Record { seq: MAX_SEQ + 1, ..record }, 1);
        give_record(founder, member.node(), raw);
    });
}

#[test]
fn a_removal_by_another_is_refused() {
    assert_refused("record_signature", |founder, member| {
        let removal = Removal {
            mesh: founder.id(),
            node: founder.node(),
            seq: 99,
            life: Life::default(),
            certificate: certificate_in(&own_record(founder)),
        };
        give_removal(founder, member.node(), sign_unchecked(&removal, 1));
    });
}

#[test]
fn removals_of_made_up_nodes_are_refused() {
    let made_up = |founder: &Mesh, certificate: Raw| {
        let node = identity(99).node_id();
        let removal =
            Removal { mesh: founder.id(), node, seq: 99, certificate, life: Life::default() };
        Signed::sign(removal, &identity(99)).expect("in bounds").raw().clone()
    };
    // Another's certificate is none of its own, and a member's signature is not the founder's.
    assert_refused("record_certificate", |founder, member| {
        let raw = made_up(founder, certificate_in(&own_record(member)));
        give_removal(founder, member.node(), raw);
    });
    assert_refused("record_certificate", |founder, member| {
        let certificate = certificate_by(founder, &identity(1), identity(99).node_id());
        let raw = made_up(founder, certificate);
        give_removal(founder, member.node(), raw);
    });
}

fn give_removal(to: &mut Mesh, from: NodeId, raw: Raw) {
    give(to, from, Message::Records(Records { removals: vec![raw], ..Records::default() }));
}

/// The certificate in a record.
fn certificate_in(raw: &Raw) -> Raw {
    Signed::<Record>::verify(raw.clone()).expect("valid").value().certificate.clone()
}

/// A certificate that somebody signs by himself.
fn certificate_by(mesh: &Mesh, issuer: &Identity, subject: NodeId) -> Raw {
    let certificate = Certificate {
        mesh: mesh.id(),
        subject,
        wg: wg(99),
        role: Role::Peer,
        prefixes: vec![],
        may_invite: true,
        not_after: u64::MAX,
        serial: 7,
        issuer: issuer.node_id(),
        sponsor: None,
        pardons: 0,
        guests: None,
    };
    Signed::sign(certificate, issuer).expect("in bounds").raw().clone()
}

/// Signs without any check, with the key of the node of that number.
fn sign_unchecked<T: Statement>(value: &T, number: u32) -> Raw {
    use ed25519_dalek::Signer as _;
    let mut secret = [0x5e; 32];
    secret[..4].copy_from_slice(&number.to_be_bytes());
    let mut bytes = vec![T::VERSION];
    bytes.extend(minicbor::to_vec(value).expect("encodes"));
    let key = ed25519_dalek::SigningKey::from_bytes(&secret);
    let signature = key.sign(&[T::CONTEXT, &bytes].concat()).to_bytes();
    Raw { bytes, signature }
}

#[test]
fn replays_and_older_records_change_nothing() {
    let (mut founder, mut member) = pair();
    let first = own_record(&member);
    member.set_profile(profile(50)).expect("in bounds");
    let second = own_record(&member);
    give_record(&mut founder, member.node(), second.clone());
    let digest = founder.digest();
    events(&mut founder);
    for raw in [first, second] {
        give_record(&mut founder, member.node(), raw);
    }
    assert_eq!(founder.digest(), digest);
    assert_eq!(founder.member(member.node()).map(|m| m.profile), Some(profile(50)));
    assert_eq!(events(&mut founder), []);
    assert!(founder.rejections().is_empty());
}

#[test]
fn a_member_cannot_bring_back_who_left() {
    let (mut founder, member) = pair();
    let mut third = admit(&mut founder, 2);
    greet(&mut third, &mut founder);
    let old = own_record(&third);
    third.leave().expect("a member");
    let (_, bytes) = transmits(&mut third).pop().expect("tells somebody");
    founder.handle_message(third.node(), &bytes, Time::ZERO, WALL);
    assert!(!founder.is_member(third.node()));
    give_record(&mut founder, member.node(), old);
    assert!(!founder.is_member(third.node()));
    assert!(!founder.desired_wireguard().contains_key(&wg(2)));
    // Its own messages are not heard either.
    give(&mut founder, third.node(), want(member.node()));
    assert_eq!(founder.rejections()["not_a_member"], 1);
}

#[test]
fn who_is_held_as_removed_is_told_and_comes_back() {
    let (mut founder, mut member) = pair();
    let node = member.node();
    let kept = State::decode(&member.snapshot()).expect("its own");
    member.leave().expect("a member");
    for (_, bytes) in transmits(&mut member) {
        founder.handle_message(node, &bytes, Time::ZERO, WALL);
    }
    assert!(!founder.is_member(node));
    // It was started again from an older copy of its disk. What it shows is held here already.
    let mut zombie = mesh_of(1, kept);
    let introduction = Some(own_record(&zombie));
    let digest = Summary { hash: [0; 16], count: 0, introduction, evictions: None };
    give(&mut founder, node, Message::Digest(digest));
    let sent = transmits(&mut founder);
    let [(to, answer)] = sent.as_slice() else { panic!("{sent:?}") };
    assert_eq!(*to, node);
    zombie.handle_message(founder.node(), answer, Time::ZERO, WALL);
    zombie.handle_timeout(Time::ZERO, WALL);
    transmits(&mut zombie);
    greet(&mut zombie, &mut founder);
    assert!(founder.is_member(node));
}

#[test]
fn who_shows_an_older_record_is_sent_the_newer_one() {
    let (mut founder, mut member) = pair();
    let first = own_record(&member);
    member.set_profile(profile(50)).expect("in bounds");
    let second = own_record(&member);
    give_record(&mut founder, member.node(), second.clone());
    assert_eq!(transmits(&mut founder), [], "nobody else is to be told");
    give(
        &mut founder,
        member.node(),
        Message::Records(Records { records: vec![first; 100], ..Records::default() }),
    );
    let sent = transmits(&mut founder);
    let [(to, answer)] = sent.as_slice() else { panic!("one answer to many: {sent:?}") };
    assert_eq!(*to, member.node());
    let message = Envelope::decode(answer).expect("our own format").message;
    assert_eq!(message, Message::Records(Records { records: vec![second], ..Records::default() }));
}

/// What a joiner is told first fills one message. Its own removal must be in that.
#[test]
fn who_comes_back_to_a_large_mesh_outdoes_its_removal() {
    const COUNT: u32 = 400;
    let (mut founder, member) = pair();
    let id = |number: u32| identity(number).node_id();
    let last = (2..COUNT).max_by_key(|number| id(*number)).expect("not empty");
    let endpoints = vec![profile(1).endpoints[0].clone(); Profile::MAX_ENDPOINTS];
    let long = Profile { control: endpoints.clone(), endpoints, ..profile(1) };
    for number in 2..COUNT {
        let (mesh, node, profile) = (founder.id(), id(number), long.clone());
        let certificate = certificate_by(&founder, &identity(0), node);
        let record = Record { mesh, node, seq: 1, certificate, profile, life: Life::default() };
        let raw = Signed::sign(record, &identity(number)).expect("in bounds").raw().clone();
        give_record(&mut founder, member.node(), raw);
    }
    let certificate = certificate_by(&founder, &identity(0), id(last));
    let life = Life::default();
    let removal = Removal { mesh: founder.id(), node: id(last), seq: 2, certificate, life };
    let removal = Signed::sign(removal, &identity(last)).expect("in bounds").raw().clone();
    give_removal(&mut founder, member.node(), removal);
    let count = usize::try_from(COUNT).expect("small");
    assert_eq!(founder.members().count(), count - 1, "all but the one that left");
    transmits(&mut founder);
    let invite = invite(&founder, 77, 1);
    let state = join(&mut founder, &joining(last, &invite), id(last)).expect("admitted");
    let mut back = mesh_of(last, state);
    assert!(back.members().count() < count, "not all of them fit into one message");
    greet(&mut back, &mut founder);
    assert!(founder.is_member(id(last)));
}

#[test]
fn strangers_are_not_heard() {
    let stranger = identity(99).node_id();
    let none = Records::default();
    let refused =
        Message::Refused(selvedge_mesh::wire::Refused { reason: None, detail: String::new() });
    let messages = [
        Message::Same,
        Message::WhoAreYou,
        want(stranger),
        Message::Ranges(Ranges::default()),
        Message::News(News::default()),
        Message::Prune,
        Message::Records(none),
        refused,
    ];
    for message in messages {
        let (mut founder, _) = pair();
        give(&mut founder, stranger, message.clone());
        assert_eq!(transmits(&mut founder), [], "{message:?}");
        assert_eq!(founder.rejections()["not_a_member"], 1);
    }
}

#[test]
fn a_strangers_digest_is_answered_by_less() {
    let (mut founder, _) = pair();
    let digest = Summary { hash: [0; 16], count: 0, introduction: None, evictions: None };
    let question = Envelope { mesh: founder.id(), message: Message::Digest(digest) }.encode();
    founder.handle_message(identity(99).node_id(), &question, Time::ZERO, WALL);
    let sent = transmits(&mut founder);
    let [(_, answer)] = sent.as_slice() else { panic!("{sent:?}") };
    assert!(answer.len() < question.len());
}

#[test]
fn nobody_can_introduce_himself_as_another() {
    let (mut founder, member) = pair();
    let introduction = Some(own_record(&admit(&mut founder, 2)));
    let digest = Summary { hash: [0; 16], count: 0, introduction, evictions: None };
    transmits(&mut founder);
    give(&mut founder, identity(99).node_id(), Message::Digest(digest));
    assert_eq!(transmits(&mut founder), []);
    assert_eq!(founder.rejections()["introduction"], 1);
    assert_eq!(founder.members().count(), 2);
    drop(member);
}

#[test]
fn answers_that_nobody_asked_for_are_refused() {
    assert_refused("unexpected", |founder, member| {
        let welcome = selvedge_mesh::wire::Welcome {
            certificate: own_record(member),
            state: Records::default(),
        };
        give(founder, member.node(), Message::Welcome(welcome));
    });
}

#[test]
fn unreadable_messages_are_counted() {
    assert_refused("malformed", |founder, member| {
        founder.handle_message(member.node(), b"hello", Time::ZERO, WALL);
    });
    assert_refused("wire_version", |founder, member| {
        let mut bytes = Envelope { mesh: founder.id(), message: Message::Same }.encode();
        bytes[1] = 9;
        founder.handle_message(member.node(), &bytes, Time::ZERO, WALL);
    });
    assert_refused("wrong_mesh", |founder, member| {
        let bytes = Envelope { mesh: MeshId([0; 20]), message: Message::Same }.encode();
        founder.handle_message(member.node(), &bytes, Time::ZERO, WALL);
    });
}

#[test]
fn rejections_do_not_fill_the_memory() {
    let (mut founder, member) = pair();
    for _ in 0..10_000 {
        founder.handle_message(member.node(), b"hello", Time::ZERO, WALL);
    }
    assert_eq!(founder.rejections()["malformed"], 21, "then it is not heard for a while");
    assert_eq!(founder.rejections().values().sum::<u64>(), 10_000);
    assert!(events(&mut founder).len() < 1000);
}

#[test]
fn who_does_not_renew_is_forgotten_and_may_come_back() {
    let (mut founder, mut member) = pair();
    let node = member.node();
    let kept = State::decode(&member.snapshot()).expect("its own");
    let endpoints = founder.control_endpoints(node);
    let last = UnixTime(WALL.0 + 86_400);
    timeout(&mut founder, last);
    assert!(founder.is_member(node));
    events(&mut founder);
    let late = UnixTime(last.0 + 1);
    timeout(&mut founder, late);
    let left = [Event::MemberLeft(node), Event::StateChanged];
    assert_eq!(events(&mut founder).split_off(0), left);
    assert!(founder.desired_wireguard().is_empty());
    assert_eq!(founder.control_endpoints(node), endpoints, "a way back is kept");
    let restarted = State::decode(&founder.snapshot()).expect("its own");
    assert_eq!(mesh_of(0, restarted).control_endpoints(node), endpoints);
    // Old copies of what it said are refused, by whomever they are brought.
    give_at(&mut founder, node, introduction(&member), late);
    assert!(!founder.is_member(node));
    assert_eq!(founder.rejections()["expired"], 1);
    // It was away, and says something new.
    member = mesh_of(1, kept);
    timeout(&mut member, late);
    give_at(&mut founder, node, introduction(&member), late);
    assert!(founder.is_member(node));
}

#[test]
fn a_removal_outlives_every_copy_of_what_it_buries() {
    let (mut founder, mut member) = pair();
    let node = member.node();
    let old = introduction(&member);
    member.leave().expect("a member");
    for (_, bytes) in transmits(&mut member) {
        founder.handle_message(node, &bytes, Time::ZERO, WALL);
    }
    for seconds in [0, 86_400, 86_401, 2 * 86_400] {
        let wall = UnixTime(WALL.0 + seconds);
        timeout(&mut founder, wall);
        give_at(&mut founder, node, old.clone(), wall);
        assert!(!founder.is_member(node));
        assert_eq!(founder.digest().count, 2, "the removal is held");
    }
    timeout(&mut founder, UnixTime(WALL.0 + 2 * 86_400 + 1));
    assert_eq!(founder.digest().count, 1);
}

/// Members say again in time what they say of themselves, and without end.
#[test]
fn who_renews_is_kept() {
    let (mut founder, mut member) = pair();
    for hour in 0..100 {
        let wall = UnixTime(WALL.0 + hour * 3600);
        for mesh in [&mut founder, &mut member] {
            timeout(mesh, wall);
        }
        for (_, bytes) in transmits(&mut member) {
            founder.handle_message(member.node(), &bytes, Time::ZERO, wall);
        }
        for (_, bytes) in transmits(&mut founder) {
            member.handle_message(founder.node(), &bytes, Time::ZERO, wall);
        }
        assert!(founder.is_member(member.node()) && member.is_member(founder.node()), "{hour}");
    }
    let seq = founder.member(member.node()).expect("a member").seq;
    assert!((5..10).contains(&seq), "{seq} renewals in four days");
}

#[test]
fn whose_certificate_has_expired_is_no_member() {
    let (mut founder, mut member) = pair();
    let node = member.node();
    let late = UnixTime(founder.member(node).expect("a member").not_after.0 + 1);
    timeout(&mut founder, late);
    timeout(&mut member, late);
    give_at(&mut founder, node, introduction(&member), late);
    assert!(!founder.is_member(node));
    assert!(founder.control_endpoints(node).is_empty(), "nothing leads back");
}

/// The message by which a node shows its record.
fn introduction(mesh: &Mesh) -> Message {
    let introduction = Some(own_record(mesh));
    Message::Digest(Summary { hash: [0; 16], count: 0, introduction, evictions: None })
}

fn timeout(mesh: &mut Mesh, wall: UnixTime) {
    let due = mesh.poll_timeout().expect("a member") + std::time::Duration::from_secs(2);
    mesh.handle_timeout(due, wall);
}

fn give_at(to: &mut Mesh, from: NodeId, message: Message, wall: UnixTime) {
    let bytes = Envelope { mesh: to.id(), message }.encode();
    to.handle_message(from, &bytes, Time::ZERO, wall);
}

#[test]
fn no_more_nodes_are_held_than_configured() {
    let config = selvedge_mesh::Config { max_nodes: 2, ..selvedge_mesh::Config::default() };
    let state = common::found();
    let mut founder = Mesh::new(identity(0), state, config, 1, Time::ZERO, WALL).expect("its own");
    let invite = invite(&founder, 1, 10);
    let two: Vec<Joining> = [1, 2].map(|number| joining(number, &invite)).into();
    let from = |number| identity(number).node_id();
    let states: Vec<State> = two
        .iter()
        .zip(1..)
        .map(|(joining, number)| join(&mut founder, joining, from(number)).expect("there is room"))
        .collect();
    for (state, number) in states.into_iter().zip(1..) {
        greet(&mut mesh_of(number, state), &mut founder);
    }
    assert_eq!(founder.members().count(), 2);
    assert_eq!(founder.rejections()["full"], 1);
    let error = join(&mut founder, &joining(3, &invite), from(3)).expect_err("full");
    assert!(matches!(error, JoinError::Refused { reason: Some(RefusedReason::Full), .. }));
}

#[test]
fn an_invite_is_redeemed_so_many_times() {
    let mut founder = founder();
    let invite = invite(&founder, 1, 2);
    let from = |number| identity(number).node_id();
    join(&mut founder, &joining(1, &invite), from(1)).expect("the first");
    join(&mut founder, &joining(2, &invite), from(2)).expect("the second");
    let error = join(&mut founder, &joining(3, &invite), from(3)).expect_err("one too many");
    assert!(error.to_string().ends_with("the invite is used up: 2 of 2 nodes have joined with it"));
    // It was the node's word that was lost, not the certificate.
    join(&mut founder, &joining(1, &invite), from(1)).expect("the first again");
    // The count survives a restart.
    let state = State::decode(&founder.snapshot()).expect("its own");
    let mut founder = mesh_of(0, state);
    let error = join(&mut founder, &joining(3, &invite), from(3)).expect_err("one too many");
    assert!(matches!(error, JoinError::Refused { reason: Some(RefusedReason::UsedUp), .. }));
    assert_eq!(founder.rejections()["invite"], 1);
}

#[test]
fn redeeming_again_gives_the_same_certificate() {
    let mut founder = founder();
    let invite = invite(&founder, 1, 1);
    let node = identity(1).node_id();
    let first = ask(&mut founder, &joining(1, &invite), node);
    events(&mut founder);
    let second = ask(&mut founder, &joining(1, &invite), node);
    assert_eq!(first, second);
    assert_eq!(events(&mut founder), []);
    // With another key, after the node lost its disk, it is another one, and no further use.
    let rekeyed =
        Joining::new(identity(1), invite.clone(), wg(77), Profile::default(), WALL).expect("valid");
    let state = join(&mut founder, &rekeyed, node).expect("the same node");
    assert_eq!(state.wg(), Some(wg(77)));
}

#[test]
fn a_wireguard_key_is_given_to_one_node() {
    let (mut founder, _) = pair();
    let invite = invite(&founder, 2, 5);
    let ours = [wg(0), wg(1)];
    for key in ours {
        let thief = Joining::new(identity(9), invite.clone(), key, Profile::default(), WALL)
            .expect("valid");
        let error = join(&mut founder, &thief, identity(9).node_id()).expect_err("in use");
        assert!(matches!(error, JoinError::Refused { reason: Some(RefusedReason::KeyInUse), .. }));
    }
}

#[test]
fn invites_end() {
    let founder = founder();
    let invite = invite(&founder, 1, 1);
    let late = UnixTime(invite.value().not_after + 1);
    let error = Joining::new(identity(1), invite.clone(), wg(1), profile(1), late);
    let error = error.expect_err("too late").to_string();
    assert_eq!(error, "joining: the invite expired at 2026-11-18T12:06:40Z");
    // The founder looks at its own clock.
    let mut founder = founder;
    let message = joining(1, &invite).message();
    founder.handle_message(identity(1).node_id(), &message, Time::ZERO, late);
    let (_, answer) = transmits(&mut founder).pop().expect("an answer");
    let founder_id = founder.node();
    let error = joining(1, &invite).handle_message(founder_id, &answer, WALL);
    let expired = Some(RefusedReason::Expired);
    assert!(matches!(error, Err(JoinError::Refused { reason, .. }) if reason == expired));
}

#[test]
fn invites_of_others_are_refused() {
    let (mut founder, mut member) = pair();
    assert!(matches!(member.invite(terms(1, 1), WALL), Err(MeshError::MayNotInvite { .. })));
    let genuine = invite(&founder, 1, 1);
    // A member that is asked instead of the founder names the founder.
    let message = joining(5, &genuine).message();
    member.handle_message(identity(5).node_id(), &message, Time::ZERO, WALL);
    let told = format!("{:?}", events(&mut member));
    assert!(told.contains(&founder.node().to_string()), "{told}");
    // A member that signs one itself gets nowhere.
    let forger = identity(1);
    let forged = Invite { issuer: forger.node_id(), ..genuine.value().clone() };
    let forged = Signed::sign(forged, &forger).expect("in bounds");
    let error = Joining::new(identity(5), forged.clone(), wg(5), profile(5), WALL);
    assert!(matches!(error, Err(JoinError::Invite(_))));
    let join = selvedge_mesh::wire::Join { invite: forged.raw().clone(), wg: wg(5) };
    give(&mut founder, identity(5).node_id(), Message::Join(join));
    assert!(founder.rejections()["invite"] == 1);
    assert_eq!(founder.members().count(), 2);
}

#[test]
fn a_joiner_checks_what_it_is_given() {
    let mut founder = founder();
    let invite = invite(&founder, 1, 5);
    let (one, two) = (joining(1, &invite), joining(2, &invite));
    let (founder_id, node) = (founder.node(), identity(1).node_id());
    let answer = ask(&mut founder, &one, node);
    assert!(matches!(
        one.handle_message(identity(9).node_id(), &answer, WALL),
        Err(JoinError::NotAsked(_))
    ));
    assert_eq!(
        two.handle_message(founder_id, &answer, WALL),
        Err(JoinError::NotOurs { from: founder_id })
    );
    for len in 0..answer.len() {
        assert!(one.handle_message(founder_id, &answer[..len], WALL).is_err());
    }
    let welcome = one.handle_message(founder_id, &answer, WALL).expect("the right one");
    assert_eq!(welcome.node(), node);
    let error = Joining::new(identity(0), invite, wg(1), profile(1), WALL);
    assert!(matches!(error, Err(JoinError::Founder(_))));
}

#[test]
fn a_founder_that_cannot_be_reached_does_not_invite() {
    let mut founder = founder();
    founder.set_profile(Profile::default()).expect("in bounds");
    assert_eq!(founder.invite(terms(1, 1), WALL), Err(MeshError::Unreachable));
    founder.set_profile(profile(0)).expect("in bounds");
    assert!(matches!(founder.invite(terms(1, 0), WALL), Err(MeshError::Invite(_))));
    let late = UnixTime(WALL.0 + 9999);
    assert!(matches!(founder.invite(terms(1, 1), late), Err(MeshError::Expired { .. })));
}

#[test]
fn only_the_own_profile_can_be_set_and_within_bounds() {
    let (_, mut member) = pair();
    let before = member.snapshot();
    let long = Profile { alias: "x".repeat(64), ..profile(1) };
    assert!(member.set_profile(long).is_err());
    assert_eq!(member.snapshot(), before);
}

#[test]
fn rejections_say_what_they_are() {
    let text = Rejection::WrongMesh { found: MeshId([0; 20]) }.to_string();
    assert!(text.contains(&MeshId([0; 20]).to_string()));
}

/// What is known of an invite is forgotten when nobody can redeem it any more, and no sooner.
#[test]
fn the_ledger_of_invites_does_not_grow_for_ever() {
    let mut founder = founder();
    let empty = founder.snapshot().len();
    for id in 1..50 {
        let invite = common::invite(&founder, id, 1);
        let joining = joining(u32::from(id), &invite);
        common::ask(&mut founder, &joining, identity(u32::from(id)).node_id());
    }
    let full = founder.snapshot().len();
    assert!(full > empty + 49 * 200, "{empty} {full}");
    let mut later = |seconds: u64| {
        let due = founder.poll_timeout().expect("a member");
        // Later than the next time that it keeps house.
        let late = due + std::time::Duration::from_secs(5);
        founder.handle_timeout(late, UnixTime(WALL.0 + seconds));
        founder.snapshot().len()
    };
    // They can be redeemed for an hour, and are remembered for a week.
    assert!(later(7200) > full - 2000);
    assert!(later(8 * 86_400) < empty + 2000);
    let used = common::invite(&founder, 77, 1);
    let again = common::joining(200, &used);
    common::join(&mut founder, &again, identity(200).node_id()).expect("invites work on");
    let restored = State::decode(&founder.snapshot()).expect("valid");
    assert_eq!(restored.encode(), founder.snapshot(), "and so do snapshots");
}
