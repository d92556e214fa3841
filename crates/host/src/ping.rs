//! Echo requests and replies (RFC 4443, section 4): whom packets of a given size reach.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep_until, timeout_at};

const REQUEST: u8 = 128;
const REPLY: u8 = 129;
/// The headers of IPv6 and ICMPv6.
const HEADERS: usize = 40 + 8;
/// What a request begins with behind its type, code and checksum: who asked, which question it
/// is, and bytes that nobody else knows.
const MARK: usize = 4 + 8;
/// How long to wait for a reply before the request is repeated.
const REPEAT: Duration = Duration::from_millis(500);

/// A question: whether packets of a size reach an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The address.
    pub to: Ipv6Addr,
    /// The size in bytes, all headers included; at least 60. A packet that is too big for its way
    /// is never cut into pieces.
    pub size: u16,
}

/// Asks all at once, again and again for as long as `patience`; how long each took to answer the
/// last request, `None` if it did not. From the network namespace of the calling thread.
///
/// # Errors
/// If the right to send such packets (`CAP_NET_RAW`) is missing. An address that cannot be sent
/// to is no error, it just does not answer.
///
/// # Panics
/// Outside a Tokio runtime.
pub async fn ping(probes: &[Probe], patience: Duration) -> io::Result<Vec<Option<Duration>>> {
    let mut round = Round::new(probes)?;
    let end = Instant::now() + patience;
    while !round.is_complete() && Instant::now() < end {
        round.ask().await?;
        let until = end.min(Instant::now() + REPEAT);
        // What has not come by then is asked for again.
        let _ = timeout_at(until, round.hear()).await;
        if round.is_complete() {
            break;
        }
        sleep_until(until).await;
    }
    Ok(round.answers)
}

struct Round<'a> {
    /// In truth a raw socket, which sends to and receives from addresses in the same way.
    socket: UdpSocket,
    probes: &'a [Probe],
    mark: [u8; MARK],
    asked: Vec<Instant>,
    answers: Vec<Option<Duration>>,
}

impl<'a> Round<'a> {
    fn new(probes: &'a [Probe]) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
        socket.set_nonblocking(true)?;
        setsockopt(&socket, sockopt::Ipv6DontFrag, &true)?;
        Ok(Self {
            socket: UdpSocket::from_std(socket.into())?,
            probes,
            mark: mark(),
            asked: vec![Instant::now(); probes.len()],
            answers: vec![None; probes.len()],
        })
    }

    fn is_complete(&self) -> bool {
        self.answers.iter().all(Option::is_some)
    }

    /// Sends the requests that nobody has answered.
    async fn ask(&mut self) -> io::Result<()> {
        self.socket.writable().await?;
        for (number, probe) in self.probes.iter().enumerate() {
            if self.answers[number].is_none() {
                self.asked[number] = Instant::now();
                let request = self.request(number, probe.size);
                let to = SocketAddr::new(IpAddr::V6(probe.to), 0);
                // Whoever cannot be sent to does not answer.
                let _ = self.socket.try_send_to(&request, to);
            }
        }
        Ok(())
    }

    /// The kernel adds the checksum.
    fn request(&self, number: usize, size: u16) -> Vec<u8> {
        let mut request = vec![0; usize::from(size).saturating_sub(HEADERS - 8).max(8 + MARK)];
        request[0] = REQUEST;
        request[4..6].copy_from_slice(&self.mark[..2]);
        request[6..8].copy_from_slice(&u16::try_from(number).unwrap_or(u16::MAX).to_be_bytes());
        request[8..8 + MARK].copy_from_slice(&self.mark);
        request
    }

    async fn hear(&mut self) -> io::Result<()> {
        while !self.is_complete() {
            let mut bytes = [0; 8 + MARK];
            let (length, from) = self.socket.recv_from(&mut bytes).await?;
            self.note(&bytes[..length], from.ip());
        }
        Ok(())
    }

    fn note(&mut self, reply: &[u8], from: IpAddr) {
        let Some(number) = self.number_of(reply) else { return };
        if self.probes.get(number).is_some_and(|probe| IpAddr::V6(probe.to) == from) {
            self.answers[number].get_or_insert(self.asked[number].elapsed());
        }
    }

    /// Which request it answers; `None` if it is not one of these.
    fn number_of(&self, reply: &[u8]) -> Option<usize> {
        let ours = reply.first() == Some(&REPLY) && reply.get(8..8 + MARK) == Some(&self.mark[..]);
        let number = reply.get(6..8)?.first_chunk().copied()?;
        ours.then(|| usize::from(u16::from_be_bytes(number)))
    }
}

/// Tells the replies of one round from those of another.
fn mark() -> [u8; MARK] {
    use std::hash::{BuildHasher, RandomState};
    let random = |number: u8| RandomState::new().hash_one(number).to_be_bytes();
    let mut mark = [0; MARK];
    mark[..8].copy_from_slice(&random(0));
    mark[8..].copy_from_slice(&random(1)[..4]);
    mark
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{AddressOptions, Netlink, NewLink};
    use crate::test_support::{namespace, runtime};

    async fn plug_in(netlink: &Netlink, address: &str) {
        let options = AddressOptions { no_dad: true, no_prefix_route: false };
        let index = netlink.link("eth0").await.expect("readable").expect("there").index;
        let address = address.parse().expect("an address");
        netlink.add_address(index, address, options).await.expect("added");
        netlink.set_up(index, true, Some(1400)).await.expect("up");
    }

    #[test]
    fn who_is_there_answers_what_fits() {
        let (Some(here), Some(there)) = (namespace("ping"), namespace("ping")) else { return };
        let pinged = here.run(|| {
            runtime().block_on(async {
                let near = Netlink::new().expect("a socket");
                let far = Netlink::in_namespace(&there).expect("a socket");
                let cable = NewLink::Veth { peer: "eth0", namespace: Some(&there) };
                near.add_link("eth0", &cable).await.expect("a cable");
                plug_in(&near, "fd00:99::1/64").await;
                plug_in(&far, "fd00:99::2/64").await;
                let to = |text: &str, size| Probe { to: text.parse().expect("an address"), size };
                let probes = [
                    to("fd00:99::2", 60),
                    to("fd00:99::2", 1400),
                    to("fd00:99::2", 1401),
                    to("fd00:99::3", 60),
                    to("fd00:77::3", 60),
                ];
                ping(&probes, Duration::from_secs(3)).await.expect("the right to")
            })
        });
        let answered: Vec<bool> = pinged.expect("entered").iter().map(Option::is_some).collect();
        assert_eq!(answered, [true, true, false, false, false]);
    }
}
