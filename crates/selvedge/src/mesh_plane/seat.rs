//! One mesh of this node: its core, its WireGuard, and its file.

use std::collections::BTreeMap;

use selvedge_host::wireguard::PeerSpec;
use selvedge_mesh::{Event, Mesh, Transmit};
use selvedge_model::{MeshId, NodeId, WgKey};
use tokio::task::JoinHandle;
use tracing::{debug, error, info, warn};

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
    /// A write failed, and the next attempt is not due yet.
    pausing: bool,
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
        Self {
            core,
            wire,
            changed: false,
            writing: false,
            pausing: false,
            write: None,
            in_write,
            held,
        }
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
        // Datagrams travel over streams, too, for as long as the transport has nothing else.
        while let Some(Transmit { to, bytes, .. }) = self.core.poll_transmit() {
            self.held.push((to, bytes.to_vec()));
        }
        let surplus = self.held.len().saturating_sub(MAX_HELD);
        self.held.drain(..surplus);
        self.proceed(&mut wanted);
        wanted
    }

    /// To be called when a write has ended, well or not. What waited for it is sent in either
    /// case: a full disk must not silence the node, and partners tell it what it forgot. After
    /// one that failed no other is begun before [`Seated::resume`].
    pub(super) fn written(&mut self, well: bool) -> Wanted {
        self.writing = false;
        self.pausing = !well;
        self.changed |= !well;
        let mut wanted = Wanted { send: std::mem::take(&mut self.in_write), ..Wanted::default() };
        self.proceed(&mut wanted);
        wanted
    }

    /// Tries a write again that has failed.
    pub(super) fn resume(&mut self) -> Wanted {
        self.pausing = false;
        self.drive()
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
        if !self.changed || self.pausing {
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
        Event::MemberDown(node) => info!(mesh, %node, "a member does not answer any more"),
        Event::MemberUp(node) => info!(mesh, %node, "a member is heard again"),
        // Strangers could fill the log.
        Event::Rejected { from, reason } if core.is_member(*from) => {
            warn!(mesh, %from, %reason, "a member's message was not accepted");
        }
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

#[cfg(test)]
mod tests {
    use selvedge_host::wireguard::{self, PrivateKey};
    use selvedge_mesh::{Config, Identity, Profile, State, UnixTime};
    use selvedge_model::Time;

    use super::super::applier::Applier;
    use super::*;

    /// A founder's mesh, whose WireGuard is dry.
    fn seated() -> Seated {
        let identity = Identity::from_secret(&[1; 32]);
        let key = PrivateKey::from_bytes([2; 32]);
        let profile = Profile { alias: "first".to_owned(), ..Profile::default() };
        let state = State::found(&identity, "campus", [3; 16], key.public(), profile);
        let state = state.expect("a good name");
        let config = wireguard::Config {
            name: "sv-campus".to_owned(),
            private_key: key.clone(),
            listen_port: 0,
            mtu: 1420,
            addresses: Vec::new(),
            control: None,
        };
        let applier = Applier::start(None, config);
        let wire = Wire { key, port: 7, interface: "sv-campus".to_owned(), applier };
        let core = Mesh::new(identity, state, Config::default(), 1, Time::ZERO, UnixTime(0));
        Seated::new(core.expect("its own state"), wire)
    }

    fn rename(seat: &mut Seated, alias: &str) -> Wanted {
        let profile = Profile { alias: alias.to_owned(), ..Profile::default() };
        assert_eq!(seat.core.set_profile(profile), Ok(true));
        seat.held.push((NodeId([9; 32]), alias.as_bytes().to_vec()));
        seat.drive()
    }

    fn sent(wanted: &Wanted) -> Vec<&str> {
        wanted.send.iter().filter_map(|(_, bytes)| std::str::from_utf8(bytes).ok()).collect()
    }

    #[tokio::test]
    async fn nothing_is_sent_before_it_is_written() {
        let mut seat = seated();
        assert!(seat.drive().write.is_some(), "the state that it starts with");
        let second = rename(&mut seat, "second");
        assert!(second.write.is_none() && second.send.is_empty(), "a write is under way");
        let done = seat.written(true);
        assert!(done.write.is_some() && done.send.is_empty(), "that write did not cover it");
        let third = rename(&mut seat, "third");
        assert!(third.write.is_none() && third.send.is_empty());
        let done = seat.written(true);
        assert!(done.write.is_some());
        assert_eq!(sent(&done), ["second"]);
        let done = seat.written(true);
        assert!(done.write.is_none() && seat.unwritten().is_none());
        assert_eq!(sent(&done), ["third"]);
    }

    #[tokio::test]
    async fn a_full_disk_does_not_silence_the_node() {
        let mut seat = seated();
        assert!(seat.drive().write.is_some());
        assert!(rename(&mut seat, "second").send.is_empty());
        let failed = seat.written(false);
        assert!(failed.write.is_none());
        assert_eq!(sent(&failed), ["second"]);
        let third = rename(&mut seat, "third");
        assert!(third.write.is_none(), "not before the pause is over");
        assert_eq!(sent(&third), ["third"]);
        assert!(seat.unwritten().is_some());
        assert!(seat.resume().write.is_some());
    }
}
