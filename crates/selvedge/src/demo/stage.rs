//! The hosts of the demo, with the store and the agents as processes on them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use selvedge_api::mesh::{CreateRequest, InviteRequest, JoinRequest};
use selvedge_api::{Client, ClientError};
use selvedge_model::{NodeName, Vni, VniRanges};
use selvedge_netlab::campus::{AccessPoint, Campus, Family, Fault, Gateway, Network, Plan, Switch};
use selvedge_netlab::stream::{End, Spec};
use selvedge_netlab::{Lab, Process, Recipe};

use super::engines::Engines;
use crate::config::{
    EmbeddedFile, EtcdFile, FabricName, File, FloodFile, FrrFile, GatewayFile, MeshFile,
    NetworkFile,
};

const STORE_PORT: u16 = 7655;
const MESH: &str = "demo";
/// The pause between two packets of a stream through the mesh.
const OVERLAY_INTERVAL: Duration = Duration::from_millis(10);
/// How long an agent that is told to stop may take.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// How many lines of each log are shown if something goes wrong.
const LOG_LINES: usize = 12;

/// Everything that runs. Dropping it ends the processes first, then the hosts.
pub(super) struct Stage {
    agents: Vec<Agent>,
    store: Option<Process>,
    campus: Campus,
    program: PathBuf,
    runtime: tokio::runtime::Runtime,
}

struct Agent {
    process: Process,
    client: Client,
}

impl Stage {
    /// Builds the hosts, with etcd and FRRouting if asked for; nothing of ours runs on them yet.
    pub(super) fn build(hosts: usize, networks: u32, engines: Engines) -> anyhow::Result<Self> {
        let plan = Plan {
            gateways: u32::try_from(hosts)?,
            networks,
            flavour: engines.flavour(),
            etcd: engines.etcd(),
        };
        let campus = Campus::build(Lab::new()?, plan).context("cannot build the hosts")?;
        let program = std::env::current_exe().context("cannot find this program")?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the runtime")?;
        Ok(Self { agents: Vec::new(), store: None, campus, program, runtime })
    }

    /// How many overlay networks there are.
    pub(super) fn networks(&self) -> usize {
        self.campus.networks().count()
    }

    /// Starts the embedded store, on the management segment; nothing if etcd is the store.
    pub(super) fn start_store(&mut self) -> anyhow::Result<()> {
        if self.campus.etcd.is_some() {
            return Ok(());
        }
        let recipe = Recipe::new("store", &self.campus.switch, &self.program);
        let listen = format!("--listen={}", store_address());
        self.store = Some(recipe.args(["store", &listen]).start()?);
        Ok(())
    }

    /// Starts the agent of a host, as a gateway too or in the mesh alone.
    pub(super) fn start_agent(&mut self, index: usize, gateway: bool) -> anyhow::Result<()> {
        let file = self.write_config(index, gateway)?;
        let host = &self.campus.gateways[index].host;
        let recipe = Recipe::new("agent", host, &self.program);
        let process = recipe.args(["agent", "--config"]).arg(file).start()?;
        let client = Client::new(self.path(index, "sock"))?;
        self.agents.push(Agent { process, client });
        Ok(())
    }

    /// Starts the agent of a host again, with the gateway plane.
    pub(super) fn restart_as_gateway(&mut self, index: usize) -> anyhow::Result<()> {
        self.write_config(index, true)?;
        let process = &mut self.agents[index].process;
        process.terminate(STOP_LIMIT)?;
        Ok(process.restart()?)
    }

    /// Pulls all cables of a host.
    pub(super) fn cut(&mut self, index: usize) -> anyhow::Result<()> {
        let name = self.campus.gateways[index].host.name();
        Ok(self.campus.strike(name, Fault::Cut, &mut self.agents[index].process)?)
    }

    /// Fails if a process has ended that should run.
    pub(super) fn all_run(&mut self) -> anyhow::Result<()> {
        let agents = self.agents.iter_mut().map(|agent| &mut agent.process);
        for process in self.store.iter_mut().chain(agents) {
            if let Some(status) = process.status() {
                bail!("the {} on {} has ended: {status}", process.name(), process.host().name());
            }
        }
        Ok(())
    }

    /// The last lines of every log.
    pub(super) fn logs(&self) -> String {
        let mut text = String::new();
        let agents = self.agents.iter().map(|agent| &agent.process);
        for process in self.store.iter().chain(agents) {
            let log = std::fs::read_to_string(process.log()).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n  ");
            text.push_str(&format!("log of the {} on ", process.name()));
            text.push_str(&format!("{}:\n  {tail}\n", process.host().name()));
        }
        text
    }

    /// Whether all agents answer.
    pub(super) fn agents_answer(&self) -> anyhow::Result<bool> {
        for agent in &self.agents {
            self.call(agent.client.info())?;
        }
        Ok(true)
    }

    /// The first host creates a mesh, the others join with an invite.
    pub(super) fn form_mesh(&self) -> anyhow::Result<()> {
        let (founder, others) = self.agents.split_first().context("there are no hosts")?;
        let request = CreateRequest { name: MESH.to_owned(), ..CreateRequest::default() };
        self.call(founder.client.create_mesh(&request))?;
        let uses = u32::try_from(others.len())?;
        let request = InviteRequest { uses, expires_s: 600, ..InviteRequest::default() };
        let invite = self.call(founder.client.invite(MESH, &request))?;
        for agent in others {
            let request = JoinRequest { token: invite.token.clone(), ..JoinRequest::default() };
            self.call(agent.client.join_mesh(&request))?;
        }
        Ok(())
    }

    /// Whether every host knows all members of the mesh.
    pub(super) fn mesh_is_complete(&self) -> anyhow::Result<bool> {
        for agent in &self.agents {
            if self.call(agent.client.mesh(MESH))?.members.len() < self.agents.len() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// How many members the first host sees.
    pub(super) fn mesh_members(&self) -> anyhow::Result<usize> {
        Ok(self.call(self.agents[0].client.mesh(MESH))?.members.len())
    }

    /// The members, for people.
    pub(super) fn mesh_lines(&self) -> anyhow::Result<Vec<String>> {
        let mesh = self.call(self.agents[0].client.mesh(MESH))?;
        let line = |member: &selvedge_api::mesh::Member| {
            let alias = member.alias.clone().unwrap_or_else(|| member.node.short());
            format!("{alias}: {}", member.address)
        };
        let mut lines: Vec<_> = mesh.members.iter().map(line).collect();
        lines.sort();
        Ok(lines)
    }

    /// Streams through the mesh between pairs of hosts.
    pub(super) fn overlay_streams(&self, pairs: &[(usize, usize)]) -> anyhow::Result<Vec<Spec>> {
        pairs.iter().map(|&(a, b)| self.overlay_stream(a, b)).collect()
    }

    /// Streams through the gateways: between a station in each network and upstream.
    pub(super) fn network_streams(&self) -> Vec<Spec> {
        let order: Vec<Vni> = self.campus.networks().map(Network::vni).collect();
        self.campus.streams(&order, &[], &[Family::V4])
    }

    /// Who serves what, as the first host sees it.
    pub(super) fn owners(&self) -> anyhow::Result<Owners> {
        let rows = self.call(self.agents[0].client.networks())?;
        Ok(Owners(rows.into_iter().map(|row| (row.vni, row.current)).collect()))
    }

    /// Whether all networks are served and none moves.
    pub(super) fn is_quiet(&self) -> anyhow::Result<bool> {
        let counts = self.call(self.agents[0].client.gateway())?.networks;
        Ok(counts.serving == self.networks() && counts.moving == 0)
    }

    /// Drains a host.
    pub(super) fn drain(&self, index: usize) -> anyhow::Result<()> {
        self.call(self.agents[index].client.drain(None)).map(drop)
    }

    /// Lets a host take networks again.
    pub(super) fn undrain(&self, index: usize) -> anyhow::Result<()> {
        self.call(self.agents[index].client.undrain(None)).map(drop)
    }

    fn call<T>(&self, call: impl Future<Output = Result<T, ClientError>>) -> anyhow::Result<T> {
        Ok(self.runtime.block_on(call)?)
    }

    fn overlay_stream(&self, a: usize, b: usize) -> anyhow::Result<Spec> {
        let pair = u16::try_from(10 * a + b)?;
        let end = |index: usize, address: Ipv6Addr| End {
            host: self.campus.gateways[index].host.clone(),
            address: SocketAddr::new(address.into(), 7100 + pair),
            device: None,
        };
        Ok(Spec {
            label: u32::from(pair),
            a: end(a, self.overlay_address(a)?),
            b: end(b, self.overlay_address(b)?),
            interval: OVERLAY_INTERVAL,
        })
    }

    fn overlay_address(&self, index: usize) -> anyhow::Result<Ipv6Addr> {
        Ok(self.call(self.agents[index].client.mesh(MESH))?.address)
    }

    fn path(&self, index: usize, extension: &str) -> PathBuf {
        let name = self.campus.gateways[index].host.name();
        self.campus.lab().folder().join(format!("{name}.{extension}"))
    }

    fn write_config(&self, index: usize, gateway: bool) -> anyhow::Result<PathBuf> {
        let campus_gateway = &self.campus.gateways[index];
        let uplink: IpAddr = campus_gateway.address.uplink(Family::V4);
        let file = File {
            name: Some(campus_gateway.host.name().parse()?),
            state: Some(self.path(index, "state")),
            socket: Some(self.path(index, "sock")),
            mesh: Some(MeshFile { endpoints: Some(vec![uplink.into()]), ..MeshFile::default() }),
            gateway: gateway.then(|| self.gateway_file(campus_gateway)).transpose()?,
            ..File::default()
        };
        let path = self.path(index, "toml");
        std::fs::write(&path, file.to_toml()?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    fn gateway_file(&self, gateway: &Gateway) -> anyhow::Result<GatewayFile> {
        let last = Vni::try_from(self.campus.plan.networks)?;
        let etcd = self.campus.etcd.as_ref();
        let embedded = etcd.is_none().then(|| EmbeddedFile { address: store_address() });
        let etcd = etcd.map(|etcd| EtcdFile { endpoints: etcd.endpoints(), ..EtcdFile::default() });
        let frr = gateway
            .frr
            .as_ref()
            .map(|frr| FrrFile { vty_dir: Some(frr.vty_dir().to_owned()), ..FrrFile::default() });
        Ok(GatewayFile {
            networks: Some(VniRanges::range(Vni::try_from(1)?, last)?),
            fabric: Some(if frr.is_some() { FabricName::Frr } else { FabricName::Flood }),
            hold_down_s: Some(0),
            embedded,
            etcd,
            flood: frr.is_none().then(flood_file),
            frr,
            network: self.campus.networks().map(network_file).collect(),
            ..GatewayFile::default()
        })
    }
}

fn flood_file() -> FloodFile {
    FloodFile { uplink: "up0".to_owned(), endpoints: Some(vec![AccessPoint::FABRIC.into()]) }
}

fn network_file(network: Network) -> NetworkFile {
    NetworkFile {
        vni: network.vni(),
        addresses: Family::ALL.map(|family| network.gateway(family)).to_vec(),
        next_hops: Family::ALL.map(|family| network.next_hop(family)).to_vec(),
        ra: None,
    }
}

fn store_address() -> String {
    format!("tcp:{}:{STORE_PORT}", Switch::MANAGEMENT)
}

/// Who serves which network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owners(BTreeMap<Vni, Option<NodeName>>);

impl Owners {
    /// How many networks `name` serves.
    pub(super) fn of(&self, name: &str) -> usize {
        self.networks(name).len()
    }

    /// The networks that `name` serves.
    pub(super) fn networks(&self, name: &str) -> BTreeSet<Vni> {
        let its = |owner: &Option<NodeName>| owner.as_ref().is_some_and(|o| o.as_str() == name);
        self.0.iter().filter(|(_, owner)| its(owner)).map(|(vni, _)| *vni).collect()
    }

    /// The networks that have another owner in `after`.
    pub(super) fn changed(&self, after: &Self) -> BTreeSet<Vni> {
        let changed = |(vni, owner): &(&Vni, &Option<NodeName>)| after.0.get(vni) != Some(owner);
        self.0.iter().filter(changed).map(|(vni, _)| *vni).collect()
    }
}

impl fmt::Display for Owners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for owner in self.0.values() {
            *counts.entry(owner.as_ref().map_or("nobody", NodeName::as_str)).or_default() += 1;
        }
        let words: Vec<_> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
        write!(f, "networks served: {}", words.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owners(names: &[&str]) -> Owners {
        let vnis = (1..).filter_map(|number| Vni::try_from(number).ok());
        Owners(vnis.zip(names.iter().map(|name| name.parse().ok())).collect())
    }

    #[test]
    fn owners_are_counted_and_compared() {
        let before = owners(&["gw1", "gw2", "", "gw1"]);
        assert_eq!(before.to_string(), "networks served: gw1 2, gw2 1, nobody 1");
        assert_eq!(before.of("gw1"), 2);
        let after = owners(&["gw1", "gw1", "gw2", "gw1"]);
        let changed: Vec<u32> = before.changed(&after).into_iter().map(u32::from).collect();
        assert_eq!(changed, [2, 3]);
    }
}
