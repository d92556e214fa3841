//! IPv4 addresses inside a mesh: each node claims one of a few that follow from its identity.
//!
//! A claim stands in the node's record. Of several nodes that claim one address the one of the
//! lowest rank owns it, the others claim their next. So all who hold the same records agree on
//! every owner, in whatever order they got them; an owner never moves because of somebody who
//! ranks behind it, and when two parts of a mesh meet that did not know of each other, only the
//! losers of common addresses move. An owner keeps its address also when a better one of its own
//! falls free, so that no address changes without need.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use selvedge_model::{MeshId, NodeId, Prefix};

use crate::view::Member;

/// How many addresses a node may claim. In a prefix that is three quarters full, one node in a
/// hundred million finds none of its own free.
const CHOICES: u16 = 64;

/// What a member claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The member.
    pub node: NodeId,
    /// Its rank: something that it cannot choose, such as the serial number of its certificate.
    /// The lower one wins; equal ones are decided by the lower node.
    pub rank: u64,
    /// The address in its record, if there is one.
    pub address: Option<Ipv4Addr>,
}

impl Claim {
    /// What a member claims. Who was admitted first ranks first.
    #[must_use]
    pub const fn of(member: &Member) -> Self {
        Self { node: member.node, rank: member.serial, address: member.ipv4 }
    }
}

/// Who owns which address. A claim to an address that does not follow from its claimant's
/// identity, or lies outside the prefix, counts for nothing.
#[must_use]
pub fn owners(mesh: MeshId, prefix: Prefix, claims: &[Claim]) -> BTreeMap<Ipv4Addr, NodeId> {
    let mut ranked: Vec<&Claim> = claims.iter().collect();
    ranked.sort_by_key(|claim| (claim.rank, claim.node));
    let mut owners = BTreeMap::new();
    for claim in ranked {
        if let Some(address) = claim.address.filter(|it| follows(mesh, prefix, claim.node, *it)) {
            owners.entry(address).or_insert(claim.node);
        }
    }
    owners
}

/// What `own` is to claim, given what everybody claims, itself included: what it owns, else the
/// first of its addresses that nobody owns. `None` if all are taken, or the prefix has no room.
#[must_use]
pub fn claim(mesh: MeshId, prefix: Prefix, own: NodeId, claims: &[Claim]) -> Option<Ipv4Addr> {
    let owners = owners(mesh, prefix, claims);
    let owned = owners.iter().find(|(_, node)| **node == own).map(|(address, _)| *address);
    owned.or_else(|| choices(mesh, prefix, own).find(|address| !owners.contains_key(address)))
}

fn follows(mesh: MeshId, prefix: Prefix, node: NodeId, address: Ipv4Addr) -> bool {
    choices(mesh, prefix, node).any(|choice| choice == address)
}

/// The addresses of a node, the most preferred first, each once.
fn choices(mesh: MeshId, prefix: Prefix, node: NodeId) -> impl Iterator<Item = Ipv4Addr> {
    let mut seen = BTreeSet::new();
    let drawn = (0..CHOICES).filter_map(move |number| choice(mesh, prefix, node, number));
    drawn.filter(move |address| seen.insert(*address))
}

fn choice(mesh: MeshId, prefix: Prefix, node: NodeId, number: u16) -> Option<Ipv4Addr> {
    let IpAddr::V4(base) = prefix.network().addr() else { return None };
    let size = 1_u64 << (32 - prefix.len());
    // The first and the last address of a network are not for hosts.
    let usable = size.checked_sub(2).filter(|count| *count > 0)?;
    let mut hasher = blake3::Hasher::new_derive_key("selvedge 2026-11 overlay IPv4");
    hasher.update(mesh.as_bytes()).update(node.as_bytes()).update(&number.to_be_bytes());
    let hash = hasher.finalize();
    let drawn = u64::from_be_bytes(hash.as_bytes().first_chunk().copied()?);
    let host = u32::try_from(1 + drawn % usable).ok()?;
    Some(Ipv4Addr::from(u32::from(base) + host))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MESH: MeshId = MeshId([7; 20]);

    fn prefix(text: &str) -> Prefix {
        text.parse().expect("a prefix")
    }

    fn claimant(number: u8) -> Claim {
        Claim { node: NodeId([number; 32]), rank: u64::from(number / 4), address: None }
    }

    /// Everybody claims in the order of `order` until nobody changes anything.
    fn settle(prefix: Prefix, claims: &mut [Claim], order: &[usize]) {
        for _ in 0..200 {
            let before = claims.to_vec();
            let count = claims.len();
            for at in order.iter().map(|at| at % count).chain(0..count) {
                claims[at].address = claim(MESH, prefix, claims[at].node, claims);
            }
            if claims == before {
                return;
            }
        }
        panic!("the claims never settle");
    }

    fn all_distinct(claims: &[Claim]) -> bool {
        let addresses: BTreeSet<_> = claims.iter().filter_map(|claim| claim.address).collect();
        addresses.len() == claims.len()
    }

    #[test]
    fn addresses_never_change_with_the_version() {
        let address = claim(MESH, prefix("10.99.0.0/16"), NodeId([1; 32]), &[]);
        assert_eq!(address.map(|it| it.to_string()).as_deref(), Some(EXPECTED));
    }

    const EXPECTED: &str = "10.99.113.187";

    #[test]
    fn prefixes_without_room_give_nothing() {
        let own = NodeId([1; 32]);
        assert_eq!(claim(MESH, prefix("10.0.0.0/31"), own, &[]), None);
        assert_eq!(claim(MESH, prefix("10.0.0.1/32"), own, &[]), None);
        assert_eq!(claim(MESH, prefix("fd00::/64"), own, &[]), None);
        let within =
            |text| prefix(text).contains(claim(MESH, prefix(text), own, &[]).expect("room").into());
        assert!(within("10.0.0.0/30") && within("0.0.0.0/0"));
        let mut full: Vec<Claim> = (0..3).map(claimant).collect();
        settle(prefix("10.0.0.0/30"), &mut full, &[]);
        assert_eq!(full.iter().filter(|claim| claim.address.is_none()).count(), 1);
    }

    #[test]
    fn nobody_owns_an_address_that_is_not_its_own() {
        let (prefix, victim) = (prefix("10.99.0.0/16"), NodeId([1; 32]));
        let address = claim(MESH, prefix, victim, &[]);
        let thief = Claim { node: NodeId([2; 32]), rank: 0, address };
        let honest = Claim { node: victim, rank: 9, address };
        assert_eq!(
            owners(MESH, prefix, &[thief, honest]).into_values().collect::<Vec<_>>(),
            [victim]
        );
    }

    proptest! {
        /// /27: thirty addresses for up to 24 nodes, so that many collide.
        #[test]
        fn all_get_one_of_their_own_and_the_order_does_not_count(
            nodes in prop::collection::btree_set(any::<u8>(), 1..24),
            order in prop::collection::vec(any::<usize>(), 0..60),
        ) {
            let prefix = prefix("10.0.0.0/27");
            let mut claims: Vec<Claim> = nodes.into_iter().map(claimant).collect();
            settle(prefix, &mut claims, &order);
            prop_assert!(all_distinct(&claims));
            let forwards = owners(MESH, prefix, &claims);
            claims.reverse();
            prop_assert_eq!(owners(MESH, prefix, &claims), forwards);
        }

        #[test]
        fn when_partitions_meet_only_losers_move(
            left in prop::collection::btree_set(0..128_u8, 1..12),
            right in prop::collection::btree_set(128..=255_u8, 1..12),
            order in prop::collection::vec(any::<usize>(), 0..60),
        ) {
            let prefix = prefix("10.0.0.0/27");
            let (mut left, mut right): (Vec<_>, Vec<_>) =
                (left.into_iter().map(claimant).collect(), right.into_iter().map(claimant).collect());
            settle(prefix, &mut left, &order);
            settle(prefix, &mut right, &order);
            let met = [left, right].concat();
            let owners = owners(MESH, prefix, &met);
            let mut after = met.clone();
            settle(prefix, &mut after, &order);
            prop_assert!(all_distinct(&after));
            for (before, after) in met.iter().zip(&after) {
                let won = before.address.and_then(|it| owners.get(&it)) == Some(&before.node);
                prop_assert!(!won || before.address == after.address, "a winner moved");
            }
        }

        #[test]
        fn who_comes_later_moves_nobody(
            nodes in prop::collection::btree_set(0..200_u8, 1..20),
        ) {
            let prefix = prefix("10.0.0.0/27");
            let mut before: Vec<Claim> = nodes.into_iter().map(claimant).collect();
            settle(prefix, &mut before, &[]);
            let late = Claim { node: NodeId([255; 32]), rank: 999, address: None };
            let mut after = [before.clone(), vec![late]].concat();
            settle(prefix, &mut after, &[0, 19]);
            prop_assert_eq!(&after[..before.len()], &before[..]);
            after.remove(0);
            let rest = after.clone();
            settle(prefix, &mut after, &[]);
            prop_assert_eq!(after, rest, "nobody moves because another left");
        }
    }
}
