//! Where this host sends packets into a tunnel.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// So many are remembered at most.
const MAX: usize = 1024;
/// What is sent to one destination in a row is noted this often.
const OFTEN: Duration = Duration::from_millis(500);
/// If there are too many, those that nothing was sent to for so long are forgotten.
const OLD: Duration = Duration::from_secs(10);

/// The members that packets were sent to, and when that was last. All clones are one.
#[derive(Clone, Debug, Default)]
pub struct Destinations(Arc<Mutex<BTreeMap<IpAddr, Instant>>>);

impl Destinations {
    /// To whom something was sent within this time, ascending.
    #[must_use]
    pub fn within(&self, time: Duration) -> Vec<IpAddr> {
        let noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = noted.iter().filter(|(_, at)| at.elapsed() <= time);
        recent.map(|(address, _)| *address).collect()
    }

    fn note(&self, address: IpAddr, now: Instant) {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if noted.len() >= MAX {
            noted.retain(|_, at| now.saturating_duration_since(*at) < OLD);
        }
        if noted.len() < MAX || noted.contains_key(&address) {
            noted.insert(address, now);
        }
    }
}

/// Notes destinations without touching what all share for each packet of a stream.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Noting(Option<(IpAddr, Instant)>);

impl Noting {
    pub(super) fn note(&mut self, destinations: &Destinations, address: IpAddr, now: Instant) {
        let same = |(last, at): (IpAddr, Instant)| last == address && now < at + OFTEN;
        if !self.0.is_some_and(same) {
            destinations.note(address, now);
            self.0 = Some((address, now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(number).into()
    }

    #[test]
    fn destinations_are_remembered_for_a_while() {
        let (all, mut noting) = (Destinations::default(), Noting::default());
        let now = Instant::now();
        let Some(before) = now.checked_sub(OLD * 2) else { return };
        noting.note(&all, ip(1), before);
        noting.note(&all, ip(2), now);
        noting.note(&all, ip(2), now);
        assert_eq!(all.within(OLD), [ip(2)]);
        assert_eq!(all.within(OLD * 100), [ip(1), ip(2)]);
    }

    #[test]
    fn a_stream_is_noted_again_and_again() {
        let (all, mut noting) = (Destinations::default(), Noting::default());
        let start = Instant::now();
        noting.note(&all, ip(1), start);
        all.0.lock().expect("whole").clear();
        noting.note(&all, ip(1), start + OFTEN / 2);
        assert!(all.0.lock().expect("whole").is_empty(), "so soon it costs nothing");
        noting.note(&all, ip(1), start + OFTEN);
        assert!(!all.0.lock().expect("whole").is_empty());
    }

    #[test]
    fn there_are_never_too_many() {
        let all = Destinations::default();
        let start = Instant::now();
        (0..5000).for_each(|number| all.note(ip(number), start));
        assert_eq!(all.0.lock().expect("whole").len(), MAX);
        all.note(ip(9999), start + OLD);
        assert!(all.0.lock().expect("whole").contains_key(&ip(9999)), "the old ones made room");
    }
}
