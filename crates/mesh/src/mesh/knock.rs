//! Ways back that are addresses and no members: where to ask when nobody that is known answers.

use std::sync::Arc;
use std::time::Duration;

use selvedge_model::Time;

use super::Mesh;
use crate::journal::{Input, MAX_PLACE, MAX_PLACES};
use crate::wire::{Envelope, Message};

/// How often a node that reaches nobody knocks, at one place after the other.
const ALONE: Duration = Duration::from_secs(2);
/// How often one knocks that misses some, times a tenth of the members: they all do.
const MISSING: Duration = Duration::from_secs(30);
/// How long whoever is found behind a door may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// A message for whoever is found at a place. Its transport tells who that is; what it answers is
/// given to [`Mesh::handle_message`] as from that node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Knock {
    /// As it was given to [`Mesh::set_bootstrap`].
    pub place: String,
    /// The message.
    pub bytes: Arc<[u8]>,
}

/// Where to knock, and when.
#[derive(Debug)]
pub(super) struct Door {
    places: Vec<String>,
    next: usize,
    due: Time,
    last: Option<Time>,
    knocks: Vec<Knock>,
}

impl Door {
    pub(super) const fn new(now: Time) -> Self {
        Self { places: Vec::new(), next: 0, due: now, last: None, knocks: Vec::new() }
    }

    /// Whether a stranger that answers may have been knocked for.
    pub(super) fn expects(&self, now: Time) -> bool {
        self.last.is_some_and(|last| now.since(last) < ANSWER)
    }
}

impl Mesh {
    /// Tells where members may be found whose addresses are not known, or no longer: addresses
    /// with ports, or names, as the driver understands them. They are tried, one after the other,
    /// every two seconds while nobody answers this node, and seldom while some members are down.
    /// No more than the first 16 count, and none of more than 512 bytes.
    pub fn set_bootstrap(&mut self, mut places: Vec<String>) {
        places.retain(|place| place.len() <= MAX_PLACE);
        places.truncate(MAX_PLACES);
        self.note_input(&Input::Bootstrap(&places));
        self.door.places = places;
        self.door.due = self.now;
    }

    /// The next message for whoever is found at a place of [`Mesh::set_bootstrap`]. Call this
    /// until it returns `None`, where [`Mesh::poll_transmit`] is called.
    pub fn poll_knock(&mut self) -> Option<Knock> {
        self.door.knocks.pop()
    }

    /// Knocks, if it is time.
    pub(super) fn knock(&mut self, now: Time) {
        let Some(wait) = self.knock_every() else { return };
        if now < self.door.due || self.door.places.is_empty() {
            return;
        }
        self.door.due = now + wait;
        self.door.last = Some(now);
        let place = self.door.places[self.door.next % self.door.places.len()].clone();
        self.door.next = self.door.next.wrapping_add(1);
        let bytes = self.introduction().encode().into();
        // One at a time: who is not called at all does not hoard.
        self.door.knocks = vec![Knock { place, bytes }];
    }

    /// How often to knock; `None` if all answer.
    fn knock_every(&self) -> Option<Duration> {
        let (members, down) = (self.reported.len() + 1, self.lives.count_down());
        if !self.house.answered || down + 1 >= members {
            return Some(ALONE);
        }
        let share = u32::try_from(members.div_ceil(10)).unwrap_or(u32::MAX);
        (down > 0).then(|| MISSING.saturating_mul(share))
    }

    fn introduction(&mut self) -> Envelope {
        Envelope { mesh: self.id(), message: Message::Digest(self.summary(true)) }
    }
}
