//! Hooks of meshes: commands of the operator's before and after an interface comes up and goes
//! down. `docs/hooks.md` is the page for those who write them.
//!
//! They run in the task of the interface, one after the other, each within its time limit, so
//! that `pre_up` has ended before the interface is made. One that fails is reported and holds
//! nothing up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use selvedge_api::mesh::What;
use selvedge_host::wireguard;
use selvedge_mesh::Role;
use selvedge_model::{MeshId, NodeId};
use tracing::{debug, warn};

use super::applier::Desired;
use super::events::{Stream, event};
use crate::hooks::{command, perform, printable};

/// The operator's commands for meshes: programs and their arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshHooks {
    /// Run before an interface is made.
    pub pre_up: Option<Vec<String>>,
    /// Run once it is up.
    pub post_up: Option<Vec<String>>,
    /// Run before it is removed.
    pub pre_down: Option<Vec<String>>,
    /// Run once it is gone.
    pub post_down: Option<Vec<String>>,
    /// How long each may run.
    pub timeout: Duration,
}

impl Default for MeshHooks {
    fn default() -> Self {
        let (pre_up, post_up, pre_down, post_down) = Default::default();
        Self { pre_up, post_up, pre_down, post_down, timeout: Duration::from_secs(5) }
    }
}

impl MeshHooks {
    /// How long an interface's hooks may hold up the end of the agent; those of all interfaces
    /// run at once.
    pub(crate) fn at_the_end(&self) -> Duration {
        let hooks = [&self.pre_down, &self.post_down];
        hooks.into_iter().flatten().map(|_| self.timeout).sum()
    }
}

/// Which of the commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    PreUp,
    PostUp,
    PreDown,
    PostDown,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::PreUp => "pre_up",
            Self::PostUp => "post_up",
            Self::PreDown => "pre_down",
            Self::PostDown => "post_down",
        }
    }
}

/// Runs the hooks of one mesh.
#[derive(Clone, Debug)]
pub(super) struct Hooks {
    pub(super) config: MeshHooks,
    pub(super) mesh: MeshId,
    /// This node.
    pub(super) node: NodeId,
    /// What people call the mesh.
    pub(super) name: String,
    pub(super) stream: Stream,
    /// How many have failed, in all meshes.
    pub(super) failures: Arc<AtomicU64>,
}

impl Hooks {
    /// Runs a hook to its end, if there is one.
    pub(super) async fn run(&self, kind: Kind, device: &wireguard::Config, desired: &Desired) {
        let Some(words) = self.command(kind) else { return };
        let Some(command) = command(words, self.facts(kind, device, desired)) else { return };
        let (hook, mesh) = (kind.name(), &self.name);
        debug!(mesh, hook, ?words, "hook started");
        if let Err(problem) = perform(command, self.config.timeout).await {
            warn!(mesh, hook, problem, "the hook failed");
            self.failures.fetch_add(1, Ordering::Relaxed);
            let what = What::HookFailed { hook: hook.to_owned(), problem };
            self.stream.publish(event(self.mesh, mesh, what));
        }
    }

    /// Whether there is such a hook.
    pub(super) fn has(&self, kind: Kind) -> bool {
        self.command(kind).is_some()
    }

    fn command(&self, kind: Kind) -> Option<&[String]> {
        match kind {
            Kind::PreUp => self.config.pre_up.as_deref(),
            Kind::PostUp => self.config.post_up.as_deref(),
            Kind::PreDown => self.config.pre_down.as_deref(),
            Kind::PostDown => self.config.post_down.as_deref(),
        }
    }

    /// What has been applied is told; before that, what the interface is made with.
    fn facts(
        &self,
        kind: Kind,
        device: &wireguard::Config,
        desired: &Desired,
    ) -> Vec<(&'static str, String)> {
        let own = device.addresses.first();
        let text = |text: Option<String>| text.unwrap_or_default();
        let ipv4 = desired.addresses.iter().find(|it| it.addr().is_ipv4());
        let role = desired.role.map(|role| match role {
            Role::Peer => "peer".to_owned(),
            Role::Client => "client".to_owned(),
        });
        vec![
            ("SELVEDGE_EVENT", kind.name().to_owned()),
            ("SELVEDGE_MESH", printable(&self.name)),
            ("SELVEDGE_MESH_ID", self.mesh.to_string()),
            ("SELVEDGE_NODE", self.node.to_string()),
            ("SELVEDGE_ROLE", text(role)),
            ("SELVEDGE_INTERFACE", device.name.clone()),
            ("SELVEDGE_ADDRESS", text(own.map(|own| own.addr().to_string()))),
            ("SELVEDGE_PREFIX", text(own.map(|own| own.network().to_string()))),
            ("SELVEDGE_IPV4", text(ipv4.map(|own| own.addr().to_string()))),
            ("SELVEDGE_PORT", device.listen_port.to_string()),
            ("SELVEDGE_MTU", desired.mtu.unwrap_or(device.mtu).to_string()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use selvedge_host::wireguard::PrivateKey;
    use tokio::time::timeout;

    use super::*;

    /// Far more than anything here takes.
    const LIMIT: Duration = Duration::from_secs(60);

    fn device() -> wireguard::Config {
        wireguard::Config {
            name: "sv-campus".to_owned(),
            private_key: PrivateKey::from_bytes([1; 32]),
            listen_port: 51820,
            mtu: 1420,
            addresses: vec!["fd00::7/64".parse().expect("a prefix")],
            backend: None,
            control: None,
        }
    }

    fn hooks(script: &str, timeout: Duration) -> Hooks {
        let sh = ["/bin/sh", "-c", script].map(ToOwned::to_owned).to_vec();
        let config = MeshHooks { post_up: Some(sh), timeout, ..MeshHooks::default() };
        let name = "cam\npus".to_owned();
        let (mesh, node) = (MeshId([1; 20]), NodeId([2; 32]));
        let (stream, failures) = (Stream::new(), Arc::default());
        Hooks { config, mesh, node, name, stream, failures }
    }

    #[tokio::test]
    async fn the_facts_are_in_the_environment() {
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("log");
        let script = format!("env | grep ^SELVEDGE_ | sort > {}", log.display());
        let hooks = hooks(&script, LIMIT);
        let desired = Desired::default();
        hooks.run(Kind::PreUp, &device(), &desired).await;
        assert!(!log.exists(), "there is no such hook");
        hooks.run(Kind::PostUp, &device(), &desired).await;
        let expected = |ipv4: &str, mtu: u16, role: &str| {
            format!(
                "SELVEDGE_ADDRESS=fd00::7\nSELVEDGE_EVENT=post_up\nSELVEDGE_INTERFACE=sv-campus\n\
                 SELVEDGE_IPV4={ipv4}\nSELVEDGE_MESH=cam pus\nSELVEDGE_MESH_ID={}\n\
                 SELVEDGE_MTU={mtu}\nSELVEDGE_NODE={}\nSELVEDGE_PORT=51820\n\
                 SELVEDGE_PREFIX=fd00::/64\nSELVEDGE_ROLE={role}\n",
                MeshId([1; 20]),
                NodeId([2; 32]),
            )
        };
        assert_eq!(fs::read_to_string(&log).expect("written"), expected("", 1420, ""));
        let desired = Desired {
            mtu: Some(1320),
            role: Some(Role::Client),
            addresses: ["fd00::7/64", "10.9.0.7/16"].map(|it| it.parse().expect("valid")).into(),
            ..Desired::default()
        };
        hooks.run(Kind::PostUp, &device(), &desired).await;
        let found = fs::read_to_string(&log).expect("written");
        assert_eq!(found, expected("10.9.0.7", 1320, "client"));
    }

    #[test]
    fn the_end_waits_for_the_hooks_that_there_are() {
        let some = Some(vec!["/x".to_owned()]);
        let mut hooks = MeshHooks { post_up: some.clone(), ..MeshHooks::default() };
        assert_eq!(hooks.at_the_end(), Duration::ZERO);
        hooks.pre_down.clone_from(&some);
        assert_eq!(hooks.at_the_end(), Duration::from_secs(5));
        hooks.post_down = some;
        assert_eq!(hooks.at_the_end(), Duration::from_secs(10));
    }

    #[tokio::test]
    async fn failures_are_told_and_hold_nothing_up() {
        for (script, limit, expected) in [
            ("echo no >&2; exit 3", LIMIT, "exit status: 3: no"),
            ("sleep 1000", Duration::from_millis(300), "killed, because it took longer than 0.3 s"),
        ] {
            let hooks = hooks(script, limit);
            let mut watcher = hooks.stream.subscribe();
            let (device, desired) = (device(), Desired::default());
            let run = hooks.run(Kind::PostUp, &device, &desired);
            timeout(LIMIT, run).await.expect("it holds nothing up");
            let told = timeout(LIMIT, watcher.next()).await.expect("it is told");
            assert_eq!(told.mesh, Some(MeshId([1; 20])));
            let What::HookFailed { hook, problem } = told.what else { panic!("{told:?}") };
            assert_eq!((hook.as_str(), problem.as_str()), ("post_up", expected));
            assert_eq!(hooks.failures.load(Ordering::Relaxed), 1);
        }
    }
}
