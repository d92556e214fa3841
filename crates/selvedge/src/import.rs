//! Configurations of the mesh daemon that came before, turned into ours.

use std::net::{IpAddr, SocketAddr};

use selvedge_api::mesh::Role;
use selvedge_topology::everywhere;
use serde_json::{Map, Value};

use crate::config::{Command, File, MeshFile, MeshHooksFile, OptionsFile, WireGuard};

/// The longest file that is read, in bytes.
pub(crate) const MAX_LENGTH: u64 = 1 << 20;

/// What a foreign configuration became.
#[derive(Debug)]
pub(crate) struct Imported {
    /// Ours.
    pub(crate) file: File,
    /// What has no counterpart, or asks for something to be done, in the order of the keys.
    pub(crate) notes: Vec<Note>,
}

/// A remark on one key.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Note {
    /// The key, with its section.
    pub(crate) key: String,
    /// What about it.
    pub(crate) text: String,
}

/// Why a file cannot be imported. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImportError {
    #[error("it is no YAML: {0}")]
    Yaml(String),
    #[error("expected keys and values at the top, such as `gRPCPort: 4000`")]
    NoKeys,
    #[error("{key}: {value} is not what belongs there: expected {expected}")]
    Value { key: String, value: String, expected: &'static str },
}

/// Turns a configuration of `smegmesh`, of any of its versions, into ours.
///
/// # Errors
/// If the text is no YAML, or a key that matters has a value that it cannot have.
pub(crate) fn smegmesh(text: &str) -> Result<Imported, ImportError> {
    let value: Value =
        serde_saphyr::from_str(text).map_err(|error| ImportError::Yaml(error.to_string()))?;
    let Value::Object(keys) = value else { return Err(ImportError::NoKeys) };
    let mesh = Some(MeshFile::default());
    let mut import = Import { file: File { mesh, ..File::default() }, notes: Vec::new() };
    import.section("", keys)?;
    Ok(Imported { file: import.file, notes: import.notes })
}

struct Import {
    file: File,
    notes: Vec<Note>,
}

/// A key with its section, and its value.
struct Entry {
    key: String,
    value: Value,
}

const GOSSIP: &str = "left out: changes travel over trees that need no tuning";
const CERTIFICATE: &str = "left out: a node makes its own identity when it starts first, and is \
                           admitted by an invite (`selvedge mesh invite`)";

const BRIDGE: &str = "became mesh.options.bridge, which connects the meshes of this node; unless it \
                      founded a mesh, it needs an invite that allows their prefixes (`selvedge mesh \
                      invite --allow`)";
const EXIT: &str = "became mesh.options.advertise; unless this node founded the mesh, it needs an \
                    invite that allows both prefixes (`selvedge mesh invite --allow`), and \
                    mesh.options.masquerade where nobody outside knows a way back";

impl Import {
    fn section(&mut self, section: &str, keys: Map<String, Value>) -> Result<(), ImportError> {
        for (key, value) in keys {
            let entry = Entry { key: format!("{section}{key}"), value };
            // Nothing was set.
            if !entry.value.is_null() {
                self.key(&key, entry)?;
            }
        }
        Ok(())
    }

    fn key(&mut self, key: &str, entry: Entry) -> Result<(), ImportError> {
        match key {
            "baseConfiguration" => match entry.value.as_object() {
                Some(keys) => self.section("baseConfiguration.", keys.clone())?,
                None => return Err(entry.wrong("keys and values")),
            },
            "certificatePath" | "privateKeyPath" | "caCertificatePath" => {
                self.note(entry, CERTIFICATE);
            }
            "skipCertVerification" if entry.flag()? => {
                self.note(entry, "left out: who a node talks to is checked always");
            }
            "gRPCPort" => {
                let listen = SocketAddr::from(([0_u16; 8], entry.port()?));
                self.mesh().listen = Some(listen);
            }
            "stubWg" if entry.flag()? => self.mesh().wireguard = Some(WireGuard::Dry),
            "logLevel" => self.log(entry)?,
            "profile" if entry.flag()? => {
                self.note(entry, "left out: `selvedge_` metrics are on the socket of the agent");
            }
            "timeout" | "syncRate" | "syncInterval" | "pullInterval" | "heartbeatInterval"
            | "heartBeatInterval" | "heartBeat" | "heartBeatTime" | "keepAliveTime"
            | "pruneTime" | "deadTime" | "clusterSize" | "interClusterChance" | "branch"
            | "branchRate" | "infectionCount" => self.note(entry, GOSSIP),
            "publicEndpoint" => self.endpoint(entry)?,
            "ipDiscovery" => self.discovery(entry)?,
            "role" => self.role(entry)?,
            // Without any, clients would not keep the way through their NAT open.
            "keepAliveWg" if entry.value == 0 => {}
            "keepAliveWg" => self.options().keepalive_s = Some(entry.seconds()?),
            "advertiseRoute" | "advertiseRoutes" if entry.flag()? => {
                self.options().bridge = Some(true);
                self.note(entry, BRIDGE);
            }
            "advertiseDefaults" if entry.flag()? => {
                self.options().advertise = Some(everywhere().into());
                self.note(entry, EXIT);
            }
            "preUp" | "postUp" | "preDown" | "postDown" => self.hook(key, &entry)?,
            // Flags that are off.
            "skipCertVerification"
            | "stubWg"
            | "profile"
            | "advertiseRoute"
            | "advertiseRoutes"
            | "advertiseDefaults" => {}
            _ => self.note(entry, "left out: nothing is known of this key"),
        }
        Ok(())
    }

    fn mesh(&mut self) -> &mut MeshFile {
        self.file.mesh.get_or_insert_default()
    }

    fn options(&mut self) -> &mut OptionsFile {
        self.mesh().options.get_or_insert_default()
    }

    fn note(&mut self, entry: Entry, text: &str) {
        self.notes.push(Note { key: entry.key, text: text.to_owned() });
    }

    fn log(&mut self, entry: Entry) -> Result<(), ImportError> {
        let level = match entry.text()?.to_lowercase().as_str() {
            "debug" | "trace" => "info,gotatun=warn,selvedge=debug",
            "info" => return Ok(()),
            "warning" | "warn" => "warn",
            "error" | "fatal" | "panic" => "error",
            _ => return Err(entry.wrong("info, warning, error or debug")),
        };
        self.file.log = Some(level.to_owned());
        Ok(())
    }

    /// An address, with a port or not; or a name.
    fn endpoint(&mut self, entry: Entry) -> Result<(), ImportError> {
        let text = entry.text()?;
        if text.is_empty() {
            return Ok(());
        }
        let address = text.parse::<SocketAddr>().map(|socket| (socket.ip(), Some(socket.port())));
        let bare = text.trim_matches(['[', ']']).parse::<IpAddr>().map(|ip| (ip, None));
        match address.or(bare) {
            Ok((ip, port)) => {
                self.mesh().endpoints = Some(vec![ip.into()]);
                self.mesh().port = port;
            }
            Err(_) => self.note(
                entry,
                "left out: expected an address; write the one that the name stands for into \
                 mesh.endpoints",
            ),
        }
        Ok(())
    }

    fn discovery(&mut self, entry: Entry) -> Result<(), ImportError> {
        match entry.text()? {
            // What the agent does by itself.
            "outgoing" => {}
            "dns" | "public" => self.note(
                entry,
                "left out: no outside service is asked; if the node is behind a NAT with a port \
                 forwarded to it, write the outer address into mesh.endpoints",
            ),
            _ => return Err(entry.wrong("outgoing, dns or public")),
        }
        Ok(())
    }

    fn role(&mut self, entry: Entry) -> Result<(), ImportError> {
        match entry.text()? {
            // What an invite is for, unless it says otherwise.
            "peer" => {}
            "client" => self.options().role = Some(Role::Client),
            _ => return Err(entry.wrong("peer or client")),
        }
        Ok(())
    }

    /// Commands for a shell become one script that ends at the first that fails.
    fn hook(&mut self, key: &str, entry: &Entry) -> Result<(), ImportError> {
        let lines = entry.lines()?;
        if lines.is_empty() {
            return Ok(());
        }
        let words = ["/bin/sh", "-ec", &lines.join("\n")].map(ToOwned::to_owned).to_vec();
        let hooks: &mut MeshHooksFile = self.mesh().hooks.get_or_insert_default();
        let slot = match key {
            "preUp" => &mut hooks.pre_up,
            "postUp" => &mut hooks.post_up,
            "preDown" => &mut hooks.pre_down,
            _ => &mut hooks.post_down,
        };
        *slot = Some(Command::WithArguments(words));
        if lines.iter().any(|line| line.contains("%i")) {
            let text = "%i stands for nothing: write $SELVEDGE_INTERFACE instead";
            self.notes.push(Note { key: entry.key.clone(), text: text.to_owned() });
        }
        Ok(())
    }
}

impl Entry {
    fn wrong(self, expected: &'static str) -> ImportError {
        let value = self.value.to_string();
        ImportError::Value { key: self.key, value, expected }
    }

    fn refused(&self, expected: &'static str) -> ImportError {
        Self { key: self.key.clone(), value: self.value.clone() }.wrong(expected)
    }

    fn text(&self) -> Result<&str, ImportError> {
        self.value.as_str().ok_or_else(|| self.refused("a text"))
    }

    fn flag(&self) -> Result<bool, ImportError> {
        self.value.as_bool().ok_or_else(|| self.refused("true or false"))
    }

    /// A port, which some versions wrote as a number and some as a text.
    fn port(&self) -> Result<u16, ImportError> {
        let written = self.value.as_str().map(ToOwned::to_owned);
        let number = written.unwrap_or_else(|| self.value.to_string()).parse::<u16>().ok();
        number.filter(|port| *port > 0).ok_or_else(|| self.refused("a port from 1 to 65535"))
    }

    fn seconds(&self) -> Result<u16, ImportError> {
        let number = self.value.as_u64().and_then(|seconds| u16::try_from(seconds).ok());
        number.ok_or_else(|| self.refused("seconds, at most 65535"))
    }

    fn lines(&self) -> Result<Vec<&str>, ImportError> {
        let list = self.value.as_array().ok_or_else(|| self.refused("a list of commands"))?;
        list.iter().map(|l| l.as_str().ok_or_else(|| self.refused("a list of commands"))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example that came with the predecessor.
    const EXAMPLE: &str = r#"
# Paths to the certificates
certificatePath: "./cert/cert.pem"
privateKeyPath: "./cert/priv.pem"
caCertificatePath: "./cert/cacert.pem"
skipCertVerification: true
timeout: 5
gRPCPort: 4000
profile: false
stubWg: false
heartbeatInterval: 60
branch: 3
pullInterval: 20
infectionCount: 3
interClusterChance: 0.15
syncInterval: 2
clusterSize: 64
logLevel: "info"
baseConfiguration:
  ipDiscovery: "outgoing"
  role: "peer"
  advertiseRoute: true
  advertiseDefaults: true
"#;

    fn import(text: &str) -> (String, Vec<String>) {
        let imported = smegmesh(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let toml = imported.file.to_toml().expect("TOML");
        // What is written can be read by the agent.
        assert_eq!(File::parse(&toml, "imported").expect("ours"), imported.file);
        (toml, imported.notes.into_iter().map(|note| note.key).collect())
    }

    #[test]
    fn the_predecessors_example_is_taken_over() {
        let (toml, notes) = import(EXAMPLE);
        let expected = "[mesh]\nlisten = \"[::]:4000\"\n\n[mesh.options]\nbridge = true\n\
                        advertise = [\"0.0.0.0/0\", \"::/0\"]\n";
        assert_eq!(toml, expected);
        let mut expected = vec![
            "baseConfiguration.advertiseDefaults",
            "baseConfiguration.advertiseRoute",
            "branch",
            "caCertificatePath",
            "certificatePath",
            "clusterSize",
            "heartbeatInterval",
            "infectionCount",
            "interClusterChance",
            "privateKeyPath",
            "pullInterval",
            "skipCertVerification",
            "syncInterval",
            "timeout",
        ];
        expected.sort_unstable();
        let mut notes = notes;
        notes.sort_unstable();
        assert_eq!(notes, expected);
    }

    #[test]
    fn older_versions_had_everything_at_the_top() {
        let text = "gRPCPort: \"21906\"\nadvertiseRoutes: true\nsyncRate: 1\nbranchRate: 3\n\
                    heartBeatTime: 10\npruneTime: 20\nrole: client\npublicEndpoint: 192.0.2.7";
        let (toml, notes) = import(text);
        let expected = "[mesh]\nlisten = \"[::]:21906\"\nendpoints = [\"192.0.2.7\"]\n\n\
                        [mesh.options]\nrole = \"client\"\nbridge = true\n";
        assert_eq!(toml, expected);
        assert!(notes.contains(&"advertiseRoutes".to_owned()), "what its invite has to allow");
        assert!(!notes.contains(&"role".to_owned()), "nothing is left to do");
    }

    #[test]
    fn keepalives_are_taken_over() {
        let of = |seconds| import(&format!("keepAliveWg: {seconds}"));
        let expected = "[mesh.options]\nkeepalive_s = 15\n";
        assert_eq!(of(15), (expected.to_owned(), vec![]));
        assert_eq!(of(0).0, "[mesh]\n", "ours, which NATs need");
        let refused = smegmesh("keepAliveWg: 65536").expect_err("too long").to_string();
        assert!(refused.contains("at most 65535"), "{refused}");
    }

    #[test]
    fn hooks_endpoints_and_levels_have_counterparts() {
        let text = r#"
logLevel: debug
stubWg: true
baseConfiguration:
  publicEndpoint: "[2001:db8::1]:51820"
  ipDiscovery: public
  preUp: []
  postUp: ["ip route add 10.0.0.0/8 dev %i", "logger 'up: \"yes\"'"]
  postDown: ["logger down"]
"#;
        let (toml, notes) = import(text);
        let expected = r#"log = "info,gotatun=warn,selvedge=debug"

[mesh]
endpoints = ["2001:db8::1"]
wireguard = "dry"
port = 51820

[mesh.hooks]
post_up = ["/bin/sh", "-ec", """
ip route add 10.0.0.0/8 dev %i
logger 'up: "yes"'"""]
post_down = ["/bin/sh", "-ec", "logger down"]
"#;
        assert_eq!(toml, expected);
        assert_eq!(notes, ["baseConfiguration.ipDiscovery", "baseConfiguration.postUp"]);
    }

    #[test]
    fn what_is_not_known_is_said() {
        let (toml, notes) = import(
            "colour: red\nnothing:\nbaseConfiguration:\n  publicEndpoint: vpn.example.net\n",
        );
        assert_eq!(toml, "[mesh]\n");
        assert_eq!(notes, ["baseConfiguration.publicEndpoint", "colour"]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let refused = |text: &str| smegmesh(text).expect_err("refused").to_string();
        assert_eq!(
            refused("gRPCPort: 0"),
            "gRPCPort: 0 is not what belongs there: expected a port from 1 to 65535"
        );
        assert!(
            refused("baseConfiguration:\n  role: king").starts_with("baseConfiguration.role: ")
        );
        assert!(refused("stubWg: maybe").contains("expected true or false"));
        assert!(refused("preUp: reboot").contains("expected a list of commands"));
        assert!(refused("- a\n- b").contains("expected keys and values"));
        assert!(refused("a: [").starts_with("it is no YAML: "));
        assert!(refused(&"[".repeat(100_000)).starts_with("it is no YAML: "));
    }
}
