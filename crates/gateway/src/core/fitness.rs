//! Whether this host can do its job, and when it may be given networks again after it could not.

use std::collections::VecDeque;
use std::time::Duration;

use selvedge_model::Time;

use super::{Event, Gateway};

/// For how long a time of unfitness counts against a host.
const MEMORY: Duration = Duration::from_secs(600);
/// How many times the damping a host is made to wait at most.
const LONGEST: u32 = 16;

/// The last times at which this host became unfit, and since when it is fit.
#[derive(Debug, Default)]
pub(super) struct Fitness {
    falls: VecDeque<Time>,
    fit_since: Time,
    /// Whether it is not known yet.
    pub(super) starting: bool,
}

impl Fitness {
    fn note_fall(&mut self, now: Time) {
        self.falls.push_back(now);
        self.falls.retain(|at| now.since(*at) < MEMORY);
        while self.falls.len() > 16 {
            self.falls.pop_front();
        }
    }

    /// Until when the host is not to be given networks, although it is fit: `damping` after the
    /// second fall, and twice as long after each further one.
    fn penance_until(&self, damping: Duration) -> Time {
        let repeated = u32::try_from(self.falls.len()).unwrap_or(u32::MAX).saturating_sub(1);
        if repeated == 0 {
            return Time::ZERO;
        }
        self.fit_since + damping * 2_u32.saturating_pow(repeated - 1).min(LONGEST)
    }
}

impl Gateway {
    pub(super) fn note_problems(&mut self, problems: Vec<String>, now: Time) {
        if problems == self.unfit {
            return;
        }
        let was_fit = self.unfit.is_empty();
        // Who serves nothing moves nothing: what a host suffers that was cut off, and has lost its
        // networks for that, is no flapping.
        if was_fit && self.answers() {
            self.fitness.note_fall(now);
        } else if problems.is_empty() {
            self.fitness.fit_since = now;
        }
        let turned = was_fit != problems.is_empty();
        self.unfit.clone_from(&problems);
        self.events.push_back(Event::Fitness(problems));
        if turned {
            self.tell_everybody(now);
        }
    }

    /// Whether this host is to answer for any network.
    fn answers(&self) -> bool {
        self.may_serve() && !self.answering.is_empty()
    }

    /// Whether networks may be placed here, as far as this host's condition goes; `None` if that
    /// is to stay as it is: who is starting keeps what it has. The last one there serves as well
    /// as it can.
    pub(super) fn is_placeable(&mut self, now: Time) -> Option<bool> {
        let until = self.fitness.penance_until(self.config.damping);
        let repents = now < until && self.unfit.is_empty();
        if repents {
            self.alarms.insert((until, None));
        }
        if !self.unfit.is_empty() || repents {
            return self.is_last(now);
        }
        if !self.fitness.starting {
            return Some(true);
        }
        match self.is_last(now) {
            Some(false) if self.answers() => None,
            last => last,
        }
    }

    /// Whether nobody else is there to serve; `None` if that is not known yet.
    fn is_last(&mut self, now: Time) -> Option<bool> {
        if self.is_replaceable(now) {
            return Some(false);
        }
        let listened = self.liveness.listened_at();
        if now < listened && self.liveness.is_watching() {
            self.alarms.insert((listened, None));
            return None;
        }
        Some(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAMPING: Duration = Duration::from_secs(20);

    #[test]
    fn the_first_time_is_free_and_repetition_costs_twice_as_much() {
        let mut fitness = Fitness::default();
        let mut waits = Vec::new();
        for fall in 1..8 {
            let now = Time::ZERO + Duration::from_secs(fall * 10);
            fitness.note_fall(now);
            fitness.fit_since = now;
            waits.push(fitness.penance_until(DAMPING).since(now).as_secs());
        }
        assert_eq!(waits, [0, 20, 40, 80, 160, 320, 320]);
        assert!(fitness.penance_until(Duration::ZERO) <= fitness.fit_since, "it is switched off");
        let later = Time::ZERO + Duration::from_secs(1000);
        fitness.note_fall(later);
        fitness.fit_since = later;
        assert_eq!(fitness.penance_until(DAMPING).since(later), Duration::ZERO, "it is forgotten");
    }
}
