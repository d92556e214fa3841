use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use selvedge_netlab::Lab;

use crate::agent::stop_signal;

/// Whether Ctrl-C was pressed. The first time the demo ends in order at the next occasion; the
/// second time everything is removed from here and the process ends at once.
#[derive(Clone, Debug)]
pub(super) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    pub(super) fn listen() -> anyhow::Result<Self> {
        let pressed = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&pressed);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the runtime")?;
        let first = runtime.block_on(async { stop_signal() })?;
        let listen = move || {
            runtime.block_on(first);
            flag.store(true, Ordering::Relaxed);
            if let Ok(second) = runtime.block_on(async { stop_signal() }) {
                runtime.block_on(second);
                Lab::cleanup();
                std::process::exit(130);
            }
        };
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(listen)
            .context("cannot start a thread for signals")?;
        Ok(Self(pressed))
    }

    pub(super) fn pressed(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn check(&self) -> anyhow::Result<()> {
        match self.pressed() {
            true => bail!("interrupted; everything that was made is removed"),
            false => Ok(()),
        }
    }
}
