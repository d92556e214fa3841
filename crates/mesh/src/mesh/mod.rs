mod admit;
mod calls;
mod doubts;
mod evict;
mod forget;
mod gossip;
mod health;
mod knock;
mod receive;
mod say;
mod sync;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use selvedge_model::{MeshId, NodeId, Prefix, Time, WgKey};

use crate::address::node_address;
use crate::admission::{Genesis, Grant};
use crate::broadcast::Broadcast;
use crate::config::Config;
use crate::crdt::{Content as _, Digest, Entry};
use crate::detector::Detector;
use crate::event::{Event, Rejection, Rejections};
use crate::eviction::Eviction;
use crate::identity::Identity;
use crate::invite::{Bootstrap, Invite, InviteId};
use crate::journal::{Input, Journal, SignatureLog};
use crate::lives::Lives;
use crate::overlay::View;
use crate::profile::Profile;
use crate::rates::{Excess, Purpose, Rates};
use crate::record::Life;
use crate::roster::{Member, Room, RosterEntry, node_of};
use crate::signed::{Raw, Signed, SignedError};
use crate::state::{State, WriteError};
use crate::time::UnixTime;
use crate::wards::Wards;
use crate::wire::{self, Envelope, MAX_DATAGRAM, Message};
use crate::wireguard::{self, PeerSpec};
use doubts::Doubts;
use evict::Evicting;
use forget::House;
use gossip::Crowd;
use health::Pulse;
use knock::Door;
pub use knock::Knock;
use sync::Syncing;

/// So many messages wait to be sent at most: more than a node sends whom all ask at once.
const MAX_TRANSMITS: usize = 1 << 16;
/// Rejections are counted always, but no more than this many wait to be told as events, so that
/// nobody can fill the memory with them.
const MAX_REJECTED_EVENTS: usize = 256;

/// One node's part in one mesh.
///
/// After each call of a method that takes `&mut self`
///
/// 1. call [`Mesh::poll_event`] until it returns `None`; on [`Event::StateChanged`] write
///    [`Mesh::snapshot`] to disk *before* the next step, so that after a crash no sequence number
///    and no use of an invite is given out twice;
/// 2. call [`Mesh::poll_transmit`] and [`Mesh::poll_knock`] until they return `None`;
/// 3. set a timer to [`Mesh::poll_timeout`], which may have changed.
///
/// Messages may be lost, doubled and reordered. Whoever calls [`Mesh::handle_message`] vouches
/// that they come from the node that is named as their sender.
#[derive(Debug)]
pub struct Mesh {
    identity: Identity,
    config: Config,
    state: State,
    rng: ChaCha8Rng,
    /// As of the last call that told it.
    wall: UnixTime,
    /// As of the last call that told it.
    now: Time,
    detector: Detector,
    lives: Lives,
    pulse: Pulse,
    broadcast: Broadcast,
    crowd: Crowd,
    syncing: Syncing,
    doubts: Doubts,
    evicting: Evicting,
    door: Door,
    wards: Wards,
    house: House,
    /// Cached; stale if the links changed.
    neighbours: BTreeSet<NodeId>,
    links_changed: bool,
    /// Whom the events so far have made down.
    down_reported: BTreeSet<NodeId>,
    /// Cached; `None` after each change of the roster.
    digest: Option<Digest>,
    /// Whom the events so far have made members, this node aside.
    reported: BTreeSet<NodeId>,
    /// What this node stands by, after something else was heard in its name.
    outdone: Option<Own>,
    has_left: bool,
    has_changed: bool,
    events: VecDeque<Event>,
    transmits: VecDeque<Transmit>,
    rejections: Rejections,
    rates: Rates,
    journal: Option<Journal>,
}

/// A message to send. It may be lost, doubled, and overtaken by others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// To whom.
    pub to: NodeId,
    /// The message.
    pub bytes: Arc<[u8]>,
    /// Whether it is to be sent as a datagram, which must be authenticated and encrypted; else it
    /// is too long for one, or for a stranger, and goes over a stream.
    pub datagram: bool,
}

/// The parts of this node's record that do not follow from the rest.
#[derive(Clone, Debug)]
struct Own {
    certificate: Raw,
    profile: Profile,
}

/// What an invite is to allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InviteTerms {
    /// Names the invite: 16 bytes from a random source.
    pub id: InviteId,
    /// What those who join with it may do; no more than this node may itself.
    pub grant: Grant,
    /// How many nodes may join with it; at least one.
    pub uses: u32,
    /// The last second in which it can be redeemed.
    pub not_after: UnixTime,
}

/// Why something was not done. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MeshError {
    /// The state is that of another node.
    #[error(
        "the state is that of node {found}, not of node {expected}: the identity key or the state was exchanged"
    )]
    ForeignState {
        /// The node whose state it is.
        found: NodeId,
        /// The node that was to use it.
        expected: NodeId,
    },
    /// The own record could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The node may not invite, or not grant that much.
    #[error("inviting: {reason}; the founder of the mesh is node {founder}")]
    MayNotInvite {
        /// Why.
        reason: &'static str,
        /// The founder.
        founder: NodeId,
    },
    /// The node may not evict that one.
    #[error("evicting node {node}: {reason}")]
    MayNotEvict {
        /// Whom.
        node: NodeId,
        /// Why.
        reason: &'static str,
    },
    /// Nobody could reach this node to redeem the invite.
    #[error("inviting: this node announces no address at which its agent can be reached")]
    Unreachable,
    /// The invite would have expired already.
    #[error("inviting: the invite would have expired already, at {at}")]
    Expired {
        /// When.
        at: UnixTime,
    },
    /// The terms are out of bounds.
    #[error("inviting: {0}")]
    Invite(SignedError),
}

impl Mesh {
    /// Takes part in a mesh, with a state that was just made or that was kept on disk.
    ///
    /// `seed` decides which members are talked to; it must differ from node to node. The first
    /// timeout is due at `now`.
    ///
    /// # Errors
    /// If the state is not that of `identity`.
    pub fn new(
        identity: Identity,
        state: State,
        config: Config,
        seed: u64,
        now: Time,
        wall: UnixTime,
    ) -> Result<Self, MeshError> {
        let (found, expected) = (state.node(), identity.node_id());
        if found != expected {
            return Err(MeshError::ForeignState { found, expected });
        }
        let reported = state.roster.nodes(wall).filter(|node| *node != expected).collect();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        Ok(Self {
            detector: Detector::new(config.probing, expected, &mut rng, now),
            lives: Lives::default(),
            pulse: Pulse::new(),
            broadcast: Broadcast::new(config.copies),
            crowd: Crowd::default(),
            syncing: Syncing::new(),
            doubts: Doubts::default(),
            evicting: Evicting::default(),
            door: Door::new(now),
            wards: Wards::new(state.roster.clients(wall)),
            house: House::new(expected, now),
            neighbours: BTreeSet::new(),
            links_changed: true,
            down_reported: BTreeSet::new(),
            identity,
            config,
            rng,
            wall,
            now,
            digest: None,
            reported,
            outdone: None,
            has_left: false,
            // What the driver applies first is the state that it starts with.
            has_changed: true,
            events: VecDeque::new(),
            transmits: VecDeque::new(),
            rejections: Rejections::new(),
            rates: Rates::default(),
            journal: None,
            state,
        })
    }

    /// As [`Mesh::new`], and writes down all that it is told: see [`Mesh::poll_journal`].
    ///
    /// # Errors
    /// If the state is not that of `identity`.
    pub fn recorded(
        identity: Identity,
        state: State,
        config: Config,
        seed: u64,
        now: Time,
        wall: UnixTime,
    ) -> Result<Self, MeshError> {
        let log = SignatureLog::default();
        let journal = Journal::new(&state, &config, seed, (now, wall), log.clone());
        let mut mesh = Self::new(identity.logged(log), state, config, seed, now, wall)?;
        mesh.journal = Some(journal);
        Ok(mesh)
    }

    /// What is to be appended to the log of a mesh that is [`Mesh::recorded`], for
    /// [`crate::journal::replay`]; `None` if there is nothing. Call it where
    /// [`Mesh::poll_transmit`] is called, or what waits grows without bound.
    pub fn poll_journal(&mut self) -> Option<Vec<u8>> {
        self.journal.as_mut().map(Journal::take).filter(|bytes| !bytes.is_empty())
    }

    /// Takes in a message of node `from`. `wall` is looked at for expiry alone.
    pub fn handle_message(&mut self, from: NodeId, bytes: &[u8], now: Time, wall: UnixTime) {
        (self.now, self.wall) = (now, wall);
        self.note_input(&Input::Message(from, bytes));
        if self.is_out() {
            return;
        }
        self.detector.note_time(now);
        if !self.affords(from, bytes, now) {
            return;
        }
        let waiting = self.transmits.len();
        if let Err(reason) = self.receive(from, bytes, now) {
            self.reject(from, reason);
        }
        self.charge(from, purpose_of(bytes), waiting);
    }

    /// Does what is due at `now`. Calls that come too early are harmless.
    pub fn handle_timeout(&mut self, now: Time, wall: UnixTime) {
        (self.now, self.wall) = (now, wall);
        self.note_input(&Input::Timeout);
        if self.is_out() {
            return;
        }
        self.detector.note_time(now);
        if self.house.tick <= now {
            self.keep_house(now);
        }
        if self.detector.poll_timeout() <= now {
            self.drive_detector(now);
        }
        self.spread_due_rumors(now);
        self.begin_due_grafts(now);
        self.begin_due_sync(now);
        self.begin_due_comparison(now);
        self.begin_due_evictions(now);
    }

    /// When [`Mesh::handle_timeout`] is to be called; `None` after [`Mesh::leave`], and for a node
    /// that was evicted.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        let due = self.house.tick.min(self.detector.poll_timeout());
        let sync = self.syncing.due.map(|(due, _)| due);
        let doubts = self.doubts.due.map(|(due, _)| due);
        let evictions = self.evicting.poll_timeout();
        let others =
            [self.broadcast.poll_timeout(), self.crowd.poll_timeout(), sync, doubts, evictions];
        (!self.is_out()).then(|| others.into_iter().flatten().fold(due, Time::min))
    }

    /// The next message to send, and to whom. It may be lost.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// What happened next.
    pub fn poll_event(&mut self) -> Option<Event> {
        let changed = || std::mem::take(&mut self.has_changed).then_some(Event::StateChanged);
        self.events.pop_front().or_else(changed)
    }

    /// The mesh.
    #[must_use]
    pub fn id(&self) -> MeshId {
        self.state.mesh()
    }

    /// How the mesh began, and its name.
    #[must_use]
    pub const fn genesis(&self) -> &Genesis {
        self.state.genesis()
    }

    /// This node.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.state.node()
    }

    /// The overlay address of this node.
    #[must_use]
    pub fn address(&self) -> Ipv6Addr {
        node_address(self.id(), self.node())
    }

    /// The overlay prefix of the mesh, a /64.
    #[must_use]
    pub fn prefix(&self) -> Prefix {
        self.state.roster.prefix()
    }

    /// All members, this node among them, by ascending node.
    pub fn members(&self) -> impl Iterator<Item = Member> {
        self.state.roster.members(self.wall)
    }

    /// One member.
    #[must_use]
    pub fn member(&self, node: NodeId) -> Option<Member> {
        self.state.roster.member(node, self.wall)
    }

    /// Whether a node is a member, so that its messages are accepted.
    #[must_use]
    pub fn is_member(&self, node: NodeId) -> bool {
        self.state.roster.is_member(node, self.wall)
    }

    /// The members that do not answer, ascending.
    pub fn down(&self) -> impl Iterator<Item = NodeId> {
        self.lives.down()
    }

    /// The number of members that do not answer.
    #[must_use]
    pub fn count_down(&self) -> usize {
        self.lives.count_down()
    }

    /// Whether a member does not answer.
    #[must_use]
    pub fn is_down(&self, node: NodeId) -> bool {
        self.lives.is_down(node)
    }

    /// Where the agent of a member listens, the most preferred address first; of a node that was
    /// forgotten, where it listened. Empty if neither is known.
    #[must_use]
    pub fn control_endpoints(&self, node: NodeId) -> Vec<SocketAddr> {
        match self.member(node) {
            Some(member) => {
                member.profile.control.into_iter().map(|endpoint| endpoint.addr).collect()
            }
            None => self.way_back(node),
        }
    }

    /// The peers that WireGuard is to have, by their keys: all other members; none if this node is
    /// no member itself.
    #[must_use]
    pub fn desired_wireguard(&self) -> BTreeMap<WgKey, PeerSpec> {
        if self.is_out() {
            return BTreeMap::new();
        }
        wireguard::desired(self.node(), &self.profile(), self.members(), self.config.keepalive)
    }

    /// In short what the replicated state is. Nodes that agree have equal digests.
    pub fn digest(&mut self) -> Digest {
        *self.digest.get_or_insert_with(|| self.state.roster.map.digest())
    }

    /// The greatest sequence number that is held of a node; 0 if none is.
    #[must_use]
    pub fn seq(&self, node: NodeId) -> u64 {
        self.state.roster.map.stamp(&node)
    }

    /// What this node keeps, after which it takes part no more. For simulators and tests.
    #[doc(hidden)]
    #[must_use]
    pub fn into_state(self) -> State {
        self.state
    }

    /// The members that are not heard for now, because they sent nonsense again and again.
    pub fn silenced(&self) -> impl Iterator<Item = NodeId> {
        self.rates.silenced(self.now)
    }

    /// The state in bytes, as [`State::decode`] reads it.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        self.state.encode()
    }

    /// How many messages and entries were rejected so far, by [`Rejection::kind`].
    #[must_use]
    pub const fn rejections(&self) -> &Rejections {
        &self.rejections
    }

    /// Signs an invite that is redeemed at this node.
    ///
    /// # Errors
    /// If this node may not invite, cannot be reached, or the terms are out of bounds.
    pub fn invite(&self, terms: InviteTerms, wall: UnixTime) -> Result<Signed<Invite>, MeshError> {
        let founder = self.genesis().founder;
        let refused = |reason| MeshError::MayNotInvite { reason, founder };
        let own = self.state.roster.map.added(&self.node()).filter(|_| !self.is_out());
        let own = own.ok_or_else(|| refused("this node is no member"))?;
        own.certificate().check_grant(&terms.grant).map_err(refused)?;
        if terms.not_after < wall {
            return Err(MeshError::Expired { at: terms.not_after });
        }
        let control = self.profile().control.into_iter().take(Invite::MAX_BOOTSTRAP);
        let bootstrap: Vec<Bootstrap> =
            control.map(|endpoint| Bootstrap { addr: endpoint.addr, node: self.node() }).collect();
        if bootstrap.is_empty() {
            return Err(MeshError::Unreachable);
        }
        let invite = Invite {
            genesis: self.genesis().clone(),
            id: terms.id,
            bootstrap,
            role: terms.grant.role,
            uses: terms.uses,
            not_after: terms.not_after.0,
            issuer: self.node(),
            prefixes: terms.grant.prefixes,
            may_invite: terms.grant.may_invite,
            sponsor: self.sponsor(),
            issued: wall.0,
            evictions: self.state.roster.evictions.count_by(self.node()),
            guests: terms.grant.guests,
        };
        Signed::sign(invite, &self.identity).map_err(MeshError::Invite)
    }

    /// Leaves the mesh for good. Send what [`Mesh::poll_transmit`] still returns, then drop the
    /// mesh and its state; nothing is accepted any more.
    ///
    /// # Errors
    /// If the node has left already.
    pub fn leave(&mut self) -> Result<(), MeshError> {
        self.note_input(&Input::Leave);
        if self.has_left {
            return Err(WriteError::NotAMember(self.node()).into());
        }
        // No copy of what it buries lives as long.
        let life = Life::new(self.wall, self.config.record_life * 2);
        let removal = self.state.publish_removal(life, &self.identity)?;
        // The links are those that it had as a member.
        self.refresh_neighbours();
        self.changed();
        self.push(&[removal], None, self.now);
        self.has_left = true;
        Ok(())
    }

    /// Writes down what this core is told, and now and then what it has come to.
    fn note_input(&mut self, input: &Input<'_>) {
        let Some(mut journal) = self.journal.take() else { return };
        if journal.wants_check() {
            journal.check(self.digest());
        }
        journal.note(input, self.now, self.wall);
        self.journal = Some(journal);
    }

    /// Writes a new record of this node and spreads it.
    fn publish(&mut self, own: Own, now: Time) -> Result<(), WriteError> {
        let life = self.life();
        let entry = self.state.publish(own.certificate, own.profile, life, &self.identity)?;
        self.outdone = None;
        self.changed();
        self.note_own();
        self.push(&[entry], None, now);
        Ok(())
    }

    /// How long others hold what this node said last.
    fn own_life(&self) -> Life {
        self.state.roster.map.added(&self.node()).map(|own| own.record().life).unwrap_or_default()
    }

    /// Takes over a verified entry. Says whether it was new.
    fn merge(&mut self, node: NodeId, entry: RosterEntry) -> Result<bool, Rejection> {
        let max = self.config.max_nodes;
        let map = &self.state.roster.map;
        if map.len() >= max && map.entries_of(&node).next().is_none() {
            return Err(Rejection::Full { node, max });
        }
        if has_expired(&entry, self.wall) {
            return Err(Rejection::Expired { node });
        }
        if let Some(evicted) = self.state.roster.barring(&entry) {
            let Eviction { node, by, .. } = *evicted.eviction();
            return Err(Rejection::Evicted { node, by });
        }
        if node == self.node() {
            self.merge_own(entry);
            // What outdoes it is passed on, not the entry.
            return Ok(false);
        }
        self.make_room(node, &entry)?;
        if !self.state.roster.map.merge_entry(node, entry) {
            return Ok(false);
        }
        self.changed();
        self.report_member(node);
        Ok(true)
    }

    /// Sees to it that who admitted a node has admitted no more than it may.
    fn make_room(&mut self, node: NodeId, entry: &RosterEntry) -> Result<(), Rejection> {
        match self.state.roster.room_for(entry) {
            Room::Free => {}
            Room::None { by } => return Err(Rejection::TooManyGuests { node, by }),
            Room::InPlaceOf(other) if other == self.node() => {}
            Room::InPlaceOf(other) => {
                self.state.roster.map.forget(&other);
                self.report_member(other);
            }
        }
        Ok(())
    }

    /// Something about this node that it does not know itself: it lost its disk, or went back to
    /// an older copy of it. What it says now is to outdo that, but no sooner than with the next
    /// timeout: two agents that share an identity must not drive each other in circles.
    fn merge_own(&mut self, entry: RosterEntry) {
        let own = self.own();
        if self.state.roster.map.merge_entry(self.node(), entry) {
            self.outdone.get_or_insert(own);
            self.changed();
            self.note_own();
        }
    }

    /// Takes note that what this node says of itself is another: also its role, and whether it is
    /// drained, on which depends who is attached to it.
    fn note_own(&mut self) {
        let is_client = self.state.roster.is_client(self.node(), self.wall);
        self.wards.note(self.node(), is_client);
        self.links_changed = true;
    }

    /// Says again what this node said before something else was heard in its name.
    fn outdo(&mut self, now: Time) {
        if let Some(own) = self.outdone.take()
            && self.publish(own, now).is_err()
        {
            // All sequence numbers are used up. Nothing that this node says can be heard again.
            self.changed();
        }
    }

    /// The certificate and the profile that this node stands by.
    fn own(&self) -> Own {
        self.outdone.clone().unwrap_or_else(|| {
            let own = self.state.roster.map.added(&self.node());
            let record = own.expect("a state holds the record of its own node").record();
            Own { certificate: record.certificate.clone(), profile: record.profile.clone() }
        })
    }

    fn changed(&mut self) {
        self.digest = None;
        self.has_changed = true;
    }

    /// Finds out anew who the neighbours are, if that may have changed.
    fn refresh_neighbours(&mut self) {
        self.refresh_wards();
        if !std::mem::take(&mut self.links_changed) {
            return;
        }
        let view = View {
            roster: &self.state.roster,
            lives: &self.lives,
            own: self.state.node(),
            wall: self.wall,
            wards: self.wards.attached(),
        };
        self.neighbours = view.neighbours();
        self.broadcast.retain(&self.neighbours);
    }

    /// Finds out anew which clients are attached to this node, if that may have changed.
    fn refresh_wards(&mut self) {
        let nobody = BTreeSet::new();
        let view = View {
            roster: &self.state.roster,
            lives: &self.lives,
            own: self.state.node(),
            wall: self.wall,
            wards: &nobody,
        };
        let Some(changed) = self.wards.refreshed(&view) else { return };
        self.links_changed |= changed;
        // A client talks to another now, and would never be heard here.
        let others = self.lives.own_eyes().filter(|node| self.wards.is_anothers(*node));
        for client in others.collect::<Vec<_>>() {
            self.lives.see_alive(client);
            self.note_life(client, self.now);
        }
    }

    /// A member drawn at random, none of `without`, and one that is not down if there is any.
    fn draw(&mut self, without: &BTreeSet<NodeId>) -> Option<NodeId> {
        let lives = &self.lives;
        let view = View {
            roster: &self.state.roster,
            lives,
            own: self.state.node(),
            wall: self.wall,
            wards: self.wards.attached(),
        };
        let drawn = view.draw(without, &mut self.rng);
        let down = lives.next_down(NodeId(self.rng.random()));
        drawn.or(down.filter(|node| !without.contains(node)))
    }

    fn send(&mut self, to: NodeId, message: Message) {
        self.send_all(&[to], &[message]);
    }

    /// Sends the same to several, encoded once.
    fn send_all(&mut self, to: &[NodeId], messages: &[Message]) {
        for message in messages.iter().filter(|_| !to.is_empty()) {
            let stranger = matches!(message, Message::Welcome(_) | Message::Refused(_));
            self.enqueue(to, message.clone(), !stranger);
        }
    }

    /// Sends over a stream, however short it is: what is lost of it is repeated at once.
    fn send_surely(&mut self, to: NodeId, message: Message) {
        self.enqueue(&[to], message, false);
    }

    fn enqueue(&mut self, to: &[NodeId], message: Message, may_be_lost: bool) {
        let bytes: Arc<[u8]> = Envelope { mesh: self.state.mesh(), message }.encode().into();
        let datagram = may_be_lost && bytes.len() <= MAX_DATAGRAM;
        let transmits = to.iter().map(|to| Transmit { to: *to, bytes: bytes.clone(), datagram });
        // What is not sent is as if it were lost on the way.
        self.transmits.extend(transmits);
        self.transmits.truncate(MAX_TRANSMITS);
    }

    /// Reports what a changed entry of `node` means.
    fn report_member(&mut self, node: NodeId) {
        let is_member = self.is_member(node);
        let was_member = self.reported.contains(&node);
        let has_turned = self.wards.note(node, self.state.roster.is_client(node, self.wall));
        // What else a member says of itself changes no links.
        self.links_changed |= has_turned || was_member != is_member;
        let event = match (was_member, is_member) {
            (false, true) => Event::MemberJoined(node),
            (true, true) => Event::MemberUpdated(node),
            (true, false) => Event::MemberLeft(node),
            (false, false) => return,
        };
        match is_member {
            true => self.reported.insert(node),
            false => {
                self.lives.forget(node);
                self.down_reported.remove(&node);
                self.reported.remove(&node)
            }
        };
        self.events.push_back(event);
    }

    /// Whether the sender may ask for what this message asks for. If not, that is counted.
    fn affords(&mut self, from: NodeId, bytes: &[u8], now: Time) -> bool {
        let is_member = self.is_member(from);
        let excess = self.rates.take(from, is_member, (purpose_of(bytes), bytes.len()), now).err();
        let reason = match excess {
            None => return true,
            Some(Excess::TooMuch) => Rejection::TooMuch,
            Some(Excess::Silenced) => Rejection::Silenced,
        };
        *self.rejections.entry(reason.kind()).or_default() += 1;
        false
    }

    /// Lets a member pay for what it is sent because of its message: all but the first `waiting`
    /// messages. Strangers are sent no more than they have sent, or are admitted.
    fn charge(&mut self, from: NodeId, purpose: Purpose, waiting: usize) {
        if !self.is_member(from) || self.transmits.len() <= waiting {
            return;
        }
        let answers = self.transmits.range(waiting..).filter(|sent| sent.to == from);
        let len = answers.map(|sent| sent.bytes.len()).sum();
        self.rates.charge(from, (purpose, len), self.now);
    }

    fn reject(&mut self, from: NodeId, reason: Rejection) {
        *self.rejections.entry(reason.kind()).or_default() += 1;
        if let Rejection::Evicted { node, by } = reason {
            // It has not heard of it.
            return self.tell_of_eviction((node, by), from);
        }
        let is_member = self.is_member(from);
        if reason.is_nonsense() && self.rates.note_nonsense(from, is_member, self.now) {
            let reason = Rejection::Silenced;
            self.events.push_back(Event::Rejected { from, reason });
        }
        if self.events.len() < MAX_REJECTED_EVENTS {
            self.events.push_back(Event::Rejected { from, reason });
        }
    }
}

/// What the price of a message depends on.
fn purpose_of(bytes: &[u8]) -> Purpose {
    wire::kind_of(bytes).map_or(Purpose::Repair, Purpose::of)
}

/// Whether an entry is to be held no more.
fn has_expired(entry: &RosterEntry, wall: UnixTime) -> bool {
    let expiry = match entry {
        Entry::Add(admitted) => admitted.expiry(),
        Entry::Remove(removed) => removed.expiry(),
    };
    expiry < wall.0
}
