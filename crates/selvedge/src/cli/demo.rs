use clap::Args;

use super::output::line;
use crate::demo::{self, Engines, Fabric, Options, Store};

#[derive(Args, Debug)]
pub(super) struct DemoArgs {
    /// How long packets run through the fabric, in seconds
    #[arg(
        long,
        value_name = "N",
        default_value_t = 30,
        value_parser = clap::value_parser!(u64).range(10..=3600)
    )]
    seconds: u64,
    /// How many overlay networks there are
    #[arg(
        long,
        value_name = "N",
        default_value_t = 24,
        value_parser = clap::value_parser!(u32).range(3..=200)
    )]
    networks: u32,
    /// Where the gateways agree on who serves what; etcd has to be installed
    #[arg(long, value_enum, default_value_t)]
    store: Store,
    /// How networks reach their gateway; FRRouting has to be installed
    #[arg(long, value_enum, default_value_t)]
    fabric: Fabric,
    /// Tell the story in plain lines, without live figures
    ///
    /// The story goes to standard error. What comes out is one line of JSON on standard output,
    /// with and without this option.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: DemoArgs) -> anyhow::Result<()> {
    let DemoArgs { seconds, networks, store, fabric, json } = args;
    let engines = Engines { store, fabric, ..Engines::default() };
    let outcome = demo::run(&Options { seconds, networks, plain: json, engines })?;
    line(&serde_json::to_string(&outcome)?)?;
    outcome.verdict()
}
