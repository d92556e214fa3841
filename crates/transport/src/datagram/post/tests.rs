use std::collections::VecDeque;
use std::time::Duration;

use proptest::prelude::*;

use super::super::frame::FrameError;
use super::*;

/// Some nodes, and a network without any delay of its own.
struct World {
    posts: Vec<Post>,
    counters: Vec<Arc<Counters>>,
    access: Vec<AccessList>,
    now: Instant,
    /// What is under way: from whom, to whom.
    wire: VecDeque<(usize, usize, Vec<u8>)>,
    /// Who received what from whom.
    received: Vec<(usize, NodeId, Vec<u8>)>,
    /// What goes over streams.
    detoured: Vec<(NodeId, Vec<u8>)>,
}

fn addr(index: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, u8::try_from(index).expect("a few")], 7654))
}

fn index(addr: SocketAddr) -> usize {
    match addr.ip() {
        std::net::IpAddr::V4(v4) => v4.octets()[3].into(),
        std::net::IpAddr::V6(_) => panic!("the world has none"),
    }
}

fn agreement(index: usize) -> Agreement {
    Agreement::of(&[u8::try_from(index).expect("a few") + 1; 32])
}

fn node(index: usize) -> NodeId {
    agreement(index).own()
}

impl World {
    fn new(nodes: usize) -> Self {
        let members: BTreeSet<_> = (0..nodes).map(node).collect();
        let list = AccessList { members, ..AccessList::default() };
        let mut world = Self {
            posts: Vec::new(),
            counters: (0..nodes).map(|_| Arc::default()).collect(),
            access: vec![list; nodes],
            now: Instant::now(),
            wire: VecDeque::new(),
            received: Vec::new(),
            detoured: Vec::new(),
        };
        world.posts = (0..nodes).map(|index| world.post(index, 0)).collect();
        world
    }

    fn post(&self, index: usize, start: u8) -> Post {
        let seed = [u8::try_from(index).expect("a few") ^ start << 4; 32];
        Post::new(agreement(index), seed, self.counters[index].clone(), self.now)
    }

    fn restart(&mut self, index: usize, start: u8) {
        self.posts[index] = self.post(index, start);
    }

    fn send(&mut self, from: usize, to: usize, message: &[u8]) {
        let access = &self.access[from];
        self.posts[from].send(node(to), &[addr(to)], message.to_vec(), false, access, self.now);
        self.collect(from);
    }

    fn collect(&mut self, from: usize) {
        while let Some((to, datagram)) = self.posts[from].poll_transmit() {
            self.wire.push_back((from, index(to), datagram));
        }
        while let Some(Detoured { to, addrs, message }) = self.posts[from].poll_detoured() {
            assert!(addrs.contains(&addr(0)) || addrs.contains(&addr(1)), "{addrs:?}");
            self.detoured.push((to, message));
        }
    }

    fn deliver(&mut self, from: usize, to: usize, datagram: &[u8]) {
        let access = &self.access[to];
        if let Some((sender, message)) =
            self.posts[to].receive(addr(from), datagram, access, self.now)
        {
            self.received.push((to, sender, message));
        }
        self.collect(to);
    }

    /// Delivers all that is under way, and what comes of it; returns all of it.
    fn settle(&mut self) -> Vec<(usize, usize, Vec<u8>)> {
        let mut seen = Vec::new();
        while let Some((from, to, datagram)) = self.wire.pop_front() {
            self.deliver(from, to, &datagram);
            seen.push((from, to, datagram));
        }
        seen
    }

    /// Lets time pass up to the next timer.
    fn tick(&mut self) -> bool {
        let due = self.posts.iter().filter_map(Post::poll_timeout).min();
        self.now = due.map_or(self.now, |due| due.max(self.now));
        for index in 0..self.posts.len() {
            self.posts[index].handle_timeout(self.now);
            self.collect(index);
        }
        due.is_some()
    }

    fn heard(&self, by: usize) -> Vec<&[u8]> {
        let his = self.received.iter().filter(|(to, ..)| *to == by);
        his.map(|(_, _, message)| &message[..]).collect()
    }

    fn refused(&self, by: usize) -> u64 {
        self.counters[by].read().datagrams_refused
    }
}

fn kind(datagram: &[u8]) -> &'static str {
    match Frame::parse(datagram) {
        Ok(Frame::Knock { .. }) => "knock",
        Ok(Frame::Answer { .. }) => "answer",
        Ok(Frame::Data { .. }) => "data",
        Err(FrameError::Garbage | FrameError::Version { .. }) => "garbage",
    }
}

#[test]
fn one_round_trip_begins_a_session_for_both() {
    let mut world = World::new(2);
    world.send(0, 1, b"one");
    let kinds: Vec<_> = world.settle().iter().map(|(.., datagram)| kind(datagram)).collect();
    assert_eq!(kinds, ["knock", "answer", "data"]);
    world.send(1, 0, b"two");
    world.send(0, 1, b"three");
    let kinds: Vec<_> = world.settle().iter().map(|(.., datagram)| kind(datagram)).collect();
    assert_eq!(kinds, ["data", "data"]);
    assert_eq!(world.heard(1), [b"one" as &[u8], b"three"]);
    assert_eq!(world.heard(0), [b"two"]);
    assert_eq!(world.received[0].1, node(0));
    assert_eq!((world.refused(0), world.refused(1)), (0, 0));
}

#[test]
fn both_may_begin_at_once() {
    let mut world = World::new(2);
    for message in [b"a", b"b", b"c"] {
        world.send(0, 1, message);
        world.send(1, 0, message);
    }
    world.settle();
    for message in [b"d", b"e"] {
        world.send(0, 1, message);
        world.send(1, 0, message);
        assert_eq!(world.settle().len(), 2);
    }
    for by in [0, 1] {
        assert_eq!(world.heard(by), [b"a", b"b", b"c", b"d", b"e"]);
    }
}

#[test]
fn a_lost_knock_and_a_lost_answer_are_made_good() {
    for lost in ["knock", "answer"] {
        let mut world = World::new(2);
        world.send(0, 1, b"message");
        let (from, to, datagram) = world.wire.pop_front().expect("a knock");
        if lost == "answer" {
            world.deliver(from, to, &datagram);
            assert_eq!(kind(&world.wire.pop_front().expect("it answers").2), "answer");
        }
        assert!(world.tick());
        world.settle();
        assert_eq!(world.heard(1), [b"message"], "{lost}");
    }
}

#[test]
fn nobody_at_home_costs_two_knocks_and_the_messages() {
    let mut world = World::new(2);
    (0..20).for_each(|_| world.send(0, 1, b"message"));
    let mut knocks = 0;
    loop {
        knocks += world.wire.drain(..).count();
        if !world.tick() {
            break;
        }
    }
    assert_eq!(knocks, 2);
    assert_eq!(world.counters[0].read().datagrams_dropped, 4);
    assert_eq!(world.detoured.len(), 16, "what waited is to try another way");
    world.send(0, 1, b"too soon");
    assert!(world.wire.is_empty());
    assert_eq!(world.detoured.last(), Some(&(node(1), b"too soon".to_vec())));
    world.now += Duration::from_secs(1);
    world.send(0, 1, b"now");
    world.settle();
    assert_eq!(world.heard(1), [b"now"]);
    let before = world.detoured.len();
    world.send(0, 1, b"then");
    world.settle();
    assert_eq!((world.heard(1).len(), world.detoured.len()), (2, before), "datagrams pass again");
}

#[test]
fn where_there_is_a_connection_nothing_waits_for_a_session() {
    let mut world = World::new(2);
    let access = &world.access[0];
    world.posts[0].send(node(1), &[addr(1)], b"first".to_vec(), true, access, world.now);
    world.collect(0);
    assert_eq!(world.detoured, [(node(1), b"first".to_vec())]);
    world.settle();
    assert_eq!(world.heard(1), [] as [&[u8]; 0], "once is enough");
    world.send(0, 1, b"second");
    world.settle();
    assert_eq!((world.heard(1), world.detoured.len()), (vec![&b"second"[..]], 1));
}

#[test]
fn what_waited_too_long_is_not_sent() {
    let mut world = World::new(2);
    world.send(0, 1, b"old");
    let knock = world.wire.pop_front().expect("a knock").2;
    world.deliver(0, 1, &knock);
    world.now += Duration::from_secs(3);
    world.settle();
    assert_eq!(world.heard(1), [] as [&[u8]; 0]);
    world.send(0, 1, b"new");
    world.settle();
    assert_eq!(world.heard(1), [b"new"], "the session was confirmed all the same");
}

#[test]
fn either_side_may_start_again() {
    for who in [0, 1] {
        let mut world = World::new(2);
        world.send(0, 1, b"before");
        world.settle();
        world.restart(who, 1);
        // As a probe that is repeated.
        for _ in 0..4 {
            world.send(0, 1, b"after");
            world.settle();
            world.now += Duration::from_millis(300);
        }
        let heard = world.heard(1);
        assert!(heard.len() >= 2 && heard.ends_with(&[b"after"]), "{who}: {heard:?}");
        world.send(1, 0, b"back");
        world.settle();
        assert_eq!(world.heard(0), [b"back"], "{who}");
    }
}

#[test]
fn a_partner_that_moved_is_followed() {
    let mut world = World::new(3);
    world.send(0, 1, b"here");
    world.settle();
    // Node 1 speaks from the place of node 2 now.
    world.send(1, 0, b"moved");
    let (_, _, datagram) = world.wire.pop_front().expect("sent");
    world.deliver(2, 0, &datagram);
    world.send(0, 1, b"there");
    assert_eq!(world.wire.front().map(|(_, to, _)| *to), Some(2));
}

#[test]
fn what_is_repeated_is_taken_once() {
    let mut world = World::new(2);
    world.send(0, 1, b"one");
    let mut recorded = world.settle();
    world.send(0, 1, b"two");
    recorded.extend(world.settle());
    for _ in 0..3 {
        for (from, to, datagram) in &recorded {
            world.deliver(*from, *to, datagram);
            // Also back to where it came from.
            world.deliver(*to, *from, datagram);
        }
    }
    world.settle();
    assert_eq!(world.heard(1), [b"one", b"two"]);
    assert_eq!(world.heard(0), [] as [&[u8]; 0]);
    world.send(0, 1, b"three");
    world.send(1, 0, b"four");
    world.settle();
    assert_eq!((world.heard(1).len(), world.heard(0).len()), (3, 1), "nothing was broken");
}

#[test]
fn nothing_of_before_a_restart_is_believed_after_it() {
    let mut world = World::new(2);
    world.send(0, 1, b"one");
    let recorded = world.settle();
    for (who, start) in [(1, 1), (0, 2)] {
        world.restart(who, start);
        let before = world.received.len();
        for _ in 0..2 {
            for (from, to, datagram) in &recorded {
                world.deliver(*from, *to, datagram);
            }
            world.settle();
        }
        assert_eq!(world.received.len(), before, "after node {who} started again");
    }
}

#[test]
fn strangers_are_limited_and_the_refused_are_not_heard() {
    let mut world = World::new(3);
    world.access[0].members.remove(&node(2));
    world.send(2, 0, b"refused");
    world.settle();
    assert_eq!((world.heard(0).len(), world.refused(0)), (0, 1));
    world.access[0].strangers = true;
    world.now += Duration::from_secs(10);
    for _ in 0..300 {
        world.send(2, 0, b"stranger");
        world.settle();
    }
    assert_eq!(world.heard(0).len(), STRANGERS_MESSAGES[0] as usize);
    assert_eq!(world.counters[0].read().strangers_limited, 100);
    world.send(1, 0, b"member");
    world.settle();
    assert_eq!(world.heard(0).last(), Some(&&b"member"[..]), "members are not");
}

#[test]
fn forged_knocks_of_strangers_cost_little() {
    let mut world = World::new(2);
    world.access[0].strangers = true;
    for number in 0..200_u8 {
        let from = Agreement::of(&[number.wrapping_add(10); 32]).own();
        let forged = Frame::Knock { from, challenge: [number; 16], tag: [0; 16] }.encode();
        world.deliver(1, 0, &forged);
    }
    assert!(world.wire.is_empty(), "none is answered");
    assert!(world.posts[0].partners.is_empty(), "nothing is kept of them");
    assert_eq!(world.refused(0), 200);
    assert_eq!(world.counters[0].read().strangers_limited, 200 - u64::from(STRANGERS_KNOCKS[0]));
}

#[test]
fn forged_knocks_of_members_cost_an_agreement_each_member() {
    let mut world = World::new(30);
    for round in 0..3 {
        for from in 1..30 {
            let from = node(from);
            let forged = Frame::Knock { from, challenge: [round; 16], tag: [0; 16] }.encode();
            world.deliver(1, 0, &forged);
        }
        assert!(world.wire.is_empty(), "none is answered");
        assert_eq!(world.posts[0].partners.len(), 29, "their keys are known from now on");
    }
    assert_eq!(world.refused(0), 3 * 29);
    world.send(7, 0, b"genuine");
    world.settle();
    assert_eq!(world.heard(0), [b"genuine"]);
}

#[test]
fn knocks_of_members_who_are_not_remembered_are_limited() {
    let mut world = World::new(9);
    world.posts[0].newcomers_knocks = Allowance::new(5, world.now);
    (1..9).for_each(|from| world.send(from, 0, b"message"));
    world.settle();
    assert_eq!((world.heard(0).len(), world.posts[0].partners.len()), (5, 5));
    world.now += Duration::from_secs(1);
    world.tick();
    world.settle();
    assert_eq!(world.heard(0).len(), 8, "the others' second knocks");
}

#[test]
fn an_old_knock_repeated_within_a_handshake_changes_nothing() {
    let mut world = World::new(2);
    world.send(0, 1, b"old");
    let old = world.settle().remove(0).2;
    world.restart(0, 1);
    world.restart(1, 2);
    world.send(0, 1, b"new");
    let (_, _, knock) = world.wire.pop_front().expect("a knock");
    world.deliver(0, 1, &knock);
    world.deliver(0, 1, &old);
    world.settle();
    assert_eq!(world.heard(1), [b"old", b"new"]);
    // The answer to the old knock was asked for by nobody.
    assert_eq!(world.refused(1), 0);
}

#[test]
fn sessions_are_granted_so_often_and_no_more() {
    let mut world = World::new(2);
    world.send(0, 1, b"message");
    let (_, _, knock) = world.wire.pop_front().expect("a knock");
    for _ in 0..100 {
        world.deliver(0, 1, &knock);
    }
    assert_eq!(world.wire.len(), 20, "the same one");
    let pair = Pair::new(&agreement(0), node(1)).expect("a key");
    for number in 0..100 {
        world.deliver(0, 1, &pair.knock([number; 16]));
    }
    assert_eq!(world.wire.len(), 20 + 19, "others: one was granted before");
    assert_eq!(world.posts[1].sessions.len(), 4, "the last ones");
    assert_eq!(world.refused(1), 80 + 81);
    world.wire.clear();
    world.now += Duration::from_secs(1);
    world.tick();
    world.settle();
    assert_eq!(world.heard(1), [b"message"]);
}

#[test]
fn a_session_asked_for_later_outlives_the_first_datagram_of_an_earlier_one() {
    let mut world = World::new(2);
    world.send(0, 1, b"first");
    let (_, _, knock) = world.wire.pop_front().expect("a knock");
    world.deliver(0, 1, &knock);
    let (_, _, answer) = world.wire.pop_front().expect("an answer");
    world.deliver(1, 0, &answer);
    let (_, _, first) = world.wire.pop_front().expect("the message");
    world.now += Duration::from_secs(1);
    world.send(0, 1, b"second");
    let (_, _, lost) = world.wire.pop_front().expect("over the session that is silent");
    assert_eq!(kind(&lost), "data");
    let (_, _, knock) = world.wire.pop_front().expect("another knock");
    world.deliver(0, 1, &knock);
    world.deliver(0, 1, &first);
    world.settle();
    assert_eq!(world.heard(1), [b"first" as &[u8], b"second"]);
    assert_eq!(world.refused(1), 0);
}

#[test]
fn many_handshakes_hold_up_no_session() {
    let mut world = World::new(3);
    world.send(0, 1, b"before");
    world.settle();
    let silent =
        (0..MAX_KNOCKING).map(|n| NodeId([n.to_be_bytes(); 4].concat().try_into().expect("32")));
    world.posts[0].knocking.extend(silent);
    world.send(0, 1, b"meanwhile");
    world.send(0, 2, b"not possible");
    world.settle();
    assert_eq!(world.heard(1), [b"before" as &[u8], b"meanwhile"]);
    assert_eq!((world.heard(2).len(), world.counters[0].read().datagrams_dropped), (0, 1));
    // A session that is silent needs a handshake, which has to wait.
    world.send(0, 1, b"unheard");
    world.now += Duration::from_secs(1);
    world.wire.clear();
    world.send(0, 1, b"silent");
    assert_eq!(world.posts[0].knocking.len(), MAX_KNOCKING);
    assert_eq!(world.wire.len(), 1, "the message and no knock");
}

#[test]
fn who_is_evicted_is_forgotten() {
    let mut world = World::new(2);
    world.send(0, 1, b"member");
    world.settle();
    world.access[1].refused.insert(node(0));
    let access = world.access[1].clone();
    world.posts[1].follow(&access);
    assert!(world.posts[1].partners.is_empty() && world.posts[1].sessions.is_empty());
    world.send(0, 1, b"evicted");
    world.send(1, 0, b"and back");
    world.settle();
    assert_eq!((world.heard(1).len(), world.heard(0).len()), (1, 0));
}

#[test]
fn garbage_is_counted() {
    let mut world = World::new(1);
    for garbage in [&b""[..], b"\x04", b"\x06garbage", &[6; 60], &[5; 1300]] {
        world.deliver(0, 0, garbage);
    }
    assert_eq!(world.refused(0), 5);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the network does: nothing is heard that was not sent, nothing twice, and when it
    /// does its work again messages arrive.
    #[test]
    fn what_is_heard_was_said_once(
        steps in prop::collection::vec((0..5_u8, any::<prop::sample::Index>(), 0..2_usize), 1..120),
    ) {
        let mut world = World::new(2);
        let mut recorded: Vec<(usize, usize, Vec<u8>)> = Vec::new();
        for (number, (step, pick, who)) in steps.into_iter().enumerate() {
            match step {
                0 | 1 => world.send(who, 1 - who, &number.to_be_bytes()),
                2 => {
                    // Delivered in any order, and kept to be repeated.
                    if !world.wire.is_empty() {
                        let at = pick.index(world.wire.len());
                        let (from, to, datagram) = world.wire.remove(at).expect("within");
                        world.deliver(from, to, &datagram);
                        recorded.push((from, to, datagram));
                    }
                }
                3 => {
                    if !recorded.is_empty() {
                        let (from, to, datagram) = recorded[pick.index(recorded.len())].clone();
                        world.deliver(from, to, &datagram);
                    }
                }
                _ => {
                    world.now += Duration::from_millis(90);
                    world.tick();
                }
            }
        }
        for by in [0, 1] {
            let heard = world.heard(by);
            // A message may go out twice: over an old session, and over the one that it asks for.
            let mut numbers: Vec<_> = heard.iter().map(|message| message.to_vec()).collect();
            numbers.sort();
            let twice = numbers.windows(3).filter(|same| same[0] == same[2]).count();
            prop_assert_eq!(twice, 0);
        }
        world.wire.clear();
        world.now += Duration::from_secs(5);
        world.tick();
        for _ in 0..8 {
            world.send(0, 1, b"at last");
            world.settle();
            world.now += Duration::from_millis(300);
            world.tick();
            world.settle();
        }
        prop_assert!(world.heard(1).contains(&&b"at last"[..]));
    }
}
