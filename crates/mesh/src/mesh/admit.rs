//! How a node is admitted, on the side that admits it.

use selvedge_model::{NodeId, WgKey};

use super::Mesh;
use crate::admission::{Certificate, Role};
use crate::event::Rejection;
use crate::invite::{Invite, InviteError, InviteId};
use crate::roster::RosterEntry;
use crate::signed::Signed;
use crate::wire::{Join, Message, Records, Refused, RefusedReason, Welcome};

/// So many bytes of records a joiner is told at once: what a new connection may send before it
/// hears that something arrived (RFC 9002, section 7.2), less the rest of the message.
const WELCOME: usize = 12 << 10;

/// Why an invite is not redeemed: for the joiner's program and for its user.
type Refusal = (RefusedReason, String);

impl Mesh {
    /// Answers a node that wants to join. The sender is told why if it is refused.
    pub(super) fn receive_join(&mut self, from: NodeId, join: Join) -> Result<(), Rejection> {
        match self.redeem(from, join) {
            Ok(certificate) => {
                let state = self.first_records(from);
                let certificate = certificate.raw().clone();
                self.send(from, Message::Welcome(Welcome { certificate, state }));
                Ok(())
            }
            Err((reason, mut detail)) => {
                detail.truncate(detail.floor_char_boundary(Refused::MAX_DETAIL));
                let refused = Refused { reason: Some(reason), detail: detail.clone() };
                self.send(from, Message::Refused(refused));
                Err(Rejection::Invite(detail))
            }
        }
    }

    /// The certificate for an invite. Asking again gives the same one and counts no further use;
    /// asking again with another key gives a new one and counts no further use either.
    fn redeem(&mut self, from: NodeId, join: Join) -> Result<Signed<Certificate>, Refusal> {
        let invite = self.check_invite(join.invite)?;
        let Invite { id, role, uses, not_after, .. } = *invite.value();
        let redeemed = self.state.ledger.redeemed.get(&id);
        let earlier = redeemed.and_then(|nodes| nodes.get(&from));
        if let Some(certificate) = earlier.filter(|c| self.is_still_good(c.value(), join.wg)) {
            return Ok(certificate.clone());
        }
        let used = redeemed.map_or(0, |nodes| nodes.len());
        if earlier.is_none() && used >= usize::try_from(uses).unwrap_or(usize::MAX) {
            let text = format!("the invite is used up: {uses} of {uses} nodes have joined with it");
            return Err((RefusedReason::UsedUp, text));
        }
        self.check_key(from, join.wg)?;
        self.check_room(from)?;
        let issued = self.issue(id, from, join.wg, role)?;
        self.state.ledger.expires.insert(id, not_after);
        Ok(issued)
    }

    fn check_invite(&self, raw: crate::signed::Raw) -> Result<Signed<Invite>, Refusal> {
        let invite = Signed::<Invite>::verify(raw)
            .map_err(|error| (RefusedReason::BadInvite, error.to_string()))?;
        invite.value().check_use(Some(self.id()), self.wall).map_err(|error| {
            let reason = match &error {
                InviteError::Expired { .. } => RefusedReason::Expired,
                InviteError::WrongMesh { .. } => RefusedReason::WrongMesh,
                InviteError::NotByFounder { .. } => RefusedReason::BadInvite,
            };
            (reason, error.to_string())
        })?;
        let issuer = invite.value().issuer;
        if issuer != self.node() {
            let text = format!("this node did not issue the invite: ask node {issuer}");
            return Err((RefusedReason::NotIssuer, text));
        }
        Ok(invite)
    }

    fn is_still_good(&self, certificate: &Certificate, wg: WgKey) -> bool {
        certificate.wg == wg && !certificate.has_expired(self.wall)
    }

    /// A WireGuard key is given to one node only, or the packets of one could go to another.
    fn check_key(&self, from: NodeId, wg: WgKey) -> Result<(), Refusal> {
        let issued = self.state.ledger.redeemed.values().flat_map(|nodes| nodes.values());
        let mut holders = issued.map(Signed::value).filter(|c| c.wg == wg).map(|c| c.subject);
        let holder = self.state.roster.holder_of(wg);
        let in_use = holder.is_some_and(|node| node != from) || holders.any(|node| node != from);
        match in_use {
            false => Ok(()),
            true => {
                Err((RefusedReason::KeyInUse, format!("the WireGuard key {wg} is another node's")))
            }
        }
    }

    fn check_room(&self, from: NodeId) -> Result<(), Refusal> {
        let map = &self.state.roster.map;
        let known = map.entries_of(&from).next().is_some();
        match known || map.len() < self.config.max_nodes {
            true => Ok(()),
            false => Err((RefusedReason::Full, "the mesh is full".into())),
        }
    }

    fn issue(
        &mut self,
        invite: InviteId,
        subject: NodeId,
        wg: WgKey,
        role: Role,
    ) -> Result<Signed<Certificate>, Refusal> {
        let serial = self.state.ledger.last_serial.saturating_add(1);
        let certificate = Certificate {
            mesh: self.id(),
            subject,
            wg,
            role,
            prefixes: Vec::new(),
            may_invite: false,
            not_after: self.wall.after(self.config.certificate_lifetime).0,
            serial,
            issuer: self.node(),
        };
        let signed = Signed::sign(certificate, &self.identity)
            .map_err(|error| (RefusedReason::BadInvite, error.to_string()))?;
        let ledger = &mut self.state.ledger;
        ledger.last_serial = serial;
        ledger.redeemed.entry(invite).or_default().insert(subject, signed.clone());
        self.has_changed = true;
        Ok(signed)
    }

    /// Some of the state: enough to go on with anybody, for the issuer may be far away. What is held of the joiner comes first: its
    /// first record must outdo its earlier ones, and its removal. Then comes who admits it.
    fn first_records(&self, joiner: NodeId) -> Records {
        let map = &self.state.roster.map;
        let own = self.node();
        let others = map.entries().filter(|(node, _)| **node != joiner && **node != own);
        let first = map.entries_of(&joiner).chain(map.entries_of(&own));
        let entries = first.chain(others.map(|(_, entry)| entry)).map(|entry| entry.cloned());
        let entries: Vec<RosterEntry> = entries.collect();
        super::sync::chunks(entries.iter(), WELCOME).into_iter().next().unwrap_or_default()
    }
}
