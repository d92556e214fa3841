//! One host: its clock, its kernel, its agent if one runs, and what the driver remembers.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use selvedge_gateway::desired::{Desired, Duty, Upstream};
use selvedge_gateway::kv::{Health, LeaseId, Revision, StoreError, TxnReply};
use selvedge_gateway::probe::Message;
use selvedge_gateway::{Gateway, Isolated, Memory, NodeRole, Token};
use selvedge_model::{NodeName, Time, Vni};

/// How many datagrams wait for an agent that does not run; more are dropped, as a socket does.
const SOCKET: usize = 300;
/// How many lines are kept of what an agent reported.
const LAST_EVENTS: usize = 12;

/// The clock that an agent sees: it began at another time than the world's and runs at another
/// rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clock {
    /// What it shows when the world begins, in microseconds.
    pub offset: u64,
    /// How much faster it runs than the world's, in millionths; less than zero: slower.
    pub drift: i64,
}

impl Clock {
    /// What it shows at a time of the world.
    #[must_use]
    pub fn local(self, world: Time) -> Time {
        let micros = world.as_micros();
        let drifted = millionths(micros, self.drift);
        Time::from_micros(self.offset.saturating_add(micros).saturating_add_signed(drifted))
    }

    /// The earliest time of the world, to a few microseconds, at which it shows `local` or more.
    #[must_use]
    pub fn world(self, local: Time) -> Time {
        let micros = local.as_micros().saturating_sub(self.offset);
        // Off by the drift of the drift, so that a few steps remain.
        let guess = micros.saturating_add_signed(millionths(micros, -self.drift));
        let mut world = Time::from_micros(guess.saturating_sub(2));
        while self.local(world) < local {
            world = world + Duration::from_micros(1);
        }
        world
    }
}

fn millionths(micros: u64, share: i64) -> i64 {
    i64::try_from(i128::from(micros) * i128::from(share) / 1_000_000).unwrap_or(0)
}

/// What reaches an agent from outside.
#[derive(Debug)]
pub enum Input {
    /// A datagram from a site, on a path.
    Message(usize, usize, Box<Message>),
    /// The answer to a transaction.
    Reply(Token, Result<TxnReply, StoreError>),
    /// How the store's members are.
    Health(Health),
    /// The watch has something.
    Deliver,
    /// A lease is granted, or is not.
    Granted(Option<LeaseId>),
    /// The lease is to be kept alive.
    KeepAlive,
    /// The supervisor looks whether the store answers.
    Pulse,
    /// The applier is done.
    Apply,
    /// The switch is thrown.
    Silence,
}

/// What a host is there for and how it is set up; stays over restarts.
#[derive(Clone, Debug)]
pub struct Part {
    /// Whether it serves networks or only votes.
    pub role: NodeRole,
    /// What it does when it is cut off.
    pub isolated: Isolated,
    /// Its clock.
    pub clock: Clock,
    /// How much longer than usual the store's news take to get here, at most, in milliseconds.
    pub watch_lag: u64,
}

impl Default for Part {
    fn default() -> Self {
        Self {
            role: NodeRole::Gateway,
            isolated: Isolated::Auto,
            clock: Clock::default(),
            watch_lag: 0,
        }
    }
}

/// Since when a kernel has routes for a network without a break.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    /// Those that attract what comes from upstream.
    pub upstream: Option<Time>,
    /// Those in the fabric.
    pub fabric: Option<Time>,
}

impl Routes {
    /// What they are when the kernel does this from now on.
    #[must_use]
    pub fn and(self, duty: Duty, now: Time) -> Self {
        let since = |known: Option<Time>, holds: bool| holds.then(|| known.unwrap_or(now));
        let upstream = since(self.upstream, duty.upstream != Upstream::Off);
        Self { upstream, fabric: since(self.fabric, duty.fabric) }
    }
}

/// A gateway host: its kernel, and the agent if it runs.
#[derive(Debug)]
pub struct Host {
    /// Its name.
    pub name: NodeName,
    /// What it is there for.
    pub part: Part,
    /// Whether it has power.
    pub powered: bool,
    /// What the kernel does; it goes on when the agent has crashed.
    pub kernel: BTreeMap<Vni, Duty>,
    /// Since when it has routes for networks, upstream and in the fabric.
    pub(super) routes: BTreeMap<Vni, Routes>,
    /// Whether the kernel answers nothing, whatever it would do.
    pub silenced: bool,
    /// The agent.
    pub agent: Option<Gateway>,
    /// What its agent calls itself, to be told from another with the same name.
    pub identity: String,
    /// Whether the host reaches the store, as far as its own link to it goes.
    pub linked: bool,
    /// Whether its agent is stopped, and will go on where it was.
    pub frozen: bool,
    /// Whether the whole host is stopped, its kernel included.
    pub paused: bool,
    /// Until when its agent gets no processor.
    pub stalled_until: Time,
    /// Since when its agent has run without a break.
    pub running_since: Time,
    /// Whether its agent has heard from the store since it was last cut off or frozen.
    pub hears: bool,
    /// Whether its agent has found its name taken.
    pub name_taken: bool,
    /// Whether the agent has said that it owns nothing any more.
    pub left: bool,
    /// Whether its agent says that it serves although it is cut off.
    pub isolated: bool,
    /// Whether an operator has had networks taken over by force: what that brings about is the
    /// operator's doing.
    pub forced: bool,
    /// Whether its agent was told that it cannot do its job, or not for all networks, or to
    /// give everything up at once.
    pub excused: bool,
    /// Whether its agent was told to leave.
    pub leaving: bool,
    /// What its agents have left for the next one, and which version of that it is.
    pub(super) memory: Option<Memory>,
    pub(super) remembered: Option<(Revision, Revision)>,
    /// Whether its agent began with that.
    pub recalls: bool,
    /// What its agent last reported, and when.
    pub log: VecDeque<(Time, String)>,
    pub(super) run: u64,
    pub(super) seen: Option<Revision>,
    /// The latest revision that an agent on this host has read: an older store is refused. The
    /// driver keeps it for the next run.
    pub(super) floor: Option<Revision>,
    /// Whether the store is another one since, so that everything is to be read anew.
    pub(super) reset: bool,
    pub(super) lease: Option<LeaseId>,
    /// Whether the store has been asked for one.
    pub(super) granting: bool,
    pub(super) wanted: BTreeMap<Vni, Desired>,
    pub(super) applying: bool,
    pub(super) delivering: bool,
    /// Whether the core wants silence, and whether that is being brought about.
    pub(super) wants_silence: bool,
    pub(super) switching: bool,
    /// When the core wants to be woken, and when it will be.
    pub(super) timer: Option<Time>,
    pub(super) alarm: Option<Time>,
    /// Since when the store has not answered, and whether the core knows.
    pub(super) away_since: Option<Time>,
    pub(super) told_connected: bool,
    /// The member of the store that it talks to.
    pub(super) member: Option<usize>,
    pub(super) inbox: VecDeque<(u64, Input)>,
    pub(super) datagrams: usize,
}

impl Host {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.parse().expect("a valid name"),
            part: Part::default(),
            powered: true,
            kernel: BTreeMap::new(),
            routes: BTreeMap::new(),
            silenced: false,
            agent: None,
            identity: name.to_owned(),
            linked: true,
            frozen: false,
            paused: false,
            stalled_until: Time::ZERO,
            running_since: Time::ZERO,
            hears: false,
            name_taken: false,
            left: false,
            isolated: false,
            forced: false,
            excused: false,
            leaving: false,
            memory: None,
            remembered: None,
            recalls: false,
            log: VecDeque::new(),
            run: 0,
            seen: None,
            floor: None,
            reset: false,
            lease: None,
            granting: false,
            wanted: BTreeMap::new(),
            applying: false,
            delivering: false,
            wants_silence: false,
            switching: false,
            timer: None,
            alarm: None,
            away_since: None,
            told_connected: false,
            member: None,
            inbox: VecDeque::new(),
            datagrams: 0,
        }
    }

    /// Begins a new run of the agent, which finds the kernel as it is.
    pub(super) fn start(&mut self, agent: Gateway, now: Time) -> u64 {
        let old = std::mem::replace(self, Self::new(self.name.as_str()));
        *self = Self {
            name: old.name,
            part: old.part,
            kernel: old.kernel,
            routes: old.routes,
            floor: old.floor,
            silenced: old.silenced,
            wants_silence: old.silenced,
            identity: old.identity,
            linked: old.linked,
            log: old.log,
            run: old.run + 1,
            member: old.member,
            forced: old.forced,
            recalls: old.memory.is_some(),
            memory: old.memory,
            remembered: old.remembered,
            agent: Some(agent),
            running_since: now,
            delivering: true,
            ..Self::new("new")
        };
        self.run
    }

    /// The host forgets what its agents have read, as if its folder of state were lost.
    pub const fn forget_store(&mut self) {
        self.floor = None;
    }

    pub(super) fn is_behind(&self, revision: Revision) -> bool {
        let behind = self.seen.is_some_and(|seen| seen < revision);
        behind && self.agent.is_some() && !self.delivering
    }

    /// Whether the agent is there and gets to run now.
    #[must_use]
    pub fn runs(&self, now: Time) -> bool {
        self.agent.is_some() && !self.is_stopped(now)
    }

    /// Whether the agent knows the others, by the store or by what the run before has left.
    #[must_use]
    pub const fn knows_others(&self) -> bool {
        self.seen.is_some() || self.recalls
    }

    /// Whether whatever reaches the agent has to wait.
    #[must_use]
    pub fn is_stopped(&self, now: Time) -> bool {
        self.frozen || self.paused || now < self.stalled_until
    }

    /// Has the kernel do something for a network; returns whether that is new.
    pub(super) fn set_kernel(&mut self, vni: Vni, duty: Duty, now: Time) -> bool {
        let routes = self.routes.entry(vni).or_default().and(duty, now);
        if routes == Routes::default() {
            self.routes.remove(&vni);
        } else {
            self.routes.insert(vni, routes);
        }
        self.kernel.insert(vni, duty) != Some(duty)
    }

    /// What the host really does for a network.
    #[must_use]
    pub fn duty(&self, vni: Vni) -> Duty {
        let duty = self.kernel.get(&vni).copied().unwrap_or_default();
        Duty { answering: duty.answering && !self.silenced, ..duty }
    }

    /// Whether ARP and neighbour solicitations for a network's gateway are answered here.
    #[must_use]
    pub fn answers(&self, vni: Vni) -> bool {
        self.powered && !self.paused && self.duty(vni).answering
    }

    /// Whether it can do its part of a planned move: its kernel is there, speaks, and is not about
    /// to fall silent.
    #[must_use]
    pub const fn does_its_part(&self) -> bool {
        let speaks = !self.silenced && !self.wants_silence;
        self.powered && !self.paused && speaks && !self.excused
    }

    /// Whether it answers for any network.
    #[must_use]
    pub fn answers_any(&self) -> bool {
        let any = self.kernel.values().any(|duty| duty.answering);
        any && self.powered && !self.paused && !self.silenced
    }

    /// What the agent's clock shows.
    #[must_use]
    pub fn local(&self, now: Time) -> Time {
        self.part.clock.local(now)
    }

    pub(super) fn note(&mut self, now: Time, line: String) {
        self.log.push_back((now, line));
        while self.log.len() > LAST_EVENTS {
            self.log.pop_front();
        }
    }

    /// Keeps what cannot be delivered now.
    pub(super) fn keep(&mut self, run: u64, input: Input) {
        if matches!(input, Input::Message(..)) {
            if self.datagrams == SOCKET {
                return;
            }
            self.datagrams += 1;
        }
        self.inbox.push_back((run, input));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_differ_and_can_be_set_back() {
        for drift in [-100, 0, 100] {
            let clock = Clock { offset: 5_000_000, drift };
            let mut last = Time::ZERO;
            for micros in (1..200_000_000).step_by(777_777) {
                let world = Time::from_micros(micros);
                let local = clock.local(world);
                assert!(local > last);
                last = local;
                let back = clock.world(local);
                assert!(back <= world && world.since(back) <= Duration::from_micros(2));
                assert!(clock.local(back) >= local);
            }
        }
        let fast = Clock { offset: 0, drift: 100 };
        assert_eq!(fast.local(Time::from_micros(1_000_000)), Time::from_micros(1_000_100));
    }
}
