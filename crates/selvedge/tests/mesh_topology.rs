//! Clients, networks behind members, exits and bridges: real packets between network namespaces.
//!
//! Needs root. Without it the tests are skipped and say so; with `CI=true` that is a failure.

mod hosts;

use std::time::{Duration, Instant};

use hosts::Lab;
use selvedge_api::mesh::{Exit, Member, Mesh, NoExit, Role};
use tokio::time::sleep;

const CLIENT: Option<Role> = Some(Role::Client);

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

fn member(mesh: &Mesh, node: selvedge_model::NodeId) -> &Member {
    mesh.members.iter().find(|member| member.node == node).expect("a member")
}

fn own(mesh: &Mesh) -> &Member {
    member(mesh, mesh.node)
}

/// Waits until a host sees of a mesh what is to be seen.
async fn until(lab: &Lab, host: usize, mesh: &str, what: impl Fn(&Mesh) -> bool) -> Mesh {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let shown = lab.show(host, mesh).await;
        if what(&shown) {
            return shown;
        }
        assert!(Instant::now() < deadline, "host {host}: {shown:#?}\n{}", lab.logs());
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn clients_reach_each_other_by_peers_and_change_them() {
    let Some(mut lab) = Lab::new("tc", 4).await else { return };
    // Nothing is between the two clients here: they would not need the peers for long.
    [2, 3].into_iter().for_each(|host| lab.configure(host, "[mesh.options]\ndirect = false"));
    lab.start_all().await;
    lab.form_of("campus", 0, &[(1, None), (2, CLIENT), (3, CLIENT)]).await;
    let addresses = lab.addresses("campus").await;
    lab.pings(2, addresses[3], "56").await;
    lab.pings(3, addresses[0], "56").await;
    lab.pings(1, addresses[2], "56").await;

    // A client has one peer with addresses, which carries everything.
    let seen = lab.show(2, "campus").await;
    assert_eq!(own(&seen).role, Role::Client);
    let with_addresses = |mesh: &Mesh| {
        mesh.members
            .iter()
            .filter(|it| !it.allowed_ips.is_empty())
            .map(|it| it.node)
            .collect::<Vec<_>>()
    };
    let home = with_addresses(&seen);
    assert_eq!(home.len(), 1, "{seen:#?}");
    let other_client = lab.show(3, "campus").await.node;
    assert_eq!(member(&seen, other_client).via, Some(home[0]));

    // It leaves a peer that is drained, and comes back.
    let nodes = [lab.show(0, "campus").await.node, lab.show(1, "campus").await.node];
    let at = nodes.iter().position(|node| *node == home[0]).expect("a peer");
    let drain =
        |drained| selvedge_api::mesh::EditRequest { drained: Some(drained), ..Default::default() };
    lab.client(at).edit_node("campus", &drain(true)).await.expect("drained");
    until(&lab, 2, "campus", |mesh| with_addresses(mesh) == [nodes[1 - at]]).await;
    lab.pings(2, addresses[3], "56").await;
    lab.client(at).edit_node("campus", &drain(false)).await.expect("undrained");
    until(&lab, 2, "campus", |mesh| with_addresses(mesh) == [nodes[at]]).await;

    // And one that dies.
    lab.kill(at);
    until(&lab, 2, "campus", |mesh| with_addresses(mesh) == [nodes[1 - at]]).await;
    lab.pings(2, addresses[3], "56").await;
    lab.pings(3, addresses[1 - at], "56").await;
}

#[tokio::test]
async fn a_network_behind_a_member_is_reached_until_it_leaves() {
    let Some(mut lab) = Lab::new("ts", 3).await else { return };
    let links = [("fd50::1/64", "fd50::2/64"), ("192.168.50.1/24", "192.168.50.2/24")];
    let station = lab.behind(0, "ts", &links).await;
    for back in [
        &["-6", "route", "add", "default", "via", "fd50::1"],
        &["-4", "route", "add", "default", "via", "192.168.50.1"],
    ] {
        assert!(station.command("ip").args(back).status().expect("runs").success());
    }
    let options = "[mesh.options]\nipv4 = '10.99.0.0/16'\n";
    lab.configure(0, &format!("{options}advertise = ['fd50::/64', '192.168.50.0/24']"));
    lab.configure(1, options);
    lab.configure(2, &format!("{options}accept = []"));
    lab.start_all().await;
    lab.form_of("campus", 0, &[(1, CLIENT), (2, None)]).await;
    let (v6, v4): (std::net::Ipv6Addr, std::net::Ipv4Addr) =
        ("fd50::2".parse().expect("v6"), [192, 168, 50, 2].into());
    lab.pings(1, v6, "56").await;
    lab.pings(1, v4, "56").await;
    let used = lab.show(1, "campus").await;
    let destinations: Vec<_> = used.routes.iter().map(|it| it.destination.to_string()).collect();
    assert_eq!(destinations, ["192.168.50.0/24", "fd50::/64"]);
    let founder = lab.show(0, "campus").await.node;
    assert!(used.routes.iter().all(|route| route.via == founder));

    // Members have IPv4 addresses, too.
    let ipv4 =
        until(&lab, 2, "campus", |mesh| mesh.members.iter().all(|it| it.ipv4.is_some())).await;
    for member in ipv4.members.iter().filter(|member| !member.own) {
        lab.pings(2, member.ipv4.expect("it has one"), "56").await;
    }

    // Who does not want the route has none.
    assert!(lab.routes(1).contains("fd50::/64") && lab.routes(1).contains("192.168.50.0/24"));
    assert_eq!(lab.routes(2), "");

    lab.client(0).leave_mesh("campus").await.expect("left");
    until(&lab, 1, "campus", |mesh| mesh.routes.is_empty()).await;
    gone(&lab, 1).await;
}

/// Waits until nothing of ours is left on a host but the interfaces of its meshes.
async fn gone(lab: &Lab, host: usize) {
    let deadline = Instant::now() + PATIENCE;
    let rules = || lab.ip(host, "rule") + &lab.ip(host, "-6 rule");
    while !lab.routes(host).is_empty() || rules().contains("lookup 5021") {
        assert!(Instant::now() < deadline, "{}\n{}", rules(), lab.read_log(host));
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn an_exit_leads_elsewhere_and_the_agents_own_packets_stay_out() {
    let Some(mut lab) = Lab::new("tx", 3).await else { return };
    let internet = lab
        .behind(
            0,
            "tx",
            &[("203.0.113.1/24", "203.0.113.9/24"), ("2001:db8:7::1/64", "2001:db8:7::9/64")],
        )
        .await;
    // Everybody reaches the others' agents by the default route alone.
    for (host, addr) in [(0, "192.0.2.1"), (1, "192.0.2.2"), (2, "192.0.2.3")] {
        lab.ip(host, &format!("addr del {addr}/24 dev eth0"));
        lab.ip(host, &format!("addr add {addr}/32 dev eth0"));
        lab.ip(host, "route add default dev eth0");
        lab.run(host, "sysctl", &["-qw", "net.ipv4.conf.eth0.rp_filter=1"]);
    }
    lab.configure(0, "[mesh.options]\nipv4 = '10.99.0.0/16'\nadvertise = ['0.0.0.0/0', '::/0']\nmasquerade = true");
    lab.configure(1, "[mesh.options]\nipv4 = '10.99.0.0/16'\nexit = 'any'");
    lab.configure(2, "[mesh.options]\nipv4 = '10.99.0.0/16'\nexit = 'nobody'");
    lab.start_all().await;
    lab.form_of("campus", 0, &[(1, None), (2, None)]).await;
    let [v4, v6]: [std::net::IpAddr; 2] =
        ["203.0.113.9", "2001:db8:7::9"].map(|it| it.parse().expect("an address"));
    lab.pings(1, v4, "56").await;
    lab.pings(1, v6, "56").await;
    // Nothing behind the exit knows a way back but to the exit itself.
    assert!(
        internet
            .command("ip")
            .args(["route", "get", "10.99.0.1"])
            .output()
            .expect("runs")
            .stdout
            .is_empty()
    );
    let addresses = lab.addresses("campus").await;
    lab.pings(2, addresses[0], "56").await;
    assert!(!lab.ping(2, v4, "56"), "an exit that is not there lets nothing past it");
    // Not even while the agent is dead.
    let passes = |lab: &Lab, dst: std::net::IpAddr| {
        lab.ip(2, &format!("route get {dst}")).contains("dev eth0")
    };
    assert!(!passes(&lab, v4) && !passes(&lab, v6));
    lab.kill(2);
    assert!(!passes(&lab, v4) && !passes(&lab, v6), "{}", lab.ip(2, "route show table all"));
    lab.start(2).await;
    lab.pings(2, addresses[0], "56").await;
    assert!(!passes(&lab, v4) && !passes(&lab, v6));

    // What is used, and why nothing is, is told everywhere.
    let used = lab.show(1, "campus").await;
    let exit = lab.show(0, "campus").await.node;
    assert!(used.exits.len() == 2 && used.exits.iter().all(|it| it.via == Some(exit)), "{used:#?}");
    let unused = lab.show(2, "campus").await.exits;
    let lost = |it: &Exit| it.reason == Some(NoExit::NoMember) && it.dropped;
    assert!(unused.len() == 2 && unused.iter().all(lost), "{unused:#?}");
    for (host, missing) in [(0, 0), (1, 0), (2, 2)] {
        let metrics = lab.client(host).metrics().await.expect("answers");
        let of = |name: &str| {
            let name = format!("selvedge_mesh_{name}{{");
            let line = metrics.lines().find(|line| line.starts_with(&name));
            let value = line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
            value.unwrap_or_else(|| panic!("{name} is not in\n{metrics}"))
        };
        assert_eq!((of("exits_missing"), of("interface")), (missing, 1));
        assert!(of("sessions") > 0 && of("sent_bytes_total") > 0, "{metrics}");
    }

    lab.client(2).leave_mesh("campus").await.expect("left");
    gone(&lab, 2).await;
    assert!(passes(&lab, v4));
    // What this host forwards for others does not go by its exit.
    lab.run(1, "sysctl", &["-qw", "net.ipv4.ip_forward=1"]);
    let forwarded = lab.ip(1, "route get 203.0.113.9 from 192.0.2.77 iif eth0");
    assert!(forwarded.contains("dev eth0"), "{forwarded}");
    assert!(lab.run(0, "nft", &["list", "table", "inet", "selvedge_mesh"]).status.success());
    // The rule that leads there is missed, for as long as the agent does not put it back.
    let rule = |lab: &Lab| {
        let rules = lab.ip(1, "rule");
        let rule = rules.lines().find(|line| line.contains("lookup 5021"))?;
        Some(rule.split(':').next()?.to_owned())
    };
    let deadline = Instant::now() + 10 * PATIENCE;
    loop {
        lab.ip(1, &format!("rule del pref {}", rule(&lab).unwrap_or_default()));
        let findings = lab.client(1).doctor(Some("campus")).await.expect("it looks");
        if findings.iter().any(|it| it.subject == "rules") {
            break;
        }
        assert!(Instant::now() < deadline, "{findings:#?}");
    }
    while rule(&lab).is_none() {
        assert!(Instant::now() < deadline, "{}", lab.read_log(1));
        sleep(Duration::from_millis(50)).await;
    }

    // What is left behind by a kill is found again.
    lab.kill(1);
    assert!(lab.ip(1, "rule").contains("lookup 5021"));
    lab.start(1).await;
    lab.pings(1, v4, "56").await;

    for host in [1, 0] {
        lab.client(host).leave_mesh("campus").await.expect("left");
        gone(&lab, host).await;
    }
    let deadline = Instant::now() + PATIENCE;
    let forwards = || {
        String::from_utf8(lab.run(0, "sysctl", &["-n", "net.ipv6.conf.all.forwarding"]).stdout)
            .expect("text")
    };
    while forwards().trim() != "0"
        || lab.run(0, "nft", &["list", "table", "inet", "selvedge_mesh"]).status.success()
    {
        assert!(Instant::now() < deadline, "{}", lab.read_log(0));
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(lab.run(1, "sysctl", &["-n", "net.ipv4.conf.eth0.rp_filter"]).stdout, b"1\n");
}

#[tokio::test]
async fn a_node_in_two_meshes_connects_them() {
    let Some(mut lab) = Lab::new("tb", 3).await else { return };
    lab.configure(0, "[mesh.options]\nbridge = true");
    lab.start_all().await;
    lab.form_of("left", 0, &[(1, CLIENT)]).await;
    lab.form_of("right", 0, &[(2, None)]).await;
    let (left, right) = (lab.show(1, "left").await, lab.show(2, "right").await);
    lab.pings(1, right.address, "56").await;
    lab.pings(2, left.address, "56").await;
    let bridge = lab.show(0, "left").await.node;
    let used = lab.show(1, "left").await.routes;
    assert_eq!(
        used.iter().map(|it| (it.destination, it.via)).collect::<Vec<_>>(),
        [(right.prefix, bridge)]
    );

    // The last way is gone, and so is the route.
    lab.client(0).leave_mesh("right").await.expect("left");
    until(&lab, 1, "left", |mesh| mesh.routes.is_empty()).await;
    gone(&lab, 1).await;
    assert!(!lab.ping(1, right.address, "56"));
}

#[tokio::test]
async fn the_mtu_follows_the_link() {
    let Some(mut lab) = Lab::new("tm", 2).await else { return };
    lab.start_all().await;
    lab.form("campus").await;
    let has = async |mtu: u16| {
        let deadline = Instant::now() + PATIENCE;
        while !lab.ip(0, "link show sv-campus").contains(&format!("mtu {mtu} ")) {
            assert!(Instant::now() < deadline, "{}", lab.read_log(0));
            sleep(Duration::from_millis(50)).await;
        }
    };
    has(1420).await;
    // Until nothing else makes the agent plan.
    sleep(Duration::from_secs(5)).await;
    lab.ip(0, "link set eth0 mtu 1400");
    has(1320).await;
}

/// Host 2 has a private address; the router, host 3, gives it its own outside, as clouds do.
#[tokio::test]
async fn a_peer_behind_a_nat_of_its_own_announces_what_its_partners_see() {
    let Some(mut lab) = Lab::new("tn", 4).await else { return };
    let ip = |host: usize, args: &str| {
        let args: Vec<&str> = args.split_whitespace().collect();
        let done = lab.run(host, "ip", &args);
        assert!(done.status.success(), "{args:?}: {done:?}");
    };
    ip(2, "addr flush dev eth0 scope global");
    ip(2, "addr add 10.7.0.2/24 dev eth0");
    ip(2, "route add default via 10.7.0.1");
    ip(3, "addr add 10.7.0.1/24 dev eth0");
    let rules = "add table ip nat;\
        add chain ip nat pre { type nat hook prerouting priority -100; };\
        add chain ip nat post { type nat hook postrouting priority 100; };\
        add rule ip nat pre ip daddr 192.0.2.4 dnat to 10.7.0.2;\
        add rule ip nat post ip saddr 10.7.0.2 snat to 192.0.2.4";
    assert!(lab.run(3, "nft", &[rules]).status.success());
    for setting in ["conf.all.send_redirects=0", "conf.eth0.send_redirects=0", "ip_forward=1"] {
        let set = lab.run(3, "sysctl", &["-w", &format!("net.ipv4.{setting}")]);
        assert!(set.status.success(), "{set:?}");
    }
    for host in [0, 1, 2] {
        lab.start(host).await;
    }
    lab.form_of("campus", 0, &[(1, None), (2, None)]).await;
    let hidden = lab.show(2, "campus").await;
    let (port, node) = (hidden.listen_port, hidden.node);
    let outside = std::net::SocketAddr::from(([192, 0, 2, 4], port));
    let inside = std::net::SocketAddr::from(([10, 7, 0, 2], port));
    // Partners tell every half minute.
    let deadline = Instant::now() + PATIENCE * 5;
    while member(&lab.show(1, "campus").await, node).endpoints != [inside, outside] {
        assert!(Instant::now() < deadline, "{:#?}\n{}", lab.show(1, "campus").await, lab.logs());
        sleep(Duration::from_millis(200)).await;
    }
    let own = lab.show(0, "campus").await;
    assert_eq!(self::own(&own).endpoints.len(), 1, "the others know where they are");
    // Its partners begin by what leads to it, also if they have heard nothing of it.
    lab.kill(0);
    lab.start(0).await;
    until(&lab, 0, "campus", |mesh| member(mesh, node).endpoint == Some(outside)).await;
    lab.pings(0, hidden.address, "56").await;
}
