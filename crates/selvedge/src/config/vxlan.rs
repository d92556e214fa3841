//! The section `[vxlan]`.

use selvedge_gateway::NodeRole;
use selvedge_host::inventory::Names;
use selvedge_mesh::Profile;
use selvedge_model::VniRanges;
use serde::{Deserialize, Serialize};

use super::check::{Result, interfaces, missing, names, value};
use super::{FabricName, GatewayFile};
use crate::tunnels;

/// How long the list of networks may be, in bytes: they are announced as a service of the mesh.
const ANNOUNCED_MAX: usize = Profile::MAX_SERVICE_VALUE - tunnels::VNI.len();

/// The section `[vxlan]`: its presence has the agent carry overlay networks over a mesh.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "described in `VxlanConfig`")]
pub struct VxlanFile {
    pub mesh: Option<String>,
    pub networks: Option<VniRanges>,
    pub bridge: Option<String>,
    pub vxlan: Option<String>,
}

/// What carries overlay networks over a mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VxlanConfig {
    /// The mesh: its name or its id.
    pub mesh: String,
    /// Whether this host is a gateway of the networks; or else there are stations behind it.
    pub gateway: bool,
    /// The networks.
    pub networks: VniRanges,
    /// How their interfaces are called.
    pub names: Names,
}

/// What the section says, on a host with these other sections. A gateway's networks are those of
/// its own section.
pub(super) fn vxlan(
    file: VxlanFile,
    has_mesh: bool,
    gateway: Option<&GatewayFile>,
) -> Result<VxlanConfig> {
    let gateway = gateway.filter(|it| it.role.unwrap_or_default() == NodeRole::Gateway);
    if !has_mesh {
        return Err(missing("[mesh]", "[vxlan] carries networks over one of this node's meshes"));
    }
    let mesh = file.mesh.clone().ok_or_else(|| {
        missing("vxlan.mesh", "the name or id of the mesh that carries the networks")
    })?;
    let networks = match gateway {
        Some(gateway) => of_gateway(&file, gateway)?,
        None => file.networks.clone(),
    };
    let networks = networks
        .ok_or_else(|| missing("vxlan.networks", "the networks of this host, such as \"1-100\""))?;
    let announced = networks.to_string();
    if announced.len() > ANNOUNCED_MAX {
        let reason = format!("their list has at most {ANNOUNCED_MAX} bytes: use ranges");
        return Err(value("vxlan.networks", announced, reason));
    }
    let (section, bridge, vxlan) = match gateway {
        Some(gateway) => ("gateway", gateway.bridge.as_deref(), gateway.vxlan.as_deref()),
        None => ("vxlan", file.bridge.as_deref(), file.vxlan.as_deref()),
    };
    let (bridge, vxlan) = interfaces(section, (bridge, vxlan), &networks)?;
    Ok(VxlanConfig {
        mesh,
        gateway: gateway.is_some(),
        names: names(section, &bridge, &vxlan)?,
        networks,
    })
}

fn of_gateway(file: &VxlanFile, gateway: &GatewayFile) -> Result<Option<VniRanges>> {
    let networks = file.networks.as_ref().map(VniRanges::to_string);
    let given = [("networks", &networks), ("bridge", &file.bridge), ("vxlan", &file.vxlan)];
    if let Some((key, Some(text))) = given.iter().find(|(_, text)| text.is_some()) {
        let reason = format!("on a gateway, gateway.{key} says it; leave this out");
        return Err(value(&format!("vxlan.{key}"), format!("{text:?}"), reason));
    }
    let is_flood = gateway.fabric == Some(FabricName::Flood) || gateway.dry == Some(true);
    if !is_flood {
        let reason = "networks over a mesh need fabric \"flood\"";
        return Err(value("gateway.fabric", "\"frr\"", reason));
    }
    Ok(gateway.networks.clone())
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, File};

    fn load(text: &str) -> Result<Config, String> {
        let file = File::parse(text, "test").map_err(|error| error.to_string())?;
        file.try_into().map_err(|error: crate::config::ConfigError| error.to_string())
    }

    const GATEWAY: &str = "name = 'gw1'\n[mesh]\n[gateway]\nnetworks = '1-3'\nbridge = 'b{vni}'\n\
                           [gateway.etcd]\nendpoints = ['http://localhost:2379']\n";

    #[test]
    fn a_gateway_has_the_networks_of_its_own_section() {
        let flood = GATEWAY.replace("bridge", "fabric = 'flood'\nbridge");
        let text = format!("{flood}[gateway.flood]\nuplink = 'up0'\n[vxlan]\nmesh = 'campus'\n");
        let vxlan = load(&text).expect("complete").vxlan.expect("enabled");
        assert_eq!((vxlan.gateway, vxlan.networks.to_string()), (true, "1-3".to_owned()));
        assert_eq!(vxlan.names.bridge.to_string(), "b{vni}");
        let twice = load(&format!("{text}networks = '1'\n")).expect_err("refused");
        assert_eq!(
            twice,
            "vxlan.networks = \"1\": on a gateway, gateway.networks says it; leave this out"
        );
        let listed = text.replace("uplink = 'up0'", "uplink = 'up0'\nendpoints = ['192.0.2.1']");
        let listed = load(&listed).expect_err("refused");
        assert!(listed.starts_with("gateway.flood.endpoints = "), "{listed}");
        let alone = load(&text.replace("[vxlan]\nmesh = 'campus'\n", "")).expect_err("refused");
        assert!(alone.starts_with("gateway.flood.endpoints is missing: "), "{alone}");
        let frr = load(&format!("{GATEWAY}[vxlan]\nmesh = 'campus'\n")).expect_err("refused");
        assert!(frr.starts_with("gateway.fabric = \"frr\": "), "{frr}");
    }

    #[test]
    fn an_access_point_names_its_networks() {
        let text = "name = 'ap1'\n[mesh]\n[vxlan]\nmesh = 'campus'\n";
        let missing = load(text).expect_err("refused");
        assert!(missing.starts_with("vxlan.networks is missing: "), "{missing}");
        let vxlan = load(&format!("{text}networks = '7,1-3'\n")).expect("complete").vxlan;
        let vxlan = vxlan.expect("enabled");
        assert_eq!((vxlan.gateway, vxlan.networks.to_string()), (false, "7,1-3".to_owned()));
        let many: Vec<String> = (1..200).map(|vni| (vni * 2).to_string()).collect();
        let many = load(&format!("{text}networks = '{}'\n", many.join(","))).expect_err("refused");
        assert!(many.ends_with("at most 251 bytes: use ranges"), "{many}");
        let bad = load(&format!("{text}networks = '1'\nbridge = 'br'\n")).expect_err("refused");
        assert!(bad.starts_with("vxlan.bridge = \"br\": "), "{bad}");
        let lonely = load("name = 'ap1'\n[vxlan]\nmesh = 'campus'\n").expect_err("refused");
        assert!(lonely.starts_with("[mesh]"), "{lonely}");
    }
}
