//! What voters say to each other: answers to probes, and the news in both.

use std::net::SocketAddr;

use selvedge_model::{NodeName, Time};

use super::Gateway;
use crate::kv::Revision;
use crate::placement::fmix64;
use crate::probe::{Answer, Body, Electorate, MAX_VOTERS, Message, News, Stage, Vote};

impl Gateway {
    /// Takes in a message of another voter.
    pub(super) fn receive(
        &mut self,
        from: &NodeName,
        addr: SocketAddr,
        message: Message,
        now: Time,
    ) {
        let Message { incarnation, body, news } = message;
        let newer = news.electorate.revision > self.electorate.revision;
        let expected = matches!(body, Body::Ack { nonce, .. } if self.liveness.awaits(from, nonce));
        let news = self.liveness.take_in(from, incarnation, body, news, now);
        if news && newer {
            self.count_electorate();
        }
        match body {
            Body::Probe { nonce } => self.answer(from, addr, nonce, incarnation, now),
            // One to an earlier incarnation says nothing of this one.
            Body::Ack { answer, .. } if news && expected => self.take_answer(answer, now),
            Body::Ack { .. } => {}
        }
    }

    /// Takes in what another voter says to a probe of this incarnation.
    fn take_answer(&mut self, answer: Answer, now: Time) {
        let Some(incarnation) = self.spoken_for() else { return };
        match answer {
            Answer::Convicted => self.title.note_conviction(incarnation),
            Answer::Unregistered => self.title.note_end(incarnation, now),
            Answer::Alive | Answer::Withheld | Answer::Unsure => {}
        }
    }

    fn answer(&mut self, to: &NodeName, addr: SocketAddr, nonce: u64, asker: Revision, now: Time) {
        let Some(incarnation) = self.spoken_for() else { return };
        let (answer, news) = (self.answer_to(to, asker, now), self.own_news(now));
        self.liveness.answer(to, addr, nonce, answer, incarnation, news);
    }

    /// What to say to a node. Of a registration that may be newer than what is known here there is
    /// nothing to say; but the one who asks shall know that it is heard.
    fn answer_to(&self, name: &NodeName, incarnation: Revision, now: Time) -> Answer {
        if self.incarnation().is_none() {
            return Answer::Unsure;
        }
        let verdict = (name.clone(), incarnation);
        if self.cache.verdicts.contains_key(&verdict) {
            return Answer::Convicted;
        }
        let registered = self.cache.live.get(name).map(|live| live.incarnation);
        match registered.or_else(|| self.forgotten(name, now)) {
            Some(known) if known == incarnation => {
                let bound =
                    self.court.has_voted(name, incarnation) || self.others_acted(name, incarnation);
                if bound { Answer::Withheld } else { Answer::Alive }
            }
            Some(known) if known < incarnation => Answer::Unsure,
            None if incarnation > self.cache.revision => Answer::Unsure,
            Some(_) | None => Answer::Unregistered,
        }
    }

    /// Whether another voter has acted on its vote, as far as was ever heard.
    pub(super) fn others_acted(&self, name: &NodeName, incarnation: Revision) -> bool {
        let mut votes = self.liveness.votes_against(name, incarnation);
        votes.any(|(voter, vote)| voter != name && vote.stage >= Stage::Acted)
    }

    pub(super) fn own_news(&mut self, now: Time) -> News {
        let voters = &self.electorate.voters;
        let hears = self.liveness.heard(now).filter(|name| voters.contains(name));
        let hears = hears.take(MAX_VOTERS).cloned().collect();
        self.refresh_digests();
        // Those that may still decide something come first: there is an end to a datagram.
        let settled = |name: &NodeName| self.cache.is_struck(name);
        let mut ballots: Vec<_> = self.court.ballots.iter().collect();
        ballots.sort_by_key(|(name, _)| settled(name));
        let votes = ballots.into_iter().take(MAX_VOTERS).map(|(suspect, ballot)| Vote {
            suspect: suspect.clone(),
            incarnation: ballot.incarnation,
            networks: self.digest(suspect),
            stage: ballot.stage,
        });
        let votes = votes.collect();
        let away = self.away_until.map(|until| until.since(now)).unwrap_or_default();
        let (electorate, unfit) = (self.told_electorate(), !self.unfit.is_empty());
        News { sequence: 0, electorate, hears, votes, away, unfit }
    }

    /// The electorate as the store has it: an operator's word to this node binds nobody else.
    fn told_electorate(&self) -> Electorate {
        let own = self.cache.electorate();
        if own.revision >= self.electorate.revision { own } else { self.electorate.clone() }
    }

    /// A digest of the networks that name a suspect, with the revisions of all their keys, and of
    /// the ring that names their heirs.
    pub(super) fn digest(&self, suspect: &NodeName) -> u64 {
        self.court.digests.get(suspect).copied().unwrap_or_default()
    }

    /// Computes the digests anew for the suspects, if anything has changed.
    pub(super) fn refresh_digests(&mut self) {
        let known = |name| self.court.digests.contains_key(name);
        let revision = self.cache.revision;
        if self.court.digested == revision && self.court.ballots.keys().all(known) {
            return;
        }
        self.court.digested = revision;
        let placement = self.placement_digest;
        let digests = self
            .court
            .ballots
            .keys()
            .map(|name| (name.clone(), placement.wrapping_add(self.networks_digest(name))));
        self.court.digests = digests.collect();
    }

    fn networks_digest(&self, name: &NodeName) -> u64 {
        let revision = |modified: Option<Revision>| modified.map_or(0, |r| r.0.unsigned_abs());
        self.cache.named(name).fold(0, |sum: u64, vni| {
            let Some(network) = self.cache.networks.get(&vni) else { return sum };
            let parts = [
                revision(network.state.as_ref().map(|slot| slot.modified)),
                revision(network.current.as_ref().map(|slot| slot.modified)),
                revision(network.next.as_ref().map(|slot| slot.modified)),
            ];
            let one = parts.iter().fold(u64::from(vni.get()), |sum, part| fmix64(sum ^ part));
            sum.wrapping_add(one)
        })
    }

    /// Takes note of who may be given networks, and which.
    pub(super) fn note_placement(&mut self) {
        let limits =
            |name| self.cache.live.get(name).and_then(|live| live.value.as_ref()?.networks.clone());
        let nodes = self.cache.nodes.iter().map(|(name, node)| (name, &node.ids, limits(name)));
        let mut hasher = blake3::Hasher::new();
        for node in nodes {
            hasher.update(format!("{node:?}").as_bytes());
        }
        let bytes = hasher.finalize();
        let first = bytes.as_bytes().first_chunk().copied().unwrap_or_default();
        self.placement_digest = u64::from_le_bytes(first);
    }

    /// Sends what is due to the others.
    pub(super) fn send_probes(&mut self, now: Time) {
        let due = self.liveness.due_at().is_some_and(|at| now >= at);
        match self.spoken_for() {
            Some(incarnation) if due => {
                let news = self.own_news(now);
                self.liveness.probe(incarnation, || news, now);
            }
            Some(_) | None => self.liveness.skip(now),
        }
    }

    pub(super) fn tell_everybody(&mut self, now: Time) {
        if let Some(incarnation) = self.incarnation() {
            let news = self.own_news(now);
            self.liveness.tell(incarnation, &news, now);
        }
    }
}
