//! Names of mesh members: what each of them is called, and the answers to DNS questions about
//! them.
//!
//! All of it is pure but [`Server`]: [`names`](names::names) decides who has which name,
//! [`Zone`] holds what is known of some meshes, and [`answer`](answer::answer) turns a query into
//! a response. The names are authoritative and never ask anybody else, so that nothing that is
//! not about a mesh leaves this host by this way.

mod answer;
pub mod names;
mod serve;
mod service;
mod words;
mod zone;

pub use answer::{Limit, answer};
pub use serve::{ServeError, Server};
pub use service::{Protocol, Service, UnknownProtocol};
pub use words::word_name;
pub use zone::{DOMAIN, DomainError, Host, Options, Site, Zone, check_domain};
