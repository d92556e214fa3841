//! Who answers for an address, and whose routes there are, as others on the wire see it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use etherparse::{
    ArpEthIpv4Packet, ArpOperation, EtherType, Ethernet2Header, Icmpv6Type, NetSlice,
    PacketBuilder, SlicedPacket, TransportSlice,
};
use nix::sys::socket::{LinkAddr, MsgFlags, sendto};
use serde_json::Value;
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use crate::{Error, Host};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// An address to ask for, and the interface of the asking host by which to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The interface.
    pub interface: String,
    /// The address.
    pub address: IpAddr,
}

/// Asks for the Ethernet addresses behind addresses, with ARP (a probe as in RFC 5227, which
/// leaves no trace in the tables of those asked) and neighbour solicitations (RFC 4861), and
/// collects for `wait` all who answer; whoever is silent is asked twice. Who is asked by whom does not matter to the asking host's
/// own tables. For IPv6 its interfaces need link-local addresses.
///
/// # Errors
/// If there is no packet socket, or an interface does not exist; then nothing was asked.
pub fn answers(
    host: &Host,
    questions: &[Question],
    wait: Duration,
) -> Result<BTreeMap<IpAddr, BTreeSet<Mac>>, Error> {
    host.run(|| {
        let interfaces = Interfaces::read()?;
        let (v4, v6) = (open(EtherType::ARP)?, open(EtherType::IPV6)?);
        let sockets = [&v4, &v6];
        v4.attach_filter(&arp_replies()).map_err(Error::io("filter ARP"))?;
        v6.attach_filter(&advertisements()).map_err(Error::io("filter ND"))?;
        let mut answers = BTreeMap::new();
        let mut asked: Vec<&Question> = questions.iter().collect();
        // A question or its answer may be lost under load, so that silence is asked once more.
        for _ in 0..2 {
            for burst in asked.chunks(BURST) {
                for question in burst {
                    let (interface, frame) = frame(&interfaces, question)?;
                    send(&v4, &frame, &interface)?;
                }
                collect(sockets, PACE, &mut answers);
            }
            collect(sockets, wait, &mut answers);
            asked.retain(|question| !answers.contains_key(&question.address));
        }
        let asked: BTreeSet<IpAddr> = questions.iter().map(|question| question.address).collect();
        answers.retain(|address, _| asked.contains(address));
        Ok(answers)
    })?
}

/// The next hops of the host's routes to each prefix, as the kernel lists them (`ip -j route`),
/// the default route included.
///
/// # Errors
/// If `ip` fails, or says something unknown.
pub fn next_hops(host: &Host) -> Result<BTreeMap<String, BTreeSet<IpAddr>>, Error> {
    let mut all: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
    for family in ["-4", "-6"] {
        let text = host.sh("ip", &["-j", family, "route", "show"])?;
        let routes: Vec<Value> = serde_json::from_str(&text)
            .map_err(|error| Error::Answer { of: "ip".to_owned(), reason: error.to_string() })?;
        for route in &routes {
            let prefix = route["dst"].as_str().unwrap_or_default();
            all.entry(prefix.to_owned()).or_default().extend(gateways(route));
        }
    }
    Ok(all)
}

/// Sends frames by interfaces of `host`, as they are.
///
/// # Errors
/// If there is no packet socket, or an interface does not exist; those before it were sent.
pub fn inject(host: &Host, frames: &[(&str, Vec<u8>)]) -> Result<(), Error> {
    host.run(|| {
        let (interfaces, socket) = (Interfaces::read()?, open(EtherType::ARP)?);
        frames.iter().try_for_each(|(name, frame)| {
            let unknown = || Error::Unknown { what: "interface", name: (*name).to_owned() };
            send(&socket, frame, interfaces.links.get(*name).ok_or_else(unknown)?)
        })
    })?
}

/// The Ethernet address of an interface.
///
/// # Errors
/// If there is no such interface, or it has none.
pub fn mac(host: &Host, interface: &str) -> Result<Mac, Error> {
    let unknown = || Error::Unknown { what: "Ethernet interface", name: interface.to_owned() };
    let interfaces = host.run(Interfaces::read)??;
    interfaces.links.get(interface).and_then(LinkAddr::addr).ok_or_else(unknown)
}

/// The link-local address of an interface.
///
/// # Errors
/// If there is no such interface, or it has none.
pub fn link_local(host: &Host, interface: &str) -> Result<Ipv6Addr, Error> {
    let unknown = || Error::Unknown {
        what: "link-local address of an interface",
        name: interface.to_owned(),
    };
    let interfaces = host.run(Interfaces::read)??;
    interfaces.link_local.get(interface).copied().ok_or_else(unknown)
}

/// How many questions are asked in one go: their answers have to fit into the socket's buffer.
const BURST: usize = 50;
/// The pause between two bursts.
const PACE: Duration = Duration::from_millis(5);

fn gateways(route: &Value) -> impl Iterator<Item = IpAddr> {
    let several = route["nexthops"].as_array().map(Vec::as_slice).unwrap_or_default();
    let hops = several.iter().chain([route]);
    hops.filter_map(|hop| hop["gateway"].as_str()?.parse().ok())
}

/// The frame that asks, with the interface by which it goes.
fn frame(interfaces: &Interfaces, question: &Question) -> Result<(LinkAddr, Vec<u8>), Error> {
    let unknown = |what| Error::Unknown { what, name: question.interface.clone() };
    let link = interfaces.links.get(&question.interface);
    let link = *link.ok_or_else(|| unknown("interface"))?;
    let mac = link.addr().ok_or_else(|| unknown("Ethernet address of an interface"))?;
    let frame = match question.address {
        IpAddr::V4(address) => arp_probe(mac, address),
        IpAddr::V6(address) => {
            let own = interfaces.link_local.get(&question.interface);
            let own = own.ok_or_else(|| unknown("link-local address of an interface"))?;
            solicitation(mac, *own, address)
        }
    };
    Ok((link, frame))
}

/// The interfaces of a host, by name.
#[derive(Default)]
struct Interfaces {
    links: BTreeMap<String, LinkAddr>,
    link_local: BTreeMap<String, Ipv6Addr>,
}

impl Interfaces {
    fn read() -> Result<Self, Error> {
        let mut interfaces = Self::default();
        let all = nix::ifaddrs::getifaddrs().map_err(Error::io("list the interfaces"))?;
        for it in all {
            let Some(address) = it.address else { continue };
            if let Some(link) = address.as_link_addr() {
                interfaces.links.insert(it.interface_name, *link);
            } else if let Some(v6) = address.as_sockaddr_in6()
                && v6.ip().is_unicast_link_local()
            {
                interfaces.link_local.insert(it.interface_name, v6.ip());
            }
        }
        Ok(interfaces)
    }
}

fn arp_probe(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    let arp = ArpEthIpv4Packet {
        operation: ArpOperation::REQUEST,
        sender_mac: mac,
        sender_ipv4: [0; 4],
        target_mac: [0; 6],
        target_ipv4: address.octets(),
    };
    let ethernet =
        Ethernet2Header { source: mac, destination: [0xff; 6], ether_type: EtherType::ARP };
    [ethernet.to_bytes().as_slice(), arp.to_bytes().as_slice()].concat()
}

fn solicitation(mac: Mac, own: Ipv6Addr, address: Ipv6Addr) -> Vec<u8> {
    // The solicited-node group of RFC 4291, section 2.7.1, and its Ethernet address.
    let [.., a, b, c] = address.octets();
    let [h, l] = [[0xff, a], [b, c]].map(u16::from_be_bytes);
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, h, l);
    let packet = PacketBuilder::ethernet2(mac, [0x33, 0x33, 0xff, a, b, c])
        .ipv6(own.octets(), group.octets(), 255)
        .icmpv6(Icmpv6Type::NeighborSolicitation);
    // The option that carries the asker's link-layer address: type 1, one unit of 8 bytes.
    let body = [address.octets().as_slice(), &[1, 1], &mac].concat();
    let mut frame = Vec::with_capacity(packet.size(body.len()));
    packet.write(&mut frame, &body).expect("a vector takes all, and 24 bytes are not too long");
    frame
}

/// A program of the packet filter that takes frames in which the bytes at those places have those
/// values, and no others: the sockets see all traffic of the host, which would fill their buffers.
fn taking(wanted: &[(u32, u32)]) -> Vec<SockFilter> {
    // BPF_LD | BPF_B | BPF_ABS; BPF_JMP | BPF_JEQ | BPF_K; BPF_RET | BPF_K.
    const LOAD: u16 = 0x30;
    const EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let mut program = Vec::new();
    for (index, (place, value)) in wanted.iter().enumerate() {
        // To the last instruction, past the other pairs and the one that takes all.
        let refuse = u8::try_from((wanted.len() - index - 1) * 2 + 1).unwrap_or(u8::MAX);
        program.push(SockFilter::new(LOAD, 0, 0, *place));
        program.push(SockFilter::new(EQUAL, 0, refuse, *value));
    }
    program.push(SockFilter::new(RETURN, 0, 0, u32::MAX));
    program.push(SockFilter::new(RETURN, 0, 0, 0));
    program
}

/// ARP packets whose operation is 2.
fn arp_replies() -> Vec<SockFilter> {
    taking(&[(20, 0), (21, 2)])
}

/// ICMPv6 of type 136, without extension headers.
fn advertisements() -> Vec<SockFilter> {
    taking(&[(20, 58), (54, 136)])
}

fn open(kind: EtherType) -> Result<Socket, Error> {
    let protocol = Protocol::from(i32::from(kind.0.to_be()));
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol));
    let socket = socket.map_err(Error::io("open a packet socket"))?;
    let set = socket.set_recv_buffer_size(4 << 20).and_then(|()| socket.set_nonblocking(true));
    set.map_err(Error::io("prepare a packet socket"))?;
    Ok(socket)
}

fn send(socket: &Socket, frame: &[u8], interface: &LinkAddr) -> Result<(), Error> {
    let sent = sendto(socket.as_raw_fd(), frame, interface, MsgFlags::empty());
    sent.map(|_| ()).map_err(Error::io("send a question"))
}

fn collect(sockets: [&Socket; 2], wait: Duration, answers: &mut BTreeMap<IpAddr, BTreeSet<Mac>>) {
    let end = Instant::now() + wait;
    let mut buffer = [0; 2048];
    while Instant::now() < end {
        let mut idle = true;
        for mut socket in sockets {
            match socket.read(&mut buffer) {
                Ok(length) => {
                    idle = false;
                    if let Some((address, mac)) = answer(&buffer[..length]) {
                        answers.entry(address).or_default().insert(mac);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // The interface went down, or the like: others may still answer.
                Err(_) => idle = false,
            }
        }
        if idle {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The address that a frame answers for, and who says so.
fn answer(frame: &[u8]) -> Option<(IpAddr, Mac)> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    if let Some(NetSlice::Arp(arp)) = &packet.net {
        let reply = arp.operation() == ArpOperation::REPLY;
        let address: [u8; 4] = arp.sender_protocol_addr().try_into().ok()?;
        let mac = arp.sender_hw_addr().try_into().ok()?;
        return reply.then_some((address.into(), mac));
    }
    let Some(TransportSlice::Icmpv6(icmp)) = &packet.transport else { return None };
    let Icmpv6Type::NeighborAdvertisement(_) = icmp.icmp_type() else { return None };
    let address: [u8; 16] = *icmp.payload().first_chunk()?;
    let mac = *frame.get(6..12)?.first_chunk()?;
    Some((address.into(), mac))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_no_answers_and_answers_are_understood() {
        let (mac, v4, v6) = ([2, 0, 0, 0, 0, 9], Ipv4Addr::new(10, 0, 1, 1), Ipv6Addr::LOCALHOST);
        let mut arp = arp_probe(mac, v4);
        assert_eq!(answer(&arp), None);
        arp[21] = 2;
        arp[28..32].copy_from_slice(&v4.octets());
        assert_eq!(answer(&arp), Some((v4.into(), mac)));

        let mut nd = solicitation(mac, "fe80::1".parse().expect("valid"), v6);
        assert_eq!(nd[..6], [0x33, 0x33, 0xff, 0, 0, 1]);
        assert_eq!(answer(&nd), None);
        nd[54] = 136;
        assert_eq!(answer(&nd), Some((v6.into(), mac)));
        assert_eq!(answer(&[0; 20]), None);
    }
}
