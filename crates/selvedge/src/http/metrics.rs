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
use selvedge_transport::CounterValues;

use crate::mesh_plane::measure::{Measured, Measures};

/// The metrics in the OpenMetrics text format.
///
/// # Errors
/// Those of writing into a text.
pub(super) fn encode(
    info: &Info,
    meshes: Option<&Measures>,
    gateway: Option<&Status>,
) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("selvedge");
    let version = vec![("version", info.version.clone())];
    registry.register("build", "The program", InfoMetric::new(version));
    let uptime = ConstGauge::new(info.uptime_s);
    registry.register_with_unit("uptime", "Time since the agent started", Unit::Seconds, uptime);
    if let Some(meshes) = meshes {
        add_meshes(registry.sub_registry_with_prefix("mesh"), meshes);
    }
    if let Some(status) = gateway {
        add_gateway(registry.sub_registry_with_prefix("gateway"), status);
    }
    let mut text = String::new();
    encode_text(&mut text, &registry)?;
    Ok(text)
}

type Labels = Vec<(&'static str, String)>;

/// Meshes may have one name: the id tells them apart.
fn labels(mesh: &Measured) -> Labels {
    let summary = &mesh.summary;
    vec![("mesh", summary.name.clone()), ("id", summary.id.to_string())]
}

fn add_meshes(registry: &mut Registry, measures: &Measures) {
    let Measures { meshes, transport, hook_failures } = measures;
    let mut gauge = |name: &str, help: &str, of: &dyn Fn(&Measured) -> u64| {
        let family = Family::<Labels, Gauge>::default();
        for mesh in meshes {
            let count = i64::try_from(of(mesh)).unwrap_or(i64::MAX);
            family.get_or_create(&labels(mesh)).set(count);
        }
        registry.register(name, help, family);
    };
    gauge("members", "Members of the mesh, this node included", &|it| it.summary.members as u64);
    gauge("evicted", "1 if this node was evicted from the mesh", &|it| it.summary.evicted.into());
    gauge("drained", "1 if this node serves no clients", &|it| it.summary.drained.into());
    gauge("members_drained", "Members that are drained", &|it| it.drained);
    gauge("interface", "1 if the WireGuard interface could be made", &|it| it.interface.into());
    gauge("sessions", "Members with which WireGuard has a session", &|it| it.sessions);
    gauge("exits_missing", "Families without the exit asked for", &|it| it.missing_exits);
    gauge("direct_paths", "Direct paths to other clients", &|it| it.summary.direct.open as u64);
    add_states(registry, meshes);
    let mut counter = |name: &str, help: &str, of: fn(&Measured) -> u64| {
        let family = Family::<Labels, Counter>::default();
        for mesh in meshes {
            family.get_or_create(&labels(mesh)).inc_by(of(mesh));
        }
        registry.register(name, help, family);
    };
    counter("received_bytes", "Bytes that WireGuard has received", |it| it.bytes.0);
    counter("sent_bytes", "Bytes that WireGuard has sent", |it| it.bytes.1);
    counter("packets_refused", "Packets that no member may send so", |it| it.refused);
    counter("direct_attempts", "Attempts at a direct path", |it| it.summary.direct.attempts);
    let help = "Attempts at a direct path in vain, and paths that fell silent";
    counter("direct_failures", help, |it| it.summary.direct.failures);
    add_rejections(registry, meshes);
    let failures = ConstCounter::new(*hook_failures);
    registry.register("hook_failures", "Hooks that failed, of all meshes", failures);
    add_transport(registry, *transport);
}

fn add_states(registry: &mut Registry, meshes: &[Measured]) {
    let family = Family::<Labels, Gauge>::default();
    for mesh in meshes {
        for (state, count) in mesh.states {
            let mut labels = labels(mesh);
            labels.push(("state", state.as_str().to_owned()));
            family.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
    registry.register("other_members", "Members beside this node, by state", family);
}

fn add_rejections(registry: &mut Registry, meshes: &[Measured]) {
    let family = Family::<Labels, Counter>::default();
    for mesh in meshes {
        for (kind, count) in &mesh.rejections {
            let mut labels = labels(mesh);
            labels.push(("kind", (*kind).to_owned()));
            family.get_or_create(&labels).inc_by(*count);
        }
    }
    registry.register("rejections", "Messages of agents that were not accepted", family);
}

fn add_transport(registry: &mut Registry, counters: CounterValues) {
    let mut counter = |name: &str, help: &str, number: u64| {
        registry.register(name, help, ConstCounter::new(number));
    };
    let c = counters;
    counter("transport_sent_bytes", "Bytes sent between agents", c.wire_bytes_sent);
    counter("transport_received_bytes", "Bytes received from agents", c.wire_bytes_received);
    counter("transport_messages_sent", "Messages written to connections", c.sent);
    counter("transport_messages_received", "Messages received by connections", c.received);
    let lost = c.unreachable + c.overflowed;
    counter("transport_messages_dropped", "Messages that could not be sent", lost);
    counter("datagrams_sent", "Messages sent as datagrams", c.datagrams_sent);
    counter("datagrams_detoured", "Messages that went over streams", c.datagrams_detoured);
    counter("datagrams_received", "Messages received as datagrams", c.datagrams_received);
    counter("datagrams_refused", "Datagrams that were not authentic", c.datagrams_refused);
    counter("datagrams_dropped", "Datagrams dropped unread or unsent", c.datagrams_dropped);
    counter("transport_connections", "Connections made, by either side", c.connected);
    counter("transport_dials_failed", "Connections that could not be made", c.dials_failed);
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
    use std::net::Ipv6Addr;
    use std::time::Duration;

    use selvedge_api::agent::Planes;
    use selvedge_api::mesh::{DirectPaths, MemberState, Summary};
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

    fn measured(id: u8, members: usize) -> Measured {
        let summary = Summary {
            id: MeshId([id; 20]),
            name: "campus".to_owned(),
            interface: format!("sv-{id}"),
            address: Ipv6Addr::LOCALHOST,
            members,
            evicted: id == 2,
            drained: id == 1,
            direct: DirectPaths { open: members, attempts: 9, failures: 1 },
        };
        use MemberState::{Alive, Down, Suspect, Unknown};
        Measured {
            summary,
            states: [(Alive, 4), (Suspect, 1), (Down, 2), (Unknown, 0)],
            drained: 7,
            interface: false,
            missing_exits: 1,
            sessions: 3,
            bytes: (100, 200),
            refused: 9,
            rejections: [("too_much", 5)].into(),
        }
    }

    #[test]
    fn what_is_counted_in_meshes_is_told() {
        let counters = CounterValues {
            datagrams_sent: 4,
            datagrams_detoured: 7,
            wire_bytes_sent: 11,
            unreachable: 2,
            overflowed: 3,
            ..CounterValues::default()
        };
        let measures =
            Measures { meshes: vec![measured(1, 8)], transport: counters, hook_failures: 6 };
        let text = encode(&info(), Some(&measures), None).expect("writes");
        let labels = format!("mesh=\"campus\",id=\"{}\"", MeshId([1; 20]));
        for line in [
            format!("drained{{{labels}}} 1"),
            format!("members_drained{{{labels}}} 7"),
            format!("interface{{{labels}}} 0"),
            format!("exits_missing{{{labels}}} 1"),
            format!("sessions{{{labels}}} 3"),
            format!("received_bytes_total{{{labels}}} 100"),
            format!("sent_bytes_total{{{labels}}} 200"),
            format!("packets_refused_total{{{labels}}} 9"),
            format!("rejections_total{{{labels},kind=\"too_much\"}} 5"),
            format!("other_members{{{labels},state=\"alive\"}} 4"),
            format!("other_members{{{labels},state=\"down\"}} 2"),
            "hook_failures_total 6".to_owned(),
            "datagrams_sent_total 4".to_owned(),
            "datagrams_detoured_total 7".to_owned(),
            "transport_sent_bytes_total 11".to_owned(),
            "transport_messages_dropped_total 5".to_owned(),
        ] {
            let line = format!("selvedge_mesh_{line}");
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn meshes_of_one_name_are_told_apart_under_one_head() {
        let meshes = vec![measured(1, 3), measured(2, 5)];
        let measures = Measures { meshes, ..Measures::default() };
        let text = encode(&info(), Some(&measures), None).expect("writes");
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
