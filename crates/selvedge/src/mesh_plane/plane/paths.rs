//! When direct paths are looked after.

use std::time::Duration;

use selvedge_host::wireguard::PeerStatus;
use selvedge_model::MeshId;

use super::{Plane, Report, now, report};

/// What was sent within this time is a reason for a path.
const USED: Duration = Duration::from_secs(2);

impl Plane {
    /// Asks WireGuard what it knows, where that is due.
    pub(super) fn begin_looks(&mut self) {
        let now = now(self.began);
        for (mesh, seat) in &mut self.meshes {
            if seat.paths.begin_look(now) {
                let (mesh, reporter) = (*mesh, self.reporter.clone());
                let inquirer = seat.wire.applier.inquirer();
                tokio::spawn(async move {
                    let peers = inquirer.peers().await;
                    report(&reporter, Report::Looked(mesh, peers)).await;
                });
            }
        }
    }

    pub(super) fn look_at_paths(&mut self, mesh: MeshId, peers: &[PeerStatus]) {
        let now = now(self.began);
        if let Some(seat) = self.meshes.get_mut(&mesh) {
            let sent = seat.wire.applier.destinations().within(USED);
            seat.paths.look(&mut seat.core, peers, &sent, now);
            self.drive(mesh);
        }
    }

    /// Has done what the direct paths of a mesh want done.
    pub(super) fn drive_paths(&mut self, mesh: MeshId) {
        let Some(seat) = self.meshes.get_mut(&mesh) else { return };
        if seat.follow_paths() {
            self.planning.note();
        }
        if seat.paths.speak(&mut seat.core) {
            let wanted = seat.drive();
            self.carry_out(mesh, wanted);
        }
    }
}
