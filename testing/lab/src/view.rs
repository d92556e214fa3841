//! The networks as the store describes them, read from the laboratory's own watch.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use selvedge_model::{Time, Vni};
use selvedge_netlab::etcd::Seen;

/// The number of the state in which `current` serves a network and nothing is under way.
const IDLE: &str = "1";
/// The numbers of the states of a planned move.
const PLANNED: RangeInclusive<u8> = 2..=9;

/// Everything that was seen, folded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    keys: BTreeMap<String, String>,
}

/// Who serves which network.
pub(crate) type Owners = BTreeMap<Vni, Option<String>>;

/// One planned move of one network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Move {
    pub(crate) vni: Vni,
    pub(crate) began: Time,
    pub(crate) ended: Time,
}

impl View {
    /// The state after all changes, which are in the order of revisions.
    pub(crate) fn of(changes: &[Seen]) -> Self {
        let mut keys = BTreeMap::new();
        for change in changes {
            match &change.value {
                Some(value) => keys.insert(change.key.clone(), value.clone()),
                None => keys.remove(&change.key),
            };
        }
        Self { keys }
    }

    /// Whether these are all keys, with their values.
    pub(crate) fn holds(&self, keys: &BTreeMap<String, String>) -> bool {
        self.keys == *keys
    }

    /// The gateways on which networks may be placed.
    pub(crate) fn gateways(&self) -> BTreeSet<&str> {
        self.keys.keys().filter_map(|key| key.strip_prefix("/wmgwd/node/")).collect()
    }

    /// Whether an agent of that name has registered.
    pub(crate) fn is_registered(&self, name: &str) -> bool {
        self.keys.contains_key(&format!("/selvedge/live/{name}"))
    }

    /// The gateway that serves the network; `None` while it moves or has none.
    pub(crate) fn owner(&self, vni: Vni) -> Option<&str> {
        let key = |field: &str| self.keys.get(&format!("/wmgwd/vni/{vni}/{field}"));
        let idle = key("type").is_some_and(|state| state == IDLE);
        let current = key("current").map(String::as_str).filter(|name| !name.is_empty());
        current.filter(|_| idle)
    }

    /// Whether the network is in a planned move.
    pub(crate) fn moves(&self, vni: Vni) -> bool {
        let state = self.keys.get(&format!("/wmgwd/vni/{vni}/type"));
        state.and_then(|state| state.parse().ok()).is_some_and(|state| PLANNED.contains(&state))
    }

    /// The networks that `gateway` serves.
    pub(crate) fn served_by(&self, gateway: &str, all: &[Vni]) -> Vec<Vni> {
        all.iter().copied().filter(|vni| self.owner(*vni) == Some(gateway)).collect()
    }

    /// Who serves each network.
    pub(crate) fn owners(&self, all: &[Vni]) -> Owners {
        all.iter().map(|vni| (*vni, self.owner(*vni).map(str::to_owned))).collect()
    }

    /// Whether every network is served.
    pub(crate) fn all_served(&self, all: &[Vni]) -> bool {
        all.iter().all(|vni| self.owner(*vni).is_some())
    }
}

/// The planned moves that ended at or after `from`: from the decision to serving.
pub(crate) fn moves(changes: &[Seen], from: Time) -> Vec<Move> {
    let mut under_way = BTreeMap::new();
    let mut moves = Vec::new();
    for change in changes {
        let Some((vni, state)) = state(change) else { continue };
        match state {
            "2" => {
                under_way.insert(vni, change.at);
            }
            IDLE => {
                let ended = change.at;
                let began = under_way.remove(&vni).filter(|_| ended >= from);
                moves.extend(began.map(|began| Move { vni, began, ended }));
            }
            // A takeover is no planned move, and a network without an owner none any more.
            "0" | "10" => {
                under_way.remove(&vni);
            }
            _ => {}
        }
    }
    moves
}

/// A network that got another owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Handover {
    pub(crate) vni: Vni,
    pub(crate) at: Time,
    pub(crate) to: String,
}

/// All changes of owners at or after `from`. An owner that writes itself anew is none, even if its
/// lease has ended in between.
pub(crate) fn handovers(changes: &[Seen], from: Time) -> Vec<Handover> {
    let mut owners: BTreeMap<Vni, &str> = BTreeMap::new();
    let mut handovers = Vec::new();
    for change in changes {
        let Some((vni, owner)) = owner(change) else { continue };
        let before = owners.insert(vni, owner);
        if change.at >= from && before.is_some_and(|before| before != owner) {
            handovers.push(Handover { vni, at: change.at, to: owner.to_owned() });
        }
    }
    handovers
}

/// The network and its new owner, if that is what the change is about.
fn owner(change: &Seen) -> Option<(Vni, &str)> {
    let vni = change.key.strip_prefix("/wmgwd/vni/")?.strip_suffix("/current")?;
    let owner = change.value.as_deref().filter(|name| !name.is_empty())?;
    Some((vni.parse().ok()?, owner))
}

/// When a verdict against `name` was first written, at or after `from`.
pub(crate) fn verdict(changes: &[Seen], name: &str, from: Time) -> Option<Time> {
    let prefix = format!("/selvedge/verdict/{name}/");
    let written = |it: &&Seen| it.at >= from && it.value.is_some() && it.key.starts_with(&prefix);
    changes.iter().find(written).map(|change| change.at)
}

/// When the registration of `name` first ended, at or after `from`.
pub(crate) fn lease_end(changes: &[Seen], name: &str, from: Time) -> Option<Time> {
    let key = format!("/selvedge/live/{name}");
    let gone = |it: &&Seen| it.at >= from && it.value.is_none() && it.key == key;
    changes.iter().find(gone).map(|change| change.at)
}

/// The first thing that a successor wrote, at or after `from`, about one of `networks`.
pub(crate) fn first_write(changes: &[Seen], from: Time, networks: &[Vni]) -> Option<Time> {
    let about = |change: &&Seen| state(change).is_some_and(|(vni, _)| networks.contains(&vni));
    changes.iter().filter(|change| change.at >= from).find(about).map(|change| change.at)
}

/// The number of the state in which a network was at a moment, and since when.
pub(crate) fn state_at(changes: &[Seen], vni: u32, at: Time) -> Option<(&str, Time)> {
    let mut states = changes.iter().filter_map(|change| Some((state(change)?, change.at)));
    let its = states.by_ref().filter(|((of, _), since)| of.get() == vni && *since <= at);
    its.last().map(|((_, state), since)| (state, since))
}

/// The network and the number of its new state, if that is what the change is about.
fn state(change: &Seen) -> Option<(Vni, &str)> {
    let vni = change.key.strip_prefix("/wmgwd/vni/")?.strip_suffix("/type")?;
    Some((vni.parse().ok()?, change.value.as_deref()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(changes: &[(u64, &str, Option<&str>)]) -> Vec<Seen> {
        let seen = |(micros, key, value): &(u64, &str, Option<&str>)| Seen {
            at: Time::from_micros(*micros),
            revision: *micros,
            key: format!("/wmgwd/{key}"),
            value: value.map(str::to_owned),
        };
        changes.iter().map(seen).collect()
    }

    fn vni(number: u32) -> Vni {
        Vni::try_from(number).expect("valid")
    }

    #[test]
    fn owners_are_those_of_idle_networks() {
        let mut changes = vec![
            (1, "node/gw1", Some("[1]")),
            (2, "vni/1/type", Some("1")),
            (2, "vni/1/current", Some("gw1")),
            (3, "vni/2/type", Some("2")),
            (3, "vni/2/current", Some("gw1")),
        ];
        let all = [vni(1), vni(2)];
        let view = View::of(&seen(&changes));
        assert_eq!(view.served_by("gw1", &all), [vni(1)]);
        assert!(!view.all_served(&all));
        changes.push((4, "vni/2/type", Some("1")));
        assert!(View::of(&seen(&changes)).all_served(&all));
        changes.push((5, "node/gw1", None));
        assert!(View::of(&seen(&changes)).gateways().is_empty());
    }

    #[test]
    fn moves_run_from_decision_to_serving() {
        let changes = seen(&[
            (1, "vni/1/type", Some("2")),
            (2, "vni/1/type", Some("9")),
            (3, "vni/1/type", Some("1")),
            (4, "vni/2/type", Some("2")),
            (5, "vni/2/type", Some("0")),
            (6, "vni/2/type", Some("10")),
            (7, "vni/2/type", Some("1")),
        ]);
        let moved = moves(&changes, Time::ZERO);
        let (began, ended) = (Time::from_micros(1), Time::from_micros(3));
        assert_eq!(moved, [Move { vni: vni(1), began, ended }]);
        assert!(moves(&changes, Time::from_micros(4)).is_empty());
    }

    #[test]
    fn an_owner_that_writes_itself_anew_hands_nothing_over() {
        let changes = seen(&[
            (1, "vni/1/current", Some("gw1")),
            (2, "vni/1/current", None),
            (3, "vni/1/current", Some("gw1")),
            (4, "vni/1/current", Some("gw2")),
            (5, "vni/2/current", Some("gw2")),
        ]);
        let handed = Handover { vni: vni(1), at: Time::from_micros(4), to: "gw2".to_owned() };
        assert_eq!(handovers(&changes, Time::ZERO), [handed]);
        assert!(handovers(&changes, Time::from_micros(5)).is_empty());
    }

    #[test]
    fn verdicts_and_ends_of_leases_are_found() {
        let at = |micros, key: &str, value: Option<&str>| Seen {
            at: Time::from_micros(micros),
            revision: micros,
            key: key.to_owned(),
            value: value.map(str::to_owned),
        };
        let changes = [
            at(1, "/selvedge/live/gw1", Some("{}")),
            at(2, "/selvedge/verdict/gw10/1", Some("{}")),
            at(3, "/selvedge/verdict/gw1/1", Some("{}")),
            at(4, "/selvedge/live/gw1", None),
        ];
        assert_eq!(verdict(&changes, "gw1", Time::ZERO), Some(Time::from_micros(3)));
        assert_eq!(verdict(&changes, "gw1", Time::from_micros(4)), None);
        assert_eq!(lease_end(&changes, "gw1", Time::ZERO), Some(Time::from_micros(4)));
        assert_eq!(lease_end(&changes, "gw2", Time::ZERO), None);
    }

    #[test]
    fn a_lease_that_ends_is_no_write() {
        let changes = seen(&[
            (1, "vni/1/type", Some("1")),
            (5, "vni/1/current", None),
            (6, "vni/2/type", Some("0")),
            (7, "vni/1/type", Some("0")),
        ]);
        let first = first_write(&changes, Time::from_micros(2), &[vni(1)]);
        assert_eq!(first, Some(Time::from_micros(7)));
    }
}
