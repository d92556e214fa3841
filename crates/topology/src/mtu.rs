//! How large a packet may be inside a mesh.

/// What a relayed packet has more than a plain one in bytes: an IPv6 header.
pub const RELAY_OVERHEAD: u16 = 40;

/// What VXLAN adds to a frame's payload over IPv6 in bytes: Ethernet, VXLAN, UDP and IPv6 headers
/// (14 + 8 + 8 + 40).
pub const VXLAN_OVERHEAD: u16 = 70;

/// WireGuard's header and tag, and those of UDP, in bytes.
const WIREGUARD: u16 = 32 + 8;

/// No link of IPv6 is narrower (RFC 8200, section 5).
const IPV6_MINIMUM: u16 = 1280;

/// The network that carries WireGuard's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Underlay {
    /// IPv4: 20 bytes of header.
    V4,
    /// IPv6: 40 bytes of header.
    V6,
}

/// The greatest packet on the way to one partner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathMtu {
    /// By which network it is reached.
    pub underlay: Underlay,
    /// The greatest packet there in bytes, headers included: 1500 on Ethernet, 1492 over PPPoE,
    /// the MTU of another mesh's interface if it leads through one.
    pub bytes: u16,
}

/// The MTU of a mesh's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mtu {
    /// In bytes.
    pub bytes: u16,
    /// Whether the underlay has to fragment greatest packets, because it is narrower than IPv6
    /// inside the mesh needs.
    pub fragments: bool,
}

/// The MTU of the interface of a mesh whose partners are reached by `paths`: what fits through the
/// narrowest. Without paths that of Ethernet with IPv6. Never less than 1280 bytes, which IPv6
/// needs, nor less than a relayed packet of that size.
#[must_use]
pub fn overlay_mtu(paths: impl IntoIterator<Item = PathMtu>) -> Mtu {
    let narrowest = paths.into_iter().map(payload).min();
    let ethernet = PathMtu { underlay: Underlay::V6, bytes: 1500 };
    let fits = narrowest.unwrap_or_else(|| payload(ethernet));
    let least = IPV6_MINIMUM + RELAY_OVERHEAD;
    Mtu { bytes: fits.max(least), fragments: fits < least }
}

fn payload(path: PathMtu) -> u16 {
    let header = match path.underlay {
        Underlay::V4 => 20,
        Underlay::V6 => 40,
    };
    path.bytes.saturating_sub(header + WIREGUARD)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mtu(paths: &[(Underlay, u16)]) -> (u16, bool) {
        let path =
            |(underlay, bytes): &(Underlay, u16)| PathMtu { underlay: *underlay, bytes: *bytes };
        let mtu = overlay_mtu(paths.iter().map(path));
        (mtu.bytes, mtu.fragments)
    }

    #[test]
    fn the_narrowest_path_decides() {
        assert_eq!(mtu(&[]), (1420, false));
        assert_eq!(mtu(&[(Underlay::V4, 1500)]), (1440, false));
        assert_eq!(mtu(&[(Underlay::V4, 1500), (Underlay::V6, 1500)]), (1420, false));
        assert_eq!(mtu(&[(Underlay::V6, 1492)]), (1412, false), "PPPoE");
        assert_eq!(mtu(&[(Underlay::V6, 1420)]), (1340, false), "a mesh over a mesh");
        assert_eq!(mtu(&[(Underlay::V6, 9000)]), (8920, false));
    }

    #[test]
    fn a_relayed_packet_of_ipv6_always_fits() {
        assert_eq!(mtu(&[(Underlay::V6, 1400)]), (1320, false));
        assert_eq!(mtu(&[(Underlay::V6, 1399)]), (1320, true));
        assert_eq!(mtu(&[(Underlay::V4, 0)]), (1320, true));
    }
}
