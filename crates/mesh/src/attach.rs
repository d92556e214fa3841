//! Which peer a client is attached to.
//!
//! Rendezvous hashing (Thaler, Ravishankar: Using name-based mappings to increase hit rates,
//! IEEE/ACM ToN 1998): each pair of client and peer has a weight that follows from their
//! identities, and the peer of the greatest weight serves. So all who know of the same live peers
//! agree without a word; if a peer fails, its clients alone move, spread over all others, and they
//! come back when it does.

use selvedge_model::NodeId;

/// The peer that `client` is attached to: the one of the greatest weight among `peers`; `None` if
/// there are none. The order of the peers does not count, and a client is not attached to itself.
///
/// `peers` are those that live, are not drained, and that the client can reach: see
/// [`crate::Mesh::attachment`], which applies it to what a member knows.
#[must_use]
pub fn attached_to(client: NodeId, peers: impl IntoIterator<Item = NodeId>) -> Option<NodeId> {
    let others = peers.into_iter().filter(|peer| *peer != client);
    others.max_by_key(|peer| (weight(client, *peer), *peer))
}

/// Computed for each pair, so it is but a mix of what are as good as random numbers (Steele, Lea,
/// Flood: Fast splittable pseudorandom number generators, OOPSLA 2014).
fn weight(client: NodeId, peer: NodeId) -> u64 {
    let mixed = |number: u64| {
        let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        number ^ number >> 31
    };
    mixed(mixed(beginning(client)).wrapping_add(beginning(peer)))
}

fn beginning(node: NodeId) -> u64 {
    u64::from_be_bytes(node.as_bytes().first_chunk().copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn node(number: u16, kind: u8) -> NodeId {
        let mut id = [kind; 32];
        id[..2].copy_from_slice(&number.to_be_bytes());
        NodeId(id)
    }

    fn peers(count: u16) -> BTreeSet<NodeId> {
        (0..count).map(|number| node(number, 1)).collect()
    }

    fn attachments(clients: u16, peers: &BTreeSet<NodeId>) -> BTreeMap<NodeId, NodeId> {
        let clients = (0..clients).map(|number| node(number, 2));
        clients
            .filter_map(|client| Some((client, attached_to(client, peers.iter().copied())?)))
            .collect()
    }

    #[test]
    fn nobody_serves_where_nobody_is() {
        let client = node(1, 2);
        assert_eq!(attached_to(client, []), None);
        assert_eq!(attached_to(client, [client]), None, "not even itself");
        assert_eq!(attached_to(client, [client, node(3, 1)]), Some(node(3, 1)));
    }

    #[test]
    fn the_attachment_never_changes_with_the_version() {
        // A new version that computed another one would cut off the clients of the older ones.
        let peer = attached_to(node(0, 2), peers(8));
        assert_eq!(peer, Some(node(2, 1)));
    }

    #[test]
    fn clients_are_spread_evenly() {
        let mut share = BTreeMap::<NodeId, usize>::new();
        attachments(4000, &peers(8))
            .into_values()
            .for_each(|peer| *share.entry(peer).or_default() += 1);
        // 500 each, and a standard deviation of 21.
        assert!(
            share.len() == 8 && share.values().all(|count| (400..600).contains(count)),
            "{share:?}"
        );
    }

    proptest! {
        #[test]
        fn only_the_failed_peers_share_moves(count in 2..20_u16, failed in any::<prop::sample::Index>()) {
            let all = peers(count);
            let failed = node(failed.index(usize::from(count)) as u16, 1);
            let mut left = all.clone();
            left.remove(&failed);
            let (before, after) = (attachments(100, &all), attachments(100, &left));
            for (client, peer) in before {
                let now = after[&client];
                prop_assert!(left.contains(&now));
                prop_assert!(now == peer || peer == failed);
            }
        }
    }
}
