//! Whether this host can do its job as a gateway: carrier, routing sessions, the interfaces of the
//! networks that it serves, its own routes and adverts.
//!
//! [`spawn`] starts the monitor; a [`Report`] says what is wrong *now*. What to do about it, and
//! what to do about flapping, is for others to decide. `docs/health.md` tells operators the same.
//!
//! - Carrier and interfaces are followed by the kernel's notifications ([`crate::events`]).
//! - Sessions are asked for every half second over connections that stay open, at each daemon
//!   by a task of its own: one that hangs delays no other.
//! - Routes and adverts are read every ten seconds: the applier puts right what is missing, so
//!   they count only if that does not help.

mod judge;
mod look;
mod watch;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use selvedge_model::Vni;
use serde::Serialize;

use crate::inventory::Names;
use crate::{events, frr, netlink};

pub(crate) use watch::{Chosen, Igps, ask, find, igps};
pub use watch::{Served, spawn};

/// What is checked, and how patiently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checks {
    /// The interfaces towards the upstream routers: one of them needs a carrier.
    pub uplink: Interfaces,
    /// The interfaces towards the other tunnel endpoints: one of them needs a carrier.
    pub fabric: Interfaces,
    /// The sessions of FRR's daemons; `None` where the host does not work through FRR.
    pub frr: Option<FrrChecks>,
    /// Bridge and VXLAN interface of each network that is served.
    pub bridges: bool,
    /// The kernel routes by which traffic from upstream is attracted (fabric `frr`).
    pub routes: bool,
    /// That bgpd advertises the gateway (fabric `frr`).
    pub adverts: bool,
    /// How the interfaces of a network are called.
    pub names: Names,
    /// How long after the start a session that was never up counts as coming up.
    pub start: Duration,
    /// How long what is wrong has to last.
    pub grace: Grace,
    /// How often routes and adverts are read.
    pub every: Duration,
}

/// Which interfaces to watch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Interfaces {
    /// None.
    Off,
    /// What can be told from the host. The fabric's: the one that carries the `local` address of
    /// the VXLAN interfaces; if that is the loopback, the same as the uplink's. The uplink's:
    /// those on which ospfd or ospf6d has a full neighbour, and those of default routes that a
    /// routing daemon has learned. A default route of the operator's own says nothing: it may be
    /// the management network's. What was found once is watched until the agent ends.
    #[default]
    Auto,
    /// These, by name.
    These(Vec<String>),
}

/// Which of FRR's sessions count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrrChecks {
    /// The folder of FRR's control sockets; see [`frr::DEFAULT_DIR`].
    pub vty_dir: PathBuf,
    /// What the daemons got by `-N`, if anything.
    pub pathspace: Option<String>,
    /// At least one EVPN neighbour of bgpd's is established, if any is configured.
    pub bgp: bool,
    /// At least one neighbour of ospfd's is full, if ospfd runs on an active interface.
    pub ospf: bool,
    /// The same of ospf6d.
    pub ospf6: bool,
}

/// How long what is wrong has to last until it counts, by check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grace {
    /// Carrier of uplink and fabric.
    pub carrier: Duration,
    /// Sessions of FRR that were up before.
    pub session: Duration,
    /// Interfaces of a network.
    pub bridge: Duration,
    /// Routes and adverts of a network: long enough for the applier to put them right.
    pub network: Duration,
}

impl Default for Grace {
    /// At once, 2 s, 1 s and 15 s. A daemon that is merely slow is back before that.
    fn default() -> Self {
        let second = Duration::from_secs(1);
        Self { carrier: Duration::ZERO, session: 2 * second, bridge: second, network: 15 * second }
    }
}

impl Default for Checks {
    /// All that needs no FRR, with the usual names, 30 s for the start, a look every 10 s.
    fn default() -> Self {
        Self {
            uplink: Interfaces::Auto,
            fabric: Interfaces::Auto,
            frr: None,
            bridges: true,
            routes: false,
            adverts: false,
            names: Names::default(),
            start: Duration::from_secs(30),
            grace: Grace::default(),
            every: Duration::from_secs(10),
        }
    }
}

impl FrrChecks {
    /// All checks, of the daemons at the usual place.
    #[must_use]
    pub fn all() -> Self {
        let vty_dir = frr::DEFAULT_DIR.into();
        Self { vty_dir, pathspace: None, bgp: true, ospf: true, ospf6: true }
    }
}

/// What was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// The carrier of uplink and fabric.
    Carrier,
    /// The sessions of FRR's daemons.
    Session,
    /// The interfaces of a network.
    Bridge,
    /// The kernel routes of a network.
    Route,
    /// What bgpd advertises for a network.
    Advert,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Carrier => "carrier",
            Self::Session => "session",
            Self::Bridge => "bridge",
            Self::Route => "route",
            Self::Advert => "advert",
        })
    }
}

/// Something that keeps this host from serving.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// What was looked at.
    pub check: Check,
    /// Of what: `uplink`, `fabric`, a daemon's name, or the number of a network.
    pub subject: String,
    /// The network that cannot be served; `None` if none can.
    pub network: Option<Vni>,
    /// What is wrong, for people.
    pub text: String,
    /// Since when, in milliseconds since 1970.
    pub since: u64,
}

/// What is wrong on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether everything that is to be checked was looked at since the start.
    pub complete: bool,
    /// What keeps this host from serving.
    pub problems: Vec<Problem>,
    /// What will be a problem if it lasts: a session that is still coming up, a route that the
    /// applier may put right if it is told to look.
    pub pending: Vec<Problem>,
}

/// What a host is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fitness {
    /// It can serve.
    Fit,
    /// It is not known yet, or its sessions are still coming up: it keeps what it has, and should
    /// not attract more while others can.
    Starting,
    /// It cannot serve: what it has should go to others.
    Unfit,
}

impl Report {
    /// What the host as a whole is good for. Problems of single networks do not count.
    #[must_use]
    pub fn fitness(&self) -> Fitness {
        let of_the_host = |problem: &Problem| problem.network.is_none();
        let coming_up = |problem: &Problem| of_the_host(problem) && problem.check == Check::Session;
        if self.problems.iter().any(of_the_host) {
            Fitness::Unfit
        } else if !self.complete || self.pending.iter().any(coming_up) {
            Fitness::Starting
        } else {
            Fitness::Fit
        }
    }

    /// The networks that cannot be served for reasons of their own.
    pub fn networks(&self) -> impl Iterator<Item = (Vni, &Problem)> {
        self.problems.iter().filter_map(|problem| Some((problem.network?, problem)))
    }
}

/// Why the monitor could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel's notifications cannot be heard.
    #[error(transparent)]
    Events(#[from] events::Error),
    /// The kernel cannot be asked.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
}

#[cfg(test)]
mod tests;
