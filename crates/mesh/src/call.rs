//! What one client says to another.

use std::net::SocketAddr;

use minicbor::{Decode, Encode};
use selvedge_model::NodeId;

use crate::codec::fixed;

/// The body of [`crate::wire::Message::Call`]. The peer that the caller is attached to says where it sees the
/// caller, and the peer of the one that is called where it sees that one; each passes it on for
/// its own clients alone. What the words mean is between the two clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Call {
    /// The client that calls.
    #[cbor(n(0), with = "fixed")]
    pub from: NodeId,
    /// The client that is called.
    #[cbor(n(1), with = "fixed")]
    pub to: NodeId,
    /// What it is about: a number that one of the two has chosen.
    #[n(2)]
    pub number: u64,
    /// What is said of it.
    #[n(3)]
    pub word: u8,
    /// Where packets of the caller's WireGuard come from, as its peer sees them.
    #[n(4)]
    pub seen: Option<SocketAddr>,
    /// Where those of the one that is called come from.
    #[n(5)]
    pub yours: Option<SocketAddr>,
}
