//! Names, services, questions and pictures: two agents as processes, which touch no host, asked by
//! the command line and by DNS.

use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use selvedge_api::Client;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Far more than anything here takes.
const LIMIT: Duration = Duration::from_secs(60);

struct Agent {
    child: Child,
    folder: TempDir,
    dns: String,
}

/// A process that ends with its handle.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Agent {
    fn start(name: &str, loopback: &str) -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let free = UdpSocket::bind((loopback, 0)).and_then(|socket| socket.local_addr());
        let dns = free.expect("a free port").to_string();
        let config = folder.path().join("agent.toml");
        let text = format!(
            "name = '{name}'\n[mesh]\nlisten = '127.0.0.1:0'\nendpoints = ['127.0.0.1']\n\
             wireguard = 'dry'\n[mesh.dns]\nlisten = '{dns}'\n\
             [mesh.options]\nipv4 = '10.99.0.0/16'\n"
        );
        std::fs::write(&config, text).expect("writes");
        let child = Command::new(env!("CARGO_BIN_EXE_selvedge"))
            .args(["agent", "--config"])
            .arg(&config)
            .arg("--state")
            .arg(folder.path().join("state"))
            .arg("--socket")
            .arg(folder.path().join("s"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        let agent = Self { child, folder, dns };
        until("it answers", || agent.ask(&["mesh", "list"]).status.success().then_some(()));
        agent
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_selvedge"));
        command.args(args).arg("--socket").arg(self.socket());
        command
    }

    fn ask(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("runs")
    }

    fn text(&self, args: &[&str]) -> String {
        let output = self.ask(args);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {errors}");
        String::from_utf8(output.stdout).expect("text")
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.text(&[args, &["--json"]].concat())).expect("prints JSON")
    }

    fn refused(&self, args: &[&str]) -> String {
        let output = self.ask(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        String::from_utf8(output.stderr).expect("text")
    }

    /// The answers to a question by DNS, in order.
    fn resolve(&self, name: &str, kind: RecordType) -> Vec<String> {
        let mut query = Message::new(7, MessageType::Query, OpCode::Query);
        query.add_query(Query::query(Name::from_str(name).expect("a name"), kind));
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a time limit");
        socket.send_to(&query.to_vec().expect("encodes"), &self.dns).expect("sends");
        let mut buffer = [0; 4096];
        // What gets no answer is asked again.
        let Ok(length) = socket.recv(&mut buffer) else { return Vec::new() };
        let message = Message::from_vec(&buffer[..length]).expect("a message");
        let mut answers: Vec<_> =
            message.answers.iter().map(|record| record.data.to_string()).collect();
        answers.sort();
        answers
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Two members of the mesh `campus`.
fn two() -> [Agent; 2] {
    let agents = [Agent::start("one", "127.0.91.1"), Agent::start("two", "127.0.91.2")];
    agents[0].json(&["mesh", "create", "campus"]);
    let token = agents[0].text(&["mesh", "invite"]);
    agents[1].json(&["mesh", "join", token.trim()]);
    agents
}

#[test]
fn members_are_found_by_name() {
    let [one, two] = two();
    let name = "two.campus.mesh.internal.";
    let address = two.json(&["node", "show"])["address"].as_str().expect("text").to_owned();
    let aaaa = |agent: &Agent, name: &str| agent.resolve(name, RecordType::AAAA);
    until("the other is found", || (aaaa(&one, name) == [address.clone()]).then_some(()));
    let ipv4 = until("it has an IPv4 address", || one.resolve(name, RecordType::A).pop());
    let octets: Vec<&str> = ipv4.rsplit('.').collect();
    assert_eq!(octets[2..], ["99", "10"], "{ipv4}");
    let reverse = format!("{}.in-addr.arpa.", octets.join("."));
    assert_eq!(one.resolve(&reverse, RecordType::PTR), [name]);
    // Both are called alike on purpose.
    for agent in [&one, &two] {
        agent.json(&["node", "set", "--alias", "Web", "--shared", "true"]);
    }
    let shared = "web.campus.mesh.internal.";
    until("both are found", || (aaaa(&one, shared).len() == 2).then_some(()));
    until("everywhere", || (aaaa(&two, shared).len() == 2).then_some(()));
    assert_eq!(aaaa(&one, name), [""; 0], "it is called so no more");
    let shown = one.json(&["mesh", "show"]);
    for member in shown["members"].as_array().expect("a list") {
        assert_eq!(member["group"], "web");
        assert!(member["name"].as_str().is_some_and(|name| name.starts_with("web-")), "{member}");
    }
    // One of them does not mean it: now it is a quarrel, and the founder was first.
    two.json(&["node", "set", "--shared", "false"]);
    let first = one.json(&["node", "show"])["address"].as_str().expect("text").to_owned();
    until("the first has it", || (aaaa(&two, shared) == [first.clone()]).then_some(()));
    assert!(two.text(&["mesh", "show"]).contains("calls itself \"Web\" as another member does"));
    // Without an alias it has a name of words.
    let named = two.json(&["node", "set", "--alias", ""]);
    let words = named["name"].as_str().expect("text").to_owned();
    assert!(named.get("alias").is_none() && words.split('-').count() == 3, "{named}");
    let words = format!("{words}.campus.mesh.internal.");
    until("words are found", || (aaaa(&one, &words) == [address.clone()]).then_some(()));
    let names = one.json(&["mesh", "names"]);
    assert_eq!(names["listeners"][0], json!({ "address": one.dns }));
    assert_eq!(names["hookup"], json!({ "state": "manual" }), "a dry agent tells nobody");
}

#[test]
fn services_are_offered_and_withdrawn() {
    let [one, two] = two();
    two.json(&["service", "set", "web", "443 path=/x"]);
    two.json(&["service", "set", "note", "hello"]);
    let service = "_web._tcp.campus.mesh.internal.";
    let srv = || one.resolve(service, RecordType::SRV);
    until("it is offered", || (srv() == ["0 0 443 two.campus.mesh.internal."]).then_some(()));
    let expression = "[?services.web].{name: name, services: services}";
    let expected =
        json!([{ "name": "two", "services": { "note": "hello", "web": "443 path=/x" } }]);
    assert_eq!(one.json(&["mesh", "query", expression]), expected);
    assert!(two.text(&["node", "show"]).contains("443 path=/x"));
    two.json(&["service", "delete", "web"]);
    until("it is withdrawn", || srv().is_empty().then_some(()));
    let error = two.refused(&["service", "delete", "web"]);
    assert!(error.contains("this node offers no service \"web\" in campus"), "{error}");
    let error = two.refused(&["service", "set", "web", &"x".repeat(256)]);
    assert!(error.contains("255 for a value"), "{error}");
    assert_eq!(two.json(&["node", "show"])["services"], json!({ "note": "hello" }));
}

#[test]
fn questions_that_make_no_sense_are_explained() {
    let one = Agent::start("one", "127.0.91.3");
    one.json(&["mesh", "create", "campus"]);
    assert_eq!(
        one.json(&["mesh", "query", "[].{alias: alias, type: type}"]),
        json!([{
            "alias": "one",
            "type": "peer",
        }])
    );
    let error = one.refused(&["mesh", "query", "[?"]);
    assert!(error.contains("hint: docs/mesh-query.md"), "{error}");
    let error = one.refused(&["mesh", "query", &"(".repeat(1000)]);
    assert!(error.contains("nests deeper than 24 brackets"), "{error}");
    let error = one.refused(&["node", "set"]);
    assert!(error.contains("nothing to set"), "{error}");
    let dot = one.text(&["mesh", "graph"]);
    assert!(dot.starts_with("graph meshes {\n") && dot.contains("label=\"campus\\n"), "{dot}");
}

#[test]
fn what_happens_is_told() {
    let [one, two] = two();
    let mut command = one.command(&["mesh", "watch", "--json"]);
    let mut watching = Ends(command.stdout(Stdio::piped()).spawn().expect("runs"));
    let lines = BufReader::new(watching.0.stdout.take().expect("piped")).lines();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in lines {
            let Ok(line) = line else { return };
            let Ok(()) = tell.send(serde_json::from_str::<Value>(&line).expect("JSON")) else {
                return;
            };
        }
    });
    // The watch may begin after a change: so there are many.
    let mut number = 0;
    let event = until("a member's news are told", || {
        number += 1;
        two.json(&["node", "set", "--description", &number.to_string()]);
        let event = told.recv_timeout(Duration::from_secs(2)).ok()?;
        (event["event"] == "member-updated").then_some(event)
    });
    assert_eq!(event["name"], "campus");
    assert_eq!(event["node"], two.json(&["node", "show"])["node"]);
    two.json(&["mesh", "leave", "campus"]);
    until("its leaving is told", || {
        let event = told.recv_timeout(Duration::from_secs(2)).ok()?;
        (event["event"] == "member-left").then_some(())
    });
}

#[tokio::test]
async fn the_agent_describes_its_api() {
    let one = Agent::start("one", "127.0.91.4");
    let client = Client::new(one.socket()).expect("a client");
    let described = client.openapi().await.expect("served");
    let copy = include_str!("../../../docs/openapi.json");
    let same = described == serde_json::from_str::<Value>(copy).expect("JSON");
    assert!(same, "docs/openapi.json is not what is served");
    assert!(described["paths"]["/v1/meshes/{mesh}/query"]["post"].is_object());
}
