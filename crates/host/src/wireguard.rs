//! WireGuard: an interface, a UDP socket, and the protocol between them. The work is done by this
//! process on a TUN interface (`userspace`), or by the kernel where it can (`kernel`).

mod destinations;
mod greet;
mod kernel;
mod plan;
mod relay;
mod routes;
mod uapi;
mod userspace;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use gotatun::x25519::{PublicKey, StaticSecret};
use selvedge_model::{Prefix, WgKey};
use selvedge_topology::Relays;
use zeroize::Zeroizing;

use crate::netlink::{self, AddressOptions, Netlink};

pub use destinations::Destinations;
use greet::Greetings;
use kernel::Kernel;
pub use kernel::Told;
pub use plan::Changes;
use plan::Step;
pub use routes::{DETOUR, PROTOCOL};
use userspace::Userspace;

/// The bytes that WireGuard adds to a packet at most: IPv6, UDP and its own header and tag.
pub const OVERHEAD: u16 = 80;

/// Why a WireGuard operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The interface could not be made. Nothing was changed.
    #[error(
        "cannot make the TUN interface {name}: {reason}; this needs /dev/net/tun and CAP_NET_ADMIN"
    )]
    Tun {
        /// Its name.
        name: String,
        /// The cause.
        reason: String,
    },
    /// The kernel has no WireGuard. Nothing was changed.
    #[error(
        "cannot make the WireGuard interface {0}: this kernel has no WireGuard; load its module \
         (modprobe wireguard, part of Linux since 5.6), or let the agent do its work by \
         mesh.wireguard = \"auto\" or \"userspace\""
    )]
    NoKernel(String),
    /// An interface of that name is there, and not one of this device. Nothing was changed.
    #[error("there is an interface {0} already, with another key: remove it, or rename it")]
    Foreign(String),
    /// The kernel's answer cannot be read.
    #[error("cannot read the WireGuard interface {name}: {source}")]
    Answer {
        /// Its name.
        name: String,
        /// What is wrong with it.
        source: netlink::Malformed,
    },
    /// The interface was made but could not be configured. It is removed again.
    #[error("cannot configure the WireGuard interface {name}: {source}")]
    Configure {
        /// Its name.
        name: String,
        /// The cause.
        source: netlink::Error,
    },
    /// The interface was made but its UDP socket not opened. It is removed again.
    #[error("cannot open UDP port {port} for WireGuard: {source}")]
    Listen {
        /// The port asked for; 0 is any.
        port: u16,
        /// The cause.
        source: gotatun::device::Error,
    },
    /// The socket for `wg show` could not be made. Nothing was changed.
    #[error("cannot make the WireGuard control socket {path}: {source}")]
    Control {
        /// Its path.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Two peers claim one prefix. Nothing was changed.
    #[error("{prefix} is claimed by the WireGuard peers {first} and {second}")]
    SharedPrefix {
        /// The prefix.
        prefix: Prefix,
        /// One peer.
        first: WgKey,
        /// The other peer.
        second: WgKey,
    },
    /// A peer has this device's own key. Nothing was changed.
    #[error("the WireGuard peer {0} has this device's own key")]
    OwnKey(WgKey),
    /// The kernel did not take what was asked of the interface, or not all of it.
    #[error("cannot change the interface: {0}")]
    Interface(#[from] netlink::Error),
    /// The device did not take the changes, or not all.
    #[error("cannot change the WireGuard peers: {0}")]
    Apply(#[source] gotatun::device::Error),
    /// The handshake could not be sent. Nothing was changed.
    #[error("cannot shake hands with {peer}: {source}")]
    Handshake {
        /// The peer.
        peer: WgKey,
        /// The cause.
        source: gotatun::device::Error,
    },
    /// The peer has not answered in time; the attempt goes on.
    #[error("no answer to the handshake with {0} yet")]
    NoAnswer(WgKey),
    /// The device was stopped, but its interface stayed for longer than it should.
    #[error("the WireGuard interface {0} is still there after its device was stopped")]
    Lingering(String),
}

/// A WireGuard private key. Wiped from memory when dropped, and never printed.
#[derive(Clone)]
pub struct PrivateKey(Zeroizing<[u8; 32]>);

impl PrivateKey {
    /// The key that 32 random bytes, or the bytes of a stored key, are.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes, to store them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The public key that belongs to it.
    #[must_use]
    pub fn public(&self) -> WgKey {
        WgKey(PublicKey::from(&self.secret()).to_bytes())
    }

    fn secret(&self) -> StaticSecret {
        StaticSecret::from(*self.0)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey(of {})", self.public())
    }
}

/// Who does the work of WireGuard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// This process.
    Userspace,
    /// The kernel.
    Kernel,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Userspace => "userspace",
            Self::Kernel => "kernel",
        })
    }
}

/// What a device is made of.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the interface, up to 15 bytes.
    pub name: String,
    /// The device's identity.
    pub private_key: PrivateKey,
    /// UDP port; 0 takes a free one.
    pub listen_port: u16,
    /// MTU of the interface in bytes, at most that of the underlay less [`OVERHEAD`].
    pub mtu: u16,
    /// Addresses of the interface. Each makes a route to its network.
    pub addresses: Vec<Prefix>,
    /// Who is to do the work; `None`: the kernel if it can.
    pub backend: Option<Backend>,
    /// Folder for a control socket that `wg show` finds (`/var/run/wireguard`), or none; the
    /// kernel needs none. Names
    /// of interfaces must then be unique on the machine, network namespaces included.
    pub control: Option<PathBuf>,
}

/// What is wanted of a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerSpec {
    /// Where to reach it. `None` leaves what the device learned from the peer's own packets.
    pub endpoint: Option<SocketAddr>,
    /// The addresses behind it; no other peer may have the same prefix.
    pub allowed: BTreeSet<Prefix>,
    /// Seconds between keepalives, if any.
    pub keepalive: Option<u16>,
}

/// What is known of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Its public key.
    pub key: WgKey,
    /// Where its last authentic packet came from, or where it was said to be.
    pub endpoint: Option<SocketAddr>,
    /// How long ago the last handshake was completed.
    pub last_handshake: Option<Duration>,
    /// Bytes received.
    pub rx: u64,
    /// Bytes sent.
    pub tx: u64,
}

/// A running WireGuard device. Dropping one of this process ends it some time later, one of the
/// kernel goes on; [`Device::stop`] ends both.
pub struct Device {
    name: String,
    index: u32,
    port: u16,
    public_key: WgKey,
    netlink: Netlink,
    engine: Engine,
    applied: BTreeMap<WgKey, PeerSpec>,
    greetings: Greetings,
    addresses: Vec<Prefix>,
    mtu: u16,
}

/// What does the work.
enum Engine {
    Userspace(Userspace),
    Kernel(Kernel),
}

impl Device {
    /// Makes the interface in the network namespace of the calling thread, sets it up, and
    /// opens the UDP socket. `netlink` must belong to the same namespace. What an earlier run of
    /// the same device left in the kernel is taken up, or removed if it is to be this process's.
    ///
    /// # Errors
    /// See [`Error`]; nothing is left behind.
    pub async fn create(netlink: &Netlink, config: &Config) -> Result<Self, Error> {
        match config.backend {
            Some(Backend::Kernel) => Self::of_kernel(netlink, config).await,
            Some(Backend::Userspace) => Self::of_process(netlink, config).await,
            None => match Self::of_kernel(netlink, config).await {
                Err(error) => {
                    tracing::debug!(interface = config.name, %error, "not by the kernel");
                    Self::of_process(netlink, config).await
                }
                made => made,
            },
        }
    }

    async fn of_kernel(netlink: &Netlink, config: &Config) -> Result<Self, Error> {
        let make = async {
            let (kernel, applied) = Kernel::create(netlink, config).await?;
            let port = kernel.port().await?;
            let device = Self::configured(netlink, config, Engine::Kernel(kernel), port).await?;
            Ok(Self { applied, ..device })
        };
        let made = make.await;
        if made.is_err() {
            // The first error is the one that tells what is wrong.
            let _ = kernel::clear(netlink, config).await;
        }
        made
    }

    async fn of_process(netlink: &Netlink, config: &Config) -> Result<Self, Error> {
        kernel::clear(netlink, config).await?;
        let userspace = Userspace::create(config).await?;
        let port = userspace.port().await;
        Self::configured(netlink, config, Engine::Userspace(userspace), port).await
    }

    async fn configured(
        netlink: &Netlink,
        config: &Config,
        engine: Engine,
        port: u16,
    ) -> Result<Self, Error> {
        let index = configure(netlink, config)
            .await
            .map_err(|source| Error::Configure { name: config.name.clone(), source })?;
        Ok(Self {
            name: config.name.clone(),
            index,
            port,
            public_key: config.private_key.public(),
            netlink: netlink.clone(),
            engine,
            applied: BTreeMap::new(),
            greetings: Greetings::default(),
            addresses: config.addresses.clone(),
            mtu: config.mtu,
        })
    }

    /// Who does the work.
    #[must_use]
    pub const fn backend(&self) -> Backend {
        match self.engine {
            Engine::Userspace(_) => Backend::Userspace,
            Engine::Kernel(_) => Backend::Kernel,
        }
    }

    /// The name of the interface.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The UDP port that the device listens on.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Whether the device stopped working by itself, for instance because somebody removed its
    /// interface. It has to be made anew then.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub async fn has_failed(&mut self) -> Result<bool, netlink::Error> {
        // The kernel does not wake the reader of an interface that is removed, so look.
        let link = self.netlink.link(&self.name).await?;
        let ours = link.is_some_and(|link| link.index == self.index);
        Ok(!ours
            || match &mut self.engine {
                Engine::Userspace(userspace) => userspace.has_stopped(),
                Engine::Kernel(_) => false,
            })
    }

    /// Puts right what others have changed about the interface: its addresses, its MTU, and
    /// whether it is up. Addresses that are not ours are left alone. Says whether anything was
    /// wrong.
    ///
    /// # Errors
    /// If the kernel cannot be asked, or refuses.
    pub async fn repair(&self) -> Result<bool, netlink::Error> {
        let link = self.netlink.link(&self.name).await?;
        let Some(link) = link.filter(|link| link.index == self.index) else { return Ok(false) };
        let mtu = u32::from(self.mtu);
        let mut wrong = !link.up || link.mtu != mtu;
        // First: the kernel drops addresses of IPv6 where the MTU is too small for them.
        if wrong {
            self.netlink.set_up(self.index, true, Some(mtu)).await?;
        }
        let found = self.netlink.addresses().await?;
        for address in &self.addresses {
            let there = |a: &netlink::Address| a.index == self.index && a.prefix == *address;
            if !found.iter().any(there) {
                wrong = true;
                self.netlink.add_address(self.index, *address, ADDRESS).await?;
            }
        }
        Ok(wrong)
    }

    /// Gives the interface another MTU in bytes and other addresses. `None` leaves the MTU, and no
    /// addresses at all leave those that it has.
    ///
    /// # Errors
    /// If the kernel refuses; then it is tried again by [`Device::repair`].
    pub async fn shape(
        &mut self,
        mtu: Option<u16>,
        addresses: &[Prefix],
    ) -> Result<(), netlink::Error> {
        let mtu = mtu.unwrap_or(self.mtu);
        let addresses =
            if addresses.is_empty() { self.addresses.clone() } else { addresses.into() };
        if mtu == self.mtu && addresses == self.addresses {
            return Ok(());
        }
        let gone = |it: &&Prefix| !addresses.contains(it);
        let gone: Vec<Prefix> = self.addresses.iter().filter(gone).copied().collect();
        (self.mtu, self.addresses) = (mtu, addresses);
        self.netlink.del_addresses(self.index, &gone).await?;
        self.repair().await.map(drop)
    }

    /// Makes `desired` the peers of the device. Only what differs from the last call is touched;
    /// sessions live on, whatever changes about their peer, its endpoint included.
    ///
    /// A peer that is new and whose endpoint is known is sent a handshake at once: it may hold a
    /// session with an earlier life of this device, and would go on using it for a while.
    ///
    /// # Errors
    /// If two peers claim one prefix, or one has our own key; then nothing is changed. Other
    /// errors come from the device.
    pub async fn apply(&mut self, desired: &BTreeMap<WgKey, PeerSpec>) -> Result<Changes, Error> {
        plan::check(self.public_key, desired)?;
        let steps = plan::plan(&self.applied, desired);
        if !steps.is_empty() {
            self.take(&steps).await?;
        }
        let changes = plan::count(&steps);
        let new: Vec<WgKey> = steps.iter().filter_map(Step::added).collect();
        plan::follow(&mut self.applied, desired, &steps);
        let greeted = self.greetings.of(new, Instant::now());
        self.greet(&greeted).await;
        Ok(changes)
    }

    /// When [`Device::greet_again`] has something to do, if ever.
    #[must_use]
    pub fn greeting_due(&self) -> Option<Instant> {
        self.greetings.next()
    }

    /// Greets peers again that were added a moment ago and have not answered: they may not have
    /// known this device yet. Says how many.
    ///
    /// # Errors
    /// If the device does not take that. Then [`Device::apply`] is to be called again.
    pub async fn greet_again(&mut self) -> Result<usize, Error> {
        let due = self.greetings.take(Instant::now());
        let answered: BTreeSet<WgKey> = self
            .peers()
            .await
            .iter()
            .filter(|it| it.last_handshake.is_some())
            .map(|it| it.key)
            .collect();
        answered.iter().for_each(|key| self.greetings.answered(*key));
        let silent: Vec<WgKey> = due
            .into_iter()
            .filter(|key| !answered.contains(key) && self.has_endpoint(key))
            .collect();
        // WireGuard repeats a handshake after 5 s at the soonest, unless the peer is a new one. One
        // without an endpoint stays: what it says at this moment would be forgotten with it, where
        // it said it from, too, and it would take the handshake for done.
        let steps = silent
            .iter()
            .filter_map(|key| Some([Step::Remove(*key), Step::Add(*key, self.applied.get(key)?)]));
        if let Err(error) = self.take(&steps.flatten().collect::<Vec<_>>()).await {
            // Some may be gone and not there again.
            silent.iter().for_each(|key| drop(self.applied.remove(key)));
            return Err(error);
        }
        self.greet(&silent).await;
        Ok(silent.len())
    }

    fn has_endpoint(&self, key: &WgKey) -> bool {
        self.applied.get(key).is_some_and(|spec| spec.endpoint.is_some())
    }

    async fn take(&self, steps: &[Step<'_>]) -> Result<(), Error> {
        match &self.engine {
            Engine::Userspace(userspace) => userspace.take(steps).await,
            Engine::Kernel(kernel) => kernel.take(steps).await,
        }
    }

    /// Sends a handshake to those peers whose endpoint is known.
    async fn greet(&self, peers: &[WgKey]) {
        let known = |key: &WgKey| {
            let spec = self.applied.get(key).filter(|spec| spec.endpoint.is_some())?;
            Some((*key, spec.keepalive))
        };
        let peers: Vec<_> = peers.iter().filter_map(known).collect();
        match &self.engine {
            Engine::Userspace(userspace) => {
                let keys: Vec<WgKey> = peers.into_iter().map(|(key, _)| key).collect();
                userspace.greet(&keys).await;
            }
            Engine::Kernel(kernel) => {
                if let Err(error) = kernel.greet(&peers).await {
                    tracing::debug!(interface = self.name, %error, "peers were not greeted");
                }
            }
        }
    }

    /// Marks the packets that the device itself sends, so that routing rules keep them out of the
    /// tunnels; 0 marks none.
    ///
    /// # Errors
    /// If the kernel refuses, which takes `CAP_NET_ADMIN`.
    pub async fn set_mark(&self, mark: u32) -> Result<(), Error> {
        match &self.engine {
            Engine::Userspace(userspace) => userspace.set_mark(mark).await,
            Engine::Kernel(kernel) => kernel.set_mark(mark).await,
        }
    }

    /// Carries packets from and to beyond the mesh by these rules from now on, and drops what they
    /// refuse. Before the first call everything passes as it is. Says whether this device can: the
    /// kernel carries packets between members alone.
    pub fn set_relays(&self, relays: Relays) -> bool {
        match &self.engine {
            Engine::Userspace(userspace) => {
                userspace.rules().set(relays);
                true
            }
            Engine::Kernel(_) => {
                relays.hops.iter().next().is_none() && relays.serves.iter().next().is_none()
            }
        }
    }

    /// Has the device note from now on to whom this host sends packets. The kernel's does not tell.
    pub fn note_destinations(&self, destinations: &Destinations) {
        match &self.engine {
            Engine::Userspace(userspace) => userspace.rules().note_destinations(destinations),
            Engine::Kernel(_) => {}
        }
    }

    /// How many packets the rules of [`Device::set_relays`] refused.
    #[must_use]
    pub fn refused(&self) -> u64 {
        match &self.engine {
            Engine::Userspace(userspace) => userspace.rules().refused(),
            Engine::Kernel(_) => 0,
        }
    }

    /// All peers, in the order of their keys. None if the kernel does not tell them.
    pub async fn peers(&self) -> Vec<PeerStatus> {
        let mut peers = match &self.engine {
            Engine::Userspace(userspace) => userspace.peers().await,
            Engine::Kernel(kernel) => kernel.peers().await.unwrap_or_else(|error| {
                tracing::warn!(interface = self.name, %error, "the peers are not known");
                Vec::new()
            }),
        };
        peers.sort_by_key(|peer| peer.key);
        peers
    }

    /// Ends the device and waits until its interface is gone.
    ///
    /// # Errors
    /// If the interface stays for more than two seconds.
    pub async fn stop(self) -> Result<(), Error> {
        let Self { name, netlink, engine, index, addresses, .. } = self;
        match engine {
            Engine::Userspace(userspace) => userspace.stop().await,
            Engine::Kernel(_) => {
                netlink.del_link(index).await?;
                kernel::release(&netlink, &name, &addresses).await?;
            }
        }
        for _ in 0..200 {
            match netlink.link(&name).await {
                Ok(None) => return Ok(()),
                Ok(Some(_)) | Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
        Err(Error::Lingering(name))
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = f.debug_struct("Device");
        text.field("name", &self.name).field("key", &self.public_key).finish_non_exhaustive()
    }
}

/// Nobody else has the address of a node.
const ADDRESS: AddressOptions = AddressOptions { no_dad: true, no_prefix_route: false };

async fn configure(netlink: &Netlink, config: &Config) -> Result<u32, netlink::Error> {
    let Some(link) = netlink.link(&config.name).await? else {
        let source = std::io::Error::from_raw_os_error(nix::libc::ENODEV);
        let (operation, object) = ("find the interface", config.name.clone());
        return Err(netlink::Error::Refused { operation, object, source });
    };
    for address in &config.addresses {
        netlink.add_address(link.index, *address, ADDRESS).await?;
    }
    netlink.set_up(link.index, true, Some(config.mtu.into())).await?;
    Ok(link.index)
}

#[cfg(test)]
mod tests;
