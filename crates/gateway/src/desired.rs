//! What the gateway plane wants of the host it runs on, and what the host reports back.

use serde::{Deserialize, Serialize};

/// How a gateway attracts the traffic that comes from upstream for a network.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Upstream {
    /// Not at all.
    #[default]
    Off,
    /// By its prefix.
    Whole,
    /// By the two halves of its prefix too, which beat the whole prefix of a gateway that goes or
    /// is gone.
    Halves,
}

/// What this host does, or shall do, for one network. The default is to do nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Duty {
    /// Advertise the gateway into the fabric (EVPN, or the flooding lists).
    pub fabric: bool,
    /// Attract traffic from upstream.
    pub upstream: Upstream,
    /// Answer ARP and neighbour solicitations for the gateway's addresses.
    pub answering: bool,
}

impl Duty {
    /// Nothing at all: what a gateway does for a network of another's.
    pub const NONE: Self = Self { fabric: false, upstream: Upstream::Off, answering: false };
    /// Everything: what the owner does.
    pub const FULL: Self = Self { fabric: true, upstream: Upstream::Whole, answering: true };
    /// Everything, with more-specific routes: what a new owner does at first.
    pub const TAKEOVER: Self = Self { fabric: true, upstream: Upstream::Halves, answering: true };

    /// Both this and another one.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self {
            fabric: self.fabric || other.fabric,
            upstream: self.upstream.max(other.upstream),
            answering: self.answering || other.answering,
        }
    }
}

/// What the applier shall bring about for one network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Desired {
    /// The state to reach.
    pub duty: Duty,
    /// Counts the announcements (gratuitous ARP, unsolicited neighbour advertisements) that the
    /// core has asked for. The applier announces, after the duty is reached, when it grows.
    pub announce: u64,
}
