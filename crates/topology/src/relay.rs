//! What becomes of a packet that leaves or reaches the interface of a mesh.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use selvedge_model::Prefix;

/// The relays of one mesh, as one member uses them.
///
/// A packet from member to member travels plain. Any other is carried to a member inside a packet
/// of the own overlay address, together with its **distance**: how many more relays it may pass,
/// which is the number of relays on the way that the sender chose. A member takes a packet for a
/// destination only if it is nearer to it than that. So the distance falls at each relay, and no
/// packet runs in a circle, whatever the members on its way believe at that moment.
///
/// Nobody becomes a router against its will: a member takes packets only for itself, for other
/// members, and for what it announces itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relays {
    /// The own overlay address.
    pub own: Ipv6Addr,
    /// The own IPv4 address in the overlay.
    pub own_ipv4: Option<Ipv4Addr>,
    /// The overlay prefix of the mesh.
    pub overlay: Prefix,
    /// The IPv4 prefix of the mesh.
    pub overlay_ipv4: Option<Prefix>,
    /// Where packets for a prefix go; the longest prefix counts. The members' IPv4 addresses are
    /// among them.
    pub hops: Table<Hop>,
    /// What this node relays to, and how far it is from there.
    pub serves: Table<u8>,
    /// The prefixes that a member, by its overlay address, may relay from.
    pub sources: BTreeMap<Ipv6Addr, BTreeSet<Prefix>>,
}

/// The member that relays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Its overlay address.
    pub via: Ipv6Addr,
    /// The distance of the destination by it.
    pub distance: u8,
}

/// Why a packet is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// Its source is not one that its sender may use.
    Source,
    /// There is no way to its destination.
    NoRoute,
    /// The receiver does not relay to its destination.
    NotServed,
    /// The receiver is not nearer to its destination than its sender: the sender's routes are out
    /// of date, or the receiver's.
    NotNearer,
}

impl Relays {
    /// How a packet that the host sends out of the interface travels: relayed by a member, or
    /// plain (`None`).
    ///
    /// # Errors
    /// Why it is not sent.
    pub fn send(&self, src: IpAddr, dst: IpAddr) -> Result<Option<Hop>, Refusal> {
        if self.is_inside(dst) {
            if self.is_inside(src) {
                return Ok(None);
            }
            self.serves.find(src).ok_or(Refusal::Source)?;
            return self
                .member(dst)
                .map(|via| Some(Hop { via, distance: 0 }))
                .ok_or(Refusal::NoRoute);
        }
        if !self.is_inside(src) && self.serves.find(src).is_none() {
            return Err(Refusal::Source);
        }
        self.hops.find(dst).map(|(_, hop)| Some(*hop)).ok_or(Refusal::NoRoute)
    }

    /// Whether a plain packet is taken: both ends are members, as addresses tell. WireGuard has
    /// checked which member it is from.
    ///
    /// # Errors
    /// Why it is dropped.
    pub fn take_plain(&self, src: IpAddr, dst: IpAddr) -> Result<(), Refusal> {
        match (self.is_inside(src), self.is_inside(dst)) {
            (false, _) => Err(Refusal::Source),
            (true, false) => Err(Refusal::NotServed),
            (true, true) => Ok(()),
        }
    }

    /// Whether a packet is taken that the member `from` relayed to this node.
    ///
    /// # Errors
    /// Why it is dropped.
    pub fn take_relayed(
        &self,
        from: Ipv6Addr,
        distance: u8,
        src: IpAddr,
        dst: IpAddr,
    ) -> Result<(), Refusal> {
        if !self.may_relay(from, src) {
            return Err(Refusal::Source);
        }
        if self.is_own(dst) {
            return Ok(());
        }
        match self.serves.find(dst) {
            // An exit is a way to the internet, not into the networks around it.
            Some((prefix, _)) if prefix.len() == 0 && !is_public(dst) => Err(Refusal::NotServed),
            Some((_, own)) if *own < distance => Ok(()),
            Some(_) => Err(Refusal::NotNearer),
            None => Err(Refusal::NotServed),
        }
    }

    fn may_relay(&self, from: Ipv6Addr, src: IpAddr) -> bool {
        if self.is_inside(src) {
            return self.member(src) == Some(from);
        }
        let Some(announced) = self.sources.get(&from) else { return false };
        let mut holding = announced.iter().filter(|prefix| prefix.contains(src));
        let known = || self.hops.find(src).is_some_and(|(prefix, _)| prefix.len() > 0);
        // What an exit brings in comes from the internet, not from where another route leads.
        holding.any(|prefix| prefix.len() > 0 || (is_public(src) && !known()))
    }

    /// The overlay address of the member that has an address of the mesh.
    fn member(&self, addr: IpAddr) -> Option<Ipv6Addr> {
        match addr {
            IpAddr::V6(addr) => Some(addr),
            IpAddr::V4(own) if Some(own) == self.own_ipv4 => Some(self.own),
            IpAddr::V4(_) => {
                self.hops.find(addr).filter(|(prefix, _)| prefix.is_host()).map(|(_, hop)| hop.via)
            }
        }
    }

    fn is_own(&self, addr: IpAddr) -> bool {
        addr == IpAddr::from(self.own) || self.own_ipv4.is_some_and(|own| addr == IpAddr::from(own))
    }

    fn is_inside(&self, addr: IpAddr) -> bool {
        self.overlay.contains(addr) || self.overlay_ipv4.is_some_and(|prefix| prefix.contains(addr))
    }
}

/// A routing table: values by prefixes, found by the longest that holds an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table<T> {
    entries: BTreeMap<Prefix, T>,
    /// The lengths that occur, the greatest first.
    lengths: Vec<u8>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self::from_iter([])
    }
}

impl<T> FromIterator<(Prefix, T)> for Table<T> {
    /// Of two values for one network the last one counts.
    fn from_iter<I: IntoIterator<Item = (Prefix, T)>>(entries: I) -> Self {
        let entries: BTreeMap<Prefix, T> =
            entries.into_iter().map(|(prefix, value)| (prefix.network(), value)).collect();
        let lengths: BTreeSet<u8> = entries.keys().map(Prefix::len).collect();
        Self { entries, lengths: lengths.into_iter().rev().collect() }
    }
}

impl<T> Table<T> {
    /// The longest prefix that holds `addr`, and its value.
    #[must_use]
    pub fn find(&self, addr: IpAddr) -> Option<(&Prefix, &T)> {
        let network = |len: &u8| Some(Prefix::new(addr, *len)?.network());
        self.lengths
            .iter()
            .filter_map(network)
            .find_map(|prefix| self.entries.get_key_value(&prefix))
    }

    /// All entries, by prefix.
    pub fn iter(&self) -> impl Iterator<Item = (&Prefix, &T)> {
        self.entries.iter()
    }
}

/// Whether an address is one of the internet's, as far as the address alone tells (RFC 6890).
fn is_public(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            let special = matches!((a, b, c), (0 | 224.., ..) | (192, 0, 0) | (198, 18 | 19, _));
            let shared = a == 100 && b & 0xc0 == 64;
            !(special || shared || ip.is_private() || ip.is_loopback() || ip.is_link_local())
        }
        // Global unicast is assigned from 2000::/3 (RFC 4291).
        IpAddr::V6(ip) => match embedded(ip) {
            Some(ip) => is_public(ip.into()),
            None => ip.segments()[0] & 0xe000 == 0x2000,
        },
    }
}

/// The IPv4 address to which an IPv6 address leads: by NAT64 (RFC 6052), or 6to4 (RFC 3056).
fn embedded(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let (high, low) = match ip.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => (high, low),
        _ => return None,
    };
    Some(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn v6(text: &str) -> Ipv6Addr {
        text.parse().expect("an address")
    }

    fn prefix(text: &str) -> Prefix {
        text.parse().expect("a prefix")
    }

    /// Member ::1 of fd00::/64, which bridges to fd0b::/64 and is two relays from fd0c::/64. ::2
    /// has a network and the way to fd0d::/64, ::3 is an exit.
    fn relays() -> Relays {
        let hop = |via, distance| Hop { via: v6(via), distance };
        let hops = [
            ("192.168.7.0/24", hop("fd00::2", 1)),
            ("fd0d::/64", hop("fd00::2", 3)),
            ("0.0.0.0/0", hop("fd00::3", 1)),
            ("10.9.0.2/32", hop("fd00::2", 0)),
        ];
        let sources = [
            ("fd00::2", &["192.168.7.0/24", "fd0d::/64"][..]),
            ("fd00::3", &["0.0.0.0/0", "::/0"][..]),
        ];
        Relays {
            own: v6("fd00::1"),
            own_ipv4: Some([10, 9, 0, 1].into()),
            overlay: prefix("fd00::/64"),
            overlay_ipv4: Some(prefix("10.9.0.0/16")),
            hops: hops.map(|(to, hop)| (prefix(to), hop)).into_iter().collect(),
            serves: [(prefix("fd0b::/64"), 0), (prefix("fd0c::/64"), 2)].into_iter().collect(),
            sources: sources
                .map(|(from, list)| (v6(from), list.iter().map(|it| prefix(it)).collect()))
                .into(),
        }
    }

    #[test]
    fn members_talk_plainly_and_others_by_relays() {
        let send = |src, dst| relays().send(ip(src), ip(dst));
        let by = |via, distance| Ok(Some(Hop { via: v6(via), distance }));
        assert_eq!(send("fd00::1", "fd00::9"), Ok(None));
        assert_eq!(send("10.9.0.1", "10.9.0.2"), Ok(None));
        assert_eq!(send("fd00::1", "fd0d::5"), by("fd00::2", 3));
        assert_eq!(send("10.9.0.1", "192.168.7.8"), by("fd00::2", 1));
        assert_eq!(send("10.9.0.1", "198.51.100.1"), by("fd00::3", 1));
        assert_eq!(send("fd00::1", "2001:db8::1"), Err(Refusal::NoRoute));
        // From the mesh that this node bridges.
        assert_eq!(send("fd0b::7", "fd00::9"), by("fd00::9", 0));
        assert_eq!(send("fd0b::7", "fd0d::9"), by("fd00::2", 3));
        // From elsewhere: nobody would take it.
        assert_eq!(send("172.16.0.1", "10.9.0.2"), Err(Refusal::Source));
        assert_eq!(send("172.16.0.1", "192.168.7.8"), Err(Refusal::Source));
    }

    #[test]
    fn plain_packets_are_between_members() {
        let take = |src, dst| relays().take_plain(ip(src), ip(dst));
        assert_eq!(take("fd00::2", "fd00::1"), Ok(()));
        assert_eq!(take("fd00::2", "fd00::3"), Ok(()), "a peer forwards for clients");
        assert_eq!(take("fd00::2", "2001:db8::1"), Err(Refusal::NotServed));
        assert_eq!(take("2001:db8::1", "fd00::1"), Err(Refusal::Source));
        assert_eq!(take("fe80::1", "ff02::1"), Err(Refusal::Source));
    }

    #[test]
    fn relays_lead_nearer_or_nowhere() {
        let take =
            |distance, dst| relays().take_relayed(v6("fd00::2"), distance, ip("fd00::2"), ip(dst));
        assert_eq!(take(0, "fd00::1"), Ok(()), "for this node itself");
        assert_eq!(take(0, "10.9.0.1"), Ok(()));
        assert_eq!(take(1, "fd0b::1"), Ok(()));
        assert_eq!(take(0, "fd0b::1"), Err(Refusal::NotNearer));
        assert_eq!(take(3, "fd0c::1"), Ok(()));
        assert_eq!(take(2, "fd0c::1"), Err(Refusal::NotNearer));
        assert_eq!(take(9, "fd0d::1"), Err(Refusal::NotServed), "it is reached in this very mesh");
        assert_eq!(take(9, "198.51.100.1"), Err(Refusal::NotServed), "no exit against its will");
        assert_eq!(take(9, "fd00::3"), Err(Refusal::NotServed), "members are reached plainly");
    }

    #[test]
    fn an_exit_leads_to_the_internet_alone() {
        let serves = [(prefix("0.0.0.0/0"), 0), (prefix("::/0"), 0)].into_iter().collect();
        let exit = Relays { serves, ..relays() };
        let take = |dst| exit.take_relayed(v6("fd00::2"), 1, ip("fd00::2"), ip(dst));
        for dst in ["198.51.100.1", "2001:db8:6::1", "64:ff9b::198.51.100.1", "2002:c633:6401::1"] {
            assert_eq!(take(dst), Ok(()), "{dst}");
        }
        for dst in [
            "192.168.1.1",
            "10.1.1.1",
            "127.0.0.1",
            "169.254.1.1",
            "100.64.0.1",
            "224.0.0.1",
            "192.0.0.8",
            "198.19.0.1",
            "fe80::1",
            "ff0e::1",
            "fd99::1",
            // Translators of the exit's own site, and private addresses behind any (RFC 8215).
            "64:ff9b::192.168.1.1",
            "64:ff9b:1::1",
            "2002:c0a8:101::1",
        ] {
            assert_eq!(take(dst), Err(Refusal::NotServed), "{dst}");
        }
    }

    #[test]
    fn nobody_relays_from_where_it_is_not() {
        let take = |from, src| relays().take_relayed(v6(from), 9, ip(src), ip("fd00::1"));
        assert_eq!(take("fd00::2", "fd00::2"), Ok(()));
        assert_eq!(take("fd00::2", "10.9.0.2"), Ok(()));
        assert_eq!(take("fd00::2", "fd0d::1"), Ok(()));
        assert_eq!(take("fd00::2", "192.168.7.1"), Ok(()));
        assert_eq!(take("fd00::3", "198.51.100.1"), Ok(()), "an exit brings in the internet");
        assert_eq!(take("fd00::3", "2001:db8::1"), Ok(()));
        for (from, src) in [
            ("fd00::2", "fd00::3"),
            ("fd00::3", "10.9.0.2"),
            ("fd00::2", "192.168.8.1"),
            ("fd00::3", "fd0d::1"),
            ("fd00::3", "192.168.7.1"),
            ("fd00::4", "198.51.100.1"),
        ] {
            assert_eq!(take(from, src), Err(Refusal::Source), "{from} {src}");
        }
    }

    #[test]
    fn the_longest_prefix_counts() {
        let table: Table<u8> = ["::/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24"]
            .iter()
            .zip(0..)
            .map(|(text, value)| (prefix(text), value))
            .collect();
        let find = |text| table.find(ip(text)).map(|(_, value)| *value);
        assert_eq!(find("10.1.2.3"), Some(3));
        assert_eq!(find("10.1.3.3"), Some(2));
        assert_eq!(find("10.2.3.3"), Some(1));
        assert_eq!(find("11.0.0.1"), None);
        assert_eq!(find("fd00::1"), Some(0));
    }
}
