mod page;
mod work;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use selvedge_api::gateway::{ChangeRow, Duty, HistoryQuery, NetworkRow, Upstream};
use selvedge_model::{NodeName, Vni, VniRanges};

use super::ClientArgs;
use super::findings;
use super::output::{duration, or_dash, print, table, utc};
use crate::config::{Config, GatewayConfig};
use crate::gateway_plane;

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  selvedge gateway status
  selvedge gateway networks --only 1-20
  selvedge gateway drain                 before maintenance of this host
  selvedge gateway undrain
  selvedge gateway restart               after an upgrade; no packet is lost
  selvedge gateway watch                 what happens, as it happens
  selvedge gateway check                 what this host and its FRR lack")]
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
    /// Take the networks of a lost gateway over although nobody can be sure that it is lost
    Takeover {
        /// The lost gateway
        name: NodeName,
        /// Do it; without this, say what it means
        #[arg(long)]
        force: bool,
    },
    /// Fill a store that was emptied, or restored from an old backup, with what this gateway knows
    Refill {
        /// Do it; without this, say what it means
        #[arg(long)]
        force: bool,
    },
    /// Strike a node that is gone for good from the roster: it votes no more
    Remove {
        /// The node; its agent must not run
        name: NodeName,
    },
    /// Start the agent again, as it is installed now, without moving a network or losing a packet
    Restart {
        /// How long the other gateways wait for it, 1s to 60s
        #[arg(long = "for", value_name = "TIME", default_value = "10s", value_parser = duration)]
        away: Duration,
    },
    /// List the changes of owners, the latest last
    History {
        /// Of this network only
        vni: Option<Vni>,
        /// How many
        #[arg(long, value_name = "N", default_value_t = 20)]
        last: usize,
    },
    /// Print what happens at this gateway, until interrupted
    Watch,
    /// Look at this host and its FRRouting, and print the lines that put right what is wrong
    ///
    /// Asks the agent. With --config it looks by itself, as root, and no agent need run.
    Check {
        /// The configuration of an agent that does not run
        #[arg(long, short, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

pub(super) async fn run(args: GatewayArgs) -> anyhow::Result<()> {
    let client = args.client.client()?;
    let json = args.client.json;
    match args.command {
        GatewayCommand::Status => print(json, &client.gateway().await?, page::page),
        GatewayCommand::Networks { only } => {
            let mut rows = client.networks().await?;
            rows.retain(|row| only.as_ref().is_none_or(|only| only.contains(row.vni)));
            print(json, &rows, |rows| networks(rows))
        }
        GatewayCommand::Drain { name, no_wait, timeout } => {
            let mut drain = client.drain(name).await?;
            if !no_wait {
                drain = work::drained(&client, drain, timeout).await?;
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
        GatewayCommand::Takeover { name, force: false } => Err(work::explain_takeover(&name)),
        GatewayCommand::Takeover { name, force: true } => {
            print(json, &work::take_over(&client, name).await?, work::TakenOver::text)
        }
        GatewayCommand::Refill { force: false } => Err(work::explain_refill()),
        GatewayCommand::Refill { force: true } => {
            print(json, &work::refill(&client).await?, work::refilled)
        }
        GatewayCommand::Remove { name } => {
            let removed = client.remove(&name).await?;
            print(json, &removed, |removed| format!("{} is being removed", removed.name))
        }
        GatewayCommand::Restart { away } => {
            print(json, &work::restart(&client, away).await?, work::Restarted::text)
        }
        GatewayCommand::History { vni, last } => {
            let query = HistoryQuery { vni, last: Some(last) };
            print(json, &client.history(query).await?, |rows| history(rows))
        }
        GatewayCommand::Watch => work::watch(&client, json).await,
        GatewayCommand::Check { config } => {
            let findings = match config {
                Some(file) => gateway_plane::check(&gateway_of(&file)?).await,
                None => client.check().await.context("with --config FILE no agent is needed")?,
            };
            print(json, &findings, |findings| findings::gravest_last(findings))?;
            findings::verdict(&findings)
        }
    }
}

fn gateway_of(file: &Path) -> anyhow::Result<GatewayConfig> {
    let config = Config::load(Some(file), |_| Ok(()))?;
    config.gateway.with_context(|| {
        format!("{} has no section [gateway]: there is nothing to check", file.display())
    })
}

fn history(rows: &[ChangeRow]) -> String {
    let header = ["TIME (UTC)", "VNI", "EPOCH", "OWNER", "REASON"];
    let row = |row: &ChangeRow| {
        let ChangeRow { vni, epoch, owner, reason, at_ms } = row;
        vec![utc(*at_ms), vni.to_string(), epoch.to_string(), owner.to_string(), reason.clone()]
    };
    table(&header, rows.iter().map(row))
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
    use selvedge_api::gateway::{Role, State};

    use super::*;

    fn name(text: &str) -> NodeName {
        text.parse().expect("valid")
    }

    #[test]
    fn the_history_is_a_table() {
        let row = ChangeRow {
            vni: Vni::try_from(7).expect("valid"),
            epoch: 3,
            owner: name("gw1"),
            reason: "gw2 was convicted".to_owned(),
            at_ms: 1_709_164_800_250,
        };
        let expected = "\
TIME (UTC)               VNI  EPOCH  OWNER  REASON
2024-02-29 00:00:00.250  7    3      gw1    gw2 was convicted";
        assert_eq!(history(&[row]), expected);
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
