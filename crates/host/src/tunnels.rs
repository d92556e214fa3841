//! VXLAN over a mesh: the tunnel interfaces of overlay networks, their flooding lists, and what
//! keeps their packets off every other interface.
//!
//! Each network's interface begins at this host's own address in the mesh, sends by the interface
//! of the mesh alone, and is a port of a bridge that is there already. When the mesh's interface
//! goes, the kernel removes them with it; when it is back, they are made anew.
//!
//! That a packet is to leave by the mesh's interface is a wish to the kernel's routing, which goes
//! another way if there is none by that interface; and a VXLAN socket takes packets from
//! everywhere. So one nftables table of our own, `ip6 selvedge_vxlan`, drops VXLAN over IPv6 that
//! would leave, or has come, by another interface. It is there before the first tunnel is, and
//! stays if the agent is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use selvedge_model::Vni;

use crate::inventory::Names;
use crate::netlink::{self, FLOOD, FdbEntry, Link, LinkKind, Netlink, NewLink, Vxlan};
use crate::nft::{self, Nft, clear};
use crate::sysctl::{self, Family};

/// The UDP port of VXLAN (RFC 7348).
pub const PORT: u16 = 4789;

/// What a frame of a network is longer, in bytes, on its way in IPv6: the Ethernet header within,
/// those of VXLAN and UDP, and that of IPv6.
pub const OVERHEAD_V6: u32 = 14 + 8 + 8 + 40;

/// The same in IPv4.
pub const OVERHEAD_V4: u32 = OVERHEAD_V6 - 20;

const CLEAR: &str = clear!("ip6 selvedge_vxlan");

/// The tunnels that there shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The interface of the mesh.
    pub device: String,
    /// This host's address there.
    pub local: Ipv6Addr,
    /// How the interfaces of the networks are called.
    pub names: Names,
    /// The tunnel endpoints to which the frames of each network are flooded.
    pub networks: BTreeMap<Vni, BTreeSet<Ipv6Addr>>,
}

/// What there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// The MTU of the networks in bytes; `None`: the mesh has no interface yet.
    pub mtu: Option<u32>,
    /// The networks that have no tunnel, and why.
    pub problems: BTreeMap<Vni, String>,
}

/// Why the tunnels are not as they shall be. They may be so in part.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The interfaces cannot be read, or the kernel refuses a change.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// The packets cannot be kept off other interfaces; no tunnel is made then.
    #[error(transparent)]
    Nft(#[from] nft::Error),
}

/// The tunnels of this host. It belongs to the network namespace of the calling thread.
#[derive(Debug)]
pub struct Tunnels {
    netlink: Netlink,
    nft: Nft,
    /// The MTU that was given to bridges. One that the kernel keeps by itself is not among them.
    bridges: BTreeMap<u32, u32>,
}

impl Tunnels {
    /// The tunnels that an earlier run has left, if any.
    #[must_use]
    pub fn new(netlink: Netlink) -> Self {
        Self { netlink, nft: Nft::default(), bridges: BTreeMap::new() }
    }

    /// Makes the tunnels what they shall be. What is so already is left alone.
    ///
    /// # Errors
    /// See [`Error`]; a network that cannot have its tunnel is no error.
    pub async fn converge(&mut self, wanted: &Wanted) -> Result<Reached, Error> {
        self.nft.apply(&guard(&wanted.device)).await?;
        let links = Links::read(&self.netlink).await?;
        let Some(lower) = links.named(&wanted.device).filter(|link| link.up) else {
            return Ok(Reached::default());
        };
        let mtu = lower.mtu.saturating_sub(OVERHEAD_V6);
        let (mut problems, mut made) = (BTreeMap::new(), BTreeMap::new());
        for vni in wanted.networks.keys() {
            match self.tunnel(wanted, *vni, lower, &links).await {
                Ok(index) => drop(made.insert(index, *vni)),
                Err(problem) => drop(problems.insert(*vni, problem)),
            }
        }
        self.remove_others(lower.index, &made).await?;
        self.flood(wanted, &made).await?;
        Ok(Reached { mtu: Some(mtu), problems })
    }

    /// Removes the tunnels over this interface, and then what guards them.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn remove(&mut self, device: &str) -> Result<(), Error> {
        if let Some(lower) = self.netlink.link(device).await? {
            self.remove_others(lower.index, &BTreeMap::new()).await?;
        }
        Ok(self.nft.apply(CLEAR).await?)
    }

    /// One network's interface, as it shall be; its number.
    async fn tunnel(
        &mut self,
        wanted: &Wanted,
        vni: Vni,
        lower: &Link,
        links: &Links,
    ) -> Result<u32, String> {
        let (bridge, name) = (wanted.names.bridge.name(vni), wanted.names.vxlan.name(vni));
        let bridge = links.named(&bridge).filter(|link| link.kind == LinkKind::Bridge);
        let bridge = bridge.ok_or_else(|| {
            format!("there is no bridge {}: make it", wanted.names.bridge.name(vni))
        })?;
        let spec = Vxlan {
            vni,
            local: Some(IpAddr::V6(wanted.local)),
            device: Some(lower.index),
            port: PORT,
            learning: true,
        };
        let found = links.named(&name);
        let is_ours = |link: &Link| link.vxlan.is_some_and(|it| it.device == Some(lower.index));
        if found.is_some_and(|link| !is_ours(link)) {
            return Err(format!("{name} is not the agent's: remove it, the agent makes it anew"));
        }
        let said = |error: netlink::Error| error.to_string();
        let link = match found {
            Some(link) if link.vxlan == Some(spec) => link.clone(),
            found => self.make(&name, found, spec).await.map_err(said)?,
        };
        self.finish(&link, bridge, lower.mtu.saturating_sub(OVERHEAD_V6)).await.map_err(said)?;
        Ok(link.index)
    }

    async fn make(
        &self,
        name: &str,
        old: Option<&Link>,
        spec: Vxlan,
    ) -> Result<Link, netlink::Error> {
        if let Some(old) = old {
            self.netlink.del_link(old.index).await?;
        }
        self.netlink.add_link(name, &NewLink::Vxlan(spec)).await?;
        // A port of a bridge has no use for addresses of its own, and each is one more receiver
        // of every multicast packet. Where there is no IPv6, there is nothing to switch off.
        let _ = sysctl::set(Family::V6, name, "disable_ipv6", 1);
        let made = self.netlink.link(name).await?;
        made.ok_or_else(|| netlink::Error::Lost {
            operation: "make the interface",
            object: name.to_owned(),
            reason: "somebody has removed it again",
        })
    }

    /// A port of its bridge, up, and both with the MTU that the mesh leaves. Bridges that were
    /// never given one take the least of their ports by themselves.
    async fn finish(&mut self, link: &Link, bridge: &Link, mtu: u32) -> Result<(), netlink::Error> {
        if link.master != Some(bridge.index) {
            self.netlink.set_master(link.index, Some(bridge.index)).await?;
        }
        if !link.up || link.mtu != mtu {
            self.netlink.set_up(link.index, true, Some(mtu)).await?;
        }
        let was_given = self.bridges.get(&bridge.index) == Some(&bridge.mtu);
        if bridge.mtu > mtu || (was_given && bridge.mtu != mtu) {
            self.netlink.set_up(bridge.index, bridge.up, Some(mtu)).await?;
            self.bridges.insert(bridge.index, mtu);
        }
        Ok(())
    }

    /// Removes the tunnels over this interface that are not among `kept`.
    async fn remove_others(&self, lower: u32, kept: &BTreeMap<u32, Vni>) -> Result<(), Error> {
        for link in self.netlink.links().await? {
            let over = link.vxlan.is_some_and(|it| it.device == Some(lower));
            if over && !kept.contains_key(&link.index) {
                self.netlink.del_link(link.index).await?;
            }
        }
        Ok(())
    }

    /// Makes the flooding lists what they shall be.
    async fn flood(&self, wanted: &Wanted, made: &BTreeMap<u32, Vni>) -> Result<(), Error> {
        if made.is_empty() {
            return Ok(());
        }
        let all = self.netlink.all_fdbs().await?;
        let there = all.iter().filter(|entry| entry.mac == FLOOD);
        let there = there.map(|entry| (entry.index, entry.dst)).collect();
        let shall = made.iter().flat_map(|(index, vni)| {
            let endpoints = wanted.networks.get(vni).into_iter().flatten();
            endpoints.map(|dst| (*index, IpAddr::V6(*dst)))
        });
        let (add, remove) = difference(&there, &shall.collect(), made);
        self.netlink.add_fdb_entries(&add).await?;
        Ok(self.netlink.del_fdb_entries(&remove).await?)
    }
}

/// The interfaces, by name.
struct Links(BTreeMap<String, Link>);

impl Links {
    async fn read(netlink: &Netlink) -> Result<Self, netlink::Error> {
        let links = netlink.links().await?;
        Ok(Self(links.into_iter().map(|link| (link.name.clone(), link)).collect()))
    }

    fn named(&self, name: &str) -> Option<&Link> {
        self.0.get(name)
    }
}

type Floods = BTreeSet<(u32, IpAddr)>;

/// What is to be added and what removed, on these interfaces alone.
fn difference(
    there: &Floods,
    shall: &Floods,
    ours: &BTreeMap<u32, Vni>,
) -> (Vec<FdbEntry>, Vec<FdbEntry>) {
    let entry = |(index, dst): &(u32, IpAddr)| FdbEntry {
        index: *index,
        mac: FLOOD,
        dst: *dst,
        permanent: true,
    };
    let add = shall.difference(there).map(entry).collect();
    let gone = there.difference(shall).filter(|(index, _)| ours.contains_key(index));
    (add, gone.map(entry).collect())
}

/// The whole transaction. The hooks come before those of any other table. A packet in fragments is
/// dropped with its first one, which holds the port: Linux takes none that does not (RFC 8200,
/// section 4.5).
fn guard(device: &str) -> String {
    let chain = |hook: &str, side: &str| {
        format!(
            " chain {hook} {{\n  type filter hook {hook} priority -400; policy accept;\n  \
             {side} != \"{device}\" udp dport {PORT} drop\n }}\n"
        )
    };
    let (input, output) = (chain("input", "iifname"), chain("output", "oifname"));
    format!("{CLEAR}table ip6 selvedge_vxlan {{\n{input}{output}}}\n")
}

#[cfg(test)]
mod tests;
