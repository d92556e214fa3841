use std::fmt;

use ed25519_dalek::{Signer as _, SigningKey};
use selvedge_model::NodeId;

/// The identity of this node: an Ed25519 key pair (RFC 8032) whose public half is its [`NodeId`].
///
/// The secret is wiped from memory when the value is dropped, and `Debug` does not show it.
#[derive(Clone)]
pub struct Identity {
    key: SigningKey,
}

impl Identity {
    /// The identity of 32 secret bytes, which must come from a cryptographic random source.
    #[must_use]
    pub fn from_secret(secret: &[u8; 32]) -> Self {
        Self { key: SigningKey::from_bytes(secret) }
    }

    /// The public half.
    #[must_use]
    pub fn node_id(&self) -> NodeId {
        NodeId(self.key.verifying_key().to_bytes())
    }

    /// The signature over `message`.
    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message).to_bytes()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.node_id()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_secret_is_not_shown() {
        let identity = Identity::from_secret(&[0xab; 32]);
        let shown = format!("{identity:?}");
        assert!(shown.contains(&identity.node_id().to_string()), "{shown}");
        assert!(!shown.contains("171") && !shown.contains("abab"), "{shown}");
    }
}
