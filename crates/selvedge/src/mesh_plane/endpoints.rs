//! The addresses at which this node tells others to reach it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use selvedge_host::events::{self, Change, Events};
use selvedge_host::netlink::{Address, Link, LinkKind, Netlink};
use selvedge_host::wireguard::DETOUR;
use selvedge_model::Prefix;
use tokio::sync::mpsc;
use tokio::time::sleep;

/// How many addresses are announced at most.
const MAX: usize = 8;

/// The scope of addresses that are valid everywhere (rtnetlink(7)).
const SCOPE_GLOBAL: u8 = 0;

/// Places that stand for the outside world: documentation addresses (RFC 5737, RFC 3849).
const OUTSIDE: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)), 9),
];

/// The host's own addresses, the most useful first: those from which packets to `partners` leave,
/// then packets to the outside world, then those of its interfaces. None within `overlays`, where
/// the meshes' own packets would come round again.
pub(super) async fn discover(
    netlink: Option<&Netlink>,
    partners: &[SocketAddr],
    overlays: &[Prefix],
) -> Vec<IpAddr> {
    let (links, addresses) = match netlink {
        Some(netlink) => look(netlink).await,
        None => Default::default(),
    };
    chosen(&sources(partners), &sources(&OUTSIDE), &links, &addresses, overlays)
}

async fn look(netlink: &Netlink) -> (Vec<Link>, Vec<Address>) {
    match (netlink.links().await, netlink.addresses().await) {
        (Ok(links), Ok(addresses)) => (links, addresses),
        (Err(error), _) | (_, Err(error)) => {
            tracing::warn!(%error, "cannot list the host's addresses");
            Default::default()
        }
    }
}

fn sources(towards: &[SocketAddr]) -> Vec<IpAddr> {
    towards.iter().copied().filter_map(source_towards).collect()
}

fn chosen(
    partners: &[IpAddr],
    outside: &[IpAddr],
    links: &[Link],
    addresses: &[Address],
    overlays: &[Prefix],
) -> Vec<IpAddr> {
    let is_fleeting =
        |ip: &IpAddr| addresses.iter().any(|it| it.prefix.addr() == *ip && it.is_fleeting());
    // Somebody's way out of here by a tunnel ends where nobody finds this host.
    let tunnels =
        |link: &&Link| matches!(link.kind, LinkKind::Tun | LinkKind::WireGuard | LinkKind::Virtual);
    let tunnels: BTreeSet<u32> = links.iter().filter(tunnels).map(|link| link.index).collect();
    let of_tunnel = |ip: &&IpAddr| {
        addresses.iter().any(|it| it.prefix.addr() == **ip && tunnels.contains(&it.index))
    };
    let outside = outside.iter().filter(|ip| !of_tunnel(ip));
    let found = partners.iter().chain(outside).copied().chain(of_interfaces(links, addresses));
    let within = |ip: &IpAddr| overlays.iter().any(|overlay| overlay.contains(*ip));
    ordered(found.filter(|ip| !is_fleeting(ip) && !within(ip)))
}

/// How long addresses come and go together, and how long to wait until they are looked at again.
const TOGETHER: Duration = Duration::from_millis(200);
const PAUSE: Duration = Duration::from_secs(1);

/// What of the host's links was seen: their MTU in bytes, by index.
#[derive(Debug, Default)]
struct Links(BTreeMap<u32, u32>);

impl Links {
    /// Whether addresses, or the MTU of a link, may be others than before.
    fn note(&mut self, change: &Change) -> bool {
        match change {
            Change::Addresses { .. } | Change::Missed => true,
            Change::Link(link) => self.0.insert(link.index, link.mtu) != Some(link.mtu),
            Change::LinkGone { index, .. } => self.0.remove(index).is_some(),
        }
    }
}

/// Says each time that addresses of this host or MTUs of its links have changed, until nobody
/// listens.
pub(super) async fn follow(changed: mpsc::Sender<()>) {
    let followed: Result<(), events::Error> = async {
        let (mut events, mut links) = (Events::open()?, Links::default());
        loop {
            if !links.note(&events.next().await?) {
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

fn of_interfaces(links: &[Link], addresses: &[Address]) -> Vec<IpAddr> {
    outward(links, addresses).map(|address| address.prefix.addr()).collect()
}

/// Addresses of interfaces that are up and lead outside. Those of bridges, tunnels and containers
/// do not: the first may carry the gateway address of an overlay network, which other hosts have
/// too, the second are overlays themselves. Nor does a single address, as a gateway's are while it
/// serves, or one that will soon be another's.
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
            && !address.is_fleeting()
            && !address.prefix.is_host()
            && !ip.is_loopback()
    };
    addresses.iter().filter(global)
}

fn ordered(found: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut seen = BTreeSet::new();
    found.filter(|ip| seen.insert(*ip)).take(MAX).collect()
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
    fn interfaces_of_containers_and_tunnels_are_left_out_and_so_are_fleeting_addresses() {
        let links = [link(1, LinkKind::Other), link(2, LinkKind::Virtual)];
        // linux/if_addr.h: IFA_F_TEMPORARY is IFA_F_SECONDARY in IPv6.
        let (temporary, secondary, deprecated) = (0x01, 0x01, 0x20);
        let flagged = |prefix, flags| Address { flags, ..address(1, prefix, 0) };
        let addresses = [
            address(1, "2001:db8::5/64", 0),
            flagged("2001:db8::7e/64", temporary),
            flagged("2001:db8::dead/64", deprecated),
            flagged("192.0.2.11/24", secondary),
            address(2, "10.8.0.2/24", 0),
        ];
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let found = |partners: &[IpAddr], outside: &[IpAddr]| {
            let found = chosen(partners, outside, &links, &addresses, &[]);
            found.iter().map(IpAddr::to_string).collect::<Vec<_>>()
        };
        assert_eq!(found(&[], &[]), ["2001:db8::5", "192.0.2.11"]);
        // The kernel prefers a temporary address, and somebody's tunnel may lead everywhere.
        let kernels = [ip("2001:db8::7e"), ip("10.8.0.2")];
        assert_eq!(found(&[], &kernels), ["2001:db8::5", "192.0.2.11"]);
        assert_eq!(found(&kernels, &[])[0], "10.8.0.2", "partners may be behind that tunnel");
    }

    #[test]
    fn addresses_within_an_overlay_are_not_found() {
        let links = [link(1, LinkKind::Other)];
        let addresses = [address(1, "fd77::5/64", 0), address(1, "10.9.0.5/24", 0)];
        let overlays = ["fd77::/64", "10.9.0.0/16"].map(|it| it.parse().expect("a prefix"));
        let partner = ["fd77::6".parse().expect("an address")];
        assert_eq!(chosen(&partner, &[], &links, &addresses, &overlays), [] as [IpAddr; 0]);
    }

    #[test]
    fn preferred_addresses_come_first_and_once() {
        let ip = |last| IpAddr::from([192, 0, 2, last]);
        let others: Vec<_> = (1..20).map(ip).collect();
        let list = chosen(&[ip(3)], &others, &[], &[], &[]);
        assert_eq!(list[..3], [ip(3), ip(1), ip(2)]);
        assert_eq!(list.len(), MAX);
    }

    #[test]
    fn another_mtu_is_news_and_another_carrier_is_not() {
        let mut links = Links::default();
        let one = link(1, LinkKind::Other);
        assert!(links.note(&Change::Link(one.clone())));
        assert!(!links.note(&Change::Link(Link { carrier: false, ..one.clone() })));
        assert!(links.note(&Change::Link(Link { mtu: 1400, ..one })));
        assert!(links.note(&Change::LinkGone { index: 1, name: "if1".to_owned() }));
        assert!(links.note(&Change::Addresses { index: 1 }) && links.note(&Change::Missed));
    }

    #[test]
    fn loopback_is_no_source() {
        assert_eq!(source_towards(SocketAddr::from(([127, 0, 0, 1], 9))), None);
    }
}
