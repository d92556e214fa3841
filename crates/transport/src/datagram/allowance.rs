//! How often something is done at most.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::hub::network;

/// How many networks are counted in a second; those beyond share what is left to all.
const MAX_NETWORKS: usize = 1024;

/// How often something is done at most for those of one network, an IPv4 /24 or an IPv6 /64, and
/// for all together: who has many identities, or addresses, takes little from those elsewhere.
pub(super) struct Shares {
    each_second: u32,
    total: Allowance,
    by_network: BTreeMap<IpAddr, Allowance>,
}

impl Shares {
    pub(super) const fn new(each_second: u32, in_total: u32, now: Instant) -> Self {
        let total = Allowance::new(in_total, now);
        Self { each_second, total, by_network: BTreeMap::new() }
    }

    /// Whether it may be done once more for somebody there.
    pub(super) fn take(&mut self, from: IpAddr, now: Instant) -> bool {
        let network = network(from, 24);
        if self.by_network.len() >= MAX_NETWORKS && !self.by_network.contains_key(&network) {
            self.by_network.retain(|_, share| !share.is_over(now));
        }
        let room = self.by_network.len() < MAX_NETWORKS || self.by_network.contains_key(&network);
        let fresh = || Allowance::new(self.each_second, now);
        let own = !room || self.by_network.entry(network).or_insert_with(fresh).take(now);
        own && self.total.take(now)
    }
}

/// So many a second, and no more than a second's at once.
pub(super) struct Allowance {
    each_second: u32,
    left: u32,
    since: Instant,
}

impl Allowance {
    pub(super) const fn new(each_second: u32, now: Instant) -> Self {
        Self { each_second, left: each_second, since: now }
    }

    /// Whether all may be done again.
    fn is_over(&self, now: Instant) -> bool {
        now - self.since >= Duration::from_secs(1)
    }

    /// Whether it may be done once more.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        if self.is_over(now) {
            (self.since, self.left) = (now, self.each_second);
        }
        let any = self.left > 0;
        self.left -= u32::from(any);
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_network_has_a_share_and_all_have_a_bound() {
        let now = Instant::now();
        let mut shares = Shares::new(5, 12, now);
        let v4 = |net: u8, host: u8| IpAddr::from([192, 0, net, host]);
        let v6 = |net: u16, host: u16| IpAddr::from([0x2001, 0xdb8, 0, net, 0, 0, 0, host]);
        let taken = (0..20).filter(|host| shares.take(v4(1, *host), now)).count();
        assert_eq!(taken, 5, "one network");
        let taken = (0..20).filter(|host| shares.take(v6(1, *host), now)).count();
        assert_eq!(taken, 5, "another");
        assert!(shares.take(v6(2, 1), now) && shares.take(v4(2, 1), now));
        assert!(!shares.take(v4(3, 1), now), "together no more");
        assert!(shares.take(v4(1, 1), now + Duration::from_secs(1)));
    }

    #[test]
    fn so_many_networks_are_counted_and_no_more() {
        let now = Instant::now();
        let mut shares = Shares::new(1, u32::MAX, now);
        let net = |number: u16| IpAddr::from([0x2001, 0xdb8, 0, number, 0, 0, 0, 1]);
        assert!((0..2000).all(|number| shares.take(net(number), now)));
        assert_eq!(shares.by_network.len(), MAX_NETWORKS);
        assert!(!shares.take(net(0), now));
        assert!(shares.take(net(5000), now + Duration::from_secs(1)));
        assert_eq!(shares.by_network.len(), 1, "those of before are forgotten");
    }
}
