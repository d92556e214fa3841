use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use futures_util::TryStreamExt;
use futures_util::future::join_all;
use rtnetlink::Handle;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::neighbour::{NeighbourMessage, NeighbourState};

use tokio::time::timeout;

use crate::netlink::Error;

/// How long the kernel may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The kernel's table of neighbours: which Ethernet address an IP address was last seen at.
#[derive(Clone, Debug)]
pub(super) struct Neighbours {
    handle: Handle,
}

impl Neighbours {
    /// Opens a socket in the network namespace of the calling thread, within a Tokio runtime.
    pub(super) fn new() -> Result<Self, Error> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Open)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Forgets all that was learned on these interfaces; what is configured stays. An answer of
    /// the kernel may be lost, so there is a time limit.
    pub(super) async fn flush(&self, interfaces: &BTreeSet<u32>) -> Result<(), Error> {
        let late = |_| refused(io::Error::from(io::ErrorKind::TimedOut));
        timeout(PATIENCE, self.flush_all(interfaces)).await.map_err(late)?
    }

    async fn flush_all(&self, interfaces: &BTreeSet<u32>) -> Result<(), Error> {
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let request = self.handle.neighbours().get().set_address_family(family);
            let all: Vec<NeighbourMessage> =
                request.execute().try_collect().await.map_err(unreadable)?;
            let learned = all.into_iter().filter(|entry| is_learned(entry, interfaces));
            // One that has vanished by itself in the meantime is what we want.
            let deletions = learned.map(|entry| self.handle.neighbours().del(entry).execute());
            join_all(deletions).await;
        }
        Ok(())
    }
}

fn is_learned(entry: &NeighbourMessage, interfaces: &BTreeSet<u32>) -> bool {
    let fixed = matches!(entry.header.state, NeighbourState::Permanent | NeighbourState::Noarp);
    let routed = matches!(entry.header.family, AddressFamily::Inet | AddressFamily::Inet6);
    routed && !fixed && interfaces.contains(&entry.header.ifindex)
}

fn unreadable(error: rtnetlink::Error) -> Error {
    let source = if let rtnetlink::Error::NetlinkError(message) = &error {
        message.to_io()
    } else {
        io::Error::other(error.to_string())
    };
    refused(source)
}

fn refused(source: io::Error) -> Error {
    Error::Refused { operation: "list the neighbours", object: "of the bridges".into(), source }
}
