//! Notices that interfaces have come, gone or changed, for who reads them anew then.

use std::time::Duration;

use selvedge_host::events::{Change, Events};
use tracing::warn;

/// The changes in the network namespace of the thread that opened this.
pub(crate) struct Changes {
    events: Option<Events>,
    /// How often the interfaces are read anyway.
    otherwise: Duration,
}

impl Changes {
    /// Listens from now on. Where the kernel does not tell, what changes is found `otherwise`.
    pub(crate) fn open(otherwise: Duration) -> Self {
        let events = Events::open();
        if let Err(error) = &events {
            warn!(%error, "interfaces that change are noticed only every {otherwise:?}");
        }
        Self { events: events.ok(), otherwise }
    }

    /// Waits for the next change of an interface; for ever if the kernel does not tell.
    pub(crate) async fn next(&mut self) {
        let otherwise = self.otherwise;
        while let Some(events) = &mut self.events {
            match events.next().await {
                Ok(Change::Link(_) | Change::LinkGone { .. } | Change::Missed) => return,
                Ok(Change::Addresses { .. }) => {}
                Err(error) => {
                    warn!(%error, "interfaces that change are noticed only every {otherwise:?}");
                    self.events = None;
                }
            }
        }
        std::future::pending().await
    }
}
