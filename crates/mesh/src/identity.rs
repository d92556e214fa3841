use std::fmt;
use std::sync::Arc;

use ed25519_dalek::{Signer as _, SigningKey};
use selvedge_model::NodeId;

use crate::journal::{SignatureLog, Tape, hash_of};

/// The identity of this node: an Ed25519 key pair (RFC 8032) whose public half is its [`NodeId`].
///
/// The secret is wiped from memory when the value is dropped, and `Debug` does not show it.
#[derive(Clone)]
pub struct Identity {
    signer: Key,
    log: Option<SignatureLog>,
}

#[derive(Clone)]
enum Key {
    Own(Box<SigningKey>),
    /// The signatures that a node made once, for replaying what it did.
    Tape(NodeId, Arc<Tape>),
}

impl Identity {
    /// The identity of 32 secret bytes, which must come from a cryptographic random source.
    #[must_use]
    pub fn from_secret(secret: &[u8; 32]) -> Self {
        Self { signer: Key::Own(Box::new(SigningKey::from_bytes(secret))), log: None }
    }

    /// One that can sign again what it has signed before, and nothing else.
    pub(crate) fn from_tape(node: NodeId, tape: Tape) -> Self {
        Self { signer: Key::Tape(node, Arc::new(tape)), log: None }
    }

    /// The same, with its signatures written down.
    pub(crate) fn logged(mut self, log: SignatureLog) -> Self {
        self.log = Some(log);
        self
    }

    /// The public half.
    #[must_use]
    pub fn node_id(&self) -> NodeId {
        match &self.signer {
            Key::Own(key) => NodeId(key.verifying_key().to_bytes()),
            Key::Tape(node, _) => *node,
        }
    }

    /// The signature over `message`.
    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        let signature = match &self.signer {
            Key::Own(key) => key.sign(message).to_bytes(),
            // What was never signed gets a signature that does not hold.
            Key::Tape(_, tape) => tape.get(&hash_of(message)).copied().unwrap_or([0; 64]),
        };
        if let Some(log) = &self.log {
            log.note(message, signature);
        }
        signature
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
