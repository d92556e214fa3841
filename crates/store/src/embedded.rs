//! The embedded engine: the model of the store in one process, for the agents of one machine.
//!
//! [`serve`] owns one [`Model`](selvedge_gateway::model::Model) and gives it the real time;
//! [`EmbeddedStore`] is the client. Nothing is kept on disk. A server that is started again
//! begins empty, with another identity; clients that knew the former one refuse to go on with it
//! ("the store was reset"), because all that they had written is gone.
//!
//! There is no authentication: a Unix socket is open to its owner only, and whoever reaches a TCP
//! address may do everything. It is meant for the demo, for tests, and for a first look.

mod client;
mod server;
mod wire;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

pub use client::EmbeddedStore;
pub use server::{Listener, serve};

/// Where an embedded store listens: `unix:/path` or `tcp:ip:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// A TCP socket.
    Tcp(SocketAddr),
}

/// What is wrong with the text of an [`Address`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the address of a store: expected unix:/path or tcp:ip:port")]
pub struct AddressError(String);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || AddressError(text.to_owned());
        match text.split_once(':').ok_or_else(error)? {
            ("unix", path) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            ("tcp", address) => address.parse().map(Self::Tcp).map_err(|_| error()),
            (_, _) => Err(error()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed_and_printed() {
        for text in ["unix:/run/selvedge/store.sock", "tcp:127.0.0.1:4000", "tcp:[::1]:4000"] {
            assert_eq!(text.parse::<Address>().map(|a| a.to_string()), Ok(text.to_owned()));
        }
        for text in ["", "/run/x", "unix:", "unix:x", "tcp:localhost:1", "tcp:1.2.3.4", "http://x"]
        {
            let error = text.parse::<Address>().expect_err(text);
            assert!(error.to_string().contains(&format!("{text:?}")), "{error}");
        }
    }
}
