//! One direction of a stream: its sockets, and the log of its packets.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use selvedge_model::Time;
use socket2::{Domain, Protocol, Socket, Type};

use super::report::{Direction, FlowReport, Packets};
use super::{End, Live, Spec};
use crate::Error;

/// One direction.
#[derive(Debug)]
pub(super) struct Flow {
    label: u32,
    direction: Direction,
    number: u32,
    /// The pause between two packets.
    pub(super) interval: Duration,
    from: UdpSocket,
    destination: Arc<Mutex<SocketAddr>>,
    /// Where the packets of the other direction go: back to where these come from.
    answers: Option<Arc<Mutex<SocketAddr>>>,
    ipv6: bool,
    /// The socket at which the packets arrive.
    pub(super) to: UdpSocket,
    sent: AtomicU64,
    received: AtomicU64,
    packets: Mutex<Packets>,
}

/// Opens the sockets of all streams, in the order of `specs`, both directions of each.
pub(super) fn open(specs: &[Spec]) -> Result<Vec<Flow>, Error> {
    let mut flows = Vec::with_capacity(specs.len() * 2);
    for spec in specs {
        let (a, b) = (socket(&spec.a)?, socket(&spec.b)?);
        let again = |socket: &UdpSocket| {
            socket.try_clone().map_err(Error::io("duplicate a stream's descriptor"))
        };
        let (a2, b2) = (again(&a)?, again(&b)?);
        let to_b = Arc::new(Mutex::new(spec.b.address));
        let to_a = Arc::new(Mutex::new(spec.a.address));
        for (direction, from, to, destination, answers) in [
            (Direction::Out, a, b, to_b, Some(Arc::clone(&to_a))),
            (Direction::Back, b2, a2, to_a, None),
        ] {
            let number = u32::try_from(flows.len()).unwrap_or(u32::MAX);
            flows.push(Flow {
                label: spec.label,
                direction,
                number,
                interval: spec.interval,
                from,
                destination,
                answers,
                ipv6: spec.b.address.is_ipv6(),
                to,
                sent: AtomicU64::new(0),
                received: AtomicU64::new(0),
                packets: Mutex::default(),
            });
        }
    }
    Ok(flows)
}

/// The counts of both directions of a stream.
pub(super) fn live(both: &[Flow]) -> Live {
    let sum = |count: fn(&Flow) -> &AtomicU64| {
        both.iter().map(|flow| count(flow).load(Ordering::Relaxed)).sum()
    };
    Live {
        label: both[0].label,
        sent: sum(|flow| &flow.sent),
        received: sum(|flow| &flow.received),
    }
}

impl Flow {
    /// Sends the next packet, stamped `now`.
    pub(super) fn send(&self, now: Time) {
        let sequence = self.log().sent(now);
        self.sent.fetch_add(1, Ordering::Relaxed);
        // Whatever the reason for which it cannot be sent: the packet does not arrive, and that
        // is what counts.
        let packet = Packet { flow: self.number, sequence };
        let _ = self.from.send_to(&packet.encode(), *whole(&self.destination));
    }

    /// Takes in the next packet. Whoever calls this is told again if there are more.
    pub(super) fn receive(&self, now: impl Fn() -> Time) {
        let mut buffer = [0; 128];
        // An error is an ICMP message about an earlier packet; reading it has cleared it.
        if let Ok((length, source)) = self.to.recv_from(&mut buffer) {
            self.arrived(&buffer[..length], source, now());
        }
    }

    /// What became of the packets sent between two moments.
    pub(super) fn report(&self, from: Time, to: Time) -> FlowReport {
        // Copied, so that neither pump waits for the evaluation.
        let extract = self.log().between(from, to);
        extract.report(self.label, self.ipv6, self.direction)
    }

    fn arrived(&self, bytes: &[u8], source: SocketAddr, now: Time) {
        let Some(packet) = Packet::decode(bytes) else { return };
        if packet.flow == self.number {
            self.received.fetch_add(1, Ordering::Relaxed);
            self.log().arrived(packet.sequence, now);
            if let Some(answers) = &self.answers {
                *whole(answers) = source;
            }
        }
    }

    fn log(&self) -> MutexGuard<'_, Packets> {
        whole(&self.packets)
    }
}

/// Every change of what these hold is complete at once, so that what is poisoned is whole, too.
fn whole<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a packet holds: a mark, the flow's number, and its own. Padded to 64 bytes.
struct Packet {
    flow: u32,
    sequence: u64,
}

const MARK: [u8; 4] = *b"slvg";

impl Packet {
    fn encode(&self) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes[..4].copy_from_slice(&MARK);
        bytes[4..8].copy_from_slice(&self.flow.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_be_bytes());
        bytes
    }

    /// `None` if it is none of ours.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.strip_prefix(&MARK).filter(|rest| rest.len() == 60)?;
        let (flow, rest) = bytes.split_first_chunk()?;
        let sequence = rest.first_chunk()?;
        Some(Self { flow: u32::from_be_bytes(*flow), sequence: u64::from_be_bytes(*sequence) })
    }
}

/// A socket at `here`. Not connected: there may be no route yet.
fn socket(here: &End) -> Result<UdpSocket, Error> {
    let what = || format!("open a stream's socket at {} on {}", here.address, here.host.name());
    here.host.run(|| bind(here))?.map_err(Error::io(what()))
}

fn bind(here: &End) -> std::io::Result<UdpSocket> {
    let domain = Domain::for_address(here.address);
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    if let Some(device) = &here.device {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    socket.set_nonblocking(true)?;
    socket.set_recv_buffer_size(1 << 20)?;
    socket.bind(&here.address.into())?;
    Ok(socket.into())
}
