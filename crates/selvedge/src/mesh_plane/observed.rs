//! The address at which others see this node: behind a NAT that gives it an address of its own, as
//! clouds do, it knows of none that leads to it. Partners tell what they see, and what two of them
//! agree on is announced behind the addresses that this node knows itself.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use selvedge_mesh::{Endpoint, Profile};
use selvedge_model::NodeId;

/// How long a word counts. Who sees us says so every 30 s.
const VALID: Duration = Duration::from_secs(300);
/// How many partners have to agree, if there are so many.
const AGREE: usize = 2;
/// So often a change is followed at once; others wait until the house is kept.
const HURRY: Duration = Duration::from_secs(30);
/// How many partners' words are kept, and how many addresses are announced at most.
const MAX_SAID: usize = 64;
const MAX_PLACES: usize = 4;

/// What partners said, each of IPv4 and of IPv6.
#[derive(Debug, Default)]
pub(super) struct Observed {
    said: BTreeMap<(NodeId, bool), (IpAddr, Instant)>,
    /// When a change was followed at once.
    hurried: Option<Instant>,
}

impl Observed {
    /// A partner sees this node there.
    pub(super) fn note(&mut self, by: NodeId, ip: IpAddr, now: Instant) {
        self.said.insert((by, ip.is_ipv6()), (ip, now));
        if self.said.len() > MAX_SAID {
            let oldest = self.said.iter().min_by_key(|(_, (_, at))| *at).map(|(by, _)| *by);
            oldest.map(|by| self.said.remove(&by));
        }
    }

    /// Whether to follow a change at once: not each time, or a partner that says this and that would
    /// keep the whole mesh busy.
    pub(super) fn hurry(&mut self, now: Instant) -> bool {
        let may = self.hurried.is_none_or(|at| now >= at + HURRY);
        if may {
            self.hurried = Some(now);
        }
        may
    }

    /// The addresses on which enough of so many partners agree.
    pub(super) fn places(&self, partners: usize, now: Instant) -> Vec<IpAddr> {
        let mut count: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for (ip, _) in self.said.values().filter(|(_, at)| now < *at + VALID) {
            *count.entry(*ip).or_default() += 1;
        }
        let enough = partners.clamp(1, AGREE);
        let agreed = count.into_iter().filter(|(_, said)| *said >= enough).map(|(ip, _)| ip);
        agreed.take(MAX_PLACES).collect()
    }
}

/// Adds what is observed to a profile, behind what the node knows itself. That a NAT leaves the
/// agent's port alone is why WireGuard's is taken for granted, too.
pub(super) fn announce(profile: &mut Profile, observed: &[IpAddr], control: u16, wireguard: u16) {
    for (list, port) in [(&mut profile.control, control), (&mut profile.endpoints, wireguard)] {
        let unknown = |ip: &&IpAddr| !list.iter().any(|known| known.addr.ip() == **ip);
        let place = |ip: &IpAddr| Endpoint { addr: SocketAddr::new(*ip, port), observed: true };
        let more: Vec<_> = observed.iter().filter(unknown).map(place).collect();
        list.extend(more);
    }
}

/// What to tell a member that is heard `from` somewhere: nothing if it knows that address itself, or
/// if what is in between changes its port, so that nobody else would reach it there.
pub(super) fn news(profile: &Profile, from: SocketAddr) -> Option<IpAddr> {
    let ip = from.ip().to_canonical();
    let same_port = profile.control.iter().any(|it| it.addr.port() == from.port());
    let known = profile.control.iter().any(|it| it.addr.ip() == ip && !it.observed);
    let tells = !profile.client && same_port && !known && !ip.is_loopback();
    tells.then_some(ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEN: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 7));

    #[test]
    fn two_agree_or_the_only_one_says_so() {
        let (mut observed, now) = (Observed::default(), Instant::now());
        observed.note(NodeId([1; 32]), SEEN, now);
        assert_eq!(observed.places(1, now), [SEEN]);
        assert_eq!(observed.places(5, now), [] as [IpAddr; 0], "one of five may be wrong");
        observed.note(NodeId([2; 32]), SEEN, now + VALID / 2);
        assert_eq!(observed.places(5, now + VALID / 2), [SEEN]);
        assert_eq!(observed.places(5, now + VALID), [] as [IpAddr; 0], "the first is old");
        observed.note(NodeId([2; 32]), IpAddr::from([10, 0, 0, 1]), now);
        assert_eq!(observed.places(5, now), [] as [IpAddr; 0], "they do not agree");
    }

    #[test]
    fn no_more_is_kept_than_there_is_room() {
        let (mut observed, now) = (Observed::default(), Instant::now());
        for number in 0..=255 {
            observed.note(NodeId([number; 32]), SEEN, now + Duration::from_secs(number.into()));
        }
        assert_eq!(observed.said.len(), MAX_SAID);
        assert!(observed.said.contains_key(&(NodeId([255; 32]), false)), "the newest are");
    }

    #[test]
    fn who_says_this_and_that_keeps_nobody_busy() {
        let (mut observed, now) = (Observed::default(), Instant::now());
        assert!(observed.hurry(now) && !observed.hurry(now + HURRY / 2));
        assert!(observed.hurry(now + HURRY));
    }

    #[test]
    fn what_is_observed_comes_last_and_is_marked() {
        let own: SocketAddr = ([10, 0, 0, 1], 7654).into();
        let mut profile = Profile { control: vec![own.into()], ..Profile::default() };
        announce(&mut profile, &[SEEN, own.ip()], 7654, 51820);
        let of =
            |list: &[Endpoint]| list.iter().map(|it| (it.addr, it.observed)).collect::<Vec<_>>();
        let seen = |port| SocketAddr::new(SEEN, port);
        assert_eq!(of(&profile.control), [(own, false), (seen(7654), true)]);
        assert_eq!(of(&profile.endpoints)[0], (seen(51820), true));
    }

    #[test]
    fn a_member_is_told_what_it_does_not_know() {
        let own: SocketAddr = ([10, 0, 0, 1], 7654).into();
        let mut profile = Profile { control: vec![own.into()], ..Profile::default() };
        let seen = SocketAddr::new(SEEN, 7654);
        assert_eq!(news(&profile, seen), Some(SEEN));
        assert_eq!(news(&profile, own), None, "it knows");
        assert_eq!(news(&profile, SocketAddr::new(SEEN, 9999)), None, "another port each time");
        let observed = Endpoint { addr: seen, observed: true };
        profile.control.push(observed);
        assert_eq!(news(&profile, seen), Some(SEEN), "it is to know that this is still so");
        profile.control[1].observed = false;
        assert_eq!(news(&profile, seen), None, "it is configured there");
        profile.control.pop();
        profile.client = true;
        assert_eq!(news(&profile, seen), None, "a client is behind a NAT by nature");
    }
}
