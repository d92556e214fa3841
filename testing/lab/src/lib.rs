//! The laboratory's scenarios: real agents, real etcd, real FRR and real packets, in network
//! namespaces of this machine.
//!
//! The program runs itself again as the agents and as their command line: with
//! `as-selvedge` as its first argument it is `selvedge`.

mod bgpd;
mod failover;
mod fleet;
mod instrument;
mod load;
mod logs;
mod majority;
mod mesh;
mod mesh_overlay;
mod migrate;
mod observed;
mod outage;
mod overlay;
mod progress;
mod restart;
mod statistics;
mod steady;
mod store;
mod store_away;
mod timeline;
mod view;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use selvedge_netlab::Lab;
use serde::Serialize;
use tracing_subscriber::EnvFilter;

use progress::say;

/// Runs the program with `args`, the first being its own name.
///
/// The exit code is 0 if every bound held, 1 if not or if the scenario could not be run, 2 if
/// the arguments are wrong.
#[must_use]
pub fn run(args: Vec<OsString>) -> ExitCode {
    if args.get(1).is_some_and(|first| first == fleet::AS_SELVEDGE) {
        return selvedge::cli::run(args.into_iter().skip(1));
    }
    if args.get(1).is_some_and(|first| first == load::AS_BUSY) {
        load::be_busy(args.get(2));
        return ExitCode::SUCCESS;
    }
    if args.get(1).is_some_and(|first| first == overlay::bare::AS_GOTATUN) {
        return match overlay::bare::be_gotatun(args.get(2).map(OsString::as_os_str)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                say!("error: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version too come this way. Where nobody reads, there is nobody to tell.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    log_to_stderr();
    clean_up_when_interrupted();
    for left in Lab::sweep() {
        say!("removed {left}, left over from a laboratory that was killed");
    }
    match cli.scenario {
        Scenario::Migrate(options) => conclude(migrate::run(&options)),
        Scenario::Failover(options) => conclude(failover::run(&options)),
        Scenario::Restart(options) => conclude(restart::run(&options)),
        Scenario::Load(options) => conclude(load::run(&options)),
        Scenario::StoreAway(options) => conclude(store_away::run(&options)),
        Scenario::Majority(options) => conclude(majority::run(&options)),
        Scenario::Bgpd(options) => conclude(bgpd::run(&options)),
        Scenario::Store(options) => conclude(store::run(&options)),
        Scenario::Mesh(options) => conclude(mesh::run(&options)),
        Scenario::MeshRestart(options) => conclude(overlay::comeback::run(&options)),
        Scenario::MeshLeave(options) => conclude(overlay::leave::run(&options)),
        Scenario::MeshRoam(options) => conclude(overlay::roam::run(&options)),
        Scenario::MeshSpeed(options) => conclude(overlay::speed::run(&options)),
        Scenario::MeshClients(options) => conclude(overlay::clients::run(&options)),
        Scenario::MeshExits(options) => conclude(overlay::exits::run(&options)),
        Scenario::MeshBridges(options) => conclude(overlay::bridges::run(&options)),
        Scenario::MeshOverlay(options) => conclude(mesh_overlay::run(&options)),
        Scenario::Instrument(options) => conclude(instrument::run(&options)),
    }
}

/// What a scenario has measured, and which of its bounds did not hold.
pub(crate) struct Outcome<T> {
    pub(crate) figures: T,
    pub(crate) broken: Vec<String>,
}

/// Scenarios of both planes on real etcd, real FRR, real sockets and real packets.
///
/// The last line on standard output is one JSON object; progress goes to standard error.
#[derive(Debug, Parser)]
#[command(name = "selvedge-lab", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Debug, Subcommand)]
enum Scenario {
    /// Move networks between healthy gateways; no packet may be lost
    Migrate(migrate::Options),
    /// Let a fault befall a gateway, again and again; every network must come back
    Failover(failover::Options),
    /// Restart and upgrade agents; no packet may be lost, and no network may move
    Restart(restart::Options),
    /// Keep all cores busy with other work; nothing may happen
    Load(load::Options),
    /// Let etcd go away and come back, as a whole and member by member; nothing may happen
    StoreAway(store_away::Options),
    /// Lose gateways and with them the majority of etcd; networks come back by the operator's
    /// command
    Majority(majority::Options),
    /// Kill the routing daemon of a serving gateway; its networks must come back
    Bgpd(bgpd::Options),
    /// Lose a gateway where etcd alone is real, with very many networks
    Store(store::Options),
    /// Let many agents of the mesh plane meet on real sockets, without WireGuard
    Mesh(mesh::Options),
    /// Kill agents of the mesh plane and start them again under traffic; packets must run again
    MeshRestart(overlay::comeback::Options),
    /// Let members leave a mesh; nothing of them may stay anywhere
    MeshLeave(overlay::leave::Options),
    /// Change a member's address under TCP; the connection must go on
    MeshRoam(overlay::roam::Options),
    /// Measure what a mesh carries, beside WireGuard alone
    MeshSpeed(overlay::speed::Options),
    /// Put clients behind routers, and cut off the peers that serve them; all must reach all
    MeshClients(overlay::clients::Options),
    /// Reach the world by two exits, and cut one off; packets must go on by the other
    MeshExits(overlay::exits::Options),
    /// Join meshes in a chain and a ring, and cut off a bridge; packets must find the other way
    MeshBridges(overlay::bridges::Options),
    /// Carry overlay networks over a mesh between sites, and lose a gateway of them; nothing may
    /// be in the clear on the underlay
    MeshOverlay(mesh_overlay::Options),
    /// Show what the laboratory itself can do, without agents
    Instrument(instrument::Options),
}

fn conclude<T: Serialize>(outcome: anyhow::Result<Outcome<T>>) -> ExitCode {
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(error) => {
            say!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let line = match serde_json::to_string(&outcome.figures) {
        Ok(line) => line,
        Err(error) => {
            say!("error: the figures cannot be written: {error}");
            return ExitCode::FAILURE;
        }
    };
    for bound in &outcome.broken {
        say!("a bound does not hold: {bound}");
    }
    let written = writeln!(std::io::stdout(), "{line}").is_ok();
    if written && outcome.broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}

/// Ctrl-C and SIGTERM end everything at any moment, so a thread of its own waits for them.
fn clean_up_when_interrupted() {
    std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let signalled = runtime.and_then(|runtime| runtime.block_on(signalled()));
        if signalled.is_ok() {
            say!("interrupted: cleaning up");
            Lab::cleanup();
            std::process::exit(130);
        }
    });
}

async fn signalled() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        for line in [
            "lab migrate --networks 20 --moves 10 --json",
            "lab failover --networks 100 --gateways 3 --runs 20 --fault silent --json",
            "lab failover --witness --runs 20 --fault cut --max-outage-ms 800",
            "lab failover --gateways 2 --store elsewhere --max-outage-ms 1500",
            "lab restart --networks 100 --how announced --how killed --json",
            "lab load --seconds 600 --json",
            "lab store-away --seconds 60 --json",
            "lab majority --max-outage-ms 2000 --json",
            "lab bgpd --runs 3 --json",
            "lab store --networks 10000 --json",
            "lab mesh --agents 200 --json",
            "lab mesh-restart --members 3 --runs 2 --max-outage-ms 2000 --json",
            "lab mesh-leave --members 5 --max-gone-ms 2000 --json",
            "lab mesh-roam --runs 2 --max-outage-ms 3000 --json",
            "lab mesh-speed --seconds 2 --runs 3 --min-ratio 0.8 --json",
            "lab mesh-clients --peers 5 --clients 10 --routers 3 --cuts 1 --json",
            "lab mesh-exits --users 12 --runs 1 --max-outage-ms 4000 --json",
            "lab mesh-bridges --meshes 4 --runs 1 --max-reroute-ms 5000 --json",
            "lab mesh-overlay --networks 20 --runs 4 --max-outage-ms 800 --json",
            "lab instrument --networks 2000 --json",
        ] {
            Cli::try_parse_from(line.split(' ')).expect("valid");
        }
        for line in ["lab failover --fault flood", "lab failover --witness --store elsewhere"] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
