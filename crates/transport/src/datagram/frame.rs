//! How sealed datagrams look on the wire.
//!
//! ```text
//! knock    kind (1)  version (1)  sender (32)  challenge (16)  tag (16)
//! answer   kind (1)  version (1)  sender (32)  challenge (16)  token (16)  tag (16)
//! data     kind (1)  session (8)  counter (4)  sealed: content and tag (16 and more)
//! ```
//!
//! The kinds are numbers with which no packet of QUIC begins, nor one of STUN, DTLS or TURN (RFC
//! 9443), so that all of these can share a port. Nothing here is believed yet: tags are looked at
//! elsewhere.

use selvedge_model::NodeId;

/// The version of the handshake, and of the keys that come of it.
pub const VERSION: u8 = 1;
/// No datagram is longer than this, in bytes: with the headers of IPv6 and UDP it fits into the
/// smallest packet that every path carries whole (1280 bytes: RFC 8200, section 5).
pub const MAX_FRAME: usize = 1232;
/// What a data frame has beside its content, in bytes.
pub const OVERHEAD: usize = HEADER + TAG;

/// The length of a tag in bytes.
pub(super) const TAG: usize = 16;
/// What the seal of a data frame covers beside its content.
pub(super) const HEADER: usize = 13;

const KNOCK: u8 = 4;
const ANSWER: u8 = 5;
const DATA: u8 = 6;

/// A number that proves, when it comes back, that somebody answers who has read it.
pub type Nonce = [u8; 16];

/// A datagram taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Asks for a session.
    Knock {
        /// Who claims to ask.
        from: NodeId,
        /// Its part of the session's key.
        challenge: Nonce,
        /// Proves that it is from there.
        tag: [u8; TAG],
    },
    /// Grants one.
    Answer {
        /// Who claims to grant it.
        from: NodeId,
        /// That of the knock.
        challenge: Nonce,
        /// Its own part of the session's key.
        token: Nonce,
        /// Proves that it is from there.
        tag: [u8; TAG],
    },
    /// Carries a message.
    Data {
        /// Under which session.
        session: [u8; 8],
        /// Differs from that of every other datagram of the session.
        counter: u32,
        /// Its content, encrypted, and its tag.
        sealed: &'a [u8],
    },
}

/// Why bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Neither length nor beginning are those of a frame.
    #[error("it is no sealed datagram")]
    Garbage,
    /// Of a version that is not known here.
    #[error("it has version {found}, which is not known here (known: {VERSION})")]
    Version {
        /// Its version.
        found: u8,
    },
}

impl<'a> Frame<'a> {
    /// Whether a datagram that begins with this byte is for us; else it is QUIC's.
    #[must_use]
    pub const fn begins_with(first: u8) -> bool {
        matches!(first, KNOCK..=DATA)
    }

    /// Takes a datagram apart.
    ///
    /// # Errors
    /// If it is not shaped like one of ours.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FrameError> {
        if bytes.len() > MAX_FRAME {
            return Err(FrameError::Garbage);
        }
        match bytes.split_first().ok_or(FrameError::Garbage)? {
            (&KNOCK, rest) => {
                let (from, rest) = sender(rest)?;
                let (challenge, rest) = take(rest)?;
                let tag = last(rest)?;
                Ok(Self::Knock { from, challenge, tag })
            }
            (&ANSWER, rest) => {
                let (from, rest) = sender(rest)?;
                let (challenge, rest) = take(rest)?;
                let (token, rest) = take(rest)?;
                let tag = last(rest)?;
                Ok(Self::Answer { from, challenge, token, tag })
            }
            (&DATA, rest) => {
                let (session, rest) = take(rest)?;
                let (counter, sealed) = take(rest)?;
                if sealed.len() < TAG {
                    return Err(FrameError::Garbage);
                }
                Ok(Self::Data { session, counter: u32::from_be_bytes(counter), sealed })
            }
            _ => Err(FrameError::Garbage),
        }
    }

    /// The datagram.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Knock { from, challenge, tag } => {
                [&[KNOCK, VERSION][..], &from.0, challenge, tag].concat()
            }
            Self::Answer { from, challenge, token, tag } => {
                [&[ANSWER, VERSION][..], &from.0, challenge, token, tag].concat()
            }
            Self::Data { session, counter, sealed } => {
                [&header(session, *counter)[..], sealed].concat()
            }
        }
    }
}

/// The beginning of a data frame.
pub(super) fn header(session: &[u8; 8], counter: u32) -> [u8; HEADER] {
    let mut header = [DATA; HEADER];
    header[1..9].copy_from_slice(session);
    header[9..].copy_from_slice(&counter.to_be_bytes());
    header
}

fn sender(rest: &[u8]) -> Result<(NodeId, &[u8]), FrameError> {
    let ([version], rest) = take(rest)?;
    if version != VERSION {
        return Err(FrameError::Version { found: version });
    }
    take(rest).map(|(from, rest)| (NodeId(from), rest))
}

fn take<const N: usize>(bytes: &[u8]) -> Result<([u8; N], &[u8]), FrameError> {
    let (first, rest) = bytes.split_first_chunk().ok_or(FrameError::Garbage)?;
    Ok((*first, rest))
}

fn last(bytes: &[u8]) -> Result<[u8; TAG], FrameError> {
    bytes.try_into().map_err(|_| FrameError::Garbage)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FROM: NodeId = NodeId([7; 32]);

    #[test]
    fn frames_survive_their_encodings() {
        let sealed = [9; 40];
        let (challenge, token, tag) = ([1; 16], [2; 16], [3; 16]);
        for frame in [
            Frame::Knock { from: FROM, challenge, tag },
            Frame::Answer { from: FROM, challenge, token, tag },
            Frame::Data { session: [4; 8], counter: u32::MAX - 1, sealed: &sealed },
        ] {
            let bytes = frame.encode();
            assert!(Frame::begins_with(bytes[0]));
            assert_eq!(Frame::parse(&bytes), Ok(frame));
            assert_eq!(Frame::parse(&bytes[..bytes.len() - 25]), Err(FrameError::Garbage));
        }
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = Frame::Knock { from: FROM, challenge: [0; 16], tag: [0; 16] }.encode();
        bytes[1] = 9;
        assert_eq!(Frame::parse(&bytes), Err(FrameError::Version { found: 9 }));
    }

    #[test]
    fn packets_of_quic_begin_otherwise() {
        // Long and short headers have the fixed bit (RFC 9000, section 17); version negotiation
        // has at least the first.
        for first in 0x40..=0xff {
            assert!(!Frame::begins_with(first), "{first:#x}");
        }
    }

    proptest! {
        #[test]
        fn what_parses_encodes_to_itself(
            kind in 3..8_u8,
            mut bytes in prop::collection::vec(any::<u8>(), 0..1300),
        ) {
            bytes.insert(0, kind);
            if kind < DATA && bytes.len() > 1 {
                bytes[1] = VERSION;
            }
            if let Ok(frame) = Frame::parse(&bytes) {
                prop_assert!(bytes.len() <= MAX_FRAME);
                prop_assert_eq!(frame.encode(), bytes);
            }
        }
    }
}
