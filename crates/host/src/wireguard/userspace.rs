//! WireGuard in this process: a TUN interface, a UDP socket, and gotatun between them.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::FutureExt;
use gotatun::device::Peer;
use gotatun::device::configure::{DeviceWrite, PeerMut, PeerStats};
use gotatun::tun::tun;
use gotatun::tun::tun_async_device::TunDevice;
use gotatun::udp::socket::UdpSocketFactory;
use gotatun::x25519::PublicKey;
use ipnetwork::IpNetwork;
use selvedge_model::WgKey;

use super::plan::{Step, Update};
use super::relay::{Relay, Rules};
use super::{Config, Error, PeerSpec, PeerStatus, uapi};

type Transports = (UdpSocketFactory, Relay<TunDevice>, Relay<TunDevice>);

/// A running device. Dropping it ends it some time later.
pub(super) struct Userspace {
    device: gotatun::device::Device<Transports>,
    rules: Rules,
    _control: Option<uapi::Socket>,
}

impl Userspace {
    /// Makes the interface in the network namespace of the calling thread, and opens the socket.
    pub(super) async fn create(config: &Config) -> Result<Self, Error> {
        let tun =
            open_tun(config).map_err(|reason| Error::Tun { name: config.name.clone(), reason })?;
        let rules = Rules::default();
        let relay = Relay::new(tun, rules.clone());
        let builder = gotatun::device::build().with_default_udp().with_ip(relay);
        let (_control, builder) = match &config.control {
            Some(folder) => {
                let (socket, server) = uapi::Socket::bind(folder, &config.name)?;
                (Some(socket), builder.with_uapi(server))
            }
            None => (None, builder),
        };
        let listen = |source| Error::Listen { port: config.listen_port, source };
        let device = builder.build().await.map_err(listen)?;
        // Only a change of the key or the port makes the device open its socket, so they are set
        // here and not while it is built.
        let start = async |device: &mut DeviceWrite<'_, Transports>| {
            device.set_listen_port(config.listen_port);
            device.set_private_key(config.private_key.secret()).await;
        };
        device.write(start).await.map_err(listen)?;
        Ok(Self { device, rules, _control })
    }

    pub(super) async fn port(&self) -> u16 {
        self.device.read(async |device| device.listen_port()).await
    }

    /// Whether it has stopped by itself.
    pub(super) fn has_stopped(&mut self) -> bool {
        self.device.wait().now_or_never().is_some()
    }

    pub(super) async fn set_mark(&self, mark: u32) -> Result<(), Error> {
        self.device.set_fwmark(mark).await.map_err(Error::Apply)
    }

    pub(super) const fn rules(&self) -> &Rules {
        &self.rules
    }

    pub(super) async fn take(&self, steps: &[Step<'_>]) -> Result<(), Error> {
        let execute = async |device: &mut DeviceWrite<'_, Transports>| {
            for step in steps {
                take(device, step).await;
            }
        };
        self.device.write(execute).await.map_err(Error::Apply)
    }

    pub(super) async fn peers(&self) -> Vec<PeerStatus> {
        self.device.peers().await.into_iter().map(status).collect()
    }

    /// Waits until there is a session with the peer, sending a handshake if there is none.
    pub(super) async fn handshake(&self, peer: WgKey, patience: Duration) -> Result<(), Error> {
        let key = PublicKey::from(peer.0);
        match tokio::time::timeout(patience, self.device.force_handshake(&key)).await {
            Ok(outcome) => outcome.map_err(|source| Error::Handshake { peer, source }),
            Err(_) => Err(Error::NoAnswer(peer)),
        }
    }

    /// Sends a handshake to the peers, and waits just long enough for all to be sent.
    pub(super) async fn greet(&self, peers: &[WgKey]) {
        const PATIENCE: Duration = Duration::from_millis(50);
        let handshakes = peers.iter().map(|key| self.handshake(*key, PATIENCE));
        futures_util::future::join_all(handshakes).await;
    }

    /// Ends it; its interface goes some moments later.
    pub(super) async fn stop(self) {
        self.device.stop().await;
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
            let change = |peer: &mut PeerMut| {
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

fn status(peer: PeerStats) -> PeerStatus {
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
