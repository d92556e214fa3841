//! The loop of the gateway plane.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use selvedge_api::Error;
use selvedge_api::gateway::{Drain, Refill, Removed, Takeover};
use selvedge_gateway::desired::Duty;
use selvedge_gateway::kv::{Health, LeaseId, Revision, StoreError, Txn, TxnReply};
use selvedge_gateway::{Config, Event, Gateway, OperatorError, StoreInput, Token, keys, placement};
use selvedge_host::health::{self, Fitness};
use selvedge_host::nft::Silencer;
use selvedge_model::{NodeName, Time, Vni};
use selvedge_store::Store;
use selvedge_store::supervisor::{Input, Settings, Supervisor};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::applier::{Opened, Orders, Report, Wanted};
use super::condition::Condition;
use super::events::Journal;
use super::memory::{Keeper, MemoryFile};
use super::probes::{self, Heard, ProbeCounters, Probes};
use super::{Reply, Request, applier, refill, store};
use crate::config::{GatewayConfig, Ids};
use crate::identity;

/// How many transactions run at once.
const PARALLEL: usize = 64;
/// Inputs that wait for the plane.
const QUEUE: usize = 256;
/// How long the end may take: to resign what is left, and to withdraw it from the host.
const END_LIMIT: Duration = Duration::from_secs(2);
/// How long the others may take to hear that this agent will be away for a moment.
const AWAY_LIMIT: Duration = Duration::from_millis(300);
/// The pause before the switch is tried again.
const SILENCE_RETRY: Duration = Duration::from_millis(100);

type Answer = (Token, Result<TxnReply, StoreError>);

/// The driver of the core.
pub(super) struct Plane {
    pub(super) core: Gateway,
    pub(super) engine: &'static str,
    pub(super) fabric: &'static str,
    pub(super) journal: Journal,
    pub(super) unable: BTreeMap<Vni, String>,
    pub(super) observed: Option<BTreeMap<Vni, Duty>>,
    /// When the state of a network last changed, in seconds of Unix time.
    pub(super) since: BTreeMap<Vni, u64>,
    name: NodeName,
    began: Instant,
    store: Arc<dyn Store>,
    slots: Arc<Semaphore>,
    answers: (mpsc::Sender<Answer>, mpsc::Receiver<Answer>),
    inputs: mpsc::Receiver<Input>,
    reports: mpsc::Receiver<Report>,
    wanted: watch::Sender<Wanted>,
    supervisor: Supervisor,
    memory: Keeper,
    probes: Option<Probes>,
    /// The roster as of this revision is known to the probes.
    introduced: Option<Revision>,
    healths: (mpsc::Sender<Health>, mpsc::Receiver<Health>),
    patience: Duration,
    /// Whether all networks shall be silent.
    silent: watch::Sender<bool>,
    served: watch::Sender<health::Served>,
    condition: Condition,
    /// Has the applier read the host anew.
    recheck: Arc<Notify>,
    /// The networks of the configuration that this host has.
    possible: BTreeSet<Vni>,
    leaving: Vec<Reply<Result<(), Error>>>,
    left: bool,
    /// For how long this agent is to be away, once that was asked for, and who waits for it.
    detaching: Option<(Duration, Reply<()>)>,
}

impl Plane {
    pub(super) async fn open(config: GatewayConfig, journal: Journal) -> anyhow::Result<Self> {
        let store = store::open(&config.store).await?;
        let seed = getrandom::u64().map_err(|error| anyhow::anyhow!("no random seed: {error}"))?;
        let (wanted, latest) = watch::channel(Wanted::new());
        let (report, reports) = mpsc::channel(QUEUE);
        let recheck = Arc::new(Notify::new());
        let orders = Orders { wanted: latest, recheck: Arc::clone(&recheck) };
        let opened = applier::spawn(config.clone(), orders, report).await?;
        let Opened { fabric, unable, silencer } = opened;
        let paths = probes::addresses(&config).await?;
        let probes = open_probes(&config, &paths)?;
        let core_config = core_config(&config, &unable, paths)?;
        let (input, inputs) = mpsc::channel(QUEUE);
        let prefixes = keys::PREFIXES.map(str::to_owned).to_vec();
        let file = MemoryFile::open(&config.state)?;
        let memory = file.load();
        let mut settings = Settings::new(prefixes, config.lease);
        settings.floor = store::floor(&config.store, memory.as_ref());
        let supervisor = Supervisor::spawn_with(Arc::clone(&store), settings, input);
        let (served, looked_after) = watch::channel(health::Served::new());
        let condition = Condition::watch(config.health.clone(), looked_after).await?;
        let mut core = Gateway::new(core_config, seed, Time::ZERO);
        if let Some(memory) = memory {
            core.recall(memory, Time::ZERO);
        }
        Ok(Self {
            possible: config.networks.to_set(),
            core,
            memory: Keeper::spawn(file),
            engine: store::engine(&config.store),
            fabric,
            journal,
            unable,
            observed: None,
            since: BTreeMap::new(),
            name: config.name,
            began: Instant::now(),
            store,
            slots: Arc::new(Semaphore::new(PARALLEL)),
            answers: mpsc::channel(QUEUE),
            inputs,
            reports,
            wanted,
            supervisor,
            probes,
            introduced: None,
            healths: mpsc::channel(1),
            patience: config.timing.patience,
            silent: follow_silence(silencer),
            served,
            condition,
            recheck,
            leaving: Vec::new(),
            left: false,
            detaching: None,
        })
    }

    pub(super) async fn run(
        mut self,
        mut requests: mpsc::Receiver<Request>,
        shutdown: CancellationToken,
    ) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(request) = requests.recv() => self.handle_request(request),
                more = self.next() => if !more { return },
            }
            self.drive();
            if let Some((away, reply)) = self.detaching.take() {
                return self.detach(away, reply).await;
            }
        }
        self.end().await;
    }

    /// Waits for the next input that is nobody's request. Returns false if a part has ended.
    async fn next(&mut self) -> bool {
        let due = self.began + self.core.poll_timeout().since(Time::ZERO);
        tokio::select! {
            heard = hear(self.probes.as_mut()) => self.handle_heard(heard),
            Some(input) = self.inputs.recv() => self.handle_input(input),
            Some((token, reply)) = self.answers.1.recv() => self.handle_answer(token, reply),
            Some(health) = self.healths.1.recv() => {
                let now = self.now();
                self.core.handle_health(health, now);
            }
            report = self.condition.changed() => self.handle_condition(&report),
            report = self.reports.recv() => match report {
                Some(report) => self.handle_report(report),
                None => return false,
            },
            () = sleep_until(due) => self.handle_timeout(),
        }
        true
    }

    /// What has come by now is older than the clock: nobody is silent whose word waits here.
    fn handle_timeout(&mut self) {
        let heard = self.probes.as_mut().map(Probes::drain).unwrap_or_default();
        self.handle_heard(heard);
        let now = self.now();
        self.core.handle_timeout(now);
    }

    fn handle_heard(&mut self, heard: Vec<Heard>) {
        let now = self.now();
        for Heard { from, addr, message } in heard {
            self.core.handle_message(&from, addr, message, now);
        }
    }

    fn handle_condition(&mut self, report: &health::Report) {
        let now = self.now();
        // What is missing may be the applier's to put right.
        self.recheck.notify_one();
        let starting = report.fitness() == Fitness::Starting;
        let of_the_host = report.problems.iter().filter(|problem| problem.network.is_none());
        let problems = of_the_host.map(|problem| problem.text.clone()).collect();
        self.core.handle_condition(starting, problems, now);
    }

    fn now(&self) -> Time {
        Time::ZERO + self.began.elapsed()
    }

    fn handle_input(&mut self, input: Input) {
        let input = match input {
            Input::Snapshot(snapshot) => StoreInput::Snapshot(snapshot),
            Input::Batch(batch) => StoreInput::Batch(batch),
            Input::Connected => {
                self.journal.store(None);
                StoreInput::Connected
            }
            Input::Disconnected { reason } => {
                self.journal.store(Some(reason));
                StoreInput::Disconnected
            }
            Input::Lease(lease) => StoreInput::Lease(lease),
            Input::LeaseLost => StoreInput::LeaseLost,
        };
        let now = self.now();
        self.core.handle_store(input, now);
    }

    fn handle_answer(&mut self, token: Token, reply: Result<TxnReply, StoreError>) {
        match &reply {
            Ok(reply) if !reply.committed => self.journal.counters.conflicts += 1,
            Ok(_) => {}
            Err(error) => debug!(%error, "a transaction failed"),
        }
        let now = self.now();
        self.core.handle_reply(token, reply, now);
    }

    fn handle_report(&mut self, report: Report) {
        let now = self.now();
        self.journal.counters.host_failures += report.failures;
        self.journal.reached(&report.reached, now);
        self.observed = report.observed;
        self.core.handle_applied(report.reached, now);
        if self.unable != report.unable {
            self.unable = report.unable;
            let unable = |vni: &Vni| self.unable.contains_key(vni);
            let able = self.possible.iter().filter(|vni| !unable(vni)).copied().collect();
            self.core.handle_networks(able, now);
        }
    }

    fn handle_request(&mut self, request: Request) {
        // Who has gone away meanwhile needs no answer.
        match request {
            Request::Status(reply) => drop(reply.send(self.status())),
            Request::Networks(reply) => drop(reply.send(self.networks())),
            Request::Drain(name, drained, reply) => drop(reply.send(self.drain(name, drained))),
            Request::Leave(reply) => self.leave(reply),
            Request::TakeOver(name, reply) => drop(reply.send(self.take_over(&name))),
            Request::Refill(reply) => self.refill(reply),
            Request::Remove(name, reply) => drop(reply.send(self.remove(&name))),
            Request::History(query, reply) => drop(reply.send(self.history(query))),
            Request::Detach(away, reply) => self.detaching = Some((away, reply)),
        }
    }

    fn drain(&mut self, name: Option<NodeName>, drained: bool) -> Result<Drain, Error> {
        let name = name.unwrap_or_else(|| self.name.clone());
        let now = self.now();
        self.core.set_drained(&name, drained, now).map_err(refused)?;
        info!(gateway = %name, drained, "the operator's word is on its way to the store");
        let serving = self.core.status().nodes.get(&name).map_or(0, |node| node.owns);
        Ok(Drain { name, drained, serving })
    }

    fn take_over(&mut self, name: &NodeName) -> Result<Takeover, Error> {
        let status = self.core.status();
        let owned = status.nodes.get(name).map_or(0, |node| node.owns);
        let now = self.now();
        self.core.take_over(name, now).map_err(refused)?;
        warn!(gateway = %name, networks = owned, "taking over by the operator's word");
        let heard = status.partners.into_iter().filter(|(_, partner)| partner.heard);
        Ok(Takeover { name: name.clone(), owned, heard: heard.map(|(name, _)| name).collect() })
    }

    fn refill(&self, reply: Reply<Result<Refill, Error>>) {
        let Some((revision, contents)) = self.core.refill() else {
            let error = "this agent has not read the store since it was started: ask another one";
            return drop(reply.send(Err(Error::unavailable(error))));
        };
        let store = Arc::clone(&self.store);
        tokio::spawn(async move {
            // Whoever asked may be gone; it goes on when it is asked again.
            drop(reply.send(refill::work_on(store, revision, contents).await));
        });
    }

    fn remove(&mut self, name: &NodeName) -> Result<Removed, Error> {
        let now = self.now();
        self.core.remove(name, now).map_err(refused)?;
        info!(gateway = %name, "struck from the roster by the operator's word");
        Ok(Removed { name: name.clone() })
    }

    fn leave(&mut self, reply: Reply<Result<(), Error>>) {
        if !self.core.status().synced {
            let error = Error::unavailable("the store was never read: nothing to hand over");
            return drop(reply.send(Err(error)));
        }
        self.leaving.push(reply);
        let now = self.now();
        self.core.leave(now);
    }

    /// Takes all outputs of the core.
    fn drive(&mut self) {
        while let Some((token, txn)) = self.core.poll_transaction() {
            self.run_txn(token, txn);
        }
        let mut changes = Vec::new();
        while let Some(change) = self.core.poll_desired() {
            changes.push(change);
        }
        if !changes.is_empty() {
            let duties = changes.iter().map(|(vni, desired)| (*vni, desired.duty));
            self.served.send_modify(|served| served.extend(duties));
            self.wanted.send_modify(|wanted| wanted.extend(changes));
        }
        self.drive_liveness();
        while let Some(event) = self.core.poll_event() {
            self.note(event);
        }
        if self.left && self.is_withdrawn() {
            for reply in self.leaving.drain(..) {
                drop(reply.send(Ok(())));
            }
        }
    }

    fn drive_liveness(&mut self) {
        if let Some(silent) = self.core.poll_silence() {
            let now = self.now();
            self.journal.silenced(silent, now);
            self.silent.send_replace(silent);
        }
        self.memory.follow(&self.core);
        self.introduce();
        while let Some(outgoing) = self.core.poll_message() {
            if let Some(probes) = &mut self.probes {
                probes.send(&outgoing);
            }
        }
        if self.core.poll_health() {
            let (store, sender) = (Arc::clone(&self.store), self.healths.0.clone());
            let patience = self.patience;
            tokio::spawn(async move {
                // The plane may have ended.
                let _ = sender.send(store.health(patience).await).await;
            });
        }
        while let Some(lease) = self.core.poll_renewal() {
            self.renew(lease);
        }
    }

    /// Makes those on the roster known to the probes.
    fn introduce(&mut self) {
        let revision = self.core.nodes_revision();
        if let Some(probes) = self.probes.as_mut().filter(|_| self.introduced != Some(revision)) {
            self.introduced = Some(revision);
            probes.set_roster(self.core.roster().filter(|(name, _)| **name != self.name));
        }
    }

    fn renew(&self, lease: LeaseId) {
        let store = Arc::clone(&self.store);
        tokio::spawn(async move {
            if let Err(error) = store.keep_alive(lease).await {
                debug!(?lease, %error, "the lease of another gateway is not renewed");
            }
        });
    }

    /// What went over the probes' socket.
    pub(super) fn probe_counters(&self) -> ProbeCounters {
        self.probes.as_ref().map(Probes::counters).unwrap_or_default()
    }

    fn run_txn(&self, token: Token, txn: Txn) {
        let (store, slots) = (Arc::clone(&self.store), Arc::clone(&self.slots));
        let answers = self.answers.0.clone();
        tokio::spawn(async move {
            // The semaphore is never closed, and the plane may have ended.
            let _slot = slots.acquire_owned().await;
            let reply = store.txn(txn).await;
            drop(answers.send((token, reply)).await);
        });
    }

    /// Whether this host does nothing any more, as far as the applier has reported. What it has not
    /// looked at yet may do all that an earlier run did.
    fn is_withdrawn(&self) -> bool {
        let idle = |duty: &Duty| *duty == Duty::NONE;
        self.wanted.borrow().values().all(|desired| idle(&desired.duty))
            && self.observed.as_ref().is_some_and(|observed| observed.values().all(idle))
    }

    fn note(&mut self, event: Event) {
        let now = self.now();
        let mut history: &[_] = &[];
        if let Event::State { vni, .. } = event {
            self.since.insert(vni, unix_time().as_secs());
        } else if let Event::Gained { vni, .. } | Event::Lost { vni, .. } = event {
            history = self.core.history(vni);
        } else if event == Event::Left {
            self.left = true;
        }
        self.journal.note(event, history, now);
    }

    /// Says to the others that this agent will be away, and ends: host and store stay as they are.
    async fn detach(mut self, away: Duration, reply: Reply<()>) {
        let now = self.now();
        self.journal.restarting(away);
        self.core.announce_absence(away, now);
        let known = async {
            loop {
                self.drive();
                if self.core.is_away_known() || !self.next().await {
                    return;
                }
            }
        };
        if timeout(AWAY_LIMIT, known).await.is_err() {
            warn!("not every gateway has confirmed that it waits for this one");
        }
        if timeout(AWAY_LIMIT, self.supervisor.detach()).await.is_err() {
            debug!("the lease's keeper did not end in time");
        }
        // The agent may have gone on without waiting.
        let _ = reply.send(());
    }

    /// Gives up what is left, withdraws it from the host, and leaves the store.
    async fn end(mut self) {
        let now = self.now();
        if self.core.status().synced {
            self.core.resign(now);
        }
        let withdrawn = async {
            loop {
                self.drive();
                if self.is_withdrawn() || !self.next().await {
                    return;
                }
            }
        };
        if timeout(END_LIMIT, withdrawn).await.is_err() {
            warn!("not everything was withdrawn from this host in time");
        }
        if let Err(error) = self.supervisor.shutdown().await {
            warn!(%error, "the registration could not be removed; it ends with its lease");
        }
    }
}

fn refused(error: OperatorError) -> Error {
    match error {
        OperatorError::Unknown(_) => Error::not_found(error),
        OperatorError::Predecessor(_) | OperatorError::Heard(..) | OperatorError::Registered(_) => {
            Error::conflict(error)
        }
        OperatorError::NotSynced => {
            Error::unavailable(error).hint("`selvedge gateway status` shows the store's state")
        }
    }
}

/// Waits for datagrams; for ever where there are no probes.
async fn hear(probes: Option<&mut Probes>) -> Vec<Heard> {
    match probes {
        Some(probes) => probes.receive().await,
        None => std::future::pending().await,
    }
}

/// Opens the probes' socket, unless nobody is to probe this host.
fn open_probes(config: &GatewayConfig, paths: &[SocketAddr]) -> anyhow::Result<Option<Probes>> {
    if paths.is_empty() {
        warn!("no address to be probed on: the loss of this gateway is known by its lease alone");
        return Ok(None);
    }
    let agreement = identity::agreement(&config.state)?;
    Probes::open(&config.probe, config.name.clone(), agreement).map(Some)
}

/// Has the switch follow what is sent, the latest word only; what fails is tried again.
fn follow_silence(silencer: Option<Silencer>) -> watch::Sender<bool> {
    let (silent, mut latest) = watch::channel(false);
    let Some(silencer) = silencer else { return silent };
    tokio::spawn(async move {
        while latest.changed().await.is_ok() {
            let on = *latest.borrow_and_update();
            while let Err(error) = silencer.silence(on).await {
                warn!(on, %error, "the networks cannot be silenced or heard again; trying again");
                sleep(SILENCE_RETRY).await;
                if latest.has_changed().unwrap_or(true) {
                    break;
                }
            }
        }
    });
    silent
}

fn core_config(
    config: &GatewayConfig,
    unable: &BTreeMap<Vni, String>,
    probe: Vec<SocketAddr>,
) -> anyhow::Result<Config> {
    let mut networks = config.networks.to_set();
    networks.retain(|vni| !unable.contains_key(vni));
    let wall = u64::try_from(unix_time().as_millis()).unwrap_or_default();
    Ok(Config {
        name: config.name.clone(),
        identity: identity::load(&config.state)?.node_id().to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ids: match &config.ids {
            Ids::Derived(count) => placement::ids_of(&config.name, *count),
            Ids::Given(ids) => ids.clone(),
        },
        networks,
        settle: config.settle,
        announce: config.announce,
        budget: config.budget,
        hold_down: config.hold_down,
        damping: config.damping,
        wall_at_zero_ms: wall,
        role: config.role,
        probe,
        timing: config.timing,
        isolated: config.isolated,
    })
}

fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
