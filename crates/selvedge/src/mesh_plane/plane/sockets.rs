//! Which interface and which port a mesh gets that is taken up again.

use std::collections::BTreeMap;

use selvedge_model::MeshId;
use tracing::{info, warn};

use super::super::files::MeshFile;
use super::super::names;
use super::super::setup::Socket;
use crate::config::OptionsByMesh;

/// What each of the meshes had, and what those have that were asked for so far.
#[derive(Debug)]
pub(super) struct Sockets(BTreeMap<MeshId, Socket>);

impl Sockets {
    /// As they were when the agent stopped.
    pub(super) fn of(stored: &[(MeshId, MeshFile)]) -> Self {
        let kept = |file: &MeshFile| Socket { interface: file.interface.clone(), port: file.port };
        Self(stored.iter().map(|(mesh, file)| (*mesh, kept(file))).collect())
    }

    /// What a mesh gets: what it had, unless something else is configured by now.
    pub(super) fn choose(&mut self, options: &OptionsByMesh, mesh: MeshId, name: &str) -> Socket {
        let kept = self.0.get(&mesh).cloned();
        let kept = kept.unwrap_or_else(|| Socket { interface: String::new(), port: 0 });
        let port = self.port(options, mesh, name, kept.port);
        let interface = self.interface(options, mesh, name, &kept.interface);
        if port != kept.port || interface != kept.interface {
            info!(mesh = name, port, interface, "another port or interface is configured");
        }
        let socket = Socket { interface, port };
        self.0.insert(mesh, socket.clone());
        socket
    }

    fn port(&self, options: &OptionsByMesh, mesh: MeshId, name: &str, kept: u16) -> u16 {
        if let Some(port) = options.port(mesh, name) {
            return port;
        }
        let Some(port) = options.base.port.filter(|port| *port != kept) else { return kept };
        if self.0.len() == 1 {
            return port;
        }
        // One of several meshes has it: nothing is to change.
        if !self.0.values().any(|socket| socket.port == port) {
            let section = format!("mesh.named.{name}");
            warn!(port, kept, section, "which mesh is to have the port? say so by `port` there");
        }
        kept
    }

    fn interface(&self, options: &OptionsByMesh, mesh: MeshId, name: &str, kept: &str) -> String {
        let pattern = &options.of(mesh, name).interface;
        // What is made after a pattern keeps its name, which may be numbered.
        if pattern.contains("{name}") {
            return kept.to_owned();
        }
        let others = self.0.iter().filter(|(other, _)| **other != mesh);
        let taken = others.map(|(_, socket)| socket.interface.clone()).collect();
        names::interface(pattern, name, &taken)
    }
}

#[cfg(test)]
mod tests {
    use selvedge_host::wireguard::PrivateKey;

    use super::*;
    use crate::config::MeshOptions;

    const ONE: MeshId = MeshId([1; 20]);
    const TWO: MeshId = MeshId([2; 20]);

    fn stored(meshes: &[(MeshId, u16)]) -> Sockets {
        let file = |port| MeshFile {
            key: PrivateKey::from_bytes([1; 32]),
            port,
            interface: "sv-campus2".to_owned(),
            core: Vec::new(),
        };
        Sockets::of(&meshes.iter().map(|(mesh, port)| (*mesh, file(*port))).collect::<Vec<_>>())
    }

    fn options(base: Option<u16>, named: Option<u16>) -> OptionsByMesh {
        let of = |port| MeshOptions { port, ..MeshOptions::default() };
        OptionsByMesh { base: of(base), named: [("campus".to_owned(), of(named))].into() }
    }

    #[test]
    fn a_port_that_is_configured_anew_is_taken() {
        let port = |meshes: &[(MeshId, u16)], base, named| {
            stored(meshes).choose(&options(base, named), ONE, "campus").port
        };
        let one = [(ONE, 4000)];
        assert_eq!(port(&one, None, None), 4000);
        assert_eq!(port(&one, Some(51820), None), 51820);
        assert_eq!(port(&one, Some(51820), Some(51821)), 51821);
        let two = [(ONE, 4000), (TWO, 51820)];
        assert_eq!(port(&two, Some(51820), None), 4000, "the other one has it");
        assert_eq!(port(&two, Some(51822), None), 4000, "nobody knows which one is meant");
    }

    #[test]
    fn an_interface_keeps_its_number_until_another_name_is_configured() {
        let mut options = options(None, None);
        let interface =
            |options: &OptionsByMesh| stored(&[(ONE, 1)]).choose(options, ONE, "campus").interface;
        assert_eq!(interface(&options), "sv-campus2");
        options.named.get_mut("campus").expect("there").interface = "lab0".to_owned();
        assert_eq!(interface(&options), "lab0");
    }
}
