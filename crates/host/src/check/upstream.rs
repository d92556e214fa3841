//! Whether FRR redistributes the networks' prefixes, and nothing else. Pure.

use std::collections::BTreeSet;

use selvedge_model::Prefix;

use super::Finding;
use super::config::{Block, Config, Policies, Verdict};

/// A routing protocol of one family, as FRR's configuration calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Protocol {
    /// The daemon.
    pub(super) daemon: &'static str,
    /// The head of its block.
    head: &'static str,
    /// The address family that the line belongs to.
    family: &'static str,
    /// The line's beginning.
    redistribute: &'static str,
    /// What has to come between that and the route map.
    level: &'static str,
    is_v4: bool,
}

/// The protocols of a family by which prefixes may go upstream, the most usual first.
pub(super) const fn protocols(is_v4: bool) -> [Protocol; 3] {
    let bgp = Protocol {
        daemon: "bgpd",
        head: "router bgp",
        family: if is_v4 { "ipv4 unicast" } else { "ipv6 unicast" },
        redistribute: "redistribute kernel",
        level: "",
        is_v4,
    };
    let isis = Protocol {
        daemon: "isisd",
        head: "router isis",
        family: "",
        redistribute: if is_v4 { "redistribute ipv4 kernel" } else { "redistribute ipv6 kernel" },
        level: " level-2",
        is_v4,
    };
    let ospf = Protocol {
        daemon: if is_v4 { "ospfd" } else { "ospf6d" },
        head: if is_v4 { "router ospf" } else { "router ospf6" },
        family: "",
        redistribute: "redistribute kernel",
        level: "",
        is_v4,
    };
    [ospf, isis, bgp]
}

/// What the kernel has, as FRR sees it.
#[derive(Clone, Debug, Default)]
pub(super) struct Routes {
    /// The networks' prefixes.
    pub(super) ours: Vec<Prefix>,
    /// Kernel routes that are others'.
    pub(super) others: BTreeSet<Prefix>,
}

impl Routes {
    fn of(&self, is_v4: bool) -> Self {
        let is = |prefix: &&Prefix| prefix.addr().is_ipv4() == is_v4;
        let ours = self.ours.iter().filter(is).copied().collect();
        Self { ours, others: self.others.iter().filter(is).copied().collect() }
    }
}

/// What each daemon that answers is configured with.
pub(super) type Configs<'a> = &'a dyn Fn(&str) -> Option<&'a Config>;

/// Whether one protocol or another takes the networks' prefixes upstream; families without
/// networks need none.
pub(super) fn check(configs: Configs<'_>, routes: &Routes) -> Vec<Finding> {
    let families = [true, false].into_iter().filter(|is_v4| !routes.of(*is_v4).ours.is_empty());
    families.flat_map(|is_v4| check_family(configs, &routes.of(is_v4), is_v4)).collect()
}

fn check_family(configs: Configs<'_>, routes: &Routes, is_v4: bool) -> Vec<Finding> {
    let configured = protocols(is_v4).into_iter().filter_map(|protocol| {
        let config = configs(protocol.daemon)?;
        Some((protocol, config, config.block(protocol.head)?))
    });
    let configured: Vec<_> = configured.collect();
    let active: Vec<_> = configured
        .iter()
        .filter_map(|(protocol, config, block)| {
            let line = block.rests(protocol.family, protocol.redistribute).next()?;
            Some(judge(*protocol, config, block, line, routes))
        })
        .collect();
    if active.is_empty() {
        let first = configured.first().map(|(protocol, _, block)| (*protocol, block.head.as_str()));
        return vec![absent(first, is_v4, routes)];
    }
    active
}

fn absent(first: Option<(Protocol, &str)>, is_v4: bool, routes: &Routes) -> Finding {
    let family = if is_v4 { "IPv4" } else { "IPv6" };
    let Some((protocol, head)) = first else {
        let text = format!(
            "no routing protocol takes {family} prefixes upstream: none of ospfd, ospf6d, isisd \
             and bgpd is configured"
        );
        let [ospf, ..] = protocols(is_v4);
        return Finding::problem(ospf.daemon, text).vtysh(ospf.lines(ospf.head, routes));
    };
    let text = format!(
        "no routing protocol takes {family} prefixes upstream: {head} does not redistribute the \
         kernel's routes"
    );
    Finding::problem(protocol.daemon, text).vtysh(protocol.lines(head, routes))
}

/// Whether the line lets through what it should.
fn judge(
    protocol: Protocol,
    config: &Config,
    block: &Block,
    line: &str,
    routes: &Routes,
) -> Finding {
    let head = &block.head;
    let fix = || protocol.lines(head, routes);
    let Some(map) = route_map(line) else {
        let text = format!("{head} redistributes every kernel route of this host");
        return Finding::warning(protocol.daemon, text).vtysh(fix());
    };
    let policies = Policies::new(config);
    if !policies.has(map) {
        let text = format!("{head} redistributes by the route map {map}, which does not exist");
        return Finding::problem(protocol.daemon, text).vtysh(fix());
    }
    let verdict = |prefix: Prefix| policies.verdict(map, prefix, protocol.daemon == "bgpd");
    if let Some(kept) = wanted(routes).find(|prefix| verdict(*prefix) == Verdict::Deny) {
        let text = format!("{head} redistributes by the route map {map}, which keeps {kept} back");
        return Finding::problem(protocol.daemon, text).vtysh(fix());
    }
    let others = routes.others.iter().copied().chain([default_route(protocol.is_v4)]);
    if let Some(other) = others.into_iter().find(|other| verdict(*other) == Verdict::Permit) {
        let text = format!(
            "{head} redistributes by the route map {map}, which lets {other} through, a prefix \
             of none of the networks"
        );
        return Finding::warning(protocol.daemon, text).vtysh(fix());
    }
    let text = format!("{head} redistributes the networks by the route map {map}");
    Finding::ok(protocol.daemon, text)
}

fn route_map(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace().skip_while(|word| *word != "route-map");
    words.nth(1)
}

/// The prefixes of the networks and their halves.
fn wanted(routes: &Routes) -> impl Iterator<Item = Prefix> {
    let halves = routes.ours.iter().filter_map(Prefix::halves).flatten();
    routes.ours.iter().copied().chain(halves)
}

fn default_route(is_v4: bool) -> Prefix {
    let text = if is_v4 { "0.0.0.0/0" } else { "::/0" };
    text.parse().expect("a default route is a prefix")
}

impl Protocol {
    /// The lines that make it redistribute the networks. The names are such that nobody else
    /// uses them, so that what is there may be replaced.
    fn lines(self, head: &str, routes: &Routes) -> Vec<String> {
        let (word, map) = if self.is_v4 { ("ip", "selvedge-v4") } else { ("ipv6", "selvedge-v6") };
        let mut lines = vec![format!("no route-map {map}"), format!("no {word} prefix-list {map}")];
        for (number, rule) in rules(&routes.ours).into_iter().enumerate() {
            lines.push(format!("{word} prefix-list {map} seq {} permit {rule}", 5 * (number + 1)));
        }
        lines.push(format!("route-map {map} permit 10"));
        lines.push(format!(" match {word} address prefix-list {map}"));
        lines.push(head.to_owned());
        if !self.family.is_empty() {
            lines.push(format!(" address-family {}", self.family));
        }
        lines.push(format!(" {}{} route-map {map}", self.redistribute, self.level));
        lines
    }
}

/// What a list has to permit: for all networks of one length, the smallest prefix that covers
/// them, so that it need not change with every network; or each by itself, where that would be
/// half the world.
fn rules(networks: &[Prefix]) -> Vec<String> {
    let lengths: BTreeSet<u8> = networks.iter().map(Prefix::len).collect();
    let of_length = |len: u8| networks.iter().filter(move |prefix| prefix.len() == len);
    lengths
        .into_iter()
        .flat_map(|len| {
            let common = of_length(len).copied().reduce(cover);
            match common
                .filter(|common| common.len() >= if common.addr().is_ipv4() { 8 } else { 16 })
            {
                Some(common) => vec![permit(common, len)],
                None => of_length(len).map(|prefix| permit(*prefix, len)).collect(),
            }
        })
        .collect()
}

/// Networks of the length `len` within `outer`, and their halves.
fn permit(outer: Prefix, len: u8) -> String {
    let widest = if outer.addr().is_ipv4() { 32 } else { 128 };
    let outer = outer.network();
    match (outer.len() == len, len == widest) {
        (true, true) => outer.to_string(),
        (true, false) => format!("{outer} le {}", len + 1),
        (false, true) => format!("{outer} ge {len}"),
        (false, false) => format!("{outer} ge {len} le {}", len + 1),
    }
}

/// The smallest prefix that contains both.
fn cover(a: Prefix, b: Prefix) -> Prefix {
    let mut len = a.len().min(b.len());
    loop {
        match Prefix::new(a.addr(), len) {
            Some(outer) if len > 0 && !outer.contains(b.addr()) => len -= 1,
            Some(outer) => return outer.network(),
            None => return a,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefixes(all: &[&str]) -> Vec<Prefix> {
        all.iter().map(|text| text.parse().expect("a prefix")).collect()
    }

    #[test]
    fn rules_cover_the_networks_and_their_halves_and_little_else() {
        for (networks, expected) in [
            (&["10.0.1.0/24"][..], &["10.0.1.0/24 le 25"][..]),
            (&["10.0.1.0/24", "10.0.2.0/24"], &["10.0.0.0/22 ge 24 le 25"]),
            (&["10.0.1.0/24", "10.1.0.0/16"], &["10.1.0.0/16 le 17", "10.0.1.0/24 le 25"]),
            (&["10.0.0.0/24", "192.168.0.0/24"], &["10.0.0.0/24 le 25", "192.168.0.0/24 le 25"]),
            (&["10.0.0.1/32"], &["10.0.0.1/32"]),
            (&["10.0.0.0/32", "10.0.0.1/32"], &["10.0.0.0/31 ge 32"]),
            (&["fd00:1::/64", "fd00:2::/64"], &["fd00::/30 ge 64 le 65"]),
        ] {
            assert_eq!(rules(&prefixes(networks)), expected, "{networks:?}");
        }
    }

    #[test]
    fn lines_name_family_and_level_where_the_protocol_has_them() {
        let routes = Routes { ours: prefixes(&["10.0.1.0/24"]), ..Routes::default() };
        let [ospf, isis, bgp] = protocols(true);
        let last = |protocol: Protocol, head: &str| {
            let lines = protocol.lines(head, &routes);
            lines[6..].iter().map(|line| line.trim().to_owned()).collect::<Vec<_>>()
        };
        let plain = "redistribute kernel route-map selvedge-v4";
        assert_eq!(last(ospf, "router ospf"), [plain]);
        assert_eq!(last(bgp, "router bgp 7"), ["address-family ipv4 unicast", plain]);
        let isis = last(isis, "router isis a");
        assert_eq!(isis, ["redistribute ipv4 kernel level-2 route-map selvedge-v4"]);
    }

    fn found(config: &str, others: &[&str]) -> String {
        let config = Config::parse(config);
        let ours = prefixes(&["10.0.1.0/24"]);
        let routes = Routes { ours, others: prefixes(others).into_iter().collect() };
        let find = |daemon: &str| (daemon == "ospfd").then_some(&config);
        let findings = check(&find, &routes);
        assert_eq!(findings.len(), 1, "{findings:?}");
        format!("{:?} {}", findings[0].severity, findings[0].text)
    }

    #[test]
    fn what_is_kept_back_and_what_gets_through_is_named() {
        let list = "ip prefix-list own seq 5 permit 10.0.1.0/24 le 25\n";
        let map = "route-map own permit 10\n match ip address prefix-list own\n";
        let line = "router ospf\n redistribute kernel route-map own\n";
        let good = format!("{list}{map}{line}");
        assert!(found(&good, &["10.0.2.0/24"]).starts_with("Ok"));
        assert!(found("", &[]).starts_with("Problem no routing protocol"));
        assert!(found("router ospf\n", &[]).contains("router ospf does not redistribute"));
        let all = found("router ospf\n redistribute kernel\n", &[]);
        assert_eq!(all, "Warning router ospf redistributes every kernel route of this host");
        assert!(found(line, &[]).ends_with("which does not exist"));
        assert!(found(&format!("{map}{line}"), &[]).ends_with("keeps 10.0.1.0/24 back"));
        let whole = good.replace(" le 25", "");
        assert!(found(&whole, &[]).ends_with("keeps 10.0.1.0/25 back"));
        let wide = good.replace("10.0.1.0/24 le 25", "10.0.0.0/8 le 32");
        assert!(found(&wide, &["10.7.0.0/16"]).contains("lets 10.7.0.0/16 through"));
        let any = good.replace("10.0.1.0/24 le 25", "any");
        assert!(found(&any, &[]).contains("lets 0.0.0.0/0 through"));
        let metric = good.replace("list own\nrouter", "list own\n match metric 5\nrouter");
        assert!(found(&metric, &[]).starts_with("Ok"), "what cannot be told is not complained of");
    }
}
