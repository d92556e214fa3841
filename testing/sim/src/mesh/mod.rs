//! The mesh plane: thousands of members on a network of regions.

pub mod net;
pub mod predecessor;
pub mod scale;
pub mod world;
