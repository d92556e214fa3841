//! Overlay addresses: computed from mesh and identity, never carried in a record, so that nobody
//! can claim another's.
//!
//! A mesh has a unique local /64 (RFC 4193: `fd`, then the 40 bits of the global id and 16 bits
//! of the subnet id, all of them from a hash of the mesh id). A node's interface id is 64 bits of
//! a hash of mesh and node; in such ids no bit has a meaning of its own (RFC 7136).

use std::net::Ipv6Addr;

use selvedge_model::{MeshId, NodeId, Prefix};

/// The overlay prefix of a mesh, a /64.
#[must_use]
pub fn mesh_prefix(mesh: MeshId) -> Prefix {
    let mut octets = [0; 16];
    octets[..8].copy_from_slice(&prefix_octets(mesh));
    Prefix::new(Ipv6Addr::from(octets).into(), 64).expect("an IPv6 prefix may have 64 bits")
}

/// The overlay address of a node.
#[must_use]
pub fn node_address(mesh: MeshId, node: NodeId) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets[..8].copy_from_slice(&prefix_octets(mesh));
    octets[8..].copy_from_slice(&interface_id(mesh, node));
    octets.into()
}

fn prefix_octets(mesh: MeshId) -> [u8; 8] {
    let hash = blake3::derive_key("selvedge 2026-11 overlay prefix", mesh.as_bytes());
    let mut octets = [0xfd; 8];
    octets[1..].copy_from_slice(&hash[..7]);
    octets
}

/// The first eight bytes of the hash's endless output that are no reserved interface id.
fn interface_id(mesh: MeshId, node: NodeId) -> [u8; 8] {
    let mut hash = blake3::Hasher::new_derive_key("selvedge 2026-11 interface id");
    hash.update(mesh.as_bytes()).update(node.as_bytes());
    let mut output = hash.finalize_xof();
    let mut id = [0; 8];
    while is_reserved(id) {
        output.fill(&mut id);
    }
    id
}

/// RFC 5453: the subnet router anycast id, the block of IANA's Ethernet identifiers, and the
/// subnet anycast ids of RFC 2526.
fn is_reserved(id: [u8; 8]) -> bool {
    let number = u64::from_be_bytes(id);
    number == 0
        || number >> 24 == 0x02_00_5e_ff_fe
        || (0xfdff_ffff_ffff_ff80..=0xfdff_ffff_ffff_ffff).contains(&number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_lie_in_the_mesh_prefix() {
        let mesh = MeshId([1; 20]);
        let prefix = mesh_prefix(mesh);
        assert_eq!(prefix.len(), 64);
        assert_eq!(prefix.network(), prefix);
        let node = node_address(mesh, NodeId([2; 32]));
        assert!(prefix.contains(node.into()));
        assert_eq!(node.octets()[0], 0xfd);
    }

    #[test]
    fn addresses_never_change() {
        // A new version that computed another address would cut every mesh in two.
        let address = node_address(MeshId([1; 20]), NodeId([2; 32]));
        assert_eq!(address.to_string(), "fd47:dc4e:158b:3e17:312c:f9ed:8324:e83c");
    }

    #[test]
    fn mesh_and_node_both_count() {
        let address = |mesh, node| node_address(MeshId([mesh; 20]), NodeId([node; 32]));
        let interface = |a: Ipv6Addr| u128::from(a) as u64;
        assert_ne!(interface(address(1, 1)), interface(address(1, 2)));
        assert_ne!(interface(address(1, 1)), interface(address(2, 1)));
    }

    #[test]
    fn reserved_ids_are_known() {
        assert!(is_reserved([0; 8]));
        assert!(is_reserved([0x02, 0, 0x5e, 0xff, 0xfe, 0, 0x52, 0x13]));
        assert!(is_reserved([0xfd, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x80]));
        assert!(!is_reserved([0xfd, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]));
    }
}
