//! What each member of a mesh is called: the same on all nodes that know the same members.
//!
//! A member is called by its alias, or, if it has none, by its [word name](crate::word_name). If
//! several claim one name, it belongs to the member that was admitted first; the others get it
//! with the beginning of their node id behind it. If the first shares the name on purpose, it
//! belongs to all who do so, each of them under a longer name too. Nobody is called by a node id,
//! which is to mean its node and nobody else.

use std::collections::{BTreeMap, BTreeSet};

use selvedge_model::NodeId;

use crate::words::word_name;

/// The longest label of a domain name, in bytes (RFC 1035, section 2.3.4).
const MAX_LABEL: usize = 63;

/// A member that is to be named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Who it is.
    pub node: NodeId,
    /// When it was admitted, in any unit: the lowest was first. Of equals, the lowest id is first.
    pub rank: u64,
    /// What it calls itself; empty if it has no name.
    pub alias: String,
    /// Whether it shares its alias with others on purpose.
    pub shared: bool,
}

/// What a member is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its name, which no other member of the mesh has: a label of a domain name, in lower case.
    pub name: String,
    /// Another name of it, which it shares with others on purpose.
    pub group: Option<String>,
    /// Whether another member claims the same alias, without both of them sharing it on purpose.
    /// A group is not bothered by those who claim its name without sharing it.
    pub contested: bool,
}

/// The names of all members of a mesh. The order of `claims` is of no meaning.
#[must_use]
pub fn names<'a>(claims: impl IntoIterator<Item = &'a Claim>) -> BTreeMap<NodeId, Named> {
    let mut wishes: BTreeMap<String, Vec<&Claim>> = BTreeMap::new();
    for claim in claims {
        wishes.entry(wish(claim)).or_default().push(claim);
    }
    let taken: BTreeSet<_> = wishes.keys().cloned().collect();
    let mut naming = Naming { taken, named: BTreeMap::new() };
    for (wish, mut by) in wishes {
        by.sort_by_key(|claim| (claim.rank, claim.node));
        naming.name(&wish, &by);
    }
    naming.named
}

/// The text as a label of a domain name (RFC 1123, section 2.1): letters in lower case, digits
/// and hyphens, no hyphen first or last, 63 bytes at most; `None` if nothing is left of it.
#[must_use]
pub fn label(text: &str) -> Option<String> {
    let plain = |c: char| match c.to_ascii_lowercase() {
        c if c.is_ascii_alphanumeric() => c,
        _ => '-',
    };
    let mapped: String = text.trim().chars().map(plain).collect();
    let cut: String = mapped.trim_matches('-').chars().take(MAX_LABEL).collect();
    let cut = cut.trim_end_matches('-');
    (!cut.is_empty()).then(|| cut.to_owned())
}

/// The name that a member has if nobody else claims it.
fn wish(claim: &Claim) -> String {
    let own = label(&claim.alias).filter(|label| label.parse::<NodeId>().is_err());
    own.unwrap_or_else(|| word_name(claim.node))
}

/// Whether a name that these claim, first come first, is a group's: who came first decides, so
/// that nobody can break a group up by coming later.
fn is_group(by: &[&Claim]) -> bool {
    by.first().is_some_and(|first| first.shared) && by.iter().filter(|c| c.shared).count() > 1
}

struct Naming {
    /// Names that belong to somebody.
    taken: BTreeSet<String>,
    named: BTreeMap<NodeId, Named>,
}

impl Naming {
    /// Names all who claim `wish`, first come first.
    fn name(&mut self, wish: &str, by: &[&Claim]) {
        let is_group = is_group(by);
        for (index, claim) in by.iter().enumerate() {
            let first = index == 0 && !is_group;
            let name = if first { wish.to_owned() } else { self.longer(wish, claim.node) };
            let belongs = is_group && claim.shared;
            let group = belongs.then(|| wish.to_owned());
            let contested = by.len() > 1 && !belongs;
            self.named.insert(claim.node, Named { name, group, contested });
        }
    }

    /// A name with as much of the node's id behind it as makes it the only one.
    fn longer(&mut self, wish: &str, node: NodeId) -> String {
        let id = node.to_string();
        let candidates = (4..=id.len()).map(|digits| {
            let suffix = &id[..digits];
            let kept = &wish[..wish.len().min(MAX_LABEL - 1 - digits)];
            format!("{}-{suffix}", kept.trim_end_matches('-'))
        });
        // Whole ids differ, so that only names made up by hand could be in the way of all.
        let free = candidates.into_iter().find(|name| !self.taken.contains(name));
        let name = free.unwrap_or(id);
        self.taken.insert(name.clone());
        name
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claim(node: u8, rank: u64, alias: &str) -> Claim {
        Claim { node: NodeId([node; 32]), rank, alias: alias.to_owned(), shared: false }
    }

    fn name_of(named: &BTreeMap<NodeId, Named>, node: u8) -> &Named {
        &named[&NodeId([node; 32])]
    }

    #[test]
    fn labels_are_what_dns_allows() {
        assert_eq!(label("GW1").as_deref(), Some("gw1"));
        assert_eq!(label(" web server.2 ").as_deref(), Some("web-server-2"));
        assert_eq!(label("-x-").as_deref(), Some("x"));
        assert_eq!(label("\u{fc}ber").as_deref(), Some("ber"));
        assert_eq!(label("..."), None);
        assert_eq!(label(""), None);
        let long = format!("{}-y", "x".repeat(62));
        assert_eq!(label(&long), Some("x".repeat(62)));
    }

    #[test]
    fn who_was_admitted_first_keeps_the_name() {
        let claims = [claim(1, 9, "db"), claim(2, 3, "DB"), claim(3, 1, "")];
        let named = names(&claims);
        assert_eq!(name_of(&named, 2).name, "db");
        assert_eq!(name_of(&named, 1).name, "db-aeaq");
        assert!(name_of(&named, 1).contested && name_of(&named, 2).contested);
        assert_eq!(name_of(&named, 3).name, word_name(NodeId([3; 32])));
        assert!(!name_of(&named, 3).contested);
    }

    #[test]
    fn a_name_that_is_shared_on_purpose_belongs_to_all() {
        let share = |node| Claim { shared: true, ..claim(node, 0, "web") };
        let named = names(&[share(1), share(2)]);
        for (node, own) in [(1, "web-aeaq"), (2, "web-aiba")] {
            let expected =
                Named { name: own.to_owned(), group: Some("web".to_owned()), contested: false };
            assert_eq!(*name_of(&named, node), expected);
        }
        // Alone there is nothing to share.
        let alone = Named { name: "web".to_owned(), group: None, contested: false };
        assert_eq!(*name_of(&names(&[share(1)]), 1), alone);
    }

    #[test]
    fn who_was_admitted_first_decides_whether_a_name_is_shared() {
        let share = |node, rank| Claim { shared: true, ..claim(node, rank, "web") };
        // Who comes later and does not share changes nothing for those who do.
        let named = names(&[share(1, 1), claim(3, 2, "web"), share(2, 3)]);
        for node in [1, 2] {
            let member = name_of(&named, node);
            assert_eq!((member.group.as_deref(), member.contested), (Some("web"), false));
        }
        let late = Named { name: "web-ambq".to_owned(), group: None, contested: true };
        assert_eq!(*name_of(&named, 3), late);
        // Who was first and does not share keeps the name, however many would like to share it.
        let named = names(&[share(1, 2), claim(3, 1, "web"), share(2, 3)]);
        assert_eq!(name_of(&named, 3).name, "web");
        assert!(named.values().all(|member| member.contested && member.group.is_none()));
        // One alone is no group, and the name is its own.
        let named = names(&[share(1, 1), claim(3, 2, "web")]);
        assert_eq!(name_of(&named, 1).name, "web");
        assert!(named.values().all(|member| member.contested && member.group.is_none()));
    }

    #[test]
    fn nobody_is_called_by_the_id_of_a_node() {
        let id = NodeId([2; 32]).to_string();
        for alias in [id.clone(), id.to_uppercase()] {
            let named = names(&[claim(1, 1, &alias), claim(2, 2, "db")]);
            assert_eq!(name_of(&named, 1).name, word_name(NodeId([1; 32])));
            assert_eq!(name_of(&named, 2).name, "db");
        }
    }

    #[test]
    fn nobody_takes_the_longer_name_of_another() {
        let claims = [claim(1, 2, "db"), claim(2, 1, "db"), claim(3, 3, "db-aeaq")];
        let named = names(&claims);
        assert_eq!(name_of(&named, 3).name, "db-aeaq");
        assert_eq!(name_of(&named, 1).name, "db-aeaqc");
    }

    proptest! {
        #[test]
        fn names_are_unique_valid_and_independent_of_order(
            claims in proptest::collection::btree_map(
                any::<[u8; 2]>(), (0_u64..3, "[aA-]{0,2}|a-[a-b]{4}|.{0,70}", any::<bool>()), 0..30,
            ),
        ) {
            let claims: Vec<_> = claims.into_iter().map(|(id, (rank, alias, shared))| {
                let mut node = [0; 32];
                node[..2].copy_from_slice(&id);
                Claim { node: NodeId(node), rank, alias, shared }
            }).collect();
            let named = names(&claims);
            prop_assert_eq!(names(claims.iter().rev()), named.clone());
            let mut all: Vec<_> = named.values().map(|named| named.name.clone()).collect();
            all.extend(named.values().filter_map(|named| named.group.clone()).collect::<BTreeSet<_>>());
            for name in &all {
                prop_assert_eq!(label(name), Some(name.clone()));
            }
            let count = all.len();
            prop_assert_eq!(all.into_iter().collect::<BTreeSet<_>>().len(), count);
            prop_assert_eq!(named.len(), claims.len());
        }
    }
}
