use std::io;
use std::os::fd::AsRawFd;

use nix::cmsg_space;
use nix::libc;
use nix::sys::socket::sockopt::Ipv6RecvPacketInfo;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, setsockopt};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::Error;

/// The type of a router solicitation (RFC 4861, section 4.1), and the length without options.
const ROUTER_SOLICITATION: u8 = 133;
const HEADER_LENGTH: usize = 8;

/// The option that carries the asker's own link-layer address.
const SOURCE_LINK_LAYER_ADDRESS: u8 = 1;

/// Hears the router solicitations on all interfaces of one network namespace.
///
/// It is a raw ICMPv6 socket, and not a packet socket, so that the packets that this gateway
/// forwards do not pass by its filter: it costs nothing but when a solicitation comes. The kernel
/// has checked the checksum, and takes the packets in because a router belongs to the group of
/// all routers on every interface.
#[derive(Debug)]
pub(super) struct Solicitations {
    /// Of Tokio's sockets only the readiness is used, which is the same for all kinds.
    socket: UdpSocket,
}

impl Solicitations {
    /// Opens the socket in the network namespace of the calling thread, within a Tokio runtime.
    /// `None`: this host has no IPv6.
    pub(super) fn open() -> Result<Option<Self>, Error> {
        match open() {
            Ok(socket) => Ok(Some(Self { socket })),
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => Ok(None),
            Err(error) => Err(Error::Listen(error)),
        }
    }

    /// The index of the interface that the next valid solicitation arrives at.
    pub(super) async fn next(&self) -> io::Result<u32> {
        loop {
            let received =
                self.socket.async_io(Interest::READABLE, || receive(&self.socket)).await?;
            if let Some(index) = received {
                return Ok(index);
            }
        }
    }
}

fn open() -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.set_nonblocking(true)?;
    socket.attach_filter(&filter())?;
    setsockopt(&socket, Ipv6RecvPacketInfo, &true)?;
    UdpSocket::from_std(socket.into())
}

/// Lets those packets through that are of the type and have come from a neighbour: a router would
/// have counted the hop limit down from 255 (RFC 4861, section 6.1.1).
fn filter() -> [SockFilter; 6] {
    const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
    const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    const IP_HOP_LIMIT: u32 = (libc::SKF_NET_OFF + 7) as u32;
    [
        SockFilter::new(LOAD_BYTE, 0, 0, 0),
        SockFilter::new(JUMP_EQUAL, 0, 3, ROUTER_SOLICITATION.into()),
        SockFilter::new(LOAD_BYTE, 0, 0, IP_HOP_LIMIT),
        SockFilter::new(JUMP_EQUAL, 0, 1, super::HOP_LIMIT.into()),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

/// The interface that a packet has arrived at, or `None` if the packet is not valid.
fn receive(socket: &UdpSocket) -> io::Result<Option<u32>> {
    let mut bytes = [0; 1500];
    let mut room = cmsg_space!(libc::in6_pktinfo);
    let mut parts = [io::IoSliceMut::new(&mut bytes)];
    let received = recvmsg::<SockaddrIn6>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut room),
        MsgFlags::MSG_DONTWAIT,
    )
    .map_err(io::Error::from)?;
    let is_named = received.address.is_some_and(|from| !from.ip().is_unspecified());
    let index = received.cmsgs().map_err(io::Error::from)?.find_map(|message| {
        let ControlMessageOwned::Ipv6PacketInfo(info) = message else { return None };
        Some(info.ipi6_ifindex)
    });
    let length = received.bytes;
    Ok(index.filter(|_| is_valid(&bytes[..length], is_named)))
}

/// Checks what RFC 4861, section 6.1.1, demands, beside the hop limit and the checksum. `is_named`:
/// the sender has given its address.
fn is_valid(packet: &[u8], is_named: bool) -> bool {
    let Some((header, mut options)) = packet.split_at_checked(HEADER_LENGTH) else { return false };
    if header[..2] != [ROUTER_SOLICITATION, 0] {
        return false;
    }
    while let [kind, length, ..] = *options {
        let Some((_, rest)) = options.split_at_checked(8 * usize::from(length)) else {
            return false;
        };
        if length == 0 || (kind == SOURCE_LINK_LAYER_ADDRESS && !is_named) {
            return false;
        }
        options = rest;
    }
    options.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_valid_solicitations_count() {
        let header = [133, 0, 0, 0, 0, 0, 0, 0];
        let source = [1, 1, 2, 0, 0, 0, 0, 7];
        let with = |more: &[u8]| [header.as_slice(), more].concat();
        assert!(is_valid(&header, true) && is_valid(&header, false));
        assert!(is_valid(&with(&source), true));
        assert!(!is_valid(&with(&source), false), "an address of nobody");
        assert!(is_valid(&with(&[200, 1, 0, 0, 0, 0, 0, 0]), false), "an unknown option");
        assert!(!is_valid(&header[..7], true));
        assert!(!is_valid(&[134, 0, 0, 0, 0, 0, 0, 0], true));
        assert!(!is_valid(&[133, 1, 0, 0, 0, 0, 0, 0], true));
        assert!(!is_valid(&with(&[1, 0, 0, 0, 0, 0, 0, 0]), true), "an option without a length");
        assert!(!is_valid(&with(&[1, 2, 0, 0, 0, 0, 0, 0]), true), "an option beyond the end");
        assert!(!is_valid(&with(&[1]), true));
    }
}
