//! Packets between members.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use selvedge_model::Time;
use selvedge_netlab::Host;
use selvedge_netlab::clock::{now, wait_until};
use selvedge_netlab::stream::{End, Spec, Streams};

use super::{MESH, Overlay};
use crate::statistics::millis;

/// Running packets between pairs of hosts, both ways.
pub(crate) struct Paths {
    pub(crate) streams: Streams,
    /// The names at the ends of each; its place is the label of its packets.
    pairs: Vec<(String, String)>,
}

/// A place that packets run from and to.
pub(crate) type Place<'a> = (&'a Host, IpAddr);

impl Paths {
    /// Between all hosts of the mesh, a packet each way every `interval`.
    pub(crate) fn between_all(overlay: &Overlay, interval: Duration) -> anyhow::Result<Self> {
        let mut places = Vec::new();
        for name in overlay.names() {
            places.push((&overlay.member(&name)?.host, overlay.address(&name, MESH)?.into()));
        }
        Self::start(&every_pair(&places), interval)
    }

    /// Between these, a packet each way every `interval`.
    pub(crate) fn start(pairs: &[(Place, Place)], interval: Duration) -> anyhow::Result<Self> {
        let spec = |(label, (a, b)): (u32, &(Place, Place))| {
            let port = FIRST_PORT + u16::try_from(label).unwrap_or_default();
            let end = |(host, address): &Place| End {
                host: (*host).clone(),
                address: SocketAddr::new(*address, port),
                device: None,
            };
            Spec { label, a: end(a), b: end(b), interval }
        };
        let specs: Vec<Spec> = (0..).zip(pairs).map(spec).collect();
        let name = |(host, _): &Place| host.name().to_owned();
        let pairs = pairs.iter().map(|(a, b)| (name(a), name(b))).collect();
        Ok(Self { streams: Streams::start(&specs)?, pairs })
    }

    /// How many pairs there are.
    pub(crate) fn count(&self) -> usize {
        self.pairs.len()
    }

    /// Waits until packets sent from now on arrive on all pairs in both directions, and says
    /// which do not within `limit`.
    pub(crate) fn wait_all(&self, limit: Duration) -> Result<(), String> {
        self.wait_some(limit, |_, _| true)
    }

    /// The same of the pairs that are `chosen` by their ends.
    pub(crate) fn wait_some(
        &self,
        limit: Duration,
        chosen: impl Fn(&str, &str) -> bool,
    ) -> Result<(), String> {
        let from = now();
        let idle = || self.idle_since(from, &chosen);
        let waited = wait_until("packets on all paths", limit, || Ok(idle().is_empty()));
        waited.map_err(|error| format!("{error}: nothing between {}", idle().join(", ")))
    }

    /// The pairs on which packets sent since `from` have not arrived in both directions.
    fn idle_since(&self, from: Time, chosen: &impl Fn(&str, &str) -> bool) -> Vec<String> {
        let flowing = self.streams.report_between(from, now()).flowing();
        let labelled = (0..).zip(&self.pairs).filter(|(_, (a, b))| chosen(a, b));
        let idle = labelled.filter(|(label, _)| !flowing.contains(label));
        idle.map(|(_, (a, b))| format!("{a} and {b}")).collect()
    }

    /// The longest gap of each pair that is `chosen` by its ends, between two moments, in
    /// milliseconds.
    pub(crate) fn gaps(
        &self,
        (from, to): (Time, Time),
        chosen: impl Fn(&str, &str) -> bool,
    ) -> Vec<f64> {
        let gaps = self.streams.report_between(from, to).gaps();
        let pairs = gaps.into_iter().zip(&self.pairs);
        pairs.filter(|(_, (a, b))| chosen(a, b)).map(|((_, gap), _)| millis(gap)).collect()
    }

    /// How many packets between pairs that are `chosen` were lost.
    pub(crate) fn lost(
        &self,
        (from, to): (Time, Time),
        chosen: impl Fn(&str, &str) -> bool,
    ) -> u64 {
        let report = self.streams.report_between(from, to);
        let pairs = report.flows.chunks(2).zip(&self.pairs);
        let lost = pairs.filter(|(_, (a, b))| chosen(a, b)).map(|(flows, _)| flows);
        lost.flatten().map(|flow| flow.lost).sum()
    }

    /// By how much the sender was late at most, in milliseconds.
    pub(crate) fn sender_late_ms(&self, (from, to): (Time, Time)) -> f64 {
        millis(self.streams.report_between(from, to).sender_late)
    }
}

/// Each two of `places`.
pub(crate) fn every_pair<T: Copy>(places: &[T]) -> Vec<(T, T)> {
    let later = |(index, a): (usize, &T)| {
        let a = *a;
        places[index + 1..].iter().map(move |b| (a, *b)).collect::<Vec<_>>()
    };
    places.iter().enumerate().flat_map(later).collect()
}

/// Above this, each pair has a port of its own.
const FIRST_PORT: u16 = 20_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_two_meet_once() {
        assert_eq!(every_pair(&[1, 2, 3]), [(1, 2), (1, 3), (2, 3)]);
        assert_eq!(every_pair(&[1]), []);
    }
}
