//! Sans-IO core of the mesh plane.
//!
//! A mesh is a set of nodes that admit each other, replicate who is a member, and build a
//! WireGuard network from it, without a server. This crate decides; it has no socket, no clock,
//! no disk and no random source of its own. Whoever drives it hands in messages and the time, and
//! takes out messages to send, events, and the desired state of WireGuard.
//!
//! - [`Mesh`] is one node's part in one mesh; [`State`] is what it keeps on disk.
//! - [`State::found`] begins a mesh; [`Joining`] redeems an [`Invite`] for a [`Certificate`].
//! - [`crdt`] replicates the [`Record`]s: each is written and signed by its node alone, so that
//!   whoever passes it on can neither forge nor roll back what it says.
//! - [`wire`] is the format of the messages, [`address`] computes the overlay addresses.

pub mod address;
mod admission;
pub mod attach;
mod broadcast;
mod call;
mod codec;
mod config;
pub mod crdt;
mod detector;
mod event;
mod eviction;
mod identity;
mod invite;
mod joining;
pub mod journal;
mod lives;
mod mesh;
mod overlay;
mod profile;
mod rates;
pub mod reconcile;
mod record;
mod roster;
pub mod rumor;
mod signed;
mod state;
#[cfg(test)]
mod testing;
mod time;
mod tree;
mod verifier;
mod wards;
pub mod wire;
mod wireguard;

pub use admission::{Certificate, CertificateError, Genesis, Grant, Role, permits};
pub use attach::attached_to;
pub use broadcast::{NewsId, NewsKind};
pub use config::Config;
pub use detector::Probing;
pub use event::{Event, Rejection, Rejections};
pub use eviction::Eviction;
pub use identity::Identity;
pub use invite::{Bootstrap, Invite, InviteError, InviteId, TokenError};
pub use joining::{JoinError, Joining};
pub use mesh::{InviteTerms, Knock, Mesh, MeshError, Transmit};
pub use profile::{Bridged, Endpoint, NamedEndpoint, Profile};
pub use record::{Admitted, Life, MAX_SEQ, Record, RecordError, Removal, Removed};
pub use roster::Member;
pub use signed::{Raw, Signed, SignedError, Statement};
pub use state::{SnapshotError, State, WriteError};
pub use time::UnixTime;
pub use verifier::Verifier;
pub use wireguard::PeerSpec;
