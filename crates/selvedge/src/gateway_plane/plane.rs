//! The loop of the gateway plane.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use selvedge_api::Error;
use selvedge_api::gateway::{Counters, Drain};
use selvedge_gateway::desired::Duty;
use selvedge_gateway::kv::{StoreError, Txn, TxnReply};
use selvedge_gateway::{Config, Event, Gateway, OperatorError, StoreInput, Token, keys, placement};
use selvedge_model::{NodeName, Time, Vni};
use selvedge_store::Store;
use selvedge_store::supervisor::{Input, Supervisor};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::applier::{Opened, Report, Wanted};
use super::{Reply, Request, applier, store};
use crate::config::{GatewayConfig, Ids};
use crate::identity;

/// How many transactions run at once.
const PARALLEL: usize = 64;
/// Inputs that wait for the plane.
const QUEUE: usize = 256;
/// How long the end may take: to resign what is left, and to withdraw it from the host.
const END_LIMIT: Duration = Duration::from_secs(2);

type Answer = (Token, Result<TxnReply, StoreError>);

/// The driver of the core.
pub(super) struct Plane {
    pub(super) core: Gateway,
    pub(super) engine: &'static str,
    pub(super) fabric: &'static str,
    pub(super) counters: Counters,
    pub(super) unable: BTreeMap<Vni, String>,
    pub(super) observed: BTreeMap<Vni, Duty>,
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
    leaving: Vec<Reply<Result<(), Error>>>,
    left: bool,
}

impl Plane {
    pub(super) async fn open(config: GatewayConfig) -> anyhow::Result<Self> {
        let store = store::open(&config.store).await?;
        let seed = getrandom::u64().map_err(|error| anyhow::anyhow!("no random seed: {error}"))?;
        let (wanted, latest) = watch::channel(Wanted::new());
        let (report, reports) = mpsc::channel(QUEUE);
        let Opened { fabric, unable } = applier::spawn(config.clone(), latest, report).await?;
        let core_config = core_config(&config, &unable)?;
        let (input, inputs) = mpsc::channel(QUEUE);
        let prefixes = keys::PREFIXES.map(str::to_owned).to_vec();
        let supervisor = Supervisor::spawn(Arc::clone(&store), prefixes, config.lease, input);
        Ok(Self {
            core: Gateway::new(core_config, seed, Time::ZERO),
            engine: store::engine(&config.store),
            fabric,
            counters: Counters::default(),
            unable,
            observed: BTreeMap::new(),
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
            leaving: Vec::new(),
            left: false,
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
        }
        self.end().await;
    }

    /// Waits for the next input that is nobody's request. Returns false if a part has ended.
    async fn next(&mut self) -> bool {
        let due = self.began + self.core.poll_timeout().since(Time::ZERO);
        tokio::select! {
            Some(input) = self.inputs.recv() => self.handle_input(input),
            Some((token, reply)) = self.answers.1.recv() => self.handle_answer(token, reply),
            report = self.reports.recv() => match report {
                Some(report) => self.handle_report(report),
                None => return false,
            },
            () = sleep_until(due) => {
                let now = self.now();
                self.core.handle_timeout(now);
            }
        }
        true
    }

    fn now(&self) -> Time {
        Time::ZERO + self.began.elapsed()
    }

    fn handle_input(&mut self, input: Input) {
        let input = match input {
            Input::Snapshot(snapshot) => StoreInput::Snapshot(snapshot),
            Input::Batch(batch) => StoreInput::Batch(batch),
            Input::Connected => StoreInput::Connected,
            Input::Disconnected { reason } => {
                warn!(reason, "the store does not answer; networks stay as they are");
                self.counters.store_losses += 1;
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
            Ok(reply) if !reply.committed => self.counters.conflicts += 1,
            Ok(_) => {}
            Err(error) => debug!(%error, "a transaction failed"),
        }
        let now = self.now();
        self.core.handle_reply(token, reply, now);
    }

    fn handle_report(&mut self, report: Report) {
        let now = self.now();
        self.counters.host_failures += report.failures;
        self.unable = report.unable;
        self.observed = report.observed;
        self.core.handle_applied(report.reached, now);
    }

    fn handle_request(&mut self, request: Request) {
        // Who has gone away meanwhile needs no answer.
        match request {
            Request::Status(reply) => drop(reply.send(self.status())),
            Request::Networks(reply) => drop(reply.send(self.networks())),
            Request::Drain(name, drained, reply) => drop(reply.send(self.drain(name, drained))),
            Request::Leave(reply) => self.leave(reply),
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
            self.wanted.send_modify(|wanted| wanted.extend(changes));
        }
        while let Some(event) = self.core.poll_event() {
            self.note(event);
        }
        if self.left && self.is_withdrawn() {
            for reply in self.leaving.drain(..) {
                drop(reply.send(Ok(())));
            }
        }
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

    /// Whether this host does nothing any more, as far as the applier has reported.
    fn is_withdrawn(&self) -> bool {
        self.wanted.borrow().values().all(|desired| desired.duty == Duty::NONE)
            && self.observed.values().all(|duty| *duty == Duty::NONE)
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Registered { incarnation } => info!(%incarnation, "registered"),
            Event::NameTaken { identity } => {
                warn!(
                    name = %self.name, identity,
                    "another host is registered under this name; waiting until it is gone"
                );
            }
            Event::Convicted => warn!("this gateway counts as dead by a verdict; withdrawing"),
            Event::ForeignValue { key, problem } => {
                warn!(key, problem, "a key in the store makes no sense and is left alone");
            }
            Event::State { vni, from, to } => {
                self.since.insert(vni, unix_time().as_secs());
                debug!(%vni, %from, %to, "state");
            }
            Event::Gained { vni, planned, reason } => {
                match planned {
                    true => self.counters.moves += 1,
                    false => self.counters.failovers += 1,
                }
                info!(%vni, reason, "network gained");
            }
            Event::Lost { vni, to } => {
                let to = to.map(|name| name.to_string());
                info!(%vni, to, "network handed over");
            }
            Event::Planner(true) => info!("this gateway plans moves now"),
            Event::Planner(false) => info!("this gateway no longer plans moves"),
            Event::Left => {
                self.left = true;
                info!("nothing is owned here any more");
            }
        }
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
        OperatorError::Predecessor(_) => Error::conflict(error),
        OperatorError::NotSynced => {
            Error::unavailable(error).hint("`selvedge gateway status` shows the store's state")
        }
    }
}

fn core_config(config: &GatewayConfig, unable: &BTreeMap<Vni, String>) -> anyhow::Result<Config> {
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
        wall_at_zero_ms: wall,
    })
}

fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
