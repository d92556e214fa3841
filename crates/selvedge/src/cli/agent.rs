use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use selvedge_model::{NodeName, ParseVniError, Vni, VniRanges};

use super::output::line;
use crate::config::{
    Config, ConfigError, EmbeddedFile, EtcdFile, FabricName, File, GatewayFile, LOG, MeshFile,
    Place, RingId, WireGuard,
};

/// Everything that is needed most often has a flag, so that a first agent runs without a file.
/// Flags override the file.
#[derive(Args, Debug, Default)]
#[command(after_help = "\
Examples:
  selvedge agent --config /etc/selvedge/agent.toml
  selvedge agent --name gw1 --networks 1-100 --etcd http://localhost:2379
  selvedge agent --mesh --name host1

Every key of the configuration file is described in docs/configuration.md.")]
pub(super) struct AgentArgs {
    /// The configuration (TOML); without it there are only flags and defaults
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The agent's name [default: the name of this host]
    #[arg(long)]
    name: Option<NodeName>,
    /// The folder for what survives a restart [default: /var/lib/selvedge]
    #[arg(long, value_name = "FOLDER")]
    state: Option<PathBuf>,
    /// The socket of the API [default: /run/selvedge/selvedge.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The group that may use the socket [default: the agent's own]
    #[arg(long, value_name = "GROUP")]
    socket_group: Option<String>,
    /// Which log lines are written, such as info or warn,selvedge=debug [default: info]
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// Write debugging logs
    #[arg(long, conflicts_with = "log")]
    debug: bool,
    /// Touch neither the network of this host nor FRR
    #[arg(long, alias = "mock")]
    dry: bool,

    /// Enable the mesh plane
    #[arg(long, help_heading = "Mesh plane")]
    mesh: bool,
    /// The UDP address on which agents talk to each other [default: [::]:7654]
    #[arg(long, value_name = "ADDRESS:PORT", help_heading = "Mesh plane")]
    listen: Option<SocketAddr>,
    /// An address at which other nodes reach this one (repeatable) [default: what the host has]
    #[arg(long = "endpoint", value_name = "PLACE", help_heading = "Mesh plane")]
    endpoints: Vec<Place>,
    /// The UDP port of WireGuard [default: one that is free]
    #[arg(long, value_name = "PORT", help_heading = "Mesh plane")]
    wireguard_port: Option<u16>,
    /// Write what the core of a mesh is told to this file, to be replayed
    #[arg(long, value_name = "FILE", help_heading = "Mesh plane")]
    record: Option<PathBuf>,

    /// Enable the gateway plane for these networks, such as 1-100,200
    #[arg(long, value_name = "VNIS", help_heading = "Gateway plane")]
    networks: Option<VniRanges>,
    /// The first network, instead of --networks [default: 1]
    #[arg(long, value_name = "VNI", conflicts_with = "networks", help_heading = "Gateway plane")]
    min_vni: Option<Vni>,
    /// The last network, instead of --networks [default: 100]
    #[arg(long, value_name = "VNI", conflicts_with = "networks", help_heading = "Gateway plane")]
    max_vni: Option<Vni>,
    /// A member of the etcd cluster (repeatable)
    #[arg(long, value_name = "URL", help_heading = "Gateway plane")]
    etcd: Vec<String>,
    /// The embedded store, unix:/PATH or tcp:ADDRESS:PORT
    #[arg(long, value_name = "ADDRESS", conflicts_with = "etcd", help_heading = "Gateway plane")]
    embedded: Option<String>,
    /// How networks reach this gateway [default: frr]
    #[arg(long, help_heading = "Gateway plane")]
    fabric: Option<FabricName>,
    /// The places on the ring [default: derived from the name]
    #[arg(
        long,
        value_name = "ID,ID,..",
        value_delimiter = ',',
        conflicts_with = "id_count",
        help_heading = "Gateway plane"
    )]
    ids: Vec<u64>,
    /// How many places on the ring are derived from the name [default: 100]
    #[arg(long, value_name = "N", help_heading = "Gateway plane")]
    id_count: Option<usize>,
    /// How long a stopping agent waits until its networks are taken over [default: 60]
    #[arg(long, value_name = "SECONDS", help_heading = "Gateway plane")]
    drain_timeout: Option<u64>,
    /// Put the bridges back as the first agent found them, for good, and exit; no agent may run
    #[arg(long, help_heading = "Gateway plane")]
    release: bool,
    /// Check the configuration and exit; nothing is started or changed
    #[arg(long, conflicts_with = "release")]
    check: bool,
}

pub(super) fn run(args: AgentArgs) -> anyhow::Result<()> {
    let path = args.config.clone();
    let (release, check) = (args.release, args.check);
    let config = Config::load(path.as_deref(), |file| args.apply(file))?;
    if check {
        return line("the configuration is complete and makes sense");
    }
    if release { crate::agent::release(&config) } else { crate::agent::run(config) }
}

/// Overrides what is there by what was given.
fn set<T>(slot: &mut Option<T>, given: Option<T>) {
    if given.is_some() {
        *slot = given;
    }
}

impl AgentArgs {
    fn apply(mut self, file: &mut File) -> Result<(), ConfigError> {
        set(&mut file.name, self.name.take());
        set(&mut file.state, self.state.take());
        set(&mut file.socket, self.socket.take());
        set(&mut file.socket_group, self.socket_group.take());
        let debug = self.debug.then(|| format!("{LOG},selvedge=debug"));
        set(&mut file.log, self.log.take().or(debug));
        if self.wants_mesh() {
            file.mesh.get_or_insert_default();
        }
        if self.wants_gateway() {
            file.gateway.get_or_insert_default();
        }
        if let Some(mesh) = &mut file.mesh {
            self.apply_mesh(mesh);
        }
        if let Some(gateway) = &mut file.gateway {
            self.apply_gateway(gateway)?;
        }
        Ok(())
    }

    fn wants_mesh(&self) -> bool {
        self.mesh
            || self.listen.is_some()
            || !self.endpoints.is_empty()
            || self.wireguard_port.is_some()
            || self.record.is_some()
    }

    fn wants_gateway(&self) -> bool {
        self.networks.is_some()
            || self.min_vni.is_some()
            || self.max_vni.is_some()
            || !self.etcd.is_empty()
            || self.embedded.is_some()
            || self.fabric.is_some()
            || !self.ids.is_empty()
            || self.id_count.is_some()
            || self.drain_timeout.is_some()
    }

    fn apply_mesh(&mut self, mesh: &mut MeshFile) {
        set(&mut mesh.listen, self.listen);
        set(&mut mesh.endpoints, some(std::mem::take(&mut self.endpoints)));
        set(&mut mesh.port, self.wireguard_port);
        set(&mut mesh.record, self.record.take());
        set(&mut mesh.wireguard, self.dry.then_some(WireGuard::Dry));
    }

    fn apply_gateway(&mut self, gateway: &mut GatewayFile) -> Result<(), ConfigError> {
        set(&mut gateway.networks, self.ranges()?);
        set(&mut gateway.fabric, self.fabric);
        set(&mut gateway.dry, self.dry.then_some(true));
        set(&mut gateway.drain_timeout_s, self.drain_timeout);
        if let Some(endpoints) = some(std::mem::take(&mut self.etcd)) {
            gateway.embedded = None;
            gateway.etcd.get_or_insert_with(EtcdFile::default).endpoints = endpoints;
        }
        if let Some(address) = self.embedded.take() {
            gateway.etcd = None;
            gateway.embedded = Some(EmbeddedFile { address });
        }
        if let Some(ids) = some(std::mem::take(&mut self.ids)) {
            gateway.id_count = None;
            gateway.ids = Some(ids.into_iter().map(RingId).collect());
        }
        if let Some(count) = self.id_count {
            gateway.ids = None;
            gateway.id_count = Some(count);
        }
        Ok(())
    }

    /// The networks that the flags name. If only one of the two limits is given, the other has
    /// its default.
    fn ranges(&mut self) -> Result<Option<VniRanges>, ConfigError> {
        if self.min_vni.is_none() && self.max_vni.is_none() {
            return Ok(self.networks.take());
        }
        let first = self.min_vni.map_or(1, u32::from);
        let last = self.max_vni.map_or(100, u32::from);
        let range = format!("{first}-{last}");
        range.parse().map(Some).map_err(|error: ParseVniError| ConfigError::Value {
            key: "--min-vni and --max-vni".to_owned(),
            value: range,
            reason: error.to_string(),
        })
    }
}

fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;

    use super::*;
    use crate::config::{FabricConfig, GatewayConfig, Ids, StoreConfig};

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        args: AgentArgs,
    }

    fn parse(args: &[&str]) -> AgentArgs {
        let args = ["agent"].iter().chain(args).copied();
        Only::try_parse_from(args).map(|only| only.args).unwrap_or_else(|e| panic!("{e}"))
    }

    fn load(file: &str, args: &[&str]) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("agent.toml");
        std::fs::write(&path, file).expect("writes");
        Config::load(Some(&path), |file| parse(args).apply(file))
    }

    fn gateway(config: Config) -> GatewayConfig {
        config.gateway.expect("enabled")
    }

    #[test]
    fn a_first_gateway_needs_no_file() {
        let args = ["--name=gw1", "--networks=1-100", "--etcd=http://localhost:2379"];
        let config = Config::load(None, |file| parse(&args).apply(file)).expect("complete");
        assert_eq!(config.name.as_str(), "gw1");
        assert!(config.mesh.is_none());
        assert_eq!(gateway(config).networks.to_string(), "1-100");
    }

    #[test]
    fn the_predecessors_options_have_flags() {
        let args = [
            "--name=gw1",
            "--max-vni=7",
            "--mock",
            "--ids=1,18446744073709551615",
            "--debug",
            "--etcd=http://localhost:2379",
        ];
        let config = Config::load(None, |file| parse(&args).apply(file)).expect("complete");
        assert_eq!(config.log, "info,gotatun=warn,selvedge=debug");
        let gateway = gateway(config);
        assert_eq!(gateway.networks.to_string(), "1-7");
        assert_eq!(gateway.fabric, FabricConfig::Dry);
        assert_eq!(gateway.ids, Ids::Given(vec![1, u64::MAX]));
    }

    #[test]
    fn flags_override_the_file() {
        let file = "name = 'a'\n[gateway]\nnetworks = '1-3'\nids = [4]\ndrain_timeout_s = 9\n\
                    [gateway.embedded]\naddress = 'unix:/s'";
        let args = ["--name=b", "--etcd=http://h:1", "--id-count=5", "--drain-timeout=8"];
        let config = load(file, &args).expect("complete");
        assert_eq!(config.name.as_str(), "b");
        let gateway = gateway(config);
        assert_eq!(gateway.networks.to_string(), "1-3");
        assert_eq!(gateway.ids, Ids::Derived(5));
        assert_eq!(gateway.drain_timeout, Duration::from_secs(8));
        assert!(
            matches!(gateway.store, StoreConfig::Etcd(etcd) if etcd.endpoints == ["http://h:1"])
        );
    }

    #[test]
    fn dry_means_both_planes() {
        let file = "name = 'a'\n[mesh]\n[gateway]\nnetworks = '1'";
        let config = load(file, &["--dry", "--embedded=unix:/s"]).expect("complete");
        assert_eq!(config.mesh.as_ref().map(|mesh| mesh.wireguard), Some(WireGuard::Dry));
        assert_eq!(gateway(config).fabric, FabricConfig::Dry);
    }

    #[test]
    fn an_agent_without_a_plane_is_refused() {
        let error = load("", &["--name=a"]).expect_err("nothing to do").to_string();
        assert!(error.contains("neither plane is enabled"), "{error}");
        let error = load("", &["--min-vni=200"]).expect_err("empty").to_string();
        let expected = "--min-vni and --max-vni = 200-100: the range 200-100 is empty: its end \
                        comes before its start";
        assert_eq!(error, expected);
    }

    #[test]
    fn wrong_flags_are_refused_with_reasons() {
        let refused = |arg: &str| match Only::try_parse_from(["agent", arg]) {
            Ok(_) => panic!("{arg} was accepted"),
            Err(error) => error.to_string(),
        };
        assert!(
            refused("--networks=0-5").contains("VNI 0 is out of range: expected 1 to 16777215")
        );
        assert!(refused("--name=a/b").contains("is not a node name"));
        assert!(refused("--fabric=bgp").contains("possible values: frr, flood"));
        assert!(refused("--netwroks=1").contains("similar argument exists: '--networks'"));
    }
}
