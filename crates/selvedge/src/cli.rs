//! The command line: [`run`] is the whole program.

mod agent;
mod demo;
mod findings;
mod gateway;
mod import;
mod mesh;
mod node;
mod output;
mod store;

use std::ffi::OsString;
use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use selvedge_api::{Client, ClientError};

use crate::config;

/// Runs the program with `args`, the first being its own name.
///
/// The exit code is 0 if all went well, 2 if the arguments are wrong, and 1 for everything else
/// that fails; the reason is then on standard error, with a word on what to do.
pub fn run(args: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let result = match cli.command {
        Command::Agent(args) => agent::run(*args),
        Command::Mesh(args) => blocking(mesh::run(args)),
        Command::Node(args) => blocking(node::run(args)),
        Command::Service(args) => blocking(node::run_service(args)),
        Command::Import(args) => import::run(args),
        Command::Gateway(args) => blocking(gateway::run(args)),
        Command::Store(args) => store::run(args),
        Command::Demo(args) => demo::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error);
            ExitCode::FAILURE
        }
    }
}

/// Keeps overlay networks together: WireGuard meshes without a control server, and gateways for
/// VXLAN/EVPN networks that move without losing a packet.
#[derive(Debug, Parser)]
#[command(name = "selvedge", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon: the planes that its configuration enables
    Agent(Box<agent::AgentArgs>),
    /// Create, join and look at WireGuard meshes
    Mesh(mesh::MeshArgs),
    /// Say what this node is called in a mesh, and what it is
    Node(node::NodeArgs),
    /// Offer services to a mesh
    Service(node::ServiceArgs),
    /// Take over the configuration of another daemon
    Import(import::ImportArgs),
    /// Look at the gateways and their networks, drain a gateway
    Gateway(gateway::GatewayArgs),
    /// Serve the embedded store to the agents on this machine
    ///
    /// For a first look, for tests and for the demo: it is kept in memory by this one process,
    /// without any check of who asks. Across machines, use etcd.
    Store(store::StoreArgs),
    /// Show a whole fabric on this machine, in network namespaces, with live figures
    Demo(demo::DemoArgs),
}

/// What every client of the agent takes.
#[derive(Args, Clone, Debug)]
struct ClientArgs {
    /// The agent's socket
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "SELVEDGE_SOCKET",
        default_value = config::SOCKET
    )]
    socket: PathBuf,
    /// Print JSON instead of text
    #[arg(long, global = true)]
    json: bool,
}

impl ClientArgs {
    fn client(&self) -> Result<Client, ClientError> {
        Client::new(&self.socket)
    }
}

fn usage(error: &clap::Error) -> ExitCode {
    // clap prints help and version too, to standard output and with code 0. Where nobody reads
    // any more, there is nobody to tell.
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

fn blocking<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(work)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn wrong_usage_is_2_and_failure_is_1() {
        let code = |args: &[&str]| format!("{:?}", run(args));
        let two = format!("{:?}", ExitCode::from(2));
        assert_eq!(code(&["selvedge"]), two);
        assert_eq!(code(&["selvedge", "mesh", "fly"]), two);
        let one = format!("{:?}", ExitCode::FAILURE);
        assert_eq!(code(&["selvedge", "mesh", "list", "--socket", "/nowhere/x"]), one);
        assert_eq!(code(&["selvedge", "agent", "--config", "/nowhere/x"]), one);
        assert_eq!(code(&["selvedge", "--version"]), format!("{:?}", ExitCode::SUCCESS));
    }

    #[test]
    fn clients_take_their_options_anywhere() {
        for args in [
            ["selvedge", "gateway", "--json", "--socket=/s", "status"],
            ["selvedge", "gateway", "status", "--json", "--socket=/s"],
        ] {
            let cli = Cli::try_parse_from(args).expect("valid");
            let Command::Gateway(args) = cli.command else { panic!("not gateway") };
            assert!(args.client.json);
            assert_eq!(args.client.socket, PathBuf::from("/s"));
        }
    }
}
