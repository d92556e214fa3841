//! What happens under packets to a fleet that nothing should disturb.

use std::time::Duration;

use selvedge_model::Time;
use selvedge_netlab::clock::now;
use serde::Serialize;

use crate::fleet::{Fleet, flowing};
use crate::statistics::millis;
use crate::view::handovers;

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Steady {
    pub(crate) networks: usize,
    pub(crate) seconds: f64,
    pub(crate) packets_sent: u64,
    pub(crate) packets_lost: u64,
    /// Changes of owners in the store.
    pub(crate) moves: usize,
    /// Verdicts in the store.
    pub(crate) verdicts: usize,
    /// Networks on which packets ran at the end.
    pub(crate) flowing: usize,
    pub(crate) longest_gap_ms: f64,
    pub(crate) sender_late_ms: f64,
}

impl Steady {
    /// Runs `work` while packets run on all networks, and measures what it did to them.
    pub(crate) fn under(
        fleet: &mut Fleet,
        work: impl FnOnce(&mut Fleet) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let all = fleet.networks();
        let mut streams = fleet.start_streams(&all)?;
        let from = now();
        std::thread::sleep(EDGE);
        work(fleet)?;
        std::thread::sleep(EDGE);
        let flowing = flowing(&streams, &all).len();
        let to = now();
        streams.stop(EDGE);
        fleet.wait_watched()?;
        let report = streams.report_between(from, to);
        let longest = report.gaps().into_iter().map(|(_, gap)| gap).max();
        Ok(Self {
            networks: all.len(),
            seconds: (to - from).as_secs_f64().round(),
            packets_sent: report.sent(),
            packets_lost: report.lost(),
            moves: handovers(&fleet.changes(), from).len(),
            verdicts: verdicts(fleet, from),
            flowing,
            longest_gap_ms: millis(longest.unwrap_or_default()),
            sender_late_ms: millis(report.sender_late),
        })
    }

    /// What should not have happened.
    pub(crate) fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        if self.packets_lost > 0 {
            let (lost, sent) = (self.packets_lost, self.packets_sent);
            broken.push(format!("{lost} of {sent} packets were lost"));
        }
        if self.moves > 0 {
            broken.push(format!("{} networks got another owner", self.moves));
        }
        if self.flowing < self.networks {
            let (flowing, networks) = (self.flowing, self.networks);
            broken.push(format!("packets run on {flowing} of {networks} networks at the end"));
        }
        broken
    }
}

/// How long packets run before and after the work.
const EDGE: Duration = Duration::from_secs(1);

fn verdicts(fleet: &Fleet, from: Time) -> usize {
    let changes = fleet.changes().into_iter();
    let written = changes.filter(|it| it.at >= from && it.value.is_some());
    written.filter(|it| it.key.starts_with("/selvedge/verdict/")).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_happens_is_too_much() {
        let quiet = Steady {
            networks: 3,
            seconds: 1.0,
            packets_sent: 10,
            packets_lost: 0,
            moves: 0,
            verdicts: 0,
            flowing: 3,
            longest_gap_ms: 5.0,
            sender_late_ms: 0.0,
        };
        assert!(quiet.broken().is_empty());
        for disturbed in [
            Steady { packets_lost: 1, ..quiet.clone() },
            Steady { moves: 1, ..quiet.clone() },
            Steady { flowing: 2, ..quiet.clone() },
        ] {
            assert_eq!(disturbed.broken().len(), 1, "{disturbed:?}");
        }
    }
}
