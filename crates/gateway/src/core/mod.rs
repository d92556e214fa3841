//! One agent's share of the gateway plane.
//!
//! Inputs go in by `handle_*`, outputs come out by `poll_*`, and time is an argument. After each
//! input the driver takes all outputs, then waits for the next input or for
//! [`Gateway::poll_timeout`].
//!
//! - [`registration`] keeps this node's own keys in the store: who it is, that it lives, that it
//!   may be given networks.
//! - [`network`] looks at one network: what this host shall do for it, and which transaction is
//!   this node's to write.
//! - [`config`] and [`event`] are what it is told and what it has to say to people.
//! - [`liveness`] watches over the other voters, to whom this one speaks in [`talk`]; [`verdict`]
//!   decides which of them are lost ([`doubt`] if there are only two), and [`right`] whether this
//!   node may serve; [`fitness`] is what becomes of a host that cannot do its job,
//!   [`memory`] of an agent that starts while the store is away, [`standin`] of a takeover that the store does not confirm.
//! - [`planner`] starts planned moves, on the one node that holds the lease for it.

mod config;
mod doubt;
mod event;
mod fitness;
mod liveness;
mod memory;
mod network;
mod planner;
mod refill;
mod registration;
mod right;
mod standin;
pub mod status;
mod talk;
mod vacancy;
mod verdict;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use selvedge_model::{NodeName, Time, Vni, VniRanges};

pub use self::config::{Config, Isolated, NodeRole, Timing};
pub use self::event::{Event, OperatorError, Reason};
use self::fitness::Fitness;
use self::liveness::Liveness;
pub use self::memory::{Memory, Remembered};
use self::network::{Local, Outbox};
use self::planner::Plan;
use self::refill::Forgotten;
use self::registration::Standing;
use self::right::Title;
use self::verdict::Court;
use crate::cache::{Cache, Concern};
use crate::desired::Desired;
use crate::kv::{Batch, Health, LeaseId, Revision, Snapshot, StoreError, Txn, TxnReply};
use crate::placement::Ring;
use crate::probe::{Electorate, Message, Outgoing};

/// What the store's supervisor reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreInput {
    /// Everything, read anew. Replaces what was known.
    Snapshot(Snapshot),
    /// What happened since.
    Batch(Batch),
    /// The store answers.
    Connected,
    /// The store does not answer.
    Disconnected,
    /// A lease was granted; it is kept alive until [`StoreInput::LeaseLost`].
    Lease(LeaseId),
    /// The lease is gone.
    LeaseLost,
}

/// Names a transaction that the core asked for. Every one is answered exactly once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Token(u64);

/// What a transaction was for.
#[derive(Clone, Debug)]
enum Purpose {
    /// Steps of networks, each a nested transaction.
    Networks(Vec<Vni>),
    Registration,
    Campaign,
    Start,
    Word,
    /// Whether this registration stands, asked at that time.
    Confirm(Time),
    /// That an incarnation is lost.
    Verdict(NodeName, Revision),
    /// Whether it is not.
    Acquit(NodeName, Revision),
    /// That one of two voters does not hear the other.
    Doubt(NodeName),
    /// What this node clears up.
    Chores,
}

/// Where a piece of work stands that needs the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Pending {
    /// Nothing is under way.
    #[default]
    No,
    /// A transaction is on its way.
    Sent,
    /// It was committed, which is known once the watch has reached this revision; there is a time
    /// limit for the same reason as below.
    Committed(Revision, Time),
    /// It was not, and why is known once the watch has reached this revision. The watch may never
    /// report it if keys of others have changed since, so there is a time limit; trying again
    /// too early does no harm.
    Refused(Revision, Time),
    /// The store did not answer; not before this time again.
    RetryAt(Time),
}

impl Pending {
    fn is_free(self, revision: Revision, now: Time) -> bool {
        match self {
            Self::No => true,
            Self::Sent => false,
            Self::Committed(reached, limit) | Self::Refused(reached, limit) => {
                revision >= reached || now >= limit
            }
            Self::RetryAt(at) => now >= at,
        }
    }

    /// When it is free at the latest, without a word of the watch.
    const fn wakes_at(self) -> Option<Time> {
        match self {
            Self::Committed(_, at) | Self::Refused(_, at) | Self::RetryAt(at) => Some(at),
            Self::No | Self::Sent => None,
        }
    }
}

/// A word of the operator about a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Drain,
    Undrain,
    Remove,
}

/// What the store says of one node, as far as its networks depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Repute {
    incarnation: Option<Revision>,
    on_ring: bool,
    convicted: bool,
    presumed: bool,
}

/// How long to wait after the store did not answer.
const RETRY: Duration = Duration::from_millis(200);
/// How long the watch is given to report why a transaction was refused.
const CATCH_UP: Duration = Duration::from_secs(1);
/// How often the announcements of a fresh owner are repeated, and the clock of all periodic ones.
const TICK: Duration = Duration::from_secs(1);
/// How many networks are looked at in one go, so that the other voters never wait for an answer.
const LOOKS: usize = 256;

/// One agent's share of the gateway plane.
///
/// After each input the driver takes all outputs, then waits for the next input or for
/// [`poll_timeout`](Self::poll_timeout).
#[derive(Debug)]
pub struct Gateway {
    config: Config,
    rng: ChaCha8Rng,
    cache: Cache,
    ring: Ring,
    reputes: BTreeMap<NodeName, Repute>,
    /// Whether a predecessor's daemon takes part.
    predecessor: bool,
    /// Whether the cache has been filled once.
    synced: bool,
    connected: bool,
    lease: Option<LeaseId>,
    standing: Standing,
    /// The incarnation that this run of the agent registered last, or the run before.
    last_incarnation: Option<Revision>,
    /// That of the run before, until this one is registered.
    recalled: Option<Revision>,
    liveness: Liveness,
    court: Court,
    title: Title,
    /// Who votes.
    electorate: Electorate,
    /// When each registration was first seen; those that were there at first, long ago.
    registered_at: BTreeMap<NodeName, (Revision, Time)>,
    forgotten: Option<Forgotten>,
    /// Whom an operator has given up, although they are not registered.
    given_up: BTreeSet<NodeName>,
    /// A digest of who may be given networks.
    placement_digest: u64,
    /// What keeps this host from doing its job.
    unfit: Vec<String>,
    fitness: Fitness,
    /// Until when this agent will be away on purpose, and since when it says so.
    away_until: Option<Time>,
    away_since: Time,
    looked_at: Time,
    /// When this incarnation was first seen to be convicted.
    convicted_at: Option<Time>,
    registration: Pending,
    /// Words of the operator on their way into the roster.
    words: BTreeMap<NodeName, Word>,
    word: Pending,
    leaving: bool,
    left: bool,
    /// The networks of the configuration, as the registration names them.
    ranges: VniRanges,
    locals: BTreeMap<Vni, Local>,
    /// Networks to look at.
    dirty: BTreeSet<Vni>,
    /// Networks that this host is to answer for.
    answering: BTreeSet<Vni>,
    /// Networks whose last transaction was refused, to be looked at once it is known why.
    waiting: BTreeSet<(Revision, Vni)>,
    /// When to look again: at a network, or at everything else.
    alarms: BTreeSet<(Time, Option<Vni>)>,
    tick_at: Time,
    ticks: u64,
    plan: Plan,
    purposes: BTreeMap<Token, Purpose>,
    next_token: u64,
    transactions: VecDeque<(Token, Txn)>,
    /// Steps of networks that wait to be sent together.
    outbox: Outbox,
    /// Announcements of new owners that are to be repeated soon.
    echoes: BTreeSet<(Time, Vni)>,
    desired: BTreeMap<Vni, Desired>,
    events: VecDeque<Event>,
    reported: BTreeSet<String>,
}

impl Gateway {
    /// An agent that knows nothing yet. It leaves the host as it is until it has read the store
    /// and is registered.
    #[must_use]
    pub fn new(config: Config, seed: u64, now: Time) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let first_tick = Duration::from_millis(rng.random_range(0..1000));
        let locals = config.networks.iter().map(|vni| (*vni, Local::default())).collect();
        Self {
            rng: ChaCha8Rng::seed_from_u64(rng.random()),
            cache: Cache::default(),
            ring: Ring::default(),
            reputes: BTreeMap::new(),
            predecessor: false,
            synced: false,
            connected: false,
            lease: None,
            standing: Standing::Unregistered,
            last_incarnation: None,
            recalled: None,
            liveness: Liveness::new(config.timing, rng.random(), now),
            court: Court::default(),
            title: Title::new(now),
            electorate: Electorate::default(),
            registered_at: BTreeMap::new(),
            forgotten: None,
            given_up: BTreeSet::new(),
            placement_digest: 0,
            unfit: Vec::new(),
            fitness: Fitness::default(),
            away_until: None,
            away_since: now,
            looked_at: now,
            convicted_at: None,
            registration: Pending::No,
            words: BTreeMap::new(),
            word: Pending::No,
            leaving: false,
            left: false,
            ranges: config.networks.iter().copied().collect(),
            locals,
            dirty: BTreeSet::new(),
            answering: BTreeSet::new(),
            waiting: BTreeSet::new(),
            alarms: BTreeSet::new(),
            tick_at: now + first_tick,
            ticks: 0,
            plan: Plan::default(),
            purposes: BTreeMap::new(),
            next_token: 0,
            transactions: VecDeque::new(),
            outbox: Outbox::default(),
            echoes: BTreeSet::new(),
            desired: BTreeMap::new(),
            events: VecDeque::new(),
            reported: BTreeSet::new(),
            config,
        }
    }

    /// Takes in what the store's supervisor reports.
    pub fn handle_store(&mut self, input: StoreInput, now: Time) {
        match input {
            StoreInput::Snapshot(snapshot) => self.handle_snapshot(snapshot, now),
            StoreInput::Batch(batch) => self.handle_batch(&batch, now),
            StoreInput::Connected => self.connected = true,
            StoreInput::Disconnected => self.connected = false,
            StoreInput::Lease(lease) => self.lease = Some(lease),
            StoreInput::LeaseLost => self.lease = None,
        }
        self.run(now);
    }

    /// Takes in the answer to a transaction.
    pub fn handle_reply(&mut self, token: Token, reply: Result<TxnReply, StoreError>, now: Time) {
        let Some(purpose) = self.purposes.remove(&token) else { return };
        let pending = match &reply {
            Ok(reply) if reply.committed => Pending::Committed(reply.revision, now + CATCH_UP),
            Ok(reply) => Pending::Refused(reply.revision, now + CATCH_UP),
            Err(_) => Pending::RetryAt(now + self.jittered(RETRY)),
        };
        if let Purpose::Networks(vnis) = purpose {
            self.outbox.note_answer();
            self.note_steps(&vnis, reply.ok(), pending);
            return self.run(now);
        }
        self.alarms.extend(pending.wakes_at().map(|at| (at, None)));
        self.note_court(&purpose, reply.as_ref().ok(), pending);
        match purpose {
            Purpose::Networks(_)
            | Purpose::Verdict(..)
            | Purpose::Acquit(..)
            | Purpose::Doubt(_)
            | Purpose::Chores => {}
            Purpose::Confirm(asked) => {
                self.title.asking = pending;
                if let Pending::Committed(..) = pending {
                    self.title.note_confirmation(asked);
                    self.title.asking = Pending::No;
                }
            }
            Purpose::Registration => self.registration = pending,
            Purpose::Campaign => self.plan.campaign = pending,
            Purpose::Start => self.plan.start = pending,
            Purpose::Word => self.word = pending,
        }
        self.run(now);
    }

    /// Takes in what the applier has brought about. A report that is out of date does no harm.
    pub fn handle_applied(&mut self, reached: impl IntoIterator<Item = (Vni, Desired)>, now: Time) {
        for (vni, desired) in reached {
            if let Some(local) = self.locals.get_mut(&vni) {
                local.applied(desired, now);
                self.dirty.insert(vni);
            }
        }
        self.run(now);
    }

    /// Takes in an authenticated message of another voter, which came from `addr`.
    pub fn handle_message(
        &mut self,
        from: &NodeName,
        addr: SocketAddr,
        message: Message,
        now: Time,
    ) {
        self.wake(now);
        self.receive(from, addr, message, now);
        self.run(now);
    }

    /// Takes in how the store's members are, after [`poll_health`](Self::poll_health).
    pub fn handle_health(&mut self, health: Health, now: Time) {
        self.note_health(health);
        self.run(now);
    }

    /// Takes in what keeps this host from doing its job, for people; nothing if it can.
    pub fn handle_problems(&mut self, problems: Vec<String>, now: Time) {
        self.note_problems(problems, now);
        self.run(now);
    }

    /// The same, and whether it is not known yet if this host can do its job. Meanwhile it keeps
    /// what it has, and nothing more is placed on it while others can serve.
    pub fn handle_condition(&mut self, starting: bool, problems: Vec<String>, now: Time) {
        self.fitness.starting = starting;
        self.handle_problems(problems, now);
    }

    /// Takes in which networks this host can serve from now on. Those that it no longer can are
    /// given up.
    pub fn handle_networks(&mut self, networks: BTreeSet<Vni>, now: Time) {
        for vni in &networks {
            let local = self.locals.entry(*vni).or_default();
            local.resigned &= self.leaving;
        }
        for (vni, local) in &mut self.locals {
            local.resigned |= !networks.contains(vni);
        }
        self.dirty.extend(self.locals.keys());
        self.ranges = networks.iter().copied().collect();
        self.config.networks = networks;
        self.run(now);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time) {
        while let Some((at, vni)) = self.alarms.first().copied().filter(|(at, _)| *at <= now) {
            self.alarms.remove(&(at, vni));
            self.dirty.extend(vni);
        }
        self.wake(now);
        if self.tick_at <= now {
            // What was missed in a long sleep is not made up for.
            self.tick_at = (self.tick_at + TICK).max(now);
            self.tick(now);
        }
        while let Some((at, vni)) = self.echoes.first().copied().filter(|(at, _)| *at <= now) {
            self.echoes.remove(&(at, vni));
            self.announce(vni);
        }
        self.run(now);
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called. Changes with any input.
    #[must_use]
    pub fn poll_timeout(&self) -> Time {
        if !self.dirty.is_empty() && self.synced {
            return self.looked_at;
        }
        let alarm = self.alarms.first().map(|(at, _)| *at);
        let echo = self.echoes.first().map(|(at, _)| *at);
        let others = [alarm, echo, self.watch_at(self.looked_at), self.right_changes_at()];
        others.into_iter().flatten().fold(self.tick_at, Time::min)
    }

    /// The next transaction to run. Transactions are independent of each other and may run in
    /// parallel and in any order.
    pub fn poll_transaction(&mut self) -> Option<(Token, Txn)> {
        if self.transactions.is_empty() {
            self.send_steps();
        }
        self.transactions.pop_front()
    }

    /// The next network whose desired state has changed. A network that was never named here is
    /// to be left as it is.
    pub fn poll_desired(&mut self) -> Option<(Vni, Desired)> {
        self.desired.pop_first()
    }

    /// The next message to send.
    pub fn poll_message(&mut self) -> Option<Outgoing> {
        self.liveness.poll()
    }

    /// Whether the store's members are to be asked how they are, each by itself and within
    /// [`Timing::patience`]; the answer goes to [`handle_health`](Self::handle_health).
    pub fn poll_health(&mut self) -> bool {
        self.court.poll_health()
    }

    /// The next lease of another node to renew, once. Whether that succeeds is nobody's business.
    pub fn poll_renewal(&mut self) -> Option<LeaseId> {
        self.court.poll_renewal()
    }

    /// Whether all networks of this host shall be silenced at once (ARP, ND, RA, forwarding), or
    /// that be lifted; `None` if that has not changed.
    pub fn poll_silence(&mut self) -> Option<bool> {
        self.title.switch.take()
    }

    /// Says to the others that this agent will be away for `time` on purpose, so that nobody
    /// takes its networks over. [`is_away_known`](Self::is_away_known) says when they know.
    pub fn announce_absence(&mut self, time: Duration, now: Time) {
        self.away_until = Some(now + time);
        self.away_since = now;
        self.tell_everybody(now);
        self.run(now);
    }

    /// Whether all voters that this one hears know that it will be away.
    #[must_use]
    pub fn is_away_known(&self) -> bool {
        let since = self.away_since;
        self.away_until.is_some() && self.liveness.is_known_since(since, self.looked_at)
    }

    /// Takes the networks of a lost gateway over without the store: an operator's word, which
    /// binds the voters that it reaches like a vote of theirs.
    ///
    /// # Errors
    /// If there is no such node, or it is heard.
    pub fn take_over(&mut self, name: &NodeName, now: Time) -> Result<(), OperatorError> {
        self.force(name, now)?;
        self.run(now);
        Ok(())
    }

    /// Strikes a node that is gone for good from the roster, so that it counts as a voter no more.
    ///
    /// # Errors
    /// If there is no such node, or it is registered.
    pub fn remove(&mut self, name: &NodeName, now: Time) -> Result<(), OperatorError> {
        if !self.synced {
            return Err(OperatorError::NotSynced);
        }
        if !self.cache.roster.contains_key(name) {
            return Err(OperatorError::Unknown(name.clone()));
        }
        if self.cache.live.contains_key(name) {
            return Err(OperatorError::Registered(name.clone()));
        }
        self.words.insert(name.clone(), Word::Remove);
        self.run(now);
        Ok(())
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Drains a node, or lifts that again: an operator's word, kept in the roster.
    ///
    /// # Errors
    /// If there is no such node, or the store has not been read yet.
    pub fn set_drained(
        &mut self,
        name: &NodeName,
        drained: bool,
        now: Time,
    ) -> Result<(), OperatorError> {
        if !self.synced {
            return Err(OperatorError::NotSynced);
        }
        if !self.cache.roster.contains_key(name) {
            return Err(match self.cache.is_predecessor(name) {
                true => OperatorError::Predecessor(name.clone()),
                false => OperatorError::Unknown(name.clone()),
            });
        }
        let word = if drained { Word::Drain } else { Word::Undrain };
        self.words.insert(name.clone(), word);
        self.run(now);
        Ok(())
    }

    /// Hands over all networks in planned moves, and takes no more. [`Event::Left`] says when
    /// nothing is left here; at once if there is nobody else.
    pub fn leave(&mut self, now: Time) {
        self.leaving = true;
        self.dirty.extend(self.cache.named(&self.config.name));
        self.run(now);
    }

    /// Gives up at once whatever is still owned here, after [`leave`](Self::leave).
    pub fn resign(&mut self, now: Time) {
        self.leaving = true;
        self.resign_all();
        self.run(now);
    }

    fn handle_snapshot(&mut self, snapshot: Snapshot, now: Time) {
        let before = self.registrations();
        self.cache.replace(snapshot);
        self.note_forgotten(before, now);
        self.nodes_changed(now);
        self.dirty.extend(self.locals.keys());
        self.dirty.extend(self.cache.networks.keys());
        self.synced = true;
    }

    fn handle_batch(&mut self, batch: &Batch, now: Time) {
        let concerns: BTreeSet<Concern> =
            batch.events.iter().map(|event| self.cache.apply(event)).collect();
        self.cache.revision = self.cache.revision.max(batch.revision);
        self.wake_waiting();
        if concerns.contains(&Concern::Nodes) {
            self.nodes_changed(now);
        }
        for concern in concerns {
            if let Concern::Network(vni) = concern {
                self.dirty.insert(vni);
            }
        }
    }

    /// Looks at everything that has changed, until nothing is left to decide.
    fn run(&mut self, now: Time) {
        self.wake(now);
        self.report_problems();
        if !self.synced {
            return self.ask_voters(now);
        }
        self.register(now);
        self.write_word(now);
        self.watch_over(now);
        self.check_right(now);
        self.send_probes(now);
        self.look_at_dirty(now);
        self.make_plan(now);
        self.check_left();
    }

    /// What can be done before the store has been read.
    fn ask_voters(&mut self, now: Time) {
        if self.recalled.is_some() {
            self.check_right(now);
            self.send_probes(now);
        }
    }

    /// Looks at the clock. Whoever slept knows that its view of the others is old.
    fn wake(&mut self, now: Time) {
        self.looked_at = self.looked_at.max(now);
        if let Some(slept) = self.liveness.wake(now) {
            self.title.note_sleep(slept, self.config.timing.lease, now);
        }
    }

    /// Looks at networks that something has changed for, at a bounded number in one go.
    fn look_at_dirty(&mut self, now: Time) {
        for _ in 0..LOOKS {
            let Some(vni) = self.dirty.pop_first() else { break };
            self.look_at(vni, now);
        }
    }

    fn report_problems(&mut self) {
        if self.cache.problems.is_empty() && self.reported.is_empty() {
            return;
        }
        for (key, problem) in &self.cache.problems {
            if !self.reported.contains(key) {
                let (key, problem) = (key.clone(), problem.clone());
                self.events.push_back(Event::ForeignValue { key, problem });
            }
        }
        self.reported = self.cache.problems.keys().cloned().collect();
    }

    /// A node came, went or changed. Concerned are the networks that name it, and those that the
    /// placement now wants elsewhere.
    fn nodes_changed(&mut self, now: Time) {
        self.note_registrations(now);
        let live = &self.cache.live;
        self.given_up.retain(|name| !live.contains_key(name));
        self.voters_changed();
        let reputes = self.reputes_now();
        let before = std::mem::replace(&mut self.reputes, reputes);
        let names: BTreeSet<NodeName> = before.keys().chain(self.reputes.keys()).cloned().collect();
        for name in names.iter().filter(|name| before.get(*name) != self.reputes.get(*name)) {
            self.dirty.extend(self.cache.named(name));
        }
        self.report_verdicts(now);
        let placeable = self.cache.nodes.keys().filter(|name| !self.cache.is_struck(name));
        self.plan.note_nodes(placeable, !self.synced, now);
        self.note_placement();
        let ring = std::mem::take(&mut self.ring);
        self.ring = self.cache.ring(|name| self.is_lost(name));
        if ring != self.ring {
            let moved = |vni: &&Vni| ring.owner(**vni) != self.ring.owner(**vni);
            self.dirty.extend(self.locals.keys().filter(moved));
            self.dirty.extend(self.cache.networks.keys().filter(moved));
        }
        let predecessor = self.cache.nodes.keys().any(|name| self.cache.is_predecessor(name));
        if std::mem::replace(&mut self.predecessor, predecessor) != predecessor {
            self.dirty.extend(self.locals.keys());
        }
    }

    fn note_registrations(&mut self, now: Time) {
        let at = if self.synced { now } else { Time::ZERO };
        for (name, live) in &self.cache.live {
            let known = self.registered_at.get(name);
            if known.is_none_or(|(incarnation, _)| *incarnation != live.incarnation) {
                self.registered_at.insert(name.clone(), (live.incarnation, at));
            }
        }
        let roster = &self.cache.roster;
        self.registered_at.retain(|name, _| roster.contains_key(name));
    }

    fn reputes_now(&self) -> BTreeMap<NodeName, Repute> {
        let repute = |name| Repute {
            incarnation: self.cache.live.get(name).map(|live| live.incarnation),
            on_ring: self.cache.nodes.contains_key(name),
            convicted: self.cache.is_struck(name),
            presumed: self.is_presumed(name),
        };
        let names = self.cache.live.keys().chain(self.cache.nodes.keys());
        names.map(|name| (name.clone(), repute(name))).collect()
    }

    fn is_known(&self, name: &NodeName) -> bool {
        self.reputes.contains_key(name)
    }

    fn tick(&mut self, now: Time) {
        self.ticks += 1;
        let period = self.config.announce.as_secs().max(1);
        let turn = |vni: &Vni| (u64::from(vni.get()) + self.ticks).is_multiple_of(period);
        let fresh = |vni| self.locals.get(vni).is_some_and(|local: &Local| local.is_fresh(now));
        let due = self.answering.iter().filter(|vni| turn(vni) || fresh(vni));
        let due: Vec<Vni> = due.copied().collect();
        for vni in due {
            self.announce(vni);
        }
    }

    fn send(&mut self, purpose: Purpose, txn: Txn) {
        let token = Token(self.next_token);
        self.next_token += 1;
        self.purposes.insert(token, purpose);
        self.transactions.push_back((token, txn));
    }

    fn jittered(&mut self, base: Duration) -> Duration {
        base + base.mul_f64(self.rng.random_range(0.0..1.0))
    }

    fn wall_ms(&self, now: Time) -> u64 {
        self.config.wall_at_zero_ms + now.as_millis()
    }
}
