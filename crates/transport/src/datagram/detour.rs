//! The way over streams, for messages that do not get through as datagrams.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use selvedge_model::NodeId;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::allowance::Allowance;
use super::partner::Detoured;
use crate::hub;
use crate::room::{Outgoing, Room};

/// A partner to which there is no connection may be away: it is dialled for the sake of a message
/// that was to be a datagram no sooner than this after the last time, twice as long each time.
const PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(16);

/// So many are dialled for that in a second at most.
const DIALS: u32 = 16;

/// So many are remembered to have been dialled.
const MAX_DIALLED: usize = 4096;

/// Hands messages to the hub.
pub(crate) struct Detour {
    hub: mpsc::Sender<hub::Request>,
    /// To whom there is a connection.
    links: watch::Receiver<BTreeSet<NodeId>>,
    room: Room,
    dials: Allowance,
    dialled: BTreeMap<NodeId, Dialled>,
}

#[derive(Clone, Copy)]
struct Dialled {
    at: Instant,
    pause: Duration,
}

impl Detour {
    pub(crate) fn new(
        hub: mpsc::Sender<hub::Request>,
        links: watch::Receiver<BTreeSet<NodeId>>,
        room: Room,
    ) -> Self {
        let (dials, dialled) = (Allowance::new(DIALS, Instant::now()), BTreeMap::new());
        Self { hub, links, room, dials, dialled }
    }

    /// Whether there is a connection to a node.
    pub(super) fn is_linked(&self, node: NodeId) -> bool {
        self.links.borrow().contains(&node)
    }

    /// Sends a message over the connection to its receiver, or over one that is made for it. Says
    /// whether it is on its way.
    pub(super) fn send(&mut self, detoured: Detoured, now: Instant) -> bool {
        let Detoured { to, addrs, message } = detoured;
        match self.is_linked(to) {
            true => drop(self.dialled.remove(&to)),
            false if self.may_dial(to, now) => {}
            false => return false,
        }
        let Some(taken) = self.room.try_take(message.len()) else { return false };
        let message = Outgoing { bytes: message, taken };
        self.hub.try_send(hub::Request::Send { to, addrs, message }).is_ok()
    }

    fn may_dial(&mut self, node: NodeId, now: Instant) -> bool {
        let last = self.dialled.get(&node).copied();
        if last.is_some_and(|last| now - last.at < last.pause) || !self.dials.take(now) {
            return false;
        }
        if self.dialled.len() >= MAX_DIALLED {
            self.dialled.retain(|_, dialled| now - dialled.at < dialled.pause);
        }
        let pause = last.map_or(PAUSE, |last| (last.pause * 2).min(MAX_PAUSE));
        let room = self.dialled.len() < MAX_DIALLED || last.is_some();
        if room {
            self.dialled.insert(node, Dialled { at: now, pause });
        }
        room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(to: u8) -> Detoured {
        Detoured { to: NodeId([to; 32]), addrs: Vec::new(), message: vec![1] }
    }

    #[tokio::test]
    async fn who_may_be_away_is_dialled_ever_more_seldom() {
        let (hub, mut requests) = mpsc::channel(1000);
        let (linked, links) = watch::channel(BTreeSet::new());
        let mut detour = Detour::new(hub, links, Room::new(1 << 20));
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let sent = (0..640).filter(|tenth| detour.send(message(1), at(tenth * 100))).count();
        assert_eq!(sent, 8, "after 0, 1, 3, 7, 15, 31, 47 and 63 s");
        let others = (2..60).filter(|to| detour.send(message(*to), at(64_000))).count();
        assert_eq!(others, DIALS as usize);
        linked.send_replace([NodeId([1; 32])].into());
        assert!((0..100).all(|_| detour.send(message(1), at(64_001))), "there is a connection");
        assert!(requests.try_recv().is_ok());
    }
}
