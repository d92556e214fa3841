//! Recording what a core was told, and telling it to another one.
//!
//! A core is a function of its inputs, so a log of these replays to the same state to the letter,
//! on another machine and under a debugger. A log holds no key: what the node signed is in it, and
//! a replay takes its signatures from there. Whoever reads a log learns what a member knows; the
//! log of a founder also holds each invite that was redeemed, in full, and whoever reads it can
//! join with one that has uses left.
//!
//! It is `SVMJ`, the version, and frames of a length (four bytes, the greatest first) and a map of
//! numbered fields in CBOR; unknown fields are skipped. The first frame says how the core began.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use minicbor::{Decode, Encode};
use selvedge_model::{NodeId, Time};

use crate::codec::{self, fixed, optional};
use crate::config::Config;
use crate::crdt::Digest;
use crate::detector::Probing;
use crate::identity::Identity;
use crate::mesh::Mesh;
use crate::profile::Profile;
use crate::state::{MAX_SNAPSHOT, State};
use crate::time::UnixTime;
use crate::wire::MAX_MESSAGE;

/// What every log begins with, its version following.
const MAGIC: &[u8; 4] = b"SVMJ";
const VERSION: u8 = 1;
/// No frame but the first is longer than this, in bytes.
const MAX_FRAME: usize = MAX_MESSAGE + 4096;
/// After so many inputs the log says what the state is.
const CHECK_EVERY: u64 = 256;
/// The greatest number of signatures in one frame.
const MAX_SIGNED: usize = 4096;
/// The greatest number of places in [`Input::Bootstrap`].
pub(crate) const MAX_PLACES: usize = 16;
/// The greatest length of one, in bytes.
pub(crate) const MAX_PLACE: usize = 512;

/// One input of a core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Input<'a> {
    /// A message.
    Message(NodeId, &'a [u8]),
    /// The time has come.
    Timeout,
    /// The node is to say this of itself.
    Profile(&'a Profile),
    /// Members may be found there: at most [`MAX_PLACES`], none longer than [`MAX_PLACE`].
    Bootstrap(&'a [String]),
    /// The node leaves.
    Leave,
    /// The node evicts another.
    Evict(NodeId),
}

/// Why bytes are no log, or do not replay.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// Something else altogether.
    #[error("this is not the log of a mesh core")]
    NotAJournal,
    /// Of a version that is not known here.
    #[error("the log has version {found}, which is not known here (known: {VERSION})")]
    UnknownVersion {
        /// Its version.
        found: u8,
    },
    /// A frame is too long, or not the shape of one.
    #[error("frame {frame} of the log is malformed: {detail}")]
    Malformed {
        /// Which one; the first is 0.
        frame: usize,
        /// What is wrong.
        detail: String,
    },
    /// The core that replays came to another state than the one that was recorded: it is of
    /// another version, or something besides its inputs has an influence.
    #[error("after {inputs} inputs the state is another than the one that was recorded")]
    Diverged {
        /// After how many inputs that was found.
        inputs: u64,
    },
}

/// What came of replaying a log.
#[derive(Debug)]
pub struct Replayed {
    /// The core, as it was after the last input.
    pub mesh: Mesh,
    /// Number of inputs.
    pub inputs: u64,
    /// The time of the last input.
    pub now: Time,
    /// The log ends within a frame: whoever wrote it was stopped.
    pub cut: bool,
}

/// Tells a core what another one was told, as [`Mesh::recorded`] has logged it.
///
/// # Errors
/// See [`JournalError`].
pub fn replay(log: &[u8]) -> Result<Replayed, JournalError> {
    let (frames, cut) = read(log)?;
    let mut frames = frames.into_iter().enumerate();
    let malformed = |detail: &str| JournalError::Malformed { frame: 0, detail: detail.into() };
    let start = frames.next().and_then(|(_, frame)| frame.start);
    let start = start.ok_or_else(|| malformed("it does not say how the core began"))?;
    let rest: Vec<(usize, Frame)> = frames.collect();
    let tape = rest.iter().flat_map(|(_, frame)| &frame.signed);
    let tape = tape.map(|signed| (signed.of, signed.signature)).collect();
    let mesh = start.begin(tape).map_err(|detail| malformed(&detail))?;
    let now = Time::from_micros(start.now);
    let mut replayed = Replayed { mesh, inputs: 0, now, cut };
    for (number, frame) in rest {
        replayed.take(number, frame)?;
    }
    Ok(replayed)
}

impl Replayed {
    fn take(&mut self, number: usize, frame: Frame) -> Result<(), JournalError> {
        let wall = UnixTime(frame.wall);
        if let Some(kind) = frame.input {
            self.now = Time::from_micros(frame.now);
            self.inputs += 1;
            self.apply(kind, &frame, wall)
                .map_err(|detail| JournalError::Malformed { frame: number, detail })?;
        }
        while self.mesh.poll_event().is_some() {}
        while self.mesh.poll_transmit().is_some() {}
        match frame.check.is_none_or(|hash| self.mesh.digest().hash == hash) {
            true => Ok(()),
            false => Err(JournalError::Diverged { inputs: self.inputs }),
        }
    }

    fn apply(&mut self, kind: u8, frame: &Frame, wall: UnixTime) -> Result<(), String> {
        let mesh = &mut self.mesh;
        match (kind, frame.from, &frame.profile) {
            (0, Some(from), _) => mesh.handle_message(from, &frame.bytes, self.now, wall),
            (1, _, _) => mesh.handle_timeout(self.now, wall),
            // What was refused then is refused now.
            (2, _, Some(profile)) => drop(mesh.set_profile(profile.clone())),
            (3, _, _) => mesh.set_bootstrap(frame.places.iter().map(|p| p.0.clone()).collect()),
            (4, _, _) => drop(mesh.leave()),
            (5, Some(node), _) => drop(mesh.evict(node)),
            _ => return Err(format!("an input of kind {kind} is not known here")),
        }
        Ok(())
    }
}

/// The signatures that a node has made, to be written down.
#[derive(Clone, Debug, Default)]
pub(crate) struct SignatureLog(Arc<Mutex<Vec<Made>>>);

impl SignatureLog {
    /// Notes the signature over `message`.
    pub(crate) fn note(&self, message: &[u8], signature: [u8; 64]) {
        let made = Made { of: hash_of(message), signature };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(made);
    }

    fn take(&self) -> Vec<Made> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Signatures by what they are over.
pub(crate) type Tape = BTreeMap<[u8; 16], [u8; 64]>;

/// What names a message on a [`Tape`].
pub(crate) fn hash_of(message: &[u8]) -> [u8; 16] {
    let mut hash = [0; 16];
    hash.copy_from_slice(&blake3::hash(message).as_bytes()[..16]);
    hash
}

/// A log that is being written.
#[derive(Debug)]
pub(crate) struct Journal {
    bytes: Vec<u8>,
    inputs: u64,
    signatures: SignatureLog,
}

impl Journal {
    /// The log of a core that begins so.
    pub(crate) fn new(
        state: &State,
        config: &Config,
        seed: u64,
        (now, wall): (Time, UnixTime),
        signatures: SignatureLog,
    ) -> Self {
        let mut journal = Self { bytes: MAGIC.to_vec(), inputs: 0, signatures };
        journal.bytes.push(VERSION);
        let start = Start {
            state: state.encode(),
            config: Behaviour::of(config),
            seed,
            now: now.as_micros(),
            wall: wall.0,
            node: state.node(),
        };
        journal.write(&Frame { start: Some(start), ..Frame::default() });
        journal
    }

    /// Notes an input that comes now, after what was signed before it.
    pub(crate) fn note(&mut self, input: &Input<'_>, now: Time, wall: UnixTime) {
        self.note_signatures();
        self.inputs += 1;
        let mut frame = Frame { now: now.as_micros(), wall: wall.0, ..Frame::default() };
        frame.input = Some(match input {
            Input::Message(from, bytes) => {
                frame.from = Some(*from);
                // What is longer is refused for its length.
                frame.bytes = bytes[..bytes.len().min(MAX_MESSAGE + 1)].to_vec();
                0
            }
            Input::Timeout => 1,
            Input::Profile(profile) => {
                frame.profile = Some((*profile).clone());
                2
            }
            Input::Bootstrap(places) => {
                frame.places = places.iter().cloned().map(Place).collect();
                3
            }
            Input::Leave => 4,
            Input::Evict(node) => {
                frame.from = Some(*node);
                5
            }
        });
        self.write(&frame);
    }

    /// Whether the log is to say now what the state is.
    pub(crate) const fn wants_check(&self) -> bool {
        self.inputs.is_multiple_of(CHECK_EVERY)
    }

    /// Notes what the state is after all inputs so far.
    pub(crate) fn check(&mut self, digest: Digest) {
        self.note_signatures();
        self.write(&Frame { check: Some(digest.hash), ..Frame::default() });
    }

    /// What is to be appended to the log.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        self.note_signatures();
        std::mem::take(&mut self.bytes)
    }

    fn note_signatures(&mut self) {
        for signed in self.signatures.take().chunks(MAX_SIGNED) {
            self.write(&Frame { signed: signed.to_vec(), ..Frame::default() });
        }
    }

    fn write(&mut self, frame: &Frame) {
        let body = codec::to_vec(frame);
        let len = u32::try_from(body.len()).unwrap_or(u32::MAX);
        self.bytes.extend(len.to_be_bytes());
        self.bytes.extend(body);
    }
}

/// All whole frames, and whether bytes are left over.
fn read(log: &[u8]) -> Result<(Vec<Frame>, bool), JournalError> {
    let rest = log.strip_prefix(MAGIC).ok_or(JournalError::NotAJournal)?;
    let (version, mut rest) = rest.split_first().ok_or(JournalError::NotAJournal)?;
    if *version != VERSION {
        return Err(JournalError::UnknownVersion { found: *version });
    }
    let mut frames = Vec::new();
    while let Some((len, after)) = rest.split_first_chunk() {
        let number = frames.len();
        let malformed = |detail: String| JournalError::Malformed { frame: number, detail };
        let len = usize::try_from(u32::from_be_bytes(*len)).unwrap_or(usize::MAX);
        let max = if number == 0 { MAX_SNAPSHOT + 4096 } else { MAX_FRAME };
        if len > max {
            return Err(malformed(format!("it has {len} bytes")));
        }
        let Some((body, after)) = after.split_at_checked(len) else { return Ok((frames, true)) };
        frames.push(codec::from_slice(body).map_err(|error| malformed(error.to_string()))?);
        rest = after;
    }
    Ok((frames, !rest.is_empty()))
}

/// One frame: the beginning, an input, signatures, or a check.
#[derive(Clone, Debug, Default, Encode, Decode)]
#[cbor(map)]
struct Frame {
    #[n(0)]
    start: Option<Start>,
    #[n(1)]
    input: Option<u8>,
    #[n(2)]
    #[cbor(default)]
    now: u64,
    #[n(3)]
    #[cbor(default)]
    wall: u64,
    #[cbor(n(4), with = "optional", has_nil)]
    from: Option<NodeId>,
    #[cbor(n(5), encode_with = "minicbor::bytes::encode", default)]
    #[cbor(decode_with = "codec::bytes::<{ MAX_MESSAGE + 1 }, _>")]
    bytes: Vec<u8>,
    #[n(6)]
    profile: Option<Profile>,
    #[cbor(n(7), decode_with = "codec::list::<MAX_PLACES, _, _>", default)]
    places: Vec<Place>,
    #[cbor(n(8), decode_with = "codec::list::<MAX_SIGNED, _, _>", default)]
    signed: Vec<Made>,
    #[cbor(n(9), with = "optional", has_nil)]
    check: Option<[u8; 16]>,
}

#[derive(Clone, Debug, Encode, Decode)]
#[cbor(transparent)]
struct Place(#[cbor(n(0), decode_with = "codec::text::<MAX_PLACE, _>")] String);

/// A signature that the node made.
#[derive(Clone, Debug, Encode, Decode)]
#[cbor(map)]
struct Made {
    #[cbor(n(0), with = "fixed")]
    of: [u8; 16],
    #[cbor(n(1), with = "fixed")]
    signature: [u8; 64],
}

/// How a core began.
#[derive(Clone, Debug, Encode, Decode)]
#[cbor(map)]
struct Start {
    #[cbor(n(0), encode_with = "minicbor::bytes::encode")]
    #[cbor(decode_with = "codec::bytes::<MAX_SNAPSHOT, _>")]
    state: Vec<u8>,
    #[n(1)]
    config: Behaviour,
    #[n(2)]
    seed: u64,
    #[n(3)]
    now: u64,
    #[n(4)]
    wall: u64,
    #[cbor(n(5), with = "fixed")]
    node: NodeId,
}

impl Start {
    fn begin(&self, tape: Tape) -> Result<Mesh, String> {
        let state = State::decode(&self.state).map_err(|error| error.to_string())?;
        let identity = Identity::from_tape(self.node, tape);
        let (now, wall) = (Time::from_micros(self.now), UnixTime(self.wall));
        Mesh::new(identity, state, self.config.config(), self.seed, now, wall)
            .map_err(|error| error.to_string())
    }
}

/// A [`Config`]; times in microseconds.
#[derive(Clone, Debug, Encode, Decode)]
#[cbor(array)]
struct Behaviour {
    #[n(0)]
    times: [u64; 12],
    #[n(1)]
    keepalive: Option<u64>,
    #[n(2)]
    counts: [u64; 5],
}

impl Behaviour {
    fn of(config: &Config) -> Self {
        let Config { probing, copies, settle, push_limit, record_life, .. } = config.clone();
        let Config { certificate_lifetime, keepalive, max_nodes, .. } = config.clone();
        let Probing { interval, random_every, again, ask, helpers, help, .. } = probing;
        let Probing { patience, alone, retry, stall, .. } = probing;
        let times = [
            interval,
            again,
            ask,
            help,
            patience,
            alone,
            retry,
            stall,
            settle,
            record_life,
            certificate_lifetime,
            Duration::ZERO,
        ];
        let counts = [u64::from(random_every), helpers as u64, copies as u64];
        let [random_every, helpers, copies] = counts;
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        Self {
            times: times.map(micros),
            keepalive: keepalive.map(micros),
            counts: [random_every, helpers, copies, push_limit as u64, max_nodes as u64],
        }
    }

    fn config(&self) -> Config {
        let [interval, again, ask, help, patience, alone, retry, stall, settle, record, cert, _] =
            self.times.map(Duration::from_micros);
        let size = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
        let [random_every, helpers, copies, push_limit, max_nodes] = self.counts;
        let random_every = u32::try_from(random_every).unwrap_or(u32::MAX);
        let helpers = size(helpers);
        Config {
            probing: Probing {
                interval,
                random_every,
                again,
                ask,
                helpers,
                help,
                patience,
                alone,
                retry,
                stall,
            },
            copies: size(copies),
            settle,
            push_limit: size(push_limit),
            record_life: record,
            certificate_lifetime: cert,
            keepalive: self.keepalive.map(Duration::from_micros),
            max_nodes: size(max_nodes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_core_is_told_to_do_is_read_back() {
        for config in
            [Config::default(), Config { keepalive: None, copies: 1, ..Config::default() }]
        {
            let read: Behaviour =
                codec::from_slice(&codec::to_vec(&Behaviour::of(&config))).expect("reads");
            assert_eq!(read.config(), config);
        }
    }

    #[test]
    fn other_bytes_are_no_log() {
        assert!(matches!(replay(b""), Err(JournalError::NotAJournal)));
        assert!(matches!(replay(b"SVMS\x01"), Err(JournalError::NotAJournal)));
        let newer = replay(b"SVMJ\x07");
        assert!(matches!(newer, Err(JournalError::UnknownVersion { found: 7 })));
        let empty = replay(b"SVMJ\x01");
        assert!(matches!(empty, Err(JournalError::Malformed { frame: 0, .. })));
        let long = [&b"SVMJ\x01"[..], &[0xff; 4]].concat();
        assert!(matches!(replay(&long), Err(JournalError::Malformed { frame: 0, .. })));
    }
}
