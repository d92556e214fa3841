use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

/// Tells whether interfaces have come, gone or changed, for the price of one system call: with
/// thousands of them, to read them all takes longer than to announce an address.
#[derive(Debug)]
pub(super) struct Changes {
    notices: OwnedFd,
}

impl Changes {
    /// Watches the network namespace of the calling thread from now on.
    pub(super) fn watch() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let route = SockProtocol::NetlinkRoute;
        let notices = socket(AddressFamily::Netlink, SockType::Raw, flags, route)?;
        bind(notices.as_raw_fd(), &NetlinkAddr::new(0, libc::RTMGRP_LINK as u32))?;
        Ok(Self { notices })
    }

    /// Whether there was a change since this was last asked. What it was does not matter, so the
    /// notices are not even read in full; more of them than fit into the queue are a change too.
    pub(super) fn any(&self) -> bool {
        let mut seen = false;
        loop {
            match recv(self.notices.as_raw_fd(), &mut [0; 16], MsgFlags::empty()) {
                Err(Errno::EAGAIN) => return seen,
                Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => seen = true,
                Err(_) => return true,
            }
        }
    }
}
