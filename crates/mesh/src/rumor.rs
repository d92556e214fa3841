//! What members tell each other about who lives. None of it enters the replicated state: it is
//! local knowledge, passed on.

use std::collections::BTreeSet;
use std::sync::Arc;

use minicbor::{Decode, Encode};
use selvedge_model::{MeshId, NodeId};

use crate::codec::{self, fixed};
use crate::identity::Identity;
use crate::signed::{Raw, Signed, SignedError, Statement};
use crate::verifier::Verifier;

/// The greatest number of accusations in a verdict.
pub const MAX_ACCUSATIONS: usize = 8;
/// So many must accuse a node before others count it as failed: nobody's word alone does.
pub const MIN_ACCUSATIONS: usize = 2;
/// No sign of life has a greater incarnation, and every accusation a lesser one, so that whoever is
/// accused can always contradict.
pub const MAX_INCARNATION: u64 = 1 << 62;

/// A node says that it lives, whatever was said before.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Alive {
    /// The mesh.
    #[cbor(n(0), with = "fixed")]
    pub mesh: MeshId,
    /// The node, which signs.
    #[cbor(n(1), with = "fixed")]
    pub node: NodeId,
    /// Outdoes every accusation of a lesser incarnation.
    #[n(2)]
    pub incarnation: u64,
}

/// A member says that another does not answer it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Accusation {
    /// The mesh.
    #[cbor(n(0), with = "fixed")]
    pub mesh: MeshId,
    /// Who says so, and signs.
    #[cbor(n(1), with = "fixed")]
    pub accuser: NodeId,
    /// Who does not answer.
    #[cbor(n(2), with = "fixed")]
    pub target: NodeId,
    /// The last sign of life that the accuser has heard of.
    #[n(3)]
    pub incarnation: u64,
}

/// A rumor as it travels; empty if it is of a kind that only a newer version knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Rumor {
    /// A signed [`Alive`].
    #[n(0)]
    pub alive: Option<Raw>,
    /// The signed [`Accusation`]s of one node.
    #[cbor(n(1), decode_with = "codec::list::<MAX_ACCUSATIONS, _, _>", default)]
    pub accusations: Vec<Raw>,
}

/// That a node has failed, as several members found. Copies are cheap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict(Arc<Finding>);

#[derive(Debug, PartialEq, Eq)]
struct Finding {
    mesh: MeshId,
    target: NodeId,
    incarnation: u64,
    accusers: BTreeSet<NodeId>,
    accusations: Vec<Raw>,
}

/// Why a rumor is not believed. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RumorError {
    /// Malformed, or not signed by whom it names.
    #[error(transparent)]
    Signed(#[from] SignedError),
    /// Of another mesh.
    #[error("the rumor is of mesh {found}")]
    WrongMesh {
        /// The mesh that it is of.
        found: MeshId,
    },
    /// About or by somebody who is no member.
    #[error("the rumor names node {0}, which is no member")]
    NotAMember(NodeId),
    /// Too few accuse the node, or not all the same one.
    #[error("the verdict does not hold: at least {MIN_ACCUSATIONS} others must accuse one node")]
    TooFew,
    /// All that accuse the node were admitted by one member.
    #[error("the verdict does not hold: one member admitted all who accuse, and others could")]
    OneSource,
}

impl Alive {
    /// Signs that `identity` lives. The incarnation must be at most [`MAX_INCARNATION`].
    pub(crate) fn sign(mesh: MeshId, incarnation: u64, identity: &Identity) -> Signed<Self> {
        let alive = Self { mesh, node: identity.node_id(), incarnation };
        Signed::sign(alive, identity).expect("within its bound, and signed by the node it names")
    }

    /// Reads a sign of life of a member.
    pub(crate) fn verify(
        raw: &Raw,
        mesh: MeshId,
        is_member: impl Fn(NodeId) -> bool,
        verifier: &Verifier,
    ) -> Result<Arc<Signed<Self>>, RumorError> {
        let signed = verifier.alive(raw)?;
        let Self { mesh: found, node, .. } = *signed.value();
        check_mesh(found, mesh)?;
        check_members([node], is_member)?;
        Ok(signed)
    }
}

impl Accusation {
    /// Signs that `target`, another node, does not answer `identity`.
    pub(crate) fn sign(
        mesh: MeshId,
        target: NodeId,
        incarnation: u64,
        identity: &Identity,
    ) -> Signed<Self> {
        // Whoever has announced the last incarnation of all is beyond any accusation: it is held to
        // be down by those alone who see it for themselves.
        let incarnation = incarnation.min(MAX_INCARNATION - 1);
        let accusation = Self { mesh, accuser: identity.node_id(), target, incarnation };
        Signed::sign(accusation, identity)
            .expect("within its bound, and signed by the node it names")
    }

    /// Reads an accusation of a member by a member.
    pub(crate) fn verify(
        raw: Raw,
        mesh: MeshId,
        is_member: impl Fn(NodeId) -> bool,
        verifier: &Verifier,
    ) -> Result<Signed<Self>, RumorError> {
        let signed = verifier.statement::<Self>(raw)?;
        let Self { mesh: found, accuser, target, .. } = *signed.value();
        check_mesh(found, mesh)?;
        check_members([accuser, target], is_member)?;
        Ok(signed)
    }
}

fn check_mesh(found: MeshId, mesh: MeshId) -> Result<(), RumorError> {
    match found == mesh {
        true => Ok(()),
        false => Err(RumorError::WrongMesh { found }),
    }
}

/// Says who of the nodes is none.
pub(crate) fn check_members(
    nodes: impl IntoIterator<Item = NodeId>,
    is_member: impl Fn(NodeId) -> bool,
) -> Result<(), RumorError> {
    match nodes.into_iter().find(|node| !is_member(*node)) {
        Some(node) => Err(RumorError::NotAMember(node)),
        None => Ok(()),
    }
}

impl Verdict {
    /// The verdict that verified accusations make.
    pub(crate) fn of(
        accusations: &[Signed<Accusation>],
        verifier: &Verifier,
    ) -> Result<Self, RumorError> {
        let first = accusations.first().ok_or(RumorError::TooFew)?.value();
        let (mesh, target) = (first.mesh, first.target);
        let of_one = accusations.iter().all(|a| a.value().target == target);
        let accusers: BTreeSet<NodeId> = accusations.iter().map(|a| a.value().accuser).collect();
        if !of_one || accusers.len() < MIN_ACCUSATIONS || accusers.contains(&target) {
            return Err(RumorError::TooFew);
        }
        // An accuser that knows of a later sign of life accuses of the earlier ones too.
        let incarnation = accusations.iter().map(|a| a.value().incarnation).min().unwrap_or(0);
        let accusations = accusations.iter().map(|a| a.raw().clone()).collect();
        let finding = Finding { mesh, target, incarnation, accusers, accusations };
        Ok(verifier.one_verdict(Self(Arc::new(finding))))
    }

    /// Reads a verdict by witnesses. Whether it is against a member is to be looked at besides.
    pub(crate) fn verify(
        accusations: &[Raw],
        mesh: MeshId,
        is_witness: impl Fn(NodeId) -> bool,
        verifier: &Verifier,
    ) -> Result<Self, RumorError> {
        let verdict = match verifier.verdict(accusations) {
            Some(verdict) => verdict,
            None => Self::read(accusations, mesh, verifier)?,
        };
        check_mesh(verdict.0.mesh, mesh)?;
        check_members(verdict.accusers().chain([verdict.target()]), is_witness)?;
        Ok(verdict)
    }

    fn read(accusations: &[Raw], mesh: MeshId, verifier: &Verifier) -> Result<Self, RumorError> {
        let read = |raw: &Raw| {
            let accusation = verifier.statement::<Accusation>(raw.clone())?;
            check_mesh(accusation.value().mesh, mesh)?;
            Ok(accusation)
        };
        let accusations = accusations.iter().map(read).collect::<Result<Vec<_>, RumorError>>()?;
        Self::of(&accusations, verifier)
    }

    /// What a verdict claims, its signatures *not* checked: the node, and its incarnation.
    pub(crate) fn peek(accusations: &[Raw]) -> Option<(NodeId, u64)> {
        let peek = |raw: &Raw| Signed::<Accusation>::peek(raw);
        let claims: Vec<Accusation> = accusations.iter().map(peek).collect::<Option<_>>()?;
        let incarnation = claims.iter().map(|claim| claim.incarnation).min()?;
        Some((claims.first()?.target, incarnation))
    }

    /// Who has failed.
    #[must_use]
    pub fn target(&self) -> NodeId {
        self.0.target
    }

    /// Who says so.
    pub(crate) fn accusers(&self) -> impl Iterator<Item = NodeId> {
        self.0.accusers.iter().copied()
    }

    /// The last sign of life that all accusers had heard of.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.0.incarnation
    }

    /// What it consists of.
    #[must_use]
    pub fn accusations(&self) -> &[Raw] {
        &self.0.accusations
    }

    /// As it travels.
    #[must_use]
    pub fn rumor(&self) -> Rumor {
        Rumor { alive: None, accusations: self.accusations().to_vec() }
    }
}

impl Statement for Alive {
    const WHAT: &'static str = "sign of life";
    const CONTEXT: &'static [u8] = b"selvedge mesh alive\0";
    const VERSION: u8 = 1;
    const MAX_LEN: usize = 256;

    fn signer(&self) -> NodeId {
        self.node
    }

    fn check(&self) -> Result<(), &'static str> {
        let bounded = self.incarnation <= MAX_INCARNATION;
        bounded.then_some(()).ok_or("the incarnation is too great")
    }
}

impl Statement for Accusation {
    const WHAT: &'static str = "accusation";
    const CONTEXT: &'static [u8] = b"selvedge mesh accusation\0";
    const VERSION: u8 = 1;
    const MAX_LEN: usize = 256;

    fn signer(&self) -> NodeId {
        self.accuser
    }

    fn check(&self) -> Result<(), &'static str> {
        if self.accuser == self.target {
            return Err("a node does not accuse itself");
        }
        let bounded = self.incarnation < MAX_INCARNATION;
        bounded.then_some(()).ok_or("the incarnation is too great")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESH: MeshId = MeshId([1; 20]);

    fn identity(number: u8) -> Identity {
        Identity::from_secret(&[number; 32])
    }

    fn accuse(by: u8, target: u8, incarnation: u64) -> Raw {
        let target = identity(target).node_id();
        Accusation::sign(MESH, target, incarnation, &identity(by)).raw().clone()
    }

    fn verify(accusations: Vec<Raw>) -> Result<Verdict, RumorError> {
        let stranger = identity(99).node_id();
        Verdict::verify(&accusations, MESH, |node| node != stranger, &Verifier::default())
    }

    #[test]
    fn two_members_make_a_verdict() {
        let verdict = verify(vec![accuse(1, 9, 4), accuse(2, 9, 3)]).expect("holds");
        assert_eq!((verdict.target(), verdict.incarnation()), (identity(9).node_id(), 3));
        let raws = verdict.rumor().accusations;
        assert_eq!(Verdict::peek(&raws), Some((verdict.target(), 3)));
        assert_eq!(verify(raws), Ok(verdict));
    }

    #[test]
    fn nobodys_word_alone_does() {
        assert_eq!(verify(vec![]), Err(RumorError::TooFew));
        assert_eq!(verify(vec![accuse(1, 9, 0)]), Err(RumorError::TooFew));
        assert_eq!(verify(vec![accuse(1, 9, 0), accuse(1, 9, 1)]), Err(RumorError::TooFew));
        assert_eq!(verify(vec![accuse(1, 9, 0), accuse(2, 8, 0)]), Err(RumorError::TooFew));
    }

    #[test]
    fn every_accusation_can_be_contradicted() {
        let (node, by) = (identity(9).node_id(), identity(1).node_id());
        let accusation = |incarnation| {
            let accusation = Accusation { mesh: MESH, accuser: by, target: node, incarnation };
            Signed::sign(accusation, &identity(1))
        };
        let alive =
            |incarnation| Signed::sign(Alive { mesh: MESH, node, incarnation }, &identity(9));
        assert!(accusation(MAX_INCARNATION - 1).is_ok() && alive(MAX_INCARNATION).is_ok());
        for beyond in [MAX_INCARNATION, u64::MAX] {
            assert!(matches!(accusation(beyond), Err(SignedError::Malformed { .. })));
        }
        for beyond in [MAX_INCARNATION + 1, u64::MAX] {
            assert!(matches!(alive(beyond), Err(SignedError::Malformed { .. })));
        }
        let last = Accusation::sign(MESH, node, MAX_INCARNATION, &identity(1));
        assert_eq!(last.value().incarnation, MAX_INCARNATION - 1);
    }

    #[test]
    fn strangers_and_forgers_are_not_heard() {
        let stranger = identity(99).node_id();
        let by_stranger = verify(vec![accuse(1, 9, 0), accuse(99, 9, 0)]);
        assert_eq!(by_stranger, Err(RumorError::NotAMember(stranger)));
        let mut forged = accuse(2, 9, 0);
        forged.signature[3] ^= 1;
        let forged = verify(vec![accuse(1, 9, 0), forged]);
        assert!(matches!(forged, Err(RumorError::Signed(_))), "{forged:?}");
        let other =
            Verdict::verify(&[accuse(1, 9, 0)], MeshId([2; 20]), |_| true, &Verifier::default());
        assert_eq!(other, Err(RumorError::WrongMesh { found: MESH }));
        let alive = Alive::sign(MESH, 7, &identity(99)).raw().clone();
        let error = Alive::verify(&alive, MESH, |node| node != stranger, &Verifier::default())
            .expect_err("a stranger");
        assert_eq!(error, RumorError::NotAMember(stranger));
    }
}
