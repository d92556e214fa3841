//! What `selvedge gateway status` prints.

use std::collections::BTreeSet;

use selvedge_api::gateway::{Failover, NodeRow, Partner, Right, Status, Store};
use selvedge_model::NodeName;

use crate::cli::output::{or_dash, table, yes};

/// The status as a page: the gravest first, then this gateway, then the others.
pub(super) fn page(status: &Status) -> String {
    let mut text = String::new();
    if let Failover { possible: false, reason } = &status.failover {
        text += &format!("FAILOVER IMPOSSIBLE: {}\n\n", or_dash(reason.as_deref()));
    }
    text += &summary(status);
    text += "\n\n";
    let header =
        ["NODE", "VERSION", "REGISTERED", "ON RING", "DRAINED", "CONVICTED", "IDS", "SERVING"];
    text += &table(&header, status.nodes.iter().map(node));
    if !status.partners.is_empty() {
        text += &format!("\n\n{}\n\n{}", matrix(status), paths(&status.partners));
    }
    for warning in &status.warnings {
        text += &format!("\n\nwarning: {warning}");
    }
    text
}

fn summary(status: &Status) -> String {
    let Status { name, fabric, networks, .. } = status;
    let mut registered = if status.registered { "registered" } else { "NOT registered" }.to_owned();
    if let Some(why) = &status.unregistered {
        registered += &format!(" ({why})");
    }
    let drained = if status.drained { ", drained" } else { "" };
    let mut text = format!(
        "{} {name}: {registered}{drained}, fabric {fabric}\n{}\n{}\n\
         networks {}: {} served, {} moving, {} unassigned",
        status.kind.as_str(),
        right(status),
        store(&status.store),
        networks.total,
        networks.serving,
        networks.moving,
        networks.unassigned,
    );
    if networks.blocked > 0 {
        text += &format!(", {} left alone (a key of theirs makes no sense)", networks.blocked);
    }
    let failover = if status.failover.possible { "possible" } else { "IMPOSSIBLE" };
    text + &format!("\nfailover {failover}, planner {}", or_dash(status.planner.as_ref()))
}

fn right(status: &Status) -> String {
    let Right { serve, cause } = status.right;
    let may = if serve { "may serve" } else { "may NOT serve" };
    let heard = status.partners.iter().filter(|partner| partner.heard).count() + 1;
    let silenced = if status.silenced { ", ALL NETWORKS SILENCED" } else { "" };
    let voters = match status.voters.len() {
        0 => "no voters".to_owned(),
        voters => {
            format!("{heard} of {voters} voters in touch, {} are a majority", status.majority)
        }
    };
    format!("right to serve: {may} ({}), {voters}{silenced}", cause.text())
}

fn store(store: &Store) -> String {
    let connected = if store.connected { "connected" } else { "NOT connected" };
    let members = store.members.map_or_else(String::new, |members| {
        let led = if members.led { "led" } else { "WITHOUT A LEADER" };
        format!(", {} of {} members answer, {led}", members.answering, members.members)
    });
    format!(
        "store {}: {connected}{members}, revision {}, lease {}",
        store.engine,
        store.revision,
        or_dash(store.lease.as_deref()),
    )
}

fn node(node: &NodeRow) -> Vec<String> {
    let remark = match (node.legacy, node.votes) {
        (true, _) => " (predecessor)",
        (false, true) => "",
        (false, false) => " (no vote)",
    };
    vec![
        format!("{}{remark}", node.name),
        or_dash(node.version.as_deref()),
        yes(node.registered),
        yes(node.on_ring),
        yes(node.drained),
        yes(node.convicted),
        node.ids.to_string(),
        node.serving.to_string(),
    ]
}

/// Who hears whom: each line is what one voter says.
fn matrix(status: &Status) -> String {
    let partners = status.partners.iter();
    let names: BTreeSet<&NodeName> = partners.map(|p| &p.name).chain([&status.name]).collect();
    let mut header = vec!["HEARS"];
    header.extend(names.iter().map(|name| name.as_str()));
    let row = |from: &&NodeName| {
        let cell = |to: &&NodeName| if from == to { "." } else { hears(status, from, to) };
        let cells = names.iter().map(|to| cell(to).to_owned());
        [from.to_string()].into_iter().chain(cells).collect()
    };
    table(&header, names.iter().map(row))
}

/// What is known of whether one voter hears another. Nobody knows what a silent one hears.
fn hears(status: &Status, from: &NodeName, to: &NodeName) -> &'static str {
    let partner = |name: &NodeName| status.partners.iter().find(|partner| partner.name == *name);
    let said = if *from == status.name {
        partner(to).map(|partner| partner.heard)
    } else {
        partner(from).filter(|partner| partner.heard).map(|partner| partner.hears.contains(to))
    };
    match said {
        Some(true) => "yes",
        Some(false) => "NO",
        None => "?",
    }
}

fn paths(partners: &[Partner]) -> String {
    let row = |partner: &Partner| -> Vec<Vec<String>> {
        let mut remark = partner.away_ms.map_or_else(String::new, |ms| {
            format!("away on purpose for {:.1} s more", ms as f64 / 1e3)
        });
        if !partner.voted_by.is_empty() {
            let by = partner.voted_by.iter().map(NodeName::as_str).collect::<Vec<_>>().join(", ");
            remark += &format!("{}lost, say {by}", if remark.is_empty() { "" } else { "; " });
        }
        let path = |path: &selvedge_api::gateway::Path| {
            let ago = path.silent_ms.map_or("never".to_owned(), |ms| format!("{ms} ms ago"));
            let trip = path.round_trip_us.map(|us| format!("{:.1} ms", us as f64 / 1e3));
            vec![
                partner.name.to_string(),
                path.address.to_string(),
                ago,
                or_dash(trip),
                or_dash(Some(remark.as_str()).filter(|text| !text.is_empty())),
            ]
        };
        partner.paths.iter().map(path).collect()
    };
    let header = ["VOTER", "PATH", "ANSWERED", "ROUND TRIP", "REMARK"];
    table(&header, partners.iter().flat_map(row))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status() -> Status {
        let row = |name: &str, on: bool| {
            json!({ "name": name, "version": "0.1.0", "registered": on, "on_ring": on,
                "drained": false, "convicted": !on, "votes": true, "ids": 100, "serving": 10 })
        };
        let path = |address: &str, silent: Option<u64>| json!({ "address": address, "silent_ms": silent, "round_trip_us": silent.map(|_| 312) });
        serde_json::from_value(json!({
            "name": "gw1", "fabric": "frr", "registered": true, "drained": false,
            "store": { "engine": "etcd", "connected": true, "revision": 812, "lease": "694d",
                "members": { "members": 3, "answering": 2, "led": true } },
            "failover": { "possible": true, "reason": null },
            "right": { "serve": true, "cause": "majority" },
            "voters": ["gw1", "gw2", "gw3"], "majority": 2,
            "partners": [
                { "name": "gw2", "heard": true, "hears": ["gw1"],
                  "paths": [path("172.16.0.2:7947", Some(12)), path("[fd00::2]:7947", Some(40))] },
                { "name": "gw3", "heard": false, "hears": ["gw1", "gw2"], "voted_by": ["gw1"],
                  "away_ms": 8200, "paths": [path("172.16.0.3:7947", None)] },
            ],
            "planner": "gw2",
            "nodes": [row("gw1", true), row("gw2", true), row("gw3", false)],
            "networks": { "total": 30, "serving": 28, "moving": 1, "unassigned": 0, "blocked": 1 },
            "warnings": ["only one gateway takes networks"],
        }))
        .expect("a status")
    }

    #[test]
    fn the_status_is_a_page() {
        let expected = "\
gateway gw1: registered, fabric frr
right to serve: may serve (heard by a majority), 2 of 3 voters in touch, 2 are a majority
store etcd: connected, 2 of 3 members answer, led, revision 812, lease 694d
networks 30: 28 served, 1 moving, 0 unassigned, 1 left alone (a key of theirs makes no sense)
failover possible, planner gw2

NODE  VERSION  REGISTERED  ON RING  DRAINED  CONVICTED  IDS  SERVING
gw1   0.1.0    yes         yes      no       no         100  10
gw2   0.1.0    yes         yes      no       no         100  10
gw3   0.1.0    no          no       no       yes        100  10

HEARS  gw1  gw2  gw3
gw1    .    yes  NO
gw2    yes  .    NO
gw3    ?    ?    .

VOTER  PATH             ANSWERED   ROUND TRIP  REMARK
gw2    172.16.0.2:7947  12 ms ago  0.3 ms      -
gw2    [fd00::2]:7947   40 ms ago  0.3 ms      -
gw3    172.16.0.3:7947  never      -           away on purpose for 8.2 s more; lost, say gw1

warning: only one gateway takes networks";
        assert_eq!(page(&status()), expected);
    }

    #[test]
    fn the_gravest_comes_first() {
        let mut status = status();
        status.failover = Failover { possible: false, reason: Some("2 of 3 members".to_owned()) };
        status.registered = false;
        status.unregistered = Some("another host is registered as gw1".to_owned());
        status.silenced = true;
        let page = page(&status);
        assert!(page.starts_with("FAILOVER IMPOSSIBLE: 2 of 3 members\n\n"), "{page}");
        let why = "gateway gw1: NOT registered (another host is registered as gw1), fabric";
        assert!(page.contains(why), "{page}");
        assert!(page.contains("ALL NETWORKS SILENCED\n"), "{page}");
    }
}
