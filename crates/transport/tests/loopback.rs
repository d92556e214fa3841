//! Transports on the loopback interface.

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use selvedge_model::NodeId;
use selvedge_transport::{
    AccessList, ConnectError, DialError, MAX_MESSAGE, MAX_STRANGER_MESSAGE, Received, SendError,
};
use tokio::net::UdpSocket;
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, sleep, timeout};

use common::Agent;

impl Agent {
    fn start(seed: u8) -> Self {
        Self::start_at(seed, "127.0.0.1:0".parse().expect("an address"))
    }

    fn start_at(seed: u8, listen: SocketAddr) -> Self {
        let list = AccessList { strangers: true, ..AccessList::default() };
        Self::bind(seed, listen, list)
    }

    fn admit(&self, others: &[&Self]) {
        self.access.send_modify(|list| list.members.extend(others.iter().map(|o| o.node())));
    }

    fn send(&self, to: &Self, bytes: &[u8]) {
        self.transport.send(to.node(), &[to.addr()], bytes.to_vec()).expect("not busy");
    }

    async fn connect(&self, to: &Self) -> Result<SocketAddr, ConnectError> {
        self.transport.connect(to.node(), &[to.addr()]).await
    }

    async fn receive(&mut self) -> Received {
        let received = timeout(Duration::from_secs(10), self.inbox.recv()).await;
        received.expect("a message in time").expect("the transport runs")
    }

    async fn hears_nothing(&mut self) {
        let received = timeout(Duration::from_millis(300), self.inbox.recv()).await;
        assert!(received.is_err(), "unexpected: {received:?}");
    }
}

/// Waits until `condition` holds.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come about");
        sleep(Duration::from_millis(10)).await;
    }
}

fn why(result: Result<SocketAddr, ConnectError>) -> DialError {
    match result {
        Err(ConnectError::Unreachable { attempts, .. }) => {
            attempts.into_iter().next().expect("one address was tried").1
        }
        other => panic!("expected a failed attempt, found {other:?}"),
    }
}

#[tokio::test]
async fn messages_go_both_ways_over_one_connection() {
    let (mut a, mut b) = (Agent::start(1), Agent::start(2));
    a.admit(&[&b]);
    b.admit(&[&a]);
    a.send(&b, b"to b");
    let received = b.receive().await;
    assert_eq!((received.from, &received.bytes[..]), (a.node(), &b"to b"[..]));
    assert_eq!(received.remote, a.addr());
    b.transport.send(a.node(), &[], b"back".to_vec()).expect("not busy");
    let received = a.receive().await;
    assert_eq!((received.from, &received.bytes[..]), (b.node(), &b"back"[..]));
    assert_eq!(a.transport.counters().connected, 1);
    assert_eq!(b.transport.counters().connected, 1);
}

#[tokio::test]
async fn messages_stay_in_order_and_may_be_great() {
    let (a, mut b) = (Agent::start(1), Agent::start(2));
    b.admit(&[&a]);
    for byte in 0..100 {
        a.send(&b, &[byte]);
    }
    for byte in 0..100 {
        assert_eq!(b.receive().await.bytes, [byte]);
    }
    let great = vec![7; MAX_MESSAGE];
    a.send(&b, &great);
    assert!(b.receive().await.bytes == great);
    let error = a.transport.send(b.node(), &[b.addr()], vec![7; MAX_MESSAGE + 1]);
    assert_eq!(error, Err(SendError::TooLong { len: MAX_MESSAGE + 1 }));
}

#[tokio::test]
async fn both_families_reach_a_socket_for_all() {
    let any = "[::]:0".parse().expect("an address");
    let (a, mut b) = (Agent::start_at(1, any), Agent::start_at(2, any));
    b.admit(&[&a]);
    a.send(&b, b"mapped");
    let received = b.receive().await;
    assert!(received.remote.is_ipv4(), "{} is in its own form", received.remote);
}

#[tokio::test]
async fn another_identity_is_refused_and_named() {
    let (a, b, mut c) = (Agent::start(1), Agent::start(2), Agent::start(3));
    c.admit(&[&a]);
    let result = a.transport.connect(b.node(), &[c.addr()]).await;
    assert_eq!(why(result), DialError::WrongIdentity { found: c.node() });
    a.transport.send(b.node(), &[c.addr()], b"for b".to_vec()).expect("not busy");
    c.hears_nothing().await;
}

#[tokio::test]
async fn whoever_lives_at_an_address_is_found() {
    let (mut a, mut b) = (Agent::start(1), Agent::start(2));
    a.transport.find(&[b.addr()], b"who are you?".to_vec()).expect("not busy");
    let received = b.receive().await;
    assert_eq!((received.from, &received.bytes[..]), (a.node(), &b"who are you?"[..]));
    b.transport.send(a.node(), &[], b"b".to_vec()).expect("not busy");
    assert_eq!(a.receive().await.from, b.node());
    // Itself it does not find, nor whoever is evicted.
    a.transport.find(&[a.addr()], b"me?".to_vec()).expect("not busy");
    until("giving up", || a.transport.counters().unreachable == 1).await;
    a.hears_nothing().await;
    a.access.send_modify(|list| list.refused.extend([b.node()]));
    until("the eviction", || a.transport.counters().refused == 1).await;
    a.transport.find(&[b.addr()], b"again?".to_vec()).expect("not busy");
    until("the refusal", || a.transport.counters().refused == 2).await;
}

#[tokio::test]
async fn a_dead_address_does_not_hide_a_live_one() {
    let (a, b) = (Agent::start(1), Agent::start(2));
    b.admit(&[&a]);
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").expect("loopback can be bound");
    let dead = silent.local_addr().expect("bound");
    let begun = Instant::now();
    let remote = a.transport.connect(b.node(), &[dead, b.addr()]).await.expect("b lives");
    assert_eq!(remote, b.addr());
    assert!(begun.elapsed() < Duration::from_secs(3), "the dead one was not waited for");
    let error = a.transport.connect(NodeId([9; 32]), &[dead]).await.expect_err("nobody there");
    assert!(error.to_string().contains(&format!("{dead}: no answer within")), "{error}");
}

/// A socket that passes datagrams on to `server` and back, each after `delay`.
async fn slow_way(server: SocketAddr, delay: Duration) -> SocketAddr {
    let bind = || UdpSocket::bind("127.0.0.1:0");
    let near = Arc::new(bind().await.expect("loopback can be bound"));
    let far = Arc::new(bind().await.expect("loopback can be bound"));
    far.connect(server).await.expect("an address");
    let addr = near.local_addr().expect("bound");
    tokio::spawn(async move {
        let (mut forth, mut back) = (vec![0; 65536], vec![0; 65536]);
        let mut client = addr;
        loop {
            tokio::select! {
                Ok((len, from)) = near.recv_from(&mut forth) => {
                    client = from;
                    let (far, datagram) = (far.clone(), forth[..len].to_vec());
                    tokio::spawn(async move { sleep(delay).await; far.send(&datagram).await });
                }
                Ok(len) = far.recv(&mut back) => {
                    let (near, datagram) = (near.clone(), back[..len].to_vec());
                    tokio::spawn(async move { sleep(delay).await; near.send_to(&datagram, client).await });
                }
            }
        }
    });
    addr
}

#[tokio::test]
async fn two_addresses_far_away_make_one_connection() {
    let (mut a, mut b) = (Agent::start(1), Agent::start(2));
    a.admit(&[&b]);
    b.admit(&[&a]);
    // The second dial begins before the first one's hello is answered.
    let delay = Duration::from_millis(200);
    let ways = [slow_way(b.addr(), delay).await, slow_way(b.addr(), delay).await];
    a.transport.connect(b.node(), &ways).await.expect("b lives");
    a.transport.send(b.node(), &[], b"there".to_vec()).expect("not busy");
    assert_eq!(b.receive().await.bytes, b"there");
    b.transport.send(a.node(), &[], b"back".to_vec()).expect("not busy");
    assert_eq!(a.receive().await.bytes, b"back");
    assert_eq!(b.transport.counters().connected, 1, "the other was closed before its hello");
}

#[tokio::test]
async fn a_stranger_is_answered_but_limited_in_size() {
    let (mut stranger, mut b) = (Agent::start(1), Agent::start(2));
    stranger.send(&b, &vec![1; MAX_STRANGER_MESSAGE]);
    assert_eq!(b.receive().await.bytes.len(), MAX_STRANGER_MESSAGE);
    let long = vec![2; 200_000];
    b.transport.send(stranger.node(), &[], long.clone()).expect("not busy");
    assert!(stranger.receive().await.bytes == long, "whom we dialled may answer at length");
    stranger.send(&b, &vec![1; MAX_STRANGER_MESSAGE + 1]);
    until("the limit", || b.transport.counters().oversized == 1).await;
    b.hears_nothing().await;
}

#[tokio::test]
async fn a_stranger_is_limited_in_number() {
    let (stranger, mut b) = (Agent::start(1), Agent::start(2));
    for byte in 0..20 {
        stranger.send(&b, &[byte]);
    }
    for byte in 0..8 {
        assert_eq!(b.receive().await.bytes, [byte]);
    }
    b.hears_nothing().await;
    assert_eq!(b.transport.counters().strangers_limited, 1);
}

#[tokio::test]
async fn strangers_are_limited_in_connections() {
    let b = Agent::start(200);
    let strangers: Vec<_> = (1..=70).map(Agent::start).collect();
    for stranger in &strangers {
        // Whether a limited one hears the goodbye before or after the hello is open.
        stranger.connect(&b).await.ok();
    }
    until("the limit", || b.transport.counters().strangers_limited == 6).await;
    assert_eq!(b.transport.counters().connected, 64);
}

#[tokio::test]
async fn a_stranger_becomes_a_member_on_its_connection() {
    let (a, mut b) = (Agent::start(1), Agent::start(2));
    a.send(&b, b"join");
    b.receive().await;
    b.admit(&[&a]);
    for _ in 0..20 {
        a.send(&b, &vec![3; MAX_STRANGER_MESSAGE * 4]);
        assert_eq!(b.receive().await.bytes.len(), MAX_STRANGER_MESSAGE * 4);
    }
    assert_eq!(b.transport.counters().connected, 1);
}

#[tokio::test]
async fn who_wants_no_strangers_gets_none() {
    let (a, mut b) = (Agent::start(1), Agent::start(2));
    b.access.send_modify(|list| list.strangers = false);
    let error = why(a.connect(&b).await);
    assert!(matches!(&error, DialError::Refused(text) if text.contains("not welcome")), "{error}");
    a.send(&b, b"hello?");
    b.hears_nothing().await;
}

#[tokio::test]
async fn an_evicted_node_is_cut_off_at_once() {
    let (a, mut b) = (Agent::start(1), Agent::start(2));
    b.admit(&[&a]);
    a.send(&b, b"one");
    b.receive().await;
    b.access.send_modify(|list| {
        list.refused.insert(a.node());
    });
    until("the cut", || b.transport.counters().refused >= 1).await;
    // Messages on the dead connection are lost; the next connection is refused.
    let refused = || async {
        sleep(Duration::from_millis(100)).await;
        why(a.connect(&b).await)
    };
    assert!(matches!(refused().await, DialError::Refused(_)));
    a.send(&b, b"two");
    b.hears_nothing().await;
    b.transport.send(a.node(), &[a.addr()], b"we do not call it either".to_vec()).expect("queued");
    until("the second cut", || b.transport.counters().refused >= 2).await;
}

#[tokio::test]
async fn simultaneous_dials_end_in_one_connection() {
    let (mut a, mut b) = (Agent::start(1), Agent::start(2));
    a.admit(&[&b]);
    b.admit(&[&a]);
    a.send(&b, b"from a");
    b.send(&a, b"from b");
    assert_eq!(b.receive().await.bytes, b"from a");
    assert_eq!(a.receive().await.bytes, b"from b");
    // Longer than a superfluous connection is kept.
    sleep(Duration::from_millis(3500)).await;
    let connected = |agent: &Agent| agent.transport.counters().connected;
    let before = (connected(&a), connected(&b));
    for _ in 0..10 {
        a.send(&b, b"again");
        b.send(&a, b"again");
        b.receive().await;
        a.receive().await;
    }
    assert_eq!((connected(&a), connected(&b)), before, "nobody dialled again");
    assert_eq!(a.transport.counters().unreachable + b.transport.counters().unreachable, 0);
}

/// An agent that can die as a killed process does: its partners hear no goodbye.
struct Mortal {
    runtime: Runtime,
    agent: Agent,
}

impl Mortal {
    fn start(seed: u8, listen: SocketAddr) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let agent = runtime.block_on(async { Agent::start_at(seed, listen) });
        Self { runtime, agent }
    }

    /// Dies, and comes back with the same identity at the same address.
    fn restart(self, seed: u8) -> Self {
        let addr = self.agent.addr();
        // Waits until nothing of it runs any more.
        self.runtime.shutdown_timeout(Duration::from_secs(5));
        Self::start(seed, addr)
    }
}

fn mortals_with_one_connection() -> (Runtime, Agent, Mortal) {
    let runtime = Runtime::new().expect("a runtime");
    let a = runtime.block_on(async { Agent::start(1) });
    let mut b = Mortal::start(2, "127.0.0.1:0".parse().expect("an address"));
    a.admit(&[&b.agent]);
    b.agent.admit(&[&a]);
    a.send(&b.agent, b"one");
    runtime.block_on(b.agent.receive());
    (runtime, a, b)
}

#[test]
fn a_partner_that_starts_again_is_answered_at_once() {
    let (runtime, mut a, b) = mortals_with_one_connection();
    let mut b = b.restart(2);
    b.agent.admit(&[&a]);
    runtime.block_on(async {
        b.agent.send(&a, b"I am back");
        assert_eq!(a.receive().await.bytes, b"I am back");
        a.send(&b.agent, b"welcome");
        assert_eq!(b.agent.receive().await.bytes, b"welcome");
    });
}

#[test]
fn a_reset_tells_that_a_partner_started_again() {
    let (runtime, a, b) = mortals_with_one_connection();
    let mut b = b.restart(2);
    b.agent.admit(&[&a]);
    let begun = Instant::now();
    // The first message meets the reset, a later one is dialled anew.
    runtime.block_on(async {
        while b.agent.inbox.is_empty() {
            a.send(&b.agent, b"two");
            sleep(Duration::from_millis(100)).await;
        }
        b.agent.receive().await;
    });
    assert!(begun.elapsed() < Duration::from_secs(3), "sooner than the idle timeout tells");
}

#[tokio::test]
async fn garbage_is_survived() {
    let (a, mut b) = (Agent::start(1), Agent::start(2));
    b.admit(&[&a]);
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("loopback can be bound");
    let mut state = 1_u64;
    for len in 0..1400_usize {
        let mut junk = vec![0; len];
        for byte in &mut junk {
            // The constants of Knuth's MMIX.
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            *byte = (state >> 33) as u8;
        }
        // Half of it looks like the beginning of a QUIC version 1 connection.
        if len > 16 && len % 2 == 0 {
            junk[..6].copy_from_slice(&[0xc3, 0, 0, 0, 1, 8]);
        }
        socket.send_to(&junk, b.addr()).expect("loopback takes it");
    }
    a.send(&b, b"still there?");
    assert_eq!(b.receive().await.bytes, b"still there?");
}

#[tokio::test]
async fn a_closed_transport_says_goodbye() {
    let (a, mut b) = (Agent::start(1), Agent::start(2));
    b.admit(&[&a]);
    a.send(&b, b"one");
    b.receive().await;
    b.transport.close().await;
    assert_eq!(b.transport.send(a.node(), &[a.addr()], vec![]), Err(SendError::Closed));
    let begun = Instant::now();
    // The next dial meets nobody instead of a connection that seems to live.
    sleep(Duration::from_millis(100)).await;
    assert!(a.connect(&b).await.is_err());
    assert!(begun.elapsed() < Duration::from_secs(8));
}
