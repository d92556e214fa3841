//! From a query to a response (RFC 1035, RFC 6891).

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::zone::{Lookup, Zone, soa};

/// How long an answer may be remembered, in seconds: members come, go and change their names.
const TTL: u32 = 10;
/// The longest response over UDP without EDNS, in bytes.
const PLAIN: usize = 512;
/// The longest response over UDP, in bytes: it passes every IPv6 path in one piece.
const DATAGRAM: u16 = 1232;
/// The longest response over TCP, in bytes.
const STREAM: usize = 65_535;

/// How long a response may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// As long as the one who asks can take in one datagram; else it is told to ask over TCP.
    Datagram,
    /// As long as a message over TCP may be.
    Stream,
}

/// The response to a query; `None` if there is to be none, because it is no query.
#[must_use]
pub fn answer(zone: &Zone, query: &[u8], limit: Limit) -> Option<Vec<u8>> {
    // A response must never be answered: two servers could go on for ever.
    if query.len() < 12 || query[2] & 0x80 != 0 {
        return None;
    }
    let Ok(asked) = Message::from_vec(query) else {
        let id = u16::from_be_bytes([query[0], query[1]]);
        return Message::error_msg(id, OpCode::Query, ResponseCode::FormErr).to_vec().ok();
    };
    let response = respond(zone, &asked);
    let bytes = response.to_vec().ok()?;
    if bytes.len() <= longest(&asked, limit) {
        return Some(bytes);
    }
    let mut cut = response.truncate();
    (cut.answers, cut.authorities) = (Vec::new(), Vec::new());
    cut.to_vec().ok()
}

fn longest(asked: &Message, limit: Limit) -> usize {
    match limit {
        Limit::Stream => STREAM,
        Limit::Datagram => match &asked.edns {
            Some(edns) => usize::from(edns.max_payload().min(DATAGRAM)).max(PLAIN),
            None => PLAIN,
        },
    }
}

fn respond(zone: &Zone, asked: &Message) -> Message {
    let mut response = Message::new(asked.metadata.id, MessageType::Response, OpCode::Query);
    response.metadata = Metadata::response_from_request(&asked.metadata);
    response.queries.clone_from(&asked.queries);
    if let Some(edns) = &asked.edns {
        let mut ours = Edns::new();
        ours.set_max_payload(DATAGRAM).set_version(0);
        response.set_edns(ours);
        if edns.version() > 0 {
            response.metadata.response_code = ResponseCode::BADVERS;
            return response;
        }
    }
    response.metadata.response_code = match (asked.metadata.op_code, asked.queries.as_slice()) {
        (OpCode::Query, [question]) if question.query_class() == DNSClass::IN => {
            fill(&mut response, zone, question)
        }
        (OpCode::Query, [_]) => ResponseCode::Refused,
        (OpCode::Query, _) => ResponseCode::FormErr,
        _ => ResponseCode::NotImp,
    };
    response
}

/// Adds the answers to a question.
fn fill(response: &mut Message, zone: &Zone, question: &Query) -> ResponseCode {
    let kind = question.query_type();
    if matches!(kind, RecordType::AXFR | RecordType::IXFR) {
        return ResponseCode::Refused;
    }
    match zone.lookup(&labels(question.name())) {
        Lookup::Elsewhere => ResponseCode::Refused,
        Lookup::Nothing(apex) => {
            deny(response, apex);
            ResponseCode::NXDomain
        }
        Lookup::Records(apex, records) => {
            let wanted = |data: &RData| kind == RecordType::ANY || data.record_type() == kind;
            let record = |data| Record::from_rdata(question.name().clone(), TTL, data);
            response.metadata.authoritative = true;
            response.answers = records.into_iter().filter(wanted).map(record).collect();
            if response.answers.is_empty() {
                deny(response, apex);
            }
            ResponseCode::NoError
        }
    }
}

/// Says by whose authority there is nothing (RFC 2308).
fn deny(response: &mut Message, apex: Name) {
    response.metadata.authoritative = true;
    let soa = soa(&apex);
    response.authorities = vec![Record::from_rdata(apex, TTL, soa)];
}

/// The labels in lower case. What is no UTF-8 is no name of ours, and matches nothing.
fn labels(name: &Name) -> Vec<String> {
    name.iter().map(|label| String::from_utf8_lossy(label).to_ascii_lowercase()).collect()
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use proptest::prelude::*;
    use selvedge_model::{MeshId, NodeId};

    use super::*;
    use crate::names::Claim;
    use crate::zone::{Host, Options, Site};

    /// A mesh in which so many members share the name `web`.
    fn zone(members: u8) -> Zone {
        let host = |node: u8| Host {
            claim: Claim {
                node: NodeId([node; 32]),
                rank: 0,
                alias: "web".to_owned(),
                shared: true,
            },
            addresses: vec![[0xfd00, 0, 0, 0, 0, 0, 0, u16::from(node)].into()],
            services: [("web".to_owned(), "80".to_owned())].into(),
            live: true,
        };
        let site = Site {
            mesh: MeshId([1; 20]),
            name: "campus".to_owned(),
            prefixes: vec!["fd00::/64".parse().expect("a prefix")],
            hosts: (1..=members).map(host).collect(),
        };
        Zone::new(&[site], &Options::default())
    }

    fn query(name: &str, kind: RecordType) -> Message {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_str(name).expect("a name"), kind));
        message.metadata.recursion_desired = true;
        message
    }

    fn ask(zone: &Zone, query: &Message, limit: Limit) -> Message {
        let bytes = query.to_vec().expect("encodes");
        let response = answer(zone, &bytes, limit).expect("an answer");
        Message::from_vec(&response).expect("decodes")
    }

    fn code(query: &Message) -> ResponseCode {
        ask(&zone(1), query, Limit::Datagram).metadata.response_code
    }

    #[test]
    fn names_are_answered_whatever_their_case() {
        let asked = query("WEB.Campus.mesh.internal.", RecordType::AAAA);
        let response = ask(&zone(1), &asked, Limit::Datagram);
        assert_eq!((response.metadata.id, response.queries.clone()), (7, asked.queries));
        assert!(response.metadata.authoritative && response.metadata.recursion_desired);
        assert!(!response.metadata.recursion_available);
        let [record] = response.answers.as_slice() else { panic!("{response:?}") };
        // Resolvers that vary the case of letters compare it (draft-vixie-dnsext-dns0x20).
        assert!(record.name.eq_case(asked_name(&response)));
        assert_eq!(record.data.to_string(), "fd00::1");
    }

    fn asked_name(response: &Message) -> &Name {
        response.queries[0].name()
    }

    #[test]
    fn what_is_not_there_is_denied_with_authority() {
        let denied = |name, kind| {
            let response = ask(&zone(1), &query(name, kind), Limit::Datagram);
            assert!(response.answers.is_empty() && response.metadata.authoritative);
            assert_eq!(response.authorities[0].record_type(), RecordType::SOA);
            response.metadata.response_code
        };
        assert_eq!(denied("web.campus.mesh.internal.", RecordType::A), ResponseCode::NoError);
        assert_eq!(denied("gw9.campus.mesh.internal.", RecordType::A), ResponseCode::NXDomain);
    }

    #[test]
    fn what_is_none_of_ours_is_refused() {
        assert_eq!(code(&query("example.com.", RecordType::A)), ResponseCode::Refused);
        let apex = "mesh.internal.";
        assert_eq!(code(&query(apex, RecordType::SOA)), ResponseCode::NoError);
        assert_eq!(code(&query(apex, RecordType::AXFR)), ResponseCode::Refused);
        let mut chaos = query(apex, RecordType::TXT);
        chaos.queries[0].set_query_class(DNSClass::CH);
        assert_eq!(code(&chaos), ResponseCode::Refused);
        let mut update = query(apex, RecordType::SOA);
        update.metadata.op_code = OpCode::Update;
        assert_eq!(code(&update), ResponseCode::NotImp);
        let mut none = query(apex, RecordType::SOA);
        none.queries.clear();
        assert_eq!(code(&none), ResponseCode::FormErr);
        let mut newer = query(apex, RecordType::SOA);
        newer.set_edns(Edns::new().set_version(1).clone());
        let response = ask(&zone(1), &newer, Limit::Datagram);
        let high = response.edns.map(|edns| edns.rcode_high());
        assert_eq!(high, Some(1), "BADVERS is 16");
    }

    #[test]
    fn long_answers_are_cut_to_what_the_asker_takes() {
        let zone = zone(60);
        let mut asked = query("web.campus.mesh.internal.", RecordType::AAAA);
        let cut = ask(&zone, &asked, Limit::Datagram);
        assert!(cut.metadata.truncation && cut.answers.is_empty());
        let whole = ask(&zone, &asked, Limit::Stream);
        assert!(!whole.metadata.truncation && whole.answers.len() == 60);
        asked.set_edns(Edns::new().set_max_payload(4096).clone());
        let response = ask(&zone, &asked, Limit::Datagram);
        assert!(response.metadata.truncation, "60 addresses are longer than 1232 bytes");
        assert_eq!(response.edns.map(|edns| edns.max_payload()), Some(1232));
    }

    #[test]
    fn a_name_of_everybody_fits_a_message() {
        let zone = zone(250);
        let asked = query("_web._tcp.campus.mesh.internal.", RecordType::SRV);
        let response = ask(&zone, &asked, Limit::Stream);
        assert_eq!(response.answers.len(), 128);
    }

    proptest! {
        /// From noise, and from a good query of which some bytes were changed.
        #[test]
        fn every_answer_is_a_response_that_fits(
            noise in proptest::collection::vec(any::<u8>(), 0..64),
            changes in proptest::collection::vec((0..60_usize, any::<u8>()), 0..6),
        ) {
            let zone = zone(60);
            let mut query = query("web.campus.mesh.internal.", RecordType::ANY);
            query.set_edns(Edns::new().set_max_payload(4096).clone());
            let mut bent = query.to_vec().expect("encodes");
            let length = bent.len();
            changes.iter().for_each(|(at, byte)| bent[at % length] = *byte);
            for bytes in [noise, bent] {
                let Some(response) = answer(&zone, &bytes, Limit::Datagram) else { continue };
                prop_assert_eq!(&response[..2], &bytes[..2]);
                prop_assert!(response[2] & 0x80 != 0 && response.len() <= usize::from(DATAGRAM));
            }
        }
    }

    #[test]
    fn nothing_that_arrives_is_answered_by_a_panic_or_a_loop() {
        let zone = zone(2);
        let good = query("web.campus.mesh.internal.", RecordType::ANY).to_vec().expect("encodes");
        for length in 0..good.len() {
            let response = answer(&zone, &good[..length], Limit::Datagram);
            assert_eq!(response.is_some(), length >= 12);
        }
        let mut response = good.clone();
        response[2] |= 0x80;
        assert_eq!(answer(&zone, &response, Limit::Datagram), None);
        let mut wrong = good;
        wrong[5] = 200;
        let refused = answer(&zone, &wrong, Limit::Datagram).expect("an answer");
        let refused = Message::from_vec(&refused).expect("decodes");
        assert_eq!(refused.metadata.response_code, ResponseCode::FormErr);
        assert_eq!(refused.metadata.id, 7);
    }
}
