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

/// What was changed to make this host forward. It can be kept on disk, so that it is put back also
/// by an agent that was started after a crash.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[must_use = "what is not restored stays"]
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
    SourceCheck,
}

/// The switch of all interfaces.
const ALL: &str = "all";
/// What `accept_ra` has to be for a router to take its routes from advertisements.
const ACCEPT_RA_ALWAYS: i32 = 2;

/// `rp_filter` of RFC 3704's loose mode.
const LOOSE: i32 = 2;

impl Forwarding {
    /// Makes the host forward IPv4 and IPv6, in the network namespace of the calling thread. What
    /// is switched on already stays as it is.
    ///
    /// # Errors
    /// See [`Error`]. What was changed is put back.
    pub fn enable() -> Result<Self, Error> {
        let mut done = Self::default();
        match done.switch_on() {
            Ok(()) => Ok(done),
            Err(error) => {
                // The first error is the one that tells what is wrong.
                let _ = done.restore();
                Err(error)
            }
        }
    }

    /// Lets all interfaces take IPv4 packets from where this host would send an answer by another
    /// one (RFC 3704, loose mode). The strict check does not know that the agent's own packets go
    /// another way than all others, and would drop the answers to them.
    ///
    /// # Errors
    /// See [`Error`]. What was changed is put back.
    pub fn loosen() -> Result<Self, Error> {
        const FOLDER: &str = "/proc/sys/net/ipv4/conf";
        let mut done = Self::default();
        for interface in interfaces(FOLDER).map_err(|error| Error::List(FOLDER, error))? {
            // What counts is the greater of the interface's value and that of all. Interfaces
            // come and go.
            let own = get(Family::V4, &interface, Key::SourceCheck);
            let strict =
                sysctl::effective(&interface, Key::SourceCheck.name()).is_ok_and(|it| it == 1);
            let Ok(own) = own else { continue };
            if strict
                && interface != ALL
                && let Err(error) = done.set(Family::V4, &interface, Key::SourceCheck, own, LOOSE)
            {
                // The first error is the one that tells what is wrong.
                let _ = done.restore();
                return Err(error);
            }
        }
        Ok(done)
    }

    /// Whether anything was changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty()
    }

    /// Puts back what was changed, but for what others have changed since.
    ///
    /// # Errors
    /// The first setting that could not be written. All are tried.
    pub fn restore(self) -> Result<(), Error> {
        let mut result = Ok(());
        // The switch of all first: it resets those of the interfaces.
        let (all, each): (Vec<_>, Vec<_>) =
            self.changed.into_iter().partition(|it| it.interface == ALL);
        for changed in all.iter().chain(&each) {
            result = result.and(changed.put_back());
        }
        result
    }

    fn switch_on(&mut self) -> Result<(), Error> {
        for (family, folder) in
            [(Family::V4, "/proc/sys/net/ipv4/conf"), (Family::V6, "/proc/sys/net/ipv6/conf")]
        {
            if get(family, ALL, Key::Forwarding)? == 1 {
                continue;
            }
            let interfaces = interfaces(folder).map_err(|error| Error::List(folder, error))?;
            if family == Family::V6 {
                self.keep_routes(&interfaces)?;
            }
            let forwarding = interfaces.iter().filter(|it| *it != ALL);
            let already: Vec<String> = forwarding
                .filter(|it| get(family, it, Key::Forwarding).is_ok_and(|value| value == 1))
                .cloned()
                .collect();
            self.set(family, ALL, Key::Forwarding, 0, 1)?;
            // Not changed in effect, but to be set again when the switch of all resets it.
            for interface in already {
                self.set(family, &interface, Key::Forwarding, 1, 1)?;
            }
        }
        Ok(())
    }

    /// Lets the interfaces that take advertisements go on doing so.
    fn keep_routes(&mut self, interfaces: &[String]) -> Result<(), Error> {
        for interface in interfaces {
            // Interfaces come and go.
            if get(Family::V6, interface, Key::AcceptRa).is_ok_and(|value| value == 1) {
                self.set(Family::V6, interface, Key::AcceptRa, 1, ACCEPT_RA_ALWAYS)?;
            }
        }
        Ok(())
    }

    fn set(
        &mut self,
        family: Family,
        interface: &str,
        key: Key,
        before: i32,
        after: i32,
    ) -> Result<(), Error> {
        sysctl::set(family, interface, key.name(), after)?;
        let v6 = family == Family::V6;
        self.changed.push(Changed { v6, interface: interface.to_owned(), key, before, after });
        Ok(())
    }
}

impl Changed {
    fn put_back(&self) -> Result<(), Error> {
        let family = if self.v6 { Family::V6 } else { Family::V4 };
        let Ok(now) = get(family, &self.interface, self.key) else {
            // The interface is gone.
            return Ok(());
        };
        if now == self.after || self.after == self.before {
            sysctl::set(family, &self.interface, self.key.name(), self.before)?;
        }
        Ok(())
    }
}

impl Key {
    const fn name(self) -> &'static str {
        match self {
            Self::Forwarding => "forwarding",
            Self::AcceptRa => "accept_ra",
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
        for (family, folder) in
            [(Family::V4, "/proc/sys/net/ipv4/conf"), (Family::V6, "/proc/sys/net/ipv6/conf")]
        {
            for interface in interfaces(folder).expect("readable") {
                for key in [Key::Forwarding, Key::AcceptRa] {
                    if let Ok(value) = get(family, &interface, key) {
                        found.push((format!("{family} {interface} {}", key.name()), value));
                    }
                }
            }
        }
        found.sort();
        found
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
            let before = settings();
            let on = Forwarding::enable().expect("enabled");
            for family in [Family::V4, Family::V6] {
                assert_eq!(get(family, "b0far", Key::Forwarding).expect("readable"), 1);
            }
            assert_eq!(get(Family::V6, "b0", Key::AcceptRa).expect("readable"), 2);
            assert_eq!(get(Family::V6, "a0", Key::AcceptRa).expect("readable"), 0);
            // As an agent would that was started after a crash.
            let text = serde_json::to_string(&on).expect("written");
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
            let on = Forwarding::enable().expect("enabled");
            sysctl::set(Family::V6, "b0", "accept_ra", 0).expect("set");
            on.restore().expect("restored");
            assert_eq!(get(Family::V4, ALL, Key::Forwarding).expect("readable"), 1);
            assert_eq!(get(Family::V6, "b0", Key::AcceptRa).expect("readable"), 0);
            let again = Forwarding::enable().expect("enabled");
            assert!(!again.is_empty());
            assert!(Forwarding::enable().expect("enabled").is_empty(), "it is on already");
            again.restore().expect("restored");
        });
    }
}
