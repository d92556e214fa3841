//! What this host does for all meshes together: it forwards, it masquerades, and it sends what has
//! no better route by an exit. One task converges on the latest wish, and takes everything back at
//! the end; what an earlier run left behind after a crash is found again and taken back, too.

use std::path::PathBuf;
use std::time::Duration;

use selvedge_host::forwarding::{self, Forwarding};
use selvedge_host::masquerade::Masquerade;
use selvedge_host::netlink::{self, Netlink};
use selvedge_host::nft::{self, Nft};
use selvedge_host::wireguard::DETOUR;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, error, info, warn};

use super::topology::Ground;
use crate::disk;

/// How often the host is looked at.
const CARE: Duration = Duration::from_secs(30);

/// The plane's end of the task. Dropping it ends the task, which then takes everything back.
#[derive(Debug)]
pub(super) struct Landlord {
    /// `None`: not known yet, so that what an earlier run did stays.
    wishes: watch::Sender<Option<Ground>>,
    task: JoinHandle<()>,
}

impl Landlord {
    /// Starts the task; what was changed is kept in `file`.
    pub(super) fn start(netlink: Netlink, file: PathBuf) -> Self {
        let (wishes, follow) = watch::channel(None);
        let kept = Kept::read(&file);
        let (nft, masquerade) = (Nft::default(), None);
        let worker = Worker { netlink, nft, file, kept, masquerade, doubted: false, ill: false };
        Self { wishes, task: tokio::spawn(worker.run(follow)) }
    }

    /// Sets what to converge on.
    pub(super) fn set(&self, ground: Ground) {
        self.wishes.send_if_modified(|current| {
            let differs = current.as_ref() != Some(&ground);
            *current = Some(ground);
            differs
        });
    }

    /// What it converges on, if it was told.
    pub(super) fn wish(&self) -> Option<Ground> {
        self.wishes.borrow().clone()
    }

    /// Takes everything back, and waits for that.
    pub(super) async fn stop(self) {
        drop(self.wishes);
        if let Err(error) = self.task.await {
            error!(%error, "the host's settings may not be as they were");
        }
    }
}

/// Settings of the kernel that were changed, as they are kept on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    /// When the host was started, as the kernel names it: another start has other settings.
    boot: String,
    forwarding: Option<Forwarding>,
    loose: Option<Forwarding>,
}

impl Kept {
    fn read(file: &std::path::Path) -> Self {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let fresh = Self { boot: boot.trim().to_owned(), ..Self::default() };
        let Ok(text) = std::fs::read(file) else { return fresh };
        match serde_json::from_slice::<Self>(&text) {
            Ok(kept) if kept.boot == fresh.boot => kept,
            Ok(_) => fresh,
            Err(error) => {
                warn!(file = %file.display(), %error, "cannot read which settings were changed");
                fresh
            }
        }
    }

    /// Kept over a crash, so that a later run puts back what was.
    fn write(&self, file: &std::path::Path) {
        let written = match (&self.forwarding, &self.loose) {
            (None, None) => match std::fs::remove_file(file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                Ok(()) | Err(_) => Ok(()),
            },
            _ => serde_json::to_vec(self).map_err(Into::into).and_then(|it| disk::write(file, &it)),
        };
        if let Err(error) = written {
            warn!(file = %file.display(), %error, "cannot write which settings were changed");
        }
    }
}

/// Why the host is not as it is wished.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    #[error(transparent)]
    Nft(#[from] nft::Error),
    #[error(transparent)]
    Setting(#[from] forwarding::Error),
}

struct Worker {
    netlink: Netlink,
    nft: Nft,
    file: PathBuf,
    kept: Kept,
    /// What is masqueraded; `None`: what an earlier run left, if anything.
    masquerade: Option<Masquerade>,
    /// It is time to look whether that is still so.
    doubted: bool,
    /// The last attempt failed, and that was said.
    ill: bool,
}

impl Worker {
    async fn run(mut self, mut wishes: watch::Receiver<Option<Ground>>) {
        let mut care = interval(CARE);
        care.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                changed = wishes.changed() => if changed.is_err() { break },
                _ = care.tick() => self.doubted = true,
            }
            let ground = wishes.borrow_and_update().clone();
            if let Some(ground) = ground {
                self.converge(&ground).await;
            }
        }
        self.converge(&Ground::default()).await;
    }

    async fn converge(&mut self, ground: &Ground) {
        let before = self.kept.clone();
        let problems = [
            self.loosen(ground.detour_ipv4),
            self.detour(ground.detour).await,
            // Nothing is to leave by the address that it came with.
            self.masquerade(&ground.masquerade).await,
            self.forward(ground.forward),
        ];
        if self.kept != before {
            self.kept.write(&self.file);
        }
        let problem = problems.into_iter().find_map(Result::err);
        match &problem {
            Some(error) if !self.ill => warn!(%error, "this host cannot do all for its meshes"),
            Some(error) => debug!(%error, "this host still cannot do all for its meshes"),
            None => {}
        }
        self.ill = problem.is_some();
    }

    async fn detour(&mut self, wanted: bool) -> Result<(), Problem> {
        if !wanted {
            return Ok(self.netlink.del_detour(DETOUR).await?);
        }
        if !self.netlink.has_detour(DETOUR).await? {
            self.netlink.add_detour(DETOUR).await?;
            info!(table = DETOUR.table, "a table of routes by members is looked into");
        }
        Ok(())
    }

    /// The agent's own packets go another way than the answers would, were they not its own.
    fn loosen(&mut self, wanted: bool) -> Result<(), Problem> {
        let before = std::mem::take(&mut self.kept.loose);
        self.kept.loose = switched(before, wanted, Forwarding::loosen)?;
        Ok(())
    }

    fn forward(&mut self, wanted: bool) -> Result<(), Problem> {
        let before = std::mem::take(&mut self.kept.forwarding);
        if before.is_some() != wanted {
            info!(forwards = wanted, "what this host does with packets of others");
        }
        self.kept.forwarding = switched(before, wanted, Forwarding::enable)?;
        Ok(())
    }

    async fn masquerade(&mut self, wanted: &Masquerade) -> Result<(), Problem> {
        let nothing = *wanted == Masquerade::default();
        let known = self.masquerade.as_ref() == Some(wanted);
        // Others may have flushed all tables.
        let doubted = std::mem::take(&mut self.doubted) && !nothing;
        if known && !doubted {
            return Ok(());
        }
        let done = match nothing {
            true => Masquerade::remove(&self.nft).await,
            false => wanted.apply(&self.nft).await,
        };
        match done {
            // Who has no nftables has nothing of ours in them.
            Err(error) if nothing && self.masquerade.is_none() => debug!(%error, "no nftables"),
            done => done?,
        }
        if !nothing && !known {
            info!(
                sources = wanted.sources.len(),
                "what members send out of this host is masqueraded"
            );
        }
        self.masquerade = Some(wanted.clone());
        Ok(())
    }
}

/// Settings are changed if they are wanted and were not, and put back if they are not and were.
fn switched(
    before: Option<Forwarding>,
    wanted: bool,
    change: impl FnOnce() -> Result<Forwarding, forwarding::Error>,
) -> Result<Option<Forwarding>, forwarding::Error> {
    match (before, wanted) {
        (None, true) => change().map(Some),
        (Some(before), false) => before.restore().map(|()| None),
        (before, _) => Ok(before),
    }
}
