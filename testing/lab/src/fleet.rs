//! A campus whose gateways have agents.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::ValueEnum;
use selvedge::config::{EtcdFile, FabricName, File, FloodFile, FrrFile, GatewayFile, NetworkFile};
use selvedge_model::{Time, Vni, VniRanges};
use selvedge_netlab::campus::{
    AccessPoint, EtcdPlace, Family, Fault, Flavour, Gateway, Network, Plan,
};
use selvedge_netlab::clock::{now, wait_until};
use selvedge_netlab::etcd::{Etcd, Seen, Watch};
use selvedge_netlab::frr::Frr;
use selvedge_netlab::stream::Streams;
use selvedge_netlab::{Campus, Lab, Process, Recipe};

use crate::progress::say;
use crate::view::{Owners, View};

/// The first argument with which this program is `selvedge`.
pub(crate) const AS_SELVEDGE: &str = "as-selvedge";

/// How networks reach their gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Fabric {
    /// BGP EVPN and OSPF by FRRouting
    Frr,
    /// Static flooding lists and next-hop addresses
    Flood,
}

/// Options of all scenarios.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct FleetOptions {
    /// How many overlay networks
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=4000))]
    pub(crate) networks: u32,
    /// How many gateways; three of them have a member of etcd (one, if there are fewer)
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(2..=64))]
    pub(crate) gateways: u32,
    /// How networks reach their gateway
    #[arg(long, value_enum, default_value = "frr")]
    pub(crate) fabric: Fabric,
    /// Send the streams over IPv6
    #[arg(long)]
    pub(crate) ipv6: bool,
    /// Print nothing but the JSON line
    #[arg(long)]
    pub(crate) json: bool,
    /// Keep the logs of all processes in this folder
    #[arg(long, value_name = "FOLDER")]
    pub(crate) logs: Option<PathBuf>,
    /// What the agents log
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub(crate) log: String,
}

impl FleetOptions {
    pub(crate) fn family(&self) -> Family {
        if self.ipv6 { Family::V6 } else { Family::V4 }
    }
}

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
        check_installed(options.fabric)?;
        say!("building {} gateways and {} networks", options.gateways, options.networks);
        let campus =
            Campus::build(Lab::new()?, plan(options)).context("cannot build the campus")?;
        let etcd = campus.etcd.as_ref().context("the plan has no etcd")?;
        let watch = etcd.watch(&campus.access_point, "/")?;
        let (agents, options) = (BTreeMap::new(), options.clone());
        let mut fleet = Self { agents, watch, campus, options, home: None };
        say!("starting the agents");
        for index in 0..fleet.campus.gateways.len() {
            fleet.start_agent(index)?;
        }
        fleet.wait_settled(Duration::from_secs(120))?;
        Ok(fleet)
    }

    /// All networks.
    pub(crate) fn networks(&self) -> Vec<Vni> {
        self.campus.networks().map(Network::vni).collect()
    }

    /// The names of all gateways.
    pub(crate) fn gateways(&self) -> Vec<String> {
        self.campus.gateways.iter().map(|gateway| gateway.host.name().to_owned()).collect()
    }

    pub(crate) fn etcd(&self) -> anyhow::Result<&Etcd> {
        self.campus.etcd.as_ref().context("the plan has no etcd")
    }

    /// All changes in the store so far.
    pub(crate) fn changes(&self) -> Vec<Seen> {
        self.watch.seen()
    }

    /// What the store says now.
    pub(crate) fn view(&self) -> View {
        View::of(&self.changes())
    }

    /// Waits until all gateways are there, every network is served, and no more moves are to
    /// come: each is where it was when the fleet was whole before, or nothing has changed for
    /// longer than a gateway that is back is held down.
    pub(crate) fn wait_settled(&mut self, limit: Duration) -> anyhow::Result<()> {
        let (all, count) = (self.networks(), self.campus.gateways.len());
        let mut last = (View::default(), now());
        let settled = wait_until("a settled fleet", limit, || {
            std::thread::sleep(LOOK);
            let view = self.view();
            if view != last.0 {
                last = (view, now());
            }
            let complete = last.0.gateways().len() == count && last.0.all_served(&all);
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
        let mut order = first.to_vec();
        order.extend(self.networks().into_iter().filter(|vni| !first.contains(vni)));
        let streams = Streams::start(&self.campus.streams(&order, self.options.family()))?;
        let running = wait_until("packets on all streams", Duration::from_secs(60), || {
            Ok(flowing(&streams, &order).len() == order.len())
        });
        running.map_err(|error| {
            let idle = order.len() - flowing(&streams, &order).len();
            self.explained(anyhow::Error::from(error).context(format!("{idle} streams are idle")))
        })?;
        Ok(streams)
    }

    /// Tells a gateway to hand over its networks, or to take networks again.
    pub(crate) fn drain(&self, gateway: &str, drained: bool) -> anyhow::Result<()> {
        let socket = self.path(gateway, "sock").display().to_string();
        let mut arguments = vec![AS_SELVEDGE, "gateway", "--socket", &socket];
        arguments.extend(if drained { ["drain", "--no-wait"].as_slice() } else { &["undrain"] });
        let program = std::env::current_exe().context("cannot find this program")?;
        let program = program.to_str().context("this program's path is not UTF-8")?;
        self.campus.gateway(gateway)?.host.sh(program, &arguments)?;
        Ok(())
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
            let text = std::fs::read_to_string(agent.log()).unwrap_or_default();
            let lines: Vec<&str> = text.lines().rev().take(12).collect();
            let state = agent.status().unwrap_or_else(|| "running".to_owned());
            say!("log of the agent on {name} ({state}):");
            for line in lines.into_iter().rev() {
                say!("  {line}");
            }
        }
        error
    }

    fn start_agent(&mut self, index: usize) -> anyhow::Result<()> {
        let gateway = &self.campus.gateways[index];
        let name = gateway.host.name().to_owned();
        let path = self.path(&name, "toml");
        std::fs::write(&path, self.config(gateway)?.to_toml()?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        let program = std::env::current_exe().context("cannot find this program")?;
        let recipe = Recipe::new("agent", &gateway.host, program);
        let agent = recipe.args([AS_SELVEDGE, "agent", "--config"]).arg(path).start()?;
        self.agents.insert(name, agent);
        Ok(())
    }

    fn config(&self, gateway: &Gateway) -> anyhow::Result<File> {
        let name = gateway.host.name();
        Ok(File {
            name: Some(name.parse()?),
            state: Some(self.path(name, "state")),
            socket: Some(self.path(name, "sock")),
            log: Some(self.options.log.clone()),
            gateway: Some(self.gateway_config(gateway)?),
            ..File::default()
        })
    }

    fn gateway_config(&self, gateway: &Gateway) -> anyhow::Result<GatewayFile> {
        let last = Vni::try_from(self.campus.plan.networks)?;
        let flood =
            FloodFile { uplink: "up0".to_owned(), endpoints: vec![AccessPoint::FABRIC.into()] };
        let frr = gateway
            .frr
            .as_ref()
            .map(|frr| FrrFile { vty_dir: Some(frr.vty_dir().to_owned()), ..FrrFile::default() });
        Ok(GatewayFile {
            networks: Some(VniRanges::range(Vni::try_from(1)?, last)?),
            fabric: Some(if frr.is_some() { FabricName::Frr } else { FabricName::Flood }),
            flood: frr.is_none().then_some(flood),
            frr,
            etcd: Some(EtcdFile { endpoints: self.etcd()?.endpoints(), ..EtcdFile::default() }),
            network: self.campus.networks().map(network_config).collect(),
            ..GatewayFile::default()
        })
    }

    fn path(&self, gateway: &str, extension: &str) -> PathBuf {
        self.campus.lab().folder().join(format!("{gateway}.{extension}"))
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        let Some(folder) = &self.options.logs else { return };
        if let Err(error) = keep_logs(self.campus.lab().folder(), folder) {
            say!("the logs could not be kept in {}: {error}", folder.display());
        }
    }
}

/// The networks on which packets have arrived in both directions during the last 300 ms.
pub(crate) fn flowing(streams: &Streams, order: &[Vni]) -> Vec<Vni> {
    let from = now();
    std::thread::sleep(Duration::from_millis(300));
    flowing_since(streams, order, from)
}

/// The networks, of the streams in this order, on which packets sent since `from` have arrived
/// in both directions.
pub(crate) fn flowing_since(streams: &Streams, order: &[Vni], from: Time) -> Vec<Vni> {
    let report = streams.report_between(from, now());
    let both = order.iter().zip(report.flows.chunks(2));
    both.filter(|(_, both)| both.iter().all(|flow| flow.received > 0)).map(|(v, _)| *v).collect()
}

const LOOK: Duration = Duration::from_millis(200);
const QUIET_AT_HOME: Duration = Duration::from_secs(1);
/// Longer than a gateway that is back is held down.
const QUIET: Duration = Duration::from_secs(12);

fn plan(options: &FleetOptions) -> Plan {
    let flavour = match options.fabric {
        Fabric::Frr => Flavour::Frr,
        Fabric::Flood => Flavour::Flood,
    };
    let (gateways, networks) = (options.gateways, options.networks);
    Plan { gateways, networks, flavour, etcd: EtcdPlace::Gateways }
}

fn network_config(network: Network) -> NetworkFile {
    NetworkFile {
        vni: network.vni(),
        addresses: Family::ALL.map(|family| network.gateway(family)).to_vec(),
        next_hops: Family::ALL.map(|family| network.next_hop(family)).to_vec(),
    }
}

fn check_installed(fabric: Fabric) -> anyhow::Result<()> {
    if !Etcd::is_installed() {
        bail!("etcd or etcdctl is not installed: apt-get install etcd-server etcd-client");
    }
    if fabric == Fabric::Frr && !Frr::is_installed() {
        bail!("FRRouting is not installed: apt-get install frr");
    }
    Ok(())
}

fn keep_logs(from: &std::path::Path, to: &std::path::Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let path = entry?.path();
        if let (Some("log"), Some(name)) =
            (path.extension().and_then(|it| it.to_str()), path.file_name())
        {
            std::fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}
