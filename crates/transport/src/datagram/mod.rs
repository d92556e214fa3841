//! Sealed datagrams between agents: for messages that are small, many, and may be lost.
//!
//! Two nodes agree on a secret by their identities alone (X25519, static on both sides). From it
//! and from a random number of each comes the key of a session, in one round trip; messages are
//! sealed with ChaCha20-Poly1305 and counted, and each is taken once. A session is cheap: some 100
//! bytes each way to begin it, 29 bytes a message, no keep-alive, and it is kept until one of the
//! two starts again. The price, against QUIC: whoever comes by the secret of an identity can read
//! what was recorded of its datagrams before.
//!
//! A knock proves its sender, but may be an old one that somebody repeats: it is answered, and
//! changes nothing before the sender has used the session that only it can compute. So a message
//! is believed only if it was sealed after its receiver started.
//!
//! Where datagrams do not get through, and QUIC does, messages go over streams one by one.

mod allowance;
mod courier;
mod detour;
pub mod frame;
mod keys;
mod partner;
mod post;
mod window;

pub(crate) use courier::{Courier, Request};
pub(crate) use detour::Detour;
