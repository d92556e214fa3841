//! The server on real sockets, asked by a resolver that is not ours.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::rr::RecordType;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use selvedge_dns::names::Claim;
use selvedge_dns::{Host, Options, Server, Site, Zone};
use selvedge_model::{MeshId, NodeId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// So many members that a name of all of them fits no datagram.
const MEMBERS: u8 = 100;

fn zone(members: u8) -> Arc<Zone> {
    let host = |node: u8| Host {
        claim: Claim { node: NodeId([node; 32]), rank: 0, alias: "web".to_owned(), shared: true },
        addresses: vec![[0xfd00, 0, 0, 0, 0, 0, 0, u16::from(node)].into()],
        services: [("web".to_owned(), "80 path=/x".to_owned())].into(),
        live: true,
    };
    let site = Site {
        mesh: MeshId([1; 20]),
        name: "campus".to_owned(),
        prefixes: vec!["fd00::/64".parse().expect("a prefix")],
        hosts: (1..=members).map(host).collect(),
    };
    Arc::new(Zone::new(&[site], &Options::default()))
}

struct Served {
    zones: watch::Sender<Arc<Zone>>,
    resolver: TokioResolver,
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Served {
    async fn start(members: u8) -> Self {
        let local = SocketAddr::from(([127, 0, 0, 1], 0));
        let server = Server::bind(local).await.expect("a free port");
        let address = server.address();
        let (zones, follow) = watch::channel(zone(members));
        let task = tokio::spawn(server.run(follow));
        let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
        connections.iter_mut().for_each(|connection| connection.port = address.port());
        let name_server = NameServerConfig::new(address.ip(), true, connections);
        let config = ResolverConfig::from_parts(None, Vec::new(), vec![name_server]);
        let mut builder =
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let options = builder.options_mut();
        // A busy machine is no silent server, and what was asked before may have changed.
        (options.timeout, options.cache_size) = (Duration::from_secs(30), 0);
        let resolver = builder.build().expect("a resolver");
        Self { zones, resolver, address, task }
    }

    async fn ask(&self, name: &str, kind: RecordType) -> Vec<String> {
        match self.resolver.lookup(format!("{name}."), kind).await {
            Ok(lookup) => lookup.answers().iter().map(|record| record.data.to_string()).collect(),
            Err(error) if error.is_no_records_found() => Vec::new(),
            Err(error) => panic!("{name}: {error}"),
        }
    }
}

#[tokio::test]
async fn a_resolver_finds_members_services_and_names_of_addresses() {
    let served = Served::start(1).await;
    let ask = async |name: &str, kind| served.ask(name, kind).await;
    let web = "web.campus.mesh.internal";
    assert_eq!(ask(web, RecordType::AAAA).await, ["fd00::1"]);
    assert_eq!(ask("WEB.campus.MESH.internal", RecordType::AAAA).await, ["fd00::1"]);
    assert_eq!(ask(web, RecordType::A).await, [""; 0]);
    assert_eq!(ask("db.campus.mesh.internal", RecordType::AAAA).await, [""; 0]);
    let service = "_web._tcp.campus.mesh.internal";
    assert_eq!(ask(service, RecordType::SRV).await, ["0 0 80 web.campus.mesh.internal."]);
    assert_eq!(ask(service, RecordType::TXT).await, ["path=/x"]);
    let address = IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]);
    let reverse = served.resolver.reverse_lookup(address).await.expect("a name");
    let names: Vec<_> = reverse.answers().iter().map(|record| record.data.to_string()).collect();
    assert_eq!(names, ["web.campus.mesh.internal."]);
}

#[tokio::test]
async fn what_fits_no_datagram_comes_over_tcp() {
    let served = Served::start(MEMBERS).await;
    let found = served.ask("web.campus.mesh.internal", RecordType::AAAA).await;
    assert_eq!(found.len(), usize::from(MEMBERS));
}

/// Whether the server keeps a connection open: it answers a question there.
async fn is_answered(stream: &mut TcpStream) -> bool {
    // A question for the addresses of `a.`, which it refuses to look for.
    let query = b"\0\x13\0\x01\x01\0\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01";
    let talk = async {
        stream.write_all(query).await?;
        stream.read_u16().await
    };
    timeout(Duration::from_secs(60), talk).await.expect("an answer or an end").is_ok()
}

#[tokio::test]
async fn one_address_does_not_take_the_connections_of_others() {
    let served = Served::start(1).await;
    let connect = async |from: u8| {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::from(([127, 0, 0, from], 0))).expect("a loopback address");
        socket.connect(served.address).await.expect("it listens")
    };
    let mut open = Vec::new();
    for _ in 0..4 {
        let mut stream = connect(1).await;
        assert!(is_answered(&mut stream).await);
        open.push(stream);
    }
    for _ in 0..40 {
        assert!(!is_answered(&mut connect(1).await).await);
    }
    assert!(is_answered(&mut connect(2).await).await);
    // A place that was left is free after a moment.
    open.pop();
    let again = async { while !is_answered(&mut connect(1).await).await {} };
    timeout(Duration::from_secs(60), again).await.expect("a free place");
}

#[tokio::test]
async fn the_latest_members_are_told() {
    let served = Served::start(1).await;
    let name = "web.campus.mesh.internal";
    assert_eq!(served.ask(name, RecordType::AAAA).await.len(), 1);
    served.zones.send_replace(zone(3));
    assert_eq!(served.ask(name, RecordType::AAAA).await.len(), 3);
}

#[tokio::test]
async fn a_server_that_is_dropped_frees_its_address() {
    let served = Served::start(1).await;
    let taken = Server::bind(served.address).await.expect_err("it is taken");
    let expected = format!("cannot answer DNS questions at {}: ", served.address);
    assert!(taken.to_string().starts_with(&expected), "{taken}");
    served.task.abort();
    assert!(served.task.await.is_err_and(|error| error.is_cancelled()));
    Server::bind(served.address).await.expect("it is free again");
}
