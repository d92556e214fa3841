//! Sealed datagrams on the loopback interface, beside QUIC on the same ports.

mod common;

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use selvedge_transport::frame::Frame;
use selvedge_transport::{AccessList, CounterValues, MAX_DATAGRAM, Received, SendError};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use common::Agent;

impl Agent {
    fn start(seed: u8) -> Self {
        Self::start_at(seed, "127.0.0.1:0".parse().expect("an address"))
    }

    fn start_at(seed: u8, listen: SocketAddr) -> Self {
        Self::bind(seed, listen, AccessList::default())
    }

    fn admit(&self, other: &Self) {
        self.access.send_modify(|list| list.members.extend([other.node()]));
    }

    fn tell(&self, to: &Self, message: &[u8]) {
        self.tell_at(to, to.addr(), message);
    }

    fn tell_at(&self, to: &Self, addr: SocketAddr, message: &[u8]) {
        self.transport.send_datagram(to.node(), &[addr], message.to_vec()).expect("not busy");
    }

    async fn receive(&mut self) -> Received {
        let received = timeout(Duration::from_secs(20), self.inbox.recv()).await;
        received.expect("a message in time").expect("the transport runs")
    }

    fn counters(&self) -> CounterValues {
        self.transport.counters()
    }
}

fn two() -> (Agent, Agent) {
    let (a, b) = (Agent::start(1), Agent::start(2));
    a.admit(&b);
    b.admit(&a);
    (a, b)
}

/// Between two agents: what arrives is noted and passed on, unless it is to be lost.
struct Wire {
    addr: SocketAddr,
    recorded: mpsc::UnboundedReceiver<Vec<u8>>,
}

impl Wire {
    /// Stands before `target` for whoever sends to its address.
    fn before(target: SocketAddr, lost: impl Fn(usize, &[u8]) -> bool + Send + 'static) -> Self {
        let front = UdpSocket::bind("127.0.0.1:0").expect("loopback can be bound");
        front.set_nonblocking(true).expect("a socket can be made so");
        let addr = front.local_addr().expect("bound");
        let front = tokio::net::UdpSocket::from_std(front).expect("a good socket");
        let (record, recorded) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let (mut caller, mut buffer) = (None, [0; 2048]);
            for number in 0.. {
                let Ok((len, from)) = front.recv_from(&mut buffer).await else { return };
                let to = if from == target { caller } else { Some(target) };
                caller = if from == target { caller } else { Some(from) };
                if record.send(buffer[..len].to_vec()).is_err() {
                    return;
                }
                if let Some(to) = to.filter(|_| !lost(number, &buffer[..len])) {
                    front.send_to(&buffer[..len], to).await.expect("loopback takes it");
                }
            }
        });
        Self { addr, recorded }
    }
}

#[tokio::test]
async fn messages_go_both_ways_without_a_connection() {
    let (mut a, mut b) = two();
    a.tell(&b, b"to b");
    let received = b.receive().await;
    assert_eq!((received.from, received.remote), (a.node(), a.addr()));
    assert_eq!(received.bytes, b"to b");
    b.transport.send_datagram(a.node(), &[], b"back".to_vec()).expect("not busy");
    assert_eq!(a.receive().await.bytes, b"back");
    let great = vec![7; MAX_DATAGRAM];
    a.tell(&b, &great);
    assert_eq!(b.receive().await.bytes, great);
    let error = a.transport.send_datagram(b.node(), &[b.addr()], vec![7; MAX_DATAGRAM + 1]);
    assert_eq!(error, Err(SendError::TooLong { len: MAX_DATAGRAM + 1 }));
    assert_eq!((a.counters().connected, b.counters().connected), (0, 0));
    assert_eq!((a.counters().datagrams_sent, a.counters().datagrams_received), (2, 1));
}

#[tokio::test]
async fn a_socket_for_both_families_serves_both_kinds() {
    let any = "[::]:0".parse().expect("an address");
    let (a, mut b) = (Agent::start_at(1, any), Agent::start_at(2, any));
    a.admit(&b);
    b.admit(&a);
    a.tell(&b, b"begin");
    assert_eq!(b.receive().await.bytes, b"begin");
    for round in 0..20 {
        a.tell(&b, b"datagram");
        a.transport.send(b.node(), &[b.addr()], vec![round; 3000]).expect("not busy");
    }
    let (mut datagrams, mut streams) = (0, 0);
    for _ in 0..40 {
        let received = b.receive().await;
        assert!(received.remote.is_ipv4(), "{} is in its own form", received.remote);
        match received.bytes.len() {
            8 => datagrams += 1,
            _ => streams += 1,
        }
    }
    assert_eq!((datagrams, streams), (20, 20));
}

#[tokio::test]
async fn a_session_costs_little() {
    let (a, mut b) = two();
    let sent = |agent: &Agent| agent.counters().wire_bytes_sent;
    a.tell(&b, &[1; 50]);
    b.receive().await;
    let begun = sent(&a) + sent(&b);
    assert!(begun <= 350, "{begun} bytes for the handshake and a message");
    let received = b.counters().wire_bytes_received;
    a.tell(&b, &[1; 50]);
    b.receive().await;
    assert_eq!(sent(&a) + sent(&b) - begun, 50 + 29 + 28);
    assert_eq!(b.counters().wire_bytes_received - received, 50 + 29 + 28);
}

#[tokio::test]
async fn what_is_lost_does_not_matter_for_long() {
    let (a, mut b) = two();
    // The first knock, the first answer, and every third datagram after that.
    let wire = Wire::before(b.addr(), |number, _| number % 3 == 0);
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut heard = 0;
    while heard < 10 {
        assert!(Instant::now() < deadline, "only {heard} messages arrived");
        a.tell_at(&b, wire.addr, b"again");
        if let Ok(Some(received)) = timeout(Duration::from_millis(100), b.inbox.recv()).await {
            assert_eq!(received.bytes, b"again");
            heard += 1;
        }
    }
}

#[tokio::test]
async fn garbage_and_repeated_datagrams_are_counted_and_no_more() {
    let (mut a, mut b) = two();
    let mut wire = Wire::before(b.addr(), |_, _| false);
    a.tell_at(&b, wire.addr, b"once");
    assert_eq!(b.receive().await.bytes, b"once");
    let odd = UdpSocket::bind("127.0.0.1:0").expect("loopback can be bound");
    let mut sent = 0;
    while let Ok(datagram) = wire.recorded.try_recv() {
        odd.send_to(&datagram, b.addr()).expect("loopback takes it");
        let mut bent = datagram;
        *bent.last_mut().expect("not empty") ^= 1;
        odd.send_to(&bent, b.addr()).expect("loopback takes it");
        sent += 1;
    }
    assert!(sent >= 3, "a knock, an answer, and a message");
    for first in 0..=u8::MAX {
        odd.send_to(&[first; 64], b.addr()).expect("loopback takes it");
    }
    b.tell(&a, b"back");
    assert_eq!(a.receive().await.bytes, b"back");
    a.tell(&b, b"still there");
    assert_eq!(b.receive().await.bytes, b"still there", "the repeated one was not heard");
    let deadline = Instant::now() + Duration::from_secs(20);
    while b.counters().datagrams_refused < 5 {
        assert!(Instant::now() < deadline, "{:?}", b.counters());
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_partner_that_starts_again_is_found_again() {
    let (a, mut b) = two();
    a.tell(&b, b"before");
    b.receive().await;
    let addr = b.addr();
    // Somebody may still hold a handle, as a task of the owner does.
    let held = b.transport.clone();
    b.transport.close().await;
    drop(b);
    let mut b = Agent::start_at(2, addr);
    assert_eq!(held.node(), b.node());
    b.admit(&a);
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        assert!(Instant::now() < deadline, "it was not found: {:?}", a.counters());
        a.tell(&b, b"after");
        if timeout(Duration::from_millis(200), b.inbox.recv()).await.is_ok() {
            return;
        }
    }
}

/// Lets nothing pass but QUIC, as some firewalls do, while that is so.
fn only_quic(so: &Arc<AtomicBool>) -> impl Fn(usize, &[u8]) -> bool + Send + 'static {
    let so = so.clone();
    move |_, datagram| so.load(Ordering::Relaxed) && Frame::begins_with(datagram[0])
}

/// One asks and the other answers; how long that took.
async fn round(a: &mut Agent, b: &mut Agent, addr: SocketAddr) -> Duration {
    let began = Instant::now();
    a.tell_at(b, addr, b"ping");
    assert_eq!(b.receive().await.bytes, b"ping");
    b.transport.send_datagram(a.node(), &[], b"ack".to_vec()).expect("not busy");
    assert_eq!(a.receive().await.bytes, b"ack");
    began.elapsed()
}

#[tokio::test]
async fn where_datagrams_do_not_get_through_messages_go_over_streams() {
    let (mut a, mut b) = two();
    let blocked = Arc::new(AtomicBool::new(true));
    let wire = Wire::before(b.addr(), only_quic(&blocked));
    round(&mut a, &mut b, wire.addr).await;
    // Now that this is known nothing waits for anything.
    let mut rounds = Vec::new();
    for _ in 0..20 {
        rounds.push(round(&mut a, &mut b, wire.addr).await);
    }
    rounds.sort_unstable();
    assert!(rounds[10] < Duration::from_millis(400), "a knock alone takes longer: {rounds:?}");
    assert_eq!((a.counters().datagrams_sent, b.counters().datagrams_sent), (0, 0));
    assert_eq!((a.counters().datagrams_detoured, b.counters().datagrams_detoured), (21, 21));
    assert_eq!((a.counters().connected, b.counters().connected), (1, 1), "one connection");
    blocked.store(false, Ordering::Relaxed);
    let deadline = Instant::now() + Duration::from_secs(30);
    while a.counters().datagrams_received == 0 || b.counters().datagrams_received == 0 {
        assert!(Instant::now() < deadline, "datagrams pass again: {:?}", a.counters());
        round(&mut a, &mut b, wire.addr).await;
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_session_that_gets_cut_is_no_end() {
    let (mut a, mut b) = two();
    let blocked = Arc::new(AtomicBool::new(false));
    let wire = Wire::before(b.addr(), only_quic(&blocked));
    round(&mut a, &mut b, wire.addr).await;
    assert_eq!(a.counters().datagrams_detoured, 0);
    blocked.store(true, Ordering::Relaxed);
    let deadline = Instant::now() + Duration::from_secs(30);
    while b.inbox.try_recv().is_err() {
        assert!(Instant::now() < deadline, "nothing gets through: {:?}", a.counters());
        a.tell_at(&b, wire.addr, b"ping");
        sleep(Duration::from_millis(100)).await;
    }
    assert!(a.counters().datagrams_detoured > 0);
}

#[tokio::test]
async fn who_is_away_is_not_dialled_for_each_message() {
    let (a, b) = two();
    let gone = UdpSocket::bind("127.0.0.1:0").expect("loopback can be bound");
    let addr = gone.local_addr().expect("bound");
    for _ in 0..30 {
        a.tell_at(&b, addr, b"ping");
        sleep(Duration::from_millis(100)).await;
    }
    let counters = a.counters();
    assert!((1..=3).contains(&counters.datagrams_detoured), "{counters:?}");
    assert!(counters.datagrams_dropped > 10, "{counters:?}");
}

#[tokio::test]
async fn who_is_evicted_is_heard_no_more() {
    let (mut a, mut b) = two();
    a.tell(&b, b"member");
    b.receive().await;
    b.access.send_modify(|list| list.refused.extend([a.node()]));
    let refused = b.counters().datagrams_refused;
    let deadline = Instant::now() + Duration::from_secs(20);
    while b.counters().datagrams_refused == refused {
        assert!(Instant::now() < deadline, "{:?}", b.counters());
        a.tell(&b, b"evicted");
        // What was under way before the eviction may still arrive.
        timeout(Duration::from_millis(100), b.inbox.recv()).await.ok();
    }
    while b.inbox.try_recv().is_ok() {}
    a.tell(&b, b"evicted");
    assert!(timeout(Duration::from_millis(300), b.inbox.recv()).await.is_err());
    assert!(a.inbox.try_recv().is_err());
}
