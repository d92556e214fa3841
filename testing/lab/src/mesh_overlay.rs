//! `mesh-overlay`: overlay networks over a mesh. Two sites with stations and the gateways have
//! nothing in common but an underlay that is not to be trusted. Packets run between the sites, and
//! to the world by way of gateways, which are cut off one after the other; whatever any host puts
//! on the underlay meanwhile is sorted, and nothing but what is meant for it may be there.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use selvedge_netlab::campus::AccessPoint;
use selvedge_netlab::clock::{now, wait_until};
use selvedge_netlab::stream::Streams;
use selvedge_netlab::tap::{self, Class, Tap};
use serde::Serialize;

use crate::fleet::{Fabric, Fleet, WIREGUARD_PORT, flowing};
use crate::progress::say;
use crate::statistics::millis;
use crate::{Outcome, failover};

/// Options of the scenario.
#[derive(Clone, Debug, Args)]
#[group(id = "mesh-overlay")]
pub(crate) struct Options {
    /// `--fabric` has no meaning here
    #[command(flatten)]
    failover: failover::Options,
    /// The bound on the longest gap between stations of the two sites, in milliseconds
    #[arg(long, value_name = "MS")]
    max_sites_gap_ms: Option<f64>,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    #[serde(flatten)]
    failover: failover::Figures,
    /// Packets between stations of the two sites, all the time.
    sites_sent: u64,
    sites_lost: u64,
    sites_gap_ms: f64,
    underlay: Underlay,
}

/// Frames that hosts put on the underlay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct Underlay {
    /// WireGuard's, by port and form.
    wireguard: u64,
    /// QUIC and sealed datagrams between the agents of the mesh.
    agents: u64,
    /// Authenticated probes between gateways.
    probes: u64,
    /// ARP, ND and MLD for addresses of the underlay.
    neighbours: u64,
    /// What may not be there: VXLAN, packets of stations, and anything else.
    vxlan: u64,
    stations: u64,
    other: u64,
}

/// Runs the scenario.
pub(crate) fn run(options: &Options) -> anyhow::Result<Outcome<Figures>> {
    let mut options = options.clone();
    options.failover.fleet.fabric = Fabric::Mesh;
    let mut fleet = Fleet::start(&options.failover.fleet)?;
    let ports: Vec<_> = fleet.campus.underlay.iter().collect();
    let tap = Tap::new("underlay", &ports, &CLASSES)?;
    prove(&fleet, &tap)?;
    let before = Underlay::of(&tap)?;
    let families = options.failover.fleet.families();
    let mut sites = Streams::start(&fleet.campus.streams_between_sites(families, INTERVAL))?;
    wait_running(&mut fleet, &sites)?;
    let began = now();
    let Outcome { figures, mut broken } = failover::run_on(&mut fleet, &options.failover)?;
    let ended = now();
    sites.stop(GRACE);
    let report = sites.report_between(began, ended);
    let gaps = report.gaps().into_iter().map(|(_, gap)| gap);
    let figures = Figures {
        failover: figures,
        sites_sent: report.sent(),
        sites_lost: report.lost(),
        sites_gap_ms: millis(gaps.max().unwrap_or_default()),
        underlay: Underlay::of(&tap)?.since(before),
    };
    broken.extend(wrong(&options, &figures));
    Ok(Outcome { figures, broken })
}

/// The pause between two packets of a direction between the sites.
const INTERVAL: Duration = Duration::from_millis(100);
/// How long the last packets may take to arrive.
const GRACE: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(60);

/// What is looked for, in this order: what may not be there comes first. WireGuard's packets are
/// known by its port, a type of 1 to 4, and three zeroes.
const CLASSES: [Class<'static>; 6] = [
    (
        "stations",
        &[
            "ip saddr { 10.0.0.0/8, 198.18.0.0/16 }",
            "ip daddr { 10.0.0.0/8, 198.18.0.0/16 }",
            "ip6 saddr { fd5e:10::/48, fd5e:ff::/64 }",
            "ip6 daddr { fd5e:10::/48, fd5e:ff::/64 }",
        ],
    ),
    ("vxlan", &["udp dport 4789"]),
    ("wireguard", &["udp dport 51820 @th,64,8 { 1, 2, 3, 4 } @th,72,24 0"]),
    ("agents", &["udp dport 7654"]),
    ("probes", &["udp dport 7656"]),
    (
        "neighbours",
        &[
            "arp saddr ip 172.16.0.0/16",
            "ip6 saddr { ::/128, fe80::/10, fd5e:16::/64 } icmpv6 type { nd-router-solicit, \
             nd-neighbor-solicit, nd-neighbor-advert, mld-listener-report, mld-listener-done, \
             mld2-listener-report }",
        ],
    ),
];

/// Shows that what may not be there would be seen: puts it there.
fn prove(fleet: &Fleet, tap: &Tap) -> anyhow::Result<()> {
    let host = &fleet.campus.access_point;
    let [station, address] = ["10.254.0.1", &AccessPoint::FABRIC.to_string()];
    host.ip(&format!("address add {station}/32 dev fab0\n"))?;
    let before = Underlay::of(tap)?;
    let send = |from: &str, port: u16, payload: &'static [u8]| {
        let from = SocketAddr::new(from.parse()?, 0);
        let to = SocketAddr::new(AccessPoint::OTHER.into(), port);
        let sent: std::io::Result<usize> =
            host.run(move || UdpSocket::bind(from)?.send_to(payload, to))?;
        sent.context("cannot send what may not be there").map(drop)
    };
    send(station, WIREGUARD_PORT, &[1, 0, 0, 0])?;
    send(address, 4789, b"a frame")?;
    send(address, WIREGUARD_PORT, b"in the clear")?;
    let all = |seen: Underlay| seen.stations > 0 && seen.vxlan > 0 && seen.other > 0;
    wait_until("what was put on the underlay to be seen", PATIENCE, || {
        Ok(Underlay::of(tap).is_ok_and(|seen| all(seen.since(before))))
    })?;
    host.ip(&format!("address del {station}/32 dev fab0\n"))?;
    // What answers there are, that a port is closed, have come by then.
    std::thread::sleep(GRACE);
    Ok(())
}

fn wait_running(fleet: &mut Fleet, sites: &Streams) -> anyhow::Result<()> {
    say!("waiting for packets between the sites");
    let all = fleet.networks();
    let running = wait_until("packets between the sites on all networks", PATIENCE, || {
        Ok(flowing(sites, &all).len() == all.len())
    });
    running.map_err(|error| fleet.explained(error.into()))
}

impl Underlay {
    fn of(tap: &Tap) -> anyhow::Result<Self> {
        let frames = tap.frames()?;
        let count = |class: &str| frames.get(class).copied().unwrap_or_default();
        Ok(Self {
            wireguard: count("wireguard"),
            agents: count("agents"),
            probes: count("probes"),
            neighbours: count("neighbours"),
            vxlan: count("vxlan"),
            stations: count("stations"),
            other: count(tap::OTHER),
        })
    }

    fn since(self, before: Self) -> Self {
        Self {
            wireguard: self.wireguard - before.wireguard,
            agents: self.agents - before.agents,
            probes: self.probes - before.probes,
            neighbours: self.neighbours - before.neighbours,
            vxlan: self.vxlan - before.vxlan,
            stations: self.stations - before.stations,
            other: self.other - before.other,
        }
    }
}

fn wrong(options: &Options, figures: &Figures) -> Vec<String> {
    let Underlay { wireguard, vxlan, stations, other, .. } = figures.underlay;
    let mut wrong = Vec::new();
    for (what, frames) in [("VXLAN", vxlan), ("of stations", stations), ("unknown", other)] {
        if frames > 0 {
            wrong.push(format!("{frames} frames on the underlay were {what}, in the clear"));
        }
    }
    if wireguard < figures.sites_sent {
        wrong.push(format!("WireGuard put {wireguard} frames on the underlay: too few to be true"));
    }
    if options.max_sites_gap_ms.is_some_and(|bound| figures.sites_gap_ms > bound) {
        let gap = figures.sites_gap_ms;
        wrong.push(format!("between the sites nothing arrived for {gap} ms"));
    }
    wrong
}
