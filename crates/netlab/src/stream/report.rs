//! The log of one direction's packets, and what it says.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use selvedge_model::Time;
use serde::Serialize;

/// Which way packets run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// From `a` to `b`.
    Out,
    /// From `b` to `a`.
    Back,
}

/// What became of the packets of all streams.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Each direction of each stream, in the order in which they were given.
    pub flows: Vec<FlowReport>,
    /// By how much the sender was late, at most. A measurement whose sender was late by long is
    /// void: it would show a gap that the network did not make.
    pub sender_late: Duration,
    /// Whether the threads had real-time priority.
    pub realtime: bool,
}

impl Report {
    /// Packets sent.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.flows.iter().map(|flow| flow.sent).sum()
    }

    /// Packets that did not arrive.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.flows.iter().map(|flow| flow.lost).sum()
    }

    /// The same of some of the streams alone.
    #[must_use]
    pub fn only(&self, chosen: impl Fn(&FlowReport) -> bool) -> Self {
        let flows = self.flows.iter().filter(|flow| chosen(flow)).cloned().collect();
        Self { flows, ..*self }
    }

    /// The longest gap of each label, over both directions of all of its streams, in ascending
    /// order of labels.
    #[must_use]
    pub fn gaps(&self) -> Vec<(u32, Duration)> {
        let mut longest = BTreeMap::new();
        for flow in &self.flows {
            let gap: &mut Duration = longest.entry(flow.label).or_default();
            *gap = (*gap).max(flow.longest_gap);
        }
        longest.into_iter().collect()
    }

    /// The labels of which every direction of every stream has received something.
    #[must_use]
    pub fn flowing(&self) -> BTreeSet<u32> {
        let idle = self.flows.iter().filter(|flow| flow.received == 0);
        let idle: BTreeSet<u32> = idle.map(|flow| flow.label).collect();
        let all = self.flows.iter().map(|flow| flow.label);
        all.filter(|label| !idle.contains(label)).collect()
    }
}

/// What became of the packets of one direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FlowReport {
    /// The stream's label.
    pub label: u32,
    /// Whether they were of IPv6.
    pub ipv6: bool,
    /// Which way they ran.
    pub direction: Direction,
    /// Packets sent.
    pub sent: u64,
    /// Packets that arrived at least once.
    pub received: u64,
    /// Packets that did not arrive.
    pub lost: u64,
    /// Arrivals of packets that had arrived before.
    pub duplicates: u64,
    /// Packets that arrived after one with a greater number.
    pub reordered: u64,
    /// The longest time in which nothing arrived, from the first to the last moment of the
    /// report. Without any outage it is the interval of the stream.
    pub longest_gap: Duration,
    /// When that began, on the clock of [`crate::clock::now`], in microseconds.
    pub gap_began_us: u64,
    /// The longest time that a packet was under way.
    pub longest_delay: Duration,
}

/// When each packet was sent and when packets arrived.
#[derive(Clone, Debug, Default)]
pub(super) struct Packets {
    sent: Vec<Time>,
    arrivals: Vec<(u64, Time)>,
}

impl Packets {
    /// Notes that the next packet goes out, and returns its number.
    pub(super) fn sent(&mut self, now: Time) -> u64 {
        self.sent.push(now);
        self.sent.len() as u64 - 1
    }

    /// Notes an arrival. A number that was never given is nobody's.
    pub(super) fn arrived(&mut self, sequence: u64, now: Time) {
        if sequence < self.sent.len() as u64 {
            self.arrivals.push((sequence, now));
        }
    }

    /// What happened between two moments, as an extract: cheap, because both lists are in the
    /// order of time.
    pub(super) fn between(&self, from: Time, to: Time) -> Extract {
        let sent = within(&self.sent, from, to, |at| *at);
        let first = sent.start;
        // What arrived before the first of these was sent is none of them; what arrives after
        // `to` may be.
        let arrivals = within(&self.arrivals, from, Time::from_micros(u64::MAX), |(_, at)| *at);
        Extract {
            from,
            to,
            first: first as u64,
            sent: self.sent[sent].to_vec(),
            arrivals: self.arrivals[arrivals].to_vec(),
        }
    }
}

fn within<T>(list: &[T], from: Time, to: Time, at: impl Fn(&T) -> Time) -> Range<usize> {
    let start = list.partition_point(|it| at(it) < from);
    start..list.partition_point(|it| at(it) <= to).max(start)
}

/// The packets that were sent between two moments, and all that arrived from the first on.
#[derive(Debug)]
pub(super) struct Extract {
    from: Time,
    to: Time,
    /// The number of the first packet.
    first: u64,
    sent: Vec<Time>,
    arrivals: Vec<(u64, Time)>,
}

impl Extract {
    /// What became of these packets, and the gaps between those moments.
    pub(super) fn report(&self, label: u32, ipv6: bool, direction: Direction) -> FlowReport {
        let mut report = FlowReport {
            label,
            ipv6,
            direction,
            sent: self.sent.len() as u64,
            received: 0,
            lost: 0,
            duplicates: 0,
            reordered: 0,
            longest_gap: Duration::ZERO,
            gap_began_us: 0,
            longest_delay: Duration::ZERO,
        };
        self.count_arrivals(&mut report);
        report.lost = report.sent - report.received;
        self.measure_gaps(&mut report);
        report
    }

    fn count_arrivals(&self, report: &mut FlowReport) {
        let mut seen = vec![false; self.sent.len()];
        let mut greatest = None;
        for &(sequence, arrived) in &self.arrivals {
            let index = sequence.checked_sub(self.first).and_then(|it| usize::try_from(it).ok());
            let Some(index) = index.filter(|index| *index < seen.len()) else { continue };
            if std::mem::replace(&mut seen[index], true) {
                report.duplicates += 1;
                continue;
            }
            report.received += 1;
            report.reordered += u64::from(Some(sequence) < greatest);
            greatest = greatest.max(Some(sequence));
            report.longest_delay = report.longest_delay.max(arrived - self.sent[index]);
        }
    }

    fn measure_gaps(&self, report: &mut FlowReport) {
        let arrivals = self.arrivals.iter().map(|(_, at)| *at);
        let (gap, began) = longest_gap(arrivals, self.from, self.to);
        (report.longest_gap, report.gap_began_us) = (gap, began.as_micros());
    }
}

/// The longest time between two moments in which nothing arrived, and when it began. The edges
/// count: where nothing ever arrives it is all of the time. The arrivals are in the order of time
/// and none is before `from`.
pub(crate) fn longest_gap(
    arrivals: impl Iterator<Item = Time>,
    from: Time,
    to: Time,
) -> (Duration, Time) {
    let (mut last, mut longest) = (from, (Duration::ZERO, Time::from_micros(0)));
    for at in arrivals.take_while(|at| *at <= to).chain([to]) {
        if at - last > longest.0 {
            longest = (at - last, last);
        }
        last = at;
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Time {
        Time::from_micros(millis * 1000)
    }

    fn log(count: u64, arrivals: &[(u64, u64)]) -> Packets {
        let mut packets = Packets::default();
        for number in 0..count {
            assert_eq!(packets.sent(ms(number * 10)), number);
        }
        for (sequence, at) in arrivals {
            packets.arrived(*sequence, ms(*at));
        }
        packets
    }

    #[test]
    fn loss_duplicates_and_order_are_told_apart() {
        let packets = log(6, &[(0, 1), (2, 21), (1, 22), (2, 23), (5, 51), (99, 52)]);
        let report = packets.between(ms(0), ms(60)).report(7, false, Direction::Out);
        assert_eq!((report.sent, report.received, report.lost), (6, 4, 2));
        assert_eq!((report.duplicates, report.reordered), (1, 1));
        assert_eq!(report.longest_gap, Duration::from_millis(28));
        assert_eq!(report.gap_began_us, 23_000);
        assert_eq!(report.longest_delay, Duration::from_millis(12));
    }

    #[test]
    fn silence_at_the_edges_is_a_gap() {
        let silent = log(10, &[]).between(ms(0), ms(100)).report(1, false, Direction::Back);
        assert_eq!((silent.lost, silent.longest_gap), (10, Duration::from_millis(100)));
        let early =
            log(10, &[(0, 1), (1, 11)]).between(ms(0), ms(100)).report(1, false, Direction::Back);
        assert_eq!(early.longest_gap, Duration::from_millis(89));
    }

    #[test]
    fn a_window_sees_its_own_packets_only() {
        let packets = log(10, &[(0, 1), (4, 41), (5, 51), (9, 91)]);
        let report = packets.between(ms(40), ms(55)).report(1, false, Direction::Out);
        assert_eq!((report.sent, report.received, report.lost), (2, 2, 0));
        assert_eq!(report.longest_gap, Duration::from_millis(10));
    }

    #[test]
    fn what_arrives_late_has_arrived() {
        let packets = log(3, &[(0, 1), (1, 12), (2, 70)]);
        let report = packets.between(ms(5), ms(60)).report(1, true, Direction::Out);
        assert_eq!((report.sent, report.received, report.lost), (2, 2, 0));
        assert_eq!(report.longest_gap, Duration::from_millis(48));
    }

    #[test]
    fn a_label_is_as_good_as_the_worst_of_its_streams() {
        let (good, bad) = (log(10, &[(0, 1), (5, 51), (9, 91)]), log(10, &[]));
        let flow = |label, log: &Packets, ipv6| {
            log.between(ms(0), ms(100)).report(label, ipv6, Direction::Out)
        };
        let flows = vec![flow(2, &good, false), flow(2, &bad, true), flow(1, &good, false)];
        let report = Report { flows, sender_late: Duration::ZERO, realtime: true };
        assert_eq!(
            report.gaps(),
            [(1, Duration::from_millis(50)), (2, Duration::from_millis(100))]
        );
        assert_eq!(report.only(|flow| !flow.ipv6).gaps().len(), 2);
        assert_eq!(report.only(|flow| flow.ipv6).gaps().len(), 1);
        assert_eq!(report.flowing(), BTreeSet::from([1]));
    }
}
