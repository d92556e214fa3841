/// Which counters of a session were seen, so that no datagram is taken twice. Those far behind
/// the greatest count as seen (RFC 4303, section 3.4.3).
#[derive(Clone, Debug, Default)]
pub(super) struct Window {
    /// One more than the greatest; 0 if none was seen.
    next: u64,
    /// The greatest is the lowest bit, those before it follow.
    seen: u128,
}

/// How far datagrams may overtake each other.
const WIDTH: u64 = 128;

impl Window {
    /// Notes a counter whose datagram was found authentic; `false` if it was seen before.
    pub(super) fn take(&mut self, counter: u32) -> bool {
        let counter = u64::from(counter);
        if counter >= self.next {
            let ahead = counter + 1 - self.next;
            self.seen = if ahead < WIDTH { self.seen << ahead | 1 } else { 1 };
            self.next = counter + 1;
            return true;
        }
        let behind = self.next - 1 - counter;
        let fresh = behind < WIDTH && self.seen >> behind & 1 == 0;
        if fresh {
            self.seen |= 1 << behind;
        }
        fresh
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_counter_once() {
        let mut window = Window::default();
        assert!(window.take(0) && !window.take(0));
        assert!(window.take(5) && window.take(3) && !window.take(3) && !window.take(5));
        assert!(window.take(132) && !window.take(4), "too far behind");
        assert!(window.take(6), "just within");
        assert!(window.take(u32::MAX) && !window.take(u32::MAX) && window.take(u32::MAX - 127));
    }

    proptest! {
        #[test]
        fn agrees_with_a_set(counters in prop::collection::vec(0..600_u32, 0..400)) {
            let (mut window, mut seen) = (Window::default(), BTreeSet::new());
            for counter in counters {
                let old = seen.last().is_some_and(|last| counter + 128 <= *last);
                prop_assert_eq!(window.take(counter), !old && seen.insert(counter));
            }
        }
    }
}
