//! Announcements of an address: gratuitous ARP and unsolicited neighbour advertisements.
//!
//! For IPv4 this is the announcement of RFC 5227, section 2.3: a broadcast ARP *request* whose
//! sender and target are the announced address. A receiver of any ARP packet merges the sender
//! into its table before it looks at the operation (RFC 826), so a reply with the same content
//! would say nothing new, and would double the frames that a mass takeover floods into every
//! tunnel. For IPv6 it is the advertisement of RFC 4861, section 7.2.6, with the override flag,
//! which makes hosts give up the old link-layer address, and the router flag, without which they
//! would drop the sender from their default routers.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use etherparse::icmpv6::NeighborAdvertisementHeader;
use etherparse::{
    ArpEthIpv4Packet, ArpOperation, EtherType, Ethernet2Header, Icmpv6Type, PacketBuilder,
};
use nix::libc;
use socket2::{Domain, Socket, Type};

use crate::netlink::Mac;

/// How many frames are sent in one go. More would overrun the receivers' backlog, whose default
/// (`netdev_max_backlog`) is 1000 frames, once each frame is flooded into several tunnels.
const BURST: usize = 50;

/// The pause after a burst.
const PAUSE: Duration = Duration::from_millis(5);

/// How often a frame is offered to a full queue, with a pause each time, before it is given up.
const OFFERS: usize = 20;

const BROADCAST: Mac = [0xff; 6];

/// The group of all nodes of a link, and the Ethernet address that it maps to.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];

/// What neighbour discovery demands of its packets, so that none comes from off the link.
const HOP_LIMIT: u8 = 255;

/// The option that carries the target's link-layer address (RFC 4861, section 4.6.1): its type,
/// and its length in units of 8 bytes.
const TARGET_LINK_LAYER_ADDRESS: [u8; 2] = [2, 1];

/// Why announcements could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no packet socket.
    #[error("cannot open a packet socket (this needs CAP_NET_RAW): {0}")]
    Open(#[source] io::Error),
    /// The frame was not sent.
    #[error("cannot announce {addr} on interface #{index}: {source}")]
    Send {
        /// The address that was to be announced.
        addr: IpAddr,
        /// The interface's index.
        index: u32,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// An address that an interface holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Announcement {
    /// The interface's index.
    pub index: u32,
    /// The interface's Ethernet address.
    pub mac: Mac,
    /// The address to announce.
    pub addr: IpAddr,
}

impl Announcement {
    /// The frame as it goes over the wire.
    #[must_use]
    pub fn frame(&self) -> Vec<u8> {
        match self.addr {
            IpAddr::V4(addr) => gratuitous_arp(self.mac, addr),
            IpAddr::V6(addr) => unsolicited_advertisement(self.mac, addr),
        }
    }
}

/// Sends announcements by any interface of one network namespace.
///
/// It holds a single packet socket: opening and closing one per interface costs milliseconds
/// each, because closing waits for all CPUs to let go of it.
#[derive(Debug)]
pub struct Announcer {
    socket: Socket,
}

impl Announcer {
    /// Opens the socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// If this process may not open packet sockets.
    pub fn new() -> Result<Self, Error> {
        // Protocol 0: the socket sends and receives nothing.
        let socket = Socket::new(Domain::PACKET, Type::RAW, None).map_err(Error::Open)?;
        socket.set_nonblocking(true).map_err(Error::Open)?;
        Ok(Self { socket })
    }

    /// Sends every announcement once, with a pause of 5 ms after each 50, and returns those that
    /// could not be sent by their position. All are tried.
    pub async fn send(&self, announcements: &[Announcement]) -> Vec<(usize, Error)> {
        let mut failed = Vec::new();
        for (position, announcement) in announcements.iter().enumerate() {
            if position > 0 && position % BURST == 0 {
                tokio::time::sleep(PAUSE).await;
            }
            if let Err(source) = self.offer(announcement).await {
                let &Announcement { addr, index, .. } = announcement;
                failed.push((position, Error::Send { addr, index, source }));
            }
        }
        failed
    }

    async fn offer(&self, announcement: &Announcement) -> io::Result<()> {
        let frame = announcement.frame();
        let mut result = self.send_frame(announcement.index, &frame);
        for _ in 1..OFFERS {
            match &result {
                Err(error) if is_full(error) => tokio::time::sleep(PAUSE).await,
                Ok(()) | Err(_) => break,
            }
            result = self.send_frame(announcement.index, &frame);
        }
        result
    }

    #[allow(unsafe_code, reason = "no safe wrapper makes a link-layer address from an index")]
    fn send_frame(&self, index: u32, frame: &[u8]) -> io::Result<()> {
        let address = link_layer_address(index);
        // SAFETY: the frame is readable for its length and the address, a plain value that lives
        // until the call returns, for the length given. The kernel keeps neither.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const address).cast(),
                ADDRESS_LENGTH,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// The announcement of an IPv4 address.
#[must_use]
pub fn gratuitous_arp(mac: Mac, addr: Ipv4Addr) -> Vec<u8> {
    let arp = ArpEthIpv4Packet {
        operation: ArpOperation::REQUEST,
        sender_mac: mac,
        sender_ipv4: addr.octets(),
        target_mac: [0; 6],
        target_ipv4: addr.octets(),
    };
    let ethernet =
        Ethernet2Header { source: mac, destination: BROADCAST, ether_type: EtherType::ARP };
    [ethernet.to_bytes().as_slice(), arp.to_bytes().as_slice()].concat()
}

/// The announcement of an IPv6 address.
#[must_use]
pub fn unsolicited_advertisement(mac: Mac, addr: Ipv6Addr) -> Vec<u8> {
    let header = NeighborAdvertisementHeader { router: true, solicited: false, r#override: true };
    let packet = PacketBuilder::ethernet2(mac, ALL_NODES_MAC)
        .ipv6(addr.octets(), ALL_NODES.octets(), HOP_LIMIT)
        .icmpv6(Icmpv6Type::NeighborAdvertisement(header));
    let body = [addr.octets().as_slice(), &TARGET_LINK_LAYER_ADDRESS, &mac].concat();
    let mut frame = Vec::with_capacity(packet.size(body.len()));
    packet.write(&mut frame, &body).expect("a vector takes all, and 24 bytes are not too long");
    frame
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
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 7];

    #[test]
    fn gratuitous_arp_is_exact() {
        let expected = [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, // to all
            2, 0, 0, 0, 0, 7, // from us
            0x08, 0x06, // ARP
            0, 1, 0x08, 0, 6, 4, 0, 1, // Ethernet, IPv4, request
            2, 0, 0, 0, 0, 7, 10, 0, 1, 1, // sender
            0, 0, 0, 0, 0, 0, 10, 0, 1, 1, // target
        ];
        assert_eq!(gratuitous_arp(MAC, Ipv4Addr::new(10, 0, 1, 1)), expected);
    }

    #[test]
    fn unsolicited_advertisement_is_exact() {
        let addr: Ipv6Addr = "fd00:1::1".parse().expect("address");
        let frame = unsolicited_advertisement(MAC, addr);
        let mut expected = vec![0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, 7, 0x86, 0xdd];
        expected.extend([0x60, 0, 0, 0, 0, 32, 58, 255]);
        expected.extend(addr.octets());
        expected.extend(ALL_NODES.octets());
        expected.extend([136, 0, frame[56], frame[57], 0b1010_0000, 0, 0, 0]);
        expected.extend(addr.octets());
        expected.extend([2, 1, 2, 0, 0, 0, 0, 7]);
        assert_eq!(frame, expected);
    }

    #[test]
    fn announcements_parse_back() {
        let addr: Ipv6Addr = "fd00:1::1".parse().expect("address");
        let frame = Announcement { index: 1, mac: MAC, addr: addr.into() }.frame();
        let packet = SlicedPacket::from_ethernet(&frame).expect("valid");
        let Some(TransportSlice::Icmpv6(icmp)) = packet.transport else { panic!("ICMPv6") };
        assert!(icmp.is_checksum_valid(addr.octets(), ALL_NODES.octets()));
        let Icmpv6Type::NeighborAdvertisement(header) = icmp.icmp_type() else { panic!("NA") };
        assert!(header.router && header.r#override && !header.solicited);

        let frame = Announcement { index: 1, mac: MAC, addr: [10, 0, 1, 1].into() }.frame();
        let packet = SlicedPacket::from_ethernet(&frame).expect("valid");
        let Some(NetSlice::Arp(arp)) = packet.net else { panic!("ARP") };
        assert_eq!(arp.sender_protocol_addr(), [10, 0, 1, 1]);
        assert_eq!(arp.target_protocol_addr(), [10, 0, 1, 1]);
    }
}
