//! What the API shows of the gateway plane.

use selvedge_api::gateway::{
    Counts, Duty, NetworkRow, NodeRow, Role, State, Status, Store, Upstream,
};
use selvedge_gateway::status::{NetworkStatus, NodeStatus, Status as CoreStatus};
use selvedge_gateway::{desired, machine};
use selvedge_model::{NodeName, Vni};

use super::plane::Plane;

impl Plane {
    pub(super) fn status(&self) -> Status {
        let status = self.core.status();
        let me = status.nodes.get(&status.name);
        Status {
            incarnation: status.incarnation.map(|revision| revision.0),
            store: Store {
                engine: self.engine.to_owned(),
                connected: status.connected,
                revision: status.revision.0,
                lease: status.lease.map(|lease| lease.to_string()),
            },
            fabric: self.fabric.to_owned(),
            registered: status.incarnation.is_some(),
            drained: me.is_some_and(|node| node.drained),
            planner: status.planner.clone(),
            nodes: status.nodes.iter().map(|(name, node)| node_row(name, node)).collect(),
            networks: counts(&status),
            counters: self.counters,
            warnings: self.warnings(&status),
            name: status.name,
        }
    }

    pub(super) fn networks(&self) -> Vec<NetworkRow> {
        self.core.networks().into_iter().map(|row| self.network_row(row)).collect()
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
            observed: self.observed.get(&row.vni).copied().map(duty),
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
        if status.convicted {
            warnings.push("this gateway was convicted and has withdrawn".into());
        }
        warnings.extend(self.unable.iter().map(|(vni, why)| unable(*vni, why)));
        let problems = status.problems.iter();
        warnings.extend(problems.map(|(key, problem)| format!("{key} in the store: {problem}")));
        warnings
    }
}

fn node_row(name: &NodeName, node: &NodeStatus) -> NodeRow {
    NodeRow {
        name: name.clone(),
        registered: node.incarnation.is_some() || node.predecessor,
        drained: node.drained,
        legacy: node.predecessor,
        ids: node.ids,
        serving: node.owns,
    }
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

fn state(state: machine::State) -> State {
    // Both count by the same numbers; a test compares them.
    State::from_number(state.number()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_names_the_states_as_the_core_does() {
        for core in machine::State::ALL {
            assert_eq!(state(core).as_str(), core.name());
            assert_eq!(state(core).number(), core.number());
        }
    }
}
