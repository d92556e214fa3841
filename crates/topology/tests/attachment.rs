//! Who serves a client is decided twice, by the core of the mesh, which watches clients, and here,
//! where the tunnels come from. Both must come to the same.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use proptest::prelude::*;
use selvedge_mesh::rumor::{Accusation, Rumor};
use selvedge_mesh::wire::{Envelope, Message, News, Records};
use selvedge_mesh::{
    Config, Endpoint, Grant, Identity, InviteId, InviteTerms, Joining, Mesh, Profile, Role, Signed,
    State, UnixTime,
};
use selvedge_model::{NodeId, Time, WgKey};
use selvedge_topology::{Member, Options, View, attachment};

const WALL: UnixTime = UnixTime(1_795_000_000);
const PEERS: u8 = 5;
/// The peers, and a client.
const MEMBERS: u8 = PEERS + 1;

fn identity(number: u8) -> Identity {
    Identity::from_secret(&[number + 1; 32])
}

fn node(number: u8) -> NodeId {
    identity(number).node_id()
}

fn profile(number: u8) -> Profile {
    let control = Endpoint::from(SocketAddr::from(([192, 0, 2, number], 7654)));
    Profile { control: vec![control], client: number == PEERS, ..Profile::default() }
}

fn mesh_of(number: u8, state: State) -> Mesh {
    let (config, seed) = (Config::default(), u64::from(number));
    Mesh::new(identity(number), state, config, seed, Time::ZERO, WALL).expect("its own")
}

/// Five peers and a client, as each of them sees it once all know of all.
fn members(profiles: &[Profile]) -> BTreeMap<NodeId, Mesh> {
    let mut profiles = (0..).zip(profiles.iter().cloned());
    let (_, first) = profiles.next().expect("a founder");
    let state = State::found(&identity(0), "m", [9; 16], WgKey([0; 32]), first).expect("in bounds");
    let mut founder = mesh_of(0, state);
    let not_after = UnixTime(WALL.0 + 3600);
    let terms =
        InviteTerms { id: InviteId([1; 16]), grant: Grant::default(), uses: 100, not_after };
    let invite = founder.invite(terms, WALL).expect("the founder may");
    let mut all = BTreeMap::new();
    for (number, profile) in profiles {
        let key = WgKey([number; 32]);
        let joining =
            Joining::new(identity(number), invite.clone(), key, profile, WALL).expect("valid");
        founder.handle_message(node(number), &joining.message(), Time::ZERO, WALL);
        let answer = founder.poll_transmit().expect("each join is answered");
        let state = joining.handle_message(node(0), &answer.bytes, WALL).expect("admitted");
        all.insert(node(number), mesh_of(number, state));
    }
    all.insert(node(0), founder);
    (0..100).for_each(|step| deliver(&mut all, Time::ZERO + Duration::from_millis(100 * step)));
    let complete = |mesh: &Mesh| mesh.members().count() == usize::from(MEMBERS);
    assert!(all.values().all(complete), "all know of all");
    all
}

/// Lets all do what is due, and delivers what they send.
fn deliver(all: &mut BTreeMap<NodeId, Mesh>, now: Time) {
    all.values_mut().for_each(|mesh| mesh.handle_timeout(now, WALL));
    let mut sent = Vec::new();
    for (from, mesh) in &mut *all {
        sent.extend(std::iter::from_fn(|| mesh.poll_transmit()).map(|message| (*from, message)));
    }
    for (from, message) in sent {
        if let Some(to) = all.get_mut(&message.to) {
            to.handle_message(from, &message.bytes, now, WALL);
        }
    }
}

/// Lets a member say this of itself, and all hear it at once.
fn tell_all(all: &mut BTreeMap<NodeId, Mesh>, node: NodeId, profile: &Profile) {
    let own = all.get_mut(&node).expect("a member");
    while own.poll_transmit().is_some() {}
    own.set_profile(profile.clone()).expect("in bounds");
    let sent: Vec<_> = std::iter::from_fn(|| own.poll_transmit()).collect();
    for (_, mesh) in all.iter_mut().filter(|(other, _)| **other != node) {
        for message in &sent {
            mesh.handle_message(node, &message.bytes, Time::ZERO + Duration::from_secs(10), WALL);
        }
    }
}

/// Tells `mesh` that two members found another to be down.
fn tell_down(mesh: &mut Mesh, target: u8) {
    let others = (0..MEMBERS).filter(|number| *number != target && node(*number) != mesh.node());
    let accusers: Vec<u8> = others.take(2).collect();
    let accuse = |by: &u8| {
        let (accuser, target) = (node(*by), node(target));
        let accusation = Accusation { mesh: mesh.id(), accuser, target, incarnation: 0 };
        Signed::sign(accusation, &identity(*by)).expect("in bounds").raw().clone()
    };
    let rumor = Rumor { alive: None, accusations: accusers.iter().map(accuse).collect() };
    let news = News { entries: Records::default(), rumors: vec![rumor] };
    let bytes = Envelope { mesh: mesh.id(), message: Message::News(news) }.encode();
    mesh.handle_message(node(accusers[0]), &bytes, Time::ZERO + Duration::from_secs(10), WALL);
}

fn view(mesh: &Mesh) -> View {
    let members = mesh.members();
    let members = members.map(|member| Member::new(&member, !mesh.is_down(member.node)));
    let (members, options) = (members.collect(), Options::default());
    View { mesh: mesh.id(), own: mesh.node(), members, options }
}

/// Whether each peer is drained, avoided by the client, and down; drawn so that often all are.
fn peers() -> impl Strategy<Value = [Vec<bool>; 3]> {
    let all_but_few = prop::collection::vec(prop::bool::weighted(0.8), usize::from(PEERS));
    let flags = prop_oneof![all_but_few, Just(vec![true; 5]), Just(vec![false; 5])];
    [flags.clone(), flags.clone(), flags]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_core_and_the_plan_agree_on_who_serves([drained, avoided, down] in peers()) {
        let mut profiles: Vec<Profile> = (0..MEMBERS).map(profile).collect();
        for (profile, drained) in profiles.iter_mut().zip(&drained) {
            profile.drained = *drained;
        }
        let numbers = |flags: &[bool]| -> Vec<u8> {
            (0..PEERS).zip(flags).filter(|(_, flag)| **flag).map(|(number, _)| number).collect()
        };
        let client = node(PEERS);
        let mut all = members(&profiles);
        let avoids: Vec<NodeId> = numbers(&avoided).into_iter().map(node).collect();
        let avoids = Profile { avoids, ..profile(PEERS) };
        tell_all(&mut all, client, &avoids);
        for (own, mut mesh) in all {
            for target in numbers(&down).into_iter().filter(|number| node(*number) != own) {
                tell_down(&mut mesh, target);
                prop_assert!(mesh.is_down(node(target)));
            }
            let view = view(&mesh);
            let member = view.members.iter().find(|member| member.node == client).expect("one");
            prop_assert_eq!(member.role, Role::Client);
            prop_assert_eq!(&member.avoids, &avoids.avoids);
            let planned = attachment(&view, member).map(|at| at.serving);
            prop_assert!(planned.is_some());
            prop_assert_eq!(mesh.attachment(client), planned, "as {} sees it", own);
        }
    }
}
