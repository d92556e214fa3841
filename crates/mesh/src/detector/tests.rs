//! One detector at a time, on a clock that the test turns.

use rand::SeedableRng as _;
use selvedge_model::MeshId;

use super::*;
use crate::lives::Lives;
use crate::roster::Roster;
use crate::rumor::{Alive, Verdict};
use crate::testing::{WALL, identity, roster};
use crate::verifier::Verifier;

const MESH: MeshId = MeshId([4; 20]);

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// The detector of the first member on the ring, and what it knows.
struct Bench {
    detector: Detector,
    known: Known,
    rng: ChaCha8Rng,
    now: Time,
}

/// What a member knows of its mesh.
struct Known {
    roster: Roster,
    lives: Lives,
    wards: BTreeSet<NodeId>,
    own: NodeId,
}

impl Known {
    fn view(&self) -> View<'_> {
        let Self { roster, lives, wards, own } = self;
        View { roster, lives, own: *own, wall: WALL, wards }
    }
}

impl Bench {
    fn new(members: u32) -> Self {
        let roster = roster(members);
        let own = roster.nodes(WALL).next().expect("some are members");
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let config = Probing { random_every: 1_000_000, ..Probing::default() };
        Self {
            detector: Detector::new(config, own, &mut rng, Time::ZERO),
            known: Known { roster, lives: Lives::default(), wards: BTreeSet::new(), own },
            rng,
            now: Time::ZERO,
        }
    }

    fn others(&self) -> Vec<NodeId> {
        self.known.roster.nodes(WALL).filter(|node| *node != self.known.own).collect()
    }

    /// What the detector wants done in this time, and when.
    fn pass(&mut self, length: Duration) -> Vec<(Time, Wish)> {
        let end = self.now + length;
        let mut wishes = Vec::new();
        while self.detector.poll_timeout() <= end {
            self.now = self.detector.poll_timeout().max(self.now);
            self.detector.note_time(self.now);
            let view = self.known.view();
            let now = self.now;
            for wish in self.detector.handle_timeout(&view, &mut self.rng, now) {
                if let Wish::Accuse { asker, target } = &wish
                    && *asker == self.known.own
                {
                    let accusation = self.accusation(self.known.own, *target, 0);
                    self.detector.handle_accusation(accusation, now);
                }
                wishes.push((now, wish));
            }
        }
        self.now = end;
        wishes
    }

    /// Passes time until the first question to somebody, and returns whom and its number.
    fn first_question(&mut self) -> (NodeId, u32) {
        loop {
            for (_, wish) in self.pass(ms(1)) {
                if let Wish::Ping(target, number) = wish {
                    return (target, number);
                }
            }
        }
    }

    fn accusation(&self, by: NodeId, target: NodeId, incarnation: u64) -> Signed<Accusation> {
        let number = (0..100).find(|number| identity(*number).node_id() == by);
        Accusation::sign(MESH, target, incarnation, &identity(number.expect("a member")))
    }

    fn accuse(&mut self, by: NodeId, target: NodeId) {
        let accusation = self.accusation(by, target, 0);
        self.detector.handle_accusation(accusation, self.now);
    }

    fn note_change(&mut self, node: NodeId) {
        self.detector.note_change(node, &self.known.view(), self.now);
    }
}

fn helpers(wishes: &[(Time, Wish)]) -> Vec<NodeId> {
    let asked = wishes.iter().filter_map(|(_, wish)| {
        let Wish::Ask { helper, .. } = wish else { return None };
        Some(*helper)
    });
    asked.collect()
}

fn pings(wishes: &[(Time, Wish)], node: NodeId) -> usize {
    wishes
        .iter()
        .filter(|(_, wish)| matches!(wish, Wish::Ping(target, _) if *target == node))
        .count()
}

fn convicted(wishes: &[(Time, Wish)]) -> Option<Time> {
    wishes.iter().find(|(_, wish)| matches!(wish, Wish::Convict(_))).map(|(at, _)| *at)
}

fn own_eyes(wishes: &[(Time, Wish)]) -> bool {
    wishes.iter().any(|(_, wish)| matches!(wish, Wish::OwnEyes(_)))
}

#[test]
fn the_next_on_the_ring_is_probed_at_every_interval() {
    let mut bench = Bench::new(9);
    let interval = bench.detector.config.interval;
    let mut times = Vec::new();
    for _ in 0..10 {
        let (target, number) = bench.first_question();
        assert_eq!(target, bench.others()[0]);
        times.push(bench.now);
        assert!(bench.detector.handle_ack(target, number).is_empty());
    }
    assert!(times[0] <= Time::ZERO + interval);
    for pair in times.windows(2) {
        let apart = pair[1].since(pair[0]);
        assert!(apart >= interval && apart <= interval + ms(2), "{apart:?}");
    }
}

#[test]
fn clients_are_probed_by_their_peer_too() {
    let mut bench = Bench::new(9);
    let ward = bench.others()[4];
    bench.known.wards.insert(ward);
    let wishes = bench.pass(ms(5000));
    assert!(pings(&wishes, ward) >= 4, "{wishes:?}");
}

#[test]
fn an_answer_ends_a_probe_and_a_late_one_too() {
    let mut bench = Bench::new(9);
    let (target, number) = bench.first_question();
    bench.pass(ms(450));
    // To the first question, when the third was asked and helpers with it.
    bench.detector.handle_ack(target, number);
    assert!(bench.detector.probes.is_empty());
    let (target, number) = bench.first_question();
    bench.detector.handle_ack(target, number.wrapping_sub(100));
    assert!(!bench.detector.probes.is_empty(), "that is of an earlier probe");
    bench.detector.handle_ack(bench.others()[3], number);
    assert!(bench.detector.probes.contains_key(&target), "that is of another node");
}

#[test]
fn helpers_are_asked_when_there_is_no_answer_and_others_later() {
    let mut bench = Bench::new(30);
    let (target, _) = bench.first_question();
    let config = bench.detector.config;
    let before = bench.pass(config.ask - ms(2));
    assert!(helpers(&before).is_empty() && pings(&before, target) >= 1, "it asks again itself");
    let wishes = bench.pass(ms(4));
    let first: BTreeSet<NodeId> = helpers(&wishes).into_iter().collect();
    assert_eq!(first.len(), config.helpers);
    assert!(!first.contains(&target) && !first.contains(&bench.known.own));
    let later: BTreeSet<NodeId> = helpers(&bench.pass(config.patience)).into_iter().collect();
    assert_eq!(later.len(), config.helpers);
    assert!(first.is_disjoint(&later));
}

#[test]
fn a_helper_that_was_answered_ends_the_probe_and_nobody_else_does() {
    let mut bench = Bench::new(30);
    let (target, number) = bench.first_question();
    let asked = bench.pass(ms(450));
    let helper = helpers(&asked)[0];
    let stranger =
        bench.others().into_iter().find(|node| *node != target && !helpers(&asked).contains(node));
    bench.detector.handle_vouch(stranger.expect("thirty are many"), target, number);
    assert!(bench.detector.probes.contains_key(&target), "it was not asked");
    bench.detector.handle_vouch(helper, target, number.wrapping_sub(50));
    assert!(bench.detector.probes.contains_key(&target), "that was of an earlier probe");
    bench.detector.handle_vouch(helper, target, number);
    assert!(!bench.detector.probes.contains_key(&target));
}

#[test]
fn a_helper_vouches_for_who_answers_and_accuses_who_does_not() {
    let mut bench = Bench::new(9);
    let (asker, target) = (bench.others()[5], bench.others()[6]);
    let begin = bench.now;
    bench.detector.handle_ask(asker, target, 77, begin);
    let asked = bench.pass(ms(10));
    let number = asked.iter().find_map(|(_, wish)| {
        let Wish::Ping(node, number) = wish else { return None };
        (*node == target).then_some(*number)
    });
    let wishes = bench.detector.handle_ack(target, number.expect("it is asked at once"));
    assert_eq!(wishes, [Wish::Vouch { asker, target, number: 77 }]);
    bench.detector.handle_ask(asker, target, 78, bench.now);
    let accusations = bench.pass(bench.detector.config.help + ms(1));
    let accused = |(_, wish): &&(Time, Wish)| *wish == Wish::Accuse { asker, target };
    assert_eq!(accusations.iter().filter(accused).count(), 1);
    assert!(pings(&accusations, target) >= 2, "it asks more than once");
}

#[test]
fn a_node_does_not_help_against_itself_nor_too_many_at_once() {
    let mut bench = Bench::new(9);
    let (asker, own, now) = (bench.others()[0], bench.known.own, bench.now);
    bench.detector.handle_ask(asker, own, 1, now);
    assert!(bench.detector.helps.is_empty());
    for number in 0..1000_u32 {
        let mut id = [1; 32];
        id[..4].copy_from_slice(&number.to_be_bytes());
        bench.detector.handle_ask(asker, NodeId(id), 1, now);
    }
    assert_eq!(bench.detector.helps.len(), MAX_HELPS);
}

/// M8: nobody's word alone, and not that of one helper beside the own.
#[test]
fn a_verdict_needs_enough_accusers_and_patience() {
    let mut bench = Bench::new(30);
    let (target, _) = bench.first_question();
    let began = bench.now;
    let asked = bench.pass(ms(450));
    let [one, two, ..] = helpers(&asked)[..] else { panic!("several are asked: {asked:?}") };
    bench.accuse(one, target);
    bench.accuse(one, target);
    let config = bench.detector.config;
    let too_few = bench.pass(config.patience + ms(200) - bench.now.since(began));
    assert_eq!(convicted(&too_few), None, "two accuse: this node, and one helper, twice");
    bench.accuse(two, target);
    let enough = bench.pass(ms(20));
    assert!(convicted(&enough).is_some(), "the third is enough, at once");
}

#[test]
fn no_number_of_accusers_makes_a_verdict_before_its_time() {
    let mut bench = Bench::new(30);
    let (target, _) = bench.first_question();
    let began = bench.now;
    let asked = bench.pass(ms(450));
    for helper in helpers(&asked) {
        bench.accuse(helper, target);
    }
    let wishes = bench.pass(ms(3000));
    let at = convicted(&wishes).expect("four helpers and this node");
    let patience = bench.detector.config.patience;
    let waited = at.since(began);
    assert!(waited + ms(2) >= patience && waited <= patience + ms(20), "{waited:?}");
}

#[test]
fn who_was_not_asked_does_not_count() {
    let mut bench = Bench::new(30);
    let (target, _) = bench.first_question();
    let asked = bench.pass(ms(450));
    let unasked: Vec<NodeId> = bench
        .others()
        .into_iter()
        .filter(|node| *node != target && !helpers(&asked).contains(node))
        .collect();
    // Of those that are asked later, too, none has accused yet.
    for node in unasked {
        let accusers = |bench: &Bench| bench.detector.probes[&target].accusations.len();
        let before = accusers(&bench);
        bench.accuse(node, target);
        assert_eq!(accusers(&bench), before);
    }
}

#[test]
fn with_nobody_in_reach_a_node_trusts_its_own_eyes_after_a_while() {
    for members in [2, 30] {
        let mut bench = Bench::new(members);
        bench.first_question();
        let alone = bench.detector.config.alone;
        assert!(!own_eyes(&bench.pass(alone - ms(100))), "{members}");
        let wishes = bench.pass(ms(200));
        assert!(own_eyes(&wishes) && convicted(&wishes).is_none(), "{members}");
    }
}

/// Lifeguard: who was slow itself heard nothing, and that means nothing.
#[test]
fn an_observer_that_stalled_begins_anew() {
    let mut bench = Bench::new(30);
    let (target, _) = bench.first_question();
    let asked = bench.pass(ms(450));
    for helper in helpers(&asked) {
        bench.accuse(helper, target);
    }
    bench.detector.handle_ask(helpers(&asked)[0], bench.others()[9], 5, bench.now);
    // It sleeps beyond the time at which it would have convicted.
    bench.now = bench.now + ms(2000);
    let woke = bench.now;
    let wishes = bench.pass(ms(1000));
    assert_eq!(convicted(&wishes), None, "what it was told before counts no more");
    let probe = &bench.detector.probes[&target];
    assert!(probe.began >= woke && bench.detector.helps.is_empty());
}

#[test]
fn being_called_a_little_late_is_no_stall() {
    let mut bench = Bench::new(30);
    let (target, _) = bench.first_question();
    let began = bench.detector.probes[&target].began;
    bench.now = bench.detector.poll_timeout() + bench.detector.config.stall;
    bench.pass(ms(1));
    assert_eq!(bench.detector.probes[&target].began, began);
}

#[test]
fn who_is_down_is_not_probed_but_tried_again_and_sooner_when_something_changes() {
    let mut bench = Bench::new(9);
    let (dead, other) = (bench.others()[0], bench.others()[1]);
    let accuse = |by| Accusation::sign(MESH, dead, 0, &identity(by));
    let verdict = Verdict::of(&[accuse(50), accuse(51)], &Verifier::default()).expect("two");
    bench.known.lives.hear_verdict(verdict);
    bench.note_change(dead);
    let wishes = bench.pass(ms(60_000));
    let (tried, probed) = (pings(&wishes, dead), pings(&wishes, other));
    // Every 1.5 s, give or take a fourth; the first ones sooner.
    assert!((32..60).contains(&tried), "{tried}");
    assert!(probed >= 50, "it watches the next one instead: {probed}");
    bench.note_change(other);
    let soon = bench.pass(ms(400));
    assert!(pings(&soon, dead) >= 1, "where one comes back, others may");
}

#[test]
fn contradiction_outdoes_the_verdict_and_ends_the_attempts() {
    let mut bench = Bench::new(9);
    let dead = bench.others()[0];
    let number = (0..100).find(|number| identity(*number).node_id() == dead).expect("a member");
    let accuse = |by| Accusation::sign(MESH, dead, 0, &identity(by));
    let verdict = Verdict::of(&[accuse(50), accuse(51)], &Verifier::default()).expect("two");
    assert!(bench.known.lives.hear_verdict(verdict.clone()));
    bench.note_change(dead);
    assert!(!bench.known.lives.hear_alive(Alive::sign(MESH, 0, &identity(number))), "not higher");
    assert!(bench.known.lives.hear_alive(Alive::sign(MESH, 1, &identity(number))));
    assert!(!bench.known.lives.hear_verdict(verdict), "that is of the past");
    bench.note_change(dead);
    assert_eq!(bench.first_question().0, dead, "it is watched again");
}
