//! From the members of all meshes of a node to WireGuard peers and routes. Pure: no clock, no
//! I/O, no randomness; the same views make the same [`Plan`].
//!
//! Packets travel in two ways.
//!
//! **Plain**, between members of one mesh. Peers are linked to all peers; a client is attached to
//! one live peer ([`attachment`]), which has the client's address among its allowed IPs and forwards
//! for it. WireGuard takes a packet only from the one peer that it would send an answer to, and
//! that makes loops impossible, however different the views of the peers are: on a circle every
//! peer would have to accept the source from the one before it, and the peer at which the packet
//! entered the circle accepted it from another.
//!
//! **Relayed**, if the source or the destination lies outside the mesh: another mesh, a network
//! behind a member, the internet. WireGuard's one peer per source would then force all traffic
//! between two meshes through one bridge, so such a packet is carried inside a plain one (IPv6 in
//! IPv6, RFC 2473) from member to member, and each node chooses its exit for itself. A relayed
//! packet says how far it is from its destination, and a member relays it only if it is nearer
//! ([`Relays`]): the number falls at every step, so that no packet ever runs in a circle, also
//! while routes change and views differ.
//!
//! Routes between meshes are path vectors ([`Bridged`](selvedge_mesh::Bridged)): each names the
//! meshes that it leads through, and no node uses or passes on one that leads through a mesh of
//! its own. What one member announces rests on what another announces in the next mesh of the
//! path, one mesh shorter, down to a member of the mesh that it leads to. So when that last one
//! is gone, the copies die in the order of their lengths, and none can count upwards: none is
//! longer than there are meshes.

mod attach;
pub mod direct;
mod endpoint;
mod mtu;
mod overlay_ipv4;
mod plan;
mod relay;
mod rendezvous;
mod roles;
mod route;
mod view;

pub use attach::{Attachment, attachment};
pub use endpoint::{Own, candidates, endpoint};
pub use mtu::{Mtu, PathMtu, RELAY_OVERHEAD, Underlay, VXLAN_OVERHEAD, overlay_mtu};
pub use overlay_ipv4::{Claim, claim, owners};
pub use plan::{MeshPlan, PeerSpec, Plan, plan};
pub use relay::{Hop, Refusal, Relays, Table};
pub use view::{ExitUse, Member, Options, View, everywhere, overlap};
