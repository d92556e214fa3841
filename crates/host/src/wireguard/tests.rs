mod relay;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::runtime::Runtime;

use super::*;
use crate::netlink::NewLink;
use crate::netns::Namespace;
use crate::test_support::namespace;

const PORT: u16 = 51820;
const MTU: u16 = 1420;
/// IPv6 and UDP headers.
const HEADERS: usize = 48;

#[test]
fn public_keys_are_those_of_rfc_7748() {
    let hex = |text: &str| {
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).expect("hexadecimal");
        <[u8; 32]>::try_from(bytes).expect("32 bytes")
    };
    // Section 6.1, Alice.
    let key = hex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a");
    let public = hex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a");
    let key = PrivateKey::from_bytes(key);
    assert_eq!(key.public(), WgKey(public));
    assert_eq!(format!("{key:?}"), format!("PrivateKey(of {})", WgKey(public)));
}

#[test]
fn two_devices_talk_at_full_mtu_and_survive_a_new_endpoint() {
    let Some(pair) = Pair::new("two_devices_talk") else { return };
    let Pair { runtime, a, b, .. } = &pair;
    let (mut left, mut right) = (a.device(runtime), b.device(runtime));
    runtime.block_on(async {
        assert_eq!(left.port(), PORT);
        let changes = left.apply(&b.as_peer("fd00:99::2")).await.expect("applied");
        assert_eq!(changes, Changes { added: 1, ..Changes::default() });
        right.apply(&a.as_peer("fd00:99::1")).await.expect("applied");
        handshake(&right).await;
    });
    let (ours, echo) = (a.socket(), b.echo());
    let full = usize::from(MTU) - HEADERS;
    for number in 0..100 {
        assert!(round_trip(&ours, echo, number, full).expect("sent"), "packet {number} is lost");
    }
    let error = round_trip(&ours, echo, 0, full + 1).expect_err("one byte more than fits");
    assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));

    let before = runtime.block_on(left.peers());
    assert!(before[0].rx > 140_000 && before[0].tx > 140_000, "{before:?}");
    assert_eq!(before[0].endpoint, Some(endpoint("fd00:99::2")));

    // The other side moves to a new address and does not say so.
    let moved = Instant::now();
    b.replace_underlay(runtime, "fd00:99::2/64", "fd00:99::3/64");
    assert!(!round_trip(&ours, echo, 100, full).expect("sent"), "nobody is at the old address");
    let changes = runtime.block_on(left.apply(&b.as_peer("fd00:99::3"))).expect("applied");
    assert_eq!(changes, Changes { updated: 1, ..Changes::default() });
    for number in 101..200 {
        assert!(round_trip(&ours, echo, number, full).expect("sent"), "packet {number} is lost");
    }
    let after = runtime.block_on(left.peers());
    assert_eq!(after[0].endpoint, Some(endpoint("fd00:99::3")));
    let age = after[0].last_handshake.expect("there was one");
    assert!(age > moved.elapsed(), "the session was kept, not made anew: {age:?}");

    let changes = runtime.block_on(left.apply(&BTreeMap::new())).expect("applied");
    assert_eq!(changes, Changes { removed: 1, ..Changes::default() });
    assert_eq!(runtime.block_on(left.peers()), []);
    assert!(!round_trip(&ours, echo, 200, full).expect("sent"), "the peer is gone");
}

#[test]
fn a_restarted_device_is_heard_at_once() {
    let Some(pair) = Pair::new("a_restarted_device") else { return };
    let Pair { runtime, a, b, .. } = &pair;
    let (mut left, mut right) = (a.device(runtime), b.device(runtime));
    let echo = b.echo();
    runtime.block_on(async {
        right.apply(&a.as_peer("fd00:99::1")).await.expect("applied");
        left.apply(&b.as_peer("fd00:99::2")).await.expect("applied");
    });
    assert!(round_trip(&patient(a.socket()), echo, 0, 100).expect("sent"));
    runtime.block_on(left.stop()).expect("its interface is gone");
    assert_eq!(runtime.block_on(a.netlink.link("wg0")).expect("readable"), None);

    let mut left = a.device(runtime);
    runtime.block_on(left.apply(&b.as_peer("fd00:99::2"))).expect("applied");
    // It has nothing to send, and the other side has a session with the former device: it is the
    // greeting alone that makes a new one.
    runtime.block_on(handshake(&left));
    let (ours, theirs) = (a.echo(), patient(b.socket()));
    assert!(round_trip(&theirs, ours, 1, 100).expect("sent"), "the old session is replaced");
}

/// WireGuard itself repeats a handshake after 5 s. The first greeting is lost here, because the
/// other side does not know the device yet.
#[test]
fn who_hears_of_the_other_later_is_greeted_again() {
    let Some(pair) = Pair::new("greeted_again") else { return };
    let Pair { runtime, a, b, .. } = &pair;
    let (mut left, mut right) = (a.device(runtime), b.device(runtime));
    let took = runtime.block_on(async {
        left.apply(&b.as_peer("fd00:99::2")).await.expect("applied");
        let since = Instant::now();
        tokio::time::sleep(Duration::from_millis(400)).await;
        // It does not know where the first is, and so cannot greet it.
        let mut unknown = a.as_peer("fd00:99::1");
        unknown.values_mut().for_each(|spec| spec.endpoint = None);
        right.apply(&unknown).await.expect("applied");
        while let Some(due) = left.greeting_due() {
            tokio::time::sleep_until(due.into()).await;
            left.greet_again().await.expect("greeted");
        }
        handshake(&left).await;
        let age = left.peers().await[0].last_handshake.expect("there was one");
        since.elapsed() - age
    });
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert!(round_trip(&a.socket(), b.echo(), 1, 100).expect("sent"));
}

/// It could not be greeted, and a session that it begins at this moment would be lost on it.
#[test]
fn a_peer_without_an_endpoint_is_not_put_in_anew() {
    let Some(pair) = Pair::new("unknown_place") else { return };
    let Pair { runtime, a, b, .. } = &pair;
    let mut right = b.device(runtime);
    runtime.block_on(async {
        let mut unknown = a.as_peer("fd00:99::1");
        unknown.values_mut().for_each(|spec| spec.endpoint = None);
        right.apply(&unknown).await.expect("applied");
        while let Some(due) = right.greeting_due() {
            tokio::time::sleep_until(due.into()).await;
            assert_eq!(right.greet_again().await.expect("asked"), 0);
        }
    });
}

/// They come all at once when an agent starts, each with a greeting.
#[test]
fn thousands_of_peers_are_applied_at_once() {
    let Some(pair) = Pair::new("thousands_of_peers") else { return };
    let Pair { runtime, a, .. } = &pair;
    let mut device = a.device(runtime);
    let peer = |number: u16| {
        let mut key = [7; 32];
        key[..2].copy_from_slice(&number.to_be_bytes());
        let spec = PeerSpec {
            endpoint: Some(endpoint("fd00:99::2")),
            allowed: [prefix(&format!("fd77::{number:x}/128"))].into(),
            keepalive: Some(25),
        };
        (WgKey(key), spec)
    };
    let mut peers: BTreeMap<_, _> = (1..=3000).map(peer).collect();
    let since = Instant::now();
    let changes = runtime.block_on(device.apply(&peers)).expect("applied");
    assert_eq!(changes, Changes { added: 3000, ..Changes::default() });
    peers.values_mut().take(10).for_each(|spec| spec.keepalive = None);
    let changes = runtime.block_on(device.apply(&peers)).expect("applied");
    assert_eq!(changes, Changes { updated: 10, ..Changes::default() });
    let took = since.elapsed();
    assert!(took < Duration::from_secs(120), "{took:?}");
    assert_eq!(runtime.block_on(device.peers()).len(), 3000);
}

/// Where the kernel has WireGuard, it does the work; where not, that is said with what to do.
#[test]
fn the_kernel_does_the_work_or_says_that_it_cannot() {
    let Some(pair) = Pair::new("by_the_kernel") else { return };
    let Pair { runtime, a, b, .. } = &pair;
    let config = Config { backend: Some(Backend::Kernel), ..a.config() };
    let made = a.namespace.run(|| runtime.block_on(Device::create(&a.netlink, &config)));
    let peers = b.as_peer("fd00:99::2");
    match made.expect("entered") {
        Err(error) => {
            assert!(matches!(error, Error::NoKernel(_)), "{error}");
            let text = error.to_string();
            assert!(text.contains("modprobe wireguard") && text.contains("\"auto\""), "{text}");
            assert_eq!(runtime.block_on(a.netlink.link("wg0")).expect("readable"), None);
        }
        Ok(mut device) => {
            runtime.block_on(device.apply(&peers)).expect("applied");
            drop(device);
            // It goes on without this process, and is taken up with its peers.
            let found = a.device_with(runtime, &config);
            assert_eq!((found.applied, found.port), (peers.clone(), PORT));
        }
    }
    // Unless it is said who is to do it, that is whoever can; what the kernel had goes first.
    let mut process = a.device(runtime);
    assert_eq!(process.backend(), Backend::Userspace);
    runtime.block_on(process.apply(&peers)).expect("applied");
    runtime.block_on(process.stop()).expect("gone");
    let any = a.device_with(runtime, &Config { backend: None, ..a.config() });
    runtime.block_on(any.stop()).expect("gone");
}

#[test]
fn an_interface_of_somebody_else_is_left_alone() {
    let Some(pair) = Pair::new("somebody_elses") else { return };
    let Pair { runtime, a, .. } = &pair;
    runtime.block_on(a.netlink.add_link("wg0", &NewLink::Bridge)).expect("made");
    for backend in [None, Some(Backend::Kernel), Some(Backend::Userspace)] {
        let config = Config { backend, ..a.config() };
        let made = a.namespace.run(|| runtime.block_on(Device::create(&a.netlink, &config)));
        let error = made.expect("entered").expect_err("it is a bridge");
        assert!(matches!(error, Error::Foreign(_)), "{error}");
    }
    assert!(runtime.block_on(a.netlink.link("wg0")).expect("readable").is_some());
}

#[test]
fn a_removed_interface_is_noticed() {
    let Some(pair) = Pair::new("a_removed_interface") else { return };
    let Pair { runtime, a, .. } = &pair;
    let mut device = a.device(runtime);
    runtime.block_on(async {
        assert!(!device.has_failed().await.expect("readable"));
        let index = a.netlink.link("wg0").await.expect("readable").expect("there").index;
        a.netlink.del_link(index).await.expect("removed");
        assert!(device.has_failed().await.expect("readable"));
        device.stop().await.expect("nothing is left");
    });
}

#[test]
fn what_others_change_is_put_right() {
    let Some(pair) = Pair::new("what_others_change") else { return };
    let device = pair.a.device(&pair.runtime);
    pair.runtime.block_on(async {
        let (netlink, index) = (&device.netlink, device.index);
        let own = device.addresses[0];
        let foreign = prefix("fd00:5::5/64");
        netlink.add_address(index, foreign, ADDRESS).await.expect("added");
        assert!(!device.repair().await.expect("asked"), "what is not ours is no harm");
        netlink.del_address(index, own).await.expect("removed");
        netlink.set_up(index, false, Some(1300)).await.expect("set");
        assert!(device.repair().await.expect("put right"));
        let link = netlink.link(device.name()).await.expect("asked").expect("it exists");
        assert!(link.up && link.mtu == u32::from(MTU), "{link:?}");
        let found = netlink.addresses().await.expect("listed");
        let has = |prefix| found.iter().any(|a| a.index == index && a.prefix == prefix);
        assert!(has(own));
        assert!(!device.repair().await.expect("asked"), "nothing is left to do");
    });
}

#[test]
fn the_control_socket_answers_and_goes() {
    let Some(pair) = Pair::new("the_control_socket") else { return };
    let Pair { runtime, a, b, .. } = &pair;
    let folder = tempfile::tempdir().expect("a folder");
    let config = Config { control: Some(folder.path().to_owned()), ..a.config() };
    let mut device = a.device_with(runtime, &config);
    runtime.block_on(device.apply(&b.as_peer("fd00:99::2"))).expect("applied");

    let path = folder.path().join("wg0.sock");
    let mut stream = UnixStream::connect(&path).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
    stream.write_all(b"get=1\n\n").expect("written");
    let mut text = String::new();
    while !text.ends_with("\n\n") {
        let mut bytes = [0; 4096];
        let read = stream.read(&mut bytes).expect("an answer");
        assert_ne!(read, 0, "{text}");
        text.push_str(&String::from_utf8_lossy(&bytes[..read]));
    }
    let peer = data_encoding::HEXLOWER.encode(b.key.public().as_bytes());
    assert!(text.contains(&format!("public_key={peer}\n")), "{text}");
    assert!(text.contains("listen_port=51820\n") && text.contains("errno=0\n"), "{text}");
    runtime.block_on(device.stop()).expect("its interface is gone");
    assert!(!path.exists());
}

#[test]
fn names_that_do_not_fit_are_refused() {
    let Some(pair) = Pair::new("names_that_do_not_fit") else { return };
    let config = Config { name: "a-name-that-is-too-long".to_owned(), ..pair.a.config() };
    let made = pair.runtime.block_on(Device::create(&pair.a.netlink, &config));
    let text = made.expect_err("the name is too long").to_string();
    assert!(text.contains("a-name-that-is-too-long"), "{text}");
}

/// Two hosts joined by a cable.
struct Pair {
    a: Host,
    b: Host,
    runtime: Runtime,
    _namespaces: [crate::netns::Ephemeral; 2],
}

struct Host {
    namespace: Namespace,
    netlink: Netlink,
    key: PrivateKey,
    overlay: &'static str,
}

impl Pair {
    fn new(test: &str) -> Option<Self> {
        let namespaces = [namespace(test)?, namespace(test)?];
        let runtime = Runtime::new().expect("a runtime");
        let entered = runtime.enter();
        let [a, b] = [(&namespaces[0], 1, "fd77::1"), (&namespaces[1], 2, "fd77::2")].map(
            |(namespace, number, overlay)| Host {
                namespace: Namespace::clone(namespace),
                netlink: Netlink::in_namespace(namespace).expect("a socket"),
                key: PrivateKey::from_bytes([number; 32]),
                overlay,
            },
        );
        drop(entered);
        runtime.block_on(async {
            let cable = NewLink::Veth { peer: "eth0", namespace: Some(&b.namespace) };
            a.netlink.add_link("eth0", &cable).await.expect("a cable");
            a.plug_in("fd00:99::1/64").await;
            b.plug_in("fd00:99::2/64").await;
        });
        wait_for_carrier(&a, &b);
        Some(Self { a, b, runtime, _namespaces: namespaces })
    }
}

/// The kernel drops what is sent in the first moments of a cable.
fn wait_for_carrier(a: &Host, b: &Host) {
    let echo = b.echo_at("fd00:99::2");
    let socket = a.socket_at("fd00:99::1");
    socket.set_read_timeout(Some(Duration::from_millis(20))).expect("set");
    let arrived = (0..250).any(|number| round_trip(&socket, echo, number, 100).expect("sent"));
    assert!(arrived, "the cable does not work");
}

impl Host {
    async fn plug_in(&self, underlay: &str) {
        let options = AddressOptions { no_dad: true, no_prefix_route: false };
        let index = self.underlay().await;
        self.netlink.add_address(index, prefix(underlay), options).await.expect("added");
        self.netlink.set_up(index, true, None).await.expect("up");
    }

    async fn underlay(&self) -> u32 {
        self.netlink.link("eth0").await.expect("readable").expect("there").index
    }

    fn replace_underlay(&self, runtime: &Runtime, old: &str, new: &str) {
        runtime.block_on(async {
            let index = self.underlay().await;
            self.netlink.del_address(index, prefix(old)).await.expect("deleted");
            self.plug_in(new).await;
        });
    }

    fn config(&self) -> Config {
        Config {
            name: "wg0".to_owned(),
            private_key: self.key.clone(),
            listen_port: PORT,
            mtu: MTU,
            addresses: vec![prefix(&format!("{}/64", self.overlay))],
            backend: Some(Backend::Userspace),
            control: None,
        }
    }

    fn device(&self, runtime: &Runtime) -> Device {
        self.device_with(runtime, &self.config())
    }

    /// The interface and the UDP socket belong to the namespace of the thread that makes them,
    /// the tasks run anywhere.
    fn device_with(&self, runtime: &Runtime, config: &Config) -> Device {
        let made = self.namespace.run(|| runtime.block_on(Device::create(&self.netlink, config)));
        made.expect("entered").expect("a device")
    }

    fn as_peer(&self, underlay: &str) -> BTreeMap<WgKey, PeerSpec> {
        let spec = PeerSpec {
            endpoint: Some(endpoint(underlay)),
            allowed: BTreeSet::from([prefix(&format!("{}/128", self.overlay))]),
            keepalive: None,
        };
        BTreeMap::from([(self.key.public(), spec)])
    }

    fn socket(&self) -> UdpSocket {
        self.socket_at(self.overlay)
    }

    fn socket_at(&self, address: &str) -> UdpSocket {
        let address: IpAddr = address.parse().expect("an address");
        let bound = self.namespace.run(|| UdpSocket::bind((address, 0))).expect("entered");
        let socket = bound.expect("bound");
        if address.is_ipv6() {
            setsockopt(&socket, sockopt::Ipv6DontFrag, &true).expect("set");
        }
        socket.set_read_timeout(Some(Duration::from_millis(1000))).expect("set");
        socket
    }

    fn echo(&self) -> SocketAddr {
        self.echo_at(self.overlay)
    }

    /// Returns to the sender what it gets, until it is silent for ten seconds.
    fn echo_at(&self, address: &str) -> SocketAddr {
        let socket = self.socket_at(address);
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
        let address = socket.local_addr().expect("bound");
        std::thread::spawn(move || {
            let mut bytes = [0; 2048];
            while let Ok((length, from)) = socket.recv_from(&mut bytes) {
                // What cannot be returned is lost, which the sender notices.
                let _ = socket.send_to(&bytes[..length], from);
            }
        });
        address
    }
}

/// A socket that waits for an answer for as long as a busy machine may take.
fn patient(socket: UdpSocket) -> UdpSocket {
    socket.set_read_timeout(Some(Duration::from_secs(60))).expect("set");
    socket
}

/// Waits until a device has a session with its only peer; how long that took.
async fn handshake(device: &Device) -> Duration {
    let since = Instant::now();
    while device.peers().await[0].last_handshake.is_none() {
        assert!(since.elapsed() < Duration::from_secs(60), "no handshake");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    since.elapsed()
}

/// Sends a packet of `length` bytes and waits for its echo, passing over late echoes of others.
/// `Ok(false)` if none comes.
fn round_trip(socket: &UdpSocket, to: SocketAddr, number: u32, length: usize) -> io::Result<bool> {
    let mut packet = vec![0; length];
    packet[..4].copy_from_slice(&number.to_be_bytes());
    socket.send_to(&packet, to)?;
    let mut bytes = [0; 2048];
    loop {
        match socket.recv_from(&mut bytes) {
            Ok((received, _)) if bytes[..received] == packet[..] => return Ok(true),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
    }
}

fn prefix(text: &str) -> Prefix {
    text.parse().expect("a prefix")
}

fn endpoint(address: &str) -> SocketAddr {
    SocketAddr::new(address.parse().expect("an address"), PORT)
}

/// The agent drives a device from a task: all its futures must be `Send`. Never called.
#[allow(dead_code, reason = "that it compiles is the test")]
fn futures_are_send(netlink: &Netlink, config: &Config, mut device: Device) {
    const fn is_send<T: Send>(_: &T) {}
    is_send(&Device::create(netlink, config));
    is_send(&device.apply(&BTreeMap::new()));
    is_send(&device.peers());
    is_send(&device.greet_again());
    is_send(&device.stop());
}
