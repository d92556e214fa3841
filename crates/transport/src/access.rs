use std::collections::BTreeSet;

use selvedge_model::NodeId;

/// What an identity may do here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Served without limits other than the common ones.
    Member,
    /// May ask to join: a few small messages, for a short time.
    Stranger,
    /// Cut off.
    Refused,
}

/// Who is served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessList {
    /// Members of a mesh of ours.
    pub members: BTreeSet<NodeId>,
    /// Evicted identities; they are refused even if they are listed as members.
    pub refused: BTreeSet<NodeId>,
    /// Whether unknown identities may ask to join.
    pub strangers: bool,
}

impl AccessList {
    /// What `node` may do.
    #[must_use]
    pub fn of(&self, node: &NodeId) -> Access {
        if self.refused.contains(node) {
            return Access::Refused;
        }
        match (self.members.contains(node), self.strangers) {
            (true, _) => Access::Member,
            (false, true) => Access::Stranger,
            (false, false) => Access::Refused,
        }
    }

    /// What `node` may do on a connection that we dialled: whom we chose to call may answer at
    /// length, unless it is evicted.
    pub(crate) fn of_dialled(&self, node: &NodeId) -> Access {
        match self.refused.contains(node) {
            true => Access::Refused,
            false => Access::Member,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eviction_beats_membership() {
        let [member, evicted, unknown] = [1, 2, 3].map(|byte| NodeId([byte; 32]));
        let mut list = AccessList {
            members: [member, evicted].into(),
            refused: [evicted].into(),
            strangers: true,
        };
        assert_eq!(list.of(&member), Access::Member);
        assert_eq!(list.of(&evicted), Access::Refused);
        assert_eq!(list.of_dialled(&evicted), Access::Refused);
        assert_eq!(list.of(&unknown), Access::Stranger);
        list.strangers = false;
        assert_eq!(list.of(&unknown), Access::Refused);
        assert_eq!(list.of_dialled(&unknown), Access::Member);
    }
}
