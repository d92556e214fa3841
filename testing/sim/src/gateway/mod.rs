//! The gateway plane: agents, their hosts, and the store between them.

pub mod check;
pub mod predecessor;
pub mod scale;
pub mod world;
