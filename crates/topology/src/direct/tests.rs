//! Two ends, or more, with NATs between them that let packets through or not, and calls that get
//! lost, come late or twice.

use std::collections::BTreeSet;

use super::*;

const TICK: Duration = Duration::from_millis(100);
const A: NodeId = NodeId([1; 32]);
const B: NodeId = NodeId([2; 32]);

/// Random numbers that repeat (Steele, Lea, Flood: SplitMix).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ mixed >> 31
    }

    fn hits(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }
}

struct World {
    ends: BTreeMap<NodeId, Direct>,
    now: Time,
    random: Random,
    /// How many of a hundred calls are lost.
    loss: u64,
    /// What is under way, and when it arrives.
    under_way: Vec<(Time, Call)>,
    /// From whom to whom no packet gets through.
    blocked: BTreeSet<(NodeId, NodeId)>,
    /// Who sends to whom.
    traffic: BTreeSet<(NodeId, NodeId)>,
    sessions: BTreeSet<(NodeId, NodeId)>,
    /// Who sends to whom directly, as of this tick.
    carrying: BTreeSet<(NodeId, NodeId)>,
    received: BTreeMap<(NodeId, NodeId), u64>,
    /// Since when only one end of a pair carries.
    apart: BTreeMap<(NodeId, NodeId), Time>,
    longest_apart: Duration,
    news: Vec<(NodeId, News)>,
}

fn place(of: NodeId) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, of.as_bytes()[0]], 7))
}

fn inner(of: NodeId) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, of.as_bytes()[0]], 7))
}

impl World {
    fn new(seed: u64, nodes: &[NodeId]) -> Self {
        let mut world = Self {
            ends: nodes.iter().map(|node| (*node, Direct::new(*node, seed))).collect(),
            now: Time::from_micros(1_000_000),
            random: Random(seed),
            loss: 0,
            under_way: Vec::new(),
            blocked: BTreeSet::new(),
            traffic: BTreeSet::new(),
            sessions: BTreeSet::new(),
            carrying: BTreeSet::new(),
            received: BTreeMap::new(),
            apart: BTreeMap::new(),
            longest_apart: Duration::ZERO,
            news: Vec::new(),
        };
        for own in nodes {
            world.introduce(*own);
        }
        world
    }

    fn introduce(&mut self, own: NodeId) {
        let others = self.ends.keys().filter(|node| **node != own);
        let partners = others.map(|node| (*node, vec![inner(*node)])).collect();
        let now = self.now;
        self.end(own).set_partners(partners, now);
    }

    fn end(&mut self, node: NodeId) -> &mut Direct {
        self.ends.get_mut(&node).expect("there")
    }

    fn talk(&mut self, a: NodeId, b: NodeId) {
        self.traffic.extend([(a, b), (b, a)]);
    }

    fn block(&mut self, a: NodeId, b: NodeId) {
        self.blocked.extend([(a, b), (b, a)]);
    }

    fn passes(&self, from: NodeId, to: NodeId) -> bool {
        !self.blocked.contains(&(from, to))
    }

    fn carries(&self, a: NodeId, b: NodeId) -> bool {
        self.ends[&a].wishes().get(&b).is_some_and(|wish| wish.carries)
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now = self.now + TICK;
            self.deliver();
            self.shake_hands();
            for node in self.ends.keys().copied().collect::<Vec<_>>() {
                self.look(node);
                self.send(node);
            }
            self.check();
        }
    }

    fn deliver(&mut self) {
        let now = self.now;
        let (due, later) = self.under_way.drain(..).partition(|(at, _)| *at <= now);
        self.under_way = later;
        for (_, call) in due {
            if let Some(end) = self.ends.get_mut(&call.to) {
                end.hear(call, now);
            }
        }
    }

    /// Both ends have each other as peers. Who is sent a handshake has a session, though its answer
    /// may not get through.
    fn shake_hands(&mut self) {
        let (mut peers, mut carrying) = (BTreeSet::new(), BTreeSet::new());
        for (own, end) in &self.ends {
            let wishes = end.wishes();
            assert!(wishes.len() <= MAX_PATHS);
            peers.extend(wishes.keys().map(|other| (*own, *other)));
            let carries = wishes.iter().filter(|(_, wish)| wish.carries);
            carrying.extend(carries.map(|(other, _)| (*own, *other)));
        }
        self.carrying = carrying;
        let both = peers.iter().filter(|(a, b)| peers.contains(&(*b, *a))).copied();
        let both: BTreeSet<(NodeId, NodeId)> = both.collect();
        let mut lasting: BTreeSet<_> = self.sessions.intersection(&both).copied().collect();
        lasting.extend(both.into_iter().filter(|(own, other)| self.passes(*other, *own)));
        self.sessions = lasting;
    }

    fn look(&mut self, node: NodeId) {
        if self.ends[&node].poll_timeout().is_none_or(|due| due > self.now) {
            return;
        }
        let link = |other: &NodeId| Link {
            session: self.sessions.contains(&(node, *other)),
            rx: self.received.get(&(node, *other)).copied().unwrap_or_default(),
        };
        let links = self.ends.keys().map(|other| (*other, link(other))).collect();
        let used: Vec<NodeId> =
            self.traffic.iter().filter(|(from, _)| *from == node).map(|(_, to)| *to).collect();
        let now = self.now;
        let end = self.end(node);
        used.iter().for_each(|to| end.note_use(*to, now));
        end.look(&links, now);
        let probes: Vec<NodeId> = end.probes().collect();
        for to in used.iter().map(|to| (*to, 1000)).chain(probes.iter().map(|to| (*to, 48))) {
            self.packet(node, to.0, to.1);
        }
    }

    /// A packet that is sent directly arrives if it gets through, and the receiver takes it from
    /// there.
    fn packet(&mut self, from: NodeId, to: NodeId, bytes: u64) {
        if self.carrying.contains(&(from, to))
            && self.passes(from, to)
            && self.sessions.contains(&(to, from))
        {
            *self.received.entry((to, from)).or_default() += bytes;
        }
    }

    fn send(&mut self, node: NodeId) {
        while let Some(call) = self.end(node).poll_call() {
            let copies = match self.random.next() % 100 {
                lost if lost < self.loss => 0,
                doubled if doubled < self.loss + 5 => 2,
                _ => 1,
            };
            for _ in 0..copies {
                let at = self.now + Duration::from_millis(self.random.next() % 200);
                let (seen, yours) = (Some(place(call.from)), Some(place(call.to)));
                self.under_way.push((at, Call { seen, yours, ..call }));
            }
        }
        while let Some(news) = self.end(node).poll_news() {
            self.news.push((node, news));
        }
    }

    fn check(&mut self) {
        let carrying = &self.carrying;
        let one_sided = carrying.iter().filter(|(a, b)| !carrying.contains(&(*b, *a)));
        let apart = one_sided.map(|(a, b)| {
            let pair = (*a.min(b), *a.max(b));
            (pair, self.apart.get(&pair).copied().unwrap_or(self.now))
        });
        self.apart = apart.collect();
        let longest = self.apart.values().map(|since| self.now.since(*since)).max();
        self.longest_apart = self.longest_apart.max(longest.unwrap_or_default());
    }
}

#[test]
fn who_talks_to_each_other_does_so_directly() {
    let mut world = World::new(1, &[A, B]);
    world.run(Duration::from_secs(5));
    assert!(world.ends[&A].wishes().is_empty(), "nobody sends anything");
    world.talk(A, B);
    world.run(Duration::from_secs(5));
    assert!(world.carries(A, B) && world.carries(B, A));
    assert_eq!(world.ends[&A].wishes()[&B], Wish { endpoint: Some(place(B)), carries: true });
    assert!(world.longest_apart <= Duration::from_millis(500), "{:?}", world.longest_apart);
    world.run(Duration::from_secs(600));
    let ended = world.news.iter().filter(|(_, news)| matches!(news, News::Ended(..))).count();
    assert_eq!(ended, 0, "{:?}", world.news);
}

#[test]
fn one_direction_is_enough() {
    for (from, to) in [(A, B), (B, A)] {
        let mut world = World::new(2, &[A, B]);
        world.traffic.insert((from, to));
        world.run(Duration::from_secs(300));
        assert!(world.carries(A, B) && world.carries(B, A));
        let ended = world.news.iter().filter(|(_, news)| matches!(news, News::Ended(..))).count();
        assert_eq!(ended, 0, "probes are heard where nothing else is: {:?}", world.news);
    }
}

#[test]
fn what_is_not_used_ends() {
    let mut world = World::new(3, &[A, B]);
    world.talk(A, B);
    world.run(Duration::from_secs(10));
    world.traffic.clear();
    world.run(Duration::from_secs(200));
    assert!(world.ends.values().all(|end| end.wishes().is_empty()));
    world.talk(A, B);
    world.run(Duration::from_secs(20));
    assert!(world.carries(A, B) && world.carries(B, A));
}

#[test]
fn nats_that_let_nobody_in_are_tried_ever_more_seldom() {
    let mut world = World::new(4, &[A, B]);
    world.block(A, B);
    world.talk(A, B);
    world.run(Duration::from_secs(3600));
    assert!(!world.news.iter().any(|(_, news)| matches!(news, News::Begun(_))));
    let tries = world.news.iter().filter(|(_, news)| matches!(news, News::Tried(_))).count();
    // Both ends try, each time at most once in 300 s after the first few.
    assert!((6..=40).contains(&tries), "{tries}");
    assert!(world.ends[&A].counts().failures > 2);
    // One of them comes to another network, and says so.
    world.blocked.clear();
    let (now, moved) = (world.now, BTreeMap::from([(B, vec![place(B)])]));
    world.end(A).set_partners(moved, now);
    world.run(Duration::from_secs(10));
    assert!(world.carries(A, B) && world.carries(B, A));
}

#[test]
fn a_path_that_falls_silent_is_left_by_both() {
    for blocked in [vec![(A, B)], vec![(B, A)], vec![(A, B), (B, A)]] {
        let mut world = World::new(5, &[A, B]);
        world.talk(A, B);
        world.run(Duration::from_secs(70));
        assert!(world.carries(A, B) && world.carries(B, A));
        world.blocked.extend(blocked);
        world.run(Duration::from_secs(10));
        assert!(!world.carries(A, B) && !world.carries(B, A), "{:?}", world.news);
        world.blocked.clear();
        world.run(Duration::from_secs(60));
        assert!(world.carries(A, B) && world.carries(B, A), "{:?}", world.news);
    }
}

#[test]
fn who_hears_and_is_not_heard_stays_with_the_peers() {
    for (from, to) in [(A, B), (B, A)] {
        let mut world = World::new(7, &[A, B]);
        world.blocked.insert((from, to));
        world.talk(A, B);
        world.run(Duration::from_secs(900));
        let begun = world.news.iter().any(|(_, news)| matches!(news, News::Begun(_)));
        assert!(!begun, "{:?}", world.news);
    }
}

#[test]
fn who_starts_anew_finds_its_partners_again() {
    let mut world = World::new(6, &[A, B]);
    world.talk(A, B);
    world.run(Duration::from_secs(20));
    world.ends.insert(A, Direct::new(A, 77));
    world.sessions.clear();
    world.introduce(A);
    world.run(Duration::from_secs(30));
    assert!(world.carries(A, B) && world.carries(B, A), "{:?}", world.news);
}

/// The rule is that the two ends do not disagree for long, whatever is lost.
#[test]
fn lost_calls_only_delay() {
    for seed in 0..60 {
        let mut world = World::new(seed, &[A, B]);
        world.loss = 40;
        world.talk(A, B);
        world.run(Duration::from_secs(240));
        let apart = world.longest_apart;
        assert!(apart <= Duration::from_secs(8), "seed {seed}: apart for {apart:?}");
        let began = world.news.iter().any(|(_, news)| matches!(news, News::Begun(_)));
        assert!(began, "seed {seed}: {:?}", world.news);
    }
}

/// NATs that come to let packets through and cease to, members that start anew, and lost calls.
#[test]
fn after_whatever_happens_all_that_can_is_direct() {
    let nodes: Vec<NodeId> = (1..=6).map(|number| NodeId([number; 32])).collect();
    for seed in 0..5 {
        let mut world = World::new(seed, &nodes);
        let pairs: Vec<(NodeId, NodeId)> = nodes
            .iter()
            .flat_map(|a| nodes.iter().map(move |b| (*a, *b)))
            .filter(|(a, b)| a < b)
            .collect();
        pairs.iter().for_each(|(a, b)| world.talk(*a, *b));
        world.loss = 20;
        for _ in 0..20 {
            for pair in &pairs {
                if world.random.hits(20) {
                    world.block(pair.0, pair.1);
                } else if world.random.hits(50) {
                    world.blocked.retain(|it| it != pair && *it != (pair.1, pair.0));
                }
            }
            if world.random.hits(20) {
                let (node, seed) = (nodes[world.random.next() as usize % 6], world.random.next());
                world.ends.insert(node, Direct::new(node, seed));
                world.introduce(node);
            }
            world.run(Duration::from_secs(15));
        }
        assert!(world.longest_apart <= Duration::from_secs(10), "seed {seed}");
        world.loss = 0;
        world.run(Duration::from_secs(700));
        for (a, b) in pairs {
            let expected = world.passes(a, b);
            assert_eq!((world.carries(a, b), world.carries(b, a)), (expected, expected), "{seed}");
        }
    }
}

#[test]
fn behind_one_nat_inner_addresses_are_tried_first_and_then_the_outer_one() {
    let mut end = Direct::new(B, 1);
    let now = Time::from_micros(1_000_000);
    end.set_partners(BTreeMap::from([(A, vec![inner(A)])]), now);
    let ask = |number, yours| Call { from: A, to: B, number, word: 0, seen: Some(place(A)), yours };
    let near = Some(SocketAddr::from(([198, 51, 100, 1], 99)));
    end.hear(ask(1, near), now);
    assert_eq!(end.wishes()[&A].endpoint, Some(inner(A)));
    let later = now + Duration::from_secs(6);
    end.look(&BTreeMap::new(), later);
    assert!(end.wishes().is_empty(), "no session in time");
    end.hear(ask(2, near), later);
    assert_eq!(end.wishes()[&A].endpoint, Some(place(A)));
    // Elsewhere a private address is somebody else's.
    let mut end = Direct::new(B, 1);
    end.set_partners(BTreeMap::from([(A, vec![inner(A), place(B)])]), now);
    end.hear(ask(1, Some(place(B))), now);
    end.look(&BTreeMap::new(), later);
    end.hear(ask(2, Some(place(B))), later);
    assert_eq!(end.wishes()[&A].endpoint, Some(place(B)), "what else it announces");
}

#[test]
fn strangers_and_unknown_words_are_not_heard() {
    let mut end = Direct::new(B, 1);
    let now = Time::from_micros(1_000_000);
    let call = Call { from: A, to: B, number: 1, word: 0, seen: Some(place(A)), yours: None };
    end.hear(call, now);
    end.set_partners(BTreeMap::from([(A, Vec::new())]), now);
    end.hear(Call { word: 9, ..call }, now);
    end.hear(Call { to: A, ..call }, now);
    assert!(end.wishes().is_empty() && end.poll_call().is_none());
    end.hear(call, now);
    assert_eq!(end.wishes().len(), 1);
    end.set_partners(BTreeMap::new(), now);
    assert!(end.wishes().is_empty() && end.poll_timeout().is_none(), "it left");
}

#[test]
fn paths_and_questions_are_bounded() {
    let node = |number: u16| {
        let mut id = [9; 32];
        id[..2].copy_from_slice(&number.to_be_bytes());
        NodeId(id)
    };
    let mut end = Direct::new(A, 1);
    let mut now = Time::from_micros(1_000_000);
    end.set_partners((0..2000).map(|number| (node(number), Vec::new())).collect(), now);
    (0..2000).for_each(|number| end.note_use(node(number), now));
    let asked = std::iter::from_fn(|| end.poll_call()).count();
    assert_eq!(asked, ASKED_AT_ONCE as usize);
    for number in 0..2000 {
        let call = Call { from: node(number), to: A, number: 1, word: 0, seen: None, yours: None };
        end.hear(call, now);
    }
    let active = end.paths.values().filter(|path| path.is_active()).count();
    assert_eq!(active, MAX_PATHS);
    now = now + Duration::from_secs(60);
    (0..2000).for_each(|number| end.note_use(node(number), now));
    end.look(&BTreeMap::new(), now);
    assert!(end.paths.len() <= MAX_PATHS + MAX_RESTING, "{}", end.paths.len());
}

#[test]
fn who_was_not_used_for_the_longest_time_makes_room() {
    let nodes: Vec<NodeId> = (1..=70).map(|number| NodeId([number; 32])).collect();
    let mut world = World::new(8, &nodes);
    nodes[1..=MAX_PATHS].iter().for_each(|node| world.talk(A, *node));
    world.run(Duration::from_secs(20));
    let carrying = |world: &World| nodes.iter().filter(|node| world.carries(A, **node)).count();
    assert_eq!(carrying(&world), MAX_PATHS);
    let late = nodes[MAX_PATHS + 1];
    world.talk(A, late);
    world.run(Duration::from_secs(20));
    assert!(!world.carries(A, late), "all others are in use");
    world.traffic.retain(|pair| *pair != (A, B) && *pair != (B, A));
    world.run(Duration::from_secs(60));
    assert!(world.carries(A, late) && !world.carries(A, B));
    assert_eq!(carrying(&world), MAX_PATHS);
}

#[test]
fn who_missed_a_word_hears_it_again() {
    let mut end = Direct::new(B, 1);
    let now = Time::from_micros(1_000_000);
    end.set_partners(BTreeMap::from([(A, Vec::new())]), now);
    let mut hear = |word: Word, number| {
        let (word, seen) = (word as u8, Some(place(A)));
        end.hear(Call { from: A, to: B, number, word, seen, yours: None }, now);
        if word == Word::Answer as u8 {
            end.look(&BTreeMap::from([(A, Link { session: true, rx: 9 })]), now);
        }
        let said = end.poll_call().map(|call| (Word::of(call.word).expect("known"), call.number));
        assert_eq!(end.poll_call(), None);
        (said, end.wishes().get(&A).map(|wish| wish.carries))
    };
    assert_eq!(hear(Word::Met, 1), (Some((Word::Part, 1)), None), "nothing is under way");
    assert_eq!(hear(Word::Part, 1), (None, None));
    assert_eq!(hear(Word::Ask, 2), (Some((Word::Answer, 2)), Some(false)));
    assert_eq!(hear(Word::Ask, 2), (Some((Word::Answer, 2)), Some(false)), "the answer was lost");
    assert_eq!(hear(Word::Ask, 3), (None, Some(false)), "so soon it is an old one");
    assert_eq!(hear(Word::Answer, 2), (Some((Word::Met, 2)), Some(false)), "there is a session");
    assert_eq!(
        hear(Word::Agreed, 1),
        (Some((Word::Part, 1)), Some(false)),
        "of an earlier attempt"
    );
    assert_eq!(hear(Word::Met, 2), (Some((Word::Agreed, 2)), Some(true)));
    assert_eq!(hear(Word::Met, 2), (Some((Word::Agreed, 2)), Some(true)), "that word was lost");
    assert_eq!(hear(Word::Agreed, 2), (None, Some(true)), "and no more after it");
    assert_eq!(hear(Word::Part, 1), (None, Some(true)));
    assert_eq!(hear(Word::Part, 2), (None, None));
}
