//! `mesh-clients`: clients behind routers, and the peer that serves them is cut off.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use selvedge::config::MeshFile;
use selvedge_api::mesh::Role;
use selvedge_model::{NodeId, Time};
use selvedge_netlab::Error;
use selvedge_netlab::clock::{now, wait_until};
use selvedge_netlab::firewall::Mapping;
use selvedge_netlab::link::Port;
use serde::Serialize;

use super::comeback::UNDER_WAY;
use super::paths::{Paths, every_pair};
use super::{FOUNDER, MESH, Overlay, OverlayOptions, PATIENCE, at_most, none_lost};
use crate::Outcome;
use crate::progress::say;
use crate::statistics::{Spread, millis};

/// Options of the scenario.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    overlay: OverlayOptions,
    /// Number of peers
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(2..=16))]
    peers: u8,
    /// Number of clients
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u8).range(1..=32))]
    clients: u8,
    /// Number of routers that they are behind; each third shows every partner another port
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=16))]
    routers: u8,
    /// How often a peer that serves clients is cut off
    #[arg(long, default_value_t = 3)]
    cuts: usize,
    /// The bound on the time from the last join until packets run between all, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 10_000.0)]
    max_joined_ms: f64,
    /// The bound on the time from then until all pairs of clients whose routers allow it send
    /// directly, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 30_000.0)]
    max_direct_ms: f64,
    /// The bound on the time that the clients of a peer that was cut off reach nobody, in
    /// milliseconds
    #[arg(long, value_name = "MS", default_value_t = 4000.0)]
    max_outage_ms: f64,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    peers: u8,
    clients: u8,
    routers: u8,
    pairs: usize,
    /// From the last join until packets had arrived between all, both ways.
    joined_ms: Option<f64>,
    /// Pairs of clients: all, those whose routers let packets go directly, and those of which
    /// they do so in both directions.
    client_pairs: usize,
    direct_expected: usize,
    direct_pairs: usize,
    /// Pairs whose packets go directly though their routers should not let them.
    direct_unexpected: usize,
    /// From the last join until they did.
    direct_ms: Option<f64>,
    /// Packets between all that were lost meanwhile, once they had arrived between all.
    direct_lost: u64,
    cuts: usize,
    /// How many clients the peers that were cut off served.
    served: Vec<usize>,
    /// The longest time without packets between one of these and any other.
    outage_ms: Spread,
    /// Packets between hosts that had nothing to do with it.
    others_lost: u64,
    sender_late_ms: f64,
}

/// Runs the scenario.
pub(crate) fn run(options: &Options) -> anyhow::Result<Outcome<Figures>> {
    let mut overlay = settle(options)?;
    let joined = now();
    let paths = Paths::between_all(&overlay, INTERVAL)?;
    let all = paths.wait_all(PATIENCE);
    let joined_ms = all.is_ok().then(|| millis(now() - joined));
    overlay.explain(all)?;
    say!("packets run between all after {joined_ms:?} ms");
    let running = now();
    let pairs = Pairs::of(options);
    let reached = pairs.wait(&overlay, joined, options.max_direct_ms);
    let direct_ms = reached.is_ok().then(|| millis(now() - joined));
    say!("all pairs that can send directly do after {direct_ms:?} ms");
    std::thread::sleep(UNDER_WAY);
    let found = pairs.found(&overlay)?;
    let direct_lost = paths.lost((running, now()), |_, _| true);
    let mut outages = Outages::default();
    for _ in 0..options.cuts {
        outages.cut(&mut overlay, &paths)?;
    }
    let figures = Figures {
        peers: options.peers,
        clients: options.clients,
        routers: options.routers,
        pairs: paths.count(),
        joined_ms,
        client_pairs: pairs.all.len(),
        direct_expected: pairs.expected.len(),
        direct_pairs: found.len(),
        direct_unexpected: found.difference(&pairs.expected).count(),
        direct_ms,
        direct_lost,
        cuts: options.cuts,
        served: outages.served,
        outage_ms: Spread::of(&outages.gaps),
        others_lost: outages.others_lost,
        sender_late_ms: paths.sender_late_ms((joined, now())),
    };
    let broken = broken(options, &figures);
    Ok(Outcome { figures, broken })
}

const INTERVAL: Duration = Duration::from_millis(200);
/// How long a cut lasts at least, and how long it is calm before the next.
const CUT: Duration = Duration::from_secs(6);
const CALM: Duration = Duration::from_secs(5);

/// Peers on the internet, and clients behind routers, all members of one mesh.
fn settle(options: &Options) -> anyhow::Result<Overlay> {
    let mut overlay = Overlay::formed(&options.overlay, options.peers.into())?;
    let mut homes = Vec::new();
    for number in 0..options.routers {
        homes.push(overlay.home(mapping(number.into()))?);
    }
    let clients: Vec<(String, usize)> = clients(options).collect();
    for (name, home) in &clients {
        overlay.resident(&mut homes[*home], name, MeshFile::default())?;
    }
    for (name, _) in &clients {
        overlay.join(name, MESH, FOUNDER, Role::Client)?;
    }
    Ok(overlay)
}

/// The clients, each with the peer that it is attached to.
pub(super) fn attached(overlay: &Overlay) -> anyhow::Result<BTreeMap<String, NodeId>> {
    let mut clients = BTreeMap::new();
    for name in overlay.names() {
        let shown = overlay.show(&name, MESH)?;
        let is_client =
            shown.members.iter().any(|member| member.own && member.role == Role::Client);
        if let Some(peer) = shown.members.iter().find_map(|member| member.via)
            && is_client
        {
            clients.insert(name, peer);
        }
    }
    Ok(clients)
}

/// What a router does with ports.
const fn mapping(router: usize) -> Mapping {
    if router % 3 == 2 { Mapping::Random } else { Mapping::Kept }
}

/// The clients, each with the router that it is behind.
fn clients(options: &Options) -> impl Iterator<Item = (String, usize)> {
    let routers = usize::from(options.routers);
    (0..usize::from(options.clients)).map(move |at| (format!("c{}", at + 1), at % routers))
}

/// Pairs of clients, by their names.
struct Pairs {
    all: BTreeSet<(String, String)>,
    /// Those behind one router, and those whose routers keep the ports.
    expected: BTreeSet<(String, String)>,
}

impl Pairs {
    fn of(options: &Options) -> Self {
        let clients: Vec<(String, usize)> = clients(options).collect();
        let (mut all, mut expected) = (BTreeSet::new(), BTreeSet::new());
        for (a, b) in every_pair(&clients.iter().collect::<Vec<_>>()) {
            let pair = (a.0.clone(), b.0.clone());
            all.insert(pair.clone());
            if a.1 == b.1 || [a.1, b.1].iter().all(|it| mapping(*it) == Mapping::Kept) {
                expected.insert(pair);
            }
        }
        Self { all, expected }
    }

    /// Waits until packets of all pairs of which it is expected go directly.
    fn wait(&self, overlay: &Overlay, since: Time, max_ms: f64) -> Result<(), Error> {
        let limit = Duration::from_secs_f64(max_ms / 1000.0).saturating_sub(now() - since);
        wait_until("direct paths", limit, || {
            Ok(self.found(overlay).is_ok_and(|found| self.expected.is_subset(&found)))
        })
    }

    /// Those whose packets go directly in both directions.
    fn found(&self, overlay: &Overlay) -> anyhow::Result<BTreeSet<(String, String)>> {
        let mut ways = BTreeSet::new();
        let mut nodes = BTreeMap::new();
        for (name, _) in self.all.iter().flat_map(|(a, b)| [(a, b), (b, a)]) {
            if nodes.contains_key(name) {
                continue;
            }
            let shown = overlay.show(name, MESH)?;
            nodes.insert(name.clone(), shown.node);
            let others = shown.members.iter().filter(|it| !it.own && it.role == Role::Client);
            ways.extend(others.filter(|it| it.via.is_none()).map(|it| (shown.node, it.node)));
        }
        let both = |a, b| ways.contains(&(a, b)) && ways.contains(&(b, a));
        let direct = self.all.iter().filter(|(a, b)| both(nodes[a], nodes[b]));
        Ok(direct.cloned().collect())
    }
}

/// What cuts did.
#[derive(Default)]
struct Outages {
    served: Vec<usize>,
    gaps: Vec<f64>,
    others_lost: u64,
}

impl Outages {
    /// Cuts off the peer that serves most clients, until these reach everybody again.
    fn cut(&mut self, overlay: &mut Overlay, paths: &Paths) -> anyhow::Result<()> {
        let clients = attached(overlay)?;
        let victim = busiest(overlay, &clients)?;
        let id = overlay.show(&victim, MESH)?.node;
        let its: BTreeSet<&String> =
            clients.iter().filter(|(_, peer)| **peer == id).map(|(name, _)| name).collect();
        say!("cutting off {victim}, which serves {}", its.len());
        let served = |name: &str| its.iter().any(|it| *it == name);
        let apart = |a: &str, b: &str| a != victim && b != victim;
        let port = overlay.member(&victim)?.port.clone();
        let struck = now();
        Port::set_forwarding(&[&port], false)?;
        std::thread::sleep(CUT);
        let back = paths.wait_some(PATIENCE, apart);
        let during = (struck, now());
        Port::set_forwarding(&[&port], true)?;
        overlay.explain(back)?;
        std::thread::sleep(UNDER_WAY);
        self.served.push(its.len());
        self.gaps.extend(paths.gaps(during, |a, b| apart(a, b) && (served(a) || served(b))));
        self.others_lost += paths.lost(during, |a, b| apart(a, b) && !served(a) && !served(b));
        overlay.explain(paths.wait_all(PATIENCE))?;
        std::thread::sleep(CALM);
        Ok(())
    }
}

/// The peer that serves most clients.
fn busiest(overlay: &Overlay, clients: &BTreeMap<String, NodeId>) -> anyhow::Result<String> {
    let mut counts: BTreeMap<NodeId, usize> = BTreeMap::new();
    for peer in clients.values() {
        *counts.entry(*peer).or_default() += 1;
    }
    let (busiest, _) =
        counts.into_iter().max_by_key(|(_, count)| *count).context("no client is attached")?;
    for name in overlay.names() {
        if overlay.show(&name, MESH)?.node == busiest {
            return Ok(name);
        }
    }
    anyhow::bail!("clients are attached to {busiest}, which is no host of ours")
}

fn broken(options: &Options, figures: &Figures) -> Vec<String> {
    let mut broken = Vec::new();
    at_most(&mut broken, "all reach all", figures.joined_ms, options.max_joined_ms);
    at_most(&mut broken, "clients send directly", figures.direct_ms, options.max_direct_ms);
    if figures.direct_unexpected > 0 {
        broken
            .push(format!("{} pairs send through what lets nobody in", figures.direct_unexpected));
    }
    if options.cuts > 0 {
        let what = "clients of a peer that was cut off reach all";
        at_most(&mut broken, what, figures.outage_ms.max, options.max_outage_ms);
    }
    none_lost(&mut broken, "between others", figures.others_lost);
    broken
}
