//! WireGuard without a mesh: gotatun alone, or wireguard-go, both set up by the protocol of their
//! control sockets (<https://www.wireguard.com/xplatform/>).

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use gotatun::device::uapi::UapiServer;
use gotatun::tun::tun;
use gotatun::tun::tun_async_device::TunDevice;
use selvedge_host::wireguard::PrivateKey;
use selvedge_netlab::clock::wait_until;
use selvedge_netlab::{Host, Process, Recipe};

use crate::fleet::this_program;

/// The first argument with which this program is gotatun and nothing else.
pub(crate) const AS_GOTATUN: &str = "as-gotatun";

/// The MTU of the interfaces, in bytes; that of wireguard-go and of a mesh.
const MTU: u16 = 1420;

/// Who handles the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    Gotatun,
    WireguardGo,
}

/// Two hosts with a tunnel between them. It ends when the value is dropped.
pub(crate) struct Tunnel {
    processes: [(Process, PathBuf); 2],
    /// The addresses at its ends.
    pub(crate) ends: [Ipv6Addr; 2],
}

impl Engine {
    /// Whether it can be run here.
    pub(crate) fn is_installed(self) -> bool {
        let folders = std::env::var_os("PATH").unwrap_or_default();
        self == Self::Gotatun
            || std::env::split_paths(&folders).any(|folder| folder.join(WIREGUARD_GO).is_file())
    }

    fn recipe(self, host: &Host, interface: &str) -> anyhow::Result<Recipe> {
        Ok(match self {
            Self::Gotatun => {
                Recipe::new("gotatun", host, this_program()?).args([AS_GOTATUN, interface])
            }
            Self::WireguardGo => {
                Recipe::new(WIREGUARD_GO, host, WIREGUARD_GO).args(["-f", interface])
            }
        })
    }

    /// Connects two hosts, given their addresses on the underlay.
    pub(crate) fn connect(self, hosts: [(&Host, std::net::IpAddr); 2]) -> anyhow::Result<Tunnel> {
        let (port, prefix, letter) = match self {
            Self::Gotatun => (51_001, 0x6074, 'g'),
            Self::WireguardGo => (51_002, 0x7790, 'w'),
        };
        let keys = [1, 2].map(|byte| PrivateKey::from_bytes([byte; 32]));
        let ends = [1, 2].map(|last| Ipv6Addr::new(0xfd00, prefix, 0, 0, 0, 0, 0, last));
        let start = |own: usize| {
            let ((host, _), other) = (hosts[own], 1 - own);
            // Names are in one folder for all network namespaces.
            let interface = format!("lab{letter}{own}-{}", std::process::id());
            let process = self.recipe(host, &interface)?.start()?;
            let endpoint = SocketAddr::new(hosts[other].1, port);
            let peer = format!(
                "public_key={}\nendpoint={endpoint}\nallowed_ip={}/128\n",
                hex(&keys[other].public().0),
                ends[other]
            );
            let own_key = hex(keys[own].as_bytes());
            configure(
                &interface,
                &format!("set=1\nprivate_key={own_key}\nlisten_port={port}\n{peer}\n"),
            )?;
            host.ip(&format!(
                "addr add {}/64 dev {interface} nodad\nlink set {interface} mtu {MTU} up\n",
                ends[own]
            ))?;
            anyhow::Ok((process, socket(&interface)))
        };
        Ok(Tunnel { processes: [start(0)?, start(1)?], ends })
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        for (process, socket) in &mut self.processes {
            process.kill();
            // Who was killed cannot do it; if it is gone, all is well.
            let _ = std::fs::remove_file(socket);
        }
    }
}

const WIREGUARD_GO: &str = "wireguard-go";

/// Handles the packets of an interface until the process is killed.
pub(crate) fn be_gotatun(interface: Option<&OsStr>) -> anyhow::Result<()> {
    let name = interface.and_then(OsStr::to_str).context("the interface's name is missing")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (client, server) = UapiServer::new();
    let device = runtime.block_on(async {
        let mut options = tun::Configuration::default();
        options.tun_name(name).mtu(MTU);
        let tun = TunDevice::from_tun_device(tun::create_as_async(&options)?)?;
        let builder = gotatun::device::build().with_default_udp().with_ip(tun);
        anyhow::Ok(builder.with_uapi(server).build().await?)
    })?;
    let path = socket(name);
    std::fs::create_dir_all(path.parent().context("it has a folder")?)?;
    let listener = UnixListener::bind(&path)?;
    for stream in listener.incoming() {
        client.clone().wrap_read_write(stream?);
    }
    drop(device);
    Ok(())
}

fn socket(interface: &str) -> PathBuf {
    PathBuf::from(format!("/var/run/wireguard/{interface}.sock"))
}

/// Gives an interface its settings as soon as it is there.
fn configure(interface: &str, settings: &str) -> anyhow::Result<()> {
    let (path, mut stream) = (socket(interface), None);
    wait_until(&format!("a control socket of {interface}"), Duration::from_secs(20), || {
        stream = UnixStream::connect(&path).ok();
        Ok(stream.is_some())
    })?;
    let mut stream = stream.context("it was just connected")?;
    stream.write_all(settings.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    for line in BufReader::new(stream).lines() {
        match line?.split_once('=') {
            Some(("errno", "0")) => return Ok(()),
            Some(("errno", number)) => bail!("{interface} refuses its settings: errno {number}"),
            Some(_) | None => {}
        }
    }
    bail!("{interface} does not say whether it took its settings")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_written_in_hex() {
        assert_eq!(hex(&[0, 0x1f, 0xff]), "001fff");
    }
}
