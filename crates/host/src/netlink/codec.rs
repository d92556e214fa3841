//! Between our plain values and the messages of rtnetlink.
//!
//! Decoders return `None` for what is not of the kind asked for, such as a route with several
//! next hops.

#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "the enums are rtnetlink's; they list all that there is, and grow"
)]

use std::net::IpAddr;

use nix::libc;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressScope,
};
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo,
    LinkMessage,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::neighbour_table::{NeighbourTableAttribute, NeighbourTableMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVxlan, LinkWireguard};
use selvedge_model::{Prefix, Vni};

use super::{
    Address, AddressOptions, FdbEntry, Link, LinkKind, Mac, NeighbourTable, NewLink, Route,
    RouteFilter, Vxlan,
};

pub(super) fn get_links() -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    let without_statistics = LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]);
    message.attributes.push(without_statistics);
    RouteNetlinkMessage::GetLink(message)
}

pub(super) fn get_link(name: &str) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    RouteNetlinkMessage::GetLink(message)
}

pub(super) fn set_link(index: u32, up: bool, mtu: Option<u32>) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.change_mask = LinkFlags::Up;
    message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
    message.attributes.extend(mtu.map(LinkAttribute::Mtu));
    RouteNetlinkMessage::SetLink(message)
}

pub(super) fn set_master(index: u32, master: Option<u32>) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(LinkAttribute::Controller(master.unwrap_or(0)));
    RouteNetlinkMessage::SetLink(message)
}

pub(super) fn new_link(name: &str, new: &NewLink<'_>) -> RouteNetlinkMessage {
    RouteNetlinkMessage::NewLink(match new {
        NewLink::Bridge => LinkBridge::new(name).build(),
        NewLink::Vxlan(vxlan) => new_vxlan(name, *vxlan),
        NewLink::WireGuard => LinkWireguard::new(name).build(),
        NewLink::Veth { peer, namespace } => {
            let peer = LinkMessageBuilder::<LinkUnspec>::new().name(*peer);
            let peer = match NewLink::peer_fd(*namespace) {
                Some(fd) => peer.setns_by_fd(fd),
                None => peer,
            };
            LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Veth)
                .name(name)
                .set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())))
                .build()
        }
    })
}

fn new_vxlan(name: &str, vxlan: Vxlan) -> LinkMessage {
    let builder = LinkVxlan::new(name, vxlan.vni.get()).port(vxlan.port).learning(vxlan.learning);
    let builder = match vxlan.device {
        Some(index) => builder.dev(index),
        None => builder,
    };
    match vxlan.local {
        Some(IpAddr::V4(local)) => builder.local(local),
        Some(IpAddr::V6(local)) => builder.local6(local),
        None => builder,
    }
    .build()
}

pub(super) fn del_link(index: u32) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    RouteNetlinkMessage::DelLink(message)
}

pub(super) fn link(message: &RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: LinkKind::Other,
        master: None,
        mac: None,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        mtu: 0,
        vxlan: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(index) => link.master = Some(*index),
            LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok(),
            LinkAttribute::LinkInfo(infos) => read_infos(infos, &mut link),
            _ => {}
        }
    }
    Some(link)
}

fn read_infos(infos: &[LinkInfo], link: &mut Link) {
    for info in infos {
        match info {
            LinkInfo::Kind(InfoKind::Bridge) => link.kind = LinkKind::Bridge,
            LinkInfo::Kind(InfoKind::Vxlan) => link.kind = LinkKind::Vxlan,
            LinkInfo::Kind(InfoKind::Tun) => link.kind = LinkKind::Tun,
            LinkInfo::Kind(InfoKind::Veth) => link.kind = LinkKind::Veth,
            LinkInfo::Kind(InfoKind::Wireguard) => link.kind = LinkKind::WireGuard,
            LinkInfo::Kind(kind) if is_virtual(kind) => link.kind = LinkKind::Virtual,
            LinkInfo::Data(InfoData::Vxlan(data)) => link.vxlan = vxlan(data),
            _ => {}
        }
    }
}

const fn is_virtual(kind: &InfoKind) -> bool {
    matches!(
        kind,
        InfoKind::Dummy
            | InfoKind::Ifb
            | InfoKind::IpVlan
            | InfoKind::IpVtap
            | InfoKind::MacVlan
            | InfoKind::MacVtap
            | InfoKind::GreTap
            | InfoKind::GreTap6
            | InfoKind::IpIp
            | InfoKind::Ip6Tnl
            | InfoKind::SitTun
            | InfoKind::GreTun
            | InfoKind::GreTun6
            | InfoKind::Vti
            | InfoKind::Vti6
            | InfoKind::Xfrm
            | InfoKind::Geneve
            | InfoKind::Netkit
            | InfoKind::ErSpan
            | InfoKind::Ip6ErSpan
    )
}

fn vxlan(data: &[InfoVxlan]) -> Option<Vxlan> {
    let (mut vni, mut local, mut device, mut port, mut learning) = (None, None, None, 0, false);
    for info in data {
        match info {
            InfoVxlan::Id(id) => vni = Vni::try_from(*id).ok(),
            InfoVxlan::Local(address) => local = Some(IpAddr::from(*address)),
            InfoVxlan::Local6(address) => local = Some(IpAddr::from(*address)),
            InfoVxlan::Link(index) => device = (*index != 0).then_some(*index),
            InfoVxlan::Port(number) => port = *number,
            InfoVxlan::Learning(on) => learning = *on,
            _ => {}
        }
    }
    Some(Vxlan { vni: vni?, local, device, port, learning })
}

pub(super) fn get_addresses() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetAddress(AddressMessage::default())
}

pub(super) fn new_address(
    index: u32,
    prefix: Prefix,
    options: AddressOptions,
) -> RouteNetlinkMessage {
    let mut message = address_message(index, prefix);
    let mut flags = AddressFlags::empty();
    flags.set(AddressFlags::Noprefixroute, options.no_prefix_route);
    flags.set(AddressFlags::Nodad, options.no_dad);
    message.attributes.push(AddressAttribute::Flags(flags));
    RouteNetlinkMessage::NewAddress(message)
}

pub(super) fn del_address(index: u32, prefix: Prefix) -> RouteNetlinkMessage {
    RouteNetlinkMessage::DelAddress(address_message(index, prefix))
}

fn address_message(index: u32, prefix: Prefix) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(prefix.addr());
    message.header.prefix_len = prefix.len();
    message.header.index = index;
    if prefix.addr().is_loopback() {
        message.header.scope = AddressScope::Host;
    }
    message.attributes.push(AddressAttribute::Local(prefix.addr()));
    message.attributes.push(AddressAttribute::Address(prefix.addr()));
    message
}

pub(super) fn address(message: &RouteNetlinkMessage) -> Option<Address> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    let (mut local, mut other, mut flags) = (None, None, u32::from(message.header.flags.bits()));
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => other = Some(*address),
            AddressAttribute::Flags(all) => flags = all.bits(),
            _ => {}
        }
    }
    // On a point-to-point link "address" is that of the far end.
    let prefix = Prefix::new(local.or(other)?, message.header.prefix_len)?;
    let scope = u8::from(message.header.scope);
    Some(Address { index: message.header.index, prefix, scope, flags })
}

pub(super) fn get_routes(family: AddressFamily, filter: RouteFilter) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.protocol = RouteProtocol::from(filter.protocol.unwrap_or(0));
    message.header.kind = RouteType::Unicast;
    message.attributes.extend(filter.table.map(RouteAttribute::Table));
    RouteNetlinkMessage::GetRoute(message)
}

pub(super) fn new_route(route: &Route) -> RouteNetlinkMessage {
    let mut message = route_message(route);
    let on_link = route.gateway.is_none();
    message.header.kind = RouteType::Unicast;
    message.header.scope = if on_link { RouteScope::Link } else { RouteScope::Universe };
    RouteNetlinkMessage::NewRoute(message)
}

pub(super) fn get_unreachable(family: AddressFamily, table: u32) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.kind = RouteType::Unreachable;
    message.attributes.push(RouteAttribute::Table(table));
    RouteNetlinkMessage::GetRoute(message)
}

/// The same route, but that it leads nowhere.
pub(super) fn new_unreachable(route: &Route) -> RouteNetlinkMessage {
    let mut message = route_message(route);
    message.header.kind = RouteType::Unreachable;
    message.header.scope = RouteScope::Universe;
    RouteNetlinkMessage::NewRoute(message)
}

pub(super) fn is_unreachable(message: &RouteNetlinkMessage, route: &Route) -> bool {
    let RouteNetlinkMessage::NewRoute(message) = message else { return false };
    let has = |attribute| message.attributes.contains(&attribute);
    message.header.kind == RouteType::Unreachable
        && message.header.destination_prefix_length == route.dst.len()
        && message.header.protocol == RouteProtocol::from(route.protocol)
        && has(RouteAttribute::Table(route.table))
        && has(RouteAttribute::Priority(route.metric))
}

pub(super) fn del_route(route: &Route) -> RouteNetlinkMessage {
    let mut message = route_message(route);
    // To the kernel this is "whatever scope and kind it has".
    message.header.scope = RouteScope::NoWhere;
    message.header.kind = RouteType::Unspec;
    RouteNetlinkMessage::DelRoute(message)
}

fn route_message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    let dst = route.dst.network();
    message.header.address_family = family(dst.addr());
    message.header.destination_prefix_length = dst.len();
    message.header.protocol = RouteProtocol::from(route.protocol);
    message.header.table = u8::try_from(route.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Destination(dst.addr().into()));
    attributes.push(RouteAttribute::Table(route.table));
    attributes.extend(route.oif.map(RouteAttribute::Oif));
    attributes.extend(route.gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
    attributes.extend(route.prefsrc.map(|source| RouteAttribute::PrefSource(source.into())));
    attributes.extend((route.metric != 0).then_some(RouteAttribute::Priority(route.metric)));
    message
}

pub(super) fn route(message: &RouteNetlinkMessage) -> Option<Route> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    let header = &message.header;
    if header.kind != RouteType::Unicast || header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let mut route = Route {
        dst: Prefix::new(unspecified(header.address_family)?, header.destination_prefix_length)?,
        oif: None,
        gateway: None,
        protocol: header.protocol.into(),
        table: header.table.into(),
        metric: 0,
        prefsrc: None,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => {
                route.dst = Prefix::new(ip(address)?, header.destination_prefix_length)?;
            }
            RouteAttribute::Oif(index) => route.oif = Some(*index),
            RouteAttribute::Gateway(address) => route.gateway = Some(ip(address)?),
            RouteAttribute::PrefSource(address) => route.prefsrc = Some(ip(address)?),
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::MultiPath(_) | RouteAttribute::Via(_) => return None,
            _ => {}
        }
    }
    Some(route)
}

pub(super) fn get_neighbour_tables() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetNeighbourTable(NeighbourTableMessage::default())
}

/// Messages about single interfaces have no limit.
pub(super) fn neighbour_table(message: &RouteNetlinkMessage) -> Option<NeighbourTable> {
    let RouteNetlinkMessage::NewNeighbourTable(message) = message else { return None };
    let is_v4 = match message.header.family {
        AddressFamily::Inet => true,
        AddressFamily::Inet6 => false,
        _ => return None,
    };
    let (mut limit, mut entries) = (None, 0);
    for attribute in &message.attributes {
        match attribute {
            NeighbourTableAttribute::Threshold3(number) => limit = Some(*number),
            NeighbourTableAttribute::Config(config) => entries = config.entries,
            _ => {}
        }
    }
    Some(NeighbourTable { is_v4, limit: limit?, entries })
}

pub(super) fn get_fdb(index: u32) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    RouteNetlinkMessage::GetNeighbour(message)
}

pub(super) fn new_fdb(entry: &FdbEntry) -> RouteNetlinkMessage {
    RouteNetlinkMessage::NewNeighbour(fdb_message(entry))
}

pub(super) fn del_fdb(entry: &FdbEntry) -> RouteNetlinkMessage {
    RouteNetlinkMessage::DelNeighbour(fdb_message(entry))
}

fn fdb_message(entry: &FdbEntry) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = entry.index;
    message.header.state = NeighbourState::Permanent;
    // Of the VXLAN interface itself, not of the bridge above it.
    message.header.flags = NeighbourFlags::Own;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(entry.mac.to_vec()));
    message.attributes.push(NeighbourAttribute::Destination(entry.dst.into()));
    message
}

pub(super) fn fdb_entry(message: &RouteNetlinkMessage) -> Option<FdbEntry> {
    let RouteNetlinkMessage::NewNeighbour(message) = message else { return None };
    let (mut mac, mut dst): (Option<Mac>, _) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = bytes.as_slice().try_into().ok();
            }
            NeighbourAttribute::Destination(address) => dst = neighbour_ip(address),
            _ => {}
        }
    }
    let state = u16::from(message.header.state);
    let permanent = state & (libc::NUD_PERMANENT | libc::NUD_NOARP) != 0;
    Some(FdbEntry { index: message.header.ifindex, mac: mac?, dst: dst?, permanent })
}

pub(super) const fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn unspecified(family: AddressFamily) -> Option<IpAddr> {
    match family {
        AddressFamily::Inet => Some(IpAddr::from([0; 4])),
        AddressFamily::Inet6 => Some(IpAddr::from([0; 16])),
        _ => None,
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

/// The family in the header of a forwarding entry is "bridge", so that its address comes raw.
fn neighbour_ip(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(address) => Some((*address).into()),
        NeighbourAddress::Inet6(address) => Some((*address).into()),
        NeighbourAddress::Other(bytes) => {
            let v4 = <[u8; 4]>::try_from(bytes.as_slice()).map(IpAddr::from);
            v4.or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from)).ok()
        }
        _ => None,
    }
}
