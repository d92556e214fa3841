//! What zebra knows of the routes that it is to redistribute.
//!
//! The kernel tells it of each change once. What does not fit into the buffer of its netlink socket
//! is lost, without a word in its log, and zebra looks at the routes again only when it is started:
//! it would redistribute what is gone, or nothing of what is there, for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use selvedge_model::Prefix;
use serde_json::Value;

use super::ROUTE_METRIC;
use crate::frr::{self, Vty};
use crate::health::ask;

/// A route of ours: its destination and the number of its interface.
pub(super) type Key = (Prefix, u32);

/// What zebra has not yet read and what it has missed look the same: so long is waited. A zebra with
/// the changes of thousands of networks in its hands has been seen half a minute behind.
const LAG: Duration = Duration::from_secs(45);

/// Compares what zebra has taken for the kernel's routes with what the kernel has.
#[derive(Debug)]
pub(super) struct Redistributed {
    zebra: Vty,
    /// Since when zebra and kernel disagree about a route.
    differing: BTreeMap<Key, Instant>,
    pub(super) lag: Duration,
}

impl Redistributed {
    pub(super) const fn new(zebra: Vty) -> Self {
        Self { zebra, differing: BTreeMap::new(), lag: LAG }
    }

    /// Of the routes that are `ours` to make, those of which zebra does not know whether they are
    /// `there`, and has not known for a while. They are doubted anew from now on.
    ///
    /// # Errors
    /// If zebra cannot be asked. Then nothing is known of any route.
    pub(super) async fn missed(
        &mut self,
        ours: &BTreeSet<Key>,
        there: &BTreeSet<Key>,
        now: Instant,
    ) -> Result<Vec<Key>, frr::Error> {
        let known = self.known().await?;
        Ok(self.judge(ours, there, &known, now))
    }

    async fn known(&mut self) -> Result<BTreeSet<Key>, frr::Error> {
        let mut known = BTreeSet::new();
        for command in ["show ip route kernel json", "show ipv6 route kernel json"] {
            known.extend(keys(&ask(&mut self.zebra, command).await?));
        }
        Ok(known)
    }

    fn judge(
        &mut self,
        ours: &BTreeSet<Key>,
        there: &BTreeSet<Key>,
        known: &BTreeSet<Key>,
        now: Instant,
    ) -> Vec<Key> {
        let differ = |key: &&Key| there.contains(key) != known.contains(key);
        let before = std::mem::take(&mut self.differing);
        let since = |key: &Key| (*key, before.get(key).copied().unwrap_or(now));
        self.differing = ours.iter().filter(differ).map(since).collect();
        let lag = self.lag;
        let missed = |since: &Instant| now.duration_since(*since) >= lag;
        self.differing.extract_if(.., |_, since| missed(since)).map(|(key, _)| key).collect()
    }
}

/// The routes of our metric in zebra's answer.
fn keys(answer: &Value) -> impl Iterator<Item = Key> {
    let all = answer.as_object().into_iter().flatten();
    all.filter_map(|(prefix, routes)| Some((prefix.parse().ok()?, routes.as_array()?))).flat_map(
        |(prefix, routes)| {
            let ours = routes.iter().filter(|route| route["metric"] == ROUTE_METRIC);
            let hops = ours.filter_map(|route| route["nexthops"].as_array()).flatten();
            let indices = hops.filter_map(|hop| hop["interfaceIndex"].as_u64()?.try_into().ok());
            indices.map(move |index| (prefix, index)).collect::<Vec<_>>()
        },
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn key(prefix: &str, index: u32) -> Key {
        (prefix.parse().expect("a prefix"), index)
    }

    #[test]
    fn routes_of_our_metric_are_taken_from_the_answer() {
        let route = |metric: u32, index: u32| {
            json!({"protocol": "kernel", "metric": metric,
                   "nexthops": [{"interfaceIndex": index, "interfaceName": "br1"}]})
        };
        let answer = json!({
            "0.0.0.0/0": [route(0, 2)],
            "10.0.1.0/24": [route(7, 4), route(ROUTE_METRIC, 5)],
            "fd00::/64": [route(ROUTE_METRIC, 6)],
            "nonsense": [route(ROUTE_METRIC, 7)],
            "10.0.2.0/24": "nonsense",
        });
        let expected = [key("10.0.1.0/24", 5), key("fd00::/64", 6)];
        assert_eq!(keys(&answer).collect::<Vec<_>>(), expected);
        assert_eq!(keys(&Value::Null).count(), 0);
    }

    #[test]
    fn what_lasts_was_missed() {
        let mut zebra = Redistributed::new(Vty::new(Path::new("/nowhere"), None, "zebra"));
        let start = Instant::now();
        let (gone, unheard) = (key("10.0.1.0/24", 1), key("10.0.2.0/24", 2));
        let (late, well) = (key("10.0.3.0/24", 3), key("10.0.4.0/24", 4));
        let foreign = key("10.0.5.0/24", 5);
        let ours = BTreeSet::from([gone, unheard, late, well]);
        let there = BTreeSet::from([unheard, late, well]);
        let known = BTreeSet::from([gone, well, foreign]);
        assert!(zebra.judge(&ours, &there, &known, start).is_empty());
        let mut known = known;
        known.insert(late);
        assert!(zebra.judge(&ours, &there, &known, start + LAG / 2).is_empty());
        known.remove(&late);
        assert_eq!(zebra.judge(&ours, &there, &known, start + LAG), [gone, unheard]);
        assert!(
            zebra.judge(&ours, &there, &known, start + LAG).is_empty(),
            "it has just been told"
        );
        assert_eq!(zebra.judge(&ours, &there, &known, start + 2 * LAG), [gone, unheard, late]);
    }
}
