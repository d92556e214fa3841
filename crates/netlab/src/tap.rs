//! What hosts put on a segment, sorted by the kernel: every frame is looked at, however busy the
//! machine is, and none is held up.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::Value;

use crate::link::Port;
use crate::{Error, Host};

/// A kind of frames: its name, and what matches it, each in the words of nftables.
pub type Class<'a> = (&'a str, &'a [&'a str]);

/// The name of what is of none of the classes.
pub const OTHER: &str = "other";

/// Sorts the frames that hosts put on a segment.
#[derive(Clone, Debug)]
pub struct Tap {
    switch: Host,
    table: String,
}

impl Tap {
    /// Sorts what comes in by these ports of one switch from now on. A frame is of the first class
    /// that it matches, or [`OTHER`]. `name` is the tap's own on that switch.
    ///
    /// # Errors
    /// If there is no port, or nftables refuse.
    pub fn new(name: &str, ports: &[&Port], classes: &[Class<'_>]) -> Result<Self, Error> {
        let none = || Error::Unknown { what: "port", name: name.to_owned() };
        let switch = ports.first().ok_or_else(none)?.switch().clone();
        let table = format!("lab-{name}");
        switch.nft(&rules(&table, ports, classes))?;
        Ok(Self { switch, table })
    }

    /// How many frames of each class so far.
    ///
    /// # Errors
    /// If nftables cannot be asked.
    pub fn frames(&self) -> Result<BTreeMap<String, u64>, Error> {
        let words = ["-j", "list", "counters", "table", "netdev", &self.table];
        let text = self.switch.sh("nft", &words)?;
        counted(&text).ok_or_else(|| Error::Answer {
            of: "nft".to_owned(),
            reason: format!("no counters in {text}"),
        })
    }
}

fn rules(table: &str, ports: &[&Port], classes: &[Class<'_>]) -> String {
    let devices: Vec<String> = ports.iter().map(|port| format!("\"{}\"", port.name())).collect();
    let mut text = format!("table netdev {table} {{\n");
    for name in classes.iter().map(|(name, _)| *name).chain([OTHER]) {
        let _ = writeln!(text, " counter {name} {{ }}");
    }
    let _ = writeln!(
        text,
        " chain seen {{\n  type filter hook ingress devices = {{ {} }} priority 0; policy accept;",
        devices.join(", ")
    );
    for (name, matches) in classes {
        for rule in *matches {
            let _ = writeln!(text, "  {rule} counter name {name} accept");
        }
    }
    let _ = writeln!(text, "  counter name {OTHER}\n }}\n}}");
    text
}

fn counted(text: &str) -> Option<BTreeMap<String, u64>> {
    let answer: Value = serde_json::from_str(text).ok()?;
    let counters = answer["nftables"].as_array()?.iter().map(|entry| &entry["counter"]);
    let named = counters.filter(|it| it.is_object());
    let pairs: Option<BTreeMap<String, u64>> =
        named.map(|it| Some((it["name"].as_str()?.to_owned(), it["packets"].as_u64()?))).collect();
    pairs.filter(|pairs| !pairs.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_from_what_nft_prints() {
        let text = r#"{"nftables": [{"metainfo": {"version": "1"}},
            {"counter": {"family": "netdev", "name": "arp", "packets": 12, "bytes": 99}},
            {"counter": {"family": "netdev", "name": "other", "packets": 0, "bytes": 0}}]}"#;
        let counted = counted(text).expect("counters");
        assert_eq!(counted, [("arp".to_owned(), 12), (OTHER.to_owned(), 0)].into());
        assert_eq!(super::counted("{}"), None);
    }
}
