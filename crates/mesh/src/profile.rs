//! What a node says about itself.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use minicbor::{Decode, Encode};
use selvedge_model::{MeshId, NodeId, Prefix};

use crate::codec::{self, fixed_list, prefix, prefixes, texts};

/// Where a node can be reached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(map)]
pub struct Endpoint {
    /// Address and UDP port.
    #[n(0)]
    pub addr: SocketAddr,
    /// The node does not know that address of itself: others say that they see it there.
    #[n(1)]
    #[cbor(default, skip_if = "codec::is_default")]
    pub observed: bool,
}

impl From<SocketAddr> for Endpoint {
    fn from(addr: SocketAddr) -> Self {
        Self { addr, observed: false }
    }
}

/// Where a node can be reached, by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(map)]
pub struct NamedEndpoint {
    /// A host name: 1 to 253 letters, digits, `.`, `-` and `_`. Whoever wants to reach the node
    /// resolves it, and resolves it again when nobody answers.
    #[cbor(n(0), decode_with = "codec::text::<{ NamedEndpoint::MAX_HOST }, _>")]
    pub host: String,
    /// The UDP port of its WireGuard there; 0 if there is none.
    #[n(1)]
    #[cbor(default)]
    pub port: u16,
    /// The UDP port of its agent (QUIC) there; 0 if there is none.
    #[n(2)]
    #[cbor(default)]
    pub control: u16,
}

impl NamedEndpoint {
    /// The greatest length of a host name in bytes.
    pub const MAX_HOST: usize = 253;

    fn is_valid(&self) -> bool {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
        let host = self.host.as_bytes();
        !host.is_empty() && host.len() <= Self::MAX_HOST && host.iter().all(|b| allowed(*b))
    }
}

/// A prefix that a node reaches through other meshes of which it is a member.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(map)]
pub struct Bridged {
    /// The destination.
    #[cbor(n(0), with = "prefix")]
    pub prefix: Prefix,
    /// The meshes that lead there, the nearest first, the one in which it was announced first of
    /// all last; at least one, and none twice. A mesh that is on it does not take the route over.
    #[cbor(n(1), encode_with = "fixed_list::encode")]
    #[cbor(decode_with = "fixed_list::decode::<{ Bridged::MAX_PATH }, _, _>")]
    pub path: Vec<MeshId>,
}

impl Bridged {
    /// The greatest number of meshes on a path.
    pub const MAX_PATH: usize = 8;

    fn is_valid(&self) -> bool {
        let twice = |(at, mesh): (usize, &MeshId)| self.path[..at].contains(mesh);
        (1..=Self::MAX_PATH).contains(&self.path.len()) && !self.path.iter().enumerate().any(twice)
    }
}

/// What a node says about itself. What it leaves out takes no room in its record; fields that a
/// later version adds travel on through this one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Profile {
    /// Where its WireGuard listens, the most preferred first; empty if it cannot be reached.
    #[cbor(n(0), decode_with = "codec::list::<{ Profile::MAX_ENDPOINTS }, _, _>", default)]
    pub endpoints: Vec<Endpoint>,
    /// Where its agent listens (QUIC), the most preferred first.
    #[cbor(n(1), decode_with = "codec::list::<{ Profile::MAX_ENDPOINTS }, _, _>", default)]
    pub control: Vec<Endpoint>,
    /// A short name, 63 bytes at most; empty if it has none.
    #[cbor(n(2), decode_with = "codec::text::<{ Profile::MAX_ALIAS }, _>", default)]
    pub alias: String,
    /// A text for people, 255 bytes at most; empty if it has none.
    #[cbor(n(3), decode_with = "codec::text::<{ Profile::MAX_DESCRIPTION }, _>", default)]
    pub description: String,
    /// Where WireGuard and the agent listen by name, the most preferred first, all of them after
    /// the addresses.
    #[cbor(n(4), decode_with = "codec::list::<{ Profile::MAX_NAMES }, _, _>", default)]
    #[cbor(skip_if = "Vec::is_empty")]
    pub names: Vec<NamedEndpoint>,
    /// The UDP port at which sealed datagrams are taken, at the addresses of `control`; 0 if it
    /// is the port given there.
    #[n(5)]
    #[cbor(default, skip_if = "codec::is_default")]
    pub datagram_port: u16,
    /// The node is behind a NAT or wants to be treated so: a client, though its certificate may
    /// allow it to be a peer.
    #[n(6)]
    #[cbor(default, skip_if = "codec::is_default")]
    pub client: bool,
    /// The peer serves no clients, because it is about to go.
    #[n(7)]
    #[cbor(default, skip_if = "codec::is_default")]
    pub drained: bool,
    /// Peers that this client cannot reach, though others can: it is not attached to them.
    #[cbor(n(8), encode_with = "fixed_list::encode")]
    #[cbor(decode_with = "fixed_list::decode::<{ Profile::MAX_AVOIDS }, _, _>", default)]
    #[cbor(skip_if = "Vec::is_empty")]
    pub avoids: Vec<NodeId>,
    /// The prefixes behind this node, IPv4 and IPv6. A prefix of length zero makes it an exit.
    /// Whether it may announce them is told by its certificate: see
    /// [`crate::Member::may_announce`].
    #[cbor(n(9), encode_with = "prefixes::encode")]
    #[cbor(decode_with = "prefixes::decode::<{ Profile::MAX_ROUTES }, _>", default)]
    #[cbor(skip_if = "Vec::is_empty")]
    pub routes: Vec<Prefix>,
    /// What it reaches through other meshes.
    #[cbor(n(10), decode_with = "codec::list::<{ Profile::MAX_BRIDGED }, _, _>", default)]
    #[cbor(skip_if = "Vec::is_empty")]
    pub bridged: Vec<Bridged>,
    /// What it offers, for people and programs: at most 32 keys of 1 to 63 bytes, with values of
    /// at most 255 bytes, 2 KiB in all.
    #[cbor(n(11), encode_with = "texts::encode", decode_with = "texts::decode", default)]
    #[cbor(skip_if = "BTreeMap::is_empty")]
    pub services: BTreeMap<String, String>,
    /// The IPv4 address that it uses inside the mesh, if the mesh has an IPv4 prefix.
    #[n(12)]
    pub overlay_ipv4: Option<Ipv4Addr>,
    /// The version of its software, at most 32 bytes.
    #[cbor(n(13), decode_with = "codec::text::<{ Profile::MAX_VERSION }, _>", default)]
    #[cbor(skip_if = "String::is_empty")]
    pub version: String,
    /// It shares its alias with other nodes on purpose: the name means all of them.
    #[n(14)]
    #[cbor(default, skip_if = "codec::is_default")]
    pub shared: bool,
}

impl Profile {
    /// The greatest number of endpoints of one kind.
    pub const MAX_ENDPOINTS: usize = 16;
    /// The greatest length of an alias in bytes.
    pub const MAX_ALIAS: usize = 63;
    /// The greatest length of a description in bytes.
    pub const MAX_DESCRIPTION: usize = 255;
    /// The greatest number of endpoints by name.
    pub const MAX_NAMES: usize = 4;
    /// The greatest number of peers that a client avoids.
    pub const MAX_AVOIDS: usize = 8;
    /// The greatest number of prefixes behind a node.
    pub const MAX_ROUTES: usize = 64;
    /// The greatest number of routes through other meshes.
    pub const MAX_BRIDGED: usize = 32;
    /// The greatest number of services.
    pub const MAX_SERVICES: usize = 32;
    /// The greatest length of a service's name in bytes.
    pub const MAX_SERVICE_KEY: usize = 63;
    /// The greatest length of a service's value in bytes.
    pub const MAX_SERVICE_VALUE: usize = 255;
    /// The greatest length of all services' names and values together in bytes.
    pub const MAX_SERVICE_BYTES: usize = 2048;
    /// The greatest length of the software's version in bytes.
    pub const MAX_VERSION: usize = 32;

    /// Whether everything is within its bounds.
    ///
    /// # Errors
    /// What is not.
    pub fn check(&self) -> Result<(), &'static str> {
        let rules = [
            (self.has_few_endpoints(), "at most 16 endpoints of one kind are allowed"),
            (
                self.names.len() <= Self::MAX_NAMES
                    && self.names.iter().all(NamedEndpoint::is_valid),
                "at most 4 endpoints by name are allowed, of 253 letters, digits, '.', '-' or '_'",
            ),
            (
                is_text(&self.alias, Self::MAX_ALIAS),
                "an alias has at most 63 bytes and no control characters",
            ),
            (
                is_text(&self.description, Self::MAX_DESCRIPTION),
                "a description has at most 255 bytes and no control characters",
            ),
            (self.avoids.len() <= Self::MAX_AVOIDS, "a client avoids at most 8 peers"),
            (self.routes.len() <= Self::MAX_ROUTES, "at most 64 prefixes are allowed"),
            (self.routes.iter().all(|p| p.network() == *p), "a prefix has bits beyond its length"),
            (
                self.bridged.len() <= Self::MAX_BRIDGED
                    && self.bridged.iter().all(Bridged::is_valid),
                "at most 32 routes through other meshes are allowed, of 1 to 8 different meshes",
            ),
            (
                self.has_valid_services(),
                "at most 32 services are allowed, of 63 bytes for a name, 255 for a value and \
                 2 KiB in all, without control characters",
            ),
            (
                is_text(&self.version, Self::MAX_VERSION),
                "a version has at most 32 bytes and no control characters",
            ),
        ];
        rules.into_iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, rule)| Err(rule))
    }

    /// Whether it offers a way to everywhere, in IPv4 or IPv6.
    #[must_use]
    pub fn is_exit(&self) -> bool {
        self.routes.iter().any(|prefix| prefix.len() == 0)
    }

    fn has_few_endpoints(&self) -> bool {
        self.endpoints.len().max(self.control.len()) <= Self::MAX_ENDPOINTS
    }

    fn has_valid_services(&self) -> bool {
        let valid = |(key, value): (&String, &String)| {
            !key.is_empty()
                && is_text(key, Self::MAX_SERVICE_KEY)
                && is_text(value, Self::MAX_SERVICE_VALUE)
        };
        let bytes: usize = self.services.iter().map(|(key, value)| key.len() + value.len()).sum();
        self.services.len() <= Self::MAX_SERVICES
            && bytes <= Self::MAX_SERVICE_BYTES
            && self.services.iter().all(valid)
    }
}

/// Others print these texts on terminals.
fn is_text(text: &str, max: usize) -> bool {
    text.len() <= max && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bridged(path: &[u8]) -> Bridged {
        let prefix = "fd00::/64".parse().expect("valid");
        Bridged { prefix, path: path.iter().map(|mesh| MeshId([*mesh; 20])).collect() }
    }

    fn full() -> Profile {
        let observed = Endpoint { addr: ([192, 0, 2, 1], 7654).into(), observed: true };
        let named = |host: &str| NamedEndpoint { host: host.into(), port: 51_820, control: 7654 };
        Profile {
            control: vec![observed],
            alias: "one".into(),
            names: vec![named("one.example.net")],
            datagram_port: 7655,
            client: true,
            drained: true,
            avoids: vec![NodeId([5; 32])],
            routes: vec!["192.0.2.0/24".parse().expect("valid"), "::/0".parse().expect("valid")],
            bridged: vec![bridged(&[1, 2])],
            services: [("ssh".to_owned(), "22".to_owned())].into(),
            overlay_ipv4: Some(Ipv4Addr::new(10, 1, 2, 3)),
            version: "0.1.0".into(),
            shared: true,
            ..Profile::default()
        }
    }

    #[test]
    fn everything_is_read_back() {
        let read: Profile = codec::from_slice(&codec::to_vec(&full())).expect("reads");
        assert_eq!(read, full());
        assert_eq!(read.check(), Ok(()));
        assert!(read.is_exit() && !Profile::default().is_exit());
    }

    #[test]
    fn what_is_left_out_takes_no_room() {
        assert!(codec::to_vec(&Profile::default()).len() <= 9);
    }

    /// The profile of the version before: four fields, of which it leaves out what it likes.
    #[test]
    fn shorter_profiles_are_read() {
        let read: Profile = codec::from_slice(&[0xa1, 0x02, 0x61, b'x']).expect("reads");
        assert_eq!(read, Profile { alias: "x".into(), ..Profile::default() });
    }

    #[test]
    fn later_fields_are_skipped() {
        let read: Profile = codec::from_slice(&[0xa1, 0x18, 0x63, 0x82, 1, 2]).expect("reads");
        assert_eq!(read, Profile::default());
    }

    #[test]
    fn bounds_are_checked() {
        let refused = |change: &dyn Fn(&mut Profile)| {
            let mut profile = full();
            change(&mut profile);
            let read = codec::from_slice::<Profile>(&codec::to_vec(&profile));
            // Lists are refused while they are read, their contents afterwards.
            profile.check().is_err() && read.map_or(true, |read| read.check().is_err())
        };
        assert!(!refused(&|_| {}));
        let service = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert!(refused(&|p| p.names = vec![p.names[0].clone(); 5]));
        assert!(refused(&|p| p.names[0].host = "a b".into()));
        assert!(refused(&|p| p.names[0].host.clear()));
        assert!(refused(&|p| p.avoids = vec![NodeId([1; 32]); 9]));
        assert!(refused(&|p| p.routes = vec![p.routes[0]; 65]));
        assert!(refused(&|p| p.routes[0] = "192.0.2.1/24".parse().expect("valid")));
        assert!(refused(&|p| p.bridged = vec![bridged(&[1]); 33]));
        assert!(refused(&|p| p.bridged = vec![bridged(&[])]));
        assert!(refused(&|p| p.bridged = vec![bridged(&[1, 2, 1])]));
        assert!(refused(&|p| p.bridged = vec![bridged(&[1, 2, 3, 4, 5, 6, 7, 8, 9])]));
        assert!(refused(&|p| p.services = [service("", "x")].into()));
        assert!(refused(&|p| p.services = [service(&"k".repeat(64), "x")].into()));
        assert!(refused(&|p| p.services = [service("k", &"x".repeat(256))].into()));
        assert!(refused(&|p| p.services = [service("k", "\u{1b}[2J")].into()));
        let many = |count: u32, value: &str| {
            (0..count).map(|number| service(&number.to_string(), value)).collect()
        };
        assert!(refused(&|p| p.services = many(33, "x")));
        assert!(refused(&|p| p.services = many(20, &"x".repeat(120))));
        assert!(refused(&|p| p.version = "x".repeat(33)));
    }
}
