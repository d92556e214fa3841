//! The demo, from end to end: it keeps its promises, and leaves nothing behind.

use std::process::Command;

use serde_json::Value;

#[test]
fn the_demo_keeps_its_promises() {
    if let Err(error) = selvedge_host::netns::can_create() {
        let strict = std::env::var_os("CI").is_some_and(|value| value == "true");
        assert!(!strict, "the_demo_keeps_its_promises cannot run: {error}");
        eprintln!("skipped: the_demo_keeps_its_promises: {error}");
        return;
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_selvedge"));
    let child = command.args(["demo", "--seconds=10", "--networks=20", "--json"]);
    let child = child.stdout(std::process::Stdio::piped()).spawn().expect("starts");
    let own = format!("sv{:x}n", child.id());
    let output = child.wait_with_output().expect("ends");
    assert!(output.status.success(), "{}", output.status);
    let text = String::from_utf8(output.stdout).expect("text");
    let last = text.lines().last().expect("a last line");
    let outcome: Value = serde_json::from_str(last).expect("JSON");
    assert_eq!((&outcome["mesh_nodes"], &outcome["networks"]), (&3.into(), &20.into()));
    for none in ["overlay_pings_lost", "move_packets_lost", "failover_unrestored"] {
        assert_eq!(outcome[none], 0, "{none} of {outcome}");
    }
    for some in ["overlay_pings_sent", "moves", "move_packets_sent", "failovers"] {
        assert!(outcome[some].as_u64().is_some_and(|count| count > 0), "{some} of {outcome}");
    }
    let left = selvedge_host::netns::Namespace::list(&own).expect("lists");
    assert!(left.is_empty(), "left behind: {left:?}");
}
