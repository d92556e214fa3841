//! Address translation as home routers do it, and counters of packets.

use std::fs;

use serde_json::Value;

use crate::{Error, Host};

/// Which port of the router stands for a port of a host behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// The same, whomever the host talks to: as most home routers do.
    Kept,
    /// Another for each partner, so that what one partner sees is of no use to the next.
    Random,
}

/// Makes `router` forward IPv4, hide everything behind its address on the interface `outside`,
/// and let nobody in who was not asked.
///
/// # Errors
/// If nftables refuse.
pub fn masquerade(router: &Host, outside: &str, mapping: Mapping) -> Result<(), Error> {
    router.sysctl(&[("ipv4/ip_forward".to_owned(), "1")])?;
    let random = match mapping {
        Mapping::Kept => "",
        Mapping::Random => " fully-random",
    };
    router.nft(&format!(
        "table ip lab-nat {{
           chain out {{
             type nat hook postrouting priority srcnat
             oifname {outside} masquerade{random}
           }}
           chain local {{
             type filter hook input priority filter
             iifname {outside} ct state new drop
           }}
           chain inwards {{
             type filter hook forward priority filter
             iifname {outside} ct state new drop
           }}
         }}"
    ))
}

/// Counts the packets that match a rule.
#[derive(Clone, Debug)]
pub struct Counter {
    host: Host,
    table: String,
}

impl Counter {
    /// Counts on `host` what passes `hook` (`input`, `output`, `forward`) and matches `rule`, in
    /// the words of nftables. `name` is the counter's own on that host.
    ///
    /// # Errors
    /// If nftables refuse.
    pub fn new(host: &Host, name: &str, hook: &str, rule: &str) -> Result<Self, Error> {
        let counter = Self::named(host, name);
        let table = &counter.table;
        host.nft(&format!(
            "table inet {table} {{
               counter seen {{ }}
               chain {hook} {{ type filter hook {hook} priority -350; {rule} counter name seen; }}
             }}"
        ))?;
        Ok(counter)
    }

    /// One that was made before.
    #[must_use]
    pub fn named(host: &Host, name: &str) -> Self {
        Self { host: host.clone(), table: format!("lab-{name}") }
    }

    /// How many so far.
    ///
    /// # Errors
    /// If nftables cannot be asked.
    pub fn packets(&self) -> Result<u64, Error> {
        let words = ["-j", "list", "counter", "inet", &self.table, "seen"];
        let text = self.host.sh("nft", &words)?;
        counted(&text).ok_or_else(|| Error::Answer {
            of: "nft".to_owned(),
            reason: format!("no counter in {text}"),
        })
    }
}

fn counted(text: &str) -> Option<u64> {
    let answer: Value = serde_json::from_str(text).ok()?;
    let entries = answer["nftables"].as_array()?;
    entries.iter().find_map(|entry| entry["counter"]["packets"].as_u64())
}

/// How many packets the kernel of `host` has dropped because they had been under way for too
/// long, as they are in a loop, and told their senders so.
///
/// # Errors
/// If the kernel's counters cannot be read.
pub fn time_exceeded(host: &Host) -> Result<u64, Error> {
    let read = |file: &str| {
        let path = format!("/proc/thread-self/net/{file}");
        fs::read_to_string(&path).map_err(Error::io(format!("read {path}")))
    };
    let (v6, v4) = host.run(|| (read("snmp6"), read("snmp")))?;
    match (named(&v6?, "Icmp6OutTimeExcds"), under(&v4?, "Icmp:", "OutTimeExcds")) {
        (Some(v6), Some(v4)) => Ok(v6 + v4),
        _ => Err(Error::Answer {
            of: "/proc/net/snmp".to_owned(),
            reason: "it does not count exceeded times".to_owned(),
        }),
    }
}

/// The value in the line of that name.
fn named(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().map(str::split_whitespace);
    lines.find_map(|mut words| (words.next() == Some(name)).then(|| words.next())??.parse().ok())
}

/// The value under a heading: a line with headings precedes one with values.
fn under(text: &str, section: &str, heading: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.split(' ').next() == Some(section));
    let column = lines.next()?.split(' ').position(|word| word == heading)?;
    lines.next()?.split(' ').nth(column)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_counters_are_found_by_name() {
        let v6 = "Icmp6OutDestUnreachs            \t3\nIcmp6OutTimeExcds               \t17\n";
        assert_eq!(named(v6, "Icmp6OutTimeExcds"), Some(17));
        assert_eq!(named(v6, "Icmp6Out"), None);
        let v4 = "Ip: Forwarding\nIp: 1\nIcmp: InMsgs OutTimeExcds\nIcmp: 7 9\nIcmpMsg: X\n";
        assert_eq!(under(v4, "Icmp:", "OutTimeExcds"), Some(9));
        assert_eq!(under(v4, "Tcp:", "OutTimeExcds"), None);
    }

    #[test]
    fn a_counter_is_read_from_what_nft_prints() {
        let text = r#"{"nftables": [{"metainfo": {"version": "1"}},
            {"counter": {"family": "inet", "name": "seen", "packets": 12, "bytes": 99}}]}"#;
        assert_eq!(counted(text), Some(12));
        assert_eq!(counted("{}"), None);
    }
}
