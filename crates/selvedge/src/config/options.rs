//! The sections `[mesh.options]` and `[mesh.named.NAME]`: what this node is in its meshes, and
//! what it wants of them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use selvedge_api::mesh::Role;
use selvedge_mesh::Profile;
use selvedge_model::{MeshId, Prefix};
use selvedge_topology::{everywhere, overlap};
use serde::{Deserialize, Serialize};

use super::check::{Result, pattern, value};
use super::hooks::mesh_hooks;
use super::{MeshHooksFile, Place};
use crate::mesh_plane::MeshHooks;

/// The smallest MTU of an interface on which a relayed packet of IPv6 fits (RFC 8200, section 5).
const MTU_MIN: u16 = 1280;

/// The section `[mesh.options]`, and one of `[mesh.named]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "described in `MeshOptions`")]
pub struct OptionsFile {
    pub role: Option<Role>,
    pub bridge: Option<bool>,
    pub advertise: Option<Vec<Prefix>>,
    pub accept: Option<Vec<Prefix>>,
    pub exit: Option<String>,
    pub forward: Option<bool>,
    pub masquerade: Option<bool>,
    pub ipv4: Option<Prefix>,
    pub mtu: Option<u16>,
    pub keepalive_s: Option<u16>,
    pub direct: Option<bool>,
    pub port: Option<u16>,
    pub interface: Option<String>,
    pub endpoints: Option<Vec<Place>>,
    pub hooks: Option<MeshHooksFile>,
}

/// What this node is in a mesh, and what it wants of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshOptions {
    /// Peer or client; `None`: as it was when it joined.
    pub role: Option<Role>,
    /// Whether it connects this mesh with its other meshes of which that is said, too.
    pub bridge: bool,
    /// The networks behind this node, which it offers to the mesh. One of length zero makes it
    /// an exit.
    pub advertise: Vec<Prefix>,
    /// What others offer is used as far as it lies in one of these.
    pub accept: Vec<Prefix>,
    /// The way to everywhere else.
    pub exit: Exit,
    /// Whether this host is made to forward packets where it has to for the mesh.
    pub forward: bool,
    /// Whether what comes from the mesh and leaves this host bears its address there.
    pub masquerade: bool,
    /// The IPv4 prefix of the mesh, the same on all its members.
    pub ipv4: Option<Prefix>,
    /// The MTU of the interface in bytes; `None`: what the ways to the members allow.
    pub mtu: Option<u16>,
    /// How often the idle tunnel of a client sends; `None`: never.
    pub keepalive: Option<Duration>,
    /// Whether a client tries to reach other clients past the peers.
    pub direct: bool,
    /// The UDP port of WireGuard; of the base it is for the first mesh that needs one. `None`: one
    /// that is free, then kept.
    pub port: Option<u16>,
    /// The name of the interface: `{name}` stands for the name of the mesh.
    pub interface: String,
    /// Where other nodes reach this one; empty: at the addresses that the host has.
    pub endpoints: Vec<Place>,
    /// The operator's commands.
    pub hooks: MeshHooks,
}

/// The exit that a node uses for what has no better route.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Exit {
    /// None.
    #[default]
    None,
    /// One of those that live.
    Any,
    /// This member, by its id or its name, and no other.
    Member(String),
}

/// The options of all meshes of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OptionsByMesh {
    /// Of all that are not named.
    pub base: MeshOptions,
    /// Of meshes by their name or their id.
    pub named: BTreeMap<String, MeshOptions>,
}

impl OptionsByMesh {
    /// Those of one mesh. Its id counts more than its name.
    #[must_use]
    pub fn of(&self, id: MeshId, name: &str) -> &MeshOptions {
        self.named(id, name).unwrap_or(&self.base)
    }

    /// The port that was set aside for one mesh.
    #[must_use]
    pub fn port(&self, id: MeshId, name: &str) -> Option<u16> {
        self.named(id, name)?.port
    }

    /// Those of a mesh that is to be founded: its id is not known yet.
    #[must_use]
    pub fn of_new(&self, name: &str) -> &MeshOptions {
        self.named.get(name).unwrap_or(&self.base)
    }

    /// The sections that are for none of these meshes.
    pub fn idle<'a>(&'a self, meshes: &'a [(MeshId, &str)]) -> impl Iterator<Item = &'a str> + 'a {
        let meant =
            |key: &str| meshes.iter().any(|(id, name)| *name == key || id.to_string() == key);
        self.named.keys().map(String::as_str).filter(move |key| !meant(key))
    }

    /// How long hooks may hold up the end of the agent; those of all meshes run at once.
    pub(crate) fn at_the_end(&self) -> Duration {
        let all = std::iter::once(&self.base).chain(self.named.values());
        all.map(|options| options.hooks.at_the_end()).max().unwrap_or_default()
    }

    fn named(&self, id: MeshId, name: &str) -> Option<&MeshOptions> {
        self.named.get(&id.to_string()).or_else(|| self.named.get(name))
    }
}

impl Default for MeshOptions {
    fn default() -> Self {
        Self {
            role: None,
            bridge: false,
            advertise: Vec::new(),
            accept: everywhere().into(),
            exit: Exit::None,
            forward: true,
            masquerade: false,
            ipv4: None,
            mtu: None,
            keepalive: Some(Duration::from_secs(25)),
            direct: true,
            port: None,
            interface: "sv-{name}".to_owned(),
            endpoints: Vec::new(),
            hooks: MeshHooks::default(),
        }
    }
}

impl OptionsFile {
    /// What is said here, and where nothing is, what `base` says.
    fn over(&self, base: &Self) -> Self {
        let Self { role, bridge, advertise, accept, exit, forward, masquerade, ipv4, mtu, .. } =
            self.clone();
        Self {
            role: role.or(base.role),
            bridge: bridge.or(base.bridge),
            advertise: advertise.or_else(|| base.advertise.clone()),
            accept: accept.or_else(|| base.accept.clone()),
            exit: exit.or_else(|| base.exit.clone()),
            forward: forward.or(base.forward),
            masquerade: masquerade.or(base.masquerade),
            ipv4: ipv4.or(base.ipv4),
            mtu: mtu.or(base.mtu),
            keepalive_s: self.keepalive_s.or(base.keepalive_s),
            direct: self.direct.or(base.direct),
            // Two meshes cannot have the same.
            port: self.port,
            interface: self.interface.clone().or_else(|| base.interface.clone()),
            endpoints: self.endpoints.clone().or_else(|| base.endpoints.clone()),
            hooks: match (self.hooks.clone(), base.hooks.clone()) {
                (Some(own), Some(base)) => Some(own.over(base)),
                (own, base) => own.or(base),
            },
        }
    }

    fn check(&self, section: &str) -> Result<MeshOptions> {
        let default = MeshOptions::default();
        let seconds = |it: u16| (it > 0).then(|| Duration::from_secs(it.into()));
        // What may stand in `[mesh]` is named so.
        let node = section.strip_suffix(".options").unwrap_or(section);
        let hooks = self.hooks.clone().unwrap_or_default();
        Ok(MeshOptions {
            role: self.role,
            bridge: self.bridge.unwrap_or(default.bridge),
            advertise: advertised(section, self.advertise.as_deref().unwrap_or_default())?,
            accept: self.accept.clone().unwrap_or(default.accept),
            exit: self.exit.as_deref().map_or(default.exit, exit),
            forward: self.forward.unwrap_or(default.forward),
            masquerade: self.masquerade.unwrap_or(default.masquerade),
            ipv4: self.ipv4.map(|prefix| overlay(section, prefix)).transpose()?,
            mtu: self.mtu.map(|bytes| mtu(&format!("{section}.mtu"), bytes)).transpose()?,
            keepalive: self.keepalive_s.map_or(default.keepalive, seconds),
            direct: self.direct.unwrap_or(default.direct),
            port: self.port.filter(|port| *port != 0),
            interface: self
                .interface
                .clone()
                .map_or(Ok(default.interface), |it| interface(node, it))?,
            endpoints: endpoints(node, self.endpoints.as_deref().unwrap_or_default())?,
            hooks: mesh_hooks(node, &hooks)?,
        })
    }
}

pub(super) fn options(
    base: &OptionsFile,
    named: &BTreeMap<String, OptionsFile>,
) -> Result<OptionsByMesh> {
    let of = |(name, file): (&String, &OptionsFile)| {
        let section = format!("mesh.named.{name}");
        Ok((name.clone(), file.over(base).check(&section)?))
    };
    apart(named)?;
    let base = base.check("mesh.options")?;
    Ok(OptionsByMesh { base, named: named.iter().map(of).collect::<Result<_>>()? })
}

/// Whether no two sections say what only one mesh can have. One that is named by its id may be the
/// same mesh as one that is named by its name.
fn apart(named: &BTreeMap<String, OptionsFile>) -> Result<()> {
    let is_id = |name: &str| name.parse::<MeshId>().is_ok();
    for (index, (name, file)) in named.iter().enumerate() {
        for (other, its) in named.iter().take(index).filter(|(it, _)| is_id(it) == is_id(name)) {
            let key = |key: &str| format!("mesh.named.{name}.{key}");
            let same = |what: &str| format!("mesh.named.{other} has {what} that is the same");
            if let (Some(port), Some(its)) = (file.port, its.port)
                && port == its
                && port != 0
            {
                return Err(value(&key("port"), port, same("a port")));
            }
            if let (Some(ipv4), Some(its)) = (file.ipv4, its.ipv4)
                && overlap(ipv4, its)
            {
                let reason = format!("it overlaps mesh.named.{other}.ipv4 = {its}");
                return Err(value(&key("ipv4"), ipv4, reason));
            }
        }
    }
    Ok(())
}

/// The interface of one mesh may have a name without a pattern in it.
fn interface(section: &str, text: String) -> Result<String> {
    let key = format!("{section}.interface");
    match section != "mesh" && !text.contains("{name}") {
        true => pattern(&key, &format!("{text}{{name}}"), "{name}", "")?,
        false => pattern(&key, &text, "{name}", "x")?,
    }
    Ok(text)
}

fn endpoints(section: &str, places: &[Place]) -> Result<Vec<Place>> {
    let key = format!("{section}.endpoints");
    let nobodys = |ip: IpAddr| ip.is_unspecified() || ip.is_multicast();
    if let Some(bad) = places.iter().find(|place| place.address().is_some_and(nobodys)) {
        return Err(value(&key, bad, "nobody can reach a node there"));
    }
    let names = places.iter().filter(|place| place.address().is_none()).count();
    for (found, most, what) in [
        (names, Profile::MAX_NAMES, "names"),
        (places.len() - names, Profile::MAX_ENDPOINTS, "addresses"),
    ] {
        if found > most {
            return Err(value(&key, format!("{found} {what}"), format!("at most {most} fit")));
        }
    }
    Ok(places.to_vec())
}

fn exit(text: &str) -> Exit {
    match text {
        "none" | "" => Exit::None,
        "any" => Exit::Any,
        member => Exit::Member(member.to_owned()),
    }
}

fn advertised(section: &str, prefixes: &[Prefix]) -> Result<Vec<Prefix>> {
    let key = format!("{section}.advertise");
    if let Some(bad) = prefixes.iter().find(|prefix| prefix.network() != **prefix) {
        return Err(value(&key, bad, format!("the network is {}", bad.network())));
    }
    if prefixes.len() > Profile::MAX_ROUTES {
        let found = format!("{} networks", prefixes.len());
        return Err(value(&key, found, format!("at most {} fit", Profile::MAX_ROUTES)));
    }
    Ok(prefixes.to_vec())
}

fn overlay(section: &str, prefix: Prefix) -> Result<Prefix> {
    match prefix.addr().is_ipv4() && (8..=30).contains(&prefix.len()) {
        true => Ok(prefix.network()),
        false => {
            let expected = "expected an IPv4 network with 8 to 30 bits, such as 100.64.0.0/16";
            Err(value(&format!("{section}.ipv4"), prefix, expected))
        }
    }
}

pub(super) fn mtu(key: &str, bytes: u16) -> Result<u16> {
    match bytes >= MTU_MIN {
        true => Ok(bytes),
        false => Err(value(key, bytes, format!("IPv6 needs at least {MTU_MIN}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Sections {
        #[serde(default)]
        options: OptionsFile,
        #[serde(default)]
        named: BTreeMap<String, OptionsFile>,
    }

    fn load(text: &str) -> Result<OptionsByMesh> {
        let sections: Sections = toml::from_str(text).expect("sections");
        options(&sections.options, &sections.named)
    }

    #[test]
    fn a_named_mesh_has_the_options_of_all_but_for_what_it_says_itself() {
        let text = "[options]\nexit = 'any'\nbridge = true\nkeepalive_s = 0\ndirect = false\n\
                    [named.lab]\nexit = 'gw1'\nrole = 'client'\nmtu = 1380\ndirect = true";
        let options = load(text).expect("good");
        let (id, other) = (MeshId([1; 20]), options.of(MeshId([1; 20]), "campus"));
        assert_eq!((&other.exit, other.bridge, other.role), (&Exit::Any, true, None));
        let lab = options.of(id, "lab");
        assert_eq!(lab.exit, Exit::Member("gw1".to_owned()));
        assert_eq!((lab.bridge, lab.role, lab.mtu), (true, Some(Role::Client), Some(1380)));
        assert_eq!(lab.keepalive, None);
        assert_eq!((other.direct, lab.direct), (false, true));
        let by_id = load(&format!("[named.lab]\nmtu = 1300\n[named.{id}]\nmtu = 1290"));
        assert_eq!(by_id.expect("good").of(id, "lab").mtu, Some(1290));
        assert_eq!(load("").expect("good"), OptionsByMesh::default());
    }

    #[test]
    fn one_mesh_has_a_port_an_interface_endpoints_and_hooks_of_its_own() {
        let text = "[options]\nport = 51820\nendpoints = ['192.0.2.1']\n\
                    hooks = { pre_up = '/a', post_up = '/b', timeout_s = 9 }\n\
                    [named.lab]\nport = 51821\ninterface = 'lab0'\n\
                    endpoints = ['host.example:4500']\nhooks = { post_up = '/c' }\n[named.other]";
        let options = load(text).expect("good");
        let (id, base) = (MeshId([1; 20]), &options.base);
        assert_eq!((base.port, base.interface.as_str()), (Some(51820), "sv-{name}"));
        let lab = options.of(id, "lab");
        assert_eq!((lab.port, lab.interface.as_str()), (Some(51821), "lab0"));
        assert_eq!(lab.endpoints, ["host.example:4500".parse().expect("a place")]);
        let words = |word: &str| Some(vec![word.to_owned()]);
        assert_eq!((&lab.hooks.pre_up, &lab.hooks.post_up), (&words("/a"), &words("/c")));
        assert_eq!(lab.hooks.timeout, Duration::from_secs(9));
        let other = options.of(id, "other");
        assert_eq!((other.port, &other.endpoints), (None, &base.endpoints));
        assert_eq!([options.port(id, "lab"), options.port(id, "campus")], [Some(51821), None]);
        assert_eq!(options.idle(&[(id, "lab")]).collect::<Vec<_>>(), ["other"]);
    }

    #[test]
    fn two_meshes_do_not_get_what_one_can_have() {
        let refused = |text| load(text).expect_err("refused").to_string();
        assert_eq!(
            refused("[named.a]\nipv4 = '10.9.0.0/16'\n[named.b]\nipv4 = '10.9.8.0/24'"),
            "mesh.named.b.ipv4 = 10.9.8.0/24: it overlaps mesh.named.a.ipv4 = 10.9.0.0/16"
        );
        assert!(refused("[named.a]\nport = 7\n[named.b]\nport = 7").contains("named.b.port = 7"));
        let id = MeshId([1; 20]);
        let maybe_one = format!("[named.a]\nport = 7\n[named.{id}]\nport = 7");
        assert!(load(&maybe_one).is_ok(), "both may be the same mesh");
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_key_and_value() {
        let refused = |text| load(text).expect_err("refused").to_string();
        assert_eq!(
            refused("[options]\nadvertise = ['192.168.7.1/24']"),
            "mesh.options.advertise = 192.168.7.1/24: the network is 192.168.7.0/24"
        );
        assert!(refused("[named.a]\nipv4 = 'fd00::/64'").starts_with("mesh.named.a.ipv4 = fd00:"));
        assert!(refused("[options]\nipv4 = '10.0.0.0/31'").contains("8 to 30 bits"));
        assert_eq!(
            refused("[options]\nmtu = 576"),
            "mesh.options.mtu = 576: IPv6 needs at least 1280"
        );
        assert!(refused("[named.a]\ninterface = 'a b'").starts_with("mesh.named.a.interface = "));
        assert!(
            refused("[options]\ninterface = 'all'").contains("{name}"),
            "all would be the same"
        );
        let many = "[named.a]\nendpoints = ['a.b', 'b.b', 'c.b', 'd.b', 'e.b']";
        assert_eq!(refused(many), "mesh.named.a.endpoints = 5 names: at most 4 fit");
    }
}
