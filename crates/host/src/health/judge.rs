//! From single looks to a report: what is wrong, since when, and whether that counts already. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use selvedge_model::Vni;

use super::{Check, Checks, Problem, Report};

/// How long a session has to be up again before its daemon is relied on. OSPF that was restarted
/// first withdraws what it had said before, and says the same again 5 s later at the earliest
/// (`MinLSInterval`, RFC 2328, appendix B): a network that came in between would not be attracted.
const SETTLE: Duration = Duration::from_secs(6);

/// What one look at everything of a check has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) check: Check,
    /// What it concerns if not the whole check: each task speaks for its own part.
    pub(super) part: &'static str,
    /// What is wrong, by subject. What is not here is well.
    pub(super) wrong: BTreeMap<Subject, String>,
    /// Whether it was seen to work, and not only that nothing is wrong.
    pub(super) works: bool,
}

/// What a look is at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Subject {
    Host(&'static str),
    Network(Vni),
}

impl Look {
    pub(super) const fn new(check: Check, part: &'static str) -> Self {
        Self { check, part, wrong: BTreeMap::new(), works: false }
    }

    /// A look at one thing of the host: whether it works, or need not, or what is wrong.
    pub(super) fn at(check: Check, subject: &'static str, outcome: Result<bool, String>) -> Self {
        let works = outcome == Ok(true);
        let wrong = outcome.err().map(|text| (Subject::Host(subject), text));
        Self { check, part: subject, wrong: wrong.into_iter().collect(), works }
    }
}

type Part = (Check, &'static str);

/// What is wrong, and how long.
#[derive(Debug)]
pub(super) struct Judge {
    checks: Checks,
    started: Instant,
    /// The parts that were not looked at yet.
    awaited: BTreeSet<Part>,
    /// The parts that were seen to work once.
    proven: BTreeSet<Part>,
    /// The sessions that were not up when last looked at.
    down: BTreeSet<Part>,
    /// Those that came up since, and when.
    settling: BTreeMap<Part, (Instant, u64)>,
    wrong: BTreeMap<(Part, Subject), Sighting>,
}

#[derive(Debug)]
struct Sighting {
    first: Instant,
    since: u64,
    text: String,
}

impl Judge {
    pub(super) fn new(checks: Checks, awaited: BTreeSet<Part>, started: Instant) -> Self {
        let (proven, down, settling, wrong) = Default::default();
        Self { checks, started, awaited, proven, down, settling, wrong }
    }

    /// Notes a look at `now`, which is `wall` in milliseconds since 1970.
    pub(super) fn note(&mut self, look: Look, now: Instant, wall: u64) {
        let part = (look.check, look.part);
        self.awaited.remove(&part);
        if look.works {
            self.proven.insert(part);
        }
        if part.0 == Check::Session {
            self.note_session(part, look.works, (now, wall));
        }
        self.wrong.retain(|(of, subject), _| *of != part || look.wrong.contains_key(subject));
        for (subject, text) in look.wrong {
            let fresh = || Sighting { first: now, since: wall, text: String::new() };
            self.wrong.entry((part, subject)).or_insert_with(fresh).text = text;
        }
    }

    /// A session that was not up and is up now has to settle.
    fn note_session(&mut self, part: Part, up: bool, at: (Instant, u64)) {
        if !up {
            self.settling.remove(&part);
            self.down.insert(part);
        } else if self.down.remove(&part) {
            self.settling.insert(part, at);
        }
    }

    /// What counts at `now`.
    pub(super) fn report(&self, now: Instant) -> Report {
        let mut report = Report { complete: self.awaited.is_empty(), ..Report::default() };
        for ((part, subject), sighting) in &self.wrong {
            let list = match self.counts_at(part, sighting) <= now {
                true => &mut report.problems,
                false => &mut report.pending,
            };
            list.push(problem(part.0, subject, sighting));
        }
        let settling = self.settling.iter().filter(|(_, (at, _))| now < *at + SETTLE);
        report.pending.extend(settling.map(|(part, (_, since))| settles(part, *since)));
        report
    }

    /// When the report changes next without a further look.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        let all = self.wrong.iter().map(|((part, _), sighting)| self.counts_at(part, sighting));
        let settled = self.settling.values().map(|(at, _)| *at + SETTLE);
        all.chain(settled).filter(|at| *at > now).min()
    }

    fn counts_at(&self, part: &Part, sighting: &Sighting) -> Instant {
        let grace = &self.checks.grace;
        let grace = match part.0 {
            Check::Carrier => grace.carrier,
            Check::Session => grace.session,
            Check::Bridge => grace.bridge,
            Check::Route | Check::Advert => grace.network,
        };
        let counts = sighting.first + grace;
        let coming_up = part.0 == Check::Session && !self.proven.contains(part);
        if coming_up { counts.max(self.started + self.checks.start) } else { counts }
    }
}

fn settles((check, daemon): &Part, since: u64) -> Problem {
    let (subject, network) = ((*daemon).to_owned(), None);
    let text = format!("{daemon} has just found its neighbours");
    Problem { check: *check, subject, network, text, since }
}

fn problem(check: Check, subject: &Subject, sighting: &Sighting) -> Problem {
    let (subject, network) = match subject {
        Subject::Host(name) => ((*name).to_owned(), None),
        Subject::Network(vni) => (vni.to_string(), Some(*vni)),
    };
    Problem { check, subject, network, text: sighting.text.clone(), since: sighting.since }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::Fitness;

    const SECOND: Duration = Duration::from_secs(1);

    fn judge(awaited: &[Part]) -> (Judge, Instant) {
        let started = Instant::now();
        (Judge::new(Checks::default(), awaited.iter().copied().collect(), started), started)
    }

    fn session(outcome: Result<bool, String>) -> Look {
        Look::at(Check::Session, "bgpd", outcome)
    }

    fn down() -> Result<bool, String> {
        Err("down".to_owned())
    }

    #[test]
    fn a_lost_carrier_counts_at_once_and_is_forgotten_when_it_is_back() {
        let (mut judge, now) = judge(&[]);
        judge.note(Look::at(Check::Carrier, "uplink", down()), now, 7);
        let report = judge.report(now);
        assert_eq!(report.fitness(), Fitness::Unfit);
        let problem = &report.problems[0];
        assert_eq!((problem.subject.as_str(), problem.since), ("uplink", 7));
        judge.note(Look::at(Check::Carrier, "uplink", Ok(true)), now, 8);
        assert_eq!(judge.report(now), Report { complete: true, ..Report::default() });
    }

    #[test]
    fn a_session_that_was_never_up_counts_when_the_start_is_over() {
        let (mut judge, now) = judge(&[]);
        judge.note(session(down()), now, 0);
        assert_eq!(judge.report(now + 29 * SECOND).fitness(), Fitness::Starting);
        assert_eq!(judge.deadline(now), Some(now + 30 * SECOND));
        assert_eq!(judge.report(now + 30 * SECOND).fitness(), Fitness::Unfit);
    }

    #[test]
    fn a_session_that_need_not_be_up_proves_nothing() {
        let (mut judge, now) = judge(&[]);
        judge.note(session(Ok(false)), now, 0);
        judge.note(session(down()), now + SECOND, 0);
        assert_eq!(judge.report(now + 29 * SECOND).fitness(), Fitness::Starting);
    }

    #[test]
    fn a_session_that_was_up_once_counts_after_its_grace() {
        let (mut judge, now) = judge(&[]);
        judge.note(session(Ok(true)), now, 0);
        judge.note(session(down()), now + SECOND, 1000);
        assert_eq!(judge.report(now + SECOND).fitness(), Fitness::Starting);
        assert_eq!(judge.deadline(now + SECOND), Some(now + 3 * SECOND));
        // Looking again does not start the time anew.
        judge.note(session(down()), now + 2 * SECOND, 2000);
        assert_eq!(judge.report(now + 2 * SECOND).fitness(), Fitness::Starting);
        let report = judge.report(now + 3 * SECOND);
        assert_eq!((report.fitness(), report.problems[0].since), (Fitness::Unfit, 1000));
        assert_eq!(judge.deadline(now + 3 * SECOND), None);
    }

    #[test]
    fn a_session_that_came_up_settles_first() {
        let (mut judge, now) = judge(&[]);
        judge.note(session(down()), now, 0);
        judge.note(session(Ok(true)), now + SECOND, 1000);
        judge.note(session(Ok(true)), now + 2 * SECOND, 2000);
        let report = judge.report(now + 6 * SECOND);
        assert_eq!((report.fitness(), report.pending[0].since), (Fitness::Starting, 1000));
        assert_eq!(judge.deadline(now + 6 * SECOND), Some(now + 7 * SECOND));
        assert_eq!(judge.report(now + 7 * SECOND), Report { complete: true, ..Report::default() });
        // So does one that nobody waited for; one that was up at the first look need not.
        judge.note(Look::at(Check::Session, "ospf6d", Ok(false)), now + 7 * SECOND, 0);
        judge.note(Look::at(Check::Session, "ospf6d", Ok(true)), now + 8 * SECOND, 0);
        assert_eq!(judge.report(now + 9 * SECOND).fitness(), Fitness::Starting);
        assert_eq!(judge.report(now + 14 * SECOND).fitness(), Fitness::Fit);
        judge.note(Look::at(Check::Session, "ospfd", Ok(true)), now + 14 * SECOND, 0);
        assert_eq!(judge.report(now + 14 * SECOND).fitness(), Fitness::Fit);
    }

    #[test]
    fn nobody_is_fit_before_everything_was_looked_at() {
        let (mut judge, now) = judge(&[(Check::Session, "bgpd"), (Check::Carrier, "uplink")]);
        judge.note(session(Ok(true)), now, 0);
        assert_eq!(judge.report(now).fitness(), Fitness::Starting);
        judge.note(Look::at(Check::Carrier, "uplink", Ok(true)), now, 0);
        assert_eq!(judge.report(now).fitness(), Fitness::Fit);
    }

    #[test]
    fn a_network_s_problem_is_its_own() {
        let (mut judge, now) = judge(&[]);
        let vni = Vni::try_from(7).expect("a VNI");
        let mut look = Look::new(Check::Route, "networks");
        look.wrong.insert(Subject::Network(vni), "no route".to_owned());
        judge.note(look, now, 0);
        let report = judge.report(now);
        assert_eq!((report.problems.len(), report.pending.len()), (0, 1));
        let later = judge.report(now + 15 * SECOND);
        assert_eq!(later.fitness(), Fitness::Fit);
        assert_eq!(later.networks().map(|(vni, _)| vni).collect::<Vec<_>>(), [vni]);
        judge.note(Look::new(Check::Route, "networks"), now + 16 * SECOND, 0);
        assert!(judge.report(now + 16 * SECOND).problems.is_empty());
    }

    #[test]
    fn parts_of_a_check_do_not_speak_for_each_other() {
        let (mut judge, now) = judge(&[]);
        judge.note(Look::at(Check::Carrier, "uplink", down()), now, 0);
        judge.note(Look::at(Check::Carrier, "fabric", Ok(true)), now, 0);
        assert_eq!(judge.report(now).problems.len(), 1);
    }
}
