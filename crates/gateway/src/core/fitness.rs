//! Whether this host can do its job, and when it may be given networks again after it could not.

use std::collections::VecDeque;
use std::time::Duration;

use selvedge_model::Time;

use super::{Event, Gateway};

/// For how long a time of unfitness counts against a host.
const MEMORY: Duration = Duration::from_secs(600);
/// How long a host that became unfit again and again has to be fit before networks are placed on
/// it: the first of these after the second time, and twice as long after each further one.
const FIRST_PENANCE: Duration = Duration::from_secs(20);
const LONGEST_PENANCE: Duration = Duration::from_secs(300);

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

    /// Until when the host is not to be given networks, although it is fit.
    fn penance_until(&self) -> Time {
        let repeated = u32::try_from(self.falls.len()).unwrap_or(u32::MAX).saturating_sub(1);
        if repeated == 0 {
            return Time::ZERO;
        }
        let factor = 2_u32.saturating_pow((repeated - 1).min(8));
        self.fit_since + (FIRST_PENANCE * factor).min(LONGEST_PENANCE)
    }
}

impl Gateway {
    pub(super) fn note_problems(&mut self, problems: Vec<String>, now: Time) {
        if problems == self.unfit {
            return;
        }
        let was_fit = self.unfit.is_empty();
        if was_fit {
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

    /// Whether networks may be placed here, as far as this host's condition goes; `None` if that
    /// is to stay as it is. The last one there serves as well as it can.
    pub(super) fn is_placeable(&mut self, now: Time) -> Option<bool> {
        let until = self.fitness.penance_until();
        let repents = now < until && self.unfit.is_empty();
        if repents {
            self.alarms.insert((until, None));
        }
        if !self.unfit.is_empty() || repents {
            return Some(!self.is_replaceable(now));
        }
        (!self.fitness.starting || !self.is_replaceable(now)).then_some(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_time_is_free_and_repetition_costs_twice_as_much() {
        let mut fitness = Fitness::default();
        let mut waits = Vec::new();
        for fall in 1..8 {
            let now = Time::ZERO + Duration::from_secs(fall * 10);
            fitness.note_fall(now);
            fitness.fit_since = now;
            waits.push(fitness.penance_until().since(now).as_secs());
        }
        assert_eq!(waits, [0, 20, 40, 80, 160, 300, 300]);
        let later = Time::ZERO + Duration::from_secs(1000);
        fitness.note_fall(later);
        fitness.fit_since = later;
        assert_eq!(fitness.penance_until().since(later), Duration::ZERO, "it is forgotten");
    }
}
