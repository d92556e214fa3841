//! Telling systemd-resolved who answers for the meshes' names: settings of the WireGuard link,
//! which vanish with it. No file of the host is written, `/etc/resolv.conf` and `/etc/hosts`
//! least of all.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use selvedge_model::Prefix;

use crate::hooks::{command, perform};

/// How long each command may take.
const LIMIT: Duration = Duration::from_secs(5);

/// systemd-resolved on this host.
#[derive(Clone, Debug)]
pub(super) struct Resolved {
    /// Is there as long as it runs.
    socket: PathBuf,
    /// This process's network namespace, and the one that systemd-resolved works in.
    namespaces: [PathBuf; 2],
    program: String,
}

/// What it is to know about one link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) interface: String,
    pub(super) server: SocketAddr,
    /// The domains that are asked for there, and nowhere else.
    pub(super) domains: Vec<String>,
}

impl Default for Resolved {
    fn default() -> Self {
        let socket = "/run/systemd/resolve/io.systemd.Resolve".into();
        let namespaces = ["/proc/self/ns/net", "/proc/1/ns/net"].map(PathBuf::from);
        Self { socket, namespaces, program: "resolvectl".to_owned() }
    }
}

impl Resolved {
    /// Whether it runs, and knows the links that this process knows. In another network namespace
    /// a link of the same name or number may be a very different one; whoever may not look at the
    /// namespace of the first process is not known to share it.
    pub(super) fn runs(&self) -> bool {
        let [own, its] = self.namespaces.each_ref().map(fs::read_link);
        self.socket.exists() && matches!((own, its), (Ok(own), Ok(its)) if own == its)
    }

    /// Has this host's programs ask our server for our names, and for nothing else.
    ///
    /// # Errors
    /// Which command failed, and why.
    pub(super) async fn hook(&self, link: &Link) -> Result<(), String> {
        for words in commands(link) {
            let words: Vec<_> = std::iter::once(self.program.clone()).chain(words).collect();
            let Some(command) = command(&words, Vec::new()) else { continue };
            let failed = |problem| format!("`{}`: {problem}", words.join(" "));
            perform(command, LIMIT).await.map_err(failed)?;
        }
        Ok(())
    }
}

/// What `resolvectl` is told. A domain with `~` before it decides where is asked, and is not tried
/// as an ending of short names.
fn commands(link: &Link) -> Vec<Vec<String>> {
    let Link { interface, server, domains } = link;
    let server = match (server.port(), server.ip()) {
        (53, ip) => ip.to_string(),
        _ => server.to_string(),
    };
    let routing = domains.iter().map(|domain| format!("~{domain}"));
    let command = |words: &[&str], rest: &mut dyn Iterator<Item = String>| {
        let words = words.iter().map(|&word| word.to_owned());
        words.chain(rest).collect::<Vec<_>>()
    };
    vec![
        command(&["dns", interface, &server], &mut std::iter::empty()),
        command(&["domain", interface], &mut routing.into_iter()),
        command(&["default-route", interface, "no"], &mut std::iter::empty()),
        // There is no chain of signatures from the root to a private domain.
        command(&["dnssec", interface, "no"], &mut std::iter::empty()),
    ]
}

/// The domain of the reverse names of a prefix that ends where a label ends: else `None`, because
/// a greater domain would take in the names of others.
pub(super) fn reverse_domain(prefix: Prefix) -> Option<String> {
    let (digits, top): (Vec<String>, _) = match prefix.addr() {
        IpAddr::V6(v6) => {
            let nibbles = v6.octets().into_iter().flat_map(|byte| [byte >> 4, byte & 15]);
            (nibbles.map(|nibble| format!("{nibble:x}")).collect(), "ip6.arpa")
        }
        IpAddr::V4(v4) => (v4.octets().iter().map(u8::to_string).collect(), "in-addr.arpa"),
    };
    let bits = if prefix.addr().is_ipv6() { 4 } else { 8 };
    if !prefix.len().is_multiple_of(bits) {
        return None;
    }
    let kept = &digits[..usize::from(prefix.len() / bits)];
    let labels = kept.iter().rev().map(String::as_str).chain([top]);
    Some(labels.collect::<Vec<_>>().join("."))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn link() -> Link {
        Link {
            interface: "sv-campus".to_owned(),
            server: "[fd00::1]:53".parse().expect("an address"),
            domains: vec!["mesh.internal".to_owned(), "d.f.ip6.arpa".to_owned()],
        }
    }

    #[test]
    fn reverse_domains_are_those_of_the_prefix() {
        let domain = |text: &str| reverse_domain(text.parse().expect("a prefix"));
        let expected = "0.0.0.0.0.0.0.0.5.4.3.2.1.0.d.f.ip6.arpa";
        assert_eq!(domain("fd01:2345::/64").as_deref(), Some(expected));
        assert_eq!(domain("10.1.2.0/24").as_deref(), Some("2.1.10.in-addr.arpa"));
        assert_eq!(domain("10.1.0.0/20"), None);
    }

    #[tokio::test]
    async fn the_link_alone_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let (program, log) = (folder.path().join("resolvectl"), folder.path().join("log"));
        let script = format!("#!/bin/sh\necho \"$@\" >> {}\n", log.display());
        fs::write(&program, script).expect("writes");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).expect("ours");
        let socket = folder.path().join("socket");
        let namespaces = ["own", "its"].map(|name| folder.path().join(name));
        for namespace in &namespaces {
            symlink("net:[1]", namespace).expect("links");
        }
        let program = program.display().to_string();
        let resolved = Resolved { socket: socket.clone(), namespaces, program };
        assert!(!resolved.runs());
        fs::write(&socket, "").expect("writes");
        assert!(resolved.runs());
        resolved.hook(&link()).await.expect("told");
        let expected = "dns sv-campus fd00::1\ndomain sv-campus ~mesh.internal ~d.f.ip6.arpa\n\
                        default-route sv-campus no\ndnssec sv-campus no\n";
        assert_eq!(fs::read_to_string(&log).expect("written"), expected);
        let other = Link { server: "[fd00::1]:5353".parse().expect("an address"), ..link() };
        assert_eq!(commands(&other)[0][2], "[fd00::1]:5353");
    }

    #[test]
    fn it_is_left_alone_in_another_network_namespace() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        fs::write(path("socket"), "").expect("writes");
        symlink("net:[1]", path("own")).expect("links");
        symlink("net:[2]", path("other")).expect("links");
        let runs = |its: &str| {
            let namespaces = [path("own"), path(its)];
            Resolved { socket: path("socket"), namespaces, ..Resolved::default() }.runs()
        };
        assert!(runs("own"));
        assert!(!runs("other"));
        assert!(!runs("missing"));
    }

    #[tokio::test]
    async fn a_refusal_is_told_with_its_reason() {
        let resolved = Resolved { program: "/bin/false".to_owned(), ..Resolved::default() };
        let problem = resolved.hook(&link()).await.expect_err("refused");
        assert_eq!(problem, "`/bin/false dns sv-campus fd00::1`: exit status: 1");
    }
}
