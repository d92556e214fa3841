//! What the store says, parsed: the keys of [`crate::keys`] at one revision, kept up to date by
//! the watch. Values that make no sense are kept apart as problems, each named by its key.

use std::collections::{BTreeMap, BTreeSet};

use selvedge_model::{NodeName, Vni};
use serde::{Deserialize, Serialize};

use crate::keys::{Field, Key};
use crate::kv::{Event, KeyValue, LeaseId, Revision};
use crate::machine::State;

/// A node's entry on the ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its ids on the ring.
    pub ids: Vec<u64>,
    /// The lease it hangs on.
    pub lease: Option<LeaseId>,
}

/// A node's registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Live {
    /// The revision at which it came into being: names this run of the agent.
    pub incarnation: Revision,
    /// The lease it hangs on.
    pub lease: Option<LeaseId>,
    /// What the agent says of itself.
    pub value: LiveValue,
}

/// The value of a registration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveValue {
    /// Who holds the name: tells a restarted agent from a second one with the same name.
    pub identity: String,
    /// The agent's version.
    #[serde(default)]
    pub version: String,
}

/// The value of a roster entry. Fields of a newer version are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RosterValue {
    /// Whether an operator has drained the node.
    #[serde(default)]
    pub drained: bool,
    /// What this version does not know.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
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
}

impl History {
    /// How many changes are kept.
    pub const LENGTH: usize = 16;

    /// The number of the present owner; zero before the first.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.changes.last().map_or(0, |change| change.epoch)
    }

    /// The history with one change more.
    #[must_use]
    pub fn with(&self, owner: NodeName, reason: String, at_ms: u64) -> Self {
        let mut changes = self.changes.clone();
        changes.push(Change { epoch: self.epoch() + 1, owner, reason, at_ms });
        changes.drain(..changes.len().saturating_sub(Self::LENGTH));
        Self { changes }
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

/// The node that starts planned moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planner {
    /// Its name.
    pub name: NodeName,
    /// The revision at which it became the planner.
    pub since: Revision,
    /// The lease it hangs on.
    pub lease: Option<LeaseId>,
}

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
    pub roster: BTreeMap<NodeName, RosterValue>,
    /// Which incarnations count as dead.
    pub verdicts: BTreeSet<(NodeName, Revision)>,
    /// The networks that have any key.
    pub networks: BTreeMap<Vni, Network>,
    /// Their histories.
    pub history: BTreeMap<Vni, History>,
    /// Who plans.
    pub planner: Option<Planner>,
    /// Keys that make no sense, each with the reason. Networks among them are left alone.
    pub problems: BTreeMap<String, String>,
}

impl Cache {
    /// Takes in one change.
    pub fn apply(&mut self, event: &Event) -> Concern {
        let (text, put) = match event {
            Event::Put(kv) => (kv.key.as_str(), Some(kv)),
            Event::Delete { key, .. } => (key.as_str(), None),
        };
        self.problems.remove(text);
        let Some(key) = Key::parse(text) else {
            if put.is_some() {
                self.problem(text, "not a key that Selvedge or its predecessor knows");
            }
            return Concern::Nothing;
        };
        match key {
            Key::Network(vni, field) => self.apply_network(vni, field, text, put),
            Key::Node(name) => self.apply_node(name, text, put),
            Key::Live(name) => self.apply_live(name, text, put),
            Key::Roster(name) => self.apply_roster(name, text, put),
            Key::Verdict(name, incarnation) => self.apply_verdict((name, incarnation), put),
            Key::History(vni) => self.apply_history(vni, text, put),
            Key::Planner => self.apply_planner(text, put),
        }
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
            .is_some_and(|live| self.verdicts.contains(&(name.clone(), live.incarnation)))
    }

    /// Whether one of the nodes is the predecessor's: on the ring, but without a registration.
    #[must_use]
    pub fn has_predecessor(&self) -> bool {
        self.nodes.keys().any(|name| !self.live.contains_key(name))
    }

    fn apply_network(
        &mut self,
        vni: Vni,
        field: Field,
        text: &str,
        put: Option<&KeyValue>,
    ) -> Concern {
        let network = self.networks.entry(vni).or_default();
        let result = match field {
            Field::Type => assign(&mut network.state, put, parse_state),
            Field::Current => assign(&mut network.current, put, parse_name),
            Field::Next => assign(&mut network.next, put, parse_next),
        };
        if *network == Network::default() {
            self.networks.remove(&vni);
        }
        if let Err(problem) = result {
            self.problem(text, &problem);
        }
        Concern::Network(vni)
    }

    fn apply_node(&mut self, name: NodeName, text: &str, put: Option<&KeyValue>) -> Concern {
        let parsed =
            put.map(|kv| (kv.lease, parse_json::<Vec<u64>>(&kv.value, "a list of 64-bit ids")));
        match parsed {
            Some((lease, Ok(ids))) => {
                self.nodes.insert(name, Node { ids, lease });
            }
            Some((_, Err(problem))) => {
                self.nodes.remove(&name);
                self.problem(text, &problem);
            }
            None => {
                self.nodes.remove(&name);
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
        let value = parse_json(&kv.value, "a registration").unwrap_or_else(|problem| {
            self.problem(text, &problem);
            LiveValue::default()
        });
        self.live.insert(name, Live { incarnation: kv.create, lease: kv.lease, value });
        Concern::Nodes
    }

    fn apply_roster(&mut self, name: NodeName, text: &str, put: Option<&KeyValue>) -> Concern {
        match put.map(|kv| parse_json(&kv.value, "a roster entry")) {
            Some(Ok(value)) => {
                self.roster.insert(name, value);
            }
            // What was known before stays.
            Some(Err(problem)) => self.problem(text, &problem),
            None => {
                self.roster.remove(&name);
            }
        }
        Concern::Nodes
    }

    fn apply_verdict(&mut self, verdict: (NodeName, Revision), put: Option<&KeyValue>) -> Concern {
        match put {
            Some(_) => self.verdicts.insert(verdict),
            None => self.verdicts.remove(&verdict),
        };
        Concern::Nodes
    }

    fn apply_history(&mut self, vni: Vni, text: &str, put: Option<&KeyValue>) -> Concern {
        match put.map(|kv| parse_json(&kv.value, "a history")) {
            Some(Ok(history)) => {
                self.history.insert(vni, history);
            }
            Some(Err(problem)) => self.problem(text, &problem),
            None => {
                self.history.remove(&vni);
            }
        }
        Concern::Nothing
    }

    fn apply_planner(&mut self, text: &str, put: Option<&KeyValue>) -> Concern {
        self.planner = None;
        if let Some(kv) = put {
            match parse_name(&kv.value) {
                Ok(name) => {
                    self.planner = Some(Planner { name, since: kv.create, lease: kv.lease });
                }
                Err(problem) => self.problem(text, &problem),
            }
        }
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
        assert!(cache.nodes.is_empty() && cache.planner.is_none());
        for vni in [1_u32, 2, 3] {
            assert!(cache.is_blocked(vni.try_into().expect("vni")));
        }
        cache.apply(&put("/wmgwd/vni/1/type", "1"));
        assert!(!cache.is_blocked(1_u32.try_into().expect("vni")));
    }

    #[test]
    fn a_roster_keeps_what_a_newer_version_wrote() {
        let text = r#"{"drained":true,"colour":"green"}"#;
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
}
