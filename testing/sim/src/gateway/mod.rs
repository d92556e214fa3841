//! The gateway plane: agents, their hosts, the network between them, and the store.

pub mod chaos;
pub mod check;
pub mod cluster;
pub mod footing;
pub mod host;
pub mod links;
mod log;
pub mod loss;
pub mod planned;
pub mod predecessor;
pub mod scale;
mod store;
pub mod world;
