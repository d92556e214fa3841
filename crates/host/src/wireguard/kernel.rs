//! WireGuard of the kernel, told by netlink what to do. Its interface outlives this process: one
//! that an earlier run left behind is taken up as it is, and its sessions go on.
//!
//! There is nobody between WireGuard and the host who could refuse a packet that members send to
//! beyond the mesh, so routing rules do.

mod codec;

use std::collections::BTreeMap;
use std::time::SystemTime;

use nix::libc;
use selvedge_model::{Prefix, WgKey};

pub use codec::Told;
use codec::{FAMILY, GET_DEVICE, SET_DEVICE};

use super::plan::{Step, Update};
use super::{Config, Error, PeerSpec, PeerStatus};
use crate::netlink::generic::Generic;
use crate::netlink::{self, LinkKind, Netlink, NewLink};

const CONFIGURE: &str = "configure WireGuard of";
const READ: &str = "read the WireGuard interface";
/// Any will do: that it begins is what sends a handshake, and it is taken back at once.
const KEEPALIVE: u16 = 25;

/// A device of the kernel.
pub(super) struct Kernel {
    generic: Generic,
    name: String,
    index: u32,
}

impl Kernel {
    /// Makes the interface, or takes up the one that an earlier run left, with its peers.
    pub(super) async fn create(
        netlink: &Netlink,
        config: &Config,
    ) -> Result<(Self, BTreeMap<WgKey, PeerSpec>), Error> {
        for within in &config.addresses {
            netlink.confine(&config.name, *within).await?;
        }
        match find(netlink, config).await? {
            Some((kernel, told)) => {
                let port = (told.port != config.listen_port && config.listen_port != 0)
                    .then_some(config.listen_port);
                kernel.set(codec::device(kernel.index, None, port, None)).await?;
                let peers = told.peers.into_iter().map(|(key, peer)| (key, peer.spec));
                Ok((kernel, peers.collect()))
            }
            None => Ok((make(netlink, config).await?, BTreeMap::new())),
        }
    }

    pub(super) async fn port(&self) -> Result<u16, Error> {
        Ok(self.told().await?.port)
    }

    pub(super) async fn set_mark(&self, mark: u32) -> Result<(), Error> {
        self.set(codec::device(self.index, None, None, Some(mark))).await
    }

    pub(super) async fn take(&self, steps: &[Step<'_>]) -> Result<(), Error> {
        for message in codec::peers(self.index, steps) {
            self.set(message).await?;
        }
        Ok(())
    }

    pub(super) async fn peers(&self) -> Result<Vec<PeerStatus>, Error> {
        Ok(self.told().await?.statuses(SystemTime::now()))
    }

    /// Sends a handshake to these peers: the kernel does so when a keepalive begins. It ends at
    /// once what it began, so that each keeps the keepalive that it is to have.
    pub(super) async fn greet(&self, peers: &[(WgKey, Option<u16>)]) -> Result<(), Error> {
        let step = |key, keepalive| {
            Step::Update(key, Update { keepalive: Some(keepalive), ..Update::default() })
        };
        let steps = peers.iter().flat_map(|(key, keepalive)| {
            [step(*key, None), step(*key, Some(KEEPALIVE)), step(*key, *keepalive)]
        });
        self.take(&steps.collect::<Vec<_>>()).await
    }

    async fn told(&self) -> Result<Told, Error> {
        told(&self.generic, &self.name, self.index).await
    }

    async fn set(&self, message: Vec<u8>) -> Result<(), Error> {
        let done = self.generic.command((CONFIGURE, &self.name), SET_DEVICE, message);
        Ok(done.await?)
    }
}

/// Removes what an earlier run had the kernel make, if anything.
pub(super) async fn clear(netlink: &Netlink, config: &Config) -> Result<(), Error> {
    release(netlink, &config.name, &config.addresses).await?;
    match find(netlink, config).await? {
        Some((kernel, _)) => Ok(netlink.del_link(kernel.index).await?),
        None => Ok(()),
    }
}

/// Lets whatever interface will have the name lead to everywhere.
pub(super) async fn release(
    netlink: &Netlink,
    name: &str,
    addresses: &[Prefix],
) -> Result<(), netlink::Error> {
    for within in addresses {
        netlink.release(name, *within).await?;
    }
    Ok(())
}

/// The interface that an earlier run of the same device left; `None` if there is none.
async fn find(netlink: &Netlink, config: &Config) -> Result<Option<(Kernel, Told)>, Error> {
    let Some(link) = netlink.link(&config.name).await? else { return Ok(None) };
    let foreign = || Error::Foreign(config.name.clone());
    let generic = open(&config.name).await?.filter(|_| link.kind == LinkKind::WireGuard);
    let generic = generic.ok_or_else(foreign)?;
    let told = told(&generic, &config.name, link.index).await?;
    match told.public_key == Some(config.private_key.public()) {
        true => Ok(Some((Kernel { generic, name: config.name.clone(), index: link.index }, told))),
        false => Err(foreign()),
    }
}

async fn make(netlink: &Netlink, config: &Config) -> Result<Kernel, Error> {
    let missing = || Error::NoKernel(config.name.clone());
    netlink.add_link(&config.name, &NewLink::WireGuard).await.map_err(|error| {
        match error.is(libc::EOPNOTSUPP) {
            true => missing(),
            false => error.into(),
        }
    })?;
    let link = netlink.link(&config.name).await?.ok_or_else(missing)?;
    let set_up = async {
        let generic = open(&config.name).await?.ok_or_else(missing)?;
        let kernel = Kernel { generic, name: config.name.clone(), index: link.index };
        let key = config.private_key.as_bytes();
        let message = codec::device(link.index, Some(key), Some(config.listen_port), None);
        kernel.set(message).await.map(|()| kernel)
    };
    let made = set_up.await;
    if made.is_err() {
        // It is nobody's until it has its key, so nobody else removes it.
        let _ = netlink.del_link(link.index).await;
    }
    made
}

async fn open(name: &str) -> Result<Option<Generic>, Error> {
    let (family, version) = FAMILY;
    Generic::open(family, version)
        .await
        .map_err(|source| Error::Configure { name: name.to_owned(), source })
}

async fn told(generic: &Generic, name: &str, index: u32) -> Result<Told, Error> {
    let mut told = Told::default();
    for message in generic.dump(READ, GET_DEVICE, &codec::which(index)).await? {
        let malformed = |source| Error::Answer { name: name.to_owned(), source };
        told.add(&message).map_err(malformed)?;
    }
    Ok(told)
}
