//! `selvedge-sim`: runs a scenario from a seed and prints one JSON object as its last line.

use std::ops::Range;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use selvedge_gateway::Timing;
use selvedge_sim::gateway::{chaos, scale};
use selvedge_sim::mesh::scale as mesh;

#[derive(Parser)]
#[command(name = "selvedge-sim", about = "Selvedge's protocols on virtual time", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Many gateways share many networks; one is lost and comes back. With `--chaos`, everything
    /// goes wrong.
    Gateway(GatewayOptions),
    /// Many members: changes, crashes, joins, and a partition.
    Mesh(mesh::Options),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Gateway(options) if options.chaos => chaos(&options),
        Command::Gateway(options) => gateway(&options.scale()),
        Command::Mesh(options) => mesh(&options),
    }
}

/// What to run.
#[derive(clap::Args)]
struct GatewayOptions {
    /// Number of overlay networks; 50000, or 60 with `--chaos`.
    #[arg(long)]
    networks: Option<u32>,
    /// Number of gateways; 8, or as the seed says with `--chaos`.
    #[arg(long)]
    gateways: Option<usize>,
    /// Where all randomness comes from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Planned moves that may run at once; without `--chaos`.
    #[arg(long, default_value_t = 100)]
    budget: usize,
    /// Print the JSON line alone.
    #[arg(long)]
    json: bool,
    /// Everything that may go wrong does, at random.
    #[arg(long)]
    chaos: bool,
    /// The seeds of many runs, as `FROM..TO`, the last one not included; with `--chaos`.
    #[arg(long, value_parser = seeds, requires = "chaos")]
    seeds: Option<Range<u64>>,
    /// How many seeds run at once; as many as there are processors.
    #[arg(long, requires = "chaos")]
    jobs: Option<usize>,
}

fn seeds(text: &str) -> Result<Range<u64>, String> {
    let ends =
        text.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    ends.filter(|seeds: &Range<u64>| !seeds.is_empty())
        .ok_or_else(|| "expected two numbers as in 0..1000, the first one less".to_owned())
}

impl GatewayOptions {
    fn scale(&self) -> scale::Options {
        scale::Options {
            networks: self.networks.unwrap_or(50_000),
            gateways: self.gateways.unwrap_or(8),
            seed: self.seed,
            budget: self.budget,
            json: self.json,
        }
    }

    fn chaos(&self) -> chaos::Options {
        let processors = || std::thread::available_parallelism().map_or(1, usize::from);
        chaos::Options {
            seeds: self.seeds.clone().unwrap_or(self.seed..self.seed + 1),
            networks: self.networks.unwrap_or(60),
            gateways: self.gateways,
            jobs: self.jobs.unwrap_or_else(processors),
            timing: Timing::default(),
        }
    }
}

#[allow(clippy::print_stdout, clippy::print_stderr, reason = "a command's output")]
fn chaos(options: &GatewayOptions) -> ExitCode {
    let report = chaos::run(&options.chaos());
    for violation in &report.details {
        eprintln!("violation: {violation}\n");
    }
    if !options.json {
        eprintln!("{:#?}", chaos::Report { details: Vec::new(), ..report.clone() });
    }
    println!("{}", serde_json::to_string(&report).expect("a report of plain numbers"));
    if report.violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
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
