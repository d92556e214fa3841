//! What the API shows of the gateway plane.

use selvedge_api::gateway::{
    Cause, ChangeRow, Counters, Counts, Duty, Failover, HistoryQuery, Members, NetworkRow,
    NodeKind, NodeRow, Partner, Path, Right, Role, State, Status, Store, Upstream,
};
use selvedge_gateway::cache::Change;
use selvedge_gateway::status::{
    NetworkStatus, NodeStatus, Partner as CorePartner, Status as CoreStatus,
};
use selvedge_gateway::{NodeRole, desired, kv, machine, status};
use selvedge_model::{NodeName, Vni};

use super::events::millis;
use super::plane::Plane;

/// How many changes of owners are shown unless more are asked for, and how many at most.
const CHANGES: (usize, usize) = (100, 10_000);

impl Plane {
    pub(super) fn status(&self) -> Status {
        let status = self.core.status();
        let me = status.nodes.get(&status.name);
        Status {
            incarnation: status.incarnation.map(|revision| revision.0),
            store: Store {
                engine: self.engine.to_owned(),
                connected: status.connected,
                members: status.store.map(members),
                revision: status.revision.0,
                lease: status.lease.map(|lease| lease.to_string()),
            },
            fabric: self.fabric.to_owned(),
            registered: status.incarnation.is_some(),
            unregistered: self.unregistered(&status),
            drained: me.is_some_and(|node| node.drained),
            kind: kind(status.role),
            failover: Failover {
                possible: status.failover_impossible.is_none(),
                reason: status.failover_impossible.clone(),
            },
            right: right(status.right),
            silenced: self.journal.is_silenced(),
            unfit: status.unfit.clone(),
            voters: status.voters.clone(),
            majority: status.majority,
            partners: status.partners.iter().map(|(name, row)| partner(name, row)).collect(),
            planner: status.planner.clone(),
            nodes: nodes(&status),
            networks: counts(&status),
            counters: self.counters(),
            times: self.journal.times.clone(),
            warnings: self.warnings(&status),
            name: status.name,
        }
    }

    pub(super) fn networks(&self) -> Vec<NetworkRow> {
        self.core.networks().into_iter().map(|row| self.network_row(row)).collect()
    }

    /// The latest changes of owners that are asked for, in the order in which they happened.
    pub(super) fn history(&self, query: HistoryQuery) -> Vec<ChangeRow> {
        let last = query.last.unwrap_or(CHANGES.0).min(CHANGES.1);
        match query.vni {
            Some(vni) => latest(self.core.history(vni).iter().map(|change| (vni, change)), last),
            None => {
                let all = self.core.histories();
                latest(all.flat_map(|(vni, list)| list.iter().map(move |c| (vni, c))), last)
            }
        }
    }

    fn counters(&self) -> Counters {
        let probes = self.probe_counters();
        Counters {
            probes_sent: probes.sent,
            probes_received: probes.received,
            probes_refused: probes.refused(),
            ..self.journal.counters()
        }
    }

    /// Why the store does not hold this gateway's registration, if it does not.
    fn unregistered(&self, status: &CoreStatus) -> Option<String> {
        if status.incarnation.is_some() {
            return None;
        }
        Some(if let Some(identity) = &self.journal.name_taken {
            format!(
                "another host is registered as {}: {identity}; give each gateway a name of its own",
                status.name
            )
        } else if status.leaving {
            "it is on its way out".to_owned()
        } else if !status.connected {
            "the store does not answer".to_owned()
        } else if !status.synced {
            "the store is being read".to_owned()
        } else if status.lease.is_none() {
            "the store has granted no lease yet".to_owned()
        } else {
            "it is about to register".to_owned()
        })
    }

    fn network_row(&self, row: NetworkStatus) -> NetworkRow {
        let me = self.core.name();
        let role = match (row.current.as_ref() == Some(me), row.next.as_ref() == Some(me)) {
            (true, _) => Role::Current,
            (false, true) => Role::Next,
            (false, false) => Role::None,
        };
        let reason = match row.blocked {
            true => Some("a key of it in the store makes no sense: left alone".to_owned()),
            false => row.last_change.as_ref().map(|change| change.reason.clone()),
        };
        NetworkRow {
            vni: row.vni,
            state: state(row.state),
            number: row.state.number(),
            current: row.current,
            next: row.next,
            role,
            desired: duty(row.desired.unwrap_or_default()),
            observed: self.observed.as_ref().and_then(|all| all.get(&row.vni)).copied().map(duty),
            epoch: row.last_change.map_or(0, |change| change.epoch),
            since: self.since.get(&row.vni).copied(),
            reason,
        }
    }

    fn warnings(&self, status: &CoreStatus) -> Vec<String> {
        let mut warnings = Vec::new();
        if !status.connected {
            warnings.push("the store does not answer: nothing moves, what is served stays".into());
        }
        warnings.extend(status.unfit.iter().map(|problem| format!("unfit to serve: {problem}")));
        if status.convicted {
            warnings.push("this gateway was convicted and has withdrawn".into());
        }
        if status.failover_impossible.is_none() {
            let hears = |voter: &&NodeName| {
                **voter == status.name || status.partners.get(*voter).is_some_and(|it| it.heard)
            };
            let heard = status.voters.iter().filter(hears).count();
            warnings.extend(without_reserve(status.store, heard, status.voters.len()));
        }
        warnings.extend(self.unable.iter().map(|(vni, why)| unable(*vni, why)));
        let problems = status.problems.iter();
        warnings.extend(problems.map(|(key, problem)| format!("{key} in the store: {problem}")));
        warnings
    }
}

/// What has just enough left for failover to be possible: of the store's members, and of all voters
/// those that are heard, this one included.
fn without_reserve(store: Option<kv::Health>, heard: usize, voters: usize) -> Vec<String> {
    let short = |what: &str, there: usize, all: usize| {
        let least = there < all && there == all / 2 + 1;
        let text =
            || format!("{there} of {all} {what}: without one more of them nobody takes over");
        least.then(text)
    };
    let members = store.and_then(|kv::Health { members, answering, .. }| {
        short("members of the store answer", answering, members)
    });
    // Two voters go without a majority of themselves.
    let voters = short("voters are heard", heard, voters).filter(|_| voters > 2);
    members.into_iter().chain(voters).collect()
}

/// The `last` of the changes by time, in their order.
fn latest<'a>(changes: impl Iterator<Item = (Vni, &'a Change)>, last: usize) -> Vec<ChangeRow> {
    let mut all: Vec<_> = changes.collect();
    all.sort_unstable_by_key(|(vni, change)| (change.at_ms, *vni, change.epoch));
    all.drain(..all.len().saturating_sub(last));
    let row = |(vni, change): (Vni, &Change)| ChangeRow {
        vni,
        epoch: change.epoch,
        owner: change.owner.clone(),
        reason: change.reason.clone(),
        at_ms: change.at_ms,
    };
    all.into_iter().map(row).collect()
}

fn nodes(status: &CoreStatus) -> Vec<NodeRow> {
    let votes = |name| status.voters.contains(name);
    status.nodes.iter().map(|(name, node)| node_row(name, node, votes(name))).collect()
}

fn node_row(name: &NodeName, node: &NodeStatus, votes: bool) -> NodeRow {
    NodeRow {
        name: name.clone(),
        registered: node.incarnation.is_some() || node.predecessor,
        drained: node.drained,
        on_ring: node.on_ring,
        convicted: node.convicted,
        votes,
        version: node.version.clone(),
        legacy: node.predecessor,
        ids: node.ids,
        serving: node.owns,
    }
}

fn partner(name: &NodeName, partner: &CorePartner) -> Partner {
    let path = |path: &status::PathStatus| Path {
        address: path.addr,
        silent_ms: path.silent_for.map(millis),
        round_trip_us: path.round_trip.map(|time| u64::try_from(time.as_micros()).unwrap_or(0)),
    };
    Partner {
        name: name.clone(),
        heard: partner.heard,
        silent_ms: partner.silent_for.map(millis),
        paths: partner.paths.iter().map(path).collect(),
        hears: partner.hears.clone(),
        voted_by: partner.voted_by.clone(),
        away_ms: partner.away.map(millis),
    }
}

const fn members(health: kv::Health) -> Members {
    let kv::Health { members, answering, led } = health;
    Members { members, answering, led }
}

const fn kind(role: NodeRole) -> NodeKind {
    match role {
        NodeRole::Gateway => NodeKind::Gateway,
        NodeRole::Witness => NodeKind::Witness,
    }
}

pub(super) const fn cause(right: status::Right) -> Cause {
    match right {
        status::Right::None => Cause::None,
        status::Right::Unknown => Cause::Unknown,
        status::Right::Majority => Cause::Majority,
        status::Right::Store => Cause::Store,
        status::Right::Isolated => Cause::Isolated,
    }
}

/// Nobody's word is needed as long as there is nobody to ask.
pub(super) const fn right(right: status::Right) -> Right {
    let cause = cause(right);
    Right { serve: !matches!(cause, Cause::None), cause }
}

fn unable(vni: Vni, why: &str) -> String {
    format!("network {vni} cannot be served here: {why}")
}

const fn counts(status: &CoreStatus) -> Counts {
    let counts = status.networks;
    Counts {
        total: counts.total,
        serving: counts.serving,
        moving: counts.moving + counts.failover,
        unassigned: counts.unassigned,
        blocked: counts.blocked,
    }
}

const fn duty(duty: desired::Duty) -> Duty {
    Duty {
        fabric: duty.fabric,
        upstream: match duty.upstream {
            desired::Upstream::Off => Upstream::Off,
            desired::Upstream::Whole => Upstream::Whole,
            desired::Upstream::Halves => Upstream::Halves,
        },
        answering: duty.answering,
    }
}

pub(super) fn state(state: machine::State) -> State {
    // Both count by the same numbers; a test compares them.
    State::from_number(state.number()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_changes_are_shown_in_their_order() {
        let change = |at_ms, epoch| Change {
            epoch,
            owner: "gw1".parse().expect("a name"),
            reason: String::new(),
            at_ms,
        };
        let [one, two] = [1, 2].map(|number| Vni::try_from(number).expect("vni"));
        let (first, second, third) = (change(10, 1), change(30, 2), change(20, 7));
        let all = [(one, &first), (one, &second), (two, &third)];
        let shown = latest(all.into_iter(), 2);
        let shown: Vec<_> = shown.iter().map(|row| (row.vni, row.epoch, row.at_ms)).collect();
        assert_eq!(shown, [(two, 7, 20), (one, 2, 30)]);
        assert_eq!(latest(all.into_iter(), 9).len(), 3);
    }

    #[test]
    fn who_has_no_reserve_is_warned() {
        let store = |answering, members| Some(kv::Health { members, answering, led: true });
        for (store, heard, voters) in
            [(store(3, 3), 3, 3), (store(1, 1), 2, 2), (store(4, 5), 4, 5), (None, 1, 1)]
        {
            assert_eq!(
                without_reserve(store, heard, voters),
                [""; 0],
                "{store:?} {heard} {voters}"
            );
        }
        let text = |what: &str| format!("{what}: without one more of them nobody takes over");
        let both = [text("2 of 3 members of the store answer"), text("2 of 3 voters are heard")];
        assert_eq!(without_reserve(store(2, 3), 2, 3), both);
        assert_eq!(without_reserve(store(5, 5), 3, 5), [text("3 of 5 voters are heard")]);
    }

    #[test]
    fn the_api_names_the_states_as_the_core_does() {
        for core in machine::State::ALL {
            assert_eq!(state(core).as_str(), core.name());
            assert_eq!(state(core).number(), core.number());
        }
    }
}
