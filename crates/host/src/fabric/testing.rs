//! What the tests of drivers and inventory share: networks in a namespace, raw frames.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use etherparse::{ArpEthIpv4Packet, ArpOperation, EtherType, Ethernet2Header};
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
    let tunnel = Vxlan { vni, local, port: 4789, learning: false };
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

/// The ARP packet in a frame.
pub(crate) fn arp(frame: &[u8]) -> Option<ArpEthIpv4Packet> {
    let packet = etherparse::SlicedPacket::from_ethernet(frame).ok()?;
    match packet.net? {
        etherparse::NetSlice::Arp(arp) => arp.to_packet().try_eth_ipv4().ok(),
        etherparse::NetSlice::Ipv4(_) | etherparse::NetSlice::Ipv6(_) => None,
    }
}
