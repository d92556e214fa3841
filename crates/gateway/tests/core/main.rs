//! The core by its public face: what it writes, when, and on what conditions.

mod bench;
mod host;
mod planner;
mod registration;
mod transactions;
mod voters;
