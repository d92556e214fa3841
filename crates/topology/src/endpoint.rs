//! Which of a member's addresses to send to.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::view::Member;

/// What a node knows of its own place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Own<'a> {
    /// Its own endpoints; empty if it does not know them.
    pub endpoints: &'a [SocketAddr],
}

impl<'a> Own<'a> {
    /// As a member of a mesh.
    #[must_use]
    pub fn of(member: &'a Member) -> Self {
        Self { endpoints: &member.endpoints }
    }

    fn has_family(&self, ip: IpAddr) -> bool {
        self.endpoints.iter().any(|own| own.is_ipv4() == ip.is_ipv4())
    }

    /// Whether it is behind the same NAT as somebody who announces `theirs`: both announce the
    /// same public address.
    fn is_neighbour(&self, theirs: &[SocketAddr]) -> bool {
        let public = |addr: &&SocketAddr| !is_private(addr.ip());
        theirs.iter().filter(public).any(|addr| self.endpoints.iter().any(|o| o.ip() == addr.ip()))
    }
}

/// The endpoints of a member in the order in which to try them: those of a family that the own
/// node has first; behind one NAT the private ones first, else the private ones last, unless the
/// own node is in such a network itself; else as the member prefers.
#[must_use]
pub fn candidates(own: Own<'_>, theirs: &[SocketAddr]) -> Vec<SocketAddr> {
    let neighbour = own.is_neighbour(theirs);
    let inside = own.endpoints.is_empty() || own.endpoints.iter().any(|o| is_private(o.ip()));
    let rank = |addr: &SocketAddr| {
        let place = match (is_private(addr.ip()), neighbour, inside) {
            (true, true, _) => 0,
            (true, false, false) => 2,
            (true, false, true) | (false, _, _) => 1,
        };
        (!own.has_family(addr.ip()), place)
    };
    let mut list: Vec<SocketAddr> = theirs.iter().copied().filter(is_usable).collect();
    list.sort_by_key(rank);
    list
}

/// The endpoint to use after `failures` attempts in vain; `None` if there is none at all.
#[must_use]
pub fn endpoint(own: Own<'_>, theirs: &[SocketAddr], failures: usize) -> Option<SocketAddr> {
    let list = candidates(own, theirs);
    let turn = failures.checked_rem(list.len())?;
    list.get(turn).copied()
}

/// Whether packets can be sent there.
pub(crate) fn is_usable(addr: &SocketAddr) -> bool {
    addr.port() != 0 && is_somebodys(addr.ip())
}

/// Whether packets to an address reach one certain other host. IPv6's link-local addresses say
/// nothing without the link.
fn is_somebodys(ip: IpAddr) -> bool {
    let nobodys = match ip {
        IpAddr::V4(ip) => ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(nobodys || ip.is_unspecified() || ip.is_multicast() || ip.is_loopback())
}

/// Addresses of networks that are not routed in the internet: RFC 1918, RFC 6598, RFC 4193.
pub(crate) fn is_private(ip: IpAddr) -> bool {
    let shared = |ip: Ipv4Addr| ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
    match ip {
        IpAddr::V4(ip) => ip.is_private() || ip.is_link_local() || shared(ip),
        IpAddr::V6(ip) => ip.is_unique_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addrs(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().expect("an address")).collect()
    }

    fn order(own: &[&str], theirs: &[&str]) -> Vec<String> {
        let own = addrs(own);
        let list = candidates(Own { endpoints: &own }, &addrs(theirs));
        list.iter().map(SocketAddr::to_string).collect()
    }

    #[test]
    fn own_families_come_first_and_then_their_order() {
        let theirs = ["[2001:db8::1]:1", "192.0.2.1:1", "192.0.2.2:2"];
        assert_eq!(
            order(&["198.51.100.1:9"], &theirs),
            ["192.0.2.1:1", "192.0.2.2:2", "[2001:db8::1]:1"]
        );
        assert_eq!(order(&["[2001:db8::9]:9", "198.51.100.1:9"], &theirs), theirs);
    }

    #[test]
    fn behind_one_nat_the_inner_addresses_come_first() {
        let theirs = ["192.0.2.1:1", "10.0.0.1:1"];
        assert_eq!(order(&["192.0.2.1:9", "10.0.0.9:9"], &theirs), ["10.0.0.1:1", "192.0.2.1:1"]);
        assert_eq!(
            order(&["192.0.2.7:9"], &["10.0.0.1:1", "192.0.2.1:1"]),
            ["192.0.2.1:1", "10.0.0.1:1"]
        );
    }

    #[test]
    fn every_failure_takes_the_next() {
        let theirs = addrs(&["192.0.2.1:1", "192.0.2.2:2", "0.0.0.0:1", "192.0.2.3:0"]);
        let pick = |failures| endpoint(Own::default(), &theirs, failures);
        assert_eq!(
            [pick(0), pick(1), pick(2)],
            [Some(theirs[0]), Some(theirs[1]), Some(theirs[0])]
        );
        assert_eq!(endpoint(Own::default(), &[], 3), None);
    }

    #[test]
    fn addresses_that_lead_to_nobody_are_passed_over() {
        let nobodys =
            ["127.0.0.1:1", "[::1]:1", "[::]:1", "224.0.0.1:1", "255.255.255.255:1", "[ff02::1]:1"];
        assert_eq!(order(&[], &nobodys), [""; 0]);
        assert_eq!(order(&[], &["[fe80::1]:1", "[2001:db8::1]:1"]), ["[2001:db8::1]:1"]);
    }
}
