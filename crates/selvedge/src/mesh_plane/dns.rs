//! Answers to questions for names, at the overlay address of each mesh and at one loopback
//! address. A task beside the plane: it looks at the members again when something has happened in
//! a mesh, and keeps the servers that there should be.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use selvedge_api::mesh::{Dns, Hookup, Listener};
use selvedge_dns::{Options, Server, Zone};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::MeshHandle;
use super::resolved::{Link, Resolved, reverse_domain};
use super::view::Seen;
use crate::config::DnsConfig;

/// How long news are collected before the names are made anew.
const COLLECT: Duration = Duration::from_millis(250);
/// How often what failed is tried again, and what may have changed unseen is looked at.
const AGAIN: Duration = Duration::from_secs(5);

/// Answers until `shutdown`. With `overlay`, at the overlay addresses too: there are none if the
/// host is not touched.
pub(super) async fn run(
    config: DnsConfig,
    handle: MeshHandle,
    status: watch::Sender<Dns>,
    overlay: bool,
    shutdown: CancellationToken,
) {
    let keeper = Keeper::new(config, status, overlay);
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = keeper.run(&handle) => {}
    }
}

/// Where answers are given, and on which interface that address is.
type Places = BTreeMap<SocketAddr, Option<String>>;

struct Keeper {
    config: DnsConfig,
    status: watch::Sender<Dns>,
    overlay: bool,
    resolved: Resolved,
    zones: watch::Sender<Arc<Zone>>,
    servers: JoinSet<()>,
    running: BTreeMap<SocketAddr, AbortHandle>,
    problems: BTreeMap<SocketAddr, String>,
    /// What systemd-resolved was told, by the index of the link that it was told of.
    told: BTreeMap<String, (u32, Link)>,
    refusals: BTreeMap<String, String>,
}

impl Keeper {
    fn new(config: DnsConfig, status: watch::Sender<Dns>, overlay: bool) -> Self {
        let zones = watch::Sender::new(Arc::new(Zone::default()));
        let (servers, running, problems, told, refusals) = Default::default();
        let resolved = Resolved::default();
        Self {
            config,
            status,
            overlay,
            resolved,
            zones,
            servers,
            running,
            problems,
            told,
            refusals,
        }
    }

    async fn run(mut self, handle: &MeshHandle) {
        let mut news = handle.watch();
        // Ends with the plane.
        while let Ok(seen) = handle.sites().await {
            self.converge(&seen).await;
            if timeout(AGAIN, news.next()).await.is_ok() {
                sleep(COLLECT).await;
                // What has come meanwhile is seen at once.
                news = handle.watch();
            }
        }
    }

    async fn converge(&mut self, seen: &[Seen]) {
        let sites: Vec<_> = seen.iter().map(|seen| seen.site.clone()).collect();
        let options =
            Options { domain: self.config.domain.clone(), legacy: self.config.smeg_names };
        self.zones.send_replace(Arc::new(Zone::new(&sites, &options)));
        let places = self.places(seen);
        self.serve(&places).await;
        let hookup = self.hook(seen).await;
        self.report(&places, hookup);
    }

    fn places(&self, seen: &[Seen]) -> Places {
        let listen = self.config.listen;
        let overlay = seen.iter().filter(|_| self.overlay);
        let overlay = overlay.map(|seen| {
            (SocketAddr::new(seen.address, listen.port()), Some(seen.interface.clone()))
        });
        std::iter::once((listen, None)).chain(overlay).collect()
    }

    /// Starts the servers that are missing and ends those that nobody wants.
    async fn serve(&mut self, places: &Places) {
        while self.servers.try_join_next().is_some() {}
        let unwanted =
            |at: &SocketAddr, task: &AbortHandle| !places.contains_key(at) || task.is_finished();
        self.running
            .extract_if(.., |at, task| unwanted(at, task))
            .for_each(|(_, task)| task.abort());
        self.problems.retain(|at, _| places.contains_key(at));
        for at in places.keys() {
            if self.running.contains_key(at) {
                continue;
            }
            match Server::bind(*at).await {
                Ok(server) => {
                    let task = self.servers.spawn(server.run(self.zones.subscribe()));
                    self.running.insert(*at, task);
                    self.problems.remove(at);
                    info!(address = %at, "answering DNS questions");
                }
                Err(error) => self.note(*at, error.to_string()),
            }
        }
    }

    /// An address may be a moment behind its mesh: only what lasts is told.
    fn note(&mut self, at: SocketAddr, problem: String) {
        if self.problems.get(&at) == Some(&problem) {
            return;
        }
        warn!(problem, "no DNS there yet; trying again");
        self.problems.insert(at, problem);
    }

    async fn hook(&mut self, seen: &[Seen]) -> Hookup {
        if !self.config.resolved || !self.overlay || !self.resolved.runs() {
            return Hookup::Manual;
        }
        let links: Vec<_> = seen.iter().filter_map(|seen| self.link(seen)).collect();
        let known: BTreeSet<_> = links.iter().map(|(_, link)| link.interface.clone()).collect();
        self.told.retain(|interface, _| known.contains(interface));
        self.refusals.retain(|interface, _| known.contains(interface));
        for told in links {
            let interface = told.1.interface.clone();
            if self.told.get(&interface) == Some(&told) {
                continue;
            }
            match self.resolved.hook(&told.1).await {
                Ok(()) => {
                    info!(interface, "systemd-resolved asks here for the names of the mesh");
                    self.refusals.remove(&interface);
                    self.told.insert(interface, told);
                }
                Err(problem) => {
                    if self.refusals.insert(interface, problem.clone()).as_ref() != Some(&problem) {
                        warn!(problem, "systemd-resolved was told in vain; trying again");
                    }
                }
            }
        }
        match self.refusals.values().next() {
            Some(problem) => Hookup::Failed { problem: problem.clone() },
            None => Hookup::Resolved,
        }
    }

    /// What systemd-resolved is to know about a mesh whose names are answered. A link that is made
    /// anew has another index, and knows nothing.
    fn link(&self, seen: &Seen) -> Option<(u32, Link)> {
        let server = SocketAddr::new(seen.address, self.config.listen.port());
        if !self.running.contains_key(&server) {
            return None;
        }
        let file = Path::new("/sys/class/net").join(&seen.interface).join("ifindex");
        let index = std::fs::read_to_string(file).ok()?.trim().parse().ok()?;
        let reverse = seen.site.prefixes.iter().filter_map(|prefix| reverse_domain(*prefix));
        let legacy = self.config.smeg_names.then(|| "smeg".to_owned());
        let domains = std::iter::once(self.config.domain.clone()).chain(legacy).chain(reverse);
        let interface = seen.interface.clone();
        Some((index, Link { interface, server, domains: domains.collect() }))
    }

    fn report(&self, places: &Places, hookup: Hookup) {
        let listener = |(address, interface): (&SocketAddr, &Option<String>)| Listener {
            address: *address,
            interface: interface.clone(),
            problem: self.problems.get(address).cloned(),
        };
        let dns = Dns {
            enabled: true,
            domain: self.config.domain.clone(),
            listeners: places.iter().map(listener).collect(),
            hookup,
        };
        self.status.send_if_modified(|known| {
            let differs = *known != dns;
            *known = dns;
            differs
        });
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use selvedge_dns::Site;
    use selvedge_model::MeshId;

    use super::*;

    /// A mesh whose overlay address is a loopback address.
    fn seen(mesh: u8, address: [u8; 4]) -> Seen {
        let prefixes = vec!["fd00::/64".parse().expect("a prefix")];
        let name = format!("mesh{mesh}");
        let site = Site { mesh: MeshId([mesh; 20]), name, prefixes, hosts: Vec::new() };
        Seen { site, address: IpAddr::from(address), interface: format!("sv-{mesh}") }
    }

    fn keeper(overlay: bool) -> (Keeper, watch::Receiver<Dns>) {
        // A port that was free a moment ago, on an address that is nobody else's.
        let listen = std::net::UdpSocket::bind("127.0.77.1:0").and_then(|s| s.local_addr());
        let config = DnsConfig {
            domain: "mesh.internal".to_owned(),
            listen: listen.expect("a free port"),
            smeg_names: false,
            resolved: false,
        };
        let (status, dns) = watch::channel(Dns::default());
        (Keeper::new(config, status, overlay), dns)
    }

    fn listening(dns: &watch::Receiver<Dns>) -> Vec<(String, bool)> {
        let dns = dns.borrow();
        let listeners = dns.listeners.iter();
        listeners.map(|at| (at.address.ip().to_string(), at.problem.is_none())).collect()
    }

    fn at(address: &str, well: bool) -> (String, bool) {
        (address.to_owned(), well)
    }

    #[tokio::test]
    async fn servers_follow_the_meshes() {
        let (mut keeper, dns) = keeper(true);
        keeper.converge(&[seen(1, [127, 0, 77, 2]), seen(2, [192, 0, 2, 1])]).await;
        let expected = [at("127.0.77.1", true), at("127.0.77.2", true), at("192.0.2.1", false)];
        assert_eq!(listening(&dns), expected);
        assert_eq!(dns.borrow().hookup, Hookup::Manual);
        keeper.converge(&[seen(2, [127, 0, 77, 3])]).await;
        assert_eq!(listening(&dns), [at("127.0.77.1", true), at("127.0.77.3", true)]);
        // The address of the mesh that was left can be had again.
        let freed = SocketAddr::new(IpAddr::from([127, 0, 77, 2]), keeper.config.listen.port());
        keeper.servers.join_next().await.expect("one has ended").expect_err("it was ended");
        // A program that another test starts holds all sockets for the moment before it is itself.
        let free = async {
            while Server::bind(freed).await.is_err() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(60), free).await.expect("free");
    }

    #[tokio::test]
    async fn a_host_that_is_not_touched_answers_itself_alone() {
        let (mut keeper, dns) = keeper(false);
        keeper.converge(&[seen(1, [127, 0, 77, 2])]).await;
        assert_eq!(listening(&dns), [at("127.0.77.1", true)]);
    }
}
