//! Whether the gateway is, or may become, the designated router of a segment that it shares with
//! others. What these have to say is flooded by that router (RFC 2328, section 13.3); one that is
//! lost holds it up until its dead interval ends, the routes of its own successors included. Pure.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Finding;
use super::config::Config;

/// How a daemon of OSPF speaks of its interfaces.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dialect {
    /// What it is asked.
    pub(super) question: &'static str,
    /// The key of its answer that has all interfaces; none: the answer is that.
    all: Option<&'static str>,
    state: &'static str,
    /// The dead interval, in seconds.
    dead: &'static str,
    priority: &'static str,
    passive: &'static str,
}

/// The dialect of a daemon that speaks OSPF.
pub(super) fn dialect(daemon: &str) -> Option<Dialect> {
    match daemon {
        "ospfd" => Some(Dialect {
            question: "show ip ospf interface json",
            all: Some("interfaces"),
            state: "state",
            dead: "timerDeadSecs",
            priority: "ip ospf priority 0",
            passive: "ip ospf passive",
        }),
        "ospf6d" => Some(Dialect {
            question: "show ipv6 ospf6 interface json",
            all: None,
            state: "ospf6InterfaceState",
            dead: "timerIntervalsConfigDead",
            priority: "ipv6 ospf6 priority 0",
            passive: "ipv6 ospf6 passive",
        }),
        _ => None,
    }
}

/// What the interfaces of a daemon that speaks OSPF come to.
pub(super) fn judge(
    daemon: &str,
    dialect: Dialect,
    answer: &Value,
    config: &Config,
) -> Vec<Finding> {
    let quiet: BTreeSet<&str> = config.interfaces(dialect.passive).map(|(name, _)| name).collect();
    let all = dialect.all.map_or(answer, |key| &answer[key]).as_object();
    let active = all.into_iter().flatten().filter(|(name, interface)| {
        let passive = interface["timerPassiveIface"].as_bool() == Some(true);
        interface[dialect.state].is_string() && !passive && !quiet.contains(name.as_str())
    });
    let mut active = active.peekable();
    let none = active.peek().is_none();
    let found: Vec<Finding> =
        active.filter_map(|(name, it)| candidate(daemon, dialect, name, it)).collect();
    match none || !found.is_empty() {
        true => found,
        false => vec![Finding::ok(daemon, "it becomes no segment's designated router")],
    }
}

/// On segments that have one, everybody with a priority may become it.
fn candidate(daemon: &str, dialect: Dialect, name: &str, interface: &Value) -> Option<Finding> {
    let is = match interface[dialect.state].as_str()? {
        "DR" => "is",
        "BDR" | "Backup" | "DROther" | "Waiting" => "may become",
        _ => return None,
    };
    if interface["priority"].as_u64() == Some(0) && is != "is" {
        return None;
    }
    let dead = interface[dialect.dead].as_u64().unwrap_or_default();
    let text = format!(
        "the gateway {is} the designated router on {name}: if it is lost, no change of a route gets \
         past there for {dead} s, those of its successors included"
    );
    let lines = [format!("interface {name}"), format!(" {}", dialect.priority)];
    Some(Finding::warning(daemon, text).vtysh(lines))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::check::Severity;

    fn found(daemon: &str, answer: &Value, config: &str) -> Vec<Finding> {
        let dialect = dialect(daemon).expect("it speaks OSPF");
        judge(daemon, dialect, answer, &Config::parse(config))
    }

    /// As FRR 8.4.4 answers, of an interface alone on its segment, less what does not matter here.
    fn ospfd(state: &str, priority: u8, passive: bool) -> Value {
        let mut up0 = json!({"networkType": "BROADCAST", "state": state, "priority": priority});
        up0["timerDeadSecs"] = json!(40);
        if passive {
            up0["timerPassiveIface"] = json!(true);
        }
        json!({"interfaces": {"up0": up0}})
    }

    fn ospf6d(state: &str, priority: u8) -> Value {
        let up0 = json!({"type": "BROADCAST", "attachedToArea": true, "priority": priority,
            "ospf6InterfaceState": state, "timerIntervalsConfigDead": 40});
        json!({"lo": {"type": "LOOPBACK"}, "up0": up0})
    }

    #[test]
    fn whoever_may_become_the_designated_router_is_told_how_not_to() {
        for (daemon, answer, line) in [
            ("ospfd", ospfd("Waiting", 1, false), " ip ospf priority 0"),
            ("ospf6d", ospf6d("BDR", 1), " ipv6 ospf6 priority 0"),
        ] {
            let found = found(daemon, &answer, "");
            assert_eq!((found.len(), found[0].severity), (1, Severity::Warning));
            assert!(found[0].text.contains("may become"), "{found:?}");
            assert!(found[0].text.contains("40 s"), "{found:?}");
            assert_eq!(found[0].fix, ["interface up0", line]);
        }
        let is = found("ospfd", &ospfd("DR", 0, false), "");
        assert!(is[0].text.starts_with("the gateway is the designated router on up0"), "{is:?}");
    }

    #[test]
    fn who_cannot_become_it_is_well() {
        for (daemon, answer) in [
            ("ospfd", ospfd("DROther", 0, false)),
            ("ospfd", ospfd("Point-To-Point", 1, false)),
            ("ospf6d", ospf6d("DROther", 0)),
            ("ospf6d", ospf6d("PointToPoint", 1)),
        ] {
            let found = found(daemon, &answer, "");
            assert_eq!((found.len(), found[0].severity), (1, Severity::Ok), "{answer}");
        }
        assert!(found("ospfd", &ospfd("DROther", 1, true), "").is_empty(), "it is passive");
        let passive = "interface up0\n ipv6 ospf6 passive\nexit\n";
        assert!(found("ospf6d", &ospf6d("DROther", 1), passive).is_empty());
        assert!(found("ospf6d", &Value::Null, "").is_empty());
    }
}
