//! Names of meshes and interfaces.

use std::collections::BTreeSet;

use selvedge_model::{MeshId, NodeId};

/// The kernel's limit for the name of an interface, in bytes.
const MAX_INTERFACE: usize = 15;

/// The name of a mesh's interface: the pattern with the mesh's name in it, cut to what the
/// kernel allows, and numbered if it is taken.
pub(super) fn interface(pattern: &str, mesh: &str, taken: &BTreeSet<String>) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let full = pattern.replace("{name}", mesh);
    let full: String = full.chars().map(|c| if allowed(c) { c } else { '_' }).collect();
    let numbered = (2..).map(|number: u32| cut(&full, &number.to_string()));
    let mut names = std::iter::once(cut(&full, "")).chain(numbered);
    // There are more numbers than interfaces.
    names.find(|name| !taken.contains(name)).unwrap_or(full)
}

fn cut(full: &str, suffix: &str) -> String {
    let kept = &full[..full.len().min(MAX_INTERFACE - suffix.len())];
    format!("{kept}{suffix}")
}

/// Why a mesh was not found by what the user calls it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FindError {
    #[error("this node is in no mesh called {0:?}")]
    Unknown(String),
    #[error("{selector:?} may be any of the meshes {}", join(candidates))]
    Ambiguous { selector: String, candidates: Vec<MeshId> },
    #[error("the mesh has no member called {0:?}; name it by its whole id")]
    NoMember(String),
    #[error("{selector:?} may be any of the members {}", join(candidates))]
    AmbiguousMember { selector: String, candidates: Vec<NodeId> },
}

/// The mesh that `selector` means: an id, a name, or the unique beginning of an id.
pub(super) fn find<'a>(
    selector: &str,
    meshes: impl Iterator<Item = (MeshId, &'a str)> + Clone,
) -> Result<MeshId, FindError> {
    match meant(selector, meshes).as_slice() {
        [mesh] => Ok(*mesh),
        [] => Err(FindError::Unknown(selector.chars().take(80).collect())),
        several => {
            let (selector, candidates) = (selector.to_owned(), several.to_vec());
            Err(FindError::Ambiguous { selector, candidates })
        }
    }
}

/// The node that `selector` means among members with their names and aliases: an id, whoever has
/// it; a name, an alias, or the unique beginning of an id.
pub(super) fn find_member<'a>(
    selector: &str,
    members: impl Iterator<Item = (NodeId, &'a str)> + Clone,
) -> Result<NodeId, FindError> {
    if let Ok(node) = selector.parse() {
        return Ok(node);
    }
    let mut candidates = meant(selector, members);
    // A member may be called by its name and by its alias.
    candidates.dedup();
    match candidates.as_slice() {
        [node] => Ok(*node),
        [] => Err(FindError::NoMember(selector.chars().take(80).collect())),
        _ => Err(FindError::AmbiguousMember { selector: selector.to_owned(), candidates }),
    }
}

/// What has the id or the name; if nothing has, what has the name in other cases; else whose id
/// begins so.
fn meant<'a, T: Copy + ToString>(
    selector: &str,
    all: impl Iterator<Item = (T, &'a str)> + Clone,
) -> Vec<T> {
    let by = |matches: &dyn Fn(&(T, &str)) -> bool| -> Vec<T> {
        all.clone().filter(|one| matches(one)).map(|(id, _)| id).collect()
    };
    let exact = by(&|(id, _)| id.to_string() == selector);
    let named = by(&|(_, name)| *name == selector);
    let folded = by(&|(_, name)| name.eq_ignore_ascii_case(selector));
    let begun = by(&|(id, _)| !selector.is_empty() && id.to_string().starts_with(selector));
    [exact, named, folded, begun].into_iter().find(|found| !found.is_empty()).unwrap_or_default()
}

fn join(ids: &[impl ToString]) -> String {
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_fit_and_differ() {
        let mut taken = BTreeSet::new();
        let mut next = |mesh: &str| {
            let name = interface("sv-{name}", mesh, &taken);
            taken.insert(name.clone());
            name
        };
        assert_eq!(next("campus"), "sv-campus");
        assert_eq!(next("campus"), "sv-campus2");
        assert_eq!(next("a-very-long-name-of-a-mesh"), "sv-a-very-long-");
        assert_eq!(next("a-very-long-name-of-another"), "sv-a-very-long2");
        assert_eq!(next("odd/na me"), "sv-odd_na_me");
        assert_eq!(next("\u{fc}ber"), "sv-_ber");
    }

    #[test]
    fn meshes_are_found_by_id_name_and_beginning() {
        let (a, b, c) = (MeshId([1; 20]), MeshId([2; 20]), MeshId([2; 20].map(|_| 0x08)));
        let meshes = [(a, "one"), (b, "two"), (c, "two")];
        let find = |selector: &str| find(selector, meshes.into_iter());
        assert_eq!(find(&a.to_string()), Ok(a));
        assert_eq!(find("one"), Ok(a));
        assert_eq!(find(&a.to_string()[..6]), Ok(a));
        let ambiguous = FindError::Ambiguous { selector: "two".to_owned(), candidates: vec![b, c] };
        assert_eq!(find("two"), Err(ambiguous));
        assert_eq!(find("ONE"), Ok(a));
        for unknown in ["", "three"] {
            assert_eq!(find(unknown), Err(FindError::Unknown(unknown.to_owned())));
        }
    }
}
