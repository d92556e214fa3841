use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::libc;
use socket2::{Domain, Socket, Type};
use tokio::time::{Instant, sleep, sleep_until};

use super::{Announcement, Error};

/// How many frames are sent in one go. More would overrun the receivers' backlog, whose default
/// (`netdev_max_backlog`) is 1000 frames, once each frame is flooded into several tunnels.
const BURST: usize = 50;

/// What a burst costs of the time of all who send.
const PAUSE: Duration = Duration::from_millis(5);

/// How much of a late start is made up for. Timers are coarse: without this every pause would be
/// a millisecond too long.
const LATENESS: Duration = Duration::from_millis(2);

/// How often a frame is offered to a full queue, with a pause each time, before it is given up.
const OFFERS: usize = 20;

/// Whether this gateway must keep quiet. All clones are one switch, which acts at once on whoever
/// is sending.
#[derive(Clone, Debug, Default)]
pub struct Mute(Arc<AtomicBool>);

impl Mute {
    /// Turns the switch.
    pub fn set(&self, on: bool) {
        self.0.store(on, Ordering::Release);
    }

    /// Whether nothing may be sent.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// A frame, and the index of the interface that it leaves by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The interface's index.
    pub index: u32,
    /// The frame from its Ethernet header on.
    pub bytes: Arc<[u8]>,
}

/// Sends frames by any interface of one network namespace, 50 in 5 ms at the most, however many
/// tasks share it.
///
/// It holds a single packet socket: opening and closing one per interface costs milliseconds
/// each, because closing waits for all CPUs to let go of it.
#[derive(Debug)]
pub struct Announcer {
    socket: Socket,
    mute: Mute,
    pace: Pace,
}

impl Announcer {
    /// Opens the socket in the network namespace of the calling thread. While `mute` is on,
    /// nothing is sent, and a sending that is under way ends.
    ///
    /// # Errors
    /// If this process may not open packet sockets.
    pub fn new(mute: Mute) -> Result<Self, Error> {
        // Protocol 0: the socket receives nothing.
        let socket = Socket::new(Domain::PACKET, Type::RAW, None).map_err(Error::Open)?;
        socket.set_nonblocking(true).map_err(Error::Open)?;
        Ok(Self { socket, mute, pace: Pace::default() })
    }

    /// The switch that it obeys.
    #[must_use]
    pub const fn mute(&self) -> &Mute {
        &self.mute
    }

    /// Sends every announcement once, paced, and returns those that could not be sent by their
    /// position. All are tried.
    pub async fn announce(&self, announcements: &[Announcement]) -> Vec<(usize, Error)> {
        let frames: Vec<Frame> = announcements.iter().map(Announcement::frame).collect();
        let named = |(position, source)| {
            let Announcement { addr, index, .. } = announcements[position];
            (position, Error::Send { addr, index, source })
        };
        self.send(&frames).await.into_iter().map(named).collect()
    }

    /// Sends every frame once, paced, and returns those that could not be sent by their position.
    /// All are tried.
    pub async fn send(&self, frames: &[Frame]) -> Vec<(usize, io::Error)> {
        let mut failed = Vec::new();
        for (burst, frames) in frames.chunks(BURST).enumerate() {
            if self.mute.is_on() {
                break;
            }
            self.pace.wait(frames.len()).await;
            for (position, frame) in frames.iter().enumerate() {
                if let Err(error) = self.offer(frame).await {
                    failed.push((burst * BURST + position, error));
                }
            }
        }
        failed
    }

    async fn offer(&self, frame: &Frame) -> io::Result<()> {
        let mut result = self.send_frame(frame);
        for _ in 1..OFFERS {
            match &result {
                Err(error) if is_full(error) => sleep(PAUSE).await,
                Ok(()) | Err(_) => break,
            }
            result = self.send_frame(frame);
        }
        result
    }

    #[allow(unsafe_code, reason = "no safe wrapper makes a link-layer address from an index")]
    fn send_frame(&self, frame: &Frame) -> io::Result<()> {
        if self.mute.is_on() {
            return Ok(());
        }
        let address = link_layer_address(frame.index);
        // SAFETY: the frame is readable for its length and the address, a plain value that lives
        // until the call returns, for the length given. The kernel keeps neither.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                frame.bytes.as_ptr().cast(),
                frame.bytes.len(),
                0,
                (&raw const address).cast(),
                ADDRESS_LENGTH,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// When the next frames may be sent.
#[derive(Debug)]
struct Pace {
    origin: Instant,
    /// Up to when the time is taken, in microseconds since the origin.
    taken: AtomicU64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { origin: Instant::now(), taken: AtomicU64::new(0) }
    }
}

impl Pace {
    /// Takes the time that so many frames cost, and waits until it begins.
    async fn wait(&self, frames: usize) {
        let now = micros(self.origin.elapsed());
        let start = self.take(now, frames);
        if start > now {
            sleep_until(self.origin + Duration::from_micros(start)).await;
        }
    }

    fn take(&self, now: u64, frames: usize) -> u64 {
        let cost = micros(PAUSE) * frames as u64 / BURST as u64;
        let earliest = now.saturating_sub(micros(LATENESS));
        let take = |taken: u64| Some(taken.max(earliest) + cost);
        let taken = self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, take);
        let (Ok(taken) | Err(taken)) = taken;
        taken.max(earliest)
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Whether the interface's queue or the socket's buffer has no room at the moment.
fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS)
}

const ADDRESS_LENGTH: libc::socklen_t = size_of::<libc::sockaddr_ll>() as libc::socklen_t;

/// Where a raw frame goes: the frame itself names everything but the interface.
fn link_layer_address(index: u32) -> libc::sockaddr_ll {
    libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: 0,
        // An index that is out of range names no interface, and the kernel says so.
        sll_ifindex: i32::try_from(index).unwrap_or(i32::MAX),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support;

    #[test]
    fn all_senders_share_one_pace() {
        let pace = Pace::default();
        let now = 1_000_000;
        let starts: Vec<u64> = [50, 50, 25, 50].map(|frames| pace.take(now, frames)).to_vec();
        assert_eq!(starts, [998_000, 1_003_000, 1_008_000, 1_010_500]);
    }

    #[test]
    fn a_late_start_is_made_up_for_but_a_long_rest_is_not() {
        let pace = Pace::default();
        assert_eq!(pace.take(1_000_000, BURST), 998_000);
        assert_eq!(pace.take(1_004_000, BURST), 1_003_000, "a millisecond late");
        assert_eq!(pace.take(9_000_000, BURST), 8_998_000);
        assert_eq!(pace.take(9_000_000, BURST), 9_003_000);
    }

    #[test]
    fn a_sending_that_is_under_way_ends_when_it_must_be_quiet() {
        let Some(namespace) = test_support::namespace("mute") else { return };
        let body = async || {
            let mute = Mute::default();
            let announcer = Announcer::new(mute.clone()).expect("a socket");
            // An interface that does not exist: every frame that is tried is a failure.
            let frame = Frame { index: 999_999, bytes: Arc::from([0_u8; 60].as_slice()) };
            let frames = vec![frame; 100_000];
            let quiet = async {
                sleep(Duration::from_millis(30)).await;
                mute.set(true);
            };
            let (failed, ()) = tokio::join!(announcer.send(&frames), quiet);
            assert!(!failed.is_empty() && failed.len() < frames.len(), "{}", failed.len());
            assert!(announcer.send(&frames).await.is_empty(), "not one is tried");
            mute.set(false);
            assert_eq!(announcer.send(&frames[..3]).await.len(), 3);
        };
        namespace.run(|| test_support::runtime().block_on(body())).expect("entered");
    }
}
