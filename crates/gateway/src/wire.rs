//! How voters' messages travel: as small datagrams, each authenticated for its one receiver.
//!
//! ```text
//! magic (4)  version (1)  length (1)  sender's name  body: CBOR (RFC 8949)  tag (16)
//! └───────────────────────── what the tag covers ─────────────────────────┘
//! ```
//!
//! The body is a map of numbered fields. Whoever reads it skips fields that it does not know; an
//! answer or a kind that it does not know is an error, and the datagram is dropped. Names stand
//! in it once, in a table that the rest refers to.
//!
//! The tag is BLAKE3 keyed with a [`PairKey`], cut to 128 bits. The key belongs to one sender and
//! one receiver in this order, so that a datagram proves where it is from and whom it is for, and
//! one that is reflected proves nothing. Contents are not secret. Whether a datagram is fresh the
//! key does not say: a probe is believed by the nonce that its acknowledgement repeats, news by
//! their sequence number.
//!
//! A receiver allocates no more than a few times the length of what arrives, looks for a key by
//! the name in clear, and reads the body only after the tag has been found right. An answer is
//! about as long as the question, and goes to none but who could seal it.
//!
//! # Sizes
//! With names of three letters, everybody heard and no vote: 77 bytes for three voters, 102 for
//! eight; each vote adds some 20. [`MAX_DATAGRAM`] holds 32 voters whose names have 27 letters, or
//! 14 with the longest, three votes and the greatest numbers included.

use std::ops::RangeInclusive;
use std::time::Duration;

use minicbor::decode::{Decoder, Error as CborError};
use minicbor::{Decode, Encode};
use selvedge_model::NodeName;
use zeroize::Zeroizing;

use crate::kv::Revision;
use crate::probe::{Answer, Body, Electorate, MAX_VOTERS, Message, News, Stage, Vote};

/// The version of the format.
pub const VERSION: u8 = 1;
/// What is read: the next version too, so that agents of adjacent versions hear each other.
const KNOWN: RangeInclusive<u8> = VERSION..=VERSION + 1;
/// No datagram is longer than this, in bytes. It passes every path that carries IPv6 whole, under
/// an encapsulation or two (1280 bytes: RFC 8200, section 5).
pub const MAX_DATAGRAM: usize = 1200;

const MAGIC: [u8; 4] = *b"svgp";
const TAG: usize = 16;
/// The longest name (see [`NodeName`]).
const MAX_NAME: usize = 63;
/// The longest body: with it even the longest name fits.
const MAX_BODY: usize = MAX_DATAGRAM - MAGIC.len() - 2 - MAX_NAME - TAG;
/// Voters, those heard, and suspects: no message names more.
const MAX_NAMES: usize = 3 * MAX_VOTERS;
/// Tells these keys from all others that come from the same secret.
const CONTEXT: &str = "selvedge 2026-11 gateway probes: sender to receiver";

/// Why a message cannot be sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// It names more than [`MAX_VOTERS`].
    #[error("a message names {found} {what}; at most {MAX_VOTERS} can be")]
    TooMany {
        /// What there are too many of.
        what: &'static str,
        /// How many there are.
        found: usize,
    },
    /// The voters are not in ascending order.
    #[error("the voters of a message are not in ascending order")]
    Unordered,
    /// It does not fit into a datagram.
    #[error(
        "a message of {len} bytes does not fit into a datagram ({MAX_BODY} bytes do): use fewer \
         voters or shorter names"
    )]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
}

/// Why bytes are no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Longer than any message.
    #[error("the message is too long: {len} bytes, at most {MAX_BODY} are allowed")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// A kind or an answer that is not known here, perhaps of a newer version.
    #[error("the message says {what} {number}, which is not known here")]
    Unknown {
        /// What it is that is not known.
        what: &'static str,
        /// Its number.
        number: u64,
    },
    /// Not the shape of a message.
    #[error("the message is malformed: {0}")]
    Malformed(String),
}

/// Why a datagram is refused. Nothing may be answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// It is no probe at all.
    #[error("it is no probe")]
    Garbage,
    /// Of a version that is not known here.
    #[error(
        "it has version {found}, which is not known here (known: {VERSION} and its neighbours)"
    )]
    Version {
        /// Its version.
        found: u8,
    },
    /// There is no key for the name that it is sent under.
    #[error("no node with the name {0} is known")]
    UnknownSender(NodeName),
    /// It was not sealed by that node for this one, or was changed on its way.
    #[error("its seal is not that of {0}")]
    BadTag(NodeName),
    /// It is authentic, and no message that is understood here.
    #[error("{from} sent what is not understood: {error}")]
    Contents {
        /// Who sent it.
        from: NodeName,
        /// What is wrong with it.
        error: DecodeError,
    },
}

/// The key that authenticates datagrams from one node to another, in this direction alone.
///
/// It is wiped from memory when it is dropped, and `Debug` does not show it.
#[derive(Clone)]
pub struct PairKey(Zeroizing<[u8; 32]>);

impl PairKey {
    /// The key for datagrams from `sender` to `receiver`, both given by their public keys, from
    /// the secret that the two share (X25519, RFC 7748, section 6.1). The public keys are part of
    /// what is hashed, as that section advises.
    #[must_use]
    pub fn derive(shared: &[u8; 32], sender: &[u8; 32], receiver: &[u8; 32]) -> Self {
        let material = Zeroizing::new([*shared, *sender, *receiver].concat());
        Self(Zeroizing::new(blake3::derive_key(CONTEXT, &material)))
    }

    fn tag(&self, bytes: &[u8]) -> blake3::Hash {
        blake3::keyed_hash(&self.0, bytes)
    }

    /// Whether `tag` is that of `bytes`, found in constant time.
    fn verifies(&self, bytes: &[u8], tag: &[u8; TAG]) -> bool {
        let expected = self.tag(bytes);
        let mut claimed = *expected.as_bytes();
        claimed[..TAG].copy_from_slice(tag);
        // Hashes are compared in constant time.
        blake3::Hash::from_bytes(claimed) == expected
    }
}

impl std::fmt::Debug for PairKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PairKey(..)")
    }
}

/// The datagram that carries `message` from `from` to the node for which `key` is.
///
/// # Errors
/// If the message is too big: see [`EncodeError`].
pub fn seal(message: &Message, from: &NodeName, key: &PairKey) -> Result<Vec<u8>, EncodeError> {
    let body = encode(message)?;
    let name = from.as_str().as_bytes();
    let mut datagram = Vec::with_capacity(MAGIC.len() + 2 + name.len() + body.len() + TAG);
    datagram.extend(MAGIC);
    datagram.push(VERSION);
    datagram.push(u8::try_from(name.len()).expect("a name has at most 63 bytes"));
    datagram.extend(name);
    datagram.extend(body);
    let tag = key.tag(&datagram);
    datagram.extend(&tag.as_bytes()[..TAG]);
    Ok(datagram)
}

/// The message in a datagram, and its sender; `key_of` finds the key for datagrams from a node.
///
/// # Errors
/// If it is not one that a known node has sealed for this one: see [`OpenError`].
pub fn open<'k>(
    datagram: &[u8],
    key_of: impl FnOnce(&NodeName) -> Option<&'k PairKey>,
) -> Result<(NodeName, Message), OpenError> {
    let Parts { from, body, covered, tag } = Parts::of(datagram)?;
    let Some(key) = key_of(&from) else { return Err(OpenError::UnknownSender(from)) };
    if !key.verifies(covered, tag) {
        return Err(OpenError::BadTag(from));
    }
    match decode(body) {
        Ok(message) => Ok((from, message)),
        Err(error) => Err(OpenError::Contents { from, error }),
    }
}

/// A datagram taken apart, nothing of it believed yet.
struct Parts<'a> {
    from: NodeName,
    body: &'a [u8],
    covered: &'a [u8],
    tag: &'a [u8; TAG],
}

impl<'a> Parts<'a> {
    fn of(datagram: &'a [u8]) -> Result<Self, OpenError> {
        if datagram.len() > MAX_DATAGRAM {
            return Err(OpenError::Garbage);
        }
        let (covered, tag) = datagram.split_last_chunk().ok_or(OpenError::Garbage)?;
        let rest = covered.strip_prefix(&MAGIC).ok_or(OpenError::Garbage)?;
        let ([version, length], rest) = rest.split_first_chunk().ok_or(OpenError::Garbage)?;
        if !KNOWN.contains(version) {
            return Err(OpenError::Version { found: *version });
        }
        let (name, body) = rest.split_at_checked(usize::from(*length)).ok_or(OpenError::Garbage)?;
        let name = std::str::from_utf8(name).ok().and_then(|name| name.parse().ok());
        Ok(Self { from: name.ok_or(OpenError::Garbage)?, body, covered, tag })
    }
}

/// A message in bytes, without the sender's name and seal.
///
/// # Errors
/// If it is too big: see [`EncodeError`].
pub fn encode(message: &Message) -> Result<Vec<u8>, EncodeError> {
    let News { sequence, electorate, hears, votes, away, unfit } = &message.news;
    let names = names(&message.news)?;
    let index = |name: &NodeName| position(&names, name);
    let (kind, nonce, answer) = match message.body {
        Body::Probe { nonce } => (kind::PROBE, nonce, None),
        Body::Ack { nonce, answer } => (kind::ACK, nonce, Some(number_of(answer))),
    };
    let raw = RawMessage {
        incarnation: message.incarnation.0,
        kind,
        nonce,
        answer,
        sequence: *sequence,
        revision: electorate.revision.0,
        voters: electorate.voters.len() as u64,
        hears: hears.iter().map(index).collect(),
        votes: votes.iter().map(|vote| RawVote::of(vote, index(&vote.suspect))).collect(),
        away_ms: u64::try_from(away.as_millis()).unwrap_or(u64::MAX),
        names: names.iter().map(|name| name.as_str()).collect(),
        unfit: unfit.then_some(true),
    };
    let bytes = minicbor::to_vec(&raw).expect("writing to a Vec does not fail");
    match bytes.len() {
        0..=MAX_BODY => Ok(bytes),
        len => Err(EncodeError::TooLong { len }),
    }
}

/// The message that [`encode`] has made `bytes` of.
///
/// # Errors
/// If it is none that is understood here: see [`DecodeError`].
pub fn decode(bytes: &[u8]) -> Result<Message, DecodeError> {
    if bytes.len() > MAX_BODY {
        return Err(DecodeError::TooLong { len: bytes.len() });
    }
    let mut decoder = Decoder::new(bytes);
    let raw: RawMessage<'_> = decoder.decode().map_err(malformed)?;
    if decoder.position() != bytes.len() {
        return Err(malformed("bytes follow the end"));
    }
    let names = raw.names()?;
    let voters = raw.voters(&names)?;
    let news = News {
        sequence: raw.sequence,
        electorate: Electorate { revision: Revision(raw.revision), voters },
        hears: raw.hears.iter().map(|index| name(&names, *index)).collect::<Result<_, _>>()?,
        votes: raw.votes.iter().map(|vote| vote.parse(&names)).collect::<Result<_, _>>()?,
        away: Duration::from_millis(raw.away_ms),
        unfit: raw.unfit.unwrap_or_default(),
    };
    Ok(Message { incarnation: Revision(raw.incarnation), body: raw.body()?, news })
}

mod kind {
    pub(super) const PROBE: u64 = 0;
    pub(super) const ACK: u64 = 1;
}

/// A message as it is written.
#[derive(Encode, Decode)]
#[cbor(map)]
struct RawMessage<'a> {
    #[n(0)]
    incarnation: i64,
    #[n(1)]
    kind: u64,
    #[n(2)]
    nonce: u64,
    #[n(3)]
    answer: Option<u64>,
    #[n(4)]
    sequence: u64,
    #[n(5)]
    revision: i64,
    /// All names: first the voters, then whoever else is spoken of.
    #[cbor(b(6), decode_with = "list::<MAX_NAMES, _, _>")]
    names: Vec<&'a str>,
    /// How many of the names are voters.
    #[n(7)]
    voters: u64,
    /// Which of the names are heard.
    #[cbor(n(8), with = "indexes")]
    hears: Vec<u8>,
    #[cbor(n(9), decode_with = "list::<MAX_VOTERS, _, _>")]
    votes: Vec<RawVote>,
    #[n(10)]
    away_ms: u64,
    #[n(11)]
    unfit: Option<bool>,
}

/// A vote as it is written.
#[derive(Encode, Decode)]
#[cbor(map)]
struct RawVote {
    #[n(0)]
    suspect: u8,
    #[n(1)]
    incarnation: i64,
    #[n(2)]
    networks: u64,
    #[n(3)]
    stage: u64,
}

impl RawMessage<'_> {
    fn names(&self) -> Result<Vec<NodeName>, DecodeError> {
        self.names.iter().map(|name| name.parse().map_err(malformed)).collect()
    }

    fn voters(&self, names: &[NodeName]) -> Result<Vec<NodeName>, DecodeError> {
        let count = usize::try_from(self.voters).ok().filter(|count| *count <= MAX_VOTERS);
        let voters = count.and_then(|count| names.get(..count));
        match voters.ok_or_else(|| malformed("more voters than there may be"))? {
            voters if is_ascending(voters) => Ok(voters.to_vec()),
            _ => Err(malformed("the voters are not in ascending order")),
        }
    }

    fn body(&self) -> Result<Body, DecodeError> {
        let nonce = self.nonce;
        match (self.kind, self.answer) {
            (kind::PROBE, _) => Ok(Body::Probe { nonce }),
            (kind::ACK, Some(answer)) => Ok(Body::Ack { nonce, answer: answer_of(answer)? }),
            (kind::ACK, None) => Err(malformed("an acknowledgement without an answer")),
            (number, _) => Err(DecodeError::Unknown { what: "a kind", number }),
        }
    }
}

impl RawVote {
    const fn of(vote: &Vote, suspect: u8) -> Self {
        let Vote { incarnation, networks, stage, suspect: _ } = vote;
        let stage = number_of_stage(*stage);
        Self { suspect, incarnation: incarnation.0, networks: *networks, stage }
    }

    fn parse(&self, names: &[NodeName]) -> Result<Vote, DecodeError> {
        let Self { suspect, incarnation, networks, stage } = *self;
        let (suspect, stage) = (name(names, suspect)?, stage_of(stage)?);
        Ok(Vote { suspect, incarnation: Revision(incarnation), networks, stage })
    }
}

/// The table of names: the voters, then whoever else is heard or suspected.
fn names(news: &News) -> Result<Vec<&NodeName>, EncodeError> {
    let News { electorate: Electorate { voters, .. }, hears, votes, .. } = news;
    let counts = [("voters", voters.len()), ("nodes heard", hears.len()), ("votes", votes.len())];
    for (what, found) in counts {
        if found > MAX_VOTERS {
            return Err(EncodeError::TooMany { what, found });
        }
    }
    if !is_ascending(voters) {
        return Err(EncodeError::Unordered);
    }
    let mut names: Vec<&NodeName> = voters.iter().collect();
    for name in hears.iter().chain(votes.iter().map(|vote| &vote.suspect)) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

fn is_ascending(names: &[NodeName]) -> bool {
    names.is_sorted_by(|a, b| a < b)
}

fn position(names: &[&NodeName], name: &NodeName) -> u8 {
    let position = names.iter().position(|listed| *listed == name);
    let position = position.expect("the table was made of these names");
    u8::try_from(position).expect("the table has at most 96 names")
}

fn name(names: &[NodeName], index: u8) -> Result<NodeName, DecodeError> {
    let name = names.get(usize::from(index)).cloned();
    name.ok_or_else(|| malformed("a name that is not in the table"))
}

const fn number_of(answer: Answer) -> u64 {
    match answer {
        Answer::Alive => 0,
        Answer::Withheld => 1,
        Answer::Convicted => 2,
        Answer::Unregistered => 3,
        Answer::Unsure => 4,
    }
}

const fn answer_of(number: u64) -> Result<Answer, DecodeError> {
    match number {
        0 => Ok(Answer::Alive),
        1 => Ok(Answer::Withheld),
        2 => Ok(Answer::Convicted),
        3 => Ok(Answer::Unregistered),
        4 => Ok(Answer::Unsure),
        5.. => Err(DecodeError::Unknown { what: "an answer", number }),
    }
}

const fn number_of_stage(stage: Stage) -> u64 {
    match stage {
        Stage::Tentative => 0,
        Stage::Firm => 1,
        Stage::Acted => 2,
        Stage::Forced => 3,
    }
}

const fn stage_of(number: u64) -> Result<Stage, DecodeError> {
    match number {
        0 => Ok(Stage::Tentative),
        1 => Ok(Stage::Firm),
        2 => Ok(Stage::Acted),
        3 => Ok(Stage::Forced),
        4.. => Err(DecodeError::Unknown { what: "a vote's stage", number }),
    }
}

fn malformed(reason: impl std::fmt::Display) -> DecodeError {
    DecodeError::Malformed(reason.to_string())
}

/// A list of at most `MAX` items, refused as soon as it exceeds them.
fn list<'b, const MAX: usize, Ctx, T: Decode<'b, Ctx>>(
    d: &mut Decoder<'b>,
    ctx: &mut Ctx,
) -> Result<Vec<T>, CborError> {
    let position = d.position();
    let mut list = Vec::new();
    for item in d.array_iter_with(ctx)? {
        if list.len() == MAX {
            return Err(CborError::message("the list is too long").at(position));
        }
        list.push(item?);
    }
    Ok(list)
}

/// Places in the table of names, as a byte string.
mod indexes {
    use minicbor::decode::{Decoder, Error};
    use minicbor::encode::{self, Encoder, Write};

    use super::MAX_VOTERS;

    pub(super) fn encode<Ctx, W: Write>(
        list: &[u8],
        e: &mut Encoder<W>,
        _: &mut Ctx,
    ) -> Result<(), encode::Error<W::Error>> {
        e.bytes(list)?.ok()
    }

    pub(super) fn decode<Ctx>(d: &mut Decoder<'_>, _: &mut Ctx) -> Result<Vec<u8>, Error> {
        let position = d.position();
        match d.bytes()? {
            list if list.len() <= MAX_VOTERS => Ok(list.to_vec()),
            _ => Err(Error::message("the list is too long").at(position)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> NodeName {
        text.parse().expect("a name")
    }

    fn key(from: u8, to: u8) -> PairKey {
        PairKey::derive(&[7; 32], &[from; 32], &[to; 32])
    }

    /// A probe of the first of `voters` that hears all of them.
    fn probe(voters: Vec<NodeName>) -> Message {
        let electorate = Electorate { revision: Revision(4711), voters: voters.clone() };
        let news = News { sequence: 70_000, electorate, hears: voters, ..News::default() };
        Message {
            incarnation: Revision(4242),
            body: Body::Probe { nonce: 0x0123_4567_89ab_cdef },
            news,
        }
    }

    fn gateways(count: usize, length: usize) -> Vec<NodeName> {
        (0..count).map(|number| name(&format!("g{number:0>width$}", width = length - 1))).collect()
    }

    fn len(count: usize, length: usize) -> Result<usize, EncodeError> {
        let voters = gateways(count, length);
        let from = voters[0].clone();
        seal(&probe(voters), &from, &key(1, 2)).map(|datagram| datagram.len())
    }

    /// The same with the greatest numbers that there are, and three votes.
    fn greatest(voters: Vec<NodeName>) -> Message {
        let vote = |suspect: &NodeName| Vote {
            suspect: suspect.clone(),
            incarnation: Revision(i64::MAX),
            networks: u64::MAX,
            stage: Stage::Forced,
        };
        let mut message = probe(voters);
        message.incarnation = Revision(i64::MAX);
        message.body = Body::Ack { nonce: u64::MAX, answer: Answer::Unregistered };
        message.news.votes = message.news.hears[..3].iter().map(vote).collect();
        message.news.sequence = u64::MAX;
        message.news.electorate.revision = Revision(i64::MAX);
        message.news.away = Duration::from_millis(u64::MAX);
        message
    }

    #[test]
    fn sizes_are_those_of_the_documentation() {
        assert_eq!((len(3, 3), len(8, 3)), (Ok(77), Ok(102)));
        for (count, length) in [(MAX_VOTERS, 27), (14, MAX_NAME)] {
            assert!(encode(&greatest(gateways(count, length))).is_ok());
        }
        for (count, length) in [(MAX_VOTERS, 28), (15, MAX_NAME)] {
            let refused = encode(&greatest(gateways(count, length)));
            assert!(matches!(refused, Err(EncodeError::TooLong { .. })), "{count} of {length}");
        }
    }

    #[test]
    fn the_format_stays() {
        let voters = vec![name("a"), name("b")];
        let mut message = probe(voters);
        message.body = Body::Ack { nonce: 5, answer: Answer::Withheld };
        message.news.votes = vec![Vote {
            suspect: name("c"),
            incarnation: Revision(9),
            networks: 8,
            stage: Stage::Acted,
        }];
        message.news.away = Duration::from_secs(10);
        let datagram = seal(&message, &name("a"), &key(1, 2)).expect("small");
        let expected = concat!(
            "73766770010161ab001910920101020503010",
            "41a00011170051912670683616161626163070208",
            "4200010981a400020109020803020a192710",
            "ee8b870ae9cd9a6f0ac449842847afbc",
        );
        assert_eq!(hex(&datagram), expected);
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn no_bit_can_be_changed_on_the_way() {
        let key = key(1, 2);
        let datagram = seal(&probe(gateways(3, 3)), &name("g00"), &key).expect("small");
        assert!(open(&datagram, |_| Some(&key)).is_ok());
        for bit in 0..datagram.len() * 8 {
            let mut changed = datagram.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&changed, |_| Some(&key)).is_err(), "bit {bit}");
        }
        for length in 0..datagram.len() {
            assert!(open(&datagram[..length], |_| Some(&key)).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn a_datagram_is_for_its_receiver_alone() {
        let from = name("g00");
        let datagram = seal(&probe(gateways(3, 3)), &from, &key(1, 2)).expect("small");
        // Back to its sender, on to a third node, under another secret.
        let other = PairKey::derive(&[8; 32], &[1; 32], &[2; 32]);
        for wrong in [key(2, 1), key(1, 3), other] {
            assert_eq!(open(&datagram, |_| Some(&wrong)), Err(OpenError::BadTag(from.clone())));
        }
        assert_eq!(open(&datagram, |_| None), Err(OpenError::UnknownSender(from)));
    }

    #[test]
    fn keys_are_not_shown() {
        assert_eq!(format!("{:?}", key(1, 2)), "PairKey(..)");
    }

    #[test]
    fn another_version_is_named() {
        let mut datagram = seal(&probe(gateways(3, 3)), &name("g00"), &key(1, 2)).expect("small");
        datagram[4] = 9;
        assert_eq!(open(&datagram, |_| None), Err(OpenError::Version { found: 9 }));
    }

    /// A probe's body with one field more; its first byte is the size of the map.
    fn extended(message: &Message, field: &[u8]) -> Vec<u8> {
        let mut bytes = encode(message).expect("small");
        bytes[0] += 1;
        bytes.extend(field);
        bytes
    }

    #[test]
    fn fields_of_a_newer_version_are_skipped() {
        let message = probe(gateways(3, 3));
        // 99: {0: [1, "x"]}
        let newer = extended(&message, &[0x18, 99, 0xa1, 0x00, 0x82, 0x01, 0x61, b'x']);
        assert_eq!(decode(&newer), Ok(message));
    }

    /// As if the later of two fields with one number were that of the message.
    fn with(message: &Message, field: u8, value: &[u8]) -> Result<Message, DecodeError> {
        decode(&extended(message, &[&[field], value].concat()))
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let message = probe(gateways(3, 3));
        let unknown = |what, number| Err(DecodeError::Unknown { what, number });
        assert_eq!(with(&message, 1, &[2]), unknown("a kind", 2));
        let ack = Body::Ack { nonce: 1, answer: Answer::Alive };
        let ack = Message { body: ack, ..message.clone() };
        assert_eq!(with(&ack, 3, &[5]), unknown("an answer", 5));
        let cases: [(&str, u8, &[u8]); 7] = [
            ("an acknowledgement without an answer", 1, &[1]),
            (
                "the voters are not in ascending order",
                6,
                &[0x83, 0x61, b'c', 0x61, b'b', 0x61, b'd'],
            ),
            ("\"-\" is not a node name", 6, &[0x83, 0x61, b'a', 0x61, b'b', 0x61, b'-']),
            ("more voters than there may be", 7, &[4]),
            ("more voters than there may be", 7, &[0x18, 33]),
            ("a name that is not in the table", 8, &[0x41, 3]),
            ("the list is too long", 8, &[&[0x58, 33][..], &[0; 33]].concat()),
        ];
        for (expected, field, value) in cases {
            let error = with(&message, field, value).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn what_is_too_much_is_not_sent() {
        let refused = |message: &Message| encode(message).expect_err("too much");
        let many = probe(gateways(MAX_VOTERS + 1, 3));
        let found = MAX_VOTERS + 1;
        assert_eq!(refused(&many), EncodeError::TooMany { what: "voters", found });
        let mut unordered = probe(gateways(3, 3));
        unordered.news.electorate.voters.reverse();
        assert_eq!(refused(&unordered), EncodeError::Unordered);
    }

    #[test]
    fn what_is_authentic_and_not_understood_names_its_sender() {
        let key = key(1, 2);
        let mut datagram = [&MAGIC[..], &[VERSION, 1, b'a', 0xff]].concat();
        let tag = key.tag(&datagram);
        datagram.extend(&tag.as_bytes()[..TAG]);
        let error = open(&datagram, |_| Some(&key)).expect_err("no message");
        assert!(matches!(error, OpenError::Contents { from, .. } if from == name("a")));
    }

    #[test]
    fn the_next_version_is_heard() {
        let key = key(1, 2);
        let versions = (0..=u8::MAX).filter(|version| {
            let mut datagram = [&MAGIC[..], &[*version, 1, b'a', 0xff]].concat();
            let tag = key.tag(&datagram);
            datagram.extend(&tag.as_bytes()[..TAG]);
            let error = open(&datagram, |_| Some(&key)).expect_err("no message");
            !matches!(error, OpenError::Version { found } if found == *version)
        });
        assert_eq!(versions.collect::<Vec<_>>(), [VERSION, VERSION + 1]);
    }

    fn any_name() -> impl Strategy<Value = NodeName> {
        "[a-zA-Z0-9][a-zA-Z0-9._-]{0,20}".prop_map(|text| name(&text))
    }

    fn any_vote() -> impl Strategy<Value = Vote> {
        (any_name(), any::<i64>(), any::<u64>(), 0..4_u64).prop_map(
            |(suspect, incarnation, networks, stage)| Vote {
                suspect,
                incarnation: Revision(incarnation),
                networks,
                stage: stage_of(stage).expect("known"),
            },
        )
    }

    fn any_body() -> impl Strategy<Value = Body> {
        let answer = (0..4_u64).prop_map(|number| answer_of(number).expect("known"));
        prop_oneof![
            any::<u64>().prop_map(|nonce| Body::Probe { nonce }),
            (any::<u64>(), answer).prop_map(|(nonce, answer)| Body::Ack { nonce, answer }),
        ]
    }

    prop_compose! {
        fn any_news()(
            sequence: u64,
            revision: i64,
            voters in btree_set(any_name(), 0..8),
            others in vec(any_name(), 0..4),
            votes in vec(any_vote(), 0..6),
            away: u64,
            unfit: bool,
        ) -> News {
            let voters: Vec<_> = voters.into_iter().collect();
            let hears = others.into_iter().chain(voters.iter().rev().cloned()).collect();
            let electorate = Electorate { revision: Revision(revision), voters };
            let away = Duration::from_millis(away);
            News { sequence, electorate, hears, votes, away, unfit }
        }
    }

    prop_compose! {
        fn any_message()(incarnation: i64, body in any_body(), news in any_news()) -> Message {
            Message { incarnation: Revision(incarnation), body, news }
        }
    }

    proptest! {
        #[test]
        fn what_is_sealed_is_opened(message in any_message(), from in any_name()) {
            let key = key(1, 2);
            let datagram = seal(&message, &from, &key).expect("within the bounds");
            prop_assert!(datagram.len() <= MAX_DATAGRAM);
            prop_assert_eq!(open(&datagram, |_| Some(&key)), Ok((from, message)));
        }

        #[test]
        fn garbage_is_refused(bytes in vec(any::<u8>(), 0..1400)) {
            let key = key(1, 2);
            prop_assert!(open(&bytes, |_| Some(&key)).is_err());
            let framed = [&MAGIC[..], &[VERSION], &bytes].concat();
            prop_assert!(open(&framed, |_| Some(&key)).is_err());
        }

        #[test]
        fn damaged_bodies_harm_nothing(message in any_message(), at: usize, byte: u8) {
            let mut bytes = encode(&message).expect("within the bounds");
            let at = at % bytes.len();
            bytes[at] = byte;
            if let Ok(message) = decode(&bytes) {
                let again = encode(&message).expect("no longer than what was read");
                prop_assert!(again.len() <= bytes.len());
                prop_assert_eq!(decode(&again), Ok(message));
            }
        }
    }
}
