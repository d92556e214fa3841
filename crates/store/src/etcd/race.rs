//! One call, tried on as many endpoints as it takes.
//!
//! A try is not left because it is slow: a busy store would only get more to do. It is left
//! because its member is silent when asked how it is; then the next endpoint is tried as well,
//! and whoever answers first has it. What was sent to a member that still follows a leader which
//! is no more is lost, so the call is sent again as soon as there is a new leader.

use std::future::{Future, pending};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::fault::Fault;
use super::lookout::Leadership;
use super::pool::{Counted, Pool};

/// After how long without an answer the member is asked how it is.
const DOUBT: Duration = Duration::from_millis(40);
/// How long it may take to answer that.
const PATIENCE: Duration = Duration::from_millis(40);
/// The same for a call that cannot be tried elsewhere.
const LAST_PATIENCE: Duration = Duration::from_millis(200);
/// The pause after all endpoints have failed, one after another.
const PAUSE: Duration = Duration::from_millis(50);
/// After how long a call is sent again, whatever the members say.
const AGAIN: Duration = Duration::from_millis(700);

/// What may be done for an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Plan {
    /// The call may be sent to any endpoint, any number of times.
    Repeat,
    /// It may be sent to this endpoint, once.
    Once(usize),
}

/// A call under way.
pub(super) struct Race<'a> {
    pool: &'a Arc<Pool>,
    plan: Plan,
    /// The endpoint of the first try and that of the latest.
    first: usize,
    latest: Option<usize>,
    /// How many of the endpoints were tried since the last pause.
    tried: usize,
    /// When the next try is due.
    due: Option<Instant>,
    deadline: Instant,
    /// There once the answer is late.
    late: Option<Counted>,
    leadership: watch::Receiver<Option<Leadership>>,
}

/// What happens next in a race.
enum Turn<T> {
    Tried(usize, Result<T, Fault>),
    Due,
    /// No answer for a while, from a member that is silent or not.
    Doubt {
        silent: bool,
    },
    NewLeader,
    Over,
}

impl<'a> Race<'a> {
    pub(super) fn new(pool: &'a Arc<Pool>, plan: Plan) -> Self {
        let first = match plan {
            Plan::Repeat => pool.current(),
            Plan::Once(index) => index,
        };
        let now = Instant::now();
        Self {
            pool,
            plan,
            first,
            latest: None,
            tried: 0,
            due: Some(now),
            deadline: now + pool.timeout(),
            late: None,
            leadership: pool.leadership(),
        }
    }

    /// Tries until there is an answer; the last fault if there is none.
    pub(super) async fn run<T, F>(mut self, try_on: impl Fn(usize) -> F) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        let mut tries = FuturesUnordered::new();
        let mut fault = super::pool::silent(self.pool.timeout());
        loop {
            let turn = tokio::select! {
                biased;
                Some((index, result)) = tries.next() => Turn::Tried(index, result),
                turn = self.turn() => turn,
            };
            let goes_on = match turn {
                Turn::Tried(index, Ok(value)) => {
                    self.pool.move_on(self.first, index);
                    return Ok(value);
                }
                Turn::Tried(_, Err(again @ Fault::Again { .. })) => {
                    fault = again;
                    self.failed()
                }
                Turn::Tried(_, Err(last @ Fault::Final(_))) => return Err(last),
                Turn::Due => {
                    let index = self.start();
                    let attempt = try_on(index);
                    tries.push(async move { (index, attempt.await) });
                    true
                }
                Turn::Doubt { silent } => self.doubted(silent),
                Turn::NewLeader => self.restarted(),
                Turn::Over => false,
            };
            if !goes_on {
                self.pool.move_on(self.first, self.next());
                return Err(fault);
            }
        }
    }

    /// What happens next, answers aside.
    async fn turn<T>(&mut self) -> Turn<T> {
        let (pool, plan, latest) = (self.pool, self.plan, self.latest.unwrap_or(self.first));
        tokio::select! {
            biased;
            () = sleep_until(self.deadline) => Turn::Over,
            () = wait_until(self.due) => Turn::Due,
            () = new_leader(&mut self.leadership), if self.late.is_some() => Turn::NewLeader,
            silent = is_silent(pool, plan, latest) => Turn::Doubt { silent },
        }
    }

    /// Notes that a try begins; returns the endpoint.
    fn start(&mut self) -> usize {
        let index = self.next();
        self.latest = Some(index);
        self.tried += 1;
        self.due = (self.plan == Plan::Repeat).then(|| Instant::now() + AGAIN);
        index
    }

    /// A try has failed. False if there is to be no other.
    fn failed(&mut self) -> bool {
        let pause = if self.tried < self.pool.len() { Duration::ZERO } else { PAUSE };
        if pause == PAUSE {
            self.tried = 0;
        }
        self.due = Some(Instant::now() + pause);
        self.plan == Plan::Repeat
    }

    /// There is still no answer. False if none is to be waited for.
    fn doubted(&mut self, silent: bool) -> bool {
        self.late.get_or_insert_with(|| self.pool.waiting());
        if !silent {
            return true;
        }
        match self.plan {
            Plan::Repeat if self.tried < self.pool.len() => self.due = Some(Instant::now()),
            Plan::Repeat => {}
            Plan::Once(_) => return self.pool.len() == 1,
        }
        true
    }

    /// There is a new leader, and what was sent before may be lost. The endpoint in use is one
    /// that follows it, if there is any.
    fn restarted(&mut self) -> bool {
        if self.plan == Plan::Repeat {
            (self.first, self.latest) = (self.pool.current(), None);
            (self.tried, self.due) = (0, Some(Instant::now()));
        }
        true
    }

    /// The endpoint of the next try.
    fn next(&self) -> usize {
        self.latest.map_or(self.first, |latest| (latest + 1) % self.pool.len())
    }
}

/// Waits until there is reason to doubt that an answer comes, and says whether the member is
/// silent.
async fn is_silent(pool: &Pool, plan: Plan, index: usize) -> bool {
    let patience = if plan == Plan::Repeat { PATIENCE } else { LAST_PATIENCE };
    sleep(DOUBT).await;
    pool.ask(index, patience).await.is_none()
}

async fn wait_until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => pending().await,
    }
}

async fn new_leader(leadership: &mut watch::Receiver<Option<Leadership>>) {
    loop {
        if leadership.changed().await.is_err() {
            return pending().await;
        }
        if leadership.borrow_and_update().is_some() {
            return;
        }
    }
}
