//! The router advertisement (RFC 4861, section 4.2) and what is said in it.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use etherparse::icmpv6::RouterAdvertisementHeader;
use etherparse::{Icmpv6Type, PacketBuilder};
use selvedge_model::Prefix;

use super::{ALL_NODES, ALL_NODES_MAC, HOP_LIMIT};
use crate::netlink::Mac;

/// The link-local address that all gateways of a network share, unless another is configured.
/// A station keeps its default router, whichever gateway is behind it.
pub const DEFAULT_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0x5e1, 0xd6e);

/// Stateless autoconfiguration on Ethernet needs prefixes of this length (RFC 4862, section
/// 5.5.3 d, with the interface identifiers of RFC 2464).
const AUTONOMOUS_LENGTH: u8 = 64;

/// The bounds of RFC 4861, section 6.2.1.
const MIN_MAX_INTERVAL: Duration = Duration::from_secs(4);
const MAX_MAX_INTERVAL: Duration = Duration::from_secs(1800);
const MIN_MIN_INTERVAL: Duration = Duration::from_secs(3);
const MAX_LIFETIME: Duration = Duration::from_secs(9000);

/// The least MTU of IPv6 (RFC 8200, section 5).
const MIN_MTU: u32 = 1280;

/// More resolvers would not fit into one option (RFC 8106, section 5.1), nor be of use.
const MAX_RDNSS: usize = 8;

/// More prefixes would make the advertisement exceed the least MTU.
const MAX_PREFIXES: usize = 24;

/// What the owner of a network advertises to its stations. The default advertises the prefixes
/// of the gateway's addresses, with the intervals of RFC 4861.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaConfig {
    /// Whether router advertisements are sent at all. The link-local address is answered for
    /// either way.
    pub send: bool,
    /// The link-local address that all gateways of the network share, and the advertisements
    /// come from. It must be the same on all of them.
    pub link_local: Ipv6Addr,
    /// The least time between two unsolicited advertisements (3 s to three quarters of the
    /// greatest).
    pub min_interval: Duration,
    /// The greatest time between two unsolicited advertisements (4 s to 1800 s).
    pub max_interval: Duration,
    /// For how long a station uses the gateway as a default router after an advertisement: zero,
    /// or from the greatest interval to 9000 s. Zero: the gateway is no default router.
    pub lifetime: Duration,
    /// What is advertised as on-link, and, if its length is 64, for autoconfiguration. `None`:
    /// the networks of the gateway's addresses.
    pub prefixes: Option<Vec<Prefix>>,
    /// Whether stations shall give themselves addresses in prefixes of length 64 (RFC 4862).
    pub autonomous: bool,
    /// For how long a prefix is valid.
    pub valid: Duration,
    /// For how long addresses in it are preferred; no longer than they are valid.
    pub preferred: Duration,
    /// Addresses are to be had by DHCPv6 (the flag M).
    pub managed: bool,
    /// Other configuration is to be had by DHCPv6 (the flag O).
    pub other: bool,
    /// The MTU that stations shall use, in bytes; at least 1280.
    pub mtu: Option<u32>,
    /// The recursive resolvers that stations shall use (RFC 8106), at most 8.
    pub rdnss: Vec<Ipv6Addr>,
    /// For how long they may be used after an advertisement.
    pub rdnss_lifetime: Duration,
}

impl Default for RaConfig {
    fn default() -> Self {
        Self {
            send: true,
            link_local: DEFAULT_LINK_LOCAL,
            min_interval: Duration::from_secs(200),
            max_interval: Duration::from_secs(600),
            lifetime: Duration::from_secs(1800),
            prefixes: None,
            autonomous: true,
            valid: Duration::from_secs(86_400),
            preferred: Duration::from_secs(14_400),
            managed: false,
            other: false,
            mtu: None,
            rdnss: Vec::new(),
            rdnss_lifetime: Duration::from_secs(1800),
        }
    }
}

/// Why an [`RaConfig`] makes no sense. The names are those of its fields.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RaError {
    /// The address is not link-local.
    #[error("link_local is {0}: it must lie in fe80::/64 and not be fe80:: itself")]
    LinkLocal(Ipv6Addr),
    /// The greatest interval is out of bounds.
    #[error("max_interval is {} s: it must lie between 4 s and 1800 s", .0.as_secs_f64())]
    MaxInterval(Duration),
    /// The least interval is out of bounds.
    #[error(
        "min_interval is {} s: it must lie between 3 s and {} s, three quarters of max_interval",
        .min.as_secs_f64(), .bound.as_secs_f64()
    )]
    MinInterval {
        /// What it is.
        min: Duration,
        /// What it may be.
        bound: Duration,
    },
    /// The lifetime is out of bounds.
    #[error("lifetime is {} s: it must be 0, or lie between max_interval and 9000 s", .0.as_secs())]
    Lifetime(Duration),
    /// Addresses would be preferred for longer than they are valid.
    #[error("preferred is longer than valid: it must not be")]
    Preferred,
    /// A prefix is of no use.
    #[error("{0} cannot be advertised: expected an IPv6 network that is no single address")]
    Prefix(Prefix),
    /// There are too many prefixes.
    #[error("there are {0} prefixes: at most {MAX_PREFIXES} fit into an advertisement")]
    Prefixes(usize),
    /// The MTU is too small.
    #[error("mtu is {0}: it must be at least {MIN_MTU}")]
    Mtu(u32),
    /// There are too many resolvers.
    #[error("there are {0} resolvers: at most {MAX_RDNSS} are advertised")]
    Rdnss(usize),
}

impl RaConfig {
    /// Checks the bounds that the fields name.
    ///
    /// # Errors
    /// The first that does not hold.
    pub fn check(&self) -> Result<(), RaError> {
        let [first, second, third, fourth, ..] = self.link_local.segments();
        let in_network = [first, second, third, fourth] == [0xfe80, 0, 0, 0];
        if !in_network || self.link_local.octets()[8..] == [0; 8] {
            return Err(RaError::LinkLocal(self.link_local));
        }
        self.check_times()?;
        self.check_options()
    }

    fn check_times(&self) -> Result<(), RaError> {
        if !(MIN_MAX_INTERVAL..=MAX_MAX_INTERVAL).contains(&self.max_interval) {
            return Err(RaError::MaxInterval(self.max_interval));
        }
        let bound = self.max_interval * 3 / 4;
        if !(MIN_MIN_INTERVAL..=bound).contains(&self.min_interval) {
            return Err(RaError::MinInterval { min: self.min_interval, bound });
        }
        let is_router = !self.lifetime.is_zero();
        if is_router && !(self.max_interval..=MAX_LIFETIME).contains(&self.lifetime) {
            return Err(RaError::Lifetime(self.lifetime));
        }
        if self.preferred > self.valid { Err(RaError::Preferred) } else { Ok(()) }
    }

    fn check_options(&self) -> Result<(), RaError> {
        let prefixes = self.prefixes.as_deref().unwrap_or_default();
        if let Some(bad) = prefixes.iter().find(|prefix| !is_advertisable(prefix)) {
            return Err(RaError::Prefix(*bad));
        }
        if prefixes.len() > MAX_PREFIXES {
            return Err(RaError::Prefixes(prefixes.len()));
        }
        if let Some(mtu) = self.mtu.filter(|mtu| *mtu < MIN_MTU) {
            return Err(RaError::Mtu(mtu));
        }
        if self.rdnss.len() > MAX_RDNSS { Err(RaError::Rdnss(self.rdnss.len())) } else { Ok(()) }
    }

    /// The prefixes to advertise in a network with these gateway addresses.
    fn advertised(&self, gateways: &[Prefix]) -> Vec<Prefix> {
        let all = self.prefixes.as_deref().unwrap_or(gateways);
        let mut networks: Vec<Prefix> =
            all.iter().filter(|prefix| is_advertisable(prefix)).map(Prefix::network).collect();
        networks.sort();
        networks.dedup();
        networks.truncate(MAX_PREFIXES);
        networks
    }
}

fn is_advertisable(prefix: &Prefix) -> bool {
    prefix.addr().is_ipv6() && !prefix.is_host()
}

/// The advertisement that a gateway with the Ethernet address `mac` sends to all stations of a
/// network with these gateway addresses.
#[must_use]
pub fn router_advertisement(mac: Mac, config: &RaConfig, gateways: &[Prefix]) -> Vec<u8> {
    let header = RouterAdvertisementHeader {
        cur_hop_limit: 64,
        managed_address_config: config.managed,
        other_config: config.other,
        router_lifetime: u16::try_from(config.lifetime.as_secs()).unwrap_or(u16::MAX),
    };
    let packet = PacketBuilder::ethernet2(mac, ALL_NODES_MAC)
        .ipv6(config.link_local.octets(), ALL_NODES.octets(), HOP_LIMIT)
        .icmpv6(Icmpv6Type::RouterAdvertisement(header));
    let body = body(mac, config, gateways);
    let mut frame = Vec::with_capacity(packet.size(body.len()));
    packet.write(&mut frame, &body).expect("a vector takes all, and the options are bounded");
    frame
}

/// Reachable time and retransmission timer, which are left to the stations, and the options.
fn body(mac: Mac, config: &RaConfig, gateways: &[Prefix]) -> Vec<u8> {
    let mut body = vec![0; 8];
    body.extend([1, 1]);
    body.extend(mac);
    if let Some(mtu) = config.mtu {
        body.extend([5, 1, 0, 0]);
        body.extend(mtu.to_be_bytes());
    }
    for prefix in config.advertised(gateways) {
        body.extend(prefix_information(config, prefix));
    }
    if !config.rdnss.is_empty() {
        body.extend(recursive_resolvers(config));
    }
    body
}

/// RFC 4861, section 4.6.2.
fn prefix_information(config: &RaConfig, prefix: Prefix) -> Vec<u8> {
    const ON_LINK: u8 = 0x80;
    const AUTONOMOUS: u8 = 0x40;
    let IpAddr::V6(network) = prefix.addr() else { return Vec::new() };
    let autonomous = config.autonomous && prefix.len() == AUTONOMOUS_LENGTH;
    let flags = if autonomous { ON_LINK | AUTONOMOUS } else { ON_LINK };
    let mut option = vec![3, 4, prefix.len(), flags];
    option.extend(seconds(config.valid));
    option.extend(seconds(config.preferred));
    option.extend([0; 4]);
    option.extend(network.octets());
    option
}

/// RFC 8106, section 5.1.
fn recursive_resolvers(config: &RaConfig) -> Vec<u8> {
    let resolvers = &config.rdnss[..config.rdnss.len().min(MAX_RDNSS)];
    let mut option = vec![25, 1 + 2 * resolvers.len() as u8, 0, 0];
    option.extend(seconds(config.rdnss_lifetime));
    option.extend(resolvers.iter().flat_map(Ipv6Addr::octets));
    option
}

fn seconds(duration: Duration) -> [u8; 4] {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 7];

    fn prefix(text: &str) -> Prefix {
        text.parse().expect("a prefix")
    }

    fn gateways() -> Vec<Prefix> {
        ["10.0.1.1/24", "fd00:1::1/64", "fd00:2::1/56"].map(prefix).to_vec()
    }

    #[test]
    fn an_advertisement_is_exact() {
        let config = RaConfig {
            mtu: Some(1450),
            managed: true,
            rdnss: vec!["fd00::53".parse().expect("an address")],
            ..RaConfig::default()
        };
        let frame = router_advertisement(MAC, &config, &gateways());
        let packet = SlicedPacket::from_ethernet(&frame).expect("valid");
        let Some(NetSlice::Ipv6(ip)) = packet.net else { panic!("IPv6") };
        assert_eq!(ip.header().hop_limit(), 255);
        assert_eq!(ip.header().source_addr(), DEFAULT_LINK_LOCAL);
        assert_eq!(ip.header().destination_addr(), ALL_NODES);
        let Some(TransportSlice::Icmpv6(icmp)) = packet.transport else { panic!("ICMPv6") };
        assert!(icmp.is_checksum_valid(DEFAULT_LINK_LOCAL.octets(), ALL_NODES.octets()));
        let mut expected = vec![134, 0, frame[56], frame[57], 64, 0x80];
        expected.extend(1800_u16.to_be_bytes());
        expected.extend([0; 8]);
        expected.extend([1, 1, 2, 0, 0, 0, 0, 7]);
        expected.extend([5, 1, 0, 0, 0, 0, 0x05, 0xaa]);
        for (network, flags) in [("fd00:1::/64", 0xc0), ("fd00:2::/56", 0x80)] {
            expected.extend([3, 4, prefix(network).len(), flags]);
            expected.extend(86_400_u32.to_be_bytes());
            expected.extend(14_400_u32.to_be_bytes());
            expected.extend([0; 4]);
            let IpAddr::V6(addr) = prefix(network).addr() else { panic!("IPv6") };
            expected.extend(addr.octets());
        }
        expected.extend([25, 3, 0, 0]);
        expected.extend(1800_u32.to_be_bytes());
        expected.extend("fd00::53".parse::<Ipv6Addr>().expect("an address").octets());
        assert_eq!(&frame[54..], expected);
    }

    #[test]
    fn configured_prefixes_replace_those_of_the_addresses() {
        let prefixes = Some(vec![prefix("2001:db8:5::/64")]);
        let config = RaConfig { prefixes, autonomous: false, ..RaConfig::default() };
        assert_eq!(config.advertised(&gateways()), [prefix("2001:db8:5::/64")]);
        let frame = router_advertisement(MAC, &config, &gateways());
        assert_eq!(frame[78..82], [3, 4, 64, 0x80], "on-link, not autonomous");
        let config = RaConfig { prefixes: Some(Vec::new()), ..config };
        assert_eq!(router_advertisement(MAC, &config, &gateways()).len(), 78);
    }

    #[test]
    fn a_full_advertisement_fits_into_the_least_mtu() {
        let prefixes = (0..30).map(|n| prefix(&format!("fd00:{n:x}::/64"))).collect();
        let rdnss = vec![DEFAULT_LINK_LOCAL; 9];
        let config = RaConfig { prefixes: Some(prefixes), rdnss, ..RaConfig::default() };
        assert!(config.check().is_err());
        let frame = router_advertisement(MAC, &config, &[]);
        assert!(frame.len() - 14 <= MIN_MTU as usize, "{}", frame.len());
    }

    #[test]
    fn bounds_are_named() {
        let good = RaConfig::default;
        let seconds = Duration::from_secs;
        assert_eq!(good().check(), Ok(()));
        assert_eq!(RaConfig { lifetime: seconds(0), ..good() }.check(), Ok(()));
        for (bad, word) in [
            (RaConfig { link_local: "fd00::1".parse().expect("address"), ..good() }, "link_local"),
            (RaConfig { link_local: "fe80::".parse().expect("address"), ..good() }, "link_local"),
            (RaConfig { max_interval: seconds(3), ..good() }, "max_interval"),
            (RaConfig { min_interval: seconds(451), ..good() }, "min_interval"),
            (RaConfig { lifetime: seconds(599), ..good() }, "lifetime"),
            (RaConfig { preferred: seconds(86_401), ..good() }, "preferred"),
            (RaConfig { prefixes: Some(vec![prefix("10.0.0.0/8")]), ..good() }, "10.0.0.0/8"),
            (RaConfig { mtu: Some(1279), ..good() }, "mtu"),
            (RaConfig { rdnss: vec![DEFAULT_LINK_LOCAL; 9], ..good() }, "resolvers"),
        ] {
            let error = bad.check().expect_err("out of bounds").to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
