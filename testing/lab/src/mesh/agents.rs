//! The agents, and what they say of each other.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use selvedge::config::{MeshConfig, MeshOptions, OptionsByMesh, WireGuard};
use selvedge::mesh_plane::{self, MeshHandle};
use selvedge_api::mesh::{CreateRequest, EditRequest, InviteRequest, JoinRequest, What};
use selvedge_model::NodeId;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Missing;

/// The mesh.
const NAME: &str = "lab";
/// The port of all agents.
const PORT: u16 = 7654;
/// How many join at a time.
const AT_ONCE: usize = 8;

/// What an agent said, and when.
struct Said {
    by: NodeId,
    at: Instant,
    what: What,
}

/// An agent.
struct Agent {
    node: NodeId,
    handle: MeshHandle,
    task: JoinHandle<()>,
}

/// All agents that run.
pub(super) struct Agents {
    folder: PathBuf,
    token: String,
    /// How many were ever started: each has an address of its own.
    started: u32,
    running: Vec<Agent>,
    crashed: Missing,
    said: mpsc::UnboundedReceiver<Said>,
    say: mpsc::UnboundedSender<Said>,
    false_failures: usize,
}

/// What all agents have sent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Traffic {
    pub(super) sent: u64,
    pub(super) connected: u64,
}

impl Agents {
    /// Starts the founder.
    pub(super) async fn found(folder: &Path) -> anyhow::Result<Self> {
        let (handle, task) = start(folder, 0).await?;
        let request = CreateRequest { name: NAME.to_owned(), ..CreateRequest::default() };
        let mesh = handle.create(request).await?;
        let request =
            InviteRequest { uses: 100_000, expires_s: 86_400, ..InviteRequest::default() };
        let token = handle.invite(NAME, request).await?.token;
        let (say, said) = mpsc::unbounded_channel();
        let founder = Agent { node: mesh.node, handle, task };
        let mut agents = Self {
            folder: folder.to_owned(),
            token,
            started: 1,
            running: Vec::new(),
            crashed: Missing::new(),
            said,
            say,
            false_failures: 0,
        };
        agents.listen(founder);
        Ok(agents)
    }

    /// Has so many join, and waits until all know all.
    pub(super) async fn gather(&mut self, count: usize, patience: Duration) -> anyhow::Result<()> {
        while self.count() < count {
            let mut joining = JoinSet::new();
            for _ in 0..AT_ONCE.min(count - self.count()) {
                joining.spawn(enter(self.folder.clone(), self.started, self.token.clone()));
                self.started += 1;
            }
            for agent in joining.join_all().await {
                self.listen(agent.context("an agent cannot join")?);
            }
        }
        let until = Instant::now() + patience;
        for place in 0..self.count() {
            while self.members(place).await? < self.count() {
                anyhow::ensure!(Instant::now() < until, "agent {place} does not know all others");
                sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// Starts one more agent and has it join; when it asked, and its place.
    pub(super) async fn join(&mut self) -> anyhow::Result<(Instant, usize)> {
        self.drain();
        let at = Instant::now();
        let agent = enter(self.folder.clone(), self.started, self.token.clone()).await?;
        self.started += 1;
        self.listen(agent);
        Ok((at, self.count() - 1))
    }

    /// The number of agents that run.
    pub(super) fn count(&self) -> usize {
        self.running.len()
    }

    /// The agent at a place.
    pub(super) fn node(&self, place: usize) -> NodeId {
        self.running[place].node
    }

    /// Has an agent say something else about itself; when.
    pub(super) async fn change(&mut self, place: usize, text: &str) -> anyhow::Result<Instant> {
        self.drain();
        let description = Some(text.to_owned());
        let request = EditRequest { description, ..EditRequest::default() };
        let at = Instant::now();
        self.running[place].handle.edit(NAME, request).await?;
        Ok(at)
    }

    /// Ends an agent without a word; when, and who it was.
    pub(super) fn crash(&mut self, place: usize) -> (Instant, NodeId) {
        self.drain();
        let Agent { node, task, .. } = self.running.swap_remove(place);
        self.crashed.insert(node);
        task.abort();
        (Instant::now(), node)
    }

    /// Waits until all that run, `about` aside, have said something; how long after `since` each
    /// did, in ascending order.
    pub(super) async fn until_known(
        &mut self,
        since: Instant,
        is_news: impl Fn(&What) -> bool,
        about: NodeId,
        patience: Duration,
    ) -> anyhow::Result<Vec<Duration>> {
        let mut missing: Missing = self.running.iter().map(|agent| agent.node).collect();
        missing.remove(&about);
        let (all, mut known) = (missing.len(), Vec::new());
        let until = since + patience;
        while !missing.is_empty() {
            let Ok(Some(said)) = timeout(until - Instant::now(), self.said.recv()).await else {
                bail!("{} of {all} agents do not know after {patience:?}", missing.len());
            };
            self.note(&said);
            if is_news(&said.what) && missing.remove(&said.by) {
                known.push(said.at - since);
            }
        }
        known.sort();
        Ok(known)
    }

    /// Waits until an agent knows as many members as the founder; how long after `since` it did.
    pub(super) async fn until_holds_all(
        &mut self,
        place: usize,
        since: Instant,
        patience: Duration,
    ) -> anyhow::Result<Duration> {
        let all = self.members(0).await?;
        while self.members(place).await? < all {
            anyhow::ensure!(since.elapsed() < patience, "the new agent does not get the state");
            sleep(Duration::from_millis(5)).await;
        }
        Ok(since.elapsed())
    }

    /// What all that run have sent so far.
    pub(super) async fn traffic(&self) -> anyhow::Result<Traffic> {
        let mut sum = Traffic::default();
        for agent in &self.running {
            let counters = agent.handle.traffic().await?;
            sum.sent += counters.wire_bytes_sent;
            sum.connected += counters.connected;
        }
        Ok(sum)
    }

    /// Takes note of what was said so far.
    pub(super) fn drain(&mut self) {
        while let Ok(said) = self.said.try_recv() {
            self.note(&said);
        }
    }

    /// What was said so far does not count: the mesh was being built.
    pub(super) fn forget(&mut self) {
        self.drain();
        self.false_failures = 0;
    }

    /// How often somebody was held to be down who ran.
    pub(super) fn false_failures(&self) -> usize {
        self.false_failures
    }

    fn note(&mut self, said: &Said) {
        if let What::MemberDown(who) = &said.what
            && !self.crashed.contains(&who.node)
            && !self.crashed.contains(&said.by)
        {
            self.false_failures += 1;
        }
    }

    async fn members(&self, place: usize) -> anyhow::Result<usize> {
        let meshes = self.running[place].handle.list().await?;
        Ok(meshes.first().map_or(0, |mesh| mesh.members))
    }

    /// Passes on what an agent says from now on.
    fn listen(&mut self, agent: Agent) {
        let (mut events, say, by) = (agent.handle.watch(), self.say.clone(), agent.node);
        tokio::spawn(async move {
            loop {
                let what = events.next().await.what;
                if say.send(Said { by, at: Instant::now(), what }).is_err() {
                    return;
                }
            }
        });
        self.running.push(agent);
    }
}

/// Starts an agent and has it join.
async fn enter(folder: PathBuf, number: u32, token: String) -> anyhow::Result<Agent> {
    let (handle, task) = start(&folder, number).await?;
    let request = JoinRequest { token, ..JoinRequest::default() };
    let mesh = handle.join(request).await?;
    Ok(Agent { node: mesh.node, handle, task })
}

async fn start(folder: &Path, number: u32) -> anyhow::Result<(MeshHandle, JoinHandle<()>)> {
    let state = folder.join(format!("agent{number}"));
    std::fs::DirBuilder::new().mode(0o700).create(&state)?;
    // One address each: 127.1.0.0 and what follows.
    let address = IpAddr::from(Ipv4Addr::from(0x7f01_0000 + number));
    let base = MeshOptions { endpoints: vec![address.into()], ..MeshOptions::default() };
    let config = MeshConfig {
        name: format!("agent{number}").parse()?,
        state,
        listen: SocketAddr::new(address, PORT),
        bootstrap: Vec::new(),
        record: None,
        wireguard: WireGuard::Dry,
        options: OptionsByMesh { base, ..OptionsByMesh::default() },
        dns: None,
    };
    mesh_plane::spawn(config, CancellationToken::new()).await
}
