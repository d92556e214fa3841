//! Who lives: probes, accusations, verdicts, and signs of life.

use std::time::Duration;

use selvedge_model::{NodeId, Time};

use super::Mesh;
use crate::detector::Wish;
use crate::event::{Event, Rejection};
use crate::overlay::View;
use crate::reconcile::{self, Ranges};
use crate::rumor::{Accusation, Alive, MAX_INCARNATION, Verdict};
use crate::wire::{Accuse, Ask, Message, News, Probe, Records, Vouch};

/// How long a node that contradicted a verdict waits before it contradicts the next; twice as
/// long each time, lest a node that half the mesh cannot reach keeps the other half busy.
const REFUTE: Duration = Duration::from_secs(1);
/// The longest such wait.
const MAX_REFUTE: Duration = Duration::from_secs(120);
/// A claim without signatures is believed up to so many incarnations beyond the own one: anybody
/// could use up all of them with a greater one.
const CREDIT: u64 = 1024;

/// What a node says of its own life.
#[derive(Debug)]
pub(super) struct Pulse {
    incarnation: u64,
    /// Until then nothing is contradicted.
    quiet_until: Time,
    pause: Duration,
}

impl Pulse {
    pub(super) const fn new() -> Self {
        Self { incarnation: 0, quiet_until: Time::ZERO, pause: REFUTE }
    }
}

impl Mesh {
    /// Does what the detector has due.
    pub(super) fn drive_detector(&mut self, now: Time) {
        self.refresh_wards();
        let view = View {
            roster: &self.state.roster,
            lives: &self.lives,
            own: self.state.node(),
            wall: self.wall,
            wards: self.wards.attached(),
        };
        let wishes = self.detector.handle_timeout(&view, &mut self.rng, now);
        self.grant(wishes, now);
    }

    pub(super) fn receive_ping(&mut self, from: NodeId, probe: Probe, now: Time) {
        if !self.is_member(from) {
            return self.send(from, Message::WhoAreYou);
        }
        // That one of two compares evictions is enough.
        let answer = Probe { evictions: None, ..self.probe(from, probe.number) };
        self.send(from, Message::Ack(answer));
        self.compare_evictions(from, probe.evictions, now);
        self.note_probe(from, probe, now);
    }

    pub(super) fn receive_ack(&mut self, from: NodeId, probe: Probe, now: Time) {
        let wishes = self.detector.handle_ack(from, probe.number);
        self.grant(wishes, now);
        self.note_probe(from, probe, now);
    }

    /// Probes a node on behalf of another, unless the other is to know better.
    pub(super) fn receive_ask(&mut self, from: NodeId, ask: Ask, now: Time) {
        if !self.is_member(ask.target) {
            return;
        }
        let later = self.lives.incarnation(ask.target) > ask.incarnation;
        // What this node found by itself does not tell the other what to believe.
        if (later || self.lives.holds_verdict(ask.target, 0))
            && self.is_borne_out(ask.target)
            && let Some(rumor) = self.lives.rumor(ask.target)
        {
            let news = News { entries: Records::default(), rumors: vec![rumor] };
            return self.send(from, Message::News(news));
        }
        self.detector.handle_ask(from, ask.target, ask.number, now);
    }

    pub(super) fn receive_vouch(&mut self, from: NodeId, vouch: Vouch) {
        self.detector.handle_vouch(from, vouch.target, vouch.number);
    }

    pub(super) fn receive_accusation(
        &mut self,
        from: NodeId,
        accuse: Accuse,
    ) -> Result<(), Rejection> {
        let (mesh, roster, wall) = (self.id(), &self.state.roster, self.wall);
        let is_member = |node| roster.is_member(node, wall);
        let accusation = Accusation::verify(accuse.accusation, mesh, is_member, &roster.verifier)
            .map_err(Rejection::Rumor)?;
        if accusation.value().accuser != from {
            return Err(Rejection::NotItsAccusation);
        }
        self.detector.handle_accusation(accusation, self.now);
        Ok(())
    }

    /// `by` says, and nobody has signed, that this node is held to be down since `incarnation`.
    pub(super) fn refute_claim(&mut self, by: NodeId, incarnation: u64, now: Time) {
        let believed = self.pulse.incarnation.saturating_add(CREDIT).min(MAX_INCARNATION);
        match incarnation < believed {
            true => self.refute(by, incarnation, now),
            // Before its disk was lost this node may have got so far. Then there are signatures.
            false => {
                let want = vec![reconcile::prefix(&self.node())];
                self.send(by, Message::Lives(Ranges { want, ..Ranges::default() }));
            }
        }
    }

    /// `by` holds this node to be down since `incarnation`, which is less than
    /// [`MAX_INCARNATION`].
    pub(super) fn refute(&mut self, by: NodeId, incarnation: u64, now: Time) {
        if incarnation < self.pulse.incarnation {
            // It has missed what all were told.
            return self.tell_of_life(by);
        }
        if now < self.pulse.quiet_until {
            return;
        }
        // Nobody can accuse of an incarnation that was never announced, but another process with
        // this identity may have announced more.
        self.pulse.incarnation = incarnation.saturating_add(1);
        if now.since(self.pulse.quiet_until) > MAX_REFUTE {
            self.pulse.pause = REFUTE;
        }
        self.pulse.quiet_until = now + self.pulse.pause;
        self.pulse.pause = (self.pulse.pause * 2).min(MAX_REFUTE);
        let alive = Alive::sign(self.id(), self.pulse.incarnation, &self.identity);
        self.lives.hear_alive(alive);
        // It may be the first that is heard of on its side of what was a partition.
        self.tell_of_life(by);
        if let Some(rumor) = self.lives.rumor(self.node()) {
            self.push_rumor(rumor, None, now);
        }
    }

    /// Takes note that what is held of a node's life may have changed.
    pub(super) fn note_life(&mut self, node: NodeId, now: Time) {
        let is_down = self.lives.is_down(node);
        if is_down == self.down_reported.contains(&node) {
            return;
        }
        match is_down {
            true => {
                self.down_reported.insert(node);
                self.events.push_back(Event::MemberDown(node));
            }
            false => {
                self.down_reported.remove(&node);
                self.events.push_back(Event::MemberUp(node));
            }
        }
        // Who is linked to nobody here leaves no gap.
        self.links_changed |= !is_down || self.neighbours.contains(&node);
        self.wards.note_life();
        let view = View {
            roster: &self.state.roster,
            lives: &self.lives,
            own: self.state.node(),
            wall: self.wall,
            wards: self.wards.attached(),
        };
        self.detector.note_change(node, &view, now);
    }

    pub(super) fn probe(&mut self, to: NodeId, number: u32) -> Probe {
        let mut hash = [0; 8];
        hash.copy_from_slice(&self.digest().hash[..8]);
        let evictions = self.state.roster.evictions.summary();
        let (down, lives) = (self.lives.held_down(to), self.lives.summary());
        Probe { number, hash, down, lives, evictions }
    }

    fn note_probe(&mut self, from: NodeId, probe: Probe, now: Time) {
        self.compare(from, probe.hash, now);
        self.compare_verdicts(from, probe.lives, now);
        self.doubts.heard(from);
        if self.lives.see_alive(from) {
            self.note_life(from, now);
        }
        if let Some(incarnation) = probe.down {
            self.refute_claim(from, incarnation, now);
        }
    }

    fn grant(&mut self, wishes: Vec<Wish>, now: Time) {
        for wish in wishes {
            match wish {
                Wish::Ping(to, number) => {
                    let probe = self.probe(to, number);
                    self.send(to, Message::Ping(probe));
                }
                Wish::Ask { helper, target, number } => {
                    let incarnation = self.lives.incarnation(target);
                    // A helper that has not heard of this life would accuse of an earlier one.
                    self.send_rumors(helper, self.lives.rumor(target).into_iter().collect());
                    self.send(helper, Message::Ask(Ask { target, number, incarnation }));
                }
                Wish::Vouch { asker, target, number } => {
                    self.send(asker, Message::Vouch(Vouch { target, number }));
                }
                Wish::Accuse { asker, target } => self.accuse(asker, target),
                Wish::Convict(accusations) => {
                    if let Ok(verdict) = Verdict::of(&accusations, &self.state.roster.verifier) {
                        self.convict(verdict, now);
                    }
                }
                Wish::OwnEyes(node) => {
                    self.lives.see_down(node);
                    self.note_life(node, now);
                }
            }
        }
    }

    fn accuse(&mut self, asker: NodeId, target: NodeId) {
        let incarnation = self.lives.incarnation(target);
        let accusation = Accusation::sign(self.id(), target, incarnation, &self.identity);
        match asker == self.node() {
            true => self.detector.handle_accusation(accusation, self.now),
            false => {
                let accusation = accusation.raw().clone();
                self.send(asker, Message::Accuse(Accuse { accusation }));
            }
        }
    }

    /// Tells all that a node has failed, that node too: it may be of another opinion.
    fn convict(&mut self, verdict: Verdict, now: Time) {
        let (node, rumor) = (verdict.target(), verdict.rumor());
        if self.lives.hear_verdict(verdict) {
            self.note_life(node, now);
            let news = News { entries: Records::default(), rumors: vec![rumor.clone()] };
            self.send(node, Message::News(news));
            self.push_rumor(rumor, None, now);
        }
    }
}
