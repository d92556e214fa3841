//! `mesh`: many agents of the mesh plane on real sockets, in one process and one namespace, each
//! with an address of its own; WireGuard is dry. The same figures as the simulator's, so that the
//! simulator can be believed.

mod agents;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use selvedge_api::mesh::What;
use selvedge_model::NodeId;
use selvedge_netlab::Lab;
use serde::Serialize;
use tokio::time::sleep;

use self::agents::Agents;
use crate::Outcome;
use crate::progress::say;
use crate::statistics::millis;

/// How long anything is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the trees are given to take shape, and the connections of the joining to end.
const WARM_UP: Duration = Duration::from_secs(25);
/// Between two changes, and between two crashes.
const PAUSE: Duration = Duration::from_millis(700);

/// Options of the scenario.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Number of members
    #[arg(long, default_value_t = 200)]
    agents: usize,
    /// Number of changes that are followed, one after the other
    #[arg(long, default_value_t = 20)]
    updates: usize,
    /// Seconds without anything to do
    #[arg(long, default_value_t = 30)]
    idle: u64,
    /// Number of agents that crash, one after the other
    #[arg(long, default_value_t = 4)]
    crashes: usize,
    /// Number of agents that join, one after the other
    #[arg(long, default_value_t = 3)]
    joins: usize,
    /// Print the JSON line alone
    #[arg(long)]
    json: bool,
}

/// Over several runs of the same: the worst time after which half of the agents knew, after which
/// 99 % did, and after which all did, in ms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Worst {
    p50: f64,
    p99: f64,
    max: f64,
}

/// How joining took, the worst of several, in ms.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Join {
    /// From asking to holding the whole state.
    state: f64,
    /// From asking to being known by all.
    known: f64,
}

/// What was measured.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Figures {
    nodes: usize,
    update_ms: Worst,
    crash_known_ms: Worst,
    join_ms: Join,
    /// Bytes on the wire that a node sends in a second with nothing to do, headers of IPv4 and UDP
    /// and everything else included.
    idle_bytes_per_node_s: f64,
    /// Connections that were made meanwhile, all agents together.
    idle_connections: u64,
    /// How often a node was held to be down that ran.
    false_failures: usize,
    /// From founding the mesh until all knew all.
    gathered_s: f64,
}

/// Runs the scenario.
pub(crate) fn run(options: &Options) -> anyhow::Result<Outcome<Figures>> {
    anyhow::ensure!((2..=10_000).contains(&options.agents), "--agents 2 to 10000");
    let lab = Lab::new()?;
    let host = lab.host("mesh")?;
    let figures = host.run(|| {
        // Threads of the runtime are in the namespace of the one that makes it.
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let measured = runtime.block_on(measure(options, lab.folder()));
        runtime.shutdown_background();
        measured
    })??;
    let broken = broken(&figures);
    Ok(Outcome { figures, broken })
}

async fn measure(options: &Options, folder: &std::path::Path) -> anyhow::Result<Figures> {
    let mut figures = Figures { nodes: options.agents, ..Figures::default() };
    let began = Instant::now();
    let mut agents = Agents::found(folder).await.context("cannot found the mesh")?;
    agents.gather(options.agents, PATIENCE * 5).await?;
    figures.gathered_s = began.elapsed().as_secs_f64();
    tell(options, &format!("{} agents know each other", options.agents));
    sleep(WARM_UP).await;
    agents.forget();
    updates(&mut agents, options, &mut figures).await?;
    idle(&mut agents, options, &mut figures).await?;
    joins(&mut agents, options, &mut figures).await?;
    crashes(&mut agents, options, &mut figures).await?;
    agents.drain();
    figures.false_failures = agents.false_failures();
    Ok(figures)
}

async fn updates(
    agents: &mut Agents,
    options: &Options,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    for number in 0..options.updates {
        let place = (number * 37 + 11) % agents.count();
        let at = agents.change(place, &format!("change {number}")).await?;
        let node = agents.node(place);
        let is_news =
            move |what: &What| matches!(what, What::MemberUpdated(who) if who.node == node);
        let known = agents.until_known(at, is_news, node, PATIENCE).await?;
        figures.update_ms.include(&known);
        sleep(PAUSE).await;
    }
    tell(options, &format!("changes: {:?}", figures.update_ms));
    Ok(())
}

async fn idle(agents: &mut Agents, options: &Options, figures: &mut Figures) -> anyhow::Result<()> {
    if options.idle == 0 {
        return Ok(());
    }
    let before = agents.traffic().await?;
    let began = Instant::now();
    sleep(Duration::from_secs(options.idle)).await;
    let (after, seconds) = (agents.traffic().await?, began.elapsed().as_secs_f64());
    let bytes = u32::try_from(after.sent - before.sent).unwrap_or(u32::MAX);
    let nodes = u32::try_from(agents.count()).unwrap_or(u32::MAX);
    figures.idle_bytes_per_node_s = f64::from(bytes) / f64::from(nodes) / seconds;
    figures.idle_connections = after.connected - before.connected;
    tell(options, &format!("idle: {:.0} B/s", figures.idle_bytes_per_node_s));
    Ok(())
}

async fn joins(
    agents: &mut Agents,
    options: &Options,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    for _ in 0..options.joins {
        let (at, place) = agents.join().await?;
        let node = agents.node(place);
        let state = agents.until_holds_all(place, at, PATIENCE).await?;
        let is_news =
            move |what: &What| matches!(what, What::MemberJoined(who) if who.node == node);
        let known = agents.until_known(at, is_news, node, PATIENCE).await?;
        let worst = &mut figures.join_ms;
        worst.state = worst.state.max(millis(state));
        worst.known = worst.known.max(known.last().copied().map_or(0.0, millis));
        sleep(PAUSE).await;
    }
    tell(options, &format!("joins: {:?}", figures.join_ms));
    Ok(())
}

async fn crashes(
    agents: &mut Agents,
    options: &Options,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    for number in 0..options.crashes {
        // Never the founder.
        let place = 1 + (number * 53 + 7) % (agents.count() - 1);
        let (at, node) = agents.crash(place);
        let is_news = move |what: &What| matches!(what, What::MemberDown(who) if who.node == node);
        let known = agents.until_known(at, is_news, node, PATIENCE).await?;
        figures.crash_known_ms.include(&known);
        sleep(PAUSE).await;
    }
    tell(options, &format!("crashes: {:?}", figures.crash_known_ms));
    Ok(())
}

impl Worst {
    /// Adds a run: after which times the agents knew, in ascending order.
    fn include(&mut self, known: &[Duration]) {
        let after = |percent: usize| {
            let rank = (known.len() * percent).div_ceil(100).max(1);
            known.get(rank - 1).copied().map_or(0.0, millis)
        };
        self.p50 = self.p50.max(after(50));
        self.p99 = self.p99.max(after(99));
        self.max = self.max.max(after(100));
    }
}

/// Which of the bounds that hold for the simulator's mesh do not hold here.
fn broken(figures: &Figures) -> Vec<String> {
    let Figures { update_ms, crash_known_ms, join_ms, .. } = figures;
    let bounds = [
        ("a change is known by 99 % (ms)", update_ms.p99, 500.0),
        ("a change is known by all (ms)", update_ms.max, 1000.0),
        ("a crash is known by 99 % (ms)", crash_known_ms.p99, 3000.0),
        ("a crash is known by all (ms)", crash_known_ms.max, 5000.0),
        ("a new node has the whole state (ms)", join_ms.state, 2000.0),
        ("a new node is known by all (ms)", join_ms.known, 3000.0),
        ("idle traffic per node (B/s)", figures.idle_bytes_per_node_s, 300.0),
    ];
    let beyond = bounds.into_iter().filter(|(_, found, bound)| found > bound);
    let mut broken: Vec<_> =
        beyond.map(|(what, found, bound)| format!("{what}: {found:.0} > {bound:.0}")).collect();
    if figures.false_failures > 0 {
        broken.push(format!("{} false failures", figures.false_failures));
    }
    broken
}

fn tell(options: &Options, words: &str) {
    if !options.json {
        say!("{words}");
    }
}

/// Who has not said yet what is waited for.
type Missing = BTreeSet<NodeId>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_run_counts() {
        let run = |times: &[u64]| -> Vec<_> {
            times.iter().copied().map(Duration::from_millis).collect()
        };
        let mut worst = Worst::default();
        worst.include(&run(&[10, 20, 30, 40]));
        worst.include(&run(&[1, 5, 6, 90]));
        assert_eq!(worst, Worst { p50: 20.0, p99: 90.0, max: 90.0 });
        worst.include(&[]);
        assert_eq!(worst.max, 90.0);
    }

    #[test]
    fn bounds_are_named_that_do_not_hold() {
        let mut figures = Figures { idle_bytes_per_node_s: 299.0, ..Figures::default() };
        assert_eq!(broken(&figures), [] as [String; 0]);
        figures.update_ms.max = 1001.0;
        figures.false_failures = 1;
        let expected = ["a change is known by all (ms): 1001 > 1000", "1 false failures"];
        assert_eq!(broken(&figures), expected);
    }
}
