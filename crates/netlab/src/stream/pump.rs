//! The two threads that send and receive for all streams.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use selvedge_model::Time;

use super::flow::Flow;
use crate::{Error, clock, realtime};

/// When the sender was late, and by how much.
#[derive(Debug, Default)]
pub(super) struct Lateness {
    /// Only what is worth a note: later than [`Lateness::NOTED`].
    times: Mutex<Vec<(Time, Duration)>>,
    realtime: AtomicBool,
}

impl Lateness {
    const NOTED: Duration = Duration::from_millis(1);

    /// The greatest lateness between two moments; zero if it was below a millisecond.
    pub(super) fn greatest_between(&self, from: Time, to: Time) -> Duration {
        let times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        let within = times.iter().filter(|(at, _)| (from..=to).contains(at));
        within.map(|(_, late)| *late).max().unwrap_or_default()
    }

    /// Whether the sender has real-time priority.
    pub(super) fn realtime(&self) -> bool {
        self.realtime.load(Ordering::Relaxed)
    }

    fn note(&self, now: Time, due: Time) {
        if now - due > Self::NOTED {
            self.times.lock().unwrap_or_else(PoisonError::into_inner).push((now, now - due));
        }
    }
}

/// Starts the thread that sends, and says when it began.
pub(super) fn send(
    flows: Arc<Vec<Flow>>,
    on: Arc<AtomicBool>,
    lateness: Arc<Lateness>,
) -> Result<(JoinHandle<()>, Time), Error> {
    let (began, begin) = mpsc::channel();
    let thread = spawn("streams-send", move || {
        lateness.realtime.store(realtime::raise(SENDER), Ordering::Relaxed);
        // Raising the priority has run a tool; what that took is no lateness of the sender.
        let start = clock::now();
        let mut schedule = schedule(&flows, start);
        if began.send(start).is_err() {
            return;
        }
        while on.load(Ordering::Relaxed) {
            let Some(Reverse((due, index))) = schedule.pop() else { return };
            std::thread::sleep(due - clock::now());
            let now = clock::now();
            lateness.note(now, due);
            flows[index].send(now);
            schedule.push(Reverse((due + flows[index].interval, index)));
        }
    })?;
    let start = begin.recv().expect("the thread reports its start first of all");
    Ok((thread, start))
}

/// Starts the thread that receives.
pub(super) fn receive(flows: Arc<Vec<Flow>>, on: Arc<AtomicBool>) -> Result<JoinHandle<()>, Error> {
    let epoll = watch(&flows).map_err(Error::io("watch the streams' sockets"))?;
    spawn("streams-receive", move || {
        realtime::raise(RECEIVER);
        let mut ready = vec![EpollEvent::empty(); 256];
        while on.load(Ordering::Relaxed) {
            let count = epoll.wait(&mut ready, WAIT_MS).unwrap_or(0);
            for event in &ready[..count] {
                let index = usize::try_from(event.data()).expect("it was an index");
                flows[index].receive(clock::now);
            }
        }
    })
}

/// Priorities of `SCHED_FIFO`. Taking packets in comes first: the moment of arrival is measured.
const SENDER: u8 = 40;
const RECEIVER: u8 = 45;
/// How often the receiver looks whether it shall end.
const WAIT_MS: u16 = 50;

/// Spreads the first packets of the streams of one interval evenly over that interval, in whole
/// slots: to wake up for each of tens of thousands of packets per second would cost more than to
/// send them.
fn schedule(flows: &[Flow], start: Time) -> BinaryHeap<Reverse<(Time, usize)>> {
    let first = |index: usize| start + offset(flows[index].interval, index, flows.len());
    (0..flows.len()).map(|index| Reverse((first(index), index))).collect()
}

const SLOT_MS: u128 = 1;

fn offset(interval: Duration, index: usize, count: usize) -> Duration {
    let millis = interval.as_millis() * index as u128 / count.max(1) as u128;
    Duration::from_millis(u64::try_from(millis / SLOT_MS * SLOT_MS).unwrap_or_default())
}

fn watch(flows: &[Flow]) -> Result<Epoll, Errno> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    for (index, flow) in flows.iter().enumerate() {
        epoll.add(&flow.to, EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
    }
    Ok(epoll)
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Error> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(work).map_err(Error::io("start a thread for the streams"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_of_thousands_of_streams_share_few_moments() {
        let interval = Duration::from_millis(100);
        let offsets: Vec<Duration> = (0..8000).map(|it| offset(interval, it, 8000)).collect();
        assert!(offsets.is_sorted() && offsets.iter().all(|it| *it < interval));
        let at = |millis| offsets.iter().filter(|it| it.as_millis() == millis).count();
        assert!((0..100).all(|millis| at(millis) == 80));
        assert_eq!(offset(interval, 0, 0), Duration::ZERO);
    }
}
