//! One mesh of this node: its core, its WireGuard, and its file.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use selvedge_api::mesh::{Exit, NoExit, What};
use selvedge_mesh::wire::Call;
use selvedge_mesh::{Event, Knock, Mesh, Profile, Transmit, wire};
use selvedge_model::{MeshId, NodeId, Prefix, Time};
use tokio::task::JoinHandle;
use tracing::{debug, error, info, warn};

use super::direct::Paths;
use super::events;
use super::files::MeshFile;
use super::observed::Observed;
use super::recorder::Recorder;
use super::setup::Wire;
use super::topology::{Layout, Site};
use crate::config::MeshOptions;

/// How many messages wait for a write at most, and how many bytes; what is dropped,
/// reconciliation repeats.
const MAX_HELD: usize = 4096;
const MAX_HELD_BYTES: usize = 16 << 20;

/// For so long a peer that is drained goes on serving: until its clients have surely heard of it.
pub(super) const DRAIN: Duration = Duration::from_secs(3);

/// So often may a node say something new of its routes at once, and then so seldom: a member
/// beyond it that comes and goes must not keep all others busy.
const ANNOUNCEMENTS: u32 = 5;
const ANNOUNCE_EVERY: Duration = Duration::from_secs(1);

/// How often something may be done: a few times at once, then at intervals.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Patience {
    /// When all that was done will be forgiven.
    until: Option<Instant>,
}

impl Patience {
    /// Takes note that it is done now; or says when it may be.
    fn take(&mut self, now: Instant) -> Option<Instant> {
        let until = self.until.map_or(now, |until| until.max(now)) + ANNOUNCE_EVERY;
        let allowed = now + ANNOUNCE_EVERY * ANNOUNCEMENTS;
        if until > allowed {
            return Some(now + (until - allowed));
        }
        self.until = Some(until);
        None
    }
}

/// A message to a member.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) to: NodeId,
    pub(super) bytes: Arc<[u8]>,
    /// Whether it goes as a datagram, or else over a stream.
    pub(super) datagram: bool,
}

/// When a message may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// At once: it says nothing that a crash could undo, and is worth nothing if it is late.
    Now,
    /// When a write has ended, well or not.
    Tried,
    /// When a write has ended well: what it grants must not be granted twice.
    Written,
}

impl Message {
    fn when(&self) -> When {
        match wire::kind_of(&self.bytes) {
            // Probes, what is answered to them, and what clients say to each other.
            Ok(24..=29) => When::Now,
            // A certificate.
            Ok(17) => When::Written,
            Ok(_) | Err(_) => When::Tried,
        }
    }
}

impl From<Transmit> for Message {
    fn from(Transmit { to, bytes, datagram }: Transmit) -> Self {
        Self { to, bytes, datagram }
    }
}

/// A mesh in use. What its core wants sent is held back until the state that it was decided on
/// is on disk, so that nothing is promised that a crash would undo; writes are one at a time,
/// and each writes all that has changed since the one before.
pub(super) struct Seated {
    pub(super) core: Mesh,
    pub(super) wire: Wire,
    pub(super) options: MeshOptions,
    /// What was planned last.
    pub(super) layout: Layout,
    /// Where partners see this node.
    pub(super) observed: Observed,
    /// How often this node may still say something new about its routes.
    pub(super) patience: Patience,
    /// When this node was drained, if it was since it started.
    drained: Option<Instant>,
    /// What those who watch are to be told.
    told: Vec<What>,
    changed: bool,
    writing: bool,
    /// A write failed, and the next attempt is not due yet.
    pausing: bool,
    write: Option<JoinHandle<()>>,
    recorder: Option<Recorder>,
    pub(super) paths: Paths,
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
    /// To be sent to whoever is found there.
    pub(super) knocks: Vec<Knock>,
    /// To be written now; [`Seated::written`] is called afterwards.
    pub(super) write: Option<MeshFile>,
    /// Whether somebody became a member or ceased to be one.
    pub(super) members_changed: bool,
    /// Whether the plan may be another.
    pub(super) replan: bool,
    /// What those who watch are to be told.
    pub(super) told: Vec<What>,
    /// What other clients say.
    pub(super) called: Vec<Call>,
}

impl Seated {
    pub(super) fn new(
        core: Mesh,
        wire: Wire,
        options: MeshOptions,
        recorder: Option<Recorder>,
        seed: u64,
    ) -> Self {
        let (in_write, held) = (Vec::new(), Vec::new());
        let paths = Paths::new(core.node(), seed);
        Self {
            core,
            wire,
            options,
            layout: Layout::default(),
            observed: Observed::default(),
            patience: Patience::default(),
            drained: None,
            told: Vec::new(),
            changed: false,
            writing: false,
            pausing: false,
            write: None,
            recorder,
            paths,
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

    /// Where enough partners see this node.
    pub(super) fn seen_at(&self, now: Instant) -> Vec<IpAddr> {
        let own = self.core.node();
        let members = self.core.members().map(|member| member.node);
        let partners = members.filter(|node| *node != own && !self.core.is_down(*node)).count();
        self.observed.places(partners, now)
    }

    /// The prefixes of the mesh's overlay.
    pub(super) fn overlays(&self) -> impl Iterator<Item = Prefix> {
        [Some(self.core.prefix()), self.options.ipv4].into_iter().flatten()
    }

    /// What a plan is made of.
    pub(super) fn site(&mut self, now: Instant, time: Time) -> Site {
        self.drained = self.core.profile().drained.then(|| self.drained.unwrap_or(now));
        let unanswered = self.wire.applier.unanswered();
        let mut attempts = Vec::new();
        let mut members = Vec::new();
        // Who was evicted has nothing to do with the others any more.
        for member in self.core.members().filter(|_| self.core.evicted().is_none()) {
            attempts.extend(unanswered.get(&member.wg).map(|count| (member.node, *count)));
            let live = !self.core.is_down(member.node);
            members.push((member, live));
        }
        self.paths.set_members(self.core.node(), &members, self.options.direct, time);
        Site {
            mesh: self.id(),
            own: self.core.node(),
            interface: self.wire.interface.clone(),
            members,
            options: self.options.clone(),
            attempts,
            direct: self.paths.wishes(),
            still_serving: self.drained.is_some_and(|since| now < since + DRAIN),
        }
    }

    /// Follows a plan.
    pub(super) fn follow(&mut self, mut layout: Layout) {
        self.note_layout(&layout);
        self.note_exits(&layout.exits);
        self.paths.amend(&mut layout.desired.peers);
        self.wire.applier.set(layout.desired.clone());
        self.layout = layout;
    }

    /// Says of its routes what it is to say by the plan. Says when, if it has done so too often.
    pub(super) fn say(&mut self, now: Instant) -> Option<Instant> {
        if self.core.evicted().is_some() || self.said(&self.core.profile()) {
            return None;
        }
        if let Some(later) = self.patience.take(now) {
            return Some(later);
        }
        let (layout, options) = (&self.layout, &self.options);
        let said = self.core.edit_profile(|profile| {
            profile.bridged.clone_from(&layout.announce);
            profile.overlay_ipv4 = layout.ipv4;
            profile.routes.clone_from(&options.advertise);
        });
        if let Err(error) = said {
            warn!(mesh = self.name(), %error, "cannot tell the members what is reached by this node");
        }
        None
    }

    /// Has WireGuard follow the direct paths at once. Whether the plan may be another.
    pub(super) fn follow_paths(&mut self) -> bool {
        let changed = self.paths.poll_changed(&self.core.genesis().name);
        if changed {
            self.paths.amend(&mut self.layout.desired.peers);
            self.wire.applier.set(self.layout.desired.clone());
        }
        changed
    }

    fn said(&self, profile: &Profile) -> bool {
        profile.bridged == self.layout.announce
            && profile.overlay_ipv4 == self.layout.ipv4
            && profile.routes == self.options.advertise
    }

    fn note_layout(&self, new: &Layout) {
        let (mesh, old) = (self.name(), &self.layout);
        if old.used != new.used {
            info!(mesh, routes = new.used.len(), "the routes by other members have changed");
            debug!(mesh, routes = ?new.used, "routes");
        }
        if let Some(problem) = new.lost_exit.as_ref().filter(|_| old.lost_exit != new.lost_exit) {
            warn!(mesh, problem, "no such exit: packets to elsewhere are dropped; correct `exit`");
        }
        if !new.own_exits.is_empty() && old.own_exits != new.own_exits {
            warn!(
                mesh,
                families = ?new.own_exits,
                "this node is an exit itself, so its packets leave by it: `exit` is ignored here"
            );
        }
        if let Some(other) = new.crowded_by.filter(|_| old.crowded_by != new.crowded_by) {
            warn!(
                mesh,
                %other,
                "the IPv4 prefix overlaps that of another mesh of this node: no IPv4 in this \
                 one; give each its own by `ipv4` in [mesh.named.NAME]"
            );
        }
        if !new.unpermitted.is_empty() && old.unpermitted != new.unpermitted {
            warn!(
                mesh,
                prefixes = ?new.unpermitted,
                "the certificate of this node does not let it announce what it reaches by its \
                 other meshes; join again by an invite that allows it"
            );
        }
        if new.left_out > 0 && old.left_out == 0 {
            warn!(
                mesh,
                left_out = new.left_out,
                "more is reached by other meshes than can be announced"
            );
        }
    }

    /// Tells of exits that are others than before.
    fn note_exits(&mut self, new: &[Exit]) {
        for exit in new.iter().filter(|exit| !self.layout.exits.contains(exit)) {
            let by = exit.via.and_then(|node| self.core.member(node));
            let alias = by.map(|member| member.profile.alias).filter(|alias| !alias.is_empty());
            let name = exit.via.map(|node| alias.clone().unwrap_or_else(|| node.short()));
            let (mesh, fate) = (self.name(), exit.fate(name.as_deref()));
            // That it is no member is said with its name.
            match exit.dropped && exit.reason != Some(NoExit::NoMember) {
                true => warn!(mesh, "{fate}"),
                false => info!(mesh, "{fate}"),
            }
            self.told.push(What::ExitChanged { exit: exit.clone(), alias });
        }
    }

    /// To be called after each call of the core.
    pub(super) fn drive(&mut self) -> Wanted {
        let mut wanted = Wanted { told: std::mem::take(&mut self.told), ..Wanted::default() };
        let mut state_changed = false;
        while let Some(event) = self.core.poll_event() {
            if let Event::Called(call) = event {
                wanted.called.push(call);
            }
            if let Event::Passing(call) = event {
                self.paths.pass(&mut self.core, call);
            }
            wanted.members_changed |= note(&self.core, &event);
            wanted.told.extend(events::what(&self.core, &event));
            state_changed |= event == Event::StateChanged;
            wanted.replan |= matches!(event, Event::MemberDown(_) | Event::MemberUp(_));
        }
        self.changed |= state_changed;
        wanted.replan |= state_changed;
        wanted.knocks.extend(std::iter::from_fn(|| self.core.poll_knock()));
        if let (Some(recorder), Some(bytes)) = (&mut self.recorder, self.core.poll_journal()) {
            recorder.append(&bytes);
        }
        while let Some(transmit) = self.core.poll_transmit() {
            let message = Message::from(transmit);
            match message.when() {
                When::Now => wanted.send.push(message),
                When::Tried | When::Written => self.held.push(message),
            }
        }
        bound(&mut self.held);
        self.proceed(&mut wanted);
        wanted
    }

    /// To be called when a write has ended, well or not. What waited for it is sent in either
    /// case: a full disk must not silence the node, and partners tell it what it forgot. Only what
    /// grants something waits on. After a write that failed no other is begun before
    /// [`Seated::resume`].
    pub(super) fn written(&mut self, well: bool) -> Wanted {
        self.writing = false;
        self.pausing = !well;
        self.changed |= !well;
        let mut wanted = Wanted::default();
        let covered = std::mem::take(&mut self.in_write);
        if well {
            wanted.send = covered;
        } else {
            let held = std::mem::take(&mut self.held);
            self.release(covered.into_iter().chain(held).collect(), &mut wanted);
        }
        self.proceed(&mut wanted);
        wanted
    }

    /// Sends what need not be on disk, and keeps the rest.
    fn release(&mut self, messages: Vec<Message>, wanted: &mut Wanted) {
        let (kept, sent): (Vec<_>, Vec<_>) =
            messages.into_iter().partition(|message| message.when() == When::Written);
        wanted.send.extend(sent);
        self.held = kept;
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
        if !self.changed {
            wanted.send.append(&mut self.held);
            return;
        }
        if self.pausing {
            let held = std::mem::take(&mut self.held);
            return self.release(held, wanted);
        }
        (self.changed, self.writing) = (false, true);
        self.in_write.append(&mut self.held);
        wanted.write = Some(self.wire.file(self.core.snapshot()));
    }
}

/// Drops the oldest messages if there are too many.
fn bound(held: &mut Vec<Message>) {
    let mut bytes = 0;
    let fits = |message: &&Message| {
        bytes += message.bytes.len();
        bytes <= MAX_HELD_BYTES
    };
    let kept = held.iter().rev().take(MAX_HELD).take_while(fits).count();
    held.drain(..held.len() - kept);
}

/// Reports an event; whether it changed who is a member.
fn note(core: &Mesh, event: &Event) -> bool {
    let mesh = &core.genesis().name;
    match event {
        Event::MemberJoined(node) => info!(mesh, %node, "a member joined"),
        Event::MemberLeft(node) => info!(mesh, %node, "a member left"),
        Event::Evicted { node, by } if *node == core.node() => {
            warn!(mesh, %by, "this node was evicted from the mesh");
        }
        Event::Evicted { node, by } => info!(mesh, %node, %by, "a node was evicted"),
        Event::MemberUpdated(node) => debug!(mesh, %node, "a member said something new"),
        Event::MemberDown(node) => info!(mesh, %node, "a member does not answer any more"),
        Event::MemberUp(node) => info!(mesh, %node, "a member is heard again"),
        // Strangers could fill the log.
        Event::Rejected { from, reason } if core.is_member(*from) => {
            warn!(mesh, %from, %reason, "a member's message was not accepted");
        }
        Event::Rejected { from, reason } => debug!(mesh, %from, %reason, "rejected"),
        Event::Called(_) | Event::Passing(_) | Event::StateChanged => {}
    }
    matches!(event, Event::MemberJoined(_) | Event::MemberLeft(_))
}

#[cfg(test)]
mod tests {
    use selvedge_host::wireguard::{self, PrivateKey};
    use selvedge_mesh::{Config, Identity, Profile, State, UnixTime};

    use super::super::applier::Applier;
    use super::super::measure::Measured;
    use super::super::view;
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
            backend: None,
            control: None,
        };
        let applier = Applier::start(None, config, None);
        let wire = Wire { key, port: 7, interface: "sv-campus".to_owned(), applier };
        let core = Mesh::new(identity, state, Config::default(), 1, Time::ZERO, UnixTime(0));
        Seated::new(core.expect("its own state"), wire, MeshOptions::default(), None, 1)
    }

    #[tokio::test]
    async fn exits_that_change_are_told_once() {
        let mut seat = seated();
        let exit = |reason| Exit {
            destination: "::/0".parse().expect("a prefix"),
            via: None,
            reason: Some(reason),
            dropped: true,
        };
        let mut follow = |reason| {
            let layout = Layout { exits: vec![exit(reason)], ..Layout::default() };
            seat.follow(layout);
            let told = seat.drive().told.into_iter();
            let reason = |what| {
                let What::ExitChanged { exit, .. } = what else { return None };
                exit.reason
            };
            told.filter_map(reason).collect::<Vec<_>>()
        };
        assert_eq!(follow(NoExit::NoMember), [NoExit::NoMember]);
        assert_eq!(follow(NoExit::NoMember), []);
        assert_eq!(follow(NoExit::Down), [NoExit::Down]);
    }

    #[tokio::test]
    async fn the_address_that_is_shown_is_the_one_that_is_owned() {
        let mut seat = seated();
        let (claimed, owned) = ([100, 64, 0, 1].into(), [100, 64, 0, 2].into());
        seat.core.edit_profile(|it| it.overlay_ipv4 = Some(claimed)).expect("said");
        let shown = |seat: &Seated| view::mesh(seat, &view::Heard::new()).members[0].ipv4;
        assert_eq!(shown(&seat), None);
        seat.layout.ipv4s.insert(seat.core.node(), owned);
        assert_eq!(shown(&seat), Some(owned));
    }

    #[tokio::test]
    async fn who_is_drained_and_lacks_exits_is_counted() {
        let mut seat = seated();
        seat.core.edit_profile(|it| it.drained = true).expect("said");
        let destination = "::/0".parse().expect("a prefix");
        let (reason, via) = (Some(NoExit::Down), Some(seat.core.node()));
        let missing = Exit { destination, via: None, reason, dropped: true };
        seat.layout.exits = vec![missing.clone(), Exit { via, reason: None, ..missing }];
        let heard = view::Heard::new();
        let measured = Measured::of(&seat, &heard).complete(&seat.wire.applier.inquirer()).await;
        assert_eq!((measured.drained, measured.missing_exits, measured.interface), (1, 1, true));
        assert!(measured.summary.drained && view::mesh(&seat, &heard).members[0].drained);
        assert!(measured.states.iter().all(|(_, count)| *count == 0), "it has no other members");
    }

    fn rename(seat: &mut Seated, alias: &str) -> Wanted {
        let profile = Profile { alias: alias.to_owned(), ..Profile::default() };
        assert_eq!(seat.core.set_profile(profile), Ok(true));
        seat.held.push(message(alias.as_bytes().into()));
        seat.drive()
    }

    fn message(bytes: Arc<[u8]>) -> Message {
        Message { to: NodeId([9; 32]), bytes, datagram: false }
    }

    fn sent(wanted: &Wanted) -> Vec<&str> {
        wanted.send.iter().filter_map(|message| std::str::from_utf8(&message.bytes).ok()).collect()
    }

    /// A message of some kind; its body does not matter here.
    fn of_kind(seat: &Seated, kind: u8) -> Arc<[u8]> {
        let same = wire::Envelope { mesh: seat.id(), message: wire::Message::Same }.encode();
        // An array, a version and a mesh, then the kind, as CBOR writes it.
        assert_eq!(same[23], 2);
        let kind = if kind < 24 { vec![kind] } else { vec![24, kind] };
        [&same[..23], &kind, &same[24..]].concat().into()
    }

    #[tokio::test]
    async fn a_certificate_is_on_disk_before_it_is_sent() {
        let mut seat = seated();
        assert!(seat.drive().write.is_some());
        let welcome = of_kind(&seat, 17);
        let carries = |wanted: &Wanted| wanted.send.iter().any(|sent| sent.bytes == welcome);
        seat.held.push(message(welcome.clone()));
        assert!(!carries(&rename(&mut seat, "second")));
        assert!(!carries(&seat.written(false)), "that write did not cover it");
        assert!(!carries(&rename(&mut seat, "third")), "nothing is written while it pauses");
        let resumed = seat.resume();
        assert!(resumed.write.is_some() && !carries(&resumed));
        assert!(!carries(&seat.written(false)));
        assert!(seat.resume().write.is_some());
        assert!(carries(&seat.written(true)));
    }

    #[test]
    fn what_flaps_is_said_a_few_times_and_then_at_intervals() {
        let (mut patience, start) = (Patience::default(), Instant::now());
        for _ in 0..ANNOUNCEMENTS {
            assert_eq!(patience.take(start), None);
        }
        assert_eq!(patience.take(start), Some(start + ANNOUNCE_EVERY));
        assert_eq!(patience.take(start + ANNOUNCE_EVERY), None);
        let later = start + ANNOUNCE_EVERY * 60;
        assert!((0..ANNOUNCEMENTS).all(|_| patience.take(later).is_none()));
        assert!(patience.take(later).is_some());
    }

    #[tokio::test]
    async fn probes_wait_for_nothing() {
        let mut seat = seated();
        assert!(seat.drive().write.is_some(), "a write is under way");
        for probe in 24..=29 {
            assert_eq!(message(of_kind(&seat, probe)).when(), When::Now);
        }
        for other in [1, 2, 8, 18] {
            assert_eq!(message(of_kind(&seat, other)).when(), When::Tried);
        }
        assert_eq!(message([0; 8].into()).when(), When::Tried);
    }

    #[test]
    fn what_waits_is_bounded_in_bytes_too() {
        let great: Arc<[u8]> = vec![0; 1 << 20].into();
        let mut held: Vec<_> = (0..40).map(|_| message(great.clone())).collect();
        bound(&mut held);
        assert_eq!(held.len(), MAX_HELD_BYTES >> 20);
        let mut held: Vec<_> = (0..5000).map(|_| message([0; 8].into())).collect();
        bound(&mut held);
        assert_eq!(held.len(), MAX_HELD);
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
