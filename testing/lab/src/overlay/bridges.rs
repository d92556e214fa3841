//! `mesh-bridges`: meshes in a chain and in a ring, joined by hosts that are in two of them, and
//! one of these is cut off.

use std::time::Duration;

use clap::Args;
use selvedge::config::{MeshFile, OptionsFile};
use selvedge_api::mesh::Role;
use selvedge_model::Prefix;
use selvedge_netlab::clock::{now, wait_until};
use selvedge_netlab::firewall::time_exceeded;
use selvedge_netlab::link::Port;
use serde::Serialize;

use super::comeback::UNDER_WAY;
use super::paths::{Paths, every_pair};
use super::{Overlay, OverlayOptions, PATIENCE, at_most, none_lost};
use crate::Outcome;
use crate::progress::say;
use crate::statistics::{Spread, millis};

/// Options of the scenario.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    overlay: OverlayOptions,
    /// Number of meshes
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(3..=8))]
    meshes: u8,
    /// How often a bridge of the ring is cut off; they take turns
    #[arg(long, default_value_t = 4)]
    runs: usize,
    /// The bound on the time until the ring has found the other way, and until the chain has
    /// forgotten what is out of reach, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 5000.0)]
    max_reroute_ms: f64,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    meshes: u8,
    runs: usize,
    /// From the last join until packets ran from one end of the chain to the other.
    chained_ms: f64,
    /// From the loss of a bridge of the chain until the first mesh had no route to the last.
    withdrawn_ms: Option<f64>,
    /// Packets lost meanwhile between meshes that were still joined.
    others_lost: u64,
    /// From the return of the bridge until packets ran between all again.
    rejoined_ms: f64,
    /// The longest time without packets between any two meshes of the ring, for each cut.
    reroute_ms: Spread,
    /// How many packets any kernel dropped because they had been under way for too long.
    time_exceeded: u64,
    sender_late_ms: f64,
}

/// Runs the scenario.
pub(crate) fn run(options: &Options) -> anyhow::Result<Outcome<Figures>> {
    let mut world = World::chain(options)?;
    let began = now();
    let paths = world.paths()?;
    world.wait(&paths)?;
    let chained_ms = millis(now() - began);
    say!("packets run along the chain after {chained_ms} ms");
    let (withdrawn_ms, others_lost, rejoined_ms) = world.break_chain(&paths)?;
    world.close_ring()?;
    let mut gaps = Vec::new();
    for bridge in world.bridges().iter().cycle().take(options.runs) {
        gaps.push(world.reroute(&paths, bridge)?);
    }
    let figures = Figures {
        meshes: options.meshes,
        runs: options.runs,
        chained_ms,
        withdrawn_ms,
        others_lost,
        rejoined_ms,
        reroute_ms: Spread::of(&gaps),
        time_exceeded: world.time_exceeded()?,
        sender_late_ms: paths.sender_late_ms((began, now())),
    };
    let broken = broken(options, &figures);
    Ok(Outcome { figures, broken })
}

const INTERVAL: Duration = Duration::from_millis(50);
/// How long packets run before a cut, and how long one lasts at least.
const CALM: Duration = Duration::from_secs(3);
const CUT: Duration = Duration::from_secs(8);

/// The meshes, `n0` and so on. `p0` has founded `n0` and is in no other mesh; `b0` is in `n0` and
/// in `n1`.
struct World {
    overlay: Overlay,
    meshes: u8,
}

impl World {
    fn chain(options: &Options) -> anyhow::Result<Self> {
        let mut overlay = Overlay::new(&options.overlay)?;
        let mesh_options = OptionsFile { bridge: Some(true), ..OptionsFile::default() };
        let bridge = MeshFile { options: Some(mesh_options), ..MeshFile::default() };
        for number in 0..options.meshes {
            overlay.public(&plain(number), MeshFile::default())?;
            overlay.found(&plain(number), &mesh(number))?;
            overlay.public(&self::bridge(number), bridge.clone())?;
        }
        let mut world = Self { overlay, meshes: options.meshes };
        for number in 0..options.meshes - 1 {
            world.join(number)?;
        }
        Ok(world)
    }

    /// Has the bridge that follows a mesh join this mesh and the next.
    fn join(&mut self, number: u8) -> anyhow::Result<()> {
        let any_mesh: Prefix = "fd00::/8".parse()?;
        for side in [number, (number + 1) % self.meshes] {
            let (name, founder) = (bridge(number), plain(side));
            self.overlay.join_allowed(&name, &mesh(side), &founder, Role::Peer, &[any_mesh])?;
        }
        Ok(())
    }

    fn close_ring(&mut self) -> anyhow::Result<()> {
        self.join(self.meshes - 1)?;
        for number in 0..self.meshes {
            self.overlay.wait_known(&mesh(number), 3)?;
        }
        say!("the ring is closed");
        std::thread::sleep(CALM);
        Ok(())
    }

    fn bridges(&self) -> Vec<String> {
        (0..self.meshes).map(bridge).collect()
    }

    /// Packets between those who are in one mesh only.
    fn paths(&self) -> anyhow::Result<Paths> {
        let place = |number: u8| {
            let address = self.overlay.address(&plain(number), &mesh(number))?;
            Ok((&self.overlay.member(&plain(number))?.host, address.into()))
        };
        let places = (0..self.meshes).map(place).collect::<anyhow::Result<Vec<_>>>()?;
        Paths::start(&every_pair(&places), INTERVAL)
    }

    fn wait(&mut self, paths: &Paths) -> anyhow::Result<()> {
        self.overlay.explain(paths.wait_all(PATIENCE))
    }

    /// Cuts the last bridge of the chain off and gives it back. How long it took until the first
    /// mesh had no route to the last, how many packets were lost between the others, and how long
    /// it took until all was as before.
    fn break_chain(&mut self, paths: &Paths) -> anyhow::Result<(Option<f64>, u64, f64)> {
        let last = self.meshes - 1;
        let port = self.overlay.member(&bridge(last - 1))?.port.clone();
        let prefix = self.overlay.show(&plain(last), &mesh(last))?.prefix.to_string();
        anyhow::ensure!(self.has_route(&prefix)?, "there is no route to {prefix} to begin with");
        std::thread::sleep(CALM);
        let struck = now();
        Port::set_forwarding(&[&port], false)?;
        let gone = || Ok(self.has_route(&prefix).is_ok_and(|there| !there));
        let gone = wait_until("the end of a route", PATIENCE, gone);
        let withdrawn = gone.is_ok().then(|| millis(now() - struck));
        std::thread::sleep(CALM);
        let during = (struck, now());
        let healed = now();
        Port::set_forwarding(&[&port], true)?;
        self.wait(paths)?;
        let rejoined = millis(now() - healed);
        let end = plain(last);
        say!("the chain without its end: {withdrawn:?} ms; whole again: {rejoined} ms");
        Ok((withdrawn, paths.lost(during, |a, b| a != end && b != end), rejoined))
    }

    /// Whether the kernel of the first mesh's founder has a route to the last mesh, in any table.
    fn has_route(&self, prefix: &str) -> anyhow::Result<bool> {
        let words = ["-6", "route", "show", "table", "all", prefix];
        let routes = self.overlay.member(&plain(0))?.host.sh("ip", &words)?;
        Ok(!routes.trim().is_empty())
    }

    /// Cuts a bridge of the ring off and gives it back. The longest time without packets between
    /// any two meshes, in milliseconds.
    fn reroute(&mut self, paths: &Paths, bridge: &str) -> anyhow::Result<f64> {
        let port = self.overlay.member(bridge)?.port.clone();
        self.wait(paths)?;
        std::thread::sleep(CALM);
        let struck = now();
        Port::set_forwarding(&[&port], false)?;
        std::thread::sleep(CUT);
        let back = self.wait(paths);
        let during = (struck, now());
        Port::set_forwarding(&[&port], true)?;
        back?;
        std::thread::sleep(UNDER_WAY);
        let gap = paths.gaps(during, |_, _| true).into_iter().fold(0.0, f64::max);
        say!("without {bridge}: {gap} ms");
        std::thread::sleep(CUT);
        Ok(gap)
    }

    fn time_exceeded(&self) -> anyhow::Result<u64> {
        let mut sum = 0;
        for name in self.overlay.names() {
            sum += time_exceeded(&self.overlay.member(&name)?.host)?;
        }
        Ok(sum)
    }
}

fn mesh(number: u8) -> String {
    format!("n{number}")
}

fn plain(number: u8) -> String {
    format!("p{number}")
}

fn bridge(number: u8) -> String {
    format!("b{number}")
}

fn broken(options: &Options, figures: &Figures) -> Vec<String> {
    let mut broken = Vec::new();
    let bound = options.max_reroute_ms;
    at_most(&mut broken, "routes to what is out of reach end", figures.withdrawn_ms, bound);
    if options.runs > 0 {
        at_most(&mut broken, "the ring reroutes", figures.reroute_ms.max, bound);
    }
    none_lost(&mut broken, "between others", figures.others_lost);
    if figures.time_exceeded > 0 {
        broken.push(format!("{} packets ran in a loop", figures.time_exceeded));
    }
    broken
}
