//! Has the host follow the latest desired state.
//!
//! The applier never queues commands. It looks at what is desired now, compares it with what the
//! host does, and applies the difference; what changed meanwhile is the next difference. Now and
//! then it reads the host anew, so that what others have changed is put right.
//!
//! It has a thread and a runtime of its own: every word to the kernel may wait for the one lock
//! of its network configuration, for seconds on a busy host, and neither the plane's deadlines
//! nor the lease may wait with it. For a takeover, which stations wait for, it puts off all else,
//! and its thread goes before other work; otherwise it is an ordinary one, as it works much.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context;

use selvedge_gateway::desired::{Desired, Duty, Upstream};
use selvedge_host::fabric::{Driver, Failures};
use selvedge_host::nft::Silencer;
use selvedge_host::priority;
use selvedge_model::Vni;
use tokio::runtime;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use super::host::Host;
use crate::config::GatewayConfig;
use crate::interfaces::Changes;

/// How often the host is read anew.
const RECHECK: Duration = Duration::from_secs(30);
/// How long changes of interfaces are gathered, and the least time between two readings for them.
const GATHER: Duration = Duration::from_millis(200);
const SPACING: Duration = Duration::from_secs(2);
/// How long after a failure the host is read anew and the rest is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How many networks are given up at once: what is to be gained meanwhile waits for them.
const GIVEN_UP_AT_ONCE: usize = 200;

/// What the host shall do, by network. One that is missing is left as it is.
pub(super) type Wanted = BTreeMap<Vni, Desired>;

/// What the applier follows.
pub(super) struct Orders {
    /// The latest desired state.
    pub(super) wanted: watch::Receiver<Wanted>,
    /// That the host is to be read anew.
    pub(super) recheck: Arc<Notify>,
}

/// What the applier reports.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// Networks for which what is desired has been reached.
    pub(super) reached: Vec<(Vni, Desired)>,
    /// Why networks cannot be served, all of them.
    pub(super) unable: BTreeMap<Vni, String>,
    /// How many operations failed in this pass.
    pub(super) failures: u64,
    /// What the host was last seen to do; `None` as long as it has not been looked at.
    pub(super) observed: Option<BTreeMap<Vni, Duty>>,
}

/// What the applier found when it opened the host.
pub(super) struct Opened {
    /// The fabric's name, for people.
    pub(super) fabric: &'static str,
    /// The networks that this host cannot serve, and why.
    pub(super) unable: BTreeMap<Vni, String>,
    /// Silences them all at once, from any thread.
    pub(super) silencer: Option<Silencer>,
}

/// Opens the host and follows what is `wanted`, on a thread of its own, until the sender of
/// `wanted` or the receiver of `reports` is gone.
pub(super) async fn spawn(
    config: GatewayConfig,
    orders: Orders,
    reports: mpsc::Sender<Report>,
) -> anyhow::Result<Opened> {
    let (opened, is_open) = oneshot::channel();
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let work = async move {
        let mut host = match Host::open(&config).await {
            Ok(host) => host,
            Err(error) => return drop(opened.send(Err(error))),
        };
        let (fabric, unable) = (host.fabric(), host.unable());
        let silencer = host.driver().silencer();
        let found = Opened { fabric, unable, silencer };
        if opened.send(Ok(found)).is_ok() {
            Applier::new(host, orders, reports).run().await;
        }
    };
    thread::Builder::new()
        .name("applier".to_owned())
        .spawn(move || {
            runtime.block_on(work);
        })
        .context("cannot start the applier's thread")?;
    is_open.await.context("the applier has failed")?
}

/// The task that owns the driver.
struct Applier {
    host: Host,
    orders: Orders,
    reports: mpsc::Sender<Report>,
    /// What the host does, as far as is known.
    actual: BTreeMap<Vni, Duty>,
    announced: BTreeMap<Vni, u64>,
    reported: BTreeMap<Vni, Desired>,
    /// The last failure of a network, so that it is logged once.
    complaints: BTreeMap<Vni, String>,
    recheck_at: Instant,
    /// When the host was last read as a whole.
    checked_at: Option<Instant>,
}

impl Applier {
    fn new(host: Host, orders: Orders, reports: mpsc::Sender<Report>) -> Self {
        let (actual, announced, reported, complaints) = Default::default();
        Self {
            host,
            orders,
            reports,
            actual,
            announced,
            reported,
            complaints,
            recheck_at: Instant::now(),
            checked_at: None,
        }
    }

    /// Runs until the plane has ended.
    async fn run(mut self) {
        let mut changes = Changes::open(RECHECK);
        loop {
            if Instant::now() >= self.recheck_at {
                self.recheck_at = Instant::now() + RECHECK;
                self.observe().await;
            }
            let wanted = self.orders.wanted.borrow_and_update().clone();
            let failures = self.apply(&wanted).await;
            if self.report(&wanted, failures).await.is_err() {
                return;
            }
            tokio::select! {
                changed = self.orders.wanted.changed() => if changed.is_err() { return },
                () = self.orders.recheck.notified() => self.recheck_soon(),
                () = changes.next() => self.recheck_soon(),
                () = sleep_until(self.recheck_at) => {}
            }
        }
    }

    /// Reads what the host really does. Everything is reported anew then: the core may have
    /// changed its mind twice between two looks of ours, and wait for a word. But for a takeover
    /// the reading is put off.
    async fn observe(&mut self) {
        let may_wait = self.checked_at.is_some();
        let seen = tokio::select! {
            seen = look(&mut self.host) => Some(seen),
            () = takeover(&mut self.orders.wanted, &self.actual, &self.complaints),
                if may_wait => None,
        };
        match seen {
            Some(Ok(actual)) => {
                self.actual = actual;
                self.checked_at = Some(Instant::now());
                self.reported.clear();
            }
            Some(Err(error)) => {
                warn!(%error, "what this host does cannot be read; trying again");
                self.retry();
            }
            None => self.recheck_at = self.recheck_at.min(Instant::now() + SPACING),
        }
    }

    /// Applies the difference, what is gained before what is given up: somebody waits for it.
    /// What is given up is left for the next difference as soon as something else is desired, but
    /// each time something of it is done.
    async fn apply(&mut self, wanted: &Wanted) -> u64 {
        let plan = Plan::new(wanted, &self.actual, &self.announced);
        if plan.is_urgent() {
            priority::raise();
        } else {
            priority::lower();
        }
        let mut failures = 0;
        for step in &plan.gained {
            failures += self.perform(step).await;
        }
        failures += self.announce(&plan.announce, wanted).await;
        for (done, step) in plan.given_up.iter().enumerate() {
            if done > 0 && self.orders.wanted.has_changed().unwrap_or(true) {
                break;
            }
            failures += self.perform(step).await;
        }
        failures
    }

    async fn perform(&mut self, step: &Step) -> u64 {
        let failed = perform(self.host.driver(), step).await;
        self.note(step, &failed);
        failed.len() as u64
    }

    async fn announce(&mut self, vnis: &[Vni], wanted: &Wanted) -> u64 {
        if vnis.is_empty() {
            return 0;
        }
        let failed = self.host.driver().announce(vnis).await;
        for vni in vnis.iter().filter(|vni| !failed.contains_key(vni)) {
            self.announced.insert(*vni, wanted[vni].announce);
        }
        self.complain("announce", &failed);
        failed.len() as u64
    }

    fn note(&mut self, change: &Step, failed: &Failures) {
        for vni in change.vnis.iter().filter(|vni| !failed.contains_key(vni)) {
            change.kind.note(self.actual.entry(*vni).or_default());
            self.complaints.remove(vni);
        }
        debug!(change = ?change.kind, networks = change.vnis.len(), "applied");
        self.complain(change.kind.name(), failed);
    }

    fn complain(&mut self, operation: &str, failed: &Failures) {
        for (vni, error) in failed {
            let text = error.to_string();
            if self.complaints.get(vni) != Some(&text) {
                warn!(%vni, operation, error = text, "the host did not do what it was told");
                self.complaints.insert(*vni, text);
            }
        }
        if !failed.is_empty() {
            self.retry();
        }
    }

    /// Something on this host has come, gone or changed: reads the host anew once that is over,
    /// and not all the time.
    fn recheck_soon(&mut self) {
        let soon = Instant::now() + GATHER;
        let spaced = self.checked_at.map_or(soon, |at| soon.max(at + SPACING));
        self.recheck_at = self.recheck_at.min(spaced);
    }

    fn retry(&mut self) {
        self.recheck_at = self.recheck_at.min(Instant::now() + RETRY);
    }

    async fn report(&mut self, wanted: &Wanted, failures: u64) -> Result<(), ()> {
        let is_reached = |vni: &Vni, desired: &Desired| {
            self.actual.get(vni).copied().unwrap_or_default() == desired.duty
                && (!desired.duty.answering
                    || self.announced.get(vni).copied().unwrap_or(0) >= desired.announce)
        };
        let new = |vni: &Vni, desired: &Desired| self.reported.get(vni) != Some(desired);
        let reached: Vec<(Vni, Desired)> = wanted
            .iter()
            .filter(|(vni, desired)| new(vni, desired) && is_reached(vni, desired))
            .map(|(vni, desired)| (*vni, *desired))
            .collect();
        self.reported.extend(reached.iter().copied());
        // What is no longer reached has to be reported again once it is.
        self.reported.retain(|vni, desired| wanted.get(vni) == Some(desired));
        let observed = self.checked_at.is_some().then(|| self.actual.clone());
        let unable = self.host.unable();
        let report = Report { reached, unable, failures, observed };
        self.reports.send(report).await.map_err(|_| ())
    }
}

/// Reads the host.
async fn look(host: &mut Host) -> Result<BTreeMap<Vni, Duty>, selvedge_host::fabric::Error> {
    if let Err(error) = host.refresh().await {
        warn!(%error, "the host's networks cannot be read");
    }
    host.driver().observe().await
}

/// Waits until a network is to be taken over at once. One that has `failed` is no reason: what is
/// read may show why. Never ends if nothing is desired any more.
async fn takeover(
    wanted: &mut watch::Receiver<Wanted>,
    actual: &BTreeMap<Vni, Duty>,
    failed: &BTreeMap<Vni, String>,
) {
    let is_taken = |(vni, desired): (&Vni, &Desired)| {
        let now = actual.get(vni).copied().unwrap_or_default();
        !failed.contains_key(vni) && Kind::is_takeover(now, desired.duty)
    };
    let is_due = |wanted: &Wanted| wanted.iter().any(is_taken);
    if wanted.wait_for(is_due).await.is_err() {
        std::future::pending().await
    }
}

/// What has to be done for the host to do what is wanted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    gained: Vec<Step>,
    announce: Vec<Vni>,
    given_up: Vec<Step>,
}

/// One operation on many networks.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    kind: Kind,
    vnis: Vec<Vni>,
}

/// An operation, in the order in which they are performed: what is gained goes from the fabric
/// inwards to answering, what is given up in the other direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    TakeOver(Upstream),
    FabricOn,
    Attract(Upstream),
    AnswerOn,
    AnswerOff,
    UpstreamOff,
    FabricOff,
}

impl Plan {
    fn new(wanted: &Wanted, actual: &BTreeMap<Vni, Duty>, announced: &BTreeMap<Vni, u64>) -> Self {
        let mut groups: BTreeMap<Kind, Vec<Vni>> = BTreeMap::new();
        let mut announce = Vec::new();
        for (vni, desired) in wanted {
            let now = actual.get(vni).copied().unwrap_or_default();
            for kind in Kind::between(now, desired.duty) {
                groups.entry(kind).or_default().push(*vni);
            }
            let due = announced.get(vni).copied().unwrap_or(0) < desired.announce;
            if due && desired.duty.answering {
                announce.push(*vni);
            }
        }
        let given_up = groups.split_off(&Kind::AnswerOff);
        let gained = groups.into_iter().map(|(kind, vnis)| Step { kind, vnis }).collect();
        let given_up = given_up.iter().flat_map(|(kind, vnis)| {
            let some = vnis.chunks(GIVEN_UP_AT_ONCE);
            some.map(|vnis| Step { kind: *kind, vnis: vnis.to_vec() })
        });
        Self { gained, announce, given_up: given_up.collect() }
    }

    /// Whether stations wait for it.
    fn is_urgent(&self) -> bool {
        self.gained.iter().any(|step| matches!(step.kind, Kind::TakeOver(_)))
    }
}

impl Kind {
    /// Whether the host goes from nothing to all at once.
    fn is_takeover(from: Duty, to: Duty) -> bool {
        from == Duty::NONE && to.fabric && to.answering && to.upstream != Upstream::Off
    }

    fn between(from: Duty, to: Duty) -> Vec<Self> {
        if Self::is_takeover(from, to) {
            return vec![Self::TakeOver(to.upstream)];
        }
        let fabric = (from.fabric != to.fabric).then_some(if to.fabric {
            Self::FabricOn
        } else {
            Self::FabricOff
        });
        let upstream = (from.upstream != to.upstream).then_some(match to.upstream {
            Upstream::Off => Self::UpstreamOff,
            upstream @ (Upstream::Whole | Upstream::Halves) => Self::Attract(upstream),
        });
        let answering = (from.answering != to.answering).then_some(if to.answering {
            Self::AnswerOn
        } else {
            Self::AnswerOff
        });
        [fabric, upstream, answering].into_iter().flatten().collect()
    }

    const fn name(self) -> &'static str {
        match self {
            Self::TakeOver(_) => "take over",
            Self::FabricOn => "advertise into the fabric",
            Self::Attract(_) => "attract traffic from upstream",
            Self::AnswerOn => "answer",
            Self::AnswerOff => "fall silent",
            Self::UpstreamOff => "let traffic from upstream go",
            Self::FabricOff => "withdraw from the fabric",
        }
    }

    const fn note(self, duty: &mut Duty) {
        match self {
            Self::TakeOver(upstream) => {
                *duty = Duty { fabric: true, upstream, answering: true };
            }
            Self::FabricOn => duty.fabric = true,
            Self::Attract(upstream) => duty.upstream = upstream,
            Self::AnswerOn => duty.answering = true,
            Self::AnswerOff => duty.answering = false,
            Self::UpstreamOff => duty.upstream = Upstream::Off,
            Self::FabricOff => duty.fabric = false,
        }
    }
}

async fn perform(driver: &mut dyn Driver, change: &Step) -> Failures {
    let vnis = change.vnis.as_slice();
    match change.kind {
        Kind::TakeOver(upstream) => driver.take_over(vnis, upstream).await,
        Kind::FabricOn => driver.fabric(vnis, true).await,
        Kind::Attract(upstream) => driver.upstream(vnis, upstream).await,
        Kind::AnswerOn => driver.answering(vnis, true).await,
        Kind::AnswerOff => driver.answering(vnis, false).await,
        Kind::UpstreamOff => driver.upstream(vnis, Upstream::Off).await,
        Kind::FabricOff => driver.fabric(vnis, false).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vni(number: u32) -> Vni {
        number.try_into().expect("vni")
    }

    fn kinds(from: Duty, to: Duty) -> Vec<Kind> {
        let wanted = [(vni(1), Desired { duty: to, announce: 0 })].into();
        let actual = [(vni(1), from)].into();
        let Plan { gained, given_up, .. } = Plan::new(&wanted, &actual, &BTreeMap::new());
        gained.iter().chain(&given_up).map(|step| step.kind).collect()
    }

    #[test]
    fn gained_from_the_fabric_inwards_given_up_outwards() {
        let arriving = Duty { answering: false, ..Duty::TAKEOVER };
        let gained = [Kind::FabricOn, Kind::Attract(Upstream::Halves)];
        assert_eq!(kinds(Duty::NONE, arriving), gained);
        assert_eq!(kinds(arriving, Duty::TAKEOVER), [Kind::AnswerOn]);
        assert_eq!(kinds(Duty::NONE, Duty::TAKEOVER), [Kind::TakeOver(Upstream::Halves)]);
        let lost = [Kind::AnswerOff, Kind::UpstreamOff, Kind::FabricOff];
        assert_eq!(kinds(Duty::FULL, Duty::NONE), lost);
        assert_eq!(kinds(Duty::TAKEOVER, Duty::FULL), [Kind::Attract(Upstream::Whole)]);
        assert_eq!(kinds(Duty::FULL, Duty::FULL), []);
    }

    #[test]
    fn takeovers_come_before_withdrawals() {
        let desired = |duty| Desired { duty, announce: 0 };
        let wanted = [(vni(1), desired(Duty::NONE)), (vni(2), desired(Duty::TAKEOVER))].into();
        let actual = [(vni(1), Duty::FULL)].into();
        let plan = Plan::new(&wanted, &actual, &BTreeMap::new());
        let order =
            |steps: &[Step]| -> Vec<u32> { steps.iter().map(|step| step.vnis[0].get()).collect() };
        assert_eq!((order(&plan.gained), order(&plan.given_up)), (vec![2], vec![1, 1, 1]));
        assert!(plan.is_urgent());
    }

    #[test]
    fn networks_are_given_up_in_batches_and_gained_at_once() {
        let all = || (1..=1000).map(vni);
        let to = |duty| all().map(|vni| (vni, Desired { duty, announce: 0 })).collect();
        let gained = Plan::new(&to(Duty::TAKEOVER), &BTreeMap::new(), &BTreeMap::new());
        assert_eq!((gained.gained.len(), gained.given_up.len()), (1, 0));
        let actual = all().map(|vni| (vni, Duty::FULL)).collect();
        let given_up = Plan::new(&to(Duty::NONE), &actual, &BTreeMap::new());
        assert_eq!((given_up.gained.len(), given_up.given_up.len()), (0, 3 * 5));
        assert!(!given_up.is_urgent());
        let silenced = &given_up.given_up[..5];
        assert!(silenced.iter().all(|step| step.kind == Kind::AnswerOff));
    }

    #[tokio::test]
    async fn only_a_takeover_puts_a_reading_off() {
        let (sender, mut wanted) = watch::channel(Wanted::new());
        let arriving = Duty { answering: false, ..Duty::TAKEOVER };
        let actual = [(vni(1), arriving)].into();
        let desired = |duty| Wanted::from([(vni(1), Desired { duty, announce: 0 })]);
        sender.send(desired(Duty::TAKEOVER)).expect("received");
        let (soon, none) = (Duration::from_millis(50), BTreeMap::new());
        let waited = tokio::time::timeout(soon, takeover(&mut wanted, &actual, &none)).await;
        assert!(waited.is_err(), "a step of a planned move");
        let failed = [(vni(1), "no such interface".to_owned())].into();
        let nothing = BTreeMap::new();
        let waited = takeover(&mut wanted, &nothing, &failed);
        assert!(tokio::time::timeout(soon, waited).await.is_err(), "what failed before");
        takeover(&mut wanted, &BTreeMap::new(), &none).await;
    }

    #[test]
    fn only_who_answers_announces() {
        let desired = |duty| Desired { duty, announce: 3 };
        let wanted = [(vni(1), desired(Duty::NONE)), (vni(2), desired(Duty::FULL))].into();
        let (actual, announced) = (BTreeMap::new(), [(vni(2), 2)].into());
        assert_eq!(Plan::new(&wanted, &actual, &announced).announce, [vni(2)]);
        let announced = [(vni(2), 3)].into();
        assert_eq!(Plan::new(&wanted, &actual, &announced).announce, []);
    }
}
