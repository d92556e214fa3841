//! What a gateway needs of this host, against what is there.

use std::collections::BTreeMap;

use selvedge_api::gateway::Finding;
use selvedge_host::check::{self, CheckConfig, FrrSetup};
use selvedge_host::health::Interfaces;
use selvedge_host::inventory::{Declared, Found, NamePattern, Names};
use selvedge_model::Vni;

use super::found::FoundFile;
use super::probes;
use crate::config::{FabricConfig, GatewayConfig, NetworkConfig};

/// Looks at everything once. Nothing is changed.
pub(super) async fn run(config: &GatewayConfig) -> Vec<Finding> {
    if config.fabric == FabricConfig::Dry {
        let text = "the gateway runs dry: the host is not touched and need not be fit";
        return vec![Finding::ok("fabric", text)];
    }
    let mut findings = vec![probed(config).await];
    let found = found(config).unwrap_or_else(|error| {
        findings.push(Finding::warning("state", format!("{error:#}")));
        Vec::new()
    });
    match check_config(config, found) {
        Ok(config) => findings.extend(check::check(&config).await),
        Err(error) => findings.push(Finding::problem("configuration", error)),
    }
    findings
}

/// Whether the other voters can watch over this host.
async fn probed(config: &GatewayConfig) -> Finding {
    match probes::addresses(config).await {
        Ok(paths) if paths.is_empty() => {
            let text = "no address for probes: nobody notices the loss of this gateway before its \
                        lease ends, and status promises no failover anywhere";
            let lines = [
                "# in the agent's configuration: [gateway.probe] addresses = [\"ADDRESS\"]",
                "selvedge gateway restart",
            ];
            Finding::warning("probes", text).shell(lines)
        }
        Ok(paths) => {
            let paths: Vec<String> = paths.iter().map(ToString::to_string).collect();
            Finding::ok("probes", format!("others reach this gateway at {}", paths.join(", ")))
        }
        Err(error) => Finding::problem("probes", format!("{error:#}")),
    }
}

/// What an agent has noted of the bridges; nothing if none ever ran here.
fn found(config: &GatewayConfig) -> anyhow::Result<Vec<Found>> {
    match config.state.join("gateway").exists() {
        true => FoundFile::open(&config.state)?.load_intact(),
        false => Ok(Vec::new()),
    }
}

fn check_config(config: &GatewayConfig, found: Vec<Found>) -> Result<CheckConfig, String> {
    let pattern = |text: &str| text.parse::<NamePattern>().map_err(|error| error.to_string());
    let names = Names { bridge: pattern(&config.bridge)?, vxlan: pattern(&config.vxlan)? };
    let declared = |vni: &Vni| {
        let NetworkConfig { addresses, next_hops } =
            config.known.get(vni).cloned().unwrap_or_default();
        (*vni, Declared { addresses, next_hops, ra: config.ra.of(*vni).clone() })
    };
    let networks: BTreeMap<Vni, Declared> = config.networks.to_set().iter().map(declared).collect();
    let (uplink, frr) = match &config.fabric {
        FabricConfig::Frr { vty_dir, pathspace, asn } => {
            let (vty_dir, pathspace) = (vty_dir.clone(), pathspace.clone());
            (Vec::new(), Some(FrrSetup { vty_dir, pathspace, asn: *asn }))
        }
        FabricConfig::Flood { uplink, .. } => (vec![uplink.clone()], None),
        FabricConfig::Dry => (Vec::new(), None),
    };
    let over_mesh = matches!(config.fabric, FabricConfig::Flood { endpoints: None, .. });
    let uplink = named(&config.health.uplink).unwrap_or(uplink);
    let fabric = named(&config.health.fabric).unwrap_or_default();
    let base = CheckConfig { uplink, fabric, frr, over_mesh, ..CheckConfig::default() };
    Ok(CheckConfig { names, networks, found, ..base })
}

fn named(interfaces: &Interfaces) -> Option<Vec<String>> {
    match interfaces {
        Interfaces::These(names) => Some(names.clone()),
        Interfaces::Auto | Interfaces::Off => None,
    }
}
