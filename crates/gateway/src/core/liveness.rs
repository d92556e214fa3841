//! Who hears whom: probes on every path to every voter, their acknowledgements, and what the
//! others say in both.
//!
//! This is what a node observes by itself; what follows from it is in [`super::verdict`] and
//! [`super::right`]. An observer that stalled does not trust its silence: nobody is silent for
//! longer than it has been awake.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use selvedge_model::{NodeName, Time};

use super::Timing;
use super::status;
use crate::kv::Revision;
use crate::probe::{Answer, Body, MAX_VOTERS, Message, News, Outgoing, Vote};

/// A pause of the observer that counts as a stall, in probe intervals.
const STALL: u32 = 3;
/// How many probes of a path may wait for their acknowledgements: more than `fence` covers.
const OUTSTANDING: usize = 32;
/// After how much silence a voter is probed less often, and how often then.
const LOST: Duration = Duration::from_secs(10);
const LOST_PROBE: Duration = Duration::from_secs(1);
/// The longest absence that a voter may announce.
const LONGEST_ABSENCE: Duration = Duration::from_secs(60);

/// What a voter needs to know of the others to watch over them.
#[derive(Debug)]
pub(super) struct Liveness {
    timing: Timing,
    rng: ChaCha8Rng,
    partners: BTreeMap<NodeName, Partner>,
    /// Since when this observer runs without a stall.
    awake_since: Time,
    /// When it last looked at the clock.
    looked_at: Time,
    probe_at: Time,
    sequence: u64,
    outgoing: VecDeque<Outgoing>,
}

/// Another voter.
#[derive(Debug, Default)]
struct Partner {
    incarnation: Option<Revision>,
    /// The incarnation that the store named last.
    registered: Option<Revision>,
    paths: Vec<Path>,
    /// When it last answered anything, in this incarnation.
    answered: Option<Time>,
    /// When the last probe was sent to which it answered that it hears this node.
    confirmed: Option<Time>,
    /// When it last answered that it has voted against this node.
    withheld: Option<Time>,
    news: Option<News>,
    news_at: Time,
    away_until: Option<Time>,
    probed: Option<Time>,
    /// Whether it counted as heard at the last look.
    was_heard: bool,
}

/// An address of another voter.
#[derive(Debug)]
struct Path {
    addr: SocketAddr,
    sent: VecDeque<(u64, Time)>,
    answered: Option<Time>,
    round_trip: Option<Duration>,
}

/// A voter as the store has it.
#[derive(Clone, Debug)]
pub(super) struct Registered {
    pub(super) name: NodeName,
    pub(super) incarnation: Option<Revision>,
    pub(super) addresses: Vec<SocketAddr>,
}

/// A voter that is heard again, or no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hearing {
    Heard(NodeName),
    Silent(NodeName, Duration),
}

impl Liveness {
    pub(super) fn new(timing: Timing, seed: u64, now: Time) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let first = timing.probe.mul_f64(rng.random_range(0.0..1.0));
        Self {
            timing,
            rng,
            partners: BTreeMap::new(),
            awake_since: now,
            looked_at: now,
            probe_at: now + first,
            sequence: 0,
            outgoing: VecDeque::new(),
        }
    }

    /// Takes in who there is. What was known of an incarnation that is still there stays.
    pub(super) fn set_partners(&mut self, registered: Vec<Registered>) {
        let mut before = std::mem::take(&mut self.partners);
        for Registered { name, incarnation, addresses } in registered {
            let known = before.remove(&name).filter(|known| known.is_still(incarnation));
            let fresh = || Partner { incarnation, ..Partner::default() };
            let mut partner = known.unwrap_or_else(fresh);
            partner.registered = incarnation.or(partner.registered);
            partner.set_addresses(&addresses);
            self.partners.insert(name, partner);
        }
    }

    /// Forgets who has heard this node: it was another incarnation. Nobody could answer the new
    /// one before, so nobody was silent.
    pub(super) fn begin(&mut self, now: Time) {
        self.awake_since = now;
        for partner in self.partners.values_mut() {
            (partner.confirmed, partner.withheld, partner.answered) = (None, None, None);
            partner.was_heard = false;
            partner.paths.iter_mut().for_each(|path| path.sent.clear());
        }
    }

    /// Looks at the clock; returns how long it had not, if that was a stall.
    pub(super) fn wake(&mut self, now: Time) -> Option<Duration> {
        let gap = now.since(self.looked_at);
        self.looked_at = self.looked_at.max(now);
        let stalled = self.is_watching() && gap > self.timing.probe * STALL;
        if stalled {
            self.awake_since = now;
        }
        stalled.then_some(gap)
    }

    /// Whether a voter is yet to answer this probe.
    pub(super) fn awaits(&self, name: &NodeName, nonce: u64) -> bool {
        let sent = |path: &Path| path.sent.iter().any(|(known, _)| *known == nonce);
        self.partners.get(name).is_some_and(|partner| partner.paths.iter().any(sent))
    }

    /// When everybody who is there has been heard, if nobody has been so far.
    pub(super) fn listened_at(&self) -> Time {
        self.awake_since + LOST_PROBE + self.timing.suspect
    }

    /// Whether there is anybody to watch over.
    pub(super) fn is_watching(&self) -> bool {
        !self.partners.is_empty()
    }

    /// When probes are due; `None` if there is nobody to probe.
    pub(super) fn due_at(&self) -> Option<Time> {
        self.is_watching().then_some(self.probe_at)
    }

    /// Probes whoever is due, if it is time. `news` is what to tell them.
    pub(super) fn probe(&mut self, incarnation: Revision, news: impl FnOnce() -> News, now: Time) {
        if now >= self.probe_at {
            self.skip(now);
            self.probe_all(incarnation, &news(), now, false);
        }
    }

    /// Tells everybody at once.
    pub(super) fn tell(&mut self, incarnation: Revision, news: &News, now: Time) {
        self.probe_all(incarnation, news, now, true);
    }

    /// Lets the time for probes pass.
    pub(super) fn skip(&mut self, now: Time) {
        if now >= self.probe_at {
            let late = now.since(self.probe_at) >= self.timing.probe;
            let from = if late { now } else { self.probe_at };
            self.probe_at = from + self.timing.probe;
        }
    }

    /// Takes in a message. Returns whether it is news of a registered incarnation.
    pub(super) fn take_in(
        &mut self,
        from: &NodeName,
        incarnation: Revision,
        body: Body,
        news: News,
        now: Time,
    ) -> bool {
        let Some(partner) = self.partners.get_mut(from) else { return false };
        // A node knows its own incarnation first.
        if Some(incarnation) > partner.incarnation.max(Some(Revision(0))) {
            partner.begin(incarnation);
        }
        if partner.incarnation != Some(incarnation) {
            return false;
        }
        if let Body::Ack { nonce, answer } = body {
            partner.acknowledge(nonce, answer, now);
        }
        partner.take_in_news(news, now)
    }

    /// Answers a probe on the way that it came.
    pub(super) fn answer(
        &mut self,
        to: &NodeName,
        addr: SocketAddr,
        nonce: u64,
        answer: Answer,
        incarnation: Revision,
        mut news: News,
    ) {
        self.sequence += 1;
        news.sequence = self.sequence;
        let body = Body::Ack { nonce, answer };
        let message = Message { incarnation, body, news };
        self.outgoing.push_back(Outgoing { to: to.clone(), addr, message });
    }

    pub(super) fn poll(&mut self) -> Option<Outgoing> {
        self.outgoing.pop_front()
    }

    /// Whether the voter answered a moment ago.
    pub(super) fn hears(&self, name: &NodeName, now: Time) -> bool {
        self.partners.get(name).is_some_and(|partner| self.is_heard(partner, now))
    }

    /// For how long a voter that was heard before, and is not away on purpose, has been silent,
    /// if that is long enough to suspect it; and since which incarnation.
    pub(super) fn silence(&self, name: &NodeName, now: Time) -> Option<(Revision, Duration)> {
        let partner = self.partners.get(name)?;
        let incarnation = partner.incarnation?;
        let silent = now.since(partner.answered?.max(self.awake_since));
        let suspicious = silent >= self.timing.suspect && !partner.is_away(now);
        suspicious.then_some((incarnation, silent))
    }

    /// When the next voter may become suspect.
    pub(super) fn next_suspicion(&self, now: Time) -> Option<Time> {
        let at = |partner: &Partner| {
            let from = partner.answered?.max(self.awake_since);
            Some((from + self.timing.suspect).max(partner.away_until.unwrap_or(Time::ZERO)))
        };
        self.partners.values().filter_map(at).filter(|at| *at > now).min()
    }

    /// When the probe was sent that the voter last answered by hearing this node.
    pub(super) fn confirmed(&self, name: &NodeName) -> Option<Time> {
        self.partners.get(name)?.confirmed
    }

    /// Whether anybody has said within `within` that it has voted against this node.
    pub(super) fn is_withheld(&self, within: Duration, now: Time) -> bool {
        let withheld = self.partners.values().filter_map(|partner| partner.withheld);
        withheld.max().is_some_and(|at| now.since(at) < within)
    }

    /// Whether the last word of anybody was that it has voted against this node.
    pub(super) fn is_left_against(&self) -> bool {
        self.partners.values().any(|partner| partner.withheld > partner.confirmed)
    }

    /// The last news of each registered incarnation.
    pub(super) fn news(&self) -> impl Iterator<Item = (&NodeName, Revision, &News)> {
        self.partners.iter().filter_map(|(name, partner)| {
            Some((name, partner.incarnation?, partner.news.as_ref()?))
        })
    }

    /// The votes of others against an incarnation.
    pub(super) fn votes_against<'a>(
        &'a self,
        suspect: &'a NodeName,
        incarnation: Revision,
    ) -> impl Iterator<Item = (&'a NodeName, &'a Vote)> {
        let matches =
            move |vote: &&Vote| vote.suspect == *suspect && vote.incarnation == incarnation;
        self.news()
            .filter_map(move |(name, _, news)| Some((name, news.votes.iter().find(matches)?)))
    }

    /// Whether the voter has answered within `within`.
    pub(super) fn heard_within(&self, name: &NodeName, within: Duration, now: Time) -> bool {
        let answered = self.partners.get(name).and_then(|partner| partner.answered);
        answered.is_some_and(|at| now.since(at) < within)
    }

    /// Whether the voter has said lately that it hears another.
    pub(super) fn says_it_hears(&self, name: &NodeName, other: &NodeName, now: Time) -> bool {
        let partner = self.partners.get(name);
        let recent = partner.filter(|it| now.since(it.news_at) < self.timing.lease);
        let news = recent.and_then(|partner| partner.news.as_ref());
        news.is_some_and(|news| news.hears.contains(other))
    }

    /// Whether the voter says that something keeps its host from serving as it should.
    pub(super) fn is_unfit(&self, name: &NodeName) -> bool {
        let news = self.partners.get(name).and_then(|partner| partner.news.as_ref());
        news.is_some_and(|news| news.unfit)
    }

    /// The voters that are heard.
    pub(super) fn heard(&self, now: Time) -> impl Iterator<Item = &NodeName> {
        let heard = move |(_, partner): &(&NodeName, &Partner)| self.is_heard(partner, now);
        self.partners.iter().filter(heard).map(|(name, _)| name)
    }

    /// The voters that are heard, or away on purpose: whose leases others keep alive.
    pub(super) fn expected(&self, now: Time) -> impl Iterator<Item = &NodeName> {
        let expected = move |(_, partner): &(&NodeName, &Partner)| {
            partner.is_away(now) || self.is_heard(partner, now)
        };
        self.partners.iter().filter(expected).map(|(name, _)| name)
    }

    /// Whether all that are heard have heard from this node since `since`.
    pub(super) fn is_known_since(&self, since: Time, now: Time) -> bool {
        let heard = self.partners.values().filter(|partner| self.is_heard(partner, now));
        let mut confirmed = heard.map(|partner| partner.confirmed);
        confirmed.all(|at| at.is_some_and(|at| at >= since))
    }

    /// Who is heard or silent since the last look.
    pub(super) fn changes(&mut self, now: Time) -> Vec<Hearing> {
        let (suspect, awake_since) = (self.timing.suspect, self.awake_since);
        let mut changes = Vec::new();
        for (name, partner) in &mut self.partners {
            let Some(answered) = partner.answered else { continue };
            let silent = now.since(answered.max(awake_since));
            if !partner.was_heard && now.since(answered) < suspect {
                partner.was_heard = true;
                changes.push(Hearing::Heard(name.clone()));
            } else if partner.was_heard && silent >= suspect && !partner.is_away(now) {
                partner.was_heard = false;
                changes.push(Hearing::Silent(name.clone(), silent));
            }
        }
        changes
    }

    pub(super) fn statuses(&self, now: Time) -> BTreeMap<NodeName, status::Partner> {
        let status = |(name, partner): (&NodeName, &Partner)| {
            (name.clone(), partner.status(self.is_heard(partner, now), now))
        };
        self.partners.iter().map(status).collect()
    }

    fn is_heard(&self, partner: &Partner, now: Time) -> bool {
        partner.answered.is_some_and(|at| now.since(at) < self.timing.suspect)
    }

    fn probe_all(&mut self, incarnation: Revision, news: &News, now: Time, urgent: bool) {
        for (name, partner) in &mut self.partners {
            if !urgent && !partner.is_due(now) {
                continue;
            }
            partner.probed = Some(now);
            for path in &mut partner.paths {
                self.sequence += 1;
                let nonce = self.rng.random();
                path.note_sent(nonce, now);
                let news = News { sequence: self.sequence, ..news.clone() };
                let message = Message { incarnation, body: Body::Probe { nonce }, news };
                self.outgoing.push_back(Outgoing { to: name.clone(), addr: path.addr, message });
            }
        }
    }
}

impl Partner {
    /// Whether what is known here is of the incarnation that the store names. A node knows its own
    /// first; but what the store says anew is so, though the node has had a higher one: by a store
    /// that was reset since.
    fn is_still(&self, registered: Option<Revision>) -> bool {
        let ahead = self.incarnation > registered && self.registered == registered;
        registered.is_none() || self.incarnation == registered || ahead
    }

    /// Forgets what was known of an earlier incarnation. The probes under way may be answered.
    fn begin(&mut self, incarnation: Revision) {
        let (paths, registered) = (std::mem::take(&mut self.paths), self.registered);
        *self = Self { incarnation: Some(incarnation), registered, paths, ..Self::default() };
    }

    fn set_addresses(&mut self, addresses: &[SocketAddr]) {
        let mut before = std::mem::take(&mut self.paths);
        for addr in addresses {
            let known = before.iter().position(|path| path.addr == *addr);
            let path = known.map_or_else(|| Path::new(*addr), |at| before.swap_remove(at));
            self.paths.push(path);
        }
    }

    fn is_away(&self, now: Time) -> bool {
        self.away_until.is_some_and(|until| now < until)
    }

    /// Whoever has been silent for long is probed less often.
    fn is_due(&self, now: Time) -> bool {
        let lost = self.answered.is_none_or(|at| now.since(at) > LOST);
        let recent = self.probed.is_some_and(|at| now.since(at) < LOST_PROBE);
        !(lost && recent)
    }

    fn acknowledge(&mut self, nonce: u64, answer: Answer, now: Time) {
        let taken = self.paths.iter_mut().find_map(|path| path.take(nonce, now));
        let Some(sent) = taken else { return };
        self.answered = Some(now);
        match answer {
            Answer::Alive => self.confirmed = self.confirmed.max(Some(sent)),
            Answer::Withheld => self.withheld = Some(now),
            Answer::Convicted | Answer::Unregistered | Answer::Unsure => {}
        }
    }

    fn take_in_news(&mut self, news: News, now: Time) -> bool {
        let known = self.news.as_ref().map_or(0, |known| known.sequence);
        if news.sequence <= known || news.electorate.voters.len() > MAX_VOTERS {
            return false;
        }
        let away = news.away.min(LONGEST_ABSENCE);
        self.away_until = (!away.is_zero()).then(|| now + away);
        self.news = Some(news);
        self.news_at = now;
        true
    }

    fn status(&self, heard: bool, now: Time) -> status::Partner {
        let ago = |at: Option<Time>| at.map(|at| now.since(at));
        let path = |path: &Path| status::PathStatus {
            addr: path.addr,
            silent_for: ago(path.answered),
            round_trip: path.round_trip,
        };
        status::Partner {
            heard,
            silent_for: ago(self.answered),
            paths: self.paths.iter().map(path).collect(),
            hears: self.news.as_ref().map(|news| news.hears.clone()).unwrap_or_default(),
            voted_by: Vec::new(),
            away: self.away_until.filter(|until| now < *until).map(|until| until.since(now)),
        }
    }
}

impl Path {
    const fn new(addr: SocketAddr) -> Self {
        Self { addr, sent: VecDeque::new(), answered: None, round_trip: None }
    }

    fn note_sent(&mut self, nonce: u64, now: Time) {
        self.sent.push_back((nonce, now));
        if self.sent.len() > OUTSTANDING {
            self.sent.pop_front();
        }
    }

    /// When the probe was sent that this answers. Each is answered once.
    fn take(&mut self, nonce: u64, now: Time) -> Option<Time> {
        let at = self.sent.iter().position(|(known, _)| *known == nonce)?;
        let (_, sent) = self.sent.remove(at)?;
        self.answered = Some(now);
        self.round_trip = Some(now.since(sent));
        Some(sent)
    }
}
