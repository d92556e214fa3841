//! How the members are, each asked by itself (`Maintenance.Status`, which a member answers
//! without the others), on connections of their own: neither a long answer nor a hanging one to
//! somebody else's call is in the way.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions};
use futures_util::future::{OptionFuture, join, join_all};
use selvedge_gateway::kv::Health;
use tokio::time::{Instant, timeout};

/// A member that has not answered for so long gets a new connection: a machine that lost its
/// power and came back knows nothing of the old one.
const RENEWAL: Duration = Duration::from_secs(1);
/// How long the number of members is believed.
const COUNT_AGE: Duration = Duration::from_secs(10);

/// What a member said of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// Its id; never zero.
    member: u64,
    /// The id of the leader that it follows, or zero.
    leader: u64,
    term: u64,
    /// How much of the common log it has applied.
    applied: u64,
}

impl Answer {
    /// Whether the member follows a leader, as far as it knows.
    pub(super) fn is_led(&self) -> bool {
        self.leader != 0
    }

    /// Whether the member lacks what another one had when it was asked `earlier`.
    fn lags(&self, earlier: &Self) -> bool {
        self.applied < earlier.applied
    }
}

/// Who leads: the term and the leader's id.
pub(super) type Leadership = (u64, u64);

/// Asks the members.
pub(super) struct Lookout {
    seats: Vec<Seat>,
    options: ConnectOptions,
    /// The number of members, and when a member said so.
    count: Mutex<Option<(Instant, usize)>>,
    /// The id of the cluster that answered first; members of others do not count.
    cluster: OnceLock<u64>,
}

/// An endpoint, and what is known of the member behind it.
struct Seat {
    url: String,
    client: Mutex<Option<Client>>,
    /// When it last answered, or got a new connection.
    heard: Mutex<Instant>,
    /// The member's id, zero while it is unknown.
    member: AtomicU64,
}

impl Lookout {
    /// Prepares to ask; `options` as for calls, but without the demand for a leader.
    pub(super) fn new(urls: &[String], options: ConnectOptions) -> Self {
        let seat = |url: &String| Seat {
            url: url.clone(),
            client: Mutex::new(None),
            heard: Mutex::new(Instant::now()),
            member: AtomicU64::new(0),
        };
        let seats = urls.iter().map(seat).collect();
        Self { seats, options, count: Mutex::new(None), cluster: OnceLock::new() }
    }

    /// The health of the store; takes no longer than `patience`.
    pub(super) async fn health(&self, patience: Duration) -> Health {
        let count = OptionFuture::from((!self.is_count_fresh()).then(|| self.recount(patience)));
        let (answers, _) = join(self.ask_all_but(None, patience), count).await;
        self.judge(&answers)
    }

    /// What each member says within `patience`; one of them may be known to be silent.
    pub(super) async fn ask_all_but(
        &self,
        silent: Option<usize>,
        patience: Duration,
    ) -> Vec<Option<Answer>> {
        let ask = async |index| match silent {
            Some(silent) if silent == index => None,
            Some(_) | None => self.ask(index, patience).await,
        };
        join_all((0..self.seats.len()).map(ask)).await
    }

    /// What one member says within `patience`.
    pub(super) async fn ask(&self, index: usize, patience: Duration) -> Option<Answer> {
        let seat = &self.seats[index];
        let status = async {
            let mut client = seat.connected(&self.options).await?.maintenance_client();
            client.status().await
        };
        let status = timeout(patience, status).await.ok()?.ok()?;
        let header = status.header()?;
        let cluster = header.cluster_id();
        if *self.cluster.get_or_init(|| cluster) != cluster {
            return None;
        }
        let (member, leader) = (header.member_id(), status.leader());
        seat.member.store(member, Ordering::Relaxed);
        *lock(&seat.heard) = Instant::now();
        Some(Answer {
            member,
            leader,
            term: status.raft_term(),
            applied: status.raft_applied_index(),
        })
    }

    /// Who leads, if it is one that answers.
    pub(super) fn leadership(&self, answers: &[Option<Answer>]) -> Option<Leadership> {
        let named = answers.iter().flatten().map(|answer| (answer.term, answer.leader)).max()?;
        self.judge(answers).led.then_some(named)
    }

    fn judge(&self, answers: &[Option<Answer>]) -> Health {
        let id = |seat: &Seat| Some(seat.member.load(Ordering::Relaxed)).filter(|id| *id != 0);
        let known: Vec<Option<u64>> = self.seats.iter().map(id).collect();
        let members = lock(&self.count).map_or(self.seats.len(), |(_, members)| members);
        judge(members, &known, answers)
    }

    fn is_count_fresh(&self) -> bool {
        lock(&self.count).is_some_and(|(at, _)| at.elapsed() < COUNT_AGE)
    }

    /// Asks everybody for the number of members.
    async fn recount(&self, patience: Duration) {
        let ask = |seat| timeout(patience, self.list(seat));
        let counts = join_all(self.seats.iter().map(ask)).await;
        if let Some(members) = counts.into_iter().filter_map(|count| count.ok()?).max() {
            *lock(&self.count) = Some((Instant::now(), members));
        }
    }

    /// How many voting members one member knows.
    async fn list(&self, seat: &Seat) -> Option<usize> {
        let mut client = seat.connected(&self.options).await.ok()?.cluster_client();
        let list = client.member_list().await.ok()?;
        Some(list.members().iter().filter(|member| !member.is_learner()).count())
    }
}

impl Seat {
    /// The client of this endpoint, a new one if the old one has been of no use for long.
    async fn connected(&self, options: &ConnectOptions) -> Result<Client, etcd_client::Error> {
        let is_stale = lock(&self.heard).elapsed() > RENEWAL;
        if let Some(client) = lock(&self.client).as_ref().filter(|_| !is_stale) {
            return Ok(client.clone());
        }
        // Nothing is sent before the first question, so this does not wait for anything.
        let client = Client::connect([&self.url], Some(options.clone())).await?;
        *lock(&self.heard) = Instant::now();
        *lock(&self.client) = Some(client.clone());
        Ok(client)
    }
}

/// The health of a store of `members`, from what the endpoints answered, whose members' ids are
/// `known` as far as they ever answered.
fn judge(members: usize, known: &[Option<u64>], answers: &[Option<Answer>]) -> Health {
    let mut answering: Vec<u64> = answers.iter().flatten().map(|answer| answer.member).collect();
    answering.sort_unstable();
    answering.dedup();
    // A leader behind no endpoint cannot be asked, so it gets the benefit of the doubt.
    let is_asked = |leader| known.contains(&Some(leader)) || known.len() >= members;
    let is_there = |leader| answering.contains(&leader) || !is_asked(leader);
    let mut named = answers.iter().flatten().map(|answer| answer.leader).filter(|id| *id != 0);
    Health { members, answering: answering.len(), led: named.any(is_there) }
}

/// Which endpoints are to be left: those that do not answer, follow nobody or lag behind what
/// another one had at the round before, if there is one that is better.
pub(super) fn unfit(before: &[Option<Answer>], now: &[Option<Answer>]) -> Vec<usize> {
    let is_fit = |answer: &Option<Answer>| {
        let led = answer.as_ref().filter(|answer| answer.is_led());
        led.is_some_and(|answer| !before.iter().flatten().any(|earlier| answer.lags(earlier)))
    };
    if !now.iter().any(is_fit) {
        return Vec::new();
    }
    (0..now.len()).filter(|index| !is_fit(&now[*index])).collect()
}

/// Locks what no panic can leave half changed.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(member: u64, leader: u64, applied: u64) -> Option<Answer> {
        Some(Answer { member, leader, term: 2, applied })
    }

    fn health(members: usize, answering: usize, led: bool) -> Health {
        Health { members, answering, led }
    }

    #[test]
    fn only_a_leader_that_answers_leads() {
        let known = [Some(1), Some(2), Some(3)];
        let silent_leader = [None, answer(2, 1, 9), answer(3, 1, 9)];
        assert_eq!(judge(3, &known, &silent_leader), health(3, 2, false));
        let nobody = [answer(1, 0, 9), answer(2, 0, 9), None];
        assert_eq!(judge(3, &known, &nobody), health(3, 2, false));
        let led = [answer(1, 1, 9), None, None];
        assert_eq!(judge(3, &known, &led), health(3, 1, true));
        let one_knows = [None, answer(2, 1, 9), answer(3, 3, 9)];
        assert_eq!(judge(3, &known, &one_knows), health(3, 2, true));
    }

    #[test]
    fn a_leader_behind_no_endpoint_is_believed_in() {
        let followers = [answer(2, 1, 9), answer(3, 1, 9)];
        assert_eq!(judge(3, &[Some(2), Some(3)], &followers), health(3, 2, true));
        // With as many endpoints as members it must be behind the one that never answered.
        let one_silent = [None, answer(2, 1, 9), answer(3, 1, 9)];
        assert_eq!(judge(3, &[None, Some(2), Some(3)], &one_silent), health(3, 2, false));
        assert_eq!(judge(5, &[None, Some(2), Some(3)], &one_silent), health(5, 2, true));
    }

    #[test]
    fn two_endpoints_of_one_member_count_once() {
        let answers = [answer(1, 1, 9), answer(1, 1, 9)];
        assert_eq!(judge(3, &[Some(1), Some(1)], &answers), health(3, 1, true));
    }

    #[test]
    fn an_endpoint_is_left_only_for_a_better_one() {
        let before = [answer(1, 1, 5), answer(2, 1, 5), answer(3, 1, 5)];
        assert_eq!(unfit(&before, &before), Vec::<usize>::new());
        assert_eq!(unfit(&before, &[None, answer(2, 1, 5), answer(3, 1, 5)]), [0]);
        assert_eq!(unfit(&before, &[answer(1, 0, 5), answer(2, 1, 5), None]), [0, 2]);
        assert_eq!(unfit(&before, &[answer(1, 1, 4), answer(2, 1, 5), answer(3, 1, 6)]), [0]);
        let all_bad = [None, answer(2, 0, 5), answer(3, 1, 4)];
        assert_eq!(unfit(&before, &all_bad), Vec::<usize>::new());
    }
}
