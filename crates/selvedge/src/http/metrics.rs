//! Metrics, read from the planes when they are asked for. Nothing is counted twice.

use std::fmt;

use prometheus_client::encoding::text::encode as encode_text;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::info::Info as InfoMetric;
use prometheus_client::registry::{Registry, Unit};
use selvedge_api::agent::Info;
use selvedge_api::gateway::{Counters, Counts, Distribution, Status, Times};
use selvedge_api::mesh::Summary;
use selvedge_transport::CounterValues;

/// The metrics in the OpenMetrics text format.
///
/// # Errors
/// Those of writing into a text.
pub(super) fn encode(
    info: &Info,
    meshes: Option<(&[Summary], &CounterValues)>,
    gateway: Option<&Status>,
) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("selvedge");
    let version = vec![("version", info.version.clone())];
    registry.register("build", "The program", InfoMetric::new(version));
    let uptime = ConstGauge::new(info.uptime_s);
    registry.register_with_unit("uptime", "Time since the agent started", Unit::Seconds, uptime);
    if let Some((meshes, traffic)) = meshes {
        add_meshes(&mut registry, meshes);
        add_traffic(&mut registry, traffic);
    }
    if let Some(status) = gateway {
        add_gateway(registry.sub_registry_with_prefix("gateway"), status);
    }
    let mut text = String::new();
    encode_text(&mut text, &registry)?;
    Ok(text)
}

/// Meshes may have one name: the id tells them apart.
fn add_meshes(registry: &mut Registry, meshes: &[Summary]) {
    let members = Family::<Vec<(&str, String)>, Gauge>::default();
    let evicted = Family::<Vec<(&str, String)>, Gauge>::default();
    let direct = Family::<Vec<(&str, String)>, Gauge>::default();
    let attempts = Family::<Vec<(&str, String)>, Counter>::default();
    let failures = Family::<Vec<(&str, String)>, Counter>::default();
    for mesh in meshes {
        let labels = vec![("mesh", mesh.name.clone()), ("id", mesh.id.to_string())];
        let count = i64::try_from(mesh.members).unwrap_or(i64::MAX);
        members.get_or_create(&labels).set(count);
        evicted.get_or_create(&labels).set(i64::from(mesh.evicted));
        let open = i64::try_from(mesh.direct.open).unwrap_or(i64::MAX);
        direct.get_or_create(&labels).set(open);
        attempts.get_or_create(&labels).inc_by(mesh.direct.attempts);
        failures.get_or_create(&labels).inc_by(mesh.direct.failures);
    }
    registry.register("mesh_members", "Members of the mesh, this node included", members);
    registry.register("mesh_evicted", "1 if this node was evicted from the mesh", evicted);
    registry.register("mesh_direct_paths", "Direct paths to other clients", direct);
    registry.register("mesh_direct_attempts", "Attempts at a direct path", attempts);
    let help = "Attempts at a direct path in vain, and paths that fell silent";
    registry.register("mesh_direct_failures", help, failures);
}

fn add_traffic(registry: &mut Registry, traffic: &CounterValues) {
    let mut counter = |name: &str, help: &str, number: u64| {
        registry.register(name, help, ConstCounter::new(number));
    };
    let t = traffic;
    counter("mesh_datagrams_sent", "Messages sent as datagrams", t.datagrams_sent);
    counter("mesh_datagrams_detoured", "Messages that went over streams", t.datagrams_detoured);
    counter("mesh_datagrams_dropped", "Messages that nobody answered", t.datagrams_dropped);
}

fn add_gateway(registry: &mut Registry, status: &Status) {
    let mut flag = |name: &str, help: &str, on: bool| {
        registry.register(name, help, ConstGauge::new(u64::from(on)));
    };
    flag("store_connected", "Whether the store answers", status.store.connected);
    flag("registered", "Whether the store holds the registration", status.registered);
    flag("drained", "Whether no network is placed here", status.drained);
    flag("right_to_serve", "Whether this gateway may serve", status.right.serve);
    flag("silenced", "Whether all networks of this host are silenced", status.silenced);
    flag("failover_possible", "Whether a lost gateway would be replaced", status.failover.possible);
    flag("fit", "Whether this host can do its job", status.unfit.is_empty());
    let Counts { total, serving, moving, unassigned, blocked } = status.networks;
    let mut gauge = |name: &str, help: &str, number: usize| {
        registry.register(name, help, ConstGauge::new(number as u64));
    };
    gauge("networks", "All networks", total);
    gauge("networks_serving", "Networks that one gateway serves", serving);
    gauge("networks_moving", "Networks on the way", moving);
    gauge("networks_unassigned", "Networks that nobody serves", unassigned);
    gauge("networks_blocked", "Networks with a key that makes no sense", blocked);
    gauge("voters", "Who votes on lost gateways, this node included", status.voters.len());
    let heard = status.partners.iter().filter(|partner| partner.heard).count();
    gauge("partners_heard", "Other voters that answer", heard);
    let members = status.store.members.unwrap_or_default();
    gauge("store_members", "Members of the store", members.members);
    gauge("store_members_answering", "Members of the store that answer", members.answering);
    let own = status.nodes.iter().find(|node| node.name == status.name);
    gauge("networks_own", "Networks that this gateway serves", own.map_or(0, |own| own.serving));
    add_counters(registry, status.counters);
    add_times(registry, &status.times);
}

fn add_counters(registry: &mut Registry, counters: Counters) {
    let mut counter = |name: &str, help: &str, number: u64| {
        registry.register(name, help, ConstCounter::new(number));
    };
    let c = counters;
    counter("moves", "Planned moves that ended here", c.moves);
    counter("failovers", "Networks taken over after a loss", c.failovers);
    counter("kept", "Networks kept over a restart of the agent", c.kept);
    counter("conflicts", "Transactions that another gateway's were faster than", c.conflicts);
    counter("store_losses", "How often the store was lost", c.store_losses);
    counter("host_failures", "Operations on the host that failed", c.host_failures);
    counter("suspicions", "How often another voter was suspected", c.suspicions);
    counter("votes", "Votes that another is lost", c.votes);
    counter("verdicts", "Verdicts seen in the store", c.verdicts);
    counter("prepared_takeovers", "Takeovers before the store confirmed them", c.prepared);
    counter("fences", "How often all networks were silenced", c.fences);
    counter("hooks", "Hooks that ended well", c.hooks);
    counter("hook_failures", "Hooks that failed", c.hook_failures);
    counter("probes_sent", "Probes and answers sent", c.probes_sent);
    counter("probes_received", "Authentic probes and answers received", c.probes_received);
    counter("probes_refused", "Datagrams refused", c.probes_refused);
}

fn add_times(registry: &mut Registry, times: &Times) {
    let mut times_of = |name: &str, help: &str, times: &Distribution| {
        registry.register_with_unit(name, help, Unit::Seconds, Histogram(times.clone()));
    };
    times_of("detection", "From the own suspicion to the verdict", &times.detection);
    times_of("takeover", "From the verdict to the announcement, each network", &times.takeover);
    times_of("silence", "How long all networks were silenced", &times.silence);
    times_of("unconfirmed", "Without word of a majority or the store", &times.unconfirmed);
}

/// A distribution as a histogram.
#[derive(Debug)]
struct Histogram(Distribution);

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let Self(times) = self;
        let mut buckets: Vec<(f64, u64)> =
            times.buckets.iter().map(|b| (b.up_to_ms as f64 / 1e3, b.count)).collect();
        // The encoder adds them up; the last one holds the rest.
        let fits: u64 = times.buckets.iter().map(|bucket| bucket.count).sum();
        buckets.push((f64::INFINITY, times.count.saturating_sub(fits)));
        let sum = times.sum_us as f64 / 1e6;
        encoder.encode_histogram::<NoLabelSet>(sum, times.count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[cfg(test)]
mod tests {
    use selvedge_api::mesh::DirectPaths;
    use std::net::Ipv6Addr;
    use std::time::Duration;

    use selvedge_api::agent::Planes;
    use selvedge_model::MeshId;
    use serde_json::json;

    use super::*;

    fn info() -> Info {
        Info {
            name: "gw1".to_owned(),
            version: "1.2.3".to_owned(),
            pid: 1,
            uptime_s: 9,
            started_ms: 0,
            planes: Planes::default(),
        }
    }

    #[test]
    fn meshes_of_one_name_are_told_apart_under_one_head() {
        let mesh = |id: u8, members| Summary {
            id: MeshId([id; 20]),
            name: "campus".to_owned(),
            interface: format!("sv-{id}"),
            address: Ipv6Addr::LOCALHOST,
            members,
            evicted: id == 2,
            direct: DirectPaths { open: members, attempts: 9, failures: 1 },
        };
        let traffic = CounterValues { datagrams_detoured: 7, ..CounterValues::default() };
        let meshes = [mesh(1, 3), mesh(2, 5)];
        let text = encode(&info(), Some((&meshes, &traffic)), None).expect("writes");
        assert!(text.contains("\nselvedge_mesh_datagrams_detoured_total 7\n"), "{text}");
        let count = |line: &str| text.lines().filter(|l| *l == line).count();
        assert_eq!(count("# TYPE selvedge_mesh_members gauge"), 1, "{text}");
        for (id, members) in [(1, 3), (2, 5)] {
            let id = MeshId([id; 20]);
            let line = format!("selvedge_mesh_members{{mesh=\"campus\",id=\"{id}\"}} {members}");
            assert_eq!(count(&line), 1, "{line} is not in\n{text}");
            for (what, number) in [("paths", members), ("attempts_total", 9), ("failures_total", 1)]
            {
                let labels = format!("{{mesh=\"campus\",id=\"{id}\"}}");
                let line = format!("selvedge_mesh_direct_{what}{labels} {number}");
                assert_eq!(count(&line), 1, "{line} is not in\n{text}");
            }
            let evicted = u8::from(members == 5);
            let line = format!("selvedge_mesh_evicted{{mesh=\"campus\",id=\"{id}\"}} {evicted}");
            assert_eq!(count(&line), 1, "{line} is not in\n{text}");
        }
        assert_eq!(text.matches("# HELP selvedge_mesh_members ").count(), 1, "{text}");
    }

    #[test]
    fn metrics_are_what_the_planes_say() {
        let status = json!({
            "name": "gw1",
            "store": { "engine": "etcd", "connected": true, "revision": 1,
                "members": { "members": 3, "answering": 2, "led": true } },
            "fabric": "dry", "registered": true, "drained": false, "nodes": [],
            "networks": { "total": 4, "serving": 2, "moving": 1, "unassigned": 0, "blocked": 1 },
            "counters": { "moves": 5, "hook_failures": 2 },
            "right": { "serve": true, "cause": "majority" },
            "failover": { "possible": false, "reason": "alone" },
            "unfit": ["no carrier"],
        });
        let mut status: Status = serde_json::from_value(status).expect("parses");
        for millis in [210, 250, 20_000] {
            status.times.detection.record(Duration::from_millis(millis));
        }
        let text = encode(&info(), None, Some(&status)).expect("writes");
        for line in [
            "selvedge_build_info{version=\"1.2.3\"} 1",
            "selvedge_uptime_seconds 9",
            "selvedge_gateway_store_connected 1",
            "selvedge_gateway_store_members_answering 2",
            "selvedge_gateway_networks_serving 2",
            "selvedge_gateway_networks_blocked 1",
            "selvedge_gateway_moves_total 5",
            "selvedge_gateway_hook_failures_total 2",
            "selvedge_gateway_right_to_serve 1",
            "selvedge_gateway_failover_possible 0",
            "selvedge_gateway_fit 0",
            "# TYPE selvedge_gateway_detection_seconds histogram",
            "selvedge_gateway_detection_seconds_sum 20.46",
            "selvedge_gateway_detection_seconds_count 3",
            "selvedge_gateway_detection_seconds_bucket{le=\"0.2\"} 0",
            "selvedge_gateway_detection_seconds_bucket{le=\"0.3\"} 2",
            "selvedge_gateway_detection_seconds_bucket{le=\"10.0\"} 2",
            "selvedge_gateway_detection_seconds_bucket{le=\"+Inf\"} 3",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
