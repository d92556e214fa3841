//! Direct paths between clients. The core of it is `selvedge_topology::direct`; this tells it what
//! WireGuard knows, carries what the ends say, and, on a peer, says where its clients are seen.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use selvedge_api::mesh::DirectPaths;
use selvedge_host::nudge::nudge;
use selvedge_host::wireguard::PeerStatus;
use selvedge_mesh::wire::Call;
use selvedge_mesh::{Member, Mesh, Role};
use selvedge_model::{NodeId, Prefix, Time, WgKey};
use selvedge_topology::direct::{Direct, Link, News, Wish};
use tracing::{debug, warn};

use super::applier::Peers;
use super::view::SESSION;

/// What WireGuard knew so long ago is taken for what it knows.
const FRESH: Duration = Duration::from_millis(500);
/// So many calls wait until WireGuard was asked, at most.
const MAX_PASSING: usize = 1024;

/// The direct paths of this node in a mesh, and the calls that it passes on.
pub(super) struct Paths {
    direct: Direct,
    /// The partners by their addresses.
    nodes: BTreeMap<IpAddr, NodeId>,
    /// The same by their keys, each with its address.
    partners: BTreeMap<WgKey, (NodeId, Prefix)>,
    passing: Vec<Call>,
    /// Where WireGuard sees its peers, and since when it is known.
    seen: Option<(Instant, BTreeMap<WgKey, SocketAddr>)>,
    looking: bool,
    /// Small packets cannot be sent; that was said.
    mute: bool,
}

impl Paths {
    pub(super) const fn new(own: NodeId, seed: u64) -> Self {
        Self {
            direct: Direct::new(own, seed),
            nodes: BTreeMap::new(),
            partners: BTreeMap::new(),
            passing: Vec::new(),
            seen: None,
            looking: false,
            mute: false,
        }
    }

    /// The other clients among the members, if the own node is one and paths are `wanted`.
    pub(super) fn set_members(
        &mut self,
        own: NodeId,
        members: &[(Member, bool)],
        wanted: bool,
        now: Time,
    ) {
        let members = || members.iter().map(|(member, _)| member);
        let is_client = |it: &&Member| it.role == Role::Client;
        let wanted = wanted && members().any(|it| it.node == own && it.role == Role::Client);
        let others = || members().filter(is_client).filter(|it| wanted && it.node != own);
        self.nodes = others().flat_map(addresses).collect();
        let partner = |it: &Member| (it.wg, (it.node, Prefix::host(it.address.into())));
        self.partners = others().map(partner).collect();
        let announced = |it: &Member| it.profile.endpoints.iter().map(|at| at.addr).collect();
        self.direct.set_partners(others().map(|it| (it.node, announced(it))).collect(), now);
    }

    pub(super) fn wishes(&self) -> BTreeMap<NodeId, Wish> {
        self.direct.wishes()
    }

    /// When [`Paths::begin_look`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        let due =
            if self.passing.is_empty() { self.direct.poll_timeout() } else { Some(Time::ZERO) };
        due.filter(|_| !self.looking)
    }

    /// Whether WireGuard is to be asked what it knows now; then [`Paths::look`] is to be called.
    pub(super) fn begin_look(&mut self, now: Time) -> bool {
        let begins = self.poll_timeout().is_some_and(|due| due <= now);
        self.looking |= begins;
        begins
    }

    /// Takes in what WireGuard knows, and whom packets were sent to.
    pub(super) fn look(
        &mut self,
        core: &mut Mesh,
        peers: &[PeerStatus],
        sent: &[IpAddr],
        now: Time,
    ) {
        self.looking = false;
        let seen = peers.iter().filter_map(|peer| Some((peer.key, peer.endpoint?)));
        self.seen = Some((Instant::now(), seen.collect()));
        for call in std::mem::take(&mut self.passing) {
            self.pass(core, call);
        }
        for node in sent.iter().filter_map(|address| self.nodes.get(address)) {
            self.direct.note_use(*node, now);
        }
        self.direct.look(&links(core, self.direct.wishes().keys(), peers), now);
        self.send_probes(core);
    }

    /// Takes in what another client says.
    pub(super) fn hear(&mut self, call: Call, now: Time) {
        self.direct.hear(call, now);
    }

    /// Passes on a call of or for a client of this node, as soon as it is known where that is.
    pub(super) fn pass(&mut self, core: &mut Mesh, call: Call) {
        let fresh = self.seen.as_ref().filter(|(at, _)| at.elapsed() < FRESH);
        let Some((_, seen)) = fresh else {
            if self.passing.len() < MAX_PASSING {
                self.passing.push(call);
            }
            return;
        };
        let own = core.node();
        let place = |node| core.member(node).and_then(|it| seen.get(&it.wg)).copied();
        let ours = |node| core.attachment(node) == Some(own);
        let seen = if ours(call.from) { place(call.from) } else { call.seen };
        let yours = if ours(call.to) { place(call.to) } else { None };
        // Who has no session with this node yet says it again.
        if seen.is_some() && (yours.is_some() || !ours(call.to)) {
            core.pass_on(Call { seen, yours, ..call });
        }
    }

    /// Has what is to be said said; whether there was something.
    pub(super) fn speak(&mut self, core: &mut Mesh) -> bool {
        let mut said = false;
        while let Some(call) = self.direct.poll_call() {
            core.call(call);
            said = true;
        }
        said
    }

    /// Whether paths have begun or ended since this was asked last.
    pub(super) fn poll_changed(&mut self, mesh: &str) -> bool {
        let mut changed = false;
        while let Some(news) = self.direct.poll_news() {
            match news {
                News::Tried(node) => debug!(mesh, %node, "trying a direct path to a client"),
                News::Begun(node) => debug!(mesh, %node, "packets go directly to a client"),
                News::Ended(node, why) => debug!(mesh, %node, ?why, "no direct path to a client"),
            }
            changed = true;
        }
        changed
    }

    /// Has the peers of a plan follow what has changed since it was begun. The next plan will say
    /// the same, but the two ends of a path are to move at about the same time.
    pub(super) fn amend(&self, peers: &mut Peers) {
        let wishes = self.direct.wishes();
        for (key, spec) in peers {
            let Some((node, address)) = self.partners.get(key) else { continue };
            match wishes.get(node).is_some_and(|wish| wish.carries) {
                true => drop(spec.allowed.insert(*address)),
                false => spec.allowed.clear(),
            }
        }
    }

    pub(super) fn counts(&self) -> DirectPaths {
        let counts = self.direct.counts();
        let open = self.direct.wishes().values().filter(|wish| wish.carries).count();
        DirectPaths { open, attempts: counts.attempts, failures: counts.failures }
    }

    fn send_probes(&mut self, core: &Mesh) {
        let address = |node| core.member(node).map(|member| member.address);
        let to: Vec<_> = self.direct.probes().filter_map(address).collect();
        match nudge(&to) {
            Ok(()) => self.mute = false,
            Err(error) if !self.mute => {
                warn!(%error, "direct paths may end without need: no probes can be sent, which takes CAP_NET_RAW");
                self.mute = true;
            }
            Err(_) => {}
        }
    }
}

fn addresses(member: &Member) -> impl Iterator<Item = (IpAddr, NodeId)> + use<> {
    let (node, ipv6) = (member.node, Some(IpAddr::from(member.address)));
    let ipv4 = member.profile.overlay_ipv4.map(IpAddr::from);
    [ipv6, ipv4].into_iter().flatten().map(move |address| (address, node))
}

/// What WireGuard knows of some members.
fn links<'a>(
    core: &Mesh,
    nodes: impl Iterator<Item = &'a NodeId>,
    peers: &[PeerStatus],
) -> BTreeMap<NodeId, Link> {
    let link = |node: &NodeId| {
        let key = core.member(*node)?.wg;
        let peer = peers.iter().find(|peer| peer.key == key)?;
        let session = peer.last_handshake.is_some_and(|age| age < SESSION);
        Some((*node, Link { session, rx: peer.rx }))
    };
    nodes.filter_map(link).collect()
}
