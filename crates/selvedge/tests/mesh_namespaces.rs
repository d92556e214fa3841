//! Agents as processes in network namespaces: userspace WireGuard, real packets, real kills.
//!
//! Needs root. Without it the tests are skipped and say so; with `CI=true` that is a failure.

mod hosts;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hosts::Lab;
use selvedge_api::mesh::Mesh;
use tokio::time::sleep;

/// The largest payload of a ping that fits into the MTU of 1420 bytes.
const FULL_PAYLOAD: &str = "1372";

#[tokio::test]
async fn three_hosts_reach_each_other_and_survive_kills() {
    let Some(mut lab) = Lab::new("t", 3).await else { return };
    lab.start_all().await;
    let mesh = lab.form("campus").await;
    let addresses = lab.addresses("campus").await;
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        lab.pings(from, addresses[to], FULL_PAYLOAD).await;
    }
    assert!(!lab.ping(0, addresses[1], "1373"), "the MTU is no greater than it says");
    let before = lab.show(1, "campus").await;

    // All die at once, and one comes back alone.
    (0..3).for_each(|host| lab.kill(host));
    assert!(!lab.has_interface(1, &before.interface), "the interface dies with its process");
    lab.start(1).await;
    let after = lab.show(1, "campus").await;
    assert_eq!(identity(&after), identity(&before));
    assert_eq!(after.members.len(), 3, "the last known state");

    // The others follow, and everything is as it was.
    lab.start(0).await;
    lab.start(2).await;
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        lab.pings(from, addresses[to], FULL_PAYLOAD).await;
    }

    // A single host restarts among living ones: their old sessions must not linger.
    lab.kill(2);
    lab.start(2).await;
    let restarted = Instant::now();
    lab.pings(0, addresses[2], "56").await;
    lab.pings(1, addresses[2], "56").await;
    assert!(restarted.elapsed() < Duration::from_secs(10), "{:?}", restarted.elapsed());
    assert_eq!(lab.show(2, "campus").await.id, mesh.id);
}

#[tokio::test]
async fn a_host_leaves_and_its_peers_forget_it() {
    let Some(mut lab) = Lab::new("l", 3).await else { return };
    lab.start_all().await;
    lab.form("campus").await;
    let addresses = lab.addresses("campus").await;
    lab.pings(0, addresses[2], "56").await;
    let interface = lab.show(2, "campus").await.interface;
    lab.client(2).leave_mesh("campus").await.expect("left");
    assert!(!lab.has_interface(2, &interface));
    for host in [0, 1] {
        lab.sees(host, "campus", 2).await;
    }
    assert!(!lab.ping(0, addresses[2], "56"));
    lab.pings(0, addresses[1], "56").await;
}

#[tokio::test]
async fn a_host_that_moves_is_found_again() {
    let Some(mut lab) = Lab::new("m", 2).await else { return };
    lab.start_all().await;
    lab.form("campus").await;
    let addresses = lab.addresses("campus").await;
    lab.pings(0, addresses[1], "56").await;
    lab.kill(1);
    lab.move_host(1, "192.0.2.77/24").await;
    lab.start(1).await;
    lab.pings(0, addresses[1], "56").await;
    lab.pings(1, addresses[0], "56").await;
    let seen = lab.show(0, "campus").await;
    let moved = seen.members.iter().find(|member| !member.own).expect("the other");
    assert_eq!(moved.endpoint.expect("known").ip().to_string(), "192.0.2.77");
}

#[tokio::test]
async fn a_host_that_was_cut_off_catches_up() {
    let Some(mut lab) = Lab::new("c", 3).await else { return };
    lab.start_all().await;
    lab.form("campus").await;
    let addresses = lab.addresses("campus").await;
    lab.cut(2, true).await;
    assert!(!lab.ping(0, addresses[2], "56"));
    lab.client(1).leave_mesh("campus").await.expect("left");
    lab.sees(0, "campus", 2).await;
    assert_eq!(lab.show(2, "campus").await.members.len(), 3, "it cannot know");
    lab.cut(2, false).await;
    lab.sees(2, "campus", 2).await;
    lab.pings(0, addresses[2], FULL_PAYLOAD).await;
}

#[tokio::test]
async fn names_are_answered_in_the_mesh_and_hooks_run_around_its_interface() {
    let Some(mut lab) = Lab::new("n", 2).await else { return };
    let hooks = lab.path(0, "hooks");
    let script = format!(
        "ip link show dev $SELVEDGE_INTERFACE >/dev/null 2>&1 && is=there || is=gone; \
         echo $SELVEDGE_EVENT $is >> {}",
        hooks.display()
    );
    let hook = format!("[\"/bin/sh\", \"-c\", \"{script}\"]");
    let kinds = ["pre_up", "post_up", "pre_down", "post_down"];
    let lines: String = kinds.map(|kind| format!("{kind} = {hook}\n")).concat();
    let config = format!("[mesh.dns]\n[mesh.hooks]\n{lines}");
    std::fs::write(lab.path(0, "toml"), config).expect("writes");
    lab.start_all().await;
    lab.form("campus").await;
    let addresses = lab.addresses("campus").await;
    lab.pings(1, addresses[0], "56").await;

    // A member asks at the overlay address, and programs of the host at the loopback address.
    let name = "host1.campus.mesh.internal.";
    for (host, server) in [(1, addresses[0].to_string()), (0, "127.0.0.153".to_owned())] {
        let server = SocketAddr::new(server.parse().expect("an address"), 53);
        let deadline = Instant::now() + Duration::from_secs(60);
        while lab.resolve(host, server, name) != Some(addresses[1]) {
            assert!(Instant::now() < deadline, "{server}:\n{}", lab.read_log(0));
            sleep(Duration::from_millis(100)).await;
        }
    }

    lab.client(0).leave_mesh("campus").await.expect("left");
    let told = std::fs::read_to_string(hooks).expect("the hooks have written");
    assert_eq!(told, "pre_up gone\npost_up there\npre_down there\npost_down gone\n");
}

fn identity(mesh: &Mesh) -> impl PartialEq + std::fmt::Debug + use<> {
    let own = mesh.members.iter().find(|member| member.own).expect("a member of its own mesh");
    (mesh.id, mesh.node, mesh.address, mesh.listen_port, mesh.interface.clone(), own.wg_key)
}
