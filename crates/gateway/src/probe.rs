//! What voters tell each other, beside what they write into the store.
//!
//! A *probe* asks on one path whether the partner is alive, an *acknowledgement* answers it on
//! the way that the probe came. Both carry the sender's [`News`]. They travel as authenticated
//! datagrams (see [`crate::wire`]); the core sees them taken apart.

use std::net::SocketAddr;
use std::time::Duration;

use selvedge_model::NodeName;

use crate::kv::Revision;

/// The most voters that a cluster may have.
pub const MAX_VOTERS: usize = 32;

/// A datagram from one voter to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The sender's incarnation; [`Revision`] 0 if it is not registered.
    pub incarnation: Revision,
    /// What it is for.
    pub body: Body,
    /// What the sender has to say to everybody.
    pub news: News,
}

/// What a datagram is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// Are you alive?
    Probe {
        /// Names the probe.
        nonce: u64,
    },
    /// The answer to a probe.
    Ack {
        /// The probe's.
        nonce: u64,
        /// What the answer is.
        answer: Answer,
    },
}

/// What a voter says to another's probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// I hear you.
    Alive,
    /// I have voted against this incarnation of yours, and the store has not decided yet.
    Withheld,
    /// A verdict stands against this incarnation of yours.
    Convicted,
    /// This incarnation of yours is not registered, as far as I know.
    Unregistered,
    /// I have only just been started and know nothing of you yet: I am here, but that is no word
    /// for you.
    Unsure,
}

/// What a sender has to say to everybody. Older news of the same incarnation are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Grows with each message of an incarnation.
    pub sequence: u64,
    /// Who votes, as the sender knows it.
    pub electorate: Electorate,
    /// The voters that the sender hears.
    pub hears: Vec<NodeName>,
    /// Its votes that stand.
    pub votes: Vec<Vote>,
    /// For how long the sender will be away on purpose from now on; zero if it will not.
    pub away: Duration,
    /// Whether something keeps the sender's host from serving as it should.
    pub unfit: bool,
}

/// Who votes, at a revision of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Electorate {
    /// The revision at which this became so.
    pub revision: Revision,
    /// The voters, in ascending order.
    pub voters: Vec<NodeName>,
}

/// A vote that an incarnation is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vote {
    /// Who is lost.
    pub suspect: NodeName,
    /// Its incarnation.
    pub incarnation: Revision,
    /// A digest of the suspect's networks with the revisions of all their keys, as the voter
    /// knows them.
    pub networks: u64,
    /// How far it has gone.
    pub stage: Stage,
}

/// How far a vote has gone. It only ever rises, or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stage {
    /// The voter does not know how the store is: the vote ends when the suspect is heard again.
    Tentative = 0,
    /// The vote stands until the store has decided.
    Firm = 1,
    /// The verdict stands in the store, or networks were taken over ahead of it.
    Acted = 2,
    /// An operator has decided, without the store.
    Forced = 3,
}

/// A message to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// To whom; tells the key that authenticates it.
    pub to: NodeName,
    /// Where to.
    pub addr: SocketAddr,
    /// What.
    pub message: Message,
}
