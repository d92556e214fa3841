//! Keeps a snapshot, a watch and a lease going, whatever happens to the store.
//!
//! Two tasks run: the *watcher* reads everything once and then follows the changes; the *keeper*
//! holds a lease. Both report to one channel of [`Input`]s.
//!
//! What the consumer may rely on: each [`Input::Batch`] begins where the snapshot or batch before
//! it ended. Where that is impossible (the history was compacted), an [`Input::Snapshot`] comes
//! instead. No revision is older than one reported before: a store that was reset, or restored
//! from an old backup, counts as disconnected and is never read.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use selvedge_gateway::kv::{Batch, LeaseId, Revision, Snapshot, StoreError};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::Store;

/// The first pause before something is tried again; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause before something is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How long the watch has to report a change that a read has seen.
const GRACE: Duration = Duration::from_secs(1);
/// The longest silence of a watch that is not looked into while other keys change.
const LONGEST_QUIET: Duration = Duration::from_secs(300);

/// What the store has to say to the gateway core.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input {
    /// Everything anew: forget what was known before.
    Snapshot(Snapshot),
    /// What happened since.
    Batch(Batch),
    /// The watch is established; it lags behind the store by no more than the network.
    Connected,
    /// The store does not answer. What was known may be out of date.
    Disconnected {
        /// Why, for people.
        reason: String,
    },
    /// A lease was granted, and is kept alive from now on.
    Lease(LeaseId),
    /// The store says that the lease is gone, and its keys with it.
    LeaseLost,
}

/// What a supervisor is to do.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What to read and watch; at least one.
    pub prefixes: Vec<String>,
    /// How long the lease lives without being kept alive: whole seconds, at least 2.
    pub ttl: Duration,
    /// After how much silence of the watch the store is asked whether it missed anything.
    pub quiet: Duration,
    /// What an earlier run has read up to; nothing older is accepted.
    pub floor: Revision,
    /// The seed of the jitter of pauses.
    pub seed: u64,
}

impl Settings {
    /// With defaults for everything else; the seed is drawn by the operating system.
    #[must_use]
    pub fn new(prefixes: Vec<String>, ttl: Duration) -> Self {
        // Without randomness, the agents merely come back in step after an outage.
        let seed = getrandom::u64().unwrap_or_default();
        Self { prefixes, ttl, quiet: Duration::from_secs(5), floor: Revision(0), seed }
    }
}

/// The running tasks. When it is dropped, they end, and the lease lives on until it expires.
pub struct Supervisor {
    store: Arc<dyn Store>,
    watcher: JoinHandle<()>,
    keeper: JoinHandle<Option<LeaseId>>,
    stop: CancellationToken,
    ttl: Duration,
}

impl Supervisor {
    /// Starts with default settings.
    pub fn spawn(
        store: Arc<dyn Store>,
        prefixes: Vec<String>,
        ttl: Duration,
        inputs: mpsc::Sender<Input>,
    ) -> Self {
        Self::spawn_with(store, Settings::new(prefixes, ttl), inputs)
    }

    /// Starts. It ends when the receiver of `inputs` is dropped.
    pub fn spawn_with(
        store: Arc<dyn Store>,
        settings: Settings,
        inputs: mpsc::Sender<Input>,
    ) -> Self {
        let (stop, ttl) = (CancellationToken::new(), settings.ttl);
        let mut rng = ChaCha8Rng::seed_from_u64(settings.seed);
        let backoff = Backoff::new(rng.fork());
        let reader = Reader { store: Arc::clone(&store), prefixes: settings.prefixes };
        let (floor, accepted) = watch::channel(Floor { revision: settings.floor, refused: false });
        let keeper =
            Keeper { reader: reader.clone(), ttl, inputs: inputs.clone(), backoff, accepted };
        let watcher = Watcher {
            reader,
            inputs,
            backoff: Backoff::new(rng),
            quiet: (settings.quiet, settings.quiet),
            floor,
            seen: None,
            link: Link::Untold,
        };
        let keeper = tokio::spawn(keeper.run(stop.clone()));
        let watcher = tokio::spawn(watcher.run(stop.clone()));
        Self { store, watcher, keeper, stop, ttl }
    }

    /// Ends and revokes the lease, so that its keys are gone at once. Takes no longer than the
    /// lease would live.
    ///
    /// # Errors
    /// What the store says to the revocation; the lease expires by itself then.
    pub async fn shutdown(mut self) -> Result<(), StoreError> {
        self.stop.cancel();
        // The keeper fails only if it panicked; then nobody keeps the lease alive either.
        let lease = (&mut self.keeper).await.ok().flatten();
        let Some(lease) = lease else { return Ok(()) };
        let late = || StoreError::Unavailable("revoking the lease took too long".to_owned());
        match timeout(self.ttl, self.store.revoke(lease)).await {
            Ok(Err(StoreError::NoLease(_))) => Ok(()),
            Ok(result) => result,
            Err(_) => Err(late()),
        }
    }

    /// Ends and leaves the lease to live for its remaining time; returns it.
    pub async fn detach(mut self) -> Option<LeaseId> {
        self.stop.cancel();
        (&mut self.keeper).await.ok().flatten()
    }
}

impl fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervisor").field("ttl", &self.ttl).finish_non_exhaustive()
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.stop.cancel();
        self.watcher.abort();
        self.keeper.abort();
    }
}

/// Why a task ends for good.
struct Gone;

impl<T> From<mpsc::error::SendError<T>> for Gone {
    fn from(_: mpsc::error::SendError<T>) -> Self {
        Self
    }
}

/// What of the store is read.
#[derive(Clone)]
struct Reader {
    store: Arc<dyn Store>,
    prefixes: Vec<String>,
}

impl Reader {
    async fn everything(&self) -> Result<Snapshot, StoreError> {
        self.store.read(&self.prefixes).await
    }

    /// The store's revision, linearizably: of a read of keys that nobody has.
    async fn revision(&self) -> Result<Revision, StoreError> {
        let prefix = self.prefixes.first().map_or("", String::as_str);
        let nothing = format!("{prefix}\0nothing");
        self.store.read(&[nothing]).await.map(|snapshot| snapshot.revision)
    }
}

/// What tells a store that was reset.
#[derive(Clone, Copy)]
struct Floor {
    /// The latest revision ever reported; nothing older is accepted.
    revision: Revision,
    /// The store that there is has been found to be older.
    refused: bool,
}

struct Watcher {
    reader: Reader,
    inputs: mpsc::Sender<Input>,
    backoff: Backoff,
    /// After how much silence the watch is looked into, at first and now.
    quiet: (Duration, Duration),
    floor: watch::Sender<Floor>,
    /// Up to where the consumer knows everything, unless it has to read anew.
    seen: Option<Revision>,
    link: Link,
}

/// What the consumer was told of the connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Link {
    Untold,
    Up,
    Down {
        /// The store answers, but says no.
        refused: bool,
    },
}

impl Watcher {
    async fn run(mut self, stop: CancellationToken) {
        let inputs = self.inputs.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = inputs.closed() => {}
            Gone = self.forever() => {}
        }
    }

    async fn forever(&mut self) -> Gone {
        loop {
            match self.follow().await {
                Err(gone) => return gone,
                Ok(Ending::Renew) => continue,
                Ok(Ending::Failed(StoreError::Compacted(revision))) => {
                    tracing::info!(%revision, "the history is compacted: reading everything");
                    self.seen = None;
                }
                Ok(Ending::Failed(error)) => {
                    if self.disconnected(&error).await.is_err() {
                        return Gone;
                    }
                }
            }
            self.backoff.wait().await;
        }
    }

    /// Reads if need be, watches, and returns why that ended.
    async fn follow(&mut self) -> Result<Ending, Gone> {
        let after = match self.begin().await? {
            Ok(after) => after,
            Err(error) => return Ok(Ending::Failed(error)),
        };
        let mut batches = match self.reader.store.watch(&self.reader.prefixes, after).await {
            Ok(batches) => batches,
            Err(error) => return Ok(Ending::Failed(error)),
        };
        self.floor.send_modify(|floor| floor.refused = false);
        if std::mem::replace(&mut self.link, Link::Up) != Link::Up {
            tracing::info!(revision = %after, "watching the store");
            self.inputs.send(Input::Connected).await?;
        }
        let opened = Instant::now();
        loop {
            let ending = match timeout(self.quiet.1, batches.recv()).await {
                Ok(item) => self.take(item).await?,
                Err(_) => self.look_into(&mut batches).await?,
            };
            if opened.elapsed() > LONGEST_PAUSE {
                self.backoff.reset();
            }
            if let Some(ending) = ending {
                return Ok(ending);
            }
        }
    }

    /// After which revision to watch. A store that is older than what was reported is refused; it is
    /// another one, so that everything is read anew should it catch up.
    async fn begin(&mut self) -> Result<Result<Revision, StoreError>, Gone> {
        let Some(seen) = self.seen else { return self.read().await };
        let now = self.reader.revision().await;
        let checked = now.and_then(|now| self.check_floor(now));
        if matches!(checked, Err(StoreError::Refused(_))) {
            self.seen = None;
        }
        Ok(checked.map(|()| seen))
    }

    /// Takes what the watch reported; returns the ending if that was it.
    async fn take(
        &mut self,
        item: Option<Result<Batch, StoreError>>,
    ) -> Result<Option<Ending>, Gone> {
        match item {
            Some(Ok(batch)) if Some(batch.revision) > self.seen => {
                self.quiet.1 = self.quiet.0;
                self.advance(batch.revision);
                self.inputs.send(Input::Batch(batch)).await?;
                Ok(None)
            }
            // It would break the promise to the consumer, so it is a fault of the engine.
            Some(Ok(_)) => Ok(Some(Ending::Failed(unavailable("the watch went backwards")))),
            Some(Err(error)) => Ok(Some(Ending::Failed(error))),
            None => Ok(Some(Ending::Failed(unavailable("the watch ended")))),
        }
    }

    /// Looks into a silence: has the store changed without a word of the watch? Then it may be
    /// that only keys of others have changed, or that the watch is dead. To be sure, everything
    /// is read, and the watch opened anew, ever more rarely while there is nothing to report.
    async fn look_into(&mut self, batches: &mut Watched) -> Result<Option<Ending>, Gone> {
        let now = match self.reader.revision().await {
            Ok(now) => now,
            Err(error) => return Ok(Some(Ending::Failed(error))),
        };
        if Some(now) == self.seen {
            return Ok(None);
        }
        if let Ok(item) = timeout(GRACE, batches.recv()).await {
            return self.take(item).await;
        }
        self.quiet.1 = (self.quiet.1 * 2).min(LONGEST_QUIET).max(self.quiet.0);
        tracing::debug!(%now, "the watch is silent while the store changes");
        Ok(Some(match self.read().await? {
            Ok(_) => Ending::Renew,
            Err(error) => Ending::Failed(error),
        }))
    }

    /// Reads everything and reports it.
    async fn read(&mut self) -> Result<Result<Revision, StoreError>, Gone> {
        let snapshot = self.reader.everything().await;
        let checked = snapshot.and_then(|snapshot| {
            self.check_floor(snapshot.revision)?;
            Ok(snapshot)
        });
        let snapshot = match checked {
            Ok(snapshot) => snapshot,
            Err(error) => return Ok(Err(error)),
        };
        let revision = snapshot.revision;
        self.advance(revision);
        self.inputs.send(Input::Snapshot(snapshot)).await?;
        Ok(Ok(revision))
    }

    fn check_floor(&self, revision: Revision) -> Result<(), StoreError> {
        let floor = self.floor.borrow().revision;
        if revision >= floor {
            return Ok(());
        }
        self.floor.send_modify(|floor| floor.refused = true);
        let what = format!("the store was reset: it is at revision {revision}, after {floor}");
        Err(StoreError::Refused(what))
    }

    fn advance(&mut self, revision: Revision) {
        self.seen = Some(revision);
        self.floor.send_modify(|floor| floor.revision = floor.revision.max(revision));
    }

    /// Tells the consumer, once, and again if the store now says no instead of nothing.
    async fn disconnected(&mut self, error: &StoreError) -> Result<(), Gone> {
        let refused = matches!(error, StoreError::Refused(_));
        let down = Link::Down { refused };
        if std::mem::replace(&mut self.link, down) == down {
            tracing::debug!(%error, "still without the store");
            return Ok(());
        }
        if refused {
            tracing::warn!(%error, "the store cannot be used");
        } else {
            tracing::info!(%error, "without the store");
        }
        self.inputs.send(Input::Disconnected { reason: error.to_string() }).await?;
        Ok(())
    }
}

type Watched = mpsc::Receiver<Result<Batch, StoreError>>;

/// Why a watch ended.
enum Ending {
    /// It is to be opened again after what was read meanwhile.
    Renew,
    /// It failed.
    Failed(StoreError),
}

struct Keeper {
    reader: Reader,
    ttl: Duration,
    inputs: mpsc::Sender<Input>,
    backoff: Backoff,
    accepted: watch::Receiver<Floor>,
}

impl Keeper {
    /// Returns the lease that is held at the end.
    async fn run(mut self, stop: CancellationToken) -> Option<LeaseId> {
        let inputs = self.inputs.clone();
        let mut held = None;
        tokio::select! {
            () = stop.cancelled() => {}
            () = inputs.closed() => {}
            Gone = self.forever(&mut held) => {}
        }
        held
    }

    async fn forever(&mut self, held: &mut Option<LeaseId>) -> Gone {
        loop {
            let lease = self.grant().await;
            *held = Some(lease);
            // A consumer that takes nothing for the life of a lease loses it, and should.
            if self.inputs.send(Input::Lease(lease)).await.is_err() {
                return Gone;
            }
            self.keep(lease).await;
            *held = None;
            tracing::warn!(%lease, "the lease was lost");
            if self.inputs.send(Input::LeaseLost).await.is_err() {
                return Gone;
            }
        }
    }

    async fn grant(&mut self) -> LeaseId {
        loop {
            match self.reader.store.grant(self.ttl).await {
                Ok(lease) => {
                    self.backoff.reset();
                    return lease;
                }
                Err(error) => tracing::debug!(%error, "granting a lease"),
            }
            self.backoff.wait().await;
        }
    }

    /// Keeps the lease alive until the store says that it is gone. No answer is no such word: the
    /// lease may well live on.
    async fn keep(&mut self, lease: LeaseId) {
        let rhythm = self.ttl / 3;
        sleep(rhythm).await;
        loop {
            let begun = Instant::now();
            // The limit lets an engine that waits for one endpoint go on to the next in time.
            match timeout(rhythm, self.reader.store.keep_alive(lease)).await {
                Ok(Ok(())) => {
                    self.backoff.reset();
                    sleep(rhythm.saturating_sub(begun.elapsed())).await;
                }
                Ok(Err(StoreError::NoLease(_))) if self.is_accepted().await => return,
                Ok(Err(error)) => {
                    tracing::debug!(%error, %lease, "keeping a lease alive");
                    self.backoff.wait_at_most(rhythm / 4).await;
                }
                Err(_) => tracing::debug!(%lease, "keeping a lease alive takes too long"),
            }
        }
    }
}

impl Keeper {
    /// Waits until the consumer has read the store that there is, if it is another one than before:
    /// what that one says of leases means nothing until then. False if that cannot be told.
    async fn is_accepted(&mut self) -> bool {
        let floor = self.accepted.borrow().revision;
        match self.reader.revision().await {
            Ok(now) if now >= floor => self.accepted.wait_for(|floor| !floor.refused).await.is_ok(),
            Ok(_) | Err(_) => false,
        }
    }
}

/// Growing pauses with jitter, so that agents do not come back in step.
struct Backoff {
    rng: ChaCha8Rng,
    next: Duration,
}

impl Backoff {
    fn new(rng: ChaCha8Rng) -> Self {
        Self { rng, next: FIRST_PAUSE }
    }

    fn reset(&mut self) {
        self.next = FIRST_PAUSE;
    }

    async fn wait(&mut self) {
        self.wait_at_most(LONGEST_PAUSE).await;
    }

    async fn wait_at_most(&mut self, limit: Duration) {
        let pause = self.next.min(limit).mul_f64(self.rng.random_range(0.5..1.0));
        self.next = (self.next * 2).min(LONGEST_PAUSE);
        sleep(pause).await;
    }
}

fn unavailable(reason: &str) -> StoreError {
    StoreError::Unavailable(reason.to_owned())
}

#[cfg(test)]
mod tests;
