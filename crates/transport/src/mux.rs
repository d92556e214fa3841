//! One UDP socket for QUIC and for sealed datagrams: told apart by their first byte (RFC 9443).

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV6};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::sync::mpsc;

use crate::Counters;
use crate::datagram::frame::Frame;

/// IPv4 and UDP; the headers of IPv6 are 20 bytes longer.
const HEADERS: usize = 28;

/// A datagram that is not QUIC's, and where it came from.
pub(crate) type Diverted = (SocketAddr, Vec<u8>);

/// The socket as quinn sees it: what is not QUIC is taken out.
#[derive(Debug)]
pub(crate) struct Mux {
    inner: Arc<dyn AsyncUdpSocket>,
    diverted: mpsc::Sender<Diverted>,
    counters: Arc<Counters>,
    is_ipv6: bool,
}

impl Mux {
    pub(crate) fn new(
        inner: Arc<dyn AsyncUdpSocket>,
        diverted: mpsc::Sender<Diverted>,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        let is_ipv6 = inner.local_addr()?.is_ipv6();
        Ok(Self { inner, diverted, counters, is_ipv6 })
    }

    /// Sends a datagram, or drops it if the socket is not ready to take it.
    pub(crate) fn send(&self, to: SocketAddr, contents: &[u8]) -> io::Result<()> {
        let destination = match to {
            SocketAddr::V4(v4) if self.is_ipv6 => {
                SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into()
            }
            SocketAddr::V4(_) | SocketAddr::V6(_) => to,
        };
        self.try_send(&Transmit {
            destination,
            ecn: None,
            contents,
            segment_size: None,
            src_ip: None,
        })
    }

    /// Takes our datagrams out of what one buffer holds, and leaves QUIC's. A buffer may hold
    /// several of one sender, all of the same length but the last.
    fn divert(&self, buffer: &mut [u8], meta: &mut RecvMeta) {
        let stride = meta.stride.max(1);
        let mut kept = 0;
        for start in (0..meta.len).step_by(stride) {
            let end = meta.len.min(start + stride);
            self.counters.wire_bytes_received.add(end - start + HEADERS);
            if Frame::begins_with(buffer[start]) {
                let from = SocketAddr::new(meta.addr.ip().to_canonical(), meta.addr.port());
                if self.diverted.try_send((from, buffer[start..end].to_vec())).is_err() {
                    self.counters.datagrams_dropped.bump();
                }
            } else {
                buffer.copy_within(start..end, kept);
                kept += end - start;
            }
        }
        meta.len = kept;
    }
}

impl AsyncUdpSocket for Mux {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)?;
        let len = transmit.contents.len();
        let segments = len.div_ceil(transmit.segment_size.unwrap_or(len).max(1));
        self.counters.wire_bytes_sent.add(len + segments * HEADERS);
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let received = ready!(self.inner.poll_recv(cx, bufs, meta))?;
        for (buffer, meta) in bufs.iter_mut().zip(meta).take(received) {
            self.divert(buffer, meta);
        }
        Poll::Ready(Ok(received))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use quinn::Runtime;

    use super::*;

    #[tokio::test]
    async fn a_buffer_of_both_kinds_is_parted() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("loopback can be bound");
        socket.set_nonblocking(true).expect("a socket can be made so");
        let inner = quinn::TokioRuntime.wrap_udp_socket(socket).expect("a good socket");
        let (diverted, mut ours) = mpsc::channel(2);
        let mux = Mux::new(inner, diverted, Arc::default()).expect("bound");
        let mut buffer = *b"\x41quic\x06ours\x42quic\x06ours\x05ab";
        let addr = "[::ffff:192.0.2.1]:7".parse().expect("an address");
        let mut meta = RecvMeta { addr, len: buffer.len(), stride: 5, ..RecvMeta::default() };
        mux.divert(&mut buffer, &mut meta);
        assert_eq!(&buffer[..meta.len], b"\x41quic\x42quic");
        let from = "192.0.2.1:7".parse().expect("an address");
        for _ in 0..2 {
            assert_eq!(ours.try_recv(), Ok((from, b"\x06ours".to_vec())));
        }
        assert!(ours.try_recv().is_err(), "there was no room for the third");
        assert_eq!(mux.counters.read().datagrams_dropped, 1);
        let mut meta = RecvMeta { addr, len: 3, stride: 3, ..RecvMeta::default() };
        mux.divert(&mut b"\x06ab".to_owned(), &mut meta);
        assert_eq!(meta.len, 0);
    }
}
