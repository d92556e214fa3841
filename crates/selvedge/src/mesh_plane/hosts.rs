//! The addresses of hosts that members name as their endpoints: asked for in the background, and
//! again and again, because names are given to hosts whose addresses change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use selvedge_mesh::Profile;

/// How long an answer is used until it is asked for again.
const FRESH: Duration = Duration::from_secs(300);
/// How long to wait after the first question without an answer, and at most.
const AGAIN: Duration = Duration::from_secs(5);
const SELDOM: Duration = Duration::from_secs(3600);
/// How many questions are under way at most: members choose the names.
const MAX_ASKED: usize = 16;

/// What is known of the hosts that are named.
#[derive(Debug, Default)]
pub(super) struct Hosts(BTreeMap<String, Host>);

#[derive(Debug)]
struct Host {
    addrs: BTreeSet<IpAddr>,
    /// When to ask; `None`: it is being asked.
    due: Option<Instant>,
    /// How long to wait if there is no answer.
    wait: Duration,
}

impl Hosts {
    /// From now on these are of interest, and no others.
    pub(super) fn want(&mut self, names: BTreeSet<String>, now: Instant) {
        self.0.retain(|name, _| names.contains(name));
        for name in names {
            let new = || Host { addrs: BTreeSet::new(), due: Some(now), wait: AGAIN };
            self.0.entry(name).or_insert_with(new);
        }
    }

    /// When the next one is to be asked for.
    pub(super) fn due(&self) -> Option<Instant> {
        if self.asked() < MAX_ASKED {
            self.0.values().filter_map(|host| host.due).min()
        } else {
            None
        }
    }

    /// Those to ask for now; [`Hosts::note`] is to be called with each answer.
    pub(super) fn ask(&mut self, now: Instant) -> Vec<String> {
        let room = MAX_ASKED.saturating_sub(self.asked());
        let due = self.0.iter_mut().filter(|(_, host)| host.due.is_some_and(|due| due <= now));
        let asked = due.take(room).map(|(name, host)| {
            host.due = None;
            name.clone()
        });
        asked.collect()
    }

    /// Takes an answer in; `None` if there is none. Whether it differs from what was known.
    pub(super) fn note(
        &mut self,
        name: &str,
        answer: Option<BTreeSet<IpAddr>>,
        now: Instant,
    ) -> bool {
        let Some(host) = self.0.get_mut(name) else { return false };
        let Some(addrs) = answer else {
            // What was known is better than nothing.
            host.due = Some(now + host.wait);
            host.wait = (host.wait * 2).min(SELDOM);
            return false;
        };
        (host.due, host.wait) = (Some(now + FRESH), AGAIN);
        let differs = host.addrs != addrs;
        host.addrs = addrs;
        differs
    }

    /// The names in a profile as endpoints behind its own: those of WireGuard, or of the agent.
    pub(super) fn resolve(&self, profile: &mut Profile) {
        for named in &profile.names {
            let addrs = || self.0.get(&named.host).into_iter().flat_map(|host| &host.addrs);
            for (list, port) in
                [(&mut profile.endpoints, named.port), (&mut profile.control, named.control)]
            {
                let places = addrs().filter(|_| port != 0);
                list.extend(places.map(|ip| SocketAddr::new(*ip, port).into()));
            }
        }
    }

    fn asked(&self) -> usize {
        self.0.values().filter(|host| host.due.is_none()).count()
    }
}

/// Asks the host's resolver.
pub(super) async fn look_up(name: &str) -> Option<BTreeSet<IpAddr>> {
    match tokio::net::lookup_host((name, 0)).await {
        Ok(found) => Some(found.map(|addr| addr.ip()).collect()),
        Err(error) => {
            tracing::debug!(name, %error, "a member's name has no address");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use selvedge_mesh::NamedEndpoint;

    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn answer(last: u8) -> Option<BTreeSet<IpAddr>> {
        Some([IpAddr::from([192, 0, 2, last])].into())
    }

    #[test]
    fn names_without_an_answer_are_asked_for_ever_more_seldom() {
        let (mut hosts, mut now) = (Hosts::default(), Instant::now());
        hosts.want(names(&["a.example"]), now);
        let mut waits = Vec::new();
        for _ in 0..14 {
            assert_eq!(hosts.ask(now), ["a.example"]);
            assert_eq!((hosts.ask(now), hosts.due()), (Vec::new(), None), "it is being asked");
            assert!(!hosts.note("a.example", None, now));
            let due = hosts.due().expect("later");
            waits.push(due - now);
            now = due;
        }
        assert_eq!(waits[..3], [5, 10, 20].map(Duration::from_secs));
        assert_eq!(waits[13], SELDOM);
        hosts.ask(now);
        assert!(hosts.note("a.example", answer(1), now));
        assert_eq!(hosts.due(), Some(now + FRESH));
        hosts.ask(now + FRESH);
        assert!(!hosts.note("a.example", answer(1), now + FRESH), "nothing new");
        hosts.ask(now + FRESH * 2);
        assert!(!hosts.note("a.example", None, now + FRESH * 2));
        assert_eq!(hosts.due(), Some(now + FRESH * 2 + AGAIN), "from the beginning");
    }

    #[test]
    fn nobody_has_more_asked_for_than_there_is_room() {
        let (mut hosts, now) = (Hosts::default(), Instant::now());
        hosts.want((0..40).map(|number| format!("h{number}.example")).collect(), now);
        assert_eq!(hosts.ask(now).len(), MAX_ASKED);
        assert_eq!((hosts.ask(now).len(), hosts.due()), (0, None));
        hosts.want(BTreeSet::new(), now);
        assert!(hosts.0.is_empty() && !hosts.note("h1.example", answer(1), now));
    }

    #[test]
    fn names_follow_the_addresses_of_a_member() {
        let (mut hosts, now) = (Hosts::default(), Instant::now());
        hosts.want(names(&["a.example"]), now);
        hosts.note("a.example", answer(1), now);
        let named = |host: &str, control| NamedEndpoint { host: host.to_owned(), port: 5, control };
        let own: SocketAddr = ([198, 51, 100, 1], 5).into();
        let mut profile = Profile {
            endpoints: vec![own.into()],
            names: vec![named("a.example", 0), named("unknown.example", 7)],
            ..Profile::default()
        };
        hosts.resolve(&mut profile);
        let found: Vec<_> = profile.endpoints.iter().map(|endpoint| endpoint.addr).collect();
        assert_eq!(found, [own, ([192, 0, 2, 1], 5).into()]);
        assert!(profile.control.is_empty(), "its agent has no port there");
    }

    #[tokio::test]
    async fn the_hosts_resolver_is_asked() {
        // A number is an address without any server of names (inet_aton(3)).
        assert_eq!(look_up("0xc0000201").await, answer(1));
        assert_eq!(look_up("nobody.invalid").await, None);
    }
}
