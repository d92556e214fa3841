//! Routing rules that send everything into a tunnel, but for what the agent itself sends.

#![allow(clippy::wildcard_enum_match_arm, reason = "the enums are rtnetlink's, and grow")]

use std::fmt;

use nix::libc;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Change, Error, MAIN_TABLE, Netlink};

/// A way out for everything that has no better route: a table of its own, which is looked into
/// by all packets but those that bear the mark, after the main table and without its own default
/// route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detour {
    /// The mark of the agent's own packets. Not 0.
    pub mark: u32,
    /// The routing table with the routes of length zero.
    pub table: u32,
    /// The priority of the first of two rules; the second has the next. Nobody else may use them.
    pub priority: u32,
}

const FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];

const ADD: Change = Change {
    operation: "add the routing rule",
    flags: NLM_F_CREATE | NLM_F_EXCL,
    tolerated: &[libc::EEXIST],
};
const DELETE: Change =
    Change { operation: "delete the routing rule", flags: 0, tolerated: &[libc::ENOENT] };

impl Netlink {
    /// Adds the rules of a detour, for both families. Those that are there stay.
    ///
    /// # Errors
    /// If the kernel refuses. Rules that were not refused are there.
    pub async fn add_detour(&self, detour: Detour) -> Result<(), Error> {
        self.change(&ADD, &rules(detour), |rule| RouteNetlinkMessage::NewRule(rule.0.clone())).await
    }

    /// Deletes the rules of a detour, also those that an earlier run left.
    ///
    /// # Errors
    /// If the kernel refuses. Rules that were not refused are gone.
    pub async fn del_detour(&self, detour: Detour) -> Result<(), Error> {
        self.change(&DELETE, &rules(detour), |rule| RouteNetlinkMessage::DelRule(rule.0.clone()))
            .await
    }

    /// Whether all rules of a detour are there.
    ///
    /// # Errors
    /// If they cannot be read.
    pub async fn has_detour(&self, detour: Detour) -> Result<bool, Error> {
        let mut found = Vec::new();
        for family in FAMILIES {
            let mut request = RuleMessage::default();
            request.header.family = family;
            let request = RouteNetlinkMessage::GetRule(request);
            found.extend(self.dump("list the routing rules", request).await?);
        }
        let is = |wanted: &Rule, message: &RouteNetlinkMessage| match message {
            RouteNetlinkMessage::NewRule(rule) => wanted.is_in(rule),
            _ => false,
        };
        Ok(rules(detour).iter().all(|wanted| found.iter().any(|message| is(wanted, message))))
    }
}

struct Rule(RuleMessage);

impl Rule {
    /// The kernel adds attributes of its own.
    fn is_in(&self, other: &RuleMessage) -> bool {
        let (ours, theirs) = (&self.0.header, &other.header);
        ours.family == theirs.family
            && ours.flags == theirs.flags
            && self.0.attributes.iter().all(|attribute| other.attributes.contains(attribute))
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let priority = self.0.attributes.iter().find_map(|attribute| match attribute {
            RuleAttribute::Priority(priority) => Some(*priority),
            _ => None,
        });
        write!(f, "{} of {:?}", priority.unwrap_or_default(), self.0.header.family)
    }
}

fn rules(detour: Detour) -> Vec<Rule> {
    let rule = |family, table, priority, inverted, condition| {
        let mut message = RuleMessage::default();
        message.header.family = family;
        message.header.action = RuleAction::ToTable;
        if inverted {
            message.header.flags = RuleFlags::Invert;
        }
        let common = [RuleAttribute::Priority(priority), RuleAttribute::Table(table)];
        message.attributes.extend(common);
        message.attributes.push(condition);
        Rule(message)
    };
    let of_family = |family| {
        let Detour { mark, table, priority } = detour;
        // What the main table knows better than by its default route goes there.
        let known = RuleAttribute::SuppressPrefixLen(0);
        let known = rule(family, MAIN_TABLE, priority, false, known);
        [known, rule(family, table, priority + 1, true, RuleAttribute::FwMark(mark))]
    };
    FAMILIES.into_iter().flat_map(of_family).collect()
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, UdpSocket};

    use nix::sys::socket::{setsockopt, sockopt};
    use selvedge_model::Prefix;

    use super::*;
    use crate::netlink::{AddressOptions, NewLink, Route};
    use crate::test_support;

    const DETOUR: Detour = Detour { mark: 0x5e1, table: 5021, priority: 5020 };

    /// The address from which a packet would leave, with this mark.
    fn source(dst: &str, mark: u32) -> Option<IpAddr> {
        let dst: IpAddr = dst.parse().expect("an address");
        let any = if dst.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).expect("bound");
        setsockopt(&socket, sockopt::Mark, &mark).expect("marked");
        socket.connect((dst, 9)).ok()?;
        Some(socket.local_addr().expect("bound").ip())
    }

    async fn link(netlink: &Netlink, name: &str, addresses: [&str; 2]) -> u32 {
        let far = format!("{name}far");
        let new = NewLink::Veth { peer: &far, namespace: None };
        netlink.add_link(name, &new).await.expect("made");
        for name in [name, &far] {
            let index = netlink.link(name).await.expect("readable").expect("there").index;
            netlink.set_up(index, true, None).await.expect("up");
        }
        let index = netlink.link(name).await.expect("readable").expect("there").index;
        let options = AddressOptions { no_dad: true, no_prefix_route: false };
        for address in addresses {
            let address = address.parse().expect("a prefix");
            netlink.add_address(index, address, options).await.expect("added");
        }
        index
    }

    #[test]
    fn all_but_the_agent_take_the_detour() {
        let Some(namespace) = test_support::namespace("rule: detour") else { return };
        let work = async || {
            let netlink = Netlink::new().expect("a socket");
            let up = link(&netlink, "up", ["192.0.2.1/24", "2001:db8::1/64"]).await;
            let tunnel = link(&netlink, "tun", ["10.9.0.1/16", "fd77::1/64"]).await;
            for all in ["0.0.0.0/0", "::/0"] {
                let all: Prefix = all.parse().expect("a prefix");
                netlink.add_route(&Route::on_link(all, up, 99)).await.expect("added");
                let detour = Route { table: DETOUR.table, ..Route::on_link(all, tunnel, 99) };
                netlink.add_route(&detour).await.expect("added");
            }
            let from =
                |dst: &str| [0, DETOUR.mark].map(|mark| source(dst, mark).map(|ip| ip.to_string()));
            let both = |a: &str, b: &str| [Some(a.to_owned()), Some(b.to_owned())];
            assert_eq!(from("198.51.100.1"), both("192.0.2.1", "192.0.2.1"));
            assert!(!netlink.has_detour(DETOUR).await.expect("readable"));
            for _ in 0..2 {
                netlink.add_detour(DETOUR).await.expect("added");
                assert!(netlink.has_detour(DETOUR).await.expect("readable"));
            }
            assert_eq!(from("198.51.100.1"), both("10.9.0.1", "192.0.2.1"));
            assert_eq!(from("2001:db8:9::1"), both("fd77::1", "2001:db8::1"));
            assert_eq!(from("192.0.2.7"), both("192.0.2.1", "192.0.2.1"), "a better route");
            for _ in 0..2 {
                netlink.del_detour(DETOUR).await.expect("deleted");
                assert!(!netlink.has_detour(DETOUR).await.expect("readable"));
            }
            assert_eq!(from("198.51.100.1"), both("192.0.2.1", "192.0.2.1"));
        };
        namespace.run(|| test_support::runtime().block_on(work())).expect("entered");
    }
}
