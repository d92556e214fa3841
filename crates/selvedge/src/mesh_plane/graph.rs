//! All meshes as one picture in the language of Graphviz
//! (<https://graphviz.org/doc/info/lang.html>).
//!
//! A mesh is a cluster. A node that is in several meshes is drawn in each of them, and these are
//! tied by a thick line. Peers are all tied to each other: beyond a few, one point stands for that.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use selvedge_api::mesh::{Member, MemberState, Mesh, Role};
use selvedge_model::{MeshId, NodeId};

/// Up to so many peers each pair has a line of its own.
const MAX_PAIRED: usize = 8;

/// The picture of these meshes.
#[must_use]
pub(crate) fn dot(meshes: &[Mesh]) -> String {
    let mut dot = Dot(String::from("graph meshes {\n"));
    dot.line(1, "graph [compound=true, overlap=false, splines=true];");
    dot.line(1, "node [shape=box, style=rounded, fontname=\"sans-serif\"];");
    for mesh in meshes {
        dot.mesh(mesh);
    }
    dot.routes(meshes);
    dot.ties(meshes);
    dot.0.push_str("}\n");
    dot.0
}

struct Dot(String);

impl Dot {
    fn mesh(&mut self, mesh: &Mesh) {
        self.line(1, &format!("subgraph {} {{", quoted(&format!("cluster {}", mesh.id))));
        self.line(2, &format!("label={};", quoted(&format!("{}\n{}", mesh.name, mesh.prefix))));
        for member in &mesh.members {
            let look = look(member);
            self.line(2, &format!("{} [label={}{look}];", id(mesh.id, member.node), label(member)));
        }
        self.peers(mesh);
        self.clients(mesh);
        self.line(1, "}");
    }

    fn peers(&mut self, mesh: &Mesh) {
        let peers: Vec<_> =
            mesh.members.iter().filter(|member| member.role == Role::Peer).collect();
        if peers.len() <= MAX_PAIRED {
            for (index, one) in peers.iter().enumerate() {
                for other in &peers[index + 1..] {
                    self.edge(&id(mesh.id, one.node), &id(mesh.id, other.node), "");
                }
            }
            return;
        }
        let all = quoted(&format!("{} all", mesh.id));
        let text = quoted(&format!("{} peers, each with each", peers.len()));
        self.line(2, &format!("{all} [shape=point, xlabel={text}];"));
        for peer in peers {
            self.edge(&all, &id(mesh.id, peer.node), "");
        }
    }

    /// Each client and the peer that it is attached to, as far as this node knows.
    fn clients(&mut self, mesh: &Mesh) {
        for client in mesh.members.iter().filter(|member| member.role == Role::Client) {
            let carrier = match client.own {
                // All that a client reaches it reaches by its peer.
                true => mesh.members.iter().find_map(|member| member.via),
                false => Some(client.via.unwrap_or(mesh.node)),
            };
            if let Some(carrier) = carrier {
                let look = " [style=dashed]";
                self.edge(&id(mesh.id, client.node), &id(mesh.id, carrier), look);
            }
        }
    }

    /// What members lead to, except for the meshes that are drawn.
    fn routes(&mut self, meshes: &[Mesh]) {
        let drawn: BTreeSet<_> = meshes.iter().map(|mesh| mesh.prefix.network()).collect();
        for mesh in meshes {
            for member in &mesh.members {
                for route in member.routes.iter().filter(|r| !drawn.contains(&r.destination)) {
                    let place = quoted(&format!("route {}", route.destination));
                    let text = quoted(&route.destination.to_string());
                    self.line(1, &format!("{place} [shape=ellipse, style=solid, label={text}];"));
                    let hops = match route.path.len() {
                        0 => " [style=dotted]".to_owned(),
                        hops => format!(" [style=dotted, label=\"{hops}\"]"),
                    };
                    self.edge(&id(mesh.id, member.node), &place, &hops);
                }
            }
        }
    }

    fn ties(&mut self, meshes: &[Mesh]) {
        let mut places: BTreeMap<NodeId, Vec<MeshId>> = BTreeMap::new();
        for mesh in meshes {
            for member in &mesh.members {
                places.entry(member.node).or_default().push(mesh.id);
            }
        }
        for (node, of) in places {
            for pair in of.windows(2) {
                self.edge(&id(pair[0], node), &id(pair[1], node), " [style=bold]");
            }
        }
    }

    fn edge(&mut self, from: &str, to: &str, look: &str) {
        self.line(1, &format!("{from} -- {to}{look};"));
    }

    fn line(&mut self, depth: usize, text: &str) {
        // Writing into a text does not fail.
        let _ = writeln!(self.0, "{:indent$}{text}", "", indent = depth * 2);
    }
}

fn id(mesh: MeshId, node: NodeId) -> String {
    quoted(&format!("{mesh} {node}"))
}

/// Name, address and services.
fn label(member: &Member) -> String {
    let mut text = format!("{}\n{}", member.name, member.address);
    for (key, value) in &member.services {
        let _ = write!(text, "\n{key}={value}");
    }
    quoted(&text)
}

fn look(member: &Member) -> &'static str {
    match (member.own, member.state) {
        (true, _) => ", penwidth=2",
        (false, MemberState::Down) => ", color=red, fontcolor=red",
        (false, MemberState::Suspect) => ", color=orange",
        (false, MemberState::Alive | MemberState::Unknown) => "",
    }
}

/// A text as Graphviz reads it: in quotes, with nothing in it that ends them or that it would
/// replace. What others say of themselves is in these texts.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            c if c.is_control() => quoted.push(' '),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Write as _};
    use std::process::{Command, Stdio};

    use selvedge_api::mesh::Route;

    use super::super::query::tests::{member, mesh};
    use super::*;

    /// Two meshes that have a node in common.
    fn two() -> [Mesh; 2] {
        let mut other = mesh();
        (other.id, other.name) = (MeshId([8; 20]), "a \"b\" \\ }; x -- y [".to_owned());
        other.prefix = "fd01::/64".parse().expect("a prefix");
        other.members = vec![member(1, "gw1")];
        let destination = "10.0.0.0/8".parse().expect("a prefix");
        other.members[0].routes = vec![Route { destination, path: Vec::new() }];
        other.members[0].services = [("a\"]".to_owned(), "\\".to_owned())].into();
        [mesh(), other]
    }

    #[test]
    fn meshes_are_clusters_and_a_node_in_two_ties_them() {
        let text = dot(&two());
        let graph = parse(&text);
        assert_eq!(graph.clusters, 2);
        let id = |mesh, node| format!("{} {}", MeshId([mesh; 20]), NodeId([node; 32]));
        let has = |from: String, to: String| graph.edges.contains(&(from, to));
        assert!(has(id(8, 1), id(9, 1)) || has(id(9, 1), id(8, 1)), "the tie");
        assert!(has(id(9, 1), id(9, 2)), "two peers");
        assert!(has(id(9, 3), id(9, 2)), "a client and its peer");
        assert!(!has(id(9, 1), id(9, 3)) && !has(id(9, 3), id(9, 1)));
        assert!(has(id(8, 1), "route 10.0.0.0/8".to_owned()));
        assert!(!text.contains("route fd01::/64"), "that mesh is drawn itself");
        assert_eq!(graph.nodes[&id(8, 1)], "gw1\\nfd00::1\\na\"]=\\\\");
    }

    #[test]
    fn many_peers_are_tied_by_a_point() {
        let mut mesh = mesh();
        mesh.members = (1..=200).map(|node| member(node, "x")).collect();
        let graph = parse(&dot(&[mesh]));
        assert_eq!((graph.edges.len(), graph.nodes.len()), (200, 201));
    }

    #[test]
    fn nothing_is_a_graph_too() {
        assert_eq!(parse(&dot(&[])).clusters, 0);
    }

    /// Graphviz itself agrees, where it is installed; with `CI=true` it has to be.
    #[test]
    #[allow(clippy::print_stderr, reason = "whoever runs the tests shall see what was skipped")]
    fn graphviz_draws_it() {
        parse(&dot(&two()));
        let mut command = Command::new("dot");
        command.arg("-Tsvg").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error)
                if error.kind() == ErrorKind::NotFound
                    && std::env::var("CI").as_deref() != Ok("true") =>
            {
                return eprintln!("skipped: graphviz_draws_it: Graphviz is not installed");
            }
            Err(error) => panic!("cannot start dot: {error}"),
        };
        let mut input = child.stdin.take().expect("piped");
        input.write_all(dot(&two()).as_bytes()).expect("writes");
        drop(input);
        let output = child.wait_with_output().expect("ends");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(String::from_utf8_lossy(&output.stdout).contains("<svg"));
    }

    // A reader of the language: https://graphviz.org/doc/info/lang.html

    #[derive(Default)]
    struct Graph {
        clusters: usize,
        /// With their labels, as they stand between the quotes but for escaped quotes.
        nodes: BTreeMap<String, String>,
        edges: BTreeSet<(String, String)>,
    }

    fn parse(text: &str) -> Graph {
        let mut tokens = tokens(text).into_iter().rev().collect::<Vec<_>>();
        let mut graph = Graph::default();
        expect(&mut tokens, "graph");
        id_of(&mut tokens);
        statements(&mut tokens, &mut graph);
        assert_eq!(tokens, [""; 0], "nothing follows the graph");
        graph
    }

    /// Identifiers begin with `i`, punctuation with `p`.
    fn tokens(text: &str) -> Vec<String> {
        let mut tokens = Vec::new();
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                c if c.is_whitespace() => {}
                '"' => {
                    let mut token = String::from("i");
                    loop {
                        match chars.next().expect("a closing quote") {
                            '"' => break,
                            // Only a quote is escaped in the language; the rest is the label's.
                            '\\' if chars.peek() == Some(&'"') => {
                                token.push('"');
                                chars.next();
                            }
                            '\\' => {
                                token.push('\\');
                                token.extend(chars.next());
                            }
                            '\n' => panic!("a line break in a text"),
                            c => token.push(c),
                        }
                    }
                    tokens.push(token);
                }
                c if c.is_ascii_alphabetic() || c == '_' || c.is_ascii_digit() => {
                    let mut token = format!("i{c}");
                    while let Some(c) = chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
                        token.push(c);
                    }
                    tokens.push(token);
                }
                '-' => {
                    assert_eq!(chars.next(), Some('-'), "an edge of an undirected graph");
                    tokens.push("p--".to_owned());
                }
                '{' | '}' | '[' | ']' | ';' | ',' | '=' => tokens.push(format!("p{c}")),
                c => panic!("{c:?} is not in the language"),
            }
        }
        tokens
    }

    fn expect(tokens: &mut Vec<String>, keyword: &str) {
        assert_eq!(tokens.pop().as_deref(), Some(format!("i{keyword}").as_str()));
    }

    fn punctuation(tokens: &mut Vec<String>, mark: &str) -> bool {
        let found = tokens.last().is_some_and(|token| *token == format!("p{mark}"));
        if found {
            tokens.pop();
        }
        found
    }

    fn id_of(tokens: &mut Vec<String>) -> String {
        let token = tokens.pop().expect("an identifier");
        token.strip_prefix('i').unwrap_or_else(|| panic!("{token} is no identifier")).to_owned()
    }

    fn statements(tokens: &mut Vec<String>, graph: &mut Graph) {
        assert!(punctuation(tokens, "{"));
        while !punctuation(tokens, "}") {
            let id = id_of(tokens);
            if id == "subgraph" {
                graph.clusters += usize::from(id_of(tokens).starts_with("cluster"));
                statements(tokens, graph);
            } else if punctuation(tokens, "=") {
                id_of(tokens);
            } else if punctuation(tokens, "--") {
                let to = id_of(tokens);
                graph.edges.insert((id, to));
                attributes(tokens);
            } else {
                let label = attributes(tokens).remove("label").unwrap_or_default();
                if !["graph", "node", "edge"].contains(&id.as_str()) {
                    graph.nodes.insert(id, label);
                }
            }
            punctuation(tokens, ";");
        }
    }

    fn attributes(tokens: &mut Vec<String>) -> BTreeMap<String, String> {
        let mut attributes = BTreeMap::new();
        if !punctuation(tokens, "[") {
            return attributes;
        }
        while !punctuation(tokens, "]") {
            let key = id_of(tokens);
            assert!(punctuation(tokens, "="), "a value for {key}");
            attributes.insert(key, id_of(tokens));
            punctuation(tokens, ",");
        }
        attributes
    }
}
