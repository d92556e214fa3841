//! The agent's configuration: a TOML file, overridden by flags, checked as a whole.
//!
//! [`File`] is what may be written, every key optional. [`Config`] is what the agent is built
//! from: complete, and checked before anything is started or touched. `docs/configuration.md`
//! describes every key for those who write the file.

mod check;
mod detection;
mod dns;
mod file;
mod health;
mod hooks;
mod options;
mod place;
mod ra;
mod vxlan;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use selvedge_gateway::{Isolated, NodeRole, Timing};
use selvedge_host::health::Checks;
use selvedge_model::{NodeName, Prefix, Vni, VniRanges};
use selvedge_store::embedded;
use zeroize::Zeroizing;

pub use detection::{Isolation, ProbeConfig, ProbeFile};
pub use dns::{DnsConfig, DnsFile};
pub use file::{
    EmbeddedFile, EtcdFile, FabricName, File, FloodFile, FrrFile, GatewayFile, MeshFile,
    NetworkFile, RingId, WireGuard,
};
pub use health::{HealthFile, Session};
pub use hooks::{Command, HooksFile, MeshHooksFile};
pub use options::{Exit, MeshOptions, OptionsByMesh, OptionsFile};
pub use place::{Host, Place, PlaceError};
pub use ra::{RaFile, RaSettings};
pub use vxlan::{VxlanConfig, VxlanFile};

use crate::gateway_plane::HooksConfig;

/// Where the agent keeps its state unless the configuration says otherwise.
pub const STATE: &str = "/var/lib/selvedge";
/// Where the agent listens for its clients unless the configuration says otherwise.
pub const SOCKET: &str = "/run/selvedge/selvedge.sock";

/// Which log lines are written unless the configuration says otherwise: a line for each peer of
/// each interface is nothing for every day.
pub const LOG: &str = "info,gotatun=warn";

/// What an agent is built from.
#[derive(Clone, Debug)]
pub struct Config {
    /// The agent's name: that of the gateway, and this node's alias in a mesh by default.
    pub name: NodeName,
    /// The folder for everything that survives a restart.
    pub state: PathBuf,
    /// The Unix socket of the API.
    pub socket: PathBuf,
    /// The group that may use the socket; `None`: the agent's own.
    pub socket_group: Option<String>,
    /// Which log lines are written, in the syntax of `tracing_subscriber`'s `EnvFilter`.
    pub log: String,
    /// The mesh plane, if it is enabled.
    pub mesh: Option<MeshConfig>,
    /// The gateway plane, if it is enabled.
    pub gateway: Option<GatewayConfig>,
    /// Overlay networks over a mesh, if there are any.
    pub vxlan: Option<VxlanConfig>,
}

/// What the mesh plane is built from.
#[derive(Clone, Debug)]
pub struct MeshConfig {
    /// The agent's name, the alias in a mesh unless another is asked for.
    pub name: NodeName,
    /// The agent's state folder; it exists, with mode 0700.
    pub state: PathBuf,
    /// The UDP address on which agents talk to each other (QUIC).
    pub listen: SocketAddr,
    /// Where members may be found when nobody answers: addresses or names, with ports.
    pub bootstrap: Vec<String>,
    /// What the mesh cores are told is written to this file, and those that stand beside it.
    pub record: Option<PathBuf>,
    /// Who handles the packets.
    pub wireguard: WireGuard,
    /// What this node is in its meshes, and what it wants of them.
    pub options: OptionsByMesh,
    /// How names are answered, if they are.
    pub dns: Option<DnsConfig>,
}

/// What the gateway plane is built from.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// The gateway's name.
    pub name: NodeName,
    /// The agent's state folder; it exists, with mode 0700.
    pub state: PathBuf,
    /// Whether it serves networks, or only votes.
    pub role: NodeRole,
    /// The networks that the gateways share; none for a witness.
    pub networks: VniRanges,
    /// What is known beforehand of single networks.
    pub known: BTreeMap<Vni, NetworkConfig>,
    /// The store.
    pub store: StoreConfig,
    /// How networks reach the gateway.
    pub fabric: FabricConfig,
    /// The gateway's places on the ring.
    pub ids: Ids,
    /// The time to live of the registration: whole seconds.
    pub lease: Duration,
    /// How many planned moves may run at once.
    pub budget: usize,
    /// How long each step of a planned move is given to take effect in the fabric.
    pub settle: Duration,
    /// The pause between two announcements of a network that is served.
    pub announce: Duration,
    /// How long after a gateway's return no planned move goes to it.
    pub hold_down: Duration,
    /// How long a host that was unfit again and again has to be fit until it gets networks.
    pub damping: Duration,
    /// How long a stopping agent waits for its networks to be taken over.
    pub drain_timeout: Duration,
    /// Where probes are sent and received.
    pub probe: ProbeConfig,
    /// The times of failure detection, the lease's among them.
    pub timing: Timing,
    /// What it does when it is cut off from a majority and from the store.
    pub isolated: Isolated,
    /// What it checks while it serves.
    pub health: Checks,
    /// What it advertises to stations as their IPv6 router.
    pub ra: RaSettings,
    /// The operator's commands.
    pub hooks: HooksConfig,
    /// Names of the bridges: `{vni}` stands for the network.
    pub bridge: String,
    /// Names of the VXLAN interfaces: `{vni}` stands for the network.
    pub vxlan: String,
}

/// What is known beforehand of one network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkConfig {
    /// The gateway's addresses in it, with the length of the network's prefix. Empty: those
    /// that its bridge carries.
    pub addresses: Vec<Prefix>,
    /// The next-hop addresses by which the upstream router reaches it (fabric `flood`).
    pub next_hops: Vec<IpAddr>,
}

/// Which store, and how to reach it.
#[derive(Clone, Debug)]
pub enum StoreConfig {
    /// A cluster of etcd.
    Etcd(EtcdConfig),
    /// The embedded store.
    Embedded(embedded::Address),
}

/// How to reach a cluster of etcd.
#[derive(Clone, Debug)]
pub struct EtcdConfig {
    /// The members' client URLs.
    pub endpoints: Vec<String>,
    /// Certificates, if the URLs are `https`.
    pub tls: Option<EtcdTls>,
    /// User and password.
    pub auth: Option<(String, Secret)>,
}

/// Certificates for etcd, in PEM.
#[derive(Clone, Debug)]
pub struct EtcdTls {
    /// The authority that signed the servers' certificates.
    pub ca: Vec<u8>,
    /// This client's certificate and key.
    pub identity: Option<(Vec<u8>, Secret)>,
}

/// A text that is neither logged nor left in memory.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub Zeroizing<String>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// How networks reach the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FabricConfig {
    /// Not at all: the host is not touched.
    Dry,
    /// Static flooding lists, and next-hop addresses on the uplink.
    Flood {
        /// The interface towards the upstream router.
        uplink: String,
        /// The other tunnel endpoints; `None`: those of a mesh, see [`Config::vxlan`].
        endpoints: Option<Vec<IpAddr>>,
    },
    /// BGP EVPN and a routing protocol, by FRRouting.
    Frr {
        /// The folder of FRR's vty sockets.
        vty_dir: PathBuf,
        /// The name of FRR's instance (its option `-N`), if it has one.
        pathspace: Option<String>,
        /// The AS number of bgpd's instance; `None`: the one that bgpd says.
        asn: Option<u32>,
    },
}

/// A gateway's places on the ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ids {
    /// That many, derived from the gateway's name.
    Derived(usize),
    /// These.
    Given(Vec<u64>),
}

/// Why a configuration is refused. Nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// The file is no TOML, or holds a key or a value that does not exist.
    #[error("{origin}: {message}")]
    Syntax {
        /// The file's name.
        origin: String,
        /// Line, column and reason.
        message: String,
    },
    /// A value is not allowed.
    #[error("{key} = {value}: {reason}")]
    Value {
        /// The key, with its section: `gateway.lease_s`.
        key: String,
        /// What it was set to.
        value: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// Something is missing.
    #[error("{key} is missing: {reason}")]
    Missing {
        /// The key, with its section.
        key: String,
        /// What for, and how to give it.
        reason: String,
    },
}

impl Config {
    /// Reads `path`, if there is one, lets `flags` override what it says, and checks the whole.
    ///
    /// # Errors
    /// See [`ConfigError`]: each names the key and the value.
    pub fn load(
        path: Option<&Path>,
        flags: impl FnOnce(&mut File) -> Result<(), ConfigError>,
    ) -> Result<Self, ConfigError> {
        let mut file = match path {
            Some(path) => File::read(path)?,
            None => File::default(),
        };
        flags(&mut file)?;
        file.try_into()
    }
}
