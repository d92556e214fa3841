//! The store: etcd and embedded engines behind one trait.
//!
//! | module | what it is |
//! |---|---|
//! | [`etcd`] | the engine for several machines: a cluster of etcd |
//! | [`embedded`] | the engine for one machine: the model of the store, served over a socket |
//! | [`supervisor`] | keeps a snapshot, a watch and a lease going on either of them |
//!
//! Log levels: `debug` for each failed try, `info` for each change between connected and
//! disconnected, `warn` for what an operator should look at (foreign keys, a store that was
//! reset, a lost lease). Nothing here logs at `error`.

pub mod embedded;
pub mod etcd;
pub mod supervisor;

use std::time::Duration;

use async_trait::async_trait;
use selvedge_gateway::kv::{Batch, Health, LeaseId, Revision, Snapshot, StoreError, Txn, TxnReply};
use tokio::sync::mpsc;

/// How long a call may take before it is given up, unless the configuration says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(2);

/// How many batches a watch holds for a consumer that does not take them. Then it ends: the
/// consumer resumes after what it has seen.
pub(crate) const WATCH_BUFFER: usize = 1024;

/// A store that several agents share. Every call has a time limit of its own
/// ([`StoreError::Unavailable`] then).
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Runs one transaction.
    async fn txn(&self, txn: Txn) -> Result<TxnReply, StoreError>;

    /// Reads all keys under `prefixes` at one revision, linearizably, in pages.
    async fn read(&self, prefixes: &[String]) -> Result<Snapshot, StoreError>;

    /// Watches `prefixes` for what happens after revision `after`. Batches arrive in the order
    /// of revisions, a revision is never split, and an empty batch reports progress. The channel
    /// closes when the watch ends; its last item then says why.
    async fn watch(
        &self,
        prefixes: &[String],
        after: Revision,
    ) -> Result<mpsc::Receiver<Result<Batch, StoreError>>, StoreError>;

    /// Grants a lease that lives for `ttl` (whole seconds, at least 2) after its last keep-alive.
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError>;

    /// Renews a lease once.
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Ends a lease and removes its keys.
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// How the members are, each asked by itself at once. Takes no longer than `patience`; who
    /// has not answered by then does not answer.
    async fn health(&self, patience: Duration) -> Health;
}

/// The sending side of a watch. It never waits, so that a slow consumer of one watch cannot hold
/// up what shares the connection.
#[derive(Debug)]
pub(crate) struct WatchSender(mpsc::Sender<Result<Batch, StoreError>>);

impl WatchSender {
    pub(crate) fn channel() -> (Self, mpsc::Receiver<Result<Batch, StoreError>>) {
        let (sender, receiver) = mpsc::channel(WATCH_BUFFER);
        (Self(sender), receiver)
    }

    /// Passes a batch on. False if the watch is over because the consumer is gone or too slow.
    pub(crate) fn send(&self, batch: Batch) -> bool {
        // The last place is kept for the reason why the watch ends.
        if self.0.capacity() > 1 {
            return self.0.try_send(Ok(batch)).is_ok();
        }
        self.end(StoreError::Unavailable("the consumer of the watch is too slow".to_owned()));
        false
    }

    /// Says why the watch ends. Nothing may be sent afterwards.
    pub(crate) fn end(&self, reason: StoreError) {
        // It fails only if nobody listens any more.
        let _ = self.0.try_send(Err(reason));
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// Waits until the consumer is gone.
    pub(crate) async fn closed(&self) {
        self.0.closed().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_consumer_gets_a_prefix_and_the_reason() {
        let (sender, mut receiver) = WatchSender::channel();
        let batch = |n| Batch { revision: Revision(n), events: Vec::new() };
        let sent = (1..).take_while(|n| sender.send(batch(*n))).count();
        drop(sender);
        for n in 1..=sent {
            let revision = Revision(i64::try_from(n).expect("few"));
            let item = receiver.blocking_recv().expect("sent").expect("a batch");
            assert_eq!(item.revision, revision);
        }
        assert!(matches!(receiver.blocking_recv(), Some(Err(StoreError::Unavailable(_)))));
        assert!(receiver.blocking_recv().is_none());
    }
}
