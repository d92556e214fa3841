//! `mesh-leave`: members leave. The others must forget them, have no routes to the networks behind
//! them, and send them nothing more; and their hosts must be as they were.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use selvedge::config::{MeshFile, OptionsFile};
use selvedge_api::mesh::Role;
use selvedge_model::{Prefix, Time};
use selvedge_netlab::Host;
use selvedge_netlab::clock::{now, wait_until};
use selvedge_netlab::firewall::Counter;
use serde::Serialize;

use super::paths::Paths;
use super::{FOUNDER, MESH, Overlay, OverlayOptions, PATIENCE, at_most};
use crate::Outcome;
use crate::progress::say;
use crate::statistics::{Spread, millis};

/// Options of the scenario.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    overlay: OverlayOptions,
    /// Number of members
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(2..=16))]
    members: u8,
    /// How often one leaves, and joins again; all but the founder take turns
    #[arg(long, default_value_t = 4)]
    runs: usize,
    /// The bound on the time until nothing is left of it anywhere, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 2000.0)]
    max_gone_ms: f64,
}

/// What was measured: each is the time from the command.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    members: u8,
    runs: usize,
    /// Until no other had it as a member.
    forgotten_ms: Spread,
    /// Until no other had a route to the network behind it.
    withdrawn_ms: Spread,
    /// Until the last packet of WireGuard from another, while they all went on sending to it.
    last_packet_ms: Spread,
    /// Until its interfaces, routes, rules and settings were as before it joined.
    host_clean_ms: Spread,
}

/// What one departure took, in milliseconds; `None` if it did not happen.
struct Departure {
    forgotten: Option<f64>,
    withdrawn: Option<f64>,
    last_packet: f64,
    host_clean: Option<f64>,
}

/// Runs the scenario.
pub(crate) fn run(options: &Options) -> anyhow::Result<Outcome<Figures>> {
    let mut scene = Scene::set(options)?;
    let leavers: Vec<String> = scene.overlay.names().split_off(1);
    let turns = leavers.iter().cycle().take(options.runs);
    let departures = turns.map(|name| scene.part(name)).collect::<anyhow::Result<Vec<_>>>()?;
    let spread = |of: &dyn Fn(&Departure) -> Option<f64>| {
        Spread::of(&departures.iter().filter_map(of).collect::<Vec<_>>())
    };
    let figures = Figures {
        members: options.members,
        runs: options.runs,
        forgotten_ms: spread(&|it| it.forgotten),
        withdrawn_ms: spread(&|it| it.withdrawn),
        last_packet_ms: spread(&|it| Some(it.last_packet)),
        host_clean_ms: spread(&|it| it.host_clean),
    };
    let mut broken = Vec::new();
    for departure in &departures {
        let bounds = [
            ("forgotten by all", departure.forgotten),
            ("no route to what is behind it", departure.withdrawn),
            ("the last packet to who has left", Some(departure.last_packet)),
            ("the host as before", departure.host_clean),
        ];
        for (what, found) in bounds {
            at_most(&mut broken, what, found, options.max_gone_ms);
        }
    }
    Ok(Outcome { figures, broken })
}

/// Where WireGuard listens on all hosts.
const PORT: u16 = 51_820;
const INTERVAL: Duration = Duration::from_millis(50);
/// How long it is watched what the others still send.
const WATCHED: Duration = Duration::from_secs(5);

/// The members, and what their hosts were like before they were that.
struct Scene {
    overlay: Overlay,
    before: BTreeMap<String, String>,
}

impl Scene {
    fn set(options: &Options) -> anyhow::Result<Self> {
        let (mut overlay, mut before) = (Overlay::new(&options.overlay)?, BTreeMap::new());
        for number in 1..=options.members {
            let name = format!("m{number}");
            let advertise = Some(vec![network(&name)?]);
            let file = OptionsFile { advertise, ..OptionsFile::default() };
            let file = MeshFile { port: Some(PORT), options: Some(file), ..MeshFile::default() };
            overlay.public(&name, file)?;
            let host = &overlay.member(&name)?.host;
            Counter::new(host, COUNTER, "input", &format!("udp dport {PORT}"))?;
            before.insert(name.clone(), traces(host)?);
        }
        overlay.found(FOUNDER, MESH)?;
        let mut scene = Self { overlay, before };
        for name in scene.overlay.names().iter().filter(|name| *name != FOUNDER) {
            scene.join(name)?;
        }
        scene.wait_whole()?;
        Ok(scene)
    }

    fn join(&mut self, name: &str) -> anyhow::Result<()> {
        self.overlay.join_allowed(name, MESH, FOUNDER, Role::Peer, &[network(name)?])
    }

    /// Waits until all know each other, and the ways to the networks behind them.
    fn wait_whole(&mut self) -> anyhow::Result<()> {
        self.overlay.wait_known(MESH, self.before.len())?;
        let routed = wait_until("routes to all networks", PATIENCE, || {
            let all = self.before.keys().map(|name| self.routes_to(name));
            let others = self.before.len() - 1;
            Ok(all
                .collect::<anyhow::Result<Vec<_>>>()
                .is_ok_and(|it| it.iter().all(|n| *n == others)))
        });
        routed.map_err(|error| self.overlay.explained(error.into()))
    }

    /// How many others have a route to the network behind a member.
    fn routes_to(&self, name: &str) -> anyhow::Result<usize> {
        let network = network(name)?.to_string();
        let mut routes = 0;
        for other in self.before.keys().filter(|other| *other != name) {
            let host = &self.overlay.member(other)?.host;
            let found = host.sh("ip", &["-6", "route", "show", "table", "all", &network])?;
            routes += usize::from(!found.trim().is_empty());
        }
        Ok(routes)
    }

    /// Has `name` leave under traffic, and join again.
    fn part(&mut self, name: &str) -> anyhow::Result<Departure> {
        let paths = Paths::between_all(&self.overlay, INTERVAL)?;
        self.overlay.explain(paths.wait_all(PATIENCE))?;
        say!("{name} leaves");
        let departure = self.watch(name)?;
        drop(paths);
        self.join(name)?;
        self.wait_whole()?;
        Ok(departure)
    }

    /// Has `name` leave, and looks everywhere meanwhile.
    fn watch(&self, name: &str) -> anyhow::Result<Departure> {
        let (overlay, others) = (&self.overlay, self.before.len() - 1);
        let host = &overlay.member(name)?.host;
        let counter = Counter::named(host, COUNTER);
        let at = now();
        std::thread::scope(|scope| {
            let packets = scope.spawn(|| last_packet(&counter));
            let clean = scope.spawn(|| since(at, || Ok(traces(host)? == self.before[name])));
            let forgotten =
                scope.spawn(|| since(at, || Ok(overlay.knowing(MESH, others) == others)));
            let withdrawn = scope.spawn(|| since(at, || Ok(self.routes_to(name)? == 0)));
            overlay.leave(name, MESH)?;
            Ok(Departure {
                forgotten: forgotten.join().expect(CALM),
                withdrawn: withdrawn.join().expect(CALM),
                last_packet: millis(packets.join().expect(CALM)? - at),
                host_clean: clean.join().expect(CALM),
            })
        })
    }
}

/// The network behind a member, which it offers to the others.
fn network(name: &str) -> anyhow::Result<Prefix> {
    let number: u16 = name.trim_start_matches('m').parse()?;
    let address = Ipv6Addr::from([0xfd50, number, 0, 0, 0, 0, 0, 0]);
    Prefix::new(address.into(), 64).context("a network of IPv6 may have 64 bits")
}

const CALM: &str = "none of these threads panics";
const COUNTER: &str = "wireguard";

/// When `done` first says so, in milliseconds since `at`.
fn since(at: Time, mut done: impl FnMut() -> anyhow::Result<bool>) -> Option<f64> {
    // What cannot be asked for a moment is asked again.
    let ended = wait_until("the end", PATIENCE, || Ok(done().unwrap_or(false)));
    ended.ok().map(|()| millis(now() - at))
}

/// When the counter counted last.
fn last_packet(counter: &Counter) -> anyhow::Result<Time> {
    let (began, mut last) = (now(), (now(), counter.packets()?));
    while now() - began < WATCHED {
        std::thread::sleep(Duration::from_millis(20));
        let counted = counter.packets()?;
        if counted > last.1 {
            last = (now(), counted);
        }
    }
    Ok(last.0)
}

/// All that a mesh may have changed about a host.
fn traces(host: &Host) -> anyhow::Result<String> {
    let lists: [(&str, &[&str]); 7] = [
        ("ip", &["-o", "link"]),
        ("ip", &["-4", "route", "show", "table", "all"]),
        ("ip", &["-6", "route", "show", "table", "all"]),
        ("ip", &["-4", "rule"]),
        ("ip", &["-6", "rule"]),
        ("nft", &["-s", "list", "ruleset"]),
        ("sysctl", &["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"]),
    ];
    let mut all = String::new();
    for (program, words) in lists {
        let text = host.sh(program, words)?;
        // Link-local addresses come in their own time.
        for line in text.lines().filter(|line| !line.contains("fe80::")) {
            all.push_str(line);
            all.push('\n');
        }
    }
    Ok(all)
}
