//! When the host's part in all meshes is planned anew.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;
use tracing::{debug, error};

use super::super::seat::DRAIN;
use super::super::topology::{Links, Planned, decide};
use super::{Plane, Report, report};

/// What happens within this time is planned for at once.
const GATHER: Duration = Duration::from_millis(20);

/// When to plan. One plan is made at a time, and what changes meanwhile makes another one; between
/// two of them is as much time as the first one took, so that a large mesh leaves room for the rest.
#[derive(Debug, Default)]
pub(super) struct Planning {
    due: Option<Instant>,
    began: Option<Instant>,
    /// Something has changed since it began.
    stale: bool,
    last: Option<Arc<Planned>>,
    /// The links of the host may be others than those of the last plan.
    links_doubted: bool,
}

impl Planning {
    /// Takes note that the plan may be another.
    pub(super) fn note(&mut self) {
        match self.began {
            Some(_) => self.stale = true,
            None => self.note_by(Instant::now() + GATHER),
        }
    }

    /// Has a plan be made then, if none is before.
    fn note_by(&mut self, then: Instant) {
        self.due = Some(self.due.map_or(then, |due| due.min(then)));
    }

    /// When a plan is to be made, if one is.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due.filter(|_| self.began.is_none())
    }

    /// Whether a plan is to be made now; then [`Planning::end`] is to be called afterwards.
    pub(super) fn begin(&mut self, now: Instant) -> bool {
        let begins = self.due().is_some_and(|due| due <= now);
        if begins {
            (self.due, self.began) = (None, Some(now));
        }
        begins
    }

    /// Takes note that the links of the host, or their addresses, may be others.
    pub(super) fn doubt_links(&mut self) {
        self.links_doubted = true;
    }

    fn end(&mut self, now: Instant) {
        let took = self.began.take().map_or(Duration::ZERO, |began| now - began);
        if std::mem::take(&mut self.stale) {
            self.note_by(now + took.max(GATHER));
        }
    }
}

impl Plane {
    /// Has a plan be made, aside from the loop: with thousands of members it takes a while.
    pub(super) fn plan(&mut self) {
        let now = Instant::now();
        let time = super::now(self.began);
        let sites = self.meshes.values_mut().map(|seat| seat.site(now, time));
        let mut sites: Vec<_> = sites.collect();
        self.resolve(&mut sites, now);
        self.look_up(now);
        if sites.iter().any(|site| site.still_serving) {
            self.planning.note_by(now + DRAIN);
        }
        let (reporter, netlink) = (self.reporter.clone(), self.setup.netlink.clone());
        let last = self.planning.last.clone();
        let doubted = std::mem::take(&mut self.planning.links_doubted);
        tokio::spawn(async move {
            // Thousands of interfaces take a while to list, and by which of them partners are
            // reached is no part of the list.
            let last = last.filter(|_| !doubted);
            let links = match &last {
                Some(last) => last.links(),
                None => Arc::new(Links::look(netlink.as_ref()).await),
            };
            let planned = spawn_blocking(move || decide(&mut sites, links, last)).await;
            let planned = planned.inspect_err(|error| {
                error!(%error, "no plan for the meshes; what was planned before stays");
            });
            report(&reporter, Report::Planned(planned.ok())).await;
        });
    }

    /// Follows a plan.
    pub(super) fn follow(&mut self, planned: Option<Arc<Planned>>) {
        let now = Instant::now();
        self.planning.end(now);
        let Some(planned) = planned else { return };
        let outcome = &planned.outcome;
        let same = self.planning.last.as_ref().is_some_and(|last| Arc::ptr_eq(last, &planned));
        debug!(meshes = outcome.layouts.len(), same, ground = ?outcome.ground, "planned");
        if let Some(landlord) = &self.landlord {
            landlord.set(outcome.ground.clone());
        }
        for (mesh, layout) in &outcome.layouts {
            let Some(seat) = self.meshes.get_mut(mesh) else { continue };
            if !same {
                seat.follow(layout.clone());
            }
            if let Some(later) = seat.say(now) {
                self.planning.note_by(later);
            }
            self.drive(*mesh);
        }
        self.planning.last = Some(planned);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_while_a_plan_is_made_makes_another_one() {
        let mut planning = Planning::default();
        let start = Instant::now();
        assert!(!planning.begin(start) && planning.due().is_none());
        planning.note();
        planning.note();
        assert!(!planning.begin(start), "what follows at once is waited for");
        let due = planning.due().expect("noted");
        assert!(planning.begin(due) && !planning.begin(due), "one at a time");
        planning.note();
        assert_eq!(planning.due(), None);
        let took = Duration::from_secs(2);
        planning.end(due + took);
        assert_eq!(planning.due(), Some(due + took + took), "a rest as long as the work");
        assert!(planning.begin(due + took + took));
        planning.end(due + took * 3);
        assert_eq!(planning.due(), None);
    }

    #[test]
    fn what_happens_is_planned_for_though_a_later_plan_is_due() {
        let mut planning = Planning::default();
        let later = Instant::now() + Duration::from_secs(3600);
        planning.note_by(later);
        planning.note();
        assert!(planning.due().is_some_and(|due| due < later));
    }
}
