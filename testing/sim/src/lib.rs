//! Simulator: the cores on virtual time.
//!
//! One process runs many agents with their real protocol code against a simulated network, store
//! and kernel. Everything that is random comes from one seed, so that a run repeats to the letter.

pub mod gateway;
pub mod mesh;
