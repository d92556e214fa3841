//! Masquerading: what members of a mesh send out of this host, to the internet or to a network
//! behind it, bears this host's address there, so that answers find back.
//!
//! One nftables table of our own, `inet selvedge_mesh`, replaced as a whole by each change. Nothing
//! else in the firewall is read or changed, and a table that an earlier run left is replaced, too.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use selvedge_model::Prefix;

use crate::firewall::Place;
use crate::nft::{Error, Nft, clear, listed, quoted};

const CLEAR: &str = clear!("inet selvedge_mesh");

/// What is masqueraded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Masquerade {
    /// The interfaces of all meshes: what comes in by one of them and stays within none.
    pub meshes: BTreeSet<String>,
    /// The sources: overlay prefixes of the meshes, and what is reached through them.
    pub sources: BTreeSet<Prefix>,
}

impl Masquerade {
    /// The chain in which this is done.
    #[must_use]
    pub fn place() -> Place {
        let [family, table, chain] =
            ["inet", "selvedge_mesh", "postrouting"].map(ToOwned::to_owned);
        Place { family, table, chain }
    }

    /// Makes this, and this alone, what is masqueraded. Connections that exist go on as they
    /// began.
    ///
    /// # Errors
    /// If `nft` is missing or refuses; then nothing is changed.
    pub async fn apply(&self, nft: &Nft) -> Result<(), Error> {
        nft.apply(&self.ruleset()).await
    }

    /// Ends all masquerading.
    ///
    /// # Errors
    /// If `nft` is missing or refuses; then nothing is changed.
    pub async fn remove(nft: &Nft) -> Result<(), Error> {
        nft.apply(CLEAR).await
    }

    /// The whole transaction. Nothing is masqueraded on its way into a mesh: members see who
    /// sends.
    fn ruleset(&self) -> String {
        let rules =
            [("ip", false), ("ip6", true)].map(|(family, v6)| self.rule(family, v6)).concat();
        if rules.is_empty() {
            return CLEAR.to_owned();
        }
        let mut text = format!("{CLEAR}table inet selvedge_mesh {{\n chain postrouting {{\n");
        let _ = writeln!(text, "  type nat hook postrouting priority srcnat; policy accept;");
        let _ = writeln!(text, "  oifname {{ {} }} accept", quoted(&self.meshes));
        text + &rules + " }\n}\n"
    }

    fn rule(&self, family: &str, v6: bool) -> String {
        let sources =
            self.sources.iter().map(Prefix::network).filter(|it| it.addr().is_ipv6() == v6);
        let sources: BTreeSet<Prefix> = without_covered(sources.collect());
        if sources.is_empty() || self.meshes.is_empty() {
            return String::new();
        }
        let (meshes, sources) = (quoted(&self.meshes), listed(sources));
        format!("  iifname {{ {meshes} }} {family} saddr {{ {sources} }} masquerade\n")
    }
}

/// A set of `nft` holds no network twice, nor one inside another.
fn without_covered(prefixes: BTreeSet<Prefix>) -> BTreeSet<Prefix> {
    let covered = |inner: &Prefix| {
        prefixes.iter().any(|outer| outer.len() < inner.len() && outer.contains(inner.addr()))
    };
    prefixes.iter().copied().filter(|prefix| !covered(prefix)).collect()
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, UdpSocket};
    use std::time::Duration;

    use super::*;
    use crate::firewall::Ruleset;
    use crate::netlink::{AddressOptions, Netlink, NewLink, Route};
    use crate::netns::Namespace;
    use crate::test_support;

    fn prefix(text: &str) -> Prefix {
        text.parse().expect("a prefix")
    }

    fn masquerade(meshes: &[&str], sources: &[&str]) -> Masquerade {
        Masquerade {
            meshes: meshes.iter().map(|name| (*name).to_owned()).collect(),
            sources: sources.iter().map(|text| prefix(text)).collect(),
        }
    }

    #[test]
    fn the_rules_name_sources_by_family() {
        let rules = masquerade(&["sv-a"], &["fd00::/64", "10.9.0.1/16", "10.9.1.0/24"]).ruleset();
        assert!(rules.contains("oifname { \"sv-a\" } accept\n"), "{rules}");
        assert!(
            rules.contains("iifname { \"sv-a\" } ip saddr { 10.9.0.0/16 } masquerade\n"),
            "{rules}"
        );
        assert!(
            rules.contains("iifname { \"sv-a\" } ip6 saddr { fd00::/64 } masquerade\n"),
            "{rules}"
        );
        assert_eq!(masquerade(&["sv-a"], &[]).ruleset(), CLEAR);
    }

    fn nft(arguments: &str) -> String {
        let output = std::process::Command::new("nft").args(arguments.split(' ')).output();
        let output = output.expect("nft runs");
        assert!(output.status.success(), "{arguments}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    #[test]
    fn nobody_elses_rules_are_touched() {
        let Some(namespace) = test_support::namespace("masquerade: rules") else { return };
        let work = async || {
            nft("add table inet firewall");
            nft("add chain inet firewall mine");
            let before = nft("list ruleset");
            let program = Nft::default();
            let first = masquerade(&["sv-a"], &["fd00::/64"]);
            first.apply(&program).await.expect("applied");
            let second = masquerade(&["sv-a", "sv-b"], &["fd00::/64", "0.0.0.0/0", "10.0.0.0/8"]);
            second.apply(&program).await.expect("applied");
            let during = nft("list ruleset");
            assert!(during.contains("masquerade") && during.contains("\"sv-b\""), "{during}");
            assert!(during.starts_with(&before), "{during}");
            let has = async || Ruleset::read().await.expect("read").has(&Masquerade::place());
            assert!(has().await);
            Masquerade::remove(&program).await.expect("removed");
            Masquerade::remove(&program).await.expect("nothing to remove is no failure");
            assert_eq!(nft("list ruleset"), before);
            assert!(!has().await);
        };
        namespace.run(|| test_support::runtime().block_on(work())).expect("entered");
    }

    /// A cable between a host and a router, with an address at each end.
    async fn cable(host: &Netlink, router: &Netlink, into: &Namespace, ends: [(&str, &str); 2]) {
        let [(name, addr), (far_name, far_addr)] = ends;
        let new = NewLink::Veth { peer: far_name, namespace: Some(into) };
        host.add_link(name, &new).await.expect("a cable");
        for (netlink, name, addr) in [(host, name, addr), (router, far_name, far_addr)] {
            let index = netlink.link(name).await.expect("readable").expect("there").index;
            let options = AddressOptions { no_dad: true, no_prefix_route: false };
            netlink.add_address(index, prefix(addr), options).await.expect("added");
            netlink.set_up(index, true, None).await.expect("up");
        }
    }

    async fn default_route(netlink: &Netlink, name: &str, gateway: &str) {
        let index = netlink.link(name).await.expect("readable").expect("there").index;
        let gateway: IpAddr = gateway.parse().expect("an address");
        let all = Prefix::new(gateway, 0).expect("valid").network();
        let route = Route { gateway: Some(gateway), ..Route::on_link(all, index, 4) };
        netlink.add_route(&route).await.expect("added");
    }

    /// From whom the outside sees a packet that the inside sends.
    fn seen_from(inside: &Namespace, outside: &Namespace, src: &str, dst: &str) -> IpAddr {
        let bind = |namespace: &Namespace, addr: &str| {
            let addr: IpAddr = addr.parse().expect("an address");
            let socket = namespace.run(|| UdpSocket::bind((addr, 0))).expect("entered");
            socket.expect("bound")
        };
        let (sender, receiver) = (bind(inside, src), bind(outside, dst));
        receiver.set_read_timeout(Some(Duration::from_millis(100))).expect("set");
        let to = receiver.local_addr().expect("bound");
        // The first packets of a cable may be lost.
        for _ in 0..300 {
            // An address that the kernel still looks for has no route yet.
            let _ = sender.send_to(b"hello", to);
            if let Ok((_, from)) = receiver.recv_from(&mut [0; 16]) {
                return from.ip();
            }
        }
        panic!("nothing arrives from {src} at {dst}");
    }

    #[test]
    fn the_outside_sees_the_hosts_address() {
        let test = "masquerade: packets";
        let Some(inside) = test_support::namespace(test) else { return };
        let Some(router) = test_support::namespace(test) else { return };
        let Some(outside) = test_support::namespace(test) else { return };
        let runtime = test_support::runtime();
        let netlink = |namespace: &Namespace| {
            let _entered = runtime.enter();
            Netlink::in_namespace(namespace).expect("a socket")
        };
        let [a, r, b] = [&inside, &router, &outside].map(|it| netlink(it));
        runtime.block_on(async {
            for (near, far) in [("fd77::2/64", "fd77::1/64"), ("10.9.0.2/16", "10.9.0.1/16")] {
                cable(&a, &r, &router, [("mesh", near), ("mesh", far)]).await;
            }
            for (near, far) in
                [("2001:db8::2/64", "2001:db8::1/64"), ("192.0.2.2/24", "192.0.2.1/24")]
            {
                cable(&b, &r, &router, [("up", near), ("up", far)]).await;
            }
            default_route(&a, "mesh", "fd77::1").await;
            default_route(&a, "mesh", "10.9.0.1").await;
        });
        let on = masquerade(&["mesh"], &["fd77::/64", "10.9.0.0/16"]);
        let forwarding = router.run(|| {
            runtime.block_on(on.apply(&Nft::default())).expect("applied");
            let plan = crate::forwarding::Forwarding::switched_on().expect("readable");
            plan.apply().expect("enabled");
            plan
        });
        let seen = |src, dst| seen_from(&inside, &outside, src, dst).to_string();
        assert_eq!(seen("fd77::2", "2001:db8::2"), "2001:db8::1");
        assert_eq!(seen("10.9.0.2", "192.0.2.2"), "192.0.2.1");
        // What came by another way is nobody's of the mesh, whatever its address.
        let other = masquerade(&["elsewhere"], &["fd77::/64", "10.9.0.0/16"]);
        let apply = |rules: &Masquerade| {
            let applied = router.run(|| runtime.block_on(rules.apply(&Nft::default())));
            applied.expect("entered").expect("applied");
        };
        apply(&other);
        assert_eq!(seen("fd77::2", "2001:db8::2"), "fd77::2");
        // Into a mesh everybody is seen as who it is.
        apply(&on);
        assert_eq!(seen("fd77::2", "2001:db8::2"), "2001:db8::1");
        let back = masquerade(&["mesh", "up"], &["fd77::/64", "10.9.0.0/16"]);
        apply(&back);
        assert_eq!(seen("fd77::2", "2001:db8::2"), "fd77::2");
        router.run(|| forwarding.expect("entered").restore()).expect("entered").expect("restored");
    }
}
