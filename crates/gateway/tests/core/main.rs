//! The core by its public face: what it writes, when, and on what conditions.

mod bench;
mod host;
mod memory;
mod planner;
mod refill;
mod registration;
mod standin;
mod transactions;
mod voters;
