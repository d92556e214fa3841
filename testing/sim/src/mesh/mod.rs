//! The mesh plane: thousands of members on a network of regions.

pub mod clock;
pub mod invariants;
pub mod net;
pub mod plot;
pub mod predecessor;
pub mod replay;
pub mod scale;
pub mod scenario;
pub mod world;
