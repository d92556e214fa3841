//! `mesh-exits`: members reach the world by two exits, and one of these is cut off.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use selvedge::config::{MeshFile, OptionsFile};
use selvedge_api::mesh::Role;
use selvedge_model::{NodeId, Prefix};
use selvedge_netlab::Host;
use selvedge_netlab::clock::{now, wait_until};
use selvedge_netlab::firewall::{Counter, Mapping};
use selvedge_netlab::link::{Port, Segment};
use serde::Serialize;

use super::clients::attached;
use super::comeback::UNDER_WAY;
use super::paths::{Paths, Place};
use super::{FOUNDER, MESH, Overlay, OverlayOptions, PATIENCE, at_most, none_lost};
use crate::Outcome;
use crate::progress::say;
use crate::statistics::{Spread, millis};

/// Options of the scenario.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    overlay: OverlayOptions,
    /// Number of members that use the exits: one half peers, the other clients behind a router
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u8).range(2..=32))]
    users: u8,
    /// How often an exit is cut off; they take turns
    #[arg(long, default_value_t = 4)]
    runs: usize,
    /// The bound on the time without packets, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 4000.0)]
    max_outage_ms: f64,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    users: u8,
    runs: usize,
    /// From the last join until packets of both families ran between all users and the world.
    joined_ms: f64,
    /// How many users each exit served before the cuts.
    shares: Vec<usize>,
    /// Packets that each forwarded by then.
    carried: Vec<u64>,
    /// The longest time without packets of a user whose exit was cut off.
    outage_ms: Spread,
    /// Packets that other users lost meanwhile.
    others_lost: u64,
    sender_late_ms: f64,
}

/// Runs the scenario.
pub(crate) fn run(options: &Options) -> anyhow::Result<Outcome<Figures>> {
    let mut world = World::build(options)?;
    let joined = now();
    let paths = world.paths()?;
    world.wait(&paths)?;
    let joined_ms = millis(now() - joined);
    say!("all users reach the world after {joined_ms} ms");
    std::thread::sleep(CALM);
    let shares = EXITS.map(|exit| world.users_of(exit).map(|users| users.len()));
    let shares = shares.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let carried = world.carried()?;
    let (mut outages, mut others_lost) = (Vec::new(), 0);
    for exit in EXITS.iter().cycle().take(options.runs) {
        let (gaps, lost) = world.cut(&paths, exit)?;
        outages.extend(gaps);
        others_lost += lost;
    }
    let figures = Figures {
        users: options.users,
        runs: options.runs,
        joined_ms,
        shares,
        carried,
        outage_ms: Spread::of(&outages),
        others_lost,
        sender_late_ms: paths.sender_late_ms((joined, now())),
    };
    let broken = broken(options, &figures);
    Ok(Outcome { figures, broken })
}

const EXITS: [&str; 2] = ["e1", "e2"];
const INTERVAL: Duration = Duration::from_millis(50);
/// How long packets run before a cut, and how long one lasts at least.
const CALM: Duration = Duration::from_secs(3);
const CUT: Duration = Duration::from_secs(6);

/// The server in the world, and its addresses.
const WEB: &str = "web";
const WEB_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 80);
const WEB_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x80, 0, 0, 0, 0, 0x80);
/// The interface of the exits and of the server towards the world.
const WORLD: &str = "world";

struct World {
    overlay: Overlay,
    web: Host,
    users: Vec<String>,
    exits: BTreeMap<String, Exit>,
}

/// What there is of an exit besides the member.
struct Exit {
    /// The switch's end of its cable to the world.
    port: Port,
    /// What it forwards to there.
    counter: Counter,
}

impl World {
    fn build(options: &Options) -> anyhow::Result<Self> {
        let mut overlay = Overlay::new(&options.overlay)?;
        let segment = overlay.segment(WORLD)?;
        let web = overlay.bystander(WEB)?;
        settle(&segment, &web, 80)?;
        overlay.public(FOUNDER, with(OptionsFile::default())?)?;
        overlay.found(FOUNDER, MESH)?;
        let mut exits = BTreeMap::new();
        for (number, exit) in (1..).zip(EXITS) {
            let everywhere = everywhere()?;
            let advertise = Some(everywhere.clone());
            let file = OptionsFile { advertise, masquerade: Some(true), ..OptionsFile::default() };
            overlay.public(exit, with(file)?)?;
            let host = overlay.member(exit)?.host.clone();
            let port = settle(&segment, &host, number)?;
            let counter = Counter::new(&host, WORLD, "forward", &format!("oifname {WORLD}"))?;
            exits.insert(exit.to_owned(), Exit { port, counter });
            overlay.join_allowed(exit, MESH, FOUNDER, Role::Peer, &everywhere)?;
        }
        let mut home = overlay.home(Mapping::Kept)?;
        let users: Vec<String> = (1..=options.users).map(|number| format!("u{number}")).collect();
        for (index, name) in users.iter().enumerate() {
            let file =
                with(OptionsFile { exit: Some("any".to_owned()), ..OptionsFile::default() })?;
            let role = if index % 2 == 0 { Role::Peer } else { Role::Client };
            match role {
                Role::Peer => overlay.public(name, file)?,
                Role::Client => overlay.resident(&mut home, name, file)?,
            }
            overlay.join(name, MESH, FOUNDER, role)?;
        }
        Ok(Self { overlay, web, users, exits })
    }

    /// Packets of both families between each user and the world.
    fn paths(&mut self) -> anyhow::Result<Paths> {
        let mut pairs = Vec::new();
        for name in self.users.clone() {
            let (v4, v6) = self.addresses(&name)?;
            pairs.push((name.clone(), IpAddr::from(v4), IpAddr::from(WEB_V4)));
            pairs.push((name, IpAddr::from(v6), IpAddr::from(WEB_V6)));
        }
        let place = |(name, own, web): &(String, IpAddr, IpAddr)| {
            let user: Place = (&self.overlay.member(name)?.host, *own);
            Ok((user, (&self.web, *web)))
        };
        let places = pairs.iter().map(place).collect::<anyhow::Result<Vec<_>>>()?;
        Paths::start(&places, INTERVAL)
    }

    /// The addresses of a user in the mesh, when it has both.
    fn addresses(&mut self, name: &str) -> anyhow::Result<(Ipv4Addr, Ipv6Addr)> {
        let mut found = None;
        let waited = wait_until(&format!("an IPv4 address of {name}"), PATIENCE, || {
            let shown = self.overlay.show(name, MESH).ok();
            let own = shown.and_then(|mesh| mesh.members.into_iter().find(|member| member.own));
            found = own.and_then(|own| Some((own.ipv4?, own.address)));
            Ok(found.is_some())
        });
        waited.map_err(|error| self.overlay.explained(error.into()))?;
        found.context("it was just found")
    }

    fn wait(&mut self, paths: &Paths) -> anyhow::Result<()> {
        self.overlay.explain(paths.wait_all(PATIENCE))
    }

    /// Who uses an exit, by what they say themselves.
    fn users_of(&self, exit: &str) -> anyhow::Result<Vec<String>> {
        let id: NodeId = self.overlay.show(exit, MESH)?.node;
        let mut users = Vec::new();
        for name in &self.users {
            let shown = self.overlay.show(name, MESH)?;
            let mut ways = shown.routes.iter().filter(|route| route.destination.len() == 0);
            if ways.any(|route| route.via == id) {
                users.push(name.clone());
            }
        }
        Ok(users)
    }

    fn carried(&self) -> anyhow::Result<Vec<u64>> {
        self.exits.values().map(|exit| Ok(exit.counter.packets()?)).collect()
    }

    /// Cuts an exit off from everybody and gives it back. The longest time without packets of each
    /// family of those who used it, or were clients of it as a peer whatever exit they used, in
    /// milliseconds, and how many packets the others lost.
    fn cut(&mut self, paths: &Paths, exit: &str) -> anyhow::Result<(Vec<f64>, u64)> {
        let its = self.users_of(exit)?;
        if its.is_empty() {
            bail!("nobody uses {exit}");
        }
        let id = self.overlay.show(exit, MESH)?.node;
        let mut clients = attached(&self.overlay)?;
        clients.retain(|_, peer| *peer == id);
        say!("cutting off {exit}, which {} use, and {} by way of", its.len(), clients.len());
        let outside = self.exits.get(exit).context("there is no such exit")?.port.clone();
        let ports = [&self.overlay.member(exit)?.port.clone(), &outside];
        let struck = now();
        Port::set_forwarding(&ports, false)?;
        std::thread::sleep(CUT);
        let back = self.wait(paths);
        let during = (struck, now());
        Port::set_forwarding(&ports, true)?;
        back?;
        std::thread::sleep(UNDER_WAY);
        let uses = |name: &str| its.iter().any(|user| user == name) || clients.contains_key(name);
        let gaps = paths.gaps(during, |user, _| uses(user));
        let lost = paths.lost(during, |user, _| !uses(user));
        say!("without {exit}: {gaps:?} ms");
        // Until its users have come back to it.
        let home = || Ok(self.users_of(exit).is_ok_and(|users| users == its));
        wait_until("the return of an exit's users", PATIENCE, home)?;
        std::thread::sleep(CALM);
        Ok((gaps, lost))
    }
}

/// Plugs a host into the world, with addresses that end with `number`.
fn settle(segment: &Segment, host: &Host, number: u8) -> anyhow::Result<Port> {
    let port = segment.plug(host, WORLD)?;
    let [a, b, c, _] = WEB_V4.octets();
    let v4 = Ipv4Addr::new(a, b, c, number);
    let [p, q, r, ..] = WEB_V6.segments();
    // The last digits of both look the same.
    let last = u16::from(number / 10 * 16 + number % 10);
    let v6 = Ipv6Addr::new(p, q, r, 0, 0, 0, 0, last);
    host.ip(&format!("addr add {v4}/24 dev {WORLD}\naddr add {v6}/64 dev {WORLD} nodad\n"))?;
    Ok(port)
}

/// A file with these options, in a mesh that has IPv4, too.
fn with(options: OptionsFile) -> anyhow::Result<MeshFile> {
    let ipv4 = Some("100.64.0.0/16".parse()?);
    Ok(MeshFile { options: Some(OptionsFile { ipv4, ..options }), ..MeshFile::default() })
}

fn everywhere() -> anyhow::Result<Vec<Prefix>> {
    Ok(vec!["0.0.0.0/0".parse()?, "::/0".parse()?])
}

fn broken(options: &Options, figures: &Figures) -> Vec<String> {
    let mut broken = Vec::new();
    for (exit, (share, carried)) in EXITS.iter().zip(figures.shares.iter().zip(&figures.carried)) {
        if *share == 0 || *carried == 0 {
            broken.push(format!("{exit} had {share} users and carried {carried} packets"));
        }
    }
    if options.runs > 0 {
        let what = "packets go on by the other exit";
        at_most(&mut broken, what, figures.outage_ms.max, options.max_outage_ms);
    }
    none_lost(&mut broken, "of others", figures.others_lost);
    broken
}
