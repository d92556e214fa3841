//! What an operator does with the agents, by their command line and by hand.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use selvedge_netlab::Host;
use selvedge_netlab::clock::wait_until;
use serde_json::Value;

use super::{AS_SELVEDGE, Fleet};

/// How an agent is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Restart {
    /// By the operator's command
    Announced,
    /// By the operator's command, after its program was replaced
    Upgraded,
    /// Killed, and started again at once
    Killed,
}

/// What the agents have counted, all together; what an agent does not report is missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) failovers: u64,
    pub(crate) fences: u64,
    pub(crate) store_losses: u64,
}

impl Fleet {
    /// Tells a gateway to hand over its networks, or to take networks again.
    pub(crate) fn drain(&self, gateway: &str, drained: bool) -> anyhow::Result<()> {
        let words = if drained { ["drain", "--no-wait"].as_slice() } else { &["undrain"] };
        self.tell(gateway, words).map(|_| ())
    }

    /// Takes the networks of `lost` over without the store, by the word of `gateway`'s operator.
    pub(crate) fn take_over(&self, gateway: &str, lost: &str) -> anyhow::Result<()> {
        self.tell(gateway, &["takeover", "--force", lost]).map(|_| ())
    }

    /// What a gateway says of itself.
    pub(crate) fn status(&self, gateway: &str) -> anyhow::Result<Value> {
        let text = self.tell(gateway, &["--json", "status"])?;
        serde_json::from_str(&text).with_context(|| format!("{gateway}'s status is no JSON"))
    }

    /// What all agents have counted since they were started.
    pub(crate) fn counted(&self) -> anyhow::Result<Counted> {
        let mut sum = Counted::default();
        for gateway in self.gateways() {
            let status = self.status(&gateway)?;
            let count = |name: &str| status["counters"][name].as_u64().unwrap_or_default();
            sum.failovers += count("failovers");
            sum.fences += count("fences");
            sum.store_losses += count("store_losses");
        }
        Ok(sum)
    }

    /// Starts a gateway's agent again, and waits until it has registered anew.
    pub(crate) fn restart(&mut self, gateway: &str, how: Restart) -> anyhow::Result<()> {
        let before = self.registration(gateway);
        match how {
            Restart::Announced => self.tell(gateway, &["restart"]).map(|_| ())?,
            Restart::Upgraded => {
                replace(&self.program(gateway)?)?;
                self.tell(gateway, &["restart"])?;
            }
            Restart::Killed => {
                let agent = self.agents.get_mut(gateway).context("there is no such agent")?;
                agent.restart()?;
            }
        }
        let back = wait_until(&format!("the return of {gateway}"), RETURN, || {
            let now = self.registration(gateway);
            Ok(now.is_some() && now != before)
        });
        back.map_err(|error| self.explained(error.into()))
    }

    /// The revision that names the run of a gateway's agent.
    fn registration(&self, gateway: &str) -> Option<u64> {
        let key = format!("/selvedge/live/{gateway}");
        let seen = self.changes().into_iter().rev().find(|change| change.key == key)?;
        seen.value.map(|_| seen.revision)
    }

    /// Runs `selvedge gateway` with these words on a gateway, and returns what it prints.
    fn tell(&self, gateway: &str, words: &[&str]) -> anyhow::Result<String> {
        self.command(gateway, "gateway", words)
    }

    /// Runs `selvedge` on a host with a command of this `kind`, and returns what it prints.
    pub(super) fn command(&self, host: &str, kind: &str, words: &[&str]) -> anyhow::Result<String> {
        let socket = self.path(host, "sock").display().to_string();
        let arguments = [&[AS_SELVEDGE, kind, "--socket", socket.as_str()], words].concat();
        let program = this_program()?;
        let program = program.to_str().context("this program's path is not UTF-8")?;
        Ok(self.host(host)?.sh(program, &arguments)?)
    }

    pub(super) fn host(&self, name: &str) -> anyhow::Result<&Host> {
        let witness = self.campus.witness.as_ref().map(|witness| &witness.host);
        let mut others = witness.into_iter().chain(self.access_points());
        match others.find(|host| host.name() == name) {
            Some(host) => Ok(host),
            None => Ok(&self.campus.gateway(name)?.host),
        }
    }

    /// The program of an agent: a copy of its own, if that is wanted.
    pub(super) fn program(&self, name: &str) -> anyhow::Result<PathBuf> {
        if !self.options.own_programs {
            return this_program();
        }
        let path = self.path(name, "program");
        if !path.exists() {
            replace(&path)?;
        }
        Ok(path)
    }
}

const RETURN: Duration = Duration::from_secs(30);

/// The file of the running program.
pub(crate) fn this_program() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("cannot find this program")
}

/// Puts a new copy of this program at `path`, in one step, as a package manager does.
fn replace(path: &Path) -> anyhow::Result<()> {
    let new = path.with_extension("new");
    std::fs::copy(this_program()?, &new)
        .with_context(|| format!("cannot write {}", new.display()))?;
    if let Err(error) = std::fs::rename(&new, path) {
        bail!("cannot replace {}: {error}", path.display());
    }
    Ok(())
}
