//! `selvedge-sim`: runs a scenario from a seed and prints one JSON object as its last line.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use selvedge_sim::gateway::scale;
use selvedge_sim::mesh::scale as mesh;

#[derive(Parser)]
#[command(name = "selvedge-sim", about = "Selvedge's protocols on virtual time", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Many gateways share many networks; one is lost and comes back.
    Gateway(scale::Options),
    /// Many members: changes, crashes, joins, and a partition.
    Mesh(mesh::Options),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Gateway(options) => gateway(&options),
        Command::Mesh(options) => mesh(&options),
    }
}

#[allow(clippy::print_stdout, clippy::print_stderr, reason = "a command's output")]
fn gateway(options: &scale::Options) -> ExitCode {
    let report = scale::run(options);
    for violation in &report.details {
        eprintln!("violation: {violation}");
    }
    if !options.json {
        eprintln!("{report:#?}");
    }
    println!("{}", serde_json::to_string(&report).expect("a report of plain numbers"));
    if report.violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[allow(clippy::print_stdout, clippy::print_stderr, reason = "a command's output")]
fn mesh(options: &mesh::Options) -> ExitCode {
    let report = mesh::run(options);
    for detail in &report.details {
        eprintln!("violation: {detail}");
    }
    if !options.json {
        eprintln!("{report:#?}");
    }
    println!("{}", serde_json::to_string(&report).expect("a report of plain numbers"));
    if report.violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
