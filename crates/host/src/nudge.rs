//! Packets that say nothing but that somebody sends them.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

/// The next header that says that there is none (RFC 8200, section 4.7): hosts drop such a packet
/// without a word, and no firewall of theirs has to let it in to be counted by the tunnel before.
pub(crate) const NOTHING: u8 = 59;

/// Sends an empty packet to each address, from the network namespace of the calling thread. An
/// address that cannot be sent to is no error.
///
/// # Errors
/// If the right to send such packets (`CAP_NET_RAW`) is missing.
pub fn nudge(addresses: &[Ipv6Addr]) -> io::Result<()> {
    if addresses.is_empty() {
        return Ok(());
    }
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::from(i32::from(NOTHING))))?;
    socket.set_nonblocking(true)?;
    for address in addresses {
        let to = SocketAddr::new(IpAddr::V6(*address), 0);
        // Whoever cannot be sent to hears nothing.
        let _ = socket.send_to(&[], &to.into());
    }
    Ok(())
}
