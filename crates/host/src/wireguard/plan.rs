//! The difference between the peers that a device has and those that it shall have.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use selvedge_model::{Prefix, WgKey};

use super::{Error, PeerSpec};

/// How many peers a call touched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// New peers.
    pub added: usize,
    /// Peers whose endpoint, keepalive or prefixes changed.
    pub updated: usize,
    /// Peers that are gone.
    pub removed: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step<'a> {
    Remove(WgKey),
    Update(WgKey, Update<'a>),
    Add(WgKey, &'a PeerSpec),
}

impl Step<'_> {
    /// The peer, if it is a new one.
    pub(super) const fn added(&self) -> Option<WgKey> {
        match self {
            Self::Add(key, _) => Some(*key),
            Self::Update(..) | Self::Remove(_) => None,
        }
    }
}

/// What changes about a peer; `None` stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Update<'a> {
    pub(super) endpoint: Option<SocketAddr>,
    pub(super) keepalive: Option<Option<u16>>,
    pub(super) allowed: Option<&'a PeerSpec>,
}

/// Refuses what the device would silently resolve in favour of one of two peers.
pub(super) fn check(own: WgKey, desired: &BTreeMap<WgKey, PeerSpec>) -> Result<(), Error> {
    let mut owners: BTreeMap<Prefix, WgKey> = BTreeMap::new();
    for (key, spec) in desired {
        if *key == own {
            return Err(Error::OwnKey(*key));
        }
        for prefix in spec.allowed.iter().map(Prefix::network) {
            match owners.insert(prefix, *key) {
                Some(first) if first != *key => {
                    return Err(Error::SharedPrefix { prefix, first, second: *key });
                }
                Some(_) | None => {}
            }
        }
    }
    Ok(())
}

/// The steps from `applied` to `desired`. Removals come first, so that a prefix is free before
/// another peer gets it.
pub(super) fn plan<'a>(
    applied: &BTreeMap<WgKey, PeerSpec>,
    desired: &'a BTreeMap<WgKey, PeerSpec>,
) -> Vec<Step<'a>> {
    let gone = applied.keys().filter(|key| !desired.contains_key(key));
    let mut steps: Vec<_> = gone.map(|key| Step::Remove(*key)).collect();
    let mut added = Vec::new();
    for (key, spec) in desired {
        match applied.get(key) {
            None => added.push(Step::Add(*key, spec)),
            Some(old) if old != spec => steps.push(Step::Update(*key, difference(old, spec))),
            Some(_) => {}
        }
    }
    steps.append(&mut added);
    steps
}

fn difference<'a>(old: &PeerSpec, new: &'a PeerSpec) -> Update<'a> {
    Update {
        endpoint: new.endpoint.filter(|_| old.endpoint != new.endpoint),
        keepalive: (old.keepalive != new.keepalive).then_some(new.keepalive),
        allowed: (old.allowed != new.allowed).then_some(new),
    }
}

/// Takes the steps to `desired` in `applied`, too.
pub(super) fn follow(
    applied: &mut BTreeMap<WgKey, PeerSpec>,
    desired: &BTreeMap<WgKey, PeerSpec>,
    steps: &[Step<'_>],
) {
    for step in steps {
        let (Step::Remove(key) | Step::Add(key, _) | Step::Update(key, _)) = step;
        match desired.get(key) {
            Some(spec) => applied.insert(*key, spec.clone()),
            None => applied.remove(key),
        };
    }
}

pub(super) fn count(steps: &[Step<'_>]) -> Changes {
    let mut changes = Changes::default();
    for step in steps {
        match step {
            Step::Remove(_) => changes.removed += 1,
            Step::Update(..) => changes.updated += 1,
            Step::Add(..) => changes.added += 1,
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: WgKey = WgKey([1; 32]);
    const B: WgKey = WgKey([2; 32]);
    const C: WgKey = WgKey([3; 32]);

    fn spec(endpoint: &str, allowed: &[&str]) -> PeerSpec {
        PeerSpec {
            endpoint: endpoint.parse().ok(),
            allowed: allowed.iter().map(|text| text.parse().expect("a prefix")).collect(),
            keepalive: Some(25),
        }
    }

    #[test]
    fn nothing_to_do_is_no_step() {
        let peers = BTreeMap::from([(A, spec("192.0.2.1:1", &["fd00::1/128"]))]);
        assert_eq!(plan(&peers, &peers), []);
    }

    #[test]
    fn only_differences_are_steps() {
        let a = spec("192.0.2.1:1", &["fd00::1/128"]);
        let b = spec("192.0.2.2:1", &["fd00::2/128"]);
        let c = spec("", &["fd00::2/128"]);
        let moved = PeerSpec { endpoint: "192.0.2.9:1".parse().ok(), ..a.clone() };
        let applied = BTreeMap::from([(A, a), (B, b)]);
        let desired = BTreeMap::from([(A, moved.clone()), (C, c.clone())]);
        let update = Update { endpoint: moved.endpoint, ..Update::default() };
        let steps = plan(&applied, &desired);
        assert_eq!(steps, [Step::Remove(B), Step::Update(A, update), Step::Add(C, &c)]);
        assert_eq!(count(&steps), Changes { added: 1, updated: 1, removed: 1 });
        let mut followed = applied.clone();
        follow(&mut followed, &desired, &steps);
        assert_eq!(followed, desired);
    }

    #[test]
    fn each_part_of_a_peer_changes_alone() {
        let old = spec("192.0.2.1:1", &["fd00::1/128"]);
        let quiet = PeerSpec { keepalive: None, ..old.clone() };
        let update = Update { keepalive: Some(None), ..Update::default() };
        assert_eq!(difference(&old, &quiet), update);
        let wider = spec("192.0.2.1:1", &["fd00::1/128", "10.1.0.0/24"]);
        let update = Update { allowed: Some(&wider), ..Update::default() };
        assert_eq!(difference(&old, &wider), update);
        // An unknown endpoint does not make the device forget the one that it learned.
        assert_eq!(difference(&old, &PeerSpec { endpoint: None, ..old.clone() }).endpoint, None);
    }

    #[test]
    fn a_prefix_has_one_peer() {
        let twice = BTreeMap::from([
            (A, spec("", &["10.1.0.1/24"])),
            (B, spec("", &["10.1.0.0/24", "10.1.0.0/25"])),
        ]);
        let error = check(C, &twice).expect_err("10.1.0.0/24 is claimed twice");
        assert!(matches!(error, Error::SharedPrefix { first: A, second: B, .. }), "{error}");
        let within = BTreeMap::from([(A, spec("", &["10.1.0.1/24", "10.1.0.2/24"]))]);
        assert!(check(C, &within).is_ok());
        assert!(matches!(check(A, &within), Err(Error::OwnKey(A))));
    }
}
