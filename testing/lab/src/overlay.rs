//! Hosts with agents of the mesh plane, on an internet of their own and behind routers: real
//! WireGuard, real packets.

pub(crate) mod bare;
pub(crate) mod bridges;
pub(crate) mod clients;
pub(crate) mod comeback;
pub(crate) mod exits;
pub(crate) mod leave;
mod paths;
pub(crate) mod roam;
pub(crate) mod speed;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use selvedge::config::{File, MeshFile};
use selvedge_api::mesh::{CreateRequest, InviteRequest, JoinRequest, Mesh, Role};
use selvedge_api::{Client, ClientError};
use selvedge_model::Prefix;
use selvedge_netlab::clock::wait_until;
use selvedge_netlab::firewall::{Mapping, masquerade};
use selvedge_netlab::link::{Port, Segment};
use selvedge_netlab::{Host, Lab, Process, Recipe};
use tokio::runtime::Runtime;

use crate::fleet::{AS_SELVEDGE, this_program};
use crate::logs;

/// How long anything is waited for that has no bound of its own.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The name of the mesh, where there is one.
pub(crate) const MESH: &str = "campus";

/// Who founds it.
pub(crate) const FOUNDER: &str = "m1";

/// Options of all scenarios.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct OverlayOptions {
    /// Print nothing but the JSON line
    #[arg(long)]
    json: bool,
    /// Keep the logs of all agents in this folder
    #[arg(long, value_name = "FOLDER")]
    logs: Option<PathBuf>,
    /// What the agents log
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: String,
}

/// The hosts of a scenario.
pub(crate) struct Overlay {
    members: BTreeMap<String, Member>,
    internet: Segment,
    used: u8,
    homes: u8,
    runtime: Runtime,
    options: OverlayOptions,
    lab: Lab,
}

/// A host with an agent.
pub(crate) struct Member {
    pub(crate) host: Host,
    /// The switch's end of its cable.
    pub(crate) port: Port,
    /// Its address on the underlay.
    pub(crate) underlay: Ipv4Addr,
    agent: Process,
    client: Client,
}

/// A network behind a router that hides it.
pub(crate) struct Home {
    pub(crate) lan: Segment,
    number: u8,
    used: u8,
}

impl Overlay {
    /// An internet without hosts.
    pub(crate) fn new(options: &OverlayOptions) -> anyhow::Result<Self> {
        let lab = Lab::new()?;
        let internet = Segment::create(&lab.host("switch")?, "net")?;
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build()?;
        let (members, options) = (BTreeMap::new(), options.clone());
        Ok(Self { members, internet, used: 0, homes: 0, runtime, options, lab })
    }

    /// As many hosts on the internet, `m1`, `m2` and so on, with agents that are in no mesh.
    pub(crate) fn hosts(
        options: &OverlayOptions,
        count: usize,
        mesh: &MeshFile,
    ) -> anyhow::Result<Self> {
        let mut overlay = Self::new(options)?;
        for number in 1..=count {
            overlay.public(&format!("m{number}"), mesh.clone())?;
        }
        Ok(overlay)
    }

    /// As many hosts on the internet that are all the members of a mesh.
    pub(crate) fn formed(options: &OverlayOptions, count: usize) -> anyhow::Result<Self> {
        let mut overlay = Self::hosts(options, count, &MeshFile::default())?;
        overlay.form()?;
        Ok(overlay)
    }

    /// Has the first host found a mesh and all others join it; each has all others as members at
    /// the end.
    pub(crate) fn form(&mut self) -> anyhow::Result<()> {
        self.found(FOUNDER, MESH)?;
        let names = self.names();
        for name in names.iter().filter(|name| *name != FOUNDER) {
            self.join(name, MESH, FOUNDER, Role::Peer)?;
        }
        self.wait_known(MESH, names.len())
    }

    /// Adds a host on the internet, and starts its agent.
    pub(crate) fn public(&mut self, name: &str, mesh: MeshFile) -> anyhow::Result<()> {
        let address = self.next_address();
        let host = self.lab.host(name)?;
        let port = self.internet.plug(&host, UPLINK)?;
        host.ip(&format!("addr add {address}/24 dev {UPLINK}\n"))?;
        self.employ(host, port, address, mesh)
    }

    /// Adds a network behind a router of its own.
    pub(crate) fn home(&mut self, mapping: Mapping) -> anyhow::Result<Home> {
        self.homes += 1;
        let (number, address) = (self.homes, self.next_address());
        let router = self.lab.host(&format!("r{number}"))?;
        let lan = Segment::create(self.internet.switch(), &format!("lan{number}"))?;
        self.internet.plug(&router, UPLINK)?;
        lan.plug(&router, "lan")?;
        let inside = behind(number, 1);
        router
            .ip(&format!("addr add {address}/24 dev {UPLINK}\naddr add {inside}/24 dev lan\n"))?;
        masquerade(&router, UPLINK, mapping)?;
        Ok(Home { lan, number, used: 1 })
    }

    /// Adds a host to a network behind a router, and starts its agent.
    pub(crate) fn resident(
        &mut self,
        home: &mut Home,
        name: &str,
        mesh: MeshFile,
    ) -> anyhow::Result<()> {
        home.used += 1;
        let (address, router) = (behind(home.number, home.used), behind(home.number, 1));
        let host = self.lab.host(name)?;
        let port = home.lan.plug(&host, UPLINK)?;
        host.ip(&format!("addr add {address}/24 dev {UPLINK}\nroute add default via {router}\n"))?;
        self.employ(host, port, address, mesh)
    }

    /// Adds a host without an agent, connected to nothing.
    pub(crate) fn bystander(&self, name: &str) -> anyhow::Result<Host> {
        Ok(self.lab.host(name)?)
    }

    /// Adds an Ethernet segment.
    pub(crate) fn segment(&self, name: &str) -> anyhow::Result<Segment> {
        Ok(Segment::create(self.internet.switch(), name)?)
    }

    /// The names of the hosts with agents.
    pub(crate) fn names(&self) -> Vec<String> {
        self.members.keys().cloned().collect()
    }

    pub(crate) fn member(&self, name: &str) -> anyhow::Result<&Member> {
        self.members.get(name).with_context(|| format!("there is no host {name}"))
    }

    /// Has a host found a mesh.
    pub(crate) fn found(&self, name: &str, mesh: &str) -> anyhow::Result<()> {
        let request = CreateRequest { name: mesh.to_owned(), ..CreateRequest::default() };
        let founded = self.runtime.block_on(self.member(name)?.client.create_mesh(&request));
        founded.with_context(|| format!("{name} cannot found {mesh}")).map(|_| ())
    }

    /// Has a host join a mesh by an invite of `issuer`.
    pub(crate) fn join(
        &mut self,
        name: &str,
        mesh: &str,
        issuer: &str,
        role: Role,
    ) -> anyhow::Result<()> {
        self.join_allowed(name, mesh, issuer, role, &[])
    }

    /// The same of a host that may announce these prefixes.
    pub(crate) fn join_allowed(
        &mut self,
        name: &str,
        mesh: &str,
        issuer: &str,
        role: Role,
        allow: &[Prefix],
    ) -> anyhow::Result<()> {
        let terms = InviteRequest {
            uses: 1,
            role,
            allow: allow.to_vec(),
            expires_s: 600,
            ..InviteRequest::default()
        };
        let (client, issuer) = (&self.member(name)?.client, &self.member(issuer)?.client);
        let joined: Result<Mesh, ClientError> = self.runtime.block_on(async {
            let token = issuer.invite(mesh, &terms).await?.token;
            client.join_mesh(&JoinRequest { token, ..JoinRequest::default() }).await
        });
        let joined = joined.with_context(|| format!("{name} cannot join {mesh}"));
        joined.map(|_| ()).map_err(|error| self.explained(error))
    }

    /// Has a host leave a mesh.
    pub(crate) fn leave(&self, name: &str, mesh: &str) -> anyhow::Result<()> {
        let left = self.runtime.block_on(self.member(name)?.client.leave_mesh(mesh));
        left.with_context(|| format!("{name} cannot leave {mesh}")).map(|_| ())
    }

    /// A mesh as one of its members sees it.
    pub(crate) fn show(&self, name: &str, mesh: &str) -> anyhow::Result<Mesh> {
        let shown = self.runtime.block_on(self.member(name)?.client.mesh(mesh));
        shown.with_context(|| format!("{name} does not show {mesh}"))
    }

    /// The address of a member in a mesh.
    pub(crate) fn address(&self, name: &str, mesh: &str) -> anyhow::Result<Ipv6Addr> {
        Ok(self.show(name, mesh)?.address)
    }

    /// How many hosts see a mesh with just as many members.
    pub(crate) fn knowing(&self, mesh: &str, members: usize) -> usize {
        let seen = self.members.keys().filter_map(|name| self.show(name, mesh).ok());
        seen.filter(|mesh| mesh.members.len() == members).count()
    }

    /// Waits until as many members know each other.
    pub(crate) fn wait_known(&mut self, mesh: &str, members: usize) -> anyhow::Result<()> {
        let known = wait_until(&format!("{members} members everywhere"), PATIENCE, || {
            Ok(self.knowing(mesh, members) == members)
        });
        known.map_err(|error| self.explained(error.into()))
    }

    /// Kills an agent and starts it again at once.
    pub(crate) fn restart(&mut self, name: &str) -> anyhow::Result<()> {
        let member = self.members.get_mut(name).context("there is no such host")?;
        Ok(member.agent.restart()?)
    }

    /// An error, with the last lines of the agents' logs on standard error.
    pub(crate) fn explained(&mut self, error: anyhow::Error) -> anyhow::Error {
        for (name, member) in &mut self.members {
            logs::show_end(name, &mut member.agent);
        }
        error
    }

    /// What packets were waited for, explained if some did not run.
    pub(crate) fn explain(&mut self, waited: Result<(), String>) -> anyhow::Result<()> {
        waited.map_err(|idle| self.explained(anyhow::anyhow!(idle)))
    }

    fn next_address(&mut self) -> Ipv4Addr {
        self.used += 1;
        Ipv4Addr::new(198, 51, 100, self.used)
    }

    fn employ(
        &mut self,
        host: Host,
        port: Port,
        underlay: Ipv4Addr,
        mesh: MeshFile,
    ) -> anyhow::Result<()> {
        let name = host.name().to_owned();
        let path = |extension: &str| self.lab.folder().join(format!("{name}.{extension}"));
        let file = File {
            name: Some(name.parse()?),
            state: Some(path("state")),
            socket: Some(path("sock")),
            log: Some(self.options.log.clone()),
            mesh: Some(mesh),
            ..File::default()
        };
        let config = path("toml");
        std::fs::write(&config, file.to_toml()?)
            .with_context(|| format!("cannot write {}", config.display()))?;
        let recipe = Recipe::new("agent", &host, this_program()?);
        let agent = recipe.args([AS_SELVEDGE, "agent", "--config"]).arg(config).start()?;
        let client = Client::new(path("sock"))?;
        self.members.insert(name.clone(), Member { host, port, underlay, agent, client });
        self.wait_answers(&name)
    }

    /// Waits until an agent answers.
    fn wait_answers(&mut self, name: &str) -> anyhow::Result<()> {
        let answers = wait_until(&format!("an answer of the agent on {name}"), PATIENCE, || {
            let member = self.members.get(name);
            Ok(member.is_some_and(|it| self.runtime.block_on(it.client.info()).is_ok()))
        });
        answers.map_err(|error| self.explained(error.into()))
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        logs::keep(self.lab.folder(), self.options.logs.as_deref());
    }
}

/// The interface of each host towards the underlay.
pub(crate) const UPLINK: &str = "eth0";

/// The address of a host in a network behind a router; the router's own is the first.
fn behind(home: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, home, host)
}

/// Adds what is wrong if `found` is above `bound`.
pub(crate) fn at_most(broken: &mut Vec<String>, what: &str, found: Option<f64>, bound: f64) {
    match found {
        Some(found) if found <= bound => {}
        Some(found) => broken.push(format!("{what}: {found:.0} ms > {bound:.0} ms")),
        None => broken.push(format!("{what}: not at all")),
    }
}

/// Adds that packets were lost, those `whom` says, if any were.
pub(crate) fn none_lost(broken: &mut Vec<String>, whom: &str, lost: u64) {
    if lost > 0 {
        broken.push(format!("{lost} packets {whom} were lost"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_did_not_happen_breaks_its_bound_too() {
        let mut broken = Vec::new();
        at_most(&mut broken, "back", Some(2000.0), 2000.0);
        assert_eq!(broken, [] as [String; 0]);
        at_most(&mut broken, "back", Some(2000.6), 2000.0);
        at_most(&mut broken, "back", None, 2000.0);
        assert_eq!(broken, ["back: 2001 ms > 2000 ms", "back: not at all"]);
    }
}
