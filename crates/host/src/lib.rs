//! This machine: netlink, WireGuard, packets, sysctl, namespaces, FRR.
//!
//! The only crate of the workspace with unsafe code: the few system calls that have no safe form.

pub mod check;
pub mod clock;
pub mod events;
pub mod fabric;
pub mod firewall;
pub mod forwarding;
pub mod frr;
pub mod health;
pub mod inventory;
pub mod masquerade;
pub mod memory;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod nudge;
pub mod overheard;
pub mod packet;
pub mod ping;
pub mod priority;
pub mod sysctl;
pub mod tunnels;
pub mod wireguard;

#[cfg(test)]
mod test_frr;
#[cfg(test)]
mod test_support;
