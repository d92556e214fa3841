use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use selvedge_model::Time;

use super::beacon::Advert;

/// The constants of RFC 4861, section 10.
const MAX_INITIAL_INTERVAL: Duration = Duration::from_secs(16);
const MAX_INITIAL_ADVERTISEMENTS: u8 = 3;
const MIN_DELAY_BETWEEN: Duration = Duration::from_secs(3);
const MAX_ANSWER_DELAY: Duration = Duration::from_millis(500);

/// How long a network whose advertisement was due while all is silenced waits for its next turn.
const SILENT_PAUSE: Duration = Duration::from_secs(1);

/// When which network is advertised (RFC 4861, sections 6.2.4 and 6.2.6). All are multicast.
///
/// - Who begins to answer for a network advertises it with its next announcement, and again with
///   two more of them, at least 3 s apart. Without announcements these three come within 16 s
///   of each other.
/// - Then follow the unsolicited ones, each after a random time between the two intervals.
///   Announcements, which go on every few seconds, bring none forward: each would wake every
///   station of the network (RFC 7772).
/// - A solicitation is answered to all within half a second, but not earlier than 3 s after the
///   last advertisement. So no station can provoke more.
/// - Who no longer answers for a network just stops. The advertisement of RFC 4861, section
///   6.2.5, which says that the router is none any more, would make the stations give up the
///   shared link-local address, and with it the gateway that answers for it now.
#[derive(Debug)]
pub(super) struct Schedule {
    links: BTreeMap<u32, Link>,
    random: u64,
}

#[derive(Debug)]
struct Link {
    advert: Advert,
    /// How many of the first advertisements are still to come.
    initial: u8,
    sent: Option<Time>,
    due: Time,
}

impl Schedule {
    /// Nothing to advertise. Random times follow from the seed.
    pub(super) const fn new(seed: u64) -> Self {
        Self { links: BTreeMap::new(), random: seed }
    }

    /// What is to be advertised from now on, by the index of the interface.
    pub(super) fn handle_adverts(&mut self, adverts: &BTreeMap<u32, Advert>, now: Time) {
        self.links.retain(|index, _| adverts.contains_key(index));
        for (index, advert) in adverts {
            match self.links.get_mut(index) {
                Some(link) if Arc::ptr_eq(&link.advert.frame, &advert.frame) => {
                    link.handle_announced(advert, now);
                }
                Some(link) if link.advert.frame == advert.frame => {
                    link.handle_announced(advert, now);
                }
                Some(_) | None => {
                    let due = now + self.up_to(MAX_INITIAL_INTERVAL);
                    let mut link = Link::new(advert, due);
                    if advert.announced > 0 {
                        link.due = now;
                    }
                    self.links.insert(*index, link);
                }
            }
        }
    }

    /// A station asks who its router is.
    pub(super) fn handle_solicitation(&mut self, index: u32, now: Time) {
        let delay = self.up_to(MAX_ANSWER_DELAY);
        if let Some(link) = self.links.get_mut(&index) {
            let earliest = link.sent.map_or(now, |sent| now.max(sent + MIN_DELAY_BETWEEN));
            link.due = link.due.min(earliest + delay);
        }
    }

    /// The interfaces that are due count as advertised now. While all is `silent`, none is: they
    /// begin anew when that is over.
    pub(super) fn poll_due(&mut self, now: Time, silent: bool) -> Vec<u32> {
        let mut due = Vec::new();
        let random = &mut self.random;
        for (index, link) in self.links.iter_mut().filter(|(_, link)| link.due <= now) {
            if silent {
                link.initial = MAX_INITIAL_ADVERTISEMENTS;
                link.due = now + SILENT_PAUSE;
            } else {
                link.sent(now, random);
                due.push(*index);
            }
        }
        due
    }

    /// The frame for an interface, if it is to be advertised.
    pub(super) fn frame(&self, index: u32) -> Option<Arc<[u8]>> {
        self.links.get(&index).map(|link| Arc::clone(&link.advert.frame))
    }

    /// When [`poll_due`](Self::poll_due) has something next.
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        self.links.values().map(|link| link.due).min()
    }

    fn up_to(&mut self, most: Duration) -> Duration {
        between(&mut self.random, Duration::ZERO, most)
    }
}

impl Link {
    fn new(advert: &Advert, due: Time) -> Self {
        Self { advert: advert.clone(), initial: MAX_INITIAL_ADVERTISEMENTS, sent: None, due }
    }

    fn handle_announced(&mut self, advert: &Advert, now: Time) {
        let is_new = advert.announced > self.advert.announced;
        self.advert = advert.clone();
        let free = self.sent.is_none_or(|sent| now.since(sent) >= MIN_DELAY_BETWEEN);
        if is_new && free && self.initial > 0 {
            self.due = now;
        }
    }

    fn sent(&mut self, now: Time, random: &mut u64) {
        self.initial = self.initial.saturating_sub(1);
        self.sent = Some(now);
        let interval = between(random, self.advert.min_interval, self.advert.max_interval);
        let is_initial = self.initial > 0;
        self.due = now + if is_initial { interval.min(MAX_INITIAL_INTERVAL) } else { interval };
    }
}

/// A random time from `least` to `most`. The generator is splitmix64 (Steele et al., "Fast
/// splittable pseudorandom number generators", 2014): these times only have to differ.
fn between(random: &mut u64, least: Duration, most: Duration) -> Duration {
    *random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *random;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^= mixed >> 31;
    let span = most.saturating_sub(least).as_micros() as u64;
    least + Duration::from_micros(mixed % span.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BRIDGE: u32 = 7;

    fn at(millis: u64) -> Time {
        Time::from_micros(millis * 1000)
    }

    fn adverts(announced: u64) -> BTreeMap<u32, Advert> {
        let advert = Advert {
            frame: Arc::from([1_u8, 2, 3].as_slice()),
            announced,
            min_interval: Duration::from_secs(200),
            max_interval: Duration::from_secs(600),
        };
        [(BRIDGE, advert)].into()
    }

    fn serving(announced: u64) -> Schedule {
        let mut schedule = Schedule::new(1);
        schedule.handle_adverts(&adverts(announced), at(0));
        schedule
    }

    /// Every moment until `end` at which something is sent.
    fn run(schedule: &mut Schedule, end: Time) -> Vec<Time> {
        let mut sent = Vec::new();
        while let Some(due) = schedule.poll_timeout().filter(|due| *due <= end) {
            if !schedule.poll_due(due, false).is_empty() {
                sent.push(due);
            }
        }
        sent
    }

    #[test]
    fn a_new_owner_advertises_with_its_first_announcements() {
        let mut schedule = serving(1);
        assert_eq!(schedule.poll_due(at(0), false), [BRIDGE]);
        let mut sent = vec![0];
        for second in 1..60 {
            schedule.handle_adverts(&adverts(1 + second), at(second * 1000));
            if !schedule.poll_due(at(second * 1000), false).is_empty() {
                sent.push(second);
            }
        }
        assert_eq!(sent, [0, 3, 6], "3 s apart, and announcements bring no more than these");
    }

    #[test]
    fn an_adopted_network_is_advertised_soon_then_now_and_then() {
        for seed in 0..50 {
            let mut schedule = Schedule::new(seed);
            schedule.handle_adverts(&adverts(0), at(0));
            let sent = run(&mut schedule, at(4_000_000));
            assert!(sent[0] <= at(16_000), "{sent:?}");
            let gaps: Vec<Duration> = sent.windows(2).map(|pair| pair[1] - pair[0]).collect();
            assert!(gaps[..2].iter().all(|gap| *gap <= MAX_INITIAL_INTERVAL), "{gaps:?}");
            let steady = Duration::from_secs(200)..=Duration::from_secs(600);
            assert!(gaps[2..].iter().all(|gap| steady.contains(gap)), "{gaps:?}");
            assert!(gaps.len() > 6);
        }
    }

    #[test]
    fn solicitations_are_answered_soon_and_not_too_often() {
        for seed in 0..50 {
            let mut schedule = Schedule::new(seed);
            schedule.handle_adverts(&adverts(1), at(0));
            run(&mut schedule, at(100_000));
            let mut sent = Vec::new();
            for millis in (100_000..160_000).step_by(10) {
                schedule.handle_solicitation(BRIDGE, at(millis));
                sent.extend(schedule.poll_due(at(millis), false).iter().map(|_| at(millis)));
            }
            assert!(sent[0] <= at(100_510), "{sent:?}");
            let gaps: Vec<Duration> = sent.windows(2).map(|pair| pair[1] - pair[0]).collect();
            let allowed = MIN_DELAY_BETWEEN..=MIN_DELAY_BETWEEN + Duration::from_millis(510);
            assert!(gaps.iter().all(|gap| allowed.contains(gap)), "{gaps:?}");
        }
    }

    #[test]
    fn who_does_not_answer_says_nothing() {
        let mut schedule = serving(1);
        schedule.handle_solicitation(BRIDGE + 1, at(5));
        schedule.handle_adverts(&BTreeMap::new(), at(10));
        schedule.handle_solicitation(BRIDGE, at(20));
        assert_eq!(schedule.poll_due(at(4_000_000), false), [0; 0]);
        assert_eq!(schedule.poll_timeout(), None);
        assert!(schedule.frame(BRIDGE).is_none());
    }

    #[test]
    fn after_a_silence_it_begins_anew() {
        let mut schedule = serving(1);
        run(&mut schedule, at(60_000));
        schedule.handle_solicitation(BRIDGE, at(60_000));
        assert_eq!(schedule.poll_due(at(60_500), true), [0; 0]);
        assert_eq!(run(&mut schedule, at(61_500)), [at(61_500)]);
        assert_eq!(run(&mut schedule, at(93_500)).len(), 2);
    }

    #[test]
    fn a_bridge_with_another_address_is_advertised_anew() {
        let mut schedule = serving(1);
        run(&mut schedule, at(60_000));
        let mut adverts = adverts(1);
        adverts.get_mut(&BRIDGE).expect("there").frame = Arc::from([9_u8].as_slice());
        schedule.handle_adverts(&adverts, at(60_000));
        assert_eq!(schedule.poll_due(at(60_000), false), [BRIDGE]);
        assert_eq!(schedule.frame(BRIDGE).as_deref(), Some([9].as_slice()));
    }
}
