use std::fmt;

use ed25519_dalek::{SigningKey, VerifyingKey};
use selvedge_model::NodeId;
use zeroize::Zeroizing;

/// What this host agrees with others on by its identity and theirs, without a word between them.
///
/// The Ed25519 keys are taken for keys of X25519 (RFC 7748), as libsodium's
/// `crypto_sign_ed25519_sk_to_curve25519` does and age for its recipients of type `ssh-ed25519`.
/// That one key pair both signs and agrees is sound (<https://eprint.iacr.org/2021/509>).
#[derive(Clone)]
pub struct Agreement {
    scalar: Zeroizing<[u8; 32]>,
    own: NodeId,
}

impl Agreement {
    /// For the identity of this secret, the seed of an Ed25519 key (RFC 8032).
    #[must_use]
    pub fn of(secret: &[u8; 32]) -> Self {
        let key = SigningKey::from_bytes(secret);
        let own = NodeId(key.verifying_key().to_bytes());
        Self { scalar: Zeroizing::new(key.to_scalar_bytes()), own }
    }

    /// This host's own identity.
    #[must_use]
    pub const fn own(&self) -> NodeId {
        self.own
    }

    /// The secret that only this host and `partner` can compute. `None` if that is no key, or one
    /// of small order, with which everybody could (RFC 7748, section 6.1).
    #[must_use]
    pub fn shared(&self, partner: &NodeId) -> Option<Zeroizing<[u8; 32]>> {
        let key = VerifyingKey::from_bytes(partner.as_bytes()).ok()?;
        if key.is_weak() {
            return None;
        }
        // The scalar is clamped here: what is left of a point of small order is zero.
        let shared = Zeroizing::new(key.to_montgomery().mul_clamped(*self.scalar).to_bytes());
        (*shared != [0; 32]).then_some(shared)
    }
}

impl fmt::Debug for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agreement").field("own", &self.own).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key pair of libsodium's test `ed25519_convert`, and what it becomes for X25519.
    #[test]
    fn keys_are_converted_as_elsewhere() {
        let bytes = |hex: &str| -> [u8; 32] {
            std::array::from_fn(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("hex"))
        };
        let seed = bytes("421151a459faeade3d247115f94aedae42318124095afabe4d1451a559faedee");
        let public = bytes("f1814f0e8ff1043d8a44d25babff3cedcae6c22c3edaa48f857ae70de2baae50");
        let secret = bytes("8052030376d47112be7f73ed7a019293dd12ad910b654455798b4667d73de166");
        let key = SigningKey::from_bytes(&seed);
        assert_eq!(key.verifying_key().to_montgomery().to_bytes(), public);
        let mut clamped = *Agreement::of(&seed).scalar;
        clamped[0] &= 248;
        clamped[31] = clamped[31] & 127 | 64;
        assert_eq!(clamped, secret);
    }

    #[test]
    fn two_agree_and_a_third_does_not() {
        let [a, b, c] = [1, 2, 3].map(|seed| Agreement::of(&[seed; 32]));
        let shared = |one: &Agreement, other: &Agreement| *one.shared(&other.own()).expect("a key");
        assert_eq!(shared(&a, &b), shared(&b, &a));
        assert_ne!(shared(&a, &b), shared(&a, &c));
        assert!(!format!("{a:?}").contains("scalar"));
    }

    #[test]
    fn keys_with_which_everybody_would_agree_are_refused() {
        let agreement = Agreement::of(&[1; 32]);
        // The neutral element, a point of order 2, of order 4, and one of order 8.
        let mut neutral = [0; 32];
        neutral[0] = 1;
        let mut two = [0xff; 32];
        (two[0], two[31]) = (0xec, 0x7f);
        let eight = [
            0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef,
            0x98, 0xf0, 0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88,
            0x6d, 0x53, 0xfc, 0x05,
        ];
        for weak in [neutral, two, [0; 32], eight] {
            assert!(VerifyingKey::from_bytes(&weak).is_ok_and(|key| key.is_weak()), "{weak:x?}");
            assert!(agreement.shared(&NodeId(weak)).is_none(), "{weak:x?}");
        }
        let off_curve =
            (2..100).map(|byte| [byte; 32]).find(|y| VerifyingKey::from_bytes(y).is_err());
        let off_curve = NodeId(off_curve.expect("half of them are not on the curve"));
        assert!(agreement.shared(&off_curve).is_none());
    }
}
