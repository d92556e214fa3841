//! What it costs to plan for a mesh of thousands.

#![allow(missing_docs, reason = "a benchmark has no public items")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use selvedge_mesh::address::{mesh_prefix, node_address};
use selvedge_mesh::{Bridged, Role};
use selvedge_model::{MeshId, NodeId, WgKey};
use selvedge_topology::{Member, Options, View, plan};

const MESH: MeshId = MeshId([1; 20]);

/// Identities are as good as random numbers.
fn node(number: u32) -> NodeId {
    let mut id = [7; 32];
    let mixed = u64::from(number).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    id[..8].copy_from_slice(&mixed.to_be_bytes());
    NodeId(id)
}

fn member(number: u32, role: Role) -> Member {
    let node = node(number);
    let [.., high, low] = number.to_be_bytes();
    Member {
        node,
        key: WgKey(node.0),
        role,
        address: node_address(MESH, node),
        serial: number.into(),
        ipv4: None,
        live: true,
        drained: false,
        avoids: Vec::new(),
        endpoints: vec![([198, 51, high, low], 51_820).into()],
        networks: Vec::new(),
        bridged: Vec::new(),
        permits: Vec::new(),
    }
}

/// As the first peer sees it, which tries every tenth member in vain.
fn view(peers: u32, clients: u32) -> View {
    let all = (0..peers).map(|number| member(number, Role::Peer));
    let clients = (peers..peers + clients).map(|number| member(number, Role::Client));
    let attempts = (0..peers).step_by(10).map(|number| (node(number), 1)).collect();
    let options = Options { attempts, ..Options::default() };
    View { mesh: MESH, own: node(0), members: all.chain(clients).collect(), options }
}

/// The same, where every client avoids a peer.
fn choosy(peers: u32, clients: u32) -> View {
    let mut view = view(peers, clients);
    for member in view.members.iter_mut().filter(|member| member.role == Role::Client) {
        member.avoids = vec![node(1)];
    }
    view
}

/// The same, where every peer bridges to as many meshes as fit into a record.
fn bridged(peers: u32, clients: u32) -> View {
    let mut view = view(peers, clients);
    let bridged = (2..34_u8).map(|number| {
        let mesh = MeshId([number; 20]);
        Bridged { prefix: mesh_prefix(mesh), path: vec![mesh] }
    });
    let bridged: Vec<Bridged> = bridged.collect();
    for member in view.members.iter_mut().filter(|member| member.role == Role::Peer) {
        member.bridged.clone_from(&bridged);
        member.permits = vec!["fd00::/8".parse().expect("a prefix")];
    }
    view
}

fn plans(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("plan");
    group.sample_size(10);
    for (name, view) in [
        ("3000 peers", view(3000, 0)),
        ("1500 peers, 1500 clients", view(1500, 1500)),
        ("1500 peers, 1500 clients that avoid one", choosy(1500, 1500)),
        ("1500 bridges to 32 meshes, 1500 clients", bridged(1500, 1500)),
    ] {
        let views = [view];
        group.bench_with_input(BenchmarkId::from_parameter(name), &views, |bencher, views| {
            bencher.iter(|| plan(black_box(views)));
        });
    }
    group.finish();
}

criterion_group!(benches, plans);
criterion_main!(benches);
