//! What the demo needs of this machine.

use std::path::Path;

use anyhow::bail;
use selvedge_netlab::etcd::Etcd;
use selvedge_netlab::frr::Frr;

use super::engines::{Engines, Fabric, Store};

/// Names everything that is missing at once, and what would help.
pub(super) fn check(engines: Engines) -> anyhow::Result<()> {
    let namespaces = selvedge_host::netns::can_create().err().map(|error| error.to_string());
    let missing: Vec<_> = namespaces.into_iter().chain(missing(engines, Part::is_there)).collect();
    match missing.is_empty() {
        true => Ok(()),
        false => bail!("the demo cannot run here: {}", missing.join("; ")),
    }
}

/// Something that the demo runs, or makes use of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Ip,
    Bridge,
    Nft,
    Tun,
    Etcd,
    Frr,
}

impl Part {
    fn is_there(self) -> bool {
        match self {
            Self::Ip => on_path("ip"),
            Self::Bridge => on_path("bridge"),
            Self::Nft => on_path("nft"),
            Self::Tun => Path::new("/dev/net/tun").exists(),
            Self::Etcd => Etcd::is_installed(),
            Self::Frr => Frr::is_installed(),
        }
    }

    const fn lack(self) -> &'static str {
        match self {
            Self::Ip => "the tool `ip` is not installed (Debian: iproute2)",
            Self::Bridge => "the tool `bridge` is not installed (Debian: iproute2)",
            Self::Nft => "the tool `nft` is not installed (Debian: nftables)",
            Self::Tun => "there is no /dev/net/tun (modprobe tun)",
            Self::Etcd => {
                "etcd or etcdctl is not installed (Debian: etcd-server and etcd-client; or take \
                 --store embedded)"
            }
            Self::Frr => "FRRouting is not installed (Debian: frr; or take --fabric flood)",
        }
    }
}

fn needed(engines: Engines) -> Vec<Part> {
    let mut parts = vec![Part::Ip, Part::Bridge, Part::Nft, Part::Tun];
    match engines.store {
        Store::Embedded => (),
        Store::Etcd => parts.push(Part::Etcd),
    }
    match engines.fabric {
        Fabric::Flood => (),
        Fabric::Frr => parts.push(Part::Frr),
    }
    parts
}

fn missing(engines: Engines, is_there: impl Fn(Part) -> bool) -> Vec<String> {
    let absent = needed(engines).into_iter().filter(|part| !is_there(*part));
    absent.map(|part| part.lack().to_owned()).collect()
}

fn on_path(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<_> = std::env::split_paths(&path).collect();
    folders.iter().map(|folder| folder.join(tool)).any(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_asked_for_is_needed() {
        let bare = |part| !matches!(part, Part::Etcd | Part::Frr);
        assert!(missing(Engines::default(), bare).is_empty());
        let real = Engines { store: Store::Etcd, fabric: Fabric::Frr, ..Engines::default() };
        let lacks = missing(real, bare);
        assert!(matches!(&lacks[..], [etcd, frr]
            if etcd.contains("etcd-server and etcd-client") && frr.contains("Debian: frr")));
        assert!(missing(real, |_| true).is_empty());
        let frr = Engines { fabric: Fabric::Frr, ..Engines::default() };
        assert_eq!(missing(frr, |part| part != Part::Frr), [Part::Frr.lack()]);
    }
}
