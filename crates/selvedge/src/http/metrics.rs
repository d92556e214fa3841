//! Metrics, read from the planes when they are asked for. Nothing is counted twice.

use std::fmt;

use prometheus_client::encoding::text::encode as encode_text;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info as InfoMetric;
use prometheus_client::registry::{Registry, Unit};
use selvedge_api::agent::Info;
use selvedge_api::gateway::{Counters, Counts, Status};
use selvedge_api::mesh::Summary;

/// The metrics in the OpenMetrics text format.
///
/// # Errors
/// Those of writing into a text.
pub(super) fn encode(
    info: &Info,
    meshes: Option<&[Summary]>,
    gateway: Option<&Status>,
) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("selvedge");
    let version = vec![("version", info.version.clone())];
    registry.register("build", "The program", InfoMetric::new(version));
    let uptime = ConstGauge::new(info.uptime_s);
    registry.register_with_unit("uptime", "Time since the agent started", Unit::Seconds, uptime);
    for mesh in meshes.unwrap_or_default() {
        add_mesh(&mut registry, mesh);
    }
    if let Some(status) = gateway {
        add_gateway(registry.sub_registry_with_prefix("gateway"), status);
    }
    let mut text = String::new();
    encode_text(&mut text, &registry)?;
    Ok(text)
}

fn add_mesh(registry: &mut Registry, mesh: &Summary) {
    let label = ("mesh".into(), mesh.name.clone().into());
    let members = ConstGauge::new(mesh.members as u64);
    registry.sub_registry_with_label(label).register(
        "mesh_members",
        "Members of the mesh, this node included",
        members,
    );
}

fn add_gateway(registry: &mut Registry, status: &Status) {
    let mut flag = |name: &str, help: &str, on: bool| {
        registry.register(name, help, ConstGauge::new(u64::from(on)));
    };
    flag("store_connected", "Whether the store answers", status.store.connected);
    flag("registered", "Whether the store holds the registration", status.registered);
    flag("drained", "Whether no network is placed here", status.drained);
    let Counts { total, serving, moving, unassigned } = status.networks;
    let mut gauge = |name: &str, help: &str, number: usize| {
        registry.register(name, help, ConstGauge::new(number as u64));
    };
    gauge("networks", "All networks", total);
    gauge("networks_serving", "Networks that one gateway serves", serving);
    gauge("networks_moving", "Networks on the way", moving);
    gauge("networks_unassigned", "Networks that nobody serves", unassigned);
    let own = status.nodes.iter().find(|node| node.name == status.name);
    gauge("networks_own", "Networks that this gateway serves", own.map_or(0, |own| own.serving));
    add_counters(registry, status.counters);
}

fn add_counters(registry: &mut Registry, counters: Counters) {
    let Counters { moves, failovers, conflicts, store_losses, host_failures } = counters;
    let mut counter = |name: &str, help: &str, number: u64| {
        registry.register(name, help, ConstCounter::new(number));
    };
    counter("moves", "Planned moves that ended here", moves);
    counter("failovers", "Networks taken over after a loss", failovers);
    counter("conflicts", "Transactions that another gateway's were faster than", conflicts);
    counter("store_losses", "How often the store was lost", store_losses);
    counter("host_failures", "Operations on the host that failed", host_failures);
}

#[cfg(test)]
mod tests {
    use selvedge_api::agent::Planes;
    use selvedge_api::gateway::Store;

    use super::*;

    #[test]
    fn metrics_are_what_the_planes_say() {
        let info = Info {
            name: "gw1".to_owned(),
            version: "1.2.3".to_owned(),
            pid: 1,
            uptime_s: 9,
            planes: Planes::default(),
        };
        let status = Status {
            name: "gw1".parse().expect("valid"),
            incarnation: None,
            store: Store { engine: "etcd".to_owned(), connected: true, revision: 1, lease: None },
            fabric: "dry".to_owned(),
            registered: true,
            drained: false,
            planner: None,
            nodes: vec![],
            networks: Counts { total: 3, serving: 2, moving: 1, unassigned: 0 },
            counters: Counters { moves: 5, ..Counters::default() },
            warnings: vec![],
        };
        let text = encode(&info, None, Some(&status)).expect("writes");
        for line in [
            "selvedge_build_info{version=\"1.2.3\"} 1",
            "selvedge_uptime_seconds 9",
            "selvedge_gateway_store_connected 1",
            "selvedge_gateway_networks_serving 2",
            "selvedge_gateway_moves_total 5",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
