//! The addresses at which this node tells others to reach it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use selvedge_host::events::{self, Change, Events};
use selvedge_host::netlink::{Address, Link, LinkKind, Netlink};
use selvedge_host::wireguard::DETOUR;
use tokio::sync::mpsc;
use tokio::time::sleep;

/// How many addresses are announced at most.
const MAX: usize = 8;

/// The scope of addresses that are valid everywhere (rtnetlink(7)).
const SCOPE_GLOBAL: u8 = 0;

/// The host's own addresses, the most useful first: those from which packets to the outside
/// world leave, then those of its interfaces.
pub(super) async fn discover(netlink: Option<&Netlink>) -> Vec<IpAddr> {
    // Documentation addresses (RFC 5737, RFC 3849) stand for the outside world.
    let outside = [
        SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 9)),
        SocketAddr::from((Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 9)),
    ];
    let mut found: Vec<_> = outside.into_iter().filter_map(source_towards).collect();
    if let Some(netlink) = netlink {
        match (netlink.links().await, netlink.addresses().await) {
            (Ok(links), Ok(addresses)) => found.extend(of_interfaces(&links, &addresses)),
            (Err(error), _) | (_, Err(error)) => {
                tracing::warn!(%error, "cannot list the host's addresses");
            }
        }
    }
    ordered(found)
}

/// How long addresses come and go together, and how long to wait until they are looked at again.
const TOGETHER: Duration = Duration::from_millis(200);
const PAUSE: Duration = Duration::from_secs(1);

/// Says each time that addresses of this host have changed, until nobody listens.
pub(super) async fn follow(changed: mpsc::Sender<()>) {
    let followed: Result<(), events::Error> = async {
        let mut events = Events::open()?;
        loop {
            let change = events.next().await?;
            if !matches!(change, Change::Addresses { .. } | Change::Missed) {
                continue;
            }
            sleep(TOGETHER).await;
            if changed.send(()).await.is_err() {
                return Ok(());
            }
            sleep(PAUSE).await;
        }
    }
    .await;
    if let Err(error) = followed {
        tracing::warn!(%error, "changes of this host's addresses are noticed every 30 s alone");
    }
}

/// The address from which packets of the agent to `remote` leave. Nothing is sent.
pub(super) fn source_towards(remote: SocketAddr) -> Option<IpAddr> {
    let any = if remote.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).ok()?;
    // Without the capability there is no exit that would have to be left out either.
    socket2::SockRef::from(&socket).set_mark(DETOUR.mark).unwrap_or_default();
    socket.connect(remote).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_loopback() && !ip.is_unspecified()).then_some(ip)
}

/// `preferred`, then the others, each once and not too many.
pub(super) fn preferring(
    preferred: impl IntoIterator<Item = IpAddr>,
    others: &[IpAddr],
) -> Vec<IpAddr> {
    ordered(preferred.into_iter().chain(others.iter().copied()).collect())
}

fn of_interfaces(links: &[Link], addresses: &[Address]) -> Vec<IpAddr> {
    outward(links, addresses).map(|address| address.prefix.addr()).collect()
}

/// Addresses of interfaces that are up and lead outside. Those of bridges and tunnels do not:
/// the one may carry the gateway address of an overlay network, which other hosts have too, the
/// other is an overlay itself. Nor does a single address, as a gateway's are while it serves.
pub(crate) fn outward<'a>(
    links: &[Link],
    addresses: &'a [Address],
) -> impl Iterator<Item = &'a Address> {
    let outward = |link: &&Link| {
        link.up && matches!(link.kind, LinkKind::Other | LinkKind::Veth) && link.master.is_none()
    };
    let outward: BTreeSet<u32> = links.iter().filter(outward).map(|link| link.index).collect();
    let global = move |address: &&Address| {
        let ip = address.prefix.addr();
        outward.contains(&address.index)
            && address.scope == SCOPE_GLOBAL
            && !address.is_tentative()
            && !address.prefix.is_host()
            && !ip.is_loopback()
    };
    addresses.iter().filter(global)
}

fn ordered(found: Vec<IpAddr>) -> Vec<IpAddr> {
    let mut seen = BTreeSet::new();
    found.into_iter().filter(|ip| seen.insert(*ip)).take(MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, kind: LinkKind) -> Link {
        Link {
            index,
            name: format!("if{index}"),
            kind,
            master: None,
            mac: None,
            up: true,
            carrier: true,
            mtu: 1500,
            vxlan: None,
        }
    }

    fn address(index: u32, prefix: &str, scope: u8) -> Address {
        Address { index, prefix: prefix.parse().expect("a prefix"), scope, flags: 0 }
    }

    #[test]
    fn only_addresses_that_lead_outside_are_announced() {
        let down = Link { up: false, ..link(4, LinkKind::Other) };
        let links =
            [link(1, LinkKind::Other), link(2, LinkKind::Bridge), link(3, LinkKind::Tun), down];
        let addresses = [
            address(1, "192.0.2.10/24", 0),
            address(1, "192.0.2.99/32", 0),
            address(1, "fe80::1/64", 253),
            address(1, "127.0.0.2/8", 0),
            address(2, "10.1.0.1/24", 0),
            address(3, "fd00::1/64", 0),
            address(4, "198.51.100.1/24", 0),
            address(1, "2001:db8::5/64", 0),
        ];
        let found: Vec<_> =
            of_interfaces(&links, &addresses).iter().map(IpAddr::to_string).collect();
        assert_eq!(found, ["192.0.2.10", "2001:db8::5"]);
    }

    #[test]
    fn preferred_addresses_come_first_and_once() {
        let ip = |last| IpAddr::from([192, 0, 2, last]);
        let others: Vec<_> = (1..20).map(ip).collect();
        let list = preferring([ip(3)], &others);
        assert_eq!(list[..3], [ip(3), ip(1), ip(2)]);
        assert_eq!(list.len(), MAX);
    }

    #[test]
    fn loopback_is_no_source() {
        assert_eq!(source_towards(SocketAddr::from(([127, 0, 0, 1], 9))), None);
    }
}
