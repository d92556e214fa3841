//! The section `[mesh.dns]`: its presence has the agent answer questions for names.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::check::{Result, value};

/// The address on which programs of this host ask: one of the loopback network that nobody else
/// uses by default.
const LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 153)), 53);

/// The section `[mesh.dns]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "described in `DnsConfig`")]
pub struct DnsFile {
    pub domain: Option<String>,
    pub listen: Option<SocketAddr>,
    pub smeg_names: Option<bool>,
    pub resolved: Option<bool>,
}

/// How names are answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsConfig {
    /// The domain of all meshes.
    pub domain: String,
    /// The loopback address on which programs of this host ask; its port is that of the overlay
    /// addresses, too.
    pub listen: SocketAddr,
    /// Whether to answer to the predecessor's names, `<mesh id>.<alias>.smeg`.
    pub smeg_names: bool,
    /// Whether systemd-resolved, if it runs, is told to ask here.
    pub resolved: bool,
}

pub(super) fn dns(file: &DnsFile) -> Result<DnsConfig> {
    let domain = file.domain.clone().unwrap_or_else(|| selvedge_dns::DOMAIN.to_owned());
    if selvedge_dns::check_domain(&domain).is_err() {
        let reason = "expected a domain of letters, digits and hyphens, such as mesh.internal";
        return Err(value("mesh.dns.domain", format!("{domain:?}"), reason));
    }
    let listen = file.listen.unwrap_or(LISTEN);
    if !listen.ip().is_loopback() {
        let reason = "expected a loopback address, such as 127.0.0.153:53; members ask at the \
                      overlay addresses";
        return Err(value("mesh.dns.listen", listen, reason));
    }
    let on = |flag: Option<bool>, default| flag.unwrap_or(default);
    let (smeg_names, resolved) = (on(file.smeg_names, false), on(file.resolved, true));
    Ok(DnsConfig { domain: domain.to_lowercase(), listen, smeg_names, resolved })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<DnsConfig> {
        dns(&toml::from_str(text).expect("a section"))
    }

    #[test]
    fn an_empty_section_is_enough() {
        let config = load("").expect("complete");
        assert_eq!(config.domain, "mesh.internal");
        assert_eq!(config.listen.to_string(), "127.0.0.153:53");
        assert!(!config.smeg_names && config.resolved);
        let config =
            load("domain = 'Lan'\nsmeg_names = true\nresolved = false\nlisten = '[::1]:5353'");
        let listen = "[::1]:5353".parse().expect("an address");
        let expected =
            DnsConfig { domain: "lan".to_owned(), listen, smeg_names: true, resolved: false };
        assert_eq!(config.ok(), Some(expected));
    }

    #[test]
    fn what_would_tell_the_world_is_refused() {
        let refused = |text| load(text).expect_err("refused").to_string();
        assert!(refused("listen = '0.0.0.0:53'").starts_with("mesh.dns.listen = 0.0.0.0:53: exp"));
        assert!(refused("domain = 'a b'").starts_with("mesh.dns.domain = \"a b\": expected"));
    }
}
