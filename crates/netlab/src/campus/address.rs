//! Who has which address: functions of numbers, so that nothing has to be looked up.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use selvedge_model::{Prefix, Vni};

/// The version of the internet protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];
}

/// An overlay network. Network `i` = 256·x + y has the prefixes `10.x.y.0/24` and
/// `fd5e:10:0:i::/64`; the gateway's addresses end in 1, the station's in 10 (20 at the other site). Its next-hop
/// addresses on the uplink (flavour `flood`) are `172.20.x.y` and `fd5e:20::2:i`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Network {
    vni: Vni,
    number: u16,
}

impl Network {
    /// The greatest VNI that has addresses here: those from 10.254.0.0 on are others'.
    pub const MAX: u32 = 253 * 256 + 255;

    /// The network with that VNI, if it has addresses here.
    #[must_use]
    pub fn new(vni: u32) -> Option<Self> {
        let number = u16::try_from(vni).ok().filter(|_| (1..=Self::MAX).contains(&vni))?;
        Some(Self { vni: Vni::try_from(vni).ok()?, number })
    }

    /// The network of which `address` is the gateway's or the station's.
    #[must_use]
    pub fn of(address: IpAddr) -> Option<Self> {
        let number = match address {
            IpAddr::V4(address) => u32::from(address) >> 8 & 0xffff,
            IpAddr::V6(address) => u32::from(address.segments()[3]),
        };
        Self::new(number).filter(|network| {
            Family::ALL.iter().any(|&family| {
                network.gateway(family).addr() == address || network.station(family) == address
            })
        })
    }

    /// Its identifier.
    #[must_use]
    pub fn vni(self) -> Vni {
        self.vni
    }

    /// The address that devices in the network use as their gateway, with the prefix length.
    #[must_use]
    pub fn gateway(self, family: Family) -> Prefix {
        let length = match family {
            Family::V4 => 24,
            Family::V6 => 64,
        };
        Prefix::new(self.host(family, 1), length).expect("the length fits the family")
    }

    /// The network's prefix.
    #[must_use]
    pub fn prefix(self, family: Family) -> Prefix {
        self.gateway(family).network()
    }

    /// The station's address.
    #[must_use]
    pub fn station(self, family: Family) -> IpAddr {
        self.host(family, 10)
    }

    /// The address of the station at the other site.
    #[must_use]
    pub fn other_station(self, family: Family) -> IpAddr {
        self.host(family, 20)
    }

    /// The address on the uplink to which the upstream router's static route points.
    #[must_use]
    pub fn next_hop(self, family: Family) -> IpAddr {
        let [x, y] = self.number.to_be_bytes();
        match family {
            Family::V4 => Ipv4Addr::new(172, 20, x, y).into(),
            Family::V6 => Ipv6Addr::new(0xfd5e, 0x20, 0, 0, 0, 0, 2, self.number).into(),
        }
    }

    /// The bridge on gateways and on the access point.
    #[must_use]
    pub fn bridge(self) -> String {
        format!("br{}", self.vni)
    }

    /// The VXLAN interface on gateways and on the access point.
    #[must_use]
    pub fn vxlan(self) -> String {
        format!("vxlan{}", self.vni)
    }

    /// The station's interface; the access point's end of its cable is `p` and the VNI.
    #[must_use]
    pub fn station_interface(self) -> String {
        format!("n{}", self.vni)
    }

    fn host(self, family: Family, last: u8) -> IpAddr {
        let [x, y] = self.number.to_be_bytes();
        match family {
            Family::V4 => Ipv4Addr::new(10, x, y, last).into(),
            Family::V6 => Ipv6Addr::new(0xfd5e, 0x10, 0, self.number, 0, 0, 0, last.into()).into(),
        }
    }
}

/// The addresses of gateway `k`: `172.16.0.k` and `fd5e:16::k` on the fabric, `172.20.255.k` and
/// `fd5e:20::k` on the uplink, `172.24.0.k` on the management segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gateway {
    number: u8,
}

impl Gateway {
    /// The addresses of the witness, past those of all gateways.
    pub const WITNESS: Self = Self { number: 201 };

    /// The gateway with the number `number`.
    #[must_use]
    pub const fn new(number: u8) -> Self {
        Self { number }
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.number
    }

    /// Its tunnel endpoint, on the fabric (/16 and /64).
    #[must_use]
    pub fn fabric(self, family: Family) -> IpAddr {
        match family {
            Family::V4 => Ipv4Addr::new(172, 16, 0, self.number).into(),
            Family::V6 => Ipv6Addr::new(0xfd5e, 0x16, 0, 0, 0, 0, 0, self.number.into()).into(),
        }
    }

    /// Its address on the uplink (/16 and /64).
    #[must_use]
    pub fn uplink(self, family: Family) -> IpAddr {
        match family {
            Family::V4 => Ipv4Addr::new(172, 20, 255, self.number).into(),
            Family::V6 => Ipv6Addr::new(0xfd5e, 0x20, 0, 0, 0, 0, 0, self.number.into()).into(),
        }
    }

    /// Its address on the management segment (/16).
    #[must_use]
    pub fn management(self) -> Ipv4Addr {
        Ipv4Addr::new(172, 24, 0, self.number)
    }

    /// The address on the fabric (/16) of a host that only holds member `number` of etcd.
    #[must_use]
    pub const fn store(number: u8) -> Ipv4Addr {
        Ipv4Addr::new(172, 16, 253, number)
    }

    /// The MAC address of its bridge in a network; a function of both, so that the same
    /// gateway always shows the same one.
    #[must_use]
    pub fn bridge_mac(self, network: Network) -> String {
        let [_, a, b, c] = network.vni().get().to_be_bytes();
        format!("02:5e:{:02x}:{a:02x}:{b:02x}:{c:02x}", self.number)
    }
}

/// The access point.
#[derive(Clone, Copy, Debug)]
pub struct AccessPoint;

impl AccessPoint {
    /// Its tunnel endpoint, on the fabric (/16).
    pub const FABRIC: Ipv4Addr = Ipv4Addr::new(172, 16, 254, 1);
    /// That of the second one.
    pub const OTHER: Ipv4Addr = Ipv4Addr::new(172, 16, 254, 2);
}

/// The upstream router.
#[derive(Clone, Copy, Debug)]
pub struct Upstream;

impl Upstream {
    /// Its address on the uplink (/16 and /64).
    #[must_use]
    pub fn uplink(family: Family) -> IpAddr {
        match family {
            Family::V4 => Ipv4Addr::new(172, 20, 255, 254).into(),
            Family::V6 => Ipv6Addr::new(0xfd5e, 0x20, 0, 0, 0, 0, 1, 1).into(),
        }
    }

    /// The address with which the station of a network talks: `198.18.H.L` or `fd5e:ff::HHLL`, the
    /// number of the network. A station that stands for thousands has one route to each then; with
    /// as many default routes its kernel would look at every one of them for each packet.
    #[must_use]
    pub fn service(network: Network, family: Family) -> IpAddr {
        let [_, _, high, low] = network.vni().get().to_be_bytes();
        match family {
            Family::V4 => Ipv4Addr::new(198, 18, high, low).into(),
            Family::V6 => {
                let number = u16::from_be_bytes([high, low]);
                Ipv6Addr::new(0xfd5e, 0xff, 0, 0, 0, 0, 0, number).into()
            }
        }
    }

    /// All of these addresses.
    #[must_use]
    pub const fn services(family: Family) -> &'static str {
        match family {
            Family::V4 => "198.18.0.0/16",
            Family::V6 => "fd5e:ff::/112",
        }
    }
}

/// The switch.
#[derive(Clone, Copy, Debug)]
pub struct Switch;

impl Switch {
    /// Its address on the management segment (/16).
    pub const MANAGEMENT: Ipv4Addr = Ipv4Addr::new(172, 24, 255, 254);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_functions_of_the_vni_and_back() {
        let network = Network::new(0x1234).expect("in range");
        assert_eq!(network.gateway(Family::V4).to_string(), "10.18.52.1/24");
        assert_eq!(network.prefix(Family::V6).to_string(), "fd5e:10:0:1234::/64");
        assert_eq!(network.next_hop(Family::V4).to_string(), "172.20.18.52");
        assert_eq!(network.next_hop(Family::V6).to_string(), "fd5e:20::2:1234");
        for family in Family::ALL {
            assert_eq!(Network::of(network.station(family)), Some(network));
            assert_eq!(Network::of(network.gateway(family).addr()), Some(network));
            assert_eq!(Network::of(Upstream::service(network, family)), None);
        }
        assert_eq!(Network::new(0), None);
        assert_eq!(Network::new(Network::MAX + 1), None);
        assert_eq!(Gateway::new(3).bridge_mac(network), "02:5e:03:00:12:34");
    }

    #[test]
    fn next_hops_do_not_meet_the_hosts_of_the_uplink() {
        let last = Network::new(Network::MAX).expect("in range");
        assert_eq!(last.next_hop(Family::V4).to_string(), "172.20.253.255");
        assert_ne!(
            Upstream::uplink(Family::V6),
            Network::new(1).expect("one").next_hop(Family::V6)
        );
    }
}
