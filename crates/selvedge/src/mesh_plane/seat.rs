//! One mesh of this node: its core, its WireGuard, and its file.

use std::collections::BTreeMap;

use selvedge_host::wireguard::PeerSpec;
use selvedge_mesh::{Event, Mesh};
use selvedge_model::{MeshId, NodeId, WgKey};
use tokio::task::JoinHandle;
use tracing::{debug, error, info};

use super::applier::Peers;
use super::files::MeshFile;
use super::setup::Wire;

/// How many messages wait for a write at most; what is dropped, reconciliation repeats.
const MAX_HELD: usize = 4096;

/// A message to a member.
pub(super) type Message = (NodeId, Vec<u8>);

/// A mesh in use. What its core wants sent is held back until the state that it was decided on
/// is on disk, so that nothing is promised that a crash would undo; writes are one at a time,
/// and each writes all that has changed since the one before.
pub(super) struct Seated {
    pub(super) core: Mesh,
    pub(super) wire: Wire,
    changed: bool,
    writing: bool,
    write: Option<JoinHandle<()>>,
    /// Covered by the write that is under way.
    in_write: Vec<Message>,
    /// Not yet covered by a write.
    held: Vec<Message>,
}

/// What a mesh wants done after its core was called.
#[derive(Default)]
pub(super) struct Wanted {
    /// To be sent now.
    pub(super) send: Vec<Message>,
    /// To be written now; [`Seated::written`] is called afterwards.
    pub(super) write: Option<MeshFile>,
    /// Whether somebody became a member or ceased to be one.
    pub(super) members_changed: bool,
}

impl Seated {
    pub(super) fn new(core: Mesh, wire: Wire) -> Self {
        let (in_write, held) = (Vec::new(), Vec::new());
        Self { core, wire, changed: false, writing: false, write: None, in_write, held }
    }

    pub(super) fn id(&self) -> MeshId {
        self.core.id()
    }

    pub(super) fn name(&self) -> &str {
        &self.core.genesis().name
    }

    /// To be called after each call of the core.
    pub(super) fn drive(&mut self) -> Wanted {
        let mut wanted = Wanted::default();
        let mut state_changed = false;
        while let Some(event) = self.core.poll_event() {
            wanted.members_changed |= note(&self.core, &event);
            state_changed |= event == Event::StateChanged;
        }
        if state_changed {
            self.changed = true;
            self.wire.applier.set(peers(&self.core));
        }
        while let Some(message) = self.core.poll_transmit() {
            self.held.push(message);
        }
        let surplus = self.held.len().saturating_sub(MAX_HELD);
        self.held.drain(..surplus);
        self.proceed(&mut wanted);
        wanted
    }

    /// To be called when a write has ended, well or not. What waited for it is sent in either
    /// case: a full disk must not silence the node, and partners tell it what it forgot.
    pub(super) fn written(&mut self, well: bool) -> Wanted {
        self.writing = false;
        self.changed |= !well;
        let mut wanted = Wanted { send: std::mem::take(&mut self.in_write), ..Wanted::default() };
        if well {
            self.proceed(&mut wanted);
        } else {
            wanted.send.append(&mut self.held);
        }
        wanted
    }

    /// Keeps the task of the write that was just begun.
    pub(super) fn note_write(&mut self, task: JoinHandle<()>) {
        self.write = Some(task);
    }

    /// Waits until no write is under way.
    pub(super) async fn until_written(&mut self) {
        if let Some(write) = self.write.take()
            && let Err(error) = write.await
        {
            error!(%error, "a write did not end in order");
        }
    }

    /// What is not on disk yet, no write being under way.
    pub(super) fn unwritten(&self) -> Option<MeshFile> {
        self.changed.then(|| self.wire.file(self.core.snapshot()))
    }

    /// Begins a write if one is due and none is under way.
    fn proceed(&mut self, wanted: &mut Wanted) {
        if self.writing {
            return;
        }
        if !self.changed {
            wanted.send.append(&mut self.held);
            return;
        }
        (self.changed, self.writing) = (false, true);
        self.in_write.append(&mut self.held);
        wanted.write = Some(self.wire.file(self.core.snapshot()));
    }
}

/// Reports an event; whether it changed who is a member.
fn note(core: &Mesh, event: &Event) -> bool {
    let mesh = &core.genesis().name;
    match event {
        Event::MemberJoined(node) => info!(mesh, %node, "a member joined"),
        Event::MemberLeft(node) => info!(mesh, %node, "a member left"),
        Event::MemberUpdated(node) => debug!(mesh, %node, "a member said something new"),
        Event::Rejected { from, reason } => debug!(mesh, %from, %reason, "rejected"),
        Event::StateChanged => {}
    }
    matches!(event, Event::MemberJoined(_) | Event::MemberLeft(_))
}

/// The core's wishes in the words of the host.
fn peers(core: &Mesh) -> Peers {
    let wishes: BTreeMap<WgKey, selvedge_mesh::PeerSpec> = core.desired_wireguard();
    let spec = |spec: selvedge_mesh::PeerSpec| PeerSpec {
        endpoint: spec.endpoint,
        allowed: spec.allowed.into_iter().collect(),
        keepalive: spec.keepalive.map(|every| u16::try_from(every.as_secs()).unwrap_or(u16::MAX)),
    };
    wishes.into_iter().map(|(key, wish)| (key, spec(wish))).collect()
}
