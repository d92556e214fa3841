//! What a member offers, as it stands in its record, and as DNS says it.

use std::str::FromStr;

use crate::names::label;

/// A service with a port, as SRV records name it (RFC 2782).
///
/// It is read from a member's pair of a key and a value: the key is the service's name, the value
/// is a port with an optional protocol and optional words behind it: `443`, `53/udp`,
/// `5432/tcp role=primary`. Pairs of another form are told as text alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// What it is called, in lower case.
    pub name: String,
    /// How it is reached.
    pub protocol: Protocol,
    /// Where it listens; never 0.
    pub port: u16,
    /// What else is to be known.
    pub words: Vec<String>,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// As it stands in the value of a service, and in a domain name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// A text that names no [`Protocol`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownProtocol;

impl FromStr for Protocol {
    type Err = UnknownProtocol;

    fn from_str(text: &str) -> Result<Self, UnknownProtocol> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            _ => Err(UnknownProtocol),
        }
    }
}

impl Service {
    /// Reads a pair; `None` if it is text alone.
    #[must_use]
    pub fn parse(key: &str, value: &str) -> Option<Self> {
        // A label with an underscore before it must fit as well.
        let name = label(key).filter(|name| name.len() < 63 && name.eq_ignore_ascii_case(key))?;
        let mut words = value.split_ascii_whitespace();
        let place = words.next()?;
        let (port, protocol) = match place.split_once('/') {
            Some((port, protocol)) => (port, protocol.parse().ok()?),
            None => (place, Protocol::Tcp),
        };
        let digits = port.bytes().all(|b| b.is_ascii_digit());
        let port = digits.then(|| port.parse().ok()).flatten().filter(|port| *port > 0)?;
        Some(Self { name, protocol, port, words: words.map(ToOwned::to_owned).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_have_ports() {
        let parsed = |value| Service::parse("Web", value);
        let web = |protocol, port, words: &[&str]| {
            let words = words.iter().map(|&word| word.to_owned()).collect();
            Some(Service { name: "web".to_owned(), protocol, port, words })
        };
        assert_eq!(parsed("443"), web(Protocol::Tcp, 443, &[]));
        assert_eq!(parsed("53/udp"), web(Protocol::Udp, 53, &[]));
        assert_eq!(parsed(" 80/tcp path=/x  a=b"), web(Protocol::Tcp, 80, &["path=/x", "a=b"]));
        for text in ["", "0", "65536", "+1", "80/sctp", "http://x", "80:90"] {
            assert_eq!(parsed(text), None, "{text}");
        }
        for key in ["", "a b", "-a", "a.b", "\u{fc}"] {
            assert_eq!(Service::parse(key, "1"), None, "{key}");
        }
    }
}
