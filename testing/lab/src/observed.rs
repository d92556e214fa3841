//! Who answers for networks and who attracts their traffic, as others on the wire see it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use selvedge_model::Vni;
use selvedge_netlab::Campus;
use selvedge_netlab::campus::{Family, Network};

use crate::fleet::Fleet;
use crate::progress::say;
use crate::view::View;

/// Networks in a planned move aside, those for which not exactly the store's owner answers ARP and
/// neighbour solicitations and attracts traffic of both families. The store is looked at before
/// and after: a move may begin while the question is under way.
pub(crate) fn owners_in_doubt(fleet: &Fleet, all: &[Vni]) -> anyhow::Result<BTreeSet<Vni>> {
    let (before, seen, after) = (fleet.view(), Observed::of(&fleet.campus, all)?, fleet.view());
    let doubtful = |vni: &Vni| {
        let owner = before.owner(*vni).filter(|owner| after.owner(*vni) == Some(*owner));
        match owner {
            Some(owner) => !seen.agrees(*vni, owner),
            // Moving is no doubt; having no owner is.
            None => nobody_moves(&before, *vni) && nobody_moves(&after, *vni),
        }
    };
    let in_doubt: BTreeSet<Vni> = all.iter().copied().filter(doubtful).collect();
    for vni in in_doubt.iter().take(SHOWN) {
        let owner = after.owner(*vni).unwrap_or("nobody");
        say!("network {vni} is in doubt: {owner} owns it; {}", seen.words(*vni, owner));
    }
    Ok(in_doubt)
}

/// How many networks are described.
const SHOWN: usize = 20;

fn nobody_moves(view: &View, vni: Vni) -> bool {
    view.owner(vni).is_none() && !view.moves(vni)
}

type Who = BTreeMap<Vni, BTreeSet<String>>;

/// What was seen, each kind with its name.
pub(crate) struct Observed {
    kinds: Vec<(&'static str, Who)>,
}

impl Observed {
    pub(crate) fn of(campus: &Campus, all: &[Vni]) -> anyhow::Result<Self> {
        let networks: Vec<Network> = all.iter().filter_map(|vni| Network::new(vni.get())).collect();
        let answering = |family| campus.answering(&networks, family);
        let originating = |family| campus.originating(&networks, family);
        let kinds = vec![
            ("answers ARP", answering(Family::V4).context("cannot ask by ARP")?),
            ("answers solicitations", answering(Family::V6).context("cannot solicit")?),
            ("attracts IPv4", originating(Family::V4)?),
            ("attracts IPv6", originating(Family::V6)?),
        ];
        Ok(Self { kinds })
    }

    /// Whether all agree that this is the only owner.
    pub(crate) fn agrees(&self, vni: Vni, owner: &str) -> bool {
        self.kinds.iter().all(|(_, who)| only(who, vni, owner))
    }

    fn words(&self, vni: Vni, owner: &str) -> String {
        let wrong = self.kinds.iter().filter(|(_, who)| !only(who, vni, owner));
        let words = wrong.map(|(what, who)| format!("{} {what}", names(who.get(&vni))));
        words.collect::<Vec<_>>().join(", ")
    }
}

fn only(who: &Who, vni: Vni, owner: &str) -> bool {
    who.get(&vni).is_some_and(|who| who.iter().eq([owner]))
}

fn names(who: Option<&BTreeSet<String>>) -> String {
    match who {
        Some(who) if !who.is_empty() => who.iter().cloned().collect::<Vec<_>>().join(" and "),
        Some(_) | None => "nobody".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wrong_answer_of_either_family_is_a_doubt() {
        let vni = Vni::try_from(7).expect("valid");
        let who = |names: &[&str]| -> Who {
            [(vni, names.iter().map(|name| (*name).to_owned()).collect())].into()
        };
        let seen = |nd: &[&str]| Observed {
            kinds: vec![("answers ARP", who(&["gw1"])), ("answers solicitations", who(nd))],
        };
        assert!(seen(&["gw1"]).agrees(vni, "gw1"));
        assert!(!seen(&["gw1"]).agrees(vni, "gw2"));
        assert!(!seen(&[]).agrees(vni, "gw1"));
        let both = seen(&["gw1", "gw2"]);
        assert!(!both.agrees(vni, "gw1"));
        assert_eq!(both.words(vni, "gw1"), "gw1 and gw2 answers solicitations");
        assert_eq!(seen(&[]).words(vni, "gw1"), "nobody answers solicitations");
    }
}
