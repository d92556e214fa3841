//! A large mesh: news, idleness, crashes, joins, and a partition, one after the other.

use std::time::Duration;

use rand::seq::IndexedRandom as _;
use selvedge_mesh::wire::{Envelope, Message, Summary};
use selvedge_mesh::{Config, Grant, InviteId, InviteTerms, Joining, Mesh, State, UnixTime};
use selvedge_model::{Time, WgKey};
use serde::Serialize;

use super::net::Conditions;
use super::predecessor;
use super::world::{Setup, Tracked, World, profile};

/// What to run.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Number of members.
    #[arg(long, default_value_t = 3000)]
    pub nodes: usize,
    /// Where all randomness comes from.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// The chance that a packet is lost.
    #[arg(long, default_value_t = 0.01)]
    pub loss: f64,
    /// This part of the nodes stalls every few seconds for up to a second.
    #[arg(long, default_value_t = 0.0)]
    pub stalling: f64,
    /// Number of changes that are followed, one after the other.
    #[arg(long, default_value_t = 20)]
    pub updates: usize,
    /// Seconds without anything to do.
    #[arg(long, default_value_t = 40)]
    pub idle: u64,
    /// Number of nodes that crash, one after the other.
    #[arg(long, default_value_t = 4)]
    pub crashes: usize,
    /// Number of nodes that join, one after the other.
    #[arg(long, default_value_t = 3)]
    pub joins: usize,
    /// Seconds for which the mesh is torn into halves; 0 for not at all.
    #[arg(long, default_value_t = 12)]
    pub partition: u64,
    /// Changes on each side meanwhile.
    #[arg(long, default_value_t = 100)]
    pub changes: usize,
    /// Number of nodes that crash, and of others that join, within ten seconds; 0 for not at all.
    #[arg(long, default_value_t = 0)]
    pub churn: usize,
    /// Copies of one piece of news that a node tolerates: 1 makes a tree, many flood.
    #[arg(long, default_value_t = Config::default().copies)]
    pub copies: usize,
    /// Run the predecessor's scheme instead: one change, by how many rounds all know it.
    #[arg(long)]
    pub predecessor: bool,
    /// Print the JSON line alone.
    #[arg(long)]
    pub json: bool,
}

/// Over several runs of the same: the worst time after which half of the nodes knew, after which
/// 99 % did, and after which all did, in ms.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Spread {
    /// Half of the nodes.
    pub p50: f64,
    /// 99 % of the nodes.
    pub p99: f64,
    /// All nodes.
    pub max: f64,
}

/// How long joining took, the worst of several, in ms.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Join {
    /// From asking to holding the whole state.
    pub state: f64,
    /// From asking to being known by all.
    pub known: f64,
    /// Bytes received until then over the size of the state.
    pub received_over_state: f64,
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Number of members.
    pub nodes: usize,
    /// The seed.
    pub seed: u64,
    /// The chance that a packet was lost.
    pub loss: f64,
    /// How a change becomes known.
    pub update_ms: Spread,
    /// Copies of a change that a node receives, on average.
    pub copies_per_update: f64,
    /// How a crash becomes known.
    pub crash_known_ms: Spread,
    /// How many nodes were held to be down that ran and could be reached.
    pub false_failures: usize,
    /// Node-hours for which these were looked for.
    pub node_hours: f64,
    /// From the end of a partition until all hold the same.
    pub heal_ms: f64,
    /// From its end until nobody is held to be down who runs.
    pub heal_lives_ms: f64,
    /// From the last of many crashes and joins until all know of all of them.
    pub churn_ms: f64,
    /// How a new node comes in.
    pub join_ms: Join,
    /// Bytes on the wire that a node sends in a second, and so receives, with nothing to do:
    /// probes, renewals and all headers included.
    pub idle_bytes_per_node_s: f64,
    /// Of these the probes.
    pub idle_probe_bytes_per_node_s: f64,
    /// What two nodes send each other, and how often, to make one difference good.
    pub repair_bytes: u64,
    /// Round trips for that.
    pub repair_round_trips: f64,
    /// Bytes of all records.
    pub state_bytes: usize,
    /// Messages that arrived.
    pub messages: u64,
    /// Virtual time of the whole run, in s.
    pub virtual_s: f64,
    /// Real time of the whole run, in s.
    pub wall_s: f64,
    /// Greatest resident memory of this process, in MB.
    pub peak_rss_mb: f64,
    /// Number of violations of invariants.
    pub violations: usize,
    /// The first of them, and the false failures, in words.
    #[serde(skip)]
    pub details: Vec<String>,
}

/// How long anything is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the trees are given to take shape.
const WARM_UP: Duration = Duration::from_secs(8);

/// Runs the scenario.
#[must_use]
pub fn run(options: &Options) -> Report {
    #[expect(clippy::disallowed_types, reason = "the real time that the run took is reported")]
    let began = std::time::Instant::now();
    let mut report = Report {
        nodes: options.nodes,
        seed: options.seed,
        loss: options.loss,
        ..Report::default()
    };
    if options.predecessor {
        predecessor::run(options, &mut report);
    } else {
        run_phases(options, &mut report);
    }
    report.wall_s = seconds(began.elapsed());
    report.peak_rss_mb = peak_rss_mb();
    report
}

fn run_phases(options: &Options, report: &mut Report) {
    let mut world = warmed_up(options);
    updates(&mut world, options, report);
    idle(&mut world, options, report);
    crashes(&mut world, options, report);
    joins(&mut world, options, report);
    repair(&mut world, report);
    partition(&mut world, options, report);
    churn(&mut world, options, report);
    finish(&mut world, options, report);
}

/// A mesh whose trees have taken shape.
fn warmed_up(options: &Options) -> World {
    let mut world = World::new(setup(options));
    world.run(WARM_UP);
    for _ in 0..8 {
        let place = world.draw();
        world.update(place);
        world.run(Duration::from_millis(500));
    }
    world.tracked.clear();
    world
}

/// When the nodes came to know of each of several changes, in order.
#[must_use]
pub fn spread_updates(options: &Options) -> Vec<Vec<Duration>> {
    let mut world = warmed_up(options);
    make_updates(&mut world, options);
    world.tracked.into_iter().map(|tracked| tracked.known).collect()
}

fn setup(options: &Options) -> Setup {
    let conditions = Conditions { loss: options.loss, double: 0.001, jitter: 0.1 };
    Setup {
        config: Config { copies: options.copies, ..Config::default() },
        stalling: options.stalling,
        ..Setup::plain(options.nodes, options.seed, conditions)
    }
}

fn make_updates(world: &mut World, options: &Options) {
    for _ in 0..options.updates {
        let place = world.draw();
        world.update(place);
        world.run(Duration::from_millis(400));
    }
    follow(world, "an update");
}

fn updates(world: &mut World, options: &Options, report: &mut Report) {
    make_updates(world, options);
    report.update_ms = spread(&world.tracked);
    let copies: u64 = world.tracked.iter().map(|tracked| tracked.copies).sum();
    let receivers: usize = world.tracked.iter().map(|tracked| tracked.known.len()).sum();
    report.copies_per_update = ratio(copies, receivers as u64);
    world.tracked.clear();
}

fn idle(world: &mut World, options: &Options, report: &mut Report) {
    if options.idle == 0 {
        return;
    }
    let sent = |world: &World| world.nodes.iter().map(|node| node.port.sent).sum::<u64>();
    let (before, probes) = (sent(world), world.traffic.probes);
    world.run(Duration::from_secs(options.idle));
    let node_seconds = options.idle * options.nodes as u64;
    report.idle_bytes_per_node_s = ratio(sent(world) - before, node_seconds);
    report.idle_probe_bytes_per_node_s = ratio(world.traffic.probes - probes, node_seconds);
}

fn crashes(world: &mut World, options: &Options, report: &mut Report) {
    for _ in 0..options.crashes {
        let victim = world.draw();
        world.crash(victim);
        follow(world, "a crash");
        world.run(Duration::from_millis(700));
    }
    report.crash_known_ms = spread(&world.tracked);
    world.tracked.clear();
}

fn joins(world: &mut World, options: &Options, report: &mut Report) {
    for _ in 0..options.joins {
        let (began, place) = (world.now, join(world));
        let Some(place) = place else {
            world.violation("a node could not join".to_owned());
            continue;
        };
        world.track_record(place);
        let held = world.run_until(PATIENCE, |world| holds_all(world, place));
        let state = held.map_or(PATIENCE, |_| world.now.since(began));
        let received = world.nodes[place].port.received;
        follow(world, "a new node");
        let known = world.now.since(began);
        let worst = &mut report.join_ms;
        worst.state = worst.state.max(millis(state));
        worst.known = worst.known.max(millis(known));
        report.state_bytes = state_bytes(world);
        let over = ratio(received, report.state_bytes as u64);
        worst.received_over_state = worst.received_over_state.max(over);
        world.tracked.clear();
    }
}

/// Lets a new node join, as an agent does: by an invite, at the founder. Returns its place.
pub(super) fn join(world: &mut World) -> Option<usize> {
    join_at(world, 0)
}

/// The same at another member that may invite, with which it is on one side.
pub(super) fn join_at(world: &mut World, host: usize) -> Option<usize> {
    let place = world.add();
    world.nodes[place].host = host;
    world.nodes[place].port.side = world.nodes[host].port.side;
    let (identity, (now, wall)) = (world.identity(place), world.clocks(host));
    let asker = identity.node_id();
    let mut id = [0; 16];
    id[..8].copy_from_slice(&(place as u64).to_le_bytes());
    let not_after = UnixTime(wall.0 + 3600);
    let terms = InviteTerms { id: InviteId(id), grant: Grant::default(), uses: 1, not_after };
    let member = world.nodes[host].mesh.as_mut()?;
    let invite = member.invite(terms, wall).ok()?;
    let mut wg = [3; 32];
    wg[..16].copy_from_slice(&id);
    let joining = Joining::new(identity, invite, WgKey(wg), profile(place), wall).ok()?;
    // Its own transport asks; the answer is taken from the member's core, and the time that both
    // need on the way is let pass.
    let question = joining.message();
    member.handle_message(asker, &question, now, wall);
    let answer = std::iter::from_fn(|| member.poll_transmit()).find(|sent| sent.to == asker)?;
    let (there, back) = (question.len(), answer.bytes.len());
    let round = world.exchange_time(place, host, there) + world.exchange_time(host, place, back);
    world.nodes[place].port.received += back as u64;
    let member = world.nodes[host].id;
    let state: State = joining.handle_message(member, &answer.bytes, wall).ok()?;
    world.run(round);
    world.start(place, state);
    Some(place)
}

fn holds_all(world: &mut World, place: usize) -> bool {
    let count = |mesh: Option<&mut Mesh>| mesh.map(|mesh| mesh.digest().count);
    let held = count(world.nodes[place].mesh.as_mut());
    // All that were there before, and itself.
    held.is_some_and(|held| held > place as u64)
}

/// Lets two nodes alone make one difference good, and counts what they send.
fn repair(world: &mut World, report: &mut Report) {
    let (a, b) = (world.draw(), world.nodes.len() - 1);
    let b = if world.nodes[b].mesh.is_some() && a != b { b } else { 0 };
    let wall = world.wall();
    let copy = |world: &World, place: usize| {
        let mesh = world.nodes[place].mesh.as_ref()?;
        let mut state = State::decode(&mesh.snapshot()).ok()?.kept_by(world.nodes[place].id)?;
        state.verify_by(selvedge_mesh::Verifier::default());
        Mesh::new(world.identity(place), state, Config::default(), 1, Time::ZERO, wall).ok()
    };
    let (Some(mut one), Some(mut other)) = (copy(world, a), copy(world, b)) else { return };
    one.set_profile(profile(77)).expect("in bounds");
    while one.poll_transmit().is_some() {}
    let digest = other.digest();
    let summary =
        Summary { hash: digest.hash, count: digest.count, introduction: None, evictions: None };
    let first = Envelope { mesh: one.id(), message: Message::Digest(summary) }.encode();
    let (bytes, messages) = exchange(&mut other, &mut one, first, wall);
    report.repair_bytes = bytes;
    report.repair_round_trips = f64::from(messages) / 2.0;
    if one.digest() != other.digest() {
        world.violation("M2: a reconciliation left a difference".to_owned());
    }
}

/// Passes messages between two nodes until neither has more to say to the other. How many bytes
/// that took, and how often one had to wait for the other.
fn exchange(a: &mut Mesh, b: &mut Mesh, first: Vec<u8>, wall: UnixTime) -> (u64, u32) {
    let (mut bytes, mut turns) = (0, 0);
    let mut under_way = vec![first];
    let (mut from, mut to) = (a, b);
    while !under_way.is_empty() {
        turns += 1;
        for message in &under_way {
            bytes += message.len() as u64 + 52;
            to.handle_message(from.node(), message, Time::ZERO, wall);
        }
        let back = from.node();
        let sent = std::iter::from_fn(|| to.poll_transmit()).filter(|sent| sent.to == back);
        under_way = sent.map(|sent| sent.bytes.to_vec()).collect();
        std::mem::swap(&mut from, &mut to);
    }
    (bytes, turns)
}

fn partition(world: &mut World, options: &Options, report: &mut Report) {
    if options.partition == 0 {
        return;
    }
    // Who crashed before is of neither side.
    let dead = world.nodes.len() - world.running().count();
    let half = world.nodes.len() / 2;
    world.tear(|place| u8::from(place >= half));
    let length = Duration::from_secs(options.partition);
    for change in 0..options.changes * 2 {
        let side: Vec<usize> =
            world.running().filter(|place| (*place >= half) == (change % 2 == 0)).collect();
        if let Some(place) = side.choose(&mut world.rng) {
            world.change(*place);
        }
        world.run(length / (options.changes as u32 * 2));
    }
    world.mend();
    let healed = world.run_until(PATIENCE, World::agreed);
    report.heal_ms = millis(healed.unwrap_or(PATIENCE));
    if healed.is_none() {
        world.violation("M6: a partition has not healed".to_owned());
    }
    let running = world.running().count();
    let up = world.run_until(PATIENCE * 2, |world| world.held_down() <= dead * running);
    report.heal_lives_ms = report.heal_ms + millis(up.unwrap_or(PATIENCE * 2));
}

fn churn(world: &mut World, options: &Options, report: &mut Report) {
    if options.churn == 0 {
        return;
    }
    for _ in 0..options.churn {
        let victim = world.draw();
        world.crash(victim);
        let end = world.now + Duration::from_secs(10) / options.churn as u32;
        if let Some(place) = join(world) {
            world.track_record(place);
        }
        world.run(end.since(world.now));
    }
    let known = world.run_until(PATIENCE, |world| world.tracked.iter().all(Tracked::is_known));
    let agreed = world.run_until(PATIENCE, World::agreed);
    report.churn_ms = millis(known.unwrap_or(PATIENCE) + agreed.unwrap_or(PATIENCE));
    world.tracked.clear();
}

fn finish(world: &mut World, options: &Options, report: &mut Report) {
    if world.run_until(PATIENCE, World::agreed).is_none() {
        world.violation("M2: the members do not agree in the end".to_owned());
    }
    report.messages = world.messages;
    report.virtual_s = seconds(world.now.since(Time::ZERO));
    report.node_hours = round(report.virtual_s * options.nodes as f64 / 3600.0);
    report.false_failures = world.false_failures.len();
    report.violations = world.violations.len();
    report.details.append(&mut world.violations);
    report.details.append(&mut world.false_failures);
    report.details.truncate(20);
}

/// Waits until all know of what is followed.
fn follow(world: &mut World, what: &str) {
    let all = |world: &mut World| world.tracked.iter().all(Tracked::is_known);
    if world.run_until(PATIENCE, all).is_none() {
        let lacking: usize = world.tracked.iter().filter(|tracked| !tracked.is_known()).count();
        world.violation(format!(
            "M2: {what} is not known to all after a minute ({lacking} of these)"
        ));
    }
}

fn state_bytes(world: &World) -> usize {
    world.nodes[0].mesh.as_ref().map_or(0, |mesh| mesh.snapshot().len())
}

fn spread(tracked: &[Tracked]) -> Spread {
    let worst = |part: f64| {
        let times = tracked.iter().map(|tracked| tracked.known_by(part).unwrap_or(PATIENCE));
        millis(times.max().unwrap_or_default())
    };
    Spread { p50: worst(0.5), p99: worst(0.99), max: worst(1.0) }
}

#[allow(clippy::cast_precision_loss, reason = "small numbers")]
fn ratio(a: u64, b: u64) -> f64 {
    round(a as f64 / b.max(1) as f64)
}

pub(super) fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

pub(super) fn seconds(duration: Duration) -> f64 {
    round(duration.as_secs_f64())
}

pub(super) fn millis(duration: Duration) -> f64 {
    round(duration.as_secs_f64() * 1000.0)
}

/// From the kernel's account of this process; 0 where there is none.
fn peak_rss_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kb = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    round(kb.unwrap_or(0.0) / 1024.0)
}
