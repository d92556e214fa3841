use std::process::Command;

use super::*;
use crate::test_support::{namespace, runtime};

/// What the kernel lists after these rules were loaded, in a namespace of the test's own.
fn loaded(test: &str, rules: &str) -> Option<Ruleset> {
    let namespace = namespace(test)?;
    let read = namespace.run(|| {
        let status = Command::new("nft").arg(rules).status().expect("nft can be run");
        assert!(status.success(), "{rules}");
        runtime().block_on(Ruleset::read()).expect("readable")
    });
    Some(read.expect("entered"))
}

fn to_port(port: u16) -> Packet<'static> {
    Packet { v6: true, udp: Some(port), ..Packet::default() }
}

fn through() -> Packet<'static> {
    Packet { v6: true, input: Some("sv-x"), output: Some("sv-x"), ..Packet::default() }
}

fn dropped(family: &str, table: &str, chain: &str) -> Verdict {
    let [family, table, chain] = [family, table, chain].map(ToOwned::to_owned);
    Verdict::Dropped(Place { family, table, chain })
}

#[test]
fn without_rules_everything_passes() {
    let Some(rules) = loaded("no_rules", "add table inet t") else { return };
    assert_eq!(rules.judge(to_port(51_820)), Verdict::Accepted);
    assert_eq!(rules.judge(through()), Verdict::Accepted);
}

#[test]
fn a_workstations_firewall_lets_in_what_it_says() {
    let text = "table inet filter {
        chain input {
            type filter hook input priority filter; policy drop;
            ct state vmap { invalid : drop, established : accept, related : accept }
            iifname lo accept
            meta l4proto { icmp, ipv6-icmp } accept
            tcp dport { 22, 51820 } accept
            udp dport { 7654, 60000-60010 } counter accept
            jump more
        }
        chain more { udp dport 500 accept; return; }
        chain forward { type filter hook forward priority filter; policy drop; }
    }";
    let Some(rules) = loaded("workstation", text) else { return };
    for port in [7654, 60_005, 500] {
        assert_eq!(rules.judge(to_port(port)), Verdict::Accepted, "{port}");
    }
    assert_eq!(rules.judge(to_port(51_820)), dropped("inet", "filter", "input"));
    assert_eq!(rules.judge(through()), dropped("inet", "filter", "forward"));
}

#[test]
fn what_depends_on_more_is_left_open() {
    let text = "table inet filter {
        set friends { type ipv6_addr; }
        chain input {
            type filter hook input priority filter; policy drop;
            ip6 saddr @friends udp dport 51820 accept
            udp dport 7654 limit rate 10/second accept
            ip saddr 192.0.2.0/24 udp dport 500 accept
            iifname \"eth*\" udp dport 600 accept
        }
        chain forward {
            type filter hook forward priority filter; policy accept;
            ip6 daddr @friends drop
        }
    }";
    let Some(rules) = loaded("open", text) else { return };
    for port in [51_820, 7654, 600] {
        assert_eq!(rules.judge(to_port(port)), Verdict::Open, "{port}");
    }
    assert_eq!(rules.judge(to_port(500)), dropped("inet", "filter", "input"), "IPv4 alone");
    assert_eq!(rules.judge(Packet { v6: false, ..to_port(500) }), Verdict::Open);
    assert_eq!(rules.judge(through()), Verdict::Open);
}

#[test]
fn all_tables_of_the_family_have_to_agree() {
    let text = "table ip6 one {
        chain entry {
            type filter hook input priority 0; policy accept;
            udp dport 51820 reject
        }
    }
    table inet two {
        chain entry { type filter hook input priority 10; policy accept; }
    }
    table ip three {
        chain entry { type filter hook input priority 0; policy drop; }
    }
    table inet four {
        chain through {
            type filter hook forward priority 0; policy drop;
            iifname \"sv-*\" oifname != eth0 accept
        }
    }";
    let Some(rules) = loaded("families", text) else { return };
    assert_eq!(rules.judge(to_port(51_820)), dropped("ip6", "one", "entry"));
    assert_eq!(rules.judge(to_port(51_821)), Verdict::Accepted);
    let v4 = Packet { v6: false, ..to_port(51_821) };
    assert_eq!(rules.judge(v4), dropped("ip", "three", "entry"));
    assert_eq!(rules.judge(through()), Verdict::Accepted);
    let out = Packet { output: Some("eth0"), ..through() };
    assert_eq!(rules.judge(out), dropped("inet", "four", "through"));
}

#[test]
fn chains_are_walked_and_left_as_the_kernel_does() {
    let text = "table inet t {
        chain input {
            type filter hook input priority 0; policy accept;
            udp dport 1-9 goto low
            udp dport 1-99 drop
        }
        chain low { udp dport 1 accept; udp dport 2 drop; udp dport 3 jump deep; }
        chain deep { return; drop; }
    }";
    let Some(rules) = loaded("chains", text) else { return };
    let verdict = |port| rules.judge(to_port(port));
    // After a goto the policy counts, not the rule behind it.
    for (port, passes) in [(1, true), (2, false), (3, true), (4, true), (50, false), (100, true)] {
        let expected = match passes {
            true => Verdict::Accepted,
            false => dropped("inet", "t", "input"),
        };
        assert_eq!(verdict(port), expected, "{port}");
    }
}

#[test]
fn what_is_no_list_of_rules_is_refused() {
    assert!(Ruleset::parse("{").is_err());
    let empty = Ruleset::parse("{}").expect("nothing in it");
    assert_eq!(empty.judge(to_port(1)), Verdict::Accepted);
}
