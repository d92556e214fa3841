//! The log of one direction's packets, and what it says.

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

    /// The longest gap of each stream, over both directions, with the stream's label.
    #[must_use]
    pub fn gaps(&self) -> Vec<(u32, Duration)> {
        let longest = |both: &[FlowReport]| both.iter().map(|flow| flow.longest_gap).max();
        self.flows.chunks(2).filter_map(|both| Some((both[0].label, longest(both)?))).collect()
    }
}

/// What became of the packets of one direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FlowReport {
    /// The stream's label.
    pub label: u32,
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

    /// What became of the packets sent from `from` until `to`, and the gaps between those moments.
    pub(super) fn report(
        &self,
        label: u32,
        direction: Direction,
        from: Time,
        to: Time,
    ) -> FlowReport {
        let mut report = FlowReport {
            label,
            direction,
            sent: self.sent.iter().filter(|at| (from..=to).contains(at)).count() as u64,
            received: 0,
            lost: 0,
            duplicates: 0,
            reordered: 0,
            longest_gap: Duration::ZERO,
            gap_began_us: 0,
            longest_delay: Duration::ZERO,
        };
        self.count_arrivals(from, to, &mut report);
        report.lost = report.sent - report.received;
        self.measure_gaps(from, to, &mut report);
        report
    }

    fn count_arrivals(&self, from: Time, to: Time, report: &mut FlowReport) {
        let mut seen = vec![false; self.sent.len()];
        let mut greatest = None;
        for &(sequence, arrived) in &self.arrivals {
            let index = usize::try_from(sequence).expect("`arrived` has checked it");
            if !(from..=to).contains(&self.sent[index]) {
                continue;
            }
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

    /// The edges count: a stream of which nothing ever arrives has a gap from `from` to `to`.
    fn measure_gaps(&self, from: Time, to: Time, report: &mut FlowReport) {
        let within = self.arrivals.iter().map(|(_, at)| *at).filter(|at| (from..=to).contains(at));
        let mut last = from;
        for at in within.chain([to]) {
            if at - last > report.longest_gap {
                report.longest_gap = at - last;
                report.gap_began_us = last.as_micros();
            }
            last = at;
        }
    }
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
        let report = packets.report(7, Direction::Out, ms(0), ms(60));
        assert_eq!((report.sent, report.received, report.lost), (6, 4, 2));
        assert_eq!((report.duplicates, report.reordered), (1, 1));
        assert_eq!(report.longest_gap, Duration::from_millis(28));
        assert_eq!(report.gap_began_us, 23_000);
        assert_eq!(report.longest_delay, Duration::from_millis(12));
    }

    #[test]
    fn silence_at_the_edges_is_a_gap() {
        let silent = log(10, &[]).report(1, Direction::Back, ms(0), ms(100));
        assert_eq!((silent.lost, silent.longest_gap), (10, Duration::from_millis(100)));
        let early = log(10, &[(0, 1), (1, 11)]).report(1, Direction::Back, ms(0), ms(100));
        assert_eq!(early.longest_gap, Duration::from_millis(89));
    }

    #[test]
    fn a_window_sees_its_own_packets_only() {
        let packets = log(10, &[(0, 1), (4, 41), (5, 51), (9, 91)]);
        let report = packets.report(1, Direction::Out, ms(40), ms(55));
        assert_eq!((report.sent, report.received, report.lost), (2, 2, 0));
        assert_eq!(report.longest_gap, Duration::from_millis(10));
    }
}
