//! Forgetting: what its owner does not renew is dropped by all by the same rule. Where a node that
//! was forgotten was reached last is kept, and tried, as long as it may come back.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use rand::RngExt as _;
use selvedge_model::{NodeId, Time};

use super::Mesh;
use crate::crdt::Entry;
use crate::record::Life;
use crate::state::WayBack;

/// Keeping house takes place about this often.
const TICK: Duration = Duration::from_secs(1);
/// A node that was forgotten is tried this often, one at a time.
const TRY: Duration = Duration::from_secs(30);
/// A node that nobody has answered yet introduces itself again after this.
const INTRODUCE: Duration = Duration::from_secs(1);
/// So many are asked at once, so that one of them is near.
const ASKED: usize = 16;
/// So long after its start a node counts as one of the others, whatever it holds.
const SETTLED: Duration = Duration::from_secs(10);

/// When what is due next.
#[derive(Debug)]
pub(super) struct House {
    pub(super) tick: Time,
    settles: Time,
    next_introduction: Time,
    next_way: Time,
    last_way: NodeId,
    pub(super) answered: bool,
}

impl House {
    pub(super) fn new(own: NodeId, now: Time) -> Self {
        Self {
            tick: now,
            settles: now + SETTLED,
            next_introduction: now,
            next_way: now + TRY,
            last_way: own,
            answered: false,
        }
    }
}

impl Mesh {
    /// Does what is due about every second.
    pub(super) fn keep_house(&mut self, now: Time) {
        self.house.tick = now + TICK.mul_f64(self.rng.random_range(0.75..1.25));
        self.forget();
        self.outdo(now);
        self.renew(now);
        self.introduce(now);
        self.try_ways_back(now);
        self.knock(now);
        self.tell_whom_it_avoids();
        self.doubts.forget(now);
        self.evicting.forget(now);
        self.rates.forget(now);
        self.syncing.settled |= now >= self.house.settles;
        self.share();
    }

    /// Keeps what equals another replica's in one copy with it, if both use one verifier.
    fn share(&mut self) {
        let roster = &mut self.state.roster;
        roster.verifier.share_roster(&mut roster.map);
        // Verdicts that compare equal may rest on others' words, also of who was evicted.
        if roster.evictions.summary().is_none() {
            self.lives.share(&roster.verifier);
        }
    }

    /// The time for which others are to hold what this node says now.
    pub(super) fn life(&self) -> Life {
        Life::new(self.wall, self.config.record_life)
    }

    /// Drops what has expired.
    fn forget(&mut self) {
        let (own, now) = (self.node(), self.wall.0);
        self.has_changed |= self.state.ledger.prune(now);
        if self.state.roster.map.expiry() >= now {
            return;
        }
        let dropped = self.state.roster.map.expire(now, &own);
        if !dropped.is_empty() {
            self.changed();
        }
        for (node, entry) in dropped {
            if let Entry::Add(admitted) = entry {
                let addrs = admitted.record().profile.control.iter().map(|endpoint| endpoint.addr);
                let not_after = admitted.certificate().not_after;
                self.state.keep_way_back(node, WayBack { addrs: addrs.collect(), not_after });
            }
            self.report_member(node);
        }
        self.state.ways_back.retain(|_, way| way.not_after >= now);
        let map = &self.state.roster.map;
        self.lives.retain(|node| map.added(&node).is_some());
        self.down_reported.retain(|node| map.added(node).is_some());
    }

    /// Says again in time what this node says of itself, at a moment of its own between nine and
    /// eleven twelfths of the record's life.
    fn renew(&mut self, now: Time) {
        let own = self.own_life();
        let part = u64::from(self.node().as_bytes()[31]);
        let after = u64::from(own.seconds) * (9 * 256 + 2 * part) / (12 * 256);
        let due = own.seconds == 0 || self.wall.0 >= own.issued.saturating_add(after);
        // A clock that went back by more than a life would never renew.
        let astray = own.issued > self.wall.0.saturating_add(u64::from(own.seconds));
        if (due || astray) && self.wall.0 > 0 {
            let own = self.own();
            // Fails when all sequence numbers are used up; then nothing can be said any more.
            self.publish(own, now).unwrap_or_default();
        }
    }

    /// Shows this node to some members, others each time, until one answers.
    fn introduce(&mut self, now: Time) {
        if self.house.answered || now < self.house.next_introduction {
            return;
        }
        self.house.next_introduction = now + INTRODUCE;
        let mut asked = BTreeSet::new();
        for _ in 0..ASKED {
            asked.extend(self.draw(&asked));
        }
        for partner in asked {
            self.syncing.asked.insert(partner);
            self.begin_sync(partner, true);
        }
    }

    /// Tries to reach one of those that were forgotten: the larger the mesh, the less often each
    /// node does.
    fn try_ways_back(&mut self, now: Time) {
        if now < self.house.next_way || self.state.ways_back.is_empty() {
            return;
        }
        let share = u32::try_from(self.state.roster.map.len().div_ceil(10)).unwrap_or(u32::MAX);
        self.house.next_way = now + TRY.saturating_mul(share.max(1));
        let ways = &self.state.ways_back;
        let after = ways.range(self.house.last_way..).map(|(node, _)| *node);
        let mut around = after.chain(ways.keys().copied()).filter(|n| *n != self.house.last_way);
        if let Some(node) = around.next().or_else(|| ways.keys().next().copied()) {
            self.house.last_way = node;
            self.begin_sync(node, true);
        }
    }

    /// Where a node that was forgotten was reached last.
    pub(super) fn way_back(&self, node: NodeId) -> Vec<SocketAddr> {
        self.state.ways_back.get(&node).map(|way| way.addrs.clone()).unwrap_or_default()
    }
}
