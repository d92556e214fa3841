//! How a node is admitted, on the side that admits it.

use std::collections::BTreeSet;

use selvedge_model::{NodeId, WgKey};

use super::Mesh;
use crate::admission::{Certificate, Grant};
use crate::event::Rejection;
use crate::eviction::{Claim, Evicted, Eviction};
use crate::invite::{Invite, InviteError, InviteId};
use crate::roster::RosterEntry;
use crate::signed::{Raw, Signed};
use crate::wire::{Join, Message, Records, Refused, RefusedReason, Welcome};

/// So many bytes of records a joiner is told at once: what a new connection may send before it
/// hears that something arrived (RFC 9002, section 7.2), less the rest of the message.
const WELCOME: usize = 12 << 10;
/// So many evictions a joiner is told at once; it hears of the others when it is probed.
const EVICTIONS: usize = 4;

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
        let pardons = self.pardons(from, invite.value())?;
        let Invite { id, uses, not_after, .. } = *invite.value();
        let redeemed = self.state.ledger.redeemed.get(&id);
        let earlier = redeemed.and_then(|nodes| nodes.get(&from));
        if let Some(certificate) =
            earlier.filter(|c| self.is_still_good(c.value(), join.wg, pardons))
        {
            return Ok(certificate.clone());
        }
        let used = redeemed.map_or(0, |nodes| nodes.len());
        if earlier.is_none() && used >= usize::try_from(uses).unwrap_or(usize::MAX) {
            let text = format!("the invite is used up: {uses} of {uses} nodes have joined with it");
            return Err((RefusedReason::UsedUp, text));
        }
        self.check_key(from, join.wg)?;
        self.check_room(from)?;
        self.check_guests(from)?;
        let issued = self.issue(id, (from, join.wg), invite.value().grant(), pardons)?;
        self.state.ledger.expires.insert(id, not_after);
        Ok(issued)
    }

    fn check_invite(&self, raw: Raw) -> Result<Signed<Invite>, Refusal> {
        let invite = Signed::<Invite>::verify(raw)
            .map_err(|error| (RefusedReason::BadInvite, error.to_string()))?;
        invite.value().check_use(Some(self.id()), self.wall).map_err(|error| {
            let reason = match &error {
                InviteError::Expired { .. } => RefusedReason::Expired,
                InviteError::WrongMesh { .. } => RefusedReason::WrongMesh,
                InviteError::MayNotInvite { .. } => RefusedReason::BadInvite,
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

    /// Whether an invite of this node's was made before this node was evicted itself, and admitted
    /// again.
    fn is_of_before(&self, invite: &Invite) -> bool {
        let sponsor = invite.sponsor.as_ref().and_then(Signed::<Certificate>::peek);
        sponsor.is_some_and(|sponsor| {
            self.state.roster.evictions.barring(&Claim::of(&sponsor)).is_some()
        })
    }

    /// The number of the eviction that a certificate for a node is to take back. Who was evicted
    /// comes back with an invite that was signed later, and if the founder evicted it, with one of
    /// the founder's.
    fn pardons(&self, node: NodeId, invite: &Invite) -> Result<u32, Refusal> {
        let evictions = &self.state.roster.evictions;
        let founder = self.genesis().founder;
        let refuse = |text: &str| Err((RefusedReason::Evicted, text.to_owned()));
        if self.is_of_before(invite) {
            return refuse("who made the invite was evicted after that: ask it for a new one");
        }
        if invite.issuer != founder && evictions.of(node, founder).is_some() {
            return refuse("the founder of the mesh evicted this node: ask it for an invite");
        }
        match evictions.of(node, invite.issuer) {
            Some(held) if is_later(held.eviction(), invite) => {
                refuse("this node was evicted after the invite was made: ask for a new one")
            }
            held => Ok(held.map_or(0, |held| held.eviction().number)),
        }
    }

    fn is_still_good(&self, certificate: &Certificate, wg: WgKey, pardons: u32) -> bool {
        let current = certificate.pardons >= pardons && certificate.sponsor == self.sponsor();
        certificate.wg == wg && !certificate.has_expired(self.wall) && current
    }

    /// The certificate by which this node admits others; `None` if it is the founder.
    pub(super) fn sponsor(&self) -> Option<Raw> {
        (self.node() != self.genesis().founder).then(|| self.own().certificate)
    }

    /// The last second in which whom this node admits may be a member.
    fn horizon(&self) -> u64 {
        let not_after = self.wall.after(self.config.certificate_lifetime).0;
        let own = self.state.roster.map.added(&self.node());
        own.map_or(not_after, |own| own.certificate().not_after.min(not_after))
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

    /// A member admits no more than it may: the others would hold no more.
    fn check_guests(&self, from: NodeId) -> Result<(), Refusal> {
        let roster = &self.state.roster;
        let own = roster.map.added(&self.node()).map(|own| own.certificate());
        let Some(most) = own.filter(|own| own.subject != own.issuer).map(Certificate::most_guests)
        else {
            return Ok(());
        };
        let issued = self.state.ledger.redeemed.values().flat_map(|nodes| nodes.values());
        let valid = issued.map(Signed::value).filter(|issued| {
            let gone = roster.map.removed(&issued.subject).is_some();
            !gone
                && !issued.has_expired(self.wall)
                && roster.evictions.barring(&Claim::of(issued)).is_none()
        });
        let mut guests: BTreeSet<NodeId> = valid.map(|issued| issued.subject).collect();
        guests.extend(roster.guests_of(self.node()).into_iter().map(|(_, node)| node));
        match guests.len() < most || guests.contains(&from) {
            true => Ok(()),
            false => {
                let text = format!("this node has admitted as many as it may: {most}");
                Err((RefusedReason::Full, text))
            }
        }
    }

    fn issue(
        &mut self,
        invite: InviteId,
        (subject, wg): (NodeId, WgKey),
        Grant { role, prefixes, may_invite, guests }: Grant,
        pardons: u32,
    ) -> Result<Signed<Certificate>, Refusal> {
        let serial = self.state.ledger.last_serial.saturating_add(1);
        let certificate = Certificate {
            mesh: self.id(),
            subject,
            wg,
            role,
            prefixes,
            may_invite,
            not_after: self.horizon(),
            serial,
            issuer: self.node(),
            sponsor: self.sponsor(),
            pardons,
            guests,
        };
        let signed = Signed::sign(certificate, &self.identity)
            .map_err(|error| (RefusedReason::BadInvite, error.to_string()))?;
        let ledger = &mut self.state.ledger;
        ledger.last_serial = serial;
        ledger.redeemed.entry(invite).or_default().insert(subject, signed.clone());
        self.has_changed = true;
        Ok(signed)
    }

    /// Some of the state: enough to go on with anybody, for the issuer may be far away. What is held
    /// of the joiner comes first: its first record must outdo its earlier ones, and its removal.
    /// Then comes who admits it.
    fn first_records(&self, joiner: NodeId) -> Records {
        let map = &self.state.roster.map;
        let own = self.node();
        let others = map.entries().filter(|(node, _)| **node != joiner && **node != own);
        let first = map.entries_of(&joiner).chain(map.entries_of(&own));
        let entries = first.chain(others.map(|(_, entry)| entry)).map(|entry| entry.cloned());
        let entries: Vec<RosterEntry> = entries.collect();
        let held = self.state.roster.evictions.iter().take(EVICTIONS);
        let (mut evictions, mut room): (Vec<Raw>, usize) = (Vec::new(), WELCOME);
        for raw in held.map(Evicted::raw) {
            let size = raw.bytes.len() + 74;
            if room < WELCOME / 2 + size {
                break;
            }
            evictions.push(raw.clone());
            room -= size;
        }
        let first = super::sync::chunks(entries.iter(), room).into_iter().next();
        Records { evictions, ..first.unwrap_or_default() }
    }
}

/// Whether an eviction came after an invite of the same node's. That is told by how many it had
/// made, and by its clock only for evictions of a version that did not count them.
const fn is_later(eviction: &Eviction, invite: &Invite) -> bool {
    match eviction.count {
        0 => eviction.issued >= invite.issued,
        count => count > invite.evictions,
    }
}
