//! Overlay networks that run themselves: the agent, its clients and the demo.
//!
//! [`cli::run`] is the whole program. Others (the lab, tests) call it with arguments of their own
//! to be an agent.

pub mod agent;
pub mod cli;
pub mod config;
pub mod demo;
mod disk;
pub mod gateway_plane;
mod hooks;
mod http;
mod identity;
mod import;
mod interfaces;
pub mod mesh_plane;
mod stream;
mod tunnels;
