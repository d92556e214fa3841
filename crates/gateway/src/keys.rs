//! The keys of the gateway plane in the store.
//!
//! Those under `/wmgwd/` are shared with the predecessor's daemon and keep its layout to the
//! letter, so that both may serve one cluster during an upgrade. An unknown key there would stop
//! it, so everything of ours alone lies under `/selvedge/`.

use selvedge_model::{NodeName, Vni};

use crate::kv::Revision;

/// What an agent watches: everything that either daemon keeps.
pub const PREFIXES: [&str; 2] = ["/selvedge/", "/wmgwd/"];

/// Held by the one node that starts planned moves, under its lease.
pub const PLANNER: &str = "/selvedge/planner";

/// Written over and over while a store that was reset is filled again, until its revision is beyond
/// that of the former one. Nobody watches it.
pub const REFILLED: &str = "/selvedge-refilled";

/// One of the three keys that a network consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Field {
    /// The state's number.
    Type,
    /// The owner.
    Current,
    /// The owner to be.
    Next,
}

/// A key, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// `/wmgwd/node/<name>`: place networks here. A JSON list of 64-bit ids, under the node's lease.
    Node(NodeName),
    /// `/wmgwd/vni/<vni>/<field>`.
    Network(Vni, Field),
    /// `/selvedge/roster/<name>`: who takes part, without a lease.
    Roster(NodeName),
    /// `/selvedge/live/<name>`: the registration, under the node's lease.
    Live(NodeName),
    /// `/selvedge/verdict/<name>/<incarnation>`: that incarnation counts as dead.
    Verdict(NodeName, Revision),
    /// `/selvedge/suspicion/<name>/<incarnation>`: of two voters, one does not hear the other.
    Suspicion(NodeName, Revision),
    /// `/selvedge/history/<vni>`: who owned the network, and why.
    History(Vni),
    /// [`PLANNER`].
    Planner,
}

impl Key {
    /// Takes a key apart; `None` for one that is nobody's.
    #[must_use]
    pub fn parse(key: &str) -> Option<Self> {
        let mut parts = key.strip_prefix('/')?.split('/');
        let (house, kind) = (parts.next()?, parts.next()?);
        let (first, second, third) = (parts.next(), parts.next(), parts.next());
        match (house, kind, first, second, third) {
            ("wmgwd", "node", Some(name), None, None) => Some(Self::Node(name.parse().ok()?)),
            ("wmgwd", "vni", Some(vni), Some(field), None) => {
                Some(Self::Network(vni.parse().ok()?, Field::parse(field)?))
            }
            ("selvedge", "roster", Some(name), None, None) => {
                Some(Self::Roster(name.parse().ok()?))
            }
            ("selvedge", "live", Some(name), None, None) => Some(Self::Live(name.parse().ok()?)),
            ("selvedge", "verdict", Some(name), Some(incarnation), None) => {
                Some(Self::Verdict(name.parse().ok()?, Revision(incarnation.parse().ok()?)))
            }
            ("selvedge", "suspicion", Some(name), Some(incarnation), None) => {
                Some(Self::Suspicion(name.parse().ok()?, Revision(incarnation.parse().ok()?)))
            }
            ("selvedge", "history", Some(vni), None, None) => {
                Some(Self::History(vni.parse().ok()?))
            }
            ("selvedge", "planner", None, None, None) => Some(Self::Planner),
            _ => None,
        }
    }
}

impl Field {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "type" => Some(Self::Type),
            "current" => Some(Self::Current),
            "next" => Some(Self::Next),
            _ => None,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Type => "type",
            Self::Current => "current",
            Self::Next => "next",
        }
    }
}

/// The key of [`Key::Node`].
#[must_use]
pub fn node(name: &NodeName) -> String {
    format!("/wmgwd/node/{name}")
}

/// The key of [`Key::Network`].
#[must_use]
pub fn network(vni: Vni, field: Field) -> String {
    format!("/wmgwd/vni/{vni}/{}", field.name())
}

/// The key of [`Key::Roster`].
#[must_use]
pub fn roster(name: &NodeName) -> String {
    format!("/selvedge/roster/{name}")
}

/// The key of [`Key::Live`].
#[must_use]
pub fn live(name: &NodeName) -> String {
    format!("/selvedge/live/{name}")
}

/// The key of [`Key::Verdict`].
#[must_use]
pub fn verdict(name: &NodeName, incarnation: Revision) -> String {
    format!("/selvedge/verdict/{name}/{incarnation}")
}

/// The key of [`Key::Suspicion`].
#[must_use]
pub fn suspicion(name: &NodeName, incarnation: Revision) -> String {
    format!("/selvedge/suspicion/{name}/{incarnation}")
}

/// The key of [`Key::History`].
#[must_use]
pub fn history(vni: Vni) -> String {
    format!("/selvedge/history/{vni}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_predecessors_keys_to_the_letter() {
        let (name, vni): (NodeName, Vni) =
            ("gw1".parse().expect("name"), 7.try_into().expect("vni"));
        assert_eq!(node(&name), "/wmgwd/node/gw1");
        assert_eq!(network(vni, Field::Type), "/wmgwd/vni/7/type");
        assert_eq!(network(vni, Field::Current), "/wmgwd/vni/7/current");
        assert_eq!(network(vni, Field::Next), "/wmgwd/vni/7/next");
    }

    #[test]
    fn what_is_built_is_parsed() {
        let (name, vni): (NodeName, Vni) =
            ("gw1".parse().expect("name"), 7.try_into().expect("vni"));
        let keys = [
            (node(&name), Key::Node(name.clone())),
            (network(vni, Field::Next), Key::Network(vni, Field::Next)),
            (roster(&name), Key::Roster(name.clone())),
            (live(&name), Key::Live(name.clone())),
            (verdict(&name, Revision(9)), Key::Verdict(name.clone(), Revision(9))),
            (suspicion(&name, Revision(9)), Key::Suspicion(name.clone(), Revision(9))),
            (history(vni), Key::History(vni)),
            (PLANNER.to_owned(), Key::Planner),
        ];
        for (text, key) in keys {
            assert_eq!(Key::parse(&text), Some(key), "{text}");
        }
    }

    #[test]
    fn strangers_are_nobody() {
        for key in
            ["", "/", "/wmgwd/vni/0/type", "/wmgwd/vni/1/typo", "/wmgwd/vni/1/type/x", "/x/y"]
        {
            assert_eq!(Key::parse(key), None, "{key}");
        }
    }
}
