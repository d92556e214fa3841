//! What this host's firewall does with a packet, as far as its rules tell: nothing is changed.
//!
//! Rules are read as `nft -j list ruleset` prints them (libnftables-json(5)). What a match says of
//! a packet of which only a few things are known may be open; then the verdict is open, too, and
//! no operator is sent after a rule that lets the packet through.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

/// How long `nft` may take. With many sets it takes its time.
const PATIENCE: Duration = Duration::from_secs(10);

/// Chains that jump to each other deeper than this are refused by the kernel.
const MAX_DEPTH: usize = 16;

/// Why the rules could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such program, or it ran too long.
    #[error("cannot run nft: {0}; install the package nftables")]
    Run(io::Error),
    /// It failed.
    #[error("nft does not list the rules: {0}")]
    Refused(String),
    /// It says something else than its documentation.
    #[error("nft lists the rules in an unknown form: {0}")]
    Malformed(serde_json::Error),
}

/// What is known of a packet that begins a new exchange.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Whether it is IPv6, not IPv4.
    pub v6: bool,
    /// The port to which it goes, if it is a UDP packet.
    pub udp: Option<u16>,
    /// The interface by which it comes, if known; else any but the loopback interface.
    pub input: Option<&'a str>,
    /// The interface by which it leaves: it is forwarded. `None` if it is for this host.
    pub output: Option<&'a str>,
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It passes.
    Accepted,
    /// It is dropped by this chain.
    Dropped(Place),
    /// It depends on more than is known.
    Open,
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The family of its table.
    pub family: String,
    /// Its table.
    pub table: String,
    /// Its name.
    pub chain: String,
}

/// The rules of a network namespace.
#[derive(Clone, Debug, Default)]
pub struct Ruleset {
    chains: Vec<Chain>,
}

#[derive(Clone, Debug)]
struct Chain {
    place: Place,
    /// Where packets enter it, and its turn there; `None` for one that others jump to.
    hook: Option<(String, i64)>,
    drops: bool,
    rules: Vec<Vec<Value>>,
}

/// What a match, a rule or a chain says; what it depends on may not be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    Yes,
    No,
    Perhaps,
}

/// How a walk along a chain goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Next,
    Accept,
    Drop,
    Return,
}

impl Ruleset {
    /// The rules of the network namespace of the calling thread.
    ///
    /// # Errors
    /// If `nft` is missing or refuses.
    pub async fn read() -> Result<Self, Error> {
        let mut command = Command::new("nft");
        command.args(["-j", "list", "ruleset"]).stdin(Stdio::null()).kill_on_drop(true);
        let output = timeout(PATIENCE, command.output()).await;
        let output = output.map_err(|_| Error::Run(io::ErrorKind::TimedOut.into()))?;
        let output = output.map_err(Error::Run)?;
        match output.status.success() {
            true => Self::parse(&String::from_utf8_lossy(&output.stdout)),
            false => Err(Error::Refused(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
        }
    }

    /// The rules as `nft -j` prints them.
    ///
    /// # Errors
    /// If that is no JSON.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let all: Value = serde_json::from_str(text).map_err(Error::Malformed)?;
        let items = all["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut chains: Vec<Chain> = items.iter().filter_map(|it| chain(&it["chain"])).collect();
        for rule in items.iter().map(|it| &it["rule"]).filter(|rule| rule.is_object()) {
            let place = place(rule, "chain");
            if let Some(chain) = chains.iter_mut().find(|chain| chain.place == place) {
                chain.rules.push(rule["expr"].as_array().cloned().unwrap_or_default());
            }
        }
        Ok(Self { chains })
    }

    /// Whether there is such a chain.
    #[must_use]
    pub fn has(&self, place: &Place) -> bool {
        self.chains.iter().any(|chain| chain.place == *place)
    }

    /// What becomes of a packet.
    #[must_use]
    pub fn judge(&self, packet: Packet<'_>) -> Verdict {
        let hook = if packet.output.is_some() { "forward" } else { "input" };
        let mut open = false;
        for chain in self.entered(hook, packet) {
            match self.enter(chain, packet) {
                Holds::Yes => {}
                Holds::No => return Verdict::Dropped(chain.place.clone()),
                Holds::Perhaps => open = true,
            }
        }
        if open { Verdict::Open } else { Verdict::Accepted }
    }

    /// The chains by which it passes, in their order.
    fn entered(&self, hook: &str, packet: Packet<'_>) -> Vec<&Chain> {
        let family = if packet.v6 { "ip6" } else { "ip" };
        let fits = |chain: &&Chain| ["inet", family].contains(&chain.place.family.as_str());
        let at = |chain: &&Chain| chain.hook.as_ref().is_some_and(|(name, _)| name == hook);
        let mut chains: Vec<&Chain> = self.chains.iter().filter(fits).filter(at).collect();
        chains.sort_by_key(|chain| chain.hook.as_ref().map(|(_, priority)| *priority));
        chains
    }

    /// Whether it leaves a chain alive by which it has entered.
    fn enter(&self, chain: &Chain, packet: Packet<'_>) -> Holds {
        let mut perhaps = Perhaps::default();
        let step = match self.walk(chain, packet, &mut perhaps, 0) {
            Step::Next | Step::Return if chain.drops => Step::Drop,
            Step::Next | Step::Return => Step::Accept,
            step @ (Step::Accept | Step::Drop) => step,
        };
        match (step, perhaps.accepted, perhaps.dropped) {
            (Step::Drop, false, _) => Holds::No,
            (Step::Accept, _, false) => Holds::Yes,
            _ => Holds::Perhaps,
        }
    }

    fn walk(&self, chain: &Chain, packet: Packet<'_>, perhaps: &mut Perhaps, depth: usize) -> Step {
        for (holds, action) in chain.rules.iter().flat_map(|rule| actions(rule, packet)) {
            let step = self.act(chain, &action, packet, perhaps, depth);
            match holds {
                Holds::Yes if step != Step::Next => return step,
                Holds::Perhaps => perhaps.note(step),
                Holds::Yes | Holds::No => {}
            }
        }
        Step::Next
    }

    fn act(
        &self,
        from: &Chain,
        action: &Value,
        packet: Packet<'_>,
        perhaps: &mut Perhaps,
        depth: usize,
    ) -> Step {
        let Some((name, value)) = action.as_object().and_then(|it| it.iter().next()) else {
            return Step::Next;
        };
        match name.as_str() {
            "accept" => Step::Accept,
            "drop" | "reject" => Step::Drop,
            "return" => Step::Return,
            "jump" | "goto" => {
                let place = Place { chain: text(&value["target"]), ..from.place.clone() };
                let target = self.chains.iter().find(|chain| chain.place == place);
                let Some(target) = target.filter(|_| depth < MAX_DEPTH) else { return Step::Next };
                match self.walk(target, packet, perhaps, depth + 1) {
                    // Back to the rule behind the jump.
                    Step::Return | Step::Next if name == "jump" => Step::Next,
                    Step::Next => Step::Return,
                    step @ (Step::Accept | Step::Drop | Step::Return) => step,
                }
            }
            _ => Step::Next,
        }
    }
}

/// What may have become of the packet before.
#[derive(Clone, Copy, Debug, Default)]
struct Perhaps {
    accepted: bool,
    dropped: bool,
}

impl Perhaps {
    fn note(&mut self, step: Step) {
        // After a return that may have been, anything may.
        self.accepted |= matches!(step, Step::Accept | Step::Return);
        self.dropped |= matches!(step, Step::Drop | Step::Return);
    }
}

fn chain(value: &Value) -> Option<Chain> {
    value.is_object().then(|| Chain {
        place: place(value, "name"),
        hook: value["hook"]
            .as_str()
            .map(|hook| (hook.to_owned(), value["prio"].as_i64().unwrap_or(0))),
        drops: value["policy"] == "drop",
        rules: Vec::new(),
    })
}

fn place(value: &Value, chain: &str) -> Place {
    Place {
        family: text(&value["family"]),
        table: text(&value["table"]),
        chain: text(&value[chain]),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// What a rule does, and whether it does so with the packet.
fn actions(rule: &[Value], packet: Packet<'_>) -> Vec<(Holds, Value)> {
    let mut holds = Holds::Yes;
    let mut actions = Vec::new();
    for statement in rule {
        let Some((name, value)) = statement.as_object().and_then(|it| it.iter().next()) else {
            holds = holds.and(Holds::Perhaps);
            continue;
        };
        match name.as_str() {
            "match" => holds = holds.and(matches(value, packet)),
            "vmap" => actions.extend(cases(value, packet, holds)),
            "accept" | "drop" | "reject" | "return" | "jump" | "goto" => {
                actions.push((holds, statement.clone()));
            }
            "counter" | "log" | "comment" | "mangle" | "notrack" => {}
            // Limits, and what iptables has of its own.
            _ => holds = holds.and(Holds::Perhaps),
        }
    }
    actions
}

/// The cases of a verdict map.
fn cases(map: &Value, packet: Packet<'_>, before: Holds) -> Vec<(Holds, Value)> {
    let pairs = map["data"]["set"].as_array().map(Vec::as_slice).unwrap_or_default();
    let case = |pair: &Value| {
        let held = compare(&map["key"], &pair[0], packet);
        (before.and(held), pair[1].clone())
    };
    pairs.iter().map(case).collect()
}

fn matches(value: &Value, packet: Packet<'_>) -> Holds {
    let held = compare(&value["left"], &value["right"], packet);
    match value["op"].as_str() {
        Some("==" | "in") => held,
        Some("!=") => held.not(),
        _ => Holds::Perhaps,
    }
}

impl Holds {
    const fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::Yes, Self::Yes) => Self::Yes,
            (Self::Perhaps, _) | (_, Self::Perhaps) => Self::Perhaps,
        }
    }

    const fn not(self) -> Self {
        match self {
            Self::Yes => Self::No,
            Self::No => Self::Yes,
            Self::Perhaps => Self::Perhaps,
        }
    }

    const fn of(known: bool) -> Self {
        if known { Self::Yes } else { Self::No }
    }
}

/// Whether what `left` names is, for this packet, what `right` says.
fn compare(left: &Value, right: &Value, packet: Packet<'_>) -> Holds {
    let (family, protocol) = if packet.v6 { ("ipv6", "ip6") } else { ("ipv4", "ip") };
    let is = |known: &[&str]| one_of(right, &|value| known.iter().any(|it| value == it));
    if let Some(key) = left["meta"]["key"].as_str() {
        return match (key, packet.udp) {
            ("nfproto", _) => is(&[family]),
            ("protocol", _) => is(&[protocol]),
            ("l4proto", Some(_)) => is(&["udp"]).or_number(right, 17),
            ("iif" | "iifname", _) => interface(right, packet.input),
            ("oif" | "oifname", _) if packet.output.is_some() => interface(right, packet.output),
            _ => Holds::Perhaps,
        };
    }
    if left["ct"]["key"] == "state" {
        return is(&["new"]);
    }
    let payload = &left["payload"];
    match (payload["protocol"].as_str(), payload["field"].as_str(), packet.udp) {
        (Some("udp" | "th"), Some("dport"), Some(port)) => number(right, port.into()),
        (Some("tcp" | "sctp" | "dccp" | "icmp" | "icmpv6" | "igmp"), _, Some(_)) => Holds::No,
        (Some("ip"), _, _) if packet.v6 => Holds::No,
        (Some("ip6"), _, _) if !packet.v6 => Holds::No,
        (Some("ip"), Some("protocol"), Some(_)) | (Some("ip6"), Some("nexthdr"), Some(_)) => {
            is(&["udp"]).or_number(right, 17)
        }
        _ => Holds::Perhaps,
    }
}

impl Holds {
    /// Protocols stand there by name or by number.
    fn or_number(self, right: &Value, wanted: u64) -> Self {
        if self == Self::Yes { self } else { number(right, wanted) }
    }
}

fn interface(right: &Value, name: Option<&str>) -> Holds {
    let Some(name) = name else {
        // It comes from outside.
        let inside = one_of(right, &|value| value == "lo");
        return if inside == Holds::Yes { Holds::No } else { Holds::Perhaps };
    };
    let fits = |pattern: &Value| match pattern.as_str() {
        Some(pattern) => match pattern.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => name == pattern,
        },
        None => false,
    };
    one_of(right, &fits)
}

fn number(right: &Value, wanted: u64) -> Holds {
    one_of(right, &|value| match value["range"].as_array().map(Vec::as_slice) {
        Some([first, last]) => {
            let bounds = (first.as_u64(), last.as_u64());
            matches!(bounds, (Some(first), Some(last)) if (first..=last).contains(&wanted))
        }
        _ => value.as_u64() == Some(wanted),
    })
}

/// Whether a value, or one of several, fits. What a named set holds stands elsewhere.
fn one_of(right: &Value, fits: &dyn Fn(&Value) -> bool) -> Holds {
    if right.as_str().is_some_and(|name| name.starts_with('@')) {
        return Holds::Perhaps;
    }
    match right["set"].as_array().or(right.as_array()) {
        Some(several) => Holds::of(several.iter().any(fits)),
        None => Holds::of(fits(right)),
    }
}

#[cfg(test)]
mod tests;
