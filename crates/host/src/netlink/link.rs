use std::net::IpAddr;
use std::os::fd::RawFd;

use selvedge_model::Vni;

use super::Mac;
use crate::netns::Namespace;

/// An interface as the kernel reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number for the interface.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What kind of interface it is.
    pub kind: LinkKind,
    /// Index of the bridge that it is a port of.
    pub master: Option<u32>,
    /// Its Ethernet address, if it has one.
    pub mac: Option<Mac>,
    /// Whether it is set up.
    pub up: bool,
    /// Whether its lower layer is up too.
    pub carrier: bool,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The tunnel's parameters, if it is a VXLAN interface of one network.
    pub vxlan: Option<Vxlan>,
}

/// The kinds of interfaces that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// A bridge.
    Bridge,
    /// A VXLAN tunnel endpoint.
    Vxlan,
    /// A TUN or TAP device.
    Tun,
    /// One end of a pair.
    Veth,
    /// WireGuard of the kernel.
    WireGuard,
    /// Another one that leads to containers, into a tunnel or nowhere: macvlan, ipvlan, dummy, GRE,
    /// SIT, and the like.
    Virtual,
    /// Anything else: hardware, loopback and so on.
    Other,
}

/// The parameters of a VXLAN interface (RFC 7348).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// The network.
    pub vni: Vni,
    /// The address of this tunnel endpoint.
    pub local: Option<IpAddr>,
    /// The interface by which its packets leave, and no other: it goes when that one goes.
    pub device: Option<u32>,
    /// The UDP port.
    pub port: u16,
    /// Whether it learns tunnel endpoints from the frames that it receives.
    pub learning: bool,
}

/// An interface to make.
#[derive(Clone, Copy, Debug)]
pub enum NewLink<'a> {
    /// A bridge without ports.
    Bridge,
    /// A VXLAN interface.
    Vxlan(Vxlan),
    /// WireGuard of the kernel, which has to be told its key and its peers.
    WireGuard,
    /// A pair of interfaces.
    Veth {
        /// The name of the other end.
        peer: &'a str,
        /// Where the other end is put; here, if `None`.
        namespace: Option<&'a Namespace>,
    },
}

impl NewLink<'_> {
    pub(super) fn peer_fd(namespace: Option<&Namespace>) -> Option<RawFd> {
        use std::os::fd::{AsFd, AsRawFd};
        namespace.map(|namespace| namespace.as_fd().as_raw_fd())
    }
}
