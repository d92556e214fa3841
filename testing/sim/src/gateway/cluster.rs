//! The members of the store, as far as others notice them: who leads, who follows, and how long
//! they take to agree on it. The data are elsewhere: [`super::world::World::store`].
//!
//! It follows etcd 3.4 (raft with the quorum check, without the pre-vote): a leader that loses
//! the majority steps down after an election timeout, the others elect a new one after one to
//! two and a half seconds, and a member that comes back with a higher term may force an election.

use std::time::Duration;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use selvedge_gateway::kv::Health;
use selvedge_model::Time;

/// How long a member takes at most to write to its disk, in microseconds, if nothing is wrong.
pub const FAST_DISK: u64 = 2000;
/// A leader whose disk takes this long, in microseconds, does not send its heartbeats in time.
const STUCK_DISK: u64 = 1_000_000;

/// One member.
#[derive(Clone, Debug)]
pub struct Member {
    /// Where it is.
    pub site: usize,
    /// Whether its process is there.
    pub up: bool,
    /// Whether its process is stopped.
    pub frozen: bool,
    /// How long it takes at most to write to its disk, in microseconds.
    pub disk: u64,
    /// Whom it takes for the leader.
    view: Option<usize>,
    /// Whether it heard a leader with a majority when this was last looked at.
    hears: bool,
    /// Whether that one heard it, too.
    joined: bool,
    /// When it stops doing so, if it does not hear that one before.
    doubts_at: Option<Time>,
    /// Whether it has stood for election in vain, so that its term is higher than the others'.
    campaigned: bool,
}

impl Member {
    /// Whether it answers who reaches it.
    #[must_use]
    pub const fn answers(&self) -> bool {
        self.up && !self.frozen
    }
}

/// All members.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// The members.
    pub members: Vec<Member>,
    leader: Option<usize>,
    /// Whether the leader had a majority when this was last looked at.
    able: bool,
    /// When the next election is held, unless the leader is back before.
    election_at: Option<Time>,
}

impl Cluster {
    /// Members at these sites, of which the first one leads.
    #[must_use]
    pub fn new(sites: impl IntoIterator<Item = usize>) -> Self {
        let member = |site| Member {
            site,
            up: true,
            frozen: false,
            disk: FAST_DISK,
            view: Some(0),
            hears: true,
            joined: true,
            doubts_at: None,
            campaigned: false,
        };
        let members: Vec<Member> = sites.into_iter().map(member).collect();
        let leader = (!members.is_empty()).then_some(0);
        Self { members, leader, able: leader.is_some(), election_at: None }
    }

    /// The leader, if a majority follows it.
    #[must_use]
    pub fn acting_leader(&self) -> Option<usize> {
        self.leader.filter(|_| self.able)
    }

    /// Whether a member answers requests that need the majority.
    #[must_use]
    pub fn serves(&self, member: usize) -> bool {
        let Member { joined, view, .. } = self.members[member];
        let leader = self.acting_leader();
        self.members[member].answers() && joined && leader.is_some() && view == leader
    }

    /// Whether a member takes itself for the leader but has no majority.
    #[must_use]
    pub fn is_deluded(&self, member: usize) -> bool {
        self.members[member].answers()
            && self.members[member].view == Some(member)
            && self.acting_leader() != Some(member)
    }

    /// How long it takes at most until something is committed, in microseconds: until the leader
    /// and, with it, a majority have written it.
    #[must_use]
    pub fn commit_time(&self) -> u64 {
        let leader = self.acting_leader().map(|leader| self.members[leader].disk);
        leader.unwrap_or_default().max(self.majority_disk(|member| member.joined))
    }

    /// Whether no member that is there takes long to write.
    #[must_use]
    pub fn is_fast(&self) -> bool {
        self.members.iter().filter(|member| member.up).all(|member| member.disk <= FAST_DISK)
    }

    /// How long the fastest majority takes to write; if there are too few, those there are.
    fn majority_disk(&self, counts: impl Fn(&Member) -> bool) -> u64 {
        let there = self.members.iter().filter(|member| member.answers() && counts(member));
        let mut disks: Vec<u64> = there.map(|member| member.disk).collect();
        disks.sort_unstable();
        disks.into_iter().take(self.members.len() / 2 + 1).max().unwrap_or_default()
    }

    /// What somebody learns who asks all members that it reaches.
    #[must_use]
    pub fn health(&self, reaches: impl Fn(usize) -> bool) -> Health {
        let answers = |member: usize| self.members[member].answers() && reaches(member);
        let all = 0..self.members.len();
        let named = |member: usize| self.members[member].view.is_some_and(answers);
        Health {
            members: self.members.len(),
            answering: all.clone().filter(|member| answers(*member)).count(),
            led: all.filter(|member| answers(*member)).any(named),
        }
    }

    /// When [`look`](Self::look) has something to do, whatever happens to the links.
    #[must_use]
    pub fn next(&self) -> Option<Time> {
        let doubts = self.members.iter().filter_map(|member| member.doubts_at);
        doubts.chain(self.election_at).min()
    }

    /// Takes in from which sites messages get to which others now. Returns whether there is a new leader.
    pub fn look(
        &mut self,
        carries: impl Fn(usize, usize) -> bool,
        now: Time,
        rng: &mut ChaCha8Rng,
    ) -> bool {
        if self.members.is_empty() {
            return false;
        }
        let tells = |this: &Self, a: usize, b: usize| {
            let (from, to) = (&this.members[a], &this.members[b]);
            from.answers() && to.answers() && (a == b || carries(from.site, to.site))
        };
        let reach = |this: &Self, a: usize, b: usize| tells(this, a, b) && tells(this, b, a);
        self.able = self.leader.is_some_and(|leader| self.can_lead(leader, &reach));
        let elected = self.hold_election(&reach, now, rng);
        if elected {
            self.members.iter_mut().for_each(|member| member.campaigned = false);
        }
        for member in 0..self.members.len() {
            let leader = self.leader.filter(|_| self.able);
            let hears = leader.is_some_and(|leader| tells(self, leader, member));
            self.members[member].joined = leader.is_some_and(|leader| reach(self, member, leader));
            self.update_view(member, hears, now, rng);
        }
        elected
    }

    /// Whether a member has a majority and a disk that lets it send its heartbeats.
    fn can_lead(&self, member: usize, reach: &impl Fn(&Self, usize, usize) -> bool) -> bool {
        let all = 0..self.members.len();
        let followers = all.filter(|other| reach(self, member, *other)).count();
        followers > self.members.len() / 2 && self.members[member].disk < STUCK_DISK
    }

    fn hold_election(
        &mut self,
        reach: &impl Fn(&Self, usize, usize) -> bool,
        now: Time,
        rng: &mut ChaCha8Rng,
    ) -> bool {
        if self.able {
            self.election_at = None;
            return false;
        }
        // Votes are written before they are given.
        let votes = Duration::from_micros(self.majority_disk(|_| true));
        let at = *self.election_at.get_or_insert_with(|| now + millis(rng, 1000, 2500) + votes);
        if now < at {
            return false;
        }
        let able: Vec<usize> =
            (0..self.members.len()).filter(|member| self.can_lead(*member, reach)).collect();
        if able.is_empty() {
            self.election_at = Some(now + millis(rng, 500, 1500));
            return false;
        }
        self.leader = Some(able[rng.random_range(0..able.len())]);
        self.able = true;
        self.election_at = None;
        true
    }

    fn update_view(&mut self, member: usize, hears: bool, now: Time, rng: &mut ChaCha8Rng) {
        let leader = self.leader;
        let this = &mut self.members[member];
        this.hears = hears;
        if hears {
            this.doubts_at = None;
            if std::mem::take(&mut this.campaigned) && rng.random_bool(0.3) {
                return self.force_election(now, rng);
            }
            this.view = leader;
        } else if !this.answers() {
            // It comes back, if it does, without knowing anything.
            (this.view, this.doubts_at, this.campaigned) = (None, None, false);
        } else if this.view.is_some() {
            let at = *this.doubts_at.get_or_insert_with(|| now + millis(rng, 1000, 2000));
            if now >= at {
                (this.view, this.doubts_at, this.campaigned) = (None, None, true);
                if leader == Some(member) {
                    self.leader = None;
                }
            }
        }
    }

    /// A member with a higher term is back: the leader steps down.
    fn force_election(&mut self, now: Time, rng: &mut ChaCha8Rng) {
        self.leader = None;
        self.able = false;
        self.election_at = Some(now + millis(rng, 50, 1500));
        for member in &mut self.members {
            (member.view, member.doubts_at) = (None, None);
        }
    }
}

fn millis(rng: &mut ChaCha8Rng, from: u64, to: u64) -> Duration {
    Duration::from_millis(rng.random_range(from..to))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn at(ms: u64) -> Time {
        Time::ZERO + Duration::from_millis(ms)
    }

    /// Lets the cluster alone until `to`; returns when a new leader was there.
    fn run(
        cluster: &mut Cluster,
        joined: impl Fn(usize, usize) -> bool + Copy,
        mut now: Time,
        to: Time,
        rng: &mut ChaCha8Rng,
    ) -> Option<Time> {
        loop {
            if cluster.look(joined, now, rng) {
                return Some(now);
            }
            now = cluster.next().filter(|next| *next <= to)?.max(now);
        }
    }

    #[test]
    fn a_lost_leader_is_followed_by_another_after_an_election() {
        for seed in 0..50 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let mut cluster = Cluster::new([0, 1, 2]);
            assert!(!cluster.look(|_, _| true, at(0), &mut rng));
            assert!(cluster.health(|_| true).is_whole());
            cluster.members[0].up = false;
            cluster.look(|_, _| true, at(10), &mut rng);
            assert!(cluster.health(|_| true).is_leaderless(), "seen at once");
            let elected = run(&mut cluster, |_, _| true, at(10), at(9000), &mut rng);
            let elected = elected.expect("two of three are a majority");
            assert!(elected > at(1000) && elected < at(2600), "{elected}");
            assert!(cluster.health(|_| true).is_whole());
            assert!(cluster.serves(1) && cluster.serves(2) && !cluster.serves(0));
        }
    }

    #[test]
    fn a_leader_cut_off_believes_in_itself_for_a_while() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut cluster = Cluster::new([0, 1, 2]);
        let parted = |a: usize, b: usize| (a == 0) == (b == 0);
        cluster.look(|a, b| (a == 2) == (b == 2), at(0), &mut rng);
        assert!(!cluster.serves(2) && cluster.serves(1), "a follower that is cut off");
        cluster.look(parted, at(0), &mut rng);
        assert!(cluster.is_deluded(0) && cluster.acting_leader().is_none());
        let health = cluster.health(|member| member == 0);
        assert!(health.led && !health.is_leaderless() && !health.is_whole());
        run(&mut cluster, parted, at(0), at(9000), &mut rng).expect("the others elect");
        assert_ne!(cluster.acting_leader(), Some(0));
        assert!(!cluster.serves(0) && cluster.serves(1) && cluster.serves(2));
    }

    #[test]
    fn who_is_not_heard_by_the_leader_names_it_and_serves_nobody() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let mut cluster = Cluster::new([0, 1, 2]);
        cluster.look(|from, to| (from, to) != (1, 0), at(0), &mut rng);
        assert_eq!(cluster.acting_leader(), Some(0), "the third one follows");
        assert!(!cluster.serves(1) && cluster.serves(2));
        assert!(cluster.health(|_| true).is_whole(), "nobody can tell by asking");
        let elected = run(&mut cluster, |from, to| (from, to) != (1, 0), at(0), at(9000), &mut rng);
        assert_eq!(elected, None);
    }

    #[test]
    fn the_leader_and_a_majority_write_before_anything_is_committed() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut cluster = Cluster::new([0, 1, 2]);
        cluster.look(|_, _| true, at(0), &mut rng);
        let mut after = |member: usize, disk| {
            cluster.members[member].disk = disk;
            cluster.look(|_, _| true, at(0), &mut rng);
            cluster.commit_time()
        };
        assert_eq!(after(2, 500_000), FAST_DISK);
        assert_eq!(after(1, 300_000), 300_000);
        assert_eq!(after(0, 800_000), 800_000);
        after(0, STUCK_DISK);
        assert_eq!(cluster.acting_leader(), None, "its heartbeats are late");
        run(&mut cluster, |_, _| true, at(0), at(9000), &mut rng).expect("another one leads");
        assert_ne!(cluster.acting_leader(), Some(0));
    }

    #[test]
    fn without_a_majority_there_is_no_leader() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let mut cluster = Cluster::new([0, 1, 2]);
        cluster.members[0].up = false;
        cluster.members[2].up = false;
        assert_eq!(run(&mut cluster, |_, _| true, at(0), at(60_000), &mut rng), None);
        let health = cluster.health(|_| true);
        assert!(!health.is_leaderless() && !health.is_whole(), "{health:?}");
    }

    #[test]
    fn a_leader_that_is_back_soon_goes_on() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut cluster = Cluster::new([0, 1, 2]);
        cluster.look(|a, b| (a == 0) == (b == 0), at(0), &mut rng);
        assert!(!cluster.look(|_, _| true, at(500), &mut rng));
        assert_eq!(cluster.acting_leader(), Some(0));
        assert_eq!(cluster.next(), None);
    }
}
