//! Of two voters neither is a majority. Whoever does not hear the other writes its doubt into the
//! store, where the one in doubt can refute it; what is not refuted becomes a verdict.

use std::time::Duration;

use selvedge_model::{NodeName, Time};

use super::registration::put_json;
use super::verdict::against;
use super::{Gateway, Pending, Purpose};
use crate::cache::VerdictValue;
use crate::keys;
use crate::kv::{Compare, Op, Revision, Txn};

/// The pauses between doubts of the only other voter.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long the only other voter has to be heard until the pauses between doubts are forgotten.
const CALM: Duration = Duration::from_secs(3);

/// A doubt of the only other voter.
#[derive(Debug, Default)]
pub(super) struct Doubt {
    incarnation: Revision,
    /// The revision of the key, and when it was first seen.
    pub(super) written: Option<(Revision, Time)>,
    pause: Duration,
    not_before: Time,
    /// Since when there is nothing to doubt.
    calm_since: Option<Time>,
    pub(super) pending: Pending,
}

impl Gateway {
    /// Of two voters, one does not hear the other: says so in the store, where it is refuted by
    /// whoever lives.
    pub(super) fn doubt_the_other(&mut self, now: Time) {
        let [a, b] = self.electorate.voters.as_slice() else {
            return self.court.doubts.clear();
        };
        let me = &self.config.name;
        let other = if a == me { b.clone() } else { a.clone() };
        if a != me && b != me || self.court.ballots.contains_key(&other) {
            return;
        }
        let doubted = self.liveness.silence(&other, now);
        let mut doubt = self.court.doubts.remove(&other).unwrap_or_default();
        let known = self.cache.live.get(&other).map(|live| live.incarnation);
        if known != Some(doubt.incarnation) {
            doubt = Doubt { incarnation: known.unwrap_or_default(), ..Doubt::default() };
        }
        let key = (other.clone(), doubt.incarnation);
        let written = self.cache.suspicions.get(&key).copied();
        let settled = doubt.pending.is_free(self.cache.revision, now);
        if doubted.is_some() {
            doubt.calm_since = None;
        }
        match (doubted, written) {
            (Some(_), None) if !settled => {}
            (None, None) => doubt.calm_down(now),
            (None, Some(_)) => self.withdraw_doubt(&other, &mut doubt, now),
            (Some(_), None) if doubt.written.is_some() => doubt.refuted(now),
            (Some((incarnation, _)), None) if incarnation == doubt.incarnation => {
                self.write_doubt(&other, &mut doubt, now);
            }
            (Some(_), Some(at)) => self.act_on_doubt(&other, &mut doubt, at, now),
            (Some(_), None) => {}
        }
        self.court.doubts.insert(other, doubt);
    }

    fn write_doubt(&mut self, name: &NodeName, doubt: &mut Doubt, now: Time) {
        let Some(own) = self.incarnation() else { return };
        if now < doubt.not_before {
            self.alarms.insert((doubt.not_before, None));
            return;
        }
        if !doubt.pending.is_free(self.cache.revision, now) {
            return;
        }
        doubt.pending = Pending::Sent;
        let key = keys::suspicion(name, doubt.incarnation);
        let mut compare = Vec::from(self.own_guard(own));
        compare.extend(against(name, doubt.incarnation));
        compare.push(Compare::Absent { key: key.clone() });
        let value = VerdictValue {
            by: self.config.name.to_string(),
            reason: "not heard by the only other voter".to_owned(),
            at_ms: self.wall_ms(now),
        };
        let then = vec![put_json(key, &value, self.lease)];
        self.send(Purpose::Doubt(name.clone()), Txn { compare, then });
    }

    /// A doubt that nobody has refuted in time becomes a verdict.
    fn act_on_doubt(&mut self, name: &NodeName, doubt: &mut Doubt, at: Revision, now: Time) {
        let Some(own) = self.incarnation() else { return };
        let (_, seen) = *doubt.written.get_or_insert((at, now));
        let until = seen + self.config.timing.refute;
        if now < until {
            self.alarms.insert((until, None));
            return;
        }
        if !doubt.pending.is_free(self.cache.revision, now) {
            return;
        }
        doubt.pending = Pending::Sent;
        let key = keys::suspicion(name, doubt.incarnation);
        let ground = vec![Compare::Modified { key, at }];
        let txn = self.verdict_txn(name, own, doubt.incarnation, ground, now);
        self.send(Purpose::Doubt(name.clone()), txn);
    }

    fn withdraw_doubt(&mut self, name: &NodeName, doubt: &mut Doubt, now: Time) {
        if doubt.pending.is_free(self.cache.revision, now) {
            doubt.pending = Pending::Sent;
            let then = vec![Op::Delete { key: keys::suspicion(name, doubt.incarnation) }];
            self.send(Purpose::Doubt(name.clone()), Txn { compare: vec![], then });
        }
    }
}

impl Doubt {
    fn calm_down(&mut self, now: Time) {
        self.written = None;
        let since = *self.calm_since.get_or_insert(now);
        if now.since(since) >= CALM {
            (self.pause, self.not_before) = (Duration::ZERO, Time::ZERO);
        }
    }

    /// The other lives: only the paths between the two are broken.
    fn refuted(&mut self, now: Time) {
        self.written = None;
        self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        self.not_before = now + self.pause;
    }
}
