use anyhow::Context;
use clap::Args;
use selvedge_store::embedded::{self, Address, Listener};

use super::output::progress;

#[derive(Args, Debug)]
pub(super) struct StoreArgs {
    /// Where to listen: unix:/PATH or tcp:ADDRESS:PORT
    #[arg(long, value_name = "ADDRESS", default_value = "unix:/run/selvedge/store.sock")]
    listen: Address,
}

pub(super) fn run(args: StoreArgs) -> anyhow::Result<()> {
    super::blocking(async {
        let shutdown = crate::agent::stop_signal()?;
        let listener = bind(&args.listen).await?;
        progress(&format!("the embedded store listens on {}", listener.address()?));
        embedded::serve(listener, shutdown).await.context("the store failed")
    })
}

async fn bind(address: &Address) -> anyhow::Result<Listener> {
    if let Address::Unix(path) = address
        && let Some(folder) = path.parent()
    {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot create the folder {}", folder.display()))?;
    }
    Listener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}
