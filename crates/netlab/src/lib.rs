//! A laboratory on one machine: hosts as network namespaces, links between them, numbered packet
//! streams that measure loss and outage, and etcd and FRRouting as processes.
//!
//! A [`Lab`] owns what it makes and removes it when it is dropped; [`Lab::cleanup`] does the same
//! for everything of this process, and [`Lab::sweep`] for what a killed one left behind. A
//! [`Campus`] is the topology of the gateway plane: gateways, an access point with stations, and
//! an upstream router.
//!
//! Everything here blocks the calling thread; nothing needs an asynchronous runtime.

pub mod campus;
pub mod clock;
mod command;
mod error;
pub mod etcd;
pub mod firewall;
pub mod frr;
mod lab;
pub mod link;
pub mod observe;
mod process;
mod realtime;
pub mod stream;
pub mod tap;
pub mod tcp;

pub use campus::Campus;
pub use error::Error;
pub use lab::{Host, Lab};
pub use process::{Process, Recipe};
