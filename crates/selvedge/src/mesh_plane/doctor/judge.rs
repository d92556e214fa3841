//! What the answers mean. Pure.

use std::fmt::Display;
use std::time::Duration;

use selvedge_api::gateway::Finding;
use selvedge_api::mesh::{Hookup, Member, Mesh, Role};
use selvedge_host::firewall::{Packet, Place as Chain, Ruleset, Verdict};
use selvedge_host::sysctl::Family;

use super::{Control, Echo, Examined, Facts, Host};

/// Clocks that differ by less than this are no trouble.
const SKEW_S: u64 = 60;
/// A session of WireGuard ends at this age.
const SESSION_S: u64 = 180;
/// No more names than this stand in one text.
const NAMES: usize = 8;

/// All findings, the gravest first.
pub(super) fn judge(facts: &Facts, unseen: Vec<Finding>) -> Vec<Finding> {
    let mut findings = unseen;
    for examined in &facts.meshes {
        findings.extend(mesh(examined, facts));
    }
    if let Some(host) = &facts.host {
        findings.extend(on_host(host, facts));
    } else {
        findings.push(Finding::ok("wireguard", "the agent runs dry: the kernel is left alone"));
    }
    findings.extend(names_of_members(facts));
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    findings
}

fn mesh(examined: &Examined, facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if facts.host.is_some() {
        findings.push(interface(examined));
    }
    findings.extend(agents(examined));
    findings.extend(wireguard(examined));
    findings.extend(own_places(&examined.mesh));
    findings.extend(permits(&examined.mesh));
    findings.extend(clocks(&examined.mesh, facts.now));
    findings.extend(versions(&examined.mesh));
    findings
}

fn interface(Examined { mesh, link, .. }: &Examined) -> Finding {
    let name = &mesh.interface;
    match link {
        Some(link) if link.up => {
            let by = mesh.wireguard.as_deref().unwrap_or("nobody yet");
            let text = format!("{name} is up, with an MTU of {}; WireGuard: {by}", link.mtu);
            Finding::ok(&mesh.name, text)
        }
        Some(_) => Finding::problem(&mesh.name, format!("its interface {name} is down"))
            .shell([format!("ip link set {name} up")]),
        None => {
            let text = format!("its interface {name} is missing; the agent's log says why");
            Finding::problem(&mesh.name, text).shell(["journalctl -u selvedge -n 50"])
        }
    }
}

/// Whether the members' agents are heard.
fn agents(examined: &Examined) -> Vec<Finding> {
    let mesh = &examined.mesh;
    let (down, up): (Vec<&Member>, Vec<&Member>) =
        others(mesh).partition(|member| control(examined, member).down);
    if down.is_empty() {
        let text = match up.len() {
            0 => "it has no other members".to_owned(),
            count => format!("no agent of the {count} other members is known to be down"),
        };
        return vec![Finding::ok(&mesh.name, text)];
    }
    if up.is_empty() {
        return vec![alone(mesh, &down)];
    }
    let answers = |member: &&Member| echo(examined, member).is_some_and(|it| it.small.is_some());
    let (deaf, gone): (Vec<&Member>, Vec<&Member>) = down.into_iter().partition(answers);
    let deaf = some(deaf).map(|deaf| {
        let text = format!(
            "WireGuard reaches {}, but no agent there is heard: start it, or let its UDP port \
             through: {}",
            names(&deaf),
            places(deaf.iter().flat_map(|member| &member.control))
        );
        Finding::problem(&mesh.name, text)
    });
    let gone = some(gone).map(|gone| {
        let text = format!(
            "{} of {} members do not answer: {}",
            gone.len(),
            others(mesh).count(),
            names(&gone)
        );
        Finding::warning(&mesh.name, text)
    });
    deaf.into_iter().chain(gone).collect()
}

/// Nobody is heard: it is this host rather than all others.
fn alone(mesh: &Mesh, down: &[&Member]) -> Finding {
    let text = format!(
        "none of the {} other members is heard, so this host is cut off, or they all are: see \
         whether packets reach them, and whether UDP passes to {}",
        down.len(),
        places(down.iter().flat_map(|member| &member.control))
    );
    let place = down.iter().flat_map(|member| &member.control).next();
    Finding::problem(&mesh.name, text).shell(place.map(|place| format!("ping -c 3 {}", place.ip())))
}

/// Whom WireGuard reaches, among those that were asked and whose agents are heard.
fn wireguard(examined: &Examined) -> Vec<Finding> {
    let mesh = &examined.mesh;
    let asked: Vec<(&Member, Echo)> = others(mesh)
        .filter(|member| !control(examined, member).down)
        .filter_map(|member| Some((member, echo(examined, member)?)))
        .collect();
    let lost: Vec<&Member> =
        asked.iter().filter(|(_, echo)| echo.small.is_none()).map(|(member, _)| *member).collect();
    let mut findings = unreached(mesh, &lost);
    let narrow = asked.iter().filter(|(_, echo)| echo.small.is_some() && echo.full.is_none());
    findings.extend(some(narrow.map(|(member, _)| *member).collect()).map(|it| cut(examined, &it)));
    let slowest = asked.iter().filter_map(|(_, echo)| echo.small).max();
    if let Some(slowest) = slowest.filter(|_| lost.is_empty()) {
        let text = format!(
            "WireGuard reaches all {} members that were asked, the slowest in {} ms",
            asked.len(),
            slowest.as_millis()
        );
        findings.push(Finding::ok(&mesh.name, text));
    }
    findings
}

fn unreached(mesh: &Mesh, lost: &[&Member]) -> Vec<Finding> {
    let has_session = |member: &&Member| member.handshake_age_s.is_some_and(|age| age < SESSION_S);
    let (by_way, direct): (Vec<&Member>, Vec<&Member>) =
        lost.iter().partition(|member| member.via.is_some());
    let (silent, direct): (Vec<&Member>, Vec<&Member>) = direct.into_iter().partition(has_session);
    let (placed, nowhere): (Vec<&Member>, Vec<&Member>) =
        direct.into_iter().partition(|member| member.endpoint.is_some());
    let text = |found: Vec<&Member>, text: &dyn Fn(&[&Member]) -> String| {
        some(found).map(|found| Finding::problem(&mesh.name, text(&found)))
    };
    let placed = text(placed, &|found| {
        format!(
            "WireGuard does not reach {}, whose agents are heard: let UDP through to {}, or have \
             them announce addresses that can be reached",
            names(found),
            places(found.iter().filter_map(|member| member.endpoint.as_ref()))
        )
    });
    let nowhere = text(nowhere, &|found| {
        format!(
            "WireGuard has nowhere to send to for {}: they announce no address that can be \
             reached (`endpoints` in the section [mesh] there), and have not called",
            names(found)
        )
    });
    let by_way = text(by_way, &|found| {
        let ways: Vec<&Member> = mesh
            .members
            .iter()
            .filter(|it| found.iter().any(|to| to.via == Some(it.node)))
            .collect();
        format!(
            "{} are not reached by way of {}: look at these hosts, which forward",
            names(found),
            names(&ways)
        )
    });
    let silent = text(silent, &|found| {
        format!(
            "WireGuard has a session with {}, but no ping is answered: the firewall there drops \
             what comes from the mesh, or UDP to {} does not pass any more",
            names(found),
            places(found.iter().filter_map(|member| member.endpoint.as_ref()))
        )
    });
    [placed, nowhere, by_way, silent].into_iter().flatten().collect()
}

fn cut(examined: &Examined, narrow: &[&Member]) -> Finding {
    let mtu = examined.link.map_or(0, |link| link.mtu);
    let text = format!(
        "small packets reach {}, but those of {mtu} bytes are lost: the way is narrower than the \
         interface; set `mtu = 1320` in [mesh.options], or what the way carries less 80",
        names(narrow)
    );
    let line = format!("ip link set {} mtu 1320", examined.mesh.interface);
    Finding::problem(&examined.mesh.name, text).shell([line])
}

/// Where this node says that it is.
fn own_places(mesh: &Mesh) -> Option<Finding> {
    let own = own(mesh)?;
    let missing = match own.role {
        Role::Client => false,
        Role::Peer => own.endpoints.is_empty(),
    };
    missing.then(|| {
        let text = "this node is a peer, but announces no address, so that nobody can call it: \
                    write `endpoints` into the section [mesh], or make it a client";
        Finding::problem(&mesh.name, text)
            .shell([format!("selvedge node set --mesh {} --role client", mesh.name)])
    })
}

fn permits(mesh: &Mesh) -> Option<Finding> {
    let refused = some(mesh.not_permitted.iter().collect())?;
    let text = format!(
        "the certificate of this node does not let it announce {}, so nobody uses it: join again \
         by an invite that allows it",
        list(&refused)
    );
    Some(Finding::problem(&mesh.name, text))
}

/// What a member signed cannot have been signed later than now.
fn clocks(mesh: &Mesh, now: u64) -> Option<Finding> {
    let ahead = |member: &&Member| member.updated > now + SKEW_S;
    let early: Vec<&Member> = others(mesh).filter(ahead).collect();
    let by = early.iter().map(|member| member.updated - now).max()?;
    let by = Duration::from_secs(by).as_secs();
    let others = others(mesh).count();
    if early.len() * 2 > others && others > 1 {
        let text = format!(
            "the clock of this host is behind those of {} of {others} members, by {by} s or more: \
             what it says may be forgotten early",
            early.len()
        );
        return Some(Finding::problem(&mesh.name, text).shell(["timedatectl set-ntp true"]));
    }
    let text = format!("the clocks of {} are ahead of this host's, by up to {by} s", names(&early));
    Some(Finding::warning(&mesh.name, text))
}

/// Two adjacent minor versions work together.
fn versions(mesh: &Mesh) -> Option<Finding> {
    let ours = own(mesh)?.version.as_deref().and_then(minor)?;
    let adjacent = |theirs: (u32, u32)| theirs.0 == ours.0 && theirs.1.abs_diff(ours.1) <= 1;
    let strange = |member: &&Member| {
        member.version.as_deref().and_then(minor).is_none_or(|theirs| !adjacent(theirs))
    };
    let strange = some(others(mesh).filter(strange).collect())?;
    let text = format!(
        "{} run versions that are not tested with this one: bring all to the same",
        names(&strange)
    );
    Some(Finding::warning(&mesh.name, text))
}

fn minor(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn on_host(host: &Host, facts: &Facts) -> Vec<Finding> {
    let mut findings: Vec<Finding> = clock(host).into_iter().collect();
    findings.extend(host.forwarding.iter().filter_map(|(family, on)| forwards(*family, on, facts)));
    findings.extend(facts.meshes.iter().filter_map(|examined| reverse_path(host, &examined.mesh)));
    match &host.firewall {
        Ok(rules) => findings.extend(facts.meshes.iter().flat_map(|it| firewall(rules, it, facts))),
        Err(error) => findings.push(Finding::warning("firewall", error)),
    }
    findings
}

fn clock(host: &Host) -> Option<Finding> {
    let free = host.synchronized == Some(false);
    free.then(|| {
        let text = "nothing keeps the clock of this host right";
        Finding::warning("clock", text).shell(["timedatectl set-ntp true"])
    })
}

fn forwards(family: Family, on: &Result<bool, String>, facts: &Facts) -> Option<Finding> {
    let (key, used): (_, fn(&Mesh) -> bool) = match family {
        Family::V4 => ("net.ipv4.ip_forward", speaks_v4),
        Family::V6 => ("net.ipv6.conf.all.forwarding", |_| true),
    };
    let mut needed = facts.meshes.iter().map(|it| &it.mesh).filter(|mesh| is_on_the_way(mesh));
    let mesh = needed.find(|mesh| used(mesh))?;
    Some(match on {
        Ok(true) => Finding::ok(key, "on"),
        Ok(false) => {
            let text = format!(
                "off, so nothing passes this host for others, as it is to in {}; something may \
                 have switched it off again, or `forward = false` stands in [mesh.options]",
                mesh.name
            );
            Finding::problem(key, text).shell([format!("sysctl -w {key}=1")])
        }
        Err(error) => Finding::warning(key, error),
    })
}

/// Whether packets of others pass this node: of clients, or of networks behind it.
fn is_on_the_way(mesh: &Mesh) -> bool {
    let Some(own) = own(mesh) else { return false };
    let clients = || others(mesh).any(|member| member.role == Role::Client);
    !own.routes.is_empty() || (own.role == Role::Peer && clients())
}

fn speaks_v4(mesh: &Mesh) -> bool {
    own(mesh).is_some_and(|own| own.ipv4.is_some())
        || mesh.routes.iter().any(|route| route.destination.addr().is_ipv4())
}

fn reverse_path(host: &Host, mesh: &Mesh) -> Option<Finding> {
    let strict = host.strict.contains(&mesh.interface) && speaks_v4(mesh);
    strict.then(|| {
        let key = format!("net.ipv4.conf.{}.rp_filter", mesh.interface.replace('.', "/"));
        let text = "strict: IPv4 packets that come by another member than they would go by are \
                    dropped";
        Finding::problem(&key, text).shell([
            format!("sysctl -w {key}=2"),
            "sysctl -w net.ipv4.conf.all.rp_filter=2".to_owned(),
        ])
    })
}

/// Whether the firewall drops what others send first, and what passes for them.
fn firewall(rules: &Ruleset, examined: &Examined, facts: &Facts) -> Vec<Finding> {
    let mesh = &examined.mesh;
    let called = own(mesh).is_some_and(|own| own.role == Role::Peer);
    let mut ports = vec![("WireGuard", mesh.listen_port), ("the agents", facts.place.port)];
    ports.retain(|(_, port)| called && *port != 0);
    let entering = ports.into_iter().flat_map(|(what, port)| {
        families(mesh).into_iter().filter_map(move |v6| {
            let packet = Packet { v6, udp: Some(port), ..Packet::default() };
            let rule = format!("udp dport {port}");
            dropped(rules, packet, &format!("what others send to {what}"), &rule)
        })
    });
    let name = mesh.interface.as_str();
    let passing = [true, false].into_iter().filter(|v6| *v6 || speaks_v4(mesh));
    let passing = passing.filter(|_| is_on_the_way(mesh)).filter_map(|v6| {
        let packet = Packet { v6, udp: None, input: Some(name), output: Some(name) };
        let rule = format!("iifname {name} oifname {name}");
        dropped(rules, packet, "what members send to each other by way of this host", &rule)
    });
    let mut findings: Vec<Finding> = entering.chain(passing).collect();
    findings.dedup();
    if findings.is_empty() {
        let text = format!("no rule is known to be in the way of {}", mesh.name);
        findings.push(Finding::ok("firewall", text));
    }
    findings
}

fn dropped(rules: &Ruleset, packet: Packet<'_>, what: &str, rule: &str) -> Option<Finding> {
    let Verdict::Dropped(Chain { family, table, chain }) = rules.judge(packet) else {
        return None;
    };
    let text = format!("the chain {chain} of table {family} {table} drops {what}");
    let line = format!("nft insert rule {family} {table} {chain} {rule} accept");
    Some(Finding::problem("firewall", text).shell([line]))
}

/// The families in which this node may be called: IPv6, or not.
fn families(mesh: &Mesh) -> Vec<bool> {
    let Some(own) = own(mesh) else { return Vec::new() };
    let all = own.endpoints.iter().chain(&own.control);
    let mut families: Vec<bool> = all.map(|place| place.is_ipv6()).collect();
    families.sort_unstable();
    families.dedup();
    families
}

fn names_of_members(facts: &Facts) -> Vec<Finding> {
    let dns = &facts.dns;
    if !dns.enabled {
        return Vec::new();
    }
    let broken = dns.listeners.iter().filter_map(|listener| {
        let problem = listener.problem.as_ref()?;
        Some(Finding::problem("names", format!("no answers at {}: {problem}", listener.address)))
    });
    let hookup = match &dns.hookup {
        Hookup::Resolved => Finding::ok("names", "this host's programs find the members' names"),
        Hookup::Failed { problem } => {
            Finding::problem("names", format!("systemd-resolved was told, and refused: {problem}"))
                .shell(["systemctl restart systemd-resolved"])
        }
        Hookup::Manual => {
            let text = "this host's programs do not ask for names in the meshes by themselves";
            Finding::ok("names", text).shell(["selvedge mesh names"])
        }
    };
    broken.chain([hookup]).collect()
}

fn own(mesh: &Mesh) -> Option<&Member> {
    mesh.members.iter().find(|member| member.own)
}

fn others(mesh: &Mesh) -> impl Iterator<Item = &Member> {
    mesh.members.iter().filter(|member| !member.own)
}

fn control(examined: &Examined, member: &Member) -> Control {
    examined.control.get(&member.node).copied().unwrap_or_default()
}

fn echo(examined: &Examined, member: &Member) -> Option<Echo> {
    examined.echoes.get(&member.node).copied()
}

fn some<T>(found: Vec<T>) -> Option<Vec<T>> {
    (!found.is_empty()).then_some(found)
}

fn names(members: &[&Member]) -> String {
    list(&members.iter().map(|member| &member.name).collect::<Vec<_>>())
}

fn places<'a>(places: impl Iterator<Item = &'a std::net::SocketAddr>) -> String {
    list(&places.collect::<Vec<_>>())
}

/// The first of them, and how many more there are.
fn list<T: Display>(all: &[T]) -> String {
    let mut words: Vec<String> = all.iter().take(NAMES).map(T::to_string).collect();
    if all.len() > NAMES {
        words.push(format!("and {} more", all.len() - NAMES));
    }
    words.join(", ")
}

#[cfg(test)]
mod tests;
