//! The keys of two nodes and of a session between them.

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce as AeadNonce, UnboundKey};
use selvedge_model::NodeId;
use zeroize::Zeroizing;

use super::frame::{Frame, HEADER, Nonce, TAG, header};
use super::window::Window;
use crate::Agreement;

/// Tell these keys from all others that come of the same secret.
const TAGS: &str = "selvedge 2026-11 datagrams: tags from sender to receiver";
const SESSIONS: &str = "selvedge 2026-11 datagrams: session";

/// A session is replaced before its counters are used up.
const LAST_COUNTER: u32 = 1 << 31;

type Key = Zeroizing<[u8; 32]>;

/// What two nodes share for as long as both have their identities. It seals no content: a session
/// has a key of its own, to which both have contributed.
pub(super) struct Pair {
    own: NodeId,
    partner: NodeId,
    shared: Key,
    outgoing: Key,
    incoming: Key,
}

impl Pair {
    /// `None` if `partner` is no key, or one that agrees with everybody.
    pub(super) fn new(agreement: &Agreement, partner: NodeId) -> Option<Self> {
        let (own, shared) = (agreement.own(), agreement.shared(&partner)?);
        let tags = |sender: NodeId, receiver: NodeId| {
            let material = Zeroizing::new([*shared, sender.0, receiver.0].concat());
            Zeroizing::new(blake3::derive_key(TAGS, &material))
        };
        let (outgoing, incoming) = (tags(own, partner), tags(partner, own));
        Some(Self { own, partner, shared, outgoing, incoming })
    }

    /// The other of the two.
    pub(super) const fn partner(&self) -> NodeId {
        self.partner
    }

    /// The datagram that asks for a session.
    pub(super) fn knock(&self, challenge: Nonce) -> Vec<u8> {
        let unsigned = Frame::Knock { from: self.own, challenge, tag: [0; TAG] };
        sign(&self.outgoing, unsigned.encode())
    }

    /// The datagram that grants one.
    pub(super) fn answer(&self, challenge: Nonce, token: Nonce) -> Vec<u8> {
        let unsigned = Frame::Answer { from: self.own, challenge, token, tag: [0; TAG] };
        sign(&self.outgoing, unsigned.encode())
    }

    /// Whether a knock or an answer is the partner's, and for this node.
    pub(super) fn verifies(&self, datagram: &[u8]) -> bool {
        let Some((covered, tag)) = datagram.split_last_chunk::<TAG>() else { return false };
        let expected = blake3::keyed_hash(&self.incoming, covered);
        let mut claimed = *expected.as_bytes();
        claimed[..TAG].copy_from_slice(tag);
        // Hashes are compared in constant time.
        blake3::Hash::from_bytes(claimed) == expected
    }

    /// The session that comes of a knock and its answer; `asked` says whether this node knocked.
    pub(super) fn session(&self, asked: bool, challenge: Nonce, token: Nonce) -> Session {
        let (first, second) =
            if asked { (self.own, self.partner) } else { (self.partner, self.own) };
        let mut hasher = blake3::Hasher::new_derive_key(SESSIONS);
        hasher.update(&self.shared[..]).update(&first.0).update(&second.0);
        let mut output = hasher.update(&challenge).update(&token).finalize_xof();
        let mut keys = [Key::default(), Key::default()];
        let mut id = [0; 8];
        keys.iter_mut().for_each(|key| output.fill(&mut key[..]));
        output.fill(&mut id);
        let [forth, back] = keys;
        let (seal, open) = if asked { (forth, back) } else { (back, forth) };
        Session { id, seal, open, next: 0, window: Window::default() }
    }
}

fn sign(key: &Key, mut datagram: Vec<u8>) -> Vec<u8> {
    let covered = datagram.len() - TAG;
    let tag = blake3::keyed_hash(key, &datagram[..covered]);
    datagram[covered..].copy_from_slice(&tag.as_bytes()[..TAG]);
    datagram
}

/// Keys for what two nodes send each other from now on.
pub(super) struct Session {
    pub(super) id: [u8; 8],
    seal: Key,
    open: Key,
    next: u32,
    window: Window,
}

impl Session {
    /// The datagram that carries `content`; `None` if the session is used up.
    pub(super) fn seal(&mut self, content: &[u8]) -> Option<Vec<u8>> {
        let counter = self.next;
        if counter > LAST_COUNTER {
            return None;
        }
        self.next += 1;
        let header = header(&self.id, counter);
        let mut sealed = content.to_vec();
        let (key, nonce) = (aead(&self.seal), nonce(counter));
        key.seal_in_place_append_tag(nonce, Aad::from(header), &mut sealed).ok()?;
        let mut datagram = Vec::with_capacity(HEADER + sealed.len());
        datagram.extend(header);
        datagram.extend(sealed);
        Some(datagram)
    }

    /// The content of a data frame of this session, once.
    pub(super) fn open(&mut self, counter: u32, sealed: &[u8]) -> Option<Vec<u8>> {
        let mut content = sealed.to_vec();
        let (key, header) = (aead(&self.open), header(&self.id, counter));
        let len = key.open_in_place(nonce(counter), Aad::from(header), &mut content).ok()?.len();
        content.truncate(len);
        self.window.take(counter).then_some(content)
    }

    /// Whether it should be replaced.
    pub(super) const fn is_used_up(&self) -> bool {
        self.next > LAST_COUNTER
    }
}

/// No counter is sealed twice under a key: both nodes have drawn a part of it at random.
fn nonce(counter: u32) -> AeadNonce {
    let mut bytes = [0; 12];
    bytes[8..].copy_from_slice(&counter.to_be_bytes());
    AeadNonce::assume_unique_for_key(bytes)
}

fn aead(key: &Key) -> LessSafeKey {
    let key = UnboundKey::new(&CHACHA20_POLY1305, &key[..]);
    LessSafeKey::new(key.expect("a key of ChaCha20-Poly1305 has 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs() -> (Pair, Pair) {
        let (a, b) = (Agreement::of(&[1; 32]), Agreement::of(&[2; 32]));
        let pair = |one, other: &Agreement| Pair::new(one, other.own()).expect("a key");
        (pair(&a, &b), pair(&b, &a))
    }

    fn open(session: &mut Session, datagram: &[u8]) -> Option<Vec<u8>> {
        match Frame::parse(datagram) {
            Ok(Frame::Data { session: id, counter, sealed }) if id == session.id => {
                session.open(counter, sealed)
            }
            _ => None,
        }
    }

    #[test]
    fn tags_hold_in_their_direction_alone() {
        let (a, b) = pairs();
        let knock = a.knock([7; 16]);
        assert!(b.verifies(&knock));
        assert!(!a.verifies(&knock), "reflected");
        for index in 0..knock.len() {
            let mut bent = knock.clone();
            bent[index] ^= 1;
            assert!(!b.verifies(&bent), "byte {index}");
        }
        assert!(!b.verifies(&[]));
    }

    #[test]
    fn a_session_seals_both_ways() {
        let (a, b) = pairs();
        let mut here = a.session(true, [1; 16], [2; 16]);
        let mut there = b.session(false, [1; 16], [2; 16]);
        let forth = here.seal(b"forth").expect("fresh");
        let back = there.seal(b"back").expect("fresh");
        assert_eq!(open(&mut there, &forth).as_deref(), Some(&b"forth"[..]));
        assert_eq!(open(&mut here, &back).as_deref(), Some(&b"back"[..]));
        assert_eq!(open(&mut there, &forth), None, "once");
        assert_eq!(open(&mut here, &forth), None, "reflected");
        let mut other = b.session(false, [1; 16], [3; 16]);
        assert_ne!(other.id, there.id);
        assert_eq!(other.open(0, &forth[HEADER..]), None, "of another session");
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let (a, b) = pairs();
        let datagram = a.session(true, [1; 16], [2; 16]).seal(b"content").expect("fresh");
        let mut there = b.session(false, [1; 16], [2; 16]);
        for index in 0..datagram.len() {
            let mut bent = datagram.clone();
            bent[index] ^= 0x40;
            assert_eq!(open(&mut there, &bent), None, "byte {index}");
        }
        assert!(open(&mut there, &datagram).is_some(), "forgeries used up no counter");
    }

    #[test]
    fn a_session_ends_before_its_counters_do() {
        let (a, _) = pairs();
        let mut session = a.session(true, [1; 16], [2; 16]);
        session.next = LAST_COUNTER;
        assert!(session.seal(b"last").is_some());
        assert!(session.is_used_up() && session.seal(b"more").is_none());
    }
}
