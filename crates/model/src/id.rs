use std::fmt;
use std::str::FromStr;

use data_encoding::{BASE32_NOPAD, BASE64};
use serde::{Deserialize, Serialize};

/// Why a text is no identifier or key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {what}: expected {expected}")]
pub struct ParseIdError {
    what: &'static str,
    expected: &'static str,
    text: String,
}

macro_rules! bytes_type {
    ($(#[$doc:meta])* $name:ident, $len:literal, $what:literal, $expected:literal, $encode:expr, $decode:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Number of bytes.
            pub const LEN: usize = $len;

            /// The bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let decoded: Option<Vec<u8>> = $decode(text);
                let bytes = decoded.and_then(|bytes| bytes.try_into().ok());
                bytes.map(Self).ok_or_else(|| ParseIdError {
                    what: $what,
                    expected: $expected,
                    text: text.chars().take(80).collect(),
                })
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseIdError;

            fn try_from(text: String) -> Result<Self, ParseIdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let text: String = $encode(&self.0);
                f.pad(&text)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    };
}

fn base32(bytes: &[u8]) -> String {
    BASE32_NOPAD.encode(bytes).to_ascii_lowercase()
}

fn from_base32(text: &str) -> Option<Vec<u8>> {
    BASE32_NOPAD.decode(text.to_ascii_uppercase().as_bytes()).ok()
}

bytes_type!(
    /// The identity of a mesh node: its Ed25519 public key (RFC 8032). Printed as 52 characters
    /// of lower-case base32.
    NodeId, 32, "node id", "52 characters of base32", base32, from_base32
);

bytes_type!(
    /// The identity of a mesh: a hash of its founding public key. Printed as 32 characters of
    /// lower-case base32.
    MeshId, 20, "mesh id", "32 characters of base32", base32, from_base32
);

bytes_type!(
    /// A WireGuard public key (Curve25519). Printed in base64 as `wg` does.
    WgKey, 32, "WireGuard key", "44 characters of base64",
    |bytes: &[u8; 32]| BASE64.encode(bytes), |text: &str| BASE64.decode(text.as_bytes()).ok()
);

impl NodeId {
    /// The first ten characters, for people. Not unique enough for machines.
    #[must_use]
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(10);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_what_they_parse() {
        let id = NodeId([7; 32]);
        assert_eq!(id.to_string().len(), 52);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(MeshId([9; 20]).to_string().len(), 32);
        let key = WgKey([255; 32]);
        assert_eq!(key.to_string().parse(), Ok(key));
    }

    #[test]
    fn bad_ids_are_named() {
        let error = "xyz".parse::<MeshId>().expect_err("too short");
        assert_eq!(error.to_string(), "\"xyz\" is not a mesh id: expected 32 characters of base32");
        assert!("\u{df}".repeat(32).parse::<MeshId>().is_err());
    }
}
