//! The course of one fault: what happened when, in one list.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use anyhow::Context;
use selvedge_model::{Time, Vni};
use selvedge_netlab::etcd::Seen;
use selvedge_netlab::stream::{Direction, FlowReport, Report};

use crate::statistics::millis;

/// What happened from a fault until the fleet was whole again.
#[derive(Clone, Debug)]
pub(crate) struct Course {
    struck: Time,
    ended: Time,
    settled: Time,
    /// What was written to the store.
    changes: Vec<Seen>,
    /// For each network of the victim, each direction of each family: the end of the longest gap.
    /// For any network that lost packets after the fault: the end of the longest gap then.
    packets: Vec<(Time, String)>,
}

impl Course {
    /// Of a fault that struck, ended, and after which the fleet was whole at these moments; with
    /// what the streams of the victim's `networks` say about the fault, and all of them about the
    /// time after it.
    pub(crate) fn new(
        (struck, ended, settled): (Time, Time, Time),
        changes: Vec<Seen>,
        (report, networks): (&Report, &[Vni]),
        after: &Report,
    ) -> Self {
        let wanted: BTreeSet<u32> = networks.iter().map(|vni| vni.get()).collect();
        let its = report.flows.iter().filter(|flow| wanted.contains(&flow.label));
        let back = its.map(|flow| (gap_end(flow), first_packet(flow)));
        let losing = after.flows.iter().filter(|flow| flow.lost > 0);
        let lost = losing.map(|flow| (gap_end(flow), format!("lost     {}", loss(flow))));
        Self { struck, ended, settled, changes, packets: back.chain(lost).collect() }
    }

    /// Writes it to `folder` as `<name>.txt`.
    pub(crate) fn keep(&self, folder: &Path, name: &str, fault: &str) -> anyhow::Result<()> {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        let path = folder.join(format!("{name}.txt"));
        std::fs::write(&path, self.text(fault))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// One line for each moment at which something happened, in milliseconds since the fault.
    fn text(&self, fault: &str) -> String {
        let mut lines = vec![
            (self.struck, format!("fault    {fault}")),
            (self.ended, "fault    ends".to_owned()),
            (self.settled, "fleet    whole again".to_owned()),
        ];
        let during = |change: &&Seen| (self.struck..=self.settled).contains(&change.at);
        for change in self.changes.iter().filter(during) {
            lines.push((change.at, format!("store    {}", words(change))));
        }
        lines.extend(self.packets.iter().cloned());
        lines.sort();
        let mut text = String::new();
        for (at, line) in lines {
            let since = (at - self.struck).as_secs_f64() * 1000.0;
            writeln!(text, "{since:>10.1} ms  {line}").expect("a string grows");
        }
        text
    }
}

fn gap_end(flow: &FlowReport) -> Time {
    Time::from_micros(flow.gap_began_us) + flow.longest_gap
}

fn first_packet(flow: &FlowReport) -> String {
    format!("packets  {} again, after {:.1} ms", way(flow), millis(flow.longest_gap))
}

fn loss(flow: &FlowReport) -> String {
    let FlowReport { lost, longest_gap, .. } = flow;
    format!("{lost} {}, until now for {:.1} ms", way(flow), millis(*longest_gap))
}

fn way(flow: &FlowReport) -> String {
    let family = if flow.ipv6 { "IPv6" } else { "IPv4" };
    let way = match flow.direction {
        Direction::Out => "out of",
        Direction::Back => "into",
    };
    format!("{family} {way} network {}", flow.label)
}

/// Long values are cut, lest the list be unreadable.
fn words(change: &Seen) -> String {
    let (key, revision) = (&change.key, change.revision);
    match &change.value {
        None => format!("{key} is gone (revision {revision})"),
        Some(value) => {
            let mut short: String = value.chars().take(80).collect();
            if short.len() < value.len() {
                short.push('…');
            }
            format!("{key} = {short} (revision {revision})")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn events_of_all_sources_stand_in_the_order_of_time() {
        let ms = |millis: u64| Time::from_micros(millis * 1000);
        let change = |at, key: &str, value: Option<&str>| Seen {
            at: ms(at),
            revision: at,
            key: key.to_owned(),
            value: value.map(str::to_owned),
        };
        let flow = |ipv6, lost, gap| FlowReport {
            label: 7,
            ipv6,
            direction: Direction::Out,
            sent: 9,
            received: 5,
            lost,
            duplicates: 0,
            reordered: 0,
            longest_gap: Duration::from_millis(gap),
            gap_began_us: 1_001_000,
            longest_delay: Duration::ZERO,
        };
        let report = |flows| Report { flows, sender_late: Duration::ZERO, realtime: true };
        let during = report(vec![flow(false, 4, 300), flow(true, 5, 350)]);
        let after = report(vec![flow(false, 0, 5), flow(true, 2, 1200)]);
        let changes = vec![
            change(900, "/before", Some("x")),
            change(1250, "/selvedge/verdict/gw1/5", Some("{}")),
            change(1400, "/selvedge/live/gw1", None),
        ];
        let vni = Vni::try_from(7).expect("valid");
        let course =
            Course::new((ms(1000), ms(2000), ms(3000)), changes, (&during, &[vni]), &after);
        let expected = [
            "       0.0 ms  fault    cut gw1",
            "     250.0 ms  store    /selvedge/verdict/gw1/5 = {} (revision 1250)",
            "     301.0 ms  packets  IPv4 out of network 7 again, after 300.0 ms",
            "     351.0 ms  packets  IPv6 out of network 7 again, after 350.0 ms",
            "     400.0 ms  store    /selvedge/live/gw1 is gone (revision 1400)",
            "    1000.0 ms  fault    ends",
            "    1201.0 ms  lost     2 IPv6 out of network 7, until now for 1200.0 ms",
            "    2000.0 ms  fleet    whole again\n",
        ];
        assert_eq!(course.text("cut gw1"), expected.join("\n"));
    }
}
