//! The host that the configuration asks for: its networks, and the driver that changes it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use selvedge_gateway::desired::Upstream;
use selvedge_host::fabric::{Driver, Dry, Flood, FloodConfig, Frr, FrrConfig};
use selvedge_host::inventory::{Declared, Inventory, NamePattern, Names};
use selvedge_host::netlink::Netlink;
use selvedge_host::overheard;
use selvedge_model::Vni;
use tracing::{info, warn};

use super::found::FoundFile;
use crate::config::{FabricConfig, GatewayConfig, NetworkConfig};

/// A driver of one of the fabrics, with its networks.
pub(super) enum Host {
    Dry(Dry),
    Flood(Box<Flood>, FoundFile),
    Frr(Box<Frr>, FoundFile),
}

impl Host {
    /// Reads the host, notes on disk what it is like, and prepares the bridges: silent, unless an
    /// earlier run has left them serving. Networks of an earlier run that are configured no more
    /// are given up for good.
    pub(super) async fn open(config: &GatewayConfig) -> anyhow::Result<Self> {
        let vnis = config.networks.to_set();
        if let Err(error) = Self::release_former(config, &vnis).await {
            warn!(error = format!("{error:#}"), "networks of an earlier run stay as they are");
        }
        Self::prepare(config, vnis).await
    }

    /// Gives all networks up for good that an earlier run had, except those to `keep`.
    pub(super) async fn release_former(
        config: &GatewayConfig,
        keep: &BTreeSet<Vni>,
    ) -> anyhow::Result<usize> {
        if config.fabric == FabricConfig::Dry {
            return Ok(0);
        }
        let former = FoundFile::open(&config.state)?.load_intact()?;
        let former = former.into_iter().map(|found| found.vni);
        Self::release(config, former.filter(|vni| !keep.contains(vni)).collect()).await
    }

    /// Gives networks up for good: this host does nothing for them any more, and their bridges
    /// are as they were found. Returns how many there were.
    async fn release(config: &GatewayConfig, vnis: BTreeSet<Vni>) -> anyhow::Result<usize> {
        if vnis.is_empty() {
            return Ok(0);
        }
        let mut host = Self::prepare(config, vnis).await?;
        let Some((inventory, _)) = host.inventory() else { return Ok(0) };
        let vnis: Vec<Vni> = inventory.adopted().map(|network| network.vni).collect();
        let driver = host.driver();
        let mut failed = driver.answering(&vnis, false).await;
        failed.extend(driver.upstream(&vnis, Upstream::Off).await);
        failed.extend(driver.fabric(&vnis, false).await);
        if let Some((vni, error)) = failed.pop_first() {
            return Err(error).with_context(|| format!("cannot withdraw network {vni}"));
        }
        let Some((inventory, file)) = host.inventory() else { return Ok(0) };
        let mut failed = inventory.release(&vnis).await;
        file.save(&inventory.found())?;
        if let Err(error) = overheard::hear_all().await {
            warn!(%error, "the table bridge selvedge cannot be removed");
        }
        if let Some((vni, error)) = failed.pop_first() {
            return Err(error).with_context(|| format!("cannot put back the bridge of {vni}"));
        }
        info!(networks = vnis.len(), "networks given up for good: bridges as they were found");
        Ok(vnis.len())
    }

    async fn prepare(config: &GatewayConfig, vnis: BTreeSet<Vni>) -> anyhow::Result<Self> {
        let mut host = match &config.fabric {
            FabricConfig::Dry => return Ok(Self::Dry(Dry::new(&vnis))),
            FabricConfig::Flood { uplink, endpoints } => {
                let (file, inventory) = survey(config, &vnis).await?;
                // Those of a mesh are not the driver's to flood to.
                let (uplink, endpoints) = (uplink.clone(), endpoints.clone().unwrap_or_default());
                let flood = Flood::new(inventory, FloodConfig { uplink, endpoints })?;
                Self::Flood(Box::new(flood), file)
            }
            FabricConfig::Frr { vty_dir, pathspace, asn } => {
                let (file, inventory) = survey(config, &vnis).await?;
                let (vty_dir, pathspace) = (vty_dir.clone(), pathspace.clone());
                let frr = Frr::new(inventory, &FrrConfig { vty_dir, pathspace, asn: *asn })?;
                Self::Frr(Box::new(frr), file)
            }
        };
        host.adopt().await?;
        Ok(host)
    }

    /// The fabric's name, for people.
    pub(super) const fn fabric(&self) -> &'static str {
        match self {
            Self::Dry(_) => "dry",
            Self::Flood(..) => "flood",
            Self::Frr(..) => "frr",
        }
    }

    pub(super) fn driver(&mut self) -> &mut dyn Driver {
        match self {
            Self::Dry(dry) => dry,
            Self::Flood(flood, _) => flood.as_mut(),
            Self::Frr(frr, _) => frr.as_mut(),
        }
    }

    /// The networks that this host cannot serve, and why.
    pub(super) fn unable(&mut self) -> BTreeMap<Vni, String> {
        let Some((inventory, _)) = self.inventory() else { return BTreeMap::new() };
        inventory.unable().iter().map(|(vni, problem)| (*vni, problem.to_string())).collect()
    }

    /// Looks for interfaces that have come, gone or changed, and prepares those that are new.
    pub(super) async fn refresh(&mut self) -> anyhow::Result<()> {
        if let Some((inventory, _)) = self.inventory() {
            inventory.survey().await?;
            self.adopt().await?;
        }
        Ok(())
    }

    const fn inventory(&mut self) -> Option<(&mut Inventory, &FoundFile)> {
        match self {
            Self::Dry(_) => None,
            Self::Flood(flood, file) => Some((flood.inventory(), file)),
            Self::Frr(frr, file) => Some((frr.inventory(), file)),
        }
    }

    /// Prepares all bridges that are there and not prepared yet. What they were like is on disk
    /// before any of them is changed.
    async fn adopt(&mut self) -> anyhow::Result<()> {
        let Some((inventory, file)) = self.inventory() else { return Ok(()) };
        let adopted: BTreeSet<Vni> = inventory.adopted().map(|network| network.vni).collect();
        let new: Vec<Vni> =
            inventory.networks().keys().filter(|vni| !adopted.contains(vni)).copied().collect();
        if new.is_empty() {
            return Ok(());
        }
        file.save(&inventory.found()).context("nothing was changed on this host")?;
        let failed = inventory.adopt(&new).await;
        for (vni, error) in &failed {
            warn!(%vni, %error, "a network cannot be prepared");
        }
        info!(networks = new.len() - failed.len(), "networks prepared");
        Ok(())
    }
}

async fn survey(
    config: &GatewayConfig,
    vnis: &BTreeSet<Vni>,
) -> anyhow::Result<(FoundFile, Inventory)> {
    let file = FoundFile::open(&config.state)?;
    let netlink = Netlink::new().context("cannot talk to the kernel")?;
    let found = file.load()?;
    // Of a network that is configured no more, what was configured is on record.
    let former = |vni: &Vni| {
        let next_hops = found.iter().find(|found| found.vni == *vni)?.next_hops.clone();
        Some(NetworkConfig { addresses: Vec::new(), next_hops })
    };
    let declared = |vni: &Vni| {
        let known = config.known.get(vni).cloned().or_else(|| former(vni));
        let NetworkConfig { addresses, next_hops } = known.unwrap_or_default();
        (*vni, Declared { addresses, next_hops, ra: config.ra.of(*vni).clone() })
    };
    let names = Names {
        bridge: config.bridge.parse::<NamePattern>()?,
        vxlan: config.vxlan.parse::<NamePattern>()?,
    };
    let wanted = vnis.iter().map(declared).collect();
    let mut inventory = Inventory::new(netlink, names, wanted, found);
    inventory.survey().await.context("cannot read this host's networks")?;
    for (vni, problem) in inventory.unable() {
        warn!(%vni, %problem, "a network cannot be served here");
    }
    Ok((file, inventory))
}
