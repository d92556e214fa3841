//! The mesh of gateways and access points that carries their overlay networks.

use std::time::Duration;

use anyhow::Context;
use selvedge_netlab::Host;
use selvedge_netlab::clock::wait_until;
use serde_json::Value;

use super::Fleet;
use crate::progress::say;

/// The name of the mesh.
pub(super) const MESH: &str = "campus";

/// The UDP port of WireGuard on all hosts.
pub(crate) const WIREGUARD_PORT: u16 = 51_820;

const PATIENCE: Duration = Duration::from_secs(60);

impl Fleet {
    /// The access points that have agents.
    pub(super) fn access_points(&self) -> impl Iterator<Item = &Host> {
        let other = self.campus.other_site.as_ref().map(|site| &site.access_point);
        other.into_iter().flat_map(|other| [&self.campus.access_point, other])
    }

    /// Has the first gateway found the mesh and all others join it.
    pub(super) fn form_mesh(&mut self) -> anyhow::Result<()> {
        let mut hosts = self.gateways();
        hosts.extend(self.access_points().map(|host| host.name().to_owned()));
        say!("forming a mesh of {} hosts", hosts.len());
        let formed = self.join_all(&hosts);
        formed.map_err(|error| self.explained(error))
    }

    fn join_all(&self, hosts: &[String]) -> anyhow::Result<()> {
        for host in hosts {
            let answers = || Ok(self.command(host, "mesh", &["list"]).is_ok());
            wait_until(&format!("an answer of the agent on {host}"), PATIENCE, answers)?;
        }
        let (founder, others) = hosts.split_first().context("there are no gateways")?;
        self.command(founder, "mesh", &["create", MESH])?;
        let uses = others.len().to_string();
        let invite = self.command(founder, "mesh", &["--json", "invite", MESH, "--uses", &uses])?;
        let invite: Value = serde_json::from_str(&invite).context("the invite is no JSON")?;
        let token = invite["token"].as_str().context("the invite has no token")?;
        for host in others {
            self.command(host, "mesh", &["join", token])?;
        }
        Ok(())
    }
}
