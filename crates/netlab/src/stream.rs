//! Numbered, stamped UDP packets that run both ways between pairs of hosts, and what became of
//! them.
//!
//! `ping` is no measure here: in namespaces of one kernel it can stall while the neighbour queue
//! holds its buffers. A sender of real-time priority stamps each packet instead; it never waits
//! for a socket, and what cannot be sent counts as lost. A second such thread takes the packets in.

mod flow;
mod pump;
mod report;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use selvedge_model::Time;

use crate::{Error, Host, clock};
use flow::{Flow, open};
use pump::Lateness;

pub(crate) use report::longest_gap;
pub use report::{Direction, FlowReport, Report};

/// One end of a stream.
#[derive(Clone, Debug)]
pub struct End {
    /// The host.
    pub host: Host,
    /// The address and UDP port there; it must not be in use.
    pub address: SocketAddr,
    /// The interface by which packets must leave; `None`: the routing table decides.
    pub device: Option<String>,
}

/// A stream: packets from `a` to `b` and back. `b` answers to where the packets come from, so that
/// `a` may be behind address translation.
#[derive(Clone, Debug)]
pub struct Spec {
    /// What the report calls it, such as the number of a network.
    pub label: u32,
    /// The one end.
    pub a: End,
    /// The other end.
    pub b: End,
    /// The pause between two packets of one direction.
    pub interval: Duration,
}

/// Counts of a running stream, both directions together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live {
    /// The stream's label.
    pub label: u32,
    /// Packets sent so far.
    pub sent: u64,
    /// Packets received so far, duplicates included.
    pub received: u64,
}

/// Running streams. They end when the value is dropped.
#[derive(Debug)]
pub struct Streams {
    flows: Arc<Vec<Flow>>,
    lateness: Arc<Lateness>,
    sending: Arc<AtomicBool>,
    receiving: Arc<AtomicBool>,
    sender: Option<JoinHandle<()>>,
    receiver: Option<JoinHandle<()>>,
    started: Time,
    stopped: Option<Time>,
}

impl Streams {
    /// Starts them. Their first packets are spread over one interval.
    ///
    /// # Errors
    /// If a socket cannot be opened; then nothing runs.
    pub fn start(specs: &[Spec]) -> Result<Self, Error> {
        let flows = Arc::new(open(specs)?);
        let sending = Arc::new(AtomicBool::new(true));
        let receiving = Arc::new(AtomicBool::new(true));
        let lateness = Arc::new(Lateness::default());
        let receiver = pump::receive(Arc::clone(&flows), Arc::clone(&receiving))?;
        let (sender, started) =
            pump::send(Arc::clone(&flows), Arc::clone(&sending), Arc::clone(&lateness))?;
        let (sender, receiver) = (Some(sender), Some(receiver));
        Ok(Self { flows, lateness, sending, receiving, sender, receiver, started, stopped: None })
    }

    /// The longest pause between two packets of a direction.
    #[must_use]
    pub fn longest_interval(&self) -> Duration {
        self.flows.iter().map(|flow| flow.interval).max().unwrap_or_default()
    }

    /// When the first packets went out.
    #[must_use]
    pub fn started(&self) -> Time {
        self.started
    }

    /// What has been counted so far; cheap.
    #[must_use]
    pub fn live(&self) -> Vec<Live> {
        self.flows.chunks(2).map(flow::live).collect()
    }

    /// Stops sending, waits for `grace` for what is under way, then stops receiving.
    pub fn stop(&mut self, grace: Duration) {
        if self.sender.is_none() {
            return;
        }
        self.sending.store(false, Ordering::Relaxed);
        join(self.sender.take());
        self.stopped = Some(clock::now());
        std::thread::sleep(grace);
        self.receiving.store(false, Ordering::Relaxed);
        join(self.receiver.take());
    }

    /// What became of all packets so far. Those that are still under way count as lost, so
    /// [`Streams::stop`] first.
    #[must_use]
    pub fn report(&self) -> Report {
        self.report_between(self.started, self.stopped.unwrap_or_else(clock::now))
    }

    /// What became of the packets that were sent between two moments.
    #[must_use]
    pub fn report_between(&self, from: Time, to: Time) -> Report {
        let to = self.stopped.map_or(to, |stopped| stopped.min(to));
        Report {
            flows: self.flows.iter().map(|flow| flow.report(from, to)).collect(),
            sender_late: self.lateness.greatest_between(from, to),
            realtime: self.lateness.realtime(),
        }
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

fn join(thread: Option<JoinHandle<()>>) {
    if let Some(Err(panic)) = thread.map(JoinHandle::join) {
        tracing::error!(?panic, "a thread of the streams panicked: the measurement is void");
    }
}
