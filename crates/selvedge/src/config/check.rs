use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use selvedge_gateway::NodeRole;
use selvedge_host::inventory::{NamePattern, Names, ParsePatternError};
use selvedge_model::{NodeName, Vni, VniRanges};
use selvedge_store::embedded::{Address, AddressError};
use zeroize::Zeroizing;

use super::file::{
    EtcdFile, FabricName, File, FrrFile, GatewayFile, MeshFile, NetworkFile, RingId,
};
use super::{
    Config, ConfigError, EtcdConfig, EtcdTls, FabricConfig, GatewayConfig, Ids, LOG, MeshConfig,
    NetworkConfig, OptionsFile, SOCKET, STATE, Secret, StoreConfig, detection, dns, health, hooks,
    options, ra, vxlan,
};

/// The longest name of an interface (IFNAMSIZ less the closing zero).
const INTERFACE_MAX: usize = 15;
/// The longest path of a Unix socket (`sun_path` less the closing zero).
const SOCKET_MAX: usize = 107;
/// The places on the ring unless the configuration says otherwise.
const ID_COUNT: usize = 100;

/// How many places may be named at which members may be found.
const MAX_BOOTSTRAP: usize = 16;

pub(super) type Result<T, E = ConfigError> = std::result::Result<T, E>;

impl TryFrom<File> for Config {
    type Error = ConfigError;

    fn try_from(file: File) -> Result<Self> {
        if file.mesh.is_none() && file.gateway.is_none() && file.vxlan.is_none() {
            return Err(missing(
                "[mesh] or [gateway]",
                "neither plane is enabled; write a section, or give --mesh or --networks",
            ));
        }
        let name = file.name.map_or_else(own_name, Ok)?;
        let state = file.state.unwrap_or_else(|| STATE.into());
        let socket = socket("socket", file.socket.unwrap_or_else(|| SOCKET.into()))?;
        let log = log(file.log.unwrap_or_else(|| LOG.to_owned()))?;
        let mesh = file.mesh.map(|mesh| mesh_config(mesh, &name, &state)).transpose()?;
        let vxlan = file.vxlan.map(|it| vxlan::vxlan(it, mesh.is_some(), file.gateway.as_ref()));
        let vxlan = vxlan.transpose()?;
        let over_mesh = vxlan.is_some();
        let gateway = file.gateway.map(|it| gateway_config(it, &name, &state, over_mesh));
        let gateway = gateway.transpose()?;
        let socket_group = file.socket_group;
        Ok(Self { name, state, socket, socket_group, log, mesh, gateway, vxlan })
    }
}

fn mesh_config(file: MeshFile, name: &NodeName, state: &Path) -> Result<MeshConfig> {
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 7654));
    let mtu = file.mtu.map(|bytes| options::mtu("mesh.mtu", bytes)).transpose()?;
    let base = file.options.unwrap_or_default();
    let base = OptionsFile {
        mtu: base.mtu.or(mtu),
        port: base.port.or(file.port),
        interface: base.interface.clone().or(file.interface),
        endpoints: base.endpoints.clone().or(file.endpoints),
        hooks: base.hooks.clone().or(file.hooks),
        ..base
    };
    let bootstrap = file.bootstrap.unwrap_or_default();
    if let Some(bad) = bootstrap.iter().find(|place| !is_place(place)) {
        let expected = "expected an address or a name, with a port, such as 192.0.2.1:7654";
        return Err(value("mesh.bootstrap", format!("{bad:?}"), expected));
    }
    if bootstrap.len() > MAX_BOOTSTRAP {
        let found = format!("{} addresses", bootstrap.len());
        return Err(value("mesh.bootstrap", found, format!("at most {MAX_BOOTSTRAP} are tried")));
    }
    Ok(MeshConfig {
        name: name.clone(),
        state: state.to_owned(),
        listen: file.listen.unwrap_or(any),
        bootstrap,
        record: file.record,
        wireguard: file.wireguard.unwrap_or_default(),
        options: options::options(&base, &file.named.unwrap_or_default())?,
        dns: file.dns.as_ref().map(dns::dns).transpose()?,
    })
}

/// Whether an agent may be found there: an address or a name, and a port.
fn is_place(place: &str) -> bool {
    if let Ok(at) = place.parse::<SocketAddr>() {
        return !at.ip().is_unspecified() && !at.ip().is_multicast() && at.port() != 0;
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || ".-".contains(c);
    place.rsplit_once(':').is_some_and(|(name, port)| {
        let port = port.parse::<u16>().is_ok_and(|port| port != 0);
        port && (1..=253).contains(&name.len()) && name.chars().all(allowed)
    })
}

fn gateway_config(
    file: GatewayFile,
    name: &NodeName,
    state: &Path,
    over_mesh: bool,
) -> Result<GatewayConfig> {
    let role = file.role.unwrap_or_default();
    let networks = networks(&file, role)?;
    let fabric = match role {
        NodeRole::Gateway => fabric(&file, over_mesh)?,
        NodeRole::Witness => FabricConfig::Dry,
    };
    let given = (file.bridge.as_deref(), file.vxlan.as_deref());
    let (bridge, vxlan) = interfaces("gateway", given, &networks)?;
    let times = Times::of(&file)?;
    let probe = file.probe.clone().unwrap_or_default();
    let health = file.health.clone().unwrap_or_default();
    let own = file.network.iter().filter_map(|network| Some((network.vni, network.ra.as_ref()?)));
    Ok(GatewayConfig {
        name: name.clone(),
        state: state.to_owned(),
        role,
        store: store(&file)?,
        ids: ids(file.ids.clone(), file.id_count)?,
        lease: times.lease,
        budget: positive("gateway.budget", file.budget.unwrap_or(10))?,
        settle: times.settle,
        announce: times.announce,
        hold_down: times.hold_down,
        damping: health::damping(&health)?,
        drain_timeout: times.drain,
        probe: detection::probe(&probe, file.dry == Some(true))?,
        timing: detection::timing(&probe, times.lease)?,
        isolated: file.isolated.unwrap_or_default().into(),
        health: health::checks(&health, &fabric, names("gateway", &bridge, &vxlan)?)?,
        ra: ra::settings(&file.ra.clone().unwrap_or_default(), own)?,
        hooks: hooks::hooks(&file.hooks.clone().unwrap_or_default())?,
        fabric,
        known: known(file.network, &networks)?,
        networks,
        bridge,
        vxlan,
    })
}

/// The networks; a witness has none, nor anything else that only who serves has.
fn networks(file: &GatewayFile, role: NodeRole) -> Result<VniRanges> {
    if role == NodeRole::Gateway {
        return file.networks.clone().ok_or_else(|| {
            missing("gateway.networks", "the networks that the gateways share, such as \"1-100\"")
        });
    }
    let given = [
        ("networks", file.networks.is_some()),
        ("fabric", file.fabric.is_some()),
        ("flood", file.flood.is_some()),
        ("frr", file.frr.is_some()),
        ("ids", file.ids.is_some()),
        ("id_count", file.id_count.is_some()),
        ("health", file.health.is_some()),
        ("ra", file.ra.is_some()),
        ("hooks", file.hooks.is_some()),
        ("network", !file.network.is_empty()),
    ];
    match given.iter().find(|(_, is_given)| *is_given) {
        Some((key, _)) => Err(value(
            "gateway.role",
            "\"witness\"",
            format!("a witness serves no networks; leave gateway.{key} out"),
        )),
        None => Ok(VniRanges::from_iter([])),
    }
}

pub(super) fn names(section: &str, bridge: &str, vxlan: &str) -> Result<Names> {
    let pattern = |key: &str, text: &str| -> Result<NamePattern> {
        let key = format!("{section}.{key}");
        text.parse().map_err(|error: ParsePatternError| value(&key, format!("{text:?}"), error))
    };
    let (bridge, vxlan) = (pattern("bridge", bridge)?, pattern("vxlan", vxlan)?);
    Ok(Names { bridge, vxlan })
}

struct Times {
    lease: Duration,
    settle: Duration,
    announce: Duration,
    hold_down: Duration,
    drain: Duration,
}

impl Times {
    fn of(file: &GatewayFile) -> Result<Self> {
        let day = 24 * 3600;
        let lease = within("gateway.lease_s", file.lease_s, 3, (2, 3600))?;
        let settle = within("gateway.settle_ms", file.settle_ms, 400, (0, 600_000))?;
        let announce = within("gateway.announce_s", file.announce_s, 10, (1, 3600))?;
        let hold = within("gateway.hold_down_s", file.hold_down_s, 10, (0, day))?;
        let drain = within("gateway.drain_timeout_s", file.drain_timeout_s, 60, (0, day))?;
        Ok(Self {
            lease: Duration::from_secs(lease),
            settle: Duration::from_millis(settle),
            announce: Duration::from_secs(announce),
            hold_down: Duration::from_secs(hold),
            drain: Duration::from_secs(drain),
        })
    }
}

/// The patterns of the interfaces' names that are `given` in a section, or else the usual ones.
pub(super) fn interfaces(
    section: &str,
    given: (Option<&str>, Option<&str>),
    networks: &VniRanges,
) -> Result<(String, String)> {
    let longest = networks.to_set().last().map(Vni::to_string).unwrap_or_default();
    let bridge = given.0.unwrap_or("br{vni}").to_owned();
    let vxlan = given.1.unwrap_or("vxlan{vni}").to_owned();
    pattern(&format!("{section}.bridge"), &bridge, "{vni}", &longest)?;
    pattern(&format!("{section}.vxlan"), &vxlan, "{vni}", &longest)?;
    Ok((bridge, vxlan))
}

/// A name of interfaces must hold its placeholder once, and be short enough even with the
/// longest text in its place.
pub(super) fn pattern(key: &str, text: &str, placeholder: &str, longest: &str) -> Result<()> {
    let wrong = |reason: String| Err(value(key, format!("{text:?}"), reason));
    if text.matches(placeholder).count() != 1 {
        return wrong(format!("expected a name with {placeholder} in it, once"));
    }
    let name = text.replace(placeholder, longest);
    if name.len() > INTERFACE_MAX {
        return wrong(format!("{name:?} is longer than the {INTERFACE_MAX} bytes of an interface"));
    }
    if name.bytes().any(|b| b == b'/' || !b.is_ascii_graphic()) {
        return wrong("interfaces have no spaces, slashes or letters outside ASCII".to_owned());
    }
    Ok(())
}

fn ids(given: Option<Vec<RingId>>, count: Option<usize>) -> Result<Ids> {
    match (given, count) {
        (Some(_), Some(count)) => {
            Err(value("gateway.id_count", count, "gateway.ids gives the ids already"))
        }
        (Some(ids), None) if ids.is_empty() => {
            Err(value("gateway.ids", "[]", "a gateway needs at least one place on the ring"))
        }
        (Some(ids), None) => Ok(Ids::Given(ids.into_iter().map(|id| id.0).collect())),
        (None, count) => Ok(Ids::Derived(positive("gateway.id_count", count.unwrap_or(ID_COUNT))?)),
    }
}

fn known(files: Vec<NetworkFile>, networks: &VniRanges) -> Result<BTreeMap<Vni, NetworkConfig>> {
    let mut known = BTreeMap::new();
    for NetworkFile { vni, addresses, next_hops, ra: _ } in files {
        if !networks.contains(vni) {
            let reason = format!("it is not among gateway.networks = \"{networks}\"");
            return Err(value("gateway.network.vni", vni, reason));
        }
        if let Some(host) = addresses.iter().find(|prefix| prefix.is_host()) {
            let reason = "expected the length of the network's prefix, such as /24";
            return Err(value("gateway.network.addresses", host, reason));
        }
        if known.insert(vni, NetworkConfig { addresses, next_hops }).is_some() {
            return Err(value("gateway.network.vni", vni, "it is described twice"));
        }
    }
    Ok(known)
}

fn store(file: &GatewayFile) -> Result<StoreConfig> {
    match (&file.etcd, &file.embedded) {
        (Some(etcd), None) => etcd_config(etcd).map(StoreConfig::Etcd),
        (None, Some(embedded)) => embedded_address(&embedded.address).map(StoreConfig::Embedded),
        (Some(_), Some(embedded)) => {
            let key = "gateway.embedded.address";
            Err(value(key, format!("{:?}", embedded.address), "gateway.etcd is given too; choose"))
        }
        (None, None) => Err(missing(
            "gateway.etcd",
            "the store that the gateways share; give --etcd URL, or --embedded ADDRESS",
        )),
    }
}

fn embedded_address(text: &str) -> Result<Address> {
    let key = "gateway.embedded.address";
    let address =
        text.parse().map_err(|error: AddressError| value(key, format!("{text:?}"), error))?;
    if let Address::Unix(path) = &address {
        socket(key, path.clone())?;
    }
    Ok(address)
}

fn etcd_config(file: &EtcdFile) -> Result<EtcdConfig> {
    let endpoints = &file.endpoints;
    if endpoints.is_empty() {
        return Err(missing("gateway.etcd.endpoints", "such as [\"http://localhost:2379\"]"));
    }
    for endpoint in endpoints {
        endpoint_url(endpoint)?;
    }
    let secure = endpoints.iter().filter(|url| url.starts_with("https://")).count();
    if secure != 0 && secure != endpoints.len() {
        let list = format!("{endpoints:?}");
        return Err(value("gateway.etcd.endpoints", list, "some are https and some are not"));
    }
    Ok(EtcdConfig { endpoints: endpoints.clone(), tls: tls(file, secure != 0)?, auth: auth(file)? })
}

fn endpoint_url(url: &str) -> Result<()> {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let authority = rest.map(|rest| rest.strip_suffix('/').unwrap_or(rest)).unwrap_or_default();
    let port = authority.rsplit_once(':').and_then(|(host, port)| {
        let host = !host.is_empty() && !host.contains(['/', '@', '?', ' ']);
        host.then(|| port.parse::<u16>().ok()).flatten()
    });
    match port {
        Some(_) => Ok(()),
        None => Err(value(
            "gateway.etcd.endpoints",
            format!("{url:?}"),
            "expected a URL with a port, such as http://localhost:2379",
        )),
    }
}

fn tls(file: &EtcdFile, secure: bool) -> Result<Option<EtcdTls>> {
    let given = [("ca", &file.ca), ("cert", &file.cert), ("key", &file.key)];
    if !secure {
        return match given.iter().find_map(|(key, path)| path.as_ref().map(|path| (key, path))) {
            Some((key, path)) => Err(value(
                &format!("gateway.etcd.{key}"),
                format!("{:?}", path),
                "the endpoints are http; write https, or leave it out",
            )),
            None => Ok(None),
        };
    }
    let ca = file.ca.as_deref().ok_or_else(|| {
        missing("gateway.etcd.ca", "the authority that signed the servers' certificates (PEM)")
    })?;
    let identity = match (&file.cert, &file.key) {
        (Some(cert), Some(key)) => Some((
            read("gateway.etcd.cert", cert)?.as_bytes().to_vec(),
            Secret(read("gateway.etcd.key", key)?),
        )),
        (None, None) => None,
        (Some(_), None) => return Err(missing("gateway.etcd.key", "gateway.etcd.cert needs it")),
        (None, Some(_)) => return Err(missing("gateway.etcd.cert", "gateway.etcd.key needs it")),
    };
    Ok(Some(EtcdTls { ca: read("gateway.etcd.ca", ca)?.as_bytes().to_vec(), identity }))
}

fn auth(file: &EtcdFile) -> Result<Option<(String, Secret)>> {
    match (&file.user, &file.password_file) {
        (Some(user), Some(path)) => {
            let text = read("gateway.etcd.password_file", path)?;
            let password = Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned());
            Ok(Some((user.clone(), Secret(password))))
        }
        (None, None) => Ok(None),
        (Some(_), None) => Err(missing("gateway.etcd.password_file", "gateway.etcd.user needs it")),
        (None, Some(_)) => Err(missing("gateway.etcd.user", "gateway.etcd.password_file needs it")),
    }
}

fn read(key: &str, path: &Path) -> Result<Zeroizing<String>> {
    std::fs::read_to_string(path)
        .map(Zeroizing::new)
        .map_err(|error| value(key, format!("{path:?}"), format!("cannot read it: {error}")))
}

fn fabric(file: &GatewayFile, over_mesh: bool) -> Result<FabricConfig> {
    if file.dry == Some(true) {
        return Ok(FabricConfig::Dry);
    }
    match file.fabric.unwrap_or(FabricName::Frr) {
        FabricName::Flood => {
            let flood = file.flood.clone().ok_or_else(|| {
                missing("gateway.flood", "fabric flood needs `uplink` and `endpoints` there")
            })?;
            interface("gateway.flood.uplink", &flood.uplink)?;
            let endpoints = endpoints(flood.endpoints, over_mesh)?;
            Ok(FabricConfig::Flood { uplink: flood.uplink, endpoints })
        }
        FabricName::Frr => {
            let FrrFile { vty_dir, pathspace, asn } = file.frr.clone().unwrap_or_default();
            if asn == Some(0) {
                return Err(value("gateway.frr.asn", 0, "expected 1 to 4294967295"));
            }
            let vty_dir = vty_dir.unwrap_or_else(|| "/var/run/frr".into());
            Ok(FabricConfig::Frr { vty_dir, pathspace, asn })
        }
    }
}

/// The other tunnel endpoints, unless a mesh tells them.
fn endpoints(given: Option<Vec<IpAddr>>, over_mesh: bool) -> Result<Option<Vec<IpAddr>>> {
    let key = "gateway.flood.endpoints";
    match (given, over_mesh) {
        (None, false) => Err(missing(key, "the addresses of the other tunnel endpoints")),
        (Some(given), true) => {
            let reason = "with [vxlan], the members of the mesh tell them; leave it out";
            Err(value(key, format!("{given:?}"), reason))
        }
        (given, _) => Ok(given),
    }
}

pub(super) fn interface(key: &str, name: &str) -> Result<()> {
    let short = (1..=INTERFACE_MAX).contains(&name.len());
    match short && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/') {
        true => Ok(()),
        false => Err(value(key, format!("{name:?}"), "expected the name of an interface")),
    }
}

fn socket(key: &str, path: PathBuf) -> Result<PathBuf> {
    match path.as_os_str().len() <= SOCKET_MAX {
        true => Ok(path),
        false => {
            let reason = format!("the path of a socket has at most {SOCKET_MAX} bytes");
            Err(value(key, format!("{path:?}"), reason))
        }
    }
}

fn log(filter: String) -> Result<String> {
    match tracing_subscriber::EnvFilter::try_new(&filter) {
        Ok(_) => Ok(filter),
        Err(error) => Err(value("log", format!("{filter:?}"), error)),
    }
}

fn own_name() -> Result<NodeName> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    host.trim()
        .parse()
        .map_err(|error| missing("name", format!("and the name of this host does not do: {error}")))
}

/// The number that was given, or else `default`; an error unless it lies within `range`.
pub(super) fn within(
    key: &str,
    given: Option<u64>,
    default: u64,
    (min, max): (u64, u64),
) -> Result<u64> {
    let number = given.unwrap_or(default);
    match (min..=max).contains(&number) {
        true => Ok(number),
        false => Err(value(key, number, format!("expected {min} to {max}"))),
    }
}

fn positive(key: &str, number: usize) -> Result<usize> {
    match number {
        0 => Err(value(key, 0, "expected 1 or more")),
        1.. => Ok(number),
    }
}

pub(super) fn value(key: &str, value: impl fmt::Display, reason: impl fmt::Display) -> ConfigError {
    ConfigError::Value { key: key.to_owned(), value: value.to_string(), reason: reason.to_string() }
}

pub(super) fn missing(key: &str, reason: impl fmt::Display) -> ConfigError {
    ConfigError::Missing { key: key.to_owned(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::OptionsByMesh;
    use crate::config::WireGuard;

    const GATEWAY: &str = "name = 'gw1'\n[gateway]\nnetworks = '1-3'\n";
    const ETCD: &str = "[gateway.etcd]\nendpoints = ['http://localhost:2379']\n";

    fn load(text: &str) -> Result<Config> {
        File::parse(text, "test")?.try_into()
    }

    fn refused(text: &str) -> String {
        load(text).expect_err("refused").to_string()
    }

    fn gateway(keys: &str) -> String {
        refused(&format!("{GATEWAY}{keys}\n{ETCD}"))
    }

    #[test]
    fn a_few_keys_are_enough() {
        let config = load(&format!("{GATEWAY}{ETCD}[mesh]")).expect("complete");
        assert_eq!(config.state, Path::new(STATE));
        assert_eq!(config.socket, Path::new(SOCKET));
        let mesh = config.mesh.expect("enabled");
        assert_eq!(mesh.listen.to_string(), "[::]:7654");
        assert_eq!(mesh.wireguard, WireGuard::Auto);
        assert_eq!(mesh.options, OptionsByMesh::default());
        let gateway = config.gateway.expect("enabled");
        assert_eq!(gateway.ids, Ids::Derived(100));
        assert_eq!(gateway.lease, Duration::from_secs(3));
        let frr = FabricConfig::Frr { vty_dir: "/var/run/frr".into(), pathspace: None, asn: None };
        assert_eq!(gateway.fabric, frr);
    }

    #[test]
    fn values_are_refused_by_key_and_value() {
        let cases = [
            ("lease_s = 1", "gateway.lease_s = 1: expected 2 to 3600"),
            ("announce_s = 0", "gateway.announce_s = 0: expected 1 to 3600"),
            ("budget = 0", "gateway.budget = 0: expected 1 or more"),
            ("ids = []", "gateway.ids = []: a gateway needs at least one place on the ring"),
            ("ids = [1]\nid_count = 5", "gateway.id_count = 5: gateway.ids gives the ids already"),
            ("bridge = 'br'", "gateway.bridge = \"br\": expected a name with {vni} in it, once"),
            (
                "vxlan = 'vxlan-of-campus{vni}'",
                "gateway.vxlan = \"vxlan-of-campus{vni}\": \"vxlan-of-campus3\" is longer than \
                 the 15 bytes of an interface",
            ),
            (
                "[[gateway.network]]\nvni = 9",
                "gateway.network.vni = 9: it is not among gateway.networks = \"1-3\"",
            ),
            (
                "[[gateway.network]]\nvni = 1\n[[gateway.network]]\nvni = 1",
                "gateway.network.vni = 1: it is described twice",
            ),
            (
                "[[gateway.network]]\nvni = 1\naddresses = ['10.0.0.1/32']",
                "gateway.network.addresses = 10.0.0.1/32: expected the length of the network's \
                 prefix, such as /24",
            ),
            (
                "fabric = 'flood'",
                "gateway.flood is missing: fabric flood needs `uplink` and `endpoints` there",
            ),
            ("[gateway.frr]\nasn = 0", "gateway.frr.asn = 0: expected 1 to 4294967295"),
        ];
        for (keys, expected) in cases {
            assert_eq!(gateway(keys), expected, "{keys}");
        }
    }

    #[test]
    fn a_witness_needs_a_store_and_no_more() {
        let witness = format!("name = 'w'\n[gateway]\nrole = 'witness'\n{ETCD}");
        let config = load(&witness).expect("complete").gateway.expect("enabled");
        assert_eq!((config.role, config.fabric), (NodeRole::Witness, FabricConfig::Dry));
        assert!(config.networks.to_set().is_empty() && !config.health.bridges);
        for (key, given) in [
            ("networks", "networks = '1'"),
            ("id_count", "id_count = 3"),
            ("ra", "[gateway.ra]"),
            ("network", "[[gateway.network]]\nvni = 1"),
        ] {
            let text = format!("name = 'w'\n[gateway]\nrole = 'witness'\n{given}\n{ETCD}");
            let expected = format!(
                "gateway.role = \"witness\": a witness serves no networks; leave gateway.{key} out"
            );
            assert_eq!(refused(&text), expected);
        }
    }

    #[test]
    fn all_sections_arrive() {
        let text = format!(
            "{GATEWAY}isolated = 'serve'\n{ETCD}\
             [gateway.probe]\nlisten = '[::]:9'\nfence_ms = 900\n\
             [gateway.health]\nroutes = false\n\
             [gateway.ra]\nlifetime_s = 900\n\
             [gateway.hooks]\ntake_over = '/x'\n\
             [[gateway.network]]\nvni = 2\nra = {{ send = false }}\n"
        );
        let config = load(&text).expect("complete").gateway.expect("enabled");
        assert_eq!(config.isolated, selvedge_gateway::Isolated::Serve);
        assert_eq!((config.role, config.probe.listen.port()), (NodeRole::Gateway, 9));
        assert_eq!(config.timing.fence, Duration::from_millis(900));
        assert_eq!(config.timing.lease, config.lease);
        assert!(config.health.adverts && !config.health.routes);
        let [one, two] = [1, 2].map(|vni: u32| config.ra.of(vni.try_into().expect("a VNI")));
        assert_eq!((one.lifetime, one.send, two.send), (Duration::from_secs(900), true, false));
        assert_eq!(two.lifetime, one.lifetime);
        assert_eq!(config.hooks.take_over, Some(vec!["/x".to_owned()]));
    }

    #[test]
    fn stores_are_refused_by_key_and_value() {
        let cases = [
            (
                "",
                "gateway.etcd is missing: the store that the gateways share; give --etcd URL, or \
                 --embedded ADDRESS",
            ),
            (
                "[gateway.etcd]",
                "gateway.etcd.endpoints is missing: such as [\"http://localhost:2379\"]",
            ),
            (
                "[gateway.etcd]\nendpoints = ['localhost:2379']",
                "gateway.etcd.endpoints = \"localhost:2379\": expected a URL with a port, such \
                 as http://localhost:2379",
            ),
            (
                "[gateway.etcd]\nendpoints = ['https://a:1']",
                "gateway.etcd.ca is missing: the authority that signed the servers' \
                 certificates (PEM)",
            ),
            (
                "[gateway.etcd]\nendpoints = ['http://a:1']\nca = 'ca.pem'",
                "gateway.etcd.ca = \"ca.pem\": the endpoints are http; write https, or leave it out",
            ),
            (
                "[gateway.etcd]\nendpoints = ['http://a:1']\nuser = 'u'",
                "gateway.etcd.password_file is missing: gateway.etcd.user needs it",
            ),
            (
                "[gateway.etcd]\nendpoints=['http://a:1']\nuser='u'\npassword_file='/nowhere/x'",
                "gateway.etcd.password_file = \"/nowhere/x\": cannot read it: No such file or \
                 directory (os error 2)",
            ),
            (
                "[gateway.embedded]\naddress = '/run/x'",
                "gateway.embedded.address = \"/run/x\": \"/run/x\" is not the address of a store: \
                 expected unix:/path or tcp:ip:port",
            ),
        ];
        for (keys, expected) in cases {
            assert_eq!(refused(&format!("{GATEWAY}{keys}")), expected, "{keys}");
        }
    }

    #[test]
    fn the_rest_is_refused_by_key_and_value() {
        let cases = [
            (
                "",
                "[mesh] or [gateway] is missing: neither plane is enabled; write a section, or \
                 give --mesh or --networks",
            ),
            ("[mesh]\nmtu = 576", "mesh.mtu = 576: IPv6 needs at least 1280"),
            ("[mesh]\nendpoints = ['::']", "mesh.endpoints = ::: nobody can reach a node there"),
            (
                "[mesh]\ninterface = 'sv'",
                "mesh.interface = \"sv\": expected a name with {name} in it, once",
            ),
            (
                "[gateway]",
                "gateway.networks is missing: the networks that the gateways share, such as \
                 \"1-100\"",
            ),
        ];
        for (keys, expected) in cases {
            assert_eq!(refused(&format!("name = 'n'\n{keys}")), expected, "{keys}");
        }
        let long = format!("socket = '/{}'\n[mesh]", "x".repeat(107));
        assert!(refused(&long).ends_with("the path of a socket has at most 107 bytes"));
        assert!(refused("log = 'a=b=c'\n[mesh]").starts_with("log = \"a=b=c\": "));
    }

    #[test]
    fn members_are_looked_for_at_addresses_and_names_with_ports() {
        let places = "'192.0.2.1:7654', '[2001:db8::1]:7654', 'mesh.example.org:7654'";
        let config = load(&format!("name = 'n'\n[mesh]\nbootstrap = [{places}]"));
        assert_eq!(config.expect("good").mesh.expect("enabled").bootstrap.len(), 3);
        for bad in ["192.0.2.1", "0.0.0.0:7654", "192.0.2.1:0", "a b:7654", "a:0", ":7654", ""] {
            let error = refused(&format!("name = 'n'\n[mesh]\nbootstrap = ['{bad}']"));
            assert!(error.starts_with(&format!("mesh.bootstrap = {bad:?}: expected")), "{error}");
        }
        let many = vec!["'a:1'"; MAX_BOOTSTRAP + 1].join(",");
        let error = refused(&format!("name = 'n'\n[mesh]\nbootstrap = [{many}]"));
        assert_eq!(error, "mesh.bootstrap = 17 addresses: at most 16 are tried");
    }

    #[test]
    fn secrets_are_read_and_not_shown() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("password");
        std::fs::write(&path, "hunter2\n").expect("writes");
        let text = format!("{GATEWAY}{ETCD}user = 'root'\npassword_file = {path:?}\n");
        let gateway = load(&text).expect("complete").gateway.expect("enabled");
        let StoreConfig::Etcd(etcd) = gateway.store else { panic!("not etcd") };
        assert!(!format!("{etcd:?}").contains("hunter2"));
        let (user, Secret(password)) = etcd.auth.expect("given");
        assert_eq!((user.as_str(), password.as_str()), ("root", "hunter2"));
    }
}
