//! The numbered packets of the demo, and what is counted of them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::bail;
use selvedge_model::{Time, Vni};
use selvedge_netlab::clock;
use selvedge_netlab::stream::{FlowReport, Spec, Streams};

use super::interrupt::Interrupt;

/// How long packets may be under way when a stream is stopped.
const GRACE: Duration = Duration::from_millis(300);

/// What is longer than any pause between the packets of a stream that works.
const OUTAGE: Duration = Duration::from_millis(500);

/// All streams of the demo.
#[derive(Debug, Default)]
pub(super) struct Measure {
    overlay: Vec<Overlay>,
    networks: Option<Streams>,
}

/// A stream between two hosts of the mesh.
#[derive(Debug)]
struct Overlay {
    hosts: (usize, usize),
    streams: Streams,
}

/// What the loss of a host did.
#[derive(Debug)]
pub(super) struct Failover {
    /// The longest gap of each network of the host, in milliseconds, ascending.
    pub(super) outage_ms: Vec<u64>,
    /// Those of them through which nothing runs yet.
    pub(super) unrestored: usize,
    /// Packets that all other networks lost.
    pub(super) others_lost: u64,
}

/// The sums.
#[derive(Debug, Default)]
pub(super) struct Total {
    pub(super) overlay_sent: u64,
    pub(super) overlay_lost: u64,
    pub(super) network_sent: u64,
    pub(super) sender_late_ms: u64,
}

impl Measure {
    pub(super) fn start_overlay(
        &mut self,
        hosts: (usize, usize),
        specs: &[Spec],
    ) -> anyhow::Result<()> {
        self.overlay.push(Overlay { hosts, streams: Streams::start(specs)? });
        Ok(())
    }

    pub(super) fn start_networks(&mut self, specs: &[Spec]) -> anyhow::Result<()> {
        self.networks = Some(Streams::start(specs)?);
        Ok(())
    }

    /// Stops the streams from and to a host, before it is cut off.
    pub(super) fn end_overlay(&mut self, host: usize) {
        let its = |overlay: &&mut Overlay| overlay.hosts.0 == host || overlay.hosts.1 == host;
        for overlay in self.overlay.iter_mut().filter(its) {
            overlay.streams.stop(GRACE);
        }
    }

    /// Packets sent through the given networks between two moments, and those of them lost.
    pub(super) fn packets(&self, vnis: &BTreeSet<Vni>, from: Time, to: Time) -> (u64, u64) {
        let flows = self.flows(from, settled(to));
        let flows = || flows.iter().filter(|flow| of(vnis, flow));
        (flows().map(|flow| flow.sent).sum(), flows().map(|flow| flow.lost).sum())
    }

    /// What happened between the loss of a host, whose networks `victims` were, and `to`.
    pub(super) fn failover(&self, victims: &BTreeSet<Vni>, from: Time, to: Time) -> Failover {
        let to = settled(to);
        let (lost, others): (Vec<_>, Vec<_>) =
            self.flows(from, to).into_iter().partition(|flow| of(victims, flow));
        let outage = |vni: &Vni| {
            let its = lost.iter().filter(|flow| flow.label == vni.get());
            millis(its.map(|flow| flow.longest_gap).max().unwrap_or_default())
        };
        let mut outage_ms: Vec<u64> = victims.iter().map(outage).collect();
        outage_ms.sort_unstable();
        let dead = |flow: &&FlowReport| open(flow, to);
        let unrestored: BTreeSet<u32> = lost.iter().filter(dead).map(|flow| flow.label).collect();
        Failover {
            outage_ms,
            unrestored: unrestored.len(),
            others_lost: others.iter().map(|flow| flow.lost).sum(),
        }
    }

    /// The figures of this moment, for people.
    pub(super) fn live(&self) -> String {
        let sum = |streams: &Streams| {
            streams
                .live()
                .iter()
                .fold((0, 0), |(sent, received), live| (sent + live.sent, received + live.received))
        };
        let mesh = self.overlay.iter().map(|overlay| sum(&overlay.streams));
        let (sent, received) = mesh.fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        let mut text = format!("mesh: {sent} packets, {} missing", missing(sent, received));
        if let Some((sent, received)) = self.networks.as_ref().map(sum) {
            let missing = missing(sent, received);
            text.push_str(&format!("   gateways: {sent} packets, {missing} missing"));
        }
        text
    }

    /// Stops everything and adds it up.
    pub(super) fn finish(&mut self) -> Total {
        let mut total = Total::default();
        for overlay in &mut self.overlay {
            overlay.streams.stop(GRACE);
            let report = overlay.streams.report();
            total.overlay_sent += report.sent();
            total.overlay_lost += report.lost();
            total.sender_late_ms = total.sender_late_ms.max(millis(report.sender_late));
        }
        if let Some(networks) = &mut self.networks {
            networks.stop(GRACE);
            let report = networks.report();
            total.network_sent = report.sent();
            total.sender_late_ms = total.sender_late_ms.max(millis(report.sender_late));
        }
        total
    }

    fn flows(&self, from: Time, to: Time) -> Vec<FlowReport> {
        self.networks.iter().flat_map(|streams| streams.report_between(from, to).flows).collect()
    }
}

/// Sends packets until at least one has arrived in each direction of each stream. Before that,
/// ARP, handshakes and learning would count as loss.
pub(super) fn until_all_flow(
    specs: &[Spec],
    limit: Duration,
    interrupt: &Interrupt,
) -> anyhow::Result<()> {
    let streams = Streams::start(specs)?;
    let end = Instant::now() + limit;
    loop {
        interrupt.check()?;
        std::thread::sleep(Duration::from_millis(100));
        let flows = streams.report().flows;
        let silent = flows.iter().filter(|flow| flow.received == 0).count();
        if silent == 0 {
            return Ok(());
        }
        if Instant::now() >= end {
            bail!("nothing arrived in {silent} of {} directions", flows.len());
        }
    }
}

fn of(vnis: &BTreeSet<Vni>, flow: &FlowReport) -> bool {
    Vni::try_from(flow.label).is_ok_and(|vni| vnis.contains(&vni))
}

/// Waits until what was sent before `to` has arrived, so that it does not count as lost.
fn settled(to: Time) -> Time {
    std::thread::sleep((to + GRACE) - clock::now());
    to
}

/// Whether an outage has not ended by `to`. The time since the last packet is a gap too, so
/// that only one that is longer than any pause between packets counts.
fn open(flow: &FlowReport, to: Time) -> bool {
    let gap_end = Time::from_micros(flow.gap_began_us) + flow.longest_gap;
    flow.received == 0 || (gap_end >= to && flow.longest_gap > OUTAGE)
}

fn missing(sent: u64, received: u64) -> u64 {
    sent.saturating_sub(received)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
