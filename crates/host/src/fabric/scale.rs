//! How long the operations take with a thousand networks of both families on the host, of which
//! two thirds are taken over: figures, printed by `--ignored --nocapture`. That of FRR is beside
//! its driver.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use selvedge_gateway::desired::{Duty, Upstream};
use selvedge_model::Vni;

use super::testing;
use super::{Driver, Failures, Flood, FloodConfig};
use crate::inventory::{Declared, Inventory, Names};
use crate::netlink::Netlink;
use crate::test_support;

const NETWORKS: u32 = 1000;
const TAKEN_OVER: u32 = 667;

/// Far more than any operation takes on a machine that does nothing else.
const BOUND: Duration = Duration::from_secs(60);

/// Makes networks `1..=count`, all interfaces up.
pub(super) fn build(count: u32) {
    testing::forward();
    let mut batch = String::new();
    for vni in 1..=count {
        let (high, low) = (vni >> 8, vni & 0xff);
        let _ = write!(
            batch,
            "link add br{vni} up type bridge\n\
             link add vxlan{vni} up master br{vni} type vxlan id {vni} local 192.0.2.1 \
             dstport 4789 nolearning\n\
             addr add 10.{high}.{low}.1/24 dev br{vni}\n\
             addr add fd00:{vni:x}::1/64 dev br{vni} nodad\n"
        );
    }
    let mut command = Command::new("ip");
    let mut ip = command.args(["-batch", "-"]).stdin(Stdio::piped()).spawn().expect("ip runs");
    let mut stdin = ip.stdin.take().expect("a pipe");
    std::io::Write::write_all(&mut stdin, batch.as_bytes()).expect("written");
    drop(stdin);
    assert!(ip.wait().expect("ended").success());
}

/// Does the work, prints how long it took under `what`, and fails if it took much too long.
pub(super) async fn timed<T>(what: &str, work: impl AsyncFnOnce() -> T) -> T {
    let (start, worked) = (Instant::now(), processor_time());
    let outcome = work().await;
    let (taken, worked) = (start.elapsed(), processor_time() - worked);
    #[allow(clippy::print_stderr, reason = "this is what it is for")]
    {
        let [taken, worked] = [taken, worked].map(|it| it.as_secs_f64() * 1000.0);
        eprintln!("{what:>30}: {taken:7.1} ms, {worked:7.1} ms of them at work");
    }
    assert!(taken < BOUND, "{what} took {taken:?}");
    outcome
}

/// The time that this process has kept a processor busy.
fn processor_time() -> Duration {
    nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID.now().expect("there is such a clock").into()
}

fn done(failures: Failures) {
    assert!(failures.is_empty(), "{failures:?}");
}

async fn flood(netlink: Netlink, all: &[Vni]) -> Flood {
    let declared = |vni: &Vni| {
        let (high, low) = (vni.get() >> 8, vni.get() & 0xff);
        let next_hop = format!("172.20.{high}.{low}").parse().expect("an address");
        (*vni, Declared { next_hops: vec![next_hop], ..Declared::default() })
    };
    let wanted: BTreeMap<Vni, Declared> = all.iter().map(declared).collect();
    let mut inventory = Inventory::new(netlink, Names::default(), wanted, []);
    timed("survey", async || inventory.survey().await.expect("surveyed")).await;
    timed("adopt", async || assert!(inventory.adopt(all).await.is_empty())).await;
    timed("read all interfaces", async || inventory.refresh().await.expect("read")).await;
    let endpoints = (2..=5).map(|last| Ipv4Addr::new(192, 0, 2, last).into()).collect();
    let config = FloodConfig { uplink: "up0".into(), endpoints };
    Flood::new(inventory, config).expect("a driver")
}

async fn take_over(flood: &mut Flood, vnis: &[Vni]) {
    timed("fabric on", async || done(flood.fabric(vnis, true).await)).await;
    timed("upstream halves", async || done(flood.upstream(vnis, Upstream::Halves).await)).await;
    timed("answering on", async || done(flood.answering(vnis, true).await)).await;
    timed("announce", async || done(flood.announce(vnis).await)).await;
}

async fn give_up(flood: &mut Flood, vnis: &[Vni]) {
    timed("answering off", async || done(flood.answering(vnis, false).await)).await;
    timed("upstream off", async || done(flood.upstream(vnis, Upstream::Off).await)).await;
    timed("fabric off", async || done(flood.fabric(vnis, false).await)).await;
}

#[test]
#[ignore = "measures"]
fn a_thousand_networks_without_a_routing_daemon() {
    let Some(namespace) = test_support::namespace("scale") else { return };
    let body = async || {
        build(NETWORKS);
        let netlink = Netlink::new().expect("netlink");
        testing::pair(&netlink, "up0", "router").await;
        testing::pair(&netlink, "port1", "station").await;
        let all: Vec<Vni> = (1..=NETWORKS).map(|vni| vni.try_into().expect("a VNI")).collect();
        let taken = &all[..TAKEN_OVER as usize];
        let mut flood = flood(netlink, &all).await;
        timed("TAKEOVER of 667 networks", async || take_over(&mut flood, taken).await).await;
        let seen = timed("observe", async || flood.observe().await.expect("observed")).await;
        let serving = seen.values().filter(|duty| **duty == Duty::TAKEOVER).count();
        assert_eq!(serving, taken.len());
        let silencer = flood.silencer().expect("a switch");
        timed("silence", async || silencer.silence(true).await.expect("silent")).await;
        timed("announce, silent", async || done(flood.announce(taken).await)).await;
        timed("lift the silence", async || silencer.silence(false).await.expect("lifted")).await;
        give_up(&mut flood, taken).await;
        timed("release", async || assert!(flood.inventory().release(&all).await.is_empty())).await;
    };
    namespace.run(|| test_support::runtime().block_on(body())).expect("entered");
}
