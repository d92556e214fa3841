//! Packets from and to beyond a mesh, carried from member to member inside packets of the
//! overlay: IPv6 in IPv6 and IPv4 in IPv6 (RFC 2473). Which, and by whom, is told by
//! [`Relays`]; this wraps the TUN interface so that WireGuard sees packets between members only.

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Instant;

use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder};
use gotatun::packet::{Ip, Packet, PacketBufPool};
use gotatun::tun::{IpRecv, IpSend, MtuWatcher};
use selvedge_topology::{Hop, RELAY_OVERHEAD, Refusal, Relays};

use super::destinations::{Destinations, Noting};
use crate::nudge::NOTHING;

/// The header of the carrying packet.
const HEADER: usize = RELAY_OVERHEAD as usize;
/// Next headers (IANA): IPv4 and IPv6 inside.
const IPV4_INSIDE: u8 = 4;
const IPV6_INSIDE: u8 = 41;
/// Members are next to each other, but for a peer that forwards for a client.
const HOP_LIMIT: u8 = 64;
/// So much of a packet that is too big goes back with the message that says so: with its headers
/// the least packet that every host takes (RFC 1812, section 4.3.2.3; RFC 4443, section 2.4).
const QUOTED_IPV4: usize = 576 - 28;
const QUOTED_IPV6: usize = 1280 - 48;

/// The rules of one device, and what came of them. All clones are one.
#[derive(Clone, Debug, Default)]
pub(super) struct Rules {
    relays: Arc<RwLock<Option<Arc<Relays>>>>,
    refused: Arc<AtomicU64>,
    destinations: Arc<OnceLock<Destinations>>,
}

impl Rules {
    /// From now on packets are carried by these rules, and refused by them. Before, everything
    /// passes as it is.
    pub(super) fn set(&self, relays: Relays) {
        *self.relays.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(relays));
    }

    /// Where packets go is noted there from now on; once.
    pub(super) fn note_destinations(&self, destinations: &Destinations) {
        self.destinations.get_or_init(|| destinations.clone());
    }

    /// How many packets were refused.
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn get(&self) -> Option<Arc<Relays>> {
        self.relays.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, refusal: Refusal) {
        tracing::trace!(?refusal, "a packet is dropped");
        self.refused.fetch_add(1, Ordering::Relaxed);
    }
}

/// An interface whose packets are carried by rules.
#[derive(Clone)]
pub(super) struct Relay<T> {
    tun: T,
    rules: Rules,
    noting: Noting,
}

impl<T> Relay<T> {
    pub(super) fn new(tun: T, rules: Rules) -> Self {
        Self { tun, rules, noting: Noting::default() }
    }
}

/// From WireGuard to the host.
impl<T: IpSend> IpSend for Relay<T> {
    async fn send(&mut self, packet: Packet<Ip>) -> io::Result<()> {
        let Some(relays) = self.rules.get() else { return self.tun.send(packet).await };
        match arrive(&relays, packet.into_bytes()) {
            Ok(packet) => self.tun.send(packet).await,
            Err(refusal) => {
                self.rules.note(refusal);
                Ok(())
            }
        }
    }
}

/// From the host to WireGuard.
impl<T: IpRecv + IpSend + Clone> IpRecv for Relay<T> {
    async fn recv<'a>(
        &'a mut self,
        pool: &mut PacketBufPool,
    ) -> io::Result<impl Iterator<Item = Packet<Ip>> + Send + 'a> {
        let mut leaving = Vec::with_capacity(1);
        let mut answers = Vec::new();
        let mtu = self.tun.mtu().get();
        let packets: Vec<_> = self.tun.recv(pool).await?.collect();
        let Some(relays) = self.rules.get() else { return Ok(packets.into_iter()) };
        let (now, destinations) = (Instant::now(), self.rules.destinations.get());
        for packet in packets {
            let packet = packet.into_bytes();
            let way = leave(&relays, packet.as_ref(), mtu);
            if let (Some(all), Some(to)) = (destinations, member(packet.as_ref(), &way)) {
                self.noting.note(all, to, now);
            }
            match way {
                Ok(Leaving::Plain) => leaving.extend(packet.try_into_ip()),
                Ok(Leaving::By(hop)) => {
                    leaving.extend(wrap(pool, packet.as_ref(), relays.own, hop))
                }
                Ok(Leaving::TooBig(answer)) => answers.push(answer),
                Err(refusal) => self.rules.note(refusal),
            }
        }
        for answer in answers {
            if let Ok(packet) = Packet::copy_from(answer.as_slice()).try_into_ip() {
                self.tun.send(packet).await?;
            }
        }
        Ok(leaving.into_iter())
    }

    fn mtu(&self) -> MtuWatcher {
        self.tun.mtu()
    }
}

/// How a packet leaves.
#[derive(Debug, PartialEq, Eq)]
enum Leaving {
    Plain,
    /// Carried to this member.
    By(Hop),
    /// Not at all: the host gets this message.
    TooBig(Vec<u8>),
}

fn leave(relays: &Relays, packet: &[u8], mtu: u16) -> Result<Leaving, Refusal> {
    let (src, dst) = ends(packet).ok_or(Refusal::Source)?;
    let Some(hop) = relays.send(src, dst)? else { return Ok(Leaving::Plain) };
    let room = mtu.saturating_sub(RELAY_OVERHEAD);
    match packet.len() <= usize::from(room) {
        true => Ok(Leaving::By(hop)),
        false => too_big(src, dst, packet, room).map(Leaving::TooBig).ok_or(Refusal::NoRoute),
    }
}

/// The member that a packet is sent to; `None` for one that is not sent, or that says nothing.
fn member(packet: &[u8], way: &Result<Leaving, Refusal>) -> Option<IpAddr> {
    match way {
        Ok(Leaving::Plain) if packet[0] >> 4 == 6 && packet[6] == NOTHING => None,
        Ok(Leaving::Plain) => ends(packet).map(|(_, to)| to),
        Ok(Leaving::By(hop)) => Some(hop.via.into()),
        Ok(Leaving::TooBig(_)) | Err(_) => None,
    }
}

fn arrive(relays: &Relays, mut packet: Packet) -> Result<Packet<Ip>, Refusal> {
    let (src, dst) = ends(packet.as_ref()).ok_or(Refusal::Source)?;
    let for_us = dst == IpAddr::from(relays.own);
    match (src, carried(packet.as_ref()).filter(|_| for_us)) {
        (IpAddr::V6(from), Some(distance)) => {
            let _ = packet.buf_mut().split_to(HEADER);
            let (src, dst) = ends(packet.as_ref()).ok_or(Refusal::Source)?;
            relays.take_relayed(from, distance, src, dst)?;
        }
        (_, _) => relays.take_plain(src, dst)?,
    }
    packet.try_into_ip().map_err(|_| Refusal::Source)
}

/// Source and destination of an IP packet; `None` if it is none.
fn ends(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    match packet.first()? >> 4 {
        4 => {
            let at = |from| packet.get(from..from + 4)?.first_chunk::<4>().copied();
            Some((at(12)?.into(), at(16)?.into()))
        }
        6 => {
            let at = |from| packet.get(from..from + 16)?.first_chunk::<16>().copied();
            Some((at(8)?.into(), at(24)?.into()))
        }
        _ => None,
    }
}

/// The distance that a packet carries another one for; `None` if it carries none.
fn carried(packet: &[u8]) -> Option<u8> {
    let carries = packet.len() > HEADER
        && packet[0] >> 4 == 6
        && matches!(packet[6], IPV4_INSIDE | IPV6_INSIDE);
    // The lowest bits of the flow label, which nobody else uses inside the mesh.
    carries.then(|| packet[3])
}

fn wrap(pool: &PacketBufPool, inner: &[u8], own: Ipv6Addr, hop: Hop) -> Option<Packet<Ip>> {
    let mut carrier = pool.get();
    let room = carrier.buf_mut().get_mut(..HEADER + inner.len())?;
    room[..HEADER].copy_from_slice(&header(inner, own, hop)?);
    room[HEADER..].copy_from_slice(inner);
    carrier.truncate(HEADER + inner.len());
    carrier.try_into_ip().ok()
}

fn header(inner: &[u8], own: Ipv6Addr, hop: Hop) -> Option<[u8; HEADER]> {
    let mut header = [0; HEADER];
    header[0] = 6 << 4;
    header[3] = hop.distance;
    header[4..6].copy_from_slice(&u16::try_from(inner.len()).ok()?.to_be_bytes());
    header[6] = if inner.first()? >> 4 == 4 { IPV4_INSIDE } else { IPV6_INSIDE };
    header[7] = HOP_LIMIT;
    header[8..24].copy_from_slice(&own.octets());
    header[24..].copy_from_slice(&hop.via.octets());
    Some(header)
}

/// The message that tells a sender how much fits (RFC 4443, section 3.2; RFC 1191).
///
/// It comes from the destination, as Linux has it come from its own tunnels: the way there leads
/// into this interface, so the host's check of sources lets it pass. An own address, of which
/// there may be none in IPv4, would be taken for forged.
fn too_big(src: IpAddr, dst: IpAddr, packet: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let mut message = Vec::new();
    match (src, dst) {
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let quoted = &packet[..packet.len().min(QUOTED_IPV6)];
            let kind = Icmpv6Type::PacketTooBig { mtu: mtu.into() };
            let builder = PacketBuilder::ipv6(dst.octets(), src.octets(), HOP_LIMIT);
            builder.icmpv6(kind).write(&mut message, quoted).ok()?;
        }
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let quoted = &packet[..packet.len().min(QUOTED_IPV4)];
            let needed = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu };
            let kind = Icmpv4Type::DestinationUnreachable(needed);
            let builder = PacketBuilder::ipv4(dst.octets(), src.octets(), HOP_LIMIT);
            builder.icmpv4(kind).write(&mut message, quoted).ok()?;
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
    }
    Some(message)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use selvedge_model::Prefix;

    use super::*;

    fn v6(text: &str) -> Ipv6Addr {
        text.parse().expect("an address")
    }

    fn prefix(text: &str) -> Prefix {
        text.parse().expect("a prefix")
    }

    /// Of a member of fd77::/64, which reaches fd88::/64 by another.
    fn relays(own: &str, serves: &[&str], by: &[(&str, &str)]) -> Relays {
        let hop = |via| Hop { via: v6(via), distance: 1 };
        Relays {
            own: v6(own),
            own_ipv4: None,
            overlay: prefix("fd77::/64"),
            overlay_ipv4: None,
            hops: by.iter().map(|(to, via)| (prefix(to), hop(via))).collect(),
            serves: serves.iter().map(|to| (prefix(to), 0)).collect(),
            sources: by.iter().map(|(to, via)| (v6(via), BTreeSet::from([prefix(to)]))).collect(),
        }
    }

    fn udp(src: &str, dst: &str, length: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ipv6(v6(src).octets(), v6(dst).octets(), 64).udp(1, 2);
        builder.write(&mut bytes, &vec![7; length]).expect("written");
        bytes
    }

    fn taken(relays: &Relays, packet: &[u8]) -> Result<Vec<u8>, Refusal> {
        let packet = arrive(relays, Packet::copy_from(packet))?;
        Ok(packet.into_bytes().as_ref().to_vec())
    }

    fn wrapped(inner: &[u8], own: &str, via: &str, distance: u8) -> Vec<u8> {
        let hop = Hop { via: v6(via), distance };
        let outer = wrap(&PacketBufPool::new(1), inner, v6(own), hop).expect("it fits");
        outer.into_bytes().as_ref().to_vec()
    }

    #[test]
    fn what_is_wrapped_here_is_the_same_there() {
        let here = relays("fd77::1", &[], &[("fd88::/64", "fd77::2")]);
        let there = relays("fd77::2", &["fd88::/64"], &[]);
        let packet = udp("fd77::1", "fd88::9", 100);
        let hop = Hop { via: v6("fd77::2"), distance: 1 };
        assert_eq!(leave(&here, &packet, 1420), Ok(Leaving::By(hop)));
        let outer = wrapped(&packet, "fd77::1", "fd77::2", 1);
        let mut expected = vec![0x60, 0, 0, 1, 0, 148, 41, 64];
        expected.extend(v6("fd77::1").octets());
        expected.extend(v6("fd77::2").octets());
        assert_eq!(outer[..40], expected);
        assert_eq!(ends(&outer), Some((v6("fd77::1").into(), v6("fd77::2").into())));
        assert_eq!(taken(&there, &outer), Ok(packet));
    }

    #[test]
    fn plain_packets_stay_as_they_are_and_others_are_refused() {
        let here = relays("fd77::1", &[], &[]);
        let packet = udp("fd77::1", "fd77::2", 100);
        assert_eq!(leave(&here, &packet, 1420), Ok(Leaving::Plain));
        assert!(taken(&here, &udp("fd77::2", "fd77::1", 100)).is_ok());
        let plain = |src, dst| taken(&here, &udp(src, dst, 100));
        assert_eq!(plain("2001:db8::1", "fd77::1"), Err(Refusal::Source));
        assert_eq!(plain("fd77::2", "2001:db8::1"), Err(Refusal::NotServed));
        let carried = |src, dst| taken(&here, &wrapped(&udp(src, dst, 9), "fd77::2", "fd77::1", 9));
        assert_eq!(carried("fd77::2", "2001:db8::1"), Err(Refusal::NotServed));
        assert_eq!(carried("fd77::3", "fd77::1"), Err(Refusal::Source));
        assert!(carried("fd77::2", "fd77::1").is_ok());
    }

    #[test]
    fn what_does_not_fit_is_answered() {
        let here = relays("fd77::1", &[], &[("fd88::/64", "fd77::2")]);
        let fits = udp("fd77::1", "fd88::9", 1380 - 48);
        assert!(matches!(leave(&here, &fits, 1420), Ok(Leaving::By(..))));
        let Ok(Leaving::TooBig(answer)) = leave(&here, &udp("fd77::1", "fd88::9", 1380 - 47), 1420)
        else {
            panic!("it does not fit");
        };
        assert_eq!(answer.len(), 1280);
        assert_eq!(answer[8..24], v6("fd88::9").octets(), "from where the host routes to here");
        assert_eq!(answer[40..42], [2, 0], "packet too big");
        assert_eq!(answer[44..48], 1380_u32.to_be_bytes());
    }

    #[test]
    fn broken_packets_are_refused() {
        let here = relays("fd77::1", &[], &[]);
        let whole = wrapped(&udp("fd77::2", "fd77::1", 100), "fd77::2", "fd77::1", 1);
        for length in 1..40 {
            assert_eq!(taken(&here, &whole[..length]), Err(Refusal::Source), "{length} bytes");
        }
        for length in 41..80 {
            assert_eq!(taken(&here, &whole[..length]), Err(Refusal::Source), "{length} bytes");
        }
        assert_eq!(ends(&[0x50; 100]), None);
    }
}
