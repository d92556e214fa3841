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
//! - [`planner`] starts planned moves, on the one node that holds the lease for it.

mod network;
mod planner;
mod registration;
pub mod status;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use selvedge_model::{NodeName, Time, Vni};

use self::network::Local;
use self::planner::Plan;
use self::registration::Standing;
use crate::cache::{Cache, Concern};
use crate::desired::Desired;
use crate::kv::{Batch, LeaseId, Revision, Snapshot, StoreError, Txn, TxnReply};
use crate::machine::State;
use crate::placement::Ring;

/// What an agent is told once.
#[derive(Clone, Debug)]
pub struct Config {
    /// This gateway's name.
    pub name: NodeName,
    /// Tells this host from another one that was given the same name.
    pub identity: String,
    /// The agent's version, for the registration.
    pub version: String,
    /// Its ids on the ring.
    pub ids: Vec<u64>,
    /// The networks that it can serve.
    pub networks: BTreeSet<Vni>,
    /// How long routing is given to follow a change, in planned moves.
    pub settle: Duration,
    /// The interval of announcements for networks that are served, in whole seconds.
    pub announce: Duration,
    /// How many planned moves may run at once, in the whole cluster.
    pub budget: usize,
    /// How long a node must have been back before planned moves bring networks to it.
    pub hold_down: Duration,
    /// Unix time in milliseconds at [`Time::ZERO`], for the history.
    pub wall_at_zero_ms: u64,
}

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

/// Why a network changed its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It had none before.
    First,
    /// A planned move from this node.
    Move(NodeName),
    /// The owner's registration ended, or it resigned.
    Gone(NodeName),
    /// The owner was convicted.
    Verdict(NodeName),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::First => f.write_str("it had no owner before"),
            Self::Move(from) => write!(f, "planned move from {from}"),
            Self::Gone(from) => write!(f, "{from} is gone: its lease ended or it resigned"),
            Self::Verdict(from) => write!(f, "{from} was convicted"),
        }
    }
}

/// Something that is worth a line in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// This node is registered.
    Registered {
        /// Names this run of the agent.
        incarnation: Revision,
    },
    /// Another host is registered under this node's name; this one waits.
    NameTaken {
        /// What the other says of itself.
        identity: String,
    },
    /// This incarnation counts as dead by a verdict; all its networks are given up.
    Convicted,
    /// A key of the store makes no sense and is left alone.
    ForeignValue {
        /// The key.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A network is in another state.
    State {
        /// The network.
        vni: Vni,
        /// The state before.
        from: State,
        /// The state now.
        to: State,
    },
    /// A network has come to this node.
    Gained {
        /// The network.
        vni: Vni,
        /// Whether by a planned move.
        planned: bool,
        /// Why, as the history has it.
        reason: String,
    },
    /// A network has left this node.
    Lost {
        /// The network.
        vni: Vni,
        /// Its owner now.
        to: Option<NodeName>,
    },
    /// This node plans, or no longer does.
    Planner(bool),
    /// This node owns nothing any more, after [`Gateway::leave`].
    Left,
}

/// Why a word of the operator was refused. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OperatorError {
    /// No such node.
    #[error("no gateway is named {0}; `selvedge gateway status` lists them")]
    Unknown(NodeName),
    /// The store's contents are not known yet.
    #[error("the store has not been read yet")]
    NotSynced,
    /// The node is the predecessor's, which knows no draining from outside.
    #[error("{0} runs the predecessor's daemon: stop that daemon to drain it")]
    Predecessor(NodeName),
}

/// What a transaction was for.
#[derive(Clone, Debug)]
enum Purpose {
    Network(Vni),
    Registration,
    Campaign,
    Start,
    Word(NodeName),
}

/// Where a piece of work stands that needs the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Pending {
    /// Nothing is under way.
    #[default]
    No,
    /// A transaction is on its way.
    Sent,
    /// It was committed, which is known once the watch has reached this revision.
    Committed(Revision),
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
            Self::Committed(reached) => revision >= reached,
            Self::Refused(reached, limit) => revision >= reached || now >= limit,
            Self::RetryAt(at) => now >= at,
        }
    }

    /// When it is free at the latest, without a word of the watch.
    const fn wakes_at(self) -> Option<Time> {
        match self {
            Self::Refused(_, at) | Self::RetryAt(at) => Some(at),
            Self::No | Self::Sent | Self::Committed(_) => None,
        }
    }
}

/// What the store says of one node, as far as its networks depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Repute {
    incarnation: Option<Revision>,
    on_ring: bool,
    convicted: bool,
}

/// How long to wait after the store did not answer.
const RETRY: Duration = Duration::from_millis(200);
/// How long the watch is given to report why a transaction was refused.
const CATCH_UP: Duration = Duration::from_secs(1);
/// How often the announcements of a fresh owner are repeated, and the clock of all periodic ones.
const TICK: Duration = Duration::from_secs(1);

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
    /// When this incarnation was first seen to be convicted.
    convicted_at: Option<Time>,
    registration: Pending,
    /// Words of the operator on their way into the roster.
    words: BTreeMap<NodeName, bool>,
    word: Pending,
    leaving: bool,
    left: bool,
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
            config,
            rng,
            cache: Cache::default(),
            ring: Ring::default(),
            reputes: BTreeMap::new(),
            predecessor: false,
            synced: false,
            connected: false,
            lease: None,
            standing: Standing::Unregistered,
            convicted_at: None,
            registration: Pending::No,
            words: BTreeMap::new(),
            word: Pending::No,
            leaving: false,
            left: false,
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
            desired: BTreeMap::new(),
            events: VecDeque::new(),
            reported: BTreeSet::new(),
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
            Ok(reply) if reply.committed => Pending::Committed(reply.revision),
            Ok(reply) => Pending::Refused(reply.revision, now + CATCH_UP),
            Err(_) => Pending::RetryAt(now + self.jittered(RETRY)),
        };
        let vni = if let Purpose::Network(vni) = purpose { Some(vni) } else { None };
        self.alarms.extend(pending.wakes_at().map(|at| (at, vni)));
        match purpose {
            Purpose::Network(vni) => self.set_pending(vni, pending),
            Purpose::Registration => self.registration = pending,
            Purpose::Campaign => self.plan.campaign = pending,
            Purpose::Start => self.plan.start = pending,
            Purpose::Word(name) => {
                self.word = pending;
                if let Pending::Committed(_) = pending {
                    self.words.remove(&name);
                }
            }
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

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time) {
        while let Some((at, vni)) = self.alarms.first().copied().filter(|(at, _)| *at <= now) {
            self.alarms.remove(&(at, vni));
            self.dirty.extend(vni);
        }
        while self.tick_at <= now {
            self.tick_at = self.tick_at + TICK;
            self.tick(now);
        }
        self.run(now);
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called. Changes with any input.
    #[must_use]
    pub fn poll_timeout(&self) -> Time {
        self.alarms.first().map_or(self.tick_at, |(at, _)| self.tick_at.min(*at))
    }

    /// The next transaction to run. Transactions are independent of each other and may run in
    /// parallel and in any order.
    pub fn poll_transaction(&mut self) -> Option<(Token, Txn)> {
        self.transactions.pop_front()
    }

    /// The next network whose desired state has changed. A network that was never named here is
    /// to be left as it is.
    pub fn poll_desired(&mut self) -> Option<(Vni, Desired)> {
        self.desired.pop_first()
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
        self.words.insert(name.clone(), drained);
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
        self.cache.replace(snapshot);
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
        self.report_problems();
        if !self.synced {
            return;
        }
        self.register(now);
        self.write_word(now);
        while let Some(vni) = self.dirty.pop_first() {
            self.look_at(vni, now);
        }
        self.make_plan(now);
        self.check_left();
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
        let reputes = self.reputes_now();
        let before = std::mem::replace(&mut self.reputes, reputes);
        for name in before.keys().chain(self.reputes.keys()) {
            if before.get(name) != self.reputes.get(name) {
                self.dirty.extend(self.cache.named(name));
            }
        }
        let placeable = self.cache.nodes.keys().filter(|name| !self.cache.is_convicted(name));
        self.plan.note_nodes(placeable, !self.synced, now);
        let ring = std::mem::replace(&mut self.ring, self.cache.ring());
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

    fn reputes_now(&self) -> BTreeMap<NodeName, Repute> {
        let repute = |name| Repute {
            incarnation: self.cache.live.get(name).map(|live| live.incarnation),
            on_ring: self.cache.nodes.contains_key(name),
            convicted: self.cache.is_convicted(name),
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
