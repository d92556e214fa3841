//! What the tests of both ways to send have in common.

use std::net::SocketAddr;

use selvedge_model::NodeId;
use selvedge_transport::{AccessList, Config, Received, Transport};
use tokio::sync::{mpsc, watch};
use zeroize::Zeroizing;

/// A transport on the loopback interface, and whom it lets in.
pub(crate) struct Agent {
    pub(crate) transport: Transport,
    pub(crate) inbox: mpsc::Receiver<Received>,
    pub(crate) access: watch::Sender<AccessList>,
}

impl Agent {
    pub(crate) fn bind(seed: u8, listen: SocketAddr, list: AccessList) -> Self {
        let (access, follow) = watch::channel(list);
        let config =
            Config { listen, secret: Zeroizing::new([seed; 32]), access: follow, mark: None };
        let (transport, inbox) = Transport::bind(config).expect("loopback can be bound");
        Self { transport, inbox, access }
    }

    pub(crate) fn node(&self) -> NodeId {
        self.transport.node()
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        SocketAddr::new([127, 0, 0, 1].into(), self.transport.local_addr().port())
    }
}
