//! What client and server of the embedded store say to each other: frames of a length (four
//! bytes, the highest first) and so many bytes of JSON.
//!
//! The client begins with a [`Hello`], the server answers with a [`Welcome`]; from then on each
//! [`Call`] is answered by one or more [`Reply`]s of its number. Long answers are cut into parts.

use std::io;

use selvedge_gateway::kv::{Event, KeyValue, LeaseId, Revision, StoreError, Txn, TxnReply};
use selvedge_gateway::model::event_key;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};

/// The version of this protocol.
pub(super) const VERSION: u32 = 2;

/// The longest frame. The largest transaction has 1.5 MiB, each byte of a value takes up to four
/// bytes as a JSON number, and the rest is for what surrounds it.
pub(super) const MAX_FRAME: usize = 8 << 20;

/// The longest request; shorter than a frame so that what it wrote can be sent back.
pub(super) const MAX_REQUEST: usize = 7 << 20;

/// About how long a part of a long answer is, in bytes.
const PART: usize = 256 << 10;

/// The first frame of a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    /// The version of the protocol that the client speaks.
    pub(super) selvedge_store: u32,
}

/// The first frame of a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Welcome {
    /// Go on.
    Store {
        /// A number that no other store has, nor this one after a restart.
        identity: u64,
    },
    /// The server does not speak the client's version.
    Refused {
        /// Why, for people.
        reason: String,
    },
}

/// A request with the number that its answer bears.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Call {
    pub(super) id: u64,
    pub(super) request: Request,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Request {
    Txn(Txn),
    Read {
        prefixes: Vec<String>,
    },
    /// Answered by [`Answer::Done`], then by events until it fails or is cancelled.
    Watch {
        prefixes: Vec<String>,
        after: Revision,
    },
    /// Ends the watch of the call `watch`.
    Cancel {
        watch: u64,
    },
    Grant {
        ttl_ms: u64,
    },
    KeepAlive(LeaseId),
    Revoke(LeaseId),
    Compact(Revision),
}

/// An answer with the number of its call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reply {
    pub(super) id: u64,
    pub(super) answer: Answer,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Answer {
    Txn(TxnReply),
    Lease(LeaseId),
    Done,
    Failed(StoreError),
    /// Some keys of a snapshot; the last part has the revision.
    Keys {
        keys: Vec<KeyValue>,
        last: Option<Revision>,
    },
    /// Some events of a batch; the last part has the revision.
    Events {
        events: Vec<Event>,
        last: Option<Revision>,
    },
}

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    #[error("reading or writing a frame: {0}")]
    Io(#[from] io::Error),
    #[error("a frame of {0} bytes, more than {1}")]
    TooLong(usize, usize),
    #[error("decoding a frame: {0}")]
    Malformed(#[from] serde_json::Error),
}

/// Encodes a frame of at most `limit` bytes.
pub(super) fn encode<T: Serialize>(value: &T, limit: usize) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, value)?;
    let length = frame.len() - 4;
    let Some(prefix) = u32::try_from(length).ok().filter(|_| length <= limit) else {
        return Err(FrameError::TooLong(length, limit));
    };
    frame[..4].copy_from_slice(&prefix.to_be_bytes());
    Ok(frame)
}

/// Reads a frame of at most `limit` bytes; `None` at the end of the stream. Memory grows with
/// what has arrived, not with what the length promises.
pub(super) async fn read<T: DeserializeOwned>(
    reader: &mut (impl AsyncRead + Unpin),
    limit: usize,
) -> Result<Option<T>, FrameError> {
    let mut prefix = [0; 4];
    if reader.read(&mut prefix[..1]).await? == 0 {
        return Ok(None);
    }
    reader.read_exact(&mut prefix[1..]).await?;
    let length = usize::try_from(u32::from_be_bytes(prefix)).unwrap_or(usize::MAX);
    if length > limit {
        return Err(FrameError::TooLong(length, limit));
    }
    let mut body = Vec::new();
    reader.take(length as u64).read_to_end(&mut body).await?;
    if body.len() < length {
        return Err(FrameError::Io(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(Some(serde_json::from_slice(&body)?))
}

/// Cuts the keys of a snapshot into answers.
pub(super) fn key_parts(keys: Vec<KeyValue>, revision: Revision) -> Vec<Answer> {
    let size = |kv: &KeyValue| weight(&kv.key, &kv.value);
    let answer = |keys, last: bool| Answer::Keys { keys, last: last.then_some(revision) };
    parts(keys, size, answer)
}

/// Cuts the events of a batch into answers.
pub(super) fn event_parts(events: Vec<Event>, revision: Revision) -> Vec<Answer> {
    let size = |event: &Event| match event {
        Event::Put(kv) => weight(&kv.key, &kv.value),
        Event::Delete { .. } => weight(event_key(event), &[]),
    };
    let answer = |events, last: bool| Answer::Events { events, last: last.then_some(revision) };
    parts(events, size, answer)
}

fn parts<T>(
    items: Vec<T>,
    size: impl Fn(&T) -> usize,
    answer: impl Fn(Vec<T>, bool) -> Answer,
) -> Vec<Answer> {
    let (mut answers, mut part, mut filled) = (Vec::new(), Vec::new(), 0);
    for item in items {
        let more = size(&item);
        if filled + more > PART && !part.is_empty() {
            answers.push(answer(std::mem::take(&mut part), false));
            filled = 0;
        }
        filled += more;
        part.push(item);
    }
    answers.push(answer(part, true));
    answers
}

/// About how long a key with its value is in JSON.
fn weight(key: &str, value: &[u8]) -> usize {
    key.len() + 4 * value.len() + 96
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode<T: DeserializeOwned>(mut bytes: &[u8]) -> Result<Option<T>, FrameError> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("no driver");
        runtime.block_on(read(&mut bytes, MAX_REQUEST))
    }

    #[test]
    fn a_length_beyond_the_limit_is_an_error_at_once() {
        let prefix = u32::try_from(MAX_REQUEST + 1).expect("fits").to_be_bytes();
        assert!(matches!(decode::<Call>(&prefix), Err(FrameError::TooLong(..))));
        assert!(matches!(decode::<Call>(&[0, 0, 0, 9, b'{']), Err(FrameError::Io(_))));
        assert!(matches!(decode::<Call>(&[]), Ok(None)));
        assert!(matches!(encode(&"x".repeat(9), 10), Err(FrameError::TooLong(11, 10))));
    }

    #[test]
    fn the_largest_value_fits_into_a_request_and_into_an_answer() {
        let value = vec![200; selvedge_gateway::model::MAX_TXN_BYTES];
        let op = selvedge_gateway::kv::Op::Put { key: "k".to_owned(), value, lease: None };
        let request = Request::Txn(Txn { compare: Vec::new(), then: vec![op] });
        assert!(encode(&Call { id: u64::MAX, request }, MAX_REQUEST).is_ok());
    }

    #[test]
    fn parts_are_bounded_and_only_the_last_has_the_revision() {
        let key = |n: usize| KeyValue {
            key: format!("k{n}"),
            value: vec![255; 1000],
            create: Revision(1),
            modified: Revision(1),
            lease: None,
        };
        let keys: Vec<_> = (0..500).map(key).collect();
        let answers = key_parts(keys.clone(), Revision(7));
        assert!(answers.len() > 5);
        let mut joined = Vec::new();
        for (n, answer) in answers.iter().enumerate() {
            let Answer::Keys { keys, last } = answer else { panic!("not keys") };
            assert!(encode(answer, 2 * PART).is_ok());
            assert_eq!(last.is_some(), n + 1 == answers.len());
            joined.extend(keys.clone());
        }
        assert_eq!(joined, keys);
        assert_eq!(event_parts(Vec::new(), Revision(7)).len(), 1);
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode::<Call>(&bytes);
            let mut framed = u32::try_from(bytes.len()).expect("short").to_be_bytes().to_vec();
            framed.extend(bytes);
            let _ = decode::<Call>(&framed);
            let _ = decode::<Reply>(&framed);
            let _ = decode::<Hello>(&framed);
        }

        #[test]
        fn a_damaged_request_is_decoded_or_refused(at in 0..80usize, byte in any::<u8>()) {
            let request = Request::Watch { prefixes: vec!["/a".to_owned()], after: Revision(5) };
            let mut frame = encode(&Call { id: 3, request }, MAX_REQUEST).expect("short");
            let at = at % frame.len();
            frame[at] = byte;
            let _ = decode::<Call>(&frame);
        }

        #[test]
        fn what_is_encoded_is_decoded(id in any::<u64>(), key in ".{1,20}", value: Vec<u8>) {
            let op = selvedge_gateway::kv::Op::Put { key, value, lease: Some(LeaseId(4)) };
            let request = Request::Txn(Txn { compare: Vec::new(), then: vec![op] });
            let call = Call { id, request };
            let frame = encode(&call, MAX_REQUEST).expect("short");
            prop_assert_eq!(decode::<Call>(&frame).expect("intact"), Some(call));
        }
    }
}
