//! `mesh-clients`: clients behind routers, and the peer that serves them is cut off.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use selvedge::config::MeshFile;
use selvedge_api::mesh::Role;
use selvedge_model::NodeId;
use selvedge_netlab::clock::now;
use selvedge_netlab::firewall::Mapping;
use selvedge_netlab::link::Port;
use serde::Serialize;

use super::comeback::UNDER_WAY;
use super::paths::Paths;
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
    /// Pairs of clients whose packets go directly, and of all.
    direct: usize,
    client_pairs: usize,
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
    let clients = attached(&overlay)?;
    let direct =
        clients.keys().map(|name| directly(&overlay, name)).sum::<anyhow::Result<usize>>()?;
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
        direct: direct / 2,
        client_pairs: clients.len() * clients.len().saturating_sub(1) / 2,
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
    for number in 1..=options.routers {
        let mapping = if number % 3 == 0 { Mapping::Random } else { Mapping::Kept };
        homes.push(overlay.home(mapping)?);
    }
    let names: Vec<String> = (1..=options.clients).map(|number| format!("c{number}")).collect();
    let count = homes.len();
    for (index, name) in names.iter().enumerate() {
        overlay.resident(&mut homes[index % count], name, MeshFile::default())?;
    }
    for name in &names {
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

/// To how many other clients a client's packets go directly.
fn directly(overlay: &Overlay, client: &str) -> anyhow::Result<usize> {
    let shown = overlay.show(client, MESH)?;
    let others = shown.members.iter().filter(|it| !it.own && it.role == Role::Client);
    Ok(others.filter(|it| it.via.is_none()).count())
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
    if options.cuts > 0 {
        let what = "clients of a peer that was cut off reach all";
        at_most(&mut broken, what, figures.outage_ms.max, options.max_outage_ms);
    }
    none_lost(&mut broken, "between others", figures.others_lost);
    broken
}
