//! What `selvedge mesh doctor` finds on hosts with real WireGuard and real firewalls.
//!
//! Needs root. Without it the tests are skipped and say so; with `CI=true` that is a failure.

mod hosts;

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use hosts::Lab;
use selvedge_api::gateway::{Finding, Severity};

/// The program, as an operator runs it on a host.
fn run(lab: &Lab, host: usize, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_selvedge"));
    command.args(["mesh", "--socket"]).arg(lab.path(host, "sock")).arg("doctor").args(more);
    command.output().expect("it runs")
}

async fn problems(lab: &Lab, host: usize) -> Vec<Finding> {
    let mut findings = lab.client(host).doctor(None).await.expect("it looks");
    findings.retain(|finding| finding.severity == Severity::Problem);
    findings
}

/// Looks again and again until something is found that says `text`.
async fn is_found(lab: &Lab, host: usize, text: &str) -> Finding {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let findings = lab.client(host).doctor(Some("campus")).await.expect("it looks");
        if let Some(found) = findings.iter().find(|it| it.text.contains(text)) {
            return found.clone();
        }
        assert!(Instant::now() < deadline, "{text:?} is not in {findings:#?}");
    }
}

async fn becomes_well(lab: &Lab, host: usize) {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        match problems(lab, host).await.as_slice() {
            [] => return,
            left => assert!(Instant::now() < deadline, "{left:#?}"),
        }
    }
}

fn nft(lab: &Lab, host: usize, rules: &str) {
    let done = lab.run(host, "nft", &[rules]);
    assert!(done.status.success(), "{rules}: {done:?}");
}

#[tokio::test]
async fn what_is_wrong_is_found_and_gone_once_it_is_put_right() {
    let Some(mut lab) = Lab::new("d", 3).await else { return };
    lab.start_all().await;
    let port = lab.form("campus").await.listen_port;
    becomes_well(&lab, 0).await;
    let well = run(&lab, 0, &["campus"]);
    let text = String::from_utf8_lossy(&well.stdout);
    assert!(well.status.success(), "{well:?}");
    assert!(text.contains("WireGuard reaches all 2 members"), "{text}");
    assert!(!run(&lab, 0, &["nosuch"]).status.success());

    // The own firewall. What is said puts it right.
    let closed = "table inet t { chain i { type filter hook input priority 0; policy drop;
        ct state established,related accept
        meta l4proto ipv6-icmp accept
        udp dport 7654 accept
    }\n}";
    nft(&lab, 0, closed);
    let found = is_found(&lab, 0, "chain i of table inet t drops what others send").await;
    assert_eq!(found.fix, [format!("nft insert rule inet t i udp dport {port} accept")]);
    let failed = run(&lab, 0, &["--json"]);
    assert_eq!(failed.status.code(), Some(1));
    let listed: Vec<Finding> = serde_json::from_slice(&failed.stdout).expect("JSON");
    assert_eq!(listed[0].severity, Severity::Problem, "the gravest comes first");
    nft(&lab, 0, found.fix[0].strip_prefix("nft ").expect("a command"));
    becomes_well(&lab, 0).await;

    // Another's firewall: its agent is heard, but WireGuard does not reach it.
    let port = lab.show(1, "campus").await.listen_port;
    nft(
        &lab,
        1,
        &format!(
            "table inet t {{ chain i {{ type filter hook input priority 0;
        udp dport {port} drop
    }}\n}}"
        ),
    );
    is_found(&lab, 0, "host1").await;
    nft(&lab, 1, "delete table inet t");
    becomes_well(&lab, 0).await;

    // A way that is narrower than anybody knows.
    let narrow = |mtu: &str| {
        assert!(lab.run(2, "ip", &["link", "set", "eth0", "mtu", mtu]).status.success())
    };
    narrow("1400");
    let found = is_found(&lab, 0, "bytes are lost").await;
    assert!(found.text.contains("host2"), "{found:?}");
    narrow("1500");
    becomes_well(&lab, 0).await;

    // Somebody is gone: that is no fault of this host.
    lab.kill(2);
    let found = is_found(&lab, 0, "1 of 2 members do not answer: host2").await;
    assert_eq!(found.severity, Severity::Warning);
}
