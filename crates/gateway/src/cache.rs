//! What the store says, parsed: the keys of [`crate::keys`] at one revision, kept up to date by
//! the watch. Values that make no sense are kept apart as problems, each named by its key.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use selvedge_model::{NodeName, Vni, VniRanges};
use serde::{Deserialize, Serialize};

use crate::core::{Memory, NodeRole, Remembered};
use crate::keys::{Field, Key};
use crate::kv::{Event, KeyValue, LeaseId, Revision, Snapshot};
use crate::machine::State;
use crate::placement::Ring;
use crate::probe::{Electorate, MAX_VOTERS};

/// A node's entry on the ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its ids on the ring.
    pub ids: Vec<u64>,
    /// The lease it hangs on.
    pub lease: LeaseId,
}

/// A node's registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Live {
    /// The revision at which it came into being: names this run of the agent.
    pub incarnation: Revision,
    /// The lease it hangs on.
    pub lease: Option<LeaseId>,
    /// What the agent says of itself; `None` if that cannot be read.
    pub value: Option<LiveValue>,
}

/// The value of a registration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveValue {
    /// Who holds the name: tells a restarted agent from a second one with the same name.
    pub identity: String,
    /// The agent's version.
    #[serde(default)]
    pub version: String,
    /// The networks that it can serve; `None` for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub networks: Option<VniRanges>,
}

/// The value of a roster entry. Fields of a newer version are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RosterValue {
    /// Whether an operator has drained the node.
    #[serde(default)]
    pub drained: bool,
    /// Whether the node serves networks, or only votes.
    #[serde(default)]
    pub role: NodeRole,
    /// The public half of its identity key (hexadecimal), by which its probes are authenticated.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub identity: String,
    /// Where it is reached by probes, one address for each path; none: it does not vote.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub probe: Vec<SocketAddr>,
    /// Whether it has left in good order, serves nothing and does not vote until it is back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub left: bool,
    /// What this version does not know.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

/// The value of a verdict. One that cannot be read counts all the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerdictValue {
    /// Who has written it.
    #[serde(default)]
    pub by: String,
    /// Why, for people.
    #[serde(default)]
    pub reason: String,
    /// When, in milliseconds of Unix time, by the writer's clock.
    #[serde(default)]
    pub at_ms: u64,
}

/// A change of owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Counts the owners of this network.
    pub epoch: u64,
    /// The owner from here on.
    pub owner: NodeName,
    /// Why it changed.
    pub reason: String,
    /// When, in milliseconds of Unix time, by the clock of the new owner.
    pub at_ms: u64,
}

/// The last changes of a network's owner, the latest last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// At most [`History::LENGTH`] of them.
    pub changes: Vec<Change>,
    /// Where the epochs go on if there is no change to go on from.
    #[serde(skip)]
    floor: u64,
}

impl History {
    /// How many changes are kept.
    pub const LENGTH: usize = 16;

    /// In place of one that cannot be read. An epoch takes a revision or more, so the revision
    /// of the unreadable value is past all epochs that it may have held.
    fn unreadable(modified: Revision) -> Self {
        Self { changes: Vec::new(), floor: modified.0.unsigned_abs() }
    }

    /// The number of the present owner; zero before the first.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.changes.last().map_or(self.floor, |change| change.epoch)
    }

    /// The history with one change more.
    #[must_use]
    pub fn with(&self, owner: NodeName, reason: String, at_ms: u64) -> Self {
        let mut changes = self.changes.clone();
        changes.push(Change { epoch: self.epoch() + 1, owner, reason, at_ms });
        changes.drain(..changes.len().saturating_sub(Self::LENGTH));
        Self { changes, floor: 0 }
    }
}

/// The value of one key of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot<T> {
    /// What it says.
    pub value: T,
    /// The revision of its last change.
    pub modified: Revision,
    /// The lease it hangs on.
    pub lease: Option<LeaseId>,
}

/// The three keys of a network; `None` for one that does not exist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// The state.
    pub state: Option<Slot<State>>,
    /// The owner.
    pub current: Option<Slot<NodeName>>,
    /// The owner to be; the value is `None` where the predecessor writes an empty one.
    pub next: Option<Slot<Option<NodeName>>>,
}

impl Network {
    /// The state; a network without one is unassigned.
    #[must_use]
    pub fn state(&self) -> State {
        self.state.as_ref().map_or(State::Unassigned, |slot| slot.value)
    }

    /// The owner.
    #[must_use]
    pub fn current(&self) -> Option<&NodeName> {
        self.current.as_ref().map(|slot| &slot.value)
    }

    /// The owner to be.
    #[must_use]
    pub fn next(&self) -> Option<&NodeName> {
        self.next.as_ref().and_then(|slot| slot.value.as_ref())
    }
}

/// The node that starts planned moves; `None` if what stands there is no name.
pub type Planner = Slot<Option<NodeName>>;

/// What a change in the store concerns.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Concern {
    /// One network.
    Network(Vni),
    /// Which nodes there are, and what is known of them.
    Nodes,
    /// Who plans.
    Planner,
    /// Nobody.
    Nothing,
}

/// The store's contents as far as they concern the gateway plane.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    /// Everything up to this revision is in here.
    pub revision: Revision,
    /// Who may be given networks.
    pub nodes: BTreeMap<NodeName, Node>,
    /// Who is registered.
    pub live: BTreeMap<NodeName, Live>,
    /// Who takes part.
    pub roster: BTreeMap<NodeName, Slot<RosterValue>>,
    /// Which incarnations count as dead.
    pub verdicts: BTreeMap<(NodeName, Revision), VerdictValue>,
    /// Which incarnations are doubted by the only other voter, with the revision of the doubt.
    pub suspicions: BTreeMap<(NodeName, Revision), Revision>,
    /// The last revision that changed anything about the nodes.
    pub nodes_revision: Revision,
    /// The networks that have any key.
    pub networks: BTreeMap<Vni, Network>,
    /// Those among them that are in a planned move.
    pub moving: BTreeSet<Vni>,
    /// Their histories.
    pub history: BTreeMap<Vni, History>,
    /// Who plans.
    pub planner: Option<Planner>,
    /// Keys that make no sense, each with the reason. Networks among them are left alone.
    pub problems: BTreeMap<String, String>,
    /// The networks that name a node as the owner or the owner to be.
    named: BTreeMap<NodeName, BTreeSet<Vni>>,
    /// The lease of each node's last registration: tells what an agent of ours left behind from
    /// the keys of a predecessor's.
    registered_under: BTreeMap<NodeName, LeaseId>,
}

impl Cache {
    /// Takes in everything anew.
    pub fn replace(&mut self, snapshot: Snapshot) {
        *self = Self {
            revision: snapshot.revision,
            // What was deleted before leaves no trace in it.
            nodes_revision: snapshot.revision,
            registered_under: std::mem::take(&mut self.registered_under),
            ..Self::default()
        };
        for kv in snapshot.keys {
            self.apply(&Event::Put(kv));
        }
    }

    /// Takes in what an earlier run knew of the nodes, until everything is read anew.
    pub(crate) fn recall(&mut self, memory: Memory) {
        self.nodes_revision = memory.revision;
        for (name, Remembered { incarnation, roster }) in memory.nodes {
            let live =
                incarnation.map(|incarnation| Live { incarnation, lease: None, value: None });
            self.live.extend(live.map(|live| (name.clone(), live)));
            let slot = Slot { value: roster, modified: memory.revision, lease: None };
            self.roster.insert(name, slot);
        }
    }

    /// Takes in one change.
    pub fn apply(&mut self, event: &Event) -> Concern {
        let (text, put) = match event {
            Event::Put(kv) => (kv.key.as_str(), Some(kv)),
            Event::Delete { key, .. } => (key.as_str(), None),
        };
        self.problems.remove(text);
        let modified = match event {
            Event::Put(kv) => kv.modified,
            Event::Delete { modified, .. } => *modified,
        };
        let Some(key) = Key::parse(text) else {
            if put.is_some() {
                self.problem(text, "not a key that Selvedge or its predecessor knows");
            }
            return Concern::Nothing;
        };
        let concern = match key {
            Key::Network(vni, field) => self.apply_network(vni, field, text, put),
            Key::Node(name) => self.apply_node(name, text, put),
            Key::Live(name) => self.apply_live(name, text, put),
            Key::Roster(name) => self.apply_roster(name, text, put),
            Key::Verdict(name, incarnation) => self.apply_verdict((name, incarnation), put),
            Key::Suspicion(name, incarnation) => self.apply_suspicion((name, incarnation), put),
            Key::History(vni) => self.apply_history(vni, text, put),
            Key::Planner => self.apply_planner(text, put),
        };
        if concern == Concern::Nodes {
            self.nodes_revision = self.nodes_revision.max(modified);
        }
        concern
    }

    /// Whether a key of the network makes no sense, so that nobody may act on it.
    #[must_use]
    pub fn is_blocked(&self, vni: Vni) -> bool {
        !self.problems.is_empty()
            && [Field::Type, Field::Current, Field::Next]
                .iter()
                .any(|field| self.problems.contains_key(&crate::keys::network(vni, *field)))
    }

    /// Whether the registered incarnation of `name` counts as dead.
    #[must_use]
    pub fn is_convicted(&self, name: &NodeName) -> bool {
        self.live
            .get(name)
            .is_some_and(|live| self.verdicts.contains_key(&(name.clone(), live.incarnation)))
    }

    /// Whether `name` was convicted and has not registered since.
    #[must_use]
    pub fn is_struck(&self, name: &NodeName) -> bool {
        match self.live.get(name) {
            Some(_) => self.is_convicted(name),
            None => self.verdicts_on(name).next().is_some(),
        }
    }

    /// The incarnations of `name` that were convicted.
    pub fn verdicts_on(&self, name: &NodeName) -> impl Iterator<Item = Revision> {
        let all = (name.clone(), Revision(i64::MIN))..=(name.clone(), Revision(i64::MAX));
        self.verdicts.range(all).map(|((_, incarnation), _)| *incarnation)
    }

    /// Who votes: those on the roster that can be probed, have not left, and were not convicted
    /// since they registered last.
    #[must_use]
    pub fn electorate(&self) -> Electorate {
        let names = self.possible_voters().map(|(name, _)| name);
        let voters = names.filter(|name| !self.is_struck(name)).cloned();
        Electorate { revision: self.nodes_revision, voters: voters.take(MAX_VOTERS).collect() }
    }

    /// Those on the roster that vote, or will once they have registered anew.
    pub fn possible_voters(&self) -> impl Iterator<Item = (&NodeName, &RosterValue)> {
        let entries = self.roster.iter().map(|(name, slot)| (name, &slot.value));
        entries.filter(|(_, value)| !value.left && !value.probe.is_empty())
    }

    /// The ring of those that may be given networks: the lost are not among them.
    #[must_use]
    pub fn ring(&self, is_lost: impl Fn(&NodeName) -> bool) -> Ring {
        let nodes = self.nodes.iter().filter(|(name, _)| !is_lost(name));
        let limit = |live: &Live| live.value.as_ref().and_then(|value| value.networks.clone());
        let limits = self.live.iter().filter_map(|(name, live)| Some((name.clone(), limit(live)?)));
        Ring::new(nodes.map(|(name, node)| (name, node.ids.as_slice()))).with_limits(limits)
    }

    /// Whether the node is the predecessor's: on the ring, but without a registration, and not
    /// the leftover of one.
    #[must_use]
    pub fn is_predecessor(&self, name: &NodeName) -> bool {
        let ours = self.registered_under.get(name);
        let entry = self.nodes.get(name).filter(|_| !self.live.contains_key(name));
        entry.is_some_and(|node| ours != Some(&node.lease))
    }

    /// The networks that name this node as the owner or the owner to be.
    pub fn named(&self, name: &NodeName) -> impl Iterator<Item = Vni> {
        self.named.get(name).into_iter().flatten().copied()
    }

    /// The networks that this node owns.
    pub fn owned(&self, name: &NodeName) -> impl Iterator<Item = Vni> {
        let owner = |vni: &Vni| self.networks.get(vni).and_then(Network::current);
        self.named(name).filter(move |vni| owner(vni) == Some(name))
    }

    fn apply_network(
        &mut self,
        vni: Vni,
        field: Field,
        text: &str,
        put: Option<&KeyValue>,
    ) -> Concern {
        let mut network = self.networks.remove(&vni).unwrap_or_default();
        self.unname(vni, &network);
        let result = match field {
            Field::Type => assign(&mut network.state, put, parse_state),
            Field::Current => assign(&mut network.current, put, parse_name),
            Field::Next => assign(&mut network.next, put, parse_next),
        };
        if let Err(problem) = result {
            self.problem(text, &problem);
        }
        self.moving.remove(&vni);
        if network.state().is_migration() {
            self.moving.insert(vni);
        }
        if network != Network::default() {
            self.name(vni, &network);
            self.networks.insert(vni, network);
        }
        Concern::Network(vni)
    }

    fn unname(&mut self, vni: Vni, network: &Network) {
        for name in [network.current(), network.next()].into_iter().flatten() {
            if let Some(named) = self.named.get_mut(name) {
                named.remove(&vni);
            }
        }
    }

    fn name(&mut self, vni: Vni, network: &Network) {
        for name in [network.current(), network.next()].into_iter().flatten() {
            match self.named.get_mut(name) {
                Some(named) => named.insert(vni),
                None => self.named.entry(name.clone()).or_default().insert(vni),
            };
        }
    }

    fn apply_node(&mut self, name: NodeName, text: &str, put: Option<&KeyValue>) -> Concern {
        self.nodes.remove(&name);
        if let Some(kv) = put {
            match parse_node(kv) {
                Ok(node) => {
                    self.nodes.insert(name, node);
                }
                Err(problem) => self.problem(text, &problem),
            }
        }
        Concern::Nodes
    }

    fn apply_live(&mut self, name: NodeName, text: &str, put: Option<&KeyValue>) -> Concern {
        let Some(kv) = put else {
            self.live.remove(&name);
            return Concern::Nodes;
        };
        // Even a registration that cannot be read tells that somebody is there.
        let value = parse_json(&kv.value, "a registration");
        let value = value.map_err(|problem| self.problem(text, &problem)).ok();
        if let Some(lease) = kv.lease {
            self.registered_under.insert(name.clone(), lease);
        }
        self.live.insert(name, Live { incarnation: kv.create, lease: kv.lease, value });
        Concern::Nodes
    }

    fn apply_roster(&mut self, name: NodeName, text: &str, put: Option<&KeyValue>) -> Concern {
        let Some(kv) = put else {
            self.roster.remove(&name);
            return Concern::Nodes;
        };
        // What was known before stays; the next word of an operator writes over what is there.
        let known = || self.roster.get(&name).map(|slot| slot.value.clone()).unwrap_or_default();
        let parsed = parse_json(&kv.value, "a roster entry");
        let value = parsed.clone().unwrap_or_else(|_: String| known());
        if let Err(problem) = parsed {
            self.problem(text, &problem);
        }
        let slot = Slot { value, modified: kv.modified, lease: kv.lease };
        self.roster.insert(name, slot);
        Concern::Nodes
    }

    fn apply_verdict(&mut self, verdict: (NodeName, Revision), put: Option<&KeyValue>) -> Concern {
        match put {
            Some(kv) => {
                let value = serde_json::from_slice(&kv.value).unwrap_or_default();
                self.verdicts.insert(verdict, value);
            }
            None => drop(self.verdicts.remove(&verdict)),
        }
        Concern::Nodes
    }

    fn apply_suspicion(&mut self, doubt: (NodeName, Revision), put: Option<&KeyValue>) -> Concern {
        match put {
            Some(kv) => drop(self.suspicions.insert(doubt, kv.modified)),
            None => drop(self.suspicions.remove(&doubt)),
        }
        Concern::Nothing
    }

    fn apply_history(&mut self, vni: Vni, text: &str, put: Option<&KeyValue>) -> Concern {
        let Some(kv) = put else {
            self.history.remove(&vni);
            return Concern::Nothing;
        };
        match parse_json(&kv.value, "a history") {
            Ok(history) => {
                self.history.insert(vni, history);
            }
            // What was known before stays.
            Err(problem) => {
                self.problem(text, &problem);
                self.history.entry(vni).or_insert_with(|| History::unreadable(kv.modified));
            }
        }
        Concern::Nothing
    }

    fn apply_planner(&mut self, text: &str, put: Option<&KeyValue>) -> Concern {
        self.planner = put.map(|kv| {
            let name = parse_name(&kv.value).map_err(|problem| self.problem(text, &problem)).ok();
            Slot { value: name, modified: kv.modified, lease: kv.lease }
        });
        Concern::Planner
    }

    fn problem(&mut self, key: &str, problem: &str) {
        self.problems.insert(key.to_owned(), problem.to_owned());
    }
}

fn assign<T>(
    slot: &mut Option<Slot<T>>,
    put: Option<&KeyValue>,
    parse: impl FnOnce(&[u8]) -> Result<T, String>,
) -> Result<(), String> {
    *slot = None;
    if let Some(kv) = put {
        let value = parse(&kv.value)?;
        *slot = Some(Slot { value, modified: kv.modified, lease: kv.lease });
    }
    Ok(())
}

/// An entry of the ring always hangs on its node's lease; one without would outlive the node.
fn parse_node(kv: &KeyValue) -> Result<Node, String> {
    let ids = parse_json(&kv.value, "a list of 64-bit ids")?;
    let lease = kv.lease.ok_or("an entry of the ring that hangs on no lease")?;
    Ok(Node { ids, lease })
}

fn parse_state(value: &[u8]) -> Result<State, String> {
    let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    number
        .and_then(State::from_number)
        .ok_or_else(|| format!("expected a state's number from 0 to 10, found {}", excerpt(value)))
}

fn parse_name(value: &[u8]) -> Result<NodeName, String> {
    let name = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    name.ok_or_else(|| format!("expected a node's name, found {}", excerpt(value)))
}

fn parse_next(value: &[u8]) -> Result<Option<NodeName>, String> {
    if value.is_empty() { Ok(None) } else { parse_name(value).map(Some) }
}

fn parse_json<T: for<'de> Deserialize<'de>>(value: &[u8], what: &str) -> Result<T, String> {
    serde_json::from_slice(value)
        .map_err(|error| format!("expected {what}, found {}: {error}", excerpt(value)))
}

fn excerpt(value: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(value).chars().take(40).collect();
    format!("{text:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, value: &str) -> Event {
        let (create, modified) = (Revision(1), Revision(1));
        Event::Put(KeyValue { key: key.into(), value: value.into(), create, modified, lease: None })
    }

    #[test]
    fn foreign_values_are_named_and_harm_nothing() {
        let mut cache = Cache::default();
        for (key, value) in [
            ("/wmgwd/vni/1/type", "banana"),
            ("/wmgwd/vni/2/type", "11"),
            ("/wmgwd/vni/3/current", "a b"),
            ("/wmgwd/vni/0/type", "1"),
            ("/wmgwd/node/gw1", "{}"),
            ("/wmgwd/node/gw2", "[-1]"),
            ("/selvedge/roster/gw1", "[]"),
            ("/selvedge/planner", ""),
            ("/selvedge/unheard-of", "1"),
        ] {
            cache.apply(&put(key, value));
            assert!(cache.problems.contains_key(key), "{key}");
        }
        assert!(cache.nodes.is_empty());
        assert_eq!(cache.planner.as_ref().and_then(|planner| planner.value.as_ref()), None);
        for vni in [1_u32, 2, 3] {
            assert!(cache.is_blocked(vni.try_into().expect("vni")));
        }
        cache.apply(&put("/wmgwd/vni/1/type", "1"));
        assert!(!cache.is_blocked(1_u32.try_into().expect("vni")));
    }

    #[test]
    fn a_roster_keeps_what_a_newer_version_wrote() {
        let text = r#"{"drained":true,"role":"gateway","colour":"green"}"#;
        let value: RosterValue = serde_json::from_str(text).expect("valid");
        assert!(value.drained);
        assert_eq!(serde_json::to_string(&value).expect("json"), text);
    }

    #[test]
    fn a_history_is_bounded_and_its_epochs_grow() {
        let name: NodeName = "gw1".parse().expect("name");
        let mut history = History::default();
        for at in 0..40 {
            history = history.with(name.clone(), "test".into(), at);
        }
        assert_eq!((history.changes.len(), history.epoch()), (History::LENGTH, 40));
    }

    #[test]
    fn epochs_grow_past_a_history_that_cannot_be_read() {
        let vni: Vni = 1_u32.try_into().expect("vni");
        let mut cache = Cache::default();
        let (create, modified) = (Revision(2), Revision(90));
        let (key, value) = (crate::keys::history(vni), b"{}}".to_vec());
        cache.apply(&Event::Put(KeyValue { key, value, create, modified, lease: None }));
        assert_eq!(cache.history.get(&vni).map(History::epoch), Some(90));
        // What was known before is better.
        let known = r#"{"changes":[{"epoch":3,"owner":"gw1","reason":"test","at_ms":0}]}"#;
        cache.apply(&put(&crate::keys::history(vni), known));
        cache.apply(&put(&crate::keys::history(vni), "garbage"));
        assert_eq!(cache.history.get(&vni).map(History::epoch), Some(3));
    }
}
