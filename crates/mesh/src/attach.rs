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
/// `peers` are the [`fittest`]: see [`crate::Mesh::attachment`], which applies it to what a member
/// knows.
#[must_use]
pub fn attached_to(client: NodeId, peers: impl IntoIterator<Item = NodeId>) -> Option<NodeId> {
    attached_in_turn(client, peers)[0]
}

/// The peer that `client` is attached to, and the one that it will be attached to if that one
/// fails.
#[must_use]
pub fn attached_in_turn(
    client: NodeId,
    peers: impl IntoIterator<Item = NodeId>,
) -> [Option<NodeId>; 2] {
    let weight = weights(client);
    let [mut first, mut second] = [None, None];
    for peer in peers {
        let ranked = Some((weight(peer), peer));
        if ranked <= second || ranked == first || peer == client {
            continue;
        }
        (first, second) = match ranked > first {
            true => (ranked, first),
            false => (first, ranked),
        };
    }
    [first, second].map(|ranked| ranked.map(|(_, peer)| peer))
}

/// A peer that may serve a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Which one.
    pub node: NodeId,
    /// Whether it answers, as far as is known.
    pub live: bool,
    /// Whether it asks clients to leave it.
    pub drained: bool,
    /// Whether the client says that it does not reach it.
    pub avoided: bool,
}

/// The first of these sets that is not empty: peers that are fit in every way; those that live
/// and that the client can reach, drained or not; those that live; all, so that a client that was
/// cut off from all finds back.
#[must_use]
pub fn fittest(peers: impl IntoIterator<Item = Candidate>) -> Vec<NodeId> {
    let (mut best, mut fittest) = (Fitness::Any, Vec::new());
    for peer in peers {
        let fitness = peer.fitness();
        if fitness > best {
            best = fitness;
            fittest.clear();
        }
        if fitness == best {
            fittest.push(peer.node);
        }
    }
    fittest
}

/// How fit a peer is; the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fitness {
    Any,
    Live,
    Reached,
    Full,
}

impl Candidate {
    const fn fitness(&self) -> Fitness {
        match (self.live, self.avoided, self.drained) {
            (true, false, false) => Fitness::Full,
            (true, false, true) => Fitness::Reached,
            (true, true, _) => Fitness::Live,
            (false, _, _) => Fitness::Any,
        }
    }
}

/// Computed for each pair, so it is but a mix of what are as good as random numbers (Steele, Lea,
/// Flood: Fast splittable pseudorandom number generators, OOPSLA 2014).
fn weights(client: NodeId) -> impl Fn(NodeId) -> u64 {
    let mixed = |number: u64| {
        let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        number ^ number >> 31
    };
    let own = mixed(beginning(client));
    move |peer| mixed(own.wrapping_add(beginning(peer)))
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
    fn the_fittest_are_taken_and_others_rather_than_none() {
        let peer = |number, live, avoided, drained| Candidate {
            node: node(number, 1),
            live,
            drained,
            avoided,
        };
        let order = [
            peer(0, false, false, false),
            peer(1, true, true, false),
            peer(2, true, false, true),
            peer(3, true, false, false),
        ];
        for best in 0..order.len() {
            let fit = fittest(order[..=best].iter().rev().copied());
            assert_eq!(fit, [order[best].node]);
        }
        let all = [peer(1, true, true, true), peer(0, false, true, true), order[1]];
        assert_eq!(fittest(all), [node(1, 1), node(1, 1)], "one as good as the other");
        assert_eq!(fittest([]), []);
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
        fn who_is_next_is_who_serves_without_the_first(
            peers in prop::collection::vec(0..20_u16, 0..20),
            client in 0..20_u16,
        ) {
            // Some twice, and the client is among them at times.
            let peers: Vec<_> = peers.into_iter().map(|number| node(number, 1)).collect();
            let client = node(client, 1);
            let [first, second] = attached_in_turn(client, peers.iter().copied());
            prop_assert_eq!(first, attached_to(client, peers.iter().copied()));
            let others = peers.into_iter().filter(|peer| Some(*peer) != first);
            prop_assert_eq!(second, attached_to(client, others));
        }

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
