//! What each host may know of the others, by the links and the agents alone: whether it can have
//! a right to serve at all, and whether it is so well connected that nobody may take that for lost.
//!
//! Between the two lies what a protocol may judge either way.

use std::time::Duration;

use selvedge_gateway::kv::Revision;
use selvedge_gateway::{Gateway, Isolated, NodeRole};
use selvedge_model::{NodeName, Time};

use super::host::Host;
use super::world::{Place, World};

/// How long an agent must have run without a break to be above suspicion.
const STEADY: Duration = Duration::from_secs(1);
/// How long the store must have been whole, so that what began before is decided.
const DECIDED: Duration = Duration::from_secs(4);

/// How a host stands at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footing {
    /// Since when neither a majority of the voters nor the store can have answered it.
    pub lost_since: Option<Time>,
    /// Since when it has been in touch with a majority of the voters, on clean paths, and has
    /// heard from the store.
    pub well_since: Option<Time>,
    /// The revision of the electorate by which this was judged.
    pub electorate: Revision,
    /// What it was registered as when it became well.
    pub incarnation: Option<Revision>,
    /// Whether it was well for so long with a store that answers that nothing from before is open.
    pub sound: bool,
    /// Whether it may go on serving when it is lost.
    pub may_serve_lost: bool,
}

impl Footing {
    /// Nothing is known.
    pub const UNKNOWN: Self = Self {
        lost_since: None,
        well_since: None,
        electorate: Revision(0),
        incarnation: None,
        sound: false,
        may_serve_lost: true,
    };
}

/// Looks at all hosts, and lets the checker look at what lasts too long.
pub(super) fn look(world: &mut World) {
    let now = world.now;
    let voters = world.checker.cache.electorate().voters;
    let whole = is_store_whole(world);
    let since = world.checker.store_whole_since.filter(|_| whole);
    world.checker.store_whole_since = whole.then(|| since.unwrap_or(now));
    let decided = since.is_some_and(|since| now.since(since) > DECIDED);
    for host in 0..world.hosts.len() {
        let before = world.checker.footing(host);
        let after = stand(world, host, &voters, decided, before);
        world.checker.set_footing(host, after);
    }
    world.checker.look(&world.hosts, now);
    world.describe();
}

fn stand(
    world: &World,
    host: usize,
    voters: &[NodeName],
    decided: bool,
    before: Footing,
) -> Footing {
    let there = &world.hosts[host];
    let now = world.now;
    let lost = there.runs(now) && is_lost(world, host, voters);
    let incarnation = world.checker.cache.live.get(&there.name).map(|live| live.incarnation);
    let same = before.incarnation.is_none() || before.incarnation == incarnation;
    let well = same && is_well(world, host, voters);
    // Who was heard long ago may make up a majority of fewer.
    let electorate = world.checker.cache.nodes_revision;
    let lost_before = before.lost_since.filter(|_| before.electorate == electorate);
    let keep = |before: Option<Time>, holds: bool| holds.then(|| before.unwrap_or(now));
    let well_since = keep(before.well_since, well);
    let long = well_since.is_some_and(|since| now.since(since) > DECIDED);
    let few = known(there).len() <= 2;
    Footing {
        lost_since: keep(lost_before, lost),
        well_since,
        electorate,
        incarnation: incarnation.filter(|_| well),
        sound: well && (before.sound || (long && decided)),
        may_serve_lost: match there.part.isolated {
            Isolated::Auto => few || there.forced,
            Isolated::Stop => there.forced,
            Isolated::Serve => true,
        },
    }
}

/// Whether the store answers everybody soon who is connected at all.
fn is_store_whole(world: &World) -> bool {
    let there = match world.setup.store {
        Place::Anywhere => true,
        Place::OnHosts | Place::Elsewhere(_) => world.cluster.acting_leader().is_some(),
    };
    world.store_up && there && world.cluster.is_fast()
}

/// Whether nobody whose word counts can have answered: neither enough voters, by what the host
/// knows or by what the store says, nor the store.
fn is_lost(world: &World, host: usize, voters: &[NodeName]) -> bool {
    let may_answer =
        |other: usize| world.hosts[other].runs(world.now) && world.links.may_answer(host, other);
    let none = |voters: &[NodeName]| !has_majority(world, host, voters, may_answer);
    let known = known(&world.hosts[host]);
    // Whoever believes to be the only voter hears nobody else.
    world.route(host).is_none() && none(voters) && (known.len() <= 1 || none(known))
}

fn is_well(world: &World, host: usize, voters: &[NodeName]) -> bool {
    let this = &world.hosts[host];
    let Some(live) = world.checker.cache.live.get(&this.name) else { return false };
    let hears = |other: usize| {
        let other_host = &world.hosts[other];
        is_steady(world, other_host)
            && other_host.seen.is_some_and(|seen| seen >= live.incarnation)
            && world.links.is_clean(host, other)
    };
    let registered = live.lease.is_some() && live.lease == this.lease;
    let able = this.part.role == NodeRole::Witness || !this.excused;
    registered
        && !world.is_refused(host)
        && able
        && is_steady(world, this)
        && !this.leaving
        && has_majority(world, host, voters, hears)
        && has_majority(world, host, known(this), hears)
}

/// The voters by whom the host counts.
fn known(host: &Host) -> &[NodeName] {
    host.agent.as_ref().map(Gateway::voters).unwrap_or_default()
}

/// Whether an agent is registered, not convicted, and has run for a while.
fn is_steady(world: &World, host: &Host) -> bool {
    let cache = &world.checker.cache;
    let registered = cache.live.get(&host.name).is_some_and(|live| live.lease == host.lease);
    let long = world.now.since(host.running_since) > STEADY;
    registered && host.runs(world.now) && long && !cache.is_convicted(&host.name)
}

/// Whether a majority of `voters` is the host itself or hears it.
fn has_majority(
    world: &World,
    host: usize,
    voters: &[NodeName],
    hears: impl Fn(usize) -> bool,
) -> bool {
    let counts = |name: &&NodeName| {
        let voter = world.host_named(name);
        voter.is_some_and(|voter| voter == host || hears(voter))
    };
    let count = voters.iter().filter(counts).count();
    !voters.is_empty() && count > voters.len() / 2
}
