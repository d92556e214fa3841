//! Forwarding of packets by this host: switched on when it is asked for, and put back as it was.
//!
//! The kernel has one switch per protocol for the whole namespace. Setting it also sets that of
//! every interface, and makes a host that got its default route by router advertisement lose it;
//! so the interfaces' own values are kept, and advertisements are heard on.

use std::io;

use serde::{Deserialize, Serialize};

use crate::sysctl::{self, Family};

/// Why forwarding was not switched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The interfaces could not be listed. Nothing was changed.
    #[error("cannot list the interfaces under {0}: {1}")]
    List(&'static str, #[source] io::Error),
    /// A setting could not be read or written. What was changed before it is put back.
    #[error(transparent)]
    Sysctl(#[from] sysctl::Error),
}

/// What is changed, or was, to make this host forward. It is kept on disk before anything is
/// changed, so that it is put back also by an agent that is started after a crash.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[must_use = "a plan changes nothing, and what is not restored stays"]
pub struct Forwarding {
    /// In the order in which it was changed.
    changed: Vec<Changed>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Changed {
    v6: bool,
    interface: String,
    key: Key,
    before: i32,
    /// What it became. If it is something else by now, somebody else wants it so.
    after: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Key {
    Forwarding,
    AcceptRa,
    AcceptRedirects,
    SourceCheck,
}

/// Where the settings are, by interface.
const V4: &str = "/proc/sys/net/ipv4/conf";
const V6: &str = "/proc/sys/net/ipv6/conf";
/// The switch of all interfaces.
const ALL: &str = "all";
/// What `accept_ra` has to be for a router to take its routes from advertisements.
const ACCEPT_RA_ALWAYS: i32 = 2;

/// `rp_filter` of RFC 3704's loose mode.
const LOOSE: i32 = 2;

impl Forwarding {
    /// What is to be changed so that the host forwards IPv4 and IPv6, in the network namespace of
    /// the calling thread. Nothing if it does. Nothing is changed yet.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn switched_on() -> Result<Self, Error> {
        let mut plan = Self::default();
        for (family, folder) in [(Family::V4, V4), (Family::V6, V6)] {
            if get(family, ALL, Key::Forwarding)? == 0 {
                let interfaces = interfaces(folder).map_err(|error| Error::List(folder, error))?;
                plan.switch_on(family, &interfaces);
            }
        }
        Ok(plan)
    }

    /// What is to be changed so that all interfaces take IPv4 packets from where this host would
    /// send an answer by another one (RFC 3704, loose mode). The strict check does not know that
    /// the agent's own packets go another way than all others, and would drop the answers to them.
    /// Nothing is changed yet.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn loosened() -> Result<Self, Error> {
        let mut plan = Self::default();
        for interface in interfaces(V4).map_err(|error| Error::List(V4, error))? {
            // What counts is the greater of the interface's value and that of all. Interfaces
            // come and go.
            let own = get(Family::V4, &interface, Key::SourceCheck);
            let strict =
                sysctl::effective(&interface, Key::SourceCheck.name()).is_ok_and(|it| it == 1);
            let Ok(own) = own else { continue };
            if strict && interface != ALL {
                plan.add(Family::V4, &interface, Key::SourceCheck, own, LOOSE);
            }
        }
        Ok(plan)
    }

    /// Whether nothing is changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty()
    }

    /// This, and what was changed beside it or again since. What was there at first is what is put
    /// back.
    pub fn and(mut self, later: &Self) -> Self {
        for change in &later.changed {
            let same = |it: &&mut Changed| it.place() == change.place();
            match self.changed.iter_mut().find(same) {
                Some(known) => known.after = change.after,
                None => self.changed.push(change.clone()),
            }
        }
        self
    }

    /// Makes the changes. To be called when they are kept where they survive a crash.
    ///
    /// # Errors
    /// See [`Error`]. What was changed is put back.
    pub fn apply(&self) -> Result<(), Error> {
        for change in &self.changed {
            // What the kernel changes along with the others is only there to be put back.
            if change.key == Key::AcceptRedirects {
                continue;
            }
            if let Err(error) = change.set(change.after) {
                // The first error is the one that tells what is wrong.
                let _ = self.restore();
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Puts back what was changed, but for what others have changed since.
    ///
    /// # Errors
    /// The first setting that could not be written. All are tried.
    pub fn restore(&self) -> Result<(), Error> {
        // The switch of all resets those of the interfaces, so all are read first and it is the
        // first that is set. What cannot be read is of an interface that is gone.
        let ours = |it: &&Changed| it.get().is_ok_and(|now| now == it.after);
        let ours: Vec<&Changed> = self.changed.iter().filter(ours).collect();
        let is_switch = |it: &&Changed| it.interface == ALL && it.key == Key::Forwarding;
        let (all, each): (Vec<&Changed>, Vec<&Changed>) = ours.into_iter().partition(is_switch);
        let mut result = Ok(());
        for changed in all.into_iter().chain(each) {
            result = result.and(changed.set(changed.before).map_err(Error::from));
        }
        result
    }

    fn switch_on(&mut self, family: Family, interfaces: &[String]) {
        if family == Family::V4 {
            // The kernel does not take redirects any more when it begins to forward, and does again
            // when it ends.
            let before = get(family, ALL, Key::AcceptRedirects).unwrap_or(1);
            self.add(family, ALL, Key::AcceptRedirects, before, 0);
        } else {
            self.keep_routes(interfaces);
        }
        self.add(family, ALL, Key::Forwarding, 0, 1);
        for interface in interfaces.iter().filter(|it| *it != ALL) {
            // Not changed in effect, but to be set again when the switch of all resets it.
            if get(family, interface, Key::Forwarding).is_ok_and(|value| value == 1) {
                self.add(family, interface, Key::Forwarding, 1, 1);
            }
        }
    }

    /// Lets the interfaces that take advertisements go on doing so.
    fn keep_routes(&mut self, interfaces: &[String]) {
        for interface in interfaces {
            // Interfaces come and go.
            if get(Family::V6, interface, Key::AcceptRa).is_ok_and(|value| value == 1) {
                self.add(Family::V6, interface, Key::AcceptRa, 1, ACCEPT_RA_ALWAYS);
            }
        }
    }

    fn add(&mut self, family: Family, interface: &str, key: Key, before: i32, after: i32) {
        let v6 = family == Family::V6;
        self.changed.push(Changed { v6, interface: interface.to_owned(), key, before, after });
    }
}

impl Changed {
    const fn family(&self) -> Family {
        if self.v6 { Family::V6 } else { Family::V4 }
    }

    fn place(&self) -> (bool, &str, Key) {
        (self.v6, &self.interface, self.key)
    }

    fn get(&self) -> Result<i32, sysctl::Error> {
        get(self.family(), &self.interface, self.key)
    }

    fn set(&self, value: i32) -> Result<(), sysctl::Error> {
        sysctl::set(self.family(), &self.interface, self.key.name(), value)
    }
}

impl Key {
    const fn name(self) -> &'static str {
        match self {
            Self::Forwarding => "forwarding",
            Self::AcceptRa => "accept_ra",
            Self::AcceptRedirects => "accept_redirects",
            Self::SourceCheck => "rp_filter",
        }
    }
}

fn get(family: Family, interface: &str, key: Key) -> Result<i32, sysctl::Error> {
    sysctl::get(family, interface, key.name())
}

/// The names under a folder of settings, `all` and `default` among them.
fn interfaces(folder: &str) -> io::Result<Vec<String>> {
    let names = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().into_string().ok()));
    names.filter_map(io::Result::transpose).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{Netlink, NewLink};
    use crate::test_support;

    /// All settings that could be touched.
    fn settings() -> Vec<(String, i32)> {
        let mut found = Vec::new();
        for (family, folder) in [(Family::V4, V4), (Family::V6, V6)] {
            for interface in interfaces(folder).expect("readable") {
                for key in [Key::Forwarding, Key::AcceptRa, Key::AcceptRedirects] {
                    if let Ok(value) = get(family, &interface, key) {
                        found.push((format!("{family} {interface} {}", key.name()), value));
                    }
                }
            }
        }
        found.sort();
        found
    }

    fn enable() -> Forwarding {
        let plan = Forwarding::switched_on().expect("readable");
        plan.apply().expect("enabled");
        plan
    }

    fn in_namespace(test: &str, work: impl FnOnce() + Send) {
        let Some(namespace) = test_support::namespace(test) else { return };
        let prepared = namespace.run(|| {
            test_support::runtime().block_on(async {
                let netlink = Netlink::new().expect("a socket");
                for name in ["a0", "b0"] {
                    let far = format!("{name}far");
                    let new = NewLink::Veth { peer: &far, namespace: None };
                    netlink.add_link(name, &new).await.expect("made");
                }
            });
            sysctl::set(Family::V4, ALL, "forwarding", 0).expect("set");
            sysctl::set(Family::V6, ALL, "forwarding", 0).expect("set");
            work();
        });
        prepared.expect("entered");
    }

    #[test]
    fn everything_is_put_back() {
        in_namespace("forwarding: put back", || {
            sysctl::set(Family::V6, "a0", "forwarding", 1).expect("set");
            sysctl::set(Family::V4, "b0", "forwarding", 1).expect("set");
            sysctl::set(Family::V6, "b0", "accept_ra", 1).expect("set");
            sysctl::set(Family::V6, "a0", "accept_ra", 0).expect("set");
            sysctl::set(Family::V4, ALL, "accept_redirects", 0).expect("set");
            let before = settings();
            let plan = Forwarding::switched_on().expect("readable");
            assert_eq!(settings(), before, "a plan changes nothing");
            plan.apply().expect("enabled");
            for family in [Family::V4, Family::V6] {
                assert_eq!(get(family, "b0far", Key::Forwarding).expect("readable"), 1);
            }
            assert_eq!(get(Family::V6, "b0", Key::AcceptRa).expect("readable"), 2);
            assert_eq!(get(Family::V6, "a0", Key::AcceptRa).expect("readable"), 0);
            // As an agent would that was started after a crash.
            let text = serde_json::to_string(&plan).expect("written");
            let kept: Forwarding = serde_json::from_str(&text).expect("read");
            kept.restore().expect("restored");
            assert_eq!(settings(), before);
        });
    }

    #[test]
    fn what_others_want_stays() {
        in_namespace("forwarding: others", || {
            sysctl::set(Family::V4, ALL, "forwarding", 1).expect("set");
            sysctl::set(Family::V6, "b0", "accept_ra", 1).expect("set");
            sysctl::set(Family::V6, "a0", "forwarding", 1).expect("set");
            let on = enable();
            sysctl::set(Family::V6, "b0", "accept_ra", 0).expect("set");
            sysctl::set(Family::V6, "a0", "forwarding", 0).expect("set");
            on.restore().expect("restored");
            assert_eq!(get(Family::V4, ALL, Key::Forwarding).expect("readable"), 1);
            assert_eq!(get(Family::V6, "b0", Key::AcceptRa).expect("readable"), 0);
            assert_eq!(get(Family::V6, "a0", Key::Forwarding).expect("readable"), 0);
            let again = enable();
            assert!(!again.is_empty());
            assert!(enable().is_empty(), "it is on already");
            again.restore().expect("restored");
        });
    }

    #[test]
    fn what_others_switch_off_is_noticed_and_what_was_at_first_is_put_back() {
        in_namespace("forwarding: again", || {
            sysctl::set(Family::V6, "b0", "accept_ra", 1).expect("set");
            let before = settings();
            let on = enable();
            sysctl::set(Family::V4, ALL, "forwarding", 0).expect("set");
            let again = Forwarding::switched_on().expect("readable");
            assert!(!again.is_empty());
            again.apply().expect("enabled");
            assert_eq!(get(Family::V4, ALL, Key::Forwarding).expect("readable"), 1);
            on.and(&again).restore().expect("restored");
            assert_eq!(settings(), before);
        });
    }
}
