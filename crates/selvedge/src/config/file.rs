use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use selvedge_gateway::NodeRole;
use selvedge_model::{NodeName, Prefix, Vni, VniRanges};
use serde::{Deserialize, Serialize};

use super::{
    ConfigError, DnsFile, HealthFile, HooksFile, Isolation, MeshHooksFile, OptionsFile, Place,
    ProbeFile, RaFile, VxlanFile,
};

/// What may be written in a configuration file. Everything is optional here.
///
/// It serialises too: whoever starts agents (the demo, the lab) writes their files with it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "the keys are described where they end up: in `Config`")]
pub struct File {
    pub name: Option<NodeName>,
    pub state: Option<PathBuf>,
    pub socket: Option<PathBuf>,
    pub socket_group: Option<String>,
    pub log: Option<String>,
    pub mesh: Option<MeshFile>,
    pub gateway: Option<GatewayFile>,
    pub vxlan: Option<VxlanFile>,
}

/// The section `[mesh]`: its presence enables the mesh plane.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "described in `MeshConfig`")]
pub struct MeshFile {
    pub listen: Option<SocketAddr>,
    pub endpoints: Option<Vec<Place>>,
    pub bootstrap: Option<Vec<String>>,
    pub record: Option<PathBuf>,
    pub wireguard: Option<WireGuard>,
    pub port: Option<u16>,
    pub interface: Option<String>,
    pub mtu: Option<u16>,
    pub dns: Option<DnsFile>,
    pub hooks: Option<MeshHooksFile>,
    pub options: Option<OptionsFile>,
    pub named: Option<BTreeMap<String, OptionsFile>>,
}

/// The section `[gateway]`: its presence enables the gateway plane.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "described in `GatewayConfig`")]
pub struct GatewayFile {
    pub role: Option<NodeRole>,
    pub networks: Option<VniRanges>,
    pub fabric: Option<FabricName>,
    pub dry: Option<bool>,
    pub ids: Option<Vec<RingId>>,
    pub id_count: Option<usize>,
    pub lease_s: Option<u64>,
    pub budget: Option<usize>,
    pub settle_ms: Option<u64>,
    pub announce_s: Option<u64>,
    pub hold_down_s: Option<u64>,
    pub drain_timeout_s: Option<u64>,
    pub isolated: Option<Isolation>,
    pub bridge: Option<String>,
    pub vxlan: Option<String>,
    pub etcd: Option<EtcdFile>,
    pub embedded: Option<EmbeddedFile>,
    pub flood: Option<FloodFile>,
    pub frr: Option<FrrFile>,
    pub probe: Option<ProbeFile>,
    pub health: Option<HealthFile>,
    pub ra: Option<RaFile>,
    pub hooks: Option<HooksFile>,
    pub network: Vec<NetworkFile>,
}

/// The section `[gateway.etcd]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "described in `EtcdConfig`")]
pub struct EtcdFile {
    pub endpoints: Vec<String>,
    pub ca: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub user: Option<String>,
    pub password_file: Option<PathBuf>,
}

/// The section `[gateway.embedded]`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "described in `StoreAddress`")]
pub struct EmbeddedFile {
    pub address: String,
}

/// The section `[gateway.flood]`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "described in `FabricConfig`")]
pub struct FloodFile {
    pub uplink: String,
    pub endpoints: Option<Vec<IpAddr>>,
}

/// The section `[gateway.frr]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "described in `FabricConfig`")]
pub struct FrrFile {
    pub vty_dir: Option<PathBuf>,
    pub pathspace: Option<String>,
    pub asn: Option<u32>,
}

/// A section `[[gateway.network]]`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "described in `NetworkConfig`")]
pub struct NetworkFile {
    pub vni: Vni,
    #[serde(default)]
    pub addresses: Vec<Prefix>,
    #[serde(default)]
    pub next_hops: Vec<IpAddr>,
    #[serde(default)]
    pub ra: Option<RaFile>,
}

/// The names of the fabrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum FabricName {
    /// BGP EVPN by FRRouting
    Frr,
    /// Static flooding lists
    Flood,
}

/// Who handles the packets of a mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum WireGuard {
    /// The kernel if it can, or else the agent
    #[default]
    Auto,
    /// WireGuard in the kernel, or not at all
    Kernel,
    /// WireGuard in the agent
    Userspace,
    /// Nobody: the host is not touched
    Dry,
}

/// A place on the ring. TOML's integers end at 2^63, so greater ones are written as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "Number", into = "Number")]
pub struct RingId(pub u64);

#[derive(Deserialize, Serialize)]
#[serde(
    untagged,
    expecting = "expected a number from 0 to 18446744073709551615, as text if it exceeds 9223372036854775807"
)]
enum Number {
    Small(u64),
    Text(String),
}

impl TryFrom<Number> for RingId {
    type Error = String;

    fn try_from(number: Number) -> Result<Self, String> {
        match number {
            Number::Small(number) => Ok(Self(number)),
            Number::Text(text) => text.parse().map(Self).map_err(|_| {
                format!("{text:?} is not a ring id: expected a number from 0 to {}", u64::MAX)
            }),
        }
    }
}

impl From<RingId> for Number {
    fn from(id: RingId) -> Self {
        match i64::try_from(id.0) {
            Ok(_) => Self::Small(id.0),
            Err(_) => Self::Text(id.0.to_string()),
        }
    }
}

impl File {
    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read, is no TOML, or holds what no configuration holds.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::Read { path: path.to_owned(), error })?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Reads a text; errors name `origin` as the place that it came from.
    ///
    /// # Errors
    /// If it is no TOML, or holds what no configuration holds.
    pub fn parse(text: &str, origin: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| {
            let mut message = error.to_string().trim_end().to_owned();
            if let Some(meant) = meant(error.message()) {
                message.push_str(&format!("\ndid you mean `{meant}`?"));
            }
            ConfigError::Syntax { origin: origin.to_owned(), message }
        })
    }

    /// The file as text.
    ///
    /// # Errors
    /// If a path in it is no UTF-8.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }
}

/// What was probably meant by an unknown key or value. serde's message quotes it in backticks
/// first and then all that are known.
fn meant(message: &str) -> Option<&str> {
    if !message.starts_with("unknown ") {
        return None;
    }
    let mut quoted = message.split('`').skip(1).step_by(2);
    let unknown = quoted.next()?;
    let (distance, known) = quoted.map(|known| (distance(unknown, known), known)).min()?;
    (distance <= 1 + unknown.len() / 4).then_some(known)
}

/// The number of single-byte insertions, deletions and substitutions between two texts
/// (Levenshtein 1966).
fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in to.bytes().enumerate() {
            let substituted = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Command;

    fn refused(text: &str) -> String {
        File::parse(text, "agent.toml").expect_err("refused").to_string()
    }

    #[test]
    fn unknown_keys_are_named_with_what_was_meant() {
        assert_eq!(
            refused("[gateway]\nnetwroks = \"1-3\"\n"),
            "agent.toml: TOML parse error at line 2, column 1\n  |\n2 | netwroks = \"1-3\"\n  | \
             ^^^^^^^^\nunknown field `netwroks`, expected one of `role`, `networks`, `fabric`, \
             `dry`, `ids`, `id_count`, `lease_s`, `budget`, `settle_ms`, `announce_s`, \
             `hold_down_s`, `drain_timeout_s`, `isolated`, `bridge`, `vxlan`, `etcd`, `embedded`, \
             `flood`, `frr`, `probe`, `health`, `ra`, `hooks`, `network`\n\
             did you mean `networks`?"
        );
        let far = refused("colour = 1");
        assert!(far.contains("unknown field `colour`") && !far.contains("did you mean"), "{far}");
        assert!(refused("[mesh]\nwireguard = \"usrspace\"").ends_with("mean `userspace`?"));
    }

    #[test]
    fn values_of_the_wrong_kind_are_shown_in_their_line() {
        assert_eq!(
            refused("[gateway]\nnetworks = \"9-1\""),
            "agent.toml: TOML parse error at line 2, column 12\n  |\n2 | networks = \"9-1\"\n  | \
             \u{20}          ^^^^^\nthe range 9-1 is empty: its end comes before its start"
        );
        assert!(refused("name = \"a/b\"").contains("\"a/b\" is not a node name"));
        assert!(refused("[mesh]\nlisten = \"7654\"").contains("invalid socket address"));
        assert!(refused("[gateway]\nids = [-1]").contains("expected a number from 0 to"));
        assert!(refused("name = ").contains("line 1"));
    }

    #[test]
    fn what_is_written_is_read_again() {
        let file = File {
            name: Some("gw1".parse().expect("valid")),
            gateway: Some(GatewayFile {
                ids: Some(vec![RingId(5), RingId(u64::MAX)]),
                network: vec![NetworkFile {
                    vni: Vni::try_from(7).expect("valid"),
                    addresses: vec!["10.0.7.1/24".parse().expect("valid")],
                    next_hops: vec![],
                    ra: Some(RaFile { send: Some(false), ..RaFile::default() }),
                }],
                role: Some(NodeRole::Witness),
                isolated: Some(Isolation::Serve),
                hooks: Some(HooksFile {
                    take_over: Some(Command::Program("/x".to_owned())),
                    ..HooksFile::default()
                }),
                ..GatewayFile::default()
            }),
            ..File::default()
        };
        let text = file.to_toml().expect("serialises");
        assert!(text.contains("\"18446744073709551615\""), "{text}");
        assert_eq!(File::parse(&text, "x").expect("parses"), file);
    }

    const PAGE: &str =
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md"));

    /// The keys of a section, as the message about an unknown one names them.
    fn keys_of(section: &str) -> Vec<String> {
        let message = refused(&format!("{section}\nx-y-z = 1"));
        let (_, expected) = message.split_once("expected").expect("it names what is known");
        expected.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    #[test]
    fn every_key_is_documented() {
        let sections =
            ["etcd", "embedded", "flood", "frr", "probe", "health", "ra", "hooks", "network"];
        for section in sections {
            let header = match section {
                "network" => "[[gateway.network]]".to_owned(),
                section => format!("[gateway.{section}]"),
            };
            let (_, text) = PAGE.split_once(&format!("`{header}`")).expect("a section");
            let text = text.split("\n##").next().expect("a first part");
            for key in keys_of(&header) {
                assert!(text.contains(&format!("`{key}`")), "{header} {key}");
            }
        }
        let (_, text) = PAGE.split_once("`[vxlan]`: ").expect("a section");
        for key in keys_of("[vxlan]") {
            assert!(text.contains(&format!("| `{key}` |")), "[vxlan] {key}");
        }
        let (_, text) = PAGE.split_once("`[mesh.options]` is").expect("a section");
        let text = text.split("\n##").next().expect("a first part");
        for key in keys_of("[mesh.options]") {
            assert!(text.contains(&format!("| `{key}` |")), "[mesh.options] {key}");
        }
        for key in keys_of("[gateway]").iter().filter(|key| !sections.contains(&key.as_str())) {
            assert!(PAGE.contains(&format!("| `{key}` |")), "[gateway] {key}");
        }
    }

    #[test]
    fn the_examples_of_the_documentation_are_valid() {
        let examples = PAGE.split("```toml\n").skip(1).map(|rest| rest.split("```").next());
        let examples: Vec<&str> = examples.flatten().collect();
        assert_eq!(examples.len(), 3);
        for example in examples {
            File::parse(example, "docs/configuration.md").unwrap_or_else(|error| panic!("{error}"));
        }
    }

    #[test]
    fn distances_are_those_of_levenshtein() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", ""), 3);
        assert_eq!(distance("abc", "abc"), 0);
    }
}
