//! What `mesh list`, `mesh show`, `mesh names` and `mesh tunnels` print for people.

use selvedge_api::mesh::{
    Dns, Eviction, Hookup, Listener, Member, Mesh, Summary, Tunnel, Tunnels, UsedRoute,
};

use selvedge_model::NodeId;

use crate::cli::output::{bytes, or_dash, seconds, table, utc};

pub(super) fn list(meshes: &[Summary]) -> String {
    let rows = meshes.iter().map(|mesh| {
        vec![
            mesh.name.clone(),
            mesh.id.to_string(),
            mesh.interface.clone(),
            mesh.address.to_string(),
            if mesh.evicted { "evicted".to_owned() } else { mesh.members.to_string() },
        ]
    });
    table(&["NAME", "ID", "INTERFACE", "ADDRESS", "MEMBERS"], rows)
}

pub(super) fn show(mesh: &Mesh) -> String {
    let Mesh { name, id, interface, prefix, listen_port, .. } = mesh;
    let out = mesh.evicted.as_ref().map(|eviction| out(mesh, eviction)).unwrap_or_default();
    let by = mesh.wireguard.as_ref().map(|by| format!(" ({by})")).unwrap_or_default();
    let head = format!(
        "mesh {name} ({id})\ninterface {interface}{by}, port {listen_port}, {prefix}\n{out}"
    );
    let header = [
        "NODE",
        "NAME",
        "ROLE",
        "STATE",
        "ADDRESS",
        "PATH",
        "ENDPOINT",
        "HANDSHAKE",
        "RX",
        "TX",
        "VERSION",
    ];
    let members = table(&header, mesh.members.iter().map(|member| row(mesh, member)));
    let quarrels = mesh.members.iter().filter(|member| member.contested).map(quarrel);
    let quarrels: String = quarrels.collect();
    let rights: String = mesh.members.iter().filter_map(|member| rights(mesh, member)).collect();
    let evictions: String = mesh.evictions.iter().map(|one| evicted(mesh, one)).collect();
    let (routes, refused) = (routes(mesh), not_permitted(mesh));
    format!("{head}\n{members}{quarrels}{routes}{refused}{rights}{evictions}")
}

/// Why this node is out, and what to do.
fn out(mesh: &Mesh, eviction: &Eviction) -> String {
    let whom = match eviction.node == mesh.node {
        true => "this node".to_owned(),
        false => format!("{}, which had admitted this node,", eviction.node.short()),
    };
    let (by, at) = (called(mesh, eviction.by), utc(eviction.at.saturating_mul(1000)));
    format!(
        "EVICTED: {whom} was evicted by {by} at {at}. To come back: selvedge mesh leave {}, then \
         join with a new invite\n",
        mesh.name
    )
}

/// What a member may do beside being one, if anything.
fn rights(mesh: &Mesh, member: &Member) -> Option<String> {
    let admission = &member.admission;
    let by = called(mesh, admission.by?);
    let allowed: Vec<_> = admission.allowed.iter().map(ToString::to_string).collect();
    let announce = (!allowed.is_empty()).then(|| format!("may announce {}", allowed.join(", ")));
    let invite = admission.may_invite.then(|| "may invite".to_owned());
    let rights: Vec<_> = announce.into_iter().chain(invite).collect();
    (!rights.is_empty())
        .then(|| format!("\n{} {}, admitted by {by}", member.name, rights.join(" and ")))
}

fn evicted(mesh: &Mesh, eviction: &Eviction) -> String {
    let at = utc(eviction.at.saturating_mul(1000));
    format!("\n{} was evicted by {} at {at}", eviction.node.short(), called(mesh, eviction.by))
}

/// What is reached beyond the mesh, and by whom.
fn routes(mesh: &Mesh) -> String {
    if mesh.routes.is_empty() {
        return String::new();
    }
    let row = |route: &UsedRoute| vec![route.destination.to_string(), called(mesh, route.via)];
    format!("\n\n{}", table(&["DESTINATION", "BY"], mesh.routes.iter().map(row)))
}

fn not_permitted(mesh: &Mesh) -> String {
    let refused = mesh.not_permitted.iter();
    refused.map(|prefix| {
        format!("\n{prefix} is not announced: this node's certificate does not allow it; join again \
                 with an invite that does")
    }).collect()
}

/// The name of a node, or how its id begins if it is no member.
fn called(mesh: &Mesh, node: NodeId) -> String {
    let member = mesh.members.iter().find(|member| member.node == node);
    member.map_or_else(|| node.short(), |member| member.name.clone())
}

/// An alias that several claim is seen as such.
fn quarrel(member: &Member) -> String {
    let (name, node) = (&member.name, member.node.short());
    let alias = member.alias.as_deref().unwrap_or_default();
    format!("\n{node} calls itself {alias:?} as another member does: its name is {name}")
}

/// How packets go there: `direct`, or the name of the member that carries them.
fn path(mesh: &Mesh, member: &Member) -> String {
    match member.via {
        _ if member.own => "-".to_owned(),
        Some(via) => format!("by {}", called(mesh, via)),
        None if member.allowed_ips.is_empty() => "none".to_owned(),
        None => "direct".to_owned(),
    }
}

fn row(mesh: &Mesh, member: &Member) -> Vec<String> {
    let state = if member.own { "self" } else { member.state.as_str() };
    let endpoint = member.endpoint.or_else(|| member.endpoints.first().copied());
    vec![
        member.node.short(),
        member.name.clone(),
        member.role.to_string(),
        state.to_owned(),
        member.address.to_string(),
        path(mesh, member),
        or_dash(endpoint),
        or_dash(member.handshake_age_s.map(seconds)),
        bytes(member.rx_bytes),
        bytes(member.tx_bytes),
        or_dash(member.version.as_deref()),
    ]
}

/// Where names are answered, and what is left to the operator.
pub(super) fn names(dns: &Dns) -> String {
    if !dns.enabled {
        return "this agent answers no DNS questions: write a section [mesh.dns] into its \
                configuration"
            .to_owned();
    }
    let row = |at: &Listener| {
        let state = at.problem.clone().unwrap_or_else(|| "answers".to_owned());
        vec![at.address.to_string(), or_dash(at.interface.as_deref()), state]
    };
    let places = table(&["ADDRESS", "INTERFACE", "STATE"], dns.listeners.iter().map(row));
    format!("domain {}\n\n{places}\n\n{}", dns.domain, hookup(dns))
}

/// The networks over a mesh, and why some are not.
pub(super) fn tunnels(tunnels: &Tunnels) -> String {
    let mesh = &tunnels.mesh;
    let (Some(interface), Some(address)) = (&tunnels.interface, tunnels.address) else {
        return format!("this node is not in the mesh {mesh} yet, which is to carry its networks");
    };
    let mtu = tunnels.mtu.map_or_else(
        || format!("{interface} is not up"),
        |mtu| format!("MTU of the networks: {mtu}"),
    );
    let row = |network: &Tunnel| {
        let problem = or_dash(network.problem.as_deref());
        vec![network.vni.to_string(), network.endpoints.len().to_string(), problem]
    };
    let rows = table(&["VNI", "ENDPOINTS", "PROBLEM"], tunnels.networks.iter().map(row));
    format!("mesh {mesh}, from {address} by {interface}; {mtu}\n\n{rows}")
}

fn hookup(dns: &Dns) -> String {
    match &dns.hookup {
        Hookup::Resolved => "systemd-resolved asks there for names of the meshes".to_owned(),
        Hookup::Failed { problem } => format!("systemd-resolved refuses: {problem}"),
        Hookup::Manual => instructions(dns),
    }
}

/// What an operator does by hand, for the resolvers that are usual.
fn instructions(dns: &Dns) -> String {
    let local = dns.listeners.iter().find(|at| at.interface.is_none());
    let Some(local) = local.map(|at| at.address) else { return String::new() };
    let (domain, ip, port) = (&dns.domain, local.ip(), local.port());
    format!(
        "This host's programs do not ask there by themselves. Have the resolver of this host do so:\n\
         \x20 dnsmasq    server=/{domain}/{ip}#{port}\n\
         \x20 unbound    forward-zone: name: \"{domain}\" forward-addr: {ip}@{port}\n\
         \x20 try it     dig @{ip} -p {port} HOST.MESH.{domain} AAAA"
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use selvedge_api::mesh::{Admission, DirectPaths, MemberState, Role};
    use selvedge_model::{MeshId, WgKey};

    use super::*;

    fn mesh() -> Mesh {
        let me = Member {
            node: NodeId([1; 32]),
            own: true,
            alias: Some("gw1".to_owned()),
            name: "gw1".to_owned(),
            group: None,
            contested: false,
            description: None,
            services: BTreeMap::new(),
            version: Some("0.1.0".to_owned()),
            updated: 0,
            role: Role::Peer,
            admission: Admission::default(),
            address: "fd00::1".parse().expect("valid"),
            ipv4: None,
            wg_key: WgKey([2; 32]),
            control: vec![],
            routes: vec![],
            via: None,
            endpoints: vec!["192.0.2.1:51820".parse().expect("valid")],
            endpoint: None,
            state: MemberState::Alive,
            allowed_ips: vec![],
            keepalive_s: None,
            handshake_age_s: None,
            rx_bytes: 0,
            tx_bytes: 0,
        };
        let other = Member {
            node: NodeId([7; 32]),
            own: false,
            alias: None,
            name: "calm-otter-0001".to_owned(),
            address: "fd00::2".parse().expect("valid"),
            endpoint: Some("192.0.2.2:51820".parse().expect("valid")),
            state: MemberState::Unknown,
            handshake_age_s: Some(75),
            rx_bytes: 1_572_864,
            tx_bytes: 100,
            allowed_ips: vec!["fd00::2/128".parse().expect("valid")],
            ..me.clone()
        };
        let client = Member {
            node: NodeId([8; 32]),
            name: "gw1-baea".to_owned(),
            contested: true,
            address: "fd00::3".parse().expect("valid"),
            role: Role::Client,
            endpoint: None,
            endpoints: vec![],
            via: Some(other.node),
            version: None,
            own: false,
            ..me.clone()
        };
        Mesh {
            id: MeshId([9; 20]),
            name: "campus".to_owned(),
            node: me.node,
            interface: "sv-campus".to_owned(),
            address: me.address,
            prefix: "fd00::/64".parse().expect("valid"),
            listen_port: 51820,
            wireguard: Some("userspace".to_owned()),
            routes: vec![],
            not_permitted: vec![],
            members: vec![me, other, client],
            evicted: None,
            evictions: vec![],
        }
    }

    #[test]
    fn a_mesh_is_shown_with_its_members() {
        let expected = "\
mesh campus (beeqscijbeeqscijbeeqscijbeeqscij)
interface sv-campus (userspace), port 51820, fd00::/64

NODE        NAME             ROLE    STATE    ADDRESS  PATH                ENDPOINT         HANDSHAKE  RX       TX     VERSION
aeaqcaibae  gw1              peer    self     fd00::1  -                   192.0.2.1:51820  -          0 B      0 B    0.1.0
a4dqobyha4  calm-otter-0001  peer    unknown  fd00::2  direct              192.0.2.2:51820  1m15s      1.5 MiB  100 B  0.1.0
baeaqcaiba  gw1-baea         client  alive    fd00::3  by calm-otter-0001  -                -          0 B      0 B    -
baeaqcaiba calls itself \"gw1\" as another member does: its name is gw1-baea";
        assert_eq!(show(&mesh()), expected);
        let prefix = |text: &str| text.parse().expect("a prefix");
        let route = UsedRoute { destination: prefix("192.168.7.0/24"), via: NodeId([7; 32]) };
        let routed =
            Mesh { routes: vec![route], not_permitted: vec![prefix("10.0.0.0/8")], ..mesh() };
        let expected = format!(
            "{expected}

DESTINATION     BY
192.168.7.0/24  calm-otter-0001
10.0.0.0/8 is not announced: this node's certificate does not allow it; join again with an invite \
             that does"
        );
        assert_eq!(show(&routed), expected);
    }

    #[test]
    fn rights_and_evictions_are_told() {
        let mut mesh = mesh();
        let (me, other) = (mesh.node, mesh.members[1].node);
        mesh.members[1].admission =
            Admission { by: Some(me), allowed: vec![mesh.prefix], may_invite: true };
        mesh.members[2].admission.by = Some(other);
        mesh.evictions = vec![Eviction { node: NodeId([9; 32]), by: other, at: 1_795_003_201 }];
        let shown = show(&mesh);
        let told: Vec<_> = shown.lines().rev().take(2).collect();
        let gone = NodeId([9; 32]).short();
        let expected = format!("{gone} was evicted by calm-otter-0001 at 2026-11-18 12:00:01");
        assert!(told[0].starts_with(&expected), "{shown}");
        let expected = "calm-otter-0001 may announce fd00::/64 and may invite, admitted by gw1";
        assert_eq!(told[1], expected);
        mesh.evicted = Some(Eviction { node: me, ..mesh.evictions[0].clone() });
        let own = show(&mesh);
        assert!(own.contains("EVICTED: this node was evicted by calm-otter-0001 at "), "{own}");
        mesh.evicted = mesh.evictions.first().cloned();
        assert!(show(&mesh).contains("which had admitted this node"), "{}", show(&mesh));
    }

    #[test]
    fn meshes_are_listed_in_a_table() {
        let Mesh { id, name, interface, address, .. } = mesh();
        let expected = "\
NAME    ID                                INTERFACE  ADDRESS  MEMBERS
campus  beeqscijbeeqscijbeeqscijbeeqscij  sv-campus  fd00::1  2";
        let direct = DirectPaths::default();
        let summary = Summary { id, name, interface, address, members: 2, evicted: false, direct };
        assert_eq!(list(&[summary]), expected);
        assert_eq!(list(&[]), "NAME  ID  INTERFACE  ADDRESS  MEMBERS");
    }

    #[test]
    fn operators_are_told_how_to_ask() {
        let local = Listener {
            address: "127.0.0.153:53".parse().expect("valid"),
            interface: None,
            problem: None,
        };
        let overlay = Listener {
            address: "[fd00::1]:53".parse().expect("valid"),
            interface: Some("sv-campus".to_owned()),
            problem: Some("no such address".to_owned()),
        };
        let listeners = vec![local, overlay];
        let domain = "mesh.internal".to_owned();
        let dns = Dns { enabled: true, domain, listeners, hookup: Hookup::Manual };
        let expected = "\
domain mesh.internal

ADDRESS         INTERFACE  STATE
127.0.0.153:53  -          answers
[fd00::1]:53    sv-campus  no such address

This host's programs do not ask there by themselves. Have the resolver of this host do so:
  dnsmasq    server=/mesh.internal/127.0.0.153#53
  unbound    forward-zone: name: \"mesh.internal\" forward-addr: 127.0.0.153@53
  try it     dig @127.0.0.153 -p 53 HOST.MESH.mesh.internal AAAA";
        assert_eq!(names(&dns), expected);
        let hooked = Dns { hookup: Hookup::Resolved, ..dns };
        assert!(names(&hooked).ends_with("systemd-resolved asks there for names of the meshes"));
        assert!(names(&Dns::default()).contains("[mesh.dns]"));
    }

    #[test]
    fn networks_over_a_mesh_are_listed_with_what_is_wrong() {
        let mut seen = Tunnels { mesh: "campus".to_owned(), ..Tunnels::default() };
        assert!(tunnels(&seen).contains("not in the mesh campus yet"));
        let address = "fd5e::1".parse().expect("an address");
        let network = |vni: u32, endpoints, problem: Option<&str>| Tunnel {
            vni: vni.try_into().expect("a VNI"),
            endpoints,
            problem: problem.map(str::to_owned),
        };
        seen = Tunnels {
            interface: Some("sv-campus".to_owned()),
            address: Some(address),
            mtu: Some(1350),
            networks: vec![
                network(1, vec![address], None),
                network(2, vec![], Some("there is no bridge br2: make it")),
            ],
            ..seen
        };
        let expected = "mesh campus, from fd5e::1 by sv-campus; MTU of the networks: 1350\n\n\
                        VNI  ENDPOINTS  PROBLEM\n\
                        1    1          -\n\
                        2    0          there is no bridge br2: make it";
        assert_eq!(tunnels(&seen).trim_end(), expected);
    }
}
