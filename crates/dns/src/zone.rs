//! What is known of the names of some meshes, and what there is at a name.
//!
//! | name | records |
//! |---|---|
//! | `HOST.MESH.DOMAIN` | A, AAAA, TXT |
//! | `_SERVICE._PROTOCOL.MESH.DOMAIN` | SRV and TXT of all who offer it |
//! | `_SERVICE._PROTOCOL.HOST.MESH.DOMAIN` | SRV and TXT |
//! | `MESHID.HOST.smeg` | A, AAAA, TXT, if asked for |
//! | reverse names of overlay addresses | PTR |
//!
//! `HOST` is a member's name, a name that it shares with others, or its node id; `MESH` is a
//! mesh's name or its id.

use std::collections::BTreeMap;
use std::net::IpAddr;

use hickory_proto::rr::rdata::name::PTR;
use hickory_proto::rr::rdata::{NS, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData};
use selvedge_model::{MeshId, NodeId, Prefix};

use crate::names::{Claim, label, names};
use crate::service::{Protocol, Service};

/// The domain of all meshes unless another is chosen. `internal` is set aside for private use.
pub const DOMAIN: &str = "mesh.internal";
/// The top-level domain of the predecessor's names.
const LEGACY: &str = "smeg";
/// At most this many members are told of one name, the live ones first: they fit a message.
const MAX_HOSTS: usize = 128;
/// The longest text in a TXT record, in bytes (RFC 1035, section 3.3).
const MAX_TEXT: usize = 255;
/// How long the absence of a name may be remembered, in seconds.
const NEGATIVE_TTL: u32 = 5;

/// A mesh that is to have names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Its id.
    pub mesh: MeshId,
    /// What people call it.
    pub name: String,
    /// Its overlay prefixes.
    pub prefixes: Vec<Prefix>,
    /// Its members.
    pub hosts: Vec<Host>,
}

/// A member of a mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Who it is, and what it wants to be called.
    pub claim: Claim,
    /// Its overlay addresses.
    pub addresses: Vec<IpAddr>,
    /// What it offers.
    pub services: BTreeMap<String, String>,
    /// Whether it is there. Who is not keeps its own name, but does not answer to shared ones.
    pub live: bool,
}

/// How names are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The domain of all meshes.
    pub domain: String,
    /// Whether to answer to the predecessor's names, too.
    pub legacy: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { domain: DOMAIN.to_owned(), legacy: false }
    }
}

/// A text that is no domain for meshes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainError;

/// The domain's labels, if it is one that meshes can have: labels of letters, digits and hyphens,
/// 128 bytes at most.
///
/// # Errors
/// If it is none.
pub fn check_domain(domain: &str) -> Result<Vec<String>, DomainError> {
    let labels: Vec<_> = domain.trim_end_matches('.').split('.').map(str::to_lowercase).collect();
    let valid = labels.iter().all(|part| label(part).as_ref() == Some(part));
    // What stands before it has to fit as well.
    if valid && domain.len() <= 128 { Ok(labels) } else { Err(DomainError) }
}

/// The names of some meshes.
#[derive(Clone, Debug, Default)]
pub struct Zone {
    domain: Vec<String>,
    legacy: bool,
    meshes: Vec<Names>,
    /// The places of meshes by name and by id.
    labels: BTreeMap<String, usize>,
}

/// The names of one mesh.
#[derive(Clone, Debug)]
struct Names {
    /// Its label in the names that are answered with.
    label: String,
    prefixes: Vec<Prefix>,
    hosts: Vec<Entry>,
    /// Asked first: a node id means its node, whatever others are called.
    by_id: BTreeMap<NodeId, usize>,
    by_name: BTreeMap<String, Vec<usize>>,
    by_address: BTreeMap<IpAddr, usize>,
    by_service: BTreeMap<(Protocol, String), Vec<usize>>,
}

#[derive(Clone, Debug)]
struct Entry {
    name: String,
    addresses: Vec<IpAddr>,
    texts: Vec<String>,
    services: Vec<Service>,
    live: bool,
}

/// What there is at a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// It lies in none of the zones.
    Elsewhere,
    /// Nothing, not even a name below it. The zone is named.
    Nothing(Name),
    /// These records; none if there are only names below it. The zone is named.
    Records(Name, Vec<RData>),
}

impl Zone {
    /// The names of `sites`. A name that several meshes have belongs to none of them: these are
    /// told apart by their ids. A domain that is none makes a zone without names.
    #[must_use]
    pub fn new(sites: &[Site], options: &Options) -> Self {
        let Ok(domain) = check_domain(&options.domain) else { return Self::default() };
        let mut by_name: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (index, site) in sites.iter().enumerate() {
            // An id means its mesh, whatever others are called.
            let name = label(&site.name).filter(|name| name.parse::<MeshId>().is_err());
            if let Some(name) = name {
                by_name.entry(name).or_default().push(index);
            }
        }
        by_name.retain(|_, of| of.len() == 1);
        let mut labels: BTreeMap<_, _> =
            by_name.into_iter().filter_map(|(name, of)| Some((name, *of.first()?))).collect();
        let own: BTreeMap<_, _> = labels.iter().map(|(name, index)| (*index, name)).collect();
        let meshes = sites.iter().enumerate().map(|(index, site)| {
            let name = own.get(&index).map_or_else(|| site.mesh.to_string(), |&name| name.clone());
            Names::new(site, name)
        });
        let meshes = meshes.collect();
        labels.extend(sites.iter().enumerate().map(|(i, site)| (site.mesh.to_string(), i)));
        Self { domain, legacy: options.legacy, meshes, labels }
    }

    /// Whether somebody at `address` may ask: this host itself, and members of the meshes.
    #[must_use]
    pub fn serves(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_loopback() || self.prefixes().any(|prefix| prefix.contains(address))
    }

    /// What there is at a name. `labels` are in lower case.
    pub(crate) fn lookup(&self, labels: &[String]) -> Lookup {
        if let Some(below) = labels.strip_suffix(self.domain.as_slice())
            && !self.domain.is_empty()
        {
            return self.in_domain(below);
        }
        match labels {
            [below @ .., top] if self.legacy && top == LEGACY => self.in_legacy(below),
            _ => self.in_reverse(labels),
        }
    }

    fn in_domain(&self, below: &[String]) -> Lookup {
        let apex = name(&self.domain);
        let [below @ .., mesh] = below else { return apex_records(apex) };
        let Some(mesh) = self.mesh(mesh) else { return Lookup::Nothing(apex) };
        match mesh.records(below, &self.domain) {
            Some(records) => Lookup::Records(apex, records),
            None => Lookup::Nothing(apex),
        }
    }

    fn in_legacy(&self, below: &[String]) -> Lookup {
        let apex = name(&[LEGACY.to_owned()]);
        let records = match below {
            [] => return apex_records(apex),
            [host] => self.meshes.iter().any(|mesh| mesh.knows(host)).then(Vec::new),
            [mesh, host] => {
                self.mesh(mesh).and_then(|mesh| Some(mesh.host_records(mesh.hosts_of(host)?)))
            }
            _ => None,
        };
        match records {
            Some(records) => Lookup::Records(apex, records),
            None => Lookup::Nothing(apex),
        }
    }

    /// Reverse names are those of single addresses, and all names between these and the prefix.
    fn in_reverse(&self, labels: &[String]) -> Lookup {
        let Some(asked) = reverse_prefix(labels) else { return Lookup::Elsewhere };
        let within =
            |prefix: &&Prefix| prefix.len() <= asked.len() && prefix.contains(asked.addr());
        let Some(prefix) = self.prefixes().find(within) else { return Lookup::Elsewhere };
        let apex = reverse_apex(*prefix, labels);
        if usize::from(apex.num_labels()) == labels.len() {
            return apex_records(apex);
        }
        let mut found = self.meshes.iter().filter_map(|mesh| {
            let (_, index) = mesh.by_address.iter().find(|(addr, _)| asked.contains(**addr))?;
            let host = mesh.hosts.get(*index)?;
            let full = mesh.full_name(&host.name, &self.domain);
            Some(if asked.is_host() { vec![RData::PTR(PTR(full))] } else { Vec::new() })
        });
        match found.next() {
            Some(records) => Lookup::Records(apex, records),
            None => Lookup::Nothing(apex),
        }
    }

    fn mesh(&self, label: &str) -> Option<&Names> {
        self.meshes.get(*self.labels.get(label)?)
    }

    fn prefixes(&self) -> impl Iterator<Item = &Prefix> {
        self.meshes.iter().flat_map(|mesh| &mesh.prefixes)
    }
}

impl Names {
    fn new(site: &Site, label: String) -> Self {
        let named = names(site.hosts.iter().map(|host| &host.claim));
        let mut this = Self {
            label,
            prefixes: site.prefixes.iter().map(Prefix::network).collect(),
            hosts: Vec::new(),
            by_id: BTreeMap::new(),
            by_name: BTreeMap::new(),
            by_address: BTreeMap::new(),
            by_service: BTreeMap::new(),
        };
        for host in &site.hosts {
            let Some(named) = named.get(&host.claim.node) else { continue };
            this.add(host, &named.name, named.group.as_ref());
        }
        this
    }

    fn add(&mut self, host: &Host, name: &str, group: Option<&String>) {
        let index = self.hosts.len();
        let entry = Entry::new(host, name);
        self.by_id.insert(host.claim.node, index);
        for known in [Some(name.to_owned()), group.cloned()].into_iter().flatten() {
            self.by_name.entry(known).or_default().push(index);
        }
        for service in &entry.services {
            let key = (service.protocol, service.name.clone());
            self.by_service.entry(key).or_default().push(index);
        }
        self.by_address.extend(entry.addresses.iter().map(|address| (*address, index)));
        self.hosts.push(entry);
    }

    /// The records at a name within this mesh; `None` if there is no such name.
    fn records(&self, below: &[String], domain: &[String]) -> Option<Vec<RData>> {
        match below {
            [] => Some(Vec::new()),
            [protocol] if protocol.starts_with('_') => {
                let protocol = protocol_of(protocol)?;
                let offered = self.by_service.keys().any(|(known, _)| *known == protocol);
                offered.then(Vec::new)
            }
            [host] => Some(self.host_records(self.hosts_of(host)?)),
            [service, protocol] if protocol.starts_with('_') => {
                let key = (protocol_of(protocol)?, service.strip_prefix('_')?.to_owned());
                let offering = self.living(self.by_service.get(&key)?);
                Some(self.service_records(offering, &key, domain))
            }
            [protocol, host] => {
                let protocol = protocol_of(protocol)?;
                let offers = |entry: &&Entry| entry.services.iter().any(|s| s.protocol == protocol);
                self.hosts_of(host)?.iter().any(offers).then(Vec::new)
            }
            [service, protocol, host] => {
                let key = (protocol_of(protocol)?, service.strip_prefix('_')?.to_owned());
                let mut offering = self.hosts_of(host)?;
                offering.retain(|entry| entry.service(&key).is_some());
                let exists = !offering.is_empty();
                exists.then(|| self.service_records(offering, &key, domain))
            }
            _ => None,
        }
    }

    /// Who answers to a name: its owner, there or not, or the live ones that share it.
    fn hosts_of(&self, host: &str) -> Option<Vec<&Entry>> {
        match self.by_id(host) {
            Some(index) => self.hosts.get(index).map(|entry| vec![entry]),
            None => Some(self.living(self.by_name.get(host)?)),
        }
    }

    fn knows(&self, host: &str) -> bool {
        self.by_id(host).is_some() || self.by_name.contains_key(host)
    }

    fn by_id(&self, host: &str) -> Option<usize> {
        self.by_id.get(&host.parse().ok()?).copied()
    }

    /// Those of several that are there; all, if none is.
    fn living(&self, indices: &[usize]) -> Vec<&Entry> {
        let all: Vec<_> = indices.iter().filter_map(|index| self.hosts.get(*index)).collect();
        let mut live: Vec<_> = all.iter().copied().filter(|entry| entry.live).collect();
        if live.is_empty() {
            live = all;
        }
        live.truncate(MAX_HOSTS);
        live
    }

    fn host_records(&self, hosts: Vec<&Entry>) -> Vec<RData> {
        let address = |address: &IpAddr| match *address {
            IpAddr::V4(v4) => RData::A(v4.into()),
            IpAddr::V6(v6) => RData::AAAA(v6.into()),
        };
        let addresses = hosts.iter().flat_map(|entry| &entry.addresses).map(address);
        let texts = hosts.iter().filter_map(|entry| text(&entry.texts));
        addresses.chain(texts).collect()
    }

    fn service_records(
        &self,
        hosts: Vec<&Entry>,
        key: &(Protocol, String),
        domain: &[String],
    ) -> Vec<RData> {
        let offers = hosts.iter().filter_map(|entry| Some((entry, entry.service(key)?)));
        let records = offers.flat_map(|(entry, service)| {
            let target = self.full_name(&entry.name, domain);
            let srv = RData::SRV(SRV::new(0, 0, service.port, target));
            [Some(srv), text(&service.words)]
        });
        records.flatten().collect()
    }

    fn full_name(&self, host: &str, domain: &[String]) -> Name {
        let own = [host.to_owned(), self.label.clone()];
        name(&[own.as_slice(), domain].concat())
    }
}

impl Entry {
    fn new(host: &Host, name: &str) -> Self {
        let pairs = || host.services.iter();
        Self {
            name: name.to_owned(),
            addresses: host.addresses.clone(),
            texts: pairs().map(|(key, value)| format!("{key}={value}")).collect(),
            services: pairs().filter_map(|(key, value)| Service::parse(key, value)).collect(),
            live: host.live,
        }
    }

    fn service(&self, (protocol, name): &(Protocol, String)) -> Option<&Service> {
        self.services.iter().find(|known| known.protocol == *protocol && known.name == *name)
    }
}

/// A TXT record of all texts that fit; `None` if there are none.
fn text(texts: &[String]) -> Option<RData> {
    let fitting: Vec<_> = texts.iter().filter(|text| text.len() <= MAX_TEXT).cloned().collect();
    (!fitting.is_empty()).then(|| RData::TXT(TXT::new(fitting)))
}

fn protocol_of(label: &str) -> Option<Protocol> {
    label.strip_prefix('_')?.parse().ok()
}

/// The name of these labels. All labels here are valid, and bounded in number and length.
fn name(labels: &[String]) -> Name {
    let mut name = Name::from_labels(labels.iter().map(String::as_bytes)).unwrap_or_default();
    name.set_fqdn(true);
    name
}

fn apex_records(apex: Name) -> Lookup {
    let records = vec![soa(&apex), RData::NS(NS(apex.clone()))];
    Lookup::Records(apex, records)
}

/// The zone's start of authority. There are no secondaries, so the serial number is of no meaning.
pub(crate) fn soa(apex: &Name) -> RData {
    let mail = apex.prepend_label("hostmaster").unwrap_or_else(|_| apex.clone());
    RData::SOA(SOA::new(apex.clone(), mail, 1, 3600, 600, 86_400, NEGATIVE_TTL))
}

/// What a reverse name stands for: an address, or a network of whole labels.
fn reverse_prefix(labels: &[String]) -> Option<Prefix> {
    let [below @ .., kind, arpa] = labels else { return None };
    if arpa != "arpa" {
        return None;
    }
    let (bits, radix, count) = match kind.as_str() {
        "ip6" => (4_u8, 16, 32),
        "in-addr" => (8, 10, 4),
        _ => return None,
    };
    if below.len() > count {
        return None;
    }
    let mut number = 0_u128;
    for part in below.iter().rev() {
        let canonical = part == "0" || !part.starts_with('0');
        let digit = u128::from_str_radix(part, radix).ok().filter(|_| canonical)?;
        if digit >> bits != 0 || part.starts_with('+') {
            return None;
        }
        number = number << bits | digit;
    }
    let len = bits * u8::try_from(below.len()).ok()?;
    let rest = bits * u8::try_from(count - below.len()).ok()?;
    let number = number.checked_shl(u32::from(rest)).unwrap_or(0);
    let address = match kind.as_str() {
        "ip6" => IpAddr::from(number.to_be_bytes()),
        _ => IpAddr::from(u32::try_from(number).ok()?.to_be_bytes()),
    };
    Prefix::new(address, len)
}

/// The zone of a reverse name within `prefix`: as many whole labels as cover the prefix.
fn reverse_apex(prefix: Prefix, labels: &[String]) -> Name {
    let bits = if prefix.addr().is_ipv6() { 4 } else { 8 };
    let kept = usize::from(prefix.len().div_ceil(bits)) + 2;
    name(&labels[labels.len().saturating_sub(kept)..])
}

#[cfg(test)]
#[path = "zone_tests.rs"]
mod tests;
