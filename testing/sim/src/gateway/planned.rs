//! G3: a planned move loses no packet.
//!
//! What is judged is the kernels of the two gateways of a move, from the moment at which the one
//! that goes serves the network until the store says that the move is over:
//!
//! - at every moment one of the two answers ARP and ND, one attracts what comes from upstream, and
//!   one is in the fabric;
//! - who goes withdraws its routes, upstream and in the fabric, only when the one that comes has
//!   had its own for [`SETTLE`], so that routing has followed.
//!
//! Agents may crash, stop, be restarted or lose the store meanwhile: their kernels go on. A move
//! is not judged from the moment on at which a host of the two is off, silent or about to be, says
//! that it cannot serve, is convicted, or is not registered: then it is a loss, or called off.

use std::collections::BTreeMap;
use std::time::Duration;

use selvedge_gateway::cache::{Cache, Network};
use selvedge_gateway::desired::{Duty, Upstream};
use selvedge_model::{NodeName, Time, Vni};

use super::host::{Host, Routes};

/// For how long routes of the one that comes stand before those of the one that goes are withdrawn.
pub const SETTLE: Duration = Duration::from_millis(400);
/// How much of it the clocks of agents may make up.
const CLOCKS: Duration = Duration::from_millis(1);

/// The planned moves under way.
#[derive(Debug, Default)]
pub struct Moves {
    courses: BTreeMap<Vni, Course>,
    /// How many moves were judged from their beginning to their end.
    pub judged: usize,
}

/// One move.
#[derive(Debug)]
struct Course {
    ends: [Option<NodeName>; 2],
    /// Whether it is not judged any more.
    excused: bool,
    /// What the one that goes did when this was last looked at; `None` until it serves.
    before: Option<Duty>,
}

impl Moves {
    /// Forgets the moves under way.
    pub fn forget(&mut self) {
        self.courses.clear();
    }

    /// Looks at a network for which a host or the store has changed something. Returns what is
    /// wrong with its move.
    pub fn look(
        &mut self,
        vni: Vni,
        cache: &Cache,
        hosts: &[Host],
        now: Time,
    ) -> Option<&'static str> {
        let network = cache.networks.get(&vni);
        let Some(network) = network.filter(|network| network.state().is_migration()) else {
            let ended = self.courses.remove(&vni);
            let whole = ended.is_some_and(|course| !course.excused && course.before.is_some());
            self.judged += usize::from(whole);
            return None;
        };
        let names = [network.current(), network.next()].map(Option::<&NodeName>::cloned);
        let known = self.courses.get(&vni).is_some_and(|course| course.ends == names);
        if !known {
            self.courses.insert(vni, Course::new(names));
        }
        let course = self.courses.get_mut(&vni).filter(|course| !course.excused)?;
        let [Some(goes), Some(comes)] = ends(network, cache, hosts) else {
            course.excused = true;
            return None;
        };
        let routes = comes.routes.get(&vni).copied().unwrap_or_default();
        let wrong = course.judge(goes.duty(vni), comes.duty(vni), routes, now);
        course.excused |= wrong.is_some();
        wrong
    }
}

impl Course {
    const fn new(ends: [Option<NodeName>; 2]) -> Self {
        Self { ends, excused: false, before: None }
    }

    fn judge(
        &mut self,
        goes: Duty,
        comes: Duty,
        routes: Routes,
        now: Time,
    ) -> Option<&'static str> {
        let settled =
            |since: Option<Time>| since.is_some_and(|since| now.since(since) + CLOCKS >= SETTLE);
        let serves = goes == (Duty { upstream: goes.upstream, ..Duty::FULL }) && attracts(goes);
        let Some(before) = self.before else {
            self.before = serves.then_some(goes);
            return None;
        };
        self.before = Some(goes);
        if !goes.answering && !comes.answering {
            return Some("nobody answers in a planned move");
        }
        if !attracts(goes) && !attracts(comes) {
            return Some("nobody attracts traffic in a planned move");
        }
        if !goes.fabric && !comes.fabric {
            return Some("nobody is in the fabric in a planned move");
        }
        if attracts(before) && !attracts(goes) && !settled(routes.upstream) {
            return Some("withdrawn upstream before the successor's routes had settled");
        }
        if before.fabric && !goes.fabric && !settled(routes.fabric) {
            return Some("withdrawn from the fabric before the successor's routes had settled");
        }
        None
    }
}

fn attracts(duty: Duty) -> bool {
    duty.upstream != Upstream::Off
}

/// The hosts of the one that goes and the one that comes, if nothing excuses them.
fn ends<'a>(network: &Network, cache: &Cache, hosts: &'a [Host]) -> [Option<&'a Host>; 2] {
    let fit = |name: &&NodeName| cache.live.contains_key(*name) && !cache.is_convicted(name);
    [network.current(), network.next()].map(|name| {
        let name = name.filter(fit)?;
        let mut named = hosts.iter().filter(|host| host.name == *name && !host.name_taken);
        named.next().filter(|host| host.does_its_part())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMING: Duty = Duty { answering: false, ..Duty::TAKEOVER };
    const GOING: Duty = Duty { upstream: Upstream::Off, ..Duty::FULL };
    const SILENT: Duty = Duty { answering: false, ..GOING };

    /// What is wrong with a course of pairs of duties, each after so many milliseconds more.
    fn judge(steps: &[(u64, Duty, Duty)]) -> Option<&'static str> {
        let mut course = Course::new([None, None]);
        let (mut now, mut routes) = (Time::ZERO, Routes::default());
        steps.iter().find_map(|(after, goes, comes)| {
            now = now + Duration::from_millis(*after);
            routes = routes.and(*comes, now);
            course.judge(*goes, *comes, routes, now)
        })
    }

    #[test]
    fn a_move_in_order_is_in_order() {
        let steps = [
            (0, Duty::NONE, Duty::NONE),
            (10, Duty::FULL, Duty::NONE),
            (10, Duty::FULL, COMING),
            (400, GOING, COMING),
            (400, GOING, Duty::TAKEOVER),
            (10, SILENT, Duty::TAKEOVER),
            (10, Duty::NONE, Duty::TAKEOVER),
        ];
        assert_eq!(judge(&steps), None);
    }

    #[test]
    fn each_step_that_comes_too_early_is_named() {
        let begin = [(0, Duty::FULL, Duty::NONE), (10, Duty::FULL, COMING)];
        let with = |steps: &[(u64, Duty, Duty)]| judge(&[&begin[..], steps].concat());
        let early = with(&[(398, GOING, COMING)]);
        assert_eq!(early, Some("withdrawn upstream before the successor's routes had settled"));
        let silent = with(&[(400, GOING, COMING), (400, SILENT, COMING)]);
        assert_eq!(silent, Some("nobody answers in a planned move"));
        let again =
            with(&[(300, Duty::FULL, Duty::NONE), (10, Duty::FULL, COMING), (300, GOING, COMING)]);
        assert_eq!(again, Some("withdrawn upstream before the successor's routes had settled"));
        let gone =
            with(&[(500, Duty { fabric: false, ..GOING }, Duty { fabric: false, ..COMING })]);
        assert_eq!(gone, Some("nobody is in the fabric in a planned move"));
        assert_eq!(
            with(&[(1, GOING, Duty::NONE)]),
            Some("nobody attracts traffic in a planned move")
        );
        let late = Duty { fabric: false, ..Duty::TAKEOVER };
        let fabric = judge(&[
            (0, Duty::FULL, late),
            (500, GOING, Duty::TAKEOVER),
            (300, Duty::NONE, Duty::TAKEOVER),
        ]);
        let text = "withdrawn from the fabric before the successor's routes had settled";
        assert_eq!(fabric, Some(text));
    }
}
