use minicbor::{Decode, Encode};
use selvedge_model::NodeId;

use crate::codec::{self, fixed};
use crate::identity::Identity;

/// Something that a node states under its signature.
///
/// The context separates the domains: a signature over a statement of one kind never verifies as
/// one over another kind, even if the bytes were the same.
pub trait Statement: Encode<()> + for<'b> Decode<'b, ()> {
    /// What it is called in errors, such as "certificate".
    const WHAT: &'static str;
    /// What goes into the signature ahead of the bytes. Ends in a zero byte, and holds no other.
    const CONTEXT: &'static [u8];
    /// The version of its layout, its first byte. Additional fields need no new one.
    const VERSION: u8;
    /// The greatest length of the signed bytes.
    const MAX_LEN: usize;

    /// The node whose signature it needs.
    fn signer(&self) -> NodeId;

    /// Whether every field is within its bounds.
    ///
    /// # Errors
    /// What is out of bounds.
    fn check(&self) -> Result<(), &'static str>;
}

/// A statement as it travels: not verified.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Raw {
    /// The version, then the statement in CBOR: just what was signed.
    #[cbor(n(0), encode_with = "minicbor::bytes::encode")]
    #[cbor(decode_with = "codec::bytes::<MAX_RAW, _>")]
    pub bytes: Vec<u8>,
    /// An Ed25519 signature.
    #[cbor(n(1), with = "fixed")]
    pub signature: [u8; 64],
}

/// No statement of any kind is longer than this, in bytes.
pub(crate) const MAX_RAW: usize = 16 * 1024;

/// A statement whose signature holds. There is no other way to make one than to sign or to
/// verify, so whoever has one need not check again.
///
/// It keeps the bytes that were signed beside the value read from them, and passes on these
/// bytes: fields that a newer version added survive the way through an older one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed<T> {
    value: T,
    raw: Raw,
}

/// Why bytes are no signed statement. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignedError {
    /// Longer than any statement of its kind.
    #[error("the {what} is too long: {len} bytes, at most {max} are allowed")]
    TooLong {
        /// The kind of statement.
        what: &'static str,
        /// Its length in bytes.
        len: usize,
        /// The greatest length in bytes.
        max: usize,
    },
    /// Laid out by a version that is not known here.
    #[error("the {what} has version {found}, which is not known here (known: {known})")]
    UnknownVersion {
        /// The kind of statement.
        what: &'static str,
        /// Its version.
        found: u8,
        /// The version known here.
        known: u8,
    },
    /// Not the shape of such a statement.
    #[error("the {what} is malformed: {detail}")]
    Malformed {
        /// The kind of statement.
        what: &'static str,
        /// What is wrong.
        detail: String,
    },
    /// Not signed by the node that it needs the signature of.
    #[error("the {what} does not carry a valid signature of node {signer}")]
    BadSignature {
        /// The kind of statement.
        what: &'static str,
        /// The node that should have signed.
        signer: NodeId,
    },
}

impl<T: Statement> Signed<T> {
    /// Signs `value`.
    ///
    /// # Errors
    /// If a field is out of bounds, or `identity` is not the node whose signature is needed.
    pub fn sign(value: T, identity: &Identity) -> Result<Self, SignedError> {
        let malformed =
            |detail: &str| SignedError::Malformed { what: T::WHAT, detail: detail.into() };
        value.check().map_err(malformed)?;
        if value.signer() != identity.node_id() {
            return Err(SignedError::BadSignature { what: T::WHAT, signer: value.signer() });
        }
        let mut bytes = vec![T::VERSION];
        bytes.extend(codec::to_vec(&value));
        check_len::<T>(bytes.len())?;
        let signature = identity.sign(&message::<T>(&bytes));
        Ok(Self { value, raw: Raw { bytes, signature } })
    }

    /// What a statement claims, its signature *not* checked; `None` if it is malformed.
    pub(crate) fn peek(raw: &Raw) -> Option<T> {
        parse(&raw.bytes).ok()
    }

    /// Reads a statement whose signature was checked before.
    pub(crate) fn trusted(raw: Raw) -> Result<Self, SignedError> {
        Ok(Self { value: parse::<T>(&raw.bytes)?, raw })
    }

    /// Reads a statement, checks its bounds and its signature.
    ///
    /// # Errors
    /// See [`SignedError`].
    pub fn verify(raw: Raw) -> Result<Self, SignedError> {
        let value = parse::<T>(&raw.bytes)?;
        let signature = ed25519_dalek::Signature::from_bytes(&raw.signature);
        // Strict: of a signature there is no second form that a third party could make.
        let holds = ed25519_dalek::VerifyingKey::from_bytes(value.signer().as_bytes())
            .and_then(|key| key.verify_strict(&message::<T>(&raw.bytes), &signature));
        match holds {
            Ok(()) => Ok(Self { value, raw }),
            Err(_) => Err(SignedError::BadSignature { what: T::WHAT, signer: value.signer() }),
        }
    }
}

impl<T> Signed<T> {
    /// What was signed.
    #[must_use]
    pub const fn value(&self) -> &T {
        &self.value
    }

    /// What was signed.
    pub(crate) fn into_value(self) -> T {
        self.value
    }

    /// The statement as it travels.
    #[must_use]
    pub const fn raw(&self) -> &Raw {
        &self.raw
    }
}

/// The value in `bytes`, its bounds checked, its signature not.
fn parse<T: Statement>(bytes: &[u8]) -> Result<T, SignedError> {
    check_len::<T>(bytes.len())?;
    let malformed = |detail: String| SignedError::Malformed { what: T::WHAT, detail };
    let (version, body) = bytes.split_first().ok_or_else(|| malformed("it is empty".into()))?;
    if *version != T::VERSION {
        let (found, known) = (*version, T::VERSION);
        return Err(SignedError::UnknownVersion { what: T::WHAT, found, known });
    }
    let value: T = codec::from_slice(body).map_err(|error| malformed(error.to_string()))?;
    value.check().map_err(|detail| malformed(detail.into()))?;
    Ok(value)
}

fn check_len<T: Statement>(len: usize) -> Result<(), SignedError> {
    match len <= T::MAX_LEN {
        true => Ok(()),
        false => Err(SignedError::TooLong { what: T::WHAT, len, max: T::MAX_LEN }),
    }
}

fn message<T: Statement>(bytes: &[u8]) -> Vec<u8> {
    [T::CONTEXT, bytes].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Eq, Encode, Decode)]
    #[cbor(map)]
    struct Note {
        #[cbor(n(0), with = "fixed")]
        author: NodeId,
        #[n(1)]
        text: String,
    }

    /// The same, as a later version lays it out.
    #[derive(Debug, Encode, Decode)]
    #[cbor(map)]
    struct NewerNote {
        #[cbor(n(0), with = "fixed")]
        author: NodeId,
        #[n(1)]
        text: String,
        #[n(9)]
        mood: Vec<u64>,
    }

    macro_rules! note {
        ($name:ty, $context:literal, $version:literal) => {
            impl Statement for $name {
                const WHAT: &'static str = "note";
                const CONTEXT: &'static [u8] = $context;
                const VERSION: u8 = $version;
                const MAX_LEN: usize = 100;

                fn signer(&self) -> NodeId {
                    self.author
                }

                fn check(&self) -> Result<(), &'static str> {
                    (self.text != "bad").then_some(()).ok_or("the text is bad")
                }
            }
        };
    }
    note!(Note, b"note\0", 1);
    note!(NewerNote, b"note\0", 1);

    /// The same layout in another domain.
    #[derive(Debug, Encode, Decode)]
    #[cbor(transparent)]
    struct Other(#[n(0)] Note);

    impl Statement for Other {
        const WHAT: &'static str = "other";
        const CONTEXT: &'static [u8] = b"other\0";
        const VERSION: u8 = 1;
        const MAX_LEN: usize = 100;

        fn signer(&self) -> NodeId {
            self.0.author
        }

        fn check(&self) -> Result<(), &'static str> {
            Ok(())
        }
    }

    fn identity() -> Identity {
        Identity::from_secret(&[1; 32])
    }

    fn note(text: &str) -> Note {
        Note { author: identity().node_id(), text: text.into() }
    }

    #[test]
    fn verifies_what_was_signed() {
        let signed = Signed::sign(note("hello"), &identity()).expect("signs");
        let read = Signed::<Note>::verify(signed.raw().clone()).expect("verifies");
        assert_eq!(read, signed);
    }

    #[test]
    fn any_change_breaks_the_signature() {
        let signed = Signed::sign(note("hello"), &identity()).expect("signs");
        for index in 0..signed.raw().bytes.len() {
            let mut raw = signed.raw().clone();
            raw.bytes[index] ^= 1;
            assert!(Signed::<Note>::verify(raw).is_err(), "byte {index}");
        }
        for index in 0..64 {
            let mut raw = signed.raw().clone();
            raw.signature[index] ^= 1;
            assert!(Signed::<Note>::verify(raw).is_err(), "signature byte {index}");
        }
    }

    #[test]
    fn domains_are_separate() {
        let signed = Signed::sign(note("hello"), &identity()).expect("signs");
        let error = Signed::<Other>::verify(signed.raw().clone()).expect_err("another domain");
        assert!(matches!(error, SignedError::BadSignature { what: "other", .. }), "{error}");
    }

    #[test]
    fn unknown_fields_survive() {
        let author = identity().node_id();
        let newer = NewerNote { author, text: "hello".into(), mood: vec![1, 2] };
        let raw = Signed::sign(newer, &identity()).expect("signs").raw().clone();
        let seen = Signed::<Note>::verify(raw).expect("an older version verifies it");
        assert_eq!(seen.value(), &note("hello"));
        let back = Signed::<NewerNote>::verify(seen.raw().clone()).expect("and passes it on");
        assert_eq!(back.value().mood, [1, 2]);
    }

    #[test]
    fn errors_name_what_is_wrong() {
        let signed = Signed::sign(note("hello"), &identity()).expect("signs");
        let verify = |change: &dyn Fn(&mut Raw)| {
            let mut raw = signed.raw().clone();
            change(&mut raw);
            Signed::<Note>::verify(raw).expect_err("changed").to_string()
        };
        let version = verify(&|raw| raw.bytes[0] = 7);
        assert_eq!(version, "the note has version 7, which is not known here (known: 1)");
        assert_eq!(verify(&|raw| raw.bytes.clear()), "the note is malformed: it is empty");
        assert!(verify(&|raw| raw.bytes.truncate(9)).starts_with("the note is malformed: "));
        assert!(verify(&|raw| raw.bytes.push(0)).contains("bytes follow the end"));
        assert!(verify(&|raw| raw.bytes.resize(101, 0)).contains("at most 100 are allowed"));
        let error = Signed::sign(note("bad"), &identity()).expect_err("out of bounds");
        assert_eq!(error.to_string(), "the note is malformed: the text is bad");
        let stranger = Identity::from_secret(&[2; 32]);
        let error = Signed::sign(note("hello"), &stranger).expect_err("not the signer");
        assert!(matches!(error, SignedError::BadSignature { .. }));
    }
}
