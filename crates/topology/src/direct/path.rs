//! One direct path, as one of its ends sees it.

use std::net::SocketAddr;
use std::time::Duration;

use selvedge_model::Time;

use super::{Link, Word};

/// How long to wait for an answer before the partner is asked again, and how often it is asked.
const ANSWER: Duration = Duration::from_secs(1);
const QUESTIONS: u8 = 6;
/// How long handshakes are sent to one place. WireGuard repeats them after 5 s.
const TRY: Duration = Duration::from_secs(6);
/// How often the partner is told that there is a session until it says the same.
const REPEAT: Duration = Duration::from_millis(500);
/// How often something is sent over a path that carries packets, and how long nothing may be heard.
const PROBE: Duration = Duration::from_secs(2);
const SILENT: Duration = Duration::from_secs(7);
/// More bytes than that between two looks are more than probes and handshakes.
const USE: u64 = 400;
/// How long a path may carry nothing.
const IDLE: Duration = Duration::from_secs(180);
/// The pause after a place of several was tried in vain, and after all were: twice as long each
/// time.
const NEXT: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_secs(5);
const MAX_PAUSE: Duration = Duration::from_secs(300);
/// A partner may begin no sooner than this after the attempt before.
const BEGUN: Duration = Duration::from_secs(3);
/// What carried packets for so long has not failed before.
const PROVEN: Duration = Duration::from_secs(60);

/// Where a path is.
///
/// ```text
///             use                    answer                sessions at both ends
///  Resting ─────────▶ Asked ───────────────▶ Trying ──────────────────▶ Carrying
///    ▲ ▲ │              │                    ▲ │  ▲                        │ │
///    │ │ └──────────────┼────────────────────┘ │  └────────────────────────┘ │
///    │ │        the partner asks               │       it asks anew          │
///    │ └────────────────┴──────────────────────┘                             │
///    │        no answer, or no session in time                               │
///    └───────────────────────────────────────────────────────────────────────┘
///                              silent, unused, or the partner parts
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nothing is under way, and nothing begins by itself before that time.
    Resting { until: Time },
    /// The partner was asked so often, the last time then.
    Asked { number: u64, at: Time, times: u8 },
    /// Handshakes are sent.
    Trying(Trying),
    /// It carries packets.
    Carrying(Carrying),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trying {
    number: u64,
    since: Time,
    /// When the partner was told last that there is a session.
    told: Option<Time>,
    /// The partner has one.
    met: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Carrying {
    number: u64,
    since: Time,
    /// When something was heard last, and how much by then.
    heard: Time,
    rx: u64,
    probed: Time,
}

/// Why a path is tried no longer, or carries packets no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The partner did not answer.
    NoAnswer,
    /// There was no session in time.
    NoSession,
    /// Nothing was heard any more.
    Silent,
    /// Nobody used it.
    Unused,
    /// The partner does not want it.
    Parted,
    /// There may be no path to that node any more.
    Unwanted,
}

impl Ended {
    /// Whether it is tried again only after a pause.
    pub(super) const fn is_failure(self) -> bool {
        matches!(self, Self::NoAnswer | Self::NoSession | Self::Silent)
    }

    /// Whether the partner is told.
    pub(super) const fn is_told(self) -> bool {
        !matches!(self, Self::NoAnswer | Self::Parted)
    }
}

/// What is to be done for a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Say(Word, u64),
    /// Handshakes are sent from now on; this is to be said of it.
    Try(Option<Word>),
    /// It has begun to carry packets; this is to be said of it.
    Begin(Option<Word>),
    Probe,
    End(Ended),
}

/// A path, and what is remembered of it.
#[derive(Clone, Debug)]
pub(super) struct Path {
    pub(super) stage: Stage,
    /// When it was used last, be it over the peers.
    pub(super) used: Time,
    /// When it was tried last.
    tried: Option<Time>,
    /// How often in a row in vain, all places.
    failures: u32,
    /// The places of the attempt, and the turn of which it is.
    places: Vec<SocketAddr>,
    turn: usize,
}

impl Path {
    pub(super) const fn new(now: Time) -> Self {
        let stage = Stage::Resting { until: now };
        Self { stage, used: now, tried: None, failures: 0, places: Vec::new(), turn: 0 }
    }

    /// Whether it is more than remembered.
    pub(super) const fn is_active(&self) -> bool {
        !matches!(self.stage, Stage::Resting { .. })
    }

    /// Whether it is to be looked at soon.
    pub(super) const fn is_under_way(&self) -> bool {
        matches!(self.stage, Stage::Asked { .. } | Stage::Trying(_))
    }

    pub(super) const fn number(&self) -> Option<u64> {
        match &self.stage {
            Stage::Resting { .. } => None,
            Stage::Asked { number, .. } => Some(*number),
            Stage::Trying(trying) => Some(trying.number),
            Stage::Carrying(carrying) => Some(carrying.number),
        }
    }

    /// The place whose turn it is.
    pub(super) fn place(&self) -> Option<SocketAddr> {
        self.places.get(self.turn.checked_rem(self.places.len())?).copied()
    }

    pub(super) fn may_begin(&self, now: Time) -> bool {
        matches!(self.stage, Stage::Resting { until } if until <= now)
    }

    /// Forgets what went wrong.
    pub(super) fn forgive(&mut self, now: Time) {
        (self.failures, self.turn) = (0, 0);
        if let Stage::Resting { until } = &mut self.stage {
            *until = now.min(*until);
        }
    }

    pub(super) fn ask(&mut self, number: u64, now: Time) -> Step {
        self.stage = Stage::Asked { number, at: now, times: 1 };
        Step::Say(Word::Ask, number)
    }

    /// Takes in a word of the partner. If both have asked, the word of the lesser one counts.
    pub(super) fn hear(
        &mut self,
        word: Word,
        number: u64,
        places: Vec<SocketAddr>,
        lesser: bool,
        now: Time,
    ) -> Option<Step> {
        let ours = self.number() == Some(number);
        match (word, &mut self.stage) {
            (Word::Ask, Stage::Asked { .. }) if lesser => None,
            (Word::Ask, Stage::Trying(_) | Stage::Carrying(_)) if ours => {
                Some(Step::Say(Word::Answer, number))
            }
            (Word::Ask, _) => self.answer(number, places, now),
            (Word::Answer, Stage::Asked { .. }) if ours => {
                self.begin(number, places, now);
                Some(Step::Try(None))
            }
            (Word::Met | Word::Agreed, Stage::Trying(trying)) if ours => {
                trying.met = true;
                let agrees = (word == Word::Met).then_some(Word::Agreed);
                trying.told.is_some().then(|| self.carry(agrees, now))
            }
            (Word::Met, Stage::Carrying(_)) if ours => Some(Step::Say(Word::Agreed, number)),
            (Word::Part, Stage::Trying(_)) if ours => Some(Step::End(Ended::NoSession)),
            (Word::Part, _) if ours => Some(Step::End(Ended::Parted)),
            // The partner goes on with what is over here: packets would be lost.
            (Word::Met | Word::Agreed, _) if !ours => Some(Step::Say(Word::Part, number)),
            (Word::Answer | Word::Met | Word::Agreed | Word::Part, _) => None,
        }
    }

    fn answer(&mut self, number: u64, places: Vec<SocketAddr>, now: Time) -> Option<Step> {
        if self.tried.is_some_and(|tried| now.since(tried) < BEGUN) {
            return None;
        }
        self.begin(number, places, now);
        Some(Step::Try(Some(Word::Answer)))
    }

    fn begin(&mut self, number: u64, places: Vec<SocketAddr>, now: Time) {
        if self.places != places {
            (self.places, self.turn) = (places, 0);
        }
        self.tried = Some(now);
        self.stage = Stage::Trying(Trying { number, since: now, told: None, met: false });
    }

    fn carry(&mut self, word: Option<Word>, now: Time) -> Step {
        let number = self.number().unwrap_or_default();
        let carrying = Carrying { number, since: now, heard: now, rx: 0, probed: now };
        self.stage = Stage::Carrying(carrying);
        self.used = self.used.max(now);
        Step::Begin(word)
    }

    /// Ends what is under way.
    pub(super) fn rest(&mut self, why: Ended, now: Time) {
        if let Stage::Carrying(Carrying { since, .. }) = self.stage
            && now.since(since) > PROVEN
        {
            self.failures = 0;
        }
        let pause = match why {
            Ended::NoSession => self.next_place(),
            Ended::NoAnswer | Ended::Silent | Ended::Parted => self.next_pause(),
            Ended::Unused | Ended::Unwanted => Duration::ZERO,
        };
        self.stage = Stage::Resting { until: now + pause };
    }

    fn next_place(&mut self) -> Duration {
        self.turn += 1;
        if self.turn < self.places.len() {
            return NEXT;
        }
        self.turn = 0;
        self.next_pause()
    }

    fn next_pause(&mut self) -> Duration {
        let pause = PAUSE.saturating_mul(1 << self.failures.min(8));
        self.failures += 1;
        pause.min(MAX_PAUSE)
    }

    /// Takes in what WireGuard knows, and says what is due.
    pub(super) fn look(&mut self, link: Link, now: Time) -> Option<Step> {
        match &mut self.stage {
            Stage::Resting { .. } => None,
            Stage::Asked { number, at, times } => {
                if now.since(*at) < ANSWER {
                    return None;
                }
                if *times >= QUESTIONS {
                    return Some(Step::End(Ended::NoAnswer));
                }
                (*at, *times) = (now, *times + 1);
                Some(Step::Say(Word::Ask, *number))
            }
            Stage::Trying(trying) => {
                let step = trying.look(link, now);
                match step {
                    Some(Step::Begin(word)) => Some(self.carry(word, now)),
                    other => other,
                }
            }
            Stage::Carrying(carrying) => {
                if carrying.note(link, now) > USE {
                    self.used = self.used.max(now);
                }
                carrying.look(self.used, now)
            }
        }
    }
}

impl Trying {
    fn look(&mut self, link: Link, now: Time) -> Option<Step> {
        if now.since(self.since) >= TRY {
            return Some(Step::End(Ended::NoSession));
        }
        match (link.session, self.met) {
            (true, true) => Some(Step::Begin(Some(Word::Agreed))),
            (true, false) if self.told.is_none_or(|told| now.since(told) >= REPEAT) => {
                self.told = Some(now);
                Some(Step::Say(Word::Met, self.number))
            }
            (true, false) | (false, _) => None,
        }
    }
}

impl Carrying {
    /// How much more was received.
    fn note(&mut self, link: Link, now: Time) -> u64 {
        let more = link.rx.abs_diff(self.rx);
        if more > 0 {
            (self.heard, self.rx) = (now, link.rx);
        }
        more
    }

    fn look(&mut self, used: Time, now: Time) -> Option<Step> {
        if now.since(self.heard) >= SILENT {
            return Some(Step::End(Ended::Silent));
        }
        if now.since(used) >= IDLE {
            return Some(Step::End(Ended::Unused));
        }
        let due = now.since(self.probed) >= PROBE;
        if due {
            self.probed = now;
        }
        due.then_some(Step::Probe)
    }
}
