//! What this host does for all meshes together: it forwards, it masquerades, and it sends what has
//! no better route by an exit. One task converges on the latest wish, and takes everything back at
//! the end, but for what keeps packets from going past their exit; what an earlier run left behind
//! after a crash is found again and taken back, too.

use std::path::{Path, PathBuf};
use std::time::Duration;

use selvedge_host::forwarding::{self, Forwarding};
use selvedge_host::masquerade::Masquerade;
use selvedge_host::netlink::{self, Netlink};
use selvedge_host::nft::{self, Nft};
use selvedge_host::wireguard::{DETOUR, PROTOCOL};
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
        let worker = Worker {
            netlink,
            nft,
            file,
            kept,
            masquerade,
            doubted: false,
            ill: false,
            contested: false,
        };
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
    fn read(file: &Path) -> Self {
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
    fn write(&self, file: &Path) -> Result<(), Problem> {
        let written = match (&self.forwarding, &self.loose) {
            (None, None) => match std::fs::remove_file(file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                Ok(()) | Err(_) => Ok(()),
            },
            _ => serde_json::to_vec(self).map_err(Into::into).and_then(|it| disk::write(file, &it)),
        };
        written.map_err(|source| Problem::Keep { file: file.to_owned(), source })
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
    #[error(
        "cannot write to {} which settings of the kernel are changed, so they are not: {source}",
        file.display()
    )]
    Keep { file: PathBuf, source: std::io::Error },
}

/// Settings of the kernel that belong together.
#[derive(Clone, Copy)]
struct Settings {
    name: &'static str,
    /// Where it is kept what they were.
    kept: fn(&mut Kept) -> &mut Option<Forwarding>,
    /// What is to be changed, as they are now.
    plan: fn() -> Result<Forwarding, forwarding::Error>,
}

const FORWARDING: Settings = Settings {
    name: "forwarding",
    kept: |kept| &mut kept.forwarding,
    plan: Forwarding::switched_on,
};
/// The agent's own packets go another way than the answers would, were they not its own.
const LOOSE: Settings =
    Settings { name: "rp_filter", kept: |kept| &mut kept.loose, plan: Forwarding::loosened };

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
    /// Others changed settings back, and that was said.
    contested: bool,
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
        let last = wishes.borrow().clone();
        // Unless it was known what is wished, what an earlier run did stays.
        if let Some(Ground { closed, .. }) = last {
            self.converge(&Ground { closed, detour: closed, ..Ground::default() }).await;
            if closed {
                info!(
                    table = DETOUR.exits,
                    "packets to elsewhere stay closed out while the agent is stopped, because \
                     `exit` names a member; to let them pass, flush this table (ip route, ip -6 \
                     route)"
                );
            }
        }
    }

    async fn converge(&mut self, ground: &Ground) {
        let doubted = std::mem::take(&mut self.doubted);
        let problems = [
            self.hold(LOOSE, ground.detour_ipv4, doubted),
            self.detour(ground).await,
            // Nothing is to leave by the address that it came with.
            self.masquerade(&ground.masquerade, doubted).await,
            self.hold(FORWARDING, ground.forward, doubted),
        ];
        let problem = problems.into_iter().find_map(Result::err);
        match &problem {
            Some(error) if !self.ill => warn!(%error, "this host cannot do all for its meshes"),
            Some(error) => debug!(%error, "this host still cannot do all for its meshes"),
            None => {}
        }
        self.ill = problem.is_some();
    }

    async fn detour(&mut self, ground: &Ground) -> Result<(), Problem> {
        if !ground.closed {
            self.netlink.open_table(DETOUR.exits, PROTOCOL).await?;
        } else if self.netlink.close_table(DETOUR.exits, PROTOCOL).await? {
            let table = DETOUR.exits;
            info!(table, "packets to elsewhere are dropped while their exit does not carry them");
        }
        if !ground.detour {
            return Ok(self.netlink.del_detour(DETOUR).await?);
        }
        if !self.netlink.has_detour(DETOUR).await? {
            self.netlink.add_detour(DETOUR).await?;
            info!(table = DETOUR.table, "a table of routes by members is looked into");
        }
        Ok(())
    }

    /// Changes settings if that is wanted, and puts them back if it is not. What they were is on
    /// disk before they are changed: otherwise a crash would make them stay.
    fn hold(&mut self, settings: Settings, wanted: bool, doubted: bool) -> Result<(), Problem> {
        let known = (settings.kept)(&mut self.kept).clone();
        match (known, wanted) {
            (None, true) => {
                info!(settings = settings.name, "settings of the kernel are changed");
                self.change(settings, None, &(settings.plan)()?)
            }
            (Some(known), false) => {
                known.restore()?;
                info!(settings = settings.name, "settings of the kernel are as they were");
                *(settings.kept)(&mut self.kept) = None;
                self.kept.write(&self.file)
            }
            (Some(known), true) if doubted => self.insist(settings, known),
            (None, false) | (Some(_), true) => Ok(()),
        }
    }

    /// Changes again what others have changed meanwhile, and what has come since.
    fn insist(&mut self, settings: Settings, known: Forwarding) -> Result<(), Problem> {
        let missing = (settings.plan)()?;
        if missing.is_empty() {
            return Ok(());
        }
        if !std::mem::replace(&mut self.contested, true) {
            let settings = settings.name;
            warn!(settings, "others changed settings of the kernel, or made interfaces; set again");
        }
        self.change(settings, Some(known), &missing)
    }

    fn change(
        &mut self,
        settings: Settings,
        known: Option<Forwarding>,
        plan: &Forwarding,
    ) -> Result<(), Problem> {
        *(settings.kept)(&mut self.kept) = Some(known.clone().unwrap_or_default().and(plan));
        let changed =
            self.kept.write(&self.file).and_then(|()| plan.apply().map_err(Problem::from));
        if changed.is_err() {
            *(settings.kept)(&mut self.kept) = known;
        }
        changed
    }

    async fn masquerade(&mut self, wanted: &Masquerade, doubted: bool) -> Result<(), Problem> {
        let nothing = *wanted == Masquerade::default();
        let known = self.masquerade.as_ref() == Some(wanted);
        // Others may have flushed all tables.
        if known && (nothing || !doubted) {
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

#[cfg(test)]
mod tests {
    use selvedge_host::netns::{self, Ephemeral};
    use selvedge_host::sysctl::{self, Family};

    use super::*;

    /// Runs `work` with a worker in a namespace that does not forward.
    fn in_namespace(test: &str, work: impl AsyncFnOnce(Worker) + Send) {
        if let Err(error) = netns::can_create() {
            assert!(std::env::var_os("CI").is_none_or(|value| value != "true"), "{test}: {error}");
            eprintln!("SKIPPED {test}: {error}");
            return;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let name = format!("svg-{}-{}", std::process::id(), test.len());
        let namespace = Ephemeral::create(&name).expect("the right to make it was checked");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let file = folder.path().join("settings.json");
        let run = || {
            sysctl::set(Family::V4, "all", "forwarding", 0).expect("set");
            runtime.block_on(async {
                let worker = Worker {
                    netlink: Netlink::new().expect("a socket"),
                    nft: Nft::default(),
                    kept: Kept::read(&file),
                    file,
                    masquerade: None,
                    doubted: false,
                    ill: false,
                    contested: false,
                };
                work(worker).await;
            });
        };
        namespace.run(run).expect("entered");
    }

    fn forwards() -> bool {
        sysctl::get(Family::V4, "all", "forwarding").expect("readable") == 1
    }

    #[test]
    fn what_cannot_be_kept_is_not_changed() {
        in_namespace("ground: a full disk", async |mut worker| {
            let good = std::mem::replace(&mut worker.file, "/proc/nowhere/settings.json".into());
            let error = worker.hold(FORWARDING, true, false).expect_err("it cannot be written");
            assert!(error.to_string().contains("so they are not"), "{error}");
            assert!(!forwards() && worker.kept.forwarding.is_none());
            worker.file = good;
            worker.hold(FORWARDING, true, false).expect("changed");
            assert!(forwards());
            assert_eq!(Kept::read(&worker.file), worker.kept, "as after a crash");
            worker.hold(FORWARDING, false, false).expect("put back");
            assert!(!forwards() && !worker.file.exists());
        });
    }

    #[test]
    fn what_others_change_is_set_again_and_put_back_at_last() {
        in_namespace("ground: contested", async |mut worker| {
            worker.hold(FORWARDING, true, false).expect("changed");
            sysctl::set(Family::V4, "all", "forwarding", 0).expect("set");
            worker.hold(FORWARDING, true, false).expect("not looked at");
            assert!(!forwards() && !worker.contested);
            worker.hold(FORWARDING, true, true).expect("looked at");
            assert!(forwards() && worker.contested);
            worker.hold(FORWARDING, false, false).expect("put back");
            assert!(!forwards());
        });
    }

    #[test]
    fn what_an_exit_is_to_carry_stays_closed_after_the_end() {
        in_namespace("ground: closed", async |worker| {
            let netlink = worker.netlink.clone();
            let (wishes, follow) = watch::channel(None);
            let task = tokio::spawn(worker.run(follow));
            wishes.send_replace(Some(Ground { detour: true, closed: true, ..Ground::default() }));
            while !netlink.has_detour(DETOUR).await.expect("readable") {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            drop(wishes);
            task.await.expect("ended");
            assert!(netlink.has_detour(DETOUR).await.expect("readable"));
            assert!(!netlink.close_table(DETOUR.exits, PROTOCOL).await.expect("it is closed"));
        });
    }
}
