//! From which address this host sends to another over IPv6.
//!
//! The kernel chooses it anew for each datagram of a socket that has none, and goes through the
//! addresses of all interfaces for that (RFC 6724). On a host with thousands of bridges this costs
//! more than all else about a probe. So the choice is kept for a moment.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn6, sendmsg};

/// For how long a choice holds: routes and addresses may change, and what is sent from an address
/// whose link is gone finds no answer. Well below the time until a voter is suspected.
const LIFE: Duration = Duration::from_millis(100);
/// Destinations that are kept at most.
const MAX: usize = 1024;

/// The choices made so far, by destination.
#[derive(Debug, Default)]
pub(super) struct Sources {
    chosen: BTreeMap<SocketAddrV6, (Ipv6Addr, Instant)>,
}

impl Sources {
    /// Sends a datagram, over IPv6 from the address that the kernel has chosen lately.
    ///
    /// # Errors
    /// As of `sendmsg(2)`. An address that is gone since is no error.
    pub(super) fn send(
        &mut self,
        socket: &UdpSocket,
        datagram: &[u8],
        to: SocketAddr,
        now: Instant,
    ) -> io::Result<()> {
        let target = match to {
            SocketAddr::V6(v6) if v6.ip().to_ipv4_mapped().is_none() => v6,
            SocketAddr::V4(_) | SocketAddr::V6(_) => {
                return socket.send_to(datagram, to).map(drop);
            }
        };
        let sent =
            self.choose(target, now).map(|source| send_from(socket, datagram, source, target));
        match sent {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            // Nothing to choose from, or what was chosen is gone: let the kernel say.
            Some(Err(_)) | None => {
                self.chosen.remove(&target);
                socket.send_to(datagram, to).map(drop)
            }
        }
    }

    fn choose(&mut self, target: SocketAddrV6, now: Instant) -> Option<Ipv6Addr> {
        let is_fresh = |at: Instant| now.saturating_duration_since(at) < LIFE;
        match self.chosen.get(&target) {
            Some((source, at)) if is_fresh(*at) => return Some(*source),
            Some(_) | None => {}
        }
        if self.chosen.len() >= MAX {
            self.chosen.retain(|_, (_, at)| is_fresh(*at));
        }
        let source = ask(target).ok()?;
        if self.chosen.len() < MAX {
            self.chosen.insert(target, (source, now));
        }
        Some(source)
    }
}

/// What the kernel would send from. Nothing is sent.
fn ask(target: SocketAddrV6) -> io::Result<Ipv6Addr> {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
    socket.connect(target)?;
    match socket.local_addr()? {
        SocketAddr::V6(v6) => Ok(*v6.ip()),
        SocketAddr::V4(_) => Err(io::ErrorKind::AddrNotAvailable.into()),
    }
}

fn send_from(
    socket: &UdpSocket,
    datagram: &[u8],
    source: Ipv6Addr,
    target: SocketAddrV6,
) -> io::Result<()> {
    let info = libc::in6_pktinfo {
        ipi6_addr: libc::in6_addr { s6_addr: source.octets() },
        ipi6_ifindex: 0,
    };
    let control = [ControlMessage::Ipv6PacketInfo(&info)];
    let (parts, to) = ([IoSlice::new(datagram)], SockaddrIn6::from(target));
    sendmsg(socket.as_raw_fd(), &parts, &control, MsgFlags::empty(), Some(&to))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(socket: &UdpSocket, ip: &str) -> SocketAddr {
        let port = socket.local_addr().expect("bound").port();
        SocketAddr::new(ip.parse().expect("an address"), port)
    }

    fn received(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
        socket.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
        let mut buffer = [0; 64];
        let (length, from) = socket.recv_from(&mut buffer).expect("it comes");
        (buffer[..length].to_vec(), from)
    }

    #[test]
    fn datagrams_arrive_from_where_the_kernel_would_send_them() {
        let here = UdpSocket::bind("[::]:0").expect("bound");
        let there = UdpSocket::bind("[::]:0").expect("bound");
        let mut sources = Sources::default();
        let now = Instant::now();
        for ip in ["::1", "::ffff:127.0.0.1", "::1"] {
            sources.send(&here, b"hello", at(&there, ip), now).expect("sent");
            assert_eq!(received(&there), (b"hello".to_vec(), at(&here, ip)));
        }
        assert_eq!(sources.chosen.len(), 1, "IPv4 needs no choice");
    }

    #[test]
    fn a_source_that_is_gone_is_chosen_anew() {
        let here = UdpSocket::bind("[::]:0").expect("bound");
        let there = UdpSocket::bind("[::]:0").expect("bound");
        let SocketAddr::V6(target) = at(&there, "::1") else { panic!("of IPv6") };
        let (mut sources, now) = (Sources::default(), Instant::now());
        let gone = "2001:db8::dead".parse().expect("an address");
        sources.chosen.insert(target, (gone, now));
        sources.send(&here, b"hello", target.into(), now).expect("sent");
        assert_eq!(received(&there), (b"hello".to_vec(), at(&here, "::1")));
        assert_eq!(sources.choose(target, now), Some(Ipv6Addr::LOCALHOST));
        // What is old is not believed either.
        sources.chosen.insert(target, (gone, now));
        assert_eq!(sources.choose(target, now + LIFE), Some(Ipv6Addr::LOCALHOST));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let (mut sources, start) = (Sources::default(), Instant::now());
        for port in 1..=3000_u16 {
            let target = SocketAddrV6::new(Ipv6Addr::LOCALHOST, port, 0, 0);
            assert_eq!(sources.choose(target, start), Some(Ipv6Addr::LOCALHOST));
        }
        assert_eq!(sources.chosen.len(), MAX);
        let later = SocketAddrV6::new(Ipv6Addr::LOCALHOST, 4000, 0, 0);
        sources.choose(later, start + LIFE);
        assert_eq!(sources.chosen.len(), 1);
    }
}
