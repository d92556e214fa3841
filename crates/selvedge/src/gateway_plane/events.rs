//! What happens at this gateway, told to everybody whom it concerns: the log, the counters, those
//! who watch, and the hooks.

use std::collections::BTreeMap;
use std::time::Duration;

use selvedge_api::gateway::{Cause, Counters, Event, Right, Times, What};
use selvedge_gateway::cache::Change;
use selvedge_gateway::desired::Desired;
use selvedge_gateway::{Event as CoreEvent, machine, status};
use selvedge_model::{NodeName, Time, Vni};
use tracing::{debug, info, warn};

use super::hooks::{Facts, Hooks, Kind};
use super::view;
use crate::stream::{self, Told, unix_ms};

/// After this time the loss of a gateway is another loss than the one noted before.
const FORGET: Duration = Duration::from_secs(60);

/// Where events come from for those who watch. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Stream(stream::Stream<Event>);

impl Stream {
    pub(super) fn new() -> Self {
        Self(stream::Stream::new())
    }

    /// Tells everybody who watches now.
    pub(super) fn publish(&self, what: What) {
        self.0.publish(Event { at_ms: unix_ms(), what });
    }

    /// Everything that happens from now on.
    pub(super) fn subscribe(&self) -> Subscriber {
        self.0.subscribe()
    }

    fn is_watched(&self) -> bool {
        self.0.is_watched()
    }
}

/// Somebody who watches.
pub type Subscriber = stream::Subscriber<Event>;

impl Told for Event {
    fn missed(events: u64) -> Self {
        Self { at_ms: unix_ms(), what: What::Missed { events } }
    }
}

/// Takes in what happens.
#[derive(Debug)]
pub(super) struct Journal {
    pub(super) counters: Counters,
    pub(super) times: Times,
    /// What another host says of itself that is registered under this gateway's name.
    pub(super) name_taken: Option<String>,
    me: NodeName,
    stream: Stream,
    hooks: Hooks,
    /// When this agent started, in milliseconds of Unix time.
    started_ms: u64,
    silenced_since: Option<Time>,
    /// When the loss of a gateway was certain enough to act on it.
    losses: BTreeMap<NodeName, Time>,
    /// When the takeover began of networks that are not announced here yet.
    awaited: BTreeMap<Vni, Time>,
    /// Since when networks have been served and announced here.
    announced: BTreeMap<Vni, Time>,
}

impl Journal {
    pub(super) fn new(me: NodeName, stream: Stream, hooks: Hooks) -> Self {
        Self {
            counters: Counters::default(),
            times: Times::default(),
            name_taken: None,
            me,
            stream,
            hooks,
            started_ms: unix_ms(),
            silenced_since: None,
            losses: BTreeMap::new(),
            awaited: BTreeMap::new(),
            announced: BTreeMap::new(),
        }
    }

    /// The counters, those of the hooks included.
    pub(super) fn counters(&self) -> Counters {
        let hooks = self.hooks.tally();
        Counters { hooks: hooks.succeeded, hook_failures: hooks.failed, ..self.counters }
    }

    /// Whether all networks of this host are silenced.
    pub(super) const fn is_silenced(&self) -> bool {
        self.silenced_since.is_some()
    }

    /// Takes in an event of the core. `history` is that of the network that it is about, if any.
    pub(super) fn note(&mut self, event: CoreEvent, history: &[Change], now: Time) {
        let past = Past::new(history, &self.me, self.started_ms);
        self.count(&event, &past, now);
        log(&event, &past, &self.me);
        if let Some(facts) = facts(&event, &past, &self.me) {
            self.hooks.run(facts);
        }
        if self.stream.is_watched() {
            self.stream.publish(what(event, &past));
        }
    }

    /// The store answers again, or does not any more, and why.
    pub(super) fn store(&mut self, lost: Option<String>) {
        if let Some(reason) = &lost {
            warn!(reason, "the store does not answer; networks stay as they are");
            self.counters.store_losses += 1;
        }
        self.stream.publish(What::Store { connected: lost.is_none(), reason: lost });
    }

    /// All networks of this host are silenced at once, or that is lifted.
    pub(super) fn silenced(&mut self, on: bool, now: Time) {
        match (on, self.silenced_since) {
            (true, None) => {
                self.silenced_since = Some(now);
                self.counters.fences += 1;
                warn!("this gateway may not serve: all of its networks are silenced");
            }
            (false, Some(since)) => {
                self.silenced_since = None;
                let silent_for = now.since(since);
                self.times.silence.record(silent_for);
                info!(?silent_for, "the networks of this gateway are no longer silenced");
            }
            (true, Some(_)) | (false, None) => return,
        }
        self.stream.publish(What::Silenced { on });
    }

    /// The agent is about to start again.
    pub(super) fn restarting(&self, away: Duration) {
        info!(?away, "starting again; the other gateways wait for this one");
        self.stream.publish(What::Restarting { for_ms: millis(away) });
    }

    /// Takes in what this host has reached.
    pub(super) fn reached(&mut self, reached: &[(Vni, Desired)], now: Time) {
        for (vni, desired) in reached {
            if !desired.duty.answering {
                self.announced.remove(vni);
                continue;
            }
            self.announced.entry(*vni).or_insert(now);
            if let Some(began) = self.awaited.remove(vni) {
                self.times.takeover.record(now.since(began));
            }
        }
    }

    fn count(&mut self, event: &CoreEvent, past: &Past<'_>, now: Time) {
        let counters = &mut self.counters;
        match event {
            CoreEvent::Registered { .. } => self.name_taken = None,
            CoreEvent::NameTaken { identity } => self.name_taken = Some(identity.clone()),
            CoreEvent::Gained { .. } if past.kept => counters.kept += 1,
            CoreEvent::Gained { planned: true, .. } => counters.moves += 1,
            CoreEvent::Gained { vni, .. } => {
                counters.failovers += 1;
                self.await_takeover(*vni, past, now);
            }
            CoreEvent::Lost { vni, .. } => drop(self.awaited.remove(vni)),
            CoreEvent::Suspected { .. } => counters.suspicions += 1,
            CoreEvent::Heard(name) => drop(self.losses.remove(name)),
            CoreEvent::Voted(_) => counters.votes += 1,
            CoreEvent::Verdict { name, after, .. } => {
                counters.verdicts += 1;
                after.iter().for_each(|after| self.times.detection.record(*after));
                self.note_loss(name, now);
            }
            CoreEvent::Prepared { name, .. } => {
                counters.prepared += 1;
                self.note_loss(name, now);
            }
            CoreEvent::Right { unconfirmed_for, .. } if !unconfirmed_for.is_zero() => {
                self.times.unconfirmed.record(*unconfirmed_for);
            }
            CoreEvent::Right { .. }
            | CoreEvent::Convicted
            | CoreEvent::ForeignValue { .. }
            | CoreEvent::State { .. }
            | CoreEvent::Planner(_)
            | CoreEvent::Fitness(_)
            | CoreEvent::AsksForRelief
            | CoreEvent::Left => {}
        }
    }

    /// A prepared takeover comes before the verdict that it is about, and is when it began.
    fn note_loss(&mut self, name: &NodeName, now: Time) {
        let at = self.losses.entry(name.clone()).or_insert(now);
        if now.since(*at) > FORGET {
            *at = now;
        }
    }

    /// The host may serve a network already before the store says that it is ours.
    fn await_takeover(&mut self, vni: Vni, past: &Past<'_>, now: Time) {
        let lost = past.from.and_then(|from| self.losses.get(from)).copied();
        let Some(began) = lost.filter(|began| now.since(*began) <= FORGET) else { return };
        match self.announced.get(&vni) {
            Some(at) if *at >= began => self.times.takeover.record(at.since(began)),
            Some(_) | None => drop(self.awaited.insert(vni, began)),
        }
    }
}

/// What the history of a network says of the event.
#[derive(Debug, Default)]
struct Past<'a> {
    reason: &'a str,
    /// Who owned the network before its present owner.
    from: Option<&'a NodeName>,
    /// Whether it was this node's before its agent was started.
    kept: bool,
}

impl<'a> Past<'a> {
    fn new(history: &'a [Change], me: &NodeName, started_ms: u64) -> Self {
        let Some(last) = history.last() else { return Self::default() };
        let before = history.iter().rev().nth(1).map(|change| &change.owner);
        let kept = last.owner == *me && last.at_ms < started_ms;
        Self { reason: &last.reason, from: before, kept }
    }
}

/// What the hooks are told of the event, if anything.
fn facts(event: &CoreEvent, past: &Past<'_>, me: &NodeName) -> Option<Facts> {
    let reason = past.reason.to_owned();
    if let CoreEvent::Gained { vni, planned, .. } = event {
        return Some(Facts {
            kind: Kind::TakeOver,
            vni: *vni,
            reason,
            owner: Some(me.clone()),
            from: past.from.cloned(),
            planned: *planned,
            kept: past.kept,
        });
    }
    let CoreEvent::Lost { vni, to } = event else { return None };
    Some(Facts {
        kind: Kind::GiveUp,
        vni: *vni,
        reason,
        owner: to.clone(),
        from: Some(me.clone()),
        planned: false,
        kept: false,
    })
}

/// Who reads which level stands in `CONTRIBUTING.md`.
fn log(event: &CoreEvent, past: &Past<'_>, me: &NodeName) {
    match event {
        CoreEvent::Registered { incarnation } => info!(%incarnation, "registered"),
        CoreEvent::NameTaken { identity } => warn!(
            name = %me, identity,
            "another host is registered under this name; waiting until it is gone"
        ),
        CoreEvent::Convicted => warn!("this gateway counts as dead by a verdict; withdrawing"),
        CoreEvent::ForeignValue { key, problem } => {
            warn!(key, problem, "a key in the store makes no sense and is left alone");
        }
        CoreEvent::State { vni, from, to } => debug!(%vni, %from, %to, "state"),
        CoreEvent::Gained { vni, .. } if past.kept => info!(%vni, "network kept over the restart"),
        CoreEvent::Gained { vni, reason, .. } => info!(%vni, reason, "network gained"),
        CoreEvent::Lost { vni, to } => {
            let to = to.as_ref().map(ToString::to_string);
            info!(%vni, to, "network handed over");
        }
        CoreEvent::Planner(true) => info!("this gateway plans moves now"),
        CoreEvent::Planner(false) => info!("this gateway no longer plans moves"),
        CoreEvent::Suspected { name, silent_for } => {
            warn!(gateway = %name, ?silent_for, "no path to a gateway answers: it is suspected");
        }
        CoreEvent::Heard(name) => info!(gateway = %name, "a gateway is heard"),
        CoreEvent::Voted(name) => info!(gateway = %name, "voted that a gateway is lost"),
        CoreEvent::Verdict { name, reason, after } => {
            warn!(gateway = %name, reason, ?after, "a gateway counts as dead by a verdict");
        }
        CoreEvent::Prepared { name, networks } => warn!(
            gateway = %name, networks,
            "taking networks of a lost gateway over before the store can confirm it"
        ),
        CoreEvent::Right { right, unconfirmed_for } => log_right(*right, *unconfirmed_for),
        CoreEvent::Fitness(problems) if problems.is_empty() => info!("this host is fit again"),
        CoreEvent::Fitness(problems) => {
            let problems = problems.join("; ");
            warn!(problems, "something keeps this host from doing its job");
        }
        CoreEvent::AsksForRelief => warn!("asking the other gateways to take the networks over"),
        CoreEvent::Left => info!("nothing is owned here any more"),
    }
}

fn log_right(right: status::Right, unconfirmed_for: Duration) {
    let cause = view::cause(right).text();
    match view::right(right) {
        Right { serve: true, cause: Cause::Isolated } => {
            warn!(?unconfirmed_for, "cut off from a majority and from the store; serving on");
        }
        Right { serve: true, .. } => info!(cause, ?unconfirmed_for, "this gateway may serve"),
        Right { serve: false, .. } => {
            warn!(cause, ?unconfirmed_for, "this gateway may not serve any more");
        }
    }
}

/// The event for those who watch.
fn what(event: CoreEvent, past: &Past<'_>) -> What {
    match event {
        CoreEvent::Registered { incarnation } => What::Registered { incarnation: incarnation.0 },
        CoreEvent::NameTaken { identity } => What::NameTaken { identity },
        CoreEvent::Convicted => What::Convicted,
        CoreEvent::ForeignValue { key, problem } => What::ForeignValue { key, problem },
        CoreEvent::State { vni, from, to } => {
            let state = |state: machine::State| view::state(state);
            What::State { vni, from: state(from), to: state(to) }
        }
        CoreEvent::Gained { vni, planned, reason } => {
            let (kept, from) = (past.kept, past.from.cloned());
            What::Gained { vni, planned, kept, from, reason }
        }
        CoreEvent::Lost { vni, to } => What::Lost { vni, to },
        CoreEvent::Planner(here) => What::Planner { here },
        CoreEvent::Suspected { name, silent_for } => {
            What::Suspected { name, silent_ms: millis(silent_for) }
        }
        CoreEvent::Heard(name) => What::Heard { name },
        CoreEvent::Voted(name) => What::Voted { name },
        CoreEvent::Verdict { name, reason, after } => {
            What::Verdict { name, reason, after_ms: after.map(millis) }
        }
        CoreEvent::Prepared { name, networks } => What::Prepared { name, networks },
        CoreEvent::Right { right, unconfirmed_for } => {
            let Right { serve, cause } = view::right(right);
            What::Right { serve, cause, unconfirmed_ms: millis(unconfirmed_for) }
        }
        CoreEvent::Fitness(problems) => What::Fitness { problems },
        CoreEvent::AsksForRelief => What::AsksForRelief,
        CoreEvent::Left => What::Left,
    }
}

/// Whole milliseconds.
pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use selvedge_gateway::desired::Duty;

    use super::super::hooks::HooksConfig;
    use super::*;

    fn name(text: &str) -> NodeName {
        text.parse().expect("a name")
    }

    fn vni(number: u32) -> Vni {
        number.try_into().expect("vni")
    }

    fn at(ms: u64) -> Time {
        Time::ZERO + Duration::from_millis(ms)
    }

    fn change(owner: &str, at_ms: u64) -> Change {
        Change { epoch: 1, owner: name(owner), reason: "so it is".to_owned(), at_ms }
    }

    /// What gw1 reads in a network's history after it took it over from gw2 just now.
    fn taken_over() -> [Change; 2] {
        [change("gw2", 1), change("gw1", u64::MAX)]
    }

    fn gained(number: u32) -> CoreEvent {
        let reason = "gw2 was convicted".to_owned();
        CoreEvent::Gained { vni: vni(number), planned: false, reason }
    }

    fn verdict() -> CoreEvent {
        let after = Some(Duration::from_millis(210));
        CoreEvent::Verdict { name: name("gw2"), reason: "silence".to_owned(), after }
    }

    fn journal() -> Journal {
        let stream = Stream::new();
        let bridge = "br{vni}".parse().expect("a pattern");
        let hooks = Hooks::spawn(HooksConfig::default(), name("gw1"), bridge, stream.clone()).0;
        Journal::new(name("gw1"), stream, hooks)
    }

    fn serves(journal: &mut Journal, number: u32, now: Time) {
        let desired = Desired { duty: Duty::TAKEOVER, announce: 1 };
        journal.reached(&[(vni(number), desired)], now);
    }

    #[tokio::test]
    async fn a_takeover_lasts_from_the_verdict_to_the_announcement() {
        let mut journal = journal();
        journal.note(verdict(), &[], at(1000));
        journal.note(gained(1), &taken_over(), at(1020));
        serves(&mut journal, 1, at(1100));
        // Said again a second later, it counts no second time.
        serves(&mut journal, 1, at(2100));
        let takeover = &journal.times.takeover;
        assert_eq!((takeover.count, takeover.max_us), (1, 100_000));
        let detection = &journal.times.detection;
        assert_eq!((detection.count, detection.max_us), (1, 210_000));
        assert_eq!((journal.counters.failovers, journal.counters.verdicts), (1, 1));
    }

    #[tokio::test]
    async fn a_prepared_takeover_begins_before_the_verdict_and_serves_before_the_store_knows() {
        let mut journal = journal();
        let prepared = CoreEvent::Prepared { name: name("gw2"), networks: 1 };
        journal.note(prepared, &[], at(1000));
        serves(&mut journal, 1, at(1080));
        journal.note(verdict(), &[], at(2500));
        journal.note(gained(1), &taken_over(), at(2600));
        let takeover = &journal.times.takeover;
        assert_eq!((takeover.count, takeover.max_us), (1, 80_000));
    }

    #[tokio::test]
    async fn what_is_kept_over_a_restart_is_no_failover() {
        let mut journal = journal();
        let mut events = journal.stream.subscribe();
        journal.note(gained(1), &[change("gw1", 1000)], at(5));
        assert_eq!((journal.counters.kept, journal.counters.failovers), (1, 0));
        let what = events.next().await.what;
        assert!(matches!(what, What::Gained { kept: true, .. }), "{what:?}");
    }

    #[tokio::test]
    async fn a_planned_move_is_no_failover_and_no_takeover() {
        let mut journal = journal();
        journal.note(verdict(), &[], at(0));
        let event = CoreEvent::Gained { vni: vni(1), planned: true, reason: String::new() };
        journal.note(event, &taken_over(), at(10));
        serves(&mut journal, 1, at(20));
        assert_eq!((journal.counters.moves, journal.counters.failovers), (1, 0));
        assert_eq!(journal.times.takeover.count, 0);
    }

    #[tokio::test]
    async fn silence_is_counted_once_and_timed() {
        let mut journal = journal();
        journal.silenced(true, at(1000));
        journal.silenced(true, at(1100));
        assert!(journal.is_silenced());
        journal.silenced(false, at(1300));
        journal.silenced(false, at(1400));
        assert!(!journal.is_silenced());
        let silence = &journal.times.silence;
        assert_eq!((journal.counters.fences, silence.count, silence.sum_us), (1, 1, 300_000));
    }

    #[tokio::test]
    async fn who_reads_too_slowly_is_told_how_much_was_missed() {
        let stream = Stream::new();
        let mut slow = stream.subscribe();
        for _ in 0..stream::KEPT + 3 {
            stream.publish(What::Convicted);
        }
        assert_eq!(slow.next().await.what, What::Missed { events: 3 });
        assert_eq!(slow.next().await.what, What::Convicted);
    }
}
