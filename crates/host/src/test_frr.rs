//! FRR's real daemons, for tests: a gateway, and a router that is its upstream and the other
//! tunnel endpoint at once.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::fabric::testing;
use crate::frr::Vty;
use crate::netlink::{AddressOptions, Netlink, NewLink};
use crate::netns::{self, Ephemeral};
use crate::test_support;

/// What FRR's packages give zebra's netlink socket.
pub(crate) const NETLINK_BUFFER: u32 = 90_000_000;

const DAEMONS: &str = "/usr/lib/frr";

/// How long a daemon may take to start.
const START: Duration = Duration::from_secs(40);

/// Routing protocols take their time, and the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// FRR's daemons in one namespace, each in the foreground and ended with this value.
pub(crate) struct Host {
    pub(crate) namespace: Ephemeral,
    pub(crate) dir: TempDir,
    /// Bytes of zebra's netlink socket.
    pub(crate) netlink_buffer: u32,
    children: Vec<(&'static str, Child)>,
}

impl Host {
    pub(crate) fn new(namespace: Ephemeral) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        give_to_frr(dir.path());
        Self { namespace, dir, netlink_buffer: NETLINK_BUFFER, children: Vec::new() }
    }

    /// Starts a daemon and waits until it takes commands.
    pub(crate) fn start(&mut self, daemon: &'static str, config: &str) {
        let path = |suffix: &str| self.dir.path().join(format!("{daemon}.{suffix}"));
        fs::write(path("conf"), config).expect("written");
        give_to_frr(&path("conf"));
        // What a killed one left would look as if it took commands.
        let _ = fs::remove_file(path("vty"));
        let log = fs::File::create(path("log")).expect("a log");
        let mut command = self.namespace.command(Path::new(DAEMONS).join(daemon));
        command.arg("-f").arg(path("conf")).arg("-i").arg(path("pid"));
        command.arg("-z").arg(self.dir.path().join("zserv.api"));
        command.arg("--vty_socket").arg(self.dir.path()).args(["-A", "127.0.0.1", "-P", "0"]);
        if daemon == "zebra" {
            command.arg("-s").arg(self.netlink_buffer.to_string());
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        netns::die_with_parent(&mut command);
        self.children.push((daemon, command.spawn().expect("FRR is installed")));
        let started = Instant::now();
        while !path("vty").exists() {
            assert!(started.elapsed() < START, "{daemon} has not started");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Kills a daemon.
    pub(crate) fn kill(&mut self, daemon: &str) {
        for (_, mut child) in self.children.extract_if(.., |(name, _)| daemon == *name) {
            child.kill().and_then(|()| child.wait()).expect("ended");
        }
    }

    /// Sends a signal to a daemon.
    pub(crate) fn signal(&self, daemon: &str, signal: Signal) {
        for (_, child) in self.children.iter().filter(|(name, _)| daemon == *name) {
            let pid = Pid::from_raw(child.id().cast_signed());
            nix::sys::signal::kill(pid, signal).expect("it runs");
        }
    }

    pub(crate) fn vty(&self, daemon: &str) -> Vty {
        Vty::new(self.dir.path(), None, daemon)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for (_, child) in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn give_to_frr(path: &Path) {
    let user = nix::unistd::User::from_name("frr").expect("readable").expect("FRR's user");
    let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
    std::os::unix::fs::chown(path, Some(uid), Some(gid)).expect("root");
}

/// The namespaces of a gateway and a router, if there are namespaces and FRR here.
pub(crate) fn pair(test: &str) -> Option<(Ephemeral, Ephemeral)> {
    if !is_installed(test) {
        return None;
    }
    test_support::namespace(test).zip(test_support::namespace(test))
}

fn is_installed(test: &str) -> bool {
    let installed = Path::new(DAEMONS).join("bgpd").exists();
    let ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    assert!(installed || !ci, "{test}: FRR is not installed");
    if !installed {
        #[allow(clippy::print_stderr, reason = "nothing is skipped silently")]
        {
            eprintln!("SKIPPED {test}: FRR is not installed ({DAEMONS}/bgpd)");
        }
    }
    installed
}

/// Joined by `up0` on either side: 192.0.2.1 the gateway, 192.0.2.2 the router.
pub(crate) struct Scene {
    pub(crate) gateway: Host,
    pub(crate) router: Host,
    pub(crate) here: Netlink,
    pub(crate) there: Netlink,
}

pub(crate) const OSPF: &str = "interface up0\n ip ospf area 0\n ip ospf hello-interval 1\n \
                               ip ospf dead-interval 3\n ip ospf network point-to-point\n!\n";
pub(crate) const OSPF6: &str = "interface up0\n ipv6 ospf6 area 0\n ipv6 ospf6 hello-interval 1\n \
                                ipv6 ospf6 dead-interval 3\n ipv6 ospf6 network point-to-point\n\
                                !\n";

/// bgpd's configuration as `docs/frr.md` has it.
pub(crate) fn bgpd(own: &str, other: &str) -> String {
    format!(
        "router bgp 65000\n bgp router-id {own}\n no bgp default ipv4-unicast\n \
         neighbor {other} remote-as 65000\n neighbor {other} timers connect 1\n \
         address-family l2vpn evpn\n  neighbor {other} activate\n  advertise-all-vni\n  \
         no dup-addr-detection\n"
    )
}

pub(crate) fn ospfd(own: &str) -> String {
    format!("{OSPF}router ospf\n ospf router-id {own}\n")
}

pub(crate) fn ospf6d(own: &str) -> String {
    format!("{OSPF6}router ospf6\n ospf6 router-id {own}\n")
}

impl Scene {
    /// The router's daemons run; the gateway's are to be started.
    async fn new(gateway: Host, mut router: Host) -> Self {
        let here = Netlink::new().expect("netlink");
        let there = Netlink::in_namespace(&router.namespace).expect("netlink");
        let veth = NewLink::Veth { peer: "up0", namespace: Some(&router.namespace) };
        here.add_link("up0", &veth).await.expect("a pair");
        for (netlink, address) in [(&here, "192.0.2.1/24"), (&there, "192.0.2.2/24")] {
            for name in ["lo", "up0"] {
                let index = testing::link(netlink, name).await.index;
                netlink.set_up(index, true, None).await.expect("up");
            }
            let index = testing::link(netlink, "up0").await.index;
            let address = address.parse().expect("a prefix");
            let options = AddressOptions::default();
            netlink.add_address(index, address, options).await.expect("an address");
        }
        router.start("zebra", "");
        router.start("bgpd", &bgpd("192.0.2.2", "192.0.2.1"));
        router.start("ospfd", &ospfd("192.0.2.2"));
        router.start("ospf6d", &ospf6d("192.0.2.2"));
        Self { gateway, router, here, there }
    }
}

/// Waits until something holds.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < PATIENCE, "not after {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Runs `body` in the gateway's namespace, if there are namespaces and FRR here.
pub(crate) fn run(test: &str, body: impl AsyncFnOnce(Scene) + Send) {
    let Some((gateway, router)) = pair(test) else { return };
    let inside = (*gateway).clone();
    let (gateway, router) = (Host::new(gateway), Host::new(router));
    let all = || {
        test_support::runtime().block_on(async {
            body(Scene::new(gateway, router).await).await;
        });
    };
    inside.run(all).expect("entered");
}
