//! Overlay networks over a mesh: has the tunnels of this host follow the mesh.
//!
//! A host says by a service of its record in the mesh which networks it carries, an access point
//! by one and a gateway by another. An access point floods the frames of a network to all who
//! carry it; a gateway to the access points alone, as what it says is for the stations.
//!
//! Who is down stays in the lists: the next frame for it waits for its WireGuard, and nobody else's
//! network depends on what was suspected of it. Who leaves the mesh leaves them.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::time::Duration;

use anyhow::Context;
use selvedge_api::Code;
use selvedge_api::mesh::{EditRequest, Member, Mesh, Tunnel, Tunnels as Status};
use selvedge_host::netlink::Netlink;
use selvedge_host::tunnels::{Reached, Tunnels, Wanted};
use selvedge_model::{Vni, VniRanges};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::VxlanConfig;
use crate::interfaces::Changes;
use crate::mesh_plane::{MeshHandle, Subscriber};

/// The service by which an access point says which networks it carries, and that of a gateway.
const ACCESS: &str = "vxlan-access";
const GATEWAY: &str = "vxlan-gateway";
/// What stands before the list of networks, so that nobody takes it for a port.
pub(crate) const VNI: &str = "vni=";

/// How long news are gathered: the tunnels' own changes are among them.
const GATHER: Duration = Duration::from_millis(300);
/// How often the host is read anew, and how soon after a failure.
const RECHECK: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_secs(1);

/// Starts to keep the tunnels, and returns once they are what they shall be for the first time, as
/// far as they can be. They go when `shutdown` is cancelled.
///
/// What is returned beside the task is how they are.
///
/// # Errors
/// If the kernel cannot be talked to.
pub(crate) async fn spawn(
    config: VxlanConfig,
    mesh: MeshHandle,
    shutdown: CancellationToken,
) -> anyhow::Result<(watch::Receiver<Status>, JoinHandle<()>)> {
    let netlink = Netlink::new().context("cannot talk to the kernel")?;
    let changes = Changes::open(RECHECK);
    let news = mesh.watch();
    let tunnels = Tunnels::new(netlink);
    let (status, seen) = watch::channel(Status::default());
    let mut keeper = Keeper { config, mesh, tunnels, device: None, status, refused: None };
    let wait = keeper.pass().await;
    Ok((seen, tokio::spawn(keeper.run(changes, news, wait, shutdown))))
}

/// The task that owns the tunnels.
struct Keeper {
    config: VxlanConfig,
    mesh: MeshHandle,
    tunnels: Tunnels,
    /// The interface over which tunnels may be.
    device: Option<String>,
    status: watch::Sender<Status>,
    refused: Option<String>,
}

impl Keeper {
    async fn run(
        mut self,
        mut changes: Changes,
        mut news: Subscriber,
        mut wait: Duration,
        shutdown: CancellationToken,
    ) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = sleep(wait) => {}
                _ = news.next() => {}
                () = changes.next() => {}
            }
            sleep(GATHER).await;
            // What has come meanwhile is seen at once.
            news = self.mesh.watch();
            wait = self.pass().await;
        }
        if let Err(error) = self.clear().await {
            warn!(error = format!("{error:#}"), "the tunnels over the mesh stay");
        }
    }

    /// Looks at the mesh and at the host once. Returns how soon to do so again.
    async fn pass(&mut self) -> Duration {
        match self.follow().await {
            Ok(()) => {
                self.refused = None;
                RECHECK
            }
            Err(error) => {
                let text = format!("{error:#}");
                if self.refused.as_ref() != Some(&text) {
                    warn!(mesh = self.config.mesh, error = text, "no tunnels over the mesh");
                    self.refused = Some(text);
                }
                RETRY
            }
        }
    }

    async fn follow(&mut self) -> anyhow::Result<()> {
        let mesh = match self.mesh.show(&self.config.mesh).await {
            Ok(mesh) if mesh.evicted.is_none() => mesh,
            Ok(_) => return self.without_mesh().await,
            Err(error) if error.code == Code::NotFound => return self.without_mesh().await,
            Err(error) => return Err(error.into()),
        };
        self.announce(&mesh).await?;
        if self.device.as_ref() != Some(&mesh.interface) {
            self.clear().await?;
            self.device = Some(mesh.interface.clone());
        }
        let wanted = wanted(&self.config, &mesh);
        let reached = self.tunnels.converge(&wanted).await?;
        self.say(status(&self.config, wanted, reached));
        Ok(())
    }

    async fn without_mesh(&mut self) -> anyhow::Result<()> {
        self.say(Status { mesh: self.config.mesh.clone(), ..Status::default() });
        self.clear().await
    }

    async fn clear(&mut self) -> anyhow::Result<()> {
        let Some(device) = self.device.take() else { return Ok(()) };
        let removed = self.tunnels.remove(&device).await;
        removed.with_context(|| format!("cannot remove the tunnels over {device}"))
    }

    /// Says which networks this host carries, unless it has said so.
    async fn announce(&self, mesh: &Mesh) -> anyhow::Result<()> {
        let (service, other) =
            if self.config.gateway { (GATEWAY, ACCESS) } else { (ACCESS, GATEWAY) };
        let networks = format!("{VNI}{}", self.config.networks);
        let own = mesh.members.iter().find(|member| member.own);
        let said = |name: &str| own.and_then(|own| own.services.get(name));
        if said(service) == Some(&networks) && said(other).is_none() {
            return Ok(());
        }
        let services = [(service.to_owned(), Some(networks)), (other.to_owned(), None)].into();
        let request = EditRequest { services, ..EditRequest::default() };
        let edited = self.mesh.edit(&mesh.id.to_string(), request).await;
        edited.context("cannot tell the members which networks are carried here")?;
        Ok(())
    }

    /// Tells how the tunnels are, and logs what is new about it.
    fn say(&self, new: Status) {
        let old = self.status.send_replace(new.clone());
        if old == new {
            return;
        }
        let mesh = &new.mesh;
        let Some(interface) = &new.interface else {
            return info!(mesh, "this node is not in the mesh yet that is to carry its networks");
        };
        let endpoints: BTreeSet<_> = new.networks.iter().flat_map(|it| &it.endpoints).collect();
        info!(
            mesh,
            interface,
            mtu = new.mtu,
            networks = new.networks.iter().filter(|it| it.problem.is_none()).count(),
            endpoints = endpoints.len(),
            "networks over the mesh"
        );
        for Tunnel { vni, problem, .. } in &new.networks {
            let before = old.networks.iter().find(|it| it.vni == *vni);
            if let Some(problem) = problem
                && before.and_then(|it| it.problem.as_ref()) != Some(problem)
            {
                warn!(%vni, problem, "a network cannot be carried over the mesh");
            }
        }
    }
}

fn status(config: &VxlanConfig, wanted: Wanted, mut reached: Reached) -> Status {
    let networks = wanted.networks.into_iter().map(|(vni, endpoints)| Tunnel {
        vni,
        endpoints: endpoints.into_iter().collect(),
        problem: reached.problems.remove(&vni),
    });
    Status {
        mesh: config.mesh.clone(),
        networks: networks.collect(),
        interface: Some(wanted.device),
        address: Some(wanted.local),
        mtu: reached.mtu,
    }
}

/// The tunnels of this host, as the mesh stands.
fn wanted(config: &VxlanConfig, mesh: &Mesh) -> Wanted {
    let all: Vec<(Ipv6Addr, Vec<VniRanges>)> = mesh
        .members
        .iter()
        .filter(|member| !member.own)
        .map(|member| (member.address, carried(config, member)))
        .collect();
    let endpoints = |vni: Vni| {
        let its = all.iter().filter(|(_, ranges)| ranges.iter().any(|it| it.contains(vni)));
        its.map(|(address, _)| *address).collect()
    };
    let networks = config.networks.to_set().into_iter().map(|vni| (vni, endpoints(vni)));
    Wanted {
        device: mesh.interface.clone(),
        local: mesh.address,
        names: config.names.clone(),
        networks: networks.collect(),
    }
}

/// The networks of which a member gets what is flooded here. A list that makes no sense is none.
fn carried(config: &VxlanConfig, member: &Member) -> Vec<VniRanges> {
    let services = if config.gateway { &[ACCESS][..] } else { &[ACCESS, GATEWAY] };
    let lists = services.iter().filter_map(|service| member.services.get(*service));
    lists.filter_map(|list| list.strip_prefix(VNI)?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use selvedge_host::inventory::Names;

    use super::*;
    use crate::mesh_plane::query::tests::{member, mesh};

    /// Who a frame of each network 1 to 3 is flooded to by the first of these members, which offer
    /// these services.
    fn flooded(gateway: bool, services: &[&[(&str, &str)]]) -> Vec<Vec<u16>> {
        let members = services.iter().zip(1..).map(|(services, number)| {
            let text = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
            let address = Ipv6Addr::new(0xfd5e, 0, 0, 1, 0, 0, 0, number.into());
            let services = services.iter().map(text).collect();
            Member { own: number == 1, address, services, ..member(number, "x") }
        });
        let mesh = Mesh { members: members.collect(), ..mesh() };
        let (networks, names) = ("1-3".parse().expect("ranges"), Names::default());
        let config = VxlanConfig { mesh: "campus".to_owned(), gateway, networks, names };
        let last = |address: &Ipv6Addr| address.segments()[7];
        wanted(&config, &mesh).networks.values().map(|all| all.iter().map(last).collect()).collect()
    }

    #[test]
    fn frames_go_to_who_carries_the_network() {
        let services: [&[_]; 5] = [
            &[(ACCESS, "vni=1-3")],
            &[(ACCESS, "vni=1,3")],
            &[(GATEWAY, "vni=1-2")],
            &[("ssh", "22")],
            &[(ACCESS, "vni=all")],
        ];
        assert_eq!(flooded(false, &services), [vec![2, 3], vec![3], vec![2]]);
        assert_eq!(flooded(true, &services), [vec![2], vec![], vec![2]]);
    }
}
