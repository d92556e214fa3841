//! A campus whose gateways have agents.

mod config;
mod control;
mod mesh;
mod options;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use selvedge::config::File;
use selvedge_model::{Time, Vni};
use selvedge_netlab::campus::{Fault, Flavour};
use selvedge_netlab::clock::{now, wait_until};
use selvedge_netlab::etcd::{Etcd, Seen, Watch};
use selvedge_netlab::stream::Streams;
use selvedge_netlab::{Campus, Lab, Process, Recipe};

use crate::logs;
use crate::progress::say;
use crate::view::{Owners, View};

pub(crate) use control::{Restart, this_program};
pub(crate) use mesh::WIREGUARD_PORT;
pub(crate) use options::{Fabric, FleetOptions, StorePlace};

/// The first argument with which this program is `selvedge`.
pub(crate) const AS_SELVEDGE: &str = "as-selvedge";

/// The campus with its agents.
pub(crate) struct Fleet {
    agents: BTreeMap<String, Process>,
    watch: Watch,
    pub(crate) campus: Campus,
    options: FleetOptions,
    /// Who served what when the fleet was whole.
    home: Option<Owners>,
}

impl Fleet {
    /// Builds the campus, starts the agents, and waits until every network is served.
    pub(crate) fn start(options: &FleetOptions) -> anyhow::Result<Self> {
        options.check_installed()?;
        say!("building {} gateways and {} networks", options.gateways(), options.networks);
        let campus =
            Campus::build(Lab::new()?, options.plan()).context("cannot build the campus")?;
        let etcd = campus.etcd.as_ref().context("the plan has no etcd")?;
        // Where there are no packets, what the agents do is timed by the watch; more than one
        // would be a load of its own.
        let observer = match options.fabric {
            Fabric::Frr | Fabric::Flood => &campus.access_point,
            Fabric::Mesh => &campus.switch,
        };
        let watch = match options.dry {
            true => etcd.watch_one(observer, "/")?,
            false => etcd.watch(observer, "/")?,
        };
        let (agents, options) = (BTreeMap::new(), options.clone());
        let mut fleet = Self { agents, watch, campus, options, home: None };
        fleet.start_agents()?;
        if fleet.campus.plan.flavour == Flavour::Mesh {
            fleet.form_mesh()?;
        }
        let limit = fleet.options.settle();
        fleet.wait_settled(limit)?;
        Ok(fleet)
    }

    /// All networks.
    pub(crate) fn networks(&self) -> Vec<Vni> {
        (1..=self.options.networks).filter_map(|vni| Vni::try_from(vni).ok()).collect()
    }

    /// The names of all gateways.
    pub(crate) fn gateways(&self) -> Vec<String> {
        self.campus.gateways.iter().map(|gateway| gateway.host.name().to_owned()).collect()
    }

    pub(crate) fn etcd(&self) -> anyhow::Result<&Etcd> {
        self.campus.etcd.as_ref().context("the plan has no etcd")
    }

    pub(crate) fn etcd_mut(&mut self) -> anyhow::Result<&mut Etcd> {
        self.campus.etcd.as_mut().context("the plan has no etcd")
    }

    /// All changes in the store so far.
    pub(crate) fn changes(&self) -> Vec<Seen> {
        self.watch.seen()
    }

    /// What the store says now.
    pub(crate) fn view(&self) -> View {
        View::of(&self.changes())
    }

    /// Waits until the watch has reported all that the store holds: it may have been away too.
    pub(crate) fn wait_watched(&self) -> anyhow::Result<()> {
        let etcd = self.etcd()?;
        wait_until("the watch of the laboratory to catch up", Duration::from_secs(60), || {
            Ok(self.view().holds(&etcd.get("/")?))
        })?;
        Ok(())
    }

    /// Waits until the upstream router knows every network by its plain prefix. Halves of a
    /// gateway that is lost would be as good as those of its successor until the routing protocol
    /// has noticed: a second loss shortly after a first is another scenario.
    pub(crate) fn wait_plain(&mut self) -> anyhow::Result<()> {
        let mut halves = BTreeMap::new();
        let plain = wait_until("the plain prefixes of all networks", PLAIN, || {
            std::thread::sleep(LOOK);
            halves = self.campus.halves()?;
            Ok(halves.is_empty())
        });
        plain.map_err(|error| {
            let words = format!("halves of prefixes by next hop: {halves:?}");
            self.explained(anyhow::Error::from(error).context(words))
        })
    }

    /// How long all networks may take to move.
    pub(crate) fn patience(&self) -> Duration {
        self.options.settle()
    }

    /// Waits until etcd and the fleet are whole again after a fault.
    pub(crate) fn wait_whole(&mut self) -> anyhow::Result<()> {
        let limit = self.options.settle();
        self.etcd()?.wait_healthy(limit)?;
        self.wait_settled(limit)
    }

    /// Waits until all gateways are there, every network is served, and no more moves are to
    /// come: each is where it was when the fleet was whole before, or nothing has changed for
    /// longer than a gateway that is back is held down.
    pub(crate) fn wait_settled(&mut self, limit: Duration) -> anyhow::Result<()> {
        let (all, count) = (self.networks(), self.campus.gateways.len());
        let witness = self.campus.witness.as_ref().map(|witness| witness.host.name());
        let voting = |view: &View| witness.is_none_or(|name| view.is_registered(name));
        let mut last = (View::default(), now());
        let settled = wait_until("a settled fleet", limit, || {
            std::thread::sleep(LOOK);
            let view = self.view();
            if view != last.0 {
                last = (view, now());
            }
            let complete =
                last.0.gateways().len() == count && last.0.all_served(&all) && voting(&last.0);
            let at_home = self.home.as_ref() == Some(&last.0.owners(&all));
            Ok(complete && now() - last.1 > if at_home { QUIET_AT_HOME } else { QUIET })
        });
        settled.map_err(|error| self.explained(error.into()))?;
        self.home = Some(last.0.owners(&all));
        Ok(())
    }

    /// Starts streams on all networks, those of `first` being the fast ones, and waits until
    /// packets arrive on every one, in both directions.
    pub(crate) fn start_streams(&mut self, first: &[Vni]) -> anyhow::Result<Streams> {
        let chosen: BTreeSet<Vni> = first.iter().copied().collect();
        let all = self.networks();
        let rest: Vec<Vni> = all.iter().copied().filter(|vni| !chosen.contains(vni)).collect();
        let specs = self.campus.streams(first, &rest, self.options.families());
        let streams = Streams::start(&specs)?;
        let running = wait_until("packets on all streams", Duration::from_secs(60), || {
            Ok(flowing(&streams, &all).len() == all.len())
        });
        running.map_err(|error| {
            let busy = flowing(&streams, &all);
            let idle: Vec<String> =
                all.iter().filter(|vni| !busy.contains(vni)).take(5).map(Vni::to_string).collect();
            let count = all.len() - busy.len();
            let words = format!("{count} networks are idle, such as {}", idle.join(", "));
            self.explained(anyhow::Error::from(error).context(words))
        })?;
        Ok(streams)
    }

    pub(crate) fn strike(&mut self, gateway: &str, fault: Fault) -> anyhow::Result<()> {
        let agent = self.agents.get_mut(gateway).context("there is no such agent")?;
        Ok(self.campus.strike(gateway, fault, agent)?)
    }

    pub(crate) fn heal(&mut self, gateway: &str, fault: Fault) -> anyhow::Result<()> {
        let agent = self.agents.get_mut(gateway).context("there is no such agent")?;
        Ok(self.campus.heal(gateway, fault, agent)?)
    }

    /// An error, with the last lines of the agents' logs on standard error; the logs are kept
    /// if that was asked for.
    pub(crate) fn explained(&mut self, error: anyhow::Error) -> anyhow::Error {
        for (name, agent) in &mut self.agents {
            logs::show_end(name, agent);
        }
        error
    }

    fn start_agents(&mut self) -> anyhow::Result<()> {
        say!("starting the agents");
        if let Some(witness) = &self.campus.witness {
            let name = witness.host.name().to_owned();
            let file = self.witness_file()?;
            self.start_agent(&name, &file)?;
        }
        for index in 0..self.campus.gateways.len() {
            let gateway = &self.campus.gateways[index];
            let (name, file) = (gateway.host.name().to_owned(), self.gateway_file(gateway)?);
            self.start_agent(&name, &file)?;
        }
        for (name, file) in self.access_point_files()? {
            self.start_agent(&name, &file)?;
        }
        Ok(())
    }

    fn start_agent(&mut self, name: &str, file: &File) -> anyhow::Result<()> {
        let path = self.path(name, "toml");
        std::fs::write(&path, file.to_toml()?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        let recipe = Recipe::new("agent", self.host(name)?, self.program(name)?);
        let agent = recipe.args([AS_SELVEDGE, "agent", "--config"]).arg(path).start()?;
        self.agents.insert(name.to_owned(), agent);
        Ok(())
    }

    fn path(&self, gateway: &str, extension: &str) -> PathBuf {
        self.campus.lab().folder().join(format!("{gateway}.{extension}"))
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        logs::keep(self.campus.lab().folder(), self.options.logs.as_deref());
    }
}

/// The networks, in this order, on which packets have arrived in both directions during the last
/// moment.
pub(crate) fn flowing(streams: &Streams, order: &[Vni]) -> Vec<Vni> {
    let from = now();
    std::thread::sleep(moment(streams));
    flowing_since(streams, order, from)
}

/// As long as it takes until a packet must have arrived on every stream.
pub(crate) fn moment(streams: &Streams) -> Duration {
    Duration::from_millis(300).max(streams.longest_interval() * 2)
}

/// The networks, in this order, on which packets sent since `from` have arrived in both
/// directions, of every family.
pub(crate) fn flowing_since(streams: &Streams, order: &[Vni], from: Time) -> Vec<Vni> {
    let flowing = streams.report_between(from, now()).flowing();
    order.iter().copied().filter(|vni| flowing.contains(&vni.get())).collect()
}

/// Twice as long as halves are advertised after a takeover.
const PLAIN: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(200);
const QUIET_AT_HOME: Duration = Duration::from_secs(1);
/// Longer than a gateway that is back is held down.
const QUIET: Duration = Duration::from_secs(12);
