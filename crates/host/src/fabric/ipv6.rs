//! What IPv6 stations see of two gateways, by real packets: each gateway is a namespace of its
//! own, with a driver on a thread of its own; the stations are on a bridge between the two.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::process::Command;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use selvedge_model::{Prefix, Vni};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::testing::{self, Advertised, Wire, advertised, router};
use super::{Driver, Flood, FloodConfig};
use crate::inventory::{Declared, Inventory, Names};
use crate::netlink::{Mac, Netlink, NewLink};
use crate::netns::Namespace;
use crate::packet::{DEFAULT_LINK_LOCAL, RaConfig};
use crate::sysctl::{self, Family};
use crate::test_support;

const GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 1);
const BOTH: [Ipv6Addr; 2] = [GATEWAY, DEFAULT_LINK_LOCAL];

/// The kernel answers within milliseconds; a busy machine takes longer.
const SOON: Duration = Duration::from_secs(15);

/// Within which nothing must come.
const A_WHILE: Duration = Duration::from_millis(200);

/// Within which a router advertisement comes that has to wait for the one before.
const NEXT_ADVERTISEMENT: Duration = Duration::from_secs(30);

fn vni() -> Vni {
    1.try_into().expect("a VNI")
}

/// What a gateway's driver is told.
#[derive(Clone, Copy, Debug)]
enum Word {
    Answering(bool),
    Announce,
    Silence(bool),
    Observe,
}

/// A gateway with network 1, and its driver.
struct Gateway {
    words: Option<UnboundedSender<(Word, mpsc::Sender<()>)>>,
    thread: Option<JoinHandle<()>>,
    /// The stations' end of a link to its bridge.
    wire: Wire,
    mac: Mac,
}

impl Gateway {
    async fn new(namespace: &Namespace, station: &Netlink, number: u32, ra: &RaConfig) -> Self {
        let wire = format!("wire{number}");
        let veth = NewLink::Veth { peer: "port1", namespace: Some(namespace) };
        station.add_link(&wire, &veth).await.expect("a pair");
        join(station, &wire, "segment").await;
        let (words, told) = unbounded_channel();
        let (ready, is_ready) = mpsc::channel();
        let (inside, ra) = (namespace.clone(), ra.clone());
        let thread = std::thread::spawn(move || {
            let work = || {
                if number == 2 {
                    for (key, value) in [("optimistic_dad", 1), ("dad_transmits", 3)] {
                        sysctl::set(Family::V6, "default", key, value).expect("set");
                    }
                }
                test_support::runtime().block_on(drive(ra, &ready, told));
            };
            inside.run(work).expect("entered");
        });
        let mac = is_ready.recv().expect("a driver");
        let wire = Wire::open(station, &wire).await;
        Self { words: Some(words), thread: Some(thread), wire, mac }
    }

    /// Has the driver do something; the receiver hears when it is done.
    fn begin(&self, word: Word) -> mpsc::Receiver<()> {
        let (done, is_done) = mpsc::channel();
        self.words.as_ref().expect("alive").send((word, done)).expect("alive");
        is_done
    }

    fn tell(&self, word: Word) {
        self.begin(word).recv().expect("done");
    }

    /// What the gateway answers to a solicitation for each of the two addresses.
    fn answers(&self, patience: Duration) -> [Option<Advertised>; 2] {
        BOTH.map(|addr| self.wire.answer(addr, patience))
    }

    fn answers_for_both(&self) -> bool {
        let answers = self.answers(SOON);
        let is_good = |na: Advertised| na.mac == self.mac && na.router && na.overrides;
        answers.iter().all(|answer| answer.is_some_and(is_good))
    }

    fn is_mute(&self) -> bool {
        self.answers(A_WHILE) == [None; 2]
    }

    /// The source of the gateway's next router advertisement, and the lifetime in it. Those of
    /// the other gateway cross this wire too.
    fn advertises(&self, patience: Duration) -> Option<(Ipv6Addr, u16)> {
        let own = |frame: &[u8]| router(frame).filter(|_| frame[6..12] == self.mac);
        let heard = self.wire.receive(patience, own);
        heard.map(|(source, header)| (source, header.router_lifetime))
    }

    /// What the gateway advertises to a station that asks as often as it may: a busy machine drops
    /// frames.
    fn asked_for_router(&self) -> Option<(Ipv6Addr, u16)> {
        let end = Instant::now() + NEXT_ADVERTISEMENT;
        loop {
            self.wire.solicit_router(255);
            let heard = self.advertises(Duration::from_secs(4));
            if heard.is_some() || Instant::now() >= end {
                return heard;
            }
        }
    }

    /// Forgets what has come so far.
    fn drain(&self) {
        while self.wire.receive(Duration::from_millis(1), |_| Some(())).is_some() {}
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.words.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Makes the network in the gateway's namespace, and does what it is told.
async fn drive(
    ra: RaConfig,
    ready: &mpsc::Sender<Mac>,
    mut told: UnboundedReceiver<(Word, mpsc::Sender<()>)>,
) {
    testing::forward();
    let netlink = Netlink::new().expect("netlink");
    let gateways = ["10.0.1.1/24", "fd00:1::1/64"].map(|text| text.parse().expect("a prefix"));
    testing::network(&netlink, vni(), &gateways).await;
    join(&netlink, "port1", "br1").await;
    for interface in ["all", "br1"] {
        sysctl::set(Family::V6, interface, "proxy_ndp", 1).expect("set");
    }
    let declared = Declared { ra, ..Declared::default() };
    let wanted = BTreeMap::from([(vni(), declared)]);
    let mut inventory = Inventory::new(netlink.clone(), Names::default(), wanted, []);
    inventory.survey().await.expect("surveyed");
    assert!(inventory.adopt(&[vni()]).await.is_empty());
    let config = FloodConfig { uplink: "lo".into(), endpoints: Vec::new() };
    let mut flood = Flood::new(inventory, config).expect("a driver");
    let mac = testing::link(&netlink, "br1").await.mac.expect("a MAC");
    ready.send(mac).expect("awaited");
    while let Some((word, done)) = told.recv().await {
        obey(&mut flood, word).await;
        if let Word::Answering(on) = word {
            usable_exactly_if(&netlink, on).await;
        }
        // Nobody may wait for it.
        let _ = done.send(());
    }
}

/// Whether both addresses are there and not tentative.
async fn usable_exactly_if(netlink: &Netlink, on: bool) {
    let all = netlink.addresses().await.expect("readable");
    let usable = BOTH.map(|addr| {
        all.iter().any(|held| held.prefix == Prefix::host(addr.into()) && !held.is_tentative())
    });
    assert_eq!(usable, [on; 2]);
}

async fn obey(flood: &mut Flood, word: Word) {
    let failures = match word {
        Word::Answering(on) => flood.answering(&[vni()], on).await,
        Word::Announce => flood.announce(&[vni()]).await,
        Word::Silence(on) => {
            flood.silence(on).await.expect("the switch");
            return;
        }
        Word::Observe => {
            flood.observe().await.expect("observed");
            return;
        }
    };
    assert!(failures.is_empty(), "{failures:?}");
}

/// Makes an interface a port of the bridge, and sets it up.
async fn join(netlink: &Netlink, port: &str, bridge: &str) {
    let bridge = testing::link(netlink, bridge).await.index;
    let port = testing::link(netlink, port).await.index;
    netlink.set_master(port, Some(bridge)).await.expect("a port");
    netlink.set_up(port, true, None).await.expect("up");
}

/// Two gateways, and the stations' bridge `segment` between them.
fn run(test: &str, ra: RaConfig, body: impl FnOnce(&Gateway, &Gateway) + Send) {
    let namespaces = [(); 3].map(|()| test_support::namespace(test));
    let [Some(station), Some(one), Some(two)] = namespaces else { return };
    let work = || {
        test_support::runtime().block_on(async {
            let netlink = Netlink::new().expect("netlink");
            netlink.add_link("segment", &NewLink::Bridge).await.expect("a bridge");
            // A station, and not a router: it believes what routers advertise.
            for (key, value) in [("forwarding", 0), ("accept_ra", 1), ("accept_dad", 0)] {
                sysctl::set(Family::V6, "segment", key, value).expect("set");
            }
            let segment = testing::link(&netlink, "segment").await.index;
            netlink.set_up(segment, true, None).await.expect("up");
            let first = Gateway::new(&one, &netlink, 1, &ra).await;
            let second = Gateway::new(&two, &netlink, 2, &ra).await;
            body(&first, &second);
        });
    };
    station.run(work).expect("entered");
}

#[test]
fn a_standby_never_answers_neighbour_solicitations() {
    run("ipv6: standby", RaConfig::default(), |one, two| {
        assert!(one.is_mute() && two.is_mute(), "nobody serves");
        one.tell(Word::Answering(true));
        assert!(one.answers_for_both() && two.is_mute());
        two.tell(Word::Answering(true));
        assert!(one.answers_for_both() && two.answers_for_both(), "a planned move");
        one.tell(Word::Answering(false));
        assert!(one.is_mute() && two.answers_for_both());
        // What a standby does beside has no influence.
        for word in [Word::Announce, Word::Observe] {
            one.tell(word);
            one.drain();
            assert!(one.is_mute());
        }
    });
}

#[test]
fn during_a_move_somebody_always_answers_and_the_former_owner_never_after_it() {
    run("ipv6: move", RaConfig::default(), |one, two| {
        one.tell(Word::Answering(true));
        let steps = [(two, true), (one, false), (one, true), (two, false)];
        for (gateway, on) in steps.into_iter().cycle().take(20) {
            let is_done = gateway.begin(Word::Answering(on));
            loop {
                let done = is_done.try_recv().is_ok();
                let other = if std::ptr::eq(gateway, one) { two } else { one };
                assert!(other.answers_for_both(), "the other one serves meanwhile");
                if done {
                    break;
                }
            }
            gateway.drain();
            assert!(if on { gateway.answers_for_both() } else { gateway.is_mute() });
        }
    });
}

/// The second gateway's settings ask for several probes and for optimistic addresses (RFC 4429),
/// the first one's are the kernel's own. The driver's thread looks at the addresses each time.
#[test]
fn no_address_is_looked_for_elsewhere_whatever_the_settings() {
    run("ipv6: at once", RaConfig::default(), |one, two| {
        for gateway in [one, two] {
            for _ in 0..3 {
                gateway.tell(Word::Answering(true));
                assert!(gateway.answers_for_both());
                gateway.tell(Word::Answering(false));
                gateway.drain();
                assert!(gateway.is_mute());
            }
        }
    });
}

#[test]
fn announcements_carry_router_and_override() {
    run("ipv6: announce", RaConfig::default(), |one, _| {
        one.tell(Word::Answering(true));
        one.drain();
        one.tell(Word::Announce);
        let expected = |target| Advertised {
            target,
            mac: one.mac,
            router: true,
            solicited: false,
            overrides: true,
        };
        // The stations' router first, then the rest.
        for target in [DEFAULT_LINK_LOCAL, GATEWAY] {
            assert_eq!(one.wire.receive(SOON, advertised), Some(expected(target)));
        }
    });
}

#[test]
fn the_owner_alone_advertises_the_router() {
    run("ipv6: router", RaConfig::default(), |one, two| {
        one.tell(Word::Answering(true));
        one.tell(Word::Announce);
        let advertised = Some((DEFAULT_LINK_LOCAL, 1800));
        assert_eq!(one.advertises(SOON), advertised, "with the announcement");
        // One that has crossed a router is not answered, another is.
        one.wire.solicit_router(254);
        assert_eq!(one.advertises(A_WHILE), None);
        two.wire.solicit_router(255);
        assert_eq!(one.asked_for_router(), advertised, "who asks is answered");
        assert_eq!(two.advertises(A_WHILE), None, "a standby says nothing");

        two.tell(Word::Answering(true));
        two.tell(Word::Announce);
        one.tell(Word::Answering(false));
        assert_eq!(two.advertises(SOON), advertised);
        one.drain();
        one.wire.solicit_router(255);
        let last = one.advertises(Duration::from_secs(5));
        assert_eq!(last, None, "who gives a network up says nothing");
    });
}

#[test]
fn a_restarted_agent_goes_on_advertising() {
    run("ipv6: adopted", RaConfig::default(), |one, _| {
        one.tell(Word::Answering(true));
        one.tell(Word::Observe);
        // Nothing was announced: the first comes by itself.
        let patience = Duration::from_secs(30);
        assert_eq!(one.advertises(patience), Some((DEFAULT_LINK_LOCAL, 1800)));
    });
}

#[test]
fn silence_ends_neighbour_discovery_and_advertisements_at_once() {
    run("ipv6: silence", RaConfig::default(), |one, _| {
        one.tell(Word::Answering(true));
        one.tell(Word::Announce);
        assert!(one.advertises(SOON).is_some());
        one.tell(Word::Silence(true));
        one.drain();
        assert!(one.is_mute());
        one.tell(Word::Announce);
        one.wire.solicit_router(255);
        assert_eq!(
            one.wire.receive(Duration::from_secs(5), |frame| {
                advertised(frame).map(drop).or_else(|| router(frame).map(drop))
            }),
            None
        );
        one.tell(Word::Silence(false));
        assert!(one.answers_for_both());
        assert!(one.asked_for_router().is_some());
    });
}

#[test]
fn advertisements_can_be_off() {
    let ra = RaConfig { send: false, ..RaConfig::default() };
    run("ipv6: off", ra, |one, _| {
        one.tell(Word::Answering(true));
        one.tell(Word::Announce);
        one.tell(Word::Observe);
        one.wire.solicit_router(255);
        assert_eq!(one.advertises(Duration::from_secs(2)), None);
        assert!(one.answers_for_both(), "the link-local address too");
    });
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("ip runs");
    String::from_utf8(output.stdout).expect("text")
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[test]
fn a_station_keeps_its_router_and_follows_it_to_the_next_gateway() {
    run("ipv6: station", RaConfig::default(), |one, two| {
        one.tell(Word::Answering(true));
        one.tell(Word::Announce);
        let router = format!("via {DEFAULT_LINK_LOCAL} dev segment");
        until("a default router", || ip("-6 route show default").contains(&router));
        until("an address", || ip("-6 addr show dev segment").contains(" fd00:1:"));
        let neighbour = || ip(&format!("-6 neigh show {DEFAULT_LINK_LOCAL} dev segment"));
        assert!(neighbour().contains(&text(one.mac)), "{}", neighbour());

        two.tell(Word::Answering(true));
        one.tell(Word::Answering(false));
        two.tell(Word::Announce);
        until("the new owner", || neighbour().contains(&text(two.mac)));
        assert!(neighbour().contains("router"), "{}", neighbour());
        assert!(ip("-6 route show default").contains(&router));
    });
}

/// As on a host whose operator has put the shared address there by hand, as a router's.
#[test]
fn a_shared_link_local_address_that_was_there_is_put_back() {
    let Some(namespace) = test_support::namespace("ipv6: put back") else { return };
    let body = async || {
        testing::forward();
        let netlink = Netlink::new().expect("netlink");
        let shared: Prefix = "fe80::1/64".parse().expect("a prefix");
        let carried = ["fd00:1::1/64", "fe80::1/64"].map(|text| text.parse().expect("a prefix"));
        testing::network(&netlink, vni(), &carried).await;
        let ra =
            RaConfig { link_local: "fe80::1".parse().expect("an address"), ..RaConfig::default() };
        let wanted = BTreeMap::from([(vni(), Declared { ra, ..Declared::default() })]);
        let mut inventory = Inventory::new(netlink.clone(), Names::default(), wanted, []);
        inventory.survey().await.expect("surveyed");
        let gateways = &inventory.networks()[&vni()].gateways;
        assert_eq!(gateways, &["fd00:1::1/64".parse().expect("a prefix")]);
        assert!(inventory.adopt(&[vni()]).await.is_empty());
        let there = async || {
            let all = netlink.addresses().await.expect("readable");
            all.iter().any(|held| held.prefix == shared)
        };
        assert!(!there().await, "a standby must not answer for it");
        assert!(inventory.release(&[vni()]).await.is_empty());
        assert!(there().await);
    };
    namespace.run(|| test_support::runtime().block_on(body())).expect("entered");
}
