use std::net::Ipv6Addr;

use super::*;
use crate::word_name;

fn host(node: u8, alias: &str, services: &[(&str, &str)]) -> Host {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    Host {
        claim: Claim {
            node: NodeId([node; 32]),
            rank: u64::from(node),
            alias: alias.to_owned(),
            shared: false,
        },
        addresses: vec![
            IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, node.into())),
            IpAddr::V4([10, 1, 0, node].into()),
        ],
        services: services.iter().map(owned).collect(),
        live: true,
    }
}

fn site(hosts: Vec<Host>) -> Site {
    let prefixes = ["fd00::/64", "10.1.0.0/20"].map(|p| p.parse().expect("a prefix"));
    Site { mesh: MeshId([1; 20]), name: "Campus".to_owned(), prefixes: prefixes.into(), hosts }
}

fn zone(hosts: Vec<Host>) -> Zone {
    Zone::new(&[site(hosts)], &Options { legacy: true, ..Options::default() })
}

fn look(zone: &Zone, asked: &str) -> Lookup {
    let labels: Vec<_> = asked.split('.').map(ToOwned::to_owned).collect();
    zone.lookup(&labels)
}

/// The records at a name, as text; panics if there is no such name.
fn at(zone: &Zone, asked: &str) -> Vec<String> {
    match look(zone, asked) {
        Lookup::Records(_, records) => records.iter().map(ToString::to_string).collect(),
        other @ (Lookup::Elsewhere | Lookup::Nothing(_)) => panic!("{asked}: {other:?}"),
    }
}

fn is_nothing(zone: &Zone, asked: &str) -> bool {
    matches!(look(zone, asked), Lookup::Nothing(_))
}

#[test]
fn members_have_addresses_by_every_name() {
    let zone = zone(vec![host(1, "GW1", &[]), host(2, "", &[])]);
    let gw1 = ["fd00::1", "10.1.0.1"];
    let (id, mesh) = (NodeId([1; 32]), MeshId([1; 20]));
    assert_eq!(at(&zone, "gw1.campus.mesh.internal"), gw1);
    assert_eq!(at(&zone, &format!("{id}.campus.mesh.internal")), gw1);
    assert_eq!(at(&zone, &format!("gw1.{mesh}.mesh.internal")), gw1);
    assert_eq!(at(&zone, &format!("{mesh}.gw1.smeg")), gw1);
    let words = word_name(NodeId([2; 32]));
    assert_eq!(at(&zone, &format!("{words}.campus.mesh.internal")), ["fd00::2", "10.1.0.2"]);
}

#[test]
fn an_id_means_its_node_and_its_mesh_whatever_others_are_called() {
    let id = NodeId([2; 32]).to_string();
    let one = zone(vec![host(1, &id, &[]), host(2, "db", &[])]);
    assert_eq!(at(&one, &format!("{id}.campus.mesh.internal")), ["fd00::2", "10.1.0.2"]);
    assert_eq!(at(&one, &format!("{}.{id}.smeg", MeshId([1; 20]))), ["fd00::2", "10.1.0.2"]);
    // Nor does the id of one who is not there yet mean somebody else.
    let without = zone(vec![host(1, &id, &[])]);
    assert!(is_nothing(&without, &format!("{id}.campus.mesh.internal")));
    let mesh = site(vec![host(1, "a", &[])]);
    let posing = Site { mesh: MeshId([2; 20]), name: mesh.mesh.to_string(), ..mesh.clone() };
    let both = Zone::new(&[posing, mesh], &Options::default());
    let full = format!("a.{}.mesh.internal.", MeshId([2; 20]));
    let Some(posing) = both.meshes.first() else { panic!("two meshes") };
    assert_eq!(posing.full_name("a", &both.domain).to_string(), full);
}

#[test]
fn names_between_are_there_and_others_are_not() {
    let zone = zone(vec![host(1, "gw1", &[("web", "80")])]);
    assert_eq!(at(&zone, "campus.mesh.internal"), [""; 0]);
    assert_eq!(at(&zone, "_tcp.campus.mesh.internal"), [""; 0]);
    assert_eq!(at(&zone, "_tcp.gw1.campus.mesh.internal"), [""; 0]);
    assert_eq!(at(&zone, "gw1.smeg"), [""; 0]);
    for absent in [
        "gw2.campus.mesh.internal",
        "gw1.other.mesh.internal",
        "x.gw1.campus.mesh.internal",
        "_udp.campus.mesh.internal",
        "_udp.gw1.campus.mesh.internal",
        "_ssh._tcp.campus.mesh.internal",
        "x._web._tcp.gw1.campus.mesh.internal",
        "gw2.smeg",
        "campus.gw2.smeg",
    ] {
        assert!(is_nothing(&zone, absent), "{absent}");
    }
    for elsewhere in
        ["internal", "example.com", "mesh.internal.com", "arpa", "8.8.8.8.in-addr.arpa"]
    {
        assert_eq!(look(&zone, elsewhere), Lookup::Elsewhere, "{elsewhere}");
    }
    let Lookup::Records(apex, records) = look(&zone, "mesh.internal") else { panic!("no apex") };
    assert_eq!((apex.to_string().as_str(), records.len()), ("mesh.internal.", 2));
}

#[test]
fn the_predecessors_names_are_an_option() {
    let zone = Zone::new(&[site(vec![host(1, "gw1", &[])])], &Options::default());
    assert_eq!(look(&zone, "campus.gw1.smeg"), Lookup::Elsewhere);
}

#[test]
fn services_are_found_in_the_mesh_and_at_the_host() {
    let zone = zone(vec![
        host(1, "a", &[("web", "80 path=/x"), ("note", "hello")]),
        host(2, "b", &[("web", "8080"), ("dns", "53/udp")]),
    ]);
    let web = at(&zone, "_web._tcp.campus.mesh.internal");
    let (one, two) = ("0 0 80 a.campus.mesh.internal.", "0 0 8080 b.campus.mesh.internal.");
    assert_eq!(web, [one, "path=/x", two]);
    assert_eq!(at(&zone, "_web._tcp.b.campus.mesh.internal"), [two]);
    assert_eq!(at(&zone, "_dns._udp.campus.mesh.internal"), ["0 0 53 b.campus.mesh.internal."]);
    let texts = at(&zone, "a.campus.mesh.internal").pop().expect("texts");
    assert_eq!(texts, "note=helloweb=80 path=/x");
}

#[test]
fn live_members_answer_to_a_name_that_is_shared_on_purpose() {
    let share = |node, live| {
        let host = host(node, "web", &[("web", "80")]);
        Host { claim: Claim { shared: true, ..host.claim }, live, ..host }
    };
    let both = zone(vec![share(1, true), share(2, true)]);
    let all = ["fd00::1", "10.1.0.1", "fd00::2", "10.1.0.2"];
    let of = |zone: &Zone| {
        let addresses = at(zone, "web.campus.mesh.internal");
        addresses.into_iter().filter(|text| !text.starts_with("web=")).collect::<Vec<_>>()
    };
    assert_eq!(of(&both), all);
    let one = zone(vec![share(1, false), share(2, true)]);
    assert_eq!(of(&one), all[2..]);
    assert_eq!(at(&one, "_web._tcp.campus.mesh.internal").len(), 1);
    // Where nobody is known to live, the answer may still be of use.
    assert_eq!(of(&zone(vec![share(1, false), share(2, false)])), all);
    // The own name of one that is down is still its name.
    assert_eq!(at(&one, "web-aeaq.campus.mesh.internal")[0], "fd00::1");
}

#[test]
fn addresses_have_names() {
    let zone = zone(vec![host(1, "gw1", &[])]);
    let tail = "0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa";
    assert_eq!(at(&zone, &format!("1.0.{}", &tail)), ["gw1.campus.mesh.internal."]);
    assert!(is_nothing(&zone, &format!("2.0.{tail}")));
    assert_eq!(at(&zone, &format!("0.{tail}")), [""; 0], "a name between");
    let apex = "0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa";
    assert!(
        matches!(look(&zone, apex), Lookup::Records(zone, _) if zone.to_string() == format!("{apex}."))
    );
    assert_eq!(look(&zone, &apex[2..]), Lookup::Elsewhere);
    assert_eq!(at(&zone, "1.0.1.10.in-addr.arpa"), ["gw1.campus.mesh.internal."]);
    assert!(is_nothing(&zone, "9.0.1.10.in-addr.arpa"));
    assert!(is_nothing(&zone, "1.15.1.10.in-addr.arpa"));
    assert_eq!(look(&zone, "1.16.1.10.in-addr.arpa"), Lookup::Elsewhere);
    for odd in ["01.0.1.10.in-addr.arpa", "+1.0.1.10.in-addr.arpa", "256.0.1.10.in-addr.arpa"] {
        assert_eq!(look(&zone, odd), Lookup::Elsewhere, "{odd}");
    }
}

#[test]
fn a_name_of_two_meshes_is_nobodys() {
    let one = site(vec![host(1, "a", &[])]);
    let two = Site { mesh: MeshId([2; 20]), ..site(vec![host(2, "a", &[])]) };
    let zone = Zone::new(&[one, two], &Options::default());
    assert!(is_nothing(&zone, "a.campus.mesh.internal"));
    let by_id = format!("a.{}.mesh.internal", MeshId([2; 20]));
    assert_eq!(at(&zone, &by_id)[0], "fd00::2");
}

#[test]
fn who_is_in_no_mesh_is_not_served() {
    let zone = zone(Vec::new());
    for (address, served) in [
        ("::1", true),
        ("127.9.9.9", true),
        ("::ffff:127.0.0.1", true),
        ("fd00::77", true),
        ("10.1.15.1", true),
        ("10.1.16.1", false),
        ("fd01::1", false),
        ("192.0.2.1", false),
    ] {
        assert_eq!(zone.serves(address.parse().expect("an address")), served, "{address}");
    }
}

#[test]
fn domains_are_checked() {
    assert!(check_domain("mesh.internal").is_ok() && check_domain("Lan.").is_ok());
    for bad in ["", ".", "a..b", "a b", "-a", "_tcp", "\u{fc}", &"a.".repeat(70)] {
        assert_eq!(check_domain(bad), Err(DomainError), "{bad}");
    }
}
