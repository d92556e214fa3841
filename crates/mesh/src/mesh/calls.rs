//! What clients say to each other by the peers that they are attached to.
//!
//! A client talks to its own peer alone, so a call has three legs at most: from the caller to its
//! peer, from there to the peer of the one that is called, and to that one. A peer takes a call
//! from the caller itself if that is attached to it, and else from the peer of the caller, for a
//! client of its own. What comes in another way is dropped without a word: for a moment members
//! may differ about who is attached to whom, and who calls repeats it.

use selvedge_model::NodeId;

use super::Mesh;
use crate::event::Event;
use crate::wire::{Call, Message};

impl Mesh {
    /// Says something to another client, if this node is one that is attached to a peer. It may
    /// be lost.
    pub fn call(&mut self, call: Call) {
        if let Some(home) = self.attachment(self.node()) {
            self.send(home, Message::Call(Call { from: self.node(), seen: None, ..call }));
        }
    }

    /// Passes on what [`Event::Passing`] told of, on its next leg; what is known by then of where
    /// the two are seen is in it.
    pub fn pass_on(&mut self, call: Call) {
        match self.attachment(call.to) {
            Some(home) if home == self.node() => self.send(call.to, Message::Call(call)),
            Some(home) => self.send(home, Message::Call(call)),
            None => {}
        }
    }

    pub(super) fn receive_call(&mut self, by: NodeId, call: Call) {
        let own = self.node();
        if call.to == own {
            if self.attachment(own) == Some(by) {
                self.events.push_back(Event::Called(call));
            }
            return;
        }
        let home = self.attachment(call.from);
        let begins = by == call.from && home == Some(own);
        let ends = home == Some(by) && self.attachment(call.to) == Some(own);
        if begins || ends {
            // Where its own clients are a peer has from nobody else.
            let seen = call.seen.filter(|_| ends);
            self.events.push_back(Event::Passing(Call { seen, yours: None, ..call }));
        }
    }
}
