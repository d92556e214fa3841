//! Sans-IO core of the gateway plane, and the deterministic model of the store.
//!
//! [`Gateway`] is one agent's share of the work: it is fed what the store, the host and the
//! operator say, and returns transactions and desired state. It holds no socket, no clock and no
//! random source. [`model::Model`] is a store in memory with the semantics of etcd, for the
//! simulator and the embedded engine.

pub mod cache;
mod core;
pub mod desired;
pub mod keys;
pub mod kv;
pub mod machine;
pub mod model;
pub mod placement;
pub mod probe;
pub mod wire;

pub use crate::core::status;
pub use crate::core::{
    Config, Event, Gateway, Isolated, Memory, NodeRole, OperatorError, Reason, Remembered,
    StoreInput, Timing, Token,
};
