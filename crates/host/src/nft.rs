//! The switch that silences all networks of this gateway at once, as one nftables transaction.
//!
//! It consists of two tables of our own, `arp selvedge` and `inet selvedge`. Nothing else in the
//! firewall is read or changed, and lifting the silence deletes just these tables.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// How long `nft` may take; it must fit well into the time in which a gateway without the right
/// to serve has to be silent.
const PATIENCE: Duration = Duration::from_millis(700);

/// Adding a table that exists does nothing, so that deleting it right after never fails.
const CLEAR: &str = "add table arp selvedge\ndelete table arp selvedge\n\
                     add table inet selvedge\ndelete table inet selvedge\n";

/// Why the networks were not silenced, or are silent still. As it is one transaction, nothing
/// was changed unless it is said.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such program.
    #[error("cannot run {}: {source}; install the package nftables", program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// It ran too long and was ended. Whether it took effect is unknown.
    #[error("{} has not finished within {} ms", program.display(), PATIENCE.as_millis())]
    Slow {
        /// The program.
        program: PathBuf,
    },
    /// It refused the transaction.
    #[error("nft refuses the transaction: {0}")]
    Refused(String),
}

/// What a silence covers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// The bridges whose ARP, ND, RA and forwarding end.
    pub bridges: BTreeSet<String>,
    /// The uplink, if next-hop addresses are held there.
    pub uplink: Option<String>,
    /// These next-hop addresses, for which the uplink no longer answers.
    pub next_hops: BTreeSet<IpAddr>,
}

/// The `nft` program, run in the network namespace of the calling thread.
#[derive(Clone, Debug)]
pub struct Nft {
    program: PathBuf,
}

impl Default for Nft {
    fn default() -> Self {
        Self { program: "nft".into() }
    }
}

impl Nft {
    /// Silences what `scope` covers, instead of what was silenced before.
    ///
    /// # Errors
    /// If `nft` is missing or refuses.
    pub async fn silence(&self, scope: &Scope) -> Result<(), Error> {
        self.apply(&ruleset(scope)).await
    }

    /// Lifts the silence, if there is one.
    ///
    /// # Errors
    /// If `nft` is missing or refuses.
    pub async fn lift(&self) -> Result<(), Error> {
        self.apply(CLEAR).await
    }

    async fn apply(&self, transaction: &str) -> Result<(), Error> {
        let output = tokio::time::timeout(PATIENCE, self.run(transaction)).await;
        let output = output.map_err(|_| Error::Slow { program: self.program.clone() })?;
        let failed = |source| Error::Run { program: self.program.clone(), source };
        let output = output.map_err(failed)?;
        match output.status.success() {
            true => Ok(()),
            false => Err(Error::Refused(excerpt(&output.stderr))),
        }
    }

    async fn run(&self, transaction: &str) -> io::Result<Output> {
        let mut command = Command::new(&self.program);
        command.args(["-f", "-"]).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // If it ends before it has read all, its exit status says why.
            let _ = stdin.write_all(transaction.as_bytes()).await;
        }
        child.wait_with_output().await
    }
}

/// The whole transaction. The hooks come before those of any other table (priority -400), so
/// that nothing of ours depends on what an operator's firewall lets through.
fn ruleset(scope: &Scope) -> String {
    let arp = ChainSet {
        set: quoted(&scope.bridges),
        chains: [
            ("input", bridge_rule(scope, "iifname @bridges drop") + &arp_input(scope)),
            ("output", bridge_rule(scope, "oifname @bridges drop")),
            ("forward", String::new()),
        ],
    };
    let inet = ChainSet {
        set: quoted(&scope.bridges),
        chains: [
            ("input", nd_input(scope)),
            ("output", bridge_rule(scope, ND_OUTPUT)),
            ("forward", bridge_rule(scope, FORWARD)),
        ],
    };
    format!("{CLEAR}{}{}", arp.table("arp"), inet.table("inet"))
}

const ND_OUTPUT: &str = "oifname @bridges icmpv6 type \
                         { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert } drop";
const FORWARD: &str = "iifname @bridges drop\n  oifname @bridges drop";

struct ChainSet {
    set: String,
    chains: [(&'static str, String); 3],
}

impl ChainSet {
    fn table(&self, family: &str) -> String {
        let mut text = format!("table {family} selvedge {{\n");
        if !self.set.is_empty() {
            let elements = &self.set;
            let _ = writeln!(text, " set bridges {{ type ifname; elements = {{ {elements} }}; }}");
        }
        for (hook, rules) in self.chains.iter().filter(|(_, rules)| !rules.is_empty()) {
            let _ = writeln!(text, " chain {hook} {{");
            let _ = writeln!(text, "  type filter hook {hook} priority -400; policy accept;");
            let _ = writeln!(text, "  {rules}\n }}");
        }
        text + "}\n"
    }
}

/// A rule that names the set of bridges, unless the set is empty and so does not exist.
fn bridge_rule(scope: &Scope, rule: &str) -> String {
    if scope.bridges.is_empty() { String::new() } else { rule.to_owned() }
}

fn arp_input(scope: &Scope) -> String {
    let held: Vec<Ipv4Addr> = scope
        .next_hops
        .iter()
        .filter_map(|addr| match addr {
            IpAddr::V4(addr) => Some(*addr),
            IpAddr::V6(_) => None,
        })
        .collect();
    match &scope.uplink {
        Some(uplink) if !held.is_empty() => {
            format!("\n  iifname \"{uplink}\" arp daddr ip {{ {} }} drop", listed(held))
        }
        Some(_) | None => String::new(),
    }
}

/// The target of a solicitation is the field after 8 bytes of ICMPv6 header (RFC 4861, section
/// 4.3); older versions of `nft` have no name for it.
fn nd_input(scope: &Scope) -> String {
    let held: Vec<Ipv6Addr> = scope
        .next_hops
        .iter()
        .filter_map(|addr| match addr {
            IpAddr::V6(addr) => Some(*addr),
            IpAddr::V4(_) => None,
        })
        .collect();
    let numbers = listed(held.iter().map(|addr| format!("{:#034x}", u128::from(*addr))));
    match &scope.uplink {
        Some(uplink) if !held.is_empty() => format!(
            "iifname \"{uplink}\" icmpv6 type nd-neighbor-solicit @th,64,128 {{ {numbers} }} drop"
        ),
        Some(_) | None => String::new(),
    }
}

fn quoted(names: &BTreeSet<String>) -> String {
    listed(names.iter().map(|name| format!("\"{name}\"")))
}

fn listed<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    items.join(", ")
}

fn excerpt(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope() -> Scope {
        Scope {
            bridges: ["br1".to_owned(), "br2".to_owned()].into(),
            uplink: Some("up0".to_owned()),
            next_hops: [
                "172.20.0.9".parse().expect("address"),
                "fd00::9".parse().expect("address"),
            ]
            .into(),
        }
    }

    #[test]
    fn a_silence_covers_bridges_and_next_hops() {
        let rules = ruleset(&scope());
        for line in [
            "set bridges { type ifname; elements = { \"br1\", \"br2\" }; }",
            "iifname @bridges drop",
            "oifname @bridges drop",
            "iifname \"up0\" arp daddr ip { 172.20.0.9 } drop",
            "@th,64,128 { 0xfd000000000000000000000000000009 } drop",
            "nd-router-advert",
        ] {
            assert!(rules.contains(line), "{line} is not in\n{rules}");
        }
    }

    #[test]
    fn no_networks_make_no_rules() {
        let rules = ruleset(&Scope::default());
        assert!(!rules.contains("@bridges") && !rules.contains("chain"), "{rules}");
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let nft = Nft { program: "/nonexistent/nft".into() };
        let error = nft.lift().await.expect_err("missing");
        let text = error.to_string();
        assert!(text.starts_with("cannot run /nonexistent/nft: "), "{text}");
        assert!(text.ends_with("install the package nftables"), "{text}");
    }
}
