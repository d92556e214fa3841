//! Questions about the members of a mesh in JMESPath (<https://jmespath.org>), over the model of
//! a member that `docs/mesh-query.md` describes.

use jmespath::ast::Ast;
use selvedge_api::mesh::{Member, Mesh, Role, Route};
use selvedge_api::{Code, Error};
use selvedge_model::{NodeId, Prefix};
use serde_json::{Value, json};

/// The longest expression, in bytes. Together with [`MAX_DEPTH`] it bounds how deep the parser and
/// the interpreter call themselves: each name in a chain of names is a call.
const MAX_LENGTH: usize = 1024;
/// How deep brackets and prefix operators may be nested.
const MAX_DEPTH: usize = 24;
/// How many times larger than the mesh the answer may become at most, by the count of what an
/// expression says twice.
const MAX_GROWTH: u64 = 64;
/// How many times longer a value may become as text: a control character is six in JSON, and what
/// was text before has its quotes and backslashes doubled.
const TEXT_GROWTH: u64 = 8;
/// How many bytes of glue between texts count as much as the texts: a list of small values takes
/// more than this for each.
const GLUE: u64 = 8;

/// Why a question is not answered. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum QueryError {
    #[error("the expression has {0} bytes: at most {MAX_LENGTH} are allowed")]
    TooLong(usize),
    #[error("the expression nests deeper than {MAX_DEPTH} brackets")]
    TooDeep,
    #[error("the expression multiplies what it is asked about more than {MAX_GROWTH} times")]
    TooLarge,
    /// The expression is malformed, or does not fit the members.
    #[error("{0}")]
    Expression(String),
}

impl From<QueryError> for Error {
    fn from(error: QueryError) -> Self {
        let hint = "docs/mesh-query.md has examples and what there is of a member";
        Self::new(Code::Invalid, error).hint(hint)
    }
}

/// The answer to an expression about the members of a mesh.
///
/// # Errors
/// If the expression is malformed, too long, too deep, or fits no member.
pub(crate) fn answer(mesh: &Mesh, expression: &str) -> Result<Value, QueryError> {
    if expression.len() > MAX_LENGTH {
        return Err(QueryError::TooLong(expression.len()));
    }
    if depth(expression) > MAX_DEPTH {
        return Err(QueryError::TooDeep);
    }
    let wrong = |error: jmespath::JmespathError| QueryError::Expression(error.to_string());
    let compiled = jmespath::compile(expression).map_err(wrong)?;
    if growth(compiled.as_ast()) > MAX_GROWTH {
        return Err(QueryError::TooLarge);
    }
    let found = compiled.search(Value::from(nodes(mesh))).map_err(wrong)?;
    serde_json::to_value(&*found).map_err(|error| QueryError::Expression(error.to_string()))
}

/// The members as expressions see them.
fn nodes(mesh: &Mesh) -> Vec<Value> {
    mesh.members.iter().map(|member| node(mesh, member)).collect()
}

fn node(mesh: &Mesh, member: &Member) -> Value {
    let endpoint = member.endpoint.or_else(|| member.endpoints.first().copied());
    let via = member.via.map(|via| name_of(mesh, via));
    let kind = match member.role {
        Role::Peer => "peer",
        Role::Client => "client",
    };
    json!({
        // The predecessor's.
        "hostEndpoint": member.control.first(),
        "publicKey": member.wg_key,
        "wgEndpoint": endpoint,
        "wgHost": Prefix::host(member.address.into()),
        "timestamp": member.updated,
        "description": member.description.as_deref().unwrap_or_default(),
        "routes": member.routes.iter().map(route).collect::<Vec<_>>(),
        "alias": member.alias.as_ref().unwrap_or(&member.name),
        "services": member.services,
        "type": kind,
        // Ours.
        "id": member.node,
        "name": member.name,
        "group": member.group,
        "contested": member.contested,
        "own": member.own,
        "state": member.state,
        "address": member.address,
        "ipv4": member.ipv4,
        "via": via,
        "endpoints": member.endpoints,
        "allowedIps": member.allowed_ips,
        "keepalive": member.keepalive_s,
        "handshakeAge": member.handshake_age_s,
        "received": member.rx_bytes,
        "sent": member.tx_bytes,
        "version": member.version,
    })
}

fn route(route: &Route) -> Value {
    let path: Vec<_> = route.path.iter().map(ToString::to_string).collect();
    json!({
        "destination": route.destination,
        "hopCount": path.len(),
        "path": path.join(","),
    })
}

fn name_of(mesh: &Mesh, node: NodeId) -> String {
    let member = mesh.members.iter().find(|member| member.node == node);
    member.map_or_else(|| node.to_string(), |member| member.name.clone())
}

/// How deep brackets and prefix operators are nested, or deeper.
fn depth(expression: &str) -> usize {
    let mut nesting = Nesting::default();
    let mut bytes = expression.bytes().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            // What the parser reads as one with its successor, is read so here.
            b'\'' | b'"' | b'`' => skip_text(&mut bytes, byte),
            b'(' | b'[' | b'{' => nesting.open(),
            b')' | b']' | b'}' => nesting.close(),
            b',' => nesting.next_part(),
            b'&' if bytes.next_if_eq(&b'&').is_none() => nesting.reference(),
            b'!' if bytes.next_if_eq(&b'=').is_none() => nesting.negation(),
            b'!' | b'&' | b'|' | b'=' | b'<' | b'>' => nesting.operator(),
            _ => {}
        }
    }
    nesting.deepest
}

/// Goes behind a text as the parser does: a backslash before a byte makes it one of the text.
fn skip_text(bytes: &mut impl Iterator<Item = u8>, quote: u8) {
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => _ = bytes.next(),
            _ if byte == quote => return,
            _ => {}
        }
    }
}

/// How deep an expression is nested at one place, and was at its deepest.
#[derive(Default)]
struct Nesting {
    deepest: usize,
    now: usize,
    /// The prefixes within the innermost bracket, and those before and around it.
    prefixes: Prefixes,
    outer: Vec<Prefixes>,
}

/// Prefix operators that wait for the end of what they hold for.
#[derive(Clone, Copy, Default)]
struct Prefixes {
    /// These end with the next operator between two values.
    negations: usize,
    /// These, `&` and what precedes it, end with the bracket, or with the argument.
    references: usize,
}

impl Nesting {
    fn deeper(&mut self) {
        self.now += 1;
        self.deepest = self.deepest.max(self.now);
    }

    fn open(&mut self) {
        self.outer.push(std::mem::take(&mut self.prefixes));
        self.deeper();
    }

    /// What is closed without having been opened is malformed, and not read any further.
    fn close(&mut self) {
        let Some(outer) = self.outer.pop() else { return };
        self.next_part();
        self.prefixes = outer;
        self.now -= 1;
    }

    fn next_part(&mut self) {
        self.operator();
        self.now -= std::mem::take(&mut self.prefixes.references);
    }

    fn operator(&mut self) {
        self.now -= std::mem::take(&mut self.prefixes.negations);
    }

    fn negation(&mut self) {
        self.prefixes.negations += 1;
        self.deeper();
    }

    fn reference(&mut self) {
        self.prefixes.references += 1 + std::mem::take(&mut self.prefixes.negations);
        self.deeper();
    }
}

/// How many times larger than what it is asked about the answer of an expression is at most.
fn growth(ast: &Ast) -> u64 {
    let sum = |parts: &mut dyn Iterator<Item = u64>| parts.fold(0, u64::saturating_add).max(1);
    match ast {
        Ast::Identity { .. }
        | Ast::Field { .. }
        | Ast::Index { .. }
        | Ast::Literal { .. }
        | Ast::Slice { .. } => 1,
        Ast::Expref { ast: node, .. }
        | Ast::Flatten { node, .. }
        | Ast::Not { node, .. }
        | Ast::ObjectValues { node, .. } => growth(node),
        Ast::Comparison { lhs, rhs, .. } | Ast::And { lhs, rhs, .. } | Ast::Or { lhs, rhs, .. } => {
            growth(lhs).max(growth(rhs))
        }
        Ast::Condition { predicate: lhs, then: rhs, .. }
        | Ast::Projection { lhs, rhs, .. }
        | Ast::Subexpr { lhs, rhs, .. } => growth(lhs).saturating_mul(growth(rhs)),
        Ast::Function { name, args, .. } => {
            let args_growth = args.iter().map(growth).fold(1, u64::saturating_mul);
            args_growth.saturating_mul(function_growth(name, args))
        }
        Ast::MultiList { elements, .. } => sum(&mut elements.iter().map(growth)),
        Ast::MultiHash { elements, .. } => sum(&mut elements.iter().map(|e| growth(&e.value))),
    }
}

/// How many times larger than its arguments the result of a function is at most.
fn function_growth(name: &str, args: &[Ast]) -> u64 {
    match (name, args) {
        ("to_string", _) => TEXT_GROWTH,
        ("join", [Ast::Literal { value, .. }, ..]) => {
            let glue = value.as_string().map_or(0, String::len);
            1 + u64::try_from(glue).unwrap_or(u64::MAX) / GLUE
        }
        // Glue out of the mesh may be as long as the mesh, and comes between all members of it.
        ("join", _) => u64::MAX,
        _ => 1,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use selvedge_api::mesh::{Admission, MemberState};
    use selvedge_model::{MeshId, WgKey};

    use super::*;

    /// A member of the mesh below.
    pub(crate) fn member(node: u8, name: &str) -> Member {
        Member {
            node: NodeId([node; 32]),
            own: node == 1,
            alias: Some(name.to_uppercase()),
            name: name.to_owned(),
            group: None,
            contested: false,
            description: None,
            services: BTreeMap::new(),
            version: Some("0.1.0".to_owned()),
            updated: 100,
            role: Role::Peer,
            admission: Admission::default(),
            address: [0xfd00, 0, 0, 0, 0, 0, 0, node.into()].into(),
            ipv4: None,
            wg_key: WgKey([node; 32]),
            control: vec![([192, 0, 2, node], 7654).into()],
            endpoints: vec![([192, 0, 2, node], 51820).into()],
            routes: Vec::new(),
            via: None,
            endpoint: None,
            state: MemberState::Alive,
            allowed_ips: Vec::new(),
            keepalive_s: None,
            handshake_age_s: None,
            rx_bytes: 0,
            tx_bytes: 0,
        }
    }

    /// Two peers, and a client that is reached by the second.
    pub(crate) fn mesh() -> Mesh {
        let gateway = Member {
            description: Some("the \"big\" one".to_owned()),
            services: [("web".to_owned(), "80".to_owned())].into(),
            routes: vec![Route {
                destination: "fd01::/64".parse().expect("a prefix"),
                path: vec![MeshId([5; 20]), MeshId([6; 20])],
            }],
            ..member(2, "gw2")
        };
        let client = Member {
            role: Role::Client,
            alias: None,
            endpoints: Vec::new(),
            control: Vec::new(),
            via: Some(gateway.node),
            ..member(3, "calm-otter-0001")
        };
        Mesh {
            id: MeshId([9; 20]),
            name: "campus".to_owned(),
            node: NodeId([1; 32]),
            interface: "sv-campus".to_owned(),
            address: [0xfd00, 0, 0, 0, 0, 0, 0, 1].into(),
            prefix: "fd00::/64".parse().expect("a prefix"),
            listen_port: 51820,
            wireguard: Some("kernel".to_owned()),
            routes: vec![],
            not_permitted: vec![],
            members: vec![member(1, "gw1"), gateway, client],
            evicted: None,
            evictions: Vec::new(),
        }
    }

    fn ask(expression: &str) -> Value {
        answer(&mesh(), expression).unwrap_or_else(|error| panic!("{expression}: {error}"))
    }

    #[test]
    fn members_have_the_predecessors_fields() {
        let path = [MeshId([5; 20]), MeshId([6; 20])].map(|id| id.to_string()).join(",");
        let expected = json!({
            "hostEndpoint": "192.0.2.2:7654",
            "publicKey": WgKey([2; 32]),
            "wgEndpoint": "192.0.2.2:51820",
            "wgHost": "fd00::2/128",
            "timestamp": 100,
            "description": "the \"big\" one",
            "routes": [{"destination": "fd01::/64", "hopCount": 2, "path": path}],
            "alias": "GW2",
            "services": {"web": "80"},
            "type": "peer",
        });
        let fields = "{hostEndpoint: hostEndpoint, publicKey: publicKey, wgEndpoint: wgEndpoint, \
                      wgHost: wgHost, timestamp: timestamp, description: description, \
                      routes: routes, alias: alias, services: services, type: type}";
        assert_eq!(ask(&format!("[1].{fields}")), expected);
    }

    #[test]
    fn questions_are_answered() {
        assert_eq!(ask("[?type=='client'].alias"), json!(["calm-otter-0001"]));
        assert_eq!(ask("[?via].{name: name, via: via}")[0]["via"], json!("gw2"));
        assert_eq!(ask("[].routes[].destination"), json!(["fd01::/64"]));
        assert_eq!(ask("length(@)"), json!(3));
        assert_eq!(ask("sort_by(@, &address)[-1].name"), json!("calm-otter-0001"));
        assert_eq!(ask("[0].nothing"), Value::Null);
    }

    #[test]
    fn what_makes_no_sense_is_explained() {
        let refused = |expression: &str| answer(&mesh(), expression).expect_err("refused");
        assert!(matches!(refused("[?"), QueryError::Expression(_)));
        assert!(refused("nosuch(@)").to_string().contains("nosuch"));
        assert!(refused("abs([0].name)").to_string().contains("abs"));
        assert_eq!(refused(&"a".repeat(1025)), QueryError::TooLong(1025));
        for opening in ["(", "[", "{a:", "!", "& ", "!a==&", "abs("] {
            assert_eq!(refused(&opening.repeat(25)), QueryError::TooDeep, "{opening}");
        }
        assert_eq!(refused("[@,@][]|".repeat(7).trim_end_matches('|')), QueryError::TooLarge);
        assert_eq!(refused("[].{a:[@,@,@,@,@,@,@,@,@][].[@,@,@,@,@,@,@,@]}"), QueryError::TooLarge);
    }

    #[test]
    fn texts_of_texts_and_long_glue_are_refused() {
        let refused = |expression: &str| answer(&mesh(), expression).expect_err(expression);
        let text = "to_string([@])|";
        for expression in [
            text.repeat(60).trim_end_matches('|'),
            text.repeat(3).trim_end_matches('|'),
            "to_string([to_string([to_string(@)])])",
            "map(&to_string([to_string([@])]), @)|to_string(@)",
            "join(to_string(@), [].name)",
            "join([0].name, [].name)",
            &format!("[].name|join('{}', @)", "-".repeat(900)),
        ] {
            assert_eq!(refused(expression), QueryError::TooLarge, "{expression}");
        }
        assert!(ask("to_string([to_string(@)])").is_string());
        assert_eq!(ask("join(', ', [].name)"), json!("gw1, gw2, calm-otter-0001"));
        assert_eq!(ask("[].{n: name, a: to_string(address), m: to_string(received)} | [0].m"), "0");
    }

    #[test]
    fn depth_is_what_holds_others_within_it() {
        for (expression, expected) in [
            ("a && b && c || d == e", 0),
            ("!a && !b && !!c", 2),
            ("a != b != c", 0),
            ("f(&a, &b, !c)", 2),
            ("&!a && !b", 2),
            ("!&a && !&b", 4),
            ("(a) && [b] && {c: d}", 1),
            ("[?!(a)] | [?!(b)]", 3),
            ("')' == ']' && (\"}\" == `\")\"`)", 1),
            (r"'\'((' == (a)", 1),
            ("))))(a)", 1),
        ] {
            assert_eq!(depth(expression), expected, "{expression}");
        }
        let flat = "name && ".repeat(100) + "name";
        assert_eq!(ask(&format!("[0].{{n: {flat}}}")), json!({"n": "gw1"}));
        let flat = "!via && ".repeat(100) + "name";
        assert_eq!(ask(&format!("[?{flat}].name")), json!(["gw1", "gw2"]));
        // Brackets within texts close none.
        let hidden = "(".repeat(20) + "'))))))))))))))))))))'==" + &"(".repeat(20);
        assert_eq!(answer(&mesh(), &hidden), Err(QueryError::TooDeep));
    }

    /// The stack of a thread of the runtime is 2 MiB; this one has half of it.
    #[test]
    fn the_deepest_that_is_allowed_fits_a_small_stack() {
        let deepest = || {
            let fill = |unit: &str| unit.repeat(MAX_LENGTH / unit.len());
            let chains = [
                "a.", "a|", "a||", "a&&", "!a&&", "!a==", "[]", "[0]", "[*]", "*.", "a==", "@,",
                "-",
            ];
            for chain in chains {
                // Well-formed or not, it must come back.
                let _ = answer(&mesh(), &fill(chain));
                let _ = answer(&mesh(), fill(chain).trim_end_matches(['.', '|', '&', '=', ',']));
            }
            for (open, close) in [("(", ")"), ("[", "]"), ("{a:", "}"), ("!", ""), ("abs(", ")")] {
                let inner = fill("a.")[..MAX_LENGTH - 200].trim_end_matches('.').to_owned();
                let deep = open.repeat(MAX_DEPTH) + &inner + &close.repeat(MAX_DEPTH);
                let _ = answer(&mesh(), &deep);
            }
        };
        let thread = std::thread::Builder::new().stack_size(1 << 20).spawn(deepest);
        thread.expect("a thread").join().expect("no overflow and no panic");
    }
}
