//! WireGuard in this process: a TUN interface, a UDP socket, and the protocol between them.

mod destinations;
mod plan;
mod relay;
mod routes;
mod uapi;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::FutureExt;
use gotatun::device::Peer;
use gotatun::device::configure::DeviceWrite;
use gotatun::tun::tun;
use gotatun::tun::tun_async_device::TunDevice;
use gotatun::udp::socket::UdpSocketFactory;
use gotatun::x25519::{PublicKey, StaticSecret};
use ipnetwork::IpNetwork;
use selvedge_model::{Prefix, WgKey};
use selvedge_topology::Relays;
use zeroize::Zeroizing;

use crate::netlink::{self, AddressOptions, Netlink};

pub use destinations::Destinations;
pub use plan::Changes;
use plan::{Step, Update};
use relay::{Relay, Rules};
pub use routes::DETOUR;

type Transports = (UdpSocketFactory, Relay<TunDevice>, Relay<TunDevice>);

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
    /// Folder for a control socket that `wg show` finds (`/var/run/wireguard`), or none. Names
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

/// A running WireGuard device. Dropping it ends it some time later; [`Device::stop`] waits.
pub struct Device {
    name: String,
    index: u32,
    public_key: WgKey,
    netlink: Netlink,
    inner: gotatun::device::Device<Transports>,
    rules: Rules,
    applied: BTreeMap<WgKey, PeerSpec>,
    addresses: Vec<Prefix>,
    mtu: u16,
    control: Option<uapi::Socket>,
}

impl Device {
    /// Makes the interface in the network namespace of the calling thread, sets it up, and
    /// opens the UDP socket. `netlink` must belong to the same namespace.
    ///
    /// # Errors
    /// See [`Error`]; nothing is left behind.
    pub async fn create(netlink: &Netlink, config: &Config) -> Result<Self, Error> {
        let tun =
            open_tun(config).map_err(|reason| Error::Tun { name: config.name.clone(), reason })?;
        let rules = Rules::default();
        let relay = Relay::new(tun, rules.clone());
        let builder = gotatun::device::build().with_default_udp().with_ip(relay);
        let (control, builder) = match &config.control {
            Some(folder) => {
                let (socket, server) = uapi::Socket::bind(folder, &config.name)?;
                (Some(socket), builder.with_uapi(server))
            }
            None => (None, builder),
        };
        let listen = |source| Error::Listen { port: config.listen_port, source };
        let inner = builder.build().await.map_err(listen)?;
        // Only a change of the key or the port makes the device open its socket, so they are set
        // here and not while it is built.
        let start = async |device: &mut DeviceWrite<'_, Transports>| {
            device.set_listen_port(config.listen_port);
            device.set_private_key(config.private_key.secret()).await;
        };
        inner.write(start).await.map_err(listen)?;
        let index = configure(netlink, config)
            .await
            .map_err(|source| Error::Configure { name: config.name.clone(), source })?;
        Ok(Self {
            name: config.name.clone(),
            index,
            public_key: config.private_key.public(),
            netlink: netlink.clone(),
            inner,
            rules,
            applied: BTreeMap::new(),
            addresses: config.addresses.clone(),
            mtu: config.mtu,
            control,
        })
    }

    /// Who does the work.
    #[must_use]
    pub const fn backend(&self) -> Backend {
        Backend::Userspace
    }

    /// The name of the interface.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The UDP port that the device listens on.
    pub async fn port(&self) -> u16 {
        self.inner.read(async |device| device.listen_port()).await
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
        Ok(!ours || self.inner.wait().now_or_never().is_some())
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
            let steps = &steps;
            let execute = async |device: &mut DeviceWrite<'_, Transports>| {
                for step in steps {
                    take(device, step).await;
                }
            };
            self.inner.write(execute).await.map_err(Error::Apply)?;
            self.greet(steps).await;
        }
        let changes = plan::count(&steps);
        self.applied.clone_from(desired);
        Ok(changes)
    }

    /// Marks the packets that the device itself sends, so that routing rules keep them out of the
    /// tunnels; 0 marks none.
    ///
    /// # Errors
    /// If the kernel refuses, which takes `CAP_NET_ADMIN`.
    pub async fn set_mark(&self, mark: u32) -> Result<(), Error> {
        self.inner.set_fwmark(mark).await.map_err(Error::Apply)
    }

    /// Carries packets from and to beyond the mesh by these rules from now on, and drops what they
    /// refuse. Before the first call everything passes as it is.
    pub fn set_relays(&self, relays: Relays) {
        self.rules.set(relays);
    }

    /// Has the device note from now on to whom this host sends packets.
    pub fn note_destinations(&self, destinations: &Destinations) {
        self.rules.note_destinations(destinations);
    }

    /// How many packets the rules of [`Device::set_relays`] refused.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.rules.refused()
    }

    /// All peers, in the order of their keys.
    pub async fn peers(&self) -> Vec<PeerStatus> {
        let mut peers: Vec<_> = self.inner.peers().await.into_iter().map(status).collect();
        peers.sort_by_key(|peer| peer.key);
        peers
    }

    /// Waits until there is a session with the peer, sending a handshake if there is none.
    ///
    /// # Errors
    /// If the peer or its endpoint is unknown, or it has not answered within `patience`.
    pub async fn force_handshake(&self, peer: WgKey, patience: Duration) -> Result<(), Error> {
        let key = PublicKey::from(peer.0);
        match tokio::time::timeout(patience, self.inner.force_handshake(&key)).await {
            Ok(outcome) => outcome.map_err(|source| Error::Handshake { peer, source }),
            Err(_) => Err(Error::NoAnswer(peer)),
        }
    }

    /// Ends the device and waits until its interface is gone.
    ///
    /// # Errors
    /// If the interface stays for more than two seconds.
    pub async fn stop(self) -> Result<(), Error> {
        let Self { name, netlink, inner, control, .. } = self;
        drop(control);
        inner.stop().await;
        for _ in 0..200 {
            match netlink.link(&name).await {
                Ok(None) => return Ok(()),
                Ok(Some(_)) | Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
        Err(Error::Lingering(name))
    }

    /// Sends a handshake to every peer that `steps` added, and waits just long enough for all
    /// to be sent.
    async fn greet(&self, steps: &[Step<'_>]) {
        const PATIENCE: Duration = Duration::from_millis(50);
        let handshakes = steps.iter().filter_map(|step| match step {
            Step::Add(key, spec) if spec.endpoint.is_some() => {
                Some(self.force_handshake(*key, PATIENCE))
            }
            Step::Add(..) | Step::Update(..) | Step::Remove(_) => None,
        });
        futures_util::future::join_all(handshakes).await;
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = f.debug_struct("Device");
        text.field("name", &self.name).field("key", &self.public_key).finish_non_exhaustive()
    }
}

/// The interface has its MTU from its first moment: packets are padded up to it, and a change is
/// only noticed after seconds.
fn open_tun(config: &Config) -> Result<TunDevice, String> {
    let mut options = tun::Configuration::default();
    options.tun_name(&config.name).mtu(config.mtu);
    let device = tun::create_as_async(&options).map_err(|error| error.to_string())?;
    TunDevice::from_tun_device(device).map_err(|error| error.to_string())
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

async fn take(device: &mut DeviceWrite<'_, Transports>, step: &Step<'_>) {
    match step {
        Step::Remove(key) => {
            device.remove_peer(&PublicKey::from(key.0)).await;
        }
        Step::Add(key, spec) => {
            let mut peer = Peer::new(PublicKey::from(key.0)).with_allowed_ips(networks(spec));
            peer.endpoint = spec.endpoint;
            peer.keepalive = spec.keepalive;
            device.add_or_update_peer(peer).await;
        }
        Step::Update(key, Update { endpoint, keepalive, allowed }) => {
            let change = |peer: &mut gotatun::device::configure::PeerMut| {
                if endpoint.is_some() {
                    peer.set_endpoint(*endpoint);
                }
                if let Some(keepalive) = keepalive {
                    peer.set_keepalive(*keepalive);
                }
                if let Some(spec) = allowed {
                    peer.clear_allowed_ips();
                    peer.add_allowed_ips(networks(spec));
                }
            };
            device.modify_peer(&PublicKey::from(key.0), change).await;
        }
    }
}

fn networks(spec: &PeerSpec) -> impl Iterator<Item = IpNetwork> {
    spec.allowed.iter().map(|prefix| {
        let network = prefix.network();
        IpNetwork::new(network.addr(), network.len()).expect("a Prefix has a length of its family")
    })
}

fn status(peer: gotatun::device::configure::PeerStats) -> PeerStatus {
    PeerStatus {
        key: WgKey(peer.peer.public_key.to_bytes()),
        endpoint: peer.peer.endpoint.map(canonical),
        last_handshake: peer.stats.last_handshake,
        rx: u64::try_from(peer.stats.rx_bytes).unwrap_or(u64::MAX),
        tx: u64::try_from(peer.stats.tx_bytes).unwrap_or(u64::MAX),
    }
}

/// The socket serves both families and may report IPv4 as mapped into IPv6.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests;
