//! Where a node is reached, as it is configured.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An address or a name, alone or with the UDP port of WireGuard there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Place {
    /// The address or the name.
    pub host: Host,
    /// WireGuard's port there; `None`: the one on which it listens here.
    pub port: Option<u16>,
}

/// The address or the name of a host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    /// An address.
    Address(IpAddr),
    /// A name, which those who want to reach it resolve.
    Name(String),
}

/// A text that is no [`Place`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected an address or a name, alone or with a port, such as 192.0.2.1, \
     [2001:db8::1]:51820 or host.example, found {0:?}"
)]
pub struct PlaceError(String);

impl Place {
    /// Its address, if it is given by one.
    #[must_use]
    pub const fn address(&self) -> Option<IpAddr> {
        match &self.host {
            Host::Address(ip) => Some(*ip),
            Host::Name(_) => None,
        }
    }
}

impl From<IpAddr> for Place {
    fn from(ip: IpAddr) -> Self {
        Self { host: Host::Address(ip), port: None }
    }
}

impl FromStr for Place {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(ip.into());
        }
        let wrong = || PlaceError(text.to_owned());
        if let Ok(at) = text.parse::<SocketAddr>() {
            let port = Some(at.port()).filter(|port| *port != 0).ok_or_else(wrong)?;
            return Ok(Self { host: Host::Address(at.ip()), port: Some(port) });
        }
        let (name, port) = match text.split_once(':') {
            Some((name, port)) => {
                let port: u16 = port.parse().map_err(|_| wrong())?;
                (name, Some(port).filter(|port| *port != 0).ok_or_else(wrong)?.into())
            }
            None => (text, None),
        };
        is_name(name).then(|| Self { host: Host::Name(name.to_owned()), port }).ok_or_else(wrong)
    }
}

/// Whether this may be the name of a host, and is no address with a digit too few.
fn is_name(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
    (1..=253).contains(&text.len())
        && text.bytes().all(allowed)
        && text.bytes().any(|b| b.is_ascii_alphabetic())
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.host, self.port) {
            (Host::Address(ip), None) => ip.fmt(f),
            (Host::Address(ip), Some(port)) => SocketAddr::new(*ip, port).fmt(f),
            (Host::Name(name), None) => f.write_str(name),
            (Host::Name(name), Some(port)) => write!(f, "{name}:{port}"),
        }
    }
}

impl TryFrom<String> for Place {
    type Error = PlaceError;

    fn try_from(text: String) -> Result<Self, PlaceError> {
        text.parse()
    }
}

impl From<Place> for String {
    fn from(place: Place) -> Self {
        place.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_names_have_a_port_or_none() {
        for text in [
            "192.0.2.1",
            "2001:db8::1",
            "192.0.2.1:51820",
            "[2001:db8::1]:51820",
            "host.example",
            "host-1.example:51820",
        ] {
            let place: Place = text.parse().expect("a place");
            assert_eq!(place.to_string(), text);
            assert_eq!(place.port.is_some(), text.ends_with("51820"));
            assert_eq!(place.address().is_none(), text.starts_with("host"));
        }
        for bad in ["", "192.0.2", "192.0.2.1:0", "host:", "host:0", "host:70000", "a b", "a:b:c"] {
            assert_eq!(bad.parse::<Place>(), Err(PlaceError(bad.to_owned())), "{bad}");
        }
    }
}
