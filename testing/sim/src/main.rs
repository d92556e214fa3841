//! `selvedge-sim`: runs a scenario from a seed and prints one JSON object as its last line.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use selvedge_gateway::Timing;
use selvedge_sim::gateway::{chaos as gateway_chaos, scale};
use selvedge_sim::mesh::scenario::{Report, Scenario, chaos, play, shrink};
use selvedge_sim::mesh::{plot, replay, scale as mesh};

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
    /// Many members: changes, crashes, joins, and a partition; or what a file says.
    Mesh(MeshOptions),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Gateway(options) if options.chaos => all_goes_wrong(&options),
        Command::Gateway(options) => gateway(&options.scale()),
        Command::Mesh(options) => mesh_command(&options),
    }
}

/// What to run of the mesh plane.
#[derive(clap::Args)]
struct MeshOptions {
    #[command(flatten)]
    scale: mesh::Options,
    /// Play this scenario instead, with the seeds that it names.
    #[arg(long, value_name = "FILE", group = "played")]
    scenario: Option<PathBuf>,
    /// Play scenarios in which everything that may go wrong does, at random.
    #[arg(long, group = "played")]
    chaos: bool,
    /// Other seeds, as `FROM..TO`, the last one not included; with `--scenario` or `--chaos`.
    #[arg(long, value_parser = seeds, requires = "played")]
    seeds: Option<Range<u64>>,
    /// Compare the ways of spreading news, and draw the outcome into this file, an SVG.
    #[arg(long, value_name = "FILE", conflicts_with = "played")]
    plot: Option<PathBuf>,
    /// Replay the log of an agent that ran with `--record`, and say what its core came to.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["played", "plot"])]
    replay: Option<PathBuf>,
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

    fn chaos(&self) -> gateway_chaos::Options {
        let processors = || std::thread::available_parallelism().map_or(1, usize::from);
        gateway_chaos::Options {
            seeds: self.seeds.clone().unwrap_or(self.seed..self.seed + 1),
            networks: self.networks.unwrap_or(60),
            gateways: self.gateways,
            jobs: self.jobs.unwrap_or_else(processors),
            timing: Timing::default(),
        }
    }
}

#[allow(clippy::print_stdout, clippy::print_stderr, reason = "a command's output")]
fn all_goes_wrong(options: &GatewayOptions) -> ExitCode {
    let report = gateway_chaos::run(&options.chaos());
    for violation in &report.details {
        eprintln!("violation: {violation}\n");
    }
    if !options.json {
        eprintln!("{:#?}", gateway_chaos::Report { details: Vec::new(), ..report.clone() });
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

fn mesh_command(options: &MeshOptions) -> ExitCode {
    if let Some(file) = &options.replay {
        return replayed(file, options.scale.json);
    }
    let (seeds, json) = (options.seeds.clone(), options.scale.json);
    match (&options.scenario, &options.plot) {
        (Some(file), _) => scenario(file, seeds, json),
        (None, Some(file)) => draw(file, &options.scale),
        (None, None) if options.chaos => {
            let own = options.scale.seed;
            play_all(seeds.unwrap_or(own..own + 1).map(|seed| (chaos(seed), seed)), json)
        }
        (None, None) => mesh(&options.scale),
    }
}

#[allow(clippy::print_stdout, clippy::print_stderr, reason = "a command's output")]
fn replayed(file: &Path, json: bool) -> ExitCode {
    match replay::replay(file) {
        Ok(report) => {
            if !json {
                eprintln!("{report:#?}");
            }
            println!("{}", serde_json::to_string(&report).expect("a report of plain numbers"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Plays a scenario from a file.
#[allow(clippy::print_stderr, reason = "a command's output")]
fn scenario(file: &Path, seeds: Option<Range<u64>>, json: bool) -> ExitCode {
    let scenario = match Scenario::load(file) {
        Ok(scenario) => scenario,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let seeds = seeds.map_or_else(|| scenario.seeds.clone(), Iterator::collect);
    play_all(seeds.into_iter().map(|seed| (scenario.clone(), seed)), json)
}

/// Plays scenarios with seeds, and looks for a shorter one that fails if one fails.
#[allow(clippy::print_stdout, clippy::print_stderr, reason = "a command's output")]
fn play_all(runs: impl Iterator<Item = (Scenario, u64)>, json: bool) -> ExitCode {
    let (mut reports, mut told) = (Vec::new(), false);
    for (scenario, seed) in runs {
        let report = play(&scenario, seed);
        if report.violations > 0 && !std::mem::replace(&mut told, true) {
            tell_violation(&scenario, &report);
        }
        reports.push(report);
    }
    if !json {
        eprintln!("{reports:#?}");
    }
    let violations: usize = reports.iter().map(|report| report.violations).sum();
    let line = serde_json::json!({ "violations": violations, "runs": reports });
    println!("{line}");
    if violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[allow(clippy::print_stderr, reason = "a command's output")]
fn tell_violation(scenario: &Scenario, failed: &Report) {
    for detail in &failed.details {
        eprintln!("violation: {detail}");
    }
    let Some(shrunk) = shrink(scenario, failed.seed) else { return };
    eprintln!(
        "\nthe shortest scenario found, after {} attempts, that breaks {} with seed {}:\n\n{}",
        shrunk.attempts,
        shrunk.rule,
        failed.seed,
        shrunk.scenario.to_text()
    );
    eprintln!("what happened before:\n{}", shrunk.history.join("\n"));
}

#[allow(clippy::print_stderr, reason = "a command's output")]
fn draw(file: &Path, options: &mesh::Options) -> ExitCode {
    match std::fs::write(file, plot::comparison(options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("writing {}: {error}", file.display());
            ExitCode::FAILURE
        }
    }
}
