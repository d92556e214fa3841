//! An ordered map whose subtrees know their sums: how many keys they hold, the combined hash of
//! what they hold, and when the first of it expires.
//!
//! A range's hash and the key of a rank take time proportional to the logarithm of the size.
//! Copies share what they have in common, so that a copy costs nothing and a change of one copies
//! just the path to it: a simulator holds thousands of nearly equal replicas.
//!
//! Balanced by weight (Adams: Efficient sets, a balancing act, JFP 1993; parameters by Hirai and
//! Yamamoto: Balancing weight-balanced trees, JFP 2011), so that no choice of keys makes it deep.

use std::cmp::Ordering;
use std::sync::Arc;

/// What a value adds to the sums of the subtrees that it is in.
pub(crate) trait Summed<K> {
    /// A hash of key and value.
    fn hash(&self, key: &K) -> [u8; 32];
    /// The second in which it expires.
    fn expiry(&self) -> u64;
}

/// The sum of a range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    /// The number of keys.
    pub(crate) count: u64,
    /// The sum of the hashes modulo 2^256, least significant part first. A sum, because an
    /// exclusive or could be solved for a set that has a given one.
    pub(crate) hash: [u64; 4],
}

impl Sum {
    fn of(hash: [u8; 32]) -> Self {
        let mut parts = [0; 4];
        for (part, bytes) in parts.iter_mut().zip(hash.as_chunks::<8>().0) {
            *part = u64::from_le_bytes(*bytes);
        }
        Self { count: 1, hash: parts }
    }

    fn plus(self, other: Self) -> Self {
        let mut hash = [0; 4];
        let mut carry = false;
        for ((out, a), b) in hash.iter_mut().zip(self.hash).zip(other.hash) {
            (*out, carry) = a.carrying_add(b, carry);
        }
        Self { count: self.count + other.count, hash }
    }

    /// What remains without a part.
    pub(crate) fn minus(self, part: Self) -> Self {
        let mut hash = [0; 4];
        let mut borrow = false;
        for ((out, a), b) in hash.iter_mut().zip(self.hash).zip(part.hash) {
            (*out, borrow) = a.borrowing_sub(b, borrow);
        }
        Self { count: self.count.saturating_sub(part.count), hash }
    }
}

/// The map.
#[derive(Debug)]
pub(crate) struct Tree<K, V> {
    root: Link<K, V>,
}

type Link<K, V> = Option<Arc<Node<K, V>>>;

#[derive(Clone, Debug)]
struct Node<K, V> {
    item: Item<K, V>,
    left: Link<K, V>,
    right: Link<K, V>,
    sum: Sum,
    expiry: u64,
}

#[derive(Clone, Debug)]
struct Item<K, V> {
    key: K,
    value: V,
    own: Sum,
    expiry: u64,
}

impl<K, V> Clone for Tree<K, V> {
    fn clone(&self) -> Self {
        Self { root: self.root.clone() }
    }
}

impl<K, V> Default for Tree<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K, V> Tree<K, V> {
    pub(crate) const fn new() -> Self {
        Self { root: None }
    }

    /// Whether one is a copy of the other, and neither was changed since.
    #[cfg(test)]
    pub(crate) fn is_copy_of(&self, other: &Self) -> bool {
        match (&self.root, &other.root) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (one, other) => one.is_none() && other.is_none(),
        }
    }

    /// The sum of all.
    pub(crate) fn sum(&self) -> Sum {
        sum(&self.root)
    }

    /// When the first value expires.
    pub(crate) fn expiry(&self) -> u64 {
        expiry(&self.root)
    }

    /// The sum of the keys of which `below` holds; it must hold of a beginning of them.
    pub(crate) fn sum_where(&self, below: impl Fn(&K) -> bool) -> Sum {
        let mut total = Sum::default();
        let mut link = &self.root;
        while let Some(node) = link {
            link = if below(&node.item.key) {
                total = total.plus(sum(&node.left)).plus(node.item.own);
                &node.right
            } else {
                &node.left
            };
        }
        total
    }

    /// The key of a rank, and its value.
    pub(crate) fn nth(&self, mut rank: u64) -> Option<(&K, &V)> {
        let mut link = &self.root;
        while let Some(node) = link {
            let before = sum(&node.left).count;
            link = match rank.cmp(&before) {
                Ordering::Less => &node.left,
                Ordering::Equal => return Some((&node.item.key, &node.item.value)),
                Ordering::Greater => {
                    rank -= before + 1;
                    &node.right
                }
            };
        }
        None
    }

    /// All keys but those of which `below` holds, ascending; it must hold of a beginning of them.
    pub(crate) fn iter_from(&self, below: impl Fn(&K) -> bool) -> Iter<'_, K, V> {
        let mut stack = Vec::new();
        let mut link = &self.root;
        while let Some(node) = link {
            link = if below(&node.item.key) {
                &node.right
            } else {
                stack.push(&**node);
                &node.left
            };
        }
        Iter { stack }
    }

    /// All keys, ascending.
    pub(crate) fn iter(&self) -> Iter<'_, K, V> {
        self.iter_from(|_| false)
    }

    /// The keys whose values expire before `moment`, ascending.
    pub(crate) fn expired(&self, moment: u64) -> Vec<&K> {
        let mut found = Vec::new();
        let mut stack: Vec<&Node<K, V>> = self.root.as_deref().into_iter().collect();
        while let Some(node) = stack.pop().filter(|_| self.expiry() < moment) {
            if node.item.expiry < moment {
                found.push(&node.item.key);
            }
            let children = [&node.left, &node.right].into_iter().filter_map(|link| link.as_deref());
            stack.extend(children.filter(|child| child.expiry < moment));
        }
        found
    }
}

impl<K: Ord + Clone, V: Summed<K> + Clone> Tree<K, V> {
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        let mut link = &self.root;
        while let Some(node) = link {
            link = match key.cmp(&node.item.key) {
                Ordering::Less => &node.left,
                Ordering::Equal => return Some(&node.item.value),
                Ordering::Greater => &node.right,
            };
        }
        None
    }

    /// Sets the value of a key.
    pub(crate) fn insert(&mut self, key: K, value: V) {
        let own = Sum::of(value.hash(&key));
        let expiry = value.expiry();
        insert(&mut self.root, Item { key, value, own, expiry });
    }

    /// Takes a key out.
    pub(crate) fn remove(&mut self, key: &K) {
        if self.get(key).is_some() {
            remove(&mut self.root, key);
        }
    }
}

/// An iterator by ascending key.
pub(crate) struct Iter<'a, K, V> {
    stack: Vec<&'a Node<K, V>>,
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        let node = self.stack.pop()?;
        let mut link = &node.right;
        while let Some(next) = link {
            self.stack.push(next);
            link = &next.left;
        }
        Some((&node.item.key, &node.item.value))
    }
}

fn sum<K, V>(link: &Link<K, V>) -> Sum {
    link.as_ref().map_or_else(Sum::default, |node| node.sum)
}

fn expiry<K, V>(link: &Link<K, V>) -> u64 {
    link.as_ref().map_or(u64::MAX, |node| node.expiry)
}

fn weight<K, V>(link: &Link<K, V>) -> u64 {
    sum(link).count + 1
}

impl<K, V> Node<K, V> {
    fn leaf(item: Item<K, V>) -> Self {
        let (sum, expiry) = (item.own, item.expiry);
        Self { item, left: None, right: None, sum, expiry }
    }

    fn add_up(&mut self) {
        self.sum = sum(&self.left).plus(self.item.own).plus(sum(&self.right));
        self.expiry = self.item.expiry.min(expiry(&self.left)).min(expiry(&self.right));
    }
}

/// Changes what is its own in place, and copies what it shares.
impl<K: Clone, V: Clone> Node<K, V> {
    /// Puts in order a node of which one subtree has changed, by one insertion or removal.
    fn settle(&mut self) {
        let (l, r) = (weight(&self.left), weight(&self.right));
        if r > 3 * l {
            if let Some(right) = &mut self.right
                && weight(&right.left) >= 2 * weight(&right.right)
            {
                Arc::make_mut(right).rotate_right();
            }
            self.rotate_left();
        } else if l > 3 * r {
            if let Some(left) = &mut self.left
                && weight(&left.right) >= 2 * weight(&left.left)
            {
                Arc::make_mut(left).rotate_left();
            }
            self.rotate_right();
        } else {
            self.add_up();
        }
    }

    fn rotate_left(&mut self) {
        let Some(mut right) = self.right.take() else { return self.add_up() };
        let upper = Arc::make_mut(&mut right);
        self.right = upper.left.take();
        self.add_up();
        std::mem::swap(self, upper);
        self.left = Some(right);
        self.add_up();
    }

    fn rotate_right(&mut self) {
        let Some(mut left) = self.left.take() else { return self.add_up() };
        let upper = Arc::make_mut(&mut left);
        self.left = upper.right.take();
        self.add_up();
        std::mem::swap(self, upper);
        self.right = Some(left);
        self.add_up();
    }
}

fn insert<K: Ord + Clone, V: Clone>(link: &mut Link<K, V>, new: Item<K, V>) {
    let Some(node) = link else {
        *link = Some(Arc::new(Node::leaf(new)));
        return;
    };
    let node = Arc::make_mut(node);
    match new.key.cmp(&node.item.key) {
        Ordering::Less => insert(&mut node.left, new),
        Ordering::Equal => node.item = new,
        Ordering::Greater => insert(&mut node.right, new),
    }
    node.settle();
}

/// The key must be there, lest its path is copied for nothing.
fn remove<K: Ord + Clone, V: Clone>(link: &mut Link<K, V>, key: &K) {
    let Some(node) = link.as_mut().map(Arc::make_mut) else { return };
    match key.cmp(&node.item.key) {
        Ordering::Less => remove(&mut node.left, key),
        Ordering::Greater => remove(&mut node.right, key),
        Ordering::Equal => match take_least(&mut node.right) {
            Some(least) => node.item = least,
            None => {
                let rest = node.left.take();
                *link = rest;
                return;
            }
        },
    }
    node.settle();
}

/// Takes the least item out of a tree.
fn take_least<K: Clone, V: Clone>(link: &mut Link<K, V>) -> Option<Item<K, V>> {
    if link.as_ref()?.left.is_none() {
        let Node { item, right, .. } = Arc::unwrap_or_clone(link.take()?);
        *link = right;
        return Some(item);
    }
    let node = Arc::make_mut(link.as_mut()?);
    let least = take_least(&mut node.left);
    node.settle();
    least
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    impl Summed<u16> for u64 {
        fn hash(&self, key: &u16) -> [u8; 32] {
            *blake3::hash(&[&key.to_le_bytes()[..], &self.to_le_bytes()].concat()).as_bytes()
        }

        fn expiry(&self) -> u64 {
            *self
        }
    }

    fn naive(map: &BTreeMap<u16, u64>, below: impl Fn(u16) -> bool) -> Sum {
        let items = map.iter().filter(|(key, _)| below(**key));
        items.fold(Sum::default(), |sum, (key, value)| sum.plus(Sum::of(value.hash(key))))
    }

    fn depth<K, V>(link: &Link<K, V>) -> u32 {
        link.as_ref().map_or(0, |node| 1 + depth(&node.left).max(depth(&node.right)))
    }

    #[test]
    fn no_order_of_insertion_makes_it_deep() {
        let mut tree = Tree::new();
        (0..20_000_u16).for_each(|key| tree.insert(key, 1));
        assert!(depth(&tree.root) <= 30, "{}", depth(&tree.root));
        (0..19_000_u16).for_each(|key| tree.remove(&key));
        assert!(depth(&tree.root) <= 20, "{}", depth(&tree.root));
        assert_eq!(tree.sum().count, 1000);
    }

    proptest! {
        #[test]
        fn it_is_an_ordered_map_with_sums(
            steps in vec((0..60_u16, proptest::option::of(0..9_u64)), 0..200),
            bound in 0..61_u16, moment in 0..10_u64,
        ) {
            let (mut tree, mut map) = (Tree::new(), BTreeMap::new());
            let before = tree.clone();
            for (key, value) in steps {
                match value {
                    Some(value) => { tree.insert(key, value); map.insert(key, value); }
                    None => { tree.remove(&key); map.remove(&key); }
                }
            }
            prop_assert!(tree.iter().eq(map.iter()));
            prop_assert!(tree.iter_from(|key| *key < bound).eq(map.range(bound..)));
            prop_assert_eq!(tree.sum(), naive(&map, |_| true));
            let below = tree.sum_where(|key| *key < bound);
            prop_assert_eq!(below, naive(&map, |key| key < bound));
            prop_assert_eq!(tree.sum().minus(below), naive(&map, |key| key >= bound));
            for (rank, item) in map.iter().enumerate() {
                prop_assert_eq!(tree.nth(rank as u64), Some(item));
            }
            prop_assert_eq!(tree.nth(map.len() as u64), None);
            let mut expired = tree.expired(moment);
            expired.sort();
            prop_assert!(expired.into_iter().eq(map.iter().filter(|i| *i.1 < moment).map(|i| i.0)));
            prop_assert_eq!(tree.get(&bound), map.get(&bound));
            prop_assert_eq!(before.sum().count, 0, "a copy is not changed");
        }
    }
}
