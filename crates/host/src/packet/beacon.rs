use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use selvedge_model::Time;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::schedule::Schedule;
use super::solicitation::Solicitations;
use super::{Announcer, Error, Frame};

/// How long it listens no more after the kernel has refused to be listened to.
const DEAF: Duration = Duration::from_secs(1);

/// What is advertised on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advert {
    /// The router advertisement, from its Ethernet header on.
    pub frame: Arc<[u8]>,
    /// Counts the announcements of the network: when it grows, stations shall hear soon.
    pub announced: u64,
    /// The least time between two unsolicited advertisements.
    pub min_interval: Duration,
    /// The greatest time between two unsolicited advertisements.
    pub max_interval: Duration,
}

/// What is advertised, by the index of the interface.
type Adverts = BTreeMap<u32, Advert>;

/// Sends router advertisements, now and then and when stations ask, for the networks that this
/// host answers for. It works on a task of its own, which ends with this value.
///
/// A network that is taken out is advertised no more, and nothing tells the stations: a last
/// advertisement with the lifetime 0 would make them give up the link-local address that the next
/// gateway answers for.
#[derive(Debug)]
pub struct Beacon {
    adverts: watch::Sender<Adverts>,
}

impl Beacon {
    /// Begins to listen in the network namespace of the calling thread. A host without IPv6 hears
    /// no solicitations.
    ///
    /// # Errors
    /// If this process may not open raw sockets.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn spawn(announcer: Arc<Announcer>) -> Result<Self, Error> {
        let (adverts, wanted) = watch::channel(Adverts::new());
        let solicitations = Solicitations::open()?;
        let schedule = Schedule::new(RandomState::new().hash_one(0));
        let task = Task { announcer, wanted, solicitations, schedule, origin: Instant::now() };
        tokio::spawn(task.run());
        Ok(Self { adverts })
    }

    /// Changes what is advertised.
    pub fn change(&self, change: impl FnOnce(&mut BTreeMap<u32, Advert>)) {
        self.adverts.send_modify(change);
    }
}

struct Task {
    announcer: Arc<Announcer>,
    wanted: watch::Receiver<Adverts>,
    solicitations: Option<Solicitations>,
    schedule: Schedule,
    origin: Instant,
}

impl Task {
    async fn run(mut self) {
        loop {
            let due = self.due_at();
            tokio::select! {
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.read();
                }
                heard = next(self.solicitations.as_ref()) => self.hear(heard).await,
                () = wait(due) => self.send().await,
            }
        }
    }

    fn read(&mut self) {
        let now = self.now();
        let adverts = self.wanted.borrow_and_update();
        self.schedule.handle_adverts(&adverts, now);
    }

    async fn hear(&mut self, heard: io::Result<u32>) {
        match heard {
            Ok(index) => self.schedule.handle_solicitation(index, self.now()),
            Err(error) => {
                tracing::debug!(%error, "router solicitations cannot be heard for a moment");
                sleep(DEAF).await;
            }
        }
    }

    fn due_at(&self) -> Option<Instant> {
        self.schedule.poll_timeout().map(|due| self.origin + due.since(Time::ZERO))
    }

    /// Sends what is due. What was given up while frames were on their way waits no longer.
    async fn send(&mut self) {
        let silent = self.announcer.mute().is_on();
        for index in self.schedule.poll_due(self.now(), silent) {
            if self.wanted.has_changed().unwrap_or(true) {
                self.read();
            }
            let Some(bytes) = self.schedule.frame(index) else { continue };
            for (_, error) in self.announcer.send(&[Frame { index, bytes }]).await {
                // An interface that has gone is found by whoever looks for it.
                tracing::debug!(index, %error, "a router advertisement was not sent");
            }
        }
    }

    fn now(&self) -> Time {
        Time::ZERO + self.origin.elapsed()
    }
}

async fn next(solicitations: Option<&Solicitations>) -> io::Result<u32> {
    match solicitations {
        Some(solicitations) => solicitations.next().await,
        None => std::future::pending().await,
    }
}

async fn wait(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => std::future::pending().await,
    }
}
