//! The tasks that look.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use selvedge_gateway::desired::Duty;
use selvedge_model::Vni;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};
use tracing::{info, warn};

use super::judge::{Judge, Look};
use super::look::{self, Links, Neighbours};
use super::{Check, Checks, Error, FrrChecks, Interfaces, Report};
use crate::events::{Change, Events};
use crate::fabric::ROUTE_PROTOCOL;
use crate::frr::Vty;
use crate::netlink::{Netlink, RouteFilter};

/// What this host shall do, by network: what it shall not do may be missing.
pub type Served = BTreeMap<Vni, Duty>;

/// How often each daemon is asked for its sessions.
const SESSIONS: Duration = Duration::from_millis(500);
/// For how long a daemon may be too busy to answer until that is a fault: it does its work
/// meanwhile, and what it is busy with may be the networks of a gateway that was lost.
const BUSY: Duration = Duration::from_secs(10);
/// How often interfaces to watch are looked for while none has been found.
const SEARCH: Duration = Duration::from_secs(1);
/// How long changes of interfaces are gathered before those of the networks are gone through.
const GATHER: Duration = Duration::from_millis(50);
/// The least time between two times that they are gone through.
const SPACING: Duration = Duration::from_millis(500);

/// Starts the monitor in the network namespace of the calling thread, on the current runtime. It
/// ends when all receivers of the reports are gone.
///
/// # Errors
/// If the kernel cannot be asked.
///
/// # Panics
/// Outside a Tokio runtime.
pub fn spawn(
    checks: Checks,
    served: watch::Receiver<Served>,
) -> Result<watch::Receiver<Report>, Error> {
    let (reports, receiver) = watch::channel(Report::default());
    let (looks, looked) = mpsc::channel(16);
    let (found, chosen) = watch::channel(Chosen::new(&checks));
    let netlink = Netlink::new()?;
    let mut tasks = JoinSet::new();
    let mut awaited = BTreeSet::from([(Check::Carrier, UPLINK), (Check::Carrier, FABRIC)]);
    let interfaces = LinkTask {
        events: Events::open()?,
        netlink: netlink.clone(),
        checks: checks.clone(),
        served: served.clone(),
        chosen,
        outlet: Outlet::new(looks.clone()),
        links: Links::new(),
    };
    tasks.spawn(interfaces.run());
    for session in sessions(checks.frr.as_ref()) {
        awaited.insert((Check::Session, session.name));
        tasks.spawn(session.run(Outlet::new(looks.clone())));
    }
    let slow = SlowTask::new(checks.clone(), netlink, served, found, Outlet::new(looks));
    tasks.spawn(slow.run());
    let judge = Judge::new(checks, awaited, Instant::now());
    tokio::spawn(pass_judgement(judge, looked, reports, tasks));
    Ok(receiver)
}

/// Publishes what the looks amount to. The tasks end with this one.
async fn pass_judgement(
    mut judge: Judge,
    mut looked: mpsc::Receiver<Look>,
    reports: watch::Sender<Report>,
    _tasks: JoinSet<()>,
) {
    loop {
        let now = Instant::now();
        let report = judge.report(now);
        reports.send_if_modified(|last| std::mem::replace(last, report.clone()) != report);
        let deadline = judge.deadline(now);
        tokio::select! {
            look = looked.recv() => match look {
                Some(look) => judge.note(look, Instant::now(), wall_clock()),
                None => return,
            },
            () = until(deadline) => {}
            () = reports.closed() => return,
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// Milliseconds since 1970.
fn wall_clock() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

const UPLINK: &str = "uplink";
const FABRIC: &str = "fabric";

/// Passes looks on, if they differ from the last one of the same part.
struct Outlet {
    looks: mpsc::Sender<Look>,
    last: BTreeMap<(Check, &'static str), Look>,
}

impl Outlet {
    const fn new(looks: mpsc::Sender<Look>) -> Self {
        Self { looks, last: BTreeMap::new() }
    }

    async fn send(&mut self, look: Look) {
        let key = (look.check, look.part);
        if self.last.get(&key) != Some(&look) {
            self.last.insert(key, look.clone());
            // Nobody listens at the very end only.
            let _ = self.looks.send(look).await;
        }
    }
}

/// The interfaces whose carrier is watched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub(crate) uplink: BTreeSet<String>,
    pub(crate) fabric: BTreeSet<String>,
}

impl Chosen {
    fn new(checks: &Checks) -> Self {
        let given = |interfaces: &Interfaces| match interfaces {
            Interfaces::These(names) => names.iter().cloned().collect(),
            Interfaces::Off | Interfaces::Auto => BTreeSet::new(),
        };
        Self { uplink: given(&checks.uplink), fabric: given(&checks.fabric) }
    }

    /// Adds what was found for those that are to be found; says whether that is anything new.
    fn add(&mut self, checks: &Checks, found: Self) -> bool {
        let before = self.clone();
        if checks.uplink == Interfaces::Auto {
            self.uplink.extend(found.uplink);
        }
        if checks.fabric == Interfaces::Auto {
            self.fabric.extend(found.fabric);
        }
        *self != before
    }

    fn is_complete(&self, checks: &Checks) -> bool {
        let missing = |interfaces: &Interfaces, names: &BTreeSet<String>| {
            *interfaces == Interfaces::Auto && names.is_empty()
        };
        !missing(&checks.uplink, &self.uplink) && !missing(&checks.fabric, &self.fabric)
    }
}

/// Follows the interfaces.
struct LinkTask {
    events: Events,
    netlink: Netlink,
    checks: Checks,
    served: watch::Receiver<Served>,
    chosen: watch::Receiver<Chosen>,
    outlet: Outlet,
    links: Links,
}

impl LinkTask {
    async fn run(mut self) {
        let mut networks_at: Option<Instant> = None;
        let mut looked_at: Option<Instant> = None;
        let soon = |last: Option<Instant>| {
            let soon = Instant::now() + GATHER;
            last.map_or(soon, |at| soon.max(at + SPACING))
        };
        loop {
            tokio::select! {
                change = self.events.next() => match change {
                    Ok(change) => {
                        self.take(change).await;
                        self.look_at_carrier().await;
                        networks_at.get_or_insert_with(|| soon(looked_at));
                    }
                    Err(error) => return warn!(%error, "interfaces are not watched any more"),
                },
                Ok(()) = self.chosen.changed() => self.look_at_carrier().await,
                Ok(()) = self.served.changed() => {
                    networks_at.get_or_insert_with(|| soon(looked_at));
                }
                () = until(networks_at) => {
                    networks_at = None;
                    self.look_at_networks().await;
                    looked_at = Some(Instant::now());
                }
            }
        }
    }

    async fn take(&mut self, change: Change) {
        match change {
            Change::Link(link) => drop(self.links.insert(link.index, link)),
            Change::LinkGone { index, .. } => drop(self.links.remove(&index)),
            Change::Addresses { .. } => {}
            Change::Missed => self.read_anew().await,
        }
    }

    /// Nothing can be said of the interfaces before this has succeeded.
    async fn read_anew(&mut self) {
        let mut complained = false;
        loop {
            match links(&self.netlink).await {
                Ok(links) => return self.links = links,
                Err(error) if !complained => {
                    warn!(%error, "the interfaces cannot be read; trying again");
                    complained = true;
                }
                Err(_) => {}
            }
            sleep(SEARCH).await;
        }
    }

    async fn look_at_carrier(&mut self) {
        let chosen = self.chosen.borrow_and_update().clone();
        for (part, names) in [(UPLINK, chosen.uplink), (FABRIC, chosen.fabric)] {
            let outcome = look::carrier(&names, &self.links);
            self.outlet.send(Look::at(Check::Carrier, part, outcome)).await;
        }
    }

    async fn look_at_networks(&mut self) {
        if self.checks.bridges {
            let served = self.served.borrow_and_update().clone();
            let look = look::bridges(&served, &self.checks.names, &self.links);
            self.outlet.send(look).await;
        }
    }
}

/// Asks one daemon for its neighbours again and again.
struct Session {
    name: &'static str,
    vty: Vty,
    neighbours: &'static str,
    /// What tells whether the daemon is active on any interface, if its neighbours do not.
    interfaces: Option<&'static str>,
    /// What to make of the answer.
    read: fn(&Value) -> Neighbours,
    /// Whether there should be neighbours. Once there should, that stays so.
    expected: bool,
    required: bool,
    state: &'static str,
    /// Since when it has not answered.
    silent_since: Option<Instant>,
}

fn sessions(checks: Option<&FrrChecks>) -> Vec<Session> {
    let Some(checks) = checks else { return Vec::new() };
    let wanted = [(BGPD, checks.bgp), (OSPFD, checks.ospf), (OSPF6D, checks.ospf6)];
    let wanted = wanted.into_iter().filter(|(_, wanted)| *wanted);
    wanted.map(|(daemon, _)| daemon.session(checks)).collect()
}

/// How a daemon is asked.
#[derive(Clone, Copy)]
struct Daemon {
    name: &'static str,
    neighbours: &'static str,
    interfaces: Option<&'static str>,
    read: fn(&Value) -> Neighbours,
    /// What to say if there are none.
    state: &'static str,
    /// Whether it has to run.
    required: bool,
}

const BGPD: Daemon = Daemon {
    name: "bgpd",
    neighbours: "show bgp l2vpn evpn summary json",
    interfaces: None,
    read: look::bgp,
    state: "no EVPN session of bgpd is established",
    required: true,
};
const OSPFD: Daemon = Daemon {
    name: "ospfd",
    neighbours: "show ip ospf neighbor json",
    interfaces: Some("show ip ospf interface json"),
    read: look::ospf,
    state: "ospfd has no full neighbour",
    required: false,
};
const OSPF6D: Daemon = Daemon {
    name: "ospf6d",
    neighbours: "show ipv6 ospf6 neighbor json",
    interfaces: Some("show ipv6 ospf6 interface json"),
    read: look::ospf,
    state: "ospf6d has no full neighbour",
    required: false,
};

impl Daemon {
    fn session(self, checks: &FrrChecks) -> Session {
        let Self { name, neighbours, interfaces, read, state, required } = self;
        let vty = Vty::new(&checks.vty_dir, checks.pathspace.as_deref(), name);
        let (expected, silent_since) = (false, None);
        Session { name, vty, neighbours, interfaces, read, expected, required, state, silent_since }
    }
}

impl Session {
    async fn run(mut self, mut outlet: Outlet) {
        loop {
            if let Some(outcome) = self.look().await {
                outlet.send(Look::at(Check::Session, self.name, outcome)).await;
            }
            sleep(SESSIONS).await;
        }
    }

    /// `None` if it is as before, for all that is known: the daemon is busy.
    async fn look(&mut self) -> Option<Result<bool, String>> {
        let answer = ask(&mut self.vty, self.neighbours).await;
        if matches!(&answer, Err(crate::frr::Error::Silent { .. })) {
            let since = *self.silent_since.get_or_insert_with(Instant::now);
            if since.elapsed() < BUSY {
                return None;
            }
        } else {
            self.silent_since = None;
        }
        Some(self.judge(answer).await)
    }

    /// A daemon that was never seen to run is not part of this host's job, unless it has to; one
    /// that was here before is.
    async fn judge(&mut self, answer: Result<Value, crate::frr::Error>) -> Result<bool, String> {
        let neighbours = match answer {
            Ok(answer) => (self.read)(&answer),
            Err(error) if is_absent(&error) && !self.expected && !self.required => {
                return Ok(false);
            }
            Err(error) => return Err(error.to_string()),
        };
        self.expected |= neighbours.expected || neighbours.working > 0;
        if !self.expected {
            self.expected = self.is_active().await;
        }
        match (neighbours.working > 0, self.expected) {
            (true, _) => Ok(true),
            (false, false) => Ok(false),
            (false, true) => Err(self.state.to_owned()),
        }
    }

    async fn is_active(&mut self) -> bool {
        let Some(command) = self.interfaces else { return false };
        ask(&mut self.vty, command).await.is_ok_and(|answer| look::is_active(&answer))
    }
}

/// Whether nobody listens at the socket.
fn is_absent(error: &crate::frr::Error) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, NotFound};
    let crate::frr::Error::Connect { source, .. } = error else { return false };
    matches!(source.kind(), NotFound | ConnectionRefused)
}

/// What `show ... json` prints; `null` where the daemon has nothing to say, as without an
/// instance.
pub(crate) async fn ask(vty: &mut Vty, command: &str) -> Result<Value, crate::frr::Error> {
    let answer = vty.run(command).await?;
    let text = answer.trim();
    if !text.starts_with(['{', '[']) {
        return Ok(Value::Null);
    }
    serde_json::from_str(text).map_err(|error| crate::frr::Error::Garbled {
        command: command.to_owned(),
        reason: error.to_string(),
    })
}

/// Reads what takes long or seldom changes.
struct SlowTask {
    checks: Checks,
    netlink: Netlink,
    served: watch::Receiver<Served>,
    found: watch::Sender<Chosen>,
    outlet: Outlet,
    bgpd: Option<Vty>,
    igps: Igps,
}

impl SlowTask {
    fn new(
        checks: Checks,
        netlink: Netlink,
        served: watch::Receiver<Served>,
        found: watch::Sender<Chosen>,
        outlet: Outlet,
    ) -> Self {
        let space = |frr: &FrrChecks| (frr.vty_dir.clone(), frr.pathspace.clone());
        let (bgpd, igps) = match checks.frr.as_ref().map(space) {
            Some((dir, space)) => {
                (Some(Vty::new(&dir, space.as_deref(), BGPD.name)), igps(&dir, space.as_deref()))
            }
            None => (None, Igps::new()),
        };
        Self { checks, netlink, served, found, outlet, bgpd, igps }
    }

    async fn run(mut self) {
        let every = self.checks.every;
        let mut networks_at = Instant::now();
        loop {
            self.choose().await;
            if Instant::now() >= networks_at {
                networks_at = Instant::now() + every;
                self.look_at_networks().await;
            }
            let searching = !self.found.borrow().is_complete(&self.checks);
            sleep(if searching { SEARCH.min(every) } else { every }).await;
        }
    }

    async fn look_at_networks(&mut self) {
        let served = self.served.borrow().clone();
        if self.checks.routes {
            match self.routes(&served).await {
                Ok(look) => self.outlet.send(look).await,
                Err(error) => warn!(%error, "the kernel's routes cannot be checked"),
            }
        }
        let Some(bgpd) = self.bgpd.as_mut().filter(|_| self.checks.adverts) else { return };
        let answer = ask(bgpd, "show bgp l2vpn evpn vni json").await;
        let look = look::adverts(&served, &answer.map_err(|error| error.to_string()));
        self.outlet.send(look).await;
    }

    async fn routes(&self, served: &Served) -> Result<Look, crate::netlink::Error> {
        let links = links(&self.netlink).await?;
        let filter = RouteFilter { protocol: Some(ROUTE_PROTOCOL), table: None };
        let ours = self.netlink.routes(filter).await?;
        Ok(look::routes(served, &self.checks.names, &links, &ours))
    }

    /// Looks for interfaces to watch, where that was left to us.
    async fn choose(&mut self) {
        if ![&self.checks.uplink, &self.checks.fabric].contains(&&Interfaces::Auto) {
            return;
        }
        let known = self.found.borrow().clone();
        let found = match find(&self.netlink, &mut self.igps, &known).await {
            Ok(found) => found,
            Err(error) => return warn!(%error, "uplink and fabric cannot be looked for"),
        };
        let checks = &self.checks;
        if self.found.send_if_modified(|chosen| chosen.add(checks, found)) {
            let Chosen { uplink, fabric } = self.found.borrow().clone();
            info!(?uplink, ?fabric, "watching the carrier of these interfaces");
        }
    }
}

/// The daemons whose neighbours show which interfaces lead upstream, each with what to ask it.
pub(crate) type Igps = Vec<(Vty, &'static str)>;

pub(crate) fn igps(vty_dir: &Path, pathspace: Option<&str>) -> Igps {
    let open = |it: Daemon| (Vty::new(vty_dir, pathspace, it.name), it.neighbours);
    [OSPFD, OSPF6D].map(open).into()
}

/// Looks for uplink and fabric. Neighbours may come later and are asked for again and again; the
/// tables of the kernel, which may be long, only until they have told something that is `known`.
pub(crate) async fn find(
    netlink: &Netlink,
    igps: &mut Igps,
    known: &Chosen,
) -> Result<Chosen, crate::netlink::Error> {
    let mut uplink = neighbours(igps).await;
    if known.uplink.is_empty() && uplink.is_empty() {
        let routes = netlink.routes(RouteFilter::default()).await?;
        uplink = look::default_interfaces(&links(netlink).await?, &routes);
    }
    if !known.fabric.is_empty() {
        return Ok(Chosen { uplink, fabric: BTreeSet::new() });
    }
    let addresses = netlink.addresses().await?;
    let fabric = match look::fabric_interfaces(&links(netlink).await?, &addresses) {
        Some(names) if names.is_empty() => known.uplink.union(&uplink).cloned().collect(),
        Some(names) => names,
        None => BTreeSet::new(),
    };
    Ok(Chosen { uplink, fabric })
}

/// The interfaces on which the routing protocols have a full neighbour.
async fn neighbours(igps: &mut Igps) -> BTreeSet<String> {
    let mut interfaces = BTreeSet::new();
    for (vty, neighbours) in igps {
        if let Ok(answer) = ask(vty, neighbours).await {
            interfaces.extend(look::ospf(&answer).interfaces);
        }
    }
    interfaces
}

async fn links(netlink: &Netlink) -> Result<Links, crate::netlink::Error> {
    let links = netlink.links().await?;
    Ok(links.into_iter().map(|link| (link.index, link)).collect())
}
