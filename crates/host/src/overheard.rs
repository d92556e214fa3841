//! What a gateway need not hear: how the others announce the addresses that all of them share.
//!
//! For each multicast packet that comes in, the kernel goes through a list of all interfaces that
//! speak IPv6 (their routes to `ff00::/8`). With 2000 bridges this costs a tenth of a millisecond,
//! and a takeover of thousands of networks is thousands of announcements in its first second: the
//! standby gateways would be busy with those of their colleague, for nothing. So the bridge drops
//! them before the host takes them in. What goes through the bridge to stations is not touched, nor
//! is anything that stations say. ARP knows no such list.
//!
//! One nftables table of our own, `bridge selvedge`, replaced as a whole by each change. If it is
//! missing, all is as it would be without, but slower.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use crate::nft::{Error, Nft, clear, listed};

const CLEAR: &str = clear!("bridge selvedge");

/// What the host is made deaf to.
#[derive(Debug, Default)]
pub(crate) struct Overheard {
    nft: Nft,
    /// The gateways' addresses, as they were put into the table; `None` before the first time.
    ignored: Option<BTreeSet<Ipv6Addr>>,
    /// Why that failed last, so that it is told once.
    complaint: Option<String>,
}

impl Overheard {
    /// Ignores announcements of exactly these addresses; those of IPv4 are left out. That fails is
    /// a warning, and tried again by the next call.
    pub(crate) async fn ignore(&mut self, addresses: impl Iterator<Item = IpAddr>) {
        let v6 = |addr| match addr {
            IpAddr::V6(addr) => Some(addr),
            IpAddr::V4(_) => None,
        };
        let addresses = Some(addresses.filter_map(v6).collect());
        if self.ignored == addresses {
            return;
        }
        match self.nft.apply(&ruleset(addresses.as_ref())).await {
            Ok(()) => (self.ignored, self.complaint) = (addresses, None),
            Err(error) => {
                let error = error.to_string();
                if self.complaint.as_ref() != Some(&error) {
                    tracing::warn!(error, "announcements of the other gateways cost time here");
                    self.complaint = Some(error);
                }
            }
        }
    }
}

/// Removes the table, in the network namespace of the calling thread.
///
/// # Errors
/// If `nft` is missing or refuses; then nothing is changed.
pub async fn hear_all() -> Result<(), Error> {
    Nft::default().apply(CLEAR).await
}

fn ruleset(addresses: Option<&BTreeSet<Ipv6Addr>>) -> String {
    let Some(addresses) = addresses.filter(|addresses| !addresses.is_empty()) else {
        return CLEAR.to_owned();
    };
    format!(
        "{CLEAR}table bridge selvedge {{\n \
         set gateways {{ type ipv6_addr; elements = {{ {} }}; }}\n \
         chain input {{\n  type filter hook input priority -400; policy accept;\n  \
         ether daddr 33:33:00:00:00:01 ip6 saddr @gateways icmpv6 type nd-neighbor-advert drop\n \
         }}\n}}\n",
        listed(addresses)
    )
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::fabric::testing::{self, Wire};
    use crate::netlink::{Netlink, NewLink};
    use crate::packet::unsolicited_advertisement;
    use crate::test_support;

    /// Neighbour advertisements that the host has taken in.
    fn heard() -> u64 {
        let text = fs::read_to_string("/proc/thread-self/net/snmp6").expect("readable");
        let line = text.lines().find(|line| line.starts_with("Icmp6InNeighborAdvertisements"));
        line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).expect("counted")
    }

    #[test]
    fn only_the_gateways_own_addresses_are_not_heard() {
        let Some(namespace) = test_support::namespace("overheard") else { return };
        let all = || {
            test_support::runtime().block_on(async {
                let netlink = Netlink::new().expect("netlink");
                netlink.add_link("br1", &NewLink::Bridge).await.expect("a bridge");
                testing::pair(&netlink, "port", "station").await;
                let bridge = testing::link(&netlink, "br1").await.index;
                let port = testing::link(&netlink, "port").await.index;
                netlink.set_master(port, Some(bridge)).await.expect("a port");
                netlink.set_up(bridge, true, None).await.expect("up");
                let wire = Wire::open(&netlink, "station").await;
                let [gateway, other]: [Ipv6Addr; 2] =
                    ["fd00:1::1", "fd00:1::7"].map(|text| text.parse().expect("an address"));
                let hears = async |addr: Ipv6Addr| {
                    let before = heard();
                    wire.send(&unsolicited_advertisement([2, 0, 0, 0, 0, 9], addr));
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    heard() > before
                };
                for _ in 0..100 {
                    if hears(gateway).await {
                        break;
                    }
                }
                let mut overheard = Overheard::default();
                for _ in 0..2 {
                    overheard
                        .ignore([gateway.into(), IpAddr::from([10, 0, 1, 1])].into_iter())
                        .await;
                    assert!(!hears(gateway).await && hears(other).await);
                }
                overheard.ignore([other.into()].into_iter()).await;
                assert!(hears(gateway).await && !hears(other).await);
                hear_all().await.expect("removed");
                assert!(hears(other).await);
            });
        };
        namespace.run(all).expect("entered");
    }

    #[test]
    fn without_addresses_there_is_no_table() {
        assert_eq!(ruleset(Some(&BTreeSet::new())), CLEAR);
        assert_eq!(ruleset(None), CLEAR);
    }
}
