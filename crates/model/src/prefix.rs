use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An IP address with a prefix length, of either family: an interface address such as
/// `10.1.0.1/24`, or a network such as `10.1.0.0/24` (see [`Prefix::network`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix {
    addr: IpAddr,
    len: u8,
}

/// Why a text is no [`Prefix`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a prefix: expected an address and a length, such as 10.1.0.1/24 or fd00::1/64"
)]
pub struct ParsePrefixError(String);

impl Prefix {
    /// An address with the length `len`; `None` if the family has no such length.
    #[must_use]
    pub fn new(addr: IpAddr, len: u8) -> Option<Self> {
        (len <= bits(addr)).then_some(Self { addr, len })
    }

    /// The address alone: `/32` or `/128`.
    #[must_use]
    pub fn host(addr: IpAddr) -> Self {
        Self { addr, len: bits(addr) }
    }

    /// The address, host bits included.
    #[must_use]
    pub const fn addr(&self) -> IpAddr {
        self.addr
    }

    /// The length in bits.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a length in bits, not a number of elements")]
    pub const fn len(&self) -> u8 {
        self.len
    }

    /// Whether the prefix is a single address.
    #[must_use]
    pub fn is_host(&self) -> bool {
        self.len == bits(self.addr)
    }

    /// The same prefix with the host bits cleared.
    #[must_use]
    pub fn network(&self) -> Self {
        let host_bits = u32::from(bits(self.addr) - self.len);
        let masked = number(self.addr).checked_shr(host_bits).unwrap_or(0);
        let masked = masked.checked_shl(host_bits).unwrap_or(0);
        Self { addr: address(self.addr, masked), len: self.len }
    }

    /// The two halves of the network, which are more specific than it and together cover it;
    /// `None` for a single address.
    #[must_use]
    pub fn halves(&self) -> Option<[Self; 2]> {
        if self.is_host() {
            return None;
        }
        let len = self.len + 1;
        let low = Self { len, ..self.network() };
        let bit = 1_u128 << (bits(self.addr) - len);
        let high = Self { addr: address(self.addr, number(low.addr) | bit), len };
        Some([low, high])
    }

    /// Whether `addr` lies in the network.
    #[must_use]
    pub fn contains(&self, addr: IpAddr) -> bool {
        bits(addr) == bits(self.addr) && Self { addr, len: self.len }.network() == self.network()
    }
}

const fn bits(addr: IpAddr) -> u8 {
    match addr {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn number(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn address(family: IpAddr, number: u128) -> IpAddr {
    match family {
        IpAddr::V4(_) => Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into(),
        IpAddr::V6(_) => Ipv6Addr::from(number).into(),
    }
}

impl FromStr for Prefix {
    type Err = ParsePrefixError;

    fn from_str(text: &str) -> Result<Self, ParsePrefixError> {
        let parse = || {
            let (addr, len) = text.split_once('/')?;
            let digits = len.bytes().all(|b| b.is_ascii_digit());
            Self::new(addr.parse().ok()?, digits.then(|| len.parse().ok()).flatten()?)
        };
        parse().ok_or_else(|| ParsePrefixError(text.chars().take(80).collect()))
    }
}

impl TryFrom<String> for Prefix {
    type Error = ParsePrefixError;

    fn try_from(text: String) -> Result<Self, ParsePrefixError> {
        text.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.to_string()
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", self.addr, self.len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().expect("valid prefix")
    }

    #[test]
    fn halves_cover_the_network() {
        let halves = prefix("10.1.2.3/24").halves().expect("not a host");
        assert_eq!(halves.map(|p| p.to_string()), ["10.1.2.0/25", "10.1.2.128/25"]);
        let halves = prefix("fd00::5/64").halves().expect("not a host");
        assert_eq!(halves.map(|p| p.to_string()), ["fd00::/65", "fd00::8000:0:0:0/65"]);
        let halves = prefix("0.0.0.0/0").halves().expect("not a host");
        assert_eq!(halves.map(|p| p.to_string()), ["0.0.0.0/1", "128.0.0.0/1"]);
        assert_eq!(prefix("10.0.0.1/32").halves(), None);
    }

    #[test]
    fn networks_contain_their_addresses() {
        assert!(prefix("10.1.2.3/24").contains("10.1.2.200".parse().expect("address")));
        assert!(!prefix("10.1.2.3/24").contains("10.1.3.1".parse().expect("address")));
        assert!(!prefix("0.0.0.0/0").contains("::1".parse().expect("address")));
        assert!(prefix("::/0").contains("::1".parse().expect("address")));
        assert_eq!(prefix("::1/0").network(), prefix("::/0"));
    }

    #[test]
    fn bad_prefixes_are_refused() {
        for bad in ["", "10.0.0.0", "10.0.0.0/33", "fd00::/129", "10.0.0.0/+8", "x/8", "10.0.0.0/"]
        {
            assert!(bad.parse::<Prefix>().is_err(), "{bad:?}");
        }
    }
}
