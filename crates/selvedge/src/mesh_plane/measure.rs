//! What is counted in the meshes, for those who watch over many hosts.

use selvedge_api::mesh::{MemberState, Summary};
use selvedge_mesh::Rejections;
use selvedge_transport::CounterValues;

use super::applier::{Inquirer, Status};
use super::seat::Seated;
use super::view::{self, Heard};

/// What is counted of all meshes of a node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measures {
    pub(crate) meshes: Vec<Measured>,
    /// What the agents' transport has carried.
    pub(crate) transport: CounterValues,
    /// Hooks that failed.
    pub(crate) hook_failures: u64,
}

/// What is counted of one mesh.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) summary: Summary,
    /// How many other members are how.
    pub(crate) states: [(MemberState, u64); 4],
    /// How many members are drained.
    pub(crate) drained: u64,
    /// Whether the WireGuard interface could be made.
    pub(crate) interface: bool,
    /// For how many families an exit is asked for and none is used.
    pub(crate) missing_exits: u64,
    /// Other members with which WireGuard has a session.
    pub(crate) sessions: u64,
    /// Bytes that WireGuard has received and sent.
    pub(crate) bytes: (u64, u64),
    /// Packets that were refused because of where they came from or went to.
    pub(crate) refused: u64,
    /// Messages of other agents, and entries in them, that were not accepted, by what was wrong.
    pub(crate) rejections: Rejections,
}

const STATES: [MemberState; 4] =
    [MemberState::Alive, MemberState::Suspect, MemberState::Down, MemberState::Unknown];

impl Measured {
    /// Without what WireGuard knows; see [`Measured::complete`].
    pub(super) fn of(seat: &Seated, heard: &Heard) -> Self {
        let mut states = STATES.map(|state| (state, 0));
        let mut drained = 0;
        for member in seat.core.members() {
            drained += u64::from(member.profile.drained);
            let state = view::state(seat, member.node, heard);
            let own = member.node == seat.core.node();
            states.iter_mut().filter(|it| !own && it.0 == state).for_each(|it| it.1 += 1);
        }
        let failed = matches!(*seat.wire.applier.status().borrow(), Status::Failed { .. });
        let missing = seat.layout.exits.iter().filter(|exit| exit.is_missing());
        Self {
            summary: view::summary(seat),
            states,
            drained,
            interface: !failed,
            missing_exits: missing.count() as u64,
            sessions: 0,
            bytes: (0, 0),
            refused: 0,
            rejections: seat.core.rejections().clone(),
        }
    }

    /// Adds what WireGuard knows.
    pub(super) async fn complete(mut self, inquirer: &Inquirer) -> Self {
        let told = inquirer.ask().await;
        let sessions = told.peers.iter().filter(|peer| view::has_session(peer));
        self.sessions = sessions.count() as u64;
        self.bytes = told.peers.iter().fold((0, 0), |(rx, tx), it| (rx + it.rx, tx + it.tx));
        self.refused = told.refused;
        self
    }
}
