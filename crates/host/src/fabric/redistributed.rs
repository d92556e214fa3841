//! What zebra knows of the routes that it is to redistribute.
//!
//! The kernel tells it of each change once. What does not fit into the buffer of its netlink socket
//! is lost, without a word in its log, and zebra looks at the routes again only when it is started:
//! it would redistribute what is gone, or nothing of what is there, for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use selvedge_model::Prefix;
use serde_json::{Map, Value};

use super::ROUTE_METRIC;
use crate::frr::{self, Vty};

/// The least time between two questions: each makes zebra print all of its routes.
const PAUSE: Duration = Duration::from_secs(20);

/// So many are told again at once: all of them might not fit either.
const AT_ONCE: usize = 500;

/// A route of ours: its destination and the number of its interface.
pub(super) type Key = (Prefix, u32);

/// What zebra has not yet read and what it has missed look the same: so long is waited. A zebra with
/// the changes of thousands of networks in its hands has been seen half a minute behind.
const LAG: Duration = Duration::from_secs(45);

/// Compares what zebra has taken for the kernel's routes with what the kernel has.
#[derive(Debug)]
pub(super) struct Redistributed {
    zebra: Vty,
    /// The routes that zebra and kernel disagree about: whether the kernel has it, and since when.
    differing: BTreeMap<Key, (bool, Instant)>,
    asked: Option<Instant>,
    pub(super) lag: Duration,
    pub(super) pause: Duration,
}

impl Redistributed {
    pub(super) const fn new(zebra: Vty) -> Self {
        Self { zebra, differing: BTreeMap::new(), asked: None, lag: LAG, pause: PAUSE }
    }

    /// Whether it is time to look again.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        // Not at the start, which somebody waits for.
        now.duration_since(*self.asked.get_or_insert(now)) >= self.pause
    }

    /// Of the `routes` that are ours to make, for each of which is said whether the kernel has it,
    /// those of which zebra does not know that, and has not known it for a while. They are doubted
    /// anew from now on.
    ///
    /// # Errors
    /// If zebra cannot be asked, or answers something else. Then nothing is known of any route.
    pub(super) async fn missed(
        &mut self,
        routes: &BTreeMap<Key, bool>,
        now: Instant,
    ) -> Result<Vec<Key>, frr::Error> {
        self.asked = Some(now);
        let before = std::mem::take(&mut self.differing);
        let known = self.known().await?;
        self.differing = before;
        Ok(self.judge(routes, &known, now))
    }

    async fn known(&mut self) -> Result<BTreeSet<Key>, frr::Error> {
        let mut known = BTreeSet::new();
        for command in ["show ip route kernel json", "show ipv6 route kernel json"] {
            let answer: Map<String, Value> = self.zebra.query(command).await?;
            known.extend(keys(&answer));
        }
        Ok(known)
    }

    fn judge(
        &mut self,
        routes: &BTreeMap<Key, bool>,
        known: &BTreeSet<Key>,
        now: Instant,
    ) -> Vec<Key> {
        let differ = |(key, there): &(&Key, &bool)| **there != known.contains(key);
        let before = std::mem::take(&mut self.differing);
        let doubt = |(key, there): (&Key, &bool)| {
            let same = before.get(key).filter(|(was, _)| was == there);
            (*key, same.copied().unwrap_or((*there, now)))
        };
        self.differing = routes.iter().filter(differ).map(doubt).collect();
        if self.differing.len() < before.len() {
            // It is late, and catching up: more to read would not help.
            return Vec::new();
        }
        let lag = self.lag;
        let missed = |since: Instant| now.duration_since(since) >= lag;
        let missed = self.differing.extract_if(.., |_, (_, since)| missed(*since));
        missed.map(|(key, _)| key).take(AT_ONCE).collect()
    }
}

/// The routes of our metric in zebra's answer.
fn keys(answer: &Map<String, Value>) -> impl Iterator<Item = Key> {
    answer
        .iter()
        .filter_map(|(prefix, routes)| Some((prefix.parse().ok()?, routes.as_array()?)))
        .flat_map(|(prefix, routes)| {
            let ours = routes.iter().filter(|route| route["metric"] == ROUTE_METRIC);
            let hops = ours.filter_map(|route| route["nexthops"].as_array()).flatten();
            let indices = hops.filter_map(|hop| hop["interfaceIndex"].as_u64()?.try_into().ok());
            indices.map(move |index| (prefix, index)).collect::<Vec<_>>()
        })
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
        assert_eq!(keys(answer.as_object().expect("an object")).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn what_lasts_was_missed() {
        let mut zebra = Redistributed::new(Vty::new(Path::new("/nowhere"), None, "zebra"));
        let start = Instant::now();
        let (gone, unheard) = (key("10.0.1.0/24", 1), key("10.0.2.0/24", 2));
        let (late, well) = (key("10.0.3.0/24", 3), key("10.0.4.0/24", 4));
        let foreign = key("10.0.5.0/24", 5);
        let routes = [(gone, false), (unheard, true), (late, true), (well, true)].into();
        let known = BTreeSet::from([gone, well, foreign]);
        assert!(zebra.judge(&routes, &known, start).is_empty());
        let mut known = known;
        known.insert(late);
        assert!(zebra.judge(&routes, &known, start + LAG / 2).is_empty());
        known.remove(&late);
        assert_eq!(zebra.judge(&routes, &known, start + LAG), [gone, unheard]);
        assert!(zebra.judge(&routes, &known, start + LAG).is_empty(), "it has just been told");
        assert_eq!(zebra.judge(&routes, &known, start + 2 * LAG), [gone, unheard, late]);
    }
}
