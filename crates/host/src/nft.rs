//! The switch that silences all networks of this gateway at once, as one nftables transaction.
//!
//! It consists of two tables of our own, `arp selvedge` and `inet selvedge`. Nothing else in the
//! firewall is read or changed, and lifting the silence deletes just these tables.
//!
//! The transaction always carries all of the rules. A table that lies ready and *dormant* would be
//! woken in 5 ms instead of 30 ms (2000 bridges), but an operator who loads the firewall anew
//! flushes it away, an agent that was killed leaves it behind in a state that the next one has to
//! guess, and the right to serve has a second to end.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::packet::Mute;

/// How long `nft` may take; it must fit well into the time in which a gateway without the right
/// to serve has to be silent.
const PATIENCE: Duration = Duration::from_millis(700);

/// The lines that remove a table of ours, such as `"inet selvedge"`. Adding one that exists does
/// nothing, so that deleting it right after never fails.
macro_rules! clear {
    ($table:literal) => {
        concat!("add table ", $table, "\ndelete table ", $table, "\n")
    };
}
pub(crate) use clear;

const CLEAR: &str = concat!(clear!("arp selvedge"), clear!("inet selvedge"));

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

/// The switch of one driver: all clones turn the same one, at any time, also while the driver is
/// at work.
///
/// `nft` runs in the network namespace of the thread that turns the switch.
#[derive(Clone, Debug, Default)]
pub struct Silencer {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    nft: Nft,
    mute: Mute,
    /// What a silence covers, as the driver knows it. The lock is held for a copy only.
    scope: Mutex<Arc<Scope>>,
    /// Transactions take turns, in the order in which they were asked for.
    turn: tokio::sync::Mutex<()>,
}

impl Silencer {
    /// A switch for what `scope` covers, which is not turned.
    pub(crate) fn new(scope: Scope) -> Self {
        let shared = Shared { scope: Mutex::new(Arc::new(scope)), ..Shared::default() };
        Self { shared: Arc::new(shared) }
    }

    /// Silences all networks of the gateway in one transaction (ARP, ND, RA, forwarding), or
    /// lifts that again. Announcements end at once, before the transaction is made, and also if
    /// it fails; they go on when the silence is lifted.
    ///
    /// # Errors
    /// If `nft` is missing or refuses. Lifting that fails leaves the gateway silent.
    pub async fn silence(&self, on: bool) -> Result<(), Error> {
        let shared = &self.shared;
        if on {
            shared.mute.set(true);
        }
        let _turn = shared.turn.lock().await;
        if on {
            // Whoever had the turn before may have lifted it.
            shared.mute.set(true);
            return shared.nft.silence(&self.scope()).await;
        }
        shared.nft.lift().await?;
        shared.mute.set(false);
        Ok(())
    }

    /// Whether the gateway was silenced and that was not lifted.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.shared.mute.is_on()
    }

    /// What stops announcements.
    pub(crate) fn mute(&self) -> Mute {
        self.shared.mute.clone()
    }

    /// Tells what there is to silence from now on. What has come while all is silenced is silenced
    /// at once.
    ///
    /// # Errors
    /// If `nft` is missing or refuses.
    pub(crate) async fn cover(&self, scope: Scope) -> Result<(), Error> {
        if *self.scope() == scope {
            return Ok(());
        }
        *self.shared.scope.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(scope);
        let _turn = self.shared.turn.lock().await;
        if self.is_silent() { self.shared.nft.silence(&self.scope()).await } else { Ok(()) }
    }

    fn scope(&self) -> Arc<Scope> {
        Arc::clone(&self.shared.scope.lock().unwrap_or_else(PoisonError::into_inner))
    }
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

    pub(crate) async fn apply(&self, transaction: &str) -> Result<(), Error> {
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

pub(crate) fn quoted(names: &BTreeSet<String>) -> String {
    listed(names.iter().map(|name| format!("\"{name}\"")))
}

pub(crate) fn listed<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
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
    use crate::test_support;

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

    fn run(test: &str, body: impl AsyncFnOnce() + Send) {
        let Some(namespace) = test_support::namespace(test) else { return };
        namespace.run(|| test_support::runtime().block_on(body())).expect("entered");
    }

    fn listed_rules() -> String {
        let output = std::process::Command::new("nft").args(["list", "ruleset"]).output();
        String::from_utf8(output.expect("nft runs").stdout).expect("text")
    }

    fn bridges(count: u32) -> Scope {
        let bridges = (1..=count).map(|number| format!("br{number}")).collect();
        Scope { bridges, ..Scope::default() }
    }

    #[test]
    fn what_comes_while_all_is_silent_is_silenced_too() {
        run("nft: cover", async || {
            let silencer = Silencer::new(bridges(1));
            silencer.cover(bridges(2)).await.expect("noted");
            assert_eq!(listed_rules(), "", "nothing is silenced yet");
            silencer.silence(true).await.expect("silent");
            silencer.cover(bridges(3)).await.expect("silenced");
            assert!(listed_rules().contains("\"br3\""));
            silencer.silence(false).await.expect("lifted");
            assert_eq!(listed_rules(), "");
        });
    }

    /// It would be refused as too slow otherwise.
    #[test]
    fn thousands_of_bridges_are_silenced_in_time() {
        run("nft: many", async || {
            let silencer = Silencer::new(bridges(2000));
            silencer.silence(true).await.expect("silent");
            assert!(silencer.is_silent() && listed_rules().contains("\"br2000\""));
        });
    }

    #[test]
    fn all_clones_turn_one_switch_and_the_last_word_counts() {
        run("nft: turns", async || {
            let silencer = Silencer::new(bridges(10));
            for last in [true, false, true] {
                let turn = |on| {
                    let clone = silencer.clone();
                    async move { clone.silence(on).await }
                };
                let (first, second) = tokio::join!(turn(!last), turn(last));
                first.and(second).expect("turned");
                assert_eq!(silencer.is_silent(), last);
                assert_eq!(listed_rules().is_empty(), !last);
            }
        });
    }

    #[tokio::test]
    async fn announcements_end_even_if_the_transaction_fails() {
        let nft = Nft { program: "/nonexistent/nft".into() };
        let silencer = Silencer { shared: Arc::new(Shared { nft, ..Shared::default() }) };
        silencer.silence(true).await.expect_err("missing");
        assert!(silencer.is_silent() && silencer.mute().is_on());
        silencer.silence(false).await.expect_err("missing");
        assert!(silencer.is_silent(), "what could not be lifted is there still");
    }
}
