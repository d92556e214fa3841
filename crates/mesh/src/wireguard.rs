use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use selvedge_model::{NodeId, Prefix, WgKey};

use crate::profile::{Endpoint, Profile};
use crate::roster::Member;

/// How WireGuard is to know one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSpec {
    /// Where to send to; `None` if the peer must send first.
    pub endpoint: Option<SocketAddr>,
    /// What the peer may send from, and what is routed to it.
    pub allowed: Vec<Prefix>,
    /// How often an idle tunnel sends, to keep NATs open.
    pub keepalive: Option<Duration>,
}

/// The peers of `own` among `members`: all others.
///
/// No two peers share a WireGuard key or an address. If two certificates name one key, which
/// the issuer does not do knowingly, the older certificate counts.
pub(crate) fn desired(
    own: NodeId,
    profile: &Profile,
    members: impl Iterator<Item = Member>,
    keepalive: Option<Duration>,
) -> BTreeMap<WgKey, PeerSpec> {
    let mut members: Vec<Member> = members.collect();
    members.sort_by_key(|member| (member.serial, member.node));
    let mut own_key = None;
    let mut peers = BTreeMap::new();
    for member in members {
        if member.node == own {
            own_key = Some(member.wg);
            continue;
        }
        let endpoint = choose(&profile.endpoints, &member.profile.endpoints);
        let allowed = vec![Prefix::host(member.address.into())];
        peers.entry(member.wg).or_insert(PeerSpec { endpoint, allowed, keepalive });
    }
    if let Some(own_key) = own_key {
        peers.remove(&own_key);
    }
    peers
}

/// The first of a peer's endpoints, in the peer's order, of an address family that this node has
/// an endpoint of itself; if there is none, the first.
fn choose(ours: &[Endpoint], theirs: &[Endpoint]) -> Option<SocketAddr> {
    let known = |e: &&Endpoint| ours.iter().any(|o| o.addr.is_ipv4() == e.addr.is_ipv4());
    theirs.iter().find(known).or(theirs.first()).map(|endpoint| endpoint.addr)
}

#[cfg(test)]
mod tests {
    use selvedge_model::MeshId;

    use super::*;
    use crate::address::node_address;
    use crate::admission::Role;
    use crate::time::UnixTime;

    fn endpoints(texts: &[&str]) -> Vec<Endpoint> {
        let addr = |text: &&str| text.parse::<SocketAddr>().expect("valid").into();
        texts.iter().map(addr).collect()
    }

    fn member(node: u8, wg: u8, serial: u64) -> Member {
        Member {
            node: NodeId([node; 32]),
            address: node_address(MeshId([1; 20]), NodeId([node; 32])),
            wg: WgKey([wg; 32]),
            role: Role::Peer,
            profile: Profile { endpoints: endpoints(&["192.0.2.1:1"]), ..Profile::default() },
            seq: 1,
            not_after: UnixTime::NEVER,
            founder: false,
            allowed: Vec::new(),
            issuer: NodeId([1; 32]),
            may_invite: false,
            issued: UnixTime(0),
            serial,
        }
    }

    fn desired_of(members: Vec<Member>) -> BTreeMap<WgKey, PeerSpec> {
        desired(NodeId([1; 32]), &Profile::default(), members.into_iter(), None)
    }

    #[test]
    fn all_others_are_peers() {
        let peers = desired_of(vec![member(1, 1, 0), member(2, 2, 1), member(3, 3, 2)]);
        let keys: Vec<WgKey> = peers.keys().copied().collect();
        assert_eq!(keys, [WgKey([2; 32]), WgKey([3; 32])]);
        let address = member(2, 2, 1).address;
        assert_eq!(peers[&WgKey([2; 32])].allowed, [Prefix::host(address.into())]);
    }

    #[test]
    fn one_key_is_one_peer() {
        let peers = desired_of(vec![member(1, 1, 0), member(2, 5, 9), member(3, 5, 2)]);
        assert_eq!(peers.len(), 1);
        let older = Prefix::host(member(3, 5, 2).address.into());
        assert_eq!(peers[&WgKey([5; 32])].allowed, [older]);
        assert!(desired_of(vec![member(1, 5, 3), member(2, 5, 9)]).is_empty());
    }

    #[test]
    fn endpoints_are_chosen_by_family_and_order() {
        let v4 = endpoints(&["192.0.2.9:9"]);
        let theirs = endpoints(&["[2001:db8::1]:1", "192.0.2.1:1", "192.0.2.2:2"]);
        assert_eq!(choose(&v4, &theirs), Some(theirs[1].addr));
        assert_eq!(choose(&[], &theirs), Some(theirs[0].addr));
        assert_eq!(choose(&v4, &theirs[..1]), Some(theirs[0].addr));
        assert_eq!(choose(&v4, &[]), None);
    }
}
