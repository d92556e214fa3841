//! Routing rules that send packets into a tunnel, but for what the agent itself sends.

#![allow(clippy::wildcard_enum_match_arm, reason = "the enums are rtnetlink's, and grow")]

use std::fmt;
use std::net::IpAddr;

use nix::libc;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use selvedge_model::Prefix;

use super::{Change, Error, MAIN_TABLE, Netlink, Route};

/// A way out for what has no better route: tables of its own, which are looked into after the
/// main one and before its default route, but never by packets that bear the mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detour {
    /// The mark of the agent's own packets. Not 0.
    pub mark: u32,
    /// The routing table for certain networks, for all packets.
    pub table: u32,
    /// That for everything else. Only packets of this host itself look into it: what it forwards
    /// for others goes where it went before.
    pub exits: u32,
    /// The priority of the first of four rules, which the others follow, all before that of the
    /// main table. Nobody else may use them.
    pub priority: u32,
}

/// The interface that packets of this host itself come from, to the rules.
const ITSELF: &str = "lo";
/// The priority of the kernel's own rule for the main table.
const MAIN_RULE: u32 = 32766;
/// After all other routes of its table.
const LAST: u32 = u32::MAX;

const FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];

const ADD: Change = Change {
    operation: "add the routing rule",
    flags: NLM_F_CREATE | NLM_F_EXCL,
    tolerated: &[libc::EEXIST],
};
const DELETE: Change = Change {
    operation: "delete the routing rule",
    flags: 0,
    // No interface has a name that is too long.
    tolerated: &[libc::ENOENT, libc::ERANGE],
};

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

impl Netlink {
    /// Puts an unreachable route to everywhere at the end of a table. It stays until it is removed,
    /// also without this process. Says whether it was not there.
    ///
    /// # Errors
    /// If the kernel cannot be asked, or refuses.
    pub async fn close_table(&self, table: u32, protocol: u8) -> Result<bool, Error> {
        let mut missing = Vec::new();
        for barrier in barriers(table, protocol) {
            let family = super::codec::family(barrier.dst.addr());
            let request = super::codec::get_unreachable(family, table);
            let found = self.dump("list the routes", request).await?;
            if !found.iter().any(|route| super::codec::is_unreachable(route, &barrier)) {
                missing.push(barrier);
            }
        }
        self.change(&CLOSE, &missing, super::codec::new_unreachable).await?;
        Ok(!missing.is_empty())
    }

    /// Removes what [`Netlink::close_table`] has put there, also in an earlier run.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn open_table(&self, table: u32, protocol: u8) -> Result<(), Error> {
        self.del_routes(&barriers(table, protocol)).await
    }
}

impl Netlink {
    /// Has what comes in by an interface pass to this host itself and to one network, and nowhere
    /// else, though the host may forward for others. It holds for whatever interface has the name,
    /// until [`Netlink::release`].
    ///
    /// # Errors
    /// If the kernel refuses. Rules that were not refused are there.
    pub async fn confine(&self, interface: &str, within: Prefix) -> Result<(), Error> {
        let rules = confinement(interface, within);
        self.change(&ADD, &rules, |rule| RouteNetlinkMessage::NewRule(rule.0.clone())).await
    }

    /// Takes back [`Netlink::confine`], also that of an earlier run.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn release(&self, interface: &str, within: Prefix) -> Result<(), Error> {
        let rules = confinement(interface, within);
        self.change(&DELETE, &rules, |rule| RouteNetlinkMessage::DelRule(rule.0.clone())).await
    }
}

/// Before all rules of a [`Detour`]; the next one is ours, too.
const CONFINED: u32 = 32758;

fn confinement(interface: &str, within: Prefix) -> [Rule; 3] {
    let rule = |family, priority, action| {
        let mut message = RuleMessage::default();
        message.header.family = family;
        message.header.action = action;
        message.attributes = vec![RuleAttribute::Priority(priority)];
        message.attributes.push(RuleAttribute::Iifname(interface.to_owned()));
        Rule(message)
    };
    let network = within.network();
    let mut inside = rule(super::codec::family(network.addr()), CONFINED, RuleAction::ToTable);
    inside.0.header.dst_len = network.len();
    inside.0.attributes.push(RuleAttribute::Destination(network.addr()));
    inside.0.attributes.push(RuleAttribute::Table(MAIN_TABLE));
    let [v4, v6] = FAMILIES.map(|family| rule(family, CONFINED + 1, RuleAction::Prohibit));
    [inside, v4, v6]
}

const CLOSE: Change = Change {
    operation: "add the unreachable route",
    flags: NLM_F_CREATE | NLM_F_EXCL,
    tolerated: &[libc::EEXIST],
};

fn barriers(table: u32, protocol: u8) -> [Route; 2] {
    [IpAddr::from([0; 4]), IpAddr::from([0; 16])].map(|all| Route {
        dst: Prefix::new(all, 0).expect("every address has a prefix of no bits"),
        oif: None,
        gateway: None,
        protocol,
        table,
        metric: LAST,
        prefsrc: None,
    })
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
    let Detour { mark, table, exits, priority } = detour;
    let rule = |family, after, action, attributes: [RuleAttribute; 2]| {
        let mut message = RuleMessage::default();
        message.header.family = family;
        message.header.action = action;
        message.attributes = vec![RuleAttribute::Priority(priority + after)];
        message.attributes.extend(attributes);
        Rule(message)
    };
    let marked = || RuleAttribute::FwMark(mark);
    let look_into = RuleAttribute::Table;
    let of_family = |family| {
        let to = RuleAction::ToTable;
        // What the main table knows better than by its default route goes there.
        let known = [look_into(MAIN_TABLE), RuleAttribute::SuppressPrefixLen(0)];
        let mut others = rule(family, 1, to, [look_into(table), marked()]);
        others.0.header.flags = RuleFlags::Invert;
        // An inverted rule holds unless all of its conditions do, so that "not marked, and of this
        // host" takes two.
        let skip = [RuleAttribute::Goto(MAIN_RULE), marked()];
        let own = [look_into(exits), RuleAttribute::Iifname(ITSELF.to_owned())];
        [
            rule(family, 0, to, known),
            others,
            rule(family, 2, RuleAction::Goto, skip),
            rule(family, 3, to, own),
        ]
    };
    FAMILIES.into_iter().flat_map(of_family).collect()
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use nix::sys::socket::{setsockopt, sockopt};

    use super::*;
    use crate::netlink::{AddressOptions, NewLink};
    use crate::sysctl::{self, Family};
    use crate::test_support;

    const DETOUR: Detour = Detour { mark: 0x5e1, table: 5021, exits: 5022, priority: 5020 };

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

    /// Where a packet to `dst` goes that came in by `up`.
    fn forwarded(dst: &str, src: &str) -> String {
        let arguments = ["route", "get", dst, "from", src, "iif", "up"];
        let output = std::process::Command::new("ip").args(arguments).output().expect("ip runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    #[test]
    fn what_is_forwarded_takes_the_detour_to_certain_networks_alone() {
        let Some(namespace) = test_support::namespace("rule: forwarded") else { return };
        let work = async || {
            let netlink = Netlink::new().expect("a socket");
            let up = link(&netlink, "up", ["192.0.2.1/24", "2001:db8::1/64"]).await;
            let tunnel = link(&netlink, "tun", ["10.9.0.1/16", "fd77::1/64"]).await;
            for family in [Family::V4, Family::V6] {
                sysctl::set(family, "all", "forwarding", 1).expect("set");
            }
            let route = async |dst: &str, oif, table| {
                let dst: Prefix = dst.parse().expect("a prefix");
                let route = Route { table, ..Route::on_link(dst, oif, 99) };
                netlink.add_route(&route).await.expect("added");
            };
            for (all, certain) in [("0.0.0.0/0", "10.50.0.0/16"), ("::/0", "fd50::/64")] {
                route(all, up, MAIN_TABLE).await;
                route(all, tunnel, DETOUR.exits).await;
                route(certain, tunnel, DETOUR.table).await;
            }
            netlink.close_table(DETOUR.exits, 99).await.expect("closed");
            netlink.add_detour(DETOUR).await.expect("added");
            for (src, elsewhere, certain) in [
                ("192.0.2.7", "198.51.100.1", "10.50.0.1"),
                ("2001:db8::7", "2001:db8:9::1", "fd50::1"),
            ] {
                assert!(forwarded(elsewhere, src).contains(" dev up "), "{elsewhere}");
                assert!(forwarded(certain, src).contains(" dev tun "), "{certain}");
            }
        };
        namespace.run(|| test_support::runtime().block_on(work())).expect("entered");
    }

    #[test]
    fn what_is_confined_goes_nowhere_else() {
        let Some(namespace) = test_support::namespace("rule: confined") else { return };
        let work = async || {
            let netlink = Netlink::new().expect("a socket");
            link(&netlink, "up", ["10.9.0.1/16", "fd77::1/64"]).await;
            let wan = link(&netlink, "wan", ["192.0.2.1/24", "2001:db8::1/64"]).await;
            for (family, all) in [(Family::V4, "0.0.0.0/0"), (Family::V6, "::/0")] {
                sysctl::set(family, "all", "forwarding", 1).expect("set");
                let all: Prefix = all.parse().expect("a prefix");
                netlink.add_route(&Route::on_link(all, wan, 99)).await.expect("added");
            }
            let within = "fd77::/64".parse().expect("a prefix");
            let passes = |dst: &str, src: &str| {
                let arguments = ["route", "get", dst, "from", src, "iif", "up"];
                let output = std::process::Command::new("ip").args(arguments).output();
                let output = output.expect("ip runs");
                let text = String::from_utf8(output.stdout).expect("text");
                output.status.success() && !text.contains("prohibit")
            };
            let all = || {
                [
                    passes("fd77::9", "fd77::2"),
                    passes("fd77::1", "fd77::2"),
                    passes("2001:db8::9", "fd77::2"),
                    passes("2001:db8:9::9", "fd77::2"),
                    passes("198.51.100.1", "10.9.0.2"),
                ]
            };
            assert_eq!(all(), [true; 5]);
            for _ in 0..2 {
                netlink.confine("up", within).await.expect("confined");
                assert_eq!(all(), [true, true, false, false, false]);
            }
            for _ in 0..2 {
                netlink.release("up", within).await.expect("released");
                assert_eq!(all(), [true; 5]);
            }
        };
        namespace.run(|| test_support::runtime().block_on(work())).expect("entered");
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
                let detour = Route { table: DETOUR.exits, ..Route::on_link(all, tunnel, 99) };
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
            // While the tunnel is gone, nothing goes past it, but for the agent's own packets.
            assert!(netlink.close_table(DETOUR.exits, 99).await.expect("closed"));
            assert!(!netlink.close_table(DETOUR.exits, 99).await.expect("closed"), "it is");
            assert_eq!(from("198.51.100.1"), both("10.9.0.1", "192.0.2.1"));
            netlink.del_link(tunnel).await.expect("deleted");
            for (dst, own) in [("198.51.100.1", "192.0.2.1"), ("2001:db8:9::1", "2001:db8::1")] {
                assert_eq!(from(dst), [None, Some(own.to_owned())]);
            }
            netlink.open_table(DETOUR.exits, 99).await.expect("opened");
            assert_eq!(from("198.51.100.1"), both("192.0.2.1", "192.0.2.1"));
            for _ in 0..2 {
                netlink.del_detour(DETOUR).await.expect("deleted");
                assert!(!netlink.has_detour(DETOUR).await.expect("readable"));
            }
            assert_eq!(from("198.51.100.1"), both("192.0.2.1", "192.0.2.1"));
        };
        namespace.run(|| test_support::runtime().block_on(work())).expect("entered");
    }
}
