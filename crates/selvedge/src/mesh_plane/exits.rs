//! By which exits this node leaves a mesh, and why by none.

use std::collections::{BTreeMap, BTreeSet};

use selvedge_api::mesh::{Exit, NoExit};
use selvedge_model::{NodeId, Prefix};
use selvedge_topology::{ExitUse, Member, View, everywhere};

/// The exits that are asked for in a mesh, one for each family, given the members by which packets
/// to beyond it go. None if no exit is asked for.
pub(super) fn exits(view: &View, used: &BTreeMap<Prefix, NodeId>, speaks_ipv4: bool) -> Vec<Exit> {
    let closed = match view.options.exit {
        ExitUse::None => return Vec::new(),
        ExitUse::Any => false,
        ExitUse::Only(_) => true,
    };
    let exit = |destination: Prefix| {
        let mute = destination.addr().is_ipv4() && !speaks_ipv4;
        let via = used.get(&destination).copied().filter(|_| !mute);
        let reason = via.is_none().then(|| reason(view, destination, mute));
        let exit = Exit { destination, via, reason, dropped: false };
        Exit { dropped: closed && exit.is_missing(), ..exit }
    };
    everywhere().map(exit).into()
}

/// Takes note of the families in which this node is an exit itself, in whatever mesh: then it uses
/// no other.
pub(super) fn note_own(exits: &mut [Exit], own: &BTreeSet<Prefix>) {
    let is_own = |exit: &&mut Exit| exit.via.is_none() && own.contains(&exit.destination);
    for exit in exits.iter_mut().filter(is_own) {
        (exit.reason, exit.dropped) = (Some(NoExit::OwnExit), false);
    }
}

/// Why none is used; `mute`: because this node has no address to send from.
fn reason(view: &View, destination: Prefix, mute: bool) -> NoExit {
    let asked_for = |member: &&Member| match view.options.exit {
        ExitUse::None => false,
        ExitUse::Any => true,
        ExitUse::Only(node) => member.node == node,
    };
    let candidates: Vec<&Member> = view.others().filter(asked_for).collect();
    let mut offers = candidates.iter().filter(|it| it.networks.contains(&destination)).peekable();
    if candidates.is_empty() && view.options.exit != ExitUse::Any {
        NoExit::NoMember
    } else if offers.peek().is_none() {
        NoExit::NotOffered
    } else if !offers.any(|member| member.live) {
        NoExit::Down
    } else if mute {
        NoExit::NoAddress
    } else {
        NoExit::OtherMesh
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use selvedge_mesh::Role;
    use selvedge_model::{MeshId, WgKey};
    use selvedge_topology::Options;

    use super::*;

    const EXIT: NodeId = NodeId([2; 32]);

    fn prefix(text: &str) -> Prefix {
        text.parse().expect("a prefix")
    }

    fn member(number: u8, networks: &[&str]) -> Member {
        Member {
            node: NodeId([number; 32]),
            key: WgKey([number; 32]),
            role: Role::Peer,
            address: Ipv6Addr::from([number; 16]),
            serial: 1,
            ipv4: None,
            live: true,
            drained: false,
            avoids: Vec::new(),
            endpoints: Vec::new(),
            networks: networks.iter().map(|text| prefix(text)).collect(),
            bridged: Vec::new(),
            permits: Vec::new(),
        }
    }

    /// This node, and one that offers an exit of IPv6 alone.
    fn view(exit: ExitUse) -> View {
        let options = Options { exit, ..Options::default() };
        let members = vec![member(1, &[]), member(2, &["::/0"])];
        View { mesh: MeshId([7; 20]), own: NodeId([1; 32]), members, options }
    }

    /// What is said of IPv6 and of IPv4: why there is no exit, and whether packets are dropped.
    fn said(view: &View, used: &[(&str, NodeId)]) -> [(Option<NoExit>, bool); 2] {
        let used = used.iter().map(|(to, by)| (prefix(to), *by)).collect();
        let exits = exits(view, &used, false);
        ["::/0", "0.0.0.0/0"].map(|family| {
            let exit = exits.iter().find(|it| it.destination == prefix(family)).expect("said");
            assert_eq!(exit.via.is_none(), exit.reason.is_some());
            (exit.reason, exit.dropped)
        })
    }

    #[test]
    fn who_asks_for_no_exit_is_told_of_none() {
        assert_eq!(exits(&view(ExitUse::None), &BTreeMap::new(), true), []);
    }

    #[test]
    fn the_reason_why_there_is_no_exit_is_told_by_family() {
        let named = ExitUse::Only(EXIT);
        let by = [("::/0", EXIT)];
        let unoffered = (Some(NoExit::NotOffered), true);
        assert_eq!(said(&view(named), &by), [(None, false), unoffered]);
        let mut down = view(named);
        down.members[1].live = false;
        assert_eq!(said(&down, &[]), [(Some(NoExit::Down), true), unoffered]);
        let gone = ExitUse::Only(NodeId([9; 32]));
        assert_eq!(said(&view(gone), &[]), [(Some(NoExit::NoMember), true); 2]);
        let elsewhere = said(&view(ExitUse::Any), &[])[0];
        assert_eq!(elsewhere, (Some(NoExit::OtherMesh), false));
        down.options.exit = ExitUse::Any;
        assert_eq!(said(&down, &[])[0], (Some(NoExit::Down), false), "the host's own way");
    }

    #[test]
    fn who_is_an_exit_itself_lacks_none() {
        let mut view = view(ExitUse::Only(NodeId([9; 32])));
        view.members[0].networks.push(prefix("::/0"));
        let mut exits = exits(&view, &BTreeMap::new(), true);
        note_own(&mut exits, &view.me().expect("a member").exits().collect());
        let of = |v6| exits.iter().find(|it| it.destination.addr().is_ipv6() == v6).expect("said");
        assert_eq!((of(true).reason, of(true).dropped), (Some(NoExit::OwnExit), false));
        assert_eq!((of(false).reason, of(false).dropped), (Some(NoExit::NoMember), true));
        assert!(of(false).is_missing() && !of(true).is_missing());
    }

    #[test]
    fn who_has_no_ipv4_address_does_not_leave_by_ipv4() {
        let mut view = view(ExitUse::Only(EXIT));
        view.members[1].networks.push(prefix("0.0.0.0/0"));
        let [v6, v4] = said(&view, &[("::/0", EXIT), ("0.0.0.0/0", EXIT)]);
        assert_eq!((v6, v4), ((None, false), (Some(NoExit::NoAddress), true)));
    }
}
