//! What this host is good for, as the monitor of [`selvedge_host::health`] sees it.
//!
//! The monitor has a thread and a runtime of its own: a word to the kernel may wait for the lock of
//! its network configuration, and the plane's answers to other voters may not wait with it.

use std::thread;

use anyhow::Context;
use selvedge_host::health::{self, Checks, Report, Served};
use selvedge_host::priority;
use tokio::runtime;
use tokio::sync::{oneshot, watch};

/// The monitor's reports. When this is dropped, the monitor ends.
pub(super) struct Condition {
    reports: watch::Receiver<Report>,
    _running: oneshot::Sender<()>,
}

impl Condition {
    /// Starts the monitor in the network namespace of the calling thread. `served` says what the
    /// host shall do.
    pub(super) async fn watch(
        checks: Checks,
        served: watch::Receiver<Served>,
    ) -> anyhow::Result<Self> {
        let (started, is_started) = oneshot::channel();
        let (running, ended) = oneshot::channel::<()>();
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let work = async move {
            let reports = health::spawn(checks, served);
            if started.send(reports).is_ok() {
                // Nothing is ever sent: it ends when the other side is dropped.
                let _ = ended.await;
            }
        };
        thread::Builder::new()
            .name("health".to_owned())
            .spawn(move || {
                priority::raise();
                runtime.block_on(work);
            })
            .context("cannot start the thread that watches this host")?;
        let reports = is_started.await.context("the watch over this host has failed")?;
        Ok(Self { reports: reports?, _running: running })
    }

    /// The next report that differs from the one before; waits for ever once the monitor is gone.
    pub(super) async fn changed(&mut self) -> Report {
        match self.reports.changed().await {
            Ok(()) => self.reports.borrow_and_update().clone(),
            Err(_) => std::future::pending().await,
        }
    }
}
