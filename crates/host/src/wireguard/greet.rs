//! Whom to greet again. WireGuard repeats a handshake after five seconds at the soonest; when two
//! nodes hear of each other, one does so first, and its greeting is lost on the other.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use selvedge_model::WgKey;

/// How long after a peer was added it is greeted again, if it has not answered.
const AFTER: [Duration; 3] =
    [Duration::from_millis(300), Duration::from_secs(1), Duration::from_secs(2)];

/// So many peers are followed at most: of those that come at once, most answer at once.
const MAX: usize = 256;

/// A peer that comes and goes is greeted so often within this time, and not again before its end.
const TIMES: usize = 3;
const SPELL: Duration = Duration::from_secs(30);

/// The peers that were added a moment ago.
#[derive(Debug, Default)]
pub(super) struct Greetings(BTreeMap<WgKey, Fresh>);

#[derive(Clone, Copy, Debug)]
struct Fresh {
    first: Instant,
    times: usize,
    added: Instant,
    again: usize,
}

impl Fresh {
    fn due(self) -> Option<Instant> {
        Some(self.added + *AFTER.get(self.again)?)
    }
}

impl Greetings {
    /// Those of the peers that were added which are to be greeted, all but who come and go.
    pub(super) fn of(&mut self, added: Vec<WgKey>, now: Instant) -> Vec<WgKey> {
        self.0.retain(|_, fresh| now < fresh.first + SPELL);
        added.into_iter().filter(|key| self.may_greet(*key, now)).collect()
    }

    fn may_greet(&mut self, key: WgKey, now: Instant) -> bool {
        if let Some(fresh) = self.0.get_mut(&key) {
            fresh.times += 1;
            let greets = fresh.times <= TIMES;
            (fresh.added, fresh.again) = (now, if greets { 0 } else { AFTER.len() });
            return greets;
        }
        if self.0.len() < MAX {
            self.0.insert(key, Fresh { first: now, times: 1, added: now, again: 0 });
        }
        true
    }

    /// There was a handshake.
    pub(super) fn answered(&mut self, key: WgKey) {
        if let Some(fresh) = self.0.get_mut(&key) {
            fresh.again = AFTER.len();
        }
    }

    /// When the next of them are due to be greeted again.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.values().filter_map(|fresh| fresh.due()).min()
    }

    /// Those that are due, each of them once.
    pub(super) fn take(&mut self, now: Instant) -> Vec<WgKey> {
        let mut due = Vec::new();
        for (key, fresh) in &mut self.0 {
            if fresh.due().is_some_and(|at| at <= now) {
                due.push(*key);
                fresh.again += 1;
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_answer_is_greeted_three_times_more() {
        let (mut greetings, start) = (Greetings::default(), Instant::now());
        let (a, b) = (WgKey([1; 32]), WgKey([2; 32]));
        assert_eq!(greetings.next(), None);
        assert_eq!(greetings.of(vec![a, b], start), [a, b]);
        assert_eq!(greetings.next(), Some(start + AFTER[0]));
        assert_eq!(greetings.take(start), []);
        assert_eq!(greetings.take(start + AFTER[0]), [a, b]);
        assert_eq!(greetings.take(start + AFTER[0]), []);
        greetings.answered(b);
        assert_eq!(greetings.take(start + AFTER[1]), [a]);
        assert_eq!(greetings.take(start + AFTER[2]), [a]);
        assert_eq!(greetings.next(), None, "that was the last time");
    }

    #[test]
    fn not_too_many_are_followed() {
        let (mut greetings, now) = (Greetings::default(), Instant::now());
        let key = |number: u16| {
            let mut key = [0; 32];
            key[..2].copy_from_slice(&number.to_be_bytes());
            WgKey(key)
        };
        assert_eq!(greetings.of((0..2000).map(key).collect(), now).len(), 2000);
        assert_eq!(greetings.take(now + AFTER[0]).len(), MAX);
    }

    #[test]
    fn who_comes_and_goes_is_greeted_a_few_times() {
        let (mut greetings, start) = (Greetings::default(), Instant::now());
        let key = WgKey([1; 32]);
        let greeted = |at: u64| start + Duration::from_millis(100 * at);
        let often = (0..100).filter(|at| !greetings.of(vec![key], greeted(*at)).is_empty());
        assert_eq!(often.count(), TIMES);
        assert_eq!(greetings.of(vec![key], start + SPELL), [key]);
    }
}
