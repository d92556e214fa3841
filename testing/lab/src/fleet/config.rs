//! The configuration files of the agents.

use std::net::IpAddr;

use anyhow::Context;
use selvedge::config::{
    EtcdFile, FabricName, File, FloodFile, FrrFile, GatewayFile, HealthFile, MeshFile, NetworkFile,
    Place, ProbeFile, VxlanFile,
};
use selvedge_gateway::NodeRole;
use selvedge_model::{Vni, VniRanges};
use selvedge_netlab::campus::{AccessPoint, Family, Flavour, Gateway, GatewayAddress, Network};

use super::Fleet;
use super::mesh::{MESH, WIREGUARD_PORT};

impl Fleet {
    /// The file of a gateway's agent.
    pub(super) fn gateway_file(&self, gateway: &Gateway) -> anyhow::Result<File> {
        let over_mesh = self.campus.plan.flavour == Flavour::Mesh;
        let plane = GatewayFile {
            fabric: Some(if gateway.frr.is_some() { FabricName::Frr } else { FabricName::Flood }),
            dry: self.options.dry.then_some(true),
            flood: gateway.frr.is_none().then(|| flood(over_mesh)),
            frr: gateway.frr.as_ref().map(|frr| FrrFile {
                vty_dir: Some(frr.vty_dir().to_owned()),
                ..FrrFile::default()
            }),
            network: self.campus.networks().map(network).collect(),
            networks: Some(self.ranges()?),
            budget: self.options.budget,
            // What breaks again and again is what is measured.
            health: Some(HealthFile { damping_s: Some(0), ..HealthFile::default() }),
            // Where no route follows, nothing has to be waited for.
            settle_ms: self.options.dry.then_some(0),
            ..self.common(gateway.address)?
        };
        let file = self.file(gateway.host.name(), Some(plane))?;
        if !over_mesh {
            return Ok(file);
        }
        let underlay = Family::ALL.map(|family| gateway.address.fabric(family));
        Ok(File { vxlan: Some(carried(None)), ..in_mesh(file, underlay.to_vec()) })
    }

    /// The files of the access points' agents, by their names; they have some over a mesh only.
    pub(super) fn access_point_files(&self) -> anyhow::Result<Vec<(String, File)>> {
        let endpoints = [AccessPoint::FABRIC, AccessPoint::OTHER];
        let files = self.access_points().zip(endpoints).map(|(host, endpoint)| {
            let file = in_mesh(self.file(host.name(), None)?, vec![endpoint.into()]);
            let vxlan = Some(carried(Some(self.ranges()?)));
            Ok((host.name().to_owned(), File { vxlan, ..file }))
        });
        files.collect()
    }

    /// The file of the witness's agent.
    pub(super) fn witness_file(&self) -> anyhow::Result<File> {
        let witness = self.campus.witness.as_ref().context("the plan has no witness")?;
        let role = Some(NodeRole::Witness);
        let plane = GatewayFile { role, ..self.common(witness.address)? };
        self.file(witness.host.name(), Some(plane))
    }

    fn file(&self, name: &str, gateway: Option<GatewayFile>) -> anyhow::Result<File> {
        Ok(File {
            name: Some(name.parse()?),
            state: Some(self.path(name, "state")),
            socket: Some(self.path(name, "sock")),
            log: Some(self.options.log.clone()),
            gateway,
            ..File::default()
        })
    }

    /// What all voters have in common. They probe each other by the fabric and by the uplink: a
    /// gateway that only the management segment reaches can serve nobody.
    fn common(&self, address: GatewayAddress) -> anyhow::Result<GatewayFile> {
        let endpoints = self.etcd()?.endpoints();
        let etcd = EtcdFile { endpoints, ..EtcdFile::default() };
        let paths = Family::ALL.map(|family| [address.fabric(family), address.uplink(family)]);
        let probe = ProbeFile { addresses: Some(paths.concat()), ..ProbeFile::default() };
        Ok(GatewayFile { etcd: Some(etcd), probe: Some(probe), ..GatewayFile::default() })
    }

    fn ranges(&self) -> anyhow::Result<VniRanges> {
        let last = Vni::try_from(self.options.networks)?;
        Ok(VniRanges::range(Vni::try_from(1)?, last)?)
    }
}

fn flood(over_mesh: bool) -> FloodFile {
    let endpoints = (!over_mesh).then(|| vec![AccessPoint::FABRIC.into()]);
    FloodFile { uplink: "up0".to_owned(), endpoints }
}

/// The file of a host that is reached by the others of the mesh at these addresses.
fn in_mesh(file: File, underlay: Vec<IpAddr>) -> File {
    let endpoints = Some(underlay.into_iter().map(Place::from).collect());
    let mesh = MeshFile { endpoints, port: Some(WIREGUARD_PORT), ..MeshFile::default() };
    File { mesh: Some(mesh), ..file }
}

/// Networks over the mesh; a gateway has those of its own section.
fn carried(networks: Option<VniRanges>) -> VxlanFile {
    VxlanFile { mesh: Some(MESH.to_owned()), networks, ..VxlanFile::default() }
}

fn network(network: Network) -> NetworkFile {
    NetworkFile {
        vni: network.vni(),
        addresses: Family::ALL.map(|family| network.gateway(family)).to_vec(),
        next_hops: Family::ALL.map(|family| network.next_hop(family)).to_vec(),
        ra: None,
    }
}
