//! Finds out who has failed.
//!
//! Each node watches the next one on the ring of members, so that everybody is probed at one
//! regular interval, and now and then a member drawn at random, so that a watcher that keeps
//! silent does not matter. Who does not answer is probed again, by the watcher and by helpers
//! drawn at random; a helper that gets no answer either signs an accusation. Enough of these make
//! a verdict, but no sooner than `patience` after the first question: until then a node that
//! merely stalls can answer. With fewer, more helpers are asked; and with nobody in reach a node
//! trusts its own eyes, for itself alone.
//! (Das, Gupta, Motivala: SWIM, DSN 2002; Dadgar, Phillips, Currey: Lifeguard, DSN-W 2018.)
//!
//! ```text
//!           no answer             no answer            accusations, patience over
//!  probing ───────────▶ probing ──────────────▶ helped ──────────────────────────▶ verdict
//!     ▲  └─ answer ─▶ fine    again  └─ answer    │ └─ answer to anybody ─▶ fine
//!     └───────────── this node stalled itself ────┘
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;
use selvedge_model::{NodeId, Time};

use crate::overlay::View;
use crate::rumor::{Accusation, MAX_ACCUSATIONS, MIN_ACCUSATIONS};
use crate::signed::Signed;

/// How the detector behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probing {
    /// How often a node probes its successor on the ring.
    pub interval: Duration,
    /// Each so many-th time it probes another one, too, drawn at random.
    pub random_every: u32,
    /// How often a question without an answer is repeated.
    pub again: Duration,
    /// When helpers are asked, after the first question.
    pub ask: Duration,
    /// How many are asked at a time.
    pub helpers: usize,
    /// How long a helper tries.
    pub help: Duration,
    /// No verdict comes sooner after the first question than this: the longest that a node may
    /// stall unharmed, a round trip, and a question that is lost right before the stall.
    pub patience: Duration,
    /// With fewer accusations than needed this long after the first question, a node trusts its
    /// own eyes.
    pub alone: Duration,
    /// Members that are down are tried again this often, by about ten nodes each; the first times
    /// sooner.
    pub retry: Duration,
    /// A node that is called later than it asked to be by more than this has stalled, and what
    /// it did not hear meanwhile means nothing.
    pub stall: Duration,
}

impl Default for Probing {
    fn default() -> Self {
        let ms = Duration::from_millis;
        Self {
            interval: ms(1050),
            random_every: 10,
            again: ms(200),
            ask: ms(420),
            helpers: 4,
            help: ms(900),
            patience: ms(1500),
            alone: ms(4000),
            retry: ms(1500),
            stall: ms(150),
        }
    }
}

/// The greatest number of nodes that this node probes on behalf of others at once.
const MAX_HELPS: usize = 256;
/// So many accusations make a verdict in a mesh that is large enough.
const ACCUSATIONS: usize = 3;
/// So many nodes together try one that is down each [`Probing::retry`].
const RETRIERS: usize = 10;
/// As good as never; it can still be made sooner.
const NEVER: Duration = Duration::from_secs(86_400);

/// What the detector wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Ask a node whether it lives. Its answer is to name the number.
    Ping(NodeId, u32),
    /// Ask a node to probe another.
    Ask { helper: NodeId, target: NodeId, number: u32 },
    /// Tell a node that another answered.
    Vouch { asker: NodeId, target: NodeId, number: u32 },
    /// Sign an accusation of a node and send it to another, or, if that is this node, keep it.
    Accuse { asker: NodeId, target: NodeId },
    /// Make these accusations of a node a verdict.
    Convict(Vec<Signed<Accusation>>),
    /// Nobody could be asked about a node that does not answer.
    OwnEyes(NodeId),
}

/// The probes under way. It is given a [`View`] where it needs one.
#[derive(Clone, Debug)]
pub(crate) struct Detector {
    config: Probing,
    own: NodeId,
    next_probe: Time,
    probed: u32,
    next_retry: Time,
    /// How often members that are down were tried since one was last convicted.
    retried: u32,
    last_retried: NodeId,
    number: u32,
    probes: BTreeMap<NodeId, Probe>,
    helps: BTreeMap<(NodeId, NodeId), Help>,
}

#[derive(Clone, Debug)]
struct Probe {
    began: Time,
    first: u32,
    next_ping: Time,
    /// When helpers are asked next.
    next_ask: Time,
    /// When it is decided whether this is enough.
    next_look: Time,
    asked: BTreeSet<NodeId>,
    accusations: BTreeMap<NodeId, Signed<Accusation>>,
}

#[derive(Clone, Copy, Debug)]
struct Help {
    first: u32,
    theirs: u32,
    next_ping: Time,
    ends: Time,
}

impl Detector {
    /// The first probe is due within one interval, drawn at random, so that nodes that start
    /// together do not probe together.
    pub(crate) fn new(config: Probing, own: NodeId, rng: &mut ChaCha8Rng, now: Time) -> Self {
        Self {
            next_probe: now + config.interval.mul_f64(rng.random_range(0.0..1.0)),
            config,
            own,
            probed: 0,
            next_retry: now,
            retried: 0,
            last_retried: own,
            number: 0,
            probes: BTreeMap::new(),
            helps: BTreeMap::new(),
        }
    }

    /// When [`Detector::handle_timeout`] is to be called.
    pub(crate) fn poll_timeout(&self) -> Time {
        let probes = self.probes.values().map(|probe| probe.next_ping.min(probe.next_look));
        let helps = self.helps.values().map(|help| help.next_ping.min(help.ends));
        probes.chain(helps).fold(self.next_probe.min(self.next_retry), Time::min)
    }

    /// Begins anew what is under way if this node was called late.
    pub(crate) fn note_time(&mut self, now: Time) {
        if now.since(self.poll_timeout()) <= self.config.stall {
            return;
        }
        self.helps.clear();
        for probe in self.probes.values_mut() {
            *probe = Probe::new(&self.config, probe.first, now);
        }
        self.next_probe = self.next_probe.max(now);
        self.next_retry = self.next_retry.max(now);
    }

    /// Does what is due.
    pub(crate) fn handle_timeout(
        &mut self,
        view: &View<'_>,
        rng: &mut ChaCha8Rng,
        now: Time,
    ) -> Vec<Wish> {
        let mut wishes = Vec::new();
        if self.next_probe <= now {
            self.begin_probes(view, rng, now);
        }
        if self.next_retry <= now {
            wishes.extend(self.retry(view, rng, now));
        }
        self.drive_probes(view, rng, now, &mut wishes);
        self.drive_helps(now, &mut wishes);
        wishes
    }

    /// `from` answered question `number`.
    pub(crate) fn handle_ack(&mut self, from: NodeId, number: u32) -> Vec<Wish> {
        self.probes.retain(|target, probe| *target != from || !probe.asked_in(number));
        let mut wishes = Vec::new();
        self.helps.retain(|(asker, target), help| {
            let answered = *target == from && is_since(number, help.first);
            if answered {
                let (asker, target, number) = (*asker, *target, help.theirs);
                wishes.push(Wish::Vouch { asker, target, number });
            }
            !answered
        });
        wishes
    }

    /// A helper says that `target` answered it.
    pub(crate) fn handle_vouch(&mut self, helper: NodeId, target: NodeId, number: u32) {
        let heard = |probe: &Probe| probe.asked.contains(&helper) && probe.asked_in(number);
        if self.probes.get(&target).is_some_and(heard) {
            self.probes.remove(&target);
        }
    }

    /// `asker` asks this node to probe `target`.
    pub(crate) fn handle_ask(&mut self, asker: NodeId, target: NodeId, number: u32, now: Time) {
        if self.helps.len() < MAX_HELPS && target != self.own {
            let ends = now + self.config.help;
            let first = self.number.wrapping_add(1);
            let help = Help { first, theirs: number, next_ping: now, ends };
            self.helps.entry((asker, target)).or_insert(help);
        }
    }

    /// A helper, or this node itself, accuses.
    pub(crate) fn handle_accusation(&mut self, accusation: Signed<Accusation>, now: Time) {
        let Accusation { accuser, target, .. } = *accusation.value();
        if let Some(probe) = self.probes.get_mut(&target)
            && (accuser == self.own || probe.asked.contains(&accuser))
        {
            probe.hear(accusation);
            // It may be the one that was waited for. No moment of the past is set: that this node
            // was not called then would look as if it had stalled.
            let look = (probe.began + self.config.patience).max(now);
            probe.next_look = probe.next_look.min(look);
        }
    }

    /// Begins a probe of `node`, unless one is under way.
    pub(crate) fn probe(&mut self, node: NodeId, now: Time) {
        let first = self.number.wrapping_add(1);
        self.probes.entry(node).or_insert_with(|| Probe::new(&self.config, first, now));
    }

    /// A later sign of life of `node` was heard of. What was said of an earlier one counts no more,
    /// and whoever knew better than this node, and did not help for that, is asked again.
    pub(crate) fn note_life(&mut self, node: NodeId, now: Time) {
        if let Some(probe) = self.probes.get_mut(&node) {
            *probe = Probe::new(&self.config, probe.first, now);
        }
    }

    /// Somebody was convicted, or heard again.
    pub(crate) fn note_change(&mut self, node: NodeId, view: &View<'_>, now: Time) {
        self.probes.remove(&node);
        if view.is_client() {
            // It may have to be attached to another, and that one to hear of it.
            self.next_probe = self.next_probe.min(now);
        }
        // Where one has failed or come back, others may follow.
        self.retried = 0;
        self.next_retry = self.next_retry.min(now + self.retry_after(view));
    }

    fn begin_probes(&mut self, view: &View<'_>, rng: &mut ChaCha8Rng, now: Time) {
        self.next_probe = now + self.config.interval;
        self.probed = self.probed.wrapping_add(1);
        let random = self.probed.is_multiple_of(self.config.random_every.max(1));
        let random = random.then(|| view.draw(&BTreeSet::new(), rng)).flatten();
        let wards = view.wards.iter().copied().filter(|ward| view.watches(*ward));
        for target in view.successor().into_iter().chain(random).chain(wards) {
            self.probe(target, now);
        }
    }

    /// Tries a member that is down, and sets the time of the next attempt.
    fn retry(&mut self, view: &View<'_>, rng: &mut ChaCha8Rng, now: Time) -> Option<Wish> {
        if self.retried == 0 {
            self.last_retried = NodeId(rng.random());
        }
        self.retried = self.retried.saturating_add(1);
        self.next_retry = now + self.retry_after(view).mul_f64(rng.random_range(0.75..1.25));
        let target = view.lives.next_down(self.last_retried)?;
        self.last_retried = target;
        Some(Wish::Ping(target, self.next_number()))
    }

    /// How long to wait before the next attempt: longer each time up to a bound, and the longer
    /// the more members stand for each that is down, for they all try.
    fn retry_after(&self, view: &View<'_>) -> Duration {
        let down = view.lives.count_down();
        if down == 0 {
            return NEVER;
        }
        let share = view.count().div_ceil(RETRIERS * down).max(1);
        let growth = 1 << self.retried.min(3);
        let wait = self.config.retry * growth / 8;
        wait.saturating_mul(u32::try_from(share).unwrap_or(u32::MAX))
    }

    fn drive_probes(
        &mut self,
        view: &View<'_>,
        rng: &mut ChaCha8Rng,
        now: Time,
        wishes: &mut Vec<Wish>,
    ) {
        let due = |probe: &Probe| probe.next_ping.min(probe.next_look) <= now;
        let due = self.probes.iter().filter(|(_, probe)| due(probe)).map(|(target, _)| *target);
        for target in due.collect::<Vec<_>>() {
            let Some(mut probe) = self.probes.remove(&target).filter(|_| view.watches(target))
            else {
                continue;
            };
            if probe.next_ping <= now {
                wishes.push(Wish::Ping(target, self.next_number()));
                probe.next_ping = now + self.config.again;
            }
            if probe.next_look > now || !self.judge(target, &mut probe, view, rng, now, wishes) {
                self.probes.insert(target, probe);
            }
        }
    }

    /// Decides on a probe that has found no answer for long. Says whether it is over.
    fn judge(
        &self,
        target: NodeId,
        probe: &mut Probe,
        view: &View<'_>,
        rng: &mut ChaCha8Rng,
        now: Time,
        wishes: &mut Vec<Wish>,
    ) -> bool {
        let waited = now.since(probe.began);
        let accusations = probe.accusations_since(view.lives.incarnation(target), view);
        let accusers = accusations.iter().map(|accusation| accusation.value().accuser);
        let convicts = || view.roster.convicts(accusers, target);
        if waited >= self.config.patience && accusations.len() >= needed(view) && convicts() {
            wishes.push(Wish::Convict(accusations));
            return true;
        }
        let alone = self.alone(view);
        if waited >= alone {
            wishes.push(Wish::OwnEyes(target));
            return true;
        }
        if probe.next_ask <= now {
            self.ask(target, probe, view, rng, wishes);
            probe.next_ask = now + self.config.patience;
        }
        let ends = [self.config.patience, alone].map(|after| probe.began + after);
        let later = ends.into_iter().filter(|end| *end > now);
        probe.next_look = later.fold(probe.next_ask, Time::min);
        false
    }

    /// When this node trusts its own eyes. A client, which has nobody to ask, soon does: it
    /// decides for itself alone, and another peer is as good.
    fn alone(&self, view: &View<'_>) -> Duration {
        match view.is_client() {
            true => self.config.alone.min(self.config.patience + self.config.help),
            false => self.config.alone,
        }
    }

    /// Asks helpers that were not asked yet.
    fn ask(
        &self,
        target: NodeId,
        probe: &mut Probe,
        view: &View<'_>,
        rng: &mut ChaCha8Rng,
        wishes: &mut Vec<Wish>,
    ) {
        probe.asked.insert(target);
        let mut helpers = vec![self.own];
        for _ in 0..self.config.helpers {
            let Some(helper) = view.draw(&probe.asked, rng) else { break };
            probe.asked.insert(helper);
            helpers.push(helper);
        }
        if let Some(other) = view.independent_of(&helpers, &probe.asked, rng) {
            probe.asked.insert(other);
            helpers.push(other);
        }
        let asked = helpers.into_iter().skip(1);
        wishes.extend(asked.map(|helper| Wish::Ask { helper, target, number: probe.first }));
        wishes.push(Wish::Accuse { asker: self.own, target });
    }

    fn drive_helps(&mut self, now: Time, wishes: &mut Vec<Wish>) {
        let Self { helps, number, config, .. } = self;
        helps.retain(|(asker, target), help| {
            if help.ends <= now {
                wishes.push(Wish::Accuse { asker: *asker, target: *target });
                return false;
            }
            if help.next_ping <= now {
                help.next_ping = now + config.again;
                *number = number.wrapping_add(1);
                wishes.push(Wish::Ping(*target, *number));
            }
            true
        });
    }

    /// The number of the next question.
    pub(crate) fn next_number(&mut self) -> u32 {
        self.number = self.number.wrapping_add(1);
        self.number
    }
}

impl Probe {
    fn new(config: &Probing, first: u32, now: Time) -> Self {
        let next_ask = now + config.ask;
        Self {
            began: now,
            first,
            next_ping: now,
            next_ask,
            next_look: next_ask,
            asked: BTreeSet::new(),
            accusations: BTreeMap::new(),
        }
    }

    /// Whether the question of that number was asked in this probe.
    fn asked_in(&self, number: u32) -> bool {
        is_since(number, self.first)
    }

    /// Keeps the accusation of the latest life that each accuser knows of.
    fn hear(&mut self, accusation: Signed<Accusation>) {
        let Accusation { accuser, incarnation, .. } = *accusation.value();
        let held = self.accusations.get(&accuser).map(|held| held.value().incarnation);
        if held.is_none_or(|held| held <= incarnation) {
            self.accusations.insert(accuser, accusation);
        }
    }

    /// The accusations that a sign of life of that incarnation does not outdo, as many as fit in a
    /// verdict. Who has just started may know of no sign of life at all, and with its accusation
    /// among them a verdict would be of the past. One of each source comes first.
    fn accusations_since(&self, incarnation: u64, view: &View<'_>) -> Vec<Signed<Accusation>> {
        let all = self.accusations.values().map(|accusation| (accusation, accusation.value()));
        let count = all.filter(|(_, said)| said.incarnation >= incarnation);
        let mut sources = BTreeSet::new();
        let (first, more): (Vec<_>, Vec<_>) = count
            .filter_map(|(accusation, said)| {
                Some((accusation, view.roster.answers_for(said.accuser)?))
            })
            .partition(|(_, source)| sources.insert(*source));
        let chosen = first.into_iter().chain(more).take(MAX_ACCUSATIONS);
        chosen.map(|(accusation, _)| accusation.clone()).collect()
    }
}

/// How many accusations make a verdict: few where there are few peers to help.
fn needed(view: &View<'_>) -> usize {
    match view.standing_peers().nth(ACCUSATIONS + 2).is_some() {
        true => ACCUSATIONS,
        false => MIN_ACCUSATIONS,
    }
}

/// Whether a number that counts in a circle is not before another.
const fn is_since(number: u32, first: u32) -> bool {
    number.wrapping_sub(first) < 1 << 20
}

#[cfg(test)]
mod tests;
