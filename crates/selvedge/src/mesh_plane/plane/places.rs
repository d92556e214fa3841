//! Where nodes are: what partners see of this one, and what the names of others stand for.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use selvedge_mesh::wire::{self, Envelope};
use selvedge_model::{MeshId, NodeId};
use tracing::debug;

use super::super::seat::{Message, Seated};
use super::super::topology::Site;
use super::super::{hosts, observed};
use super::{HOUSEKEEPING, Plane, Report, report};

impl Plane {
    /// Takes in where a partner sees this node.
    pub(super) fn note_seen(&mut self, mesh: MeshId, from: NodeId, bytes: &[u8]) {
        let Some(seat) = self.meshes.get_mut(&mesh).filter(|seat| seat.core.is_member(from)) else {
            return;
        };
        let seen = match Envelope::decode(bytes) {
            Ok(Envelope { message: wire::Message::Seen(seen), .. }) => seen.addr.to_canonical(),
            Ok(_) | Err(_) => return debug!(%from, "where it sees this node cannot be read"),
        };
        let now = Instant::now();
        let before = seat.seen_at(now);
        seat.observed.note(from, seen, now);
        if seat.seen_at(now) != before && seat.observed.hurry(now) {
            self.keep_house();
        }
    }

    /// Tells partners that were heard lately where they are seen, if they do not know.
    pub(super) fn tell_seen(&self) {
        let lately = self.heard.iter().filter(|(_, contact)| contact.at.elapsed() < HOUSEKEEPING);
        for (to, from) in lately.map(|(node, contact)| (*node, contact.from)) {
            for seat in self.meshes.values() {
                let Some(member) = seat.core.member(to) else { continue };
                let Some(addr) = observed::news(&member.profile, from) else { continue };
                let message = wire::Message::Seen(wire::Seen { addr });
                let bytes = Envelope { mesh: seat.id(), message }.encode().into();
                self.send(&Message { to, bytes, datagram: true }, &[from]);
            }
        }
    }

    /// Where others see this node, as far as it is to be announced: what is configured counts more,
    /// and no mesh runs over what is seen of it in another one.
    pub(super) fn observed(&self, seat: &Seated, now: Instant) -> Vec<IpAddr> {
        let configured = seat.options.endpoints.iter().any(|place| place.address().is_some());
        if configured || seat.core.profile().client {
            return Vec::new();
        }
        let overlays: Vec<_> = self.meshes.values().flat_map(Seated::overlays).collect();
        let outside = |ip: &IpAddr| !overlays.iter().any(|overlay| overlay.contains(*ip));
        seat.seen_at(now).into_iter().filter(outside).collect()
    }

    /// Gives members the addresses of the names that they have as endpoints, as far as these are
    /// known, and asks for the others.
    pub(super) fn resolve(&mut self, sites: &mut [Site], now: Instant) {
        let members = || sites.iter().flat_map(|site| &site.members);
        let names = members().flat_map(|(member, _)| &member.profile.names);
        let names: BTreeSet<_> = names.map(|named| named.host.clone()).collect();
        self.hosts.want(names, now);
        for (member, _) in sites.iter_mut().flat_map(|site| &mut site.members) {
            self.hosts.resolve(&mut member.profile);
        }
    }

    /// Asks for the names that are due.
    pub(super) fn look_up(&mut self, now: Instant) {
        for name in self.hosts.ask(now) {
            let reporter = self.reporter.clone();
            tokio::spawn(async move {
                let answer = hosts::look_up(&name).await;
                report(&reporter, Report::Resolved { name, answer }).await;
            });
        }
    }

    /// Where the agent of a member may be found.
    pub(super) fn control_places(&self, seat: &Seated, node: NodeId) -> Vec<SocketAddr> {
        match seat.core.member(node).filter(|member| !member.profile.names.is_empty()) {
            Some(mut member) => {
                self.hosts.resolve(&mut member.profile);
                member.profile.control.into_iter().map(|place| place.addr).collect()
            }
            None => seat.core.control_endpoints(node),
        }
    }
}
