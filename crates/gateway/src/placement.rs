//! Which gateway a network belongs on: consistent hashing.
//!
//! Every node has a number of 64-bit ids on a ring (Karger et al., *Consistent Hashing and Random
//! Trees*, STOC 1997). A network goes to the node with the next id at or above the hash of its
//! VNI, wrapping around. Hash and ring are those of the predecessor, so that both agree.

use std::collections::BTreeMap;

use selvedge_model::{NodeName, Vni, VniRanges};

/// How many ids a node has unless it is told otherwise.
pub const DEFAULT_IDS: usize = 100;

/// The ring of all nodes that may be given networks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ring {
    ids: BTreeMap<u64, NodeName>,
    /// What those nodes can serve that cannot serve everything.
    limits: BTreeMap<NodeName, VniRanges>,
}

impl Ring {
    /// Builds the ring. Of two equal ids the node that comes later wins, as with the predecessor,
    /// which reads its list in the order of names.
    pub fn new<'a>(nodes: impl IntoIterator<Item = (&'a NodeName, &'a [u64])>) -> Self {
        let ids = nodes.into_iter().flat_map(|(name, ids)| ids.iter().map(move |id| (*id, name)));
        let ids = ids.map(|(id, name)| (id, name.clone())).collect();
        Self { ids, limits: BTreeMap::new() }
    }

    /// The ring on which some nodes are passed over for networks that they cannot serve.
    #[must_use]
    pub fn with_limits(self, limits: impl IntoIterator<Item = (NodeName, VniRanges)>) -> Self {
        Self { limits: limits.into_iter().collect(), ..self }
    }

    /// The node that the network belongs on; `None` if no node on the ring can serve it.
    #[must_use]
    pub fn owner(&self, vni: Vni) -> Option<&NodeName> {
        let hash = fmix64(u64::from(vni.get()));
        let serves =
            |name: &&NodeName| self.limits.get(*name).is_none_or(|limit| limit.contains(vni));
        self.ids.range(hash..).chain(&self.ids).map(|(_, name)| name).find(serves)
    }
}

/// The ids of a node, derived from its name, so that a restart changes nothing.
#[must_use]
pub fn ids_of(name: &NodeName, count: usize) -> Vec<u64> {
    let mut hasher = blake3::Hasher::new_derive_key("selvedge 2026-11 placement ids");
    hasher.update(name.as_str().as_bytes());
    let mut stream = hasher.finalize_xof();
    let mut id = [0; 8];
    let draw = |_| {
        stream.fill(&mut id);
        u64::from_le_bytes(id)
    };
    (0..count).map(draw).collect()
}

/// The 64-bit finalizer of MurmurHash3.
#[must_use]
pub const fn fmix64(mut k: u64) -> u64 {
    k ^= k >> 33;
    k = k.wrapping_mul(0xff51_afd7_ed55_8ccd);
    k ^= k >> 33;
    k = k.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    k ^= k >> 33;
    k
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> NodeName {
        text.parse().expect("valid name")
    }

    fn vni(number: u32) -> Vni {
        number.try_into().expect("valid vni")
    }

    #[test]
    fn the_finalizer_is_murmur3s() {
        // Reference values of MurmurHash3's fmix64.
        assert_eq!(fmix64(0), 0);
        assert_eq!(fmix64(1), 0xb456_bcfc_34c2_cb2c);
        assert_eq!(fmix64(2), 0x3abf_2a20_6506_83e7);
    }

    #[test]
    fn at_or_above_wrapping_around() {
        let (a, b) = (name("a"), name("b"));
        let hash = fmix64(5);
        assert_eq!(Ring::new([(&a, &[hash][..]), (&b, &[hash + 1])]).owner(vni(5)), Some(&a));
        assert_eq!(Ring::new([(&a, &[hash - 1][..]), (&b, &[hash + 1])]).owner(vni(5)), Some(&b));
        assert_eq!(Ring::new([(&a, &[1][..]), (&b, &[hash - 1])]).owner(vni(5)), Some(&a));
        assert_eq!(Ring::default().owner(vni(5)), None);
    }

    #[test]
    fn of_equal_ids_the_later_node_wins() {
        let (a, b) = (name("a"), name("b"));
        assert_eq!(Ring::new([(&a, &[9][..]), (&b, &[9])]).owner(vni(5)), Some(&b));
    }

    #[test]
    fn who_cannot_serve_a_network_is_passed_over() {
        let (a, b) = (name("a"), name("b"));
        let hash = fmix64(5);
        let ring = Ring::new([(&a, &[hash][..]), (&b, &[hash + 1])]);
        let limited = |text: &str| (a.clone(), text.parse().expect("ranges"));
        assert_eq!(ring.clone().with_limits([limited("1-5")]).owner(vni(5)), Some(&a));
        assert_eq!(ring.with_limits([limited("1-4")]).owner(vni(5)), Some(&b));
        let alone = Ring::new([(&a, &[hash][..])]).with_limits([limited("1-4")]);
        assert_eq!(alone.owner(vni(5)), None);
    }

    #[test]
    fn ids_depend_on_the_name_alone() {
        assert_eq!(ids_of(&name("gw1"), 100), ids_of(&name("gw1"), 100));
        assert_eq!(ids_of(&name("gw1"), 10), ids_of(&name("gw1"), 100)[..10]);
        assert_ne!(ids_of(&name("gw1"), 1), ids_of(&name("gw2"), 1));
    }

    #[test]
    fn a_lost_node_moves_its_own_networks_only() {
        let nodes: Vec<_> = (1..=8).map(|n| name(&format!("gw{n}"))).collect();
        let ids: Vec<_> = nodes.iter().map(|n| ids_of(n, DEFAULT_IDS)).collect();
        let ring = |without: usize| {
            let kept = nodes.iter().zip(&ids).enumerate().filter(|(n, _)| *n != without);
            Ring::new(kept.map(|(_, (name, ids))| (name, ids.as_slice())))
        };
        let (all, less) = (ring(usize::MAX), ring(3));
        for vni in (1..5000).map(vni) {
            let before = all.owner(vni).expect("eight nodes");
            if *before != nodes[3] {
                assert_eq!(less.owner(vni), Some(before));
            }
        }
    }

    #[test]
    fn networks_are_spread_as_evenly_as_a_ring_of_random_ids_can() {
        // With 100 random ids each, the busiest of 8 nodes has 1.15 times the average in the mean
        // of many rings, and 1.25 times in one of twenty.
        let mut loads: Vec<f64> = (0..100).map(greatest_load).collect();
        loads.sort_by(f64::total_cmp);
        let mean = loads.iter().sum::<f64>() / 100.0;
        assert!((1.12..1.18).contains(&mean), "{mean}");
        assert!((1.20..1.30).contains(&loads[94]), "{}", loads[94]);
    }

    /// Greatest load over average: 10,000 networks on 8 nodes of a made-up site.
    fn greatest_load(site: u32) -> f64 {
        let nodes: Vec<_> = (1..=8).map(|n| name(&format!("site{site}-gw{n}"))).collect();
        let ids: Vec<_> = nodes.iter().map(|node| ids_of(node, DEFAULT_IDS)).collect();
        let ring = Ring::new(nodes.iter().zip(&ids).map(|(name, ids)| (name, ids.as_slice())));
        let mut loads: BTreeMap<&NodeName, u32> = BTreeMap::new();
        for vni in (1..=10_000).map(vni) {
            *loads.entry(ring.owner(vni).expect("eight nodes")).or_default() += 1;
        }
        f64::from(loads.values().copied().max().expect("eight nodes")) / (10_000.0 / 8.0)
    }
}
