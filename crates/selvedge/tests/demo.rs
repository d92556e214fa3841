//! The demo, from end to end: it keeps its promises, with each set of engines, and leaves nothing
//! behind.

use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use selvedge_netlab::etcd::Etcd;
use selvedge_netlab::frr::Frr;
use serde_json::{Value, json};

/// Two demos at once would take the processors from each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

#[test]
fn the_demo_keeps_its_promises() {
    let engines = json!({"store": "embedded", "fabric": "flood", "wireguard": "userspace"});
    if can_run("the_demo_keeps_its_promises", None) {
        check(&["--networks=20"], 20, &engines);
    }
}

#[test]
fn the_demo_keeps_its_promises_on_etcd_and_frr() {
    let name = "the_demo_keeps_its_promises_on_etcd_and_frr";
    let lacks = match (Etcd::is_installed(), Frr::is_installed()) {
        (true, true) => None,
        (false, _) => Some("etcd or etcdctl is not installed"),
        (true, false) => Some("FRRouting is not installed"),
    };
    let engines = json!({"store": "etcd", "fabric": "frr", "wireguard": "userspace"});
    if can_run(name, lacks) {
        check(&["--networks=12", "--store=etcd", "--fabric=frr"], 12, &engines);
    }
}

#[test]
fn what_is_missing_is_named_with_its_package() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_selvedge"));
    let output = command.args(["demo", "--store=etcd"]).env("PATH", "/nonexistent").output();
    let output = output.expect("starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty(), "no figures of a demo that did not run");
    let said = String::from_utf8_lossy(&output.stderr);
    for package in ["iproute2", "nftables", "etcd-server", "etcd-client"] {
        assert!(said.contains(package), "{package} in {said}");
    }
    assert!(!said.contains("FRRouting"), "nobody asked for it: {said}");
}

/// Says so if a test cannot run here; with `CI=true` that is a failure.
#[allow(clippy::print_stderr, reason = "a skipped test is named")]
fn can_run(test: &str, lacks: Option<&str>) -> bool {
    let namespaces = selvedge_host::netns::can_create().err().map(|error| error.to_string());
    let Some(reason) = namespaces.or_else(|| lacks.map(str::to_owned)) else { return true };
    let strict = std::env::var_os("CI").is_some_and(|value| value == "true");
    assert!(!strict, "{test} cannot run: {reason}");
    eprintln!("skipped: {test}: {reason}");
    false
}

fn check(arguments: &[&str], networks: u64, engines: &Value) {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let (outcome, own) = play(arguments);
    assert_eq!((&outcome["mesh_nodes"], &outcome["networks"]), (&3.into(), &networks.into()));
    assert_eq!(&outcome["engines"], engines);
    for none in ["overlay_pings_lost", "move_packets_lost", "failover_unrestored"] {
        assert_eq!(outcome[none], 0, "{none} of {outcome}");
    }
    for some in ["overlay_pings_sent", "moves", "move_packets_sent", "failovers"] {
        assert!(outcome[some].as_u64().is_some_and(|count| count > 0), "{some} of {outcome}");
    }
    let left = selvedge_host::netns::Namespace::list(&own).expect("lists");
    assert!(left.is_empty(), "left behind: {left:?}");
}

/// Runs the demo; what it found, and how the names of its namespaces begin.
fn play(arguments: &[&str]) -> (Value, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_selvedge"));
    let command = command.args(["demo", "--seconds=10", "--json"]).args(arguments);
    let child = command.stdout(Stdio::piped()).spawn().expect("starts");
    let own = format!("sv{:x}n", child.id());
    let output = child.wait_with_output().expect("ends");
    assert!(output.status.success(), "{}", output.status);
    let text = String::from_utf8(output.stdout).expect("text");
    let last = text.lines().last().expect("a last line");
    (serde_json::from_str(last).expect("JSON"), own)
}
