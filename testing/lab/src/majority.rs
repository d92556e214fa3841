//! `majority`: with a gateway the majority of etcd is lost, so that the operator has to decide.

use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use selvedge_model::{Time, Vni};
use selvedge_netlab::campus::Fault;
use selvedge_netlab::clock::{now, wait_until};
use serde::Serialize;

use crate::Outcome;
use crate::fleet::{Fleet, FleetOptions, flowing};
use crate::observed::owners_in_doubt;
use crate::outage::{AFTER, BEFORE, GRACE, await_packets, gaps};
use crate::progress::say;
use crate::statistics::{Spread, millis};

/// Options of the scenario.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    fleet: FleetOptions,
    /// The bound on the time until all networks are back after the command, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 2000.0)]
    max_outage_ms: f64,
    /// The bound on the time until the status says that nobody can take over, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 5000.0)]
    max_known_ms: f64,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    lost: Vec<String>,
    /// Networks that the lost gateways served; on how many packets ran before the command, and
    /// at the end.
    affected: usize,
    without_command: usize,
    restored: usize,
    /// From the loss until a survivor's status said that nobody can take over.
    known_ms: f64,
    reason: String,
    /// How long the commands took; from each to the first packets on the networks of the gateway
    /// that it named.
    command_ms: Spread,
    outage_ms: Spread,
    owners_in_doubt: usize,
    sender_late_ms: f64,
}

/// Runs the scenario.
pub(crate) fn run(options: &Options) -> anyhow::Result<Outcome<Figures>> {
    let mut fleet_options = options.fleet.clone();
    // Three of five are a majority of the voters, while one of three members of etcd is none.
    fleet_options.gateways.get_or_insert(5);
    let mut fleet = Fleet::start(&fleet_options)?;
    let lost = whose_loss_stops_etcd(&fleet)?;
    let survivor = fleet.gateways().pop().context("there is no gateway")?;
    let (view, all) = (fleet.view(), fleet.networks());
    let owned: Vec<Vec<Vni>> = lost.iter().map(|name| view.served_by(name, &all)).collect();
    let networks = owned.concat();
    fleet.wait_plain()?;
    let mut streams = fleet.start_streams(&networks)?;
    std::thread::sleep(BEFORE);
    say!("cutting {}, and with them the majority of etcd", lost.join(" and "));
    let struck = now();
    lost.iter().try_for_each(|name| fleet.strike(name, Fault::Cut))?;
    let (known, reason) = await_impossible(&mut fleet, &survivor, struck)?;
    std::thread::sleep(UNDECIDED);
    let without_command = flowing(&streams, &networks).len();
    let commands = command(&fleet, &survivor, &lost)?;
    let restored = await_packets(&streams, &networks, LIMIT);
    let back = now();
    let owners_in_doubt = end(&mut fleet, &lost)?;
    streams.stop(GRACE);
    let answered = commands.iter().map(|(began, ended)| millis(*ended - *began));
    let began = commands.iter().map(|(began, _)| *began).zip(&owned);
    let outages = began.flat_map(|(at, its)| gaps(&streams.report_between(at, back), its));
    let figures = Figures {
        lost,
        affected: networks.len(),
        without_command,
        restored,
        known_ms: millis(known - struck),
        reason,
        command_ms: Spread::of(&answered.collect::<Vec<_>>()),
        outage_ms: Spread::of(&outages.collect::<Vec<_>>()),
        owners_in_doubt,
        sender_late_ms: millis(streams.report_between(struck, back).sender_late),
    };
    let broken = broken(options, &figures);
    Ok(Outcome { figures, broken })
}

/// The operator's word about each of the lost gateways. Returns when each was given and when it
/// was answered.
fn command(fleet: &Fleet, survivor: &str, lost: &[String]) -> anyhow::Result<Vec<(Time, Time)>> {
    let say_it = |name: &String| {
        say!("{survivor}: takeover --force {name}");
        let at = now();
        fleet.take_over(survivor, name)?;
        Ok((at, now()))
    };
    lost.iter().map(say_it).collect()
}

/// Ends the fault and returns for how many networks the owner is in doubt then.
fn end(fleet: &mut Fleet, lost: &[String]) -> anyhow::Result<usize> {
    lost.iter().try_for_each(|name| fleet.heal(name, Fault::Cut))?;
    std::thread::sleep(AFTER);
    fleet.etcd()?.wait_healthy(LIMIT)?;
    let in_doubt = owners_in_doubt(fleet, &fleet.networks())?.len();
    fleet.wait_whole()?;
    Ok(in_doubt)
}

/// How long nobody may take over without a command.
const UNDECIDED: Duration = Duration::from_secs(3);
const LIMIT: Duration = Duration::from_secs(60);

/// As few gateways as possible whose members of etcd are a majority.
fn whose_loss_stops_etcd(fleet: &Fleet) -> anyhow::Result<Vec<String>> {
    let (mut members, gateways) = (fleet.etcd()?.members(), fleet.gateways());
    members.retain(|name| gateways.contains(name));
    let count = fleet.etcd()?.members().len() / 2 + 1;
    if members.len() < count {
        bail!("the gateways hold {} members of etcd, which is no majority", members.len());
    }
    members.truncate(count);
    Ok(members)
}

/// When `gateway` first says that a lost gateway would not be replaced, and why.
fn await_impossible(
    fleet: &mut Fleet,
    gateway: &str,
    struck: Time,
) -> anyhow::Result<(Time, String)> {
    let mut last = serde_json::Value::Null;
    let impossible = wait_until("a status that says that nobody can take over", LIMIT, || {
        // An agent that is busy with the loss may answer late.
        last = fleet.status(gateway).unwrap_or_default()["failover"].take();
        Ok(last["possible"] == false)
    });
    impossible.map_err(|error| fleet.explained(error.into()))?;
    let reason = last["reason"].as_str().unwrap_or_default().to_owned();
    let known = now();
    say!("{gateway} knows it after {:.0} ms: {reason}", millis(known - struck));
    Ok((known, reason))
}

fn broken(options: &Options, figures: &Figures) -> Vec<String> {
    let mut broken = Vec::new();
    let Figures { affected, restored, without_command, .. } = figures;
    if restored < affected {
        broken.push(format!("{restored} of {affected} networks came back"));
    }
    if *without_command > 0 {
        broken.push(format!("{without_command} networks were taken over without a command"));
    }
    if figures.known_ms > options.max_known_ms {
        broken.push(format!("the status said so after {:.0} ms", figures.known_ms));
    }
    if figures.outage_ms.max.is_some_and(|max| max > options.max_outage_ms) {
        broken.push(format!("after the command it took {:?} ms", figures.outage_ms.max));
    }
    if figures.owners_in_doubt > 0 {
        broken.push(format!("the owner of {} networks was in doubt", figures.owners_in_doubt));
    }
    broken
}
