use selvedge_api::{Code, Error};
use selvedge_mesh::{InviteError, JoinError, MeshError, TokenError, WriteError};
use selvedge_model::MeshId;
use selvedge_transport::ConnectError;

use super::files::FilesError;
use super::names::FindError;

/// Why the mesh plane did not do what it was asked. Unless a variant says otherwise, nothing was
/// changed.
#[derive(Debug, thiserror::Error)]
pub(super) enum PlaneError {
    #[error(transparent)]
    Find(#[from] FindError),
    #[error("this node is in a mesh called {0:?} already")]
    NameTaken(String),
    #[error("{0:?}: a client needs a peer to reach others, so it cannot found a mesh")]
    ClientFounds(String),
    #[error("another mesh of this node has the port {0}")]
    PortTaken(u16),
    #[error("this node is a member of the mesh {name:?} ({mesh}) already")]
    AlreadyMember { mesh: MeshId, name: String },
    #[error("this node is joining the mesh {0} already")]
    AlreadyJoining(MeshId),
    #[error("this node is leaving the mesh {0} just now")]
    StillLeaving(MeshId),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error("joining: no node that the invite names can be reached: {}", list(.0))]
    Unreachable(Vec<ConnectError>),
    #[error("joining: the nodes that the invite names were reached, but did not answer")]
    NoAnswer,
    #[error("WireGuard cannot be started on {interface}: {reason}")]
    WireGuard { interface: String, reason: String },
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Mesh(#[from] MeshError),
    #[error("an invite needs at least one use")]
    NoUses,
    #[error("the state could not be written: {0}")]
    Files(#[from] FilesError),
    #[error("the mesh was left, but its state could not be removed: {0}")]
    Left(#[source] FilesError),
    #[error("the system gives no random bytes: {0}")]
    Random(String),
    #[error("the mesh plane is stopping")]
    Stopping,
}

impl From<PlaneError> for Error {
    fn from(error: PlaneError) -> Self {
        let answer = Self::new(code(&error), &error);
        match hint(&error) {
            Some(hint) => answer.hint(hint),
            None => answer,
        }
    }
}

fn code(error: &PlaneError) -> Code {
    match error {
        PlaneError::Find(FindError::Unknown(_) | FindError::NoMember(_)) => Code::NotFound,
        PlaneError::NameTaken(_)
        | PlaneError::ClientFounds(_)
        | PlaneError::PortTaken(_)
        | PlaneError::AlreadyMember { .. }
        | PlaneError::AlreadyJoining(_)
        | PlaneError::StillLeaving(_)
        | PlaneError::Join(JoinError::Founder(_))
        | PlaneError::Mesh(
            MeshError::Unreachable | MeshError::MayNotInvite { .. } | MeshError::MayNotEvict { .. },
        ) => Code::Conflict,
        PlaneError::Unreachable(_) | PlaneError::WireGuard { .. } | PlaneError::Stopping => {
            Code::Unavailable
        }
        PlaneError::NoAnswer => Code::Timeout,
        PlaneError::Files(_) | PlaneError::Left(_) | PlaneError::Random(_) => Code::Internal,
        PlaneError::Find(FindError::Ambiguous { .. } | FindError::AmbiguousMember { .. })
        | PlaneError::Token(_)
        | PlaneError::Join(_)
        | PlaneError::Write(_)
        | PlaneError::Mesh(_)
        | PlaneError::NoUses => Code::Invalid,
    }
}

fn hint(error: &PlaneError) -> Option<&'static str> {
    match error {
        PlaneError::Find(FindError::NoMember(_) | FindError::AmbiguousMember { .. }) => {
            Some("`selvedge mesh show MESH --json` shows the members with their ids")
        }
        PlaneError::Find(_) => Some("`selvedge mesh list` shows the meshes that there are"),
        PlaneError::Token(_) => Some("a member makes one with `selvedge mesh invite MESH`"),
        PlaneError::Join(JoinError::Invite(InviteError::Expired { .. })) => {
            Some("ask a member for a new one; if that is new, look at this machine's clock")
        }
        PlaneError::Unreachable(_) => Some(
            "see whether an agent runs there, and whether UDP passes to the port (7654 unless \
             configured otherwise)",
        ),
        PlaneError::NoAnswer => Some("try again with the same token: that counts no further use"),
        PlaneError::WireGuard { .. } => Some(
            "the agent needs CAP_NET_ADMIN and /dev/net/tun; with mesh.wireguard = \"dry\" it \
             touches no interface",
        ),
        PlaneError::Mesh(MeshError::Unreachable) => Some("configure mesh.endpoints"),
        PlaneError::ClientFounds(_) => {
            Some("set role = \"peer\" in [mesh.named.NAME], or found it on another node and join")
        }
        PlaneError::NameTaken(_)
        | PlaneError::PortTaken(_)
        | PlaneError::AlreadyMember { .. }
        | PlaneError::AlreadyJoining(_)
        | PlaneError::StillLeaving(_)
        | PlaneError::Join(_)
        | PlaneError::Write(_)
        | PlaneError::Mesh(_)
        | PlaneError::NoUses
        | PlaneError::Files(_)
        | PlaneError::Left(_)
        | PlaneError::Random(_)
        | PlaneError::Stopping => None,
    }
}

fn list(errors: &[ConnectError]) -> String {
    errors.iter().map(ConnectError::to_string).collect::<Vec<_>>().join("; ")
}
