//! What is said to the stations of a network: that an address is here now (gratuitous ARP,
//! unsolicited neighbour advertisements), and who their router is (router advertisements).
//!
//! For IPv4 this is the announcement of RFC 5227, section 2.3: a broadcast ARP *request* whose
//! sender and target are the announced address. A receiver of any ARP packet merges the sender
//! into its table before it looks at the operation (RFC 826), so a reply with the same content
//! would say nothing new, and would double the frames that a mass takeover floods into every
//! tunnel. For IPv6 it is the advertisement of RFC 4861, section 7.2.6, with the override flag,
//! which makes hosts give up the old link-layer address, and the router flag, without which they
//! would drop the sender from their default routers.

mod advertisement;
mod announcer;
mod beacon;
mod schedule;
mod solicitation;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::icmpv6::NeighborAdvertisementHeader;
use etherparse::{
    ArpEthIpv4Packet, ArpOperation, EtherType, Ethernet2Header, Icmpv6Type, PacketBuilder,
};

use crate::netlink::Mac;

pub use advertisement::{DEFAULT_LINK_LOCAL, RaConfig, RaError, router_advertisement};
pub use announcer::{Announcer, Frame, Mute};
pub use beacon::{Advert, Beacon};

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
    /// There is no socket for router solicitations.
    #[error("cannot listen for router solicitations (this needs CAP_NET_RAW): {0}")]
    Listen(#[source] io::Error),
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
    pub fn frame(&self) -> Frame {
        let bytes = match self.addr {
            IpAddr::V4(addr) => gratuitous_arp(self.mac, addr),
            IpAddr::V6(addr) => unsolicited_advertisement(self.mac, addr),
        };
        Frame { index: self.index, bytes: bytes.into() }
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
        let frame = Announcement { index: 1, mac: MAC, addr: addr.into() }.frame().bytes;
        let packet = SlicedPacket::from_ethernet(&frame).expect("valid");
        let Some(TransportSlice::Icmpv6(icmp)) = packet.transport else { panic!("ICMPv6") };
        assert!(icmp.is_checksum_valid(addr.octets(), ALL_NODES.octets()));
        let Icmpv6Type::NeighborAdvertisement(header) = icmp.icmp_type() else { panic!("NA") };
        assert!(header.router && header.r#override && !header.solicited);

        let frame = Announcement { index: 1, mac: MAC, addr: [10, 0, 1, 1].into() }.frame().bytes;
        let packet = SlicedPacket::from_ethernet(&frame).expect("valid");
        let Some(NetSlice::Arp(arp)) = packet.net else { panic!("ARP") };
        assert_eq!(arp.sender_protocol_addr(), [10, 0, 1, 1]);
        assert_eq!(arp.target_protocol_addr(), [10, 0, 1, 1]);
    }
}
