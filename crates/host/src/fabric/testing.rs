//! What the tests of drivers and inventory share: networks in a namespace, raw frames.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use etherparse::icmpv6::RouterAdvertisementHeader;
use etherparse::{
    ArpEthIpv4Packet, ArpOperation, EtherType, Ethernet2Header, Icmpv6Type, NetSlice,
    PacketBuilder, SlicedPacket, TransportSlice,
};
use nix::libc;
use selvedge_model::{Prefix, Vni};
use socket2::{Domain, Protocol, Socket, Type};

use crate::netlink::{AddressOptions, Link, Mac, Netlink, NewLink, Vxlan};

/// Makes this namespace forward both families.
pub(crate) fn forward() {
    for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        std::fs::write(format!("/proc/sys/net/{setting}"), "1").expect("settable");
    }
}

/// A bridge `br<vni>` with `addresses` and its port `vxlan<vni>`, both up.
pub(crate) async fn network(netlink: &Netlink, vni: Vni, addresses: &[Prefix]) {
    let (bridge, vxlan) = (format!("br{vni}"), format!("vxlan{vni}"));
    let local = Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)));
    let tunnel = Vxlan { vni, local, device: None, port: 4789, learning: false };
    netlink.add_link(&bridge, &NewLink::Bridge).await.expect("bridge");
    netlink.add_link(&vxlan, &NewLink::Vxlan(tunnel)).await.expect("vxlan");
    let bridge = link(netlink, &bridge).await.index;
    let vxlan = link(netlink, &vxlan).await.index;
    netlink.set_master(vxlan, Some(bridge)).await.expect("port");
    for index in [vxlan, bridge] {
        netlink.set_up(index, true, None).await.expect("up");
    }
    for address in addresses {
        let options = AddressOptions { no_prefix_route: false, no_dad: true };
        netlink.add_address(bridge, *address, options).await.expect("address");
    }
}

/// A pair of interfaces, both up.
pub(crate) async fn pair(netlink: &Netlink, name: &str, peer: &str) {
    let veth = NewLink::Veth { peer, namespace: None };
    netlink.add_link(name, &veth).await.expect("pair");
    for name in [name, peer] {
        let index = link(netlink, name).await.index;
        netlink.set_up(index, true, None).await.expect("up");
    }
}

/// An interface that must be there.
pub(crate) async fn link(netlink: &Netlink, name: &str) -> Link {
    netlink.link(name).await.expect("readable").unwrap_or_else(|| panic!("no interface {name}"))
}

/// A raw socket on one interface, for frames in and out.
pub(crate) struct Wire {
    socket: Socket,
    mac: Mac,
}

impl Wire {
    /// Opens the interface's end of the wire.
    #[allow(unsafe_code, reason = "no safe wrapper makes a link-layer address from an index")]
    pub(crate) async fn open(netlink: &Netlink, name: &str) -> Self {
        let link = link(netlink, name).await;
        let all = i32::from((libc::ETH_P_ALL as u16).to_be());
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(all)));
        let socket = socket.expect("a packet socket");
        // SAFETY: the storage is as large as any address and is all zeroes, which is valid for
        // a link-layer address; its fields are set before its length is.
        let ((), address) = unsafe {
            socket2::SockAddr::try_init(|storage, length| {
                let address = storage.cast::<libc::sockaddr_ll>();
                (*address).sll_family = libc::AF_PACKET as u16;
                (*address).sll_protocol = (libc::ETH_P_ALL as u16).to_be();
                (*address).sll_ifindex = i32::try_from(link.index).expect("an index");
                *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
                Ok(())
            })
        }
        .expect("an address");
        socket.bind(&address).expect("bound");
        Self { socket, mac: link.mac.expect("a MAC") }
    }

    /// The interface's own Ethernet address.
    pub(crate) fn mac(&self) -> Mac {
        self.mac
    }

    /// Puts a frame on the wire.
    pub(crate) fn send(&self, frame: &[u8]) {
        self.socket.send(frame).expect("sent");
    }

    /// The first frame within `patience` that is what `wanted` looks for. Waits on the calling
    /// thread, as the kernel needs nobody to work.
    pub(crate) fn receive<T>(
        &self,
        patience: Duration,
        wanted: impl Fn(&[u8]) -> Option<T>,
    ) -> Option<T> {
        let end = Instant::now() + patience;
        let mut buffer = [0; 2048];
        loop {
            let left = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
            self.socket.set_read_timeout(Some(left)).expect("set");
            let Ok(length) = (&self.socket).read(&mut buffer) else { return None };
            if let Some(found) = wanted(&buffer[..length]) {
                return Some(found);
            }
        }
    }

    /// Who answers an ARP request for `addr` within 200 ms.
    pub(crate) fn resolve(&self, addr: Ipv4Addr, sender: Ipv4Addr) -> Option<Mac> {
        let request = ArpEthIpv4Packet {
            operation: ArpOperation::REQUEST,
            sender_mac: self.mac,
            sender_ipv4: sender.octets(),
            target_mac: [0; 6],
            target_ipv4: addr.octets(),
        };
        let destination = [0xff; 6];
        let ethernet =
            Ethernet2Header { source: self.mac, destination, ether_type: EtherType::ARP };
        self.send(&[ethernet.to_bytes().as_slice(), &request.to_bytes()].concat());
        self.receive(Duration::from_millis(200), |frame| {
            let arp = arp(frame).filter(|arp| arp.operation == ArpOperation::REPLY)?;
            (arp.sender_ipv4 == addr.octets()).then_some(arp.sender_mac)
        })
    }
}

impl Wire {
    /// Asks for `addr` as a station does that has never heard of it.
    pub(crate) fn solicit(&self, addr: Ipv6Addr) {
        let [.., a, b, c] = addr.octets();
        let group = Ipv6Addr::new(
            0xff02,
            0,
            0,
            0,
            0,
            1,
            0xff00 | u16::from(a),
            u16::from(b) << 8 | u16::from(c),
        );
        let body = [addr.octets().as_slice(), &[1, 1], &self.mac].concat();
        self.send_icmpv6(([0x33, 0x33, 0xff, a, b, c], group), 255, 135, &body);
    }

    /// Asks who the router is.
    pub(crate) fn solicit_router(&self, hop_limit: u8) {
        let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
        let body = [[1, 1].as_slice(), &self.mac].concat();
        self.send_icmpv6(([0x33, 0x33, 0, 0, 0, 2], group), hop_limit, 133, &body);
    }

    fn send_icmpv6(&self, to: (Mac, Ipv6Addr), hop_limit: u8, kind: u8, body: &[u8]) {
        let station = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 7);
        let packet = PacketBuilder::ethernet2(self.mac, to.0)
            .ipv6(station.octets(), to.1.octets(), hop_limit)
            .icmpv6_raw(kind, 0, [0; 4]);
        let mut frame = Vec::new();
        packet.write(&mut frame, body).expect("written");
        self.send(&frame);
    }

    /// Who answers for `addr` within `patience`, asked every 100 ms: the kernel listens for the
    /// questions a moment after it has the address, once it gets hold of a lock that others hold.
    pub(crate) fn answer(&self, addr: Ipv6Addr, patience: Duration) -> Option<Advertised> {
        let end = Instant::now() + patience;
        loop {
            self.solicit(addr);
            let wanted =
                |frame: &[u8]| advertised(frame).filter(|na| na.solicited && na.target == addr);
            let heard = self.receive(Duration::from_millis(100), wanted);
            if heard.is_some() || Instant::now() >= end {
                return heard;
            }
        }
    }
}

/// A neighbour advertisement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Advertised {
    pub(crate) target: Ipv6Addr,
    pub(crate) mac: Mac,
    pub(crate) router: bool,
    pub(crate) solicited: bool,
    pub(crate) overrides: bool,
}

/// The neighbour advertisement in a frame.
pub(crate) fn advertised(frame: &[u8]) -> Option<Advertised> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let TransportSlice::Icmpv6(icmp) = packet.transport? else { return None };
    let Icmpv6Type::NeighborAdvertisement(header) = icmp.icmp_type() else { return None };
    let target: [u8; 16] = icmp.payload().get(..16)?.try_into().ok()?;
    Some(Advertised {
        target: target.into(),
        mac: icmp.payload().get(18..24)?.try_into().ok()?,
        router: header.router,
        solicited: header.solicited,
        overrides: header.r#override,
    })
}

/// The router advertisement in a frame, and where it comes from.
pub(crate) fn router(frame: &[u8]) -> Option<(Ipv6Addr, RouterAdvertisementHeader)> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let Some(NetSlice::Ipv6(ip)) = packet.net else { return None };
    let TransportSlice::Icmpv6(icmp) = packet.transport? else { return None };
    let Icmpv6Type::RouterAdvertisement(header) = icmp.icmp_type() else { return None };
    Some((ip.header().source_addr(), header))
}

/// The ARP packet in a frame.
pub(crate) fn arp(frame: &[u8]) -> Option<ArpEthIpv4Packet> {
    let packet = etherparse::SlicedPacket::from_ethernet(frame).ok()?;
    match packet.net? {
        etherparse::NetSlice::Arp(arp) => arp.to_packet().try_eth_ipv4().ok(),
        etherparse::NetSlice::Ipv4(_) | etherparse::NetSlice::Ipv6(_) => None,
    }
}
