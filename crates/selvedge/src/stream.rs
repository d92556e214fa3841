//! Events for those who watch: each reader sees all that happens after it has come, or is told how
//! much it has missed. Who tells never waits for who reads.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

/// Events that are kept for who watches and is slow to read. A takeover of some thousand networks
/// fits, and so does a mesh of as many members that is met anew.
pub(crate) const KEPT: usize = 8192;

/// An event that can be watched.
pub(crate) trait Told: Clone + Send + 'static {
    /// That so many events were missed.
    fn missed(events: u64) -> Self;
}

/// Where events come from. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Stream<E>(broadcast::Sender<E>);

impl<E: Told> Stream<E> {
    pub(crate) fn new() -> Self {
        Self(broadcast::Sender::new(KEPT))
    }

    /// Tells everybody who watches now.
    pub(crate) fn publish(&self, event: E) {
        // That nobody watches is no failure.
        let _ = self.0.send(event);
    }

    /// Everything that happens from now on.
    pub(crate) fn subscribe(&self) -> Subscriber<E> {
        Subscriber(self.0.subscribe())
    }

    /// Whether anybody watches.
    pub(crate) fn is_watched(&self) -> bool {
        self.0.receiver_count() > 0
    }
}

/// Somebody who watches.
#[derive(Debug)]
pub struct Subscriber<E>(broadcast::Receiver<E>);

#[allow(private_bounds, reason = "what can be watched is decided in this crate")]
impl<E: Told> Subscriber<E> {
    /// The next event, or that some were missed; waits for ever once the plane has ended. If this
    /// is cancelled, nothing is lost.
    pub async fn next(&mut self) -> E {
        match self.0.recv().await {
            Ok(event) => event,
            Err(RecvError::Lagged(events)) => E::missed(events),
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// Now, in milliseconds since 1970 (UTC).
pub(crate) fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
