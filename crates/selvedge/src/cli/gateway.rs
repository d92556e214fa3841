use std::time::{Duration, Instant};

use anyhow::bail;
use clap::{Args, Subcommand};
use selvedge_api::Client;
use selvedge_api::gateway::{Drain, Duty, NetworkRow, NodeRow, Status, Upstream};
use selvedge_model::{NodeName, VniRanges};

use super::ClientArgs;
use super::output::{duration, or_dash, print, spinner, table, yes};

/// How often a drain is looked at while somebody waits for its end.
const LOOK: Duration = Duration::from_millis(250);

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  selvedge gateway status
  selvedge gateway networks --only 1-20
  selvedge gateway drain                 before maintenance of this host
  selvedge gateway undrain")]
pub(super) struct GatewayArgs {
    #[command(flatten)]
    pub(super) client: ClientArgs,
    #[command(subcommand)]
    command: GatewayCommand,
}

#[derive(Debug, Subcommand)]
enum GatewayCommand {
    /// Show this gateway, the store and the other gateways
    Status,
    /// List the networks: who serves them, and what this host does for them
    Networks {
        /// Only these, such as 1-20,30
        #[arg(long, value_name = "VNIS")]
        only: Option<VniRanges>,
    },
    /// Move all networks away from a gateway, without losing a packet, and wait for the end
    Drain {
        /// The gateway [default: the one that is asked]
        name: Option<NodeName>,
        /// Do not wait
        #[arg(long)]
        no_wait: bool,
        /// How long to wait, such as 30s or 10m
        #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
        timeout: Duration,
    },
    /// Let networks be placed on a gateway again
    Undrain {
        /// The gateway [default: the one that is asked]
        name: Option<NodeName>,
    },
}

pub(super) async fn run(args: GatewayArgs) -> anyhow::Result<()> {
    let client = args.client.client()?;
    let json = args.client.json;
    match args.command {
        GatewayCommand::Status => print(json, &client.gateway().await?, status),
        GatewayCommand::Networks { only } => {
            let mut rows = client.networks().await?;
            rows.retain(|row| only.as_ref().is_none_or(|only| only.contains(row.vni)));
            print(json, &rows, |rows| networks(rows))
        }
        GatewayCommand::Drain { name, no_wait, timeout } => {
            let mut drain = client.drain(name).await?;
            if !no_wait {
                drain = drained(&client, drain, timeout).await?;
            }
            print(json, &drain, |drain| match drain.serving {
                0 => format!("{} is drained", drain.name),
                left => format!("{} is draining: {left} networks left", drain.name),
            })
        }
        GatewayCommand::Undrain { name } => {
            let drain = client.undrain(name).await?;
            print(json, &drain, |drain| format!("{} takes networks again", drain.name))
        }
    }
}

/// Waits until the gateway serves nothing any more.
async fn drained(client: &Client, mut drain: Drain, limit: Duration) -> anyhow::Result<Drain> {
    let end = Instant::now() + limit;
    let bar = spinner();
    while drain.serving > 0 {
        bar.set_message(format!("{}: {} networks left", drain.name, drain.serving));
        if Instant::now() >= end {
            bar.finish_and_clear();
            bail!(
                "{} still serves {} networks after {} s; it stays drained (see `selvedge \
                 gateway status`; `selvedge gateway undrain` takes it back)",
                drain.name,
                drain.serving,
                limit.as_secs()
            );
        }
        tokio::time::sleep(LOOK).await;
        let status = client.gateway().await?;
        // Whoever is not listed any more serves nothing.
        let row = status.nodes.into_iter().find(|node| node.name == drain.name);
        drain.serving = row.map_or(0, |row| row.serving);
    }
    bar.finish_and_clear();
    Ok(drain)
}

fn status(status: &Status) -> String {
    let Status { name, fabric, store, networks, .. } = status;
    let connected = if store.connected { "connected" } else { "NOT connected" };
    let registered = if status.registered { "registered" } else { "NOT registered" };
    let drained = if status.drained { ", drained" } else { "" };
    let mut text = format!(
        "gateway {name}: {registered}{drained}, fabric {fabric}\n\
         store {}: {connected}, revision {}, lease {}\n\
         networks {}: {} served, {} moving, {} unassigned\n\
         planner {}\n\n",
        store.engine,
        store.revision,
        or_dash(store.lease.as_deref()),
        networks.total,
        networks.serving,
        networks.moving,
        networks.unassigned,
        or_dash(status.planner.as_ref()),
    );
    let header = ["NODE", "REGISTERED", "DRAINED", "IDS", "SERVING"];
    text.push_str(&table(&header, status.nodes.iter().map(node)));
    for warning in &status.warnings {
        text.push_str(&format!("\n\nwarning: {warning}"));
    }
    text
}

fn node(node: &NodeRow) -> Vec<String> {
    let legacy = if node.legacy { " (predecessor)" } else { "" };
    vec![
        format!("{}{legacy}", node.name),
        yes(node.registered),
        yes(node.drained),
        node.ids.to_string(),
        node.serving.to_string(),
    ]
}

fn networks(rows: &[NetworkRow]) -> String {
    let header =
        ["VNI", "STATE", "CURRENT", "NEXT", "HERE", "FABRIC", "UPSTREAM", "ANSWERS", "REASON"];
    table(&header, rows.iter().map(network))
}

fn network(row: &NetworkRow) -> Vec<String> {
    let [fabric, upstream, answers] = duty(row.desired, row.observed);
    vec![
        row.vni.to_string(),
        row.state.as_str().to_owned(),
        or_dash(row.current.as_ref()),
        or_dash(row.next.as_ref()),
        row.role.as_str().to_owned(),
        fabric,
        upstream,
        answers,
        or_dash(row.reason.as_deref()),
    ]
}

/// What this host does; where that is not what it should do, `is>should`.
fn duty(desired: Duty, observed: Option<Duty>) -> [String; 3] {
    let flag = |on: bool| if on { "on" } else { "off" };
    let words = |duty: Duty| {
        let upstream = match duty.upstream {
            Upstream::Off => "off",
            Upstream::Whole => "whole",
            Upstream::Halves => "halves",
        };
        [flag(duty.fabric), upstream, flag(duty.answering)]
    };
    let should = words(desired);
    let is = observed.map_or(["?"; 3], words);
    std::array::from_fn(|i| match is[i] == should[i] {
        true => is[i].to_owned(),
        false => format!("{}>{}", is[i], should[i]),
    })
}

#[cfg(test)]
mod tests {
    use selvedge_api::gateway::{Counters, Counts, Role, State, Store};
    use selvedge_model::Vni;

    use super::*;

    fn name(text: &str) -> NodeName {
        text.parse().expect("valid")
    }

    #[test]
    fn the_status_is_a_page() {
        let row = |text: &str, registered, drained, serving| NodeRow {
            name: name(text),
            registered,
            drained,
            legacy: text == "old",
            ids: 100,
            serving,
        };
        let value = Status {
            name: name("gw1"),
            incarnation: Some(5),
            store: Store {
                engine: "etcd".to_owned(),
                connected: true,
                revision: 812,
                lease: Some("694d".to_owned()),
            },
            fabric: "frr".to_owned(),
            registered: true,
            drained: false,
            planner: Some(name("gw2")),
            nodes: vec![row("gw1", true, false, 12), row("old", true, true, 0)],
            networks: Counts { total: 20, serving: 19, moving: 1, unassigned: 0 },
            counters: Counters::default(),
            warnings: vec!["only one gateway takes networks".to_owned()],
        };
        let expected = "\
gateway gw1: registered, fabric frr
store etcd: connected, revision 812, lease 694d
networks 20: 19 served, 1 moving, 0 unassigned
planner gw2

NODE               REGISTERED  DRAINED  IDS  SERVING
gw1                yes         no       100  12
old (predecessor)  yes         yes      100  0

warning: only one gateway takes networks";
        assert_eq!(status(&value), expected);
    }

    #[test]
    fn networks_show_where_the_host_lags_behind() {
        let idle = NetworkRow {
            vni: Vni::try_from(7).expect("valid"),
            state: State::Idle,
            number: 1,
            current: Some(name("gw1")),
            next: None,
            role: Role::Current,
            desired: Duty { fabric: true, upstream: Upstream::Whole, answering: true },
            observed: Some(Duty { fabric: true, upstream: Upstream::Halves, answering: true }),
            epoch: 3,
            since: None,
            reason: Some("drain of gw2".to_owned()),
        };
        let moving = NetworkRow {
            vni: Vni::try_from(12).expect("valid"),
            state: State::MigrationArpEnabled,
            number: 6,
            next: Some(name("gw2")),
            role: Role::None,
            desired: Duty::default(),
            observed: None,
            reason: None,
            ..idle.clone()
        };
        let expected = "\
VNI  STATE                  CURRENT  NEXT  HERE     FABRIC  UPSTREAM      ANSWERS  REASON
7    idle                   gw1      -     current  on      halves>whole  on       drain of gw2
12   migration-arp-enabled  gw1      gw2   none     ?>off   ?>off         ?>off    -";
        assert_eq!(networks(&[idle, moving]), expected);
    }
}
