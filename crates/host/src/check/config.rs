//! The running configuration of a daemon of FRR, as `show running-config` prints it, and what its
//! route maps let through. Pure.

use std::collections::BTreeMap;

use selvedge_model::Prefix;

/// A running configuration: blocks like `router ospf`, each with its lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Config {
    blocks: Vec<Block>,
}

/// A line without indentation and those below it that have one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) head: String,
    lines: Vec<Line>,
}

/// A line of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    /// The address family that it belongs to, as `ipv4 unicast`; empty outside any.
    family: String,
    text: String,
}

impl Config {
    pub(super) fn parse(text: &str) -> Self {
        let mut blocks: Vec<Block> = Vec::new();
        let mut family = String::new();
        for raw in text.lines() {
            let line = raw.trim();
            if line.is_empty() || line == "!" {
                continue;
            }
            if !raw.starts_with(' ') {
                family.clear();
                blocks.push(Block { head: line.to_owned(), lines: Vec::new() });
            } else if let Some(name) = line.strip_prefix("address-family ") {
                name.clone_into(&mut family);
            } else if line == "exit-address-family" {
                family.clear();
            } else if let Some(block) = blocks.last_mut() {
                block.lines.push(Line { family: family.clone(), text: line.to_owned() });
            }
        }
        Self { blocks }
    }

    /// The block whose head is `head`, or that and more words that do not name a VRF.
    pub(super) fn block(&self, head: &str) -> Option<&Block> {
        let is = |block: &&Block| match block.head.strip_prefix(head) {
            Some("") => true,
            Some(rest) => rest.starts_with(' ') && !rest.contains(" vrf "),
            None => false,
        };
        self.blocks.iter().find(is)
    }

    /// The blocks that begin with a word.
    fn blocks<'a>(&'a self, word: &'a str) -> impl Iterator<Item = (&'a str, &'a Block)> {
        self.blocks.iter().filter_map(move |it| Some((it.head.strip_prefix(word)?, it)))
    }

    /// The interfaces that have a line which begins so, with the rest of that line.
    pub(super) fn interfaces<'a>(
        &'a self,
        start: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a str)> {
        let all = self.blocks("interface ");
        all.flat_map(move |(name, block)| block.rests("", start).map(move |rest| (name, rest)))
    }

    /// What this configuration says of lists and maps, completed by what `other` says: of FRR 10,
    /// these belong to a daemon of their own.
    pub(super) fn with_policies_of(mut self, other: Self) -> Self {
        let policy = |block: &Block| {
            ["route-map ", "ip prefix-list ", "ipv6 prefix-list "]
                .iter()
                .any(|start| block.head.starts_with(start))
        };
        if !self.blocks.iter().any(policy) {
            self.blocks.extend(other.blocks.into_iter().filter(policy));
        }
        self
    }
}

impl Block {
    /// What follows `start` on the lines of an address family (or outside any) that begin so.
    pub(super) fn rests<'a>(
        &'a self,
        family: &'a str,
        start: &'a str,
    ) -> impl Iterator<Item = &'a str> {
        let lines = self.lines.iter().filter(move |line| line.family == family);
        lines.filter_map(move |line| {
            let rest = line.text.strip_prefix(start)?;
            (rest.is_empty() || rest.starts_with(' ')).then(|| rest.trim())
        })
    }

    pub(super) fn has(&self, family: &str, line: &str) -> bool {
        self.rests(family, line).next().is_some()
    }
}

/// What a route map does with a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Lets it through.
    Permit,
    /// Keeps it back.
    Deny,
    /// That depends on more than the prefix.
    Unknown,
}

/// The route maps of a configuration.
#[derive(Debug)]
pub(super) struct Policies {
    maps: BTreeMap<String, BTreeMap<u32, Entry>>,
    lists: BTreeMap<(bool, String), BTreeMap<u32, Rule>>,
}

#[derive(Debug)]
struct Entry {
    permit: bool,
    matches: Vec<String>,
    plain: bool,
}

#[derive(Debug)]
struct Rule {
    permit: bool,
    /// `None` is any.
    prefix: Option<Prefix>,
    least: u8,
    most: u8,
}

impl Policies {
    pub(super) fn new(config: &Config) -> Self {
        let (maps, lists) = Default::default();
        let mut all = Self { maps, lists };
        for (rest, block) in config.blocks("route-map ") {
            all.add_entry(rest, block);
        }
        for (start, is_v4) in [("ip prefix-list ", true), ("ipv6 prefix-list ", false)] {
            for (rest, _) in config.blocks(start) {
                all.add_rule(rest, is_v4);
            }
        }
        all
    }

    fn add_entry(&mut self, head: &str, block: &Block) -> Option<()> {
        let mut words = head.split_whitespace();
        let (name, action) = (words.next()?, words.next()?);
        let number = words.next()?.parse().ok()?;
        let matches = block.rests("", "match").map(ToOwned::to_owned).collect();
        let plain = !["on-match", "call"].iter().any(|word| block.has("", word));
        let entry = Entry { permit: action == "permit", matches, plain };
        self.maps.entry(name.to_owned()).or_default().insert(number, entry);
        Some(())
    }

    fn add_rule(&mut self, rest: &str, is_v4: bool) -> Option<()> {
        let words: Vec<&str> = rest.split_whitespace().collect();
        let (name, number) = (words.first()?, words.get(2)?.parse().ok()?);
        let rule = rule(words.get(3..)?)?;
        self.lists.entry((is_v4, (*name).to_owned())).or_default().insert(number, rule);
        Some(())
    }

    pub(super) fn has(&self, map: &str) -> bool {
        self.maps.contains_key(map)
    }

    /// What the map does with a prefix in a daemon that knows `both` families, or only that of
    /// the prefix.
    pub(super) fn verdict(&self, map: &str, prefix: Prefix, both: bool) -> Verdict {
        for entry in self.maps.get(map).into_iter().flat_map(BTreeMap::values) {
            match self.matches(entry, prefix, both) {
                Some(false) => {}
                Some(true) if entry.permit => return Verdict::Permit,
                Some(true) => return Verdict::Deny,
                None => return Verdict::Unknown,
            }
        }
        Verdict::Deny
    }

    /// Whether all conditions of the entry hold. One that does not hold is enough to know.
    fn matches(&self, entry: &Entry, prefix: Prefix, both: bool) -> Option<bool> {
        let each: Vec<Option<bool>> =
            entry.matches.iter().map(|text| self.holds(text, prefix, both)).collect();
        match (each.contains(&Some(false)), each.contains(&None) || !entry.plain) {
            (true, _) => Some(false),
            (false, true) => None,
            (false, false) => Some(true),
        }
    }

    fn holds(&self, condition: &str, prefix: Prefix, both: bool) -> Option<bool> {
        let words: Vec<&str> = condition.split_whitespace().collect();
        let (is_v4, list) = match words.as_slice() {
            ["ip", "address", "prefix-list", list] => (true, list),
            ["ipv6", "address", "prefix-list", list] => (false, list),
            _ => return None,
        };
        if is_v4 != prefix.addr().is_ipv4() {
            return Some(!both);
        }
        // A list that does not exist lets nothing through.
        let rules = self.lists.get(&(is_v4, (*list).to_owned()));
        let first = rules.into_iter().flat_map(BTreeMap::values).find(|rule| rule.covers(prefix));
        Some(first.is_some_and(|rule| rule.permit))
    }
}

impl Rule {
    fn covers(&self, prefix: Prefix) -> bool {
        let inside = self.prefix.is_none_or(|outer| outer.contains(prefix.addr()));
        inside && (self.least..=self.most).contains(&prefix.len())
    }
}

/// `permit 10.0.0.0/8 ge 24 le 25`.
fn rule(words: &[&str]) -> Option<Rule> {
    let (action, what) = (words.first()?, words.get(1)?);
    let prefix: Option<Prefix> = (*what != "any").then(|| what.parse().ok()).flatten();
    let bound = |name: &str| {
        let at = words.iter().position(|word| *word == name)?;
        words.get(at + 1)?.parse::<u8>().ok()
    };
    let own = prefix.map_or(0, |prefix| prefix.len());
    let widest = if prefix.is_none_or(|prefix| prefix.addr().is_ipv6()) { 128 } else { 32 };
    let (least, most) = (bound("ge"), bound("le"));
    let most = most.unwrap_or(if least.is_some() || prefix.is_none() { widest } else { own });
    Some(Rule { permit: *action == "permit", prefix, least: least.unwrap_or(own), most })
}

#[cfg(test)]
mod tests;
