//! Partners that do not follow the protocol.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use selvedge_model::NodeId;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::hello::{self, Hello, PROTOCOL_VERSION};
use crate::tls::{self, Keys};
use crate::{AccessList, Config, ConnectError, DialError, Received, Transport};

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn agent(seed: u8) -> (Transport, mpsc::Receiver<Received>) {
    let access = watch::channel(AccessList { strangers: true, ..AccessList::default() }).1;
    let secret = Zeroizing::new([seed; 32]);
    Transport::bind(Config { listen: loopback(), secret, access, mark: None })
        .expect("loopback can be bound")
}

/// A bare endpoint with its keys.
fn odd_one(seed: u8) -> (quinn::Endpoint, Keys) {
    let keys = Keys::new(&Zeroizing::new([seed; 32])).expect("any seed is a key");
    let (divert, _) = mpsc::channel(1);
    let endpoint = tls::endpoint(&keys, (loopback(), None), divert, Arc::default());
    (endpoint.expect("loopback can be bound").0, keys)
}

async fn is_served(transport: &Transport, inbox: &mut mpsc::Receiver<Received>) {
    let (friend, _answers) = agent(77);
    friend.send(transport.node(), &[transport.local_addr()], b"hi".to_vec()).expect("queued");
    let received = timeout(Duration::from_secs(5), inbox.recv()).await.expect("in time");
    assert_eq!(received.expect("it runs").bytes, b"hi");
}

#[tokio::test]
async fn a_caller_of_another_version_is_told_both() {
    let (transport, mut inbox) = agent(1);
    let (endpoint, keys) = odd_one(2);
    let future = Hello { version: 9, instance: 0 };
    let dialled = hello::dial(endpoint, keys, Some(transport.node()), transport.local_addr()).await;
    let greeted = dialled.expect("TLS lets everybody in").greet(future).await;
    let error = greeted.expect_err("versions differ");
    assert_eq!(error, DialError::Version { ours: 9, theirs: PROTOCOL_VERSION });
    assert!(error.to_string().contains("version 1"), "{error}");
    assert!(error.to_string().contains("version 9"), "{error}");
    while transport.counters().version_mismatches == 0 {
        tokio::task::yield_now().await;
    }
    is_served(&transport, &mut inbox).await;
}

#[tokio::test]
async fn a_caller_of_the_next_version_is_welcome() {
    let (transport, mut inbox) = agent(1);
    let (endpoint, keys) = odd_one(2);
    let next = Hello { version: PROTOCOL_VERSION + 1, instance: 7 };
    let dialled = hello::dial(endpoint, keys, Some(transport.node()), transport.local_addr()).await;
    dialled.expect("TLS lets everybody in").greet(next).await.expect("versions are adjacent");
    assert_eq!(transport.counters().version_mismatches, 0);
    is_served(&transport, &mut inbox).await;
}

#[tokio::test]
async fn a_callee_of_another_version_is_named() {
    let (transport, _inbox) = agent(1);
    let (endpoint, keys) = odd_one(2);
    let addr = endpoint.local_addr().expect("bound");
    let access = watch::channel(AccessList { strangers: true, ..AccessList::default() }).1;
    tokio::spawn(async move {
        let incoming = endpoint.accept().await.expect("it calls");
        hello::accept(incoming, Hello { version: 9, instance: 0 }, access)
            .await
            .expect_err("not 9");
        endpoint.wait_idle().await;
    });
    let error = transport.connect(keys.node(), &[addr]).await.expect_err("versions differ");
    let ConnectError::Unreachable { attempts, .. } = error else { panic!("{error}") };
    let expected = DialError::Version { ours: PROTOCOL_VERSION, theirs: 9 };
    assert_eq!(attempts, [(addr, expected)]);
    assert_eq!(transport.counters().version_mismatches, 1);
}

#[tokio::test]
async fn a_caller_without_manners_is_cut_off() {
    let (transport, mut inbox) = agent(1);
    let (endpoint, keys) = odd_one(2);
    for junk in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 4000], b"selvedge", b""] {
        let (config, _) = keys.dial(Some(transport.node())).expect("keys are good");
        let connecting = endpoint.connect_with(config, transport.local_addr(), "selvedge");
        let connection = connecting.expect("an address").await.expect("TLS lets everybody in");
        let mut stream = connection.open_uni().await.expect("a stream");
        // It may be closed before everything was said.
        stream.write_all(junk).await.ok();
        stream.finish().ok();
        let closed = timeout(Duration::from_secs(8), connection.closed()).await.expect("cut off");
        let quinn::ConnectionError::ApplicationClosed(close) = &closed else { panic!("{closed}") };
        assert_eq!(close.error_code, hello::code::PROTOCOL);
    }
    is_served(&transport, &mut inbox).await;
}

#[tokio::test]
async fn a_caller_without_identity_is_refused() {
    let (transport, mut inbox) = agent(1);
    let (endpoint, _) = odd_one(2);
    let (_, keys) = odd_one(3);
    let (config, found) = keys.dial(Some(NodeId([5; 32]))).expect("keys are good");
    let connecting = endpoint.connect_with(config, transport.local_addr(), "selvedge");
    connecting.expect("an address").await.expect_err("the wrong one was expected");
    assert_eq!(found.get(), Some(&transport.node()));
    is_served(&transport, &mut inbox).await;
}
