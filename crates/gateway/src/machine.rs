//! The life of one network: the state that the store names, and what each node does about it.

use std::fmt;

use crate::desired::{Duty, Upstream};

/// The state of a network, numbered as in the store.
///
/// ```text
///             claim                    finish
///   0 unassigned ----> 10 failover -------------> 1 idle <----------------------------+
///        ^               decided                    |                                 |
///        |                  ^                       | planner: start                  |
///        |                  | current lost          v                                 |
///        | both lost   +----+---------------- 2 decided          current: confirm     |
///        +-------------+ (next claims)              v                                 |
///                      |                      3 confirmed        next: fabric,        |
///                      |                            v            upstream on          |
///                      |                      4 ospf-advertised  current: upstream    |
///                      |                            v            off                  |
///                      |                      5 ospf-withdrawn   next: answers        |
///                      |                            v                                 |
///                      |                      6 arp-enabled      current: silent      |
///                      |                            v                                 |
///                      |                      7 arp-disabled     next: announces      |
///                      |                            v                                 |
///                      |                      8 gratuitous-arp-  current: fabric off  |
///                      |                            v     sent                        |
///                      +--------------------- 9 evpn-withdrawn   next: finish --------+
///                                                   |
///                      in 2 to 9: next lost, current resumes: 1 idle
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum State {
    /// Nobody serves the network.
    Unassigned = 0,
    /// The current gateway serves it.
    Idle = 1,
    /// A planned move has been decided.
    MigrationDecided = 2,
    /// The current gateway agrees to it.
    MigrationConfirmed = 3,
    /// The next gateway attracts traffic from upstream.
    MigrationOspfAdvertised = 4,
    /// The current gateway no longer does.
    MigrationOspfWithdrawn = 5,
    /// The next gateway answers ARP and ND.
    MigrationArpEnabled = 6,
    /// The current gateway no longer does.
    MigrationArpDisabled = 7,
    /// The next gateway has announced itself.
    MigrationGratuitousArpSent = 8,
    /// The current gateway has left the fabric.
    MigrationEvpnWithdrawn = 9,
    /// The next gateway takes over from one that is lost.
    FailoverDecided = 10,
}

/// The part that a node plays for a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// It is the owner.
    Current,
    /// It is the owner to be.
    Next,
    /// Neither.
    Other,
}

/// Who of the two gateways of a network is there: named in the store and not lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Presence {
    /// The owner is.
    pub current: bool,
    /// The owner to be is.
    pub next: bool,
}

/// What has to be done for a change of state to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Wait {
    /// Nothing; write at once.
    None,
    /// This host does its [`duty`].
    Duty,
    /// This host does its duty, and routing has had time to follow.
    Settle,
    /// This host does its duty and has announced itself since.
    Announced,
}

/// What a node does about the state of a network, besides its [`duty`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: it is another's turn, or all is done.
    Rest,
    /// Write the next state of the planned move.
    Advance(State, Wait),
    /// Write [`State::Idle`] with oneself as the owner and nobody as the next.
    Finish(Wait),
    /// Write [`State::Idle`] with nobody as the next: the owner stays.
    Resume,
    /// Write [`State::FailoverDecided`] with oneself as the next. For [`Role::Other`] only if the
    /// placement names this node.
    Claim,
}

/// What the host of a node in this role does for a network in this state.
#[must_use]
pub const fn duty(state: State, role: Role) -> Duty {
    use State as S;
    const LEAVING: Duty = Duty { upstream: Upstream::Off, ..Duty::FULL };
    const SILENT: Duty = Duty { answering: false, ..LEAVING };
    // The current gateway may still advertise halves from a takeover. Against these a whole prefix
    // would attract nothing, and the next one would itself send to the current what that one, on
    // withdrawing, sends back.
    const ARRIVING: Duty = Duty { answering: false, ..Duty::TAKEOVER };
    match (role, state) {
        (Role::Other, _) => Duty::NONE,

        (Role::Current, S::Unassigned | S::Idle) => Duty::FULL,
        (Role::Current, S::MigrationDecided | S::MigrationConfirmed) => Duty::FULL,
        (Role::Current, S::MigrationOspfAdvertised | S::MigrationOspfWithdrawn) => LEAVING,
        (Role::Current, S::MigrationArpEnabled | S::MigrationArpDisabled) => SILENT,
        (Role::Current, S::MigrationGratuitousArpSent | S::MigrationEvpnWithdrawn) => Duty::NONE,
        (Role::Current, S::FailoverDecided) => Duty::NONE,

        (Role::Next, S::Unassigned | S::Idle | S::MigrationDecided) => Duty::NONE,
        (Role::Next, S::MigrationConfirmed | S::MigrationOspfAdvertised) => ARRIVING,
        (Role::Next, S::MigrationOspfWithdrawn | S::MigrationArpEnabled) => Duty::TAKEOVER,
        (Role::Next, S::MigrationArpDisabled | S::MigrationGratuitousArpSent) => Duty::TAKEOVER,
        (Role::Next, S::MigrationEvpnWithdrawn) => Duty::TAKEOVER,
        (Role::Next, S::FailoverDecided) => Duty::TAKEOVER,
    }
}

/// What a node in this role does about this state.
///
/// Who is lost is nobody's turn any more: without the next gateway the owner resumes, without
/// the owner the next claims, without either the placement names who does.
#[must_use]
pub fn step(state: State, role: Role, there: Presence) -> Step {
    match (state, role, there.current, there.next) {
        // Nobody is in charge of this state: whoever comes first in the order owner, owner to be,
        // placement brings the network back.
        (State::Unassigned, Role::Current, true, _) => Step::Resume,
        (State::Unassigned, Role::Next, false, true) => Step::Claim,
        (State::Unassigned, Role::Other, false, false) => Step::Claim,
        (State::Unassigned, _, _, _) => Step::Rest,

        (State::Idle, Role::Next, false, true) => Step::Claim,
        (State::Idle, Role::Other, false, false) => Step::Claim,
        (State::Idle, _, _, _) => Step::Rest,

        (State::FailoverDecided, Role::Next, _, true) => Step::Finish(Wait::Duty),
        (State::FailoverDecided, Role::Current, true, false) => Step::Resume,
        (State::FailoverDecided, Role::Other, false, false) => Step::Claim,
        (State::FailoverDecided, _, _, _) => Step::Rest,

        // In the last state the old owner has nothing left to do.
        (State::MigrationEvpnWithdrawn, Role::Next, _, true) => Step::Finish(Wait::None),

        // The planned move.
        (_, Role::Current, true, false) => Step::Resume,
        (_, Role::Next, false, true) => Step::Claim,
        (_, Role::Other, false, false) => Step::Claim,
        (_, role, true, true) => advance(state, role),
        (_, Role::Current | Role::Next | Role::Other, _, _) => Step::Rest,
    }
}

/// The planned move, with both gateways there.
fn advance(state: State, role: Role) -> Step {
    match turn(state) {
        Some((actor, to, wait)) if actor == role => Step::Advance(to, wait),
        Some(_) | None => Step::Rest,
    }
}

/// Whose turn it is in a planned move, which state follows, and what comes before.
const fn turn(state: State) -> Option<(Role, State, Wait)> {
    use State as S;
    match state {
        S::MigrationDecided => Some((Role::Current, S::MigrationConfirmed, Wait::None)),
        S::MigrationConfirmed => Some((Role::Next, S::MigrationOspfAdvertised, Wait::Settle)),
        S::MigrationOspfAdvertised => {
            Some((Role::Current, S::MigrationOspfWithdrawn, Wait::Settle))
        }
        S::MigrationOspfWithdrawn => Some((Role::Next, S::MigrationArpEnabled, Wait::Duty)),
        S::MigrationArpEnabled => Some((Role::Current, S::MigrationArpDisabled, Wait::Duty)),
        S::MigrationArpDisabled => {
            Some((Role::Next, S::MigrationGratuitousArpSent, Wait::Announced))
        }
        S::MigrationGratuitousArpSent => {
            Some((Role::Current, S::MigrationEvpnWithdrawn, Wait::Duty))
        }
        // These have no turn: nothing moves, or [`step`] finishes it.
        S::Unassigned | S::Idle | S::MigrationEvpnWithdrawn | S::FailoverDecided => None,
    }
}

impl State {
    /// All states in the order of their numbers.
    pub const ALL: [Self; 11] = [
        Self::Unassigned,
        Self::Idle,
        Self::MigrationDecided,
        Self::MigrationConfirmed,
        Self::MigrationOspfAdvertised,
        Self::MigrationOspfWithdrawn,
        Self::MigrationArpEnabled,
        Self::MigrationArpDisabled,
        Self::MigrationGratuitousArpSent,
        Self::MigrationEvpnWithdrawn,
        Self::FailoverDecided,
    ];

    /// The number that stands in the store.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The state with this number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Whether a planned move is under way.
    #[must_use]
    pub const fn is_migration(self) -> bool {
        matches!(self.number(), 2..=9)
    }

    /// The name that people see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unassigned => "unassigned",
            Self::Idle => "idle",
            Self::MigrationDecided => "migration-decided",
            Self::MigrationConfirmed => "migration-confirmed",
            Self::MigrationOspfAdvertised => "migration-ospf-advertised",
            Self::MigrationOspfWithdrawn => "migration-ospf-withdrawn",
            Self::MigrationArpEnabled => "migration-arp-enabled",
            Self::MigrationArpDisabled => "migration-arp-disabled",
            Self::MigrationGratuitousArpSent => "migration-gratuitous-arp-sent",
            Self::MigrationEvpnWithdrawn => "migration-evpn-withdrawn",
            Self::FailoverDecided => "failover-decided",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One row per state and role; the columns are who is there: both, current, next, nobody.
    /// `.` rest, `R` resume, `C` claim, `F` finish (`f` at once), a digit: advance to that state.
    const TABLE: [(&str, [&str; 3]); 11] = [
        //                 current   next      other
        ("unassigned", ["RR..", "..C.", "...C"]),
        ("idle", ["....", "..C.", "...C"]),
        ("decided", ["3R..", "..C.", "...C"]),
        ("confirmed", [".R..", "4.C.", "...C"]),
        ("ospf-advertised", ["5R..", "..C.", "...C"]),
        ("ospf-withdrawn", [".R..", "6.C.", "...C"]),
        ("arp-enabled", ["7R..", "..C.", "...C"]),
        ("arp-disabled", [".R..", "8.C.", "...C"]),
        ("arp-sent", ["9R..", "..C.", "...C"]),
        ("evpn-withdrawn", [".R..", "f.f.", "...C"]),
        ("failover", [".R..", "F.F.", "...C"]),
    ];

    const PRESENCES: [Presence; 4] = [
        Presence { current: true, next: true },
        Presence { current: true, next: false },
        Presence { current: false, next: true },
        Presence { current: false, next: false },
    ];

    fn letter(step: Step) -> char {
        match step {
            Step::Rest => '.',
            Step::Resume => 'R',
            Step::Claim => 'C',
            Step::Finish(Wait::None) => 'f',
            Step::Finish(_) => 'F',
            Step::Advance(to, _) => char::from(b'0' + to.number()),
        }
    }

    #[test]
    fn full_table() {
        for (state, (name, row)) in State::ALL.into_iter().zip(TABLE) {
            for (role, expected) in [Role::Current, Role::Next, Role::Other].into_iter().zip(row) {
                let real: String =
                    PRESENCES.into_iter().map(|there| letter(step(state, role, there))).collect();
                assert_eq!(real, expected, "{name} as {role:?}");
            }
        }
    }

    #[test]
    fn somebody_always_acts() {
        // G6: whatever the state and whoever is there, one role has something to do, unless the
        // network is served.
        for state in State::ALL {
            for there in PRESENCES {
                let roles =
                    [(Role::Current, there.current), (Role::Next, there.next), (Role::Other, true)];
                let acts = roles
                    .into_iter()
                    .filter(|(_, exists)| *exists)
                    .any(|(role, _)| step(state, role, there) != Step::Rest);
                let served = state == State::Idle && there.current;
                assert!(acts || served, "{state} {there:?}");
            }
        }
    }

    #[test]
    fn somebody_answers_at_every_step_of_a_move() {
        for state in State::ALL.into_iter().filter(|state| state.is_migration()) {
            let (current, next) = (duty(state, Role::Current), duty(state, Role::Next));
            assert!(current.answering || next.answering, "{state}");
            assert!(current.fabric || next.fabric, "{state}");
            assert!(current.upstream != Upstream::Off || next.upstream != Upstream::Off, "{state}");
        }
    }

    #[test]
    fn who_comes_is_never_less_specific_than_who_goes() {
        for state in State::ALL {
            let upstream = duty(state, Role::Next).upstream;
            assert_ne!(upstream, Upstream::Whole, "{state}");
        }
    }

    #[test]
    fn duties_change_in_the_order_of_a_lossless_move() {
        let seen: Vec<String> = State::ALL[1..10]
            .iter()
            .flat_map(|state| [duty(*state, Role::Current), duty(*state, Role::Next)])
            .map(|duty| {
                let flags = [duty.fabric, duty.upstream != Upstream::Off, duty.answering];
                flags.iter().zip(['F', 'U', 'A']).map(|(on, c)| if *on { c } else { '-' }).collect()
            })
            .collect();
        let expected = [
            "FUA", "---", // idle
            "FUA", "---", // decided
            "FUA", "FU-", // confirmed
            "F-A", "FU-", // ospf-advertised
            "F-A", "FUA", // ospf-withdrawn
            "F--", "FUA", // arp-enabled
            "F--", "FUA", // arp-disabled
            "---", "FUA", // gratuitous-arp-sent
            "---", "FUA", // evpn-withdrawn
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn numbers_are_the_predecessors() {
        for (number, state) in (0..).zip(State::ALL) {
            assert_eq!((state.number(), State::from_number(number)), (number, Some(state)));
        }
        assert_eq!(State::from_number(11), None);
    }
}
