use super::*;

const RUNNING: &str = "\
frr version 8.4.4
!
interface up0
 ip ospf area 0
 ip ospf passive
exit
!
router bgp 65001 vrf blue
 no bgp default ipv4-unicast
exit
!
router bgp 65000
 neighbor 192.0.2.2 remote-as 65000
 !
 address-family ipv4 unicast
  redistribute kernel route-map selvedge
 exit-address-family
 !
 address-family l2vpn evpn
  neighbor 192.0.2.2 activate
  advertise-all-vni
 exit-address-family
exit
!
ip prefix-list own seq 5 permit 10.0.0.0/8 ge 24 le 25
ip prefix-list exact seq 5 permit 10.0.1.0/24
ip prefix-list wide seq 7 permit any
ip prefix-list wide seq 5 deny 10.9.0.0/16 le 32
ip prefix-list open seq 5 permit 10.0.0.0/8 ge 24
ipv6 prefix-list own seq 5 permit fd00::/16 ge 64 le 65
!
route-map own permit 10
 match ip address prefix-list own
 match ipv6 address prefix-list own
exit
!
route-map exact permit 10
 match ip address prefix-list exact
exit
!
route-map wide permit 10
 match ip address prefix-list wide
exit
!
route-map open permit 10
 match ip address prefix-list open
exit
!
route-map late deny 10
 match ip address prefix-list exact
exit
route-map late permit 20
exit
!
route-map metric permit 10
 match ip address prefix-list exact
 match metric 5
exit
!
route-map missing permit 10
 match ip address prefix-list nosuch
exit
!
end
";

#[test]
fn blocks_and_address_families_are_told_apart() {
    let config = Config::parse(RUNNING);
    let bgp = config.block("router bgp").expect("there");
    assert_eq!(bgp.head, "router bgp 65000", "not that of a VRF");
    assert!(bgp.has("l2vpn evpn", "advertise-all-vni"));
    assert!(!bgp.has("", "advertise-all-vni"));
    let kernel: Vec<&str> = bgp.rests("ipv4 unicast", "redistribute kernel").collect();
    assert_eq!(kernel, ["route-map selvedge"]);
    assert_eq!(bgp.rests("", "neighbor").collect::<Vec<_>>(), ["192.0.2.2 remote-as 65000"]);
    assert_eq!(config.block("router ospf"), None);
    let areas: Vec<_> = config.interfaces("ip ospf area").collect();
    assert_eq!(areas, [("up0", "0")]);
}

#[test]
fn route_maps_judge_prefixes_as_the_daemons_do() {
    use Verdict::{Deny, Permit, Unknown};
    let policies = Policies::new(&Config::parse(RUNNING));
    for (map, prefix, expected) in [
        ("own", "10.0.1.0/24", Permit),
        ("own", "10.0.1.128/25", Permit),
        ("own", "10.0.1.0/26", Deny),
        ("own", "10.0.0.0/16", Deny),
        ("own", "11.0.1.0/24", Deny),
        ("own", "fd00:1::/64", Permit),
        ("own", "fd00:1::/66", Deny),
        ("exact", "10.0.1.0/24", Permit),
        ("exact", "10.0.1.0/25", Deny),
        ("wide", "10.9.1.0/24", Deny),
        ("wide", "0.0.0.0/0", Permit),
        ("open", "10.3.3.3/32", Permit),
        ("open", "10.0.0.0/8", Deny),
        ("late", "10.0.1.0/24", Deny),
        ("late", "10.0.2.0/24", Permit),
        ("metric", "10.0.1.0/24", Unknown),
        ("metric", "10.0.2.0/24", Deny),
        ("missing", "10.0.1.0/24", Deny),
        ("nosuch", "10.0.1.0/24", Deny),
    ] {
        let prefix = prefix.parse().expect("a prefix");
        assert_eq!(policies.verdict(map, prefix, false), expected, "{map} {prefix}");
    }
    let v4 = "10.0.1.0/24".parse().expect("a prefix");
    // Conditions on the other family hold back what bgpd, which has both, asks about.
    assert_eq!(policies.verdict("own", v4, true), Deny);
    assert!(policies.has("own") && !policies.has("nosuch"));
}

#[test]
fn lists_and_maps_may_come_from_another_daemon() {
    let own = Config::parse("router ospf\n redistribute kernel route-map own\n");
    let merged = own.with_policies_of(Config::parse(RUNNING));
    assert!(Policies::new(&merged).has("own"));
    assert_eq!(merged.block("router bgp"), None, "but nothing else");
    let other = Config::parse("route-map own deny 5\n");
    let policies = Policies::new(&Config::parse(RUNNING).with_policies_of(other));
    let v4 = "10.0.1.0/24".parse().expect("a prefix");
    assert_eq!(policies.verdict("own", v4, false), Verdict::Permit, "what is there stays");
}
